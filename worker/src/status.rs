//! `status.json`: what the worker tells whoever started it.

use crate::elastic::Spent;
use crate::serve::metrics::Work;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the file is replaced while nothing but numbers changes.
const INTERVAL: Duration = Duration::from_millis(250);

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Loading, or waiting for the other ranks.
    #[default]
    Starting,
    /// Training or serving.
    Running,
    /// Told to stop, or done; writes its last checkpoint or ends its last answers.
    Stopping,
}

/// The content of `status.json`. What is unknown or does not apply is left out of the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Status {
    /// Where the worker is in its life.
    pub state: State,
    /// Training: the group is formed. Serving: requests are answered.
    pub ready: bool,
    /// Training steps that are done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// Training steps in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_steps: Option<u64>,
    /// Mean loss of the last step, in nats a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Tokens that went through the model, over the last second or so: of all ranks for training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<f64>,
    /// Step of the newest checkpoint that is safely on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_step: Option<u64>,
    /// Training: where the time has gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spent: Option<Spent>,
    /// Base of the HTTP interface, such as `http://127.0.0.1:8000/v1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Serving: requests that are being answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<u64>,
    /// Serving: requests that wait for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u64>,
    /// Serving: the time to the first token that nine of ten requests of the last minute did not exceed, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<u64>,
    /// The same of half of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_p50_ms: Option<u64>,
    /// The same of 99 of 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_p99_ms: Option<u64>,
    /// Serving: the time from one token to the next that nine of ten did not exceed, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpot_ms: Option<u64>,
    /// Serving: seconds since a request last came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_s: Option<u64>,
    /// Serving: what it has done since its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
    /// One line for people.
    pub message: String,
}

/// Writes `status.json`, atomically and not too often.
pub struct StatusFile {
    path: Option<PathBuf>,
    written: Option<(Status, Instant)>,
    complained: bool,
}

impl StatusFile {
    /// Writes into `run_dir`, or nowhere.
    pub fn new(run_dir: Option<&Path>) -> StatusFile {
        StatusFile { path: run_dir.map(|dir| dir.join("status.json")), written: None, complained: false }
    }

    /// Replaces the file if it is time to, or if more than numbers changed. A run directory that cannot be
    /// written does not end the work: it is said once on stderr.
    pub fn update(&mut self, status: &Status) {
        let due = self.written.as_ref().is_none_or(|(old, at)| {
            let change = old.state != status.state
                || old.ready != status.ready
                || old.checkpoint_step != status.checkpoint_step
                || old.endpoint != status.endpoint;
            change || INTERVAL <= at.elapsed()
        });
        if due {
            self.flush(status);
        }
    }

    /// Replaces the file whatever the time, if anything changed.
    pub fn flush(&mut self, status: &Status) {
        let Some(path) = &self.path else { return };
        if self.written.as_ref().is_some_and(|(old, _)| old == status) {
            return;
        }
        self.written = Some((status.clone(), Instant::now()));
        if let Err(error) = replace(path, &serde_json::to_vec(status).expect("plain fields"))
            && !self.complained
        {
            self.complained = true;
            eprintln!("{}: {error}", path.display());
        }
    }
}

/// Readers see the old content or the new one, never a part. Not synced: after a crash of the machine there is
/// nobody whose status it would be.
fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("json.tmp");
    std::fs::write(&temporary, content)?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_left_out() {
        let status = Status { step: Some(3), message: "training".into(), ..Status::default() };
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(json, r#"{"state":"starting","ready":false,"step":3,"message":"training"}"#);
    }

    #[test]
    fn numbers_wait_for_their_interval_and_changes_of_state_do_not() {
        let dir = crate::testing::TempDir::new();
        let mut file = StatusFile::new(Some(dir.path()));
        let read = || std::fs::read_to_string(dir.path().join("status.json")).unwrap();
        file.update(&Status { step: Some(1), ..Status::default() });
        file.update(&Status { step: Some(2), ..Status::default() });
        assert!(read().contains(r#""step":1"#));
        file.update(&Status { step: Some(3), state: State::Running, ..Status::default() });
        assert!(read().contains(r#""step":3"#));
    }
}
