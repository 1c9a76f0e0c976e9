//! Random numbers as pure functions of an identity: the same seed and index give the same number everywhere.

/// A well-mixed 64-bit number for `key`. Source: Steele et al., "Fast splittable pseudorandom number generators",
/// OOPSLA 2014, figure 17 (the finaliser of SplitMix64).
pub fn mix(key: u64) -> u64 {
    let key = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let key = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let key = (key ^ (key >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    key ^ (key >> 31)
}

/// A stream of random numbers.
pub struct Random(u64);

impl Random {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Random {
        Random(mix(seed))
    }

    /// Any 64-bit number, each equally likely.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normal with mean 0 and deviation 1, by the transform of Box and Muller.
    pub fn normal(&mut self) -> f32 {
        let (radius, angle) = (1.0 - self.unit(), self.unit());
        ((-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()) as f32
    }

    /// `count` normal numbers.
    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }
}

/// Where `index` of `0..count` goes in the permutation of `key`: a bijection, in constant time and memory.
///
/// A Feistel network over the next power of four, walked until it lands below `count` (fewer than 4 rounds of
/// walking on average). Source: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, section 3.
pub fn permute(index: u64, count: u64, key: u64) -> u64 {
    assert!(index < count, "index {index} of {count}");
    let half_bits = (64 - (count - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half_bits) - 1;
    let mut at = index;
    loop {
        let (mut left, mut right) = (at >> half_bits, at & mask);
        for round in 0..6 {
            (left, right) = (right, left ^ (mix(key ^ mix(right ^ (round << 56))) & mask));
        }
        at = (left << half_bits) | right;
        if at < count {
            return at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_meets_every_index_once_and_differs_by_key() {
        for count in [1, 2, 3, 5, 64, 65, 1000] {
            let order = |key| (0..count).map(|i| permute(i, count, key)).collect::<Vec<_>>();
            let mut sorted = order(7);
            sorted.sort();
            assert_eq!(sorted, (0..count).collect::<Vec<_>>());
            assert!(count < 64 || order(7) != order(8));
        }
    }

    #[test]
    fn normals_have_mean_zero_and_deviation_one() {
        let x = Random::new(1).normals(20_000);
        let mean = x.iter().sum::<f32>() / 20_000.0;
        let square = x.iter().map(|x| x * x).sum::<f32>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (square - 1.0).abs() < 0.05, "mean {mean}, mean square {square}");
    }
}
