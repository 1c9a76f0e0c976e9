//! `aquifer`: one pool of compute, fed by every accelerator an organisation owns.

use std::process::ExitCode;

use aquifer_cli::client::Global;
use aquifer_cli::{agent, bench, chaos, dashboard, demo, gateway, output, server, simulate, up, worker};
use clap::{CommandFactory, Parser, Subcommand};

/// One pool of compute, fed by every accelerator an organisation owns
#[derive(Parser)]
#[command(name = "aquifer", version, propagate_version = true, subcommand_required = true)]
#[command(arg_required_else_help = true, disable_help_subcommand = false)]
#[command(after_help = "\
Exit codes: 0 done, 1 refused or the awaited job did not succeed, 2 wrong use, 3 no scheduler (or no etcd) answers, \
4 another scheduler has taken over from this one.")]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Client(aquifer_cli::Command),
    Up(up::Args),
    Demo(demo::Args),
    Chaos(chaos::Args),
    Server(Box<server::Args>),
    Agent(Box<agent::Args>),
    Gateway(gateway::Args),
    Dashboard(dashboard::Args),
    Worker(worker::Args),
    Simulate(Box<simulate::Args>),
    #[command(subcommand)]
    Bench(bench::Command),
}

fn main() -> ExitCode {
    // The supervisor of a worker is this program too, and so is what has a vendor's library, but they are nothing of the command
    // line: they must stay small and quick to start, the supervisor single-threaded.
    match std::env::args_os().nth(1).as_ref().and_then(|word| word.to_str()) {
        Some("supervise") => return aquifer_agent::supervise(),
        Some("ask-library") => return aquifer_agent::ask_library(),
        _ => (),
    }
    let Cli { global, command } = Cli::parse();
    let done = |done: Result<(), output::Failure>| done.map(|()| ExitCode::SUCCESS).map_err(Into::into);
    let done = match command {
        Command::Client(command) => aquifer_cli::run(command, &global, Cli::command()),
        Command::Up(args) => done(up::run(&args, &global)),
        Command::Demo(args) => demo::run(&args, &global).map(|()| ExitCode::SUCCESS),
        Command::Chaos(args) => chaos::run(&args, &global).map(|()| ExitCode::SUCCESS),
        Command::Server(args) => done(server::run(&args, &global)),
        Command::Agent(args) => done(agent::run(&args, &global)),
        Command::Gateway(args) => done(gateway::run(&args, &global)),
        Command::Dashboard(args) => done(dashboard::run(&args, &global)),
        Command::Bench(command) => bench::run(&command, &global).map(|()| ExitCode::SUCCESS),
        Command::Worker(args) => Ok(worker::run(args)),
        Command::Simulate(args) => simulate::run(&args, &global).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| output::tell(&error))
}
