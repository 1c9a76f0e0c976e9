//! What a request costs on a pool of several classes, and how many are answered as promised: on requests from a seed, and
//! where they are, on public traces.

use std::path::Path;

use aquifer_core::Promise;
use aquifer_sim::Rng;
use aquifer_sim::serving::trace::{self, Request};
use aquifer_sim::serving::{Outcome, Rule, run};

fn promise(concurrency: u32, ttft_ms: u64, tpot_ms: u64) -> Promise {
    Promise { concurrency, ttft_ms: Some(ttft_ms), tpot_ms: Some(tpot_ms), sleep_after_ms: None }
}

const RULES: [Rule; 6] = [
    Rule::ByRequest,
    Rule::ByAdvantage,
    Rule::Only("t4"),
    Rule::Only("l4"),
    Rule::Only("a100"),
    Rule::Only("h100"),
];

/// Requests of one length, so many a second.
fn steady(rate: f64, seconds: u64, prompt: u64, said: u64) -> Vec<Request> {
    let mut rng = Rng(7);
    let mut at = 0.0;
    let mut next = || {
        let uniform = (rng.below(1 << 30) + 1) as f64 / (1u64 << 30) as f64;
        at -= uniform.ln() / rate * 1e6;
        Request { at_us: at as u64, prompt, said }
    };
    std::iter::repeat_with(&mut next).take_while(|it| it.at_us < seconds * 1_000_000).collect()
}

#[test]
fn a_service_is_as_cheap_as_on_the_best_single_class_and_keeps_its_promise_as_well() {
    // Short prompts and long answers, then long prompts and short answers that a T4 could not begin in time.
    for (requests, promise) in [
        (steady(20.0, 1700, 200, 200), promise(32, 1_000, 100)),
        (steady(10.0, 1700, 3000, 20), promise(32, 1_000, 100)),
    ] {
        let ours = run(&requests, [60; 4], promise, Rule::ByRequest);
        println!("ours: {:.3} s a request, {:.3} as promised, {:?}", ours.cost(), ours.share(), ours.held_s);
        assert!(1000 < ours.requests && 0.9 < ours.share(), "{ours:?}");
        for rule in [Rule::ByAdvantage, Rule::Only("a100"), Rule::Only("h100")] {
            let other = run(&requests, [60; 4], promise, rule);
            println!("{rule:?}: {:.3} s a request, {:.3} as promised", other.cost(), other.share());
            if ours.share() - 0.01 <= other.share() {
                assert!(ours.cost() < 1.02 * other.cost(), "{rule:?} is cheaper: {other:?}");
            }
        }
    }
}

/// Prints the figures of docs/benchmarks/services.md.
#[test]
fn services_on_public_traces() {
    let Some(directory) = std::env::var_os("AQUIFER_TRACES") else {
        return println!("skipped: AQUIFER_TRACES does not name a directory with the public traces");
    };
    let directory = Path::new(&directory).join("inference");
    let print = |name: &str, outcome: &Outcome| {
        let held: Vec<String> =
            outcome.held_s.iter().map(|(model, s)| format!("{model} {:.1} h", *s as f64 / 3600.0)).collect();
        println!(
            "| {name} | {:.2} | {:.1} % | {} |",
            outcome.cost(),
            100.0 * outcome.share(),
            held.join(", ")
        );
    };
    for (file, copies, promise) in [
        ("AzureLLMInferenceTrace_conv.csv.gz", 4, promise(32, 1_000, 100)),
        ("conversation_trace.jsonl.gz", 1, promise(32, 10_000, 100)),
    ] {
        let requests = trace::read(&directory.join(file)).expect("a trace");
        let requests = trace::times(&requests, copies);
        for devices in [[100; 4], [24, 12, 4, 2]] {
            println!("\n{file} times {copies}, {promise:?}, T4, L4, A100, H100: {devices:?}");
            for rule in RULES {
                let outcome = run(&requests, devices, promise, rule);
                print(&format!("{rule:?}"), &outcome);
            }
        }
    }
}
