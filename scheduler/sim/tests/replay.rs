//! Replays of small workloads from a seed, and of files of our own format.

use std::path::{Path, PathBuf};

use aquifer_sim::replay::engine::{Mode, Watch};
use aquifer_sim::replay::log::{Entry, Log, Rank, What};
use aquifer_sim::replay::policy::Kind;
use aquifer_sim::replay::synthetic::{Options, generate};
use aquifer_sim::replay::workload::{Spec, WHOLE, Workload};
use aquifer_sim::replay::{check, compare, metrics, order, plot, trace};

fn small(seed: u64) -> Workload {
    generate(Options { nodes: 20, jobs: 600, seed, ..Options::default() })
}

fn kinds() -> impl Iterator<Item = Kind> {
    Kind::ALL.iter().map(|(kind, ..)| *kind)
}

fn run(workload: &Workload, kind: Kind, mode: Mode) -> Log {
    compare::run(workload, kind, mode, 7, &Watch::default()).unwrap().log
}

/// A file in a directory of the build that belongs to one test.
fn file(name: &str, text: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join(name), text).unwrap();
    directory.join(name)
}

#[test]
fn every_policy_places_everything_in_the_end_and_breaks_no_rule() {
    for seed in 0..3 {
        let workload = small(seed);
        assert!(workload.jobs.iter().any(|job| 1 < workload.specs[job.spec as usize].ranks), "gangs occur");
        for kind in kinds() {
            let run = compare::run(&workload, kind, Mode::Replay, seed, &Watch::default()).unwrap();
            assert_eq!((run.verified.starts, run.verified.ends), (600, 600), "{kind}, seed {seed}");
        }
    }
}

#[test]
fn in_a_fill_what_does_not_fit_leaves() {
    let workload = order::shuffled(&small(1), 1300, 1);
    for kind in kinds() {
        let run = compare::run(&workload, kind, Mode::Fill, 1, &Watch::default()).unwrap();
        let arrivals = workload.jobs.len() as u64;
        assert_eq!((run.verified.starts + run.verified.dropped, run.verified.ends), (arrivals, 0), "{kind}");
        assert!(0 < run.verified.dropped, "{kind}: more is asked for than there is");
    }
}

#[test]
fn the_same_seed_gives_the_same_decisions() {
    for kind in kinds() {
        let logs = [(); 2].map(|()| run(&small(3), kind, Mode::Replay));
        assert_eq!(logs[0], logs[1], "{kind}");
    }
    assert_ne!(small(3), small(4));
}

/// Breaks a log in one way, and asks what the checker says.
fn broken(workload: &Workload, log: &Log, change: impl FnOnce(&mut Log)) -> String {
    let mut log = log.clone();
    change(&mut log);
    check::check(workload, &log).expect_err("a broken log").what
}

/// The first start that will do: its place in the log, and its ranks.
fn start(log: &Log, will_do: impl Fn(&Entry, &[Rank]) -> bool) -> (usize, u32, u32) {
    let starts = log.entries.iter().enumerate().filter_map(|(at, entry)| match entry.what {
        What::Started { first, count } => Some((at, entry, first, count)),
        _ => None,
    });
    let found =
        starts.into_iter().find(|(_, entry, first, count)| will_do(entry, log.ranks_of(*first, *count)));
    let (at, _, first, count) = found.expect("such a start occurs");
    (at, first, count)
}

