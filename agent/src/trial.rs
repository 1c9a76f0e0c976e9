//! Programs that are run for their answer beside everything else: what they said stays whoever ended them, and they are gone when
//! somebody needs their place.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};

use crate::said::{last_line, memory_file, read};

/// Exit code of a program that could not do now what was asked, which says nothing of what it was asked about: `EX_TEMPFAIL` of
/// `sysexits.h`.
pub(crate) const LATER: i32 = 75;

/// How a program ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// By itself, or because it took too long: what it said, and what is wrong with that end.
    Over { said: String, trouble: Option<Trouble> },
    /// It could not be started.
    NotStarted(io::Error),
    /// Somebody needed its place.
    Stopped,
}

/// What was wrong.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// Its exit code, if it has one.
    pub code: Option<i32>,
    /// For people.
    pub what: String,
}

/// Runs a command to its end, or until `patience` is over or `stop` is there. Its process is gone then, unless it hangs in a
/// driver: that is waited for no longer than makes sense.
pub(crate) async fn run(mut command: Command, patience: Duration, stop: impl Future<Output = ()>) -> Ended {
    // Files instead of pipes: what was said is there, whoever ended it.
    let start = || {
        let (out, complaints) = (memory_file()?, memory_file()?);
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(complaints.try_clone()?);
        io::Result::Ok((command.kill_on_drop(true).spawn()?, out, complaints))
    };
    let (mut child, out, complaints) = match { start }() {
        Ok(started) => started,
        Err(error) => return Ended::NotStarted(error),
    };
    let ended = tokio::select! {
        status = child.wait() => Some(status),
        () = tokio::time::sleep(patience) => None,
        () = stop => {
            end(&mut child).await;
            return Ended::Stopped;
        }
    };
    let trouble = match ended {
        None => {
            end(&mut child).await;
            let what = format!("it took longer than {} s", patience.as_secs());
            Some(Trouble { code: None, what })
        }
        Some(Err(error)) => Some(Trouble { code: None, what: error.to_string() }),
        Some(Ok(status)) => complaint(status, &read(&complaints)),
    };
    Ended::Over { said: read(&out), trouble }
}

fn complaint(status: ExitStatus, said: &str) -> Option<Trouble> {
    let line = last_line(said).map(|line| line.strip_prefix("error: ").unwrap_or(line));
    let what = || line.map_or_else(|| status.to_string(), |line| line.chars().take(300).collect());
    (!status.success()).then(|| Trouble { code: status.code(), what: what() })
}

async fn end(child: &mut Child) {
    _ = tokio::time::timeout(Duration::from_secs(2), child.kill()).await;
}
