//! What happens to jobs and nodes: the transitions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{Cluster, Heartbeat, workers};
use crate::effect::*;
use crate::event::*;
use crate::jobs::*;
use crate::nodes::Lease;
use crate::plan::{Preemption, Victim};
use crate::types::*;

impl Cluster {
    pub(crate) fn on_command(&mut self, now: Time, command: Command) -> Result<Answer, Refusal> {
        match command {
            Command::Submit(spec) => self.submit(now, spec),
            Command::Cancel { job, whole_array } => self.cancel(now, job, whole_array),
            Command::Scale { job, ranks } => self.scale(now, job, ranks),
            Command::Demand { job, waiting } => self.demand(now, job, waiting),
            Command::SetNode { node, availability } => self.set_node(now, node, availability),
            Command::SetDevice { node, device, cordoned } => self.set_device(now, node, device, cordoned),
            Command::SetQueue(queue) => {
                self.queues.check_queue(&queue).map_err(Refusal::Queue)?;
                self.note(Note::QueueSet(queue.name.clone()));
                self.set_queue(queue);
                self.plan_anew(now);
                Ok(Answer::Done)
            }
            Command::SetPrice { model, milli } => self.set_price(now, model, milli),
            Command::Reserve(booking) => self.reserve(now, booking),
            Command::Unreserve(name) => self.unreserve(now, &name),
        }
    }

    /// Whether a specification would be accepted, and the job that its client key made already.
    pub fn check_spec(&self, spec: &JobSpec) -> Result<Option<JobId>, Refusal> {
        let empty = |role: &Role| role.ranks == 0 || role.request.devices.iter().any(|d| d.count == 0);
        if spec.roles.is_empty() || spec.roles.iter().any(empty) {
            return Err(Refusal::Malformed("a job has at least one rank, and a device request one device"));
        }
        let odd = |role: &Role| role.min_ranks.is_some_and(|least| least == 0 || role.ranks <= least);
        if spec.roles.iter().any(odd) || 1 < spec.roles.iter().filter(|it| it.min_ranks.is_some()).count() {
            return Err(Refusal::Malformed(
                "a job has at most one elastic role, of 1 to less than its ranks",
            ));
        }
        let beyond = |slice: Slice| 1000 < slice.compute_milli || slice == Slice::default();
        let mut devices = spec.roles.iter().flat_map(|role| &role.request.devices);
        if devices.any(|device| device.slice.is_some_and(beyond)) {
            return Err(Refusal::Malformed("a slice has 1 to 1,000 thousandths of a device, or memory"));
        }
        if MAX_RANKS < spec.roles.iter().map(|role| u64::from(role.ranks)).sum() {
            return Err(Refusal::Malformed("a job has at most 65,536 ranks"));
        }
        if spec.array.is_some_and(|range| range.count() == 0 || MAX_ARRAY < range.count()) {
            return Err(Refusal::Malformed("an array has 1 to 100,000 elements"));
        }
        if let Some(job) = self.jobs.by_key(&spec.client_key) {
            let same = *self.jobs.get(job).expect("a key's job").spec == *spec;
            let taken = Refusal::KeyTaken(spec.client_key.clone(), job);
            return if same { Ok(Some(job)) } else { Err(taken) };
        }
        if self.queues.get(&spec.queue).is_none() {
            return Err(Refusal::UnknownQueue(spec.queue.clone()));
        }
        if let Some(gate) = self.queues.gate(&spec.queue)
            && !gate.users.contains(&spec.user)
        {
            let (queue, user) = (spec.queue.clone(), spec.user.clone());
            return Err(Refusal::NotOfQueue { queue, user, users: gate.users.clone() });
        }
        self.check_guest(spec)?;
        match spec.after.iter().find(|job| self.jobs.get(**job).is_none()) {
            Some(job) => Err(Refusal::UnknownJob(*job)),
            None => Ok(None),
        }
    }

