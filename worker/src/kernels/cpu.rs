//! Kernels for processors: the loops of the reference in shapes that the compiler turns into vectors.
//!
//! Sums run in [`LANES`] fixed lanes that are added up in a fixed order at the end. Elements that need only
//! their own inputs (rotation, embedding, AdamW) are the reference's own functions.

use super::gemm::{Size, View, gemm};
use super::{AdamW, Attention, Kernels, Linear, MAX_DECODE_ROWS, Qkv, QkvGradient, reference};

/// Lanes of a sum: one vector of AVX-512, two of AVX2, four of SSE or NEON.
const LANES: usize = 16;

/// Query rows that attention handles at a time: bounds its memory to `ATTENTION_ROWS * S` scores.
const ATTENTION_ROWS: usize = 64;

/// The instructions that the inner loops are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What the compiler assumes everywhere.
    Portable,
}

/// The best instructions that this processor has. The answer is cached by the standard library.
pub fn isa() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return Isa::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Isa::Avx2;
        }
    }
    Isa::Portable
}

/// `a * b + c`, fused where the instruction exists: the library call that stands in for it elsewhere is slow.
#[inline(always)]
pub fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Compiles a function once for each [`Isa`] and calls the best one. Inside, `FMA` says whether
/// [`multiply_add`] is fused.
macro_rules! simd {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $return:ty)? $body:block) => {
        $(#[$meta])*
        fn $name($($arg: $type),*) $(-> $return)? {
            #[inline(always)]
            #[allow(non_snake_case)]
            fn body<const FMA: bool>($($arg: $type),*) $(-> $return)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            fn avx512($($arg: $type),*) $(-> $return)? { body::<true>($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) $(-> $return)? { body::<true>($($arg),*) }
            match isa() {
                // SAFETY: `isa` found the instructions on this processor.
                #[cfg(target_arch = "x86_64")]
                #[allow(unsafe_code)]
                Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: `isa` found the instructions on this processor.
                #[cfg(target_arch = "x86_64")]
                #[allow(unsafe_code)]
                Isa::Avx2 => unsafe { avx2($($arg),*) },
                Isa::Portable => body::<false>($($arg),*),
            }
        }
    };
}

/// The backend that trains and serves on processors.
pub struct Cpu {
    threads: usize,
}

impl Cpu {
    /// Splits large operations over `threads` threads, at least one. The results do not depend on it.
    pub fn new(threads: usize) -> Cpu {
        Cpu { threads: threads.max(1) }
    }
}

impl Kernels for Cpu {
    fn linear_forward(&self, shape: Linear, y: &mut [f32], x: &[f32], w: &[f32], accumulate: bool) {
        let Linear { rows, inputs, outputs } = shape;
        if rows <= MAX_DECODE_ROWS {
            return self.linear_few_rows(shape, y, x, w, accumulate);
        }
        let (size, w) = (Size { m: rows, n: outputs, k: inputs }, View::transposed(w, inputs));
        gemm(size, y, outputs, View::rows(x, inputs), w, accumulate, self.threads);
    }

    fn linear_backward_input(&self, shape: Linear, dx: &mut [f32], dy: &[f32], w: &[f32], accumulate: bool) {
        let Linear { rows, inputs, outputs } = shape;
        let (size, w) = (Size { m: rows, n: inputs, k: outputs }, View::rows(w, inputs));
        gemm(size, dx, inputs, View::rows(dy, outputs), w, accumulate, self.threads);
    }

    fn linear_backward_weight(&self, shape: Linear, dw: &mut [f32], dy: &[f32], x: &[f32]) {
        let Linear { rows, inputs, outputs } = shape;
        let (size, dy) = (Size { m: outputs, n: inputs, k: rows }, View::transposed(dy, outputs));
        gemm(size, dw, inputs, dy, View::rows(x, inputs), true, self.threads);
    }

    fn rms_norm_forward(&self, y: &mut [f32], rstd: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
        let c = w.len();
        for ((y, rstd), x) in y.chunks_exact_mut(c).zip(rstd).zip(x.chunks_exact(c)) {
            *rstd = 1.0 / (dot(x, x) / c as f32 + eps).sqrt();
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = x * w * *rstd;
            }
        }
    }

    fn rms_norm_backward(
        &self,
        dx: &mut [f32],
        dw: &mut [f32],
        dy: &[f32],
        x: &[f32],
        w: &[f32],
        rstd: &[f32],
    ) {
        let c = w.len();
        let mut scaled = vec![0.0; c];
        for (((dx, dy), x), rstd) in
            dx.chunks_exact_mut(c).zip(dy.chunks_exact(c)).zip(x.chunks_exact(c)).zip(rstd)
        {
            for ((scaled, dy), w) in scaled.iter_mut().zip(dy).zip(w) {
                *scaled = dy * w;
            }
            let shrink = rstd * rstd * dot(&scaled, x) / c as f32;
            for ((((dx, dw), dy), x), scaled) in dx.iter_mut().zip(&mut *dw).zip(dy).zip(x).zip(&scaled) {
                *dx += rstd * (scaled - x * shrink);
                *dw += dy * x * rstd;
            }
        }
    }

    fn attention_forward(&self, shape: Attention, out: &mut [f32], log_sum: &mut [f32], inputs: Qkv<'_>) {
        if shape.queries == 1 {
            return attention_one_query(shape, out, log_sum, inputs);
        }
        let mut scores = Vec::new();
        for block in QueryBlock::all(shape) {
            block.probabilities(&mut scores, inputs, |row, scores| {
                let sum = softmax(scores);
                log_sum[row] = sum;
            });
            let size = Size { m: block.rows, n: shape.head_dim, k: block.keys };
            let values = View::rows(&inputs.v[block.key_offset..], shape.key_width());
            let out = &mut out[block.query_offset..];
            gemm(
                size,
                out,
                shape.query_width(),
                View::rows(&scores, block.keys),
                values,
                false,
                self.threads,
            );
        }
    }

    fn attention_backward(
        &self,
        shape: Attention,
        gradient: QkvGradient<'_>,
        dout: &[f32],
        out: &[f32],
        log_sum: &[f32],
        inputs: Qkv<'_>,
    ) {
        let (width, d) = (shape.query_width(), shape.head_dim);
        let QkvGradient { q: dq, k: dk, v: dv } = gradient;
        dk.fill(0.0);
        dv.fill(0.0);
        let (mut p, mut dp) = (Vec::new(), Vec::new());
        for block in QueryBlock::all(shape) {
            let QueryBlock { rows, keys, query_offset, key_offset, .. } = block;
            let (q, k) = (&inputs.q[query_offset..], &inputs.k[key_offset..]);
            let (v, dout) = (&inputs.v[key_offset..], &dout[query_offset..]);
            block.probabilities(&mut p, inputs, |row, scores| exp_minus(scores, log_sum[row]));

            let (into_keys, into_queries) =
                (Size { m: keys, n: d, k: rows }, Size { m: rows, n: d, k: keys });
            let (kv_width, threads) = (shape.key_width(), self.threads);
            let p_columns = View::transposed(&p, keys);
            gemm(
                into_keys,
                &mut dv[key_offset..],
                kv_width,
                p_columns,
                View::rows(dout, width),
                true,
                threads,
            );

            dp.resize(rows * keys, 0.0);
            let scores = Size { m: rows, n: keys, k: d };
            gemm(
                scores,
                &mut dp,
                keys,
                View::rows(dout, width),
                View::transposed(v, kv_width),
                false,
                threads,
            );
            for (row, (dp, p)) in dp.chunks_exact_mut(keys).zip(p.chunks_exact(keys)).enumerate() {
                let at = query_offset + row * width;
                let delta = dot(&dout[row * width..][..d], &out[at..at + d]);
                for (dp, p) in dp.iter_mut().zip(p) {
                    *dp = p * (*dp - delta) * shape.scale();
                }
            }
            let dq = &mut dq[query_offset..];
            gemm(into_queries, dq, width, View::rows(&dp, keys), View::rows(k, kv_width), false, threads);
            let dp_columns = View::transposed(&dp, keys);
            gemm(into_keys, &mut dk[key_offset..], kv_width, dp_columns, View::rows(q, width), true, threads);
        }
    }

    fn swiglu_forward(&self, y: &mut [f32], gate: &[f32], up: &[f32]) {
        swiglu_forward(y, gate, up);
    }

    fn swiglu_backward(&self, dgate: &mut [f32], dup: &mut [f32], dy: &[f32], gate: &[f32], up: &[f32]) {
        swiglu_backward(dgate, dup, dy, gate, up);
    }

    fn cross_entropy(&self, dlogits: &mut [f32], logits: &[f32], targets: &[u32]) -> f32 {
        let (n, vocabulary) = (targets.len(), logits.len() / targets.len());
        let mut loss = 0.0;
        dlogits.copy_from_slice(logits);
        for ((dlogits, logits), &target) in
            dlogits.chunks_exact_mut(vocabulary).zip(logits.chunks_exact(vocabulary)).zip(targets)
        {
            let log_sum = softmax(dlogits);
            loss += f64::from(log_sum - logits[target as usize]);
            dlogits[target as usize] -= 1.0;
            for dlogit in dlogits {
                *dlogit /= n as f32;
            }
        }
        (loss / n as f64) as f32
    }

    fn adamw(
        &self,
        parameters: &mut [f32],
        first: &mut [f32],
        second: &mut [f32],
        gradient: &[f32],
        update: &AdamW,
    ) {
        adamw(parameters, first, second, gradient, update);
    }

    fn sum_of_squares(&self, x: &[f32]) -> f64 {
        sum_of_squares(x)
    }
}

