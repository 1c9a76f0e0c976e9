//! `aquifer server`: the scheduler's daemon.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::Policy;
use aquifer_core::plan::Order;
use aquifer_scheduler::callers::Users;
use aquifer_scheduler::grpc::{ServerConfig, ServerError, serve};
use aquifer_scheduler::leader::Source;
use aquifer_scheduler::limits::Limits;
use aquifer_scheduler::metrics::Metrics;
use aquifer_scheduler::store::{ACKNOWLEDGED, Address, Embedded, EtcdAddress, StoreError};
use aquifer_scheduler::tls::{Files, Protocol, Tls};

use crate::client::{Global, identity};
use crate::etcd::EtcdArgs;
use crate::limits;
use crate::metrics::{self, Listener};
use crate::otlp::Export;
use crate::output::{Failure, write_out};
use crate::settings::{self, Settings};
use crate::units::parse_duration;

const YEAR_MS: u64 = 365 * 86_400_000;

/// Run the scheduler
///
/// Settings come from flags, then from the environment, then from the table `[server]` of the file that --config
/// names, then from the defaults. The first line on standard output is the address it listens on.
///
/// Example: aquifer server --listen 0.0.0.0:7700 --token-file /etc/aquifer/token --data-dir /var/lib/aquifer
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// TOML file with settings: a table `[server]` with the names of these flags
    #[arg(long, env = "AQUIFER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on; beyond loopback a token is needed. Default: 127.0.0.1:7700
    #[arg(long, env = "AQUIFER_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Address on which operators read `/metrics`, `/healthz` and `/readyz`; beyond loopback a token is needed. Default: off
    #[arg(long, env = "AQUIFER_METRICS", value_name = "ADDRESS:PORT")]
    pub metrics: Option<String>,
    /// File of users with tokens of their own, as `aquifer token` writes it: their jobs are in their names, and only
    /// administrators change what is of others; needs --token-file, whose token then is for agents. Default: nobody has one
    #[arg(long, env = "AQUIFER_USERS", value_name = "FILE")]
    pub users: Option<PathBuf>,
    /// File with the certificates of authorities, in PEM, one of which must have signed the certificate of whoever
    /// connects; needs --tls-cert. Default: clients need no certificate
    #[arg(long, env = "AQUIFER_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// Ended jobs that are kept at hand, at most; the others retire into the store's history, where they are found all the
    /// same. Every one is kept for at least 10 minutes. Default: 100000
    #[arg(long, env = "AQUIFER_KEEP_ENDED", value_name = "JOBS")]
    pub keep_ended: Option<String>,
    /// Directory for the store. Default: the user's data directory
    #[arg(long, env = "AQUIFER_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Where the pool is kept: a file, or `etcd://HOST:PORT,HOST:PORT…/PREFIX`, so that other schedulers can take over;
    /// the prefix is `aquifer` if none is given. Default: `store.redb` in the data directory
    #[arg(long, env = "AQUIFER_STORE", value_name = "STORE")]
    pub store: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub etcd: EtcdArgs,
    /// URL under which clients and agents reach this scheduler when it leads, with etcd. Default: from --listen, with the
    /// host's name if that is every address
    #[arg(long, env = "AQUIFER_ADVERTISE", value_name = "URL")]
    pub advertise: Option<String>,
    /// Silence of the scheduler that leads after which another one takes over, with etcd: 2s to 60s, whole
    /// seconds. Default: 2s
    #[arg(long, env = "AQUIFER_LEADER_LEASE", value_name = "DURATION")]
    pub leader_lease: Option<String>,
    /// Silence after which a node is lost and its jobs are placed again: 1s to 1h. Default: 30s
    #[arg(long, env = "AQUIFER_LEASE", value_name = "DURATION")]
    pub lease: Option<String>,
    /// Pause before a job that failed is placed again; doubles with every failure, up to 64 times. Default: 1s
    #[arg(long, env = "AQUIFER_BACKOFF", value_name = "DURATION")]
    pub backoff: Option<String>,
    /// Who goes first: `fair-share` over the queues, or `priority` alone. Default: fair-share
    #[arg(long, env = "AQUIFER_ORDER", value_name = "ORDER")]
    pub order: Option<String>,
    /// After so long what a queue has used counts half against it: 1h to 365d, or 0 to count only what it holds.
    /// Default: 1d
    #[arg(long, env = "AQUIFER_HALF_LIFE", value_name = "DURATION")]
    pub half_life: Option<String>,
    /// For so long a job waits to gain one in priority: 0 (priorities count nothing) to 365d. Default: 1h
    #[arg(long, env = "AQUIFER_AGEING", value_name = "DURATION")]
    pub ageing: Option<String>,
    /// Stop running jobs, with their grace, for those of a higher priority or a queue below its guarantee: `on` or
    /// `off`. Default: on
    #[arg(long, env = "AQUIFER_PREEMPTION", value_name = "ON|OFF")]
    pub preemption: Option<String>,
    /// Let trainings give up ranks that they can do without, while they run on, for services that need more replicas than
    /// there is room for: `on` or `off`. Without preemption never. Default: on
    #[arg(long, env = "AQUIFER_YIELD_TO_SERVICES", value_name = "ON|OFF")]
    pub yield_to_services: Option<String>,
    /// For so long a job runs before it may stop, with its grace, to go on with more ranks: 0 to 365d, or `off`.
    /// Default: 5m
    #[arg(long, env = "AQUIFER_GROW_AFTER", value_name = "DURATION")]
    pub grow_after: Option<String>,
    /// So often running jobs may be moved: to another class of devices where they end much sooner, if nothing that waits
    /// could use it, or to make room in one piece for a job that waits: 1m to 1d, or 0 for never. Without preemption never. Default: 6m
    #[arg(long, env = "AQUIFER_ROUNDS", value_name = "DURATION")]
    pub rounds: Option<String>,
    /// Directory, on storage that all nodes see, for the checkpoints of jobs that name none. Default: `checkpoints`
    /// in the data directory
    #[arg(long, env = "AQUIFER_CHECKPOINT_ROOT", value_name = "DIR")]
    pub checkpoint_root: Option<String>,
    /// Let users run commands beside workers of their jobs, and administrators beside all (`aquifer exec`): `on` or `off`.
    /// Default: on
    #[arg(long, env = "AQUIFER_EXEC", value_name = "ON|OFF")]
    pub exec: Option<String>,
    /// Connections of clients and agents that are taken: 16 to 1000000. Default: 16384
    #[arg(long, env = "AQUIFER_CONNECTIONS", value_name = "CONNECTIONS")]
    pub connections: Option<String>,
    /// Connections from one address, agents among them: 1 to 1000000. Default: 1024
    #[arg(long, env = "AQUIFER_CLIENT_CONNECTIONS", value_name = "CONNECTIONS")]
    pub client_connections: Option<String>,
    /// Calls from one address under way, of those who follow something among them: 1 to 100000. Default: 256
    #[arg(long, env = "AQUIFER_CLIENT_CALLS", value_name = "CALLS")]
    pub client_calls: Option<String>,
    /// Calls from one address in a second, beyond which they wait for their turn or are told when to try again: 1 to
    /// 1000000, or 0 for as many as it likes. Default: 1000
    #[arg(long, env = "AQUIFER_CLIENT_RATE", value_name = "CALLS")]
    pub client_rate: Option<String>,
    /// URL of an OpenTelemetry collector that gets a span of each call, decision and commit, over gRPC in clear text, such
    /// as http://127.0.0.1:4317. Default: nothing is exported
    #[arg(long, env = "AQUIFER_OTLP", value_name = "URL")]
    pub otlp: Option<String>,
    /// Log as `text` or `json`, to standard error. Default: text
    #[arg(long, env = "AQUIFER_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// What to log: error, warn, info, debug, trace. Default: info
    #[arg(long, env = "AQUIFER_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
}

