//! The matrix product that training and prefill spend their time in.
//!
//! Operands are copied into panels that the innermost loop reads in order: `MR` rows of `a` and `NR` columns of
//! `b`, `KC` deep. That loop keeps an `MR x NR` tile of the result in registers. Source: Goto and van de Geijn,
//! "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008, section 4.
//!
//! Every element is the sum over blocks of `KC` products, each block summed in order: it depends on its row of
//! `a`, its column of `b` and `K` alone, never on the other rows, the blocking by rows, or the threads.

use super::cpu::{Isa, isa, multiply_add};
use std::cell::RefCell;

/// Depth of a panel: a tile's two panels stay in the first-level cache.
const KC: usize = 256;
/// Columns of `b` that are packed at a time: `KC * NC` floats stay in the second-level cache.
const NC: usize = 512;

/// A matrix seen through strides: element `(i, j)` is `data[i * row + j * column]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub column: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix with `width` elements between rows.
    pub fn rows(data: &'a [f32], width: usize) -> View<'a> {
        View { data, row: width, column: 1 }
    }

    /// The transpose of a row-major matrix with `width` elements between its rows.
    pub fn transposed(data: &'a [f32], width: usize) -> View<'a> {
        View { data, row: 1, column: width }
    }

    fn skip_rows(self, row: usize) -> View<'a> {
        View { data: &self.data[(row * self.row).min(self.data.len())..], ..self }
    }
}

