//! Operations that are limited by memory.

use crate::assert_near;
use crate::card::{Arg, Card, ELEMS, Elem, NULL, Program, Size, long, size};
use aquifer_worker::kernels::{AdamW, Rope, Turn, reference};
use aquifer_worker::random::Random;

/// Matrices around the width of a vector, aligned and not.
const SHAPES: [(usize, usize); 6] = [(1, 1), (3, 7), (5, 8), (2, 64), (7, 24), (33, 100)];

fn blocks(rows: usize, width: usize) -> usize {
    (rows * width.div_ceil(8)).div_ceil(256)
}

#[test]
fn swiglu_and_its_gradient() {
    let Some(card) = Card::get() else { return };
    let mut random = Random::new(1);
    for elem in ELEMS {
        let program = card.program("elementwise.cu", elem, 8);
        for (rows, width) in SHAPES {
            // Gate and up side by side, as one product leaves them.
            let stride = 2 * width;
            let both = elem.round_all(&random.normals(rows * stride));
            let dy = elem.round_all(&random.normals(rows * width));
            let part = |from: usize| -> Vec<f32> {
                both.chunks(stride).flat_map(|row| row[from..from + width].to_vec()).collect()
            };
            let (gate, up) = (part(0), part(width));
            let (memory, dy_memory) = (card.elements(elem, &both), card.elements(elem, &dy));
            let y = card.no_elements(elem, rows * width);
            let second = memory.from(width * elem.bytes());
            let shape = size(blocks(rows, width), 256);
            program.launch(
                "swiglu_forward",
                shape,
                &[(&y).into(), (&memory).into(), second, long(rows), width.into(), stride.into()],
            );
            let mut expected = vec![0.0; rows * width];
            reference::swiglu_forward(&mut expected, &gate, &up);
            assert_near("swiglu", &y.as_elements(elem), &expected, elem.tolerance());

            let gradient = &[
                (&memory).into(),
                second,
                (&dy_memory).into(),
                (&memory).into(),
                second,
                long(rows),
                width.into(),
                stride.into(),
            ];
            program.launch("swiglu_backward", shape, gradient);
            let (mut dgate, mut dup) = (expected.clone(), expected.clone());
            reference::swiglu_backward(&mut dgate, &mut dup, &dy, &gate, &up);
            let expected: Vec<f32> =
                dgate.chunks(width).zip(dup.chunks(width)).flat_map(|(a, b)| [a, b].concat()).collect();
            assert_near("gradient of swiglu", &memory.as_elements(elem), &expected, elem.tolerance());
        }
    }
}

#[test]
fn adding_and_rounding() {
    let Some(card) = Card::get() else { return };
    let mut random = Random::new(2);
    for elem in ELEMS {
        let program = card.program("elementwise.cu", elem, 8);
        for n in [1, 8, 9, 4095, 4096] {
            let (x, delta) = (random.normals(n), elem.round_all(&random.normals(n)));
            let (x_memory, delta_memory) = (card.floats(&x), card.elements(elem, &delta));
            let grid = size(n.div_ceil(2048), 256);
            let y = card.no_elements(elem, n);
            program.launch("to_elem", grid, &[(&y).into(), (&x_memory).into(), long(n)]);
            assert_eq!(y.as_elements(elem), elem.round_all(&x), "to_elem of {n}");
            program.launch("add", grid, &[(&x_memory).into(), (&delta_memory).into(), long(n)]);
            let sum: Vec<f32> = x.iter().zip(&delta).map(|(a, b)| a + b).collect();
            assert_eq!(x_memory.as_floats(), sum, "add of {n}");
            let back = card.no_floats(n);
            program.launch("to_float", grid, &[(&back).into(), (&delta_memory).into(), long(n)]);
            assert_eq!(back.as_floats(), delta, "to_float of {n}");
        }
        // NaN and infinity stay what they are.
        let x = card.floats(&[f32::NAN, f32::INFINITY, f32::MAX, -0.0]);
        let y = card.no_elements(elem, 4);
        program.launch("to_elem", size(1, 256), &[(&y).into(), (&x).into(), long(4)]);
        let y = y.as_elements(elem);
        assert!(y[0].is_nan() && y[1..] == elem.round_all(&[f32::INFINITY, f32::MAX, -0.0]), "{y:?}");
    }
}

