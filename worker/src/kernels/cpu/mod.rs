//! The backend for processors: matrix products in [`gemm`](super::gemm), everything else in loops that the compiler
//! turns into vectors ([`vectors`]), both split over a pool of threads.
//!
//! Work is split by rows, heads or blocks of fixed size, never by the number of threads where that would change the
//! order of a sum.

mod attention;
mod cached;
mod dots;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod vectors;

use std::ops::Range;
use std::sync::Mutex;

use super::bf16::{Bf16, round_all};
use super::gemm::{Elements, Product, View};
use super::int8::{Activations, Int8};
use super::pool::{Parts, Pool};
use super::reference::{self, PART};
use super::{
    AdamW, Attention, Cached, Head, Kernels, Linear, Path, Precision, Qkv, QkvGradient, ROWS, Rope, Seen,
    Turn, Weight,
};

/// Elements that a thread must have to be worth waking, in loops over slices.
const WORTH_A_THREAD: usize = 1 << 14;

/// Products that a thread must have to be worth waking, of few rows with a matrix.
const WORTH_A_THREAD_OF_DOTS: usize = 1 << 18;

/// Rows whose share of a norm's weight gradient is summed first: see [`Cpu::rms_norm_backward`].
const NORM_ROWS: usize = 128;

/// The backend that trains and serves on processors.
pub struct Cpu {
    pool: Pool,
    precision: Precision,
    /// A part of a matrix that a product needs in bf16.
    rounded: Mutex<Vec<Bf16>>,
}

impl Cpu {
    /// Splits large operations over `threads` threads, at least one. The results do not depend on it.
    pub fn new(threads: usize) -> Cpu {
        Cpu::with_precision(threads, Precision::F32)
    }

    /// As [`new`](Cpu::new), with the operands of matrix products rounded to `precision`.
    pub fn with_precision(threads: usize, precision: Precision) -> Cpu {
        let precision = if precision == Precision::Int8 { Precision::Bf16 } else { precision };
        Cpu { pool: Pool::new(threads), precision, rounded: Mutex::default() }
    }

    /// Calls `task` with stretches of rows of `width` elements.
    fn rows(&self, rows: usize, width: usize, task: &(dyn Fn(Range<usize>) + Sync)) {
        self.pool.split(rows, 1, WORTH_A_THREAD.div_ceil(width.max(1)), task);
    }

    fn product<'a>(&self, [m, n, k]: [usize; 3], a: View<'a>, b: View<'a>) -> Product<'a> {
        Product { m, n, k, a, b, precision: self.precision }
    }
}

impl Kernels for Cpu {
    fn linear_forward(&self, shape: Linear, y: &mut [f32], x: &[f32], w: &[f32], accumulate: bool) {
        let Linear { rows, inputs, outputs, path } = shape;
        if path == Path::Dots {
            return self.few_rows(shape, y, |y, rows, outputs| {
                let x = &x[rows.start * inputs..rows.end * inputs];
                dots::dots(y, x, &w[outputs.start * inputs..outputs.end * inputs], accumulate);
            });
        }
        let (x, w) = (View::rows(x, inputs), View::transposed(w, inputs));
        self.product([rows, outputs, inputs], x, w).run(&self.pool, y, outputs, accumulate);
    }

    fn linear(&self, shape: Linear, y: &mut [f32], x: &[f32], w: Weight<'_>, accumulate: bool) {
        let Linear { rows, inputs, outputs, path } = shape;
        match w {
            Weight::F32(w) => self.linear_forward(shape, y, x, w, accumulate),
            #[cfg(target_arch = "x86_64")]
            Weight::Bf16(w) if path == Path::Dots && tiles::Vectors::suit(inputs) => {
                let (x, y) = (tiles::Vectors::of(x, inputs), Parts::new(y));
                let least = WORTH_A_THREAD_OF_DOTS.div_ceil((rows * inputs).max(1));
                self.pool.split(outputs, tiles::OUTPUTS, least, &|part| {
                    x.dots(&y, outputs, part, w, accumulate);
                });
            }
            Weight::Bf16(w) if path == Path::Dots => self.few_rows(shape, y, |y, rows, outputs| {
                let x = &x[rows.start * inputs..rows.end * inputs];
                dots::dots_bf16(y, x, &w[outputs.start * inputs..outputs.end * inputs], accumulate);
            }),
            Weight::Bf16(w) => {
                let w = View::of(Elements::Bf16(w), inputs).transpose();
                let product = self.product([rows, outputs, inputs], View::rows(x, inputs), w);
                product.run(&self.pool, y, outputs, accumulate);
            }
            Weight::Int8(w) if path == Path::Dots => {
                let x = Activations::of(x, inputs);
                self.few_rows(shape, y, |y, rows, outputs| {
                    x.dots(y, rows, w.rows(outputs, inputs), accumulate);
                });
            }
            Weight::Int8(w) => self.int8_panels(shape, y, x, w, accumulate),
        }
    }

