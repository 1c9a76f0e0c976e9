//! Who goes first.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeSet;
use std::sync::Arc;

use super::preempt::{self, Ahead, Promises, Round};
use super::{Known, Order};
use crate::cluster::Cluster;
use crate::jobs::{Job, Shape, Turn};
use crate::queues::Decay;
use crate::sorted::Sorted;
use crate::types::*;

/// Ready jobs that were not considered yet in this round, but for those known not to fit.
pub struct Ready<'a> {
    cluster: &'a Cluster,
    decay: Decay,
    /// The pool, at [`POOL`], and queues with such jobs in themselves or below them. None if nobody waits.
    branches: Vec<Branch<'a>>,
    index: Sorted<&'a Name, usize>,
}

const POOL: usize = 0;

/// A queue, with what is below it.
struct Branch<'a> {
    name: Option<&'a Name>,
    /// Position of the queue above it; the pool is its own.
    parent: usize,
    /// Those that still have jobs, by name.
    children: Sorted<&'a Name, usize>,
    /// Its own jobs.
    lines: Vec<Line<'a>>,
    weight: u32,
    guaranteed_milli: u64,
    held_milli: u64,
    /// See [`Decay::claim`]; of its own jobs, and with those below it.
    own_used: u128,
    used: u128,
    /// Whether it, or one below it that has jobs, holds less than its guarantee.
    is_short: bool,
    next: Option<Next>,
}

/// The job that a branch starts next.
#[derive(Clone, Copy)]
struct Next {
    /// Where: itself, or below it.
    branch: usize,
    /// What the job will use. See [`Decay::claim`].
    claim: u128,
}

/// Jobs of one queue and shape, best first. Never empty. Ready jobs of one shape share it.
struct Line<'a> {
    shape: &'a Arc<Shape>,
    jobs: std::collections::btree_set::Iter<'a, Turn>,
    head: Turn,
}

/// How well a child of a branch is served, the worst first: whether it has its guarantee, then what it will have
/// used for its weight once its next job has started. So where all want more, each gets its share of what there
/// is, rounded down to whole jobs.
///
/// Source: D'Hondt's method; Balinski and Young, "Fair Representation", 1982: it alone of its kind stays within
/// the lower quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Served {
    short: Reverse<bool>,
    share: Share,
}

/// `used / weight`, compared exactly.
#[derive(Clone, Copy, Debug)]
struct Share {
    used: u128,
    weight: u32,
}

