//! The same measurements on a card. Time is on the wall, until everything that was queued is done.

use super::models::{Learned, infer_with, usual_update};
use super::{Bound, Figure, Roofline};
use crate::kernels::{Attention, Backend, Cuda, DeviceError, Element, Linear, Path, Precision};
use crate::model::training::WorkspaceOf;
use crate::model::{Model, ModelConfig, Trained};
use std::sync::Arc;
use std::time::Instant;

/// What makers say of cards: the first words of their names, dense products of bf16 and products of floats in TFLOP/s, and
/// memory in GB/s. Of those that match, the longest counts. Source: the cards' datasheets, as `docs/datasheets.md` has them.
const DATASHEETS: [(&str, f64, f64, f64); 14] = [
    ("NVIDIA B200", 2250.0, 75.0, 8000.0),
    ("NVIDIA H200", 989.0, 67.0, 4800.0),
    ("NVIDIA H200 NVL", 835.0, 60.0, 4800.0),
    ("NVIDIA GH200", 989.0, 67.0, 4000.0),
    ("NVIDIA H100", 989.0, 67.0, 3350.0),
    ("NVIDIA H100 PCIe", 756.0, 51.0, 2000.0),
    ("NVIDIA H100 NVL", 835.0, 60.0, 3900.0),
    ("NVIDIA A100", 312.0, 19.5, 1555.0),
    ("NVIDIA A100-SXM4-80GB", 312.0, 19.5, 2039.0),
    ("NVIDIA A100 80GB PCIe", 312.0, 19.5, 1935.0),
    ("NVIDIA A30", 165.0, 10.3, 933.0),
    ("NVIDIA A10", 125.0, 31.2, 600.0),
    ("NVIDIA L40S", 362.0, 91.6, 864.0),
    ("NVIDIA L4", 121.0, 30.3, 300.0),
];

/// What the kernels are measured with.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Rows, inputs and outputs of products.
    pub products: Vec<[usize; 3]>,
    /// Sequences, tokens and heads of attention.
    pub attention: Vec<[usize; 3]>,
    /// Rows, inputs and outputs of an output layer.
    pub head: [usize; 3],
    /// Rows and columns of what is read and written once.
    pub stream: [usize; 2],
}

impl Sizes {
    /// Of models of one to seven billion parameters; `window` tokens in the longest attention.
    pub fn large(window: usize) -> Sizes {
        Sizes {
            products: vec![
                [1024, 1024, 1024],
                [4096, 4096, 4096],
                [8192, 2048, 8192],
                [8192, 8192, 2048],
                [8192, 4096, 4096],
                [8192, 4096, 11_008],
            ],
            attention: vec![[8, 2048, 32], [1, window, 8]],
            head: [8192, 2048, 32_000],
            stream: [16 << 10, 4096],
        }
    }
}

impl Roofline {
    /// What a card can do: as its maker says, where it is known here, else as measured. With what the figures are.
    ///
    /// # Errors
    /// The card has failed.
    pub fn of_card<E: Element>(kernels: &Cuda<E>) -> Result<(Roofline, &'static str), DeviceError> {
        if let Some((_, bf16, f32, memory)) = listed(kernels.card().name()) {
            let (bf16_gflops, f32_gflops) = (1e3 * bf16, 1e3 * f32);
            return Ok((Roofline { f32_gflops, bf16_gflops, read_gbs: *memory }, "datasheet"));
        }
        let product = products(kernels, [4096, 4096, 4096], Bound::None)?.remove(0).value;
        let read_gbs = copy(kernels, 64 << 20)?.value;
        // Of the other precision nothing is known.
        Ok((Roofline { f32_gflops: product, bf16_gflops: product, read_gbs }, "measured"))
    }
}

/// What its maker says of a card with this name. Words count, not letters: an L40 is no L4.
fn listed(name: &str) -> Option<&'static (&'static str, f64, f64, f64)> {
    let begins = |row: &&(&str, f64, f64, f64)| {
        name.strip_prefix(row.0).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '-']))
    };
    DATASHEETS.iter().filter(begins).max_by_key(|row| row.0.len())
}

