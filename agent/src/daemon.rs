//! The daemon: one task that owns the protocol's state and the launcher, and goes from event to event.

mod config;
mod engine;
mod looked;
mod measuring;
mod own_name;
mod probing;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aquifer_core::agent::{Action, NodeAgent};
use aquifer_core::{Exit, Inventory, Launch as Order, Name, Progress, Time, WorkerId, WorkerState};
use aquifer_proto::v1::agent_message::Message as Up;
use aquifer_proto::{border, v1, wire};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::account::{self, RunAs};
use crate::command::{self, Surroundings};
use crate::container::Engine;
use crate::conversation::{Conversation, Heard, at, now};
use crate::device::measured::{Figures, MeasureChoice, Measurements, Site, ToMeasure};
use crate::device::watch::Watch;
use crate::device::{Backends, Resets};
use crate::exec::Commands;
use crate::hiding::Hiding;
use crate::host::Host;
use crate::launcher::{Launch, Launcher, LauncherConfig, News, SupervisorCommand};
use crate::partitions::Partitions;
use crate::session::{self, Incoming, Link};
use crate::status::Status;

pub use config::{AgentConfig, AgentError};
use engine::EngineWatch;
use measuring::{Measuring, Tried};
use own_name::own_name;
use probing::Probes;

/// How often devices are looked at.
const DEVICES_EVERY: Duration = Duration::from_secs(5);
/// Bytes of one piece of a log, at most.
const MAX_LOG_PIECE: u32 = 256 << 10;

/// Runs the agent until `shutdown`. Workers run on: the next agent of this state directory adopts them.
///
/// # Errors
/// When it cannot start.
pub async fn run(config: AgentConfig, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
    let (news_sender, mut news) = mpsc::channel(1024);
    let (incoming_sender, mut incoming) = mpsc::channel(64);
    let mut questions = config.metrics.questions();
    let (mut daemon, link, hello) = Daemon::start(config, news_sender).await?;
    tokio::spawn(session::keep_up(link, hello, incoming_sender));
    let (refreshed_sender, mut refreshed) = mpsc::channel(1);
    let (measured_sender, mut measured) = mpsc::channel(1);
    let (probed_sender, mut probed) = mpsc::channel(1);
    let (engine_sender, mut engines) = mpsc::channel(1);
    let mut devices_due = Instant::now() + DEVICES_EVERY;
    daemon.measure(&measured_sender);
    tokio::pin!(shutdown);
    loop {
        daemon.begin_probe(&probed_sender);
        daemon.talks.talk();
        let (heartbeat_due, talk_due) = (daemon.talks.heartbeat_due(), daemon.talks.talk_due());
        let lease_due = daemon.talks.lease_due();
        tokio::select! {
            Some(incoming) = incoming.recv() => daemon.on_incoming(incoming),
            Some(first) = news.recv() => {
                daemon.on_news(first);
                // What comes together is told together.
                while let Ok(more) = news.try_recv() {
                    daemon.on_news(more);
                }
            }
            Some(question) = questions.recv() => drop(question.send(daemon.seen())), // The asker may have left.
            Some((backends, reset)) = refreshed.recv() => {
                if let Some((uuid, result)) = reset {
                    daemon.resets.on_end(uuid, result);
                }
                daemon.on_refreshed(backends);
            }
            // The next look at devices tells it.
            Some(search) = engines.recv() => daemon.engine.on_search(search),
            Some(measured) = measured.recv() => {
                daemon.on_measured(measured);
                daemon.measure(&measured_sender);
            }
            Some(probed) = probed.recv() => daemon.on_probed(probed),
            () = at(heartbeat_due) => daemon.talks.send_message(),
            () = at(talk_due) => (),
            () = at(lease_due) => daemon.on_lease_end(),
            () = sleep_until(devices_due) => {
                devices_due = Instant::now() + DEVICES_EVERY;
                daemon.launcher.tidy();
                daemon.engine.search_if_due(&engine_sender);
                daemon.measure(&measured_sender);
                daemon.refresh(refreshed_sender.clone());
            }
            () = &mut shutdown => return Ok(()),
        }
    }
}

/// Devices as they are seen now, and what became of the one that was to be reset.
type Refreshed = (Backends, Option<(Name, Result<(), String>)>);