    fn linear_backward_input(&self, shape: Linear, dx: &mut [f32], dy: &[f32], w: &[f32], accumulate: bool) {
        let Linear { rows, inputs, outputs, .. } = shape;
        let (dy, w) = (View::rows(dy, outputs), View::rows(w, inputs));
        self.product([rows, inputs, outputs], dy, w).run(&self.pool, dx, inputs, accumulate);
    }

    fn linear_backward_weight(&self, shape: Linear, dw: &mut [f32], dy: &[f32], x: &[f32]) {
        let Linear { rows, inputs, outputs, .. } = shape;
        let (dy, x) = (View::transposed(dy, outputs), View::rows(x, inputs));
        self.product([outputs, inputs, rows], dy, x).run(&self.pool, dw, inputs, true);
    }

    fn rms_norm_forward(&self, y: &mut [f32], rstd: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
        let c = w.len();
        let (y, rstd) = (Parts::new(y), Parts::new(rstd));
        self.rows(x.len() / c, c, &|rows| {
            let wide = rows.start * c..rows.end * c;
            // SAFETY: the stretches of rows do not overlap.
            #[allow(unsafe_code)]
            let (y, rstd) = unsafe { (y.get(wide.clone()), rstd.get(rows)) };
            vectors::rms_norm_forward(y, rstd, &x[wide], w, eps);
        });
    }

    /// The gradient of the weight is a sum over rows: it is taken over stretches of `NORM_ROWS` first, whatever the
    /// number of threads.
    fn rms_norm_backward(
        &self,
        dx: &mut [f32],
        dw: &mut [f32],
        dy: &[f32],
        x: &[f32],
        w: &[f32],
        rstd: &[f32],
    ) {
        let (c, n) = (w.len(), rstd.len());
        let mut sums = vec![0.0; n.div_ceil(NORM_ROWS) * c];
        let (dx, parts) = (Parts::new(dx), Parts::new(&mut sums));
        self.pool.run(n.div_ceil(NORM_ROWS), &|part| {
            let rows = part * NORM_ROWS..n.min((part + 1) * NORM_ROWS);
            let wide = rows.start * c..rows.end * c;
            // SAFETY: the stretches of rows do not overlap.
            #[allow(unsafe_code)]
            let (dx, dw) = unsafe { (dx.get(wide.clone()), parts.get(part * c..(part + 1) * c)) };
            vectors::rms_norm_backward(dx, dw, &dy[wide.clone()], &x[wide], w, &rstd[rows]);
        });
        for part in sums.chunks_exact(c) {
            dw.iter_mut().zip(part).for_each(|(dw, part)| *dw += part);
        }
    }

    fn rope(&self, x: &mut [f32], width: usize, start: usize, rope: &Rope, turn: Turn) {
        let (n, x) = (x.len() / width, Parts::new(x));
        self.rows(n, width, &|rows| {
            // SAFETY: the stretches of rows do not overlap.
            #[allow(unsafe_code)]
            let x = unsafe { x.get(rows.start * width..rows.end * width) };
            vectors::rope(x, width, start + rows.start, rope, turn);
        });
    }

    fn attention_forward(&self, shape: Attention, out: &mut [f32], log_sum: &mut [f32], inputs: Qkv<'_>) {
        attention::forward(&self.pool, self.precision, shape, out, log_sum, inputs);
    }

