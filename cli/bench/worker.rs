//! `aquifer bench kernels`, `train`, `infer` and `serve`: the bundled worker's speed, beside what the machine can do.

use anyhow::{Result, anyhow, ensure};
use aquifer_worker::bench::{
    self, CheckpointsArgs, ExchangeArgs, Figure, InferArgs, Roofline, ServeArgs, Sizes, TrainArgs,
};
use aquifer_worker::kernels::{Chosen, Cuda, Device, DeviceError, Element, Precision};
use serde::Serialize;

use crate::output::{Output, Side, Table, aside};

/// What the kernels are measured with.
#[derive(Clone, Debug, clap::Args)]
pub struct KernelsArgs {
    /// What the factors of matrix products are rounded to
    #[arg(long, value_name = "NAME", default_value = "f32")]
    pub precision: Precision,
    /// What computes: cpu, cuda or cuda:N, or auto for a card if there is one
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    pub device: Device,
    /// Tokens of the longest attention
    #[arg(long, value_name = "TOKENS", default_value_t = 32_768,
        value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub window: u32,
}

/// One figure beside its bound.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    bound: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<f64>,
}

/// Measures with `$core` on a core, with `$card` on a card that is called `$kernels` there.
macro_rules! measure {
    ($device:expr, $precision:expr, $head_dim:expr, $output:expr, $core:expr, |$kernels:ident| $card:expr) => {{
        let refused = |error| anyhow!("--device is {}; {error}", $device);
        match $device.open($precision, $head_dim).map_err(refused)? {
            Chosen::Processor(why) => {
                if let Some(why) = why {
                    aside(&format!("no card: {why}"));
                }
                print($output, $core)
            }
            Chosen::CudaF32($kernels) => print_card($output, &$kernels, $card),
            Chosen::CudaBf16($kernels) => print_card($output, &$kernels, $card),
        }
    }};
}

/// Measures every kernel on one core, or on a card.
pub fn kernels(args: &KernelsArgs, output: &Output) -> Result<()> {
    /// Length of the heads that are measured.
    const HEAD_DIM: usize = 64;
    let &KernelsArgs { precision, device, window } = args;
    let window = window as usize;
    let core = || bench::kernels(precision, window);
    measure!(device, precision, HEAD_DIM, output, core, |kernels| {
        bench::kernels_on(&kernels, &Sizes::large(window))
    })
}

/// Measures training steps.
pub fn train(args: &TrainArgs, output: &Output) -> Result<()> {
    check_threads(args.threads)?;
    ensure!(0 < args.steps, "--steps is 0; it is at least 1");
    ensure!(args.precision != Precision::Int8, "--precision is int8; it is f32 or bf16: int8 is for serving");
    let of = args.model.config();
    measure!(args.device, args.precision, of.0.head_dim, output, || bench::train(args), |kernels| {
        bench::train_card(&kernels, of, args.steps as u64)
    })
}

/// Measures a prompt and decoding after it.
pub fn infer(args: &InferArgs, output: &Output) -> Result<()> {
    check_threads(args.server.threads)?;
    let tokens = args.prompt + args.generate;
    ensure!(
        0 < args.prompt && 0 < args.generate && tokens <= bench::MAX_TOKENS,
        "--prompt and --generate are {} and {}; each is at least 1, together at most {}",
        args.prompt,
        args.generate,
        bench::MAX_TOKENS
    );
    let (config, precision) = (args.server.model.config().0, args.server.precision);
    measure!(args.device, precision, config.head_dim, output, || bench::infer(args), |kernels| {
        bench::infer_card(&kernels, config, (precision, args.prompt, args.generate))
    })
}

