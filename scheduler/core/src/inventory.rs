//! What a node offers: its devices, by class, and what else its agent reports of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::{fmt, str::FromStr};

use crate::health::Fault;
use crate::types::{Allocation, DeviceRequest, Name};

/// Maker of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Vendor {
    Cpu,
    Nvidia,
    Amd,
    Ascend,
    Cambricon,
    Hygon,
    MooreThreads,
    Iluvatar,
    Enflame,
    MetaX,
    Kunlunxin,
    Biren,
    Intel,
    Gaudi,
    THead,
}

/// What makes devices interchangeable for placement.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceClass {
    /// Maker.
    pub vendor: Vendor,
    /// Model in lower case, words joined by hyphens, the most general first: `h100-80gb-hbm3`.
    pub model: Name,
    /// Memory of one device, in bytes.
    pub memory_bytes: u64,
}

/// One device of a node. Its index is its position in [`Inventory::devices`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What it is.
    pub class: Arc<DeviceClass>,
    /// The vendor's unique name of this very piece, or one made from its place in the machine.
    pub uuid: Name,
    /// Why it takes no new work; `None` for a healthy one.
    pub fault: Option<Fault>,
    /// How fast it is, in thousandths of the reference device: what an hour of it counts for the usage of a queue.
    /// At least 1; 1,000 where nobody knows.
    pub speed_milli: u32,
    /// Who says so: a measurement, a datasheet; for people.
    pub speed_source: Name,
    /// How fast it reads its memory, in GB/s; 0 where nobody knows.
    pub memory_gbs: u32,
    /// Number of its device node, by which its vendor's own files name it; 0 where there is none.
    pub number: u32,
    /// How well ranks with a part of it are kept from each other.
    pub isolation: Isolation,
    /// Devices of a node with the same number are linked directly (NVLink, XGMI, HCCS, MetaXLink); `None`: with none.
    pub island: Option<u16>,
    /// Where it hangs in its machine.
    pub locality: Locality,
}

/// Where a device hangs in its machine: those of a node with the same number are near each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// The PCIe switch above it; `None`: there is none, or nobody knows.
    pub switch: Option<u16>,
    /// The memory node that it hangs on; `None`: none is nearer than others, or nobody knows.
    pub numa_node: Option<u16>,
}

/// Who sees to it that a rank takes no more of a device than it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isolation {
    /// Nobody: the rank is told, and what it holds is counted.
    #[default]
    Advisory,
    /// The driver, or the kernel.
    Limited,
    /// The hardware; or nobody else is on the device.
    Hard,
}

/// What one device of a class was measured to do, by the worker's kernels, in whole numbers; 0: that was not measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Matrix products with factors of single precision, in MFLOP/s.
    pub f32_mflops: u64,
    /// With factors of bfloat16.
    pub bf16_mflops: u64,
    /// With weights of eight bits.
    pub int8_mflops: u64,
    /// Causal attention, in MFLOP/s.
    pub attention_mflops: u64,
    /// Bytes read from memory, in MB/s.
    pub memory_mbs: u64,
    /// From the host to the device, in MB/s.
    pub host_link_mbs: u64,
    /// Training of a model of 10.8 million parameters, in thousandths of a token a second.
    pub train_tokens_milli: u64,
    /// Decoding with it, in thousandths of a token a second.
    pub decode_tokens_milli: u64,
}

/// What a node offers, as its agent last reported it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Devices, at most 65,535.
    pub devices: Vec<Device>,
    /// Processor time, in thousandths of a core.
    pub cpus_milli: u32,
    /// Main memory, in bytes.
    pub memory_bytes: u64,
    /// Host name or IP address under which the node's workers reach each other.
    pub address: Name,
    /// Ports that workers of this node may listen on.
    pub ports: Ports,
    /// Labels of the node: rack, zone, whatever its administrator wrote.
    pub labels: BTreeMap<Name, Name>,
    /// What runs containers on it, with its version; empty: nothing does.
    pub engine: Name,
    /// What devices were measured to do, by their class; told to people. What counts is the speed of each device.
    pub measured: BTreeMap<Arc<DeviceClass>, Measured>,
}

/// A range of TCP ports, `first..=last`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
}

