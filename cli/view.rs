//! What `--json` prints: the field names here are a promise. Quantities carry their unit in their name; times are
//! milliseconds since the Unix epoch; jobs are `job-7`, as every command reads them.

use std::collections::BTreeMap;

use aquifer_agent::device::measured::Figures;
use aquifer_proto::{border, core, v1};
use serde::Serialize;

/// A job, as `jobs` and `job` print it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Job {
    /// `job-7`.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Who submitted it.
    pub user: String,
    /// Queue that it is charged to.
    pub queue: String,
    /// pending, starting, running, stopping, succeeded, failed, cancelled, timed-out.
    pub state: String,
    /// One sentence: why it waits, how it ended.
    pub reason: String,
    /// Larger goes first within its queue.
    pub priority: i32,
    /// Number of its ranks: those that it has, else those that it asks for.
    pub ranks: u32,
    /// The fewest with which it starts and goes on.
    pub min_ranks: u32,
    /// The most that it is to have now: as asked for, or as scaled since.
    pub wanted_ranks: u32,
    /// The most that it can be scaled to.
    pub max_ranks: u32,
    /// Devices that it holds, else those that it asks for.
    pub devices: u64,
    /// Model of these devices; empty where any will do.
    pub device_model: String,
    /// Names of its nodes, each once, in the order of ranks.
    pub nodes: Vec<String>,
    /// Number of placements so far.
    pub attempt: u32,
    /// Attempts that ended by a failure of its own.
    pub failures: u32,
    /// Why the last attempt that failed ended; empty if none did.
    pub last_failure: String,
    /// When it was submitted.
    pub submitted_ms: u64,
    /// When it was last placed.
    pub placed_ms: Option<u64>,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// For an element of an array: the first job of it.
    pub array_first: Option<String>,
    /// For an element of an array: its index.
    pub array_index: Option<u32>,
    /// Devices times milliseconds, over all attempts.
    pub device_ms: u64,
    /// Thousandths of a core times milliseconds, over all attempts.
    pub cpu_milli_ms: u64,
    /// The part of `device_ms` that belongs to attempts which were placed again.
    pub lost_device_ms: u64,
    /// Of a training: what was computed and counts, as a share of what all that it has held could have computed.
    pub capacity: Option<f64>,
    /// Where its checkpoints are; empty if it has no directory for them.
    pub checkpoint_dir: String,
    /// On which class of devices it runs, and how fast it is there against others; empty if there is nothing to say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub class: String,
    /// Of a training: where its time has gone.
    pub spent: Option<Spent>,
    /// What its lowest rank told last.
    pub progress: Option<Progress>,
    /// Its ranks, while it holds resources.
    pub workers: Vec<Rank>,
    /// What was asked for; only printed by `job`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec: Option<Spec>,
}

/// One rank of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Rank {
    /// Its number, from 0.
    pub rank: u32,
    /// Name of its role.
    pub role: String,
    /// Name of its node.
    pub node: String,
    /// Indices of its devices on the node.
    pub devices: Vec<u32>,
    /// Model of these devices.
    pub model: String,
    /// How well it is kept from others on its devices: hard, limited, advisory; empty without devices.
    pub isolation: String,
    /// assigned, starting, running, gone.
    pub state: String,
    /// Address that it may listen on.
    pub address: String,
    /// Port that it may listen on.
    pub port: u32,
    /// Of an inference server: where clients connect.
    pub endpoint: Option<String>,
    /// What it told last.
    pub progress: Option<Progress>,
}

/// What a worker tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Progress {
    /// A word for what it does.
    pub state: String,
    /// Whether it does its work.
    pub ready: bool,
    /// Steps done.
    pub step: Option<u64>,
    /// Steps to do.
    pub total_steps: Option<u64>,
    /// Loss of the last step.
    pub loss: Option<f64>,
    /// Tokens a second.
    pub tokens_per_s: Option<f64>,
    /// Step of the last checkpoint.
    pub checkpoint_step: Option<u64>,
    /// Anything else.
    pub message: String,
}

/// Where the time of a training has gone, from its first start to its last step, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Spent {
    /// In steps, as long as they take when nothing is wrong.
    pub steps_ms: u64,
    /// Loading, and waiting for others, before the first step.
    pub start_ms: u64,
    /// What steps took longer in which a member was lost or late.
    pub recovery_ms: u64,
    /// What other steps took longer.
    pub slow_ms: u64,
    /// From the last checkpoint to a start from it.
    pub lost_ms: u64,
    /// No part of that time: what one rank would take for all that was computed and counts.
    pub work_ms: u64,
}

