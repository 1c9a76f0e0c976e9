//! Waiting for the end of jobs, through restarts of the scheduler.

use std::time::Duration;

use anyhow::Result;
use aquifer_proto::core::JobId;
use aquifer_proto::v1;
use tonic::{Response, Status, Streaming};

use crate::client::Patience;
use crate::output::Failure;
use crate::{Session, job, view};

/// Waits until a job has ended.
pub async fn ended(id: JobId, session: &Session) -> Result<v1::Job, Failure> {
    let mut job = job::get(id, Patience::Endless, session).await?;
    if view::has_ended(job.state()) {
        return Ok(job);
    }
    loop {
        // Whoever watches first and asks then misses nothing; without a watch, asking every second does.
        let request = v1::WatchRequest { job: Some(id.0), ..Default::default() };
        let notes = session.pool.client().watch(request).await.map(Response::into_inner);
        job = job::get(id, Patience::Endless, session).await?;
        if view::has_ended(job.state()) {
            return Ok(job);
        }
        _ = tokio::time::timeout(Duration::from_secs(1), done(notes)).await;
    }
}

/// Waits for the note that a job has ended, or for ever if there are no notes.
async fn done(notes: Result<Streaming<v1::Note>, Status>) {
    if let Ok(mut notes) = notes {
        while let Ok(Some(note)) = notes.message().await {
            if note.kind == "done" {
                return;
            }
        }
    }
    std::future::pending().await
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
