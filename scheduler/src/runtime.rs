//! The loop around the core: events in, commit, then act. Any doubt about a commit ends it.

mod follow;
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aquifer_core::jobs::Phase;
use aquifer_core::*;
use aquifer_proto::store::Row;
use aquifer_proto::{store as rows, v1, wire};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tonic::Status;
use tracing::{Span, info_span};

use crate::SPANS;
use crate::clock::Clock;
use crate::limits::CALL;
use crate::metrics::{Hours, Meters};
use crate::notes::Notes;
use crate::rivals::Rivals;
use crate::store::{History, Past, Store, StoreError};
pub use follow::Follower;
pub use session::Session;

/// Inputs that one commit takes in, at most.
const BATCH: usize = 1024;

/// Inputs that may wait for the loop, and how many of them may be of clients: agents always find room.
const INBOX: usize = 4096;
const OF_CLIENTS: usize = INBOX / 2;

/// Progress entries that are kept, at most.
const PROGRESS_KEPT: usize = 65_536;

/// With the moment of which the answer is, where that is not now.
type Query = Box<dyn FnOnce(&Cluster, Option<Instant>) + Send>;
type Reply = oneshot::Sender<Result<Answer, Refusal>>;

/// Something for the loop to do.
pub enum Input {
    /// A client's request, where the answer goes, and the span of its call.
    Command(Command, Reply, Span),
    /// An agent's report, and the session that brought it.
    Report(Arc<Session>, NodeReport),
    /// An agent's heartbeat.
    #[allow(missing_docs)]
    Heartbeat { node: NodeId, boot: u64, seq: u64, same_as: u64 },
    /// Read what is committed.
    Query(Query),
}

/// What the loop shares with the services.
pub struct Shared {
    /// Directory for the checkpoints of jobs that name none; may be empty.
    pub checkpoint_root: String,
    /// Jobs that have retired.
    past: Past,
    /// What happened.
    pub notes: Notes,
    /// What is counted.
    pub meters: Meters,
    /// Time of devices.
    hours: Mutex<Hours>,
    /// Agents that were refused.
    pub rivals: Rivals,
    /// Sessions by the name of their node.
    sessions: Mutex<BTreeMap<Name, Arc<Session>>>,
    /// What workers last told of themselves. Soft state: never stored.
    progress: Mutex<BTreeMap<(JobId, u32), v1::Progress>>,
}

/// Handle of the loop.
#[derive(Clone)]
pub struct Runtime {
    inputs: mpsc::Sender<Input>,
    /// Room of clients among the inputs.
    of_clients: Arc<Semaphore>,
    /// What the loop shares.
    pub shared: Arc<Shared>,
    /// Term of this scheduler.
    pub term: u64,
    /// Rules of the pool.
    pub policy: Policy,
}

/// The loop has ended: its process is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the scheduler is shutting down")]
pub struct Ended;

