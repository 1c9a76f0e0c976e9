//! What nodes are told to run.

use std::sync::Arc;

use crate::cluster::Cluster;
use crate::jobs::Job;
use crate::types::*;

impl Cluster {
    /// What every worker on the node should be doing.
    pub fn assignment(&self, node: NodeId) -> Assignment {
        let orders = self.nodes.held(node).workers.iter().map(|worker| {
            let job = self.jobs.get(worker.job).expect("a worker's job");
            let at = job.position(worker.rank);
            let goal = if job.runs(at as u32) { Goal::Run } else { Goal::Stop };
            let state = job.ranks[at].worker;
            let launch = (state == RankState::Assigned).then(|| Arc::new(self.launch(job, at)));
            WorkerOrder { id: *worker, goal, grace_ms: job.spec.grace_ms, launch }
        });
        Assignment {
            revision: self.nodes.revision(node),
            workers: orders.collect(),
            members: self.members_on(node),
        }
    }

    /// How to start the worker of the rank at a position.
    fn launch(&self, job: &Job, at: usize) -> Launch {
        let allocation = &job.ranks[at];
        let local = |rank: &&Allocation| rank.node == allocation.node;
        let mut nodes: Vec<NodeId> = Vec::new();
        for rank in &job.ranks {
            if !nodes.contains(&rank.node) {
                nodes.push(rank.node);
            }
        }
        let master = &job.ranks[0];
        Launch {
            spec: job.spec.clone(),
            role: job.spec.role_of(at as u32, job.ranks.len() as u32),
            world_size: job.ranks.len() as u32,
            local_rank: job.ranks[..at].iter().filter(local).count() as u32,
            local_world_size: job.ranks.iter().filter(local).count() as u32,
            node_rank: nodes.iter().position(|node| *node == allocation.node).expect("its node") as u32,
            master: (self.nodes.get(master.node).inventory.address.clone(), master.port),
            array_index: job.array.map(|array| array.index),
            allocation: allocation.clone(),
        }
    }
}
