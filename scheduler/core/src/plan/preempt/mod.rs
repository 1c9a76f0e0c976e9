//! Who gives way to a job that finds no room: running jobs are stopped only after a proof that it then starts.
//!
//! Nothing of it is stored but the reason in the victims' records. While one of them stops and the job waits, the room
//! of the job is kept: every round finds it again, from the same state with the same result.

pub mod claim;
mod defragment;
mod promises;
mod search;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::fit::{Free, Misfit, Taken, charge, extend, find, fits, suits};
use super::room::NodeFree;
use super::{Growth, Known, Order, Plan};
use crate::cluster::Cluster;
use crate::event::Queue;
use crate::jobs::{Job, Phase, Shape, Then};
use crate::types::*;
use claim::may_be_given_more;
pub use promises::{Ahead, Promises};
use promises::{Place, Promise, both};
use search::{Search, nodes};

/// Jobs that give way to one that waits. All of them are needed, and all stop together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preemption {
    /// The job that waits.
    pub job: JobId,
    /// Those that give way.
    pub victims: Vec<Victim>,
}

/// A job that gives way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    /// Which.
    pub job: JobId,
    /// Of an elastic one that shrinks: the ranks that it goes on with. Else it stops whole.
    pub stays: Vec<u32>,
    /// Time since its last checkpoint, or since it was placed, times the devices that it holds.
    pub lost_device_ms: u64,
}

/// A job that gives way, and what of it stays.
struct Part<'a> {
    job: &'a Job,
    /// Positions of ranks; none: all leave.
    stays: Vec<u32>,
}

impl<'a> Part<'a> {
    /// Of a job that stops.
    fn of(job: &'a Job) -> Part<'a> {
        let stays = match &job.phase {
            Phase::Stopping(Then::Resize(stays)) => stays.clone(),
            _ => Vec::new(),
        };
        Part { job, stays }
    }

    fn leaves(&self) -> impl Iterator<Item = (WorkerId, &'a Allocation)> {
        let all = crate::cluster::workers(self.job).enumerate();
        all.filter(|(at, _)| !self.stays.contains(&(*at as u32))).map(|(_, leaves)| leaves)
    }

    fn charge_milli(&self) -> u64 {
        self.leaves().map(|(_, rank)| rank.charge_milli).sum()
    }

    fn lost_device_ms(&self, cluster: &Cluster) -> u64 {
        let devices: u64 = match self.job.spec.is_live() {
            false => self.job.devices_held_milli(),
            // The others run on.
            true => self
                .leaves()
                .map(|(_, rank)| rank)
                .filter(|rank| !rank.devices.is_empty())
                .map(|rank| rank.charge_milli)
                .sum(),
        };
        cluster.unsaved_ms(self.job) * devices / 1000
    }
}

/// Shapes of a queue for which no victims were found, each with the highest priority that they were sought for.
pub type Futile = BTreeMap<Name, BTreeMap<Arc<Shape>, i32>>;

/// Running jobs that are looked at for one waiting job, at most: those of the lowest priority, then the latest.
const MAX_CANDIDATES: usize = 1024;

static NONE_TAKEN: Taken = Taken::new();

/// Waiting jobs for which victims are sought in one round, at most. The next round follows at once.
const MAX_SEARCHES: u32 = 8;

/// Those of the job's own queue that it may take, as many as are looked at.
fn victims_in_own<'a>(cluster: &'a Cluster, job: &'a Job, most: usize) -> impl Iterator<Item = &'a Job> {
    let active = cluster.jobs().active_in(&job.spec.queue);
    let lower = active.take_while(|victim| victim.spec.priority < job.spec.priority).take(most);
    lower.filter(|victim| has_priority_over(cluster, job, victim) && !cluster.is_out_of_reach(victim))
}

/// Whether a waiting job may take another one of its queue: one of lower priority. But not if that was placed while both
/// waited, because it had waited for so long that its turn came first: it would start only to be stopped.
fn has_priority_over(cluster: &Cluster, job: &Job, victim: &Job) -> bool {
    let turn = |job: &Job| cluster.jobs().turn(job);
    let had_its_turn = || victim.placed >= Some(job.submitted) && turn(victim) < turn(job);
    victim.spec.priority < job.spec.priority && !had_its_turn()
}

/// Whether the job may take jobs of another queue by what is guaranteed to `by`, one of [`reclaimers`]. Services are left
/// alone.
///
/// The other queue is not within `by`, whose guarantee says nothing of how it is divided; and it holds more than it is
/// guaranteed, as does every queue above it that is not above the job too.
fn may_reclaim(cluster: &Cluster, job: &Job, by: &Queue, giver: &Name) -> bool {
    !cluster.queues().is_within(giver, &by.name)
        && guards(cluster, job, giver).all(|queue| 0 < spare_milli(cluster, queue))
}

/// The job's queue and those above it that would hold no more than their guarantee with it, as far as can be said before
/// it is placed, from below. Where the order knows no guarantees, there are none.
///
/// * `taken`: what the round has added to what queues hold.
fn reclaimers<'a>(cluster: &'a Cluster, taken: &Taken, job: &Job) -> impl Iterator<Item = &'a Queue> {
    let least = least_milli(job);
    let held = move |queue: &Queue| {
        cluster.queues().held_milli(&queue.name) + taken.get(&queue.name).copied().unwrap_or(0)
    };
    let fits =
        move |queue: &&Queue| 0 < queue.guaranteed_milli && held(queue) + least <= queue.guaranteed_milli;
    let line = cluster.queues().line(&job.spec.queue).filter(fits);
    line.filter(|_| cluster.policy().order != Order::Priority)
}

