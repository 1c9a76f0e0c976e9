//! Causal attention in tiles of queries and keys, so that a tile of scores stays in the cache and memory is linear in
//! the length.
//!
//! Source: Dao et al., "FlashAttention", arXiv 2205.14135, algorithms 1 and 4, and "FlashAttention-2",
//! arXiv 2307.08691, section 3.1, for dividing once at the end.

use super::vectors;
use crate::kernels::Isa;
use crate::kernels::gemm::{Product, View};
use crate::kernels::pool::{Parts, Pool};
use crate::kernels::{Attention, Precision, Qkv, QkvGradient};
use std::cell::RefCell;
use std::ops::Range;

/// Keys in a tile.
const KEYS: usize = 512;

/// Queries in a tile: more of them share a packed tile of keys, but more scores beyond the diagonal are thrown away,
/// which matters in short sequences. Where products take little, packing decides.
fn queries_in_a_tile(shape: Attention, precision: Precision) -> usize {
    let short = if precision != Precision::F32 && Isa::best().multiplies_tiles() { 128 } else { 56 };
    if shape.keys() < 1024 { short } else { 2 * short }
}

/// What the backward pass reads, in the shapes of [`Kernels::attention_backward`](crate::kernels::Kernels).
pub struct Known<'a> {
    pub inputs: Qkv<'a>,
    pub out: &'a [f32],
    pub dout: &'a [f32],
    pub log_sum: &'a [f32],
}

/// Memory of one thread, kept from one call to the next.
#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    /// Gradients of the scores.
    dscores: Vec<f32>,
    /// Sums over the tiles of a block of queries, `[rows, D]`.
    sums: Vec<f32>,
    /// Gradients of keys and values of one key head, `[S, D]`.
    dk: Vec<f32>,
    dv: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Consecutive queries of one head.
struct Block {
    shape: Attention,
    precision: Precision,
    head: usize,
    rows: Range<usize>,
}

impl Block {
    fn of(shape: Attention, precision: Precision, head: usize, index: usize) -> Block {
        let size = queries_in_a_tile(shape, precision);
        Block { shape, precision, head, rows: index * size..shape.queries.min((index + 1) * size) }
    }

    fn len(&self) -> usize {
        self.rows.len()
    }

    /// The tiles of keys that a query of the block sees.
    fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let end = self.shape.start + self.rows.end;
        (0..end).step_by(KEYS).map(move |first| first..end.min(first + KEYS))
    }

    /// Keys of a tile that row `row` of the block sees.
    fn visible(&self, row: usize, keys: &Range<usize>) -> usize {
        (self.shape.start + self.rows.start + row + 1).saturating_sub(keys.start).min(keys.len())
    }

    /// The block's rows of a matrix in the shape of the queries: `[rows, D]`.
    fn query_rows<'a>(&self, q: &'a [f32]) -> View<'a> {
        View::rows(&q[self.query(self.rows.start)..], self.shape.query_width())
    }

    /// Where the head's part of query `query` starts.
    fn query(&self, query: usize) -> usize {
        query * self.shape.query_width() + self.head * self.shape.head_dim
    }

    /// Rows of a matrix in the shape of the keys, of the head's key head: `[keys, D]`.
    fn key_rows<'a>(&self, k: &'a [f32], keys: &Range<usize>) -> View<'a> {
        let start =
            keys.start * self.shape.key_width() + self.shape.key_head(self.head) * self.shape.head_dim;
        View::rows(&k[start..], self.shape.key_width())
    }

    /// `scores[rows, keys] = q * k^T`, for any two matrices in the shapes of queries and keys.
    fn scores(&self, scores: &mut [f32], q: &[f32], k: &[f32], keys: &Range<usize>) {
        let (a, b) = (self.query_rows(q), self.key_rows(k, keys).transpose());
        self.product([self.len(), keys.len(), self.shape.head_dim], a, b).run_here(scores, keys.len(), false);
    }

    fn product<'a>(&self, [m, n, k]: [usize; 3], a: View<'a>, b: View<'a>) -> Product<'a> {
        Product { m, n, k, a, b, precision: self.precision }
    }
}

/// See [`reference::attention_forward`](crate::kernels::reference::attention_forward).
pub fn forward(
    pool: &Pool,
    precision: Precision,
    shape: Attention,
    out: &mut [f32],
    log_sum: &mut [f32],
    inputs: Qkv<'_>,
) {
    let blocks = shape.queries.div_ceil(queries_in_a_tile(shape, precision));
    let (out, log_sum) = (Parts::new(out), Parts::new(log_sum));
    pool.run(shape.heads * blocks, &|index| {
        // The longest blocks first, so that no thread is left with one at the end.
        let block = Block::of(shape, precision, index % shape.heads, blocks - 1 - index / shape.heads);
        let mut scratch = SCRATCH.take();
        forward_block(&block, &mut scratch, &out, &log_sum, inputs);
        SCRATCH.set(scratch);
    });
}

