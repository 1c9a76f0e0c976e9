//! Facts about processes, from `/proc`, and how to end those that are ours.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::{fs, io};

use rustix::process::{Pid, Signal};

/// Environment variable that marks every process of a worker: the absolute path of its run directory.
pub const MARK: &str = "AQUIFER_RUN_DIR";

/// Fields of `/proc/PID/stat` that identify a process and its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// `Z` for one that is dead and only waits to be reaped.
    pub state: u8,
    pub parent: i32,
    pub session: i32,
    /// Clock ticks since the machine started. With the process id and the boot id it names one process for ever.
    pub start_time: u64,
}

/// Reads one line of `/proc/PID/stat`. The name may itself contain spaces and parentheses.
pub fn parse_stat(text: &[u8]) -> Option<Stat> {
    let rest = &text[text.iter().rposition(|byte| *byte == b')')? + 1..];
    let fields: Vec<&str> = std::str::from_utf8(rest).ok()?.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<i64>().ok();
    Some(Stat {
        state: *fields.first()?.as_bytes().first()?,
        parent: number(1)? as i32,
        session: number(3)? as i32,
        start_time: number(19)? as u64,
    })
}

/// `None` if there is no such process.
pub fn stat(pid: i32) -> Option<Stat> {
    // One read is enough.
    let mut line = [0; 1024];
    let length = fs::File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut line).ok()?;
    parse_stat(&line[..length])
}

/// This process's own, or that of its child.
pub fn start_time(pid: i32) -> u64 {
    stat(pid).map_or(0, |stat| stat.start_time)
}

/// Identity of this boot of the machine.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_string())
}

/// Milliseconds since the machine started, time asleep included.
pub fn boot_time_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Sends SIGKILL to everything that a dead supervisor left behind, and says how many processes were still there.
///
/// Ours are: processes with the run directory in their environment, members of the supervisor's session, and
/// descendants of either. A session counts only while no other process has taken the supervisor's number.
pub fn kill_left_over(run_dir: &Path, supervisor: Option<(i32, u64)>) -> usize {
    let mark = [MARK.as_bytes(), b"=", run_dir.as_os_str().as_bytes()].concat();
    let session = supervisor.filter(|(pid, start)| stat(*pid).is_none_or(|stat| stat.start_time == *start));
    kill_families(|pid, stat| {
        session.is_some_and(|(leader, _)| stat.session == leader) || has_in_environment(pid, &mark)
    })
}

/// Sends SIGKILL to every process that has this variable in its environment, and to its descendants, and says how many there were.
pub fn kill_marked(name: &str, value: &str) -> usize {
    let mark = format!("{name}={value}");
    kill_families(|pid, _| has_in_environment(pid, mark.as_bytes()))
}

fn has_in_environment(pid: i32, mark: &[u8]) -> bool {
    let environ = fs::read(format!("/proc/{pid}/environ"));
    environ.is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|entry| entry == mark))
}

/// Kills processes with all their descendants, but for this one.
fn kill_families(is_ours: impl Fn(i32, &Stat) -> bool) -> usize {
    let all: Vec<(i32, Stat)> = pids().filter_map(|pid| Some((pid, stat(pid)?))).collect();
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let alive = |(pid, stat): &&(i32, Stat)| stat.state != b'Z' && stat.state != b'X' && *pid != own;
    let mut ours: Vec<i32> =
        all.iter().filter(alive).filter(|(pid, stat)| is_ours(*pid, stat)).map(|(pid, _)| *pid).collect();
    let mut seen = 0;
    while seen < ours.len() {
        let parent = ours[seen];
        let children =
            all.iter().filter(alive).filter(|(pid, stat)| stat.parent == parent && !ours.contains(pid));
        let children: Vec<i32> = children.map(|(pid, _)| *pid).collect();
        ours.extend(children);
        seen += 1;
    }
    for pid in &ours {
        kill(*pid);
    }
    ours.len()
}

/// Sends SIGKILL to a process; one that is gone is no error.
pub fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// Children of this process's only thread.
pub fn children() -> Vec<i32> {
    let own = rustix::process::getpid().as_raw_nonzero();
    match fs::read_to_string(format!("/proc/self/task/{own}/children")) {
        Ok(text) => text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect(),
        Err(_) => pids().filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == own.get())).collect(),
    }
}

/// The oldest process whose standard input is a file.
pub fn with_input(file: &Path) -> Option<i32> {
    let has_it = |pid: &i32| fs::read_link(format!("/proc/{pid}/fd/0")).is_ok_and(|input| input == file);
    pids().filter(has_it).min_by_key(|pid| (start_time(*pid), *pid))
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let line = b"123 (a) b (c)) S 7 123 99 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1000 5 rest";
        let expected = Stat { state: b'S', parent: 7, session: 99, start_time: 4242 };
        assert_eq!(parse_stat(line), Some(expected));
        assert_eq!(parse_stat(b"123 (cut"), None);
        assert_eq!(parse_stat(b"123 (cut) S 7"), None);
    }

    #[test]
    fn a_process_that_does_not_exist_has_no_facts() {
        assert_eq!(stat(0), None);
        assert!(0 < start_time(std::process::id() as i32));
    }
}
