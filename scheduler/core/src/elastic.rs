//! Jobs that go on with other ranks: how they shrink, grow, are scaled, and migrate, to another class of devices or to make
//! room for another job.
//!
//! What is decided is which ranks a job goes on with; the rest of this file is how it gets there. A gang stops with its
//! grace and starts again at once as its next attempt, on what it kept; where workers may come and go, the others run on.
//! What it goes on with it holds all the while: nobody slips in between.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use crate::cluster::{Cluster, workers};
use crate::effect::*;
use crate::event::Availability;
use crate::jobs::*;
use crate::nodes::Node;
use crate::plan::{Aim, Growth, Migration};
use crate::reservations::Bar;
use crate::types::*;

impl Cluster {
    /// A user wants so many ranks of a job's elastic role; `None`: as many as it was submitted with.
    pub(crate) fn scale(&mut self, now: Time, id: JobId, ranks: Option<u32>) -> Result<Answer, Refusal> {
        let job = self.jobs.get(id).ok_or(Refusal::UnknownJob(id))?;
        if let Phase::Done(outcome) = &job.phase {
            return Err(Refusal::JobDone(id, outcome.clone()));
        }
        let Some(role) = job.spec.elastic_role().map(|role| &job.spec.roles[role]) else {
            return Err(Refusal::Rigid(id));
        };
        if job.spec.promise().is_some() {
            return Err(Refusal::ScalesItself(id));
        }
        let (least, most) = (role.least(), role.ranks);
        if let Some(ranks) = ranks.filter(|ranks| !(least..=most).contains(ranks)) {
            return Err(Refusal::Scale { ranks, least, most });
        }
        if job.scale.and_then(|scale| scale.ranks) == ranks {
            return Ok(Answer::Done);
        }
        self.change_job(id, |job| job.scale = Some(Scale { ranks, at: now }));
        self.note(Note::Scaled { job: id, ranks, least, most });
        self.shrink_to_scale(now, id);
        self.plan_at(now);
        Ok(Answer::Done)
    }

    /// A running job gives up ranks beyond those that are wanted: of replicas those on which a request costs most, else the
    /// last.
    pub(crate) fn shrink_to_scale(&mut self, now: Time, id: JobId) {
        let job = self.jobs.get(id).expect("a job that is scaled");
        let (from, to) = (job.ranks.len() as u32, job.wanted_ranks());
        if job.phase != Phase::Active || from <= to {
            return;
        }
        let role = job.spec.ranks_of(job.spec.elastic_role().expect("an elastic job"), from);
        let dear = self.replica_offers(job).map_or(Vec::new(), |(offers, _)| offers);
        let dear = |at: u32| dear.get((at - role.start) as usize).copied().flatten().map(|it| it.rank());
        let mut leaves: Vec<u32> = role.clone().collect();
        leaves.sort_by_key(|at| Reverse((dear(*at), *at)));
        leaves.truncate((from - to) as usize);
        self.begin_shrink(now, id, (0..from).filter(|at| !leaves.contains(at)).collect());
        self.seek_anew(now);
    }

    /// A running job goes on with some of its ranks, for nobody else.
    pub(crate) fn begin_shrink(&mut self, now: Time, id: JobId, stays: Vec<u32>) {
        let (from, to) = (self.jobs.get(id).expect("a job that runs").ranks.len() as u32, stays.len() as u32);
        self.begin_resize(id, stays, Why::Resized { from, to, by: None, at: now });
        self.note(Note::Shrunk { job: id, from, to, by: None, lost_device_ms: 0 });
        self.end_if_stopped(now, id);
    }

    /// A job gives up some of its ranks to one that waits.
    pub(crate) fn shrink(&mut self, at: Time, by: JobId, id: JobId, stays: Vec<u32>, lost_device_ms: u64) {
        let job = self.jobs.get(id).expect("a victim");
        let (from, to) = (job.ranks.len() as u32, stays.len() as u32);
        self.begin_resize(id, stays, Why::Resized { from, to, by: Some(by), at });
        self.note(Note::Shrunk { job: id, from, to, by: Some(by), lost_device_ms });
        self.end_if_stopped(at, id);
    }

