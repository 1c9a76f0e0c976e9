//! `aquifer services`: models that are served.

use std::process::ExitCode;

use anyhow::Result;
use aquifer_proto::core::JobId;
use aquifer_proto::v1;
use serde::Serialize;

use crate::client::{Client, Patience};
use crate::output::{Failure, Output, Side, Table};
use crate::{Session, job, jobs, units, view};

/// List services that have not ended, with their replicas
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  aquifer services

REPLICAS are those that are ready, of those that it is to have now.")]
pub struct Args {}

/// A job that serves a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Service {
    /// `job-7`.
    pub job: String,
    /// Name that clients ask for.
    pub model: String,
    /// Who submitted it.
    pub user: String,
    /// Queue that it is charged to.
    pub queue: String,
    /// As of a job.
    pub state: String,
    /// One sentence: why it waits.
    pub reason: String,
    /// Replicas that answer.
    pub ready: u32,
    /// How many it is to have now; 0: it sleeps.
    pub wanted: u32,
    /// The most that it may have.
    pub most: u32,
    /// Where they answer.
    pub endpoints: Vec<String>,
    /// From a request to its first token, as promised; `None`: nothing is.
    pub ttft_ms: Option<u64>,
    /// From one token to the next, as promised; `None`: nothing is.
    pub tpot_ms: Option<u64>,
    /// Tokens a second of all replicas, as far as they tell.
    pub tokens_per_s: Option<f64>,
    /// What replicas say of themselves, by rank.
    pub told: Vec<String>,
}

impl Service {
    fn new(wire: &v1::Service, job: &view::Job) -> Service {
        let serve = job.spec.iter().flat_map(|spec| &spec.roles).find_map(|role| role.serve.as_ref());
        let promise = serve.and_then(|serve| serve.autoscale.as_ref());
        let progress = job.workers.iter().filter_map(|worker| worker.progress.as_ref());
        let rates: Vec<f64> = progress.clone().filter_map(|progress| progress.tokens_per_s).collect();
        let told = progress.map(jobs::progress).filter(|told| !told.is_empty());
        Service {
            job: job.id.clone(),
            model: wire.model.clone(),
            user: job.user.clone(),
            queue: job.queue.clone(),
            state: job.state.clone(),
            reason: job.reason.clone(),
            ready: wire.endpoints.len() as u32,
            wanted: job.wanted_ranks,
            most: job.max_ranks,
            endpoints: wire.endpoints.clone(),
            ttft_ms: promise.and_then(|promise| promise.ttft_ms),
            tpot_ms: promise.and_then(|promise| promise.tpot_ms),
            tokens_per_s: (!rates.is_empty()).then(|| rates.iter().sum()),
            told: told.collect(),
        }
    }
}

/// Asks for all services that have not ended.
///
/// # Errors
/// As of [`crate::client::Pool::call`].
pub async fn ask(session: &Session) -> Result<Vec<Service>, Failure> {
    let list = async |mut client: Client| client.list_services(v1::ListServicesRequest {}).await;
    let listed = session.pool.call(Patience::Short, list).await?.services;
    let mut services = Vec::new();
    for service in &listed {
        let job = job::one(JobId(service.job), session).await?;
        services.push(Service::new(service, &job));
    }
    Ok(services)
}

/// Runs the command.
pub async fn run(_: Args, session: &Session) -> Result<ExitCode> {
    let services = ask(session).await?;
    if session.output.json {
        session.output.document(&services);
    } else if services.is_empty() {
        session.output.text("No services.");
        session.output.hint("`aquifer submit deploy/examples/serve.yaml` makes one");
    } else {
        session.output.text(text(&services, &session.output));
    }
    Ok(ExitCode::SUCCESS)
}

/// The services for people.
pub fn text(services: &[Service], output: &Output) -> String {
    const STATE: usize = 2;
    let columns = [
        ("JOB", Side::Left),
        ("MODEL", Side::Left),
        ("STATE", Side::Left),
        ("REPLICAS", Side::Right),
        ("TTFT", Side::Right),
        ("TPOT", Side::Right),
        ("TOKENS/S", Side::Right),
        ("ENDPOINTS", Side::Left),
    ];
    let mut table = Table::new(&columns).elastic(&[7, 1]);
    let promised = |ms: Option<u64>| ms.map(|ms| format!("{} ms", units::group(ms))).unwrap_or_default();
    for service in services {
        table.row([
            service.job.clone(),
            service.model.clone(),
            service.state.clone(),
            format!("{}/{}", units::group(service.ready.into()), units::group(service.wanted.into())),
            promised(service.ttft_ms),
            promised(service.tpot_ms),
            service.tokens_per_s.map(|rate| units::group(rate as u64)).unwrap_or_default(),
            service.endpoints.join(" "),
        ]);
    }
    table.render(output, |column, cell| if column == STATE { output.state(cell) } else { cell.into() })
}