/// What was asked for, with all defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Spec {
    pub name: String,
    pub user: String,
    pub queue: String,
    pub client_key: String,
    pub priority: i32,
    pub roles: Vec<Role>,
    /// Level of which all ranks are in one domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology_require: Option<String>,
    /// The same, where there is room.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub topology_prefer: Vec<String>,
    /// Jobs that must have succeeded first.
    pub after: Vec<String>,
    /// `0-99:2`.
    pub array: Option<String>,
    pub time_limit_ms: Option<u64>,
    pub retries: u32,
    pub restart: String,
    /// `stop` or `keep`.
    pub on_partition: String,
    pub grace_ms: u64,
    pub env: BTreeMap<String, String>,
    pub working_dir: Option<String>,
    pub checkpoint_dir: Option<String>,
    /// Where it runs only.
    pub reservation: Option<String>,
}

/// A group of equal ranks; exactly one of `command`, `train`, `serve` is there.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Role {
    pub name: String,
    pub ranks: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_ranks: Option<u32>,
    /// Alternatives in order of preference.
    pub devices: Vec<DeviceRequest>,
    pub cpus_milli: u32,
    pub memory_bytes: u64,
    pub labels: BTreeMap<String, String>,
    /// Of the container that they run in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What of the node it sees: `HOST[:CONTAINER][:ro]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<String>,
    /// Level of which no two ranks are in one domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apart: Option<String>,
    /// Level over whose domains they are spread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<Train>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serve: Option<Serve>,
}

/// A number of equal devices; an empty vendor or model means any.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct DeviceRequest {
    pub count: u32,
    pub vendor: String,
    pub model: String,
    pub memory_bytes: u64,
    /// Part of each device that is wanted; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice: Option<Slice>,
    /// Whether several must be of one island.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub one_island: bool,
    /// How well a slice must be kept from others on its device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
}

/// A part of one device; 0: as large a share as that of the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Slice {
    pub compute_milli: u32,
    pub memory_bytes: u64,
}

/// Options of the bundled trainer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Train {
    pub model: String,
    pub data: String,
    pub steps: u64,
    pub batch: u32,
    pub context: u32,
    pub learning_rate: f32,
    pub seed: u64,
    pub checkpoint_every: u64,
    pub precision: String,
    pub micro_batch: u32,
    pub spares: u32,
    pub audit_every: u64,
    pub inner_steps: u64,
    pub replicas: u32,
}

/// Options of the bundled inference server.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Serve {
    pub model: String,
    pub served_name: String,
    pub max_queue: u32,
    pub precision: String,
    pub kv_memory_bytes: Option<u64>,
    pub autoscale: Option<Autoscale>,
}

/// What a service that scales itself promises.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Autoscale {
    pub concurrency: u32,
    pub ttft_ms: Option<u64>,
    pub tpot_ms: Option<u64>,
    pub sleep_after_ms: Option<u64>,
}

/// What `submit` and `run --detach` print.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Submitted {
    /// The job, or the first of the array.
    pub id: String,
    /// Number of jobs: their numbers follow each other.
    pub count: u32,
    /// Whether an earlier request with the same key made them.
    pub repeated: bool,
    /// Key of the request.
    pub client_key: String,
    /// Name of the job.
    pub name: String,
    /// The job file; `-` for standard input; none for `run`.
    pub file: Option<String>,
}

/// Why a job waits.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Explanation {
    /// `job-7`; none for a plan.
    pub job: Option<String>,
    /// What stands in the way, without the job's name.
    pub sentence: String,
    /// `follows`, …: see `Explanation.reason` of the protocol.
    pub reason: String,
    /// For every role, what nodes say to a rank of it.
    pub roles: Vec<RoleVerdict>,
    /// Jobs that hold what it needs, first to end first.
    pub blockers: Vec<Blocker>,
    /// now, by, after-pause, unknown, never, past.
    pub start: String,
    /// The time of it, where it is known.
    pub start_ms: Option<u64>,
    /// The start in words.
    pub start_text: String,
    /// The smallest change of the request that would start it now; empty if none was found.
    pub change: String,
    /// The job that its last attempt gave way to, until it is placed again.
    pub gave_way_to: Option<String>,
}

