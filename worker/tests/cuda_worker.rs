//! The worker's commands on a card: the same results as on processors, and one sentence where a card cannot be had.

#[path = "support/fake_cuda.rs"]
mod fake_cuda;
mod support;

use aquifer_worker::train::{CURVE, Point};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Ended, TempDir, Worker, free_port, loud_model, save_model};

#[test]
fn worker_process() {
    support::become_worker_if_asked();
}

/// The environment in which the fake card is found.
fn environment<'a>(libraries: &'a Path, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let own = [("LD_LIBRARY_PATH", libraries.to_str().unwrap()), ("AQUIFER_KERNEL_CACHE", "off")];
    own.iter().chain(more).copied().collect()
}

/// A short training; where its checkpoints are, and how it ended.
fn train(
    dir: &TempDir,
    name: &str,
    libraries: &Path,
    options: &[&str],
    more: &[(&str, &str)],
) -> (PathBuf, Ended) {
    let (data, checkpoints) = (dir.text(), dir.join(name));
    let mut line = vec!["train", "--data", data.to_str().unwrap()];
    line.extend(["--checkpoint-dir", checkpoints.to_str().unwrap(), "--context", "24", "--batch", "4"]);
    line.extend(["--warmup", "1"]);
    line.extend(options);
    let ended = Worker::spawn(&line, &environment(libraries, more)).end();
    (checkpoints, ended)
}

fn losses(checkpoints: &Path) -> Vec<f32> {
    let text = fs::read_to_string(checkpoints.join(CURVE)).unwrap();
    text.lines().map(|line| serde_json::from_str::<Point>(line).unwrap().loss).collect()
}

fn model(checkpoints: &Path, step: u64) -> Vec<u8> {
    fs::read(checkpoints.join(format!("step-{step:06}/model.safetensors"))).unwrap()
}

/// Parameters and moments.
fn state(checkpoints: &Path, step: u64) -> [Vec<u8>; 2] {
    let moments = checkpoints.join(format!("step-{step:06}/optimizer.safetensors"));
    [model(checkpoints, step), fs::read(moments).unwrap()]
}

#[test]
fn a_training_on_a_card_has_the_processors_losses_and_the_same_bits_every_time() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let dir = TempDir::new();
    // At the default rate a step of this training throws the loss up by two, and what is rounded otherwise decides how
    // far.
    let calm = ["--learning-rate", "1e-3"];
    for (precision, most) in [("f32", 1e-4), ("bf16", 2e-3)] {
        let run = |name: &str, device: &str, steps: &str| {
            let name = format!("{name}-{precision}");
            let options =
                ["--device", device, "--precision", precision, "--micro-batch", "2", "--steps", steps];
            let (checkpoints, ended) = train(&dir, &name, &libraries, &[&options[..], &calm].concat(), &[]);
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            let computes =
                if device == "cpu" { "on 1 thread of the processor" } else { "on card 0, Fake card" };
            assert!(ended.stdout.contains(computes), "{}", ended.stdout);
            checkpoints
        };
        let (card, processor) = (run("card", "cuda", "5"), run("processor", "cpu", "5"));
        let (left, right) = (losses(&card), losses(&processor));
        assert_eq!(left.len(), 5);
        for (step, (left, right)) in left.iter().zip(&right).enumerate() {
            assert!((left - right).abs() < most * right, "{precision}, step {step}: {left}, not {right}");
        }
        let again = run("again", "cuda", "5");
        assert!(model(&again, 5) == model(&card, 5), "{precision}: two trainings differ");
    }
}

#[test]
fn a_training_that_was_ended_on_a_card_goes_on_with_the_same_bits() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let dir = TempDir::new();
    let options = ["--device", "cuda", "--steps", "6", "--checkpoint-every", "2", "--keep", "9"];
    let (whole, ended) = train(&dir, "whole", &libraries, &options, &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    // As if it had been killed behind its second checkpoint.
    let rest = dir.join("rest");
    fs::create_dir_all(&rest).unwrap();
    let copied =
        Command::new("cp").args(["-r".as_ref(), whole.join("step-000004").as_os_str()]).arg(&rest).status();
    assert!(copied.unwrap().success());
    let (rest, ended) = train(&dir, "rest", &libraries, &options, &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("from step 4"), "{}", ended.stdout);
    assert!(model(&rest, 6) == model(&whole, 6));
}

