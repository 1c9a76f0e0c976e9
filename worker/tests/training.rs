//! Training as a whole: the same result on any number of ranks and across restarts, and honest ends.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use support::{TempDir, Worker, free_port, loud_model, save_model, train_args, train_group};

#[test]
fn worker_process() {
    support::become_worker_if_asked();
}

/// A training of a few small steps, but for what `more` says otherwise.
fn options<'a>(data: &'a Path, checkpoints: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut options =
        vec!["--data", data.to_str().unwrap(), "--checkpoint-dir", checkpoints.to_str().unwrap()];
    for (option, value) in [("--context", "32"), ("--steps", "8"), ("--checkpoint-every", "3")] {
        if !more.contains(&option) {
            options.extend([option, value]);
        }
    }
    options.extend(more);
    options
}

/// Several sequences at a time, with factors rounded to bf16.
const COMPACT: [&str; 4] = ["--precision", "bf16", "--micro-batch", "2"];

fn losses(steps: &[aquifer_worker::train::StepReport]) -> Vec<(u64, u32)> {
    steps.iter().map(|step| (step.step, step.loss.to_bits())).collect()
}

fn weights(checkpoints: &Path, step: u64) -> Vec<u8> {
    fs::read(checkpoints.join(format!("step-{step:06}/model.safetensors"))).unwrap()
}

#[test]
fn any_number_of_ranks_and_threads_gives_the_same_bits() {
    let dir = TempDir::new();
    let data = dir.text();
    let mut kinds = Vec::new();
    for more in [&[][..], &COMPACT] {
        let mut results = Vec::new();
        for (ranks, threads) in [(1, 1), (1, 3), (2, 1), (3, 2), (4, 1)] {
            let checkpoints = dir.join(&format!("checkpoints-{}-{ranks}-{threads}", more.len()));
            let args = train_args(&options(&data, &checkpoints, more));
            let group = train_group(&args, ranks, threads, None);
            for (steps, result) in &group {
                assert!(result.is_ok(), "{result:?}");
                assert_eq!(steps.len(), 8);
                assert_eq!(losses(steps), losses(&group[0].0));
            }
            results.push((losses(&group[0].0), weights(&checkpoints, 8)));
        }
        assert!(results.iter().all(|result| *result == results[0]), "{more:?}");
        kinds.push(results.remove(0));
    }
    // The options did something. Before the first update it is rounding; later steps of so short and steep a training
    // make any rounding grow.
    assert_ne!(kinds[0], kinds[1]);
    let [exact, rounded] = [0, 1].map(|kind: usize| f32::from_bits(kinds[kind].0[0].1));
    assert!((exact - rounded).abs() < 2e-3, "{exact} and {rounded}");
}

/// Rounds with little communication.
const ROUNDS: [&str; 10] =
    ["--inner-steps", "3", "--replicas", "4", "--batch", "8", "--steps", "8", "--warmup", "1"];

#[test]
fn rounds_of_replicas_have_the_same_bits_on_any_number_of_ranks() {
    let dir = TempDir::new();
    let data = dir.text();
    let mut results = Vec::new();
    for (ranks, threads) in [(1, 1), (1, 3), (2, 1), (3, 2), (4, 1)] {
        let checkpoints = dir.join(&format!("checkpoints-{ranks}-{threads}"));
        let args = train_args(&options(&data, &checkpoints, &ROUNDS));
        for (steps, result) in train_group(&args, ranks, threads, None) {
            assert!(result.is_ok(), "{result:?}");
            results.push((losses(&steps), weights(&checkpoints, 8)));
        }
    }
    assert!(results.iter().all(|result| *result == results[0]));
    let loss = |at: usize| f32::from_bits(results[0].0[at].1);
    assert!(loss(7) < loss(0) - 1.0, "from {} to {}", loss(0), loss(7));
}

#[test]
fn rounds_of_one_replica_go_about_where_steps_go() {
    let dir = TempDir::new();
    let data = dir.text();
    let last = |name: &str, more: &[&str]| {
        let checkpoints = dir.join(name);
        let args = train_args(&options(&data, &checkpoints, more));
        let (steps, result) = train_group(&args, 1, 2, None).remove(0);
        result.unwrap();
        steps.last().unwrap().loss
    };
    let steps = last("steps", &["--steps", "48", "--warmup", "6"]);
    let rounds = last("rounds", &["--steps", "12", "--warmup", "2", "--inner-steps", "4", "--replicas", "1"]);
    assert!((rounds / steps - 1.0).abs() < 0.05, "{rounds} in rounds, {steps} in steps");
}

