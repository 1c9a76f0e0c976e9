//! The pool's state, and the one function that changes it.

mod check;
mod flush;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::durations::Durations;
use crate::effect::*;
use crate::event::*;
use crate::exchange::Target;
use crate::inquiry::Inquiries;
use crate::jobs::history::Totals;
use crate::jobs::*;
use crate::nodes::*;
use crate::plan::price::{self, Prices};
use crate::plan::{self, Free, Kept, Known, Parts, Promises, Room, Turnover};
pub use crate::policy::Policy;
use crate::queues::Queues;
use crate::reservations::Reservations;
use crate::services::Services;
use crate::speed::{Pace, Speeds};
use crate::tariff::Tariff;
use crate::types::*;
use flush::Changes;

/// Name of the queue that always exists.
pub const DEFAULT_QUEUE: &str = "default";

const NO_ROUND: &str = "no round has the room";

/// All that the scheduler knows.
///
/// Invariant: a step saves every record that it changed, so a cluster restored from the store equals this
/// one, but for leases and revisions. See [`Cluster::check`].
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(crate) policy: Policy,
    pub(crate) jobs: Jobs,
    pub(crate) nodes: Nodes,
    pub(crate) queues: Queues,
    pub(crate) reservations: Reservations,
    pub(crate) tariff: Arc<Tariff>,
    /// When it last stepped.
    pub(crate) now: Time,
    /// Of the last assignment that was changed.
    revision: Revision,
    /// When to plan next; `None` while nothing has changed that could let a job start.
    round_at: Option<Time>,
    /// What the last round found. Soft state. `None` as the room.
    known: Option<Box<Known>>,
    /// What is kept for wide jobs. Soft state. `None` as the room.
    kept: Option<Box<Kept>>,
    /// Wide jobs that ended of late. Derived from the jobs.
    pub(crate) turnover: Turnover,
    /// How long jobs ran. Derived from the jobs; shared with copies of the cluster.
    pub(crate) durations: Arc<Durations>,
    /// What is promised to jobs to which others give way: not in the room. Soft state. `None` as the room.
    promises: Option<Box<Promises>>,
    /// When jobs that run had their last checkpoint, if that was in this attempt. Soft state, from reports.
    checkpoints: BTreeMap<JobId, Time>,
    /// When jobs must be stopped that stand in the way of a reservation. Derived.
    pub(crate) moves: BTreeSet<(Time, JobId)>,
    /// How far workers are that speak for a role of a running job. Soft state, from reports.
    pub(crate) paces: BTreeMap<WorkerId, Pace>,
    pub(crate) services: Services,
    /// Soft state, from reports.
    pub(crate) speeds: Arc<Speeds>,
    /// When running jobs may next move to another class of devices; `None`: there is no reason to. Soft state.
    pub(crate) migrate_at: Option<Time>,
    /// Jobs that stop to change places. Soft state.
    pub(crate) exchanges: BTreeMap<JobId, Target>,
    /// Whether an earlier scheduler may have left jobs that had stopped to change places: until the first step.
    pub(crate) is_new: bool,
    /// What is free. Derived from the nodes and what is held on them. `None` while a round hands it out.
    room: Option<Box<Room>>,
    /// Learned from what was asked for. Derived from the jobs, see [`price::learned_from`].
    prices: Arc<Prices>,
    /// The last job that they are learned from.
    priced: u64,
    /// Soft state.
    pub(crate) inquiries: Inquiries,
    // Collected since the last round, or during one step.
    pub(crate) freed: Vec<NodeId>,
    /// Jobs for which others that gave way to them have gone, with when that was decided: they go first.
    pub(crate) freed_for: BTreeSet<(JobId, Time)>,
    pub(crate) retired: Vec<Arc<Job>>,
    /// Workers of whom a report says something new. Empty once it is handled; keeps its memory.
    pub(crate) news: Vec<(WorkerId, Option<WorkerState>)>,
    changes: Changes,
}

