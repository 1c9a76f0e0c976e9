//! Victims for gangs of many nodes: of each node the cheapest set, then the cheapest nodes.

use std::collections::BTreeSet;

use super::{Candidate, Part, Search, Spare, nodes};
use crate::cluster::workers;
use crate::event::Queue;
use crate::jobs::Job;
use crate::plan::domain::may_stand;
use crate::plan::fit::{Misfit, fits};
use crate::plan::preempt::MAX_CANDIDATES;
use crate::plan::reserve::ranks_when_idle;
use crate::types::*;

/// Nodes are looked at closely that would do for so many times the ranks that are missing, at least so many nodes, and at most
/// so many times that.
const ENOUGH: (u32, u32) = (5, 4);
const LEAST_LOOKS: usize = 64;
const MOST_LOOKS: usize = 4;

/// A node with jobs that may give way.
struct Site<'a> {
    node: NodeId,
    candidates: Vec<Candidate<'a>>,
    /// What they lose together, and ranks that there is room for without them: before a closer look, never fewer.
    lost: u128,
    ranks: u32,
}

impl Site<'_> {
    /// In thousandths, for each rank.
    fn price(&self) -> (u128, NodeId) {
        ((self.lost * 1000).checked_div(self.ranks.into()).unwrap_or(u128::MAX), self.node)
    }
}