    fn submit(&mut self, now: Time, spec: Arc<JobSpec>) -> Result<Answer, Refusal> {
        let count = spec.array.map_or(1, |range| range.count()) as u32;
        if let Some(first) = self.check_spec(&spec)? {
            return Ok(Answer::Submitted { first, count, repeated: true });
        }
        let first = JobId(self.jobs.len() + 1);
        for element in 0..count {
            let index = |range: ArrayRange| range.first + element * range.step;
            let array = spec.array.map(|range| ArrayElement { first, index: index(range) });
            let id = JobId(first.0 + u64::from(element));
            self.add_job(Job::new(id, spec.clone(), array, now), element == 0);
        }
        self.note(match spec.array {
            Some(_) => Note::ArrayQueued { first, count },
            None => Note::Queued(first),
        });
        if let Dependency::Failed(dependency) =
            self.jobs.dependencies(self.jobs.get(first).expect("a new job"))
        {
            for id in self.jobs.array_of(first) {
                self.finish(now, id, Outcome::Unreachable(dependency));
            }
        }
        self.reopen(first);
        self.plan_at(now);
        Ok(Answer::Submitted { first, count, repeated: false })
    }

    fn cancel(&mut self, now: Time, id: JobId, whole_array: bool) -> Result<Answer, Refusal> {
        let job = self.jobs.get(id).ok_or(Refusal::UnknownJob(id))?;
        if let (Phase::Done(outcome), false) = (&job.phase, whole_array) {
            return Err(Refusal::JobDone(id, outcome.clone()));
        }
        let jobs: Vec<JobId> = if whole_array { self.jobs.array_of(id).collect() } else { vec![id] };
        let mut cancelled = 0;
        for id in jobs {
            match self.jobs.get(id).expect("an element of the array").phase {
                Phase::Done(_) => continue,
                Phase::Pending(_) => self.finish(now, id, Outcome::Cancelled),
                Phase::Active | Phase::Stopping(_) => self.stop(id, Outcome::Cancelled),
            }
            cancelled += 1;
        }
        Ok(Answer::Cancelled(cancelled))
    }

    fn set_node(&mut self, now: Time, name: Name, availability: Availability) -> Result<Answer, Refusal> {
        let id = self.nodes.by_name(&name).ok_or_else(|| Refusal::UnknownNode(name.clone()))?;
        if self.nodes.get(id).availability != availability {
            self.change_node(id, |node| {
                node.availability = availability;
                node.blame.take_if(|_| availability == Availability::Open);
            });
            self.note(Note::NodeSet { node: name.clone(), availability });
            if availability == Availability::Open {
                self.plan_anew(now);
            }
        }
        if availability == Availability::Draining {
            if !self.nodes.get(id).up {
                self.give_up_kept(now, id);
            }
            for worker in self.workers_on(id) {
                if self.jobs.get(worker.job).expect("a worker's job").phase == Phase::Active
                    && !self.leave_node(now, worker.job, id)
                {
                    self.requeue(worker.job, Why::Drained { rank: worker.rank, node: name.clone() });
                }
            }
        }
        Ok(Answer::Done)
    }

    pub(crate) fn on_heartbeat(
        &mut self,
        now: Time,
        id: NodeId,
        boot: u64,
        seq: u64,
        same_as: u64,
    ) -> Heartbeat {
        let Some(lease) = self.nodes.lease(id) else { return Heartbeat::Unknown };
        if self.nodes.get(id).boot != boot || lease.full_seq != same_as {
            return Heartbeat::Unknown;
        }
        if seq <= lease.seq {
            return Heartbeat::Late;
        }
        self.nodes.set_lease(id, Lease { end: now + self.policy.lease, seq, ..lease });
        Heartbeat::Renewed
    }

