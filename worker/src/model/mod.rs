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
mod compact;
mod config;
pub mod inference;
mod parameters;
mod rope;
pub mod training;

pub use cache::KvBlocks;
pub use config::{ConfigError, ModelConfig, PRESETS};
pub use parameters::{LayerSpans, Layout, Projection, Span, Tensor};
pub use rope::{RopeScaling, Yarn};

use crate::kernels::{Kernels, Linear, Path, Precision, Rope, Weight};
use crate::mapping::in_large_pages;
use compact::Compact;
use std::ops::Range;

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
    /// Before their norms, where the family has them.
    plain_q: Vec<f32>,
    plain_k: Vec<f32>,
    q_rstd: Vec<f32>,
    k_rstd: Vec<f32>,
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
        let norms = usize::from(config.has_qk_norms());
        for (buffer, width) in [
            (&mut self.x, hidden),
            (&mut self.rstd, 1),
            (&mut self.norm, hidden),
            (&mut self.q, queries),
            (&mut self.k, keys),
            (&mut self.plain_q, norms * queries),
            (&mut self.plain_k, norms * keys),
            (&mut self.q_rstd, norms * config.num_attention_heads),
            (&mut self.k_rstd, norms * config.num_key_value_heads),
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
        let rope = rope::angles(&config);
        Model { config, layout, parameters, compact: None, rope }
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
        Ok(Model { config, layout, parameters, compact, rope })
    }

    /// Keeps the matrices in bf16 or int8 from now on: less memory, for inference only. In f32 nothing changes.
    pub fn compact(&mut self, precision: Precision) {
        if precision == Precision::F32 {
            return;
        }
        let all = std::mem::take(&mut self.parameters);
        let copy = |tensor: &Tensor, part: Range<usize>, values: &mut [f32]| {
            values.copy_from_slice(&tensor.span.of(&all)[part]);
            Ok::<_, std::convert::Infallible>(())
        };
        let Ok(compact) = Compact::read(&self.layout, precision, copy);
        self.compact = Some(compact);
    }

    /// A matrix.
    fn weight(&self, span: Span) -> Weight<'_> {
        match &self.compact {
            None => Weight::F32(span.of(&self.parameters)),
            Some(compact) => compact.matrix(span),
        }
    }

    /// The weight of a norm, or a bias.
    fn vector(&self, span: Span) -> &[f32] {
        match &self.compact {
            None => span.of(&self.parameters),
            Some(compact) => compact.vector(span),
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
        self.project(kernels, linear(hidden, keys), &mut saved.v, norm, spans.v, false);
        match spans.qk_norms {
            None => {
                self.project(kernels, linear(hidden, queries), &mut saved.q, norm, spans.q, false);
                self.project(kernels, linear(hidden, keys), &mut saved.k, norm, spans.k, false);
            }
            Some([q_norm, k_norm]) => {
                self.project(kernels, linear(hidden, queries), &mut saved.plain_q, norm, spans.q, false);
                self.project(kernels, linear(hidden, keys), &mut saved.plain_k, norm, spans.k, false);
                let (q_norm, k_norm) = (self.vector(q_norm), self.vector(k_norm));
                kernels.rms_norm_forward(&mut saved.q, &mut saved.q_rstd, &saved.plain_q, q_norm, eps);
                kernels.rms_norm_forward(&mut saved.k, &mut saved.k_rstd, &saved.plain_k, k_norm, eps);
            }
        }
        attend(saved);
        saved.middle.copy_from_slice(&saved.x);
        self.project(kernels, linear(queries, hidden), &mut saved.middle, &saved.attention, spans.o, true);

        let w = self.vector(spans.post_attention_norm);
        kernels.rms_norm_forward(&mut saved.middle_norm, &mut saved.middle_rstd, &saved.middle, w, eps);
        let (norm, into) = (&saved.middle_norm, linear(hidden, inner));
        self.project(kernels, into, &mut saved.gate, norm, spans.gate, false);
        self.project(kernels, into, &mut saved.up, norm, spans.up, false);
        kernels.swiglu_forward(&mut saved.inner, &saved.gate, &saved.up);
        y.copy_from_slice(&saved.middle);
        self.project(kernels, linear(inner, hidden), y, &saved.inner, spans.down, true);
    }

    /// A linear layer, added to `y` with `accumulate`.
    fn project(
        &self,
        kernels: &dyn Kernels,
        shape: Linear,
        y: &mut [f32],
        x: &[f32],
        layer: Projection,
        accumulate: bool,
    ) {
        if let Some(bias) = layer.bias {
            let bias = self.vector(bias);
            for y in y.chunks_exact_mut(bias.len()) {
                match accumulate {
                    true => y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias),
                    false => y.copy_from_slice(bias),
                }
            }
        }
        let accumulate = accumulate || layer.bias.is_some();
        kernels.linear(shape, y, x, self.weight(layer.weight), accumulate);
    }
}
