//! The model on a card: trained, served, and refused, on the fake card of `tests/fake_cuda`.
//!
//! What is compared is computed by the same passes with the specification's loops, and by the processor's kernels.
#![allow(unsafe_code)] // Libraries are opened.

#[path = "support/fake_cuda.rs"]
mod fake_cuda;

use aquifer_worker::MeasureArgs;
use aquifer_worker::bench::{self, Sizes};
use aquifer_worker::kernels::{AdamW, BLOCK, Backend, Bf16, Card, Cpu, Cuda, Element, Precision, Reference};
use aquifer_worker::measure::{self, CardSizes, Measured};
use aquifer_worker::model::inference::{ScratchOf, Segment};
use aquifer_worker::model::training::{Sample, WorkspaceOf};
use aquifer_worker::model::{Model, ModelConfig, Trained};
use aquifer_worker::random::Random;
use std::sync::{Arc, OnceLock};

/// The fake card, once for all tests of this process; with `AQUIFER_CARD=1` the machine's own.
fn card() -> Option<Arc<Card>> {
    static CARD: OnceLock<Option<Arc<Card>>> = OnceLock::new();
    CARD.get_or_init(|| {
        if std::env::var_os("AQUIFER_CARD").is_some() {
            return Some(Arc::new(Card::find(0).unwrap()));
        }
        let folder = fake_cuda::libraries()?;
        // SAFETY: no other thread of this process reads the environment now: all come through here first.
        unsafe { std::env::set_var("AQUIFER_KERNEL_CACHE", "off") };
        for library in ["libcuda.so", "libnvrtc.so", "libcublasLt.so"] {
            // SAFETY: its start does nothing. It stays open, so that it is found by its name.
            std::mem::forget(unsafe { libloading::Library::new(folder.join(library)) }.unwrap());
        }
        Some(Arc::new(Card::find(0).unwrap()))
    })
    .clone()
}

/// Where parameters matter more than at the start of a training, with every bias and norm that the family has.
fn of_family(model_type: &str, tie_word_embeddings: bool) -> Model {
    let has_biases = model_type == "llama" && !tie_word_embeddings;
    let mut model = Model::new(
        ModelConfig {
            model_type: model_type.into(),
            attention_bias: has_biases,
            mlp_bias: has_biases,
            hidden_size: 48,
            intermediate_size: 72,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 16,
            max_position_embeddings: 512,
            tie_word_embeddings,
            ..ModelConfig::preset("tiny").unwrap()
        },
        1,
    );
    let mut random = Random::new(3);
    for tensor in &model.layout.tensors {
        let values = tensor.span.of_mut(&mut model.weights.parameters);
        match tensor.shape.len() {
            2 => values.iter_mut().for_each(|value| *value *= 5.0),
            _ => values.iter_mut().for_each(|value| *value += 0.3 * random.normal()),
        }
    }
    model
}

const FAMILIES: [(&str, bool); 4] = [("llama", true), ("llama", false), ("qwen2", true), ("qwen3", true)];

fn tokens(seed: u64, count: usize) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| (random.bits() % 256) as u32).collect()
}

