//! Attention of single queries over a cache in blocks, as decoding needs it.
//!
//! A task is a query with some key heads: it reads each key and each value once for all query heads of their key head, in the
//! order in which they lie in memory.
//! The keys of a block lie beside each other for each of their elements, so that a score is a lane of a sum of
//! vectors and no lanes are added up. Numbers that are kept in bf16 are widened as they are read.

use super::vectors;
use crate::kernels::isa::{AHEAD, LINE, has_avx512, multiply_add, prefetch, simd};
use crate::kernels::kv::{Blocks, Kept};
use crate::kernels::pool::{Parts, Pool};
use crate::kernels::{Attention, BLOCK, Cached, Seen};
use std::cell::RefCell;
use std::ops::Range;

/// Query heads that are computed together: as many sums as fit in the registers.
const HEADS: usize = 4;

/// Elements of a value that are summed together, times vectors beside each other where heads leave registers for them.
const LANES: usize = 16;

/// Scores that a task holds at a time, at most, unless those of one key head are more: they stay in a cache.
const SCORES_MOST: usize = 1 << 16;

/// Products that all tasks together must have for threads to be worth waking.
const WORTH_THREADS: usize = 1 << 17;

thread_local! {
    /// Scores of a task's query heads, `[heads, keys up to a whole block]`; kept from call to call.
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
    // A few tasks for each thread, of key heads that lie beside each other.
    let parts = match pool.threads() {
        1 => 1,
        threads => (2 * threads).div_ceil(seen.len().max(1)),
    };
    let longest = seen.iter().map(|seen| seen.keys).max().unwrap_or(1);
    let most = (SCORES_MOST / (group * longest)).max(1);
    let wide = shape.kv_heads.div_ceil(parts).min(most);
    let parts = shape.kv_heads.div_ceil(wide);
    let task = |index: usize| {
        let (row, first) = (index / parts, index % parts * wide);
        let key_heads = first..shape.kv_heads.min(first + wide);
        let queries = row * shape.query_width() + key_heads.start * group * d
            ..row * shape.query_width() + key_heads.end * group * d;
        // SAFETY: every query's heads of every key head are met once.
        #[allow(unsafe_code)]
        let out = unsafe { out.get(queries.clone()) };
        let q = &q[queries];
        match cached {
            Cached::F32(blocks) => some(shape, out, q, key_heads, seen[row], blocks),
            Cached::Bf16(blocks) => some(shape, out, q, key_heads, seen[row], blocks),
        }
    };
    let tasks = seen.len() * parts;
    let products: usize = seen.iter().map(|seen| seen.keys * shape.query_width()).sum();
    if products < WORTH_THREADS { (0..tasks).for_each(task) } else { pool.run(tasks, &task) }
}

/// The query heads of some key heads: `out` and `q` are `[heads, D]`.
fn some<T: Kept>(
    shape: Attention,
    out: &mut [f32],
    q: &[f32],
    key_heads: Range<usize>,
    seen: Seen<'_>,
    cached: Blocks<'_, T>,
) {
    let (d, padded) = (shape.head_dim, seen.keys.next_multiple_of(BLOCK));
    let (group, table) = (shape.heads / shape.kv_heads, &seen.table[..padded / BLOCK]);
    let mut scores = SCORES.take();
    scores.resize(scores.len().max(out.len() / d * padded), 0.0);
    // Slabs of all these key heads of the first block, then of the next one. Blocks lie anywhere, so what comes is asked for a few
    // slabs ahead: first keys, then values.
    let wide = key_heads.len();
    let count = table.len() * wide;
    let slab = |index: usize| {
        let (block, head) = (index / wide, key_heads.start + index % wide);
        (table[block] as usize * shape.kv_heads + head) * d * BLOCK
    };
    let keys_of = |index: usize| &cached.k[slab(index)..][..d * BLOCK];
    let values_of = |index: usize| &cached.v[slab(index)..][..d * BLOCK];
    // Of each of these slabs, its first position, and which queries and scores meet it.
    let slabs = || (0..table.len()).flat_map(|block| (0..wide).map(move |head| (block * BLOCK, head)));
    let ahead = AHEAD.div_ceil(d * BLOCK * size_of::<T>());
    for (index, (at, head)) in slabs().enumerate() {
        let next = index + ahead;
        let next = if next < count { keys_of(next) } else { values_of((next - count).min(count - 1)) };
        let (q, scores) = (&q[head * group * d..][..group * d], &mut scores[head * group * padded..]);
        block_scores(scores, padded, at, q, keys_of(index), next, shape.scale());
    }
    for scores in scores.chunks_exact_mut(padded).take(q.len() / d) {
        vectors::softmax(&mut scores[..seen.keys], 1.0);
    }
    out.fill(0.0);
    for (index, (at, head)) in slabs().enumerate() {
        let keys = BLOCK.min(seen.keys - at);
        let next = values_of((index + ahead).min(count - 1));
        let (out, scores) = (&mut out[head * group * d..][..group * d], &scores[head * group * padded..]);
        block_sum(out, d, scores, padded, at, &values_of(index)[..keys * d], next);
    }
    SCORES.set(scores);
}

