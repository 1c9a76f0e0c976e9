//! A training step and inference of whole models, of the shapes that other frameworks are measured with.

use super::{Bound, Figure, Spent, spent};
use crate::kernels::{AdamW, BLOCK, Backend, Cpu, Device, DeviceError, GROUP, Kernels, Precision};
use crate::model::inference::{ScratchOf, Segment};
use crate::model::training::{Sample, Workspace};
use crate::model::{Model, ModelConfig};
use crate::random::Random;

/// The window of the models: the longest prompt and what follows it.
pub const MAX_TOKENS: usize = 4096;

/// The models that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// 10.8 million parameters; trained on 16 sequences of 256 tokens.
    #[value(name = "10m")]
    M10,
    /// 23.9 million parameters; trained on 8 sequences of 512 tokens.
    #[value(name = "24m")]
    M24,
    /// 125 million parameters with a vocabulary of 32,000; trained on 4 sequences of 512 tokens.
    #[value(name = "125m")]
    M125,
    /// 1.1 billion parameters with a vocabulary of 32,000; trained on 8 sequences of 2,048 tokens.
    #[value(name = "1b")]
    B1,
    /// Eight layers of a model of seven billion parameters, 1.9 billion with a vocabulary of 32,000; trained on 4 sequences of
    /// 2,048 tokens.
    #[value(name = "7b-layers")]
    B7Layers,
}

impl Shape {
    /// Its shape, and the sequences and tokens of each that a step takes.
    pub fn config(self) -> (ModelConfig, usize, usize) {
        let (hidden, layers, heads, kv_heads, inner, vocabulary, sequences, context) = match self {
            Shape::M10 => (384, 6, 6, 6, 1024, 256, 16, 256),
            Shape::M24 => (512, 8, 8, 4, 1408, 256, 8, 512),
            Shape::M125 => (768, 12, 12, 4, 2048, 32_000, 4, 512),
            Shape::B1 => (2048, 16, 32, 8, 8192, 32_000, 8, 2048),
            Shape::B7Layers => (4096, 8, 32, 32, 11_008, 32_000, 4, 2048),
        };
        let config = ModelConfig {
            vocab_size: vocabulary,
            hidden_size: hidden,
            intermediate_size: inner,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim: hidden / heads,
            max_position_embeddings: MAX_TOKENS,
            tie_word_embeddings: false,
            ..ModelConfig::preset("small").expect("a preset")
        };
        (config, sequences, context)
    }
}

/// A model of this shape as it is served.
pub(super) fn prepared(shape: Shape, precision: Precision) -> Model {
    let mut model = Model::new(shape.config().0, 1234);
    model.compact(precision);
    model
}

/// What [`train`] measures.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct TrainArgs {
    /// The model: 10m, 24m, 125m or 1b parameters, or 7b-layers: eight of a larger one
    #[arg(long, value_name = "NAME", default_value = "10m")]
    pub model: Shape,

    /// What computes: cpu, cuda or cuda:N, or auto for a card if there is one
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    pub device: Device,

    /// What the factors of matrix products are rounded to
    #[arg(long, value_name = "NAME", default_value = "f32")]
    pub precision: Precision,

    /// Threads
    #[arg(long, default_value_t = 1)]
    pub threads: usize,

    /// Steps that are measured, after one that is not
    #[arg(long, default_value_t = 5)]
    pub steps: usize,
}

/// Training steps: gradient of all sequences together, and the update.
pub fn train(args: &TrainArgs) -> Vec<Figure> {
    train_on(args, args.model.config().1)
}