#[test]
fn a_training_has_the_same_bits_whether_its_state_lies_on_the_card_or_on_the_host() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let dir = TempDir::new();
    let rounds = ["--inner-steps", "2", "--replicas", "2"];
    for (name, more) in [("f32", &[][..]), ("bf16", &["--precision", "bf16"]), ("rounds", &rounds)] {
        let run = |place: &str, offload: &[&str]| {
            let options = [&["--device", "cuda", "--steps", "3"], more, offload].concat();
            let (checkpoints, ended) = train(&dir, &format!("{name}-{place}"), &libraries, &options, &[]);
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            state(&checkpoints, 3)
        };
        assert!(run("card", &[]) == run("host", &["--offload"]), "{name}");
    }
}

/// What a start compiles, of a training whose kernels are kept.
fn compiled(dir: &TempDir, name: &str, libraries: &Path) -> Vec<String> {
    let (log, cache) = (dir.join(&format!("compiled-{name}")), dir.join("kernels"));
    let more = [("FAKE_CUDA_COMPILED", &log), ("AQUIFER_KERNEL_CACHE", &cache)];
    let more = more.map(|(name, path)| (name, path.to_str().unwrap()));
    let (_, ended) = train(dir, name, libraries, &["--device", "cuda", "--steps", "1"], &more);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let mut files: Vec<String> =
        fs::read_to_string(&log).unwrap_or_default().lines().map(String::from).collect();
    files.sort();
    files
}

#[test]
fn a_second_start_compiles_nothing_and_what_is_of_no_use_is_compiled_anew() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let dir = TempDir::new();
    // With modules of its own, which can be lost.
    let own = dir.join("libraries");
    assert!(Command::new("cp").arg("-r").args([&libraries, &own]).status().unwrap().success());
    let all = compiled(&dir, "first", &own);
    assert!(all.len() == 8 && all.contains(&"update.cu".to_string()), "{all:?}");
    assert_eq!(compiled(&dir, "second", &own), [""; 0]);
    let kept: Vec<PathBuf> =
        fs::read_dir(dir.join("kernels")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.len(), 8);
    // One is cut off, one is another one's, and one is no module for the driver any more.
    let content = fs::read(&kept[0]).unwrap();
    fs::write(&kept[0], &content[..content.len() - 9]).unwrap();
    fs::copy(&kept[2], &kept[1]).unwrap();
    let content = String::from_utf8_lossy(&fs::read(&kept[3]).unwrap()).into_owned();
    let module = content.split("// fake module ").nth(1).unwrap().lines().next().unwrap().to_string();
    assert!(Path::new(&module).starts_with(&own));
    fs::remove_file(module).unwrap();
    assert_eq!(compiled(&dir, "third", &own).len(), 3);
    assert_eq!(compiled(&dir, "fourth", &own), [""; 0]);
}

/// Parameters of the model of these trainings, and bytes of each.
const PARAMETERS: usize = 821_376;
const WIDE: usize = 4;

/// Bytes that a step moves up to a card and down from it, as each rank of a training by so many does, with state of the card's or not.
fn link(libraries: &Path, ranks: usize, options: &[&str]) -> Vec<[usize; 2]> {
    let dir = TempDir::new();
    let moved = |rank: usize, steps: usize| -> [usize; 2] {
        let text = fs::read_to_string(dir.join(&format!("link-{rank}-{steps}"))).unwrap();
        let numbers: Vec<usize> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
        numbers.try_into().unwrap()
    };
    for steps in [2, 6] {
        let (data, checkpoints) = (dir.text(), dir.join(&format!("checkpoints-{steps}")));
        let (port, steps_text, ranks_text) = (free_port().to_string(), steps.to_string(), ranks.to_string());
        let mut line = vec!["train", "--data", data.to_str().unwrap(), "--device", "cuda", "--context", "8"];
        line.extend([
            "--checkpoint-dir",
            checkpoints.to_str().unwrap(),
            "--warmup",
            "1",
            "--steps",
            &steps_text,
        ]);
        line.extend(options);
        let spawn = |rank: usize| {
            let (rank_text, log) = (rank.to_string(), dir.join(&format!("link-{rank}-{steps}")));
            let mut more = vec![("RANK", rank_text.as_str()), ("WORLD_SIZE", &ranks_text)];
            more.extend([("MASTER_PORT", port.as_str()), ("FAKE_CUDA_LINK", log.to_str().unwrap())]);
            Worker::spawn(&line, &environment(libraries, &more))
        };
        for ended in (0..ranks).map(spawn).collect::<Vec<_>>().into_iter().map(Worker::end) {
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        }
    }
    // The start, the checkpoint at the end and all else that is not of a step is the same in both.
    let of_a_step = |rank| {
        let (few, many) = (moved(rank, 2), moved(rank, 6));
        [0, 1].map(|way| (many[way] - few[way]) / 4)
    };
    let steps: Vec<[usize; 2]> = (0..ranks).map(of_a_step).collect();
    println!(
        "{options:?}: {steps:?} bytes up and down in a step, of {} of all parameters",
        WIDE * PARAMETERS
    );
    steps
}

