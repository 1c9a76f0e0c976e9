//! Why a job waits, in the terms of its user. Pure: asks the same functions that decide.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::Cluster;
use crate::event::Availability;
use crate::jobs::*;
use crate::nodes::Node;
use crate::plan::{DeviceFree, Free, Misfit, Owner, Within, fits, free_for_all, most};
use crate::topology::Level;
use crate::types::*;

mod booked;
mod change;
mod class;
mod serving;
mod start;
mod text;
use booked::shorter;
pub use change::Change;
use change::change;
pub use class::{ClassChoice, MAX_OTHERS, OtherClass, class_choice, class_text};
pub use serving::{ServingChoice, ServingClass, serving_choice};
use start::{end_of, start};
pub use text::{bytes, duration, milli};

/// The whole answer to "why does it wait?".
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// What stands in the way, first of all.
    pub reason: Reason,
    /// The job that its last attempt gave way to, until it is placed again.
    pub gave_way_to: Option<JobId>,
    /// For every role, what nodes say to one rank of it, most frequent first.
    pub roles: Vec<RoleVerdict>,
    /// Jobs that hold what this one needs, the first to end first; at most [`MAX_BLOCKERS`].
    pub blockers: Vec<Blocker>,
    /// When it is expected to start.
    pub start: Start,
    /// The smallest change of the request that would let it start now.
    pub change: Option<Change>,
}

/// Blockers in an explanation, at most.
pub const MAX_BLOCKERS: usize = 10;

/// What stands in the way of a job.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Reason {
    /// It does not wait: it holds resources, or has ended.
    NotWaiting(Phase),
    /// It holds resources, or `stops`, and its workers on these nodes, which cannot be reached, are waited for.
    OutOfReach { nodes: Vec<Name>, stops: bool },
    /// A job that it follows has not ended.
    Follows(JobId),
    /// Nobody has asked the model that it serves for as long as it says: it sleeps until somebody does.
    Sleeps { job: JobId, model: Name },
    /// It failed and pauses until then.
    Pauses { until: Time, failures: u32 },
    /// `queue`, its own or one above that, would hold more than its limit, in thousandths of a device.
    QueueLimit { queue: Name, held: u64, wants: u64, limit: u64 },
    /// No node of the pool could take a rank, even an empty one.
    NoSuchNode { nodes: u32 },
    /// The room that it would fit into is kept for another job that goes first, or for wide jobs to come.
    Kept(Owner),
    /// Nodes that would do are booked for others, by a reservation that begins in `in_ms`, for `for_ms` from then on.
    Booked { reservation: Name, nodes: u32, in_ms: u64, for_ms: u64 },
    /// It is for a reservation that begins in `in_ms`.
    Awaits { reservation: Name, in_ms: u64 },
    /// Not all ranks fit at once: only so many, in one domain if that is required.
    RoomFor { ranks: u32, of: u32, within: Option<Within> },
    /// No two ranks of `role` may be in one domain of the level, and only so many domains could ever take one.
    FewDomains { role: Name, level: Level, domains: u32, ranks: u32 },
    /// Others give way to it, and it starts once they have stopped.
    Preempts(Vec<JobId>),
    /// It fits: the next round places it.
    Next,
    /// It fits with fewer ranks than it wants, but enough: the next round places it.
    NextWith { ranks: u32, of: u32 },
    /// It does not wait: it runs, with fewer ranks than it wants.
    RunsWith { ranks: u32, of: u32 },
}

/// What the pool's nodes say to one rank of a role.
#[derive(Clone, Debug, PartialEq)]
pub struct RoleVerdict {
    /// Name of the role.
    pub role: Name,
    /// How many nodes give which answer. [`Verdict::Takes`] is among them.
    pub nodes: Vec<(Verdict, u32)>,
}

