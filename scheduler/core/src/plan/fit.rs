//! Where a gang fits: best-fit packing, the whole gang or nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::room::{NodeFree, Room};
use crate::cluster::Cluster;
use crate::jobs::Job;
use crate::nodes::Node;
use crate::types::*;

/// What a round can still hand out: what is free in the cluster, less what the round took.
#[derive(Clone)]
pub struct Free<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) room: Room,
    /// Of the classes of devices, as the round found it. See [`Room::scarcity`].
    pub(super) scarcity: Vec<i64>,
    /// Added by the round to what queues hold, in thousandths of a device.
    pub(super) taken: BTreeMap<Name, u64>,
    /// Taken as if they had ended: what they hold is free.
    pub(super) ended: BTreeSet<JobId>,
}

/// Why a job does not start now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// Free nodes can take only some of the ranks.
    RoomFor {
        /// Ranks that would fit now.
        ranks: u32,
        /// Ranks that the job has.
        of: u32,
    },
    /// Its queue would hold more than its limit. In thousandths of a device.
    #[allow(missing_docs)]
    QueueLimit { held: u64, wants: u64, limit: u64 },
}

/// Alternatives and orders of roles that are tried for one job, at most.
const MAX_TRIES: u32 = 64;

/// Places all ranks of a job, each where it costs least, within the limit of its queue, and takes what they hold from
/// `free`. By rank. A job that does not fit leaves `free` as it was.
///
/// Ties go to the lowest node. All ranks of a role take the same alternative. Of the combinations of
/// alternatives, and of the orders in which roles choose their nodes, the first that fits. Exact for a job of
/// one role; of several, one whose ranks would have to be spread with foresight may be found not to fit.
/// `O(tries * nodes of the gang * log nodes + ranks)` where many nodes are alike, see [`Room::best`].
pub fn place(free: &mut Free, job: &Job) -> Result<Vec<Allocation>, Misfit> {
    let mut search = Search { free, job, before: Vec::new(), tries: 0, most: 0, over_limit: None };
    let mut roles = vec![None; job.spec.roles.len()];
    if search.next_role(&mut roles) {
        let ranks: Vec<Allocation> = roles.into_iter().flatten().flatten().collect();
        let taken = free.taken.entry(job.spec.queue.clone()).or_default();
        *taken += charge(&ranks);
        return Ok(ranks);
    }
    search.undo(0);
    Err(search.over_limit.unwrap_or(Misfit::RoomFor { ranks: search.most, of: job.spec.ranks() }))
}

/// Whether [`place`] would place the job; takes nothing.
pub fn fits(free: &mut Free, job: &Job) -> Result<(), Misfit> {
    let mut search = Search { free, job, before: Vec::new(), tries: 0, most: 0, over_limit: None };
    let fits = search.next_role(&mut vec![None; job.spec.roles.len()]);
    search.undo(0);
    let misfit = search.over_limit.unwrap_or(Misfit::RoomFor { ranks: search.most, of: job.spec.ranks() });
    if fits { Ok(()) } else { Err(misfit) }
}

/// The search through the alternatives of a job, and what it met on its way.
struct Search<'s, 'a> {
    free: &'s mut Free<'a>,
    job: &'s Job,
    /// What was free on nodes before ranks were placed there, in the order in which they were.
    before: Vec<(NodeId, NodeFree)>,
    tries: u32,
    /// Ranks of the fullest placement that was not whole.
    most: u32,
    /// Why the first whole placement was refused.
    over_limit: Option<Misfit>,
}

/// Ranks of the roles that a search has placed.
type Placed = [Option<Vec<Allocation>>];

