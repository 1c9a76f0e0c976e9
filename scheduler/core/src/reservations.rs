//! Reservations: nodes that are booked for a period, and who may run on them meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::event::Queue;
use crate::explain::duration;
use crate::jobs::Job;
use crate::queues::Queues;
use crate::types::*;

/// Nodes that are booked for a period. No node is booked twice at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Identity.
    pub name: Name,
    /// What is booked, ascending; at least one.
    pub nodes: Vec<NodeId>,
    /// When it begins.
    pub start: Time,
    /// When it ends, after `start`. Then it is forgotten.
    pub end: Time,
    /// Queues whose jobs may use it, with those below them.
    pub queues: Vec<Name>,
    /// Users whose jobs may use it. Neither queues nor users: nobody may.
    pub users: Vec<Name>,
    /// Whether it has begun, and that was told.
    pub begun: bool,
}

/// Who may use reservations, by their names; queues with all that are below them. Without those that nobody may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Guests(BTreeMap<Name, (BTreeSet<Name>, BTreeSet<Name>)>);

impl Guests {
    /// The reservations that jobs of the specification may use, by name.
    pub(crate) fn of(&self, spec: &JobSpec) -> Vec<Name> {
        self.0.keys().filter(|name| self.admits(name, spec)).cloned().collect()
    }

    fn admits(&self, reservation: &str, spec: &JobSpec) -> bool {
        let guests = self.0.get(reservation);
        guests.is_some_and(|(queues, users)| queues.contains(&spec.queue) || users.contains(&spec.user))
    }
}

/// All reservations whose end has not come.
#[derive(Clone, Debug, Default)]
pub struct Reservations {
    by_name: BTreeMap<Name, Reservation>,
    // Derived.
    by_node: BTreeMap<NodeId, Vec<Name>>,
    guests: Arc<Guests>,
    next: Option<Time>,
}

/// Why a job may not be placed on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Bar {
    /// The node is booked for others, and the job may not be gone when they come.
    Booked(Name),
    /// The node is not one of the reservation that the job is for.
    Outside(Name),
    /// The reservation that the job is for has not begun.
    Awaits(Name),
}

/// Why a reservation cannot be so.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ReservationError {
    /// There is none of the name.
    Unknown(Name),
    /// There is another one of the name.
    Taken(Name),
    /// It would end before it begins.
    Backwards { start: Time, end: Time },
    /// It would begin before now.
    Past { start: Time, now: Time },
    /// No node is named.
    NoNodes,
    /// Of the nodes that would do, fewer are not booked in that period.
    TooFew { wants: u32, free: u32, of: u32 },
    /// A node is booked by `other` in a part of the period.
    Overlap { name: Name, node: Name, other: Name },
    /// The job may not use the reservation that it is for.
    NotGuest { reservation: Name, queue: Name, user: Name },
}

impl Reservation {
    /// Whether a part of it is in the period.
    pub fn overlaps(&self, start: Time, end: Time) -> bool {
        self.start < end && start < self.end
    }
}

impl Reservations {
    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Reservation> {
        self.by_name.values()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// The reservation of that name.
    pub fn get(&self, name: &str) -> Option<&Reservation> {
        self.by_name.get(name)
    }

    /// Those of a node, by name.
    pub fn of_node(&self, node: NodeId) -> impl Iterator<Item = &Reservation> {
        self.by_node.get(&node).into_iter().flatten().map(|name| &self.by_name[name])
    }

    /// Nodes that are booked, now or later.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.by_node.keys().copied()
    }

    /// When the next one begins or ends.
    pub(crate) fn next(&self) -> Option<Time> {
        self.next
    }

    /// Whether jobs of the specification may use it.
    pub fn admits(&self, reservation: &Reservation, spec: &JobSpec) -> bool {
        self.guests.admits(&reservation.name, spec)
    }

    /// Why a job that is placed at `at` may not be placed on a node. It may if it may use all that the node is booked
    /// for, or is certain to be gone before: its time limit and its grace are over when the others come.
    ///
    /// A job that is for a reservation which is not there any more is an ordinary one.
    ///
    /// `O(reservations of the node)`, nothing where there are none.
    pub fn bar(&self, job: &Job, node: NodeId, at: Time) -> Option<Bar> {
        if self.is_empty() {
            return None;
        }
        if let Some(own) = job.spec.reservation.as_ref().and_then(|name| self.get(name)) {
            if at < own.start || !own.begun {
                return Some(Bar::Awaits(own.name.clone()));
            }
            if own.nodes.binary_search(&node).is_err() {
                return Some(Bar::Outside(own.name.clone()));
            }
        }
        let gone = gone_by(&job.spec, at);
        let bars = |it: &&Reservation| {
            it.overlaps(at, gone.unwrap_or(Time(u64::MAX))) && !self.admits(it, &job.spec)
        };
        self.of_node(node).filter(bars).min_by_key(|it| it.start).map(|it| Bar::Booked(it.name.clone()))
    }

    /// After `at`, when a job that may be placed on a node first may not be any more.
    pub(crate) fn barred_from(&self, job: &Job, node: NodeId, at: Time) -> Option<Time> {
        let length = gone_by(&job.spec, Time(0))?;
        let others = self.of_node(node).filter(|it| at < it.start && !self.admits(it, &job.spec));
        others.map(|it| Time(it.start.since(length) + 1)).min()
    }

