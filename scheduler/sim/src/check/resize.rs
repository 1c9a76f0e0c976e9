//! Running jobs that go on with other ranks, against what that may cost others.

use aquifer_core::jobs::{Job, Phase, Then};
use aquifer_core::nodes::Node;
use aquifer_core::plan::{Free, fits};
use aquifer_core::*;

use crate::Sim;

impl Sim {
    /// A job changes places only where jobs may move, with one of another class that does the same, on whole devices that
    /// both accept, and not again before its pause is over.
    pub(super) fn check_exchanged(&self, id: JobId, with: JobId) {
        let cluster = self.cluster.as_ref().expect("a scheduler");
        let policy = cluster.policy();
        assert!(policy.preemption && !policy.rounds.is_zero(), "{id} moves, although none may");
        let [job, other] = [id, with].map(|id| cluster.jobs().get(id).expect("a job that moves"));
        let since = self.moved.get(&id).copied().max(job.placed).expect("it ran");
        assert!(
            since + policy.rounds <= self.now && !job.spec.is_service(),
            "{id} moves too soon, or is a service"
        );
        assert_eq!(job.phase, Phase::Stopping(Then::Requeue), "{id}");
        let class = |job: &Job| {
            let rank = &job.ranks[0];
            cluster.nodes().get(rank.node).inventory.devices[usize::from(rank.devices[0])].class.clone()
        };
        let (from, to) = (class(job), class(other));
        let accepts = |want: &DeviceRequest| want.accepts(&to) && want.slice.is_none();
        assert!(from != to && job.spec.roles[0].request.devices.iter().any(accepts), "{id} to {to:?}");
    }

    /// A job moves only where that is allowed, not again before its pause is over, to devices that it accepts, of another
    /// class, and where that keeps nobody waiting; or to others of its class, where one that waits fits then.
    ///
    /// * `by`: the one that waits.
    pub(super) fn check_moved(&self, id: JobId, by: Option<JobId>) {
        let cluster = self.cluster.as_ref().expect("a scheduler");
        let job = cluster.jobs().get(id).expect("a job that moves");
        let policy = cluster.policy();
        assert!(policy.preemption && !policy.rounds.is_zero(), "{id} moves, although none may");
        let since = self.moved.get(&id).copied().max(job.placed).expect("it runs");
        assert!(
            since + policy.rounds <= self.now && !job.spec.is_service(),
            "{id} moves too soon, or is a service"
        );
        let role = &job.spec.roles[0];
        let class = |rank: &Allocation| {
            let devices = &cluster.nodes().get(rank.node).inventory.devices;
            devices[usize::from(rank.devices[0])].class.clone()
        };
        let ranks = job.in_attempt().len();
        assert_eq!(job.ranks.len(), 2 * ranks, "{id} moves as a whole gang");
        let (from, to) = (class(&job.ranks[0]), class(&job.ranks[ranks]));
        if let Some(by) = by {
            assert!(from == to, "{id} moves to {to:?} to make room");
            self.check_within_limits(job);
            return self.check_room_for(by);
        }
        assert!(from != to && role.request.devices.iter().any(|want| want.accepts(&to)), "{id} to {to:?}");
        self.check_within_limits(job);
        self.check_robs_nobody(id, ranks);
        // Nor does it take what a gang that waits may still need.
        let could = |request: &Request, node: &Node| {
            let has = |want: &DeviceRequest| {
                // One that takes no work is of no use to it, whether it is broken or cordoned.
                let fit = |(device, index): &(&Device, u16)| {
                    node.device_takes_work(*index) && device.class == to && want.accepts(&to)
                };
                let is_apart = |least| want.slice.is_none() || want.isolation <= least;
                !want.one_island
                    && node.inventory.isolation_for(want).is_none_or(is_apart)
                    && usize::from(want.count)
                        <= node.inventory.devices.iter().zip(0u16..).filter(fit).count()
            };
            request.cpus_milli <= node.inventory.cpus_milli
                && request.memory_bytes <= node.inventory.memory_bytes
                && (request.image.is_none() || !node.inventory.engine.is_empty())
                && request.labels.iter().all(|(key, value)| node.inventory.labels.get(key) == Some(value))
                && request.devices.iter().any(has)
        };
        for rank in &job.ranks[ranks..] {
            let node = cluster.nodes().get(rank.node);
            for waits in cluster.jobs().ready().values().flat_map(|shapes| shapes.values()).flatten() {
                let waits = cluster.jobs().get(waits.1).expect("a ready job");
                let limited =
                    cluster.queues().line(&waits.spec.queue).any(|queue| queue.limit_milli.is_some());
                let could = waits.spec.roles.iter().any(|role| could(&role.request, node));
                assert!(limited || !could, "{id} moves to {}, which {} waits for", node.name, waits.id);
            }
        }
    }

