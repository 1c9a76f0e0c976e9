//! Dot products of a few vectors with every row of a matrix, as decoding needs them: each load of a weight serves all
//! vectors. A sum runs in sets of [`LANES`] lanes that are added up in a fixed order, so that a vector has the bits that it
//! has alone, whichever instructions compute it.

use super::vectors::{LANES, add_lanes};
use crate::kernels::bf16::Bf16;
use crate::kernels::isa::{AHEAD, LINE, has_avx512, multiply_add, prefetch, simd};

/// Sets of lanes of a sum in single precision.
const SETS: usize = 2;

/// Sets of lanes where weights are bf16: a row is half as long in memory, and waits twice as long for its sums.
const SETS_BF16: usize = 4;

/// `y[r][o] = w[o] . x[r]`, or `+=` with `accumulate`, for at most [`ROWS`](crate::kernels::ROWS) rows.
///
/// * `y`: `[rows][outputs]`. `x`: `[rows, inputs]`. `w`: `[outputs, inputs]`.
pub fn dots(y: &mut [&mut [f32]], x: &[f32], w: &[f32], accumulate: bool) {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        return avx512::dots::<SETS, f32>(y, x, w, accumulate);
    }
    dots_by_lanes(y, x, w, accumulate);
}

/// The same; the products and the sum are `f32`.
pub fn dots_bf16(y: &mut [&mut [f32]], x: &[f32], w: &[Bf16], accumulate: bool) {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        return avx512::dots::<SETS_BF16, Bf16>(y, x, w, accumulate);
    }
    dots_by_lanes_bf16(y, x, w, accumulate);
}

simd! {
    fn dots_by_lanes(y: &mut [&mut [f32]], x: &[f32], w: &[f32], accumulate: bool) {
        match y.len() {
            4 => dots_of::<FMA, 4, SETS, f32>(y, x, w, |w| w, accumulate),
            3 => dots_of::<FMA, 3, SETS, f32>(y, x, w, |w| w, accumulate),
            2 => dots_of::<FMA, 2, SETS, f32>(y, x, w, |w| w, accumulate),
            _ => dots_of::<FMA, 1, SETS, f32>(y, x, w, |w| w, accumulate),
        }
    }
}

simd! {
    fn dots_by_lanes_bf16(y: &mut [&mut [f32]], x: &[f32], w: &[Bf16], accumulate: bool) {
        match y.len() {
            4 => dots_of::<FMA, 4, SETS_BF16, Bf16>(y, x, w, Bf16::value, accumulate),
            3 => dots_of::<FMA, 3, SETS_BF16, Bf16>(y, x, w, Bf16::value, accumulate),
            2 => dots_of::<FMA, 2, SETS_BF16, Bf16>(y, x, w, Bf16::value, accumulate),
            _ => dots_of::<FMA, 1, SETS_BF16, Bf16>(y, x, w, Bf16::value, accumulate),
        }
    }
}

/// `N` rows, with `K` sets of lanes for each.
// Every loop has a fixed number of turns, so that the lanes stay in registers.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn dots_of<const FMA: bool, const N: usize, const K: usize, T: Copy>(
    y: &mut [&mut [f32]],
    x: &[f32],
    w: &[T],
    value: impl Fn(T) -> f32,
    accumulate: bool,
) {
    let inputs = x.len() / N;
    let x: [&[f32]; N] = std::array::from_fn(|n| &x[n * inputs..(n + 1) * inputs]);
    let whole = inputs / (K * LANES) * (K * LANES);
    for (o, w) in w.chunks_exact(inputs).enumerate() {
        let mut lanes = [[[0.0f32; LANES]; K]; N];
        for first in (0..whole).step_by(K * LANES) {
            let next = w.as_ptr().wrapping_add(first).cast::<u8>().wrapping_add(AHEAD);
            for line in (0..K * LANES * size_of::<T>()).step_by(LINE) {
                prefetch(next.wrapping_add(line));
            }
            for i in 0..K {
                let part = first + i * LANES..first + (i + 1) * LANES;
                let w: &[T; LANES] = w[part.clone()].first_chunk().expect("whole lanes");
                let w: [f32; LANES] = std::array::from_fn(|j| value(w[j]));
                for n in 0..N {
                    let x: &[f32; LANES] = x[n][part.clone()].first_chunk().expect("whole lanes");
                    for j in 0..LANES {
                        lanes[n][i][j] = multiply_add::<FMA>(w[j], x[j], lanes[n][i][j]);
                    }
                }
            }
        }
        // By itself, so that it is unrolled: lanes that are asked for by a number that is not known would lie in memory all along.
        let mut all = [[0.0f32; LANES]; N];
        for n in 0..N {
            all[n] = lanes[n][0];
            for i in 1..K {
                for j in 0..LANES {
                    all[n][j] += lanes[n][i][j];
                }
            }
        }
        for n in 0..N {
            let sums = &mut all[n];
            for (j, (w, x)) in w[whole..].iter().zip(&x[n][whole..]).enumerate() {
                sums[j % LANES] = multiply_add::<FMA>(value(*w), *x, sums[j % LANES]);
            }
            let sum = add_lanes(*sums);
            let y = &mut y[n][o];
            *y = if accumulate { *y + sum } else { sum };
        }
    }
}