/// What a node says to a rank. The first one that applies, in this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Verdict {
    /// It could take the rank now.
    Takes,
    /// Its agent is silent.
    Lost,
    /// An administrator keeps work away from it.
    Closed(&'static str),
    /// It is not one of the nodes that the job's reservation has booked.
    Outside(Name),
    /// It is booked for others by a reservation that begins in `in_ms`, for `for_ms` from then on.
    Booked { reservation: Name, in_ms: u64, for_ms: u64 },
    /// It lacks a label.
    Label { key: Name, value: Name },
    /// It is in no domain of a level that is required.
    NoDomain(Level),
    /// It has nothing that runs containers.
    NoEngine,
    /// It has no device that would do.
    NoDevice,
    /// It has too few devices that would do, even when all are healthy and free.
    FewDevices { has: u32, wants: u32 },
    /// It has enough such devices, but no island of them that is large enough, even when all are free.
    FewLinked { has: u32, wants: u32 },
    /// Parts of its devices are kept apart no better than that.
    #[allow(missing_docs)]
    Isolation { has: Isolation, wants: Isolation },
    /// It would do, but `out` of its devices take no new work; `why` says so of each kind of reason.
    Faults { out: u32, of: u32, wants: u32, why: String },
    /// It would do, but devices are held by jobs.
    Busy { free: u32, of: u32, wants: u32 },
    /// Enough are free, but not of one island.
    LinkedBusy { free: u32, wants: u32 },
    /// It has too few processors, even when idle. In thousandths of a core.
    FewCpus { has: u64, wants: u64 },
    /// Too much processor time is held by jobs.
    CpusBusy { free: u64, of: u64, wants: u64 },
    /// It has too little memory, even when idle. In bytes.
    FewMemory { has: u64, wants: u64 },
    /// All its ports for workers are held by jobs, or it offers none.
    PortsBusy { of: u32 },
    /// Too much memory is held by jobs.
    MemoryBusy { free: u64, of: u64, wants: u64 },
}

/// A job that holds what another one needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocker {
    /// Which.
    pub job: JobId,
    /// Devices that it holds, on nodes that would do.
    pub devices: u32,
    /// Thousandths of a core that it holds, on nodes that would do.
    pub cpus_milli: u64,
    /// When its time limit ends it, at the latest.
    pub ends_by: Option<Time>,
}

/// When a job is expected to start.
#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    /// It has started, or ended.
    Past,
    /// In the next round.
    Now,
    /// At that time at the latest, when `after` ends: it reaches its time limit, or is killed after its grace.
    #[allow(missing_docs)]
    By { at: Time, after: JobId },
    /// About then, when `after` ends: the median of so many `like` jobs, or its time limit. Others that end before have none,
    /// and are expected to end as like ones did.
    #[allow(missing_docs)]
    About { at: Time, after: JobId, like: Option<u32> },
    /// After its pause, if there is room then.
    AfterPause(Time),
    /// When the reservation begins (its own), or ends (one of others), if there is room then.
    #[allow(missing_docs)]
    AtReservation { at: Time, reservation: Name, begins: bool },
    /// Not known; says why.
    Unknown(String),
    /// Not before the pool has other nodes, or the request changes.
    Never,
}

/// Explains a job of the cluster, or one that might be submitted to it.
///
/// `O(nodes log nodes * log jobs)` for a waiting job.
pub fn explain(cluster: &Cluster, job: &Job) -> Explanation {
    let mut free = free_for_all(cluster);
    let reason = reason(&mut free, job);
    let holds = matches!(reason, Reason::NotWaiting(_) | Reason::RunsWith { .. } | Reason::OutOfReach { .. });
    let waits = !holds && !matches!(reason, Reason::Preempts(_) | Reason::Sleeps { .. });
    let roles = if waits { verdicts(&free, job) } else { Vec::new() };
    let lacks_room = matches!(reason, Reason::RoomFor { .. } | Reason::QueueLimit { .. });
    let blockers = if lacks_room { blockers(cluster, job, &reason) } else { Vec::new() };
    let start = start(cluster, job, &reason);
    let change = match reason {
        Reason::Booked { .. } => shorter(&mut free, job).or_else(|| change(&mut free, job)),
        Reason::RoomFor { .. } | Reason::NoSuchNode { .. } | Reason::FewDomains { .. } => {
            change(&mut free, job)
        }
        _ => None,
    };
    let gave_way_to = match (&job.phase, &job.last_failure) {
        (Phase::Pending(_) | Phase::Stopping(_), Some(Why::Preempted { by, at: _ })) => Some(*by),
        _ => None,
    };
    Explanation { reason, gave_way_to, roles, blockers, start, change }
}