fn length(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// The length of the difference as a share of that of `right`.
fn distance(left: &[f32], right: &[f32]) -> f64 {
    assert_eq!(left.len(), right.len());
    let difference: Vec<f32> = left.iter().zip(right).map(|(left, right)| left - right).collect();
    length(&difference) / length(right).max(1e-12)
}

fn loss_and_gradient<K: Backend>(kernels: &K, model: &Model, sample: Sample<'_>) -> (f32, Vec<f32>) {
    let (mut held, mut gradient, mut host) = (None, K::FloatBuffer::default(), Vec::new());
    let placed = kernels.place(&mut held, model, true).unwrap();
    kernels.resize(&mut gradient, model.layout.len);
    kernels.zero(&mut gradient);
    let mut workspace = WorkspaceOf::<K>::default();
    let loss = placed.loss_and_gradient(kernels, &mut workspace, &mut gradient, sample);
    (loss, kernels.read(&gradient, &mut host).unwrap().to_vec())
}

/// The loss and the gradient within `most` of their lengths, and that of every tensor within four times as much; for one
/// sequence, several, and fewer rows than a product takes.
fn assert_gradients<E: Element>(most: f64) {
    let Some(card) = card() else { return };
    for (family, tied) in FAMILIES {
        let model = of_family(family, tied);
        let kernels = Cuda::<E>::new(Arc::clone(&card), model.config.head_dim).unwrap();
        for (count, length) in [(1, 7), (3, 20), (2, 75)] {
            let (tokens, targets) = (tokens(1, count * length), tokens(2, count * length));
            let sample = Sample { tokens: &tokens, targets: &targets, length };
            let (loss, gradient) = loss_and_gradient(&kernels, &model, sample);
            let (expected_loss, expected) = loss_and_gradient(&Reference, &model, sample);
            let name = format!("{family}, {count} of {length}");
            let error = f64::from((loss - expected_loss).abs() / expected_loss);
            assert!(error < most, "{name}: loss {loss}, not {expected_loss}");
            let error = distance(&gradient, &expected);
            assert!(error < most, "{name}: by {error}");
            for tensor in &model.layout.tensors {
                let error = distance(tensor.span.of(&gradient), tensor.span.of(&expected));
                assert!(error < 4.0 * most, "{name}: {} by {error}", tensor.name);
            }
        }
    }
}

#[test]
fn loss_and_gradients_in_single_precision_are_those_of_the_specification() {
    assert_gradients::<f32>(1e-5);
}

/// Of bf16 each factor has 8 bits, and what lies between two products is rounded.
#[test]
fn loss_and_gradients_in_bf16_are_near() {
    assert_gradients::<Bf16>(2e-2);
}

/// Blocks of the cache.
const CACHE: usize = 64;

/// A sequence with blocks of its own, scattered over the cache.
struct Sequence {
    table: Vec<u32>,
    tokens: Vec<u32>,
    prompt: usize,
    done: usize,
}

impl Sequence {
    fn new(index: usize, prompt: usize, said: usize) -> Sequence {
        let table = (0..8).map(|i| (37 * (8 * index + i) % CACHE) as u32).collect();
        assert!(prompt + said <= 8 * BLOCK);
        Sequence { table, tokens: tokens(index as u64, prompt + said), prompt, done: 0 }
    }

    /// The segment that ends before position `end`.
    fn to(&mut self, end: usize) -> Segment<'_> {
        let start = std::mem::replace(&mut self.done, end);
        let tokens = &self.tokens[start..end];
        let prompt = self.prompt.saturating_sub(start).min(tokens.len());
        Segment { table: &self.table, start, tokens, prompt, wanted: 1, hidden: false }
    }
}

/// Prompts of lengths around a block, and what the model said after them.
fn sequences() -> Vec<Sequence> {
    [1, 15, 16, 17, 33, 64, 90].iter().enumerate().map(|(i, prompt)| Sequence::new(i, *prompt, 6)).collect()
}

/// The logits of the last token of each, computed by itself: the prompt at once, then token by token.
fn alone<K: Backend>(kernels: &K, model: &Model<K::Weights>) -> Vec<Vec<f32>> {
    let (mut cache, mut scratch) = (model.cache(kernels, CACHE).unwrap(), ScratchOf::<K>::default());
    let last = |mut sequence: Sequence| {
        let mut logits = Vec::new();
        for to in sequence.prompt..=sequence.tokens.len() {
            let outputs = model.extend(kernels, &mut cache, &mut scratch, &[sequence.to(to)]).unwrap();
            logits = outputs.logits.to_vec();
        }
        logits
    };
    sequences().into_iter().map(last).collect()
}

/// All of them at the same time, by pieces that may hold the end of a prompt and what follows; some start again.
fn together<K: Backend>(kernels: &K, model: &Model<K::Weights>, seed: u64) -> Vec<Vec<f32>> {
    let (mut cache, mut scratch) = (model.cache(kernels, CACHE).unwrap(), ScratchOf::<K>::default());
    let (mut random, mut sequences) = (Random::new(seed), sequences());
    let mut last: Vec<Vec<f32>> = vec![Vec::new(); sequences.len()];
    while sequences.iter().any(|sequence| sequence.done < sequence.tokens.len()) {
        let (mut segments, mut ids) = (Vec::new(), Vec::new());
        for (id, sequence) in sequences.iter_mut().enumerate() {
            let rest = sequence.tokens.len() - sequence.done;
            if 0 < rest && random.bits() % 3 != 0 {
                if random.bits() % 20 == 0 {
                    sequence.done = 0;
                }
                // All prompts together stay below the rows of a pass.
                let to = sequence.done + 1 + random.bits() as usize % rest.min(30);
                segments.push(sequence.to(to));
                ids.push(id);
            }
        }
        let outputs = model.extend(kernels, &mut cache, &mut scratch, &segments).unwrap();
        for (id, logits) in ids.into_iter().zip(outputs.logits.chunks_exact(model.config.vocab_size)) {
            last[id] = logits.to_vec();
        }
    }
    last
}

