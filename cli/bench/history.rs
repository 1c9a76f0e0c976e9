//! `aquifer bench history`: a pool with many jobs that have ended, wait and run.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use aquifer_agent::crowd::{Crowd, CrowdConfig};
use aquifer_core::history::Totals;
use aquifer_core::jobs::{Job, Outcome, Phase};
use aquifer_core::{JobId, Record, Time};
use aquifer_proto::store::encode;
use aquifer_proto::{border, v1};
use aquifer_scheduler::store::{Contents, Embedded, Store};

use super::agents::Process;
use super::{Figure, percentile};
use crate::limits;
use crate::output::aside;
use crate::time_now;
use crate::trial::Trial;

/// Longest wait for jobs to be placed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Devices of each node.
const DEVICES: u32 = 8;

/// Sizes of the pool.
#[derive(Clone, Debug, clap::Args)]
pub struct HistoryArgs {
    /// Jobs that have ended
    #[arg(long, value_name = "JOBS", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(0..=10_000_000))]
    pub ended: u64,
    /// Jobs that wait
    #[arg(long, value_name = "JOBS", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub pending: u32,
    /// Jobs that run, one on each device of as many nodes as that needs
    #[arg(long, value_name = "JOBS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(8..=100_000))]
    pub running: u32,
    /// Questions of each kind
    #[arg(long, value_name = "TIMES", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub times: u32,
}

