//! Jobs that go on elsewhere: how they move.
//!
//! What is decided is which ranks a job goes on with; the rest of this file is how it gets there. A gang stops with its
//! grace and starts again at once as its next attempt, on what was given to it when that was decided. That it holds all
//! the while: nobody slips in between.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::cluster::{Cluster, workers};
use crate::effect::*;
use crate::event::Availability;
use crate::jobs::*;
use crate::nodes::Node;
use crate::plan::Move;
use crate::types::*;

impl Cluster {
    /// Whether a round looks for jobs to move.
    pub(crate) fn moves_are_due(&self) -> bool {
        self.moves_at.is_some_and(|at| at <= self.now())
    }

    /// Sets when jobs may be moved next, if any run that could. In a round.
    pub(crate) fn await_moves(&mut self) {
        if self.moves_at.is_some_and(|at| at <= self.now()) {
            self.moves_at = None;
        }
        let may_move = self.policy().preemption && self.policy().rounds != Duration::ZERO;
        let is_reason = may_move && !self.room().is_even() && self.jobs().holding().next().is_some();
        if self.moves_at.is_none() && is_reason {
            self.moves_at = Some(self.now() + self.policy().rounds);
        }
    }

    /// A job stops to go on elsewhere. What it gets there is taken from the room already.
    pub(crate) fn begin_move(&mut self, now: Time, it: Move) {
        let Move { job: id, from, to, ranks: more, sooner_ms, cost_ms } = it;
        let job = self.jobs.get(id).expect("a job that moves");
        let (queue, before, had) = (job.spec.queue.clone(), job.charge(), job.ranks.len());
        let worth: u64 = more.iter().map(|rank| self.nodes.get(rank.node).worth_milli(rank)).sum();
        self.note(Note::Moved { job: id, from: from.clone(), to: to.clone(), sooner_ms, cost_ms });
        self.change_job(id, |job| {
            assert_eq!(job.phase, Phase::Active, "{id} is moved");
            job.ranks.extend(more.into_iter().map(|rank| Allocation { worker: RankState::Gone, ..rank }));
            job.worth_milli += worth;
            job.phase = Phase::Stopping(Then::Resize((had as u32..job.ranks.len() as u32).collect()));
            job.last_failure = Some(Why::Moved { from, to });
        });
        let job = self.jobs.get(id).expect("a job that moves");
        for (worker, rank) in workers(job).skip(had) {
            self.nodes.hold(worker, rank, job.span());
            self.nodes.worker_gone(worker, rank.node);
        }
        let charge = job.charge();
        self.charge(&queue, charge, before);
        self.weigh_anew(&queue, Time(now.0 + 1));
        self.reassign(id);
    }

    /// All ranks have stopped: the job goes on with what was given to it. If that is not as it was, it is placed again.
    pub(crate) fn end_resize(&mut self, now: Time, id: JobId) {
        let job = self.jobs.get(id).expect("a job that moves").clone();
        let Phase::Stopping(Then::Resize(stays)) = &job.phase else {
            panic!("{id} does not move while {:?}", job.phase)
        };
        let kept = |rank: &u32| &job.ranks[*rank as usize];
        let holds = |rank: &u32| has(self.nodes.get(kept(rank).node), kept(rank));
        if let Some(next) = stays.iter().position(|rank| !holds(rank)) {
            return self.abandon_resize(now, id, next as u32, kept(&stays[next]).node);
        }
        for (worker, rank) in workers(&job) {
            self.nodes.release(worker, rank, job.span());
        }
        let lost_ms = self.unsaved_ms(&job);
        let again = |rank: &u32| Allocation { worker: RankState::Assigned, ..kept(rank).clone() };
        let ranks: Vec<Allocation> = stays.iter().map(again).collect();
        let worth_milli = ranks.iter().map(|rank| self.nodes.get(rank.node).worth_milli(rank)).sum();
        self.reassign(id);
        self.change_job(id, |job| {
            job.add_usage(now, lost_ms);
            job.phase = Phase::Active;
            job.attempt += 1;
            job.placed = Some(now);
            job.last_nodes = ranks.iter().map(|rank| rank.node).collect();
            job.ranks = ranks;
            job.worth_milli = worth_milli;
        });
        self.reassign(id);
        let after = self.jobs.get(id).expect("a job that moves").clone();
        for (worker, rank) in workers(&after) {
            self.nodes.hold(worker, rank, after.span());
        }
        for node in job.ranks.iter().map(|rank| rank.node).collect::<BTreeSet<NodeId>>() {
            self.refresh_room(node);
        }
        for node in job.leaving().map(|(_, rank)| rank.node).collect::<BTreeSet<NodeId>>() {
            self.plan_freed(now, node);
        }
        self.charge(&job.spec.queue, after.charge(), job.charge());
        self.weigh_anew(&job.spec.queue, now);
        self.seek_anew(now);
        self.forget_checkpoint(id);
        let nodes = after.ranks.iter().map(|rank| self.nodes.get(rank.node).name.clone()).collect();
        self.note(Note::Placed { job: id, attempt: after.attempt, nodes });
    }

    /// A rank that a job was to go on with is not as it was: all of it is placed again.
    fn abandon_resize(&mut self, now: Time, id: JobId, rank: u32, node: NodeId) {
        let node = self.nodes.get(node);
        let (is_closed, node) = (node.up && node.availability != Availability::Open, node.name.clone());
        let why = match is_closed {
            true => Why::Drained { rank, node },
            false => Why::RankLost { rank, node },
        };
        self.requeue(id, why);
        self.release(now, id, None);
    }
}

impl Job {
    /// Those of its ranks that the attempt which holds them had, or has.
    pub fn in_attempt(&self) -> &[Allocation] {
        &self.ranks[..self.last_nodes.len().min(self.ranks.len())]
    }

    /// The ranks that it gives back when it has stopped, with the identities of their workers.
    pub fn leaving(&self) -> impl Iterator<Item = (WorkerId, &Allocation)> {
        let stays: &[u32] = match &self.phase {
            Phase::Stopping(Then::Resize(stays)) => stays,
            _ => &[],
        };
        let stays: BTreeSet<u32> = stays.iter().copied().collect();
        workers(self).filter(move |(worker, _)| !stays.contains(&worker.rank))
    }
}

/// Whether a node still has what a rank holds of it, and takes work.
fn has(node: &Node, rank: &Allocation) -> bool {
    let healthy = |index: &u16| {
        let device = node.inventory.devices.get(usize::from(*index));
        device.is_some_and(|device| device.fault.is_none())
    };
    node.takes_work() && rank.devices.iter().all(healthy)
}
