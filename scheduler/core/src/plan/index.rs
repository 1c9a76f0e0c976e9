//! Nodes in groups of equal gaps, so that the best one for a rank is found without looking at them all.
//!
//! What a rank costs on a node has two parts. One depends on the gap that it takes, of which there are few kinds in a
//! pool ([`Gap`]): nodes that have such a gap are one group. The other depends on two numbers of the node, its free
//! accelerators and processor time ([`Strand`]), and has a bound where these have. Within a group nodes
//! are sorted as ties are broken and cut into short runs that know their bounds, so that a search passes over nearly all
//! of them.

use super::score::{Beside, Score, Strand};
use crate::types::*;

/// A kind of gap on a node; classes are numbered by the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Gap {
    /// For ranks without devices: whether free accelerators are beside.
    Cores { beside: bool },
    /// Whole free accelerators: of the class, of these in the fullest island (0: they are in none), and of all classes.
    Whole { class: u16, count: u16, island: u16, all: u16, idle: bool },
    /// Whole free devices that are cores.
    WholeCores { class: u16, count: u16, island: u16, beside: bool },
    /// A device of which something is free.
    Part { class: u16, compute_milli: u32, memory_bytes: u64, beside: bool, idle: bool },
}

impl Gap {
    /// The gap as a number, in the order of gaps: where it is looked up, that is compared at once.
    pub fn key(&self) -> u128 {
        let pack =
            |kind: u8, class: u16, rest: u128| u128::from(kind) << 124 | u128::from(class) << 100 | rest;
        let counts = |count: u16, island: u16, all: u16| {
            u128::from(count) << 40 | u128::from(island) << 24 | u128::from(all) << 8
        };
        match *self {
            Gap::Cores { beside } => pack(0, 0, beside.into()),
            Gap::Whole { class, count, island, all, idle } => {
                pack(1, class, counts(count, island, all) | u128::from(idle))
            }
            Gap::WholeCores { class, count, island, beside } => {
                pack(2, class, counts(count, island, 0) | u128::from(beside))
            }
            Gap::Part { class, compute_milli, memory_bytes, beside, idle } => {
                let free = u128::from(compute_milli) << 66 | u128::from(memory_bytes) << 2;
                pack(3, class, free | u128::from(beside) << 1 | u128::from(idle))
            }
        }
    }

    /// The class of its devices, if it has devices.
    pub fn class(&self) -> Option<u16> {
        match self {
            Gap::Cores { .. } => None,
            Gap::Whole { class, .. } | Gap::WholeCores { class, .. } | Gap::Part { class, .. } => {
                Some(*class)
            }
        }
    }
}

/// A node, as its groups know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Free of all devices, in thousandths of one.
    pub devices_milli: u32,
    /// Free processor time, in thousandths of a core.
    pub cpus_milli: u32,
    pub node: NodeId,
    /// Free of the accelerators, in thousandths of one; in groups for those who take none, what can still be made of
    /// them, see [`Prices::worth_milli`](super::price::Prices::worth_milli).
    pub free_milli: u32,
    /// Free main memory.
    pub memory_bytes: u64,
}

/// What a search wants of a group's nodes.
pub(super) struct Wanted<'a> {
    pub cpus_milli: u32,
    pub memory_bytes: u64,
    /// What it takes of the node's devices, in thousandths of one.
    pub devices_milli: u32,
    /// What its gap costs.
    pub cost: i64,
    pub strand: Strand<'a>,
}

impl Wanted<'_> {
    /// Of an entry that costs so much. Of one that has not enough, no more than that of any later one.
    fn score(&self, entry: &Entry, cost: i64) -> Score {
        Score {
            cost,
            devices_left_milli: entry.devices_milli.saturating_sub(self.devices_milli),
            cpus_left_milli: u64::from(entry.cpus_milli.saturating_sub(self.cpus_milli)),
            node: if entry.cpus_milli < self.cpus_milli { NodeId(0) } else { entry.node },
        }
    }
}

/// Nodes with the same gap, by [`Entry::place`]: in runs, and these in blocks, so that in the largest pool a search looks at
/// the bounds of some tens of both.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    blocks: Vec<Block>,
    /// Of each block the place of its last entry: to find one, all are looked at in one piece of memory.
    lasts: Vec<Place>,
}

