//! Which jobs give way: the cheapest that are proved to be enough.

mod by_node;
mod claim;
mod gain;
mod shrink;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::{Leaving, MAX_CANDIDATES, Part, Round, both, guards, may_reclaim, reclaimers, victims_in_own};
use crate::cluster::Cluster;
use crate::event::Queue;
use crate::jobs::Job;
use crate::plan::fit::{Free, Misfit, charge, find, fits, fits_among};
use crate::plan::room::NodeFree;
use crate::types::*;
use gain::in_sequence;

/// What one search may do: ranks of victims given back and taken again, and ranks placed for a proof.
const MAX_WORK: usize = 16_384;

/// A search for victims: `free` is changed as if some had left.
pub struct Search<'s, 'a> {
    free: &'s mut Free<'a>,
    round: &'s Round,
    /// Taken as if they had left.
    gone: Leaving<'a>,
    /// The same, by job.
    given: Gifts<'a>,
    /// Whether all victims of promises are taken as gone as well.
    kept_promises: bool,
    /// Whether victims only go elsewhere: what queues hold stays what it is.
    is_of_moves: bool,
    work: usize,
    /// Whether all may be looked at who could give way to a gang of many nodes, and whether they were.
    pub looks_by_node: bool,
    pub looked_by_node: bool,
}

/// Ranks that jobs give up, with the jobs.
type Gifts<'a> = BTreeMap<JobId, (&'a Job, BTreeSet<u32>)>;

/// What is lost, by whom in which order, and what they give.
type Best<'a> = Option<(u64, Vec<JobId>, Gifts<'a>)>;

/// A job that may give way, and what it would lose, in thousandths of a device times milliseconds.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    job: &'a Job,
    lost: u64,
    /// Ranks that it can do without.
    surplus: u32,
}

impl<'a> Candidate<'a> {
    fn of(cluster: &Cluster, job: &'a Job) -> Candidate<'a> {
        let lost = cluster.unsaved_ms(job).saturating_mul(job.charge_milli());
        Candidate { job, lost, surplus: (job.ranks.len() as u32).saturating_sub(job.spec.min_ranks()) }
    }

    /// Ranks that it may give up, of which it can do without so many.
    fn elastic(&self) -> Range<u32> {
        let Some(role) = self.job.spec.elastic_role() else { return 0..0 };
        self.job.spec.ranks_of(role, self.job.ranks.len() as u32)
    }
}

/// What may still be taken of queues that must keep their guarantee, in thousandths of a device.
type Spare<'a> = BTreeMap<&'a Name, u64>;

impl<'s, 'a> Search<'s, 'a> {
    pub fn new(free: &'s mut Free<'a>, round: &'s Round) -> Search<'s, 'a> {
        let (gone, given) = (BTreeMap::new(), BTreeMap::new());
        Search {
            free,
            round,
            gone,
            given,
            kept_promises: false,
            is_of_moves: false,
            work: 0,
            looks_by_node: false,
            looked_by_node: false,
        }
    }

    /// From now on the job is taken as gone, or what it is about to give up.
    pub fn give(&mut self, job: &'a Job) {
        self.give_ranks(job, job.leaving().collect());
    }

    /// The job stays after all.
    pub fn take_back(&mut self, job: &'a Job) {
        let ranks = self.given.get(&job.id).map(|(_, ranks)| ranks.iter().copied().collect());
        self.take_back_ranks(job, ranks.unwrap_or_default());
    }

    /// Gives up ranks that the job has not given up yet.
    fn give_ranks(&mut self, job: &'a Job, ranks: Vec<u32>) {
        self.note_given(job, &ranks);
        self.refresh(job, &ranks);
    }

    /// The same, but for what is free on their nodes.
    fn note_given(&mut self, job: &'a Job, ranks: &[u32]) {
        let (_, given) = self.given.entry(job.id).or_insert_with(|| (job, BTreeSet::new()));
        let mut charge = 0;
        for rank in ranks {
            assert!(given.insert(*rank), "{} gives rank {rank} twice", job.id);
            let allocation = &job.ranks[*rank as usize];
            let worker = WorkerId { job: job.id, attempt: job.attempt, rank: allocation.rank };
            self.gone.entry(allocation.node).or_default().push((worker, allocation));
            charge += allocation.charge_milli;
        }
        *self.free.left.entry(job.id).or_default() += charge;
    }