impl Cluster {
    /// A cluster as the store has it. Every live node gets a fresh lease.
    ///
    /// * `term`: larger than that of any earlier scheduler of this store.
    /// * `records`: in any order.
    pub fn restore(
        policy: Policy,
        term: u64,
        records: impl IntoIterator<Item = Record>,
        now: Time,
    ) -> Cluster {
        let mut cluster = Cluster {
            policy,
            jobs: Jobs::new(policy.ageing),
            nodes: Nodes::default(),
            queues: Queues::new(policy.half_life),
            reservations: Reservations::default(),
            tariff: Arc::default(),
            now,
            revision: Revision { term, count: 0 },
            round_at: Some(now),
            known: Some(Box::default()),
            kept: Some(Box::default()),
            turnover: Turnover::default(),
            durations: Arc::default(),
            promises: Some(Box::default()),
            checkpoints: BTreeMap::new(),
            paces: BTreeMap::new(),
            speeds: Arc::default(),
            services: Services::default(),
            migrate_at: None,
            exchanges: BTreeMap::new(),
            is_new: true,
            inquiries: Inquiries::default(),
            freed_for: BTreeSet::new(),
            moves: BTreeSet::new(),
            room: Some(Box::default()),
            prices: Arc::default(),
            priced: 0,
            freed: Vec::new(),
            retired: Vec::new(),
            news: Vec::new(),
            changes: Changes::default(),
        };
        let (mut jobs, mut nodes, mut usages) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut totals: BTreeMap<Name, Totals> = BTreeMap::new();
        let mut queues = vec![Queue::new(DEFAULT_QUEUE.into())];
        for record in records {
            match record {
                Record::Job(job) => _ = jobs.insert(job.id, job),
                Record::Node(node) => _ = nodes.insert(node.id, node),
                Record::Queue(queue) => queues.push(queue),
                Record::Usage(queue, usage) => _ = usages.insert(queue, usage),
                Record::Reservation(reservation) => cluster.reservations.set(reservation),
                Record::Tariff(tariff) => cluster.tariff = tariff,
                Record::Retired(queue, of) => _ = totals.insert(queue, of),
                Record::Spec(..) | Record::NoSpec(_) | Record::NoJob(_) => (),
                Record::Ended(_) | Record::NoReservation(_) => (),
            }
        }
        cluster.queues.restore(queues, &usages);
        cluster.admit_guests();
        // A clock that was set back must not make time run backwards.
        let of_jobs = jobs.values().flat_map(|job| [Some(job.submitted), job.placed, job.ended]).flatten();
        let begun = cluster.reservations.iter().filter(|it| it.begun).map(|it| it.start);
        let latest = of_jobs.chain(usages.values().map(|usage| usage.at)).chain(begun).max();
        cluster.now = now.max(latest.unwrap_or(now));
        for (id, node) in nodes {
            let up = node.up;
            cluster.nodes.insert(node, cluster.revision);
            if up {
                let end = cluster.now + policy.lease;
                cluster.nodes.set_lease(id, Lease { end, ..Lease::default() });
            }
        }
        for job in jobs.into_values() {
            for (worker, rank) in workers(&job) {
                cluster.nodes.hold(worker, rank, job.span());
            }
            cluster.queues.hold(&job.spec.queue, job.charge(), Charge::default());
            cluster.jobs.insert(cluster.now, job);
        }
        cluster.jobs.restore_ended(totals);
        let last = cluster.jobs.iter().next_back().map_or(0, |job| job.id.0);
        assert!(last <= cluster.jobs.len(), "identities have no gaps");
        cluster.durations = Arc::new(Durations::of(&cluster.jobs));
        cluster.schedule_moves();
        cluster.learn_prices();
        let mut ended: Vec<_> = cluster.jobs.iter().filter_map(|job| Some((job.ended?, job))).collect();
        ended.retain(|(at, _)| cluster.now <= *at + plan::LATELY);
        ended.sort_by_key(|(at, _)| *at);
        for (at, job) in ended {
            cluster.turnover.enter(at, job);
        }
        let mut room = cluster.room.take().expect(NO_ROUND);
        for node in cluster.nodes.iter() {
            room.refresh(node, cluster.nodes.held(node.id));
        }
        room.learn_worth(&cluster.speeds, &cluster.tariff);
        cluster.room = Some(room);
        let waiting: Vec<JobId> = cluster.jobs.gives_way().map(|(job, _)| job.id).collect();
        waiting.into_iter().for_each(|id| cluster.promises_mut().enter(id));
        cluster
    }

