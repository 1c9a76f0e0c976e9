//! What is free on every node, and the index over it. Derived from the nodes and what is held on them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::advantage::{ClassSpeed, Figure, Worth};
use super::index::{Entry, Gap, Group, Wanted};
use super::price::{Prices, Totals};
use super::score::{Score, Strand, Take, Weights, beside_cost, grain, scarcity};
use crate::nodes::{Held, Node};
use crate::speed::{Kind, Speeds};
use crate::tariff::Tariff;
use crate::types::*;
pub use free::{DeviceFree, NodeFree};
use gaps::{Size, accelerators, islands, size, sizes, summary, takes_none, worth_milli};

/// What is free on all nodes, and where it is found.
#[derive(Clone, Debug, Default)]
pub struct Room {
    classes: Vec<Arc<DeviceClass>>,
    class_ids: BTreeMap<Arc<DeviceClass>, u16>,
    nodes: Vec<RoomNode>,
    /// Kinds of gaps that were ever met since the index was made, each with its group.
    gaps: Vec<(Gap, Group)>,
    /// By [`Gap::key`].
    gap_ids: BTreeMap<u128, u32>,
    /// Requests that were searched for, prepared; ascending.
    asked: Vec<(DeviceRequest, Asked)>,
    /// Free accelerators of each class on nodes that take work, in thousandths of one.
    free_milli: Vec<u64>,
    /// What all nodes have that take work.
    has: Totals,
    prices: Arc<Prices>,
    /// See [`grain`].
    grain: Vec<i64>,
    weights: Weights,
    /// Sets of classes, and which part of the demand, in millionths, can use no others.
    choosy: Vec<(Vec<u16>, u64)>,
    /// By class, of the devices of all nodes.
    figures: Vec<Figure>,
    /// By class, how large its nodes are, and how many are so.
    sizes: Vec<BTreeMap<Size, u32>>,
    worth: Worth,
    /// Of the node that is being indexed. Keeps its memory.
    found: Vec<Gap>,
}

/// Prepared requests, at most; when there are more, they are prepared anew.
const ASKED: usize = 1024;
/// Kinds of gaps, at most, unless more are in use.
const GAPS: usize = 8192;

#[derive(Clone, Debug, Default)]
struct RoomNode {
    inventory: Arc<Inventory>,
    /// Of its devices, by index.
    class_of: Vec<u16>,
    /// Whether none of them has a fault.
    is_well: bool,
    /// Whether any of them is of an island.
    is_linked: bool,
    has: Totals,
    free: NodeFree,
    /// As it stands in the groups of its gaps; `None`: it takes no work.
    entry: Option<Entry>,
    /// See [`Prices::worth_milli`].
    worth_milli: u32,
    groups: Vec<u32>,
}

/// A request for devices against what the pool has.
#[derive(Clone, Debug, Default)]
struct Asked {
    /// What a rank takes, by class.
    takes: Vec<Option<Take>>,
    /// Gaps for it, the cheapest first, with what they cost.
    gaps: Vec<(i64, u32)>,
    /// Gaps that were looked at.
    seen: usize,
}

impl Room {
    /// What is free on the node.
    pub fn on(&self, node: NodeId) -> &NodeFree {
        &self.nodes[node.0 as usize].free
    }

    /// What is free on a node that is known when so much of it is held.
    pub(super) fn left_on(&self, node: &Node, held: &Held) -> NodeFree {
        let mut left = NodeFree::default();
        self.count_left(node, held, &mut left);
        left
    }

    fn count_left(&self, node: &Node, held: &Held, left: &mut NodeFree) {
        let RoomNode { class_of, is_well, .. } = &self.nodes[node.id.0 as usize];
        left.count(node, held, (&self.classes, class_of), *is_well && node.cordoned.is_empty());
    }