impl Cpu {
    /// `linear_forward` by one dot product for each output: reads `w` once and copies nothing.
    fn linear_few_rows(&self, shape: Linear, y: &mut [f32], x: &[f32], w: &[f32], accumulate: bool) {
        /// Products that a thread must have to be worth its start.
        const WORTH_A_THREAD: usize = 1 << 20;
        let Linear { rows, inputs, outputs } = shape;
        let threads = self.threads.min(rows * inputs * outputs / WORTH_A_THREAD).max(1);
        let part = outputs.div_ceil(threads);
        // Transposed, `[O, R]`: a thread writes one stretch of it.
        let mut sums = vec![0.0; outputs * rows];
        if threads == 1 {
            dots(&mut sums, x, w, inputs);
        } else {
            std::thread::scope(|scope| {
                for (sums, w) in sums.chunks_mut(part * rows).zip(w.chunks(part * inputs)) {
                    scope.spawn(move || dots(sums, x, w, inputs));
                }
            });
        }
        for (r, y) in y.chunks_exact_mut(outputs).enumerate() {
            for (y, sums) in y.iter_mut().zip(sums.chunks_exact(rows)) {
                *y = if accumulate { *y + sums[r] } else { sums[r] };
            }
        }
    }
}

/// Some query rows of one head, with the keys that the last of them sees.
struct QueryBlock {
    shape: Attention,
    head: usize,
    first: usize,
    rows: usize,
    keys: usize,
    /// Where the first row of the head starts in `q`.
    query_offset: usize,
    /// Where the first row of its key head starts in `k`.
    key_offset: usize,
}

