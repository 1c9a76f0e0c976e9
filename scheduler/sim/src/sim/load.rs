//! Replicas of services that scale themselves, what they tell of their load, and who asks them.

use std::time::Duration;

use aquifer_core::*;

use super::{Pending, Sim};

/// Between two words of a replica about its load.
const TOLD_EVERY: Duration = Duration::from_secs(2);
/// For so long a replica has as much to do.
const BEAT_MS: u64 = 5_000;
/// Requests at once, beat by beat.
const BEATS: [u32; 6] = [9, 1, 0, 0, 2, 0];
/// Between two times at which all that sleeps is asked.
const ASKED_EVERY: Duration = Duration::from_secs(20);

impl Sim {
    /// A replica begins to tell of its load, if anybody wants to know.
    pub(super) fn begin_load(&mut self, machine: usize, worker: WorkerId, launch: &Launch) {
        if launch.spec.promise().is_some_and(|(role, _)| role == launch.role) {
            let incarnation = self.machines[machine].incarnation;
            self.push(self.now + TOLD_EVERY, Pending::Load { machine, incarnation, worker });
        }
    }

    /// The agent of a machine reads what a replica has to do. Drawn from nothing, so that all else is as it was. Once all
    /// faults are healed, it always has: else its work would never be done.
    pub(super) fn on_load(&mut self, machine: usize, worker: WorkerId) {
        let now = self.now;
        let it = &self.machines[machine];
        if it.processes.get(&worker).is_none_or(|process| !process.alive() || process.stopped) {
            return;
        }
        if let Some((running, since)) = self.loads.get(&worker.job).copied() {
            let idle_ms = if running == 0 { now.since(since) } else { 0 };
            return self.tell_load(
                machine,
                worker,
                ReplicaLoad { running, idle_ms: Some(idle_ms), ..Default::default() },
            );
        }
        let beat = now.0 / BEAT_MS + worker.job.0;
        let at = |back: u64| BEATS[(beat.saturating_sub(back) % BEATS.len() as u64) as usize];
        let running = if self.heal_at <= now { 1 } else { at(0) };
        let idle_beats = (0..).find(|back| 0 < at(*back)).unwrap_or(0);
        let idle_ms = if running == 0 { (idle_beats - 1) * BEAT_MS + now.0 % BEAT_MS } else { 0 };
        self.tell_load(
            machine,
            worker,
            ReplicaLoad { running, idle_ms: Some(idle_ms), ..Default::default() },
        );
    }

    fn tell_load(&mut self, machine: usize, worker: WorkerId, load: ReplicaLoad) {
        if let Some(agent) = &mut self.machines[machine].agent {
            agent.on_load(worker, load);
            self.wake(machine);
        }
        let incarnation = self.machines[machine].incarnation;
        self.push(self.now + TOLD_EVERY, Pending::Load { machine, incarnation, worker });
    }

    /// From now on each replica of a job has so many requests at once.
    pub fn set_load(&mut self, job: JobId, running: u32) {
        self.loads.insert(job, (running, self.now));
    }

    /// From `at` on somebody asks all that sleeps, again and again.
    pub fn ask_sleepers(&mut self, at: Time) {
        self.push(at, Pending::AskSleepers);
    }

    pub(super) fn on_ask_sleepers(&mut self) {
        let sleepers = self.cluster.iter().flat_map(|cluster| cluster.jobs().services());
        let sleepers: Vec<JobId> = sleepers.filter(|job| job.sleeps()).map(|job| job.id).collect();
        for job in sleepers {
            self.client(self.now, Command::Demand { job, waiting: 3 }, self.now);
        }
        self.push(self.now + ASKED_EVERY, Pending::AskSleepers);
    }
}
