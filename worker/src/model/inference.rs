//! The inference pass: any number of sequences, each over its own blocks of cached keys and values.
//!
//! A position's bits depend on three things only: the tokens up to it, which of them are of the prompt, and the model.
//! Positions of a prompt go through packed panels and attention in tiles, positions that the model said go through dot
//! products and attention over the cache, and in both a row's result is a function of that row and what it sees. So it
//! does not matter how a prompt is cut, what else is in the pass, whether keys and values were computed now or found in
//! a cache, or whether a position is computed for the first time or again.

use super::{Activations, LayerActivations, Model};
use crate::kernels::{Attention, Backend, DeviceError, Linear, Path, Seen, Weights};
use crate::vector::Vector;
use std::ops::Range;

/// The next tokens of one sequence.
pub struct Segment<'a> {
    /// Where its keys and values lie, with room for those of `tokens`.
    pub table: &'a [u32],
    /// Positions that are in the cache.
    pub start: usize,
    /// Tokens of the positions from `start` on; at least one.
    pub tokens: &'a [u32],
    /// How many of them, from the first, are of the prompt; the model said the others.
    pub prompt: usize,
    /// How many of them, from the last, are wanted in [`Outputs`].
    pub wanted: usize,
    /// Whether their hidden vectors are, too.
    pub hidden: bool,
}

/// What a pass computed for the wanted tokens of all segments, in order.
pub struct Outputs<'a> {
    /// Hidden vectors after the last norm, `[wanted, hidden]`; nothing if no segment wants them.
    pub hidden: &'a [f32],
    /// Logits of the token that follows, `[wanted, vocabulary]`.
    pub logits: &'a [f32],
}

/// Memory of inference passes, kept from one to the next; in floats `F`, elements `E` and numbers of rows `R`.
#[derive(Default)]
pub struct Scratch<F = Vector, E = Vec<f32>, R = ()> {
    prompts: Rows<F, E>,
    said: Rows<F, E>,
    /// What is told of the rows of either.
    at: [R; 2],
    keys: E,
    values: E,
    last: F,
    norm: E,
    rstd: F,
    logits: F,
    /// What comes to the host.
    host: [Vec<f32>; 2],
}

/// That of a backend.
pub type ScratchOf<K> =
    Scratch<<K as Backend>::FloatBuffer, <K as Backend>::ElementBuffer, <K as Backend>::RowBuffer>;

/// The rows of a pass that go the same path.
#[derive(Default)]
struct Rows<F, E> {
    tokens: Vec<u32>,
    /// For each stretch of rows: its segment and its first position.
    stretches: Vec<(usize, usize, Range<usize>)>,
    x: F,
    layer: LayerActivations<F, E>,
}

impl<F, E> Rows<F, E> {
    fn clear(&mut self) {
        self.tokens.clear();
        self.stretches.clear();
    }

    fn add(&mut self, segment: usize, position: usize, tokens: &[u32]) {
        if !tokens.is_empty() {
            let first = self.tokens.len();
            self.tokens.extend_from_slice(tokens);
            self.stretches.push((segment, position, first..self.tokens.len()));
        }
    }

    /// What each row sees.
    fn seen<'a>(&self, segments: &[Segment<'a>]) -> Vec<Seen<'a>> {
        let of = |(segment, start, rows): &(usize, usize, Range<usize>)| {
            let (table, start) = (segments[*segment].table, *start);
            (0..rows.len()).map(move |i| Seen { table, keys: start + i + 1 })
        };
        self.stretches.iter().flat_map(of).collect()
    }
}

/// The row of a segment's position, if it is in one of the stretches.
fn find(stretches: &[(usize, usize, Range<usize>)], segment: usize, position: usize) -> Option<usize> {
    stretches.iter().find_map(|(of, start, rows)| {
        let row = rows.start + position.checked_sub(*start)?;
        (*of == segment && row < rows.end).then_some(row)
    })
}

