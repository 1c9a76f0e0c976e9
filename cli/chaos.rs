//! `aquifer chaos`: what failures cost a training, on a pool of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aquifer_proto::v1;
use aquifer_worker::checkpoint::Record;
use aquifer_worker::random::Random;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::client::Global;
use crate::job_file::Span;
use crate::output::{Output, Side, Table, aside};
use crate::trial::Trial;
use crate::view::Spent;
use crate::{settings, submit, units};

/// See what failures cost a training: the same one without and with workers that are killed
///
/// Starts a pool of its own on loopback, trains a model once undisturbed and once while workers fail at random times, and
/// compares time and result. Leaves nothing behind.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  aquifer chaos --mtbf 5s\n  aquifer chaos --hang 3s --mtbf 10s --json")]
pub struct Args {
    /// Mean time between two failures, over all workers
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub mtbf: Span<100, 1>,
    /// Workers do not die but stand still for so long (SIGSTOP, then SIGCONT)
    #[arg(long, value_name = "TIME")]
    pub hang: Option<Span<100, 1>>,
    /// Workers
    #[arg(long, value_name = "RANKS", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub ranks: u32,
    /// Steps of the training
    #[arg(long, value_name = "STEPS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub steps: u64,
    /// Shape of the model: tiny, small, medium, or a directory
    #[arg(long, value_name = "NAME|DIR", default_value = "small")]
    pub model: String,
    /// Sequences of a step, each a shard of its own
    #[arg(long, value_name = "SEQUENCES", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch: u32,
    /// Steps between two checkpoints
    #[arg(long, value_name = "STEPS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub checkpoint_every: u64,
    /// Text to train on [default: what comes with this program]
    #[arg(long, value_name = "FILE|DIR")]
    pub data: Option<PathBuf>,
    /// Decides who fails, and when
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// How a training went.
#[derive(Debug, Serialize)]
struct Run {
    /// Failures that were caused.
    failures: u64,
    /// From the start of the first step to the end of the last, in milliseconds.
    time_ms: u64,
    /// Where the time of all went.
    spent: Spent,
}

#[derive(Serialize)]
struct Report {
    undisturbed: Run,
    disturbed: Run,
    /// Time of the undisturbed run in that of the other one.
    kept: f64,
    /// What a failure cost, in milliseconds.
    cost_ms: f64,
    same_bits: bool,
}

/// Runs both, and prints how they compare.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut trial = Trial::new("chaos", global)?;
        let compared = tokio::select! {
            compared = compare(args, &mut trial) => compared,
            () = settings::stop_signal() => Err(anyhow::anyhow!("interrupted")),
        };
        let ended = trial.tear_down().await;
        let report = compared?;
        ended?;
        print(&report, args, &Output::new(args.json, global.no_color));
        ensure!(report.same_bits, "the two trainings ended with different weights");
        Ok(())
    })
}

async fn compare(args: &Args, trial: &mut Trial) -> Result<Report> {
    let data = match &args.data {
        Some(data) => fs::canonicalize(data).with_context(|| format!("--data {}", data.display()))?,
        None => crate::demo::texts(&trial.directory)?,
    };
    trial.start_scheduler(&[]).await?;
    trial.start_agent("chaos", &["--devices", "cpu:0", "--ports", "22000-22999"]).await?;
    let undisturbed = train(args, trial, &data, None).await?;
    let disturbed = train(args, trial, &data, Some(Random::new(args.seed))).await?;
    let kept = undisturbed.time_ms as f64 / disturbed.time_ms.max(1) as f64;
    let extra = disturbed.time_ms as f64 - undisturbed.time_ms as f64;
    let cost_ms = extra / disturbed.failures.max(1) as f64;
    let same_bits = same_bits(args, trial)?;
    Ok(Report { undisturbed, disturbed, kept, cost_ms, same_bits })
}