    /// Takes in a whole report. Returns the node if it must be answered.
    pub(crate) fn on_report(&mut self, now: Time, mut report: NodeReport) -> Option<NodeId> {
        let id = match self.nodes.by_name(&report.node) {
            Some(id) => id,
            None => self.add_node(report.node.clone()),
        };
        let known = self.nodes.get(id);
        let handled = (known.boot, self.nodes.lease(id).map_or(0, |lease| lease.seq));
        if (report.boot, report.seq) <= handled {
            return None; // Late or repeated.
        }
        if self.nodes.is_taken(id, &report.agent) {
            return None; // Its session should not have begun.
        }
        let rebooted = known.boot != report.boot;
        let joined = !known.up;
        let inventory_changed = known.inventory != report.inventory;
        let only_speeds = inventory_changed && known.inventory.differs_in_speed_alone(&report.inventory);
        let caught_up = self.nodes.revision(id) == report.revision;

        if rebooted || joined || inventory_changed {
            let devices = report.inventory.devices.len() as u32;
            self.change_node(id, |node| {
                node.boot = report.boot;
                if !report.agent.is_empty() {
                    node.agent = report.agent;
                }
                node.up = true;
                node.inventory = report.inventory;
            });
            self.plan_anew(now);
            let node = report.node.clone();
            let usable =
                (0..devices as u16).filter(|at| self.nodes.get(id).device_takes_work(*at)).count() as u32;
            if joined {
                self.note(Note::NodeUp(node));
            } else if rebooted {
                self.note(Note::AgentRestarted { node, workers: report.workers.len() as u32 });
            } else if !only_speeds {
                self.note(Note::InventoryChanged { node, usable, devices });
            }
        }
        let (end, seq) = (now + self.policy.lease, report.seq);
        self.nodes.set_lease(id, Lease { end, seq, full_seq: seq, reported: report.revision });

        self.on_probe(id, report.probe, caught_up || rebooted);
        self.quarantine(now, id);
        self.leave_bad_devices(id);
        for worker in &report.workers {
            let of_attempt = |job: &Job| job.attempt == worker.id.attempt && !job.ranks.is_empty();
            if let Some(age_ms) = worker.checkpoint_age_ms
                && self.jobs.get(worker.id.job).is_some_and(of_attempt)
            {
                self.on_checkpoint(worker.id.job, age_ms);
            }
            if let Some(progress) = worker.progress
                && worker.state != WorkerState::Starting
                && self.speaks(worker.id)
            {
                self.on_progress(worker.id, progress);
            }
            if let Some(load) = worker.load.filter(|_| worker.state == WorkerState::Running) {
                self.on_load(now, worker.id, load);
            }
        }
        report.workers.sort_by_key(|worker| worker.id);
        let (mut reported, mut news) = (&report.workers[..], std::mem::take(&mut self.news));
        for (worker, known) in self.nodes.held(id).workers.iter() {
            while let [it, rest @ ..] = reported
                && it.id < *worker
            {
                reported = rest;
            }
            let state = reported.first().filter(|it| it.id == *worker).map(|it| &it.state);
            let is_news = match state {
                Some(WorkerState::Starting) => known.state < RankState::Starting,
                Some(WorkerState::Running) => known.state < RankState::Running,
                Some(WorkerState::Exited(_)) => true,
                // An agent that knows the assignment, or has just started, would list the worker if it ran.
                None => caught_up || rebooted,
            };
            if is_news {
                news.push((*worker, state.cloned()));
            }
        }
        for (worker, state) in news.drain(..) {
            match state {
                Some(WorkerState::Starting) => self.set_rank_state(worker, RankState::Starting),
                Some(WorkerState::Running) => self.on_running(worker),
                Some(WorkerState::Exited(exit)) => self.on_exited(now, worker, exit),
                None => self.on_rank_lost(now, worker),
            }
        }
        self.news = news;
        Some(id)
    }

    pub(crate) fn ring_timers(&mut self, now: Time) {
        while let Some(id) = self.jobs.pop_timer(now) {
            let job = self.jobs.get(id).expect("a timer's job");
            if job.phase == Phase::Active && job.expected_end().is_none_or(|end| now < end) {
                self.mend(now, id);
            } else if job.phase == Phase::Active {
                self.stop(id, Outcome::TimedOut);
            } else {
                self.change_job_index(id);
                self.plan_at(now);
            }
        }
    }

