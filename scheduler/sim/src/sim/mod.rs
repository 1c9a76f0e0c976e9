//! The run: a timeline, a scheduler with its store, machines, clients, and what lies between them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use aquifer_core::agent::Message;
use aquifer_core::*;

use crate::faults::{Faults, Timing};
use crate::machine::{End, Machine};
use crate::rng::Rng;
use crate::store::Store;

mod load;
mod machines;
mod pace;
mod probes;
mod timeline;

use pace::Counting;
pub use pace::WorkPace;
use timeline::Entry;

/// One run.
pub struct Sim {
    /// Virtual time, by the scheduler's clock.
    pub now: Time,
    /// The scheduler, while it runs.
    pub cluster: Option<Cluster>,
    /// What it wrote.
    pub store: Store,
    /// The machines, in the order in which they were added.
    pub machines: Vec<Machine>,
    /// What was said, with times.
    pub log: Vec<(Time, Line)>,
    /// Events handled by schedulers.
    pub steps: u64,
    /// Number of schedulers so far.
    pub term: u64,
    pub(crate) policy: Policy,
    pub(crate) faults: Faults,
    pub(crate) timing: Timing,
    pub(crate) heal_at: Time,
    pub(crate) rng: Rng,
    pub(crate) clients: Vec<Client>,
    pub(crate) ends: BTreeMap<WorkerId, End>,
    pub(crate) changed_steps: u64,
    /// Workers that supervisors ended because of the lease.
    pub(crate) fenced: u64,
    work: BTreeMap<Name, Work>,
    launched: BTreeMap<WorkerId, usize>,
    /// Lists of members that workers were told of, by job, attempt and epoch.
    pub(crate) told: BTreeMap<(JobId, u32), BTreeMap<u32, Arc<Members>>>,
    machine_by_name: BTreeMap<Name, usize>,
    timeline: BinaryHeap<Reverse<Entry>>,
    entries: u64,
    effects: Vec<Effect>,
    batch: Batch,
    batch_is_due: bool,
    /// Workers of rank 0 that count their steps.
    counting: BTreeMap<WorkerId, Counting>,
    /// Steps that jobs have saved.
    saved_steps: BTreeMap<JobId, u64>,
    /// Services for which trainings have given ranks up: when these have stopped is not for the check to say.
    pub(crate) claimants: BTreeSet<JobId>,
    /// What a script says that replicas of jobs have to do, and since when.
    loads: BTreeMap<JobId, (u32, Time)>,
    /// When jobs were last moved to another class.
    pub(crate) moved: BTreeMap<JobId, Time>,
    crash_next: Option<CrashPoint>,
    last_report: Vec<Option<NodeReport>>,
    /// The newest report that this scheduler was told, by the name of the node.
    pub(crate) newest: BTreeMap<Name, NodeReport>,
}

/// What a run says.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// A note of the scheduler.
    Note(Note),
    /// A fault, an answer, an explanation.
    Text(String),
}

/// What the workers of a job do, by the job's name.
#[derive(Clone, Debug)]
pub struct Work {
    /// How long each rank works before it exits with 0; `None`: until it is stopped.
    pub run_ms: Option<u64>,
    /// Attempts that fail, from the first on.
    pub failures: u32,
    /// How rank 0 ends in those: at its launch if it is [`Exit::Failed`], else after half of `run_ms`.
    pub exit: Exit,
    /// Time between two checkpoints of rank 0; `None`: it writes none.
    pub checkpoint_ms: Option<u64>,
    /// How fast it gets on, of which rank 0 tells; `None`: it tells nothing.
    pub pace: Option<WorkPace>,
}

/// Where in a commit a scheduler crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashPoint {
    /// Nothing of it is written.
    BeforeCommit,
    /// All is written, and nothing else done.
    AfterCommit,
}

/// Somebody who asks until there is an answer.
#[derive(Clone, Debug)]
pub struct Client {
    /// What is asked.
    pub command: Command,
    /// When the client stops to repeat itself.
    pub gives_up: Time,
    /// The first answer.
    pub answer: Option<Result<Answer, Refusal>>,
}