    /// Handles one event at `now`, and everything that is due by `now`. Appends what must be done to `effects`.
    pub fn step(&mut self, now: Time, event: Event, effects: &mut Vec<Effect>) {
        let now = self.now.max(now);
        self.now = now;
        self.retire(now);
        if std::mem::take(&mut self.is_new) {
            self.end_exchanges();
        }
        let (mut reporter, mut unknown) = (None, None);
        match event {
            Event::Request { id, command } => {
                let result = self.on_command(now, command);
                effects.push(Effect::Reply(id, result));
            }
            Event::Report(report) => reporter = self.on_report(now, report),
            Event::Heartbeat { node, boot, seq, same_as } => {
                match self.on_heartbeat(now, node, boot, seq, same_as) {
                    Heartbeat::Renewed => reporter = Some(node),
                    Heartbeat::Unknown => unknown = Some(node),
                    Heartbeat::Late => (),
                }
            }
            Event::Tick => (),
        }
        self.expire_leases(now);
        self.ring_reservations(now);
        self.ring_timers(now);
        self.ring_services(now);
        self.judge_probes(now);
        if self.migrations_are_due() {
            self.plan_at(now);
        }
        if self.round_at.is_some_and(|at| at <= now) {
            self.round_at = None;
            self.learn_prices();
            if self.turnover.forget(now) {
                let is_empty = self.turnover.is_empty();
                self.kept_mut().wide_changed(is_empty);
            }
            let mut room = self.room.take().expect(NO_ROUND);
            room.protect_idle(!self.turnover.is_empty());
            let (kept, known) = (self.kept.take().expect(NO_ROUND), self.known.take().expect(NO_ROUND));
            let promises = self.promises.take().expect(NO_ROUND);
            let mut free = Free::in_room(self, Parts { room, kept, promises });
            let plan = plan::plan_next(&mut free, now, known);
            let Parts { room, kept, promises } = free.into_parts();
            (self.room, self.kept, self.promises) = (Some(room), Some(kept), Some(promises));
            self.known = Some(plan.known);
            self.put_into_lines();
            self.freed.clear();
            for (id, ranks) in plan.starts {
                self.place(now, id, ranks);
            }
            for preemption in plan.preemptions.into_iter().chain(plan.claims) {
                self.preempt(now, preemption);
            }
            for migration in plan.migrations {
                self.migrate(migration);
            }
            for exchange in plan.exchanges {
                self.exchange(exchange);
            }
            self.await_migrations();
            if plan.is_unfinished {
                self.plan_at(now);
            }
            for growth in plan.growths {
                self.grow(now, growth);
            }
            for at in plan.tired_at.into_iter().chain(plan.grow_at) {
                self.plan_at(at);
            }
            // This very round is decided: what came of it is for the next one.
            self.round_at = self.round_at.max(self.round_at.map(|_| Time(now.0 + 1)));
        }
        self.freed_for.clear();
        self.ask_probes();
        self.flush(reporter, unknown, effects);
    }

    /// When to call [`Cluster::step`] next if no event comes before. `None`: never.
    pub fn deadline(&self) -> Option<Time> {
        let moves = self.moves.first().map(|(at, _)| *at);
        let services = self.services.next();
        let timers =
            [self.nodes.next_expiry(), self.jobs.next_timer(), self.reservations.next(), moves, services];
        let more = [self.round_at, self.migrate_at, self.next_retirement(), self.inquiries.next()];
        timers.into_iter().chain(more).flatten().min()
    }

    /// When it last stepped; time never goes back before it.
    pub fn now(&self) -> Time {
        self.now
    }

    /// What parts of devices are worth.
    pub fn prices(&self) -> &Prices {
        &self.prices
    }

    /// Brings the prices up to date with the jobs that were submitted.
    fn learn_prices(&mut self) {
        let room = self.room.as_mut().expect(NO_ROUND);
        let last = price::learned_from(self.jobs.len());
        if last != self.priced {
            self.priced = last;
            self.prices = Arc::new(Prices::learn(self.jobs.range(price::window(last)).map(|job| &*job.spec)));
            room.set_prices(self.prices.clone());
        }
        room.learn_worth(&self.speeds, &self.tariff);
    }

    /// The rules.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The jobs.
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    /// The nodes.
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// What a job that runs would lose if it were stopped now: time since its last checkpoint, or since it began, in
    /// milliseconds.
    pub fn unsaved_ms(&self, job: &Job) -> u64 {
        let saved = job.began.max(self.checkpoints.get(&job.id).copied());
        saved.map_or(0, |saved| self.now.since(saved))
    }

    /// The same, but for searches for victims in vain, which it does not remember: for checks.
    pub fn without_futile(&self) -> Cluster {
        let mut cluster = self.clone();
        cluster.known_mut().futile.clear();
        cluster
    }

    /// What is free.
    pub(crate) fn room(&self) -> &Room {
        self.room.as_ref().expect(NO_ROUND)
    }

    /// A copy of what a round takes.
    pub(crate) fn parts(&self) -> Parts {
        let (room, kept) = (Box::new(self.room().clone()), self.kept.clone());
        Parts { room, kept: kept.expect(NO_ROUND), promises: self.promises.clone().expect(NO_ROUND) }
    }

