//! What a placement costs the pool: the score by which nodes and devices are compared.
//!
//! In [`UNIT`]s of a thousandth of a device, a rank on a node costs
//!
//! * what the taken parts of devices could have brought beyond this rank ([`Prices::cost`]);
//! * accelerators that are stranded: left without the processor time that is asked for with them ([`Strand`]);
//! * of a class that is scarce for those who can use no other, their chance to miss it ([`scarcity`]);
//! * for ranks of whole devices, a little for every free one on the node, so that wide gaps stay wide.

use super::index::Gap;
use super::price::{CORES, Prices, Totals, UNIT, WHOLE};
use super::room::DeviceFree;
use crate::types::*;

/// How good a node is for a rank; the smallest wins. Fields in order of importance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    /// What the pool loses by it, in [`UNIT`]s of a thousandth of a device.
    pub cost: i64,
    /// Free devices left on the node, in thousandths of one.
    pub devices_left_milli: u32,
    /// Free processor time left on the node, in thousandths of a core.
    pub cpus_left_milli: u64,
    /// Makes the choice unique.
    pub node: NodeId,
}

/// How much what is whole is worth beyond its parts, in thousandths of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Weights {
    /// Beginning a device that nobody holds a part of.
    begins: i64,
    /// Every whole device beside those that are taken.
    whole: i64,
    /// Beginning a node that is idle, by less than half of it.
    pub breaks: i64,
    /// Taking devices of several islands: slower for as long as the rank runs.
    split: i64,
}

impl Weights {
    /// Where nothing is known of wide jobs to come: a hint, as what is learned is not all.
    pub const HINTS: Weights = Weights { begins: 5, whole: 1, breaks: 0, split: 100 };
    /// Where wide jobs come and go, the next one is better off with a whole node than the pool with a good fit.
    pub const PROTECT: Weights = Weights { begins: 50, whole: 50, breaks: 1000, split: 100 };

    /// Of taking `takes` devices of a node that has `all` whole ones.
    pub fn whole_cost(&self, all: u16, idle: bool, takes: u16) -> i64 {
        let breaks = if idle && 2 * u32::from(takes) <= u32::from(all) { self.breaks } else { 0 };
        (i64::from(all) * self.whole + breaks) * UNIT
    }

    /// Of taking several devices that are of several islands.
    pub fn split_cost(&self, is_split: bool) -> i64 {
        if is_split { self.split * UNIT } else { 0 }
    }
}

impl Default for Weights {
    fn default() -> Weights {
        Weights::HINTS
    }
}

/// What a rank takes where it is given devices of some class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Take {
    /// How many.
    pub count: u16,
    /// Of each; `None`: all.
    pub slice: Option<Slice>,
    /// The larger share of the slice, in thousandths of a device.
    share_milli: u64,
    /// Whether the devices are cores.
    pub cores: bool,
    /// Whether they must be of one island.
    pub one_island: bool,
}

impl Take {
    /// `None`: the class will not do.
    pub fn of(want: &DeviceRequest, class: &DeviceClass) -> Option<Take> {
        let slice = want.slice.map(|slice| slice.granted(class));
        let share_milli = slice.map_or(1000, |slice| slice.share_milli(class));
        let cores = class.vendor == Vendor::Cpu;
        let one_island = want.one_island && 1 < want.count;
        want.accepts(class).then_some(Take { count: want.count, slice, share_milli, cores, one_island })
    }

    /// Whether a device has enough left.
    pub fn fits(&self, device: &DeviceFree) -> bool {
        device.has(self.slice)
    }

    /// Whether so many whole devices suffice, of which so many are in the fullest island.
    fn fits_whole(&self, count: u16, island: u16) -> bool {
        self.slice.is_none() && self.count <= if self.one_island { island } else { count }
    }

    /// Of all its devices together, in thousandths of one.
    pub fn devices_milli(&self) -> u32 {
        u32::from(self.count) * self.slice.map_or(1000, |slice| slice.compute_milli)
    }

    /// Of accelerators.
    pub fn accelerators_milli(&self) -> u32 {
        if self.cores { 0 } else { self.devices_milli() }
    }

    /// What it counts against its queue: 1,000 a whole device, the larger share of a slice.
    pub fn charge_milli(&self) -> u64 {
        u64::from(self.count) * self.share_milli
    }

    /// Processor time of the rank: what it asks for, but at least the cores that are its devices.
    pub fn cpus_milli(&self, request: &Request) -> u32 {
        request.cpus_milli.max(if self.cores { self.devices_milli() } else { 0 })
    }

