//! A Llama decoder: RMS norm, rotary positions, attention with grouped queries, SwiGLU.
//!
//! * `x` is the residual stream, `[N, hidden]`.
//! * a layer is `x += o(attention(rope(q(n)), rope(k(n)), v(n)))` with `n = norm(x)`, then
//!   `x += down(swiglu(gate(n), up(n)))` with `n = norm(x)` again (`Model::layer_forward`).
//! * [`training`] runs whole sequences and keeps what the backward pass reads; [`inference`] runs any number of
//!   sequences over their caches.
//!
//! Source: Touvron et al., "LLaMA", arXiv 2302.13971, section 2.2.

mod compact;
mod config;
pub mod inference;
mod parameters;
mod rope;
mod trained;
pub mod training;

pub use config::{ConfigError, ModelConfig, PRESETS};
pub use parameters::{LayerSpans, Layout, Projection, Span, Tensor};
pub use rope::{RopeScaling, Yarn};
pub use trained::Trained;

use crate::kernels::{
    BLOCK, Backend, CacheShape, DeviceError, Kernels, Linear, Path, Precision, Rope, Weight, Weights,
};
use crate::mapping::in_large_pages;
use compact::Compact;
use std::ops::Range;
use std::sync::Arc;

/// A model: its shape and its parameters, which lie where a [`Backend`] reads them.
pub struct Model<W = HostWeights> {
    /// The shape.
    pub config: ModelConfig,
    /// Where each tensor lies among the parameters.
    pub layout: Layout,
    /// The parameters.
    pub weights: W,
}

/// Parameters in the host's memory.
pub struct HostWeights {
    /// All of them, in the order of the layout; empty in a model that was [compacted](Model::compact).
    pub parameters: Vec<f32>,
    compact: Option<Compact>,
    /// Shared by all models of its shape that were made of one.
    rope: Arc<Rope>,
}

impl HostWeights {
    /// In single precision.
    pub(crate) fn new(parameters: Vec<f32>, rope: Arc<Rope>) -> HostWeights {
        HostWeights { parameters, compact: None, rope }
    }

    /// The angles of all positions.
    pub(crate) fn shared_rope(&self) -> &Arc<Rope> {
        &self.rope
    }
}

impl<K: Kernels + 'static> Weights<K> for HostWeights {
    fn matrix(&self, at: Range<usize>) -> Weight<'_> {
        match &self.compact {
            None => Weight::F32(&self.parameters[at]),
            Some(compact) => compact.matrix(at),
        }
    }

    fn elements(&self, at: Range<usize>) -> &[f32] {
        &self.parameters[at]
    }

    fn vector(&self, at: Range<usize>) -> &[f32] {
        match &self.compact {
            None => &self.parameters[at],
            Some(compact) => compact.vector(at.start),
        }
    }

    fn rope(&self) -> &Rope {
        &self.rope
    }
}

/// What a layer computed for `rows` rows, kept for the backward pass; in floats `F` and elements `E`.
#[derive(Default)]
struct LayerActivations<F, E> {
    /// The layer's input.
    x: F,
    rstd: F,
    norm: E,
    /// After the rotation.
    q: E,
    /// After the rotation, in the training pass.
    k: E,
    /// Before their norms, where the family has them.
    plain_q: E,
    plain_k: E,
    q_rstd: F,
    k_rstd: F,
    v: E,
    attention: E,
    log_sum: F,
    /// The stream between attention and SwiGLU.
    middle: F,
    middle_rstd: F,
    middle_norm: E,
    gate: E,
    up: E,
    inner: E,
}

/// Those of a backend.
type Activations<K> = LayerActivations<<K as Backend>::FloatBuffer, <K as Backend>::ElementBuffer>;