/// Free of all devices, free processor time, and the node, in one number: where it is looked up, that is compared at once.
type Place = u128;

/// Entries of a run, at most.
const RUN: usize = 24;

/// Runs of a block, at most.
const BLOCK: usize = 64;

#[derive(Clone, Debug, Default)]
struct Block {
    runs: Vec<Run>,
    /// As [`Group::lasts`], of the runs.
    lasts: Vec<Place>,
    bounds: Bounds,
}

#[derive(Clone, Debug, Default)]
struct Run {
    entries: Vec<Entry>,
    bounds: Bounds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    least_cpus_milli: u32,
    most_cpus_milli: u32,
    least_free_milli: u32,
    most_memory_bytes: u64,
    /// Of the imbalance, see [`Strand`].
    least: i64,
    most: i64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            least_cpus_milli: u32::MAX,
            most_cpus_milli: 0,
            least_free_milli: u32::MAX,
            most_memory_bytes: 0,
            least: i64::MAX,
            most: i64::MIN,
        }
    }
}

impl Entry {
    fn place(&self) -> Place {
        u128::from(self.devices_milli) << 64 | u128::from(self.cpus_milli) << 32 | u128::from(self.node.0)
    }

    fn beside(&self) -> Beside {
        Beside { free_milli: self.free_milli.into(), cpus_milli: self.cpus_milli.into() }
    }

    fn imbalance(&self, core_value: i64) -> i64 {
        self.beside().imbalance(core_value)
    }
}

impl Bounds {
    fn add(&mut self, entry: &Entry, core_value: i64) {
        let imbalance = entry.imbalance(core_value);
        self.least_cpus_milli = self.least_cpus_milli.min(entry.cpus_milli);
        self.most_cpus_milli = self.most_cpus_milli.max(entry.cpus_milli);
        self.least_free_milli = self.least_free_milli.min(entry.free_milli);
        self.most_memory_bytes = self.most_memory_bytes.max(entry.memory_bytes);
        self.least = self.least.min(imbalance);
        self.most = self.most.max(imbalance);
    }

    /// Takes in those of other entries.
    fn merge(&mut self, other: &Bounds) {
        self.least_cpus_milli = self.least_cpus_milli.min(other.least_cpus_milli);
        self.most_cpus_milli = self.most_cpus_milli.max(other.most_cpus_milli);
        self.least_free_milli = self.least_free_milli.min(other.least_free_milli);
        self.most_memory_bytes = self.most_memory_bytes.max(other.most_memory_bytes);
        self.least = self.least.min(other.least);
        self.most = self.most.max(other.most);
    }

    /// Whether one of them may be less without the entry.
    fn is_set_by(&self, entry: &Entry, core_value: i64) -> bool {
        let imbalance = entry.imbalance(core_value);
        entry.cpus_milli == self.most_cpus_milli
            || entry.cpus_milli == self.least_cpus_milli
            || entry.free_milli == self.least_free_milli
            || entry.memory_bytes == self.most_memory_bytes
            || imbalance == self.least
            || imbalance == self.most
    }

    /// Whether no entry can be better than the best so far.
    ///
    /// * `first`: the first entry. Of those that cost the same none is better: they are sorted as ties are broken.
    fn are_worse<'e>(
        &self,
        wanted: &Wanted,
        best: &Option<Score>,
        first: impl FnOnce() -> &'e Entry,
    ) -> bool {
        if self.most_cpus_milli < wanted.cpus_milli || self.most_memory_bytes < wanted.memory_bytes {
            return true;
        }
        let Some(best) = best else { return false };
        let (cpus, free) = (self.least_cpus_milli.into(), self.least_free_milli.into());
        let fewest = Beside { free_milli: free, cpus_milli: cpus };
        let most_cpus_milli = self.most_cpus_milli.into();
        let least = wanted.cost + wanted.strand.least_cost((self.least, self.most), fewest, most_cpus_milli);
        best.cost < least || (best.cost == least && *best <= wanted.score(first(), least))
    }
}

impl Run {
    fn of(entries: Vec<Entry>, core_value: i64) -> Run {
        let mut run = Run { entries, bounds: Bounds::default() };
        run.bound(core_value);
        run
    }

