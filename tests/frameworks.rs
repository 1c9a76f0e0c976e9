//! Programs of other frameworks on a pool of real processes: they are stopped, go on where they were, and find each other.
//!
//! What needs PyTorch is skipped aloud where Python or PyTorch is not there: `AQUIFER_PYTHON` names another interpreter
//! than `python3`.

mod pool;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use aquifer_proto::v1;
use pool::{Checks, Pool, command, devices, shell, until};
use serde_json::Value;
use v1::JobState::{Cancelled, Pending, Running};

/// The interpreter, if it has PyTorch.
fn python_with_torch() -> Option<String> {
    let python = std::env::var("AQUIFER_PYTHON").unwrap_or_else(|_| "python3".into());
    let why = match Command::new(&python).args(["-c", "import torch"]).output() {
        Ok(output) if output.status.success() => return Some(python),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            text.lines().last().unwrap_or("it failed").to_string()
        }
        Err(error) => error.to_string(),
    };
    // Past the test harness, which keeps to itself what macros print in tests that pass.
    _ = writeln!(std::io::stderr(), "skipped: {python} -c 'import torch': {why}");
    None
}

/// An example, with these arguments, and its checkpoints in a directory of the pool.
fn example(pool: &Pool, python: &str, file: &str, checkpoints: &str, arguments: &[&str]) -> v1::JobSpec {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples").join(file);
    let script = script.to_str().expect("a path that is text").to_string();
    let words = [&[python, &script][..], arguments].concat();
    let mut spec = command(&words);
    spec.checkpoint_dir = Some(pool.file(checkpoints));
    spec.env = [("PYTHONDONTWRITEBYTECODE", "1"), ("OMP_NUM_THREADS", "1")]
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .into();
    spec
}

