//! `aquifer demo`: the whole of it in two minutes, with real processes.

use std::cell::Cell;
use std::fs;
use std::io::IsTerminal;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aquifer_core::JobId;
use aquifer_core::explain::duration;
use aquifer_proto::v1;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::client::Global;
use crate::dashboard::{Dashboard, Setup};
use crate::job_file::Span;
use crate::output::Output;
use crate::trial::{Trial, last_lines};
use crate::{Session, jobs, nodes, settings, submit, units, usage};

/// See a whole pool at work: train, lose a rank, go on, serve
///
/// Starts a scheduler and two agents on loopback, trains a small transformer on text with two ranks, kills one of
/// them in the middle, turns the checkpoint into an inference service and asks it something. Ends with nothing left
/// running.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  aquifer demo --data ~/notes")]
pub struct Args {
    /// Text to train on: a file, or a directory whose text files are read. Default: the project's own sources and docs
    #[arg(long, value_name = "FILE|DIR")]
    pub data: Option<PathBuf>,
    /// Optimizer steps of the training job
    #[arg(long, value_name = "STEPS", default_value_t = 300)]
    pub steps: u64,
    /// Leave the pool and the service up
    #[arg(long)]
    pub keep: bool,
}

/// Text for a machine without the sources: some of the project's own files.
const TEXTS: [(&str, &str); 6] = [
    ("types.rs", include_str!("../scheduler/core/src/types.rs")),
    ("lifecycle.rs", include_str!("../scheduler/core/src/lifecycle.rs")),
    ("fit.rs", include_str!("../scheduler/core/src/plan/fit.rs")),
    ("pool.proto", include_str!("../proto/aquifer/v1/pool.proto")),
    ("types.proto", include_str!("../proto/aquifer/v1/types.proto")),
    ("job-file.md", include_str!("../docs/job-file.md")),
];

const NODES: [&str; 2] = ["alpha", "beta"];
const PROMPT: &str = "The scheduler";

/// Runs the demonstration.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut demo = Demo::new(args, global)?;
        let shown = tokio::select! {
            shown = demo.show(args) => shown,
            () = settings::stop_signal() => Err(anyhow::anyhow!("interrupted")),
        };
        demo.bar.finish_and_clear();
        if args.keep && shown.is_ok() {
            demo.leave();
            return Ok(());
        }
        let ended = demo.trial.tear_down().await;
        shown.and(ended)?;
        let took = demo.started.elapsed().as_secs();
        let text = format!("\nDone in {took} s; nothing is left running. A pool that stays: aquifer up");
        demo.output.text(text);
        Ok(())
    })
}

/// Writes text to learn below a directory.
pub fn texts(directory: &Path) -> Result<PathBuf> {
    let texts = directory.join("texts");
    fs::create_dir_all(&texts)?;
    for (name, text) in TEXTS {
        fs::write(texts.join(name), text)?;
    }
    Ok(texts)
}

struct Demo {
    started: Instant,
    bar: ProgressBar,
    trial: Trial,
    output: Output,
    /// The last step that a line was printed about.
    told_step: Cell<u64>,
}

