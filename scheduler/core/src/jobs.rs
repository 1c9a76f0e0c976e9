//! Jobs, and the indexes over them.

mod dependencies;
pub mod history;
mod table;
mod usage;
mod yielding;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

pub use crate::jobs::dependencies::Dependency;
use crate::jobs::history::Ended;
use crate::jobs::table::Table;
pub use crate::jobs::usage::{Charge, Usage};
use crate::nodes::{Span, Until};
use crate::reservations::Guests;
pub use crate::shape::Shape;
use crate::types::*;

/// A job and its placement.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Identity.
    pub id: JobId,
    /// What the user asked for. Shared by the elements of an array.
    pub spec: Arc<JobSpec>,
    /// Place within its array, if it is an element of one.
    pub array: Option<ArrayElement>,
    /// When it was accepted.
    pub submitted: Time,
    /// Lifecycle phase.
    pub phase: Phase,
    /// Number of placements so far; 0 until the first.
    pub attempt: u32,
    /// Attempts that ended by a failure of the job's own.
    pub failures: u32,
    /// By role. Empty unless the job holds resources.
    pub ranks: Vec<Allocation>,
    /// What they are worth, in thousandths of a reference device. See [`Charge`].
    pub worth_milli: u64,
    /// Nodes of the workers of the current or last attempt, by [`Allocation::rank`], of all that it had: where logs are.
    pub last_nodes: Vec<NodeId>,
    /// When the current or last attempt was placed: its time limit counts from there.
    pub began: Option<Time>,
    /// The same, or when its ranks changed while it ran: for so long it holds what it holds.
    pub placed: Option<Time>,
    /// When its first attempt was placed.
    pub first_placed: Option<Time>,
    /// When it ended.
    pub ended: Option<Time>,
    /// Why the last attempt that failed ended.
    pub last_failure: Option<Why>,
    /// What it held over its attempts that are over.
    pub usage: Usage,
    /// What a user wants of its elastic role.
    pub scale: Option<Scale>,
}

/// Ranks that a user wants an elastic role to have, within its least and most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// How many; `None`: as many as it can have.
    pub ranks: Option<u32>,
    /// Since when.
    pub at: Time,
}

/// Place within an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArrayElement {
    /// The array's first job; the array is known by it.
    pub first: JobId,
    /// Index of this element.
    pub index: u32,
}

/// Phase of a job. `Pending -> Active -> Stopping -> (Pending | Done)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waits to be placed, not before this time.
    Pending(Time),
    /// Holds resources; every rank should run.
    Active,
    /// Holds resources until every rank is gone; then this happens.
    Stopping(Then),
    /// Ended.
    Done(Outcome),
}

/// What happens once all ranks of a stopping job are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Then {
    /// It is placed again, after a pause if it failed by itself.
    Requeue,
    /// It goes on at once with these ranks of those that it holds, in this order: the ranks of its next attempt. Those
    /// of them that the attempt which stops never had are gone already.
    Resize(Vec<u32>),
    /// It ends.
    Finish(Outcome),
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every rank exited with 0.
    Succeeded,
    /// It failed more often than it may be retried.
    Failed(Why),
    /// A job that it had to follow did not succeed.
    Unreachable(JobId),
    /// A user ended it.
    Cancelled,
    /// It ran for its time limit.
    TimedOut,
}

/// Why an attempt ended before its time.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Why {
    /// A worker ended otherwise than with exit code 0.
    WorkerFailed { rank: u32, node: Name, exit: Exit },
    /// The node of a rank was lost, or lost the worker.
    RankLost { rank: u32, node: Name },
    /// A device of a rank went bad.
    DeviceBad { rank: u32, node: Name, device: u16, fault: Name },
    /// An administrator drains the node of a rank.
    Drained { rank: u32, node: Name },
    /// It gave way to a job that waited.
    Preempted { by: JobId, at: Time },
    /// It moved from devices of one model to those of another.
    Moved { from: Name, to: Name },
    /// It moved so that a job which waited got room in one piece.
    MadeRoom { by: JobId, at: Time },
    /// It goes on with another number of ranks; `by`: because it gave way to a job that waited.
    Resized { from: u32, to: u32, by: Option<JobId>, at: Time },
    /// The node of a rank is booked for others.
    Booked { rank: u32, node: Name, reservation: Name },
}

