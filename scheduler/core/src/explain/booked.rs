//! What reservations have to do with it.

use super::*;
use crate::reservations::{Bar, Reservation};

/// In how long a reservation has its nodes, and for how long from then on, in milliseconds.
fn period(cluster: &Cluster, reservation: &Reservation) -> (u64, u64) {
    let from = reservation.start.max(cluster.now());
    (from.since(cluster.now()), reservation.end.since(from))
}

/// What a bar says about all nodes.
pub fn reason(cluster: &Cluster, bar: &Bar) -> Reason {
    let of = |name: &Name| cluster.reservations().get(name).expect("a reservation that bars");
    match bar {
        Bar::Booked(name) => {
            let (in_ms, for_ms) = period(cluster, of(name));
            Reason::Booked { reservation: name.clone(), nodes: of(name).nodes.len() as u32, in_ms, for_ms }
        }
        Bar::Awaits(name) | Bar::Outside(name) => {
            Reason::Awaits { reservation: name.clone(), in_ms: period(cluster, of(name)).0 }
        }
    }
}

/// What a node says that has room, if it is booked, or not by the job's reservation.
pub fn verdict(free: &Free, job: &Job, node: &Node) -> Option<Verdict> {
    let cluster = free.cluster();
    let bar = cluster.reservations().bar(job, node.id, cluster.now())?;
    let (Bar::Booked(name) | Bar::Awaits(name) | Bar::Outside(name)) = &bar;
    let reservation = cluster.reservations().get(name).expect("a reservation that bars");
    match bar {
        Bar::Booked(_) => {
            let (in_ms, for_ms) = period(cluster, reservation);
            Some(Verdict::Booked { reservation: name.clone(), in_ms, for_ms })
        }
        // That its own has not begun is said once, for all of its nodes.
        Bar::Awaits(_) if reservation.nodes.contains(&node.id) => None,
        Bar::Awaits(_) | Bar::Outside(_) => Some(Verdict::Outside(name.clone())),
    }
}

/// When the reservation that is in the way, or awaited, is no more.
pub fn start(cluster: &Cluster, reservation: &Name, begins: bool) -> Start {
    let it = cluster.reservations().get(reservation).expect("a reservation that bars");
    Start::AtReservation {
        at: if begins { it.start } else { it.end },
        reservation: reservation.clone(),
        begins,
    }
}

/// When a job can start that does not fit even if all ends that holds anything: when a reservation is over.
pub fn never(cluster: &Cluster, job: &Job, misfit: &Misfit) -> Option<Start> {
    let own = || job.spec.reservation.as_ref().filter(|name| cluster.reservations().get(name).is_some());
    match misfit {
        Misfit::Barred(Bar::Booked(name)) => Some(start(cluster, name, false)),
        _ => own().map(|name| start(cluster, name, false)),
    }
}

/// The longest time limit with which the job would start now: it is gone before others come.
pub fn shorter(free: &mut Free, job: &Job) -> Option<Change> {
    let (cluster, from) = (free.cluster(), job.spec.time_limit_ms);
    let left = |it: &Reservation| it.start.since(cluster.now()).saturating_sub(job.spec.grace_ms);
    let limits: BTreeSet<u64> = cluster.reservations().iter().map(left).filter(|ms| 0 < *ms).collect();
    let mut fits = |ms: &u64| {
        let spec = JobSpec { time_limit_ms: Some(*ms), ..(*job.spec).clone() };
        fits(free, &Job { spec: spec.into(), ..job.clone() }).is_ok()
    };
    let to = limits.into_iter().rev().filter(|ms| from.is_none_or(|from| *ms < from)).find(|ms| fits(ms))?;
    Some(Change::TimeLimit { from, to })
}
