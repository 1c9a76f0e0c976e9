//! Agents without machines: many of them in one process, to measure a scheduler with.
//!
//! Each one has a connection of its own, and speaks, keeps its lease and comes back as the daemon does; it offers devices
//! that there are not, and its workers are no processes: they run at once, until they are stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aquifer_core::agent::{Action, NodeAgent};
use aquifer_core::{
    Device, DeviceClass, Exit, Inventory, Isolation, Ports, ProbeState, Time, Vendor, WorkerState,
};
use aquifer_proto::tls::ClientTls;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::conversation::{Conversation, Heard, at, now};
use crate::daemon::{self, AgentError};
use crate::session::{self, Incoming, Link};

/// Agents that begin their first session within a second.
const BEGIN_PER_S: u32 = 2_000;

/// Who they are, and what they offer.
#[derive(Clone, Debug)]
pub struct CrowdConfig {
    /// Address of the scheduler, as of an agent.
    pub server: String,
    /// How many.
    pub agents: u32,
    /// Devices that each one offers.
    pub devices: u16,
}

/// What has happened among them.
#[derive(Debug, Default)]
pub struct Counts {
    /// Agents with a session whose first report was answered.
    pub present: AtomicU64,
    /// Beginnings of a session in vain, of all agents together.
    pub refused: AtomicU64,
    /// Workers that run.
    pub running: AtomicU64,
    /// Workers that were ever started.
    pub started: AtomicU64,
    /// Answers of the scheduler.
    pub answers: AtomicU64,
}

/// Agents that are on their way, until it is dropped.
pub struct Crowd {
    counts: Arc<Counts>,
    _agents: JoinSet<()>,
}

impl Crowd {
    /// Sends them on their way. Needs a runtime of tokio.
    ///
    /// # Errors
    /// The address makes no sense.
    pub fn begin(config: &CrowdConfig) -> Result<Crowd, AgentError> {
        let link = Link::new(&config.server, &ClientTls::default(), None)?;
        let counts = Arc::<Counts>::default();
        let mut agents = JoinSet::new();
        for number in 0..config.agents {
            let member = Member::new(number, config.devices, counts.clone());
            let wait = Duration::from_secs(1) * number / BEGIN_PER_S;
            agents.spawn(member.live(link.clone(), wait));
        }
        Ok(Crowd { counts, _agents: agents })
    }

    /// What has happened so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// One of them.
struct Member {
    talks: Conversation,
    counts: Arc<Counts>,
    is_present: bool,
    /// Workers of it that are counted as running.
    running: u64,
}

impl Member {
    fn new(number: u32, devices: u16, counts: Arc<Counts>) -> Member {
        let name = format!("crowd-{number:05}");
        let inventory = Arc::new(inventory(&name, devices));
        let boot = daemon::first_boot();
        let agent = NodeAgent::new(
            name.as_str().into(),
            inventory,
            boot,
            Default::default(),
            Default::default(),
            Time(0),
        );
        Member { talks: Conversation::of_node(&name, agent), counts, is_present: false, running: 0 }
    }

    async fn live(mut self, link: Link, wait: Duration) {
        tokio::time::sleep(wait).await;
        let (sender, mut incoming) = mpsc::channel(64);
        let mut connection = JoinSet::new(); // Ends with this task.
        connection.spawn(session::keep_up(link, self.talks.hello().subscribe(), sender));
        loop {
            self.talks.talk();
            let (heartbeat_due, talk_due) = (self.talks.heartbeat_due(), self.talks.talk_due());
            let lease_due = self.talks.lease_due();
            tokio::select! {
                incoming = incoming.recv() => match incoming {
                    Some(incoming) => self.on_incoming(incoming),
                    None => return,
                },
                () = at(heartbeat_due) => self.talks.send_message(),
                () = at(talk_due) => (),
                () = at(lease_due) => {
                    let actions = self.talks.agent.on_tick(now());
                    self.act(actions);
                }
            }
        }
    }

    fn on_incoming(&mut self, incoming: Incoming) {
        if matches!(incoming, Incoming::Ended(_)) && self.talks.scheduler().is_none() {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
        }
        let heard = self.talks.on_incoming(incoming);
        let is_answered = matches!(heard, Heard::Answered(_));
        self.set_present(self.talks.scheduler().is_some() && (self.is_present || is_answered));
        if let Heard::Answered(actions) = heard {
            self.counts.answers.fetch_add(1, Ordering::Relaxed);
            self.act(actions);
        }
    }

    fn set_present(&mut self, is_present: bool) {
        match (self.is_present, is_present) {
            (false, true) => _ = self.counts.present.fetch_add(1, Ordering::Relaxed),
            (true, false) => _ = self.counts.present.fetch_sub(1, Ordering::Relaxed),
            _ => (),
        }
        self.is_present = is_present;
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Launch(id, _) => {
                    self.counts.started.fetch_add(1, Ordering::Relaxed);
                    self.talks.agent.on_worker(id, WorkerState::Running);
                }
                Action::Stop { worker, .. } => {
                    self.talks.agent.on_worker(worker, WorkerState::Exited(Exit::Code(0)));
                }
                Action::Probe(order) => self.talks.agent.on_probe(order.id, ProbeState::Passed),
                Action::Tell(_) | Action::Forget(_) | Action::EndProbe => (),
            }
        }
        let running = self.talks.agent.alive().count() as u64;
        self.counts.running.fetch_add(running, Ordering::Relaxed);
        self.counts.running.fetch_sub(self.running, Ordering::Relaxed);
        self.running = running;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.set_present(false);
        self.counts.running.fetch_sub(self.running, Ordering::Relaxed);
    }
}

/// A machine with devices of one class.
fn inventory(name: &str, devices: u16) -> Inventory {
    let class = DeviceClass { vendor: Vendor::Nvidia, model: "h200-141gb".into(), memory_bytes: 141 << 30 };
    let class = Arc::new(class);
    let device = |number: u16| Device {
        class: class.clone(),
        uuid: format!("GPU-{name}-{number}").as_str().into(),
        number: number.into(),
        island: Some(0),
        locality: Default::default(),
        isolation: Isolation::Advisory,
        fault: None,
        speed_milli: 1000,
        speed_source: "".into(),
        memory_gbs: 0,
    };
    Inventory {
        devices: (0..devices).map(device).collect(),
        cpus_milli: 64_000,
        memory_bytes: 512 << 30,
        address: "127.0.0.1".into(),
        ports: Ports { first: 20_000, last: 20_999 },
        labels: Default::default(),
        engine: "".into(),
        measured: Default::default(),
    }
}
