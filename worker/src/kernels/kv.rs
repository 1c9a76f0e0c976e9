//! Cached keys and values in the host's memory.

use super::{BLOCK, Bf16, CacheShape, Seen};
use std::ops::Range;

/// A number as it is kept: an `f32`, or the bits of a [`Bf16`], which zeroed memory is 0 of.
pub trait Kept: Copy + Send + Sync + 'static {
    /// The nearest one.
    fn keep(x: f32) -> Self;
    /// Its value, exactly.
    fn value(self) -> f32;
}

impl Kept for f32 {
    #[inline(always)]
    fn keep(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn value(self) -> f32 {
        self
    }
}

impl Kept for u16 {
    #[inline(always)]
    fn keep(x: f32) -> u16 {
        Bf16::round(x).0
    }

    #[inline(always)]
    fn value(self) -> f32 {
        Bf16(self).value()
    }
}

/// Keys and values of one layer, in blocks of [`BLOCK`] positions that any sequence may use.
#[derive(Clone, Copy)]
pub struct Blocks<'a, T> {
    /// Rotated keys, `[blocks, KV, D, BLOCK]`: the scores of a block are one sum of vectors.
    pub k: &'a [T],
    /// Values, `[blocks, KV, BLOCK, D]`.
    pub v: &'a [T],
}

/// One layer, in whichever numbers.
#[derive(Clone, Copy)]
pub enum Cached<'a> {
    /// In single precision.
    F32(Blocks<'a, f32>),
    /// In half the memory, as the bits of [`Bf16`].
    Bf16(Blocks<'a, u16>),
}

/// Keys and values of all layers, in a fixed number of blocks of [`BLOCK`] positions.
///
/// A sequence has a table: its position `p` lies in block `table[p / BLOCK]`. Who may use which block is not decided
/// here. Memory is taken from the system when a block is first written.
pub struct KvBlocks {
    layers: Layers,
    kv_heads: usize,
    head_dim: usize,
}

/// For every layer its keys and its values, see [`Blocks`].
enum Layers {
    F32(Vec<[Vec<f32>; 2]>),
    Bf16(Vec<[Vec<u16>; 2]>),
}

impl KvBlocks {
    /// So much room; `narrow`: in bf16.
    pub fn new(CacheShape { layers, blocks, kv_heads, head_dim }: CacheShape, narrow: bool) -> KvBlocks {
        let elements = blocks * BLOCK * kv_heads * head_dim;
        let layers = match narrow {
            false => Layers::F32((0..layers).map(|_| [vec![0.0; elements], vec![0.0; elements]]).collect()),
            true => Layers::Bf16((0..layers).map(|_| [vec![0; elements], vec![0; elements]]).collect()),
        };
        KvBlocks { layers, kv_heads, head_dim }
    }

    /// One layer.
    pub fn layer(&self, layer: usize) -> Cached<'_> {
        match &self.layers {
            Layers::F32(layers) => Cached::F32(Blocks { k: &layers[layer][0], v: &layers[layer][1] }),
            Layers::Bf16(layers) => Cached::Bf16(Blocks { k: &layers[layer][0], v: &layers[layer][1] }),
        }
    }

    /// Writes keys and values `[rows, KV, D]` of one layer, each at the last position that its row sees.
    pub fn write(&mut self, layer: usize, rows: &[Seen<'_>], k: &[f32], v: &[f32]) {
        let shape = (self.kv_heads, self.head_dim);
        match &mut self.layers {
            Layers::F32(layers) => write(&mut layers[layer], shape, rows, k, v),
            Layers::Bf16(layers) => write(&mut layers[layer], shape, rows, k, v),
        }
    }

    /// Reads keys and values of some positions of one layer into `[positions, KV, D]`.
    pub fn read(&self, layer: usize, table: &[u32], positions: Range<usize>, k: &mut [f32], v: &mut [f32]) {
        let shape = (self.kv_heads, self.head_dim);
        match &self.layers {
            Layers::F32(layers) => read(&layers[layer], shape, table, positions, k, v),
            Layers::Bf16(layers) => read(&layers[layer], shape, table, positions, k, v),
        }
    }
}

fn write<T: Kept>(
    [cached_k, cached_v]: &mut [Vec<T>; 2],
    (kv_heads, d): (usize, usize),
    rows: &[Seen<'_>],
    k: &[f32],
    v: &[f32],
) {
    let width = kv_heads * d;
    let keep = |(cached, x): (&mut T, &f32)| *cached = T::keep(*x);
    for (seen, (k, v)) in rows.iter().zip(k.chunks_exact(width).zip(v.chunks_exact(width))) {
        let (block, slot) = place(seen.table, seen.keys - 1);
        for (head, (k, v)) in k.chunks_exact(d).zip(v.chunks_exact(d)).enumerate() {
            let slab = (block * kv_heads + head) * d * BLOCK;
            let cached_k = &mut cached_k[slab..slab + d * BLOCK];
            cached_k.iter_mut().skip(slot).step_by(BLOCK).zip(k).for_each(keep);
            cached_v[slab + slot * d..slab + (slot + 1) * d].iter_mut().zip(v).for_each(keep);
        }
    }
}

fn read<T: Kept>(
    [cached_k, cached_v]: &[Vec<T>; 2],
    (kv_heads, d): (usize, usize),
    table: &[u32],
    positions: Range<usize>,
    k: &mut [f32],
    v: &mut [f32],
) {
    let width = kv_heads * d;
    let give = |(x, cached): (&mut f32, &T)| *x = cached.value();
    let rows = k.chunks_exact_mut(width).zip(v.chunks_exact_mut(width));
    for (position, (k, v)) in positions.zip(rows) {
        let (block, slot) = place(table, position);
        for (head, (k, v)) in k.chunks_exact_mut(d).zip(v.chunks_exact_mut(d)).enumerate() {
            let slab = (block * kv_heads + head) * d * BLOCK;
            let cached_k = &cached_k[slab..slab + d * BLOCK];
            k.iter_mut().zip(cached_k.iter().skip(slot).step_by(BLOCK)).for_each(give);
            v.iter_mut().zip(&cached_v[slab + slot * d..slab + (slot + 1) * d]).for_each(give);
        }
    }
}

fn place(table: &[u32], position: usize) -> (usize, usize) {
    (table[position / BLOCK] as usize, position % BLOCK)
}
