//! What happens to reservations: they are made, begin, end, and move those who stand in their way.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::effect::*;
use crate::event::*;
use crate::jobs::{Job, Phase, Why};
use crate::nodes::Node;
use crate::reservations::{Reservation, ReservationError};
use crate::types::*;

impl Cluster {
    pub(crate) fn reserve(&mut self, now: Time, booking: Booking) -> Result<Answer, Refusal> {
        let error = |error| Err(Refusal::Reservation(error));
        if let Some(known) = self.reservations.get(&booking.name) {
            // The answer may have been lost.
            return match self.is_same(known, &booking) {
                true => Ok(Answer::Reserved(known.clone())),
                false => error(ReservationError::Taken(booking.name)),
            };
        }
        let Booking { name, nodes, start, end, queues, users } = booking;
        if let Some(start) = start.filter(|start| *start < now) {
            return error(ReservationError::Past { start, now });
        }
        let start = start.unwrap_or(now);
        if end <= start {
            return error(ReservationError::Backwards { start, end });
        }
        if let Some(queue) = queues.iter().find(|queue| self.queues.get(queue).is_none()) {
            return Err(Refusal::UnknownQueue(queue.clone()));
        }
        let nodes = match nodes {
            BookedNodes::Named(names) => self.named(&name, &names, start, end)?,
            BookedNodes::Chosen { count, labels, model } => {
                self.choose_nodes(count, &labels, model, start, end)?
            }
        };
        let reservation = Reservation { name: name.clone(), nodes, start, end, queues, users, begun: false };
        self.note(Note::Reserved {
            reservation: name.clone(),
            nodes: reservation.nodes.iter().map(|node| self.nodes.get(*node).name.clone()).collect(),
            in_ms: start.since(now),
            for_ms: end.since(start),
        });
        self.reservations.set(reservation.clone());
        self.rebook(now, name);
        Ok(Answer::Reserved(reservation))
    }

    pub(crate) fn unreserve(&mut self, now: Time, name: &Name) -> Result<Answer, Refusal> {
        if self.reservations.get(name).is_none() {
            return Err(Refusal::Reservation(ReservationError::Unknown(name.clone())));
        }
        self.reservations.remove(name);
        self.note(Note::Unreserved(name.clone()));
        self.rebook(now, name.clone());
        Ok(Answer::Done)
    }

    /// Whether a job may be submitted for the reservation that it names.
    pub(crate) fn check_guest(&self, spec: &JobSpec) -> Result<(), Refusal> {
        let Some(name) = &spec.reservation else { return Ok(()) };
        let error = match self.reservations.get(name) {
            None => ReservationError::Unknown(name.clone()),
            Some(reservation) if self.reservations.admits(reservation, spec) => return Ok(()),
            Some(_) => {
                let (queue, user) = (spec.queue.clone(), spec.user.clone());
                ReservationError::NotGuest { reservation: name.clone(), queue, user }
            }
        };
        Err(Refusal::Reservation(error))
    }

    /// Whether a booking is the one that made the reservation, as far as can be said.
    fn is_same(&self, known: &Reservation, booking: &Booking) -> bool {
        let nodes = match &booking.nodes {
            BookedNodes::Chosen { count, .. } => known.nodes.len() == *count as usize,
            BookedNodes::Named(names) => {
                let ids = names.iter().filter_map(|name| self.nodes.by_name(name));
                ids.collect::<BTreeSet<NodeId>>().into_iter().eq(known.nodes.iter().copied())
            }
        };
        nodes
            && booking.start.is_none_or(|start| start == known.start)
            && (booking.end, &booking.queues, &booking.users) == (known.end, &known.queues, &known.users)
    }

