//! Who goes first.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Free, Order, preempt};
use crate::cluster::Cluster;
use crate::jobs::{Job, Shape};
use crate::types::*;

/// Ready jobs that were not considered yet in this round, but for those known not to fit.
pub struct Ready<'a> {
    cluster: &'a Cluster,
    queues: BTreeMap<&'a Name, BTreeMap<&'a Arc<Shape>, Line<'a>>>,
}

/// Jobs of one queue and shape, best first. Never empty.
struct Line<'a> {
    jobs: std::collections::btree_set::Iter<'a, (Reverse<i32>, JobId)>,
    head: (Reverse<i32>, JobId),
}

/// The best job of one queue: its place in the order, its shape, itself.
fn head<'a>(lines: &BTreeMap<&'a Arc<Shape>, Line<'a>>) -> Option<(Reverse<i32>, &'a Arc<Shape>, JobId)> {
    let heads = lines.iter().map(|(shape, line)| (line.head.0, *shape, line.head.1));
    heads.min_by_key(|head| (head.0, head.2))
}

/// `held_milli / weight`, compared exactly.
#[derive(Clone, Copy, Debug)]
struct Share {
    held_milli: u64,
    weight: u32,
}

impl Ord for Share {
    fn cmp(&self, other: &Share) -> Ordering {
        let (mine, theirs) = (u128::from(self.held_milli), u128::from(other.held_milli));
        (mine * u128::from(other.weight)).cmp(&(theirs * u128::from(self.weight)))
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
    fn of(jobs: &'a BTreeSet<(Reverse<i32>, JobId)>) -> Option<Line<'a>> {
        let mut jobs = jobs.iter();
        jobs.next().map(|head| Line { head: *head, jobs })
    }
}

impl<'a> Ready<'a> {
    pub fn of(cluster: &'a Cluster) -> Ready<'a> {
        let lines = |shapes: &'a BTreeMap<Arc<Shape>, _>| {
            let lines = shapes.iter().filter_map(|(shape, jobs)| Some((shape, Line::of(jobs)?)));
            let is_open = |(shape, line): &(&Arc<Shape>, Line)| {
                let head = || cluster.jobs().get(line.head.1).expect("a ready job");
                !cluster.unfit.contains(*shape) || preempt::is_worth_a_search(cluster, head(), shape)
            };
            lines.filter(is_open).collect()
        };
        let queues = cluster.jobs().ready().iter().map(|(queue, shapes)| (queue, lines(shapes)));
        let queues = queues.filter(|(_, lines): &(_, BTreeMap<_, _>)| !lines.is_empty()).collect();
        Ready { cluster, queues }
    }

    /// The next job, counting what this round handed out. `O(queues + shapes)`.
    pub fn best(&self, free: &Free) -> Option<(&'a Job, &'a Arc<Shape>)> {
        let (_, shape, id) = match self.cluster.policy().order {
            Order::Priority => self.queues.values().filter_map(head).min_by_key(|head| (head.0, head.2))?,
            Order::FairShare => {
                let queue = self.queues.keys().min_by_key(|queue| self.share(queue, free))?;
                head(&self.queues[*queue])?
            }
        };
        Some((self.cluster.jobs().get(id).expect("a ready job"), shape))
    }

    /// How well a queue is served: whether it has its guarantee, then what it holds for its weight.
    fn share(&self, queue: &Name, free: &Free) -> (bool, Share) {
        let held_milli = free.held_by(queue);
        let queue = &self.cluster.queues[queue];
        (queue.guaranteed_milli <= held_milli, Share { held_milli, weight: queue.weight })
    }

    /// Removes a job that was placed.
    pub fn pop(&mut self, job: &Job, shape: &Arc<Shape>) {
        let line = self.queues.get_mut(&job.spec.queue).and_then(|lines| lines.get_mut(shape));
        let line = line.expect("the line of the best job");
        assert_eq!(line.head.1, job.id, "the head of the line");
        match line.jobs.next() {
            Some(head) => line.head = *head,
            None => self.drop_shape(&job.spec.queue, shape),
        }
    }

    /// Removes all jobs of a queue and shape.
    pub fn drop_shape(&mut self, queue: &Name, shape: &Arc<Shape>) {
        let lines = self.queues.get_mut(queue).expect("a queue with ready jobs");
        lines.remove(shape);
        if lines.is_empty() {
            self.queues.remove(queue);
        }
    }
}
