//! Probes in pairs find bad nodes in two rounds, and call no other bad.

mod fixture;

use std::collections::BTreeSet;

use aquifer_core::NodeId;
use aquifer_core::probe::{Group, bad, first_round, second_round};
use fixture::Rng;

const SEEDS: u64 = 10_000;

fn shuffled(rng: &mut Rng, count: u32) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = (0..count).map(NodeId).collect();
    (1..nodes.len()).rev().for_each(|at| nodes.swap(at, rng.below(at as u64 + 1) as usize));
    nodes
}

/// A probe fails if one of its nodes is bad.
fn probe(groups: Vec<Group>, is_bad: &BTreeSet<NodeId>) -> Vec<(Group, bool)> {
    let passes = |group: &Group| group.iter().all(|node| !is_bad.contains(node));
    groups.into_iter().map(|group| (group.clone(), passes(&group))).collect()
}

#[test]
fn one_bad_node_of_sixty_four_is_found_in_two_rounds_and_no_other_is_called_bad() {
    for seed in 0..SEEDS {
        let mut rng = Rng(seed);
        let nodes = shuffled(&mut rng, 64);
        let is_bad = BTreeSet::from([NodeId(rng.below(64) as u32)]);
        let first = probe(first_round(&nodes), &is_bad);
        assert_eq!(first.iter().map(|(group, _)| group.len()).sum::<usize>(), 64);
        let second = probe(second_round(&first), &is_bad);
        assert_eq!(second.len(), 2, "seed {seed}: only the failed pair is probed again");
        assert_eq!(bad(&first, &second), is_bad, "seed {seed}");
    }
}

#[test]
fn however_many_are_bad_no_good_one_is_called_so() {
    let (mut found, mut all) = (0, 0);
    for seed in 0..SEEDS {
        let mut rng = Rng(seed);
        let count = 1 + rng.below(65) as u32;
        let nodes = shuffled(&mut rng, count);
        let share = 1 + rng.below(10);
        let is_bad: BTreeSet<NodeId> = nodes.iter().copied().filter(|_| rng.below(10) < share).collect();
        let first = probe(first_round(&nodes), &is_bad);
        let probed: BTreeSet<NodeId> = first.iter().flat_map(|(group, _)| group.iter().copied()).collect();
        assert_eq!(probed.len(), nodes.len(), "seed {seed}: every node, once");
        let second = probe(second_round(&first), &is_bad);
        let called = bad(&first, &second);
        assert!(called.is_subset(&is_bad), "seed {seed}: {called:?} of {is_bad:?}");
        // All that there was a well partner for.
        let suspects =
            first.iter().filter(|(_, passed)| !passed).map(|(group, _)| group.len()).sum::<usize>();
        let well = nodes.len() - suspects;
        assert!(well < suspects || called == is_bad, "seed {seed}: {called:?} of {is_bad:?}");
        (found, all) = (found + called.len(), all + is_bad.len());
    }
    assert!(all / 10 < found, "{found} of {all}: the property saw its cases");
}

#[test]
fn a_probe_that_fails_by_accident_condemns_nobody() {
    // Nothing is bad; of the first round one probe in ten fails all the same, of the second none.
    for seed in 0..SEEDS {
        let mut rng = Rng(seed);
        let nodes = shuffled(&mut rng, 64);
        let first: Vec<(Group, bool)> =
            first_round(&nodes).into_iter().map(|group| (group, rng.below(10) != 0)).collect();
        let second = probe(second_round(&first), &BTreeSet::new());
        assert_eq!(bad(&first, &second), BTreeSet::new(), "seed {seed}");
    }
}
