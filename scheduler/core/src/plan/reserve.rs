//! Room that is kept for wide jobs, and what may run there meanwhile.
//!
//! A job that needs whole nodes, or many, would wait for ever behind a stream of narrow ones that take every device
//! as it becomes free. So nodes are kept for those that wait, the ones that are soonest empty, and a job that comes
//! after them may take of these only what it is certain to give back in time (conservative backfill). Where wide jobs
//! come and go, the next ones are expected, and nodes are kept for them before they come; what is kept for nobody yet
//! is denied to others for a while only.

mod soonest;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::fit::{Taken, isolates, suits};
use super::preempt;
use crate::cluster::Cluster;
use crate::emptying::Size;
use crate::jobs::{Job, Phase, Shape, Turn};
use crate::nodes::{Node, Until};
use crate::topology::Standing;
use crate::types::*;
use soonest::Soonest;

/// Waiting jobs that room is kept for, at most: those that go first.
const MOST_JOBS: usize = 64;

/// Room is kept for jobs that are not wide when they have waited so long.
const PATIENCE: Duration = Duration::from_secs(1800);

/// A job that has waited so long may use what is kept for jobs to come.
const TIRED: Duration = Duration::from_secs(120);

/// Over so long wide jobs are counted. The next ones are expected to be as many as come in a part of it.
pub(crate) const LATELY: Duration = Duration::from_secs(3600);
const PARTS: usize = 2;

/// Of the nodes that could take such a job, one of so many is kept for those to come, at most. Smaller pools keep none.
const HEADROOM: usize = 8;

/// Nodes are chosen anew for one that is empty in so small a part of the time that another still needs.
const SOONER: u64 = 2;

/// Nodes for jobs to come are chosen anew when one of so many of them has changed, so that what an event costs does not grow
/// with their number.
const STEADY: usize = 64;

/// Room that is kept. Soft state: a scheduler that takes over thinks it over anew.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    owners: BTreeMap<NodeId, Owner>,
    /// When the kept nodes of a waiting job are all free, and which these are.
    starts: BTreeMap<JobId, (Until, BTreeSet<NodeId>)>,
    /// For every shape that room was kept for how many ranks of it each node could take.
    hosts: BTreeMap<Arc<Shape>, usize>,
    /// What [`Kept::hosts`] points to; no two are equal.
    sets: Vec<Arc<Hosts>>,
    /// Whether nodes were chosen since there was a reason to.
    chosen: bool,
    /// Wide jobs that came or went since then, and nodes that were chosen for those to come.
    changes: usize,
    for_wide: usize,
    /// When the next of those that wait has waited long enough for room to be kept.
    patience: Option<Time>,
    /// Nodes are kept no more of which those that were kept from them do not know yet.
    lost: bool,
}

/// Whom a node is kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A job that waits.
    Job(JobId),
    /// Wide jobs to come.
    Wide,
}

/// Which nodes could take ranks of a shape.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hosts {
    /// By role, how many of its ranks each node could take when idle.
    ranks: Vec<Vec<u32>>,
    /// The same, of all nodes together.
    totals: Vec<u64>,
    /// By role, which sizes the nodes have that could take some.
    sizes: Vec<BTreeSet<Size>>,
    /// Nodes that could take ranks of the first role.
    nodes: usize,
}

impl Hosts {
    fn of(cluster: &Cluster, ranks: Vec<Vec<u32>>) -> Hosts {
        let totals = ranks.iter().map(|nodes| nodes.iter().copied().map(u64::from).sum()).collect();
        let nodes = ranks[0].iter().filter(|ranks| **ranks != 0).count();
        let sizes = |ranks: &Vec<u32>| {
            let hosts = cluster.nodes().iter().zip(ranks).filter(|(_, ranks)| **ranks != 0);
            hosts.map(|(node, _)| Size::of(&node.inventory)).collect()
        };
        let sizes = ranks.iter().map(sizes).collect();
        Hosts { ranks, totals, sizes, nodes }
    }

    /// Whether all nodes together, idle, could take the job by number.
    fn suffice(&self, job: &Job) -> bool {
        job.spec.roles.iter().zip(&self.totals).all(|(role, total)| u64::from(role.least()) <= *total)
    }
}

