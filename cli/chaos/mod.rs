//! `aquifer chaos`: what failures cost a training, on a pool of its own.

mod curve;
mod faults;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aquifer_proto::v1;
use aquifer_worker::checkpoint::{Record, unix_ms};
use aquifer_worker::random::Random;
use aquifer_worker::train::CURVE;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::client::Global;
use crate::job_file::Span;
use crate::output::{Failure, Output, Side, Table, aside};
use crate::trial::Trial;
use crate::view::Spent;
use crate::{settings, submit, units};
use curve::{Curve, Stalls, quantile};
use faults::Faults;

/// See what failures cost a training: the same one without and with workers that are killed
///
/// Starts a pool of its own on loopback, trains a model once undisturbed and once while workers fail at random times, and
/// compares time and result. Leaves nothing behind.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  aquifer chaos --mtbf 5s --ranks 5 --spares 1\n  aquifer chaos --hang 3s --mtbf 10s --json
  aquifer chaos --everything --mtbf 20s --checkpoint-every 1\n  aquifer chaos --slow 3"
)]
pub struct Args {
    /// Mean time between two failures, over all workers: one at a random moment of every such interval, each worker in turn
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub mtbf: Span<100, 1>,
    /// Workers do not die but stand still for so long (SIGSTOP, then SIGCONT)
    #[arg(long, value_name = "TIME")]
    pub hang: Option<Span<100, 1>>,
    /// Nobody dies, but one worker is given so many times less of the processor than the others
    #[arg(long, value_name = "FACTOR", conflicts_with_all = ["hang", "everything"], value_parser = clap::value_parser!(u32).range(2..=20))]
    pub slow: Option<u32>,
    /// All dies at once: scheduler, agent and workers; and is started again at once
    #[arg(long, conflicts_with = "hang")]
    pub everything: bool,
    /// Workers
    #[arg(long, value_name = "RANKS", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub ranks: u32,
    /// Workers, of these, that compute nothing unless another one is missing
    #[arg(long, value_name = "RANKS", default_value_t = 0)]
    pub spares: u32,
    /// Steps of the training
    #[arg(long, value_name = "STEPS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub steps: u64,
    /// Shape of the model: tiny, small, medium, or a directory
    #[arg(long, value_name = "NAME|DIR", default_value = "tiny")]
    pub model: String,
    /// Sequences of a step
    #[arg(long, value_name = "SEQUENCES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch: u32,
    /// Sequences of a shard, a divisor of --batch: what a worker has computed is sent by shards, but sums that take long beside
    /// what was computed only with others
    #[arg(long, value_name = "SEQUENCES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub micro_batch: u32,
    /// Rounds with little communication in place of steps: each of four replicas a rank takes so many steps by itself [default: none]
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub inner_steps: Option<u64>,
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
    /// Steps that were computed more than once.
    repeated: u64,
    #[serde(flatten)]
    stalls: Stalls,
    /// Where everything was killed: from the start of the pool to the end of the next step, likewise.
    resumed_ms: Vec<u64>,
    #[serde(skip)]
    curve: Curve,
}

#[derive(Serialize)]
struct Report {
    undisturbed: Run,
    disturbed: Run,
    /// Time of the undisturbed run in that of the other one.
    kept: f64,
    /// What a failure cost, in milliseconds.
    cost_ms: f64,
    /// The losses of all steps, the weights and the moments are the same.
    same_bits: bool,
    /// What is not: `losses from step N on`, `weights`, `moments`.
    differs: Vec<String>,
}

/// A training without a new step for so long, and ten failures, does not get on.
const STUCK: Duration = Duration::from_secs(180);

/// A pool of one node.
const NODE: &str = "chaos";