    /// Places a job that a plan, made from this very state, starts. Its resources are taken from the room already.
    pub(crate) fn place(&mut self, now: Time, id: JobId, ranks: Vec<Allocation>) {
        let worth_milli = ranks.iter().map(|rank| self.worth_milli(rank)).sum();
        self.change_job(id, |job| {
            assert!(matches!(job.phase, Phase::Pending(_)), "{id} is placed twice");
            job.phase = Phase::Active;
            job.attempt += 1;
            (job.began, job.placed) = (Some(now), Some(now));
            job.first_placed = job.first_placed.or(Some(now));
            job.last_nodes = ranks.iter().map(|rank| rank.node).collect();
            job.ranks = ranks;
            (0..).zip(&mut job.ranks).for_each(|(at, rank)| rank.assign(at, now));
            job.set_worth(now, worth_milli);
        });
        let job = self.jobs.get(id).expect("a placed job");
        for (worker, rank) in workers(job) {
            self.nodes.hold(worker, rank, job.span());
        }
        let (queue, charge) = (job.spec.queue.clone(), job.charge());
        let nodes = job.ranks.iter().map(|rank| self.nodes.get(rank.node).name.clone()).collect();
        let note = Note::Placed { job: id, attempt: job.attempt, nodes };
        self.charge(&queue, charge, Charge::default());
        self.weigh_anew(&queue, now);
        self.reassign(id);
        self.note(note);
        self.tell_classes(id);
    }

    fn on_running(&mut self, worker: WorkerId) {
        self.set_rank_state(worker, RankState::Running);
        let job = self.jobs.get(worker.job).expect("a worker's job");
        if job.phase == Phase::Active && job.all_running() {
            self.note(Note::Running(worker.job));
        }
    }

    fn on_exited(&mut self, now: Time, worker: WorkerId, exit: Exit) {
        if exit != Exit::Code(0) && self.should_run(worker) {
            let why = Why::WorkerFailed { rank: worker.rank, node: self.node_of(worker), exit };
            match self.may_fail_alone(now, worker) {
                true => self.rank_down(now, worker, why),
                false => self.fail(worker.job, why),
            }
        }
        self.on_gone(now, worker);
    }

    pub(crate) fn on_rank_lost(&mut self, now: Time, worker: WorkerId) {
        if self.should_run(worker) {
            let why = Why::RankLost { rank: worker.rank, node: self.node_of(worker) };
            match self.jobs.get(worker.job).expect("a worker's job").spec.is_live() {
                true => self.rank_down(now, worker, why),
                false => self.requeue(worker.job, why),
            }
        }
        self.on_gone(now, worker);
    }

    /// Whether the worker was to go on.
    fn should_run(&self, worker: WorkerId) -> bool {
        let job = self.jobs.get(worker.job).expect("a worker's job");
        job.runs(job.position(worker.rank) as u32)
    }

    /// An attempt failed by itself: it is repeated as often as the job allows.
    pub(crate) fn fail(&mut self, id: JobId, why: Why) {
        self.inquire(self.now(), id, &why);
        let job = self.jobs.get(id).expect("a failed job");
        let retries_left = job.failures < job.spec.retries;
        self.change_job(id, |job| job.failures += 1);
        if retries_left {
            self.requeue(id, why);
        } else {
            self.change_job(id, |job| job.last_failure = Some(why.clone()));
            self.stop(id, Outcome::Failed(why));
        }
    }

    pub(crate) fn requeue(&mut self, id: JobId, why: Why) {
        self.change_job(id, |job| {
            job.phase = Phase::Stopping(Then::Requeue);
            job.last_failure = Some(why.clone());
        });
        self.reassign(id);
        self.seek_anew(self.now);
        self.note(Note::Requeued { job: id, why });
        self.end_if_stopped(self.now, id);
    }