/// Wide jobs that ended of late, by shape. Derived from the jobs.
#[derive(Clone, Debug, Default)]
pub struct Turnover {
    ends: VecDeque<(Time, Arc<Shape>)>,
    counts: BTreeMap<Arc<Shape>, usize>,
}

impl Turnover {
    /// Enters a job that ended, not before those that were entered earlier, if it was a wide one on one node.
    /// Returns whether it was.
    pub(crate) fn enter(&mut self, at: Time, job: &Job) -> bool {
        let ran = job.first_placed.is_some() && job.spec.ranks() == 1;
        if !ran || !job.spec.roles.iter().any(|role| takes_much(role.ranks, &role.request)) {
            return false;
        }
        let shape = job.shape();
        let known = self.counts.get_key_value(&shape).map(|(known, _)| known.clone());
        let shape = known.unwrap_or_else(|| Arc::new(shape));
        *self.counts.entry(shape.clone()).or_default() += 1;
        self.ends.push_back((at, shape));
        true
    }

    /// Forgets those that ended too long ago. Returns whether there were any.
    pub(crate) fn forget(&mut self, now: Time) -> bool {
        let before = self.ends.len();
        while self.ends.front().is_some_and(|(at, _)| *at + LATELY < now) {
            let (_, shape) = self.ends.pop_front().expect("just seen");
            let count = self.counts.get_mut(&shape).expect("a shape that was entered");
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&shape);
            }
        }
        self.ends.len() < before
    }

    /// Whether wide jobs come and go.
    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

impl Kept {
    /// Nodes came, went or changed: everything is to be thought over.
    pub(crate) fn forget(&mut self) {
        *self = Kept { lost: true, ..Kept::default() };
    }

    /// Nodes are to be chosen anew.
    pub(crate) fn choose(&mut self) {
        self.chosen = false;
    }

    /// One more wide job came or went: others are to come, or other nodes will do for them.
    ///
    /// * `none`: no more are to come.
    pub(crate) fn wide_changed(&mut self, none: bool) {
        self.changes += 1;
        self.chosen &= !none && self.changes < self.for_wide / STEADY;
    }

    /// A job waits no more.
    pub(crate) fn leave(&mut self, job: JobId) {
        if let Some((_, nodes)) = self.starts.remove(&job) {
            nodes.iter().for_each(|node| _ = self.owners.remove(node));
            (self.lost, self.chosen) = (true, false);
        }
    }

    /// A job was placed on these nodes.
    pub(super) fn placed(&mut self, job: JobId, nodes: impl Iterator<Item = NodeId>) {
        if self.owners.is_empty() {
            return;
        }
        self.leave(job);
        for node in nodes {
            // What was a whole node's room is none any more.
            if self.owners.get(&node) == Some(&Owner::Wide) {
                self.owners.remove(&node);
                self.wide_changed(false);
            }
        }
    }

    /// Whether something is kept for jobs to come.
    pub(super) fn is_for_others(&self) -> bool {
        self.owners.values().any(|owner| *owner == Owner::Wide)
    }

    /// Whether [`Kept::take_lost`] would say so.
    pub(super) fn has_lost(&self) -> bool {
        self.lost
    }

