//! Workers for the tests: as threads of the test, and as processes of their own.
#![allow(dead_code)] // Each test binary uses its part.

use aquifer_worker::contract::Contract;
use aquifer_worker::model::{Model, ModelConfig};
use aquifer_worker::safetensors::{TensorRef, write};
use aquifer_worker::train::{self, StepReport};
use aquifer_worker::{ServeArgs, TrainArgs, WorkerError, serve};
use clap::Parser;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A directory that is removed with its content when dropped.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name =
            format!("aquifer-worker-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file with some text to learn.
    pub fn text(&self) -> PathBuf {
        let lines: String = (0..200).map(|i| format!("line {i} says that water finds its way\n")).collect();
        let path = self.join("text.txt");
        std::fs::write(&path, lines).unwrap();
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[derive(Parser)]
enum Cli {
    Train(TrainArgs),
    Serve(ServeArgs),
}

/// What a test means that does not say what computes, on a machine with a card too.
fn on_processor(options: &[&str]) -> &'static [&'static str] {
    if options.contains(&"--device") { &[] } else { &["--device", "cpu"] }
}

/// The options of a training, as they are written on the command line.
pub fn train_args(options: &[&str]) -> TrainArgs {
    match Cli::parse_from(["worker", "train"].iter().chain(on_processor(options)).chain(options)) {
        Cli::Train(args) => args,
        Cli::Serve(_) => unreachable!("the command is train"),
    }
}

/// The options of a server, as they are written on the command line.
pub fn serve_args(options: &[&str]) -> ServeArgs {
    match Cli::parse_from(["worker", "serve"].iter().chain(on_processor(options)).chain(options)) {
        Cli::Serve(args) => args,
        Cli::Train(_) => unreachable!("the command is serve"),
    }
}

/// A group of ranks as threads over loopback; what each step of each rank reported, and how each rank ended.
pub fn train_group(
    args: &TrainArgs,
    world_size: usize,
    threads: usize,
    stop_at: Option<u64>,
) -> Vec<(Vec<StepReport>, Result<(), WorkerError>)> {
    let master_port = free_port();
    let rank = |rank: usize| {
        let contract = Contract { rank, world_size, master_port, threads, ..Contract::default() };
        let (stop, mut steps) = (AtomicBool::new(false), Vec::new());
        let result = train::run(args, &contract, &stop, &mut |step| {
            steps.push(*step);
            // As if a signal came to the last rank during the next step.
            stop.store(stop_at == Some(step.step) && rank == world_size - 1, Ordering::Relaxed);
        });
        (steps, result)
    };
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..world_size).map(|index| scope.spawn(move || rank(index))).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    })
}

/// The interpreter that `AQUIFER_PYTHON` names, else `python3`, if it has these modules. If not, that is said aloud: past
/// the test harness, which keeps to itself what macros print in tests that pass.
pub fn python_with(modules: &str) -> Option<impl Fn() -> Command> {
    let python = || Command::new(std::env::var("AQUIFER_PYTHON").unwrap_or_else(|_| "python3".into()));
    let why = match python().args(["-c", &format!("import {modules}")]).output() {
        Err(error) => format!("python: {error}"),
        Ok(output) if !output.status.success() => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            text.lines().last().unwrap_or("python failed").to_string()
        }
        Ok(_) => return Some(python),
    };
    _ = writeln!(std::io::stderr(), "skipped: {why}");
    None
}

/// The environment variable that turns a test binary into a worker. Options are separated by line breaks.
const WORKER_OPTIONS: &str = "AQUIFER_TEST_WORKER_OPTIONS";

/// What `#[test] fn worker_process` of each test binary calls: nothing in a test run; in a process that
/// [`Worker::spawn`] has started, the worker.
pub fn become_worker_if_asked() {
    let Ok(options) = std::env::var(WORKER_OPTIONS) else { return };
    let result = match Cli::parse_from(["worker"].into_iter().chain(options.split('\n'))) {
        Cli::Train(args) => train::main(args),
        Cli::Serve(args) => serve::main(args),
    };
    let code = result.map_or_else(
        |error| {
            eprintln!("{error}");
            error.exit_code()
        },
        |()| 0,
    );
    std::process::exit(code.into());
}

/// A worker as a process.
pub struct Worker {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

/// How a worker has ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Worker {
    /// Starts a worker with the given options and environment.
    pub fn spawn(options: &[&str], environment: &[(&str, &str)]) -> Worker {
        Worker::spawn_through(&[], options, environment)
    }

    /// Starts a worker through another command, which gets the worker's command line as its last arguments.
    pub fn spawn_through(through: &[&str], options: &[&str], environment: &[(&str, &str)]) -> Worker {
        let own = std::env::current_exe().unwrap();
        let own = [own.to_str().unwrap(), "--exact", "worker_process", "--nocapture", "--test-threads=1"];
        let line: Vec<&str> = through.iter().chain(&own).copied().collect();
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).env(WORKER_OPTIONS, options.join("\n")).env("AQUIFER_CPUS", "1");
        // Without what is said otherwise no card is seen, on a machine with one too.
        command.env("CUDA_VISIBLE_DEVICES", "").envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Worker { child, stdout }
    }

    /// Reads what the worker prints until a line contains `text`; returns the line.
    pub fn wait_for(&mut self, text: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            if self.stdout.read_line(&mut line).unwrap() == 0 {
                let mut stderr = String::new();
                self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
                panic!("the worker ended before it printed {text:?}: {stderr}");
            }
            if line.contains(text) {
                return line.trim_end().to_string();
            }
        }
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end, which must come by then.
    pub fn end_within(mut self, most: Duration) -> Ended {
        let start = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < most, "the worker has not ended after {} s", most.as_secs());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.end()
    }

    /// Waits for the end.
    pub fn end(mut self) -> Ended {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.stdout.read_to_string(&mut stdout).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        Ended { code: self.child.wait().unwrap().code(), stdout, stderr }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A test that fails leaves no process behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes a model as Hugging Face does, without anything of a training.
pub fn save_model(model: &Model, directory: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join("config.json"), model.config.to_json()).unwrap();
    let tensors: Vec<_> = (model.layout.tensors.iter())
        .map(|tensor| TensorRef {
            name: &tensor.name,
            shape: &tensor.shape,
            values: tensor.span.of(&model.weights.parameters),
        })
        .collect();
    write(&directory.join("model.safetensors"), &tensors).unwrap();
}

/// An untrained model with weights large enough that its texts differ, and that never ends a text by itself when
/// the likeliest tokens are taken.
pub fn loud_model() -> Model {
    let mut model = Model::new(ModelConfig::preset("tiny").unwrap(), 5);
    model.weights.parameters.iter_mut().for_each(|value| *value *= 3.0);
    let width = model.config.hidden_size;
    let end = aquifer_worker::tokenizer::EOS as usize * width;
    model.layout.embedding.of_mut(&mut model.weights.parameters)[end..end + width].fill(0.0);
    model
}
