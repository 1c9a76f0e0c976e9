//! Where a gang fits: best-fit packing, the whole gang or nothing.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::price::Prices;
use super::score::{Score, choose, cpus_of, slice_on};
use crate::cluster::Cluster;
use crate::jobs::Job;
use crate::nodes::{HeldDevice, Node, give_device};
use crate::types::*;

/// What a round can still hand out: the cluster's free resources, less what the round took.
#[derive(Clone)]
pub struct Free<'a> {
    pub(super) cluster: &'a Cluster,
    /// Nodes of which the round took something.
    changed: BTreeMap<NodeId, NodeFree>,
    /// Added by the round to what queues hold, in thousandths of a device.
    taken: BTreeMap<Name, u64>,
    /// Taken as if they had ended: what they hold is free.
    ended: BTreeSet<JobId>,
    /// The nodes that a request can take, by request and alternative. Brought up to date when they are used.
    ranked: RefCell<BTreeMap<Request, BTreeMap<Option<usize>, Ranked>>>,
    /// Nodes that changed, in the order in which they did.
    log: Vec<NodeId>,
    /// See [`Free::scarcity`].
    pub(super) scarcity: OnceCell<BTreeMap<Arc<DeviceClass>, i64>>,
}

/// The nodes that can take a rank of some request, best first.
#[derive(Clone, Default)]
struct Ranked {
    /// All, as they were at first. Those before `start` have moved.
    first: Vec<Score>,
    start: usize,
    /// Nodes that changed since, where they stand now; `None`: they can take no rank any more.
    moved: BTreeMap<NodeId, Option<Score>>,
    moved_best: BTreeSet<Score>,
    /// How much of the log of changes it has taken in; `None`: nothing is ranked yet.
    seen: Option<usize>,
}

/// What is free on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFree {
    /// Healthy devices that are not wholly held, by index, ascending.
    pub devices: Vec<DeviceFree>,
    /// Thousandths of a core.
    pub cpus_milli: u64,
    /// Main memory, in bytes.
    pub memory_bytes: u64,
    ports: BTreeSet<u16>,
}

/// What is free of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceFree {
    /// Index on its node.
    pub index: u16,
    /// Of its compute, in thousandths; 1,000: nothing of the device is held.
    pub compute_milli: u32,
    /// Of its memory, in bytes.
    pub memory_bytes: u64,
}

impl DeviceFree {
    /// The part of the device that both its free compute and its free memory allow, in thousandths.
    pub(super) fn share_milli(&self, class: &DeviceClass) -> u64 {
        let memory = (u128::from(self.memory_bytes) * 1000).checked_div(class.memory_bytes.into());
        u64::from(self.compute_milli).min(memory.unwrap_or(1000) as u64)
    }

    /// Whether the device can take what is asked of it; `None`: all.
    pub fn takes(&self, slice: Option<Slice>, class: &DeviceClass) -> bool {
        match slice.map(|slice| slice.granted(class)) {
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
}

/// Where all ranks of a job go.
#[derive(Clone, Debug)]
pub struct Placement {
    /// By rank.
    pub ranks: Vec<Allocation>,
    changed: Changed,
}

/// Why a job does not start now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// Free nodes can take only some of the ranks.
    RoomFor {
        /// Ranks that would fit now.
        ranks: u32,
        /// Ranks that the job has.
        of: u32,
    },
    /// Its queue, or one above that, would hold more than its limit. In thousandths of a device.
    #[allow(missing_docs)]
    QueueLimit { queue: Name, held: u64, wants: u64, limit: u64 },
}

/// Alternatives and orders of roles that are tried for one job, at most.
const MAX_TRIES: u32 = 64;

/// Places all ranks of a job, each on the fullest node that can take it, within the limits of its queue
/// and of those above it.
///
/// Ties go to the lowest node. All ranks of a role take the same alternative. Of the combinations of
/// alternatives, and of the orders in which roles choose their nodes, the first that fits. Exact for a job of
/// one role; of several, one whose ranks would have to be spread with foresight may be found not to fit.
/// `O(tries * nodes log nodes + ranks)`, and without the nodes for a request
/// that was placed before from the same free resources.
pub fn place(free: &Free, job: &Job) -> Result<Placement, Misfit> {
    let mut search = Search { free, job, tries: 0, most: 0, over_limit: None };
    let mut roles = vec![None; job.spec.roles.len()];
    match search.next_role(&mut roles, BTreeMap::new()) {
        Some(changed) => Ok(Placement { ranks: roles.into_iter().flatten().flatten().collect(), changed }),
        None => {
            Err(search.over_limit.unwrap_or(Misfit::RoomFor { ranks: search.most, of: job.spec.ranks() }))
        }
    }
}

/// The search through the alternatives of a job, and what it met on its way.
struct Search<'a> {
    free: &'a Free<'a>,
    job: &'a Job,
    tries: u32,
    /// Ranks of the fullest placement that was not whole.
    most: u32,
    /// Why the first whole placement was refused.
    over_limit: Option<Misfit>,
}