    /// Whether nodes are kept no more since this was asked last.
    pub(super) fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// Chooses nodes for those that wait without fitting and for wide jobs to come, if there is a reason to: somebody
    /// else waits or is to come, or one of the nodes that were freed is sooner empty than one that was chosen. Nodes
    /// that an endless service holds are not waited for.
    ///
    /// `O(kept)` without a reason, else `O(shapes * 64 + sets of hosts * looked at)`: nodes are looked at in the
    /// order in which they get empty, until enough suit; for a job that has to stand in one domain, all of them.
    ///
    /// * `unfit`: the shapes that were found not to fit.
    /// * `placed`: jobs that the round has placed.
    pub(super) fn renew(
        &mut self,
        cluster: &Cluster,
        freed: &[NodeId],
        unfit: &BTreeSet<Arc<Shape>>,
        placed: &BTreeSet<JobId>,
    ) {
        let impatient = self.patience.is_some_and(|at| at <= cluster.now());
        if self.chosen && !impatient && !self.is_sooner(cluster, freed) {
            return;
        }
        (self.chosen, self.changes) = (true, 0);
        let starts = std::mem::take(&mut self.starts);
        let before = std::mem::take(&mut self.owners);
        let waiting = self.waiting(cluster, unfit, placed);
        if !(waiting.is_empty() && cluster.turnover.is_empty()) {
            let mut soonest = Soonest::of(cluster);
            // Many are of one shape.
            let mut sets: Vec<(&Arc<Shape>, usize)> = Vec::new();
            for (job, shape) in waiting {
                let known = sets.iter().find(|(known, _)| Arc::ptr_eq(known, shape)).map(|(_, set)| *set);
                let set = known.unwrap_or_else(|| self.hosts(cluster, shape));
                if known.is_none() {
                    sets.push((shape, set));
                }
                self.keep_for(cluster, &mut soonest, job, set);
            }
            self.keep_for_those_to_come(cluster, &mut soonest);
        }
        self.for_wide = self.owners.values().filter(|owner| **owner == Owner::Wide).count();
        // What starts later, or at a time that is known now, may leave others time.
        let start = |job: &JobId| self.starts.get(job).map(|(start, _)| *start);
        let is_other = |(job, (was, _)): (&JobId, &(Until, _))| start(job) != Some(*was);
        self.lost |= before.iter().any(|(node, owner)| self.owners.get(node) != Some(owner))
            || starts.iter().any(is_other);
    }

    /// Whether a node that is not kept is much sooner empty than one that a job waits for.
    fn is_sooner(&self, cluster: &Cluster, freed: &[NodeId]) -> bool {
        if self.starts.is_empty() {
            return false;
        }
        let awaited = self.starts.values().flat_map(|(_, nodes)| nodes);
        let latest = awaited.filter_map(|node| empty_in(cluster, *node)).max().unwrap_or(0);
        let others = freed.iter().filter(|node| !self.owners.contains_key(node));
        others.filter_map(|node| empty_in(cluster, *node)).any(|soon| soon < latest / SOONER)
    }