fn assert_serving<E: Element>(precision: Precision, most: f64) {
    let Some(card) = card() else { return };
    for (family, tied) in FAMILIES {
        let build = || {
            let mut model = of_family(family, tied);
            model.compact(precision);
            model
        };
        let kernels = Cuda::<E>::new(Arc::clone(&card), build().config.head_dim).unwrap();
        let model = kernels.adopt(build()).unwrap();
        let expected = alone(&kernels, &model);
        let host = alone(&Cpu::with_precision(1, precision), &build());
        for (i, (left, right)) in expected.iter().zip(&host).enumerate() {
            let error = distance(left, right);
            assert!(error < most, "{family}, sequence {i}: by {error}");
        }
        for seed in 0..2 {
            assert!(together(&kernels, &model, seed) == expected, "{family}, seed {seed}");
        }
    }
}

#[test]
fn served_logits_are_the_processors_and_have_the_same_bits_alone_and_in_company() {
    assert_serving::<f32>(Precision::F32, 1e-5);
}

#[test]
fn served_logits_in_bf16_are_near_the_processors_and_have_the_same_bits_alone_and_in_company() {
    assert_serving::<Bf16>(Precision::Bf16, 3e-2);
}

fn of_8_bits(mut model: Model) -> Model {
    model.compact(Precision::Int8);
    model
}

/// In single precision on the card nothing else is rounded.
#[test]
fn served_logits_with_weights_of_8_bits_are_the_specifications_and_the_processors() {
    let Some(card) = card() else { return };
    let furthest = |left: &[Vec<f32>], right: &[Vec<f32>]| {
        let distances = left.iter().zip(right).map(|(left, right)| distance(left, right));
        // What is no number is the furthest.
        distances.max_by(f64::total_cmp).unwrap()
    };
    let build = || of_8_bits(of_family("llama", false));
    let kernels = Cuda::<f32>::new(Arc::clone(&card), 16).unwrap();
    let on_card = alone(&kernels, &kernels.adopt(build()).unwrap());
    let error = furthest(&on_card, &alone(&Reference, &build()));
    assert!(error < 1e-5, "by {error} of the specification");

    let kernels = Cuda::<Bf16>::new(Arc::clone(&card), 16).unwrap();
    let model = kernels.adopt(build()).unwrap();
    let on_card = alone(&kernels, &model);
    assert!(together(&kernels, &model, 1) == on_card);
    // Whose vectors keep 16 bits.
    let error = furthest(&on_card, &alone(&Cpu::with_precision(1, Precision::Int8), &build()));
    let moved = furthest(&on_card, &alone(&Reference, &of_family("llama", false)));
    println!("{error} of the processor's, {moved} of those in single precision");
    assert!(error < 5e-3, "by {error} of the processor's");
    assert!(error < moved && moved < 1.5e-2, "by {moved} of those in single precision");
}

/// The logits behind a prompt of a model whose layers have more outputs than are widened at a time.
fn of_a_wide_model<K: Backend>(kernels: &K) -> Vec<f32> {
    let config = ModelConfig { intermediate_size: 4104, ..of_family("llama", true).config };
    let model = kernels.adopt(of_8_bits(Model::new(config, 1))).unwrap();
    let (mut cache, mut scratch) = (model.cache(kernels, CACHE).unwrap(), ScratchOf::<K>::default());
    let outputs = model.extend(kernels, &mut cache, &mut scratch, &[Sequence::new(0, 20, 0).to(20)]).unwrap();
    outputs.logits.to_vec()
}

#[test]
fn matrices_of_8_bits_that_are_widened_in_parts_are_multiplied_whole() {
    let Some(card) = card() else { return };
    let expected = of_a_wide_model(&Reference);
    let error = distance(&of_a_wide_model(&Cuda::<f32>::new(card, 16).unwrap()), &expected);
    assert!(error < 1e-5, "by {error}");
}

fn adamw(update: u64) -> AdamW {
    AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, update, scale: 1.0 }
}

/// A model that learns in a few steps.
fn small() -> ModelConfig {
    of_family("llama", false).config
}

