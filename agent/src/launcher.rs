//! Starts workers, watches them, stops them, and finds them again after a restart of the agent.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

use aquifer_core::{Exit, Members, StopReason, WorkerId, WorkerState};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::cgroup::{Cgroups, Limits};
use crate::container::{Container, Left};
use crate::frameworks::RunFile;
use crate::logs::{self, LogChunk, LogError, Logs};
use crate::members::Told;
use crate::partitions::{Partition, Partitions};
use crate::prepare::{More, give, prepared};
use crate::run_dir::{self, Lease, Retention, RunDir, RunDirs, Spec};
use crate::status::Status;
use crate::supervisors::{Supervisor, Supervisors};
use crate::{json, process, stop, supervisor};

/// A worker to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Which worker.
    pub id: WorkerId,
    /// Program and arguments; the program is looked up in the worker's `PATH`.
    pub command: Vec<String>,
    /// Environment, over the agent's own without its `AQUIFER_…`. `AQUIFER_RUN_DIR` is added.
    pub env: Vec<(String, String)>,
    /// `None`: the run directory.
    pub working_dir: Option<PathBuf>,
    /// Cores to run on; empty: all of the agent's.
    pub cpu_affinity: Vec<usize>,
    /// Processor time where limits are enforced, in thousandths of a core; 0: no limit.
    pub cpus_milli: u32,
    /// Main memory where limits are enforced, in bytes; 0: no limit.
    pub memory_bytes: u64,
    /// From the request to stop until the worker is killed, in milliseconds.
    pub grace_ms: u64,
    /// Whether it must end when the lease does. It is not started without one.
    pub exclusive: bool,
    /// The user that it runs as; `None`: that of the agent, which else must be root.
    pub run_as: Option<String>,
    /// A directory that is made for that user, if it is not there.
    pub made: Option<PathBuf>,
    /// When it counts as running.
    pub ready: Ready,
    /// What it finds in its run directory, and variables that say where.
    pub files: Vec<RunFile>,
    /// What it runs in; `None`: nothing, as a process of the node like any other.
    pub container: Option<Container>,
    /// What is made of devices for it before it starts, and removed when it has ended.
    pub partition: Option<Partition>,
    /// Device nodes that it is not to open; a container has only its own in any case.
    pub hidden_nodes: Vec<PathBuf>,
    /// Device nodes that it can open, in directories of which others are hidden.
    pub own_nodes: Vec<PathBuf>,
}

/// When a worker counts as running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// As soon as its process has started.
    AtSpawn,
    /// When its `status.json` says `"ready": true`.
    ByStatus,
}

/// What happened to a worker.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum News {
    /// It started, or ended. Nothing follows an exit.
    State { id: WorkerId, state: WorkerState },
    /// It wrote a new `status.json`.
    Status { id: WorkerId, status: Box<Status> },
}

/// Command of the fork server, from which supervisors come; the state directory is added as its last argument.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SupervisorCommand {
    pub program: PathBuf,
    pub args: Vec<OsString>,
}

/// Settings of a launcher.
#[derive(Clone, Debug)]
pub struct LauncherConfig {
    /// Directory for all that must survive a restart of the agent. One agent at a time.
    pub state_dir: PathBuf,
    /// How to start a supervisor.
    pub supervisor: SupervisorCommand,
    /// Whether to enforce processor time and memory where the machine allows it.
    pub enforce_limits: bool,
    /// The control group of version 2 below which those of workers and supervisors are, as `/proc/self/cgroup` names it; `None`:
    /// the agent's own.
    pub workers_group: Option<PathBuf>,
    /// Ended runs to keep.
    pub keep: Retention,
    /// Time between two looks at a worker's `status.json`.
    pub status_every: Duration,
    /// What makes parts of devices.
    pub partitions: Arc<Partitions>,
}

