//! Which running jobs are worth a move to another class of devices, after a proof: into idle ones, or by changing places.
//!
//! [`rounds::plan`] is asked which class each of them should have, of the devices that they hold and of those that are
//! idle. Who is to have another one moves if that gains enough against what a restart loses, and if its ranks are placed
//! there now. Nobody who waits is delayed, see `plan::spare`. Who finds nothing idle may change places, see
//! `plan::exchange`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::exchange::exchange;
use super::fit::{Free, find_among};
use super::spare::spare_nodes;
use super::{ClassSpeed, Exchange, Plan};
use crate::cluster::Cluster;
use crate::jobs::{Job, Phase};
use crate::rounds::{self, Class, Goal, Mode};
use crate::speed::Kind;
use crate::topology::Topology;
use crate::types::*;

/// A job that goes on elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// Which.
    pub job: JobId,
    /// Where it goes on, by rank: as many as it has.
    pub ranks: Vec<Allocation>,
    /// What is lost: the time since its last checkpoint, and that of a restart, in milliseconds.
    pub cost_ms: u64,
    /// What for.
    pub aim: Aim,
}

/// What a job moves for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aim {
    /// Devices of another model, on which it serves the pool better.
    Class {
        /// The models.
        #[allow(missing_docs)]
        from: Name,
        #[allow(missing_docs)]
        to: Name,
        /// By how much sooner it is expected to end, the cost taken off, in milliseconds.
        sooner_ms: u64,
    },
    /// Room in one piece for a job that waits.
    RoomFor(JobId),
}

/// A restart takes so long, from the request to stop until it works again, in milliseconds.
pub const RESTART_MS: u64 = 30_000;
/// What is gained must be so many times what it costs.
pub const LEAST_GAIN: u64 = 2;
/// Jobs that are looked at in one round, at most: by their turns.
const MAX_CANDIDATES: usize = 256;
/// Jobs that are moved in one round, at most.
const MAX_MIGRATIONS: usize = 8;

/// A job that may move.
pub(super) struct Mover<'a> {
    pub(super) job: &'a Job,
    /// Its class, as a place among those of the room.
    pub(super) own: usize,
    devices: u32,
    /// What a move loses, in milliseconds.
    pub(super) cost_ms: u64,
}

/// The same with the classes on which it could be.
pub(super) struct Candidate<'a> {
    pub(super) mover: Mover<'a>,
    modes: Vec<Mode>,
}

/// Jobs that move now, or else pairs that change places. `O(nodes * shapes that wait + jobs that run)`.
pub(super) fn migrate(free: &mut Free, plan: &Plan) -> (Vec<Migration>, Vec<Exchange>) {
    let cluster = free.cluster;
    let classes: Vec<Arc<DeviceClass>> = free.room.classes().to_vec();
    let mut jobs: Vec<&Job> = may_move(free, plan).collect();
    jobs.sort_by_key(|job| cluster.jobs().turn(job));
    let movers = jobs.into_iter().filter_map(|job| Mover::of(cluster, &classes, job));
    let candidates: Vec<Candidate> =
        (movers.filter_map(|mover| candidate(free, &classes, mover))).take(MAX_CANDIDATES).collect();
    if candidates.is_empty() {
        return (Vec::new(), Vec::new());
    }
    let is_spare = spare_nodes(free, plan);
    let open = cluster.nodes().iter().filter(|node| node.takes_work() && is_spare(node.id));
    let open: Vec<NodeId> = open.map(|node| node.id).collect();
    let mut capacity = vec![Class { devices: 0 }; classes.len()];
    let mut idle: BTreeMap<usize, Vec<NodeId>> = BTreeMap::new();
    for node in open {
        for device in free.room.on(node).devices.iter().filter(|device| device.compute_milli == 1000) {
            let class = usize::from(device.class);
            capacity[class].devices += 1;
            let nodes = idle.entry(class).or_default();
            if nodes.last() != Some(&node) {
                nodes.push(node);
            }
        }
    }
    candidates.iter().for_each(|it| capacity[it.mover.own].devices += it.mover.devices);
    let jobs: Vec<rounds::Job> = candidates.iter().map(|it| it.for_round(cluster)).collect();
    let chosen = rounds::plan(&capacity, &jobs, Goal::Stream);
    // What each gains, in milliseconds; less than 0: it loses.
    let mut wanted: Vec<(i64, &Candidate, usize)> = Vec::new();
    for (candidate, mode) in candidates.iter().zip(chosen) {
        let Some(mode) =
            mode.map(|mode| candidate.modes[mode]).filter(|mode| mode.class != candidate.mover.own)
        else {
            continue;
        };
        wanted.push((candidate.own_left_ms() as i64 - mode.left_ms as i64, candidate, mode.class));
    }
    wanted.sort_by_key(|(gain, candidate, _)| (Reverse(*gain), candidate.mover.job.id));
    let mut migrations = Vec::new();
    for (gain, candidate, class) in &wanted {
        let (gain, class) = (u64::try_from(*gain).unwrap_or(0), *class);
        let nodes = idle.get(&class).map_or(&[][..], |nodes| &nodes[..]);
        if migrations.len() < MAX_MIGRATIONS
            && LEAST_GAIN * candidate.mover.cost_ms <= gain
            && let Some(ranks) = candidate.mover.place(free, &classes[class], nodes)
        {
            let Mover { job, own, cost_ms, .. } = candidate.mover;
            free.count(job, &ranks);
            let (from, to) = (classes[own].model.clone(), classes[class].model.clone());
            let aim = Aim::Class { from, to, sooner_ms: gain - cost_ms };
            migrations.push(Migration { job: job.id, ranks, cost_ms, aim });
        }
    }
    // Whether a pair fits is seen in the cluster as it is, without what this round has given to others.
    let is_quiet = migrations.is_empty() && plan.starts.is_empty() && plan.growths.is_empty();
    let exchanges = if is_quiet { exchange(free, &classes, &wanted) } else { Vec::new() };
    (migrations, exchanges)
}

