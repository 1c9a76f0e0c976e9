//! Services that run with fewer replicas than they need: trainings give up for them what they can do without.
//!
//! The rest is as for a job that waits: what is given up is kept for the service until all of it is there, and then the
//! service grows into it before anybody else is placed.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::search::Search;
use super::{Part, Preemption, Round, Victim, give_to, guards, may_reclaim, spare_milli, takes_within_limit};
use crate::cluster::Cluster;
use crate::event::Queue;
use crate::jobs::{Job, Phase};
use crate::plan::fit::Free;
use crate::plan::{Growth, Order, Plan};
use crate::types::*;

/// Services for which ranks are sought in one round, at most.
const MAX_SERVICES: usize = 8;

/// Whether a running job may be asked to give up ranks for a service: a training whose others run on.
pub fn may_give(job: &Job) -> bool {
    let is_whole = job.ranks.iter().all(|rank| rank.worker != RankState::Gone);
    is_whole
        && job.phase == Phase::Active
        && job.spec.is_live()
        && !job.spec.is_service()
        && job.spec.min_ranks() < job.ranks.len() as u32
}

/// Whether a service may take so much of a job, in thousandths of a device: of one of its queue that has no higher priority;
/// of another queue, other than a service, what is guaranteed to its own.
///
/// * `held`: what a queue will hold.
pub fn may_claim(
    cluster: &Cluster,
    service: &Job,
    giver: &Job,
    milli: u64,
    held: impl Fn(&Queue) -> u64,
) -> bool {
    if giver.spec.queue == service.spec.queue {
        return giver.spec.priority <= service.spec.priority;
    }
    let is_due = |by: &&Queue| {
        0 < by.guaranteed_milli
            && held(by) + milli <= by.guaranteed_milli
            && may_reclaim(cluster, service, by, &giver.spec.queue)
    };
    cluster.policy().order != Order::Priority
        && cluster.queues().line(&service.spec.queue).any(|by| is_due(&by))
        && guards(cluster, service, &giver.spec.queue).all(|queue| milli <= spare_milli(cluster, queue))
}

/// Services that scale themselves and need more replicas than they have, those of the highest priority first.
fn needy<'a>(cluster: &'a Cluster, plan: &Plan) -> Vec<&'a Job> {
    let is_due = |job: &&Job| {
        let is_whole = job.ranks.iter().all(|rank| rank.worker != RankState::Gone);
        is_whole
            && job.spec.promise().is_some()
            && cluster.jobs().victims_of(job.id).next().is_none()
            && plan.growths.iter().all(|growth| growth.job != job.id)
            && plan.preemptions.iter().flat_map(|it| &it.victims).all(|victim| victim.job != job.id)
    };
    let mut needy: Vec<&Job> = cluster.jobs().small().filter(is_due).collect();
    needy.sort_by_key(|job| (Reverse(job.spec.priority), cluster.jobs().turn(job)));
    needy.truncate(MAX_SERVICES);
    needy
}

/// Whether what was given up since then for a job that runs is for it as it runs now.
pub fn may_be_given_more(job: &Job, since: Time) -> bool {
    // While it waited, others may have given way to one that has started elsewhere.
    job.phase == Phase::Active && job.began <= Some(since) && job.spec.promise().is_some()
}

impl Round {
    /// Lets services grow into what was given up for them, and keeps it while not all of it is there.
    pub fn keep_claims(&mut self, free: &mut Free) -> Vec<Growth> {
        let (jobs, mut growths) = (free.cluster.jobs(), Vec::new());
        for (since, _, id) in self.due(free, may_be_given_more) {
            let service = jobs.get(id).expect("a job that runs");
            let victims: Vec<&Job> = jobs.victims_of(id).collect();
            self.withdraw(free, id);
            match victims.is_empty() {
                true => free.promises.close(id),
                false => free.promises.enter(id),
            }
            let mut search = Search::new(free, self);
            victims.iter().for_each(|victim| search.give(victim));
            let ranks = search.find_more(service, &|_| true);
            victims.iter().for_each(|victim| search.take_back(victim));
            if ranks.is_empty() {
                continue; // It needs no more by now.
            }
            if takes_within_limit(free, service, &ranks) {
                give_to(&mut self.started, &ranks);
                self.seen.1 += 1;
                self.grows = true;
                growths.push(Growth { job: id, more: ranks });
            } else if !victims.is_empty() {
                let victims: Vec<Part> = victims.into_iter().map(Part::of).collect();
                self.promise(free, (service, since), &victims, ranks);
            }
        }
        growths
    }

    /// Seeks ranks that trainings can do without for services that need more replicas.
    pub fn claim<'a>(&mut self, free: &mut Free<'a>, plan: &Plan) -> Vec<Preemption> {
        let cluster: &'a Cluster = free.cluster;
        let (policy, mut claims) = (cluster.policy(), Vec::new());
        if !policy.preemption || !policy.yield_to_services {
            return claims;
        }
        let needy = needy(cluster, plan);
        if needy.is_empty() {
            return claims;
        }
        self.catch_up(&plan.starts, &plan.growths);
        let growing = plan.growths.iter().map(|growth| growth.job);
        let giving = plan.preemptions.iter().flat_map(|it| &it.victims).map(|victim| victim.job);
        let mut busy: BTreeSet<JobId> = growing.chain(giving).collect();
        for service in needy {
            let mut search = Search::new(free, self);
            let Some((victims, ranks)) = search.claim(service, &busy) else { continue };
            self.promise(free, (service, cluster.now()), &victims, ranks);
            busy.extend(victims.iter().map(|victim| victim.job.id));
            let victim = |victim: Part| Victim {
                job: victim.job.id,
                lost_device_ms: victim.lost_device_ms(cluster),
                stays: victim.stays,
            };
            claims.push(Preemption { job: service.id, victims: victims.into_iter().map(victim).collect() });
        }
        claims
    }
}

/// Whether another round may find what this one did not: somebody has started or grown who could give something up.
pub fn may_help(cluster: &Cluster, plan: &Plan) -> bool {
    let is_news = !plan.starts.is_empty() || !plan.growths.is_empty();
    is_news
        && cluster.policy().yield_to_services
        && cluster.jobs().small().any(|job| job.spec.promise().is_some())
}
