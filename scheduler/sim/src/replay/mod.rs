//! Replays: a workload, several policies, the same virtual time for all of them.
//!
//! A [`Workload`](workload::Workload) has nodes and jobs, from a public trace, from files of our own format or from a
//! seed. The [`engine`] feeds its jobs to a [`Policy`](policy::Policy): either the real
//! [`Cluster`](aquifer_core::Cluster), through events as the server has them, or a published baseline. What was
//! decided goes into a [`Log`](log::Log), from which [`check`] verifies every rule anew and [`metrics`] computes every
//! figure, so that no policy is believed.

pub mod check;
pub mod compare;
pub mod engine;
pub mod input;
pub mod log;
pub mod metrics;
pub mod openb;
pub mod order;
pub mod plot;
pub mod policy;
pub mod synthetic;
pub mod trace;
pub mod workload;
