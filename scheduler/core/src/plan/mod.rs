//! Which ready jobs start now, and where. Pure: reads the cluster, returns a [`Plan`].

mod advantage;
mod domain;
mod exchange;
mod fit;
pub mod grow;
mod index;
pub mod migrate;
mod order;
mod parts;
pub mod preempt;
pub mod price;
mod reserve;
mod room;
mod score;
mod spare;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::jobs::{Job, Shape};
use crate::types::*;
use preempt::{Ahead, Round};

pub use advantage::ClassSpeed;
pub use domain::Within;
pub use exchange::{Exchange, Side};
pub use fit::{Free, Misfit, fits, most, place};
pub use grow::Growth;
pub(crate) use migrate::place_on;
pub use migrate::{Aim, Migration};
pub(crate) use parts::Parts;
pub use preempt::{Futile, Preemption, Promises, Victim, free_for_all};
pub(crate) use reserve::LATELY;
pub use reserve::{Kept, Owner, Turnover};
pub use room::{DeviceFree, NodeFree, Room};
pub use score::Score;

/// Who goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By priority and waiting, whatever the queue. See [`Turn`](crate::jobs::Turn).
    Priority,
    /// From the top down to a queue: of the children of a queue, those that, or one below which, hold less than
    /// their guarantee before all others; then the one that will have used least for its weight when its next job
    /// has started, where what it holds counts with its decayed past. Within the queue by priority and waiting.
    FairShare,
}

/// A decision: the jobs to start, with their placements, and those that give way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they were decided.
    pub starts: Vec<(JobId, Vec<Allocation>)>,
    /// In the order in which they were decided.
    pub preemptions: Vec<Preemption>,
    /// In the order in which they were decided.
    pub growths: Vec<Growth>,
    /// Trainings that give up ranks for services that run.
    pub claims: Vec<Preemption>,
    /// Jobs that go on elsewhere.
    pub migrations: Vec<Migration>,
    /// Running jobs that stop to change places.
    pub exchanges: Vec<Exchange>,
    /// When the next job may grow.
    pub grow_at: Option<Time>,
    /// For the next round.
    pub known: Box<Known>,
    /// Whether another round must follow at once: something is kept no more, or victims are to be sought for further
    /// jobs.
    pub is_unfinished: bool,
    /// When one of those that are kept from room has waited so long that it may use it.
    pub tired_at: Option<Time>,
}

impl Plan {
    /// Nothing is decided yet.
    fn knowing(known: Box<Known>) -> Plan {
        Plan {
            starts: Vec::new(),
            preemptions: Vec::new(),
            growths: Vec::new(),
            claims: Vec::new(),
            migrations: Vec::new(),
            exchanges: Vec::new(),
            grow_at: None,
            known,
            is_unfinished: false,
            tired_at: None,
        }
    }
}

/// Shapes that wait and found nothing, since when nothing has changed that could help them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Those that found no room.
    pub unfit: BTreeSet<Arc<Shape>>,
    /// Of these, the ones that would fit but for what is kept for others.
    pub kept_from: BTreeSet<Arc<Shape>>,
    /// Those that found no victims either.
    pub futile: Futile,
    /// Jobs that have given back what they held.
    pub ends: u64,
    /// Gangs that found none among all jobs, with their priority and how many had given back what they held by then.
    vain: BTreeMap<Arc<Shape>, (i32, u64)>,
}

/// All jobs are looked at again for a gang that found no victims when as many have ended as this part of its ranks.
const PATIENCE: u64 = 8;

impl Known {
    /// What is kept for others has changed.
    pub(crate) fn forget_kept(&mut self) {
        self.kept_from.iter().for_each(|shape| _ = self.unfit.remove(shape));
        self.kept_from.clear();
    }

    /// Whether it is time to look at all jobs for those that may give way to a gang.
    fn may_look_by_node(&self, job: &Job, shape: &Shape) -> bool {
        let rest = u64::from(job.spec.min_ranks()) / PATIENCE;
        self.vain
            .get(shape)
            .is_none_or(|(priority, ends)| *priority < job.spec.priority || rest <= self.ends - ends)
    }

    /// There were none.
    fn looked_in_vain(&mut self, job: &Job, shape: &Arc<Shape>) {
        self.vain.insert(shape.clone(), (job.spec.priority, self.ends));
    }
}