#[test]
fn the_loss_goes_down_on_a_small_text() {
    let dir = TempDir::new();
    let data = dir.text();
    let args =
        train_args(&["--data", data.to_str().unwrap(), "--context", "64", "--steps", "60", "--batch", "4"]);
    let (steps, result) = train_group(&args, 1, 2, None).remove(0);
    result.unwrap();
    let (first, last) = (steps[0].loss, steps[59].loss);
    assert!(5.0 < first && last < 1.5, "from {first} to {last}");
}

#[test]
fn a_stopped_training_continues_to_the_bits_of_an_uninterrupted_one() {
    continues_to_the_same_bits(&[]);
    continues_to_the_same_bits(&COMPACT);
    continues_to_the_same_bits(&ROUNDS);
}

fn continues_to_the_same_bits(more: &[&str]) {
    let dir = TempDir::new();
    let data = dir.text();
    let (whole, parts) = (dir.join("whole"), dir.join("parts"));
    let whole_args = train_args(&options(&data, &whole, more));
    let uninterrupted = train_group(&whole_args, 1, 1, None).remove(0).0;

    let args = train_args(&options(&data, &parts, more));
    let mut seen = Vec::new();
    // A signal during step 5 stops all ranks after it, although only the last one got it.
    for (steps, result) in train_group(&args, 2, 1, Some(4)) {
        let error = result.unwrap_err();
        assert_eq!(error.to_string(), "stopped at step 5 of 8, checkpoint written");
        assert_eq!(error.exit_code(), 143);
        seen = steps;
    }
    // Another number of ranks takes over.
    let (steps, result) = train_group(&args, 1, 1, None).remove(0);
    result.unwrap();
    seen.extend(steps);
    assert_eq!(losses(&seen), losses(&uninterrupted));
    assert_eq!(weights(&parts, 8), weights(&whole, 8));
    assert_eq!(
        fs::read(parts.join("step-000008/optimizer.safetensors")).unwrap(),
        fs::read(whole.join("step-000008/optimizer.safetensors")).unwrap()
    );
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_leads_to_the_same_end() {
    let dir = TempDir::new();
    let (data, checkpoints) = (dir.text(), dir.join("checkpoints"));
    let options = options(&data, &checkpoints, &[]);
    let line: Vec<_> = ["train"].into_iter().chain(options).collect();
    let first = Worker::spawn(&line, &[]).end();
    assert_eq!(first.code, Some(0), "{first:?}");
    let expected = weights(&checkpoints, 8);

    let damaged = checkpoints.join("step-000008/optimizer.safetensors");
    fs::File::options().write(true).open(&damaged).unwrap().set_len(1000).unwrap();
    let second = Worker::spawn(&line, &[]).end();
    assert_eq!(second.code, Some(0), "{second:?}");
    assert!(second.stdout.contains("skipped a damaged checkpoint") && second.stdout.contains("step-000008"));
    assert!(second.stdout.contains("from step 6"), "{second:?}");
    assert_eq!(weights(&checkpoints, 8), expected);

    let third = Worker::spawn(&line, &[]).end();
    assert_eq!(third.code, Some(0), "{third:?}");
    assert!(third.stdout.contains("all 8 steps are done already"), "{third:?}");
}

#[test]
fn a_training_with_other_settings_is_refused_with_both_values() {
    let dir = TempDir::new();
    let (data, checkpoints) = (dir.text(), dir.join("checkpoints"));
    train_group(&train_args(&options(&data, &checkpoints, &[])), 1, 1, None).remove(0).1.unwrap();
    let args = train_args(&options(&data, &checkpoints, &["--batch", "4"]));
    let error = train_group(&args, 1, 1, None).remove(0).1.unwrap_err();
    let expected = "step-000008 was written with --batch 8, this training has 4";
    assert!(error.to_string().ends_with(expected) && error.exit_code() == 1, "{error}");
    let args = train_args(&options(&data, &checkpoints, &["--precision", "bf16"]));
    let error = train_group(&args, 1, 1, None).remove(0).1.unwrap_err().to_string();
    assert!(error.ends_with("was written with --precision f32, this training has bf16"), "{error}");
}

#[test]
fn a_training_starts_from_the_weights_of_a_directory_on_all_ranks() {
    let dir = TempDir::new();
    let (data, model) = (dir.text(), dir.join("model"));
    save_model(&loud_model(), &model);
    let from = |model: &str, ranks| {
        let line = ["--data", data.to_str().unwrap(), "--model", model, "--context", "32", "--steps", "2"];
        let mut group = train_group(&train_args(&line), ranks, 1, None);
        group.pop().unwrap().0[1].loss.to_bits()
    };
    let path = model.to_str().unwrap();
    assert_eq!(from(path, 1), from(path, 2));
    assert_ne!(from(path, 1), from("tiny", 1));
}

/// Environments of a group of two processes, each with a run directory.
fn environments(dir: &TempDir) -> Vec<Vec<(&'static str, String)>> {
    let port = free_port();
    let rank = |rank: u32| {
        let run_dir = dir.join(&format!("rank-{rank}"));
        fs::create_dir_all(&run_dir).unwrap();
        vec![
            ("RANK", rank.to_string()),
            ("WORLD_SIZE", "2".into()),
            ("MASTER_PORT", port.to_string()),
            ("AQUIFER_RUN_DIR", run_dir.to_str().unwrap().into()),
        ]
    };
    vec![rank(0), rank(1)]
}

fn spawn_pair(dir: &TempDir, line: &[&str]) -> [Worker; 2] {
    let spawn = |environment: Vec<(&str, String)>| {
        let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Worker::spawn(line, &environment)
    };
    let mut workers = environments(dir).into_iter().map(spawn);
    [workers.next().unwrap(), workers.next().unwrap()]
}

fn status(dir: &TempDir, rank: u32) -> serde_json::Value {
    serde_json::from_slice(&fs::read(dir.join(&format!("rank-{rank}/status.json"))).unwrap()).unwrap()
}

#[test]
fn a_signal_to_one_process_ends_the_group_at_one_step_with_a_checkpoint() {
    let dir = TempDir::new();
    let (data, checkpoints) = (dir.text(), dir.join("checkpoints"));
    let options = options(&data, &checkpoints, &["--steps", "1000000", "--checkpoint-every", "1000000"]);
    let line: Vec<_> = ["train"].into_iter().chain(options).collect();
    let [mut zero, one] = spawn_pair(&dir, &line);
    zero.wait_for("step 1/");
    one.signal("TERM");
    let (zero, one) = (zero.end(), one.end());
    assert_eq!((zero.code, one.code), (Some(143), Some(143)), "{zero:?} {one:?}");
    let (status_zero, status_one) = (status(&dir, 0), status(&dir, 1));
    assert_eq!(status_zero["step"], status_one["step"]);
    for status in [&status_zero, &status_one] {
        assert_eq!(status["checkpoint_step"], status["step"]);
        assert_eq!(status["state"], "stopping");
        assert_eq!(status["total_steps"], 1_000_000);
    }
    let step = status_zero["step"].as_u64().unwrap();
    assert!(1 <= step && checkpoints.join(format!("step-{step:06}/train.json")).exists());
    assert!(
        zero.stderr.contains(&format!("stopped at step {step} of 1000000, checkpoint written")),
        "{zero:?}"
    );
}

#[test]
fn a_killed_process_ends_the_others_at_once_with_its_rank() {
    for victim in [0, 1] {
        let dir = TempDir::new();
        let data = dir.text();
        let line = ["train", "--data", data.to_str().unwrap(), "--steps", "1000000", "--context", "32"];
        let [mut zero, one] = spawn_pair(&dir, &line);
        zero.wait_for("step 1/");
        let killed = Instant::now();
        let other = if victim == 0 {
            zero.signal("KILL");
            one.end()
        } else {
            one.signal("KILL");
            zero.end()
        };
        assert_eq!(other.code, Some(85), "{other:?}");
        assert_eq!(other.stderr.trim(), format!("rank {victim} left: connection closed"));
        assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    }
}

/// A member of another version: lets nobody in, in the words that earlier versions take for the end.
fn refuse_all(listener: std::net::TcpListener) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut start = [0; 5];
        stream.read_exact(&mut start).unwrap();
        let mut hello = vec![0; u32::from_le_bytes(start[..4].try_into().unwrap()) as usize];
        stream.read_exact(&mut hello).unwrap();
        let hello: serde_json::Value = serde_json::from_slice(&hello).unwrap();
        let reason = format!(
            "it speaks {}, this group aquifer-elastic-0",
            hello["Hello"][0]["protocol"].as_str().unwrap()
        );
        let answer = serde_json::json!({"Refuse": {"reason": reason, "for_now": false}}).to_string();
        stream.write_all(&(answer.len() as u32).to_le_bytes()).unwrap();
        stream.write_all(&[0]).and_then(|()| stream.write_all(answer.as_bytes())).unwrap();
    }
}