impl Runtime {
    /// Restores the pool from the store, and starts the loop in a thread of its own.
    ///
    /// The receiver gets the reason when the loop ends by itself.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn start(
        policy: Policy,
        checkpoint_root: String,
        mut store: Box<dyn Store>,
        meters: Meters,
    ) -> Result<(Runtime, oneshot::Receiver<StoreError>), StoreError> {
        let clock = Clock::start();
        let opened = store.open_term()?;
        let cluster = Cluster::restore(policy, opened.term, opened.records, clock.now());
        tracing::info!(
            term = opened.term,
            jobs = cluster.jobs().len(),
            nodes = cluster.nodes().len(),
            "restored"
        );
        let shared = Shared {
            hours: Mutex::new(Hours::of(&cluster)),
            ..Shared::new(checkpoint_root, store.history(), opened.term, meters)
        };
        let (runtime, receiver) = Runtime::new(policy, opened.term, shared);
        let shared = runtime.shared.clone();
        let (failed, failure) = oneshot::channel();
        let timer = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|error| StoreError::Failed { path: "timer".into(), cause: error.to_string() })?;
        let decider = Decider { cluster, store, clock, shared, bound: BTreeMap::new() };
        let body = move || {
            if let Err(error) = timer.block_on(decider.run(receiver)) {
                tracing::error!("{error}");
                _ = failed.send(error);
            }
        };
        std::thread::Builder::new()
            .name("decider".into())
            .spawn(body)
            .map_err(|error| StoreError::Failed { path: "thread".into(), cause: error.to_string() })?;
        Ok((runtime, failure))
    }

    /// A handle, and what arrives through it.
    fn new(policy: Policy, term: u64, shared: Shared) -> (Runtime, mpsc::Receiver<Input>) {
        let (inputs, receiver) = mpsc::channel(INBOX);
        let of_clients = Arc::new(Semaphore::new(OF_CLIENTS));
        (Runtime { inputs, of_clients, shared: Arc::new(shared), term, policy }, receiver)
    }

    /// Hands an input to the loop.
    ///
    /// # Errors
    /// When the loop has ended.
    pub async fn send(&self, input: Input) -> Result<(), Ended> {
        self.inputs.send(input).await.map_err(|_| Ended)
    }

    /// Inputs that wait for the loop.
    pub fn waiting(&self) -> usize {
        self.inputs.max_capacity() - self.inputs.capacity()
    }

    /// Carries out a request. Durable when it returns.
    ///
    /// # Errors
    /// When the loop has ended: whether the request was carried out is unknown.
    pub async fn command(&self, command: Command) -> Result<Result<Answer, Refusal>, Ended> {
        let (reply, answer) = oneshot::channel();
        let asked = Instant::now();
        let call = CALL.try_with(Arc::clone).ok();
        let _turn = match &call {
            Some(call) => Some(call.command().await),
            None => None,
        };
        let _room = self.of_clients.acquire().await.expect("it is never closed");
        self.send(Input::Command(command, reply, Span::current())).await?;
        let answer = answer.await.map_err(|_| Ended);
        self.shared.meters.on_command(asked.elapsed());
        answer
    }

    /// Reads what is committed, for a client: the time it takes counts against the limits of whose call this is.
    ///
    /// # Errors
    /// When the loop has ended.
    pub async fn query<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Cluster) -> T + Send + 'static,
    ) -> Result<T, Ended> {
        let Ok(call) = CALL.try_with(Arc::clone) else { return self.read(query).await };
        let _turn = call.question().await;
        let _room = self.of_clients.acquire().await.expect("it is never closed");
        let charged = call.clone();
        self.ask(move |cluster, as_of| {
            let begun = Instant::now();
            let answer = query(cluster);
            charged.charge(begun.elapsed());
            charged.answer_as_of(as_of);
            answer
        })
        .await
    }

    /// Reads what is committed, for this scheduler and its agents.
    ///
    /// # Errors
    /// When the loop has ended.
    pub async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Cluster) -> T + Send + 'static,
    ) -> Result<T, Ended> {
        self.ask(|cluster, _| query(cluster)).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Cluster, Option<Instant>) -> T + Send + 'static,
    ) -> Result<T, Ended> {
        let (reply, answer) = oneshot::channel();
        let query: Query = Box::new(move |cluster, as_of| _ = reply.send(query(cluster, as_of)));
        self.send(Input::Query(query)).await?;
        answer.await.map_err(|_| Ended)
    }
}

/// Why a job that has retired cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("jobs that have retired cannot be read: {0}")]
pub struct NoPast(StoreError);

impl Shared {
    /// Reads jobs that have retired, in a thread that may wait.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn past<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Past) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, NoPast> {
        let past = self.past.clone();
        let read = tokio::task::spawn_blocking(move || read(&past)).await;
        read.expect("reading does not panic").map_err(NoPast)
    }
}

/// The loop's own state.
struct Decider {
    cluster: Cluster,
    store: Box<dyn Store>,
    clock: Clock,
    shared: Arc<Shared>,
    /// Sessions by node.
    bound: BTreeMap<NodeId, Arc<Session>>,
}

