//! Run directories: all that is known about one worker process, in files that people can read.
//!
//! ```text
//! STATE/                            the agent's state directory
//!   agent.lock                      locked by the agent that uses it
//!   agent-name                      what it calls itself, over all its starts: one name a state directory
//!   lease                           {"boot_id", "deadline_ms"}: until when exclusive workers may run, CLOCK_BOOTTIME
//!   runs/job-7.1/0/                 job 7, attempt 1, rank 0
//!     spec.json                     all that is needed to start it: command, environment, limits, … (mode 0600)
//!     lock                          flock held for as long as the supervisor lives
//!     pid.json                      process ids of supervisor, with its start time, and worker
//!     status.json                   written by the worker, replaced atomically; see [`Status`]
//!     members.json                  who takes part, where workers may come and go; replaced atomically
//!     hostfile, hccl.json           where all ranks of a gang stand, for frameworks
//!     stop.json                     it is to end: {"id", "reason", "grace_s", "deadline"}; before it gets SIGTERM
//!     stop-ack                      written by the worker then: nobody need wait for its grace to end
//!     exit.json                     {"code": 0, …}, {"signal": 9, …} or {"failed": "why", …}, with "ended_ms"
//!     log                           standard output and standard error, appended; what was given up is a hole
//!     forgotten                     what `lock` is called once the scheduler no longer asks about it: may be pruned
//! ```
//!
//! Lock held: a supervisor lives. Lock free and `exit.json`: the worker ended, and nothing of it is left. Lock free
//! and no `exit.json`: the supervisor was killed. Nothing is synced to disk: a machine that crashes ends its workers
//! too, and `boot_id` in `spec.json` tells.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, lchown};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use aquifer_core::{Exit, JobId, WorkerId};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::cgroup::Group;
use crate::container::Left;
use crate::json;
use crate::process;
use crate::status::Status;

/// Largest `status.json` that is read, in bytes.
pub const MAX_STATUS_BYTES: u64 = 64 << 10;

/// `spec.json`: all that a supervisor needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub id: String,
    pub boot_id: String,
    pub command: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: Option<PathBuf>,
    pub cpu_affinity: Vec<usize>,
    pub cpus_milli: u32,
    pub memory_bytes: u64,
    pub grace_ms: u64,
    pub by_status: bool,
    /// Given for exclusive workers: the file that says until when they may run.
    pub lease: Option<PathBuf>,
    /// Given where limits are enforced.
    pub cgroup: Option<Group>,
    /// Given where it runs as somebody else than its supervisor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<Account>,
    /// Given where the command runs a container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Left>,
    /// Device nodes that it is not to open, and directories of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hidden_nodes: Vec<PathBuf>,
    /// Of directories among them: nodes that it can open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own_nodes: Vec<PathBuf>,
}

/// `pid.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pids {
    pub supervisor: i32,
    pub supervisor_start: u64,
    pub worker: i32,
    pub boot_id: String,
    pub started_ms: u64,
    /// Where the supervisor is told of commands beside the worker: the name of a socket without a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub door: Option<String>,
}

/// The lease file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub boot_id: String,
    pub deadline_ms: u64,
}

/// `exit.json`.
#[derive(Serialize, Deserialize)]
struct ExitFile {
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    lost: bool,
    ended_ms: u64,
}

/// How many ended runs are kept once they are forgotten; the newest are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Largest number of run directories.
    pub runs: usize,
    /// Largest sum of their sizes, in bytes.
    pub bytes: u64,
    /// Largest size of the log of a worker that runs, in bytes: beyond it the oldest half is given up.
    pub log_bytes: u64,
}

impl Default for Retention {
    /// 1,000 runs, 4 GiB; 1 GiB of a log.
    fn default() -> Retention {
        Retention { runs: 1000, bytes: 4 << 30, log_bytes: 1 << 30 }
    }
}

/// All run directories of one state directory.
#[derive(Clone, Debug)]
pub(crate) struct RunDirs {
    root: PathBuf,
}

/// One run directory.
#[derive(Clone, Debug)]
pub(crate) struct RunDir {
    pub path: PathBuf,
}

