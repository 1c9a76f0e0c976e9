//! The node daemon: what devices there are, and how worker processes are started, watched, stopped and found
//! again.
//!
//! [`run`] is the daemon; it alone talks to a scheduler (`session.rs`). [`Launcher`] runs workers, one run
//! directory ([`run_dir`]) and one [`supervise`] process each; [`command`] says how a worker is called; [`device`]
//! what there is to run them on, through vendors' libraries that one [`ask_library`] process each has; [`host`] what else the
//! node offers.

pub mod account;
mod beside;
pub mod cgroup;
pub mod command;
pub mod container;
mod conversation;
pub mod crowd;
mod daemon;
pub mod device;
mod exec;
mod fork_server;
pub mod frameworks;
mod hiding;
pub mod host;
mod json;
pub mod launcher;
mod logs;
mod members;
pub mod metrics;
pub mod partitions;
mod prepare;
mod process;
pub mod run_dir;
mod said;
mod session;
mod socket;
mod spawn;
mod status;
mod stop;
mod supervisor;
mod supervisors;
mod trial;

pub use cgroup::Limits;
pub use daemon::{AgentConfig, AgentError, run};
pub use device::library::serve as ask_library;
pub use fork_server::supervise;
pub use frameworks::RunFile;
pub use launcher::{Launch, Launcher, LauncherConfig, LauncherError, News, Ready, SupervisorCommand};
pub use logs::{LogChunk, LogError, Logs};
pub use run_dir::Retention;
pub use status::{NoStatus, Status};