/// The queues that must keep their guarantee when `job` takes of `giver`: it and those above it, up to what both are in.
fn guards<'a>(cluster: &'a Cluster, job: &'a Job, giver: &'a Name) -> impl Iterator<Item = &'a Queue> {
    let queues = cluster.queues();
    queues.line(giver).take_while(|queue| !queues.is_within(&job.spec.queue, &queue.name))
}

/// Whether one of two waiting jobs is due its room by a guarantee, and the other is not: nothing is kept from the one for
/// the other. At most what is guaranteed goes past what is kept.
pub fn outranks(cluster: &Cluster, taken: &Taken, job: &Job, other: &Job) -> bool {
    let is_due = |job: &Job| reclaimers(cluster, taken, job).next().is_some();
    is_due(job) && !is_due(other)
}

/// What a job will count for its queue at least.
pub fn least_milli(job: &Job) -> u64 {
    let of_rank = |request: &Request| {
        let of_device = |want: &DeviceRequest| {
            u64::from(want.count) * want.slice.map_or(1000, |slice| slice.compute_milli.max(1).into())
        };
        request.devices.iter().map(of_device).min().unwrap_or(request.cpus_milli.into())
    };
    let least: u64 = job.spec.roles.iter().map(|role| u64::from(role.least()) * of_rank(&role.request)).sum();
    least.max(1)
}

/// What a queue holds beyond its guarantee.
fn spare_milli(cluster: &Cluster, queue: &Queue) -> u64 {
    cluster.queues().held_milli(&queue.name).saturating_sub(queue.guaranteed_milli)
}

/// Whether there could be victims for a job that finds no room. `O(queues * depth^2 + jobs that stop)`, allocates
/// nothing.
///
/// * `futile`: what was sought in vain.
pub fn is_worth_a_search(cluster: &Cluster, futile: &Futile, job: &Job, shape: &Shape) -> bool {
    let queue = &job.spec.queue;
    let in_vain = futile.get(queue).and_then(|shapes| shapes.get(shape));
    let gives = |by: &Queue, other: &Queue| {
        other.name != *queue
            && cluster.jobs().active_in(&other.name).next().is_some()
            && may_reclaim(cluster, job, by, &other.name)
    };
    cluster.policy().preemption
        && in_vain.is_none_or(|priority| *priority < job.spec.priority)
        && (victims_in_own(cluster, job, MAX_CANDIDATES).next().is_some()
            || (reclaimers(cluster, &NONE_TAKEN, job).next())
                .is_some_and(|by| cluster.queues().iter().any(|other| gives(by, other))))
        && cluster.jobs().victims_of(job.id).next().is_none()
}

/// What is free for jobs to which nobody gives way.
pub fn free_for_all(cluster: &Cluster) -> Free<'_> {
    let mut free = Free::as_lived(cluster);
    Round::begin(&mut free, &mut Vec::new()).keep_claims(&mut free);
    free
}

/// Ranks of jobs that leave, by node.
type Leaving<'a> = BTreeMap<NodeId, Vec<(WorkerId, &'a Allocation)>>;
/// What is given to ranks, by node.
type Given = BTreeMap<NodeId, Vec<Allocation>>;