/// What stands in the way of a job: the first line of its explanation. Leaves `free` as it was, which is that of
/// [`free_for_all`].
pub fn reason(free: &mut Free, job: &Job) -> Reason {
    let cluster = free.cluster();
    match job.phase {
        Phase::Pending(_) if job.sleeps() => {
            let model = job.spec.served().map_or("", |(_, options)| options.name()).into();
            return Reason::Sleeps { job: job.id, model };
        }
        Phase::Pending(not_before) if cluster.now() < not_before => {
            return Reason::Pauses { until: not_before, failures: job.failures };
        }
        Phase::Pending(_) => (),
        Phase::Active | Phase::Stopping(_) if cluster.is_out_of_reach(job) => {
            let nodes = cluster.out_of_reach(job).map(|id| cluster.nodes().get(id).name.clone()).collect();
            return Reason::OutOfReach { nodes, stops: job.phase != Phase::Active };
        }
        Phase::Active if (job.ranks.len() as u32) < job.wanted_ranks() => {
            return Reason::RunsWith { ranks: job.ranks.len() as u32, of: job.wanted_ranks() };
        }
        Phase::Active | Phase::Stopping(_) | Phase::Done(_) => {
            return Reason::NotWaiting(job.phase.clone());
        }
    }
    let unmet = |id: &&JobId| cluster.jobs().dependency(**id) != Dependency::Met;
    if let Some(dependency) = job.spec.after.iter().find(unmet) {
        return Reason::Follows(*dependency);
    }
    let victims: Vec<JobId> = cluster.jobs().victims_of(job.id).map(|victim| victim.id).collect();
    if !victims.is_empty() {
        return Reason::Preempts(victims);
    }
    match fits(free, job) {
        Ok(()) => {
            let of = job.wanted_ranks();
            let ranks = if of == job.spec.min_ranks() { of } else { most(free, job).unwrap_or(of) };
            if ranks < of { Reason::NextWith { ranks, of } } else { Reason::Next }
        }
        Err(Misfit::QueueLimit { queue, held, wants, limit }) => {
            Reason::QueueLimit { queue, held, wants, limit }
        }
        Err(Misfit::Kept(owner)) => Reason::Kept(owner),
        Err(Misfit::Barred(bar)) => booked::reason(cluster, &bar),
        Err(Misfit::RoomFor { ranks, of, within }) => {
            let possible = |role: &Role| possible_nodes(cluster, job, role).next().is_some();
            if !job.spec.roles.iter().all(possible) {
                return Reason::NoSuchNode { nodes: cluster.nodes().len() as u32 };
            }
            let few = job.spec.roles.iter().find_map(|role| few_domains(cluster, job, role));
            few.unwrap_or(Reason::RoomFor { ranks, of, within })
        }
    }
}

/// Nodes that could take a rank, were they idle and up.
fn possible_nodes<'c>(cluster: &'c Cluster, job: &Job, role: &Role) -> impl Iterator<Item = &'c Node> {
    cluster.nodes().iter().filter(|node| idle_verdict(node, job, role) == Verdict::Takes)
}

/// Whether the ranks of a role have to stand in more domains than there are.
fn few_domains(cluster: &Cluster, job: &Job, role: &Role) -> Option<Reason> {
    let level = role.standing.apart.as_ref()?;
    let possible = possible_nodes(cluster, job, role).filter_map(|node| level.domain_of(node));
    let domains = possible.collect::<BTreeSet<&Name>>().len() as u32;
    let (level, ranks) = (level.clone(), role.least());
    (domains < ranks).then(|| Reason::FewDomains { role: role.name.clone(), level, domains, ranks })
}