/// Why there is no launcher.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LauncherError {
    /// The state directory cannot be made, read or written.
    #[error("state directory {path}: {error}")]
    StateDir { path: PathBuf, error: io::Error },
    /// Another agent has it.
    #[error("state directory {0} is in use by another agent")]
    InUse(PathBuf),
    /// The group that workers are to have cannot be used.
    #[error("workers-group is {path:?}: {why}")]
    Group { path: PathBuf, why: String },
    /// The machine does not give what is needed.
    #[error("{0}")]
    Machine(String),
}

/// How often the size of a log is looked at.
const LOG_EVERY: Duration = Duration::from_secs(2);

/// Runs workers. Belongs to one task; every method returns at once.
///
/// Dropping it stops nothing: workers run on under their supervisors, and the next launcher adopts them.
pub struct Launcher {
    shared: Arc<Shared>,
    workers: BTreeMap<WorkerId, Worker>,
    told: Told,
    lease_path: PathBuf,
    lease_ms: u64,
    /// Runs forgotten since the last time that ended runs were pruned.
    forgotten: usize,
    last_change: Instant,
    keep: Retention,
    _lock: File,
}

/// What all tasks of a launcher share.
struct Shared {
    dirs: RunDirs,
    boot_id: String,
    limits: Limits,
    status_every: Duration,
    /// Largest size of a log.
    log_bytes: u64,
    partitions: Arc<Partitions>,
    news: mpsc::Sender<News>,
    supervisors: Supervisors,
}

/// A worker that is not yet forgotten.
struct Worker {
    stop: watch::Sender<Stop>,
    ended: Arc<AtomicBool>,
    task: Option<AbortHandle>,
}

/// How a worker should be stopped. Only ever grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    No,
    WithGrace(StopReason),
    AtOnce,
}

impl Launcher {
    /// Opens the state directory, making it if need be, and adopts what runs.
    ///
    /// Returns every worker that was not forgotten, with its state: those that ended while there was no agent, too.
    ///
    /// # Errors
    ///
    /// Fails if the directory cannot be used, or if another agent uses it.
    pub async fn open(
        config: LauncherConfig,
        news: mpsc::Sender<News>,
    ) -> Result<(Launcher, Vec<(WorkerId, WorkerState)>), LauncherError> {
        let boot_id = process::boot_id()
            .map_err(|error| LauncherError::Machine(format!("cannot read the boot id: {error}")))?;
        let state_dir = std::path::absolute(&config.state_dir).unwrap_or(config.state_dir.clone());
        let unusable = |error| LauncherError::StateDir { path: state_dir.clone(), error };
        let dirs = RunDirs::new(&state_dir);
        fs::create_dir_all(dirs.root()).map_err(unusable)?;
        let lock = run_dir::lock(&state_dir.join("agent.lock")).map_err(unusable)?;
        let lock = lock.ok_or_else(|| LauncherError::InUse(state_dir.clone()))?;
        let probe = dirs.root().join(".probe");
        match fs::write(&probe, "1") {
            // What runs is adopted all the same; what is launched fails and says why.
            Err(error) if error.kind() != io::ErrorKind::StorageFull => return Err(unusable(error)),
            _ => fs::remove_file(&probe).map_err(unusable)?,
        }

        let cgroups = match config.workers_group {
            _ if !config.enforce_limits => Cgroups::default(),
            None => Cgroups::below_own(),
            Some(path) => Cgroups::below(&path).map_err(|why| LauncherError::Group { path, why })?,
        };
        let limits = cgroups.limits();
        let supervisors = Supervisors::new(config.supervisor, state_dir.clone(), cgroups)
            .map_err(|error| LauncherError::Machine(format!("cannot start a thread: {error}")))?;
        let (status_every, partitions) = (config.status_every, config.partitions);
        let log_bytes = config.keep.log_bytes;
        let shared = Shared { dirs, boot_id, limits, status_every, log_bytes, partitions, news, supervisors };
        let mut launcher = Launcher {
            shared: Arc::new(shared),
            workers: BTreeMap::new(),
            told: Told::default(),
            lease_path: state_dir.join("lease"),
            lease_ms: 0,
            forgotten: 0,
            last_change: Instant::now(),
            keep: config.keep,
            _lock: lock,
        };
        let shared = launcher.shared.clone();
        let find = move || {
            let found = find_runs(&shared)?;
            let alive = found.iter().filter(|(_, _, run)| run.is_some()).map(|(id, ..)| *id).collect();
            shared.partitions.reconcile(&alive);
            Ok(found)
        };
        let found = tokio::task::spawn_blocking(find).await;
        let found = found.expect("the search does not panic").map_err(unusable)?;
        let mut states = Vec::new();
        for (id, state, run) in found {
            states.push((id, state.clone()));
            launcher.adopt(id, state, run);
        }
        launcher.prune();
        Ok((launcher, states))
    }