impl Decider {
    /// Runs until all handles are dropped, or a commit fails.
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>) -> Result<(), StoreError> {
        let (mut effects, mut saves) = (Vec::new(), Vec::new());
        loop {
            let Some(first) = self.next(&mut inputs).await else { return Ok(()) };
            let (mut replies, mut queries, mut calls) = (Vec::new(), Vec::new(), Vec::new());
            let mut next = first;
            for _ in 0..BATCH {
                self.take(next, &mut effects, &mut replies, &mut queries, &mut calls);
                match inputs.try_recv() {
                    Ok(input) => next = Some(input),
                    Err(_) => break,
                }
            }
            self.shared.enter_usage(&self.cluster, &effects);
            collect_saves(&mut effects, &mut saves);
            let begun = Instant::now();
            self.commit(&saves, &calls)?;
            self.shared.meters.on_commit(begun.elapsed(), saves.len());
            saves.clear();
            for effect in effects.drain(..) {
                self.perform(effect, &mut replies);
            }
            for query in queries {
                query(&self.cluster, None);
            }
        }
    }

    /// The next input, or `Some(None)` when the core's deadline comes first; `None` when there is nobody left.
    async fn next(&self, inputs: &mut mpsc::Receiver<Input>) -> Option<Option<Input>> {
        let Some(deadline) = self.cluster.deadline() else { return inputs.recv().await.map(Some) };
        let wait = Duration::from_millis(deadline.since(self.clock.now()));
        match tokio::time::timeout(wait, inputs.recv()).await {
            Ok(input) => input.map(Some),
            Err(_) => Some(None),
        }
    }

    fn take(
        &mut self,
        input: Option<Input>,
        effects: &mut Vec<Effect>,
        replies: &mut Vec<Option<Reply>>,
        queries: &mut Vec<Query>,
        calls: &mut Vec<Span>,
    ) {
        let event = match input {
            None => Event::Tick,
            Some(Input::Query(query)) => return queries.push(query),
            Some(Input::Command(command, reply, call)) => {
                replies.push(Some(reply));
                let id = replies.len() as u64 - 1;
                calls.push(call.clone());
                let _in_call = call.entered();
                return self.decide(Event::Request { id, command }, effects);
            }
            Some(Input::Heartbeat { node, boot, seq, same_as }) => {
                Event::Heartbeat { node, boot, seq, same_as }
            }
            Some(Input::Report(session, report)) => {
                let nodes = self.cluster.nodes();
                let is_taken = |id| nodes.is_taken(id, &report.agent);
                if nodes.by_name(&report.node).is_some_and(is_taken) {
                    // Two began at the same time. How its next session begins tells it.
                    return session.end(Status::already_exists("another agent has this node"));
                }
                let before = effects.len();
                self.decide(Event::Report(report), effects);
                self.bind(session, before, effects);
                return;
            }
        };
        self.decide(event, effects);
    }

    /// Makes rows durable, on behalf of these calls among others.
    fn commit(&mut self, saves: &[Row], calls: &[Span]) -> Result<(), StoreError> {
        if saves.is_empty() {
            return self.store.commit(saves);
        }
        let span = info_span!(target: SPANS, parent: None, "commit", records = saves.len());
        calls.iter().for_each(|call| _ = span.follows_from(call));
        let _entered = span.entered();
        self.store.commit(saves)
    }

    fn decide(&mut self, event: Event, effects: &mut Vec<Effect>) {
        let begun = Instant::now();
        let _span = match kind(&event) {
            "heartbeat" => Span::none(),
            kind => info_span!(target: SPANS, "decide", event = kind),
        }
        .entered();
        self.cluster.step(self.clock.now(), event, effects);
        self.shared.meters.on_decision(begun.elapsed());
    }

    /// From now on, what is for the node goes to this session. What was decided for an earlier one, the first
    /// `before` effects, must not: it may be of an earlier start of the agent.
    fn bind(&mut self, session: Arc<Session>, before: usize, effects: &mut Vec<Effect>) {
        let id = self.cluster.nodes().by_name(&session.node).expect("a node that reported");
        if session.id.swap(id.0, Ordering::Relaxed) == id.0 {
            return;
        }
        self.bound.insert(id, session);
        let mut at = 0;
        effects.retain(|effect| {
            at += 1;
            match effect {
                Effect::Assign { node, .. } | Effect::Renew { node, .. } | Effect::AskReport(node) => {
                    before < at || *node != id
                }
                Effect::Save(_) | Effect::Reply(..) | Effect::Note(_) => true,
            }
        });
    }

    fn perform(&self, effect: Effect, replies: &mut [Option<Reply>]) {
        use v1::scheduler_message::Message;
        match effect {
            Effect::Save(_) => unreachable!("records were set apart and are durable"),
            Effect::Assign { node, acked, assignment } => {
                self.tell(node, || Message::Assignment(wire::assignment(acked, &assignment)));
            }
            Effect::Renew { node, acked } => self.tell(node, || Message::Renew(v1::Renew { acked })),
            Effect::AskReport(node) => self.tell(node, || Message::AskReport(v1::Empty {})),
            Effect::Reply(id, result) => {
                let reply = replies[id as usize].take().expect("one reply a request");
                _ = reply.send(result); // The client may have left.
            }
            Effect::Note(note) => {
                self.shared.meters.on_note(&note, &self.cluster);
                self.shared.notes.add(self.cluster.now(), note);
            }
        }
    }

    fn tell(&self, node: NodeId, message: impl FnOnce() -> v1::scheduler_message::Message) {
        if let Some(session) = self.bound.get(&node) {
            session.tell(message());
        }
    }
}

