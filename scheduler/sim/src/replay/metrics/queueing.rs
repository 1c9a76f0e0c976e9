//! Figures of a run with arrivals and departures.

use super::{Usage, percent};
use crate::replay::log::{Log, What};
use crate::replay::workload::{SIZES, Workload};

/// How a quantity is spread.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// Number of values.
    pub count: u64,
    /// Mean.
    pub mean: f64,
    /// Median, and the value that 99 of 100 do not exceed: by nearest rank.
    pub p50: u64,
    #[allow(missing_docs)]
    pub p99: u64,
}

impl Spread {
    /// Of some values.
    pub fn of(mut values: Vec<u64>) -> Spread {
        if values.is_empty() {
            return Spread::default();
        }
        values.sort_unstable();
        let count = values.len();
        let rank = |per_cent: usize| values[(count * per_cent).div_ceil(100).max(1) - 1];
        let sum: u128 = values.iter().map(|value| u128::from(*value)).sum();
        Spread { count: count as u64, mean: sum as f64 / count as f64, p50: rank(50), p99: rank(99) }
    }
}

/// Figures of a run with arrivals and departures. Times are in milliseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Queueing {
    /// Devices that jobs held, in per cent, over the time that is looked at.
    pub used_percent: f64,
    /// Free parts of devices in use, in per cent of all devices, over that time.
    pub sliver_percent: f64,
    /// Jobs that waited, over that time.
    pub waiting: f64,
    /// Jobs that did not start at once, in per cent of those that arrived.
    pub waited_percent: f64,
    /// Waits of the jobs that arrived in that time; those that wait at the end count with their wait so far, so that
    /// a policy does not look better for those that it never starts.
    pub wait: Spread,
    /// The same by size.
    pub wait_by_size: [Spread; SIZES.len()],
    /// Arrivals and those of them that started, by size.
    pub accepted: [(u64, u64); SIZES.len()],
    /// From arrival to end of the jobs that arrived in that time and started.
    pub completion: Spread,
    /// From the first arrival to the last end, or to the end of the run.
    pub makespan_ms: u64,
    /// Jobs that wait at the end of the run.
    pub left_waiting: u64,
}

/// Computes the figures over the time from the arrival number `first` to the last entry of the log.
pub fn queueing(workload: &Workload, log: &Log, first: usize) -> Queueing {
    let Some(first_arrival) = workload.jobs.get(first) else { return Queueing::default() };
    let (from_ms, end_ms) = (first_arrival.at_ms, log.entries.last().map_or(0, |entry| entry.at_ms));
    let mut usage = Usage::new(workload, log);
    let (mut used, mut sliver, mut waiting) = (0u128, 0u128, 0u128);
    let mut figures = Queueing::default();
    let (mut waits, mut completions) = (vec![Vec::new(); SIZES.len()], Vec::new());
    let (mut at_once, mut now_ms) = (0u64, from_ms);
    for entry in &log.entries {
        if now_ms < entry.at_ms {
            let ms = u128::from(entry.at_ms - now_ms);
            used += ms * u128::from(usage.used_milli);
            sliver += ms * u128::from(usage.sliver_milli);
            waiting += ms * u128::from(usage.waiting());
            now_ms = entry.at_ms;
        }
        usage.see(entry.job, entry.what);
        if (entry.job as usize) < first {
            continue;
        }
        let job = &workload.jobs[entry.job as usize];
        let size = workload.spec_of(entry.job).size();
        match entry.what {
            What::Arrived => figures.accepted[size].0 += 1,
            What::Started { .. } => {
                let wait_ms = entry.at_ms - job.at_ms;
                figures.accepted[size].1 += 1;
                at_once += u64::from(wait_ms == 0);
                waits[size].push(wait_ms);
                completions.push(wait_ms + workload.held_ms(entry.job));
            }
            What::Ended | What::Dropped => (),
        }
    }
    let span_ms = (end_ms.saturating_sub(from_ms)).max(1) as f64;
    let arrived: u64 = figures.accepted.iter().map(|(arrived, _)| arrived).sum();
    figures.used_percent = percent(workload, used as f64 / span_ms);
    figures.sliver_percent = percent(workload, sliver as f64 / span_ms);
    figures.waiting = waiting as f64 / span_ms;
    figures.waited_percent = (arrived - at_once) as f64 * 100.0 / arrived.max(1) as f64;
    for job in usage.waiting_jobs().filter(|job| first <= *job as usize) {
        waits[workload.spec_of(job).size()].push(end_ms - workload.jobs[job as usize].at_ms);
    }
    figures.wait = Spread::of(waits.concat());
    for (spread, waits) in figures.wait_by_size.iter_mut().zip(waits) {
        *spread = Spread::of(waits);
    }
    figures.completion = Spread::of(completions);
    figures.makespan_ms = end_ms - workload.jobs[0].at_ms;
    figures.left_waiting = usage.waiting();
    figures
}
