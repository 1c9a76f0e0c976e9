//! Loops over slices, compiled for each instruction set. Sums run in [`LANES`] fixed lanes that are added up in a
//! fixed order at the end.

use crate::kernels::isa::{multiply_add, simd};
use crate::kernels::{AdamW, Rope, Turn, reference};

/// Lanes of a sum: one vector of AVX-512, two of AVX2, four of SSE or NEON.
pub(super) const LANES: usize = 16;

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
    pub fn dot(a: &[f32], b: &[f32]) -> f32 { lanes_dot::<FMA>(a, b) }
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
pub(super) fn add_lanes(mut lanes: [f32; LANES]) -> f32 {
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
    /// The largest element; NaN is passed over.
    pub fn max(x: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let chunks = x.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for j in 0..LANES {
                lanes[j] = if lanes[j] < chunk[j] { chunk[j] } else { lanes[j] };
            }
        }
        lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
    }
}

simd! {
    /// `x *= by`.
    pub fn scale(x: &mut [f32], by: f32) {
        x.iter_mut().for_each(|x| *x *= by);
    }
}

simd! {
    /// `x = exp(scale * x - max)`; returns the sum.
    pub fn exp_scaled(x: &mut [f32], scale: f32, max: f32) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let mut chunks = x.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            for j in 0..LANES {
                chunk[j] = exp::<FMA>(multiply_add::<FMA>(chunk[j], scale, -max));
                lanes[j] += chunk[j];
            }
        }
        for (x, lane) in chunks.into_remainder().iter_mut().zip(&mut lanes) {
            *x = exp::<FMA>(multiply_add::<FMA>(*x, scale, -max));
            *lane += *x;
        }
        add_lanes(lanes)
    }
}

simd! {
    /// Turns scores into `p = exp(scale * score - log_sum)`, and the gradient of `p` into that of the score's dot
    /// product, `ds = p * (ds - delta) * scale`.
    pub fn score_gradient(p: &mut [f32], ds: &mut [f32], scale: f32, log_sum: f32, delta: f32) {
        for (p, ds) in p.iter_mut().zip(ds) {
            *p = exp::<FMA>(multiply_add::<FMA>(*p, scale, -log_sum));
            *ds = *p * (*ds - delta) * scale;
        }
    }
}

/// Replaces a row of scores with `factor * exp(score - log_sum)` and returns `log_sum = log(sum(exp(score)))`.
pub fn softmax(row: &mut [f32], factor: f32) -> f32 {
    let max = max(row);
    let sum = exp_scaled(row, 1.0, max);
    scale(row, factor / sum);
    max + sum.ln()
}

simd! {
    pub fn rms_norm_forward(y: &mut [f32], rstd: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
        let c = w.len();
        for ((y, rstd), x) in y.chunks_exact_mut(c).zip(rstd).zip(x.chunks_exact(c)) {
            *rstd = 1.0 / (lanes_dot::<FMA>(x, x) / c as f32 + eps).sqrt();
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = x * w * *rstd;
            }
        }
    }
}

simd! {
    pub fn rms_norm_backward(dx: &mut [f32], dw: &mut [f32], dy: &[f32], x: &[f32], w: &[f32], rstd: &[f32]) {
        let c = w.len();
        let mut scaled = vec![0.0; c];
        let rows = dx.chunks_exact_mut(c).zip(dy.chunks_exact(c)).zip(x.chunks_exact(c)).zip(rstd);
        for (((dx, dy), x), rstd) in rows {
            for ((scaled, dy), w) in scaled.iter_mut().zip(dy).zip(w) {
                *scaled = dy * w;
            }
            let shrink = rstd * rstd * lanes_dot::<FMA>(&scaled, x) / c as f32;
            for ((((dx, dw), dy), x), scaled) in dx.iter_mut().zip(&mut *dw).zip(dy).zip(x).zip(&scaled) {
                *dx += rstd * (scaled - x * shrink);
                *dw += dy * x * rstd;
            }
        }
    }
}

simd! {
    /// As the reference, but with nothing to decide inside the loop.
    pub fn rope(x: &mut [f32], width: usize, start: usize, rope: &Rope, turn: Turn) {
        let half = rope.head_dim / 2;
        let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
        for (n, row) in x.chunks_exact_mut(width).enumerate() {
            let angles = (start + n) * half..(start + n + 1) * half;
            let (cos, sin) = (&rope.cos[angles.clone()], &rope.sin[angles]);
            for head in row.chunks_exact_mut(rope.head_dim) {
                let (low, high) = head.split_at_mut(half);
                for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                    let sin = sign * sin;
                    (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
                }
            }
        }
    }
}

simd! {
    pub fn swiglu_forward(y: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate / (1.0 + exp::<FMA>(-gate)) * up;
        }
    }
}

simd! {
    pub fn swiglu_backward(dgate: &mut [f32], dup: &mut [f32], dy: &[f32], gate: &[f32], up: &[f32]) {
        for ((((dgate, dup), dy), gate), up) in dgate.iter_mut().zip(dup).zip(dy).zip(gate).zip(up) {
            let s = 1.0 / (1.0 + exp::<FMA>(-gate));
            *dup = dy * gate * s;
            *dgate = dy * up * s * (1.0 + gate * (1.0 - s));
        }
    }
}

simd! {
    /// The reference, compiled for wider vectors: element by element, so the bits are the same.
    pub fn adamw(parameters: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32], update: &AdamW) {
        reference::adamw(parameters, first, second, gradient, update);
    }
}

simd! {
    /// The squares of one part, in the order of the reference.
    pub fn sum_of_squares(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; reference::LANES];
        for row in x.chunks(reference::LANES) {
            for (lane, x) in lanes.iter_mut().zip(row) {
                *lane += f64::from(*x) * f64::from(*x);
            }
        }
        reference::add_lanes(&mut lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
