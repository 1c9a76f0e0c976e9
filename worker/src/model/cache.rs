//! Memory for keys and values, in blocks that any sequence may use.

use super::ModelConfig;
use crate::kernels::{BLOCK, Cached};
use std::ops::Range;

/// Keys and values of all layers, in a fixed number of blocks of [`BLOCK`] positions.
///
/// A sequence has a table: its position `p` lies in block `table[p / BLOCK]`. Who may use which block is not decided
/// here. Memory is taken from the system when a block is first written.
pub struct KvBlocks {
    /// For every layer, keys `[blocks, KV, D, BLOCK]` and values `[blocks, KV, BLOCK, D]`.
    layers: Vec<(Vec<f32>, Vec<f32>)>,
    blocks: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl KvBlocks {
    /// So many blocks for a model of this shape.
    pub fn new(config: &ModelConfig, blocks: usize) -> KvBlocks {
        let (kv_heads, head_dim) = (config.num_key_value_heads, config.head_dim);
        let elements = blocks * BLOCK * kv_heads * head_dim;
        let layer = || (vec![0.0; elements], vec![0.0; elements]);
        KvBlocks {
            layers: std::iter::repeat_with(layer).take(config.num_hidden_layers).collect(),
            blocks,
            kv_heads,
            head_dim,
        }
    }

    /// Blocks.
    pub fn len(&self) -> usize {
        self.blocks
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// Bytes that a block of a model of this shape takes, in all layers.
    pub fn block_bytes(config: &ModelConfig) -> usize {
        config.num_hidden_layers * 2 * BLOCK * config.key_width() * size_of::<f32>()
    }

    /// One layer.
    pub fn layer(&self, layer: usize) -> Cached<'_> {
        let (k, v) = &self.layers[layer];
        Cached { k, v }
    }

    /// Writes keys and values `[positions, KV, D]` of one layer from position `start` on.
    pub fn write(&mut self, layer: usize, table: &[u32], start: usize, k: &[f32], v: &[f32]) {
        let (d, width) = (self.head_dim, self.kv_heads * self.head_dim);
        let (cached_k, cached_v) = &mut self.layers[layer];
        for (i, (k, v)) in k.chunks_exact(width).zip(v.chunks_exact(width)).enumerate() {
            let (block, slot) = place(table, start + i);
            for head in 0..self.kv_heads {
                let slab = (block * self.kv_heads + head) * d * BLOCK;
                let (k, v) = (&k[head * d..(head + 1) * d], &v[head * d..(head + 1) * d]);
                let cached_k = &mut cached_k[slab..slab + d * BLOCK];
                cached_k.iter_mut().skip(slot).step_by(BLOCK).zip(k).for_each(|(cached, k)| *cached = *k);
                cached_v[slab + slot * d..slab + (slot + 1) * d].copy_from_slice(v);
            }
        }
    }

    /// Reads keys and values of some positions of one layer into `[positions, KV, D]`.
    pub fn read(&self, layer: usize, table: &[u32], positions: Range<usize>, k: &mut [f32], v: &mut [f32]) {
        let (d, width) = (self.head_dim, self.kv_heads * self.head_dim);
        let (cached_k, cached_v) = &self.layers[layer];
        let rows = k.chunks_exact_mut(width).zip(v.chunks_exact_mut(width));
        for (position, (k, v)) in positions.zip(rows) {
            let (block, slot) = place(table, position);
            for head in 0..self.kv_heads {
                let slab = (block * self.kv_heads + head) * d * BLOCK;
                let (k, v) = (&mut k[head * d..(head + 1) * d], &mut v[head * d..(head + 1) * d]);
                let cached_k = &cached_k[slab..slab + d * BLOCK];
                k.iter_mut()
                    .zip(cached_k.iter().skip(slot).step_by(BLOCK))
                    .for_each(|(k, cached)| *k = *cached);
                v.copy_from_slice(&cached_v[slab + slot * d..slab + (slot + 1) * d]);
            }
        }
    }
}

fn place(table: &[u32], position: usize) -> (usize, usize) {
    (table[position / BLOCK] as usize, position % BLOCK)
}