/// All settings, read.
pub struct Resolved {
    /// Of the server.
    pub config: ServerConfig,
    /// Where operators read it.
    pub metrics: Option<SocketAddr>,
    /// Certificates of all that is listened on.
    pub tls: Option<Files>,
    /// Where the pool is kept.
    pub store: Address,
    /// URL under which it is reached when it leads.
    pub advertise: String,
    /// Silence after which another scheduler leads.
    pub leader_lease: Duration,
    /// URL of a collector of spans.
    pub otlp: Option<String>,
    /// `text` or `json`.
    pub log_format: String,
    /// A filter.
    pub log_level: String,
}

impl Args {
    /// Reads all settings.
    ///
    /// # Errors
    /// Names the first setting that makes no sense.
    pub fn resolve(&self, global: &Global) -> Result<Resolved, Failure> {
        let mut settings = Settings::read(self.config.as_deref(), |file| file.server)?;
        let data_dir = settings::data_dir().join("server").display().to_string();
        let data_dir = settings.take("data-dir", self.data_dir.as_ref(), &data_dir, absolute)?;
        let checkpoints = data_dir.join("checkpoints").display().to_string();
        let listen: SocketAddr =
            settings.take("listen", self.listen.as_ref(), "127.0.0.1:7700", metrics::address)?;
        let observed = settings.take_optional("metrics", self.metrics.as_ref(), metrics::address)?;
        let embedded = data_dir.join("store.redb").display().to_string();
        let store = settings.take("store", self.store.as_ref(), &embedded, str::parse::<Address>)?;
        let store = self.etcd.settled(&mut settings)?.enter(store)?;
        let tls = self.tls(&mut settings, global)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let advertise = self.advertise.as_ref();
        let advertise =
            settings.take("advertise", advertise, &reached_at(scheme, listen), |text| url(scheme, text))?;
        let term = |text: &str| between(text, 2_000, 60_000);
        let leader_lease = settings.take("leader-lease", self.leader_lease.as_ref(), "2s", term)?;
        let lease = settings.take("lease", self.lease.as_ref(), "30s", |t| between(t, 1_000, 3_600_000))?;
        let backoff = settings.take("backoff", self.backoff.as_ref(), "1s", |t| between(t, 0, 3_600_000))?;
        let order = settings.take("order", self.order.as_ref(), "fair-share", |text| match text {
            "fair-share" => Ok(Order::FairShare),
            "priority" => Ok(Order::Priority),
            _ => Err("expected fair-share or priority".into()),
        })?;
        let half_life = settings.take("half-life", self.half_life.as_ref(), "1d", |text| match text {
            "0" => Ok(Duration::ZERO),
            text => between(text, 3_600_000, YEAR_MS).map_err(|why| format!("{why}, or 0")),
        })?;
        let ageing = settings.take("ageing", self.ageing.as_ref(), "1h", |t| between(t, 0, YEAR_MS))?;
        let switch = |text: &str| match text {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err("expected on or off".to_string()),
        };
        let preemption = settings.take("preemption", self.preemption.as_ref(), "on", switch)?;
        let yields = self.yield_to_services.as_ref();
        let yield_to_services = settings.take("yield-to-services", yields, "on", switch)?;
        let exec = settings.take("exec", self.exec.as_ref(), "on", switch)?;
        let grow_after = settings.take("grow-after", self.grow_after.as_ref(), "5m", |text| match text {
            "off" => Ok(None),
            text => between(text, 0, YEAR_MS).map(Some).map_err(|why| format!("{why}, or off")),
        })?;
        let rounds = settings.take("rounds", self.rounds.as_ref(), "6m", |text| match text {
            "0" => Ok(Duration::ZERO),
            text => between(text, 60_000, 86_400_000).map_err(|why| format!("{why}, or 0")),
        })?;
        let keep_ended = settings.take("keep-ended", self.keep_ended.as_ref(), "100000", |text| {
            let jobs = text.parse::<u64>().ok().filter(|jobs| (10_000..=10_000_000).contains(jobs));
            jobs.ok_or_else(|| "expected 10000 to 10000000 jobs".into())
        })?;
        let limits = self.limits(&mut settings)?;
        let root = self.checkpoint_root.as_ref();
        let checkpoint_root = settings.take("checkpoint-root", root, &checkpoints, absolute)?;
        let otlp = settings.take_optional("otlp", self.otlp.as_ref(), |text| url("http", text))?;
        let log_format = settings.take("log-format", self.log_format.as_ref(), "text", log_format)?;
        let log_level =
            settings.take("log-level", self.log_level.as_ref(), "info", |text| Ok(text.into()))?;
        let token_file = settings.take_optional("token-file", None, |text| Ok(PathBuf::from(text)))?;
        let users = settings::file(&mut settings, "users", &self.users)?;
        settings.finish()?;
        let token = settings::token(global.token_file.as_deref().or(token_file.as_deref()))?;
        let users = users.map(|file| open_users(file, token.is_some())).transpose()?;
        let policy = Policy {
            order,
            lease,
            backoff,
            half_life,
            ageing,
            preemption,
            yield_to_services,
            grow_after,
            rounds,
            keep_ended,
            ..Policy::new(order)
        };
        let checkpoint_root = checkpoint_root.display().to_string();
        let metrics = Metrics::default();
        let own = tls.clone().map(|files| open(files, Protocol::Http2)).transpose()?;
        let config =
            ServerConfig { listen, token, users, tls: own, exec, limits, policy, checkpoint_root, metrics };
        Ok(Resolved {
            config,
            metrics: observed,
            tls,
            store,
            advertise,
            leader_lease,
            otlp,
            log_format,
            log_level,
        })
    }

