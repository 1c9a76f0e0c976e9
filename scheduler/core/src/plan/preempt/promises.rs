//! What is promised to jobs to which others give way, from one round to the next: a promise to which nothing happens costs
//! nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Part, covers};
use crate::cluster::Cluster;
use crate::jobs::{Job, Jobs, Phase, Shape};
use crate::nodes::{Held, Node};
use crate::plan::fit::{Free, Taken, charge};
use crate::plan::room::{NodeFree, Room};
use crate::types::*;

/// The order in which promises are thought over: by when it was decided that others give way, by priority, by age.
pub type Place = (Time, Reverse<i32>, JobId);

/// What is promised to jobs to which others give way. Of what is free, all others see only what stays free once the victims
/// have left and those jobs have started. Soft state: a scheduler that takes over promises anew.
#[derive(Clone, Debug, Default)]
pub struct Promises {
    jobs: BTreeMap<JobId, Promise>,
    /// Jobs to which others give way that the next round thinks over: nothing is promised to them yet, or something has
    /// happened to them or to those others.
    open: BTreeSet<JobId>,
    /// Those that give way, with the job that something is promised to for it.
    victims: BTreeMap<JobId, JobId>,
    nodes: BTreeMap<NodeId, OnNode>,
    /// Queues and those above them, where anything counts.
    queues: BTreeMap<Name, OfQueue>,
    /// Jobs that wait for it, by what they ask for.
    lines: BTreeMap<Arc<Shape>, BTreeSet<Place>>,
    /// Nodes that will have more room than others see now, once all is kept: devices, or something else.
    loose_devices: BTreeSet<NodeId>,
    loose_rest: BTreeSet<NodeId>,
    /// Nodes on which something else is promised than the last round saw.
    moved: BTreeSet<NodeId>,
    /// Jobs that wait, to which something has been promised since they were last put into lines, or is promised no more.
    news: BTreeSet<JobId>,
}

/// What is promised to one job, and who leaves for it.
#[derive(Clone, Debug)]
pub struct Promise {
    pub place: Place,
    queue: Name,
    /// Of a job that waits. `None`: it runs, and gets more.
    shape: Option<Arc<Shape>>,
    pub ranks: Vec<Allocation>,
    gifts: Vec<Gift>,
}

/// What a victim leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gift {
    job: JobId,
    queue: Name,
    workers: Vec<(NodeId, WorkerId)>,
    /// In thousandths of a device.
    milli: u64,
}

#[derive(Clone, Debug, Default)]
struct OnNode {
    promised: Vec<(JobId, Allocation)>,
    /// With the job that they leave for.
    leaving: Vec<(JobId, WorkerId)>,
}

/// What counts for a queue with those below it, in thousandths of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct OfQueue {
    /// All that is promised, and how much of it goes beyond what victims give back.
    takes: u64,
    more: u64,
    /// What victims give back.
    gives: u64,
    ahead: Ahead,
}

/// What a queue itself is charged for promises in the order of a round: nothing for what only changes hands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// In thousandths of a device.
    pub charge_milli: u64,
    /// The same, by what an hour of it counts.
    pub worth_milli: u64,
}

impl Ahead {
    /// For a placement.
    pub fn of(cluster: &Cluster, ranks: &[Allocation]) -> Ahead {
        let worth_milli = ranks.iter().map(|rank| cluster.worth_milli(rank)).sum();
        Ahead { charge_milli: charge(ranks), worth_milli }
    }
}

impl Gift {
    fn of(part: &Part) -> Gift {
        let workers = part.leaves().map(|(worker, rank)| (rank.node, worker)).collect();
        Gift { job: part.job.id, queue: part.job.spec.queue.clone(), workers, milli: part.charge_milli() }
    }
}

impl Promise {
    pub(super) fn new(
        cluster: &Cluster,
        job: &Job,
        since: Time,
        ranks: Vec<Allocation>,
        victims: &[Part],
    ) -> Promise {
        let waits = matches!(job.phase, Phase::Pending(_));
        Promise {
            place: (since, Reverse(job.spec.priority), job.id),
            queue: job.spec.queue.clone(),
            shape: waits.then(|| Arc::new(cluster.jobs().shape(job))),
            ranks,
            gifts: victims.iter().map(Gift::of).collect(),
        }
    }

