//! The supervisor: a small process beside each worker that outlives the agent.
//!
//! It starts the worker, records how it ended, ends it when told to (SIGTERM: with grace; SIGQUIT: at once) or when
//! the lease runs out, and does not end the run before everything that the worker started is gone. It has one thread.
//!
//! It is forked by the fork server, and needs it no more. From the launcher it has a socket, on which it is told what
//! to run: the path of a run directory, its `lock` and its log, which are its standard input and error for as long as the
//! run lasts. It answers that the worker has started, and then that it has ended: from then on it can run another. When
//! there is nobody who could tell it to, it ends.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use aquifer_core::Exit;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::beside::{Beside, Door};
use crate::cgroup::{Group, Made};
use crate::container::{Left, Outcome, last_line};
use crate::run_dir::{Lease, Pids, RunDir, Spec, unix_ms};
use crate::spawn::spawn;
use crate::{json, process, socket};

/// Longest path of a run directory, in bytes: that of the kernel.
const MAX_PATH: usize = 4096;

/// How long control groups are kept for the next worker.
const GROUPS_KEPT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Between two looks for the answer of a worker that was asked to stop.
const LOOK_FOR_ACK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// What the launcher is told: the worker has started.
pub(crate) const STARTED: u8 = b'1';

/// What the launcher is told: the worker has ended, and its exit is written.
pub(crate) const ENDED: u8 = b'0';

/// What the launcher is told: the worker has ended, but its exit could not be written.
pub(crate) const UNWRITTEN: u8 = b'!';

/// What stays the same from run to run.
struct Tools {
    orders: OwnedFd,
    signals: SignalFd,
    timer: Option<OwnedFd>,
    /// `/dev/null`.
    nothing: File,
    /// When this process was started.
    started: u64,
    /// Where commands beside workers are asked for; `None`: the machine gives no socket.
    door: Option<Door>,
    /// The control groups of the last worker: to make and to remove them costs more than the next one's start.
    groups: Option<Made>,
}

/// Runs the workers that are ordered on a socket, one after the other, until its other end is closed.
pub(crate) fn serve(orders: OwnedFd) -> ExitCode {
    let _ = rustix::process::setsid();
    let mut tools = match Tools::new(orders) {
        Ok(tools) => tools,
        Err(why) => {
            eprintln!("aquifer: supervisor: {why}");
            return ExitCode::FAILURE;
        }
    };
    let mut path = [0; MAX_PATH];
    while let Ok((length @ 1.., descriptors)) = socket::receive(tools.orders.as_fd(), &mut path) {
        let Ok([lock, log]) = <[OwnedFd; 2]>::try_from(descriptors) else {
            return ExitCode::FAILURE; // Too many open files: what was ordered has not begun.
        };
        // What was meant for the last worker must not reach this one. Whoever means this one is told by the lock, or
        // by what is said once it has started.
        while let Ok(Some(_)) = tools.signals.read_signal() {}
        let _ = rustix::stdio::dup2_stderr(log);
        let _ = rustix::stdio::dup2_stdin(lock);
        let word = run(Path::new(OsStr::from_bytes(&path[..length])), &mut tools);
        tools.rest();
        tools.tell(word);
        if !tools.has_orders_within(GROUPS_KEPT) {
            tools.groups = None;
        }
    }
    ExitCode::SUCCESS
}

/// Runs the worker of a run directory to its end, and writes how it ended.
fn run(run_dir: &Path, tools: &mut Tools) -> u8 {
    let dir = RunDir { path: run_dir.to_path_buf() };
    let (exit, lost) = run_worker(&dir, tools).unwrap_or_else(|why| (Exit::Failed(why.into()), false));
    let _ = std::fs::remove_dir_all(dir.tmp_path());
    match dir.write_exit(&exit, lost) {
        Ok(()) => ENDED,
        Err(error) => {
            eprintln!("aquifer: the worker {exit}; cannot write {}: {error}", dir.exit_path().display());
            UNWRITTEN
        }
    }
}