    fn begin_resize(&mut self, id: JobId, stays: Vec<u32>, why: Why) {
        self.change_job(id, |job| {
            assert_eq!(job.phase, Phase::Active, "{id} is resized");
            job.phase = Phase::Stopping(Then::Resize(stays));
            job.last_failure = Some(why);
        });
        self.reassign(id);
    }

    /// A job gets ranks beside those that it has.
    pub(crate) fn grow(&mut self, now: Time, Growth { job: id, more }: Growth) {
        let job = self.jobs.get(id).expect("a job that grows");
        let (from, to) = (job.ranks.len() as u32, (job.ranks.len() + more.len()) as u32);
        let (end, is_live) = (job.spec.elastic_end(from), job.spec.is_live());
        self.note(Note::Grown { job: id, from, to });
        self.add_ranks(id, more);
        let stays: Vec<u32> = (0..end).chain(from..to).chain(end..from).collect();
        self.begin_resize(id, stays, Why::Resized { from, to, by: None, at: now });
        self.tell_classes(id);
        if is_live {
            self.end_resize(now, id, is_live);
        }
    }

    /// A job stops to go on elsewhere, with ranks that it gets beside those that it has.
    pub(crate) fn migrate(&mut self, migration: Migration) {
        let Migration { job: id, ranks, cost_ms, aim } = migration;
        let has = self.jobs.get(id).expect("a job that moves").ranks.len() as u32;
        let (note, why) = match aim {
            Aim::Class { from, to, sooner_ms } => (
                Note::Moved { job: id, from: from.clone(), to: to.clone(), sooner_ms, cost_ms },
                Why::Moved { from, to },
            ),
            Aim::RoomFor(by) => (Note::MadeRoom { job: id, by, cost_ms }, Why::MadeRoom { by, at: self.now }),
        };
        self.note(note);
        let stays = (has..has + ranks.len() as u32).collect();
        self.add_ranks(id, ranks);
        self.begin_resize(id, stays, why);
    }

    /// Whether it is time for a round that looks for jobs that should migrate.
    pub(crate) fn migrations_are_due(&self) -> bool {
        self.migrate_at.is_some_and(|at| at <= self.now())
    }

    /// Sets when jobs may next migrate, if any run that could. In a round.
    pub(crate) fn await_migrations(&mut self) {
        self.migrate_at.take_if(|at| *at <= self.now);
        let rounds = self.policy().rounds;
        let may_move = self.policy().preemption && rounds != Duration::ZERO;
        let somebody_waits = || self.jobs.ready().values().any(|lines| !lines.is_empty());
        let is_reason =
            may_move && self.jobs.holding().next().is_some() && (!self.room().is_even() || somebody_waits());
        if self.migrate_at.is_none() && is_reason {
            self.migrate_at = Some(self.now() + rounds);
        }
    }

    /// A running job holds further ranks from now on, which wait until what it is about to give up has stopped. Their
    /// resources are taken from the room already.
    fn add_ranks(&mut self, id: JobId, more: Vec<Allocation>) {
        let job = self.jobs.get(id).expect("a job that runs");
        let (now, from) = (self.now(), job.ranks.len());
        let (queue, before) = (job.spec.queue.clone(), job.charge());
        let worth: u64 = more.iter().map(|rank| self.worth_milli(rank)).sum();
        self.change_job(id, |job| {
            let next = job.last_nodes.len() as u32..;
            let held = |(rank, it)| Allocation { rank, worker: RankState::Gone, ..it };
            job.ranks.extend(next.zip(more).map(held));
            job.set_worth(now, job.worth_milli + worth);
        });
        let job = self.jobs.get(id).expect("a job that runs");
        let mut touched = BTreeSet::new();
        for (worker, rank) in workers(job).skip(from) {
            self.nodes.hold(worker, rank, job.span());
            touched.insert(rank.node);
        }
        let charge = job.charge();
        // One that got ranks before it may have looked at its nodes anew.
        touched.into_iter().for_each(|node| self.refresh_room(node));
        self.charge(&queue, charge, before);
        self.weigh_anew(&queue, self.now());
    }

