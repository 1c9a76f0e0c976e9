//! The baselines against the curves that were published for them.
//!
//! Needs the public trace, which is not part of the project: the directory that `AQUIFER_TRACES` names must hold
//! `openb/` with its lists, `openb/expected_results/analysis_allo_discrete.csv.gz`, and the orders of arrival as plain
//! files `LIST.SEED.txt` below `openb/arrivals/`, or below the directory that `AQUIFER_ARRIVALS` names.

use std::env;
use std::path::{Path, PathBuf};

use aquifer_sim::replay::engine::{self, Mode, Watch};
use aquifer_sim::replay::input::{Table, read_text};
use aquifer_sim::replay::policy::Kind;
use aquifer_sim::replay::{check, metrics, openb, order};

/// The policies that curves were published for, with the names that they have there.
const PUBLISHED: [(Kind, &str); 6] = [
    (Kind::Random, "01-Random"),
    (Kind::DotProduct, "02-DotProd"),
    (Kind::GpuClustering, "03-GpuClustering"),
    (Kind::GpuPacking, "04-GpuPacking"),
    (Kind::BestFit, "05-BestFit"),
    (Kind::Fgd, "06-FGD"),
];

/// The published curve of a run: allocated devices in per cent, by demand.
fn published(table: &Table, list: &str, policy: &str, seed: u64) -> Option<Vec<Option<f64>>> {
    let row = table.rows().find(|row| {
        row.text("workload") == format!("openb_pod_list_{list}")
            && row.text("sc_policy") == policy
            && row.text("seed") == seed.to_string()
    })?;
    Some((0..=130).map(|demand| row.text(&demand.to_string()).parse().ok()).collect())
}

#[test]
fn baselines_equal_their_published_curves() {
    let Some(traces) = env::var_os("AQUIFER_TRACES").map(PathBuf::from) else {
        println!("skipped: AQUIFER_TRACES does not name a directory with the public traces");
        return;
    };
    let directory = traces.join("openb");
    let arrivals = env::var_os("AQUIFER_ARRIVALS").map_or(directory.join("arrivals"), PathBuf::from);
    let expected = directory.join("expected_results/analysis_allo_discrete.csv.gz");
    let text = read_text(&expected).unwrap();
    let table = Table::parse(&expected, &text, &["workload", "sc_policy", "seed"], &[]).unwrap();
    println!(
        "{:<12} {:<14} {:>4} {:>8} {:>8} {:>8} {:>6}",
        "list", "policy", "seed", "ours", "theirs", "diff", "at"
    );
    let (mut exact, mut runs) = (0, 0);
    for list in openb::lists(&directory) {
        let pods = openb::read(&directory, &list).unwrap();
        for seed in 42..=46 {
            let path = arrivals.join(format!("{list}.{seed}.txt"));
            if !Path::new(&path).is_file() {
                println!("skipped: {} is not there", path.display());
                continue;
            }
            let workload = order::as_listed(&pods, &openb::read_arrivals(&path, &pods).unwrap());
            for (kind, name) in PUBLISHED {
                let mut policy = kind.policy(&workload, seed).unwrap();
                let (log, _) = engine::run(&workload, &mut *policy, Mode::Fill, &Watch::default());
                check::check(&workload, &log).unwrap();
                let curve = metrics::fill(&workload, &log).curve;
                let theirs = published(&table, &list, name, seed).expect("a published curve");
                let difference = |demand: usize| Some((curve[demand]? - theirs[demand]?).abs());
                let worst =
                    (0..=129).filter_map(|at| Some((difference(at)?, at))).max_by(|a, b| a.0.total_cmp(&b.0));
                let (worst, at) = worst.unwrap();
                println!(
                    "{list:<12} {:<14} {seed:>4} {:>8.2} {:>8.2} {worst:>8.2} {at:>6}",
                    kind.name(),
                    curve[130].unwrap(),
                    theirs[130].unwrap(),
                );
                // Which node is drawn by chance depends on a generator that is not ours.
                if kind == Kind::Random {
                    assert!((curve[130].unwrap() - theirs[130].unwrap()).abs() < 1.5, "about as good");
                } else {
                    runs += 1;
                    exact += usize::from(worst < 0.015);
                    assert!(worst < 0.5, "{kind} on {list}, seed {seed}: {worst:.2} off at {at} %");
                }
            }
        }
    }
    println!("{exact} of {runs} runs equal to 0.01 percentage points over the whole curve");
}

#[test]
fn the_scheduler_of_the_pool_fills_the_public_trace() {
    let Some(traces) = env::var_os("AQUIFER_TRACES").map(PathBuf::from) else {
        println!("skipped: AQUIFER_TRACES does not name a directory with the public traces");
        return;
    };
    let pods = openb::read(&traces.join("openb"), "default").unwrap();
    let workload = order::shuffled(&pods, 1300, 42);
    for kind in [Kind::Ours, Kind::Fgd] {
        let begun = std::time::Instant::now();
        let mut policy = kind.policy(&workload, 42).unwrap();
        let (log, _) = engine::run(&workload, &mut *policy, Mode::Fill, &Watch::default());
        check::check(&workload, &log).unwrap();
        let fill = metrics::fill(&workload, &log);
        println!("{kind}: {:?} {:?} {:?} {:?}", fill.at(90), fill.at(100), fill.at(130), begun.elapsed());
    }
}

#[test]
fn churn_separates_the_policies_as_published() {
    let Some(traces) = env::var_os("AQUIFER_TRACES").map(PathBuf::from) else {
        println!("skipped: AQUIFER_TRACES does not name a directory with the public traces");
        return;
    };
    let arrivals: u32 = env::var("ARRIVALS").map_or(400_000, |text| text.parse().unwrap());
    let pods = openb::read(&traces.join("openb"), "default").unwrap();
    for load in [900, 940, 980] {
        for kind in [Kind::Ours, Kind::Fgd, Kind::GpuPacking] {
            for seed in 1..=3 {
                let workload = order::poisson(&pods, load, arrivals, openb::RUN_MS, seed);
                let begun = std::time::Instant::now();
                let mut policy = kind.policy(&workload, seed).unwrap();
                let (log, _) = engine::run(&workload, &mut *policy, Mode::Churn, &Watch::default());
                let took = begun.elapsed();
                check::check(&workload, &log).unwrap();
                let figures = metrics::queueing(&workload, &log, arrivals as usize * 2 / 5);
                println!(
                    "{load} {kind:<14} {seed} used {:.2} waited {:.2} eight {:.0} p99 {:.0} share p99 {:.0} left {} {:?}",
                    figures.used_percent,
                    figures.waited_percent,
                    figures.wait_by_size[5].mean / 1000.0,
                    figures.wait_by_size[5].p99 as f64 / 1000.0,
                    figures.wait_by_size[1].p99 as f64 / 1000.0,
                    figures.left_waiting,
                    took,
                );
            }
        }
    }
}
