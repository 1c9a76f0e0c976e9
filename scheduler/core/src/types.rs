//! The nouns of the domain: identities, quantities, specifications.

use std::ops::{Add, Range};
use std::sync::Arc;
use std::{fmt, str::FromStr, time::Duration};

use crate::autoscale::Promise;
use crate::hosts::Host;
use crate::inquiry::ProbeOrder;
use crate::members::Members;
use crate::mount::Mount;
use crate::stop::StopReason;
use crate::topology::{Standing, Topology};

pub use crate::inventory::{
    Device, DeviceClass, Inventory, Isolation, Locality, Measured, Ports, UnknownVendor, Vendor,
};

/// A point on the pool's timeline, in milliseconds since the Unix epoch. Never decreases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

/// A short text that many records share: the name of a node, a queue, a user.
pub type Name = Arc<str>;

/// Identity of a job. Assigned by the scheduler, in order of submission, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// Identity of a node within the pool. Assigned by the scheduler when the node's name is first seen, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// Identity of one worker process.
///
/// It carries the job's `attempt`, so that a report about a worker of an earlier attempt can never be
/// mistaken for one about the current attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkerId {
    /// Job that the worker belongs to.
    pub job: JobId,
    /// Placement of the job that the worker belongs to, counted from 1.
    pub attempt: u32,
    /// Number of the worker within the attempt, from 0; never given twice. See [`Allocation::rank`].
    pub rank: u32,
}

/// What a user asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobSpec {
    /// What people call it.
    pub name: Name,
    /// Who submitted it.
    pub user: Name,
    /// Queue that the job is charged to.
    pub queue: Name,
    /// Chosen by the client: submitting the same key again returns the job that it made. Empty for none.
    pub client_key: Name,
    /// Larger goes first within a queue, but for the waiting of others. See [`crate::Policy::ageing`].
    pub priority: i32,
    /// Groups of equal ranks, all placed together or not at all. Ranks are numbered through, role by role.
    pub roles: Vec<Role>,
    /// Where all ranks stand together.
    pub topology: Topology,
    /// Jobs that must have succeeded before this one may start.
    pub after: Vec<JobId>,
    /// If given, one job is made for every index.
    pub array: Option<ArrayRange>,
    /// The job ends when it has run for so long, in milliseconds.
    pub time_limit_ms: Option<u64>,
    /// Failures of its own after which it is placed again. Loss of a node is no failure of the job.
    pub retries: u32,
    /// From the request to stop until the worker is killed, in milliseconds.
    pub grace_ms: u64,
    /// Environment of every worker.
    pub env: Vec<(Name, Name)>,
    /// Working directory of every worker, on its node; `None`: its run directory.
    pub working_dir: Option<Name>,
    /// Where the job keeps its checkpoints, on storage that all its nodes see; `None`: the agent's default.
    pub checkpoint_dir: Option<Name>,
    /// While there is a reservation of this name, the job runs only on its nodes, and in its period.
    pub reservation: Option<Name>,
    /// What is started anew when a worker fails.
    pub restart: Restart,
    /// What its workers do when their node and the scheduler do not hear of each other for longer than the lease.
    pub on_partition: OnPartition,
}

/// What is started anew when a worker of a running job fails, or is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// All of the job, as its next attempt.
    #[default]
    Gang,
    /// That worker only: the others know how to go on, and how to take in another one.
    Rank,
}

/// What a worker does when the lease of its node ends: the scheduler and the agent cannot hear of each other, or one of them
/// is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnPartition {
    /// It is stopped, and its job goes on elsewhere.
    #[default]
    Stop,
    /// It runs on, and nothing takes its place until the node tells what became of it, or is drained.
    Keep,
}

/// Indices of an array job: `first, first + step, … <= last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ArrayRange {
    pub first: u32,
    pub last: u32,
    pub step: u32,
}

/// A group of equal ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct Role {
    /// `trainer`, `server`, `rollout`, …; `worker` where the user named none.
    pub name: Name,
    /// Number of workers; of an elastic role the most.
    pub ranks: u32,
    /// The least number of workers, `1..ranks`, of an elastic role; `None`: it is rigid. At most one role of a job
    /// is elastic: how many ranks an attempt has then says how many each role has.
    pub min_ranks: Option<u32>,
    /// What each of them needs.
    pub request: Request,
    /// What of the node their containers see.
    pub mounts: Vec<Mount>,
    /// How they keep away from each other.
    pub standing: Standing,
    /// What each of them runs.
    pub program: Program,
}