    fn limits(&self, settings: &mut Settings) -> Result<Limits, Failure> {
        let mut count = |name, flag: &Option<String>, default, least, most| {
            settings.take(name, flag.as_ref(), default, |text| {
                let count = text.parse::<u32>().ok().filter(|count| (least..=most).contains(count));
                count.ok_or_else(|| format!("expected {least} to {most}"))
            })
        };
        let connections = count("connections", &self.connections, "16384", 16, 1_000_000)? as usize;
        let client_connections =
            count("client-connections", &self.client_connections, "1024", 1, 1_000_000)? as usize;
        let client_calls = count("client-calls", &self.client_calls, "256", 1, 100_000)? as usize;
        let client_rate = count("client-rate", &self.client_rate, "1000", 0, 1_000_000)?;
        Ok(Limits { connections, client_connections, client_calls, client_rate })
    }

    fn tls(&self, settings: &mut Settings, global: &Global) -> Result<Option<Files>, Failure> {
        let mut file = |name, flag| settings::file(settings, name, flag);
        let own = identity(&file("tls-cert", &global.tls_cert)?, &file("tls-key", &global.tls_key)?)?;
        let client_ca = file("tls-client-ca", &self.tls_client_ca)?;
        match (own, client_ca) {
            (None, None) => Ok(None),
            (Some((certificate, key)), client_ca) => Ok(Some(Files { certificate, key, client_ca })),
            (None, Some(_)) => Err(Failure::usage(
                "--tls-client-ca is given without --tls-cert and --tls-key",
                "Give them as well: clients show certificates only where TLS is spoken.",
            )),
        }
    }
}

