//! `members.json`: who takes part in a job whose workers may come and go, in the run directory of each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use aquifer_core::{JobId, Members, WorkerId};
use serde::Serialize;

use crate::json;
use crate::run_dir::{RunDir, RunDirs};

/// What was last told, by job and attempt.
#[derive(Debug, Default)]
pub struct Told(BTreeMap<(JobId, u32), Arc<Members>>);

#[derive(Serialize)]
struct File {
    epoch: u32,
    members: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    rank: u32,
    address: String,
}

impl Told {
    /// Tells `workers` on this node of a list, unless they know it or a newer one.
    pub fn tell<'a>(
        &mut self,
        members: Arc<Members>,
        workers: impl Iterator<Item = &'a WorkerId>,
        dirs: &RunDirs,
    ) {
        let job = (members.job, members.attempt);
        if self.0.get(&job).is_some_and(|known| members.epoch <= known.epoch) {
            return;
        }
        for worker in workers.filter(|it| (it.job, it.attempt) == job) {
            if let Err(error) = write(&dirs.of(*worker), &members) {
                tracing::error!("cannot tell {worker} who takes part: {error}");
            }
        }
        self.0.insert(job, members);
    }

    /// Tells a worker that is about to be started.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written.
    pub fn greet(&self, worker: WorkerId, dir: &RunDir) -> io::Result<()> {
        let Some(members) = self.0.get(&(worker.job, worker.attempt)) else { return Ok(()) };
        dir.create()?;
        write(dir, members)
    }

    /// Forgets all but these jobs and attempts.
    pub fn keep(&mut self, jobs: &BTreeSet<(JobId, u32)>) {
        self.0.retain(|job, _| jobs.contains(job));
    }
}

fn write(dir: &RunDir, members: &Members) -> io::Result<()> {
    let entry = |member: &aquifer_core::Member| {
        let (host, port) = &member.address;
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_string() };
        Entry { rank: member.rank, address: format!("{host}:{port}") }
    };
    let file = File { epoch: members.epoch, members: members.members.iter().map(entry).collect() };
    dir.give("members.json", &json::bytes(&file)?)
}
