//! `aquifer bench`: measures this program on this machine.

pub mod agents;
pub mod history;
pub mod worker;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aquifer_proto::v1;
use aquifer_proto::v1::agent_message::Message as Up;
use aquifer_proto::v1::agents_client::AgentsClient;
use aquifer_proto::v1::scheduler_message::Message as Down;
use aquifer_scheduler::store::Address;
use aquifer_sim::bench;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

use crate::client::Global;
use crate::output::{Output, Side, Table, aside};
use crate::trial::Trial;
use crate::units;

/// Measure this program on this machine
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Measure a pool: submissions, latency, throughput, messages of agents, restart
    ///
    /// Starts a scheduler with its embedded store and an agent as processes of their own, in a temporary directory
    /// on the disk that TMPDIR names, and leaves nothing behind.
    #[command(after_help = "Example:\n  aquifer bench pool --jobs 10000")]
    Pool(PoolArgs),
    /// Measure a scheduler with many agents: heartbeats, memory, and how all of them come back after it was killed
    ///
    /// The scheduler is a process of its own with its embedded store, in a temporary directory on the disk that TMPDIR
    /// names. The agents are in this process, without machines, each with a connection of its own.
    #[command(after_help = "Example:\n  aquifer bench agents --agents 10000")]
    Agents(agents::AgentsArgs),
    /// Measure a pool with many jobs that have ended, wait and run: questions, submissions, memory
    ///
    /// The scheduler is a process of its own, in a temporary directory on the disk that TMPDIR names, on a store that is made
    /// for the measurement.
    #[command(after_help = "Example:\n  aquifer bench history --ended 1000000")]
    History(history::HistoryArgs),
    /// Measure decisions: the scheduler's core alone, in pools of many sizes
    #[command(after_help = "Example:\n  aquifer bench decisions --nodes 1000,10000")]
    Decisions(DecisionsArgs),
    /// Measure the worker's kernels, each beside what one core of this machine can do
    #[command(after_help = "Example:\n  aquifer bench kernels --precision bf16")]
    Kernels(worker::KernelsArgs),
    /// Measure training steps of a model
    #[command(after_help = "Example:\n  aquifer bench train --model 24m --precision bf16 --threads 2")]
    Train(aquifer_worker::bench::TrainArgs),
    /// Measure what a checkpoint after every step costs a training: steps with and without, in alternation
    #[command(after_help = "Example:\n  aquifer bench checkpoints --model tiny --directory /data")]
    Checkpoints(aquifer_worker::bench::CheckpointsArgs),
    /// Measure prefill and decoding of a model
    #[command(after_help = "Example:\n  aquifer bench infer --precision bf16")]
    Infer(aquifer_worker::bench::InferArgs),
    /// Measure the engine of a server with many clients at a time, with and without a common beginning of their prompts
    #[command(after_help = "Example:\n  aquifer bench serve --precision bf16 --clients 32")]
    Serve(aquifer_worker::bench::ServeArgs),
    /// Measure how long members of a training take to sum up their gradients, on loopback
    #[command(after_help = "Example:\n  aquifer bench exchange --ranks 2 --size 100")]
    Exchange(aquifer_worker::bench::ExchangeArgs),
}

/// Sizes of the pools.
#[derive(Clone, Debug, clap::Args)]
pub struct DecisionsArgs {
    /// Nodes of each pool, with eight devices each
    #[arg(long, value_name = "NODES", value_delimiter = ',', default_values_t = [1_000, 5_000, 10_000, 50_000],
        value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub nodes: Vec<u32>,
    /// Jobs that wait
    #[arg(long, value_name = "JOBS", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
    pub pending: u32,
}

