//! `aquifer job`: everything about one job.

use std::process::ExitCode;

use anyhow::Result;
use aquifer_proto::core::JobId;
use aquifer_proto::v1;

use crate::client::{Client, Patience};
use crate::output::{Failure, Output, Side, Table, pairs};
use crate::{Session, explain, jobs, time_now, units, view};

/// Show everything about one job
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "\
Example:
  aquifer job job-7
  aquifer job scale job-7 --ranks 4
  aquifer job wake job-7",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Args {
    /// The job: job-7, or 7
    #[arg(value_name = "JOB", required = true)]
    pub job: Option<JobId>,
    /// What to do with a job instead of showing it
    #[command(subcommand)]
    pub change: Option<Change>,
}

/// What can be changed of a job.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Change {
    /// Give an elastic job another number of ranks, while it waits or runs
    #[command(after_help = "\
Example:
  aquifer job scale job-7 --ranks 4")]
    Scale {
        /// The job: job-7, or 7
        #[arg(value_name = "JOB")]
        job: JobId,
        /// How many ranks its elastic role is to have, min_ranks to ranks; `auto`: ranks, as it was submitted
        #[arg(long, value_name = "N|auto")]
        ranks: Wanted,
    },
    /// Wake a service that sleeps as nobody asks it, as a request at a gateway does
    #[command(after_help = "\
Example:
  aquifer job wake job-7")]
    Wake {
        /// The job: job-7, or 7
        #[arg(value_name = "JOB")]
        job: JobId,
    },
}

/// A number of ranks, or what was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted(pub Option<u32>);

impl std::str::FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Wanted, String> {
        match text {
            "auto" => Ok(Wanted(None)),
            text => match text.parse() {
                Ok(ranks @ 1..=65_536) => Ok(Wanted(Some(ranks))),
                _ => Err("expected 1 to 65,536, or auto".into()),
            },
        }
    }
}

