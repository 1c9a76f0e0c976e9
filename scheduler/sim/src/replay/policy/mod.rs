//! Who decides: the real scheduler, or one of the published baselines.

mod fgd;
mod greedy;
mod ours;
mod pool;
mod score;

use std::fmt;
use std::str::FromStr;

pub use fgd::Target;
pub use greedy::Greedy;
pub use ours::Ours;

pub use pool::{NodeState, Pool};
pub use score::Scorer;

use super::log::Rank;
use super::workload::Workload;
use crate::Rng;

/// A job that starts now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Which job.
    pub job: u32,
    /// Its ranks.
    pub ranks: Vec<Rank>,
}

/// Decides which jobs start, and where. It learns of jobs only as they arrive.
pub trait Policy {
    /// A job arrives. Appends what starts because of it, itself or others.
    fn submit(&mut self, now_ms: u64, job: u32, starts: &mut Vec<Start>);

    /// A job that runs ends by itself. Appends what starts because of it.
    fn exit(&mut self, now_ms: u64, job: u32, starts: &mut Vec<Start>);

    /// A job that waits leaves.
    fn withdraw(&mut self, now_ms: u64, job: u32);

    /// When it wants to be called next although nothing happens, in milliseconds.
    fn deadline_ms(&self) -> Option<u64> {
        None
    }

    /// Time has come to its deadline. Appends what starts because of it.
    fn tick(&mut self, _now_ms: u64, _starts: &mut Vec<Start>) {}
}

/// The policies that can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    Ours,
    Fgd,
    BestFit,
    DotProduct,
    GpuPacking,
    GpuClustering,
    Volcano,
    Kai,
    Spread,
    FirstFit,
    Random,
}

impl Kind {
    /// All, with their names and one line about each.
    pub const ALL: [(Kind, &'static str, &'static str); 11] = [
        (Kind::Ours, "ours", "the scheduler of this pool, as its server runs it"),
        (Kind::Fgd, "fgd", "fragmentation gradient descent, with its integer scores"),
        (Kind::BestFit, "best-fit", "least left of processors and devices together"),
        (Kind::DotProduct, "dot-product", "least product of what is free and what is asked for, as Tetris"),
        (Kind::GpuPacking, "gpu-packing", "shared devices, then used nodes, then empty ones"),
        (Kind::GpuClustering, "gpu-clustering", "nodes that hold jobs of the same size"),
        (Kind::Volcano, "volcano", "Volcano's binpack: fullest over processors, memory and devices"),
        (Kind::Kai, "kai", "KAI's nodeplacement and gpupack: fewest free devices, fullest device"),
        (Kind::Spread, "spread", "the node with most free, as Kubernetes does by default"),
        (Kind::FirstFit, "first-fit", "the first node in a fixed order"),
        (Kind::Random, "random", "any node that fits, any device"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Kind::ALL.iter().find(|(kind, ..)| *kind == self).expect("every policy is listed").1
    }

    /// Makes one for a workload.
    ///
    /// * `seed`: of the policies that draw by chance.
    ///
    /// # Errors
    /// When it cannot express what the workload asks for.
    pub fn policy(self, workload: &Workload, seed: u64) -> Result<Box<dyn Policy + '_>, String> {
        Ok(match Scorer::new(self, workload) {
            Some(scorer) => Box::new(Greedy::new(workload, scorer, Rng(seed ^ 0x0cad_0111))),
            None => Box::new(Ours::new(workload)?),
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;
    fn from_str(text: &str) -> Result<Kind, String> {
        let known = Kind::ALL.iter().find(|(_, name, _)| *name == text);
        known.map(|(kind, ..)| *kind).ok_or_else(|| {
            let names: Vec<&str> = Kind::ALL.iter().map(|(_, name, _)| *name).collect();
            format!("no policy {text:?}; known are {}", names.join(", "))
        })
    }
}
