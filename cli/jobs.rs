//! `aquifer jobs`: what is queued, runs, and has ended.

use std::process::ExitCode;

use anyhow::Result;
use aquifer_proto::v1;

use crate::client::{Client, Patience};
use crate::output::{Failure, Output, Side, Table, aside};
use crate::view::{self, STATES, UNENDED};
use crate::{Session, time_now, units};

/// List jobs: those that have not ended, and the last ten that have
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
Example:
  aquifer jobs --state pending --queue research")]
pub struct Args {
    /// Ended jobs as well, as many as --limit allows
    #[arg(short, long)]
    pub all: bool,
    /// Only jobs in this state; may be repeated. Default: as described above
    #[arg(long, value_name = "STATE", value_parser = clap::builder::PossibleValuesParser::new(STATES.map(|(_, name)| name)))]
    pub state: Vec<String>,
    /// Only jobs of this queue. Default: all
    #[arg(long, value_name = "NAME")]
    pub queue: Option<String>,
    /// Only jobs of this user. Default: all
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Only jobs with this text in their name. Default: all
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,
    /// At most so many jobs, the newest; 0 for all
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: usize,
}

/// Ended jobs of the default view, at most.
const LAST_ENDED: usize = 10;

/// Jobs of one question, at most.
const PAGE: usize = 500;

/// Runs the command.
pub async fn run(args: Args, session: &Session) -> Result<ExitCode> {
    let limit = if args.limit == 0 { usize::MAX } else { args.limit };
    let named = |name: &String| STATES.iter().find(|(_, known)| known == name).map(|(state, _)| *state);
    let states: Vec<v1::JobState> = args.state.iter().filter_map(named).collect();
    let all = |part: &[(v1::JobState, &str)]| part.iter().map(|(state, _)| *state).collect::<Vec<_>>();
    let listed = if args.all || !states.is_empty() {
        list(&args, &states, limit, session).await?
    } else {
        let mut listed = list(&args, &all(&STATES[..UNENDED]), limit, session).await?;
        let ended = LAST_ENDED.min(limit - listed.jobs.len());
        match list(&args, &all(&STATES[UNENDED..]), ended, session).await {
            Ok(ended) => listed.jobs.extend(ended.jobs),
            // Better than nothing, where that is what was asked for.
            Err(failure) if session.pool.takes_stale() => {
                aside(format!("those that have ended are left out: {failure}"));
            }
            Err(failure) => return Err(failure.into()),
        }
        listed
    };
    if session.output.json {
        session.output.document(&listed.jobs);
        return Ok(ExitCode::SUCCESS);
    }
    if listed.jobs.is_empty() {
        session.output.text("No jobs.");
        session
            .output
            .hint("`aquifer run -- PROGRAM` submits one, `aquifer jobs --all` lists those that have ended");
        return Ok(ExitCode::SUCCESS);
    }
    session.output.text(text(&listed.jobs, time_now(), &session.output));
    let mut last = listed.counts;
    if listed.more {
        last += &format!("; the newest {} are shown, --limit 0 shows all", listed.jobs.len());
    }
    session.output.hint(format!("\n{last}"));
    Ok(ExitCode::SUCCESS)
}

struct Listed {
    jobs: Vec<view::Job>,
    /// `3 pending, 2 running`.
    counts: String,
    more: bool,
}

/// Asks for as many pages as are wanted.
async fn list(
    args: &Args,
    states: &[v1::JobState],
    limit: usize,
    session: &Session,
) -> Result<Listed, Failure> {
    let mut listed = Listed { jobs: Vec::new(), counts: String::new(), more: false };
    let mut page_token = String::new();
    while listed.jobs.len() < limit {
        let request = v1::ListRequest {
            states: states.iter().map(|state| (*state).into()).collect(),
            queue: args.queue.clone().unwrap_or_default(),
            user: args.user.clone().unwrap_or_default(),
            name: args.name.clone().unwrap_or_default(),
            page_size: PAGE.min(limit - listed.jobs.len()) as u32,
            page_token,
        };
        let page = page(&request, session).await?;
        listed.jobs.extend(page.jobs);
        let count = |(state, jobs): &(&str, u64)| format!("{} {state}", units::group(*jobs));
        let counts = page.counts.iter().filter(|(_, jobs)| *jobs != 0).map(count);
        listed.counts = counts.collect::<Vec<String>>().join(", ");
        page_token = page.next;
        listed.more = !page_token.is_empty();
        if page_token.is_empty() {
            break;
        }
    }
    Ok(listed)
}

