//! What must hold at every moment, whatever went wrong.

mod members;
mod preempted;
mod resize;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aquifer_core::explain::{Reason, Start, explain, reason};
use aquifer_core::history::Totals;
use aquifer_core::jobs::{Job, Outcome, Phase, Then, Why};
use aquifer_core::nodes::Node;
use aquifer_core::plan::{Free, free_for_all, plan};
use aquifer_core::*;

use crate::sim::{Line, Sim};

/// Of steps that changed something, every so many-th is followed by a restore from the store.
const RESTORE_EVERY: u64 = 16;
/// Of steps that changed nothing, every so many-th is checked as if it had.
const RECHECK_EVERY: u64 = 32;

impl Sim {
    /// After a step, and after its commit if that was at once.
    pub(crate) fn check_step(&mut self, changed: bool) {
        self.check_processes();
        if self.cluster.is_none() || (!changed && !self.steps.is_multiple_of(RECHECK_EVERY)) {
            return;
        }
        self.changed_steps += 1;
        let cluster = self.cluster.as_ref().expect("a scheduler");
        cluster.check();
        for node in cluster.nodes().iter().filter(|node| node.blame.is_some()) {
            let machine = self.machine(&node.name).expect("a node's machine");
            assert!(self.machines[machine].is_bad, "{} is blamed, and well", node.name);
        }
        self.check_deadlines();
        self.check_booked();
        if !self.is_committed() {
            return;
        }
        self.check_stored();
        if self.changed_steps.is_multiple_of(RESTORE_EVERY) {
            let restored = Cluster::restore(self.policy, self.term, self.store.records(), self.now);
            restored.check();
            assert_eq!(restored.records(), cluster.records(), "restored is not lived");
            for node in cluster.nodes().iter() {
                let (lived, again) = (cluster.assignment(node.id), restored.assignment(node.id));
                assert_eq!(lived.workers, again.workers, "the assignment of {}", node.name);
            }
            let again = plan(&mut Free::of(&restored), self.now);
            // With several roles, less room may be better room: such a job may wait for the next round.
            // One for which others stop may wait for them, even if it fits elsewhere by now.
            let one_role = |id: &JobId| {
                cluster.jobs().get(*id).is_some_and(|job| job.spec.roles.len() == 1)
                    && cluster.jobs().victims_of(*id).next().is_none()
            };
            // What is kept for others is soft state: a restored scheduler may keep other nodes, and place elsewhere.
            let mut free = free_for_all(cluster);
            let mut denied = |id: &JobId| {
                let job = cluster.jobs().get(*id).expect("a job that would start");
                reason(&mut free, job) != Reason::Next
            };
            let missed = again.starts.iter().map(|(id, _)| *id).find(|id| one_role(id) && !denied(id));
            assert!(
                missed.is_none() || self.is_round_due(),
                "no round was planned for {missed:?}, which fits"
            );
            if !self.is_round_due() {
                // Asked of the one that lives. Where room is kept, the next round may keep other room, and so find victims
                // that this one did not: that is waited for.
                let again = cluster.without_futile();
                let mut free = free_for_all(&again);
                let keeps = free.keeps_any();
                let again = plan(&mut free, self.now);
                let one_role = |id: &JobId| one_role(id) && !keeps && !free.keeps_any();
                let missed = again.preemptions.iter().map(|it| it.job).find(one_role);
                assert_eq!(missed, None, "no victims were sought for a job for which there are some");
            }
            self.check_explained();
        }
    }

    /// Nothing that was due is left undone.
    fn check_deadlines(&self) {
        let cluster = self.cluster.as_ref().expect("a scheduler");
        for job in cluster.jobs().holding().filter(|job| job.phase == Phase::Active) {
            let over = job.expected_end().is_some_and(|end| end <= cluster.now());
            assert!(!over, "{} runs beyond its time limit", job.id);
        }
        for node in cluster.nodes().iter() {
            let over = cluster.nodes().lease(node.id).is_some_and(|lease| lease.end <= cluster.now());
            assert!(!over, "the lease of {} is over, but it is not lost", node.name);
        }
    }

    /// Whether another round follows at once.
    fn is_round_due(&self) -> bool {
        let deadline = self.cluster.as_ref().and_then(|cluster| cluster.deadline());
        deadline.is_some_and(|at| at.0 <= self.now.0 + 1)
    }