    /// Nodes that are booked.
    pub fn reservations(&self) -> &Reservations {
        &self.reservations
    }

    /// The queues.
    pub fn queues(&self) -> &Queues {
        &self.queues
    }

    /// Durable part of the state, but for specifications: for comparison with a restored one.
    pub fn records(&self) -> Vec<Record> {
        let jobs = self.jobs.iter_shared().cloned().map(Record::Job);
        let nodes = self.nodes.iter().cloned().map(Record::Node);
        let queues = self.queues.iter().cloned().map(Record::Queue);
        let usages = self.queues.usages().map(|(queue, usage)| Record::Usage(queue.clone(), usage));
        let reservations = self.reservations.iter().cloned().map(Record::Reservation);
        let totals =
            self.jobs.retired_totals().map(|(queue, totals)| Record::Retired(queue.clone(), *totals));
        let tariff = (!self.tariff.is_empty()).then(|| Record::Tariff(self.tariff.clone()));
        let all = jobs.chain(nodes).chain(queues).chain(usages).chain(reservations).chain(totals);
        all.chain(tariff).collect()
    }

    // ---- For the files beside this one: the only ways to change a record, each of which marks it. ----

    /// Changes a job: saves it at the end of the step.
    pub(crate) fn change_job<R>(&mut self, id: JobId, change: impl FnOnce(&mut Job) -> R) -> R {
        self.changes.jobs.insert(id);
        self.promises_mut().reopen(id);
        let plain = |jobs: &Jobs| jobs.get(id).and_then(Job::plain_grace_ms);
        let before = plain(&self.jobs);
        let result = self.jobs.update(self.now, id, change);
        let after = plain(&self.jobs);
        if before != after {
            let job = self.jobs.get(id).expect("it was just changed");
            workers(job).for_each(|(worker, rank)| self.nodes.set_plain(worker, rank.node, after));
        }
        result
    }

    /// Changes the state of a rank's worker: saves its job at the end of the step.
    pub(crate) fn set_rank_state(&mut self, worker: WorkerId, state: RankState) {
        self.changes.jobs.insert(worker.job);
        let (node, plain_grace_ms) = self.jobs.set_rank_state(worker, state);
        self.nodes.set_worker(worker, node, state, plain_grace_ms);
    }

    pub(crate) fn add_job(&mut self, job: Job, first_of_spec: bool) {
        self.changes.jobs.insert(job.id);
        if first_of_spec {
            self.changes.new_specs.push(job.id);
        }
        self.jobs.insert(self.now, Arc::new(job));
    }

    pub(crate) fn change_node(&mut self, id: NodeId, change: impl FnOnce(&mut Node)) {
        self.changes.nodes.insert(id);
        self.nodes.change(id, change);
        self.kept_mut().forget();
        self.plan_at(self.now);
        self.refresh_room(id);
        if !self.promises().is_empty() || self.jobs.preemptors().next().is_some() {
            // What was kept on it for them may have to be kept elsewhere.
            self.plan_anew(self.now);
        }
    }

    /// Brings what is free on a node up to date.
    pub(crate) fn refresh_room(&mut self, id: NodeId) {
        let (room, node, held) =
            (self.room.as_mut().expect(NO_ROUND), self.nodes.get(id), self.nodes.held(id));
        room.refresh(node, held);
        let promises = self.promises.as_mut().expect(NO_ROUND);
        if let Some(free) = promises.settle(&self.jobs, room, node, held).filter(|_| node.takes_work()) {
            room.change(id, free);
        }
    }

    /// What is promised to jobs to which others give way.
    fn promises(&self) -> &Promises {
        self.promises.as_ref().expect(NO_ROUND)
    }

    fn promises_mut(&mut self) -> &mut Promises {
        self.promises.as_mut().expect(NO_ROUND)
    }

    /// What the last round found.
    pub(crate) fn known(&self) -> &Known {
        self.known.as_ref().expect(NO_ROUND)
    }

    pub(crate) fn known_mut(&mut self) -> &mut Known {
        self.known.as_mut().expect(NO_ROUND)
    }

    /// What is kept for wide jobs.
    pub(crate) fn kept_mut(&mut self) -> &mut Kept {
        self.kept.as_mut().expect(NO_ROUND)
    }

    /// Jobs leave their lines when something is promised to them, and stand in them again when it is so no more.
    fn put_into_lines(&mut self) {
        for (id, promised) in self.promises_mut().take_news() {
            self.jobs.set_promised(self.now, id, promised);
        }
    }