/// Runs the scheduler until it is told to stop.
pub fn run(args: &Args, global: &Global) -> Result<(), Failure> {
    let resolved = args.resolve(global)?;
    limits::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::refused(format!("cannot start: {error}"), ""))?;
    let config = &resolved.config;
    let begin = |url: &String| {
        let _entered = runtime.enter();
        Export::begin(url, config.listen, config.metrics.registry())
    };
    let spans = resolved.otlp.as_ref().map(begin).transpose()?;
    let tracer = spans.as_ref().map(Export::tracer);
    settings::start_logging(&resolved.log_format, &resolved.log_level, tracer)?;
    // Before the store, which may take a while to be read.
    let metrics = runtime.block_on(observe(&resolved))?;
    let source = source(&resolved)?;
    let ready = |address: SocketAddr| {
        write_out(format!("listening on {address}\n").as_bytes());
        if let Some(address) = metrics {
            write_out(format!("metrics on {address}\n").as_bytes());
        }
        // Without systemd nobody is told; if it cannot be, it says so itself when its patience ends.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    };
    let served = serve(resolved.config, source, ready, settings::stop_signal());
    let served = runtime.block_on(served).map_err(failure);
    drop(spans);
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

/// Users with tokens of their own.
fn open_users(file: PathBuf, has_token: bool) -> Result<Arc<Users>, Failure> {
    if !has_token {
        let sentence = "--users needs a token of the pool: without one everybody may do everything";
        return Err(Failure::usage(
            sentence,
            "Name a secret with --token-file, and give it to agents alone.",
        ));
    }
    let next = "Correct it, or let `aquifer token NAME --users FILE` write one.";
    Users::open(file).map(Arc::new).map_err(|error| Failure::usage(error.to_string(), next))
}

/// Begins to answer operators, if that is wanted, and says where.
///
/// # Errors
/// The address cannot be had, or would be open to everyone.
pub async fn observe(resolved: &Resolved) -> Result<Option<SocketAddr>, Failure> {
    let config = &resolved.config;
    metrics::enter_process(config.metrics.registry());
    let Some(address) = resolved.metrics else { return Ok(None) };
    let tls = resolved.tls.clone().map(|files| open(files, Protocol::Http1)).transpose()?;
    let listener = Listener::bind(address, config.token.as_deref(), tls).await?;
    let address = listener.address();
    tokio::spawn(listener.serve(config.metrics.clone()));
    Ok(Some(address))
}

/// What the scheduler gets its store from.
///
/// # Errors
/// The store cannot be had.
pub fn source(resolved: &Resolved) -> Result<Source, Failure> {
    match &resolved.store {
        Address::File(path) => {
            let store = Embedded::open(path).map_err(ServerError::from).map_err(failure)?;
            Ok(Source::Owned(Box::new(store)))
        }
        Address::Etcd(_) if resolved.advertise.ends_with(":0") => Err(Failure::usage(
            format!("{} does not say where others reach this scheduler", resolved.advertise),
            "Choose a port with --listen, or name the URL with --advertise.",
        )),
        Address::Etcd(address) => contested(address, resolved),
    }
}

#[cfg(feature = "etcd")]
fn contested(address: &EtcdAddress, resolved: &Resolved) -> Result<Source, Failure> {
    use aquifer_scheduler::leader::Candidate;
    let candidate = Candidate::new(address, &resolved.advertise, resolved.leader_lease);
    candidate.map(Source::Contested).map_err(ServerError::from).map_err(failure)
}

#[cfg(not(feature = "etcd"))]
fn contested(address: &EtcdAddress, _: &Resolved) -> Result<Source, Failure> {
    Err(no_etcd(address))
}

/// This program cannot do it.
#[cfg(not(feature = "etcd"))]
pub fn no_etcd(address: &EtcdAddress) -> Failure {
    Failure::usage(
        format!("{address}: this program was built without etcd"),
        "Build it with `cargo build --release --features etcd`, where protobuf-compiler and libprotobuf-dev are installed.",
    )
}

/// What to do about an error of the scheduler. Exit code 4: another one leads. 3: etcd does not answer.
pub fn failure(error: ServerError) -> Failure {
    let next = match &error {
        ServerError::Store(StoreError::Lost { path, .. }) => &format!(
            "Restore a backup into another file, and name that with --store; or remove {path}{ACKNOWLEDGED} to go on without what is missing."
        ),
        ServerError::Open(_) => "Name a secret with --token-file, or listen on 127.0.0.1.",
        ServerError::Listen { .. } => "Choose another address with --listen; is a scheduler running already?",
        ServerError::Store(StoreError::Fenced { .. }) => {
            "Start it again to have it stand by; what was acknowledged is kept."
        }
        ServerError::Store(StoreError::Away { .. }) => {
            "Start it again: it waits for etcd; what was acknowledged is kept."
        }
        ServerError::Store(StoreError::HalfRestored { .. }) => {
            "Restore into it again: `aquifer store restore`."
        }
        ServerError::Store(StoreError::Damaged { .. } | StoreError::Unreadable(_)) => {
            "Restore a backup into another file (`aquifer store restore FILE --to STORE`), and name that with --store; look at the disk."
        }
        ServerError::Store(_) => "Look at the store's directory; another one can be named with --data-dir.",
        ServerError::Server(_) | ServerError::Reflection(_) => {
            "Start it again; what was acknowledged is kept."
        }
    };
    let exit = match &error {
        ServerError::Store(StoreError::Fenced { .. }) => 4,
        ServerError::Store(StoreError::Away { .. }) => 3,
        _ => 1,
    };
    Failure { exit, sentence: error.to_string(), next: next.into() }
}

/// The URL of an address to listen on, as others see it.
fn reached_at(scheme: &str, listen: SocketAddr) -> String {
    match listen.ip().is_unspecified() {
        true => format!("{scheme}://{}:{}", aquifer_agent::host::Host::read().name, listen.port()),
        false => format!("{scheme}://{listen}"),
    }
}

fn url(scheme: &str, text: &str) -> Result<String, String> {
    match tonic::transport::Endpoint::from_shared(text.to_string()) {
        Ok(_) if text.starts_with(&format!("{scheme}://")) => Ok(text.into()),
        _ => Err(format!("expected a URL like {scheme}://head-1:7700")),
    }
}

fn open(files: Files, protocol: Protocol) -> Result<Tls, Failure> {
    Tls::open(files, protocol).map_err(|error| Failure::usage(error.to_string(), ""))
}

/// A path, made absolute.
pub fn absolute(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|error| format!("no path: {error}"))
}

/// `text` or `json`.
pub fn log_format(text: &str) -> Result<String, String> {
    match text {
        "text" | "json" => Ok(text.into()),
        _ => Err("expected text or json".into()),
    }
}

fn between(text: &str, least_ms: u64, most_ms: u64) -> Result<Duration, String> {
    let ms = parse_duration(text)?;
    match (least_ms..=most_ms).contains(&ms) {
        true => Ok(Duration::from_millis(ms)),
        false => Err(format!("expected {least_ms} ms to {most_ms} ms")),
    }
}
