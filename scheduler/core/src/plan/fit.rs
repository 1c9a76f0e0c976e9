//! Where a gang fits: best-fit packing, the whole gang or nothing.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::domain::{Stand, Within, in_one_domain, may_stand};
use super::preempt::Promises;
use super::reserve::{self, Kept, Owner};
use super::room::{NodeFree, Room};
use super::{Known, Plan};
use crate::cluster::Cluster;
use crate::jobs::{Job, Lines, Shape};
use crate::nodes::Node;
use crate::reservations::Bar;
use crate::sorted::Sorted;
use crate::topology::{Level, Topology};
use crate::types::*;

/// What a round can still hand out: what is free in the cluster, less what the round took.
#[derive(Clone)]
pub struct Free<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) room: Box<Room>,
    pub(super) kept: Box<Kept>,
    /// What is promised to jobs to which others give way: taken from the room.
    pub(super) promises: Box<Promises>,
    /// Of the classes of devices, as the round found it. See [`Room::scarcity`].
    pub(super) scarcity: Vec<i64>,
    /// Added by the round to what queues hold, in thousandths of a device.
    pub(super) taken: Taken,
    /// Taken as if they had left, or given up ranks, with what these counted against their queue.
    pub(super) left: BTreeMap<JobId, u64>,
    /// When jobs would start, for what nodes are booked for.
    pub(super) at: Time,
}

/// What a round has added to what queues hold, in thousandths of a device.
pub type Taken = Sorted<Name, u64>;

/// Why a job does not start now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// Free nodes can take only some of the ranks.
    RoomFor {
        /// Ranks that would fit now.
        ranks: u32,
        /// Ranks that the job has at least.
        of: u32,
        /// Where all have to stand in one domain: in which there is room for so many.
        within: Option<Within>,
    },
    /// It would fit, but for what is kept.
    Kept(Owner),
    /// It would fit, but nodes are booked for others by a reservation, or its own has not begun.
    Barred(Bar),
    /// Its queue, or one above that, would hold more than its limit. In thousandths of a device.
    #[allow(missing_docs)]
    QueueLimit { queue: Name, held: u64, wants: u64, limit: u64 },
}

/// Alternatives and orders of roles that are tried for one job, at most.
const MAX_TRIES: u32 = 64;

/// Places all ranks of a job, each where it costs least, within the limits of its queue and of those above it, and
/// takes what they hold from `free`. By rank. A job that does not fit leaves `free` as it was. An elastic job fits if
/// the fewest ranks do, and gets as many as fit beyond them.
///
/// Ties go to the lowest node. All ranks of a role take the same alternative. Of the combinations of
/// alternatives, and of the orders in which roles choose their nodes, the first that fits. Exact for a job of
/// one role; of several, one whose ranks would have to be spread with foresight may be found not to fit.
/// `O(tries * nodes of the gang * log nodes + ranks)` where many nodes are alike, see `Room::best`; nodes are counted
/// one by one only for a job that has to stand in one domain.
pub fn place(free: &mut Free, job: &Job) -> Result<Vec<Allocation>, Misfit> {
    let mut ranks = find(free, job)?;
    free.count(job, &ranks);
    extend(free, job, &mut ranks);
    Ok(ranks)
}

/// Adds to the placement of an elastic job the ranks that it wants beyond it, as far as they fit.
pub(super) fn extend(free: &mut Free, job: &Job, ranks: &mut Vec<Allocation>) {
    let more = find_more(free, job, ranks, &|_| true);
    take_more(free, job, &more);
    let role = job.spec.elastic_role().unwrap_or(0);
    let end = job.spec.ranks_of(role, ranks.len() as u32).end as usize;
    ranks.splice(end..end, more);
}