    pub(crate) fn add_node(&mut self, name: Name) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.insert(Node::new(id, name), self.revision);
        self.changes.nodes.insert(id);
        self.refresh_room(id);
        id
    }

    pub(crate) fn set_queue(&mut self, queue: Queue) {
        self.changes.queues.insert(queue.name.clone());
        self.queues.set(queue);
        self.admit_guests();
        self.schedule_moves();
    }

    pub(crate) fn tariff_changed(&mut self) {
        self.changes.tariff = true;
        self.room.as_mut().expect(NO_ROUND).forget_worth();
    }

    pub(crate) fn touch_reservation(&mut self, name: Name) {
        self.changes.reservations.insert(name);
    }

    /// Notes that the nodes of a job's ranks have something new to do.
    pub(crate) fn reassign(&mut self, id: JobId) {
        let job = self.jobs.get(id).expect("a job that exists");
        job.ranks.iter().for_each(|rank| self.changes.reassigned.insert(rank.node));
    }

    /// Notes that a node has something new to do.
    pub(crate) fn retell(&mut self, id: NodeId) {
        self.changes.reassigned.insert(id);
    }

    /// A revision that no assignment has.
    pub(crate) fn fresh_revision(&mut self) -> Revision {
        self.revision.count += 1;
        self.revision
    }

    pub(crate) fn note(&mut self, note: Note) {
        self.changes.notes.push(note);
    }

    pub(crate) fn plan_at(&mut self, at: Time) {
        self.round_at = Some(self.round_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// A job has a checkpoint that is so old.
    pub(crate) fn on_checkpoint(&mut self, job: JobId, age_ms: u64) {
        let saved = Time(self.now.0.saturating_sub(age_ms));
        let known = self.checkpoints.entry(job).or_insert(saved);
        *known = saved.max(*known);
        if self.jobs.is_small(job) {
            // It would lose less now.
            self.plan_at(self.now);
        }
    }

    /// Whether the attempt of a job that runs has told of a checkpoint.
    pub(crate) fn has_checkpoint(&self, job: JobId) -> bool {
        self.checkpoints.contains_key(&job)
    }

    pub(crate) fn forget_checkpoint(&mut self, job: JobId) {
        self.checkpoints.remove(&job);
        self.forget_pace(job);
        self.services.forget(job);
    }

    /// Plans again for those who wait and could use what has become free on a node.
    pub(crate) fn plan_freed(&mut self, at: Time, node: NodeId) {
        self.freed.push(node);
        self.plan_at(at);
    }

    /// Plans again for all who wait.
    pub(crate) fn plan_anew(&mut self, at: Time) {
        *self.known_mut() = Known::default();
        self.freed.clear();
        self.kept_mut().forget();
        self.promises_mut().forget().into_iter().for_each(|node| self.refresh_room(node));
        self.put_into_lines();
        self.plan_at(at);
    }

    /// Seeks victims again where there were none.
    pub(crate) fn seek_anew(&mut self, at: Time) {
        self.known_mut().futile.clear();
        if self.policy.preemption && !self.jobs.ready().is_empty() {
            self.plan_at(at);
        }
    }

    /// A job has become ready. Another one of its shape may have been kept from room that it may take.
    pub(crate) fn reopen(&mut self, id: JobId) {
        if !self.known().kept_from.is_empty() {
            let shape = self.jobs.shape(self.jobs.get(id).expect("a job that exists"));
            if self.known_mut().kept_from.remove(&shape) {
                self.known_mut().unfit.remove(&shape);
            }
        }
    }

    /// Adds to and takes from what a queue's jobs hold.
    pub(crate) fn charge(&mut self, queue: &Name, add: Charge, take: Charge) {
        self.changes.usages.insert(queue.clone());
        self.queues.charge(self.now, queue, add, take);
    }
}

/// The ranks of a job with the identities of their workers.
pub(crate) fn workers(job: &Job) -> impl Iterator<Item = (WorkerId, &Allocation)> {
    let id = |rank: &Allocation| WorkerId { job: job.id, attempt: job.attempt, rank: rank.rank };
    job.ranks.iter().map(move |rank| (id(rank), rank))
}

/// What came of a heartbeat.
pub(crate) enum Heartbeat {
    /// The lease runs on.
    Renewed,
    /// It refers to a report that is not known; a whole one is needed.
    Unknown,
    /// Late or repeated.
    Late,
}

impl Queue {
    /// A top queue of weight 1 for everybody, with no guarantee and no limit.
    pub fn new(name: Name) -> Queue {
        Queue { name, parent: None, weight: 1, guaranteed_milli: 0, limit_milli: None, users: Vec::new() }
    }
}
