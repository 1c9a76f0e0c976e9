//! The supervisor: a small process beside each worker that outlives the agent.
//!
//! It starts the worker, records how it ended, ends it when told to (SIGTERM: with grace; SIGQUIT: at once) or when
//! the lease runs out, and does not leave before everything that the worker started is gone. It has one thread.
//!
//! It is forked by the fork server, and needs it no more. The launcher gives it: the locked `lock` as standard input,
//! held until this process dies; a pipe as standard output, which gets one byte when the worker has started; the log
//! as standard error.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use aquifer_core::Exit;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::run_dir::{Lease, Pids, RunDir, Spec, unix_ms};
use crate::{json, process};

/// What the launcher reads from the pipe: the worker has started.
pub(crate) const STARTED: u8 = b'1';

/// What the launcher reads from the pipe: the worker has ended, but its exit could not be written.
pub(crate) const UNWRITTEN: u8 = b'!';

/// Runs the worker of a run directory to its end, in a process that was forked for it.
pub(crate) fn run(run_dir: &Path) -> ExitCode {
    let _ = rustix::process::setsid();
    let dir = RunDir { path: run_dir.to_path_buf() };
    let (exit, lost) = run_worker(&dir).unwrap_or_else(|why| (Exit::Failed(why.into()), false));
    match dir.write_exit(&exit, lost) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("aquifer: the worker {exit}; cannot write {}: {error}", dir.exit_path().display());
            tell(UNWRITTEN);
            ExitCode::FAILURE
        }
    }
}

/// Says something to the launcher, which need not be there any more.
fn tell(what: u8) {
    let _ = rustix::io::write(rustix::stdio::stdout(), &[what]);
}

/// Why the worker is being ended.
enum Ending {
    Asked,
    GraceOver { grace_ms: u64 },
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
    worker: Pid,
    /// How the worker's first process ended; others may still be there.
    ended: Option<WaitStatus>,
    ending: Option<Ending>,
    /// When exclusive workers must be gone, and when the grace is over; CLOCK_BOOTTIME.
    lease_ms: Option<u64>,
    grace_end_ms: Option<u64>,
}

/// Runs the worker to its end. Returns its exit, and whether the end of the lease was the cause.
fn run_worker(dir: &RunDir) -> Result<(Exit, bool), String> {
    let say = |what: &'static str| move |error: io::Error| format!("supervisor: {what}: {error}");
    let spec: Spec = json::read(&dir.spec_path()).map_err(say("cannot read spec.json"))?;
    // All supervisors have the arguments of the fork server: this is how `ps` tells them apart.
    let _ = std::ffi::CString::new(spec.id.as_str()).map(|id| rustix::thread::set_name(&id));
    let mut mask = SigSet::empty();
    for signal in [nix::sys::signal::SIGCHLD, nix::sys::signal::SIGTERM, nix::sys::signal::SIGQUIT] {
        mask.add(signal);
    }
    mask.thread_block().map_err(|errno| format!("supervisor: cannot block signals: {errno}"))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
    let signals = signals.map_err(|errno| format!("supervisor: signalfd: {errno}"))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|errno| format!("supervisor: cannot become a subreaper: {errno}"))?;
    let lease_ms = match &spec.lease {
        Some(file) => Some(read_lease(file, &spec.boot_id).map_err(|why| format!("no lease: {why}"))?),
        None => None,
    };

    let worker = spawn(&spec, dir)?;
    let own = rustix::process::getpid().as_raw_pid();
    let pids = Pids {
        supervisor: own,
        supervisor_start: process::start_time(own),
        worker: worker.as_raw_pid(),
        worker_start: process::start_time(worker.as_raw_pid()),
        boot_id: spec.boot_id.clone(),
        started_ms: unix_ms(),
    };
    let recorded = json::replace(&dir.pid_path(), &pids);
    let mut supervisor =
        Supervisor { spec: &spec, worker, ended: None, ending: None, lease_ms, grace_end_ms: None };
    match recorded {
        Ok(()) => {
            tell(STARTED);
            supervisor.watch(&signals);
        }
        Err(_) => supervisor.kill(),
    }
    supervisor.finish();
    recorded.map_err(say("cannot write pid.json"))?;
    Ok((supervisor.exit(), matches!(supervisor.ending, Some(Ending::LeaseOver(_)))))
}

