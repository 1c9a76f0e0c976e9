//! Members of a training on a simulated network, with everything that may go wrong: whatever happens, all that have the state of
//! a step have the same one, and the training ends.
//!
//! `SEEDS=100000 cargo test --release -p aquifer-worker --test elastic_swarm -- --nocapture` runs that many; `SEED=7` one, and
//! tells what happens.

mod swarm;

use std::collections::BTreeMap;

#[test]
fn whatever_goes_wrong_all_have_the_same_state_and_it_ends() {
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse::<u64>().expect("a number"));
    let mut seen = BTreeMap::new();
    if let Some(seed) = number("SEED") {
        swarm::run(seed, true, &mut seen);
        return;
    }
    let seeds = number("SEEDS").unwrap_or(1_000);
    for seed in 0..seeds {
        swarm::run(seed, false, &mut seen);
    }
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