/// Sizes of a product: `[m, k] * [k, n]`.
#[derive(Clone, Copy)]
pub struct Size {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// `c = a * b`, or `c += a * b` with `accumulate`; rows of `c` are `stride` elements apart. Splits the rows over
/// `threads` where that pays.
pub fn gemm(
    size: Size,
    c: &mut [f32],
    stride: usize,
    a: View<'_>,
    b: View<'_>,
    accumulate: bool,
    threads: usize,
) {
    /// Products that a thread must have to be worth its start of some 20 microseconds.
    const WORTH_A_THREAD: usize = 4 << 20;
    let threads = threads.min(size.m * size.n * size.k / WORTH_A_THREAD).max(1);
    let rows = size.m.div_ceil(threads).next_multiple_of(48);
    if size.m <= rows {
        return serial(size, c, stride, a, b, accumulate);
    }
    std::thread::scope(|scope| {
        for (index, c) in c.chunks_mut(rows * stride).enumerate() {
            let first = index * rows;
            if first < size.m {
                let part = Size { m: rows.min(size.m - first), ..size };
                scope.spawn(move || serial(part, c, stride, a.skip_rows(first), b, accumulate));
            }
        }
    });
}

fn serial(size: Size, c: &mut [f32], stride: usize, a: View<'_>, b: View<'_>, accumulate: bool) {
    match isa() {
        // SAFETY: `isa` found the instructions on this processor.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        Isa::Avx512 => unsafe { avx512(size, c, stride, a, b, accumulate) },
        // SAFETY: `isa` found the instructions on this processor.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        Isa::Avx2 => unsafe { avx2(size, c, stride, a, b, accumulate) },
        Isa::Portable => blocked::<4, 8, false>(size, c, stride, a, b, accumulate),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(size: Size, c: &mut [f32], stride: usize, a: View<'_>, b: View<'_>, accumulate: bool) {
    blocked::<12, 32, true>(size, c, stride, a, b, accumulate);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(size: Size, c: &mut [f32], stride: usize, a: View<'_>, b: View<'_>, accumulate: bool) {
    blocked::<6, 16, true>(size, c, stride, a, b, accumulate);
}

thread_local! {
    /// Panels of `a` and of `b`, kept from one product to the next.
    static PANELS: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

#[inline(always)]
fn blocked<const MR: usize, const NR: usize, const FMA: bool>(
    size: Size,
    c: &mut [f32],
    stride: usize,
    a: View<'_>,
    b: View<'_>,
    accumulate: bool,
) {
    // Taken, not borrowed by a closure: a closure is a function of its own, without the caller's instructions.
    let (mut panels_a, mut panels_b) = PANELS.take();
    panels_a.resize(panels_a.len().max(size.m.next_multiple_of(MR) * KC), 0.0);
    panels_b.resize(panels_b.len().max(NC * KC), 0.0);
    for k in (0..size.k).step_by(KC) {
        let depth = KC.min(size.k - k);
        let a_columns = View { data: &a.data[k * a.column..], ..a };
        pack::<MR>(&mut panels_a, a_columns, size.m, depth);
        for n in (0..size.n).step_by(NC) {
            let columns = NC.min(size.n - n);
            let start = k * b.row + n * b.column;
            let block = View { data: &b.data[start..], row: b.column, column: b.row };
            pack::<NR>(&mut panels_b, block, columns, depth);
            let add = accumulate || 0 < k;
            for (row, panel_a) in (0..size.m).step_by(MR).zip(panels_a.chunks_exact(MR * depth)) {
                for (column, panel_b) in (0..columns).step_by(NR).zip(panels_b.chunks_exact(NR * depth)) {
                    let tile = tile::<MR, NR, FMA>(panel_a, panel_b);
                    let (rows, width) = (MR.min(size.m - row), NR.min(columns - column));
                    for (i, tile) in tile.iter().enumerate().take(rows) {
                        let at = (row + i) * stride + n + column;
                        put::<NR>(&mut c[at..at + width], tile, add);
                    }
                }
            }
        }
    }
    PANELS.set((panels_a, panels_b));
}

/// Copies `rows x depth` elements into panels of `W` rows, each panel ordered by depth, padded with zeros.
#[inline(always)]
fn pack<const W: usize>(panels: &mut [f32], from: View<'_>, rows: usize, depth: usize) {
    for (row, panel) in (0..rows).step_by(W).zip(panels.chunks_exact_mut(W * depth)) {
        let width = W.min(rows - row);
        if width < W {
            panel.fill(0.0);
        }
        if from.row == 1 {
            for (k, panel) in panel.chunks_exact_mut(W).enumerate() {
                let source = &from.data[row + k * from.column..][..width];
                if let (Ok(panel), Ok(source)) =
                    (<&mut [f32; W]>::try_from(&mut *panel), <&[f32; W]>::try_from(source))
                {
                    *panel = *source;
                } else {
                    panel[..width].copy_from_slice(source);
                }
            }
        } else {
            for i in 0..width {
                let source = &from.data[(row + i) * from.row..];
                if from.column == 1 {
                    for (panel, x) in panel.chunks_exact_mut(W).zip(&source[..depth]) {
                        panel[i] = *x;
                    }
                } else {
                    for (k, panel) in panel.chunks_exact_mut(W).enumerate() {
                        panel[i] = source[k * from.column];
                    }
                }
            }
        }
    }
}

/// The product of two panels: `MR x NR` sums that stay in registers.
#[inline(always)]
fn tile<const MR: usize, const NR: usize, const FMA: bool>(a: &[f32], b: &[f32]) -> [[f32; NR]; MR] {
    let mut sums = [[0.0; NR]; MR];
    for (a, b) in a.chunks_exact(MR).zip(b.chunks_exact(NR)) {
        for i in 0..MR {
            for j in 0..NR {
                sums[i][j] = multiply_add::<FMA>(a[i], b[j], sums[i][j]);
            }
        }
    }
    sums
}

#[inline(always)]
fn put<const NR: usize>(c: &mut [f32], tile: &[f32; NR], add: bool) {
    if let Ok(c) = <&mut [f32; NR]>::try_from(&mut *c) {
        for (c, x) in c.iter_mut().zip(tile) {
            *c = if add { *c + x } else { *x };
        }
    } else {
        for (c, x) in c.iter_mut().zip(tile) {
            *c = if add { *c + x } else { *x };
        }
    }
}

/// The loops without any vector instructions of their own, for the tests.
#[cfg(test)]
pub fn portable(size: Size, c: &mut [f32], stride: usize, a: View<'_>, b: View<'_>) {
    blocked::<4, 8, false>(size, c, stride, a, b, false);
}
