//! `aquifer gateway`: one OpenAI-compatible address for all services of a pool.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aquifer_gateway::{Gateway, Limits, Service, router};
use aquifer_proto::v1;
use aquifer_scheduler::grpc::Guard;
use aquifer_scheduler::tls::Tls;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};

use crate::client::{Global, Pool, is_lost};
use crate::front::{self, Front};
use crate::output::{Failure, write_out};
use crate::server::log_format;
use crate::settings::{self, Settings};
use crate::units::{parse_duration, parse_size};
use crate::{limits, metrics};

/// Between two looks at the services of the pool.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// So long the scheduler may take to tell of them.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections for each request that may be under way: clients keep some that they do not use.
const CONNECTIONS: usize = 4;

/// Serve all models of a pool at one OpenAI-compatible address
///
/// Requests go to the services of the pool by their `model`, to the replica that has the fewest of them; to another one if
/// that is gone before it has begun to answer. Of a service without a ready replica they are held for a while.
///
/// Settings come from flags, then from the environment, then from the table `[gateway]` of the file that --config names,
/// then from the defaults.
///
/// Example: aquifer gateway --server http://head:7700 --listen 127.0.0.1:8000
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// TOML file with settings: a table `[gateway]` with the names of these flags
    #[arg(long, env = "AQUIFER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on; beyond loopback keys or a token are needed. Default: 127.0.0.1:8000
    #[arg(long, env = "AQUIFER_GATEWAY_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// File with the keys of clients, one a line, which they send as `authorization: Bearer …`. Default: the pool's token,
    /// if there is one
    #[arg(long, env = "AQUIFER_GATEWAY_API_KEYS", value_name = "FILE")]
    pub api_keys: Option<PathBuf>,
    /// For so long a request waits for a replica of its model: 0 to 1h. Default: 1m
    #[arg(long, env = "AQUIFER_GATEWAY_HOLD", value_name = "DURATION")]
    pub hold: Option<String>,
    /// Requests under way at a time, at most: 1 to 100,000; a quarter of them may wait for replicas of one model.
    /// Default: 1024
    #[arg(long, env = "AQUIFER_GATEWAY_MAX_IN_FLIGHT", value_name = "REQUESTS")]
    pub max_in_flight: Option<String>,
    /// Size of a request's body, at most: 1KiB to 64MiB. Default: 1MiB, as the bundled server has it
    #[arg(long, env = "AQUIFER_GATEWAY_MAX_BODY", value_name = "SIZE")]
    pub max_body: Option<String>,
    /// When it is told to stop: so long answers under way may take to be complete, 0 to 1d. Default: 1m
    #[arg(long, env = "AQUIFER_GATEWAY_GRACE", value_name = "DURATION")]
    pub grace: Option<String>,
    /// Log as `text` or `json`, to standard error. Default: text
    #[arg(long, env = "AQUIFER_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// What to log: error, warn, info, debug, trace. Default: info
    #[arg(long, env = "AQUIFER_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
}

/// All settings, read.
struct Resolved {
    listen: SocketAddr,
    keys: Vec<Guard>,
    limits: Limits,
    grace: Duration,
    tls: Option<Tls>,
    /// Where the scheduler is.
    global: Global,
    log_format: String,
    log_level: String,
}

impl Args {
    fn resolve(&self, global: &Global) -> Result<Resolved, Failure> {
        let mut settings = Settings::read(self.config.as_deref(), |file| file.gateway)?;
        let text = |text: &str| Ok::<_, String>(text.to_string());
        let global = front::reach(&mut settings, global)?;
        let api_keys = settings::file(&mut settings, "api-keys", &self.api_keys)?;
        let listen = settings.take("listen", self.listen.as_ref(), "127.0.0.1:8000", metrics::address)?;
        let at_most = |text: &str, most_ms: u64| match parse_duration(text)? {
            ms if ms <= most_ms => Ok(Duration::from_millis(ms)),
            _ => Err(format!("expected 0 to {most_ms} ms")),
        };
        let hold = settings.take("hold", self.hold.as_ref(), "1m", |text| at_most(text, 3_600_000))?;
        let grace = settings.take("grace", self.grace.as_ref(), "1m", |text| at_most(text, 86_400_000))?;
        let in_flight = settings.take("max-in-flight", self.max_in_flight.as_ref(), "1024", |text| {
            let count = text.parse::<usize>().ok().filter(|count| (1..=100_000).contains(count));
            count.ok_or_else(|| "expected 1 to 100000 requests".into())
        })?;
        let body = settings.take("max-body", self.max_body.as_ref(), "1MiB", |text| {
            let bytes = parse_size(text)?;
            match (1 << 10..=64 << 20).contains(&bytes) {
                true => Ok(bytes as usize),
                false => Err("expected 1KiB to 64MiB".into()),
            }
        })?;
        let log_format = settings.take("log-format", self.log_format.as_ref(), "text", log_format)?;
        let log_level = settings.take("log-level", self.log_level.as_ref(), "info", text)?;
        settings.finish()?;
        let keys = match &api_keys {
            Some(file) => keys(file)?,
            None => settings::token(global.token_file.as_deref())?.into_iter().collect(),
        };
        Ok(Resolved {
            listen,
            keys: keys.iter().map(|key| Guard::new(Some(key))).collect(),
            limits: Limits { in_flight, body, hold },
            grace,
            tls: front::tls(&global)?,
            global,
            log_format,
            log_level,
        })
    }
}