    fn take_back_ranks(&mut self, job: &'a Job, ranks: Vec<u32>) {
        self.note_taken_back(job, &ranks);
        self.refresh(job, &ranks);
    }

    /// The same, but for what is free on their nodes.
    fn note_taken_back(&mut self, job: &'a Job, ranks: &[u32]) {
        let Some((_, given)) = self.given.get_mut(&job.id) else { return };
        for rank in ranks {
            assert!(given.remove(rank), "{} did not give rank {rank}", job.id);
        }
        let nothing = given.is_empty();
        for node in nodes_of(job, ranks) {
            let gone = self.gone.get_mut(&node).expect("it was given");
            let left = |rank: u32| given.contains(&(job.position(rank) as u32));
            gone.retain(|(worker, _)| worker.job != job.id || left(worker.rank));
        }
        let left = self.free.left.get_mut(&job.id).expect("it was given");
        *left -= ranks.iter().map(|rank| job.ranks[*rank as usize].charge_milli).sum::<u64>();
        if nothing {
            self.free.left.remove(&job.id);
            self.given.remove(&job.id);
        }
    }

    fn refresh(&mut self, job: &Job, ranks: &[u32]) {
        nodes_of(job, ranks).into_iter().for_each(|node| self.refresh_node(node));
        self.work += ranks.len();
    }

    /// What is free on a node with those gone who are taken as gone, and stays free when all promises are kept.
    pub fn refresh_node(&mut self, id: NodeId) {
        if !self.free.cluster.nodes().get(id).takes_work() {
            return;
        }
        let (free, then) = self.left_without(id, &[]);
        if let Some(then) = then.filter(|_| self.gone.get(&id).is_none_or(Vec::is_empty)) {
            self.free.promises.note_loose(id, &free, &then);
        }
        self.free.room.change(id, free);
    }

    /// The same, if some more ranks were gone that stand there; and what will be free of it once all promises are kept, if that may be more.
    fn left_without(&self, id: NodeId, more: &[(WorkerId, &Allocation)]) -> (NodeFree, Option<NodeFree>) {
        let (cluster, jobs) = (self.free.cluster, self.free.cluster.jobs());
        let mut held = Cow::Borrowed(cluster.nodes().held(id));
        for (worker, rank) in self.gone.get(&id).into_iter().flatten().chain(more) {
            let span = jobs.get(worker.job).expect("a job that holds").span();
            held.to_mut().change(*worker, rank, span, false);
        }
        let given = self.round.started.get(&id).map_or(&[][..], |given| &given[..]);
        let node = cluster.nodes().get(id);
        match self.free.promises.views((jobs, &self.free.room), node, &held, given) {
            (now, None) => (now, None),
            (_, Some(then)) if self.kept_promises => (then, None),
            (now, Some(then)) => (both(&now, &then), Some(then)),
        }
    }

    /// Places the job, and takes nothing.
    pub fn place(&mut self, job: &Job) -> Result<Vec<Allocation>, Misfit> {
        let ranks = find(self.free, job)?;
        nodes(&ranks).into_iter().for_each(|node| self.refresh_node(node));
        Ok(ranks)
    }

    /// The same, whatever is kept for others.
    pub fn place_on_kept(&mut self, job: &Job) -> Result<Vec<Allocation>, Misfit> {
        let kept = std::mem::take(&mut self.free.kept);
        let ranks = self.place(job);
        self.free.kept = kept;
        ranks
    }

    fn fits(&mut self, job: &Job) -> bool {
        self.work += job.spec.min_ranks() as usize;
        fits(self.free, job).is_ok()
    }

    /// The same in one domain, if the job requires one.
    fn fits_in(&mut self, job: &Job, domain: Option<&[NodeId]>) -> bool {
        self.work += job.spec.min_ranks() as usize;
        match domain {
            None => fits(self.free, job).is_ok(),
            nodes => fits_among(self.free, job, nodes).is_ok(),
        }
    }

