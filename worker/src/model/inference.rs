//! The inference pass: any number of sequences, each over its own cache of keys and values.

use super::{LayerActivations, Model};
use crate::kernels::{Attention, Kernels, Linear, Qkv, Turn};

/// Keys and values of the positions that a sequence has gone through.
#[derive(Default)]
pub struct KvCache {
    /// For every layer, the rotated keys `[positions, KV, D]` and the values in the same shape.
    layers: Vec<(Vec<f32>, Vec<f32>)>,
    positions: usize,
}

impl KvCache {
    /// Positions in the cache.
    pub fn positions(&self) -> usize {
        self.positions
    }
}

/// The next tokens of one sequence.
pub struct Segment<'a> {
    /// What came before; grows by `tokens`.
    pub cache: &'a mut KvCache,
    /// At least one token.
    pub tokens: &'a [u32],
}

/// Memory of an inference pass, kept from one to the next.
#[derive(Default)]
pub struct Scratch {
    layer: LayerActivations,
    x: Vec<f32>,
    last: Vec<f32>,
    norm: Vec<f32>,
    rstd: Vec<f32>,
    logits: Vec<f32>,
}

impl Model {
    /// Runs every segment on from its cache and returns the logits after its last token:
    /// `[segments, vocabulary]`.
    ///
    /// Prefill is one segment of many tokens; a decoding step is many segments of one token, at most
    /// [`MAX_DECODE_ROWS`](crate::kernels::MAX_DECODE_ROWS) of them, and gives each the bits it would have alone.
    pub fn extend<'a>(
        &self,
        kernels: &dyn Kernels,
        scratch: &'a mut Scratch,
        segments: &mut [Segment<'_>],
    ) -> &'a [f32] {
        let (config, hidden) = (&self.config, self.config.hidden_size);
        let tokens: Vec<u32> = segments.iter().flat_map(|segment| segment.tokens).copied().collect();
        let Scratch { layer: saved, x, last, norm, rstd, logits } = scratch;
        x.resize(tokens.len() * hidden, 0.0);
        saved.resize(config, tokens.len());
        for segment in &mut *segments {
            segment.cache.layers.resize_with(config.num_hidden_layers, Default::default);
        }

