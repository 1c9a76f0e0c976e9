//! Who gives way to a job that finds no room: running jobs are stopped only after a proof that it then starts.
//!
//! Nothing of it is stored but the reason in the victims' records. While one of them stops and the job waits, the room
//! of the job is kept: every round finds it again, from the same state with the same result.

mod search;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Order;
use super::fit::{Free, charge};
use super::room::NodeFree;
use crate::cluster::{Cluster, workers};
use crate::jobs::{Job, Phase, Shape};
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Victim {
    /// Which.
    pub job: JobId,
    /// Time since its last checkpoint, or since it was placed, times the devices that it holds.
    pub lost_device_ms: u64,
}

/// Shapes of a queue for which no victims were found, each with the highest priority that they were sought for.
pub type Futile = BTreeMap<Name, BTreeMap<Arc<Shape>, i32>>;

/// Waiting jobs for which victims are sought in one round, at most. The next round follows at once.
const MAX_SEARCHES: u32 = 8;

/// Whether a running job may be stopped for one that waits. What may be taken of a queue in all is for the search.
///
/// Within a queue the strictly higher priority takes. Across queues a queue that is within its guarantee, and with the
/// job stays so, reclaims from one that holds more than its own; services are left alone.
pub fn may_take(cluster: &Cluster, job: &Job, victim: &Job) -> bool {
    let (taker, giver) = (&job.spec.queue, &victim.spec.queue);
    match taker == giver {
        true => victim.spec.priority < job.spec.priority,
        false => may_reclaim(cluster, job) && 0 < spare_milli(cluster, giver) && !victim.spec.is_service(),
    }
}

/// Whether the job's queue would hold no more than its guarantee, as far as can be said before the job is placed.
/// Where the order knows no guarantees, there is nothing to reclaim.
fn may_reclaim(cluster: &Cluster, job: &Job) -> bool {
    if cluster.policy().order == Order::Priority {
        return false;
    }
    let of_rank = |request: &Request| {
        let of_device = |want: &DeviceRequest| {
            u64::from(want.count) * want.slice.map_or(1000, |slice| slice.compute_milli.max(1).into())
        };
        request.devices.iter().map(of_device).min().unwrap_or(request.cpus_milli.into())
    };
    let least: u64 = job.spec.roles.iter().map(|role| u64::from(role.ranks) * of_rank(&role.request)).sum();
    let queue = &job.spec.queue;
    cluster.queue_held(queue) + least.max(1) <= cluster.queues[queue].guaranteed_milli
}

/// What a queue holds beyond its guarantee.
fn spare_milli(cluster: &Cluster, queue: &Name) -> u64 {
    cluster.queue_held(queue).saturating_sub(cluster.queues[queue].guaranteed_milli)
}

/// Whether there could be victims for a job that finds no room. `O(queues + jobs that stop)`, allocates nothing.
pub fn is_worth_a_search(cluster: &Cluster, job: &Job, shape: &Shape) -> bool {
    let queue = &job.spec.queue;
    let in_vain = cluster.futile.get(queue).and_then(|shapes| shapes.get(shape));
    cluster.policy().preemption
        && in_vain.is_none_or(|priority| *priority < job.spec.priority)
        && (cluster.jobs().active_in(queue).next().is_some_and(|lowest| may_take(cluster, job, lowest))
            || (may_reclaim(cluster, job)
                && cluster
                    .queues()
                    .any(|(other, _)| other.name != *queue && 0 < spare_milli(cluster, &other.name))))
        && cluster.jobs().victims_of(job.id).next().is_none()
}

/// What is free for jobs to which nobody gives way.
pub fn free_for_all(cluster: &Cluster) -> Free<'_> {
    let mut free = Free::of(cluster);
    Promises::of(&mut free, &mut Vec::new());
    free
}

/// Ranks of jobs that leave, by node.
type Leaving<'a> = BTreeMap<NodeId, Vec<(WorkerId, &'a Allocation)>>;
/// What is given to ranks, by node.
type Given = BTreeMap<NodeId, Vec<Allocation>>;

/// What a round promises to jobs to which others give way. Of what is free, all others see only what stays free once
/// the victims have left and those jobs have started.
#[derive(Default)]
pub struct Promises<'a> {
    jobs: BTreeSet<JobId>,
    promised: Given,
    /// By queue, in thousandths of a device: all that is promised, and how much of it goes beyond what victims give back.
    charges: BTreeMap<Name, (u64, u64)>,
    victims: BTreeSet<JobId>,
    /// What the victims hold.
    leaving: Leaving<'a>,
    /// The round's starts.
    started: Given,
    /// How many of them were counted.
    seen: usize,
    searches: u32,
    /// Whether those for whom there were no victims may find some in another round.
    is_news: bool,
    /// Whether a job waits because what stops already is enough.
    waits: bool,
}