    /// Starts a worker, unless one of this id was started before: then it, or its exit, stands.
    ///
    /// Whatever goes wrong arrives as `Exited(Failed(why))`.
    pub fn launch(&mut self, mut launch: Launch) {
        let id = launch.id;
        if self.workers.contains_key(&id) {
            return;
        }
        let dir = self.shared.dirs.of(id);
        if launch.run_as.is_some() {
            let _ = dir.create_own(); // What is not there is missed when it is handed over.
        }
        if let Err(error) = self.told.greet(id, &dir) {
            tracing::error!("cannot tell {id} who takes part: {error}");
        }
        let files = std::mem::take(&mut launch.files);
        let (container, partition) = (launch.container.take(), launch.partition.take());
        let more = More { run_as: launch.run_as.take(), made: launch.made.take(), container, partition };
        let spec = Box::new(self.spec(launch, &files, &more, &dir));
        let by_status = spec.by_status;
        let (stop, stop_wanted) = watch::channel(Stop::No);
        let ended = Arc::new(AtomicBool::new(false));
        let watcher = Watcher {
            shared: self.shared.clone(),
            id,
            dir,
            state: WorkerState::Starting,
            by_status,
            grace_ms: spec.grace_ms,
            cgroup: None,
            container: None,
            status_version: None,
            told_of_log: false,
            log_due: Instant::now(),
            stop: stop_wanted,
            ended: ended.clone(),
        };
        let task = tokio::spawn(watcher.launch(spec, files, more)).abort_handle();
        self.workers.insert(id, Worker { stop, ended, task: Some(task) });
    }

    /// Tells workers of a job, those that run and those that are yet to be launched, who takes part in it.
    pub fn tell(&mut self, members: Arc<Members>) {
        self.told.tell(members, self.workers.keys(), &self.shared.dirs);
    }

    /// Stops a worker: `stop.json` and SIGTERM, then SIGKILL after its grace or its `stop-ack`. Its exit arrives as news.
    pub fn stop(&mut self, id: WorkerId, why: StopReason) {
        self.end(id, Stop::WithGrace(why));
    }

    /// Stops a worker with SIGKILL, at once. Its exit arrives as news.
    pub fn kill(&mut self, id: WorkerId) {
        self.end(id, Stop::AtOnce);
    }

    fn end(&mut self, id: WorkerId, wanted: Stop) {
        if let Some(worker) = self.workers.get(&id) {
            worker.stop.send_if_modified(|stop| {
                let grows = *stop < wanted;
                *stop = wanted.max(*stop);
                grows
            });
        }
    }

    /// The scheduler no longer asks about a worker that has ended: its run directory may go. One that still runs is
    /// not forgotten.
    pub fn forget(&mut self, id: WorkerId) {
        if self.workers.get(&id).is_some_and(|worker| worker.ended.load(Ordering::Acquire)) {
            self.workers.remove(&id);
            // If the mark cannot be made, the next launcher reports the exit once more; that does no harm.
            let _ = self.shared.dirs.of(id).forget();
            self.forgotten += 1;
            self.last_change = Instant::now();
            if 8 * self.keep.runs + 64 < self.forgotten {
                self.prune();
            }
        }
    }

    /// Forgets who takes part in jobs that have no worker here, nor one of those that wait to be launched.
    pub fn forget_lists(&mut self, waiting: impl Iterator<Item = WorkerId>) {
        let workers = self.workers.keys().copied().chain(waiting);
        self.told.keep(&workers.map(|it| (it.job, it.attempt)).collect());
    }