    fn keeps_bf16(&self) -> bool {
        self.precision != Precision::F32
    }

    fn attention_cached(
        &self,
        shape: Attention,
        out: &mut [f32],
        q: &[f32],
        seen: &[Seen<'_>],
        cached: Cached<'_>,
    ) {
        cached::forward(&self.pool, shape, out, q, seen, cached);
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
        let known = attention::Known { inputs, out, dout, log_sum };
        attention::backward(&self.pool, self.precision, shape, gradient, known);
    }

    fn swiglu_forward(&self, y: &mut [f32], gate: &[f32], up: &[f32]) {
        let y = Parts::new(y);
        self.rows(gate.len(), 1, &|part| {
            // SAFETY: the parts do not overlap.
            #[allow(unsafe_code)]
            let y = unsafe { y.get(part.clone()) };
            vectors::swiglu_forward(y, &gate[part.clone()], &up[part]);
        });
    }

    fn swiglu_backward(&self, dgate: &mut [f32], dup: &mut [f32], dy: &[f32], gate: &[f32], up: &[f32]) {
        let (dgate, dup) = (Parts::new(dgate), Parts::new(dup));
        self.rows(dy.len(), 1, &|part| {
            // SAFETY: the parts do not overlap.
            #[allow(unsafe_code)]
            let (dgate, dup) = unsafe { (dgate.get(part.clone()), dup.get(part.clone())) };
            vectors::swiglu_backward(dgate, dup, &dy[part.clone()], &gate[part.clone()], &up[part]);
        });
    }

    fn cross_entropy(&self, dlogits: &mut [f32], logits: &[f32], targets: &[u32]) -> f32 {
        dlogits.copy_from_slice(logits);
        (self.losses(dlogits, targets, targets.len()) / targets.len() as f64) as f32
    }

    /// Chunk by chunk: logits, their gradient over them, and what both matrices get of it.
    fn linear_cross_entropy(&self, shape: Linear, dx: &mut [f32], dw: &mut [f32], head: Head<'_>) -> f32 {
        let Linear { rows: n, inputs, outputs, .. } = shape;
        let chunk = (HEAD_LOGITS / outputs).max(HEAD_ROWS).min(n);
        let (mut logits, mut loss) = (vec![0.0; chunk * outputs], 0.0);
        for first in (0..n).step_by(chunk) {
            let rows = chunk.min(n - first);
            let (shape, logits) = (Linear::new(rows, inputs, outputs), &mut logits[..rows * outputs]);
            let (x, wide) =
                (&head.x[first * inputs..][..rows * inputs], first * inputs..(first + rows) * inputs);
            self.linear_forward(shape, logits, x, head.w, false);
            loss += self.losses(logits, &head.targets[first..first + rows], n);
            self.linear_backward_input(shape, &mut dx[wide], logits, head.w, false);
            self.linear_backward_weight(shape, dw, logits, x);
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
        let (parameters, first, second) = (Parts::new(parameters), Parts::new(first), Parts::new(second));
        self.rows(gradient.len(), 1, &|part| {
            // SAFETY: the parts do not overlap.
            #[allow(unsafe_code)]
            let (parameters, first, second) =
                unsafe { (parameters.get(part.clone()), first.get(part.clone()), second.get(part.clone())) };
            vectors::adamw(parameters, first, second, &gradient[part], update);
        });
    }

    fn sum_of_squares(&self, x: &[f32]) -> f64 {
        let count = x.len().div_ceil(PART);
        let mut parts = vec![0.0; count];
        let sums = Parts::new(&mut parts);
        self.rows(count, PART, &|some| {
            for part in some {
                // SAFETY: every part is met once.
                #[allow(unsafe_code)]
                let sum = unsafe { sums.get(part..part + 1) };
                sum[0] = vectors::sum_of_squares(&x[part * PART..x.len().min((part + 1) * PART)]);
            }
        });
        reference::add_up(parts.into_iter())
    }
}

/// Logits that are held at a time, as far as the rows are more than [`HEAD_ROWS`]: few enough for the cache to keep
/// them, and enough rows to make up for reading and writing the weight and its gradient once for each chunk.
const HEAD_LOGITS: usize = 1 << 20;
const HEAD_ROWS: usize = 252;

impl Cpu {
    /// Turns logits into their gradient, for a mean over `n` rows, and returns the sum of the losses.
    fn losses(&self, logits: &mut [f32], targets: &[u32], n: usize) -> f64 {
        let vocabulary = logits.len() / targets.len();
        let mut losses = vec![0.0; targets.len()];
        let (logits, parts) = (Parts::new(logits), Parts::new(&mut losses));
        self.rows(targets.len(), vocabulary, &|rows| {
            for row in rows {
                // SAFETY: every row is met once.
                #[allow(unsafe_code)]
                let (logits, loss) = unsafe {
                    (logits.get(row * vocabulary..(row + 1) * vocabulary), parts.get(row..row + 1))
                };
                let target = targets[row] as usize;
                let at = logits[target];
                loss[0] = f64::from(vectors::softmax(logits, 1.0 / n as f32) - at);
                logits[target] -= 1.0 / n as f32;
            }
        });
        losses.iter().sum()
    }

    /// A linear layer of many rows: some rows of the weight at a time become bf16, which costs little beside the product.
    fn int8_panels(&self, shape: Linear, y: &mut [f32], x: &[f32], w: Int8<'_>, accumulate: bool) {
        /// Rows of the weight; a multiple of what a product packs at a time.
        const ROWS: usize = 1024;
        let Linear { rows, inputs, outputs, .. } = shape;
        let mut rounded = self.rounded.lock().expect("no panic while locked");
        for first in (0..outputs).step_by(ROWS) {
            let count = ROWS.min(outputs - first);
            if rounded.len() < count * inputs {
                rounded.resize(count * inputs, Bf16::default());
            }
            let parts = Parts::new(&mut rounded[..count * inputs]);
            self.rows(count, inputs, &|some| {
                let mut row = vec![0.0; inputs];
                for index in some {
                    // SAFETY: every row is met once.
                    #[allow(unsafe_code)]
                    let to = unsafe { parts.get(index * inputs..(index + 1) * inputs) };
                    w.copy_row(&mut row, first + index);
                    round_all(to, &row);
                }
            });
            let w = View::of(Elements::Bf16(&rounded[..count * inputs]), inputs).transpose();
            let product = self.product([rows, count, inputs], View::rows(x, inputs), w);
            product.run(&self.pool, &mut y[first..], outputs, accumulate);
        }
    }

    /// A linear layer by one dot product for each output: reads the weight once and copies nothing. `dots(y, rows,
    /// outputs)` computes some outputs of at most [`ROWS`] rows, whose parts of the result are `y`.
    fn few_rows(
        &self,
        shape: Linear,
        y: &mut [f32],
        dots: impl Fn(&mut [&mut [f32]], Range<usize>, Range<usize>) + Sync,
    ) {
        /// Whose weights stay in the cache while all rows meet them: whole tiles of [`dots`].
        const OUTPUTS: usize = 12;
        let Linear { rows, inputs, outputs, .. } = shape;
        let y = Parts::new(y);
        let least = WORTH_A_THREAD_OF_DOTS.div_ceil((rows * inputs).max(1));
        self.pool.split(outputs, 1, least, &|part| {
            // A few outputs at a time, so that their weights are read from memory once for all rows.
            for first in part.clone().step_by(OUTPUTS) {
                let some = first..part.end.min(first + OUTPUTS);
                for first in (0..rows).step_by(ROWS) {
                    let together = first..rows.min(first + ROWS);
                    let mut parts: [&mut [f32]; ROWS] = Default::default();
                    for (part, row) in parts.iter_mut().zip(together.clone()) {
                        // SAFETY: the parts of a row do not overlap.
                        #[allow(unsafe_code)]
                        let y = unsafe { y.get(row * outputs + some.start..row * outputs + some.end) };
                        *part = y;
                    }
                    dots(&mut parts[..together.len()], together, some.clone());
                }
            }
        });
    }
}

#[cfg(test)]
mod tests;
