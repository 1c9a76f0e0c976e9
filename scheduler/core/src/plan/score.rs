//! What a placement costs the pool: the score by which nodes and devices are compared.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::fit::{DeviceFree, Free, NodeFree};
use super::price::{Prices, UNIT};
use crate::nodes::Node;
use crate::types::*;

/// How good a node is for a rank; the smallest wins. Fields in order of importance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    /// What the pool loses by it, in [`UNIT`]s of a thousandth of a device. See `Free::cost`.
    pub cost: i64,
    /// Free devices left on the node, in thousandths of one.
    pub devices_left_milli: u32,
    /// Free processor time left on the node, in thousandths of a core.
    pub cpus_left_milli: u64,
    /// Makes the choice unique.
    pub node: NodeId,
}

impl Free<'_> {
    pub(super) fn score(
        &self,
        node: &Node,
        left: &NodeFree,
        request: &Request,
        devices: Option<&DeviceRequest>,
    ) -> Option<Score> {
        let prices = self.cluster.prices();
        let chosen = choose(prices, node, left, request, devices)?;
        let cpus_milli = cpus_of(node, request, devices, &chosen);
        let taken_milli = match slice_on(node, devices, &chosen) {
            None => 1000 * chosen.len() as u32,
            Some(slice) => slice.compute_milli * chosen.len() as u32,
        };
        let left_milli: u32 = left.devices.iter().map(|device| device.compute_milli).sum();
        Some(Score {
            cost: self.cost(node, left, devices, &chosen, cpus_milli),
            devices_left_milli: left_milli - taken_milli,
            cpus_left_milli: left.cpus_milli - u64::from(cpus_milli),
            node: node.id,
        })
    }

    /// What the pool loses when a rank takes the chosen devices, in [`UNIT`]s of a thousandth of a device:
    ///
    /// * what the taken parts of devices could have brought beyond this rank ([`Prices::cost`]);
    /// * accelerators that are stranded: left without the processor time that is asked for with them;
    /// * of a class that is scarce for those who can use no other, their chance to miss it;
    /// * for ranks of whole devices, a little for every free one beside them, so that wide gaps stay wide.
    fn cost(
        &self,
        node: &Node,
        left: &NodeFree,
        devices: Option<&DeviceRequest>,
        chosen: &[u16],
        cpus_milli: u32,
    ) -> i64 {
        let prices = self.cluster.prices();
        let class = |index: u16| &node.inventory.devices[index as usize].class;
        let is_accelerator = |index: u16| class(index).vendor != Vendor::Cpu;
        let accelerators = || left.devices.iter().filter(|device| is_accelerator(device.index));
        let free_milli: i64 = accelerators().map(|device| i64::from(device.compute_milli)).sum();
        let slice = slice_on(node, devices, chosen);
        let takes_milli: i64 = match chosen.first() {
            Some(first) if is_accelerator(*first) => {
                let each = slice.map_or(1000, |slice| i64::from(slice.compute_milli));
                each * chosen.len() as i64
            }
            _ => 0,
        };
        // Devices that the free processor time does not suffice for.
        let stranded = |devices_milli: i64, cpus_milli: i64| match prices.cpus_milli_per_device as i64 {
            0 => 0,
            // Those that ask for less are served by what those that ask for more leave.
            each => (devices_milli * UNIT - cpus_milli * UNIT * 10_000 / (each * 9)).max(0),
        };
        let cpus = left.cpus_milli as i64;
        let mut cost =
            stranded(free_milli - takes_milli, cpus - i64::from(cpus_milli)) - stranded(free_milli, cpus);
        if takes_milli == 0 {
            // Others may need the accelerators with the processors.
            return cost + if free_milli == 0 { 0 } else { UNIT };
        }
        let first = class(chosen[0]);
        cost += self.scarcity().get(first).copied().unwrap_or(0) * takes_milli;
        match slice {
            Some(slice) => {
                let of = |index: &u16| left.devices.iter().find(|device| device.index == *index);
                cost + chosen
                    .iter()
                    .filter_map(of)
                    .map(|device| part_cost(prices, device, slice, first))
                    .sum::<i64>()
            }
            None => cost + UNIT * accelerators().filter(|device| device.compute_milli == 1000).count() as i64,
        }
    }

    /// For every class the chance, in [`UNIT`]s, that those who can use few classes miss what is taken of it: their
    /// part of the demand until the pool is full, over what is free for them. As the round found it.
    fn scarcity(&self) -> &BTreeMap<Arc<DeviceClass>, i64> {
        self.scarcity.get_or_init(|| {
            let choosy = &self.cluster.prices().choosy;
            if choosy.is_empty() {
                return BTreeMap::new();
            }
            let mut free: BTreeMap<Arc<DeviceClass>, u64> = BTreeMap::new();
            for node in self.cluster.nodes().iter().filter(|node| node.takes_work()) {
                for device in &self.on(node).devices {
                    let class = &node.inventory.devices[device.index as usize].class;
                    if class.vendor != Vendor::Cpu {
                        *free.entry(class.clone()).or_default() += u64::from(device.compute_milli);
                    }
                }
            }
            let all: u64 = free.values().sum();
            let mut scarcity: BTreeMap<Arc<DeviceClass>, i64> = BTreeMap::new();
            for (want, millionths) in choosy {
                let suits = || free.iter().filter(|(class, _)| want.accepts(class));
                if suits().count() == free.len() {
                    continue;
                }
                let suiting: u64 = suits().map(|(_, free)| free).sum();
                let expected = u128::from(all) * u128::from(*millionths) / 1_000_000;
                let chance = (expected * UNIT as u128 / u128::from(suiting.max(1))) as i64;
                for (class, _) in suits() {
                    *scarcity.entry(class.clone()).or_default() += chance;
                }
            }
            scarcity
        })
    }
}

