//! `aquifer agent`: the daemon of a node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use aquifer_agent::account::RunAs;
use aquifer_agent::container::EngineChoice;
use aquifer_agent::device::measured::MeasureChoice;
use aquifer_agent::device::{DeviceChoice, Roots};
use aquifer_agent::metrics::Metrics;
use aquifer_agent::partitions::ON_DEMAND;
use aquifer_agent::{AgentConfig, Retention};
use aquifer_core::Ports;
use aquifer_proto::tls::{ClientTls, is_local};

use crate::client::{DEFAULT_SERVER, Global, identity};
use crate::metrics::{self, Listener};
use crate::output::{Failure, write_out};
use crate::server::{absolute, log_format};
use crate::settings::{self, Settings};
use crate::units::{parse_milli, parse_size};

/// Run the agent of a node
///
/// It offers the node's devices to the scheduler that --server names, and runs workers on them. Workers outlive it:
/// an agent that is started again in time, in the same state directory, goes on with them.
///
/// Settings come from flags, then from the environment, then from the table `[agent]` of the file that --config names,
/// then from the defaults.
///
/// Example: aquifer agent --server http://head:7700 --token-file /etc/aquifer/token --address node7
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// TOML file with settings: a table `[agent]` with the names of these flags
    #[arg(long, env = "AQUIFER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The stable name of the node: letters, digits, '.', '_', '-'. Default: the host name
    #[arg(long, env = "AQUIFER_NODE", value_name = "NAME")]
    pub node: Option<String>,
    /// Directory for run directories and all else that must survive a restart. Default: the user's data directory; where
    /// workers run as the users of their jobs, /var/lib/aquifer-agent
    #[arg(long, env = "AQUIFER_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<String>,
    /// Devices to offer: `auto` (all accelerators, or the cores as devices if there is none), `none`, or a list of
    /// `cpu`, `cpu:0-3+6`, vendors (`nvidia`, `ascend`, `nvidia:LIBRARY`, …) and `fake:FILE` with commas. Default: auto
    #[arg(long, env = "AQUIFER_DEVICES", value_name = "DEVICES")]
    pub devices: Option<String>,
    /// Directories in which vendors' libraries are looked for first, with colons. Default: none, only where the
    /// system and the vendors have them
    #[arg(long, env = "AQUIFER_LIBRARY_PATH", value_name = "DIRS")]
    pub library_path: Option<String>,
    /// What the kernel knows of devices, for containers that have it elsewhere. Default: /sys
    #[arg(long, env = "AQUIFER_SYSFS", value_name = "DIR")]
    pub sysfs: Option<String>,
    /// Cores to offer, like 8 or 1.5. Default: all
    #[arg(long, env = "AQUIFER_CPUS", value_name = "CORES")]
    pub cpus: Option<String>,
    /// Main memory to offer, like 64GiB. Default: all
    #[arg(long, env = "AQUIFER_MEMORY", value_name = "SIZE")]
    pub memory: Option<String>,
    /// Host name or IP address under which workers of other nodes reach this one. Default: 127.0.0.1 if the
    /// scheduler is on this machine, else the host name
    #[arg(long, env = "AQUIFER_ADDRESS", value_name = "ADDRESS")]
    pub address: Option<String>,
    /// Ports that workers may listen on. Default: 20000-28999
    #[arg(long, env = "AQUIFER_PORTS", value_name = "FIRST-LAST")]
    pub ports: Option<String>,
    /// Labels of the node that jobs can require: KEY=VALUE, with commas
    #[arg(long, env = "AQUIFER_LABELS", value_name = "LABELS")]
    pub labels: Option<String>,
    /// MIG instances: `off` (those that there are, are devices) or `on-demand` (the agent makes and removes them: all on
    /// cards in MIG mode are its own). Default: off
    #[arg(long, env = "AQUIFER_MIG", value_name = "off|on-demand")]
    pub mig: Option<String>,
    /// Virtual chips of Ascend: `off` or `on-demand` (the agent makes and removes them: all are its own). Default: off
    #[arg(long, env = "AQUIFER_VNPU", value_name = "off|on-demand")]
    pub vnpu: Option<String>,
    /// Shares of Cambricon's cards in sMLU mode: `off` or `on-demand` (the agent makes and removes them: all are its own).
    /// Default: off
    #[arg(long, env = "AQUIFER_SMLU", value_name = "off|on-demand")]
    pub smlu: Option<String>,
    /// Parts of AMD's cards (compute partitions): `off` (those that there are, are devices) or `on-demand` (the agent parts cards
    /// while nothing runs on them, and makes them whole again). Default: off
    #[arg(long, env = "AQUIFER_XCP", value_name = "off|on-demand")]
    pub xcp: Option<String>,
    /// NVIDIA's multi-process service: `off` (used where it runs) or `on-demand` (the agent starts one for each device
    /// of which ranks have slices). Default: off
    #[arg(long, env = "AQUIFER_MPS", value_name = "off|on-demand")]
    pub mps: Option<String>,
    /// Program that resets a device which must be, once nothing runs on it: PROGRAM VENDOR UUID BUS-ADDRESS NUMBER. At most three
    /// times a day, ten minutes apart. Default: none, somebody else does
    #[arg(long, env = "AQUIFER_RESET", value_name = "PROGRAM")]
    pub reset: Option<String>,
    /// What runs workers that have an image: `podman`, `docker` or a path, `none`, or `auto` (the first of the two that
    /// works). Default: auto
    #[arg(long, env = "AQUIFER_ENGINE", value_name = "ENGINE")]
    pub engine: Option<String>,
    /// As whom workers run: `job-user` (the users of their jobs, whom the node must know; only root can), `agent`, or `auto`
    /// (job-user, if this is root). Default: auto
    #[arg(long, env = "AQUIFER_RUN_AS", value_name = "auto|job-user|agent")]
    pub run_as: Option<String>,
    /// Keep workers from opening the device nodes of devices that they do not hold, which takes root: `auto` or `off`. Default: auto
    #[arg(long, env = "AQUIFER_HIDE_DEVICES", value_name = "auto|off")]
    pub hide_devices: Option<String>,
    /// Enforce processor time and memory of workers where control groups allow it: `auto` or `off`. Default: auto
    #[arg(long, env = "AQUIFER_LIMITS", value_name = "auto|off")]
    pub limits: Option<String>,
    /// Control group (version 2) below which those of workers are, as `/proc/self/cgroup` names it: of a unit of its own, so that
    /// systemd can start the agent again while they run. Default: the agent's
    #[arg(long, env = "AQUIFER_WORKERS_GROUP", value_name = "GROUP")]
    pub workers_group: Option<String>,
    /// Measure devices that the worker has kernels for (cores, NVIDIA's cards), a few seconds for each kind, while nobody uses them: `auto`
    /// (what was not measured before), `always` (anew at every start) or `never`. Default: auto
    #[arg(long, env = "AQUIFER_MEASURE", value_name = "never|auto|always")]
    pub measure: Option<String>,
    /// Program that measures devices which the worker has no kernels for, and probes them: PROGRAM VENDOR UUID BUS-ADDRESS NUMBER
    /// [--probe]. Default: none, their datasheets count
    #[arg(long, env = "AQUIFER_MEASURE_WITH", value_name = "PROGRAM")]
    pub measure_with: Option<String>,
    /// Ended runs whose directories are kept for `aquifer logs`. Default: 1000
    #[arg(long, env = "AQUIFER_KEEP_RUNS", value_name = "NUMBER")]
    pub keep_runs: Option<String>,
    /// Size up to which the directories of ended runs are kept. Default: 10GiB
    #[arg(long, env = "AQUIFER_KEEP_SIZE", value_name = "SIZE")]
    pub keep_size: Option<String>,
    /// Size of the log of one worker on its node, 1MiB at least: beyond it the oldest half is given up. Default: 1GiB
    #[arg(long, env = "AQUIFER_LOG_SIZE", value_name = "SIZE")]
    pub log_size: Option<String>,
    /// Address on which operators read `/metrics`, `/healthz` and `/readyz`; beyond loopback a token is needed. Default: off
    #[arg(long, env = "AQUIFER_METRICS", value_name = "ADDRESS:PORT")]
    pub metrics: Option<String>,
    /// Log as `text` or `json`, to standard error. Default: text
    #[arg(long, env = "AQUIFER_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// What to log: error, warn, info, debug, trace. Default: info
    #[arg(long, env = "AQUIFER_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
}