    /// Whether all ranks are gone, but for those of a resizing job that run on.
    pub(crate) fn has_stopped(job: &Job) -> bool {
        let stops = matches!(job.phase, Phase::Stopping(_));
        let runs_on = |at: usize| stops && job.runs(at as u32);
        let is_over =
            |rank: &Allocation| rank.worker == RankState::Gone && (stops || rank.restart_at.is_none());
        job.ranks.iter().enumerate().all(|(at, rank)| is_over(rank) || runs_on(at))
    }

    /// All that had to stop for another number of ranks has: the job goes on with what it kept. If that is not as it
    /// was, it is placed again.
    ///
    /// * `is_live`: whether the ranks that stay run on.
    pub(crate) fn end_resize(&mut self, now: Time, id: JobId, is_live: bool) {
        let job = self.jobs.get(id).expect("a job that is resized").clone();
        let Phase::Stopping(Then::Resize(mut stays)) = job.phase.clone() else {
            panic!("{id} is not resized while {:?}", job.phase)
        };
        let waits = |(by, _): (JobId, Time)| self.jobs.get(by).is_some_and(Job::wants_room);
        let shrinks = matches!(job.last_failure, Some(Why::Resized { .. })) && stays.len() < job.ranks.len();
        if !is_live && shrinks && job.gives_way_to().is_some_and(|by| !waits(by)) {
            // Nobody needs the rest any more.
            stays = (0..job.ranks.len() as u32).collect();
        }
        let kept = |rank: &u32| &job.ranks[*rank as usize];
        let is_new = |rank: &u32| job.last_nodes.len() <= kept(rank).rank as usize;
        let holds = |rank: &u32| match is_live && !is_new(rank) {
            true => {
                let node = self.nodes.get(kept(rank).node);
                let is_left = match node.up {
                    true => node.availability != Availability::Draining,
                    false => job.keeps_on(),
                };
                // The place of one that is down is looked at when another one is to take it.
                is_left || kept(rank).worker == RankState::Gone
            }
            false => {
                let node = kept(rank).node;
                has(self.nodes.get(node), kept(rank)) && self.reservations.bar(&job, node, now).is_none()
            }
        };
        if let Some(rank) = stays.iter().copied().find(|rank| !holds(rank)) {
            return self.abandon_resize(now, id, rank);
        }
        for (worker, rank) in workers(&job) {
            self.nodes.release(worker, rank, job.span());
        }
        let freed = job.leaving().map(|at| job.ranks[at as usize].node).collect::<BTreeSet<NodeId>>();
        let lost_ms = if is_live { 0 } else { self.unsaved_ms(&job) };
        let ranks = |(at, stays): (u32, &u32)| match is_live {
            true if !is_new(stays) => kept(stays).clone(),
            true => kept(stays).assigned(kept(stays).rank, now),
            false => kept(stays).assigned(at, now),
        };
        let ranks: Vec<Allocation> = (0..).zip(&stays).map(ranks).collect();
        let worth_milli = ranks.iter().map(|rank| self.worth_milli(rank)).sum();
        self.freed_for.extend(job.gives_way_to());
        self.reassign(id);
        self.change_job(id, |job| {
            job.add_usage(now, lost_ms);
            job.phase = Phase::Active;
            job.attempt += u32::from(!is_live);
            job.placed = Some(now);
            if !is_live {
                job.began = Some(now);
                job.last_nodes.clear();
            }
            let known = job.last_nodes.len() as u32;
            let new = ranks.iter().filter(|rank| known <= rank.rank);
            job.last_nodes.extend(new.map(|rank| rank.node));
            job.ranks = ranks;
            job.set_worth(now, worth_milli);
        });
        let after = self.jobs.get(id).expect("a job that is resized").clone();
        for (worker, rank) in workers(&after) {
            self.nodes.hold(worker, rank, after.span());
        }
        for node in job.ranks.iter().map(|rank| rank.node).collect::<BTreeSet<NodeId>>() {
            self.refresh_room(node);
        }
        freed.into_iter().for_each(|node| self.plan_freed(now, node));
        self.charge(&job.spec.queue, after.charge(), job.charge());
        self.weigh_anew(&job.spec.queue, now);
        self.seek_anew(now);
        self.plan_at(now);
        if !is_live {
            self.forget_checkpoint(id);
            let nodes = after.ranks.iter().map(|rank| self.nodes.get(rank.node).name.clone()).collect();
            self.note(Note::Placed { job: id, attempt: after.attempt, nodes });
        }
        // It runs as long as another attempt would: maybe into a reservation.
        self.schedule_moves();
        self.shrink_to_scale(now, id);
    }

