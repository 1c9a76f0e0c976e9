//! Panels for AMX: 32 x 32 sums in four of its eight tiles.
#![allow(unsafe_code)]

use super::avx512::{keep_pairs, pack_pairs};
use super::{Instructions, Tile, View};
use crate::kernels::amx::{self, TILE};

const ROWS: usize = 32;
const COLUMNS: usize = 32;
/// 16 pairs.
const LANE: usize = 32;
const WORDS: usize = TILE;
/// `ROWS * DEPTH * WORDS * 4` bytes of a panel of `a` take two thirds of the first-level cache.
const DEPTH: usize = 16;

/// Lanes of 32 bf16.
pub struct Tiles(amx::Tiles);

impl Instructions for Tiles {
    const ROWS: usize = ROWS;
    const COLUMNS: usize = COLUMNS;
    const LANE: usize = LANE;
    const WORDS: usize = WORDS;
    const DEPTH: usize = DEPTH;

    fn begin() -> Tiles {
        // SAFETY: the instructions were found before this module was chosen.
        Tiles(unsafe { amx::Tiles::new() })
    }

    /// Word `w` of lane `l` of row `i` at `panel[(l * ROWS + i) * WORDS + w]`.
    fn pack_a(panel: &mut [u32], from: View<'_>, rows: usize, elements: usize, _: bool) {
        keep_pairs::<ROWS>(panel, from, rows, elements);
    }

    /// Word `w` of lane `l` of column `j` at `panel[(l * WORDS + w) * COLUMNS + j]`.
    fn pack_b(panel: &mut [u32], from: View<'_>, columns: usize, elements: usize, _: bool) {
        pack_pairs::<COLUMNS>(panel, from, columns, elements);
        let (pairs, whole) = (elements.div_ceil(2), elements.div_ceil(LANE) * WORDS);
        panel[pairs * COLUMNS..whole * COLUMNS].fill(0);
    }

    fn tile(&self, depth: usize, [a, b]: [&[u32]; 2], c: Tile, rows: usize, columns: usize, add: bool) {
        assert!(0 < depth && ROWS * WORDS * depth <= a.len() && COLUMNS * WORDS * depth <= b.len());
        let panels = [a.as_ptr(), b.as_ptr()];
        let product = if rows <= TILE { amx::product::<false> } else { amx::product::<true> };
        for i in 0..rows {
            let at = c.start.wrapping_add(i * c.stride).cast();
            amx::prefetch_to_second(at);
            amx::prefetch_to_second(at.wrapping_add(64));
        }
        if columns == COLUMNS && (rows == TILE || rows == ROWS) {
            // SAFETY: the panels are as deep as asserted, and the result has so many rows and columns.
            return unsafe { product(&self.0, depth, panels, c.start, 4 * c.stride, add) };
        }
        let mut whole = [0.0f32; ROWS * COLUMNS];
        if add {
            (0..rows).for_each(|i| whole[i * COLUMNS..][..columns].copy_from_slice(c.row(i, columns)));
        }
        // SAFETY: the panels are as deep as asserted, and the tile is whole.
        unsafe { product(&self.0, depth, panels, whole.as_mut_ptr(), 4 * COLUMNS, add) };
        (0..rows).for_each(|i| c.row(i, columns).copy_from_slice(&whole[i * COLUMNS..][..columns]));
    }
}