/// All settings, read.
pub struct Resolved {
    /// Of the agent.
    pub config: AgentConfig,
    /// Where operators read it.
    pub metrics: Option<SocketAddr>,
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
        let mut settings = Settings::read(self.config.as_deref(), |file| file.agent)?;
        let text = |text: &str| Ok::<_, String>(text.to_string());
        let run_as = settings.take("run-as", self.run_as.as_ref(), "auto", str::parse::<RunAs>)?;
        let state_dir = match run_as {
            RunAs::Agent => settings::data_dir().join("agent").display().to_string(),
            // Into root's own directory nobody else may go.
            RunAs::JobUser => "/var/lib/aquifer-agent".into(),
        };
        let server = settings.take("server", global.server.as_ref(), DEFAULT_SERVER, text)?;
        let is_local = server.split(',').all(is_local);
        let mut file = |name, flag| settings::file(&mut settings, name, flag);
        let ca = file("tls-ca", &global.tls_ca)?;
        let identity = identity(&file("tls-cert", &global.tls_cert)?, &file("tls-key", &global.tls_key)?)?;
        let host = aquifer_agent::host::Host::read().name;
        let address = if is_local { "127.0.0.1" } else { &host };
        let milli = |text: &str| {
            let milli = parse_milli(text)?;
            u32::try_from(milli).map_err(|_| "expected at most 4,000,000 cores".to_string())
        };
        let count = |text: &str| text.parse().map_err(|_| "expected a whole number".to_string());
        let mut parts_on_demand = BTreeSet::new();
        let parts = [&self.mig, &self.vnpu, &self.smlu, &self.xcp];
        for ((vendor, name), given) in ON_DEMAND.into_iter().zip(parts) {
            if settings.take(name, given.as_ref(), "off", on_demand)? {
                parts_on_demand.insert(vendor);
            }
        }
        let config = AgentConfig {
            server,
            tls: ClientTls { ca, identity },
            node: settings.take("node", self.node.as_ref(), "", text)?,
            state_dir: settings.take("state-dir", self.state_dir.as_ref(), &state_dir, absolute)?,
            devices: settings.take("devices", self.devices.as_ref(), "auto", |text| {
                text.parse::<DeviceChoice>().map_err(|error| error.to_string())
            })?,
            roots: Roots {
                libraries: settings.take("library-path", self.library_path.as_ref(), "", libraries)?,
                sysfs: settings.take("sysfs", self.sysfs.as_ref(), "/sys", absolute)?,
                ..Roots::default()
            },
            cpus_milli: settings.take_optional("cpus", self.cpus.as_ref(), milli)?,
            memory_bytes: settings.take_optional("memory", self.memory.as_ref(), parse_size)?,
            address: settings.take("address", self.address.as_ref(), address, text)?,
            ports: settings.take("ports", self.ports.as_ref(), "20000-28999", ports)?,
            labels: settings.take("labels", self.labels.as_ref(), "", labels)?,
            parts_on_demand,
            mps_on_demand: settings.take("mps", self.mps.as_ref(), "off", on_demand)?,
            reset: settings.take_optional("reset", self.reset.as_ref(), program)?,
            engine: settings.take("engine", self.engine.as_ref(), "auto", str::parse::<EngineChoice>)?,
            run_as,
            hide_devices: settings.take("hide-devices", self.hide_devices.as_ref(), "auto", auto_or_off)?,
            enforce_limits: settings.take("limits", self.limits.as_ref(), "auto", auto_or_off)?,
            workers_group: settings.take_optional("workers-group", self.workers_group.as_ref(), absolute)?,
            keep: Retention {
                runs: settings.take("keep-runs", self.keep_runs.as_ref(), "1000", count)?,
                bytes: settings.take("keep-size", self.keep_size.as_ref(), "10GiB", parse_size)?,
                log_bytes: settings.take("log-size", self.log_size.as_ref(), "1GiB", |text| {
                    let size = parse_size(text)?;
                    if 1 << 20 <= size { Ok(size) } else { Err("expected 1MiB at least".into()) }
                })?,
            },
            measure: settings.take("measure", self.measure.as_ref(), "auto", str::parse::<MeasureChoice>)?,
            measure_with: settings.take_optional("measure-with", self.measure_with.as_ref(), program)?,
            token: None,
            metrics: Metrics::default(),
        };
        let metrics = settings.take_optional("metrics", self.metrics.as_ref(), metrics::address)?;
        let log_format = settings.take("log-format", self.log_format.as_ref(), "text", log_format)?;
        let log_level = settings.take("log-level", self.log_level.as_ref(), "info", text)?;
        let token_file = settings.take_optional("token-file", None, |text| Ok(PathBuf::from(text)))?;
        settings.finish()?;
        let token = settings::token(global.token_file.as_deref().or(token_file.as_deref()))?;
        Ok(Resolved { config: AgentConfig { token, ..config }, metrics, log_format, log_level })
    }
}

