//! The client half of the command line: arguments in, text out.
//!
//! Every command is one file with its arguments (`Args`), what it asks the scheduler (`run`) and what it prints:
//! pure functions from the structs of [`view`] to text, which `--json` prints as they are.

mod accept;
pub mod agent;
pub mod bench;
pub mod cancel;
pub mod chaos;
pub mod client;
pub mod completions;
pub mod dashboard;
pub mod debug;
pub mod demo;
pub mod devices;
pub mod doctor;
pub mod drain;
pub mod etcd;
pub mod exec;
pub mod explain;
pub mod explain_device;
mod figures;
pub mod flags;
mod front;
pub mod gateway;
pub mod job;
pub mod job_file;
pub mod jobs;
pub mod limits;
pub mod logs;
pub mod metrics;
pub mod nodes;
pub mod otlp;
pub mod output;
pub mod overview;
pub mod plan;
pub mod prices;
pub mod queues;
pub mod reservations;
pub mod run;
pub mod server;
pub mod servers;
pub mod services;
pub mod settings;
pub mod simulate;
pub mod store;
pub mod submit;
pub mod token;
pub mod trial;
pub mod units;
pub mod up;
pub mod usage;
pub mod view;
pub mod wait;
pub mod watch;
pub mod worker;

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use client::{Global, Pool};
use output::Output;

/// What every command works with.
#[derive(Clone, Debug)]
pub struct Session {
    /// The scheduler.
    pub pool: Pool,
    /// Standard output.
    pub output: Output,
}

/// Commands that ask a scheduler.
#[derive(Clone, Debug, clap::Subcommand)]
#[allow(missing_docs)]
pub enum Command {
    Run(Box<run::Args>),
    Submit(Box<submit::Args>),
    Jobs(jobs::Args),
    Job(job::Args),
    Logs(logs::Args),
    Cancel(cancel::Args),
    Exec(exec::Args),
    Explain(explain::Args),
    Plan(Box<plan::Args>),
    Nodes(nodes::ListArgs),
    Node(nodes::ShowArgs),
    Cordon(drain::CordonArgs),
    Drain(drain::DrainArgs),
    Uncordon(drain::UncordonArgs),
    Queues(queues::Args),
    Prices(prices::Args),
    Reserve(Box<reservations::ReserveArgs>),
    Reservations(reservations::ListArgs),
    Unreserve(reservations::UnreserveArgs),
    Overview(overview::Args),
    Services(services::Args),
    Usage(usage::Args),
    Watch(watch::Args),
    #[command(subcommand)]
    Store(Box<store::Command>),
    #[command(subcommand)]
    Debug(debug::Command),
    Devices(devices::Args),
    Doctor(doctor::Args),
    Token(token::Args),
    Completions(completions::Args),
    Man(completions::ManArgs),
}

/// Carries out a command. `cli` is the whole command line, for completions and manual pages.
///
/// # Errors
/// An [`output::Failure`] where the exit code is not 1.
pub fn run(command: Command, global: &Global, cli: clap::Command) -> Result<ExitCode> {
    let command = match command {
        Command::Completions(args) => return Ok(completions::run(&args, cli)),
        Command::Man(args) => return completions::man(&args, cli),
        Command::Store(command) => return store::run(&command, global),
        Command::Devices(args) => return devices::run(&args, global),
        Command::Doctor(args) => return doctor::run(&args, global),
        Command::Token(args) => return token::run(&args, global),
        command => command,
    };
    let output = Output::new(global.json, global.no_color);
    // One thread does: starting more would take longer than most commands.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("no runtime can be started")?.block_on(async {
        let session = &Session { pool: Pool::new(global)?, output };
        match command {
            Command::Run(args) => run::run(*args, session).await,
            Command::Submit(args) => submit::run(*args, session).await,
            Command::Jobs(args) => jobs::run(args, session).await,
            Command::Job(args) => job::run(args, session).await,
            Command::Logs(args) => logs::run(args, session).await,
            Command::Cancel(args) => cancel::run(args, session).await,
            Command::Exec(args) => exec::run(args, session).await,
            Command::Explain(args) => explain::run(args, session).await,
            Command::Plan(args) => plan::run(*args, session).await,
            Command::Nodes(_) => nodes::list(session).await,
            Command::Node(args) => nodes::show(args, session).await,
            Command::Cordon(args) => drain::cordon(args, session).await,
            Command::Drain(args) => drain::drain(args, session).await,
            Command::Uncordon(args) => drain::uncordon(args, session).await,
            Command::Queues(args) => queues::run(args, session).await,
            Command::Prices(args) => prices::run(args, session).await,
            Command::Reserve(args) => reservations::reserve(*args, session).await,
            Command::Reservations(_) => reservations::list(session).await,
            Command::Unreserve(args) => reservations::unreserve(args, session).await,
            Command::Overview(args) => overview::run(args, session).await,
            Command::Services(args) => services::run(args, session).await,
            Command::Usage(args) => usage::run(args, session).await,
            Command::Debug(command) => debug::run(command, global, session).await,
            Command::Watch(args) => watch::run(args, session).await,
            Command::Store(_)
            | Command::Token(_)
            | Command::Devices(_)
            | Command::Doctor(_)
            | Command::Completions(_)
            | Command::Man(_) => {
                unreachable!("they were run before")
            }
        }
    })
}

/// Milliseconds since the Unix epoch.
pub fn time_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
