//! The node daemon's lower half: what devices there are, and how worker processes are started, watched, stopped
//! and found again.
//!
//! Nothing here talks to a scheduler. [`Launcher`] runs workers, one run directory ([`run_dir`]) and one
//! [`supervise`] process each; [`device`] says what there is to run them on; [`host`] what else the node offers.

pub mod cgroup;
pub mod device;
pub mod host;
mod json;
pub mod launcher;
mod process;
pub mod run_dir;
mod supervisor;

pub use cgroup::Limits;
pub use launcher::{Launch, Launcher, LauncherConfig, LauncherError, News, Ready, SupervisorCommand};
pub use run_dir::{LogChunk, LogError, Logs, Retention, Status};
pub use supervisor::supervise;
