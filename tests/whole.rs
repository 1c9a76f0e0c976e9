//! The commands that run a pool by themselves, and the bundled worker on a pool.

mod pool;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use aquifer_proto::v1;
use pool::{
    Client, Pool, Running, free_ports, has_ended, is_alive, kill_all_of, processes_of, program, send, shell,
    start, training, until, until_within,
};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use v1::JobState;

/// `aquifer up` in a home of its own.
struct Up {
    home: TempDir,
    port: u16,
}

impl Up {
    fn new() -> Up {
        let home = TempDir::with_prefix("aquifer-test-").expect("a temporary directory");
        fs::create_dir(home.path().join("home")).expect("a home");
        Up { home, port: free_ports(1) }
    }

    fn dir(&self) -> &Path {
        self.home.path()
    }

    fn start(&self) -> (Running, Client) {
        let listen = format!("127.0.0.1:{}", self.port);
        let words = ["up", "--listen", &listen, "--cpus", "2", "--devices", "none"];
        let mut up = start(self.dir(), "up", program(self.dir(), &words));
        up.until_out("The pool is up at ");
        (up, Client::new(&format!("http://{listen}"), None))
    }

    fn aquifer(&self, words: &[&str]) -> Running {
        let mut command = program(self.dir(), words);
        command.env("AQUIFER_SERVER", format!("http://127.0.0.1:{}", self.port));
        start(self.dir(), "cli", command)
    }

    #[track_caller]
    fn assert_nothing_is_left(&self) {
        until("nothing is left", || processes_of(self.dir()).is_empty().then_some(()));
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        kill_all_of(self.dir());
    }
}

#[test]
fn up_runs_jobs_stops_in_order_and_goes_on_after_its_next_start() {
    let up = Up::new();
    let (pool, client) = up.start();
    let done = up.aquifer(&["run", "--", "echo", "hello"]).finish();
    assert_eq!((done.code, &done.out[..]), (Some(0), "hello\n"), "{}", done.err);
    let saved = up.dir().join("saved");
    let script = "trap 'echo step >> $SAVED; exit 0' TERM; [ -e $SAVED ] && exit 0; echo ready; \
                  while :; do sleep 0.02; done";
    let env = [("SAVED".to_string(), saved.to_str().expect("text").to_string())].into();
    let job = client.submit(v1::JobSpec { env, ..shell(script) });
    until("the trap is set", || (client.log(job) == "ready\n").then_some(()));
    pool.signal(Signal::INT);
    let done = pool.finish();
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert_eq!(fs::read_to_string(&saved).expect("what it saved"), "step\n");
    up.assert_nothing_is_left();

    let (pool, client) = up.start();
    assert_eq!(client.jobs().len(), 2);
    let ended = client.until_succeeded(job);
    assert_eq!((ended.attempt, ended.failures), (2, 0));
    assert_eq!(up.aquifer(&["logs", "job-1"]).finish().ok(), "hello\n");
    pool.signal(Signal::TERM);
    assert_eq!(pool.finish().code, Some(0));
    up.assert_nothing_is_left();
}

#[test]
fn up_that_is_killed_finds_its_workers_again() {
    let up = Up::new();
    let (pool, client) = up.start();
    let go = up.dir().join("go");
    let job = client.submit(shell(&format!("while ! [ -e {} ]; do sleep 0.02; done", go.display())));
    client.until_state(job, JobState::Running);
    drop(pool); // The drop kills.
    assert!(processes_of(up.dir()).iter().any(|(_, words)| words.contains("supervise")));
    let (pool, client) = up.start();
    fs::write(&go, "").expect("a file");
    assert_eq!(client.until_succeeded(job).attempt, 1);
    pool.signal(Signal::INT);
    assert_eq!(pool.finish().code, Some(0));
    up.assert_nothing_is_left();
}

#[test]
fn a_second_pool_at_the_same_place_is_refused() {
    let up = Up::new();
    let (pool, _) = up.start();
    let listen = format!("127.0.0.1:{}", up.port);
    for (words, why) in [(["up", "--listen", "127.0.0.1:0"], "store"), (["up", "--listen", &listen], "")] {
        let done = start(up.dir(), "second", program(up.dir(), &words)).finish();
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(done.err.contains(why), "{}", done.err);
    }
    pool.signal(Signal::INT);
    assert_eq!(pool.finish().code, Some(0));
    up.assert_nothing_is_left();
}

