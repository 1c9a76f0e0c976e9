//! The agent's half of the protocol: carries out assignments, reports what is.
//!
//! Sans-IO like [`Cluster`](crate::Cluster); the live agent and the simulated one both run it. Times are of
//! the node's own clock, which must run on while the machine sleeps; they are never compared with the
//! scheduler's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::event::*;
use crate::inquiry::{ProbeOrder, ProbeReport, ProbeState};
use crate::members::Members;
use crate::stop::StopReason;
use crate::types::*;

/// Between two reports that only say how far workers are.
pub const PROGRESS_EVERY: Duration = Duration::from_secs(60);

/// Between two reports that only say what a replica of a service has to do.
pub const LOAD_EVERY: Duration = Duration::from_secs(5);

/// State of one agent.
#[derive(Clone, Debug)]
pub struct NodeAgent {
    node: Name,
    /// Its own, over all its starts.
    name: Name,
    inventory: Arc<Inventory>,
    revision: Revision,
    orders: Vec<WorkerOrder>,
    workers: BTreeMap<WorkerId, WorkerState>,
    /// When the last checkpoint of a worker was found.
    checkpoints: BTreeMap<WorkerId, Time>,
    /// How far workers are, and when that was last worth a report.
    progress: BTreeMap<WorkerId, (Progress, Time)>,
    /// What replicas have to do, likewise.
    loads: BTreeMap<WorkerId, Told>,
    /// Those that the end of the lease ended, or is about to.
    fenced: BTreeSet<WorkerId>,
    /// Those that run on when the lease ends. See [`OnPartition::Keep`].
    kept: BTreeSet<WorkerId>,
    /// What it is to probe, and how far that is.
    probe: Option<(ProbeOrder, ProbeState)>,
    boot: u64,
    seq: u64,
    /// Grows with every change of what a report would say.
    version: u64,
    /// Messages sent and not yet answered.
    unanswered: VecDeque<Sent>,
    /// The last whole report that the scheduler is known to have handled, and what version it told.
    known: Option<(u64, u64)>,
    lease: Duration,
    lease_end: Time,
}

/// What a replica told of its load.
#[derive(Clone, Copy, Debug)]
struct Told {
    latest: ReplicaLoad,
    /// What reports say since `at`.
    reported: Option<ReplicaLoad>,
    at: Time,
}

/// A message that was sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    seq: u64,
    at: Time,
    /// What version it told, if it was a whole report.
    version: Option<u64>,
}

/// What an agent says to the scheduler.
#[derive(Clone, Debug)]
pub enum Message {
    /// Everything.
    Report(NodeReport),
    /// Nothing has changed since the report `same_as`.
    #[allow(missing_docs)]
    Heartbeat { boot: u64, seq: u64, same_as: u64 },
}

/// What the agent's shell must do to processes.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Tell the workers of a job who takes part in it, those that run and those that are yet to be started.
    Tell(Arc<Members>),
    /// Start a process.
    Launch(WorkerId, Arc<Launch>),
    /// End a process: with a signal and this grace in milliseconds, or at once with 0.
    Stop {
        /// Which.
        worker: WorkerId,
        /// Time until it is killed, in milliseconds.
        grace_ms: u64,
        /// What it is told.
        why: StopReason,
    },
    /// The scheduler has taken note of the worker's exit; nobody will ask for its state again.
    Forget(WorkerId),
    /// Make a probe, in place of an earlier one.
    Probe(ProbeOrder),
    /// End the probe that is made. It has ended before anything else is launched.
    EndProbe,
}

impl NodeAgent {
    /// An agent that has just started.
    ///
    /// * `boot`: larger than that of any earlier start on this node.
    /// * `workers`: those that an earlier start left running, or whose exit it may not have reported. Without
    ///   those that ended because the machine stopped or the lease ran out: they are lost, they did not fail.
    /// * `kept`: those of them that run on when the lease ends.
    /// * `lease_end`: end of the lease under which the others run, as the shell wrote it down; `Time(0)` if the
    ///   machine was started since, as its clock may have begun anew.
    pub fn new(
        node: Name,
        inventory: Arc<Inventory>,
        boot: u64,
        workers: BTreeMap<WorkerId, WorkerState>,
        kept: BTreeSet<WorkerId>,
        lease_end: Time,
    ) -> NodeAgent {
        NodeAgent {
            node,
            name: Name::default(),
            inventory,
            revision: Revision::default(),
            orders: Vec::new(),
            workers,
            checkpoints: BTreeMap::new(),
            progress: BTreeMap::new(),
            loads: BTreeMap::new(),
            fenced: BTreeSet::new(),
            kept,
            probe: None,
            boot,
            seq: 0,
            version: 0,
            unanswered: VecDeque::new(),
            known: None,
            lease: Duration::ZERO,
            lease_end,
        }
    }

