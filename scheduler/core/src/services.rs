//! Services that scale themselves: from what their replicas tell of their load to how many they are to have.
//!
//! Soft state, never stored: after a restart replicas tell again, and a service gives nothing up before its patience is
//! over. What is decided is durable, as the job's [`Scale`]: one to no ranks is a service that sleeps. It holds nothing and
//! waits like any other job, but for no room: for a request, of which a gateway tells ([`Cluster::demand`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::autoscale::{Decision, Fleet, Load, Promise, Scaler, Target, wake};
use crate::cluster::Cluster;
use crate::effect::{Answer, Note, Refusal};
use crate::event::ReplicaLoad;
use crate::explain::serving_choice;
use crate::jobs::*;
use crate::serving::{Learned, Offer, Work};
use crate::types::*;

/// Between two looks at a service of which nothing is told: its needs fall with time.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// How fast requests come is counted over so long.
const RATE_OVER: Duration = Duration::from_secs(30);

/// Services that scale themselves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Services {
    known: BTreeMap<JobId, Known>,
    /// When each is looked at next.
    due: BTreeSet<(Time, JobId)>,
    /// What replicas told of their work, for as long as the service has not ended.
    learned: BTreeMap<JobId, Learned>,
}

#[derive(Clone, Debug)]
struct Known {
    /// By the number of the worker, and when it was told.
    loads: BTreeMap<u32, (ReplicaLoad, Time)>,
    scaler: Scaler,
    /// Requests that were begun since then.
    came: (Time, u64),
    /// As fast as they were begun before, in requests in a billion seconds.
    rate: u64,
    due: Time,
    /// When a request was last known to be there that no replica tells of; at first, when replicas began to tell.
    asked: Time,
}

impl Known {
    /// So many requests more were begun.
    fn count(&mut self, now: Time, requests: u64) {
        let (since, before) = self.came;
        let (sum, ms) = (before.saturating_add(requests), now.since(since));
        self.came.1 = sum;
        if RATE_OVER.as_millis() <= u128::from(ms) {
            let rate = u128::from(sum) * 1_000_000_000_000 / u128::from(ms);
            (self.came, self.rate) = ((now, 0), rate.min(u64::MAX.into()) as u64);
        }
    }
}

impl Services {
    pub fn next(&self) -> Option<Time> {
        self.due.first().map(|(at, _)| *at)
    }

