//! Large rounds, to be timed.

use aquifer_core::rounds::{Class, Job, Mode};

use crate::Rng;

/// A pool of three classes with so many devices in all, and about three jobs for every four devices that a job
/// asks for: elastic ones on powers of two up to 64, rigid ones on one number.
pub fn pool(devices: u32, elastic: bool, seed: u64) -> (Vec<Class>, Vec<Job>) {
    let mut rng = Rng(seed);
    let parts = [devices / 4, devices / 4, devices - devices / 4 * 2];
    let classes: Vec<Class> = parts.into_iter().map(|devices| Class { devices }).collect();
    let jobs = (0..u64::from(devices) * 3 / 8).map(|id| {
        let left = rng.within((60_000, 20_000_000));
        let speeds = [8, rng.within((4, 8)), rng.within((2, 4))];
        let width = rng.below(4);
        let mut modes = Vec::new();
        for (class, speed) in speeds.into_iter().enumerate() {
            for power in if elastic { 0..7 } else { width..width + 1 } {
                // Each doubling is worth 1.8.
                let left_ms = left * 8 / speed * 5u64.pow(power as u32) / 9u64.pow(power as u32);
                modes.push(Mode { class, devices: 1 << power, left_ms: left_ms.max(1) });
            }
        }
        let current = (rng.below(2) == 0).then(|| rng.below(modes.len() as u64) as usize);
        let waited_ms = rng.below(10_000_000);
        Job { id, modes, weight_permille: 1000, waited_ms, due_in_ms: None, current, restart_ms: 60_000 }
    });
    let jobs = jobs.collect();
    (classes, jobs)
}
