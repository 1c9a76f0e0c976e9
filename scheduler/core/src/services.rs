//! Services that scale themselves: from what their replicas tell of their load to how many they are to have.
//!
//! Soft state, never stored: after a restart replicas tell again, and a service gives nothing up before its patience is
//! over. What is decided is durable, as the job's [`Scale`]: one to no ranks is a service that sleeps. It holds nothing and
//! waits like any other job, but for no room: for a request, of which a gateway tells ([`Cluster::demand`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::autoscale::{Decision, Load, Promise, Scaler, Target, wake};
use crate::cluster::Cluster;
use crate::effect::{Answer, Note, Refusal};
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
    /// When a request was last known to be there that no replica tells of; at first, when replicas began to tell.
    asked: Time,
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
        let Some((role, _)) = job.spec.promise() else { return };
        let (id, replicas) = (job.id, job.wanted(&job.spec.roles[role]));
        let new =
            || Known { loads: BTreeMap::new(), scaler: Scaler::new(now, replicas), due: now, asked: now };
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

    /// Requests wait for a service that no replica of it has. If it sleeps, it goes on.
    pub(crate) fn demand(&mut self, now: Time, id: JobId, waiting: u32) -> Result<Answer, Refusal> {
        let job = self.jobs.get(id).ok_or(Refusal::UnknownJob(id))?;
        if let Phase::Done(outcome) = &job.phase {
            return Err(Refusal::JobDone(id, outcome.clone()));
        }
        if job.spec.served().is_none() {
            return Err(Refusal::ServesNothing(id));
        }
        if let Some(known) = self.services.known.get_mut(&id) {
            known.asked = now;
        }
        if let (Some((role, promise)), true) = (job.spec.promise(), job.is_to_sleep()) {
            let role = &job.spec.roles[role];
            let Decision { replicas, sign } = wake(&target(role, promise), waiting);
            let to = replicas.max(role.least());
            self.change_job(id, |job| job.scale = Some(Scale { ranks: Some(to), at: now }));
            self.note(Note::Autoscaled { job: id, from: 0, to, sign });
            self.reopen(id);
            self.plan_at(now);
        }
        Ok(Answer::Done)
    }

    /// Decides how many replicas a service is to have.
    fn autoscale(&mut self, now: Time, id: JobId) {
        let job = self.jobs.get(id).expect("a service");
        let (Some((at, promise)), Phase::Active) = (job.spec.promise(), &job.phase) else {
            return self.services.forget(id);
        };
        let (role, ranks) = (&job.spec.roles[at], job.spec.ranks_of(at, job.ranks.len() as u32));
        let target = target(role, promise);
        let known = self.services.known.get_mut(&id).expect("it told of a load");
        let replicas = &job.ranks[ranks.start as usize..ranks.end as usize];
        let ready = replicas.iter().filter(|rank| rank.worker == RankState::Running);
        let ready: BTreeSet<u32> = ready.map(|rank| rank.rank).collect();
        known.loads.retain(|rank, _| ready.contains(rank));
        let mut load = together(ready.len() as u32, known.loads.values());
        load.last_request = load.last_request.max(Some(known.asked));
        // One that may sleep before is looked at then.
        let idle = load.last_request.map(|last| last + target.idle).filter(|at| now < *at);
        self.services.due.remove(&(known.due, id));
        known.due = idle.map_or(now + LOOK_EVERY, |at| at.min(now + LOOK_EVERY));
        self.services.due.insert((known.due, id));
        let Decision { replicas, sign } = known.scaler.decide(now, &target, &load);
        // One of which a worker has ended is about to end.
        let ends = |rank: &Allocation| rank.worker == RankState::Gone && rank.restart_at.is_none();
        let may_sleep = replicas == 0 && !job.ranks.iter().any(ends);
        let (from, to) = (job.wanted(role), if may_sleep { 0 } else { replicas.max(role.least()) });
        if to != from {
            self.change_job(id, |job| job.scale = Some(Scale { ranks: Some(to), at: now }));
            self.note(Note::Autoscaled { job: id, from, to, sign });
            if to == 0 {
                return self.lay_to_sleep(now, id);
            }
            self.shrink_to_scale(now, id);
            self.plan_at(now);
        }
    }

    /// A service gives back all that it holds, until somebody asks it.
    fn lay_to_sleep(&mut self, now: Time, id: JobId) {
        self.change_job(id, |job| {
            job.phase = Phase::Stopping(Then::Requeue);
            // Nothing is wrong with it, so it pauses for nothing when it goes on.
            job.last_failure = None;
        });
        self.reassign(id);
        self.seek_anew(now);
        self.end_if_stopped(now, id);
    }
}

/// What a role promises, and how far it may scale for it.
fn target(role: &Role, promise: &Promise) -> Target {
    let Promise { concurrency, ttft_ms, tpot_ms, sleep_after_ms } = *promise;
    let min = if sleep_after_ms.is_some() { 0 } else { role.least() };
    let idle = Duration::from_millis(sleep_after_ms.unwrap_or(0));
    Target { min, max: role.ranks, concurrency, ttft_ms, tpot_ms, idle }
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

    /// What the service promises, and the index of the role whose replicas follow from that, if it scales itself.
    pub fn promise(&self) -> Option<(usize, &Promise)> {
        self.roles.iter().enumerate().find_map(|(at, role)| match &role.program {
            Program::Serve(ServeOptions { autoscale: Some(promise), .. }) => {
                let scales = role.min_ranks.is_some() || promise.sleep_after_ms.is_some();
                scales.then_some((at, promise))
            }
            _ => None,
        })
    }
}

impl Job {
    /// Whether it is to hold nothing until somebody asks it.
    pub fn is_to_sleep(&self) -> bool {
        self.scale.is_some_and(|scale| scale.ranks == Some(0))
    }

    /// Whether it waits for a request alone.
    pub fn sleeps(&self) -> bool {
        self.is_to_sleep() && matches!(self.phase, Phase::Pending(_))
    }
}
