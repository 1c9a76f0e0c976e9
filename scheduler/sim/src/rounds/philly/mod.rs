//! The Philly trace: gangs on nodes of eight, shared by virtual clusters that each own a part.
//!
//! Source of the trace: Jeon et al., "Analysis of large-scale multi-tenant GPU clusters for DNN training
//! workloads", ATC 2019.

mod nodes;
pub mod ours;
pub mod queues;
mod trace;

pub use trace::{Job, Trace};
