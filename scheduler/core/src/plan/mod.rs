//! Which ready jobs start now, and where. Pure: reads the cluster, returns a [`Plan`].

mod fit;
mod index;
mod order;
pub mod price;
mod reserve;
mod room;
mod score;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::jobs::Shape;
use crate::types::*;
pub use fit::{Free, Misfit, fits, place};
pub(crate) use reserve::LATELY;
pub use reserve::{Kept, Owner, Turnover};
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

/// A decision: the jobs to start, with their placements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they were decided.
    pub starts: Vec<(JobId, Vec<Allocation>)>,
    /// Shapes that wait and find no room, until something becomes free.
    pub unfit: BTreeSet<Arc<Shape>>,
    /// Of those, the ones that would fit but for what is kept for others.
    pub kept_from: BTreeSet<Arc<Shape>>,
}

/// Decides, from the cluster as it is at `now`, and takes from `free` what it hands out.
///
/// `O(starts * (queues + shapes + ranks log nodes) + shapes * log nodes)`: a round only hands resources out, so a shape
/// that did not fit once is not tried again in it, nor in a later one before something has become free.
pub fn plan(free: &mut Free, _now: Time) -> Plan {
    let cluster = free.cluster;
    let mut plan =
        Plan { unfit: cluster.unfit.clone(), kept_from: cluster.kept_from.clone(), ..Plan::default() };
    let mut placed = BTreeSet::new();
    free.keep(&cluster.freed, &plan.unfit, &placed);
    free.wake(&cluster.freed, &mut plan);
    let mut ready = order::Ready::of(cluster, &plan.unfit);
    while let Some((job, shape)) = ready.best(free) {
        if plan.unfit.contains(shape) {
            ready.drop_shape(&job.spec.queue, shape);
            continue;
        }
        match place(free, job) {
            Ok(ranks) => {
                placed.insert(job.id);
                plan.starts.push((job.id, ranks));
                ready.pop(job, shape);
            }
            // Of this queue no job of the shape can start; of another one it may.
            Err(Misfit::QueueLimit { .. }) => ready.drop_shape(&job.spec.queue, shape),
            Err(Misfit::Kept(_)) => {
                plan.kept_from.insert(shape.clone());
                plan.unfit.insert(shape.clone());
            }
            Err(Misfit::RoomFor { .. }) => {
                plan.unfit.insert(shape.clone());
                if shape.roles.iter().any(|(ranks, request)| reserve::is_wide(*ranks, request)) {
                    free.kept.choose();
                    free.keep(&[], &plan.unfit, &placed);
                }
            }
        }
    }
    plan
}
