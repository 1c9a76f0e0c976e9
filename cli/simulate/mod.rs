//! `aquifer simulate`: a workload replayed under several policies, in virtual time.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aquifer_sim::replay::engine::{Mode, Watch};
use aquifer_sim::replay::policy::Kind;
use aquifer_sim::replay::workload::Workload;
use aquifer_sim::replay::{compare, metrics, openb, order};

use crate::client::Global;
use crate::output::{Output, Side, Table};

/// Replay a workload under several policies, in virtual time
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer simulate --trace openb:traces/openb:default --policy ours,fgd,best-fit")]
pub struct Args {
    /// A public trace: openb:DIRECTORY:LIST
    #[arg(long, value_name = "TRACE")]
    pub trace: String,
    /// Orders of arrival: a directory with files LIST.SEED.txt
    #[arg(long, value_name = "DIRECTORY")]
    pub arrivals: Option<PathBuf>,
    /// Policies to compare
    #[arg(long, value_name = "POLICIES", value_delimiter = ',', default_value = "ours,fgd")]
    pub policy: Vec<Kind>,
    /// Seeds of the arrivals
    #[arg(long, value_name = "SEEDS", value_delimiter = ',', default_value = "42")]
    pub seeds: Vec<u64>,
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    let output = Output::new(global.json, global.no_color);
    let columns = [
        ("POLICY", Side::Left),
        ("SEED", Side::Right),
        ("AT 90 %", Side::Right),
        ("AT 100 %", Side::Right),
        ("AT 130 %", Side::Right),
        ("MS", Side::Right),
    ];
    let mut table = Table::new(&columns);
    let Some((directory, list)) = args.trace.strip_prefix("openb:").and_then(|rest| rest.rsplit_once(':'))
    else {
        bail!("--trace {:?}: expected openb:DIRECTORY:LIST", args.trace);
    };
    let pods = openb::read(Path::new(directory), list)?;
    for seed in &args.seeds {
        let workload = arrivals(&pods, list, *seed, args)?;
        for kind in &args.policy {
            let begun = std::time::Instant::now();
            let run = compare::run(&workload, *kind, Mode::Fill, *seed, &Watch::default())?;
            let took = begun.elapsed().as_millis();
            let fill = metrics::fill(&workload, &run.log);
            let at = |demand| format!("{:.2}", fill.at(demand).unwrap_or(0.0));
            table.row([kind.to_string(), seed.to_string(), at(90), at(100), at(130), took.to_string()]);
        }
    }
    output.text(table.plain(&output));
    Ok(())
}

fn arrivals(pods: &Workload, list: &str, seed: u64, args: &Args) -> Result<Workload> {
    let Some(directory) = &args.arrivals else { return Ok(order::shuffled(pods, 1300, seed)) };
    let path = directory.join(format!("{list}.{seed}.txt"));
    let order = openb::read_arrivals(&path, pods).context("the order of arrivals")?;
    Ok(order::as_listed(pods, &order))
}
