//! Room that nobody who waits could use.

use std::collections::{BTreeMap, BTreeSet};

use super::Plan;
use super::fit::Free;
use super::preempt::least_milli;
use super::reserve::ranks_when_idle;
use crate::jobs::{Job, Turn};
use crate::types::*;

/// Tells of a node whether running jobs may take what is idle there: it is kept for nobody, and even when idle could
/// not take a rank of any job that waits, so that nobody who waits is delayed.
pub(super) fn spare_nodes<'a>(free: &Free<'a>, plan: &Plan) -> impl Fn(NodeId) -> bool + use<'a> {
    let (nodes, kept) = (free.cluster.nodes(), free.kept.clone());
    let roles = waiting(free, plan).into_iter().flat_map(|job| &job.spec.roles);
    let waits: BTreeSet<&Request> = roles.map(|role| &role.request).collect();
    move |id| !kept.is_kept(id) && waits.iter().all(|request| ranks_when_idle(nodes.get(id), request) == 0)
}

/// The most that one job which waits would take of each queue that has a limit, in thousandths of a device: running jobs
/// leave so much of it.
pub(super) fn owed_under_limits<'a>(free: &Free<'a>, plan: &Plan) -> BTreeMap<&'a Name, u64> {
    let mut owed = BTreeMap::new();
    for job in waiting(free, plan) {
        let limited = free.cluster.queues().line(&job.spec.queue).filter(|queue| queue.limit_milli.is_some());
        for queue in limited {
            let most: &mut u64 = owed.entry(&queue.name).or_default();
            *most = least_milli(job).max(*most);
        }
    }
    owed
}

/// Jobs that wait, one of each shape and queue, but for those whose queue is at its limit: they could not use the room.
pub(super) fn waiting<'a>(free: &Free<'a>, plan: &Plan) -> Vec<&'a Job> {
    let (cluster, started): (_, BTreeSet<JobId>) =
        (free.cluster, plan.starts.iter().map(|(id, _)| *id).collect());
    let first = |jobs: &'a BTreeSet<Turn>| jobs.iter().map(|(_, id)| *id).find(|id| !started.contains(id));
    let ready = cluster.jobs().ready().values().flat_map(|lines| lines.values()).filter_map(first);
    // Those that room is promised to may find other room before.
    let promised = free.promises.firsts();
    let waiting = ready.chain(promised).filter_map(|id| cluster.jobs().get(id));
    waiting.filter(|job| free.over_limit(&job.spec.queue, least_milli(job)).is_none()).collect()
}
