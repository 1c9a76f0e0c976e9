//! Who gives way to a job that finds no room: running jobs are stopped only after a proof that it then starts.
//!
//! Nothing of it is stored but the reason in the victims' records. While one of them stops and the job waits, the room
//! of the job is kept: every round finds it again, from the same state with the same result.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Order;
use super::fit::{Free, Misfit, charge, fits, has_labels, place};
use super::room::{NodeFree, Room};
use crate::cluster::{Cluster, workers};
use crate::jobs::{Job, Phase, Shape};
use crate::types::*;

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
/// Running jobs that are looked at for one waiting job, at most: those of the lowest priority, then the latest.
const MAX_CANDIDATES: usize = 1024;
/// What one search may do: ranks of victims given back and taken again, and ranks placed for a proof.
const MAX_WORK: usize = 16_384;

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

/// A search for victims: `free` is changed as if some had left.
struct Search<'s, 'a> {
    free: &'s mut Free<'a>,
    promises: &'s Promises<'a>,
    /// Taken as if they had left.
    gone: Leaving<'a>,
    /// Whether all victims of promises are taken as gone as well.
    kept_promises: bool,
    work: usize,
}

/// A job that may give way, and what it would lose, in thousandths of a device times milliseconds.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    job: &'a Job,
    lost: u64,
}

/// What may still be taken of other queues, in thousandths of a device.
type Spare<'a> = BTreeMap<&'a Name, u64>;

impl<'s, 'a> Search<'s, 'a> {
    fn new(free: &'s mut Free<'a>, promises: &'s Promises<'a>) -> Search<'s, 'a> {
        Search { free, promises, gone: BTreeMap::new(), kept_promises: false, work: 0 }
    }

    /// From now on the job is taken as gone.
    fn give(&mut self, job: &'a Job) {
        self.free.ended.insert(job.id);
        for (worker, rank) in workers(job) {
            self.gone.entry(rank.node).or_default().push((worker, rank));
        }
        self.refresh(job);
    }

    /// The job stays after all.
    fn take_back(&mut self, job: &Job) {
        self.free.ended.remove(&job.id);
        for node in nodes(&job.ranks) {
            self.gone.get_mut(&node).expect("it was given").retain(|(worker, _)| worker.job != job.id);
        }
        self.refresh(job);
    }

    fn refresh(&mut self, job: &Job) {
        nodes(&job.ranks).into_iter().for_each(|node| self.refresh_node(node));
        self.work += job.ranks.len();
    }

    /// What is free on a node with those gone who are taken as gone, and stays free when all promises are kept.
    fn refresh_node(&mut self, id: NodeId) {
        let node = self.free.cluster.nodes().get(id);
        if !node.takes_work() {
            return;
        }
        let left = |room: &mut Room, leaving: &[&Leaving], given: &[&Given]| {
            let mut held = self.free.cluster.nodes().held(id).clone();
            for (worker, rank) in leaving.iter().filter_map(|leaving| leaving.get(&id)).flatten() {
                held.change(*worker, rank, false);
            }
            room.refresh(node, &held);
            let mut left = room.on(id).clone();
            given.iter().filter_map(|given| given.get(&id)).flatten().for_each(|rank| left.take(rank));
            left
        };
        let Promises { promised, leaving, started, .. } = self.promises;
        let room = &mut self.free.room;
        let then = (promised.contains_key(&id) || self.kept_promises)
            .then(|| left(room, &[&self.gone, leaving], &[started, promised]));
        let free = match (self.kept_promises, then) {
            (true, Some(then)) => then,
            (_, then) => {
                let now = left(room, &[&self.gone], &[started]);
                then.map_or(now.clone(), |then| both(&now, &then))
            }
        };
        room.change(id, free);
    }

    /// Places the job, and takes nothing.
    fn place(&mut self, job: &Job) -> Result<Vec<Allocation>, Misfit> {
        let ranks = place(self.free, job)?;
        *self.free.taken.get_mut(&job.spec.queue).expect("it was placed") -= charge(&ranks);
        nodes(&ranks).into_iter().for_each(|node| self.refresh_node(node));
        Ok(ranks)
    }

