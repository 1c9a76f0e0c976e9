//! The supervisors of an agent: forked when none is spare, and used again.
//!
//! A thread of its own writes the run directories and hands them out, so that the runtime waits for no disk and no
//! fork.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::{env, fs, io, thread};

use aquifer_core::Exit;
use rustix::net::RecvFlags;
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use crate::cgroup::{Cgroups, Group};
use crate::fork_server::{ForkError, ForkServer};
use crate::frameworks::RunFile;
use crate::launcher::{Stop, SupervisorCommand};
use crate::run_dir::{RunDir, Spec, unix_ms};
use crate::{json, socket};

/// Supervisors that are kept while there is nothing for them to run, at most.
const MOST_SPARE: usize = 64;

/// A supervisor, as the agent sees it.
pub(crate) struct Supervisor {
    process: OwnedFd,
    /// The socket on which one that this agent had forked takes orders and says what happens. Of one that was found at
    /// work another handle on the process: that becomes readable too, in the end, and has nothing to say.
    line: AsyncFd<OwnedFd>,
    /// The control groups of its workers.
    pub group: Option<Group>,
}

impl Supervisor {
    /// One that was found at work, by a handle on it.
    pub fn found(process: OwnedFd) -> io::Result<Supervisor> {
        Ok(Supervisor { line: watched(process.try_clone()?)?, process, group: None })
    }

    /// The next thing that it says, or `None` when it is dead.
    pub async fn word(&self) -> Option<u8> {
        let receive = |line: &OwnedFd| {
            let mut word = [0];
            let (length, _) = rustix::net::recv(line, &mut word, RecvFlags::DONTWAIT)?;
            Ok((length == 1).then_some(word[0]))
        };
        self.line.async_io(Interest::READABLE, receive).await.ok().flatten()
    }

    /// Sends it a signal, if it lives.
    pub fn signal(&self, signal: Signal) {
        let _ = rustix::process::pidfd_send_signal(&self.process, signal);
    }

    fn order(&self, dir: &RunDir, lock: &File, log: &File) -> io::Result<()> {
        let path = dir.path.as_os_str().as_bytes();
        Ok(socket::send(self.line.as_fd(), path, &[lock.as_fd(), log.as_fd()])?)
    }
}

/// Has the runtime wait for a descriptor to become readable.
pub(crate) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open until it is dropped, and nothing here takes it out of the `AsyncFd`.
    #[allow(unsafe_code)]
    let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? };
    Ok(fd)
}

/// All supervisors that this agent had forked and that have nothing to run, and the thread that has more forked.
pub(crate) struct Supervisors {
    spare: Spare,
    /// `None`: no more.
    orders: mpsc::Sender<Option<Order>>,
}

/// `None` once the agent is gone.
type Spare = Arc<Mutex<Option<Vec<Supervisor>>>>;

/// A worker to start.
struct Order {
    spec: Box<Spec>,
    files: Vec<RunFile>,
    dir: RunDir,
    stop: watch::Receiver<Stop>,
    reply: oneshot::Sender<Result<Supervisor, Exit>>,
}

impl Supervisors {
    /// To be called within a runtime.
    ///
    /// # Errors
    ///
    /// Fails if no thread can be started.
    pub fn new(command: SupervisorCommand, state_dir: PathBuf, cgroups: Cgroups) -> io::Result<Supervisors> {
        let own_env = env::vars_os().map(|(key, _)| key).filter(is_own).collect();
        let spare: Spare = Arc::new(Mutex::new(Some(Vec::new())));
        let starter = Starter {
            command,
            state_dir,
            own_env,
            cgroups,
            next_group: unix_ms(),
            server: None,
            spare: spare.clone(),
        };
        let (orders, ordered) = mpsc::channel();
        let runtime = Handle::current();
        thread::Builder::new().name("starter".to_string()).spawn(move || {
            let _in_runtime = runtime.enter();
            starter.run(ordered);
        })?;
        Ok(Supervisors { spare, orders })
    }

    /// Has a worker started, unless `stop` comes first. Returns the supervisor, at work, or how the worker ended.
    pub async fn start(
        &self,
        spec: Box<Spec>,
        files: Vec<RunFile>,
        dir: RunDir,
        stop: watch::Receiver<Stop>,
    ) -> Result<Supervisor, Exit> {
        let (reply, started) = oneshot::channel();
        let _ = self.orders.send(Some(Order { spec, files, dir, stop, reply }));
        started.await.unwrap_or_else(|_| Err(Exit::Failed("the agent cannot launch any more".into())))
    }

