//! `stop.json`: a worker is to end, why, and until when. `stop-ack`: its answer that it need not be waited for.

use std::{fs, io};

use aquifer_core::{StopReason, WorkerId};
use serde::Serialize;

use crate::json;
use crate::run_dir::{RunDir, unix_ms};

#[derive(Serialize)]
struct Intent {
    id: String,
    reason: String,
    grace_s: f64,
    /// In seconds of Unix time.
    deadline: f64,
}

/// Tells a worker. What it is told first stands: an agent that takes over changes nothing.
///
/// To be called before it gets its signal, so that one that has seen either may answer.
///
/// # Errors
/// If the file cannot be written.
pub fn announce(dir: &RunDir, id: WorkerId, reason: StopReason, grace_ms: u64) -> io::Result<()> {
    if dir.stop_path().exists() {
        return Ok(());
    }
    // What it said before it was asked is no answer.
    let _ = fs::remove_file(dir.stop_ack_path());
    let intent = Intent {
        id: id.to_string(),
        reason: reason.to_string(),
        grace_s: grace_ms as f64 / 1000.0,
        deadline: unix_ms().saturating_add(grace_ms) as f64 / 1000.0,
    };
    dir.give("stop.json", &json::bytes(&intent)?)
}
