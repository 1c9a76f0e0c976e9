//! What goes in.

use std::sync::Arc;

use crate::inquiry::ProbeReport;
use crate::serving::Work;
use crate::types::*;

/// One input of [`Cluster::step`](crate::Cluster::step).
#[derive(Clone, Debug)]
pub enum Event {
    /// A client asked for something. Exactly one [`Effect::Reply`](crate::Effect::Reply) follows.
    Request {
        /// Returned with the reply.
        id: u64,
        /// What was asked.
        command: Command,
    },
    /// An agent reported the whole state of its node.
    Report(NodeReport),
    /// An agent said that nothing has changed since its report `same_as`.
    Heartbeat {
        /// Node that it is about.
        node: NodeId,
        /// As in [`NodeReport`].
        boot: u64,
        /// As in [`NodeReport`].
        seq: u64,
        /// The `seq` of the last whole report of this boot.
        same_as: u64,
    },
    /// A deadline was reached; nothing else happened.
    Tick,
}

/// What a client can ask for.
#[derive(Clone, Debug)]
pub enum Command {
    /// Queue a new job, or one for every index of its array.
    Submit(Arc<JobSpec>),
    /// End a job, whatever it is doing.
    Cancel {
        /// The job.
        job: JobId,
        /// With all other elements of its array.
        whole_array: bool,
    },
    /// Want another number of ranks of a job's elastic role, while it waits or runs.
    Scale {
        /// The job.
        job: JobId,
        /// Within the least and the most of its role; `None`: the most.
        ranks: Option<u32>,
    },
    /// Requests wait for a service that no replica of it has.
    Demand {
        /// The service.
        job: JobId,
        /// How many; 0 counts as 1.
        waiting: u32,
    },
    /// Change whether a node takes work.
    SetNode {
        /// Name of the node.
        node: Name,
        /// Wanted state.
        availability: Availability,
    },
    /// Change whether a device takes new work; what runs on it runs on.
    SetDevice {
        /// Name of its node.
        node: Name,
        /// Its index.
        device: u16,
        /// Whether new work is kept away.
        cordoned: bool,
    },
    /// Make a queue, or change it.
    SetQueue(Queue),
    /// Say what an hour of devices of a model costs, for what is placed from now on.
    SetPrice {
        /// As in [`DeviceRequest::model`], but one.
        model: Name,
        /// Thousandths of a unit, at least 1; `None`: it has no price, its speed counts.
        milli: Option<u64>,
    },
    /// Book nodes for a period.
    Reserve(Booking),
    /// Give a reservation up.
    Unreserve(Name),
}

/// What an administrator asks to be booked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booking {
    /// Name of the reservation.
    pub name: Name,
    /// What is booked.
    pub nodes: BookedNodes,
    /// When it begins; `None`: now.
    pub start: Option<Time>,
    /// When it ends.
    pub end: Time,
    /// Queues whose jobs may use it, with those below them.
    pub queues: Vec<Name>,
    /// Users whose jobs may use it. Neither queues nor users: nobody may.
    pub users: Vec<Name>,
}

/// Which nodes are booked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BookedNodes {
    /// These, whatever their state.
    Named(Vec<Name>),
    /// So many of those that take work and have the labels and a device of the model.
    Chosen {
        /// How many; at least 1.
        count: u32,
        /// Labels that each must have.
        labels: Vec<(Name, Name)>,
        /// As in [`DeviceRequest`].
        model: Option<Name>,
    },
}

/// Whether a node takes work. Set by administrators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// Takes work.
    Open,
    /// Takes no new work; what runs there runs on.
    Cordoned,
    /// Takes no new work; what runs there is stopped with its grace and placed elsewhere.
    Draining,
}

/// A team's share of the pool, or of its parent's share. What a queue holds includes what those below it hold.
///
/// Quantities are in thousandths of a device; a rank without devices counts its processor time instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Identity.
    pub name: Name,
    /// The queue whose share it divides with other queues; `None`: that is the pool.
    pub parent: Option<Name>,
    /// Share of what is contended, relative to other queues of the same parent; at least 1. The parent's own jobs
    /// count as one more queue, of weight 1.
    pub weight: u32,
    /// A queue that holds less goes before those that hold more than theirs. No more than its limit, and together
    /// with the other queues of its parent no more than that of the parent.
    pub guaranteed_milli: u64,
    /// The queue never holds more. `None`: no limit of its own.
    pub limit_milli: Option<u64>,
    /// Users whose jobs it takes, and the queues below it that name none; sorted. Empty: as the queue above has it, and of a
    /// top queue everybody.
    pub users: Vec<Name>,
}

