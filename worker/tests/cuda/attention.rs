//! Attention, forward and backward.

use crate::assert_near;
use crate::card::{Arg, Card, ELEMS, Elem, Memory, Size, long, size};
use aquifer_worker::kernels::{Attention, Qkv, QkvGradient, reference};
use aquifer_worker::random::Random;

/// head_dim, heads, kv_heads, start, queries, sequences
type Shape = (usize, usize, usize, usize, usize, usize);

/// Heads of all lengths that models have, and small ones, with queries around the edges of tiles.
const SHAPES: [Shape; 11] = [
    (8, 4, 2, 0, 7, 2),
    (8, 2, 1, 70, 3, 1),
    (16, 2, 2, 0, 65, 1),
    (24, 1, 1, 5, 64, 1),
    (64, 3, 1, 0, 70, 2),
    (64, 1, 1, 63, 66, 1),
    (64, 2, 1, 0, 129, 1),
    (80, 2, 2, 0, 33, 1),
    (96, 2, 1, 100, 1, 1),
    (128, 2, 1, 20, 80, 1),
    (128, 1, 1, 3, 161, 1),
];

/// Those, and as many of any kind as `SEEDS` says, from `SEED` on. With a single key all gradients of scores are differences of
/// equal numbers, so there are two at least.
fn shapes() -> Vec<Shape> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("SEED").unwrap_or(0);
    let random = (first..first + number("SEEDS").unwrap_or(6)).map(|seed| {
        let mut random = Random::new(seed ^ 0xa77e);
        let mut below = |count: usize| (random.bits() % count as u64) as usize;
        let (head_dim, kv_heads, group) = ([8, 24, 64, 128][below(4)], 1 + below(2), 1 + below(3));
        (head_dim, kv_heads * group, kv_heads, below(2) * below(150), 2 + below(150), 1 + below(2))
    });
    SHAPES.into_iter().chain(random).collect()
}

struct Case {
    elem: Elem,
    shape: Attention,
    sequences: usize,
    /// Rows of queries, and of keys or values, in a matrix of all three of them.
    q_stride: usize,
    kv_stride: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    fn new(elem: Elem, (head_dim, heads, kv_heads, start, queries, sequences): Shape) -> Case {
        let shape = Attention { queries, start, heads, kv_heads, head_dim };
        let mut random = Random::new((head_dim + start + queries) as u64);
        // Scores of a few units: with smaller ones a softmax that is wrong is nearly right.
        let mut some = |count: usize, by: f32| -> Vec<f32> {
            random.normals(count).iter().map(|x| elem.round(by * x)).collect()
        };
        Case {
            elem,
            shape,
            sequences,
            q_stride: shape.query_width() + 8,
            kv_stride: 2 * shape.key_width(),
            q: some(sequences * queries * shape.query_width(), 2.0),
            k: some(sequences * shape.keys() * shape.key_width(), 1.0),
            v: some(sequences * shape.keys() * shape.key_width(), 1.0),
        }
    }

    fn query_rows(&self) -> usize {
        self.sequences * self.shape.queries
    }

    fn block(&self) -> usize {
        if self.elem == Elem::Bf16 { 128 } else { 256 }
    }

    /// Blocks for all queries.
    fn query_grid(&self) -> [usize; 3] {
        let tile = if self.elem == Elem::Bf16 { 128 } else { 64 };
        [self.shape.queries.div_ceil(tile), self.shape.heads, self.sequences]
    }

    /// Bytes of so many rows of tiles, which only bf16 has.
    fn shared(&self, rows: usize) -> usize {
        match self.elem {
            Elem::Float => 0,
            Elem::Bf16 => rows * (self.shape.head_dim.next_multiple_of(16) + 8) * 2,
        }
    }

    /// Queries with something behind each row, and rows of keys and values side by side.
    fn upload(&self, card: &'static Card) -> (Memory, Memory) {
        let (width, narrow) = (self.shape.query_width(), self.shape.key_width());
        let q: Vec<f32> = self.q.chunks(width).flat_map(|row| [row, &[f32::NAN; 8]].concat()).collect();
        let kv: Vec<f32> =
            self.k.chunks(narrow).zip(self.v.chunks(narrow)).flat_map(|(k, v)| [k, v].concat()).collect();
        (card.elements(self.elem, &q), card.elements(self.elem, &kv))
    }