impl Demo {
    fn new(args: &Args, global: &Global) -> Result<Demo> {
        let bar = ProgressBar::new(args.steps);
        bar.set_style(
            ProgressStyle::with_template("        {bar:32} {pos:>4}/{len} {msg}").expect("a template"),
        );
        if !std::io::stderr().is_terminal() {
            bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        let trial = Trial::new("demo", global)?;
        let output = Output::new(false, global.no_color);
        Ok(Demo { started: Instant::now(), bar, trial, output, told_step: Cell::new(0) })
    }

    async fn start_pool(&mut self) -> Result<()> {
        self.say(
            "Starting a scheduler with its embedded store, and two agents that share this machine's cores.",
        );
        self.trial.start_scheduler(&["--lease", "5s"]).await?;
        self.show_in_browser().await?;
        let host = aquifer_agent::host::Host::read();
        let memory = format!("{}KiB", host.memory_bytes / 2 / 1024);
        let each = (host.cores.len() / 2).clamp(1, 8);
        for (at, node) in NODES.into_iter().enumerate() {
            let cores = host.cores.iter().cycle().skip(at * each).take(each).map(ToString::to_string);
            let devices = format!("cpu:{}", cores.collect::<Vec<_>>().join("+"));
            // Real accelerators, where there are some, are offered by the first agent.
            let has_gpus = at == 0 && Path::new("/dev/nvidiactl").exists();
            let devices = if has_gpus { devices + ",nvidia" } else { devices };
            let (cpus, ports) = (each.to_string(), self.trial.ports()?);
            let offer = ["--devices", &devices, "--cpus", &cpus, "--memory", &memory, "--ports", &ports];
            self.trial.start_agent(node, &offer).await?;
        }
        Ok(())
    }

    /// Shows the pool in a browser for as long as it is there.
    async fn show_in_browser(&self) -> Result<()> {
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let dashboard = Dashboard::bind(Setup::of_loopback(anywhere, self.trial.global().clone())).await?;
        self.tell(&format!("Watch it in a browser: {}", dashboard.url()));
        tokio::spawn(dashboard.serve(std::future::pending()));
        Ok(())
    }

    async fn show(&mut self, args: &Args) -> Result<()> {
        let data = self.data(args)?;
        self.start_pool().await?;
        let train = self.train(args, &data).await?;
        let endpoint = self.serve(train).await?;
        self.ask(&endpoint).await?;
        self.tables().await
    }

    fn data(&self, args: &Args) -> Result<PathBuf> {
        if let Some(data) = &args.data {
            return fs::canonicalize(data).with_context(|| format!("--data {}", data.display()));
        }
        let here = std::env::current_dir()?;
        if here.join("scheduler/core").is_dir() && here.join("proto/aquifer").is_dir() {
            return Ok(here);
        }
        texts(&self.trial.directory)
    }

    /// Trains with two ranks, and kills one of them in the middle. Returns the job.
    async fn train(&mut self, args: &Args, data: &Path) -> Result<JobId> {
        let every = (args.steps / 6).max(1);
        self.say(&format!(
            "Training a small Llama-style transformer on {} with two ranks, one on each node.",
            data.display()
        ));
        let devices = self.devices_of_a_node().await?;
        let options = v1::Train {
            data: data.to_string_lossy().into_owned(),
            steps: args.steps,
            seed: 1,
            checkpoint_every: every,
            ..v1::Train::default()
        };
        let program = v1::role::Program::Train(options);
        let job = self.submit("demo-train", 2, devices, program).await?;
        let (mut killed, mut seen, mut losses) = (None::<Instant>, 0, Vec::new());
        let mut replaced = false;
        loop {
            let view = self.job(job).await?;
            let told = view.ranks.iter().filter_map(|rank| rank.progress.clone());
            let progress = told.max_by_key(|progress| progress.step).unwrap_or_default();
            let step = progress.step.unwrap_or(0);
            self.show_progress(args, &view, &progress);
            if let Some(loss) = progress.loss.filter(|_| seen < step) {
                losses.push((step, loss));
                seen = step;
            }
            let newest = view.ranks.iter().max_by_key(|rank| rank.rank).filter(|newest| 1 < newest.rank);
            if let Some((when, newest)) = killed.zip(newest).filter(|_| !replaced)
                && newest.progress.as_ref().is_some_and(|progress| progress.step.is_some())
            {
                self.tell(&format!(
                    "Rank {} has joined after {} and has the state; the other one went on, and no step is repeated.",
                    newest.rank,
                    duration(when.elapsed().as_millis() as u64),
                ));
                replaced = true;
            }
            match view.state() {
                v1::JobState::Succeeded => break,
                v1::JobState::Failed | v1::JobState::Cancelled | v1::JobState::TimedOut => {
                    bail!("{job} {}: {}", view.reason, self.worker_log(job, &view))
                }
                _ => (),
            }
            // The longest-serving one leads: the other one has to take over.
            if killed.is_none() && args.steps / 2 <= step {
                let pid = self.kill_rank(job, &view, 0)?;
                killed = Some(Instant::now());
                self.say(&format!(
                    "Killed rank 0 (process {pid}), which leads, with SIGKILL at step {step}."
                ));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.bar.finish_and_clear();
        ensure!(killed.is_some(), "training ended before a rank could be killed: try more --steps");
        if let (Some(first), Some(last)) = (losses.first(), losses.last()) {
            self.tell(&format!(
                "{job} succeeded: loss fell from {:.2} at step {} to {:.2} at step {}.",
                first.1, first.0, last.1, last.0
            ));
        }
        Ok(job)
    }

    fn show_progress(&self, args: &Args, view: &v1::Job, progress: &v1::Progress) {
        self.bar.set_position(progress.step.unwrap_or(0));
        let loss = progress.loss.map(|loss| format!("loss {loss:.3}")).unwrap_or_default();
        let speed = progress.tokens_per_s.map(|speed| format!("{} tokens/s", units::group(speed as u64)));
        let state = match view.state() {
            v1::JobState::Running => String::new(),
            state => format!("({})", state.as_str_name().trim_start_matches("JOB_STATE_").to_lowercase()),
        };
        let text = format!("{loss}  {}  {state}", speed.unwrap_or_default());
        // Without a terminal there is no bar: a line now and then tells the same.
        let step = progress.step.unwrap_or(0);
        if self.bar.is_hidden() && self.told_step.get() + args.steps / 10 <= step && state.is_empty() {
            self.told_step.set(step);
            self.tell(&format!("step {step}/{}  {}", args.steps, text.trim_end()));
        }
        self.bar.set_message(text);
    }

    /// Kills a rank's process as a crash would: its process id stands in its run directory.
    fn kill_rank(&self, job: JobId, view: &v1::Job, rank: u32) -> Result<i32> {
        let rank = &view.ranks[rank as usize];
        let pid = self.trial.worker_pid(job.0, view.attempt, rank).context("the worker has no process id")?;
        kill_process(Pid::from_raw(pid).context("no process")?, Signal::KILL)?;
        Ok(pid)
    }

    /// Turns the checkpoint of a job into a service. Returns its endpoint.
    async fn serve(&mut self, train: JobId) -> Result<String> {
        let model = self.job(train).await?.checkpoint_dir;
        self.say(&format!("Serving the checkpoint {model}."));
        let options = v1::Serve { model, served_name: "demo".into(), ..Default::default() };
        let program = v1::role::Program::Serve(options);
        let devices = self.devices_of_a_node().await?;
        let job = self.submit("demo-serve", 1, devices, program).await?;
        let begun = Instant::now();
        loop {
            let view = self.job(job).await?;
            match view.state() {
                v1::JobState::Running => {
                    let rank = view.ranks.first().context("a running job has ranks")?;
                    let endpoint = format!("http://{}:{}/v1", rank.address, rank.port);
                    let took = duration(begun.elapsed().as_millis() as u64);
                    self.tell(&format!("{job} is ready after {took}: {endpoint}"));
                    return Ok(endpoint);
                }
                v1::JobState::Failed | v1::JobState::Succeeded | v1::JobState::Cancelled => {
                    bail!("{job} {}: {}", view.reason, self.worker_log(job, &view))
                }
                _ => ensure!(begun.elapsed() < Duration::from_secs(60), "{job} is not ready after a minute"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn ask(&mut self, endpoint: &str) -> Result<()> {
        self.say("Asking it something, as any OpenAI client would.");
        let completion =
            json!({"model": "demo", "prompt": PROMPT, "max_tokens": 48, "temperature": 0.7, "seed": 1});
        let answer: Value =
            serde_json::from_slice(&post(&format!("{endpoint}/completions"), &completion).await?)?;
        let text = answer["choices"][0]["text"].as_str().context("no text in the answer")?;
        self.tell(&format!("POST /v1/completions       {PROMPT:?} → {text:?}"));
        self.tell(&format!("                           usage {}", answer["usage"]));
        let messages = json!([{"role": "user", "content": "What is a node?"}]);
        let chat = json!({"model": "demo", "messages": messages, "max_tokens": 48, "stream": true});
        let stream = post(&format!("{endpoint}/chat/completions"), &chat).await?;
        let (text, pieces) = streamed_text(&String::from_utf8_lossy(&stream))?;
        self.tell(&format!("POST /v1/chat/completions  {pieces} pieces streamed → {text:?}"));
        let chat = json!({"model": "demo", "messages": messages, "max_tokens": 16});
        let answer: Value =
            serde_json::from_slice(&post(&format!("{endpoint}/chat/completions"), &chat).await?)?;
        ensure!(answer["choices"][0]["message"]["role"] == "assistant", "unexpected answer {answer}");
        self.tell("(After these few steps it has learnt to spell, not to think.)");
        Ok(())
    }

    async fn tables(&mut self) -> Result<()> {
        self.say("What you would look at next:");
        let session = Session { pool: self.trial.pool.clone(), output: self.output };
        self.output.text(format!("\n$ export AQUIFER_SERVER={}\n$ aquifer nodes", self.trial.server));
        nodes::list(&session).await?;
        self.output.text("\n$ aquifer jobs");
        jobs::run(jobs::Args::default(), &session).await?;
        self.output.text("\n$ aquifer usage");
        usage::run(usage::Args { since: Span(0) }, &session).await?;
        self.output.text(
            "\n`aquifer dashboard` shows all of it in a browser, `aquifer watch` line by line as it happens.",
        );
        Ok(())
    }

    async fn submit(
        &self,
        name: &str,
        ranks: u32,
        devices: u32,
        program: v1::role::Program,
    ) -> Result<JobId> {
        let wanted =
            v1::DeviceRequest { count: devices, vendor: "cpu".into(), ..v1::DeviceRequest::default() };
        let request = v1::Request { devices: vec![wanted], ..v1::Request::default() };
        let role = v1::Role { ranks, request: Some(request), program: Some(program), ..v1::Role::default() };
        let spec = v1::JobSpec {
            name: name.into(),
            user: submit::user(),
            roles: vec![role],
            retries: 3,
            ..v1::JobSpec::default()
        };
        let submitted = self.trial.client().submit(v1::SubmitRequest { spec: Some(spec) }).await?;
        Ok(JobId(submitted.into_inner().job))
    }

    async fn devices_of_a_node(&self) -> Result<u32> {
        let nodes = self.trial.client().list_nodes(v1::ListNodesRequest::default()).await?.into_inner();
        let cpus = |node: &v1::Node| {
            let devices = node.inventory.iter().flat_map(|inventory| &inventory.devices);
            devices.filter(|device| device.vendor == "cpu").count() as u32
        };
        nodes.nodes.iter().map(cpus).min().context("no nodes")
    }

    async fn job(&self, id: JobId) -> Result<v1::Job> {
        Ok(self.trial.client().get(v1::GetRequest { job: id.0 }).await?.into_inner())
    }

    /// Starts a stage.
    fn say(&self, text: &str) {
        let line = format!("[{:>3} s] {text}", self.started.elapsed().as_secs());
        self.bar.suspend(|| self.output.text(line));
    }

    /// Says something within a stage.
    fn tell(&self, text: &str) {
        self.bar.suspend(|| self.output.text(format!("        {text}")));
    }

    fn worker_log(&self, job: JobId, view: &v1::Job) -> String {
        let of = |rank: &v1::Rank| {
            last_lines(&self.trial.run_dir(&rank.node, job.0, view.attempt, rank.rank).join("log"))
        };
        view.ranks.iter().map(of).collect::<Vec<_>>().join(" / ")
    }

    /// Leaves everything up, and says how to reach and to end it.
    fn leave(&self) {
        let pids = self.trial.pids().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        self.output
            .text(format!("The pool stays up. Reach it with: export AQUIFER_SERVER={}", self.trial.server));
        self.output.text(format!("End it with: aquifer cancel job-2 --wait; kill {pids}"));
        self.output.text(format!("Its files are in {}.", self.trial.directory.display()));
    }
}

async fn post(url: &str, body: &Value) -> Result<Bytes> {
    let client = HttpClient::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request = hyper::Request::post(url).header("content-type", "application/json");
    let request = request.body(Full::new(Bytes::from(serde_json::to_vec(body)?)))?;
    let response = client.request(request).await.with_context(|| format!("POST {url}"))?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    ensure!(status.is_success(), "POST {url}: {status}: {}", String::from_utf8_lossy(&body));
    Ok(body)
}

/// The text of a stream of chat completion chunks, and the number of its pieces.
fn streamed_text(stream: &str) -> Result<(String, usize)> {
    let (mut text, mut pieces) = (String::new(), 0);
    for data in stream.lines().filter_map(|line| line.strip_prefix("data: ")) {
        if data == "[DONE]" {
            return Ok((text, pieces));
        }
        let chunk: Value = serde_json::from_str(data)?;
        if let Some(piece) =
            chunk["choices"][0]["delta"]["content"].as_str().filter(|piece| !piece.is_empty())
        {
            text += piece;
            pieces += 1;
        }
    }
    bail!("the stream broke off")
}
