//! Planning in rounds, measured: published traces and baselines in virtual time around [`aquifer_core::rounds`].
//!
//! The simulators keep the rules of the ones that the published figures come from; the policy under test is
//! the server's own function.

pub mod files;
pub mod gavel;
pub mod lengths;
pub mod philly;
pub mod report;
