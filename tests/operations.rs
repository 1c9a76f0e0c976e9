//! What administrators and impatient users do, through the command line, on a pool of real processes.

mod pool;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use aquifer_proto::v1;
use pool::{Client, Pool, command, devices, shell, until};
use serde_json::Value;
use v1::JobState::{Pending, Running};

const EIGHT_H200: &str =
    "[[device]]\nvendor = \"nvidia\"\nmodel = \"h200-141gb\"\nmemory_gib = 141\ncount = 8\n";
const FOUR_910B: &str = "[[device]]\nvendor = \"ascend\"\nmodel = \"910b\"\nmemory_gib = 64\ncount = 4\n";

/// A node with the devices of a file.
fn node_of(pool: &mut Pool, name: &str, file: &str) {
    let path = pool.file(&format!("{name}.toml"));
    fs::write(&path, file).expect("a file of devices");
    pool.agent(name, &["--devices", &format!("fake:{path}")]);
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn sleeper() -> v1::JobSpec {
    command(&["sleep", "1000"])
}

fn node_of_job(client: &Client, job: u64) -> String {
    client.job(job).ranks[0].node.clone()
}

#[test]
fn a_drained_node_gives_its_jobs_away_and_takes_none_until_it_is_open_again() {
    let mut pool = Pool::start();
    pool.agent("a", &[]);
    let saved = pool.file("saved");
    let script =
        format!("trap 'echo $AQUIFER_ATTEMPT >> {saved}; exit 0' TERM; while :; do sleep 0.02; done");
    let job = pool.submit(shell(&script));
    pool.until_state(job, Running);
    // The trap is set once the loop runs.
    until("the loop", || pool.processes().iter().any(|(_, words)| words.starts_with("sleep")).then_some(()));
    pool.agent("b", &[]);
    let told = pool.aquifer(&["drain", "--wait", "a"]).ok();
    assert_eq!(told, "a takes no new work, and what runs there is stopped\na is drained\n");
    let again = pool.until_job(job, "placed again", |job| job.attempt == 2 && job.state() == Running);
    assert_eq!((&again.ranks[0].node[..], again.failures), ("b", 0));
    assert_eq!(pool.read("saved"), "1\n");
    assert!(pool.aquifer(&["nodes"]).ok().contains("draining"));

    pool.aquifer(&["cordon", "b"]).ok();
    let waits = pool.submit(sleeper());
    assert_eq!(pool.job(waits).state(), Pending);
    let why = pool.aquifer(&["explain", &format!("job-{waits}")]).ok();
    assert!(why.contains("cordoned") && why.contains("draining"), "{why}");
    assert_eq!(pool.job(job).state(), Running, "what runs on a cordoned node runs on");
    pool.aquifer(&["uncordon", "a"]).ok();
    pool.until_state(waits, Running);
    assert_eq!(node_of_job(&pool, waits), "a");
    let done = pool.aquifer(&["cordon", "nobody"]);
    assert_eq!(done.code, Some(1), "{}", done.err);
}

#[test]
fn what_an_administrator_said_survives_a_restart() {
    let mut pool = Pool::of_one(&[]);
    pool.aquifer(&["cordon", "a"]).ok();
    pool.aquifer(&["queues", "set", "red", "--weight", "3", "--guaranteed", "2", "--limit", "4"]).ok();
    pool.aquifer(&["queues", "set", "dark-red", "--parent", "red", "--guaranteed", "1"]).ok();
    let said = pool.aquifer(&["prices", "set", "H100", "2.5"]).ok();
    assert_eq!(said, "a device hour of h100 costs 2.5 from now on\n");
    pool.aquifer(&["prices", "set", "t4", "1"]).ok();
    pool.aquifer(&["prices", "set", "t4", "none"]).ok();
    pool.kill_server();
    pool.start_server();
    let tree = pool.aquifer(&["queues"]).ok();
    assert!(tree.contains("\n  dark-red"), "{tree}");
    let queues = json(&pool.aquifer(&["queues", "--json"]).ok());
    let red = queues.as_array().expect("queues").iter().find(|queue| queue["name"] == "red");
    assert_eq!(red.expect("the queue")["weight"], 3);
    let nodes = json(&pool.aquifer(&["nodes", "--json"]).ok());
    assert_eq!(nodes[0]["availability"], "cordoned");
    let prices = json(&pool.aquifer(&["prices", "--json"]).ok());
    assert_eq!(prices["prices"], serde_json::json!([{ "class": "h100", "price_milli": 2500 }]));
    let text = pool.aquifer(&["prices"]).ok();
    assert_eq!(text, "Set: h100 2.5. An hour of a device without a price counts its speed.\n");
    let job = pool.submit(command(&["true"]));
    until("the node is up again", || pool.node("a").filter(|node| node.up && !node.version.is_empty()));
    assert_eq!(pool.job(job).state(), Pending);
    pool.aquifer(&["uncordon", "a"]).ok();
    pool.until_succeeded(job);
}

#[test]
fn a_gang_of_two_times_eight_cards_gets_whole_nodes() {
    let mut pool = Pool::start();
    node_of(&mut pool, "a", EIGHT_H200);
    let script = "echo $CUDA_VISIBLE_DEVICES";
    let gang = pool.submit(devices(shell(&format!("{script}; sleep 1000")), 2, &[(8, "h200")]));
    let waits = pool.job(gang);
    assert_eq!(waits.state(), Pending);
    assert!(waits.reason.contains("room for 1 of 2 ranks"), "{}", waits.reason);
    node_of(&mut pool, "b", EIGHT_H200);
    let runs = pool.until_state(gang, Running);
    let all: Vec<u32> = (0..8).collect();
    let mut nodes = Vec::new();
    for rank in &runs.ranks {
        assert_eq!((&rank.devices, &rank.model[..]), (&all, "h200-141gb"));
        nodes.push(rank.node.as_str());
    }
    nodes.sort();
    assert_eq!(nodes, ["a", "b"]);
    until("both logs", || {
        let logs = pool.logs(v1::LogsRequest { job: gang, ..Default::default() });
        (logs.len() == 2 && logs.values().all(|log| log == "0,1,2,3,4,5,6,7\n")).then_some(())
    });

    let waits = pool.submit(devices(shell(script), 1, &[(2, "h200")]));
    let why = pool.aquifer(&["explain", &format!("job-{waits}")]).ok();
    assert!(why.contains(&format!("job-{gang}")) && why.contains("0 of 8"), "{why}");
    pool.cancel(gang);
    pool.until_succeeded(waits);
    assert_eq!(pool.log(waits), "0,1\n");
}

#[test]
fn alternatives_are_taken_in_their_order_and_seen_by_the_worker() {
    let mut pool = Pool::start();
    node_of(&mut pool, "a", EIGHT_H200);
    node_of(&mut pool, "b", FOUR_910B);
    let script = "echo cuda=$CUDA_VISIBLE_DEVICES ascend=$ASCEND_RT_VISIBLE_DEVICES; sleep 1000";
    let either = || devices(shell(script), 1, &[(8, "h200"), (4, "910b")]);
    for (model, said) in
        [("h200-141gb", "cuda=0,1,2,3,4,5,6,7 ascend=\n"), ("910b", "cuda= ascend=0,1,2,3\n")]
    {
        let job = pool.submit(either());
        assert_eq!(pool.until_state(job, Running).ranks[0].model, model);
        until("its log", || (pool.log(job) == said).then_some(()));
    }
    let third = pool.submit(either());
    assert_eq!(pool.job(third).state(), Pending);
}

#[test]
fn a_card_that_breaks_is_used_no_more_and_a_repaired_one_is() {
    let mut pool = Pool::start();
    node_of(&mut pool, "a", FOUR_910B);
    let broken = format!("{FOUR_910B}faults = {{ 2 = \"fell off the bus\" }}\n");
    fs::write(pool.file("a.toml"), broken).expect("a file of devices");
    pool.until_note("3 of 4");
    let shown = pool.aquifer(&["node", "a"]).ok();
    assert!(shown.contains("fell off the bus"), "{shown}");
    let four = pool.submit(devices(command(&["true"]), 1, &[(4, "910b")]));
    assert_eq!(pool.job(four).state(), Pending);
    let three = pool.submit(devices(shell("echo $ASCEND_RT_VISIBLE_DEVICES"), 1, &[(3, "910b")]));
    pool.until_succeeded(three);
    assert_eq!(pool.log(three), "0,1,3\n");
    let why = pool.aquifer(&["explain", "job-1"]).ok();
    assert!(why.contains("no node") || why.contains("never") || why.contains("3"), "{why}");
    fs::write(pool.file("a.toml"), FOUR_910B).expect("a file of devices");
    pool.until_succeeded(four);
}

#[test]
fn a_card_that_must_be_reset_is_once_nothing_runs_on_it() {
    let mut pool = Pool::start();
    let (healthy, program, called) = (pool.file("healthy.toml"), pool.file("reset"), pool.file("called"));
    let (go, used) = (pool.file("go"), pool.file("a.toml"));
    fs::write(&healthy, FOUR_910B).expect("a file of devices");
    // The first attempt fails.
    let script = format!(
        "#!/bin/sh\ncat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' >> {called}; echo >> {called}\necho \"$@\" >> {called}\n[ -e {go} ] || {{ echo busy >&2; exit 1; }}\ncp {healthy} {used}\n"
    );
    fs::write(&program, script).expect("a program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a program");
    fs::write(&used, FOUR_910B).expect("a file of devices");
    pool.agent("a", &["--devices", &format!("fake:{used}"), "--reset", &program]);
    // It takes its grace to end.
    let script = "trap '' TERM; while true; do sleep 1; done # on the card";
    let stubborn = v1::JobSpec { grace_ms: Some(8_000), ..shell(script) };
    let holds = pool.submit(devices(stubborn, 1, &[(4, "910b")]));
    pool.until_state(holds, Running);
    let broken = format!("{FOUR_910B}faults = {{ 2 = \"to be reset: xid 95\" }}\n");
    fs::write(&used, broken).expect("a file of devices");
    pool.until_note("requeued: device 2");
    until("a word about the failure", || {
        pool.aquifer(&["node", "a"]).ok().contains("device 2 could not be reset (1 of 3): busy").then_some(())
    });
    let said = fs::read_to_string(&called).expect("it was called");
    assert!(!said.contains("on the card"), "something runs on it: {said}");
    assert!(said.ends_with("ascend fake-ascend-2 0000-00002 2\n"), "{said}");
    assert_eq!(pool.job(holds).state(), Pending);
    // That card is left alone for a while; another one is reset.
    fs::write(&go, "").expect("a file");
    let broken = format!("{FOUR_910B}faults = {{ 1 = \"draining: xid 94\", 2 = \"to be reset: xid 95\" }}\n");
    fs::write(&used, broken).expect("a file of devices");
    pool.until_state(holds, Running);
    let said = fs::read_to_string(&called).expect("it was called");
    assert!(said.ends_with("ascend fake-ascend-1 0000-00001 1\n"), "{said}");
    pool.cancel(holds);
}

#[test]
fn plan_tells_what_submit_would_do_and_does_nothing() {
    let mut pool = Pool::start();
    node_of(&mut pool, "a", EIGHT_H200);
    let file = pool.file("job.yaml");
    fs::write(&file, "command: [sleep, 1000]\ndevices: {count: 6, class: h200}\n").expect("a job file");
    let plan = pool.aquifer(&["plan", &file]).ok();
    assert!(plan.contains("would start now") && plan.contains("h200-141gb 0-5"), "{plan}");
    assert_eq!(pool.jobs().len(), 0);
    pool.aquifer(&["submit", &file]).ok();
    pool.until_state(1, Running);
    let plan = pool.aquifer(&["plan", &file]).ok();
    assert!(plan.contains("would wait") && plan.contains("job-1"), "{plan}");
    let plan = json(&pool.aquifer(&["plan", "--json", "--set", "devices.count=2", &file]).ok());
    assert_eq!(plan["starts_now"], true);
    assert_eq!(pool.jobs().len(), 1);
}

/// Two nodes of one rack, with devices in islands of four, and one of another.
#[test]
fn a_gang_stands_in_one_rack_and_a_rank_in_one_island() {
    let mut pool = Pool::start();
    for (name, rack) in [("a", "r1"), ("b", "r7"), ("c", "r7")] {
        node_of(&mut pool, name, &format!("[labels]\nrack = \"{rack}\"\n{EIGHT_H200}island_size = 4\n"));
    }
    let file = pool.file("gang.yaml");
    let text = "command: [sleep, 1000]\nranks: 4\ndevices: {count: 4, island: require}\n\
                topology: {require: rack, prefer: [node, rack]}\n";
    fs::write(&file, text).expect("a job file");
    let plan = pool.aquifer(&["plan", &file]).ok();
    assert!(plan.contains("would start now, with all of its 4 ranks in rack r7:"), "{plan}");
    assert!(plan.contains("h200-141gb 0-3") && plan.contains("h200-141gb 4-7"), "{plan}");
    let plan = json(&pool.aquifer(&["plan", "--json", "--ranks", "2", &file]).ok());
    assert_eq!(plan["domain"], "node a", "the first of those with room for just two");
    pool.aquifer(&["submit", &file]).ok();
    pool.until_state(1, Running);
    let plan = pool.aquifer(&["plan", "--ranks", "3", &file]).ok();
    let sentence = "would wait: no rack has room for all 3 ranks: the best, r1, has room for 2.";
    assert!(plan.contains(sentence), "{plan}");
    let (apart, both) = (["run", "--apart", "node", "--ranks", "2"], ["--topology-require", "node"]);
    let refused = pool.aquifer(&[&apart[..], &both[..], &["--", "true"]].concat());
    let said = "apart is \"node\": topology.require is node, so that its 2 ranks could not be apart";
    assert!(refused.code != Some(0) && refused.err.contains(said), "{refused:?}");
    pool.aquifer(&[&apart[..], &["--spread", "rack", "--topology-prefer", "rack", "--", "true"]].concat())
        .ok();
}

#[test]
fn a_queue_never_holds_more_than_its_limit() {
    let mut pool = Pool::start();
    node_of(&mut pool, "a", EIGHT_H200);
    pool.aquifer(&["queues", "set", "red", "--limit", "3"]).ok();
    let of_red = || v1::JobSpec { queue: "red".into(), ..devices(sleeper(), 1, &[(2, "h200")]) };
    let first = pool.submit(of_red());
    pool.until_state(first, Running);
    let second = pool.submit(of_red());
    let other = pool.submit(devices(sleeper(), 1, &[(2, "h200")]));
    pool.until_state(other, Running);
    assert_eq!(pool.job(second).state(), Pending);
    let why = pool.aquifer(&["explain", &format!("job-{second}")]).ok();
    assert!(why.contains("red") && why.contains("limit"), "{why}");
    pool.aquifer(&["queues", "set", "red", "--limit", "none"]).ok();
    pool.until_state(second, Running);
    let nobody = v1::SubmitRequest { spec: Some(v1::JobSpec { queue: "nobody".into(), ..sleeper() }) };
    let refused = pool.call(async |mut stub| stub.submit(nobody.clone()).await).expect_err("no such queue");
    assert_eq!(refused.code(), tonic::Code::NotFound);
}

#[test]
fn nothing_is_measured_by_hand_that_is_in_use() {
    let mut pool = Pool::start();
    pool.agent("a", &["--devices", "cpu"]);
    let job = pool.submit(sleeper());
    pool.until_state(job, Running);
    let state = pool.file("a");
    let told = pool.aquifer(&["devices", "--devices", "cpu", "--state-dir", &state, "--measure"]).ok();
    assert!(told.contains(" was not measured: it is in use"), "{told}");
    assert!(!fs::exists(pool.file("a/measured.json")).expect("a directory"), "and nothing is kept");
}

#[test]
fn what_people_look_at_agrees_with_what_runs() {
    let mut pool = Pool::start();
    node_of(&mut pool, "a", EIGHT_H200);
    let job = pool.submit(v1::JobSpec {
        name: "finetune".into(),
        user: "ada".into(),
        ..devices(sleeper(), 1, &[(4, "h200")])
    });
    pool.until_state(job, Running);
    let jobs = json(&pool.aquifer(&["jobs", "--json"]).ok());
    let shown = jobs.to_string();
    assert!(shown.contains("\"finetune\"") && shown.contains("\"running\""), "{shown}");
    let one = json(&pool.aquifer(&["job", "--json", "job-1"]).ok());
    assert_eq!(
        (&one["id"], &one["user"], &one["state"]),
        (&"job-1".into(), &"ada".into(), &"running".into())
    );
    let usage = pool.aquifer(&["usage"]).ok();
    assert!(usage.contains("ada"), "{usage}");
    let node = pool.aquifer(&["node", "a"]).ok();
    assert!(node.contains("h200-141gb"), "{node}");
    for words in [&["jobs"][..], &["nodes"], &["queues"], &["job", "job-1"], &["logs", "job-1"]] {
        pool.aquifer(words).ok();
    }
    let device = pool.aquifer(&["explain", "a", "--device", "1"]).ok();
    assert!(device.starts_with("Device 1 of a (h200-141gb, ") && device.contains(" takes work"), "{device}");
    pool.aquifer(&["cordon", "a", "--device", "1"]).ok();
    let device = pool.aquifer(&["explain", "a", "--device", "1"]).ok();
    assert!(device.contains("takes no new work.\n\nit is cordoned\n"), "{device}");
    pool.aquifer(&["uncordon", "a", "--device", "1"]).ok();
    for words in [
        &["job", "job-9"][..],
        &["logs", "job-9"],
        &["node", "nobody"],
        &["explain", "job-9"],
        &["explain", "a", "--device", "99"],
        &["explain", "nobody", "--device", "0"],
    ] {
        let done = pool.aquifer(words);
        assert_eq!((done.code, &done.out[..]), (Some(1), ""), "{words:?}: {}", done.err);
    }
}

#[test]
fn a_job_with_a_label_waits_for_a_node_that_has_it() {
    let mut pool = Pool::of_one(&[]);
    let done = pool.aquifer(&["run", "--detach", "--label", "zone=north", "--", "true"]);
    assert!(done.ok().contains("job-1"));
    assert_eq!(pool.job(1).state(), Pending);
    pool.agent("b", &["--labels", "zone=north,rack=r1"]);
    pool.until_succeeded(1);
    assert_eq!(node_of_job(&pool, 1), "b");
}

#[test]
fn what_a_pool_has_had_is_replayed_as_it_was_and_with_more_nodes() {
    let mut pool = Pool::start();
    node_of(&mut pool, "gpu", EIGHT_H200);
    pool.agent("plain", &["--devices", "cpu:0"]);
    let brief = |seconds: &str| command(&["sleep", seconds]);
    let whole = pool.submit(devices(brief("0.4"), 2, &[(4, "h200")]));
    let mut part = devices(brief("0.2"), 1, &[(1, "h200")]);
    part.roles[0].request.as_mut().expect("a request").devices[0].slice =
        Some(v1::Slice { compute_milli: 250, memory_bytes: 0 });
    part.array = Some(v1::ArrayRange { first: 0, last: 2, step: 1 });
    let part = pool.submit(part);
    let plain = pool.submit(brief("0.1"));
    for job in [whole, part, part + 1, part + 2, plain] {
        pool.until_succeeded(job);
    }
    let waits = pool.submit(devices(brief("9"), 1, &[(1, "b200")]));
    assert_eq!(pool.job(waits).state(), Pending);

    let written = pool.file("history");
    let history = ["simulate", "--history", "all", "--mode", "replay", "--policy", "ours"];
    let run = pool.aquifer(&[&history[..], &["--add", "8xh200", "--write", &written]].concat());
    assert!(run.err.contains("left out: jobs that have not run (1)"), "{}", run.err);
    let table = run.ok();
    assert!(table.contains("ours +8xh200"), "{table}");
    let nodes = pool.read("history/nodes.csv");
    assert!(nodes.contains("gpu,") && nodes.contains(",8,nvidia,h200-141gb,141GiB"), "{nodes}");
    let jobs = pool.read("history/jobs.csv");
    let rows: Vec<Vec<&str>> = jobs.lines().skip(1).map(|line| line.split(',').collect()).collect();
    // name, time, run_time, ranks, devices, class, slice
    let asked: Vec<_> = rows.iter().map(|row| (row[3], row[4], row[5], row[6])).collect();
    let slice = ("1", "1", "h200", "0.25");
    assert_eq!(asked, [("2", "4", "h200", ""), slice, slice, slice, ("1", "0", "", "")]);
    let seconds = |row: &Vec<&str>| row[2].parse::<f64>().expect("seconds");
    assert!((0.4..5.0).contains(&seconds(&rows[0])) && (0.1..5.0).contains(&seconds(&rows[4])), "{jobs}");

    let nothing = pool.aquifer(&["simulate", "--history", "1ms"]);
    assert_eq!(nothing.code, Some(1), "{}", nothing.err);
    assert!(nothing.err.contains("no history to replay"), "{}", nothing.err);
}

#[test]
fn a_job_with_an_image_runs_where_there_is_an_engine_and_says_what_it_waits_for_elsewhere() {
    let mut pool = Pool::of_one(&[]);
    let engine = pool.file("engine");
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/agent/tests/containers/engine.sh"), &engine).unwrap();
    std::fs::create_dir(pool.file("containers")).unwrap();
    let run =
        ["run", "--image", "registry.example.com/app:1", "--env", "GREETING=hello", "--env", "PATH=/bin"];
    let program = ["--", "/bin/sh", "-c", "echo $GREETING from $PWD in $AQUIFER_JOB; exit 3"];
    let waits = pool.aquifer(&[&run[..], &["--detach"], &program].concat()).ok();
    let job = waits.split_whitespace().find(|word| word.starts_with("job-")).unwrap_or_default().to_string();
    let why = pool.aquifer(&["explain", &job]).ok();
    assert!(why.contains("    1  has no container engine\n"), "{why}");
    assert!(why.contains("It would start now with no image."), "{why}");

    pool.agent("c", &["--engine", &engine]);
    let number = job.trim_start_matches("job-").parse().expect("a number");
    let ended = pool.until_job(number, "its end", pool::has_ended);
    assert_eq!((&ended.ranks[0].node[..], &ended.last_failure[..]), ("c", "rank 0 on c exited with 3"));
    assert_eq!(pool.log(number), format!("hello from / in {job}\n"));
    let shown = pool.aquifer(&["job", &job]).ok();
    assert!(shown.contains(" in registry.example.com/app:1\n"), "{shown}");
    let node = pool.aquifer(&["node", "c"]).ok();
    let engine = node.lines().find_map(|line| line.strip_prefix("containers")).map(str::trim);
    assert_eq!(engine, Some("docker 0.1"), "{node}");
    assert_eq!(json(&pool.aquifer(&["node", "c", "--json"]).ok())["engine"], "docker 0.1");

    let sets = pool.file("sets");
    std::fs::create_dir(&sets).unwrap();
    let (there, missing) = (format!("{sets}:/data:ro"), format!("{sets}/none"));
    let mounts = ["--mount", &there, "--mount", &missing];
    let submitted = pool.aquifer(&[&run[..], &mounts, &["--detach"], &program].concat()).ok();
    let job = submitted.split_whitespace().find(|word| word.starts_with("job-")).unwrap_or_default();
    let number = job.trim_start_matches("job-").parse().expect("a number");
    let ended = pool.until_job(number, "its end", pool::has_ended);
    let expected = format!("rank 0 on c mount {missing}: the node has no such file or directory");
    assert_eq!(ended.last_failure, expected);
    let shown = pool.aquifer(&["job", job]).ok();
    assert!(shown.contains(&format!(" in registry.example.com/app:1 with {there}, {missing}\n")), "{shown}");
    let ended = pool.aquifer(&[&run[..], &mounts[..2], &program].concat());
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    let calls = std::fs::read_to_string(pool.file("calls")).unwrap();
    let mount = format!(" --mount=type=bind,source={sets},target=/data,readonly ");
    assert_eq!(calls.lines().filter(|call| call.contains(&mount)).count(), 1, "{calls}");

    let wrong = pool.aquifer(&["run", "--mount", "/data", "--", "true"]);
    assert!(
        wrong.err.contains("mounts[0] is \"/data\": only of a container: give its image"),
        "{}",
        wrong.err
    );
    let wrong = pool.aquifer(&["run", "--image", "app", "--mount", "data", "--", "true"]);
    assert!(wrong.err.contains("expected HOST[:CONTAINER][:ro], absolute paths"), "{}", wrong.err);
    let wrong = pool.aquifer(&["run", "--image", "--privileged", "--", "true"]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.err);
    let wrong = pool.aquifer(&["run", "--image=-v", "--", "true"]);
    assert!(wrong.err.contains("image is \"-v\": expected the name of an image"), "{}", wrong.err);
}

/// As after a restart of the node, where docker starts after the agent.
#[test]
fn an_engine_that_starts_later_is_noticed() {
    let mut pool = Pool::of_one(&[]);
    let engine = pool.file("engine");
    std::fs::create_dir(pool.file("containers")).unwrap();
    pool.agent("c", &["--engine", &engine]);
    let run = ["run", "--detach", "--image", "app", "--env", "PATH=/bin", "--", "/bin/sh", "-c", "exit 0"];
    let waits = pool.aquifer(&run).ok();
    let job = waits.split_whitespace().find(|word| word.starts_with("job-")).unwrap_or_default().to_string();
    let why = pool.aquifer(&["explain", &job]).ok();
    assert!(why.contains("  has no container engine\n"), "{why}");
    let new = pool.file("engine.new");
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/agent/tests/containers/engine.sh"), &new).unwrap();
    std::fs::rename(new, &engine).unwrap();
    let number = job.trim_start_matches("job-").parse().expect("a number");
    let ended = pool.until_job(number, "its end", pool::has_ended);
    assert_eq!((&ended.ranks[0].node[..], &ended.last_failure[..]), ("c", ""));
    let node = json(&pool.aquifer(&["node", "c", "--json"]).ok());
    assert_eq!(node["engine"], "docker 0.1");
}

#[test]
fn a_reservation_moves_who_is_in_its_way_and_is_kept_through_a_restart() {
    let mut pool = Pool::of_one(&[]);
    pool.agent("b", &[]);
    let mut quick = sleeper();
    quick.grace_ms = Some(100);
    let job = pool.submit(quick);
    let node = pool.until_state(job, Running).ranks[0].node.clone();
    let other = if node == "a" { "b" } else { "a" };
    let wrong = pool.aquifer(&["reserve", "maint", "--nodes", "nobody", "--for", "1h"]);
    assert_eq!(
        (wrong.code, wrong.err.contains("there is no node \"nobody\"")),
        (Some(1), true),
        "{}",
        wrong.err
    );
    let wrong = pool.aquifer(&["reserve", "maint", "--nodes", &node, "--for", "0"]);
    assert!(wrong.code == Some(1) && wrong.err.contains("end_ms"), "{}", wrong.err);
    pool.aquifer(&["reserve", "later", "--count", "1", "--in", "10h", "--for", "1h", "--queue", "default"])
        .ok();
    let made = pool.aquifer(&["reserve", "maint", "--nodes", &node, "--for", "1h"]).ok();
    assert!(made.starts_with(&format!("reservation maint books {node}, from 20")), "{made}");
    assert!(made.ends_with("nobody may use it\n"), "{made}");
    let overlap = pool.aquifer(&["reserve", "again", "--nodes", &node, "--in", "1m", "--for", "1h"]);
    assert!(overlap.err.contains("maint") && overlap.err.contains("again"), "{}", overlap.err);
    let moved = pool.until_job(job, "placed again", |job| job.attempt == 2 && job.state() == Running);
    assert_eq!((&moved.ranks[0].node[..], moved.failures), (other, 0));
    assert!(moved.last_failure.contains("reservation maint"), "{}", moved.last_failure);

    pool.kill_server();
    pool.start_server();
    let listed = json(&pool.aquifer(&["reservations", "--json"]).ok());
    let states = |at: usize| (listed[at]["name"].clone(), listed[at]["state"].clone());
    assert_eq!(
        (states(0), states(1)),
        (("later".into(), "to-come".into()), ("maint".into(), "running".into()))
    );
    assert_eq!(listed[1]["conflicts"], json("[]"));
    let told = pool.aquifer(&["node", &node]).ok();
    let booked_by = told.lines().find_map(|line| line.strip_prefix("booked by")).map(str::trim);
    assert!(booked_by.is_some_and(|it| it.starts_with("maint, from 20")), "{told}");
    let told = pool.aquifer(&["nodes"]).ok();
    assert!(told.contains(&format!("{node}: booked by reservation maint, from 20")), "{told}");
    until("both nodes are up", || {
        let up = |name| pool.node(name).is_some_and(|node| node.up && !node.version.is_empty());
        (up("a") && up("b")).then_some(())
    });
    pool.aquifer(&["cordon", other]).ok();
    let waits = pool.submit(sleeper());
    let why = pool.aquifer(&["explain", &format!("job-{waits}")]).ok();
    assert!(why.contains("waits: 1 node is booked by reservation maint for another 5"), "{why}");
    let mut own = sleeper();
    own.reservation = Some("maint".into());
    let request = v1::SubmitRequest { spec: Some(own) };
    let refused = pool.call(async |mut stub| stub.submit(request.clone()).await).expect_err("nobody may");
    assert!(refused.message().starts_with("reservation is \"maint\": neither queue default"), "{refused}");
    assert_eq!(pool.aquifer(&["unreserve", "maint"]).ok(), "reservation maint is given up\n");
    pool.until_state(waits, Running);
}
