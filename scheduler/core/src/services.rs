//! Services that scale themselves: from what their replicas tell of their load to how many they are to have.
//!
//! Soft state, never stored: after a restart replicas tell again, and a service gives nothing up before its patience is
//! over. What is decided is durable, as the job's [`Scale`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::autoscale::{Decision, Load, Promise, Scaler, Target};
use crate::cluster::Cluster;
use crate::effect::Note;
use crate::event::ReplicaLoad;
use crate::jobs::*;
use crate::types::*;

/// Between two looks at a service of which nothing is told: its needs fall with time.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// Services that scale themselves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Services {
    known: BTreeMap<JobId, Known>,
    /// When each is looked at next.
    due: BTreeSet<(Time, JobId)>,
}

#[derive(Clone, Debug)]
struct Known {
    /// By the number of the worker, and when it was told.
    loads: BTreeMap<u32, (ReplicaLoad, Time)>,
    scaler: Scaler,
    due: Time,
}

impl Services {
    pub fn next(&self) -> Option<Time> {
        self.due.first().map(|(at, _)| *at)
    }

    pub fn forget(&mut self, job: JobId) {
        if let Some(known) = self.known.remove(&job) {
            self.due.remove(&(known.due, job));
        }
    }
}

impl Cluster {
    /// A replica tells of its load.
    pub(crate) fn on_load(&mut self, now: Time, worker: WorkerId, load: ReplicaLoad) {
        let runs = |job: &&Job| job.attempt == worker.attempt && job.phase == Phase::Active;
        let Some(job) = self.jobs.get(worker.job).filter(runs) else { return };
        if job.spec.promise().is_none() {
            return;
        }
        let (id, replicas) = (job.id, job.wanted_ranks());
        let new = || Known { loads: BTreeMap::new(), scaler: Scaler::new(now, replicas), due: now };
        let known = self.services.known.entry(id).or_insert_with(new);
        let before = known.loads.insert(worker.rank, (load, now));
        if before.is_none_or(|(before, _)| before != load) {
            self.autoscale(now, id);
        }
    }

    pub(crate) fn ring_services(&mut self, now: Time) {
        while let Some((_, id)) = self.services.due.first().copied().filter(|(at, _)| *at <= now) {
            self.autoscale(now, id);
        }
    }

    /// Decides how many replicas a service is to have.
    fn autoscale(&mut self, now: Time, id: JobId) {
        let job = self.jobs.get(id).expect("a service");
        let (Some((role, promise)), Phase::Active) = (job.spec.promise(), &job.phase) else {
            return self.services.forget(id);
        };
        let known = self.services.known.get_mut(&id).expect("it told of a load");
        self.services.due.remove(&(known.due, id));
        known.due = now + LOOK_EVERY;
        self.services.due.insert((known.due, id));
        let ready: BTreeSet<u32> =
            job.ranks.iter().filter(|rank| rank.worker == RankState::Running).map(|rank| rank.rank).collect();
        known.loads.retain(|rank, _| ready.contains(rank));
        let target = Target {
            min: role.least(),
            max: role.ranks,
            concurrency: promise.concurrency,
            ttft_ms: promise.ttft_ms,
            tpot_ms: promise.tpot_ms,
            idle: Duration::ZERO,
        };
        let load = together(ready.len() as u32, known.loads.values());
        let Decision { replicas, sign } = known.scaler.decide(now, &target, &load);
        let from = job.wanted_ranks();
        if replicas != from {
            self.change_job(id, |job| job.scale = Some(Scale { ranks: Some(replicas), at: now }));
            self.note(Note::Autoscaled { job: id, from, to: replicas, sign });
            self.shrink_to_scale(now, id);
            self.plan_at(now);
        }
    }
}

/// What replicas tell, as one load: requests in all, and the times of the slowest of them.
fn together<'a>(ready: u32, loads: impl Iterator<Item = &'a (ReplicaLoad, Time)>) -> Load {
    let mut all = Load { ready, ..Load::default() };
    for (load, at) in loads {
        all.running = all.running.saturating_add(load.running);
        all.waiting = all.waiting.saturating_add(load.waiting);
        all.ttft_ms = all.ttft_ms.max(load.ttft_ms);
        all.tpot_ms = all.tpot_ms.max(load.tpot_ms);
        all.last_request = all.last_request.max(load.idle_ms.map(|idle| Time(at.0.saturating_sub(idle))));
    }
    all
}

impl ServeOptions {
    /// Name that clients ask for: the one that was given, else that of the model's directory.
    pub fn name(&self) -> &str {
        let directory = || self.model.rsplit('/').find(|part| !part.is_empty()).unwrap_or("model");
        if self.served_name.is_empty() { directory() } else { &self.served_name }
    }
}

impl JobSpec {
    /// What it serves, if it is a service, and the index of the role that does.
    pub fn served(&self) -> Option<(usize, &ServeOptions)> {
        self.roles.iter().enumerate().find_map(|(at, role)| match &role.program {
            Program::Serve(options) => Some((at, options)),
            Program::Command(_) | Program::Train(_) => None,
        })
    }

    /// What the service promises, and the role whose replicas follow from that, if it scales itself.
    pub fn promise(&self) -> Option<(&Role, &Promise)> {
        self.roles.iter().filter(|role| role.min_ranks.is_some()).find_map(|role| match &role.program {
            Program::Serve(options) => options.autoscale.as_ref().map(|promise| (role, promise)),
            Program::Command(_) | Program::Train(_) => None,
        })
    }
}