/// As [`train`], with so many sequences in a step.
pub(crate) fn train_on(args: &TrainArgs, sequences: usize) -> Vec<Figure> {
    let (config, _, context) = args.model.config();
    let mut model = Model::new(config, 1234);
    let kernels = Cpu::with_precision(args.threads, args.precision);
    let (mut workspace, mut gradient) = (Workspace::default(), vec![0.0; model.layout.len]);
    let (mut first, mut second) = (gradient.clone(), gradient.clone());
    let learned = Learned::new(&model.config, sequences, context);
    let sample = learned.sample();
    let (mut losses, mut times) = (Vec::new(), Vec::new());
    for update in 1..=args.steps as u64 + 1 {
        times.push(spent(|| {
            gradient.fill(0.0);
            losses.push(model.loss_and_gradient(&kernels, &mut workspace, &mut gradient, sample));
            kernels.adamw(
                &mut model.weights.parameters,
                &mut first,
                &mut second,
                &gradient,
                &usual_update(update),
            );
        }));
    }
    let step = median(&times[1..]);
    let (matrices, attention) = learned.per_token(&model);
    let (tokens, per_token) = ((sequences * context) as f64, 6.0 * (matrices + attention));
    let bound = if args.precision == Precision::F32 { Bound::F32 } else { Bound::Bf16 };
    vec![
        Figure::new("training, per second of a core", tokens / step.cpu, "tokens/s", Bound::None),
        Figure::new("training, on the wall", tokens / step.wall, "tokens/s", Bound::None),
        Figure::new("arithmetic of the model", per_token * tokens * 1e-9 / step.cpu, "GFLOP/s", bound),
        Figure::new("loss of the first step", f64::from(losses[0]), "nats", Bound::None),
        Figure::new("loss of the last step", f64::from(losses[losses.len() - 1]), "nats", Bound::None),
    ]
}

/// Sequences that can be learned: every token is the last one plus 7.
pub(super) struct Learned {
    tokens: Vec<u32>,
    targets: Vec<u32>,
    context: usize,
}

impl Learned {
    pub fn new(config: &ModelConfig, sequences: usize, context: usize) -> Learned {
        let vocabulary = config.vocab_size.min(256);
        let token = |sequence: usize, t: usize| ((t * 7 + sequence * 31) % vocabulary) as u32;
        let all = |shift: usize| -> Vec<u32> {
            (0..sequences * context).map(|i| token(i / context, i % context + shift)).collect()
        };
        Learned { tokens: all(0), targets: all(1), context }
    }

    pub fn sample(&self) -> Sample<'_> {
        Sample { tokens: &self.tokens, targets: &self.targets, length: self.context }
    }

    /// Multiplications of a token with all matrices but the embedding, and of one of attention's products over what a token
    /// sees on average.
    pub fn per_token<W>(&self, model: &Model<W>) -> (f64, f64) {
        let config = &model.config;
        let matrices = model.layout.tensors.iter().filter(|tensor| tensor.shape.len() == 2);
        let matrices: usize =
            matrices.map(|tensor| tensor.span.len).sum::<usize>() - model.layout.embedding.len;
        // Causal attention counts half of its square.
        let attention =
            config.num_hidden_layers * self.context * config.num_attention_heads * config.head_dim;
        (matrices as f64, attention as f64)
    }
}

/// The update with this number, from 1, as trainings make it.
pub(super) fn usual_update(update: u64) -> AdamW {
    AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, update, scale: 1.0 }
}

fn median(times: &[Spent]) -> Spent {
    let of = |value: fn(&Spent) -> f64| {
        let mut values: Vec<f64> = times.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Spent { wall: of(|spent| spent.wall), cpu: of(|spent| spent.cpu) }
}

/// A model that serves.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Server {
    /// The model: 10m, 24m, 125m or 1b parameters, or 7b-layers: eight of a larger one
    #[arg(long, value_name = "NAME", default_value = "125m")]
    pub model: Shape,

    /// What weights are kept in, and the factors of long matrix products rounded to
    #[arg(long, value_name = "NAME", default_value = "f32")]
    pub precision: Precision,

    /// Threads
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
}