struct Daemon {
    talks: Conversation,
    launcher: Launcher,
    /// Away while devices are looked at.
    backends: Option<Backends>,
    watch: Watch,
    resets: Resets,
    /// Devices of workers that this agent has launched.
    held: BTreeMap<WorkerId, Vec<u16>>,
    /// Figures that wait for the backends.
    measured: Vec<(ToMeasure, Figures)>,
    measuring: Option<Measuring>,
    tried: Tried,
    hiding: Hiding,
    probes: Probes,
    /// Launches that wait for the backends, or for the end of a measurement.
    waiting: VecDeque<(WorkerId, Arc<Order>)>,
    /// What runs beside workers.
    commands: Commands,
    host: Host,
    engine: EngineWatch,
    /// What makes parts of devices.
    partitions: Arc<Partitions>,
    config: AgentConfig,
    surroundings: Surroundings,
    inventory: Arc<Inventory>,
    lease_written: Time,
    /// Workers that an earlier agent launched.
    adopted: BTreeSet<WorkerId>,
    /// Of the last checkpoint that each worker told of.
    checkpoint_steps: BTreeMap<WorkerId, u64>,
}

impl Daemon {
    async fn start(
        mut config: AgentConfig,
        news: mpsc::Sender<News>,
    ) -> Result<(Daemon, Link, watch::Receiver<v1::Hello>), AgentError> {
        let mut host = Host::read();
        if config.node.is_empty() {
            config.node = host.name.clone();
        }
        let node = border::name("node", &config.node)?;
        host.cpus_milli = config.cpus_milli.unwrap_or(host.cpus_milli);
        host.memory_bytes = config.memory_bytes.unwrap_or(host.memory_bytes);
        config.roots.parts_on_demand = config.parts_on_demand.clone();
        let partitions = Arc::new(config.partitions().await?);
        let supervisor = SupervisorCommand::own_binary().map_err(AgentError::Machine)?;
        let program = supervisor.program.clone();
        let launcher = LauncherConfig {
            state_dir: config.state_dir.clone(),
            supervisor,
            enforce_limits: config.enforce_limits,
            workers_group: config.workers_group.clone(),
            keep: config.keep,
            status_every: Duration::from_millis(200),
            partitions: partitions.clone(),
        };
        let (mut launcher, workers) = Launcher::open(launcher, news).await?;
        if config.run_as == RunAs::JobUser {
            account::can_enter(&config.state_dir.join("runs")).map_err(AgentError::Closed)?;
        }
        // What its lease or its machine ended has not failed: it is not reported, and therefore lost.
        let (lost, workers): (Vec<_>, Vec<_>) =
            workers.into_iter().partition(|(id, _)| launcher.was_lost(*id));
        lost.into_iter().for_each(|(id, _)| launcher.forget(id));
        let mut engine = EngineWatch::new(&config);
        let search = engine.search();
        let (choice, roots, facts) = (config.devices.clone(), config.roots.clone(), host.clone());
        let known = config.state_dir.join("devices.json");
        let backends =
            tokio::task::spawn_blocking(move || Backends::open(&choice, &facts, &roots, Some(&known)));
        let mut backends = backends.await.expect("discovery does not panic")?;
        if config.measure != MeasureChoice::Never {
            let site = config.measure_with.clone().map(Site::new);
            backends.use_measured(Measurements::open(&config.state_dir.join("measured.json"), site));
        }
        backends.enforce(launcher.limits(), partitions.makes_shares());
        for finding in backends.findings() {
            tracing::warn!(vendor = %finding.vendor, "{}", finding.what);
        }
        let hiding = match config.hide_devices {
            true => tokio::task::spawn_blocking(Hiding::try_here).await.expect("the trial does not panic"),
            false => Hiding::Off,
        };
        engine.on_search(search.await.expect("the search does not panic"));
        let mut watch = Watch::default();
        let inventory =
            Arc::new(inventory_of(&backends, &mut watch, &host, engine.found.as_deref(), &config));
        let lease_end = Time(launcher.lease_end_ms().unwrap_or(0));
        tracing::info!(node = %node, devices = inventory.devices.len(), adopted = workers.len(), "agent started");
        let kept = workers.iter().map(|(id, _)| *id).filter(|id| launcher.is_kept(*id)).collect();
        let workers: BTreeMap<WorkerId, WorkerState> = workers.into_iter().collect();
        let adopted = workers.keys().copied().collect();
        let own = own_name(&config.state_dir, &host.name).map_err(AgentError::Machine)?;
        let agent = NodeAgent::new(node, inventory.clone(), first_boot(), workers, kept, lease_end);
        let agent = agent.named(own.into());
        let findings = [&engine.findings[..], &hiding.finding(backends.found())].concat();
        let hello = hello_of(&agent, &host, &config, &backends, &findings);
        let talks = Conversation::new(agent, hello);
        let link = Link::new(&config.server, &config.tls, config.token.as_deref())?;
        let told = talks.hello().subscribe();
        let address = config.address.clone();
        let surroundings =
            Surroundings { program, checkpoint_root: String::new(), address, run_as: config.run_as };
        let daemon = Daemon {
            talks,
            launcher,
            backends: Some(backends),
            watch,
            resets: Resets::default(),
            held: BTreeMap::new(),
            measured: Vec::new(),
            measuring: None,
            tried: Tried::default(),
            hiding,
            probes: Probes::default(),
            waiting: VecDeque::new(),
            commands: Commands::default(),
            host,
            engine,
            partitions,
            config,
            surroundings,
            inventory,
            lease_written: lease_end,
            adopted,
            checkpoint_steps: BTreeMap::new(),
        };
        Ok((daemon, link, told))
    }

