//! Which running jobs are worth changing places: each goes on where the other one was, on devices of another class.
//!
//! Where the pool is full, nothing is idle that a job could move to. Of those that [`rounds::plan`](crate::rounds::plan) would
//! have on each other's class, pairs change places if both together gain enough against what their restarts lose. One of
//! them may become slower by it, by less than the other becomes faster.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::fit::Free;
use super::migrate::{Candidate, LEAST_GAIN};
use crate::types::*;

/// Two jobs that change places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Both of them.
    pub sides: [Side; 2],
    /// By how much sooner they are expected to end, added up and the cost taken off, in milliseconds.
    pub sooner_ms: u64,
    /// What both lose: the time since their last checkpoint, and that of a restart, in milliseconds.
    pub cost_ms: u64,
}

/// One of two jobs that change places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// Which.
    pub job: JobId,
    /// Where it is.
    pub from: Arc<DeviceClass>,
    /// Where the other one is.
    pub to: Arc<DeviceClass>,
    /// Nodes of the other one.
    pub nodes: Vec<NodeId>,
}

/// Pairs that change places in one round, at most.
const MAX_EXCHANGES: usize = 4;
/// Pairs that are tried in one round, at most.
const MAX_TRIES: usize = 16;

/// Pairs that change places now. `O(wishes²)`, and for each that is tried what it takes to place two jobs.
///
/// * `wishes`: jobs that should be on another class, with that class and what they gain by it, in milliseconds; less than 0:
///   they lose.
pub(super) fn exchange(
    free: &mut Free,
    classes: &[Arc<DeviceClass>],
    wishes: &[(i64, &Candidate, usize)],
) -> Vec<Exchange> {
    let mut pairs = Vec::new();
    for (at, (gain, one, class)) in wishes.iter().enumerate() {
        for (other_gain, other, other_class) in &wishes[at + 1..] {
            let cost_ms = one.mover.cost_ms + other.mover.cost_ms;
            let gain = u64::try_from(gain + other_gain).unwrap_or(0);
            let crosses = *class == other.mover.own && *other_class == one.mover.own;
            if crosses && LEAST_GAIN * cost_ms <= gain {
                pairs.push((gain, cost_ms, [*one, *other]));
            }
        }
    }
    pairs.sort_by_key(|(gain, _, pair)| (Reverse(*gain), pair.map(|it| it.mover.job.id)));
    let (mut exchanges, mut used) = (Vec::new(), BTreeSet::new());
    for (gain, cost_ms, pair) in pairs.into_iter().take(MAX_TRIES) {
        let is_new = pair.iter().all(|it| !used.contains(&it.mover.job.id));
        if exchanges.len() < MAX_EXCHANGES && is_new && change_places(free, classes, pair) {
            used.extend(pair.map(|it| it.mover.job.id));
            let side = |one: &Candidate, other: &Candidate| Side {
                job: one.mover.job.id,
                from: classes[one.mover.own].clone(),
                to: classes[other.mover.own].clone(),
                nodes: nodes(other),
            };
            let [one, other] = pair;
            let sides = [side(one, other), side(other, one)];
            exchanges.push(Exchange { sides, sooner_ms: gain - cost_ms, cost_ms });
        }
    }
    exchanges
}

fn nodes(it: &Candidate) -> Vec<NodeId> {
    it.mover.job.ranks.iter().map(|rank| rank.node).collect::<BTreeSet<NodeId>>().into_iter().collect()
}

/// Whether each fits where the other one is, in what that one holds: all else there may be taken until both have stopped.
fn change_places(free: &mut Free, classes: &[Arc<DeviceClass>], [one, other]: [&Candidate; 2]) -> bool {
    let is_kept = |it: &Candidate| nodes(it).into_iter().any(|node| free.kept.is_kept(node));
    if is_kept(one) || is_kept(other) {
        return false;
    }
    let both = [one, other];
    both.iter().for_each(|it| free.take_as_ended(it.mover.job, true));
    let mut fits = |it: &Candidate, there: &Candidate| {
        let found = it.mover.place(free, &classes[there.mover.own], &nodes(there));
        found.is_some_and(|ranks| is_within(&ranks, &there.mover.job.ranks))
    };
    let fit = fits(one, other) && fits(other, one);
    // All that was taken is on nodes of the two.
    both.iter().for_each(|it| free.take_as_ended(it.mover.job, false));
    fit
}

/// Whether all that some ranks hold of a node is part of what others hold of it.
fn is_within(ranks: &[Allocation], others: &[Allocation]) -> bool {
    let sums = |ranks: &[Allocation]| {
        let mut sums: BTreeMap<NodeId, (BTreeSet<u16>, u64, u64)> = BTreeMap::new();
        for rank in ranks {
            let (devices, cpus, memory) = sums.entry(rank.node).or_default();
            devices.extend(&rank.devices);
            *cpus += u64::from(rank.cpus_milli);
            *memory += rank.memory_bytes;
        }
        sums
    };
    let others = sums(others);
    sums(ranks).into_iter().all(|(node, (devices, cpus, memory))| {
        others.get(&node).is_some_and(|(has, cpus_there, memory_there)| {
            devices.is_subset(has) && cpus <= *cpus_there && memory <= *memory_there
        })
    })
}