#[test]
fn biases() {
    let Some(card) = Card::get() else { return };
    let mut random = Random::new(3);
    for elem in ELEMS {
        let (program, norms) = (card.program("elementwise.cu", elem, 8), card.program("norm.cu", elem, 8));
        for (rows, width) in SHAPES {
            let stride = width + 3;
            let (y, bias) = (elem.round_all(&random.normals(rows * stride)), random.normals(width));
            let add = |y: &[f32]| -> Vec<f32> {
                let grown = y.iter().enumerate().map(|(i, y)| y + bias.get(i % stride).unwrap_or(&0.0));
                grown.collect()
            };
            let bias_memory = card.floats(&bias);
            let tail = [(&bias_memory).into(), long(rows), width.into(), stride.into()];
            let elements = card.elements(elem, &y);
            let shape = size(blocks(rows, width), 256);
            program.launch("add_bias", shape, &[&[(&elements).into()], &tail[..]].concat());
            assert_eq!(elements.as_elements(elem), elem.round_all(&add(&y)));
            let floats = card.floats(&y);
            program.launch("add_bias_float", shape, &[&[(&floats).into()], &tail[..]].concat());
            assert_eq!(floats.as_floats(), add(&y));

            // The gradient of a bias, in chunks of 5 rows.
            let (before, dy) = (random.normals(width), card.elements(elem, &y));
            let (db, chunks) = (card.floats(&before), rows.div_ceil(5));
            let partial = card.no_floats(chunks * width);
            let args = [(&partial).into(), (&dy).into(), rows.into(), width.into(), stride.into(), 5.into()];
            let grid = [width.div_ceil(256), chunks, 1];
            norms.launch("column_sums", Size { grid, block: 256, shared: 0 }, &args);
            reduce(&norms, &db, &partial, chunks, width);
            let expected: Vec<f32> =
                (0..width).map(|i| before[i] + y.chunks(stride).map(|row| row[i]).sum::<f32>()).collect();
            assert_near("gradient of a bias", &db.as_floats(), &expected, 2e-6);
        }
    }
}

/// `dw[width] += ` the rows of `partial[count, width]`.
pub fn reduce(program: &Program, dw: impl Into<Arg>, partial: impl Into<Arg>, count: usize, width: usize) {
    let args = [dw.into(), partial.into(), count.into(), width.into()];
    program.launch("reduce_rows", size(width.div_ceil(32), 1024), &args);
}

#[test]
fn rotations() {
    let Some(card) = Card::get() else { return };
    let mut random = Random::new(4);
    for elem in ELEMS {
        for (head_dim, heads, length, sequences) in [(8, 3, 5, 2), (24, 1, 4, 1), (128, 2, 33, 1)] {
            let program = card.program("elementwise.cu", elem, head_dim);
            let (rows, width, start) = (length * sequences, heads * head_dim, 7);
            let stride = width + 8;
            let angles = Rope::new(start + length + 4, head_dim, 10_000.0);
            let (cos, sin) = (card.floats(&angles.cos), card.floats(&angles.sin));
            let x = elem.round_all(&random.normals(rows * stride));
            let positions: Vec<i32> = (0..rows).map(|i| (i * 3 % (start + length)) as i32).collect();
            let positions_memory = card.ints(&positions);
            for turn in [Turn::Forward, Turn::Backward] {
                for listed in [false, true] {
                    let memory = card.elements(elem, &x);
                    let direction: f32 = if turn == Turn::Forward { 1.0 } else { -1.0 };
                    let at: Arg = if listed { (&positions_memory).into() } else { NULL };
                    let args = [
                        (&memory).into(),
                        long(rows),
                        heads.into(),
                        stride.into(),
                        (&cos).into(),
                        (&sin).into(),
                        at,
                        start.into(),
                        length.into(),
                        direction.into(),
                    ];
                    program.launch("rope", size(blocks(rows * heads, head_dim / 2), 256), &args);
                    let mut expected = x.clone();
                    for (row, x) in expected.chunks_mut(stride).enumerate() {
                        let position = if listed { positions[row] as usize } else { start + row % length };
                        reference::rope(&mut x[..width], width, position, &angles, turn);
                    }
                    assert_near("rope", &memory.as_elements(elem), &expected, elem.tolerance());
                }
            }
        }
    }
}

