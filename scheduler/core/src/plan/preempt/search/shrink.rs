//! Which ranks elastic jobs give up: before anybody is stopped whole, and no more than are needed.

use std::collections::BTreeSet;

use super::{Candidate, Gifts, MAX_WORK, Search, Spare, nodes};
use crate::jobs::Job;
use crate::types::*;

impl<'s, 'a> Search<'s, 'a> {
    /// Takes ranks of a candidate that it can do without, one after the other, the last first, until that is enough.
    pub(super) fn shrink(
        &mut self,
        job: &Job,
        candidate: Candidate<'a>,
        spare: &mut Spare,
        of: &dyn Fn(&Allocation) -> bool,
        is_enough: &mut dyn FnMut(&mut Self) -> bool,
    ) -> bool {
        for rank in candidate.elastic().rev() {
            let gives = self.given.get(&candidate.job.id).map_or(0, |(_, ranks)| ranks.len() as u32);
            let allocation = &candidate.job.ranks[rank as usize];
            if candidate.surplus <= gives || MAX_WORK < self.work {
                return false;
            }
            if self.gives(candidate.job, rank) || !of(allocation) {
                continue;
            }
            if !self.allows(spare, job, candidate.job, allocation.charge_milli) {
                return false;
            }
            self.give_ranks(candidate.job, vec![rank]);
            if is_enough(self) {
                return true;
            }
        }
        false
    }

    pub(super) fn gives(&self, job: &Job, rank: u32) -> bool {
        self.given.get(&job.id).is_some_and(|(_, ranks)| ranks.contains(&rank))
    }

    /// The ranks that a job has not given up.
    pub(super) fn rest(&self, job: &Job) -> Vec<u32> {
        (0..job.ranks.len() as u32).filter(|rank| !self.gives(job, *rank)).collect()
    }

    /// Takes all that candidates can do without, until the job fits: on each node as little as wins as many ranks; then,
    /// for what the queue may hold, whatever there is.
    pub(super) fn shrink_all(&mut self, job: &Job, order: &[Candidate<'a>], spare: &mut Spare) -> bool {
        let elastic: Vec<Candidate> = order.iter().filter(|it| 0 < it.surplus).copied().collect();
        let role = job.spec.roles.iter().max_by_key(|role| role.least()).expect("a job has a role");
        let mut seen = BTreeSet::new();
        let on_nodes = elastic.iter().flat_map(|candidate| nodes(&candidate.job.ranks));
        let on_nodes: Vec<NodeId> = on_nodes.filter(|id| seen.insert(*id)).collect();
        for id in on_nodes {
            let (mut won, mut kept) = (self.ranks_on(id, job, role), self.given.clone());
            for candidate in &elastic {
                self.shrink(job, *candidate, spare, &|rank| rank.node == id, &mut |search| {
                    let wins = search.ranks_on(id, job, role);
                    if won < wins {
                        (won, kept) = (wins, search.given.clone());
                    }
                    won == role.least()
                });
            }
            for candidate in &elastic {
                let of = |given: &Gifts| given.get(&candidate.job.id).map(|(_, ranks)| ranks.clone());
                let (given, kept) = (of(&self.given).unwrap_or_default(), of(&kept).unwrap_or_default());
                let vain: Vec<u32> = given.difference(&kept).copied().collect();
                let charge = vain.iter().map(|rank| candidate.job.ranks[*rank as usize].charge_milli).sum();
                self.give_back(spare, job, candidate.job, charge);
                self.take_back_ranks(candidate.job, vain);
            }
            if self.fits(job) {
                return true;
            }
        }
        elastic
            .iter()
            .any(|candidate| self.shrink(job, *candidate, spare, &|_| true, &mut |search| search.fits(job)))
    }

    /// Lets those ranks of a job stay that are not needed; if fewer stay than it needs, none.
    pub(super) fn spare_ranks(&mut self, job: &Job, victim: &Candidate<'a>, gives: BTreeSet<u32>) {
        for rank in gives.iter().take_while(|_| self.work <= MAX_WORK).copied().collect::<Vec<u32>>() {
            self.take_back_ranks(victim.job, vec![rank]);
            if !self.fits(job) {
                self.give_ranks(victim.job, vec![rank]);
            }
        }
        let (world, role) = (victim.job.ranks.len() as u32, victim.elastic());
        let given = self.given.get(&victim.job.id).map(|(_, ranks)| ranks.clone()).unwrap_or_default();
        let goes_on = given.len() as u32 <= victim.surplus && given.iter().all(|rank| role.contains(rank));
        if !goes_on {
            let rest = (0..world).filter(|rank| !given.contains(rank)).collect();
            self.give_ranks(victim.job, rest);
        }
    }
}
