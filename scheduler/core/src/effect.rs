//! What comes out.

use std::fmt;
use std::sync::Arc;

use crate::autoscale::Sign;
use crate::event::{Availability, Queue};
use crate::explain::{ServingChoice, duration, milli};
use crate::inquiry::{Symptom, Verdict};
use crate::jobs::history::Totals;
use crate::jobs::{Job, Outcome, Why};
use crate::nodes::Node;
use crate::queues::{QueueError, QueueUsage};
use crate::reservations::{Reservation, ReservationError};
use crate::tariff::Tariff;
use crate::types::*;

/// One output of [`Cluster::step`](crate::Cluster::step).
///
/// All `Save`s of a step are made durable, in one transaction, before any other effect of it is performed.
///
/// What is for a node is for the start of its agent that the cluster knows at the end of the step, the node's
/// `boot`: it must not reach a later one, whose sequence numbers begin anew, and which would take the answer
/// for one to a message of its own and launch what its first report will turn out not to run.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Write a record to the store, over the earlier one of the same identity.
    Save(Record),
    /// Send a node its whole assignment, as the answer to its message `acked`.
    /// May be lost: the next message asks again.
    Assign {
        /// Addressee.
        node: NodeId,
        /// Last message of this boot that was handled; 0 for none.
        acked: u64,
        /// Everything that the node should be doing.
        assignment: Assignment,
    },
    /// Tell a node that its message `acked` was handled, and that its assignment stands.
    Renew {
        /// Addressee.
        node: NodeId,
        /// As in `Assign`.
        acked: u64,
    },
    /// Tell a node to send a whole report next.
    AskReport(NodeId),
    /// Answer a request.
    Reply(u64, Result<Answer, Refusal>),
    /// Tell people: logs, metrics, `aquifer watch`. Never read back by the core.
    Note(Note),
}

/// A durable row. Jobs are shared with the cluster that says to write them, which copies one only to change it before it
/// is written.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// What was asked for, by the first job that was made from it. Never changes.
    Spec(JobId, Arc<JobSpec>),
    /// A job, by its identity. Its `spec` is a record of its own, written before or with it.
    Job(Arc<Job>),
    /// A node, by its identity. Its lease is not part of the record: it is granted anew on restore.
    Node(Node),
    /// A queue, by its name.
    Queue(Queue),
    /// What the queue of that name has used. Written when what its jobs hold changes.
    Usage(Name, QueueUsage),
    /// A reservation, by its name.
    Reservation(Reservation),
    /// Prices of device hours, all of them. Written when one changes.
    Tariff(Arc<Tariff>),
    /// A job that has ended and retired. What [`Record::Spec`] has of it stands in here, with the first of an array for all
    /// of it. Never changes, and is not needed to go on.
    Ended(Arc<Job>),
    /// What the jobs of the queue of that name were that have retired.
    Retired(Name, Totals),
    /// There is no record of the job any more: it has retired.
    NoJob(JobId),
    /// There is no record of the specification any more: all that were made from it have retired.
    NoSpec(JobId),
    /// There is no reservation of the name any more: its record is removed.
    NoReservation(Name),
}

/// What became of an accepted request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These jobs exist now: `first`, and `count - 1` after it.
    Submitted {
        /// The job, or the first element of the array.
        first: JobId,
        /// Number of jobs.
        count: u32,
        /// Whether an earlier request with the same client key made them.
        repeated: bool,
    },
    /// So many jobs were told to end.
    Cancelled(u32),
    /// It is booked: with the nodes that were chosen.
    Reserved(Reservation),
    /// It is so now.
    Done,
}

/// Why a request was not accepted. The request changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The specification asks for nothing, or for more than can be counted.
    Malformed(&'static str),
    /// No such job.
    UnknownJob(JobId),
    /// The job has ended already.
    JobDone(JobId, Outcome),
    /// The job has no role whose number of ranks may change.
    Rigid(JobId),
    /// The service chooses its number of replicas by itself.
    ScalesItself(JobId),
    /// The job serves no model.
    ServesNothing(JobId),
    /// An elastic role has no fewer and no more ranks.
    #[allow(missing_docs)]
    Scale { ranks: u32, least: u32, most: u32 },
    /// No such node.
    UnknownNode(Name),
    /// The node has no such device.
    #[allow(missing_docs)]
    UnknownDevice { node: Name, device: u16, devices: u32 },
    /// No such queue.
    UnknownQueue(Name),
    /// The queue takes jobs of these users alone.
    #[allow(missing_docs)]
    NotOfQueue { queue: Name, user: Name, users: Vec<Name> },
    /// A queue cannot be so.
    Queue(QueueError),
    /// Something about a reservation cannot be so.
    Reservation(ReservationError),
    /// The client key belongs to another specification.
    KeyTaken(Name, JobId),
}