    /// An explanation can be made of every job, and none says that a round will place it that was just held.
    fn check_explained(&self) {
        let cluster = self.cluster.as_ref().expect("a scheduler");
        let number = 1 + self.changed_steps % cluster.jobs().len().max(1);
        let Some(job) = cluster.jobs().get(JobId(number)) else { return };
        let explanation = explain(cluster, job);
        explanation.text(job.id, cluster.now());
        let missed = explanation.reason == Reason::Next && job.spec.roles.len() == 1 && !self.is_round_due();
        assert!(!missed, "{} would be placed in the next round, but none is planned", job.id);
        if let Start::By { at, after } = explanation.start {
            let after = cluster.jobs().get(after).expect("a job that holds resources");
            assert!(cluster.now() <= at && !after.ranks.is_empty(), "{} is to start in the past", job.id);
        }
    }

    /// The store holds exactly what the scheduler knows.
    fn check_stored(&self) {
        let cluster = self.cluster.as_ref().expect("a scheduler");
        assert!(self.store.reservations.values().eq(cluster.reservations().iter()), "stored reservations");
        let stored = self.store.tariff.as_deref().cloned().unwrap_or_default();
        assert_eq!(stored, *cluster.tariff(), "stored prices");
        let (kept, retired) = (self.store.jobs.len() as u64, self.store.ended.len() as u64);
        assert_eq!(kept + retired, cluster.jobs().len(), "jobs stored");
        let counted: u64 = self.store.retired.values().map(Totals::jobs).sum();
        assert_eq!(counted, retired, "jobs that have retired");
        for (stored, job) in self.store.jobs.values().zip(cluster.jobs().iter()) {
            assert!(same_job(stored, job), "{} is not stored: {stored:?} but {job:?}", job.id);
        }
        assert!(self.store.nodes.values().eq(cluster.nodes().iter()), "a node is not stored as it is");
        // The default queue is not stored before somebody changes it.
        for queue in cluster.queues().iter() {
            let stored = self.store.queues.get(&queue.name);
            assert!(
                stored == Some(queue) || (stored.is_none() && *queue == Queue::new("default".into())),
                "queue {} is not stored as it is",
                queue.name
            );
            let used = self.store.usages.get(&queue.name).copied().unwrap_or_default();
            assert_eq!(used, cluster.queues().usage(&queue.name), "the stored usage of queue {}", queue.name);
        }
    }

    pub(crate) fn check_restored(&self) {
        let cluster = self.cluster.as_ref().expect("a scheduler");
        cluster.check();
        self.check_stored();
        for client in &self.clients {
            if let Some(Ok(Answer::Submitted { first, count, .. })) = &client.answer {
                let last = JobId(first.0 + u64::from(*count) - 1);
                let is_there = cluster.jobs().get(last).is_some() || self.store.ended.contains_key(&last);
                assert!(is_there, "{last} was acknowledged and is lost");
            }
        }
    }

    /// What a step may want done.
    pub(crate) fn check_effects(&mut self, request: Option<u64>, effects: &[Effect]) {
        let mut replies = 0;
        let (mut told, mut moved): (Vec<NodeId>, Vec<(JobId, Option<JobId>)>) = (Vec::new(), Vec::new());
        let mut exchanged: Vec<(JobId, JobId)> = Vec::new();
        for effect in effects {
            match effect {
                Effect::Reply(id, _) => {
                    assert_eq!(Some(*id), request, "an answer to nobody");
                    replies += 1;
                }
                Effect::Assign { node, .. } | Effect::Renew { node, .. } | Effect::AskReport(node) => {
                    assert!(!told.contains(node), "{node:?} is told two things in one step");
                    told.push(*node);
                }
                Effect::Note(Note::Preempted { job, by, .. } | Note::Shrunk { job, by: Some(by), .. }) => {
                    self.check_preempted(*job, *by);
                    let by = self.cluster.as_ref().and_then(|cluster| cluster.jobs().get(*by));
                    self.claimants.extend(by.filter(|by| by.phase == Phase::Active).map(|by| by.id));
                }
                Effect::Note(Note::Grown { job, from, to }) => {
                    let was_given = self.claimants.contains(job);
                    self.check_grown(*job, *from, *to, was_given);
                }
                Effect::Note(Note::Moved { job, .. }) => moved.push((*job, None)),
                Effect::Note(Note::MadeRoom { job, by, .. }) => moved.push((*job, Some(*by))),
                Effect::Note(Note::Exchanged { job, with, sooner_ms, cost_ms, .. }) => {
                    assert!(cost_ms <= sooner_ms, "{job} gains too little by changing places");
                    exchanged.push((*job, *with));
                }
                Effect::Save(_) | Effect::Note(_) => (),
            }
        }
        for (job, by) in moved {
            self.check_moved(job, by);
            self.moved.insert(job, self.now);
        }
        for (job, with) in &exchanged {
            self.check_exchanged(*job, *with);
        }
        self.moved.extend(exchanged.into_iter().map(|(job, _)| (job, self.now)));
        assert_eq!(replies, usize::from(request.is_some()), "one answer to each request");
    }

