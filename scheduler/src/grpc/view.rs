//! The core's state as clients see it.

use std::collections::BTreeMap;

use aquifer_core::explain::{Explanation, Reason, Start};
use aquifer_core::jobs::{Job, Outcome, Phase};
use aquifer_core::nodes::Node;
use aquifer_core::*;
use aquifer_proto::{reservations, tariff, v1, wire};

use crate::notes::Numbered;
use crate::runtime::Shared;

/// State of a job in one word.
pub fn job_state(job: &Job) -> v1::JobState {
    match &job.phase {
        Phase::Pending(_) => v1::JobState::Pending,
        Phase::Active if job.all_running() => v1::JobState::Running,
        Phase::Active => v1::JobState::Starting,
        Phase::Stopping(jobs::Then::Resize(_)) if job.spec.is_live() => v1::JobState::Running,
        Phase::Stopping(_) => v1::JobState::Stopping,
        Phase::Done(Outcome::Succeeded) => v1::JobState::Succeeded,
        Phase::Done(Outcome::Failed(_) | Outcome::Unreachable(_)) => v1::JobState::Failed,
        Phase::Done(Outcome::Cancelled) => v1::JobState::Cancelled,
        Phase::Done(Outcome::TimedOut) => v1::JobState::TimedOut,
    }
}

/// All states of a job in one word each.
pub const STATE_WORDS: [&str; 8] =
    ["pending", "starting", "running", "stopping", "succeeded", "failed", "cancelled", "timed-out"];

/// State of a job, as a place in [`STATE_WORDS`].
pub fn state_at(job: &Job) -> usize {
    match job_state(job) {
        v1::JobState::Unspecified | v1::JobState::Pending => 0,
        v1::JobState::Starting => 1,
        v1::JobState::Running => 2,
        v1::JobState::Stopping => 3,
        v1::JobState::Succeeded => 4,
        v1::JobState::Failed => 5,
        v1::JobState::Cancelled => 6,
        v1::JobState::TimedOut => 7,
    }
}

/// What a training has computed that counts, as the time that it takes on one device, or one core where it holds no device.
pub fn worked_ms(job: &Job, spent: Spent) -> u64 {
    let trains = |role: &&Role| matches!(role.program, Program::Train(_));
    let role = job.spec.roles.iter().find(trains).unwrap_or(&job.spec.roles[0]);
    let milli = match role.request.devices.first() {
        Some(want) => {
            u64::from(want.count) * want.slice.map_or(1000, |slice| u64::from(slice.compute_milli.max(1)))
        }
        None => u64::from(role.request.cpus_milli),
    };
    (u128::from(spent.work_us) * u128::from(milli) / 1_000_000) as u64
}

/// That as a share of all that the job has held.
fn capacity(job: &Job, spent: Spent, device_ms: u64, cpu_milli_ms: u64) -> Option<f64> {
    let held_ms = if device_ms == 0 { cpu_milli_ms / 1000 } else { device_ms };
    (0 < spent.work_us && 0 < held_ms).then(|| worked_ms(job, spent) as f64 / held_ms as f64)
}

