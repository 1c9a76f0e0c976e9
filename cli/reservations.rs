//! `aquifer reserve`, `reservations` and `unreserve`: nodes that are booked for a period.

use std::process::ExitCode;

use anyhow::Result;
use aquifer_proto::{reservations as border, v1};
use serde::Serialize;

use crate::client::{Client, Patience};
use crate::output::{Failure, Output, Side, Table};
use crate::{Session, time_now, units, view};

/// Book nodes for a period: for maintenance, or for the jobs of some users and queues
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer reserve maint --nodes gpu-1,gpu-2 --at 2031-02-03T08:00Z --for 4h
  aquifer reserve course --count 2 --class h100 --label rack=a --in 2h --for 90m --queue class --user ada

Before it begins, only jobs that certainly end in time start on its nodes; what still runs there then is stopped with
its grace and placed elsewhere. Jobs of the queues and users may use it, no others.")]
pub struct ReserveArgs {
    /// Name of the reservation: letters, digits, '.', '_', '-'
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Names of nodes, joined by commas
    #[arg(long, value_name = "NODES", value_delimiter = ',', required_unless_present = "count")]
    pub nodes: Vec<String>,
    /// So many nodes, which the scheduler chooses: the soonest empty ones that cost least
    #[arg(long, value_name = "N", conflicts_with = "nodes", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub count: Option<u32>,
    /// With --count: a label that each must have; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", requires = "count", value_parser = crate::flags::pair)]
    pub labels: Vec<(String, String)>,
    /// With --count: model of a device that each must have, or its first words
    #[arg(long, value_name = "MODEL", requires = "count")]
    pub class: Option<String>,
    /// When it begins, from now: 90s, 30m, 2h, 1d. Default: now
    #[arg(long = "in", value_name = "DURATION", value_parser = units::parse_duration, conflicts_with = "at")]
    pub after: Option<u64>,
    /// When it begins, in UTC: 2031-02-03T04:05Z. Default: now
    #[arg(long, value_name = "TIME", value_parser = units::parse_time)]
    pub at: Option<u64>,
    /// How long it lasts: up to 366d
    #[arg(long = "for", value_name = "DURATION", value_parser = units::parse_duration)]
    pub length: u64,
    /// Queue whose jobs may use it, with those below it; may be repeated. Default: none
    #[arg(long = "queue", value_name = "QUEUE")]
    pub queues: Vec<String>,
    /// User whose jobs may use it; may be repeated. Default: none
    #[arg(long = "user", value_name = "USER")]
    pub users: Vec<String>,
}

/// List reservations that are not over
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer reservations")]
pub struct ListArgs {}

/// Give reservations up
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer unreserve maint")]
pub struct UnreserveArgs {
    /// Names of reservations
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// A reservation, as the list prints it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Listed {
    /// What it is.
    #[serde(flatten)]
    pub reservation: view::Reservation,
    /// `to-come` or `running`.
    pub state: &'static str,
    /// Jobs on its nodes that may not use it, `job-7`.
    pub conflicts: Vec<String>,
}

/// Runs `aquifer reserve`.
pub async fn reserve(args: ReserveArgs, session: &Session) -> Result<ExitCode> {
    let now = time_now();
    let start_ms = args.at.or(args.after.filter(|ms| *ms != 0).map(|ms| now.saturating_add(ms)));
    let request = v1::ReserveRequest {
        name: args.name,
        nodes: args.nodes,
        count: args.count.unwrap_or(0),
        labels: args.labels.into_iter().collect(),
        model: args.class.unwrap_or_default(),
        start_ms,
        end_ms: start_ms.unwrap_or(now).saturating_add(args.length),
        queues: args.queues,
        users: args.users,
    };
    border::booking(&request)
        .map_err(|invalid| Failure::refused(invalid.to_string(), "correct it and try again"))?;
    let ask = async |mut client: Client| client.reserve(request.clone()).await;
    let answer = session.pool.call(Patience::Long, ask).await?;
    let made = view::Reservation::from(&answer.reservation.unwrap_or_default());
    match session.output.json {
        true => session.output.document(&made),
        false => session.output.text(sentence(&made)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `aquifer reservations`.
pub async fn list(session: &Session) -> Result<ExitCode> {
    let all = ask(session).await?;
    if session.output.json {
        session.output.document(&all);
    } else if all.is_empty() {
        session.output.text("Nothing is booked.");
        session.output.hint("`aquifer reserve` books nodes for a period");
    } else {
        session.output.text(text(&all, &session.output));
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks for all reservations that are not over.
///
/// # Errors
/// As of [`crate::client::Pool::call`].
pub async fn ask(session: &Session) -> Result<Vec<Listed>, Failure> {
    let list = async |mut client: Client| client.list_reservations(v1::ListReservationsRequest {}).await;
    let answer = session.pool.call(Patience::Short, list).await?;
    let listed = |state: &v1::ReservationState| Listed {
        reservation: view::Reservation::from(&state.reservation.clone().unwrap_or_default()),
        state: if state.running { "running" } else { "to-come" },
        conflicts: state.conflicts.iter().map(|job| format!("job-{job}")).collect(),
    };
    Ok(answer.reservations.iter().map(listed).collect())
}

/// Runs `aquifer unreserve`.
pub async fn unreserve(args: UnreserveArgs, session: &Session) -> Result<ExitCode> {
    for name in &args.names {
        let request = v1::UnreserveRequest { name: name.clone() };
        let ask = async |mut client: Client| client.unreserve(request.clone()).await;
        session.pool.call(Patience::Long, ask).await?;
        if !session.output.json {
            session.output.text(format!("reservation {name} is given up"));
        }
    }
    if session.output.json {
        session.output.document(&args.names);
    }
    Ok(ExitCode::SUCCESS)
}

/// What was booked, for people.
pub fn sentence(it: &view::Reservation) -> String {
    format!("reservation {} books {}, {}; {}", it.name, it.nodes.join(" "), period(it), guests(it))
}

/// From when until when.
pub fn period(it: &view::Reservation) -> String {
    format!("from {} to {}", units::time(it.start_ms), units::time(it.end_ms))
}

fn guests(it: &view::Reservation) -> String {
    let queues = it.queues.iter().map(|queue| format!("queue {queue}"));
    let guests: Vec<String> = queues.chain(it.users.iter().map(|user| format!("user {user}"))).collect();
    if guests.is_empty() { "nobody may use it".into() } else { format!("for {}", guests.join(", ")) }
}

/// The list for people.
pub fn text(all: &[Listed], output: &Output) -> String {
    let columns = [
        ("NAME", Side::Left),
        ("STATE", Side::Left),
        ("START", Side::Left),
        ("END", Side::Left),
        ("FOR", Side::Left),
        ("NODES", Side::Left),
        ("CONFLICTS", Side::Left),
    ];
    let mut table = Table::new(&columns).elastic(&[5, 6, 4]);
    for Listed { reservation: it, state, conflicts } in all {
        let guests = it.queues.iter().chain(&it.users).cloned().collect::<Vec<String>>().join(" ");
        table.row([
            it.name.clone(),
            state.replace('-', " "),
            units::time(it.start_ms),
            units::time(it.end_ms),
            if guests.is_empty() { "nobody".into() } else { guests },
            it.nodes.join(" "),
            if conflicts.is_empty() { "none".into() } else { conflicts.join(" ") },
        ]);
    }
    table.plain(output)
}