/// Measures many clients at a time.
pub fn serve(args: &ServeArgs, output: &Output) -> Result<()> {
    check_threads(args.server.threads)?;
    ensure!(0 < args.clients && args.clients <= 1024, "--clients is {}; it is 1 to 1,024", args.clients);
    ensure!(args.clients <= args.requests, "--requests is {}; it is at least --clients", args.requests);
    let tokens = args.prompt + args.generate;
    ensure!(
        2 <= args.prompt && 0 < args.generate && tokens <= bench::MAX_TOKENS,
        "--prompt and --generate are {} and {}; they are at least 2 and 1, together at most {}",
        args.prompt,
        args.generate,
        bench::MAX_TOKENS
    );
    print(output, || bench::serve(args))
}

/// Measures the sums of a training.
pub fn exchange(args: &ExchangeArgs, output: &Output) -> Result<()> {
    ensure!((2..=64).contains(&args.ranks), "--ranks is {}; it is 2 to 64", args.ranks);
    ensure!((1..=4096).contains(&args.size), "--size is {}; it is 1 to 4,096", args.size);
    ensure!((1..=1000).contains(&args.rounds), "--rounds is {}; it is 1 to 1,000", args.rounds);
    let figures = bench::exchange(args).map_err(anyhow::Error::msg)?;
    print(output, || figures)
}

/// Measures checkpoints.
pub fn checkpoints(args: &CheckpointsArgs, output: &Output) -> Result<()> {
    check_threads(args.threads)?;
    ensure!((1..=1 << 16).contains(&args.batch), "--batch is {}; it is 1 to 65,536", args.batch);
    ensure!((1..=1000).contains(&args.rounds), "--rounds is {}; it is 1 to 1,000", args.rounds);
    let figures = bench::checkpoints(args).map_err(anyhow::Error::msg)?;
    print(output, || figures)
}

fn check_threads(threads: usize) -> Result<()> {
    ensure!(0 < threads && threads <= 1024, "--threads is {threads}; it is 1 to 1,024");
    Ok(())
}

/// Prints what `measure` finds beside what the card can do.
fn print_card<E: Element>(
    output: &Output,
    kernels: &Cuda<E>,
    measure: Result<Vec<Figure>, DeviceError>,
) -> Result<()> {
    let figures = measure?;
    let (roofline, source) = Roofline::of_card(kernels)?;
    show(output, &roofline, &format!("of {}, {source}", kernels.card().name()), figures)
}

fn print(output: &Output, measure: impl FnOnce() -> Vec<Figure>) -> Result<()> {
    // As the worker does.
    aquifer_worker::kernels::pin_threads(aquifer_worker::contract::pins(|name| std::env::var(name).ok()));
    aside("what one core can do …");
    let roofline = Roofline::measure();
    aside("the worker …");
    show(output, &roofline, "of one core", measure())
}

/// Prints figures beside the most that whatever they are of can do.
fn show(output: &Output, roofline: &Roofline, of: &str, figures: Vec<Figure>) -> Result<()> {
    let most = [
        (format!("peak {of}, f32"), roofline.f32_gflops, "GFLOP/s"),
        (format!("peak {of}, bf16"), roofline.bf16_gflops, "GFLOP/s"),
        (format!("memory {of}"), roofline.read_gbs, "GB/s"),
    ];
    let most = most.map(|(name, value, unit)| Row { name, value, unit, bound: None, share: None });
    let rows = figures.into_iter().map(|figure| Row {
        bound: roofline.of(figure.bound),
        share: figure.share(roofline),
        name: figure.name,
        value: figure.value,
        unit: figure.unit,
    });
    let rows: Vec<Row> = most.into_iter().chain(rows).collect();
    if output.json {
        output.document(&rows);
        return Ok(());
    }
    let mut table = Table::new(&[
        ("WHAT", Side::Left),
        ("FIGURE", Side::Right),
        ("UNIT", Side::Left),
        ("OF THE MOST", Side::Right),
    ]);
    for row in rows {
        let share = row.share.map_or(String::new(), |share| format!("{:.0}%", 100.0 * share));
        table.row([row.name, super::digits(row.value), row.unit.into(), share]);
    }
    output.text(table.plain(output));
    Ok(())
}
