//! The worker's two commands by themselves, for trials and tests without the rest of Aquifer.

use aquifer_worker::{ServeArgs, TrainArgs, serve, train};
use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
enum Command {
    /// Train a model
    Train(TrainArgs),
    /// Serve a model
    Serve(ServeArgs),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Train(args) => train::main(args),
        Command::Serve(args) => serve::main(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}
