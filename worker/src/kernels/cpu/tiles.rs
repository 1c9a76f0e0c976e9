//! Dot products of some vectors with every row of a matrix of bf16 by AMX, as decoding needs them: the matrix is read once, as it
//! lies in memory, and up to 32 vectors share that.
//!
//! A vector is the sum of two bf16 parts, the second of which is what rounding leaves of the first: 16 bits of it count, as many as of
//! the products of 8 bits that the sums in single precision are made of. A sum runs over blocks of 32 elements, first the first parts,
//! then the second ones, so that a vector has the bits that it has alone.
#![allow(unsafe_code)]

use crate::kernels::amx::{self, TILE, Tile, Tiles};
use crate::kernels::bf16::Bf16;
use crate::kernels::gemm::transpose;
use crate::kernels::isa::Isa;
use crate::kernels::pool::Parts;
use std::arch::x86_64::*;
use std::ops::Range;

/// Elements of a row that a tile holds.
const BLOCK: usize = 2 * TILE;

/// Outputs that are computed together. Those of a thread begin at a multiple of it.
pub const OUTPUTS: usize = 2 * TILE;

/// Vectors in two parts, by tiles of 16 vectors: for each group of them and each block of elements a tile of first parts and one of
/// second parts.
pub struct Vectors {
    tiles: Vec<Tile>,
    count: usize,
    len: usize,
}

impl Vectors {
    /// Whether this processor has the instructions for vectors of so many elements.
    pub fn suit(len: usize) -> bool {
        Isa::best().multiplies_tiles() && 0 < len && len.is_multiple_of(BLOCK)
    }

