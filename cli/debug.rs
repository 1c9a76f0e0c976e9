//! `aquifer debug`: what whoever is to find a fault needs to see of a pool, without secrets.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use aquifer_proto::v1;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use serde_json::json;
use tar::{Builder, Header};
use tokio::time::timeout;

use crate::client::{Client, Global, Patience};
use crate::output::{Failure, Output};
use crate::view::{self, STATES, UNENDED};
use crate::{Session, explain, prices, settings, time_now, units};

/// Jobs that have not ended, at most.
const OPEN: u32 = 1000;
/// Jobs that have ended, at most.
const ENDED: u32 = 200;
/// Jobs that wait and are explained, at most.
const EXPLAINED: usize = 20;
/// Notes, at most.
const NOTES: usize = 5000;
/// So long the next note is waited for.
const SILENCE: Duration = Duration::from_secs(3);
/// What stands for what is left out.
const HIDDEN: &str = "(hidden)";

/// Gather what is needed to find a fault
#[derive(Clone, Debug, clap::Subcommand)]
#[command(after_help = "\
Example:
  aquifer debug bundle")]
pub enum Command {
    /// Write one file with how the pool is: for a report of a fault
    ///
    /// It holds versions, nodes, queues, prices, reservations, jobs, what happened lately, why jobs wait, and what the scheduler
    /// counts. Values of environments, arguments of programs and the token are left out; logs of workers are not in it.
    #[command(after_help = "Example:\n  aquifer debug bundle pool.tar.gz")]
    Bundle(BundleArgs),
}

/// Arguments of `debug bundle`.
#[derive(Clone, Debug, clap::Args)]
pub struct BundleArgs {
    /// File to write; one that is there is replaced. Default: `aquifer-debug-TIME.tar.gz` here
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// What was written, as `--json` prints it.
#[derive(Clone, Debug, Serialize)]
struct Written {
    file: String,
    bytes: u64,
    /// Names of files in it.
    holds: Vec<String>,
    /// What could not be had, and why.
    missing: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// No scheduler answers, or the file cannot be written.
pub async fn run(command: Command, global: &Global, session: &Session) -> Result<ExitCode> {
    let Command::Bundle(args) = command;
    let mut bundle = Bundle {
        token: settings::token(global.token_file.as_deref())?,
        files: Vec::new(),
        missing: Vec::new(),
    };
    bundle.gather(session, global).await?;
    let time = units::time(time_now()).replace(' ', "T").replace(':', "");
    let file = args.file.unwrap_or_else(|| format!("aquifer-debug-{time}.tar.gz").into());
    let bytes = bundle.write(&file).map_err(|error| {
        let next = "Name another file: `aquifer debug bundle FILE`.";
        Failure::refused(format!("{}: {error}", file.display()), next)
    })?;
    let written = Written {
        file: file.display().to_string(),
        bytes,
        holds: bundle.files.into_iter().map(|(name, _)| name).collect(),
        missing: bundle.missing,
    };
    match session.output.json {
        true => session.output.document(&written),
        false => session.output.text(sentence(&written)),
    }
    Ok(ExitCode::SUCCESS)
}

fn sentence(written: &Written) -> String {
    let missing = match written.missing.len() {
        0 => String::new(),
        count => format!(", without {count} parts that could not be had (see missing.txt)"),
    };
    format!(
        "wrote {} ({}{missing}): look through it, as it names jobs, users and nodes, then attach it to your report",
        written.file,
        units::size(written.bytes),
    )
}

/// Files, by their names.
struct Bundle {
    token: Option<String>,
    files: Vec<(String, String)>,
    missing: Vec<String>,
}

impl Bundle {
    async fn gather(&mut self, session: &Session, global: &Global) -> Result<(), Failure> {
        let pool = &session.pool;
        let ask = async |mut client: Client| client.status(v1::StatusRequest {}).await;
        // Whether anybody answers at all is seen by the first question.
        let status = match pool.call(Patience::Short, ask).await {
            Err(failure) if failure.exit == 3 => return Err(failure),
            answered => self.had("status of the scheduler", answered),
        };
        let status = status.unwrap_or_default();
        self.add_json(
            "status.json",
            &json!({
                "client_version": env!("CARGO_PKG_VERSION"),
                "client_system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
                "client_time": units::time(time_now()),
                "servers": global.server(),
                "server_version": status.version,
                "server_time": units::time(status.now_ms),
                "term": status.term,
                "latest_note": status.latest_note,
            }),
        );
        self.add("metrics.txt", status.metrics);

        if let Some(nodes) = self.had("nodes", pool.nodes("", Patience::Short).await) {
            self.add_json("nodes.json", &nodes.iter().map(view::Node::from).collect::<Vec<_>>());
        }
        let ask = async |mut client: Client| client.list_queues(v1::ListQueuesRequest {}).await;
        if let Some(answer) = self.had("queues", pool.call(Patience::Short, ask).await) {
            self.add_json("queues.json", &answer.queues.iter().map(view::Queue::from).collect::<Vec<_>>());
        }
        if let Some(prices) = self.had("prices", prices::ask(session).await) {
            self.add_json("prices.json", &prices);
        }
        let ask = async |mut client: Client| client.list_reservations(v1::ListReservationsRequest {}).await;
        if let Some(answer) = self.had("reservations", pool.call(Patience::Short, ask).await) {
            let all = answer.reservations.into_iter().filter_map(|it| it.reservation);
            let all: Vec<_> = all.map(|it| view::Reservation::from(&it)).collect();
            self.add_json("reservations.json", &all);
        }
        let mut jobs = Vec::new();
        for (states, most) in [(&STATES[..UNENDED], OPEN), (&STATES[UNENDED..], ENDED)] {
            let states = states.iter().map(|(state, _)| (*state).into()).collect();
            let request = v1::ListRequest { states, page_size: most, ..v1::ListRequest::default() };
            let ask = async |mut client: Client| client.list(request.clone()).await;
            let answer = self.had("jobs", pool.call(Patience::Short, ask).await);
            jobs.extend(answer.unwrap_or_default().jobs);
        }
        self.add_json("jobs.json", &jobs.iter().map(without_secrets).collect::<Vec<_>>());
        let waiting = jobs.iter().filter(|job| job.state() == v1::JobState::Pending);
        for job in waiting.take(EXPLAINED).map(|job| job.id) {
            let ask = async |mut client: Client| client.explain(v1::ExplainRequest { job }).await;
            if let Some(answer) = self.had("an explanation", pool.call(Patience::Short, ask).await) {
                let view = view::Explanation::new(Some(job), &answer);
                let plain = Output { json: false, color: false, width: None, hints: false };
                self.add(&format!("explain/job-{job}.txt"), explain::text(&view, time_now(), &plain));
            }
        }
        let notes = notes(session, status.latest_note).await;
        let notes = self.had("notes", notes.map_err(|status| pool.failure(&status)));
        self.add("notes.txt", notes.unwrap_or_default());
        if !self.missing.is_empty() {
            self.add("missing.txt", self.missing.join("\n"));
        }
        Ok(())
    }