impl<'a> Search<'_, 'a> {
    /// The victims for a gang of one role, and where it starts once they have left, among all that may give way: where no more
    /// are looked at elsewhere. Leaves `free` as it was.
    ///
    /// `O(jobs that may give way + nodes log nodes + victims)`.
    pub(super) fn choose_by_node(
        &mut self,
        job: &'a Job,
        by: Option<&Queue>,
    ) -> Option<(Vec<Part<'a>>, Vec<Allocation>)> {
        let [role] = &job.spec.roles[..] else { return None };
        let may_be_anywhere = job.spec.topology.require.is_none() && role.standing.apart.is_none();
        if !self.looks_by_node || role.least() == 1 || !may_be_anywhere {
            return None;
        }
        // Of as many as that all have been looked at already.
        self.givers(job, by, usize::MAX).nth(MAX_CANDIDATES - 1)?;
        let now = match fits(self.free, job).err()? {
            Misfit::RoomFor { ranks, .. } => Some(ranks),
            Misfit::QueueLimit { .. } => return None,
            Misfit::Kept(_) | Misfit::Barred(_) => None,
        };
        self.looked_by_node = true;
        let missing = role.least() - now.unwrap_or(0);
        let mut queues: Vec<&Name> =
            self.givers(job, by, usize::MAX).map(|giver| &giver.spec.queue).collect();
        queues.dedup();
        let mut spare = self.spare_of(job, queues);
        let sites = self.cheapest_sites(job, role, by, &spare, missing)?;
        let (mut won, mut chosen) = (0, Vec::new());
        for site in &sites {
            won += self.give_site(job, role, site, missing - won, &mut spare, &mut chosen);
            if missing <= won {
                break;
            }
        }
        let fits = missing <= won && fits(self.free, job).is_ok();
        if fits && now.is_none() {
            self.give_back_dearest(job, chosen);
        }
        let ranks = fits.then(|| self.place(job).expect("it was proved to fit"));
        let given = self.take_back_all();
        ranks.map(|ranks| {
            (given.into_values().map(|(job, _)| Part { job, stays: Vec::new() }).collect(), ranks)
        })
    }

    /// Nodes that would do for more than what is missing, the cheapest first, each with those of its candidates that are needed.
    fn cheapest_sites(
        &self,
        job: &'a Job,
        role: &Role,
        by: Option<&Queue>,
        spare: &Spare,
        missing: u32,
    ) -> Option<Vec<Site<'a>>> {
        let cluster = self.free.cluster;
        let mut on: Vec<Vec<Candidate>> = vec![Vec::new(); cluster.nodes().len()];
        for giver in self.givers(job, by, usize::MAX) {
            if !self.allows(&mut spare.clone(), job, giver, giver.charge_milli()) {
                continue;
            }
            let candidate = Candidate::of(cluster, giver);
            nodes(&giver.ranks).into_iter().for_each(|node| on[node.0 as usize].push(candidate));
        }
        let mut sites = Vec::new();
        for (node, candidates) in cluster.nodes().iter().zip(on).filter(|(_, on)| !on.is_empty()) {
            let suits = node.takes_work() && may_stand(node, role) && !self.free.is_kept_from(job, node.id);
            let ranks = if suits { ranks_when_idle(node, &role.request).min(role.least()) } else { 0 };
            let lost = candidates.iter().map(|candidate| u128::from(candidate.lost)).sum();
            sites.extend((0 < ranks).then_some(Site { node: node.id, candidates, lost, ranks }));
        }
        if sites.iter().map(|site| u64::from(site.ranks)).sum::<u64>() < missing.into() {
            return None;
        }
        sites.sort_unstable_by_key(Site::price);
        let (mut won, mut looked) = (0, Vec::new());
        let enough = missing.saturating_mul(ENOUGH.0) / ENOUGH.1;
        let most = MOST_LOOKS * LEAST_LOOKS.max(missing as usize);
        for site in sites.into_iter().take(most) {
            if enough <= won && LEAST_LOOKS <= looked.len() {
                break;
            }
            let site = self.look_at(job, role, site);
            won += site.ranks;
            looked.extend((0 < site.ranks).then_some(site));
        }
        looked.sort_unstable_by_key(Site::price);
        (missing <= won).then_some(looked)
    }

    /// How many ranks a node wins when all its candidates leave, and which of them have to.
    fn look_at(&self, job: &Job, role: &Role, site: Site<'a>) -> Site<'a> {
        let Site { node, mut candidates, .. } = site;
        let before = self.ranks_on(node, job, role);
        let all = self.ranks_without(job, role, node, &candidates);
        self.keep_needed(job, role, node, all, &mut candidates);
        let lost = candidates.iter().map(|candidate| u128::from(candidate.lost)).sum();
        Site { node, candidates, lost, ranks: all.saturating_sub(before) }
    }

    /// Leaves out those without whom there is room for as many ranks, the dearest first.
    fn keep_needed(
        &self,
        job: &Job,
        role: &Role,
        node: NodeId,
        ranks: u32,
        candidates: &mut Vec<Candidate<'a>>,
    ) {
        candidates.sort_unstable_by_key(|candidate| (candidate.lost, candidate.job.id));
        for at in (0..candidates.len()).rev() {
            let dearest = candidates.remove(at);
            if self.ranks_without(job, role, node, candidates) < ranks {
                candidates.insert(at, dearest);
            }
        }
    }

    /// Ranks for which there is room on a node without some jobs.
    fn ranks_without(&self, job: &Job, role: &Role, node: NodeId, gone: &[Candidate<'a>]) -> u32 {
        let stands = gone.iter().filter(|candidate| !self.given.contains_key(&candidate.job.id));
        let workers = stands.flat_map(|candidate| workers(candidate.job));
        let workers: Vec<_> = workers.filter(|(_, rank)| rank.node == node).collect();
        self.ranks_in(&self.left_without(node, &workers).0, node, job, role)
    }

    /// The candidates of a node give way, as many as it takes for so many ranks. Returns how many ranks are won, on whatever
    /// node.
    fn give_site(
        &mut self,
        job: &'a Job,
        role: &Role,
        site: &Site<'a>,
        missing: u32,
        spare: &mut Spare,
        chosen: &mut Vec<&'a Job>,
    ) -> u32 {
        let mut candidates = site.candidates.clone();
        candidates.retain(|candidate| !self.given.contains_key(&candidate.job.id));
        let before = self.ranks_on(site.node, job, role);
        if missing < site.ranks {
            self.keep_needed(job, role, site.node, before + missing, &mut candidates);
        }
        candidates.retain(|it| self.allows(spare, job, it.job, it.job.charge_milli()));
        let touched: BTreeSet<NodeId> = candidates.iter().flat_map(|it| nodes(&it.job.ranks)).collect();
        let count = |search: &Self| touched.iter().map(|node| search.ranks_on(*node, job, role)).sum::<u32>();
        let before = count(self);
        for candidate in &candidates {
            let all: Vec<u32> = (0..candidate.job.ranks.len() as u32).collect();
            self.note_given(candidate.job, &all);
            chosen.push(candidate.job);
        }
        touched.iter().for_each(|node| self.refresh_node(*node));
        count(self).saturating_sub(before)
    }

    /// Lets the last of those that were chosen stay, as many as need not give way.
    fn give_back_dearest(&mut self, job: &Job, chosen: Vec<&'a Job>) {
        let mut given = chosen.len();
        let mut fits_with = |search: &mut Self, count: usize| {
            chosen[count.min(given)..given].iter().for_each(|victim| search.take_back(victim));
            for victim in &chosen[given.min(count)..count] {
                search.give_ranks(victim, (0..victim.ranks.len() as u32).collect());
            }
            given = count;
            fits(search.free, job).is_ok()
        };
        let (mut too_few, mut enough) = (0, chosen.len());
        while 1 < enough - too_few {
            let middle = (too_few + enough) / 2;
            if fits_with(self, middle) { enough = middle } else { too_few = middle }
        }
        fits_with(self, enough);
    }
}
