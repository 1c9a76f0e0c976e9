//! The arithmetic of a transformer, forward and backward, written out by hand.
//!
//! [`mod@reference`] is the specification: naive loops, shapes and sources in its comments. Every method of
//! [`Kernels`] does what the function of the same name there does, and is that function unless there is a
//! faster one. [`Cpu`] trains and serves on processors. [`Backend`] is what the model is written over: a memory, and the
//! operations on what lies there.
//!
//! Matrices are row-major slices of `f32`; `[N, C]` is `N` rows of `C`. All sums have a fixed order that depends
//! on shapes alone, so a result is the same for any number of threads. It is bit-identical between machines of
//! one instruction set, and equal within rounding across instruction sets.

#[cfg(target_arch = "x86_64")]
mod amx;
mod backend;
mod bf16;
mod cpu;
mod cuda;
mod device;
mod gemm;
mod host;
mod int8;
mod isa;
mod kv;
pub mod peak;
mod pool;
pub mod reference;
mod training;

pub use backend::{Backend, DeviceError, Stretch, Weights};
pub use bf16::{Bf16, round_all};
pub use cpu::Cpu;
pub use cuda::{Card, Cuda, Element, Id, Nccl, Pair};
pub use device::{Chosen, Device};
pub use int8::{GROUP, Int8, quantise};
pub use isa::Isa;
pub use kv::{Blocks, Cached, Kept, KvBlocks};
pub use pool::pin_threads;
pub use training::{Offloaded, Training};

/// What the operands of matrix products are rounded to. Sums, everything between the products, master weights and
/// moments are `f32` in all.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// bfloat16: twice the speed where the processor multiplies it, and half the digits of a product's factors.
    Bf16,
    /// Weights of 8 bits with a scale for every 64 of a row, for inference only: half the memory of bf16, and half
    /// the time of a token where reading them is what takes the time. Long products have factors of bf16.
    Int8,
}

impl Precision {
    /// Its name in options and files.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
        }
    }
}

/// Shape of a linear layer applied to `rows` vectors: `y[R, O] = x[R, I] * w[O, I]^T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// R: vectors.
    pub rows: usize,
    /// I: length of an input vector.
    pub inputs: usize,
    /// O: length of an output vector.
    pub outputs: usize,
    /// How it is computed.
    pub path: Path,
}

/// How a linear layer is computed. A row of the result depends on its own input and the path alone, bit for bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// A dot product for each output: reads the weight once and copies nothing, best for few rows.
    Dots,
    /// A product of packed panels, best for many rows.
    Panels,
}

impl Path {
    /// The faster one for so many rows.
    pub fn of(rows: usize) -> Path {
        if rows <= MAX_DECODE_ROWS { Path::Dots } else { Path::Panels }
    }
}

impl Linear {
    /// `rows` vectors of length `inputs` become vectors of length `outputs`, by the faster path.
    pub fn new(rows: usize, inputs: usize, outputs: usize) -> Linear {
        Linear { rows, inputs, outputs, path: Path::of(rows) }
    }
}

/// Positions in a block of cached keys and values.
pub const BLOCK: usize = 16;

/// How much room for keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Layers.
    pub layers: usize,
    /// Blocks of [`BLOCK`] positions.
    pub blocks: usize,
    /// KV: key and value heads.
    pub kv_heads: usize,
    /// D: length of a head.
    pub head_dim: usize,
}

/// What one query sees of the cache.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// Block `table[s / BLOCK]` holds position `s`.
    pub table: &'a [u32],
    /// Positions, at least one.
    pub keys: usize,
}

/// Shape of causal attention with grouped queries: the queries are the last `queries` of all positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    /// T: query positions.
    pub queries: usize,
    /// Position of the first query; query `t` sees the keys `0 ..= start + t`.
    pub start: usize,
    /// H: query heads, a multiple of `kv_heads`; query head `h` reads key head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// KV: key and value heads.
    pub kv_heads: usize,
    /// D: length of a head.
    pub head_dim: usize,
}

impl Attention {
    /// S: key positions, `start + queries`.
    pub fn keys(&self) -> usize {
        self.start + self.queries
    }

    /// Length of one query row, `H * D`.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Length of one key or value row, `KV * D`.
    pub fn key_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The key head that query head `head` reads.
    pub fn key_head(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }

    /// What scores are multiplied with, `1 / sqrt(D)`.
    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// Inputs of attention: `q: [T, H, D]`, `k` and `v`: `[S, KV, D]`.
#[derive(Clone, Copy)]
pub struct Qkv<'a> {
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
}

/// Gradients of the inputs of attention, in the shapes of [`Qkv`].
pub struct QkvGradient<'a> {
    /// Gradient of the queries.
    pub q: &'a mut [f32],
    /// Gradient of the keys.
    pub k: &'a mut [f32],
    /// Gradient of the values.
    pub v: &'a mut [f32],
}