impl<F, E> LayerActivations<F, E> {
    fn resize<K>(&mut self, kernels: &K, config: &ModelConfig, rows: usize)
    where
        K: Backend<FloatBuffer = F, ElementBuffer = E>,
    {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) = (config.query_width(), config.key_width());
        let norms = usize::from(config.has_qk_norms());
        for (buffer, width) in [
            (&mut self.x, hidden),
            (&mut self.rstd, 1),
            (&mut self.q_rstd, norms * config.num_attention_heads),
            (&mut self.k_rstd, norms * config.num_key_value_heads),
            (&mut self.log_sum, config.num_attention_heads),
            (&mut self.middle, hidden),
            (&mut self.middle_rstd, 1),
        ] {
            kernels.resize(buffer, rows * width);
        }
        for (buffer, width) in [
            (&mut self.norm, hidden),
            (&mut self.q, queries),
            (&mut self.k, keys),
            (&mut self.plain_q, norms * queries),
            (&mut self.plain_k, norms * keys),
            (&mut self.v, keys),
            (&mut self.attention, queries),
            (&mut self.middle_norm, hidden),
            (&mut self.gate, inner),
            (&mut self.up, inner),
            (&mut self.inner, inner),
        ] {
            kernels.resize_elements(buffer, rows * width);
        }
    }
}

impl ModelConfig {
    /// Length of a row of queries.
    fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Length of a row of keys or values.
    fn key_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// So many blocks of keys and values.
    pub fn cache(&self, blocks: usize) -> CacheShape {
        let (kv_heads, head_dim) = (self.num_key_value_heads, self.head_dim);
        CacheShape { layers: self.num_hidden_layers, blocks, kv_heads, head_dim }
    }

    /// Elements of a block of keys and values, in all layers.
    pub fn block_elements(&self) -> usize {
        self.num_hidden_layers * 2 * BLOCK * self.key_width()
    }
}

impl Model {
    /// A model of the given shape with parameters that are a pure function of `seed`.
    pub fn new(config: ModelConfig, seed: u64) -> Model {
        let parameters = Layout::new(&config).initial(seed);
        Model::with_parameters(config, parameters)
    }

    /// A model with the given parameters, in the order of its layout.
    pub fn with_parameters(config: ModelConfig, parameters: Vec<f32>) -> Model {
        let layout = Layout::new(&config);
        assert_eq!(layout.len, parameters.len(), "parameters of another shape");
        let rope = Arc::new(rope::angles(&config));
        Model { config, layout, weights: HostWeights::new(parameters, rope) }
    }

    /// A model of the same shape with other parameters.
    pub fn like(&self, parameters: Vec<f32>) -> Model {
        assert_eq!(self.layout.len, parameters.len(), "parameters of another shape");
        self.with(HostWeights::new(parameters, Arc::clone(&self.weights.rope)))
    }

    /// A model whose parameters come from `read`, which fills a stretch of a tensor's elements; kept as `precision` says.
    /// With less than single precision, no more than a part of a matrix exists in `f32` at a time.
    ///
    /// # Errors
    /// The first one of `read`.
    pub fn read<E>(
        config: ModelConfig,
        precision: Precision,
        mut read: impl FnMut(&Tensor, Range<usize>, &mut [f32]) -> Result<(), E>,
    ) -> Result<Model, E> {
        let layout = Layout::new(&config);
        let (mut parameters, mut compact) = (Vec::new(), None);
        if precision == Precision::F32 {
            parameters = in_large_pages(layout.len, 0.0);
            for tensor in &layout.tensors {
                read(tensor, 0..tensor.span.len, tensor.span.of_mut(&mut parameters))?;
            }
        } else {
            compact = Some(Compact::read(&layout, precision, read)?);
        }
        let rope = rope::angles(&config);
        Ok(Model { config, layout, weights: HostWeights { parameters, compact, rope: Arc::new(rope) } })
    }

    /// Keeps the matrices in bf16 or int8 from now on: less memory, for inference only. In f32 nothing changes.
    pub fn compact(&mut self, precision: Precision) {
        if precision == Precision::F32 {
            return;
        }
        let all = std::mem::take(&mut self.weights.parameters);
        let copy = |tensor: &Tensor, part: Range<usize>, values: &mut [f32]| {
            values.copy_from_slice(&tensor.span.of(&all)[part]);
            Ok::<_, std::convert::Infallible>(())
        };
        let Ok(compact) = Compact::read(&self.layout, precision, copy);
        self.weights.compact = Some(compact);
    }
}