/// A job; `reason` says why it waits, if it does.
pub fn job(cluster: &Cluster, shared: &Shared, job: &Job, reason: Option<&Reason>) -> v1::Job {
    let held = job.placed.filter(|_| !job.ranks.is_empty()).map_or(0, |placed| cluster.now().since(placed));
    let cpus: u64 = job.ranks.iter().map(|rank| u64::from(rank.cpus_milli)).sum();
    let device_ms = job.usage.device_ms + job.devices_held_milli() * held / 1000;
    let cpu_milli_ms = job.usage.cpu_milli_ms + cpus * held;
    let spent = cluster.spent(job);
    v1::Job {
        id: job.id.0,
        spec: Some(wire::job_spec(&job.spec)),
        state: job_state(job).into(),
        reason: match (&job.phase, reason) {
            (Phase::Pending(_), Some(reason)) => reason.to_string(),
            (Phase::Stopping(jobs::Then::Finish(outcome)) | Phase::Done(outcome), _) => outcome.to_string(),
            (Phase::Stopping(then @ (jobs::Then::Requeue | jobs::Then::Resize(_))), _) => {
                let goes_on = matches!(then, jobs::Then::Resize(_));
                let next = if goes_on { "will go on" } else { "will be placed again" };
                job.last_failure.as_ref().map(|why| format!("{next}: {why}")).unwrap_or_default()
            }
            (Phase::Pending(_) | Phase::Active, _) => String::new(),
        },
        attempt: job.attempt,
        failures: job.failures,
        ranks: ranks(cluster, shared, job),
        submitted_ms: job.submitted.0,
        placed_ms: job.began.map(|time| time.0),
        ended_ms: job.ended.map(|time| time.0),
        last_failure: job.last_failure.as_ref().map(ToString::to_string).unwrap_or_default(),
        array_first: job.array.map(|array| array.first.0),
        array_index: job.array.map(|array| array.index),
        device_ms,
        cpu_milli_ms,
        lost_device_ms: job.usage.lost_device_ms,
        wanted_ranks: job.wanted_ranks(),
        checkpoint_dir: wire::checkpoint_dir(&shared.checkpoint_root, job.id, &job.spec).unwrap_or_default(),
        class: class(cluster, job),
        spent: Some(spent).filter(|spent| 0 < spent.sum_us()).map(wire::spent),
        capacity: capacity(job, spent, device_ms, cpu_milli_ms),
    }
}

/// On which class of devices a job is, and how fast it is there; empty where nothing is to be said.
pub fn class(cluster: &Cluster, job: &Job) -> String {
    explain::class_text(cluster, job).unwrap_or_default()
}

/// The ranks of a job: what they hold, or where they last ran.
pub fn ranks(cluster: &Cluster, shared: &Shared, job: &Job) -> Vec<v1::Rank> {
    let held = |(at, rank): (usize, &Allocation)| (at as u32, rank.rank, rank.node);
    let last = |(rank, node): (usize, &NodeId)| (rank as u32, rank as u32, *node);
    let ranks: Vec<(u32, u32, NodeId)> = match job.ranks.is_empty() {
        true => job.last_nodes.iter().enumerate().map(last).collect(),
        false => job.in_attempt().iter().enumerate().map(held).collect(),
    };
    let world = (ranks.len() as u32).min(job.spec.ranks());
    // Workers of a job that has ended which came later count to its last role.
    let role = |at: u32| &job.spec.roles[job.spec.role_of(at.min(world - 1), world)];
    let view = |(at, rank, node): (u32, u32, NodeId)| {
        let node = cluster.nodes().get(node);
        let held = job.ranks.get(at as usize);
        let model = held.and_then(|rank| node.inventory.devices.get(usize::from(*rank.devices.first()?)));
        v1::Rank {
            rank,
            role: role(at).name.to_string(),
            node: node.name.to_string(),
            devices: held.iter().flat_map(|rank| &rank.devices).map(|index| u32::from(*index)).collect(),
            model: model.map(|device| device.class.model.to_string()).unwrap_or_default(),
            state: wire::rank_state(held.map_or(RankState::Gone, |rank| rank.worker)).into(),
            address: node.inventory.address.to_string(),
            port: held.map_or(0, |rank| rank.port).into(),
            progress: shared.progress(job, rank),
            isolation: held
                .filter(|rank| !rank.devices.is_empty())
                .map_or(String::new(), |rank| node.inventory.isolation(rank).to_string()),
        }
    };
    ranks.into_iter().map(view).collect()
}

/// What gateways need of a job, if it is a service.
pub fn service(shared: &Shared, job: &Job) -> Option<v1::Service> {
    let (_, options) = job.spec.served()?;
    let ready = |rank: &Allocation| {
        let told = shared.progress(job, rank.rank).filter(|_| rank.worker == RankState::Running)?;
        told.endpoint.filter(|_| told.ready)
    };
    Some(v1::Service {
        job: job.id.0,
        model: options.name().into(),
        submitted_ms: job.submitted.0,
        endpoints: job.ranks.iter().filter_map(ready).collect(),
    })
}