impl QueryBlock {
    fn all(shape: Attention) -> impl Iterator<Item = QueryBlock> {
        (0..shape.heads).flat_map(move |head| {
            (0..shape.queries).step_by(ATTENTION_ROWS).map(move |first| {
                let rows = ATTENTION_ROWS.min(shape.queries - first);
                QueryBlock {
                    shape,
                    head,
                    first,
                    rows,
                    keys: shape.start + first + rows,
                    query_offset: (first * shape.heads + head) * shape.head_dim,
                    key_offset: shape.key_head(head) * shape.head_dim,
                }
            })
        })
    }

    /// Fills `p`, `[rows, keys]`, with the scores and turns the visible part of each row into probabilities by
    /// `normalise`, which gets the row's index in `log_sum`; the rest of the row becomes zero.
    fn probabilities(&self, p: &mut Vec<f32>, inputs: Qkv<'_>, mut normalise: impl FnMut(usize, &mut [f32])) {
        let shape = self.shape;
        p.resize(self.rows * self.keys, 0.0);
        let size = Size { m: self.rows, n: self.keys, k: shape.head_dim };
        let q = View::rows(&inputs.q[self.query_offset..], shape.query_width());
        let k = View::transposed(&inputs.k[self.key_offset..], shape.key_width());
        gemm(size, p, self.keys, q, k, false, 1);
        for (row, scores) in p.chunks_exact_mut(self.keys).enumerate() {
            let (visible, hidden) = scores.split_at_mut(shape.start + self.first + row + 1);
            for score in &mut *visible {
                *score *= shape.scale();
            }
            normalise((self.first + row) * shape.heads + self.head, visible);
            hidden.fill(0.0);
        }
    }
}