impl<W> Model<W> {
    /// A model of the same shape with other parameters.
    pub(crate) fn with<V>(&self, weights: V) -> Model<V> {
        Model { config: self.config.clone(), layout: self.layout.clone(), weights }
    }

    /// Room for keys and values on a device.
    ///
    /// # Errors
    /// It has no room.
    pub fn cache<K: Backend>(&self, kernels: &K, blocks: usize) -> Result<K::Cache, DeviceError> {
        kernels.cache(self.config.cache(blocks))
    }

    /// One layer: reads `saved.x`, fills the rest of `saved`, and leaves the layer's output in `y`.
    ///
    /// `attend` gets `saved` with unrotated `q`, `k` and `v`, and fills `attention` and `log_sum`: where the keys
    /// of earlier positions come from is all that training and inference do differently. Linear layers go by `path`.
    fn layer_forward<K: Backend<Weights = W>>(
        &self,
        kernels: &K,
        (layer, rows, path): (usize, usize, Path),
        saved: &mut Activations<K>,
        y: &mut K::Floats,
        attend: impl FnOnce(&mut Activations<K>),
    ) where
        W: Weights<K>,
    {
        let (config, weights, spans) = (&self.config, &self.weights, &self.layout.layers[layer]);
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys, eps) = (config.query_width(), config.key_width(), config.rms_norm_eps);
        let linear = |inputs, outputs| Linear { path, ..Linear::new(rows, inputs, outputs) };
        let project =
            |y: &mut K::Elements, x: &K::Elements, layer: Projection, [inputs, outputs]: [usize; 2]| {
                let bias = layer.bias.map(|bias| weights.vector(bias.range()));
                kernels.project(linear(inputs, outputs), y, x, weights.matrix(layer.weight.range()), bias);
            };
        let onto =
            |y: &mut K::Floats, base: &K::Floats, x: &K::Elements, layer: Projection, inputs: usize| {
                let bias = layer.bias.map(|bias| weights.vector(bias.range()));
                let w = weights.matrix(layer.weight.range());
                kernels.project_onto(linear(inputs, hidden), y, base, x, w, bias);
            };

        let w = weights.vector(spans.input_norm.range());
        kernels.rms_norm_forward(&mut saved.norm, &mut saved.rstd, &saved.x, w, eps);
        project(&mut saved.v, &saved.norm, spans.v, [hidden, keys]);
        match spans.qk_norms {
            None => {
                project(&mut saved.q, &saved.norm, spans.q, [hidden, queries]);
                project(&mut saved.k, &saved.norm, spans.k, [hidden, keys]);
            }
            Some([q_norm, k_norm]) => {
                project(&mut saved.plain_q, &saved.norm, spans.q, [hidden, queries]);
                project(&mut saved.plain_k, &saved.norm, spans.k, [hidden, keys]);
                let (q_norm, k_norm) = (weights.vector(q_norm.range()), weights.vector(k_norm.range()));
                kernels.head_norm_forward(&mut saved.q, &mut saved.q_rstd, &saved.plain_q, q_norm, eps);
                kernels.head_norm_forward(&mut saved.k, &mut saved.k_rstd, &saved.plain_k, k_norm, eps);
            }
        }
        attend(saved);
        onto(&mut saved.middle, &saved.x, &saved.attention, spans.o, queries);

        let w = weights.vector(spans.post_attention_norm.range());
        kernels.rms_norm_forward(&mut saved.middle_norm, &mut saved.middle_rstd, &saved.middle, w, eps);
        project(&mut saved.gate, &saved.middle_norm, spans.gate, [hidden, inner]);
        project(&mut saved.up, &saved.middle_norm, spans.up, [hidden, inner]);
        kernels.swiglu_forward(&mut saved.inner, &saved.gate, &saved.up);
        onto(y, &saved.middle, &saved.inner, spans.down, inner);
    }
}