/// A matrix that inference only reads.
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    /// In single precision.
    F32(&'a [f32]),
    /// In half the memory: half the time where reading it is what takes the time.
    Bf16(&'a [Bf16]),
    /// In a quarter of the memory.
    Int8(Int8<'a>),
}

impl Weight<'_> {
    /// Row `row` of a matrix of `y.len()` columns.
    pub fn copy_row(&self, y: &mut [f32], row: usize) {
        let part = row * y.len()..(row + 1) * y.len();
        match self {
            Weight::F32(w) => y.copy_from_slice(&w[part]),
            Weight::Bf16(w) => y.iter_mut().zip(&w[part]).for_each(|(y, w)| *y = w.value()),
            Weight::Int8(w) => w.copy_row(y, row),
        }
    }
}

/// What the output layer reads to compute a loss.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// Hidden vectors, `[R, I]`.
    pub x: &'a [f32],
    /// Weight, `[O, I]`: a row for each token of the vocabulary.
    pub w: &'a [f32],
    /// The token that each row should predict, `[R]`.
    pub targets: &'a [u32],
}

/// Angles of the rotary position embedding: cosine and sine for every position and pair.
///
/// Pair `i` of a head turns by `position * theta^(-2i / D)`. Source: Su et al., "RoFormer", arXiv 2104.09864,
/// section 3.2.2.
pub struct Rope {
    /// D: length of a head, even.
    pub head_dim: usize,
    /// `[positions, D / 2]`.
    pub cos: Vec<f32>,
    /// `[positions, D / 2]`.
    pub sin: Vec<f32>,
}

impl Rope {
    /// The angles of `positions` positions.
    pub fn new(positions: usize, head_dim: usize, theta: f64) -> Rope {
        let frequency = |pair: usize| theta.powf(-2.0 * pair as f64 / head_dim as f64);
        Rope::with_frequencies(positions, &(0..head_dim / 2).map(frequency).collect::<Vec<_>>(), 1.0)
    }

    /// As [`new`](Rope::new) with a frequency for each pair, in radians a position; sines and cosines are multiplied with
    /// `scale`, which makes scores larger by its square.
    pub fn with_frequencies(positions: usize, frequencies: &[f64], scale: f64) -> Rope {
        let half = frequencies.len();
        let angle = |index: usize| (index / half) as f64 * frequencies[index % half];
        Rope {
            head_dim: 2 * half,
            cos: (0..positions * half).map(|i| (scale * angle(i).cos()) as f32).collect(),
            sin: (0..positions * half).map(|i| (scale * angle(i).sin()) as f32).collect(),
        }
    }
}

/// Which way [`Kernels::rope`] turns: the backward pass of a rotation is the opposite rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The forward pass.
    Forward,
    /// The backward pass.
    Backward,
}

/// One update of AdamW. Source: Loshchilov and Hutter, "Decoupled weight decay regularization",
/// arXiv 1711.05101, algorithm 2, with the schedule inside `learning_rate`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Length of a step.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Keeps the division finite.
    pub eps: f32,
    /// Share of a parameter that a step of length 1 takes away.
    pub weight_decay: f32,
    /// Number of this update, from 1: corrects the moments' start at zero.
    pub update: u64,
    /// What the gradient is multiplied with first.
    pub scale: f32,
}

/// The operations on the host's memory. See [`mod@reference`] for what each one computes. Whoever has them is a
/// [`Backend`].
pub trait Kernels: Send + Sync {
    /// `y[R, O] = x[R, I] * w[O, I]^T`, or `+=` with `accumulate`. A row of `y` depends on its row of `x` and the
    /// shape's path alone, bit for bit.
    fn linear_forward(&self, shape: Linear, y: &mut [f32], x: &[f32], w: &[f32], accumulate: bool) {
        reference::linear_forward(shape, y, x, w, accumulate);
    }

    /// [`linear_forward`](Kernels::linear_forward) with a weight of any kind.
    fn linear(&self, shape: Linear, y: &mut [f32], x: &[f32], w: Weight<'_>, accumulate: bool) {
        match w {
            Weight::F32(w) => self.linear_forward(shape, y, x, w, accumulate),
            Weight::Bf16(w) => {
                let w: Vec<f32> = w.iter().map(|w| w.value()).collect();
                self.linear_forward(shape, y, x, &w, accumulate);
            }
            Weight::Int8(quantised) => {
                let mut w = vec![0.0; shape.outputs * shape.inputs];
                for (row, w) in w.chunks_exact_mut(shape.inputs).enumerate() {
                    quantised.copy_row(w, row);
                }
                self.linear_forward(shape, y, x, &w, accumulate);
            }
        }
    }

    /// `dx[R, I] = dy[R, O] * w[O, I]`, or `+=` with `accumulate`.
    fn linear_backward_input(&self, shape: Linear, dx: &mut [f32], dy: &[f32], w: &[f32], accumulate: bool) {
        reference::linear_backward_input(shape, dx, dy, w, accumulate);
    }