/// What [`infer`] measures.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct InferArgs {
    /// What serves.
    #[command(flatten)]
    pub server: Server,

    /// What computes: cpu, cuda or cuda:N, or auto for a card if there is one
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    pub device: Device,

    /// Tokens of the prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub prompt: usize,

    /// Tokens that are generated
    #[arg(long, value_name = "TOKENS", default_value_t = 32)]
    pub generate: usize,
}

/// A prompt, then one token after the other, of one sequence; the medians of three runs after one.
pub fn infer(args: &InferArgs) -> Vec<Figure> {
    let mut model = Model::new(args.server.model.config().0, 1234);
    model.compact(args.server.precision);
    let kernels = Cpu::with_precision(args.server.threads, args.server.precision);
    let asked = (args.server.precision, args.prompt, args.generate);
    infer_with(&kernels, model, asked, |spent| spent.cpu).expect("a processor does not fail")
}

/// As [`infer`], on any backend; rates of arithmetic and bytes are per second of what `seconds` takes of the time.
pub(super) fn infer_with<K: Backend>(
    kernels: &K,
    model: Model,
    (precision, prompt_tokens, generate): (Precision, usize, usize),
    seconds: fn(&Spent) -> f64,
) -> Result<Vec<Figure>, DeviceError> {
    let matrices = model.layout.tensors.iter().filter(|tensor| tensor.shape.len() == 2);
    let matrices: usize = matrices.map(|tensor| tensor.span.len).sum::<usize>() - model.layout.embedding.len;
    // The output layer sees the last token only.
    let layers = matrices - model.layout.head.len;
    let bytes = match precision {
        Precision::F32 => 4.0,
        Precision::Bf16 => 2.0,
        // Scales included.
        Precision::Int8 => 1.0 + 4.0 / GROUP as f64,
    };
    let model = kernels.adopt(model)?;
    let vocabulary = model.config.vocab_size as u64;
    let mut random = Random::new(42);
    let prompt: Vec<u32> = (0..prompt_tokens).map(|_| (random.bits() % vocabulary) as u32).collect();
    let table: Vec<u32> = (0..(prompt_tokens + generate).div_ceil(BLOCK) as u32).collect();
    let mut cache = model.cache(kernels, table.len())?;
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let (mut scratch, mut start, mut token) = (ScratchOf::<K>::default(), 0, 0);
        let mut next = |tokens: &[u32], prompt: usize| {
            let segment = Segment { table: &table, start, tokens, prompt, wanted: 1, hidden: false };
            start += tokens.len();
            let logits = model.extend(kernels, &mut cache, &mut scratch, &[segment])?.logits;
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
            Ok::<u32, DeviceError>(best.unwrap_or(0) as u32)
        };
        let mut result = Ok(());
        prefill.push(spent(|| result = next(&prompt, prompt.len()).map(|best| token = best)));
        result?;
        let mut result = Ok(());
        decode.push(spent(|| {
            let mut tokens = (0..generate).map(|_| next(&[token], 0).map(|best| token = best));
            result = tokens.by_ref().collect();
        }));
        result?;
    }
    let (prefill, decode) = (median(&prefill[1..]), median(&decode[1..]));
    let (prompt, generated) = (prompt_tokens as f64, generate as f64);
    let bound = if precision == Precision::F32 { Bound::F32 } else { Bound::Bf16 };
    let weights = matrices as f64 * bytes * 1e-9;
    let arithmetic = 2e-9 * layers as f64 * prompt / seconds(&prefill);
    Ok(vec![
        Figure::new("prefill, per second of a core", prompt / prefill.cpu, "tokens/s", Bound::None),
        Figure::new("prefill, on the wall", prompt / prefill.wall, "tokens/s", Bound::None),
        Figure::new("prefill, arithmetic", arithmetic, "GFLOP/s", bound),
        Figure::new("decode, per second of a core", generated / decode.cpu, "tokens/s", Bound::None),
        Figure::new("decode, on the wall", generated / decode.wall, "tokens/s", Bound::None),
        Figure::new("decode, weights read", weights * generated / seconds(&decode), "GB/s", Bound::Memory),
    ])
}