    /// The same with a name of its own, which it keeps over all its starts.
    pub fn named(self, name: Name) -> NodeAgent {
        NodeAgent { name, ..self }
    }

    /// A session with the scheduler began: it grants leases of this length and must be told everything.
    pub fn on_session(&mut self, lease: Duration) {
        self.lease = lease;
        self.known = None;
        self.unanswered.clear();
    }

    /// The scheduler knows a later start of this node: what it would report must be newer than that.
    pub fn set_boot(&mut self, boot: u64) {
        assert!(self.boot < boot, "boot {boot} after {}", self.boot);
        self.boot = boot;
    }

    /// Its own name; empty: it has none.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The start that it reports.
    pub fn boot(&self) -> u64 {
        self.boot
    }

    /// Highest term that it has seen.
    pub fn term(&self) -> u64 {
        self.revision.term
    }

    /// The next message to send: a whole report if anything has changed, else a heartbeat.
    pub fn message(&mut self, now: Time) -> Message {
        self.seq += 1;
        self.load_is_news(now);
        let (boot, seq) = (self.boot, self.seq);
        let known = self.known.filter(|(_, version)| *version == self.version);
        let version = known.is_none().then_some(self.version);
        // An answer to a message that is older than a lease would renew nothing.
        while self.unanswered.front().is_some_and(|sent| sent.at + self.lease <= now) {
            self.unanswered.pop_front();
        }
        self.unanswered.push_back(Sent { seq, at: now, version });
        match known {
            Some((same_as, _)) => Message::Heartbeat { boot, seq, same_as },
            None => Message::Report(self.report(now)),
        }
    }

    fn report(&self, now: Time) -> NodeReport {
        // A worker that its lease ended is left out once it is gone: it is lost, it did not fail.
        let worker = |(id, state): (&WorkerId, &WorkerState)| match state {
            WorkerState::Exited(exit) if *exit != Exit::Code(0) && self.fenced.contains(id) => None,
            _ => {
                let checkpoint_age_ms = self.checkpoints.get(id).map(|at| now.since(*at));
                let progress = self.progress.get(id).map(|(progress, _)| *progress);
                let load = self.loads.get(id).and_then(|told| told.reported);
                Some(WorkerReport { id: *id, state: state.clone(), checkpoint_age_ms, progress, load })
            }
        };
        NodeReport {
            node: self.node.clone(),
            agent: self.name.clone(),
            boot: self.boot,
            seq: self.seq,
            inventory: self.inventory.clone(),
            revision: self.revision,
            workers: self.workers.iter().filter_map(worker).collect(),
            probe: self
                .probe
                .as_ref()
                .map(|(order, state)| ProbeReport { id: order.id, state: state.clone() }),
        }
    }

    /// Whether a whole report was sent that is not answered yet.
    pub fn awaits_report(&self) -> bool {
        self.unanswered.iter().any(|sent| sent.version.is_some())
    }

    /// Whether the scheduler is not known to know what a report would say now.
    pub fn has_news(&self) -> bool {
        self.known.is_none_or(|(_, version)| version != self.version)
    }

    /// The scheduler handled the message `seq`. Renews the lease from when that message was *sent*.
    pub fn on_renew(&mut self, seq: u64) {
        while let Some(sent) = self.unanswered.front().copied()
            && sent.seq <= seq
        {
            self.unanswered.pop_front();
            self.lease_end = self.lease_end.max(sent.at + self.lease);
            if let (true, Some(version)) = (sent.seq == seq, sent.version) {
                self.known = Some((seq, version));
            }
        }
    }