/// Prices, and what an hour of each class counts that nodes have which are up.
pub fn prices(cluster: &Cluster) -> v1::ListPricesResponse {
    let mut classes: BTreeMap<&DeviceClass, (u64, u64)> = BTreeMap::new();
    let nodes = cluster.nodes().iter().filter(|node| node.up);
    for device in nodes.flat_map(|node| &node.inventory.devices) {
        let (devices, speeds) = classes.entry(&device.class).or_default();
        *devices += 1;
        *speeds += u64::from(device.speed_milli);
    }
    let class = |(class, (devices, speeds)): (&DeviceClass, (u64, u64))| v1::ClassPrice {
        vendor: class.vendor.to_string(),
        model: class.model.to_string(),
        memory_bytes: class.memory_bytes,
        devices,
        speed_milli: speeds / devices,
        price_milli: cluster.tariff().of(class),
    };
    let classes = classes.into_iter().map(class).collect();
    v1::ListPricesResponse { prices: tariff::prices(cluster.tariff()), classes }
}

/// A node.
pub fn node(cluster: &Cluster, shared: &Shared, node: &Node) -> v1::Node {
    let held = cluster.nodes().held(node.id);
    // Before its first report, what is told of the node is what an earlier agent said.
    let session = shared.session(&node.name).filter(|session| session.id().is_some());
    let rival = shared.rivals.of(&node.name);
    let lease = cluster.nodes().lease(node.id);
    let mut booked: Vec<&Reservation> = cluster.reservations().of_node(node.id).collect();
    booked.sort_by_key(|it| it.start);
    let price = |device: &Device| cluster.tariff().of(&device.class).unwrap_or(0);
    let mut prices_milli: Vec<u64> = node.inventory.devices.iter().map(price).collect();
    if prices_milli.iter().all(|price| *price == 0) {
        prices_milli.clear();
    }
    v1::Node {
        name: node.name.to_string(),
        up: node.up,
        availability: wire::availability(node.availability).into(),
        inventory: Some(wire::inventory(&node.inventory)),
        devices_cordoned: (0u32..)
            .zip(&node.inventory.devices)
            .filter(|(_, device)| node.cordoned.contains(&device.uuid))
            .map(|(index, _)| index)
            .collect(),
        devices_held: held.devices.keys().map(|index| u32::from(*index)).collect(),
        cpus_milli_held: held.cpus_milli,
        memory_bytes_held: held.memory_bytes,
        workers: held.workers.keys().map(|worker| wire::worker(*worker)).collect(),
        lease_left_ms: lease.map_or(0, |lease| lease.end.since(cluster.now())),
        version: session.as_ref().map(|session| session.version.clone()).unwrap_or_default(),
        reservations: booked.iter().map(|it| reservations::reservation(cluster, it)).collect(),
        findings: session.map(|session| session.findings()).into_iter().flatten().chain(rival).collect(),
        cordoned_because: node.blame.as_ref().map(|blame| blame.why.to_string()).unwrap_or_default(),
        prices_milli,
    }
}

/// A note.
pub fn note(note: &Numbered) -> v1::Note {
    v1::Note {
        seq: note.seq,
        time_ms: note.at.0,
        kind: note.note.kind().into(),
        job: note.note.job().map(|job| job.0),
        node: note.note.node().map(ToString::to_string).unwrap_or_default(),
        text: note.note.to_string(),
    }
}

