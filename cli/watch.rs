//! `aquifer watch`: what happens, as it happens.

use std::process::ExitCode;

use anyhow::Result;
use aquifer_proto::core::JobId;
use aquifer_proto::v1;

use crate::Session;
use crate::client::{Backoff, is_lost, obey};
use crate::output::{Color, Output, aside, printable};
use crate::{units, view};

/// Print what happens in the pool, line by line, until Ctrl-C
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer watch --job job-7

A lost connection is taken up again after the last line that was printed.")]
pub struct Args {
    /// Only what happens to this job. Default: all
    #[arg(long, value_name = "JOB")]
    pub job: Option<JobId>,
    /// Only what happens to this node. Default: all
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
}

/// Runs the command.
pub async fn run(args: Args, session: &Session) -> Result<ExitCode> {
    let (mut after_seq, mut backoff, mut lost) = (None, Backoff::default(), false);
    loop {
        let request = v1::WatchRequest {
            job: args.job.map(|job| job.0),
            node: args.node.clone().unwrap_or_default(),
            after_seq,
        };
        let status = match session.pool.client().watch(request).await {
            Ok(stream) => {
                if std::mem::take(&mut lost) {
                    aside("the connection is there again");
                }
                backoff.reset();
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(note)) => {
                            after_seq = Some(note.seq);
                            let view = view::Note::from(&note);
                            match session.output.json {
                                true => session.output.line(&view),
                                false => session.output.text(text(&view, &session.output)),
                            }
                        }
                        // A scheduler that goes down in order ends its streams.
                        Ok(None) => break None,
                        Err(status) => break Some(status),
                    }
                }
            }
            // At first there must be somebody.
            Err(status) if is_lost(&status) && after_seq.is_none() && !lost => {
                return Err(session.pool.failure(&status).into());
            }
            Err(status) => Some(status),
        };
        if let Some(status) = status {
            if obey(&status).await {
                continue;
            }
            if !is_lost(&status) {
                return Err(session.pool.failure(&status).into());
            }
        }
        if !std::mem::replace(&mut lost, true) {
            aside("the connection to the scheduler was lost; it is tried again");
        }
        backoff.pause().await;
    }
}

/// A note for people.
pub fn text(note: &view::Note, output: &Output) -> String {
    format!("{}  {}", output.paint(Color::Dim, &units::time(note.time_ms)), printable(&note.text))
}
