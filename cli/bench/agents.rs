//! `aquifer bench agents`: one scheduler and many agents over gRPC, each with a connection of its own.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aquifer_agent::crowd::{Crowd, CrowdConfig};

use super::{Figure, percentile, spec};
use crate::limits;
use crate::output::aside;
use crate::trial::Trial;

/// Descriptors that a process needs besides those of connections.
const OTHER_FILES: u64 = 200;
/// Longest wait for agents or a job.
const PATIENCE: Duration = Duration::from_secs(120);

/// Size of the measurement.
#[derive(Clone, Debug, clap::Args)]
pub struct AgentsArgs {
    /// Agents
    #[arg(long, value_name = "AGENTS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub agents: u32,
    /// Devices of each agent
    #[arg(long, value_name = "DEVICES", default_value_t = 8, value_parser = clap::value_parser!(u16).range(0..=64))]
    pub devices: u16,
    /// Lease of the nodes; agents speak six times while theirs lasts
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub lease: String,
    /// Seconds for which the pool is watched while nothing happens
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Seconds for which there is no scheduler, after it was killed
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub down: u64,
}

/// Measures, and says what of it.
pub async fn measure(args: &AgentsArgs, trial: &mut Trial) -> Result<Vec<Figure>> {
    let files = limits::raise_open_files();
    let needed = u64::from(args.agents) + OTHER_FILES;
    ensure!(
        needed <= files,
        "{} agents need {needed} open files in a process, of which the limit is {files}: raise the hard one (ulimit -Hn), or take \
         fewer agents",
        args.agents
    );
    let mut figures = Vec::new();
    let mut add = |name: &str, value: f64, unit| figures.push(Figure { name: name.into(), value, unit });
    let flags = ["--log-level", "warn", "--lease", &args.lease];
    trial.start_scheduler(&flags).await?;

    aside(format!("{} agents connect …", args.agents));
    let (agents, devices) = (args.agents, args.devices);
    let begun = Instant::now();
    let crowd = Crowd::begin(&CrowdConfig { server: trial.server.clone(), agents, devices })?;
    until("all agents have a session", || all_present(&crowd, agents)).await?;
    add("until all agents have a session, the first time", begun.elapsed().as_secs_f64(), "s");

    aside(format!("{} s of heartbeats …", args.seconds));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let span = Duration::from_secs(args.seconds);
    let (before, answers) = (Process::of_scheduler(trial)?, read(&crowd.counts().answers));
    tokio::time::sleep(span).await;
    let after = Process::of_scheduler(trial)?;
    let heard = read(&crowd.counts().answers) - answers;
    add("heartbeats answered", heard as f64 / span.as_secs_f64(), "messages/s");
    let cpu = (after.cpu - before.cpu).as_secs_f64();
    add("scheduler: share of one core", 100.0 * cpu / span.as_secs_f64(), "%");
    add("scheduler: processor time a heartbeat", 1e6 * cpu / heard.max(1) as f64, "µs");
    add("scheduler: resident memory", after.resident_mib, "MiB");

    let mut times = Vec::new();
    for _ in 0..50 {
        times.push(start_one(trial, &crowd).await?.as_secs_f64() * 1e3);
    }
    add("submit to start at an agent, p50", percentile(&mut times, 0.5), "ms");
    add("submit to start at an agent, p99", percentile(&mut times, 0.99), "ms");

    aside("kill -9, and again …");
    let refused = read(&crowd.counts().refused);
    trial.kill_scheduler().await?;
    tokio::time::sleep(Duration::from_secs(args.down)).await;
    until("the agents notice", || read(&crowd.counts().present) == 0).await?;
    let begun = Instant::now();
    trial.start_scheduler(&flags).await?;
    add("restarted: until the first answer", begun.elapsed().as_secs_f64(), "s");
    start_one(trial, &crowd).await?;
    add("restarted: until a job that was submitted then has started", begun.elapsed().as_secs_f64(), "s");
    until("all agents are back", || all_present(&crowd, agents)).await?;
    add("restarted: until all agents are back", begun.elapsed().as_secs_f64(), "s");
    let refused = (read(&crowd.counts().refused) - refused) as f64 / f64::from(agents);
    add("attempts in vain to connect, of each agent", refused, "");
    let after = Process::of_scheduler(trial)?;
    add("restarted: processor time of the scheduler until then", after.cpu.as_secs_f64(), "s");
    add("restarted: resident memory, peak", after.peak_mib, "MiB");
    Ok(figures)
}

fn read(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

fn all_present(crowd: &Crowd, agents: u32) -> bool {
    read(&crowd.counts().present) == u64::from(agents)
}

/// Waits until that is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        ensure!(Instant::now() < deadline, "waited in vain for {} s until {what}", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Time from the submission of a job until an agent starts it.
async fn start_one(trial: &Trial, crowd: &Crowd) -> Result<Duration> {
    let (begun, started) = (Instant::now(), read(&crowd.counts().started));
    trial.client().submit(spec(None, false)).await?;
    until("the job has started", || started < read(&crowd.counts().started)).await?;
    Ok(begun.elapsed())
}

/// What the kernel says of a process.
pub struct Process {
    /// Processor time that it has used.
    pub cpu: Duration,
    /// Memory that it holds.
    pub resident_mib: f64,
    /// The most memory that it has held.
    pub peak_mib: f64,
}

impl Process {
    /// Of the scheduler.
    ///
    /// # Errors
    /// It does not run.
    pub fn of_scheduler(trial: &Trial) -> Result<Process> {
        let pid = trial.pids().first().copied().context("no scheduler runs")?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name of the program, in brackets, may have spaces.
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks =
            after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok());
        let cpu = Duration::from_millis(ticks.sum::<u64>() * 1000 / rustix::param::clock_ticks_per_second());
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mib = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
            kib.map(|kib| kib / 1024.0).with_context(|| format!("no {key} of process {pid}"))
        };
        Ok(Process { cpu, resident_mib: mib("VmRSS:")?, peak_mib: mib("VmHWM:")? })
    }
}