        let embedding = self.weight(self.layout.embedding);
        for (x, token) in x.chunks_exact_mut(hidden).zip(&tokens) {
            embedding.copy_row(x, *token as usize);
        }
        for layer in 0..config.num_hidden_layers {
            saved.x.copy_from_slice(x);
            self.layer_forward(kernels, layer, saved, x, |saved| {
                self.attend(kernels, layer, saved, segments)
            });
        }
        let mut end = 0;
        last.clear();
        for segment in &mut *segments {
            segment.cache.positions += segment.tokens.len();
            end += segment.tokens.len();
            last.extend_from_slice(&x[(end - 1) * hidden..end * hidden]);
        }
        let rows = segments.len();
        norm.resize(rows * hidden, 0.0);
        rstd.resize(rows, 0.0);
        logits.resize(rows * config.vocab_size, 0.0);
        kernels.rms_norm_forward(norm, rstd, last, self.vector(self.layout.norm), config.rms_norm_eps);
        let into = Linear::new(rows, hidden, config.vocab_size);
        kernels.linear(into, logits, norm, self.weight(self.layout.head), false);
        logits
    }

    /// Attention of every segment over its own cache, after its new keys and values were put there.
    fn attend(
        &self,
        kernels: &dyn Kernels,
        layer: usize,
        saved: &mut LayerActivations,
        segments: &mut [Segment<'_>],
    ) {
        let config = &self.config;
        let (queries, keys, heads) = (config.query_width(), config.key_width(), config.num_attention_heads);
        let mut row = 0;
        for segment in segments {
            let (start, end) = (row, row + segment.tokens.len());
            row = end;
            let position = segment.cache.positions;
            let shape = Attention {
                queries: segment.tokens.len(),
                start: position,
                heads,
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
            };
            let (q, k) =
                (&mut saved.q[start * queries..end * queries], &mut saved.k[start * keys..end * keys]);
            kernels.rope(q, queries, position, &self.rope, Turn::Forward);
            kernels.rope(k, keys, position, &self.rope, Turn::Forward);
            let (cached_k, cached_v) = &mut segment.cache.layers[layer];
            cached_k.extend_from_slice(k);
            cached_v.extend_from_slice(&saved.v[start * keys..end * keys]);
            let out = &mut saved.attention[start * queries..end * queries];
            let log_sum = &mut saved.log_sum[start * heads..end * heads];
            kernels.attention_forward(shape, out, log_sum, Qkv { q, k: cached_k, v: cached_v });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Cpu, MAX_DECODE_ROWS, Precision};
    use crate::model::ModelConfig;
    use crate::model::training::Workspace;
    use crate::random::Random;

    fn tokens(seed: u64, count: usize) -> Vec<u32> {
        let mut random = Random::new(seed);
        (0..count).map(|_| (random.bits() % 256) as u32).collect()
    }

    #[test]
    fn decoding_over_the_cache_gives_the_logits_of_the_whole_sequence() {
        let model = Model::new(ModelConfig::preset("tiny").unwrap(), 3);
        let (kernels, tokens) = (Cpu::new(1), tokens(1, 60));
        let mut workspace = Workspace::default();
        let expected = model.forward(&kernels, &mut workspace, &tokens);
        let (mut cache, mut scratch) = (KvCache::default(), Scratch::default());
        for (from, to) in [(0, 33), (33, 34), (34, 40)].into_iter().chain((40..60).map(|i| (i, i + 1))) {
            let segment = Segment { cache: &mut cache, tokens: &tokens[from..to] };
            let logits = model.extend(&kernels, &mut scratch, &mut [segment]);
            for (left, right) in logits.iter().zip(&expected[(to - 1) * 264..to * 264]) {
                assert!((left - right).abs() < 1e-4, "position {}: {left} and {right}", to - 1);
            }
        }
        assert_eq!(cache.positions(), 60);
    }

    /// Weights and, in the prefill, activations have 8 bits in bf16, and 7 to the group's largest one in int8: a logit of
    /// deviation `s` moves by a few hundredths of it.
    #[test]
    fn a_compact_model_gives_nearly_the_same_logits_and_decodes_alike_alone_and_in_company() {
        let logits = |model: &Model, kernels: &Cpu, copies: usize| {
            let mut caches: Vec<_> = (0..copies).map(|_| KvCache::default()).collect();
            let (mut scratch, prompt) = (Scratch::default(), tokens(2, 40));
            for cache in &mut caches {
                model.extend(kernels, &mut scratch, &mut [Segment { cache, tokens: &prompt }]);
            }
            let mut segments: Vec<_> =
                caches.iter_mut().map(|cache| Segment { cache, tokens: &[65] }).collect();
            model.extend(kernels, &mut scratch, &mut segments).to_vec()
        };
        for precision in [Precision::Bf16, Precision::Int8] {
            let mut model = Model::new(ModelConfig::preset("tiny").unwrap(), 3);
            let exact = logits(&model, &Cpu::new(1), 1);
            model.compact(precision);
            let kernels = Cpu::with_precision(2, precision);
            let near = logits(&model, &kernels, 1);
            let size = |x: &mut dyn Iterator<Item = f32>| {
                (x.map(|x| x * x).sum::<f32>() / exact.len() as f32).sqrt()
            };
            let error = size(&mut exact.iter().zip(&near).map(|(x, y)| x - y));
            assert!(0.0 < error && error < 0.03 * size(&mut exact.iter().copied()), "{error}");
            for together in logits(&model, &kernels, 5).chunks_exact(264) {
                assert_eq!(near, together);
            }
        }
    }

    #[test]
    fn a_sequence_decodes_to_the_same_bits_alone_and_in_company() {
        let model = Model::new(ModelConfig::preset("tiny").unwrap(), 4);
        let kernels = Cpu::new(2);
        let prompts: Vec<_> = (0..MAX_DECODE_ROWS).map(|i| tokens(i as u64, 3 + 5 * i)).collect();
        let prefill = |prompt: &[u32]| {
            let mut cache = KvCache::default();
            model.extend(
                &kernels,
                &mut Scratch::default(),
                &mut [Segment { cache: &mut cache, tokens: prompt }],
            );
            cache
        };
        let mut caches: Vec<_> = prompts.iter().map(|prompt| prefill(prompt)).collect();
        let mut segments: Vec<_> = caches.iter_mut().map(|cache| Segment { cache, tokens: &[65] }).collect();
        let mut scratch = Scratch::default();
        let together = model.extend(&kernels, &mut scratch, &mut segments);
        for (prompt, together) in prompts.iter().zip(together.chunks_exact(264)) {
            let mut cache = prefill(prompt);
            let mut scratch = Scratch::default();
            let alone =
                model.extend(&kernels, &mut scratch, &mut [Segment { cache: &mut cache, tokens: &[65] }]);
            assert_eq!(alone, together);
        }
    }
}
