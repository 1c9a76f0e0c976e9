//! What is free on one node.

use std::sync::Arc;

use crate::nodes::{Held, HeldDevice, Node};
use crate::types::*;

/// What is free on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFree {
    /// Healthy devices that are not wholly held, by index, ascending.
    pub devices: Vec<DeviceFree>,
    /// Thousandths of a core.
    pub cpus_milli: u64,
    /// Main memory, in bytes.
    pub memory_bytes: u64,
    /// That workers hold, ascending.
    pub(in crate::plan) ports: Vec<u16>,
}

/// What is free of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceFree {
    /// Index on its node.
    pub index: u16,
    /// Its class, as the room numbers them.
    pub(in crate::plan) class: u16,
    /// Of its compute, in thousandths; 1,000: nothing of the device is held.
    pub compute_milli: u32,
    /// Of its memory, in bytes.
    pub memory_bytes: u64,
}

impl DeviceFree {
    /// The part of the device that both its free compute and its free memory allow, in thousandths.
    pub(in crate::plan) fn share_milli(&self, class: &DeviceClass) -> u64 {
        let memory = (u128::from(self.memory_bytes) * 1000).checked_div(class.memory_bytes.into());
        u64::from(self.compute_milli).min(memory.unwrap_or(1000) as u64)
    }

    /// Whether the device can take what is asked of it; `None`: all.
    pub fn takes(&self, slice: Option<Slice>, class: &DeviceClass) -> bool {
        self.has(slice.map(|slice| slice.granted(class)))
    }

    /// Whether so much of it is free; `None`: all.
    pub(in crate::plan) fn has(&self, granted: Option<Slice>) -> bool {
        match granted {
            None => self.compute_milli == 1000,
            Some(granted) => {
                granted.compute_milli <= self.compute_milli && granted.memory_bytes <= self.memory_bytes
            }
        }
    }
}

impl NodeFree {
    /// Number of ports that workers hold.
    pub fn ports_held(&self) -> u32 {
        self.ports.len() as u32
    }

    /// Counts what is free on a node of which so much is held. Looks at its devices only if one of them takes no work.
    ///
    /// * `class_of`: of its devices, by index.
    /// * `all_take_work`: whether no device has a fault or is cordoned.
    pub(super) fn count(
        &mut self,
        node: &Node,
        held: &Held,
        (classes, class_of): (&[Arc<DeviceClass>], &[u16]),
        all_take_work: bool,
    ) {
        let mut holds = held.devices.iter().peekable();
        self.devices.clear();
        for (index, class) in (0u16..).zip(class_of) {
            let held = holds.next_if(|(device, _)| *device == index).map(|(_, held)| *held);
            if held == Some(HeldDevice::Whole) || !(all_take_work || node.device_takes_work(index)) {
                continue;
            }
            let memory_bytes = classes[usize::from(*class)].memory_bytes;
            let (compute_milli, memory_bytes) = match held {
                Some(HeldDevice::Slices(held)) => {
                    (1000 - held.compute_milli, memory_bytes.saturating_sub(held.memory_bytes))
                }
                _ => (1000, memory_bytes),
            };
            if 0 < compute_milli {
                self.devices.push(DeviceFree { index, class: *class, compute_milli, memory_bytes });
            }
        }
        self.cpus_milli = u64::from(node.inventory.cpus_milli).saturating_sub(held.cpus_milli);
        self.memory_bytes = node.inventory.memory_bytes.saturating_sub(held.memory_bytes);
        self.ports.clear();
        self.ports.extend(held.ports.keys());
    }

    /// Takes what a rank holds.
    pub(in crate::plan) fn take(&mut self, rank: &Allocation) {
        for device in self.devices.iter_mut().filter(|device| rank.devices.contains(&device.index)) {
            device.compute_milli -= rank.slice.map_or(1000, |slice| slice.compute_milli);
            device.memory_bytes -= rank.slice.map_or(device.memory_bytes, |slice| slice.memory_bytes);
        }
        self.devices.retain(|device| 0 < device.compute_milli);
        self.cpus_milli -= u64::from(rank.cpus_milli);
        self.memory_bytes -= rank.memory_bytes;
        let at = self.ports.partition_point(|port| *port < rank.port);
        self.ports.insert(at, rank.port);
    }
}