/// Ranks that an elastic job wants beyond those that it has, as far as they fit: with the same kind of devices, on
/// nodes that `allowed` passes, within all limits. Takes nothing.
pub(super) fn find_more(
    free: &mut Free,
    job: &Job,
    ranks: &[Allocation],
    allowed: &dyn Fn(NodeId) -> bool,
) -> Vec<Allocation> {
    let world = ranks.len() as u32;
    let Some(number) = job.spec.elastic_role() else { return Vec::new() };
    let (role, has) = (&job.spec.roles[number], job.spec.ranks_of(number, world));
    let more = job.wanted(role).saturating_sub(has.end - has.start);
    let (cluster, sample) = (free.cluster, &ranks[has.start as usize]);
    let alternative = role.request.devices.iter().position(|want| is_of(cluster, sample, want));
    if more == 0 || (alternative.is_none() && !role.request.devices.is_empty()) {
        return Vec::new();
    }
    let homes = homes(cluster, job, ranks);
    let allowed = |id: NodeId| {
        let node = cluster.nodes().get(id);
        homes.iter().all(|(level, domain)| level.domain_of(node) == Some(*domain)) && allowed(id)
    };
    let mut stand = Stand::of(role);
    let of_role = &ranks[has.start as usize..has.end as usize];
    of_role.iter().for_each(|rank| stand.place(cluster.nodes().get(rank.node)));
    let mut search = Search { allowed: &allowed, ..Search::of(free, job, None) };
    let mut found = search.fill((role, alternative), more, world as usize, stand);
    search.undo(0);
    while !found.is_empty() && free.over_limit(&job.spec.queue, charge(&found)).is_some() {
        found.pop();
    }
    found
}

/// The domains that a job must not leave as it grows: that which it requires, and the narrowest that it prefers and is
/// in.
fn homes<'c>(cluster: &'c Cluster, job: &'c Job, ranks: &[Allocation]) -> Vec<(&'c Level, &'c Name)> {
    let Topology { require, prefer } = &job.spec.topology;
    let home = |level: &'c Level| {
        let mut domains = ranks.iter().map(|rank| level.domain_of(cluster.nodes().get(rank.node)));
        let first = domains.next()??;
        domains.all(|domain| domain == Some(first)).then_some((level, first))
    };
    prefer.iter().find_map(home).into_iter().chain(require.as_ref().and_then(home)).collect()
}

/// Takes what was found from `free`, and charges the queue of the job.
pub(super) fn take_more(free: &mut Free, job: &Job, more: &[Allocation]) {
    for rank in more {
        let mut left = free.room.on(rank.node).clone();
        left.take(rank);
        free.room.change(rank.node, left);
    }
    if !more.is_empty() {
        free.count(job, more);
    }
}

/// Whether a rank holds what the alternative asks for.
fn is_of(cluster: &Cluster, rank: &Allocation, want: &DeviceRequest) -> bool {
    let inventory = &cluster.nodes().get(rank.node).inventory;
    let class = rank.devices.first().and_then(|index| inventory.devices.get(usize::from(*index)));
    rank.devices.len() == usize::from(want.count)
        && class.is_some_and(|device| {
            want.accepts(&device.class) && want.slice.map(|slice| slice.granted(&device.class)) == rank.slice
        })
}

/// As many ranks as the job would start with now; takes nothing.
pub fn most(free: &mut Free, job: &Job) -> Result<u32, Misfit> {
    let mut what_if = free.clone();
    place(&mut what_if, job).map(|ranks| ranks.len() as u32)
}

/// As [`place`], but takes from nodes only: neither is the queue charged, nor what is kept for the job given up. The
/// fewest ranks.
pub(super) fn find(free: &mut Free, job: &Job) -> Result<Vec<Allocation>, Misfit> {
    let Topology { require, prefer } = &job.spec.topology;
    for level in prefer {
        if let Ok(ranks) = in_one_domain(free, job, level, require.as_ref(), find_among) {
            return Ok(ranks);
        }
    }
    as_required(free, job, find_among)
}

/// Whether [`place`] would place the job; takes nothing.
pub fn fits(free: &mut Free, job: &Job) -> Result<(), Misfit> {
    as_required(free, job, fits_among)
}

/// Seeks a placement wherever the job may be: among some nodes, or all.
fn as_required<T>(free: &mut Free, job: &Job, seek: Seek<T>) -> Result<T, Misfit> {
    match &job.spec.topology.require {
        Some(level) => in_one_domain(free, job, level, None, seek),
        None => seek(free, job, None),
    }
}

/// Seeks a placement of a job among some nodes, whatever its topology says; `None`: among all.
pub(super) type Seek<T> = fn(&mut Free, &Job, Option<&[NodeId]>) -> Result<T, Misfit>;