simd! {
    /// Scores of all heads of `q`, `[heads, D]`, with a block of keys, `[D, BLOCK]`: written at `at` of each head's row of
    /// `scores`, which is `stride` long. `next` comes later, and is as long.
    fn block_scores<T: Kept>(
        scores: &mut [f32],
        stride: usize,
        at: usize,
        q: &[f32],
        k: &[T],
        next: &[T],
        scale: f32,
    ) {
        let d = k.len() / BLOCK;
        for (q, scores) in q.chunks(HEADS * d).zip(scores.chunks_mut(HEADS * stride)) {
            let scores = &mut scores[at..];
            match q.len() / d {
                1 => scores_of::<FMA, 1, T>(scores, stride, q, k, next, scale),
                2 => scores_of::<FMA, 2, T>(scores, stride, q, k, next, scale),
                3 => scores_of::<FMA, 3, T>(scores, stride, q, k, next, scale),
                _ => scores_of::<FMA, HEADS, T>(scores, stride, q, k, next, scale),
            }
        }
    }
}

/// Even and odd elements of the keys have sums of their own.
#[inline(always)]
fn scores_of<const FMA: bool, const N: usize, T: Kept>(
    scores: &mut [f32],
    stride: usize,
    q: &[f32],
    k: &[T],
    next: &[T],
    scale: f32,
) {
    let d = k.len() / BLOCK;
    let q: [&[f32]; N] = std::array::from_fn(|n| &q[n * d..(n + 1) * d]);
    let mut sums = [[[0.0f32; BLOCK]; 2]; N];
    for (i, (k, next)) in
        k.as_chunks::<{ 2 * BLOCK }>().0.iter().zip(next.as_chunks::<{ 2 * BLOCK }>().0).enumerate()
    {
        ask_for(next);
        for half in 0..2 {
            let k: [f32; BLOCK] = std::array::from_fn(|j| k[half * BLOCK + j].value());
            for n in 0..N {
                let q = q[n][2 * i + half];
                for j in 0..BLOCK {
                    sums[n][half][j] = multiply_add::<FMA>(q, k[j], sums[n][half][j]);
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
    /// says; in the order of the keys. `next` comes later, and is as long at least.
    fn block_sum<T: Kept>(
        out: &mut [f32],
        d: usize,
        weights: &[f32],
        stride: usize,
        at: usize,
        v: &[T],
        next: &[T],
    ) {
        // A sum waits for the one before it, so as many go on beside each other as there are registers for.
        let has_room = has_avx512();
        for (out, weights) in out.chunks_mut(HEADS * d).zip(weights.chunks(HEADS * stride)) {
            let weights = &weights[at..];
            match (out.len() / d, has_room) {
                (1, _) => sum_of::<FMA, 1, 4, T>(out, d, weights, stride, v, next),
                (2, true) => sum_of::<FMA, 2, 4, T>(out, d, weights, stride, v, next),
                (2, false) => sum_of::<FMA, 2, 2, T>(out, d, weights, stride, v, next),
                (3, true) => sum_of::<FMA, 3, 4, T>(out, d, weights, stride, v, next),
                (3, false) => sum_of::<FMA, 3, 1, T>(out, d, weights, stride, v, next),
                (_, true) => sum_of::<FMA, HEADS, 4, T>(out, d, weights, stride, v, next),
                (_, false) => sum_of::<FMA, HEADS, 1, T>(out, d, weights, stride, v, next),
            }
        }
    }
}

/// Adds the values of `N` heads, `W` vectors of each at a time: whatever these are, an element's sum is the same.
#[inline(always)]
fn sum_of<const FMA: bool, const N: usize, const W: usize, T: Kept>(
    out: &mut [f32],
    d: usize,
    weights: &[f32],
    stride: usize,
    v: &[T],
    next: &[T],
) {
    let weights: [&[f32]; N] = std::array::from_fn(|n| &weights[n * stride..n * stride + v.len() / d]);
    let wide = d / (W * LANES) * (W * LANES);
    let mut first = 0;
    while first < wide {
        sum_lanes::<FMA, N, W, T>(out, d, first, weights, v, next);
        first += W * LANES;
    }
    while first < d / LANES * LANES {
        sum_lanes::<FMA, N, 1, T>(out, d, first, weights, v, next);
        first += LANES;
    }
    for i in first..d {
        for (n, weights) in weights.iter().enumerate() {
            for (weight, v) in weights.iter().zip(v.chunks_exact(d)) {
                out[n * d + i] = multiply_add::<FMA>(*weight, v[i].value(), out[n * d + i]);
            }
        }
    }
}

/// The same of the elements from `first` on, `W` vectors of them.
#[inline(always)]
fn sum_lanes<const FMA: bool, const N: usize, const W: usize, T: Kept>(
    out: &mut [f32],
    d: usize,
    first: usize,
    weights: [&[f32]; N],
    v: &[T],
    next: &[T],
) {
    let lanes = |row: &[f32]| -> [[f32; LANES]; W] {
        std::array::from_fn(|w| std::array::from_fn(|j| row[w * LANES + j]))
    };
    let mut sums: [[[f32; LANES]; W]; N] = std::array::from_fn(|n| lanes(&out[n * d + first..][..W * LANES]));
    for (s, (v, next)) in v.chunks_exact(d).zip(next.chunks_exact(d)).enumerate() {
        let v = &v[first..first + W * LANES];
        ask_for(&next[first..first + W * LANES]);
        for w in 0..W {
            let v: [f32; LANES] = std::array::from_fn(|j| v[w * LANES + j].value());
            for n in 0..N {
                for j in 0..LANES {
                    sums[n][w][j] = multiply_add::<FMA>(weights[n][s], v[j], sums[n][w][j]);
                }
            }
        }
    }
    for (out, sums) in out.chunks_exact_mut(d).zip(sums) {
        out[first..first + W * LANES].copy_from_slice(sums.as_flattened());
    }
}

/// Asks for all of it.
#[inline(always)]
fn ask_for<T>(next: &[T]) {
    for line in next.chunks(LINE / size_of::<T>()) {
        prefetch(line.as_ptr());
    }
}
