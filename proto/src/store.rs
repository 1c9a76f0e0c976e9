//! Durable records: core to bytes, and back.

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_core::history::Totals;
use aquifer_core::jobs::{ArrayElement, Job, Outcome, Phase, Scale, Then, Usage, Why};
use aquifer_core::nodes::Node;
use aquifer_core::*;
use prost::Message;

use crate::border::{self, Invalid};
use crate::{reservations, tariff, v1, wire};

/// Kind of a record: the store's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    Spec,
    Job,
    Node,
    Queue,
    Usage,
    Reservation,
    /// Jobs that have retired, the newest first.
    Ended,
    /// What they were, by queue.
    Retired,
    /// One record: what device hours cost.
    Tariff,
}

impl Kind {
    /// All of them. A record's kind is stored as its place here: new ones are added at the end.
    pub const ALL: [Kind; 9] = [
        Kind::Spec,
        Kind::Job,
        Kind::Node,
        Kind::Queue,
        Kind::Usage,
        Kind::Reservation,
        Kind::Ended,
        Kind::Retired,
        Kind::Tariff,
    ];
    /// Those that a scheduler needs to go on.
    pub const LIVE: [Kind; 8] = [
        Kind::Spec,
        Kind::Job,
        Kind::Node,
        Kind::Queue,
        Kind::Usage,
        Kind::Reservation,
        Kind::Retired,
        Kind::Tariff,
    ];

    /// Name of the table.
    pub fn table(self) -> &'static str {
        match self {
            Kind::Spec => "specs",
            Kind::Job => "jobs",
            Kind::Node => "nodes",
            Kind::Queue => "queues",
            Kind::Usage => "usages",
            Kind::Reservation => "reservations",
            Kind::Ended => "ended",
            Kind::Retired => "retired",
            Kind::Tariff => "tariff",
        }
    }
}

/// A record as bytes, under its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its table.
    pub kind: Kind,
    /// Identity within the table: a number in big-endian order, or a name.
    pub key: Vec<u8>,
    /// The encoded record; `None`: there is none any more, and the earlier one is removed.
    pub value: Option<Vec<u8>>,
}

/// A record that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind:?} record {key:02x?}: {why}")]
pub struct Unreadable {
    kind: Kind,
    key: Vec<u8>,
    why: String,
}

/// Key of a job that has retired, and of all that were submitted before it.
pub fn ended_key(id: JobId) -> [u8; 8] {
    (u64::MAX - id.0).to_be_bytes()
}

/// Encodes a record.
pub fn encode(record: &Record) -> Row {
    let (kind, key, value) = match record {
        Record::Spec(id, spec) => {
            (Kind::Spec, id.0.to_be_bytes().into(), wire::job_spec(spec).encode_to_vec())
        }
        Record::Job(job) => (Kind::Job, job.id.0.to_be_bytes().into(), encode_job(job).encode_to_vec()),
        Record::Node(node) => (Kind::Node, node.id.0.to_be_bytes().into(), encode_node(node).encode_to_vec()),
        Record::Queue(queue) => {
            (Kind::Queue, queue.name.as_bytes().into(), wire::queue(queue).encode_to_vec())
        }
        Record::Usage(queue, usage) => {
            let wire = v1::StoredUsage { at_ms: usage.at.0, spent: usage.spent };
            (Kind::Usage, queue.as_bytes().into(), wire.encode_to_vec())
        }
        Record::Reservation(it) => {
            (Kind::Reservation, it.name.as_bytes().into(), reservations::encode(it).encode_to_vec())
        }
        Record::Tariff(it) => {
            let wire = v1::StoredTariff { prices: tariff::prices(it) };
            (Kind::Tariff, b"all".into(), wire.encode_to_vec())
        }
        Record::Ended(job) => (Kind::Ended, ended_key(job.id).into(), encode_ended(job).encode_to_vec()),
        Record::Retired(queue, totals) => {
            (Kind::Retired, queue.as_bytes().into(), encode_totals(totals).encode_to_vec())
        }
        Record::NoJob(id) => return Row { kind: Kind::Job, key: id.0.to_be_bytes().into(), value: None },
        Record::NoSpec(id) => return Row { kind: Kind::Spec, key: id.0.to_be_bytes().into(), value: None },
        Record::NoReservation(name) => {
            return Row { kind: Kind::Reservation, key: name.as_bytes().into(), value: None };
        }
    };
    Row { kind, key, value: Some(value) }
}

