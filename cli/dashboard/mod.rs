//! `aquifer dashboard`: the pool in a browser.
//!
//! A client of the pool like every other command: what it shows is what the scheduler answers to the viewer's token, in
//! the words of `--json`. `door.rs` lets browsers in, `pages.rs` has what can be read and `acts.rs` what can be done,
//! `streams.rs` what is told as it happens, `picture.rs` the devices of the whole pool in few bytes, and `ui/` the page itself.

mod acts;
mod answer;
mod door;
mod pages;
mod picture;
mod streams;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aquifer_gateway::Router;
use aquifer_scheduler::tls::Tls;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::client::{self, Global, Pool};
use crate::front::{self, Front};
use crate::output::{Failure, write_out};
use crate::server::log_format;
use crate::settings::{self, Settings};
use crate::{limits, metrics};
use door::Door;

/// Where it listens if nothing says so.
pub const ADDRESS: &str = "127.0.0.1:7780";
/// When it is told to stop: so long answers under way may take to be complete.
const GRACE: Duration = Duration::from_secs(5);

/// Show the pool in a browser
///
/// It is a client of the pool and may do what the token of whoever looks may do: on loopback the one that this command is given,
/// for those who have the key of the printed address; with --sign-in token the one that each viewer signs in with.
///
/// Settings come from flags, then from the environment, then from the table `[dashboard]` of the file that --config names,
/// then from the defaults.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
Example:
  aquifer dashboard
  aquifer dashboard --listen 0.0.0.0:7780 --sign-in token --tls-cert pool.pem --tls-key pool.key --host pool.example.org")]
pub struct Args {
    /// TOML file with settings: a table `[dashboard]` with the names of these flags
    #[arg(long, env = "AQUIFER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on; beyond loopback only with --sign-in token, and TLS or --clear-text. Default: 127.0.0.1:7780
    #[arg(long, env = "AQUIFER_DASHBOARD_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// How a browser gets in: with the `key` of the printed address, and then in the name of the token that this command has; or
    /// with a `token` of the pool that the viewer types in, and then in the name of that. Default: key
    #[arg(long, env = "AQUIFER_DASHBOARD_SIGN_IN", value_name = "HOW")]
    pub sign_in: Option<String>,
    /// Names by which browsers reach it, with commas between them, besides addresses and localhost. Default: none
    #[arg(long, env = "AQUIFER_DASHBOARD_HOST", value_name = "NAMES")]
    pub host: Option<String>,
    /// Listen beyond loopback without TLS, as something else before it speaks that
    #[arg(long)]
    pub clear_text: bool,
    /// Connections at a time, at most: 1 to 100,000. Default: 512
    #[arg(long, env = "AQUIFER_DASHBOARD_MAX_CONNECTIONS", value_name = "CONNECTIONS")]
    pub max_connections: Option<String>,
    /// Log as `text` or `json`, to standard error. Default: text
    #[arg(long, env = "AQUIFER_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// What to log: error, warn, info, debug, trace. Default: info
    #[arg(long, env = "AQUIFER_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
}

/// How a browser gets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignIn {
    /// With the key of the printed address.
    Key,
    /// With a token of the viewer's own.
    Token,
}

/// What a dashboard is to be.
#[derive(Debug)]
pub struct Setup {
    /// Where it listens.
    pub listen: SocketAddr,
    /// How a browser gets in.
    pub sign_in: SignIn,
    /// Names by which browsers reach it.
    pub hosts: Vec<String>,
    /// It may be without TLS beyond loopback.
    pub clear_text: bool,
    /// Connections at a time, at most.
    pub connections: usize,
    /// `None`: clear text.
    pub tls: Option<Tls>,
    /// Where the scheduler is.
    pub global: Global,
}

impl Setup {
    /// One on loopback, for whoever has the key.
    pub fn of_loopback(listen: SocketAddr, global: Global) -> Setup {
        let (sign_in, hosts) = (SignIn::Key, Vec::new());
        Setup { listen, sign_in, hosts, clear_text: false, connections: 512, tls: None, global }
    }
}

impl Args {
    fn resolve(&self, global: &Global) -> Result<(Setup, String, String), Failure> {
        let mut settings = Settings::read(self.config.as_deref(), |file| file.dashboard)?;
        let text = |text: &str| Ok::<_, String>(text.to_string());
        let global = front::reach(&mut settings, global)?;
        let listen = settings.take("listen", self.listen.as_ref(), ADDRESS, metrics::address)?;
        let sign_in = settings.take("sign-in", self.sign_in.as_ref(), "key", |text| match text {
            "key" => Ok(SignIn::Key),
            "token" => Ok(SignIn::Token),
            _ => Err("expected key or token".into()),
        })?;
        let hosts = settings.take("host", self.host.as_ref(), "", |text| {
            let names: Vec<String> = text.split(',').map(|name| name.trim().to_lowercase()).collect();
            let is_name = |name: &String| {
                let known = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
                !name.is_empty() && name.chars().all(known)
            };
            match text.is_empty() || names.iter().all(is_name) {
                true => Ok(names.into_iter().filter(|name| !name.is_empty()).collect()),
                false => Err("expected names of hosts, without ports, with commas between them".into()),
            }
        })?;
        let flag = self.clear_text.then(|| "yes".to_string());
        let clear_text = settings.take("clear-text", flag.as_ref(), "no", |text| match text {
            "yes" => Ok(true),
            "no" => Ok(false),
            _ => Err("expected \"yes\" or \"no\"".into()),
        })?;
        let connections = settings.take("max-connections", self.max_connections.as_ref(), "512", |text| {
            let count = text.parse::<usize>().ok().filter(|count| (1..=100_000).contains(count));
            count.ok_or_else(|| "expected 1 to 100000 connections".into())
        })?;
        let log_format = settings.take("log-format", self.log_format.as_ref(), "text", log_format)?;
        let log_level = settings.take("log-level", self.log_level.as_ref(), "info", text)?;
        settings.finish()?;
        let tls = front::tls(&global)?;
        Ok((Setup { listen, sign_in, hosts, clear_text, connections, tls, global }, log_format, log_level))
    }
}

