//! `aquifer worker measure`: what one device does, in seconds, as one line of JSON for the agent.
//!
//! The device is a card, or a core of the processor, by the worker's own kernels on one thread. Rates of a core are per second
//! of its time, so that other programs on the machine change them little; those of a card are on the wall.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::WorkerError;
use crate::args::UsageError;
use crate::bench::{self, InferArgs, Server, Shape, TrainArgs, infer, median_seconds, train_on};
use crate::kernels::{
    Attention, Bf16, Card, Cpu, Cuda, Device, DeviceError, GROUP, Int8, Kernels, Linear, Precision, Qkv,
    Weight, peak, quantise,
};
use crate::mapping::in_large_pages;
use crate::model::ModelConfig;
use crate::random::Random;

/// Options of the measurement.
#[derive(clap::Args, Clone, Debug)]
pub struct MeasureArgs {
    /// Core to measure [default: any that this process may use]
    #[arg(long, value_name = "CORE")]
    pub core: Option<usize>,

    /// What to measure: cpu is a core, cuda:N a card by its number among those that this process may see, cuda this rank's, and
    /// auto the same if there is one and its libraries are found, else a core [default: auto, and cpu with --core]
    #[arg(long, value_name = "DEVICE", conflicts_with = "core")]
    pub device: Option<Device>,

    /// Only a short matrix product, to compare with an earlier measurement
    #[arg(long)]
    pub probe: bool,

    /// Print a line after each figure, with all that there are so far
    #[arg(long)]
    pub lines: bool,

    /// Seconds after which what is left is not measured any more
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub seconds: u64,
}

/// What was measured; what there was no time for is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Measured {
    /// Matrix products with factors of single precision, in TFLOP/s.
    pub f32_tflops: Option<f64>,
    /// With factors of bfloat16.
    pub bf16_tflops: Option<f64>,
    /// With weights of eight bits.
    pub int8_tflops: Option<f64>,
    /// Bytes read from memory, in GB/s.
    pub memory_gbs: Option<f64>,
    /// Causal attention of 512 tokens, on a card of up to 2,048, in TFLOP/s.
    pub attention_tflops: Option<f64>,
    /// Training of a model of 10.8 million parameters, in tokens a second.
    pub train_tokens_per_s: Option<f64>,
    /// Decoding with it, in tokens a second.
    pub decode_tokens_per_s: Option<f64>,
    /// From the host to the device; a core is the host.
    pub host_link_gbs: Option<f64>,
    /// How long it took, in seconds.
    pub took_s: f64,
}

/// Measures, and prints the figures.
///
/// # Errors
/// When the core is not this process's to use, or nobody reads the figures.
pub fn main(args: MeasureArgs) -> Result<(), WorkerError> {
    let io = |what: &str| {
        let what = what.to_string();
        move |error| WorkerError::Io { what, error }
    };
    if let Some(core) = args.core {
        let mut set = rustix::thread::CpuSet::new();
        if core < rustix::thread::CpuSet::MAX_CPU {
            set.set(core);
        }
        rustix::thread::sched_setaffinity(None, &set)
            .map_err(|error| io(&format!("core {core}"))(error.into()))?;
    }
    let mut written = Ok(());
    let mut write = |it: &Measured| {
        let line = serde_json::to_string(it).map_err(|error| io("figures")(error.into()));
        let write = |line: String| {
            let mut out = std::io::stdout();
            writeln!(out, "{line}").and_then(|()| out.flush()).map_err(io("standard output"))
        };
        if written.is_ok() {
            written = line.and_then(write);
        }
    };
    let whole = measure(&args, &mut |so_far| {
        if args.lines {
            write(so_far);
        }
    })?;
    if !args.lines {
        write(&whole);
    }
    written
}

/// The figures that there is time for, the most important first.
///
/// * `tell`: called after each, with all so far.
///
/// # Errors
/// A card was asked for that cannot be had, or it has failed.
pub fn measure(args: &MeasureArgs, tell: Tell<'_>) -> Result<Measured, WorkerError> {
    let device = args.device.unwrap_or(if args.core.is_some() { Device::Cpu } else { Device::Auto });
    let refused = |error: DeviceError| UsageError::new("--device", device, error.to_string());
    let card = match device {
        Device::Cpu => None,
        Device::Auto => Card::own().ok(),
        Device::OwnCuda => Some(Card::own().map_err(refused)?),
        Device::Cuda(index) => Some(Card::find(index).map_err(refused)?),
    };
    match card {
        None => Ok(in_turn(args, CORE, &(), tell).expect("a processor does not fail")),
        Some(card) => Ok(on_card(args, &Arc::new(card), CardSizes::default(), tell)?),
    }
}