fn forward_block(
    block: &Block,
    scratch: &mut Scratch,
    out: &Parts<'_, f32>,
    log_sum: &Parts<'_, f32>,
    inputs: Qkv<'_>,
) {
    let (d, shape) = (block.shape.head_dim, block.shape);
    let Scratch { scores, sums, .. } = scratch;
    let sums = room(sums, block.len() * d);
    let (mut maxima, mut denominators) = (vec![f32::NEG_INFINITY; block.len()], vec![0.0f32; block.len()]);
    for keys in block.tiles() {
        let scores = room(scores, block.len() * keys.len());
        block.scores(scores, inputs.q, inputs.k, &keys);
        for (row, scores) in scores.chunks_exact_mut(keys.len()).enumerate() {
            let (visible, hidden) = scores.split_at_mut(block.visible(row, &keys));
            hidden.fill(0.0);
            if visible.is_empty() {
                continue;
            }
            let max = maxima[row].max(vectors::max(visible) * shape.scale());
            let shrink = (maxima[row] - max).exp();
            let sum = vectors::exp_scaled(visible, shape.scale(), max);
            denominators[row] = denominators[row] * shrink + sum;
            maxima[row] = max;
            if 0 < keys.start && shrink < 1.0 {
                vectors::scale(&mut sums[row * d..(row + 1) * d], shrink);
            }
        }
        let p = View::rows(scores, keys.len());
        let product = block.product([block.len(), d, keys.len()], p, block.key_rows(inputs.v, &keys));
        product.run_here(sums, d, 0 < keys.start);
    }
    for (row, sums) in sums.chunks_exact(d).enumerate() {
        let query = block.rows.start + row;
        let (at, index) = (block.query(query), query * shape.heads + block.head);
        // SAFETY: every query of every head is met once.
        #[allow(unsafe_code)]
        let (out, log_sum) = unsafe { (out.get(at..at + d), log_sum.get(index..index + 1)) };
        out.copy_from_slice(sums);
        vectors::scale(out, 1.0 / denominators[row]);
        log_sum[0] = maxima[row] + denominators[row].ln();
    }
}

/// See [`reference::attention_backward`](crate::kernels::reference::attention_backward).
///
/// A key head is one task: its gradients are sums over queries, in their order.
pub fn backward(
    pool: &Pool,
    precision: Precision,
    shape: Attention,
    gradient: QkvGradient<'_>,
    known: Known<'_>,
) {
    let (d, width) = (shape.head_dim, shape.key_width());
    let blocks = shape.queries.div_ceil(queries_in_a_tile(shape, precision));
    let (dq, dk, dv) = (Parts::new(gradient.q), Parts::new(gradient.k), Parts::new(gradient.v));
    pool.run(shape.kv_heads, &|key_head| {
        let mut scratch = SCRATCH.take();
        for sums in [&mut scratch.dk, &mut scratch.dv] {
            sums.clear();
            sums.resize(shape.keys() * d, 0.0);
        }
        for head in (0..shape.heads).filter(|&head| shape.key_head(head) == key_head) {
            for index in 0..blocks {
                let block = Block::of(shape, precision, head, index);
                backward_block(&block, &mut scratch, &dq, &known);
            }
        }
        for (part, sums) in [(&dk, &scratch.dk), (&dv, &scratch.dv)] {
            for (key, sums) in sums.chunks_exact(d).enumerate() {
                let at = key * width + key_head * d;
                // SAFETY: every key of every key head is met once.
                #[allow(unsafe_code)]
                unsafe { part.get(at..at + d) }.copy_from_slice(sums);
            }
        }
        SCRATCH.set(scratch);
    });
}

fn backward_block(block: &Block, scratch: &mut Scratch, dq: &Parts<'_, f32>, known: &Known<'_>) {
    let (d, n, shape) = (block.shape.head_dim, block.len(), block.shape);
    let Scratch { scores, dscores, sums, dk, dv } = scratch;
    let sums = room(sums, n * d);
    let delta = |query: usize| {
        let at = block.query(query);
        vectors::dot(&known.dout[at..at + d], &known.out[at..at + d])
    };
    let deltas: Vec<f32> = block.rows.clone().map(delta).collect();
    for keys in block.tiles() {
        let p = room(scores, n * keys.len());
        let ds = room(dscores, n * keys.len());
        block.scores(p, known.inputs.q, known.inputs.k, &keys);
        block.scores(ds, known.dout, known.inputs.v, &keys);
        for (row, (p, ds)) in p.chunks_exact_mut(keys.len()).zip(ds.chunks_exact_mut(keys.len())).enumerate()
        {
            let log_sum = known.log_sum[(block.rows.start + row) * shape.heads + block.head];
            let visible = block.visible(row, &keys);
            p[visible..].fill(0.0);
            ds[visible..].fill(0.0);
            let (p, ds) = (&mut p[..visible], &mut ds[..visible]);
            vectors::score_gradient(p, ds, shape.scale(), log_sum, deltas[row]);
        }
        let (dk, dv) = (&mut dk[keys.start * d..keys.end * d], &mut dv[keys.start * d..keys.end * d]);
        let (p, ds) = (View::rows(p, keys.len()), View::rows(ds, keys.len()));
        let (dout, q) = (block.query_rows(known.dout), block.query_rows(known.inputs.q));
        block.product([keys.len(), d, n], p.transpose(), dout).run_here(dv, d, true);
        block.product([keys.len(), d, n], ds.transpose(), q).run_here(dk, d, true);
        let k = block.key_rows(known.inputs.k, &keys);
        block.product([n, d, keys.len()], ds, k).run_here(sums, d, 0 < keys.start);
    }
    for (query, sums) in block.rows.clone().zip(sums.chunks_exact(d)) {
        let at = block.query(query);
        // SAFETY: every query of every head is met once.
        #[allow(unsafe_code)]
        unsafe { dq.get(at..at + d) }.copy_from_slice(sums);
    }
}

/// The first `len` elements, of any content.
fn room(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
