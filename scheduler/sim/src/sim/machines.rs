//! What machines do in a run: agents that speak and are told, processes that start and end, accidents.

use aquifer_core::agent::{Action, Message};
use aquifer_core::*;

use super::pace::{Counting, PROGRESS_MS};
use super::{Downlink, Pending, Sim, Work};
use crate::machine::{End, Machine, Process};

impl Sim {
    /// Adds a machine and switches it on.
    pub fn add_machine(&mut self, name: &str, inventory: Inventory, clock_ahead_ms: u64) -> usize {
        let machine = self.machines.len();
        self.machines.push(Machine::new(name.into(), inventory, clock_ahead_ms));
        self.last_report.push(None);
        self.machine_by_name.insert(name.into(), machine);
        self.push(self.now, Pending::PowerOn(machine));
        machine
    }

    /// The machine of that name.
    pub fn machine(&self, name: &str) -> Option<usize> {
        self.machine_by_name.get(name).copied()
    }

    pub(super) fn on_uplink(&mut self, from: usize, message: Message) {
        match message {
            Message::Report(report) => {
                self.last_report[from] = Some(report.clone());
                // One that is overtaken by any later message of its node counts for nothing.
                let nodes = self.cluster.as_ref().map(Cluster::nodes);
                let known = nodes.and_then(|nodes| Some((nodes, nodes.by_name(&report.node)?)));
                let handled = known.map_or((0, 0), |(nodes, id)| {
                    (nodes.get(id).boot, nodes.lease(id).map_or(0, |lease| lease.seq))
                });
                if nodes.is_some() && handled < (report.boot, report.seq) {
                    self.newest.insert(report.node.clone(), report.clone());
                }
                self.step(Event::Report(report));
            }
            Message::Heartbeat { boot, seq, same_as } => {
                // A session knows its node from the report that began it.
                let name = &self.machines[from].name;
                let Some(cluster) = &self.cluster else { return };
                match cluster.nodes().by_name(name) {
                    Some(node) => self.step(Event::Heartbeat { node, boot, seq, same_as }),
                    None => {
                        self.send(true, |_| Pending::ToAgent {
                            to: from,
                            boot,
                            downlink: Downlink::AskReport,
                        });
                    }
                }
            }
        }
    }

    /// Gives the scheduler the last report of a machine once more.
    pub fn repeat_report(&mut self, machine: usize) {
        if let Some(report) = self.last_report[machine].clone() {
            self.step(Event::Report(report));
        }
    }

    pub(super) fn on_downlink(&mut self, to: usize, boot: u64, downlink: Downlink) {
        let (now, amid) = (self.now, self.fault(self.faults.agent_crash_amid));
        let machine = &mut self.machines[to];
        let own = machine.clock(now);
        if machine.boot != boot {
            return;
        }
        let Some(agent) = &mut machine.agent else { return };
        let had_news = agent.has_news();
        let actions = match downlink {
            Downlink::Renew { acked } => {
                agent.on_renew(acked);
                Vec::new()
            }
            Downlink::AskReport => {
                agent.on_ask_report();
                Vec::new()
            }
            Downlink::Assign { acked, assignment } => agent.on_assignment(own, acked, assignment),
        };
        let has_news = agent.has_news();
        machine.persist_lease();
        if amid && !actions.is_empty() {
            let done = self.rng.below(actions.len() as u64) as usize;
            actions.into_iter().take(done).for_each(|action| self.act(to, action));
            return self.crash_agent(to);
        }
        let news = has_news && (!had_news || !actions.is_empty());
        actions.into_iter().for_each(|action| self.act(to, action));
        if news {
            self.wake(to);
        }
    }

    fn act(&mut self, at: usize, action: Action) {
        match action {
            Action::Tell(members) => self.tell(&members),
            Action::Launch(worker, launch) => self.launch(at, worker, launch),
            Action::Stop { worker, grace_ms, why: _ } => self.stop(at, worker, grace_ms),
            Action::Probe(probe) => self.probe(at, probe, 0),
            Action::EndProbe => (), // The agent takes no word of it any more.
            Action::Forget(worker) => {
                let process = self.machines[at].processes.remove(&worker);
                assert!(process.is_none_or(|process| !process.alive()), "{worker} is forgotten, but runs");
            }
        }
    }