    /// Whether a job, and all of its array, had retired when another was made of the same submission, and not too soon.
    pub(crate) fn is_forgotten(&self, was: JobId, is: JobId) -> bool {
        let (Some(first), Some(again)) = (self.store.ended.get(&was), self.store.job(is)) else {
            return false;
        };
        let count = first.spec.array.map_or(1, |range| range.count());
        let is_past = |job: &Arc<Job>| {
            job.ended.is_some_and(|ended| ended + self.policy.keep_at_least <= again.submitted)
        };
        (was.0..was.0 + count).all(|id| self.store.ended.get(&JobId(id)).is_some_and(is_past))
    }

    /// An answer, at the moment at which it leaves.
    pub(crate) fn check_answer(&self, id: u64, answer: &Result<Answer, Refusal>) {
        let Ok(Answer::Submitted { first, count, .. }) = answer else { return };
        for job in first.0..first.0 + u64::from(*count) {
            let is_stored = self.store.job(JobId(job)).is_some();
            assert!(is_stored, "job-{job} is acknowledged but not stored");
        }
        if let Command::Submit(spec) = &self.clients[id as usize].command {
            let job = self.store.job(*first).expect("it is stored");
            assert!(*job.spec == **spec, "request {id} was answered with {first}");
        }
    }

    /// A record that is about to be written, with those that follow it, against what really happened.
    pub(crate) fn check_record(&self, record: &Record, later: &[Record]) {
        let Record::Job(job) = record else { return };
        let earlier = self.store.jobs.get(&job.id);
        if job.phase == Phase::Done(Outcome::Succeeded) && earlier.is_none_or(|was| was.phase != job.phase) {
            let ended_well = |rank: &u32| {
                let end = self.ends.get(&WorkerId { job: job.id, attempt: job.attempt, rank: *rank });
                end.is_some_and(|end| end.exit == Some(Exit::Code(0)) && end.by_itself)
            };
            let ranks = job.last_nodes.len() as u32;
            // Where the others ran on, some may have failed or have been given up.
            let well = match job.spec.is_live() {
                true => (0..ranks).any(|rank| ended_well(&rank)),
                false => (0..ranks).all(|rank| ended_well(&rank)),
            };
            assert!(well, "{} succeeded, but its workers did not", job.id);
        }
        if let Some(was) = earlier {
            check_resized(was, job);
        }
        if earlier.map_or(0, |was| was.failures) < job.failures {
            self.check_failures(job);
        }
        if job.phase == Phase::Active && earlier.is_none_or(|was| was.attempt < job.attempt) {
            let holds = earlier.is_some_and(|was| matches!(was.phase, Phase::Stopping(Then::Resize(_))));
            self.check_placement(job, later, holds);
        }
    }

    /// A job is charged only with failures that are its own.
    fn check_failures(&self, job: &Job) {
        let of_job = |rank_0_of: u32| WorkerId { job: job.id, attempt: rank_0_of, rank: 0 };
        let ends = self.ends.range(of_job(1)..of_job(job.attempt + 1));
        // Where each may fail alone, each counts.
        let of_whom = |worker: &WorkerId| (worker.attempt, if job.spec.is_live() { worker.rank } else { 0 });
        let failed: BTreeSet<(u32, u32)> = ends
            .filter(|(_, end)| end.by_itself && end.exit.as_ref().is_some_and(|exit| *exit != Exit::Code(0)))
            .map(|(worker, _)| of_whom(worker))
            .collect();
        assert!(
            job.failures as usize <= failed.len(),
            "{} is charged with {} failures, but only these attempts and ranks failed: {failed:?}",
            job.id,
            job.failures
        );
    }

