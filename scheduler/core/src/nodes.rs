//! Nodes, their leases, and what is held on them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::directory::Directory;
use crate::emptying::{Emptying, Expiry, Size, SoonestFirst};
use crate::event::Availability;
use crate::inquiry::Blame;
use crate::sorted::Sorted;
use crate::tariff::Tariff;
use crate::types::*;

/// A machine with an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Identity within the pool.
    pub id: NodeId,
    /// The stable name that its agent registers under.
    pub name: Name,
    /// The agent whose name it is, as that calls itself over all its starts; empty: it does not.
    pub agent: Name,
    /// What it offers, as last reported.
    pub inventory: Arc<Inventory>,
    /// Whether its lease is running.
    pub up: bool,
    /// Start of the agent that reported last.
    pub boot: u64,
    /// Whether it takes work.
    pub availability: Availability,
    /// Unique names of devices from which an administrator keeps new work.
    pub cordoned: BTreeSet<Name>,
    /// Unique names of devices that were quarantined lately, and when. One that is well again stands here until it does
    /// not count any more.
    pub quarantined: BTreeMap<Name, Time>,
    /// Why the scheduler itself cordoned it; `None`: it did not.
    pub blame: Option<Blame>,
}

impl Node {
    /// The class of the devices that a rank on it holds; `None`: it holds none, or the node has them no more.
    pub fn class_of(&self, rank: &Allocation) -> Option<&Arc<DeviceClass>> {
        let device = self.inventory.devices.get(usize::from(*rank.devices.first()?))?;
        Some(&device.class)
    }

    /// A node that has not reported yet.
    pub fn new(id: NodeId, name: Name) -> Node {
        Node {
            id,
            name,
            agent: Name::default(),
            inventory: Arc::default(),
            up: false,
            boot: 0,
            availability: Availability::Open,
            cordoned: BTreeSet::new(),
            quarantined: BTreeMap::new(),
            blame: None,
        }
    }
}

/// Right of a live node to run its workers. Soft state: renewed by its messages, granted anew on restore.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lease {
    /// When it runs out.
    pub end: Time,
    /// Last message handled, of the node's current boot.
    pub seq: u64,
    /// Last whole report handled.
    pub full_seq: u64,
    /// The assignment that the agent last said it carries out.
    pub reported: Revision,
}

/// What placed jobs hold on a node. Derived from the jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Devices of which something is held, by index.
    pub devices: Sorted<u16, HeldDevice>,
    /// Thousandths of a core.
    pub cpus_milli: u64,
    /// Main memory, in bytes.
    pub memory_bytes: u64,
    /// Ports.
    pub ports: Sorted<u16>,
    /// Workers that are not known gone.
    pub workers: Sorted<WorkerId, Worker>,
    /// When ranks give back what they hold, at the latest.
    pub ends: Sorted<(Until, WorkerId)>,
    /// When they were placed: milliseconds, summed over them.
    pub since_sum: u64,
}

/// What reports and orders of a worker are about, so that those of a node look at no job to which nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worker {
    /// How far it is.
    pub state: RankState,
    /// See [`Span::plain_grace_ms`].
    pub plain_grace_ms: Option<u64>,
}

/// For how long a job holds its resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// When it was placed.
    pub since: Time,
    /// Until when, at the latest.
    pub until: Until,
    /// The grace of its workers while nothing else is to be said to them: all are to run, and need not know of each other.
    pub plain_grace_ms: Option<u64>,
}

/// The latest moment of something that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Until {
    /// A time limit ends it.
    Time(Time),
    /// It has no time limit.
    Unknown,
    /// It is a service, which does not end by itself.
    Never,
}

/// What is held of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum HeldDevice {
    Whole,
    /// Its slices, summed.
    Slices(Slice),
}

/// All nodes.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    /// Shared with copies of the cluster, as what-if questions make them.
    entries: Vec<Arc<Entry>>,
    emptying: Emptying,
    by_name: Directory,
    /// No lease runs out before this; `None`: no node is up.
    next_expiry: Option<Time>,
}

