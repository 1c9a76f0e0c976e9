//! `aquifer run`: a command on the pool as if it were here.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use aquifer_proto::core::JobId;
use aquifer_proto::v1;

use crate::client::{Client, Patience};
use crate::flags::{JobFlags, current_dir};
use crate::job_file::{Command, Context, FileError, Given, JobFile, Kind};
use crate::logs::{Printer, Reader};
use crate::output::{Failure, aside, write_out};
use crate::{Session, job, submit, view, wait};

/// How long an element of an array may have ended before that is told.
const LONGEST_LAG: Duration = Duration::from_millis(50);

/// Run a command on the pool, print what it prints, and wait for its end
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer run --devices 1 --class h200 --memory 20GiB -- python train.py --epochs 3

Exits with 0 if the job succeeded and with 1 if it did not. Ctrl-C cancels the job; a second one leaves at once.")]
pub struct Args {
    /// Only submit: do not wait, print the job's number
    #[arg(short, long)]
    pub detach: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub job: JobFlags,
    /// Program and its arguments; the program is looked up in the PATH of the node
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    pub command: Vec<String>,
}

/// Runs the command.
pub async fn run(args: Args, session: &Session) -> Result<ExitCode> {
    let base = current_dir()?;
    let mut file = JobFile {
        kind: Some(Given(Kind::Command)),
        command: Some(Command::Arguments(args.command)),
        working_dir: Some(base.to_string_lossy().into_owned()),
        ..JobFile::default()
    };
    args.job.apply(&mut file)?;
    if file.image.is_some() && args.job.working_dir.is_none() {
        file.working_dir = None; // The image says where its program runs.
    }
    let refused =
        |error: FileError| Failure::usage(error.to_string(), "`aquifer help run` tells what flags take");
    let context = Context { base, user: submit::user(), client_key: submit::key(&args.job) };
    let wire = file.spec(&context).map_err(refused)?;
    let ready = submit::prepare(wire, refused, session).await?;
    let sent = submit::send(&ready, None, session).await?;
    if args.detach {
        match session.output.json {
            true => session.output.document(&sent),
            false => submit::tell(&sent, session),
        }
        return Ok(ExitCode::SUCCESS);
    }
    // Standard output is the program's.
    aside(submit::sentence(&sent));
    let first: JobId = sent.id.parse().expect("the id of a job");
    let is_array = ready.spec.array.is_some();
    let follow = async {
        match is_array {
            true => follow_array(first, sent.count, session).await,
            false => follow(first, session).await,
        }
    };
    tokio::select! {
        ended = follow => ended,
        left = interrupts(first, is_array, session) => left,
    }
}

async fn follow(id: JobId, session: &Session) -> Result<ExitCode> {
    let placeholder = job::get(id, Patience::Long, session).await?;
    let mut printer = Printer::new(&placeholder, None, session.output);
    let mut reader = Reader { job: id, rank: None, attempt: None, positions: Default::default() };
    let logs = async {
        let read = reader.all(true, session, &mut |chunk| write_out(&printer.chunk(chunk))).await;
        write_out(&printer.rest());
        if let Err(failure) = read {
            aside(format!("the logs cannot be read: {failure}"));
        }
        wait::ended(id, session).await
    };
    let job = tokio::select! {
        job = logs => job?,
        failure = narrate(id, session) => return Err(failure.into()),
    };
    let job = view::Job::from(&job);
    if session.output.json {
        session.output.line(&job);
    }
    Ok(exit(&job, session))
}

/// Tells what the job waits for, whenever that changes. Returns only when it cannot ask any more.
async fn narrate(id: JobId, session: &Session) -> Failure {
    let mut told = String::new();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let job = match job::get(id, Patience::Endless, session).await {
            Ok(job) => job,
            Err(failure) => return failure,
        };
        let says = match job.state() {
            v1::JobState::Pending => format!("{id} {}", job.reason),
            _ => String::new(),
        };
        if says != told && !says.is_empty() {
            aside(&says);
        }
        told = says;
    }
}

/// Waits for all elements of an array, and tells how each of them ended.
async fn follow_array(first: JobId, count: u32, session: &Session) -> Result<ExitCode> {
    let (mut next, end) = (first.0, first.0 + u64::from(count.max(1)));
    let mut failed = 0;
    while next < end {
        let mut ended = vec![wait::ended(JobId(next), session).await?];
        // Where hundreds end in a second, they are asked about together.
        tokio::time::sleep(LONGEST_LAG.min(Duration::from_millis(next - first.0))).await;
        ended.extend(ended_from(next + 1, end, session).await?);
        next += ended.len() as u64;
        for job in ended.iter().map(view::Job::from) {
            failed += u32::from(job.state != "succeeded");
            match session.output.json {
                true => session.output.line(&job),
                false => session.output.text(wait::sentence(&job)),
            }
        }
    }
    if failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let next = format!(
        "`aquifer logs JOB` prints what one of them said, `aquifer job JOB` how it ended; first: {first}"
    );
    Err(Failure::refused(format!("{failed} of {count} jobs did not succeed"), next).into())
}

/// The jobs from `next` on, before `end`, up to the first that has not ended; 256 at most.
async fn ended_from(next: u64, end: u64, session: &Session) -> Result<Vec<v1::Job>> {
    let page_size = 256.min(end - next) as u32;
    if page_size == 0 {
        return Ok(Vec::new());
    }
    let page_token = (next + u64::from(page_size)).to_string();
    let request =
        v1::ListRequest { states: view::ended_states(), page_size, page_token, ..Default::default() };
    let list = async |mut client: Client| client.list(request.clone()).await;
    let mut jobs = session.pool.call(Patience::Endless, list).await?.jobs;
    jobs.reverse();
    let jobs = jobs.into_iter().skip_while(|job| job.id < next).zip(next..);
    Ok(jobs.take_while(|(job, id)| job.id == *id).map(|(job, _)| job).collect())
}

fn exit(job: &view::Job, session: &Session) -> ExitCode {
    if job.state == "succeeded" {
        return ExitCode::SUCCESS;
    }
    aside(wait::sentence(job));
    if session.output.hints {
        aside(format!("  `aquifer job {}` tells more", job.id));
    }
    ExitCode::from(1)
}

/// The first Ctrl-C cancels the job, the second leaves.
async fn interrupts(first: JobId, is_array: bool, session: &Session) -> Result<ExitCode> {
    tokio::signal::ctrl_c().await?;
    aside(format!("cancelling {first}; Ctrl-C again leaves at once"));
    let request = v1::CancelRequest { job: first.0, whole_array: is_array };
    let cancel = async |mut client: Client| client.cancel(request).await;
    tokio::select! {
        // What follows is told by the job itself.
        cancelled = session.pool.call(Patience::Endless, cancel) => cancelled?,
        _ = tokio::signal::ctrl_c() => return Ok(ExitCode::from(1)),
    };
    tokio::signal::ctrl_c().await?;
    Ok(ExitCode::from(1))
}
