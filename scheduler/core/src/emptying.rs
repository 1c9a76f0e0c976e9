//! When nodes get empty, and which ones do soonest.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, btree_set};

use crate::inventory::Inventory;
use crate::nodes::Until;
use crate::types::*;

/// A job that has just begun is expected to run for so long.
const SHORTEST_MS: u64 = 60_000;

/// What says when a node is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expiry {
    /// When all that is held is given back, at the latest.
    pub until: Until,
    /// Number of ranks that hold something.
    pub ranks: u64,
    /// When these were placed: milliseconds, summed over them.
    pub since_sum: u64,
}

impl Expiry {
    /// In how many milliseconds all that is held is expected to be given back; `None`: not by itself.
    pub fn empty_in(&self, now: Time) -> Option<u64> {
        let (group, place) = self.place(NodeId(0))?;
        Some(group.empty_in(place, now))
    }

    /// Its group, and its place in it: within a group the order is the same at all times.
    fn place(&self, node: NodeId) -> Option<(Group, Place)> {
        match self.until {
            Until::Time(end) => Some((Group::Ends, (end.0, node))),
            Until::Unknown => Some((Group::Ages(self.ranks), (u64::MAX - self.since_sum, node))),
            Until::Never => None,
        }
    }
}

/// Nodes whose expected ends move alike as time goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    /// Time limits end all that is held; idle ones are among them, first of all.
    Ends,
    /// Of so many ranks.
    Ages(u64),
}

/// When the time limits end, or the complement of [`Expiry::since_sum`]; then the node.
type Place = (u64, NodeId);

impl Group {
    const FIRST: Group = Group::Ends;
    const LAST: Group = Group::Ages(u64::MAX);

    /// In how many milliseconds a node of the group is expected to be empty.
    ///
    /// What has no time limit is expected to run for as long again as it has run: durations are spread so widely that
    /// what is old lasts. The sum of the ages is about the median of the last end, where an end within `t` has the
    /// chance `t / (age + t)`.
    fn empty_in(self, (at, _): Place, now: Time) -> u64 {
        match self {
            Group::Ends => Time(at).since(now),
            Group::Ages(ranks) => (ranks * (now.0 + SHORTEST_MS)).saturating_sub(u64::MAX - at),
        }
    }
}

/// About how large a node is: where it is told apart, those that ask for the largest pass over the small ones at once. Of
/// few kinds, however many nodes there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size {
    devices: u16,
    /// Of processor time the logarithm, in quarters of a doubling.
    cpus: u16,
}

impl Size {
    pub fn of(inventory: &Inventory) -> Size {
        let cpus_milli = u64::from(inventory.cpus_milli) + 4;
        let doublings = cpus_milli.ilog2();
        let cpus = 4 * doublings + (cpus_milli >> (doublings - 2)) as u32;
        Size { devices: inventory.devices.len() as u16, cpus: cpus as u16 }
    }
}

/// Nodes that get empty by themselves, in the order in which they do. Derived from what is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Emptying {
    groups: BTreeMap<(Size, Group), BTreeSet<Place>>,
}

impl Emptying {
    /// What is held on a node has changed, or its size; `None`: there was no such node. `O(log nodes)`.
    pub fn change(&mut self, node: NodeId, before: Option<(Size, Expiry)>, (size, after): (Size, Expiry)) {
        if let Some((size, (group, place))) =
            before.and_then(|(size, before)| Some((size, before.place(node)?)))
        {
            let places = self.groups.get_mut(&(size, group)).expect("the group of a node");
            places.remove(&place);
            if places.is_empty() {
                self.groups.remove(&(size, group));
            }
        }
        if let Some((group, place)) = after.place(node) {
            self.groups.entry((size, group)).or_default().insert(place);
        }
    }

    /// Nodes that get empty by themselves, the soonest at `now` first; those that are empty now or should be by the
    /// time limits of their jobs in the order of these.
    ///
    /// `O(groups)`, which are no more than ranks can be on one node, for each size, then `O(log groups)` for each.
    ///
    /// * `sizes`: only nodes of these; `None`: all.
    pub fn soonest(&self, now: Time, sizes: Option<&BTreeSet<Size>>) -> SoonestFirst<'_> {
        let mut found = SoonestFirst { now, heads: BinaryHeap::new(), rest: Vec::new() };
        let of_size = |size: &Size| self.groups.range((*size, Group::FIRST)..=(*size, Group::LAST));
        match sizes {
            None => self.groups.iter().for_each(|group| found.open(group)),
            Some(sizes) => sizes.iter().flat_map(of_size).for_each(|group| found.open(group)),
        }
        found
    }
}

/// See [`Emptying::soonest`].
pub(crate) struct SoonestFirst<'a> {
    now: Time,
    /// The next of each group: when it is empty, its place, and the group's index in `rest`.
    heads: BinaryHeap<Reverse<(u64, Place, usize)>>,
    rest: Vec<(Group, btree_set::Iter<'a, Place>)>,
}

impl<'a> SoonestFirst<'a> {
    fn open(&mut self, ((_, group), places): (&(Size, Group), &'a BTreeSet<Place>)) {
        self.rest.push((*group, places.iter()));
        self.advance(self.rest.len() - 1);
    }

    fn advance(&mut self, at: usize) {
        let (group, places) = &mut self.rest[at];
        let Some(place) = places.next() else { return };
        self.heads.push(Reverse((group.empty_in(*place, self.now), *place, at)));
    }
}

impl Iterator for SoonestFirst<'_> {
    type Item = NodeId;
    fn next(&mut self) -> Option<NodeId> {
        let Reverse((_, (_, node), at)) = self.heads.pop()?;
        self.advance(at);
        Some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_a_sort_at_any_time() {
        let mut random = 1u64;
        let mut below = |n: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % n
        };
        let mut known: Vec<Option<(Size, Expiry)>> = vec![None; 50];
        let mut emptying = Emptying::default();
        for round in 0..2000 {
            let node = below(50) as usize;
            let ranks = below(4);
            let until = match below(5) {
                0 => Until::Never,
                1 | 2 => Until::Time(Time(below(4000) * 1000)),
                _ => Until::Unknown,
            };
            let size = Size { devices: below(3) as u16, cpus: below(2) as u16 };
            let after = (size, Expiry { until, ranks, since_sum: ranks * below(1 + round) * 1000 });
            emptying.change(NodeId(node as u32), known[node], after);
            known[node] = Some(after);
            let now = Time(round * 1000 + below(1_000_000));
            let large = |size: &Size| 1 <= size.devices && size.cpus == 1;
            let sizes: BTreeSet<Size> = known.iter().flatten().map(|(size, _)| *size).filter(large).collect();
            for sizes in [None, Some(&sizes)] {
                let mut sorted: Vec<(u64, u64, NodeId)> = (0..)
                    .zip(&known)
                    .filter_map(|(at, known)| {
                        let ((size, expiry), node) = ((*known)?, NodeId(at));
                        sizes.is_none_or(|sizes| sizes.contains(&size)).then_some(())?;
                        Some((expiry.empty_in(now)?, expiry.place(node)?.1.0, node))
                    })
                    .collect();
                sorted.sort_unstable();
                let expected: Vec<NodeId> = sorted.into_iter().map(|(_, _, node)| node).collect();
                let found: Vec<NodeId> = emptying.soonest(now, sizes).collect();
                assert_eq!(found, expected, "round {round}");
            }
        }
    }
}