    fn launch(&mut self, machine: usize, worker: WorkerId, launch: std::sync::Arc<Launch>) {
        let elsewhere = self.launched.insert(worker, machine);
        assert_eq!(elsewhere, None, "{worker} is launched twice");
        self.check_told(worker, &launch);
        let default =
            Work { run_ms: Some(10_000), failures: 0, exit: Exit::Code(0), checkpoint_ms: None, pace: None };
        let work = self.work.get(&launch.spec.name).cloned().unwrap_or(default);
        let fails = match worker.attempt <= work.failures {
            true if worker.rank == 0 => Some(work.exit.clone()),
            true => None,
            false => self.fault(self.faults.worker_fail).then(|| self.any_failure()),
        };
        let counting = work.pace.as_ref().map(|pace| self.counting_of(machine, worker.job, &launch, pace));
        self.begin_load(machine, worker, &launch);
        let state = WorkerState::Starting;
        let process = Process { launch, state, stopped: false, fenced: false, given_up: false };
        let it = &mut self.machines[machine];
        it.processes.insert(worker, process);
        let incarnation = it.incarnation;
        if !std::mem::replace(&mut it.watched, true) {
            let at = it.seen_from_outside(it.lease_end);
            self.push(at.max(self.now), Pending::LeaseEnd(machine));
        }
        let exit = |exit| Pending::Exit { machine, incarnation, worker, exit, by_itself: true };
        if let Some(failed @ Exit::Failed(_)) = fails {
            return self.push(self.now, exit(failed));
        }
        let ready = self.now.0 + self.rng.within(self.timing.start_ms);
        self.push(Time(ready), Pending::Ready { machine, incarnation, worker });
        if let Some(every_ms) = work.checkpoint_ms.filter(|_| worker.rank == 0) {
            self.push(Time(ready + every_ms), Pending::Checkpoint { machine, incarnation, worker, every_ms });
        }
        let mut run_ms = work.run_ms;
        if let Some(counting) = counting {
            run_ms = Some((counting.total - counting.first) * 1_000_000 / counting.rate_milli);
            if worker.rank == 0 {
                self.counting.insert(worker, Counting { since: Time(ready), ..counting });
                let told = Pending::Progress { machine, incarnation, worker };
                self.push(Time(ready + PROGRESS_MS), told);
            }
        }
        match (fails, run_ms) {
            (Some(failure), run_ms) => self.push(Time(ready + run_ms.unwrap_or(10_000) / 2), exit(failure)),
            (None, Some(run_ms)) => self.push(Time(ready + run_ms), exit(Exit::Code(0))),
            (None, None) => (),
        }
    }

    /// A node that is not heard of is drained: what runs there is given up.
    pub(super) fn drained(&mut self, event: &Event) {
        let Event::Request { command: Command::SetNode { node, availability }, .. } = event else { return };
        let Some(cluster) = &self.cluster else { return };
        let is_lost = cluster.nodes().by_name(node).is_some_and(|id| !cluster.nodes().get(id).up);
        if *availability == Availability::Draining && is_lost {
            let machine = &mut self.machines[self.machine_by_name[node]];
            for process in machine.processes.values_mut().filter(|process| process.alive()) {
                machine.given_up += u64::from(!std::mem::replace(&mut process.given_up, true));
            }
        }
    }

    fn any_failure(&mut self) -> Exit {
        match self.rng.below(3) {
            0 => Exit::Code(1 + self.rng.below(200) as i32),
            1 => Exit::Signal(*self.rng.pick(&[6, 9, 11])),
            _ => Exit::Failed("no such program".into()),
        }
    }

