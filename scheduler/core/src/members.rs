//! Who takes part in a job whose workers may come and go: what its workers are told of each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cluster::Cluster;
use crate::jobs::*;
use crate::types::*;

/// The workers that take part in a job at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// The job.
    pub job: JobId,
    /// Its attempt.
    pub attempt: u32,
    /// Grows with every change within the attempt: of two lists the one of the larger epoch is the newer one.
    pub epoch: u32,
    /// The longest-serving first.
    pub members: Vec<Member>,
}

/// One of [`Members`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Number of its worker: [`Allocation::rank`].
    pub rank: u32,
    /// Address and port at which it may listen.
    pub address: (Name, u16),
}

impl Cluster {
    /// Of the jobs that have workers on a node, the members of those that tell them of each other.
    pub(crate) fn members_on(&self, node: NodeId) -> Vec<Arc<Members>> {
        let mut found = BTreeMap::new();
        for worker in self.nodes().held(node).workers.keys() {
            let job = self.jobs().get(worker.job).expect("a worker's job");
            if job.spec.restart == Restart::Rank && !found.contains_key(&job.id) {
                found.extend(self.members(job).map(|members| (job.id, Arc::new(members))));
            }
        }
        found.into_values().collect()
    }

    /// `None` while all of it stops: those that are asked to write a last checkpoint together stay together.
    fn members(&self, job: &Job) -> Option<Members> {
        let takes_part =
            |(at, rank): &(usize, &Allocation)| job.runs(*at as u32) && rank.worker != RankState::Gone;
        let address = |rank: &Allocation| (self.nodes().get(rank.node).inventory.address.clone(), rank.port);
        let members = job.ranks.iter().enumerate().filter(takes_part);
        let members = members.map(|(_, rank)| Member { rank: rank.rank, address: address(rank) });
        let mut members: Vec<Member> = members.collect();
        members.sort_by_key(|member| member.rank);
        // All workers that the attempt ever had, and of these those that take part no more: neither ever falls, and one of
        // them grows with each change.
        let began = job.last_nodes.len();
        let epoch = (2 * began - members.len()) as u32;
        let is_some = !members.is_empty();
        is_some.then_some(Members { job: job.id, attempt: job.attempt, epoch, members })
    }
}

impl Members {
    /// Whether a worker takes part.
    pub fn has(&self, worker: WorkerId) -> bool {
        let is_of = (self.job, self.attempt) == (worker.job, worker.attempt);
        is_of && self.members.binary_search_by_key(&worker.rank, |member| member.rank).is_ok()
    }
}
