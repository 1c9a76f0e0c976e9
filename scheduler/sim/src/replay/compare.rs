//! The same workload under several policies and seeds.

use super::check::{self, Verified, Violation};
use super::engine::{self, Latency, Mode, Watch};
use super::log::Log;
use super::policy::Kind;
use super::workload::Workload;

/// One run, verified.
#[derive(Clone, Debug)]
pub struct Run {
    /// Who decided.
    pub policy: Kind,
    /// Of the arrivals.
    pub seed: u64,
    /// Counts of the check.
    pub verified: Verified,
    /// What was decided.
    pub log: Log,
    /// How long decisions took, if somebody measured.
    pub latency: Latency,
}

/// Why a run has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The policy cannot express the workload.
    Cannot(String),
    /// It broke a rule.
    Broke(Kind, u64, Violation),
}

impl std::error::Error for Failure {}
impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Cannot(why) => f.write_str(why),
            Failure::Broke(kind, seed, violation) => {
                write!(f, "policy {kind} broke a rule with seed {seed}: {violation}")
            }
        }
    }
}

/// Runs a workload under a policy, and verifies every decision.
///
/// # Errors
/// When the policy cannot, or broke a rule.
pub fn run(workload: &Workload, kind: Kind, mode: Mode, seed: u64, watch: &Watch) -> Result<Run, Failure> {
    let mut policy = kind.policy(workload, seed).map_err(Failure::Cannot)?;
    let (log, latency) = engine::run(workload, &mut *policy, mode, watch);
    let verified = check::check(workload, &log).map_err(|violation| Failure::Broke(kind, seed, violation))?;
    Ok(Run { policy: kind, seed, verified, log, latency })
}
