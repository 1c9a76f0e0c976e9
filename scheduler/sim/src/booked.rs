//! What must hold where nodes are booked.

use aquifer_core::jobs::{Job, Phase};
use aquifer_core::*;

use crate::sim::Sim;

impl Sim {
    /// Whether the jobs of a reservation's users and queues are those of the specification.
    fn is_guest(&self, it: &Reservation, spec: &JobSpec) -> bool {
        let queues = self.cluster.as_ref().expect("a scheduler").queues();
        let mut above: Vec<&Name> = vec![&spec.queue];
        while let Some(parent) = queues.get(above[above.len() - 1]).and_then(|queue| queue.parent.as_ref()) {
            above.push(parent);
        }
        it.users.contains(&spec.user) || it.queues.iter().any(|queue| above.contains(&queue))
    }

    /// In its period, no job runs on the nodes of a reservation that it may not use, if anybody is stopped for others;
    /// and what is over or has begun is known to be.
    pub(crate) fn check_booked(&self) {
        let cluster = self.cluster.as_ref().expect("a scheduler");
        for it in cluster.reservations().iter() {
            assert!(cluster.now() < it.end, "reservation {} is not over in time", it.name);
            assert_eq!(it.begun, it.start <= cluster.now(), "whether reservation {} has begun", it.name);
            if !it.begun || !self.policy.preemption {
                continue;
            }
            let runs = |job: &&Job| job.phase == Phase::Active && !self.is_guest(it, &job.spec);
            for job in cluster.jobs().holding().filter(runs) {
                let on = job.ranks.iter().find(|rank| it.nodes.contains(&rank.node));
                assert!(on.is_none(), "{} runs on a node that {} has booked", job.id, it.name);
            }
        }
    }

    /// A job that was just placed runs where and while its reservation says, and is gone before that of others.
    pub(crate) fn check_placed_beside_bookings(&self, job: &Job) {
        // With one commit for many steps, what is booked may be something else by now.
        let Some(cluster) = self.cluster.as_ref().filter(|_| self.timing.commit_ms == (0, 0)) else { return };
        let own = job.spec.reservation.as_ref().and_then(|name| cluster.reservations().get(name));
        if let Some(own) = own {
            assert!(own.start <= cluster.now(), "{} starts before its reservation {}", job.id, own.name);
            let within = job.ranks.iter().all(|rank| own.nodes.contains(&rank.node));
            assert!(within, "{} is placed beside its reservation {}", job.id, own.name);
        }
        let gone = job.spec.time_limit_ms.map(|limit| cluster.now().0 + limit + job.spec.grace_ms);
        for it in cluster.reservations().iter().filter(|it| !self.is_guest(it, &job.spec)) {
            let on = job.ranks.iter().any(|rank| it.nodes.contains(&rank.node));
            let gone = gone.is_some_and(|gone| gone <= it.start.0);
            assert!(!on || gone, "{} may not be gone when {} begins", job.id, it.name);
        }
    }

    /// Whether the job, as it is stored, runs on nodes of a reservation of others or of its own.
    pub(crate) fn booked_sights(&self, note: &Note) -> Option<&'static str> {
        match note {
            Note::ReservationBegun { conflicts, .. } if !conflicts.is_empty() => {
                Some("reservation conflicts")
            }
            Note::Placed { job, .. }
                if self.store.job(*job).is_some_and(|job| job.spec.reservation.is_some()) =>
            {
                Some("placed for a reservation")
            }
            _ => None,
        }
    }
}
