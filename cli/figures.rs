//! What devices do, for people: what was measured, else what a datasheet says, else that nobody knows.

use aquifer_agent::device::measured::Figures;

use crate::units;

/// What a kind of devices does, part by part, beginning with who says how fast it is.
///
/// * `memory_gbs`: how fast it reads its memory, in GB/s, whoever says so; 0: nobody knows.
pub fn parts(source: &str, measured: Option<&Figures>, memory_gbs: u32) -> Vec<String> {
    let mut parts = vec![source.to_string()];
    let read = measured.and_then(|it| it.memory_gbs);
    if read.is_none() && memory_gbs != 0 {
        parts.push(format!("{} GB/s of memory", units::group(memory_gbs.into())));
    }
    let Some(it) = measured else { return parts };
    let figures = [
        (it.f32_tflops.map(|rate| rate * 1000.0), "GFLOP/s in f32"),
        (it.int8_tflops.map(|rate| rate * 1000.0), "GFLOP/s with int8 weights"),
        (it.attention_tflops.map(|rate| rate * 1000.0), "GFLOP/s of attention"),
        (read, "GB/s of memory"),
        (it.host_link_gbs, "GB/s from the host"),
        (it.train_tokens_per_s, "tokens/s of training"),
        (it.decode_tokens_per_s, "tokens/s of decoding"),
    ];
    let told = |(rate, unit): &(Option<f64>, &str)| {
        Some(format!("{} {unit}", units::group(rate.as_ref()?.round() as u64)))
    };
    parts.extend(figures.iter().filter_map(told));
    parts
}