/// Runs both, and prints how they compare.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    if args.ranks <= args.spares {
        let sentence = format!("--spares is {}; it is less than --ranks, {}", args.spares, args.ranks);
        return Err(Failure::usage(sentence, "Give more ranks, or fewer spares.").into());
    }
    if !args.batch.is_multiple_of(args.micro_batch) {
        let sentence = format!("--micro-batch is {}; it divides --batch, {}", args.micro_batch, args.batch);
        return Err(Failure::usage(sentence, "").into());
    }
    if args.inner_steps.is_some() && !args.batch.is_multiple_of(args.micro_batch * replicas(args)) {
        let sentence = format!(
            "--batch is {}; with --inner-steps it is a multiple of four replicas a rank times --micro-batch, {}",
            args.batch,
            args.micro_batch * replicas(args)
        );
        return Err(Failure::usage(sentence, "").into());
    }
    if args.slow.is_some() && args.ranks == 1 {
        return Err(Failure::usage("--slow with one rank: there is nobody to compare it with", "").into());
    }
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
        ensure!(report.same_bits, "the two trainings differ in {}", report.differs.join(", "));
        Ok(())
    })
}

async fn compare(args: &Args, trial: &mut Trial) -> Result<Report> {
    let data = match &args.data {
        Some(data) => fs::canonicalize(data).with_context(|| format!("--data {}", data.display()))?,
        None => crate::demo::texts(&trial.directory)?,
    };
    trial.start_scheduler(&[]).await?;
    let ports = trial.ports()?;
    let offer = ["--devices", "cpu:0", "--ports", &ports];
    trial.start_agent(NODE, &offer).await?;
    let undisturbed = train(args, trial, &data, &offer, None).await?;
    if args.slow.is_none() && undisturbed.time_ms < args.mtbf.0 {
        let (took, mtbf) = (units::duration(undisturbed.time_ms), units::duration(args.mtbf.0));
        let sentence =
            format!("{} steps took {took}: with --mtbf {mtbf} nothing may fail in that time", args.steps);
        let steps = args.steps * args.mtbf.0 / undisturbed.time_ms.max(1) + 1;
        return Err(
            Failure::usage(sentence, format!("Give at least --steps {steps}, or a smaller --mtbf.")).into()
        );
    }
    let disturbed = train(args, trial, &data, &offer, Some(Random::new(args.seed))).await?;
    let kept = undisturbed.time_ms as f64 / disturbed.time_ms.max(1) as f64;
    let extra = disturbed.time_ms as f64 - undisturbed.time_ms as f64;
    let cost_ms = extra / disturbed.failures.max(1) as f64;
    let losses =
        undisturbed.curve.differs_at(&disturbed.curve).map(|step| format!("losses from step {step} on"));
    let differs: Vec<String> = losses.into_iter().chain(other_state(args, trial)?).collect();
    Ok(Report { undisturbed, disturbed, kept, cost_ms, same_bits: differs.is_empty(), differs })
}