/// Is told what was measured so far.
pub type Tell<'a> = &'a mut dyn FnMut(&Measured);

/// A figure of `D`: where it stands, and how it is measured.
type Step<D> = (fn(&mut Measured) -> &mut Option<f64>, fn(&D) -> Result<Option<f64>, DeviceError>);

fn in_turn<D>(
    args: &MeasureArgs,
    steps: &[Step<D>],
    device: &D,
    tell: Tell<'_>,
) -> Result<Measured, DeviceError> {
    let (began, most) = (Instant::now(), Duration::from_secs(args.seconds));
    let mut it = Measured::default();
    for (place, figure) in &steps[..if args.probe { 1 } else { steps.len() }] {
        if most <= began.elapsed() {
            break;
        }
        *place(&mut it) = figure(device)?;
        it.took_s = began.elapsed().as_secs_f64();
        tell(&it);
    }
    Ok(it)
}

/// Of a core.
const CORE: &[Step<()>] = &[
    (|it| &mut it.bf16_tflops, |()| Ok(product(Precision::Bf16))),
    (|it| &mut it.f32_tflops, |()| Ok(product(Precision::F32))),
    (|it| &mut it.memory_gbs, |()| Ok(Some(stream()))),
    (|it| &mut it.int8_tflops, |()| Ok(product(Precision::Int8))),
    (|it| &mut it.attention_tflops, |()| Ok(Some(attention()))),
    (|it| &mut it.decode_tokens_per_s, |()| Ok(decode())),
    (|it| &mut it.train_tokens_per_s, |()| Ok(training())),
];

/// How much a card is measured with at most: as much as keeps it busy.
#[derive(Clone, Debug)]
pub struct CardSizes {
    /// Rows, inputs and outputs of a product.
    pub product: usize,
    /// Floats that are copied.
    pub copied: usize,
    /// Tokens of attention.
    pub attention: usize,
    /// A model, and how many sequences of how many tokens a step takes.
    pub model: (ModelConfig, usize, usize),
}

impl Default for CardSizes {
    fn default() -> CardSizes {
        CardSizes { product: 4096, copied: 64 << 20, attention: 2048, model: Shape::M10.config() }
    }
}

/// The figures of a card that there is time for. Of the kernels only those are compiled that a figure needs.
///
/// # Errors
/// It has failed.
pub fn on_card(
    args: &MeasureArgs,
    card: &Arc<Card>,
    sizes: CardSizes,
    tell: Tell<'_>,
) -> Result<Measured, DeviceError> {
    let head_dim = sizes.model.0.head_dim;
    let (half, single) =
        (Cuda::as_needed(Arc::clone(card), head_dim), Cuda::as_needed(Arc::clone(card), head_dim));
    in_turn(args, CARD, &ToMeasure { half, single, sizes }, tell)
}

/// A card, with elements of bf16 and in single precision.
struct ToMeasure {
    half: Cuda<Bf16>,
    single: Cuda<f32>,
    sizes: CardSizes,
}

const CARD: &[Step<ToMeasure>] = &[
    (|it| &mut it.bf16_tflops, |of| bench::tflops(&of.half, of.sizes.product).map(Some)),
    (|it| &mut it.memory_gbs, |of| bench::memory_gbs(&of.half, of.sizes.copied).map(Some)),
    (|it| &mut it.host_link_gbs, |of| bench::upload_gbs(&of.half, of.sizes.copied).map(Some)),
    (|it| &mut it.f32_tflops, |of| bench::tflops(&of.single, of.sizes.product).map(Some)),
    (|it| &mut it.attention_tflops, |of| bench::attention_tflops(&of.half, of.sizes.attention).map(Some)),
    (
        |it| &mut it.decode_tokens_per_s,
        |of| {
            let figures = bench::infer_card(&of.half, of.sizes.model.0.clone(), (Precision::Bf16, 16, 16))?;
            Ok(figure(&figures, "decode, on the wall"))
        },
    ),
    (
        |it| &mut it.train_tokens_per_s,
        |of| {
            let figures = bench::train_card(&of.half, of.sizes.model.clone(), 3)?;
            Ok(figure(&figures, "training, on the wall"))
        },
    ),
];

