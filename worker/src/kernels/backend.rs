//! What the model's passes ask of a backend.

use super::{Attention, CacheShape, Linear, Seen, Training, Turn};
use crate::model::{Model, Trained};
use crate::values::Values;
use std::ops::{DerefMut, Index, IndexMut, Range};
use std::sync::Arc;

/// A stretch of a backend's memory, cut as slices are.
pub trait Stretch: Index<Range<usize>, Output = Self> + IndexMut<Range<usize>> {}

impl<T> Stretch for [T] {}

/// Something that a device could not do, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DeviceError(pub String);

/// The parameters of a model where a backend reads them. Stretches are those of the flat vector of all.
pub trait Weights<K: Backend>: Send + Sync {
    /// A matrix.
    fn matrix(&self, at: Range<usize>) -> K::Weight<'_>;
    /// A matrix that is learned.
    fn elements(&self, at: Range<usize>) -> &K::Elements;
    /// The weight of a norm, or a bias.
    fn vector(&self, at: Range<usize>) -> &K::Floats;
    /// The angles of all positions.
    fn rope(&self) -> &K::Rope;
}

/// A backend: a memory, and the operations on what lies there. The model's passes are written over it, once.
///
/// On processors all memory is slices of `f32`. A device has memory of its own, which is named here and never read, and
/// keeps what products read in fewer bits. Its operations may return before they are done. One that fails is remembered,
/// what follows does nothing, and where results come to the host ([`read`](Backend::read), [`Values::host`], [`Training::share`])
/// the failure comes instead. See `docs/decisions/0031-one-model-for-all-memories.md`.
pub trait Backend: Send + Sync + Sized + 'static {
    /// Single precision: the residual stream, statistics, weights of norms, gradients of parameters, logits.
    type Floats: ?Sized + Stretch + 'static;
    /// Everything else: what matrix products read and write.
    type Elements: ?Sized + Stretch + 'static;
    /// Memory for floats, empty by default.
    type FloatBuffer: DerefMut<Target = Self::Floats> + Default + Send;
    /// Memory for elements, empty by default.
    type ElementBuffer: DerefMut<Target = Self::Elements> + Default + Send;
    /// All parameters of a model.
    type Weights: Weights<Self>;
    /// One matrix of them.
    type Weight<'a>: Copy;
    /// The angles of the rotation.
    type Rope;
    /// Keys and values of all layers.
    type Cache: Send;
    /// Room for what is told of rows, empty by default.
    type RowBuffer: Default + Send;
    /// The tokens of a pass's rows, and where they stand.
    type Rows<'a>;

    /// Rows of prompts are filled up to a multiple of this many, for backends where the number of rows decides how a
    /// product is computed.
    const PROMPT_ROWS: usize = 1;

    /// The parameters of `model` on this device. A device that has memory of its own copies them to `held`, which is empty
    /// or what an earlier call has left there; unless they are there and not `new` since then.
    ///
    /// # Errors
    /// The device has no room, or has failed.
    fn place<'a>(
        &self,
        held: &'a mut Option<Model<Self::Weights>>,
        model: &'a Model,
        new: bool,
    ) -> Result<&'a Model<Self::Weights>, DeviceError>;

    /// As [`place`](Backend::place), of a model that nobody else reads.
    ///
    /// # Errors
    /// As [`place`](Backend::place).
    fn adopt(&self, model: Model) -> Result<Model<Self::Weights>, DeviceError>;

    /// A model that is trained in the memory of this device.
    ///
    /// # Errors
    /// As [`place`](Backend::place).
    fn train(&self, trained: Arc<Trained>) -> Result<Box<dyn Training<Self>>, DeviceError>;

    /// Room for so many floats of any value.
    fn resize(&self, buffer: &mut Self::FloatBuffer, len: usize);

    /// Room for so many elements of any value.
    fn resize_elements(&self, buffer: &mut Self::ElementBuffer, len: usize);

    /// Zeros.
    fn zero(&self, x: &mut Self::Floats);

    /// `to = from`.
    fn copy(&self, to: &mut Self::Floats, from: &Self::Floats);

    /// `x` as products read it; in `room`, where that is not as it is.
    fn rounded<'a>(&self, x: &'a Self::Floats, room: &'a mut Self::ElementBuffer) -> &'a Self::Elements;

    /// `x` in the host's memory; in `room`, where it is not.
    ///
    /// # Errors
    /// The device has failed, now or before.
    fn read<'a>(&self, x: &'a Self::Floats, room: &'a mut Vec<f32>) -> Result<&'a [f32], DeviceError>;

    /// As [`read`](Backend::read).
    ///
    /// # Errors
    /// As [`read`](Backend::read).
    fn read_elements<'a>(
        &self,
        x: &'a Self::Elements,
        room: &'a mut Vec<f32>,
    ) -> Result<&'a [f32], DeviceError>;

    /// `to = from`, which may change as soon as this returns.
    fn write(&self, to: &mut Self::Floats, from: &[f32]);

    /// What is to be added up with what others have computed. It stays where it is.
    fn keep(&self, floats: Self::FloatBuffer) -> Values;

    /// `x += y`.
    fn add(&self, x: &mut Self::Floats, y: &Self::Floats);

    /// Whether all of `x` are finite numbers.
    ///
    /// # Errors
    /// As [`read`](Backend::read).
    fn are_finite(&self, x: &Self::Floats) -> Result<bool, DeviceError>;

    /// Row `n` of `x`, `[tokens, width]`, is row `tokens[n]` of `w`.
    fn embed(&self, x: &mut Self::Floats, tokens: &[u32], w: Self::Weight<'_>, width: usize);

    /// As [`embed`](Backend::embed), of the tokens of `rows`.
    fn embed_rows(&self, x: &mut Self::Floats, rows: &Self::Rows<'_>, w: Self::Weight<'_>, width: usize);

    /// `y[R, O] = x[R, I] * w[O, I]^T`, with `bias` of `[O]` added to each row. A row of `y` depends on its row of `x` and the
    /// shape's path alone, bit for bit; for [`Path::Panels`](super::Path::Panels) on some backends also on [`PROMPT_ROWS`](Backend::PROMPT_ROWS)
    /// rows being computed at a time.
    fn project(
        &self,
        shape: Linear,
        y: &mut Self::Elements,
        x: &Self::Elements,
        w: Self::Weight<'_>,
        bias: Option<&Self::Floats>,
    );

    /// As [`project`](Backend::project), added to `base`.
    fn project_onto(
        &self,
        shape: Linear,
        y: &mut Self::Floats,
        base: &Self::Floats,
        x: &Self::Elements,
        w: Self::Weight<'_>,
        bias: Option<&Self::Floats>,
    );

    /// As [`project`](Backend::project), not rounded.
    fn logits(&self, shape: Linear, y: &mut Self::Floats, x: &Self::Elements, w: Self::Weight<'_>);

    /// `dx[R, I] = dy[R, O] * w[O, I]`, or `+=` with `accumulate`.
    fn linear_backward_input(
        &self,
        shape: Linear,
        dx: &mut Self::Elements,
        dy: &Self::Elements,
        w: &Self::Elements,
        accumulate: bool,
    );

    /// `dw[O, I] += dy[R, O]^T * x[R, I]`.
    fn linear_backward_weight(
        &self,
        shape: Linear,
        dw: &mut Self::Floats,
        dy: &Self::Elements,
        x: &Self::Elements,
    );

    /// Adds the rows of `dy`, of the length of `db`, to it.
    fn bias_backward(&self, db: &mut Self::Floats, dy: &Self::Elements);

    /// RMS norm of every row of the stream.
    fn rms_norm_forward(
        &self,
        y: &mut Self::Elements,
        rstd: &mut Self::Floats,
        x: &Self::Floats,
        w: &Self::Floats,
        eps: f32,
    );

    /// Adds the gradients of the RMS norm to `dx` and `dw`.
    fn rms_norm_backward(
        &self,
        dx: &mut Self::Floats,
        dw: &mut Self::Floats,
        dy: &Self::Elements,
        x: &Self::Floats,
        w: &Self::Floats,
        rstd: &Self::Floats,
    );

    /// RMS norm of every head of queries or keys.
    fn head_norm_forward(
        &self,
        y: &mut Self::Elements,
        rstd: &mut Self::Floats,
        x: &Self::Elements,
        w: &Self::Floats,
        eps: f32,
    );

    /// Gradients of the norm of heads: overwrites `dx`, adds to `dw`.
    fn head_norm_backward(
        &self,
        dx: &mut Self::Elements,
        dw: &mut Self::Floats,
        dy: &Self::Elements,
        x: &Self::Elements,
        w: &Self::Floats,
        rstd: &Self::Floats,
    );

    /// Turns the heads of `x`, sequences of `length` rows of `width`, in place.
    fn rope(&self, x: &mut Self::Elements, width: usize, length: usize, rope: &Self::Rope, turn: Turn);

    /// Turns the heads of `x` forward in place, each row by its position.
    fn rope_rows(&self, x: &mut Self::Elements, width: usize, rows: &Self::Rows<'_>, rope: &Self::Rope);

    /// Causal attention of sequences one after the other; `inputs` are queries, keys and values. A query's result depends on itself and the keys and values that
    /// it sees alone, bit for bit.
    fn attention_forward(
        &self,
        shape: Attention,
        out: &mut Self::Elements,
        log_sum: &mut Self::Floats,
        inputs: [&Self::Elements; 3],
    );

    /// Gradients of causal attention of sequences one after the other, overwriting `gradient`.
    fn attention_backward(
        &self,
        shape: Attention,
        gradient: [&mut Self::Elements; 3],
        dout: &Self::Elements,
        out: &Self::Elements,
        log_sum: &Self::Floats,
        inputs: [&Self::Elements; 3],
    );

    /// Bytes that keys and values may take by default, and bytes of one element of them. The model is there already.
    fn cache_bytes(&self) -> (u64, usize);

    /// So much room for keys and values.
    ///
    /// # Errors
    /// The device has no room.
    fn cache(&self, shape: CacheShape) -> Result<Self::Cache, DeviceError>;

    /// Rows that so many rows of what was said are filled up to, for backends on which passes should have few different shapes.
    fn filled(rows: usize) -> usize {
        rows
    }

    /// The rows of a pass, for the operations that ask: row `n` has `tokens[n]` and stands at the last position that `seen[n]` sees. Rows
    /// behind those of `seen` only fill up: nothing of them goes into the cache, and what is computed of them has no meaning.
    fn rows<'a>(
        &self,
        room: &'a mut Self::RowBuffer,
        tokens: &'a [u32],
        seen: &'a [Seen<'a>],
    ) -> Self::Rows<'a>;

    /// Does `work`, operations of which many passes ask with the same operands, so that only what lies in them differs. A device may queue all
    /// of them by one call.
    fn at_once(&self, work: impl FnOnce()) {
        work();
    }

    /// Puts keys and values `[rows, KV, D]` of one layer where they belong.
    fn cache_write(
        &self,
        cache: &mut Self::Cache,
        layer: usize,
        rows: &Self::Rows<'_>,
        k: &Self::Elements,
        v: &Self::Elements,
    );

    /// Keys and values of all positions that `seen` has, `[keys, KV, D]`.
    fn cache_read(
        &self,
        cache: &Self::Cache,
        layer: usize,
        seen: Seen<'_>,
        k: &mut Self::Elements,
        v: &mut Self::Elements,
    );

    /// Attention of single queries, `out` and `q`: `[rows, H, D]`, each over what it sees of a layer of the cache. Of `shape`
    /// the heads count. A query's result depends on itself and what it sees alone, bit for bit.
    fn attention_cached(
        &self,
        shape: Attention,
        out: &mut Self::Elements,
        q: &Self::Elements,
        rows: &Self::Rows<'_>,
        cache_and_layer: (&Self::Cache, usize),
    );

    /// `y = silu(gate) * up`.
    fn swiglu_forward(&self, y: &mut Self::Elements, gate: &Self::Elements, up: &Self::Elements);

    /// Gradients of SwiGLU, overwriting `dgate` and `dup`.
    fn swiglu_backward(
        &self,
        dgate: &mut Self::Elements,
        dup: &mut Self::Elements,
        dy: &Self::Elements,
        gate: &Self::Elements,
        up: &Self::Elements,
    );

    /// Adds the rows of `dy` to the rows of their tokens.
    fn embedding_backward(&self, dw: &mut Self::Floats, tokens: &[u32], dy: &Self::Floats, width: usize);

    /// Output layer `w` and mean loss of its rows, given the token that each should predict: overwrites `dx` with the gradient
    /// of `x`, adds that of `w` to `dw`, and never holds all logits at once.
    fn linear_cross_entropy(
        &self,
        shape: Linear,
        dx: &mut Self::Elements,
        dw: &mut Self::Floats,
        x_and_w: (&Self::Elements, &Self::Elements),
        targets: &[u32],
    ) -> f32;
}
