//! `aquifer submit`, and what `run` and `plan` share with it.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io};

use anyhow::Result;
use aquifer_proto::{core, v1};

use crate::Session;
use crate::client::{Patience, random_key};
use crate::flags::{JobFlags, current_dir};
use crate::job_file::{self, Context, FileError, JobFile};
use crate::output::Failure;
use crate::view;

/// Queue jobs that are described in files
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer submit train.yaml --ranks 4 --set train.steps=400

All files are checked before the first is sent. Flags and --set win over what the file says; --set is applied
first. A lost connection is tried again with the same key, so that nothing is queued twice.
Keys of a job file: docs/job-file.md.")]
pub struct Args {
    /// Job files; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<String>,
    /// Replace a value of the file: train.steps=400, roles.0.ranks=2. May be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Only check the files, and print what would be asked for with all defaults written out
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub job: JobFlags,
}

/// A job that can be sent.
pub struct Ready {
    /// As it is sent.
    pub wire: v1::JobSpec,
    /// As the scheduler will understand it.
    pub spec: core::JobSpec,
}

/// Runs the command.
pub async fn run(args: Args, session: &Session) -> Result<ExitCode> {
    if args.job.key.is_some() && 1 < args.files.len() {
        let next = "submit the files one by one, or leave --key out";
        return Err(Failure::usage("--key stands for one job, and several files are given", next).into());
    }
    let mut ready = Vec::new();
    for file in &args.files {
        ready.push(read(file, &args.sets, &args.job, session).await?);
    }
    if args.dry_run {
        show(&ready, session);
        return Ok(ExitCode::SUCCESS);
    }
    let mut submitted = Vec::new();
    for (file, ready) in args.files.iter().zip(&ready) {
        let sent = send(ready, Some(file.clone()), session).await;
        if sent.is_err() && session.output.json {
            // Those before it are queued, and that must be told whatever happened to this one.
            session.output.document(&submitted);
        }
        let sent = sent?;
        if !session.output.json {
            tell(&sent, session);
        }
        submitted.push(sent);
    }
    if session.output.json {
        session.output.document(&submitted);
    }
    Ok(ExitCode::SUCCESS)
}

fn show(ready: &[Ready], session: &Session) {
    if session.output.json {
        let views: Vec<view::Spec> = ready.iter().map(|ready| view::Spec::from(&ready.spec)).collect();
        session.output.document(&views);
        return;
    }
    let texts: Vec<String> = ready.iter().map(|ready| job_file::file_of(&ready.spec).text()).collect();
    session.output.text(texts.join("---\n").trim_end());
}

/// Reads a job file, puts flags over it and checks it.
pub async fn read(file: &str, sets: &[String], flags: &JobFlags, session: &Session) -> Result<Ready> {
    let name = if file == "-" { "standard input" } else { file };
    let refused = |error: FileError| {
        let next = "docs/job-file.md has every key with its limits; `aquifer submit --dry-run` checks without sending";
        let separator = if error.line.is_some() { ", " } else { ": " };
        Failure::refused(format!("{name}{separator}{error}"), next)
    };
    let (text, base) = match file {
        "-" => {
            let mut bytes = Vec::new();
            let most = job_file::MAX_FILE as u64 + 1;
            let read = io::stdin().lock().take(most).read_to_end(&mut bytes);
            read.map_err(|error| Failure::refused(format!("{name}: {error}"), "pipe a job file into it"))?;
            (bytes, current_dir()?)
        }
        file => {
            let read = fs::read(file);
            let bytes =
                read.map_err(|error| Failure::refused(format!("{file}: {error}"), "name a job file"))?;
            let parent = Path::new(file).parent().unwrap_or(Path::new(""));
            (bytes, current_dir()?.join(parent))
        }
    };
    let text = String::from_utf8(text).map_err(|error| {
        let line =
            1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        refused(FileError { line: Some(line), text: "the file is not UTF-8".into() })
    })?;
    let mut file = JobFile::parse(&text, sets).map_err(refused)?;
    flags.apply(&mut file)?;
    let context = Context { base, user: user(), client_key: key(flags) };
    let wire = file.spec(&context).map_err(refused)?;
    prepare(wire, refused, session).await
}

/// Finds the jobs that are named where directories are wanted, and checks the whole.
pub async fn prepare(
    mut wire: v1::JobSpec,
    refused: impl Fn(FileError) -> Failure,
    session: &Session,
) -> Result<Ready> {
    for job in job_file::unresolved(&wire) {
        let request = v1::GetRequest { job: job.0 };
        let get = async |mut client: crate::client::Client| client.get(request).await;
        let found = session.pool.call(Patience::Short, get).await?;
        if found.checkpoint_dir.is_empty() {
            let sentence =
                format!("serve.model is {job}, which has no directory for checkpoints that others can read");
            let next = "give that job a checkpoint_dir, or name the directory of a model";
            return Err(Failure::refused(sentence, next).into());
        }
        job_file::resolve(&mut wire, job, &found.checkpoint_dir);
    }
    let spec = job_file::check(&wire).map_err(refused)?;
    Ok(Ready { wire, spec })
}

/// Sends a job; again with the same key if the connection was lost.
pub async fn send(ready: &Ready, file: Option<String>, session: &Session) -> Result<view::Submitted> {
    let request = v1::SubmitRequest { spec: Some(ready.wire.clone()) };
    let submit = async |mut client: crate::client::Client| client.submit(request.clone()).await;
    let answer = session.pool.call(Patience::Long, submit).await?;
    Ok(view::Submitted {
        id: view::job_id(answer.job),
        count: answer.count,
        repeated: answer.repeated_request,
        client_key: ready.wire.client_key.clone(),
        name: ready.spec.name.to_string(),
        file,
    })
}

/// One sentence on what was queued, and what to do next.
pub fn tell(sent: &view::Submitted, session: &Session) {
    session.output.text(sentence(sent));
    let id = &sent.id;
    session
        .output
        .hint(format!("`aquifer logs -f {id}` follows it, `aquifer explain {id}` says why it waits"));
}

/// `job-7 queued`.
pub fn sentence(sent: &view::Submitted) -> String {
    let first: core::JobId = sent.id.parse().expect("the id of a job");
    let which = match sent.count {
        0 | 1 => sent.id.clone(),
        count => format!("{first} to {}", core::JobId(first.0 + u64::from(count) - 1)),
    };
    match sent.repeated {
        true => format!("{which} was queued by an earlier request with this key"),
        false => format!("{which} queued"),
    }
}

/// Key that was chosen, or a random one.
pub fn key(flags: &JobFlags) -> String {
    flags.key.clone().unwrap_or_else(random_key)
}

/// Who submits: as the environment says, as the account is called, or its number if it has no name.
pub fn user() -> String {
    let named =
        ["USER", "LOGNAME"].iter().find_map(|name| env::var(name).ok().filter(|user| !user.is_empty()));
    let uid = nix::unistd::getuid();
    let account = || nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
    named.or_else(account).unwrap_or_else(|| format!("uid-{uid}"))
}
