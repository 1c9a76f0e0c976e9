//! Where a gang fits: best-fit packing, the whole gang or nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::Cluster;
use crate::jobs::{Job, charge_milli};
use crate::nodes::Node;
use crate::types::*;

/// What a round can still hand out: the cluster's free resources, less what the round took.
#[derive(Clone)]
pub struct Free<'a> {
    cluster: &'a Cluster,
    /// Nodes of which the round took something.
    changed: BTreeMap<NodeId, NodeFree>,
    /// Added by the round to what queues hold, in thousandths of a device.
    taken: BTreeMap<Name, u64>,
    /// Taken as if they had ended: what they hold is free.
    ended: BTreeSet<JobId>,
}

/// What is free on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFree {
    /// Healthy devices that no job holds, by index, ascending.
    pub devices: Vec<u16>,
    /// Thousandths of a core.
    pub cpus_milli: u64,
    /// Main memory, in bytes.
    pub memory_bytes: u64,
    ports: BTreeSet<u16>,
}

/// Where all ranks of a job go.
#[derive(Clone, Debug)]
pub struct Placement {
    /// By rank.
    pub ranks: Vec<Allocation>,
    changed: BTreeMap<NodeId, NodeFree>,
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
    /// Its queue would hold more than its limit. In thousandths of a device.
    #[allow(missing_docs)]
    QueueLimit { held: u64, wants: u64, limit: u64 },
}

/// How good a node is for a rank; the smallest wins. Fields in order of importance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    /// Free accelerators on a node whose processors alone are wanted: others may need them together.
    pub accelerators_blocked: usize,
    /// Free devices left on the node.
    pub devices_left: usize,
    /// Free processor time left on the node, in thousandths of a core.
    pub cpus_left_milli: u64,
    /// Makes the choice unique.
    pub node: NodeId,
}

/// Places all ranks of a job, each on the fullest node that can take it.
///
/// Ties go to the lowest node. All ranks of a role take the same alternative, the first one that fits.
/// `O(roles * alternatives * nodes log nodes + ranks)`.
pub fn place(free: &Free, job: &Job) -> Result<Placement, Misfit> {
    let mut placement = Placement { ranks: Vec::new(), changed: BTreeMap::new() };
    let of = job.spec.ranks();
    for role in &job.spec.roles {
        let mut most = 0;
        let nothing = [None];
        let alternatives: Vec<Option<&DeviceRequest>> = match &role.request.devices[..] {
            [] => nothing.to_vec(),
            devices => devices.iter().map(Some).collect(),
        };
        let placed = alternatives.iter().find_map(|devices| {
            let mut attempt = placement.clone();
            let ranks = fill(free, &mut attempt, job, role, *devices);
            most = most.max(ranks);
            (ranks == role.ranks).then_some(attempt)
        });
        match placed {
            Some(attempt) => placement = attempt,
            None => return Err(Misfit::RoomFor { ranks: placement.ranks.len() as u32 + most, of }),
        }
    }
    let charge = |rank: &Allocation| charge_milli(rank.devices.len() as u64, rank.cpus_milli);
    let wants = placement.ranks.iter().map(charge).sum();
    let (held, limit) = (free.held_by(&job.spec.queue), free.cluster.queues[&job.spec.queue].limit_milli);
    match limit {
        Some(limit) if limit < held + wants => Err(Misfit::QueueLimit { held, wants, limit }),
        _ => Ok(placement),
    }
}

/// Adds as many ranks of the role as fit, and returns their number.
fn fill(
    free: &Free,
    placement: &mut Placement,
    job: &Job,
    role: &Role,
    devices: Option<&DeviceRequest>,
) -> u32 {
    let nodes = free.cluster.nodes().iter().filter(|node| node.takes_work());
    let mut candidates: Vec<(Score, NodeFree)> = nodes
        .filter_map(|node| {
            let left = placement.changed.get(&node.id).cloned().unwrap_or_else(|| free.on(node));
            score(node, &left, &role.request, devices).map(|score| (score, left))
        })
        .collect();
    candidates.sort_by_key(|(score, _)| *score);
    let mut placed = 0;
    // Filling a node makes it fuller and changes no other: the order of the candidates stands.
    for (score, mut left) in candidates {
        let node = free.cluster.nodes().get(score.node);
        while placed < role.ranks
            && let Some(rank) = take_rank(node, &mut left, &role.request, devices, job, placement.ranks.len())
        {
            placement.ranks.push(rank);
            placed += 1;
        }
        placement.changed.insert(node.id, left);
        if placed == role.ranks {
            break;
        }
    }
    placed
}

