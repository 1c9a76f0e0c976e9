//! Which ready jobs start now, and where. Pure: reads the cluster, returns a [`Plan`].

mod fit;
mod order;

use std::collections::BTreeSet;

use crate::cluster::Cluster;
use crate::types::*;
pub use fit::{Free, Misfit, NodeFree, Score, place};

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
}

/// Decides, from the cluster as it is at `now`.
///
/// `O(starts * (queues + shapes) + shapes * nodes log nodes)`: a round only hands resources out, so a shape
/// that did not fit once is not tried again in it.
pub fn plan(cluster: &Cluster, _now: Time) -> Plan {
    let mut plan = Plan::default();
    let mut ready = order::Ready::of(cluster);
    let mut free = Free::of(cluster);
    let mut unfit = BTreeSet::new();
    while let Some((job, shape)) = ready.best(&free) {
        if unfit.contains(shape) {
            ready.drop_shape(&job.spec.queue, shape);
            continue;
        }
        match place(&free, job) {
            Ok(placement) => {
                free.take(&job.spec.queue, &placement);
                plan.starts.push((job.id, placement.ranks));
                ready.pop(job, shape);
            }
            // Of this queue no job of the shape can start; of another one it may.
            Err(Misfit::QueueLimit { .. }) => ready.drop_shape(&job.spec.queue, shape),
            Err(Misfit::RoomFor { .. }) => _ = unfit.insert(shape.clone()),
        }
    }
    plan
}
