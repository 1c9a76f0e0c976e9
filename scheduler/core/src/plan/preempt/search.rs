//! Which jobs give way: the cheapest that are proved to be enough.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{Given, Leaving, MAX_CANDIDATES, Promises, guards, may_reclaim, reclaimers, victims_in_own};
use crate::cluster::{Cluster, workers};
use crate::event::Queue;
use crate::jobs::Job;
use crate::plan::domain::may_stand;
use crate::plan::fit::{Free, Misfit, charge, find, fits, fits_among};
use crate::plan::room::{NodeFree, Room};
use crate::plan::score::Take;
use crate::topology::Level;
use crate::types::*;

/// What one search may do: ranks of victims given back and taken again, and ranks placed for a proof.
const MAX_WORK: usize = 16_384;

/// A search for victims: `free` is changed as if some had left.
pub struct Search<'s, 'a> {
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

/// What a node wins when all candidates leave it.
#[derive(Clone)]
struct Gain<'a> {
    node: NodeId,
    /// Ranks of the largest role.
    ranks: u32,
    /// By all candidates together.
    lost: u128,
    candidates: Vec<Candidate<'a>>,
}

impl Gain<'_> {
    /// In thousandths, so that ranks that cost little are told apart; without a gain only what else is missing.
    fn price(&self) -> u128 {
        (1 + self.lost * 1000).checked_div(self.ranks.into()).unwrap_or(u128::MAX)
    }
}

/// What may still be taken of queues that must keep their guarantee, in thousandths of a device.
type Spare<'a> = BTreeMap<&'a Name, u64>;

impl<'s, 'a> Search<'s, 'a> {
    pub fn new(free: &'s mut Free<'a>, promises: &'s Promises<'a>) -> Search<'s, 'a> {
        Search { free, promises, gone: BTreeMap::new(), kept_promises: false, work: 0 }
    }

    /// From now on the job is taken as gone.
    pub fn give(&mut self, job: &'a Job) {
        self.free.ended.insert(job.id);
        for (worker, rank) in workers(job) {
            self.gone.entry(rank.node).or_default().push((worker, rank));
        }
        self.refresh(job);
    }

