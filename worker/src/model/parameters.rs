//! Where every tensor lies in the one vector of all parameters.
//!
//! Parameters, gradients and moments are each one flat vector in this order: a reduction, an update or a norm is
//! one pass, and a checkpoint is its slices by name.

use super::ModelConfig;
use crate::mapping::in_large_pages;
use crate::random::{Random, mix};
use std::ops::Range;

/// A stretch of the flat vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First element.
    pub start: usize,
    /// Elements.
    pub len: usize,
}

impl Span {
    /// Its elements.
    pub fn range(self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// The stretch of `all`.
    pub fn of(self, all: &[f32]) -> &[f32] {
        &all[self.range()]
    }

    /// The stretch of `all`, to be written.
    pub fn of_mut(self, all: &mut [f32]) -> &mut [f32] {
        &mut all[self.range()]
    }
}

/// A tensor under its Hugging Face name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Lengths of its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Where it lies.
    pub span: Span,
}

/// A linear layer: `y = x * weight^T + bias`.
#[derive(Clone, Copy, Debug)]
pub struct Projection {
    /// `[outputs, inputs]`.
    pub weight: Span,
    /// `[outputs]`, where the family has one.
    pub bias: Option<Span>,
}

/// The tensors of one layer.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // The names are the file's.
pub struct LayerSpans {
    pub input_norm: Span,
    pub q: Projection,
    pub k: Projection,
    pub v: Projection,
    pub o: Projection,
    /// Norms of each head's queries and of each head's keys, where the family has them.
    pub qk_norms: Option<[Span; 2]>,
    pub post_attention_norm: Span,
    pub gate: Projection,
    pub up: Projection,
    pub down: Projection,
}

/// All tensors of a model, in the order of the flat vector.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Every tensor once.
    pub tensors: Vec<Tensor>,
    /// Token embedding, `[vocabulary, hidden]`.
    pub embedding: Span,
    /// The layers' tensors.
    pub layers: Vec<LayerSpans>,
    /// Weight of the last norm.
    pub norm: Span,
    /// Output layer, `[vocabulary, hidden]`: the embedding's own span where tied.
    pub head: Span,
    /// Length of the flat vector.
    pub len: usize,
}

impl Layout {
    /// The layout of a shape.
    pub fn new(config: &ModelConfig) -> Layout {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        let (mut tensors, mut len) = (Vec::new(), 0);
        let mut add = |name: String, shape: &[usize]| {
            let span = Span { start: len, len: shape.iter().product() };
            len += span.len;
            tensors.push(Tensor { name, shape: shape.to_vec(), span });
            span
        };
        let embedding = add("model.embed_tokens.weight".into(), &[config.vocab_size, hidden]);
        let mut layers = Vec::new();
        for layer in 0..config.num_hidden_layers {
            let mut add = |name: &str, shape: &[usize]| add(format!("model.layers.{layer}.{name}"), shape);
            let input_norm = add("input_layernorm.weight", &[hidden]);
            let mut linear = |name: &str, outputs: usize, inputs: usize, has_bias: bool| Projection {
                weight: add(&format!("{name}.weight"), &[outputs, inputs]),
                bias: has_bias.then(|| add(&format!("{name}.bias"), &[outputs])),
            };
            let biases = config.biases();
            let q = linear("self_attn.q_proj", queries, hidden, biases.qkv);
            let k = linear("self_attn.k_proj", keys, hidden, biases.qkv);
            let v = linear("self_attn.v_proj", keys, hidden, biases.qkv);
            let o = linear("self_attn.o_proj", hidden, queries, biases.o);
            let qk_norms = config.has_qk_norms().then(|| {
                ["q", "k"].map(|which| add(&format!("self_attn.{which}_norm.weight"), &[config.head_dim]))
            });
            let post_attention_norm = add("post_attention_layernorm.weight", &[hidden]);
            let mut linear = |name: &str, outputs: usize, inputs: usize| Projection {
                weight: add(&format!("mlp.{name}.weight"), &[outputs, inputs]),
                bias: biases.mlp.then(|| add(&format!("mlp.{name}.bias"), &[outputs])),
            };
            let gate = linear("gate_proj", inner, hidden);
            let up = linear("up_proj", inner, hidden);
            let down = linear("down_proj", hidden, inner);
            layers.push(LayerSpans { input_norm, q, k, v, o, qk_norms, post_attention_norm, gate, up, down });
        }
        let norm = add("model.norm.weight".into(), &[hidden]);
        let head = match config.tie_word_embeddings {
            true => embedding,
            false => add("lm_head.weight".into(), &[config.vocab_size, hidden]),
        };
        Layout { tensors, embedding, layers, norm, head, len }
    }

    /// First values of the parameters, a pure function of `seed`: norms are 1, biases 0, matrices are normal with
    /// deviation 0.02, and those that write into the residual stream are smaller by `sqrt(2 * layers)`.
    ///
    /// Source: Radford et al., "Language models are unsupervised multitask learners", 2019, section 2.3.
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        let mut values = in_large_pages(self.len, 1.0);
        let residual = 0.02 / (2.0 * self.layers.len() as f32).sqrt();
        for (index, tensor) in self.tensors.iter().enumerate() {
            if tensor.shape.len() == 1 {
                if tensor.name.ends_with(".bias") {
                    tensor.span.of_mut(&mut values).fill(0.0);
                }
                continue;
            }
            let writes_residual = tensor.name.contains("o_proj") || tensor.name.contains("down_proj");
            let deviation = if writes_residual { residual } else { 0.02 };
            let mut random = Random::new(mix(seed) ^ mix(index as u64));
            for value in tensor.span.of_mut(&mut values) {
                *value = deviation * random.normal();
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_the_vector_without_gaps_and_untied_heads_have_their_own() {
        let tied = ModelConfig::preset("tiny").unwrap();
        let untied = ModelConfig { tie_word_embeddings: false, ..tied.clone() };
        for (config, head) in [(tied, 0), (untied, 264 * 128)] {
            let layout = Layout::new(&config);
            let mut end = 0;
            for tensor in &layout.tensors {
                assert_eq!(tensor.span.start, end, "{}", tensor.name);
                end += tensor.span.len;
            }
            assert_eq!(end, layout.len);
            assert_eq!(layout.len, 821_376 + head);
        }
    }
}
