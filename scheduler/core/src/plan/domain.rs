//! Gangs in one domain of a level, and ranks of one role away from each other.
//!
//! A domain is looked at closely only if it has room for the gang by count. Of those the tightest is tried first, so
//! that large ones stay whole.

use std::collections::{BTreeMap, BTreeSet};

use super::fit::{Free, Misfit, Seek, suits};
use super::score::Take;
use crate::cluster::Cluster;
use crate::jobs::Job;
use crate::nodes::Node;
use crate::reservations::Bar;
use crate::topology::{Level, Standing};
use crate::types::*;

/// Domains of a level that are tried for one job, at most, of those that have room by count.
const MAX_DOMAINS: usize = 64;

/// Where all ranks of a job have to stand in one domain: in which there is most room for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Within {
    /// The level that is required.
    pub level: Level,
    /// `None`: no node that takes work is in any.
    pub domain: Option<Name>,
}

/// Alternatives of the roles of a job, one after the other: what each takes of each class of devices.
struct Wanted<'j> {
    job: &'j Job,
    of: Vec<(&'j Role, Option<Vec<Option<Take>>>)>,
}

/// Some nodes, and for how many ranks of a job they have room.
struct Domain<'n> {
    name: &'n Name,
    nodes: Vec<NodeId>,
    /// By alternative, for how many ranks there is room: never less than there really is.
    counts: Vec<u64>,
    /// By alternative, domains that could have one of them, where they have to stand apart.
    apart: BTreeSet<(usize, &'n Name)>,
}

impl<'j> Wanted<'j> {
    fn of(free: &Free, job: &'j Job) -> Wanted<'j> {
        let of_role = |role: &'j Role| {
            let none = role.request.devices.is_empty().then_some((role, None));
            role.request.devices.iter().map(move |want| (role, Some(want))).chain(none)
        };
        let alternatives = job.spec.roles.iter().flat_map(of_role);
        let of = alternatives.map(|(role, want)| (role, want.map(|want| free.room.takes_of(want))));
        Wanted { job, of: of.collect() }
    }
}

impl<'n> Domain<'n> {
    fn new(name: &'n Name, wanted: &Wanted) -> Domain<'n> {
        Domain { name, nodes: Vec::new(), counts: vec![0; wanted.of.len()], apart: BTreeSet::new() }
    }

    /// By role, for how many ranks there is room by count.
    fn counts<'d>(&'d self, wanted: &'d Wanted) -> impl Iterator<Item = (&'d Role, u64)> {
        let mut at = 0;
        wanted.job.spec.roles.iter().map(move |role| {
            let alternatives = role.request.devices.len().max(1);
            at += alternatives;
            (role, self.counts[at - alternatives..at].iter().copied().max().unwrap_or(0))
        })
    }

    /// For how many of the job's ranks there is room by count.
    fn ranks(&self, wanted: &Wanted) -> u32 {
        self.counts(wanted).map(|(role, count)| count.min(role.least().into()) as u32).sum()
    }

    /// For how many ranks of such jobs there is room: of the domains with enough, the one with the least is taken.
    fn room(&self, wanted: &Wanted) -> u64 {
        self.counts(wanted).map(|(_, count)| count).sum()
    }

    fn add(&mut self, free: &Free, wanted: &Wanted, node: &'n Node) {
        self.nodes.push(node.id);
        for (at, (role, takes)) in wanted.of.iter().enumerate() {
            if !may_stand(node, role) {
                continue;
            }
            let apart = role.standing.apart.as_ref().and_then(|level| level.domain_of(node));
            let most = if apart.is_some() { 1 } else { role.least() };
            let ranks = free.room.bound(node.id, &role.request, takes.as_deref(), most);
            if 0 < ranks && apart.is_none_or(|domain| self.apart.insert((at, domain))) {
                self.counts[at] += u64::from(ranks);
            }
        }
    }
}

/// Whether a rank of the role may be on the node by its labels and its engine.
pub(super) fn may_stand(node: &Node, role: &Role) -> bool {
    let apart = |level: &Level| level.domain_of(node).is_some();
    suits(node, &role.request) && role.standing.apart.as_ref().is_none_or(apart)
}