/// Attention of one new query over the cache: no panels, the keys and values are read once where they lie.
fn attention_one_query(shape: Attention, out: &mut [f32], log_sum: &mut [f32], inputs: Qkv<'_>) {
    let (d, width) = (shape.head_dim, shape.key_width());
    let mut scores = vec![0.0; shape.keys()];
    for h in 0..shape.heads {
        let (q, g) = (&inputs.q[h * d..][..d], shape.key_head(h) * d);
        for (score, k) in scores.iter_mut().zip(inputs.k.chunks_exact(width)) {
            *score = dot(q, &k[g..g + d]) * shape.scale();
        }
        log_sum[h] = softmax(&mut scores);
        let out = &mut out[h * d..][..d];
        out.fill(0.0);
        for (p, v) in scores.iter().zip(inputs.v.chunks_exact(width)) {
            for (out, v) in out.iter_mut().zip(&v[g..g + d]) {
                *out += p * v;
            }
        }
    }
}

/// `e^x`, without a call or a branch so that it vectorises; within 2 units in the last place for `-87 <= x <= 88`,
/// clamped beyond, and NaN for NaN. Source: Moshier, Cephes 2.8, `single/expf.c`.
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    /// Adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let rounded = multiply_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let power = rounded.to_bits().wrapping_sub(ROUND.to_bits());
    let n = rounded - ROUND;
    let r = multiply_add::<FMA>(n, -0.693_359_4, x);
    let r = multiply_add::<FMA>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = multiply_add::<FMA>(p, r, c);
    }
    let e = multiply_add::<FMA>(p * r, r, r + 1.0);
    e * f32::from_bits(power.wrapping_add(127) << 23)
}

simd! {
    /// `a . b` in fixed lanes.
    fn dot(a: &[f32], b: &[f32]) -> f32 { lanes_dot::<FMA>(a, b) }
}

#[inline(always)]
fn lanes_dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [[0.0f32; LANES]; 2];
    let (a_pairs, b_pairs) = (a.chunks_exact(2 * LANES), b.chunks_exact(2 * LANES));
    let (a_rest, b_rest) = (a_pairs.remainder(), b_pairs.remainder());
    for (a, b) in a_pairs.zip(b_pairs) {
        for j in 0..LANES {
            lanes[0][j] = multiply_add::<FMA>(a[j], b[j], lanes[0][j]);
            lanes[1][j] = multiply_add::<FMA>(a[LANES + j], b[LANES + j], lanes[1][j]);
        }
    }
    for (j, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[0][j % LANES] = multiply_add::<FMA>(*a, *b, lanes[0][j % LANES]);
    }
    let [mut sums, more] = lanes;
    for j in 0..LANES {
        sums[j] += more[j];
    }
    add_lanes(sums)
}

/// Halves the lanes until one is left.
#[inline(always)]
fn add_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while 0 < width {
        for j in 0..width {
            lanes[j] += lanes[j + width];
        }
        width /= 2;
    }
    lanes[0]
}

simd! {
    /// `sums[o, r] = w[o] . x[r]`.
    fn dots(sums: &mut [f32], x: &[f32], w: &[f32], inputs: usize) {
        let rows = x.len() / inputs;
        for (sums, w) in sums.chunks_exact_mut(rows).zip(w.chunks_exact(inputs)) {
            for (sum, x) in sums.iter_mut().zip(x.chunks_exact(inputs)) {
                *sum = lanes_dot::<FMA>(w, x);
            }
        }
    }
}

simd! {
    /// Replaces a row of scores with `exp(score - log_sum)` and returns `log_sum = log(sum(exp(score)))`.
    fn softmax(row: &mut [f32]) -> f32 {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut lanes = [0.0f32; LANES];
        let mut chunks = row.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            for j in 0..LANES {
                chunk[j] = exp::<FMA>(chunk[j] - max);
                lanes[j] += chunk[j];
            }
        }
        for (x, lane) in chunks.into_remainder().iter_mut().zip(&mut lanes) {
            *x = exp::<FMA>(*x - max);
            *lane += *x;
        }
        let sum = add_lanes(lanes);
        for x in row {
            *x /= sum;
        }
        max + sum.ln()
    }
}