impl RunDirs {
    pub fn new(state_dir: &Path) -> RunDirs {
        RunDirs { root: state_dir.join("runs") }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn of(&self, id: WorkerId) -> RunDir {
        RunDir { path: self.root.join(id.to_string()) }
    }

    /// Every worker that has a run directory, in the order of their ids. Directories of other names are left alone.
    pub fn list(&self) -> io::Result<Vec<WorkerId>> {
        let mut ids = Vec::new();
        for attempt in fs::read_dir(&self.root)?.flatten() {
            let name = attempt.file_name();
            let Some((job, number)) = name.to_str().and_then(parse_attempt) else { continue };
            for rank in fs::read_dir(attempt.path()).into_iter().flatten().flatten() {
                let rank = rank.file_name().to_str().and_then(|rank| rank.parse().ok());
                ids.extend(rank.map(|rank| WorkerId { job, attempt: number, rank }));
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// Removes the oldest forgotten runs until the rest fits. Returns how many were removed.
    pub fn prune(&self, keep: Retention) -> io::Result<usize> {
        let mut ended: Vec<(SystemTime, u64, RunDir)> = Vec::new();
        for id in self.list()? {
            let dir = self.of(id);
            let ended_at = fs::metadata(dir.exit_path()).and_then(|exit| exit.modified());
            if let (true, Ok(ended_at)) = (dir.forgotten_path().exists(), ended_at) {
                ended.push((ended_at, dir.size(), dir));
            }
        }
        ended.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| b.2.path.cmp(&a.2.path)));
        let (mut kept, mut bytes, mut removed) = (0, 0, 0);
        for (_, size, dir) in ended {
            if kept < keep.runs && bytes + size <= keep.bytes {
                (kept, bytes) = (kept + 1, bytes + size);
                continue;
            }
            fs::remove_dir_all(&dir.path)?;
            let _ = dir.path.parent().map(fs::remove_dir);
            removed += 1;
        }
        Ok(removed)
    }
}

impl RunDir {
    pub fn spec_path(&self) -> PathBuf {
        self.path.join("spec.json")
    }
    pub fn lock_path(&self) -> PathBuf {
        self.path.join("lock")
    }
    pub fn pid_path(&self) -> PathBuf {
        self.path.join("pid.json")
    }
    /// What the worker finds in `AQUIFER_RUN_DIR`, and writes there.
    ///
    /// One that runs as another user has a directory of its own in the run directory: the agent believes what stands in the
    /// latter, and acts as root on it.
    pub fn shown(&self) -> PathBuf {
        let own = self.own_path();
        if own.is_dir() { own } else { self.path.clone() }
    }
    pub fn own_path(&self) -> PathBuf {
        self.path.join("own")
    }
    /// Where a worker's temporary files go.
    pub fn tmp_path(&self) -> PathBuf {
        self.shown().join("tmp")
    }
    pub fn status_path(&self) -> PathBuf {
        self.shown().join("status.json")
    }
    pub fn exit_path(&self) -> PathBuf {
        self.path.join("exit.json")
    }
    pub fn stop_path(&self) -> PathBuf {
        self.shown().join("stop.json")
    }
    pub fn stop_ack_path(&self) -> PathBuf {
        self.shown().join("stop-ack")
    }
    pub fn log_path(&self) -> PathBuf {
        self.path.join("log")
    }
    pub fn forgotten_path(&self) -> PathBuf {
        self.path.join("forgotten")
    }

    /// Makes the directory, and that of its attempt.
    pub fn create(&self) -> io::Result<()> {
        match fs::create_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(&self.path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    /// Makes the directory of a worker that is to run as another user. It is the agent's until [`RunDir::hand_over`].
    pub fn create_own(&self) -> io::Result<()> {
        self.create()?;
        let mut private = DirBuilder::new();
        private.mode(0o700).create(self.own_path())?;
        private.create(self.tmp_path())
    }

    /// Gives a worker's own directory, with what is in it, to the user that it runs as. Nothing of that user runs in it yet.
    pub fn hand_over(&self, to: &Account) -> io::Result<()> {
        let own = self.own_path();
        for entry in fs::read_dir(&own)? {
            lchown(entry?.path(), Some(to.uid), Some(to.gid))?;
        }
        lchown(&own, Some(to.uid), Some(to.gid))
    }

    /// Puts a file where the worker finds it, for it to read.
    pub fn give(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let dir = self.shown();
        let of = fs::symlink_metadata(&dir)?;
        json::replace_bytes_for((of.uid(), of.gid()), &dir.join(name), bytes)
    }

    /// The lock, or `None` while a supervisor holds it.
    pub fn lock(&self) -> io::Result<Option<File>> {
        lock(&self.lock_path())
    }

    /// The log, opened to be appended to.
    pub fn open_log(&self) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o640).open(self.log_path())
    }

    /// What the supervisor recorded; `None` if it did not.
    pub fn read_exit(&self) -> Option<Exit> {
        let file: ExitFile = json::read(&self.exit_path()).ok()?;
        match file {
            ExitFile { failed: Some(why), .. } => Some(Exit::Failed(why.into())),
            ExitFile { signal: Some(signal), .. } => Some(Exit::Signal(signal)),
            ExitFile { code: Some(code), .. } => Some(Exit::Code(code)),
            _ => None,
        }
    }

    /// Whether the recorded exit was no doing of the worker's: its lease or its machine ended it, or it never began.
    pub fn was_lost(&self) -> bool {
        json::read::<ExitFile>(&self.exit_path()).is_ok_and(|file| file.lost)
    }

    /// Records the exit. On a full disk it takes the room of `pid.json`, which has done its duty by then.
    pub fn write_exit(&self, exit: &Exit, lost: bool) -> io::Result<()> {
        let (mut code, mut signal, mut failed) = (None, None, None);
        match exit {
            Exit::Code(value) => code = Some(*value),
            Exit::Signal(value) => signal = Some(*value),
            Exit::Failed(why) => failed = Some(why.to_string()),
        }
        let file = ExitFile { code, signal, failed, lost, ended_ms: unix_ms() };
        json::replace(&self.exit_path(), &file).or_else(|error| {
            let bytes = json::bytes(&file)?;
            let pids = OpenOptions::new().write(true).open(self.pid_path()).map_err(|_| error)?;
            pids.write_all_at(&bytes, 0)?;
            pids.set_len(bytes.len() as u64)?;
            fs::rename(self.pid_path(), self.exit_path())
        })
    }

    /// Marks a run that nobody asks about any more. Its lock has done its duty and becomes the mark: no new file.
    pub fn forget(&self) -> io::Result<()> {
        fs::rename(self.lock_path(), self.forgotten_path())
            .or_else(|_| File::create(self.forgotten_path()).map(|_| ()))
    }

    /// What tells one version of `status.json` from the next; `None` if there is none.
    pub fn status_version(&self) -> Option<(u64, i64, i64, u64)> {
        let meta = fs::symlink_metadata(self.status_path()).ok()?;
        Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
    }

    /// `None` if there is no status, or none that can be read.
    pub fn read_status(&self) -> Option<Status> {
        json::read_bytes(&self.status_path(), MAX_STATUS_BYTES).ok()?.as_slice().try_into().ok()
    }

    fn size(&self) -> u64 {
        let files = fs::read_dir(&self.path).into_iter().flatten().flatten();
        // What was given up of a log is a hole.
        files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len().min(512 * meta.blocks())).sum()
    }
}

/// Whether workers run under the agent of a state directory, as those ask who are not that agent.
pub fn has_workers(state_dir: &Path) -> bool {
    let all = RunDirs::new(state_dir);
    let runs = |id: WorkerId| {
        let dir = all.of(id);
        let pids: Option<Pids> = json::read(&dir.pid_path()).ok();
        let lives = |pids: Pids| process::start_time(pids.supervisor) == pids.supervisor_start;
        !dir.exit_path().exists() && pids.is_some_and(lives)
    };
    all.list().unwrap_or_default().into_iter().any(runs)
}

/// Opens and locks a file, which is made if need be; `None` while another process holds it.
pub(crate) fn lock(path: &Path) -> io::Result<Option<File>> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The last bytes of a file, as text; empty if it cannot be read.
pub(crate) fn tail(path: &Path, most: u64) -> String {
    let read = || {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut bytes = vec![0; size.min(most) as usize];
        file.read_exact_at(&mut bytes, size.saturating_sub(most))?;
        Ok::<_, io::Error>(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Reads `job-7.1`.
fn parse_attempt(name: &str) -> Option<(JobId, u32)> {
    let (job, attempt) = name.strip_prefix("job-")?.split_once('.')?;
    Some((JobId(job.parse().ok()?), attempt.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn dirs() -> (tempfile::TempDir, RunDirs) {
        let state = tempfile::tempdir().unwrap();
        let dirs = RunDirs::new(state.path());
        fs::create_dir(dirs.root()).unwrap();
        (state, dirs)
    }

    fn id(job: u64, rank: u32) -> WorkerId {
        WorkerId { job: JobId(job), attempt: 1, rank }
    }

    /// A run that ended `age_s` seconds ago and wrote `bytes` of log.
    fn ended(dirs: &RunDirs, id: WorkerId, age_s: u64, bytes: usize, forgotten: bool) {
        let dir = dirs.of(id);
        dir.create().unwrap();
        fs::write(dir.log_path(), vec![b'x'; bytes]).unwrap();
        dir.write_exit(&Exit::Code(0), false).unwrap();
        let exit = File::options().write(true).open(dir.exit_path()).unwrap();
        exit.set_modified(SystemTime::now() - Duration::from_secs(age_s)).unwrap();
        if forgotten {
            fs::write(dir.forgotten_path(), "").unwrap();
        }
    }

    #[test]
    fn the_newest_runs_are_kept_and_those_that_are_not_forgotten() {
        let (_state, dirs) = dirs();
        for job in 1..=6 {
            ended(&dirs, id(job, 0), 100 - job, 10, job != 1);
        }
        dirs.of(id(9, 3)).create().unwrap();
        fs::write(dirs.of(id(9, 3)).forgotten_path(), "").unwrap();
        fs::create_dir(dirs.root().join("job-of-someone-else")).unwrap();
        assert_eq!(dirs.prune(Retention { runs: 2, bytes: 1 << 20, ..Retention::default() }).unwrap(), 3);
        assert_eq!(dirs.list().unwrap(), [id(1, 0), id(5, 0), id(6, 0), id(9, 3)]);
        assert!(!dirs.root().join("job-2.1").exists(), "the attempt's directory goes with its last rank");
        assert!(dirs.root().join("job-of-someone-else").exists());
    }

    #[test]
    fn runs_that_are_too_large_together_are_pruned() {
        let (_state, dirs) = dirs();
        for rank in 0..4 {
            ended(&dirs, id(1, rank), u64::from(rank), 1000, true);
        }
        assert_eq!(dirs.prune(Retention { runs: 100, bytes: 2500, ..Retention::default() }).unwrap(), 2);
        assert_eq!(dirs.list().unwrap(), [id(1, 0), id(1, 1)]);
        assert_eq!(dirs.prune(Retention { runs: 100, bytes: 0, ..Retention::default() }).unwrap(), 2);
        assert!(!dirs.root().join("job-1.1").exists());
    }

    #[test]
    fn a_status_that_is_too_large_is_not_read_and_a_long_text_is_cut() {
        let (_state, dirs) = dirs();
        let dir = dirs.of(id(1, 0));
        dir.create().unwrap();
        let write = |message: &str| {
            fs::write(dir.status_path(), format!("{{\"message\":\"{message}\"}}")).unwrap();
        };
        write(&"x".repeat(2000));
        assert_eq!(dir.read_status().unwrap().message.unwrap().len(), crate::status::MAX_STATUS_TEXT);
        write(&"x".repeat(MAX_STATUS_BYTES as usize));
        assert_eq!(dir.read_status(), None);
    }

    #[test]
    fn every_kind_of_exit_is_read_as_it_was_written() {
        let (_state, dirs) = dirs();
        let dir = dirs.of(id(1, 0));
        dir.create().unwrap();
        assert_eq!(dir.read_exit(), None);
        for exit in [Exit::Code(-1), Exit::Code(42), Exit::Signal(9), Exit::Failed("\"why\"\n".into())] {
            dir.write_exit(&exit, false).unwrap();
            assert_eq!(dir.read_exit(), Some(exit));
        }
        fs::write(dir.exit_path(), "{\"ended_ms\":1}").unwrap();
        assert_eq!(dir.read_exit(), None);
    }
}