#[test]
fn a_rank_of_another_version_waits_says_why_and_trains_when_the_others_have_gone() {
    let dir = TempDir::new();
    let (data, checkpoints) = (dir.text(), dir.join("checkpoints"));
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (others, own) = (other.local_addr().unwrap().port(), free_port());
    let environment = environments(&dir).remove(1);
    let write = |epoch: u32, members: &[(u32, u16)]| {
        let member = |(rank, port): &(u32, u16)| serde_json::json!({"rank": rank, "address": format!("127.0.0.1:{port}")});
        let members: Vec<_> = members.iter().map(member).collect();
        let path = dir.join("rank-1/members.json");
        fs::write(
            path.with_extension("tmp"),
            serde_json::json!({"epoch": epoch, "members": members}).to_string(),
        )
        .unwrap();
        fs::rename(path.with_extension("tmp"), path).unwrap();
    };
    write(1, &[(0, others), (1, own)]);
    std::thread::spawn(move || refuse_all(other));
    let line: Vec<_> = ["train"].into_iter().chain(options(&data, &checkpoints, &[])).collect();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut worker = Worker::spawn(&line, &environment);
    let sentence = "rank 1 waits until the others have ended: rank 0 refused it, it speaks aquifer-elastic-";
    worker.wait_for(sentence);
    assert!(status(&dir, 1)["message"].as_str().unwrap().starts_with(sentence));
    write(2, &[(1, own)]);
    let ended = worker.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(status(&dir, 1)["step"], 8);
}

