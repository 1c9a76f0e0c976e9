//! What `--json` prints: the field names here are a promise. Quantities carry their unit in their name; times are
//! milliseconds since the Unix epoch; jobs are `job-7`, as every command reads them.

use std::collections::BTreeMap;

use aquifer_agent::device::measured::Figures;
use aquifer_proto::{border, core, v1};
use serde::Serialize;

mod from_wire;
mod names;

pub use names::{STATES, UNENDED, ended_states, has_ended, job_id, state};

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
    /// What an hour of it costs, in thousandths of a unit; `None`: its speed counts.
    pub price_milli: Option<u64>,
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