/// What is left on nodes of which a search took something.
type Changed = BTreeMap<NodeId, NodeFree>;
/// Ranks of the roles that a search has placed.
type Placed = [Option<Vec<Allocation>>];

impl Search<'_> {
    /// Places the roles that are not placed yet.
    fn next_role(&mut self, roles: &mut Placed, changed: Changed) -> Option<Changed> {
        if roles.iter().all(Option::is_some) {
            return self.is_within_limit(roles).then_some(changed);
        }
        for number in 0..roles.len() {
            if roles[number].is_some() {
                continue;
            }
            let devices = &self.job.spec.roles[number].request.devices;
            let none = devices.is_empty().then_some(None);
            for want in (0..devices.len()).map(Some).chain(none) {
                if let Some(changed) = self.place_role(number, want, roles, changed.clone()) {
                    return Some(changed);
                }
            }
            roles[number] = None;
        }
        None
    }

    fn place_role(
        &mut self,
        number: usize,
        alternative: Option<usize>,
        roles: &mut Placed,
        mut changed: Changed,
    ) -> Option<Changed> {
        if self.tries == MAX_TRIES {
            return None;
        }
        self.tries += 1;
        roles[number] = None;
        let earlier: usize = roles.iter().flatten().map(Vec::len).sum();
        let role = &self.job.spec.roles[number];
        let ranks = fill(self.free, &mut changed, self.job, role, alternative);
        self.most = self.most.max((earlier + ranks.len()) as u32);
        if ranks.len() < role.ranks as usize {
            return None;
        }
        roles[number] = Some(ranks);
        self.next_role(roles, changed)
    }

    /// Whether its queue, and every one above that, may hold as much more.
    fn is_within_limit(&mut self, roles: &Placed) -> bool {
        let wants = roles.iter().flatten().map(|ranks| charge(ranks)).sum();
        for queue in self.free.cluster.queues.line(&self.job.spec.queue) {
            let Some(limit) = queue.limit_milli else { continue };
            let held = self.free.held_by(&queue.name);
            if limit < held + wants {
                let queue = queue.name.clone();
                self.over_limit.get_or_insert(Misfit::QueueLimit { queue, held, wants, limit });
                return false;
            }
        }
        true
    }
}

/// What ranks count against their queue, in thousandths of a device.
fn charge(ranks: &[Allocation]) -> u64 {
    ranks.iter().map(|rank| rank.charge_milli).sum()
}

/// As many ranks of the role as fit, but no more than it has.
fn fill(
    free: &Free,
    changed: &mut Changed,
    job: &Job,
    role: &Role,
    alternative: Option<usize>,
) -> Vec<Allocation> {
    let devices = alternative.map(|index| &role.request.devices[index]);
    let score_of =
        |id: NodeId, left: &NodeFree| free.score(free.cluster.nodes().get(id), left, &role.request, devices);
    // Nodes of which an earlier role of the job took something stand elsewhere in the order.
    let mut own: Vec<Score> = changed.iter().filter_map(|(id, left)| score_of(*id, left)).collect();
    own.sort_unstable();
    let mut ranked = free.ranked.borrow_mut();
    let ranked = free.rank(&mut ranked, &role.request, alternative);
    let stays = |score: &&Score| !changed.contains_key(&score.node);
    let first = ranked.first[ranked.start..].iter().filter(|score| !ranked.moved.contains_key(&score.node));
    let mut first = first.filter(stays).copied().peekable();
    let mut moved = ranked.moved_best.iter().filter(stays).copied().peekable();
    let mut own = own.into_iter().peekable();
    let mut filled: Vec<(NodeId, NodeFree)> = Vec::new();
    let mut ranks = Vec::new();
    // Filling a node makes it fuller and changes no other: the order of the candidates stands.
    while ranks.len() < role.ranks as usize {
        let best = [first.peek(), moved.peek(), own.peek()].into_iter().flatten().min().copied();
        let Some(score) = best else { break };
        if first.next_if_eq(&score).is_none() && moved.next_if_eq(&score).is_none() {
            own.next();
        }
        let node = free.cluster.nodes().get(score.node);
        let mut left = changed.get(&node.id).cloned().unwrap_or_else(|| free.on(node));
        while ranks.len() < role.ranks as usize
            && let Some(rank) =
                take_rank(free.cluster.prices(), node, &mut left, &role.request, devices, job, ranks.len())
        {
            ranks.push(rank);
        }
        filled.push((node.id, left));
    }
    changed.extend(filled);
    ranks
}

