//! `aquifer up`: a pool of this one machine.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aquifer_agent::AgentConfig;
use aquifer_core::explain::bytes;
use aquifer_proto::v1;
use aquifer_scheduler::grpc::{ServerError, serve};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::client::{Global, Pool};
use crate::dashboard::{Dashboard, Setup};
use crate::output::{Failure, Output, aside};
use crate::server::failure;
use crate::{agent, dashboard, metrics, server, settings, units};

/// Run a pool of this one machine
///
/// The scheduler, an agent and the dashboard run in this process until Ctrl-C; jobs and their state stay in the data directory, and
/// the next start finds them again. Ctrl-C stops what runs with its grace, so that it can write a checkpoint and goes
/// on after the next start; a second one leaves at once.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  aquifer up --devices cpu")]
pub struct Args {
    /// Directory for all that is kept. Default: the user's data directory
    #[arg(long, env = "AQUIFER_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address to listen on; beyond loopback a token is needed. Default: 127.0.0.1:7700
    #[arg(long, env = "AQUIFER_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Address on which operators read `/metrics`, as for `aquifer server`. Default: off
    #[arg(long, env = "AQUIFER_METRICS", value_name = "ADDRESS:PORT")]
    pub metrics: Option<String>,
    /// Address of the dashboard, on loopback, or `off`. Default: 127.0.0.1:7780, or another port if that is taken
    #[arg(long, env = "AQUIFER_DASHBOARD", value_name = "ADDRESS:PORT|off")]
    pub dashboard: Option<String>,
    /// Devices to offer, as for `aquifer agent`. Default: auto
    #[arg(long, env = "AQUIFER_DEVICES", value_name = "DEVICES")]
    pub devices: Option<String>,
    /// Cores to offer, like 8 or 1.5. Default: all
    #[arg(long, env = "AQUIFER_CPUS", value_name = "CORES")]
    pub cpus: Option<String>,
    /// Main memory to offer, like 64GiB. Default: all
    #[arg(long, env = "AQUIFER_MEMORY", value_name = "SIZE")]
    pub memory: Option<String>,
    /// After so long what a queue has used counts half, as for `aquifer server`. Default: 1d
    #[arg(long, env = "AQUIFER_HALF_LIFE", value_name = "DURATION")]
    pub half_life: Option<String>,
    /// Waiting that counts as much as one of priority, as for `aquifer server`. Default: 1h
    #[arg(long, env = "AQUIFER_AGEING", value_name = "DURATION")]
    pub ageing: Option<String>,
    /// What to log: error, warn, info, debug, trace. Default: warn
    #[arg(
        long,
        env = "AQUIFER_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "warn",
        hide_default_value = true
    )]
    pub log_level: String,
}

/// Runs the pool until it is told to stop.
pub fn run(args: &Args, global: &Global) -> Result<(), Failure> {
    settings::start_logging("text", &args.log_level, None)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::refused(format!("cannot start: {error}"), ""))?;
    let ended = runtime.block_on(run_both(args, global));
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

async fn run_both(args: &Args, global: &Global) -> Result<(), Failure> {
    let global = &global.plain();
    let data_dir = args.data_dir.clone().unwrap_or_else(settings::data_dir);
    let of_server = server::Args {
        listen: args.listen.clone(),
        metrics: args.metrics.clone(),
        data_dir: Some(data_dir.join("server").display().to_string()),
        half_life: args.half_life.clone(),
        ageing: args.ageing.clone(),
        ..server::Args::default()
    };
    let of_server = of_server.resolve(global)?;
    server::observe(&of_server).await?;
    let source = server::source(&of_server)?;
    let (ready, address) = oneshot::channel();
    let (stop_server, server_stopped) = oneshot::channel::<()>();
    let ready = move |address| _ = ready.send(address);
    let stopped = async move { _ = server_stopped.await };
    let mut server = tokio::spawn(serve(of_server.config, source, ready, stopped));
    let Ok(address) = address.await else { return joined(&mut server).await };

    let global = Global { server: Some(format!("http://{address}")), ..global.clone() };
    let of_agent = agent::Args {
        state_dir: Some(data_dir.join("agent").display().to_string()),
        devices: args.devices.clone(),
        cpus: args.cpus.clone(),
        memory: args.memory.clone(),
        run_as: Some("agent".into()),
        ..agent::Args::default()
    };
    let mut config = of_agent.resolve(&global)?.config;
    if config.node.is_empty() {
        config.node = aquifer_agent::host::Host::read().name;
    }
    let node = config.node.clone();
    let (stop_agent, agent_stopped) = oneshot::channel::<()>();
    let mut agent = tokio::spawn(run_agent(config, agent_stopped));
    let pool = Pool::new(&global)?;

    let (stop_dashboard, dashboard_stopped) = oneshot::channel::<()>();
    let dashboard = look(args.dashboard.as_deref(), &global).await?;
    let shown_at = dashboard.as_ref().map(Dashboard::url);
    let dashboard = dashboard.map(|it| tokio::spawn(it.serve(async move { _ = dashboard_stopped.await })));

    let greeted = async {
        let node = open_node(&pool, &node).await?;
        greet(&node, global.server(), shown_at.as_deref(), &data_dir);
        std::future::pending::<Result<(), Failure>>().await
    };
    tokio::select! {
        ended = joined(&mut server) => return ended,
        ended = &mut agent => return ended.expect("the agent does not panic"),
        ended = greeted => return ended,
        () = settings::stop_signal() => (),
    }
    aside("Stopping what runs; it goes on after the next start. Ctrl-C again leaves at once.");
    tokio::select! {
        () = settings::stop_signal() => (),
        drained = drain(&pool, &node) => drained?,
    }
    // Whoever has gone already needs no word.
    _ = stop_dashboard.send(());
    if let Some(dashboard) = dashboard {
        _ = dashboard.await;
    }
    _ = stop_agent.send(());
    _ = agent.await;
    _ = stop_server.send(());
    joined(&mut server).await
}

