//! A machine of the pool: its agent, its workers, what is on its disk.
//!
//! The agent is a process that may crash alone. Workers live on without it, each under a supervisor of its
//! own, which ends it when the lease on the disk runs out. When the machine stops, all of them end.

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_core::agent::NodeAgent;
use aquifer_core::*;

/// One machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Name that its agent registers under.
    pub name: Name,
    /// What it has.
    pub inventory: Arc<Inventory>,
    /// What it has when all of it is found.
    pub whole: Arc<Inventory>,
    /// Whether it runs at all.
    pub powered: bool,
    /// Its agent, if that runs.
    pub agent: Option<NodeAgent>,
    /// Number of starts of its agent. On disk.
    pub boot: u64,
    /// Number of starts of the machine.
    pub incarnation: u64,
    /// How far its clock is ahead of the scheduler's, in milliseconds.
    pub clock_ahead_ms: u64,
    /// End of the lease, by its own clock, as last written by an agent. On disk.
    pub lease_end: Time,
    /// Run directories. On disk.
    pub processes: BTreeMap<WorkerId, Process>,
    /// Term of the scheduler with which the agent has a session; 0 for none.
    pub session: u64,
    /// Until when nothing that it sends arrives.
    pub mute_until: Time,
    /// Until when nothing arrives that is sent to it.
    pub deaf_until: Time,
    /// When its agent ticks next.
    pub next_tick: Time,
    /// Workers that ran on it when they were given up.
    pub given_up: u64,
    /// Whether its supervisors are to look at the lease.
    pub watched: bool,
    /// Whether an accident, not a script, may befall it.
    pub returns_by_itself: bool,
    /// Whether it fails its probes, and those with it.
    pub is_bad: bool,
}

/// A worker process, with its run directory.
#[derive(Clone, Debug)]
pub struct Process {
    /// How it was started.
    pub launch: Arc<Launch>,
    /// What its supervisor wrote last.
    pub state: WorkerState,
    /// Whether somebody asked it to end.
    pub stopped: bool,
    /// Whether its supervisor ended it because of the lease.
    pub fenced: bool,
    /// Whether an administrator gave it up, because its node was not heard of: its job may go on elsewhere.
    pub given_up: bool,
}

/// How a worker process ended, for those who see everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// As its supervisor wrote it; `None`: the machine stopped.
    pub exit: Option<Exit>,
    /// Nobody had asked it to end.
    pub by_itself: bool,
}

impl Process {
    /// Whether it runs.
    pub fn alive(&self) -> bool {
        !matches!(self.state, WorkerState::Exited(_))
    }

    /// Whether it outlives the lease.
    pub fn is_kept(&self) -> bool {
        self.launch.spec.on_partition == OnPartition::Keep
    }
}

impl Machine {
    /// A machine that has never run.
    pub fn new(name: Name, inventory: Inventory, clock_ahead_ms: u64) -> Machine {
        Machine {
            name,
            whole: Arc::new(inventory.clone()),
            inventory: Arc::new(inventory),
            powered: false,
            agent: None,
            boot: 0,
            incarnation: 0,
            clock_ahead_ms,
            lease_end: Time(0),
            processes: BTreeMap::new(),
            session: 0,
            mute_until: Time(0),
            deaf_until: Time(0),
            next_tick: Time(u64::MAX),
            given_up: 0,
            watched: false,
            returns_by_itself: false,
            is_bad: false,
        }
    }

    /// Its own clock, when the scheduler's shows `now`.
    pub fn clock(&self, now: Time) -> Time {
        Time(now.0 + self.clock_ahead_ms)
    }

    /// When the scheduler's clock shows what it calls `own`.
    pub fn seen_from_outside(&self, own: Time) -> Time {
        Time(own.0.saturating_sub(self.clock_ahead_ms))
    }

    /// Starts its agent, which adopts the workers that it finds on the disk.
    pub fn start_agent(&mut self) {
        assert!(self.powered && self.agent.is_none(), "{}: one agent at a time", self.name);
        self.boot += 1;
        self.session = 0;
        self.processes.retain(|_, process| process.alive() || !process.fenced);
        let found = self.processes.iter().map(|(id, process)| (*id, process.state.clone())).collect();
        let (name, inventory) = (self.name.clone(), self.inventory.clone());
        let kept = self.alive().filter(|(_, process)| process.is_kept()).map(|(id, _)| id).collect();
        let agent = NodeAgent::new(name.clone(), inventory, self.boot, found, kept, self.lease_end);
        self.agent = Some(agent.named(name));
    }

    /// Ends the agent alone.
    pub fn stop_agent(&mut self) {
        self.agent = None;
        self.next_tick = Time(u64::MAX);
    }

    /// Ends everything on it. Returns the workers that ran.
    pub fn power_off(&mut self) -> Vec<WorkerId> {
        self.stop_agent();
        self.powered = false;
        self.incarnation += 1;
        let ran: Vec<WorkerId> = self.alive().map(|(id, _)| id).collect();
        // A run directory without an exit and without a process: its worker is lost.
        self.processes.retain(|_, process| !process.alive());
        ran
    }

    /// Workers whose processes run.
    pub fn alive(&self) -> impl Iterator<Item = (WorkerId, &Process)> {
        self.processes.iter().filter(|(_, process)| process.alive()).map(|(id, process)| (*id, process))
    }

    /// Writes the end of the lease to the disk, as the agent does after every answer.
    pub fn persist_lease(&mut self) {
        if let Some(agent) = &self.agent {
            self.lease_end = agent.lease_end();
        }
    }

    /// Changes what it has, and tells its agent.
    pub fn change_inventory(&mut self, change: impl FnOnce(&mut Inventory)) {
        change(Arc::make_mut(&mut self.inventory));
        if let Some(agent) = &mut self.agent {
            agent.on_inventory(self.inventory.clone());
        }
    }
}
