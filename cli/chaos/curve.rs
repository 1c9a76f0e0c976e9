//! What a training has written of its steps.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use aquifer_worker::train::Point;
use serde::Serialize;

/// The steps in the order in which they were done; one that was computed again is there again.
#[derive(Debug, Default)]
pub struct Curve {
    points: Vec<Point>,
}

impl Curve {
    /// Reads what stands beside the checkpoints. A line that a crash has cut off is left out.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn read(path: &Path) -> Result<Curve> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let points = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        Ok(Curve { points: points.collect() })
    }

    /// The first step that has several losses, in one of both or between them, those that were computed again included. A step is missing
    /// where who led it was lost before it had written it, though its sum was sent: then there is nothing to compare.
    pub fn differs_at(&self, other: &Curve) -> Option<u64> {
        let mut losses = BTreeMap::new();
        let mut differs: Option<u64> = None;
        for point in self.points.iter().chain(&other.points) {
            let bits = point.loss.to_bits();
            if *losses.entry(point.step).or_insert(bits) != bits {
                differs = Some(differs.map_or(point.step, |first| first.min(point.step)));
            }
        }
        differs
    }

    /// Steps that were computed more than once.
    pub fn repeated(&self) -> u64 {
        let mut newest = 0;
        let again = self.points.iter().filter(|point| {
            let is_new = newest < point.step;
            newest = newest.max(point.step);
            !is_new
        });
        again.count() as u64
    }

    /// What a step takes: the median.
    pub fn usual_ms(&self) -> u64 {
        let mut times: Vec<u64> =
            self.points.windows(2).map(|pair| pair[1].at_ms.saturating_sub(pair[0].at_ms)).collect();
        times.sort_unstable();
        quantile(&times, 0.5)
    }

    /// What steps took beyond the usual, those in which there was at least one of these failures.
    pub fn stalls(&self, failures: &[u64]) -> Stalls {
        let usual = self.usual_ms();
        let mut stalls = Stalls::default();
        for pair in self.points.windows(2) {
            let (start, end) = (pair[0].at_ms, pair[1].at_ms);
            let late = end.saturating_sub(start).saturating_sub(usual);
            match failures.iter().find(|at| (start..end).contains(at)) {
                Some(at) => {
                    stalls.stalls_ms.push(late);
                    stalls.rests_ms.push(usual.saturating_sub(at - start));
                }
                None => stalls.others_ms.push(late),
            }
        }
        for times in [&mut stalls.stalls_ms, &mut stalls.rests_ms, &mut stalls.others_ms] {
            times.sort_unstable();
        }
        stalls
    }

    /// From each of these moments to the end of the next step, the shortest first.
    pub fn until_next_ms(&self, moments: &[u64]) -> Vec<u64> {
        let next = |at: &u64| Some(self.points.iter().find(|point| *at < point.at_ms)?.at_ms - at);
        let mut times: Vec<u64> = moments.iter().filter_map(next).collect();
        times.sort_unstable();
        times
    }
}

/// What steps took beyond the usual, in milliseconds, the shortest first.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Stalls {
    /// Those in which something failed.
    pub stalls_ms: Vec<u64>,
    /// What was left of these when it did, if they had taken as long as usual.
    pub rests_ms: Vec<u64>,
    /// All others.
    #[serde(skip)]
    pub others_ms: Vec<u64>,
}

/// The value that a share of sorted ones does not exceed; 0 of none.
pub fn quantile(sorted: &[u64], share: f64) -> u64 {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(u64, f32, u64)]) -> Curve {
        let point =
            |&(step, loss, at_ms)| Point { step, loss, gradient_norm: 1.0, learning_rate: 0.1, at_ms };
        Curve { points: points.iter().map(point).collect() }
    }

    #[test]
    fn stalls_and_repeated_steps_are_seen() {
        let smooth = [(1, 5.0, 100), (2, 4.0, 200), (3, 3.0, 300), (4, 2.0, 400)];
        let rough = [(1, 5.0, 100), (2, 4.0, 200), (2, 4.0, 350), (3, 3.0, 450), (4, 2.0, 550)];
        let (smooth, rough) = (curve(&smooth), curve(&rough));
        assert_eq!((smooth.repeated(), rough.repeated(), rough.usual_ms()), (0, 1, 100));
        let stalls = Stalls { stalls_ms: vec![0, 50], rests_ms: vec![50, 80], others_ms: vec![0, 0] };
        assert_eq!((rough.stalls(&[220, 230, 400]), rough.until_next_ms(&[220])), (stalls, vec![130]));
        assert_eq!(smooth.differs_at(&rough), None);
        let other = curve(&[(1, 5.0, 1), (2, 4.0, 2), (2, 4.1, 3), (3, 3.0, 4), (4, 2.5, 5)]);
        assert_eq!(smooth.differs_at(&other), Some(2), "one state of step 2 is wrong");
        let unwritten = curve(&[(1, 5.0, 1), (2, 4.0, 2), (4, 2.0, 5)]);
        assert_eq!(smooth.differs_at(&unwritten), None);
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        assert_eq!([0.5, 0.99].map(|share| quantile(&[1, 2, 3], share)), [2, 3]);
        assert_eq!(quantile(&[], 0.5), 0);
    }
}