/// Vectors of all parameters, and what is left over in bytes.
fn vectors(bytes: usize) -> (usize, usize) {
    (bytes / (WIDE * PARAMETERS), bytes % (WIDE * PARAMETERS))
}

#[test]
fn a_step_of_one_member_moves_next_to_nothing_over_the_link_of_its_card() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    for (batch, shards) in [("2", 2), ("8", 8)] {
        let [[up, down]] = link(&libraries, 1, &["--batch", batch])[..] else { unreachable!() };
        // Tokens, where their rows are, losses, and the lengths of gradients.
        assert!(up < 400 * shards && down < 100 * (shards + 1), "{up} {down}");
        let [[up, down]] = link(&libraries, 1, &["--batch", batch, "--offload"])[..] else { unreachable!() };
        assert_eq!((vectors(up).0, vectors(down).0), (1, shards), "with its state on the host");
    }
}

/// On a busy machine a member may be late: then another one computes its shard as well, and it moves one sum more or less.
#[test]
fn a_step_of_several_members_moves_a_sum_of_each_down_and_their_sum_up() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    for [up, down] in link(&libraries, 2, &["--batch", "2"]) {
        assert!(vectors(up).0 <= 1 && vectors(down).0 <= 2, "{up} up, {down} down");
    }
}

/// A training by one member with a card; if there is to be a victim, a second one joins amid the steps, and then that one is killed.
fn train_with_losses(dir: &TempDir, name: &str, libraries: &Path, victim: Option<usize>) -> PathBuf {
    let (data, checkpoints) = (dir.text(), dir.join(name));
    let ports = [free_port(), free_port()];
    let run_dir = |rank: usize| dir.join(&format!("{name}-rank-{rank}"));
    let tell = |epoch: u64, ranks: &[usize]| {
        let member = |rank: &usize| json!({"rank": rank, "address": format!("127.0.0.1:{}", ports[*rank])});
        let members: Vec<Value> = ranks.iter().map(member).collect();
        for rank in [0, 1] {
            fs::create_dir_all(run_dir(rank)).unwrap();
            let path = run_dir(rank).join("members.json");
            fs::write(path.with_extension("new"), json!({"epoch": epoch, "members": members}).to_string())
                .unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        }
    };
    let mut line = vec!["train", "--data", data.to_str().unwrap(), "--device", "cuda", "--context", "8"];
    line.extend(["--checkpoint-dir", checkpoints.to_str().unwrap(), "--checkpoint-every", "2"]);
    line.extend(["--warmup", "1", "--batch", "4", "--steps", "12"]);
    let spawn = |rank: &'static str| {
        let run_dir = run_dir(rank.parse().unwrap());
        let more = [("RANK", rank), ("WORLD_SIZE", "1"), ("AQUIFER_RUN_DIR", run_dir.to_str().unwrap())];
        Worker::spawn(&line, &environment(libraries, &more))
    };
    tell(1, &[0]);
    let mut zero = spawn("0");
    let mut last = Vec::new();
    if let Some(victim) = victim {
        zero.wait_for("checkpoint at step 2");
        tell(2, &[0, 1]);
        last.push(spawn("1"));
        // It follows, and computes.
        let status = || fs::read_to_string(run_dir(1).join("status.json")).unwrap_or_default();
        let start = Instant::now();
        while !status().contains("\"step\"") {
            assert!(start.elapsed() < Duration::from_secs(60), "{}", status());
            std::thread::sleep(Duration::from_millis(20));
        }
        if victim == 0 {
            std::mem::swap(&mut zero, &mut last[0]);
        }
        // Amid a step.
        std::thread::sleep(Duration::from_millis(300));
        last[0].signal("KILL");
    }
    let ended = zero.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    checkpoints
}

