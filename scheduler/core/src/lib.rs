//! The scheduler's decisions, as one deterministic state machine.
//!
//! Facts and requests go in as [`Event`]s, together with the time at which they are handled; decisions come
//! out as [`Effect`]s. Nothing here performs I/O, reads a clock, draws a random number, spawns a task, or
//! logs. The same code runs in the live server, in the trace-driven simulator and in the fault-injection
//! tests.

// What may not be used is listed in `clippy.toml`, with the reasons.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod agent;
pub mod autoscale;
pub mod cluster;
pub mod effect;
mod emptying;
pub mod event;
pub mod explain;
pub mod jobs;
mod lifecycle;
pub mod nodes;
pub mod plan;
pub mod queues;
pub mod rounds;
pub mod topology;
pub mod types;

pub use cluster::{Cluster, Policy};
pub use effect::{Answer, Effect, Note, Record, Refusal};
pub use event::*;
pub use queues::{QueueError, QueueUsage};
pub use topology::{Level, Standing, Topology};
pub use types::*;
