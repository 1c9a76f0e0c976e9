use super::*;

use crate::kernels::{BLOCK, Bf16, Blocks, Kept, MAX_DECODE_ROWS, Reference};
use crate::random::Random;

/// Within `1e-4` of the largest element: sums of a few hundred products in another order.
fn assert_close(name: &str, left: &[f32], right: &[f32]) {
    let scale = right.iter().fold(1e-2f32, |max, x| max.max(x.abs()));
    assert_eq!(left.len(), right.len());
    for (i, (left, right)) in left.iter().zip(right).enumerate() {
        assert!((left - right).abs() <= 1e-4 * scale, "{name}[{i}]: {left} and {right}, scale {scale}");
    }
}

#[test]
fn linear_layers_equal_the_reference_at_every_edge_of_the_blocks() {
    let mut random = Random::new(1);
    for (rows, inputs, outputs) in
        [(1, 7, 5), (16, 64, 33), (17, 1, 1), (48, 257, 32), (49, 300, 31), (130, 96, 520), (200, 520, 264)]
    {
        let shape = Linear::new(rows, inputs, outputs);
        let (x, w, dy) =
            (random.normals(rows * inputs), random.normals(inputs * outputs), random.normals(rows * outputs));
        let name = format!("{shape:?}");
        for accumulate in [false, true] {
            let (mut y, mut dx) = (dy.clone(), x.clone());
            let (mut y_expected, mut dx_expected) = (dy.clone(), x.clone());
            Cpu::new(2).linear_forward(shape, &mut y, &x, &w, accumulate);
            Reference.linear_forward(shape, &mut y_expected, &x, &w, accumulate);
            assert_close(&name, &y, &y_expected);
            Cpu::new(2).linear_backward_input(shape, &mut dx, &dy, &w, accumulate);
            Reference.linear_backward_input(shape, &mut dx_expected, &dy, &w, accumulate);
            assert_close(&name, &dx, &dx_expected);
        }
        let (mut dw, mut dw_expected) = (w.clone(), w.clone());
        Cpu::new(2).linear_backward_weight(shape, &mut dw, &dy, &x);
        Reference.linear_backward_weight(shape, &mut dw_expected, &dy, &x);
        assert_close(&name, &dw, &dw_expected);
    }
}

/// Everything that a training step computes, for a number of threads.
fn all(threads: usize, precision: Precision) -> Vec<Vec<f32>> {
    let mut random = Random::new(3);
    let kernels = Cpu::with_precision(threads, precision);
    let shape = Linear::new(400, 300, 310);
    let (x, w, dy) = (random.normals(120_000), random.normals(93_000), random.normals(124_000));
    let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
    kernels.linear_forward(shape, &mut y, &x, &w, false);
    kernels.linear_backward_input(shape, &mut dx, &dy, &w, true);
    kernels.linear_backward_weight(shape, &mut dw, &dy, &x);
    let targets: Vec<u32> = (0..400).map(|i| i * 7 % 310).collect();
    let (mut dhidden, mut dhead) = (x.clone(), w.clone());
    let head = Head { x: &x, w: &w, targets: &targets };
    let loss = kernels.linear_cross_entropy(shape, &mut dhidden, &mut dhead, head);
    let (mut norm, mut rstd) = (x.clone(), vec![0.0; 400]);
    kernels.rms_norm_forward(&mut norm, &mut rstd, &x, &w[..300], 1e-5);
    let (mut dnorm, mut dscale) = (x.clone(), w[..300].to_vec());
    kernels.rms_norm_backward(&mut dnorm, &mut dscale, &x, &norm, &w[..300], &rstd);
    kernels.rope(&mut dx, 300, 0, &Rope::new(400, 20, 100.0), Turn::Backward);
    let (mut s, mut dgate, mut dup) = (x.clone(), x.clone(), x.clone());
    kernels.swiglu_forward(&mut s, &x, &norm);
    kernels.swiglu_backward(&mut dgate, &mut dup, &dx, &x, &norm);
    let update = AdamW {
        learning_rate: 0.1,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        update: 3,
        scale: 0.7,
    };
    let (mut p, mut first, mut second) =
        (x.clone(), norm.clone(), x.iter().map(|x| x * x).collect::<Vec<_>>());
    kernels.adamw(&mut p, &mut first, &mut second, &dx, &update);
    let shape = Attention { queries: 600, start: 0, heads: 4, kv_heads: 2, head_dim: 20 };
    let (q, k, v) = (&x[..48_000], &x[48_000..72_000], &x[72_000..96_000]);
    let (mut out, mut log_sum) = (q.to_vec(), vec![0.0; 2400]);
    let (mut dq, mut dk, mut dv) = (q.to_vec(), k.to_vec(), v.to_vec());
    kernels.attention_forward(shape, &mut out, &mut log_sum, Qkv { q, k, v });
    let gradient = QkvGradient { q: &mut dq, k: &mut dk, v: &mut dv };
    kernels.attention_backward(shape, gradient, &dy[..48_000], &out, &log_sum, Qkv { q, k, v });
    let first_half = [y, dx, dw, dhidden, dhead, vec![loss], norm, rstd, dnorm, dscale, s, dgate, dup];
    first_half.into_iter().chain([p, first, second, out, log_sum, dq, dk, dv]).collect()
}