/// Decodes all records of a store, in any order.
///
/// # Errors
/// Names the first record that cannot be read. Nothing is skipped.
pub fn decode_all(rows: impl IntoIterator<Item = Row>) -> Result<Vec<Record>, Unreadable> {
    let (specs, others): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| row.kind == Kind::Spec);
    let mut by_id: BTreeMap<u64, Arc<JobSpec>> = BTreeMap::new();
    for row in &specs {
        let spec = decode(row, |wire: v1::JobSpec| border::job_spec(&wire))?;
        by_id.insert(number(row)?, Arc::new(spec));
    }
    for row in others.iter().filter(|row| row.kind == Kind::Ended) {
        let own = |wire: v1::StoredJob| wire.own_spec.as_ref().map(border::job_spec).transpose();
        let id = u64::MAX - number(row)?;
        by_id.extend(decode(row, own)?.map(|spec| (id, Arc::new(spec))));
    }
    let others = others.iter().map(|row| match row.kind {
        Kind::Job => {
            let id = number(row)?;
            decode(row, |wire| decode_job(id, &wire, &by_id)).map(|job| Record::Job(Arc::new(job)))
        }
        Kind::Node => {
            let id = NodeId(number(row)? as u32);
            decode(row, |wire| decode_node(id, &wire)).map(Record::Node)
        }
        Kind::Queue => decode(row, |wire| border::queue(&wire)).map(Record::Queue),
        Kind::Usage => decode(row, |wire: v1::StoredUsage| {
            let queue = border::name("queue", &String::from_utf8_lossy(&row.key))?;
            Ok(Record::Usage(queue, QueueUsage { at: Time(wire.at_ms), spent: wire.spent }))
        }),
        Kind::Reservation => decode(row, |wire| reservations::decode(&wire)).map(Record::Reservation),
        Kind::Tariff => decode(row, |wire| Ok(Record::Tariff(Arc::new(tariff::decode(&wire)?)))),
        Kind::Ended => {
            let id = u64::MAX - number(row)?;
            decode(row, |wire| decode_job(id, &wire, &by_id)).map(|job| Record::Ended(Arc::new(job)))
        }
        Kind::Retired => decode(row, |wire: v1::StoredTotals| {
            let queue = border::name("queue", &String::from_utf8_lossy(&row.key))?;
            Ok(Record::Retired(queue, decode_totals(&wire)))
        }),
        Kind::Spec => unreachable!("specifications were set apart"),
    });
    others.collect()
}

fn decode<M: Message + Default, T>(
    row: &Row,
    read: impl FnOnce(M) -> Result<T, Invalid>,
) -> Result<T, Unreadable> {
    let unreadable = |why: String| Unreadable { kind: row.kind, key: row.key.clone(), why };
    let value = row.value.as_deref().unwrap_or_default();
    let wire = M::decode(value).map_err(|error| unreadable(error.to_string()))?;
    read(wire).map_err(|invalid| unreadable(invalid.to_string()))
}

fn number(row: &Row) -> Result<u64, Unreadable> {
    let unreadable = Unreadable { kind: row.kind, key: row.key.clone(), why: "key is no number".into() };
    match row.key.len() {
        4 => Ok(u32::from_be_bytes(row.key[..].try_into().expect("4 bytes")).into()),
        8 => Ok(u64::from_be_bytes(row.key[..].try_into().expect("8 bytes"))),
        _ => Err(unreadable),
    }
}