/// Sizes of the measurement.
#[derive(Clone, Debug, clap::Args)]
pub struct PoolArgs {
    /// Jobs of the throughput run, and of the restart
    #[arg(long, value_name = "JOBS", default_value_t = 10_000)]
    pub jobs: u32,
    /// Jobs that are submitted one after the other for the latency
    #[arg(long, value_name = "JOBS", default_value_t = 200)]
    pub latency_jobs: u32,
    /// Cores that the agent offers: as many jobs run at a time
    #[arg(long, value_name = "CORES", default_value_t = 16)]
    pub slots: u32,
    /// Agents of the message run
    #[arg(long, value_name = "AGENTS", default_value_t = 200)]
    pub agents: u32,
    /// Seconds of each run that goes by time
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    pub seconds: u64,
    /// Keep the pool in this store instead, `etcd://…`, and measure what etcd itself does beside it. The store must be new
    #[arg(long, value_name = "STORE")]
    pub store: Option<Address>,
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
}

/// Runs the measurement.
pub fn run(command: &Command, global: &Global) -> Result<()> {
    let output = Output::new(global.json, global.no_color);
    let figures = match command {
        Command::Pool(args) => in_pool(global, async |trial| measure(args, trial).await)?,
        Command::Agents(args) => in_pool(global, async |trial| agents::measure(args, trial).await)?,
        Command::History(args) => in_pool(global, async |trial| history::measure(args, trial).await)?,
        Command::Decisions(args) => {
            decisions(args, &output);
            return Ok(());
        }
        Command::Kernels(args) => return worker::kernels(args, &output),
        Command::Train(args) => return worker::train(args, &output),
        Command::Checkpoints(args) => return worker::checkpoints(args, &output),
        Command::Infer(args) => return worker::infer(args, &output),
        Command::Serve(args) => return worker::serve(args, &output),
        Command::Exchange(args) => return worker::exchange(args, &output),
    };
    if output.json {
        output.document(&figures);
        return Ok(());
    }
    let mut table = Table::new(&[("WHAT", Side::Left), ("FIGURE", Side::Right), ("UNIT", Side::Left)]);
    for figure in &figures {
        table.row([figure.name.clone(), digits(figure.value), figure.unit.into()]);
    }
    output.text(table.plain(&output));
    Ok(())
}

/// Measures with a pool, of which nothing is left in the end.
fn in_pool(
    global: &Global,
    measure: impl AsyncFnOnce(&mut Trial) -> Result<Vec<Figure>>,
) -> Result<Vec<Figure>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut trial = Trial::new("bench", global)?;
        let measured = measure(&mut trial).await;
        let ended = trial.tear_down().await;
        let figures = measured?;
        ended.map(|()| figures)
    })
}

/// A figure with as many digits as mean something.
fn digits(value: f64) -> String {
    if value < 100.0 { format!("{value:.2}") } else { units::group(value as u64) }
}