/// How fast the reference device, an NVIDIA A100 with 80 GB, reads its memory, in GB/s.
const REFERENCE_GBS: u32 = 2039;

impl Device {
    /// How fast it reads its memory, in thousandths of the reference device, at least 1; where nobody knows, as fast as it
    /// computes.
    pub fn memory_milli(&self) -> u64 {
        let milli = u64::from(self.memory_gbs) * 1000 / u64::from(REFERENCE_GBS);
        if self.memory_gbs == 0 { self.speed_milli.into() } else { milli.max(1) }
    }
}

impl Inventory {
    /// Whether no device has a fault.
    pub fn is_well(&self) -> bool {
        self.devices.iter().all(|device| device.fault.is_none())
    }

    /// How well a rank that holds these devices, or parts of them, is kept from others on them.
    pub fn isolation(&self, rank: &Allocation) -> Isolation {
        let of = |index: &u16| self.devices.get(usize::from(*index)).map(|device| device.isolation);
        let shared = rank.slice.and_then(|_| rank.devices.iter().filter_map(of).min());
        shared.unwrap_or(Isolation::Hard)
    }

    /// How well parts of any device that will do for a request are kept from each other; `None`: none will do.
    pub fn isolation_for(&self, want: &DeviceRequest) -> Option<Isolation> {
        let fit = self.devices.iter().filter(|device| want.accepts(&device.class));
        fit.map(|device| device.isolation).min()
    }

    /// Whether nothing but the figures of speed is different.
    pub fn differs_in_speed_alone(&self, other: &Inventory) -> bool {
        let mut same = other.clone();
        for (device, own) in same.devices.iter_mut().zip(&self.devices) {
            (device.speed_milli, device.speed_source) = (own.speed_milli, own.speed_source.clone());
            device.memory_gbs = own.memory_gbs;
        }
        same.measured = self.measured.clone();
        *self == same
    }
}

impl Vendor {
    /// All vendors, with their names.
    pub const ALL: [(Vendor, &'static str); 15] = [
        (Vendor::Cpu, "cpu"),
        (Vendor::Nvidia, "nvidia"),
        (Vendor::Amd, "amd"),
        (Vendor::Ascend, "ascend"),
        (Vendor::Cambricon, "cambricon"),
        (Vendor::Hygon, "hygon"),
        (Vendor::MooreThreads, "moore-threads"),
        (Vendor::Iluvatar, "iluvatar"),
        (Vendor::Enflame, "enflame"),
        (Vendor::MetaX, "metax"),
        (Vendor::Kunlunxin, "kunlunxin"),
        (Vendor::Biren, "biren"),
        (Vendor::Intel, "intel"),
        (Vendor::Gaudi, "gaudi"),
        (Vendor::THead, "t-head"),
    ];
}

/// A name that no vendor has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownVendor(pub String);

impl FromStr for Vendor {
    type Err = UnknownVendor;
    fn from_str(text: &str) -> Result<Vendor, UnknownVendor> {
        let known = Vendor::ALL.iter().find(|(_, name)| *name == text);
        known.map(|(vendor, _)| *vendor).ok_or_else(|| UnknownVendor(text.into()))
    }
}

impl Isolation {
    /// All of them, with their names.
    pub const ALL: [(Isolation, &'static str); 3] =
        [(Isolation::Advisory, "advisory"), (Isolation::Limited, "limited"), (Isolation::Hard, "hard")];
}

impl FromStr for Isolation {
    type Err = String;
    fn from_str(text: &str) -> Result<Isolation, String> {
        let known = Isolation::ALL.iter().find(|(_, name)| *name == text);
        known.map(|(isolation, _)| *isolation).ok_or_else(|| "expected hard, limited or advisory".into())
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Isolation::ALL[*self as usize].1)
    }
}

impl fmt::Display for UnknownVendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = Vendor::ALL.iter().map(|(_, name)| *name).collect();
        write!(f, "no vendor {:?}; known are {}", self.0, names.join(", "))
    }
}
impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Vendor::ALL.iter().find(|(vendor, _)| vendor == self).map(|(_, name)| *name);
        f.write_str(name.expect("every vendor is listed"))
    }
}
