//! Figures of a static fill.

use super::Usage;
use crate::replay::log::{Log, What};
use crate::replay::workload::{SIZES, Workload};

/// Demand at which a fill is looked at, in per cent of all devices.
pub const DEMANDS: [usize; 3] = [90, 100, 130];

/// Figures of a static fill.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fill {
    /// Allocated devices in per cent, by demand in per cent: the mean over the arrivals whose demand rounds to it.
    pub curve: Vec<Option<f64>>,
    /// Arrivals and those that were placed, by size.
    pub accepted: [(u64, u64); SIZES.len()],
    /// Thousandths of devices that nobody has, at the end.
    pub idle_milli: u64,
    /// The part of them that is on devices in use.
    pub sliver_milli: u64,
}

/// Computes the figures of a fill. The rounding is that of the published curves.
pub fn fill(workload: &Workload, log: &Log) -> Fill {
    let capacity = workload.capacity_milli().max(1);
    let percent = |milli: u64| milli as f64 / (capacity as f64 / 1000.0) / 10.0;
    let mut bins: Vec<(f64, u64)> = Vec::new();
    let mut usage = Usage::new(workload, log);
    let mut fill = Fill::default();
    let mut arrived = 0;
    for (at, entry) in log.entries.iter().enumerate() {
        usage.see(entry.job, entry.what);
        let spec = workload.spec_of(entry.job);
        let accepted = &mut fill.accepted[spec.size()];
        match entry.what {
            What::Arrived => {
                arrived += spec.devices_milli();
                accepted.0 += 1;
            }
            What::Started { .. } => accepted.1 += 1,
            What::Ended | What::Dropped => (),
        }
        // One point an arrival, after its decision.
        if log.entries.get(at + 1).is_none_or(|next| next.what == What::Arrived) {
            let bin = percent(arrived).round_ties_even() as usize;
            if bins.len() <= bin {
                bins.resize(bin + 1, (0.0, 0));
            }
            bins[bin].0 += to_cents(percent(usage.used_milli));
            bins[bin].1 += 1;
        }
    }
    fill.curve =
        bins.iter().map(|(sum, count)| (0 < *count).then(|| to_cents(sum / *count as f64))).collect();
    fill.idle_milli = usage.idle_milli();
    fill.sliver_milli = usage.sliver_milli;
    fill
}

/// Rounded to two decimals.
fn to_cents(value: f64) -> f64 {
    (value * 100.0).round_ties_even() / 100.0
}

impl Fill {
    /// Allocated devices at a demand, both in per cent; where no arrival rounds to the demand, at the nearest below.
    pub fn at(&self, demand: usize) -> Option<f64> {
        (0..=demand).rev().find_map(|demand| self.curve.get(demand).copied().flatten())
    }
}
