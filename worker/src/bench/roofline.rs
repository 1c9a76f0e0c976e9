//! What one core of this machine can do at most.

use super::{Bound, repeated};
use crate::kernels;
use crate::mapping::in_large_pages;

/// The most that one core does in a second.
#[derive(Clone, Copy, Debug)]
pub struct Roofline {
    /// Floating-point operations in f32, in GFLOP/s.
    pub f32_gflops: f64,
    /// Floating-point operations on bf16 factors, in GFLOP/s; those of f32 where there is no instruction.
    pub bf16_gflops: f64,
    /// Bytes read from memory, far more than any cache holds, in GB/s.
    pub read_gbs: f64,
}

impl Roofline {
    /// Measures it: loops that stay in registers, and a sum over a large array
    /// in large pages, as weights lie.
    pub fn measure() -> Roofline {
        /// Bytes of the array: more than the last cache of any processor of today that is shared by few cores.
        const BYTES: usize = 768 << 20;
        let values = in_large_pages(BYTES / 4, 1.0);
        let read = repeated(3, || _ = std::hint::black_box(kernels::peak::sum(&values)));
        let rate = |operations: f64, work: fn() -> f32| {
            let spent = repeated(5, || _ = std::hint::black_box(work()));
            operations * 1e-9 / spent.cpu
        };
        let f32_gflops = rate(kernels::peak::F32_OPERATIONS, kernels::peak::multiply_f32);
        let bf16 = kernels::peak::multiply_bf16();
        let bf16_gflops = bf16.map_or(f32_gflops, |(operations, work)| rate(operations, work));
        Roofline { f32_gflops, bf16_gflops, read_gbs: BYTES as f64 * 1e-9 / read.cpu }
    }

    /// The bound of a figure in its unit.
    pub fn of(&self, bound: Bound) -> Option<f64> {
        match bound {
            Bound::F32 => Some(self.f32_gflops),
            Bound::Bf16 => Some(self.bf16_gflops),
            Bound::Memory => Some(self.read_gbs),
            Bound::None => None,
        }
    }
}