#[test]
fn the_demonstration_ends_well_and_leaves_nothing() {
    let up = Up::new();
    let mut demo = start(up.dir(), "demo", program(up.dir(), &["demo", "--steps", "120"]));
    let done = demo.finish_within(Duration::from_secs(170));
    assert_eq!(done.code, Some(0), "{done:?}");
    for text in ["no step is repeated", "streamed", "nothing is left running"] {
        assert!(done.out.contains(text), "no {text:?} in {}", done.out);
    }
    assert_eq!(processes_of(up.dir()), []);
    let left = fs::read_dir(up.dir()).expect("a directory").flatten();
    let left: Vec<_> =
        left.filter(|entry| entry.file_name().to_string_lossy().contains("aquifer-demo")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_interrupted_demonstration_leaves_nothing() {
    let up = Up::new();
    let mut demo = start(up.dir(), "demo", program(up.dir(), &["demo", "--steps", "100000"]));
    demo.until_out("Training a small");
    demo.signal(Signal::INT);
    let done = demo.finish();
    assert_ne!(done.code, Some(0), "{done:?}");
    until("nothing is left", || processes_of(up.dir()).is_empty().then_some(()));
}

/// A training job of so many ranks.
fn train(pool: &Pool, ranks: u32, steps: u64) -> v1::JobSpec {
    let mut spec = training(pool, &format!("{ranks}-{steps}"), steps);
    (spec.retries, spec.restart) = (2, v1::Restart::Gang.into());
    spec.roles[0].ranks = ranks;
    spec
}

/// Steps that a training has done, in the order in which it did them, with their losses: one that was done again is there again.
fn steps_of(spec: &v1::JobSpec) -> Vec<(u64, f64)> {
    let file = Path::new(spec.checkpoint_dir()).join("steps.jsonl");
    let text = fs::read_to_string(file).expect("steps");
    let point = |line: &str| {
        let point: Value = serde_json::from_str(line).expect("a step");
        (point["step"].as_u64().expect("a number"), point["loss"].as_f64().expect("a loss"))
    };
    text.lines().map(point).collect()
}

#[test]
fn two_ranks_train_like_one_and_a_killed_rank_costs_no_more_than_a_checkpoint() {
    let mut pool = Pool::with(&["--backoff", "10ms"]);
    pool.agent("a", &[]);
    pool.agent("b", &[]);
    let steps = 40;
    let of_one = train(&pool, 1, steps);
    let one = pool.submit(of_one.clone());
    pool.until_succeeded(one);
    let alone: BTreeMap<u64, f64> = steps_of(&of_one).into_iter().collect();
    assert_eq!(alone.len() as u64, steps, "{alone:?}");

    let of_two = train(&pool, 2, steps);
    let two = pool.submit(of_two.clone());
    until("a checkpoint", || {
        let status = fs::read_to_string(pool.run_dir(two, 1, 0)?.join("status.json")).ok()?;
        let status: Value = serde_json::from_str(&status).ok()?;
        (10 <= status["checkpoint_step"].as_u64()?).then_some(())
    });
    let victim = pool.worker(two, 1, 1).worker;
    let killed = Instant::now();
    send(victim, Signal::KILL);
    let ended = pool.until_succeeded(two);
    println!("from the kill to the end: {:?}", killed.elapsed());
    assert!(!is_alive(victim));
    assert_eq!((ended.attempt, ended.failures), (2, 1), "{}", ended.last_failure);
    let done = steps_of(&of_two);
    for (step, loss) in &done {
        assert_eq!(alone.get(step), Some(loss), "step {step} of {done:?}");
    }
    assert!(alone.keys().all(|step| done.iter().any(|(done, _)| done == step)), "{done:?}");
    let back = done.windows(2).find(|pair| pair[1].0 <= pair[0].0);
    assert!(back.is_none_or(|pair| 10 < pair[1].0), "the second attempt begins anew: {done:?}");
}

#[test]
fn a_scheduler_with_ten_thousand_jobs_is_soon_back() {
    let mut pool = Pool::start();
    let array = |first, last| Some(v1::ArrayRange { first, last, step: 1 });
    let begun = Instant::now();
    let client = pool.another_client();
    let submitted = client.block_on(async {
        let one = |number: u32| {
            let mut stub = client.stub();
            async move {
                let spec = v1::JobSpec { name: format!("job {number}"), ..shell("true") };
                stub.submit(v1::SubmitRequest { spec: Some(spec) }).await.expect("an answer").into_inner().job
            }
        };
        let mut jobs = Vec::new();
        for batch in 0..40 {
            jobs.extend(futures::future::join_all((batch * 100..(batch + 1) * 100).map(one)).await);
        }
        jobs
    });
    println!("4,000 jobs submitted in {:?}", begun.elapsed());
    let ending = pool.submit(v1::JobSpec { array: array(1, 4000), ..shell("true") });
    let request = v1::CancelRequest { job: ending, whole_array: true };
    pool.call(async |mut stub| stub.cancel(request).await).expect("cancelled");
    let waiting = pool.submit(v1::JobSpec { array: array(1, 2000), ..shell("true") });
    assert_eq!(pool.jobs().len(), 10_000);
    pool.kill_server();
    let killed = Instant::now();
    pool.start_server();
    assert_eq!(pool.job(waiting).state(), JobState::Pending);
    let back = killed.elapsed();
    println!("10,000 jobs: answers {back:?} after its start");
    assert!(back < Duration::from_secs(5), "{back:?}");
    assert_eq!(pool.jobs().len(), 10_000);
    assert_eq!(submitted.len(), 4000);
    let request = v1::CancelRequest { job: waiting, whole_array: true };
    pool.call(async |mut stub| stub.cancel(request).await).expect("cancelled");
    pool.cancel_all(&submitted);
    let left = || pool.jobs().iter().filter(|job| !has_ended(job)).count();
    until_within(Duration::from_secs(60), "all are cancelled", || (left() == 0).then_some(()));
}
