//! What operators read of real daemons: numbers, readiness, a dashboard that finds its numbers, a bundle for reports.

mod pool;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use aquifer_proto::v1;
use flate2::read::GzDecoder;
use pool::{Pool, ask, command, devices, free_ports, program, shell, start, until};
use serde_json::Value;
use v1::JobState::Running;

const TWO_FAST: &str =
    "[[device]]\nvendor = \"nvidia\"\nmodel = \"h200-141gb\"\nmemory_gib = 141\ncount = 2\nspeed = 2.5\n";

/// Numbers by name and labels, as they are written.
fn scrape(port: u16) -> BTreeMap<String, f64> {
    let (status, text) = ask(port, "GET /metrics", "");
    assert_eq!(status, 200, "{text}");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let number = |line: &str| {
        let (name, value) = line.rsplit_once(' ').expect("a name and a number");
        (name.to_string(), value.parse().unwrap_or_else(|_| panic!("{line}")))
    };
    let count = lines.clone().count();
    let numbers: BTreeMap<String, f64> = lines.map(number).collect();
    assert_eq!(numbers.len(), count, "no number is there twice");
    numbers
}

fn until_number(port: u16, name: &str, value: f64) {
    until(&format!("{name} {value}"), || (scrape(port).get(name) == Some(&value)).then_some(()));
}

/// A pool whose scheduler and node `a` can be read, with two fast devices; the ports of both.
fn pool_of_fast_devices() -> (Pool, u16, u16) {
    let first = free_ports(2);
    let mut pool = Pool::with(&["--metrics", &format!("127.0.0.1:{first}")]);
    let file = pool.file("devices.toml");
    fs::write(&file, TWO_FAST).expect("a file of devices");
    let own = format!("127.0.0.1:{}", first + 1);
    pool.agent("a", &["--devices", &format!("fake:{file}"), "--metrics", &own]);
    (pool, first, first + 1)
}

#[test]
fn numbers_are_those_of_the_pool() {
    let (pool, port, _) = pool_of_fast_devices();
    let holds = pool.submit(devices(command(&["sleep", "1.5"]), 1, &[(2, "h200")]));
    pool.until_state(holds, Running);
    let waits = pool.submit(devices(command(&["true"]), 1, &[(1, "h200")]));
    let device =
        |state| format!("aquifer_devices{{model=\"h200-141gb\",state=\"{state}\",vendor=\"nvidia\"}}");
    let jobs = |state| format!("aquifer_jobs{{queue=\"default\",state=\"{state}\"}}");
    until_number(port, &jobs("pending"), 1.0);
    let seen = scrape(port);
    let expected = [
        (device("held"), 2.0),
        (device("free"), 0.0),
        (jobs("running"), 1.0),
        ("aquifer_nodes{state=\"up\"}".into(), 1.0),
        ("aquifer_queue_held_devices{queue=\"default\"}".into(), 2.0),
        ("aquifer_leader".into(), 1.0),
        ("aquifer_term".into(), 1.0),
        ("aquifer_agent_sessions".into(), 1.0),
        ("aquifer_workers{state=\"running\"}".into(), 1.0),
    ];
    for (name, value) in expected {
        assert_eq!(seen.get(&name), Some(&value), "{name} of {seen:#?}");
    }
    pool.until_succeeded(waits);
    until_number(port, &jobs("succeeded"), 2.0);
    let seen = scrape(port);
    assert_eq!(seen["aquifer_jobs_ended_total{outcome=\"succeeded\"}"], 2.0);
    assert_eq!(seen[&jobs("pending")] + seen[&jobs("running")], 0.0, "those that ended are counted once");
    let total = |name: &str| seen[&format!("aquifer_queue_{name}_seconds_total{{queue=\"default\"}}")];
    assert!(3.0 <= total("device"), "two devices for 1.5 s: {}", total("device"));
    let speed = total("reference_device") / total("device");
    assert!((2.4..=2.6).contains(&speed), "each counts by its speed: {speed}");
    assert!(1.0 <= seen["aquifer_job_wait_seconds_sum"], "one waited for the other");
    assert_eq!(seen["aquifer_job_wait_seconds_count"], 2.0);
    let asked = seen["aquifer_command_duration_seconds_count"];
    assert!(2.0 <= asked && asked <= seen["aquifer_decision_duration_seconds_count"], "{asked} requests");
    let (commits, records) =
        (seen["aquifer_store_commit_records_count"], seen["aquifer_store_commit_records_sum"]);
    assert!(5.0 < commits && commits <= records, "{commits} commits of {records} records");
}