#[test]
fn cards_that_join_and_die_amid_a_training_leave_the_bits_of_one_alone() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let dir = TempDir::new();
    let alone = train_with_losses(&dir, "alone", &libraries, None);
    for (name, victim) in [("leader-dies", 0), ("follower-dies", 1)] {
        let checkpoints = train_with_losses(&dir, name, &libraries, Some(victim));
        assert!(state(&checkpoints, 12) == state(&alone, 12), "{name}");
    }
}

/// A training by two ranks, on these devices; where its checkpoints are, and what the ranks said.
fn train_two(dir: &TempDir, name: &str, libraries: &Path, devices: [&str; 2]) -> (PathBuf, [Ended; 2]) {
    let (data, checkpoints, port) = (dir.text(), dir.join(name), free_port().to_string());
    let rank = |(rank, device): (&str, &str)| {
        let options =
            ["train", "--data", data.to_str().unwrap(), "--checkpoint-dir", checkpoints.to_str().unwrap()];
        let more = ["--context", "24", "--batch", "4", "--warmup", "1", "--steps", "4", "--device", device];
        let mut group = vec![("RANK", rank), ("WORLD_SIZE", "2"), ("MASTER_PORT", port.as_str())];
        // By hand, all ranks of a machine see all of its cards.
        group.extend([("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", "2"), ("FAKE_CUDA_DEVICES", "2")]);
        Worker::spawn(&[&options[..], &more].concat(), &environment(libraries, &group))
    };
    let workers = [("0", devices[0]), ("1", devices[1])].map(rank);
    let ended = workers.map(Worker::end);
    for ended in &ended {
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    (checkpoints, ended)
}

#[test]
fn two_cards_give_the_bits_of_one_and_a_card_beside_a_processor_is_said_to_differ() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let dir = TempDir::new();
    let options = ["--device", "cuda", "--steps", "4"];
    let (one, ended) = train(&dir, "one", &libraries, &options, &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let (two, ended) = train_two(&dir, "two", &libraries, ["cuda", "auto"]);
    assert!(model(&two, 4) == model(&one, 4));
    for (ended, card) in ended.iter().zip(["card 0", "card 1"]) {
        assert!(ended.stdout.contains(&format!("computing on {card}, Fake card")), "{}", ended.stdout);
    }
    let (_, ended) = train_two(&dir, "mixed", &libraries, ["cuda", "cpu"]);
    let said = ended
        .iter()
        .any(|ended| ended.stdout.contains("results now depend in their last bits on who computes"));
    assert!(said, "{}{}", ended[0].stdout, ended[1].stdout);
}

/// A server's answer to a prompt, with the likeliest tokens, and what it said on stderr.
fn answer(dir: &TempDir, libraries: &Path, options: &[&str], more: &[(&str, &str)]) -> (Value, String) {
    let model = dir.join("loud");
    let options = [&["serve", "--model", model.to_str().unwrap(), "--port", "0"], options].concat();
    let mut worker = Worker::spawn(&options, &environment(libraries, more));
    let line = worker.wait_for("serving loud on http://");
    let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap();
    let body = json!({"model": "loud", "prompt": "Water ", "max_tokens": 12, "temperature": 0}).to_string();
    let mut stream = TcpStream::connect(address).unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\n";
    write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    worker.signal("TERM");
    let ended = worker.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let body = text.split("\r\n\r\n").nth(1).unwrap_or_else(|| panic!("{text}"));
    let body: Value = serde_json::from_str(body).unwrap();
    let choice = &body["choices"][0];
    (json!([choice["text"], choice["finish_reason"], body["usage"]]), ended.stderr)
}

#[test]
fn a_card_says_the_same_tokens_as_a_processor() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let dir = TempDir::new();
    save_model(&loud_model(), &dir.join("loud"));
    let expected = answer(&dir, &libraries, &["--device", "cpu"], &[]).0;
    assert!(5 < expected[0].as_str().unwrap().len(), "{expected}");
    assert_eq!(answer(&dir, &libraries, &["--device", "cuda"], &[]), (expected, String::new()));
}