impl Ord for Share {
    fn cmp(&self, other: &Share) -> Ordering {
        (self.used * u128::from(other.weight)).cmp(&(other.used * u128::from(self.weight)))
    }
}
impl PartialOrd for Share {
    fn partial_cmp(&self, other: &Share) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Share {
    fn eq(&self, other: &Share) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Share {}

impl<'a> Line<'a> {
    fn of(shape: &'a Arc<Shape>, jobs: &'a BTreeSet<Turn>) -> Option<Line<'a>> {
        let mut jobs = jobs.iter();
        jobs.next().map(|head| Line { shape, head: *head, jobs })
    }
}

impl<'a> Branch<'a> {
    fn new(name: Option<&'a Name>, parent: usize) -> Branch<'a> {
        Branch {
            name,
            parent,
            children: Sorted::new(),
            lines: Vec::new(),
            weight: 1,
            guaranteed_milli: 0,
            held_milli: 0,
            own_used: 0,
            used: 0,
            is_short: false,
            next: None,
        }
    }

    /// The best of its own jobs: its turn and its shape.
    fn head(&self) -> Option<(Turn, &'a Arc<Shape>)> {
        self.lines.iter().map(|line| (line.head, line.shape)).min_by_key(|(turn, _)| *turn)
    }
}

impl<'a> Ready<'a> {
    /// `O(queues * depth * log queues)`; if nothing new is ready, nothing.
    ///
    /// * `known`: jobs of shapes that do not fit are left out where victims need not be sought either.
    /// * `promises`, `round`: for what queues are charged before all else.
    pub fn of(
        cluster: &'a Cluster,
        now: Time,
        known: &Known,
        (promises, round): (&Promises, &Round),
    ) -> Ready<'a> {
        let (queues, waiting) = (cluster.queues(), cluster.jobs().ready());
        let mut branches = Vec::new();
        if !waiting.is_empty() {
            branches.reserve(1 + waiting.len());
            branches.push(Branch::new(None, POOL));
        }
        let mut ready = Ready { cluster, decay: queues.decay(), branches, index: Sorted::new() };
        for (queue, shapes) in waiting {
            let open = shapes.iter().filter(|(shape, jobs)| {
                let head = || jobs.iter().find(|(_, id)| !round.has_begun(*id) && !promises.is_promised(*id));
                let head = || cluster.jobs().get(head()?.1);
                !known.unfit.contains(*shape)
                    || head()
                        .is_some_and(|job| preempt::is_worth_a_search(cluster, &known.futile, job, shape))
            });
            let lines: Vec<Line> = open.filter_map(|(shape, jobs)| Line::of(shape, jobs)).collect();
            if !lines.is_empty() {
                let at = ready.branch(queue);
                ready.branches[at].lines = lines;
            }
        }
        if !ready.index.is_empty() && cluster.policy().order == Order::FairShare {
            for claim in queues.claims(now) {
                for queue in queues.line(&claim.queue.name) {
                    let Some(at) = ready.index.get(&&queue.name) else { continue };
                    let branch = &mut ready.branches[*at];
                    branch.used += claim.used;
                    if queue.name == claim.queue.name {
                        branch.own_used = claim.used;
                    }
                }
            }
            promises.ahead().for_each(|(queue, ahead)| ready.charge_ahead(queue, ahead));
            for (id, ranks) in round.begun() {
                let queue = &cluster.jobs().get(id).expect("it was just placed").spec.queue;
                ready.charge_ahead(queue, Ahead::of(cluster, ranks));
            }
            // A branch comes after its parent.
            (0..ready.branches.len()).rev().for_each(|at| ready.look_ahead(at));
        }
        ready
    }

    /// Charges a queue and those above it for what it will hold.
    fn charge_ahead(&mut self, queue: &Name, ahead: Ahead) {
        let used = self.decay.claim(0, ahead.worth_milli);
        for above in self.cluster.queues().line(queue) {
            let Some(at) = self.index.get(&&above.name) else { continue };
            let branch = &mut self.branches[*at];
            branch.held_milli += ahead.charge_milli;
            branch.used += used;
            if above.name == *queue {
                branch.own_used += used;
            }
        }
    }

    /// The branch of a queue, made if it is not there.
    fn branch(&mut self, name: &'a Name) -> usize {
        if let Some(at) = self.index.get(&name) {
            return *at;
        }
        let queue = self.cluster.queues().get(name).expect("a job's queue");
        let parent = queue.parent.as_ref().map_or(POOL, |parent| self.branch(parent));
        let at = self.branches.len();
        self.branches.push(Branch {
            weight: queue.weight,
            guaranteed_milli: queue.guaranteed_milli,
            held_milli: self.cluster.queues().held_milli(name),
            ..Branch::new(Some(name), parent)
        });
        _ = self.branches[parent].children.insert(name, at);
        _ = self.index.insert(name, at);
        at
    }

    /// Brings up to date what a branch starts next. `O(children + shapes)`.
    fn look_ahead(&mut self, at: usize) {
        let branch = &self.branches[at];
        let children = branch.children.values().map(|child| &self.branches[*child]);
        let is_short =
            branch.held_milli < branch.guaranteed_milli || children.clone().any(|child| child.is_short);
        let own = branch.head().map(|(_, shape)| {
            let claim = self.decay.claim(0, shape.wants_milli() * self.cluster.tariff().mean_milli() / 1000);
            let share = Share { used: branch.own_used + claim, weight: 1 };
            (Served { short: Reverse(false), share }, Next { branch: at, claim })
        });
        let of_children = children.filter_map(|child| {
            let next = child.next?;
            let share = Share { used: child.used + next.claim, weight: child.weight };
            Some((Served { short: Reverse(child.is_short), share }, next))
        });
        // Ties go to its own jobs, then by name.
        let next = own.into_iter().chain(of_children).min_by_key(|(served, _)| *served);
        (self.branches[at].is_short, self.branches[at].next) = (is_short, next.map(|(_, next)| next));
    }

