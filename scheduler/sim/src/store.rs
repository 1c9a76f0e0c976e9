//! What is durable, and what must be true of everything that is written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aquifer_core::history::Totals;
use aquifer_core::jobs::{Job, Outcome, Phase};
use aquifer_core::nodes::Node;
use aquifer_core::*;

/// A store in memory.
#[derive(Clone, Debug, Default)]
pub struct Store {
    /// Specifications, by the first job made from each.
    pub specs: BTreeMap<JobId, Arc<JobSpec>>,
    /// Jobs.
    pub jobs: BTreeMap<JobId, Arc<Job>>,
    /// Jobs that have retired.
    pub ended: BTreeMap<JobId, Arc<Job>>,
    /// What they were.
    pub retired: BTreeMap<Name, Totals>,
    /// Nodes.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Queues.
    pub queues: BTreeMap<Name, Queue>,
    /// What queues have used.
    pub usages: BTreeMap<Name, QueueUsage>,
    /// Reservations.
    pub reservations: BTreeMap<Name, Reservation>,
    /// Prices.
    pub tariff: Option<Arc<Tariff>>,
    keys: BTreeMap<Name, JobId>,
}

impl Store {
    /// The job, also if it has retired.
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id).or_else(|| self.ended.get(&id)).map(|job| &**job)
    }

    /// Every record, in some order.
    pub fn records(&self) -> Vec<Record> {
        let specs = self.specs.iter().map(|(id, spec)| Record::Spec(*id, spec.clone()));
        let jobs = self.jobs.values().cloned().map(Record::Job);
        let nodes = self.nodes.values().cloned().map(Record::Node);
        let queues = self.queues.values().cloned().map(Record::Queue);
        let usages = self.usages.iter().map(|(queue, usage)| Record::Usage(queue.clone(), *usage));
        let reservations = self.reservations.values().cloned().map(Record::Reservation);
        let ended = self.ended.values().cloned().map(Record::Ended);
        let retired = self.retired.iter().map(|(queue, totals)| Record::Retired(queue.clone(), *totals));
        let jobs = specs.chain(jobs).chain(ended).chain(retired);
        let tariff = self.tariff.iter().cloned().map(Record::Tariff);
        jobs.chain(nodes).chain(queues).chain(usages).chain(reservations).chain(tariff).collect()
    }

    /// Writes a record over the earlier one of the same identity.
    ///
    /// # Panics
    /// When the new one does not follow from the earlier one.
    pub fn write(&mut self, record: Record) {
        match record {
            Record::Spec(id, spec) => {
                assert!(self.specs.insert(id, spec).is_none(), "the specification of {id} is written twice");
            }
            Record::Job(job) => {
                match self.jobs.get(&job.id) {
                    Some(earlier) => check_growth(earlier, &job),
                    None => self.check_new(&job),
                }
                self.jobs.insert(job.id, job);
            }
            Record::Node(node) => {
                let earlier = self.nodes.get(&node.id);
                assert!(earlier.is_none_or(|earlier| earlier.boot <= node.boot), "{}: boot", node.name);
                self.nodes.insert(node.id, node);
            }
            Record::Reservation(it) => {
                if let Some(was) = self.reservations.insert(it.name.clone(), it.clone()) {
                    let same = Reservation { begun: it.begun, ..was.clone() } == it;
                    let anew = was.end <= it.start || !it.begun;
                    assert!(same || anew, "reservation {} changed", it.name);
                }
            }
            Record::Tariff(tariff) => self.tariff = Some(tariff),
            Record::Ended(job) => {
                let earlier = self.jobs.get(&job.id).cloned();
                assert!(earlier.is_none_or(|earlier| earlier == job), "{} changed as it retired", job.id);
                if self.keys.get(&job.spec.client_key) == Some(&job.id) {
                    self.keys.remove(&job.spec.client_key);
                }
                let again = self.ended.insert(job.id, job);
                assert!(again.is_none(), "it retired twice: {again:?}");
            }
            Record::Retired(queue, totals) => _ = self.retired.insert(queue, totals),
            Record::NoJob(id) => assert!(self.jobs.remove(&id).is_some(), "{id} is not stored"),
            Record::NoSpec(id) => assert!(self.specs.remove(&id).is_some(), "{id} has no specification"),
            Record::NoReservation(name) => _ = self.reservations.remove(&name),
            Record::Queue(queue) => _ = self.queues.insert(queue.name.clone(), queue),
            Record::Usage(queue, usage) => {
                let earlier = self.usages.insert(queue.clone(), usage);
                assert!(earlier.is_none_or(|earlier| earlier.at <= usage.at), "{queue}: usage of the past");
            }
        }
    }

    fn check_new(&mut self, job: &Job) {
        let first = job.array.map_or(job.id, |array| array.first);
        let spec = self.specs.get(&first).unwrap_or_else(|| panic!("{} has no specification", job.id));
        assert_eq!(**spec, *job.spec, "the specification of {}", job.id);
        if first == job.id && !job.spec.client_key.is_empty() {
            let other = self.keys.insert(job.spec.client_key.clone(), job.id);
            assert_eq!(
                other, None,
                "client key {:?} made two jobs, the second {}",
                job.spec.client_key, job.id
            );
        }
    }
}

/// How a job may change from one commit to a later one.
fn check_growth(earlier: &Job, job: &Job) {
    let id = job.id;
    if let Phase::Done(outcome) = &earlier.phase {
        assert_eq!(earlier, job, "{id} was done: {outcome}");
    }
    assert!(Arc::ptr_eq(&earlier.spec, &job.spec) || earlier.spec == job.spec, "the specification of {id}");
    assert!(earlier.attempt <= job.attempt, "attempts of {id} went back to {}", job.attempt);
    assert!(earlier.failures <= job.failures, "failures of {id} went back to {}", job.failures);
    let failed_alone = if job.spec.is_live() { job.spec.retries } else { 0 };
    assert!(job.failures <= job.attempt + failed_alone, "{id} failed more often than it was placed");
    if earlier.attempt == job.attempt && !earlier.ranks.is_empty() && !job.ranks.is_empty() {
        let numbers: BTreeSet<u32> = job.ranks.iter().map(|rank| rank.rank).collect();
        assert_eq!(numbers.len(), job.ranks.len(), "{id} has two workers of one number");
        for was in &earlier.ranks {
            let rank = was.rank;
            let Some(is) = job.ranks.iter().find(|is| is.rank == rank) else {
                let may_go = job.spec.is_live() || matches!(earlier.phase, Phase::Stopping(_));
                assert!(may_go, "rank {rank} of {id} went within attempt {}", job.attempt);
                continue;
            };
            // What a job has got to go on with is assigned when the rest has stopped.
            let begins = earlier.last_nodes.len() <= rank as usize;
            assert!(begins || was.worker <= is.worker, "rank {rank}: {:?} after {:?}", is.worker, was.worker);
            let moved = Allocation {
                worker: was.worker,
                restart_at: was.restart_at,
                hasty: was.hasty,
                since: was.since,
                ..is.clone()
            };
            assert_eq!(*was, moved, "rank {rank} of {id} moved within attempt {}", job.attempt);
        }
    }
    if let (Phase::Done(Outcome::TimedOut), Some(began), Some(ended)) = (&job.phase, job.began, job.ended) {
        let limit = job.spec.time_limit_ms.expect("a job with a time limit");
        assert!(limit <= ended.since(began), "{id} timed out after {} ms of {limit}", ended.since(began));
    }
}