#[test]
fn all_operations_have_the_same_bits_for_any_number_of_threads() {
    for precision in [Precision::F32, Precision::Bf16] {
        let one = all(1, precision);
        for threads in [2, 3, 8] {
            for (i, (one, many)) in one.iter().zip(all(threads, precision)).enumerate() {
                assert!(*one == many, "output {i} on {threads} threads in {precision:?}");
            }
        }
    }
}

/// Caches of sequences with so many keys, in shuffled blocks, with a query for each.
fn cached_attention(kernels: &dyn Kernels, shape: Attention, keys: &[usize], narrow: bool) -> Vec<f32> {
    let mut random = Random::new(9);
    let blocks: usize = keys.iter().map(|keys| keys.div_ceil(BLOCK)).sum();
    let (k, v) = (
        random.normals(blocks * BLOCK * shape.key_width()),
        random.normals(blocks * BLOCK * shape.key_width()),
    );
    let q = random.normals(keys.len() * shape.query_width());
    let mut free = (0..blocks as u64).map(|block| crate::random::permute(block, blocks as u64, 3) as u32);
    let tables: Vec<Vec<u32>> =
        keys.iter().map(|keys| free.by_ref().take(keys.div_ceil(BLOCK)).collect()).collect();
    let seen: Vec<_> = tables.iter().zip(keys).map(|(table, &keys)| Seen { table, keys }).collect();
    let mut out = vec![7.0; q.len()];
    let [narrow_k, narrow_v]: [Vec<u16>; 2] = [&k, &v].map(|x| x.iter().map(|x| Kept::keep(*x)).collect());
    let cached = match narrow {
        true => Cached::Bf16(Blocks { k: &narrow_k, v: &narrow_v }),
        false => Cached::F32(Blocks { k: &k, v: &v }),
    };
    kernels.attention_cached(shape, &mut out, &q, &seen, cached);
    out
}

#[test]
fn attention_over_blocks_equals_the_reference_and_has_the_same_bits_for_any_number_of_threads() {
    for (heads, kv_heads, head_dim) in [(1, 1, 2), (6, 2, 40), (4, 4, 16), (5, 1, 66), (12, 4, 64)] {
        let shape = Attention { queries: 1, start: 0, heads, kv_heads, head_dim };
        // Many queries are a task each, key heads of one are shared out, and of a long one they are done one after the other.
        for keys in [&[1, 15, 16, 17, 500, 1033][..], &[1033], &[9000]] {
            for narrow in [false, true] {
                let of = |kernels: &dyn Kernels| cached_attention(kernels, shape, keys, narrow);
                let (one, many) = (of(&Cpu::new(1)), of(&Cpu::new(3)));
                assert_close(&format!("{shape:?}, {keys:?}"), &one, &of(&Reference));
                assert!(one == many, "{shape:?}, {keys:?}");
            }
        }
    }
}