/// A file of a worker's, once it is there.
fn file(pool: &Pool, job: u64, attempt: u32, rank: u32, name: &str) -> Option<Value> {
    let path = pool.run_dir(job, attempt, rank)?.join(name);
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

fn checkpoint_step(pool: &Pool, job: u64, attempt: u32) -> Option<u64> {
    file(pool, job, attempt, 0, "status.json")?["checkpoint_step"].as_u64()
}

/// Lets a job on the pool's one device run until it has a checkpoint, puts a better one in its place, and waits for the
/// end of both. Returns the step after which it stopped.
fn preempt(pool: &Pool, spec: v1::JobSpec) -> u64 {
    let low = pool.submit(devices(spec, 1, &[(1, "")]));
    until("a checkpoint", || checkpoint_step(pool, low, 1));
    let gate = pool.file("gate");
    let mut better = devices(shell(&format!("until [ -e {gate} ]; do sleep 0.02; done")), 1, &[(1, "")]);
    better.priority = 5;
    let better = pool.submit(better);
    pool.until_state(better, Running);
    let victim = pool.until_job(low, "waiting again", |job| job.state() == Pending);
    assert_eq!((victim.failures, victim.attempt), (0, 1), "{}", victim.last_failure);
    assert!(victim.lost_device_ms < victim.device_ms, "its checkpoints count: {victim:?}");
    let told = file(pool, low, 1, 0, "stop.json").expect("it was told");
    assert_eq!((&told["reason"], &told["id"]), (&"preempt".into(), &format!("job-{low}.1/0").into()));
    let stopped = checkpoint_step(pool, low, 1).expect("a checkpoint");
    fs::write(&gate, "").expect("a file");
    pool.until_succeeded(better);
    let ended = pool.until_succeeded(low);
    assert_eq!((ended.failures, ended.attempt), (0, 2), "{}", ended.last_failure);
    stopped
}

/// A program that knows nothing but files: each step makes of its state the next, and it ends by `stop-ack`.
const COUNTS: &str = r#"
    trap '' TERM
    cd $AQUIFER_RUN_DIR; mkdir -p $AQUIFER_CHECKPOINT_DIR
    saved=$AQUIFER_CHECKPOINT_DIR/saved; step=0; state=1
    [ -e $saved ] && read step state < $saved && echo goes on from step $step
    while [ $step -lt 300 ]; do
        state=$(( (state * 48271 + step) % 2147483647 )); step=$((step + 1))
        if [ -e stop.json ]; then stopping=1; fi
        if [ $((step % 10)) = 0 ] || [ "$stopping" ]; then
            echo $step $state > $saved.tmp; mv $saved.tmp $saved
            echo "{\"step\": $step, \"total_steps\": 300, \"checkpoint_step\": $step}" > status.tmp
            mv status.tmp status.json
        fi
        if [ "$stopping" ]; then : > stop-ack; exec sleep 1000; fi
        sleep 0.01
    done
    echo $state"#;

#[test]
fn a_program_that_keeps_to_the_contract_loses_nothing_when_it_is_stopped() {
    let mut pool = Pool::start();
    pool.agent("a", &["--devices", "cpu:0"]);
    let with = |checkpoints: &str| {
        let checkpoint_dir = Some(pool.file(checkpoints));
        // It must not be waited for.
        v1::JobSpec { checkpoint_dir, grace_ms: Some(3_600_000), ..shell(COUNTS) }
    };
    let stopped = preempt(&pool, with("stopped"));
    let alone = pool.submit(with("alone"));
    pool.until_succeeded(alone);
    let all = v1::LogsRequest { job: 1, attempt: Some(2), ..Default::default() };
    let log = pool.logs(all).into_values().collect::<String>();
    assert_eq!(log, format!("goes on from step {stopped}\n{}", pool.log(alone)));
}

#[test]
fn workers_are_told_who_wants_them_to_end() {
    let mut pool = Pool::start();
    pool.agent("a", &[]);
    let told =
        |job, attempt| until("stop.json", || file(&pool, job, attempt, 0, "stop.json"))["reason"].clone();
    let job = pool.submit(shell("exec sleep 1000"));
    pool.until_state(job, Running);
    pool.cancel(job);
    assert_eq!(told(job, 1), "cancel");
    pool.until_state(job, Cancelled);
    let job = pool.submit(v1::JobSpec { time_limit_ms: Some(200), ..shell("exec sleep 1000") });
    assert_eq!(told(job, 1), "time-limit");
    let mut gang = shell("[ $RANK = 0 ] && exec sleep 1000; sleep 0.3; exit 1");
    gang.roles[0].ranks = 2;
    let job = pool.submit(gang);
    assert_eq!(told(job, 1), "gang");
    let job = pool.submit(shell("exec sleep 1000"));
    pool.until_state(job, Running);
    pool.aquifer(&["drain", "a"]).ok();
    assert_eq!(told(job, 1), "drain");
}

#[test]
fn a_loop_of_pytorch_goes_on_to_the_same_weights() {
    let Some(python) = python_with_torch() else { return };
    let mut pool = Pool::start();
    pool.agent("a", &["--devices", "cpu:0"]);
    let run = |checkpoints: &str| {
        let arguments = ["--steps", "3000", "--checkpoint-every", "50"];
        example(&pool, &python, "preemptible.py", checkpoints, &arguments)
    };
    let stopped = preempt(&pool, run("stopped"));
    let log = pool.logs(v1::LogsRequest { job: 1, attempt: Some(2), ..Default::default() });
    assert!(log[&(2, 0)].contains(&format!("goes on from step {stopped}\n")), "{log:?}");
    let alone = pool.submit(devices(run("alone"), 1, &[(1, "")]));
    pool.until_succeeded(alone);
    let compare = "import sys, torch
one, other = (torch.load(path, weights_only=True) for path in sys.argv[1:])
assert one['step'] == other['step'] == 3000
assert len(one['model']) == 4 and one['model'].keys() == other['model'].keys()
assert all(torch.equal(one['model'][name], other['model'][name]) for name in one['model'])
assert torch.equal(one['rng'], other['rng'])
print('the same')";
    let files = ["stopped/checkpoint.pt", "alone/checkpoint.pt"].map(|name| pool.file(name));
    let compared = Command::new(&python).args(["-c", compare]).args(files).output().expect("an interpreter");
    let err = String::from_utf8_lossy(&compared.stderr);
    assert_eq!(String::from_utf8_lossy(&compared.stdout), "the same\n", "{err}");
}

#[test]
fn ranks_of_pytorch_find_each_other_without_torchrun() {
    let Some(python) = python_with_torch() else { return };
    let mut pool = Pool::start();
    pool.agent("a", &["--cpus", "1"]);
    pool.agent("b", &["--cpus", "1"]);
    let mut spec = example(&pool, &python, "ddp.py", "ddp", &["--steps", "200"]);
    spec.roles[0].ranks = 2;
    spec.roles[0].request.get_or_insert_default().cpus_milli = 1000;
    let job = pool.submit(spec);
    let ended = pool.until_succeeded(job);
    assert_ne!(ended.ranks[0].node, ended.ranks[1].node);
    let log = pool.logs(v1::LogsRequest { job, ..Default::default() });
    for rank in 0..2 {
        assert!(log[&(1, rank)].contains(&format!("rank {rank} of 2: step 200, loss ")), "{log:?}");
    }
    pool.job(job).in_state(v1::JobState::Succeeded);
}

/// The program by which agents measure devices that the worker has no kernels for, on a core.
#[test]
fn the_example_that_measures_devices_prints_what_agents_read() {
    let Some(python) = python_with_torch() else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples/measure-device");
    let measured = |more: &[&str]| -> Vec<Value> {
        let mut program = Command::new(&python);
        let words = [&["cpu", "cpu-0", "00000", "0"], more].concat();
        program.arg(&script).args(words).env("OMP_NUM_THREADS", "1");
        let output = program.output().expect("Python");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let probed = measured(&["--probe"]);
    assert_eq!(probed.len(), 1);
    let whole = measured(&[]);
    let last = whole.last().and_then(Value::as_object).expect("figures");
    assert_eq!(last.len(), 4, "{last:?}");
    for figure in ["bf16_tflops", "f32_tflops", "memory_gbs", "attention_tflops"] {
        assert!(last[figure].as_f64().is_some_and(|rate| 0.0 < rate), "{last:?}");
    }
}