/// What nodes say to a rank of a role.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct RoleVerdict {
    pub role: String,
    pub verdicts: Vec<Verdict>,
}

/// An answer that some nodes give.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Verdict {
    pub nodes: u32,
    pub text: String,
    /// Whether these nodes could take a rank now.
    pub takes: bool,
}

/// A job that holds what another one needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Blocker {
    pub job: String,
    pub devices: u32,
    pub cpus_milli: u64,
    pub ends_by_ms: Option<u64>,
}

/// What `plan` prints.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Plan {
    /// Whether all ranks would start at once.
    pub starts_now: bool,
    /// Then, if it would start with fewer ranks than it asks for: how many it asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fewer: Option<u32>,
    /// Then: where.
    pub workers: Vec<Rank>,
    /// The one domain that they are in, of a level that is required or preferred: `rack r7`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// On which class of devices it would run, and how fast it is there against others.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub class: String,
    /// Else: why not.
    pub explanation: Option<Explanation>,
    /// Jobs that would be stopped for it and placed again later; then it would start.
    pub victims: Vec<Victim>,
}

/// A job that would give way.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Victim {
    /// Which.
    pub job: String,
    /// Devices times the time since its last checkpoint, or since it was placed.
    pub lost_device_ms: u64,
    /// It stops within so long.
    pub grace_ms: u64,
    /// Its ranks, and how many of them it goes on with at once; 0: it stops whole.
    pub ranks: u32,
    #[allow(missing_docs)]
    pub stays: u32,
}

impl From<&v1::Victim> for Victim {
    fn from(wire: &v1::Victim) -> Victim {
        let v1::Victim { job, lost_device_ms, grace_ms, ranks, stays } = *wire;
        Victim { job: job_id(job), lost_device_ms, grace_ms, ranks, stays }
    }
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Node {
    pub name: String,
    /// up, cordoned, draining, lost.
    pub state: String,
    /// Whether its agent is heard.
    pub up: bool,
    /// open, cordoned, draining.
    pub availability: String,
    /// Why the scheduler itself cordoned it; empty: it did not.
    pub cordoned_because: String,
    /// By index.
    pub devices: Vec<Device>,
    pub cpus_milli: u32,
    pub cpus_milli_held: u64,
    pub memory_bytes: u64,
    pub memory_bytes_held: u64,
    /// `job-7.1/0`: job, attempt, rank.
    pub workers: Vec<String>,
    pub address: String,
    pub first_port: u32,
    pub last_port: u32,
    pub labels: BTreeMap<String, String>,
    /// What runs containers on it; empty: nothing does.
    pub engine: String,
    pub lease_left_ms: u64,
    /// Of its agent.
    pub version: String,
    /// What its agent found missing or broken.
    pub findings: Vec<String>,
    /// What it is booked for, the first to begin first.
    pub reservations: Vec<Reservation>,
}

/// Nodes that are booked for a period.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Reservation {
    pub name: String,
    pub nodes: Vec<String>,
    pub start_ms: u64,
    pub end_ms: u64,
    /// Who may use it; neither: nobody.
    pub queues: Vec<String>,
    pub users: Vec<String>,
}

/// A device of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Device {
    pub index: u32,
    pub vendor: String,
    pub model: String,
    pub memory_bytes: u64,
    pub uuid: String,
    /// Devices of the node with the same number are linked directly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub island: Option<u32>,
    /// Those with the same number are below one PCIe switch.
    pub pcie_switch: Option<u32>,
    /// The memory node that it hangs on.
    pub numa_node: Option<u32>,
    /// How well slices of it are kept from each other: hard, limited, advisory.
    pub isolation: String,
    /// Whether a job holds it.
    pub held: bool,
    /// Why it takes no new work.
    pub fault: Option<String>,
    /// How bad that is: suspect, on probation, quarantined, draining, to be reset, to be rebooted, faulty; empty: well.
    pub health: String,
    /// Since when, in milliseconds of Unix time by the clock of its machine; null: not told.
    pub fault_since_ms: Option<u64>,
    /// Whether an administrator keeps new work away.
    pub cordoned: bool,
    /// How fast it is, in thousandths of a reference device.
    pub speed_milli: u32,
    /// Who says so; empty: an agent that does not tell.
    pub speed_source: String,
    /// How fast it reads its memory, in GB/s; 0: nobody knows.
    pub memory_gbs: u32,
    /// What a device of its kind was measured to do.
    pub measured: Option<Figures>,
}