/// The keys in a file.
fn keys(file: &Path) -> Result<Vec<String>, Failure> {
    let next = "Name a file with a key on each line: `openssl rand -hex 32`.";
    let wrong = |why: String| Failure::usage(format!("--api-keys {}: {why}", file.display()), next);
    let text = fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let keys: Vec<String> = lines.map(Into::into).collect();
    if keys.is_empty() { Err(wrong("it holds no key".into())) } else { Ok(keys) }
}

/// Runs the gateway until it is told to stop.
pub fn run(args: &Args, global: &Global) -> Result<(), Failure> {
    let resolved = args.resolve(global)?;
    settings::start_logging(&resolved.log_format, &resolved.log_level, None)?;
    limits::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::refused(format!("cannot start: {error}"), ""))?;
    let served = runtime.block_on(serve(resolved));
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

async fn serve(resolved: Resolved) -> Result<(), Failure> {
    let Resolved { listen, keys, limits, grace, tls, global, .. } = resolved;
    if !listen.ip().is_loopback() && keys.is_empty() {
        return Err(Failure::refused(
            format!("{listen} needs keys: anyone who reaches that address could ask the models"),
            "Name a file of keys with --api-keys, or listen on 127.0.0.1.",
        ));
    }
    if !listen.ip().is_loopback() && tls.is_none() {
        tracing::warn!("{listen} is reached without TLS: requests, answers and keys travel in clear text");
    }
    let pool = Pool::new(&global)?;
    let registry = Registry::new();
    metrics::enter_process(&registry);
    let admits = move |given: Option<&[u8]>| {
        // All are looked at: how long that takes tells nothing.
        keys.is_empty() || keys.iter().fold(false, |found, key| found | key.admits(given))
    };
    let most = limits.in_flight * CONNECTIONS;
    let gateway = Gateway::new(limits, Box::new(admits), &registry);
    // One that does not answer may do so later; a refusal stays one.
    look(&pool, &gateway).await.or_else(|status| match is_lost(&status) {
        true => Ok(()),
        false => Err(pool.failure(&status)),
    })?;
    let socket = TcpListener::bind(listen).await.map_err(|error| {
        let next = "Choose another address with --listen.";
        Failure::refused(format!("cannot listen on {listen}: {error}"), next)
    })?;
    let address = socket.local_addr().expect("it listens");
    write_out(format!("listening on {address}\n").as_bytes());
    tokio::spawn(follow(pool, gateway.clone()));
    let (router, draining) = (router(gateway.clone()), watch::Sender::new(false));
    let front = Front { socket, tls, router, connections: most, draining, grace };
    let stopped = async {
        settings::stop_signal().await;
        gateway.drain();
    };
    match front.serve(stopped).await {
        true => tracing::info!("stopped; every request was answered"),
        false => tracing::warn!("stopped; answers were not complete within the grace"),
    }
    Ok(())
}

/// Keeps up with the services of the pool. What was known stands while the scheduler does not answer.
async fn follow(pool: Pool, gateway: Arc<Gateway>) {
    let mut told = String::new();
    loop {
        sleep(LOOK_EVERY).await;
        let now = match look(&pool, &gateway).await {
            Ok(()) => String::new(),
            Err(status) => pool.failure(&status).sentence,
        };
        if now != told {
            match &now[..] {
                "" => tracing::info!("the scheduler answers again"),
                why => tracing::warn!("{why}; what was known of services stands"),
            }
            told = now;
        }
    }
}

async fn look(pool: &Pool, gateway: &Gateway) -> Result<(), Status> {
    let mut client = pool.client();
    let asked = timeout(PATIENCE, client.list_services(v1::ListServicesRequest {})).await;
    let answer = asked.map_err(|_| Status::unavailable("it did not answer in time"))??.into_inner();
    let service = |it: v1::Service| Service {
        job: it.job,
        model: it.model,
        created_s: it.submitted_ms / 1000,
        endpoints: it.endpoints.into_iter().collect::<BTreeSet<_>>().into_iter().collect(),
    };
    gateway.routes.set(answer.services.into_iter().map(service).collect());
    // What sleeps is woken; what starts is not taken for something that nobody asks.
    for model in gateway.routes.overview().into_iter().filter(|model| 0 < model.held) {
        for job in model.jobs {
            let asked = client.demand(v1::DemandRequest { job, waiting: model.held as u32 });
            match timeout(PATIENCE, asked).await {
                // It may have ended since.
                Ok(Err(status)) if status.code() != Code::FailedPrecondition => return Err(status),
                _ => (),
            }
        }
    }
    Ok(())
}