/// Runs the measurement of the core.
fn decisions(args: &DecisionsArgs, output: &Output) {
    let mut table = Table::new(&[
        ("NODES", Side::Right),
        ("WHAT", Side::Left),
        ("FIGURE", Side::Right),
        ("UNIT", Side::Left),
    ]);
    let mut document = Vec::new();
    for nodes in &args.nodes {
        aside(format!("{nodes} nodes …"));
        let meter = bench::Meter { clock: crate::simulate::nanoseconds, memory: crate::metrics::resident };
        let figures = bench::measure(*nodes, args.pending, meter);
        let per_s = |ns: u64| f64::from(figures.placed) * 1e9 / ns.max(1) as f64;
        let us = |ns: u64| ns as f64 / 1e3;
        let mut rows = vec![
            (
                format!("jobs placed in one round, of {} that wait", figures.waiting),
                f64::from(figures.placed),
                "jobs",
            ),
            ("placements, deciding alone".into(), per_s(figures.round_ns), "jobs/s"),
            ("placements, with records and orders".into(), per_s(figures.step_ns), "jobs/s"),
            (
                "memory of the pool with its jobs, if it is the first".into(),
                figures.bytes as f64 / f64::from(1 << 20),
                "MiB",
            ),
            ("a step that changes nothing, p50".into(), us(figures.idle.p50), "µs"),
            ("a step that changes nothing, p99".into(), us(figures.idle.p99), "µs"),
            ("a submission that waits, p50".into(), us(figures.unfit.p50), "µs"),
            ("a submission that waits, p99".into(), us(figures.unfit.p99), "µs"),
            ("an end, and who takes its place, p50".into(), us(figures.ends.p50), "µs"),
            ("an end, and who takes its place, p99".into(), us(figures.ends.p99), "µs"),
            ("a submission for which another job is stopped, p50".into(), us(figures.preempts.p50), "µs"),
            ("a submission for which another job is stopped, p99".into(), us(figures.preempts.p99), "µs"),
            (format!("the same, while {} stop, p50", figures.stopped), us(figures.preempts_many.p50), "µs"),
            (format!("the same, while {} stop, p99", figures.stopped), us(figures.preempts_many.p99), "µs"),
            ("booking a hundredth of the nodes".into(), figures.booked_ns as f64 / 1e6, "ms"),
            ("explaining one that waits".into(), figures.explain_ns as f64 / 1e6, "ms"),
            ("what would happen if one more came".into(), figures.what_if_ns as f64 / 1e6, "ms"),
        ];
        let mut gangs = |what: &str, gangs: &[(u32, u64)]| {
            let row =
                |(ranks, ns): &(u32, u64)| (format!("a gang of {ranks} {what}"), *ns as f64 / 1e6, "ms");
            rows.extend(gangs.iter().map(row));
        };
        gangs("ranks in the idle pool", &figures.gangs);
        gangs("nodes that comes, goes first, and has to wait", &figures.wide);
        gangs("nodes for which eight jobs on each are stopped", &figures.gangs_preempt);
        for (name, value, unit) in rows {
            table.row([units::group((*nodes).into()), name.clone(), digits(value), unit.into()]);
            document.push(Figure { name: format!("{nodes} nodes: {name}"), value, unit });
        }
    }
    match output.json {
        true => output.document(&document),
        false => output.text(table.plain(output)),
    }
}

async fn measure(args: &PoolArgs, trial: &mut Trial) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut add = |name: String, value: f64, unit| figures.push(Figure { name, value, unit });
    let store = args.store.as_ref().map(ToString::to_string);
    // Nobody else is there who could name this scheduler.
    let advertise = ["--advertise", "http://127.0.0.1"];
    let flags = ["--log-level", "warn", "--store", store.as_deref().unwrap_or_default()];
    let flags = [&flags[..], &advertise].concat();
    let flags = if store.is_some() { &flags[..] } else { &flags[..2] };
    trial.start_scheduler(flags).await?;
    let slots = args.slots.to_string();
    let offer = ["--devices", "none", "--cpus", &slots, "--log-level", "warn"];
    trial.start_agent("bench", &offer).await?;

    aside("latency of single jobs …");
    let (running, done) = latency(trial, args.latency_jobs).await?;
    for (name, mut times) in [("running", running), ("end", done)] {
        add(format!("`true`: submit to {name}, p50"), percentile(&mut times, 0.5), "ms");
        add(format!("`true`: submit to {name}, p99"), percentile(&mut times, 0.99), "ms");
    }
    aside(format!("an array of {} jobs …", args.jobs));
    let (queued_s, all_s) = throughput(trial, args.jobs).await?;
    add(format!("array of {}: until queued", args.jobs), queued_s * 1e3, "ms");
    add(format!("array of {} `true`, submit to last end", args.jobs), f64::from(args.jobs) / all_s, "jobs/s");
    aside("restart …");
    let (restart_s, jobs) = restart(trial, flags).await?;
    add(format!("kill -9 to first answer, {jobs} jobs in the store"), restart_s * 1e3, "ms");
    aside("durable submissions …");
    let span = Duration::from_secs(args.seconds);
    for clients in [1, 64] {
        add(
            format!("durable submissions, {clients} clients"),
            submissions(trial, clients, span).await?,
            "jobs/s",
        );
    }
    #[cfg(feature = "etcd")]
    if let Some(Address::Etcd(address)) = &args.store {
        use aquifer_scheduler::store::etcd::puts;
        aside("etcd alone …");
        for (clients, values) in [(1, 1), (64, 1), (1, 100)] {
            let rate = puts(address, clients, values, span).await.context("etcd did not answer")?;
            let each = if values == 1 {
                "puts of 256 bytes".into()
            } else {
                format!("transactions of {values} puts")
            };
            add(format!("etcd alone: {each}, {clients} clients"), rate, "/s");
        }
    }
    aside(format!("messages of {} agents …", args.agents));
    for (name, whole) in [("heartbeats", false), ("whole reports, 8 devices and 8 workers", true)] {
        let rate = messages(trial, args.agents, whole, span).await?;
        add(format!("{name}, {} agents", args.agents), rate, "messages/s");
    }
    Ok(figures)
}

