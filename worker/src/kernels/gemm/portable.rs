//! Plain loops that the compiler turns into the vectors of whatever it compiles for.

use super::super::bf16::Bf16;
use super::super::isa::multiply_add;
use super::{Elements, Instructions, Tile, View};

/// Tiles of `R x C`, with fused multiply-adds or without. Lanes are `f32`; bf16 is rounded to but not packed.
pub struct Loops<const R: usize, const C: usize, const FMA: bool>;

impl<const R: usize, const C: usize, const FMA: bool> Instructions for Loops<R, C, FMA> {
    const ROWS: usize = R;
    const COLUMNS: usize = C;
    const LANE: usize = 1;
    const DEPTH: usize = 256;

    #[inline(always)]
    fn begin() -> Self {
        Loops
    }

    #[inline(always)]
    fn pack_a(panel: &mut [u32], from: View<'_>, rows: usize, elements: usize, bf16: bool) {
        pack::<R>(panel, from, rows, elements, bf16);
    }

    #[inline(always)]
    fn pack_b(panel: &mut [u32], from: View<'_>, columns: usize, elements: usize, bf16: bool) {
        pack::<C>(panel, from, columns, elements, bf16);
    }

    #[inline(always)]
    fn tile(&self, depth: usize, [a, b]: [&[u32]; 2], c: Tile, rows: usize, columns: usize, add: bool) {
        let mut sums = [[0.0f32; C]; R];
        for (a, b) in a.chunks_exact(R).zip(b.chunks_exact(C)).take(depth) {
            for i in 0..R {
                for j in 0..C {
                    let (a, b) = (f32::from_bits(a[i]), f32::from_bits(b[j]));
                    sums[i][j] = multiply_add::<FMA>(a, b, sums[i][j]);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate().take(rows) {
            let c = c.row(i, columns);
            // A whole row first: its length is known, so it is a few vectors.
            if let Ok(c) = <&mut [f32; C]>::try_from(&mut *c) {
                (0..C).for_each(|j| c[j] = if add { c[j] + sums[j] } else { sums[j] });
            } else {
                c.iter_mut().zip(sums).for_each(|(c, sum)| *c = if add { *c + sum } else { *sum });
            }
        }
    }
}

#[inline(always)]
fn pack<const W: usize>(panel: &mut [u32], from: View<'_>, rows: usize, elements: usize, bf16: bool) {
    let put = |x: f32| if bf16 { Bf16::round(x).value().to_bits() } else { x.to_bits() };
    let lines = panel.chunks_exact_mut(W).take(elements);
    match from.data {
        Elements::F32(x) if from.row == 1 && rows == W => {
            for (k, line) in lines.enumerate() {
                let source = &x[k * from.column..][..W];
                (0..W).for_each(|i| line[i] = put(source[i]));
            }
        }
        _ => {
            for (k, line) in lines.enumerate() {
                line[rows..].fill(0);
                (0..rows).for_each(|i| line[i] = put(from.get(i, k)));
            }
        }
    }
}
