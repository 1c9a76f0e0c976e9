//! The core's rounds on the Philly trace: jobs may be stopped and moved, and pay for it.

use std::collections::BTreeMap;

use aquifer_core::rounds::{Class, Goal, Job, Mode, plan};

use super::nodes::{Nodes, PER_NODE};
use super::queues::Jct;
use super::trace::Trace;

/// How jobs fared, and what that took.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Seconds from submission to end, by job.
    pub jct_s: Jct,
    /// Stops of running jobs, each followed by a start that costs.
    pub stops: u32,
    /// Rounds that were planned.
    pub rounds: u32,
}

/// Milliseconds of work that every start after the first costs; Sia's table has 25 to 250 s.
pub const RESTART_MS: u64 = 120_000;

#[derive(Clone, Debug)]
struct State {
    job: usize,
    left_ms: u64,
    /// It has run before: the next start costs.
    begun: bool,
    due_ms: Option<i64>,
}

/// Runs the trace; a round is planned whenever a job comes or ends.
///
/// * `due_s`: seconds from submission within which each job should end.
///
/// # Panics
/// If a node is overbooked.
pub fn run(trace: &Trace, due_s: Option<&Jct>) -> Outcome {
    let mut sim = Sim { trace, now_ms: 0, active: BTreeMap::new(), nodes: Nodes::new(trace.pool), stops: 0 };
    let mut outcome = Outcome { jct_s: vec![f64::NAN; trace.jobs.len()], stops: 0, rounds: 0 };
    let arrival_ms = |job: usize| (trace.jobs[job].arrival_s * 1000.0) as u64;
    let mut next = 0;
    while next < trace.jobs.len() || !sim.active.is_empty() {
        let arrival = (next < trace.jobs.len()).then(|| arrival_ms(next));
        let running = sim.active.values().filter(|at| 0 < sim.nodes.held(at.job));
        let end = running.map(|at| sim.now_ms + at.left_ms).min();
        let now_ms = arrival.into_iter().chain(end).min().expect("something is to come");
        for job in sim.advance(now_ms) {
            outcome.jct_s[job] = now_ms as f64 / 1000.0 - trace.jobs[job].arrival_s;
        }
        while next < trace.jobs.len() && arrival_ms(next) <= now_ms {
            let left_ms = ((trace.jobs[next].run_s * 1000.0) as u64).max(1);
            let due_ms = due_s.map(|due| ((trace.jobs[next].arrival_s + due[next]) * 1000.0) as i64);
            sim.active.insert(next, State { job: next, left_ms, begun: false, due_ms });
            next += 1;
        }
        sim.round();
        outcome.rounds += 1;
        if outcome.rounds.is_multiple_of(1024) {
            sim.nodes.check();
        }
    }
    outcome.stops = sim.stops;
    outcome
}

/// What a restart does to a job: much to one with little left.
fn harm(at: &State) -> u64 {
    (RESTART_MS << 20) / at.left_ms
}

struct Sim<'a> {
    trace: &'a Trace,
    now_ms: u64,
    active: BTreeMap<usize, State>,
    nodes: Nodes,
    stops: u32,
}

impl Sim<'_> {
    /// Lets time pass, no further than to the first end; returns who ended.
    fn advance(&mut self, now_ms: u64) -> Vec<usize> {
        let passed = now_ms - self.now_ms;
        self.now_ms = now_ms;
        let mut ended = Vec::new();
        for at in self.active.values_mut().filter(|at| 0 < self.nodes.held(at.job)) {
            at.left_ms -= passed;
            if at.left_ms == 0 {
                ended.push(at.job);
            }
        }
        for job in &ended {
            self.nodes.release(*job);
            self.active.remove(job);
        }
        ended
    }

    fn round(&mut self) {
        let all: Vec<usize> = self.active.keys().copied().collect();
        let wanted: u32 = all.iter().map(|job| self.trace.jobs[*job].devices).sum();
        // Everybody fits: there is nothing to decide.
        let chosen = if wanted <= self.trace.pool * PER_NODE {
            all
        } else {
            self.choose(&all, self.trace.pool * PER_NODE)
        };
        let stopped: Vec<usize> = self
            .active
            .keys()
            .copied()
            .filter(|job| 0 < self.nodes.held(*job) && !chosen.contains(job))
            .collect();
        for job in stopped {
            self.stop(job);
        }
        let failed = self.start(chosen);
        // Devices that a gang could not use, as they are scattered, are for others.
        if !failed.is_empty() && 0 < self.nodes.free() {
            let others: Vec<usize> = self
                .active
                .keys()
                .copied()
                .filter(|job| self.nodes.held(*job) == 0 && !failed.contains(job))
                .collect();
            for job in self.choose(&others, self.nodes.free()) {
                if self.nodes.place(job, self.trace.jobs[job].devices) {
                    self.begin(job);
                }
            }
        }
    }

    fn choose(&self, jobs: &[usize], devices: u32) -> Vec<usize> {
        let of: Vec<Job> = jobs.iter().map(|job| self.job(&self.active[job])).collect();
        let chosen = plan(&[Class { devices }], &of, Goal::Stream);
        jobs.iter().zip(chosen).filter_map(|(job, mode)| mode.map(|_| *job)).collect()
    }

    fn job(&self, at: &State) -> Job {
        let job = &self.trace.jobs[at.job];
        let runs = 0 < self.nodes.held(at.job);
        Job {
            id: at.job as u64,
            modes: vec![Mode { class: 0, devices: job.devices, left_ms: at.left_ms }],
            weight_permille: 1000,
            waited_ms: self.now_ms - (job.arrival_s * 1000.0) as u64,
            due_in_ms: at.due_ms.map(|due| due - self.now_ms as i64),
            current: runs.then_some(0),
            restart_ms: if at.begun { RESTART_MS } else { 0 },
        }
    }

    fn stop(&mut self, job: usize) {
        self.nodes.release(job);
        self.stops += 1;
    }

    fn begin(&mut self, job: usize) {
        let at = self.active.get_mut(&job).expect("it is there");
        at.left_ms += if at.begun { RESTART_MS } else { 0 };
        at.begun = true;
    }

    /// Starts those of them that do not run, the largest first; smaller ones make room. Returns who did not fit.
    fn start(&mut self, chosen: Vec<usize>) -> Vec<usize> {
        let devices = |job: &usize| self.trace.jobs[*job].devices;
        let mut waiting: Vec<(u32, usize)> =
            chosen.iter().filter(|job| self.nodes.held(**job) == 0).map(|job| (devices(job), *job)).collect();
        waiting.sort_by_key(|(devices, job)| (*devices, std::cmp::Reverse(*job)));
        let mut failed = Vec::new();
        while let Some((devices, job)) = waiting.pop() {
            let mut placed = self.nodes.place(job, devices);
            if !placed {
                let moved = self.nodes.clear_for(devices, &|job| harm(&self.active[&job]));
                placed = self.nodes.place(job, devices);
                for other in moved {
                    let held = self.trace.jobs[other].devices;
                    // Where it stood, if that did not help.
                    if !placed && self.nodes.place(other, held) {
                        continue;
                    }
                    self.stops += 1;
                    let at = waiting.partition_point(|at| at.0 <= held);
                    waiting.insert(at, (held, other));
                }
            }
            if placed {
                self.begin(job);
            } else {
                failed.push(job);
            }
        }
        failed
    }
}
