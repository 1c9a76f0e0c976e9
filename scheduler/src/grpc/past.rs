//! Answers about all jobs, those that are kept and those that have retired.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use aquifer_core::jobs::{Job, Outcome, Phase, Shape};
use aquifer_core::plan::free_for_all;
use aquifer_core::*;
use aquifer_proto::store::Row;
use aquifer_proto::{border, v1};
use prost::Message;
use tonic::Status;

use super::pool::unavailable;
use super::view;
use crate::runtime::{NoPast, Runtime, Shared};
use crate::store::{Past, StoreError};

/// Jobs of those that are kept that one page looks at, at most: so long the loop is held up.
const LOOKED_AT: usize = 20_000;
/// So long one page looks for jobs that have retired: a reader who looks for rare ones gets the next page instead.
const LOOKS: Duration = Duration::from_millis(50);
/// Bytes of the jobs of one page, at most; one job is always in it.
const PAGE_BYTES: usize = 4 << 20;
/// Jobs that are read of the store at a time.
const READ: usize = 1000;

pub fn unreadable(error: NoPast) -> Status {
    Status::internal(error.to_string())
}

/// A job that has retired.
pub async fn job(runtime: &Runtime, id: JobId) -> Result<Option<Job>, Status> {
    runtime.shared.past(move |past| past.job(id)).await.map_err(unreadable)
}

/// Takes out what a new job is to follow and has retired: if it succeeded, that is done.
pub async fn settle_dependencies(runtime: &Runtime, spec: &mut JobSpec) -> Result<(), Status> {
    let after = spec.after.clone();
    let retired = runtime.query(move |cluster| {
        let retired = after.into_iter().enumerate().filter(|(_, id)| cluster.jobs().has_retired(*id));
        retired.collect::<Vec<_>>()
    });
    for (at, id) in retired.await.map_err(unavailable)? {
        let whole = move |past: &Past| past.job(id)?.map(|job| outcome(past, job)).transpose();
        let outcome = runtime.shared.past(whole).await.map_err(unreadable)?;
        if let Some(outcome) = outcome.filter(|outcome| *outcome != Outcome::Succeeded) {
            let expected = format!("expected a job that can still succeed: it {outcome}");
            return Err(border::Invalid::new(format!("spec.after[{at}]"), id, expected).into());
        }
        spec.after.retain(|other| *other != id);
    }
    Ok(())
}

/// How a job that has retired ended; of the first of an array, how all of it did.
fn outcome(past: &Past, job: Job) -> Result<Outcome, StoreError> {
    let elements = match (job.array, job.spec.array) {
        (Some(array), Some(range)) if array.first == job.id => {
            past.page(JobId(job.id.0 + range.count()), range.count() as usize)?
        }
        _ => vec![job],
    };
    let outcomes = elements.into_iter().rev().filter_map(|job| match job.phase {
        Phase::Done(outcome) => Some(outcome),
        _ => None,
    });
    Ok(outcomes.into_iter().find(|outcome| *outcome != Outcome::Succeeded).unwrap_or(Outcome::Succeeded))
}

/// What jobs are asked for.
#[derive(Clone)]
struct Wanted(v1::ListRequest);

impl Wanted {
    fn is(&self, job: &Job) -> bool {
        let Wanted(request) = self;
        (request.states.is_empty() || request.states.contains(&view::job_state(job).into()))
            && (request.queue.is_empty() || *job.spec.queue == *request.queue)
            && (request.user.is_empty() || *job.spec.user == *request.user)
            && (request.name.is_empty() || job.spec.name.contains(&request.name))
    }

    /// Whether any job that has retired can be one. `O(queues)`.
    fn has_retired(&self, cluster: &Cluster) -> bool {
        use v1::JobState::{Cancelled, Failed, Succeeded, TimedOut};
        let Wanted(request) = self;
        let of_queue = |queue: &Name| request.queue.is_empty() || **queue == *request.queue;
        let mut retired = cluster.jobs().retired_totals().filter(|(queue, _)| of_queue(queue));
        retired.any(|(_, totals)| {
            let failed = totals.failed + totals.unreachable;
            let counts = [
                (Succeeded, totals.succeeded),
                (Failed, failed),
                (Cancelled, totals.cancelled),
                (TimedOut, totals.timed_out),
            ];
            let is_wanted =
                |state: v1::JobState| request.states.is_empty() || request.states.contains(&state.into());
            counts.iter().any(|(state, jobs)| 0 < *jobs && is_wanted(*state))
        })
    }
}

/// Jobs of a page, newest first.
struct Page<T> {
    jobs: Vec<(JobId, T)>,
    /// All from this one on were looked at.
    down_to: JobId,
}

