//! Who gives way to a job that finds no room: running jobs are stopped only after a proof that it then starts.
//!
//! Nothing of it is stored but the reason in the victims' records. While one of them stops and the job waits, the room
//! of the job is kept: every round finds it again, from the same state with the same result.

pub mod claim;
mod defragment;
mod search;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::fit::{Free, Taken, charge, extend, fits};
use super::room::NodeFree;
use super::{Growth, Order, Plan};
use crate::cluster::Cluster;
use crate::event::Queue;
use crate::jobs::{Job, Phase, Shape, Then};
use crate::types::*;
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
fn victims_in_own<'a>(cluster: &'a Cluster, job: &'a Job) -> impl Iterator<Item = &'a Job> {
    let active = cluster.jobs().active_in(&job.spec.queue);
    let lower = active.take_while(|victim| victim.spec.priority < job.spec.priority).take(MAX_CANDIDATES);
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
        && (victims_in_own(cluster, job).next().is_some()
            || (reclaimers(cluster, &NONE_TAKEN, job).next())
                .is_some_and(|by| cluster.queues().iter().any(|other| gives(by, other))))
        && cluster.jobs().victims_of(job.id).next().is_none()
}

/// Whether nobody gives way to anybody, nor has just done so.
fn nobody_gives_way(cluster: &Cluster) -> bool {
    cluster.freed_for.is_empty() && cluster.jobs().nobody_stops()
}

/// What is free for jobs to which nobody gives way.
pub fn free_for_all(cluster: &Cluster) -> Free<'_> {
    let mut free = Free::of(cluster);
    Promises::of(&mut free, &mut Vec::new()).keep_claims(&mut free);
    free
}

/// Ranks of jobs that leave, by node.
type Leaving<'a> = BTreeMap<NodeId, Vec<(WorkerId, &'a Allocation)>>;
/// What is given to ranks, by node.
type Given = BTreeMap<NodeId, Vec<Allocation>>;

/// What is promised on nodes, and the workers there that will have left by then. `None`: that changed during the round.
pub type Promised = BTreeMap<NodeId, Option<(Vec<Allocation>, Vec<WorkerId>)>>;

/// Nodes where something else is promised now: there may be more room there than the round before saw.
pub fn moved(last: &Promised, now: &Promised) -> Vec<NodeId> {
    if last.is_empty() && now.is_empty() {
        return Vec::new();
    }
    let nodes: BTreeSet<NodeId> = last.keys().chain(now.keys()).copied().collect();
    let same = |node: &NodeId| last.get(node).is_some_and(|was| was.is_some() && Some(was) == now.get(node));
    nodes.into_iter().filter(|node| !same(node)).collect()
}

/// What is promised at the end of a round, for the next one.
pub fn remember(end: Promised, begin: &Promised) -> Promised {
    let changed = moved(begin, &end);
    let mut end = end;
    changed.into_iter().for_each(|node| _ = end.insert(node, None));
    end
}

/// What a round promises to jobs to which others give way. Of what is free, all others see only what stays free once
/// the victims have left and those jobs have started.
#[derive(Default)]
pub struct Promises<'a> {
    /// Each with what its queue is charged for it in the order of this round: nothing if that only changes hands.
    jobs: BTreeMap<JobId, Vec<Allocation>>,
    promised: Given,
    /// By queue, in thousandths of a device: all that is promised, and how much of it goes beyond what victims give back.
    charges: BTreeMap<Name, (u64, u64)>,
    /// With what they give back, in thousandths of a device.
    victims: BTreeMap<JobId, u64>,
    /// Whether services grow into what was given up for them: who gives way to others is sought once they have.
    grows: bool,
    /// What the victims give back.
    leaving: Leaving<'a>,
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