    /// The next job, counting what this round handed out. `O(shapes)`; by priority alone, `O(queues * shapes)`.
    pub fn best(&self) -> Option<(&'a Job, &'a Arc<Shape>)> {
        let ((_, id), shape) = match self.cluster.policy().order {
            Order::Priority => self.branches.iter().filter_map(Branch::head).min_by_key(|(turn, _)| *turn)?,
            Order::FairShare => self.branches[self.branches.get(POOL)?.next?.branch].head()?,
        };
        Some((self.cluster.jobs().get(id).expect("a ready job"), shape))
    }

    /// Removes a job that was placed, and charges its queue, for this round. `O(depth * (children + shapes))`.
    pub fn pop(&mut self, job: &Job, shape: &Arc<Shape>, ahead: Ahead) {
        let at = self.place(&job.spec.queue);
        let line = self.branches[at].lines.iter_mut().find(|line| Arc::ptr_eq(line.shape, shape));
        let line = line.expect("the line of the best job");
        assert_eq!(line.head.1, job.id, "the head of the line");
        match line.jobs.next() {
            Some(head) => line.head = *head,
            None => self.branches[at].leave(shape),
        }
        let used = self.decay.claim(0, ahead.worth_milli);
        self.branches[at].own_used += used;
        self.climb(at, |branch| {
            branch.held_milli += ahead.charge_milli;
            branch.used += used;
        });
    }

    /// Removes all jobs of a shape from a queue and those below it.
    pub fn drop_shape(&mut self, queue: &Name, shape: &Arc<Shape>) {
        let at = self.place(queue);
        self.drop_below(at, shape);
        self.climb(at, |_| ());
    }

    /// Removes all jobs of a shape from a queue, but not from those below it.
    pub fn drop_line(&mut self, queue: &Name, shape: &Arc<Shape>) {
        let at = self.place(queue);
        self.branches[at].leave(shape);
        self.climb(at, |_| ());
    }

    /// The branch of a queue with such jobs.
    fn place(&self, queue: &Name) -> usize {
        *self.index.get(&queue).expect("the queue of a ready job")
    }

    fn drop_below(&mut self, at: usize, shape: &Arc<Shape>) {
        self.branches[at].leave(shape);
        for child in self.branches[at].children.values().copied().collect::<Vec<usize>>() {
            self.drop_below(child, shape);
            self.prune(child);
        }
    }

    /// Changes a branch and all above it, and brings them up to date.
    fn climb(&mut self, mut at: usize, mut change: impl FnMut(&mut Branch)) {
        loop {
            change(&mut self.branches[at]);
            self.prune(at);
            if at == POOL {
                return;
            }
            at = self.branches[at].parent;
        }
    }

    /// Takes a branch without jobs off the one above it, else looks what it starts next.
    fn prune(&mut self, at: usize) {
        let Branch { name, parent, .. } = self.branches[at];
        if let Some(name) = name.filter(|_| self.branches[at].is_bare()) {
            self.branches[parent].children.remove(&name);
        } else {
            self.look_ahead(at);
        }
    }
}

impl Branch<'_> {
    /// Removes all jobs of a shape.
    fn leave(&mut self, shape: &Arc<Shape>) {
        self.lines.retain(|line| !Arc::ptr_eq(line.shape, shape));
    }

    fn is_bare(&self) -> bool {
        self.lines.is_empty() && self.children.is_empty()
    }
}