/// Resources of one rank; all on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// Alternatives in order of preference, the same one for all ranks of the role. Empty: no devices.
    pub devices: Vec<DeviceRequest>,
    /// Processor time, in thousandths of a core. A CPU device brings at least the core that it is.
    pub cpus_milli: u32,
    /// Main memory, in bytes.
    pub memory_bytes: u64,
    /// Labels that the node must have.
    pub labels: Vec<(Name, Name)>,
    /// Image of the container that it runs in, for which the node must have an engine; `None`: in none.
    pub image: Option<Name>,
}

/// A number of equal devices on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceRequest {
    /// How many; at least 1.
    pub count: u16,
    /// Required maker.
    pub vendor: Option<Vendor>,
    /// Required model, or its first words: `h100` accepts `h100-80gb-hbm3`. Several that are equally good are
    /// joined by `|`.
    pub model: Option<Name>,
    /// Least memory of each device, in bytes.
    pub memory_bytes: u64,
    /// What is wanted of each device; `None`: all of it.
    pub slice: Option<Slice>,
    /// How well it must be kept from other ranks on the device, at least. Whole devices are.
    pub isolation: Isolation,
    /// Whether several must be of one island, see [`Device::island`]. Whole ones are wherever they can.
    pub one_island: bool,
}

/// A part of one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slice {
    /// Of its compute, in thousandths. In a request, 0 means as large a share as that of the memory.
    pub compute_milli: u32,
    /// Of its memory, in bytes. In a request, 0 means as large a share as that of the compute.
    pub memory_bytes: u64,
}

/// What a worker runs.
#[derive(Clone, Debug, PartialEq)]
pub enum Program {
    /// Any program; the first word is looked up in the node's `PATH`.
    Command(Vec<Name>),
    /// The bundled trainer.
    Train(TrainOptions),
    /// The bundled inference server.
    Serve(ServeOptions),
}

/// Options of the bundled trainer. The worker knows what they mean and checks them again.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// Preset name, or a directory with a `config.json`.
    pub model: Name,
    /// File or directory of text, on storage that all nodes see.
    pub data: Name,
    /// Optimizer steps.
    pub steps: u64,
    /// Sequences a step, over all ranks.
    pub batch: u32,
    /// Tokens a sequence.
    pub context: u32,
    /// Peak learning rate.
    pub learning_rate: f32,
    /// Of initialisation and of the order of the data.
    pub seed: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// What factors of matrix products are rounded to: `f32` or `bf16`.
    pub precision: Name,
    /// Sequences that a rank computes together; divides `batch`.
    pub micro_batch: u32,
    /// Ranks that compute nothing unless another one is missing.
    pub spares: u32,
    /// Steps of which one has a shard that two ranks compute and compare; 0: none.
    pub audit_every: u64,
    /// Steps that each replica takes by itself in a round, which is then what `steps` counts; 0: there are no rounds.
    pub inner_steps: u64,
    /// Replicas of a round; 0 without rounds.
    pub replicas: u32,
}

/// Options of the bundled inference server.
#[derive(Clone, Debug, PartialEq)]
pub struct ServeOptions {
    /// Directory of a model or of a training job's checkpoints.
    pub model: Name,
    /// Name that clients ask for; empty: that of the directory.
    pub served_name: Name,
    /// Requests that may wait before further ones are refused.
    pub max_queue: u32,
    /// What weights are kept in: `f32`, `bf16` or `int8`.
    pub precision: Name,
    /// Memory for cached keys and values, of which whole MiB count; `None`: a quarter of what it may use.
    pub kv_memory_bytes: Option<u64>,
    /// How it scales itself, between the least and the most replicas of its role; `None`: it does not.
    pub autoscale: Option<Promise>,
}

/// One rank of a placed job, on its node and devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Number of its worker in the attempt. At first that is its position among the job's ranks. Where one worker is
    /// started anew, or others are added, while the rest runs on, they get the next numbers: no number is given twice in
    /// an attempt, so nobody takes a worker for an earlier one.
    pub rank: u32,
    /// Node that the worker runs on.
    pub node: NodeId,
    /// Device indices on that node, ascending.
    pub devices: Vec<u16>,
    /// What it holds of each of them; `None`: all.
    pub slice: Option<Slice>,
    /// What it counts against its queue, in thousandths of a device: 1,000 a whole device, the larger share of a
    /// slice, or its thousandths of a core if it has no device.
    pub charge_milli: u64,
    /// Held processor time, in thousandths of a core.
    pub cpus_milli: u32,
    /// Held main memory, in bytes.
    pub memory_bytes: u64,
    /// The port that is this worker's to listen on. That of rank 0 is the gang's meeting point.
    pub port: u16,
    /// Progress of the worker process.
    pub worker: RankState,
    /// When it was assigned.
    pub since: Time,
    /// Its worker failed, and another one is started then.
    pub restart_at: Option<Time>,
    /// Workers here that failed soon after their start, one after the other.
    pub hasty: u32,
}