/// Jobs that may move: they run, of one role, on whole devices, have a way to go on where they were, and were placed a round
/// ago at least. `O(jobs that run)`.
pub(super) fn may_move<'a>(free: &Free<'a>, plan: &Plan) -> impl Iterator<Item = &'a Job> {
    let cluster = free.cluster;
    let growing: BTreeSet<JobId> = plan.growths.iter().map(|growth| growth.job).collect();
    let may = move |job: &&Job| {
        let [role] = &job.spec.roles[..] else { return false };
        let rests = || job.placed.is_some_and(|at| at + cluster.policy().rounds <= cluster.now());
        let goes_on = || matches!(role.program, Program::Train(_)) || cluster.has_checkpoint(job.id);
        let wants = &role.request.devices;
        job.phase == Phase::Active
            && !wants.is_empty()
            && wants.iter().all(|want| want.slice.is_none())
            && job.spec.topology == Topology::default()
            && !job.spec.is_service()
            && rests()
            && job.all_running()
            && goes_on()
            && !growing.contains(&job.id)
            && !cluster.is_out_of_reach(job)
    };
    cluster.jobs().holding().filter(may)
}

/// What a move loses: the time since the last checkpoint, and that of a restart, in milliseconds.
pub(super) fn cost_ms(cluster: &Cluster, job: &Job) -> u64 {
    cluster.unsaved_ms(job) + RESTART_MS
}