#[derive(Clone, Debug)]
struct Entry {
    node: Node,
    /// Whether none of its devices has a fault.
    is_well: bool,
    lease: Lease,
    held: Held,
    /// Version of its assignment.
    revision: Revision,
}

impl Node {
    /// What a rank on it counts for the usage of its queue, in thousandths of a reference device, rounded up: its
    /// charge, by the mean of what an hour of its devices counts; without devices by that of a core.
    pub fn worth_milli(&self, rank: &Allocation, tariff: &Tariff) -> u64 {
        let hour =
            |index: &u16| self.inventory.devices.get(usize::from(*index)).map(|it| tariff.hour_milli(it));
        let hours: u64 = rank.devices.iter().filter_map(hour).sum();
        match rank.devices.len() as u64 {
            0 => (rank.charge_milli * self.core_hour_milli(tariff)).div_ceil(1000),
            count => (rank.charge_milli * hours).div_ceil(1000 * count),
        }
    }

    /// What an hour of a core of it counts: as its first device that is one, or 1.
    fn core_hour_milli(&self, tariff: &Tariff) -> u64 {
        let core = self.inventory.devices.iter().find(|device| device.class.vendor == Vendor::Cpu);
        core.map_or(1, |core| tariff.hour_milli(core))
    }

    /// Whether an agent is another one than that whose node it is.
    fn is_of_another(&self, agent: &str) -> bool {
        !self.agent.is_empty() && !agent.is_empty() && *self.agent != *agent
    }

    /// Whether new work may be placed on it.
    pub fn takes_work(&self) -> bool {
        self.up && self.availability == Availability::Open
    }
}

impl Held {
    pub(crate) fn expiry(&self) -> Expiry {
        Expiry { until: self.until(), ranks: self.ends.len() as u64, since_sum: self.since_sum }
    }

    /// When all that is held is given back, at the latest.
    pub fn until(&self) -> Until {
        self.ends.keys().next_back().map_or(Until::Time(Time(0)), |(until, _)| *until)
    }

    /// Adds (or removes) what a rank holds.
    pub(crate) fn change(&mut self, worker: WorkerId, rank: &Allocation, span: Span, add: bool) {
        if add {
            for device in &rank.devices {
                self.take_device(worker, *device, rank.slice);
            }
            let earlier = self.ports.insert(rank.port, ());
            assert_eq!(earlier, None, "{worker}: port {} is held twice", rank.port);
            self.cpus_milli += u64::from(rank.cpus_milli);
            self.memory_bytes += rank.memory_bytes;
            self.set_worker(worker, rank.worker, span.plain_grace_ms);
            self.ends.insert((span.until, worker), ());
            self.since_sum += span.since.0;
        } else {
            for device in &rank.devices {
                give_device(&mut self.devices, *device, rank.slice);
            }
            self.ports.remove(&rank.port);
            self.cpus_milli -= u64::from(rank.cpus_milli);
            self.memory_bytes -= rank.memory_bytes;
            self.workers.remove(&worker);
            self.ends.remove(&(span.until, worker));
            self.since_sum -= span.since.0;
        }
    }
}

impl Held {
    /// A worker is so far.
    fn set_worker(&mut self, worker: WorkerId, state: RankState, plain_grace_ms: Option<u64>) {
        match state {
            RankState::Gone => _ = self.workers.remove(&worker),
            _ => _ = self.workers.insert(worker, Worker { state, plain_grace_ms }),
        }
    }

