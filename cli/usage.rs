//! `aquifer usage`: who used what.

use std::process::ExitCode;

use anyhow::Result;
use aquifer_proto::v1;

use crate::client::{Client, Patience};
use crate::job_file::Span;
use crate::output::{Failure, Output, Side, Table};
use crate::{Session, time_now, units, view};

/// Tell who used what, by queue and user
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer usage --since 30d")]
pub struct Args {
    /// Only jobs submitted so long ago, or later: 90m, 12h, 7d; 0 for all
    #[arg(long, value_name = "DURATION", default_value = "7d")]
    pub since: Span<0, 36_500>,
}

/// Runs the command.
pub async fn run(args: Args, session: &Session) -> Result<ExitCode> {
    let since_ms = if args.since.0 == 0 { 0 } else { time_now().saturating_sub(args.since.0) };
    let view = ask(since_ms, session).await?;
    match session.output.json {
        true => session.output.document(&view),
        false => session.output.text(text(&view, &session.output)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks who used what, by jobs that were submitted since then.
///
/// # Errors
/// As of [`crate::client::Pool::call`].
pub async fn ask(since_ms: u64, session: &Session) -> Result<view::Usage, Failure> {
    let usage = async |mut client: Client| client.usage(v1::UsageRequest { since_ms }).await;
    let answer = session.pool.call(Patience::Short, usage).await?;
    Ok(view::Usage {
        since_ms,
        devices: answer.devices,
        devices_held: answer.devices_held,
        has_prices: answer.has_prices,
        rows: answer.rows.iter().map(view::UsageRow::from).collect(),
    })
}

/// Usage for people. Hours are of devices and of cores.
pub fn text(usage: &view::Usage, output: &Output) -> String {
    let columns = [
        ("QUEUE", Side::Left),
        ("USER", Side::Left),
        ("JOBS", Side::Right),
        ("SUCCEEDED", Side::Right),
        ("FAILED", Side::Right),
        ("DEVICE HOURS", Side::Right),
        (if usage.has_prices { "COST" } else { "COUNTED" }, Side::Right),
        ("LOST", Side::Right),
        ("EFFECTIVE", Side::Right),
        ("OF CAPACITY", Side::Right),
        ("CPU HOURS", Side::Right),
        ("MEAN WAIT", Side::Right),
    ];
    let mut table = Table::new(&columns).elastic(&[1, 0]);
    for row in &usage.rows {
        table.row([
            row.queue.clone(),
            row.user.clone(),
            units::group(row.jobs),
            units::group(row.succeeded),
            units::group(row.failed),
            units::hours(row.device_ms),
            units::hours(row.counted_ms),
            units::hours(row.lost_device_ms),
            match row.trained_ms {
                0 => String::new(),
                all => format!("{:.1} %", 100.0 * row.effective_ms as f64 / all as f64),
            },
            match row.held_ms {
                0 => String::new(),
                all => format!("{:.1} %", 100.0 * row.worked_ms as f64 / all as f64),
            },
            units::hours(row.cpu_milli_ms / 1000),
            units::duration(row.waited_ms / row.jobs.max(1)),
        ]);
    }
    let now = format!(
        "{} of {} devices are held now.",
        units::group(usage.devices_held),
        units::group(usage.devices)
    );
    match table.is_empty() {
        true => format!("No jobs.\n\n{now}"),
        false => format!("{}\n\n{now}", table.plain(output)),
    }
}