/// Progress of one rank, as the scheduler knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RankState {
    /// Assigned; the agent has not yet reported it.
    Assigned,
    /// Its process was started, but is not ready.
    Starting,
    /// Doing its work.
    Running,
    /// Known not to run any more.
    Gone,
}

/// Version of a node's assignment. Never stored: a new term starts above all revisions of earlier ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision {
    /// Term of the scheduler that made it; grows with every start of a scheduler. An agent ignores lower ones.
    pub term: u64,
    /// Grows with every change of an assignment within the term.
    pub count: u64,
}

/// What every worker on a node should be doing. Replaces all earlier assignments.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assignment {
    /// Its version.
    pub revision: Revision,
    /// Complete list; a worker that is not in it must not run.
    pub workers: Vec<WorkerOrder>,
    /// Of jobs whose workers are told of each other: who takes part now. Of one that is left out, what was told stands.
    pub members: Vec<Arc<Members>>,
    /// What it is to probe beside other nodes, as long as nothing runs on it.
    pub probe: Option<ProbeOrder>,
}

/// One worker of an [`Assignment`].
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerOrder {
    /// Which worker.
    pub id: WorkerId,
    /// Whether it should run or end.
    pub goal: Goal,
    /// From the request to stop until the worker is killed, in milliseconds.
    pub grace_ms: u64,
    /// Why it should end, if it should.
    pub why: Option<StopReason>,
    /// How to start it. Left out once the agent has reported the worker.
    pub launch: Option<Arc<Launch>>,
}

/// All that an agent needs to start a worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The job's specification.
    pub spec: Arc<JobSpec>,
    /// Role of the rank, an index of `spec.roles`.
    pub role: usize,
    /// Number of ranks of the attempt.
    pub world_size: u32,
    /// Position among the job's ranks on this node, and how many they are.
    pub local_rank: u32,
    #[allow(missing_docs)]
    pub local_world_size: u32,
    /// Position of this node among the job's nodes, in the order of their lowest ranks.
    pub node_rank: u32,
    /// Address and port of rank 0.
    pub master: (Name, u16),
    /// Index within the array, if the job is an element of one.
    pub array_index: Option<u32>,
    /// Devices, processor time, memory and port of this rank.
    pub allocation: Allocation,
    /// Where all ranks stand; see [`Host`].
    pub hosts: Arc<[Host]>,
}

/// What a worker should be doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Run until it exits by itself.
    Run,
    /// Write a checkpoint, if it can, and exit.
    Stop,
}

/// How a worker process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// It could not be started, or its agent had to end it; says why.
    Failed(Name),
}

/// Indices of an array, at most.
pub const MAX_ARRAY: u64 = 100_000;

/// Ranks of a job, at most.
pub const MAX_RANKS: u64 = 65_536;

/// A name without the digits at its end.
pub(crate) fn stem(name: &str) -> &str {
    name.trim_end_matches(|last: char| last.is_ascii_digit())
}

impl JobSpec {
    /// Its name without the digits at its end.
    pub(crate) fn stem(&self) -> Name {
        match stem(&self.name) {
            stem if stem.len() == self.name.len() => self.name.clone(),
            stem => stem.into(),
        }
    }

    /// The most ranks over all roles.
    pub fn ranks(&self) -> u32 {
        self.roles.iter().map(|role| role.ranks).sum()
    }

    /// The fewest ranks over all roles.
    pub fn min_ranks(&self) -> u32 {
        self.roles.iter().map(Role::least).sum()
    }

    /// The role whose number of ranks may change, if there is one, as an index of `roles`.
    pub fn elastic_role(&self) -> Option<usize> {
        self.roles.iter().position(|role| role.min_ranks.is_some())
    }

