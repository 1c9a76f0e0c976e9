//! The scheduler process: runs the core, keeps its records, speaks gRPC.

pub mod clock;
pub mod grpc;
pub mod leader;
pub mod limits;
pub mod metrics;
pub mod notes;
pub mod runtime;
pub mod store;
pub mod tls;
