//! What workers print: asked of the agents piece by piece, so that nothing is kept here and a slow reader
//! holds nobody up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aquifer_core::jobs::{Job, Phase};
use aquifer_core::{Cluster, JobId, RankState, WorkerId};
use aquifer_proto::{v1, wire};
use tokio::sync::mpsc;
use tonic::Status;

use super::past;
use super::pool::unavailable;
use crate::runtime::Runtime;

/// Bytes of one piece.
const PIECE: u32 = 64 << 10;
/// How long an agent waits for more before it says that there is nothing.
const WAIT_MS: u32 = 5_000;
/// How long to leave an agent alone that did not answer.
const PAUSE: Duration = Duration::from_millis(500);

pub type Sink = mpsc::Sender<Result<v1::LogChunk, Status>>;

/// Where a job's logs are.
struct Sources {
    attempt: u32,
    /// Names of the nodes, by rank.
    nodes: Vec<String>,
    /// Ranks that may still print.
    alive: Vec<bool>,
    done: bool,
}

/// Sends what the workers of a job print, all ranks at once, until there is nothing more to come.
pub async fn stream(runtime: Runtime, request: v1::LogsRequest, sink: Sink) {
    let job = JobId(request.job);
    let mut from: BTreeMap<(u32, u32), u64> =
        request.from.iter().map(|at| ((at.attempt, at.rank), at.offset)).collect();
    let mut last_read = None;
    loop {
        let sources = match sources(&runtime, job).await {
            Ok(sources) => sources,
            Err(status) => {
                _ = sink.send(Err(status)).await;
                return;
            }
        };
        let attempt = request.attempt.unwrap_or(sources.attempt);
        let ranks =
            (0..sources.nodes.len() as u32).filter(|rank| request.rank.is_none_or(|one| one == *rank));
        if attempt == 0 || last_read == Some(attempt) {
            // Nothing is placed yet, or the next attempt is not.
            if !request.follow || sources.done || request.attempt.is_some() {
                return;
            }
            changed(&runtime, job, sources.attempt).await;
            continue;
        }
        let mut readers = tokio::task::JoinSet::new();
        for rank in ranks {
            let worker = WorkerId { job, attempt, rank };
            let offset = from.get(&(attempt, rank)).copied().unwrap_or(0);
            let node = sources.nodes[rank as usize].clone();
            let follow = request.follow && (sources.alive[rank as usize] || attempt != sources.attempt);
            readers.spawn(read_rank(runtime.clone(), worker, node, offset, follow, sink.clone()));
        }
        while let Some(read) = readers.join_next().await {
            let Ok(Some((rank, offset))) = read else { return };
            from.insert((attempt, rank), offset);
        }
        if !request.follow {
            return;
        }
        last_read = Some(attempt);
    }
}

/// Waits until the job has another attempt, or has ended.
async fn changed(runtime: &Runtime, job: JobId, attempt: u32) {
    let mut notes = runtime.shared.notes.subscribe();
    loop {
        match sources(runtime, job).await {
            Ok(sources) if sources.attempt == attempt && !sources.done => (),
            Ok(_) | Err(_) => return,
        }
        if notes.changed().await.is_err() {
            return;
        }
    }
}

async fn sources(runtime: &Runtime, id: JobId) -> Result<Sources, Status> {
    let of = |cluster: &Cluster, job: &Job| {
        let living = job.ranks.iter().filter(|rank| rank.worker != RankState::Gone).map(|rank| rank.rank);
        let living: BTreeSet<u32> = living.collect();
        Sources {
            attempt: job.attempt,
            nodes: job.last_nodes.iter().map(|node| cluster.nodes().get(*node).name.to_string()).collect(),
            alive: (0..job.last_nodes.len() as u32).map(|rank| living.contains(&rank)).collect(),
            done: matches!(job.phase, Phase::Done(_)),
        }
    };
    let sources = runtime.query(move |cluster| Some(of(cluster, cluster.jobs().get(id)?)));
    if let Some(sources) = sources.await.map_err(unavailable)? {
        return Ok(sources);
    }
    let job = past::job(runtime, id).await?;
    let job = job.ok_or_else(|| Status::not_found(format!("there is no {id}")))?;
    runtime.query(move |cluster| of(cluster, &job)).await.map_err(unavailable)
}

/// Reads one rank to its end; `None` when the reader has left.
async fn read_rank(
    runtime: Runtime,
    worker: WorkerId,
    node: String,
    mut offset: u64,
    follow: bool,
    sink: Sink,
) -> Option<(u32, u64)> {
    let (attempt, rank) = (worker.attempt, worker.rank);
    let chunk = |offset, data, unavailable| v1::LogChunk { attempt, rank, offset, data, unavailable };
    loop {
        let wait_ms = if follow { WAIT_MS } else { 0 };
        let question =
            v1::LogQuestion { id: 0, worker: Some(wire::worker(worker)), offset, max_bytes: PIECE, wait_ms };
        let answer = match runtime.shared.session(&node) {
            Some(session) => session.ask_log(question).await,
            None => None,
        };
        match answer {
            None if !follow => {
                let why = format!("the agent of {node} does not answer");
                sink.send(Ok(chunk(offset, Vec::new(), why))).await.ok()?;
                return Some((rank, offset));
            }
            None => tokio::time::sleep(PAUSE).await,
            // The agent has not yet been told of the worker.
            Some(answer) if !answer.unavailable.is_empty() && is_to_come(&runtime, worker).await => {
                if !follow {
                    return Some((rank, offset));
                }
                tokio::time::sleep(PAUSE).await;
            }
            Some(answer) if !answer.unavailable.is_empty() => {
                sink.send(Ok(chunk(offset, Vec::new(), answer.unavailable))).await.ok()?;
                return Some((rank, offset));
            }
            Some(answer) => {
                let read = answer.data.len() as u64;
                offset = offset.saturating_add(answer.skipped);
                if 0 < read {
                    sink.send(Ok(chunk(offset, answer.data, String::new()))).await.ok()?;
                    offset += read;
                } else if answer.ended || !follow {
                    return Some((rank, offset));
                }
            }
        }
        if sink.is_closed() {
            return None;
        }
    }
}

/// Whether a worker is assigned, but its agent has not reported it.
async fn is_to_come(runtime: &Runtime, worker: WorkerId) -> bool {
    let is_to_come = runtime.query(move |cluster| {
        let job = cluster.jobs().get(worker.job).filter(|job| job.attempt == worker.attempt)?;
        let rank = job.ranks.iter().find(|rank| rank.rank == worker.rank)?;
        Some(rank.worker == RankState::Assigned)
    });
    is_to_come.await.is_ok_and(|is_to_come| is_to_come == Some(true))
}
