//! The training pass of one sequence: loss, and the gradient of every parameter.

use super::{LayerActivations, Model, Projection};
use crate::kernels::{Attention, Head, Kernels, Linear, Path, Qkv, QkvGradient, Turn};

/// Memory of a training pass, kept from one sequence to the next.
///
/// All of it is linear in the length of the sequence.
#[derive(Default)]
pub struct Workspace {
    layers: Vec<LayerActivations>,
    /// The stream after the last layer, its norm, and the logits.
    x: Vec<f32>,
    rstd: Vec<f32>,
    norm: Vec<f32>,
    logits: Vec<f32>,
    /// Gradients of the stream and of one layer's activations.
    dx: Vec<f32>,
    dnorm: Vec<f32>,
    d: LayerActivations,
}

/// Sequences to learn from.
#[derive(Clone, Copy)]
pub struct Sample<'a> {
    /// Sequences one after the other.
    pub tokens: &'a [u32],
    /// What follows each of the tokens.
    pub targets: &'a [u32],
    /// Tokens in each sequence.
    pub length: usize,
}

impl Model {
    /// Logits of every position of a sequence from its start: `[tokens, vocabulary]`.
    pub fn forward<'a>(
        &self,
        kernels: &dyn Kernels,
        workspace: &'a mut Workspace,
        tokens: &[u32],
    ) -> &'a [f32] {
        self.hidden(kernels, workspace, tokens, tokens.len());
        let config = &self.config;
        let into = Linear::new(tokens.len(), config.hidden_size, config.vocab_size);
        workspace.logits.resize(tokens.len() * config.vocab_size, 0.0);
        kernels.linear(into, &mut workspace.logits, &workspace.norm, self.weight(self.layout.head), false);
        &workspace.logits
    }

    /// Fills the workspace up to the last norm, for sequences of `length` tokens one after the other.
    fn hidden(&self, kernels: &dyn Kernels, workspace: &mut Workspace, tokens: &[u32], length: usize) {
        let (config, rows) = (&self.config, tokens.len());
        let hidden = config.hidden_size;
        workspace.layers.resize_with(config.num_hidden_layers, LayerActivations::default);
        workspace.x.resize(rows * hidden, 0.0);
        workspace.norm.resize(rows * hidden, 0.0);
        workspace.rstd.resize(rows, 0.0);

        let (shape, heads) = (self.attention(length), config.num_attention_heads);
        let (queries, keys) = (length * config.query_width(), length * config.key_width());
        let embedding = self.weight(self.layout.embedding);
        for (x, token) in workspace.x.chunks_exact_mut(hidden).zip(tokens) {
            embedding.copy_row(x, *token as usize);
        }
        for (layer, saved) in workspace.layers.iter_mut().enumerate() {
            saved.resize(config, rows);
            saved.x.copy_from_slice(&workspace.x);
            self.layer_forward(kernels, (layer, Path::of(rows)), saved, &mut workspace.x, |saved| {
                for sequence in 0..rows / length {
                    let (wide, narrow) = (part(sequence, queries), part(sequence, keys));
                    let (q, k) = (&mut saved.q[wide.clone()], &mut saved.k[narrow.clone()]);
                    kernels.rope(q, config.query_width(), 0, &self.rope, Turn::Forward);
                    kernels.rope(k, config.key_width(), 0, &self.rope, Turn::Forward);
                    let log_sum = &mut saved.log_sum[part(sequence, length * heads)];
                    let inputs = Qkv { q, k, v: &saved.v[narrow] };
                    kernels.attention_forward(shape, &mut saved.attention[wide], log_sum, inputs);
                }
            });
        }
        let norm = self.vector(self.layout.norm);
        kernels.rms_norm_forward(
            &mut workspace.norm,
            &mut workspace.rstd,
            &workspace.x,
            norm,
            config.rms_norm_eps,
        );
    }

    /// Mean loss of predicting `targets[i]` after `tokens[..= i]` of its own sequence; adds its gradient to `gradient`.
    ///
    /// * `tokens`, `targets`: sequences of `length` tokens, one after the other. `gradient`: in the order of the layout.
    pub fn loss_and_gradient(
        &self,
        kernels: &dyn Kernels,
        workspace: &mut Workspace,
        gradient: &mut [f32],
        Sample { tokens, targets, length }: Sample<'_>,
    ) -> f32 {
        let (config, all, rows) = (&self.config, &self.parameters, tokens.len());
        let (hidden, layout) = (config.hidden_size, &self.layout);
        self.hidden(kernels, workspace, tokens, length);
        let Workspace { x, rstd, norm, dx, dnorm, .. } = &mut *workspace;
        dnorm.resize(rows * hidden, 0.0);
        let into = Linear::new(rows, hidden, config.vocab_size);
        let (head, dhead) = (Head { x: norm, w: layout.head.of(all), targets }, layout.head.of_mut(gradient));
        let loss = kernels.linear_cross_entropy(into, dnorm, dhead, head);
        dx.clear();
        dx.resize(rows * hidden, 0.0);
        kernels.rms_norm_backward(dx, layout.norm.of_mut(gradient), dnorm, x, layout.norm.of(all), rstd);
        for layer in (0..config.num_hidden_layers).rev() {
            self.layer_backward(kernels, layer, workspace, gradient, length);
        }
        kernels.embedding_backward(layout.embedding.of_mut(gradient), tokens, &workspace.dx, hidden);
        loss
    }

    /// Turns `workspace.dx` from the gradient of a layer's output into that of its input.
    fn layer_backward(
        &self,
        kernels: &dyn Kernels,
        layer: usize,
        workspace: &mut Workspace,
        gradient: &mut [f32],
        length: usize,
    ) {
        let (config, spans, all) = (&self.config, self.layout.layers[layer], &self.parameters);
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) = (config.query_width(), config.key_width());
        let Workspace { layers, dx, dnorm, d, .. } = workspace;
        let (saved, rows) = (&layers[layer], dx.len() / hidden);
        d.resize(config, rows);

        let down = Linear::new(rows, inner, hidden);
        learn(kernels, down, spans.down, gradient, dx, &saved.inner);
        kernels.linear_backward_input(down, &mut d.inner, dx, spans.down.weight.of(all), false);
        kernels.swiglu_backward(&mut d.gate, &mut d.up, &d.inner, &saved.gate, &saved.up);
        let into = Linear::new(rows, hidden, inner);
        learn(kernels, into, spans.gate, gradient, &d.gate, &saved.middle_norm);
        learn(kernels, into, spans.up, gradient, &d.up, &saved.middle_norm);
        kernels.linear_backward_input(into, dnorm, &d.gate, spans.gate.weight.of(all), false);
        kernels.linear_backward_input(into, dnorm, &d.up, spans.up.weight.of(all), true);
        let (w, dw) = (spans.post_attention_norm.of(all), spans.post_attention_norm.of_mut(gradient));
        kernels.rms_norm_backward(dx, dw, dnorm, &saved.middle, w, &saved.middle_rstd);

        let out = Linear::new(rows, queries, hidden);
        learn(kernels, out, spans.o, gradient, dx, &saved.attention);
        kernels.linear_backward_input(out, &mut d.attention, dx, spans.o.weight.of(all), false);
        let shape = self.attention(length);
        for sequence in 0..rows / length {
            let (wide, narrow) = (part(sequence, length * queries), part(sequence, length * keys));
            let (q, k, v) = (&saved.q[wide.clone()], &saved.k[narrow.clone()], &saved.v[narrow.clone()]);
            let (dq, dk) = (&mut d.q[wide.clone()], &mut d.k[narrow.clone()]);
            let log_sum = &saved.log_sum[part(sequence, length * shape.heads)];
            let (dout, out) = (&d.attention[wide.clone()], &saved.attention[wide]);
            let gradient = QkvGradient { q: dq, k: dk, v: &mut d.v[narrow] };
            kernels.attention_backward(shape, gradient, dout, out, log_sum, Qkv { q, k, v });
            kernels.rope(dq, queries, 0, &self.rope, Turn::Backward);
            kernels.rope(dk, keys, 0, &self.rope, Turn::Backward);
        }
        let (mut dq, mut dk) = (&d.q, &d.k);
        if let Some([q_norm, k_norm]) = spans.qk_norms {
            for (plain, dy, x, norm, rstd) in [
                (&mut d.plain_q, dq, &saved.plain_q, q_norm, &saved.q_rstd),
                (&mut d.plain_k, dk, &saved.plain_k, k_norm, &saved.k_rstd),
            ] {
                plain.fill(0.0);
                kernels.rms_norm_backward(plain, norm.of_mut(gradient), dy, x, norm.of(all), rstd);
            }
            (dq, dk) = (&d.plain_q, &d.plain_k);
        }
        let mut add = false;
        for (dy, layer, width) in [(dq, spans.q, queries), (dk, spans.k, keys), (&d.v, spans.v, keys)] {
            let into = Linear::new(rows, hidden, width);
            learn(kernels, into, layer, gradient, dy, &saved.norm);
            kernels.linear_backward_input(into, dnorm, dy, layer.weight.of(all), add);
            add = true;
        }
        let (w, dw) = (spans.input_norm.of(all), spans.input_norm.of_mut(gradient));
        kernels.rms_norm_backward(dx, dw, dnorm, &saved.x, w, &saved.rstd);
    }

    fn attention(&self, queries: usize) -> Attention {
        let config = &self.config;
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        Attention { queries, start: 0, heads, kv_heads, head_dim: config.head_dim }
    }
}

