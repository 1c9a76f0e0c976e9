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
    due: Duration,
}

impl Faults {
    /// The first interval begins now.
    pub fn new(mut random: Random, every: Duration, now: Instant) -> Faults {
        let first = random.bits() >> 1;
        let due = every.mul_f64(random.unit());
        Faults { random, every, begun: now, first, count: 0, due }
    }

    /// Whom to hit now, if it is time to; while there is nobody, it stays to be done.
    pub fn hit<T: Copy>(&mut self, now: Instant, candidates: impl FnOnce() -> Vec<T>) -> Option<T> {
        if now < self.begun + self.due {
            return None;
        }
        let candidates = candidates();
        let place = (self.first + self.count).checked_rem(candidates.len() as u64)?;
        let victim = candidates[place as usize];
        self.count += 1;
        self.due = self.every.mul_f64(self.count as f64 + self.random.unit());
        Some(victim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_fails_in_every_interval_and_everybody_does_in_turn() {
        let (start, every) = (Instant::now(), Duration::from_secs(5));
        for seed in 0..20 {
            let mut faults = Faults::new(Random::new(seed), every, start);
            let (mut hits, mut moments) = ([0; 4], Vec::new());
            for tick in 0..8 * 50 {
                let passed = Duration::from_millis(100 * tick);
                // Nobody is there for a while.
                let all = || (0..4).filter(|_| !(20..24).contains(&tick)).collect();
                if let Some(victim) = faults.hit(start + passed, all) {
                    hits[victim as usize] += 1;
                    moments.push(tick);
                }
            }
            assert_eq!(hits, [2; 4], "seed {seed}");
            for (interval, tick) in moments.into_iter().enumerate() {
                assert!(
                    (50 * interval as u64..=50 * (interval as u64 + 1)).contains(&tick),
                    "seed {seed}: {tick}"
                );
            }
        }
    }
}