fn percentile(times_ms: &mut [f64], share: f64) -> f64 {
    times_ms.sort_by(f64::total_cmp);
    times_ms[((times_ms.len() - 1) as f64 * share).round() as usize]
}

/// A job of one `true` on one core; `never`: for a node that does not exist.
fn spec(array: Option<u32>, never: bool) -> v1::SubmitRequest {
    let labels = if never { [("bench".into(), "never".into())].into() } else { Default::default() };
    let request = v1::Request { cpus_milli: 1000, labels, ..Default::default() };
    let command = v1::Command { arguments: vec!["true".into()] };
    let program = Some(v1::role::Program::Command(command));
    let role = v1::Role { ranks: 1, request: Some(request), program, ..Default::default() };
    let array = array.map(|last| v1::ArrayRange { first: 1, last, step: 1 });
    v1::SubmitRequest { spec: Some(v1::JobSpec { roles: vec![role], array, ..Default::default() }) }
}

async fn watch(trial: &Trial) -> Result<Streaming<v1::Note>> {
    let mut client = trial.client();
    let notes = client.watch(v1::WatchRequest { after_seq: Some(0), ..Default::default() });
    Ok(notes.await?.into_inner())
}

async fn next(notes: &mut Streaming<v1::Note>) -> Result<v1::Note> {
    let note = tokio::time::timeout(Duration::from_secs(60), notes.message()).await;
    note.context("nothing happened for a minute")??.context("the notes ended")
}

/// Milliseconds from submission to running and to the end, job by job.
async fn latency(trial: &Trial, jobs: u32) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut notes = watch(trial).await?;
    let (mut running, mut done) = (Vec::new(), Vec::new());
    let mut client = trial.client();
    for _ in 0..jobs {
        let begun = Instant::now();
        let job = client.submit(spec(None, false)).await?.into_inner().job;
        let mut ran = None;
        loop {
            let note = next(&mut notes).await?;
            let at = begun.elapsed().as_secs_f64() * 1e3;
            match &note.kind[..] {
                "running" if note.job == Some(job) => ran = Some(at),
                "done" if note.job == Some(job) => {
                    ensure!(note.text.ends_with("succeeded"), "{}", note.text);
                    // What was over before it could be told that it ran, ran when it was over.
                    running.push(ran.unwrap_or(at));
                    done.push(at);
                    break;
                }
                _ => (),
            }
        }
    }
    Ok((running, done))
}

/// Seconds until an array is queued, and until all of it has ended.
async fn throughput(trial: &Trial, jobs: u32) -> Result<(f64, f64)> {
    let begun = Instant::now();
    let array = trial.client().submit(spec(Some(jobs), false)).await?.into_inner();
    let queued = begun.elapsed().as_secs_f64();
    let mut notes = watch(trial).await?;
    let mut left = array.count;
    while 0 < left {
        let note = next(&mut notes).await?;
        if note.kind == "done" && note.job.is_some_and(|job| array.job <= job) {
            ensure!(note.text.ends_with("succeeded"), "{}", note.text);
            left -= 1;
        }
    }
    Ok((queued, begun.elapsed().as_secs_f64()))
}

