//! `aquifer overview`: the pool at a glance.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use aquifer_proto::v1;
use serde::Serialize;

use crate::client::{Client, Patience};
use crate::output::{Failure, Output, Side, Table};
use crate::view::STATES;
use crate::{Session, jobs, units, view};

/// Nodes of one question.
const PAGE: u32 = 1000;

/// Tell how many devices, nodes and jobs there are, by what they are and do
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer overview")]
pub struct Args {}

/// The pool at a glance.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Overview {
    /// By vendor and model.
    pub devices: Vec<Class>,
    /// How many nodes are up, cordoned, draining, lost.
    pub nodes: BTreeMap<&'static str, u64>,
    /// How many jobs are in each state.
    pub jobs: BTreeMap<&'static str, u64>,
}

/// Devices of one kind; each counts to the first that it is of lost, unwell, used, cordoned and idle.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Class {
    /// Who makes them.
    pub vendor: String,
    /// What they are.
    pub model: String,
    /// How many there are.
    pub devices: u64,
    /// Held by jobs.
    pub used: u64,
    /// Ready for work.
    pub idle: u64,
    /// With a fault.
    pub unwell: u64,
    /// Kept from new work by an administrator, alone or with their nodes.
    pub cordoned: u64,
    /// Of nodes that are not heard of.
    pub lost: u64,
}

/// What a device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Does {
    Used,
    Idle,
    Unwell,
    Cordoned,
    Lost,
}

impl Does {
    /// Of a device of a node.
    pub fn of(node: &view::Node, device: &view::Device) -> Does {
        match device {
            _ if !node.up => Does::Lost,
            view::Device { fault: Some(_), .. } => Does::Unwell,
            view::Device { held: true, .. } => Does::Used,
            view::Device { cordoned: true, .. } => Does::Cordoned,
            _ if node.availability != "open" => Does::Cordoned,
            _ => Does::Idle,
        }
    }
}

impl Overview {
    /// Counts a node with its devices.
    pub fn add(&mut self, node: &view::Node) {
        let states = ["up", "cordoned", "draining", "lost"];
        let state = states.into_iter().find(|state| *state == node.state).unwrap_or("up");
        *self.nodes.entry(state).or_default() += 1;
        for device in &node.devices {
            let of = |class: &&mut Class| class.vendor == device.vendor && class.model == device.model;
            let class = match self.devices.iter_mut().find(of) {
                Some(class) => class,
                None => {
                    let (vendor, model) = (device.vendor.clone(), device.model.clone());
                    self.devices.push(Class { vendor, model, ..Class::default() });
                    self.devices.last_mut().expect("one was added")
                }
            };
            class.devices += 1;
            *match Does::of(node, device) {
                Does::Used => &mut class.used,
                Does::Idle => &mut class.idle,
                Does::Unwell => &mut class.unwell,
                Does::Cordoned => &mut class.cordoned,
                Does::Lost => &mut class.lost,
            } += 1;
        }
    }

    /// Ends the counting of nodes.
    pub fn finish(&mut self, counts: &[(&'static str, u64)]) {
        self.devices.sort_by(|a, b| (&a.vendor, &a.model).cmp(&(&b.vendor, &b.model)));
        self.jobs = counts.iter().copied().collect();
    }
}

/// Asks for the overview; each node is shown to `see` as well.
///
/// # Errors
/// As of [`crate::client::Pool::call`].
pub async fn ask(session: &Session, mut see: impl FnMut(&view::Node)) -> Result<Overview, Failure> {
    let (mut overview, mut page_token) = (Overview::default(), String::new());
    loop {
        let request = v1::ListNodesRequest { page_size: PAGE, page_token, ..Default::default() };
        let list = async |mut client: Client| client.list_nodes(request.clone()).await;
        let page = session.pool.call(Patience::Short, list).await?;
        for node in &page.nodes {
            let node = view::Node::from(node);
            overview.add(&node);
            see(&node);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let one = jobs::page(&v1::ListRequest { page_size: 1, ..Default::default() }, session).await?;
    overview.finish(&one.counts);
    Ok(overview)
}

/// Runs the command.
pub async fn run(_: Args, session: &Session) -> Result<ExitCode> {
    let overview = ask(session, |_| ()).await?;
    match session.output.json {
        true => session.output.document(&overview),
        false => session.output.text(text(&overview, &session.output)),
    }
    Ok(ExitCode::SUCCESS)
}

/// The overview for people.
pub fn text(overview: &Overview, output: &Output) -> String {
    let columns = [
        ("VENDOR", Side::Left),
        ("MODEL", Side::Left),
        ("DEVICES", Side::Right),
        ("USED", Side::Right),
        ("IDLE", Side::Right),
        ("UNWELL", Side::Right),
        ("CORDONED", Side::Right),
        ("LOST", Side::Right),
    ];
    let mut table = Table::new(&columns).elastic(&[1]);
    for class in &overview.devices {
        let Class { vendor, model, devices, used, idle, unwell, cordoned, lost } = class;
        let counts = [devices, used, idle, unwell, cordoned, lost].map(|count| units::group(*count));
        table.row([vendor.clone(), model.clone()].into_iter().chain(counts));
    }
    let list = |counts: &BTreeMap<&'static str, u64>, order: &[&str]| {
        let some = order.iter().filter_map(|state| Some((state, counts.get(state).filter(|it| 0 < **it)?)));
        let some: Vec<String> =
            some.map(|(state, count)| format!("{} {state}", units::group(*count))).collect();
        if some.is_empty() { "none".into() } else { some.join(", ") }
    };
    let nodes = list(&overview.nodes, &["up", "cordoned", "draining", "lost"]);
    let jobs = list(&overview.jobs, &STATES.map(|(_, state)| state));
    let counts = format!("Nodes: {nodes}.\nJobs: {jobs}.");
    if table.is_empty() { counts } else { format!("{}\n\n{counts}", table.plain(output)) }
}
