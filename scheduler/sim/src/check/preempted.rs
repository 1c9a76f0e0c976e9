//! Who gives way to whom.

use aquifer_core::jobs::{Job, Phase};
use aquifer_core::*;

use crate::Sim;

impl Sim {
    /// A victim has a lower priority, or its queue holds more than its guarantee, also without it.
    pub(super) fn check_preempted(&self, victim: JobId, by: JobId) {
        let cluster = self.cluster.as_ref().expect("a scheduler");
        let job = |id| cluster.jobs().get(id).expect("a job");
        let (victim, by) = (job(victim), job(by));
        if by.phase == Phase::Active {
            return self.check_given(victim, by);
        }
        assert!(
            matches!(by.phase, Phase::Pending(_)),
            "{} gives way to {}, which waits not",
            victim.id,
            by.id
        );
        if victim.spec.queue == by.spec.queue {
            let (less, more) = (victim.spec.priority, by.spec.priority);
            assert!(less < more, "{} gives way to {} of no higher priority", victim.id, by.id);
            return;
        }
        let queues = cluster.queues();
        let within = |job: &Job, queue: &Queue| queues.is_within(&job.spec.queue, &queue.name);
        let reclaims = |queue: &Queue| 0 < queue.guaranteed_milli && !within(victim, queue);
        let guaranteed = queues.line(&by.spec.queue).any(reclaims);
        assert!(guaranteed, "{} gives way to {}, which is guaranteed nothing", victim.id, by.id);
        for queue in queues.line(&victim.spec.queue).filter(|queue| !within(by, queue)) {
            let promised = cluster.jobs().preemptors().any(|(job, _)| within(job, queue));
            let stopping = cluster.jobs().stopping().filter(|job| within(job, queue));
            let leaves = |job: &Job| job.leaving().map(|at| job.ranks[at as usize].charge_milli).sum::<u64>();
            let left = queues.held_milli(&queue.name) - stopping.map(leaves).sum::<u64>();
            let is_left = promised || queue.guaranteed_milli <= left;
            assert!(is_left, "{} is left {left} of its guarantee", queue.name);
        }
    }

    /// What gives up ranks for a service that runs is a training whose others run on, and no better than it.
    fn check_given(&self, victim: &Job, by: &Job) {
        let (id, to) = (victim.id, by.id);
        assert!(
            by.spec.promise().is_some() && self.policy.yield_to_services,
            "{id} gives way to {to}, which runs"
        );
        assert!(victim.spec.is_live() && !victim.spec.is_service(), "{id} stops for {to}, which runs");
        let is_own = victim.spec.queue == by.spec.queue;
        assert!(!is_own || victim.spec.priority <= by.spec.priority, "{id} is better than {to}");
        let queues = self.cluster.as_ref().expect("a scheduler").queues();
        let is_due = queues.line(&by.spec.queue).any(|queue| 0 < queue.guaranteed_milli);
        assert!(is_own || is_due, "{to} takes of {id}, and is guaranteed nothing");
    }
}
