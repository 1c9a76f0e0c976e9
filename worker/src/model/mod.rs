//! A Llama decoder: RMS norm, rotary positions, attention with grouped queries, SwiGLU.
//!
//! * `x` is the residual stream, `[N, hidden]`.
//! * a layer is `x += o(attention(rope(q(n)), rope(k(n)), v(n)))` with `n = norm(x)`, then
//!   `x += down(swiglu(gate(n), up(n)))` with `n = norm(x)` again (`Model::layer_forward`).
//! * [`training`] runs whole sequences and keeps what the backward pass reads; [`inference`] runs any number of
//!   sequences over their caches.
//!
//! Source: Touvron et al., "LLaMA", arXiv 2302.13971, section 2.2.

mod cache;
mod config;
pub mod inference;
mod parameters;
pub mod training;

pub use cache::KvBlocks;
pub use config::{ConfigError, ModelConfig, PRESETS};
pub use parameters::{LayerSpans, Layout, Span, Tensor};

use crate::kernels::{Bf16, Kernels, Linear, Path, Rope, Weight, round_all};
use std::collections::BTreeMap;

/// A model: its shape and its parameters.
pub struct Model {
    /// The shape.
    pub config: ModelConfig,
    /// Where each tensor lies in `parameters`.
    pub layout: Layout,
    /// All parameters, in the order of `layout`; empty in a model that was [compacted](Model::compact).
    pub parameters: Vec<f32>,
    compact: Option<Compact>,
    rope: Rope,
}

/// The parameters of a model that is only read.
struct Compact {
    /// All of them, in the order of the layout.
    all: Vec<Bf16>,
    /// The vectors among them, which are few, as they were: by where their spans start.
    vectors: BTreeMap<usize, Vec<f32>>,
}

/// What a layer computed for `rows` rows, kept for the backward pass.
#[derive(Default)]
struct LayerActivations {
    /// The layer's input.
    x: Vec<f32>,
    rstd: Vec<f32>,
    norm: Vec<f32>,
    /// After the rotation.
    q: Vec<f32>,
    /// After the rotation, in the training pass.
    k: Vec<f32>,
    v: Vec<f32>,
    attention: Vec<f32>,
    log_sum: Vec<f32>,
    /// The stream between attention and SwiGLU.
    middle: Vec<f32>,
    middle_rstd: Vec<f32>,
    middle_norm: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    inner: Vec<f32>,
}

impl LayerActivations {
    fn resize(&mut self, config: &ModelConfig, rows: usize) {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) = (config.query_width(), config.key_width());
        for (buffer, width) in [
            (&mut self.x, hidden),
            (&mut self.rstd, 1),
            (&mut self.norm, hidden),
            (&mut self.q, queries),
            (&mut self.k, keys),
            (&mut self.v, keys),
            (&mut self.attention, queries),
            (&mut self.log_sum, config.num_attention_heads),
            (&mut self.middle, hidden),
            (&mut self.middle_rstd, 1),
            (&mut self.middle_norm, hidden),
            (&mut self.gate, inner),
            (&mut self.up, inner),
            (&mut self.inner, inner),
        ] {
            buffer.resize(rows * width, 0.0);
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
        let rope = Rope::new(config.max_position_embeddings, config.head_dim, config.rope_theta);
        Model { config, layout, parameters, compact: None, rope }
    }

    /// Keeps the matrices in bf16 from now on: half the memory, for inference only.
    pub fn compact(&mut self) {
        let mut all = vec![Bf16::default(); self.parameters.len()];
        round_all(&mut all, &self.parameters);
        let vectors = self.layout.tensors.iter().filter(|tensor| tensor.shape.len() == 1);
        let vectors = vectors.map(|tensor| (tensor.span.start, tensor.span.of(&self.parameters).to_vec()));
        self.compact = Some(Compact { all, vectors: vectors.collect() });
        self.parameters = Vec::new();
    }

    /// A matrix.
    fn weight(&self, span: Span) -> Weight<'_> {
        match &self.compact {
            None => Weight::F32(span.of(&self.parameters)),
            Some(compact) => Weight::Bf16(&compact.all[span.start..span.start + span.len]),
        }
    }

    /// The weight of a norm.
    fn vector(&self, span: Span) -> &[f32] {
        match &self.compact {
            None => span.of(&self.parameters),
            Some(compact) => &compact.vectors[&span.start],
        }
    }

    /// One layer: reads `saved.x`, fills the rest of `saved`, and leaves the layer's output in `y`.
    ///
    /// `attend` gets `saved` with unrotated `q`, `k` and `v`, and fills `attention` and `log_sum`: where the keys
    /// of earlier positions come from is all that training and inference do differently. Linear layers go by `path`.
    fn layer_forward(
        &self,
        kernels: &dyn Kernels,
        (layer, path): (usize, Path),
        saved: &mut LayerActivations,
        y: &mut [f32],
        attend: impl FnOnce(&mut LayerActivations),
    ) {
        let (config, spans) = (&self.config, &self.layout.layers[layer]);
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys, eps) = (config.query_width(), config.key_width(), config.rms_norm_eps);
        let rows = y.len() / hidden;
        let linear = |inputs, outputs| Linear { path, ..Linear::new(rows, inputs, outputs) };

        kernels.rms_norm_forward(
            &mut saved.norm,
            &mut saved.rstd,
            &saved.x,
            self.vector(spans.input_norm),
            eps,
        );
        let norm = &saved.norm;
        kernels.linear(linear(hidden, queries), &mut saved.q, norm, self.weight(spans.q), false);
        kernels.linear(linear(hidden, keys), &mut saved.k, norm, self.weight(spans.k), false);
        kernels.linear(linear(hidden, keys), &mut saved.v, norm, self.weight(spans.v), false);
        attend(saved);
        saved.middle.copy_from_slice(&saved.x);
        let (attention, o) = (&saved.attention, self.weight(spans.o));
        kernels.linear(linear(queries, hidden), &mut saved.middle, attention, o, true);

        let w = self.vector(spans.post_attention_norm);
        kernels.rms_norm_forward(&mut saved.middle_norm, &mut saved.middle_rstd, &saved.middle, w, eps);
        let (norm, into) = (&saved.middle_norm, linear(hidden, inner));
        kernels.linear(into, &mut saved.gate, norm, self.weight(spans.gate), false);
        kernels.linear(into, &mut saved.up, norm, self.weight(spans.up), false);
        kernels.swiglu_forward(&mut saved.inner, &saved.gate, &saved.up);
        y.copy_from_slice(&saved.middle);
        kernels.linear(linear(inner, hidden), y, &saved.inner, self.weight(spans.down), true);
    }
}
