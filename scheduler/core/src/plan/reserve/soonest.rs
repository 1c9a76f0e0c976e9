//! In which order nodes get empty, while some of them are chosen.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::Cluster;
use crate::emptying::{Size, SoonestFirst};
use crate::topology::Level;
use crate::types::*;

/// Nodes that get empty by themselves, the soonest first. Found as far as they are asked for.
pub(super) struct Soonest<'a> {
    cluster: &'a Cluster,
    /// Of all nodes, and of those of some sizes that were asked for.
    orders: Vec<(Option<BTreeSet<Size>>, Found<'a>)>,
    /// By node, whether it is kept for anybody.
    pub kept: Vec<bool>,
    /// See [`Kept::begin`].
    pub begins: BTreeMap<(usize, usize), usize>,
    /// Those of each domain, with their places among all, of levels that were asked for.
    domains: BTreeMap<Level, Domains>,
}

/// One order, as far as it was asked for.
struct Found<'a> {
    rest: SoonestFirst<'a>,
    first: Vec<NodeId>,
}

pub(super) type Domains = BTreeMap<Name, Vec<(usize, NodeId)>>;

impl<'a> Soonest<'a> {
    pub fn of(cluster: &'a Cluster) -> Soonest<'a> {
        Soonest {
            cluster,
            orders: Vec::new(),
            kept: vec![false; cluster.nodes().len()],
            begins: BTreeMap::new(),
            domains: BTreeMap::new(),
        }
    }

    /// The order of the nodes of some sizes; `None`: of all.
    pub fn order(&mut self, sizes: Option<&BTreeSet<Size>>) -> usize {
        let known = self.orders.iter().position(|(known, _)| known.as_ref() == sizes);
        known.unwrap_or_else(|| {
            let rest = self.cluster.nodes().soonest(self.cluster.now(), sizes);
            self.orders.push((sizes.cloned(), Found { rest, first: Vec::new() }));
            self.orders.len() - 1
        })
    }

    /// The node at a place of an order.
    pub fn get(&mut self, order: usize, at: usize) -> Option<NodeId> {
        let Found { rest, first } = &mut self.orders[order].1;
        while first.len() <= at {
            first.push(rest.next()?);
        }
        Some(first[at])
    }

    pub fn domains(&mut self, cluster: &Cluster, level: &Level) -> &Domains {
        if !self.domains.contains_key(level) {
            let (mut domains, all) = (Domains::new(), self.order(None));
            for (at, node) in (0..).map_while(|at| Some((at, self.get(all, at)?))) {
                if let Some(domain) = level.domain_of(cluster.nodes().get(node)) {
                    domains.entry(domain.clone()).or_default().push((at, node));
                }
            }
            self.domains.insert(level.clone(), domains);
        }
        &self.domains[level]
    }
}