impl Supervisor<'_> {
    /// Returns when the worker's first process has ended.
    fn watch(&mut self, signals: &SignalFd) {
        let mut timer = None;
        while self.ended.is_none() {
            let deadline_ms = [self.lease_ms, self.grace_end_ms].into_iter().flatten().min();
            let mut waits = vec![PollFd::new(signals, PollFlags::IN)];
            let mut timeout = None;
            if let Some(deadline_ms) = deadline_ms {
                if timer.is_none() {
                    timer = boot_timer();
                }
                match &timer {
                    Some(timer) if arm(timer, deadline_ms) => waits.push(PollFd::new(timer, PollFlags::IN)),
                    _ => timeout = Some(&Timespec { tv_sec: 1, tv_nsec: 0 }),
                }
            }
            let _ = rustix::event::poll(&mut waits, timeout);
            self.on_signals(signals);
            if self.ended.is_none() {
                self.on_time(process::boot_time_ms());
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
    fn kill(&self) {
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
                Reaped::One
            }
            Ok(None) => Reaped::NoneYet,
            Err(rustix::io::Errno::CHILD) => Reaped::NoneLeft,
            Err(_) => Reaped::One,
        }
    }

    /// Ends what the worker left behind. Orphans come to this process, so that none is overlooked.
    fn finish(&mut self) {
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
        let out_of_memory = self.spec.cgroup.as_ref().is_some_and(|group| group.ran_out_of_memory());
        if let Some(group) = &self.spec.cgroup {
            group.remove();
        }
        match (&self.ending, signal, status.and_then(|status| status.exit_status())) {
            (Some(Ending::LeaseOver(why)), ..) => Exit::Failed(format!("lease ran out: {why}").into()),
            (Some(Ending::GraceOver { grace_ms }), ..) => {
                Exit::Failed(format!("killed: it did not stop within {grace_ms} ms").into())
            }
            (None, Some(9), _) if out_of_memory => {
                let mib = self.spec.memory_bytes >> 20;
                Exit::Failed(format!("out of memory: it may use {mib} MiB").into())
            }
            (_, Some(signal), _) => Exit::Signal(signal),
            (_, None, Some(code)) => Exit::Code(code),
            (_, None, None) => Exit::Failed("supervisor: its exit was not seen".into()),
        }
    }
}

/// Starts the worker: own process group, its cores, its control groups; it dies with this process.
fn spawn(spec: &Spec, dir: &RunDir) -> Result<Pid, String> {
    let (program, args) = spec.command.split_first().ok_or("command is empty")?;
    let working_dir = spec.working_dir.as_deref().unwrap_or(&dir.path);
    let log =
        io::stderr().as_fd().try_clone_to_owned().map_err(|error| format!("cannot open the log: {error}"))?;
    let cores = match spec.cpu_affinity.is_empty() {
        true => None,
        false => Some(crate::host::cpu_set(&spec.cpu_affinity)?),
    };
    let groups: Vec<File> = match &spec.cgroup {
        Some(group) => {
            let made = group.create(spec.cpus_milli, spec.memory_bytes);
            made.map_err(|error| format!("cannot make its control group: {error}"))?
        }
        None => Vec::new(),
    };
    let supervisor = rustix::process::getpid();
    let mut command = Command::new(program);
    command.args(args).current_dir(working_dir).process_group(0);
    command.envs(spec.env.iter().map(|(key, value)| (key, value)));
    command.stdin(Stdio::null()).stdout(log).stderr(Stdio::inherit());
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(supervisor) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        for group in &groups {
            rustix::io::write(group, b"0")?;
        }
        if let Some(cores) = &cores {
            rustix::thread::sched_setaffinity(None, cores)?;
        }
        SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only; it allocates nothing and takes no lock.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(before_exec);
    }
    match command.spawn() {
        Ok(child) => Ok(Pid::from_child(&child)),
        Err(error) => {
            if let Some(group) = &spec.cgroup {
                group.remove();
            }
            Err(why_not_started(program, spec.working_dir.as_deref(), &error))
        }
    }
}

/// Says in a sentence why a program could not be started; the kernel's error does not tell which path it means.
fn why_not_started(program: &str, working_dir: Option<&Path>, error: &io::Error) -> String {
    use io::ErrorKind::{NotFound, PermissionDenied};
    if let Some(dir) = working_dir {
        match std::fs::metadata(dir).map(|meta| meta.is_dir()) {
            Ok(true) => (),
            Ok(false) => return format!("working_dir {}: not a directory", dir.display()),
            Err(error) if error.kind() == NotFound => {
                return format!("working_dir {}: no such directory", dir.display());
            }
            Err(error) => return format!("working_dir {}: {error}", dir.display()),
        }
        let enter = rustix::fs::access(dir, rustix::fs::Access::EXEC_OK);
        if error.kind() == PermissionDenied && enter.is_err() {
            return format!("working_dir {}: permission denied", dir.display());
        }
    }
    let is_path = program.contains('/');
    match error.kind() {
        NotFound if !is_path => format!("program {program}: not found in PATH"),
        NotFound if Path::new(program).exists() => {
            format!("program {program}: its interpreter does not exist")
        }
        NotFound => format!("program {program}: no such file"),
        PermissionDenied => format!("program {program}: permission denied"),
        _ => format!("program {program}: {error}"),
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
