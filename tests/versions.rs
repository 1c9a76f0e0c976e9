//! Two versions side by side: what was said on the wire keeps its meaning, and pools are upgraded daemon by daemon, in any
//! order.
//!
//! A version of the protocol is recorded once, and never again: its descriptors, and messages of a pool that spoke it
//! (`RECORD=tests/versions/wire-3 cargo test --test versions`). With `AQUIFER_OLD` the program of an earlier version takes part
//! itself.

mod pool;
#[path = "versions/relay.rs"]
mod relay;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use aquifer_proto::{DESCRIPTORS, v1};
use pool::{Pool, command, devices, free_ports, shell, training, until};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, EnumDescriptor, MessageDescriptor};
use relay::Relay;
use v1::JobState::{Failed, Running};

/// Versions that were recorded, the first one first.
const VERSIONS: [&str; 2] = ["wire-1", "wire-2"];

/// A job with as much as fits.
const JOB: &str = "
name: much
queue: research
priority: 3
ranks: 3
min_ranks: 2
command: [echo, hello]
devices: {count: 1, class: h100}
memory: 1GiB
env: {A: b}
labels: {rack: r1}
time_limit: 1h
retries: 2
grace: 5s
";

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/versions").join(file)
}

/// The protocol of a version that was recorded.
fn recorded(version: &str) -> DescriptorPool {
    let path = path(&format!("{version}.fds"));
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    DescriptorPool::decode(&bytes[..]).expect("descriptors")
}

fn of_today() -> DescriptorPool {
    DescriptorPool::decode(DESCRIPTORS).expect("descriptors")
}

/// What of an earlier type is another one in the later, or missing.
fn broken(earlier: &MessageDescriptor, later: Option<MessageDescriptor>, wrong: &mut Vec<String>) {
    let Some(later) = later else {
        return wrong.push(format!("{} is gone", earlier.full_name()));
    };
    for field in earlier.fields() {
        let name = format!("{} = {}", field.full_name(), field.number());
        let is_reserved = later.reserved_ranges().any(|range| range.contains(&field.number()));
        match later.get_field(field.number()) {
            None if is_reserved => (),
            None => wrong.push(format!("{name} is gone, and its number is not reserved")),
            Some(now) => {
                let one_of = |it: &prost_reflect::FieldDescriptor| {
                    it.containing_oneof().map(|it| it.name().to_string())
                };
                let what = |it: &prost_reflect::FieldDescriptor| {
                    (
                        it.name().to_string(),
                        format!("{:?}", it.kind()),
                        it.cardinality(),
                        one_of(it),
                        it.supports_presence(),
                    )
                };
                if what(&field) != what(&now) {
                    wrong.push(format!("{name} was {:?} and is {:?}", what(&field), what(&now)));
                }
            }
        }
    }
}

fn broken_enum(earlier: &EnumDescriptor, later: Option<EnumDescriptor>, wrong: &mut Vec<String>) {
    for value in earlier.values() {
        let now = later.as_ref().and_then(|it| it.get_value(value.number()));
        if now.is_none_or(|now| now.name() != value.name()) {
            wrong.push(format!("{} = {} is another value, or gone", value.full_name(), value.number()));
        }
    }
}

#[test]
fn what_was_on_the_wire_keeps_its_numbers_and_types() {
    let today = of_today();
    for version in VERSIONS {
        let (version, mut wrong) = (recorded(version), Vec::new());
        for message in version.all_messages() {
            broken(&message, today.get_message_by_name(message.full_name()), &mut wrong);
        }
        for it in version.all_enums() {
            broken_enum(&it, today.get_enum_by_name(it.full_name()), &mut wrong);
        }
        for service in version.services() {
            let now = today.get_service_by_name(service.full_name()).expect("services stay");
            for method in service.methods() {
                let what = |it: &prost_reflect::MethodDescriptor| {
                    let types = [it.input(), it.output()].map(|it| it.full_name().to_string());
                    (types, it.is_client_streaming(), it.is_server_streaming())
                };
                let now = now.methods().find(|it| it.name() == method.name());
                if now.is_none_or(|now| what(&now) != what(&method)) {
                    wrong.push(format!("{} is another call, or gone", method.full_name()));
                }
            }
        }
        assert!(wrong.is_empty(), "peers of an earlier version would misunderstand: {wrong:#?}");
        assert!(60 < version.all_messages().len(), "{} messages", version.all_messages().len());
    }
}