    /// The scheduler does not know what heartbeats refer to.
    pub fn on_ask_report(&mut self) {
        self.known = None;
    }

    /// The scheduler's answer to the message `seq`, with the whole assignment.
    ///
    /// Without a lease an assignment is void: its workers may have been placed elsewhere by now. The shell
    /// writes down [`NodeAgent::lease_end`] before it acts, for the supervisors and for the next agent.
    pub fn on_assignment(&mut self, now: Time, seq: u64, assignment: Assignment) -> Vec<Action> {
        self.on_renew(seq);
        if self.lease_end <= now || assignment.revision < self.revision {
            return Vec::new();
        }
        // What nobody knows of any more has been given up, and what it holds given to others: it goes first. The assignment
        // comes again with the next message, since what that reports is still the one before.
        let named = |id: &WorkerId| assignment.workers.binary_search_by_key(id, |order| order.id).is_ok();
        let strays: Vec<WorkerId> = self.alive().filter(|id| !named(id)).collect();
        if !strays.is_empty() {
            let why = StopReason::Unknown;
            return strays.into_iter().map(|worker| Action::Stop { worker, grace_ms: 0, why }).collect();
        }
        if self.revision < assignment.revision {
            self.version += 1;
        }
        self.revision = assignment.revision;
        self.orders = assignment.workers;
        // First: who is stopped knows by then whether it leaves alone.
        let mut actions: Vec<Action> = assignment.members.into_iter().map(Action::Tell).collect();
        actions.extend(self.on_probe_order(assignment.probe));
        for order in &self.orders {
            match (self.workers.get(&order.id), order.goal, &order.launch) {
                (None, Goal::Run, Some(launch)) => {
                    self.workers.insert(order.id, WorkerState::Starting);
                    if launch.spec.on_partition == OnPartition::Keep {
                        self.kept.insert(order.id);
                    }
                    actions.push(Action::Launch(order.id, launch.clone()));
                }
                (Some(WorkerState::Starting | WorkerState::Running), Goal::Stop, _) => {
                    let why = order.why.unwrap_or(StopReason::Unknown);
                    actions.push(Action::Stop { worker: order.id, grace_ms: order.grace_ms, why });
                }
                (Some(_), Goal::Run, _) | (None, ..) | (Some(WorkerState::Exited(_)), Goal::Stop, _) => (),
            }
        }
        let orders = &self.orders;
        let named = |id: &WorkerId| orders.binary_search_by_key(id, |order| order.id).is_ok();
        self.workers.retain(|id, _| {
            if named(id) {
                return true;
            }
            actions.push(Action::Forget(*id));
            self.fenced.remove(id);
            self.kept.remove(id);
            self.checkpoints.remove(id);
            self.progress.remove(id);
            self.loads.remove(id);
            self.version += 1;
            false
        });
        actions
    }

    /// A probe is made while nothing runs here, and makes way for what is launched.
    fn on_probe_order(&mut self, order: Option<ProbeOrder>) -> Vec<Action> {
        let known = self.probe.as_ref().map(|(known, _)| known.id);
        let is_new = known != order.as_ref().map(|order| order.id);
        let mut actions = Vec::new();
        if is_new {
            actions.extend(self.is_probing().then_some(Action::EndProbe));
            self.probe = order.map(|order| (order, ProbeState::Running));
            self.version += 1;
        }
        let launches = |order: &WorkerOrder| order.launch.is_some() && order.goal == Goal::Run;
        let is_in_use = self.alive().next().is_some() || self.orders.iter().any(launches);
        if self.is_probing() && is_in_use {
            actions.extend((!is_new).then_some(Action::EndProbe));
            self.end_probe(ProbeState::Yielded);
        } else if let Some((order, ProbeState::Running)) = self.probe.as_ref().filter(|_| is_new) {
            actions.push(Action::Probe(order.clone()));
        }
        actions
    }

    /// What it was told to probe.
    pub fn probe(&self) -> Option<&ProbeOrder> {
        self.probe.as_ref().map(|(order, _)| order)
    }

    fn is_probing(&self) -> bool {
        matches!(self.probe, Some((_, ProbeState::Running)))
    }