/// The same bits with a tile of sums in the registers: several rows of the matrix share each load of a vector, too. The
/// compiler finds no such tile.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx512 {
    use super::{AHEAD, Bf16, LANES, LINE, prefetch};
    use crate::kernels::isa::has_avx512;
    use std::arch::x86_64::*;

    /// Elements that become lanes.
    pub trait Element: Copy {
        /// [`LANES`] of them.
        ///
        /// # Safety
        /// They can be read, and the processor has the instructions.
        unsafe fn load(from: *const Self) -> __m512;

        /// Those that `mask` names; the others are not read.
        ///
        /// # Safety
        /// As of [`load`](Element::load).
        unsafe fn load_some(from: *const Self, mask: u16) -> __m512;
    }

    impl Element for f32 {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn load(from: *const f32) -> __m512 {
            // SAFETY: the caller's.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn load_some(from: *const f32, mask: u16) -> __m512 {
            // SAFETY: the caller's.
            unsafe { _mm512_maskz_loadu_ps(mask, from) }
        }
    }

    impl Element for Bf16 {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn load(from: *const Bf16) -> __m512 {
            // SAFETY: the caller's.
            widened(unsafe { _mm256_loadu_si256(from.cast()) })
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn load_some(from: *const Bf16, mask: u16) -> __m512 {
            // SAFETY: the caller's.
            widened(unsafe { _mm256_maskz_loadu_epi16(mask, from.cast()) })
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn widened(bits: __m256i) -> __m512 {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
    }

    /// See [`super::dots`]; `K` sets of lanes.
    ///
    /// # Panics
    /// Where lengths do not fit each other, or the processor lacks the instructions.
    pub fn dots<const K: usize, T: Element>(y: &mut [&mut [f32]], x: &[f32], w: &[T], accumulate: bool) {
        let Some(outputs) = y.first().map(|y| y.len()) else { return };
        let inputs = x.len() / y.len();
        assert!(
            y.iter().all(|y| y.len() == outputs)
                && inputs * y.len() == x.len()
                && outputs * inputs == w.len()
        );
        assert!(has_avx512());
        // SAFETY: the instructions are here; `x` has a vector for each of `y`, and `w` a row as long for each of its elements.
        unsafe {
            match y {
                [one] => rows::<1, 1, K, K, T>([one], x, w, accumulate),
                [one, two] => rows::<2, 4, K, 2, T>([one, two], x, w, accumulate),
                [one, two, three] => rows::<3, 4, K, 2, T>([one, two, three], x, w, accumulate),
                [one, two, three, four] if K == 4 => {
                    rows::<4, 6, K, 1, T>([one, two, three, four], x, w, accumulate);
                }
                [one, two, three, four] => rows::<4, 3, K, 2, T>([one, two, three, four], x, w, accumulate),
                _ => unreachable!("at most {} rows", crate::kernels::ROWS),
            }
        }
    }

    /// `N` vectors; a tile has `M` rows of the matrix, and `P` of the `K` sets of lanes at a time.
    ///
    /// # Safety
    /// The processor has the instructions; `x` has `N` vectors, `w` a row as long for each element of a `y`, and these are
    /// as long as each other.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn rows<const N: usize, const M: usize, const K: usize, const P: usize, T: Element>(
        mut y: [&mut [f32]; N],
        x: &[f32],
        w: &[T],
        accumulate: bool,
    ) {
        let (inputs, outputs) = (x.len() / N, y[0].len());
        let mut put = |o: usize, sums: [f32; N]| {
            for (y, sum) in y.iter_mut().zip(sums) {
                y[o] = if accumulate { y[o] + sum } else { sum };
            }
        };
        let whole = outputs / M * M;
        for first in (0..whole).step_by(M) {
            // SAFETY: `M` rows of the matrix from here on.
            let sums = unsafe { tile::<N, M, K, P, T>(inputs, x.as_ptr(), w[first * inputs..].as_ptr()) };
            (first..).zip(sums).for_each(|(o, sums)| put(o, sums));
        }
        for o in whole..outputs {
            // SAFETY: one row.
            let [sums] = unsafe { tile::<N, 1, K, P, T>(inputs, x.as_ptr(), w[o * inputs..].as_ptr()) };
            put(o, sums);
        }
    }

    /// The sums of `N` vectors and `M` rows, all of `inputs` elements.
    ///
    /// # Safety
    /// The processor has the instructions, and the vectors and rows lie one after the other.
    // Every loop over lanes has a fixed number of turns, so that they stay in registers.
    #[allow(clippy::needless_range_loop)]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn tile<const N: usize, const M: usize, const K: usize, const P: usize, T: Element>(
        inputs: usize,
        x: *const f32,
        w: *const T,
    ) -> [[f32; N]; M] {
        let whole = inputs / (K * LANES) * (K * LANES);
        let mut all = [[_mm512_setzero_ps(); N]; M];
        for set in (0..K).step_by(P) {
            let mut lanes = [[[_mm512_setzero_ps(); P]; N]; M];
            let mut first = set * LANES;
            while first < whole {
                if set == 0 {
                    for m in 0..M {
                        let next = w.wrapping_add(m * inputs + first).cast::<u8>().wrapping_add(AHEAD);
                        for line in 0..K * LANES * size_of::<T>() / LINE {
                            prefetch(next.wrapping_add(line * LINE));
                        }
                    }
                }
                for p in 0..P {
                    let at = first + p * LANES;
                    let mut vectors = [_mm512_setzero_ps(); N];
                    for n in 0..N {
                        // SAFETY: whole lanes of a vector.
                        vectors[n] = unsafe { _mm512_loadu_ps(x.add(n * inputs + at)) };
                    }
                    for m in 0..M {
                        // SAFETY: whole lanes of a row.
                        let weight = unsafe { T::load(w.add(m * inputs + at)) };
                        for n in 0..N {
                            lanes[m][n][p] = _mm512_fmadd_ps(weight, vectors[n], lanes[m][n][p]);
                        }
                    }
                }
                first += K * LANES;
            }
            for m in 0..M {
                for n in 0..N {
                    for p in 0..P {
                        let sums = lanes[m][n][p];
                        all[m][n] = if set + p == 0 { sums } else { _mm512_add_ps(all[m][n], sums) };
                    }
                }
            }
        }
        for at in (whole..inputs).step_by(LANES) {
            let mask = u16::MAX >> (LANES - LANES.min(inputs - at));
            for m in 0..M {
                // SAFETY: what the mask names lies in the row.
                let weight = unsafe { T::load_some(w.add(m * inputs + at), mask) };
                for n in 0..N {
                    // SAFETY: and in the vector.
                    let vector = unsafe { f32::load_some(x.add(n * inputs + at), mask) };
                    all[m][n] = _mm512_mask3_fmadd_ps(weight, vector, all[m][n], mask);
                }
            }
        }
        let mut sums = [[0.0; N]; M];
        for m in 0..M {
            for n in 0..N {
                sums[m][n] = sum(all[m][n]);
            }
        }
        sums
    }

    /// Halves the lanes until one is left, as [`super::add_lanes`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn sum(lanes: __m512) -> f32 {
        let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(lanes)));
        let eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), upper);
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::ROWS;
    use crate::random::Random;

    /// Takes `y` and `x`.
    type Compute<'a> = &'a dyn Fn(&mut [&mut [f32]], &[f32]);

    #[test]
    fn a_row_has_the_bits_it_has_alone_whichever_instructions_compute_it() {
        let mut random = Random::new(3);
        for inputs in [768, 64, 32, 200, 65, 7, 2_144] {
            let (x, w) = (random.normals(ROWS * inputs), random.normals(13 * inputs));
            let narrow: Vec<Bf16> = w.iter().map(|w| Bf16::round(*w)).collect();
            let together = |rows: usize, dots: Compute| {
                let mut y = [[0.5; 13]; ROWS];
                dots(&mut y.each_mut().map(|y| &mut y[..])[..rows], &x[..rows * inputs]);
                y[..rows].to_vec()
            };
            for accumulate in [false, true] {
                let single = together(ROWS, &|y, x| dots(y, x, &w, accumulate));
                let half = together(ROWS, &|y, x| dots_bf16(y, x, &narrow, accumulate));
                assert_eq!(single, together(ROWS, &|y, x| dots_by_lanes(y, x, &w, accumulate)));
                assert_eq!(half, together(ROWS, &|y, x| dots_by_lanes_bf16(y, x, &narrow, accumulate)));
                for rows in 1..ROWS {
                    assert_eq!(single[..rows], together(rows, &|y, x| dots(y, x, &w, accumulate)));
                    assert_eq!(half[..rows], together(rows, &|y, x| dots_bf16(y, x, &narrow, accumulate)));
                }
                for (y, x) in single.iter().zip(x.chunks_exact(inputs)) {
                    for (y, w) in y.iter().zip(w.chunks_exact(inputs)) {
                        let sum: f32 = w.iter().zip(x).map(|(w, x)| w * x).sum();
                        let expected = sum + if accumulate { 0.5 } else { 0.0 };
                        assert!((y - expected).abs() < 1e-3, "{inputs}: {y}, not {expected}");
                    }
                }
            }
        }
    }
}