/// Runs the agent until it is told to stop.
pub fn run(args: &Args, global: &Global) -> Result<(), Failure> {
    let resolved = args.resolve(global)?;
    settings::start_logging(&resolved.log_format, &resolved.log_level, None)?;
    // One thread: what the agent does is little, and half of it would be to wake the other one.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::refused(format!("cannot start: {error}"), ""))?;
    metrics::enter_process(resolved.config.metrics.registry());
    if let Some(address) = resolved.metrics {
        let listener = runtime.block_on(Listener::bind(address, resolved.config.token.as_deref(), None))?;
        write_out(format!("metrics on {}\n", listener.address()).as_bytes());
        runtime.spawn(listener.serve(resolved.config.metrics.clone()));
    }
    let ran = runtime.block_on(aquifer_agent::run(resolved.config, settings::stop_signal()));
    runtime.shutdown_timeout(Duration::from_secs(1));
    ran.map_err(|error| Failure::refused(error.to_string(), "See `aquifer agent --help`."))
}

/// Reads `FIRST-LAST`.
///
/// # Errors
/// It is no such range.
pub fn ports(text: &str) -> Result<Ports, String> {
    let ports = text.split_once('-').and_then(|(first, last)| {
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        (0 < first && first <= last).then_some(Ports { first, last })
    });
    ports.ok_or_else(|| "expected FIRST-LAST, like 20000-28999".into())
}

fn on_demand(text: &str) -> Result<bool, String> {
    match text {
        "off" => Ok(false),
        "on-demand" => Ok(true),
        _ => Err("expected off or on-demand".into()),
    }
}

fn auto_or_off(text: &str) -> Result<bool, String> {
    match text {
        "auto" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected auto or off".into()),
    }
}

/// Reads directories with colons between them.
///
/// # Errors
/// One of them is no absolute path.
pub fn libraries(text: &str) -> Result<Vec<PathBuf>, String> {
    text.split(':').filter(|dir| !dir.is_empty()).map(absolute).collect()
}

fn labels(text: &str) -> Result<BTreeMap<String, String>, String> {
    let parts = text.split(',').filter(|part| !part.is_empty());
    let pairs = parts.map(|part| {
        let pair = part.split_once('=').filter(|(key, _)| !key.is_empty());
        pair.map(|(key, value)| (key.to_string(), value.to_string()))
            .ok_or_else(|| format!("{part:?} is no KEY=VALUE"))
    });
    pairs.collect()
}

/// A program with its whole path: the agent looks into no other place as root.
pub fn program(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.is_absolute() {
        true => Ok(path),
        false => Err("expected a program with its whole path, as /etc/aquifer/reset".into()),
    }
}