    /// Stops all victims of a decision. They are not charged with a failure.
    pub(crate) fn preempt(&mut self, at: Time, Preemption { job: by, victims }: Preemption) {
        for Victim { job: id, lost_device_ms, stays } in victims {
            if !stays.is_empty() {
                self.shrink(at, by, id, stays, lost_device_ms);
                continue;
            }
            self.change_job(id, |job| {
                assert_eq!(job.phase, Phase::Active, "{id} is preempted");
                job.phase = Phase::Stopping(Then::Requeue);
                job.last_failure = Some(Why::Preempted { by, at });
            });
            self.reassign(id);
            self.note(Note::Preempted { job: id, by, lost_device_ms });
            self.end_if_stopped(self.now, id);
        }
    }

    fn stop(&mut self, id: JobId, outcome: Outcome) {
        let then = Then::Finish(outcome.clone());
        if self.jobs.get(id).expect("a stopping job").phase == Phase::Stopping(then.clone()) {
            return;
        }
        self.change_job(id, |job| {
            if job.phase == Phase::Active {
                // An earlier attempt may have given way; this one does not.
                let gave_way = |why: &mut Why| {
                    use Why::{MadeRoom, Moved, Preempted, Resized};
                    matches!(why, Preempted { .. } | Resized { .. } | Moved { .. } | MadeRoom { .. })
                };
                job.last_failure.take_if(gave_way);
            }
            job.phase = Phase::Stopping(then);
        });
        self.leave_exchange(self.now, id);
        self.reassign(id);
        self.seek_anew(self.now);
        self.note(Note::Stopping { job: id, why: outcome });
        self.end_if_stopped(self.now, id);
    }

    /// A queue with a guarantee, or one below it, holds more or less than before: others may be due theirs now.
    pub(crate) fn weigh_anew(&mut self, queue: &Name, at: Time) {
        if self.queues.line(queue).any(|queue| 0 < queue.guaranteed_milli) {
            self.known_mut().forget_kept();
            self.known_mut().futile.clear();
            if !self.jobs.ready().is_empty() {
                self.plan_at(at);
            }
        }
    }

    fn on_gone(&mut self, now: Time, worker: WorkerId) {
        self.set_rank_state(worker, RankState::Gone);
        self.reassign(worker.job);
        self.end_if_stopped(now, worker.job);
    }

    /// What comes after the last worker of a job that was to go.
    pub(crate) fn end_if_stopped(&mut self, now: Time, id: JobId) {
        let job = self.jobs.get(id).expect("a job that holds resources");
        if !Cluster::has_stopped(job) {
            return;
        }
        match job.phase.clone() {
            Phase::Active => self.finish(now, id, Outcome::Succeeded),
            Phase::Stopping(Then::Finish(outcome)) => self.finish(now, id, outcome),
            Phase::Stopping(Then::Requeue) => self.end_requeue(now, id),
            Phase::Stopping(Then::Resize(_)) => {
                let goes_on = |rank: &Allocation| rank.worker != RankState::Gone || rank.restart_at.is_some();
                let mut run_on = (0..).zip(&job.ranks).filter(|(at, _)| job.runs(*at)).peekable();
                match run_on.peek().is_some() {
                    false => self.end_resize(now, id, false),
                    true if run_on.any(|(_, rank)| goes_on(rank)) => self.end_resize(now, id, true),
                    // Nobody had told those that were to stay to end.
                    true => self.finish(now, id, Outcome::Succeeded),
                }
            }
            Phase::Pending(_) | Phase::Done(_) => panic!("{id} holds nothing"),
        }
    }

    /// Ends a job that has no worker left, and with it those that can no longer follow it.
    fn finish(&mut self, now: Time, id: JobId, outcome: Outcome) {
        let (mut next, mut ending) = (Some((id, outcome)), BTreeMap::new());
        while let Some((id, outcome)) = next {
            self.release(now, id, Some(outcome.clone()));
            self.note(Note::Done(id, outcome));
            for dependent in self.jobs.dependents_of(id) {
                match self.jobs.dependencies(self.jobs.get(dependent).expect("a dependent job")) {
                    Dependency::Met => self.change_job_index(dependent),
                    Dependency::Failed(job) => {
                        ending.entry(dependent).or_insert(Outcome::Unreachable(job));
                    }
                    Dependency::Waits => (),
                }
            }
            next = ending.pop_first();
        }
    }

