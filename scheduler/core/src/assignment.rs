//! What nodes are told to run.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cluster::Cluster;
use crate::hosts::Host;
use crate::jobs::Job;
use crate::types::*;

/// Where the ranks of a job stand: found once for all that a node starts of it.
struct Layout {
    /// Positions of the job's nodes, in the order of their lowest ranks, if there are several ranks.
    nodes: BTreeMap<NodeId, u32>,
    hosts: Arc<[Host]>,
}

impl Cluster {
    /// What every worker on the node should be doing.
    pub fn assignment(&self, node: NodeId) -> Assignment {
        // Workers of one job stand beside each other.
        let mut layout: Option<(JobId, Layout)> = None;
        let mut are_told = false;
        let orders = self.nodes.held(node).workers.iter().map(|(worker, known)| {
            if let Some(grace_ms) = known.plain_grace_ms.filter(|_| known.state != RankState::Assigned) {
                return WorkerOrder { id: *worker, goal: Goal::Run, grace_ms, why: None, launch: None };
            }
            let job = self.jobs.get(worker.job).expect("a worker's job");
            are_told |= job.spec.restart == Restart::Rank;
            let at = job.position(worker.rank);
            let goal = if job.runs(at as u32) { Goal::Run } else { Goal::Stop };
            let launch = (known.state == RankState::Assigned).then(|| {
                let known = layout.take().filter(|(of, _)| *of == job.id);
                let (_, layout) = layout.insert(known.unwrap_or_else(|| (job.id, self.layout(job))));
                Arc::new(self.launch(job, at, layout))
            });
            let why = (goal == Goal::Stop).then(|| job.stop_reason());
            WorkerOrder { id: *worker, goal, grace_ms: job.spec.grace_ms, why, launch }
        });
        let workers = orders.collect();
        Assignment {
            revision: self.nodes.revision(node),
            workers,
            members: if are_told { self.members_on(node) } else { Vec::new() },
            probe: self.inquiries.order(node).cloned(),
        }
    }

    fn layout(&self, job: &Job) -> Layout {
        let mut nodes = BTreeMap::new();
        for rank in job.ranks.iter().filter(|_| job.ranks.len() != 1) {
            let next = nodes.len() as u32;
            nodes.entry(rank.node).or_insert(next);
        }
        Layout { nodes, hosts: self.hosts(job) }
    }

    /// How to start the worker of the rank at a position.
    fn launch(&self, job: &Job, at: usize, layout: &Layout) -> Launch {
        let allocation = &job.ranks[at];
        let local = |rank: &&Allocation| rank.node == allocation.node;
        let master = &job.ranks[0];
        Launch {
            spec: job.spec.clone(),
            role: job.spec.role_of(at as u32, job.ranks.len() as u32),
            world_size: job.ranks.len() as u32,
            local_rank: job.ranks[..at].iter().filter(local).count() as u32,
            local_world_size: job.ranks.iter().filter(local).count() as u32,
            node_rank: layout.nodes.get(&allocation.node).copied().unwrap_or(0),
            master: (self.nodes.get(master.node).inventory.address.clone(), master.port),
            array_index: job.array.map(|array| array.index),
            allocation: allocation.clone(),
            hosts: layout.hosts.clone(),
        }
    }
}