    /// Those that room is kept for, in the order in which they are served.
    fn waiting<'a>(
        &mut self,
        cluster: &'a Cluster,
        unfit: &BTreeSet<Arc<Shape>>,
        placed: &BTreeSet<JobId>,
    ) -> Vec<(&'a Job, &'a Arc<Shape>)> {
        let get = |id: JobId| cluster.jobs().get(id).expect("a ready job");
        let mut waiting: Vec<(Turn, &Arc<Shape>)> = Vec::new();
        self.patience = None;
        for shapes in cluster.jobs().ready().values() {
            for (shape, jobs) in shapes.iter().filter(|(shape, _)| unfit.contains(*shape)) {
                let wide = is_wide(shape);
                for turn in jobs.iter().filter(|(_, id)| !placed.contains(id)).take(MOST_JOBS) {
                    if !wide {
                        let patience = get(turn.1).submitted + PATIENCE;
                        if cluster.now() < patience {
                            self.patience = Some(self.patience.map_or(patience, |next| next.min(patience)));
                            break;
                        }
                    }
                    waiting.push((*turn, shape));
                }
            }
        }
        if MOST_JOBS < waiting.len() {
            waiting.select_nth_unstable_by_key(MOST_JOBS, |(turn, _)| *turn);
            waiting.truncate(MOST_JOBS);
        }
        waiting.sort_unstable_by_key(|(turn, _)| *turn);
        waiting.into_iter().map(|((_, id), shape)| (get(id), shape)).collect()
    }

    /// Which nodes could take ranks of the shape, as an index of [`Kept::sets`].
    fn hosts(&mut self, cluster: &Cluster, shape: &Arc<Shape>) -> usize {
        if let Some(hosts) = self.hosts.get(shape) {
            return *hosts;
        }
        let of_role = |((ranks, request), standing): (&(u32, Request), &Standing)| {
            let levels = || shape.topology.require.iter().chain(&standing.apart);
            let most = if standing.apart.is_some() { 1 } else { *ranks };
            let of_node = |node: &Node| match node.takes_work()
                && levels().all(|level| level.domain_of(node).is_some())
            {
                true => ranks_when_idle(node, request).min(most),
                false => 0,
            };
            cluster.nodes().iter().map(of_node).collect()
        };
        let hosts = Hosts::of(cluster, shape.roles.iter().zip(&shape.standings).map(of_role).collect());
        let known = self.sets.iter().position(|known| **known == hosts);
        let hosts = known.unwrap_or_else(|| {
            self.sets.push(Arc::new(hosts));
            self.sets.len() - 1
        });
        self.hosts.insert(shape.clone(), hosts);
        hosts
    }

    /// Keeps nodes that will have room for all ranks of the job, the soonest empty first, if they suffice. Where all
    /// have to stand in one domain, those of the one that has them soonest.
    fn keep_for(&mut self, cluster: &Cluster, soonest: &mut Soonest, job: &Job, set: usize) {
        let hosts = self.sets[set].clone();
        if !hosts.suffice(job) {
            return;
        }
        let chosen = match &job.spec.topology.require {
            None => {
                let from: Vec<usize> =
                    (0..hosts.ranks.len()).map(|role| self.begin(soonest, set, role)).collect();
                let orders: Vec<usize> = hosts.sizes.iter().map(|sizes| soonest.order(Some(sizes))).collect();
                self.gather(cluster, job, &hosts, &from, |role, at| soonest.get(orders[role], at))
            }
            Some(level) => {
                let gathered = soonest.domains(cluster, level).values().filter_map(|nodes| {
                    let from = vec![0; hosts.ranks.len()];
                    let chosen = self.gather(cluster, job, &hosts, &from, |_, at| Some(nodes.get(at)?.1))?;
                    let last = nodes.iter().rev().find(|(_, node)| chosen.contains(node)).map(|(at, _)| *at);
                    Some((last, chosen))
                });
                gathered.min_by_key(|(last, _)| *last).map(|(_, chosen)| chosen)
            }
        };
        let Some(chosen) = chosen else { return };
        // If one is not empty in time after all, another one must be kept.
        let barred = |node: &NodeId| cluster.reservations().barred_from(job, *node, empty_at(cluster, *node));
        self.patience = self.patience.into_iter().chain(chosen.iter().filter_map(barred)).min();
        let until = chosen.iter().map(|node| cluster.nodes().held(*node).until());
        let start = until.max().unwrap_or(Until::Time(Time(0))).max(Until::Time(cluster.now()));
        self.own(soonest, chosen.iter().copied(), Owner::Job(job.id));
        self.starts.insert(job.id, (start, chosen));
    }

    /// Nodes, the first ones, that have room for all ranks of the job once they are idle, and are kept for nobody.
    ///
    /// * `from`: by role, from which place on to look.
    /// * `nodes`: by role, and by their place in the order in which they get empty.
    fn gather(
        &self,
        cluster: &Cluster,
        job: &Job,
        hosts: &Hosts,
        from: &[usize],
        mut nodes: impl FnMut(usize, usize) -> Option<NodeId>,
    ) -> Option<BTreeSet<NodeId>> {
        let books = !cluster.reservations().is_empty();
        let mut chosen: BTreeSet<NodeId> = BTreeSet::new();
        let roles = job.spec.roles.iter().zip(&hosts.ranks).zip(from).enumerate();
        for (number, ((role, hosts), from)) in roles {
            let mut left = role.least();
            let mut used: BTreeSet<&Name> = BTreeSet::new();
            for at in *from.. {
                if left == 0 {
                    break;
                }
                let node = nodes(number, at)?;
                let ranks = hosts[node.0 as usize];
                if ranks == 0 || self.owners.contains_key(&node) || chosen.contains(&node) {
                    continue;
                }
                if books && cluster.reservations().bar(job, node, empty_at(cluster, node)).is_some() {
                    continue;
                }
                let apart = role.standing.apart.as_ref();
                let domain = apart.and_then(|level| level.domain_of(cluster.nodes().get(node)));
                if domain.is_none_or(|domain| used.insert(domain)) {
                    chosen.insert(node);
                    left -= ranks.min(left);
                }
            }
        }
        Some(chosen)
    }

    /// The place, among nodes of the sizes of its hosts, of the first that could take a rank of a role and is kept for nobody.
    /// While nodes are chosen it only moves on: what is kept stays so.
    ///
    /// * `set`: of [`Kept::sets`].
    fn begin(&self, soonest: &mut Soonest, set: usize, role: usize) -> usize {
        let Hosts { ranks, sizes, .. } = &*self.sets[set];
        let (ranks, order) = (&ranks[role], soonest.order(Some(&sizes[role])));
        let mut at = soonest.begins.get(&(set, role)).copied().unwrap_or(0);
        while soonest
            .get(order, at)
            .is_some_and(|it| ranks[it.0 as usize] == 0 || soonest.kept[it.0 as usize])
        {
            at += 1;
        }
        soonest.begins.insert((set, role), at);
        at
    }

    fn own(&mut self, soonest: &mut Soonest, nodes: impl IntoIterator<Item = NodeId>, owner: Owner) {
        for node in nodes {
            soonest.kept[node.0 as usize] = true;
            self.owners.insert(node, owner);
        }
    }

    /// Keeps nodes for as many wide jobs as are expected.
    fn keep_for_those_to_come(&mut self, cluster: &Cluster, soonest: &mut Soonest) {
        let mut to_come: BTreeMap<usize, usize> = BTreeMap::new();
        for (shape, count) in &cluster.turnover.counts {
            *to_come.entry(self.hosts(cluster, shape)).or_default() += count;
        }
        for (set, count) in to_come {
            let hosts = self.sets[set].clone();
            // Their number in a part of the time, and by how much it may be larger.
            let expected = (count + (PARTS * count).isqrt()).div_ceil(PARTS);
            let share = hosts.nodes / HEADROOM;
            let (begin, order) = (self.begin(soonest, set, 0), soonest.order(Some(&hosts.sizes[0])));
            let mut chosen: Vec<NodeId> = Vec::new();
            for at in begin.. {
                let Some(node) = soonest.get(order, at).filter(|_| chosen.len() < expected.min(share)) else {
                    break;
                };
                let is_free = hosts.ranks[0][node.0 as usize] != 0
                    && !soonest.kept[node.0 as usize]
                    && cluster.reservations().of_node(node).next().is_none();
                chosen.extend(is_free.then_some(node));
            }
            self.own(soonest, chosen, Owner::Wide);
        }
    }

    /// Whether the node is kept for anybody.
    pub(super) fn is_kept(&self, node: NodeId) -> bool {
        self.owners.contains_key(&node)
    }

    /// Whether nothing is kept for anybody.
    pub(super) fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// Whom a node is kept for, if that keeps `job` from it: somebody who goes first, and whom it may delay. What
    /// is due to a queue by its guarantee is kept for none that is not due it.
    ///
    /// * `taken`: what the round has added to what queues hold.
    pub(super) fn keeps(&self, cluster: &Cluster, taken: &Taken, job: &Job, node: NodeId) -> Option<Owner> {
        let owner = *self.owners.get(&node)?;
        let turn = |job: &Job| cluster.jobs().turn(job);
        let keeps = match owner {
            Owner::Wide => cluster.now() < tired_at(job) && !fills(cluster.nodes().get(node), &job.spec),
            Owner::Job(id) => {
                let first = cluster.jobs().get(id).filter(|first| matches!(first.phase, Phase::Pending(_)));
                let goes_first = |first: &&Job| {
                    first.id != job.id
                        && turn(first) < turn(job)
                        && !preempt::outranks(cluster, taken, job, first)
                };
                first.filter(goes_first).is_some() && !self.is_back_in_time(cluster.now(), job, id)
            }
        };
        keeps.then_some(owner)
    }

    /// Whether a job that starts now has certainly ended when all nodes are free that are kept for another.
    fn is_back_in_time(&self, now: Time, job: &Job, other: JobId) -> bool {
        match (job.spec.time_limit_ms, self.starts.get(&other)) {
            (Some(limit), Some((Until::Time(start), _))) => now + Duration::from_millis(limit) <= *start,
            _ => false,
        }
    }
}