    fn bound(&mut self, core_value: i64) {
        self.bounds = Bounds::default();
        self.entries.iter().for_each(|entry| self.bounds.add(entry, core_value));
    }
}

/// The first of what is in order whose last place is not before this; the last one, if all are.
fn find(lasts: &[Place], place: Place) -> usize {
    lasts.partition_point(|last| *last < place).min(lasts.len().saturating_sub(1))
}

impl Block {
    fn of(runs: Vec<Run>, lasts: Vec<Place>) -> Block {
        let mut block = Block { runs, lasts, bounds: Bounds::default() };
        block.bound();
        block
    }

    /// From the bounds of its runs.
    fn bound(&mut self) {
        self.bounds = Bounds::default();
        self.runs.iter().for_each(|run| self.bounds.merge(&run.bounds));
    }

    fn insert(&mut self, entry: Entry, core_value: i64) {
        let (place, at) = (entry.place(), find(&self.lasts, entry.place()));
        self.bounds.add(&entry, core_value);
        let Some(run) = self.runs.get_mut(at) else {
            self.lasts.push(place);
            return self.runs.push(Run::of(vec![entry], core_value));
        };
        let inner = run.entries.partition_point(|other| other.place() < place);
        run.entries.insert(inner, entry);
        self.lasts[at] = self.lasts[at].max(place);
        if run.entries.len() <= RUN {
            return run.bounds.add(&entry, core_value);
        }
        let mut upper = Vec::with_capacity(RUN + 1);
        upper.extend(run.entries.drain(RUN / 2..));
        run.bound(core_value);
        self.lasts.insert(at, run.entries[RUN / 2 - 1].place());
        self.runs.insert(at + 1, Run::of(upper, core_value));
    }

    /// # Panics
    /// When it is not there.
    fn remove(&mut self, entry: &Entry, core_value: i64) {
        let at = find(&self.lasts, entry.place());
        let run = &mut self.runs[at];
        let inner = run.entries.binary_search_by_key(&entry.place(), Entry::place);
        run.entries.remove(inner.expect("an entry of the group"));
        let before = run.bounds;
        let is_bound = before.is_set_by(entry, core_value);
        let mut has_changed = is_bound;
        if let Some(last) = run.entries.last() {
            self.lasts[at] = last.place();
            let len = run.entries.len();
            if self.runs.get(at + 1).is_some_and(|next| len + next.entries.len() <= RUN / 2) {
                let next = self.runs.remove(at + 1);
                self.lasts.remove(at);
                let run = &mut self.runs[at];
                run.entries.extend(next.entries);
                run.bound(core_value);
            } else if is_bound {
                let run = &mut self.runs[at];
                run.bound(core_value);
                has_changed = run.bounds != before;
            }
        } else {
            self.runs.remove(at);
            self.lasts.remove(at);
        }
        if has_changed && self.bounds.is_set_by(entry, core_value) {
            self.bound();
        }
    }
}