impl<W> Model<W> {
    /// Runs every segment on from its cache, to which it adds keys and values.
    ///
    /// # Errors
    /// The device has failed; the cache holds nothing that can be relied on.
    pub fn extend<'a, K: Backend<Weights = W>>(
        &self,
        kernels: &K,
        cache: &mut K::Cache,
        scratch: &'a mut ScratchOf<K>,
        segments: &[Segment<'_>],
    ) -> Result<Outputs<'a>, DeviceError>
    where
        W: Weights<K>,
    {
        let (config, hidden) = (&self.config, self.config.hidden_size);
        let Scratch { prompts, said, at, keys, values, last, norm, rstd, logits, host } = scratch;
        prompts.clear();
        said.clear();
        for (index, segment) in segments.iter().enumerate() {
            let (prompt, rest) = segment.tokens.split_at(segment.prompt);
            prompts.add(index, segment.start, prompt);
            said.add(index, segment.start + prompt.len(), rest);
        }
        let (prompts_seen, said_seen) = (prompts.seen(segments), said.seen(segments));
        let wanted: usize = segments.iter().map(|segment| segment.wanted).sum();
        // The next tokens alone: all rows go on to the output layer, pass after pass in few different shapes.
        let is_step = 0 < wanted && prompts.tokens.is_empty() && wanted == said.tokens.len();
        let outputs = if is_step { K::filled(wanted) } else { wanted };
        let filled = prompts.tokens.len().next_multiple_of(K::PROMPT_ROWS);
        prompts.tokens.resize(filled, 0);
        said.tokens.resize(if is_step { outputs } else { said.tokens.len() }, 0);
        for rows in [&mut *prompts, &mut *said] {
            kernels.resize(&mut rows.x, rows.tokens.len() * hidden);
            rows.layer.resize(kernels, config, rows.tokens.len());
        }
        kernels.resize(last, if is_step { 0 } else { wanted * hidden });
        kernels.resize_elements(norm, outputs * hidden);
        kernels.resize(rstd, outputs);
        kernels.resize(logits, outputs * config.vocab_size);
        let [prompts_room, said_room] = at;
        let prompts_at = kernels.rows(prompts_room, &prompts.tokens, &prompts_seen);
        let said_at = kernels.rows(said_room, &said.tokens, &said_seen);

        let work = || {
            let embedding = self.weights.matrix(self.layout.embedding.range());
            if !prompts.tokens.is_empty() {
                kernels.embed_rows(&mut prompts.x, &prompts_at, embedding, hidden);
            }
            if !said.tokens.is_empty() {
                kernels.embed_rows(&mut said.x, &said_at, embedding, hidden);
            }
            for layer in 0..config.num_hidden_layers {
                if !prompts.tokens.is_empty() {
                    let rows = (layer, prompts.tokens.len(), Path::Panels);
                    std::mem::swap(&mut prompts.layer.x, &mut prompts.x);
                    self.layer_forward(kernels, rows, &mut prompts.layer, &mut prompts.x, |saved| {
                        self.put(kernels, cache, layer, saved, &prompts_at);
                        for (segment, start, rows) in &prompts.stretches {
                            let seen = Seen { table: segments[*segment].table, keys: start + rows.len() };
                            self.attend(
                                kernels,
                                (cache, layer),
                                saved,
                                rows,
                                seen,
                                [&mut *keys, &mut *values],
                            );
                        }
                    });
                }
                // What was said comes behind its prompt: those keys are in the cache by now.
                if !said.tokens.is_empty() {
                    let rows = (layer, said.tokens.len(), Path::Dots);
                    std::mem::swap(&mut said.layer.x, &mut said.x);
                    self.layer_forward(kernels, rows, &mut said.layer, &mut said.x, |saved| {
                        self.put(kernels, cache, layer, saved, &said_at);
                        let shape = self.attention_shape(1, 0);
                        let cached = (&*cache, layer);
                        kernels.attention_cached(shape, &mut saved.attention, &saved.q, &said_at, cached);
                    });
                }
            }
            let mut to = 0;
            for (index, segment) in segments.iter().enumerate().filter(|_| !is_step) {
                let end = segment.start + segment.tokens.len();
                for position in end - segment.wanted..end {
                    let all = [(&prompts.stretches, &prompts.x), (&said.stretches, &said.x)];
                    let found = all.into_iter().find_map(|(rows, x)| Some((x, find(rows, index, position)?)));
                    let (x, row) = found.expect("every token has a row");
                    kernels.copy(&mut last[to..to + hidden], &x[row * hidden..(row + 1) * hidden]);
                    to += hidden;
                }
            }
            if 0 < wanted {
                let (x, w) = (if is_step { &*said.x } else { last }, self.layout.norm.range());
                kernels.rms_norm_forward(norm, rstd, x, self.weights.vector(w), config.rms_norm_eps);
                let into = Linear { path: Path::Dots, ..Linear::new(outputs, hidden, config.vocab_size) };
                kernels.logits(into, logits, norm, self.weights.matrix(self.layout.head.range()));
            }
            // The next pass finds both where this one did.
            if config.num_hidden_layers % 2 == 1 && !prompts.tokens.is_empty() {
                std::mem::swap(&mut prompts.layer.x, &mut prompts.x);
            }
            if config.num_hidden_layers % 2 == 1 && !said.tokens.is_empty() {
                std::mem::swap(&mut said.layer.x, &mut said.x);
            }
        };
        if is_step {
            kernels.at_once(work)
        } else {
            work()
        }
        let [vectors, outputs] = host;
        let hidden = match segments.iter().any(|segment| segment.hidden) {
            true => kernels.read_elements(&norm[0..wanted * hidden], vectors)?,
            false => &[],
        };
        Ok(Outputs { hidden, logits: kernels.read(&logits[0..wanted * config.vocab_size], outputs)? })
    }

