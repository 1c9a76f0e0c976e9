//! How long jobs ran that have ended, and what that says about those that run.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::cluster::Cluster;
use crate::jobs::{Job, Jobs, Outcome, Phase};
use crate::sorted::Sorted;
use crate::types::*;

/// Runs that are remembered, at most: the last to end.
const WINDOW: usize = 4096;

/// Fewer like jobs say nothing.
const FEWEST: u64 = 5;

/// Durations are told apart by so many steps to a doubling.
const STEPS: u64 = 8;

/// Longer runs count as this: 34 years, in milliseconds.
const LONGEST_MS: u64 = 1 << 40;

/// How long the last jobs ran that ended by themselves, by what they are like. Derived from the jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Durations {
    /// By when they ended, the last ones at the back.
    runs: VecDeque<((Time, JobId), Run)>,
    alike: BTreeMap<Arc<Like>, Sketch>,
    of_users: BTreeMap<Name, Sketch>,
    all: Sketch,
}

/// What is alike: jobs of one user with the same name but for digits at its end, and programs of the same kinds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Like {
    user: Name,
    name: Name,
    kinds: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    /// Shared by those that are alike.
    like: Arc<Like>,
    step: u16,
}

/// Number of runs by the step of their duration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sketch(Sorted<u16, u64>);

/// How long a job is expected to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Estimate {
    /// The median of those that ran as long as it has run, in milliseconds from now.
    pub left_ms: u64,
    /// Number of these.
    pub jobs: u32,
}

impl Like {
    fn of(spec: &JobSpec) -> Like {
        let kind = |role: &Role| match role.program {
            Program::Command(_) => 0,
            Program::Train(_) => 1,
            Program::Serve(_) => 2,
        };
        Like { user: spec.user.clone(), name: spec.stem(), kinds: spec.roles.iter().map(kind).collect() }
    }
}

/// The step of a duration in milliseconds.
fn step_of(ms: u64) -> u16 {
    let shifted = ms.min(LONGEST_MS) + STEPS;
    let doublings = u64::from(shifted.ilog2() - STEPS.ilog2());
    (doublings * STEPS + (shifted >> doublings) - STEPS) as u16
}

/// The shortest duration of a step, in milliseconds.
fn shortest(step: u16) -> u64 {
    let step = u64::from(step);
    ((STEPS + step % STEPS) << (step / STEPS)) - STEPS
}

impl Durations {
    /// Of all jobs.
    pub fn of(jobs: &Jobs) -> Durations {
        let mut durations = Durations::default();
        jobs.iter().for_each(|job| durations.enter(job));
        durations
    }

    /// Enters a job if it has ended by itself. Jobs may be entered in any order. `O(log runs)`.
    pub fn enter(&mut self, job: &Job) {
        let by_itself = matches!(job.phase, Phase::Done(Outcome::Succeeded | Outcome::Failed(_)))
            && !job.spec.is_service();
        let (Some(began), Some(ended), true) = (job.began, job.ended, by_itself) else { return };
        self.add((ended, job.id), Like::of(&job.spec), step_of(ended.since(began)));
    }

    /// Forgets a job.
    pub fn forget(&mut self, job: &Job) {
        let place = |at| self.runs.binary_search_by_key(&(at, job.id), |(at, _)| *at).ok();
        if let Some((_, run)) = job.ended.and_then(place).and_then(|place| self.runs.remove(place)) {
            self.remove(&run);
        }
    }

    fn add(&mut self, at: (Time, JobId), like: Like, step: u16) {
        let entry = self.alike.entry(Arc::new(like));
        let like = entry.key().clone();
        entry.or_default().add(step);
        self.of_users.entry(like.user.clone()).or_default().add(step);
        self.all.add(step);
        let place = self.runs.partition_point(|(other, _)| *other < at);
        self.runs.insert(place, (at, Run { like, step }));
        if WINDOW < self.runs.len() {
            let (_, run) = self.runs.pop_front().expect("the first of many");
            self.remove(&run);
        }
    }

    fn remove(&mut self, Run { like, step }: &Run) {
        if self.alike.get_mut(like).expect("the sketch of a run").remove(*step) {
            self.alike.remove(like);
        }
        if self.of_users.get_mut(&like.user).expect("the sketch of a run").remove(*step) {
            self.of_users.remove(&like.user);
        }
        self.all.remove(*step);
    }

    /// How long a job that has run for `age_ms` is expected to go on, by those that are most alike, if enough of them
    /// ran as long. `O(steps)`.
    pub fn estimate(&self, spec: &JobSpec, age_ms: u64) -> Option<Estimate> {
        let alike = self.alike.get(&Like::of(spec)).and_then(|sketch| sketch.left(age_ms));
        let of_user = || self.of_users.get(&spec.user)?.left(age_ms);
        alike.or_else(of_user).or_else(|| self.all.left(age_ms))
    }
}

impl Cluster {
    /// A job has ended: how long it ran is learned.
    pub(crate) fn learn_duration(&mut self, id: JobId) {
        Arc::make_mut(&mut self.durations).enter(self.jobs.get(id).expect("a job that ended"));
    }

    /// How long a job that runs is expected to go on: not at all by itself, if it is a service. `None`: nothing is known.
    pub(crate) fn expected_left(&self, job: &Job) -> Option<Estimate> {
        let began = job.began.filter(|_| !job.spec.is_service())?;
        self.durations.estimate(&job.spec, self.now.since(began))
    }
}

