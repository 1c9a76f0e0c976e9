//! The wire and the store: generated code, and its translation to and from the core's types.
//!
//! Generated types stay in this crate and in the files that speak gRPC; everything else speaks the core's.

pub mod border;
pub mod reservations;
pub mod store;
pub mod tariff;
pub mod tls;
pub mod wire;

pub use aquifer_core as core;

/// Generated from `aquifer/v1/*.proto`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("aquifer.v1");
}

/// The protocol's descriptors, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/aquifer.fds"));

/// Metadata of an answer by a scheduler that does not lead: the URL of the one that does.
pub const LEADER: &str = "aquifer-leader";

/// Metadata of a call that a scheduler which stands by may answer too, from a copy of the pool.
pub const STALE: &str = "aquifer-stale";

/// Metadata of an answer from a copy: its age in milliseconds.
pub const AGE: &str = "aquifer-age-ms";