pub(super) fn find_among(
    free: &mut Free,
    job: &Job,
    nodes: Option<&[NodeId]>,
) -> Result<Vec<Allocation>, Misfit> {
    let mut search = Search::of(free, job, nodes);
    let mut roles = vec![None; job.spec.roles.len()];
    if search.next_role(&mut roles) {
        let mut ranks = roles.iter_mut().map(|ranks| ranks.take().expect("all roles are placed"));
        let mut all = ranks.next().unwrap_or_default();
        all.extend(ranks.flatten());
        return Ok(all);
    }
    search.undo(0);
    Err(search.misfit())
}

/// Whether there is a placement among some nodes; takes nothing.
pub(super) fn fits_among(free: &mut Free, job: &Job, nodes: Option<&[NodeId]>) -> Result<(), Misfit> {
    let mut search = Search::of(free, job, nodes);
    let fits = search.next_role(&mut vec![None; job.spec.roles.len()]);
    search.undo(0);
    if fits { Ok(()) } else { Err(search.misfit()) }
}

/// The search through the alternatives of a job, and what it met on its way.
struct Search<'s, 'a> {
    free: &'s mut Free<'a>,
    job: &'s Job,
    /// Where it may be; `None`: anywhere.
    nodes: Option<&'s [NodeId]>,
    /// What was free on nodes before ranks were placed there, in the order in which they were.
    before: Vec<(NodeId, NodeFree)>,
    tries: u32,
    /// Ranks of the fullest placement that was not whole.
    most: u32,
    /// Why the first whole placement was refused.
    over_limit: Option<Misfit>,
    /// Whom the first node is kept for that was passed over.
    kept_for: Cell<Option<Owner>>,
    /// Nodes that may be used.
    allowed: &'s dyn Fn(NodeId) -> bool,
    /// Why the first node was passed over that is booked.
    barred: RefCell<Option<Bar>>,
}

/// Ranks of the roles that a search has placed.
type Placed = [Option<Vec<Allocation>>];

impl<'s, 'a> Search<'s, 'a> {
    fn of(free: &'s mut Free<'a>, job: &'s Job, nodes: Option<&'s [NodeId]>) -> Search<'s, 'a> {
        let (kept_for, barred) = (Cell::new(None), RefCell::new(None));
        let (before, allowed): (_, &dyn Fn(NodeId) -> bool) = (Vec::new(), &|_| true);
        Search { free, job, nodes, allowed, before, tries: 0, most: 0, over_limit: None, kept_for, barred }
    }

    /// Why it found no placement.
    fn misfit(&mut self) -> Misfit {
        let room_for = Misfit::RoomFor { ranks: self.most, of: self.job.spec.min_ranks(), within: None };
        let kept = self.kept_for.get().map(Misfit::Kept);
        let barred = self.barred.take().map(Misfit::Barred);
        self.over_limit.take().or(kept).or(barred).unwrap_or(room_for)
    }

    /// Places the roles that are not placed yet. If they do not fit, gives back what it took.
    fn next_role(&mut self, roles: &mut Placed) -> bool {
        if roles.iter().all(Option::is_some) {
            return self.is_within_limit(roles);
        }
        for number in 0..roles.len() {
            if roles[number].is_some() {
                continue;
            }
            let devices = &self.job.spec.roles[number].request.devices;
            let none = devices.is_empty().then_some(None);
            for want in (0..devices.len()).map(Some).chain(none) {
                let begun = self.before.len();
                if self.place_role(number, want, roles) {
                    return true;
                }
                self.undo(begun);
            }
            roles[number] = None;
        }
        false
    }

    fn place_role(&mut self, number: usize, alternative: Option<usize>, roles: &mut Placed) -> bool {
        if self.tries == MAX_TRIES {
            return false;
        }
        self.tries += 1;
        roles[number] = None;
        let earlier: usize = roles.iter().flatten().map(Vec::len).sum();
        let role = &self.job.spec.roles[number];
        let ranks = self.fill((role, alternative), role.least(), 0, Stand::of(role));
        self.most = self.most.max((earlier + ranks.len()) as u32);
        if ranks.len() < role.least() as usize {
            return false;
        }
        roles[number] = Some(ranks);
        self.next_role(roles)
    }

    /// Gives back what was taken since so many nodes had been changed.
    fn undo(&mut self, begun: usize) {
        for (node, free) in self.before.drain(begun..).rev() {
            self.free.room.change(node, free);
        }
    }