/// Runs the dashboard until it is told to stop.
pub fn run(args: &Args, global: &Global) -> Result<(), Failure> {
    let (setup, log_format, log_level) = args.resolve(global)?;
    settings::start_logging(&log_format, &log_level, None)?;
    limits::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::refused(format!("cannot start: {error}"), ""))?;
    let served = runtime.block_on(async {
        let dashboard = Dashboard::bind(setup).await?;
        write_out(format!("The dashboard is at {}\n", dashboard.url()).as_bytes());
        dashboard.serve(settings::stop_signal()).await;
        Ok(())
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

/// A dashboard that listens.
pub struct Dashboard {
    socket: TcpListener,
    door: Arc<Door>,
    tls: Option<Tls>,
    connections: usize,
}

impl Dashboard {
    /// Takes its address.
    ///
    /// # Errors
    /// It cannot be had, or would show the pool to those who have no right to it.
    pub async fn bind(setup: Setup) -> Result<Dashboard, Failure> {
        let Setup { listen, sign_in, hosts, clear_text, connections, tls, global } = setup;
        let is_beyond = !listen.ip().is_loopback();
        if is_beyond && sign_in == SignIn::Key {
            return Err(Failure::refused(
                format!("{listen} needs --sign-in token: whoever has the key would act in your name"),
                "Let everyone sign in with a token of their own, or listen on 127.0.0.1.",
            ));
        }
        if is_beyond && tls.is_none() && !clear_text {
            return Err(Failure::refused(
                format!("{listen} needs TLS: tokens would travel in clear text"),
                "Give --tls-cert and --tls-key, or --clear-text where something else before it speaks TLS.",
            ));
        }
        let token = match sign_in {
            SignIn::Key => client::token(&global)?,
            // Nobody shall act in the name of who started it.
            SignIn::Token => None,
        };
        let pool = Pool::new(&global)?;
        let socket = TcpListener::bind(listen).await.map_err(|error| {
            let next = "Choose another address with --listen.";
            Failure::refused(format!("cannot listen on {listen} for the dashboard: {error}"), next)
        })?;
        let address = socket.local_addr().expect("it listens");
        let door = Arc::new(Door::new(pool, sign_in, token, address, hosts, tls.is_some()));
        Ok(Dashboard { socket, door, tls, connections })
    }

    /// What to open in a browser, with the key if that lets in.
    pub fn url(&self) -> String {
        self.door.url()
    }

    /// Answers until `stopped` is ready, and then what is under way.
    pub async fn serve(self, stopped: impl Future<Output = ()>) {
        let Dashboard { socket, door, tls, connections } = self;
        let draining = watch::Sender::new(false);
        let router = router(door, draining.subscribe());
        let front = Front { socket, tls, router, connections, draining, grace: GRACE };
        front.serve(stopped).await; // Who is slow has been told.
    }
}

/// All paths.
fn router(door: Arc<Door>, draining: streams::Draining) -> Router {
    let of_viewers = Router::new()
        .route("/api/me", get(pages::me))
        .route("/api/overview", get(pages::overview))
        .route("/api/devices", get(pages::devices))
        .route("/api/nodes", get(pages::nodes))
        .route("/api/nodes/{node}", get(pages::node))
        .route("/api/nodes/{node}/devices/{device}", get(pages::device))
        .route("/api/nodes/{node}/{act}", post(acts::node))
        .route("/api/jobs", get(pages::list))
        .route("/api/jobs/{job}", get(pages::job))
        .route("/api/jobs/{job}/explain", get(pages::explain))
        .route("/api/jobs/{job}/cancel", post(acts::cancel))
        .route("/api/queues", get(pages::queues))
        .route("/api/usage", get(pages::usage))
        .route("/api/services", get(pages::services))
        .route("/api/reservations", get(pages::reservations))
        .with_state(door.clone())
        .merge(
            Router::new()
                .route("/api/notes", get(streams::notes))
                .route("/api/jobs/{job}/logs", get(streams::logs))
                .with_state(draining),
        )
        .layer(from_fn_with_state(door.clone(), door::admit));
    Router::new()
        .route("/", get(door::enter))
        .route("/ui/{file}", get(pages::asset))
        .route("/healthz", get(async || "ok\n"))
        .route("/api/sign-in", post(door::sign_in))
        .route("/api/sign-out", post(door::sign_out))
        .with_state(door.clone())
        .merge(of_viewers)
        .fallback(async || answer::Refusal::not_found("there is no such path"))
        .layer(from_fn_with_state(door, door::guard))
}