    /// Removes run directories beyond those to keep, unless workers are just coming and going: file systems are slow
    /// to make new files where many were just removed. To be called every few seconds.
    pub fn tidy(&mut self) {
        if 0 < self.forgotten && Duration::from_secs(5) <= self.last_change.elapsed() {
            self.prune();
        }
    }

    /// Exclusive workers may run for so long from now, with or without an agent. Never shortens the lease.
    ///
    /// # Errors
    ///
    /// Fails if the lease file cannot be written; the earlier lease stands.
    pub fn extend_lease(&mut self, remaining: Duration) -> io::Result<()> {
        let deadline_ms = process::boot_time_ms().saturating_add(remaining.as_millis() as u64);
        if self.lease_ms < deadline_ms {
            let lease = Lease { boot_id: self.shared.boot_id.clone(), deadline_ms };
            json::replace(&self.lease_path, &lease)?;
            self.lease_ms = deadline_ms;
        }
        Ok(())
    }

    /// Whether the exit of a worker was no doing of its own: its lease or its machine ended it, or it never began.
    pub fn was_lost(&self, id: WorkerId) -> bool {
        self.shared.dirs.of(id).was_lost()
    }

    /// Whether a worker outlives the lease.
    pub fn is_kept(&self, id: WorkerId) -> bool {
        json::read::<Spec>(&self.shared.dirs.of(id).spec_path()).is_ok_and(|spec| spec.lease.is_none())
    }

    /// End of the lease that an earlier launcher left on this boot of the machine, in milliseconds of the boot clock.
    pub fn lease_end_ms(&self) -> Option<u64> {
        let lease: Lease = json::read(&self.lease_path).ok()?;
        (lease.boot_id == self.shared.boot_id).then_some(lease.deadline_ms)
    }

    /// A piece of a worker's log; see [`Logs::read`].
    ///
    /// # Errors
    ///
    /// Fails if the worker is not known here.
    pub fn read_log(&self, id: WorkerId, offset: u64, max: usize) -> Result<LogChunk, LogError> {
        self.logs().read(id, offset, max)
    }

    /// A reader of logs that other tasks can own.
    pub fn logs(&self) -> Logs {
        Logs::new(self.shared.dirs.clone())
    }

    /// Directory of a worker's files.
    pub fn run_dir(&self, id: WorkerId) -> PathBuf {
        self.shared.dirs.of(id).path
    }

    /// Where all that is known of workers is.
    pub(crate) fn run_dirs(&self) -> RunDirs {
        self.shared.dirs.clone()
    }

    /// What is enforced on workers.
    pub fn limits(&self) -> Limits {
        self.shared.limits
    }

    fn spec(&self, launch: Launch, files: &[RunFile], more: &More, dir: &RunDir) -> Spec {
        let mut env = launch.env;
        let shown = if more.run_as.is_some() { dir.own_path() } else { dir.path.clone() };
        for (file, variable) in files.iter().flat_map(|file| file.variables.iter().map(move |it| (file, it)))
        {
            give(&mut env, variable, shown.join(file.name).to_string_lossy().into_owned());
        }
        env.push((process::MARK.to_string(), shown.to_string_lossy().into_owned()));
        if more.container.is_none() {
            give(&mut env, "TMPDIR", shown.join("tmp").to_string_lossy().into_owned());
        }
        Spec {
            id: launch.id.to_string(),
            boot_id: self.shared.boot_id.clone(),
            command: launch.command,
            env,
            working_dir: launch.working_dir,
            cpu_affinity: launch.cpu_affinity,
            cpus_milli: launch.cpus_milli,
            memory_bytes: launch.memory_bytes,
            grace_ms: launch.grace_ms,
            by_status: launch.ready == Ready::ByStatus,
            lease: launch.exclusive.then(|| self.lease_path.clone()),
            // That of the supervisor that gets it.
            cgroup: None,
            account: None,
            container: None,
            hidden_nodes: launch.hidden_nodes,
            own_nodes: launch.own_nodes,
        }
    }