    /// Whether its queue, and every one above that, may hold as much more.
    fn is_within_limit(&mut self, roles: &Placed) -> bool {
        let wants = roles.iter().flatten().map(|ranks| charge(ranks)).sum();
        let over = self.free.over_limit(&self.job.spec.queue, wants);
        let is_within = over.is_none();
        self.over_limit = self.over_limit.take().or(over);
        is_within
    }

    /// As many ranks of the role as fit, but no more than `most`.
    ///
    /// * `alternative`: the kind of devices that they get.
    /// * `first`: the number of the first, for its port.
    /// * `stand`: where others of the role are.
    fn fill(
        &mut self,
        (role, alternative): (&Role, Option<usize>),
        most: u32,
        first: usize,
        mut stand: Stand,
    ) -> Vec<Allocation> {
        let Free { cluster, room, scarcity, kept, taken, at, .. } = &mut *self.free;
        let (job, request, allowed) = (self.job, &role.request, self.allowed);
        let devices = alternative.map(|index| &request.devices[index]);
        let costs = devices.and_then(|want| room.costs_for(cluster, job, role, want, scarcity));
        let scarcity = costs.as_deref().unwrap_or(scarcity);
        let mut sorted = self.nodes.map(|nodes| room.sorted(nodes, request, devices, scarcity));
        // Most jobs have one rank, and keep the list for as long as they run.
        let mut ranks = Vec::with_capacity(most.min(1) as usize);
        while ranks.len() < most as usize {
            let passes = |id: NodeId, free: &NodeFree| {
                let node = cluster.nodes().get(id);
                let number = first + ranks.len();
                let fits = allowed(id)
                    && may_stand(node, role)
                    && devices.is_none_or(|want| isolates(node, want))
                    && stand.takes(node)
                    && free_port(node, free, job, number).is_some();
                let bar = if fits { cluster.reservations().bar(job, id, *at) } else { None };
                if let Some(bar) = bar {
                    if !matches!(bar, Bar::Outside(_)) {
                        self.barred.borrow_mut().get_or_insert(bar);
                    }
                    return false;
                }
                let owner = if fits { kept.keeps(cluster, taken, job, id) } else { None };
                if owner.is_some() && self.kept_for.get().is_none() {
                    self.kept_for.set(owner);
                }
                fits && owner.is_none()
            };
            let best = match &sorted {
                None => room.best(request, devices, scarcity, &passes),
                Some(sorted) => sorted.iter().find(|it| passes(it.node, room.on(it.node))).copied(),
            };
            let Some(best) = best else {
                if stand.relax() {
                    continue;
                }
                break;
            };
            let node = cluster.nodes().get(best.node);
            let mut left = room.on(node.id).clone();
            let enough = ranks.len().saturating_add(stand.at_once()).min(most as usize);
            while ranks.len() < enough {
                let Some(chosen) = room.choose(node.id, &left, request, devices, scarcity) else { break };
                let Some(port) = free_port(node, &left, job, first + ranks.len()) else { break };
                let rank = chosen.allocation(node.id, request, port);
                left.take(&rank);
                ranks.push(rank);
                stand.place(node);
            }
            self.before.push((node.id, room.change(node.id, left)));
            if let Some(sorted) = &mut sorted {
                sorted.remove(&best);
                sorted.extend(room.sorted(&[node.id], request, devices, scarcity));
            }
        }
        ranks
    }
}

/// Whether a node has what is asked of it as a whole: its labels, and an engine if there is an image.
pub(super) fn suits(node: &Node, request: &Request) -> bool {
    (request.image.is_none() || !node.inventory.engine.is_empty())
        && request.labels.iter().all(|(key, value)| node.inventory.labels.get(key) == Some(value))
}

/// Whether a node keeps what is asked of a device apart as well as is asked: each of its devices that will do.
///
/// All, so that what is counted by class stays true; the devices of a class on one node hardly ever differ in it.
pub(super) fn isolates(node: &Node, want: &DeviceRequest) -> bool {
    want.slice.is_none()
        || want.isolation == Isolation::Advisory
        || node.inventory.isolation_for(want).is_none_or(|least| want.isolation <= least)
}

/// What ranks count against their queue, in thousandths of a device.
pub(super) fn charge(ranks: &[Allocation]) -> u64 {
    ranks.iter().map(|rank| rank.charge_milli).sum()
}

