//! `aquifer nodes` and `aquifer node`: what the pool has.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;

use crate::client::Patience;
use crate::output::{Color, Failure, Output, Side, Table, pairs, printable};
use crate::{Session, explain, figures, reservations, units, view};

/// List nodes, with what is free on them
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer nodes

Numbers are free of all: 6/8 h200 are six free ones of eight; at 2.5: an hour of each costs so much.")]
pub struct ListArgs {}

/// Show everything about one node
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer node gpu-12")]
pub struct ShowArgs {
    /// Name of the node
    #[arg(value_name = "NODE")]
    pub name: String,
}

/// Runs `aquifer nodes`.
pub async fn list(session: &Session) -> Result<ExitCode> {
    let nodes = ask("", Patience::Short, session).await?;
    if session.output.json {
        session.output.document(&nodes);
    } else if nodes.is_empty() {
        session.output.text("The pool has no nodes.");
        session.output.hint("`aquifer agent`, started on a machine, makes it one");
    } else {
        session.output.text(text(&nodes, &session.output));
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `aquifer node`.
pub async fn show(args: ShowArgs, session: &Session) -> Result<ExitCode> {
    let node = one(&args.name, Patience::Short, session).await?;
    match session.output.json {
        true => session.output.document(&node),
        false => session.output.text(details(&node, &session.output)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks for the node of a name; for all if it is empty.
async fn ask(name: &str, patience: Patience, session: &Session) -> Result<Vec<view::Node>, Failure> {
    let nodes = session.pool.nodes(name, patience).await?;
    Ok(nodes.iter().map(view::Node::from).collect())
}

/// Asks for one node.
pub async fn one(name: &str, patience: Patience, session: &Session) -> Result<view::Node, Failure> {
    let missing = || Failure::refused(format!("the pool has no node {name:?}"), "`aquifer nodes` lists them");
    if name.is_empty() {
        return Err(missing());
    }
    let found = ask(name, patience, session).await?;
    found.into_iter().find(|node| node.name == name).ok_or_else(missing)
}

/// The nodes for people; what agents found missing or broken stands below the table.
pub fn text(nodes: &[view::Node], output: &Output) -> String {
    const STATE: usize = 1;
    let columns = [
        ("NAME", Side::Left),
        ("STATE", Side::Left),
        ("DEVICES", Side::Left),
        ("CPUS", Side::Right),
        ("MEMORY", Side::Right),
        ("WORKERS", Side::Right),
    ];
    let mut table = Table::new(&columns).elastic(&[2, 0]);
    let mut findings = Vec::new();
    for node in nodes {
        table.row([
            node.name.clone(),
            node.state.clone(),
            devices(node),
            cpus(node),
            memory(node),
            units::group(node.workers.len() as u64),
        ]);
        let faults = node.devices.iter().filter_map(|device| Some((device, device.fault.as_ref()?)));
        let faults = faults.map(|(device, fault)| {
            format!("device {} ({}) is {}: {fault}", device.index, device.model, device.health)
        });
        let because = Some(&node.cordoned_because).filter(|why| !why.is_empty());
        let because = because.map(|why| format!("cordoned, because {why}"));
        let told = because.into_iter().chain(faults).chain(node.findings.iter().cloned());
        findings.extend(told.map(|what| format!("{}: {what}", node.name)));
    }
    let mut text =
        table.render(output, |column, cell| if column == STATE { output.state(cell) } else { cell.into() });
    let mut booked: BTreeMap<&str, (&view::Reservation, Vec<&str>)> = BTreeMap::new();
    for (node, it) in nodes.iter().flat_map(|node| node.reservations.iter().map(move |it| (node, it))) {
        booked.entry(&it.name).or_insert((it, Vec::new())).1.push(&node.name);
    }
    if !booked.is_empty() {
        let line = |(it, nodes): &(&view::Reservation, Vec<&str>)| {
            let nodes = nodes.join(" ");
            printable(&format!("{nodes}: booked by reservation {}, {}", it.name, reservations::period(it)))
        };
        text += &format!("\n\n{}", booked.values().map(line).collect::<Vec<String>>().join("\n"));
    }
    if !findings.is_empty() {
        let line = |finding: &String| output.paint(Color::Yellow, &printable(finding));
        text += &format!("\n\n{}", findings.iter().map(line).collect::<Vec<String>>().join("\n"));
    }
    text
}

/// `6/8 h200 at 2.5, 4/4 ascend-910b`, and how many take no new work.
fn devices(node: &view::Node) -> String {
    let mut models: BTreeMap<(&str, Option<u64>), (u32, u32)> = BTreeMap::new();
    let mut out: BTreeMap<&str, u32> = BTreeMap::new();
    for device in &node.devices {
        let (free, all) = models.entry((&device.model, device.price_milli)).or_default();
        *all += 1;
        *free += u32::from(!device.held && device.fault.is_none() && !device.cordoned);
        let reason = if device.fault.is_some() { &device.health[..] } else { "cordoned" };
        if device.fault.is_some() || device.cordoned {
            *out.entry(reason).or_default() += 1;
        }
    }
    let model = |((model, price), (free, all)): (&(&str, Option<u64>), &(u32, u32))| {
        let price = price.map(|milli| format!(" at {}", units::milli(milli))).unwrap_or_default();
        format!("{free}/{all} {model}{price}")
    };
    let mut parts: Vec<String> = models.iter().map(model).collect();
    parts.extend(out.iter().map(|(reason, count)| format!("{count} {reason}")));
    parts.join(", ")
}

fn cpus(node: &view::Node) -> String {
    let all = u64::from(node.cpus_milli);
    format!("{}/{}", units::milli(all.saturating_sub(node.cpus_milli_held)), units::milli(all))
}

fn memory(node: &view::Node) -> String {
    let free = node.memory_bytes.saturating_sub(node.memory_bytes_held);
    format!("{} / {}", units::size(free), units::size(node.memory_bytes))
}

/// One node for people.
pub fn details(node: &view::Node, output: &Output) -> String {
    let labels = node.labels.iter().map(|(key, value)| format!("{key}={value}"));
    let booked = node.reservations.iter().map(|it| format!("{}, {}", it.name, reservations::period(it)));
    let ports = (node.last_port != 0).then(|| format!("{}-{}", node.first_port, node.last_port));
    let about = [
        ("node", node.name.clone()),
        ("state", node.state.clone()),
        ("cordoned because", node.cordoned_because.clone()),
        ("availability", if node.up { String::new() } else { node.availability.clone() }),
        ("address", node.address.clone()),
        ("ports", ports.unwrap_or_default()),
        ("labels", labels.collect::<Vec<String>>().join(" ")),
        ("containers", node.engine.clone()),
        (
            "lease",
            if node.up { format!("{} left", units::duration(node.lease_left_ms)) } else { String::new() },
        ),
        ("version", node.version.clone()),
        ("free cores", cpus(node)),
        ("free memory", memory(node)),
        ("workers", node.workers.join(" ")),
        ("booked by", booked.collect::<Vec<String>>().join("; ")),
    ];
    let mut parts = vec![pairs(&about)];
    if !node.devices.is_empty() {
        let columns = [
            ("DEVICE", Side::Right),
            ("MODEL", Side::Left),
            ("VENDOR", Side::Left),
            ("MEMORY", Side::Right),
            ("SPEED", Side::Right),
            ("PRICE", Side::Right),
            ("SLICES", Side::Left),
            ("STATE", Side::Left),
            ("UUID", Side::Left),
        ];
        let mut table = Table::new(&columns).elastic(&[8, 7]);
        for device in &node.devices {
            let state = match (&device.fault, device.cordoned, device.held) {
                (Some(fault), ..) => format!("{}: {fault}", device.health),
                (None, true, true) => "held, cordoned".into(),
                (None, true, false) => "cordoned".into(),
                (None, false, true) => "held".into(),
                (None, false, false) => "free".into(),
            };
            table.row([
                explain::devices(&[device.index], ""),
                device.model.clone(),
                device.vendor.clone(),
                units::size(device.memory_bytes),
                units::milli(device.speed_milli.into()),
                device.price_milli.map(units::milli).unwrap_or_default(),
                device.isolation.clone(),
                state,
                device.uuid.clone(),
            ]);
        }
        parts.push(table.plain(output));
    }
    let told = node.devices.iter().filter(|it| !it.speed_source.is_empty());
    let of = |it: &view::Device| figures::parts(&it.speed_source, it.measured.as_ref(), it.memory_gbs);
    let sources: BTreeMap<&str, String> =
        told.map(|it| (&it.model[..], printable(&format!("{}: {}", it.model, of(it).join(", "))))).collect();
    if !sources.is_empty() {
        parts.push(sources.into_values().collect::<Vec<String>>().join("\n"));
    }
    if !node.findings.is_empty() {
        let line = |finding: &String| output.paint(Color::Yellow, &printable(finding));
        parts.push(node.findings.iter().map(line).collect::<Vec<String>>().join("\n"));
    }
    parts.join("\n\n")
}