/// What waits for the commit of the step that it came from.
#[derive(Debug, Default)]
struct Batch {
    saves: Vec<Record>,
    acts: Vec<Act>,
}

#[derive(Debug)]
enum Act {
    Send { to: usize, boot: u64, downlink: Downlink },
    Reply(u64, Result<Answer, Refusal>),
    Note(Note),
}

#[derive(Clone, Debug)]
enum Downlink {
    Assign { acked: u64, assignment: Assignment },
    Renew { acked: u64 },
    AskReport,
}

#[derive(Clone, Debug)]
enum Pending {
    /// A client asks, or asks again.
    Ask(u64),
    Request(u64),
    Reply(u64, Result<Answer, Refusal>),
    ToScheduler {
        from: usize,
        message: Message,
    },
    ToAgent {
        to: usize,
        boot: u64,
        downlink: Downlink,
    },
    AgentTick {
        machine: usize,
        boot: u64,
    },
    AgentStart {
        machine: usize,
        incarnation: u64,
    },
    PowerOn(usize),
    /// Supervisors look at the lease.
    LeaseEnd(usize),
    Ready {
        machine: usize,
        incarnation: u64,
        worker: WorkerId,
    },
    Progress {
        machine: usize,
        incarnation: u64,
        worker: WorkerId,
    },
    Load {
        machine: usize,
        incarnation: u64,
        worker: WorkerId,
    },
    AskSleepers,
    Checkpoint {
        machine: usize,
        incarnation: u64,
        worker: WorkerId,
        every_ms: u64,
    },
    Exit {
        machine: usize,
        incarnation: u64,
        worker: WorkerId,
        exit: Exit,
        by_itself: bool,
    },
    Probed {
        machine: usize,
        incarnation: u64,
        probe: ProbeOrder,
        tries: u32,
    },
    Commit {
        term: u64,
    },
    SchedulerStart,
    Heal,
}

impl Sim {
    /// An empty pool at time `start`.
    pub fn new(seed: u64, policy: Policy, faults: Faults, timing: Timing, heal_at: Time) -> Sim {
        let mut sim = Sim {
            now: Time(0),
            cluster: Some(Cluster::restore(policy, 1, [], Time(0))),
            store: Store::default(),
            machines: Vec::new(),
            log: Vec::new(),
            steps: 0,
            term: 1,
            policy,
            faults,
            timing,
            heal_at,
            rng: Rng(seed),
            clients: Vec::new(),
            ends: BTreeMap::new(),
            changed_steps: 0,
            fenced: 0,
            work: BTreeMap::new(),
            launched: BTreeMap::new(),
            told: BTreeMap::new(),
            machine_by_name: BTreeMap::new(),
            timeline: BinaryHeap::new(),
            entries: 0,
            effects: Vec::new(),
            batch: Batch::default(),
            batch_is_due: false,
            counting: BTreeMap::new(),
            saved_steps: BTreeMap::new(),
            claimants: BTreeSet::new(),
            loads: BTreeMap::new(),
            moved: BTreeMap::new(),
            crash_next: None,
            last_report: Vec::new(),
            newest: BTreeMap::new(),
        };
        sim.push(heal_at, Pending::Heal);
        sim
    }

    /// Says what the workers of jobs of that name do. Without it they exit with 0 after 10 s.
    pub fn set_work(&mut self, job_name: Name, work: Work) {
        self.work.insert(job_name, work);
    }

    /// A client that asks at `at`, and again every 3 s until it is answered or gives up. One that submits
    /// without a client key asks only once.
    pub fn client(&mut self, at: Time, command: Command, gives_up: Time) -> u64 {
        let id = self.clients.len() as u64;
        self.clients.push(Client { command, gives_up, answer: None });
        self.push(at, Pending::Ask(id));
        id
    }