    /// Whether the job fits once all that stops already has stopped.
    pub fn fits_soon(&mut self, job: &Job) -> bool {
        let others = self.others();
        if others.is_empty() && self.free.promises.is_empty() {
            return false;
        }
        let wants_devices = job.spec.roles.iter().all(|role| !role.request.devices.is_empty());
        let loose = self.free.promises.loose(wants_devices);
        self.kept_promises = true;
        others.iter().for_each(|job| self.give(job));
        loose.iter().for_each(|node| self.refresh_node(*node));
        let fits = self.fits(job);
        self.kept_promises = false;
        others.iter().for_each(|job| self.take_back(job));
        loose.iter().for_each(|node| self.refresh_node(*node));
        fits
    }

    /// Jobs that stop and leave nothing that is promised to anybody. `O(1)` where each that gives way does so for a promise.
    fn others(&self) -> Vec<&'a Job> {
        let (jobs, promises) = (self.free.cluster.jobs(), &self.free.promises);
        match jobs.count_of_victims() == promises.count_of_victims() {
            true => jobs.leaving().collect(),
            false => jobs.stopping().filter(|job| !promises.is_victim(job.id)).collect(),
        }
    }

    /// The victims for a job, and where it starts once they have left. Leaves `free` as it was.
    pub fn make_room(&mut self, job: &'a Job) -> Option<(Vec<Part<'a>>, Vec<Allocation>)> {
        let cluster: &'a Cluster = self.free.cluster;
        let reclaimers: Vec<&Queue> = reclaimers(cluster, &self.free.taken, job).collect();
        for by in reclaimers {
            let is_within = |victim: &Job| cluster.queues().is_within(&victim.spec.queue, &by.name);
            let mut candidates = self.candidates(job, Some(by));
            for _ in 0..2 {
                let by_node = |search: &mut Self| search.choose_by_node(job, Some(by));
                let (victims, ranks) = self.choose(job, &candidates).or_else(|| by_node(self))?;
                // What the job counts is only known once it is placed.
                let leaves =
                    victims.iter().filter(|it| is_within(it.job)).map(Part::charge_milli).sum::<u64>();
                let held = self.free.held_by(&by.name) + charge(&ranks) - leaves;
                let reclaims = victims.iter().any(|victim| victim.job.spec.queue != job.spec.queue);
                if !reclaims || held <= by.guaranteed_milli {
                    return Some((victims, ranks));
                }
                // Those who hold what is guaranteed give room below it, too.
                candidates.sort_by_key(|it| !is_within(it.job));
            }
        }
        let by_node = |search: &mut Self| search.choose_by_node(job, None);
        self.choose(job, &self.candidates(job, None)).or_else(|| by_node(self))
    }