    /// A rank that a job was to go on with is not as it was: all of it is placed again.
    fn abandon_resize(&mut self, now: Time, id: JobId, rank: u32) {
        let job = self.jobs.get(id).expect("a job that is resized");
        let node = self.nodes.get(job.ranks[rank as usize].node);
        let (is_closed, name) = (node.up && node.availability != Availability::Open, node.name.clone());
        let why = match self.reservations.bar(job, node.id, now) {
            _ if is_closed => Why::Drained { rank, node: name },
            // Another attempt would run into it.
            Some(Bar::Booked(reservation)) => Why::Booked { rank, node: name, reservation },
            _ => Why::RankLost { rank, node: name },
        };
        self.freed_for.extend(job.gives_way_to());
        self.requeue(id, why);
    }
}

impl JobSpec {
    /// Behind which rank those of the elastic role end, of `world` ranks.
    fn elastic_end(&self, world: u32) -> u32 {
        self.ranks_of(self.elastic_role().expect("an elastic job"), world).end
    }
}

impl Job {
    /// The ranks of a role, by its number, that it has now; none while it waits.
    pub fn ranks_of(&self, role: usize) -> &[Allocation] {
        let ranks = self.spec.ranks_of(role, self.ranks.len() as u32);
        self.ranks.get(ranks.start as usize..ranks.end as usize).unwrap_or_default()
    }

    /// The most ranks that a role is to have.
    pub fn wanted(&self, role: &Role) -> u32 {
        match self.scale {
            Some(Scale { ranks: Some(ranks), .. }) if role.min_ranks.is_some() => ranks,
            _ => role.ranks,
        }
    }

    /// The most ranks that it is to have.
    pub fn wanted_ranks(&self) -> u32 {
        self.spec.roles.iter().map(|role| self.wanted(role)).sum()
    }

    /// Those of its ranks that the attempt which holds them had, or has.
    pub fn in_attempt(&self) -> &[Allocation] {
        let waits = |rank: &&Allocation| self.last_nodes.len() <= rank.rank as usize;
        // They stand behind the others.
        let waiting = self.ranks.iter().rev().take_while(waits).count();
        &self.ranks[..self.ranks.len() - waiting]
    }

    /// Positions of the ranks that it gives back when it has stopped.
    pub fn leaving(&self) -> impl Iterator<Item = u32> {
        let stays: BTreeSet<u32> = self.stays().iter().copied().collect();
        (0..self.ranks.len() as u32).filter(move |at| !stays.contains(at))
    }

    /// Positions of the ranks that it keeps when it has stopped.
    pub(crate) fn stays(&self) -> &[u32] {
        match &self.phase {
            Phase::Stopping(Then::Resize(stays)) => stays,
            _ => &[],
        }
    }

    /// Whether the worker of the rank at a position should run.
    pub fn runs(&self, at: u32) -> bool {
        match &self.phase {
            Phase::Active => true,
            // What it has got to go elsewhere starts when all of it has stopped.
            Phase::Stopping(Then::Resize(stays)) => {
                let is_old = |at: u32| (self.ranks[at as usize].rank as usize) < self.last_nodes.len();
                self.spec.is_live() && is_old(at) && stays.contains(&at)
            }
            Phase::Pending(_) | Phase::Stopping(_) | Phase::Done(_) => false,
        }
    }
}

/// Whether a node still has what a rank holds of it, and takes work.
pub(crate) fn has(node: &Node, rank: &Allocation) -> bool {
    node.takes_work() && rank.devices.iter().all(|index| node.device_takes_work(*index))
}
