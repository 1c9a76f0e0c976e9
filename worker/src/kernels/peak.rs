//! Loops that do nothing but what a processor does fastest: the measure of everything else.

use super::isa::{Isa, multiply_add, simd};

const ROUNDS: usize = 1 << 20;
/// Sums at a time: enough to hide the latency of an addition, few enough for the registers.
const SUMS: usize = 12;
const LANES: usize = 16;

/// Operations of [`multiply_f32`].
pub const F32_OPERATIONS: f64 = 2.0 * (ROUNDS * SUMS * LANES) as f64;

/// Multiplies and adds in registers.
pub fn multiply_f32() -> f32 {
    match Isa::best() {
        // SAFETY: the instructions were found on this processor.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => unsafe { singles() },
        _ => multiply_portable(),
    }
}

simd! {
    fn multiply_portable() -> f32 {
        let (a, b) = (std::hint::black_box([1e-3f32; LANES]), std::hint::black_box([1.0f32; LANES]));
        let mut sums = [[0.0f32; LANES]; SUMS];
        for _ in 0..ROUNDS {
            for sums in &mut sums {
                for j in 0..LANES {
                    sums[j] = multiply_add::<FMA>(a[j], b[j], sums[j]);
                }
            }
        }
        sums.as_flattened().iter().sum()
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn singles() -> f32 {
    use std::arch::x86_64::*;
    let (x, y) = (_mm512_set1_ps(std::hint::black_box(1e-3)), _mm512_set1_ps(std::hint::black_box(1.0)));
    let mut sums = [_mm512_setzero_ps(); SUMS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(x, y, *sum);
        }
    }
    sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
}

/// Loops on bf16, and the operations of one call; `None` where products of bf16 are no faster than those of f32.
pub fn multiply_bf16() -> Option<(f64, fn() -> f32)> {
    match Isa::best() {
        // SAFETY: the instructions were found on this processor.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        Isa::Avx512Bf16 => Some((2.0 * F32_OPERATIONS, || unsafe { pairs() })),
        #[cfg(target_arch = "x86_64")]
        Isa::Amx => Some((ROUNDS as f64 * super::amx::PEAK_OPERATIONS, || super::amx::multiply(ROUNDS))),
        _ => None,
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs() -> f32 {
    use std::arch::x86_64::*;
    let x = _mm512_cvtne2ps_pbh(std::hint::black_box(_mm512_set1_ps(0.5)), _mm512_set1_ps(0.5));
    let mut sums = [_mm512_setzero_ps(); SUMS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, x, x);
        }
    }
    sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
}

simd! {
    /// The sum of all elements, read once in order.
    pub fn sum(x: &[f32]) -> f32 {
        let mut lanes = [[0.0f32; LANES]; 4];
        for x in x.as_chunks::<{ 4 * LANES }>().0 {
            for (i, lanes) in lanes.iter_mut().enumerate() {
                for j in 0..LANES {
                    lanes[j] += x[i * LANES + j];
                }
            }
        }
        let _ = FMA;
        lanes.as_flattened().iter().sum()
    }
}