    /// Asks the scheduler now, past all networks. `None`: it is not there, or crashed before it answered.
    pub fn ask(&mut self, command: Command) -> Option<Result<Answer, Refusal>> {
        let id = self.clients.len() as u64;
        self.clients.push(Client { command: command.clone(), gives_up: self.now, answer: None });
        self.step(Event::Request { id, command });
        self.clients[id as usize].answer.clone()
    }

    /// Runs until nothing is left to do, or `until`. Checks every invariant after every event.
    pub fn run(&mut self, until: Time) {
        while !self.is_settled() {
            if !self.turn(until) {
                return;
            }
        }
    }

    /// Runs until `until`, whether or not there is work.
    pub fn run_until(&mut self, until: Time) {
        while self.turn(until) {}
        self.now = self.now.max(until);
    }

    /// Handles what is next, if that is not after `until`.
    fn turn(&mut self, until: Time) -> bool {
        let head = self.timeline.peek().map(|Reverse(entry)| entry.at);
        let deadline = self.cluster.as_ref().and_then(|cluster| cluster.deadline());
        let Some(next) = head.into_iter().chain(deadline).min() else { return false };
        if until < next {
            return false;
        }
        self.now = self.now.max(next);
        match head {
            Some(at) if at <= next => {
                let Reverse(entry) = self.timeline.pop().expect("its head");
                self.handle(entry.pending);
            }
            _ => {
                self.step(Event::Tick);
                let late = self.cluster.as_ref().and_then(|c| c.deadline()).is_some_and(|at| at <= self.now);
                assert!(!late, "the deadline stands still at {}", self.now);
            }
        }
        true
    }

    fn handle(&mut self, pending: Pending) {
        match pending {
            Pending::Ask(id) => self.on_ask(id),
            Pending::Request(id) => {
                let command = self.clients[id as usize].command.clone();
                self.step(Event::Request { id, command });
            }
            Pending::Reply(id, answer) => self.on_reply(id, answer),
            Pending::ToScheduler { from, message } => self.on_uplink(from, message),
            Pending::ToAgent { to, boot, downlink } => self.on_downlink(to, boot, downlink),
            Pending::AgentTick { machine, boot } => {
                let it = &self.machines[machine];
                if it.boot == boot && it.next_tick == self.now {
                    self.agent_tick(machine);
                }
            }
            Pending::AgentStart { machine, incarnation } => {
                let it = &self.machines[machine];
                if it.powered && it.incarnation == incarnation && it.agent.is_none() {
                    self.start_agent(machine);
                }
            }
            Pending::PowerOn(machine) => self.power_on(machine),
            Pending::LeaseEnd(machine) => self.on_lease_end(machine),
            Pending::Probed { machine, incarnation, probe, tries } => {
                self.on_probed(machine, incarnation, probe, tries);
            }
            Pending::Ready { machine, incarnation, worker } => {
                if self.machines[machine].incarnation == incarnation {
                    self.on_process(machine, worker, WorkerState::Running);
                }
            }
            Pending::Checkpoint { machine, incarnation, worker, every_ms } => {
                if self.machines[machine].incarnation == incarnation {
                    self.on_checkpoint(machine, worker, every_ms);
                }
            }
            Pending::Progress { machine, incarnation, worker } => {
                if self.machines[machine].incarnation == incarnation {
                    self.on_progress(machine, worker);
                }
            }
            Pending::Load { machine, incarnation, worker } => {
                if self.machines[machine].incarnation == incarnation {
                    self.on_load(machine, worker);
                }
            }
            Pending::AskSleepers => self.on_ask_sleepers(),
            Pending::Exit { machine, incarnation, worker, exit, by_itself } => {
                let it = &self.machines[machine];
                let process = it.processes.get(&worker).filter(|process| process.alive());
                if let (true, Some(process)) = (it.incarnation == incarnation, process) {
                    let by_itself = by_itself && !process.stopped;
                    self.ends.insert(worker, End { exit: Some(exit.clone()), by_itself });
                    self.on_process(machine, worker, WorkerState::Exited(exit));
                }
            }
            Pending::Commit { term } => {
                if self.term == term && self.batch_is_due {
                    self.commit();
                }
            }
            Pending::SchedulerStart => self.start_scheduler(),
            Pending::Heal => {
                for machine in 0..self.machines.len() {
                    let whole = (*self.machines[machine].whole).clone();
                    self.change_inventory(machine, |inventory| *inventory = whole);
                }
            }
        }
    }