/// Seconds from the death of the scheduler to the first answer of the next one, and the jobs that it has.
async fn restart(trial: &mut Trial, flags: &[&str]) -> Result<(f64, u64)> {
    trial.kill_scheduler().await?;
    let begun = Instant::now();
    trial.start_scheduler(flags).await?;
    let list =
        trial.client().list(v1::ListRequest { page_size: 1, ..Default::default() }).await?.into_inner();
    let took = begun.elapsed().as_secs_f64();
    Ok((took, list.counts.iter().map(|count| count.jobs).sum()))
}

/// Submissions a second, each durable before the next one of its client.
async fn submissions(trial: &Trial, clients: u32, span: Duration) -> Result<f64> {
    let mut tasks = JoinSet::new();
    let begun = Instant::now();
    for _ in 0..clients {
        let mut client = trial.client();
        tasks.spawn(async move {
            let mut count = 0u32;
            while begun.elapsed() < span {
                client.submit(spec(None, true)).await?;
                count += 1;
            }
            Ok::<u32, tonic::Status>(count)
        });
    }
    let mut count = 0;
    while let Some(task) = tasks.join_next().await {
        count += task??;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

/// Messages a second of agents that send the next as soon as the last one is answered.
async fn messages(trial: &Trial, agents: u32, whole: bool, span: Duration) -> Result<f64> {
    let mut tasks = JoinSet::new();
    let endpoint = Endpoint::from_shared(trial.server.clone())?;
    // As from as many machines: a connection each.
    for agent in 0..agents {
        let channel = endpoint.connect().await?;
        tasks.spawn(converse(AgentsClient::new(channel), format!("sim-{whole}-{agent}"), whole, span));
    }
    let mut rate = 0.0;
    while let Some(task) = tasks.join_next().await {
        rate += task??;
    }
    Ok(rate)
}

async fn converse(
    mut client: AgentsClient<tonic::transport::Channel>,
    node: String,
    whole: bool,
    span: Duration,
) -> Result<f64> {
    let (outbox, messages) = mpsc::channel(4);
    let say = async |message: Up| outbox.send(v1::AgentMessage { message: Some(message) }).await;
    say(Up::Hello(v1::Hello { node, boot: 1, ..Default::default() })).await?;
    let mut inbox = client.session(ReceiverStream::new(messages)).await?.into_inner();
    say(Up::Report(report(1))).await?;
    let mut answer = async || loop {
        match inbox.next().await.context("the session ended")??.message {
            Some(Down::Renew(_) | Down::Assignment(_)) => return Ok::<(), anyhow::Error>(()),
            _ => continue,
        }
    };
    answer().await?;
    let begun = Instant::now();
    let mut count = 0u64;
    while begun.elapsed() < span {
        let seq = count + 2;
        say(match whole {
            true => Up::Report(report(seq)),
            false => Up::Heartbeat(v1::Heartbeat { seq, same_as: 1 }),
        })
        .await?;
        answer().await?;
        count += 1;
    }
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

fn report(seq: u64) -> v1::NodeReport {
    let device = |at| v1::Device {
        vendor: "nvidia".into(),
        model: "h200-141gb".into(),
        memory_bytes: 141 << 30,
        uuid: format!("GPU-{at}"),
        island: None,
        fault: None,
        speed_milli: 1000,
        speed_source: String::new(),
        memory_gbs: 0,
        pcie_switch: None,
        numa_node: None,
        health: String::new(),
        fault_since_ms: 0,
        number: at,
        isolation: String::new(),
    };
    let worker = |rank| v1::WorkerReport {
        worker: Some(v1::Worker { job: 1_000_000, attempt: 1, rank }),
        state: Some(v1::worker_report::State::Running(v1::Empty {})),
        checkpoint_age_ms: None,
        load: None,
        progress: None,
    };
    let inventory = v1::Inventory {
        devices: (0..8).map(device).collect(),
        address: "127.0.0.1".into(),
        first_port: 20_000,
        last_port: 20_100,
        ..Default::default()
    };
    v1::NodeReport {
        seq,
        inventory: Some(inventory),
        workers: (0..8).map(worker).collect(),
        ..Default::default()
    }
}