/// Which tokens they are depends on the last bits of the weights; that a card serves them, and the same every time, does not.
#[test]
fn a_card_serves_weights_of_8_bits() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let dir = TempDir::new();
    save_model(&loud_model(), &dir.join("loud"));
    let options = ["--device", "cuda", "--precision", "int8"];
    let [first, again] = [0; 2].map(|_| answer(&dir, &libraries, &options, &[]));
    assert_eq!((&first, first.0[2]["completion_tokens"].as_u64()), (&again, Some(12)));
    assert!(5 < first.0[0].as_str().unwrap().len(), "{first:?}");
}

#[test]
fn a_driver_without_graphs_is_said_once_and_serves_the_same() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let dir = TempDir::new();
    save_model(&loud_model(), &dir.join("loud"));
    let expected = answer(&dir, &libraries, &["--device", "cuda"], &[]).0;
    // One whose calls say so, and one that lacks a function.
    let old = dir.join("libraries");
    assert!(Command::new("cp").arg("-r").args([&libraries, &old]).status().unwrap().success());
    let mut driver = fs::read(old.join("libcuda.so")).unwrap();
    let name = b"\0cuGraphLaunch\0";
    let at = driver.windows(name.len()).position(|window| window == name).unwrap();
    driver[at + 1] = b'C';
    fs::write(old.join("libcuda.so"), driver).unwrap();
    for (libraries, more, call) in [
        (&libraries, &[("FAKE_CUDA_GRAPHS", "none")][..], "cuStreamBeginCapture"),
        (&old, &[], "cuGraphLaunch"),
    ] {
        let sentence = format!(
            "card 0: its driver has no graphs ({call}), so the kernels of a step are launched one by one\n"
        );
        assert_eq!(answer(&dir, libraries, &["--device", "cuda"], more), (expected.clone(), sentence));
    }
}

/// A card whose memory is gone while it serves: the cache takes three quarters of what the weights leave, and passes need
/// more than the rest.
#[test]
fn a_card_that_fails_while_it_serves_ends_the_server_with_the_reason() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let dir = TempDir::new();
    let model = dir.join("loud");
    save_model(&loud_model(), &model);
    let options = ["serve", "--model", model.to_str().unwrap(), "--port", "0", "--device", "cuda"];
    let memory = (40 << 20).to_string();
    let mut worker = Worker::spawn(&options, &environment(&libraries, &[("FAKE_CUDA_MEMORY", &memory)]));
    let line = worker.wait_for("serving loud on http://");
    let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap();
    let body = json!({"model": "loud", "prompt": "Water ", "max_tokens": 12}).to_string();
    let mut stream = TcpStream::connect(address).unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\n";
    write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
    // Whatever the client is told, it is not an answer.
    let mut text = String::new();
    _ = stream.read_to_string(&mut text);
    assert!(!text.starts_with("HTTP/1.1 200"), "{text}");
    let ended = worker.end_within(Duration::from_secs(30));
    assert_eq!(ended.code, Some(87), "{}", ended.stderr);
    assert!(ended.stderr.contains("card 0, Fake card, has no room for "), "{}", ended.stderr);
}

/// What a training on a card that cannot be had says, and its exit code.
fn refusal(
    dir: &TempDir,
    libraries: &Path,
    options: &[&str],
    more: &[(&str, &str)],
) -> (Option<i32>, String) {
    let (_, ended) = train(dir, "refused", libraries, &[&["--steps", "1"], options].concat(), more);
    (ended.code, ended.stderr.lines().last().unwrap_or_default().to_string())
}