    /// One for which others move waits, and fits when all of them have gone.
    fn check_room_for(&self, by: JobId) {
        let cluster = self.cluster.as_ref().expect("a scheduler");
        let by = cluster.jobs().get(by).expect("a job");
        assert!(matches!(by.phase, Phase::Pending(_)), "others move for {}, which waits not", by.id);
        let leaves = cluster.jobs().victims_of(by.id).flat_map(|victim| {
            let worker = |at: u32| {
                let rank = victim.ranks[at as usize].rank;
                WorkerId { job: victim.id, attempt: victim.attempt, rank }
            };
            victim.leaving().map(worker)
        });
        let mut free = Free::without_workers(cluster, leaves);
        assert!(fits(&mut free, by).is_ok(), "{} does not fit where others moved for it", by.id);
    }

    /// A job grows only where its new ranks keep nobody waiting: nobody that waits fits but for them. What others gave up for it
    /// is its own.
    pub(super) fn check_grown(&self, grown: JobId, from: u32, to: u32, was_given: bool) {
        let cluster = self.cluster.as_ref().expect("a scheduler");
        let job = cluster.jobs().get(grown).expect("a job");
        assert!(job.ranks.len() as u32 <= job.wanted_ranks(), "{grown} has more ranks than it wants");
        self.check_within_limits(job);
        if !was_given {
            self.check_robs_nobody(grown, (to - from) as usize);
        }
    }

    fn check_within_limits(&self, job: &Job) {
        let queues = self.cluster.as_ref().expect("a scheduler").queues();
        for queue in queues.line(&job.spec.queue) {
            let is_within = queue.limit_milli.is_none_or(|limit| queues.held_milli(&queue.name) <= limit);
            assert!(is_within, "{} goes beyond the limit of queue {}", job.id, queue.name);
        }
    }

    /// Nobody that waits fits but for ranks that a running job was given: so many, the latest.
    fn check_robs_nobody(&self, id: JobId, more: usize) {
        let cluster = self.cluster.as_ref().expect("a scheduler");
        let job = cluster.jobs().get(id).expect("a job");
        let mut numbers: Vec<u32> = job.ranks.iter().map(|rank| rank.rank).collect();
        numbers.sort_unstable_by_key(|rank| std::cmp::Reverse(*rank));
        let new = numbers.into_iter().take(more).map(|rank| WorkerId { job: id, attempt: job.attempt, rank });
        let (mut now, mut before) = (Free::of(cluster), Free::without_workers(cluster, new));
        let waiting = cluster.jobs().ready().values().flat_map(|shapes| shapes.values()).flatten();
        // What others are giving up for a job counts against limits before the job has it, whether that runs or waits.
        let claims = |(by, _)| {
            let by = cluster.jobs().get(by);
            by.is_some_and(|by| matches!(by.phase, Phase::Active | Phase::Pending(_)))
        };
        let claimed = cluster.jobs().holding().any(|giver| giver.gives_way_to().is_some_and(claims));
        let waiting = waiting.map(|(_, id)| cluster.jobs().get(*id).expect("a ready job"));
        for waits in waiting.chain(cluster.jobs().promised()) {
            let limited =
                || cluster.queues().line(&waits.spec.queue).any(|queue| queue.limit_milli.is_some());
            let is_robbed = fits(&mut before, waits).is_ok() && fits(&mut now, waits).is_err();
            assert!(
                !is_robbed || (claimed && limited()),
                "{id} goes into the room of {}, which waits",
                waits.id
            );
        }
    }
}