/// A port that no worker of the node holds. Starts at another place for every attempt, so that a port which
/// a stranger took does not stop the job for good.
fn free_port(node: &Node, left: &NodeFree, job: &Job, rank: usize) -> Option<u16> {
    let Ports { first, last } = node.inventory.ports;
    let span = u64::from(last).checked_sub(u64::from(first))? + 1;
    let start = job.id.0 * 31 + u64::from(job.attempt) * 7 + rank as u64;
    let ports = (0..span).map(|offset| first + ((start + offset) % span) as u16);
    ports.into_iter().find(|port| left.ports.binary_search(port).is_err())
}

impl<'a> Free<'a> {
    /// Keeps room for jobs of these shapes, and for wide ones to come, see [`Kept::renew`].
    pub(super) fn keep(&mut self, freed: &[NodeId], unfit: &BTreeSet<Arc<Shape>>, placed: &BTreeSet<JobId>) {
        self.kept.renew(self.cluster, freed, unfit, placed);
    }

    /// Tries shapes again that were found not to fit, if what has become free may change that.
    pub(super) fn wake(&mut self, freed: &[NodeId], plan: &mut Plan) {
        if self.kept.take_lost() {
            plan.known.forget_kept();
            plan.known.futile.clear();
        }
        let Free { room, cluster, kept, taken, .. } = &*self;
        let tired =
            |shape: &Arc<Shape>| self.firsts(shape).any(|job| reserve::tired_at(job) <= cluster.now());
        for shape in plan.known.kept_from.iter().filter(|shape| tired(shape)) {
            plan.known.unfit.remove(shape);
        }
        for node in freed {
            let takes = |(_, request): &(u32, Request)| {
                suits(cluster.nodes().get(*node), request) && room.takes(*node, request)
            };
            let is_kept = |job: &Job| kept.keeps(cluster, taken, job, *node).is_some();
            let fit: Vec<Arc<Shape>> =
                plan.known.unfit.iter().filter(|shape| shape.roles.iter().any(takes)).cloned().collect();
            for shape in fit {
                if self.firsts(&shape).next().is_some() && self.firsts(&shape).all(is_kept) {
                    plan.known.kept_from.insert(shape);
                } else {
                    plan.known.unfit.remove(&shape);
                }
            }
        }
        let Known { unfit, kept_from, .. } = &mut *plan.known;
        if !kept_from.is_empty() {
            kept_from.retain(|shape| unfit.contains(shape));
        }
    }

    /// When the next of those that are kept from room has waited so long that it may use what is kept for jobs to come.
    pub(super) fn tired_at(&self, plan: &Plan) -> Option<Time> {
        let (now, kept_from) =
            (self.cluster.now(), plan.known.kept_from.iter().filter(|_| self.kept.is_for_others()));
        let tired = kept_from.flat_map(|shape| self.firsts(shape)).map(reserve::tired_at);
        tired.filter(|at| now < *at).min()
    }

