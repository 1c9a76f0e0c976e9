//! What a container leaves behind, and how it ended.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use aquifer_core::Exit;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::engine::run;
use crate::said;

/// Between two tries to remove a container, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Codes with which a client says that it, or its engine, could not do what was asked. The program may have used them.
const CODES_OF_ENGINE: std::ops::RangeInclusive<i32> = 125..=127;

/// A container of a run that has begun: kept in `spec.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Left {
    pub program: PathBuf,
    pub name: String,
    pub memory_bytes: u64,
}

/// How the container of a client ended.
pub(crate) enum Outcome {
    Exit(Exit),
    /// Its program never ran.
    NotStarted,
}

impl Left {
    /// Removes the container, with what runs in it, and tries until it is gone: what may run unseen must not run.
    pub fn remove(&self) {
        let mut pause = Duration::from_millis(100);
        while let Err(why) = self.try_remove() {
            eprintln!("aquifer: container {} cannot be removed: {why}", self.name);
            thread::sleep(pause);
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// Tries once.
    ///
    /// # Errors
    /// With the last line that the engine said.
    pub fn try_remove(&self) -> Result<(), String> {
        if !self.program.exists() {
            return Ok(()); // Whoever took the engine away has taken its containers with it.
        }
        match run(&self.program, &["rm", "--force", "--volumes", &self.name]) {
            Err(why) if !is_gone(&why) => Err(why),
            _ => Ok(()),
        }
    }

    /// What the exit code of a client means, to be asked before the container is removed.
    pub fn outcome(&self, code: i32) -> Outcome {
        let signal = (129..=128 + 64).contains(&code).then(|| Exit::Signal(code - 128));
        if !CODES_OF_ENGINE.contains(&code) && signal != Some(Exit::Signal(9)) {
            return Outcome::Exit(signal.unwrap_or(Exit::Code(code)));
        }
        let told = run(
            &self.program,
            &["inspect", "--type", "container", "--format", "{{json .State}}", &self.name],
        );
        let state: Option<Value> = told.ok().and_then(|told| serde_json::from_str(&told).ok());
        let of = |key: &str| state.as_ref().and_then(|state| state.get(key));
        let started = of("StartedAt").and_then(Value::as_str).is_some_and(|at| !at.starts_with("0001-"));
        if of("OOMKilled").and_then(Value::as_bool) == Some(true) {
            let mib = self.memory_bytes >> 20;
            return Outcome::Exit(Exit::Failed(format!("out of memory: it may use {mib} MiB").into()));
        }
        match (started, signal) {
            (false, None) => Outcome::NotStarted,
            (_, signal) => Outcome::Exit(signal.unwrap_or(Exit::Code(code))),
        }
    }
}

fn is_gone(why: &str) -> bool {
    let why = why.to_lowercase();
    why.contains("no such container") || why.contains("no container with")
}

/// The last line of a log, for people.
pub(crate) fn last_line(log: &Path) -> String {
    let text = crate::run_dir::tail(log, 4096);
    let line = said::last_line(&text).unwrap_or("it says nothing");
    line.chars().filter(|c| !c.is_control()).take(300).collect()
}