    /// A placement gives every rank what was asked for, from nodes that take work.
    ///
    /// * `holds`: it has held all that while its number of ranks was changed.
    fn check_placement(&self, job: &Job, later: &[Record], holds: bool) {
        let id = job.id;
        let world = job.ranks.len() as u32;
        let is_whole = job.spec.min_ranks() <= world && world <= job.spec.ranks();
        assert!(is_whole, "{id}: the gang of {world} ranks is whole");
        // With one commit for many steps, the limit may be another by now.
        if let Some(cluster) = self.cluster.as_ref().filter(|_| self.timing.commit_ms == (0, 0) && !holds) {
            for queue in cluster.queues().line(&job.spec.queue) {
                let held = cluster.queues().held_milli(&queue.name);
                let within = queue.limit_milli.is_none_or(|limit| held <= limit);
                assert!(within, "{id} takes queue {} above its limit", queue.name);
            }
        }
        self.check_placed_beside_bookings(job);
        // A later step of the same batch may have changed the node since.
        let node_of = |node: NodeId| -> Option<&Node> {
            let stored = self.store.nodes.get(&node)?;
            let live = self.cluster.as_ref()?.nodes().get(node);
            let changes = |record: &Record| matches!(record, Record::Node(changed) if changed.id == node);
            (stored == live && !later.iter().any(changes)).then_some(live)
        };
        self.check_together(job, &node_of);
        let mut first = 0;
        for role in &job.spec.roles {
            let others: u32 = job.spec.roles.iter().map(|role| role.ranks).sum::<u32>() - role.ranks;
            let ranks = if role.min_ranks.is_some() { world - others } else { role.ranks } as usize;
            let ranks = &job.ranks[first..first + ranks];
            first += ranks.len();
            let ranks: Vec<(&Allocation, &Node)> =
                ranks.iter().filter_map(|rank| Some((rank, node_of(rank.node)?))).collect();
            for (rank, node) in &ranks {
                assert!(
                    node.up && node.availability == Availability::Open,
                    "{id} is placed on {}",
                    node.name
                );
                let request = &role.request;
                assert!(request.memory_bytes <= rank.memory_bytes, "{id}: memory");
                assert!(request.cpus_milli <= rank.cpus_milli, "{id}: processor time");
                let labelled = |(key, value)| node.inventory.labels.get(key) == Some(value);
                assert!(request.labels.iter().map(|(key, value)| (key, value)).all(labelled), "{id}: labels");
                let contained = request.image.is_none() || !node.inventory.engine.is_empty();
                assert!(contained, "{id}: {} has no container engine", node.name);
                let apart = |want: &DeviceRequest| {
                    let device = rank.devices.first().map(|index| &node.inventory.devices[*index as usize]);
                    device.is_some_and(|device| want.accepts(&device.class))
                        && want.isolation <= node.inventory.isolation(rank)
                };
                assert!(
                    request.devices.is_empty() || request.devices.iter().any(apart),
                    "{id} is kept apart by too little on {}",
                    node.name
                );
                let healthy = |index: &u16| {
                    let device = &node.inventory.devices[*index as usize];
                    device.fault.is_none() && !node.cordoned.contains(&device.uuid)
                };
                assert!(rank.devices.iter().all(healthy), "{id}: a device that takes no work");
                // A scheduler that has just started may know of one that an earlier one was told.
                let told = self.newest.get(&node.name).filter(|report| report.boot == node.boot);
                let said_well = |index: &u16| {
                    let device = told.map(|report| report.inventory.devices.get(usize::from(*index)));
                    device.is_none_or(|device| device.is_some_and(|device| device.fault.is_none()))
                };
                assert!(rank.devices.iter().all(said_well), "{id}: the last report says otherwise");
                let ports = node.inventory.ports;
                assert!(ports.first <= rank.port && rank.port <= ports.last, "{id}: port {}", rank.port);
            }
            check_apart(id, role, &ranks);
            let takes = |want: &DeviceRequest, (rank, node): &(&Allocation, &Node)| {
                let island = |index: &u16| node.inventory.devices[*index as usize].island;
                let islands: BTreeSet<Option<u16>> = rank.devices.iter().map(island).collect();
                let linked = islands.len() == 1 && !islands.contains(&None);
                let class = |index: &u16| node.inventory.devices[*index as usize].class.clone();
                let classes: BTreeSet<Arc<DeviceClass>> = rank.devices.iter().map(class).collect();
                let granted = |class: &Arc<DeviceClass>| want.slice.map(|slice| slice.granted(class));
                (linked || !want.one_island || want.count == 1)
                    && rank.devices.len() == usize::from(want.count)
                    && classes.len() == 1
                    && classes.iter().all(|class| want.accepts(class) && granted(class) == rank.slice)
            };
            let devices = &role.request.devices;
            let same = devices.iter().any(|want| ranks.iter().all(|rank| takes(want, rank)));
            let none = devices.is_empty() && ranks.iter().all(|(rank, _)| rank.devices.is_empty());
            assert!(same || none, "{id}: role {} has not the devices it asked for", role.name);
        }
    }