    fn id(&self) -> JobId {
        self.place.2
    }

    /// Where something is promised, or somebody leaves.
    pub(super) fn nodes(&self) -> BTreeSet<NodeId> {
        let leaving = self.gifts.iter().flat_map(|gift| &gift.workers).map(|(node, _)| *node);
        self.ranks.iter().map(|rank| rank.node).chain(leaving).collect()
    }

    /// What of it goes beyond what victims of a queue, or of those below it, give back.
    fn more(&self, cluster: &Cluster, queue: &Name) -> u64 {
        let queues = cluster.queues();
        let within = self.gifts.iter().filter(|gift| queues.is_within(&gift.queue, queue));
        charge(&self.ranks).saturating_sub(within.map(|gift| gift.milli).sum())
    }

    /// Whether those who leave still leave what they were to, or have left.
    fn holds(&self, cluster: &Cluster) -> bool {
        let jobs = cluster.jobs();
        let now: BTreeMap<JobId, Gift> =
            jobs.victims_of(self.id()).map(|job| (job.id, Gift::of(&Part::of(job)))).collect();
        let has_left = |id: JobId| jobs.get(id).is_none_or(|job| !matches!(job.phase, Phase::Stopping(_)));
        let known: BTreeMap<JobId, &Gift> = self.gifts.iter().map(|gift| (gift.job, gift)).collect();
        now.values().all(|gift| known.get(&gift.job).is_some_and(|known| *known == gift))
            && self.gifts.iter().all(|gift| now.contains_key(&gift.job) || has_left(gift.job))
    }
}

impl Promises {
    /// Whether nothing is promised to anybody.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// What is promised to a job.
    pub(super) fn get(&self, job: JobId) -> Option<&Promise> {
        self.jobs.get(&job)
    }

    /// Whether anything is promised to a job.
    pub fn is_promised(&self, job: JobId) -> bool {
        self.jobs.contains_key(&job)
    }

    /// Whether a job gives way to one that something is promised to.
    pub fn is_victim(&self, job: JobId) -> bool {
        self.victims.contains_key(&job)
    }

    /// How many those are.
    pub fn count_of_victims(&self) -> usize {
        self.victims.len()
    }

    /// Jobs to which others give way that are to be thought over.
    pub fn open(&self) -> impl Iterator<Item = JobId> {
        self.open.iter().copied()
    }

    /// Whether nothing is to be thought over.
    pub fn nothing_is_open(&self) -> bool {
        self.open.is_empty()
    }

    /// What those ask for that wait for what is promised to them.
    pub fn lines(&self) -> impl Iterator<Item = &Arc<Shape>> {
        self.lines.keys()
    }

    /// The first of each line.
    pub fn firsts(&self) -> impl Iterator<Item = JobId> {
        self.lines.values().filter_map(|line| Some(line.first()?.2))
    }

    /// Those that wait and ask for the same, in order.
    pub fn line(&self, shape: &Shape) -> Vec<JobId> {
        self.lines.get(shape).into_iter().flatten().map(|(.., id)| *id).collect()
    }

    /// Something has happened to a job: what is promised for it is to be thought over.
    pub fn reopen(&mut self, job: JobId) {
        if self.jobs.contains_key(&job) {
            self.open.insert(job);
        }
        self.open.extend(self.victims.get(&job));
    }

    /// Others give way to a job to which nothing is promised yet.
    pub fn enter(&mut self, job: JobId) {
        self.open.insert(job);
    }

    /// A job was thought over.
    pub(super) fn close(&mut self, job: JobId) {
        self.open.remove(&job);
    }

    /// Everything is to be thought over. Returns the nodes where something was promised.
    pub fn forget(&mut self) -> Vec<NodeId> {
        let before = std::mem::take(self);
        let waits = before.jobs.values().filter(|promise| promise.shape.is_some()).map(Promise::id);
        self.news = before.news.into_iter().chain(waits).collect();
        self.open = before.jobs.into_keys().chain(before.open).collect();
        before.nodes.into_keys().collect()
    }

    /// What queues hold more once all promises are kept and all victims have left, in thousandths of a device.
    pub fn taken(&self) -> Taken {
        let more = self.queues.iter().filter(|(_, of)| 0 < of.more);
        more.map(|(queue, of)| (queue.clone(), of.more)).collect()
    }