/// `offer`: what the agent is started with again.
async fn train(
    args: &Args,
    trial: &mut Trial,
    data: &Path,
    offer: &[&str],
    random: Option<Random>,
) -> Result<Run> {
    let name = if random.is_none() { "undisturbed" } else { "disturbed" };
    let slow = args.slow.filter(|_| random.is_some());
    let job = submit(args, trial, data, name, slow).await?;
    let mut random = random.filter(|_| args.slow.is_none());
    let (mut faults, mut told) = (None, 0);
    let (mut newest, mut since) = (0, Instant::now());
    let patience = STUCK + Duration::from_millis(10 * args.mtbf.0);
    let (mut failures, mut starts) = (Vec::new(), Vec::new());
    let mut hung: BTreeMap<Instant, i32> = BTreeMap::new();
    loop {
        let view = trial.client().get(v1::GetRequest { job }).await?.into_inner();
        let now = Instant::now();
        let progress = view.ranks.iter().filter_map(|rank| rank.progress.as_ref()).max_by_key(|it| it.step);
        let step = progress.and_then(|it| it.step).unwrap_or(0);
        if newest < step {
            (newest, since) = (step, now);
        }
        if patience < now - since {
            return Err(stuck(args, newest, failures.len()));
        }
        if 0 < step
            && let Some(random) = random.take()
        {
            faults = Some(Faults::new(random, Duration::from_millis(args.mtbf.0), now));
        }
        if told + args.steps / 10 <= step {
            told = step;
            aside(format!("{name}: step {step}/{}, {} failures", args.steps, failures.len()));
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
        let pids = || -> Vec<i32> {
            let running = view.ranks.iter().filter(|rank| rank.state() == v1::RankState::Running);
            let pids = running.filter_map(|rank| trial.worker_pid(job, view.attempt, rank));
            pids.filter(|pid| !hung.values().any(|hung| hung == pid)).collect()
        };
        if let Some(victim) = faults.as_mut().and_then(|faults| faults.hit(now, pids)) {
            failures.push(unix_ms());
            match &args.hang {
                _ if args.everything => {
                    trial.kill_everything().await?;
                    starts.push(unix_ms());
                    trial.start_scheduler(&[]).await?;
                    trial.start_agent(NODE, offer).await?;
                }
                None => signal(victim, Signal::KILL),
                Some(time) => {
                    signal(victim, Signal::STOP);
                    hung.insert(now + Duration::from_millis(time.0), victim);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    hung.into_values().for_each(|pid| signal(pid, Signal::CONT));
    let path = last_checkpoint(args, trial, name).join("train.json");
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let record: Record = serde_json::from_slice(&text)?;
    let time_ms = (record.spent.sum_us() - record.spent.start_us) / 1000;
    let curve = Curve::read(&checkpoints(trial, name).join(CURVE))?;
    let (stalls, resumed_ms) = (curve.stalls(&failures), curve.until_next_ms(&starts));
    let (failures, repeated) = (failures.len() as u64, curve.repeated());
    Ok(Run { failures, time_ms, spent: Spent::from(&record.spent), repeated, stalls, resumed_ms, curve })
}

/// What to do about a training that does not get beyond a step.
fn stuck(args: &Args, newest: u64, failures: usize) -> anyhow::Error {
    let sentence =
        format!("no step after step {newest} was done in three minutes and more, with {failures} failures");
    let next = match failures {
        0 => "Look at `aquifer doctor`, or give a smaller model.".to_string(),
        _ => format!(
            "Give a larger --mtbf: workers that fail soon after their start are started anew after pauses; or write checkpoints more often than every {} steps, \
             which count where all are lost.",
            args.checkpoint_every
        ),
    };
    Failure::refused(sentence, next).into()
}

/// Replicas of a round.
fn replicas(args: &Args) -> u32 {
    4 * args.ranks
}

/// Which of weights and moments are not the same.
fn other_state(args: &Args, trial: &Trial) -> Result<Vec<String>> {
    let file = |run: &str, file: &str| {
        let path = last_checkpoint(args, trial, run).join(file);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let mut differs = Vec::new();
    for (what, name) in [("weights", "model.safetensors"), ("moments", "optimizer.safetensors")] {
        if file("undisturbed", name)? != file("disturbed", name)? {
            differs.push(what.into());
        }
    }
    Ok(differs)
}

fn last_checkpoint(args: &Args, trial: &Trial, name: &str) -> PathBuf {
    checkpoints(trial, name).join(format!("step-{:06}", args.steps))
}

fn checkpoints(trial: &Trial, name: &str) -> PathBuf {
    trial.directory.join(format!("checkpoints-{name}"))
}

/// `slow`: so many times less of the processor for one of the workers.
async fn submit(args: &Args, trial: &Trial, data: &Path, name: &str, slow: Option<u32>) -> Result<u64> {
    let options = v1::Train {
        data: data.to_string_lossy().into_owned(),
        model: args.model.clone(),
        steps: args.steps,
        batch: args.batch,
        micro_batch: args.micro_batch,
        context: 128,
        seed: 1,
        checkpoint_every: args.checkpoint_every,
        spares: args.spares,
        inner_steps: args.inner_steps.unwrap_or(0),
        replicas: args.inner_steps.map_or(0, |_| replicas(args)),
        ..v1::Train::default()
    };
    let cores = aquifer_agent::host::Host::read().cores.len() as u32;
    let each = cores * 1000 / (args.ranks - args.spares);
    let role = |ranks, cpus_milli| v1::Role {
        name: format!("at{cpus_milli}"),
        ranks,
        min_ranks: (slow.is_none() && 1 < ranks).then_some(1),
        request: Some(v1::Request { cpus_milli, ..v1::Request::default() }),
        program: Some(v1::role::Program::Train(options.clone())),
        ..v1::Role::default()
    };
    let roles = match slow {
        None => vec![role(args.ranks, each)],
        Some(factor) => vec![role(args.ranks - 1, each), role(1, each / factor)],
    };
    let spec = v1::JobSpec {
        name: name.into(),
        user: submit::user(),
        roles,
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
        ("REPEATED", Side::Right),
    ]);
    for (name, run) in [("undisturbed", &report.undisturbed), ("disturbed", &report.disturbed)] {
        let Spent { steps_ms, recovery_ms, slow_ms, lost_ms, .. } = run.spent;
        let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1e3);
        let times = [run.time_ms, steps_ms, recovery_ms, slow_ms, lost_ms].map(seconds);
        let [time, steps, recovery, slow, lost] = times;
        let (failures, repeated) = (run.failures.to_string(), run.repeated.to_string());
        table.row([name.into(), failures, time, steps, recovery, slow, lost, repeated]);
    }
    output.text(table.plain(output));
    output.text(format!("\n{}", sentence(report, args)));
    output.text(match report.same_bits {
        true => "The losses of all steps, the weights and the moments have the same bits.".to_string(),
        false => format!("They differ in {}.", report.differs.join(", ")),
    });
}

/// What it comes down to.
fn sentence(report: &Report, args: &Args) -> String {
    let Report { disturbed, undisturbed, kept, .. } = report;
    let percent = format!("{:.1} % of the speed is kept", 100.0 * kept);
    if let Some(factor) = args.slow {
        let ideal = (f64::from(args.ranks - 1) + 1.0 / f64::from(factor)) / f64::from(args.ranks);
        return format!(
            "{percent} where one of {} workers is {factor} times slower: {:.1} % of the {:.1} % that are there.",
            args.ranks,
            100.0 * kept / ideal,
            100.0 * ideal,
        );
    }
    let count = match disturbed.failures {
        1 => "one failure".to_string(),
        count => format!("{count} failures, one every {}", units::duration(args.mtbf.0)),
    };
    let often = format!("{percent} with {count}");
    let spread = |times: &[u64]| (quantile(times, 0.5), quantile(times, 0.99));
    if args.everything {
        let (median, most) = spread(&disturbed.resumed_ms);
        return format!(
            "{often} of everything. The next step is done {median} ms after the start (median), {most} ms (p99).",
        );
    }
    let Stalls { stalls_ms, rests_ms, others_ms } = &disturbed.stalls;
    let (median, most) = spread(stalls_ms);
    let usual = undisturbed.curve.usual_ms();
    let shards = match args.inner_steps {
        None => args.batch / args.micro_batch,
        Some(_) => replicas(args),
    };
    let shard = usual * u64::from(args.ranks - args.spares) / u64::from(shards);
    // Without a spare the others do what is left, in so much more time.
    let fewer = match args.ranks {
        1 => String::new(),
        _ if 0 < args.spares => String::new(),
        ranks => {
            let (median, most) = spread(rests_ms);
            let share = |rest: u64| rest / u64::from(ranks - 1);
            format!(
                ", of which {} and {} ms are what a worker less takes for the rest of it",
                share(median),
                share(most)
            )
        }
    };
    format!(
        "{often}; each cost {:.0} ms. It stalled a step of {usual} ms, a shard of {shard}, by {median} ms (median), {most} ms (p99){fewer}. Of the other steps \
         one in a hundred was late by {} ms or more.",
        report.cost_ms,
        quantile(others_ms, 0.99),
    )
}