    // ---- The scheduler ----

    pub(crate) fn step(&mut self, event: Event) {
        self.drained(&event);
        let Some(cluster) = &mut self.cluster else { return };
        self.steps += 1;
        let request = match &event {
            Event::Request { id, .. } => Some(*id),
            Event::Report(_) | Event::Heartbeat { .. } | Event::Tick => None,
        };
        let mut effects = std::mem::take(&mut self.effects);
        cluster.step(self.now, event, &mut effects);
        self.check_effects(request, &effects);
        let changed =
            effects.iter().any(|effect| !matches!(effect, Effect::Renew { .. } | Effect::AskReport(_)));
        for effect in effects.drain(..) {
            self.take_effect(effect);
        }
        self.effects = effects;
        if self.timing.commit_ms == (0, 0) {
            self.commit();
        } else if !self.batch_is_due {
            self.batch_is_due = true;
            let at = self.now.0 + self.rng.within(self.timing.commit_ms);
            self.push(Time(at), Pending::Commit { term: self.term });
        }
        self.check_step(changed);
    }

    /// Addresses what a step wants done. An answer is for the start of the agent that the cluster knows at
    /// that moment, and for no later one.
    fn take_effect(&mut self, effect: Effect) {
        let cluster = self.cluster.as_ref().expect("the scheduler that stepped");
        let mut send = |node: NodeId, downlink| {
            let node = cluster.nodes().get(node);
            let to = self.machine_by_name[&node.name];
            self.batch.acts.push(Act::Send { to, boot: node.boot, downlink });
        };
        match effect {
            Effect::Save(record) => self.batch.saves.push(record),
            Effect::Assign { node, acked, assignment } => send(node, Downlink::Assign { acked, assignment }),
            Effect::Renew { node, acked } => send(node, Downlink::Renew { acked }),
            Effect::AskReport(node) if (node.0 as usize) < cluster.nodes().len() => {
                send(node, Downlink::AskReport);
            }
            Effect::AskReport(_) => (),
            Effect::Reply(id, answer) => self.batch.acts.push(Act::Reply(id, answer)),
            Effect::Note(note) => self.batch.acts.push(Act::Note(note)),
        }
    }

    fn commit(&mut self) {
        self.batch_is_due = false;
        let crash = self.crash_next.filter(|_| !self.batch.saves.is_empty());
        if crash == Some(CrashPoint::BeforeCommit) || self.fault(self.faults.scheduler_crash) {
            return self.crash_scheduler();
        }
        let Batch { mut saves, mut acts } = std::mem::take(&mut self.batch);
        let mut records = saves.drain(..);
        while let Some(record) = records.next() {
            self.check_record(&record, records.as_slice());
            self.store.write(record);
        }
        drop(records);
        if crash == Some(CrashPoint::AfterCommit) || self.fault(self.faults.scheduler_crash) {
            return self.crash_scheduler();
        }
        for act in acts.drain(..) {
            match act {
                Act::Send { to, boot, downlink } => {
                    if self.now < self.machines[to].deaf_until {
                        continue;
                    }
                    self.send(true, |_| Pending::ToAgent { to, boot, downlink: downlink.clone() });
                }
                Act::Reply(id, answer) => {
                    self.check_answer(id, &answer);
                    if self.clients[id as usize].gives_up <= self.now {
                        self.on_reply(id, answer);
                    } else {
                        self.send(true, |_| Pending::Reply(id, answer.clone()));
                    }
                }
                Act::Note(note) => self.log.push((self.now, Line::Note(note))),
            }
        }
        self.batch = Batch { saves, acts };
    }