/// Jobs that wait and could be placed as soon as there is room, by queue and shape, best first.
type Ready = BTreeMap<Name, Lines>;

/// Jobs of one queue that could be placed, by shape, best first.
pub type Lines = BTreeMap<Arc<Shape>, BTreeSet<Turn>>;

/// A job's place in the order of its queue, the smallest first: when it would have been submitted, in
/// milliseconds, had it waited for its priority; then the job.
///
/// With every period of ageing that a job waits, its priority counts one more. As that is true of all that wait,
/// it never changes who of two goes first, and the place stands from the first day.
pub type Turn = (i128, JobId);

/// All jobs, with indexes. The indexes are derived: [`Jobs::check`] recounts them.
#[derive(Clone, Debug, Default)]
pub struct Jobs {
    /// Time of waiting that counts as much as one of priority.
    ageing_ms: u64,
    /// Shared with copies of the cluster, as what-if questions make them.
    table: Table,
    /// Shapes of ready jobs, each with the number of queues that have one; shared by all jobs of that shape.
    shapes: BTreeMap<Arc<Shape>, usize>,
    ready: Ready,
    /// The shape of each of them.
    shape_of: BTreeMap<JobId, Arc<Shape>>,
    /// Jobs that hold resources.
    holding: BTreeSet<JobId>,
    /// Those of them that run, by queue: the lowest priority first, of one priority the latest.
    active: BTreeMap<Name, BTreeSet<(i32, Reverse<JobId>)>>,
    /// Those of them that give their resources back.
    stopping: BTreeSet<JobId>,
    /// Those of them that give way to another job, by that one.
    victims: BTreeMap<JobId, BTreeSet<JobId>>,
    /// Those of them that give way to none.
    leaving: BTreeSet<JobId>,
    /// Jobs that wait for what is promised to them: they stand in no line. Soft state.
    promised: BTreeSet<JobId>,
    /// Those that run with fewer ranks than they want.
    small: BTreeSet<JobId>,
    /// Those that serve a model and have not ended.
    services: BTreeSet<JobId>,
    /// Ends of pauses and of time limits.
    timers: BTreeSet<(Time, JobId)>,
    by_key: BTreeMap<Name, JobId>,
    /// Jobs that wait for the key to end.
    dependents: BTreeMap<JobId, BTreeSet<JobId>>,
    arrays: BTreeMap<JobId, ArrayCount>,
    /// Who may use which reservation.
    guests: Arc<Guests>,
    ended: Ended,
}

/// How far an array is, by its first job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ArrayCount {
    left: u32,
    /// The lowest element that ended otherwise than with success.
    failed: Option<JobId>,
}

impl Job {
    /// When its time limit ends it.
    pub fn expected_end(&self) -> Option<Time> {
        Some(Time(self.began?.0.saturating_add(self.spec.time_limit_ms?)))
    }

    /// When it must be looked at, while it runs: its time limit ends it, or a worker is to be started anew.
    fn timer(&self) -> Option<Time> {
        let restarts = self.spec.is_live().then(|| self.ranks.iter().filter_map(|rank| rank.restart_at));
        restarts.into_iter().flatten().chain(self.expected_end()).min()
    }

    /// For how long it holds its resources.
    pub fn span(&self) -> Span {
        let until = match self.expected_end() {
            Some(end) => Until::Time(end),
            None if self.spec.served().is_some() => Until::Never,
            None => Until::Unknown,
        };
        let (since, plain_grace_ms) = (self.placed.unwrap_or(self.submitted), self.plain_grace_ms());
        Span { since, until, plain_grace_ms }
    }

    /// See [`Span::plain_grace_ms`].
    pub(crate) fn plain_grace_ms(&self) -> Option<u64> {
        let is_plain = self.phase == Phase::Active && self.spec.restart == Restart::Gang;
        is_plain.then_some(self.spec.grace_ms)
    }