    fn adopt(&mut self, id: WorkerId, state: WorkerState, run: Option<FoundRun>) {
        let (stop, stop_wanted) = watch::channel(Stop::No);
        let ended = Arc::new(AtomicBool::new(run.is_none()));
        let task = run.map(|FoundRun { spec, supervisor }| {
            let watcher = Watcher {
                shared: self.shared.clone(),
                id,
                dir: self.shared.dirs.of(id),
                state,
                by_status: spec.by_status,
                grace_ms: spec.grace_ms,
                cgroup: spec.cgroup,
                container: spec.container,
                status_version: None,
                told_of_log: false,
                log_due: Instant::now(),
                stop: stop_wanted,
                ended: ended.clone(),
            };
            tokio::spawn(watcher.watch_found(supervisor)).abort_handle()
        });
        self.workers.insert(id, Worker { stop, ended, task });
    }

    fn prune(&mut self) {
        self.forgotten = 0;
        let (dirs, keep) = (self.shared.dirs.clone(), self.keep);
        tokio::task::spawn_blocking(move || dirs.prune(keep));
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        for worker in self.workers.values() {
            if let Some(task) = &worker.task {
                task.abort();
            }
        }
        // They end with the launcher, not with the last task that the runtime drops.
        self.shared.supervisors.end();
    }
}

impl SupervisorCommand {
    /// `aquifer supervise`, of the binary that runs now.
    ///
    /// # Errors
    ///
    /// Fails if the binary cannot be found any more.
    pub fn own_binary() -> io::Result<SupervisorCommand> {
        Ok(SupervisorCommand { program: env::current_exe()?, args: vec!["supervise".into()] })
    }
}

/// Follows one worker to its end.
struct Watcher {
    shared: Arc<Shared>,
    id: WorkerId,
    dir: RunDir,
    state: WorkerState,
    by_status: bool,
    grace_ms: u64,
    cgroup: Option<crate::cgroup::Group>,
    container: Option<Left>,
    status_version: Option<(u64, i64, i64, u64)>,
    /// Whether it was said that the log cannot be kept small.
    told_of_log: bool,
    /// When its size is looked at next.
    log_due: Instant,
    stop: watch::Receiver<Stop>,
    ended: Arc<AtomicBool>,
}

impl Watcher {
    async fn launch(mut self, mut spec: Box<Spec>, files: Vec<RunFile>, more: More) {
        if !more.is_nothing() {
            let (dir, id, shared) = (self.dir.clone(), self.id, self.shared.clone());
            // Drivers may be slow, and so may storage that all nodes see, and directories of users.
            let prepare = move || prepared(*spec, more, &dir, id, &shared.partitions);
            match tokio::task::spawn_blocking(prepare).await.expect("it does not panic") {
                Ok(prepared) => spec = Box::new(prepared),
                Err(why) => {
                    let exit = Exit::Failed(why.into());
                    let _ = self.dir.create().and_then(|()| self.dir.write_exit(&exit, false));
                    return self.exited(exit).await;
                }
            }
            self.container = spec.container.clone();
        }
        let start = self.shared.supervisors.start(spec, files, self.dir.clone(), self.stop.clone());
        match start.await {
            Ok(supervisor) => {
                self.cgroup = supervisor.group.clone();
                let unwritten = self.until_run_ends(supervisor, false).await;
                self.ended(unwritten, false).await;
            }
            Err(exit) => self.exited(exit).await,
        }
    }

    async fn watch_found(mut self, supervisor: Option<OwnedFd>) {
        // What ended it ended the agent as well, as when all of a node is killed.
        let with_agent = supervisor.is_none();
        // One that cannot be watched is ended like one that was killed: what may run unseen must not run.
        if let Some(Ok(supervisor)) = supervisor.map(Supervisor::found) {
            self.until_run_ends(supervisor, true).await;
        }
        self.ended(false, with_agent).await;
    }

