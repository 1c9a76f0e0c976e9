//! The scheduler, its agents and its clients in virtual time, with faults, from one seed.
//!
//! [`Sim`] runs the very [`Cluster`](aquifer_core::Cluster) and
//! [`NodeAgent`](aquifer_core::agent::NodeAgent) of the live system, and plays everything else: the store,
//! the network, the machines with their processes, the clients. After every event it checks what must hold,
//! from the point of view of somebody who sees all of it at once.

// What may not be used is listed in `clippy.toml`, with the reasons.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod bench;
mod booked;
mod check;
pub mod faults;
pub mod machine;
pub mod replay;
pub mod rng;
pub mod rounds;
pub mod script;
pub mod serving;
pub mod sim;
pub mod store;
pub mod workload;

pub use faults::{Faults, Timing};
pub use rng::Rng;
pub use sim::{CrashPoint, Line, Sim, Work};