    /// Brings a node up to date. Nodes are entered in the order of their identities.
    /// `O(gaps of the node * log nodes)`.
    pub(crate) fn refresh(&mut self, node: &Node, held: &Held) {
        let id = node.id.0 as usize;
        if id == self.nodes.len() {
            self.nodes.push(RoomNode::default());
        }
        let before = self.has;
        if !Arc::ptr_eq(&self.nodes[id].inventory, &node.inventory) {
            self.unindex(node.id);
            let class_of = node.inventory.devices.iter().map(|device| self.class_id(&device.class)).collect();
            self.count_figures(id, false);
            let fewer = self.count_sizes(id, false);
            self.nodes[id].class_of = class_of;
            self.nodes[id].is_well = node.inventory.is_well();
            self.nodes[id].is_linked = node.inventory.devices.iter().any(|device| device.island.is_some());
            self.nodes[id].has = size(&node.inventory);
            self.nodes[id].inventory = node.inventory.clone();
            self.count_figures(id, true);
            if self.count_sizes(id, true) || fewer {
                self.find_choosy();
            }
        }
        self.unindex(node.id);
        let mut free = std::mem::take(&mut self.nodes[id].free);
        self.count_left(node, held, &mut free);
        self.nodes[id].free = free;
        if node.takes_work() {
            self.index(node.id);
        }
        if self.has != before {
            self.grain = grain(&self.prices, self.has);
        }
    }

    fn class_id(&mut self, class: &Arc<DeviceClass>) -> u16 {
        if let Some(id) = self.class_ids.get(class) {
            return *id;
        }
        let id = u16::try_from(self.classes.len()).expect("fewer than 65,536 classes of devices");
        self.classes.push(class.clone());
        self.class_ids.insert(class.clone(), id);
        self.free_milli.push(0);
        self.figures.push(Figure::default());
        self.sizes.push(BTreeMap::new());
        self.asked.clear();
        self.find_choosy();
        id
    }

    /// Places are priced anew.
    pub(crate) fn set_prices(&mut self, prices: Arc<Prices>) {
        if self.prices.core_value != prices.core_value {
            self.gaps.iter_mut().for_each(|(_, group)| group.bound(prices.core_value));
        }
        self.prices = prices;
        self.grain = grain(&self.prices, self.has);
        self.count_worth();
        self.worth.forget();
        self.asked.clear();
        self.find_choosy();
    }

    /// Brings what can still be made of free accelerators up to date. `O(nodes)`.
    fn count_worth(&mut self) {
        // Groups have them in another order: of all nodes, these numbers alone are near.
        let count = |node: &mut RoomNode| {
            node.worth_milli = worth_milli(&self.prices, &node.free, &self.classes);
            node.worth_milli
        };
        let worth: Vec<u32> = self.nodes.iter_mut().map(count).collect();
        let (classes, core_value) = (&self.classes, self.prices.core_value);
        for (_, group) in self.gaps.iter_mut().filter(|(gap, _)| takes_none(gap, classes)) {
            group.count_free(core_value, |id| worth[id.0 as usize]);
        }
    }

    /// Adds or removes how large a node is, for each class that it has. Returns whether nodes have other sizes now.
    fn count_sizes(&mut self, id: usize, add: bool) -> bool {
        let mut changed = false;
        for (class, size) in sizes(&self.nodes[id].inventory, &self.nodes[id].class_of) {
            let sizes = &mut self.sizes[usize::from(class)];
            let count = sizes.entry(size).or_default();
            *count = if add { *count + 1 } else { *count - 1 };
            changed |= *count == u32::from(add);
            if *count == 0 {
                sizes.remove(&size);
            }
        }
        changed
    }

    /// Adds or removes what the devices of a node say of their speed.
    fn count_figures(&mut self, id: usize, add: bool) {
        self.worth.forget();
        let RoomNode { inventory, class_of, .. } = &self.nodes[id];
        for (device, class) in inventory.devices.iter().zip(class_of) {
            let figure = &mut self.figures[usize::from(*class)];
            match add {
                true => figure.add(Figure::of(device)),
                false => figure.remove(Figure::of(device)),
            }
        }
    }

    /// The classes of devices, by their numbers.
    pub(super) fn classes(&self) -> &[Arc<DeviceClass>] {
        &self.classes
    }

    /// Whether every program is as fast on one class as on another, as far as is known, and they cost the same.
    pub(crate) fn is_even(&self) -> bool {
        self.worth.is_even()
    }

    /// Brings up to date what the classes are worth to programs of different speeds.
    pub(crate) fn learn_worth(&mut self, speeds: &Speeds, tariff: &Tariff) {
        let classes = self.classes.iter().cloned().zip(self.figures.iter().copied());
        self.worth.learn(speeds, (&self.prices, tariff), classes);
    }

    /// What an hour of devices costs has changed.
    pub(crate) fn forget_worth(&mut self) {
        self.worth.forget();
    }