    fn named(&self, name: &Name, nodes: &[Name], start: Time, end: Time) -> Result<Vec<NodeId>, Refusal> {
        let mut ids = BTreeSet::new();
        for node in nodes {
            let id = self.nodes.by_name(node).ok_or_else(|| Refusal::UnknownNode(node.clone()))?;
            if let Some(other) = self.reservations.of_node(id).find(|it| it.overlaps(start, end)) {
                let (name, node, other) = (name.clone(), node.clone(), other.name.clone());
                return Err(Refusal::Reservation(ReservationError::Overlap { name, node, other }));
            }
            ids.insert(id);
        }
        match ids.is_empty() {
            true => Err(Refusal::Reservation(ReservationError::NoNodes)),
            false => Ok(ids.into_iter().collect()),
        }
    }

    /// Those that are expected to be empty the least time after the start; of them, those on which least would be lost
    /// if all was stopped now; of them, the slowest and smallest; of them, the lowest. `O(nodes log nodes)`.
    fn choose_nodes(
        &self,
        count: u32,
        labels: &[(Name, Name)],
        model: Option<Name>,
        start: Time,
        end: Time,
    ) -> Result<Vec<NodeId>, Refusal> {
        if count == 0 {
            return Err(Refusal::Reservation(ReservationError::NoNodes));
        }
        let wants = DeviceRequest { count: 1, model, ..DeviceRequest::default() };
        let suits = |node: &&Node| {
            let inventory = &node.inventory;
            node.takes_work()
                && labels.iter().all(|(key, value)| inventory.labels.get(key) == Some(value))
                && (wants.model.is_none() || inventory.devices.iter().any(|it| wants.accepts(&it.class)))
        };
        let suitable: Vec<&Node> = self.nodes.iter().filter(suits).collect();
        let of = suitable.len() as u32;
        let is_free = |node: &&Node| !self.reservations.of_node(node.id).any(|it| it.overlaps(start, end));
        let mut free: Vec<_> =
            suitable.into_iter().filter(is_free).map(|node| self.price(node, start)).collect();
        if free.len() < count as usize {
            let free = free.len() as u32;
            return Err(Refusal::Reservation(ReservationError::TooFew { wants: count, free, of }));
        }
        free.sort_unstable();
        let mut nodes: Vec<NodeId> = free.into_iter().take(count as usize).map(|(.., id)| id).collect();
        nodes.sort_unstable();
        Ok(nodes)
    }

    fn price(&self, node: &Node, start: Time) -> (u64, u64, u64, NodeId) {
        let empty = self.nodes.empty_in(self.now, node.id);
        let late_ms = empty.map_or(u64::MAX, |ms| Time(self.now.0.saturating_add(ms)).since(start));
        let jobs: BTreeSet<JobId> = self.holders(node.id).collect();
        let lost = jobs.into_iter().map(|id| {
            let job = self.jobs.get(id).expect("a job that holds");
            self.unsaved_ms(job).saturating_mul(job.charge_milli())
        });
        let worth = node.inventory.devices.iter().map(|device| u64::from(device.speed_milli)).sum();
        (late_ms, lost.fold(0, u64::saturating_add), worth, node.id)
    }