/// What a round does about jobs to which others give way.
#[derive(Default)]
pub struct Round {
    /// Those that it starts because others have given way.
    begun: BTreeMap<JobId, Vec<Allocation>>,
    /// Whether services grow into what was given up for them: who gives way to others is sought once they have.
    grows: bool,
    /// The round's starts and growths.
    started: Given,
    /// How many of both were counted.
    seen: (usize, usize),
    searches: u32,
    /// Whether victims for some jobs are left to another round to be sought.
    is_left: bool,
    /// Whether those for whom there were no victims may find some in another round.
    is_news: bool,
    /// Whether a job waits because what stops already is enough, or what is kept for others.
    waits: bool,
}

impl Round {
    /// Starts the jobs whose victims have left, or that fit elsewhere by now, and promises anew where something has happened.
    pub fn begin(free: &mut Free, starts: &mut Vec<(JobId, Vec<Allocation>)>) -> Round {
        let (jobs, mut round) = (free.cluster.jobs(), Round::default());
        for (since, _, id) in round.due(free, |job, _| job.wants_room()) {
            round.think_over(free, (id, since), starts);
        }
        round.start_elsewhere(free, starts);
        // Beyond what was promised, each gets what all promises leave.
        for (id, ranks) in starts {
            let (job, had) = (jobs.get(*id).expect("it was just placed"), ranks.clone());
            extend(free, job, ranks);
            let more: Vec<Allocation> = ranks.iter().filter(|rank| !had.contains(rank)).cloned().collect();
            give_to(&mut round.started, &more);
            round.begun.insert(*id, ranks.clone());
        }
        round
    }

    /// Jobs to which others give way, or have just done so, that are to be thought over, in order. What was promised to those
    /// that need it no more is so no longer.
    fn due(&mut self, free: &mut Free, is_due: impl Fn(&Job, Time) -> bool) -> BTreeSet<Place> {
        let cluster = free.cluster;
        if free.promises.nothing_is_open() && cluster.freed_for.is_empty() {
            return BTreeSet::new();
        }
        let freed_for: BTreeMap<JobId, Time> = cluster.freed_for.iter().copied().collect();
        let all: BTreeSet<JobId> = free.promises.open().chain(freed_for.keys().copied()).collect();
        let mut due = BTreeSet::new();
        for id in all {
            let job = cluster.jobs().get(id);
            let since = cluster.jobs().gives_way_since(id).max(freed_for.get(&id).copied());
            let known = free.promises.get(id).map(|promise| promise.place.0);
            match (job, known.or(since)) {
                (Some(job), Some(since)) if is_due(job, since) => {
                    due.insert((since, Reverse(job.spec.priority), id));
                }
                (Some(job), Some(since)) if job.wants_room() || may_be_given_more(job, since) => (),
                _ => {
                    self.withdraw(free, id);
                    free.promises.close(id);
                }
            }
        }
        due
    }

    /// Starts a job to which others give way if what was promised to it is there. Else it stays promised, or where that cannot
    /// be, what will be enough.
    fn think_over(
        &mut self,
        free: &mut Free,
        (id, since): (JobId, Time),
        starts: &mut Vec<(JobId, Vec<Allocation>)>,
    ) {
        let jobs = free.cluster.jobs();
        let job = jobs.get(id).expect("a job that waits");
        let is_there = self.is_there(free, job);
        if !is_there && free.promise_stands(id) {
            return;
        }
        let promise = self.withdraw(free, id);
        let victims: Vec<&Job> = jobs.victims_of(id).collect();
        match victims.is_empty() {
            true => free.promises.close(id),
            false => free.promises.enter(id),
        }
        let there = promise.filter(|_| is_there).map(|promise| promise.ranks);
        if let Some(ranks) = there.filter(|ranks| takes_within_limit(free, job, ranks)) {
            return self.start(free, (job, ranks), starts);
        }
        if let Ok(ranks) = find(free, job) {
            free.count(job, &ranks);
            return self.start(free, (job, ranks), starts);
        }
        let Ok(ranks) = self.place_without(free, job, &victims) else { return };
        if takes_within_limit(free, job, &ranks) {
            self.start(free, (job, ranks), starts);
        } else if !victims.is_empty() {
            let victims: Vec<Part> = victims.into_iter().map(Part::of).collect();
            self.promise(free, (job, since), &victims, ranks);
        }
    }