    /// The classes that nodes have, with what they are worth to a kind of program.
    pub(crate) fn class_speeds(&self, speeds: &Speeds, kind: &Kind) -> Vec<ClassSpeed> {
        let classes = self.worth.class_speeds(speeds, kind).zip(&self.figures);
        classes.filter(|(_, figure)| figure.devices != 0).map(|(speed, _)| speed).collect()
    }

    /// What a thousandth of each class costs a rank: its scarcity, and what is lost where it is not the class that serves
    /// the pool best. `None`: the scarcity alone.
    pub(super) fn class_costs(
        &self,
        speeds: &Speeds,
        kind: impl FnOnce() -> Kind,
        want: &DeviceRequest,
        scarcity: &[i64],
    ) -> Option<Vec<i64>> {
        let costs = self.worth.costs(speeds, kind, want)?;
        // A class that has just come is not known yet.
        (costs.len() == scarcity.len())
            .then(|| scarcity.iter().zip(costs).map(|(one, other)| one + other).collect())
    }

    /// Whether idle nodes are for wide jobs, see [`Weights`].
    pub(crate) fn protect_idle(&mut self, protect: bool) {
        let weights = if protect { Weights::PROTECT } else { Weights::HINTS };
        if weights != self.weights {
            self.weights = weights;
            self.asked.clear();
        }
    }

    fn find_choosy(&mut self) {
        let accelerators: Vec<u16> = (0..self.classes.len() as u16)
            .filter(|class| self.classes[usize::from(*class)].vendor != Vendor::Cpu)
            .filter(|class| !self.sizes[usize::from(*class)].is_empty())
            .collect();
        let mut choosy: BTreeMap<Vec<u16>, u64> = BTreeMap::new();
        for (rank, millionths) in &self.prices.ranks {
            let takes = |class: &u16| {
                rank.devices.accepts(&self.classes[usize::from(*class)])
                    && self.sizes[usize::from(*class)].keys().any(|size| size.takes(rank))
            };
            let classes: Vec<u16> = accelerators.iter().copied().filter(takes).collect();
            if !classes.is_empty() && classes.len() < accelerators.len() {
                *choosy.entry(classes).or_default() += millionths;
            }
        }
        self.choosy = choosy.into_iter().collect();
    }

    /// See [`scarcity`].
    pub(super) fn scarcity(&self) -> Vec<i64> {
        scarcity(&self.free_milli, &self.choosy)
    }

    /// Changes what is free on a node that takes work; returns what was free before.
    pub(crate) fn change(&mut self, id: NodeId, free: NodeFree) -> NodeFree {
        self.unindex(id);
        let before = std::mem::replace(&mut self.nodes[id.0 as usize].free, free);
        self.index(id);
        before
    }

    fn unindex(&mut self, id: NodeId) {
        let node = &mut self.nodes[id.0 as usize];
        let Some(entry) = node.entry.take() else { return };
        for group in node.groups.drain(..) {
            let (gap, group) = &mut self.gaps[group as usize];
            group.remove(&entry.for_gap(gap, &self.classes, node.worth_milli), self.prices.core_value);
        }
        self.has -= node.has;
        for device in accelerators(&node.free, &self.classes) {
            self.free_milli[usize::from(device.class)] -= u64::from(device.compute_milli);
        }
    }

    fn index(&mut self, id: NodeId) {
        if GAPS <= self.gaps.len() {
            self.forget_gaps();
        }
        let node = &mut self.nodes[id.0 as usize];
        for device in accelerators(&node.free, &self.classes) {
            self.free_milli[usize::from(device.class)] += u64::from(device.compute_milli);
        }
        let entry = summary(id, &node.free, node, &self.classes, &mut self.found);
        node.entry = Some(entry);
        node.worth_milli = worth_milli(&self.prices, &node.free, &self.classes);
        self.has += node.has;
        for gap in self.found.drain(..) {
            let group = *self.gap_ids.entry(gap.key()).or_insert_with(|| {
                self.gaps.push((gap, Group::default()));
                self.gaps.len() as u32 - 1
            });
            let entry = entry.for_gap(&gap, &self.classes, node.worth_milli);
            self.gaps[group as usize].1.insert(entry, self.prices.core_value);
            node.groups.push(group);
        }
    }