    /// Who goes elsewhere so that the job fits, of those who may: the cheapest, each for what its move loses. Leaves `free`
    /// as it was.
    pub fn make_way(
        &mut self,
        job: &Job,
        movers: impl Iterator<Item = (&'a Job, u64)>,
    ) -> Option<(Vec<JobId>, Vec<Allocation>)> {
        let lost = |(job, cost_ms): (&'a Job, u64)| Candidate {
            job,
            lost: cost_ms.saturating_mul(job.charge_milli()),
            surplus: 0,
        };
        let mut candidates: Vec<Candidate> = movers.map(lost).collect();
        candidates.sort_by_key(|it| (it.lost, Reverse(it.job.id)));
        self.is_of_moves = true;
        let (parts, ranks) = self.choose(job, &candidates)?;
        Some((parts.iter().map(|part| part.job.id).collect(), ranks))
    }

    fn choose(
        &mut self,
        job: &Job,
        candidates: &[Candidate<'a>],
    ) -> Option<(Vec<Part<'a>>, Vec<Allocation>)> {
        let misfit = fits(self.free, job).err()?;
        self.work = 0;
        let spare = self.spare_of(job, candidates.iter().map(|candidate| &candidate.job.spec.queue));
        let found = match job.spec.min_ranks() == 1 && !matches!(misfit, Misfit::QueueLimit { .. }) {
            true => self.on_one_node(job, candidates, &spare),
            false => self.on_many_nodes(job, candidates, &spare, &misfit),
        };
        let ranks = found.is_some().then(|| self.place(job).expect("it was proved to fit"));
        let given = self.take_back_all();
        let victims = found?.into_iter().filter_map(|id| {
            let (job, gives) = given.get(&id)?;
            let stays = (0..job.ranks.len() as u32).filter(|rank| !gives.contains(rank)).collect();
            Some(Part { job, stays })
        });
        Some((victims.collect(), ranks?))
    }

    fn take_back_all(&mut self) -> Gifts<'a> {
        let (given, nodes): (_, BTreeSet<NodeId>) = (self.given.clone(), self.gone.keys().copied().collect());
        for (job, ranks) in given.values() {
            self.work += ranks.len();
            self.note_taken_back(job, &ranks.iter().copied().collect::<Vec<u32>>());
        }
        nodes.into_iter().for_each(|node| self.refresh_node(node));
        self.gone.retain(|_, gone| !gone.is_empty());
        given
    }

    /// What may be taken of queues, by the guarantees of them and of those above them.
    fn spare_of<'g>(&self, job: &'g Job, queues: impl IntoIterator<Item = &'g Name>) -> Spare<'g>
    where
        'a: 'g,
    {
        let queues: BTreeSet<&Name> = queues.into_iter().collect();
        let guards = queues.into_iter().flat_map(|queue| guards(self.free.cluster, job, queue));
        guards.map(|queue| (&queue.name, self.spare_milli(queue))).collect()
    }

    /// What a queue will hold beyond its guarantee once all that stops has stopped and all promises are kept.
    fn spare_milli(&self, queue: &Queue) -> u64 {
        let queues = self.free.cluster.queues();
        let others = self.others();
        let within = others.into_iter().filter(|job| queues.is_within(&job.spec.queue, &queue.name));
        let others: u64 = within.map(|job| Part::of(job).charge_milli()).sum();
        let (takes, gives) = self.free.promises.swing_milli(&queue.name);
        let held = self.free.held_by(&queue.name) + takes - gives - others;
        held.saturating_sub(queue.guaranteed_milli)
    }

    /// Those that lose least first, of as many as are looked at.
    fn candidates(&self, job: &'a Job, by: Option<&Queue>) -> Vec<Candidate<'a>> {
        let mut candidates: Vec<Candidate> = (self.givers(job, by, MAX_CANDIDATES).take(MAX_CANDIDATES))
            .map(|job| Candidate::of(self.free.cluster, job))
            .collect();
        candidates.sort_by_key(|it| (it.lost, it.job.spec.priority, Reverse(it.job.id)));
        candidates
    }

    /// Who may give way: of the job's own queue, and of others by what is guaranteed to `by`.
    ///
    /// * `most`: how many of its own queue are looked at.
    fn givers(&self, job: &'a Job, by: Option<&Queue>, most: usize) -> impl Iterator<Item = &'a Job> {
        let cluster: &'a Cluster = self.free.cluster;
        let own = victims_in_own(cluster, job, most);
        let gives = move |queue: &&Queue| {
            queue.name != job.spec.queue && by.is_some_and(|by| may_reclaim(cluster, job, by, &queue.name))
        };
        let others = cluster.queues().iter().filter(gives);
        let others = others.flat_map(|queue| cluster.jobs().active_in(&queue.name));
        let others = others.filter(|it| !it.spec.is_service() && !cluster.is_out_of_reach(it));
        own.chain(others).filter(|victim| !self.free.promises.is_victim(victim.id))
    }

    /// For a job of one rank: the cheapest set of victims among those of each node; those that can shrink first, and
    /// nobody is stopped whole where that is enough. `O(victims)` proofs.
    fn on_one_node(&mut self, job: &Job, candidates: &[Candidate<'a>], spare: &Spare) -> Option<Vec<JobId>> {
        let by_node = self.by_node(candidates);
        for stops_whole in [false, true] {
            if !stops_whole && candidates.iter().all(|candidate| candidate.surplus == 0) {
                continue;
            }
            let mut best: Best = None;
            for (id, on_node) in &by_node {
                if self.free.is_kept_from(job, *id) {
                    continue;
                }
                let skipped = self.try_node(job, (*id, on_node), spare, stops_whole, &mut best);
                if skipped {
                    // Small ones took what a large one needs of the spare.
                    let mut on_node = on_node.clone();
                    on_node.sort_by_key(|it| Reverse(it.job.charge_milli()));
                    self.try_node(job, (*id, &on_node), spare, stops_whole, &mut best);
                }
                if MAX_WORK < self.work {
                    break;
                }
            }
            if let Some((_, order, gifts)) = best {
                for (victim, ranks) in gifts.into_values() {
                    self.give_ranks(victim, ranks.into_iter().collect());
                }
                return Some(order);
            }
        }
        None
    }

    /// Gives candidates in their order until the job fits. Returns whether one had to be left out.
    fn try_node(
        &mut self,
        job: &Job,
        (node, on_node): (NodeId, &[Candidate<'a>]),
        spare: &Spare,
        stops_whole: bool,
        best: &mut Best<'a>,
    ) -> bool {
        let (mut spare, mut whole, mut skipped) = (spare.clone(), Vec::new(), false);
        let dear = |candidate: &Candidate| best.as_ref().is_some_and(|(lost, ..)| *lost <= candidate.lost);
        let shrinking = on_node.iter().filter(|candidate| !dear(candidate));
        let mut fit = shrinking.into_iter().any(|candidate| {
            self.shrink(job, *candidate, &mut spare, &|rank| rank.node == node, &mut |search| {
                search.fits(job)
            })
        });
        for candidate in on_node.iter().filter(|_| stops_whole) {
            if fit {
                break;
            }
            if dear(candidate) {
                continue; // Whichever makes it fit is needed.
            }
            if !self.give_whole(&mut spare, job, candidate.job) {
                skipped = true;
                continue;
            }
            whole.push(*candidate);
            fit = self.fits(job);
        }
        if fit {
            self.drop_superfluous(job, on_node, whole);
            let lost = on_node.iter().filter(|candidate| self.given.contains_key(&candidate.job.id));
            let lost = lost.fold(0u64, |sum, victim| sum.saturating_add(victim.lost));
            if best.as_ref().is_none_or(|(least, ..)| lost < *least) {
                let order = on_node.iter().map(|candidate| candidate.job.id).collect();
                *best = Some((lost, order, self.given.clone()));
            }
        }
        self.take_back_all();
        skipped
    }

    /// Gives up what is left of a job, if that is allowed.
    fn give_whole(&mut self, spare: &mut Spare, job: &Job, victim: &'a Job) -> bool {
        let rest = self.rest(victim);
        let charge = rest.iter().map(|rank| victim.ranks[*rank as usize].charge_milli).sum();
        let allows = self.allows(spare, job, victim, charge);
        if allows {
            self.give_ranks(victim, rest);
        }
        allows
    }

    /// For a gang, or a job whose queue is at its limit: ranks that others can do without, node by node; if these are
    /// not enough, victims in the order of what they lose for what they give, as many as it takes; then without those
    /// that it does not take.
    fn on_many_nodes(
        &mut self,
        job: &Job,
        candidates: &[Candidate<'a>],
        spare: &Spare,
        misfit: &Misfit,
    ) -> Option<Vec<JobId>> {
        if let Misfit::QueueLimit { queue, .. } = misfit {
            let queues = self.free.cluster.queues();
            let mut order = candidates.to_vec();
            order.sort_by_key(|candidate| !queues.is_within(&candidate.job.spec.queue, queue));
            return self.in_order(job, order, spare, None);
        }
        let nodes = self.by_gain(job, candidates);
        if let (Misfit::RoomFor { ranks, of, .. }, [_], None) =
            (misfit, &job.spec.roles[..], &job.spec.topology.require)
            && nodes.iter().map(|gain| gain.ranks()).sum::<u32>() < of - ranks
        {
            return None; // All of them are not enough.
        }
        if let Some(level) = &job.spec.topology.require {
            for (domain, nodes) in self.by_domain(job, level, &nodes) {
                if MAX_WORK < self.work {
                    break;
                }
                let victims = self.in_order(job, in_sequence(&nodes), spare, Some(&domain));
                if victims.is_some() {
                    return victims;
                }
                self.take_back_all();
            }
        }
        self.in_order(job, in_sequence(&nodes), spare, None)
    }

    /// The first candidates that are enough, without those that need not give way; of those that can shrink first what
    /// they can do without.
    fn in_order(
        &mut self,
        job: &Job,
        mut order: Vec<Candidate<'a>>,
        spare: &Spare,
        domain: Option<&[NodeId]>,
    ) -> Option<Vec<JobId>> {
        let (mut spare, candidates) = (spare.clone(), order.clone());
        if self.shrink_all(job, &order, &mut spare) {
            self.drop_superfluous(job, &candidates, Vec::new());
            return Some(order.iter().map(|candidate| candidate.job.id).collect());
        }
        let all: Vec<JobId> = order.iter().map(|candidate| candidate.job.id).collect();
        let rests: Vec<(Candidate<'a>, Vec<u32>)> =
            order.drain(..).map(|candidate| (candidate, self.rest(candidate.job))).collect();
        let charge = |(candidate, rest): &(Candidate, Vec<u32>)| {
            rest.iter().map(|rank| candidate.job.ranks[*rank as usize].charge_milli).sum::<u64>()
        };
        let mut order = rests;
        order.retain(|it| self.allows(&mut spare, job, it.0.job, charge(it)));
        let mut given = 0;
        let mut fits_with = |search: &mut Search<'s, 'a>, count: usize| {
            for (candidate, rest) in &order[count.min(given)..given] {
                search.take_back_ranks(candidate.job, rest.clone());
            }
            for (candidate, rest) in &order[given.min(count)..count] {
                search.give_ranks(candidate.job, rest.clone());
            }
            given = count;
            search.fits_in(job, domain)
        };
        if !fits_with(self, order.len()) {
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
        self.drop_superfluous(job, &candidates, order.into_iter().map(|(candidate, _)| candidate).collect());
        Some(all)
    }

    /// Whether a victim of another queue leaves all their guarantee when it gives so much; takes it from what is spare.
    fn allows(&self, spare: &mut Spare, job: &Job, victim: &Job, charge: u64) -> bool {
        if victim.spec.queue == job.spec.queue || self.is_of_moves {
            return true;
        }
        let guards = || guards(self.free.cluster, job, &victim.spec.queue);
        let allows = guards().all(|queue| charge <= spare[&queue.name]);
        if allows {
            guards().for_each(|queue| *spare.get_mut(&queue.name).expect("just found") -= charge);
        }
        allows
    }

    /// The victim does not give so much after all.
    fn give_back(&self, spare: &mut Spare, job: &Job, victim: &Job, charge: u64) {
        if victim.spec.queue != job.spec.queue && !self.is_of_moves {
            let guards = guards(self.free.cluster, job, &victim.spec.queue);
            guards.for_each(|queue| *spare.get_mut(&queue.name).expect("it allowed that") += charge);
        }
    }

    /// Lets those stay without which the job fits too, those that lose most first; then of those that can shrink all
    /// ranks that are not needed.
    ///
    /// * `whole`: those that were given whole. The last of them was needed, where the job may be anywhere: where it was
    ///   sought in one domain, some of them may be enough in another.
    fn drop_superfluous(&mut self, job: &Job, candidates: &[Candidate<'a>], mut whole: Vec<Candidate<'a>>) {
        if job.spec.topology.require.is_none() {
            whole.pop();
        }
        whole.sort_by_key(|victim| Reverse(victim.lost));
        let mut elastic: Vec<Candidate> = candidates.iter().filter(|it| 0 < it.surplus).copied().collect();
        elastic.sort_by_key(|victim| Reverse(victim.lost));
        for victim in whole.iter().chain(&elastic) {
            let gives = self.given.get(&victim.job.id).map(|(_, ranks)| ranks.clone()).unwrap_or_default();
            if gives.is_empty() || MAX_WORK < self.work {
                continue;
            }
            self.take_back(victim.job);
            if self.fits(job) {
                continue;
            }
            self.give_ranks(victim.job, gives.iter().copied().collect());
            if 0 < victim.surplus {
                self.spare_ranks(job, victim, gives);
            }
        }
    }
}

pub fn nodes(ranks: &[Allocation]) -> BTreeSet<NodeId> {
    ranks.iter().map(|rank| rank.node).collect()
}

fn nodes_of(job: &Job, ranks: &[u32]) -> BTreeSet<NodeId> {
    ranks.iter().map(|rank| job.ranks[*rank as usize].node).collect()
}