    /// Asks a process to end: a polite one may take its grace, or be killed at its end.
    fn stop(&mut self, machine: usize, worker: WorkerId, grace_ms: u64) {
        let killed_in = self.rng.within(self.timing.kill_ms);
        let polite_in = self.rng.within(self.timing.stop_ms);
        let exits_with_0 = self.rng.below(2) == 0;
        let it = &mut self.machines[machine];
        let incarnation = it.incarnation;
        let Some(process) = it.processes.get_mut(&worker).filter(|process| process.alive()) else { return };
        process.stopped = true;
        if polite_in < grace_ms {
            self.save_steps(worker);
        }
        let (after, exit) = match polite_in < grace_ms {
            true => (polite_in, if exits_with_0 { Exit::Code(0) } else { Exit::Signal(15) }),
            false => (grace_ms + killed_in, Exit::Signal(9)),
        };
        let at = Time(self.now.0 + after);
        self.push(at, Pending::Exit { machine, incarnation, worker, exit, by_itself: false });
    }

    /// A process is found in a new state, and its agent hears of it.
    pub(super) fn on_process(&mut self, machine: usize, worker: WorkerId, state: WorkerState) {
        let it = &mut self.machines[machine];
        let Some(process) = it.processes.get_mut(&worker).filter(|process| process.alive()) else { return };
        process.state = state.clone();
        let fenced = process.fenced && !process.alive();
        if let Some(agent) = &mut it.agent {
            if fenced {
                agent.on_fenced(worker)
            } else {
                agent.on_worker(worker, state)
            }
            self.wake(machine);
        }
    }

    /// A process has written a checkpoint, and its agent finds it.
    pub(super) fn on_checkpoint(&mut self, machine: usize, worker: WorkerId, every_ms: u64) {
        let (now, it) = (self.now, &mut self.machines[machine]);
        let Some(process) = it.processes.get(&worker).filter(|process| process.alive()) else { return };
        if !process.stopped {
            let incarnation = it.incarnation;
            let next = Pending::Checkpoint { machine, incarnation, worker, every_ms };
            self.push(Time(now.0 + every_ms), next);
        }
        self.save_steps(worker);
        let it = &mut self.machines[machine];
        let own = it.clock(now);
        if let Some(agent) = &mut it.agent {
            agent.on_checkpoint(own, worker);
            self.wake(machine);
        }
    }

    /// The supervisors of a machine look at the lease, and end their workers once it is over.
    pub(super) fn on_lease_end(&mut self, machine: usize) {
        let now = self.now;
        let it = &mut self.machines[machine];
        if it.alive().next().is_none() {
            it.watched = false;
            return;
        }
        if it.clock(now) < it.lease_end {
            let at = it.seen_from_outside(it.lease_end);
            return self.push(at, Pending::LeaseEnd(machine));
        }
        it.watched = false;
        let leased = it.alive().filter(|(_, process)| !process.is_kept());
        let alive: Vec<WorkerId> = leased.map(|(id, _)| id).collect();
        self.fenced += alive.len() as u64;
        for worker in alive {
            self.machines[machine].processes.get_mut(&worker).expect("a process").fenced = true;
            self.stop(machine, worker, 0);
        }
    }

    pub(super) fn agent_tick(&mut self, machine: usize) {
        if self.agent_accident(machine) {
            return;
        }
        let (now, term, connected) = (self.now, self.term, self.cluster.is_some());
        let lease = self.policy.granted_lease();
        let it = &mut self.machines[machine];
        let own = it.clock(now);
        let Some(agent) = &mut it.agent else { return };
        if connected && it.session != term {
            it.session = term;
            agent.on_session(lease);
        }
        let actions = agent.on_tick(own);
        let message = connected.then(|| agent.message(own));
        let lease_end = agent.lease_end();
        let mute = now < it.mute_until;
        actions.into_iter().for_each(|action| self.act(machine, action));
        if let Some(message) = message.filter(|_| !mute) {
            self.send(true, |_| Pending::ToScheduler { from: machine, message: message.clone() });
        }
        // Tick at the lease's end too, so that the fence is exact.
        let it = &self.machines[machine];
        let mut next = Time(now.0 + self.timing.tick_ms);
        if own < lease_end {
            next = next.min(it.seen_from_outside(lease_end));
        }
        self.tick_at(machine, next);
    }