/// In how many milliseconds a node is expected to be empty; `None`: not by itself.
fn empty_in(cluster: &Cluster, node: NodeId) -> Option<u64> {
    cluster.nodes().empty_in(cluster.now(), node)
}

/// When a node is expected to be empty; now, if not by itself.
fn empty_at(cluster: &Cluster, node: NodeId) -> Time {
    let empty_in = cluster.nodes().empty_in(cluster.now(), node).unwrap_or(0);
    Time(cluster.now().0.saturating_add(empty_in))
}

/// When a job has waited so long that it may use what is kept for jobs to come.
pub(super) fn tired_at(job: &Job) -> Time {
    job.submitted + TIRED
}

/// Whether ranks take more than half of a usual node of eight devices, or may take several nodes.
fn takes_much(ranks: u32, request: &Request) -> bool {
    1 < ranks || request.devices.iter().any(|want| want.slice.is_none() && 4 < want.count)
}

/// Whether a job of the shape is a wide one.
pub(super) fn is_wide(shape: &Shape) -> bool {
    shape.roles.iter().any(|(ranks, request)| takes_much(*ranks, request))
}

/// Whether a rank takes more than half of the node's devices.
fn fills(node: &Node, spec: &JobSpec) -> bool {
    let fills = |want: &DeviceRequest| {
        want.slice.is_none() && node.inventory.devices.len() < 2 * usize::from(want.count)
    };
    spec.roles.iter().any(|role| role.request.devices.iter().any(fills))
}