/// A page of jobs that were submitted before one.
pub async fn list(
    runtime: &Runtime,
    request: v1::ListRequest,
    size: usize,
    before: JobId,
) -> Result<v1::ListResponse, Status> {
    let (wanted, shared) = (Wanted(request), runtime.shared.clone());
    let (asked, of_past) = (wanted.clone(), wanted.clone());
    // In this order: what retires meanwhile is found twice, never missed.
    let kept = runtime.query(move |cluster| {
        let kept = kept(cluster, &shared, &asked, size, before);
        (kept, asked.has_retired(cluster), counts(cluster))
    });
    let (kept, has_retired, counts) = kept.await.map_err(unavailable)?;
    let none = Page { jobs: Vec::new(), down_to: JobId(0) };
    let retired = match has_retired {
        false => none,
        true => {
            let read = move |past: &Past| retired(past, &of_past, size, before);
            let page = runtime.shared.past(read).await.map_err(unreadable)?;
            let shared = runtime.shared.clone();
            let seen = move |cluster: &Cluster| {
                let (mut seen, mut bytes) = (Page { jobs: Vec::new(), down_to: page.down_to }, 0);
                for (id, job) in &page.jobs {
                    if PAGE_BYTES <= bytes {
                        seen.down_to = JobId(id.0 + 1);
                        break;
                    }
                    let job = view::job(cluster, &shared, job, None);
                    bytes += job.encoded_len();
                    seen.jobs.push((*id, job));
                }
                seen
            };
            runtime.query(seen).await.map_err(unavailable)?
        }
    };
    let down_to = kept.down_to.max(retired.down_to);
    let all: BTreeMap<JobId, v1::Job> = retired.jobs.into_iter().chain(kept.jobs).collect();
    let mut jobs: Vec<v1::Job> =
        all.into_iter().rev().filter(|(id, _)| down_to <= *id).map(|(_, job)| job).collect();
    let cut = size < jobs.len();
    jobs.truncate(size);
    let next = if cut { jobs.last().map_or(0, |job| job.id) } else { down_to.0 };
    let next_page_token = if next <= 1 { String::new() } else { next.to_string() };
    Ok(v1::ListResponse { jobs, next_page_token, counts })
}

fn kept(cluster: &Cluster, shared: &Shared, wanted: &Wanted, size: usize, before: JobId) -> Page<v1::Job> {
    let mut reasons: BTreeMap<(Name, Shape), explain::Reason> = BTreeMap::new();
    let mut free = None;
    let mut reason = |job| explain::reason(free.get_or_insert_with(|| free_for_all(cluster)), job);
    let mut page = Page { jobs: Vec::new(), down_to: JobId(0) };
    let mut bytes = 0;
    for (at, job) in cluster.jobs().range(..before).rev().enumerate() {
        if at == LOOKED_AT || page.jobs.len() == size || PAGE_BYTES <= bytes {
            page.down_to = JobId(job.id.0 + 1);
            break;
        }
        if !wanted.is(job) {
            continue;
        }
        // Jobs of one queue and shape that wait for room wait for the same reason.
        let reason = match job.phase {
            Phase::Pending(not_before)
                if not_before <= cluster.now() && job.spec.after.is_empty() && !job.sleeps() =>
            {
                let key = (job.spec.queue.clone(), cluster.jobs().shape(job));
                Some(reasons.entry(key).or_insert_with(|| reason(job)).clone())
            }
            Phase::Pending(_) => Some(reason(job)),
            Phase::Active | Phase::Stopping(_) | Phase::Done(_) => None,
        };
        let job = view::job(cluster, shared, job, reason.as_ref());
        bytes += job.encoded_len();
        page.jobs.push((JobId(job.id), job));
    }
    page
}

fn retired(past: &Past, wanted: &Wanted, size: usize, before: JobId) -> Result<Page<Job>, StoreError> {
    let mut page = Page { jobs: Vec::new(), down_to: before };
    let begun = Instant::now();
    while begun.elapsed() < LOOKS && page.jobs.len() < size {
        let read = past.page(page.down_to, READ.min(size.max(100)))?;
        let Some(last) = read.last() else {
            page.down_to = JobId(0);
            break;
        };
        page.down_to = last.id;
        page.jobs.extend(read.into_iter().filter(|job| wanted.is(job)).map(|job| (job.id, job)));
    }
    Ok(page)
}