#[test]
fn what_was_counted_is_found_again_by_the_next_scheduler() {
    let (mut pool, port, _) = pool_of_fast_devices();
    for _ in 0..3 {
        let job = pool.submit(command(&["true"]));
        pool.until_succeeded(job);
    }
    let long = pool.submit(devices(command(&["sleep", "1000"]), 1, &[(1, "h200")]));
    pool.until_state(long, Running);
    pool.kill_server();
    pool.start_server();
    let count = |state| format!("aquifer_jobs{{queue=\"default\",state=\"{state}\"}}");
    until_number(port, "aquifer_agent_reconnections_total", 1.0);
    let seen = scrape(port);
    assert_eq!((seen[&count("succeeded")], seen["aquifer_term"]), (3.0, 2.0));
    let held = "aquifer_queue_reference_device_seconds_total{queue=\"default\"}";
    until("what runs on counts", || (0.0 < scrape(port)[held]).then_some(()));
    pool.cancel(long);
    until_number(port, &count("cancelled"), 1.0);
}

#[test]
fn the_text_is_as_prometheus_wants_it() {
    let (pool, port, own) = pool_of_fast_devices();
    let job = pool.submit(command(&["true"]));
    pool.until_succeeded(job);
    for port in [port, own] {
        let (_, text) = ask(port, "GET /metrics", "");
        let (mut kinds, mut helps, mut samples) = (BTreeMap::new(), BTreeSet::new(), 0);
        for line in text.lines() {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            match words[..] {
                ["#", "HELP", name, help] if !help.is_empty() => assert!(helps.insert(name), "{name} twice"),
                ["#", "TYPE", name, kind] => _ = kinds.insert(name, kind),
                _ => {
                    let name = line.split(['{', ' ']).next().expect("a name");
                    let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
                        name.strip_suffix(end).filter(|name| kinds.get(name) == Some(&"histogram"))
                    });
                    let family = family.unwrap_or(name);
                    assert!(
                        helps.contains(family) && kinds.contains_key(family),
                        "{line} stands below its head"
                    );
                    samples += 1;
                }
            }
        }
        for (name, kind) in &kinds {
            assert_eq!(name.ends_with("_total"), *kind == "counter", "{name} is a {kind}");
            assert!(name.starts_with("aquifer_") || name.starts_with("process_"), "{name}");
        }
        assert!(12 < samples && 12 < kinds.len(), "{samples} numbers of {} names", kinds.len());
    }
    let seen = scrape(port);
    let buckets: Vec<f64> = seen
        .iter()
        .filter(|(name, _)| name.starts_with("aquifer_store_commit_records_bucket"))
        .map(|it| *it.1)
        .collect();
    assert!(buckets.contains(&seen["aquifer_store_commit_records_count"]), "all are below infinity");
}

/// Names of numbers in an expression of Prometheus.
fn names(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    words.filter(|word| word.starts_with("aquifer_") || word.starts_with("process_"))
}

fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| match (&key[..], value) {
            ("expr" | "query" | "definition", Value::String(text)) => found.push(text.clone()),
            _ => expressions(value, found),
        }),
        Value::Array(list) => list.iter().for_each(|value| expressions(value, found)),
        _ => (),
    }
}