#[test]
fn a_card_that_cannot_be_had_is_refused_with_a_reason_or_done_without() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let (dir, card) = (TempDir::new(), ["--device", "cuda"]);
    let say = |libraries: &Path, options: &[&str], more: &[(&str, &str)]| {
        let (code, text) = refusal(&dir, libraries, options, more);
        assert_eq!(code, Some(2), "{text}");
        text
    };
    let old = say(&libraries, &card, &[("FAKE_CUDA_CAPABILITY", "75")]);
    let expected =
        "--device is cuda; card 0, Fake card, has compute capability 7.5; it must have 8.0 at least";
    assert!(old.starts_with(expected), "{old}");
    let expected = "--device is cuda; no NVIDIA card is visible";
    assert_eq!(say(&libraries, &card, &[("FAKE_CUDA_DEVICES", "0")]), expected);
    let expected = "--device is cuda; the driver is for CUDA 11.4; it must be for 12 at least";
    assert_eq!(say(&libraries, &card, &[("FAKE_CUDA_DRIVER", "11040")]), expected);
    let expected = "--device is cuda:3; there is no card 3: 2 visible, counted from 0";
    assert_eq!(say(&libraries, &["--device", "cuda:3"], &[("FAKE_CUDA_DEVICES", "2")]), expected);

    // Libraries that are missing, one after the other, and one that lacks a function.
    let part = dir.join("libraries");
    fs::create_dir_all(&part).unwrap();
    if !Path::new("/usr/lib/x86_64-linux-gnu/libcuda.so.1").exists() {
        assert_eq!(say(&part, &card, &[]), "--device is cuda; no CUDA driver: libcuda.so.1 was not found");
        // Why there is none is told where one is plugged in, and nowhere else.
        for (name, vendor, said) in [("auto", "0x10de", true), ("without", "0x8086", false)] {
            let place = dir.join(name).join("bus/pci/devices/0000:01:00.0");
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("vendor"), vendor).unwrap();
            fs::write(place.join("class"), "0x030200").unwrap();
            let sysfs = dir.join(name);
            let more = [("AQUIFER_SYSFS", sysfs.to_str().unwrap())];
            let (_, ended) = train(&dir, &format!("{name}-run"), &part, &["--steps", "1"], &more);
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            let why = "; no CUDA driver: libcuda.so.1 was not found\n";
            assert_eq!(ended.stdout.contains(why), said, "{}", ended.stdout);
        }
    }
    let link = |name: &str| std::os::unix::fs::symlink(libraries.join(name), part.join(name)).unwrap();
    link("libcuda.so");
    let expected = "--device is cuda; no NVRTC, CUDA's compiler at run time: libnvrtc.so was not found";
    assert_eq!(say(&part, &card, &[]), expected);
    link("libnvrtc.so");
    assert_eq!(say(&part, &card, &[]), "--device is cuda; no cuBLASLt: libcublasLt.so was not found");
    let (source, library) = (dir.join("lt.cpp"), part.join("libcublasLt.so"));
    fs::write(&source, "extern \"C\" int cublasLtCreate(void*) { return 0; }\n").unwrap();
    let compiled = Command::new("c++").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(compiled.unwrap().success());
    let expected = "--device is cuda; libcublasLt.so has no cublasLtGetVersion: this cuBLASLt is too old";
    assert_eq!(say(&part, &card, &[]), expected);
}

#[test]
fn a_card_without_enough_memory_ends_a_training_with_how_much_was_asked_for_and_was_free() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let dir = TempDir::new();
    // The library of products takes 32 MiB of it, the parameters three: what is missing is found amid a pass.
    let memory = (38 << 20).to_string();
    let options = ["--steps", "1", "--device", "cuda"];
    let (_, ended) = train(&dir, "refused", &libraries, &options, &[("FAKE_CUDA_MEMORY", &memory)]);
    assert_eq!(ended.code, Some(87), "{}", ended.stderr);
    let words = ["card 0, Fake card, has no room for ", " of 38 MiB are free"];
    assert!(words.iter().all(|words| ended.stderr.contains(words)), "{}", ended.stderr);
    // Nothing was started that would have read what is not there.
    assert!(!ended.stderr.contains("fake card:"), "{}", ended.stderr);
}

/// The fake card runs every kernel in two orders of its threads and blocks, and compares.
#[test]
fn no_kernel_of_a_training_depends_on_the_order_of_its_threads() {
    let Some(libraries) = fake_cuda::libraries() else { return };
    let dir = TempDir::new();
    let options = ["--steps", "1", "--device", "cuda"];
    let (_, ended) = train(&dir, "orders", &libraries, &options, &[("FAKE_CUDA_ORDERS", "2")]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}
