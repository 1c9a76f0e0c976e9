//! `aquifer cancel`.

use std::process::ExitCode;

use anyhow::Result;
use aquifer_proto::core::JobId;
use aquifer_proto::v1;
use serde::Serialize;

use crate::client::{Client, Patience};
use crate::output::Failure;
use crate::{Session, job, output, view, wait};

/// End jobs, whatever they are doing
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer cancel --wait job-7 job-8

What runs is stopped with its grace, and killed when that is over.")]
pub struct Args {
    /// The jobs: job-7, or 7
    #[arg(required = true, value_name = "JOB")]
    pub jobs: Vec<JobId>,
    /// With all other elements of their arrays
    #[arg(long)]
    pub array: bool,
    /// Return only when the jobs have ended
    #[arg(long)]
    pub wait: bool,
}

#[derive(Serialize)]
struct Cancelled {
    id: String,
    cancelled: u32,
}

/// Runs the command.
pub async fn run(args: Args, session: &Session) -> Result<ExitCode> {
    let (mut all, mut refused) = (Vec::new(), None::<Failure>);
    for job in &args.jobs {
        let request = v1::CancelRequest { job: job.0, whole_array: args.array };
        let cancel = async |mut client: Client| client.cancel(request).await;
        match session.pool.call(Patience::Long, cancel).await {
            Ok(answer) => {
                if !session.output.json {
                    session.output.text(match answer.cancelled {
                        0 => format!("{job} had ended"),
                        1 if !args.array => format!("{job} is told to end"),
                        count => format!("{count} jobs of the array of {job} are told to end"),
                    });
                }
                all.push(Cancelled { id: job.to_string(), cancelled: answer.cancelled });
            }
            Err(failure) if failure.exit == 3 => return Err(failure.into()),
            // The others are still to be cancelled; the last refusal is told by the exit.
            Err(failure) => {
                if let Some(earlier) = refused.replace(failure) {
                    output::aside(earlier);
                }
            }
        }
    }
    if session.output.json {
        session.output.document(&all);
    }
    if args.wait {
        for cancelled in &all {
            wait_for(cancelled.id.parse().expect("the id of a job"), args.array, session).await?;
        }
    }
    match refused {
        Some(failure) => Err(failure.into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

async fn wait_for(job: JobId, whole_array: bool, session: &Session) -> Result<()> {
    let mut ids = vec![job];
    if whole_array {
        let found = job::get(job, Patience::Endless, session).await?;
        let array = found.spec.as_ref().and_then(|spec| spec.array);
        if let (Some(range), Some(first)) = (array, found.array_first) {
            let count = u64::from(range.last.saturating_sub(range.first) / range.step.max(1)) + 1;
            ids = (first..first + count).map(JobId).collect();
        }
    }
    for id in ids {
        let job = view::Job::from(&wait::ended(id, session).await?);
        if !session.output.json {
            session.output.text(wait::sentence(&job));
        }
    }
    Ok(())
}
