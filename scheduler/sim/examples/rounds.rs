//! Prints the tables of planning in rounds: `rounds gavel DIRECTORY`.

use std::path::{Path, PathBuf};

use aquifer_core::rounds::Goal;
use aquifer_sim::rounds::files::read_text;
use aquifer_sim::rounds::gavel::ours::Ours;
use aquifer_sim::rounds::gavel::shares::{Objective, Shares};
use aquifer_sim::rounds::gavel::{Outcome, Policy, Rates, simulate};
use aquifer_sim::rounds::report::{mean, percentile};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let directory = PathBuf::from(arguments.get(1).expect("a directory"));
    gavel(&directory).expect("the traces");
}

fn gavel(directory: &Path) -> Result<(), String> {
    let rates = Rates::parse(&read_text(&directory.join("physical_cluster_throughputs.json"))?)?;
    let devices = [8, 16, 24];
    for name in ["max_min_fairness", "minimize_makespan"] {
        let trace = rates.trace(&read_text(&directory.join(format!("{name}.trace")))?)?;
        println!("{name}: {} jobs", trace.len());
        let run = |policy: &mut dyn Policy| simulate(&trace, devices, 360.0, 0.0, policy);
        let isolated = run(&mut Shares::new(Objective::Isolated, 360.0, 0));
        use Objective::*;
        let all =
            [Isolated, LeastShare, LeastThroughput, WaterFilling, FinishTime, Makespan, SumThroughput, Fifo];
        for goal in [Goal::Stream, Goal::Batch] {
            row(
                &format!("ours {goal:?}"),
                &run(&mut Ours { goal, learned: None, restart_s: 0.0 }),
                &isolated,
            );
        }
        for objective in if std::env::var("BASE").is_ok() { &all[..] } else { &[][..] } {
            let objective = *objective;
            row(&format!("{objective:?}"), &run(&mut Shares::new(objective, 360.0, 0)), &isolated);
        }
    }
    Ok(())
}

fn row(name: &str, outcome: &Outcome, isolated: &Outcome) {
    let rho: Vec<f64> = outcome.jct_h.iter().zip(&isolated.jct_h).map(|(a, b)| a / b).collect();
    let over = |limit: f64| 100.0 * rho.iter().filter(|rho| limit < **rho).count() as f64 / rho.len() as f64;
    println!(
        "{name:<20} avg {:6.3} p99 {:6.2} makespan {:6.2}  rho worst {:5.2}  >1 {:4.1} %  >1.1 {:4.1} %  starts {}",
        mean(&outcome.jct_h),
        percentile(&outcome.jct_h, 99.0),
        outcome.makespan_h,
        rho.iter().copied().fold(0.0, f64::max),
        over(1.0),
        over(1.1),
        outcome.starts,
    );
}
