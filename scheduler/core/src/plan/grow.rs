//! Which running jobs grow into devices that nobody waits for.

use std::collections::BTreeSet;

use super::Plan;
use super::fit::{Free, charge, find_more, take_more};
use super::spare::{owed_under_limits, spare_nodes};
use crate::jobs::Job;
use crate::types::*;

/// A job that goes on with more ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Which.
    pub job: JobId,
    /// The ranks that it gets beside those that it has; all of its elastic role.
    pub more: Vec<Allocation>,
}

/// Jobs that are looked at in one round, at most.
const MAX_CANDIDATES: usize = 64;

/// The gain must be at least so small a part of what the role has: each move costs a restart, whatever it wins.
const LEAST_GAIN: u64 = 4;

/// What a move loses must be at most so small a part of what it wins if the job runs for as long again as it has run.
const MOST_LOSS: u64 = 4;

/// Jobs that grow, and when the next may.
///
/// A job grows into nodes only that are kept for nobody, and that could not take a rank of any job that waits, and leaves
/// what such a job may still take under the limits of its queues: nobody who waits is delayed. See [`pays`] for whether it does. Services that scale themselves first, then
/// by their turns, each as far as it can.
pub(super) fn grow(free: &mut Free, now: Time, plan: &Plan) -> (Vec<Growth>, Option<Time>) {
    let cluster = free.cluster;
    let (mut growths, mut next) = (Vec::new(), None::<Time>);
    if cluster.jobs().small().next().is_none() {
        return (growths, next);
    }
    let victims: BTreeSet<JobId> =
        plan.preemptions.iter().flat_map(|it| &it.victims).map(|victim| victim.job).collect();
    // One of which a rank has ended already is about to end.
    let is_whole = |job: &Job| job.ranks.iter().all(|rank| rank.worker != RankState::Gone);
    // What others give up for it is on its way, or there.
    let is_given = |job: &Job| {
        let grows = plan.growths.iter().any(|growth| growth.job == job.id);
        grows || (job.spec.promise().is_some() && cluster.jobs().victims_of(job.id).next().is_some())
    };
    let is_free = |job: &Job| is_whole(job) && !cluster.is_out_of_reach(job);
    let may_grow = |job: &&Job| !victims.contains(&job.id) && is_free(job) && !is_given(job);
    let mut small: Vec<&Job> = cluster.jobs().small().filter(may_grow).collect();
    if small.is_empty() {
        return (growths, None);
    }
    // A service has promised what it needs them for; a training is only sooner done.
    small.sort_by_key(|job| (job.spec.promise().is_none(), cluster.jobs().turn(job)));
    // What is taken here is kept for nobody, so this stays true.
    let (allowed, owed) = (spare_nodes(free, plan), owed_under_limits(free, plan));
    for job in small.into_iter().take(MAX_CANDIDATES) {
        let placed = job.placed.expect("it runs");
        let asked = job.scale.is_some_and(|scale| placed <= scale.at);
        // Where the others run on, a move costs nothing.
        if !asked && !job.spec.is_live() {
            let Some(rest) = cluster.policy().grow_after else { continue };
            if now < placed + rest {
                next = Some(next.map_or(placed + rest, |next| next.min(placed + rest)));
                continue;
            }
        }
        let mut more = find_more(free, job, &job.ranks, &allowed);
        let crowds = |more: &[Allocation]| {
            cluster.queues().line(&job.spec.queue).any(|queue| {
                let others = owed.get(&queue.name).copied().unwrap_or(0);
                let held = || free.held_by(&queue.name) + charge(more) + others;
                queue.limit_milli.is_some_and(|limit| limit < held())
            })
        };
        while !more.is_empty() && crowds(&more) {
            more.pop();
        }
        if !more.is_empty() && (asked || pays(job, more.len() as u64, cluster.unsaved_ms(job), now)) {
            take_more(free, job, &more);
            growths.push(Growth { job: job.id, more });
        }
    }
    (growths, next)
}

/// Whether it pays that a running job stops to go on with `more` ranks: they are at least a quarter of what its role
/// has, and what it loses, the time since its last checkpoint on all ranks, is at most a quarter of what they win if it
/// runs for as long again as it has run since it was placed, or to its time limit. Where the others run on, always.
pub fn pays(job: &Job, more: u64, unsaved_ms: u64, now: Time) -> bool {
    if job.spec.is_live() {
        return true;
    }
    let Some(role) = job.spec.elastic_role() else { return false };
    let (world, placed) = (job.ranks.len() as u64, job.placed.unwrap_or(now));
    let has = job.spec.ranks_of(role, world as u32);
    let left = job.expected_end().map_or(u64::MAX, |end| end.since(now)).min(now.since(placed));
    u64::from(has.end - has.start) <= LEAST_GAIN * more && MOST_LOSS * unsaved_ms * world <= more * left
}