/// What it costs to take a slice of the device: besides its loss of value, a little for what is left over and for
/// beginning a device, as what is learned is not all.
fn part_cost(prices: &Prices, device: &DeviceFree, slice: Slice, class: &DeviceClass) -> i64 {
    const BEGINS: i64 = 5;
    let free_milli = device.share_milli(class);
    let takes_milli = slice.share_milli(class).min(free_milli);
    let left_over = (free_milli - takes_milli) as i64 * UNIT / 10;
    let begins = if device.compute_milli == 1000 { BEGINS * UNIT } else { 0 };
    prices.cost(free_milli, takes_milli) + left_over + begins
}

/// Devices that a rank would take on the node, if it fits there: of the scarcest class that has enough.
pub(super) fn choose(
    prices: &Prices,
    node: &Node,
    left: &NodeFree,
    request: &Request,
    devices: Option<&DeviceRequest>,
) -> Option<Vec<u16>> {
    let labelled = |(key, value): &(Name, Name)| node.inventory.labels.get(key) == Some(value);
    if left.memory_bytes < request.memory_bytes || !request.labels.iter().all(labelled) {
        return None;
    }
    let fits = |chosen: &Vec<u16>| u64::from(cpus_of(node, request, devices, chosen)) <= left.cpus_milli;
    let Some(want) = devices else { return Some(Vec::new()).filter(fits) };
    let mut classes: BTreeMap<&DeviceClass, Vec<DeviceFree>> = BTreeMap::new();
    for device in &left.devices {
        let class = &*node.inventory.devices[device.index as usize].class;
        if want.accepts(class) && device.takes(want.slice, class) {
            classes.entry(class).or_default().push(*device);
        }
    }
    let enough = classes.into_values().filter(|devices| usize::from(want.count) <= devices.len());
    let mut chosen = enough.min_by_key(Vec::len)?;
    if let Some(slice) = want.slice {
        // Those that lose least by it; whole devices are all alike.
        let class = &node.inventory.devices[chosen[0].index as usize].class;
        let slice = slice.granted(class);
        chosen.sort_by_cached_key(|device| (part_cost(prices, device, slice, class), device.index));
    }
    let mut chosen: Vec<u16> = chosen.iter().map(|device| device.index).take(want.count.into()).collect();
    chosen.sort_unstable();
    Some(chosen).filter(fits)
}

/// What a rank is given of each of its devices; `None`: all.
pub(super) fn slice_on(node: &Node, devices: Option<&DeviceRequest>, chosen: &[u16]) -> Option<Slice> {
    let class = &node.inventory.devices[*chosen.first()? as usize].class;
    devices?.slice.map(|slice| slice.granted(class))
}

/// Processor time of a rank: what it asks for, but at least the cores that are its devices.
pub(super) fn cpus_of(
    node: &Node,
    request: &Request,
    devices: Option<&DeviceRequest>,
    chosen: &[u16],
) -> u32 {
    let is_core = |index: &&u16| node.inventory.devices[**index as usize].class.vendor == Vendor::Cpu;
    let each = slice_on(node, devices, chosen).map_or(1000, |slice| slice.compute_milli);
    request.cpus_milli.max(each * chosen.iter().filter(is_core).count() as u32)
}