    /// Counts a job that starts on what was taken for it.
    fn start(
        &mut self,
        free: &mut Free,
        (job, ranks): (&Job, Vec<Allocation>),
        starts: &mut Vec<(JobId, Vec<Allocation>)>,
    ) {
        free.promises.close(job.id);
        self.is_news = true;
        starts.push((job.id, ranks));
        self.catch_up(starts, &[]);
    }

    /// Where a job starts once some have left.
    fn place_without<'a>(
        &self,
        free: &mut Free<'a>,
        job: &'a Job,
        victims: &[&'a Job],
    ) -> Result<Vec<Allocation>, Misfit> {
        let mut search = Search::new(free, self);
        victims.iter().for_each(|victim| search.give(victim));
        // What is kept for others was not promised to them yet; only where there is no other way it is taken.
        let ranks = search.place(job).or_else(|_| search.place_on_kept(job));
        victims.iter().for_each(|victim| search.take_back(victim));
        ranks
    }

    /// Whether all that is promised to a job is free now, and the job may have it.
    fn is_there(&self, free: &Free, job: &Job) -> bool {
        let cluster = free.cluster;
        let Some(promise) = free.promises.get(job.id) else { return false };
        let mut left: BTreeMap<NodeId, NodeFree> = BTreeMap::new();
        promise.ranks.iter().all(|rank| {
            let node = cluster.nodes().get(rank.node);
            let left = left.entry(rank.node).or_insert_with(|| {
                let mut now = free.room.left_on(node, cluster.nodes().held(rank.node));
                self.started.get(&rank.node).into_iter().flatten().for_each(|rank| now.take(rank));
                now
            });
            let is_free = node.takes_work() && covers(left, rank) && free.bar(job, rank.node).is_none();
            if is_free {
                left.take(rank);
            }
            is_free
        })
    }

    /// Starts jobs on what has become free elsewhere than where they were promised room: of those that ask for the same the
    /// first, as long as one fits.
    fn start_elsewhere(&mut self, free: &mut Free, starts: &mut Vec<(JobId, Vec<Allocation>)>) {
        let (cluster, mut shapes) = (free.cluster, BTreeSet::<Arc<Shape>>::new());
        for node in cluster.freed.iter().filter(|_| !free.promises.is_empty()) {
            let takes = |(_, request): &(u32, Request)| {
                suits(cluster.nodes().get(*node), request) && free.room.takes(*node, request)
            };
            let fit = free.promises.lines().filter(|shape| shape.roles.iter().any(takes));
            shapes.extend(fit.cloned());
        }
        for shape in shapes {
            for id in free.promises.line(&shape) {
                let job = cluster.jobs().get(id).expect("a job that waits");
                let Some(promise) = self.withdraw(free, id) else { break };
                let Ok(ranks) = find(free, job) else {
                    self.enter(free, promise);
                    break;
                };
                free.count(job, &ranks);
                self.start(free, (job, ranks), starts);
            }
        }
    }

    /// Whether it starts a job because others have given way.
    pub fn has_begun(&self, job: JobId) -> bool {
        self.begun.contains_key(&job)
    }

    /// Those that the round starts because others have given way.
    pub fn begun(&self) -> impl Iterator<Item = (JobId, &[Allocation])> {
        self.begun.iter().map(|(id, ranks)| (*id, &ranks[..]))
    }

    /// Seeks victims for a job that finds no room, and promises it what they will leave. Remembers when there are none.
    pub fn seek<'a>(
        &mut self,
        free: &mut Free<'a>,
        (job, shape): (&'a Job, &Arc<Shape>),
        (starts, growths): (&[(JobId, Vec<Allocation>)], &[Growth]),
        known: &mut Known,
    ) -> Option<Preemption> {
        let cluster = free.cluster;
        if !is_worth_a_search(cluster, &known.futile, job, shape) {
            return None;
        }
        if fits_on_kept(free, job) {
            self.waits = true;
            return None;
        }
        self.searches += 1;
        if self.grows || MAX_SEARCHES < self.searches {
            self.is_left = true;
            return None;
        }
        self.catch_up(starts, growths);
        let mut search = Search::new(free, self);
        if search.fits_soon(job) {
            self.waits = true;
            return None;
        }
        search.looks_by_node = known.may_look_by_node(job, shape);
        let found = search.make_room(job);
        if search.looked_by_node && found.is_none() {
            known.looked_in_vain(job, shape);
        }
        let Some((victims, ranks)) = found else {
            if !self.is_news {
                let of_queue = known.futile.entry(job.spec.queue.clone()).or_default();
                of_queue.insert(shape.clone(), job.spec.priority);
            }
            return None;
        };
        self.promise(free, (job, cluster.now()), &victims, ranks);
        self.is_news = true;
        known.futile.clear();
        let victim = |victim: Part| Victim {
            job: victim.job.id,
            lost_device_ms: victim.lost_device_ms(cluster),
            stays: victim.stays,
        };
        Some(Preemption { job: job.id, victims: victims.into_iter().map(victim).collect() })
    }