/// A queue. Quantities in thousandths of a device.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Queue {
    pub name: String,
    /// The queue whose share it divides; `None`: it divides the pool.
    pub parent: Option<String>,
    pub weight: u32,
    pub guaranteed_milli: u64,
    pub limit_milli: Option<u64>,
    /// Whose jobs it takes; empty: as the queue above it, and of a top queue everybody's.
    pub users: Vec<String>,
    /// With what the queues below it hold.
    pub held_milli: u64,
    /// As much as still counts, with that of the queues below it: time of a reference device, or of a device that costs 1
    /// where devices have prices.
    pub used_device_ms: u64,
    /// The part of the pool that it gets when all queues want more, in millionths.
    pub share_millionths: u32,
    pub pending_jobs: u64,
    pub running_jobs: u64,
}

/// What `usage` prints.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Usage {
    /// Only jobs submitted at or after this time.
    pub since_ms: u64,
    /// Of nodes that are up.
    pub devices: u64,
    pub devices_held: u64,
    /// Whether devices have prices.
    pub has_prices: bool,
    pub rows: Vec<UsageRow>,
}

/// What one user used of one queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct UsageRow {
    pub queue: String,
    pub user: String,
    pub jobs: u64,
    pub succeeded: u64,
    pub failed: u64,
    pub device_ms: u64,
    /// What it counted against the queue: time of a reference device, or of one that costs 1 an hour where devices have prices.
    pub counted_ms: u64,
    pub lost_device_ms: u64,
    pub cpu_milli_ms: u64,
    /// From submission to first placement, summed over jobs.
    pub waited_ms: u64,
    /// Of trainings that tell where their time has gone: devices (cores, where they hold none) times the time of it.
    pub trained_ms: u64,
    /// The part of it that was spent in steps.
    pub effective_ms: u64,
    /// Of trainings that tell what they computed: the time of all devices (or cores) that they have held.
    pub held_ms: u64,
    /// What one of them would take for what was computed and counts.
    pub worked_ms: u64,
}

/// One line of `watch`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Note {
    pub seq: u64,
    pub time_ms: u64,
    /// queued, placed, running, stopping, requeued, done, node-up, node-lost, …
    pub kind: String,
    pub job: Option<String>,
    pub node: Option<String>,
    pub text: String,
}

/// One line of `logs`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct LogLine {
    pub attempt: u32,
    pub rank: u32,
    /// Bytes that are no UTF-8 are replaced.
    pub text: String,
}

/// `job-7`.
pub fn job_id(id: u64) -> String {
    core::JobId(id).to_string()
}

/// All states of jobs, with their names; those that have not ended first.
pub const STATES: [(v1::JobState, &str); 8] = [
    (v1::JobState::Pending, "pending"),
    (v1::JobState::Starting, "starting"),
    (v1::JobState::Running, "running"),
    (v1::JobState::Stopping, "stopping"),
    (v1::JobState::Succeeded, "succeeded"),
    (v1::JobState::Failed, "failed"),
    (v1::JobState::Cancelled, "cancelled"),
    (v1::JobState::TimedOut, "timed-out"),
];

/// How many of [`STATES`] have not ended.
pub const UNENDED: usize = 4;

/// The name of a job's state.
pub fn state(state: v1::JobState) -> &'static str {
    STATES.iter().find(|(known, _)| *known == state).map_or("unknown", |(_, name)| name)
}

/// Whether a job has ended.
pub fn has_ended(state: v1::JobState) -> bool {
    STATES[UNENDED..].iter().any(|(ended, _)| *ended == state)
}

/// All states in which a job has ended.
pub fn ended_states() -> Vec<i32> {
    STATES[UNENDED..].iter().map(|(state, _)| i32::from(*state)).collect()
}

fn rank_state(state: v1::RankState) -> &'static str {
    match state {
        v1::RankState::Unspecified => "unknown",
        v1::RankState::Assigned => "assigned",
        v1::RankState::Starting => "starting",
        v1::RankState::Running => "running",
        v1::RankState::Gone => "gone",
    }
}

