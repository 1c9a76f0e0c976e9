//! What must hold between steps.

use std::collections::BTreeMap;

use super::{Cluster, workers};
use crate::durations::Durations;
use crate::jobs::*;
use crate::nodes::Held;
use crate::types::*;

impl Cluster {
    /// Checks what must hold between steps. `O(jobs + nodes)`.
    ///
    /// # Panics
    /// When it does not hold.
    pub fn check(&self) {
        self.jobs.check(self.now);
        let mut held: BTreeMap<NodeId, Held> = self.nodes.iter().map(|n| (n.id, Held::default())).collect();
        let mut charges: BTreeMap<Name, Charge> = BTreeMap::new();
        for job in self.jobs.iter() {
            let holds = matches!(job.phase, Phase::Active | Phase::Stopping(_));
            assert!(holds || job.ranks.is_empty(), "{} holds resources while {:?}", job.id, job.phase);
            if job.phase == Phase::Active {
                let ranks = job.ranks.len() as u32;
                let is_whole = (job.spec.min_ranks()..=job.spec.ranks()).contains(&ranks);
                assert!(is_whole, "{} is a partial gang", job.id);
            }
            let changes_places = self.exchanges.get(&job.id).map(|it| it.with);
            if let Some(with) = changes_places {
                assert_eq!(job.phase, Phase::Stopping(Then::Requeue), "{} changes places", job.id);
                assert_eq!(
                    self.exchanges.get(&with).map(|it| it.with),
                    Some(job.id),
                    "{} with nobody",
                    job.id
                );
            }
            let waits = matches!(job.phase, Phase::Stopping(_)) && Cluster::has_stopped(job);
            assert!(
                !waits || changes_places.is_some() || self.is_new,
                "{} has stopped and holds resources",
                job.id
            );
            if let Phase::Stopping(Then::Resize(stays)) = &job.phase {
                let is_whole =
                    (job.spec.min_ranks() as usize..=job.spec.ranks() as usize).contains(&stays.len());
                assert!(is_whole, "{} goes on as a partial gang", job.id);
            }
            let (charge, own) = (job.charge(), charges.entry(job.spec.queue.clone()).or_default());
            own.milli += charge.milli;
            own.worth_milli += charge.worth_milli;
            for (worker, rank) in workers(job) {
                let held = held.get_mut(&rank.node).expect("a node that exists");
                held.change(worker, rank, job.span(), true);
            }
        }
        for (id, held) in held {
            assert_eq!(*self.nodes.held(id), held, "what is held on {}", self.nodes.get(id).name);
        }
        self.nodes.check();
        self.queues.check(&charges);
        assert_eq!(*self.durations, Durations::of(&self.jobs), "how long jobs ran");
        self.check_reservations();
        self.promises().check(self);
        let nodes = self.nodes.iter().map(|node| (node, self.nodes.held(node.id)));
        self.room().check(nodes, |node, held| self.promises().leaves(&self.jobs, self.room(), node, held));
    }
}