/// Takes the address of the dashboard; `None`: there is to be none.
async fn look(address: Option<&str>, global: &Global) -> Result<Option<Dashboard>, Failure> {
    let bind = |listen| Dashboard::bind(Setup::of_loopback(listen, global.clone()));
    match address {
        Some("off") => Ok(None),
        Some(text) => {
            let wrong = |why| Failure::usage(format!("--dashboard is {text:?}: {why}, or off"), "");
            bind(metrics::address(text).map_err(wrong)?).await.map(Some)
        }
        None => {
            let usual: SocketAddr = dashboard::ADDRESS.parse().expect("an address");
            match bind(usual).await {
                Ok(dashboard) => Ok(Some(dashboard)),
                Err(_) => bind(SocketAddr::new(usual.ip(), 0)).await.map(Some),
            }
        }
    }
}

async fn joined(server: &mut JoinHandle<Result<(), ServerError>>) -> Result<(), Failure> {
    server.await.expect("the scheduler does not panic").map_err(failure)
}

async fn run_agent(config: AgentConfig, stopped: oneshot::Receiver<()>) -> Result<(), Failure> {
    let ran = aquifer_agent::run(config, async move { _ = stopped.await }).await;
    ran.map_err(|error| Failure::refused(error.to_string(), "See `aquifer up --help`."))
}

/// Waits until the agent has reported, and opens its node to work: what is placed before may be lost to it.
async fn open_node(pool: &Pool, name: &str) -> Result<v1::Node, Failure> {
    loop {
        let node = find(pool, name).await?;
        if let Some(node) = node.filter(|node| node.up && !node.version.is_empty()) {
            if node.availability() == v1::Availability::Draining {
                let request = v1::NodeRequest { name: name.into(), device: None };
                pool.client().uncordon(request).await.map_err(|status| pool.failure(&status))?;
            }
            return Ok(node);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Stops what runs on the node with its grace, and waits for the end of it.
async fn drain(pool: &Pool, name: &str) -> Result<(), Failure> {
    let request = v1::NodeRequest { name: name.into(), device: None };
    pool.client().drain(request).await.map_err(|status| pool.failure(&status))?;
    while find(pool, name).await?.is_some_and(|node| node.up && !node.workers.is_empty()) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn find(pool: &Pool, name: &str) -> Result<Option<v1::Node>, Failure> {
    let request = v1::ListNodesRequest::default();
    let nodes = pool.client().list_nodes(request).await.map_err(|status| pool.failure(&status))?;
    Ok(nodes.into_inner().nodes.into_iter().find(|node| node.name == name))
}

fn greet(node: &v1::Node, server: &str, dashboard: Option<&str>, data_dir: &Path) {
    let inventory = node.inventory.clone().unwrap_or_default();
    let output = Output::new(false, false);
    let mut models: Vec<&str> = inventory.devices.iter().map(|device| &device.model[..]).collect();
    let devices = models.len();
    models.dedup();
    output.text(format!(
        "The pool is up at {server}: node {} with {devices} devices ({}), {} cores, {} of memory.",
        node.name,
        models.join(", "),
        units::milli(inventory.cpus_milli.into()),
        bytes(inventory.memory_bytes),
    ));
    for finding in &node.findings {
        output.text(format!("  {finding}"));
    }
    if let Some(dashboard) = dashboard {
        output.text(format!("The dashboard is at {dashboard}"));
    }
    output.text(format!("Jobs are kept in {}. Ctrl-C stops the pool.", data_dir.display()));
    output.text("Try, in another terminal: aquifer run -- echo hello");
}