#[test]
fn every_number_of_the_dashboard_and_the_rules_is_told_by_a_daemon() {
    let (pool, port, own) = pool_of_fast_devices();
    let job = pool.submit(command(&["true"]));
    pool.until_succeeded(job);
    pool.aquifer(&["queues", "set", "default", "--limit", "8"]).ok();
    until_number(port, "aquifer_queue_limit_devices{queue=\"default\"}", 8.0);
    let gateway = free_ports(1);
    let (listen, url) = (format!("127.0.0.1:{gateway}"), pool.url());
    let waits = devices(command(&["true"]), 1, &[(9, "h200")]);
    let options = v1::Serve { model: "/m".into(), ..Default::default() };
    let program = Some(v1::role::Program::Serve(options));
    let roles = vec![v1::Role { program, ..waits.roles[0].clone() }];
    pool.submit(v1::JobSpec { roles, ..waits });
    let words = ["gateway", "--server", &url, "--listen", &listen];
    let mut runs = start(pool.dir(), "gateway", self::program(pool.dir(), &words));
    runs.until_out("listening on ");
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let dashboard = fs::read_to_string(deploy.join("grafana/aquifer.json")).expect("a dashboard");
    let rules = fs::read_to_string(deploy.join("prometheus-rules.yml")).expect("rules");
    let mut wanted = Vec::new();
    expressions(&serde_json::from_str(&dashboard).expect("JSON"), &mut wanted);
    wanted.extend(rules.lines().filter_map(|line| line.trim().strip_prefix("expr:")).map(Into::into));
    let told: BTreeSet<String> = [port, own, gateway]
        .into_iter()
        .flat_map(scrape)
        .map(|(name, _)| name.split('{').next().expect("a name").to_string())
        .collect();
    let wanted: BTreeSet<&str> = wanted.iter().flat_map(|text| names(text)).collect();
    let missing: Vec<_> = wanted.iter().filter(|name| !told.contains(**name)).collect();
    assert!(missing.is_empty(), "nobody tells {missing:?}");
    assert!(30 < wanted.len(), "{} names were looked at", wanted.len());
    let family = |name: &str| {
        let ends = ["_bucket", "_sum", "_count"];
        ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_string()
    };
    let shown: BTreeSet<String> = wanted.iter().map(|name| family(name)).collect();
    let told: BTreeSet<String> = told.iter().map(|name| family(name)).collect();
    let unseen: Vec<&String> = told.difference(&shown).collect();
    assert_eq!(unseen, ["process_start_time_seconds"], "the dashboard shows everything else");
}

#[test]
fn readiness_is_told_in_a_sentence() {
    let (mut pool, port, own) = pool_of_fast_devices();
    for port in [port, own] {
        assert_eq!(ask(port, "GET /healthz", ""), (200, "ok\n".into()));
        assert_eq!(ask(port, "GET /readyz", ""), (200, "ok\n".into()));
        let (status, body) = ask(port, "GET /", "");
        assert_eq!((status, body.contains("/readyz")), (404, true), "{body}");
        assert_eq!(ask(port, "POST /metrics", "content-length: 0\r\n").0, 405);
    }
    pool.kill_server();
    let said = until("the agent is alone", || {
        let (status, said) = ask(own, "GET /readyz", "");
        (status == 503).then_some(said)
    });
    assert!(said.starts_with("no session with a scheduler"), "{said}");
    assert_eq!(scrape(own)["aquifer_node_connected"], 0.0);
    assert_eq!(ask(own, "GET /healthz", "").0, 200, "it lives");
    pool.start_server();
    until("the agent has a session", || (ask(own, "GET /readyz", "").0 == 200).then_some(()));
    assert_eq!(scrape(own)["aquifer_node_sessions_total"], 2.0);
}

