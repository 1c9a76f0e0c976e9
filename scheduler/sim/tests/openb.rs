//! The baselines against the curves that were published for them.
//!
//! Needs the public trace, which is not part of the project: the directory that `AQUIFER_TRACES` names must hold
//! `openb/` with its lists, `openb/expected_results/analysis_allo_discrete.csv.gz`, and the orders of arrival as plain
//! files `LIST.SEED.txt` below `openb/arrivals/`, or below the directory that `AQUIFER_ARRIVALS` names.

use std::env;
use std::path::{Path, PathBuf};

use aquifer_sim::replay::engine::{Mode, Watch};
use aquifer_sim::replay::input::{Table, read_text};
use aquifer_sim::replay::policy::Kind;
use aquifer_sim::replay::{compare, metrics, openb, order};

/// The policies that curves were published for, with the names that they have there.
const PUBLISHED: [(Kind, &str); 6] = [
    (Kind::Random, "01-Random"),
    (Kind::DotProduct, "02-DotProd"),
    (Kind::GpuClustering, "03-GpuClustering"),
    (Kind::GpuPacking, "04-GpuPacking"),
    (Kind::BestFit, "05-BestFit"),
    (Kind::Fgd, "06-FGD"),
];

fn traces() -> Option<PathBuf> {
    let traces = env::var_os("AQUIFER_TRACES").map(PathBuf::from);
    if traces.is_none() {
        println!("skipped: AQUIFER_TRACES does not name a directory with the public traces");
    }
    traces.map(|traces| traces.join("openb"))
}

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
    let Some(directory) = traces() else { return };
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
                let run = compare::run(&workload, kind, Mode::Fill, seed, &Watch::default()).unwrap();
                let curve = metrics::fill(&workload, &run.log).curve;
                let theirs = published(&table, &list, name, seed).expect("a published curve");
                let difference = |demand: usize| Some((curve[demand]? - theirs[demand]?).abs());
                let worst =
                    (0..=130).filter_map(|at| Some((difference(at)?, at))).max_by(|a, b| a.0.total_cmp(&b.0));
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
                    assert!(worst < 0.4, "{kind} on {list}, seed {seed}: {worst:.2} off at {at} %");
                }
            }
        }
    }
    println!("{exact} of {runs} runs equal to 0.01 percentage points over the whole curve");
    assert!(runs == 0 || runs - exact <= runs / 20, "{exact} of {runs} runs are equal");
}

/// Both directions of what the public comparison shows: under departures fragmentation gradient descent lets jobs of 8
/// devices wait less than best fit does, and the load that is offered is what is used.
#[test]
fn churn_separates_the_policies() {
    let Some(directory) = traces() else { return };
    let pods = openb::read(&directory, "default").unwrap();
    let workload = order::poisson(&pods, 900, 150_000, openb::RUN_MS, 1);
    let figures = [Kind::Fgd, Kind::BestFit].map(|kind| {
        let run = compare::run(&workload, kind, Mode::Churn, 1, &Watch::default()).unwrap();
        metrics::queueing(&workload, &run.log, 75_000)
    });
    let eight = figures.map(|figures| {
        println!("used {:.2} %, 8 devices wait {:?}", figures.used_percent, figures.wait_by_size[5]);
        assert!((85.0..95.0).contains(&figures.used_percent), "used {:.2} %", figures.used_percent);
        figures.wait_by_size[5]
    });
    assert!(50 < eight[0].count && eight[0].mean < eight[1].mean, "{eight:?}");
}

#[test]
fn the_scheduler_of_the_pool_fills_the_public_trace() {
    let Some(directory) = traces() else { return };
    for list in openb::lists(&directory) {
        let pods = openb::read(&directory, &list).unwrap();
        let workload = order::shuffled(&pods, 1300, 42);
        let [ours, best_fit] = [Kind::Ours, Kind::BestFit].map(|kind| {
            let run = compare::run(&workload, kind, Mode::Fill, 42, &Watch::default()).unwrap();
            metrics::fill(&workload, &run.log).at(130).unwrap()
        });
        println!("{list}: ours {ours:.2}, best fit {best_fit:.2}");
        assert!(best_fit - 3.0 < ours, "{list}: ours {ours:.2}, best fit {best_fit:.2}");
    }
}