    /// What it costs to take a slice of the device: besides its loss of value, a little for what is left over and for
    /// beginning a device, as what is learned is not all.
    pub fn part_cost(
        &self,
        prices: &Prices,
        weights: &Weights,
        device: &DeviceFree,
        class: &DeviceClass,
    ) -> i64 {
        let free_milli = device.share_milli(class);
        let takes_milli = self.share_milli.min(free_milli);
        let left_over = (free_milli - takes_milli) as i64 * UNIT / 10;
        let begins = if device.compute_milli == 1000 { weights.begins * UNIT } else { 0 };
        prices.cost(free_milli, takes_milli) + left_over + begins
    }

    /// What a gap costs that the rank would take; `None`: it is no gap for it.
    ///
    /// Defined for whole devices, and for a slice of one: those of several have no gap of their own.
    pub fn gap_cost(
        &self,
        prices: &Prices,
        weights: &Weights,
        gap: &Gap,
        class: &DeviceClass,
    ) -> Option<i64> {
        match *gap {
            Gap::Whole { count, island, all, idle, .. } => {
                let is_split = 1 < self.count && (1..self.count).contains(&island);
                let fits = self.fits_whole(count, island);
                fits.then(|| weights.whole_cost(all, idle, self.count) + weights.split_cost(is_split))
            }
            Gap::WholeCores { count, island, beside, .. } => {
                self.fits_whole(count, island).then(|| beside_cost(beside))
            }
            Gap::Part { compute_milli, memory_bytes, beside, idle, .. } => {
                let device = DeviceFree { index: 0, class: 0, compute_milli, memory_bytes };
                (self.slice.is_some() && self.fits(&device)).then(|| match self.cores {
                    true => beside_cost(beside),
                    false => {
                        self.part_cost(prices, weights, &device, class)
                            + if idle { weights.breaks * UNIT } else { 0 }
                    }
                })
            }
            Gap::Cores { .. } => None,
        }
    }
}

/// Others may need the free accelerators beside the processors.
pub(super) fn beside_cost(beside: bool) -> i64 {
    if beside { UNIT } else { 0 }
}

/// What a rank does to the balance of a node.
///
/// The imbalance of a node is the worth of its free accelerators less that of its free processor time: above 0,
/// accelerators are stranded. A rank that takes more of accelerators than of processor time relieves a node that has
/// too few processors; one that takes less strands accelerators, unless processor time is plenty.
///
/// Where a pool has too few cores for what is asked for ([`grain`]), it counts too how many of those who want an accelerator
/// the cores that are left beside it suffice: balance alone takes 7 and 8 of them for as good as 3 and 12.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strand<'a> {
    /// What is added to the imbalance.
    shift: i64,
    /// Whether processor time is worth anything.
    counts: bool,
    /// What is taken of accelerators, and of processor time.
    accelerators_milli: i64,
    cpus_milli: i64,
    /// See [`grain`].
    grain: &'a [i64],
}

/// What a rank finds on a node: free accelerators, as it counts them, and free processor time, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beside {
    pub free_milli: i64,
    pub cpus_milli: i64,
}

impl Beside {
    pub fn imbalance(&self, core_value: i64) -> i64 {
        self.free_milli * UNIT - self.cpus_milli * core_value
    }
}