    /// Where the rank stands whose worker has a number. `O(1)` but for ranks that came later.
    ///
    /// # Panics
    /// When it has no such rank.
    pub fn position(&self, rank: u32) -> usize {
        let is_it = |it: &Allocation| it.rank == rank;
        let at = Some(rank as usize).filter(|at| self.ranks.get(*at).is_some_and(is_it));
        at.or_else(|| self.ranks.iter().position(is_it)).unwrap_or_else(|| panic!("{}: rank {rank}", self.id))
    }

    /// Whether all ranks are reported running.
    pub fn all_running(&self) -> bool {
        self.ranks.iter().all(|rank| rank.worker == RankState::Running)
    }
}

impl Jobs {
    /// No jobs.
    ///
    /// * `ageing`: the waiting that counts as much as one of priority.
    pub fn new(ageing: Duration) -> Jobs {
        Jobs { ageing_ms: ageing.as_millis() as u64, ..Jobs::default() }
    }

    /// The job.
    pub fn get(&self, id: JobId) -> Option<&Job> {
        self.table.get(id)
    }

    /// The same, to be kept.
    pub(crate) fn shared(&self, id: JobId) -> Option<Arc<Job>> {
        self.table.shared(id).cloned()
    }

    /// All jobs but those that have retired, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Job> {
        self.table.iter()
    }

    /// The same, to be kept.
    pub(crate) fn iter_shared(&self) -> impl Iterator<Item = &Arc<Job>> {
        self.table.iter_shared()
    }

    /// Jobs from `first` on, oldest first.
    pub fn range(&self, jobs: impl std::ops::RangeBounds<JobId>) -> impl DoubleEndedIterator<Item = &Job> {
        self.table.range(jobs)
    }

    /// Jobs that hold resources, oldest first.
    pub fn holding(&self) -> impl Iterator<Item = &Job> {
        self.holding.iter().map(|id| &self.table[*id])
    }

    /// Jobs that give their resources back, oldest first.
    pub fn stopping(&self) -> impl Iterator<Item = &Job> {
        self.stopping.iter().map(|id| &self.table[*id])
    }

    /// Jobs that run with fewer ranks than they want, oldest first.
    pub fn small(&self) -> impl Iterator<Item = &Job> {
        self.small.iter().map(|id| &self.table[*id])
    }

    /// Jobs that serve a model and have not ended, oldest first.
    pub fn services(&self) -> impl Iterator<Item = &Job> {
        self.services.iter().map(|id| &self.table[*id])
    }

    pub(crate) fn is_small(&self, job: JobId) -> bool {
        self.small.contains(&job)
    }

    /// The job's identity for placement: jobs of one shape fit alike.
    pub fn shape(&self, job: &Job) -> Shape {
        Shape { may_use: self.guests.of(&job.spec), ..job.shape() }
    }

    /// Says who may use which reservation. `O(ready jobs * log jobs)` if that changes anything.
    pub(crate) fn set_guests(&mut self, now: Time, guests: Arc<Guests>) {
        if self.guests == guests {
            return;
        }
        let ready = self.ready.values().flat_map(Lines::values).flatten().map(|(_, id)| *id);
        let ready: Vec<JobId> = ready.collect();
        ready.iter().for_each(|id| self.unindex(*id));
        self.guests = guests;
        ready.iter().for_each(|id| self.index(now, *id));
    }

    /// Jobs of the queue that run: the lowest priority first, of one priority the latest.
    pub(crate) fn active_in(&self, queue: &str) -> impl Iterator<Item = &Job> {
        self.active.get(queue).into_iter().flatten().map(|(_, Reverse(id))| &self.table[*id])
    }

    /// In how many queues jobs of the shape could be placed.
    pub(crate) fn queues_with(&self, shape: &Shape) -> usize {
        self.shapes.get(shape).copied().unwrap_or(0)
    }

    /// Jobs that could be placed now, but for those to which room is promised.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// The job that a client key made.
    pub fn by_key(&self, key: &str) -> Option<JobId> {
        self.by_key.get(key).copied()
    }

    /// The next moment at which [`Jobs::pop_timer`] has something.
    pub fn next_timer(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Takes one job whose pause or time limit is over by `now`.
    pub fn pop_timer(&mut self, now: Time) -> Option<JobId> {
        let (at, id) = *self.timers.first()?;
        if now < at {
            return None;
        }
        self.timers.pop_first();
        Some(id)
    }

    /// Adds a job, or replaces it, and brings the indexes up to date.
    pub(crate) fn insert(&mut self, now: Time, job: Arc<Job>) {
        if !job.spec.client_key.is_empty() && job.array.is_none_or(|array| array.first == job.id) {
            self.by_key.insert(job.spec.client_key.clone(), job.id);
        }
        if let Some(array) = job.array {
            self.arrays.entry(array.first).or_default().left += 1;
        }
        if !matches!(job.phase, Phase::Done(_)) {
            self.ended.enter_open(&job);
        }
        let id = job.id;
        self.table.insert(job);
        self.index(now, id);
    }

    /// Changes a job and brings the indexes up to date. `O(log jobs)`, and the change.
    pub(crate) fn update<R>(&mut self, now: Time, id: JobId, change: impl FnOnce(&mut Job) -> R) -> R {
        self.unindex(id);
        let result = change(self.table.get_mut(id).expect("a job that exists"));
        self.index(now, id);
        if matches!(self.table[id].phase, Phase::Done(_)) {
            self.enter_ended(id);
        }
        result
    }

    /// Changes the state of one rank's worker, of which no index depends; returns the node that it is on, and what
    /// [`Span::plain_grace_ms`] is of its job.
    pub(crate) fn set_rank_state(&mut self, worker: WorkerId, state: RankState) -> (NodeId, Option<u64>) {
        let job = self.table.get_mut(worker.job).expect("a job that exists");
        assert_eq!(job.attempt, worker.attempt, "{worker} is of another attempt");
        let at = job.position(worker.rank);
        job.ranks[at].worker = state;
        (job.ranks[at].node, job.plain_grace_ms())
    }

    pub(crate) fn turn(&self, job: &Job) -> Turn {
        let ahead = i128::from(job.spec.priority) * i128::from(self.ageing_ms);
        (i128::from(job.submitted.0) - ahead, job.id)
    }

    /// Enters a job into the indexes that its phase belongs to.
    fn index(&mut self, now: Time, id: JobId) {
        let job = &self.table[id];
        if job.spec.served().is_some() && !matches!(job.phase, Phase::Done(_)) {
            self.services.insert(id);
        }
        match &job.phase {
            Phase::Pending(_) if job.sleeps() => (),
            Phase::Pending(not_before) => match self.dependencies(job) {
                Dependency::Met if now < *not_before => _ = self.timers.insert((*not_before, id)),
                Dependency::Met if self.promised.contains(&id) => (),
                Dependency::Met => {
                    let (shape, turn) = (self.shape(job), self.turn(job));
                    let known = self.shapes.get_key_value(&shape).map(|(known, _)| known.clone());
                    let shape = known.unwrap_or_else(|| Arc::new(shape));
                    let lines = self.ready.entry(job.spec.queue.clone()).or_default();
                    let line = lines.entry(shape.clone()).or_default();
                    if line.is_empty() {
                        *self.shapes.entry(shape.clone()).or_default() += 1;
                    }
                    line.insert(turn);
                    self.shape_of.insert(id, shape);
                }
                Dependency::Waits | Dependency::Failed(_) => {
                    for dependency in &job.spec.after {
                        self.dependents.entry(*dependency).or_default().insert(id);
                    }
                }
            },
            Phase::Active => {
                self.holding.insert(id);
                if (job.ranks.len() as u32) < job.wanted_ranks() {
                    self.small.insert(id);
                }
                let place = (job.spec.priority, Reverse(id));
                self.active.entry(job.spec.queue.clone()).or_default().insert(place);
                self.timers.extend(job.timer().map(|at| (at, id)));
            }
            Phase::Stopping(_) => {
                self.holding.insert(id);
                self.stopping.insert(id);
                match job.gives_way_to() {
                    Some((by, _)) => self.victims.entry(by).or_default().insert(id),
                    None => self.leaving.insert(id),
                };
            }
            Phase::Done(outcome) => {
                let failed = *outcome != Outcome::Succeeded;
                if let Some(array) = job.array.and_then(|array| self.arrays.get_mut(&array.first)) {
                    array.left -= 1;
                    if failed && array.failed.is_none_or(|earlier| id < earlier) {
                        array.failed = Some(id);
                    }
                }
            }
        }
    }

    /// Removes a job from every index. A job that is done stays done.
    fn unindex(&mut self, id: JobId) {
        let job = &self.table[id];
        if job.spec.served().is_some() {
            self.services.remove(&id);
        }
        match job.phase {
            Phase::Pending(not_before) => {
                self.timers.remove(&(not_before, id));
                for dependency in &job.spec.after {
                    if let Some(set) = self.dependents.get_mut(dependency) {
                        set.remove(&id);
                        if set.is_empty() {
                            self.dependents.remove(dependency);
                        }
                    }
                }
                if let Some(shape) = self.shape_of.remove(&id) {
                    let (queue, turn) = (job.spec.queue.clone(), self.turn(job));
                    self.leave_line(&queue, &shape, &turn);
                }
            }
            Phase::Active => {
                self.holding.remove(&id);
                self.small.remove(&id);
                if let Some(active) = self.active.get_mut(&job.spec.queue) {
                    active.remove(&(job.spec.priority, Reverse(id)));
                    if active.is_empty() {
                        self.active.remove(&job.spec.queue);
                    }
                }
                if let Some(at) = job.timer() {
                    self.timers.remove(&(at, id));
                }
            }
            Phase::Stopping(_) => {
                self.holding.remove(&id);
                self.stopping.remove(&id);
                self.leaving.remove(&id);
                let by = job.gives_way_to().map(|(by, _)| by);
                if let Some((by, victims)) = by.and_then(|by| Some((by, self.victims.get_mut(&by)?))) {
                    victims.remove(&id);
                    if victims.is_empty() {
                        self.victims.remove(&by);
                    }
                }
            }
            Phase::Done(_) => panic!("{id} is done and changes no more"),
        }
    }

    /// Takes a ready job out of the line of its queue and shape.
    fn leave_line(&mut self, queue: &Name, shape: &Arc<Shape>, turn: &Turn) {
        let lines = self.ready.get_mut(queue).expect("the queue of a ready job");
        let line = lines.get_mut(shape).expect("the line of a ready job");
        line.remove(turn);
        if !line.is_empty() {
            return;
        }
        lines.remove(shape);
        if lines.is_empty() {
            self.ready.remove(queue);
        }
        let queues = self.shapes.get_mut(shape).expect("the shape of a ready job");
        *queues -= 1;
        if *queues == 0 {
            self.shapes.remove(shape);
        }
    }

    /// Recounts the indexes from the table. `O(jobs log jobs)`.
    ///
    /// # Panics
    /// When an index is not what the table says.
    pub fn check(&self, now: Time) {
        let (ageing_ms, guests, promised) = (self.ageing_ms, self.guests.clone(), self.promised.clone());
        let mut recount = Jobs { ageing_ms, guests, promised, ..Jobs::default() };
        for job in self.table.iter() {
            let is_due = job.phase != Phase::Active || !job.is_to_sleep();
            assert!(is_due, "{} runs, and is to sleep", job.id);
            recount.insert(now, Arc::new(job.clone()));
        }
        assert_eq!(self.ready, recount.ready, "the ready jobs");
        assert_eq!(self.shapes, recount.shapes, "the shapes");
        assert_eq!(self.shape_of, recount.shape_of, "the shapes of the ready jobs");
        assert_eq!(self.holding, recount.holding, "the jobs that hold resources");
        assert_eq!(self.active, recount.active, "the jobs that run");
        assert_eq!(self.stopping, recount.stopping, "the jobs that stop");
        assert_eq!(self.victims, recount.victims, "the jobs that give way");
        assert_eq!(self.leaving, recount.leaving, "the jobs that stop for none");
        assert_eq!(self.small, recount.small, "the jobs with fewer ranks than they want");
        assert_eq!(self.services, recount.services, "the services");
        assert_eq!(self.timers, recount.timers, "the timers");
        assert_eq!(self.by_key, recount.by_key, "the client keys");
        assert_eq!(self.dependents, recount.dependents, "the dependents");
        assert_eq!(self.arrays, recount.arrays, "the arrays");
        self.check_ended();
    }
}