#[test]
fn the_checker_sees_every_kind_of_violation() {
    let workload = small(5);
    let log = run(&workload, Kind::Fgd, Mode::Replay);
    let asks = |entry: &Entry| workload.spec_of(entry.job);
    let (gang, first, count) = start(&log, |entry, _| 1 < asks(entry).ranks);
    let said = broken(&workload, &log, |log| {
        log.entries[gang].what = What::Started { first, count: count - 1 };
    });
    assert!(said.starts_with("a gang of"), "{said}");

    let (picky, rank, _) = start(&log, |entry, _| !asks(entry).wants.is_empty());
    let other = workload
        .nodes
        .iter()
        .position(|node| 0 < node.devices && asks(&log.entries[picky]).allowed >> node.class & 1 == 0);
    let said = broken(&workload, &log, |log| log.ranks[rank as usize].node = other.unwrap() as u32);
    assert!(said.starts_with("accepts"), "{said}");

    let (_, rank, _) = start(&log, |entry, _| asks(entry).devices == 1);
    let said = broken(&workload, &log, |log| log.ranks[rank as usize].devices = 0b11);
    assert!(said.starts_with("asks for 1 devices and has 2"), "{said}");
    let said = broken(&workload, &log, |log| log.ranks[rank as usize].devices = 1 << 15);
    assert!(said.contains("and not number 15"), "{said}");

    // Everything on one node: something of it is given out twice.
    let said = broken(&workload, &log, |log| log.ranks.iter_mut().for_each(|rank| rank.node = 0));
    assert!(said.contains(" of ") || said.starts_with("accepts"), "{said}");

    // The device of a job that runs is given to a later one.
    let whole = |spec: &Spec| (spec.devices, spec.share_milli) == (1, WHOLE) && spec.wants.is_empty();
    let starts = log.entries.iter().filter_map(|entry| match entry.what {
        What::Started { first, .. } if whole(asks(entry)) => Some((entry, first as usize)),
        _ => None,
    });
    let starts: Vec<(&Entry, usize)> = starts.collect();
    let overlap =
        |pair: &&[(&Entry, usize)]| pair[1].0.at_ms < pair[0].0.at_ms + workload.held_ms(pair[0].0.job);
    let pair = starts.windows(2).find(overlap).expect("two run at a time");
    let said = broken(&workload, &log, |log| log.ranks[pair[1].1] = log.ranks[pair[0].1]);
    assert!(said.contains("of 1000 thousandths"), "{said}");

    let end = log.entries.iter().position(|entry| entry.what == What::Ended).unwrap();
    let said = broken(&workload, &log, |log| log.entries.insert(end + 1, log.entries[end]));
    assert!(said.starts_with("ends although"), "{said}");
    let said = broken(&workload, &log, |log| {
        log.entries.remove(end);
        let entry = log.entries[end - 1];
        log.entries.insert(end, entry);
    });
    assert!(said.contains("arrives") || said.contains("although"), "{said}");
    let said = broken(&workload, &log, |log| log.entries.swap(0, end));
    assert!(said.contains("although") || said.contains("time runs back"), "{said}");
    let said = broken(&workload, &log, |log| log.entries[0].at_ms += 1);
    assert!(said.starts_with("arrives") || said.starts_with("time runs back"), "{said}");
}

#[test]
fn figures_of_a_tiny_workload_are_those_by_hand() {
    let nodes =
        file("hand-nodes.csv", "name,cpus,memory,devices,model,device_memory\na,8,8GiB,2,h100,80GiB\n");
    // Two hold both devices for 10 s; the third waits for 9 s, and runs for 10 s on half of a device.
    let jobs = "time,run_time,devices,slice\n0,10,1,\n0,10,1,\n1,10,1,0.5\n";
    let workload = trace::read(&nodes, &file("hand-jobs.csv", jobs)).unwrap();
    for kind in kinds() {
        let log = run(&workload, kind, Mode::Replay);
        let figures = metrics::queueing(&workload, &log, 0);
        assert_eq!((figures.makespan_ms, figures.wait.p99, figures.completion.p99), (20_000, 9000, 19_000));
        assert_eq!((figures.wait_by_size[1].mean, figures.wait_by_size[2].mean), (9000.0, 0.0));
        assert_eq!((figures.used_percent, figures.sliver_percent), (62.5, 12.5), "{kind}");
        assert_eq!((figures.waiting, figures.left_waiting), (0.45, 0));
        let series = metrics::series(&workload, &log, 4);
        let used: Vec<f64> = series.iter().map(|point| point.used_percent).collect();
        assert_eq!(used, [100.0, 100.0, 25.0, 25.0]);
    }
}

#[test]
fn a_time_limit_ends_a_job() {
    let nodes = file("limit-nodes.csv", "name,cpus,memory\na,8,8GiB\n");
    let jobs = "time,run_time,ranks,cpus,time_limit\n0,100,2,4,5\n1,2,1,8,\n";
    let workload = trace::read(&nodes, &file("limit-jobs.csv", jobs)).unwrap();
    for kind in kinds() {
        let log = run(&workload, kind, Mode::Replay);
        let ends: Vec<_> = log.entries.iter().filter(|entry| entry.what == What::Ended).collect();
        assert_eq!(ends.iter().map(|entry| entry.at_ms).collect::<Vec<_>>(), [5000, 7000], "{kind}");
    }
}