#[test]
fn rows_of_tokens() {
    let Some(card) = Card::get() else { return };
    let mut random = Random::new(5);
    for elem in ELEMS {
        let program = card.program("elementwise.cu", elem, 8);
        for width in [7, 24, 300] {
            let tokens = [3, 0, 3, 9, 3, 0u32];
            let w = elem.round_all(&random.normals(10 * width));
            let (w_memory, index) = (card.elements(elem, &w), card.ints(&tokens.map(|token| token as i32)));
            let y = card.no_floats(6 * width);
            let args = [(&y).into(), (&index).into(), (&w_memory).into(), 6.into(), width.into()];
            program.launch("embedding_forward", size(6, 256), &args);
            let mut expected = vec![0.0; 6 * width];
            reference::embedding_forward(&mut expected, &tokens, &w, width);
            assert_eq!(y.as_floats(), expected);
            let wide = card.floats(&w);
            let args = [(&y).into(), (&wide).into(), (&index).into(), 6.into(), width.into()];
            program.launch("gather_rows", size(6, 256), &args);
            assert_eq!(y.as_floats(), expected);

            // The rows of each token, in their order.
            let (dy, before) = (random.normals(6 * width), random.normals(10 * width));
            let (dw, dy_memory) = (card.floats(&before), card.floats(&dy));
            let lists =
                [&[0, 3, 9][..], &[0, 2, 5, 6], &[1, 5, 0, 2, 4, 3]].map(|list: &[i32]| card.ints(list));
            let lists: Vec<Arg> = lists.iter().map(Arg::from).collect();
            let args = [&[(&dw).into(), (&dy_memory).into()], &lists[..], &[width.into()]].concat();
            let grid = [3, width.div_ceil(256), 1];
            program.launch("embedding_backward", Size { grid, block: 256, shared: 0 }, &args);
            let mut expected = before;
            reference::embedding_backward(&mut expected, &tokens, &dy, width);
            assert_eq!(dw.as_floats(), expected, "the order is that of the specification");
        }
    }
}

/// Whatever computes them, members of a training have the same state: the bits are those of the specification.
#[test]
fn updates_have_the_bits_of_the_specification() {
    let Some(card) = Card::get() else { return };
    let mut random = Random::new(6);
    for elem in ELEMS {
        let program = card.program("update.cu", elem, 8);
        for (n, copied) in [(5, true), (2100, true), (64, false)] {
            let update = AdamW {
                learning_rate: 1e-2,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.1,
                update: 3,
                scale: 0.3,
            };
            let (mut p, mut m, g) = (random.normals(n), random.normals(n), random.normals(n));
            let mut v: Vec<f32> = random.normals(n).iter().map(|x| x * x).collect();
            let [p_memory, m_memory, v_memory, g_memory] = [&p, &m, &v, &g].map(|x| card.floats(x));
            let copy = card.no_elements(elem, n);
            let correct = |beta: f32| 1.0 / (1.0 - f64::from(beta).powi(3)) as f32;
            let args = [
                (&p_memory).into(),
                (&m_memory).into(),
                (&v_memory).into(),
                (&g_memory).into(),
                if copied { (&copy).into() } else { NULL },
                long(n),
                update.learning_rate.into(),
                update.beta1.into(),
                update.beta2.into(),
                update.eps.into(),
                update.weight_decay.into(),
                correct(update.beta1).into(),
                correct(update.beta2).into(),
                update.scale.into(),
            ];
            program.launch("adamw", size(n.div_ceil(2048), 256), &args);
            reference::adamw(&mut p, &mut m, &mut v, &g, &update);
            for (name, memory, expected) in [("p", &p_memory, p), ("m", &m_memory, m), ("v", &v_memory, v)] {
                assert!(memory.as_floats() == expected, "{name} of {n}");
            }
            if copied {
                assert_eq!(copy.as_elements(elem), elem.round_all(&p_memory.as_floats()));
            }
        }
    }
}

#[test]
fn sums_have_the_bits_of_the_specification() {
    let Some(card) = Card::get() else { return };
    let program = card.program("update.cu", Elem::Float, 8);
    for n in [1, 255, 257, reference::PART, reference::PART + 1, 300 * reference::PART + 77] {
        let (x, more) = (Random::new(7).normals(n), Random::new(8).normals(n));
        let count = n.div_ceil(reference::PART);
        let (memory, parts, out) = (card.floats(&x), card.no_doubles(count), card.no_doubles(1));
        program.launch("sum_of_squares", size(count, 256), &[(&parts).into(), (&memory).into(), long(n)]);
        program.launch("sum_doubles", size(1, 256), &[(&out).into(), (&parts).into(), long(count)]);
        assert_eq!(out.as_doubles()[0].to_bits(), reference::sum_of_squares(&x).to_bits(), "{n}");
        let more_memory = card.floats(&more);
        let args = [(&memory).into(), (&more_memory).into(), long(n)];
        program.launch("add_floats", size(n.div_ceil(2048), 256), &args);
        let sum: Vec<f32> = x.iter().zip(&more).map(|(a, b)| a + b).collect();
        assert!(memory.as_floats() == sum, "{n}");
    }
    // One that is not finite shows in the sum.
    for odd in [f32::NAN, f32::INFINITY, f32::MAX] {
        let memory = card.floats(&[1.0, odd]);
        let parts = card.no_doubles(1);
        program.launch("sum_of_squares", size(1, 256), &[(&parts).into(), (&memory).into(), long(2)]);
        assert_eq!(parts.as_doubles()[0].is_finite(), odd.is_finite(), "{odd}");
    }
}
