//! Operations that are limited by memory.

use crate::assert_near;
use crate::card::{Card, ELEMS, long, size};
use aquifer_worker::kernels::reference;
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