    /// Gives back all that a job holds; it ends, or with `None` is placed again.
    pub(crate) fn release(&mut self, now: Time, id: JobId, outcome: Option<Outcome>) {
        let job = self.jobs.shared(id).expect("a job that holds resources");
        for (worker, rank) in workers(&job) {
            self.nodes.release(worker, rank, job.span());
        }
        let mut nodes: Vec<NodeId> = job.ranks.iter().map(|rank| rank.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        for node in nodes {
            self.refresh_room(node);
            self.plan_freed(now, node);
        }
        if !job.ranks.is_empty() {
            self.charge(&job.spec.queue, Charge::default(), job.charge());
            self.weigh_anew(&job.spec.queue, now);
        }
        if !job.ranks.is_empty() || self.jobs.victims_of(id).next().is_some() {
            // What it held, or what was promised to it, may help others.
            self.known_mut().futile.clear();
            self.known_mut().ends += 1;
        }
        self.freed_for.extend(job.gives_way_to());
        self.plan_at(now);
        self.kept_mut().leave(id);
        if outcome.is_some() && self.turnover.enter(now, &job) {
            self.kept_mut().wide_changed(false);
        }
        let lost_ms = if outcome.is_none() { self.unsaved_ms(&job) } else { 0 };
        let spent = self.spent(&job);
        self.forget_checkpoint(id);
        let ends = outcome.is_some();
        let failed = matches!(job.last_failure, Some(Why::WorkerFailed { .. }));
        let pause = match failed && !ends {
            true => self.hold_for_verdict(now, id, self.pause(job.failures)),
            false => Duration::ZERO,
        };
        // It is not copied to be changed.
        drop(job);
        self.change_job(id, |job| {
            job.add_usage(now, lost_ms);
            job.usage.spent = spent;
            job.ranks.clear();
            job.set_worth(now, 0);
            match outcome {
                None => job.phase = Phase::Pending(now + pause),
                Some(outcome) => {
                    job.phase = Phase::Done(outcome);
                    job.ended = Some(now);
                }
            }
        });
        if ends {
            self.services.unlearn(id);
            self.learn_duration(id);
        } else {
            self.reopen(id);
        }
    }

    pub(crate) fn pause(&self, failures: u32) -> Duration {
        self.policy.backoff * (1 << failures.saturating_sub(1).min(6))
    }

    /// Brings the indexes of a job up to date that time or another job has made ready.
    pub(crate) fn change_job_index(&mut self, id: JobId) {
        self.jobs.update(self.now, id, |_| ());
        self.reopen(id);
    }

    pub(crate) fn node_of(&self, worker: WorkerId) -> Name {
        let job = self.jobs.get(worker.job).expect("a worker's job");
        self.nodes.get(job.ranks[job.position(worker.rank)].node).name.clone()
    }

    /// Workers on the node that are not known gone. One may go while another is dealt with.
    pub(crate) fn workers_on(&self, node: NodeId) -> Vec<WorkerId> {
        self.nodes.held(node).workers.keys().copied().collect()
    }
}

impl Job {
    /// A job that was just accepted.
    pub fn new(id: JobId, spec: Arc<JobSpec>, array: Option<ArrayElement>, now: Time) -> Job {
        // One that scales itself begins with its least, as nobody has asked it yet.
        let begins = |(role, _): (usize, &_)| Scale { ranks: Some(spec.roles[role].least()), at: now };
        Job {
            scale: spec.promise().map(begins),
            id,
            spec,
            array,
            submitted: now,
            phase: Phase::Pending(now),
            attempt: 0,
            failures: 0,
            ranks: Vec::new(),
            worth_milli: 0,
            last_nodes: Vec::new(),
            began: None,
            placed: None,
            first_placed: None,
            ended: None,
            last_failure: None,
            usage: Usage::default(),
        }
    }
}
