//! The rules of a pool.

use std::time::Duration;

use crate::plan::Order;

/// Rules of the pool. A value, not a plug-in: it is printed, compared and simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Who goes first.
    pub order: Order,
    /// Silence after which a node is lost. Agents are told less, see [`Policy::granted_lease`]. A scheduler that
    /// takes over from one with longer leases must wait for those: it takes the longer of the two.
    pub lease: Duration,
    /// Pause before a job that failed is placed again. Doubles with every failure, up to 64 times.
    pub backoff: Duration,
    /// After so long what a queue has used counts half. Zero: only what it holds counts.
    pub half_life: Duration,
    /// For so long a job waits to gain one in priority over those that are submitted then. The priority of a job
    /// is a bound on how long it can be passed by others of its queue where something becomes free: without preemption
    /// nothing starves.
    pub ageing: Duration,
    /// Whether running jobs are stopped for better ones that wait. See [`preempt`](crate::plan::preempt).
    pub preemption: bool,
    /// Whether trainings give up ranks that they can do without, while they run on, for services that need more replicas than
    /// there is room for; not without preemption. See [`claim`](crate::plan::preempt::claim).
    pub yield_to_services: bool,
    /// For so long a job runs before it stops to go on with more ranks; `None`: only if a user asks for it. See
    /// [`grow`](crate::plan::grow).
    pub grow_after: Option<Duration>,
    /// Between two rounds in which running jobs may move to other classes of devices; also for so long a job stays
    /// where it is. Zero, or without preemption: never. See [`migrate`](crate::plan::migrate).
    pub rounds: Duration,
    /// Ended jobs that are kept, at most, but for those that jobs which have not ended name to follow, and for
    /// `keep_at_least`. The others retire into the store's history.
    pub keep_ended: u64,
    /// For so long every ended job is kept: as long, a submission that is repeated with its client key is known.
    pub keep_at_least: Duration,
}

impl Policy {
    /// Leases of 10 s, a first pause of 1 s. Usage counts half after a day, so that a team which did without the
    /// pool for a day is served first on the next, and nobody pays for last month; an hour of waiting is worth one
    /// of priority. Preemption. Growth after 5 minutes: longer than a restart takes, with the warming up of caches. Rounds
    /// of 6 minutes: many times what a restart takes. 100,000 ended jobs, each for 10 minutes: that is for how long
    /// clients try again.
    pub fn new(order: Order) -> Policy {
        Policy {
            order,
            lease: Duration::from_secs(10),
            backoff: Duration::from_secs(1),
            half_life: Duration::from_secs(24 * 3600),
            ageing: Duration::from_secs(3600),
            preemption: true,
            yield_to_services: true,
            grow_after: Some(Duration::from_secs(300)),
            rounds: Duration::from_secs(360),
            keep_ended: 100_000,
            keep_at_least: Duration::from_secs(600),
        }
    }

    /// The lease that agents are told: shorter by a fifth, the time that remains to kill their workers
    /// before the scheduler takes the node for lost and places its jobs elsewhere.
    pub fn granted_lease(&self) -> Duration {
        self.lease * 4 / 5
    }
}