impl<'a> Mover<'a> {
    /// What is known of a job that may move; `None`: it holds devices of several classes.
    pub(super) fn of(cluster: &Cluster, classes: &[Arc<DeviceClass>], job: &'a Job) -> Option<Mover<'a>> {
        let class_of = |rank: &Allocation, index: u16| {
            let device = cluster.nodes().get(rank.node).inventory.devices.get(usize::from(index))?;
            classes.iter().position(|class| *class == device.class)
        };
        let held: BTreeSet<Option<usize>> = (job.ranks.iter())
            .flat_map(|rank| rank.devices.iter().map(move |index| class_of(rank, *index)))
            .collect();
        let own = (*held.first()?).filter(|_| held.len() == 1)?;
        let devices: u32 = job.ranks.iter().map(|rank| rank.devices.len() as u32).sum();
        Some(Mover { job, own, devices, cost_ms: cost_ms(cluster, job) })
    }

    /// As [`place_on`], as many ranks as the job has: where it is not taken as ended, the limits of its queues must allow both.
    pub(super) fn place(
        &self,
        free: &mut Free,
        class: &DeviceClass,
        nodes: &[NodeId],
    ) -> Option<Vec<Allocation>> {
        place_on(free, self.job, self.job.ranks.len(), class, nodes)
    }
}

/// Places so many ranks of a job of one role on idle devices of a class, on some nodes, and takes them but for the queues.
pub(crate) fn place_on(
    free: &mut Free,
    job: &Job,
    ranks: usize,
    class: &DeviceClass,
    nodes: &[NodeId],
) -> Option<Vec<Allocation>> {
    let want = job.spec.roles[0].request.devices.iter().find(|want| want.accepts(class))?.clone();
    let mut spec = (*job.spec).clone();
    (spec.roles[0].ranks, spec.roles[0].min_ranks) = (ranks as u32, None);
    spec.roles[0].request.devices = vec![DeviceRequest {
        vendor: Some(class.vendor),
        model: Some(class.model.clone()),
        memory_bytes: class.memory_bytes,
        ..want
    }];
    // A longer model name, or more memory, is another class.
    let only = |node: &NodeId| {
        let devices = &free.cluster.nodes().get(*node).inventory.devices;
        let accepts = |device: &Device| spec.roles[0].request.devices[0].accepts(&device.class);
        devices.iter().all(|device| *device.class == *class || !accepts(device))
    };
    let nodes: Vec<NodeId> = nodes.iter().copied().filter(only).collect();
    let job = Job { spec: Arc::new(spec), ..job.clone() };
    find_among(free, &job, Some(&nodes)).ok()
}

/// The classes on which it could be, if there are several.
fn candidate<'a>(free: &Free, classes: &[Arc<DeviceClass>], mover: Mover<'a>) -> Option<Candidate<'a>> {
    let (cluster, own, devices) = (free.cluster, mover.own, mover.devices);
    let job = mover.job;
    let role = &job.spec.roles[0];
    let speeds = free.room.class_speeds(cluster.speeds(), &Kind::of(&job.spec, role));
    let speed = |class: &Arc<DeviceClass>| speeds.iter().find(|it: &&ClassSpeed| it.class == *class);
    let here = speed(&classes[own])?;
    let left_ms = cluster.left_ms(job).clamp(1, 1 << 40);
    let mode = |(at, class): (usize, &Arc<DeviceClass>)| {
        let want = role.request.devices.iter().find(|want| want.accepts(class))?;
        let on = if at == own { devices } else { u32::from(want.count) * job.ranks.len() as u32 };
        let there = speed(class)?;
        let fast = |it: &ClassSpeed, devices: u32| u128::from(it.speed) * u128::from(devices);
        let mode_ms = u128::from(left_ms) * fast(here, devices) / fast(there, on.max(1));
        let mode_ms = mode_ms.clamp(1, 1 << 40) as u64;
        // Where an operator says what devices cost, nobody is moved to where the rest costs more.
        let is_priced = [&classes[own], class].iter().any(|it| cluster.tariff().of(it).is_some());
        let cost = |it: &ClassSpeed, devices: u32, ms: u64| {
            u128::from(it.price) * u128::from(devices) * u128::from(ms)
        };
        let is_dearer = is_priced && cost(here, devices, left_ms) < cost(there, on, mode_ms);
        (at == own || !is_dearer).then_some(Mode { class: at, devices: on, left_ms: mode_ms })
    };
    let modes: Vec<Mode> = classes.iter().enumerate().filter_map(mode).collect();
    let is_known = modes.iter().any(|mode| mode.class == own) && 1 < modes.len();
    is_known.then_some(Candidate { mover, modes })
}

impl Candidate<'_> {
    fn own_left_ms(&self) -> u64 {
        let own = self.modes.iter().find(|mode| mode.class == self.mover.own);
        own.expect("a candidate has its own class").left_ms
    }

    fn for_round(&self, cluster: &Cluster) -> rounds::Job {
        let Mover { job, own, cost_ms, .. } = self.mover;
        rounds::Job {
            id: job.id.0,
            modes: self.modes.clone(),
            weight_permille: 1000,
            // It runs: only how much sooner it ends counts, not how long it has been there.
            waited_ms: 0,
            due_in_ms: job.expected_end().map(|end| end.since(cluster.now()) as i64),
            current: self.modes.iter().position(|mode| mode.class == own),
            restart_ms: cost_ms,
        }
    }
}
