//! Operations over rows: norms and the loss.

use crate::assert_near;
use crate::card::{Arg, Card, ELEMS, NULL, Size, long, size};
use crate::elementwise::reduce;
use aquifer_worker::kernels::reference;
use aquifer_worker::random::Random;

const EPS: f32 = 1e-5;

/// Threads for rows of so many elements.
fn block(width: usize) -> usize {
    (32 * width.div_ceil(256)).min(256)
}

#[test]
fn norms_of_the_stream() {
    let Some(card) = Card::get() else { return };
    let mut random = Random::new(11);
    for elem in ELEMS {
        let program = card.program("norm.cu", elem, 8);
        for (rows, width) in [(1, 1), (5, 7), (9, 24), (3, 256), (34, 300), (2, 2560)] {
            let (x, w) = (random.normals(rows * width), random.normals(width));
            let delta = elem.round_all(&random.normals(rows * width));
            let (w_memory, delta_memory) = (card.floats(&w), card.elements(elem, &delta));
            let sum: Vec<f32> = x.iter().zip(&delta).map(|(x, delta)| x + delta).collect();
            let (mut y, mut rstd) = (vec![0.0; rows * width], vec![0.0; rows]);
            // Alone; with something added into the same place, and into another.
            for (added, in_place) in [(false, false), (true, true), (true, false)] {
                let memory = card.floats(&x);
                let (other, y_memory) = (card.no_floats(rows * width), card.no_elements(elem, rows * width));
                let rstd_memory = card.no_floats(rows);
                let args = [
                    (&y_memory).into(),
                    (&rstd_memory).into(),
                    if in_place { (&memory).into() } else { (&other).into() },
                    (&memory).into(),
                    if added { (&delta_memory).into() } else { NULL },
                    (&w_memory).into(),
                    rows.into(),
                    width.into(),
                    EPS.into(),
                ];
                program.launch("rms_norm_forward", size(rows, block(width)), &args);
                let stream = if added { &sum } else { &x };
                reference::rms_norm_forward(&mut y, &mut rstd, stream, &w, EPS);
                assert_near("norm", &y_memory.as_elements(elem), &y, elem.tolerance());
                assert_near("rstd", &rstd_memory.as_floats(), &rstd, 2e-6);
                assert_eq!(memory.as_floats(), if in_place { &sum[..] } else { &x });
                let other = other.as_floats();
                assert!(if added && !in_place { other == sum } else { other[0].is_nan() });
            }

            let dy = elem.round_all(&random.normals(rows * width));
            let (mut dx, mut dw) = (random.normals(rows * width), random.normals(width));
            let [dx_memory, dw_memory, x_memory, rstd_memory] =
                [&dx, &dw, &sum, &rstd].map(|values| card.floats(values));
            let (dy_memory, copy) = (card.elements(elem, &dy), card.no_elements(elem, rows * width));
            let chunk = 4;
            let chunks = rows.div_ceil(chunk);
            let partial = card.no_floats(chunks * width);
            let args = [
                (&dx_memory).into(),
                if rows == 1 { NULL } else { (&copy).into() },
                (&partial).into(),
                (&dy_memory).into(),
                (&x_memory).into(),
                (&w_memory).into(),
                (&rstd_memory).into(),
                rows.into(),
                width.into(),
                chunk.into(),
            ];
            let launch = Size { shared: 4 * width, ..size(chunks, block(width)) };
            program.launch("rms_norm_backward", launch, &args);
            reduce(&program, &dw_memory, &partial, chunks, width);
            reference::rms_norm_backward(&mut dx, &mut dw, &dy, &sum, &w, &rstd);
            assert_near("dx", &dx_memory.as_floats(), &dx, 2e-6);
            assert_near("dw", &dw_memory.as_floats(), &dw, 2e-6);
            if rows != 1 {
                assert_eq!(copy.as_elements(elem), elem.round_all(&dx_memory.as_floats()));
            }
        }
    }
}

