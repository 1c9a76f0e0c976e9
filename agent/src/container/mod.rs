//! Workers in containers: the same contract, with podman or docker between the supervisor and the program.
//!
//! The supervisor's worker is then the engine's client (`podman run …`), which stays until the container has ended: it
//! passes signals on and exits as the program does. What the client leaves behind, the supervisor removes by the
//! container's name, and after the supervisor's own death the agent does.

mod arguments;
mod cdi;
mod engine;
mod left;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use aquifer_core::{Mount, Vendor};

pub use arguments::{Arguments, arguments};
pub use cdi::{CdiDevices, cdi_devices};
pub use engine::{Engine, EngineChoice, EngineKind, find};
pub(crate) use left::{Left, Outcome, last_line};

/// The container that a worker runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// What runs it.
    pub engine: Arc<Engine>,
    /// What is in it.
    pub image: String,
    /// Devices to let in.
    pub devices: Vec<ShownDevice>,
    /// Nodes under `/dev` to let in, where the engine does not know devices by name; those that are there are.
    pub device_nodes: Vec<PathBuf>,
    /// Nodes under `/dev` that are called otherwise within.
    pub renamed_nodes: Vec<(PathBuf, PathBuf)>,
    /// Directories of the node that are seen in it at the same path: those that are there.
    pub mounts: Vec<PathBuf>,
    /// The same, not to be written to.
    pub read_only: Vec<PathBuf>,
    /// What the job asks for beside that; goes before what is mounted at the same path.
    pub asked: Vec<Mount>,
}

/// A device, by all that engines may call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownDevice {
    /// Whose it is.
    pub vendor: Vendor,
    /// The vendor's unique name of it.
    pub uuid: String,
    /// Number of its device node.
    pub number: u32,
    /// Whether the agent makes parts of it on demand.
    pub is_parted: bool,
}