/// Something that people want to know, with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Note {
    /// A job was accepted.
    Queued(JobId),
    /// The jobs of an array were accepted.
    ArrayQueued { first: JobId, count: u32 },
    /// All ranks of a job were given their resources. `nodes` by rank.
    Placed { job: JobId, attempt: u32, nodes: Vec<Name> },
    /// All ranks of a job run.
    Running(JobId),
    /// A job was told to end, by a user or by its time limit.
    Stopping { job: JobId, why: Outcome },
    /// A job gives its resources back and will be placed again.
    Requeued { job: JobId, why: Why },
    /// A job gives its resources back to a job that waited, and will be placed again. It loses what it has done
    /// since its last checkpoint, unless it writes one while it stops.
    Preempted { job: JobId, by: JobId, lost_device_ms: u64 },
    /// A job goes on with fewer ranks, because it gives way to one that waits, or a user wants it.
    Shrunk { job: JobId, from: u32, to: u32, by: Option<JobId>, lost_device_ms: u64 },
    /// A worker of a running job failed or was lost; the others run on.
    RankDown { job: JobId, why: Why },
    /// A worker, numbered `rank`, takes the place of the one numbered `was`.
    RankAnew { job: JobId, was: u32, rank: u32, node: Name },
    /// A job goes on with more ranks.
    Grown { job: JobId, from: u32, to: u32 },
    /// A service wants another number of replicas, because of its load.
    Autoscaled { job: JobId, from: u32, to: u32, sign: Sign },
    /// A service has got replicas, on classes that were chosen by what a request costs there.
    Serves { job: JobId, choice: ServingChoice },
    /// A user wants so many ranks of a job's elastic role; `None`: as many as it can have.
    Scaled { job: JobId, ranks: Option<u32>, least: u32, most: u32 },
    /// A job stops to go on at once on devices of another model, where it is expected to end so much sooner. It loses what
    /// it has done since its last checkpoint, unless it writes one while it stops, and the time of a restart.
    Moved { job: JobId, from: Name, to: Name, sooner_ms: u64, cost_ms: u64 },
    /// A job stops to change places with another one, on devices of another model. Both together are expected to end so much
    /// sooner, and lose so much.
    Exchanged { job: JobId, with: JobId, from: Name, to: Name, sooner_ms: u64, cost_ms: u64 },
    /// A job stops to go on at once on other devices of its model, so that `by`, which waits, gets room in one piece. It loses
    /// the same.
    MadeRoom { job: JobId, by: JobId, cost_ms: u64 },
    /// A job ended.
    Done(JobId, Outcome),
    /// A node is part of the pool.
    NodeUp(Name),
    /// A node's agent started again, and kept so many workers.
    AgentRestarted { node: Name, workers: u32 },
    /// A node's lease ran out.
    NodeLost(Name),
    /// A job has workers on a node that is lost, and they may run on.
    Kept { job: JobId, node: Name },
    /// A node's devices or other resources are not what they were. `usable` of `devices` are healthy.
    InventoryChanged { node: Name, usable: u32, devices: u32 },
    /// An administrator changed whether a node takes work.
    NodeSet { node: Name, availability: Availability },
    /// An administrator changed whether a device takes new work.
    DeviceSet { node: Name, device: u16, cordoned: bool },
    /// A device is quarantined: what runs on it is stopped.
    DeviceQuarantined { node: Name, device: u16, why: Name },
    /// An attempt of a gang failed as the one before, in a way that a bad node explains: so many nodes are probed in pairs.
    Probing { job: JobId, attempt: u32, symptom: Symptom, nodes: u32 },
    /// A probe of these nodes together failed.
    ProbeFailed { nodes: Vec<Name>, why: Name },
    /// What the probes that a job's failures asked for have found. `left` nodes could not be probed in time.
    Probed { job: JobId, probed: usize, left: usize, verdict: Verdict },
    /// A node failed probes beside two others. It is cordoned, if the pool can afford that and nobody did before.
    NodeBlamed { node: Name, cordoned: bool, why: Name },
    /// An administrator made or changed a queue.
    QueueSet(Name),
    /// An administrator said what a device hour of a model costs, in thousandths of a unit; `None`: its speed counts.
    PriceSet { model: Name, milli: Option<u64> },
    /// An administrator booked nodes, from `in_ms` on for `for_ms`.
    Reserved { reservation: Name, nodes: Vec<Name>, in_ms: u64, for_ms: u64 },
    /// An administrator gave a reservation up.
    Unreserved(Name),
    /// A reservation's period begins. `conflicts` are still on its nodes, and may not use it.
    ReservationBegun { reservation: Name, conflicts: Vec<JobId> },
    /// A reservation's period is over.
    ReservationEnded(Name),
}