    /// # Panics
    /// When the device has not so much left.
    fn take_device(&mut self, worker: WorkerId, device: u16, slice: Option<Slice>) {
        let before = self.devices.get(&device).copied();
        let after = match (before, slice) {
            (None, None) => HeldDevice::Whole,
            (None, Some(slice)) => HeldDevice::Slices(slice),
            (Some(HeldDevice::Slices(held)), Some(slice)) => HeldDevice::Slices(Slice {
                compute_milli: held.compute_milli + slice.compute_milli,
                memory_bytes: held.memory_bytes + slice.memory_bytes,
            }),
            (Some(_), _) => panic!("{worker}: device {device} is held twice"),
        };
        if let HeldDevice::Slices(held) = after {
            assert!(held.compute_milli <= 1000, "{worker}: device {device} is held {held:?}");
        }
        self.devices.insert(device, after);
    }
}

/// Gives back what a rank held of a device.
pub(crate) fn give_device(devices: &mut Sorted<u16, HeldDevice>, device: u16, slice: Option<Slice>) {
    match (devices.get_mut(&device), slice) {
        (Some(HeldDevice::Slices(held)), Some(slice)) if slice.compute_milli < held.compute_milli => {
            held.compute_milli -= slice.compute_milli;
            held.memory_bytes -= slice.memory_bytes;
        }
        _ => _ = devices.remove(&device),
    }
}