    /// Promises a job what its victims will have left.
    fn promise(
        &mut self,
        free: &mut Free,
        (job, since): (&Job, Time),
        victims: &[Part],
        ranks: Vec<Allocation>,
    ) {
        let promise = Promise::new(free.cluster, job, since, ranks, victims);
        free.promises.note_moved(nodes(&promise.ranks));
        self.enter(free, promise);
    }

    fn enter(&mut self, free: &mut Free, promise: Promise) {
        let touched = promise.nodes();
        free.promise(promise);
        self.settle(free, touched);
    }

    /// Promises a job nothing any more.
    fn withdraw(&mut self, free: &mut Free, job: JobId) -> Option<Promise> {
        let promise = free.unpromise(job)?;
        free.promises.note_moved(nodes(&promise.ranks));
        self.settle(free, promise.nodes());
        Some(promise)
    }

    /// Something else is promised on these nodes.
    fn settle(&self, free: &mut Free, touched: BTreeSet<NodeId>) {
        let mut search = Search::new(free, self);
        touched.into_iter().for_each(|node| search.refresh_node(node));
    }

    /// Counts what the round has handed out since.
    fn catch_up(&mut self, starts: &[(JobId, Vec<Allocation>)], growths: &[Growth]) {
        let (started, grown) = self.seen;
        starts[started..].iter().for_each(|(_, ranks)| give_to(&mut self.started, ranks));
        growths[grown..].iter().for_each(|growth| give_to(&mut self.started, &growth.more));
        self.seen = (starts.len(), growths.len());
    }

    /// Whether victims must be sought in another round: there are more jobs to seek them for than one round may, or those that
    /// stop now or start may help jobs for which there were none.
    pub fn is_unfinished(&self, plan: &Plan) -> bool {
        // After what was handed out, what stops may not be enough.
        self.is_news || self.is_left || (self.waits && !plan.starts.is_empty())
    }
}

/// Takes a placement from what is free, if all of it is.
fn take(free: &mut Free, job: &Job, ranks: &[Allocation]) -> bool {
    let mut changed: BTreeMap<NodeId, NodeFree> = BTreeMap::new();
    for rank in ranks {
        let left = changed.entry(rank.node).or_insert_with(|| free.room.on(rank.node).clone());
        if !free.cluster.nodes().get(rank.node).takes_work() || !covers(left, rank) {
            return false;
        }
        left.take(rank);
    }
    for (node, left) in changed {
        free.room.change(node, left);
    }
    free.count(job, ranks);
    true
}

/// The same, if the queue may hold it.
fn takes_within_limit(free: &mut Free, job: &Job, ranks: &[Allocation]) -> bool {
    free.over_limit(&job.spec.queue, charge(ranks)).is_none() && take(free, job, ranks)
}

/// Whether a job would fit but for what is kept for others. Nobody stops for such a job.
fn fits_on_kept(free: &mut Free, job: &Job) -> bool {
    if free.kept.is_empty() {
        return false; // It was tried already.
    }
    let kept = std::mem::take(&mut free.kept);
    let fits = fits(free, job).is_ok();
    free.kept = kept;
    fits
}

fn covers(left: &NodeFree, rank: &Allocation) -> bool {
    let has = |index: &u16| {
        let at = left.devices.binary_search_by_key(index, |device| device.index);
        at.is_ok_and(|at| left.devices[at].has(rank.slice))
    };
    rank.devices.iter().all(has)
        && u64::from(rank.cpus_milli) <= left.cpus_milli
        && rank.memory_bytes <= left.memory_bytes
        && left.ports.binary_search(&rank.port).is_err()
}

fn give_to(given: &mut Given, ranks: &[Allocation]) {
    for rank in ranks {
        given.entry(rank.node).or_default().push(rank.clone());
    }
}
