//! `aquifer explain NODE --device INDEX`: why a device takes no new work, what becomes of it, and what can be done.

use serde::Serialize;

use crate::output::{Color, Output, printable};
use crate::{doctor, units, view};

/// A device of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceExplanation {
    /// Its node.
    pub node: String,
    /// Its index.
    pub device: u32,
    /// What it is.
    pub model: String,
    /// Its unique name.
    pub uuid: String,
    /// Whether a job holds it.
    pub held: bool,
    /// Whether it takes new work, as soon as nobody holds it.
    pub takes_work: bool,
    /// Why not.
    pub reasons: Vec<Reason>,
}

/// Why a device takes no new work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// What keeps work away.
    pub what: String,
    /// Since when, in milliseconds of Unix time; null: not told.
    pub since_ms: Option<u64>,
    /// What becomes of what runs on it, and when it takes work again.
    pub then: String,
    /// What to do about it.
    pub next: String,
}

/// What becomes of a device in a state, as `docs/operations.md` has it.
fn then(health: &str) -> &'static str {
    match health {
        "suspect" => {
            "What runs on it runs on. It takes work again after ten minutes without anything new, or a passed probe."
        }
        "on probation" => {
            "What runs on it runs on. It takes work again after a minute in which it stays well, or a passed probe."
        }
        "quarantined" => {
            "What runs on it is placed elsewhere, as far as the pool can do without it. It comes back when nothing is said of it \
             any more, through probation."
        }
        "draining" | "to be reset" => "What runs on it is placed elsewhere. It comes back when it was reset.",
        "to be rebooted" => {
            "What runs on it is placed elsewhere. It comes back when its machine was restarted."
        }
        _ => "What runs on it is placed elsewhere. It comes back when it can be used again.",
    }
}

/// Why a device of a node takes no new work, if so.
pub fn explain(node: &view::Node, device: &view::Device) -> DeviceExplanation {
    let mut reasons = Vec::new();
    if let Some(fault) = &device.fault {
        reasons.push(Reason {
            what: format!("it is {}: {fault}", device.health),
            since_ms: device.fault_since_ms,
            then: then(&device.health).into(),
            next: doctor::advice(fault).into(),
        });
    }
    let mut kept = |what: String, then: &str, next: String| {
        reasons.push(Reason { what, since_ms: None, then: then.into(), next });
    };
    if device.cordoned {
        let next = format!("aquifer uncordon {} --device {}", node.name, device.index);
        kept("it is cordoned".into(), "It takes work again when it is uncordoned.", next);
    }
    let because = match &node.cordoned_because[..] {
        "" => String::new(),
        why => format!(", because it {why}"),
    };
    let uncordon = format!("aquifer uncordon {}", node.name);
    match &node.availability[..] {
        "cordoned" => kept(format!("its node is cordoned{because}"), "What runs there runs on.", uncordon),
        "draining" => kept("its node is drained".into(), "What runs there is placed elsewhere.", uncordon),
        _ => (),
    }
    if !node.up {
        let then = "What ran there is placed elsewhere when its lease has ended.";
        kept("its node is lost".into(), then, format!("see whether the agent of {} runs", node.name));
    }
    DeviceExplanation {
        node: node.name.clone(),
        device: device.index,
        model: device.model.clone(),
        uuid: device.uuid.clone(),
        held: device.held,
        takes_work: reasons.is_empty(),
        reasons,
    }
}

/// The explanation for people.
pub fn text(it: &DeviceExplanation, output: &Output) -> String {
    let name = format!("Device {} of {} ({}, {})", it.device, it.node, it.model, it.uuid);
    let sentence = match (it.takes_work, it.held) {
        (true, false) => format!("{name} takes work: it is free."),
        (true, true) => format!("{name} is held by a job, and takes work when that ends."),
        (false, _) => format!("{name} takes no new work."),
    };
    let mut parts = vec![output.paint(Color::Bold, &printable(&sentence))];
    for reason in &it.reasons {
        let since = reason.since_ms.map(|ms| format!(", since {}", units::time(ms))).unwrap_or_default();
        let lines =
            [format!("{}{since}", reason.what), reason.then.clone(), format!("To do: {}", reason.next)];
        parts.push(lines.map(|line| printable(&line)).join("\n  "));
    }
    if !it.takes_work && it.held {
        parts.push("A job holds it.".into());
    }
    parts.join("\n\n")
}
