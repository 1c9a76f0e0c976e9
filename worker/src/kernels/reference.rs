//! The specification of every kernel: the formula, its shapes, and the plainest loops that compute it.
//!
//! Backward functions take `d…`, the gradient of the loss with respect to `…`. The tests below prove each of
//! them against differences of its forward function.

use super::{
    AdamW, Attention, BLOCK, Blocks, Cached, Head, Kept, Linear, Qkv, QkvGradient, Rope, Seen, Turn,
};

/// Linear layer, forward: `y[r, o] = sum_i x[r, i] * w[o, i]`, added to `y` with `accumulate`.
///
/// * `y`: `[R, O]`. `x`: `[R, I]`. `w`: `[O, I]`, the layout of the Hugging Face checkpoints.
pub fn linear_forward(shape: Linear, y: &mut [f32], x: &[f32], w: &[f32], accumulate: bool) {
    let Linear { inputs, outputs, .. } = shape;
    for (y, x) in y.chunks_exact_mut(outputs).zip(x.chunks_exact(inputs)) {
        for (y, w) in y.iter_mut().zip(w.chunks_exact(inputs)) {
            let sum: f32 = x.iter().zip(w).map(|(x, w)| x * w).sum();
            *y = if accumulate { *y + sum } else { sum };
        }
    }
}

/// Linear layer, backward to its input: `dx[r, i] = sum_o dy[r, o] * w[o, i]`, added with `accumulate`.
///
/// * `dx`: `[R, I]`. `dy`: `[R, O]`. `w`: `[O, I]`.
pub fn linear_backward_input(shape: Linear, dx: &mut [f32], dy: &[f32], w: &[f32], accumulate: bool) {
    let Linear { inputs, outputs, .. } = shape;
    for (dx, dy) in dx.chunks_exact_mut(inputs).zip(dy.chunks_exact(outputs)) {
        if !accumulate {
            dx.fill(0.0);
        }
        for (dy, w) in dy.iter().zip(w.chunks_exact(inputs)) {
            for (dx, w) in dx.iter_mut().zip(w) {
                *dx += dy * w;
            }
        }
    }
}

/// Linear layer, backward to its weight: `dw[o, i] += sum_r dy[r, o] * x[r, i]`.
///
/// * `dw`: `[O, I]`. `dy`: `[R, O]`. `x`: `[R, I]`.
pub fn linear_backward_weight(shape: Linear, dw: &mut [f32], dy: &[f32], x: &[f32]) {
    let Linear { inputs, outputs, .. } = shape;
    for (dy, x) in dy.chunks_exact(outputs).zip(x.chunks_exact(inputs)) {
        for (dw, dy) in dw.chunks_exact_mut(inputs).zip(dy) {
            for (dw, x) in dw.iter_mut().zip(x) {
                *dw += dy * x;
            }
        }
    }
}

/// RMS norm, forward: `y[n, c] = x[n, c] * w[c] * rstd[n]`, `rstd[n] = 1 / sqrt(mean_c x[n, c]^2 + eps)`.
///
/// * `y`, `x`: `[N, C]`. `w`: `[C]`. `rstd`: `[N]`, kept for the backward pass.
///
/// Source: Zhang and Sennrich, "Root mean square layer normalization", arXiv 1910.07467, equation 4.
pub fn rms_norm_forward(y: &mut [f32], rstd: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    let c = w.len();
    for ((y, rstd), x) in y.chunks_exact_mut(c).zip(rstd).zip(x.chunks_exact(c)) {
        let mean_square = x.iter().map(|x| x * x).sum::<f32>() / c as f32;
        *rstd = 1.0 / (mean_square + eps).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = x * w * *rstd;
        }
    }
}