/// How work is timed, in seconds.
type Timing<E> = fn(&Cuda<E>, &mut dyn FnMut()) -> Result<f64, DeviceError>;

/// The time of `work`, in seconds, done once.
fn once<E: Element>(kernels: &Cuda<E>, work: &mut dyn FnMut()) -> Result<f64, DeviceError> {
    work();
    kernels.finish()?;
    let start = Instant::now();
    work();
    kernels.finish()?;
    Ok(start.elapsed().as_secs_f64())
}

/// The median time of `work`, in seconds, of several times in a row.
fn timed<E: Element>(kernels: &Cuda<E>, work: &mut dyn FnMut()) -> Result<f64, DeviceError> {
    /// Repetitions that are queued together, so that waiting for the last one costs little.
    const ROW: usize = 8;
    /// Seconds that a figure may take.
    const BUDGET: f64 = 0.3;
    let row = if once(kernels, work)? * ROW as f64 <= BUDGET { ROW } else { 1 };
    let mut times: Vec<f64> = Vec::new();
    while times.len() < 3 || (times.len() < 50 && times.iter().sum::<f64>() * (row as f64) < BUDGET) {
        let start = Instant::now();
        (0..row).for_each(|_| work());
        kernels.finish()?;
        times.push(start.elapsed().as_secs_f64() / row as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// A rate by the first size, of `least`, twice that and so on up to `most`, that keeps a card busy for long enough: a slow one is
/// not measured with what only a fast one needs.
///
/// * `seconds_of`: times a size. `amount`: what is done with it.
fn rate_as_needed<E: Element>(
    (least, most): (usize, usize),
    seconds_of: impl Fn(usize, Timing<E>) -> Result<f64, DeviceError>,
    amount: impl Fn(usize) -> f64,
) -> Result<f64, DeviceError> {
    /// Seconds.
    const ENOUGH: f64 = 0.005;
    let mut size = least.min(most);
    while 2 * size <= most && seconds_of(size, once)? < ENOUGH {
        size *= 2;
    }
    Ok(amount(size) / seconds_of(size, timed)?)
}

fn floats<E: Element>(kernels: &Cuda<E>, len: usize) -> <Cuda<E> as Backend>::FloatBuffer {
    let mut buffer = Default::default();
    kernels.resize(&mut buffer, len);
    kernels.zero(&mut buffer);
    buffer
}

/// Elements that are not all the same: products of zeros take less power, and so less time.
fn elements<E: Element>(kernels: &Cuda<E>, len: usize) -> <Cuda<E> as Backend>::ElementBuffer {
    let mut buffer = Default::default();
    kernels.resize_elements(&mut buffer, len);
    kernels.scatter(&mut buffer);
    buffer
}

fn bound<E: Element>() -> Bound {
    if E::IS_BF16 { Bound::Bf16 } else { Bound::F32 }
}

/// Figures of all kernels; heads have the length that the kernels were made for.
///
/// # Errors
/// The card has failed.
pub fn kernels_on<E: Element>(kernels: &Cuda<E>, sizes: &Sizes) -> Result<Vec<Figure>, DeviceError> {
    let mut figures = Vec::new();
    for shape in &sizes.products {
        figures.extend(products(kernels, *shape, bound::<E>())?);
    }
    for shape in &sizes.attention {
        figures.extend(attention(kernels, *shape)?);
    }
    let [rows, inputs, outputs] = sizes.head;
    let (x, w) = (elements(kernels, rows * inputs), elements(kernels, inputs * outputs));
    let (mut dx, mut dw) = (elements(kernels, rows * inputs), floats(kernels, inputs * outputs));
    let targets: Vec<u32> = (0..rows).map(|row| (row % outputs) as u32).collect();
    let seconds = timed(kernels, &mut || {
        let shape = Linear::new(rows, inputs, outputs);
        kernels.linear_cross_entropy(shape, &mut dx, &mut dw, (&x, &w), &targets);
    })?;
    let rate = 6e-9 * (rows * inputs * outputs) as f64 / seconds;
    let name = format!("output layer and loss {rows} x {inputs} x {outputs}");
    figures.push(Figure::new(name, rate, "GFLOP/s", bound::<E>()));
    drop((x, w, dx, dw));
    figures.extend(streams(kernels, sizes.stream)?);
    Ok(figures)
}

fn products<E: Element>(
    kernels: &Cuda<E>,
    [rows, inputs, outputs]: [usize; 3],
    bound: Bound,
) -> Result<Vec<Figure>, DeviceError> {
    let shape = Linear { path: Path::Panels, ..Linear::new(rows, inputs, outputs) };
    let (x, w) = (elements(kernels, rows * inputs), elements(kernels, inputs * outputs));
    let (mut y, dy) = (elements(kernels, rows * outputs), elements(kernels, rows * outputs));
    let (mut dx, mut dw) = (elements(kernels, rows * inputs), floats(kernels, inputs * outputs));
    let figure = |what: &str, work: &mut dyn FnMut()| {
        let rate = 2e-9 * (rows * inputs * outputs) as f64 / timed(kernels, work)?;
        Ok(Figure::new(format!("{what} {rows} x {inputs} x {outputs}"), rate, "GFLOP/s", bound))
    };
    Ok(vec![
        figure("linear", &mut || kernels.project(shape, &mut y, &x, (&*w).into(), None))?,
        figure("linear, to its input", &mut || {
            kernels.linear_backward_input(shape, &mut dx, &dy, &w, false);
        })?,
        figure("linear, to its weight", &mut || kernels.linear_backward_weight(shape, &mut dw, &dy, &x))?,
    ])
}

/// Counts the half of the square that causal attention needs.
fn attention<E: Element>(
    kernels: &Cuda<E>,
    [sequences, tokens, heads]: [usize; 3],
) -> Result<[Figure; 2], DeviceError> {
    let shape = Attention { queries: tokens, start: 0, heads, kv_heads: heads, head_dim: kernels.head_dim() };
    let len = sequences * tokens * shape.query_width();
    let [q, k, v, dout] = [(); 4].map(|()| elements(kernels, len));
    let [mut out, mut dq, mut dk, mut dv] = [(); 4].map(|()| elements(kernels, len));
    let mut log_sum = floats(kernels, sequences * tokens * heads);
    let forward = timed(kernels, &mut || {
        kernels.attention_forward(shape, &mut out, &mut log_sum, [&q, &k, &v]);
    })?;
    let backward = timed(kernels, &mut || {
        let gradient = [&mut *dq, &mut *dk, &mut *dv];
        kernels.attention_backward(shape, gradient, &dout, &out, &log_sum, [&q, &k, &v]);
    })?;
    let operations = 2e-9 * (sequences * tokens * tokens * shape.query_width()) as f64;
    let name = |pass| format!("attention, {pass}, {sequences} x {tokens} tokens, {heads} heads");
    Ok([
        Figure::new(name("forward"), operations / forward, "GFLOP/s", bound::<E>()),
        // Five products where the forward pass has two, of which one is computed twice more.
        Figure::new(name("backward"), 2.5 * operations / backward, "GFLOP/s", bound::<E>()),
    ])
}

/// Bytes that are read and written by a copy.
fn copy<E: Element>(kernels: &Cuda<E>, len: usize) -> Result<Figure, DeviceError> {
    let (from, mut to) = (floats(kernels, len), floats(kernels, len));
    let rate = 8e-9 * len as f64 / timed(kernels, &mut || kernels.copy(&mut to, &from))?;
    Ok(Figure::new("copy", rate, "GB/s", Bound::Memory))
}

/// The kernels that memory bounds.
fn streams<E: Element>(kernels: &Cuda<E>, [rows, width]: [usize; 2]) -> Result<Vec<Figure>, DeviceError> {
    let n = rows * width;
    let (x, w) = (floats(kernels, n), floats(kernels, width));
    let (mut stream, mut rstd, mut dw) = (floats(kernels, n), floats(kernels, rows), floats(kernels, width));
    let [mut y, mut z, gate] = [(); 3].map(|()| elements(kernels, n));
    let element = size_of::<E>() as f64;
    let figure = |what: &str, bytes: f64, work: &mut dyn FnMut()| {
        let rate = 1e-9 * bytes * n as f64 / timed(kernels, work)?;
        Ok(Figure::new(what, rate, "GB/s", Bound::Memory))
    };
    let mut figures = vec![
        copy(kernels, n)?,
        figure("RMS norm, forward", 4.0 + element, &mut || {
            kernels.rms_norm_forward(&mut y, &mut rstd, &x, &w, 1e-5);
        })?,
        figure("RMS norm, backward", 12.0 + element, &mut || {
            kernels.rms_norm_backward(&mut stream, &mut dw, &y, &x, &w, &rstd);
        })?,
        figure("SwiGLU, forward", 3.0 * element, &mut || kernels.swiglu_forward(&mut z, &y, &gate))?,
    ];
    // A row of decoding reads all weights.
    let (row, mut out) = (elements(kernels, width), elements(kernels, rows));
    figures.push(figure("linear, one row", element, &mut || {
        let shape = Linear { path: Path::Dots, ..Linear::new(1, width, rows) };
        kernels.project(shape, &mut out, &row, (&*gate).into(), None);
    })?);
    Ok(figures)
}

/// Training steps whose state stays on the card.
///
/// # Errors
/// The card has no room for the model, or has failed.
pub fn train_card<E: Element>(
    kernels: &Cuda<E>,
    (config, sequences, context): (ModelConfig, usize, usize),
    steps: u64,
) -> Result<Vec<Figure>, DeviceError> {
    let model = Model::new(config, 1234);
    let (learned, len) = (Learned::new(&model.config, sequences, context), model.layout.len);
    let (matrices, attention) = learned.per_token(&model);
    let mut training = kernels.train(Arc::new(Trained::new(model)))?;
    let (sample, mut workspace) = (learned.sample(), WorkspaceOf::<Cuda<E>>::default());
    let (mut losses, mut gradients, mut updates) = (Vec::new(), Vec::new(), Vec::new());
    for update in 1..=steps + 1 {
        let start = Instant::now();
        let mut sum = floats(kernels, len + 1);
        let model = training.model(kernels)?;
        losses.push(model.loss_and_gradient(kernels, &mut workspace, &mut sum[0..len], sample));
        kernels.finish()?;
        gradients.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        training.take(kernels, Arc::new(kernels.keep(sum)))?;
        training.update(kernels, usual_update(update))?;
        kernels.finish()?;
        updates.push(start.elapsed().as_secs_f64());
    }
    let median = |times: &mut Vec<f64>| {
        times.remove(0);
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (gradient, update) = (median(&mut gradients), median(&mut updates));
    let (tokens, step) = ((sequences * context) as f64, gradient + update);
    // The model needs two products forward and four backward; computing scores again in both kernels of the backward pass and
    // the gradient of the weights of attention in the second one makes them nine.
    let (useful, all) = (6.0 * (matrices + attention), 6.0 * matrices + 9.0 * attention);
    let rate = |operations: f64, seconds: f64| 1e-9 * operations * tokens / seconds;
    // The gradient for its length; parameters, moments and gradient in, all but the gradient out, and the copies.
    let bytes = (32 + size_of::<E>()) as f64 * len as f64;
    Ok(vec![
        Figure::new("training, on the wall", tokens / step, "tokens/s", Bound::None),
        Figure::new("arithmetic of the model (MFU)", rate(useful, step), "GFLOP/s", bound::<E>()),
        Figure::new("arithmetic of the card (HFU)", rate(all, step), "GFLOP/s", bound::<E>()),
        Figure::new("the same without the update", rate(all, gradient), "GFLOP/s", bound::<E>()),
        Figure::new("update", 1e-9 * bytes / update, "GB/s", Bound::Memory),
        Figure::new("loss of the first step", f64::from(losses[0]), "nats", Bound::None),
        Figure::new("loss of the last step", f64::from(losses[losses.len() - 1]), "nats", Bound::None),
    ])
}

/// So many tokens of a prompt, then so many one after the other, of one sequence.
///
/// # Errors
/// The card has no room for the model, or has failed.
pub fn infer_card<E: Element>(
    kernels: &Cuda<E>,
    config: ModelConfig,
    (precision, prompt, generate): (Precision, usize, usize),
) -> Result<Vec<Figure>, DeviceError> {
    let mut model = Model::new(config, 1234);
    model.compact(precision);
    let figures = infer_with(kernels, model, (precision, prompt, generate), |spent| spent.wall)?;
    Ok(figures.into_iter().filter(|figure| !figure.name.ends_with("of a core")).collect())
}

/// What `aquifer worker measure` says of a card: TFLOP/s of a product of so many rows, inputs and outputs at most; of attention
/// of so many tokens at most; GB/s of a copy of so many floats at most.
///
/// # Errors
/// The card has failed.
pub(crate) fn tflops<E: Element>(kernels: &Cuda<E>, most: usize) -> Result<f64, DeviceError> {
    let seconds = |size: usize, time: Timing<E>| {
        let shape = Linear { path: Path::Panels, ..Linear::new(size, size, size) };
        let [x, w] = [(); 2].map(|()| elements(kernels, size * size));
        let mut y = elements(kernels, size * size);
        time(kernels, &mut || kernels.project(shape, &mut y, &x, (&*w).into(), None))
    };
    rate_as_needed((256, most), seconds, |size| 2e-12 * (size as f64).powi(3))
}

/// See [`tflops`].
///
/// # Errors
/// The card has failed.
pub(crate) fn attention_tflops<E: Element>(kernels: &Cuda<E>, most: usize) -> Result<f64, DeviceError> {
    const SEQUENCES: usize = 4;
    let shape =
        |queries| Attention { queries, start: 0, heads: 16, kv_heads: 16, head_dim: kernels.head_dim() };
    let width = shape(0).query_width();
    let seconds = |tokens: usize, time: Timing<E>| {
        let len = SEQUENCES * tokens * width;
        let [q, k, v] = [(); 3].map(|()| elements(kernels, len));
        let (mut out, mut log_sum) = (elements(kernels, len), floats(kernels, SEQUENCES * tokens * 16));
        time(kernels, &mut || {
            kernels.attention_forward(shape(tokens), &mut out, &mut log_sum, [&q, &k, &v]);
        })
    };
    // Causal: half of the square.
    rate_as_needed((64, most), seconds, |tokens| 2e-12 * (SEQUENCES * tokens * tokens * width) as f64)
}

/// See [`tflops`].
///
/// # Errors
/// The card has failed.
pub(crate) fn memory_gbs<E: Element>(kernels: &Cuda<E>, most: usize) -> Result<f64, DeviceError> {
    let seconds = |len: usize, time: Timing<E>| {
        let (from, mut to) = (floats(kernels, len), floats(kernels, len));
        time(kernels, &mut || kernels.copy(&mut to, &from))
    };
    rate_as_needed((LEAST_COPIED, most), seconds, |len| 8e-9 * len as f64)
}

/// Floats of the shortest copy that is measured: a fraction of it stays in the caches of a fast card.
const LEAST_COPIED: usize = 1 << 20;

/// See [`tflops`]: what comes from the host.
///
/// # Errors
/// The card has failed.
pub(crate) fn upload_gbs<E: Element>(kernels: &Cuda<E>, most: usize) -> Result<f64, DeviceError> {
    let seconds = |len: usize, time: Timing<E>| {
        let (values, mut to) = (vec![1.0; len], floats(kernels, len));
        time(kernels, &mut || kernels.card().upload(&mut to, &values))
    };
    rate_as_needed((LEAST_COPIED, most), seconds, |len| 4e-9 * len as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_known_by_words_and_not_by_letters() {
        let of = |name: &str| listed(name).map(|row| row.0);
        assert_eq!(of("NVIDIA A100-SXM4-80GB"), Some("NVIDIA A100-SXM4-80GB"));
        assert_eq!(of("NVIDIA A100-PCIE-40GB"), Some("NVIDIA A100"));
        assert_eq!(of("NVIDIA H100 80GB HBM3"), Some("NVIDIA H100"));
        for other in ["NVIDIA L40", "NVIDIA A10G", "NVIDIA A1000 Laptop GPU", "Tesla T4"] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
