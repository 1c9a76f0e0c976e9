//! Devices that compute what is wrong, and models that diverge.

use super::{Seen, TROUBLE, World};
use aquifer_worker::elastic::{Audit, Rank};
use aquifer_worker::random::Random;
use std::collections::{BTreeMap, BTreeSet};

/// What is wrong with what is computed.
#[derive(Default)]
pub struct Faults {
    /// The sum of this shard of this step is not finite on any device.
    diverges: Option<(u64, usize)>,
    /// Of so many shards one is not finite, on devices that have a fault.
    not_finite_one_in: BTreeMap<Rank, u64>,
    /// Members that have computed what is wrong.
    guilty: BTreeSet<Rank>,
    /// It was said that the model diverges.
    pub has_diverged: bool,
}

impl Faults {
    /// Those of a seed, and its audits.
    pub fn draw(random: &mut Random, shards: usize, steps: u64) -> (Faults, Option<Audit>) {
        let mut one_in = |many: u64| random.bits().is_multiple_of(many);
        let (diverges, audits) = (one_in(16), one_in(2));
        let diverges = diverges.then(|| (random.bits() % steps, (random.bits() % shards as u64) as usize));
        let audit = Audit { every: 1 + random.bits() % 9, seed: random.bits() };
        (Faults { diverges, ..Faults::default() }, audits.then_some(audit))
    }

    /// Whether the training cannot get to its end.
    pub fn is_fatal(&self) -> bool {
        self.diverges.is_some()
    }
}

impl World {
    /// A device may have a fault.
    pub fn start_device(&mut self, rank: Rank) {
        if self.chance(6) {
            let one_in = [1, 3, 20][(self.random.bits() % 3) as usize];
            self.faults.not_finite_one_in.insert(rank, one_in);
        }
    }

    /// What a device makes of the gradient of a shard. A wrong number is only found where it is audited, and nothing else is wrong.
    pub fn on_device(
        &mut self,
        rank: Rank,
        step: u64,
        shard: usize,
        right: Vec<f32>,
        seen: &mut Seen,
    ) -> Vec<f32> {
        let mut note = |case| *seen.entry(case).or_default() += 1;
        if self.faults.diverges == Some((step, shard)) {
            note("a model diverges");
            return vec![1.0, f32::INFINITY, 2.0];
        }
        if TROUBLE < self.now {
            return right;
        }
        let audited = self.settings.audit.and_then(|audit| audit.shard(step, self.settings.shards));
        let one_in = self.faults.not_finite_one_in.get(&rank).copied();
        if one_in.is_some_and(|one_in| self.chance(one_in)) {
            note("a device computes what is not finite");
            self.faults.guilty.insert(rank);
            return vec![f32::NAN; right.len()];
        }
        if audited == Some(shard) && one_in.is_some() && self.chance(3) {
            note("a device computes a wrong number");
            self.faults.guilty.insert(rank);
            return vec![self.random.normal(), right[1], right[2]];
        }
        right
    }

    /// Checks what people are told.
    pub fn told(&self, text: &str, seen: &mut Seen, seed: u64) {
        if let Some((rank, _)) =
            text.strip_prefix("rank ").and_then(|rest| rest.split_once(" has computed a wrong sum"))
        {
            let rank: Rank = rank.parse().expect("a number");
            assert!(self.faults.guilty.contains(&rank), "seed {seed}: said in vain: {text}");
            *seen.entry("a member is suspected").or_default() += 1;
        }
    }

    /// Checks why somebody has ended.
    pub fn failed(&mut self, reason: &str, seen: &mut Seen, seed: u64) {
        let is_unclear = reason.contains("have computed different sums of");
        *seen.entry("nobody tells which sum is right").or_default() += u64::from(is_unclear);
        assert!(!is_unclear || !self.faults.guilty.is_empty(), "seed {seed}: said in vain: {reason}");
        if !reason.contains("the training diverged") {
            return;
        }
        let named = |(step, shard): (u64, usize)| {
            reason.contains(&format!("for shard {shard} of step {};", step + 1))
        };
        match self.faults.diverges.is_some_and(named) {
            true => self.faults.has_diverged = true,
            // All that are there have a fault.
            false => assert!(!self.faults.guilty.is_empty(), "seed {seed}: said in vain: {reason}"),
        }
    }
}