    /// All ranks of a gang are in one domain of the level that it requires.
    fn check_together<'s>(&self, job: &Job, node_of: &dyn Fn(NodeId) -> Option<&'s Node>) {
        let Some(level) = &job.spec.topology.require else { return };
        let nodes = job.ranks.iter().filter_map(|rank| node_of(rank.node));
        let domains: BTreeSet<Option<&Name>> = nodes.map(|node| domain(level, node)).collect();
        let together = domains.len() < 2 && !domains.contains(&None);
        assert!(together, "{} requires one {level} and stands in {domains:?}", job.id);
    }

    /// What really runs.
    pub(crate) fn check_processes(&self) {
        let mut attempts: BTreeMap<JobId, WorkerId> = BTreeMap::new();
        let mut devices: BTreeMap<u16, Slice> = BTreeMap::new();
        let mut ports: Vec<u16> = Vec::new();
        for machine in &self.machines {
            devices.clear();
            ports.clear();
            let (mut cpus_milli, mut memory_bytes) = (0, 0);
            for (worker, process) in machine.alive() {
                if !process.given_up {
                    let other = *attempts.entry(worker.job).or_insert(worker);
                    assert_eq!(other.attempt, worker.attempt, "two attempts of {} run: {other}", worker.job);
                }
                let allocation = &process.launch.allocation;
                for device in &allocation.devices {
                    // A device that a worker holds may have gone from the machine since.
                    let has = machine.inventory.devices.get(usize::from(*device));
                    let memory_bytes = has.map_or(u64::MAX, |device| device.class.memory_bytes);
                    let whole = Slice { compute_milli: 1000, memory_bytes };
                    let (used, takes) =
                        (devices.entry(*device).or_default(), allocation.slice.unwrap_or(whole));
                    used.compute_milli += takes.compute_milli;
                    used.memory_bytes += takes.memory_bytes;
                    let within = used.compute_milli <= 1000 && used.memory_bytes <= memory_bytes;
                    assert!(within, "device {device} of {} is used {used:?} with {worker}", machine.name);
                }
                assert!(!ports.contains(&allocation.port), "port {} of {}", allocation.port, machine.name);
                ports.push(allocation.port);
                cpus_milli += u64::from(allocation.cpus_milli);
                memory_bytes += allocation.memory_bytes;
            }
            assert!(cpus_milli <= u64::from(machine.inventory.cpus_milli), "processors of {}", machine.name);
            assert!(memory_bytes <= machine.inventory.memory_bytes, "memory of {}", machine.name);
        }
    }

    /// Whether every job has ended, nobody waits for an answer, and nothing is left on any machine.
    pub fn is_settled(&self) -> bool {
        let Some(cluster) = &self.cluster else { return false };
        self.heal_at <= self.now
            && self.is_committed()
            && self.clients.iter().all(|client| !client.waits(self.now))
            && self.machines.iter().all(|machine| machine.processes.is_empty())
            && cluster.jobs().holding().next().is_none()
            && cluster.jobs().iter().all(|job| matches!(job.phase, Phase::Done(_)))
    }

    /// How often the run met each kind of thing that a swarm is meant to meet.
    pub fn sights(&self) -> BTreeMap<&'static str, u64> {
        let mut sights = BTreeMap::new();
        let mut saw = |what, times| *sights.entry(what).or_default() += times;
        for (_, line) in &self.log {
            let Line::Note(note) = line else { continue };
            saw(note.kind(), 1);
            self.booked_sights(note).into_iter().for_each(|what| saw(what, 1));
            match note {
                Note::Done(_, outcome) => saw(
                    match outcome {
                        Outcome::Succeeded => "succeeded",
                        Outcome::Failed(_) => "failed",
                        Outcome::Unreachable(_) => "unreachable",
                        Outcome::Cancelled => "cancelled",
                        Outcome::TimedOut => "timed out",
                    },
                    1,
                ),
                Note::MadeRoom { .. } => saw("moved for another", 1),
                Note::Exchanged { .. } => saw("changed places", 1),
                Note::Requeued { why, .. } => saw(
                    match why {
                        Why::WorkerFailed { .. } => "worker failed",
                        Why::RankLost { .. } => "rank lost",
                        Why::DeviceBad { .. } => "off a bad device",
                        Why::Drained { .. } => "drained",
                        Why::Preempted { .. } => "preempted",
                        Why::Resized { .. } => "resized",
                        Why::Booked { .. } => "moved for a reservation",
                        Why::Moved { .. } => "moved",
                        Why::MadeRoom { .. } => "not moved for another",
                    },
                    1,
                ),
                Note::Placed { job, nodes, .. } => {
                    let spec = &self.store.job(*job).expect("it was placed").spec;
                    let (roles, gang) = (&spec.roles, nodes.iter().any(|node| *node != nodes[0]));
                    let saw = &mut |what, whether| saw(what, u64::from(whether));
                    saw("gang on several nodes", gang);
                    saw("gang on several nodes of one domain", gang && spec.topology.require.is_some());
                    let apart = |role: &Role| 1 < role.ranks && role.standing.apart.is_some();
                    saw("ranks apart", roles.iter().any(apart));
                    let spread = |role: &Role| 1 < role.ranks && role.standing.spread.is_some();
                    saw("ranks spread", roles.iter().any(spread));
                    let linked = |role: &Role| role.request.devices.iter().any(|want| want.one_island);
                    saw("devices of one island", roles.iter().any(linked));
                }
                Note::Shrunk { by: Some(by), .. } => {
                    let by = self.store.job(*by).expect("a job");
                    saw("given to a service that runs", u64::from(by.spec.promise().is_some()));
                }
                Note::Autoscaled { to: 0, .. } => saw("laid to sleep", 1),
                Note::Autoscaled { from: 0, .. } => saw("woken", 1),
                Note::AgentRestarted { workers: 1.., .. } => saw("workers adopted", 1),
                Note::ArrayQueued { .. } => saw("array", 1),
                Note::Preempted { job, by, .. } => {
                    let queue = |id: &JobId| &self.store.job(*id).expect("a job").spec.queue;
                    saw(if queue(job) == queue(by) { "preempted by priority" } else { "reclaimed" }, 1);
                }
                _ => (),
            }
        }
        saw("scheduler restarted", self.term - 1);
        saw("retired", self.store.ended.len() as u64);
        for client in &self.clients {
            match &client.answer {
                Some(Ok(Answer::Submitted { repeated: true, .. })) => saw("answered as repeated", 1),
                Some(Err(Refusal::Queue(_))) => saw("queue refused", 1),
                Some(Err(Refusal::Reservation(_))) => saw("reservation refused", 1),
                Some(Err(_)) => saw("refused", 1),
                Some(Ok(Answer::Done)) => match &client.command {
                    Command::SetQueue(queue) if queue.parent.is_some() => saw("queue below another", 1),
                    Command::SetPrice { .. } => saw("price set", 1),
                    _ => (),
                },
                _ => (),
            }
        }
        let ended = |exit: &dyn Fn(&Exit) -> bool| {
            self.ends.values().filter(|end| end.exit.as_ref().is_some_and(exit)).count() as u64
        };
        saw("killed", ended(&|exit| *exit == Exit::Signal(9)));
        saw("stopped politely", ended(&|exit| *exit == Exit::Signal(15)));
        saw("not launched", ended(&|exit| matches!(exit, Exit::Failed(_))));
        saw("ended with the machine", self.ends.values().filter(|end| end.exit.is_none()).count() as u64);
        saw("fenced by a supervisor", self.fenced);
        saw("given up with a lost node", self.machines.iter().map(|machine| machine.given_up).sum());
        sights
    }

    /// What is left, for a run that does not end.
    pub fn leftovers(&self) -> String {
        let mut text = format!("at {}, term {}\n", self.now, self.term);
        let Some(cluster) = &self.cluster else { return text + "no scheduler\n" };
        for job in cluster.jobs().iter().filter(|job| !matches!(job.phase, Phase::Done(_))) {
            let reason = aquifer_core::explain::reason(&mut free_for_all(cluster), job);
            text += &format!("{} {reason}: {:?} {:?}\n", job.id, job.phase, job.spec.roles);
            text += &job.ranks.iter().map(|rank| format!("    {rank:?}\n")).collect::<String>();
        }
        for machine in &self.machines {
            let known = cluster.nodes().by_name(&machine.name).map(|id| cluster.nodes().get(id));
            let state = known.map(|node| (node.up, node.availability, node.boot));
            text +=
                &format!("{} {state:?} boot {} {:?}\n", machine.name, machine.boot, machine.processes.keys());
        }
        for (id, client) in self.clients.iter().enumerate().filter(|(_, client)| client.waits(self.now)) {
            text += &format!("request {id} waits: {:?}\n", client.command);
        }
        text
    }
}

