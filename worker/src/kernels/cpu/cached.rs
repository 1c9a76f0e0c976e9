//! Attention of single queries over a cache in blocks, as decoding needs it.
//!
//! A task is a query with one key head: it reads each key and each value once for all query heads of that key head.
//! The keys of a block lie beside each other for each of their elements, so that a score is a lane of a sum of
//! vectors and no lanes are added up.

use super::vectors;
use crate::kernels::isa::{multiply_add, prefetch, simd};
use crate::kernels::pool::{Parts, Pool};
use crate::kernels::{Attention, BLOCK, Cached, Seen};
use std::cell::RefCell;

/// Query heads that are computed together: as many sums as fit in the registers.
const HEADS: usize = 4;

/// Elements of a value that are summed together.
const LANES: usize = 16;

/// Products that all tasks together must have for threads to be worth waking.
const WORTH_THREADS: usize = 1 << 17;

thread_local! {
    /// Scores of the query heads of one key head, `[heads, keys up to a whole block]`; kept from call to call.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// See [`reference::attention_cached`](crate::kernels::reference::attention_cached).
pub fn forward(
    pool: &Pool,
    shape: Attention,
    out: &mut [f32],
    q: &[f32],
    seen: &[Seen<'_>],
    cached: Cached<'_>,
) {
    let (d, group) = (shape.head_dim, shape.heads / shape.kv_heads);
    let out = Parts::new(out);
    let task = |index: usize| {
        let (row, key_head) = (index / shape.kv_heads, index % shape.kv_heads);
        let start = row * shape.query_width() + key_head * group * d;
        // SAFETY: every query's heads of every key head are met once.
        #[allow(unsafe_code)]
        let out = unsafe { out.get(start..start + group * d) };
        one(shape, out, &q[start..start + group * d], key_head, seen[row], cached);
    };
    let tasks = seen.len() * shape.kv_heads;
    let products: usize = seen.iter().map(|seen| seen.keys * shape.query_width()).sum();
    if products < WORTH_THREADS { (0..tasks).for_each(task) } else { pool.run(tasks, &task) }
}

/// The query heads of one key head: `out` and `q` are `[heads, D]`.
fn one(shape: Attention, out: &mut [f32], q: &[f32], key_head: usize, seen: Seen<'_>, cached: Cached<'_>) {
    let (d, padded) = (shape.head_dim, seen.keys.next_multiple_of(BLOCK));
    let slab = |block: u32| (block as usize * shape.kv_heads + key_head) * d * BLOCK;
    let table = &seen.table[..padded / BLOCK];
    let mut scores = SCORES.take();
    scores.resize(scores.len().max(out.len() / d * padded), 0.0);
    let keys_of = |index: usize| &cached.k[slab(table[index])..][..d * BLOCK];
    let values_of = |index: usize| &cached.v[slab(table[index])..][..d * BLOCK];
    let last = table.len() - 1;
    for index in 0..=last {
        let next = if index < last { keys_of(index + 1) } else { values_of(0) };
        block_scores(&mut scores, padded, index * BLOCK, q, keys_of(index), next, shape.scale());
    }
    for scores in scores.chunks_exact_mut(padded).take(q.len() / d) {
        vectors::softmax(&mut scores[..seen.keys], 1.0);
    }
    out.fill(0.0);
    for index in 0..=last {
        let keys = BLOCK.min(seen.keys - index * BLOCK);
        let next = values_of(last.min(index + 1));
        block_sum(out, d, &scores, padded, index * BLOCK, &values_of(index)[..keys * d], next);
    }
    SCORES.set(scores);
}

simd! {
    /// Scores of all heads of `q`, `[heads, D]`, with a block of keys, `[D, BLOCK]`: written at `at` of each head's row of
    /// `scores`, which is `stride` long.
    fn block_scores(
        scores: &mut [f32],
        stride: usize,
        at: usize,
        q: &[f32],
        k: &[f32],
        next: &[f32],
        scale: f32,
    ) {
        let d = k.len() / BLOCK;
        for (q, scores) in q.chunks(HEADS * d).zip(scores.chunks_mut(HEADS * stride)) {
            let scores = &mut scores[at..];
            match q.len() / d {
                1 => scores_of::<FMA, 1>(scores, stride, q, k, next, scale),
                2 => scores_of::<FMA, 2>(scores, stride, q, k, next, scale),
                3 => scores_of::<FMA, 3>(scores, stride, q, k, next, scale),
                _ => scores_of::<FMA, HEADS>(scores, stride, q, k, next, scale),
            }
        }
    }
}

/// Even and odd elements of the keys have sums of their own.
#[inline(always)]
fn scores_of<const FMA: bool, const N: usize>(
    scores: &mut [f32],
    stride: usize,
    q: &[f32],
    k: &[f32],
    next: &[f32],
    scale: f32,
) {
    let d = k.len() / BLOCK;
    let q: [&[f32]; N] = std::array::from_fn(|n| &q[n * d..(n + 1) * d]);
    let mut sums = [[[0.0f32; BLOCK]; 2]; N];
    for (i, (k, next)) in
        k.as_chunks::<{ 2 * BLOCK }>().0.iter().zip(next.as_chunks::<{ 2 * BLOCK }>().0).enumerate()
    {
        prefetch(next);
        prefetch(&next[BLOCK]);
        for n in 0..N {
            for half in 0..2 {
                let q = q[n][2 * i + half];
                for j in 0..BLOCK {
                    sums[n][half][j] = multiply_add::<FMA>(q, k[half * BLOCK + j], sums[n][half][j]);
                }
            }
        }
    }
    for (n, [even, odd]) in sums.iter().enumerate() {
        let scores = &mut scores[n * stride..n * stride + BLOCK];
        for j in 0..BLOCK {
            scores[j] = scale * (even[j] + odd[j]);
        }
    }
}

simd! {
    /// Adds a block of values, `[keys, D]`, to `out`, `[heads, D]`, each as often as `at` of its head's row of `weights`
    /// says; in the order of the keys.
    fn block_sum(
        out: &mut [f32],
        d: usize,
        weights: &[f32],
        stride: usize,
        at: usize,
        v: &[f32],
        next: &[f32],
    ) {
        for (out, weights) in out.chunks_mut(HEADS * d).zip(weights.chunks(HEADS * stride)) {
            let weights = &weights[at..];
            match out.len() / d {
                1 => sum_of::<FMA, 1>(out, d, weights, stride, v, next),
                2 => sum_of::<FMA, 2>(out, d, weights, stride, v, next),
                3 => sum_of::<FMA, 3>(out, d, weights, stride, v, next),
                _ => sum_of::<FMA, HEADS>(out, d, weights, stride, v, next),
            }
        }
    }
}

#[inline(always)]
fn sum_of<const FMA: bool, const N: usize>(
    out: &mut [f32],
    d: usize,
    weights: &[f32],
    stride: usize,
    v: &[f32],
    next: &[f32],
) {
    let weights: [&[f32]; N] = std::array::from_fn(|n| &weights[n * stride..n * stride + v.len() / d]);
    for first in (0..d / LANES * LANES).step_by(LANES) {
        let mut sums: [[f32; LANES]; N] =
            std::array::from_fn(|n| *out[n * d + first..].first_chunk().expect("whole lanes"));
        for (s, (v, next)) in v.chunks_exact(d).zip(next.chunks_exact(d)).enumerate() {
            let v: &[f32; LANES] = v[first..].first_chunk().expect("whole lanes");
            prefetch(&next[first]);
            for n in 0..N {
                for j in 0..LANES {
                    sums[n][j] = multiply_add::<FMA>(weights[n][s], v[j], sums[n][j]);
                }
            }
        }
        for n in 0..N {
            out[n * d + first..n * d + first + LANES].copy_from_slice(&sums[n]);
        }
    }
    for i in d / LANES * LANES..d {
        for (n, weights) in weights.iter().enumerate() {
            for (weight, v) in weights.iter().zip(v.chunks_exact(d)) {
                out[n * d + i] = multiply_add::<FMA>(*weight, v[i], out[n * d + i]);
            }
        }
    }
}