simd! {
    /// `x = exp(x - log_sum)`.
    fn exp_minus(row: &mut [f32], log_sum: f32) {
        for x in row {
            *x = exp::<FMA>(*x - log_sum);
        }
    }
}

simd! {
    fn swiglu_forward(y: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate / (1.0 + exp::<FMA>(-gate)) * up;
        }
    }
}

simd! {
    fn swiglu_backward(dgate: &mut [f32], dup: &mut [f32], dy: &[f32], gate: &[f32], up: &[f32]) {
        for ((((dgate, dup), dy), gate), up) in dgate.iter_mut().zip(dup).zip(dy).zip(gate).zip(up) {
            let s = 1.0 / (1.0 + exp::<FMA>(-gate));
            *dup = dy * gate * s;
            *dgate = dy * up * s * (1.0 + gate * (1.0 - s));
        }
    }
}

simd! {
    /// The reference, compiled for wider vectors: element by element, so the bits are the same.
    fn adamw(parameters: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32], update: &AdamW) {
        reference::adamw(parameters, first, second, gradient, update);
    }
}

simd! {
    fn sum_of_squares(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let chunks = x.chunks_exact(LANES);
        for (lane, x) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane = f64::from(*x) * f64::from(*x);
        }
        for chunk in chunks {
            for j in 0..LANES {
                lanes[j] += f64::from(chunk[j]) * f64::from(chunk[j]);
            }
        }
        lanes.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Reference;
    use crate::random::Random;

    /// Within `1e-4` of the largest element: sums of a few hundred products in another order.
    fn assert_close(name: &str, left: &[f32], right: &[f32]) {
        let scale = right.iter().fold(1e-2f32, |max, x| max.max(x.abs()));
        assert_eq!(left.len(), right.len());
        for (i, (left, right)) in left.iter().zip(right).enumerate() {
            assert!((left - right).abs() <= 1e-4 * scale, "{name}[{i}]: {left} and {right}, scale {scale}");
        }
    }

    #[test]
    fn linear_layers_equal_the_reference_at_every_edge_of_the_blocks() {
        let mut random = Random::new(1);
        for (rows, inputs, outputs) in [
            (1, 7, 5),
            (16, 64, 33),
            (17, 1, 1),
            (48, 257, 32),
            (49, 300, 31),
            (130, 96, 520),
            (200, 520, 264),
        ] {
            let shape = Linear { rows, inputs, outputs };
            let (x, w, dy) = (
                random.normals(rows * inputs),
                random.normals(inputs * outputs),
                random.normals(rows * outputs),
            );
            let name = format!("{shape:?}");
            for accumulate in [false, true] {
                let (mut y, mut dx) = (dy.clone(), x.clone());
                let (mut y_expected, mut dx_expected) = (dy.clone(), x.clone());
                Cpu::new(2).linear_forward(shape, &mut y, &x, &w, accumulate);
                Reference.linear_forward(shape, &mut y_expected, &x, &w, accumulate);
                assert_close(&name, &y, &y_expected);
                Cpu::new(2).linear_backward_input(shape, &mut dx, &dy, &w, accumulate);
                Reference.linear_backward_input(shape, &mut dx_expected, &dy, &w, accumulate);
                assert_close(&name, &dx, &dx_expected);
            }
            let (mut dw, mut dw_expected) = (w.clone(), w.clone());
            Cpu::new(2).linear_backward_weight(shape, &mut dw, &dy, &x);
            Reference.linear_backward_weight(shape, &mut dw_expected, &dy, &x);
            assert_close(&name, &dw, &dw_expected);
        }
    }

    #[test]
    fn the_portable_loops_equal_the_reference_too() {
        let mut random = Random::new(2);
        let (a, b) = (random.normals(37 * 300), random.normals(300 * 41));
        let (mut c, mut expected) = (vec![0.0; 37 * 41], vec![0.0; 37 * 41]);
        let size = Size { m: 37, n: 41, k: 300 };
        crate::kernels::gemm::portable(size, &mut c, 41, View::rows(&a, 300), View::transposed(&b, 300));
        reference::linear_forward(
            Linear { rows: 37, inputs: 300, outputs: 41 },
            &mut expected,
            &a,
            &b,
            false,
        );
        assert_close("portable", &c, &expected);
    }

    #[test]
    fn results_have_the_same_bits_for_any_number_of_threads() {
        let mut random = Random::new(3);
        let shape = Linear { rows: 300, inputs: 300, outputs: 300 };
        let (x, w) = (random.normals(90_000), random.normals(90_000));
        let run = |threads| {
            let (mut y, mut dw) = (vec![0.0; 90_000], vec![0.0; 90_000]);
            Cpu::new(threads).linear_forward(shape, &mut y, &x, &w, false);
            Cpu::new(threads).linear_backward_weight(shape, &mut dw, &x, &w);
            (y, dw)
        };
        assert!(run(1) == run(2) && run(1) == run(5));
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_in_a_batch() {
        let mut random = Random::new(4);
        let (x, w) = (random.normals(MAX_DECODE_ROWS * 200), random.normals(200 * 70));
        let run = |x: &[f32]| {
            let shape = Linear { rows: x.len() / 200, inputs: 200, outputs: 70 };
            let mut y = vec![0.0; shape.rows * 70];
            Cpu::new(1).linear_forward(shape, &mut y, x, &w, false);
            y
        };
        let all = run(&x);
        for (alone, together) in x.chunks_exact(200).map(run).zip(all.chunks_exact(70)) {
            assert_eq!(alone, together);
        }
    }

    #[test]
    fn norms_and_activations_equal_the_reference() {
        let mut random = Random::new(5);
        let (x, w, dy) = (random.normals(5 * 75), random.normals(75), random.normals(5 * 75));
        let run = |kernels: &dyn Kernels| {
            let (mut y, mut rstd) = (vec![0.0; 375], vec![0.0; 5]);
            kernels.rms_norm_forward(&mut y, &mut rstd, &x, &w, 1e-5);
            let (mut dx, mut dw) = (x.clone(), w.clone());
            kernels.rms_norm_backward(&mut dx, &mut dw, &dy, &x, &w, &rstd);
            let (mut s, mut dgate, mut dup) = (vec![0.0; 375], vec![0.0; 375], vec![0.0; 375]);
            kernels.swiglu_forward(&mut s, &x, &dy);
            kernels.swiglu_backward(&mut dgate, &mut dup, &dx, &x, &dy);
            let mut dlogits = vec![0.0; 375];
            let loss = kernels.cross_entropy(&mut dlogits, &x, &[0, 74, 3, 3, 40]);
            let squares = kernels.sum_of_squares(&x) as f32;
            [y, rstd, dx, dw, s, dgate, dup, dlogits, vec![loss], vec![squares]]
        };
        for (i, (left, right)) in run(&Cpu::new(1)).iter().zip(&run(&Reference)).enumerate() {
            assert_close(&format!("output {i}"), left, right);
        }
    }

    #[test]
    fn attention_equals_the_reference_in_both_directions() {
        let mut random = Random::new(6);
        for (queries, start) in [(1, 0), (1, 90), (7, 0), (65, 0), (150, 0), (20, 70)] {
            let shape = Attention { queries, start, heads: 4, kv_heads: 2, head_dim: 16 };
            let (queries_len, keys_len) = (queries * shape.query_width(), shape.keys() * shape.key_width());
            let (q, k, v) = (random.normals(queries_len), random.normals(keys_len), random.normals(keys_len));
            let dout = random.normals(queries_len);
            let run = |kernels: &dyn Kernels| {
                let inputs = Qkv { q: &q, k: &k, v: &v };
                let (mut out, mut log_sum) = (vec![0.0; queries_len], vec![0.0; queries * 4]);
                kernels.attention_forward(shape, &mut out, &mut log_sum, inputs);
                let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
                let gradient = QkvGradient { q: &mut dq, k: &mut dk, v: &mut dv };
                kernels.attention_backward(shape, gradient, &dout, &out, &log_sum, inputs);
                [out, log_sum, dq, dk, dv]
            };
            for (i, (left, right)) in run(&Cpu::new(1)).iter().zip(&run(&Reference)).enumerate() {
                assert_close(&format!("{shape:?} output {i}"), left, right);
            }
        }
    }

    #[test]
    fn the_exponential_is_right_to_two_units_in_the_last_place() {
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let (expected, got) = (f64::from(x).exp(), f64::from(exp::<false>(x)));
            assert!((got / expected - 1.0).abs() < 2.0 * f64::from(f32::EPSILON), "exp({x}) = {got}");
        }
        assert!(exp::<false>(f32::NAN).is_nan());
    }
}