fn verdicts(free: &Free, job: &Job) -> Vec<RoleVerdict> {
    let verdicts = job.spec.roles.iter().map(|role| {
        let mut counts: BTreeMap<Verdict, u32> = BTreeMap::new();
        for node in free.cluster().nodes().iter() {
            let verdict = match verdict(free, node, job, role) {
                Verdict::Takes => booked::verdict(free, job, node).unwrap_or(Verdict::Takes),
                other => other,
            };
            *counts.entry(verdict).or_default() += 1;
        }
        let mut nodes: Vec<(Verdict, u32)> = counts.into_iter().collect();
        nodes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        RoleVerdict { role: role.name.clone(), nodes }
    });
    verdicts.collect()
}

/// What the node says, whatever is held on it and whether or not it is up.
fn idle_verdict(node: &Node, job: &Job, role: &Role) -> Verdict {
    let request = &role.request;
    if let Some((key, value)) = request.labels.iter().find(|(k, v)| node.inventory.labels.get(k) != Some(v)) {
        return Verdict::Label { key: key.clone(), value: value.clone() };
    }
    let levels = job.spec.topology.require.iter().chain(&role.standing.apart);
    if let Some(level) = levels.into_iter().find(|level| level.domain_of(node).is_none()) {
        return Verdict::NoDomain(level.clone());
    }
    if request.image.is_some() && node.inventory.engine.is_empty() {
        return Verdict::NoEngine;
    }
    let mut short = None;
    for want in &request.devices {
        let (has, linked) = most_alike(node, want, |_| true);
        let wants = u32::from(want.count);
        let isolation = node.inventory.isolation_for(want).unwrap_or(Isolation::Hard);
        let is_apart = want.slice.is_none() || want.isolation <= isolation;
        if wants <= has && wants <= linked && is_apart {
            short = None;
            break;
        }
        let verdict = match has {
            0 => Verdict::NoDevice,
            _ if wants <= has && wants <= linked => {
                Verdict::Isolation { has: isolation, wants: want.isolation }
            }
            _ if has < wants => Verdict::FewDevices { has, wants },
            _ => Verdict::FewLinked { has: linked, wants },
        };
        short = short.max(Some(verdict));
    }
    if let Some(short) = short {
        return short;
    }
    let (has, wants) = (u64::from(node.inventory.cpus_milli), u64::from(request.cpus_milli));
    if has < wants {
        return Verdict::FewCpus { has, wants };
    }
    let (has, wants) = (node.inventory.memory_bytes, request.memory_bytes);
    if has < wants {
        return Verdict::FewMemory { has, wants };
    }
    Verdict::Takes
}

/// Why devices of a node that a request accepts take no new work, each reason once.
fn why_out(node: &Node, want: &DeviceRequest) -> String {
    let wanted = node.inventory.devices.iter().zip(0u16..).filter(|(device, _)| want.accepts(&device.class));
    let reasons: BTreeSet<String> = wanted.filter_map(|(_, index)| node.why_not(index)).collect();
    reasons.into_iter().collect::<Vec<String>>().join("; ")
}

/// Of devices of a node that a request accepts and that are `usable`, by index: the most of one class, and the most of
/// one class that a rank could have, of one island if that is required.
fn most_alike(node: &Node, want: &DeviceRequest, usable: impl Fn(u16) -> bool) -> (u32, u32) {
    let mut classes: BTreeMap<&DeviceClass, u32> = BTreeMap::new();
    let mut islands: BTreeMap<(&DeviceClass, u16), u32> = BTreeMap::new();
    for (device, index) in node.inventory.devices.iter().zip(0..) {
        if want.accepts(&device.class) && usable(index) {
            *classes.entry(&device.class).or_default() += 1;
            if let Some(island) = device.island {
                *islands.entry((&device.class, island)).or_default() += 1;
            }
        }
    }
    let most = classes.into_values().max().unwrap_or(0);
    // A single device is linked to all that it needs.
    let linked = islands.into_values().max().unwrap_or(0).max(most.min(1));
    (most, if want.one_island { linked } else { most })
}