    /// Enters one, over an earlier one of the same name. See [`Reservations::admit`].
    pub(crate) fn set(&mut self, reservation: Reservation) {
        self.remove(&reservation.name.clone());
        for node in &reservation.nodes {
            let names = self.by_node.entry(*node).or_default();
            names.push(reservation.name.clone());
            names.sort_unstable();
        }
        self.by_name.insert(reservation.name.clone(), reservation);
        self.schedule();
    }

    pub(crate) fn remove(&mut self, name: &Name) {
        let Some(earlier) = self.by_name.remove(name) else { return };
        for node in earlier.nodes {
            let names = self.by_node.get_mut(&node).expect("a node that is booked");
            names.retain(|other| other != name);
            if names.is_empty() {
                self.by_node.remove(&node);
            }
        }
        self.schedule();
    }

    fn schedule(&mut self) {
        let next = |it: &Reservation| if it.begun { it.end } else { it.start };
        self.next = self.by_name.values().map(next).min();
    }

    /// Brings up to date who may use them.
    pub(crate) fn admit(&mut self, queues: &Queues) -> Arc<Guests> {
        let of = |it: &Reservation| {
            let below = |queue: &&Queue| it.queues.iter().any(|top| queues.is_within(&queue.name, top));
            let queues = queues.iter().filter(below).map(|queue| queue.name.clone()).collect();
            (it.name.clone(), (queues, it.users.iter().cloned().collect()))
        };
        let open = self.by_name.values().filter(|it| !(it.queues.is_empty() && it.users.is_empty()));
        let guests = Guests(open.map(of).collect());
        if *self.guests != guests {
            self.guests = Arc::new(guests);
        }
        self.guests.clone()
    }

    /// Checks what is derived against a recount.
    ///
    /// # Panics
    /// When it is not what it should be.
    pub(crate) fn check(&self, queues: &Queues) {
        let mut recount = Reservations::default();
        for reservation in self.iter() {
            assert!(reservation.start < reservation.end && !reservation.nodes.is_empty());
            assert!(reservation.nodes.is_sorted(), "the nodes of {}", reservation.name);
            recount.set(reservation.clone());
        }
        recount.admit(queues);
        assert_eq!(self.by_node, recount.by_node, "what nodes are booked for");
        assert_eq!(self.guests, recount.guests, "who may use reservations");
        assert_eq!(self.next, recount.next, "when the next reservation begins or ends");
        for node in self.nodes() {
            let mut booked: Vec<&Reservation> = self.of_node(node).collect();
            booked.sort_by_key(|it| it.start);
            assert!(booked.is_sorted_by(|one, next| one.end <= next.start), "{node:?} is booked twice");
        }
    }
}

/// When a job that is placed at `at` is gone for certain: its time limit and its grace are over.
pub fn gone_by(spec: &JobSpec, at: Time) -> Option<Time> {
    Some(at + Duration::from_millis(spec.time_limit_ms?) + Duration::from_millis(spec.grace_ms))
}

impl ReservationError {
    /// The field that is wrong.
    pub fn field(&self) -> &'static str {
        match self {
            ReservationError::Unknown(_) | ReservationError::Taken(_) => "name",
            ReservationError::Backwards { .. } => "end_ms",
            ReservationError::Past { .. } => "start_ms",
            ReservationError::NoNodes | ReservationError::Overlap { .. } => "nodes",
            ReservationError::TooFew { .. } => "count",
            ReservationError::NotGuest { .. } => "reservation",
        }
    }

    /// What it is.
    pub fn value(&self) -> String {
        match self {
            ReservationError::Unknown(name) | ReservationError::Taken(name) => format!("{name:?}"),
            ReservationError::Backwards { end, .. } => end.0.to_string(),
            ReservationError::Past { start, .. } => start.0.to_string(),
            ReservationError::NoNodes => "empty".into(),
            ReservationError::Overlap { node, .. } => format!("{node:?}"),
            ReservationError::TooFew { wants, .. } => wants.to_string(),
            ReservationError::NotGuest { reservation, .. } => format!("{reservation:?}"),
        }
    }

    /// What is allowed.
    pub fn allowed(&self) -> String {
        match self {
            ReservationError::Unknown(name) => format!("there is no reservation {name:?}"),
            ReservationError::Taken(_) => "there is a reservation of this name already".into(),
            ReservationError::Backwards { start, .. } => format!("expected a time after {}", start.0),
            ReservationError::Past { start, now } => {
                format!("it must not begin in the past, {} ago", duration(now.since(*start)))
            }
            ReservationError::NoNodes => "expected at least one node".into(),
            ReservationError::Overlap { name, other, .. } => {
                format!("it is booked by reservation {other} in a part of that period, {name} must not be")
            }
            ReservationError::TooFew { free, of, .. } => {
                format!("{of} nodes that take work would do, {free} of them are not booked in that period")
            }
            ReservationError::NotGuest { queue, user, .. } => {
                format!("neither queue {queue} nor user {user:?} may use it")
            }
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bar::Booked(name) => write!(f, "nodes are booked by reservation {name}"),
            Bar::Outside(name) => write!(f, "nodes are not booked by reservation {name}"),
            Bar::Awaits(name) => write!(f, "reservation {name} has not begun"),
        }
    }
}

impl fmt::Display for ReservationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReservationError::Unknown(name) => write!(f, "there is no reservation {name:?}"),
            ReservationError::Taken(name) => write!(f, "there is a reservation {name:?} already"),
            _ => write!(f, "{} is {}: {}", self.field(), self.value(), self.allowed()),
        }
    }
}
