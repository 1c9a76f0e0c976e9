//! What is replayed: nodes, and jobs that arrive.

use std::collections::BTreeMap;

use aquifer_core::{DeviceClass, Name, Vendor};

/// Devices of a node, at most: they fit a bit mask.
pub const MAX_DEVICES: usize = 16;

/// Classes of devices of a workload, at most: they fit a bit mask.
pub const MAX_CLASSES: usize = 64;

/// A whole device, in thousandths.
pub const WHOLE: u16 = 1000;

/// One node. All its devices are of one class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Unique name.
    pub name: Name,
    /// Processor time, in thousandths of a core.
    pub cpus_milli: u32,
    /// Main memory, in bytes.
    pub memory_bytes: u64,
    /// Number of devices.
    pub devices: u8,
    /// Their class, an index of [`Workload::classes`]. Means nothing where there are no devices.
    pub class: u8,
}

/// A kind of device that a job accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Want {
    /// Required maker.
    pub vendor: Option<Vendor>,
    /// Required model, or its first words.
    pub model: Option<Name>,
}

/// What each rank of a job asks for. Equal requests are one [`Spec`].
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spec {
    /// Ranks, placed all together or not at all; at least 1.
    pub ranks: u32,
    /// Processor time of a rank, in thousandths of a core.
    pub cpus_milli: u32,
    /// Main memory of a rank, in bytes.
    pub memory_bytes: u64,
    /// Devices of a rank; 0 for none.
    pub devices: u8,
    /// Part of each device, in thousandths, `1..=1000`; less than 1000 only with one device.
    pub share_milli: u16,
    /// Device memory of a slice, in bytes; 0 where the trace does not say.
    pub slice_memory_bytes: u64,
    /// Kinds of device that will do, in order of preference. Empty: any.
    pub wants: Vec<Want>,
    /// Classes that will do, as bits by their index. Follows from `wants`.
    pub allowed: u64,
}

/// One arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Name in the trace.
    pub name: Name,
    /// When it arrives, in milliseconds from the beginning.
    pub at_ms: u64,
    /// How long it runs once it is placed, in milliseconds.
    pub run_ms: u64,
    /// What it asks for, an index of [`Workload::specs`].
    pub spec: u32,
    /// Queue that it is charged to, an index of [`Workload::queues`].
    pub queue: u16,
    /// Larger goes first.
    pub priority: i32,
    /// After so long it is ended, in milliseconds.
    pub time_limit_ms: Option<u64>,
}

/// Nodes and arrivals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Classes of devices.
    pub classes: Vec<DeviceClass>,
    /// Nodes; their order breaks ties between equal ones.
    pub nodes: Vec<Node>,
    /// Distinct requests.
    pub specs: Vec<Spec>,
    /// Names of queues.
    pub queues: Vec<Name>,
    /// What an hour of a device costs by its model, in thousandths, as [`aquifer_core::Tariff`] has it. Only the pool's own
    /// scheduler looks at it.
    pub prices: Vec<(Name, u64)>,
    /// Arrivals, in order of time.
    pub jobs: Vec<Job>,
    /// Requests from which a policy may learn what to expect, with how often each occurs: the trace that arrivals
    /// are drawn from. Never the order of arrivals.
    pub history: BTreeMap<u32, u64>,
}

/// Classes of jobs by size, as the figures group them.
pub const SIZES: [&str; 7] = ["cpu", "share", "1", "2", "4", "8", "other"];

impl Spec {
    /// Thousandths of devices over all ranks.
    pub fn devices_milli(&self) -> u64 {
        u64::from(self.ranks) * u64::from(self.devices) * u64::from(self.share_milli)
    }

    /// Whether it takes a part of one device.
    pub fn is_share(&self) -> bool {
        self.devices == 1 && self.share_milli < WHOLE
    }

    /// Its size, an index of [`SIZES`].
    pub fn size(&self) -> usize {
        match u64::from(self.devices) * u64::from(self.ranks) {
            0 => 0,
            1 if self.is_share() => 1,
            1 => 2,
            2 => 3,
            4 => 4,
            8 => 5,
            _ => 6,
        }
    }

