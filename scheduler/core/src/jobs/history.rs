//! Jobs that have ended: how many of them are kept, and when they retire into the store's history, which nothing in here
//! reads.
//!
//! An array retires as a whole. What a job that has not ended names to follow stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::cluster::Cluster;
use crate::effect::{Effect, Record};
use crate::event::Spent;
use crate::jobs::{Job, Jobs, Outcome, Phase};
use crate::sorted::Sorted;
use crate::types::*;

/// Jobs that retire in one step, at most, but for the rest of an array.
const AT_ONCE: usize = 256;

/// What jobs of a queue that have ended were, and what they used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Totals {
    pub succeeded: u64,
    pub failed: u64,
    pub unreachable: u64,
    pub cancelled: u64,
    pub timed_out: u64,
    /// Devices times milliseconds.
    pub device_ms: u64,
    /// The part of it that attempts which were placed again had spent since their last checkpoint.
    pub lost_device_ms: u64,
    /// Of all trainings.
    pub spent: Spent,
}

/// Jobs that have ended. Derived from the jobs, but for `retired`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Single jobs and whole arrays, each by its first job: the first to end first.
    order: BTreeSet<(Time, JobId)>,
    /// Those of them that others still name to follow, as far as that was found.
    followed: BTreeMap<JobId, Time>,
    /// Jobs of `order`.
    count: u64,
    /// Jobs that have not ended, by queue.
    open: BTreeMap<Name, u64>,
    /// By how many jobs that have not ended a job is named to be followed.
    named: BTreeMap<JobId, u32>,
    /// Of all that have ended, by queue.
    totals: BTreeMap<Name, Totals>,
    /// Of those that have retired.
    retired: BTreeMap<Name, Totals>,
    retired_count: u64,
}

impl Totals {
    /// Number of jobs.
    pub fn jobs(&self) -> u64 {
        self.succeeded + self.failed + self.unreachable + self.cancelled + self.timed_out
    }

    /// Counts others as well.
    pub fn merge(&mut self, other: &Totals) {
        let Totals { succeeded, failed, unreachable, cancelled, timed_out, .. } = other;
        self.succeeded += succeeded;
        self.failed += failed;
        self.unreachable += unreachable;
        self.cancelled += cancelled;
        self.timed_out += timed_out;
        self.device_ms += other.device_ms;
        self.lost_device_ms += other.lost_device_ms;
        self.spent.add(&other.spent);
    }

    /// Counts a job, if it has ended.
    pub fn add(&mut self, job: &Job) {
        let Phase::Done(outcome) = &job.phase else { return };
        *match outcome {
            Outcome::Succeeded => &mut self.succeeded,
            Outcome::Failed(_) => &mut self.failed,
            Outcome::Unreachable(_) => &mut self.unreachable,
            Outcome::Cancelled => &mut self.cancelled,
            Outcome::TimedOut => &mut self.timed_out,
        } += 1;
        self.device_ms += job.usage.device_ms;
        self.lost_device_ms += job.usage.lost_device_ms;
        self.spent.add(&job.usage.spent);
    }
}

impl Ended {
    /// There is a job that has not ended.
    pub fn enter_open(&mut self, job: &Job) {
        *self.open.entry(job.spec.queue.clone()).or_default() += 1;
        for other in &job.spec.after {
            *self.named.entry(*other).or_default() += 1;
        }
    }

    fn unname(&mut self, other: JobId) -> bool {
        let count = self.named.get_mut(&other).expect("a job that is named");
        *count -= 1;
        if *count == 0 {
            self.named.remove(&other);
        }
        !self.named.contains_key(&other)
    }

    /// Jobs that have retired, of all queues together.
    pub fn retired_count(&self) -> u64 {
        self.retired_count
    }

    /// * `jobs`: ascending.
    fn is_named(&self, mut jobs: impl DoubleEndedIterator<Item = JobId>) -> bool {
        let Some(first) = jobs.next() else { return false };
        self.named.range(first..=jobs.next_back().unwrap_or(first)).next().is_some()
    }