    /// By queue, what it is charged for promises in the order of a round.
    pub fn ahead(&self) -> impl Iterator<Item = (&Name, Ahead)> {
        let all = self.queues.iter().map(|(queue, of)| (queue, of.ahead));
        all.filter(|(_, ahead)| *ahead != Ahead::default())
    }

    /// The same, for what is promised to one job.
    pub fn ahead_for(&self, cluster: &Cluster, job: JobId) -> Ahead {
        let counts = |promise: &&Promise| 0 < promise.more(cluster, &promise.queue);
        let promise = self.jobs.get(&job).filter(counts);
        promise.map_or(Ahead::default(), |promise| Ahead::of(cluster, &promise.ranks))
    }

    /// What is promised in a queue and those below it beyond what they have been charged for it, and what victims in them give back; in thousandths of a
    /// device.
    pub fn swing_milli(&self, queue: &Name) -> (u64, u64) {
        self.queues.get(queue).map_or((0, 0), |of| (of.takes - of.more, of.gives))
    }

    /// Nodes that may have more room once all is kept than others see now.
    ///
    /// * `devices`: for ranks that want devices.
    pub fn loose(&self, devices: bool) -> Vec<NodeId> {
        let rest = self.loose_rest.iter().filter(|_| !devices);
        self.loose_devices.iter().chain(rest).copied().collect()
    }

    /// On these nodes something else is promised than before.
    pub(super) fn note_moved(&mut self, nodes: impl IntoIterator<Item = NodeId>) {
        self.moved.extend(nodes);
    }