    /// Forgets the kinds of gaps that no node has, if they are most.
    fn forget_gaps(&mut self) {
        if self.gaps.len() / 2 < self.gaps.iter().filter(|(_, group)| !group.is_empty()).count() {
            return;
        }
        let mut kept = vec![u32::MAX; self.gaps.len()];
        let gaps = std::mem::take(&mut self.gaps);
        for (old, gap) in gaps.into_iter().enumerate().filter(|(_, (_, group))| !group.is_empty()) {
            kept[old] = self.gaps.len() as u32;
            self.gaps.push(gap);
        }
        self.gap_ids = self.gaps.iter().zip(0..).map(|((gap, _), id)| (gap.key(), id)).collect();
        self.asked.clear();
        for node in &mut self.nodes {
            node.groups.iter_mut().for_each(|group| *group = kept[*group as usize]);
        }
    }

    /// The best node for one rank, of those that pass.
    ///
    /// * `scarcity`: what a thousandth of each class costs; of cores only what they lose by their speed.
    ///
    /// Passes over groups and runs that cannot be better; `O(gaps + log nodes)` where many nodes are alike, never more
    /// than `O(gaps * nodes)`.
    pub(super) fn best(
        &mut self,
        request: &Request,
        devices: Option<&DeviceRequest>,
        scarcity: &[i64],
        passes: &dyn Fn(NodeId, &NodeFree) -> bool,
    ) -> Option<Score> {
        if devices.is_some_and(|want| want.slice.is_some() && 1 < want.count) {
            return self.scan(request, devices, scarcity, passes);
        }
        let asked = devices.map(|want| self.prepare(want));
        let (core_value, grain) = (self.prices.core_value, &self.grain[..]);
        let nodes = &self.nodes;
        let passes = &mut |id: NodeId| passes(id, &nodes[id.0 as usize].free);
        let wanted = |take: Option<&Take>, cost: i64| {
            let cpus_milli = take.map_or(request.cpus_milli, |take| take.cpus_milli(request));
            let accelerators_milli = take.map_or(0, Take::accelerators_milli);
            Wanted {
                cpus_milli,
                memory_bytes: request.memory_bytes,
                devices_milli: take.map_or(0, Take::devices_milli),
                cost,
                strand: Strand::of(accelerators_milli, cpus_milli, core_value, grain),
            }
        };
        let mut best = None;
        let Some(asked) = asked else {
            for beside in [false, true] {
                if let Some(group) = self.gap_ids.get(&Gap::Cores { beside }.key()) {
                    let wanted = wanted(None, beside_cost(beside));
                    self.gaps[*group as usize].1.improve(&wanted, core_value, &mut best, passes);
                }
            }
            return best;
        };
        let asked = &self.asked[asked].1;
        let of_class = |class: usize| {
            let take = asked.takes[class].as_ref()?;
            Some(wanted(Some(take), scarcity[class] * i64::from(take.devices_milli())))
        };
        let by_class = (0..asked.takes.len()).filter_map(of_class);
        let least = by_class.map(|wanted| wanted.cost + wanted.strand.least()).min();
        for (cost, group) in &asked.gaps {
            if best.is_some_and(|best: Score| best.cost < cost + least.unwrap_or(0)) {
                break;
            }
            let (gap, group) = &self.gaps[*group as usize];
            if group.is_empty() {
                continue;
            }
            let of_class = gap.class().and_then(|class| of_class(class.into()));
            let of_class = of_class.expect("a class that is accepted");
            let wanted = Wanted { cost: of_class.cost + cost, ..of_class };
            group.improve(&wanted, core_value, &mut best, passes);
        }
        best
    }

    /// Brings what is known of a request up to date; returns where it stands.
    fn prepare(&mut self, want: &DeviceRequest) -> usize {
        let at = match self.asked.binary_search_by(|(known, _)| known.cmp(want)) {
            Ok(at) => at,
            Err(at) if self.asked.len() < ASKED => self.enter(at, want),
            Err(_) => {
                self.asked.clear();
                self.enter(0, want)
            }
        };
        let asked = &mut self.asked[at].1;
        if asked.seen == self.gaps.len() {
            return at;
        }
        for (gap, id) in self.gaps[asked.seen..].iter().map(|(gap, _)| gap).zip(asked.seen as u32..) {
            let Some(class) = gap.class().map(usize::from) else { continue };
            let Some(take) = &asked.takes[class] else { continue };
            if let Some(cost) = take.gap_cost(&self.prices, &self.weights, gap, &self.classes[class]) {
                asked.gaps.push((cost, id));
            }
        }
        asked.gaps.sort_unstable();
        asked.seen = self.gaps.len();
        at
    }

