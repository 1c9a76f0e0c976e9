//! `aquifer worker measure`: what one device does, in seconds, as one line of JSON for the agent.
//!
//! The device is a core of the processor, by the worker's own kernels on one thread. Rates are per second of that core's
//! time, so that other programs on the machine change them little.

use std::io::Write;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::WorkerError;
use crate::bench::{InferArgs, Server, Shape, TrainArgs, infer, median_seconds, train_on};
use crate::kernels::{Attention, Cpu, GROUP, Int8, Kernels, Linear, Precision, Qkv, Weight, peak, quantise};
use crate::mapping::in_large_pages;
use crate::random::Random;

/// Options of the measurement.
#[derive(clap::Args, Clone, Debug)]
pub struct MeasureArgs {
    /// Core to measure [default: any that this process may use]
    #[arg(long, value_name = "CORE")]
    pub core: Option<usize>,

    /// Only a short matrix product, to compare with an earlier measurement
    #[arg(long)]
    pub probe: bool,

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
    /// Causal attention of 512 tokens, in TFLOP/s.
    pub attention_tflops: Option<f64>,
    /// Training of a model of 10.8 million parameters, in tokens a second.
    pub train_tokens_per_s: Option<f64>,
    /// Decoding with it, in tokens a second.
    pub decode_tokens_per_s: Option<f64>,
    /// Between host and device; a core is the host.
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
    let line = serde_json::to_string(&measure(&args)).map_err(|error| io("figures")(error.into()))?;
    writeln!(std::io::stdout(), "{line}").map_err(io("standard output"))
}

/// The figures that there is time for, the most important first.
pub fn measure(args: &MeasureArgs) -> Measured {
    let (began, most) = (Instant::now(), Duration::from_secs(args.seconds));
    let mut it = Measured::default();
    let figures: [fn(&mut Measured); 7] = [
        |it| it.bf16_tflops = product(Precision::Bf16),
        |it| it.f32_tflops = product(Precision::F32),
        |it| it.memory_gbs = Some(stream()),
        |it| it.int8_tflops = product(Precision::Int8),
        |it| it.attention_tflops = Some(attention()),
        |it| it.decode_tokens_per_s = decode(),
        |it| it.train_tokens_per_s = training(),
    ];
    for figure in &figures[..if args.probe { 1 } else { figures.len() }] {
        if most <= began.elapsed() {
            break;
        }
        figure(&mut it);
    }
    it.took_s = began.elapsed().as_secs_f64();
    it
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
    let args = TrainArgs { model: Shape::M10, precision: Precision::Bf16, threads: 1, steps: 1 };
    figure(&train_on(&args, 4), "training, per second of a core")
}

fn decode() -> Option<f64> {
    let server = Server { model: Shape::M10, precision: Precision::Bf16, threads: 1 };
    figure(&infer(&InferArgs { server, prompt: 16, generate: 16 }), "decode, per second of a core")
}

fn figure(figures: &[crate::bench::Figure], name: &str) -> Option<f64> {
    figures.iter().find(|figure| figure.name == name).map(|figure| figure.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_measures_what_speeds_are_counted_by_and_nothing_else() {
        let it = measure(&MeasureArgs { core: None, probe: true, seconds: 8 });
        assert!(it.bf16_tflops.is_some_and(|rate| 0.0 < rate && rate < 100.0), "{it:?}");
        assert_eq!(Measured { bf16_tflops: None, took_s: 0.0, ..it }, Measured::default());
    }

    #[test]
    fn what_there_is_no_time_for_is_left_out() {
        let it = measure(&MeasureArgs { core: None, probe: false, seconds: 0 });
        assert_eq!(Measured { took_s: 0.0, ..it }, Measured::default());
    }
}