/// Jobs by state. `O(jobs that hold something + queues)`.
fn counts(cluster: &Cluster) -> Vec<v1::StateCount> {
    use v1::JobState::{Cancelled, Failed, Pending, Succeeded, TimedOut};
    let jobs = cluster.jobs();
    let mut counts: BTreeMap<i32, u64> = BTreeMap::new();
    let mut add = |state: v1::JobState, jobs: u64| *counts.entry(state.into()).or_default() += jobs;
    let mut left = jobs.len();
    for job in jobs.holding() {
        left -= 1;
        add(view::job_state(job), 1);
    }
    for (_, totals) in jobs.ended_totals() {
        left -= totals.jobs();
        add(Succeeded, totals.succeeded);
        add(Failed, totals.failed + totals.unreachable);
        add(Cancelled, totals.cancelled);
        add(TimedOut, totals.timed_out);
    }
    add(Pending, left);
    let counts = counts.into_iter().filter(|(_, jobs)| *jobs != 0);
    counts.map(|(state, jobs)| v1::StateCount { state, jobs }).collect()
}

/// Usage by queue and user.
type Rows = BTreeMap<(Name, Name), v1::UsageRow>;

/// What jobs that were submitted since then have used.
pub async fn usage(runtime: &Runtime, since: Time) -> Result<v1::UsageResponse, Status> {
    let kept = runtime.query(move |cluster| {
        let (mut rows, mut seen) = (Rows::new(), BTreeSet::new());
        for job in cluster.jobs().iter().rev().take_while(|job| since <= job.submitted) {
            add_usage(&mut rows, cluster.now(), job, cluster.spent(job));
            seen.extend(matches!(job.phase, Phase::Done(_)).then_some(job.id));
        }
        let up = || cluster.nodes().iter().filter(|node| node.up);
        let devices: u64 = up().map(|node| node.inventory.devices.len() as u64).sum();
        let held: u64 = up().map(|node| cluster.nodes().held(node.id).devices.len() as u64).sum();
        (rows, seen, cluster.now(), (devices, held, !cluster.tariff().is_empty()))
    });
    let (mut rows, seen, now, (devices, devices_held, has_prices)) = kept.await.map_err(unavailable)?;
    let read = move |past: &Past| {
        let mut before = JobId(u64::MAX);
        loop {
            let page = past.page(before, READ)?;
            for job in page.iter().filter(|job| since <= job.submitted && !seen.contains(&job.id)) {
                add_usage(&mut rows, now, job, job.usage.spent);
            }
            match page.last().filter(|last| since <= last.submitted) {
                Some(last) => before = last.id,
                None => return Ok(rows),
            }
        }
    };
    let rows = runtime.shared.past(read).await.map_err(unreadable)?;
    let rows = rows.into_iter().map(|((queue, user), row)| v1::UsageRow {
        queue: queue.to_string(),
        user: user.to_string(),
        ..row
    });
    Ok(v1::UsageResponse { rows: rows.collect(), devices, devices_held, has_prices })
}

fn add_usage(rows: &mut Rows, now: Time, job: &Job, spent: Spent) {
    let row = rows.entry((job.spec.queue.clone(), job.spec.user.clone())).or_default();
    let since_placed = job.placed.filter(|_| !job.ranks.is_empty()).map_or(0, |at| now.since(at));
    row.jobs += 1;
    match &job.phase {
        Phase::Done(Outcome::Succeeded) => row.succeeded += 1,
        Phase::Done(Outcome::Failed(_) | Outcome::Unreachable(_) | Outcome::TimedOut) => row.failed += 1,
        Phase::Done(Outcome::Cancelled) | Phase::Pending(_) | Phase::Active | Phase::Stopping(_) => (),
    }
    let device_ms = job.usage.device_ms + job.devices_held_milli() * since_placed / 1000;
    let cpus_milli: u64 = job.ranks.iter().map(|rank| u64::from(rank.cpus_milli)).sum();
    let cpu_milli_ms = job.usage.cpu_milli_ms + cpus_milli * since_placed;
    row.device_ms += device_ms;
    row.counted_ms += job.counted_ms(now);
    row.lost_device_ms += job.usage.lost_device_ms;
    row.cpu_milli_ms += cpu_milli_ms;
    if 0 < spent.sum_us() {
        let held_ms = if device_ms == 0 { cpu_milli_ms / 1000 } else { device_ms };
        let share = spent.steps_us as f64 / spent.sum_us() as f64;
        row.trained_ms += held_ms;
        row.effective_ms += (held_ms as f64 * share) as u64;
        if 0 < spent.work_us {
            row.held_ms += held_ms;
            row.worked_ms += view::worked_ms(job, spent);
        }
    }
    row.waited_ms += job.first_placed.map_or(0, |placed| placed.since(job.submitted));
}

/// All that has retired, as it is stored, newest first.
pub fn each(past: &Past, mut see: impl FnMut(Row)) -> Result<(), StoreError> {
    let mut before = JobId(u64::MAX);
    loop {
        let rows = past.rows(before, READ)?;
        let Some(last) = rows.last() else { return Ok(()) };
        let key = last.key[..].try_into().map_or(u64::MAX, u64::from_be_bytes);
        before = JobId(u64::MAX - key);
        rows.into_iter().for_each(&mut see);
    }
}
