//! `aquifer completions` and `aquifer man`: made from the same definition that reads the arguments.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap_complete::Shell;

use crate::output::{Failure, write_out};

/// Print completions for a shell
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer completions bash > ~/.local/share/bash-completion/completions/aquifer")]
pub struct Args {
    /// Which shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// Write manual pages into a directory
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer man ~/.local/share/man/man1")]
pub struct ManArgs {
    /// Directory; it is made if need be
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// Runs `aquifer completions`.
pub fn run(args: &Args, mut cli: clap::Command) -> ExitCode {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut cli, "aquifer", &mut text);
    write_out(&text);
    ExitCode::SUCCESS
}

/// Runs `aquifer man`.
pub fn man(args: &ManArgs, cli: clap::Command) -> Result<ExitCode> {
    let written = std::fs::create_dir_all(&args.dir).and_then(|()| clap_mangen::generate_to(cli, &args.dir));
    written.map_err(|error| {
        Failure::refused(format!("{}: {error}", args.dir.display()), "name a directory that you may write to")
    })?;
    Ok(ExitCode::SUCCESS)
}
