//! When a job that waits is expected to start.

use std::time::Duration;

use super::*;
use crate::reservations::Bar;

/// When a job that holds resources gives them back, at the latest, if that is known.
pub fn end_of(cluster: &Cluster, holder: &Job) -> Option<Time> {
    match holder.phase {
        Phase::Stopping(_) => {
            let grace = Duration::from_millis(holder.spec.grace_ms);
            let since = holder.gives_way_to().map_or(cluster.now(), |(_, at)| at);
            Some(cluster.now().max(since + grace))
        }
        _ => holder.expected_end(),
    }
}

/// When a job starts by what others hold, first by their time limits, and where these do not tell by how long like ones ran.
pub fn start(cluster: &Cluster, job: &Job, reason: &Reason) -> Start {
    match reason {
        Reason::NotWaiting(_) | Reason::RunsWith { .. } | Reason::OutOfReach { .. } => return Start::Past,
        Reason::Next | Reason::NextWith { .. } => return Start::Now,
        Reason::NoSuchNode { .. } | Reason::FewDomains { .. } => return Start::Never,
        Reason::Pauses { until, .. } => return Start::AfterPause(*until),
        Reason::Booked { reservation, .. } | Reason::Awaits { reservation, .. } => {
            return booked::start(cluster, reservation, matches!(reason, Reason::Awaits { .. }));
        }
        Reason::Sleeps { .. } => return Start::Unknown("somebody has to ask it first".into()),
        Reason::Follows(dependency) => return Start::Unknown(format!("{dependency} has to succeed first")),
        Reason::Preempts(victims) => {
            let end = |id: &JobId| Some((end_of(cluster, cluster.jobs().get(*id)?)?, *id));
            let last = victims.iter().filter_map(end).max();
            let (at, after) = last.expect("a job that stops ends with its grace");
            return Start::By { at, after };
        }
        Reason::QueueLimit { queue, wants, limit, .. } if limit < wants => {
            return Start::Unknown(format!("it wants more than queue {queue} may ever hold"));
        }
        Reason::Kept(Owner::Job(job)) => return Start::Unknown(format!("{job} goes first")),
        Reason::Kept(Owner::Wide) => {
            return Start::Unknown("it starts as soon as something else becomes free".into());
        }
        Reason::QueueLimit { .. } | Reason::RoomFor { .. } => (),
    }
    let holding: Vec<&Job> = cluster.jobs().holding().collect();
    let certain = |job: &&Job| End { at: end_of(cluster, job), job: job.id, like: None };
    let mut ends: Vec<End> = holding.iter().map(certain).collect();
    let mut needed = match needed(cluster, job, &mut ends) {
        Ok(needed) => needed,
        Err(start) => return start,
    };
    if needed.at.is_none() {
        // Those without a time limit end when like ones did, as far as can be said.
        let expected = |job: &&Job| match certain(job) {
            End { at: None, .. } => {
                let estimate = cluster.expected_left(job);
                let at = estimate.map(|it| Time(cluster.now().0 + it.left_ms));
                End { at, job: job.id, like: estimate.map(|it| it.jobs) }
            }
            certain => certain,
        };
        ends = holding.iter().map(expected).collect();
        needed = match self::needed(cluster, job, &mut ends) {
            Ok(needed) => needed,
            Err(start) => return start,
        };
    }
    let Needed { at, after, like, is_certain, bar } = needed;
    match (at, bar) {
        (None, _) => Start::Unknown(format!("{after} has no time limit")),
        (_, Some(bar)) => Start::Unknown(format!("when {after} has ended, {bar}")),
        (Some(at), None) if is_certain => Start::By { at, after },
        (Some(at), None) => Start::About { at, after, like },
    }
}

/// When a job gives back what it holds.
#[derive(Clone, Copy)]
struct End {
    /// At the latest, or about then; `None`: that is not known.
    at: Option<Time>,
    job: JobId,
    /// The number of jobs that it is the median of, if it is one.
    like: Option<u32>,
}

/// The last end that a job has to wait for.
struct Needed {
    at: Option<Time>,
    after: JobId,
    like: Option<u32>,
    /// Whether no estimate is among those up to it.
    is_certain: bool,
    /// Why it does not start then after all.
    bar: Option<Bar>,
}

/// Gives back what others hold, the first to end first, until the job fits. `Err`: it never does.
fn needed(cluster: &Cluster, job: &Job, ends: &mut [End]) -> Result<Needed, Start> {
    ends.sort_unstable_by_key(|end| (end.at.is_none(), end.at, end.job));
    let (mut free, mut ended) = (Free::of(cluster), 0);
    let mut fits_after = |count: usize| {
        let (least, most) = (ended.min(count), ended.max(count));
        for end in &ends[least..most] {
            let holder = cluster.jobs().get(end.job).expect("a job that holds resources");
            free.take_as_ended(holder, ended < count);
        }
        ended = count;
        fits(&mut free, job)
    };
    // More room never hurts, so the least number of ends can be searched for; it is small as a rule.
    let (mut too_few, mut enough) = (0, ends.len().min(1));
    while let Err(misfit) = fits_after(enough) {
        if enough == ends.len() {
            let never = "the nodes that are up, open and healthy do not suffice, even when idle";
            return Err(booked::never(cluster, job, &misfit).unwrap_or(Start::Unknown(never.into())));
        }
        (too_few, enough) = (enough, (2 * enough).min(ends.len()));
    }
    while 1 < enough - too_few {
        let middle = (too_few + enough) / 2;
        if fits_after(middle).is_ok() { enough = middle } else { too_few = middle }
    }
    _ = fits_after(enough);
    let End { at, job: after, like } = ends[enough - 1];
    let bar = match at.map(|at| fits(&mut free.starting_at(at), job)) {
        Some(Err(Misfit::Barred(bar))) => Some(bar),
        _ => None,
    };
    let is_certain = ends[..enough].iter().all(|end| end.like.is_none());
    Ok(Needed { at, after, like, is_certain, bar })
}
