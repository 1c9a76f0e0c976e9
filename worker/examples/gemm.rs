//! Measures the matrix products of training, on one thread.
use aquifer_worker::kernels::{Cpu, Kernels, Linear};
use aquifer_worker::random::Random;
use std::time::Instant;

fn main() {
    println!(
        "{:>22}  {:>8}  {:>8}  {:>8}   GFLOP/s",
        "rows x inputs x outputs", "forward", "input", "weight"
    );
    for (rows, inputs, outputs) in [(128, 128, 384), (128, 256, 768), (512, 512, 512), (1024, 1024, 1024)] {
        let shape = Linear { rows, inputs, outputs };
        let mut random = Random::new(1);
        let (x, w) = (random.normals(rows * inputs), random.normals(inputs * outputs));
        let (mut y, mut dx, mut dw) = (random.normals(rows * outputs), x.clone(), w.clone());
        let cpu = Cpu::new(1);
        let rate = |run: &mut dyn FnMut()| {
            let best = (0..20).map(|_| {
                let start = Instant::now();
                run();
                start.elapsed().as_secs_f64()
            });
            2e-9 * (rows * inputs * outputs) as f64 / best.fold(f64::INFINITY, f64::min)
        };
        let forward = rate(&mut || cpu.linear_forward(shape, &mut y, &x, &w, false));
        let input = rate(&mut || cpu.linear_backward_input(shape, &mut dx, &y, &w, false));
        let weight = rate(&mut || cpu.linear_backward_weight(shape, &mut dw, &y, &x));
        println!(
            "{:>22}  {forward:8.1}  {input:8.1}  {weight:8.1}",
            format!("{rows} x {inputs} x {outputs}")
        );
    }
}