impl Search<'_, '_> {
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
        let ranks = self.fill(role, alternative);
        self.most = self.most.max((earlier + ranks.len()) as u32);
        if ranks.len() < role.ranks as usize {
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

    fn is_within_limit(&mut self, roles: &Placed) -> bool {
        let queue = &self.job.spec.queue;
        let Some(limit) = self.free.cluster.queues[queue].limit_milli else { return true };
        let (held, wants) =
            (self.free.held_by(queue), roles.iter().flatten().map(|ranks| charge(ranks)).sum());
        if limit < held + wants {
            self.over_limit.get_or_insert(Misfit::QueueLimit { held, wants, limit });
        }
        held + wants <= limit
    }

    /// As many ranks of the role as fit, but no more than it has.
    fn fill(&mut self, role: &Role, alternative: Option<usize>) -> Vec<Allocation> {
        let Free { cluster, room, scarcity, .. } = &mut *self.free;
        let (job, request) = (self.job, &role.request);
        let devices = alternative.map(|index| &request.devices[index]);
        let mut ranks = Vec::new();
        while ranks.len() < role.ranks as usize {
            let passes = |id: NodeId, free: &NodeFree| {
                let node = cluster.nodes().get(id);
                has_labels(node, request) && free_port(node, free, job, ranks.len()).is_some()
            };
            let Some(best) = room.best(request, devices, scarcity, &passes) else { break };
            let node = cluster.nodes().get(best.node);
            let mut left = room.on(node.id).clone();
            while ranks.len() < role.ranks as usize {
                let Some(chosen) = room.choose(node.id, &left, request, devices, scarcity) else { break };
                let Some(port) = free_port(node, &left, job, ranks.len()) else { break };
                let rank = chosen.allocation(node.id, request, port);
                left.take(&rank);
                ranks.push(rank);
            }
            self.before.push((node.id, room.change(node.id, left)));
        }
        ranks
    }
}

pub(super) fn has_labels(node: &Node, request: &Request) -> bool {
    request.labels.iter().all(|(key, value)| node.inventory.labels.get(key) == Some(value))
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
    /// Healthy resources of live nodes that no job holds. Copies what the cluster knows of them: `O(nodes)`.
    pub fn of(cluster: &'a Cluster) -> Free<'a> {
        Free::in_room(cluster, cluster.room().clone())
    }

    /// The same, of a room that is up to date.
    pub(crate) fn in_room(cluster: &'a Cluster, room: Room) -> Free<'a> {
        let scarcity = room.scarcity();
        Free { cluster, room, scarcity, taken: BTreeMap::new(), ended: BTreeSet::new() }
    }

    /// Gives the room back, without what was taken from it.
    pub(crate) fn into_room(self) -> Room {
        self.room
    }

    /// The same, as if some jobs that hold resources had ended.
    pub fn without(cluster: &'a Cluster, ended: BTreeSet<JobId>) -> Free<'a> {
        let mut free = Free::of(cluster);
        let mut held = BTreeMap::new();
        for id in &ended {
            let job = cluster.jobs().get(*id).expect("a job that holds resources");
            for (worker, rank) in crate::cluster::workers(job) {
                let held = held.entry(rank.node).or_insert_with(|| cluster.nodes().held(rank.node).clone());
                held.change(worker, rank, false);
            }
        }
        for (node, held) in held {
            free.room.refresh(cluster.nodes().get(node), &held);
        }
        free.scarcity = free.room.scarcity();
        Free { ended, ..free }
    }

    /// The cluster that it is free in.
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// What is free on a node.
    pub fn on(&self, node: &Node) -> &NodeFree {
        self.room.on(node.id)
    }

    /// What the queue holds, in thousandths of a device.
    pub fn held_by(&self, queue: &Name) -> u64 {
        let ended = |job: &&JobId| self.cluster.jobs().get(**job).is_some_and(|job| job.spec.queue == *queue);
        let given_back: u64 = self.ended.iter().filter(ended).map(|job| self.charge_of(*job)).sum();
        self.cluster.queue_held(queue) + self.taken.get(queue).copied().unwrap_or(0) - given_back
    }

    fn charge_of(&self, job: JobId) -> u64 {
        self.cluster.jobs().get(job).map_or(0, Job::charge_milli)
    }
}
