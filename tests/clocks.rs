//! Clocks that jump: the scheduler and an agent run under libfaketime, and their wall clocks are set an hour ahead and back.
//!
//! Where libfaketime is missing, the test says so and passes.

mod pool;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use aquifer_proto::v1;
use pool::{Pool, shell};
use v1::JobState;

fn library() -> Option<String> {
    let places = ["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(|dir| Path::new(dir).to_path_buf());
    let of_arch = ["x86_64", "aarch64"].map(|arch| format!("/usr/lib/{arch}-linux-gnu").into());
    let files = places.into_iter().chain(of_arch).map(|dir| dir.join("faketime/libfaketime.so.1"));
    files.into_iter().find(|file| file.exists()).map(|file| file.display().to_string())
}

/// What makes a process see a wall clock that a file shifts, and the true monotonic one.
fn env(library: &str, file: &str) -> [(String, String); 4] {
    [
        ("LD_PRELOAD", library),
        ("FAKETIME_TIMESTAMP_FILE", file),
        ("FAKETIME_NO_CACHE", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ]
    .map(|(key, value)| (key.into(), value.into()))
}

/// By how many seconds a process's clock is ahead.
fn ahead(env: &[(String, String)]) -> i64 {
    let out = Command::new("date").arg("+%s").envs(env.iter().cloned()).output().expect("date runs");
    let shown: i64 = String::from_utf8_lossy(&out.stdout).trim().parse().expect("seconds");
    shown - SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64
}

#[test]
fn clocks_that_jump_by_an_hour_change_no_decision() {
    let Some(library) = library() else {
        // Not captured, as what is printed would be.
        _ = writeln!(std::io::stderr(), "skipped: no clocks that jump: libfaketime is missing");
        return;
    };
    let mut pool = Pool::prepare(1, &["--lease", "2s"], None);
    let clocks = ["server-clock", "agent-clock"].map(|name| pool.file(name));
    let set = |clock: usize, shift: &str| fs::write(&clocks[clock], shift).expect("a file");
    let envs = clocks.clone().map(|file| env(&library, &file));
    set(0, "+0");
    // An agent whose clock was never right.
    set(1, "-86400");
    assert!((-86_410..-86_390).contains(&ahead(&envs[1])), "the clock is not shifted");
    pool.set_env(&envs[0]);
    pool.start_server();
    pool.set_env(&envs[1]);
    pool.agent("a", &[]);

    let go = pool.file("go");
    let mut spec = shell(&format!("until [ -e {go} ]; do sleep 0.02; done"));
    spec.time_limit_ms = Some(1_800_000);
    let job = pool.submit(spec);
    let placed = pool.until_state(job, JobState::Running);
    let worker = pool.worker(job, 1, 0);
    for (clock, shift) in [(0, "+3600"), (0, "-3600"), (1, "+3600"), (1, "-3600"), (0, "+0")] {
        set(clock, shift);
        // For longer than a lease.
        let other = pool.submit(shell("sleep 3"));
        pool.until_succeeded(other);
        let now = pool.job(job);
        assert_eq!((now.state(), now.attempt), (JobState::Running, 1), "clock {clock} at {shift}");
        assert_eq!(pool.worker(job, 1, 0), worker, "clock {clock} at {shift}");
    }

    // A scheduler that is started while its clock is behind goes on where time was.
    pool.kill_server();
    set(0, "-3600");
    pool.set_env(&envs[0]);
    pool.start_server();
    let later = pool.submit(shell("true"));
    let later = pool.until_succeeded(later);
    assert!(
        placed.submitted_ms <= later.submitted_ms,
        "{} after {}",
        later.submitted_ms,
        placed.submitted_ms
    );
    assert_eq!(pool.worker(job, 1, 0), worker);
    fs::write(&go, "").expect("a file");
    assert_eq!(pool.until_succeeded(job).attempt, 1);
}
