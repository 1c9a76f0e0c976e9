//! A run over time, for pictures.

use super::{Usage, percent};
use crate::replay::log::Log;
use crate::replay::workload::Workload;

/// Means over one stretch of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// End of the stretch, in milliseconds.
    pub at_ms: u64,
    /// Devices that jobs held, in per cent.
    pub used_percent: f64,
    /// Jobs that waited.
    pub waiting: f64,
}

/// Means over so many equal stretches of the run.
pub fn series(workload: &Workload, log: &Log, points: usize) -> Vec<Point> {
    let (Some(first), Some(last)) = (log.entries.first(), log.entries.last()) else { return Vec::new() };
    let span = last.at_ms - first.at_ms;
    let end_of = |point: usize| first.at_ms + (span as u128 * (point as u128 + 1) / points as u128) as u64;
    let mut usage = Usage::new(workload, log);
    let mut series = Vec::with_capacity(points);
    let (mut used, mut waiting, mut begun, mut now_ms) = (0u128, 0u128, first.at_ms, first.at_ms);
    let mut entries = log.entries.iter().peekable();
    while series.len() < points {
        let end_ms = end_of(series.len());
        let next_ms = entries.peek().map_or(end_ms, |entry| entry.at_ms.min(end_ms));
        let ms = u128::from(next_ms - now_ms);
        used += ms * u128::from(usage.used_milli);
        waiting += ms * u128::from(usage.waiting());
        now_ms = next_ms;
        match entries.next_if(|entry| entry.at_ms < end_ms) {
            Some(entry) => usage.see(entry.job, entry.what),
            None => {
                let span = (end_ms - begun).max(1) as f64;
                let used_percent = percent(workload, used as f64 / span);
                series.push(Point { at_ms: end_ms, used_percent, waiting: waiting as f64 / span });
                (used, waiting, begun) = (0, 0, end_ms);
            }
        }
    }
    series
}