    /// The vectors of `len` elements that lie one after the other in `x`.
    ///
    /// # Panics
    /// Where such vectors do not [`suit`](Vectors::suit).
    pub fn of(x: &[f32], len: usize) -> Vectors {
        assert!(Vectors::suit(len) && x.len().is_multiple_of(len));
        let (count, blocks) = (x.len() / len, len / BLOCK);
        let mut tiles = vec![Tile::ZERO; count.div_ceil(TILE) * blocks * 2];
        for (group, tiles) in x.chunks(TILE * len).zip(tiles.chunks_exact_mut(blocks * 2)) {
            for (block, parts) in tiles.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                // SAFETY: the instructions are here; every vector has so many blocks.
                unsafe { split(parts, &group[block * BLOCK..], len) };
            }
        }
        Vectors { tiles, count, len }
    }

    /// `y[r][o] = w[o] . x[r]`, or `+=` with `accumulate`, for all vectors and the outputs `outputs`.
    ///
    /// * `y`: `[vectors, stride]`, of which no other thread has these outputs. `w`: `[stride, len]`.
    pub fn dots(
        &self,
        y: &Parts<'_, f32>,
        stride: usize,
        outputs: Range<usize>,
        w: &[Bf16],
        accumulate: bool,
    ) {
        let (len, blocks) = (self.len, self.len / BLOCK);
        // SAFETY: that there are vectors says that the instructions are here.
        let tiles = unsafe { Tiles::new() };
        let mut last = Vec::new();
        for first in outputs.clone().step_by(OUTPUTS) {
            let some = OUTPUTS.min(outputs.end - first);
            let mut rows = &w[first * len..(first + some) * len];
            if some < OUTPUTS {
                last.extend_from_slice(rows);
                last.resize(OUTPUTS * len, Bf16::default());
                rows = &last;
            }
            for (index, groups) in self.tiles.chunks(2 * 2 * blocks).enumerate() {
                let mut sums = [[Tile::ZERO; 2]; 2];
                let mut groups = groups.chunks(2 * blocks);
                let (one, other) = (groups.next().expect("whole groups"), groups.next());
                // SAFETY: `rows` has so many rows, each of as many blocks as a group has pairs of tiles.
                unsafe { amx::dots(&tiles, rows, (one, other), &mut sums) };
                for (half, sums) in sums.iter().enumerate() {
                    let before = (2 * index + half) * TILE;
                    let count = self.count.saturating_sub(before).min(TILE);
                    for (at, sums) in (first..first + some).step_by(TILE).zip(sums) {
                        let width = (first + some - at).min(TILE);
                        // SAFETY: the instructions are here.
                        let sums = unsafe { turned(sums) };
                        for (row, sums) in sums.0.iter().enumerate().take(count) {
                            let at = (before + row) * stride + at;
                            // SAFETY: these outputs are this thread's.
                            let y = unsafe { y.get(at..at + width) };
                            for (y, sum) in y.iter_mut().zip(sums) {
                                let sum = f32::from_bits(*sum);
                                *y = if accumulate { *y + sum } else { sum };
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Makes the tiles of both parts of a block of up to 16 vectors, which lie `len` elements apart: pairs of neighbours of all vectors
/// beside each other.
///
/// # Safety
/// The processor has the instructions.
///
/// # Panics
/// Where `x` ends within a block.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn split(parts: &mut [Tile; 2], x: &[f32], len: usize) {
    let mut rows = [[_mm512_setzero_si512(); TILE]; 2];
    for (r, x) in x.chunks(len).enumerate() {
        let (low, high) = x[..BLOCK].split_at(TILE);
        // SAFETY: 16 elements each.
        let (low, high) = unsafe { (_mm512_loadu_ps(low.as_ptr()), _mm512_loadu_ps(high.as_ptr())) };
        // SAFETY: both are 64 bytes of any content.
        let halves = |x: __m512bh| unsafe { std::mem::transmute::<__m512bh, __m512i>(x) };
        let first = halves(_mm512_cvtne2ps_pbh(high, low));
        let value = |half| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)));
        let low = _mm512_sub_ps(low, value(_mm512_castsi512_si256(first)));
        let high = _mm512_sub_ps(high, value(_mm512_extracti64x4_epi64::<1>(first)));
        (rows[0][r], rows[1][r]) = (first, halves(_mm512_cvtne2ps_pbh(high, low)));
    }
    for (tile, rows) in parts.iter_mut().zip(rows) {
        store(tile, transpose(rows));
    }
}

/// Rows become columns.
///
/// # Safety
/// The processor has the instructions.
#[target_feature(enable = "avx512f")]
unsafe fn turned(tile: &Tile) -> Tile {
    let mut turned = Tile::ZERO;
    // SAFETY: a row is 64 bytes.
    store(
        &mut turned,
        transpose(tile.0.each_ref().map(|row| unsafe { _mm512_loadu_si512(row.as_ptr().cast()) })),
    );
    turned
}

#[target_feature(enable = "avx512f")]
fn store(tile: &mut Tile, rows: [__m512i; TILE]) {
    for (to, row) in tile.0.iter_mut().zip(rows) {
        // SAFETY: a row is 64 bytes.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), row) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn sums_are_exact_to_16_bits_of_the_vectors_and_the_same_bits_in_any_company() {
        if !Vectors::suit(BLOCK) {
            eprintln!("skipped: this processor has no AMX");
            return;
        }
        let mut random = Random::new(1);
        for (count, len, outputs) in [(1, 32, 32), (5, 96, 70), (16, 64, 16), (33, 160, 33), (70, 512, 100)] {
            let (x, w) = (random.normals(count * len), random.normals(outputs * len));
            let w: Vec<Bf16> = w.into_iter().map(Bf16::round).collect();
            let run = |x: &[f32], cut: usize| {
                let mut y = vec![1.0; x.len() / len * outputs];
                let parts = Parts::new(&mut y);
                let vectors = Vectors::of(x, len);
                vectors.dots(&parts, outputs, 0..cut, &w, true);
                vectors.dots(&parts, outputs, cut..outputs, &w, true);
                y
            };
            let all = run(&x, 0);
            assert!(all == run(&x, OUTPUTS.min(outputs)), "{count} x {len}");
            for ((x, all), name) in x.chunks(len).zip(all.chunks(outputs)).zip(0..) {
                assert!(all == run(x, 0), "vector {name} of {count} x {len}");
                for (o, sum) in all.iter().enumerate() {
                    let terms =
                        x.iter().zip(&w[o * len..]).map(|(x, w)| f64::from(*x) * f64::from(w.value()));
                    let (exact, size) = terms.fold((1.0, 1.0), |(sum, size), x| (sum + x, size + x.abs()));
                    let error = (f64::from(*sum) - exact).abs();
                    assert!(error < size / 65_536.0, "{sum} is not {exact}: {count} x {len}");
                }
            }
        }
    }
}
