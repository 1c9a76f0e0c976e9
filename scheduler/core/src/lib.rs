//! The scheduler's decisions, as one deterministic state machine.
//!
//! Facts and requests go in as [`Event`]s, together with the time at which they are handled; decisions come
//! out as [`Effect`]s. Nothing here performs I/O, reads a clock, draws a random number, spawns a task, or
//! logs. The same code runs in the live server, in the trace-driven simulator and in the fault-injection
//! tests.

// What may not be used is listed in `clippy.toml`, with the reasons.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod agent;
mod assignment;
pub mod autoscale;
mod booking;
pub mod cluster;
mod directory;
mod durations;
pub mod effect;
mod elastic;
mod emptying;
pub mod event;
mod exchange;
pub mod explain;
pub mod health;
mod hosts;
pub mod inquiry;
mod inventory;
pub mod jobs;
mod lifecycle;
mod members;
mod mend;
mod mount;
pub mod nodes;
mod partition;
pub mod plan;
mod policy;
pub mod probe;
pub mod queues;
pub mod reservations;
pub mod rounds;
mod services;
pub mod serving;
mod shape;
mod sorted;
pub mod speed;
mod stop;
mod tariff;
pub mod topology;
pub mod types;

pub use autoscale::Promise;
pub use cluster::{Cluster, Policy};
pub use effect::{Answer, Effect, Note, Record, Refusal};
pub use event::*;
pub use health::{Fault, Health};
pub use hosts::{Host, MOST_LISTED_RANKS, Seat};
pub use inquiry::{Blame, ProbeOrder, ProbeReport, ProbeState, Symptom};
pub use jobs::history;
pub use members::{Member, Members};
pub use mount::{MAX_MOUNTS, Mount};
pub use queues::{QueueError, QueueUsage};
pub use reservations::{Reservation, ReservationError};
pub use sorted::Sorted;
pub use stop::StopReason;
pub use tariff::{MAX_PRICES, Tariff};
pub use topology::{Level, Standing, Topology};
pub use types::*;
