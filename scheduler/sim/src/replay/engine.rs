//! Virtual time: feeds arrivals and departures to a policy, and writes down what it decides.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::log::{Log, What};
use super::policy::{Policy, Start};
use super::workload::Workload;

/// How jobs come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One after the other; nothing ever ends, and what does not fit at once leaves.
    Fill,
    /// At their times; they wait, run and end. Stops at the last arrival, so that the end is like the middle.
    Churn,
    /// As `Churn`, until everything has ended.
    Replay,
}

/// Time that single decisions took, in nanoseconds, if somebody measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// One for each arrival and each departure.
    pub ns: Vec<u64>,
}

/// What surrounds a run.
#[derive(Default)]
pub struct Watch<'a> {
    /// A clock in nanoseconds, to measure decisions with. Without one nothing is measured, and runs are reproducible.
    pub clock: Option<fn() -> u64>,
    /// Is told how many arrivals are done, now and then.
    pub progress: Option<&'a dyn Fn(u64)>,
}

/// Runs a workload.
///
/// At equal times jobs end before others arrive, and each event is decided before the next is told.
pub fn run(workload: &Workload, policy: &mut dyn Policy, mode: Mode, watch: &Watch) -> (Log, Latency) {
    let mut run = Run {
        workload,
        policy,
        mode,
        watch,
        log: Log::default(),
        ends: BinaryHeap::new(),
        latency: Latency::default(),
    };
    for (job, arrival) in workload.jobs.iter().enumerate() {
        run.until(arrival.at_ms);
        run.arrive(arrival.at_ms, job as u32);
        if job % 1024 == 0
            && let Some(progress) = watch.progress
        {
            progress(job as u64);
        }
    }
    if mode == Mode::Replay {
        run.until(u64::MAX);
    }
    (run.log, run.latency)
}

struct Run<'a> {
    workload: &'a Workload,
    policy: &'a mut dyn Policy,
    mode: Mode,
    watch: &'a Watch<'a>,
    log: Log,
    /// Jobs that run, by their ends.
    ends: BinaryHeap<Reverse<(u64, u32)>>,
    latency: Latency,
}

impl Run<'_> {
    fn arrive(&mut self, now_ms: u64, job: u32) {
        self.log.push(now_ms, job, What::Arrived);
        let starts = self.decide(|policy, starts| policy.submit(now_ms, job, starts));
        let placed = starts.iter().any(|start| start.job == job);
        self.started(now_ms, starts);
        if !placed && self.mode == Mode::Fill {
            self.policy.withdraw(now_ms, job);
            self.log.push(now_ms, job, What::Dropped);
        }
    }

    /// Everything that happens by itself up to a time.
    fn until(&mut self, end_ms: u64) {
        loop {
            let next_end = self.ends.peek().map(|Reverse((at_ms, _))| *at_ms);
            let wake = self.policy.deadline_ms().filter(|at_ms| *at_ms < end_ms);
            if let Some(at_ms) = wake.filter(|at_ms| next_end.is_none_or(|end| *at_ms < end)) {
                let starts = self.decide(|policy, starts| policy.tick(at_ms, starts));
                self.started(at_ms, starts);
                continue;
            }
            if next_end.is_none_or(|at_ms| end_ms < at_ms) {
                return;
            }
            let Some(Reverse((at_ms, job))) = self.ends.pop() else { return };
            self.log.push(at_ms, job, What::Ended);
            let starts = self.decide(|policy, starts| policy.exit(at_ms, job, starts));
            self.started(at_ms, starts);
        }
    }

    fn decide(&mut self, decision: impl FnOnce(&mut dyn Policy, &mut Vec<Start>)) -> Vec<Start> {
        let mut starts = Vec::new();
        let begun = self.watch.clock.map(|clock| clock());
        decision(self.policy, &mut starts);
        if let (Some(begun), Some(clock)) = (begun, self.watch.clock) {
            self.latency.ns.push(clock().saturating_sub(begun));
        }
        starts
    }

    fn started(&mut self, now_ms: u64, starts: Vec<Start>) {
        for start in starts {
            self.log.start(now_ms, start.job, &start.ranks);
            if self.mode != Mode::Fill {
                let end_ms = now_ms.saturating_add(self.workload.held_ms(start.job));
                self.ends.push(Reverse((end_ms, start.job)));
            }
        }
    }
}
