//! `aquifer simulate`, as people call it.

use std::process::{Command, Output};

fn simulate(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_aquifer");
    Command::new(program).arg("simulate").args(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    for mode in ["static", "churn", "replay"] {
        for json in [&[][..], &["--json"]] {
            let common = ["--synthetic", "20x400", "--mode", mode, "--count", "2000", "--seeds", "1-2"];
            let arguments: Vec<&str> = common.iter().chain(json).copied().collect();
            let [first, second] = [(); 2].map(|()| simulate(&arguments));
            assert!(first.status.success(), "{mode}: {}", text(&first.stderr));
            assert!(100 < first.stdout.len(), "{mode} says something");
            assert_eq!(text(&first.stdout), text(&second.stdout), "{mode}");
        }
    }
}

#[test]
fn what_was_written_is_replayed_alike_and_added_nodes_stand_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (plot, log) = (path("run.svg"), path("log.csv"));
    let written = simulate(&[
        "--synthetic",
        "20x300",
        "--mode",
        "replay",
        "--write",
        &path(""),
        "--plot",
        &plot,
        "--log",
        &log,
    ]);
    assert!(written.status.success(), "{}", text(&written.stderr));
    let read = simulate(&["--nodes", &path("nodes.csv"), "--jobs", &path("jobs.csv"), "--mode", "replay"]);
    assert_eq!(text(&read.stdout), text(&written.stdout));
    assert!(std::fs::read_to_string(&plot).unwrap().starts_with("<svg"));
    assert_eq!(
        std::fs::read_to_string(&log).unwrap().lines().count(),
        1 + 3 * 300,
        "it arrives, starts, ends"
    );
    let more =
        simulate(&["--synthetic", "20x300", "--mode", "replay", "--add", "2x8xmi300x", "--policy", "ours"]);
    assert!(text(&more.stdout).contains("ours +2x8xmi300x"), "{}", text(&more.stdout));
}

/// Jobs that accept both models go to the dearer one only when the cheaper is full.
#[test]
fn prices_say_which_devices_are_taken_first() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let nodes =
        "name,cpus,memory,devices,model,device_memory\na,64,512GiB,8,h100,80GiB\nb,64,512GiB,8,t4,16GiB\n";
    let nodes = write("nodes.csv", nodes);
    let jobs = write("jobs.csv", "time,run_time,devices,class\n1,60,8,h100|t4\n2,60,8,h100|t4\n");
    let log = directory.path().join("log.csv").display().to_string();
    let order = |prices: &[&str]| {
        let common =
            ["--nodes", &nodes, "--jobs", &jobs, "--mode", "replay", "--policy", "ours", "--log", &log];
        let prices = prices.iter().flat_map(|price| ["--price", price]);
        let done = simulate(&common.into_iter().chain(prices).collect::<Vec<&str>>());
        assert!(done.status.success(), "{}", text(&done.stderr));
        let log = std::fs::read_to_string(&log).unwrap();
        let started = log.lines().filter(|line| line.contains("started"));
        started.map(|line| line.rsplit(',').next().unwrap()[..1].to_string()).collect::<String>()
    };
    assert_eq!(order(&["h100=0.1", "T4=0.2"]), "ab");
    assert_eq!(order(&["h100=0.2", "T4=0.1"]), "ba");
}

#[test]
fn wrong_use_is_told_with_what_is_allowed() {
    let cases: [(&[&str], &str); 7] = [
        (&[], "nothing to replay"),
        (&["--synthetic", "many"], "expected NODESxJOBS"),
        (&["--synthetic", "5x50", "--policy", "best"], "no policy \"best\"; known are ours, fgd"),
        (&["--synthetic", "5x50", "--seeds", "3-1"], "expected numbers, like 42, 1,2,3 or 42-46"),
        (&["--synthetic", "5x50", "--load", "-1"], "expected a number from 0.001 to 100"),
        (&["--synthetic", "5x50", "--add", "8xunheard-of"], "say the memory of a unheard-of"),
        (&["--trace", "philly"], "expected openb:DIRECTORY:LIST"),
    ];
    for (arguments, expected) in cases {
        let output = simulate(arguments);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
        assert!(told.contains(expected), "{arguments:?}: {told}");
    }
    let missing = simulate(&["--trace", "openb:/nowhere:default"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("openb_node_list_gpu_node"), "{}", text(&missing.stderr));
}
