//! `aquifer queues`: the shares of teams.

use std::process::ExitCode;

use anyhow::Result;
use aquifer_proto::{border, v1};

use crate::client::{Client, Patience};
use crate::output::{Failure, Output, Side, Table};
use crate::{Session, units, view};

/// List queues, or set one
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer queues set research --weight 3 --guaranteed 16 --limit 64
  aquifer queues set vision --parent research --weight 2 --guaranteed 8")]
pub struct Args {
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: Option<Command>,
}

/// What is done with queues.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// List queues
    List,
    /// Make a queue, or change what is given of one
    #[command(after_help = "\
Example:
  aquifer queues set research --weight 3 --guaranteed 16 --limit none --user ada --user ben
  aquifer queues set vision --parent research --weight 2 --guaranteed 8")]
    Set(SetArgs),
}

/// What a queue should be.
#[derive(Clone, Debug, clap::Args)]
pub struct SetArgs {
    /// Name of the queue: letters, digits, '.', '_', '-'
    #[arg(value_name = "QUEUE")]
    pub name: String,
    /// Queue whose share it divides, or `none` for the pool. Default: as it is; of a new queue: none
    #[arg(long, value_name = "QUEUE", value_parser = parent)]
    pub parent: Option<Parent>,
    /// Share of what is contended, relative to the other queues of its parent: 1 to 1,000,000. Default: as it is; of
    /// a new queue: 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub weight: Option<u32>,
    /// Devices up to which the queue goes first: at most its limit, and with the other queues of its parent at most
    /// what that is guaranteed. Default: as it is; of a new queue: 0
    #[arg(long, value_name = "DEVICES", value_parser = units::parse_milli)]
    pub guaranteed: Option<u64>,
    /// Devices that it, with the queues below it, never holds more of, or `none`. Default: as it is; of a new queue:
    /// none
    #[arg(long, value_name = "DEVICES", value_parser = limit)]
    pub limit: Option<Limit>,
    /// User whose jobs it takes, and those below it that name none; may be repeated, each call naming all of them; `all`:
    /// everybody, or whom the queue above takes. Default: as it is; of a new queue: all
    #[arg(long = "user", value_name = "USER")]
    pub users: Vec<String>,
}

/// Everybody, in the place of a user.
const ALL: &str = "all";

/// The most that a queue holds, in thousandths of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Option<u64>);

/// The name of the queue above, if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent(pub Option<String>);

fn parent(text: &str) -> Result<Parent, String> {
    Ok(Parent((text != "none").then(|| text.into())))
}

fn limit(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        text => units::parse_milli(text)
            .map(|milli| Limit(Some(milli)))
            .map_err(|error| format!("{error}, or none")),
    }
}

