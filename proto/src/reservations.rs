//! Reservations: at the border, on the wire, and in the store.

use aquifer_core::*;

use crate::border::{Invalid, name, pairs, text, users};
use crate::v1;

/// Of a reservation: nodes, at most.
const MAX_NODES: usize = 100_000;
/// Queues or users, at most.
const MAX_GUESTS: usize = 1000;
/// Between its start and its end, at most.
const MAX_MS: u64 = 366 * 86_400_000;

/// Checks what an administrator asks to be booked.
///
/// # Errors
/// Names the first field that cannot be accepted.
pub fn booking(wire: &v1::ReserveRequest) -> Result<Booking, Invalid> {
    let name = name("name", &wire.name)?;
    let chosen = wire.count != 0 || !wire.labels.is_empty() || !wire.model.is_empty();
    let nodes = match (wire.nodes.is_empty(), chosen) {
        (false, true) => {
            let value = format!("{} names", wire.nodes.len());
            return Err(Invalid::new(
                "nodes",
                value,
                "expected either names, or a count with labels and model",
            ));
        }
        (false, false) => BookedNodes::Named(names("nodes", &wire.nodes, MAX_NODES)?),
        (true, _) if wire.count == 0 || MAX_NODES < wire.count as usize => {
            let allowed = format!("expected 1 to {MAX_NODES} nodes, or their names");
            return Err(Invalid::new("count", wire.count, allowed));
        }
        (true, _) => {
            let model = text("model", &wire.model.to_lowercase(), 128)?;
            let model = (!model.is_empty()).then_some(model);
            BookedNodes::Chosen { count: wire.count, labels: pairs("labels", &wire.labels, 65_536)?, model }
        }
    };
    if let Some(start) = wire.start_ms {
        let allowed = "expected a time after start_ms, by 366 days at most";
        if wire.end_ms <= start || MAX_MS < wire.end_ms - start {
            return Err(Invalid::new("end_ms", wire.end_ms, allowed));
        }
    }
    let users = users("users", &wire.users, MAX_GUESTS)?;
    Ok(Booking {
        name,
        nodes,
        start: wire.start_ms.map(Time),
        end: Time(wire.end_ms),
        queues: names("queues", &wire.queues, MAX_GUESTS)?,
        users,
    })
}

fn names(field: &str, names: &[String], most: usize) -> Result<Vec<Name>, Invalid> {
    if most < names.len() {
        return Err(Invalid::new(field, names.len(), format!("at most {most}")));
    }
    names.iter().enumerate().map(|(at, text)| name(&format!("{field}[{at}]"), text)).collect()
}

/// A reservation for clients, with the names of its nodes.
pub fn reservation(cluster: &Cluster, it: &Reservation) -> v1::Reservation {
    v1::Reservation {
        name: it.name.to_string(),
        nodes: it.nodes.iter().map(|node| cluster.nodes().get(*node).name.to_string()).collect(),
        start_ms: it.start.0,
        end_ms: it.end.0,
        queues: it.queues.iter().map(ToString::to_string).collect(),
        users: it.users.iter().map(ToString::to_string).collect(),
    }
}

pub(crate) fn encode(it: &Reservation) -> v1::StoredReservation {
    v1::StoredReservation {
        name: it.name.to_string(),
        nodes: it.nodes.iter().map(|node| node.0).collect(),
        start_ms: it.start.0,
        end_ms: it.end.0,
        queues: it.queues.iter().map(ToString::to_string).collect(),
        users: it.users.iter().map(ToString::to_string).collect(),
        begun: it.begun,
    }
}

pub(crate) fn decode(wire: &v1::StoredReservation) -> Result<Reservation, Invalid> {
    Ok(Reservation {
        name: name("name", &wire.name)?,
        nodes: wire.nodes.iter().copied().map(NodeId).collect(),
        start: Time(wire.start_ms),
        end: Time(wire.end_ms),
        queues: names("queues", &wire.queues, MAX_GUESTS)?,
        users: wire.users.iter().map(|user| user.as_str().into()).collect(),
        begun: wire.begun,
    })
}