impl Tools {
    fn new(orders: OwnedFd) -> Result<Tools, String> {
        let nothing = File::options().read(true).write(true).open("/dev/null");
        let mut mask = SigSet::empty();
        for signal in [nix::sys::signal::SIGCHLD, nix::sys::signal::SIGTERM, nix::sys::signal::SIGQUIT] {
            mask.add(signal);
        }
        mask.thread_block().map_err(|errno| format!("cannot block signals: {errno}"))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|errno| format!("cannot become a subreaper: {errno}"))?;
        let tools = Tools {
            orders,
            signals: signals.map_err(|errno| format!("signalfd: {errno}"))?,
            timer: boot_timer(),
            nothing: nothing.map_err(|error| format!("/dev/null: {error}"))?,
            started: process::start_time(rustix::process::getpid().as_raw_pid()),
            door: Door::open().ok(),
            groups: None,
        };
        tools.rest();
        Ok(tools)
    }

    /// Lets go of what belongs to a run, the lock last, or to the agent.
    fn rest(&self) {
        let _ = rustix::thread::set_name(c"idle");
        let _ = rustix::stdio::dup2_stderr(&self.nothing);
        let _ = rustix::stdio::dup2_stdin(&self.nothing);
    }

    fn has_orders_within(&self, time: Timespec) -> bool {
        let mut waits = [PollFd::new(&self.orders, PollFlags::IN)];
        rustix::event::poll(&mut waits, Some(&time)) != Ok(0)
    }

    /// Makes the control groups of a worker, unless those of the last one will do.
    fn prepare_groups(&mut self, spec: &Spec) -> Result<(), String> {
        let Some(group) = &spec.cgroup else {
            self.groups = None;
            return Ok(());
        };
        let (cpus_milli, memory_bytes) = (spec.cpus_milli, spec.memory_bytes);
        if self.groups.as_ref().is_some_and(|made| made.suits(group, cpus_milli, memory_bytes)) {
            return Ok(());
        }
        self.groups = None;
        let made = group.make(cpus_milli, memory_bytes);
        self.groups = Some(made.map_err(|error| format!("cannot make its control group: {error}"))?);
        Ok(())
    }

    /// Says something to the launcher, which need not be there any more.
    fn tell(&self, what: u8) {
        let _ = socket::send(self.orders.as_fd(), &[what], &[]);
    }
}

/// Why the worker is being ended.
enum Ending {
    Asked,
    GraceOver {
        grace_ms: u64,
    },
    /// It said that it need not be waited for.
    Acknowledged,
    LeaseOver(String),
}

/// What a look for dead children found.
enum Reaped {
    One,
    NoneYet,
    NoneLeft,
}

struct Supervisor<'a> {
    spec: &'a Spec,
    dir: &'a RunDir,
    worker: Pid,
    /// What else runs in its place.
    beside: Beside<'a>,
    /// How the worker's first process ended; others may still be there.
    ended: Option<WaitStatus>,
    /// It was not left to end by itself.
    killed: bool,
    /// What its container's end means.
    outcome: Option<Exit>,
    ending: Option<Ending>,
    /// When exclusive workers must be gone, and when the grace is over; CLOCK_BOOTTIME.
    lease_ms: Option<u64>,
    grace_end_ms: Option<u64>,
}

/// Runs the worker to its end. Returns its exit, and whether the end of the lease was the cause.
fn run_worker(dir: &RunDir, tools: &mut Tools) -> Result<(Exit, bool), String> {
    let say = |what: &'static str| move |error: io::Error| format!("supervisor: {what}: {error}");
    let spec: Spec = json::read(&dir.spec_path()).map_err(say("cannot read spec.json"))?;
    // All supervisors have the arguments of the fork server: this is how `ps` tells them apart.
    let _ = std::ffi::CString::new(spec.id.as_str()).map(|id| rustix::thread::set_name(&id));
    let lease_ms = match &spec.lease {
        Some(file) => Some(read_lease(file, &spec.boot_id).map_err(|why| format!("no lease: {why}"))?),
        None => None,
    };

    let mut pids = Pids {
        supervisor: rustix::process::getpid().as_raw_pid(),
        supervisor_start: tools.started,
        worker: i32::MAX,
        boot_id: spec.boot_id.clone(),
        started_ms: unix_ms(),
        door: tools.door.as_ref().map(|door| door.name.clone()),
    };
    // A worker may fill the disk before this process gets to say who it is.
    let room = json::Room::reserve(&dir.pid_path(), &pids).map_err(say("cannot write pid.json"))?;
    tools.prepare_groups(&spec)?;
    let groups = tools.groups.as_ref().map_or(&[][..], Made::join);
    let worker = spawn(&spec, &dir.path, tools.nothing.as_fd(), groups)?;
    pids.worker = worker.as_raw_pid();
    let recorded = room.put_instead(&pids);
    let mut supervisor = Supervisor {
        spec: &spec,
        dir,
        worker,
        beside: Beside::new(tools.door.as_ref()),
        ended: None,
        killed: false,
        outcome: None,
        ending: None,
        lease_ms,
        grace_end_ms: None,
    };
    match recorded {
        Ok(()) => {
            tools.tell(STARTED);
            supervisor.watch(tools);
        }
        Err(_) => supervisor.kill(),
    }
    supervisor.finish();
    recorded.map_err(say("cannot write pid.json"))?;
    Ok((supervisor.exit(), matches!(supervisor.ending, Some(Ending::LeaseOver(_)))))
}