/// The whole state of a node at one moment: devices, and every worker process.
///
/// Reports are levels, not edges: losing, repeating or delaying one does no harm, because the next one says
/// everything again.
#[derive(Clone, Debug)]
pub struct NodeReport {
    /// Node that the report is about.
    pub node: Name,
    /// The agent that says so, over all its starts; empty: one of a version that has no name of its own.
    pub agent: Name,
    /// Grows with every start of the agent, even when the disk of its machine was lost: a report of a lower one
    /// is taken for a late one, and ignored.
    pub boot: u64,
    /// Grows with every report or heartbeat of one boot.
    pub seq: u64,
    /// What the node offers.
    pub inventory: Arc<Inventory>,
    /// Revision of the assignment that the agent is carrying out.
    pub revision: Revision,
    /// Every worker process that the agent knows of.
    pub workers: Vec<WorkerReport>,
    /// The probe that it is to make, and how far that is.
    pub probe: Option<ProbeReport>,
}

/// State of one worker process, from its agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerReport {
    /// Which worker.
    pub id: WorkerId,
    /// What it is doing.
    pub state: WorkerState,
    /// How long ago its last checkpoint was found on disk, in milliseconds; `None`: none that is known.
    pub checkpoint_age_ms: Option<u64>,
    /// How far it is, as it told last; `None`: it told nothing.
    pub progress: Option<Progress>,
    /// What it has to do, as it told last; `None`: it is no replica of a service, or told nothing.
    pub load: Option<ReplicaLoad>,
}

/// What a replica of a service has to do, in its own words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaLoad {
    /// Requests that are being answered.
    pub running: u32,
    /// Requests that wait for that.
    pub waiting: u32,
    /// The time to the first token that nine of ten requests of late did not exceed, in milliseconds.
    pub ttft_ms: Option<u64>,
    /// The same of the time from one token to the next.
    pub tpot_ms: Option<u64>,
    /// Since a request last came, in milliseconds; `None`: none came.
    pub idle_ms: Option<u64>,
    /// What it has done since its start.
    pub work: Work,
}

/// How far a worker is, in its own words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps in all; 0: not known.
    pub total_steps: u64,
    /// What this rank does in a second, in thousandths of a token; 0: not told.
    pub rate_milli: u64,
    /// Of a training: where its time has gone.
    pub spent: Option<Spent>,
}

/// Where the time of a training has gone, from its first start to its last step, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// In steps, as long as they take when nothing is wrong.
    pub steps_us: u64,
    /// Loading, and waiting for others, before the first step.
    pub start_us: u64,
    /// What steps took longer in which a member was lost or late.
    pub recovery_us: u64,
    /// What other steps took longer.
    pub slow_us: u64,
    /// From the last checkpoint to a start from it.
    pub lost_us: u64,
    /// No part of that time: what one rank would take for all that was computed and counts.
    pub work_us: u64,
}

impl Spent {
    /// Adds the times of another one.
    pub fn add(&mut self, other: &Spent) {
        let Spent { steps_us, start_us, recovery_us, slow_us, lost_us, work_us } = *other;
        self.steps_us = self.steps_us.saturating_add(steps_us);
        self.start_us = self.start_us.saturating_add(start_us);
        self.recovery_us = self.recovery_us.saturating_add(recovery_us);
        self.slow_us = self.slow_us.saturating_add(slow_us);
        self.lost_us = self.lost_us.saturating_add(lost_us);
        self.work_us = self.work_us.saturating_add(work_us);
    }

    /// All of it.
    pub fn sum_us(&self) -> u64 {
        let Spent { steps_us, start_us, recovery_us, slow_us, lost_us, .. } = *self;
        [start_us, recovery_us, slow_us, lost_us].into_iter().fold(steps_us, u64::saturating_add)
    }
}

/// What a worker process is doing, from its agent. Only ever grows, in the order of the variants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// Launched, not yet ready.
    Starting,
    /// Doing its work.
    Running,
    /// Ended.
    Exited(Exit),
}

impl WorkerState {
    /// The later of two pieces of news about one worker; the first exit stands.
    pub fn max(self, other: WorkerState) -> WorkerState {
        use WorkerState::*;
        match (self, other) {
            (exited @ Exited(_), _) | (_, exited @ Exited(_)) => exited,
            (Running, _) | (_, Running) => Running,
            (Starting, Starting) => Starting,
        }
    }
}