    /// Takes back one that has nothing to run.
    pub fn take_back(&self, supervisor: Supervisor) {
        if let Some(spare) = &mut *self.spare.lock().expect("no holder panics")
            && spare.len() < MOST_SPARE
        {
            spare.push(supervisor);
        }
    }

    /// Ends the fork server and the spare supervisors; those at work end with their runs.
    pub fn end(&self) {
        let spare = self.spare.lock().expect("no holder panics").take();
        drop(spare);
        let _ = self.orders.send(None);
    }
}

/// Whether a variable is for the agent alone: its own settings, and credentials for object stores. A job that wants such a
/// one brings it.
fn is_own(key: &OsString) -> bool {
    let key = key.to_string_lossy();
    key == "SERVICE_ACCOUNT"
        || ["AQUIFER_", "AWS_", "AZURE_", "GOOGLE_"].iter().any(|start| key.starts_with(start))
}

/// The thread that starts workers.
struct Starter {
    command: SupervisorCommand,
    state_dir: PathBuf,
    /// Variables that are the agent's own.
    own_env: Vec<OsString>,
    cgroups: Cgroups,
    /// Names the control groups of the next supervisor. It begins with the time: some of an earlier agent may be at work.
    next_group: u64,
    /// `None` before it is needed, and after it was found dead.
    server: Option<ForkServer>,
    spare: Spare,
}

impl Starter {
    fn run(mut self, orders: mpsc::Receiver<Option<Order>>) {
        for mut order in orders.into_iter().map_while(|order| order) {
            let started = match *order.stop.borrow() {
                Stop::No => None,
                Stop::WithGrace(_) | Stop::AtOnce => {
                    Some(Err(Exit::Failed("stopped before it was started".into())))
                }
            };
            let started = started.unwrap_or_else(|| {
                let started = self.start(&mut order);
                started.map_err(|why| order.dir.read_exit().unwrap_or(Exit::Failed(why.into())))
            });
            if let Err(exit) = &started {
                let _ = order.dir.write_exit(exit, false);
            }
            let _ = order.reply.send(started);
        }
    }

    fn start(&mut self, order: &mut Order) -> Result<Supervisor, String> {
        let dir = &order.dir;
        let say = |path: PathBuf| move |error: io::Error| format!("{}: {error}", path.display());
        dir.create().map_err(say(dir.path.clone()))?;
        let lock = dir.lock().map_err(say(dir.lock_path()))?;
        let lock = lock.ok_or("another supervisor runs it")?;
        if dir.exit_path().exists() {
            return Err("it was started before".to_string());
        }
        let log = dir.open_log().map_err(say(dir.log_path()))?;
        if order.spec.account.is_none() && order.spec.container.is_none() {
            fs::create_dir(dir.tmp_path()).map_err(say(dir.tmp_path()))?;
        }
        for file in &order.files {
            dir.give(file.name, file.content.as_bytes()).map_err(say(dir.path.join(file.name)))?;
        }
        loop {
            let (supervisor, is_new) = match self.take_spare() {
                Some(spare) => (spare, false),
                None => (self.fork()?, true),
            };
            order.spec.cgroup = supervisor.group.clone();
            json::write(&dir.spec_path(), &order.spec).map_err(say(dir.spec_path()))?;
            match supervisor.order(dir, &lock, &log) {
                Ok(()) => return Ok(supervisor),
                Err(error) if is_new => return Err(format!("cannot order a supervisor: {error}")),
                // It was killed meanwhile.
                Err(_) => supervisor.group.iter().for_each(Group::remove),
            }
        }
    }

    fn take_spare(&self) -> Option<Supervisor> {
        self.spare.lock().expect("no holder panics").as_mut()?.pop()
    }

    fn fork(&mut self) -> Result<Supervisor, String> {
        let cannot = |error: io::Error| format!("cannot fork a supervisor: {error}");
        for _ in 0..2 {
            let server = match self.server.take() {
                Some(server) => server,
                None => {
                    let server = ForkServer::start(&self.command, &self.state_dir, &self.own_env)?;
                    self.cgroups.adopt(server.pid());
                    server
                }
            };
            let (ours, theirs) = socket::pair().map_err(|errno| cannot(errno.into()))?;
            match server.fork(theirs) {
                Ok(process) => {
                    self.server = Some(server);
                    self.next_group += 1;
                    let group = self.cgroups.group(&self.next_group.to_string());
                    return Ok(Supervisor { process, line: watched(ours).map_err(cannot)?, group });
                }
                Err(ForkError::Refused(error)) => {
                    self.server = Some(server);
                    return Err(cannot(error));
                }
                Err(ForkError::Gone) => (),
            }
        }
        Err("the fork server was killed".to_string())
    }
}