#[test]
fn a_full_disk_ends_the_training_with_a_sentence_and_leaves_the_last_checkpoint_whole() {
    let dir = TempDir::new();
    let (data, checkpoints) = (dir.text(), dir.join("checkpoints"));
    let line: Vec<_> = ["train"].into_iter().chain(options(&data, &checkpoints, &["--steps", "3"])).collect();
    assert_eq!(Worker::spawn(&line, &[]).end().code, Some(0));

    // A limit of 4 MB a file: the weights fit, the moments do not.
    let limited = ["sh", "-c", "trap '' XFSZ; ulimit -f 8000; exec \"$@\"", "sh"];
    let line: Vec<_> = ["train"].into_iter().chain(options(&data, &checkpoints, &[])).collect();
    let ended = Worker::spawn_through(&limited, &line, &[]).end();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let path = checkpoints.join("step-000006");
    let sentence = format!("checkpoint {} was not written: File too large", path.display());
    assert!(ended.stderr.starts_with(&sentence), "{ended:?}");
    assert_eq!(fs::read_to_string(checkpoints.join("latest")).unwrap(), "step-000003\n");
    let mut names: Vec<_> =
        fs::read_dir(&checkpoints).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["latest", "step-000003", "steps.jsonl"]);

    let ended = Worker::spawn(&line, &[]).end();
    assert!(ended.code == Some(0) && ended.stdout.contains("from step 3"), "{ended:?}");
}

#[test]
fn what_cannot_be_is_refused_in_one_sentence_with_the_exit_code_of_its_kind() {
    let dir = TempDir::new();
    let data = dir.text();
    let data = data.to_str().unwrap();
    let port = free_port().to_string();
    for (options, environment, code, sentence) in [
        (
            vec!["--data", data, "--batch", "0"],
            vec![],
            2,
            "--batch is 0; it is 1, one sequence for each rank, to",
        ),
        (
            vec!["--data", data, "--context", "9999"],
            vec![],
            2,
            "--context is 9999; it is at most the model's window",
        ),
        (
            vec!["--data", data, "--model", "huge"],
            vec![],
            1,
            "--model is \"huge\"; it is tiny, small, medium, or",
        ),
        (vec!["--data", "/nowhere"], vec![], 1, "--data /nowhere: No such file"),
        (vec!["--data", data], vec![("WORLD_SIZE", "x")], 1, "WORLD_SIZE is \"x\"; it is a number from 1 to"),
        (
            vec!["--data", data, "--join-timeout", "1"],
            vec![("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_PORT", port.as_str())],
            85,
            "rank 1 waited 1 s for rank 0 at 127.0.0.1:",
        ),
    ] {
        let line: Vec<_> = ["train"].into_iter().chain(options).collect();
        let ended = Worker::spawn(&line, &environment).end();
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(ended.stderr.starts_with(sentence) && ended.stderr.lines().count() == 1, "{ended:?}");
    }
}