    fn attention_shape(&self, queries: usize, start: usize) -> Attention {
        let config = &self.config;
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        Attention { queries, start, heads, kv_heads, head_dim: config.head_dim }
    }

    /// Rotates queries and keys, and puts keys and values into the cache.
    fn put<K: Backend<Weights = W>>(
        &self,
        kernels: &K,
        cache: &mut K::Cache,
        layer: usize,
        saved: &mut Activations<K>,
        rows: &K::Rows<'_>,
    ) where
        W: Weights<K>,
    {
        let (queries, keys, rope) = (self.config.query_width(), self.config.key_width(), self.weights.rope());
        kernels.rope_rows(&mut saved.q, queries, rows, rope);
        kernels.rope_rows(&mut saved.k, keys, rows, rope);
        kernels.cache_write(cache, layer, rows, &saved.k, &saved.v);
    }

    /// Attention of the rows of a prompt that end where `seen` does.
    fn attend<K: Backend<Weights = W>>(
        &self,
        kernels: &K,
        (cache, layer): (&K::Cache, usize),
        saved: &mut Activations<K>,
        rows: &Range<usize>,
        seen: Seen<'_>,
        [keys, values]: [&mut K::ElementBuffer; 2],
    ) {
        let (queries, width, heads) =
            (self.config.query_width(), self.config.key_width(), self.config.num_attention_heads);
        let (narrow, start) = (rows.start * width..rows.end * width, seen.keys - rows.len());
        let (k, v) = match start {
            0 => (&saved.k[narrow.clone()], &saved.v[narrow]),
            _ => {
                kernels.resize_elements(keys, seen.keys * width);
                kernels.resize_elements(values, seen.keys * width);
                kernels.cache_read(cache, layer, seen, keys, values);
                (&**keys, &**values)
            }
        };
        let wide = rows.start * queries..rows.end * queries;
        let log_sum = &mut saved.log_sum[rows.start * heads..rows.end * heads];
        let inputs = [&saved.q[wide.clone()], k, v];
        let shape = self.attention_shape(rows.len(), start);
        kernels.attention_forward(shape, &mut saved.attention[wide], log_sum, inputs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{BLOCK, Cpu, KvBlocks, Precision};
    use crate::model::ModelConfig;
    use crate::model::training::Workspace;
    use crate::random::{Random, permute};

    fn tokens(seed: u64, count: usize) -> Vec<u32> {
        let mut random = Random::new(seed);
        (0..count).map(|_| (random.bits() % 256) as u32).collect()
    }

    /// A sequence with blocks of its own.
    struct Sequence {
        table: Vec<u32>,
        tokens: Vec<u32>,
        prompt: usize,
        done: usize,
    }

    impl Sequence {
        /// The blocks of sequence `index` are scattered over a cache of `CACHE` blocks.
        fn new(index: usize, prompt: Vec<u32>, said: &[u32]) -> Sequence {
            let table = (0..8).map(|i| permute((8 * index + i) as u64, CACHE as u64, 1) as u32).collect();
            let (length, tokens) = (prompt.len(), [&prompt[..], said].concat());
            assert!(tokens.len() <= 8 * BLOCK);
            Sequence { table, tokens, prompt: length, done: 0 }
        }

        /// The segment that ends before position `end`.
        fn to(&mut self, end: usize) -> Segment<'_> {
            let start = std::mem::replace(&mut self.done, end);
            let tokens = &self.tokens[start..end];
            let prompt = self.prompt.saturating_sub(start).min(tokens.len());
            Segment { table: &self.table, start, tokens, prompt, wanted: 1, hidden: false }
        }
    }

    const CACHE: usize = 160;

    /// A model, and a cache as processors have it in a precision.
    fn model(seed: u64, precision: Precision) -> (Model, KvBlocks) {
        let config = ModelConfig::preset("tiny").unwrap();
        let cache = Cpu::with_precision(1, precision).cache(config.cache(CACHE)).unwrap();
        (Model::new(config, seed), cache)
    }

    #[test]
    fn decoding_over_the_cache_gives_the_logits_of_the_whole_sequence() {
        let ((model, mut cache), kernels) = (model(3, Precision::F32), Cpu::new(1));
        let tokens = tokens(1, 60);
        let mut workspace = Workspace::default();
        let expected = model.forward(&kernels, &mut workspace, &tokens).unwrap();
        let mut sequence = Sequence::new(0, tokens[..40].to_vec(), &tokens[40..]);
        let mut scratch = Scratch::default();
        for to in [33, 34, 40].into_iter().chain(41..=60) {
            let outputs = model.extend(&kernels, &mut cache, &mut scratch, &[sequence.to(to)]).unwrap();
            for (left, right) in outputs.logits.iter().zip(&expected[(to - 1) * 264..to * 264]) {
                assert!((left - right).abs() < 1e-4, "position {}: {left} and {right}", to - 1);
            }
        }
    }

    /// Weights and, in the prefill, activations have 8 bits in bf16, and 7 to the group's largest one in int8: a logit of
    /// deviation `s` moves by a few hundredths of it.
    #[test]
    fn a_compact_model_gives_nearly_the_same_logits() {
        let logits = |model: &Model, cache: &mut KvBlocks, kernels: &Cpu| {
            let mut sequence = Sequence::new(0, tokens(2, 40), &[65]);
            let mut scratch = Scratch::default();
            model.extend(kernels, cache, &mut scratch, &[sequence.to(40)]).unwrap();
            model.extend(kernels, cache, &mut scratch, &[sequence.to(41)]).unwrap().logits.to_vec()
        };
        for precision in [Precision::Bf16, Precision::Int8] {
            let (mut model, mut cache) = model(3, Precision::F32);
            let exact = logits(&model, &mut cache, &Cpu::new(1));
            model.compact(precision);
            let mut cache = Cpu::with_precision(1, precision).cache(model.config.cache(CACHE)).unwrap();
            let near = logits(&model, &mut cache, &Cpu::with_precision(2, precision));
            let size = |x: &mut dyn Iterator<Item = f32>| {
                (x.map(|x| x * x).sum::<f32>() / exact.len() as f32).sqrt()
            };
            let error = size(&mut exact.iter().zip(&near).map(|(x, y)| x - y));
            assert!(0.0 < error && error < 0.03 * size(&mut exact.iter().copied()), "{error}");
        }
    }

    /// Prompts of all lengths around a block, and what the model said after them.
    fn sequences() -> Vec<Sequence> {
        let lengths = [1, 2, 15, 16, 17, 31, 32, 33, 40, 64, 65, 90];
        let sequence = |(i, length): (usize, &usize)| {
            let seed = i as u64;
            Sequence::new(i, tokens(seed, *length), &tokens(seed + 100, 20))
        };
        lengths.iter().enumerate().map(sequence).collect()
    }

    /// Every sequence by itself: its prompt at once, then token by token. Logits of the last one.
    fn alone(model: &Model, cache: &mut KvBlocks, kernels: &Cpu) -> Vec<Vec<f32>> {
        let last = |mut sequence: Sequence| {
            let (mut scratch, mut logits) = (Scratch::default(), Vec::new());
            for to in sequence.prompt..=sequence.tokens.len() {
                let outputs = model.extend(kernels, cache, &mut scratch, &[sequence.to(to)]).unwrap();
                logits = outputs.logits.to_vec();
            }
            logits
        };
        sequences().into_iter().map(last).collect()
    }

    #[test]
    fn bits_are_the_same_alone_in_company_cut_anywhere_and_computed_again() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let (mut model, mut cache) = model(4, precision);
            model.compact(precision);
            let expected = alone(&model, &mut cache, &Cpu::with_precision(1, precision));
            for seed in 0..6 {
                let (kernels, mut random) =
                    (Cpu::with_precision(1 + seed as usize % 2, precision), Random::new(seed));
                let (mut scratch, mut sequences) = (Scratch::default(), sequences());
                let mut last: Vec<Vec<f32>> = vec![Vec::new(); sequences.len()];
                // Some go on, by pieces that may hold the end of a prompt and what follows; some start again.
                while sequences.iter().any(|sequence| sequence.done < sequence.tokens.len()) {
                    let (mut segments, mut ids) = (Vec::new(), Vec::new());
                    for (id, sequence) in sequences.iter_mut().enumerate() {
                        let rest = sequence.tokens.len() - sequence.done;
                        if 0 < rest && random.bits() % 3 != 0 {
                            if random.bits() % 30 == 0 {
                                sequence.done = 0;
                            }
                            let piece = 1 + random.bits() as usize % rest;
                            let to = sequence.done + piece;
                            segments.push(sequence.to(to));
                            ids.push(id);
                        }
                    }
                    let outputs = model.extend(&kernels, &mut cache, &mut scratch, &segments).unwrap();
                    for (id, logits) in ids.into_iter().zip(outputs.logits.chunks_exact(264)) {
                        last[id] = logits.to_vec();
                    }
                }
                assert!(last == expected, "seed {seed} in {precision:?}");
            }
        }
    }
}