/// Measures, and says what of it.
pub async fn measure(args: &HistoryArgs, trial: &mut Trial) -> Result<Vec<Figure>> {
    limits::raise_open_files();
    let mut figures = Vec::new();
    aside(format!("a store with {} jobs that have ended …", args.ended));
    write_history(args.ended, trial)?;
    let begun = Instant::now();
    trial.start_scheduler(&["--log-level", "warn"]).await?;
    let mut add = |name: &str, value: f64, unit| figures.push(Figure { name: name.into(), value, unit });
    add("start of the scheduler to its first answer", begun.elapsed().as_secs_f64(), "s");

    let agents = args.running.div_ceil(DEVICES);
    aside(format!("{} jobs run on {agents} nodes, {} wait …", args.running, args.pending));
    let config = CrowdConfig { server: trial.server.clone(), agents, devices: DEVICES as u16 };
    let crowd = Crowd::begin(&config)?;
    submit(trial, args.running, 1).await?;
    let deadline = Instant::now() + PATIENCE;
    while crowd.counts().running.load(Ordering::Relaxed) < args.running.into() {
        ensure!(Instant::now() < deadline, "the jobs do not run");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let waits = submit(trial, args.pending, DEVICES).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;

    aside("questions …");
    let page = |before: u64| v1::ListRequest {
        page_token: if before == 0 { String::new() } else { before.to_string() },
        ..Default::default()
    };
    let oldest = (args.ended / 2).max(1);
    let list = |request: v1::ListRequest| {
        let mut client = trial.client();
        async move { client.list(request).await.map(drop) }
    };
    let mut ask = async |name: &str, question: &dyn Fn() -> Question| -> Result<()> {
        let mut times = Vec::new();
        for _ in 0..args.times {
            let begun = Instant::now();
            question().await?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        for (word, share) in [("p50", 0.5), ("p99", 0.99)] {
            let value = percentile(&mut times, share);
            figures.push(Figure { name: format!("{name}, {word}"), value, unit: "ms" });
        }
        Ok(())
    };
    ask("jobs: the newest 100", &|| Box::pin(list(page(0)))).await?;
    ask("jobs: 100 amid the history", &|| Box::pin(list(page(oldest)))).await?;
    let mut failed = page(0);
    failed.states = vec![v1::JobState::Failed.into()];
    ask("jobs: a page of those that failed", &|| Box::pin(list(failed.clone()))).await?;
    ask("job: one amid the history", &|| get(trial, oldest)).await?;
    ask("job: one that waits", &|| get(trial, waits)).await?;
    ask("explain: one that waits", &|| explain(trial, waits)).await?;
    ask("explain: one amid the history", &|| explain(trial, oldest)).await?;
    ask("nodes: a page", &|| nodes(trial)).await?;
    ask("a durable submission that waits behind all", &|| one(trial)).await?;
    let mut add = |name: &str, value: f64, unit| figures.push(Figure { name: name.into(), value, unit });
    let process = Process::of_scheduler(trial)?;
    add("scheduler: resident memory", process.resident_mib, "MiB");
    add("scheduler: the most of it", process.peak_mib, "MiB");
    // In order it would cancel every job, which is no part of the measurement.
    drop(crowd);
    trial.kill_scheduler().await?;
    Ok(figures)
}

type Question = std::pin::Pin<Box<dyn Future<Output = Result<(), tonic::Status>>>>;

fn get(trial: &Trial, job: u64) -> Question {
    let mut client = trial.client();
    Box::pin(async move { client.get(v1::GetRequest { job }).await.map(drop) })
}

fn explain(trial: &Trial, job: u64) -> Question {
    let mut client = trial.client();
    Box::pin(async move { client.explain(v1::ExplainRequest { job }).await.map(drop) })
}

fn nodes(trial: &Trial) -> Question {
    let mut client = trial.client();
    Box::pin(async move { client.list_nodes(v1::ListNodesRequest::default()).await.map(drop) })
}

fn one(trial: &Trial) -> Question {
    let (mut client, request) = (trial.client(), spec(DEVICES, None));
    Box::pin(async move { client.submit(request).await.map(drop) })
}

/// Jobs of one rank on so many devices, in arrays. Returns one of them.
async fn submit(trial: &Trial, jobs: u32, devices: u32) -> Result<u64> {
    let (mut left, mut last) = (jobs, 0);
    while 0 < left {
        let count = left.min(100_000);
        last = trial.client().submit(spec(devices, Some(count))).await?.into_inner().job;
        left -= count;
    }
    Ok(last)
}

fn spec(devices: u32, array: Option<u32>) -> v1::SubmitRequest {
    let devices = vec![v1::DeviceRequest { count: devices, ..Default::default() }];
    let request = v1::Request { cpus_milli: 1000, devices, ..Default::default() };
    let program = Some(v1::role::Program::Command(v1::Command { arguments: vec!["true".into()] }));
    let role = v1::Role { ranks: 1, request: Some(request), program, ..Default::default() };
    let array = array.map(|last| v1::ArrayRange { first: 1, last, step: 1 });
    v1::SubmitRequest { spec: Some(v1::JobSpec { roles: vec![role], array, ..Default::default() }) }
}

/// A store of a scheduler whose jobs have all ended and retired, every hundredth by a cancellation.
fn write_history(ended: u64, trial: &Trial) -> Result<()> {
    let wire = spec(1, None).spec.expect("a specification");
    let spec = std::sync::Arc::new(border::job_spec(&wire)?);
    let now = time_now();
    let mut totals = Totals::default();
    let mut rows = Vec::new();
    for number in 1..=ended {
        let at = |later_ms: u64| Time(now - 3_600_000 - (ended - number) * 100 + later_ms);
        let mut job = Job::new(JobId(number), spec.clone(), None, at(0));
        let outcome = if number % 100 == 0 { Outcome::Cancelled } else { Outcome::Succeeded };
        job.phase = Phase::Done(outcome);
        (job.attempt, job.placed, job.first_placed, job.ended) =
            (1, Some(at(5)), Some(at(5)), Some(at(60_000)));
        job.usage.device_ms = 59_995;
        totals.add(&job);
        rows.push(encode(&Record::Ended(Arc::new(job))));
    }
    rows.push(encode(&Record::Retired(spec.queue.clone(), totals)));
    let mut store = Embedded::open(&trial.directory.join("server/store.redb"))?;
    store.replace(&Contents { term: 1, rows })?;
    Ok(())
}