impl Note {
    /// The job that the note is about.
    pub fn job(&self) -> Option<JobId> {
        match self {
            Note::Queued(job)
            | Note::Placed { job, .. }
            | Note::Running(job)
            | Note::Stopping { job, .. }
            | Note::Requeued { job, .. }
            | Note::Preempted { job, .. }
            | Note::Shrunk { job, .. }
            | Note::RankDown { job, .. }
            | Note::RankAnew { job, .. }
            | Note::Grown { job, .. }
            | Note::Scaled { job, .. }
            | Note::Autoscaled { job, .. }
            | Note::Serves { job, .. }
            | Note::Moved { job, .. }
            | Note::Exchanged { job, .. }
            | Note::MadeRoom { job, .. }
            | Note::Kept { job, .. }
            | Note::Probing { job, .. }
            | Note::Probed { job, .. }
            | Note::Done(job, _)
            | Note::ArrayQueued { first: job, .. } => Some(*job),
            Note::NodeUp(_)
            | Note::AgentRestarted { .. }
            | Note::NodeLost(_)
            | Note::InventoryChanged { .. }
            | Note::NodeSet { .. }
            | Note::DeviceSet { .. }
            | Note::DeviceQuarantined { .. }
            | Note::ProbeFailed { .. }
            | Note::NodeBlamed { .. }
            | Note::QueueSet(_)
            | Note::PriceSet { .. }
            | Note::Reserved { .. }
            | Note::Unreserved(_)
            | Note::ReservationBegun { .. }
            | Note::ReservationEnded(_) => None,
        }
    }

    /// The node that the note is about.
    pub fn node(&self) -> Option<&Name> {
        match self {
            Note::NodeUp(node)
            | Note::NodeLost(node)
            | Note::AgentRestarted { node, .. }
            | Note::InventoryChanged { node, .. }
            | Note::DeviceSet { node, .. }
            | Note::DeviceQuarantined { node, .. }
            | Note::Kept { node, .. }
            | Note::NodeBlamed { node, .. }
            | Note::NodeSet { node, .. } => Some(node),
            _ => None,
        }
    }