/// RMS norm, backward, with `g[n, c] = dy[n, c] * w[c]`:
///
/// * `dx[n, c] += rstd[n] * (g[n, c] - x[n, c] * rstd[n]^2 * mean_c(g[n, c] * x[n, c]))`
/// * `dw[c] += sum_n dy[n, c] * x[n, c] * rstd[n]`
pub fn rms_norm_backward(dx: &mut [f32], dw: &mut [f32], dy: &[f32], x: &[f32], w: &[f32], rstd: &[f32]) {
    let c = w.len();
    for (((dx, dy), x), rstd) in
        dx.chunks_exact_mut(c).zip(dy.chunks_exact(c)).zip(x.chunks_exact(c)).zip(rstd)
    {
        let mean = (0..c).map(|i| dy[i] * w[i] * x[i]).sum::<f32>() / c as f32;
        for i in 0..c {
            dx[i] += rstd * (dy[i] * w[i] - x[i] * rstd * rstd * mean);
            dw[i] += dy[i] * x[i] * rstd;
        }
    }
}

/// Rotary position embedding, in place: turns pair `(i, i + D/2)` of every head by the angle of its position.
///
/// * `x`: `[N, width]` with `width` a multiple of `D`; row `n` stands at position `start + n`.
///
/// Halves are paired as in Hugging Face's `rotate_half`, not neighbours as in the paper: the weights of their
/// checkpoints are permuted for it.
pub fn rope(x: &mut [f32], width: usize, start: usize, rope: &Rope, turn: Turn) {
    let half = rope.head_dim / 2;
    for (n, row) in x.chunks_exact_mut(width).enumerate() {
        let angles = (start + n) * half..(start + n + 1) * half;
        let (cos, sin) = (&rope.cos[angles.clone()], &rope.sin[angles]);
        for head in row.chunks_exact_mut(rope.head_dim) {
            let (low, high) = head.split_at_mut(half);
            for i in 0..half {
                let sin = if turn == Turn::Forward { sin[i] } else { -sin[i] };
                (low[i], high[i]) = (low[i] * cos[i] - high[i] * sin, high[i] * cos[i] + low[i] * sin);
            }
        }
    }
}

/// Causal attention, forward: `out[t, h] = sum_s p[s] * v[s, g]`, `p = softmax_s(q[t, h] . k[s, g] / sqrt(D))`
/// over `s <= start + t`, with `g` the key head of `h`.
///
/// * `out`, `q`: `[T, H, D]`. `k`, `v`: `[S, KV, D]`.
/// * `log_sum`: `[T, H]`, the logarithm of the softmax's denominator, kept for the backward pass, which computes
///   `p` anew: memory stays linear in the length.
///
/// Source: Vaswani et al., "Attention is all you need", arXiv 1706.03762, section 3.2.1; Ainslie et al., "GQA",
/// arXiv 2305.13245, section 2.2.
pub fn attention_forward(shape: Attention, out: &mut [f32], log_sum: &mut [f32], inputs: Qkv<'_>) {
    let (d, width) = (shape.head_dim, shape.key_width());
    for t in 0..shape.queries {
        for h in 0..shape.heads {
            let (row, g) = ((t * shape.heads + h) * d, shape.key_head(h) * d);
            let q = &inputs.q[row..row + d];
            let visible = shape.start + t + 1;
            let scores: Vec<f32> =
                (0..visible).map(|s| shape.scale() * dot(q, &inputs.k[s * width + g..][..d])).collect();
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = scores.iter().map(|score| (score - max).exp()).sum();
            let log = max + sum.ln();
            log_sum[t * shape.heads + h] = log;
            let out = &mut out[row..row + d];
            out.fill(0.0);
            for (s, score) in scores.iter().enumerate() {
                add_scaled(out, (score - log).exp(), &inputs.v[s * width + g..][..d]);
            }
        }
    }
}