/// TFLOP/s of a core, by what speeds are counted by.
pub(crate) fn core_tflops() -> Option<f64> {
    product(Precision::Bf16)
}

/// TFLOP/s of a product of 512 rows.
fn product(precision: Precision) -> Option<f64> {
    let shape = Linear::new(512, 512, 512);
    let Linear { rows, inputs, outputs, .. } = shape;
    let cpu = Cpu::with_precision(1, precision);
    let mut random = Random::new(1);
    let (x, w) = (random.normals(rows * inputs), random.normals(inputs * outputs));
    let mut y = vec![0.0; rows * outputs];
    let (mut values, mut scales) = (vec![0i8; w.len()], vec![0.0; outputs * inputs.div_ceil(GROUP)]);
    let quantised =
        values.chunks_mut(inputs).zip(scales.chunks_mut(inputs.div_ceil(GROUP))).zip(w.chunks(inputs));
    quantised.for_each(|((values, scales), row)| quantise(values, scales, row));
    let weight = match precision {
        Precision::Int8 => Weight::Int8(Int8 { values: &values, scales: &scales }),
        _ => Weight::F32(&w),
    };
    let seconds = median_seconds(5, || cpu.linear(shape, &mut y, &x, weight, false));
    Some(2e-12 * (rows * inputs * outputs) as f64 / seconds)
}

fn stream() -> f64 {
    /// More than the last cache of most processors that few cores share.
    const BYTES: usize = 256 << 20;
    let values = in_large_pages(BYTES / 4, 1.0);
    BYTES as f64 * 1e-9 / median_seconds(3, || _ = std::hint::black_box(peak::sum(&values)))
}

fn attention() -> f64 {
    let shape = Attention { queries: 512, start: 0, heads: 4, kv_heads: 4, head_dim: 64 };
    let cpu = Cpu::with_precision(1, Precision::Bf16);
    let mut random = Random::new(2);
    let q = random.normals(512 * shape.query_width());
    let (k, v) = (random.normals(512 * shape.key_width()), random.normals(512 * shape.key_width()));
    let (mut out, mut log_sum) = (q.clone(), vec![0.0; 512 * shape.heads]);
    let inputs = Qkv { q: &q, k: &k, v: &v };
    let seconds = median_seconds(3, || cpu.attention_forward(shape, &mut out, &mut log_sum, inputs));
    // Causal: half of the square.
    2e-12 * (512 * 512 * shape.heads * shape.head_dim) as f64 / seconds
}

fn training() -> Option<f64> {
    let args = TrainArgs {
        model: Shape::M10,
        device: Device::Cpu,
        precision: Precision::Bf16,
        threads: 1,
        steps: 1,
    };
    figure(&train_on(&args, 4), "training, per second of a core")
}

fn decode() -> Option<f64> {
    let server = Server { model: Shape::M10, precision: Precision::Bf16, threads: 1 };
    figure(
        &infer(&InferArgs { server, device: Device::Cpu, prompt: 16, generate: 16 }),
        "decode, per second of a core",
    )
}

fn figure(figures: &[crate::bench::Figure], name: &str) -> Option<f64> {
    figures.iter().find(|figure| figure.name == name).map(|figure| figure.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core(probe: bool, seconds: u64) -> MeasureArgs {
        MeasureArgs { core: None, device: Some(Device::Cpu), probe, lines: true, seconds }
    }

    #[test]
    fn a_probe_measures_what_speeds_are_counted_by_and_nothing_else() {
        let mut told = Vec::new();
        let it = measure(&core(true, 8), &mut |so_far| told.push(so_far.clone())).unwrap();
        assert!(it.bf16_tflops.is_some_and(|rate| 0.0 < rate && rate < 100.0), "{it:?}");
        assert_eq!(Measured { bf16_tflops: None, took_s: 0.0, ..it.clone() }, Measured::default());
        assert_eq!(told, [it]);
    }

    #[test]
    fn what_there_is_no_time_for_is_left_out() {
        let it = measure(&core(false, 0), &mut |_| ()).unwrap();
        assert_eq!(Measured { took_s: 0.0, ..it }, Measured::default());
    }
}