impl Free<'_> {
    /// Whether jobs hold so many of the node's devices that a glance is enough.
    fn is_plainly_full(&self, node: &Node, devices: Option<&DeviceRequest>) -> bool {
        let (held, has) = (&self.cluster.nodes().held(node.id).devices, node.inventory.devices.len());
        let whole = devices.filter(|want| want.slice.is_none());
        let wants = whole.map_or(0, |want| usize::from(want.count));
        // Held devices may have gone from the inventory since.
        self.ended.is_empty() && has < held.range(..has as u16).count() + wants
    }

    /// The nodes that can take a rank of the request with this alternative of its devices.
    /// `O(nodes log nodes)` the first time, then `O(changes log nodes)`.
    fn rank<'r>(
        &self,
        ranked: &'r mut BTreeMap<Request, BTreeMap<Option<usize>, Ranked>>,
        request: &Request,
        alternative: Option<usize>,
    ) -> &'r Ranked {
        if !ranked.contains_key(request) {
            ranked.insert(request.clone(), BTreeMap::new());
        }
        let ranked = ranked.get_mut(request).expect("just entered").entry(alternative).or_default();
        let devices = alternative.map(|index| &request.devices[index]);
        let score_of = |id: NodeId| {
            let node = self.cluster.nodes().get(id);
            if node.takes_work() && !self.is_plainly_full(node, devices) {
                self.score(node, &self.on(node), request, devices)
            } else {
                None
            }
        };
        match ranked.seen.replace(self.log.len()) {
            None => {
                ranked.first = self.cluster.nodes().iter().filter_map(|node| score_of(node.id)).collect();
                ranked.first.sort_unstable();
            }
            Some(seen) => {
                for id in &self.log[seen..] {
                    let new = score_of(*id);
                    if let Some(Some(old)) = ranked.moved.insert(*id, new) {
                        ranked.moved_best.remove(&old);
                    }
                    ranked.moved_best.extend(new);
                }
                let moved = |score: &&Score| ranked.moved.contains_key(&score.node);
                ranked.start += ranked.first[ranked.start..].iter().take_while(moved).count();
            }
        }
        ranked
    }
}

fn take_rank(
    prices: &Prices,
    node: &Node,
    left: &mut NodeFree,
    request: &Request,
    devices: Option<&DeviceRequest>,
    job: &Job,
    rank: usize,
) -> Option<Allocation> {
    let chosen = choose(prices, node, left, request, devices)?;
    let port = free_port(node, left, job, rank)?;
    let cpus_milli = cpus_of(node, request, devices, &chosen);
    let slice = slice_on(node, devices, &chosen);
    let taken = |device: &&mut DeviceFree| chosen.contains(&device.index);
    for device in left.devices.iter_mut().filter(taken) {
        device.compute_milli -= slice.map_or(1000, |slice| slice.compute_milli);
        device.memory_bytes -= slice.map_or(device.memory_bytes, |slice| slice.memory_bytes);
    }
    left.devices.retain(|device| 0 < device.compute_milli);
    left.cpus_milli -= u64::from(cpus_milli);
    left.memory_bytes -= request.memory_bytes;
    left.ports.insert(port);
    let share_milli = |index: &u16| {
        let class = &node.inventory.devices[*index as usize].class;
        slice.map_or(1000, |slice| slice.share_milli(class))
    };
    let charge_milli = match chosen.is_empty() {
        true => cpus_milli.into(),
        false => chosen.iter().map(share_milli).sum(),
    };
    Some(Allocation {
        node: node.id,
        devices: chosen,
        slice,
        charge_milli,
        cpus_milli,
        memory_bytes: request.memory_bytes,
        port,
        worker: RankState::Assigned,
    })
}