impl Nodes {
    /// All nodes, by identity.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Node> {
        self.entries.iter().map(|entry| &entry.node)
    }

    /// Number of nodes ever seen.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no node was ever seen.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The node. Panics if it does not exist.
    pub fn get(&self, id: NodeId) -> &Node {
        &self.entries[id.0 as usize].node
    }

    /// Whether none of the node's devices has a fault.
    pub fn is_well(&self, id: NodeId) -> bool {
        self.entries[id.0 as usize].is_well
    }

    /// The node of that name.
    pub fn by_name(&self, name: &str) -> Option<NodeId> {
        self.by_name.find(name, |id| *self.get(id).name == *name)
    }

    /// Whether an agent that says that it is this node must not be it: the node is another one's, which is heard of, or whose
    /// workers may run on. What the one told of its workers would be taken for news of the other's.
    pub fn is_taken(&self, id: NodeId, agent: &str) -> bool {
        let entry = &self.entries[id.0 as usize];
        entry.node.is_of_another(agent) && (entry.node.up || !entry.held.workers.is_empty())
    }

    /// What is held on the node.
    pub fn held(&self, id: NodeId) -> &Held {
        &self.entries[id.0 as usize].held
    }

    /// Its lease, if it is up.
    pub fn lease(&self, id: NodeId) -> Option<Lease> {
        let entry = self.entries.get(id.0 as usize)?;
        entry.node.up.then_some(entry.lease)
    }

    /// Version of its assignment.
    pub fn revision(&self, id: NodeId) -> Revision {
        self.entries[id.0 as usize].revision
    }

    /// A bound: no lease runs out earlier.
    pub fn next_expiry(&self) -> Option<Time> {
        self.next_expiry
    }

    /// Enters a node. Its identity must be the next one.
    pub(crate) fn insert(&mut self, node: Node, revision: Revision) {
        assert_eq!(node.id.0 as usize, self.entries.len(), "identities have no gaps");
        let (lease, held) = (Lease::default(), Held::default());
        self.emptying.change(node.id, None, (Size::of(&node.inventory), held.expiry()));
        let is_well = node.inventory.is_well();
        let id = node.id;
        self.entries.push(Arc::new(Entry { node, is_well, lease, held, revision }));
        let entries = &self.entries;
        self.by_name.insert(id, |id| &entries[id.0 as usize].node.name);
    }

    pub(crate) fn change(&mut self, id: NodeId, change: impl FnOnce(&mut Node)) {
        let entry = self.entry_mut(id);
        let (before, expiry) = (Size::of(&entry.node.inventory), entry.held.expiry());
        change(&mut entry.node);
        entry.is_well = entry.node.inventory.is_well();
        let after = Size::of(&entry.node.inventory);
        if before != after {
            self.emptying.change(id, Some((before, expiry)), (after, expiry));
        }
    }

    pub(crate) fn set_revision(&mut self, id: NodeId, revision: Revision) {
        self.entry_mut(id).revision = revision;
    }

    /// Grants or renews a lease.
    pub(crate) fn set_lease(&mut self, id: NodeId, lease: Lease) {
        self.entry_mut(id).lease = lease;
        self.next_expiry = Some(self.next_expiry.map_or(lease.end, |next| next.min(lease.end)));
    }

    /// Nodes that are up with a lease that has run out. `O(nodes)`, at most once a lease's length.
    pub(crate) fn expired(&mut self, now: Time) -> Vec<NodeId> {
        if self.next_expiry.is_none_or(|next| now < next) {
            return Vec::new();
        }
        let up = self.entries.iter().filter(|entry| entry.node.up);
        self.next_expiry = up.clone().map(|entry| entry.lease.end).filter(|end| now < *end).min();
        up.filter(|entry| entry.lease.end <= now).map(|entry| entry.node.id).collect()
    }

    /// Enters what a rank holds.
    pub(crate) fn hold(&mut self, worker: WorkerId, rank: &Allocation, span: Span) {
        self.change_held(worker, rank, span, true);
    }

    /// Gives back what a rank held.
    pub(crate) fn release(&mut self, worker: WorkerId, rank: &Allocation, span: Span) {
        self.change_held(worker, rank, span, false);
    }

    fn change_held(&mut self, worker: WorkerId, rank: &Allocation, span: Span, add: bool) {
        let Entry { node, held, .. } = self.entry_mut(rank.node);
        let (size, before) = (Size::of(&node.inventory), held.expiry());
        held.change(worker, rank, span, add);
        let after = held.expiry();
        self.emptying.change(rank.node, Some((size, before)), (size, after));
    }

    /// In how many milliseconds the node is expected to be empty; `None`: not by itself.
    pub(crate) fn empty_in(&self, now: Time, id: NodeId) -> Option<u64> {
        self.held(id).expiry().empty_in(now)
    }

    /// Nodes that get empty by themselves, the soonest first. See [`Emptying::soonest`].
    pub(crate) fn soonest(&self, now: Time, sizes: Option<&BTreeSet<Size>>) -> SoonestFirst<'_> {
        self.emptying.soonest(now, sizes)
    }

    /// Checks what is derived from what is held against a recount.
    ///
    /// # Panics
    /// When it is not what it should be.
    pub(crate) fn check(&self) {
        let mut recount = Emptying::default();
        for Entry { node, held, is_well, .. } in self.entries.iter().map(|entry| &**entry) {
            assert_eq!(*is_well, node.inventory.is_well(), "whether {} is well", node.name);
            assert_eq!(self.by_name(&node.name), Some(node.id), "the node {}", node.name);
            recount.change(node.id, None, (Size::of(&node.inventory), held.expiry()));
        }
        assert_eq!(self.emptying, recount, "when nodes get empty");
    }

    /// A worker is so far; what it holds, it holds until all of its job are gone.
    ///
    /// * `plain_grace_ms`: see [`Span::plain_grace_ms`].
    pub(crate) fn set_worker(
        &mut self,
        worker: WorkerId,
        node: NodeId,
        state: RankState,
        plain_grace_ms: Option<u64>,
    ) {
        self.entry_mut(node).held.set_worker(worker, state, plain_grace_ms);
    }

    /// The job of a worker that is held has begun to stop, or runs again. See [`Span::plain_grace_ms`].
    pub(crate) fn set_plain(&mut self, worker: WorkerId, node: NodeId, plain_grace_ms: Option<u64>) {
        if let Some(known) = self.entry_mut(node).held.workers.get_mut(&worker) {
            known.plain_grace_ms = plain_grace_ms;
        }
    }

    fn entry_mut(&mut self, id: NodeId) -> &mut Entry {
        Arc::make_mut(&mut self.entries[id.0 as usize])
    }
}
