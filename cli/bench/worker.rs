//! `aquifer bench kernels`, `train`, `infer` and `serve`: the bundled worker's speed, beside what the machine can do.

use anyhow::{Result, ensure};
use aquifer_worker::bench::{
    self, CheckpointsArgs, ExchangeArgs, Figure, InferArgs, Roofline, ServeArgs, TrainArgs,
};
use aquifer_worker::kernels::Precision;
use serde::Serialize;

use crate::output::{Output, Side, Table, aside};

/// What the kernels are measured with.
#[derive(Clone, Debug, clap::Args)]
pub struct KernelsArgs {
    /// What the factors of matrix products are rounded to
    #[arg(long, value_name = "NAME", default_value = "f32")]
    pub precision: Precision,
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

/// Measures every kernel on one core.
pub fn kernels(args: &KernelsArgs, output: &Output) -> Result<()> {
    print(output, || bench::kernels(args.precision, args.window as usize))
}

/// Measures training steps.
pub fn train(args: &TrainArgs, output: &Output) -> Result<()> {
    check_threads(args.threads)?;
    ensure!(0 < args.steps, "--steps is 0; it is at least 1");
    ensure!(args.precision != Precision::Int8, "--precision is int8; it is f32 or bf16: int8 is for serving");
    print(output, || bench::train(args))
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
    print(output, || bench::infer(args))
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

fn print(output: &Output, measure: impl FnOnce() -> Vec<Figure>) -> Result<()> {
    // As the worker does.
    aquifer_worker::kernels::pin_threads(aquifer_worker::contract::pins(|name| std::env::var(name).ok()));
    aside("what one core can do …");
    let roofline = Roofline::measure();
    aside("the worker …");
    let most = [
        ("peak of one core, f32", roofline.f32_gflops, "GFLOP/s"),
        ("peak of one core, bf16", roofline.bf16_gflops, "GFLOP/s"),
        ("memory read by one core", roofline.read_gbs, "GB/s"),
    ];
    let most =
        most.map(|(name, value, unit)| Row { name: name.into(), value, unit, bound: None, share: None });
    let rows = measure().into_iter().map(|figure| Row {
        bound: roofline.of(figure.bound),
        share: figure.share(&roofline),
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