/// How many ranks an idle node takes.
pub(super) fn ranks_when_idle(node: &Node, request: &Request) -> u32 {
    if !suits(node, request) {
        return 0;
    }
    let fits = |has: u64, wants: u64| has.checked_div(wants).unwrap_or(u32::MAX.into());
    let others = fits(node.inventory.cpus_milli.into(), request.cpus_milli.into())
        .min(fits(node.inventory.memory_bytes, request.memory_bytes));
    if request.devices.is_empty() {
        return others as u32;
    }
    let healthy = || {
        let all = node.inventory.devices.iter().zip(0u16..);
        all.filter(|(_, index)| node.device_takes_work(*index)).map(|(device, _)| device)
    };
    let best = request.devices.iter().filter(|want| isolates(node, want)).map(|want| {
        let is_linked = want.one_island && 1 < want.count;
        let mut classes: BTreeMap<&DeviceClass, BTreeMap<Option<u16>, u64>> = BTreeMap::new();
        for device in healthy().filter(|device| want.accepts(&device.class)) {
            let slices =
                want.slice.map(|slice| 1000 / slice.granted(&device.class).share_milli(&device.class).max(1));
            let island = device.island.filter(|_| is_linked);
            if island.is_some() || !is_linked {
                *classes.entry(&device.class).or_default().entry(island).or_default() += slices.unwrap_or(1);
            }
        }
        let of_class = |islands: BTreeMap<Option<u16>, u64>| {
            islands.into_values().map(|devices| devices / u64::from(want.count)).sum::<u64>()
        };
        classes.into_values().map(of_class).max().unwrap_or(0).min(others) as u32
    });
    best.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of few nodes for jobs to come each change counts, of many every 64th part of them, and the last of all.
    #[test]
    fn nodes_for_jobs_to_come_are_chosen_anew_when_a_part_of_them_has_changed() {
        let changes = |for_wide: usize| {
            let mut kept = Kept { for_wide, chosen: true, ..Kept::default() };
            let changes = (1..100).find(|_| {
                kept.wide_changed(false);
                !kept.chosen
            });
            changes.expect("a hundred changes are enough")
        };
        assert_eq!([0, 1, 127, 128, 640].map(changes), [1, 1, 1, 2, 10]);
        let mut kept = Kept { for_wide: 640, chosen: true, ..Kept::default() };
        kept.wide_changed(true);
        assert!(!kept.chosen, "none are to come any more");
    }
}