    /// When a single job or an array may retire; `None`: there are not too many.
    fn due(&self, policy: &crate::Policy) -> Option<(Time, JobId)> {
        let (at, id) = self.order.first()?;
        (policy.keep_ended < self.count).then_some((*at + policy.keep_at_least, *id))
    }
}

impl Jobs {
    /// Number of jobs ever accepted. Identities are `1..=len`.
    pub fn len(&self) -> u64 {
        self.table.len() as u64 + self.ended.retired_count()
    }

    /// Whether no job was ever accepted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What jobs that have ended were, by queue, whether they are kept or have retired.
    pub fn ended_totals(&self) -> impl Iterator<Item = (&Name, &Totals)> {
        self.ended.totals.iter()
    }

    /// The same of those that have retired.
    pub fn retired_totals(&self) -> impl Iterator<Item = (&Name, &Totals)> {
        self.ended.retired.iter()
    }

    /// Jobs of the queue that have not ended.
    pub fn open_in(&self, queue: &str) -> u64 {
        self.ended.open.get(queue).copied().unwrap_or(0)
    }

    /// Whether there was such a job, which has ended and retired.
    pub fn has_retired(&self, id: JobId) -> bool {
        0 < id.0 && id.0 <= self.len() && self.get(id).is_none()
    }

    /// Elements of the array that `id` belongs to, ascending; just `id` if it is no element of one.
    pub fn array_of(
        &self,
        id: JobId,
    ) -> impl ExactSizeIterator<Item = JobId> + DoubleEndedIterator + Clone + use<> {
        let element = self.table.get(id).and_then(|job| Some((job.array?, job.spec.array?)));
        let (first, count) = element.map_or((id, 1), |(array, range)| (array.first, range.count() as u32));
        (0..count).map(move |at| JobId(first.0 + u64::from(at)))
    }

    /// Jobs that retired before these are counted.
    pub(crate) fn restore_ended(&mut self, retired: BTreeMap<Name, Totals>) {
        self.ended = self.recount_ended(retired);
    }

    /// A job has ended that had not before.
    pub(super) fn enter_ended(&mut self, id: JobId) {
        let job = self.shared(id).expect("a job that ended");
        let open = self.ended.open.get_mut(&job.spec.queue).expect("the queue of a job");
        *open -= 1;
        if *open == 0 {
            self.ended.open.remove(&job.spec.queue);
        }
        self.ended.totals.entry(job.spec.queue.clone()).or_default().add(&job);
        for other in &job.spec.after {
            if !self.ended.unname(*other) {
                continue;
            }
            let first = self.get(*other).and_then(|job| job.array).map_or(*other, |array| array.first);
            if let Some(at) = self.ended.followed.remove(&first) {
                self.ended.order.insert((at, first));
                self.ended.count += self.array_of(first).len() as u64;
            }
        }
        let first = job.array.map_or(job.id, |array| array.first);
        if job.array.is_none() || self.array_has_ended(first) {
            self.ended.order.insert((job.ended.unwrap_or_default(), first));
            self.ended.count += self.array_of(id).len() as u64;
        }
    }

    /// Whether all elements of an array have ended.
    fn array_has_ended(&self, first: JobId) -> bool {
        self.arrays.get(&first).is_some_and(|array| array.left == 0)
    }

    /// Takes out a job that has ended. With the first of an array, all of it must go.
    fn remove(&mut self, id: JobId) -> Arc<Job> {
        let job = self.table.remove(id).expect("a job that exists");
        assert!(matches!(job.phase, Phase::Done(_)), "{id} has not ended");
        if self.by_key(&job.spec.client_key) == Some(id) {
            self.by_key.remove(&job.spec.client_key);
        }
        self.arrays.remove(&id);
        job
    }