    /// The kinds that will do, as text: `t4|v100m16`.
    pub fn wants_text(&self) -> String {
        let one = |want: &Want| match (&want.vendor, &want.model) {
            (Some(vendor), Some(model)) => format!("{vendor}:{model}"),
            (Some(vendor), None) => format!("{vendor}:"),
            (None, Some(model)) => model.to_string(),
            (None, None) => "any".into(),
        };
        self.wants.iter().map(one).collect::<Vec<_>>().join("|")
    }
}

impl Want {
    /// Whether devices of the class will do.
    pub fn accepts(&self, class: &DeviceClass) -> bool {
        let (vendor, model) = (self.vendor, self.model.clone());
        aquifer_core::DeviceRequest { count: 1, vendor, model, ..Default::default() }.accepts(class)
    }
}

impl Workload {
    /// The index of a class, entered if it is new.
    pub fn class(&mut self, class: DeviceClass) -> Option<u8> {
        let known = self.classes.iter().position(|known| *known == class);
        if known.is_none() && self.classes.len() == MAX_CLASSES {
            return None;
        }
        Some(known.unwrap_or_else(|| {
            self.classes.push(class);
            self.classes.len() - 1
        }) as u8)
    }

    /// Which classes a request accepts, as bits. To be called once all classes are known.
    pub fn allowed(&self, wants: &[Want]) -> u64 {
        let accepts = |class: &DeviceClass| wants.is_empty() || wants.iter().any(|want| want.accepts(class));
        let bits = self.classes.iter().enumerate().filter(|(_, class)| accepts(class));
        bits.fold(0, |bits, (at, _)| bits | 1 << at)
    }

    /// Fills in [`Spec::allowed`] for the classes that there are now.
    pub fn refresh_allowed(&mut self) {
        for at in 0..self.specs.len() {
            self.specs[at].allowed = self.allowed(&self.specs[at].wants);
        }
    }

    /// The same jobs on so many copies of the nodes.
    pub fn times(mut self, copies: u32) -> Workload {
        let nodes = self.nodes.clone();
        for copy in 1..copies {
            self.nodes.extend(nodes.iter().map(|node| {
                let name = format!("{}-{copy}", node.name).into();
                Node { name, ..node.clone() }
            }));
        }
        self
    }

    /// The index of a queue, entered if it is new.
    pub fn queue(&mut self, name: &str) -> u16 {
        let known = self.queues.iter().position(|known| **known == *name);
        known.unwrap_or_else(|| {
            self.queues.push(name.into());
            self.queues.len() - 1
        }) as u16
    }

    /// Thousandths of devices of all nodes.
    pub fn capacity_milli(&self) -> u64 {
        self.nodes.iter().map(|node| u64::from(node.devices) * u64::from(WHOLE)).sum()
    }

    /// What a job asks for.
    pub fn spec_of(&self, job: u32) -> &Spec {
        &self.specs[self.jobs[job as usize].spec as usize]
    }

    /// How long a job holds its resources once it is placed, in milliseconds.
    pub fn held_ms(&self, job: u32) -> u64 {
        let job = &self.jobs[job as usize];
        job.time_limit_ms.map_or(job.run_ms, |limit| limit.min(job.run_ms))
    }

    /// Counts the requests of the jobs, for [`Workload::history`].
    pub fn count_specs(&self) -> BTreeMap<u32, u64> {
        let mut counts = BTreeMap::new();
        self.jobs.iter().for_each(|job| *counts.entry(job.spec).or_default() += 1);
        counts
    }
}

/// Collects distinct requests.
#[derive(Clone, Debug, Default)]
pub struct SpecTable {
    index: BTreeMap<Spec, u32>,
}

impl SpecTable {
    /// The index of a request, entered if it is new.
    pub fn index(&mut self, specs: &mut Vec<Spec>, spec: Spec) -> u32 {
        *self.index.entry(spec).or_insert_with_key(|spec| {
            specs.push(spec.clone());
            specs.len() as u32 - 1
        })
    }
}
