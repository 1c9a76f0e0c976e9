//! The scheduler process: runs the core, keeps its records, speaks gRPC.

pub mod callers;
pub mod clock;
pub mod grpc;
pub mod leader;
pub mod limits;
pub mod metrics;
pub mod notes;
mod rivals;
pub mod runtime;
mod stamp;
pub mod store;
pub mod tls;

/// Target of spans, which are for collectors alone: no line of the log shows them. They hold no field of a job.
pub const SPANS: &str = "aquifer::span";