/// A message that is decoded and encoded by the generated type of today.
fn through_today(name: &str, bytes: &[u8]) -> Vec<u8> {
    fn through<M: Message + Default>(bytes: &[u8]) -> Vec<u8> {
        M::decode(bytes).expect("a message of today").encode_to_vec()
    }
    match name {
        "aquifer.v1.AgentMessage" => through::<v1::AgentMessage>(bytes),
        "aquifer.v1.SchedulerMessage" => through::<v1::SchedulerMessage>(bytes),
        "aquifer.v1.SubmitRequest" => through::<v1::SubmitRequest>(bytes),
        "aquifer.v1.Job" => through::<v1::Job>(bytes),
        "aquifer.v1.ListResponse" => through::<v1::ListResponse>(bytes),
        "aquifer.v1.ListNodesResponse" => through::<v1::ListNodesResponse>(bytes),
        "aquifer.v1.UsageResponse" => through::<v1::UsageResponse>(bytes),
        "aquifer.v1.Explanation" => through::<v1::Explanation>(bytes),
        "aquifer.v1.PlanResponse" => through::<v1::PlanResponse>(bytes),
        "aquifer.v1.Note" => through::<v1::Note>(bytes),
        _ => bytes.to_vec(),
    }
}

#[test]
fn messages_of_every_version_are_read_and_written_as_they_were() {
    if let Some(version) = env::var_os("RECORD") {
        record(&version);
    }
    for version in VERSIONS {
        let descriptors = recorded(version);
        let text = fs::read_to_string(path(&format!("{version}.messages"))).expect("recorded messages");
        let mut types = BTreeSet::new();
        for line in text.lines() {
            let (name, hex) = line.split_once(' ').expect("a type and a message");
            let bytes: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
                .collect();
            let of = descriptors.get_message_by_name(name).expect("a type of that version");
            let before = DynamicMessage::decode(of.clone(), &bytes[..]).expect("a message of that version");
            let after = DynamicMessage::decode(of, &through_today(name, &bytes)[..]).expect("the same");
            assert_eq!(before, after, "{name} of {version}");
            types.insert(name);
        }
        assert!(20 < types.len(), "messages of {} types", types.len());
    }
}

/// A pool behind a relay that lets pass what a version has.
fn pool_that_speaks(version: DescriptorPool) -> (Relay, Pool) {
    let mut pool = Pool::start();
    let relay = Relay::start(free_ports(1), &pool.url(), version);
    pool.go_through(relay.url.clone());
    (relay, pool)
}