fn encode_job(job: &Job) -> v1::StoredJob {
    use v1::stored_job::Phase as Wire;
    let phase = match &job.phase {
        Phase::Pending(not_before) => Wire::PendingMs(not_before.0),
        Phase::Active => Wire::Active(true),
        Phase::Stopping(Then::Requeue) => Wire::Requeuing(true),
        Phase::Stopping(Then::Resize(stays)) => Wire::Resizing(v1::StoredResize { stays: stays.clone() }),
        Phase::Stopping(Then::Finish(outcome)) => Wire::Finishing(encode_outcome(outcome)),
        Phase::Done(outcome) => Wire::Done(encode_outcome(outcome)),
    };
    v1::StoredJob {
        spec: job.array.map_or(job.id, |array| array.first).0,
        array_index: job.array.map(|array| array.index),
        submitted_ms: job.submitted.0,
        phase: Some(phase),
        attempt: job.attempt,
        failures: job.failures,
        ranks: job.ranks.iter().map(wire::allocation).collect(),
        worth_milli: Some(job.worth_milli),
        last_nodes: job.last_nodes.iter().map(|node| node.0).collect(),
        began_ms: job.began.map(|time| time.0),
        placed_ms: job.placed.map(|time| time.0),
        first_placed_ms: job.first_placed.map(|time| time.0),
        ended_ms: job.ended.map(|time| time.0),
        last_failure: job.last_failure.as_ref().map(encode_why),
        device_ms: job.usage.device_ms,
        cpu_milli_ms: job.usage.cpu_milli_ms,
        lost_device_ms: job.usage.lost_device_ms,
        counted_ms: job.usage.counted_ms,
        counted_at_ms: Some(job.usage.counted_at.0),
        scale_ranks: job.scale.and_then(|scale| scale.ranks),
        scale_ms: job.scale.map(|scale| scale.at.0),
        own_spec: None,
        spent: encode_spent(job.usage.spent),
    }
}

fn encode_ended(job: &Job) -> v1::StoredJob {
    let is_first = job.array.is_none_or(|array| array.first == job.id);
    v1::StoredJob { own_spec: is_first.then(|| wire::job_spec(&job.spec)), ..encode_job(job) }
}

/// The first of the array that a job which has retired is a further element of: its record has the specification.
///
/// # Errors
/// When the record cannot be read.
pub fn spec_elsewhere(row: &Row) -> Result<Option<JobId>, Unreadable> {
    decode(row, |wire: v1::StoredJob| Ok(wire.own_spec.is_none().then_some(JobId(wire.spec))))
}

fn encode_totals(totals: &Totals) -> v1::StoredTotals {
    v1::StoredTotals {
        succeeded: totals.succeeded,
        failed: totals.failed,
        unreachable: totals.unreachable,
        cancelled: totals.cancelled,
        timed_out: totals.timed_out,
        device_ms: totals.device_ms,
        lost_device_ms: totals.lost_device_ms,
        spent: encode_spent(totals.spent),
    }
}

fn decode_totals(wire: &v1::StoredTotals) -> Totals {
    Totals {
        succeeded: wire.succeeded,
        failed: wire.failed,
        unreachable: wire.unreachable,
        cancelled: wire.cancelled,
        timed_out: wire.timed_out,
        device_ms: wire.device_ms,
        lost_device_ms: wire.lost_device_ms,
        spent: decode_spent(wire.spent.as_ref()),
    }
}

fn encode_spent(spent: Spent) -> Option<v1::Spent> {
    (spent != Spent::default()).then(|| wire::spent(spent))
}

fn decode_spent(wire: Option<&v1::Spent>) -> Spent {
    wire.map(border::spent).unwrap_or_default()
}

fn encode_outcome(outcome: &Outcome) -> v1::StoredOutcome {
    use v1::stored_outcome::Outcome as Wire;
    let outcome = match outcome {
        Outcome::Succeeded => Wire::Succeeded(true),
        Outcome::Failed(why) => Wire::Failed(encode_why(why)),
        Outcome::Unreachable(job) => Wire::Unreachable(job.0),
        Outcome::Cancelled => Wire::Cancelled(true),
        Outcome::TimedOut => Wire::TimedOut(true),
    };
    v1::StoredOutcome { outcome: Some(outcome) }
}