/// The domain of a level that a node is in, read from the node's labels alone.
fn domain<'n>(level: &Level, node: &'n Node) -> Option<&'n Name> {
    match level {
        Level::Node => Some(&node.name),
        Level::Label(label) => {
            node.inventory.labels.iter().find(|(key, _)| *key == label).map(|(_, value)| value)
        }
    }
}

/// No two ranks of a role are in one domain of the level at which they stand apart.
fn check_apart(id: JobId, role: &Role, ranks: &[(&Allocation, &Node)]) {
    let Some(level) = &role.standing.apart else { return };
    let domains: BTreeSet<Option<&Name>> = ranks.iter().map(|(_, node)| domain(level, node)).collect();
    let apart = domains.len() == ranks.len() && !domains.contains(&None);
    assert!(apart, "{id}: two ranks of {} in one {level}: {domains:?}", role.name);
}

/// A job that goes on after a change of its ranks has what it kept; or all, where nobody needed the rest any more.
fn check_resized(was: &Job, job: &Job) {
    let Phase::Stopping(Then::Resize(stays)) = &was.phase else { return };
    if job.phase != Phase::Active || job.attempt != was.attempt + 1 {
        return;
    }
    let place = |rank: &Allocation| (rank.node, rank.devices.clone(), rank.port);
    let places: BTreeSet<_> = job.ranks.iter().map(place).collect();
    let kept: BTreeSet<_> = stays.iter().map(|rank| place(&was.ranks[*rank as usize])).collect();
    let all: BTreeSet<_> = was.ranks.iter().map(place).collect();
    let requeued = !matches!(job.last_failure, Some(Why::Resized { .. }));
    // Where the others run on, it may have grown again in the same step.
    let grew = job.spec.is_live() && places.is_superset(&kept);
    assert!(places == kept || places == all || requeued || grew, "{} goes on elsewhere: {places:?}", job.id);
}

/// Equal, with a short cut for a specification that both share.
fn same_job(one: &Job, other: &Job) -> bool {
    let Job {
        id,
        spec,
        array,
        submitted,
        phase,
        attempt,
        failures,
        ranks,
        worth_milli,
        last_nodes,
        placed,
        began,
        first_placed,
        ended,
        last_failure,
        usage,
        scale,
    } = one;
    (Arc::ptr_eq(spec, &other.spec) || *spec == other.spec)
        && (id, array, submitted, phase) == (&other.id, &other.array, &other.submitted, &other.phase)
        && (attempt, failures, ranks) == (&other.attempt, &other.failures, &other.ranks)
        && worth_milli == &other.worth_milli
        && (last_nodes, began, placed) == (&other.last_nodes, &other.began, &other.placed)
        && (first_placed, ended) == (&other.first_placed, &other.ended)
        && (last_failure, usage, scale) == (&other.last_failure, &other.usage, &other.scale)
}