    fn values(&self, kv: &Memory) -> Arg {
        kv.from(self.shape.key_width() * self.elem.bytes())
    }

    /// The arguments that all three kernels end with.
    fn tail(&self) -> [Arg; 7] {
        let Attention { queries, start, heads, kv_heads, .. } = self.shape;
        [
            queries.into(),
            start.into(),
            heads.into(),
            kv_heads.into(),
            self.q_stride.into(),
            self.kv_stride.into(),
            self.shape.scale().into(),
        ]
    }

    fn expected(&self) -> (Vec<f32>, Vec<f32>) {
        let shape = self.shape;
        let (width, narrow) = (shape.queries * shape.query_width(), shape.keys() * shape.key_width());
        let (mut out, mut log_sum) = (vec![0.0; self.q.len()], vec![0.0; self.query_rows() * shape.heads]);
        for (i, (out, log_sum)) in
            out.chunks_mut(width).zip(log_sum.chunks_mut(shape.queries * shape.heads)).enumerate()
        {
            let keys = i * narrow..(i + 1) * narrow;
            let inputs =
                Qkv { q: &self.q[i * width..(i + 1) * width], k: &self.k[keys.clone()], v: &self.v[keys] };
            reference::attention_forward(shape, out, log_sum, inputs);
        }
        (out, log_sum)
    }

    fn expected_gradient(
        &self,
        dout: &[f32],
        out: &[f32],
        log_sum: &[f32],
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let shape = self.shape;
        let (width, narrow) = (shape.queries * shape.query_width(), shape.keys() * shape.key_width());
        let (mut dq, mut dk, mut dv) =
            (vec![0.0; self.q.len()], vec![0.0; self.k.len()], vec![0.0; self.v.len()]);
        for i in 0..self.sequences {
            let (wide, keys) = (i * width..(i + 1) * width, i * narrow..(i + 1) * narrow);
            let inputs = Qkv { q: &self.q[wide.clone()], k: &self.k[keys.clone()], v: &self.v[keys.clone()] };
            let gradient =
                QkvGradient { q: &mut dq[wide.clone()], k: &mut dk[keys.clone()], v: &mut dv[keys] };
            let logs = shape.queries * shape.heads;
            let log_sum = &log_sum[i * logs..(i + 1) * logs];
            reference::attention_backward(shape, gradient, &dout[wide.clone()], &out[wide], log_sum, inputs);
        }
        (dq, dk, dv)
    }
}

/// Weights of a softmax are rounded to bf16 before they meet the values, each by half of its last bit, and outputs once
/// more. Floats: exponentials of scores near 10, whose last bit is worth 1e-6.
fn tolerance(elem: Elem) -> f32 {
    match elem {
        Elem::Float => 4e-6,
        Elem::Bf16 => 5e-3,
    }
}

/// Outputs and logarithms of sums.
fn forward(card: &'static Card, case: &Case) -> (Vec<f32>, Vec<f32>) {
    let (elem, shape) = (case.elem, case.shape);
    let program = card.program("attention.cu", elem, shape.head_dim);
    let (q, kv) = case.upload(card);
    let out = card.no_elements(elem, case.q.len());
    let log_sum = card.no_floats(case.query_rows() * shape.heads);
    let inputs = [(&out).into(), (&log_sum).into(), (&q).into(), (&kv).into(), case.values(&kv)];
    let launch = Size { grid: case.query_grid(), block: case.block(), shared: case.shared(256) };
    program.launch("attention_forward", launch, &[&inputs[..], &case.tail()].concat());
    (out.as_elements(elem), log_sum.as_floats())
}

#[test]
fn attention_forward() {
    let Some(card) = Card::get() else { return };
    for elem in ELEMS {
        for of in shapes() {
            let case = Case::new(elem, of);
            let (out, log_sum) = forward(card, &case);
            let (expected, log) = case.expected();
            let name = format!("{elem:?} {of:?}");
            assert_near(&format!("attention {name}"), &out, &expected, tolerance(elem));
            // Sums are not rounded to elements.
            assert_near(&format!("log sum {name}"), &log_sum, &log, 1e-5);
        }
    }
}

