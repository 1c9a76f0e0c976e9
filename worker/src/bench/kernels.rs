//! Every kernel in shapes of the models that are measured.

use super::{Bound, Figure, repeated};
use crate::kernels::{AdamW, Attention, Cpu, Head, Kernels, Linear, Precision, Qkv, QkvGradient, Rope, Turn};
use crate::random::Random;

/// Figures of all kernels on one thread, for matrix products in `precision`. `window`: tokens of the longest attention.
pub fn kernels(precision: Precision, window: usize) -> Vec<Figure> {
    let cpu = Cpu::with_precision(1, precision);
    let bound = if precision == Precision::Bf16 { Bound::Bf16 } else { Bound::F32 };
    let mut figures = Vec::new();
    for [rows, inputs, outputs] in [
        [512, 512, 512],
        [1024, 1024, 1024],
        [2048, 2048, 2048],
        [4096, 384, 1024],
        [4096, 512, 1408],
        [512, 768, 2048],
    ] {
        figures.extend(products(&cpu, Linear::new(rows, inputs, outputs), bound));
    }
    figures.extend(attention(
        &cpu,
        Attention { queries: 256, start: 0, heads: 6, kv_heads: 6, head_dim: 64 },
        bound,
    ));
    figures.extend(attention(
        &cpu,
        Attention { queries: 512, start: 0, heads: 8, kv_heads: 4, head_dim: 64 },
        bound,
    ));
    let long = Attention { queries: window, start: 0, heads: 1, kv_heads: 1, head_dim: 64 };
    figures.extend(attention(&cpu, long, bound));
    let head = Linear::new(1024, 768, 32_000);
    figures.push(output_layer(&cpu, head, bound));
    figures.extend(streams(&cpu));
    figures
}

fn products(cpu: &Cpu, shape: Linear, bound: Bound) -> Vec<Figure> {
    let Linear { rows, inputs, outputs, .. } = shape;
    let mut random = Random::new(1);
    let (x, w, dy) =
        (random.normals(rows * inputs), random.normals(inputs * outputs), random.normals(rows * outputs));
    let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
    let figure = |what: &str, work: &mut dyn FnMut()| {
        let rate = 2e-9 * (rows * inputs * outputs) as f64 / repeated(5, work).cpu;
        Figure::new(format!("{what} {rows} x {inputs} x {outputs}"), rate, "GFLOP/s", bound)
    };
    vec![
        figure("linear", &mut || cpu.linear_forward(shape, &mut y, &x, &w, false)),
        figure("linear, to its input", &mut || cpu.linear_backward_input(shape, &mut dx, &dy, &w, false)),
        figure("linear, to its weight", &mut || cpu.linear_backward_weight(shape, &mut dw, &dy, &x)),
    ]
}

/// Counts the half of the square that causal attention needs.
fn attention(cpu: &Cpu, shape: Attention, bound: Bound) -> [Figure; 2] {
    let Attention { queries: t, heads, head_dim, .. } = shape;
    let mut random = Random::new(2);
    let (q, dout) = (random.normals(t * shape.query_width()), random.normals(t * shape.query_width()));
    let (k, v) = (random.normals(t * shape.key_width()), random.normals(t * shape.key_width()));
    let inputs = Qkv { q: &q, k: &k, v: &v };
    let (mut out, mut log_sum) = (q.clone(), vec![0.0; t * heads]);
    let operations = 2e-9 * (t * t * heads * head_dim) as f64;
    let name = |pass| format!("attention, {pass}, {t} tokens, {heads} heads");
    let forward = repeated(1, || cpu.attention_forward(shape, &mut out, &mut log_sum, inputs));
    let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
    let backward = repeated(1, || {
        let gradient = QkvGradient { q: &mut dq, k: &mut dk, v: &mut dv };
        cpu.attention_backward(shape, gradient, &dout, &out, &log_sum, inputs);
    });
    [
        Figure::new(name("forward"), operations / forward.cpu, "GFLOP/s", bound),
        // Five products where the forward pass has two.
        Figure::new(name("backward"), 2.5 * operations / backward.cpu, "GFLOP/s", bound),
    ]
}

fn output_layer(cpu: &Cpu, shape: Linear, bound: Bound) -> Figure {
    let mut random = Random::new(3);
    let Linear { rows, inputs, outputs, .. } = shape;
    let (x, w) = (random.normals(rows * inputs), random.normals(inputs * outputs));
    let (mut dx, mut dw) = (x.clone(), w.clone());
    let targets: Vec<u32> = (0..rows as u32).collect();
    let spent = repeated(1, || {
        let head = Head { x: &x, w: &w, targets: &targets };
        std::hint::black_box(cpu.linear_cross_entropy(shape, &mut dx, &mut dw, head));
    });
    let rate = 6e-9 * (rows * inputs * outputs) as f64 / spent.cpu;
    Figure::new(format!("output layer and loss {rows} x {inputs} x {outputs}"), rate, "GFLOP/s", bound)
}

/// The kernels that memory bounds: bytes that they read and write, over tensors that no cache holds.
fn streams(cpu: &Cpu) -> Vec<Figure> {
    const WIDTH: usize = 1024;
    const ROWS: usize = 16 << 10;
    let n = WIDTH * ROWS;
    let mut random = Random::new(4);
    let part = random.normals(n / 64);
    let x: Vec<f32> = part.iter().copied().cycle().take(n).collect();
    let (mut y, mut z, mut rstd) = (x.clone(), x.clone(), vec![1.0; ROWS]);
    let w = vec![1.0; WIDTH];
    let rope = Rope::new(ROWS, 64, 10_000.0);
    let figure = |what: &str, streams: usize, work: &mut dyn FnMut()| {
        let rate = 4e-9 * (streams * n) as f64 / repeated(3, work).cpu;
        Figure::new(what, rate, "GB/s", Bound::Memory)
    };
    let mut figures = vec![
        figure("RMS norm, forward", 2, &mut || cpu.rms_norm_forward(&mut y, &mut rstd, &x, &w, 1e-5)),
        figure("RMS norm, backward", 4, &mut || {
            let mut dw = vec![0.0; WIDTH];
            cpu.rms_norm_backward(&mut z, &mut dw, &y, &x, &w, &rstd);
        }),
        figure("rotation", 2, &mut || cpu.rope(&mut y, WIDTH, 0, &rope, Turn::Forward)),
        figure("SwiGLU, forward", 3, &mut || cpu.swiglu_forward(&mut z, &x, &y)),
    ];
    let mut dgate = x.clone();
    figures.push(figure("SwiGLU, backward", 5, &mut || cpu.swiglu_backward(&mut dgate, &mut z, &y, &x, &y)));
    let (mut second, update) = (
        vec![0.1; n],
        AdamW {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            update: 9,
            scale: 1.0,
        },
    );
    figures.push(figure("AdamW", 7, &mut || cpu.adamw(&mut y, &mut z, &mut second, &x, &update)));
    let one = Linear::new(1, WIDTH, ROWS);
    let mut out = vec![0.0; ROWS];
    figures.push(figure("linear, one row", 1, &mut || cpu.linear_forward(one, &mut out, &w, &x, false)));
    figures
}