/// A pool in which what there is happens once: jobs of all kinds, questions, daemons that come again.
fn everything_happens(pool: &mut Pool, mut upgrade: impl FnMut(&mut Pool, usize)) {
    pool.agent("a", &["--cpus", "4"]);
    pool.agent("b", &["--cpus", "4"]);
    let (go, file) = (pool.file("go"), pool.file("job.yaml"));
    fs::write(&file, JOB).expect("a file");
    let long = pool.submit(shell(&format!("echo begun; until [ -e {go} ]; do sleep 0.05; done; echo done")));
    pool.until_state(long, Running);
    let worker = pool.worker(long, 1, 0);
    for step in 0..3 {
        let trains = pool.submit(training(pool, &step.to_string(), 12));
        let fails = pool.submit(shell("exit 3"));
        let waits = pool.submit(devices(command(&["true"]), 1, &[(9, "h200")]));
        let array = pool.submit(v1::JobSpec {
            array: Some(v1::ArrayRange { first: 0, last: 4, step: 1 }),
            ..shell("echo $AQUIFER_ARRAY_INDEX")
        });
        pool.until_state(fails, Failed);
        pool.until_succeeded(trains);
        pool.until_succeeded(array);
        let [waiting, trained] = [waits, trains].map(|job| job.to_string());
        for words in [
            &["queues", "set", "research", "--weight", "2", "--limit", "64"][..],
            &["submit", &file],
            &["plan", &file],
            &["jobs", "--all"],
            &["job", &waiting],
            &["job", &trained],
            &["explain", &waiting],
            &["nodes"],
            &["queues"],
            &["usage"],
            &["cordon", "b"],
            &["uncordon", "b"],
            &["logs", &long.to_string()],
        ] {
            pool.aquifer(words).ok();
        }
        pool.cancel(waits);
        upgrade(pool, step);
    }
    assert_eq!((pool.worker(long, 1, 0), pool.job(long).attempt), (worker, 1), "it ran through all of it");
    fs::write(&go, "").expect("a file");
    pool.until_succeeded(long);
    assert_eq!(pool.log(long), "begun\ndone\n");
}

/// Starts a daemon anew, as upgrades do.
fn again(pool: &mut Pool, daemon: usize) {
    match daemon {
        0 => {
            pool.kill_server();
            pool.start_server();
        }
        at => {
            let name = ["a", "b"][at - 1];
            pool.kill_agent(name);
            pool.agent(name, &[]);
        }
    }
}

#[test]
fn a_scheduler_agents_and_clients_of_which_one_side_is_of_an_earlier_version_work_together() {
    for version in VERSIONS {
        let (relay, mut pool) = pool_that_speaks(recorded(version));
        everything_happens(&mut pool, again);
        let seen = relay.seen.lock().expect("no holder panics");
        println!(
            "{version}: {} shapes of messages, {} fields that it does not have",
            seen.shapes.len(),
            seen.dropped
        );
        assert!(50 < seen.shapes.len(), "{} shapes", seen.shapes.len());
        assert!(0 < seen.dropped || version != VERSIONS[0], "the first version has less than is said today");
    }
}

#[test]
fn a_pool_is_upgraded_daemon_by_daemon_while_jobs_run() {
    let Some(old) = env::var_os("AQUIFER_OLD") else {
        _ = writeln!(std::io::stderr(), "skipped: upgrades of an earlier program: AQUIFER_OLD names none");
        return;
    };
    for order in [[0, 1, 2], [1, 2, 0]] {
        let mut pool = Pool::prepare(1, &[], None);
        pool.use_binary(Path::new(&old));
        pool.start_server();
        everything_happens(&mut pool, |pool, step| {
            pool.use_binary(Path::new(pool::BINARY));
            again(pool, order[step]);
            pool.use_binary(Path::new(if step == 1 { old.as_os_str() } else { pool::BINARY.as_ref() }));
        });
        until("both nodes are up", || {
            ["a", "b"].iter().all(|name| pool.node(name).is_some_and(|it| it.up)).then_some(())
        });
    }
}

/// Records the protocol of today.
fn record(version: &OsStr) {
    let version = Path::new(env!("CARGO_MANIFEST_DIR")).join(version);
    fs::write(version.with_extension("fds"), DESCRIPTORS).expect("a file");
    let (relay, mut pool) = pool_that_speaks(of_today());
    everything_happens(&mut pool, again);
    let mut lines = String::new();
    for ((name, _), bytes) in &relay.seen.lock().expect("no holder panics").shapes {
        write!(lines, "{name} ").expect("room");
        bytes.iter().for_each(|byte| write!(lines, "{byte:02x}").expect("room"));
        lines.push('\n');
    }
    fs::write(version.with_extension("messages"), lines).expect("a file");
}
