//! Which ranks trainings give up for a service that runs.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::{Candidate, MAX_CANDIDATES, MAX_WORK, Search, nodes_of};
use crate::jobs::Job;
use crate::plan::fit::find_more;
use crate::plan::preempt::Part;
use crate::plan::preempt::claim::{may_claim, may_give};
use crate::types::*;

impl<'s, 'a> Search<'s, 'a> {
    /// The ranks that a running job would get beside those that it has, as things are.
    pub fn find_more(&mut self, job: &Job, allowed: &dyn Fn(NodeId) -> bool) -> Vec<Allocation> {
        self.work += job.spec.min_ranks() as usize;
        find_more(self.free, job, &job.ranks, allowed)
    }

    /// Who gives up what for a service, as much as it needs or as there is, and what it gets: nothing that would not help.
    /// Those of the lowest priority first, then those that lose least. Leaves `free` as it was.
    ///
    /// * `busy`: jobs that have something else to do.
    pub fn claim(
        &mut self,
        service: &'a Job,
        busy: &BTreeSet<JobId>,
    ) -> Option<(Vec<Part<'a>>, Vec<Allocation>)> {
        let cluster = self.free.cluster;
        let is_free = |job: &&Job| !busy.contains(&job.id) && !self.free.promises.is_victim(job.id);
        let givers = cluster.jobs().holding().filter(|job| may_give(job)).filter(is_free);
        let mut givers: Vec<Candidate> =
            givers.take(MAX_CANDIDATES).map(|job| Candidate::of(cluster, job)).collect();
        givers.sort_by_key(|it| (it.job.spec.priority, it.lost, Reverse(it.job.id)));
        let wants = (service.wanted_ranks() - service.ranks.len() as u32) as usize;
        let (mut on, mut won) = (BTreeSet::new(), 0);
        for giver in givers {
            for node in nodes_of(giver.job, &giver.elastic().collect::<Vec<u32>>()) {
                if won == wants || MAX_WORK < self.work {
                    break;
                }
                if self.free.kept.is_kept(node) {
                    continue;
                }
                let added = on.insert(node);
                let more = self.more_with(service, (giver, node), &on, won);
                on =
                    if more == won && added { on.into_iter().filter(|it| *it != node).collect() } else { on };
                won = more;
            }
        }
        let ranks = (0 < won).then(|| self.find_more(service, &|id| on.contains(&id)));
        let parts = self.take_back_all().into_values().filter(|(_, gives)| !gives.is_empty());
        let part = |(job, gives): (&'a Job, BTreeSet<u32>)| {
            let stays = (0..job.ranks.len() as u32).filter(|rank| !gives.contains(rank)).collect();
            Part { job, stays }
        };
        let parts: Vec<Part> = parts.map(part).collect();
        ranks.map(|ranks| (parts, ranks))
    }

    /// Gives up ranks on a node, the last first, for as long as that wins replicas, of which there are `won`. Returns how
    /// many there are then.
    fn more_with(
        &mut self,
        service: &Job,
        (giver, node): (Candidate<'a>, NodeId),
        on: &BTreeSet<NodeId>,
        won: usize,
    ) -> usize {
        let allowed = |id: NodeId| on.contains(&id);
        let (mut best, mut vain) = (won.max(self.find_more(service, &allowed).len()), Vec::new());
        let before = best;
        for rank in giver.elastic().rev() {
            let given = self.given.get(&giver.job.id).map_or(0, |(_, ranks)| ranks.len() as u32);
            let allocation = &giver.job.ranks[rank as usize];
            if giver.surplus <= given || MAX_WORK < self.work {
                break;
            }
            let gave = self.given.get(&giver.job.id).map_or(0, |(job, ranks)| {
                ranks.iter().map(|rank| job.ranks[*rank as usize].charge_milli).sum()
            });
            let charge = gave + allocation.charge_milli;
            let held = |queue: &crate::event::Queue| self.free.held_by(&queue.name);
            if allocation.node != node
                || self.gives(giver.job, rank)
                || !may_claim(self.free.cluster, service, giver.job, charge, held)
            {
                continue;
            }
            self.give_ranks(giver.job, vec![rank]);
            vain.push(rank);
            let more = self.find_more(service, &allowed).len();
            if best < more {
                best = more;
                vain.clear();
                if service.ranks.len() + more == service.wanted_ranks() as usize {
                    break;
                }
            }
        }
        self.take_back_ranks(giver.job, vain);
        // What is idle there is for those that wait.
        if best == before { won } else { best }
    }
}