    /// Nodes where something else is promised than when this was asked last: there may be more room there.
    pub fn take_moved(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.moved).into_iter().collect()
    }

    /// Jobs that are to leave their lines, or to stand in them again.
    pub fn take_news(&mut self) -> Vec<(JobId, bool)> {
        let news = std::mem::take(&mut self.news);
        news.into_iter().map(|id| (id, self.jobs.contains_key(&id))).collect()
    }

    /// Enters a promise, or removes it.
    fn change(&mut self, cluster: &Cluster, promise: &Promise, add: bool) {
        let (id, takes) = (promise.id(), charge(&promise.ranks));
        self.count(cluster, promise, takes, add);
        for gift in &promise.gifts {
            match add {
                true => _ = self.victims.insert(gift.job, id),
                false => _ = self.victims.remove(&gift.job),
            }
        }
        if let Some(shape) = &promise.shape {
            self.news.insert(id);
            let line = self.lines.entry(shape.clone()).or_default();
            if add {
                line.insert(promise.place)
            } else {
                line.remove(&promise.place)
            };
            if line.is_empty() {
                self.lines.remove(shape);
            }
        }
        let leaving = || promise.gifts.iter().flat_map(|gift| &gift.workers);
        if add {
            for rank in &promise.ranks {
                self.nodes.entry(rank.node).or_default().promised.push((id, rank.clone()));
            }
            leaving().for_each(|(node, it)| self.nodes.entry(*node).or_default().leaving.push((id, *it)));
            return;
        }
        for node in promise.nodes() {
            let Some(on_node) = self.nodes.get_mut(&node) else { continue };
            on_node.promised.retain(|(job, _)| *job != id);
            on_node.leaving.retain(|(job, _)| *job != id);
            self.prune(node);
        }
    }

    /// Forgets a node where nothing is promised and nobody leaves.
    fn prune(&mut self, node: NodeId) {
        let is_bare = |it: &OnNode| it.promised.is_empty() && it.leaving.is_empty();
        if self.nodes.get(&node).is_some_and(is_bare) {
            self.nodes.remove(&node);
            self.loose_devices.remove(&node);
            self.loose_rest.remove(&node);
        }
    }

    fn count(&mut self, cluster: &Cluster, promise: &Promise, takes: u64, add: bool) {
        let change = |sum: &mut u64, by: u64| *sum = if add { *sum + by } else { *sum - by };
        let ahead = Ahead::of(cluster, &promise.ranks);
        let mut of_queue = |queue: &Name, change: &mut dyn FnMut(&mut OfQueue)| {
            let of = self.queues.entry(queue.clone()).or_default();
            change(of);
            if *of == OfQueue::default() {
                self.queues.remove(queue);
            }
        };
        for queue in cluster.queues().line(&promise.queue) {
            let more = promise.more(cluster, &queue.name);
            of_queue(&queue.name, &mut |of| {
                change(&mut of.takes, takes);
                change(&mut of.more, more);
                if queue.name == promise.queue && 0 < more {
                    change(&mut of.ahead.charge_milli, ahead.charge_milli);
                    change(&mut of.ahead.worth_milli, ahead.worth_milli);
                }
            });
        }
        for gift in &promise.gifts {
            for queue in cluster.queues().line(&gift.queue) {
                of_queue(&queue.name, &mut |of| change(&mut of.gives, gift.milli));
            }
        }
    }

    /// What is free on a node now, and once all promises are kept, if anything is promised there or anybody leaves.
    ///
    /// * `held`: of the node, now.
    /// * `given`: to others by the round, beside what is held.
    pub fn views(
        &self,
        (jobs, room): (&Jobs, &Room),
        node: &Node,
        held: &Held,
        given: &[Allocation],
    ) -> (NodeFree, Option<NodeFree>) {
        let mut now = room.left_on(node, held);
        given.iter().for_each(|rank| now.take(rank));
        let then = self.nodes.get(&node.id).map(|on_node| {
            let mut rest = held.clone();
            for (_, worker) in &on_node.leaving {
                let Some(job) = jobs.get(worker.job).filter(|job| job.attempt == worker.attempt) else {
                    continue;
                };
                let rank = job.ranks.iter().find(|rank| rank.rank == worker.rank);
                let holds = rest.ends.get(&(job.span().until, *worker)).is_some();
                if let Some(rank) = rank.filter(|rank| holds && rank.node == node.id) {
                    rest.change(*worker, rank, job.span(), false);
                }
            }
            let mut then = room.left_on(node, &rest);
            for rank in given.iter().chain(on_node.promised.iter().map(|(_, rank)| rank)) {
                if covers(&then, rank) {
                    then.take(rank);
                }
            }
            then
        });
        (now, then)
    }

    /// What others may have of a node.
    ///
    /// * `held`: of the node, now.
    pub(crate) fn leaves(&self, jobs: &Jobs, room: &Room, node: &Node, held: &Held) -> NodeFree {
        let (now, then) = self.views((jobs, room), node, held, &[]);
        then.map_or_else(|| now.clone(), |then| both(&now, &then))
    }

    /// The same, of a node that has changed. Finds out whether there will be more. `None`: nothing is promised there.
    pub(crate) fn settle(&mut self, jobs: &Jobs, room: &Room, node: &Node, held: &Held) -> Option<NodeFree> {
        if !self.nodes.contains_key(&node.id) {
            return None;
        }
        let (now, then) = self.views((jobs, room), node, held, &[]);
        let then = then?;
        let free = both(&now, &then);
        self.note_loose(node.id, &free, &then);
        Some(free)
    }

    pub(super) fn note_loose(&mut self, node: NodeId, free: &NodeFree, then: &NodeFree) {
        self.loose_devices.remove(&node);
        self.loose_rest.remove(&node);
        if then != free {
            let loose = if then.devices.is_empty() { &mut self.loose_rest } else { &mut self.loose_devices };
            loose.insert(node);
        }
    }

    /// Checks it against the jobs.
    ///
    /// # Panics
    /// When it is not what it should be.
    pub(crate) fn check(&self, cluster: &Cluster) {
        let mut recount = Promises::default();
        for (id, promise) in &self.jobs {
            recount.change(cluster, promise, true);
            let job = cluster.jobs().get(*id).expect("a job that something is promised to");
            let is_open = self.open.contains(id);
            assert!(is_open || cluster.jobs().victims_of(*id).next().is_some(), "nobody gives way to {id}");
            assert!(is_open || promise.shape.is_none() || job.wants_room(), "{id} waits not");
            assert!(is_open || promise.holds(cluster), "others give way to {id} otherwise");
        }
        let promised = self.jobs.values().filter(|promise| promise.shape.is_some()).map(Promise::id);
        assert!(promised.eq(cluster.jobs().promised().map(|job| job.id)), "who stands in no line");
        assert_eq!(self.victims, recount.victims, "who gives way");
        assert_eq!(self.queues, recount.queues, "what counts for queues");
        assert_eq!(self.lines, recount.lines, "the lines of those that something is promised to");
        assert!(self.nodes.keys().eq(recount.nodes.keys()), "nodes on which something is promised");
    }
}