/// Attention of single queries over a cache in blocks, forward: for each query `r`, each head `h` with its key head
/// `g`, and `s` from 0 to its `keys - 1`, as [`attention_forward`] of that query alone.
///
/// * `out`, `q`: `[R, H, D]`. `seen`: `[R]`. `cached`: see [`Cached`].
pub fn attention_cached(shape: Attention, out: &mut [f32], q: &[f32], seen: &[Seen<'_>], cached: Cached<'_>) {
    let (d, kv_heads) = (shape.head_dim, shape.kv_heads);
    let row = |at: &dyn Fn(usize, usize, usize) -> f32, seen: &Seen<'_>| -> Vec<f32> {
        let mut rows = Vec::new();
        for s in 0..seen.keys {
            let block = seen.table[s / BLOCK] as usize * kv_heads;
            rows.extend((0..kv_heads * d).map(|i| at(block + i / d, s % BLOCK, i % d)));
        }
        rows
    };
    for (r, seen) in seen.iter().enumerate() {
        let (key, value) = (|head, s, i| (head * d + i) * BLOCK + s, |head, s, i| (head * BLOCK + s) * d + i);
        let [k, v] = match cached {
            Cached::F32(Blocks { k, v }) => {
                [row(&|head, s, i| k[key(head, s, i)], seen), row(&|head, s, i| v[value(head, s, i)], seen)]
            }
            Cached::Bf16(Blocks { k, v }) => [
                row(&|head, s, i| k[key(head, s, i)].value(), seen),
                row(&|head, s, i| v[value(head, s, i)].value(), seen),
            ],
        };
        let one = Attention { queries: 1, start: seen.keys - 1, ..shape };
        let wide = r * shape.query_width()..(r + 1) * shape.query_width();
        let mut log_sum = vec![0.0; shape.heads];
        attention_forward(one, &mut out[wide.clone()], &mut log_sum, Qkv { q: &q[wide], k: &k, v: &v });
    }
}

