//! `aquifer token`: a token of a user's own.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use aquifer_proto::border;
use aquifer_scheduler::callers::{User, Users, line};
use serde::Serialize;

use crate::client::{Global, random_token};
use crate::output::{Failure, Output};

/// Make a token for a user, whose jobs then are in that name
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer token ada --users /etc/aquifer/users > ada.token
  aquifer server --users /etc/aquifer/users …

The token is printed once; the file has its SHA-256 alone. A scheduler that runs reads the file again by itself. Who has several lines has
several tokens: a new one is given out before the line of the old one is taken out.")]
pub struct Args {
    /// Name of the user: letters, digits, '.', '_', '-'. Where agents run workers as the users of their jobs, a name that nodes
    /// know
    #[arg(value_name = "NAME")]
    pub name: String,
    /// File of `aquifer server --users`, to which a line is added
    #[arg(long, value_name = "FILE")]
    pub users: PathBuf,
    /// They may change nodes, queues, reservations, and jobs of others
    #[arg(long)]
    pub admin: bool,
}

/// What was made.
#[derive(Serialize)]
struct Made<'a> {
    user: &'a str,
    admin: bool,
    token: &'a str,
}

/// Makes the token.
///
/// # Errors
/// The name is none, or the file cannot be read or written.
pub fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let output = Output::new(global.json, global.no_color);
    let next = "Choose another name.";
    let name = border::name("NAME", &args.name).map_err(|error| Failure::usage(error.to_string(), next))?;
    let file = args.users.display();
    if args.users.exists() {
        let next = "Correct it first: the scheduler cannot use it either.";
        Users::open(args.users.clone()).map_err(|error| Failure::refused(error.to_string(), next))?;
    }
    let (user, token) = (User { name, is_admin: args.admin }, random_token());
    let written =
        OpenOptions::new().create(true).append(true).mode(0o600).open(&args.users).and_then(|mut to| {
            to.write_all(line(&user, &token).as_bytes())?;
            to.sync_all()
        });
    written
        .map_err(|error| Failure::refused(format!("{file}: {error}"), "Name a file that can be written."))?;
    match global.json {
        true => output.document(&Made { user: &user.name, admin: user.is_admin, token: &token }),
        false => output.text(&token),
    }
    output.hint(format!("{} puts it into AQUIFER_TOKEN, or into a file for --token-file", user.name));
    Ok(ExitCode::SUCCESS)
}