    /// What was asked for; if it could not be had, that is noted.
    fn had<T>(&mut self, what: &str, answered: Result<T, Failure>) -> Option<T> {
        answered.map_err(|failure| self.missing.push(format!("{what}: {}", failure.sentence))).ok()
    }

    fn add(&mut self, name: &str, mut text: String) {
        if let Some(token) = &self.token {
            text = text.replace(token, HIDDEN);
        }
        self.files.push((name.into(), text));
    }

    fn add_json(&mut self, name: &str, value: &impl Serialize) {
        self.add(name, serde_json::to_string_pretty(value).expect("views are JSON"));
    }

    /// Writes all of it or nothing, for nobody else to read. Returns its size.
    fn write(&self, file: &Path) -> std::io::Result<u64> {
        let directory = file.parent().filter(|directory| !directory.as_os_str().is_empty());
        let mut partial = tempfile::NamedTempFile::new_in(directory.unwrap_or(Path::new(".")))?;
        let mut archive = Builder::new(GzEncoder::new(&mut partial, Compression::default()));
        for (name, text) in &self.files {
            let mut header = Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(time_now() / 1000);
            archive.append_data(&mut header, format!("aquifer-debug/{name}"), text.as_bytes())?;
        }
        archive.into_inner()?.finish()?.flush()?;
        Ok(partial.persist(file)?.metadata()?.len())
    }
}

/// A job with what was asked for, but for what may be secret.
fn without_secrets(job: &v1::Job) -> view::Job {
    let mut job = view::Job::with_spec(job);
    if let Some(spec) = &mut job.spec {
        spec.env.values_mut().for_each(|value| *value = HIDDEN.into());
        for command in spec.roles.iter_mut().filter_map(|role| role.command.as_mut()) {
            command.iter_mut().skip(1).for_each(|argument| *argument = HIDDEN.into());
        }
    }
    job
}

/// What happened lately, a line each.
async fn notes(session: &Session, latest: u64) -> Result<String, tonic::Status> {
    let request = v1::WatchRequest { after_seq: Some(0), ..v1::WatchRequest::default() };
    let mut stream = session.pool.client().watch(request).await?.into_inner();
    let mut lines = std::collections::VecDeque::new();
    // Numbers of a term begin above a multiple of 2^32: then there is none yet.
    let mut seq = latest & !u64::from(u32::MAX);
    while seq < latest {
        let Ok(note) = timeout(SILENCE, stream.message()).await else { break };
        let Some(note) = note? else { break };
        seq = note.seq;
        if lines.len() == NOTES {
            lines.pop_front();
        }
        lines.push_back(format!("{}  {}\n", units::time(note.time_ms), note.text));
    }
    Ok(lines.into_iter().collect())
}
