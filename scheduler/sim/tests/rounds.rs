//! Planning in rounds against the baselines, on small generated traces and, where they are, on published ones.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use aquifer_core::rounds::Goal;
use aquifer_sim::rounds::files::read_text;
use aquifer_sim::rounds::gavel::ours::Ours;
use aquifer_sim::rounds::gavel::shares::{Objective, Shares};
use aquifer_sim::rounds::gavel::{Job, Outcome, POOL, ROUND_S, Rates, generate, simulate};
use aquifer_sim::rounds::lengths::Lengths;
use aquifer_sim::rounds::philly::{self, Trace, queues};
use aquifer_sim::rounds::report::{mean, percentile, worst_and_over};

/// Four models of unlike taste in classes, on 1, 2 and 4 devices.
fn some_rates() -> Rates {
    let models = [
        ("even", [1.0, 0.8, 0.7]),
        ("steep", [1.0, 0.5, 0.08]),
        ("odd", [1.0, 1.2, 0.3]),
        ("picky", [1.0, 0.6, 0.0]),
    ];
    let mut file = String::from("{");
    for (class, name) in ["v100", "p100", "k80"].into_iter().enumerate() {
        let mut entries = Vec::new();
        for (model, speeds) in &models {
            for devices in [1u32, 2, 4] {
                let rate = 10.0 * speeds[class] * f64::from(devices).powf(0.9);
                entries.push(format!("\"('{model}', {devices})\": {{\"null\": {rate}}}"));
            }
        }
        let comma = if class == 0 { "" } else { ", " };
        write!(file, "{comma}\"{name}\": {{{}}}", entries.join(", ")).expect("text");
    }
    file.push('}');
    Rates::parse(&file).expect("the sample is well formed")
}

fn ours(trace: &[Job], goal: Goal) -> Outcome {
    simulate(trace, POOL, ROUND_S, 0.0, &mut Ours { goal, learned: None, restart_s: 0.0 })
}

fn shares(trace: &[Job], objective: Objective) -> Outcome {
    simulate(trace, POOL, ROUND_S, 0.0, &mut Shares::new(objective, ROUND_S, 0))
}

#[test]
fn on_generated_streams_jobs_end_sooner_and_more_fairly_than_by_water_filling() {
    for seed in 0..3 {
        let trace = generate(&some_rates(), seed, 40, 400.0, 4.0);
        let (ours, filling) = (ours(&trace, Goal::Stream), shares(&trace, Objective::WaterFilling));
        let isolated = shares(&trace, Objective::Isolated);
        let (mine, theirs) = (mean(&ours.jct_h), mean(&filling.jct_h));
        assert!(mine < theirs, "seed {seed}: {mine} h against {theirs} h");
        let worst = worst_and_over(&ours.jct_h, &isolated.jct_h, 1.1).0;
        assert!(worst < 1.3, "seed {seed}: a job takes {worst} times as long as alone on its part");
    }
}

#[test]
fn a_batch_ends_about_as_soon_as_by_the_makespan_program_and_its_jobs_much_sooner() {
    let trace = generate(&some_rates(), 5, 100, 0.0, 5.0);
    let (ours, program) = (ours(&trace, Goal::Batch), shares(&trace, Objective::Makespan));
    assert!(
        ours.makespan_h < 1.08 * program.makespan_h,
        "{} h against {} h",
        ours.makespan_h,
        program.makespan_h
    );
    let (mine, theirs) = (mean(&ours.jct_h), mean(&program.jct_h));
    assert!(mine < 0.8 * theirs, "{mine} h against {theirs} h");
}

#[test]
fn a_small_shared_pool_keeps_what_private_clusters_promise() {
    // One cluster floods its three nodes, the other sends to its one now and then.
    let mut text = String::from("timestamp,duration,num_gpus,gpu_time,cluster\n");
    for index in 0..120 {
        let (hour, minute) = (index / 12, index % 12 * 5);
        writeln!(text, "2017-10-01 {hour:02}:{minute:02}:00,5400,2,10800,flood").expect("text");
        if index % 12 == 0 {
            writeln!(text, "2017-10-01 {hour:02}:{minute:02}:30,7200,2,14400,calm").expect("text");
        }
    }
    let trace = Trace::parse(&text, 1.5).expect("the sample is well formed");
    let alone = queues::private(&trace);
    let due = alone.iter().map(|jct| jct * 1.099).collect();
    let outcome = philly::ours::run(&trace, Some(&due));
    let (_, over) = worst_and_over(&outcome.jct_s, &alone, 1.1);
    assert!(over <= 2.0, "{over} % of the jobs take longer than 1.1 of alone");
    assert!(mean(&outcome.jct_s) < mean(&alone), "sharing pays");
    let fifo = queues::shared(&trace, queues::Order::Fifo);
    let of_fifo = worst_and_over(&fifo, &alone, 1.1).1;
    assert!(
        5.0 < of_fifo,
        "first come, first served breaks it for {of_fifo} %: the sample is worth something"
    );
}

#[test]
fn what_is_left_of_a_job_is_the_mean_over_those_that_were_longer() {
    let lengths = Lengths::new(vec![7_000.0, 1_000.0, 4_000.0]);
    assert_eq!(lengths.left(0.0), 4_000.0);
    assert_eq!(lengths.left(2_000.0), 3_500.0);
    assert_eq!(lengths.left(9_000.0), 3_000.0, "longer than all before it: a third of what it had");
}

/// The published traces' folder, if it is there.
fn traces(part: &str) -> Option<PathBuf> {
    let Ok(directory) = std::env::var("AQUIFER_TRACES") else {
        println!("skipped: AQUIFER_TRACES names no folder of traces");
        return None;
    };
    let directory = Path::new(&directory).join(part);
    if !directory.exists() {
        println!("skipped: there is no {}", directory.display());
        return None;
    }
    Some(directory)
}

#[test]
fn on_gavels_traces_the_targets_hold() {
    let Some(directory) = traces("gavel") else { return };
    let text = read_text(&directory.join("physical_cluster_throughputs.json")).expect("rates");
    let rates = Rates::parse(&text).expect("rates");
    let read =
        |name: &str| rates.trace(&read_text(&directory.join(name)).expect("a trace")).expect("a trace");
    let (stream, batch) = (read("max_min_fairness.trace"), read("minimize_makespan.trace"));

    let fifo = shares(&stream, Objective::Fifo);
    assert!(
        (mean(&fifo.jct_h) - 5.18).abs() < 0.01,
        "the published figure of first come, first served is 5.18 h"
    );

    let outcome = ours(&stream, Goal::Stream);
    assert!(mean(&outcome.jct_h) <= 3.3 && percentile(&outcome.jct_h, 99.0) <= 8.9);
    let (worst, over) = worst_and_over(&outcome.jct_h, &shares(&stream, Objective::Isolated).jct_h, 1.1);
    assert!(worst <= 1.1 && over <= 2.0, "worst {worst}, {over} % above 1.1");

    let outcome = ours(&batch, Goal::Batch);
    assert!(outcome.makespan_h <= 17.5 && mean(&outcome.jct_h) <= 8.0, "{} h", outcome.makespan_h);
}
