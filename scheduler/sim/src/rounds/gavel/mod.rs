//! The traces and the round simulator of Gavel: rigid gangs on classes of unlike speed.
//!
//! Source: Narayanan et al., "Heterogeneity-aware cluster scheduling policies for deep learning workloads",
//! OSDI 2020, section 5 (rounds) and 7 (traces).

pub mod ours;
pub mod shares;
mod sim;
mod trace;

pub use sim::Outcome;
pub use sim::{Active, Policy, Run, View, simulate};
pub use trace::{Job, Rates, generate};

/// Devices of each class in the paper's physical cluster: V100, P100, K80.
pub const POOL: [u32; 3] = [8, 16, 24];

/// Seconds of a round.
pub const ROUND_S: f64 = 360.0;
