//! Which ready jobs start now, and where. Pure: reads the cluster, returns a [`Plan`].

mod fit;
mod index;
mod order;
pub mod preempt;
pub mod price;
mod room;
mod score;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::jobs::Shape;
use crate::types::*;
use preempt::Promises;

pub use fit::{Free, Misfit, fits, place};
pub use preempt::{Futile, Preemption, Victim, free_for_all};
pub use room::{DeviceFree, NodeFree, Room};
pub use score::Score;

/// Who goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By priority, then by time of submission, whatever the queue.
    Priority,
    /// The queue that holds least for its weight first, those below their guarantee before all others;
    /// within it by priority, then by time of submission.
    FairShare,
}

/// A decision: the jobs to start, with their placements, and those that give way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they were decided.
    pub starts: Vec<(JobId, Vec<Allocation>)>,
    /// In the order in which they were decided.
    pub preemptions: Vec<Preemption>,
    /// Shapes that wait and find no room, until something becomes free.
    pub unfit: BTreeSet<Arc<Shape>>,
    /// Shapes that wait and find no victims either.
    pub futile: Futile,
    /// Whether another round must follow at once, to seek victims for further jobs.
    pub is_unfinished: bool,
}

/// Decides, from the cluster as it is at `now`, and takes from `free` what it hands out.
///
/// `O(starts * (queues + shapes + ranks log nodes) + shapes * log nodes)`: a round only hands resources out, so a shape
/// that did not fit once is not tried again in it, nor in a later one before something has become free.
pub fn plan(free: &mut Free, _now: Time) -> Plan {
    let cluster = free.cluster;
    let mut plan = Plan { unfit: cluster.unfit.clone(), futile: cluster.futile.clone(), ..Plan::default() };
    let mut promises = Promises::of(free, &mut plan.starts);
    let mut ready = order::Ready::of(cluster);
    while let Some((job, shape)) = ready.best(free) {
        if promises.includes(job.id) {
            ready.pop(job, shape);
            continue;
        }
        if !plan.unfit.contains(shape) {
            match place(free, job) {
                Ok(ranks) => {
                    plan.starts.push((job.id, ranks));
                    ready.pop(job, shape);
                    continue;
                }
                // Of this queue no job of the shape can start; of another one it may.
                Err(Misfit::QueueLimit { .. }) => (),
                Err(Misfit::RoomFor { .. }) => _ = plan.unfit.insert(shape.clone()),
            }
        }
        match promises.seek(free, (job, shape), &plan.starts, &mut plan.futile) {
            Some(preemption) => {
                plan.preemptions.push(preemption);
                ready.pop(job, shape);
            }
            None => ready.drop_shape(&job.spec.queue, shape),
        }
    }
    plan.is_unfinished = promises.end(free, &plan.starts);
    plan
}