/// A port that no worker of the node holds. Starts at another place for every attempt, so that a port which
/// a stranger took does not stop the job for good.
fn free_port(node: &Node, left: &NodeFree, job: &Job, rank: usize) -> Option<u16> {
    let Ports { first, last } = node.inventory.ports;
    let span = u64::from(last).checked_sub(u64::from(first))? + 1;
    let start = job.id.0 * 31 + u64::from(job.attempt) * 7 + rank as u64;
    let ports = (0..span).map(|offset| first + ((start + offset) % span) as u16);
    ports.into_iter().find(|port| !left.ports.contains(port))
}

impl<'a> Free<'a> {
    /// Healthy resources of live nodes that no job holds.
    pub fn of(cluster: &'a Cluster) -> Free<'a> {
        Free {
            cluster,
            changed: BTreeMap::new(),
            taken: BTreeMap::new(),
            ended: BTreeSet::new(),
            ranked: RefCell::default(),
            log: Vec::new(),
            scarcity: OnceCell::new(),
        }
    }

    /// The same, as if some jobs that hold resources had ended.
    pub fn without(cluster: &'a Cluster, ended: BTreeSet<JobId>) -> Free<'a> {
        Free { ended, ..Free::of(cluster) }
    }

    /// What is free on a node.
    pub fn on(&self, node: &Node) -> NodeFree {
        if let Some(changed) = self.changed.get(&node.id) {
            return changed.clone();
        }
        let held = self.cluster.nodes().held(node.id);
        let inventory = &node.inventory;
        let healthy = |index: &u16| inventory.devices.get(*index as usize).is_some_and(|d| d.fault.is_none());
        let mut held_devices = held.devices.clone();
        for job in &self.ended {
            let ranks = &self.cluster.jobs().get(*job).expect("a job that holds resources").ranks;
            for rank in ranks.iter().filter(|rank| rank.node == node.id) {
                for device in &rank.devices {
                    give_device(&mut held_devices, *device, rank.slice);
                }
            }
        }
        let devices = (0..inventory.devices.len() as u16).filter(healthy).map(|index| {
            let memory_bytes = inventory.devices[index as usize].class.memory_bytes;
            match held_devices.get(&index) {
                None => DeviceFree { index, compute_milli: 1000, memory_bytes },
                Some(HeldDevice::Whole) => DeviceFree { index, compute_milli: 0, memory_bytes: 0 },
                Some(HeldDevice::Slices(held)) => DeviceFree {
                    index,
                    compute_milli: 1000 - held.compute_milli,
                    memory_bytes: memory_bytes.saturating_sub(held.memory_bytes),
                },
            }
        });
        let mut free = NodeFree {
            devices: devices.filter(|device| 0 < device.compute_milli).collect(),
            cpus_milli: u64::from(inventory.cpus_milli).saturating_sub(held.cpus_milli),
            memory_bytes: inventory.memory_bytes.saturating_sub(held.memory_bytes),
            ports: held.ports.clone(),
        };
        for job in &self.ended {
            let ranks = &self.cluster.jobs().get(*job).expect("a job that holds resources").ranks;
            for rank in ranks.iter().filter(|rank| rank.node == node.id) {
                free.cpus_milli += u64::from(rank.cpus_milli);
                free.memory_bytes += rank.memory_bytes;
                free.ports.remove(&rank.port);
            }
        }
        free
    }

    /// Hands out the resources of a placement.
    pub fn take(&mut self, queue: &Name, placement: &Placement) {
        for queue in self.cluster.queues.line(queue) {
            *self.taken.entry(queue.name.clone()).or_default() += charge(&placement.ranks);
        }
        self.log.extend(placement.changed.keys());
        self.changed.extend(placement.changed.iter().map(|(node, free)| (*node, free.clone())));
    }

    /// What the queue and those below it hold, in thousandths of a device.
    pub fn held_by(&self, queue: &Name) -> u64 {
        let within = |job: &Job| self.cluster.queues.is_within(&job.spec.queue, queue);
        let ended = |job: &&JobId| self.cluster.jobs().get(**job).is_some_and(within);
        let given_back: u64 = self.ended.iter().filter(ended).map(|job| self.charge_of(*job)).sum();
        self.cluster.queues.held_milli(queue) + self.taken.get(queue).copied().unwrap_or(0) - given_back
    }

    fn charge_of(&self, job: JobId) -> u64 {
        self.cluster.jobs().get(job).map_or(0, Job::charge_milli)
    }
}