/// Runs the command.
pub async fn run(args: Args, session: &Session) -> Result<ExitCode> {
    match args.change {
        Some(Change::Scale { job, ranks }) => return scale(job, ranks, session).await,
        Some(Change::Wake { job }) => return wake(job, session).await,
        None => (),
    }
    let job = args.job.expect("clap asks for it");
    let view = one(job, session).await?;
    match session.output.json {
        true => session.output.document(&view),
        false => {
            session.output.text(text(&view, time_now(), &session.output));
            if view.state == "pending" {
                session.output.hint(format!("\n`aquifer explain {}` says why it waits", view.id));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn scale(job: JobId, Wanted(ranks): Wanted, session: &Session) -> Result<ExitCode> {
    let request = v1::ScaleRequest { job: job.0, ranks };
    let scale = async |mut client: Client| client.scale(request).await;
    session.pool.call(Patience::Long, scale).await?;
    let found = view::Job::with_spec(&get(job, Patience::Short, session).await?);
    match session.output.json {
        true => session.output.document(&found),
        false => session.output.text(match ranks {
            Some(_) => format!("{job} is to have {} ranks", found.wanted_ranks),
            None => format!("{job} is to have as many ranks as fit, up to {}", found.wanted_ranks),
        }),
    }
    Ok(ExitCode::SUCCESS)
}

async fn wake(job: JobId, session: &Session) -> Result<ExitCode> {
    let request = v1::DemandRequest { job: job.0, waiting: 1 };
    session.pool.call(Patience::Long, async |mut client: Client| client.demand(request).await).await?;
    let found = view::Job::with_spec(&get(job, Patience::Short, session).await?);
    match session.output.json {
        true => session.output.document(&found),
        false => session.output.text(format!("{job} is awake")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks for a job with what was asked for.
///
/// # Errors
/// As of [`crate::client::Pool::call`].
pub async fn one(job: JobId, session: &Session) -> Result<view::Job, Failure> {
    Ok(view::Job::with_spec(&get(job, Patience::Short, session).await?))
}

/// Asks for a job.
pub async fn get(job: JobId, patience: Patience, session: &Session) -> Result<v1::Job, Failure> {
    let get = async |mut client: Client| client.get(v1::GetRequest { job: job.0 }).await;
    session.pool.call(patience, get).await
}

/// `97.1 % of 1h 12m; recovery 1.9 %, start 1.0 %`.
fn effective(spent: &view::Spent) -> String {
    let view::Spent { steps_ms, start_ms, recovery_ms, slow_ms, lost_ms, .. } = spent;
    let causes = [
        ("start", start_ms),
        ("recovery", recovery_ms),
        ("slow steps", slow_ms),
        ("lost since a checkpoint", lost_ms),
    ];
    let sum = steps_ms + causes.iter().map(|(_, ms)| **ms).sum::<u64>();
    if sum == 0 {
        return String::new();
    }
    let share = |ms: u64| 100.0 * ms as f64 / sum as f64;
    let causes = causes.iter().filter(|(_, ms)| 0.05 <= share(**ms));
    let causes: Vec<_> = causes.map(|(cause, ms)| format!("{cause} {:.1} %", share(**ms))).collect();
    let rest = if causes.is_empty() { String::new() } else { format!("; {}", causes.join(", ")) };
    format!("{:.1} % of {}{rest}", share(*steps_ms), units::duration(sum))
}

/// `93.4 % of what its ranks could have computed`.
fn of_capacity(share: f64) -> String {
    format!("{:.1} % of what its ranks could have computed", 100.0 * share)
}

/// The job for people.
pub fn text(job: &view::Job, now_ms: u64, output: &Output) -> String {
    let at = |ms: u64| format!("{} ({} ago)", units::time(ms), units::duration(now_ms.saturating_sub(ms)));
    let element = job.array_index.zip(job.array_first.as_ref());
    let failures = match (job.failures, &job.last_failure[..]) {
        (_, "") => String::new(),
        (0, why) => why.into(),
        (count, why) => format!("{count}, the last: {why}"),
    };
    let progress = job.progress.as_ref();
    let told = progress.map(jobs::progress).unwrap_or_default();
    let checkpoint = progress.and_then(|progress| progress.checkpoint_step);
    let mut about = vec![
        ("job", job.id.clone()),
        ("name", job.name.clone()),
        ("user", job.user.clone()),
        ("queue", job.queue.clone()),
        ("priority", if job.priority == 0 { String::new() } else { job.priority.to_string() }),
        ("array", element.map(|(index, first)| format!("element {index} of {first}")).unwrap_or_default()),
        ("state", job.state.clone()),
        ("reason", if job.reason == job.state { String::new() } else { job.reason.clone() }),
        ("ranks", jobs::ranks(job)),
        ("scaled", scaled(job)),
        ("devices", jobs::devices(job)),
        ("class", job.class.clone()),
        ("submitted", at(job.submitted_ms)),
        ("placed", job.placed_ms.map(at).unwrap_or_default()),
        ("ended", job.ended_ms.map(at).unwrap_or_default()),
        ("runtime", jobs::runtime(job, now_ms).unwrap_or_default()),
        ("attempts", if job.attempt == 0 { String::new() } else { units::group(job.attempt.into()) }),
        ("failures", failures),
        ("progress", told),
        ("effective", job.spent.as_ref().map(effective).unwrap_or_default()),
        ("of capacity", job.capacity.map(of_capacity).unwrap_or_default()),
        ("checkpoint", checkpoint.map(|step| format!("of step {}", units::group(step))).unwrap_or_default()),
        ("checkpoints", job.checkpoint_dir.clone()),
        ("used", used(job)),
    ];
    if let Some(spec) = &job.spec {
        about.extend(asked(spec));
    }
    let mut parts = vec![pairs(&about)];
    if !job.workers.is_empty() {
        parts.push(workers(job, output));
    }
    parts.join("\n\n")
}

fn scaled(job: &view::Job) -> String {
    match job.wanted_ranks < job.max_ranks {
        true => format!("to {} of at most {} ranks", job.wanted_ranks, units::group(job.max_ranks.into())),
        false => String::new(),
    }
}

fn used(job: &view::Job) -> String {
    if job.device_ms == 0 && job.cpu_milli_ms == 0 {
        return String::new();
    }
    let lost = match job.lost_device_ms {
        0 => String::new(),
        lost => format!(", {} of them by attempts that were placed again", units::hours(lost)),
    };
    format!(
        "{} CPU hours, {} device hours{lost}",
        units::hours(job.cpu_milli_ms / 1000),
        units::hours(job.device_ms)
    )
}

fn asked(spec: &view::Spec) -> Vec<(&'static str, String)> {
    let mut asked = vec![
        ("time limit", spec.time_limit_ms.map(units::exact_duration).unwrap_or_default()),
        ("retries", spec.retries.to_string()),
        ("restart", spec.restart.clone()),
        ("partition", spec.on_partition.clone()),
        ("grace", units::exact_duration(spec.grace_ms)),
        ("after", spec.after.join(" ")),
        ("directory", spec.working_dir.clone().unwrap_or_default()),
    ];
    for role in &spec.roles {
        let program = match (&role.command, &role.train, &role.serve) {
            (Some(arguments), ..) => shell_words(arguments),
            (_, Some(train), _) => training(train),
            (.., Some(serve)) => format!("serve {}", serve.model),
            _ => String::new(),
        };
        asked.push((
            "runs",
            format!(
                "{} × {}: {}",
                role.min_ranks.map_or(role.ranks.to_string(), |least| format!("{least} to {}", role.ranks)),
                role.name,
                crate::output::shorten(&format!("{program}{}", in_image(role)), 300)
            ),
        ));
    }
    asked
}

/// What is trained; that there are rounds is no detail, for the result is another one.
fn training(train: &view::Train) -> String {
    let view::Train { model, data, steps, inner_steps, replicas, .. } = train;
    match inner_steps {
        0 => format!("train {model} on {data}, {steps} steps"),
        _ => format!(
            "train {model} on {data}, {steps} rounds of {inner_steps} steps on {replicas} replicas (DiLoCo, little communication)"
        ),
    }
}

fn in_image(role: &view::Role) -> String {
    let Some(image) = &role.image else { return String::new() };
    let with = if role.mounts.is_empty() { "" } else { " with " };
    format!(" in {image}{with}{}", role.mounts.join(", "))
}

/// The arguments as one would type them.
fn shell_words(arguments: &[String]) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    let word = |argument: &String| match !argument.is_empty() && argument.chars().all(safe) {
        true => argument.clone(),
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    };
    arguments.iter().map(word).collect::<Vec<String>>().join(" ")
}

fn workers(job: &view::Job, output: &Output) -> String {
    const STATE: usize = 5;
    let columns = [
        ("RANK", Side::Right),
        ("ROLE", Side::Left),
        ("NODE", Side::Left),
        ("DEVICES", Side::Left),
        ("ISOLATION", Side::Left),
        ("STATE", Side::Left),
        ("ENDPOINT", Side::Left),
        ("PROGRESS", Side::Left),
    ];
    let mut table = Table::new(&columns).elastic(&[7, 3]);
    for worker in &job.workers {
        table.row([
            worker.rank.to_string(),
            worker.role.clone(),
            worker.node.clone(),
            explain::devices(&worker.devices, &worker.model),
            worker.isolation.clone(),
            worker.state.clone(),
            worker.endpoint.clone().unwrap_or_default(),
            worker.progress.as_ref().map(jobs::progress).unwrap_or_default(),
        ]);
    }
    table.render(output, |column, cell| if column == STATE { output.state(cell) } else { cell.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_a_training_has_rounds_is_said() {
        let train =
            view::Train { model: "tiny".into(), data: "/data".into(), steps: 20, ..Default::default() };
        assert_eq!(training(&train), "train tiny on /data, 20 steps");
        let rounds = training(&view::Train { inner_steps: 50, replicas: 4, ..train });
        let said = "train tiny on /data, 20 rounds of 50 steps on 4 replicas (DiLoCo, little communication)";
        assert_eq!(rounds, said);
    }
}