impl From<&v1::Job> for Job {
    fn from(wire: &v1::Job) -> Job {
        let default = v1::JobSpec::default();
        let spec = wire.spec.as_ref().unwrap_or(&default);
        let serves = |rank: &v1::Rank| {
            let role = spec.roles.iter().find(|role| role.name == rank.role).or(spec.roles.first());
            matches!(role.and_then(|role| role.program.as_ref()), Some(v1::role::Program::Serve(_)))
        };
        let workers = wire.ranks.iter().map(|rank| Rank::new(rank, serves(rank)));
        let workers: Vec<Rank> = workers.collect();
        let mut nodes: Vec<String> = Vec::new();
        for worker in &workers {
            if !nodes.contains(&worker.node) {
                nodes.push(worker.node.clone());
            }
        }
        let asked =
            spec.roles.iter().filter_map(|role| Some((role.ranks, role.request.as_ref()?.devices.first()?)));
        let holds =
            matches!(wire.state(), v1::JobState::Starting | v1::JobState::Running | v1::JobState::Stopping);
        let held: u64 = workers.iter().map(|worker| worker.devices.len() as u64).sum();
        let model = workers.iter().map(|worker| &worker.model).find(|model| !model.is_empty());
        let model = model.or_else(|| {
            asked
                .clone()
                .map(|(_, device)| if device.model.is_empty() { &device.vendor } else { &device.model })
                .next()
        });
        let told = wire.ranks.iter().filter_map(|rank| rank.progress.as_ref()?.spent.as_ref());
        Job {
            id: job_id(wire.id),
            name: spec.name.clone(),
            user: spec.user.clone(),
            queue: spec.queue.clone(),
            state: state(wire.state()).into(),
            reason: wire.reason.clone(),
            priority: spec.priority,
            ranks: if holds { workers.len() as u32 } else { wire.wanted_ranks },
            min_ranks: spec.roles.iter().map(|role| role.min_ranks.unwrap_or(role.ranks)).sum(),
            wanted_ranks: wire.wanted_ranks,
            max_ranks: spec.roles.iter().map(|role| role.ranks).sum(),
            // Ranks of an ended job tell where they were, but hold nothing any more.
            devices: match held {
                0 => asked.clone().map(|(ranks, device)| u64::from(ranks) * u64::from(device.count)).sum(),
                held => held,
            },
            device_model: model.cloned().unwrap_or_default(),
            nodes,
            attempt: wire.attempt,
            failures: wire.failures,
            last_failure: wire.last_failure.clone(),
            submitted_ms: wire.submitted_ms,
            placed_ms: wire.placed_ms,
            ended_ms: wire.ended_ms,
            array_first: wire.array_first.map(job_id),
            array_index: wire.array_index,
            device_ms: wire.device_ms,
            cpu_milli_ms: wire.cpu_milli_ms,
            lost_device_ms: wire.lost_device_ms,
            capacity: wire.capacity,
            checkpoint_dir: wire.checkpoint_dir.clone(),
            class: wire.class.clone(),
            spent: told.chain(&wire.spent).max_by_key(|spent| spent.steps_us).map(Spent::from),
            // Who has just joined is behind.
            progress: workers
                .iter()
                .filter_map(|worker| worker.progress.clone())
                .reduce(|best, other| if best.step < other.step { other } else { best }),
            workers,
            spec: None,
        }
    }
}

impl Job {
    /// With what was asked for.
    pub fn with_spec(wire: &v1::Job) -> Job {
        let spec = wire.spec.as_ref().and_then(|spec| border::job_spec(spec).ok());
        Job { spec: spec.as_ref().map(Spec::from), ..Job::from(wire) }
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        STATES[UNENDED..].iter().any(|(_, name)| *name == self.state)
    }
}

impl Rank {
    /// `serves`: whether it is an inference server.
    pub fn new(wire: &v1::Rank, serves: bool) -> Rank {
        let progress = wire.progress.as_ref();
        let told = progress.and_then(|progress| progress.endpoint.clone()).filter(|told| !told.is_empty());
        let host = match wire.address.contains(':') {
            true => format!("[{}]", wire.address),
            false => wire.address.clone(),
        };
        let own = (serves && wire.port != 0).then(|| format!("http://{host}:{}/v1", wire.port));
        Rank {
            rank: wire.rank,
            role: wire.role.clone(),
            node: wire.node.clone(),
            devices: wire.devices.clone(),
            model: wire.model.clone(),
            isolation: wire.isolation.clone(),
            state: rank_state(wire.state()).into(),
            address: wire.address.clone(),
            port: wire.port,
            endpoint: own.or(told),
            progress: progress.map(Progress::from),
        }
    }
}