fn verdict(free: &Free, node: &Node, job: &Job, role: &Role) -> Verdict {
    let request = &role.request;
    match (node.up, node.availability) {
        (false, _) => return Verdict::Lost,
        (true, Availability::Cordoned) => return Verdict::Closed("cordoned"),
        (true, Availability::Draining) => return Verdict::Closed("draining"),
        (true, Availability::Open) => (),
    }
    match idle_verdict(node, job, role) {
        Verdict::Takes => (),
        never => return never,
    }
    let left = free.on(node);
    let mut short = None;
    for want in &request.devices {
        let class_of = |index: u16| &*node.inventory.devices[index as usize].class;
        let (of, of_linked) = most_alike(node, want, |_| true);
        let is_healthy = |index: u16| node.device_takes_work(index);
        let (healthy, _) = most_alike(node, want, is_healthy);
        let takes = |device: &&DeviceFree| device.takes(want.slice, class_of(device.index));
        let free: BTreeSet<u16> = left.devices.iter().filter(takes).map(|device| device.index).collect();
        let (free, linked) = most_alike(node, want, |index| free.contains(&index));
        let wants = u32::from(want.count);
        if wants <= free && wants <= linked {
            short = None;
            break;
        }
        if short.is_none() && wants <= of && wants <= of_linked {
            short = Some(match healthy < wants {
                true => Verdict::Faults { out: of - healthy, of, wants, why: why_out(node, want) },
                false if wants <= free => Verdict::LinkedBusy { free: linked, wants },
                false => Verdict::Busy { free, of, wants },
            });
        }
    }
    if let Some(short) = short {
        return short;
    }
    let core = |device: &DeviceRequest| {
        let cpu = |held: &Device| held.class.vendor == Vendor::Cpu && device.accepts(&held.class);
        node.inventory.devices.iter().any(cpu).then_some(1000 * u64::from(device.count))
    };
    let cores = request.devices.iter().find_map(core).unwrap_or(0);
    let (of, wants) = (u64::from(node.inventory.cpus_milli), u64::from(request.cpus_milli).max(cores));
    if left.cpus_milli < wants {
        return Verdict::CpusBusy { free: left.cpus_milli, of, wants };
    }
    let (of, wants) = (node.inventory.memory_bytes, request.memory_bytes);
    if left.memory_bytes < wants {
        return Verdict::MemoryBusy { free: left.memory_bytes, of, wants };
    }
    let Ports { first, last } = node.inventory.ports;
    let of = (u32::from(last) + 1).saturating_sub(first.into());
    if of <= left.ports_held() {
        return Verdict::PortsBusy { of };
    }
    Verdict::Takes
}

fn blockers(cluster: &Cluster, job: &Job, reason: &Reason) -> Vec<Blocker> {
    let limited = match reason {
        Reason::QueueLimit { queue, .. } => Some(queue),
        _ => None,
    };
    let of_queue = limited.is_some();
    let suits = |node: &Node| {
        let takes = |role: &Role| idle_verdict(node, job, role) == Verdict::Takes;
        of_queue || (node.takes_work() && job.spec.roles.iter().any(takes))
    };
    // Many jobs hold something on one node.
    let suits: Vec<bool> = cluster.nodes().iter().map(suits).collect();
    let wants_devices = job.spec.roles.iter().any(|role| !role.request.devices.is_empty());
    let mut blockers: Vec<Blocker> = Vec::new();
    for holder in cluster.jobs().holding() {
        if limited.is_some_and(|queue| !cluster.queues().is_within(&holder.spec.queue, queue)) {
            continue;
        }
        let ranks = || holder.ranks.iter().filter(|rank| suits[rank.node.0 as usize]);
        let devices = ranks().map(|rank| rank.devices.len() as u32).sum();
        let cpus_milli = ranks().map(|rank| u64::from(rank.cpus_milli)).sum();
        let ends_by = end_of(cluster, holder);
        if 0 < devices || ((of_queue || !wants_devices) && 0 < cpus_milli) {
            blockers.push(Blocker { job: holder.id, devices, cpus_milli, ends_by });
        }
    }
    blockers.sort_by_key(|blocker| (blocker.ends_by.is_none(), blocker.ends_by, blocker.job));
    blockers.truncate(MAX_BLOCKERS);
    blockers
}