impl<'a> Promises<'a> {
    /// Starts the jobs whose victims have left, and keeps the room of those whose victims have not.
    pub fn of(free: &mut Free<'a>, starts: &mut Vec<(JobId, Vec<Allocation>)>) -> Promises<'a> {
        let jobs = free.cluster.jobs();
        if nobody_gives_way(free.cluster) {
            return Promises::default();
        }
        let freed_for = free.cluster.freed_for.iter().filter_map(|(id, at)| Some((jobs.get(*id)?, *at)));
        let freed_for = freed_for.filter(|(job, _)| job.wants_room());
        // What was promised first is placed first, so that it is promised again what it was.
        let preemptors: BTreeSet<(Time, Reverse<i32>, JobId)> = (freed_for.chain(jobs.preemptors()))
            .map(|(job, at)| (at, Reverse(job.spec.priority), job.id))
            .collect();
        let mut promises = Promises::default();
        for (.., id) in preemptors {
            let job = jobs.get(id).expect("a job that waits");
            let victims: Vec<&Job> = jobs.victims_of(id).collect();
            let mut search = Search::new(free, &promises);
            victims.iter().for_each(|victim| search.give(victim));
            // What is kept for others was not promised to them yet; only where there is no other way it is taken.
            let ranks = search.place(job).or_else(|_| search.place_on_kept(job));
            victims.iter().for_each(|victim| search.take_back(victim));
            let Ok(ranks) = ranks else { continue };
            let is_within_limit = free.over_limit(&job.spec.queue, charge(&ranks)).is_none();
            if is_within_limit && take(free, job, &ranks) {
                promises.jobs.insert(id, ranks.clone());
                starts.push((id, ranks));
                promises.is_news = true;
            } else {
                let victims: Vec<Part> = victims.into_iter().map(Part::of).collect();
                promises.promise(free, job, &victims, ranks);
            }
            promises.catch_up(starts, &[]);
        }
        // Beyond what was promised, each gets what all promises leave.
        for (id, ranks) in starts {
            let (job, had) = (jobs.get(*id).expect("it was just placed"), ranks.clone());
            extend(free, job, ranks);
            let more: Vec<Allocation> = ranks.iter().filter(|rank| !had.contains(rank)).cloned().collect();
            give_to(&mut promises.started, &more);
            promises.jobs.insert(*id, ranks.clone());
        }
        promises
    }

    /// The jobs that have been dealt with.
    pub fn jobs(&self) -> impl Iterator<Item = JobId> {
        self.jobs.keys().copied()
    }

    /// For a job that has been dealt with, what its queue is charged for it in the order of this round.
    pub fn counted(&self, job: JobId) -> Option<&[Allocation]> {
        self.jobs.get(&job).map(Vec::as_slice)
    }

    /// What is promised, and who leaves for it, by node.
    pub fn promised(&self) -> Promised {
        let leaves = |node| {
            let leaving = self.leaving.get(node).into_iter().flatten();
            leaving.map(|(worker, _)| *worker).collect()
        };
        self.promised.iter().map(|(node, ranks)| (*node, Some((ranks.clone(), leaves(node))))).collect()
    }

    /// Seeks victims for a job that finds no room, and promises it what they will leave. Remembers when there are none.
    pub fn seek(
        &mut self,
        free: &mut Free<'a>,
        (job, shape): (&'a Job, &Arc<Shape>),
        (starts, growths): (&[(JobId, Vec<Allocation>)], &[Growth]),
        futile: &mut Futile,
    ) -> Option<Preemption> {
        let cluster = free.cluster;
        if !is_worth_a_search(cluster, futile, job, shape) {
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
        let Some((victims, ranks)) = search.make_room(job) else {
            if !self.is_news {
                futile.entry(job.spec.queue.clone()).or_default().insert(shape.clone(), job.spec.priority);
            }
            return None;
        };
        self.promise(free, job, &victims, ranks);
        self.is_news = true;
        futile.clear();
        let victim = |victim: Part| Victim {
            job: victim.job.id,
            lost_device_ms: victim.lost_device_ms(cluster),
            stays: victim.stays,
        };
        Some(Preemption { job: job.id, victims: victims.into_iter().map(victim).collect() })
    }

    fn promise(&mut self, free: &mut Free<'a>, job: &Job, victims: &[Part<'a>], ranks: Vec<Allocation>) {
        let (queues, takes) = (free.cluster.queues(), charge(&ranks));
        let more = |queue: &Name| {
            let within = victims.iter().filter(|victim| queues.is_within(&victim.job.spec.queue, queue));
            takes.saturating_sub(within.map(Part::charge_milli).sum())
        };
        free.charge_line(&job.spec.queue, more);
        // It waits no more for what is kept.
        free.kept.leave(job.id);
        for queue in queues.line(&job.spec.queue) {
            let charges = self.charges.entry(queue.name.clone()).or_default();
            *charges = (charges.0 + takes, charges.1 + more(&queue.name));
        }
        self.jobs.insert(job.id, if more(&job.spec.queue) == 0 { Vec::new() } else { ranks.clone() });
        self.victims.extend(victims.iter().map(|victim| (victim.job.id, victim.charge_milli())));
        for (worker, rank) in victims.iter().flat_map(Part::leaves) {
            self.leaving.entry(rank.node).or_default().push((worker, rank));
        }
        let changed = nodes(&ranks);
        give_to(&mut self.promised, &ranks);
        let mut search = Search::new(free, self);
        changed.into_iter().for_each(|node| search.refresh_node(node));
    }

    /// Counts what the round has handed out since.
    fn catch_up(&mut self, starts: &[(JobId, Vec<Allocation>)], growths: &[Growth]) {
        let (started, grown) = self.seen;
        starts[started..].iter().for_each(|(_, ranks)| give_to(&mut self.started, ranks));
        growths[grown..].iter().for_each(|growth| give_to(&mut self.started, &growth.more));
        self.seen = (starts.len(), growths.len());
    }

    /// Gives back to `free` what is kept, so that only what was handed out is taken from it. Returns whether victims
    /// must be sought in another round: there are more jobs to seek them for than one round may, or those that stop now
    /// or start may help jobs for which there were none.
    pub fn end(mut self, free: &mut Free<'a>, plan: &Plan) -> bool {
        // After what was handed out, what is kept may lie elsewhere, and what stops may not be enough.
        let is_open = self.waits || !self.promised.is_empty();
        if !self.promised.is_empty() {
            self.catch_up(&plan.starts, &plan.growths);
            let kept = std::mem::take(&mut self.promised);
            let mut search = Search::new(free, &self);
            kept.into_keys().for_each(|node| search.refresh_node(node));
        }
        self.is_news || self.is_left || (is_open && !plan.starts.is_empty())
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