fn encode_why(why: &Why) -> v1::StoredWhy {
    use v1::stored_why::Why as Wire;
    let (rank, node, why) = match why {
        Why::Preempted { by, at } => {
            let (why, preempted_ms) = (Some(Wire::Preempted(by.0)), at.0);
            return v1::StoredWhy { why, preempted_ms, ..Default::default() };
        }
        Why::Resized { from, to, by, at } => {
            let by = by.map_or(0, |by| by.0);
            let why = Some(Wire::Resized(v1::StoredResized { from: *from, to: *to, by }));
            return v1::StoredWhy { why, preempted_ms: at.0, ..Default::default() };
        }
        Why::Moved { from, to } => {
            let why = Some(Wire::Moved(v1::StoredMove { from: from.to_string(), to: to.to_string() }));
            return v1::StoredWhy { why, ..Default::default() };
        }
        Why::MadeRoom { by, at } => {
            let (why, preempted_ms) = (Some(Wire::MadeRoom(by.0)), at.0);
            return v1::StoredWhy { why, preempted_ms, ..Default::default() };
        }
        Why::WorkerFailed { rank, node, exit } => (rank, node, Wire::Exit(wire::exit(exit))),
        Why::RankLost { rank, node } => (rank, node, Wire::Lost(true)),
        Why::DeviceBad { rank, node, device, fault } => {
            let bad = v1::StoredDeviceBad { device: (*device).into(), fault: fault.to_string() };
            (rank, node, Wire::DeviceBad(bad))
        }
        Why::Drained { rank, node } => (rank, node, Wire::Drained(true)),
        Why::Booked { rank, node, reservation } => (rank, node, Wire::Booked(reservation.to_string())),
    };
    v1::StoredWhy { rank: *rank, node: node.to_string(), why: Some(why), preempted_ms: 0 }
}

fn encode_node(node: &Node) -> v1::StoredNode {
    v1::StoredNode {
        name: node.name.to_string(),
        agent: node.agent.to_string(),
        inventory: Some(wire::inventory(&node.inventory)),
        up: node.up,
        boot: node.boot,
        availability: wire::availability(node.availability).into(),
        cordoned: node.cordoned.iter().map(ToString::to_string).collect(),
        quarantined: node
            .quarantined
            .iter()
            .map(|(uuid, since)| v1::StoredQuarantine { uuid: uuid.to_string(), since_ms: since.0 })
            .collect(),
        blame: node
            .blame
            .as_ref()
            .map(|blame| v1::StoredBlame { at_ms: blame.at.0, why: blame.why.to_string() }),
    }
}

fn decode_job(id: u64, wire: &v1::StoredJob, specs: &BTreeMap<u64, Arc<JobSpec>>) -> Result<Job, Invalid> {
    use v1::stored_job::Phase as Wire;
    let spec = specs.get(&wire.spec).cloned();
    let spec = spec.ok_or_else(|| Invalid::new("spec", wire.spec, "expected a stored specification"))?;
    let phase = match &wire.phase {
        Some(Wire::PendingMs(not_before)) => Phase::Pending(Time(*not_before)),
        Some(Wire::Active(_)) => Phase::Active,
        Some(Wire::Requeuing(_)) => Phase::Stopping(Then::Requeue),
        Some(Wire::Resizing(resize)) => {
            let known = |rank: &u32| (*rank as usize) < wire.ranks.len();
            if let Some(rank) = resize.stays.iter().find(|rank| !known(rank)) {
                return Err(Invalid::new("stays", rank, format!("expected less than {}", wire.ranks.len())));
            }
            Phase::Stopping(Then::Resize(resize.stays.clone()))
        }
        Some(Wire::Finishing(outcome)) => Phase::Stopping(Then::Finish(decode_outcome(outcome)?)),
        Some(Wire::Done(outcome)) => Phase::Done(decode_outcome(outcome)?),
        None => return Err(Invalid::new("phase", "absent", "expected a phase")),
    };
    let element = |index| ArrayElement { first: JobId(wire.spec), index };
    let ranks = (0..).zip(&wire.ranks).map(|(at, rank)| border::allocation(at, rank));
    let ranks = ranks.collect::<Result<Vec<Allocation>, _>>()?;
    Ok(Job {
        id: JobId(id),
        spec,
        array: wire.array_index.map(element),
        submitted: Time(wire.submitted_ms),
        phase,
        attempt: wire.attempt,
        failures: wire.failures,
        worth_milli: wire.worth_milli.unwrap_or(ranks.iter().map(|rank| rank.charge_milli).sum()),
        ranks,
        last_nodes: wire.last_nodes.iter().copied().map(NodeId).collect(),
        began: wire.began_ms.or(wire.placed_ms).map(Time),
        placed: wire.placed_ms.map(Time),
        first_placed: wire.first_placed_ms.map(Time),
        ended: wire.ended_ms.map(Time),
        last_failure: wire.last_failure.as_ref().map(decode_why).transpose()?,
        usage: Usage {
            device_ms: wire.device_ms,
            cpu_milli_ms: wire.cpu_milli_ms,
            lost_device_ms: wire.lost_device_ms,
            counted_ms: wire.counted_ms,
            counted_at: Time(wire.counted_at_ms.or(wire.placed_ms).unwrap_or(0)),
            spent: decode_spent(wire.spent.as_ref()),
        },
        scale: wire.scale_ms.map(|ms| Scale { ranks: wire.scale_ranks, at: Time(ms) }),
    })
}