impl<'a> Promises<'a> {
    /// Starts the jobs whose victims have left, and keeps the room of those whose victims have not.
    pub fn of(free: &mut Free<'a>, starts: &mut Vec<(JobId, Vec<Allocation>)>) -> Promises<'a> {
        let jobs = free.cluster.jobs();
        let freed_for = free.cluster.freed_for.iter().filter_map(|(id, at)| Some((jobs.get(*id)?, *at)));
        let freed_for = freed_for.filter(|(job, _)| matches!(job.phase, Phase::Pending(_)));
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
            let ranks = search.place(job);
            victims.iter().for_each(|victim| search.take_back(victim));
            let Ok(ranks) = ranks else { continue };
            promises.jobs.insert(id);
            if is_within_limit(free, job, &ranks) && take(free, job, &ranks) {
                starts.push((id, ranks));
                promises.is_news = true;
            } else {
                promises.promise(free, job, &victims, ranks);
            }
            promises.catch_up(starts);
        }
        promises
    }

    /// Whether the job has been dealt with.
    pub fn includes(&self, job: JobId) -> bool {
        self.jobs.contains(&job)
    }

    /// Seeks victims for a job that finds no room, and promises it what they will leave. Remembers when there are none.
    pub fn seek(
        &mut self,
        free: &mut Free<'a>,
        (job, shape): (&'a Job, &Arc<Shape>),
        starts: &[(JobId, Vec<Allocation>)],
        futile: &mut Futile,
    ) -> Option<Preemption> {
        let cluster = free.cluster;
        if !is_worth_a_search(cluster, job, shape) {
            return None;
        }
        self.searches += 1;
        if MAX_SEARCHES < self.searches {
            return None;
        }
        self.catch_up(starts);
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
        self.jobs.insert(job.id);
        self.promise(free, job, &victims, ranks);
        self.is_news = true;
        futile.clear();
        let victim = |victim: &Job| Victim {
            job: victim.id,
            lost_device_ms: cluster.unsaved_ms(victim) * victim.devices_held_milli() / 1000,
        };
        Some(Preemption { job: job.id, victims: victims.into_iter().map(victim).collect() })
    }

    fn promise(&mut self, free: &mut Free<'a>, job: &Job, victims: &[&'a Job], ranks: Vec<Allocation>) {
        let queue = &job.spec.queue;
        let own = victims.iter().filter(|victim| victim.spec.queue == *queue);
        let leaves: u64 = own.map(|victim| victim.charge_milli()).sum();
        let more = charge(&ranks).saturating_sub(leaves);
        *free.taken.entry(queue.clone()).or_default() += more;
        let charges = self.charges.entry(queue.clone()).or_default();
        *charges = (charges.0 + charge(&ranks), charges.1 + more);
        self.victims.extend(victims.iter().map(|victim| victim.id));
        for (worker, rank) in victims.iter().flat_map(|victim| workers(victim)) {
            self.leaving.entry(rank.node).or_default().push((worker, rank));
        }
        let changed = nodes(&ranks);
        give_to(&mut self.promised, &ranks);
        let mut search = Search::new(free, self);
        changed.into_iter().for_each(|node| search.refresh_node(node));
    }

    /// Counts what the round has handed out since.
    fn catch_up(&mut self, starts: &[(JobId, Vec<Allocation>)]) {
        starts[self.seen..].iter().for_each(|(_, ranks)| give_to(&mut self.started, ranks));
        self.seen = starts.len();
    }

    /// Gives back to `free` what is kept, so that only what was handed out is taken from it. Returns whether victims
    /// must be sought in another round: there are more jobs to seek them for than one round may, or those that stop now
    /// or start may help jobs for which there were none.
    pub fn end(mut self, free: &mut Free<'a>, starts: &[(JobId, Vec<Allocation>)]) -> bool {
        self.catch_up(starts);
        // After what was handed out, what is kept may lie elsewhere, and what stops may not be enough.
        let is_open = self.waits || !self.promised.is_empty();
        let kept = std::mem::take(&mut self.promised);
        let mut search = Search::new(free, &self);
        kept.into_keys().for_each(|node| search.refresh_node(node));
        self.is_news || MAX_SEARCHES < self.searches || (is_open && !starts.is_empty())
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
    *free.taken.entry(job.spec.queue.clone()).or_default() += charge(ranks);
    true
}

/// Whether the queue may hold a placement besides what it holds still.
fn is_within_limit(free: &Free, job: &Job, ranks: &[Allocation]) -> bool {
    let limit = free.cluster.queues[&job.spec.queue].limit_milli;
    limit.is_none_or(|limit| free.held_by(&job.spec.queue) + charge(ranks) <= limit)
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