    /// Takes out what must retire by now, one job or one array, and appends it to `retired`; returns how many jobs these are.
    fn retire(&mut self, policy: &crate::Policy, now: Time, retired: &mut Vec<Arc<Job>>) -> usize {
        while let Some((at, first)) = self.ended.due(policy).filter(|(at, _)| *at <= now) {
            let jobs = self.array_of(first);
            self.ended.order.pop_first();
            self.ended.count -= jobs.len() as u64;
            if self.ended.is_named(jobs.clone()) {
                let ended = Time(at.0 - policy.keep_at_least.as_millis() as u64);
                self.ended.followed.insert(first, ended);
                continue;
            }
            let (begun, count) = (retired.len(), jobs.len());
            retired.extend(jobs.map(|id| self.remove(id)));
            let queue = retired[begun].spec.queue.clone();
            let totals = self.ended.retired.entry(queue).or_default();
            retired[begun..].iter().for_each(|job| totals.add(job));
            self.ended.retired_count += count as u64;
            return count;
        }
        0
    }

    /// What is derived, from nothing but the jobs and those that have retired. `O(jobs log jobs)`.
    fn recount_ended(&self, retired: BTreeMap<Name, Totals>) -> Ended {
        let retired_count = retired.values().map(Totals::jobs).sum();
        let mut ended = Ended { totals: retired.clone(), retired, retired_count, ..Ended::default() };
        let mut units: BTreeMap<JobId, (Time, u64)> = BTreeMap::new();
        for job in self.iter() {
            if !matches!(job.phase, Phase::Done(_)) {
                ended.enter_open(job);
                continue;
            }
            ended.totals.entry(job.spec.queue.clone()).or_default().add(job);
            let first = job.array.map_or(job.id, |array| array.first);
            if job.array.is_none() || self.array_has_ended(first) {
                let unit = units.entry(first).or_default();
                *unit = (unit.0.max(job.ended.unwrap_or_default()), unit.1 + 1);
            }
        }
        ended.count = units.values().map(|(_, jobs)| jobs).sum();
        ended.order = units.into_iter().map(|(first, (at, _))| (at, first)).collect();
        ended
    }

    /// Compares what is derived with a recount.
    ///
    /// # Panics
    /// When it is not what it should be.
    pub(super) fn check_ended(&self) {
        let recount = self.recount_ended(self.ended.retired.clone());
        let mut lived = self.ended.clone();
        for (first, at) in std::mem::take(&mut lived.followed) {
            assert!(self.ended.is_named(self.array_of(first)), "nobody follows {first}");
            lived.order.insert((at, first));
            lived.count += self.array_of(first).len() as u64;
        }
        assert_eq!(lived, recount, "the jobs that have ended");
    }
}

impl Cluster {
    /// When jobs must retire next; `None`: there are not too many.
    pub(crate) fn next_retirement(&self) -> Option<Time> {
        // Those that this step made too many are for the next one.
        self.jobs.ended.due(&self.policy).map(|(at, _)| at.max(Time(self.now.0 + 1)))
    }

    /// Writes down what has retired in this step.
    pub(crate) fn flush_retired(&mut self, effects: &mut Vec<Effect>) {
        if self.retired.is_empty() {
            return;
        }
        let queues: Sorted<Name> = self.retired.iter().map(|job| (job.spec.queue.clone(), ())).collect();
        for job in self.retired.drain(..) {
            let first = job.array.is_none_or(|array| array.first == job.id);
            effects.extend(first.then_some(Effect::Save(Record::NoSpec(job.id))));
            effects.push(Effect::Save(Record::NoJob(job.id)));
            effects.push(Effect::Save(Record::Ended(job)));
        }
        for queue in queues.keys() {
            let totals = self.jobs.ended.retired[queue];
            effects.push(Effect::Save(Record::Retired(queue.clone(), totals)));
        }
    }

    /// Hands jobs that ended long ago to the store's history, if there are too many.
    pub(crate) fn retire(&mut self, now: Time) {
        let begun = self.retired.len();
        while self.retired.len() < begun + AT_ONCE
            && self.jobs.retire(&self.policy, now, &mut self.retired) != 0
        {}
        if begun < self.retired.len() {
            let durations = Arc::make_mut(&mut self.durations);
            self.retired[begun..].iter().for_each(|job| durations.forget(job));
        }
    }
}