/// Adds the gradients of a linear layer's weight and bias.
fn learn(
    kernels: &dyn Kernels,
    shape: Linear,
    layer: Projection,
    gradient: &mut [f32],
    dy: &[f32],
    x: &[f32],
) {
    kernels.linear_backward_weight(shape, layer.weight.of_mut(gradient), dy, x);
    if let Some(bias) = layer.bias {
        let dbias = bias.of_mut(gradient);
        for dy in dy.chunks_exact(dbias.len()) {
            dbias.iter_mut().zip(dy).for_each(|(dbias, dy)| *dbias += dy);
        }
    }
}

/// The stretch of sequence `index`, where each has `len` elements.
fn part(index: usize, len: usize) -> std::ops::Range<usize> {
    index * len..(index + 1) * len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Cpu, Reference};
    use crate::model::ModelConfig;
    use crate::random::Random;

    fn miniature(tie_word_embeddings: bool) -> Model {
        of_family("llama", tie_word_embeddings)
    }

    /// With every bias and norm that the family has.
    fn of_family(model_type: &str, tie_word_embeddings: bool) -> Model {
        let has_biases = model_type == "llama" && !tie_word_embeddings;
        let mut model = Model::new(
            ModelConfig {
                model_type: model_type.into(),
                attention_bias: has_biases,
                mlp_bias: has_biases,
                hidden_size: 24,
                intermediate_size: 40,
                num_hidden_layers: 2,
                num_attention_heads: 4,
                num_key_value_heads: 2,
                head_dim: 8,
                max_position_embeddings: 64,
                tie_word_embeddings,
                ..ModelConfig::preset("tiny").unwrap()
            },
            1,
        );
        // Larger than at the start of a training, so that every part of the model matters to the loss.
        for value in &mut model.parameters {
            *value *= 5.0;
        }
        let mut random = Random::new(3);
        for tensor in &model.layout.tensors {
            // Scores of normed queries and keys are large already.
            let mean = if tensor.name.ends_with("q_norm.weight") || tensor.name.ends_with("k_norm.weight") {
                1.0
            } else {
                0.0
            };
            if tensor.name.ends_with(".bias") || mean == 1.0 {
                let values = tensor.span.of_mut(&mut model.parameters);
                values.iter_mut().for_each(|value| *value = mean + 0.3 * random.normal());
            }
        }
        model
    }

    #[test]
    fn the_gradient_of_the_whole_model_matches_differences_along_every_tensor() {
        for (family, tied) in [("llama", true), ("llama", false), ("qwen2", true), ("qwen3", true)] {
            let mut model = of_family(family, tied);
            let (tokens, targets) = ([5, 9, 200, 9, 31, 256, 77], [9, 200, 9, 31, 256, 77, 1]);
            let sample = Sample { tokens: &tokens, targets: &targets, length: 7 };
            let mut gradient = vec![0.0; model.layout.len];
            let mut workspace = Workspace::default();
            model.loss_and_gradient(&Cpu::new(1), &mut workspace, &mut gradient, sample);
            for tensor in model.layout.tensors.clone() {
                // Along the gradient itself the derivative is its length.
                let direction = tensor.span.of(&gradient).to_vec();
                let length = direction.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
                let mut loss_at = |h: f64| {
                    let at = model.parameters.clone();
                    for (p, d) in tensor.span.of_mut(&mut model.parameters).iter_mut().zip(&direction) {
                        *p += (h * f64::from(*d) / length) as f32;
                    }
                    let mut unused = vec![0.0; model.layout.len];
                    let loss = model.loss_and_gradient(&Reference, &mut workspace, &mut unused, sample);
                    model.parameters = at;
                    f64::from(loss)
                };
                let h = 0.02 / length.max(0.2);
                let expected = (loss_at(h) - loss_at(-h)) / (2.0 * h);
                let error = (expected / length - 1.0).abs();
                let name = format!("{family}, {}", tensor.name);
                assert!(error < 0.02, "{name}: {length} but differences say {expected}");
            }
        }
    }

    #[test]
    fn gradients_add_up_over_sequences() {
        let model = miniature(true);
        let mut workspace = Workspace::default();
        let mut run = |gradient: &mut [f32], tokens: &[u32]| {
            let sample = Sample { tokens, targets: tokens, length: tokens.len() };
            model.loss_and_gradient(&Cpu::new(1), &mut workspace, gradient, sample);
        };
        let (mut first, mut second, mut both) =
            (vec![0.0; model.layout.len], vec![0.0; model.layout.len], vec![0.0; model.layout.len]);
        run(&mut first, &[1, 2, 3]);
        run(&mut second, &[4, 5, 6, 7]);
        run(&mut both, &[1, 2, 3]);
        run(&mut both, &[4, 5, 6, 7]);
        for i in 0..both.len() {
            assert!((first[i] + second[i] - both[i]).abs() < 1e-4);
        }
    }

    #[test]
    fn sequences_together_give_the_mean_of_each_alone() {
        let model = miniature(false);
        let mut workspace = Workspace::default();
        let tokens: Vec<u32> = (0..60).map(|i| Random::new(i).bits() as u32 % 256).collect();
        let mut run = |gradient: &mut [f32], tokens: &[u32]| {
            let sample = Sample { tokens, targets: tokens, length: 20 };
            model.loss_and_gradient(&Cpu::new(2), &mut workspace, gradient, sample)
        };
        let (mut alone, mut together) = (vec![0.0; model.layout.len], vec![0.0; model.layout.len]);
        let mean = tokens.chunks(20).map(|tokens| run(&mut alone, tokens)).sum::<f32>() / 3.0;
        let loss = run(&mut together, &tokens);
        assert!((loss - mean).abs() < 1e-5, "{loss} {mean}");
        for i in 0..alone.len() {
            assert!((alone[i] / 3.0 - together[i]).abs() < 1e-4, "{i}: {} {}", alone[i] / 3.0, together[i]);
        }
    }

    #[test]
    fn an_untrained_model_is_as_unsure_as_a_uniform_guess() {
        let model = Model::new(ModelConfig::preset("tiny").unwrap(), 1);
        let tokens: Vec<u32> = (0..40).map(|i| Random::new(i).bits() as u32 % 256).collect();
        let mut gradient = vec![0.0; model.layout.len];
        let loss = model.loss_and_gradient(
            &Cpu::new(1),
            &mut Workspace::default(),
            &mut gradient,
            Sample { tokens: &tokens[..39], targets: &tokens[1..], length: 39 },
        );
        assert!((loss - (264f32).ln()).abs() < 0.1, "{loss}");
    }
}