impl From<&aquifer_worker::elastic::Spent> for Spent {
    fn from(spent: &aquifer_worker::elastic::Spent) -> Spent {
        let aquifer_worker::elastic::Spent { steps_us, start_us, recovery_us, slow_us, lost_us, work_us } =
            *spent;
        Spent::from(&v1::Spent { steps_us, start_us, recovery_us, slow_us, lost_us, work_us })
    }
}

impl From<&v1::Spent> for Spent {
    fn from(wire: &v1::Spent) -> Spent {
        let v1::Spent { steps_us, start_us, recovery_us, slow_us, lost_us, work_us } = wire;
        Spent {
            steps_ms: steps_us / 1000,
            start_ms: start_us / 1000,
            recovery_ms: recovery_us / 1000,
            slow_ms: slow_us / 1000,
            lost_ms: lost_us / 1000,
            work_ms: work_us / 1000,
        }
    }
}

impl From<&v1::Progress> for Progress {
    fn from(wire: &v1::Progress) -> Progress {
        Progress {
            state: wire.state.clone(),
            ready: wire.ready,
            step: wire.step,
            total_steps: wire.total_steps,
            // JSON has no infinities.
            loss: wire.loss.filter(|loss| loss.is_finite()),
            tokens_per_s: wire.tokens_per_s.filter(|rate| rate.is_finite()),
            checkpoint_step: wire.checkpoint_step,
            message: wire.message.clone(),
        }
    }
}

