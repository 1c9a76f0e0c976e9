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