    /// * `with_agent`: its supervisor was gone when the agent came: if it left no exit, the worker was lost, it did not fail.
    async fn ended(&mut self, unwritten: bool, with_agent: bool) {
        self.look_at_status().await;
        let exit = match self.dir.read_exit() {
            Some(exit) => exit,
            None => self.end_orphans(unwritten, with_agent).await,
        };
        self.exited(exit).await;
    }

    /// Returns whether the supervisor said that it could not write the exit.
    ///
    /// * `started`: whether it can be told to stop. Before the worker has started it takes a signal for one that was
    ///   meant for its last worker.
    async fn until_run_ends(&mut self, supervisor: Supervisor, mut started: bool) -> bool {
        let mut status_tick = tokio::time::interval_at(
            tokio::time::Instant::now() + self.shared.status_every,
            self.shared.status_every,
        );
        status_tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut launcher_lives = true;
        let mut told = Stop::No;
        loop {
            let wanted = *self.stop.borrow_and_update();
            if started && told < wanted {
                if let Stop::WithGrace(why) = wanted
                    && let Err(error) = stop::announce(&self.dir, self.id, why, self.grace_ms)
                {
                    tracing::warn!("cannot tell {} why it is stopped: {error}", self.id);
                }
                supervisor.signal(if wanted == Stop::AtOnce { Signal::QUIT } else { Signal::TERM });
                told = wanted;
            }
            tokio::select! {
                biased;
                word = supervisor.word() => match word {
                    Some(supervisor::STARTED) => {
                        started = true;
                        if !self.by_status {
                            self.running().await;
                        }
                    }
                    Some(word) => {
                        self.shared.supervisors.take_back(supervisor);
                        return word == supervisor::UNWRITTEN;
                    }
                    None => return false,
                },
                wanted = self.stop.changed(), if launcher_lives => launcher_lives = wanted.is_ok(),
                _ = status_tick.tick() => {
                    self.look_at_status().await;
                    if self.log_due <= Instant::now() {
                        self.log_due = Instant::now() + LOG_EVERY;
                        self.bound_log();
                    }
                }
            }
        }
    }

    fn bound_log(&mut self) {
        match logs::bound(&self.dir.log_path(), self.shared.log_bytes) {
            Ok(0) => (),
            Ok(bytes) => tracing::info!("the oldest {bytes} bytes of the log of {} were given up", self.id),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) if !std::mem::replace(&mut self.told_of_log, true) => {
                tracing::warn!("the log of {} cannot be kept small: {error}", self.id);
            }
            Err(_) => (),
        }
    }

    async fn look_at_status(&mut self) {
        let version = self.dir.status_version();
        if version.is_none() || version == self.status_version {
            return;
        }
        self.status_version = version;
        if let Some(status) = self.dir.read_status() {
            let ready = status.ready == Some(true);
            let _ = self.shared.news.send(News::Status { id: self.id, status: Box::new(status) }).await;
            if self.by_status && ready {
                self.running().await;
            }
        }
    }

    async fn running(&mut self) {
        if self.state == WorkerState::Starting {
            self.state = WorkerState::Running;
            let news = News::State { id: self.id, state: WorkerState::Running };
            let _ = self.shared.news.send(news).await;
        }
    }

    /// The supervisor left no exit: ends what is left of the worker and says why.
    async fn end_orphans(&mut self, unwritten: bool, with_agent: bool) -> Exit {
        let began = self.dir.pid_path().exists();
        let pids: Option<run_dir::Pids> = json::read(&self.dir.pid_path()).ok();
        let supervisor = pids.as_ref().map(|pids| (pids.supervisor, pids.supervisor_start));
        loop {
            let (path, group) = (self.dir.shown(), self.cgroup.clone());
            let search = move || {
                let members = group.as_ref().map_or(0, |group| group.kill());
                members + process::kill_left_over(&path, supervisor)
            };
            match tokio::task::spawn_blocking(search).await {
                Ok(0) => break,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        if let Some(group) = &self.cgroup {
            group.remove();
        }
        if let Some(container) = self.container.take() {
            let _ = tokio::task::spawn_blocking(move || container.remove()).await;
        }
        let why = match (unwritten, with_agent) {
            (true, _) => "it ended, but its exit could not be written: the disk is full or read-only",
            (false, true) if !began => "the agent ended before it was started",
            (false, true) => "its supervisor was killed while there was no agent",
            (false, false) => "its supervisor was killed",
        };
        let exit = Exit::Failed(why.into());
        let _ = self.dir.write_exit(&exit, with_agent);
        exit
    }

    async fn exited(&mut self, exit: Exit) {
        let (shared, id) = (self.shared.clone(), self.id);
        if shared.partitions.has(id) {
            // Its devices are whole again before anybody else gets them.
            let _ = tokio::task::spawn_blocking(move || shared.partitions.release(id)).await;
        }
        self.ended.store(true, Ordering::Release);
        let _ = self.shared.news.send(News::State { id: self.id, state: WorkerState::Exited(exit) }).await;
    }
}

/// A run that has not ended.
struct FoundRun {
    spec: Spec,
    /// A handle on its supervisor; `None` if that is dead and left no word.
    supervisor: Option<OwnedFd>,
}

type Found = (WorkerId, WorkerState, Option<FoundRun>);

/// Looks at every run directory that is not forgotten.
fn find_runs(shared: &Shared) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for id in shared.dirs.list()? {
        let dir = shared.dirs.of(id);
        if !dir.forgotten_path().exists() {
            let (state, run) = find_run(&dir, &shared.boot_id);
            found.push((id, state, run));
        }
    }
    Ok(found)
}