fn pairs(pairs: &[(core::Name, core::Name)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

impl From<&core::JobSpec> for Spec {
    fn from(spec: &core::JobSpec) -> Spec {
        Spec {
            name: spec.name.to_string(),
            user: spec.user.to_string(),
            queue: spec.queue.to_string(),
            client_key: spec.client_key.to_string(),
            priority: spec.priority,
            roles: spec.roles.iter().map(Role::from).collect(),
            topology_require: spec.topology.require.as_ref().map(ToString::to_string),
            topology_prefer: spec.topology.prefer.iter().map(ToString::to_string).collect(),
            after: spec.after.iter().map(ToString::to_string).collect(),
            array: spec.array.map(|range| crate::job_file::Indices(range).to_string()),
            time_limit_ms: spec.time_limit_ms,
            retries: spec.retries,
            restart: crate::job_file::Restart(spec.restart).to_string(),
            on_partition: crate::job_file::OnPartition(spec.on_partition).to_string(),
            grace_ms: spec.grace_ms,
            env: pairs(&spec.env),
            working_dir: spec.working_dir.as_deref().map(String::from),
            checkpoint_dir: spec.checkpoint_dir.as_deref().map(String::from),
            reservation: spec.reservation.as_deref().map(String::from),
        }
    }
}

impl From<&core::Role> for Role {
    fn from(role: &core::Role) -> Role {
        let device = |device: &core::DeviceRequest| DeviceRequest {
            count: device.count.into(),
            vendor: device.vendor.map(|vendor| vendor.to_string()).unwrap_or_default(),
            model: device.model.as_deref().unwrap_or_default().into(),
            memory_bytes: device.memory_bytes,
            slice: device
                .slice
                .map(|slice| Slice { compute_milli: slice.compute_milli, memory_bytes: slice.memory_bytes }),
            one_island: device.one_island,
            isolation: device.slice.map(|_| device.isolation.to_string()),
        };
        let (mut command, mut train, mut serve) = (None, None, None);
        match &role.program {
            core::Program::Command(arguments) => {
                command = Some(arguments.iter().map(ToString::to_string).collect());
            }
            core::Program::Train(options) => {
                train = Some(Train {
                    model: options.model.to_string(),
                    data: options.data.to_string(),
                    steps: options.steps,
                    batch: options.batch,
                    context: options.context,
                    learning_rate: options.learning_rate,
                    seed: options.seed,
                    checkpoint_every: options.checkpoint_every,
                    precision: options.precision.to_string(),
                    micro_batch: options.micro_batch,
                    spares: options.spares,
                    audit_every: options.audit_every,
                    inner_steps: options.inner_steps,
                    replicas: options.replicas,
                });
            }
            core::Program::Serve(options) => {
                serve = Some(Serve {
                    model: options.model.to_string(),
                    served_name: options.served_name.to_string(),
                    max_queue: options.max_queue,
                    precision: options.precision.to_string(),
                    kv_memory_bytes: options.kv_memory_bytes,
                    autoscale: options.autoscale.map(|promise| Autoscale {
                        concurrency: promise.concurrency,
                        ttft_ms: promise.ttft_ms,
                        tpot_ms: promise.tpot_ms,
                        sleep_after_ms: promise.sleep_after_ms,
                    }),
                });
            }
        }
        Role {
            name: role.name.to_string(),
            ranks: role.ranks,
            min_ranks: role.min_ranks,
            devices: role.request.devices.iter().map(device).collect(),
            cpus_milli: role.request.cpus_milli,
            memory_bytes: role.request.memory_bytes,
            labels: pairs(&role.request.labels),
            image: role.request.image.as_deref().map(String::from),
            mounts: role.mounts.iter().map(ToString::to_string).collect(),
            apart: role.standing.apart.as_ref().map(ToString::to_string),
            spread: role.standing.spread.as_ref().map(ToString::to_string),
            command,
            train,
            serve,
        }
    }
}

impl Explanation {
    /// `job`: which; none for a plan.
    pub fn new(job: Option<u64>, wire: &v1::Explanation) -> Explanation {
        let verdict =
            |wire: &v1::Verdict| Verdict { nodes: wire.nodes, text: wire.text.clone(), takes: wire.takes };
        let role = |wire: &v1::RoleVerdict| RoleVerdict {
            role: wire.role.clone(),
            verdicts: wire.nodes.iter().map(verdict).collect(),
        };
        let blocker = |wire: &v1::Blocker| Blocker {
            job: job_id(wire.job),
            devices: wire.devices,
            cpus_milli: wire.cpus_milli,
            ends_by_ms: wire.ends_by_ms,
        };
        Explanation {
            job: job.map(job_id),
            sentence: wire.sentence.clone(),
            reason: wire.reason.clone(),
            roles: wire.roles.iter().map(role).collect(),
            blockers: wire.blockers.iter().map(blocker).collect(),
            start: wire.start.clone(),
            start_ms: wire.start_ms,
            start_text: wire.start_text.clone(),
            change: wire.change.clone(),
            gave_way_to: wire.gave_way_to.map(job_id),
        }
    }
}

/// In the units of `aquifer worker measure`.
fn figures(wire: &v1::Measured) -> Figures {
    let rate = |whole: u64, unit: f64| (whole != 0).then_some(whole as f64 / unit);
    Figures {
        f32_tflops: rate(wire.f32_mflops, 1e6),
        bf16_tflops: rate(wire.bf16_mflops, 1e6),
        int8_tflops: rate(wire.int8_mflops, 1e6),
        memory_gbs: rate(wire.memory_mbs, 1e3),
        attention_tflops: rate(wire.attention_mflops, 1e6),
        train_tokens_per_s: rate(wire.train_tokens_milli, 1e3),
        decode_tokens_per_s: rate(wire.decode_tokens_milli, 1e3),
        host_link_gbs: rate(wire.host_link_mbs, 1e3),
    }
}

impl From<&v1::Node> for Node {
    fn from(wire: &v1::Node) -> Node {
        let default = v1::Inventory::default();
        let inventory = wire.inventory.as_ref().unwrap_or(&default);
        let availability = match wire.availability() {
            v1::Availability::Cordoned => "cordoned",
            v1::Availability::Draining => "draining",
            v1::Availability::Open | v1::Availability::Unspecified => "open",
        };
        let is_of = |it: &v1::Measured, device: &v1::Device| {
            (&it.vendor, &it.model, it.memory_bytes) == (&device.vendor, &device.model, device.memory_bytes)
        };
        let device = |(index, device): (usize, &v1::Device)| Device {
            index: index as u32,
            vendor: device.vendor.clone(),
            model: device.model.clone(),
            memory_bytes: device.memory_bytes,
            uuid: device.uuid.clone(),
            held: wire.devices_held.contains(&(index as u32)),
            fault: device.fault.clone(),
            health: match &device.fault {
                Some(_) if device.health.is_empty() => "faulty".into(),
                Some(_) => device.health.clone(),
                None => String::new(),
            },
            fault_since_ms: Some(device.fault_since_ms).filter(|ms| *ms != 0),
            cordoned: wire.devices_cordoned.contains(&(index as u32)),
            speed_milli: device.speed_milli,
            speed_source: device.speed_source.clone(),
            memory_gbs: device.memory_gbs,
            measured: inventory.measured.iter().find(|it| is_of(it, device)).map(figures),
            island: device.island,
            pcie_switch: device.pcie_switch,
            numa_node: device.numa_node,
            isolation: if device.isolation.is_empty() { "advisory".into() } else { device.isolation.clone() },
        };
        let worker = |wire: &v1::Worker| {
            let id = core::WorkerId { job: core::JobId(wire.job), attempt: wire.attempt, rank: wire.rank };
            id.to_string()
        };
        Node {
            name: wire.name.clone(),
            state: match (wire.up, availability) {
                (false, _) => "lost".into(),
                (true, "open") => "up".into(),
                (true, closed) => closed.into(),
            },
            up: wire.up,
            availability: availability.into(),
            cordoned_because: wire.cordoned_because.clone(),
            devices: inventory.devices.iter().enumerate().map(device).collect(),
            cpus_milli: inventory.cpus_milli,
            cpus_milli_held: wire.cpus_milli_held,
            memory_bytes: inventory.memory_bytes,
            memory_bytes_held: wire.memory_bytes_held,
            workers: wire.workers.iter().map(worker).collect(),
            address: inventory.address.clone(),
            first_port: inventory.first_port,
            last_port: inventory.last_port,
            labels: inventory.labels.clone().into_iter().collect(),
            engine: inventory.engine.clone(),
            lease_left_ms: wire.lease_left_ms,
            version: wire.version.clone(),
            findings: wire.findings.clone(),
            reservations: wire.reservations.iter().map(Reservation::from).collect(),
        }
    }
}

impl From<&v1::QueueState> for Queue {
    fn from(wire: &v1::QueueState) -> Queue {
        let queue = wire.queue.clone().unwrap_or_default();
        Queue {
            name: queue.name,
            parent: (!queue.parent.is_empty()).then_some(queue.parent),
            weight: queue.weight,
            guaranteed_milli: queue.guaranteed_milli,
            limit_milli: queue.limit_milli,
            users: queue.users,
            held_milli: wire.held_milli,
            used_device_ms: wire.used_device_ms,
            share_millionths: wire.share_millionths,
            pending_jobs: wire.pending_jobs,
            running_jobs: wire.running_jobs,
        }
    }
}

impl From<&v1::Reservation> for Reservation {
    fn from(wire: &v1::Reservation) -> Reservation {
        Reservation {
            name: wire.name.clone(),
            nodes: wire.nodes.clone(),
            start_ms: wire.start_ms,
            end_ms: wire.end_ms,
            queues: wire.queues.clone(),
            users: wire.users.clone(),
        }
    }
}

impl From<&v1::UsageRow> for UsageRow {
    fn from(wire: &v1::UsageRow) -> UsageRow {
        UsageRow {
            queue: wire.queue.clone(),
            user: wire.user.clone(),
            jobs: wire.jobs,
            succeeded: wire.succeeded,
            failed: wire.failed,
            device_ms: wire.device_ms,
            counted_ms: wire.counted_ms,
            lost_device_ms: wire.lost_device_ms,
            cpu_milli_ms: wire.cpu_milli_ms,
            waited_ms: wire.waited_ms,
            trained_ms: wire.trained_ms,
            effective_ms: wire.effective_ms,
            held_ms: wire.held_ms,
            worked_ms: wire.worked_ms,
        }
    }
}

impl From<&v1::Note> for Note {
    fn from(wire: &v1::Note) -> Note {
        Note {
            seq: wire.seq,
            time_ms: wire.time_ms,
            kind: wire.kind.clone(),
            job: wire.job.map(job_id),
            node: (!wire.node.is_empty()).then(|| wire.node.clone()),
            text: wire.text.clone(),
        }
    }
}