#[test]
fn a_workload_is_read_as_it_was_written() {
    let workload = small(2);
    let nodes = file("round-nodes.csv", &trace::nodes_csv(&workload));
    let read = trace::read(&nodes, &file("round-jobs.csv", &trace::jobs_csv(&workload))).unwrap();
    let written = |workload: &Workload| (trace::nodes_csv(workload), trace::jobs_csv(workload));
    assert_eq!(written(&read), written(&workload));
    assert_eq!(
        run(&read, Kind::BestFit, Mode::Replay).csv(&read),
        run(&workload, Kind::BestFit, Mode::Replay).csv(&workload)
    );
}

#[test]
fn json_says_the_same_as_a_table() {
    let nodes = r#"{"nodes": [{"name": "a", "cpus": 8, "memory": "8GiB", "devices": 2, "model": "h100", "device_memory": "80GiB"}]}"#;
    let jobs = r#"[{"name": "x", "time": 0.5, "run_time": 10, "devices": 1, "class": ["h100", "amd:"], "slice": 0.25}]"#;
    let json = trace::read(&file("j-nodes.json", nodes), &file("j-jobs.json", jobs)).unwrap();
    let nodes = "name,cpus,memory,devices,model,device_memory\na,8,8GiB,2,h100,80GiB\n";
    let jobs = "# a comment\n\nname,time,run_time,devices,class,slice\nx,0.5,10,1,h100|amd:,0.25\n";
    let table = trace::read(&file("t-nodes.csv", nodes), &file("t-jobs.csv", jobs)).unwrap();
    assert_eq!(json, table);
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let nodes = file("e-nodes.csv", "name,cpus,memory,devices,model,device_memory\na,8,8GiB,2,h100,80GiB\n");
    let error = |name: &str, jobs: &str| {
        let path = file(name, jobs);
        let error = trace::read(&nodes, &path).expect_err("a wrong file").to_string();
        error.replace(&path.display().to_string(), "jobs")
    };
    let cases = [
        ("time,run_time\n0,ten\n", "jobs, line 2, column run_time: \"ten\": expected seconds"),
        (
            "time,run_time,devices\n0,1,17\n",
            "jobs, line 2, column devices: \"17\": expected a number from 0 to 16",
        ),
        (
            "time,run_time,slice,devices\n0,1,0.5,2\n",
            "jobs, line 2, column slice: \"0.5\": only a job with devices 1",
        ),
        (
            "time,run_time,devices,class\n0,1,1,b200\n",
            "jobs, line 2, column class: \"b200\": no node has such devices; there are h100",
        ),
        (
            "time,run_time,devices,class\n0,1,1,ibm:x\n",
            "jobs, line 2, column class: \"ibm:x\": no vendor \"ibm\"",
        ),
        (
            "time,run_time,color\n0,1,red\n",
            "jobs, line 1, column color: \"color\": no such column; known are time",
        ),
        ("time\n0\n", "jobs, line 1, column run_time: \"time\": this column lacks"),
        ("time,run_time\n0\n", "jobs, line 2: \"0\": 1 cells where the first line has 2"),
        ("[{\"time\": 0}]", "jobs, line 1, column run_time: \"\": this key lacks"),
        ("time,run_time\n", "jobs: has no jobs"),
    ];
    for (number, (jobs, expected)) in cases.iter().enumerate() {
        let told = error(&format!("e-{number}.csv"), jobs);
        assert!(told.starts_with(expected), "{told}\nexpected {expected}");
    }
}

#[test]
fn pictures_are_well_formed() {
    let line = plot::Line { name: "a < b".into(), points: vec![(0.0, 1.0), (2.0, 3.0)] };
    let panel = plot::Panel { title: "t & u".into(), horizontal: "h".into(), lines: vec![line], range: None };
    let empty = plot::Panel { lines: Vec::new(), ..panel.clone() };
    let svg = plot::svg(&[panel, empty]);
    assert!(svg.contains("a &lt; b") && svg.contains("t &amp; u") && svg.ends_with("</svg>\n"));
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}