    /// `dw[O, I] += dy[R, O]^T * x[R, I]`.
    fn linear_backward_weight(&self, shape: Linear, dw: &mut [f32], dy: &[f32], x: &[f32]) {
        reference::linear_backward_weight(shape, dw, dy, x);
    }

    /// RMS norm of every row.
    fn rms_norm_forward(&self, y: &mut [f32], rstd: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
        reference::rms_norm_forward(y, rstd, x, w, eps);
    }

    /// Adds the gradients of the RMS norm to `dx` and `dw`.
    fn rms_norm_backward(
        &self,
        dx: &mut [f32],
        dw: &mut [f32],
        dy: &[f32],
        x: &[f32],
        w: &[f32],
        rstd: &[f32],
    ) {
        reference::rms_norm_backward(dx, dw, dy, x, w, rstd);
    }

    /// Turns the heads of `x` in place; the first row stands at position `start`.
    fn rope(&self, x: &mut [f32], width: usize, start: usize, rope: &Rope, turn: Turn) {
        reference::rope(x, width, start, rope, turn);
    }

    /// Causal attention. A query's result depends on itself and the keys and values that it sees alone, bit for bit.
    fn attention_forward(&self, shape: Attention, out: &mut [f32], log_sum: &mut [f32], inputs: Qkv<'_>) {
        reference::attention_forward(shape, out, log_sum, inputs);
    }

    /// Whether keys and values are kept in bf16. Then [`attention_forward`](Kernels::attention_forward) rounds them to it as well, so
    /// that it does not matter whether they come from the cache.
    fn keeps_bf16(&self) -> bool {
        false
    }

    /// Attention of single queries, `out` and `q`: `[seen, H, D]`, each over what it sees of a cache. Of `shape` the
    /// heads count. A query's result depends on itself and what it sees alone, bit for bit.
    fn attention_cached(
        &self,
        shape: Attention,
        out: &mut [f32],
        q: &[f32],
        seen: &[Seen<'_>],
        cached: Cached<'_>,
    ) {
        reference::attention_cached(shape, out, q, seen, cached);
    }

    /// Gradients of causal attention, overwriting `gradient`.
    fn attention_backward(
        &self,
        shape: Attention,
        gradient: QkvGradient<'_>,
        dout: &[f32],
        out: &[f32],
        log_sum: &[f32],
        inputs: Qkv<'_>,
    ) {
        reference::attention_backward(shape, gradient, dout, out, log_sum, inputs);
    }

    /// `y = silu(gate) * up`.
    fn swiglu_forward(&self, y: &mut [f32], gate: &[f32], up: &[f32]) {
        reference::swiglu_forward(y, gate, up);
    }

    /// Gradients of SwiGLU, overwriting `dgate` and `dup`.
    fn swiglu_backward(&self, dgate: &mut [f32], dup: &mut [f32], dy: &[f32], gate: &[f32], up: &[f32]) {
        reference::swiglu_backward(dgate, dup, dy, gate, up);
    }

    /// Copies the row of every token.
    fn embedding_forward(&self, y: &mut [f32], tokens: &[u32], w: &[f32], width: usize) {
        reference::embedding_forward(y, tokens, w, width);
    }

    /// Adds the rows of `dy` to the rows of their tokens.
    fn embedding_backward(&self, dw: &mut [f32], tokens: &[u32], dy: &[f32], width: usize) {
        reference::embedding_backward(dw, tokens, dy, width);
    }

    /// Mean loss of the rows, and its gradient in `dlogits`.
    fn cross_entropy(&self, dlogits: &mut [f32], logits: &[f32], targets: &[u32]) -> f32 {
        reference::cross_entropy(dlogits, logits, targets)
    }

    /// Output layer and mean loss of its rows: overwrites `dx` with the gradient of `head.x`, adds that of `head.w` to
    /// `dw`, and never holds all logits at once.
    fn linear_cross_entropy(&self, shape: Linear, dx: &mut [f32], dw: &mut [f32], head: Head<'_>) -> f32 {
        reference::linear_cross_entropy(shape, dx, dw, head)
    }

    /// One AdamW update of `parameters` and their moments.
    fn adamw(
        &self,
        parameters: &mut [f32],
        first: &mut [f32],
        second: &mut [f32],
        gradient: &[f32],
        update: &AdamW,
    ) {
        reference::adamw(parameters, first, second, gradient, update);
    }

    /// Sum of the squares, in double precision and in an order that depends on the length alone, the same everywhere.
    fn sum_of_squares(&self, x: &[f32]) -> f64 {
        reference::sum_of_squares(x)
    }
}

/// Rows of a linear layer that share each load of a weight in dot products: as many sums as fit in the registers.
const ROWS: usize = 4;

/// The most rows for which dot products are faster than packed panels.
pub const MAX_DECODE_ROWS: usize = 16;

/// The specification as a backend: slow, obvious, what the others are compared with.
pub struct Reference;

impl Kernels for Reference {}