/// One page of jobs.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The newest first.
    pub jobs: Vec<view::Job>,
    /// Jobs by state over all pages, whatever is asked for.
    pub counts: Vec<(&'static str, u64)>,
    /// What to ask for the next page with; empty: this is the last one.
    pub next: String,
}

/// Asks for one page.
///
/// # Errors
/// As of [`crate::client::Pool::call`].
pub async fn page(request: &v1::ListRequest, session: &Session) -> Result<Page, Failure> {
    let list = async |mut client: Client| client.list(request.clone()).await;
    let answer = session.pool.call(Patience::Short, list).await?;
    let count = |count: &v1::StateCount| (view::state(count.state()), count.jobs);
    Ok(Page {
        jobs: answer.jobs.iter().map(view::Job::from).collect(),
        counts: answer.counts.iter().map(count).collect(),
        next: answer.next_page_token,
    })
}

/// The table for people.
pub fn text(jobs: &[view::Job], now_ms: u64, output: &Output) -> String {
    const STATE: usize = 3;
    let columns = [
        ("ID", Side::Left),
        ("NAME", Side::Left),
        ("QUEUE", Side::Left),
        ("STATE", Side::Left),
        ("RANKS", Side::Right),
        ("DEVICES", Side::Right),
        ("NODES", Side::Left),
        ("AGE", Side::Right),
        ("RUNTIME", Side::Right),
        ("REASON", Side::Left),
    ];
    let mut table = Table::new(&columns).elastic(&[9, 1, 6, 2]);
    for job in jobs {
        let index = job.array_index.map(|index| format!("[{index}]")).unwrap_or_default();
        table.row([
            job.id.clone(),
            format!("{}{index}", job.name),
            job.queue.clone(),
            job.state.clone(),
            ranks(job),
            devices(job),
            nodes(job),
            units::duration(now_ms.saturating_sub(job.submitted_ms)),
            runtime(job, now_ms).unwrap_or_default(),
            detail(job),
        ]);
    }
    table.render(output, |column, cell| if column == STATE { output.state(cell) } else { cell.into() })
}

/// `4`; of an elastic job what it has of what it may have: `4/2-8`.
pub fn ranks(job: &view::Job) -> String {
    let ranks = units::group(job.ranks.into());
    match job.min_ranks < job.max_ranks {
        true => {
            format!(
                "{ranks}/{}-{}",
                units::group(job.min_ranks.into()),
                units::group(job.wanted_ranks.into())
            )
        }
        false => ranks,
    }
}

/// `4 h200`; nothing where there are none.
pub fn devices(job: &view::Job) -> String {
    match (job.devices, &job.device_model[..]) {
        (0, _) => String::new(),
        (count, "") => units::group(count),
        (count, model) => format!("{} {model}", units::group(count)),
    }
}

fn nodes(job: &view::Job) -> String {
    match &job.nodes[..] {
        // Of a job that waits again, they are those of the last attempt.
        _ if job.state == "pending" => String::new(),
        [] => String::new(),
        [one] => one.clone(),
        [first, rest @ ..] => format!("{first} +{}", rest.len()),
    }
}

/// How long it has run since it was last placed; of a job that waits again, nothing.
pub fn runtime(job: &view::Job, now_ms: u64) -> Option<String> {
    if job.state == "pending" {
        return None;
    }
    let until = job.ended_ms.unwrap_or(now_ms);
    job.placed_ms.map(|placed| units::duration(until.saturating_sub(placed)))
}

/// One line: why it waits, how far it is, or why it failed.
pub fn detail(job: &view::Job) -> String {
    let told = job.progress.as_ref().map(progress).unwrap_or_default();
    if !told.is_empty() && !job.has_ended() {
        return told;
    }
    let reason = job.reason.strip_prefix("waits: ").unwrap_or(&job.reason);
    let reason = reason.strip_prefix(&format!("{}: ", job.state)).unwrap_or(reason);
    if reason == job.state || reason == job.state.replace('-', " ") { String::new() } else { reason.into() }
}

/// `step 120/200, loss 2.314, 15,200 tokens/s`.
pub fn progress(progress: &view::Progress) -> String {
    let mut parts = Vec::new();
    match (progress.step, progress.total_steps) {
        (Some(step), Some(total)) => {
            parts.push(format!("step {}/{}", units::group(step), units::group(total)))
        }
        (Some(step), None) => parts.push(format!("step {}", units::group(step))),
        (None, _) => (),
    }
    parts.extend(progress.loss.map(|loss| format!("loss {loss:.3}")));
    parts
        .extend(progress.tokens_per_s.map(|rate| format!("{} tokens/s", units::group(rate.max(0.0) as u64))));
    if !progress.message.is_empty() {
        parts.push(progress.message.clone());
    }
    parts.join(", ")
}