impl Supervisor<'_> {
    /// Returns when the worker's first process has ended.
    fn watch(&mut self, tools: &Tools) {
        while self.ended.is_none() {
            let deadline_ms = [self.lease_ms, self.grace_end_ms].into_iter().flatten().min();
            let mut waits = vec![PollFd::new(&tools.signals, PollFlags::IN)];
            waits.extend(self.beside.waits());
            let mut timeout = None;
            if let Some(deadline_ms) = deadline_ms {
                match &tools.timer {
                    Some(timer) if arm(timer, deadline_ms) => waits.push(PollFd::new(timer, PollFlags::IN)),
                    _ => timeout = Some(&Timespec { tv_sec: 1, tv_nsec: 0 }),
                }
            }
            if self.grace_end_ms.is_some() || self.beside.is_pressed() {
                timeout = Some(&LOOK_FOR_ACK);
            }
            let _ = rustix::event::poll(&mut waits, timeout);
            drop(waits);
            self.on_signals(&tools.signals);
            if self.ended.is_none() {
                let now_ms = process::boot_time_ms();
                self.on_time(now_ms);
                let groups = tools.groups.as_ref().map_or(&[][..], Made::join);
                self.beside.look(now_ms, self.spec, self.dir, groups);
            }
        }
    }

    fn on_signals(&mut self, signals: &SignalFd) {
        while let Ok(Some(signal)) = signals.read_signal() {
            match signal.ssi_signo as i32 {
                number if number == Signal::TERM.as_raw() => self.stop(),
                number if number == Signal::QUIT.as_raw() => {
                    // An agent that finds the lease over asks for the end: that must not look like a failure.
                    self.on_time(process::boot_time_ms());
                    self.ending.get_or_insert(Ending::Asked);
                    self.kill();
                }
                _ => while let Reaped::One = self.reap(WaitOptions::NOHANG) {},
            }
        }
    }

    fn on_time(&mut self, now_ms: u64) {
        if let (Some(deadline_ms), Some(file)) = (self.lease_ms, &self.spec.lease)
            && deadline_ms <= now_ms
        {
            match read_lease(file, &self.spec.boot_id) {
                Ok(renewed_ms) if now_ms < renewed_ms => self.lease_ms = Some(renewed_ms),
                Ok(_) => self.lose("the agent did not renew it".to_string()),
                Err(why) => self.lose(why),
            }
        }
        if self.grace_end_ms.is_some() && self.dir.stop_ack_path().exists() {
            self.grace_end_ms = None;
            self.ending = Some(Ending::Acknowledged);
            self.kill();
        }
        if self.grace_end_ms.is_some_and(|end_ms| end_ms <= now_ms) {
            self.grace_end_ms = None;
            self.ending = Some(Ending::GraceOver { grace_ms: self.spec.grace_ms });
            self.kill();
        }
    }

    fn lose(&mut self, why: String) {
        self.lease_ms = None;
        self.grace_end_ms = None;
        self.ending = Some(Ending::LeaseOver(why));
        self.kill();
    }

    /// Asks the worker to end, once; after its grace it is killed.
    fn stop(&mut self) {
        if self.ending.is_none() {
            self.ending = Some(Ending::Asked);
            // One more, because the clock's reading is rounded down: the grace is never cut short.
            self.grace_end_ms =
                Some(process::boot_time_ms().saturating_add(self.spec.grace_ms).saturating_add(1));
            let _ = rustix::process::kill_process_group(self.worker, Signal::TERM);
        }
    }

    /// Ends everything that can be reached by now; [`Supervisor::finish`] ends the rest.
    fn kill(&mut self) {
        self.killed = true;
        if self.ended.is_none() {
            let _ = rustix::process::kill_process_group(self.worker, Signal::KILL);
        }
        if let Some(group) = &self.spec.cgroup {
            group.kill();
        }
        process::children().into_iter().for_each(process::kill);
    }

    fn reap(&mut self, options: WaitOptions) -> Reaped {
        match rustix::process::wait(options) {
            Ok(Some((pid, status))) => {
                if pid == self.worker {
                    self.ended = Some(status);
                }
                self.beside.on_end(pid, status, self.killed || self.ended.is_some());
                Reaped::One
            }
            Ok(None) => Reaped::NoneYet,
            Err(rustix::io::Errno::CHILD) => Reaped::NoneLeft,
            Err(_) => Reaped::One,
        }
    }

    /// Ends what the worker left behind. Orphans come to this process, so that none is overlooked.
    fn finish(&mut self) {
        let Some(container) = &self.spec.container else { return self.finish_processes() };
        if self.killed {
            // The engine would wait for them.
            self.finish_processes();
        }
        let code = self.ended.and_then(|status| status.exit_status());
        self.outcome = code.map(|code| self.meaning(container, code));
        container.remove();
        self.finish_processes();
    }

    fn meaning(&self, container: &Left, code: i32) -> Exit {
        match container.outcome(code) {
            Outcome::Exit(exit) => exit,
            Outcome::NotStarted => Exit::Failed(
                format!("its container did not start: {}", last_line(&self.dir.log_path())).into(),
            ),
        }
    }

    fn finish_processes(&mut self) {
        loop {
            match self.reap(WaitOptions::NOHANG) {
                Reaped::One => (),
                Reaped::NoneLeft => break,
                Reaped::NoneYet => {
                    self.kill();
                    self.reap(WaitOptions::empty());
                }
            }
        }
    }

    fn exit(&self) -> Exit {
        let status = self.ended;
        let signal = status.and_then(|status| status.terminating_signal());
        let limited = self.spec.cgroup.as_ref().filter(|_| 0 < self.spec.memory_bytes);
        if let (None | Some(Ending::Asked | Ending::Acknowledged), Some(outcome)) =
            (&self.ending, &self.outcome)
        {
            return outcome.clone();
        }
        match (&self.ending, signal, status.and_then(|status| status.exit_status())) {
            (Some(Ending::LeaseOver(why)), ..) => Exit::Failed(format!("lease ran out: {why}").into()),
            (Some(Ending::GraceOver { grace_ms }), ..) => {
                Exit::Failed(format!("killed: it did not stop within {grace_ms} ms").into())
            }
            // One that ended by itself meanwhile ended as it did.
            (Some(Ending::Acknowledged), Some(9), _) => {
                Exit::Failed("ended: it acknowledged that it was asked to stop".into())
            }
            // A shell tells by 137 that its child was killed.
            (None, Some(9), _) | (None, None, Some(137)) if limited.is_some_and(Group::ran_out_of_memory) => {
                let mib = self.spec.memory_bytes >> 20;
                Exit::Failed(format!("out of memory: it may use {mib} MiB").into())
            }
            (_, Some(signal), _) => Exit::Signal(signal),
            (_, None, Some(code)) => Exit::Code(code),
            (_, None, None) => Exit::Failed("supervisor: its exit was not seen".into()),
        }
    }
}

/// The deadline in a lease file.
fn read_lease(file: &Path, boot_id: &str) -> Result<u64, String> {
    let lease: Lease = json::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    if lease.boot_id != boot_id {
        return Err(format!("{}: written before the machine was restarted", file.display()));
    }
    Ok(lease.deadline_ms)
}

/// A timer that goes on while the machine sleeps.
fn boot_timer() -> Option<OwnedFd> {
    rustix::time::timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
        .ok()
}

fn arm(timer: &OwnedFd, deadline_ms: u64) -> bool {
    // A time of zero would disarm it.
    let deadline_ms = deadline_ms.max(1);
    let it_value =
        Timespec { tv_sec: (deadline_ms / 1000) as i64, tv_nsec: (deadline_ms % 1000 * 1_000_000) as _ };
    let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
    let spec = Itimerspec { it_interval, it_value };
    rustix::time::timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &spec).is_ok()
}
