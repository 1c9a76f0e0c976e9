//! `aquifer worker`: the bundled worker, one rank of it.

use std::process::ExitCode;

use aquifer_worker::{
    MeasureArgs, ProbeArgs, ServeArgs, TrainArgs, WorkerError, measure, probe, serve, train,
};

use crate::output::aside;

/// Run one rank of the bundled worker, under an agent or by hand
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer worker train --data docs --steps 100 --checkpoint-dir /tmp/model
  aquifer worker serve --model /tmp/model")]
pub struct Args {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Mode {
    /// Train a transformer on text
    Train(TrainArgs),
    /// Answer requests with a trained model, over HTTP
    Serve(ServeArgs),
    /// Measure one core or card, and print the figures as a line of JSON
    Measure(MeasureArgs),
    /// Find out beside others whether this node computes and exchanges as it should
    Probe(ProbeArgs),
}

/// Runs the worker to its end.
pub fn run(args: Args) -> ExitCode {
    let ran: Result<(), WorkerError> = match args.mode {
        Mode::Train(args) => train::main(args),
        Mode::Serve(args) => serve::main(args),
        Mode::Measure(args) => measure::main(args),
        Mode::Probe(args) => probe::main(args),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            aside(format!("error: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}
