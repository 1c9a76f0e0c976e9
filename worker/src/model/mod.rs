//! A Llama decoder: RMS norm, rotary positions, attention with grouped queries, SwiGLU.
//!
//! * `x` is the residual stream, `[N, hidden]`.
//! * a layer is `x += o(attention(rope(q(n)), rope(k(n)), v(n)))` with `n = norm(x)`, then
//!   `x += down(swiglu(gate(n), up(n)))` with `n = norm(x)` again (`Model::layer_forward`).
//! * [`training`] runs whole sequences and keeps what the backward pass reads; [`inference`] runs any number of
//!   sequences over their caches.
//!
//! Source: Touvron et al., "LLaMA", arXiv 2302.13971, section 2.2.

mod config;
pub mod inference;
mod parameters;
pub mod training;

pub use config::{ConfigError, ModelConfig, PRESETS};
pub use parameters::{LayerSpans, Layout, Span, Tensor};

use crate::kernels::{Kernels, Linear, Rope};

/// A model: its shape and its parameters.
pub struct Model {
    /// The shape.
    pub config: ModelConfig,
    /// Where each tensor lies in `parameters`.
    pub layout: Layout,
    /// All parameters, in the order of `layout`.
    pub parameters: Vec<f32>,
    rope: Rope,
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
        Model { config, layout, parameters, rope }
    }

    /// One layer: reads `saved.x`, fills the rest of `saved`, and leaves the layer's output in `y`.
    ///
    /// `attend` gets `saved` with unrotated `q`, `k` and `v`, and fills `attention` and `log_sum`: where the keys
    /// of earlier positions come from is all that training and inference do differently.
    fn layer_forward(
        &self,
        kernels: &dyn Kernels,
        layer: usize,
        saved: &mut LayerActivations,
        y: &mut [f32],
        attend: impl FnOnce(&mut LayerActivations),
    ) {
        let (config, spans, all) = (&self.config, &self.layout.layers[layer], &self.parameters);
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys, eps) = (config.query_width(), config.key_width(), config.rms_norm_eps);
        let rows = y.len() / hidden;

        kernels.rms_norm_forward(&mut saved.norm, &mut saved.rstd, &saved.x, spans.input_norm.of(all), eps);
        let norm = &saved.norm;
        kernels.linear_forward(
            Linear::new(rows, hidden, queries),
            &mut saved.q,
            norm,
            spans.q.of(all),
            false,
        );
        kernels.linear_forward(Linear::new(rows, hidden, keys), &mut saved.k, norm, spans.k.of(all), false);
        kernels.linear_forward(Linear::new(rows, hidden, keys), &mut saved.v, norm, spans.v.of(all), false);
        attend(saved);
        saved.middle.copy_from_slice(&saved.x);
        let (attention, o) = (&saved.attention, spans.o.of(all));
        kernels.linear_forward(Linear::new(rows, queries, hidden), &mut saved.middle, attention, o, true);

        let w = spans.post_attention_norm.of(all);
        kernels.rms_norm_forward(&mut saved.middle_norm, &mut saved.middle_rstd, &saved.middle, w, eps);
        let (norm, into) = (&saved.middle_norm, Linear::new(rows, hidden, inner));
        kernels.linear_forward(into, &mut saved.gate, norm, spans.gate.of(all), false);
        kernels.linear_forward(into, &mut saved.up, norm, spans.up.of(all), false);
        kernels.swiglu_forward(&mut saved.inner, &saved.gate, &saved.up);
        y.copy_from_slice(&saved.middle);
        kernels.linear_forward(Linear::new(rows, inner, hidden), y, &saved.inner, spans.down.of(all), true);
    }
}
