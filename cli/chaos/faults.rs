//! When failures come, and whom they hit.

use std::time::{Duration, Instant};

use aquifer_worker::random::Random;

/// Failures: one at a random moment of every interval, all of the same length, and each worker in turn.
pub struct Faults {
    random: Random,
    every: Duration,
    begun: Instant,
    /// Whom the first one hits.
    first: u64,
    count: u64,
    intervals: u32,
    due: Duration,
}

impl Faults {
    /// The first interval begins now.
    pub fn new(mut random: Random, every: Duration, now: Instant) -> Faults {
        let first = random.bits() >> 1;
        let due = every.mul_f64(random.unit());
        Faults { random, every, begun: now, first, count: 0, intervals: 0, due }
    }

    /// Whom to hit now, if it is time to. If nobody is there then, nobody is hit in that interval: one who comes later is not hit
    /// as soon as it is there.
    pub fn hit<T: Copy>(&mut self, now: Instant, candidates: impl FnOnce() -> Vec<T>) -> Option<T> {
        if now < self.begun + self.due {
            return None;
        }
        self.intervals += 1;
        self.due = self.every * self.intervals + self.every.mul_f64(self.random.unit());
        let candidates = candidates();
        let place = (self.first + self.count).checked_rem(candidates.len() as u64)?;
        self.count += 1;
        Some(candidates[place as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_fails_in_every_interval_and_everybody_does_in_turn() {
        let (start, every) = (Instant::now(), Duration::from_secs(5));
        let mut missed = 0;
        for seed in 0..20 {
            let mut faults = Faults::new(Random::new(seed), every, start);
            let (mut hits, mut moments) = ([0; 4], Vec::new());
            // Nobody is there for a while in the first interval.
            let is_there = |tick| !(10..40).contains(&tick);
            for tick in 0..9 * 50 {
                let passed = Duration::from_millis(100 * tick);
                let all = || (0..4).filter(|_| is_there(tick)).collect();
                if let Some(victim) = faults.hit(start + passed, all) {
                    hits[victim as usize] += 1;
                    moments.push(tick);
                }
            }
            assert!(moments.iter().all(|tick| is_there(*tick)), "seed {seed}: {moments:?}");
            let least = hits.iter().min().expect("four");
            assert!(hits.iter().all(|count| (*least..=least + 1).contains(count)), "seed {seed}: {hits:?}");
            let of = |interval: u64| {
                let span = 50 * interval..=50 * (interval + 1);
                moments.iter().filter(|tick| span.contains(tick)).count()
            };
            assert!((1..9).all(|interval| 0 < of(interval)), "seed {seed}: {moments:?}");
            assert!((8..=9).contains(&moments.len()), "seed {seed}: {moments:?}");
            missed += 9 - moments.len();
        }
        assert!(
            (5..18).contains(&missed),
            "{missed} of 20 intervals, of which nobody is there for three fifths"
        );
    }
}
