//! `aquifer simulate`: a workload replayed under several policies, in virtual time.

mod history;
mod report;
mod source;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result};
use aquifer_sim::replay::compare::{self, Run};
use aquifer_sim::replay::engine::{Mode, Watch};
use aquifer_sim::replay::policy::Kind;
use aquifer_sim::replay::workload::Workload;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::client::Global;
use crate::output::{Failure, Output};
use report::{Report, Variant};

/// Replay a workload under several policies, in virtual time
///
/// The policy `ours` is the scheduler of this pool: the code of its server, fed by the same events. The others are
/// published baselines. Every decision of every run is verified: a run that gives anything out twice has no result.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aquifer simulate --synthetic 50x5000 --mode replay
  aquifer simulate --history 30d --mode replay --add 8xh200
  aquifer simulate --nodes nodes.csv --jobs jobs.csv --mode replay --add 8xh200
  aquifer simulate --trace openb:traces/openb:default --policy ours,fgd,best-fit --seeds 42-46 --plot fill.svg
  aquifer simulate --trace openb:traces/openb:default --mode churn --load 0.94 --seeds 1-3

docs/simulate.md explains the files, the policies and the figures.")]
pub struct Args {
    /// Nodes of our own format: a table or JSON
    #[arg(long, value_name = "FILE", requires = "jobs", conflicts_with_all = ["trace", "synthetic"])]
    pub nodes: Option<PathBuf>,
    /// Jobs of our own format: a table or JSON
    #[arg(long, value_name = "FILE", requires = "nodes")]
    pub jobs: Option<PathBuf>,
    /// A public trace: openb:DIRECTORY:LIST
    #[arg(long, value_name = "TRACE", conflicts_with = "synthetic")]
    pub trace: Option<String>,
    /// A workload from the first seed: NODESxJOBS
    #[arg(long, value_name = "SIZE", conflicts_with = "history")]
    pub synthetic: Option<String>,
    /// What this pool has had: its nodes, and the jobs that were submitted in the last so long (7d, 12h, all). The
    /// scheduler is asked for them
    #[arg(long, value_name = "TIME", conflicts_with_all = ["trace", "nodes"])]
    pub history: Option<String>,
    /// So many pools like this one, joined to one
    #[arg(long, value_name = "COPIES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub times: u32,
    /// Orders of arrival of a static fill: a directory with files LIST.SEED.txt. Default: shuffled by the seed
    #[arg(long, value_name = "DIR")]
    pub arrivals: Option<PathBuf>,
    /// Policies to compare
    #[arg(long, value_name = "POLICIES", value_delimiter = ',', default_value = "ours,fgd,best-fit")]
    pub policy: Vec<Kind>,
    /// Seeds of the arrivals: 42, 1,2,3 or 42-46
    #[arg(long, value_name = "SEEDS", default_value = "1")]
    pub seeds: String,
    /// static: nothing ends, what does not fit leaves. churn: jobs drawn from the trace come and go, and wait.
    /// replay: jobs at their own times, until all have ended
    #[arg(long, value_name = "MODE", default_value = "static", value_parser = ["static", "churn", "replay"])]
    pub mode: String,
    /// Devices asked for, as a part of all: by the end of a static fill, default 1.3; over time in churn, default 0.9
    #[arg(long, value_name = "LOAD", allow_hyphen_values = true)]
    pub load: Option<String>,
    /// Arrivals in churn, of which the first 40 % are not looked at
    #[arg(long, value_name = "JOBS", default_value_t = 400_000)]
    pub count: u32,
    /// What if there were more nodes: 8xh200 is one of eight devices, 4x8xh200:141GiB four. May be repeated
    #[arg(long, value_name = "NODES")]
    pub add: Vec<String>,
    /// What an hour of a device costs, MODEL=PRICE as in `aquifer prices set`; may be repeated. Only `ours` looks at it, and takes all
    /// devices as equally fast
    #[arg(long, value_name = "MODEL=PRICE", value_parser = price)]
    pub price: Vec<(String, u64)>,
    /// Measure how long decisions take. The output then differs from run to run
    #[arg(long)]
    pub timing: bool,
    /// Draw the runs of the first seed
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Write every decision of the first run of the first policy, as a table
    #[arg(long, value_name = "FILE.csv")]
    pub log: Option<PathBuf>,
    /// Write the workload of the first seed in our own format: nodes.csv and jobs.csv in this directory
    #[arg(long, value_name = "DIR")]
    pub write: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let output = Output::new(global.json, global.no_color);
    let mode = match &args.mode[..] {
        "churn" => Mode::Churn,
        "replay" => Mode::Replay,
        _ => Mode::Fill,
    };
    let seeds = source::seeds(&args.seeds)?;
    let mut base = source::base(args, global, seeds[0])?.times(args.times);
    base.prices = args.price.iter().map(|(model, milli)| (model.to_lowercase().into(), *milli)).collect();
    let mut report = Report::new(&args.mode, &base, &seeds);
    for (at, seed) in seeds.iter().enumerate() {
        let arrivals = source::arrivals(args, mode, &base, *seed)?;
        if let Some(directory) = args.write.as_ref().filter(|_| at == 0) {
            source::write(directory, &arrivals)?;
        }
        for variant in variants(args, arrivals)? {
            for kind in &args.policy {
                let run = simulate(args, mode, &variant.workload, *kind, *seed)?;
                if at == 0 && args.log.is_some() && report.is_empty() {
                    write_log(args, &variant.workload, &run)?;
                }
                report.add(&variant, mode, &run, at == 0 && args.plot.is_some());
            }
        }
    }
    if let Some(path) = &args.plot {
        let svg = report.picture(mode);
        std::fs::write(path, svg).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    match output.json {
        true => output.document(&report),
        false => output.text(report.text(&output)),
    }
    Ok(())
}

fn price(text: &str) -> Result<(String, u64), String> {
    let (model, price) = text.split_once('=').ok_or("expected MODEL=PRICE, like h100=2.5")?;
    match crate::prices::price(price)?.0.filter(|_| !model.is_empty()) {
        Some(milli) => Ok((model.into(), milli)),
        None => Err("expected MODEL=PRICE, like h100=2.5".into()),
    }
}

/// The workload as it is, and with what might be bought.
fn variants(args: &Args, arrivals: Workload) -> Result<Vec<Variant>> {
    if args.add.is_empty() {
        return Ok(vec![Variant { added: String::new(), workload: arrivals }]);
    }
    let mut larger = arrivals.clone();
    for text in &args.add {
        source::add(&mut larger, text).map_err(|why| Failure::usage(format!("--add {text:?}: {why}"), ""))?;
    }
    let added = format!("+{}", args.add.join("+"));
    Ok(vec![Variant { added: String::new(), workload: arrivals }, Variant { added, workload: larger }])
}

fn simulate(args: &Args, mode: Mode, workload: &Workload, kind: Kind, seed: u64) -> Result<Run> {
    let bar = ProgressBar::new(workload.jobs.len() as u64);
    let style = ProgressStyle::with_template("{msg:24} {bar:32} {human_pos:>9}/{human_len} arrivals");
    bar.set_style(style.expect("a template"));
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar.set_message(format!("{kind}, seed {seed}"));
    let progress = |done| bar.set_position(done);
    let clock: Option<fn() -> u64> = if args.timing { Some(nanoseconds) } else { None };
    let run = compare::run(workload, kind, mode, seed, &Watch { clock, progress: Some(&progress) });
    bar.finish_and_clear();
    Ok(run?)
}

/// Since the first call.
pub(crate) fn nanoseconds() -> u64 {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

fn write_log(args: &Args, workload: &Workload, run: &Run) -> Result<()> {
    let Some(path) = &args.log else { return Ok(()) };
    let text = run.log.csv(workload);
    std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}
