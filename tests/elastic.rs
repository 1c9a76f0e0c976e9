//! A training shrinks for a better job, goes on exactly and grows back, on a pool of real processes.

mod pool;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aquifer_proto::v1;
use pool::{Pool, devices, send, shell, training, until};
use rustix::process::Signal;
use serde_json::Value;

/// What rank 0 of an attempt last told of itself.
fn status(pool: &Pool, job: u64, attempt: u32) -> Option<Value> {
    let path = pool.run_dir(job, attempt, 0)?.join("status.json");
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

fn train(pool: &Pool, name: &str, ranks: u32, min_ranks: Option<u32>) -> v1::JobSpec {
    let mut spec = devices(training(pool, name, 400), ranks, &[(1, "h100")]);
    (spec.name, spec.roles[0].min_ranks) = (name.into(), min_ranks);
    spec
}

/// Four cards, on which nothing computes.
fn cards(pool: &mut Pool) {
    let cards = pool.file("cards.toml");
    fs::write(&cards, "[[device]]\nvendor = \"nvidia\"\nmodel = \"h100\"\nmemory_gib = 80\ncount = 4\n")
        .expect("a file");
    pool.agent("a", &["--devices", &format!("fake:{cards}")]);
}

/// Waits until rank 0 of an attempt knows of a checkpoint.
fn until_saved(pool: &Pool, job: u64, attempt: u32) -> u64 {
    until("a checkpoint", || status(pool, job, attempt)?["checkpoint_step"].as_u64())
}

#[test]
fn a_training_shrinks_for_a_better_job_goes_on_exactly_and_grows_back() {
    let mut pool = Pool::with(&["--grow-after", "500ms"]);
    cards(&mut pool);
    let mut spec = train(&pool, "elastic", 4, Some(2));
    spec.restart = v1::Restart::Gang.into();
    let job = pool.submit(spec);
    assert_eq!(pool.until_job(job, "placed", |job| job.attempt == 1).ranks.len(), 4);
    until_saved(&pool, job, 1);

    let gate = pool.file("gate");
    let waits = format!("until [ -e {gate} ]; do sleep 0.05; done");
    let mut better = devices(shell(&waits), 2, &[(1, "h100")]);
    better.priority = 5;
    let better = pool.submit(better);
    pool.until_note("job-1 shrinks from 4 to 2 ranks: it gives way to job-2");
    pool.until_state(better, v1::JobState::Running);
    let shrunk = pool.until_job(job, "smaller", |job| job.attempt == 2);
    assert_eq!((shrunk.ranks.len(), shrunk.wanted_ranks, shrunk.failures), (2, 4, 0));
    assert_eq!(shrunk.last_failure, "it shrank from 4 to 2 ranks for job-2");
    let jobs = pool.aquifer(&["jobs"]).ok();
    assert!(jobs.contains("2/2-4"), "{jobs}");
    until_saved(&pool, job, 2);

    fs::write(&gate, "").expect("a file");
    pool.until_succeeded(better);
    pool.until_note("job-1 grows from 2 to 4 ranks");
    let grown = pool.until_job(job, "as large as before", |job| job.attempt == 3);
    assert_eq!(grown.ranks.len(), 4);
    let ended = pool.until_succeeded(job);
    assert_eq!((ended.attempt, ended.failures), (3, 0), "{}", ended.last_failure);
    let last = status(&pool, job, 3).expect("its last words");

    let undisturbed = pool.submit(train(&pool, "undisturbed", 1, None));
    pool.until_succeeded(undisturbed);
    let alone = status(&pool, undisturbed, 1).expect("its last words");
    assert_eq!((&last["step"], &last["loss"]), (&alone["step"], &alone["loss"]));
    for attempt in [2, 3] {
        let log =
            pool.logs(v1::LogsRequest { job, attempt: Some(attempt), rank: Some(0), ..Default::default() });
        let resumed = log[&(attempt, 0)].contains(", from step ");
        assert!(resumed, "attempt {attempt} begins anew: {log:?}");
    }
}

#[test]
fn a_training_bears_the_loss_of_its_leader_and_of_a_member_and_other_sizes_to_the_same_bits() {
    let mut pool = Pool::start();
    cards(&mut pool);
    let mut spec = train(&pool, "borne", 3, Some(1));
    spec.retries = 9;
    let job = pool.submit(spec);
    pool.until_state(job, v1::JobState::Running);
    let step = |rank: u32| {
        let path = pool.run_dir(job, 1, rank)?.join("status.json");
        serde_json::from_str::<Value>(&fs::read_to_string(path).ok()?).ok()?["step"].as_u64()
    };
    let until_beyond = |rank: u32, least: u64| {
        until("progress", || step(rank).filter(|step| least <= *step));
    };
    until_beyond(0, 20);
    // The longest-serving one leads.
    send(pool.worker(job, 1, 0).worker, Signal::KILL);
    pool.until_note("job-1 rank 3 on a takes the place of rank 0");
    until_beyond(3, step(1).expect("a step") + 10);
    send(pool.worker(job, 1, 3).worker, Signal::KILL);
    pool.until_note("job-1 rank 4 on a takes the place of rank 3");
    until_beyond(4, step(1).expect("a step") + 10);
    pool.aquifer(&["job", "scale", "job-1", "--ranks", "1"]).ok();
    let small = pool.until_job(job, "smaller", |job| job.ranks.len() == 1);
    let left = small.ranks[0].rank;
    until_beyond(left, step(left).expect("a step") + 10);
    pool.aquifer(&["job", "scale", "job-1", "--ranks", "auto"]).ok();
    pool.until_job(job, "whole again", |job| job.ranks.len() == 3);
    let ended = pool.until_succeeded(job);
    assert_eq!((ended.attempt, ended.failures), (1, 2), "{}", ended.last_failure);

    let undisturbed = pool.submit(train(&pool, "undisturbed", 1, None));
    pool.until_succeeded(undisturbed);
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let read = |name: &str| {
            fs::read(pool.file(&format!("checkpoints-{name}/step-000400/{file}"))).expect("a checkpoint")
        };
        assert!(read("borne") == read("undisturbed"), "{file} has other bits");
    }
    // What all that is worth is accounted for, also after the end.
    let ended = pool.job(job);
    let capacity = ended.capacity.expect("its workers told");
    assert!(0.0 < capacity && capacity <= 1.0, "{capacity}");
    let usage = pool.call(async |mut stub| stub.usage(v1::UsageRequest { since_ms: 0 }).await);
    let rows = usage.expect("usage").rows;
    let [row] = &rows[..] else { panic!("{rows:?}") };
    assert!(0 < row.worked_ms && row.worked_ms <= row.held_ms && row.held_ms <= row.device_ms, "{row:?}");
    let shown = pool.aquifer(&["job", "job-1"]).ok();
    assert!(shown.contains("of what its ranks could have computed"), "{shown}");
}