/// Runs the command.
pub async fn run(args: Args, session: &Session) -> Result<ExitCode> {
    let (queues, has_prices) = list(session).await?;
    match args.command {
        None | Some(Command::List) => match session.output.json {
            true => session.output.document(&queues),
            false => session.output.text(text(&queues, has_prices, &session.output)),
        },
        Some(Command::Set(args)) => set(args, &queues, session).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The queues, and whether devices have prices.
///
/// # Errors
/// As of [`crate::client::Pool::call`].
pub async fn list(session: &Session) -> Result<(Vec<view::Queue>, bool), Failure> {
    let list = async |mut client: Client| client.list_queues(v1::ListQueuesRequest {}).await;
    let answer = session.pool.call(Patience::Short, list).await?;
    Ok((answer.queues.iter().map(view::Queue::from).collect(), answer.has_prices))
}

async fn set(args: SetArgs, queues: &[view::Queue], session: &Session) -> Result<()> {
    let known = queues.iter().find(|queue| queue.name == args.name);
    let queue = v1::Queue {
        name: args.name.clone(),
        parent: match args.parent {
            Some(Parent(parent)) => parent,
            None => known.and_then(|queue| queue.parent.clone()),
        }
        .unwrap_or_default(),
        weight: args.weight.or(known.map(|queue| queue.weight)).unwrap_or(1),
        guaranteed_milli: args.guaranteed.or(known.map(|queue| queue.guaranteed_milli)).unwrap_or(0),
        limit_milli: match args.limit {
            Some(Limit(limit)) => limit,
            None => known.and_then(|queue| queue.limit_milli),
        },
        users: match &args.users[..] {
            [] => known.map(|queue| queue.users.clone()).unwrap_or_default(),
            [all] if all == ALL => Vec::new(),
            users => users.to_vec(),
        },
    };
    if queue.users.iter().any(|user| user == ALL) {
        let sentence = "--user all beside other users: all are all";
        return Err(Failure::usage(sentence, "Give --user all alone, or without it whom you mean.").into());
    }
    let wrong = |invalid: border::Invalid| Failure::refused(invalid.to_string(), "correct it and try again");
    border::queue(&queue).map_err(wrong)?;
    let request = v1::SetQueueRequest { queue: Some(queue.clone()) };
    let set = async |mut client: Client| client.set_queue(request.clone()).await;
    session.pool.call(Patience::Long, set).await?;
    let view = known.cloned().unwrap_or_default().with(queue);
    if session.output.json {
        session.output.document(&view);
        return Ok(());
    }
    let limit =
        view.limit_milli.map_or("no limit".into(), |limit| format!("a limit of {}", units::milli(limit)));
    let below = view.parent.map_or(String::new(), |parent| format!(", below {parent},"));
    let whose = match &view.users[..] {
        [] => String::new(),
        users => format!(", and takes jobs of {} alone", users.join(", ")),
    };
    session.output.text(format!(
        "queue {}{below} has the weight {}, {} devices guaranteed and {limit}{whose}",
        view.name,
        view.weight,
        units::milli(view.guaranteed_milli),
    ));
    Ok(())
}

/// The queues for people, each indented below its parent.
///
/// * `has_prices`: what was used is in the unit of prices, not in hours.
pub fn text(queues: &[view::Queue], has_prices: bool, output: &Output) -> String {
    let columns = [
        ("QUEUE", Side::Left),
        ("WEIGHT", Side::Right),
        ("GUARANTEED", Side::Right),
        ("LIMIT", Side::Right),
        ("HOLDS", Side::Right),
        ("USAGE", Side::Right),
        ("SHARE", Side::Right),
        ("PENDING", Side::Right),
        ("RUNNING", Side::Right),
        ("USERS", Side::Left),
    ];
    let mut table = Table::new(&columns).elastic(&[0, 9]);
    for (depth, queue) in tree(queues, None, 0) {
        table.row([
            format!("{:1$}{2}", "", 2 * depth, queue.name),
            units::group(queue.weight.into()),
            units::milli(queue.guaranteed_milli),
            queue.limit_milli.map_or("none".into(), units::milli),
            units::milli(queue.held_milli),
            format!("{}{}", units::hours(queue.used_device_ms), if has_prices { "" } else { " h" }),
            percent(queue.share_millionths),
            units::group(queue.pending_jobs),
            units::group(queue.running_jobs),
            users(queue),
        ]);
    }
    table.plain(output)
}

/// Whose jobs it takes.
fn users(queue: &view::Queue) -> String {
    match (&queue.users[..], &queue.parent) {
        ([], None) => ALL.into(),
        ([], Some(_)) => String::new(),
        (users, _) => users.join(" "),
    }
}

/// Millionths for people: `33.3%`.
fn percent(millionths: u32) -> String {
    let tenths = (millionths + 500) / 1000;
    format!("{}.{}%", tenths / 10, tenths % 10)
}

/// The queues below `parent`, each followed by those below it, with their depth.
fn tree<'a>(queues: &'a [view::Queue], parent: Option<&str>, depth: usize) -> Vec<(usize, &'a view::Queue)> {
    let mut rows = Vec::new();
    for queue in queues.iter().filter(|queue| queue.parent.as_deref() == parent) {
        rows.push((depth, queue));
        rows.extend(tree(queues, Some(&queue.name), depth + 1));
    }
    rows
}
