//! A baseline: a queue in order of arrival with backfill and no reservation, and the best node for each job.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::pool::Pool;
use super::score::Scorer;
use super::{Policy, Start};
use crate::Rng;
use crate::replay::log::Rank;
use crate::replay::workload::Workload;

/// Score of a node that has no room.
const NO_ROOM: i64 = i64::MIN;

/// Places each job as soon as it fits, on the node that scores best.
pub struct Greedy<'a> {
    workload: &'a Workload,
    scorer: Scorer,
    pool: Pool,
    rng: Rng,
    /// By node: what the scorer keeps about it, at which version of the pool.
    prepared: Vec<f64>,
    prepared_version: usize,
    /// By request.
    scores: Vec<Scores>,
    /// Jobs that wait, by request, best first.
    waiting: BTreeMap<u32, BTreeSet<(Reverse<i32>, u32)>>,
    running: BTreeMap<u32, Vec<Rank>>,
}

/// The nodes' scores for one request, as of a version of the pool.
#[derive(Clone, Debug, Default)]
struct Scores {
    version: usize,
    nodes: Vec<i64>,
    /// Nodes that have room.
    roomy: usize,
}

impl<'a> Greedy<'a> {
    /// An empty pool.
    pub fn new(workload: &'a Workload, scorer: Scorer, rng: Rng) -> Greedy<'a> {
        let pool = Pool::new(workload);
        let prepared = pool.nodes.iter().map(|node| scorer.prepare(node)).collect();
        Greedy {
            workload,
            scorer,
            pool,
            rng,
            prepared,
            prepared_version: 0,
            scores: vec![Scores::default(); workload.specs.len()],
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
        }
    }

    /// Brings the scores of a request up to date. `O(nodes)` the first time, then `O(changes)`.
    fn refresh(&mut self, spec_index: u32) {
        let version = self.pool.version();
        for node in self.pool.changed_since(self.prepared_version) {
            self.prepared[node] = self.scorer.prepare(&self.pool.nodes[node]);
        }
        self.prepared_version = version;
        let spec = &self.workload.specs[spec_index as usize];
        let scores = &mut self.scores[spec_index as usize];
        let (pool, scorer, prepared) = (&self.pool, &self.scorer, &self.prepared);
        let score = |node: usize| match pool.nodes[node].fits(spec) {
            true => scorer.score(&pool.nodes[node], prepared[node], spec),
            false => NO_ROOM,
        };
        if scores.nodes.is_empty() {
            scores.nodes = (0..pool.nodes.len()).map(score).collect();
            scores.roomy = scores.nodes.iter().filter(|score| **score != NO_ROOM).count();
        } else {
            for node in pool.changed_since(scores.version) {
                let (old, new) = (scores.nodes[node], score(node));
                scores.roomy -= usize::from(old != NO_ROOM);
                scores.roomy += usize::from(new != NO_ROOM);
                scores.nodes[node] = new;
            }
        }
        scores.version = version;
    }

    /// The best node for one rank.
    fn best(&mut self, spec_index: u32) -> Option<Rank> {
        self.refresh(spec_index);
        let scores = &self.scores[spec_index as usize];
        if scores.roomy == 0 {
            return None;
        }
        let node = if self.scorer.is_random() {
            let which = self.rng.below(scores.roomy as u64) as usize;
            let roomy = scores.nodes.iter().enumerate().filter(|(_, score)| **score != NO_ROOM);
            roomy.map(|(node, _)| node).nth(which)?
        } else {
            let best = scores.nodes.iter().copied().max()?;
            scores.nodes.iter().position(|score| *score == best)?
        };
        let spec = &self.workload.specs[spec_index as usize];
        let devices = self.scorer.devices(&self.pool.nodes[node], self.prepared[node], spec, &mut self.rng);
        Some(Rank { node: node as u32, devices: if spec.devices == 0 { 0 } else { devices } })
    }

    /// All ranks of a job, or none.
    fn place(&mut self, job: u32) -> Option<Vec<Rank>> {
        let spec_index = self.workload.jobs[job as usize].spec;
        let spec = &self.workload.specs[spec_index as usize];
        let mut ranks = Vec::with_capacity(spec.ranks as usize);
        for _ in 0..spec.ranks {
            let Some(rank) = self.best(spec_index) else {
                ranks.into_iter().for_each(|rank| self.pool.give(spec, rank));
                return None;
            };
            self.pool.take(spec, rank);
            ranks.push(rank);
        }
        Some(ranks)
    }

    fn start(&mut self, job: u32, starts: &mut Vec<Start>) -> bool {
        let Some(ranks) = self.place(job) else { return false };
        self.running.insert(job, ranks.clone());
        starts.push(Start { job, ranks });
        true
    }

    fn place_in_line(&self, job: u32) -> (Reverse<i32>, u32) {
        (Reverse(self.workload.jobs[job as usize].priority), job)
    }

    fn leave_line(&mut self, job: u32) {
        let (spec, place) = (self.workload.jobs[job as usize].spec, self.place_in_line(job));
        if let Some(line) = self.waiting.get_mut(&spec) {
            line.remove(&place);
            if line.is_empty() {
                self.waiting.remove(&spec);
            }
        }
    }
}

impl Policy for Greedy<'_> {
    fn submit(&mut self, _now_ms: u64, job: u32, starts: &mut Vec<Start>) {
        let spec = self.workload.jobs[job as usize].spec;
        // Where jobs of the same request wait, nothing has been freed that would do.
        if self.waiting.contains_key(&spec) || !self.start(job, starts) {
            let place = self.place_in_line(job);
            self.waiting.entry(spec).or_default().insert(place);
        }
    }

    fn exit(&mut self, _now_ms: u64, job: u32, starts: &mut Vec<Start>) {
        let spec = self.workload.spec_of(job);
        for rank in self.running.remove(&job).expect("a job that runs") {
            self.pool.give(spec, rank);
        }
        let mut candidates: BTreeSet<(Reverse<i32>, u32)> =
            self.waiting.values().filter_map(|line| line.first().copied()).collect();
        // The first of each request that waits, in order; a request that found no room finds none in this round.
        while let Some((_, job)) = candidates.pop_first() {
            if self.start(job, starts) {
                self.leave_line(job);
                let spec = self.workload.jobs[job as usize].spec;
                candidates.extend(self.waiting.get(&spec).and_then(|line| line.first()));
            }
        }
    }

    fn withdraw(&mut self, _now_ms: u64, job: u32) {
        self.leave_line(job);
    }
}
