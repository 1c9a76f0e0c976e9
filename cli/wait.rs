//! Waiting for the end of jobs, through restarts of the scheduler.

use std::time::Duration;

use anyhow::Result;
use aquifer_proto::core::JobId;
use aquifer_proto::v1;

use crate::client::Patience;
use crate::output::Failure;
use crate::{Session, job, view};

/// Waits until a job has ended.
pub async fn ended(job: JobId, session: &Session) -> Result<v1::Job, Failure> {
    let mut pause = Pause::default();
    loop {
        let found = job::get(job, Patience::Endless, session).await?;
        if view::has_ended(found.state()) {
            return Ok(found);
        }
        pause.wait().await;
    }
}

/// Pauses between two questions: short at first, then a second.
#[derive(Default)]
pub struct Pause(u32);

impl Pause {
    /// Waits 50 ms, 100 ms, … 1 s.
    pub async fn wait(&mut self) {
        let ms = (50u64 << self.0.min(5)).min(1000);
        self.0 += 1;
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

/// `job-7 failed: rank 0 on node-1 exited with 3`.
pub fn sentence(job: &view::Job) -> String {
    match job.reason.starts_with(&job.state) || job.reason.starts_with("timed out") {
        true => format!("{} {}", job.id, job.reason),
        false if job.reason.is_empty() => format!("{} {}", job.id, job.state),
        false => format!("{} {}: {}", job.id, job.state, job.reason),
    }
}