    /// What may befall a machine at a tick of its agent. Returns whether the agent is gone.
    fn agent_accident(&mut self, machine: usize) -> bool {
        if self.heal_at <= self.now {
            return false;
        }
        if self.fault(self.faults.node_crash) {
            self.machines[machine].returns_by_itself = true;
            self.power_off(machine);
            return true;
        }
        if self.fault(self.faults.agent_crash) {
            self.crash_agent(machine);
            return true;
        }
        if self.fault(self.faults.reconnect) {
            self.machines[machine].session = 0;
        }
        if self.fault(self.faults.partition) {
            let until = Time(self.now.0 + self.rng.below(30_000));
            let mute = self.rng.below(2) == 0;
            let it = &mut self.machines[machine];
            if mute { it.mute_until = until } else { it.deaf_until = until }
        }
        if self.fault(self.faults.device_fault) {
            let device = self.rng.below(self.machines[machine].inventory.devices.len() as u64) as usize;
            match self.rng.below(4) {
                0 => self.change_inventory(machine, |inventory| inventory.devices.truncate(device)),
                1 => {
                    let whole = (*self.machines[machine].whole).clone();
                    self.change_inventory(machine, |inventory| *inventory = whole);
                }
                2 => {
                    let (health, _) = *self.rng.pick(&Health::ALL);
                    let fault = Fault { health, why: "xid 79".into(), since_ms: self.now.0 };
                    self.set_device_fault(machine, device, Some(fault));
                }
                _ => self.set_device_fault(machine, device, None),
            }
        }
        false
    }

    /// A device breaks, or is healthy again.
    pub fn set_device_fault(&mut self, machine: usize, device: usize, fault: Option<Fault>) {
        self.change_inventory(machine, |inventory| {
            if let Some(device) = inventory.devices.get_mut(device) {
                device.fault = fault;
            }
        });
    }

    pub(super) fn change_inventory(&mut self, machine: usize, change: impl FnOnce(&mut Inventory)) {
        self.machines[machine].change_inventory(change);
        if self.machines[machine].agent.is_some() {
            self.wake(machine);
        }
    }

    /// Ends the agent of a machine. Another one follows by itself.
    pub fn crash_agent(&mut self, machine: usize) {
        self.machines[machine].stop_agent();
        let incarnation = self.machines[machine].incarnation;
        let at = Time(self.now.0 + self.rng.below(30_000));
        self.push(at, Pending::AgentStart { machine, incarnation });
    }

    /// Starts the agent of a machine that runs.
    pub fn start_agent(&mut self, machine: usize) {
        self.machines[machine].start_agent();
        self.tick_at(machine, self.now);
    }

    /// Ends everything on a machine.
    pub fn power_off(&mut self, machine: usize) {
        for worker in self.machines[machine].power_off() {
            self.ends.insert(worker, End { exit: None, by_itself: false });
        }
        if self.machines[machine].returns_by_itself {
            let at = Time(self.now.0 + self.rng.below(60_000));
            self.push(at, Pending::PowerOn(machine));
        }
    }

    /// Starts a machine, with its agent.
    pub fn power_on(&mut self, machine: usize) {
        if !self.machines[machine].powered {
            let starts_at = self.rng.below(100_000_000);
            let it = &mut self.machines[machine];
            it.powered = true;
            if 0 < it.incarnation && it.returns_by_itself {
                // Its clock begins anew, and what was written by the old one means nothing.
                it.clock_ahead_ms = starts_at;
                it.lease_end = Time(0);
            }
            self.start_agent(machine);
        }
    }

    /// Ends a worker process from outside of the system.
    pub fn end_worker(&mut self, worker: WorkerId, exit: Exit) {
        if let Some(machine) = self.launched.get(&worker).copied() {
            let incarnation = self.machines[machine].incarnation;
            self.handle(Pending::Exit { machine, incarnation, worker, exit, by_itself: true });
        }
    }

    /// Has the agent speak soon.
    pub(super) fn wake(&mut self, machine: usize) {
        let soon = Time(self.now.0 + 10);
        if soon < self.machines[machine].next_tick {
            self.tick_at(machine, soon);
        }
    }

    fn tick_at(&mut self, machine: usize, at: Time) {
        let it = &mut self.machines[machine];
        it.next_tick = at;
        let boot = it.boot;
        self.push(at, Pending::AgentTick { machine, boot });
    }
}