fn score(node: &Node, left: &NodeFree, request: &Request, devices: Option<&DeviceRequest>) -> Option<Score> {
    let chosen = choose(node, left, request, devices)?;
    let accelerators = |index: &&u16| node.inventory.devices[**index as usize].class.vendor != Vendor::Cpu;
    let free_accelerators = left.devices.iter().filter(accelerators).count();
    let takes_accelerators = chosen.iter().filter(accelerators).count();
    let cpus_milli = cpus_of(node, request, &chosen);
    Some(Score {
        accelerators_blocked: if takes_accelerators == 0 { free_accelerators } else { 0 },
        devices_left: left.devices.len() - chosen.len(),
        cpus_left_milli: left.cpus_milli - u64::from(cpus_milli),
        node: node.id,
    })
}

/// Devices that a rank would take on the node, if it fits there: of the scarcest class that has enough.
fn choose(
    node: &Node,
    left: &NodeFree,
    request: &Request,
    devices: Option<&DeviceRequest>,
) -> Option<Vec<u16>> {
    let labelled = |(key, value): &(Name, Name)| node.inventory.labels.get(key) == Some(value);
    if left.memory_bytes < request.memory_bytes || !request.labels.iter().all(labelled) {
        return None;
    }
    let fits = |chosen: &Vec<u16>| u64::from(cpus_of(node, request, chosen)) <= left.cpus_milli;
    let Some(want) = devices else { return Some(Vec::new()).filter(fits) };
    let mut classes: BTreeMap<&DeviceClass, Vec<u16>> = BTreeMap::new();
    for index in &left.devices {
        let class = &*node.inventory.devices[*index as usize].class;
        if want.accepts(class) {
            classes.entry(class).or_default().push(*index);
        }
    }
    let enough = classes.into_values().filter(|devices| usize::from(want.count) <= devices.len());
    let mut chosen = enough.min_by_key(Vec::len)?;
    chosen.truncate(want.count.into());
    Some(chosen).filter(fits)
}

/// Processor time of a rank: what it asks for, but at least the cores that are its devices.
fn cpus_of(node: &Node, request: &Request, devices: &[u16]) -> u32 {
    let is_core = |index: &&u16| node.inventory.devices[**index as usize].class.vendor == Vendor::Cpu;
    request.cpus_milli.max(1000 * devices.iter().filter(is_core).count() as u32)
}

fn take_rank(
    node: &Node,
    left: &mut NodeFree,
    request: &Request,
    devices: Option<&DeviceRequest>,
    job: &Job,
    rank: usize,
) -> Option<Allocation> {
    let chosen = choose(node, left, request, devices)?;
    let port = free_port(node, left, job, rank)?;
    let cpus_milli = cpus_of(node, request, &chosen);
    left.devices.retain(|device| !chosen.contains(device));
    left.cpus_milli -= u64::from(cpus_milli);
    left.memory_bytes -= request.memory_bytes;
    left.ports.insert(port);
    Some(Allocation {
        node: node.id,
        devices: chosen,
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
        Free { cluster, changed: BTreeMap::new(), taken: BTreeMap::new(), ended: BTreeSet::new() }
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
        let indices = 0..inventory.devices.len() as u16;
        let mut free = NodeFree {
            devices: indices.filter(|index| healthy(index) && !held.devices.contains(index)).collect(),
            cpus_milli: u64::from(inventory.cpus_milli).saturating_sub(held.cpus_milli),
            memory_bytes: inventory.memory_bytes.saturating_sub(held.memory_bytes),
            ports: held.ports.clone(),
        };
        for job in &self.ended {
            let ranks = &self.cluster.jobs().get(*job).expect("a job that holds resources").ranks;
            for rank in ranks.iter().filter(|rank| rank.node == node.id) {
                free.devices.extend(rank.devices.iter().filter(|index| healthy(index)));
                free.cpus_milli += u64::from(rank.cpus_milli);
                free.memory_bytes += rank.memory_bytes;
                free.ports.remove(&rank.port);
            }
        }
        if !self.ended.is_empty() {
            free.devices.sort_unstable();
        }
        free
    }

    /// Hands out the resources of a placement.
    pub fn take(&mut self, queue: &Name, placement: &Placement) {
        let charge = |rank: &Allocation| charge_milli(rank.devices.len() as u64, rank.cpus_milli);
        *self.taken.entry(queue.clone()).or_default() += placement.ranks.iter().map(charge).sum::<u64>();
        self.changed.extend(placement.changed.iter().map(|(node, free)| (*node, free.clone())));
    }

    /// What the queue holds, in thousandths of a device.
    pub fn held_by(&self, queue: &Name) -> u64 {
        let ended = |job: &&JobId| self.cluster.jobs().get(**job).is_some_and(|job| job.spec.queue == *queue);
        let given_back: u64 = self.ended.iter().filter(ended).map(|job| self.charge_of(*job)).sum();
        self.cluster.queue_held(queue) + self.taken.get(queue).copied().unwrap_or(0) - given_back
    }

    fn charge_of(&self, job: JobId) -> u64 {
        self.cluster.jobs().get(job).map_or(0, Job::charge_milli)
    }
}