    /// The job stays after all.
    pub fn take_back(&mut self, job: &Job) {
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
    pub fn refresh_node(&mut self, id: NodeId) {
        let node = self.free.cluster.nodes().get(id);
        if !node.takes_work() {
            return;
        }
        let left = |room: &mut Room, leaving: &[&Leaving], given: &[&Given]| {
            let mut held = self.free.cluster.nodes().held(id).clone();
            for (worker, rank) in leaving.iter().filter_map(|leaving| leaving.get(&id)).flatten() {
                let span = self.free.cluster.jobs().get(worker.job).expect("a job that holds").span();
                held.change(*worker, rank, span, false);
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
        self.work += job.spec.ranks() as usize;
        fits(self.free, job).is_ok()
    }

    /// The same in one domain, if the job requires one.
    fn fits_in(&mut self, job: &Job, domain: Option<&[NodeId]>) -> bool {
        self.work += job.spec.ranks() as usize;
        match domain {
            None => fits(self.free, job).is_ok(),
            nodes => fits_among(self.free, job, nodes).is_ok(),
        }
    }

    /// Whether the job fits once all that stops already has stopped.
    pub fn fits_soon(&mut self, job: &Job) -> bool {
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
    pub fn make_room(&mut self, job: &'a Job) -> Option<(Vec<&'a Job>, Vec<Allocation>)> {
        let cluster: &'a Cluster = self.free.cluster;
        let reclaimers: Vec<&Queue> = reclaimers(cluster, &self.free.taken, job).collect();
        for by in reclaimers {
            let (victims, ranks) = self.choose(job, &self.candidates(job, Some(by)))?;
            // What the job counts is only known once it is placed.
            let within =
                victims.iter().filter(|victim| cluster.queues().is_within(&victim.spec.queue, &by.name));
            let leaves: u64 = within.map(|victim| victim.charge_milli()).sum();
            let held = self.free.held_by(&by.name) + charge(&ranks) - leaves;
            let reclaims = victims.iter().any(|victim| victim.spec.queue != job.spec.queue);
            if !reclaims || held <= by.guaranteed_milli {
                return Some((victims, ranks));
            }
        }
        self.choose(job, &self.candidates(job, None))
    }

    fn choose(&mut self, job: &Job, candidates: &[Candidate<'a>]) -> Option<(Vec<&'a Job>, Vec<Allocation>)> {
        let misfit = fits(self.free, job).err()?;
        self.work = 0;
        let queues: BTreeSet<&Name> = candidates.iter().map(|candidate| &candidate.job.spec.queue).collect();
        let guards = queues.into_iter().flat_map(|queue| guards(self.free.cluster, job, queue));
        let spare: Spare = guards.map(|queue| (&queue.name, self.spare_milli(queue))).collect();
        let victims = match job.spec.ranks() == 1 && !matches!(misfit, Misfit::QueueLimit { .. }) {
            true => self.on_one_node(job, candidates, &spare),
            false => self.on_many_nodes(job, candidates, &spare, &misfit),
        }?;
        let ranks = self.place(job).expect("it was proved to fit");
        victims.iter().for_each(|victim| self.take_back(victim));
        Some((victims, ranks))
    }

    /// What a queue will hold beyond its guarantee once all that stops has stopped and all promises are kept.
    fn spare_milli(&self, queue: &Queue) -> u64 {
        let cluster = self.free.cluster;
        let victims = self.promises.victims.iter().filter_map(|id| cluster.jobs().get(*id));
        let others = cluster.jobs().stopping().filter(|job| !self.promises.victims.contains(&job.id));
        let within = |job: &&Job| cluster.queues().is_within(&job.spec.queue, &queue.name);
        let stops: u64 = victims.chain(others).filter(within).map(Job::charge_milli).sum();
        let (promised, more) = self.promises.charges.get(&queue.name).copied().unwrap_or_default();
        let held = self.free.held_by(&queue.name) + promised - more - stops;
        held.saturating_sub(queue.guaranteed_milli)
    }

    /// Those that lose least first: of the job's own queue, and of others by what is guaranteed to `by`.
    fn candidates(&self, job: &'a Job, by: Option<&Queue>) -> Vec<Candidate<'a>> {
        let cluster: &'a Cluster = self.free.cluster;
        let own = victims_in_own(cluster, job);
        let gives = |queue: &&Queue| {
            queue.name != job.spec.queue && by.is_some_and(|by| may_reclaim(cluster, job, by, &queue.name))
        };
        let others = cluster.queues().iter().filter(gives);
        let others = others.flat_map(|queue| cluster.jobs().active_in(&queue.name));
        let others = others.filter(|victim| !victim.spec.is_service());
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
        for (id, mut on_node) in self.by_node(candidates) {
            if self.free.is_kept_from(job, id) {
                continue;
            }
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
            if !self.allows(&mut spare, job, candidate.job) {
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
        if let Misfit::QueueLimit { queue, .. } = misfit {
            let queues = self.free.cluster.queues();
            let mut order = candidates.to_vec();
            order.sort_by_key(|candidate| !queues.is_within(&candidate.job.spec.queue, queue));
            return self.in_order(job, order, spare, None);
        }
        let nodes = self.by_gain(job, candidates);
        if let Some(level) = &job.spec.topology.require {
            for (domain, nodes) in self.by_domain(job, level, &nodes) {
                if MAX_WORK < self.work {
                    break;
                }
                let victims = self.in_order(job, in_sequence(&nodes), spare, Some(&domain));
                if victims.is_some() {
                    return victims;
                }
            }
        }
        self.in_order(job, in_sequence(&nodes), spare, None)
    }

    /// The first candidates that are enough, without those that need not give way.
    fn in_order(
        &mut self,
        job: &Job,
        mut order: Vec<Candidate<'a>>,
        spare: &Spare,
        domain: Option<&[NodeId]>,
    ) -> Option<Vec<&'a Job>> {
        let mut spare = spare.clone();
        order.retain(|candidate| self.allows(&mut spare, job, candidate.job));
        let mut given = 0;
        let mut fits_with = |search: &mut Search<'s, 'a>, count: usize| {
            order[count.min(given)..given].iter().for_each(|candidate| search.take_back(candidate.job));
            order[given.min(count)..count].iter().for_each(|candidate| search.give(candidate.job));
            given = count;
            search.fits_in(job, domain)
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

    /// Nodes with candidates, those first that win most ranks for what is lost.
    fn by_gain(&mut self, job: &Job, candidates: &[Candidate<'a>]) -> Vec<Gain<'a>> {
        let role = job.spec.roles.iter().max_by_key(|role| role.ranks).expect("a job has a role");
        let mut nodes: Vec<Gain> = Vec::new();
        for (node, candidates) in self.by_node(candidates) {
            let before = self.ranks_on(node, job, role);
            let gone = self.gone.entry(node).or_default();
            let already = gone.len();
            let all = candidates.iter().flat_map(|candidate| workers(candidate.job));
            gone.extend(all.filter(|(_, rank)| rank.node == node));
            self.work += gone.len() - already;
            self.refresh_node(node);
            let ranks = self.ranks_on(node, job, role) - before;
            self.gone.get_mut(&node).expect("just entered").truncate(already);
            self.refresh_node(node);
            let lost: u128 = candidates.iter().map(|candidate| u128::from(candidate.lost)).sum();
            nodes.push(Gain { node, ranks, lost, candidates });
        }
        nodes.sort_by_key(|gain| (gain.price(), gain.node));
        nodes
    }

    /// The domains in which the candidates could make room, by count, each with all its nodes and those with candidates:
    /// first those where least is lost for what is missing.
    fn by_domain(
        &mut self,
        job: &Job,
        level: &Level,
        nodes: &[Gain<'a>],
    ) -> Vec<(Vec<NodeId>, Vec<Gain<'a>>)> {
        let role = job.spec.roles.iter().max_by_key(|role| role.ranks).expect("a job has a role");
        let mut domains: BTreeMap<&Name, (u64, Vec<NodeId>, Vec<Gain>)> = BTreeMap::new();
        let takes: Vec<_> = role.request.devices.iter().map(|want| self.free.room.takes_of(want)).collect();
        let open = self.free.cluster.nodes().iter().filter(|node| node.takes_work());
        for (name, node) in open.filter_map(|node| Some((level.domain_of(node)?, node.id))) {
            let (ranks, nodes, _) = domains.entry(name).or_default();
            *ranks += u64::from(self.bound_on(node, job, role, &takes));
            nodes.push(node);
        }
        for gain in nodes {
            let name = level.domain_of(self.free.cluster.nodes().get(gain.node));
            let domain = name.and_then(|name| domains.get_mut(name));
            domain.into_iter().for_each(|(.., nodes)| nodes.push(gain.clone()));
        }
        let priced = domains.into_iter().filter_map(|(name, (mut ranks, all, nodes))| {
            let mut lost = 0;
            for gain in nodes.iter().take_while(|gain| gain.ranks != 0) {
                if u64::from(role.ranks) <= ranks {
                    break;
                }
                (ranks, lost) = (ranks + u64::from(gain.ranks), lost + gain.lost);
            }
            (u64::from(role.ranks) <= ranks).then_some(((lost, name), (all, nodes)))
        });
        let mut priced: Vec<_> = priced.collect();
        priced.sort_by_key(|(price, _)| *price);
        priced.into_iter().map(|(_, domain)| domain).collect()
    }

    /// Ranks of the role for which a node has room, no more than the role has.
    fn ranks_on(&self, id: NodeId, job: &Job, role: &Role) -> u32 {
        let (node, request, room) = (self.free.cluster.nodes().get(id), &role.request, &self.free.room);
        if !may_stand(node, role) || self.free.is_kept_from(job, id) {
            return 0;
        }
        let most = if role.standing.apart.is_some() { 1 } else { role.ranks };
        let with = |devices: Option<&DeviceRequest>| {
            let (mut left, mut ranks) = (room.on(id).clone(), 0);
            while ranks < most
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

    /// The same, never less than it is.
    fn bound_on(&self, id: NodeId, job: &Job, role: &Role, takes: &[Vec<Option<Take>>]) -> u32 {
        if !may_stand(self.free.cluster.nodes().get(id), role) || self.free.is_kept_from(job, id) {
            return 0;
        }
        let with =
            |takes: Option<&[Option<Take>]>| self.free.room.bound(id, &role.request, takes, role.ranks);
        let none = takes.is_empty().then_some(None);
        takes.iter().map(|takes| Some(&takes[..])).chain(none).map(with).max().unwrap_or(0)
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

    /// Whether a victim of another queue leaves all their guarantee; takes it from what is spare.
    fn allows(&self, spare: &mut Spare, job: &Job, victim: &Job) -> bool {
        if victim.spec.queue == job.spec.queue {
            return true;
        }
        let guards = || guards(self.free.cluster, job, &victim.spec.queue);
        let charge = victim.charge_milli();
        let allows = guards().all(|queue| charge <= spare[&queue.name]);
        if allows {
            guards().for_each(|queue| *spare.get_mut(&queue.name).expect("just found") -= charge);
        }
        allows
    }

    /// Lets those stay without which the job fits too, those that lose most first. The last of them is needed, where
    /// the job may be anywhere.
    fn drop_superfluous(&mut self, job: &Job, victims: &mut Vec<Candidate<'a>>) {
        // Where it was sought in one domain, some of them may be enough in another.
        let needed = usize::from(job.spec.topology.require.is_none());
        let mut others = victims[..victims.len().saturating_sub(needed)].to_vec();
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

/// Candidates node by node, each once.
fn in_sequence<'a>(nodes: &[Gain<'a>]) -> Vec<Candidate<'a>> {
    let mut seen = BTreeSet::new();
    let candidates = nodes.iter().flat_map(|gain| &gain.candidates);
    candidates.filter(|candidate| seen.insert(candidate.job.id)).copied().collect()
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

pub fn nodes(ranks: &[Allocation]) -> BTreeSet<NodeId> {
    ranks.iter().map(|rank| rank.node).collect()
}
