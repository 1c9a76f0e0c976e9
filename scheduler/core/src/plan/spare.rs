//! Room that nobody who waits could use.

use std::collections::BTreeSet;

use super::Plan;
use super::fit::Free;
use super::preempt::least_milli;
use super::reserve::ranks_when_idle;
use crate::types::*;

/// Tells of a node whether running jobs may take what is idle there: it is kept for nobody, and even when idle could
/// not take a rank of any job that waits, so that nobody who waits is delayed.
pub(super) fn spare_nodes<'a>(free: &Free<'a>, plan: &Plan) -> impl Fn(NodeId) -> bool + use<'a> {
    let (nodes, kept, waits) = (free.cluster.nodes(), free.kept.clone(), waiting(free, plan));
    move |id| !kept.is_kept(id) && waits.iter().all(|request| ranks_when_idle(nodes.get(id), request) == 0)
}

/// What ranks of jobs ask for that wait, but for those whose queue is at its limit: they could not use the room.
fn waiting<'a>(free: &Free<'a>, plan: &Plan) -> BTreeSet<&'a Request> {
    let (cluster, started): (_, BTreeSet<JobId>) =
        (free.cluster, plan.starts.iter().map(|(id, _)| *id).collect());
    let mut waits = BTreeSet::new();
    for shapes in cluster.jobs().ready().values() {
        for (shape, jobs) in shapes {
            let waiting = jobs.iter().map(|(_, id)| id).find(|id| !started.contains(id));
            let waiting = waiting.and_then(|id| cluster.jobs().get(*id));
            if waiting.is_some_and(|job| free.over_limit(&job.spec.queue, least_milli(job)).is_none()) {
                waits.extend(shape.roles.iter().map(|(_, request)| request));
            }
        }
    }
    waits
}