#[test]
fn numbers_are_for_those_with_the_token_and_nobody_else_reaches_them() {
    let port = free_ports(1);
    let mut pool = Pool::prepare(1, &["--metrics", &format!("127.0.0.1:{port}")], Some("pearl"));
    pool.start_server();
    for (headers, status) in [
        ("", 401),
        ("authorization: Bearer shell\r\n", 401),
        ("authorization: pearl\r\n", 401),
        ("authorization: Bearer pearl\r\n", 200),
    ] {
        let (found, body) = ask(port, "GET /metrics", headers);
        assert_eq!(found, status, "{headers}{body}");
        assert_eq!(body.contains("aquifer_leader"), status == 200);
    }
    assert_eq!(ask(port, "GET /readyz", "").0, 200);
    for daemon in ["server", "agent"] {
        let words = [daemon, "--metrics", "0.0.0.0:0"];
        let done = start(pool.dir(), "open", program(pool.dir(), &words)).finish();
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(done.err.contains("metrics on 0.0.0.0:0 need a token"), "{done:?}");
        let done = start(pool.dir(), "wrong", program(pool.dir(), &[daemon, "--metrics", "here"])).finish();
        assert_eq!(done.code, Some(2), "{done:?}");
        assert!(done.err.contains("--metrics is \"here\": expected an address and a port"), "{done:?}");
    }
}

#[test]
fn a_bundle_holds_what_is_needed_and_no_secret() {
    let (mut pool, _, _) = pool_of_fast_devices();
    let mut spec = shell("exit 3 # swordfish-argument");
    spec.env = [("PASSWORD".to_string(), "swordfish-value".to_string())].into();
    spec.name = "named-swordfish-token".into();
    let failed = pool.submit(spec.clone());
    pool.until_state(failed, v1::JobState::Failed);
    let waits = pool.submit(devices(spec, 1, &[(4, "h200")]));
    let priced = pool.begin_with(&["prices", "set", "h200", "2.5"], "AQUIFER_TOKEN", "swordfish-token");
    priced.finish().ok();
    let done =
        pool.begin_with(&["debug", "bundle", "b.tar.gz"], "AQUIFER_TOKEN", "swordfish-token").finish().ok();
    assert!(done.starts_with("wrote b.tar.gz (") && done.contains("attach it to your report"), "{done}");
    assert_eq!(done.lines().count(), 1, "{done}");
    let path = pool.dir().join("b.tar.gz");
    assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
    let mut files = BTreeMap::new();
    let mut archive = tar::Archive::new(GzDecoder::new(File::open(path).expect("a file")));
    for entry in archive.entries().expect("an archive") {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a name").display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).expect("text");
        assert!(!text.contains("swordfish"), "{name}: {text}");
        files.insert(name.strip_prefix("aquifer-debug/").expect("one directory").to_string(), text);
    }
    let explained = format!("explain/job-{waits}.txt");
    let names = [
        "status.json",
        "metrics.txt",
        "nodes.json",
        "queues.json",
        "prices.json",
        "reservations.json",
        "jobs.json",
        "notes.txt",
        &explained,
    ];
    assert_eq!(files.keys().map(String::as_str).collect::<BTreeSet<_>>(), names.into());
    let jobs: Value = serde_json::from_str(&files["jobs.json"]).expect("JSON");
    assert_eq!(jobs[1]["state"], "failed");
    assert_eq!(jobs[1]["spec"]["env"]["PASSWORD"], "(hidden)");
    assert_eq!(jobs[1]["spec"]["roles"][0]["command"][0], "sh", "the program is told");
    assert!(
        files["notes.txt"].contains(&format!("job-{failed} failed: rank 0 on a")),
        "{}",
        files["notes.txt"]
    );
    assert!(files["metrics.txt"].contains("\naquifer_leader 1\n"));
    assert!(files[&explained].contains("waits"), "{}", files[&explained]);
    let prices: Value = serde_json::from_str(&files["prices.json"]).expect("JSON");
    assert_eq!(prices["prices"][0]["price_milli"], 2500, "{prices}");
    let nodes: Value = serde_json::from_str(&files["nodes.json"]).expect("JSON");
    assert_eq!(nodes[0]["devices"][0]["price_milli"], 2500, "{nodes}");
    let status: Value = serde_json::from_str(&files["status.json"]).expect("JSON");
    assert_eq!((&status["term"], status["server_version"].is_string()), (&Value::from(1), true));
    pool.kill_server();
    let done = pool.aquifer(&["debug", "bundle"]);
    assert_eq!(done.code, Some(3), "{done:?}");
    pool.start_server();
}