    /// One word for the kind of note, stable: for filters and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Note::Queued(_) | Note::ArrayQueued { .. } => "queued",
            Note::Placed { .. } => "placed",
            Note::Running(_) => "running",
            Note::Stopping { .. } => "stopping",
            Note::Requeued { .. } => "requeued",
            Note::Preempted { .. } => "preempted",
            Note::Shrunk { .. } => "shrunk",
            Note::RankDown { .. } => "rank-down",
            Note::RankAnew { .. } => "rank-anew",
            Note::Grown { .. } => "grown",
            Note::Scaled { .. } => "scaled",
            Note::Autoscaled { .. } => "autoscaled",
            Note::Serves { .. } => "serves",
            Note::Moved { .. } | Note::Exchanged { .. } | Note::MadeRoom { .. } => "moved",
            Note::Done(..) => "done",
            Note::NodeUp(_) => "node-up",
            Note::AgentRestarted { .. } => "agent-restarted",
            Note::NodeLost(_) => "node-lost",
            Note::Kept { .. } => "kept",
            Note::InventoryChanged { .. } => "inventory-changed",
            Note::NodeSet { .. } => "node-set",
            Note::DeviceSet { .. } => "device-set",
            Note::DeviceQuarantined { .. } => "device-quarantined",
            Note::Probing { .. } => "probing",
            Note::ProbeFailed { .. } => "probe-failed",
            Note::Probed { .. } => "probed",
            Note::NodeBlamed { .. } => "node-blamed",
            Note::QueueSet(_) => "queue-set",
            Note::PriceSet { .. } => "price-set",
            Note::Reserved { .. } => "reserved",
            Note::Unreserved(_) => "unreserved",
            Note::ReservationBegun { .. } => "reservation-begun",
            Note::ReservationEnded(_) => "reservation-ended",
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Queued(job) => write!(f, "{job} queued"),
            Note::ArrayQueued { first, count } => {
                write!(f, "{first} to {} queued", JobId(first.0 + u64::from(*count) - 1))
            }
            Note::Placed { job, attempt, nodes } => {
                write!(f, "{job} placed attempt={attempt} on")?;
                nodes.iter().try_for_each(|node| write!(f, " {node}"))
            }
            Note::Running(job) => write!(f, "{job} running"),
            Note::Stopping { job, why } => write!(f, "{job} stopping: {why}"),
            Note::Requeued { job, why } => write!(f, "{job} requeued: {why}"),
            Note::Preempted { job, by, lost_device_ms } => {
                let (s, ms) = (lost_device_ms / 1000, lost_device_ms % 1000);
                write!(f, "{job} preempted: it gives way to {by}, at a cost of {s}.{ms:03} device seconds")
            }
            Note::Shrunk { job, from, to, by: Some(by), lost_device_ms } => {
                let (s, ms) = (lost_device_ms / 1000, lost_device_ms % 1000);
                write!(f, "{job} shrinks from {from} to {to} ranks: it gives way to {by}, ")?;
                write!(f, "at a cost of {s}.{ms:03} device seconds")
            }
            Note::Shrunk { job, from, to, by: None, .. } => {
                write!(f, "{job} shrinks from {from} to {to} ranks")
            }
            Note::RankDown { job, why } => write!(f, "{job} runs on: {why}"),
            Note::RankAnew { job, was, rank, node } => {
                write!(f, "{job} rank {rank} on {node} takes the place of rank {was}")
            }
            Note::Grown { job, from, to } => write!(f, "{job} grows from {from} to {to} ranks"),
            Note::Serves { job, choice } => write!(f, "{job} has {choice}"),
            Note::Autoscaled { job, from, to, sign } => {
                write!(f, "{job} is to have {to} replicas instead of {from}: {sign}")
            }
            Note::Scaled { job, ranks: Some(ranks), least, most } => {
                write!(f, "{job} scaled to {ranks} of {least} to {most} ranks")
            }
            Note::Scaled { job, ranks: None, least, most } => {
                write!(f, "{job} scaled to as many of {least} to {most} ranks as fit")
            }
            Note::Moved { job, from, to, sooner_ms, cost_ms } => {
                let (sooner, cost) = (duration(*sooner_ms), duration(*cost_ms));
                write!(f, "{job} moves from {from} to {to}: {sooner} sooner, at a cost of {cost}")
            }
            Note::Exchanged { job, with, from, to, sooner_ms, cost_ms } => {
                let (sooner, cost) = (duration(*sooner_ms), duration(*cost_ms));
                write!(
                    f,
                    "{job} changes places with {with}, from {from} to {to}: together {sooner} sooner, at a cost of {cost}"
                )
            }
            Note::MadeRoom { job, by, cost_ms } => {
                write!(f, "{job} moves to make room for {by}, at a cost of {}", duration(*cost_ms))
            }
            Note::Done(job, outcome) => write!(f, "{job} {outcome}"),
            Note::NodeUp(node) => write!(f, "{node} up"),
            Note::AgentRestarted { node, workers } => {
                write!(f, "{node} agent restarted, keeps {workers} workers")
            }
            Note::NodeLost(node) => write!(f, "{node} lost"),
            Note::Kept { job, node } => write!(f, "{job} may still run on {node}, and is waited for"),
            Note::InventoryChanged { node, usable, devices } => {
                write!(f, "{node} has {usable} of {devices} devices usable")
            }
            Note::NodeSet { node, availability } => write!(f, "{node} {availability}"),
            Note::DeviceSet { node, device, cordoned } => {
                write!(f, "{node} device {device} {}", if *cordoned { "cordoned" } else { "open" })
            }
            Note::DeviceQuarantined { node, device, why } => {
                write!(f, "{node} device {device} quarantined: {why}")
            }
            Note::Probing { job, attempt, symptom, nodes } => {
                let before = attempt.saturating_sub(1);
                write!(f, "{job} attempts {before} and {attempt} ended alike, {symptom}: ")?;
                write!(f, "{nodes} nodes are probed in pairs")
            }
            Note::ProbeFailed { nodes, why } => {
                write!(f, "a probe of {} failed: {why}", nodes.join(" and "))
            }
            Note::Probed { job, probed, left, verdict } => {
                write!(f, "{job} probes of {probed} nodes: ")?;
                match verdict {
                    Verdict::Well => f.write_str("none is bad")?,
                    Verdict::Bad(count) => write!(f, "{count} bad")?,
                    Verdict::Unclear => f.write_str("too few passed to tell which is bad")?,
                }
                if *left != 0 { write!(f, "; {left} more were in use") } else { Ok(()) }
            }
            Note::NodeBlamed { node, cordoned, why } => {
                let word = if *cordoned { "cordoned" } else { "not cordoned" };
                write!(f, "{node} {word}: {why}")
            }
            Note::QueueSet(queue) => write!(f, "queue {queue} set"),
            Note::PriceSet { model, milli: None } => {
                write!(f, "a device hour of {model} has no price any more")
            }
            Note::PriceSet { model, milli: Some(price) } => {
                write!(f, "a device hour of {model} costs {}", milli(*price))
            }
            Note::Reserved { reservation, nodes, in_ms, for_ms } => {
                write!(f, "reservation {reservation} books")?;
                nodes.iter().try_for_each(|node| write!(f, " {node}"))?;
                write!(f, " in {} for {}", duration(*in_ms), duration(*for_ms))
            }
            Note::Unreserved(reservation) => write!(f, "reservation {reservation} given up"),
            Note::ReservationBegun { reservation, conflicts } => {
                write!(f, "reservation {reservation} begins")?;
                let text = if conflicts.is_empty() { "" } else { ", still on its nodes:" };
                f.write_str(text)?;
                conflicts.iter().try_for_each(|job| write!(f, " {job}"))
            }
            Note::ReservationEnded(reservation) => write!(f, "reservation {reservation} is over"),
        }
    }
}