impl Sketch {
    fn add(&mut self, step: u16) {
        match self.0.get_mut(&step) {
            Some(count) => *count += 1,
            None => _ = self.0.insert(step, 1),
        }
    }

    /// Removes a run that was added; returns whether it was the last.
    fn remove(&mut self, step: u16) -> bool {
        let count = self.0.get_mut(&step).expect("the step of a run");
        *count -= 1;
        if *count == 0 {
            self.0.remove(&step);
        }
        self.0.is_empty()
    }

    /// The median of what is left after `age_ms`. Within a step durations are taken as spread evenly.
    fn left(&self, age_ms: u64) -> Option<Estimate> {
        let age_ms = age_ms.min(LONGEST_MS);
        let part = |(step, count): &(u16, u64)| {
            let (whole, end) = (shortest(*step), shortest(step + 1));
            let from = whole.max(age_ms);
            (from, end, 1000 * count * (end - from) / (end - whole))
        };
        let least = step_of(age_ms);
        let parts = || self.0.iter().skip_while(move |(step, _)| *step < least).map(part);
        let total: u64 = parts().map(|(.., milli)| milli).sum();
        if total < 1000 * FEWEST {
            return None;
        }
        let mut half = total.div_ceil(2);
        for (from, end, milli) in parts() {
            if half <= milli {
                let left_ms = from + (end - from) * half / milli - age_ms;
                return Some(Estimate { left_ms, jobs: (total / 1000) as u32 });
            }
            half -= milli;
        }
        unreachable!("half of them are among them")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sketch(durations: &[u64]) -> Sketch {
        let mut sketch = Sketch::default();
        durations.iter().for_each(|ms| sketch.add(step_of(*ms)));
        sketch
    }

    #[test]
    fn steps_follow_each_other_and_are_narrow() {
        for step in 0..step_of(LONGEST_MS) {
            let (from, end) = (shortest(step), shortest(step + 1));
            assert!(from < end, "step {step}");
            assert_eq!((step_of(from), step_of(end - 1), step_of(end)), (step, step, step + 1));
            assert!(end - from <= from / STEPS + 2, "step {step}: {from} to {end}");
        }
        assert_eq!(step_of(u64::MAX), step_of(LONGEST_MS));
    }

    /// Beside the exact median of the longer ones, whatever the durations.
    #[test]
    fn what_is_left_is_about_the_median_of_those_that_ran_as_long() {
        let mut random = 1u64;
        let mut below = |n: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % n
        };
        for _ in 0..300 {
            let top = 10 + below(30);
            let mut durations: Vec<u64> = (0..40 + below(200))
                .map(|_| {
                    let doublings = 2 + below(top);
                    below(1 << doublings)
                })
                .collect();
            durations.sort_unstable();
            let known = sketch(&durations);
            let age = durations[below(durations.len() as u64 / 2) as usize];
            let longer: Vec<u64> = durations.into_iter().filter(|ms| age <= *ms).collect();
            let estimate = known.left(age).expect("enough of them");
            // The step of the age is spread evenly: some of it are taken as shorter.
            let rank = |at: u64| longer.iter().filter(|ms| **ms <= at).count();
            let slack = 1 + longer.iter().filter(|ms| step_of(**ms) == step_of(age)).count();
            let end = age + estimate.left_ms;
            let (low, high) =
                (rank(shortest(step_of(end)).saturating_sub(1)), rank(shortest(step_of(end) + 1)));
            let middle = longer.len() / 2;
            assert!(low <= middle + slack && middle <= high + slack, "{low} {middle} {high}, {slack}");
        }
    }

    #[test]
    fn the_last_runs_are_remembered_in_whatever_order_they_are_entered() {
        let enter = |durations: &mut Durations, id: u64| {
            let name = if id.is_multiple_of(3) { "train" } else { "serve" };
            let like = Like { user: format!("u{}", id % 7).into(), name: name.into(), kinds: vec![0] };
            durations.add((Time(id / 2), JobId(id)), like, step_of(id));
        };
        let (mut lived, mut restored) = (Durations::default(), Durations::default());
        let last = 2 * WINDOW as u64;
        (1..=last).for_each(|id| enter(&mut lived, id));
        (1..=last).rev().for_each(|id| enter(&mut restored, id));
        assert_eq!(lived, restored);
        assert_eq!(lived.runs.len(), WINDOW);
        assert_eq!(lived.all.0.iter().map(|(_, count)| count).sum::<u64>(), WINDOW as u64);
        assert_eq!((lived.alike.len(), lived.of_users.len()), (14, 7));
    }

    #[test]
    fn few_say_nothing_and_neither_do_shorter_ones() {
        assert_eq!(sketch(&[1000; 4]).left(0), None);
        let minute = sketch(&[60_000; 31]);
        let estimate = minute.left(0).expect("enough");
        assert_eq!(estimate.jobs, 31);
        assert!((56_000..64_000).contains(&estimate.left_ms), "{estimate:?}");
        assert!(minute.left(40_000).expect("enough").left_ms < 25_000);
        assert_eq!(minute.left(70_000), None);
        // A heavy tail: what is old lasts.
        let tail = sketch(&[[1_000; 50], [1_000_000; 50]].concat());
        assert!(tail.left(10_000).expect("enough").left_ms > 800_000);
    }
}