/// A copy of the program whose workers speak another version of the protocol of trainings: its name is another one, in the file itself.
fn of_another_version(pool: &Pool) -> PathBuf {
    let (own, other) = (b"aquifer-elastic-", b"aquifer-elastik-");
    let mut program = fs::read(pool::BINARY).expect("the program");
    let places = program.windows(own.len()).enumerate();
    let found: Vec<usize> = places.filter(|(_, part)| *part == own).map(|(at, _)| at).collect();
    assert!(!found.is_empty(), "the program does not hold its version as text");
    found.into_iter().for_each(|at| program[at..at + other.len()].copy_from_slice(other));
    let path = pool.dir().join("aquifer-of-another-version");
    fs::write(&path, program).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a program");
    path
}

#[test]
fn where_ranks_of_two_versions_meet_one_goes_on_and_the_other_waits_and_takes_over() {
    let mut pool = Pool::start();
    let cards = pool.file("cards.toml");
    fs::write(&cards, "[[device]]\nvendor = \"nvidia\"\nmodel = \"h100\"\nmemory_gib = 80\ncount = 1\n")
        .expect("a file");
    let cards = format!("fake:{cards}");
    pool.agent("a", &["--devices", &cards]);
    let other = of_another_version(&pool);
    pool.use_binary(&other);
    pool.agent("b", &["--devices", &cards]);
    pool.use_binary(Path::new(pool::BINARY));

    let mut spec = train(&pool, "met", 2, Some(1));
    spec.retries = 9;
    let job = pool.submit(spec);
    // Who leads is who came first, and that is rank 0, wherever it is.
    let told = |rank: u32| -> Option<Value> {
        serde_json::from_str(&fs::read_to_string(pool.run_dir(job, 1, rank)?.join("status.json")).ok()?).ok()
    };
    let progress = |rank: u32, least: u64| {
        until("progress", || told(rank)?["step"].as_u64().filter(|step| least <= *step));
    };
    let waiting = |rank: u32, leader: u32| -> String {
        let sentence = format!(
            "rank {rank} waits until the others have ended: rank {leader} refused it, it speaks aquifer-elasti"
        );
        until("a rank that waits", || {
            Some(told(rank)?["message"].as_str()?.to_string()).filter(|it| it.starts_with(&sentence))
        })
    };
    let said = waiting(1, 0);
    assert!(said.contains("aquifer-elastic-") && said.contains("aquifer-elastik-"), "{said}");
    until_saved(&pool, job, 1);
    progress(0, 20);
    // The one that waited has no state, and goes on from the newest checkpoint; the one that takes the other's place waits for it.
    send(pool.worker(job, 1, 0).worker, Signal::KILL);
    pool.until_note("takes the place of rank 0");
    waiting(2, 1);
    progress(1, 40);
    let ended = pool.until_succeeded(job);
    assert_eq!((ended.attempt, ended.failures), (1, 1), "{}", ended.last_failure);

    let undisturbed = pool.submit(train(&pool, "undisturbed", 1, None));
    pool.until_succeeded(undisturbed);
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let read = |name: &str| {
            fs::read(pool.file(&format!("checkpoints-{name}/step-000400/{file}"))).expect("a checkpoint")
        };
        assert!(read("met") == read("undisturbed"), "{file} has other bits");
    }
}