    /// Of every queue with ready jobs of the shape the one that goes first.
    fn firsts(&self, shape: &Shape) -> impl Iterator<Item = &'a Job> {
        let jobs = self.cluster.jobs();
        let first = |queue: &'a Lines| Some(queue.get(shape)?.first()?.1);
        jobs.ready().values().filter_map(first).map(|id| jobs.get(id).expect("a ready job"))
    }

    /// Takes a job that holds resources as ended, or as having given up what it is about to give up; or as running on
    /// after all. `O(ranks log nodes)`.
    pub fn take_as_ended(&mut self, job: &Job, ended: bool) {
        let charge = job.leaving().map(|at| job.ranks[at as usize].charge_milli).sum();
        match ended {
            true => self.left.insert(job.id, charge),
            false => self.left.remove(&job.id),
        };
        let (cluster, left) = (self.cluster, &self.left);
        for node in job.ranks.iter().map(|rank| rank.node).collect::<BTreeSet<NodeId>>() {
            let held = cluster.nodes().held(node);
            let mut rest = held.clone();
            for worker in held.ends.keys().map(|(_, worker)| *worker).filter(|it| left.contains_key(&it.job))
            {
                let job = cluster.jobs().get(worker.job).expect("a job that holds resources");
                let at = job.position(worker.rank);
                if !job.stays().contains(&(at as u32)) {
                    rest.change(worker, &job.ranks[at], job.span(), false);
                }
            }
            self.room.refresh(cluster.nodes().get(node), &rest);
        }
    }

    /// The same, as if some workers had ended.
    pub fn without_workers(cluster: &'a Cluster, workers: impl Iterator<Item = WorkerId>) -> Free<'a> {
        let (mut free, mut left, mut held) = (Free::of(cluster), BTreeMap::new(), BTreeMap::new());
        for worker in workers {
            let job = cluster.jobs().get(worker.job).expect("a job that holds resources");
            let rank = &job.ranks[job.position(worker.rank)];
            *left.entry(job.id).or_default() += rank.charge_milli;
            let held = held.entry(rank.node).or_insert_with(|| cluster.nodes().held(rank.node).clone());
            held.change(worker, rank, job.span(), false);
        }
        for (node, held) in held {
            free.room.refresh(cluster.nodes().get(node), &held);
        }
        free.scarcity = free.room.scarcity();
        Free { left, ..free }
    }

    /// The same, for jobs that would start at that time, as far as nodes are booked then.
    pub fn starting_at(self, at: Time) -> Free<'a> {
        Free { at, ..self }
    }

    /// Counts a placement for the queues of its job, and gives up what was kept for that.
    pub(super) fn count(&mut self, job: &Job, ranks: &[Allocation]) {
        let charge = charge(ranks);
        self.charge_line(&job.spec.queue, |_| charge);
        self.kept.placed(job.id, ranks.iter().map(|rank| rank.node));
    }

    /// Undoes [`Free::count`] of ranks that a running job does not get after all: nothing was kept for it.
    pub(super) fn count_back(&mut self, job: &Job, ranks: &[Allocation]) {
        for queue in self.cluster.queues().line(&job.spec.queue) {
            *self.taken.get_mut(&queue.name).expect("it was counted") -= charge(ranks);
        }
    }

    /// Adds to what a queue and each one above it hold, in thousandths of a device.
    pub(super) fn charge_line(&mut self, queue: &Name, milli: impl Fn(&Name) -> u64) {
        for queue in self.cluster.queues().line(queue) {
            *self.taken.get_or_default(&queue.name) += milli(&queue.name);
        }
    }

    /// The first limit, of the queue or one above it, that forbids to hold `wants` more, in thousandths of a device.
    pub(super) fn over_limit(&self, queue: &Name, wants: u64) -> Option<Misfit> {
        self.cluster.queues().line(queue).find_map(|queue| {
            let limit = queue.limit_milli?;
            let held = self.held_by(&queue.name);
            let misfit = || Misfit::QueueLimit { queue: queue.name.clone(), held, wants, limit };
            (limit < held + wants).then(misfit)
        })
    }

    /// Whether room is kept for anybody.
    pub fn keeps_any(&self) -> bool {
        !self.kept.is_empty()
    }

    /// For which other job a node is kept.
    pub(super) fn keeps(&self, job: &Job, node: NodeId) -> Option<Owner> {
        self.kept.keeps(self.cluster, &self.taken, job, node)
    }

    /// Why a job may not be placed on a node that is booked.
    pub(super) fn bar(&self, job: &Job, node: NodeId) -> Option<Bar> {
        self.cluster.reservations().bar(job, node, self.at)
    }

    /// Whether a node is kept for another job, or booked for others.
    pub(super) fn is_kept_from(&self, job: &Job, node: NodeId) -> bool {
        self.keeps(job, node).is_some() || self.bar(job, node).is_some()
    }

    /// The cluster that it is free in.
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// What is free on a node.
    pub fn on(&self, node: &Node) -> &NodeFree {
        self.room.on(node.id)
    }

    /// What the queue and those below it hold, in thousandths of a device.
    pub fn held_by(&self, queue: &Name) -> u64 {
        let within = |job: &Job| self.cluster.queues().is_within(&job.spec.queue, queue);
        let left = |(job, _): &(&JobId, &u64)| self.cluster.jobs().get(**job).is_some_and(within);
        let given_back: u64 = self.left.iter().filter(left).map(|(_, charge)| charge).sum();
        self.cluster.queues().held_milli(queue) + self.taken.get(queue).copied().unwrap_or(0) - given_back
    }
}
