//! What is free on the nodes, as the baselines keep it.

use crate::replay::log::Rank;
use crate::replay::workload::{MAX_DEVICES, Spec, WHOLE, Workload};

/// What is free on one node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NodeState {
    /// Processor time, in thousandths of a core: free, and all.
    pub cpus_milli: (u32, u32),
    /// Main memory, in bytes: free, and all.
    pub memory_bytes: (u64, u64),
    /// Thousandths free, by device.
    pub free: [u16; MAX_DEVICES],
    /// Memory free, by device, in bytes. Looked at only by slices that ask for memory.
    pub free_memory: [u64; MAX_DEVICES],
    /// Number of devices.
    pub devices: u8,
    /// Their class, as a bit; 0 where there are none.
    pub class: u64,
    /// Jobs with devices on the node: parts of devices, then those of 1, 2, … devices.
    pub sizes: [u16; MAX_DEVICES + 1],
}

impl NodeState {
    /// Thousandths of the devices.
    pub fn free(&self) -> &[u16] {
        &self.free[..usize::from(self.devices)]
    }

    /// Thousandths of all devices together.
    pub fn free_milli(&self) -> u64 {
        self.free().iter().map(|free| u64::from(*free)).sum()
    }

    /// Devices of which nothing is used.
    pub fn whole_devices(&self) -> u64 {
        self.free().iter().filter(|free| **free == WHOLE).count() as u64
    }

    /// Whether a device has room for what a request takes of one.
    pub fn has_room(&self, device: usize, spec: &Spec) -> bool {
        spec.share_milli <= self.free[device]
            && (spec.slice_memory_bytes == 0 || spec.slice_memory_bytes <= self.free_memory[device])
    }

    /// Whether a rank fits.
    pub fn fits(&self, spec: &Spec) -> bool {
        if self.cpus_milli.0 < spec.cpus_milli || self.memory_bytes.0 < spec.memory_bytes {
            return false;
        }
        if spec.devices == 0 {
            return true;
        }
        let has_room = |device: &usize| self.has_room(*device, spec);
        self.class & spec.allowed != 0
            && usize::from(spec.devices) <= (0..usize::from(self.devices)).filter(has_room).count()
    }

    /// The first devices that have room, as bits; those of a request for whole devices.
    pub fn first_devices(&self, spec: &Spec) -> u16 {
        let roomy = (0..usize::from(self.devices)).filter(|device| self.has_room(*device, spec));
        roomy.take(spec.devices.into()).fold(0, |bits, device| bits | 1 << device)
    }

    /// The fullest device that has room for a slice; of equals the first.
    pub fn fullest_device(&self, spec: &Spec) -> Option<usize> {
        let roomy = (0..usize::from(self.devices)).filter(|device| self.has_room(*device, spec));
        roomy.min_by_key(|device| self.free[*device])
    }

    /// The emptiest device that has room for a slice; of equals the first.
    pub fn emptiest_device(&self, spec: &Spec) -> Option<usize> {
        let roomy = (0..usize::from(self.devices)).filter(|device| self.has_room(*device, spec));
        roomy.min_by_key(|device| WHOLE - self.free[*device])
    }

    fn size(spec: &Spec) -> usize {
        if spec.is_share() { 0 } else { spec.devices.into() }
    }

    /// Takes what a rank needs.
    pub fn take(&mut self, spec: &Spec, devices: u16) {
        self.cpus_milli.0 -= spec.cpus_milli;
        self.memory_bytes.0 -= spec.memory_bytes;
        for device in bits(devices) {
            self.free[device] -= spec.share_milli;
            self.free_memory[device] -= spec.slice_memory_bytes;
        }
        if 0 < spec.devices {
            self.sizes[NodeState::size(spec)] += 1;
        }
    }

    /// Gives back what a rank took.
    pub fn give(&mut self, spec: &Spec, devices: u16) {
        self.cpus_milli.0 += spec.cpus_milli;
        self.memory_bytes.0 += spec.memory_bytes;
        for device in bits(devices) {
            self.free[device] += spec.share_milli;
            self.free_memory[device] += spec.slice_memory_bytes;
        }
        if 0 < spec.devices {
            self.sizes[NodeState::size(spec)] -= 1;
        }
    }
}

/// The devices of a mask.
pub fn bits(mask: u16) -> impl Iterator<Item = usize> {
    (0..MAX_DEVICES).filter(move |device| mask >> device & 1 == 1)
}

/// All nodes, with a record of which changed.
#[derive(Clone, Debug)]
pub struct Pool {
    /// By node.
    pub nodes: Vec<NodeState>,
    /// Nodes that changed, one after the other.
    changes: Vec<u32>,
    /// By node, its last place in `changes`, and 1.
    last_change: Vec<u32>,
}

impl Pool {
    /// All nodes empty.
    pub fn new(workload: &Workload) -> Pool {
        let nodes: Vec<NodeState> = workload
            .nodes
            .iter()
            .map(|node| {
                let devices = usize::from(node.devices);
                let mut state = NodeState {
                    cpus_milli: (node.cpus_milli, node.cpus_milli),
                    memory_bytes: (node.memory_bytes, node.memory_bytes),
                    free: [0; MAX_DEVICES],
                    free_memory: [0; MAX_DEVICES],
                    devices: node.devices,
                    class: if 0 < devices { 1 << node.class } else { 0 },
                    sizes: [0; MAX_DEVICES + 1],
                };
                if 0 < devices {
                    state.free[..devices].fill(WHOLE);
                    state.free_memory[..devices].fill(workload.classes[usize::from(node.class)].memory_bytes);
                }
                state
            })
            .collect();
        let count = nodes.len();
        Pool { nodes, changes: Vec::new(), last_change: vec![0; count] }
    }

    fn changed(&mut self, node: u32) {
        self.changes.push(node);
        self.last_change[node as usize] = self.changes.len() as u32;
    }

    /// Takes what a rank needs.
    pub fn take(&mut self, spec: &Spec, rank: Rank) {
        self.nodes[rank.node as usize].take(spec, rank.devices);
        self.changed(rank.node);
    }

    /// Gives back what a rank took.
    pub fn give(&mut self, spec: &Spec, rank: Rank) {
        self.nodes[rank.node as usize].give(spec, rank.devices);
        self.changed(rank.node);
    }

    /// Number of changes so far.
    pub fn version(&self) -> usize {
        self.changes.len()
    }

    /// Nodes that changed after a version, each once.
    pub fn changed_since(&self, version: usize) -> impl Iterator<Item = usize> {
        let since = self.changes[version..].iter().zip(version as u32 + 1..);
        since.filter(|(node, at)| self.last_change[**node as usize] == *at).map(|(node, _)| *node as usize)
    }
}
