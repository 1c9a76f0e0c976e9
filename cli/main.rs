//! `aquifer`: one pool of compute, fed by every accelerator an organisation owns.

use std::process::ExitCode;

use aquifer_cli::client::Global;
use aquifer_cli::output;
use clap::{CommandFactory, Parser, Subcommand};

// SLOT: `mod server; mod agent; mod worker; mod up; mod demo;`

/// One pool of compute, fed by every accelerator an organisation owns
#[derive(Parser)]
#[command(name = "aquifer", version, propagate_version = true, subcommand_required = true)]
#[command(arg_required_else_help = true, disable_help_subcommand = false)]
#[command(after_help = "\
Exit codes: 0 done, 1 refused or the awaited job did not succeed, 2 wrong use, 3 no scheduler answers.")]
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
    // SLOT: `Up(up::Args)`, `Demo(demo::Args)`, `Server(server::Args)`, `Agent(agent::Args)`, `Worker(worker::Args)`.
    // They build the runtime that they need; `global` is theirs as well.
}

fn main() -> ExitCode {
    // SLOT: the supervisor of a worker is this program too, but nothing of the command line: before anything else,
    // `if args_os().nth(1) is "supervise" { return aquifer_agent::supervisor::supervise(Path::new(&nth(2))) }`.
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Client(command) => aquifer_cli::run(command, &cli.global, Cli::command()),
    };
    done.unwrap_or_else(|error| output::tell(&error))
}
