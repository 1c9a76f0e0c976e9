//! Jobs whose workers may come and go: one of them fails or is lost, and the others run on.
//!
//! A worker that is down leaves its place behind, with the time at which another one takes it ([`Allocation::restart_at`]).
//! Then, if its node still has what it held, a worker with the next number starts there; if not, the job goes on with
//! fewer ranks where it can ([`crate::elastic`] lets it grow again), and is placed again as a whole where it cannot.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::cluster::{Cluster, workers};
use crate::effect::*;
use crate::elastic::has;
use crate::jobs::*;
use crate::types::*;

/// A worker that runs for so long before it fails is started anew at once.
const HASTE: Duration = Duration::from_secs(10);

/// One that runs for so long before it fails is not counted: nothing that runs for weeks has a number of failures.
const FORGIVEN: Duration = Duration::from_secs(3600);

impl Cluster {
    /// Whether a worker may fail now without the others being stopped.
    pub(crate) fn may_fail_alone(&self, now: Time, worker: WorkerId) -> bool {
        let job = self.jobs.get(worker.job).expect("a worker's job");
        let is_forgiven = job.ranks[job.position(worker.rank)].since + FORGIVEN <= now;
        job.spec.is_live() && (is_forgiven || job.failures < job.spec.retries)
    }

    /// A worker is gone that was to go on; the others run on.
    pub(crate) fn rank_down(&mut self, now: Time, worker: WorkerId, why: Why) {
        let job = self.jobs.get(worker.job).expect("a worker's job");
        let at = job.position(worker.rank);
        let (failed, since) = (matches!(why, Why::WorkerFailed { .. }), job.ranks[at].since);
        let hasty = if failed && now < since + HASTE { job.ranks[at].hasty + 1 } else { 0 };
        let pause = if hasty == 0 { Duration::ZERO } else { self.pause(hasty) };
        self.change_job(worker.job, |job| {
            job.failures += u32::from(failed && now < since + FORGIVEN);
            // Why it stops stands there until it has: who it gives way to, for one.
            if !matches!(job.phase, Phase::Stopping(_)) {
                job.last_failure = Some(why.clone());
            }
            (job.ranks[at].restart_at, job.ranks[at].hasty) = (Some(now + pause), hasty);
        });
        self.note(Note::RankDown { job: worker.job, why });
    }

    /// Puts new workers into the places of a running job for which it is time.
    pub(crate) fn mend(&mut self, now: Time, id: JobId) {
        let job = self.jobs.get(id).expect("a timer's job");
        let is_due = |at: &usize| job.ranks[*at].restart_at.is_some_and(|at| at <= now);
        let due: Vec<usize> = (0..job.ranks.len()).filter(is_due).collect();
        let stands = |at: &usize| {
            let rank = &job.ranks[*at];
            has(self.nodes.get(rank.node), rank) && self.reservations.bar(job, rank.node, now).is_none()
        };
        let (stand, lost): (Vec<usize>, Vec<usize>) = due.into_iter().partition(stands);
        if lost.is_empty() {
            stand.into_iter().for_each(|at| self.put_anew(now, id, at));
        } else if job.can_do_without(&lost) {
            self.go_on_without(now, id, &lost);
        } else {
            let rank = &job.ranks[lost[0]];
            let why = Why::RankLost { rank: rank.rank, node: self.nodes.get(rank.node).name.clone() };
            self.requeue(id, why);
        }
    }

    /// A new worker takes the place of one that is gone.
    fn put_anew(&mut self, now: Time, id: JobId, at: usize) {
        let job = self.jobs.get(id).expect("a job that runs");
        let (old, span) = (job.ranks[at].clone(), job.span());
        let (was, _) = workers(job).nth(at).expect("its rank");
        let new = old.assigned(job.last_nodes.len() as u32, now);
        let worker = WorkerId { rank: new.rank, ..was };
        self.nodes.release(was, &old, span);
        self.nodes.hold(worker, &new, span);
        let node = self.nodes.get(old.node).name.clone();
        self.note(Note::RankAnew { job: id, was: was.rank, rank: new.rank, node });
        self.change_job(id, |job| {
            job.last_nodes.push(old.node);
            job.ranks[at] = new;
        });
        self.refresh_room(old.node);
        self.reassign(id);
    }

    /// A job whose workers may come and go leaves a node. Returns whether it can go on without.
    pub(crate) fn leave_node(&mut self, now: Time, id: JobId, node: NodeId) -> bool {
        let job = self.jobs.get(id).expect("a worker's job");
        let there: Vec<usize> = (0..job.ranks.len()).filter(|at| job.ranks[*at].node == node).collect();
        let can = job.can_do_without(&there);
        if can {
            self.go_on_without(now, id, &there);
        }
        can
    }

    /// A job goes on without the ranks at these positions, see [`Job::can_do_without`].
    pub(crate) fn go_on_without(&mut self, now: Time, id: JobId, lost: &[usize]) {
        let from = self.jobs.get(id).expect("a job that runs").ranks.len();
        let lost: BTreeSet<usize> = lost.iter().copied().collect();
        let stays: Vec<u32> = (0..from).filter(|at| !lost.contains(at)).map(|at| at as u32).collect();
        self.begin_shrink(now, id, stays);
    }
}

impl Job {
    /// Whether it can go on at once without the ranks at these positions: its workers may come and go, and fewer will do.
    pub(crate) fn can_do_without(&self, lost: &[usize]) -> bool {
        let Some(role) = self.spec.elastic_role().filter(|_| self.spec.is_live()) else { return false };
        let world = self.ranks.len() as u32;
        let elastic = self.spec.ranks_of(role, world);
        lost.iter().all(|at| elastic.contains(&(*at as u32)))
            && self.spec.min_ranks() <= world - lost.len() as u32
    }
}

impl Allocation {
    /// The same, for a worker that is yet to start.
    pub(crate) fn assigned(&self, rank: u32, now: Time) -> Allocation {
        let mut assigned = self.clone();
        assigned.assign(rank, now);
        assigned
    }

    /// It is for a worker that is yet to start.
    pub(crate) fn assign(&mut self, rank: u32, now: Time) {
        (self.rank, self.worker, self.since, self.restart_at) = (rank, RankState::Assigned, now, None);
    }
}
