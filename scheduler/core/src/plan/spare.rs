//! Room that nobody who waits could use.

use std::collections::{BTreeMap, BTreeSet};

use super::Plan;
use super::fit::Free;
use super::preempt::least_milli;
use super::reserve::ranks_when_idle;
use crate::jobs::{Job, Shape};
use crate::types::*;

/// Tells of a node whether running jobs may take what is idle there: it is kept for nobody, and even when idle could
/// not take a rank of any job that waits, so that nobody who waits is delayed.
pub(super) fn spare_nodes<'a>(free: &Free<'a>, plan: &Plan) -> impl Fn(NodeId) -> bool + use<'a> {
    let (nodes, kept) = (free.cluster.nodes(), free.kept.clone());
    let shapes = waiting(free, plan).into_iter().map(|(shape, _)| shape);
    let waits: BTreeSet<&Request> =
        shapes.flat_map(|shape| &shape.roles).map(|(_, request)| request).collect();
    move |id| !kept.is_kept(id) && waits.iter().all(|request| ranks_when_idle(nodes.get(id), request) == 0)
}

/// The most that one job which waits would take of each queue that has a limit, in thousandths of a device: running jobs
/// leave so much of it.
pub(super) fn owed_under_limits<'a>(free: &Free<'a>, plan: &Plan) -> BTreeMap<&'a Name, u64> {
    let mut owed = BTreeMap::new();
    for (_, job) in waiting(free, plan) {
        let limited = free.cluster.queues().line(&job.spec.queue).filter(|queue| queue.limit_milli.is_some());
        for queue in limited {
            let most: &mut u64 = owed.entry(&queue.name).or_default();
            *most = least_milli(job).max(*most);
        }
    }
    owed
}

/// Jobs that wait, one of each shape and queue, but for those whose queue is at its limit: they could not use the room.
pub(super) fn waiting<'a>(free: &Free<'a>, plan: &Plan) -> Vec<(&'a Shape, &'a Job)> {
    let (cluster, started): (_, BTreeSet<JobId>) =
        (free.cluster, plan.starts.iter().map(|(id, _)| *id).collect());
    let mut waits = Vec::new();
    for (shape, jobs) in cluster.jobs().ready().values().flatten() {
        let waiting = jobs.iter().map(|(_, id)| id).find(|id| !started.contains(id));
        let waiting = waiting.and_then(|id| cluster.jobs().get(*id));
        let could = |job: &&Job| free.over_limit(&job.spec.queue, least_milli(job)).is_none();
        waits.extend(waiting.filter(could).map(|job| (&**shape, job)));
    }
    waits
}