fn find_run(dir: &RunDir, boot_id: &str) -> (WorkerState, Option<FoundRun>) {
    let ended_as = |why: &str, lost: bool| {
        let exit = dir.read_exit().unwrap_or_else(|| {
            let exit = Exit::Failed(why.into());
            let _ = dir.write_exit(&exit, lost);
            exit
        });
        (WorkerState::Exited(exit), None)
    };
    let Ok(spec) = json::read::<Spec>(&dir.spec_path()) else {
        return ended_as("the agent ended before it was started", true);
    };
    if spec.boot_id != boot_id {
        if let Some(container) = spec.container.as_ref().filter(|_| dir.read_exit().is_none())
            && let Err(why) = container.try_remove()
        {
            tracing::warn!("container {} is left over: {why}", container.name);
        }
        return ended_as("its node was restarted", true);
    }
    let ended = |why: &str| ended_as(why, false);
    // One that has only just been started has not yet said who it is, and one that is just ending is hard to catch.
    for _ in 0..1000 {
        match dir.lock() {
            Ok(Some(_)) if dir.read_exit().is_some() => return ended("it ended"),
            Ok(Some(_)) => break,
            Ok(None) => (),
            Err(error) => return ended(&format!("its lock cannot be read: {error}")),
        }
        let supervisor = open_supervisor(dir);
        if supervisor.is_some() {
            return (state_of(dir, &spec), Some(FoundRun { spec, supervisor }));
        }
        thread::sleep(Duration::from_millis(5));
    }
    (state_of(dir, &spec), Some(FoundRun { spec, supervisor: None }))
}

/// A handle on the supervisor: the very process that `pid.json` names, or the one that has the lock as its input.
fn open_supervisor(dir: &RunDir) -> Option<OwnedFd> {
    let open = |pid: i32| rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok();
    match json::read::<run_dir::Pids>(&dir.pid_path()) {
        Ok(pids) => {
            let pidfd = open(pids.supervisor)?;
            (process::stat(pids.supervisor)?.start_time == pids.supervisor_start).then_some(pidfd)
        }
        Err(_) => {
            let pid = process::with_input(&dir.lock_path())?;
            let pidfd = open(pid)?;
            (process::with_input(&dir.lock_path()) == Some(pid)).then_some(pidfd)
        }
    }
}

fn state_of(dir: &RunDir, spec: &Spec) -> WorkerState {
    let is_ready = match spec.by_status {
        true => dir.read_status().is_some_and(|status| status.ready == Some(true)),
        false => dir.pid_path().exists(),
    };
    if is_ready { WorkerState::Running } else { WorkerState::Starting }
}
