//! `aquifer explain`: why a job waits, or a device takes no new work.

use std::process::ExitCode;

use anyhow::Result;
use aquifer_proto::core::JobId;
use aquifer_proto::v1;

use crate::client::{Client, Patience};
use crate::output::{Color, Failure, Output, Side, Table, printable};
use crate::{Session, explain_device, nodes, time_now, units, view};

/// Tell why a job waits, what holds what it needs, and what would let it start; or why a device takes no new work
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer explain job-7
  aquifer explain gpu-12 --device 3")]
pub struct Args {
    /// The job: job-7, or 7; with --device the name of a node
    #[arg(value_name = "JOB|NODE")]
    pub subject: String,
    /// Index of a device of the node
    #[arg(long, value_name = "INDEX")]
    pub device: Option<u16>,
}

/// Runs the command.
pub async fn run(args: Args, session: &Session) -> Result<ExitCode> {
    if let Some(index) = args.device {
        return device(&args.subject, index, session).await;
    }
    let job = args.subject.parse::<JobId>().map_err(|error| {
        Failure::usage(error, "of a node's devices it tells with --device: see `aquifer explain --help`")
    })?;
    let view = of_job(job, session).await?;
    match session.output.json {
        true => session.output.document(&view),
        false => session.output.text(text(&view, time_now(), &session.output)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks why a job waits.
///
/// # Errors
/// As of [`crate::client::Pool::call`].
pub async fn of_job(job: JobId, session: &Session) -> Result<view::Explanation, Failure> {
    let request = v1::ExplainRequest { job: job.0 };
    let explain = async |mut client: Client| client.explain(request).await;
    let answer = session.pool.call(Patience::Short, explain).await?;
    Ok(view::Explanation::new(Some(job.0), &answer))
}

async fn device(node: &str, index: u16, session: &Session) -> Result<ExitCode> {
    let it = of_device(node, index, session).await?;
    match session.output.json {
        true => session.output.document(&it),
        false => session.output.text(explain_device::text(&it, &session.output)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks why a device of a node takes no new work, or whether it does.
///
/// # Errors
/// As of [`crate::client::Pool::call`], and that there is no such device.
pub async fn of_device(
    node: &str,
    index: u16,
    session: &Session,
) -> Result<explain_device::DeviceExplanation, Failure> {
    let node = nodes::one(node, Patience::Short, session).await?;
    let Some(device) = node.devices.iter().find(|device| device.index == u32::from(index)) else {
        let what = format!("{} has no device {index}", node.name);
        return Err(Failure::refused(what, format!("`aquifer node {}` lists them", node.name)));
    };
    Ok(explain_device::explain(&node, device))
}

/// The explanation for people: a sentence, then the numbers.
pub fn text(view: &view::Explanation, now_ms: u64, output: &Output) -> String {
    let subject = view.job.as_deref().unwrap_or("The job");
    let sentence = match &view.job {
        Some(_) => view.sentence.clone(),
        // Of a job that does not exist yet, nothing happens; it would.
        None => match view.sentence.strip_prefix("waits") {
            Some(rest) => format!("would wait{rest}"),
            None => format!("would not start now: it {}", view.sentence),
        },
    };
    let sentence = format!("{subject} {}.", sentence.trim_end_matches('.'));
    let mut parts = vec![output.paint(Color::Bold, &printable(&sentence))];
    for role in &view.roles {
        let mut table = Table::new(&[("NODES", Side::Right), ("ANSWER", Side::Left)]).elastic(&[1]);
        for verdict in &role.verdicts {
            table.row([units::group(verdict.nodes.into()), verdict.text.clone()]);
        }
        let takes = |text: &str| role.verdicts.iter().any(|verdict| verdict.takes && verdict.text == text);
        let paint = |column, cell: &str| match column == 1 && takes(cell) {
            true => output.paint(Color::Green, cell),
            false => cell.into(),
        };
        let title = format!("What nodes say to a rank of role {}:", printable(&role.role));
        let title = if 1 < view.roles.len() { title + "\n" } else { String::new() };
        if !table.is_empty() {
            parts.push(title + &table.render(output, paint));
        }
    }
    if !view.blockers.is_empty() {
        let columns =
            [("HELD BY", Side::Left), ("DEVICES", Side::Right), ("CPUS", Side::Right), ("ENDS", Side::Left)];
        let mut table = Table::new(&columns);
        for blocker in &view.blockers {
            let ends = blocker.ends_by_ms.map_or("no time limit".into(), |at| within(at, now_ms));
            let devices = units::group(blocker.devices.into());
            table.row([blocker.job.clone(), devices, units::milli(blocker.cpus_milli), ends]);
        }
        parts.push(table.plain(output));
    }
    let mut last = Vec::new();
    if let Some(by) = &view.gave_way_to {
        last.push(format!("Its last attempt gave way to {by}."));
    }
    if !view.start_text.is_empty() {
        last.push(printable(&view.start_text));
    }
    if !view.change.is_empty() {
        last.push(printable(&format!("It would start now with {}.", view.change.trim_end_matches('.'))));
    }
    if !last.is_empty() {
        parts.push(last.join("\n"));
    }
    parts.join("\n\n")
}

/// `within 12m04s`.
fn within(at_ms: u64, now_ms: u64) -> String {
    match at_ms.checked_sub(now_ms) {
        Some(left) if 1000 <= left => format!("within {}", units::duration(left)),
        _ => "any moment".into(),
    }
}

/// Devices of a rank: `h200 0-3,6`.
pub fn devices(indices: &[u32], model: &str) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for index in indices {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => ranges.push((*index, *index)),
        }
    }
    let range = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    let ranges: Vec<String> = ranges.iter().map(range).collect();
    [model.to_string(), ranges.join(",")]
        .iter()
        .filter(|part| !part.is_empty())
        .cloned()
        .collect::<Vec<_>>()
        .join(" ")
}