async fn train(args: &Args, trial: &Trial, data: &Path, mut random: Option<Random>) -> Result<Run> {
    let name = if random.is_none() { "undisturbed" } else { "disturbed" };
    let job = submit(args, trial, data, name).await?;
    let mut next = |after: Instant| {
        let random = random.as_mut()?;
        // The time between failures that do not know of each other.
        let wait = -(1.0 - random.unit()).ln() * args.mtbf.0 as f64;
        Some((after + Duration::from_millis(wait as u64), random.bits()))
    };
    let (mut begun, mut failures, mut due, mut told) = (false, 0, None, 0);
    let mut hung: BTreeMap<Instant, i32> = BTreeMap::new();
    loop {
        let view = trial.client().get(v1::GetRequest { job }).await?.into_inner();
        let now = Instant::now();
        let progress = view.ranks.iter().filter_map(|rank| rank.progress.as_ref()).max_by_key(|it| it.step);
        let step = progress.and_then(|it| it.step).unwrap_or(0);
        if !begun && 0 < step {
            (begun, due) = (true, next(now));
        }
        if told + args.steps / 10 <= step {
            told = step;
            aside(format!("{name}: step {step}/{}, {failures} failures", args.steps));
        }
        match view.state() {
            v1::JobState::Succeeded => break,
            v1::JobState::Failed | v1::JobState::Cancelled | v1::JobState::TimedOut => {
                bail!("job-{job} {}: {}", view.reason, view.last_failure)
            }
            _ => (),
        }
        while let Some(first) = hung.first_entry().filter(|first| *first.key() <= now) {
            signal(first.remove(), Signal::CONT);
        }
        if let Some((at, choice)) = due
            && at <= now
        {
            let running = view.ranks.iter().filter(|rank| rank.state() == v1::RankState::Running);
            let pids: Vec<i32> =
                running.filter_map(|rank| trial.worker_pid(job, view.attempt, rank)).collect();
            if let Some(victim) = pids.get(choice as usize % pids.len().max(1)) {
                match &args.hang {
                    None => signal(*victim, Signal::KILL),
                    Some(time) => {
                        signal(*victim, Signal::STOP);
                        hung.insert(now + Duration::from_millis(time.0), *victim);
                    }
                }
                failures += 1;
            }
            due = next(now);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    hung.into_values().for_each(|pid| signal(pid, Signal::CONT));
    let path = last_checkpoint(args, trial, name).join("train.json");
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let record: Record = serde_json::from_slice(&text)?;
    let time_ms = (record.spent.sum_us() - record.spent.start_us) / 1000;
    Ok(Run { failures, time_ms, spent: Spent::from(&record.spent) })
}

/// Whether weights and moments of both are the same.
fn same_bits(args: &Args, trial: &Trial) -> Result<bool> {
    let files = |run: &str, file: &str| {
        let path = last_checkpoint(args, trial, run).join(file);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let mut same = true;
    for file in ["model.safetensors", "optimizer.safetensors"] {
        same &= files("undisturbed", file)? == files("disturbed", file)?;
    }
    Ok(same)
}

fn last_checkpoint(args: &Args, trial: &Trial, name: &str) -> PathBuf {
    checkpoints(trial, name).join(format!("step-{:06}", args.steps))
}

fn checkpoints(trial: &Trial, name: &str) -> PathBuf {
    trial.directory.join(format!("checkpoints-{name}"))
}

async fn submit(args: &Args, trial: &Trial, data: &Path, name: &str) -> Result<u64> {
    let options = v1::Train {
        data: data.to_string_lossy().into_owned(),
        model: args.model.clone(),
        steps: args.steps,
        batch: args.batch,
        context: 128,
        seed: 1,
        checkpoint_every: args.checkpoint_every,
        ..v1::Train::default()
    };
    let program = Some(v1::role::Program::Train(options));
    let cores = aquifer_agent::host::Host::read().cores.len() as u32;
    let request = Some(v1::Request { cpus_milli: cores * 1000 / args.ranks, ..v1::Request::default() });
    let role = v1::Role { ranks: args.ranks, min_ranks: Some(1), request, program, ..v1::Role::default() };
    let spec = v1::JobSpec {
        name: name.into(),
        user: submit::user(),
        roles: vec![role],
        retries: 1000,
        checkpoint_dir: Some(checkpoints(trial, name).to_string_lossy().into_owned()),
        ..v1::JobSpec::default()
    };
    Ok(trial.client().submit(v1::SubmitRequest { spec: Some(spec) }).await?.into_inner().job)
}

/// It may have ended by itself.
fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        _ = kill_process(pid, signal);
    }
}

fn print(report: &Report, args: &Args, output: &Output) {
    if args.json {
        return output.document(report);
    }
    let mut table = Table::new(&[
        ("RUN", Side::Left),
        ("FAILURES", Side::Right),
        ("TIME", Side::Right),
        ("STEPS", Side::Right),
        ("RECOVERY", Side::Right),
        ("SLOW", Side::Right),
        ("LOST", Side::Right),
    ]);
    for (name, run) in [("undisturbed", &report.undisturbed), ("disturbed", &report.disturbed)] {
        let Spent { steps_ms, recovery_ms, slow_ms, lost_ms, .. } = run.spent;
        let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1e3);
        let times = [run.time_ms, steps_ms, recovery_ms, slow_ms, lost_ms].map(seconds);
        let [time, steps, recovery, slow, lost] = times;
        table.row([name.into(), run.failures.to_string(), time, steps, recovery, slow, lost]);
    }
    output.text(table.plain(output));
    output.text(format!(
        "\n{:.1} % of the speed is kept with a failure every {}; each cost {:.0} ms. The weights {}.",
        100.0 * report.kept,
        units::duration(args.mtbf.0),
        report.cost_ms,
        if report.same_bits { "have the same bits" } else { "differ" },
    ));
}