/// What a prompt cut anywhere rests on.
#[test]
fn a_query_has_the_same_bits_however_the_queries_are_cut() {
    for precision in [Precision::F32, Precision::Bf16] {
        let (kernels, mut random) = (Cpu::with_precision(2, precision), Random::new(4));
        let whole = Attention { queries: 1100, start: 0, heads: 2, kv_heads: 1, head_dim: 32 };
        let (q, k, v) = (random.normals(1100 * 64), random.normals(1100 * 32), random.normals(1100 * 32));
        let run = |from: usize, to: usize| {
            let shape = Attention { queries: to - from, start: from, ..whole };
            let (mut out, mut log_sum) = (vec![0.0; (to - from) * 64], vec![0.0; (to - from) * 2]);
            let inputs = Qkv { q: &q[from * 64..to * 64], k: &k[..to * 32], v: &v[..to * 32] };
            kernels.attention_forward(shape, &mut out, &mut log_sum, inputs);
            out
        };
        let expected = run(0, 1100);
        for cuts in [&[0, 1, 2, 17, 500, 512, 513, 1099, 1100][..], &[0, 1024, 1100], &[0, 700, 1100]] {
            let parts: Vec<f32> = cuts.windows(2).flat_map(|cut| run(cut[0], cut[1])).collect();
            assert!(expected == parts, "{cuts:?} in {precision:?}");
        }
    }
}

#[test]
fn a_row_of_a_linear_layer_has_the_same_bits_among_any_number_of_rows() {
    let mut random = Random::new(5);
    let (x, w) = (random.normals(300 * 520), random.normals(70 * 520));
    let mut compact = vec![Bf16::default(); w.len()];
    crate::kernels::round_all(&mut compact, &w);
    for (weight, precision) in [(Weight::F32(&w), Precision::F32), (Weight::Bf16(&compact), Precision::Bf16)]
    {
        let kernels = Cpu::with_precision(2, precision);
        for path in [Path::Dots, Path::Panels] {
            let run = |rows: Range<usize>| {
                let mut y = vec![0.0; rows.len() * 70];
                let shape = Linear { path, ..Linear::new(rows.len(), 520, 70) };
                kernels.linear(shape, &mut y, &x[rows.start * 520..rows.end * 520], weight, false);
                y
            };
            let expected = run(0..300);
            for cuts in [&[0, 1, 3, 20, 36, 100, 300][..], &[0, 17, 34, 299, 300]] {
                let parts: Vec<f32> = cuts.windows(2).flat_map(|cut| run(cut[0]..cut[1])).collect();
                assert!(expected == parts, "{path:?} {cuts:?} in {precision:?}");
            }
        }
    }
}

/// A rounding of both factors to bf16 moves a product by at most `2^-7` of it: sums of a few hundred random ones stay
/// within `2^-6` of the largest element. What goes through a softmax moves by a share that is as large as the scores
/// move at most, here logits of deviation 17: within `2^-4`.
#[test]
fn bf16_stays_near_single_precision_in_all_operations() {
    for (i, (exact, near)) in all(1, Precision::F32).iter().zip(all(1, Precision::Bf16)).enumerate() {
        let scale = exact.iter().fold(1e-2f32, |max, x| max.max(x.abs()));
        let error = exact.iter().zip(&near).fold(0.0f32, |max, (x, y)| max.max((x - y).abs()));
        assert!(error <= scale / if i < 3 { 64.0 } else { 16.0 }, "output {i}: {error} of {scale}");
    }
    assert!(all(1, Precision::F32)[0] != all(1, Precision::Bf16)[0]);
}

#[test]
fn the_fused_output_layer_equals_the_reference_over_several_chunks() {
    let mut random = Random::new(8);
    let (rows, inputs, outputs) = (2 * HEAD_ROWS + 9, 24, HEAD_LOGITS / HEAD_ROWS + 1);
    let shape = Linear::new(rows, inputs, outputs);
    let (x, w) = (random.normals(rows * inputs), random.normals(outputs * inputs));
    let targets: Vec<u32> = (0..rows).map(|i| (i * 31 % outputs) as u32).collect();
    let run = |kernels: &dyn Kernels| {
        let (mut dx, mut dw) = (x.clone(), vec![0.5; w.len()]);
        let head = Head { x: &x, w: &w, targets: &targets };
        let loss = kernels.linear_cross_entropy(shape, &mut dx, &mut dw, head);
        [vec![loss], dx, dw]
    };
    for (i, (left, right)) in run(&Cpu::new(2)).iter().zip(&run(&Reference)).enumerate() {
        assert_close(&format!("output {i}"), left, right);
    }
}