impl<'a> Free<'a> {
    /// Promises a job what its victims will have left.
    pub(super) fn promise(&mut self, promise: Promise) {
        let (cluster, id) = (self.cluster, promise.id());
        self.charge_line(&promise.queue, |queue| promise.more(cluster, queue));
        // It waits no more for what is kept.
        self.kept.leave(id);
        self.promises.change(cluster, &promise, true);
        self.promises.jobs.insert(id, promise);
        self.promises.close(id);
    }

    /// Promises it no more. The nodes are as they were, see [`Promises::views`].
    pub(super) fn unpromise(&mut self, job: JobId) -> Option<Promise> {
        let promise = self.promises.jobs.remove(&job)?;
        let cluster = self.cluster;
        for queue in cluster.queues().line(&promise.queue) {
            let taken = self.taken.get_or_default(&queue.name);
            *taken -= promise.more(cluster, &queue.name);
        }
        self.promises.change(cluster, &promise, false);
        Some(promise)
    }

    /// Thinks over a promise to which something has happened: if no more than that some of those have left that leave for it,
    /// it stands, and counts what is left. Returns whether it stands.
    pub(super) fn promise_stands(&mut self, job: JobId) -> bool {
        let cluster = self.cluster;
        let stands = self.promises.get(job).is_some_and(|promise| promise.holds(cluster));
        let Some(mut promise) = self.promises.jobs.remove(&job) else { return false };
        let leaves = |gift: &Gift| cluster.jobs().victims_of(job).any(|victim| victim.id == gift.job);
        if !stands || !promise.gifts.iter().any(leaves) {
            self.promises.jobs.insert(job, promise);
            return false;
        }
        if promise.gifts.len() != cluster.jobs().victims_of(job).count() {
            let takes = charge(&promise.ranks);
            let more = |promise: &Promise| -> BTreeMap<&Name, u64> {
                let line = cluster.queues().line(&promise.queue);
                line.map(|queue| (&queue.name, promise.more(cluster, &queue.name))).collect()
            };
            let before = more(&promise);
            self.promises.count(cluster, &promise, takes, false);
            let stay: BTreeSet<JobId> = cluster.jobs().victims_of(job).map(|victim| victim.id).collect();
            let (gifts, gone) = promise.gifts.drain(..).partition(|gift| stay.contains(&gift.job));
            promise.gifts = gifts;
            let gone: Vec<Gift> = gone;
            for gift in gone {
                self.promises.victims.remove(&gift.job);
                for (node, worker) in gift.workers {
                    let on_node = self.promises.nodes.get_mut(&node);
                    on_node.into_iter().for_each(|it| it.leaving.retain(|(_, other)| *other != worker));
                    self.promises.prune(node);
                }
            }
            self.promises.count(cluster, &promise, takes, true);
            for (queue, more) in more(&promise) {
                *self.taken.get_or_default(queue) += more - before[queue];
            }
        }
        self.promises.jobs.insert(job, promise);
        self.promises.close(job);
        true
    }
}

/// What is free of a node in both cases.
pub(super) fn both(one: &NodeFree, other: &NodeFree) -> NodeFree {
    let devices = one.devices.iter().filter_map(|device| {
        let at = other.devices.binary_search_by_key(&device.index, |device| device.index).ok()?;
        let mut device = *device;
        device.compute_milli = device.compute_milli.min(other.devices[at].compute_milli);
        device.memory_bytes = device.memory_bytes.min(other.devices[at].memory_bytes);
        Some(device)
    });
    let ports: BTreeSet<u16> = one.ports.iter().chain(&other.ports).copied().collect();
    NodeFree {
        devices: devices.collect(),
        cpus_milli: one.cpus_milli.min(other.cpus_milli),
        memory_bytes: one.memory_bytes.min(other.memory_bytes),
        ports: ports.into_iter().collect(),
    }
}
