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

/// Nodes with the same gap, by `(devices_milli, cpus_milli, node)`.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    runs: Vec<Run>,
}

/// Entries of a run, at most.
const RUN: usize = 48;

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
    fn place(&self) -> (u32, u32, NodeId) {
        (self.devices_milli, self.cpus_milli, self.node)
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

impl Group {
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.runs.iter().flat_map(|run| &run.entries)
    }

    /// The run in which an entry is, or belongs.
    fn run_of(&self, entry: &Entry) -> usize {
        let before = |run: &Run| run.entries.last().is_some_and(|last| last.place() < entry.place());
        self.runs.partition_point(before).min(self.runs.len().saturating_sub(1))
    }

    /// `O(log runs + runs / 1,000 + RUN)`.
    pub fn insert(&mut self, entry: Entry, core_value: i64) {
        let at = self.run_of(&entry);
        let Some(run) = self.runs.get_mut(at) else {
            return self.runs.push(Run::of(vec![entry], core_value));
        };
        let inner = run.entries.partition_point(|other| other.place() < entry.place());
        run.entries.insert(inner, entry);
        if run.entries.len() <= RUN {
            return run.bounds.add(&entry, core_value);
        }
        let upper = run.entries.split_off(RUN / 2);
        run.bound(core_value);
        self.runs.insert(at + 1, Run::of(upper, core_value));
    }

    /// # Panics
    /// When it is not there.
    pub fn remove(&mut self, entry: &Entry, core_value: i64) {
        let at = self.run_of(entry);
        let run = &mut self.runs[at];
        let inner = run.entries.binary_search_by_key(&entry.place(), Entry::place);
        run.entries.remove(inner.expect("an entry of the group"));
        let is_bound = run.bounds.is_set_by(entry, core_value);
        if run.entries.is_empty() {
            self.runs.remove(at);
            return;
        }
        let len = run.entries.len();
        if self.runs.get(at + 1).is_some_and(|next| len + next.entries.len() <= RUN / 2) {
            let next = self.runs.remove(at + 1);
            let run = &mut self.runs[at];
            run.entries.extend(next.entries);
            run.bound(core_value);
        } else if is_bound {
            self.runs[at].bound(core_value);
        }
    }

    /// Brings the bounds up to date after the value of processor time has changed.
    pub fn bound(&mut self, core_value: i64) {
        self.runs.iter_mut().for_each(|run| run.bound(core_value));
    }

    /// Changes what is free of the accelerators, as its entries count it.
    pub fn count_free(&mut self, core_value: i64, free_milli: impl Fn(NodeId) -> u32) {
        for run in &mut self.runs {
            run.entries.iter_mut().for_each(|entry| entry.free_milli = free_milli(entry.node));
            run.bound(core_value);
        }
    }

    /// Improves on `best` with a node of the group that passes, if one does.
    pub fn improve(
        &self,
        wanted: &Wanted,
        core_value: i64,
        best: &mut Option<Score>,
        passes: &mut dyn FnMut(NodeId) -> bool,
    ) {
        for Run { entries, bounds } in &self.runs {
            if bounds.most_cpus_milli < wanted.cpus_milli || bounds.most_memory_bytes < wanted.memory_bytes {
                continue;
            }
            let (cpus, free) = (bounds.least_cpus_milli.into(), bounds.least_free_milli.into());
            let fewest = Beside { free_milli: free, cpus_milli: cpus };
            let balance = (bounds.least, bounds.most);
            let least =
                wanted.cost + wanted.strand.least_cost(balance, fewest, bounds.most_cpus_milli.into());
            let fullest = entries[0].devices_milli.saturating_sub(wanted.devices_milli);
            if best.is_some_and(|best| (best.cost, best.devices_left_milli) < (least, fullest)) {
                continue;
            }
            for entry in entries {
                if entry.cpus_milli < wanted.cpus_milli || entry.memory_bytes < wanted.memory_bytes {
                    continue;
                }
                let score = Score {
                    cost: wanted.cost + wanted.strand.cost(entry.beside(), core_value),
                    devices_left_milli: entry.devices_milli - wanted.devices_milli,
                    cpus_left_milli: u64::from(entry.cpus_milli - wanted.cpus_milli),
                    node: entry.node,
                };
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
        for run in &group.runs {
            assert!(!run.entries.is_empty() && run.entries.len() <= RUN);
            assert_eq!(run.bounds, Run::of(run.entries.clone(), 700).bounds);
        }
        assert!(group.runs.len() < 4 * left.len() / RUN, "{} runs", group.runs.len());
        (0..5_000).filter(|at| at % 3 == 0).for_each(|at| group.remove(&entry(at), 700));
        assert!(group.is_empty());
    }
}