/// Causal attention, backward. With `p` as in the forward pass and `delta = dout[t, h] . out[t, h]`:
///
/// * `dv[s, g] = sum_{t, h} p[s] * dout[t, h]`
/// * `dscore[s] = p[s] * (dout[t, h] . v[s, g] - delta) / sqrt(D)`
/// * `dq[t, h] = sum_s dscore[s] * k[s, g]`, `dk[s, g] = sum_{t, h} dscore[s] * q[t, h]`
///
/// Source: Dao et al., "FlashAttention", arXiv 2205.14135, appendix B.2.
pub fn attention_backward(
    shape: Attention,
    gradient: QkvGradient<'_>,
    dout: &[f32],
    out: &[f32],
    log_sum: &[f32],
    inputs: Qkv<'_>,
) {
    let (d, width) = (shape.head_dim, shape.key_width());
    let QkvGradient { q: dq, k: dk, v: dv } = gradient;
    dq.fill(0.0);
    dk.fill(0.0);
    dv.fill(0.0);
    for t in 0..shape.queries {
        for h in 0..shape.heads {
            let (row, g) = ((t * shape.heads + h) * d, shape.key_head(h) * d);
            let (q, dout) = (&inputs.q[row..row + d], &dout[row..row + d]);
            let delta = dot(dout, &out[row..row + d]);
            for s in 0..=shape.start + t {
                let key = s * width + g..s * width + g + d;
                let (k, v) = (&inputs.k[key.clone()], &inputs.v[key.clone()]);
                let p = (shape.scale() * dot(q, k) - log_sum[t * shape.heads + h]).exp();
                let dscore = p * (dot(dout, v) - delta) * shape.scale();
                add_scaled(&mut dv[key.clone()], p, dout);
                add_scaled(&mut dq[row..row + d], dscore, k);
                add_scaled(&mut dk[key], dscore, q);
            }
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// SwiGLU, forward, element by element: `y = gate * sigmoid(gate) * up`.
///
/// Source: Shazeer, "GLU variants improve transformer", arXiv 2002.05202, equation 6.
pub fn swiglu_forward(y: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
        *y = gate / (1.0 + (-gate).exp()) * up;
    }
}

/// SwiGLU, backward, with `s = sigmoid(gate)`: `dup = dy * gate * s`,
/// `dgate = dy * up * s * (1 + gate * (1 - s))`.
pub fn swiglu_backward(dgate: &mut [f32], dup: &mut [f32], dy: &[f32], gate: &[f32], up: &[f32]) {
    for i in 0..dy.len() {
        let s = 1.0 / (1.0 + (-gate[i]).exp());
        dup[i] = dy[i] * gate[i] * s;
        dgate[i] = dy[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
    }
}

/// Embedding, forward: row `n` of `y` is row `tokens[n]` of `w`.
///
/// * `y`: `[N, width]`. `w`: `[vocabulary, width]`.
pub fn embedding_forward(y: &mut [f32], tokens: &[u32], w: &[f32], width: usize) {
    for (y, &token) in y.chunks_exact_mut(width).zip(tokens) {
        y.copy_from_slice(&w[token as usize * width..][..width]);
    }
}

/// Embedding, backward: row `tokens[n]` of `dw` grows by row `n` of `dy`, in the order of `n`.
pub fn embedding_backward(dw: &mut [f32], tokens: &[u32], dy: &[f32], width: usize) {
    for (dy, &token) in dy.chunks_exact(width).zip(tokens) {
        add_scaled(&mut dw[token as usize * width..][..width], 1.0, dy);
    }
}

/// Cross-entropy of a softmax, forward and backward at once: returns `mean_n -log p[n, targets[n]]` with
/// `p[n] = softmax(logits[n])`, and leaves `dlogits[n, v] = (p[n, v] - [v = targets[n]]) / N`.
///
/// * `dlogits`, `logits`: `[N, vocabulary]`. `targets`: `[N]`.
pub fn cross_entropy(dlogits: &mut [f32], logits: &[f32], targets: &[u32]) -> f32 {
    let (n, vocabulary) = (targets.len(), logits.len() / targets.len());
    let mut loss = 0.0;
    for ((dlogits, logits), &target) in
        dlogits.chunks_exact_mut(vocabulary).zip(logits.chunks_exact(vocabulary)).zip(targets)
    {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = logits.iter().map(|logit| (logit - max).exp()).sum();
        let log_sum = max + sum.ln();
        loss += f64::from(log_sum - logits[target as usize]);
        for (dlogit, logit) in dlogits.iter_mut().zip(logits) {
            *dlogit = (logit - log_sum).exp() / n as f32;
        }
        dlogits[target as usize] -= 1.0 / n as f32;
    }
    (loss / n as f64) as f32
}

/// Output layer and cross-entropy, forward and backward at once: the loss of `logits = x w^T`, with `dx` overwritten by
/// and `dw` grown by its gradient.
///
/// * `dx`, `head.x`: `[R, I]`. `dw`, `head.w`: `[O, I]`, `O` the vocabulary. `head.targets`: `[R]`.
pub fn linear_cross_entropy(shape: Linear, dx: &mut [f32], dw: &mut [f32], head: Head<'_>) -> f32 {
    let mut logits = vec![0.0; shape.rows * shape.outputs];
    let mut dlogits = logits.clone();
    linear_forward(shape, &mut logits, head.x, head.w, false);
    let loss = cross_entropy(&mut dlogits, &logits, head.targets);
    linear_backward_input(shape, dx, &dlogits, head.w, false);
    linear_backward_weight(shape, dw, &dlogits, head.x);
    loss
}

/// AdamW, in place: see [`AdamW`]. All slices have the length of `parameters`.
///
/// With `g` the gradient times `scale`: `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`,
/// `p -= lr * (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay * p)`. All backends round what these operations give one by one, and so have the same bits.
pub fn adamw(
    parameters: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
    gradient: &[f32],
    update: &AdamW,
) {
    let AdamW { learning_rate, beta1, beta2, eps, weight_decay, scale, .. } = *update;
    let power = i32::try_from(update.update).unwrap_or(i32::MAX);
    let correct1 = 1.0 / (1.0 - f64::from(beta1).powi(power)) as f32;
    let correct2 = 1.0 / (1.0 - f64::from(beta2).powi(power)) as f32;
    for (((p, m), v), g) in parameters.iter_mut().zip(first).zip(second).zip(gradient) {
        let g = g * scale;
        *m = beta1 * *m + (1.0 - beta1) * g;
        *v = beta2 * *v + (1.0 - beta2) * g * g;
        *p -= learning_rate * (*m * correct1 / ((*v * correct2).sqrt() + eps) + weight_decay * *p);
    }
}

/// Numbers of a part of a sum of squares, and lanes in which it is added up.
pub const PART: usize = 1 << 14;
pub(super) const LANES: usize = 256;

/// `sum_i x[i]^2`, in double precision: the norm of millions of gradients loses digits otherwise. The order is the same on all
/// backends, for members of a training have the same state whatever they compute with: parts of [`PART`] by themselves, then their sums.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let square = |x: &f32| f64::from(*x) * f64::from(*x);
    add_up(x.chunks(PART).map(|part| add_up(part.iter().map(square))))
}

/// Number `i` is added in lane `i % 256`, then the upper half of the lanes to the lower one, until one is left.
pub(super) fn add_up(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut lanes = [0.0; LANES];
    numbers.enumerate().for_each(|(i, number)| lanes[i % LANES] += number);
    add_lanes(&mut lanes)
}

/// Adds the upper half of the lanes to the lower one, until one is left.
pub(super) fn add_lanes(lanes: &mut [f64; LANES]) -> f64 {
    let mut width = LANES / 2;
    while 0 < width {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Compares `gradient` with central differences of `loss` at `x`, which both take the whole of `x`.
    fn assert_gradient(name: &str, x: &[f32], gradient: &[f32], loss: impl Fn(&[f32]) -> f64) {
        let (h, mut x) = (5e-3, x.to_vec());
        let scale = gradient.iter().fold(0.0f32, |max, g| max.max(g.abs()));
        assert!(0.0 < scale, "{name}: the gradient is zero everywhere");
        for i in 0..x.len() {
            let at = x[i];
            x[i] = at + h;
            let above = loss(&x);
            x[i] = at - h;
            let below = loss(&x);
            let step = f64::from((at + h) - (at - h));
            x[i] = at;
            let expected = (above - below) / step;
            let error = (expected - f64::from(gradient[i])).abs();
            assert!(
                error < 2e-3 * f64::from(scale),
                "{name}[{i}]: {} but differences say {expected}",
                gradient[i]
            );
        }
    }

    /// The loss of the tests: a fixed random weighting of the outputs, whose gradient is the weights.
    fn weigh(y: &[f32], weights: &[f32]) -> f64 {
        y.iter().zip(weights).map(|(&y, &w)| f64::from(y) * f64::from(w)).sum()
    }

    #[test]
    fn the_backward_of_a_linear_layer_matches_differences() {
        let mut random = Random::new(1);
        let shape = Linear::new(3, 5, 4);
        let (x, w, dy) = (random.normals(15), random.normals(20), random.normals(12));
        let loss = |x: &[f32], w: &[f32]| {
            let mut y = vec![0.0; 12];
            linear_forward(shape, &mut y, x, w, false);
            weigh(&y, &dy)
        };
        let (mut dx, mut dw) = (vec![0.0; 15], vec![0.0; 20]);
        linear_backward_input(shape, &mut dx, &dy, &w, false);
        linear_backward_weight(shape, &mut dw, &dy, &x);
        assert_gradient("dx", &x, &dx, |x| loss(x, &w));
        assert_gradient("dw", &w, &dw, |w| loss(&x, w));
    }

    #[test]
    fn the_backward_of_the_rms_norm_matches_differences() {
        let mut random = Random::new(2);
        let (x, w, dy) = (random.normals(18), random.normals(6), random.normals(18));
        let loss = |x: &[f32], w: &[f32]| {
            let mut y = vec![0.0; 18];
            rms_norm_forward(&mut y, &mut [0.0; 3], x, w, 1e-5);
            weigh(&y, &dy)
        };
        let (mut dx, mut dw, mut rstd) = (vec![0.0; 18], vec![0.0; 6], vec![0.0; 3]);
        rms_norm_forward(&mut [0.0; 18], &mut rstd, &x, &w, 1e-5);
        rms_norm_backward(&mut dx, &mut dw, &dy, &x, &w, &rstd);
        assert_gradient("dx", &x, &dx, |x| loss(x, &w));
        assert_gradient("dw", &w, &dw, |w| loss(&x, w));
    }

    #[test]
    fn the_backward_of_the_rotation_matches_differences() {
        let mut random = Random::new(3);
        let table = Rope::new(8, 4, 100.0);
        let (x, dy) = (random.normals(24), random.normals(24));
        let mut dx = dy.clone();
        rope(&mut dx, 8, 5, &table, Turn::Backward);
        assert_gradient("dx", &x, &dx, |x| {
            let mut y = x.to_vec();
            rope(&mut y, 8, 5, &table, Turn::Forward);
            weigh(&y, &dy)
        });
    }

    #[test]
    fn the_backward_of_attention_matches_differences() {
        let mut random = Random::new(4);
        let shape = Attention { queries: 5, start: 0, heads: 4, kv_heads: 2, head_dim: 4 };
        let (q, k, v) = (random.normals(80), random.normals(40), random.normals(40));
        let dout = random.normals(80);
        let loss = |q: &[f32], k: &[f32], v: &[f32]| {
            let mut out = vec![0.0; 80];
            attention_forward(shape, &mut out, &mut [0.0; 20], Qkv { q, k, v });
            weigh(&out, &dout)
        };
        let (mut out, mut log_sum) = (vec![0.0; 80], vec![0.0; 20]);
        let inputs = Qkv { q: &q, k: &k, v: &v };
        attention_forward(shape, &mut out, &mut log_sum, inputs);
        let (mut dq, mut dk, mut dv) = (vec![0.0; 80], vec![0.0; 40], vec![0.0; 40]);
        let gradient = QkvGradient { q: &mut dq, k: &mut dk, v: &mut dv };
        attention_backward(shape, gradient, &dout, &out, &log_sum, inputs);
        assert_gradient("dq", &q, &dq, |q| loss(q, &k, &v));
        assert_gradient("dk", &k, &dk, |k| loss(&q, k, &v));
        assert_gradient("dv", &v, &dv, |v| loss(&q, &k, v));
    }

    #[test]
    fn the_backward_of_swiglu_matches_differences() {
        let mut random = Random::new(5);
        let (gate, up, dy) = (random.normals(9), random.normals(9), random.normals(9));
        let loss = |gate: &[f32], up: &[f32]| {
            let mut y = vec![0.0; 9];
            swiglu_forward(&mut y, gate, up);
            weigh(&y, &dy)
        };
        let (mut dgate, mut dup) = (vec![0.0; 9], vec![0.0; 9]);
        swiglu_backward(&mut dgate, &mut dup, &dy, &gate, &up);
        assert_gradient("dgate", &gate, &dgate, |gate| loss(gate, &up));
        assert_gradient("dup", &up, &dup, |up| loss(&gate, up));
    }

    #[test]
    fn the_backward_of_the_embedding_matches_differences() {
        let mut random = Random::new(6);
        let (w, dy, tokens) = (random.normals(12), random.normals(12), [3, 0, 3, 1]);
        let mut dw = vec![0.0; 12];
        embedding_backward(&mut dw, &tokens, &dy, 3);
        assert_gradient("dw", &w, &dw, |w| {
            let mut y = vec![0.0; 12];
            embedding_forward(&mut y, &tokens, w, 3);
            weigh(&y, &dy)
        });
    }

    #[test]
    fn the_gradient_of_the_cross_entropy_matches_differences() {
        let mut random = Random::new(7);
        let (logits, targets) = (random.normals(21), [2, 6, 0]);
        let mut dlogits = vec![0.0; 21];
        cross_entropy(&mut dlogits, &logits, &targets);
        // In f64, because the returned mean is rounded to f32.
        assert_gradient("dlogits", &logits, &dlogits, |logits| {
            let row = |(row, &target): (&[f32], &u32)| {
                let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
                sum.ln() - f64::from(row[target as usize])
            };
            logits.chunks_exact(7).zip(&targets).map(row).sum::<f64>() / 3.0
        });
    }

    /// Worked by hand: the first step of Adam has length `learning_rate` whatever the gradient's size.
    #[test]
    fn the_first_update_of_adamw_is_the_sign_of_the_gradient_and_the_decay() {
        let update = AdamW {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 0.0,
            weight_decay: 0.5,
            update: 1,
            scale: 2.0,
        };
        let (mut p, mut m, mut v) = ([2.0, 2.0], [0.0; 2], [0.0; 2]);
        adamw(&mut p, &mut m, &mut v, &[3.0, -0.01], &update);
        assert!((m[0] - 0.6).abs() < 1e-6 && (v[1] - 2e-5).abs() < 1e-9, "{m:?} {v:?}");
        assert!((p[0] - (2.0 - 0.1 - 0.1)).abs() < 1e-6 && (p[1] - (2.0 + 0.1 - 0.1)).abs() < 1e-6, "{p:?}");
    }
}
