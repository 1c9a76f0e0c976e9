//! Which nodes are bad, found by probing them in pairs.
//!
//! A probe of several nodes together (a matrix product on each, a reduction over all) fails or is slow if one of them is
//! bad, and does not say which. Two rounds tell: all nodes in pairs, then each node of a pair that failed with one of a
//! pair that did not. A node is called bad only after two failures with different partners, of which the second is known
//! well.
//! Source: DLRover's node check, which does the same.

use std::collections::BTreeSet;

use crate::types::NodeId;

/// Nodes that are probed together: two; three, where they are an odd number, or one alone.
pub type Group = Vec<NodeId>;

/// What is probed in the first round: every node once.
pub fn first_round(nodes: &[NodeId]) -> Vec<Group> {
    let mut groups: Vec<Group> = nodes.chunks(2).map(<[NodeId]>::to_vec).collect();
    if let [.., last_but_one, last] = &mut groups[..]
        && last.len() == 1
    {
        last_but_one.append(last);
        groups.pop();
    }
    groups
}

/// What is probed in the second round: every node of a group that failed, each with a node of one that did not. Of those
/// for which no such node is left, nothing can be said: they are left out.
///
/// * `first`: the groups of the first round, and whether each passed.
pub fn second_round(first: &[(Group, bool)]) -> Vec<Group> {
    let of = |passed: bool| {
        let groups = first.iter().filter(move |(_, it)| *it == passed);
        groups.flat_map(|(group, _)| group.iter().copied())
    };
    of(false).zip(of(true)).map(|(suspect, well)| vec![suspect, well]).collect()
}

/// Nodes that are bad: they failed in both rounds, the second time beside a node that had passed.
///
/// * `second`: the groups of [`second_round`], and whether each passed.
pub fn bad(first: &[(Group, bool)], second: &[(Group, bool)]) -> BTreeSet<NodeId> {
    let failed = |node: &NodeId| first.iter().any(|(group, passed)| !passed && group.contains(node));
    let suspects = second.iter().filter(|(_, passed)| !passed).flat_map(|(group, _)| group.iter().copied());
    suspects.filter(failed).collect()
}