    fn fits(&mut self, job: &Job) -> bool {
        self.work += job.spec.ranks() as usize;
        fits(self.free, job).is_ok()
    }

    /// Whether the job fits once all that stops already has stopped.
    fn fits_soon(&mut self, job: &Job) -> bool {
        let jobs = self.free.cluster.jobs();
        let others: Vec<&Job> =
            jobs.stopping().filter(|job| !self.promises.victims.contains(&job.id)).collect();
        if others.is_empty() && self.promises.victims.is_empty() {
            return false;
        }
        self.kept_promises = true;
        others.iter().for_each(|job| self.give(job));
        self.promises.leaving.keys().for_each(|node| self.refresh_node(*node));
        let fits = self.fits(job);
        self.kept_promises = false;
        others.iter().for_each(|job| self.take_back(job));
        self.promises.leaving.keys().for_each(|node| self.refresh_node(*node));
        fits
    }

    /// The victims for a job, and where it starts once they have left. Leaves `free` as it was.
    fn make_room(&mut self, job: &'a Job) -> Option<(Vec<&'a Job>, Vec<Allocation>)> {
        let misfit = fits(self.free, job).err()?;
        self.work = 0;
        let candidates = self.candidates(job);
        let queues: BTreeSet<&Name> = candidates.iter().map(|candidate| &candidate.job.spec.queue).collect();
        let spare: Spare = queues.into_iter().map(|queue| (queue, self.spare_milli(queue))).collect();
        let victims = match job.spec.ranks() == 1 && matches!(misfit, Misfit::RoomFor { .. }) {
            true => self.on_one_node(job, &candidates, &spare),
            false => self.on_many_nodes(job, &candidates, &spare, &misfit),
        }?;
        let ranks = self.place(job).expect("it was proved to fit");
        let queue = &job.spec.queue;
        let reclaims = victims.iter().any(|victim| victim.spec.queue != *queue);
        let held = self.free.held_by(queue) + charge(&ranks);
        victims.iter().for_each(|victim| self.take_back(victim));
        let is_guaranteed = held <= self.free.cluster.queues[queue].guaranteed_milli;
        (!reclaims || is_guaranteed).then_some((victims, ranks))
    }

    /// What a queue will hold beyond its guarantee once all that stops has stopped and all promises are kept.
    fn spare_milli(&self, queue: &Name) -> u64 {
        let cluster = self.free.cluster;
        let victims = self.promises.victims.iter().filter_map(|id| cluster.jobs().get(*id));
        let others = cluster.jobs().stopping().filter(|job| !self.promises.victims.contains(&job.id));
        let stops = victims.chain(others).filter(|job| job.spec.queue == *queue);
        let stops: u64 = stops.map(Job::charge_milli).sum();
        let (promised, more) = self.promises.charges.get(queue).copied().unwrap_or_default();
        let held = self.free.held_by(queue) + promised - more - stops;
        held.saturating_sub(cluster.queues[queue].guaranteed_milli)
    }