    /// A service has ended.
    pub fn unlearn(&mut self, job: JobId) {
        self.learned.remove(&job);
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
        let class = job.ranks.iter().find(|rank| rank.rank == worker.rank);
        let class = class.and_then(|rank| self.nodes.get(rank.node).class_of(rank)).cloned();
        let new = || Known {
            loads: BTreeMap::new(),
            scaler: Scaler::new(now, replicas),
            came: (now, 0),
            rate: 0,
            due: now,
            asked: now,
        };
        let known = self.services.known.entry(id).or_insert_with(new);
        let before = known.loads.insert(worker.rank, (load, now));
        let done = load.work.since(&before.map_or(Work::default(), |(before, _)| before.work));
        // The first word of a replica may be of hours.
        known.count(now, before.map_or(0, |_| done.requests));
        if let Some(class) = class.filter(|_| done != Work::default()) {
            self.services.learned.entry(id).or_default().add(&class, &done);
        }
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
        let (role, replicas) = (&job.spec.roles[at], job.ranks_of(at));
        let target = target(role, promise);
        let (offers, next) = self.replica_offers(job).expect("a promise");
        let known = self.services.known.get_mut(&id).expect("it told of a load");
        let ready = replicas.iter().filter(|rank| rank.worker == RankState::Running);
        let ready: BTreeSet<u32> = ready.map(|rank| rank.rank).collect();
        known.loads.retain(|rank, _| ready.contains(rank));
        let (rates, fleet) = fleet(replicas, &offers, next, &ready);
        let rate = |rank: &u32| rates.get(rank).copied().unwrap_or(1);
        let mut load = together(ready.len() as u32, &known.loads, rate);
        load.last_request = load.last_request.max(Some(known.asked));
        // Before anybody told, what a replica can serve is a guess.
        let is_learned = offers.iter().flatten().any(|offer| offer.is_learned);
        load.rate = if is_learned { known.rate } else { 0 };
        // One that may sleep before is looked at then.
        let idle = load.last_request.map(|last| last + target.idle).filter(|at| now < *at);
        self.services.due.remove(&(known.due, id));
        known.due = idle.map_or(now + LOOK_EVERY, |at| at.min(now + LOOK_EVERY));
        self.services.due.insert((known.due, id));
        let Decision { replicas, sign } = known.scaler.decide(now, &target, &load, &fleet);
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

    /// What replicas of a service told of their work; `None`: none has.
    pub(crate) fn learned(&self, id: JobId) -> Option<&Learned> {
        self.services.learned.get(&id)
    }

    /// What each class of the pool that it accepts offers a service that scales itself, each class once; of any other job
    /// nothing.
    pub fn class_offers(&self, job: &Job) -> Vec<(Arc<DeviceClass>, Offer)> {
        let offers = self.offers_by_number(job);
        offers.into_iter().map(|(number, offer)| (self.room().class(number).clone(), offer)).collect()
    }

    fn offers_by_number(&self, job: &Job) -> BTreeMap<u16, Offer> {
        let (room, mut offers) = (self.room(), BTreeMap::new());
        let Some((at, _)) = job.spec.promise() else { return offers };
        let role = &job.spec.roles[at];
        for want in &role.request.devices {
            for (class, offer) in room.offers(self, job, role, want).into_iter().flatten() {
                // Alternatives are in order of preference.
                offers.entry(class).or_insert(offer);
            }
        }
        offers
    }

    /// What the replicas of a service that scales itself offer on the classes that they are on, by their places among the
    /// ranks of the role, and what one more would, on the best class of which anything is free. `O(replicas + classes)`.
    pub(crate) fn replica_offers(&self, job: &Job) -> Option<(Vec<Option<Offer>>, Option<Offer>)> {
        let (at, _) = job.spec.promise()?;
        let (room, offers) = (self.room(), self.offers_by_number(job));
        let class = |rank: &Allocation| room.number_of(self.nodes.get(rank.node).class_of(rank)?);
        let next = offers.iter().min_by_key(|(class, offer)| (room.free_of(**class) == 0, offer.rank()));
        let next = next.map(|(_, offer)| *offer);
        Some((job.ranks_of(at).iter().map(|rank| offers.get(&class(rank)?).copied()).collect(), next))
    }

    /// Tells on which classes a service has got replicas, if it has a choice.
    pub(crate) fn tell_classes(&mut self, id: JobId) {
        let job = self.jobs.get(id).expect("a job with ranks");
        if let Some(choice) = serving_choice(self, job) {
            self.note(Note::Serves { job: id, choice });
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

/// What the replicas of a service can do, by the numbers of their workers, and together. The dearest are given up first.
///
/// * `offers`: of the replicas, and of one more.
/// * `ready`: the numbers of those that answer.
fn fleet(
    replicas: &[Allocation],
    offers: &[Option<Offer>],
    next: Option<Offer>,
    ready: &BTreeSet<u32>,
) -> (BTreeMap<u32, u64>, Fleet) {
    let rate = |offer: &Option<Offer>| offer.or(next).map_or(1, |offer| offer.rate);
    let rates: BTreeMap<u32, u64> =
        replicas.iter().zip(offers).map(|(it, offer)| (it.rank, rate(offer))).collect();
    let mut kept: Vec<&Option<Offer>> = offers.iter().collect();
    kept.sort_by_key(|offer| offer.map(|offer| offer.rank()));
    let answer = || ready.iter().filter_map(|rank| rates.get(rank)).copied().map(u128::from);
    let next = next.map_or(0, |offer| offer.rate);
    let mean = answer().sum::<u128>().checked_div(answer().count() as u128).map_or(next, |mean| mean as u64);
    let has = kept.into_iter().map(rate).collect();
    (rates, Fleet { mean, has, next })
}

/// What replicas tell, as one load: requests in all, and the mean of their times, where each counts for what it serves.
///
/// * `rate`: what a replica can serve, by the number of its worker.
fn together(ready: u32, loads: &BTreeMap<u32, (ReplicaLoad, Time)>, rate: impl Fn(&u32) -> u64) -> Load {
    let mut all = Load { ready, ..Load::default() };
    for (load, at) in loads.values() {
        all.running = all.running.saturating_add(load.running);
        all.waiting = all.waiting.saturating_add(load.waiting);
        all.last_request = all.last_request.max(load.idle_ms.map(|idle| Time(at.0.saturating_sub(idle))));
    }
    let mean = |of: fn(&ReplicaLoad) -> Option<u64>| {
        let told = loads
            .iter()
            .filter_map(|(rank, (load, _))| Some((u128::from(rate(rank)), u128::from(of(load)?))));
        let (sum, weights) = told.fold((0u128, 0), |(sum, weights), (weight, ms)| {
            (weight.saturating_mul(ms).saturating_add(sum), weights + weight)
        });
        sum.checked_div(weights).map(|mean| mean.min(u64::MAX.into()) as u64)
    };
    (all.ttft_ms, all.tpot_ms) = (mean(|load| load.ttft_ms), mean(|load| load.tpot_ms));
    all
}

impl Program {
    /// Of a value of the model that it serves, as it keeps it.
    pub(crate) fn value_bytes(&self) -> u64 {
        match self {
            Program::Serve(options) if &*options.precision == "f32" => 4,
            Program::Serve(options) if &*options.precision == "int8" => 1,
            _ => 2,
        }
    }
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

    /// Whether it waits for resources, now or after a pause; one that sleeps waits for a request.
    pub(crate) fn wants_room(&self) -> bool {
        matches!(self.phase, Phase::Pending(_)) && !self.is_to_sleep()
    }
}
