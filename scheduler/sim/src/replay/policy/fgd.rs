//! Fragmentation gradient descent.
//!
//! Source: Weng et al., "Beware of fragmentation: scheduling GPU-sharing workloads with fragmentation gradient
//! descent", ATC 2023, and its simulator (`fgd_score.go`, `frag.go`). Scores are whole numbers there, and most of what
//! the policy gains comes from the ties that this makes; the order in which floats are added decides whether a score
//! lands on 50 or on 49, so it is kept too.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::pool::NodeState;
use crate::replay::workload::{MAX_DEVICES, Spec, WHOLE, Workload};

/// Part of the history that the target workload covers.
const POPULARITY: f64 = 0.95;

/// What is expected to arrive: the most frequent requests of the history.
#[derive(Clone, Debug)]
pub struct Target {
    typical: Vec<Typical>,
    /// Distinct shares that typical requests take of a device, in thousandths.
    shares: Vec<u16>,
}

#[derive(Clone, Debug)]
struct Typical {
    cpus_milli: u32,
    devices: u8,
    /// Its share of a device, an index of `shares`.
    share: usize,
    allowed: u64,
    /// How much of the target it is, `0..=1`.
    weight: f64,
}

impl Target {
    /// Learns from the history of a workload.
    pub fn new(workload: &Workload) -> Target {
        let mut counts: BTreeMap<(u32, u16, u8, String), (u64, u64)> = BTreeMap::new();
        for (spec, count) in &workload.history {
            let spec = &workload.specs[*spec as usize];
            let key = (spec.cpus_milli, spec.share_milli, spec.devices, spec.wants_text());
            let entry = counts.entry(key).or_insert((0, spec.allowed));
            entry.0 += count * u64::from(spec.ranks);
        }
        let total: u64 = counts.values().map(|(count, _)| count).sum();
        let mut sorted: Vec<_> = counts.into_iter().collect();
        sorted.sort_by(|(a, (a_count, _)), (b, (b_count, _))| {
            (b_count, Reverse(a)).cmp(&(a_count, Reverse(b)))
        });
        let expected = POPULARITY * total as f64;
        let (mut taken, mut target) = (0.0, Target { typical: Vec::new(), shares: Vec::new() });
        for ((cpus_milli, share_milli, devices, _), (count, allowed)) in sorted {
            if expected <= taken {
                break;
            }
            taken += count as f64;
            let share = target.shares.iter().position(|share| *share == share_milli).unwrap_or_else(|| {
                target.shares.push(share_milli);
                target.shares.len() - 1
            });
            let weight = count as f64 / total as f64;
            target.typical.push(Typical { cpus_milli, devices, share, allowed, weight });
        }
        for typical in &mut target.typical {
            typical.weight /= taken / total as f64;
        }
        target
    }

    /// Thousandths of the node's free devices that the expected request cannot use.
    pub fn fragmentation(&self, node: &NodeState) -> f64 {
        let total = node.free_milli();
        if total == 0 {
            return 0.0;
        }
        // For each share: devices that have room for it, and what is free on the others.
        let mut room = [(0u8, 0u64); 64];
        let mut wide = Vec::new();
        let room: &mut [(u8, u64)] = if self.shares.len() <= room.len() {
            &mut room[..self.shares.len()]
        } else {
            wide.resize(self.shares.len(), (0, 0));
            &mut wide
        };
        for (share, (devices, lost)) in self.shares.iter().zip(room.iter_mut()) {
            for free in node.free() {
                match share <= free {
                    true => *devices += 1,
                    false => *lost += u64::from(*free),
                }
            }
        }
        // Lacks both, lacks devices, lacks processors, needs no device and fits, needs none and does not fit, not allowed.
        let mut lost = [0.0; 6];
        for typical in &self.typical {
            let has_cpus = typical.cpus_milli <= node.cpus_milli.0;
            let (kind, milli) = if typical.devices == 0 {
                (if has_cpus { 3 } else { 4 }, total)
            } else if node.class & typical.allowed == 0 {
                (5, total)
            } else {
                let (devices, unusable) = room[typical.share];
                match (typical.devices <= devices, has_cpus) {
                    (true, true) => (1, unusable),
                    (true, false) => (2, total),
                    (false, true) => (1, total),
                    (false, false) => (0, total),
                }
            };
            lost[kind] += typical.weight * milli as f64;
        }
        lost.iter().sum()
    }

    /// How little a rank on the node would fragment it, `0..=100`, and the device that a slice would take.
    ///
    /// * `before`: [`Target::fragmentation`] of the node as it is.
    pub fn score(&self, node: &NodeState, before: f64, spec: &Spec) -> (i64, u16) {
        let mut after = *node;
        after.cpus_milli.0 -= spec.cpus_milli;
        let gain = |after: &NodeState| {
            let gradient = (before - self.fragmentation(after)) / 1000.0;
            (1.0 / (1.0 + (-gradient).exp()) * 100.0) as i64
        };
        if !spec.is_share() {
            let mut wanted = spec.devices;
            for device in 0..usize::from(node.devices) {
                if 0 < wanted && node.free[device] == WHOLE {
                    after.free[device] = 0;
                    wanted -= 1;
                }
            }
            return (gain(&after), node.first_devices(spec));
        }
        let mut best: Option<(i64, u16)> = None;
        let mut seen = [0u16; MAX_DEVICES];
        for device in 0..usize::from(node.devices) {
            let free = node.free[device];
            // A device like an earlier one scores the same, and the first one wins.
            if !node.has_room(device, spec) || seen[..device].contains(&free) {
                continue;
            }
            seen[device] = free;
            after.free[device] = free - spec.share_milli;
            let score = gain(&after);
            after.free[device] = free;
            if best.is_none_or(|(best, _)| best < score) {
                best = Some((score, 1 << device));
            }
        }
        best.expect("a device that has room")
    }
}
