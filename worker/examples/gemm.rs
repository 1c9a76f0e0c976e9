use aquifer_worker::kernels::{Cpu, Kernels, Linear, Precision};
use aquifer_worker::random::Random;
fn cpu_s() -> f64 {
    let s = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    s.split(' ').next().unwrap().parse::<f64>().unwrap() * 1e-9
}
fn main() {
    for precision in [Precision::F32, Precision::Bf16] {
        for (rows, inputs, outputs) in [
            (256, 384, 1024),
            (512, 512, 512),
            (4096, 384, 1024),
            (4096, 1024, 384),
            (1024, 1024, 1024),
            (4096, 512, 1408),
            (512, 768, 2048),
        ] {
            let shape = Linear { rows, inputs, outputs };
            let mut random = Random::new(1);
            let (x, w) = (random.normals(rows * inputs), random.normals(inputs * outputs));
            let (mut y, mut dx, mut dw) = (random.normals(rows * outputs), x.clone(), w.clone());
            let cpu = Cpu::with_precision(1, precision);
            let rate = |run: &mut dyn FnMut()| {
                let mut best: Vec<f64> = (0..15)
                    .map(|_| {
                        let start = cpu_s();
                        run();
                        cpu_s() - start
                    })
                    .collect();
                best.sort_by(f64::total_cmp);
                2e-9 * (rows * inputs * outputs) as f64 / best[3]
            };
            let forward = rate(&mut || cpu.linear_forward(shape, &mut y, &x, &w, false));
            let input = rate(&mut || cpu.linear_backward_input(shape, &mut dx, &y, &w, false));
            let weight = rate(&mut || cpu.linear_backward_weight(shape, &mut dw, &y, &x));
            println!(
                "{precision:?} {:>22}  {forward:8.1}  {input:8.1}  {weight:8.1}",
                format!("{rows} x {inputs} x {outputs}")
            );
        }
    }
}