#[test]
fn rotation_and_update_equal_the_reference() {
    let mut random = Random::new(9);
    let (x, g, table) = (random.normals(3000), random.normals(3000), Rope::new(80, 6, 100.0));
    let update = AdamW {
        learning_rate: 0.1,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        update: 2,
        scale: 0.7,
    };
    let run = |kernels: &dyn Kernels| {
        let (mut forward, mut backward) = (x.clone(), x.clone());
        kernels.rope(&mut forward, 60, 30, &table, Turn::Forward);
        kernels.rope(&mut backward, 60, 30, &table, Turn::Backward);
        let (mut p, mut first, mut second) =
            (x.clone(), g.clone(), x.iter().map(|x| x * x).collect::<Vec<_>>());
        kernels.adamw(&mut p, &mut first, &mut second, &g, &update);
        [forward, backward, p, first, second]
    };
    for (i, (left, right)) in run(&Cpu::new(2)).iter().zip(&run(&Reference)).enumerate() {
        assert_close(&format!("output {i}"), left, right);
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_a_batch() {
    let mut random = Random::new(4);
    let (x, w) = (random.normals(MAX_DECODE_ROWS * 200), random.normals(200 * 70));
    let run = |x: &[f32]| {
        let shape = Linear::new(x.len() / 200, 200, 70);
        let mut y = vec![0.0; shape.rows * 70];
        Cpu::new(1).linear_forward(shape, &mut y, x, &w, false);
        y
    };
    let all = run(&x);
    for (alone, together) in x.chunks_exact(200).map(run).zip(all.chunks_exact(70)) {
        assert_eq!(alone, together);
    }
}

#[test]
fn norms_and_activations_equal_the_reference() {
    let mut random = Random::new(5);
    let (x, w, dy) = (random.normals(5 * 75), random.normals(75), random.normals(5 * 75));
    let run = |kernels: &dyn Kernels| {
        let (mut y, mut rstd) = (vec![0.0; 375], vec![0.0; 5]);
        kernels.rms_norm_forward(&mut y, &mut rstd, &x, &w, 1e-5);
        let (mut dx, mut dw) = (x.clone(), w.clone());
        kernels.rms_norm_backward(&mut dx, &mut dw, &dy, &x, &w, &rstd);
        let (mut s, mut dgate, mut dup) = (vec![0.0; 375], vec![0.0; 375], vec![0.0; 375]);
        kernels.swiglu_forward(&mut s, &x, &dy);
        kernels.swiglu_backward(&mut dgate, &mut dup, &dx, &x, &dy);
        let mut dlogits = vec![0.0; 375];
        let loss = kernels.cross_entropy(&mut dlogits, &x, &[0, 74, 3, 3, 40]);
        let squares = kernels.sum_of_squares(&x) as f32;
        [y, rstd, dx, dw, s, dgate, dup, dlogits, vec![loss], vec![squares]]
    };
    for (i, (left, right)) in run(&Cpu::new(1)).iter().zip(&run(&Reference)).enumerate() {
        assert_close(&format!("output {i}"), left, right);
    }
}

#[test]
fn attention_equals_the_reference_in_both_directions() {
    let mut random = Random::new(6);
    for (queries, start) in
        [(1, 0), (1, 90), (7, 0), (56, 0), (150, 0), (20, 70), (600, 0), (30, 520), (120, 1000)]
    {
        let shape = Attention { queries, start, heads: 4, kv_heads: 2, head_dim: 16 };
        let (queries_len, keys_len) = (queries * shape.query_width(), shape.keys() * shape.key_width());
        let (q, k, v) = (random.normals(queries_len), random.normals(keys_len), random.normals(keys_len));
        let dout = random.normals(queries_len);
        let run = |kernels: &dyn Kernels| {
            let inputs = Qkv { q: &q, k: &k, v: &v };
            let (mut out, mut log_sum) = (vec![0.0; queries_len], vec![0.0; queries * 4]);
            kernels.attention_forward(shape, &mut out, &mut log_sum, inputs);
            let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
            let gradient = QkvGradient { q: &mut dq, k: &mut dk, v: &mut dv };
            kernels.attention_backward(shape, gradient, &dout, &out, &log_sum, inputs);
            [out, log_sum, dq, dk, dv]
        };
        for (i, (left, right)) in run(&Cpu::new(1)).iter().zip(&run(&Reference)).enumerate() {
            assert_close(&format!("{shape:?} output {i}"), left, right);
        }
    }
}