fn decode_outcome(wire: &v1::StoredOutcome) -> Result<Outcome, Invalid> {
    use v1::stored_outcome::Outcome as Wire;
    Ok(match &wire.outcome {
        Some(Wire::Succeeded(_)) => Outcome::Succeeded,
        Some(Wire::Failed(why)) => Outcome::Failed(decode_why(why)?),
        Some(Wire::Unreachable(job)) => Outcome::Unreachable(JobId(*job)),
        Some(Wire::Cancelled(_)) => Outcome::Cancelled,
        Some(Wire::TimedOut(_)) => Outcome::TimedOut,
        None => return Err(Invalid::new("outcome", "absent", "expected an outcome")),
    })
}

fn decode_why(wire: &v1::StoredWhy) -> Result<Why, Invalid> {
    use v1::stored_why::Why as Wire;
    let (rank, node) = (wire.rank, Name::from(wire.node.as_str()));
    Ok(match &wire.why {
        Some(Wire::Exit(exit)) => Why::WorkerFailed { rank, node, exit: border::exit(exit)? },
        Some(Wire::Lost(_)) => Why::RankLost { rank, node },
        Some(Wire::DeviceBad(bad)) => {
            let wide = |_| Invalid::new("device_bad.device", bad.device, "at most 65,535");
            let device = u16::try_from(bad.device).map_err(wide)?;
            Why::DeviceBad { rank, node, device, fault: (*bad.fault).into() }
        }
        Some(Wire::Drained(_)) => Why::Drained { rank, node },
        Some(Wire::Booked(name)) => Why::Booked { rank, node, reservation: border::name("booked", name)? },
        Some(Wire::Preempted(by)) => {
            Why::Preempted { by: border::job_id("preempted", *by)?, at: Time(wire.preempted_ms) }
        }
        Some(Wire::Resized(resized)) => {
            let by = (resized.by != 0).then_some(JobId(resized.by));
            Why::Resized { from: resized.from, to: resized.to, by, at: Time(wire.preempted_ms) }
        }
        Some(Wire::MadeRoom(by)) => {
            Why::MadeRoom { by: border::job_id("made_room", *by)?, at: Time(wire.preempted_ms) }
        }
        Some(Wire::Moved(moved)) => Why::Moved { from: (*moved.from).into(), to: (*moved.to).into() },
        None => return Err(Invalid::new("why", "absent", "expected a reason")),
    })
}

fn decode_node(id: NodeId, wire: &v1::StoredNode) -> Result<Node, Invalid> {
    let availability = match wire.availability() {
        v1::Availability::Open => Availability::Open,
        v1::Availability::Cordoned => Availability::Cordoned,
        v1::Availability::Draining => Availability::Draining,
        v1::Availability::Unspecified => {
            return Err(Invalid::new("availability", wire.availability, "expected an availability"));
        }
    };
    let default = v1::Inventory::default();
    Ok(Node {
        id,
        name: border::name("name", &wire.name)?,
        agent: (*wire.agent).into(),
        inventory: Arc::new(border::inventory(wire.inventory.as_ref().unwrap_or(&default))?),
        up: wire.up,
        boot: wire.boot,
        availability,
        cordoned: wire.cordoned.iter().map(|uuid| (**uuid).into()).collect(),
        quarantined: wire.quarantined.iter().map(|it| ((*it.uuid).into(), Time(it.since_ms))).collect(),
        blame: wire.blame.as_ref().map(|it| Blame { at: Time(it.at_ms), why: (*it.why).into() }),
    })
}

#[cfg(test)]
mod tests;