impl<'a> Strand<'a> {
    pub fn of(accelerators_milli: u32, cpus_milli: u32, core_value: i64, grain: &'a [i64]) -> Strand<'a> {
        let (accelerators_milli, cpus_milli) = (i64::from(accelerators_milli), i64::from(cpus_milli));
        let shift = cpus_milli * core_value - accelerators_milli * UNIT;
        Strand { shift, counts: core_value != 0, accelerators_milli, cpus_milli, grain }
    }

    /// Accelerators that it strands on a node that has room for it; below 0: that it relieves.
    pub fn cost(&self, node: Beside, core_value: i64) -> i64 {
        self.balance(node.imbalance(core_value)) + self.unserved(node)
    }

    fn balance(&self, imbalance: i64) -> i64 {
        if self.counts { (imbalance + self.shift).max(0) - imbalance.max(0) } else { 0 }
    }

    /// What part of those who want an accelerator so many cores do not suffice.
    fn lacks(&self, cpus_milli: i64) -> i64 {
        self.grain[(cpus_milli.max(0) as usize / 1000).min(CORES)]
    }

    fn unserved(&self, node: Beside) -> i64 {
        if self.grain.is_empty() {
            return 0;
        }
        let left =
            (node.free_milli - self.accelerators_milli) * self.lacks(node.cpus_milli - self.cpus_milli);
        (left - node.free_milli * self.lacks(node.cpus_milli)) * (UNIT / WHOLE)
    }

    /// The least cost that there can be. It falls with the imbalance if the shift is below 0, else it rises.
    pub fn least(&self) -> i64 {
        let relieves = if self.grain.is_empty() { 0 } else { self.accelerators_milli * UNIT };
        if self.counts { self.shift.min(0) - relieves } else { -relieves }
    }

    /// The least cost on nodes of an imbalance in `balance`, with at least `least` and at most `most` of both.
    pub fn least_cost(&self, balance: (i64, i64), least: Beside, most_cpus_milli: i64) -> i64 {
        let balance = self.balance(if self.shift < 0 { balance.1 } else { balance.0 });
        if self.grain.is_empty() {
            return balance;
        }
        let fewest = (least.cpus_milli - self.cpus_milli).max(0);
        let worse = self.lacks(most_cpus_milli - self.cpus_milli) - self.lacks(least.cpus_milli);
        let unserved = least.free_milli * worse.max(0) - self.accelerators_milli * self.lacks(fewest);
        balance + unserved * (UNIT / WHOLE)
    }
}

/// By cores up to [`CORES`], for what part of those who want an accelerator these do not suffice, in parts of [`WHOLE`]; empty
/// where the pool has more than enough cores beside its accelerators for all that is asked for.
///
/// It begins to count where 7 % of the cores would be left, and counts in full where they just suffice.
///
/// * `has`: what all nodes have that take work.
pub(super) fn grain(prices: &Prices, has: Totals) -> Vec<i64> {
    const BEGINS: u128 = 930;
    const FULL: u128 = 1000;
    let asked = u128::from(prices.asked.cpus_milli) * u128::from(has.devices_milli) * 1000;
    let permille = asked.checked_div(u128::from(prices.asked.devices_milli) * u128::from(has.cpus_milli));
    let counts = permille.unwrap_or(0).clamp(BEGINS, FULL) - BEGINS;
    if counts == 0 {
        return Vec::new();
    }
    prices.served.iter().map(|served| (WHOLE - served) * counts as i64 / (FULL - BEGINS) as i64).collect()
}

/// For every class the chance, in [`UNIT`]s, that those who can use few classes miss what is taken of it: their part of
/// the demand until the pool is full, over what is free for them.
///
/// * `free_milli`: free of each class of accelerators, in thousandths of a device.
/// * `choosy`: sets of classes, and which part of the demand, in millionths, can use no others.
pub(super) fn scarcity(free_milli: &[u64], choosy: &[(Vec<u16>, u64)]) -> Vec<i64> {
    /// Of one set: enough to keep everybody else out, and far from what a sum of costs can hold.
    const MOST: u64 = 64 * UNIT as u64;
    let all: u64 = free_milli.iter().sum();
    let mut scarcity = vec![0; free_milli.len()];
    for (classes, millionths) in choosy {
        let free: u64 = classes.iter().map(|class| free_milli[usize::from(*class)]).sum();
        let chance = (part_of(all, *millionths) / free.max(1)).min(MOST) as i64;
        classes.iter().for_each(|class| scarcity[usize::from(*class)] += chance);
    }
    scarcity
}

/// So many millionths of it, in [`UNIT`]s.
fn part_of(all: u64, millionths: u64) -> u64 {
    // UNIT / 1,000,000 as a fraction in its lowest terms: the product hardly ever needs more than 64 bits.
    const OVER: u64 = UNIT as u64 / 64;
    const UNDER: u64 = 1_000_000 / 64;
    match all.checked_mul(millionths).and_then(|product| product.checked_mul(OVER)) {
        Some(product) => product / UNDER,
        None => {
            let product = u128::from(all) * u128::from(millionths) * u128::from(OVER);
            u64::try_from(product / u128::from(UNDER)).unwrap_or(u64::MAX)
        }
    }
}

/// Devices chosen on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub score: Score,
    /// Ascending.
    pub devices: Vec<u16>,
    /// `None`: the rank takes no devices.
    pub take: Option<Take>,
    pub cpus_milli: u32,
}

impl Chosen {
    /// What the rank then holds.
    pub fn allocation(self, node: NodeId, request: &Request, port: u16) -> Allocation {
        Allocation {
            rank: 0,
            node,
            charge_milli: self.take.as_ref().map_or(self.cpus_milli.into(), Take::charge_milli),
            devices: self.devices,
            slice: self.take.and_then(|take| take.slice),
            cpus_milli: self.cpus_milli,
            memory_bytes: request.memory_bytes,
            port,
            worker: RankState::Assigned,
            since: Time(0),
            restart_at: None,
            hasty: 0,
        }
    }
}