/// What an event is about, in a word.
fn kind(event: &Event) -> &'static str {
    match event {
        Event::Request { command, .. } => match command {
            Command::Submit(_) => "submit",
            Command::Cancel { .. } => "cancel",
            Command::Scale { .. } => "scale",
            Command::Demand { .. } => "demand",
            Command::SetNode { .. } => "set-node",
            Command::SetDevice { .. } => "set-device",
            Command::SetQueue(_) => "set-queue",
            Command::SetPrice { .. } => "set-price",
            Command::Reserve(_) => "reserve",
            Command::Unreserve(_) => "unreserve",
        },
        Event::Report(_) => "report",
        Event::Heartbeat { .. } => "heartbeat",
        Event::Tick => "tick",
    }
}

/// Moves the records out of the effects, encoded, the last of each identity only.
fn collect_saves(effects: &mut Vec<Effect>, saves: &mut Vec<Row>) {
    let mut seen = BTreeSet::new();
    let mut records = Vec::new();
    effects.retain_mut(|effect| match effect {
        Effect::Save(record) => {
            records.push(rows::encode(record));
            false
        }
        _ => true,
    });
    for row in records.into_iter().rev() {
        if seen.insert((row.kind, row.key.clone())) {
            saves.push(row);
        }
    }
}

impl Shared {
    /// With nobody connected.
    fn new(checkpoint_root: String, history: Arc<dyn History>, term: u64, meters: Meters) -> Shared {
        Shared {
            checkpoint_root,
            past: Past::of(history),
            notes: Notes::of_term(term),
            meters,
            hours: Mutex::default(),
            rivals: Rivals::default(),
            sessions: Mutex::default(),
            progress: Mutex::default(),
        }
    }

    /// The session of a node.
    pub fn session(&self, node: &str) -> Option<Arc<Session>> {
        self.sessions.lock().expect("no holder panics").get(node).cloned()
    }

    /// A session began; it replaces an earlier one of the same node.
    pub fn add_session(&self, session: Arc<Session>) {
        self.sessions.lock().expect("no holder panics").insert(session.node.clone(), session);
    }

    /// A session ended.
    pub fn remove_session(&self, session: &Arc<Session>) {
        let mut sessions = self.sessions.lock().expect("no holder panics");
        if sessions.get(&session.node).is_some_and(|current| Arc::ptr_eq(current, session)) {
            sessions.remove(&session.node);
        }
    }

    /// Agents that are connected.
    pub fn session_count(&self) -> usize {
        self.sessions.lock().expect("no holder panics").len()
    }

    /// Queues whose usage is written hold something else now.
    fn enter_usage(&self, cluster: &Cluster, effects: &[Effect]) {
        let mut hours = None;
        for effect in effects {
            if let Effect::Save(Record::Usage(queue, _)) = effect {
                let hours = hours.get_or_insert_with(|| self.hours.lock().expect("no holder panics"));
                hours.on_change(cluster, queue);
            }
        }
    }

    /// What each queue's own jobs have held since this scheduler began to lead, in thousandths of a reference device
    /// times milliseconds.
    pub fn reference_milli_ms(&self, now: Time) -> BTreeMap<Name, u128> {
        self.hours.lock().expect("no holder panics").at(now)
    }

    /// Takes in what a worker told of itself.
    pub fn set_progress(&self, worker: WorkerId, progress: v1::Progress) {
        let mut all = self.progress.lock().expect("no holder panics");
        all.insert((worker.job, worker.rank), progress);
        if PROGRESS_KEPT < all.len() {
            all.pop_first();
        }
    }

    /// Tokens a second of a job that runs, as its workers tell: replicas each for itself, others for all of the job.
    pub fn tokens_per_s(&self, job: &jobs::Job) -> f64 {
        let all = self.progress.lock().expect("no holder panics");
        let told = all.range((job.id, 0)..=(job.id, u32::MAX)).map(|(_, progress)| progress);
        let current =
            told.filter(|it| it.worker.as_ref().is_some_and(|worker| worker.attempt == job.attempt));
        let rates = current.filter_map(|it| it.tokens_per_s).filter(|rate| rate.is_finite() && 0.0 < *rate);
        if job.spec.is_live() { rates.sum() } else { rates.fold(0.0, f64::max) }
    }

    /// What the worker of a job's rank last told of itself, in the job's current or last attempt.
    pub fn progress(&self, job: &jobs::Job, rank: u32) -> Option<v1::Progress> {
        let all = self.progress.lock().expect("no holder panics");
        let progress = all.get(&(job.id, rank))?;
        let current = progress.worker.as_ref().is_some_and(|worker| worker.attempt == job.attempt);
        (current && !matches!(job.phase, Phase::Pending(_))).then(|| progress.clone())
    }
}
