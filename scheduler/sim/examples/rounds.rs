//! Prints the tables of planning in rounds: `rounds gavel|generated|philly|scale [DIRECTORY OF TRACES]`.

use std::path::{Path, PathBuf};

use aquifer_core::rounds::Goal;
use aquifer_sim::rounds::files::read_text;
use aquifer_sim::rounds::gavel::ours::Ours;
use aquifer_sim::rounds::gavel::shares::{Objective, Shares};
use aquifer_sim::rounds::gavel::{Job, Outcome, POOL, Policy, ROUND_S, Rates, generate, simulate};
use aquifer_sim::rounds::lengths::Lengths;
use aquifer_sim::rounds::philly::queues::{Jct, Order, private, shared};
use aquifer_sim::rounds::philly::{self, Trace};
use aquifer_sim::rounds::report::{mean, percentile, worst_and_over};
use aquifer_sim::rounds::scale;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let directory = arguments.get(1).cloned().or_else(|| std::env::var("AQUIFER_TRACES").ok());
    let directory = PathBuf::from(directory.unwrap_or_default());
    let printed = match arguments.first().map(String::as_str) {
        Some("gavel") => gavel(&directory),
        Some("generated") => generated(&directory),
        Some("philly") => philly_table(&directory),
        Some("scale") => {
            scale_table();
            Ok(())
        }
        _ => Err("usage: rounds gavel|generated|philly|scale [DIRECTORY OF TRACES]".into()),
    };
    if let Err(error) = printed {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn rates(directory: &Path) -> Result<Rates, String> {
    Rates::parse(&read_text(&directory.join("gavel/physical_cluster_throughputs.json"))?)
}

/// The two traces of the paper's physical experiments.
fn gavel(directory: &Path) -> Result<(), String> {
    let rates = rates(directory)?;
    let read = |name: &str| rates.trace(&read_text(&directory.join(format!("gavel/{name}.trace")))?);
    let traces = [("continuous", read("max_min_fairness")?), ("static", read("minimize_makespan")?)];
    // Each trace's lengths are learned from the other.
    let lengths = |other: usize| Lengths::new(traces[other].1.iter().map(Job::fastest_s).collect());
    for (index, (name, trace)) in traces.iter().enumerate() {
        println!("\n{name}, {} jobs", trace.len());
        let run = |policy: &mut dyn Policy, restart_s| simulate(trace, POOL, ROUND_S, restart_s, policy);
        let isolated = run(&mut Shares::new(Objective::Isolated, ROUND_S, 0), 0.0);
        for objective in Objective::ALL {
            row(&format!("{objective:?}"), &run(&mut Shares::new(objective, ROUND_S, 0), 0.0), &isolated);
        }
        for goal in [Goal::Stream, Goal::Batch] {
            for restart_s in [0.0, 60.0] {
                let mut ours = Ours { goal, learned: None, restart_s };
                let cost = if restart_s == 0.0 { "" } else { ", a start costs 60 s" };
                row(&format!("ours {goal:?}{cost}"), &run(&mut ours, restart_s), &isolated);
            }
        }
        let mut ours = Ours { goal: Goal::Stream, learned: Some(lengths(1 - index)), restart_s: 0.0 };
        row("ours, learned lengths", &run(&mut ours, 0.0), &isolated);
    }
    Ok(())
}

/// Means over generated traces, which nothing was tuned on.
fn generated(directory: &Path) -> Result<(), String> {
    let rates = rates(directory)?;
    let seeds = 1000u64..1020;
    let count = seeds.clone().count();
    println!("\nmeans over {} generated traces: continuous avg, p99, worst rho; static makespan, avg", count);
    let means = |name: &str, goals: &mut dyn FnMut(bool) -> Box<dyn Policy>| {
        let mut sums = [0.0; 5];
        for seed in seeds.clone() {
            let run = |trace: &[Job], policy: &mut dyn Policy| simulate(trace, POOL, ROUND_S, 0.0, policy);
            let trace = generate(&rates, seed, 96, 482.0, 4.0);
            let isolated = run(&trace, &mut Shares::new(Objective::Isolated, ROUND_S, 0));
            let stream = run(&trace, &mut *goals(false));
            let batch = run(&generate(&rates, seed, 100, 0.0, 5.0), &mut *goals(true));
            let worst = worst_and_over(&stream.jct_h, &isolated.jct_h, 1.1).0;
            let p99 = percentile(&stream.jct_h, 99.0);
            let figures = [mean(&stream.jct_h), p99, worst, batch.makespan_h, mean(&batch.jct_h)];
            sums.iter_mut().zip(figures).for_each(|(sum, figure)| *sum += figure / count as f64);
        }
        let [avg, p99, worst, makespan, batch] = sums;
        println!("{name:<24} {avg:6.3} {p99:6.2} {worst:6.2}    {makespan:6.2} {batch:6.2}");
    };
    for objective in [Objective::WaterFilling, Objective::FinishTime, Objective::Makespan] {
        means(&format!("{objective:?}"), &mut |_| Box::new(Shares::new(objective, ROUND_S, 0)));
    }
    means("ours", &mut |batch| {
        let goal = if batch { Goal::Batch } else { Goal::Stream };
        Box::new(Ours { goal, learned: None, restart_s: 0.0 })
    });
    Ok(())
}

fn row(name: &str, outcome: &Outcome, isolated: &Outcome) {
    let (worst, over) = worst_and_over(&outcome.jct_h, &isolated.jct_h, 1.1);
    println!(
        "{name:<34} avg {:6.3}  p99 {:6.2}  makespan {:6.2}  rho worst {worst:5.2}, {over:4.1} % > 1.1  starts {}",
        mean(&outcome.jct_h),
        percentile(&outcome.jct_h, 99.0),
        outcome.makespan_h,
        outcome.starts,
    );
}

/// Eleven virtual clusters on one pool.
fn philly_table(directory: &Path) -> Result<(), String> {
    let text = read_text(&directory.join("philly/philly_vc_11cb48_and_others.csv"))?;
    for load in [0.5, 0.7, 0.9] {
        let trace = Trace::parse(&text, load)?;
        println!("\nload {load}: {} jobs, {} devices", trace.jobs.len(), trace.pool * 8);
        let alone = private(&trace);
        let print = |name: &str, jct: &Jct| philly_row(&trace, name, jct, &alone);
        print("private", &alone);
        for order in [Order::Fifo, Order::Drf, Order::Sjf] {
            print(&format!("{order:?}"), &shared(&trace, order));
        }
        let due = alone.iter().map(|jct| jct * 1.099).collect();
        for (name, due) in [("ours, no due times", None), ("ours", Some(&due))] {
            let outcome = philly::ours::run(&trace, due);
            print(name, &outcome.jct_s);
            println!("{:<24} {} stops of {} jobs", "", outcome.stops, trace.jobs.len());
        }
    }
    Ok(())
}

fn philly_row(trace: &Trace, name: &str, jct: &Jct, alone: &Jct) {
    let hours: Vec<f64> = jct.iter().map(|jct| jct / 3600.0).collect();
    let large = trace.jobs.iter().zip(jct).filter(|(job, _)| 8 <= job.devices);
    let waits: Vec<f64> = large.map(|(job, jct)| jct - job.run_s).collect();
    let of = |cluster: usize, jct: &Jct| -> f64 {
        trace.jobs.iter().zip(jct).filter(|(job, _)| job.cluster == cluster).map(|(_, jct)| jct).sum()
    };
    let clusters = (0..trace.nodes.len()).map(|cluster| of(cluster, jct) / of(cluster, alone));
    let over = worst_and_over(jct, alone, 1.1).1;
    println!(
        "{name:<24} avg {:6.2} h  8 devices and more wait {:7.0} s  worst cluster {:5.2}  {over:5.2} % > 1.1",
        mean(&hours),
        mean(&waits),
        clusters.fold(0.0, f64::max),
    );
}

/// Milliseconds of one plan.
fn scale_table() {
    println!("\ndevices, jobs, offers; median and longest of 9 plans in ms");
    for (devices, elastic) in [(64, true), (2048, true), (10_000, true), (10_000, false), (100_000, false)] {
        let (classes, jobs) = scale::pool(devices, elastic, 7);
        let offers: usize = jobs.iter().map(|job| job.modes.len()).sum();
        for goal in [Goal::Stream, Goal::Batch] {
            let mut times: Vec<f64> = (0..9)
                .map(|_| {
                    let start = std::time::Instant::now();
                    std::hint::black_box(aquifer_core::rounds::plan(&classes, &jobs, goal));
                    start.elapsed().as_secs_f64() * 1000.0
                })
                .collect();
            times.sort_by(f64::total_cmp);
            println!(
                "{devices:>7} {:>7} {offers:>8}  {goal:?} {:9.2} {:9.2}",
                jobs.len(),
                times[4],
                times[8]
            );
        }
    }
}