    fn enter(&mut self, at: usize, want: &DeviceRequest) -> usize {
        let takes = self.classes.iter().map(|class| Take::of(want, class)).collect();
        self.asked.insert(at, (want.clone(), Asked { takes, ..Asked::default() }));
        at
    }

    /// As [`Room::best`], by looking at every node: what the index is checked against.
    pub(super) fn scan(
        &self,
        request: &Request,
        devices: Option<&DeviceRequest>,
        scarcity: &[i64],
        passes: &dyn Fn(NodeId, &NodeFree) -> bool,
    ) -> Option<Score> {
        let open = (0..).zip(&self.nodes).filter(|(_, node)| node.entry.is_some());
        let scores = open.filter_map(|(id, node)| {
            Some(self.choose(NodeId(id), &node.free, request, devices, scarcity)?.score)
        });
        scores.filter(|score| passes(score.node, self.on(score.node))).min()
    }

    /// Checks everything against a recount.
    ///
    /// # Panics
    /// When something is not what it should be.
    ///
    /// * `left`: what is free on a node of which so much is held.
    pub(crate) fn check<'a>(
        &self,
        nodes: impl Iterator<Item = (&'a Node, &'a Held)>,
        left: impl Fn(&'a Node, &'a Held) -> NodeFree,
    ) {
        let (mut entries, mut has) = (0, Totals::default());
        let mut free_milli = vec![0; self.classes.len()];
        for ((node, held), known) in nodes.zip(&self.nodes) {
            let name = &node.name;
            let classes = known.class_of.iter().map(|class| &self.classes[usize::from(*class)]);
            assert!(
                classes.eq(node.inventory.devices.iter().map(|device| &device.class)),
                "classes of {name}"
            );
            let islands = node.inventory.devices.iter().filter(|device| device.island.is_some());
            assert_eq!(known.is_linked, islands.count() != 0, "whether {name} has islands");
            assert_eq!(known.is_well, node.inventory.is_well(), "whether {name} is well");
            let free = left(node, held);
            assert_eq!(known.free, free, "what is free on {name}");
            assert_eq!(known.entry.is_some(), node.takes_work(), "whether {name} is indexed");
            if known.entry.is_none() {
                continue;
            }
            let mut gaps = Vec::new();
            let entry = summary(node.id, &free, known, &self.classes, &mut gaps);
            assert_eq!(known.entry, Some(entry), "the entry of {name}");
            let worth = worth_milli(&self.prices, &free, &self.classes);
            assert_eq!(known.worth_milli, worth, "what {name} is worth");
            let indexed = known.groups.iter().map(|group| self.gaps[*group as usize].0);
            assert!(indexed.eq(gaps.iter().copied()), "the gaps of {name}");
            for group in &known.groups {
                let (gap, group) = &self.gaps[*group as usize];
                let entry = entry.for_gap(gap, &self.classes, worth);
                assert!(group.iter().any(|other| *other == entry), "{name} in a group");
            }
            has += size(&node.inventory);
            entries += gaps.len();
            for device in accelerators(&free, &self.classes) {
                free_milli[usize::from(device.class)] += u64::from(device.compute_milli);
            }
        }
        let indexed: usize = self.gaps.iter().map(|(_, group)| group.iter().count()).sum();
        assert_eq!(indexed, entries, "entries of the index");
        assert_eq!(self.free_milli, free_milli, "what is free of each class");
        assert_eq!(self.has, has, "what nodes that take work have");
        assert_eq!(self.grain, grain(&self.prices, has), "whom cores suffice");
        let mut figures = vec![Figure::default(); self.classes.len()];
        for node in &self.nodes {
            for (device, class) in node.inventory.devices.iter().zip(&node.class_of) {
                figures[usize::from(*class)].add(Figure::of(device));
            }
        }
        assert_eq!(self.figures, figures, "what the devices of each class say of their speed");
        let mut of_class = vec![BTreeMap::new(); self.classes.len()];
        for node in &self.nodes {
            for (class, size) in sizes(&node.inventory, &node.class_of) {
                *of_class[usize::from(class)].entry(size).or_default() += 1;
            }
        }
        assert_eq!(self.sizes, of_class, "how large nodes are");
    }
}

mod choose;
mod free;
mod gaps;
mod offers;
#[cfg(test)]
mod tests;