/// A prompt that is computed in pieces, or after a beginning that is known, gives the same bits.
#[test]
fn the_bits_of_a_query_do_not_depend_on_where_its_tile_begins() {
    let Some(card) = Card::get() else { return };
    for elem in ELEMS {
        let whole = Case::new(elem, (64, 2, 1, 0, 150, 1));
        let (out, _) = forward(card, &whole);
        let (width, narrow) = (whole.shape.query_width(), whole.shape.key_width());
        for (start, end) in [(0, 37), (37, 150), (149, 150), (64, 130)] {
            let mut part = Case::new(elem, (64, 2, 1, start, end - start, 1));
            part.q = whole.q[start * width..end * width].to_vec();
            part.k = whole.k[..end * narrow].to_vec();
            part.v = whole.v[..end * narrow].to_vec();
            let (part, _) = forward(card, &part);
            assert_eq!(part, out[start * width..end * width], "{elem:?} {start}..{end}");
        }
    }
}

#[test]
fn attention_backward() {
    let Some(card) = Card::get() else { return };
    for elem in ELEMS {
        for of in shapes() {
            let case = Case::new(elem, of);
            let (shape, rows) = (case.shape, case.query_rows());
            let program = card.program("attention_backward.cu", elem, shape.head_dim);
            let (q, kv) = case.upload(card);
            let (out, log_sum) = case.expected();
            let dout = elem.round_all(&Random::new(100).normals(out.len()));
            let rounded = card.elements(elem, &out);
            let (dout_memory, log_memory) = (card.elements(elem, &dout), card.floats(&log_sum));
            let delta = card.no_floats(rows * shape.heads);
            let count = rows * shape.heads;
            program.launch(
                "attention_backward_prepare",
                size(count.div_ceil(8), 256),
                &[(&delta).into(), (&dout_memory).into(), (&rounded).into(), long(count)],
            );
            let dq = card.elements(elem, &vec![f32::NAN; rows * case.q_stride]);
            let dkv = card.no_elements(elem, case.sequences * shape.keys() * case.kv_stride);
            let inputs = [
                (&q).into(),
                (&kv).into(),
                case.values(&kv),
                (&dout_memory).into(),
                (&log_memory).into(),
                (&delta).into(),
            ];
            let launch = |kernel: &str, grid: [usize; 3], rows: usize, outputs: &[Arg]| {
                let args = [outputs, &inputs, &case.tail()].concat();
                program.launch(kernel, Size { grid, block: case.block(), shared: case.shared(rows) }, &args);
            };
            let grid = [shape.keys().div_ceil(64), shape.kv_heads, case.sequences];
            launch("attention_backward_kv", grid, 256, &[(&dkv).into(), case.values(&dkv)]);
            launch("attention_backward_q", case.query_grid(), 352, &[(&dq).into()]);

            let (expected_q, expected_k, expected_v) =
                case.expected_gradient(&dout, &elem.round_all(&out), &log_sum);
            let name = format!("{elem:?} {of:?}");
            let (width, narrow) = (shape.query_width(), shape.key_width());
            let of_rows = |all: &[f32], stride: usize, part: std::ops::Range<usize>| -> Vec<f32> {
                all.chunks(stride).flat_map(|row| row[part.clone()].to_vec()).collect()
            };
            let (dq, dkv) = (dq.as_elements(elem), dkv.as_elements(elem));
            // One more rounding than forward: of the gradient of the scores.
            let tolerance = 1.5 * tolerance(elem);
            assert_near(
                &format!("dq {name}"),
                &of_rows(&dq, case.q_stride, 0..width),
                &expected_q,
                tolerance,
            );
            assert!(of_rows(&dq, case.q_stride, width..case.q_stride).iter().all(|x| x.is_nan()), "{name}");
            assert_near(
                &format!("dk {name}"),
                &of_rows(&dkv, case.kv_stride, 0..narrow),
                &expected_k,
                tolerance,
            );
            let second = narrow..2 * narrow;
            assert_near(
                &format!("dv {name}"),
                &of_rows(&dkv, case.kv_stride, second),
                &expected_v,
                tolerance,
            );
        }
    }
}