    /// Those that lose least first.
    fn candidates(&self, job: &Job) -> Vec<Candidate<'a>> {
        let cluster: &'a Cluster = self.free.cluster;
        let own = cluster.jobs().active_in(&job.spec.queue);
        let others =
            (cluster.queues.keys().filter(|queue| **queue != job.spec.queue && may_reclaim(cluster, job)))
                .flat_map(|queue| cluster.jobs().active_in(queue));
        let own = own.take_while(|victim| may_take(cluster, job, victim));
        let others = others.filter(|victim| may_take(cluster, job, victim));
        let gone = |victim: &&Job| self.promises.victims.contains(&victim.id);
        let mut candidates: Vec<Candidate> = (own
            .chain(others)
            .filter(|victim| !gone(victim))
            .take(MAX_CANDIDATES))
        .map(|job| Candidate { job, lost: cluster.unsaved_ms(job).saturating_mul(job.charge_milli()) })
        .collect();
        candidates.sort_by_key(|it| (it.lost, it.job.spec.priority, Reverse(it.job.id)));
        candidates
    }

    /// For a job of one rank: the cheapest set of victims among those of each node. `O(victims)` proofs.
    fn on_one_node(
        &mut self,
        job: &Job,
        candidates: &[Candidate<'a>],
        spare: &Spare,
    ) -> Option<Vec<&'a Job>> {
        let mut best: Option<(u64, Vec<&'a Job>)> = None;
        for mut on_node in self.by_node(candidates).into_values() {
            let skipped = self.try_node(job, &on_node, spare, &mut best);
            if skipped {
                // Small ones took what a large one needs of the spare.
                on_node.sort_by_key(|it| Reverse(it.job.charge_milli()));
                self.try_node(job, &on_node, spare, &mut best);
            }
            if MAX_WORK < self.work {
                break;
            }
        }
        let (_, victims) = best?;
        victims.iter().for_each(|victim| self.give(victim));
        Some(victims)
    }

    /// Gives candidates in their order until the job fits. Returns whether one had to be left out.
    fn try_node(
        &mut self,
        job: &Job,
        on_node: &[Candidate<'a>],
        spare: &Spare,
        best: &mut Option<(u64, Vec<&'a Job>)>,
    ) -> bool {
        let (mut spare, mut victims, mut fit, mut skipped) = (spare.clone(), Vec::new(), false, false);
        for candidate in on_node {
            if best.as_ref().is_some_and(|(lost, _)| *lost <= candidate.lost) {
                continue; // Whichever makes it fit is needed.
            }
            if !allows(&mut spare, job, candidate.job) {
                skipped = true;
                continue;
            }
            self.give(candidate.job);
            victims.push(*candidate);
            fit = self.fits(job);
            if fit {
                break;
            }
        }
        if fit {
            self.drop_superfluous(job, &mut victims);
            let lost = victims.iter().fold(0u64, |sum, victim| sum.saturating_add(victim.lost));
            if best.as_ref().is_none_or(|(least, _)| lost < *least) {
                *best = Some((lost, victims.iter().map(|victim| victim.job).collect()));
            }
        }
        victims.iter().for_each(|victim| self.take_back(victim.job));
        skipped
    }

    /// For a gang, or a job whose queue is at its limit: victims in the order of what they lose for what they give,
    /// as many as it takes, then without those that it does not take.
    fn on_many_nodes(
        &mut self,
        job: &Job,
        candidates: &[Candidate<'a>],
        spare: &Spare,
        misfit: &Misfit,
    ) -> Option<Vec<&'a Job>> {
        let mut spare = spare.clone();
        let mut order = match misfit {
            Misfit::QueueLimit { .. } => candidates.to_vec(),
            Misfit::RoomFor { .. } => self.by_gain(job, candidates),
        };
        order.retain(|candidate| allows(&mut spare, job, candidate.job));
        let mut given = 0;
        let mut fits_with = |search: &mut Search<'s, 'a>, count: usize| {
            order[count.min(given)..given].iter().for_each(|candidate| search.take_back(candidate.job));
            order[given.min(count)..count].iter().for_each(|candidate| search.give(candidate.job));
            given = count;
            search.fits(job)
        };
        if !fits_with(self, order.len()) {
            fits_with(self, 0);
            return None;
        }
        // More room never hurts, so the least number can be searched for.
        let (mut too_few, mut enough) = (0, order.len());
        while 1 < enough - too_few {
            let middle = (too_few + enough) / 2;
            if fits_with(self, middle) { enough = middle } else { too_few = middle }
        }
        fits_with(self, enough);
        order.truncate(enough);
        self.drop_superfluous(job, &mut order);
        Some(order.into_iter().map(|candidate| candidate.job).collect())
    }

    /// Candidates node by node, those nodes first that win most ranks for what is lost.
    fn by_gain(&mut self, job: &Job, candidates: &[Candidate<'a>]) -> Vec<Candidate<'a>> {
        let role = job.spec.roles.iter().max_by_key(|role| role.ranks).expect("a job has a role");
        let mut nodes: Vec<(u128, NodeId, Vec<Candidate>)> = Vec::new();
        for (id, on_node) in self.by_node(candidates) {
            let before = self.ranks_on(id, role);
            let gone = self.gone.entry(id).or_default();
            let already = gone.len();
            let all = on_node.iter().flat_map(|candidate| workers(candidate.job));
            gone.extend(all.filter(|(_, rank)| rank.node == id));
            self.work += gone.len() - already;
            self.refresh_node(id);
            let gain = u128::from(self.ranks_on(id, role) - before);
            self.gone.get_mut(&id).expect("just entered").truncate(already);
            self.refresh_node(id);
            let lost: u128 = on_node.iter().map(|candidate| u128::from(candidate.lost)).sum();
            // In thousandths, so that ranks that cost little are told apart; without a gain only what else is missing.
            nodes.push(((1 + lost * 1000).checked_div(gain).unwrap_or(u128::MAX), id, on_node));
        }
        nodes.sort_by_key(|(price, id, _)| (*price, *id));
        let mut seen = BTreeSet::new();
        let candidates = nodes.into_iter().flat_map(|(_, _, on_node)| on_node);
        candidates.filter(|candidate| seen.insert(candidate.job.id)).collect()
    }

    /// Ranks of the role for which a node has room, no more than the role has.
    fn ranks_on(&self, id: NodeId, role: &Role) -> u32 {
        let (node, request, room) = (self.free.cluster.nodes().get(id), &role.request, &self.free.room);
        if !has_labels(node, request) {
            return 0;
        }
        let with = |devices: Option<&DeviceRequest>| {
            let (mut left, mut ranks) = (room.on(id).clone(), 0);
            while ranks < role.ranks
                && let Some(chosen) = room.choose(id, &left, request, devices, &self.free.scarcity)
            {
                left.take(&chosen.allocation(id, request, 0));
                ranks += 1;
            }
            ranks
        };
        let none = request.devices.is_empty().then_some(None);
        request.devices.iter().map(Some).chain(none).map(with).max().unwrap_or(0)
    }

    /// Candidates by each node that they hold something on, in their order.
    fn by_node(&self, candidates: &[Candidate<'a>]) -> BTreeMap<NodeId, Vec<Candidate<'a>>> {
        let mut by_node: BTreeMap<NodeId, Vec<Candidate>> = BTreeMap::new();
        for candidate in candidates {
            let open = |id: &NodeId| self.free.cluster.nodes().get(*id).takes_work();
            for id in nodes(&candidate.job.ranks).into_iter().filter(open) {
                by_node.entry(id).or_default().push(*candidate);
            }
        }
        by_node
    }

    /// Lets those stay without which the job fits too, those that lose most first. The last of them is needed.
    fn drop_superfluous(&mut self, job: &Job, victims: &mut Vec<Candidate<'a>>) {
        let Some((_, others)) = victims.split_last() else { return };
        let mut others = others.to_vec();
        others.sort_by_key(|victim| Reverse(victim.lost));
        for victim in others.iter().take_while(|_| self.work <= MAX_WORK).collect::<Vec<_>>() {
            self.take_back(victim.job);
            match self.fits(job) {
                true => victims.retain(|kept| kept.job.id != victim.job.id),
                false => self.give(victim.job),
            }
        }
    }
}

/// Whether a victim of another queue leaves it its guarantee; takes it from what is spare.
fn allows(spare: &mut Spare, job: &Job, victim: &Job) -> bool {
    if victim.spec.queue == job.spec.queue {
        return true;
    }
    let left = spare.get_mut(&victim.spec.queue).expect("the queue of a candidate");
    match left.checked_sub(victim.charge_milli()) {
        Some(less) => *left = less,
        None => return false,
    }
    true
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

/// What is free of a node in both cases.
fn both(one: &NodeFree, other: &NodeFree) -> NodeFree {
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

fn give_to(given: &mut Given, ranks: &[Allocation]) {
    for rank in ranks {
        given.entry(rank.node).or_default().push(rank.clone());
    }
}

fn nodes(ranks: &[Allocation]) -> BTreeSet<NodeId> {
    ranks.iter().map(|rank| rank.node).collect()
}
