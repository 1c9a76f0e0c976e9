//! Work that is counted in steps, and what is told of it.

use aquifer_core::*;

use super::{Pending, Sim};

/// Between two looks at how far a worker is.
pub(super) const PROGRESS_MS: u64 = 10_000;

/// Work that is counted in steps, and goes on after a stop where it was, but for what a kill or a crash loses.
#[derive(Clone, Debug)]
pub struct WorkPace {
    /// Steps in all: when they are done, it exits, whatever `run_ms` says.
    pub total_steps: u64,
    /// Thousandths of a step a second, by the model of its devices; 1,000 on others. It tells as many tokens.
    pub rates_milli: Vec<(Name, u64)>,
}

/// A worker that counts its steps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counting {
    pub since: Time,
    pub first: u64,
    pub rate_milli: u64,
    pub total: u64,
}

impl Counting {
    fn step(&self, now: Time) -> u64 {
        (self.first + now.since(self.since) * self.rate_milli / 1_000_000).min(self.total)
    }
}

impl Sim {
    pub(super) fn counting_of(
        &self,
        machine: usize,
        job: JobId,
        launch: &Launch,
        pace: &WorkPace,
    ) -> Counting {
        let device = launch.allocation.devices.first().map(|index| usize::from(*index));
        let device = device.and_then(|index| self.machines[machine].whole.devices.get(index));
        let of_model = |(model, _): &&(Name, u64)| device.is_some_and(|device| device.class.model == *model);
        let rate_milli = pace.rates_milli.iter().find(of_model).map_or(1000, |(_, rate)| *rate).max(1);
        let first = self.saved_steps.get(&job).copied().unwrap_or(0).min(pace.total_steps);
        Counting { since: self.now, first, rate_milli, total: pace.total_steps }
    }

    /// The agent of a machine reads how far a worker is.
    pub(super) fn on_progress(&mut self, machine: usize, worker: WorkerId) {
        let now = self.now;
        let Some(counting) = self.counting.get(&worker).copied() else { return };
        let it = &mut self.machines[machine];
        if it.processes.get(&worker).is_none_or(|process| !process.alive() || process.stopped) {
            return;
        }
        let (own, incarnation) = (it.clock(now), it.incarnation);
        let (step, total_steps) = (counting.step(now), counting.total);
        if let Some(agent) = &mut it.agent {
            agent.on_progress(
                own,
                worker,
                Progress { step, total_steps, rate_milli: counting.rate_milli, spent: None },
            );
            self.wake(machine);
        }
        self.push(Time(now.0 + PROGRESS_MS), Pending::Progress { machine, incarnation, worker });
    }

    /// What a worker has done so far is on a disk that all machines see.
    pub(super) fn save_steps(&mut self, worker: WorkerId) {
        if let Some(counting) = self.counting.get(&worker) {
            self.saved_steps.insert(worker.job, counting.step(self.now));
        }
    }
}
