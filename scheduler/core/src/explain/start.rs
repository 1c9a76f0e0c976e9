//! When a job that waits is expected to start.

use std::time::Duration;

use super::*;

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

/// Gives back, in the order of their ends, what jobs with a time limit hold, until the job fits.
pub fn start(cluster: &Cluster, job: &Job, reason: &Reason) -> Start {
    match reason {
        Reason::NotWaiting(_) | Reason::RunsWith { .. } => return Start::Past,
        Reason::Next | Reason::NextWith { .. } => return Start::Now,
        Reason::NoSuchNode { .. } | Reason::FewDomains { .. } => return Start::Never,
        Reason::Pauses { until, .. } => return Start::AfterPause(*until),
        Reason::Booked { reservation, .. } | Reason::Awaits { reservation, .. } => {
            return booked::start(cluster, reservation, matches!(reason, Reason::Awaits { .. }));
        }
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
    let mut ends: Vec<(Time, JobId)> =
        cluster.jobs().holding().filter_map(|job| Some((end_of(cluster, job)?, job.id))).collect();
    ends.sort_unstable();
    let known = ends.len();
    let endless = cluster.jobs().holding().filter(|job| end_of(cluster, job).is_none());
    ends.extend(endless.map(|job| (Time(u64::MAX), job.id)));
    let (mut free, mut ended) = (Free::of(cluster), 0);
    let mut fits_after = |count: usize| {
        let (least, most) = (ended.min(count), ended.max(count));
        for (_, id) in &ends[least..most] {
            let holder = cluster.jobs().get(*id).expect("a job that holds resources");
            free.take_as_ended(holder, ended < count);
        }
        ended = count;
        fits(&mut free, job)
    };
    // More room never hurts, so the least number of ends can be searched for; it is small as a rule.
    let (mut too_few, mut enough) = (0, ends.len().min(1));
    while let Err(misfit) = fits_after(enough) {
        if enough == ends.len() {
            return booked::never(cluster, job, &misfit).unwrap_or_else(|| {
                Start::Unknown(
                    "the nodes that are up, open and healthy do not suffice, even when idle".into(),
                )
            });
        }
        (too_few, enough) = (enough, (2 * enough).min(ends.len()));
    }
    while 1 < enough - too_few {
        let middle = (too_few + enough) / 2;
        if fits_after(middle).is_ok() { enough = middle } else { too_few = middle }
    }
    let (at, after) = ends[enough - 1];
    if known < enough {
        return Start::Unknown(format!("{after} has no time limit"));
    }
    _ = fits_after(enough);
    if let Err(Misfit::Barred(bar)) = fits(&mut free.starting_at(at), job) {
        return Start::Unknown(format!("when {after} has ended, {bar}"));
    }
    Start::By { at, after }
}