impl fmt::Display for Availability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Availability::Open => "open",
            Availability::Cordoned => "cordoned",
            Availability::Draining => "draining",
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Succeeded => f.write_str("succeeded"),
            Outcome::Failed(why) => write!(f, "failed: {why}"),
            Outcome::Unreachable(job) => write!(f, "failed: {job}, which it follows, did not succeed"),
            Outcome::Cancelled => f.write_str("cancelled"),
            Outcome::TimedOut => f.write_str("timed out"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::WorkerFailed { rank, node, exit } => write!(f, "rank {rank} on {node} {exit}"),
            Why::RankLost { rank, node } => write!(f, "rank {rank} lost with {node}"),
            Why::DeviceBad { rank, node, device, fault } => {
                write!(f, "device {device} of {node}, which rank {rank} has, is {fault}")
            }
            Why::Drained { rank: _, node } => write!(f, "{node} is drained"),
            Why::Preempted { by, at: _ } => write!(f, "it gave way to {by}"),
            Why::Booked { rank: _, node, reservation } => {
                write!(f, "{node} is booked by reservation {reservation}")
            }
            Why::Moved { from, to } => write!(f, "it moved from {from} to {to}"),
            Why::MadeRoom { by, .. } => write!(f, "it moved to make room for {by}"),
            Why::Resized { from, to, by: Some(by), at: _ } => {
                write!(f, "it shrank from {from} to {to} ranks for {by}")
            }
            Why::Resized { from, to, by: None, at: _ } if from < to => {
                write!(f, "it grew from {from} to {to} ranks")
            }
            Why::Resized { from, to, by: None, at: _ } => write!(f, "it shrank from {from} to {to} ranks"),
        }
    }
}

/// Users of a queue that a refusal names; of the others it says how many they are.
const SHOWN_USERS: usize = 5;

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Malformed(why) => f.write_str(why),
            Refusal::UnknownJob(job) => write!(f, "there is no {job}"),
            Refusal::JobDone(job, outcome) => write!(f, "{job} has ended already: {outcome}"),
            Refusal::ScalesItself(job) => write!(f, "{job} scales itself: its role has serve.autoscale"),
            Refusal::ServesNothing(job) => write!(f, "{job} serves no model: nobody can ask it"),
            Refusal::Rigid(job) => write!(f, "{job} is rigid: none of its roles has min_ranks"),
            Refusal::Scale { ranks, least, most } => write!(f, "{ranks} ranks: expected {least} to {most}"),
            Refusal::UnknownNode(node) => write!(f, "there is no node {node:?}"),
            Refusal::UnknownDevice { node, devices: 0, .. } => write!(f, "node {node:?} has no devices"),
            Refusal::UnknownDevice { node, device, devices } => {
                write!(f, "node {node:?} has no device {device}: expected 0 to {}", devices - 1)
            }
            Refusal::UnknownQueue(queue) => write!(f, "there is no queue {queue:?}"),
            Refusal::NotOfQueue { queue, user, users } => {
                let first: Vec<&str> = users.iter().take(SHOWN_USERS).map(|user| &**user).collect();
                write!(f, "queue {queue:?} takes no jobs of {user:?}, but of {}", first.join(", "))?;
                match users.len().saturating_sub(SHOWN_USERS) {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
            Refusal::Queue(error) => error.fmt(f),
            Refusal::Reservation(error) => error.fmt(f),
            Refusal::KeyTaken(key, job) => {
                write!(f, "client key {key:?} belongs to {job}, which asks for something else")
            }
        }
    }
}