    fn on_incoming(&mut self, incoming: Incoming) {
        match self.talks.on_incoming(incoming) {
            Heard::Nothing => (),
            Heard::Began { checkpoint_root } => {
                self.surroundings.checkpoint_root = checkpoint_root;
                self.config.metrics.on_session();
            }
            Heard::Answered(actions) => {
                self.extend_lease();
                self.act(actions);
            }
            Heard::Log(question) => self.answer_log(question),
            Heard::Exec(order, side) => self.commands.carry(*order, side, self.launcher.run_dirs()),
        }
    }

    /// Supervisors end their workers by the lease that is written down.
    fn extend_lease(&mut self) {
        let end = self.talks.agent.lease_end();
        // Written at a tenth of the lease's length at most: what is written is never later than what is true.
        if self.talks.lease().as_millis() as u64 / 10 <= end.since(self.lease_written) {
            match self.launcher.extend_lease(Duration::from_millis(end.since(now()))) {
                Ok(()) => self.lease_written = end,
                Err(error) => tracing::error!("cannot extend the lease of running workers: {error}"),
            }
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        let forgets = actions.iter().any(|action| matches!(action, Action::Forget(_)));
        for action in actions {
            match action {
                Action::Tell(members) => self.launcher.tell(members),
                Action::Launch(id, order) => {
                    self.make_way(&order);
                    self.waiting.push_back((id, order));
                }
                Action::Probe(order) => self.order_probe(order),
                Action::EndProbe => self.end_probe(),
                Action::Stop { worker, grace_ms: 0, .. } => self.launcher.kill(worker),
                Action::Stop { worker, why, .. } => self.launcher.stop(worker, why),
                Action::Forget(worker) => {
                    self.checkpoint_steps.remove(&worker);
                    self.held.remove(&worker);
                    self.launcher.forget(worker);
                }
            }
        }
        self.launch_waiting();
        // Only now: all workers of a job may have ended and others take their places.
        if forgets {
            self.launcher.forget_lists(self.waiting.iter().map(|(id, _)| *id));
        }
    }

    fn launch_waiting(&mut self) {
        if self.is_making_way() {
            return;
        }
        let Some(backends) = &self.backends else { return };
        for (id, order) in self.waiting.drain(..) {
            let rank = &order.allocation;
            self.held.insert(id, rank.devices.clone());
            let (contained, devices) = backends.in_container(&rank.devices, rank.slice);
            let partition = self.partitions.wanted(&devices, rank.slice);
            let Some(image) = command::image(&order) else {
                let seen = match self.hiding {
                    Hiding::Done => backends.with_others_hidden(&rank.devices, rank.slice),
                    _ => backends.visibility(&rank.devices, rank.slice),
                };
                let launch = command::launch(id, &order, seen, &self.surroundings);
                self.launcher.launch(Launch { partition, ..launch });
                continue;
            };
            let Some(engine) = &self.engine.found else {
                let why = "its node has no container engine any more";
                self.talks.agent.on_worker(id, WorkerState::Exited(Exit::Failed(why.into())));
                continue;
            };
            let nodes = contained.device_nodes.clone();
            let mounts = &order.spec.roles[order.role].mounts;
            let launch = command::launch(id, &order, contained, &self.surroundings);
            let mut launch = Launch { partition, ..launch };
            launch.container = Some(command::container(image, mounts, engine, &launch, nodes, devices));
            self.launcher.launch(launch);
        }
    }

    fn on_news(&mut self, news: News) {
        match news {
            News::State { id, state: WorkerState::Exited(Exit::Failed(_)) } if self.launcher.was_lost(id) => {
                self.talks.agent.on_fenced(id);
            }
            News::State { id, state } => self.talks.agent.on_worker(id, state),
            News::Status { id, status } => {
                self.on_status(id, &status);
                if let Some(load) = status.load {
                    self.talks.agent.on_load(id, load);
                }
                if let Some(progress) = pace_of(&status) {
                    self.talks.agent.on_progress(now(), id, progress);
                }
                if let Some(scheduler) = self.talks.scheduler() {
                    let message = Some(Up::Progress(progress_of(id, *status)));
                    _ = scheduler.try_send(v1::AgentMessage { message }); // The next one says it again.
                }
            }
        }
    }

    /// Tells of checkpoints that are new. When an adopted worker wrote the one that it had is not known.
    fn on_status(&mut self, id: WorkerId, status: &Status) {
        let Some(step) = status.checkpoint_step else { return };
        match self.checkpoint_steps.insert(id, step) {
            None if self.adopted.contains(&id) => (),
            Some(known) if known == step => (),
            _ => self.talks.agent.on_checkpoint(now(), id),
        }
    }

    fn on_lease_end(&mut self) {
        let actions = self.talks.agent.on_tick(now());
        if !actions.is_empty() {
            tracing::warn!(workers = actions.len(), "lease ran out: workers are stopped");
        }
        self.act(actions);
    }

    /// Looks at the devices again; one that must be reset, and can be, is before that. Meanwhile nothing is launched.
    fn refresh(&mut self, done: mpsc::Sender<Refreshed>) {
        if let Some(mut backends) = self.backends.take() {
            let reset = self.due_reset();
            tokio::task::spawn_blocking(move || {
                let reset = reset.map(|(program, index, uuid)| (uuid, backends.reset(&program, index)));
                backends.refresh();
                _ = done.blocking_send((backends, reset)); // The daemon may have ended.
            });
        }
    }

    /// The device that is to be reset now, and by what.
    fn due_reset(&mut self) -> Option<(PathBuf, u16, Name)> {
        let program = self.config.reset.clone()?;
        let devices = &self.inventory.devices;
        let held: BTreeSet<u16> = (0..devices.len() as u16).filter(|index| self.is_held(*index)).collect();
        let index = self.resets.due(unix_ms(), devices, |index| held.contains(&index))?;
        let uuid = devices[usize::from(index)].uuid.clone();
        tracing::info!(%uuid, "resetting device {index}");
        Some((program, index, uuid))
    }

    /// Whether a worker has a device, or is about to. What workers of an earlier agent hold is not known: it may be this one.
    fn is_held(&self, index: u16) -> bool {
        let has = |id: WorkerId| self.held.get(&id).is_none_or(|devices| devices.contains(&index));
        let waits = |(_, order): &(WorkerId, Arc<Order>)| order.allocation.devices.contains(&index);
        self.talks.agent.alive().any(has) || self.waiting.iter().any(waits)
    }

    fn on_refreshed(&mut self, mut backends: Backends) {
        backends.enforce(self.launcher.limits(), self.partitions.makes_shares());
        for (of, figures) in self.measured.drain(..) {
            if let Err(error) = backends.enter_measured(&of, figures) {
                tracing::warn!("what was measured cannot be kept: {error}");
            }
        }
        let inventory =
            inventory_of(&backends, &mut self.watch, &self.host, self.engine.found.as_deref(), &self.config);
        let resets = self.resets.findings(&inventory.devices);
        let unhidden = self.hiding.finding(backends.found());
        let findings = [&self.engine.findings[..], &resets, &self.tried.findings, &unhidden].concat();
        let hello = hello_of(&self.talks.agent, &self.host, &self.config, &backends, &findings);
        let told = self.talks.hello().borrow().findings.clone();
        for finding in hello.findings.iter().filter(|finding| !told.contains(finding)) {
            tracing::warn!("{finding}");
        }
        let is_new = *self.inventory != inventory;
        if is_new {
            self.inventory = Arc::new(inventory);
            self.talks.agent.on_inventory(self.inventory.clone());
        }
        if told != hello.findings
            && let Some(scheduler) = self.talks.scheduler()
        {
            let message = Some(Up::Findings(v1::Findings { findings: hello.findings.clone() }));
            _ = scheduler.try_send(v1::AgentMessage { message }); // The next session's hello says it again.
        }
        if is_new || told != hello.findings {
            self.talks.hello().send_replace(hello);
        }
        self.backends = Some(backends);
        self.launch_waiting();
    }

    fn answer_log(&self, question: v1::LogQuestion) {
        let Some(scheduler) = self.talks.scheduler().cloned() else { return };
        let logs = self.launcher.logs();
        let worker = border::worker_id("log.worker", question.worker.as_ref());
        let is_starting = worker
            .as_ref()
            .is_ok_and(|id| self.talks.agent.workers().get(id) == Some(&WorkerState::Starting));
        tokio::spawn(async move {
            let wait = Duration::from_millis(question.wait_ms.into());
            let (from, most) = (question.offset, question.max_bytes.min(MAX_LOG_PIECE) as usize);
            let read = match worker {
                Err(invalid) => Err(invalid.to_string()),
                Ok(id) => {
                    let read = match is_starting {
                        true => logs.follow_from_start(id, from, most, wait).await,
                        false => logs.follow(id, from, most, wait).await,
                    };
                    read.map_err(|error| error.to_string())
                }
            };
            let mut answer = v1::LogAnswer { id: question.id, ..Default::default() };
            match read {
                Ok(chunk) => {
                    (answer.data, answer.skipped, answer.ended) = (chunk.data, chunk.skipped, chunk.ended);
                }
                Err(why) => answer.unavailable = why,
            }
            _ = scheduler.send(v1::AgentMessage { message: Some(Up::Log(answer)) }).await;
        });
    }
}

/// Larger than that of any earlier start, unless the clock was set back: then the scheduler says so.
pub(crate) fn first_boot() -> u64 {
    unix_ms()
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

fn inventory_of(
    backends: &Backends,
    watch: &mut Watch,
    host: &Host,
    engine: Option<&Engine>,
    config: &AgentConfig,
) -> Inventory {
    let name = |text: &String| Name::from(text.as_str());
    let labels = config.labels.iter().map(|(key, value)| (name(key), name(value))).collect();
    let mut inventory = backends.inventory(host, &config.address, config.ports, &labels);
    inventory.engine = engine.map(|engine| Name::from(engine.to_string())).unwrap_or_default();
    let now_ms = unix_ms();
    for (index, device) in (0u16..).zip(&mut inventory.devices) {
        let said = device.fault.take();
        device.fault = watch.look(now_ms, &device.uuid, said.as_ref(), backends.is_trusted(index));
    }
    inventory
}

fn hello_of(
    agent: &NodeAgent,
    host: &Host,
    config: &AgentConfig,
    backends: &Backends,
    others: &[String],
) -> v1::Hello {
    let of_devices = backends.findings().iter().map(ToString::to_string);
    v1::Hello {
        node: config.node.clone(),
        boot: agent.boot(),
        version: env!("CARGO_PKG_VERSION").into(),
        term: agent.term(),
        findings: of_devices.chain(backends.strangers().iter().chain(others).cloned()).collect(),
        agent: agent.name().into(),
        machine_boot: host.boot_id.clone(),
    }
}

/// What the scheduler learns speeds and expected ends from.
fn pace_of(status: &Status) -> Option<Progress> {
    let told = status.tokens_per_s.filter(|rate| rate.is_finite() && 0.0 < *rate);
    let rate_milli = told.map_or(0, |rate| (rate * 1000.0) as u64).min(border::MAX_RATE_MILLI);
    let step = status.step.or((rate_milli != 0).then_some(0))?;
    let (total_steps, spent) = (status.total_steps.unwrap_or(0), status.spent);
    Some(Progress { step, total_steps, rate_milli, spent })
}

fn progress_of(id: WorkerId, status: Status) -> v1::Progress {
    v1::Progress {
        worker: Some(wire::worker(id)),
        state: status.state.unwrap_or_default(),
        ready: status.ready.unwrap_or_default(),
        step: status.step,
        total_steps: status.total_steps,
        loss: status.loss,
        tokens_per_s: status.tokens_per_s,
        checkpoint_step: status.checkpoint_step,
        endpoint: status.endpoint,
        spent: status.spent.map(wire::spent),
        message: status.message.unwrap_or_default(),
    }
}
