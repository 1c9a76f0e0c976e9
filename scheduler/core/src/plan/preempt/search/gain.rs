//! What nodes win when candidates leave them, and where that is enough.

use std::collections::{BTreeMap, BTreeSet};

use super::{Candidate, Search, nodes};
use crate::cluster::workers;
use crate::jobs::Job;
use crate::plan::domain::may_stand;
use crate::plan::room::NodeFree;
use crate::plan::score::Take;
use crate::topology::Level;
use crate::types::*;

/// What a node wins when all candidates leave it.
#[derive(Clone)]
pub(super) struct Gain<'a> {
    node: NodeId,
    /// Ranks of the largest role.
    ranks: u32,
    /// By all candidates together.
    lost: u128,
    candidates: Vec<Candidate<'a>>,
}

impl Gain<'_> {
    pub(super) fn ranks(&self) -> u32 {
        self.ranks
    }

    /// In thousandths, so that ranks that cost little are told apart; without a gain only what else is missing.
    fn price(&self) -> u128 {
        (1 + self.lost * 1000).checked_div(self.ranks.into()).unwrap_or(u128::MAX)
    }
}

impl<'a> Search<'_, 'a> {
    /// Nodes with candidates, those first that win most ranks for what is lost.
    pub(super) fn by_gain(&mut self, job: &Job, candidates: &[Candidate<'a>]) -> Vec<Gain<'a>> {
        let role = job.spec.roles.iter().max_by_key(|role| role.least()).expect("a job has a role");
        let mut nodes: Vec<Gain> = Vec::new();
        for (node, candidates) in self.by_node(candidates) {
            let all = candidates.iter().flat_map(|candidate| workers(candidate.job));
            let all: Vec<_> = all.filter(|(_, rank)| rank.node == node).collect();
            self.work += all.len();
            let ranks = self.ranks_in(&self.left_without(node, &all).0, node, job, role)
                - self.ranks_on(node, job, role);
            let lost: u128 = candidates.iter().map(|candidate| u128::from(candidate.lost)).sum();
            nodes.push(Gain { node, ranks, lost, candidates });
        }
        nodes.sort_by_key(|gain| (gain.price(), gain.node));
        nodes
    }

    /// The domains in which the candidates could make room, by count, each with all its nodes and those with candidates:
    /// first those where least is lost for what is missing.
    pub(super) fn by_domain(
        &mut self,
        job: &Job,
        level: &Level,
        nodes: &[Gain<'a>],
    ) -> Vec<(Vec<NodeId>, Vec<Gain<'a>>)> {
        let role = job.spec.roles.iter().max_by_key(|role| role.least()).expect("a job has a role");
        let mut domains: BTreeMap<&Name, (u64, Vec<NodeId>, Vec<Gain>)> = BTreeMap::new();
        let takes: Vec<_> = role.request.devices.iter().map(|want| self.free.room.takes_of(want)).collect();
        let open = self.free.cluster.nodes().iter().filter(|node| node.takes_work());
        for (name, node) in open.filter_map(|node| Some((level.domain_of(node)?, node.id))) {
            let (ranks, nodes, _) = domains.entry(name).or_default();
            *ranks += u64::from(self.bound_on(node, job, role, &takes));
            nodes.push(node);
        }
        for gain in nodes {
            let name = level.domain_of(self.free.cluster.nodes().get(gain.node));
            let domain = name.and_then(|name| domains.get_mut(name));
            domain.into_iter().for_each(|(.., nodes)| nodes.push(gain.clone()));
        }
        let priced = domains.into_iter().filter_map(|(name, (mut ranks, all, nodes))| {
            let mut lost = 0;
            for gain in nodes.iter().take_while(|gain| gain.ranks != 0) {
                if u64::from(role.least()) <= ranks {
                    break;
                }
                (ranks, lost) = (ranks + u64::from(gain.ranks), lost + gain.lost);
            }
            (u64::from(role.least()) <= ranks).then_some(((lost, name), (all, nodes)))
        });
        let mut priced: Vec<_> = priced.collect();
        priced.sort_by_key(|(price, _)| *price);
        priced.into_iter().map(|(_, domain)| domain).collect()
    }

    /// Ranks of the role for which a node has room, no more than the role has.
    pub(super) fn ranks_on(&self, id: NodeId, job: &Job, role: &Role) -> u32 {
        self.ranks_in(self.free.room.on(id), id, job, role)
    }

    /// The same, when so much is free there.
    pub(super) fn ranks_in(&self, free: &NodeFree, id: NodeId, job: &Job, role: &Role) -> u32 {
        let (node, request, room) = (self.free.cluster.nodes().get(id), &role.request, &self.free.room);
        if !may_stand(node, role) || self.free.is_kept_from(job, id) {
            return 0;
        }
        let most = if role.standing.apart.is_some() { 1 } else { role.least() };
        let with = |devices: Option<&DeviceRequest>| {
            let (mut left, mut ranks) = (free.clone(), 0);
            while ranks < most
                && let Some(chosen) = room.choose(id, &left, request, devices, &self.free.scarcity)
            {
                left.take(&chosen.allocation(id, request, 0));
                ranks += 1;
            }
            ranks
        };
        let none = request.devices.is_empty().then_some(None);
        request.devices.iter().map(Some).chain(none).map(with).max().unwrap_or(0)
    }

    /// The same, never less than it is.
    fn bound_on(&self, id: NodeId, job: &Job, role: &Role, takes: &[Vec<Option<Take>>]) -> u32 {
        if !may_stand(self.free.cluster.nodes().get(id), role) || self.free.is_kept_from(job, id) {
            return 0;
        }
        let with =
            |takes: Option<&[Option<Take>]>| self.free.room.bound(id, &role.request, takes, role.least());
        let none = takes.is_empty().then_some(None);
        takes.iter().map(|takes| Some(&takes[..])).chain(none).map(with).max().unwrap_or(0)
    }

    /// Candidates by each node that they hold something on, in their order.
    pub(super) fn by_node(&self, candidates: &[Candidate<'a>]) -> BTreeMap<NodeId, Vec<Candidate<'a>>> {
        let mut by_node: BTreeMap<NodeId, Vec<Candidate>> = BTreeMap::new();
        for candidate in candidates {
            let open = |id: &NodeId| self.free.cluster.nodes().get(*id).takes_work();
            for id in nodes(&candidate.job.ranks).into_iter().filter(open) {
                by_node.entry(id).or_default().push(*candidate);
            }
        }
        by_node
    }
}

/// Candidates node by node, each once.
pub(super) fn in_sequence<'a>(nodes: &[Gain<'a>]) -> Vec<Candidate<'a>> {
    let mut seen = BTreeSet::new();
    let candidates = nodes.iter().flat_map(|gain| &gain.candidates);
    candidates.filter(|candidate| seen.insert(candidate.job.id)).copied().collect()
}