#[test]
fn a_user_scales_a_job_through_the_command_line() {
    let mut pool = Pool::start();
    pool.agent("a", &["--devices", "cpu:0-1"]);
    let mut spec = devices(shell("sleep 1000"), 2, &[]);
    spec.roles[0].min_ranks = Some(1);
    let job = pool.submit(spec);
    pool.until_state(job, v1::JobState::Running);
    let said = pool.aquifer(&["job", "scale", "job-1", "--ranks", "1"]).ok();
    assert_eq!(said.trim(), "job-1 is to have 1 ranks");
    pool.until_job(job, "scaled", |job| job.attempt == 2 && job.ranks.len() == 1);
    let refused = pool.aquifer(&["job", "scale", "job-1", "--ranks", "3"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("ranks is 3: expected 1 to 2"), "{}", refused.err);
    pool.aquifer(&["job", "scale", "job-1", "--ranks", "auto"]).ok();
    pool.until_job(job, "whole again", |job| job.attempt == 3 && job.ranks.len() == 2);
    let shown = pool.aquifer(&["job", "job-1"]).ok();
    assert!(shown.contains("2/1-2"), "{shown}");
    pool.cancel(job);
}

#[test]
fn one_worker_is_killed_and_replaced_while_the_others_run_on_and_are_told() {
    let mut pool = Pool::start();
    pool.agent("a", &["--devices", "cpu:0-1"]);
    let mut spec = shell("exec sleep 1000");
    spec.roles[0].ranks = 3;
    (spec.restart, spec.retries) = (v1::Restart::Rank.into(), 1);
    spec.roles[0].request.as_mut().expect("a request").cpus_milli = 100;
    let job = pool.submit(spec);
    pool.until_state(job, v1::JobState::Running);
    let members = |rank| {
        let path = pool.run_dir(job, 1, rank)?.join("members.json");
        serde_json::from_str::<Value>(&fs::read_to_string(path).ok()?).ok()
    };
    let ranks = |file: &Value| -> Vec<u64> {
        let members = file["members"].as_array().expect("a list");
        members.iter().map(|member| member["rank"].as_u64().expect("a number")).collect()
    };
    let first = members(2).expect("it was told before it started");
    assert_eq!(ranks(&first), [0, 1, 2]);
    let address = first["members"][1]["address"].as_str().expect("an address").to_string();
    let (killed, others) =
        (pool.worker(job, 1, 1).worker, [0, 2].map(|rank| pool.worker(job, 1, rank).worker));
    send(killed, Signal::KILL);
    pool.until_note("job-1 rank 3 on a takes the place of rank 1");
    let newest = |rank: u32| until("the newest list", || members(rank).filter(|it| ranks(it) == [0, 2, 3]));
    for rank in [0, 2, 3] {
        let list = newest(rank);
        assert!(first["epoch"].as_u64() < list["epoch"].as_u64());
        assert_eq!(list["members"][2]["address"], *address, "in the same place");
    }
    let again = pool.until_job(job, "whole again", |job| job.state() == v1::JobState::Running);
    assert_eq!(again.ranks.iter().map(|rank| rank.rank).collect::<Vec<_>>(), [0, 3, 2]);
    assert_eq!((again.attempt, again.failures), (1, 1));
    assert_eq!(others, [0, 2].map(|rank| pool.worker(job, 1, rank).worker), "the others ran on");
    pool.cancel(job);
}
