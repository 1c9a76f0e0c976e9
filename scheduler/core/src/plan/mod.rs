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
    /// By priority and waiting, whatever the queue. See [`Turn`](crate::jobs::Turn).
    Priority,
    /// From the top down to a queue: of the children of a queue, those that, or one below which, hold less than
    /// their guarantee before all others; then the one that will have used least for its weight when its next job
    /// has started, where what it holds counts with its decayed past. Within the queue by priority and waiting.
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
    /// Whether another round must follow at once: something is kept no more.
    pub is_unfinished: bool,
    /// When one of those that are kept from room has waited so long that it may use it.
    pub tired_at: Option<Time>,
}

/// Decides, from the cluster as it is at `now`, and takes from `free` what it hands out.
///
/// `O(starts * (depth * (children + shapes) + ranks log nodes) + shapes * log nodes)`, and once `O(queues * depth)`: a
/// round only hands resources out, so a shape that did not fit once is not tried again in it, nor in a later one before
/// something has become free.
pub fn plan(free: &mut Free, now: Time) -> Plan {
    let cluster = free.cluster;
    let mut plan =
        Plan { unfit: cluster.unfit.clone(), kept_from: cluster.kept_from.clone(), ..Plan::default() };
    let (mut placed, mut at_limit) = (BTreeSet::new(), false);
    free.keep(&cluster.freed, &plan.unfit, &placed);
    free.wake(&cluster.freed, &mut plan);
    let mut ready = order::Ready::of(cluster, now, &plan.unfit);
    while let Some((job, shape)) = ready.best() {
        if plan.unfit.contains(shape) {
            ready.drop_shape(&job.spec.queue, shape);
            continue;
        }
        match place(free, job) {
            Ok(ranks) => {
                placed.insert(job.id);
                ready.pop(job, shape, &ranks);
                plan.starts.push((job.id, ranks));
            }
            // Of this queue and those below it no job of the shape can start; of another one it may.
            Err(Misfit::QueueLimit { queue, .. }) => {
                ready.drop_shape(&queue, shape);
                at_limit = true;
            }
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
    plan.tired_at = free.tired_at(&plan);
    // At its limit, a job may have been kept from the alternative that counts less.
    plan.is_unfinished = free.kept.has_lost() && (at_limit || !plan.kept_from.is_empty());
    plan
}