/// The state stays on the card, where its updates are as the specification's.
#[test]
fn a_measured_training_learns_as_it_does_on_a_processor() {
    let Some(card) = card() else { return };
    let (sequences, context, steps) = (2, 24, 3);
    let kernels = Cuda::<f32>::new(card, small().head_dim).unwrap();
    let figures = bench::train_card(&kernels, (small(), sequences, context), steps).unwrap();
    let figure = |name: &str| figures.iter().find(|figure| figure.name == name).unwrap().value;

    let cpu = Cpu::new(1);
    let mut training = cpu.train(Arc::new(Trained::new(Model::new(small(), 1234)))).unwrap();
    let token = |i: usize, shift: usize| (((i % context + shift) * 7 + i / context * 31) % 256) as u32;
    let all = |shift| (0..sequences * context).map(|i| token(i, shift)).collect::<Vec<_>>();
    let (tokens, targets) = (all(0), all(1));
    let sample = Sample { tokens: &tokens, targets: &targets, length: context };
    let mut losses = Vec::new();
    for update in 1..=steps + 1 {
        let (loss, gradient) = loss_and_gradient(&cpu, training.model(&cpu).unwrap(), sample);
        losses.push(f64::from(loss));
        training.take(&cpu, Arc::new([gradient, vec![loss]].concat().into())).unwrap();
        training.update(&cpu, adamw(update)).unwrap();
    }
    let (begin, end) = (figure("loss of the first step"), figure("loss of the last step"));
    assert!((begin - losses[0]).abs() < 1e-5 && (end - losses[3]).abs() < 1e-4, "{begin} {end} {losses:?}");
    assert!(end < begin - 0.05, "{losses:?}");
    // Attention is computed more often than the model asks for.
    assert!(figure("arithmetic of the model (MFU)") < figure("arithmetic of the card (HFU)"));
}

/// Of a card that is none the figures mean nothing, but they are there.
#[test]
fn all_kernels_are_measured_and_what_a_card_can_do() {
    let Some(card) = card() else { return };
    let sizes = Sizes {
        products: vec![[40, 32, 24]],
        attention: vec![[2, 70, 2]],
        head: [20, 32, 100],
        stream: [64, 128],
    };
    let kernels = Cuda::<Bf16>::new(Arc::clone(&card), 32).unwrap();
    let figures = bench::kernels_on(&kernels, &sizes).unwrap();
    assert_eq!(figures.len(), 3 + 2 + 1 + 5);
    assert!(figures.iter().all(|figure| 0.0 < figure.value && figure.value.is_finite()), "{figures:?}");

    let args = |probe| MeasureArgs { core: None, device: None, probe, lines: false, seconds: 600 };
    let sizes = CardSizes { product: 64, copied: 4096, attention: 64, model: (small(), 1, 16) };
    let mut told = Vec::new();
    let tell = &mut |so_far: &Measured| told.push(so_far.clone());
    let whole = measure::on_card(&args(false), &card, sizes.clone(), tell).unwrap();
    // After each figure, with all so far: who is ended amid one has the others.
    assert!(told.len() == 7 && told[0].bf16_tflops == whole.bf16_tflops && told[0].memory_gbs.is_none());
    assert_eq!(told.last(), Some(&whole));
    let Measured { bf16_tflops, f32_tflops, memory_gbs, host_link_gbs, attention_tflops, .. } = whole.clone();
    let rates = [bf16_tflops, f32_tflops, memory_gbs, host_link_gbs, attention_tflops];
    let speeds = [whole.train_tokens_per_s, whole.decode_tokens_per_s];
    assert!(rates.iter().chain(&speeds).all(|figure| figure.is_some_and(|rate| 0.0 < rate)), "{whole:?}");
    let probe = measure::on_card(&args(true), &card, sizes, &mut |_| ()).unwrap();
    assert!(probe.bf16_tflops.is_some() && probe.memory_gbs.is_none(), "{probe:?}");
}

/// Longer than two pieces of the memory that copies go through, and not a multiple of one.
#[test]
fn long_vectors_arrive_whole_in_both_directions() {
    let Some(card) = card() else { return };
    let kernels = Cuda::<f32>::as_needed(Arc::clone(&card), 32);
    let values: Vec<f32> = (0..21_000_003).map(|i| i as f32).collect();
    let (mut up, mut back) = (Default::default(), Vec::new());
    kernels.resize(&mut up, values.len());
    for shift in [0.0, 1.0] {
        let values: Vec<f32> = values.iter().map(|value| value + shift).collect();
        card.upload(&mut up, &values);
        assert!(kernels.read(&up, &mut back).unwrap() == values);
    }
}
