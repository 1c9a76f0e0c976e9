//! A node as the index knows it: its gaps, and what is free beside them.

use super::*;
use crate::plan::price::Rank;

pub(super) fn accelerators<'a>(
    free: &'a NodeFree,
    classes: &'a [Arc<DeviceClass>],
) -> impl Iterator<Item = &'a DeviceFree> {
    free.devices.iter().filter(|device| classes[usize::from(device.class)].vendor != Vendor::Cpu)
}

/// How large a node is for ranks of a class of its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Size {
    devices: u16,
    cpus_milli: u32,
    memory_bytes: u64,
}

impl Size {
    /// Whether a rank fits when nobody else is there.
    pub(super) fn takes(&self, rank: &Rank) -> bool {
        rank.devices.count <= self.devices
            && rank.cpus_milli <= self.cpus_milli
            && rank.memory_bytes <= self.memory_bytes
    }
}

/// For each class of a node's devices how large it is.
pub(super) fn sizes(inventory: &Inventory, class_of: &[u16]) -> BTreeMap<u16, Size> {
    let Inventory { cpus_milli, memory_bytes, .. } = *inventory;
    let mut sizes = BTreeMap::new();
    for class in class_of {
        let size = sizes.entry(*class).or_insert(Size { devices: 0, cpus_milli, memory_bytes });
        size.devices += 1;
    }
    sizes
}

/// What a node has.
pub(super) fn size(inventory: &Inventory) -> Totals {
    let accelerators = inventory.devices.iter().filter(|device| device.class.vendor != Vendor::Cpu);
    Totals { devices_milli: 1000 * accelerators.count() as u64, cpus_milli: inventory.cpus_milli.into() }
}

/// What can still be made of a node's free accelerators, in thousandths of one.
pub(super) fn worth_milli(prices: &Prices, free: &NodeFree, classes: &[Arc<DeviceClass>]) -> u32 {
    prices.worth_milli(accelerators(free, classes).map(|device| device.compute_milli.into()))
}

/// Whether who takes the gap takes no accelerator.
pub(super) fn takes_none(gap: &Gap, classes: &[Arc<DeviceClass>]) -> bool {
    gap.class().is_none_or(|class| classes[usize::from(class)].vendor == Vendor::Cpu)
}

impl Entry {
    /// As the group of a gap has it.
    pub(super) fn for_gap(self, gap: &Gap, classes: &[Arc<DeviceClass>], worth_milli: u32) -> Entry {
        let free_milli = if takes_none(gap, classes) { worth_milli } else { self.free_milli };
        Entry { free_milli, ..self }
    }
}

/// How many of some devices of a node are in each island; those in none are left out.
pub(super) fn islands(devices: &[Device], some: impl Iterator<Item = u16>) -> BTreeMap<u16, u16> {
    let mut islands = BTreeMap::new();
    for island in some.filter_map(|index| devices[usize::from(index)].island) {
        *islands.entry(island).or_default() += 1;
    }
    islands
}

/// A node as its groups know it.
///
/// * `gaps`: those that it has, ascending.
pub(super) fn summary(
    id: NodeId,
    free: &NodeFree,
    node: &RoomNode,
    classes: &[Arc<DeviceClass>],
    gaps: &mut Vec<Gap>,
) -> Entry {
    let free_milli: u32 = accelerators(free, classes).map(|device| device.compute_milli).sum();
    let entry = Entry {
        devices_milli: free.devices.iter().map(|device| device.compute_milli).sum(),
        cpus_milli: u32::try_from(free.cpus_milli).unwrap_or(u32::MAX),
        node: id,
        free_milli,
        memory_bytes: free.memory_bytes,
    };
    let all = accelerators(free, classes).filter(|device| device.compute_milli == 1000).count() as u16;
    let beside = free_milli != 0;
    let idle = 1 < all && usize::from(all) == node.class_of.len();
    gaps.clear();
    gaps.push(Gap::Cores { beside });
    for &DeviceFree { class, compute_milli, memory_bytes, .. } in &free.devices {
        let cores = classes[usize::from(class)].vendor == Vendor::Cpu;
        gaps.push(Gap::Part {
            class,
            compute_milli,
            memory_bytes,
            beside: cores && beside,
            idle: idle && !cores,
        });
        if compute_milli != 1000 {
            continue;
        }
        let count = |gap: &mut Gap| match gap {
            Gap::Whole { class: of, count, .. } | Gap::WholeCores { class: of, count, .. }
                if *of == class =>
            {
                *count += 1;
                true
            }
            _ => false,
        };
        if !gaps.iter_mut().any(count) {
            gaps.push(match cores {
                true => Gap::WholeCores { class, count: 1, island: 0, beside },
                false => Gap::Whole { class, count: 1, island: 0, all, idle },
            });
        }
    }
    if node.is_linked {
        for gap in gaps.iter_mut() {
            if let Gap::Whole { class, island, .. } | Gap::WholeCores { class, island, .. } = gap {
                let whole = |device: &&DeviceFree| device.class == *class && device.compute_milli == 1000;
                let whole = free.devices.iter().filter(whole).map(|device| device.index);
                *island = islands(&node.inventory.devices, whole).into_values().max().unwrap_or(0);
            }
        }
    }
    gaps.sort_unstable_by_key(Gap::key);
    gaps.dedup();
    entry
}
