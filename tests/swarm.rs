//! Safety under faults, and an end to everything once they heal, over many seeds.
//!
//! One seed again, with all that was said: `SEED=41 cargo test --test swarm -- --nocapture`.
//! More of them: `SEEDS=100000 cargo test --test swarm -- --nocapture`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use aquifer_core::Time;
use aquifer_sim::{Sim, workload};

/// By then everything must have ended.
const PATIENCE: Time = Time(20_000_000);

#[test]
fn whatever_goes_wrong_nothing_is_lost_and_everything_ends() {
    if let Ok(seed) = std::env::var("SEED") {
        let seed = seed.parse().expect("SEED is a number");
        let mut sim = workload::swarm(seed);
        let result = catch_unwind(AssertUnwindSafe(|| one_run(&mut sim)));
        sim.log.iter().for_each(|(at, line)| println!("{at} {line}"));
        println!("{} steps", sim.steps);
        if let Err(panic) = result {
            println!("{}", sim.leftovers());
            std::panic::resume_unwind(panic);
        }
        return;
    }
    let seeds: u64 = std::env::var("SEEDS").map_or(2_000, |seeds| seeds.parse().expect("SEEDS is a number"));
    let (next, steps) = (AtomicU64::new(0), AtomicU64::new(0));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seeds <= seed {
                        return;
                    }
                    let ran = catch_unwind(|| {
                        let mut sim = workload::swarm(seed);
                        one_run(&mut sim);
                        sim.steps
                    });
                    steps.fetch_add(ran.unwrap_or_else(|_| panic!("SEED={seed}")), Relaxed);
                }
            });
        }
    });
    let (steps, seconds) = (steps.into_inner(), began.elapsed().as_secs_f64());
    println!("{seeds} seeds, {steps} steps, {seconds:.1} s: {:.0} steps/s", steps as f64 / seconds);
}

fn one_run(sim: &mut Sim) {
    sim.run(PATIENCE);
    assert!(sim.is_settled(), "left over: {}", sim.leftovers());
}