/// Seeks a placement in one domain of the level, and of the other one, if there is one. First in the domain that has
/// room by count for the fewest ranks, but for enough; ties go to its name.
///
/// `O(nodes * log domains)` to count, then for each domain that is tried `O(tries * its nodes * log of these)`.
pub(super) fn in_one_domain<T>(
    free: &mut Free,
    job: &Job,
    level: &Level,
    other: Option<&Level>,
    seek: Seek<T>,
) -> Result<T, Misfit> {
    let (cluster, wanted, mut denied) = (free.cluster, Wanted::of(free, job), None);
    let of = job.spec.min_ranks();
    let mut best: Option<(u32, &Name)> = None;
    let mut note = |ranks: u32, name| {
        if best.is_none_or(|(most, _)| most < ranks) {
            best = Some((ranks, name));
        }
    };
    let mut with_room: Vec<(u64, Domain)> = Vec::new();
    for domain in domains(free, cluster, &wanted, (level, other), &mut denied) {
        match domain.ranks(&wanted) {
            ranks if ranks == of => with_room.push((domain.room(&wanted), domain)),
            ranks => note(ranks, domain.name),
        }
    }
    with_room.sort_by_key(|(room, domain)| (*room, domain.name));
    let mut misfit = denied;
    for (_, domain) in with_room.into_iter().take(MAX_DOMAINS) {
        match seek(free, job, Some(&domain.nodes)) {
            Ok(found) => return Ok(found),
            Err(Misfit::RoomFor { ranks, .. }) => note(ranks, domain.name),
            Err(limit @ Misfit::QueueLimit { .. }) => misfit = Some(limit),
            Err(Misfit::Kept(_) | Misfit::Barred(_)) => (),
        }
    }
    Err(misfit.unwrap_or_else(|| {
        let (ranks, domain) = best.map_or((0, None), |(ranks, name)| (ranks, Some(name.clone())));
        Misfit::RoomFor { ranks, of, within: Some(Within { level: level.clone(), domain }) }
    }))
}

/// The domains of a level, those of different ones of the other level apart, by name.
///
/// * `denied`: whom the first node that was passed over is kept for or booked by.
fn domains<'c>(
    free: &Free,
    cluster: &'c Cluster,
    wanted: &Wanted,
    (level, other): (&Level, Option<&Level>),
    denied: &mut Option<Misfit>,
) -> Vec<Domain<'c>> {
    let mut domains: BTreeMap<(&Name, Option<&Name>), Domain> = BTreeMap::new();
    for node in cluster.nodes().iter().filter(|node| free.room.is_open(node.id)) {
        let Some(name) = level.domain_of(node) else { continue };
        let of_other = other.map(|other| other.domain_of(node));
        if of_other == Some(None) {
            continue;
        }
        let domain = domains.entry((name, of_other.flatten()));
        let domain = domain.or_insert_with(|| Domain::new(name, wanted));
        let bar = || free.bar(wanted.job, node.id).map(Misfit::Barred);
        match free.keeps(wanted.job, node.id).map(Misfit::Kept).or_else(bar) {
            None => domain.add(free, wanted, node),
            // Other nodes than those of its reservation are none for it.
            Some(Misfit::Barred(Bar::Outside(_))) => (),
            Some(misfit) => {
                let takes = |role: &Role| may_stand(node, role) && free.room.takes(node.id, &role.request);
                if denied.is_none() && wanted.job.spec.roles.iter().any(takes) {
                    *denied = Some(misfit);
                }
            }
        }
    }
    domains.into_values().collect()
}

/// Ranks of one role as they are placed one after the other.
pub(super) struct Stand<'r> {
    wishes: &'r Standing,
    /// Domains of `apart` with one of them.
    used: BTreeSet<Name>,
    /// How many are in each domain of `spread`.
    counts: BTreeMap<Name, u32>,
    /// The next one is placed where there are no more than so many.
    least: u32,
}

impl<'r> Stand<'r> {
    pub fn of(role: &'r Role) -> Stand<'r> {
        Stand { wishes: &role.standing, used: BTreeSet::new(), counts: BTreeMap::new(), least: 0 }
    }

    /// How many ranks may be placed on one node before the best one is sought again.
    pub fn at_once(&self) -> usize {
        if self.wishes.is_free() { usize::MAX } else { 1 }
    }

    /// Whether the next rank may be on the node.
    pub fn takes(&self, node: &Node) -> bool {
        let is_new = |level: &Level| level.domain_of(node).is_some_and(|domain| !self.used.contains(domain));
        let has_few = |level: &Level| self.count(level.domain_of(node)) <= self.least;
        self.wishes.apart.as_ref().is_none_or(is_new) && self.wishes.spread.as_ref().is_none_or(has_few)
    }

    /// In no domain there are enough: such a node comes last.
    fn count(&self, domain: Option<&Name>) -> u32 {
        domain.map_or(u32::MAX, |domain| self.counts.get(domain).copied().unwrap_or(0))
    }

    /// A rank was placed on the node.
    pub fn place(&mut self, node: &Node) {
        if let Some(domain) = self.wishes.apart.as_ref().and_then(|level| level.domain_of(node)) {
            self.used.insert(domain.clone());
        }
        if let Some(domain) = self.wishes.spread.as_ref().and_then(|level| level.domain_of(node)) {
            *self.counts.entry(domain.clone()).or_default() += 1;
        }
    }

    /// Where there are few there is no room: lets the next rank go where there are more. False if that is anywhere.
    pub fn relax(&mut self) -> bool {
        if self.wishes.spread.is_none() || self.least == u32::MAX {
            return false;
        }
        let more = self.counts.values().copied().filter(|count| self.least < *count).min();
        self.least = more.unwrap_or(u32::MAX);
        true
    }
}
