//! Measurements of this worker on this machine, each beside what the machine can do at most.
//!
//! Time is the processor time of all threads that took part: it hardly changes while other programs run, and on one
//! thread of an idle machine it is the time on the wall. A figure is the median of its repetitions.

mod card;
mod checkpoint;
mod exchange;
mod kernels;
mod models;
mod roofline;
mod serve;

pub use card::{Sizes, infer_card, kernels_on, train_card};
pub(crate) use card::{attention_tflops, memory_gbs, tflops, upload_gbs};
pub use checkpoint::{CheckpointsArgs, checkpoints};
pub use exchange::{ExchangeArgs, exchange};
pub(crate) use exchange::{Summing, sum_up};
pub use kernels::kernels;
pub(crate) use models::train_on;
pub use models::{InferArgs, MAX_TOKENS, Server, Shape, TrainArgs, infer, train};
pub use roofline::Roofline;
pub use serve::{ServeArgs, serve};

use rustix::time::{ClockId, clock_gettime};
use std::time::Instant;

/// What bounds a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Multiplications and additions in f32.
    F32,
    /// Multiplications and additions of bf16.
    Bf16,
    /// Bytes read from memory.
    Memory,
    /// Nothing measured: a figure for comparison.
    None,
}

/// One figure.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The figure, per second of processor time.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What bounds it, in the same unit.
    pub bound: Bound,
}

impl Figure {
    fn new(name: impl Into<String>, value: f64, unit: &'static str, bound: Bound) -> Figure {
        Figure { name: name.into(), value, unit, bound }
    }

    /// The share of the bound that was reached.
    pub fn share(&self, roofline: &Roofline) -> Option<f64> {
        roofline.of(self.bound).map(|bound| self.value / bound)
    }
}

/// Time on the wall and of the processor, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Spent {
    wall: f64,
    cpu: f64,
}

/// The time that `work` took, its threads' included.
fn spent(work: impl FnOnce()) -> Spent {
    let cpu = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    };
    let (wall, before) = (Instant::now(), cpu());
    work();
    Spent { wall: wall.elapsed().as_secs_f64(), cpu: cpu() - before }
}

/// The median of the processor time of at least `least` repetitions, in seconds.
pub(crate) fn median_seconds(least: usize, work: impl FnMut()) -> f64 {
    repeated(least, work).cpu
}

/// The medians of at least `least` repetitions, after one that is not counted, and of more while there is time.
fn repeated(least: usize, mut work: impl FnMut()) -> Spent {
    /// Seconds of the processor that one figure may take.
    const BUDGET: f64 = 0.4;
    work();
    let mut all: Vec<Spent> = Vec::new();
    while all.len() < least || (all.len() < 200 && all.iter().map(|spent| spent.cpu).sum::<f64>() < BUDGET) {
        all.push(spent(&mut work));
    }
    let median = |of: fn(&Spent) -> f64| {
        let mut values: Vec<f64> = all.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Spent { wall: median(|spent| spent.wall), cpu: median(|spent| spent.cpu) }
}
