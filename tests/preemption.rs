//! A training job gives its devices to a better one and resumes from its checkpoint, on a pool of real processes.

mod pool;

use std::fs;

use aquifer_proto::v1;
use pool::{Pool, training, until};
use serde_json::Value;
use v1::JobState::Pending;

/// A training job on one core.
fn train(pool: &Pool, name: &str, steps: u64, priority: i32) -> v1::JobSpec {
    let mut spec = v1::JobSpec { name: name.into(), priority, ..training(pool, name, steps) };
    spec.roles[0].request.get_or_insert_default().devices =
        vec![v1::DeviceRequest { count: 1, vendor: "cpu".into(), ..Default::default() }];
    spec
}

/// What rank 0 of an attempt last told of itself.
fn status(pool: &Pool, job: u64, attempt: u32) -> Option<Value> {
    let path = pool.run_dir(job, attempt, 0)?.join("status.json");
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

#[test]
fn a_better_job_takes_the_devices_of_a_training_that_later_resumes_from_its_checkpoint() {
    let mut pool = Pool::start();
    pool.agent("a", &["--devices", "cpu:0"]);
    let steps = 400;
    let low = pool.submit(train(&pool, "low", steps, 0));
    until("a few checkpoints", || {
        (Some(20) <= status(&pool, low, 1)?["checkpoint_step"].as_u64()).then_some(())
    });

    let file = pool.file("high.yaml");
    fs::write(&file, "command: [\"true\"]\ndevices: {count: 1, vendor: cpu}\npriority: 5\n")
        .expect("a job file");
    let plan = pool.aquifer(&["plan", &file]).ok();
    assert!(plan.contains("once another one has stopped") && plan.contains("job-1"), "{plan}");
    assert_eq!(pool.jobs().len(), 1, "a plan changes nothing");

    let high = pool.submit(train(&pool, "high", 40, 5));
    pool.until_note("job-1 preempted: it gives way to job-2");
    let victim = pool.until_job(low, "waiting again", |job| job.state() == Pending);
    let stopped = status(&pool, low, 1).expect("its last words");
    let saved = stopped["checkpoint_step"].as_u64().expect("a checkpoint");
    assert_eq!(Some(saved), stopped["step"].as_u64(), "it wrote a checkpoint while it stopped: {stopped}");
    assert_eq!((victim.failures, victim.attempt), (0, 1), "{}", victim.last_failure);
    assert!(0 < victim.device_ms && victim.lost_device_ms < victim.device_ms, "{victim:?}");
    let why = pool.aquifer(&["explain", "job-1"]).ok();
    assert!(why.contains("gave way to job-2"), "{why}");
    pool.kill_server();
    pool.start_server();
    assert_eq!(pool.job(low).last_failure, "it gave way to job-2");
    pool.until_succeeded(high);

    let ended = pool.until_succeeded(low);
    assert_eq!((ended.failures, ended.attempt), (0, 2));
    assert_eq!(status(&pool, low, 2).expect("its last words")["step"].as_u64(), Some(steps));
    let log = pool.log(low);
    assert!(log.contains(&format!(", from step {saved}")), "it resumed from step {saved}: {log}");
}
