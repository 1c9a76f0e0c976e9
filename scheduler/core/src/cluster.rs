//! The pool's state, and the one function that changes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::effect::*;
use crate::event::*;
use crate::jobs::*;
use crate::nodes::*;
use crate::plan::price::{self, Prices};
use crate::plan::{self, Free, Futile, Kept, Order, Promised, Room, Turnover};
use crate::queues::Queues;
use crate::types::*;

/// Name of the queue that always exists.
pub const DEFAULT_QUEUE: &str = "default";

/// Rules of the pool. A value, not a plug-in: it is printed, compared and simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Who goes first.
    pub order: Order,
    /// Silence after which a node is lost. Agents are told less, see [`Policy::granted_lease`]. A scheduler that
    /// takes over from one with longer leases must wait for those: it takes the longer of the two.
    pub lease: Duration,
    /// Pause before a job that failed is placed again. Doubles with every failure, up to 64 times.
    pub backoff: Duration,
    /// After so long what a queue has used counts half. Zero: only what it holds counts.
    pub half_life: Duration,
    /// For so long a job waits to gain one in priority over those that are submitted then. The priority of a job
    /// is a bound on how long it can be passed by others of its queue where something becomes free: without preemption
    /// nothing starves.
    pub ageing: Duration,
    /// Whether running jobs are stopped for better ones that wait. See [`plan::preempt`].
    pub preemption: bool,
}

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
    /// When it last stepped.
    pub(crate) now: Time,
    /// Of the last assignment that was changed.
    revision: Revision,
    /// When to plan next; `None` while nothing has changed that could let a job start.
    round_at: Option<Time>,
    /// Shapes that found no room in the last round, and since when nothing has become free.
    pub(crate) unfit: BTreeSet<Arc<Shape>>,
    /// Of those, the ones that would fit but for what is kept for others.
    pub(crate) kept_from: BTreeSet<Arc<Shape>>,
    /// What is kept for wide jobs. Soft state.
    pub(crate) kept: Kept,
    /// Wide jobs that ended of late. Derived from the jobs.
    pub(crate) turnover: Turnover,
    /// Jobs for which no victims were found, and since when nothing has changed that could help them.
    pub(crate) futile: Futile,
    /// What the last round promised to jobs to which others give way.
    pub(crate) promised: Promised,
    /// When jobs that run had their last checkpoint, if that was in this attempt. Soft state, from reports.
    checkpoints: BTreeMap<JobId, Time>,
    /// What is free. Derived from the nodes and what is held on them.
    room: Room,
    /// Learned from what was asked for. Derived from the jobs, see [`price::learned_from`].
    prices: Arc<Prices>,
    /// The last job that they are learned from.
    priced: u64,
    // Collected since the last round, or during one step.
    pub(crate) freed: Vec<NodeId>,
    /// Jobs for which others that gave way to them have gone, with when that was decided: they go first.
    pub(crate) freed_for: BTreeSet<(JobId, Time)>,
    touched_jobs: BTreeSet<JobId>,
    touched_nodes: BTreeSet<NodeId>,
    touched_queues: BTreeSet<Name>,
    touched_usages: BTreeSet<Name>,
    reassigned: BTreeSet<NodeId>,
    new_specs: Vec<JobId>,
    notes: Vec<Note>,
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
            now,
            revision: Revision { term, count: 0 },
            round_at: Some(now),
            unfit: BTreeSet::new(),
            kept_from: BTreeSet::new(),
            kept: Kept::default(),
            turnover: Turnover::default(),
            futile: Futile::default(),
            promised: Promised::new(),
            checkpoints: BTreeMap::new(),
            freed_for: BTreeSet::new(),
            room: Room::default(),
            prices: Arc::default(),
            priced: 0,
            freed: Vec::new(),
            touched_jobs: BTreeSet::new(),
            touched_nodes: BTreeSet::new(),
            touched_queues: BTreeSet::new(),
            touched_usages: BTreeSet::new(),
            reassigned: BTreeSet::new(),
            new_specs: Vec::new(),
            notes: Vec::new(),
        };
        let (mut jobs, mut nodes, mut usages) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut queues = vec![Queue::new(DEFAULT_QUEUE.into())];
        for record in records {
            match record {
                Record::Job(job) => _ = jobs.insert(job.id, job),
                Record::Node(node) => _ = nodes.insert(node.id, node),
                Record::Queue(queue) => queues.push(queue),
                Record::Usage(queue, usage) => _ = usages.insert(queue, usage),
                Record::Spec(..) => (),
            }
        }
        cluster.queues.restore(queues, &usages);
        // A clock that was set back must not make time run backwards.
        let of_jobs = jobs.values().flat_map(|job| [Some(job.submitted), job.placed, job.ended]).flatten();
        let latest = of_jobs.chain(usages.values().map(|usage| usage.at)).max();
        cluster.now = now.max(latest.unwrap_or(now));
        for (id, node) in nodes {
            let up = node.up;
            cluster.nodes.insert(node, cluster.revision);
            if up {
                let end = cluster.now + policy.lease;
                cluster.nodes.set_lease(id, Lease { end, ..Lease::default() });
            }
        }
        for (id, job) in jobs {
            for (worker, rank) in workers(&job) {
                cluster.nodes.hold(worker, rank, job.span());
                if rank.worker == RankState::Gone {
                    cluster.nodes.worker_gone(worker, rank.node);
                }
            }
            cluster.queues.hold(&job.spec.queue, job.charge(), Charge::default());
            assert_eq!(id.0, cluster.jobs.len() + 1, "identities have no gaps");
            cluster.jobs.insert(cluster.now, job);
        }
        cluster.learn_prices();
        let mut ended: Vec<_> = cluster.jobs.iter().filter_map(|job| Some((job.ended?, job))).collect();
        ended.retain(|(at, _)| cluster.now <= *at + plan::LATELY);
        ended.sort_by_key(|(at, _)| *at);
        for (at, job) in ended {
            cluster.turnover.enter(at, job);
        }
        for node in cluster.nodes.iter() {
            cluster.room.refresh(node, cluster.nodes.held(node.id));
        }
        cluster
    }

    /// Handles one event at `now`, and everything that is due by `now`. Appends what must be done to `effects`.
    pub fn step(&mut self, now: Time, event: Event, effects: &mut Vec<Effect>) {
        let now = self.now.max(now);
        self.now = now;
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
        self.ring_timers(now);
        if self.round_at.is_some_and(|at| at <= now) {
            self.round_at = None;
            self.learn_prices();
            if self.turnover.forget(now) {
                self.kept.choose();
            }
            self.room.protect_idle(!self.turnover.is_empty());
            let (room, kept) = (std::mem::take(&mut self.room), std::mem::take(&mut self.kept));
            let mut free = Free::in_room(self, room, kept);
            let plan = plan::plan(&mut free, now);
            (self.room, self.kept) = free.into_parts();
            (self.unfit, self.kept_from) = (plan.unfit, plan.kept_from);
            (self.futile, self.promised) = (plan.futile, plan.promised);
            self.freed.clear();
            for (id, ranks) in plan.starts {
                self.place(now, id, ranks);
            }
            for preemption in plan.preemptions {
                self.preempt(now, preemption);
            }
            if plan.is_unfinished {
                self.plan_at(Time(now.0 + 1));
            }
            if let Some(at) = plan.tired_at {
                self.plan_at(at);
            }
        }
        self.freed_for.clear();
        self.flush(reporter, unknown, effects);
    }

    /// When to call [`Cluster::step`] next if no event comes before. `None`: never.
    pub fn deadline(&self) -> Option<Time> {
        [self.nodes.next_expiry(), self.jobs.next_timer(), self.round_at].into_iter().flatten().min()
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
        let last = price::learned_from(self.jobs.len());
        if last != self.priced {
            self.priced = last;
            self.prices = Arc::new(Prices::learn(self.jobs.range(price::window(last)).map(|job| &*job.spec)));
            self.room.set_prices(self.prices.clone());
        }
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

    /// What a job that runs would lose if it were stopped now: time since its last checkpoint, or since it was placed,
    /// in milliseconds.
    pub fn unsaved_ms(&self, job: &Job) -> u64 {
        let saved = job.placed.max(self.checkpoints.get(&job.id).copied());
        saved.map_or(0, |saved| self.now.since(saved))
    }

    /// The same, but for searches for victims in vain, which it does not remember: for checks.
    pub fn without_futile(&self) -> Cluster {
        Cluster { futile: Futile::default(), ..self.clone() }
    }

    /// What is free.
    pub(crate) fn room(&self) -> &Room {
        &self.room
    }

    /// The queues.
    pub fn queues(&self) -> &Queues {
        &self.queues
    }

    /// Durable part of the state, but for specifications: for comparison with a restored one.
    pub fn records(&self) -> Vec<Record> {
        let jobs = self.jobs.iter().cloned().map(Record::Job);
        let nodes = self.nodes.iter().cloned().map(Record::Node);
        let queues = self.queues.iter().cloned().map(Record::Queue);
        let usages = self.queues.usages().map(|(queue, usage)| Record::Usage(queue.clone(), usage));
        jobs.chain(nodes).chain(queues).chain(usages).collect()
    }

    /// Checks what must hold between steps. `O(jobs + nodes)`.
    ///
    /// # Panics
    /// When it does not hold.
    pub fn check(&self) {
        self.jobs.check(self.now);
        let mut held: BTreeMap<NodeId, Held> = self.nodes.iter().map(|n| (n.id, Held::default())).collect();
        let mut charges: BTreeMap<Name, Charge> = BTreeMap::new();
        for job in self.jobs.iter() {
            let holds = matches!(job.phase, Phase::Active | Phase::Stopping(_));
            assert!(holds || job.ranks.is_empty(), "{} holds resources while {:?}", job.id, job.phase);
            if job.phase == Phase::Active {
                assert_eq!(job.ranks.len(), job.spec.ranks() as usize, "{} is a partial gang", job.id);
            }
            let (charge, own) = (job.charge(), charges.entry(job.spec.queue.clone()).or_default());
            own.milli += charge.milli;
            own.worth_milli += charge.worth_milli;
            for (worker, rank) in workers(job) {
                let held = held.get_mut(&rank.node).expect("a node that exists");
                held.change(worker, rank, job.span(), true);
                if rank.worker == RankState::Gone {
                    held.workers.remove(&worker);
                }
            }
        }
        for (id, held) in held {
            assert_eq!(*self.nodes.held(id), held, "what is held on {}", self.nodes.get(id).name);
        }
        self.nodes.check();
        self.queues.check(&charges);
        self.room.check(self.nodes.iter().map(|node| (node, self.nodes.held(node.id))));
    }

    // ---- For the files beside this one: the only ways to change a record, each of which marks it. ----

    /// Changes a job: saves it at the end of the step.
    pub(crate) fn change_job<R>(&mut self, id: JobId, change: impl FnOnce(&mut Job) -> R) -> R {
        self.touched_jobs.insert(id);
        self.jobs.update(self.now, id, change)
    }

    /// Changes the state of a rank's worker: saves its job at the end of the step.
    pub(crate) fn set_rank_state(&mut self, worker: WorkerId, state: RankState) {
        self.touched_jobs.insert(worker.job);
        *self.jobs.rank_state_mut(worker) = state;
    }

    pub(crate) fn add_job(&mut self, job: Job, first_of_spec: bool) {
        self.touched_jobs.insert(job.id);
        if first_of_spec {
            self.new_specs.push(job.id);
        }
        self.jobs.insert(self.now, job);
    }

    pub(crate) fn change_node(&mut self, id: NodeId, change: impl FnOnce(&mut Node)) {
        self.touched_nodes.insert(id);
        change(self.nodes.get_mut(id));
        self.kept.forget();
        self.plan_at(self.now);
        self.refresh_room(id);
        if self.jobs.preemptors().next().is_some() {
            // What was kept on it for them may have to be kept elsewhere.
            self.plan_anew(self.now);
        }
    }

    /// Brings what is free on a node up to date.
    pub(crate) fn refresh_room(&mut self, id: NodeId) {
        self.room.refresh(self.nodes.get(id), self.nodes.held(id));
    }

    pub(crate) fn add_node(&mut self, name: Name) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        let inventory = Arc::default();
        let availability = Availability::Open;
        self.nodes.insert(Node { id, name, inventory, up: false, boot: 0, availability }, self.revision);
        self.touched_nodes.insert(id);
        self.refresh_room(id);
        id
    }

    pub(crate) fn set_queue(&mut self, queue: Queue) {
        self.touched_queues.insert(queue.name.clone());
        self.queues.set(queue);
    }

    /// Notes that the nodes of a job's ranks have something new to do.
    pub(crate) fn reassign(&mut self, id: JobId) {
        let job = self.jobs.get(id).expect("a job that exists");
        self.reassigned.extend(job.ranks.iter().map(|rank| rank.node));
    }

    pub(crate) fn note(&mut self, note: Note) {
        self.notes.push(note);
    }

    pub(crate) fn plan_at(&mut self, at: Time) {
        self.round_at = Some(self.round_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// A job has a checkpoint that is so old.
    pub(crate) fn on_checkpoint(&mut self, job: JobId, age_ms: u64) {
        let saved = Time(self.now.0.saturating_sub(age_ms));
        let known = self.checkpoints.entry(job).or_insert(saved);
        *known = saved.max(*known);
    }

    pub(crate) fn forget_checkpoint(&mut self, job: JobId) {
        self.checkpoints.remove(&job);
    }

    /// Plans again for those who wait and could use what has become free on a node.
    pub(crate) fn plan_freed(&mut self, at: Time, node: NodeId) {
        self.freed.push(node);
        self.plan_at(at);
    }

    /// Plans again for all who wait.
    pub(crate) fn plan_anew(&mut self, at: Time) {
        self.unfit.clear();
        self.kept_from.clear();
        self.futile.clear();
        self.freed.clear();
        self.kept.forget();
        self.plan_at(at);
    }

    /// A queue with a guarantee, or one below it, holds more or less than before: others may be due theirs now.
    pub(crate) fn weigh_anew(&mut self, queue: &Name, at: Time) {
        if self.queues.line(queue).any(|queue| 0 < queue.guaranteed_milli) {
            self.kept_from.iter().for_each(|shape| _ = self.unfit.remove(shape));
            self.kept_from.clear();
            self.futile.clear();
            if !self.jobs.ready().is_empty() {
                self.plan_at(at);
            }
        }
    }

    /// Seeks victims again where there were none.
    pub(crate) fn seek_anew(&mut self, at: Time) {
        self.futile.clear();
        if self.policy.preemption && !self.jobs.ready().is_empty() {
            self.plan_at(at);
        }
    }

    /// A job has become ready. Another one of its shape may have been kept from room that it may take.
    pub(crate) fn reopen(&mut self, id: JobId) {
        if !self.kept_from.is_empty() {
            let shape = self.jobs.get(id).expect("a job that exists").shape();
            if self.kept_from.remove(&shape) {
                self.unfit.remove(&shape);
            }
        }
    }

    /// Adds to and takes from what a queue's jobs hold.
    pub(crate) fn charge(&mut self, queue: &Name, add: Charge, take: Charge) {
        self.touched_usages.insert(queue.clone());
        self.queues.charge(self.now, queue, add, take);
    }

    /// Ends the step: emits every change once, then the answers, then the notes.
    fn flush(&mut self, reporter: Option<NodeId>, unknown: Option<NodeId>, effects: &mut Vec<Effect>) {
        for id in self.new_specs.drain(..) {
            effects.push(Effect::Save(Record::Spec(id, self.jobs.get(id).expect("a new job").spec.clone())));
        }
        while let Some(id) = self.touched_jobs.pop_first() {
            effects.push(Effect::Save(Record::Job(self.jobs.get(id).expect("a touched job").clone())));
        }
        while let Some(id) = self.touched_nodes.pop_first() {
            effects.push(Effect::Save(Record::Node(self.nodes.get(id).clone())));
        }
        while let Some(name) = self.touched_queues.pop_first() {
            effects
                .push(Effect::Save(Record::Queue(self.queues.get(&name).expect("a touched queue").clone())));
        }
        while let Some(name) = self.touched_usages.pop_first() {
            let usage = self.queues.usage(&name);
            effects.push(Effect::Save(Record::Usage(name, usage)));
        }
        let (mut reporter, mut unknown) = (reporter, unknown);
        while let Some(id) = self.reassigned.pop_first() {
            reporter = reporter.filter(|node| *node != id);
            self.revision.count += 1;
            self.nodes.set_revision(id, self.revision);
            if self.nodes.get(id).up {
                // Its next heartbeat is not known either, and asks again.
                unknown = unknown.filter(|node| *node != id);
                effects.push(self.assign(id));
            }
        }
        if let Some(id) = reporter {
            let lease = self.nodes.lease(id).expect("a node that just reported is up");
            if lease.reported == self.nodes.revision(id) {
                effects.push(Effect::Renew { node: id, acked: lease.seq });
            } else {
                effects.push(self.assign(id));
            }
        }
        effects.extend(unknown.map(Effect::AskReport));
        effects.extend(self.notes.drain(..).map(Effect::Note));
    }

    fn assign(&self, id: NodeId) -> Effect {
        let acked = self.nodes.lease(id).map_or(0, |lease| lease.seq);
        Effect::Assign { node: id, acked, assignment: self.assignment(id) }
    }

    /// What every worker on the node should be doing.
    pub fn assignment(&self, node: NodeId) -> Assignment {
        let orders = self.nodes.held(node).workers.iter().map(|worker| {
            let job = self.jobs.get(worker.job).expect("a worker's job");
            let goal = if job.phase == Phase::Active { Goal::Run } else { Goal::Stop };
            let state = job.ranks[worker.rank as usize].worker;
            let launch = (state == RankState::Assigned).then(|| Arc::new(self.launch(job, worker.rank)));
            WorkerOrder { id: *worker, goal, grace_ms: job.spec.grace_ms, launch }
        });
        Assignment { revision: self.nodes.revision(node), workers: orders.collect() }
    }

    fn launch(&self, job: &Job, rank: u32) -> Launch {
        let allocation = &job.ranks[rank as usize];
        let local = |rank: &&Allocation| rank.node == allocation.node;
        let mut nodes: Vec<NodeId> = Vec::new();
        for rank in &job.ranks {
            if !nodes.contains(&rank.node) {
                nodes.push(rank.node);
            }
        }
        let master = &job.ranks[0];
        Launch {
            spec: job.spec.clone(),
            role: job.spec.role_of(rank),
            world_size: job.ranks.len() as u32,
            local_rank: job.ranks[..rank as usize].iter().filter(local).count() as u32,
            local_world_size: job.ranks.iter().filter(local).count() as u32,
            node_rank: nodes.iter().position(|node| *node == allocation.node).expect("its node") as u32,
            master: (self.nodes.get(master.node).inventory.address.clone(), master.port),
            array_index: job.array.map(|array| array.index),
            allocation: allocation.clone(),
        }
    }
}

/// The ranks of a job with the identities of their workers.
pub(crate) fn workers(job: &Job) -> impl Iterator<Item = (WorkerId, &Allocation)> {
    let id = |rank| WorkerId { job: job.id, attempt: job.attempt, rank };
    job.ranks.iter().enumerate().map(move |(rank, allocation)| (id(rank as u32), allocation))
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

impl Policy {
    /// Leases of 10 s, a first pause of 1 s. Usage counts half after a day, so that a team which did without the
    /// pool for a day is served first on the next, and nobody pays for last month; an hour of waiting is worth one
    /// of priority. Preemption.
    pub fn new(order: Order) -> Policy {
        Policy {
            order,
            lease: Duration::from_secs(10),
            backoff: Duration::from_secs(1),
            half_life: Duration::from_secs(24 * 3600),
            ageing: Duration::from_secs(3600),
            preemption: true,
        }
    }

    /// The lease that agents are told: shorter by a fifth, the time that remains to kill their workers
    /// before the scheduler takes the node for lost and places its jobs elsewhere.
    pub fn granted_lease(&self) -> Duration {
        self.lease * 4 / 5
    }
}

impl Queue {
    /// A top queue of weight 1 with no guarantee and no limit.
    pub fn new(name: Name) -> Queue {
        Queue { name, parent: None, weight: 1, guaranteed_milli: 0, limit_milli: None }
    }
}