    /// Ends the scheduler, with what it has not committed. Another one follows by itself.
    pub fn crash_scheduler(&mut self) {
        self.stop_scheduler();
        let at = self.now.0 + self.rng.within(self.timing.downtime_ms);
        self.push(Time(at), Pending::SchedulerStart);
    }

    /// Ends the scheduler, until [`Sim::start_scheduler`].
    pub fn stop_scheduler(&mut self) {
        self.cluster = None;
        self.batch = Batch::default();
        self.batch_is_due = false;
        self.crash_next = None;
        self.say("scheduler stopped".into());
    }

    /// Crashes the scheduler in its next commit that has something to write.
    pub fn crash_at_next_commit(&mut self, point: CrashPoint) {
        self.crash_next = Some(point);
    }

    /// Starts a scheduler from what is stored.
    pub fn start_scheduler(&mut self) {
        if self.cluster.is_some() {
            return;
        }
        self.term += 1;
        let records = self.store.records();
        let cluster = Cluster::restore(self.policy, self.term, records, self.now);
        self.newest.clear();
        self.cluster = Some(cluster);
        self.check_restored();
        self.say(format!("scheduler started, term {}", self.term));
    }

    // ---- Clients ----

    fn on_ask(&mut self, id: u64) {
        let client = &self.clients[id as usize];
        if client.answer.is_some() || client.gives_up < self.now {
            return;
        }
        let repeatable = client.is_repeatable();
        self.send(repeatable, |_| Pending::Request(id));
        if repeatable {
            self.push(Time(self.now.0 + 3_000), Pending::Ask(id));
        }
    }

    fn on_reply(&mut self, id: u64, answer: Result<Answer, Refusal>) {
        let Some(earlier) = &self.clients[id as usize].answer else {
            self.clients[id as usize].answer = Some(answer);
            return;
        };
        if let (Ok(Answer::Submitted { first: was, .. }), Ok(Answer::Submitted { first: is, .. })) =
            (earlier, &answer)
        {
            // The older one's answer may come last.
            let (older, newer) = (*was.min(is), *was.max(is));
            assert!(
                was == is || self.is_forgotten(older, newer),
                "request {id} made two jobs: {was} and {is}"
            );
        }
    }

    // ---- The network ----

    fn send(&mut self, repeatable: bool, message: impl Fn(&Sim) -> Pending) {
        let copies = match (self.fault(self.faults.drop), self.fault(self.faults.duplicate)) {
            (true, _) => 0,
            (false, true) if repeatable => 2,
            (false, _) => 1,
        };
        for _ in 0..copies {
            let late = if self.fault(self.faults.delay) { self.rng.below(15_000) } else { 0 };
            let at = self.now.0 + self.rng.within(self.timing.message_ms) + late;
            let message = message(self);
            self.push(Time(at), message);
        }
    }

    fn fault(&mut self, per_mille: u64) -> bool {
        self.now < self.heal_at && self.rng.per_mille(per_mille)
    }

    fn push(&mut self, at: Time, pending: Pending) {
        self.entries += 1;
        self.timeline.push(Reverse(Entry { at, number: self.entries, pending }));
    }

    /// Whether nothing waits for its commit.
    pub(crate) fn is_committed(&self) -> bool {
        self.batch.saves.is_empty() && self.batch.acts.is_empty()
    }

    /// Adds a line to the log.
    pub fn say(&mut self, text: String) {
        self.log.push((self.now, Line::Text(text)));
    }
}

impl Client {
    /// Whether asking twice is the same as asking once.
    fn is_repeatable(&self) -> bool {
        !matches!(&self.command, Command::Submit(spec) if spec.client_key.is_empty())
    }

    /// Whether the client still waits for an answer that it will ask for again.
    pub(crate) fn waits(&self, now: Time) -> bool {
        self.answer.is_none() && now < self.gives_up && self.is_repeatable()
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Line::Note(note) => note.fmt(f),
            Line::Text(text) => f.write_str(text),
        }
    }
}