/// A job that gives way to `by`, if the effect says so.
pub fn victim(cluster: &Cluster, by: JobId, effect: &Effect) -> Option<v1::Victim> {
    let (job, lost_device_ms, stays) = match effect {
        Effect::Note(Note::Preempted { job, by: preemptor, lost_device_ms }) if *preemptor == by => {
            (*job, *lost_device_ms, 0)
        }
        Effect::Note(Note::Shrunk { job, to, by: Some(preemptor), lost_device_ms, .. })
            if *preemptor == by =>
        {
            (*job, *lost_device_ms, *to)
        }
        _ => return None,
    };
    let it = cluster.jobs().get(job)?;
    let (ranks, grace_ms) = (it.ranks.len() as u32, it.spec.grace_ms);
    Some(v1::Victim { job: job.0, lost_device_ms, grace_ms, ranks, stays })
}

/// The one domain, of a level that it requires or prefers, in which a job was placed: `rack r7`. Else empty.
pub fn domain(cluster: &Cluster, job: &Job) -> String {
    let nodes: Vec<&Node> = job.ranks.iter().map(|rank| cluster.nodes().get(rank.node)).collect();
    let domain = job.spec.topology.domain(&nodes);
    domain.map(|(level, name)| format!("{level} {name}")).unwrap_or_default()
}

/// An explanation, as data and as text.
pub fn explanation(now: Time, job: JobId, explanation: &Explanation) -> v1::Explanation {
    let (start, start_ms) = match &explanation.start {
        Start::Past => ("past", None),
        Start::Now => ("now", None),
        Start::By { at, .. } => ("by", Some(at.0)),
        Start::About { at, .. } => ("about", Some(at.0)),
        Start::AfterPause(at) => ("after-pause", Some(at.0)),
        Start::AtReservation { at, .. } => ("at-reservation", Some(at.0)),
        Start::Unknown(_) => ("unknown", None),
        Start::Never => ("never", None),
    };
    let reason = match explanation.reason {
        Reason::NotWaiting(_) => "not-waiting",
        Reason::OutOfReach { .. } => "out-of-reach",
        Reason::Sleeps { .. } => "sleeps",
        Reason::Follows(_) => "follows",
        Reason::Pauses { .. } => "pauses",
        Reason::QueueLimit { .. } => "queue-limit",
        Reason::NoSuchNode { .. } => "no-such-node",
        Reason::Kept(_) => "kept",
        Reason::Booked { .. } => "booked",
        Reason::Awaits { .. } => "awaits",
        Reason::RoomFor { .. } => "room-for",
        Reason::FewDomains { .. } => "few-domains",
        Reason::Preempts(_) => "preempts",
        Reason::Next => "next",
        Reason::NextWith { .. } => "next-with",
        Reason::RunsWith { .. } => "runs-with",
    };
    let verdict = |(verdict, nodes): &(explain::Verdict, u32)| v1::Verdict {
        text: verdict.to_string(),
        nodes: *nodes,
        takes: *verdict == explain::Verdict::Takes,
    };
    let role = |role: &explain::RoleVerdict| v1::RoleVerdict {
        role: role.role.to_string(),
        nodes: role.nodes.iter().map(verdict).collect(),
    };
    let blocker = |blocker: &explain::Blocker| v1::Blocker {
        job: blocker.job.0,
        devices: blocker.devices,
        cpus_milli: blocker.cpus_milli,
        ends_by_ms: blocker.ends_by.map(|time| time.0),
    };
    v1::Explanation {
        sentence: explanation.reason.to_string(),
        reason: reason.into(),
        roles: explanation.roles.iter().map(role).collect(),
        blockers: explanation.blockers.iter().map(blocker).collect(),
        start: start.into(),
        start_ms,
        start_text: explanation.start.sentence(now).unwrap_or_default(),
        change: explanation.change.as_ref().map(ToString::to_string).unwrap_or_default(),
        text: explanation.text(job, now),
        gave_way_to: explanation.gave_way_to.map(|job| job.0),
    }
}

/// A reservation, with its state.
pub fn reservation(cluster: &Cluster, it: &Reservation) -> v1::ReservationState {
    v1::ReservationState {
        reservation: Some(reservations::reservation(cluster, it)),
        running: it.begun,
        conflicts: cluster.conflicts(it).into_iter().map(|job| job.0).collect(),
    }
}