/// Decides, from the cluster as it is at `now`, and takes from `free` what it hands out.
///
/// `O(starts * (depth * (children + shapes) + ranks log nodes) + shapes * log nodes)`, and once `O(queues * depth)`: a
/// round only hands resources out, so a shape that did not fit once is not tried again in it, nor in a later one before
/// something has become free.
pub fn plan(free: &mut Free, now: Time) -> Plan {
    let known = Box::new(free.cluster.known().clone());
    plan_next(free, now, known)
}

/// The same, knowing what the rounds before have found.
pub(crate) fn plan_next(free: &mut Free, now: Time, known: Box<Known>) -> Plan {
    let cluster = free.cluster;
    let mut plan = Plan::knowing(known);
    let mut round = Round::begin(free, &mut plan.starts);
    plan.growths = round.keep_claims(free);
    let mut at_limit = false;
    let mut placed: BTreeSet<JobId> = round.begun().map(|(id, _)| id).collect();
    free.keep(&cluster.freed, &plan.known.unfit, &placed);
    free.wake(&cluster.freed, &mut plan);
    let moved = free.promises.take_moved();
    free.wake(&moved, &mut plan);
    let mut ready = order::Ready::of(cluster, now, &plan.known, (&free.promises, &round));
    while let Some((job, shape)) = ready.best() {
        if round.has_begun(job.id) || free.promises.is_promised(job.id) {
            // It was charged for before.
            ready.pop(job, shape, Ahead::default());
            continue;
        }
        if !plan.known.unfit.contains(shape) {
            match place(free, job) {
                Ok(ranks) => {
                    placed.insert(job.id);
                    ready.pop(job, shape, Ahead::of(cluster, &ranks));
                    plan.starts.push((job.id, ranks));
                    continue;
                }
                // Of this queue and those below it no job of the shape can start; of another one it may.
                Err(Misfit::QueueLimit { queue, .. }) if !cluster.policy().preemption => {
                    ready.drop_shape(&queue, shape);
                    at_limit = true;
                    continue;
                }
                // Of those below it, some may find victims.
                Err(Misfit::QueueLimit { .. }) => at_limit = true,
                Err(Misfit::Kept(_)) => {
                    plan.known.kept_from.insert(shape.clone());
                    // For whom the room is kept, a job of another queue may go before.
                    if cluster.jobs().queues_with(shape) == 1 {
                        plan.known.unfit.insert(shape.clone());
                    }
                }
                Err(misfit @ (Misfit::RoomFor { .. } | Misfit::Barred(_))) => {
                    plan.known.unfit.insert(shape.clone());
                    if matches!(misfit, Misfit::Barred(_)) && free.keeps_any() {
                        // Of nodes that are booked and others that are kept, the former are told.
                        plan.known.kept_from.insert(shape.clone());
                    }
                    if reserve::is_wide(shape) {
                        free.kept.choose();
                        free.keep(&[], &plan.known.unfit, &placed);
                    }
                }
            }
        }
        match round.seek(free, (job, shape), (&plan.starts, &plan.growths), &mut plan.known) {
            Some(preemption) => {
                placed.insert(job.id);
                ready.pop(job, shape, free.promises.ahead_for(cluster, job.id));
                plan.preemptions.push(preemption);
            }
            None => ready.drop_line(&job.spec.queue, shape),
        }
    }
    let (grown, grow_at) = grow::grow(free, now, &plan);
    plan.grow_at = grow_at;
    plan.growths.extend(grown);
    plan.claims = round.claim(free, &plan);
    // While others give way, what is idle may be theirs.
    let is_calm =
        plan.preemptions.is_empty() && plan.claims.is_empty() && cluster.jobs().preemptors().next().is_none();
    if is_calm && cluster.migrations_are_due() {
        (plan.migrations, plan.exchanges) = migrate::migrate(free, &plan);
        if plan.migrations.is_empty() && plan.exchanges.is_empty() {
            plan.migrations = round.defragment(free, &plan);
        }
    }
    plan.tired_at = free.tired_at(&plan);
    let seeks = round.is_unfinished(&plan) || preempt::claim::may_help(cluster, &plan);
    // At its limit, a job may have been kept from the alternative that counts less.
    let is_kept_from = at_limit || !plan.known.kept_from.is_empty() || !plan.known.futile.is_empty();
    plan.is_unfinished = seeks || (is_kept_from && free.kept.has_lost());
    plan
}