    /// The ranks of a role in an attempt of `world` ranks.
    pub fn ranks_of(&self, role: usize, world: u32) -> Range<u32> {
        let size = |role: &Role| match role.min_ranks {
            None => role.ranks,
            // All others are rigid.
            Some(_) => (world + role.ranks).saturating_sub(self.ranks()),
        };
        let first = self.roles[..role].iter().map(size).sum();
        first..first + size(&self.roles[role])
    }

    /// What is started anew when a worker fails: of a service always the replica.
    pub fn restarts(&self) -> Restart {
        if self.is_live() { Restart::Rank } else { Restart::Gang }
    }

    /// Whether its workers may come and go while the others run on: they know how to, or know nothing of each other.
    pub fn is_live(&self) -> bool {
        let serves = |role: &Role| matches!(role.program, Program::Serve(_));
        self.restart == Restart::Rank || self.roles.iter().all(serves)
    }

    /// Whether it answers requests, which nobody can answer for it while it waits again.
    pub fn is_service(&self) -> bool {
        self.roles.iter().any(|role| matches!(role.program, Program::Serve(_)))
    }

    /// The role of a rank in an attempt of `world` ranks, as an index of `roles`.
    pub fn role_of(&self, rank: u32, world: u32) -> usize {
        let role = (0..self.roles.len()).find(|role| rank < self.ranks_of(*role, world).end);
        role.unwrap_or_else(|| panic!("rank {rank} of {world}"))
    }
}

impl Role {
    /// The fewest ranks that it runs with.
    pub fn least(&self) -> u32 {
        self.min_ranks.unwrap_or(self.ranks)
    }
}

impl ArrayRange {
    /// Number of indices; 0 for an impossible range.
    pub fn count(&self) -> u64 {
        if self.step == 0 || self.last < self.first {
            return 0;
        }
        u64::from((self.last - self.first) / self.step) + 1
    }
}

impl DeviceRequest {
    /// Whether devices of the class will do, when nothing of them is held.
    pub fn accepts(&self, class: &DeviceClass) -> bool {
        self.vendor.is_none_or(|vendor| vendor == class.vendor)
            && self.memory_bytes <= class.memory_bytes
            && self.slice.is_none_or(|slice| slice.memory_bytes <= class.memory_bytes)
            && self.model.as_deref().is_none_or(|models| {
                let begins = |want| class.model.strip_prefix(want);
                models.split('|').filter_map(begins).any(|rest| rest.is_empty() || rest.starts_with('-'))
            })
    }
}

impl Slice {
    /// What is given where `self` is asked for: both parts spelt out, each at least what was asked, so that of
    /// each the whole device has room for no more than it should.
    pub fn granted(self, class: &DeviceClass) -> Slice {
        let share = |part: u128, whole: u128| if whole == 0 { 0 } else { (part * 1000).div_ceil(whole) };
        let compute_milli = match self.compute_milli {
            0 => share(self.memory_bytes.into(), class.memory_bytes.into()).clamp(1, 1000) as u32,
            asked => asked,
        };
        let memory_bytes = match self.memory_bytes {
            0 => (u128::from(class.memory_bytes) * u128::from(self.compute_milli) / 1000) as u64,
            asked => asked,
        };
        Slice { compute_milli, memory_bytes }
    }

    /// The larger of its two shares of a device, in thousandths, rounded up.
    pub fn share_milli(self, class: &DeviceClass) -> u64 {
        let memory =
            (u128::from(self.memory_bytes) * 1000).checked_div(class.memory_bytes.into()).unwrap_or(0);
        u64::from(self.compute_milli).max(memory as u64)
    }
}

impl FromStr for JobId {
    type Err = String;
    /// Reads `job-7`, or `7`.
    fn from_str(text: &str) -> Result<JobId, String> {
        let digits = text.strip_prefix("job-").unwrap_or(text);
        match digits.parse() {
            Ok(id) if 0 < id && digits.starts_with(|first: char| first.is_ascii_digit()) => Ok(JobId(id)),
            _ => Err(format!("{text:?} names no job: expected job-N with N from 1")),
        }
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, rhs: Duration) -> Time {
        Time(self.0.saturating_add(rhs.as_millis() as u64))
    }
}
impl Time {
    /// Milliseconds since `earlier`; 0 if that is later.
    pub fn since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}s", self.0 / 1000, self.0 % 1000)
    }
}
impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job-{}", self.0)
    }
}
impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}/{}", self.job, self.attempt, self.rank)
    }
}
impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exited with {code}"),
            Exit::Signal(signal) => write!(f, "was ended by signal {signal}"),
            Exit::Failed(why) => f.write_str(why),
        }
    }
}