    /// Jobs that hold something on a node, each once for every rank.
    fn holders(&self, node: NodeId) -> impl Iterator<Item = JobId> + '_ {
        self.nodes.held(node).ends.keys().map(|(_, worker)| worker.job)
    }

    /// A reservation was made, changed or removed.
    fn rebook(&mut self, now: Time, name: Name) {
        self.touch_reservation(name);
        self.admit_guests();
        self.schedule_moves();
        self.plan_anew(now);
    }

    /// Brings up to date who may use reservations.
    pub(crate) fn admit_guests(&mut self) {
        let guests = self.reservations.admit(&self.queues);
        self.jobs.set_guests(self.now, guests);
    }

    /// Decides when which jobs must be stopped. Nothing is placed that must be, so that is done when a reservation or who
    /// may use it changes. `O(ranks on booked nodes)`.
    pub(crate) fn schedule_moves(&mut self) {
        self.moves.clear();
        if self.policy.preemption {
            let jobs: BTreeSet<JobId> =
                self.reservations.nodes().flat_map(|node| self.holders(node)).collect();
            let moves = jobs.into_iter().filter_map(|id| Some((self.must_move(self.jobs.get(id)?)?.0, id)));
            self.moves = moves.collect();
        }
    }

    /// When a job that runs must be asked to stop, so that its nodes are free for a reservation, and why.
    fn must_move(&self, job: &Job) -> Option<(Time, Why)> {
        if job.phase != Phase::Active {
            return None;
        }
        let mut first: Option<(Time, Why)> = None;
        for (rank, node) in job.ranks.iter().enumerate().map(|(rank, held)| (rank as u32, held.node)) {
            for reservation in self.reservations.of_node(node) {
                let at = Time(reservation.start.0.saturating_sub(job.spec.grace_ms));
                if self.stays_into(job, reservation) && first.as_ref().is_none_or(|(first, _)| at < *first) {
                    let (node, reservation) = (self.nodes.get(node).name.clone(), reservation.name.clone());
                    first = Some((at, Why::Booked { rank, node, reservation }));
                }
            }
        }
        first
    }

    /// Whether a job may still be there when a reservation begins that it may not use.
    fn stays_into(&self, job: &Job, reservation: &Reservation) -> bool {
        let gone = job.expected_end().map(|end| end + Duration::from_millis(job.spec.grace_ms));
        gone.is_none_or(|gone| reservation.start < gone) && !self.reservations.admits(reservation, &job.spec)
    }

    /// Jobs that are on the nodes of a reservation, or will be, in its period, and may not use it, oldest first.
    pub fn conflicts(&self, reservation: &Reservation) -> Vec<JobId> {
        let jobs: BTreeSet<JobId> = reservation.nodes.iter().flat_map(|node| self.holders(*node)).collect();
        let conflicts = |id: &JobId| {
            let job = self.jobs.get(*id).expect("a job that holds");
            let leaves = self.policy.preemption || job.phase != Phase::Active;
            self.stays_into(job, reservation) && (reservation.start <= self.now || !leaves)
        };
        jobs.into_iter().filter(conflicts).collect()
    }

    /// Ends and begins reservations, and stops those who stand in their way.
    pub(crate) fn ring_reservations(&mut self, now: Time) {
        while self.reservations.next().is_some_and(|next| next <= now) {
            let due = |it: &&Reservation| it.end <= now || (!it.begun && it.start <= now);
            let reservation = self.reservations.iter().find(due).expect("the next one").clone();
            let name = reservation.name.clone();
            if reservation.end <= now {
                self.reservations.remove(&name);
                self.note(Note::ReservationEnded(name.clone()));
            } else {
                self.reservations.set(Reservation { begun: true, ..reservation.clone() });
                let conflicts = self.conflicts(&reservation);
                self.note(Note::ReservationBegun { reservation: name.clone(), conflicts });
            }
            self.rebook(now, name);
        }
        while self.moves.first().is_some_and(|(at, _)| *at <= now) {
            let (_, id) = self.moves.pop_first().expect("just seen");
            let Some(job) = self.jobs.get(id) else { continue }; // It has ended and retired.
            if let Some((_, why)) = self.must_move(job).filter(|(at, _)| *at <= now) {
                self.requeue(id, why);
            }
        }
    }

    pub(crate) fn check_reservations(&self) {
        self.reservations.check(&self.queues);
        for job in self.jobs.holding().filter(|_| self.policy.preemption) {
            if let Some((at, why)) = self.must_move(job) {
                assert!(self.moves.contains(&(at, job.id)), "{} is not moved: {why}", job.id);
            }
        }
        for reservation in self.reservations.iter() {
            let begun = !reservation.begun || reservation.start <= self.now;
            assert!(begun, "reservation {} has begun too early", reservation.name);
        }
    }
}