#[test]
fn norms_of_heads() {
    let Some(card) = Card::get() else { return };
    let mut random = Random::new(12);
    for elem in ELEMS {
        let program = card.program("norm.cu", elem, 8);
        for (rows, width, in_place) in [(6, 8, false), (70, 128, true)] {
            let (x, w) = (elem.round_all(&random.normals(rows * width)), random.normals(width));
            let (x_memory, w_memory) = (card.elements(elem, &x), card.floats(&w));
            let (y_memory, rstd_memory) = (card.no_elements(elem, rows * width), card.no_floats(rows));
            let args = [
                (&y_memory).into(),
                (&rstd_memory).into(),
                (&x_memory).into(),
                (&w_memory).into(),
                long(rows),
                width.into(),
                EPS.into(),
            ];
            program.launch("head_norm_forward", size(rows, block(width)), &args);
            let (mut y, mut rstd) = (vec![0.0; rows * width], vec![0.0; rows]);
            reference::rms_norm_forward(&mut y, &mut rstd, &x, &w, EPS);
            assert_near("norm of heads", &y_memory.as_elements(elem), &y, elem.tolerance());

            let dy = elem.round_all(&random.normals(rows * width));
            let (mut dx, mut dw) = (vec![0.0; rows * width], random.normals(width));
            let (dy_memory, other) = (card.elements(elem, &dy), card.no_elements(elem, rows * width));
            let (chunk, dw_memory) = (32, card.floats(&dw));
            let chunks = rows.div_ceil(chunk);
            let partial = card.no_floats(chunks * width);
            let dx_memory = if in_place { &dy_memory } else { &other };
            let args: [Arg; 9] = [
                dx_memory.into(),
                (&partial).into(),
                (&dy_memory).into(),
                (&x_memory).into(),
                (&w_memory).into(),
                (&rstd_memory).into(),
                long(rows),
                width.into(),
                chunk.into(),
            ];
            let launch = Size { shared: 4 * width, ..size(chunks, block(width)) };
            program.launch("head_norm_backward", launch, &args);
            reduce(&program, &dw_memory, &partial, chunks, width);
            reference::rms_norm_backward(&mut dx, &mut dw, &dy, &x, &w, &rstd);
            assert_near("dx of heads", &dx_memory.as_elements(elem), &dx, elem.tolerance());
            assert_near("dw of heads", &dw_memory.as_floats(), &dw, 2e-6);
        }
    }
}

#[test]
fn loss() {
    let Some(card) = Card::get() else { return };
    let mut random = Random::new(13);
    for elem in ELEMS {
        let program = card.program("loss.cu", elem, 8);
        for (rows, vocabulary) in [(1, 2), (3, 264), (2, 5003)] {
            // Large ones: exponentials overflow without the maximum.
            let logits: Vec<f32> = random.normals(rows * vocabulary).iter().map(|x| 40.0 * x).collect();
            let targets: Vec<u32> = (0..rows).map(|row| (row * 97 % vocabulary) as u32).collect();
            let (logits_memory, loss) = (card.floats(&logits), card.no_floats(rows));
            let dlogits = card.no_elements(elem, rows * vocabulary);
            let targets_memory = card.ints(&targets.iter().map(|x| *x as i32).collect::<Vec<_>>());
            let args = [
                (&dlogits).into(),
                (&loss).into(),
                (&logits_memory).into(),
                (&targets_memory).into(),
                rows.into(),
                vocabulary.into(),
                (1.0 / rows as f32).into(),
            ];
            program.launch("cross_entropy", size(rows, 512), &args);
            let mut expected = vec![0.0; rows * vocabulary];
            let mean = reference::cross_entropy(&mut expected, &logits, &targets);
            // Exponents of up to a hundred have an error of 4e-6.
            let tolerance = elem.tolerance().max(2e-5);
            assert_near("gradient of the loss", &dlogits.as_elements(elem), &expected, tolerance);
            let sum: f32 = loss.as_floats().iter().sum();
            assert!((sum / rows as f32 - mean).abs() <= 2e-6 * mean.abs(), "{sum} / {rows}, not {mean}");
        }
    }
}