impl Group {
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.blocks.iter().flat_map(|block| &block.runs).flat_map(|run| &run.entries)
    }

    /// `O(log nodes + RUN + BLOCK)`.
    pub fn insert(&mut self, entry: Entry, core_value: i64) {
        let at = find(&self.lasts, entry.place());
        if self.blocks.is_empty() {
            self.blocks.push(Block::default());
            self.lasts.push(entry.place());
        }
        let block = &mut self.blocks[at];
        block.insert(entry, core_value);
        self.lasts[at] = self.lasts[at].max(entry.place());
        if BLOCK < block.runs.len() {
            let (runs, lasts) = (block.runs.split_off(BLOCK / 2), block.lasts.split_off(BLOCK / 2));
            block.bound();
            self.lasts.insert(at, block.lasts[BLOCK / 2 - 1]);
            self.blocks.insert(at + 1, Block::of(runs, lasts));
        }
    }

    /// # Panics
    /// When it is not there.
    pub fn remove(&mut self, entry: &Entry, core_value: i64) {
        let at = find(&self.lasts, entry.place());
        self.blocks[at].remove(entry, core_value);
        let Some(last) = self.blocks[at].lasts.last() else {
            self.blocks.remove(at);
            self.lasts.remove(at);
            return;
        };
        self.lasts[at] = *last;
        let len = self.blocks[at].runs.len();
        if self.blocks.get(at + 1).is_some_and(|next| len + next.runs.len() <= BLOCK / 2) {
            let next = self.blocks.remove(at + 1);
            self.lasts.remove(at);
            let block = &mut self.blocks[at];
            block.runs.extend(next.runs);
            block.lasts.extend(next.lasts);
            block.bound();
        }
    }

    /// Brings the bounds up to date after the value of processor time has changed.
    pub fn bound(&mut self, core_value: i64) {
        for block in &mut self.blocks {
            block.runs.iter_mut().for_each(|run| run.bound(core_value));
            block.bound();
        }
    }

    /// Changes what is free of the accelerators, as its entries count it.
    pub fn count_free(&mut self, core_value: i64, free_milli: impl Fn(NodeId) -> u32) {
        let entries =
            self.blocks.iter_mut().flat_map(|block| &mut block.runs).flat_map(|run| &mut run.entries);
        entries.for_each(|entry| entry.free_milli = free_milli(entry.node));
        self.bound(core_value);
    }

    /// Improves on `best` with a node of the group that passes, if one does.
    pub fn improve(
        &self,
        wanted: &Wanted,
        core_value: i64,
        best: &mut Option<Score>,
        passes: &mut dyn FnMut(NodeId) -> bool,
    ) {
        for block in &self.blocks {
            if block.bounds.are_worse(wanted, best, || &block.runs[0].entries[0]) {
                continue;
            }
            for run in &block.runs {
                if run.bounds.are_worse(wanted, best, || &run.entries[0]) {
                    continue;
                }
                for entry in &run.entries {
                    if entry.cpus_milli < wanted.cpus_milli || entry.memory_bytes < wanted.memory_bytes {
                        continue;
                    }
                    let cost = wanted.cost + wanted.strand.cost(entry.beside(), core_value);
                    let score = wanted.score(entry, cost);
                    if best.is_none_or(|best| score < best) && passes(entry.node) {
                        *best = Some(score);
                        if score.cost == wanted.cost + wanted.strand.least() {
                            // Those that follow cost no less, and come later in the order.
                            return;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at: u32) -> Entry {
        let spread = at.wrapping_mul(2_654_435_761);
        Entry {
            devices_milli: spread % 8_000,
            cpus_milli: spread / 7 % 64_000,
            node: NodeId(at),
            free_milli: spread % 8_000,
            memory_bytes: u64::from(spread % 512),
        }
    }

    /// Entered and removed in another order, a group is sorted, complete, and as tightly bounded as made afresh.
    #[test]
    fn a_group_keeps_its_entries_sorted_and_bounded() {
        let mut group = Group::default();
        (0..5_000).for_each(|at| group.insert(entry(at), 700));
        (0..5_000).filter(|at| at % 3 != 0).for_each(|at| group.remove(&entry(at), 700));
        let mut left: Vec<Entry> = (0..5_000).filter(|at| at % 3 == 0).map(entry).collect();
        left.sort_by_key(Entry::place);
        assert!(group.iter().eq(&left));
        let last = |entries: &[Entry]| entries.last().map(Entry::place);
        for (block, last_of_block) in group.blocks.iter().zip(&group.lasts) {
            assert!(
                !block.runs.is_empty() && block.runs.len() <= BLOCK && block.runs.len() == block.lasts.len()
            );
            assert_eq!(block.lasts.last(), Some(last_of_block));
            for (run, last_of_run) in block.runs.iter().zip(&block.lasts) {
                assert!(!run.entries.is_empty() && run.entries.len() <= RUN);
                assert_eq!(last(&run.entries).as_ref(), Some(last_of_run));
                assert_eq!(run.bounds, Run::of(run.entries.clone(), 700).bounds);
            }
            assert_eq!(block.bounds, Block::of(block.runs.clone(), Vec::new()).bounds);
        }
        let (blocks, runs) =
            (group.blocks.len(), group.blocks.iter().map(|block| block.runs.len()).sum::<usize>());
        assert!(blocks == group.lasts.len() && 2 < blocks && blocks < 4 * runs / BLOCK, "{blocks} blocks");
        assert!(runs < 4 * left.len() / RUN, "{runs} runs");
        (0..5_000).filter(|at| at % 3 == 0).for_each(|at| group.remove(&entry(at), 700));
        assert!(group.is_empty());
    }
}
