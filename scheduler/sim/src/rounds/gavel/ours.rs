//! The core's rounds on Gavel's traces.

use aquifer_core::rounds::{Class, Goal, Job, Mode, plan};

use super::super::lengths::Lengths;
use super::sim::{Active, Policy, Run, View};

/// The core's function.
pub struct Ours {
    /// What it seeks.
    pub goal: Goal,
    /// Where lengths are not known: what earlier jobs were like.
    pub learned: Option<Lengths>,
    /// Seconds that a start or a move costs.
    pub restart_s: f64,
}

impl Policy for Ours {
    fn round(&mut self, view: &View) -> Vec<Run> {
        let classes = view.devices.map(|devices| Class { devices });
        let jobs: Vec<Job> = view.active.iter().map(|at| self.job(view, at)).collect();
        let planned = plan(&classes, &jobs, self.goal);
        let chosen = planned.iter().enumerate().filter_map(|(at, mode)| Some((at, (*mode)?)));
        chosen.map(|(at, mode)| Run { job: view.active[at].job, class: jobs[at].modes[mode].class }).collect()
    }
}

impl Ours {
    fn job(&self, view: &View, at: &Active) -> Job {
        let job = &view.trace[at.job];
        // Seconds on its fastest class.
        let known_s = at.steps_left as f64 / job.steps as f64 * job.fastest_s();
        let left_s = match &self.learned {
            Some(learned) => learned.left(job.fastest_s() - known_s),
            None => known_s,
        };
        let modes: Vec<Mode> = (0..3)
            .filter_map(|class| {
                let slower = job.alone_s(class)? / job.fastest_s();
                Some(Mode { class, devices: job.devices, left_ms: (left_s * slower * 1000.0).ceil() as u64 })
            })
            .collect();
        Job {
            id: at.job as u64,
            current: modes.iter().position(|mode| Some(mode.class) == at.class),
            modes,
            weight_permille: 1000,
            waited_ms: ((view.now_s - job.arrival_s) * 1000.0) as u64,
            due_in_ms: None,
            restart_ms: (self.restart_s * 1000.0) as u64,
        }
    }
}
