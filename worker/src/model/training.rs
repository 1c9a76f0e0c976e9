//! The training pass of one sequence: loss, and the gradient of every parameter.

use super::{LayerActivations, Model, Projection, Span};
use crate::kernels::{Attention, Backend, DeviceError, Linear, Path, Turn, Weights};
use crate::vector::Vector;

/// Memory of a training pass, kept from one sequence to the next; in floats `F` and elements `E`.
///
/// All of it is linear in the length of the sequence.
#[derive(Default)]
pub struct Workspace<F = Vector, E = Vec<f32>> {
    layers: Vec<LayerActivations<F, E>>,
    /// The stream after the last layer, its norm, and the logits.
    x: F,
    rstd: F,
    norm: E,
    logits: F,
    /// Gradients of the stream, as products read it too, and of one layer's activations.
    dx: F,
    dx_rounded: E,
    dnorm: E,
    d: LayerActivations<F, E>,
    /// What comes to the host.
    host: Vec<f32>,
}

/// That of a backend.
pub type WorkspaceOf<K> = Workspace<<K as Backend>::FloatBuffer, <K as Backend>::ElementBuffer>;

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

impl<W> Model<W> {
    /// Logits of every position of a sequence from its start: `[tokens, vocabulary]`.
    ///
    /// # Errors
    /// The device has failed.
    pub fn forward<'a, K: Backend<Weights = W>>(
        &self,
        kernels: &K,
        workspace: &'a mut WorkspaceOf<K>,
        tokens: &[u32],
    ) -> Result<&'a [f32], DeviceError>
    where
        W: Weights<K>,
    {
        self.hidden(kernels, workspace, tokens, tokens.len());
        let config = &self.config;
        let into = Linear::new(tokens.len(), config.hidden_size, config.vocab_size);
        kernels.resize(&mut workspace.logits, tokens.len() * config.vocab_size);
        let head = self.weights.matrix(self.layout.head.range());
        kernels.logits(into, &mut workspace.logits, &workspace.norm, head);
        kernels.read(&workspace.logits, &mut workspace.host)
    }

    /// Fills the workspace up to the last norm, for sequences of `length` tokens one after the other.
    fn hidden<K: Backend<Weights = W>>(
        &self,
        kernels: &K,
        workspace: &mut WorkspaceOf<K>,
        tokens: &[u32],
        length: usize,
    ) where
        W: Weights<K>,
    {
        let (config, rows) = (&self.config, tokens.len());
        let (hidden, queries, keys) = (config.hidden_size, config.query_width(), config.key_width());
        let Workspace { layers, x, rstd, norm, .. } = workspace;
        layers.resize_with(config.num_hidden_layers, Default::default);
        layers.iter_mut().for_each(|layer| layer.resize(kernels, config, rows));
        kernels.resize(x, rows * hidden);
        kernels.resize_elements(norm, rows * hidden);
        kernels.resize(rstd, rows);

        let (shape, rope) = (self.attention(length), self.weights.rope());
        let embedding = self.weights.matrix(self.layout.embedding.range());
        kernels.embed(&mut layers[0].x, tokens, embedding, hidden);
        for layer in 0..layers.len() {
            let (saved, next) = layers[layer..].split_first_mut().expect("it is one of them");
            // What a layer leaves is the input of the next one.
            let y = next.first_mut().map_or(&mut *x, |next| &mut next.x);
            self.layer_forward(kernels, (layer, rows, Path::of(rows)), saved, y, |saved| {
                kernels.rope(&mut saved.q, queries, length, rope, Turn::Forward);
                kernels.rope(&mut saved.k, keys, length, rope, Turn::Forward);
                let inputs = [&*saved.q, &*saved.k, &*saved.v];
                kernels.attention_forward(shape, &mut saved.attention, &mut saved.log_sum, inputs);
            });
        }
        let w = self.weights.vector(self.layout.norm.range());
        kernels.rms_norm_forward(norm, rstd, x, w, config.rms_norm_eps);
    }

    /// Mean loss of predicting `targets[i]` after `tokens[..= i]` of its own sequence; adds its gradient to `gradient`.
    ///
    /// * `tokens`, `targets`: sequences of `length` tokens, one after the other. `gradient`: in the order of the layout.
    pub fn loss_and_gradient<K: Backend<Weights = W>>(
        &self,
        kernels: &K,
        workspace: &mut WorkspaceOf<K>,
        gradient: &mut K::Floats,
        Sample { tokens, targets, length }: Sample<'_>,
    ) -> f32
    where
        W: Weights<K>,
    {
        let (config, layout, weights, rows) = (&self.config, &self.layout, &self.weights, tokens.len());
        let hidden = config.hidden_size;
        self.hidden(kernels, workspace, tokens, length);
        let Workspace { x, rstd, norm, dx, dnorm, .. } = &mut *workspace;
        kernels.resize_elements(dnorm, rows * hidden);
        let into = Linear::new(rows, hidden, config.vocab_size);
        let (w, dw) = (weights.elements(layout.head.range()), &mut gradient[layout.head.range()]);
        let loss = kernels.linear_cross_entropy(into, dnorm, dw, (norm, w), targets);
        kernels.resize(dx, rows * hidden);
        kernels.zero(dx);
        let (w, dw) = (weights.vector(layout.norm.range()), &mut gradient[layout.norm.range()]);
        kernels.rms_norm_backward(dx, dw, dnorm, x, w, rstd);
        for layer in (0..config.num_hidden_layers).rev() {
            self.layer_backward(kernels, (layer, rows, length), workspace, gradient);
        }
        let dw = &mut gradient[layout.embedding.range()];
        kernels.embedding_backward(dw, tokens, &workspace.dx, hidden);
        loss
    }

    /// Turns `workspace.dx` from the gradient of a layer's output into that of its input.
    fn layer_backward<K: Backend<Weights = W>>(
        &self,
        kernels: &K,
        (layer, rows, length): (usize, usize, usize),
        workspace: &mut WorkspaceOf<K>,
        gradient: &mut K::Floats,
    ) where
        W: Weights<K>,
    {
        let (config, weights, spans) = (&self.config, &self.weights, self.layout.layers[layer]);
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) = (config.query_width(), config.key_width());
        let Workspace { layers, dx, dx_rounded, dnorm, d, .. } = workspace;
        let saved = &layers[layer];
        d.resize(kernels, config, rows);
        let matrix = |layer: Projection| weights.elements(layer.weight.range());
        let rope = weights.rope();

        let (down, dy) = (Linear::new(rows, inner, hidden), kernels.rounded(dx, dx_rounded));
        learn(kernels, down, spans.down, gradient, dy, &saved.inner);
        kernels.linear_backward_input(down, &mut d.inner, dy, matrix(spans.down), false);
        kernels.swiglu_backward(&mut d.gate, &mut d.up, &d.inner, &saved.gate, &saved.up);
        let into = Linear::new(rows, hidden, inner);
        learn(kernels, into, spans.gate, gradient, &d.gate, &saved.middle_norm);
        learn(kernels, into, spans.up, gradient, &d.up, &saved.middle_norm);
        kernels.linear_backward_input(into, dnorm, &d.gate, matrix(spans.gate), false);
        kernels.linear_backward_input(into, dnorm, &d.up, matrix(spans.up), true);
        let norm = |kernels: &K,
                    dx: &mut K::Floats,
                    gradient: &mut K::Floats,
                    dy: &K::Elements,
                    span: Span,
                    x,
                    rstd| {
            let (w, dw) = (weights.vector(span.range()), &mut gradient[span.range()]);
            kernels.rms_norm_backward(dx, dw, dy, x, w, rstd);
        };
        norm(kernels, dx, gradient, dnorm, spans.post_attention_norm, &*saved.middle, &*saved.middle_rstd);

        let (out, dy) = (Linear::new(rows, queries, hidden), kernels.rounded(dx, dx_rounded));
        learn(kernels, out, spans.o, gradient, dy, &saved.attention);
        kernels.linear_backward_input(out, &mut d.attention, dy, matrix(spans.o), false);
        let inputs = [&*saved.q, &*saved.k, &*saved.v];
        let own = [&mut *d.q, &mut *d.k, &mut *d.v];
        let shape = self.attention(length);
        kernels.attention_backward(shape, own, &d.attention, &saved.attention, &saved.log_sum, inputs);
        kernels.rope(&mut d.q, queries, length, rope, Turn::Backward);
        kernels.rope(&mut d.k, keys, length, rope, Turn::Backward);
        let (mut dq, mut dk) = (&d.q, &d.k);
        if let Some([q_norm, k_norm]) = spans.qk_norms {
            for (plain, dy, x, norm, rstd) in [
                (&mut d.plain_q, dq, &saved.plain_q, q_norm, &saved.q_rstd),
                (&mut d.plain_k, dk, &saved.plain_k, k_norm, &saved.k_rstd),
            ] {
                let (w, dw) = (weights.vector(norm.range()), &mut gradient[norm.range()]);
                kernels.head_norm_backward(plain, dw, dy, x, w, rstd);
            }
            (dq, dk) = (&d.plain_q, &d.plain_k);
        }
        let mut add = false;
        for (dy, layer, width) in [(dq, spans.q, queries), (dk, spans.k, keys), (&d.v, spans.v, keys)] {
            let into = Linear::new(rows, hidden, width);
            learn(kernels, into, layer, gradient, dy, &saved.norm);
            kernels.linear_backward_input(into, dnorm, dy, matrix(layer), add);
            add = true;
        }
        norm(kernels, dx, gradient, dnorm, spans.input_norm, &*saved.x, &*saved.rstd);
    }

    fn attention(&self, queries: usize) -> Attention {
        let config = &self.config;
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        Attention { queries, start: 0, heads, kv_heads, head_dim: config.head_dim }
    }
}

/// Adds the gradients of a linear layer's weight and bias.
fn learn<K: Backend>(
    kernels: &K,
    shape: Linear,
    layer: Projection,
    gradient: &mut K::Floats,
    dy: &K::Elements,
    x: &K::Elements,
) {
    kernels.linear_backward_weight(shape, &mut gradient[layer.weight.range()], dy, x);
    if let Some(bias) = layer.bias {
        kernels.bias_backward(&mut gradient[bias.range()], dy);
    }
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
        for value in &mut model.weights.parameters {
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
                let values = tensor.span.of_mut(&mut model.weights.parameters);
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
                    let at = model.weights.parameters.clone();
                    for (p, d) in tensor.span.of_mut(&mut model.weights.parameters).iter_mut().zip(&direction)
                    {
                        *p += (h * f64::from(*d) / length) as f32;
                    }
                    let mut unused = vec![0.0; model.layout.len];
                    let loss = model.loss_and_gradient(&Reference, &mut workspace, &mut unused, sample);
                    model.weights.parameters = at;
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
