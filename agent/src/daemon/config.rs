//! What an agent is told, and why it does not start.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use aquifer_core::{Ports, Vendor};
use aquifer_proto::border;
use aquifer_proto::tls::{ClientTls, EndpointError};

use crate::account::RunAs;
use crate::container::EngineChoice;
use crate::device::measured::MeasureChoice;
use crate::device::{DeviceChoice, DeviceError, Roots};
use crate::launcher::LauncherError;
use crate::metrics::Metrics;
use crate::partitions::{self, Mps, ON_DEMAND, Partitions};
use crate::run_dir::Retention;

/// How to run the agent.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The stable name of the node; empty: the host's.
    pub node: String,
    /// Address of the scheduler: `https://host:port`, or of each of several with commas between them.
    pub server: String,
    /// Whom to trust, and what to show, where the address says `https`.
    pub tls: ClientTls,
    /// Secret to present.
    pub token: Option<String>,
    /// Directory for all that must survive a restart of the agent.
    pub state_dir: PathBuf,
    /// Which devices to offer.
    pub devices: DeviceChoice,
    /// Where to look for them.
    pub roots: Roots,
    /// Processor time to offer, in thousandths of a core; `None`: all of it.
    pub cpus_milli: Option<u32>,
    /// Main memory to offer, in bytes; `None`: all of it.
    pub memory_bytes: Option<u64>,
    /// Address under which workers of other nodes reach this one.
    pub address: String,
    /// Ports that workers may listen on.
    pub ports: Ports,
    /// Labels of the node.
    pub labels: BTreeMap<String, String>,
    /// Vendors of whose cards parts are made when a rank needs them; of [`partitions::ON_DEMAND`].
    pub parts_on_demand: BTreeSet<Vendor>,
    /// Whether a multi-process service is started when a rank needs a share of an NVIDIA device.
    pub mps_on_demand: bool,
    /// What resets devices that must be; `None`: nothing does.
    pub reset: Option<PathBuf>,
    /// What is to run containers.
    pub engine: EngineChoice,
    /// As whom workers run.
    pub run_as: RunAs,
    /// Whether to keep workers from the device nodes of others, where the machine allows it.
    pub hide_devices: bool,
    /// Whether to enforce processor time and memory where the machine allows it.
    pub enforce_limits: bool,
    /// The control group of version 2 below which those of workers and supervisors are, as `/proc/self/cgroup` names it; `None`:
    /// the agent's own.
    pub workers_group: Option<PathBuf>,
    /// Ended runs to keep.
    pub keep: Retention,
    /// Whether to measure devices.
    pub measure: MeasureChoice,
    /// What measures devices that the worker has no kernels for; `None`: nothing does.
    pub measure_with: Option<PathBuf>,
    /// Where operators read it.
    pub metrics: Metrics,
}

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The name of the node cannot be used.
    #[error(transparent)]
    Name(#[from] border::Invalid),
    /// The devices that were chosen cannot be had.
    #[error(transparent)]
    Devices(#[from] DeviceError),
    /// No worker can be launched.
    #[error(transparent)]
    Launcher(#[from] LauncherError),
    /// The address of the scheduler makes no sense.
    #[error("--server: {0}")]
    Server(#[from] EndpointError),
    /// Nothing makes parts of a vendor's cards here.
    #[error("--{0} on-demand: {1}")]
    Parts(&'static str, String),
    /// Nobody but root could use the state directory.
    #[error("--run-as job-user: users cannot enter {0}: give --state-dir a directory that they can enter")]
    Closed(PathBuf),
    /// The token cannot be sent.
    #[error("the token has characters that cannot be sent")]
    Token,
    /// The machine does not give what is needed.
    #[error("{0}")]
    Machine(io::Error),
}

impl AgentConfig {
    /// What makes parts of devices.
    ///
    /// # Errors
    /// What is to make parts of devices is not there.
    pub(super) async fn partitions(&self) -> Result<Partitions, AgentError> {
        let mps = self.mps_on_demand.then(|| Mps::new("nvidia-cuda-mps-control".into()));
        let (state_dir, mut dividers) = (self.state_dir.clone(), Vec::new());
        for (vendor, flag) in ON_DEMAND {
            if self.parts_on_demand.contains(&vendor) {
                let roots = self.roots.clone();
                let opened = tokio::task::spawn_blocking(move || partitions::open(vendor, &roots));
                let opened = opened.await.expect("it does not panic");
                dividers.push(opened.map_err(|why| AgentError::Parts(flag, why))?);
            }
        }
        let state_dir = std::path::absolute(&state_dir).unwrap_or(state_dir);
        Ok(Partitions::new(&state_dir, mps, dividers))
    }
}
