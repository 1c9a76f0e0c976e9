//! Safety under faults, and an end to everything once they heal, over many seeds.
//!
//! One seed again, with all that was said: `SEED=41 cargo test --test swarm -- --nocapture`.
//! More of them: `SEEDS=100000 cargo test --test swarm -- --nocapture`; others: `SEEDS=2000..100000`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use aquifer_core::Time;
use aquifer_sim::{Sim, workload};

/// By then everything must have ended.
const PATIENCE: Time = Time(20_000_000);

/// What a swarm must have met, or it proves nothing.
const SIGHTS: [&str; 63] = [
    "agent-restarted",
    "answered as repeated",
    "array",
    "autoscaled",
    "cancelled",
    "changed places",
    "devices of one island",
    "drained",
    "ended with the machine",
    "failed",
    "fenced by a supervisor",
    "given up with a lost node",
    "gang on several nodes",
    "gang on several nodes of one domain",
    "given to a service that runs",
    "grown",
    "inventory-changed",
    "kept",
    "killed",
    "laid to sleep",
    "moved",
    "moved for a reservation",
    "moved for another",
    "node-lost",
    "node-set",
    "node-up",
    "not launched",
    "placed",
    "placed for a reservation",
    "preempted",
    "preempted by priority",
    "price set",
    "price-set",
    "queue below another",
    "queue refused",
    "queue-set",
    "rank lost",
    "rank-anew",
    "rank-down",
    "ranks apart",
    "ranks spread",
    "reclaimed",
    "refused",
    "reservation conflicts",
    "reservation refused",
    "reservation-begun",
    "reservation-ended",
    "reserved",
    "retired",
    "running",
    "scaled",
    "scheduler restarted",
    "serves",
    "shrunk",
    "stopped politely",
    "stopping",
    "succeeded",
    "timed out",
    "unreachable",
    "unreserved",
    "woken",
    "worker failed",
    "workers adopted",
];

#[test]
fn whatever_goes_wrong_nothing_is_lost_and_everything_ends() {
    match std::env::var("SEED") {
        Ok(seed) => one_run_aloud(seed.parse().expect("SEED is a number")),
        Err(_) => many_runs(std::env::var("SEEDS").map_or(0..2_000, |seeds| range(&seeds))),
    }
}

/// `TO`, or `FROM..TO`.
fn range(seeds: &str) -> Range<u64> {
    let (from, to) = seeds.split_once("..").unwrap_or(("0", seeds));
    let number = |text: &str| text.parse().expect("SEEDS is TO or FROM..TO");
    number(from)..number(to)
}

fn one_run_aloud(seed: u64) {
    let mut sim = workload::swarm(seed);
    let result = catch_unwind(AssertUnwindSafe(|| one_run(&mut sim)));
    sim.log.iter().for_each(|(at, line)| println!("{at} {line}"));
    println!("{} steps", sim.steps);
    if let Err(panic) = result {
        println!("{}", sim.leftovers());
        resume_unwind(panic);
    }
}

fn many_runs(seeds: Range<u64>) {
    let (next, steps) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
    let sights: Mutex<BTreeMap<&str, u64>> = Mutex::default();
    let began = Instant::now();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seeds.end <= seed {
                return;
            }
            let ran = catch_unwind(|| {
                let mut sim = workload::swarm(seed);
                one_run(&mut sim);
                (sim.steps, sim.sights())
            });
            let (ran, saw) = ran.unwrap_or_else(|_| {
                next.store(seeds.end, Relaxed);
                panic!("SEED={seed}")
            });
            steps.fetch_add(ran, Relaxed);
            let mut sights = sights.lock().expect("nobody panics with it");
            saw.into_iter().for_each(|(what, times)| *sights.entry(what).or_default() += times);
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| _ = scope.spawn(work)));
    let (steps, seconds) = (steps.into_inner(), began.elapsed().as_secs_f64());
    let sights = sights.into_inner().expect("nobody panics with it");
    sights.iter().for_each(|(what, times)| println!("{times:>9} {what}"));
    let seeds = seeds.end - seeds.start;
    println!("{seeds} seeds, {steps} steps, {seconds:.1} s: {:.0} steps/s", steps as f64 / seconds);
    for what in SIGHTS {
        let times = sights.get(what).copied().unwrap_or(0);
        assert!(seeds < 1_000 || seeds / 80 <= times, "{what}: only {times} times");
    }
}

fn one_run(sim: &mut Sim) {
    sim.run(PATIENCE);
    assert!(sim.is_settled(), "left over: {}", sim.leftovers());
}
