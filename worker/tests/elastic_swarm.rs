//! Members of a training on a simulated network, with everything that may go wrong: whatever happens, all that have the state of
//! a step have the same one, and the training ends.
//!
//! `SEEDS=100000 cargo test --release -p aquifer-worker --test elastic_swarm -- --nocapture` runs that many; `SEED=7` one, and
//! tells what happens.

mod swarm;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use swarm::Seen;
use swarm::stalls::{self, Harm, stall};

#[test]
fn whatever_goes_wrong_all_have_the_same_state_and_it_ends() {
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("SEED") {
        swarm::run(seed, true, &mut BTreeMap::new());
        return;
    }
    let seeds = number("SEEDS").unwrap_or(1_000);
    let seen = run_all(seeds);
    println!("{seeds} seeds: {seen:?}");
    let cases = [
        "a member dies",
        "the leader dies",
        "two die at once",
        "a member dies while it computes",
        "a member dies while it gets the state",
        "a member hangs",
        "the leader hangs",
        "the leader hangs while it sends a state",
        "one that hung wakes up",
        "one hangs for good",
        "a connection breaks",
        "a member joins",
        "a member is let go",
        "all die",
        "a stand-in gives a shard",
        "a shard is left to another one",
        "a spare steps in",
        "a leader is sent a sum that it lacks",
        "a device computes what is not finite",
        "a device computes a wrong number",
        "a member is suspected",
        "a model diverges",
        "nobody tells which sum is right",
    ];
    for case in cases {
        assert!(seen.get(case).is_some_and(|count| 0 < *count), "{case} never happened: {seen:?}");
    }
}

/// A seed, which is named where its run panics.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("SEED={} repeats it", self.0);
        }
    }
}

/// Runs so many seeds, on all cores, and counts what happened.
fn run_all(seeds: u64) -> Seen {
    let next = AtomicU64::new(0);
    let work = || {
        let mut seen = Seen::new();
        loop {
            match next.fetch_add(1, Ordering::Relaxed) {
                seed if seed < seeds => {
                    let _named = Named(seed);
                    swarm::run(seed, false, &mut seen);
                }
                _ => return seen,
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let mut all = Seen::new();
        for (case, count) in threads.into_iter().flat_map(|thread| thread.join().expect("all seeds pass")) {
            *all.entry(case).or_default() += count;
        }
        all
    })
}

/// Of 100 runs, what 99 do not exceed, in milliseconds: how much longer a step takes, over the time that is allowed.
fn stalls(harm: Harm, to_leader: bool, allowed: impl Fn(Duration) -> Duration) {
    let run = |seed| {
        let (stall, usual) = stall(seed, harm, to_leader, false);
        (stall, allowed(usual), seed)
    };
    let mut runs: Vec<(Duration, Duration, u64)> = (0..1_000).map(run).collect();
    runs.sort();
    let whom = if to_leader { "the leader" } else { "another member" };
    println!("{harm:?} {whom}: median {:?}, p99 {:?}, worst {:?}", runs[500].0, runs[989].0, runs[999]);
    let (stall, allowed, seed) = runs[989];
    assert!(stall <= allowed, "{harm:?} {whom}: {stall:?} of {allowed:?} in a run with seed {seed}");
}

#[test]
fn a_kill_stalls_a_step_by_one_shard_and_20_ms() {
    // Four members share the shards of a step.
    let allowed = |step: Duration| step / (stalls::SHARDS / 4) as u32 + Duration::from_millis(20);
    stalls(Harm::Kill, false, allowed);
    stalls(Harm::Kill, true, allowed);
}

#[test]
fn a_member_that_is_stopped_stalls_a_step_by_one_and_a_half() {
    let allowed = |step: Duration| step * 3 / 2;
    stalls(Harm::Stop, false, allowed);
    stalls(Harm::Stop, true, allowed);
}