    fn end_probe(&mut self, how: ProbeState) {
        if let Some((_, state)) = &mut self.probe {
            *state = how;
            self.version += 1;
        }
    }

    /// A probe has ended. One that is not wanted any more says nothing.
    pub fn on_probe(&mut self, id: Revision, how: ProbeState) {
        if self.is_probing() && self.probe.as_ref().is_some_and(|(order, _)| order.id == id) {
            self.end_probe(how);
        }
    }

    /// A process changed state. News that is older than what is known changes nothing.
    pub fn on_worker(&mut self, id: WorkerId, state: WorkerState) {
        if let Some(known) = self.workers.get_mut(&id) {
            let latest = known.clone().max(state);
            if *known != latest {
                *known = latest;
                self.version += 1;
            }
        }
    }

    /// A worker has a new checkpoint on disk.
    pub fn on_checkpoint(&mut self, now: Time, id: WorkerId) {
        if self.workers.contains_key(&id) {
            self.checkpoints.insert(id, now);
            self.version += 1;
        }
    }

    /// A worker told how far it is. That alone is worth a report once in [`PROGRESS_EVERY`]; others say it too.
    pub fn on_progress(&mut self, now: Time, id: WorkerId, progress: Progress) {
        if !self.workers.contains_key(&id) {
            return;
        }
        match self.progress.get_mut(&id) {
            Some((known, at)) => {
                let is_due = *at + PROGRESS_EVERY <= now && *known != progress;
                *known = progress;
                if is_due {
                    *at = now;
                    self.version += 1;
                }
            }
            None => {
                self.progress.insert(id, (progress, now));
                self.version += 1;
            }
        }
    }

    /// A replica told what it has to do: worth a report once in [`LOAD_EVERY`], and the last word in any case.
    pub fn on_load(&mut self, id: WorkerId, load: ReplicaLoad) {
        if self.workers.contains_key(&id) {
            let new = Told { latest: load, reported: None, at: Time(0) };
            self.loads.entry(id).or_insert(new).latest = load;
        }
    }

    /// Loads that it is time to report make news.
    fn load_is_news(&mut self, now: Time) {
        for told in self.loads.values_mut() {
            if told.reported != Some(told.latest) && told.at + LOAD_EVERY <= now {
                (told.reported, told.at) = (Some(told.latest), now);
                self.version += 1;
            }
        }
    }

    /// Something else than this agent ended a worker because the lease had run out: its supervisor.
    pub fn on_fenced(&mut self, id: WorkerId) {
        self.fenced.insert(id);
        self.on_worker(id, WorkerState::Exited(Exit::Failed("its lease ran out".into())));
    }

    /// The node's devices, or what else it offers, are not what they were.
    pub fn on_inventory(&mut self, inventory: Arc<Inventory>) {
        if self.inventory != inventory {
            self.inventory = inventory;
            self.version += 1;
        }
    }

    /// Ends the workers that are not to outlive the lease once it has run out: the scheduler may place them elsewhere from
    /// now on.
    pub fn on_tick(&mut self, now: Time) -> Vec<Action> {
        if now < self.lease_end {
            return Vec::new();
        }
        let leased: Vec<WorkerId> = self.leased().collect();
        self.fenced.extend(&leased);
        let stops = leased.into_iter();
        let mut actions: Vec<Action> =
            stops.map(|worker| Action::Stop { worker, grace_ms: 0, why: StopReason::Unknown }).collect();
        if self.is_probing() {
            self.end_probe(ProbeState::Yielded);
            actions.push(Action::EndProbe);
        }
        actions
    }

    /// Workers that run or are about to.
    pub fn alive(&self) -> impl Iterator<Item = WorkerId> {
        let alive = self.workers.iter().filter(|(_, state)| !matches!(state, WorkerState::Exited(_)));
        alive.map(|(id, _)| *id)
    }

    /// Those of them that end with the lease.
    pub fn leased(&self) -> impl Iterator<Item = WorkerId> {
        self.alive().filter(|id| !self.kept.contains(id))
    }

    /// All workers that it would report.
    pub fn workers(&self) -> &BTreeMap<WorkerId, WorkerState> {
        &self.workers
    }

    /// End of the lease.
    pub fn lease_end(&self) -> Time {
        self.lease_end
    }
}
