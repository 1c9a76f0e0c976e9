//! Programs of a test: started with their output in files, waited for with a deadline, killed in the end.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub const BINARY: &str = env!("CARGO_BIN_EXE_aquifer");

/// How long anything may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until there is something to see, and fails the test when that takes too long.
#[track_caller]
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, look)
}

/// [`until`] with another deadline.
#[track_caller]
pub fn until_within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain: {what}");
        thread::sleep(Duration::from_millis(15));
    }
}

/// A first port of so many that nobody else uses: below those that the kernel gives to outgoing connections.
pub fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 128) as u16 * 128;
    until("free ports", || {
        let first = 12_000 + (start + NEXT.fetch_add(count, Ordering::Relaxed)) % 16_000;
        let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        (first..first + count).all(is_free).then_some(first)
    })
}

/// [`until`] without failing.
pub fn until_or<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        match look() {
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(15)),
            seen => return seen,
        }
    }
}

/// How a command of the CLI ended.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Done {
    /// Standard output of a command that succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }
}

/// A command of the CLI that is under way.
pub struct Running {
    pub child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    /// What it printed so far.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).expect("its output")).into_owned()
    }

    /// What it said aside so far.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.err).expect("its output")).into_owned()
    }

    /// Waits for it to print something.
    #[track_caller]
    pub fn until_out(&mut self, text: &str) {
        until_or(PATIENCE, || self.out().contains(text).then_some(()))
            .unwrap_or_else(|| panic!("no {text:?} in {:?} {:?}", self.out(), self.err()));
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        send(self.child.id() as i32, signal);
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(mut self) -> Done {
        self.finish_within(PATIENCE)
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish_within(&mut self, patience: Duration) -> Done {
        match until_or(patience, || self.child.try_wait().expect("a child")) {
            Some(status) => Done { code: status.code(), out: self.out(), err: self.err() },
            None => {
                self.child.kill().expect("a child");
                panic!("it did not end within {patience:?}: {} {}", self.out(), self.err())
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.child.kill(); // It has ended, or its test has failed.
        _ = self.child.wait();
    }
}

/// Sends a signal; a process that is gone is no error.
pub fn send(pid: i32, signal: Signal) {
    _ = kill_process(Pid::from_raw(pid).expect("a process number"), signal);
}

/// Whether a process is there and not dead.
pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Processes that have a directory in their command line or environment, with their command lines.
pub fn processes_of(dir: &Path) -> Vec<(i32, String)> {
    let wanted = dir.as_os_str().as_encoded_bytes();
    let names = |text: &[u8]| text.windows(wanted.len()).any(|window| window == wanted);
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let found = pids.filter(|pid| *pid != std::process::id() as i32).filter_map(|pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let is_ours = (names(&command) || names(&environment)) && is_alive(pid);
        is_ours.then(|| (pid, String::from_utf8_lossy(&command).replace('\0', " ")))
    });
    found.collect()
}

/// Kills whatever has a directory in its command line or environment.
pub fn kill_all_of(dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = processes_of(dir);
        if left.is_empty() || deadline < Instant::now() {
            return;
        }
        left.iter().for_each(|(pid, _)| send(*pid, Signal::KILL));
        thread::sleep(Duration::from_millis(10));
    }
}

/// A command with nothing of our own surroundings but the `PATH`.
pub fn program(dir: &Path, words: &[&str]) -> Command {
    program_of(Path::new(BINARY), dir, words)
}

/// The same of another program.
pub fn program_of(binary: &Path, dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(binary);
    command.args(words).env_clear().env("HOME", dir.join("home")).env("USER", "ada").env("TMPDIR", dir);
    command.env("PATH", std::env::var_os("PATH").expect("a PATH")).current_dir(dir).stdin(Stdio::null());
    command
}

/// Starts a command whose output goes to files.
pub fn start(dir: &Path, name: &str, mut command: Command) -> Running {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let name = format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let (out, err) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.err")));
    command.stdout(File::create(&out).expect("a file")).stderr(File::create(&err).expect("a file"));
    Running { child: command.spawn().expect("the binary runs"), out, err }
}
