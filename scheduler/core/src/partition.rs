//! Nodes that are not heard of any more, and the jobs that run on there: [`OnPartition::Keep`].
//!
//! Such a worker is not ended by the end of its lease. It may run, or have ended, or its machine may be no more: nobody knows
//! here, so nothing takes its place, until its node tells, or an administrator drains the node and so says that it is lost.

use std::collections::BTreeSet;

use crate::cluster::Cluster;
use crate::effect::Note;
use crate::jobs::Job;
use crate::types::*;

impl Cluster {
    /// Nodes whose leases have run out are lost, with the workers that ended with them.
    pub(crate) fn expire_leases(&mut self, now: Time) {
        for id in self.nodes.expired(now) {
            self.change_node(id, |node| node.up = false);
            let name = self.nodes.get(id).name.clone();
            self.note(Note::NodeLost(name.clone()));
            let mut kept = BTreeSet::new();
            for worker in self.workers_on(id) {
                if self.jobs.get(worker.job).expect("a worker's job").keeps_on() {
                    kept.insert(worker.job);
                } else {
                    self.on_rank_lost(now, worker);
                }
            }
            for job in kept {
                self.note(Note::Kept { job, node: name.clone() });
            }
        }
    }

    /// An administrator gives up what may still run on a node that is not heard of. If it does, the node ends it when it is
    /// heard of again.
    pub(crate) fn give_up_kept(&mut self, now: Time, id: NodeId) {
        for worker in self.workers_on(id) {
            self.on_rank_lost(now, worker);
        }
    }

    /// Nodes that are not heard of and that may still run workers of the job. While there are any, it cannot be stopped, and
    /// what it would give back would not be free.
    pub fn out_of_reach(&self, job: &Job) -> impl Iterator<Item = NodeId> {
        let ranks = if job.keeps_on() { &job.ranks[..] } else { &[] };
        let lost = |rank: &&Allocation| rank.worker != RankState::Gone && !self.nodes.get(rank.node).up;
        ranks.iter().filter(lost).map(|rank| rank.node).collect::<BTreeSet<NodeId>>().into_iter()
    }

    /// Whether there are such nodes.
    pub fn is_out_of_reach(&self, job: &Job) -> bool {
        self.out_of_reach(job).next().is_some()
    }
}

impl Job {
    /// Whether its workers run on when the leases of their nodes end.
    pub fn keeps_on(&self) -> bool {
        self.spec.on_partition == OnPartition::Keep
    }
}
