//! The operations of the passes on a card.

use super::memory::{Buffer, Slice};
use super::resident::Resident;
use super::serving::{self, CardCache, CardRows};
use super::weights::{Bytes, CardRope, CardWeight, CardWeights, adopt, place};
use super::{Argument, Cuda, DeviceError, Element, FEW, Launch, NONE, factor, int, long};
use crate::kernels::{Attention, Backend, CacheShape, Linear, Path, Seen, Training, Turn};
use crate::model::{Model, Trained};
use crate::values::Values;
use std::sync::Arc;

/// Rows whose share of the gradient of a norm's weight is summed first, of the stream and of heads.
const NORM_ROWS: usize = 32;
const HEAD_ROWS: usize = 256;
/// Rows whose share of the gradient of a bias is summed first.
const BIAS_ROWS: usize = 256;
/// Logits that are held at a time, as far as the rows are more than [`LOSS_ROWS`].
const LOGITS: usize = 1 << 26;
const LOSS_ROWS: usize = 256;
/// Keys that one block of threads takes.
const KEYS: usize = 64;
/// Kernels for few rows whose results are floats.
const FEW_TO_FLOAT: [&str; 2] = ["linear_few_float", "linear_few_int8_float"];

impl<E: Element> Backend for Cuda<E> {
    type Floats = Slice<f32>;
    type Elements = Slice<E>;
    type FloatBuffer = Buffer<f32>;
    type ElementBuffer = Buffer<E>;
    type Weights = CardWeights<E>;
    type Weight<'a> = CardWeight<'a, E>;
    type Rope = CardRope;
    type Cache = CardCache<E>;
    type RowBuffer = Buffer<i32>;
    type Rows<'a> = CardRows<'a>;

    const PROMPT_ROWS: usize = 256;

    fn place<'a>(
        &self,
        held: &'a mut Option<Model<CardWeights<E>>>,
        model: &'a Model,
        new: bool,
    ) -> Result<&'a Model<CardWeights<E>>, DeviceError> {
        place(self, held, model, new)
    }

    fn adopt(&self, model: Model) -> Result<Model<CardWeights<E>>, DeviceError> {
        adopt(self, &model)
    }

    fn train(&self, trained: Arc<Trained>) -> Result<Box<dyn Training<Cuda<E>>>, DeviceError> {
        Ok(Box::new(Resident::new(self, &trained)?))
    }

    fn resize(&self, buffer: &mut Buffer<f32>, len: usize) {
        buffer.resize(&self.card, len);
    }

    fn resize_elements(&self, buffer: &mut Buffer<E>, len: usize) {
        buffer.resize(&self.card, len);
    }

    fn zero(&self, x: &mut Slice<f32>) {
        self.card.zero(x);
    }

    fn copy(&self, to: &mut Slice<f32>, from: &Slice<f32>) {
        self.card.copy(to, from);
    }

    fn rounded<'a>(&self, x: &'a Slice<f32>, room: &'a mut Buffer<E>) -> &'a Slice<E> {
        if !E::IS_BF16 {
            return x.reinterpret();
        }
        room.resize(&self.card, x.len());
        self.round(room, x);
        room
    }

    fn read<'a>(&self, x: &'a Slice<f32>, room: &'a mut Vec<f32>) -> Result<&'a [f32], DeviceError> {
        room.resize(x.len(), 0.0);
        self.card.download(room, x)?;
        Ok(room)
    }

    fn read_elements<'a>(&self, x: &'a Slice<E>, room: &'a mut Vec<f32>) -> Result<&'a [f32], DeviceError> {
        if !E::IS_BF16 {
            return self.read(x.reinterpret(), room);
        }
        let mut floats = Buffer::room(&self.card, x.len());
        self.each("to_float", x.len(), &[(&mut *floats).into(), x.into(), long(x.len())]);
        room.resize(x.len(), 0.0);
        self.card.download(room, &floats)?;
        Ok(room)
    }

    fn write(&self, to: &mut Slice<f32>, from: &[f32]) {
        self.card.upload(to, from);
    }

    fn keep(&self, floats: Buffer<f32>) -> Values {
        self.keep_sum(floats)
    }

    fn add(&self, x: &mut Slice<f32>, y: &Slice<f32>) {
        self.card.add(self.kind(), x, y);
    }

    /// Squares of finite floats are finite in double precision, and so is the sum of as many as a card holds.
    fn are_finite(&self, x: &Slice<f32>) -> Result<bool, DeviceError> {
        Ok(self.sum_of_squares(x)?.is_finite())
    }

    fn embed(&self, x: &mut Slice<f32>, tokens: &[u32], w: CardWeight<'_, E>, width: usize) {
        let numbers = self.integers(tokens.iter().map(|token| *token as usize));
        self.embed_numbers(x, &numbers, w, width);
    }

    fn embed_rows(&self, x: &mut Slice<f32>, rows: &CardRows<'_>, w: CardWeight<'_, E>, width: usize) {
        self.embed_numbers(x, rows.tokens(), w, width);
    }

    fn project(
        &self,
        shape: Linear,
        y: &mut Slice<E>,
        x: &Slice<E>,
        w: CardWeight<'_, E>,
        bias: Option<&Slice<f32>>,
    ) {
        match shape.path {
            Path::Panels => self.forward(shape, (y.address(), false), None, x, w),
            Path::Dots => self.few(["linear_few", "linear_few_int8"], shape, y, x, w, &[]),
        }
        if let Some(bias) = bias {
            self.add_bias("add_bias", Argument::from(y), bias, shape.rows);
        }
    }

    fn project_onto(
        &self,
        shape: Linear,
        y: &mut Slice<f32>,
        base: &Slice<f32>,
        x: &Slice<E>,
        w: CardWeight<'_, E>,
        bias: Option<&Slice<f32>>,
    ) {
        match shape.path {
            Path::Panels => self.forward(shape, (y.address(), true), Some(base.address()), x, w),
            Path::Dots => {
                self.card.copy(y, base);
                self.few(FEW_TO_FLOAT, shape, y, x, w, &[int(1)]);
            }
        }
        if let Some(bias) = bias {
            self.add_bias("add_bias_float", Argument::from(y), bias, shape.rows);
        }
    }

    fn logits(&self, shape: Linear, y: &mut Slice<f32>, x: &Slice<E>, w: CardWeight<'_, E>) {
        match shape.path {
            Path::Panels => self.forward(shape, (y.address(), true), None, x, w),
            Path::Dots => self.few(FEW_TO_FLOAT, shape, y, x, w, &[int(0)]),
        }
    }

    fn linear_backward_input(
        &self,
        shape: Linear,
        dx: &mut Slice<E>,
        dy: &Slice<E>,
        w: &Slice<E>,
        accumulate: bool,
    ) {
        let Linear { rows, inputs, outputs, .. } = shape;
        let (dy, w, dx) = (factor(dy, outputs, false), factor(w, inputs, false), dx.address());
        self.multiply([rows, inputs, outputs], dy, w, accumulate.then_some(dx), (dx, false));
    }

    fn linear_backward_weight(&self, shape: Linear, dw: &mut Slice<f32>, dy: &Slice<E>, x: &Slice<E>) {
        let Linear { rows, inputs, outputs, .. } = shape;
        let (dy, x, dw) = (factor(dy, outputs, true), factor(x, inputs, false), dw.address());
        self.multiply([outputs, inputs, rows], dy, x, Some(dw), (dw, true));
    }

    fn bias_backward(&self, db: &mut Slice<f32>, dy: &Slice<E>) {
        let (width, rows) = (db.len(), dy.len() / db.len());
        let chunks = rows.div_ceil(BIAS_ROWS);
        let partial: Buffer<f32> = Buffer::room(&self.card, chunks * width);
        let arguments = [(&*partial).into(), dy.into(), int(rows), int(width), int(width), int(BIAS_ROWS)];
        self.launch("column_sums", [width.div_ceil(256), chunks, 1], 256, &arguments);
        self.reduce(db, &partial, chunks);
    }

    fn rms_norm_forward(
        &self,
        y: &mut Slice<E>,
        rstd: &mut Slice<f32>,
        x: &Slice<f32>,
        w: &Slice<f32>,
        eps: f32,
    ) {
        let (width, rows) = (w.len(), rstd.len());
        let (rows_argument, eps) = (int(rows), Argument::Float(eps));
        let arguments =
            [y.into(), rstd.into(), NONE, x.into(), NONE, w.into(), rows_argument, int(width), eps];
        self.launch("rms_norm_forward", [rows, 1, 1], norm_block(width), &arguments);
    }

    fn rms_norm_backward(
        &self,
        dx: &mut Slice<f32>,
        dw: &mut Slice<f32>,
        dy: &Slice<E>,
        x: &Slice<f32>,
        w: &Slice<f32>,
        rstd: &Slice<f32>,
    ) {
        let (width, rows) = (w.len(), rstd.len());
        let chunks = rows.div_ceil(NORM_ROWS);
        let partial: Buffer<f32> = Buffer::room(&self.card, chunks * width);
        let sums = (&*partial).into();
        let arguments = [
            dx.into(),
            NONE,
            sums,
            dy.into(),
            x.into(),
            w.into(),
            rstd.into(),
            int(rows),
            int(width),
            int(NORM_ROWS),
        ];
        let (kernel, block) = ("rms_norm_backward", norm_block(width));
        self.launch_with(Launch { kernel, grid: [chunks, 1, 1], block, shared: 4 * width }, &arguments);
        self.reduce(dw, &partial, chunks);
    }

    fn head_norm_forward(
        &self,
        y: &mut Slice<E>,
        rstd: &mut Slice<f32>,
        x: &Slice<E>,
        w: &Slice<f32>,
        eps: f32,
    ) {
        let (width, rows) = (w.len(), rstd.len());
        let arguments =
            [y.into(), rstd.into(), x.into(), w.into(), long(rows), int(width), Argument::Float(eps)];
        self.launch("head_norm_forward", [rows, 1, 1], norm_block(width), &arguments);
    }

    fn head_norm_backward(
        &self,
        dx: &mut Slice<E>,
        dw: &mut Slice<f32>,
        dy: &Slice<E>,
        x: &Slice<E>,
        w: &Slice<f32>,
        rstd: &Slice<f32>,
    ) {
        let (width, rows) = (w.len(), rstd.len());
        let chunks = rows.div_ceil(HEAD_ROWS);
        let partial: Buffer<f32> = Buffer::room(&self.card, chunks * width);
        let arguments = [
            dx.into(),
            (&*partial).into(),
            dy.into(),
            x.into(),
            w.into(),
            rstd.into(),
            long(rows),
            int(width),
            int(HEAD_ROWS),
        ];
        let (kernel, block) = ("head_norm_backward", norm_block(width));
        self.launch_with(Launch { kernel, grid: [chunks, 1, 1], block, shared: 4 * width }, &arguments);
        self.reduce(dw, &partial, chunks);
    }

    fn rope(&self, x: &mut Slice<E>, width: usize, length: usize, rope: &CardRope, turn: Turn) {
        let direction = if turn == Turn::Forward { 1.0 } else { -1.0 };
        self.turn(x, width, rope, (NONE, length), direction);
    }

    fn rope_rows(&self, x: &mut Slice<E>, width: usize, rows: &CardRows<'_>, rope: &CardRope) {
        self.turn(x, width, rope, (rows.positions().into(), 1), 1.0);
    }

    fn attention_forward(
        &self,
        shape: Attention,
        out: &mut Slice<E>,
        log_sum: &mut Slice<f32>,
        [q, k, v]: [&Slice<E>; 3],
    ) {
        let grid = [shape.queries.div_ceil(queries_in_a_tile::<E>()), shape.heads, sequences(shape, q)];
        let mut arguments = vec![out.into(), log_sum.into(), q.into(), k.into(), v.into()];
        arguments.extend(of_shape(shape));
        let (block, shared) = (attention_block::<E>(), tile_bytes::<E>(shape, 256));
        self.launch_with(Launch { kernel: "attention_forward", grid, block, shared }, &arguments);
    }

    fn attention_backward(
        &self,
        shape: Attention,
        [dq, dk, dv]: [&mut Slice<E>; 3],
        dout: &Slice<E>,
        out: &Slice<E>,
        log_sum: &Slice<f32>,
        [q, k, v]: [&Slice<E>; 3],
    ) {
        let (block, sequences) = (attention_block::<E>(), sequences(shape, q));
        let mut delta: Buffer<f32> = Buffer::room(&self.card, log_sum.len());
        let arguments = [(&mut *delta).into(), dout.into(), out.into(), long(log_sum.len())];
        self.launch("attention_backward_prepare", [log_sum.len().div_ceil(8), 1, 1], 256, &arguments);
        let inputs = [q.into(), k.into(), v.into(), dout.into(), log_sum.into(), (&*delta).into()];
        let all = |outputs: &[Argument]| [outputs, &inputs, &of_shape(shape)].concat();
        let (grid, shared) =
            ([shape.keys().div_ceil(KEYS), shape.kv_heads, sequences], tile_bytes::<E>(shape, 256));
        let launch = Launch { kernel: "attention_backward_kv", grid, block, shared };
        self.launch_with(launch, &all(&[dk.into(), dv.into()]));
        let (tiles, shared) = (shape.queries.div_ceil(queries_in_a_tile::<E>()), tile_bytes::<E>(shape, 352));
        let grid = [tiles, shape.heads, sequences];
        let launch = Launch { kernel: "attention_backward_q", grid, block, shared };
        self.launch_with(launch, &all(&[dq.into()]));
    }

    /// Three quarters of what is free: the rest is for what passes compute.
    fn cache_bytes(&self) -> (u64, usize) {
        (self.card.memory().0 as u64 / 4 * 3, size_of::<E>())
    }

    fn cache(&self, shape: CacheShape) -> Result<CardCache<E>, DeviceError> {
        self.new_cache(shape)
    }

    fn filled(rows: usize) -> usize {
        serving::filled(rows)
    }

    fn rows<'a>(&self, room: &'a mut Buffer<i32>, tokens: &'a [u32], seen: &'a [Seen<'a>]) -> CardRows<'a> {
        self.place_rows(room, tokens, seen)
    }

    fn at_once(&self, work: impl FnOnce()) {
        self.card.at_once(work);
    }

    fn cache_write(
        &self,
        cache: &mut CardCache<E>,
        layer: usize,
        rows: &CardRows<'_>,
        k: &Slice<E>,
        v: &Slice<E>,
    ) {
        self.write(cache, layer, rows, k, v);
    }

    fn cache_read(
        &self,
        cache: &CardCache<E>,
        layer: usize,
        seen: Seen<'_>,
        k: &mut Slice<E>,
        v: &mut Slice<E>,
    ) {
        self.read_cache(cache, layer, seen, k, v);
    }

    fn attention_cached(
        &self,
        shape: Attention,
        out: &mut Slice<E>,
        q: &Slice<E>,
        rows: &CardRows<'_>,
        cache: (&CardCache<E>, usize),
    ) {
        self.attend_cached(shape, out, q, rows, cache);
    }

    fn swiglu_forward(&self, y: &mut Slice<E>, gate: &Slice<E>, up: &Slice<E>) {
        // As one row: nothing of it depends on where rows end.
        let [rows, width, stride] = [long(1), int(y.len()), int(y.len())];
        let grid = [y.len().div_ceil(2048), 1, 1];
        let arguments = [y.into(), gate.into(), up.into(), rows, width, stride];
        self.launch("swiglu_forward", grid, 256, &arguments);
    }

    fn swiglu_backward(
        &self,
        dgate: &mut Slice<E>,
        dup: &mut Slice<E>,
        dy: &Slice<E>,
        gate: &Slice<E>,
        up: &Slice<E>,
    ) {
        let [rows, width, stride] = [long(1), int(dy.len()), int(dy.len())];
        let grid = [dy.len().div_ceil(2048), 1, 1];
        let arguments = [dgate.into(), dup.into(), dy.into(), gate.into(), up.into(), rows, width, stride];
        self.launch("swiglu_backward", grid, 256, &arguments);
    }

    fn embedding_backward(&self, dw: &mut Slice<f32>, tokens: &[u32], dy: &Slice<f32>, width: usize) {
        // Rows by their token, in the order of the text: each row of the gradient is one sum in that order.
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(|row| tokens[*row]);
        let groups: Vec<&[usize]> = order.chunk_by(|row, next| tokens[*row] == tokens[*next]).collect();
        let ends = groups.iter().scan(0, |end, group| {
            *end += group.len();
            Some(*end)
        });
        let distinct = self.integers(groups.iter().map(|group| tokens[group[0]] as usize));
        let starts = self.integers(std::iter::once(0).chain(ends));
        let arguments = [
            dw.into(),
            dy.into(),
            (&*distinct).into(),
            (&*starts).into(),
            (&*self.integers(order.iter().copied())).into(),
            int(width),
        ];
        self.launch("embedding_backward", [groups.len(), width.div_ceil(256), 1], 256, &arguments);
    }

    fn linear_cross_entropy(
        &self,
        shape: Linear,
        dx: &mut Slice<E>,
        dw: &mut Slice<f32>,
        (x, w): (&Slice<E>, &Slice<E>),
        targets: &[u32],
    ) -> f32 {
        let Linear { rows: n, inputs, outputs, .. } = shape;
        let chunk = (LOGITS / outputs).max(LOSS_ROWS).min(n);
        let (mut losses, mut logits) =
            (Buffer::room(&self.card, n), Buffer::room(&self.card, chunk * outputs));
        let mut dlogits = Buffer::room(&self.card, chunk * outputs);
        let numbers = self.integers(targets.iter().map(|target| *target as usize));
        for first in (0..n).step_by(chunk) {
            let rows = chunk.min(n - first);
            let part = Linear { rows, inputs, outputs, path: Path::Panels };
            let (some, wide) = (first..first + rows, first * inputs..(first + rows) * inputs);
            let (logits, dlogits) = (&mut logits[0..rows * outputs], &mut dlogits[0..rows * outputs]);
            self.logits(part, logits, &x[wide.clone()], CardWeight::Elements(w));
            let arguments = [
                Argument::from(&mut *dlogits),
                (&mut losses[some.clone()]).into(),
                (&*logits).into(),
                (&numbers[some]).into(),
                int(rows),
                int(outputs),
                Argument::Float(1.0 / n as f32),
            ];
            self.launch("cross_entropy", [rows, 1, 1], 512, &arguments);
            self.linear_backward_input(part, &mut dx[wide.clone()], dlogits, w, false);
            self.linear_backward_weight(part, dw, dlogits, &x[wide]);
        }
        let mut all = Vec::new();
        // A failure comes again where the gradient is read.
        let losses = self.read(&losses, &mut all).unwrap_or_default();
        (losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() / n as f64) as f32
    }
}

impl<E: Element> Cuda<E> {
    /// A linear layer of few rows at a time, by one of two kernels: for weights that are elements, and for bytes. `more` are its last
    /// arguments.
    fn few<T>(
        &self,
        [of_elements, of_bytes]: [&'static str; 2],
        Linear { rows, inputs, outputs, .. }: Linear,
        y: &Slice<T>,
        x: &Slice<E>,
        w: CardWeight<'_, E>,
        more: &[Argument],
    ) {
        let (kernel, weights): (_, Vec<Argument>) = match w {
            CardWeight::Elements(w) => (of_elements, vec![w.into()]),
            CardWeight::Bytes(Bytes { values, scales, .. }) => (of_bytes, vec![values.into(), scales.into()]),
        };
        for first in (0..rows).step_by(FEW) {
            let last = rows.min(first + FEW);
            let (x, y) = (&x[first * inputs..last * inputs], &y[first * outputs..last * outputs]);
            let shape = [last - first, inputs, outputs].map(int);
            let arguments = [&[y.into(), x.into()][..], &weights, &shape, more].concat();
            self.launch(kernel, [outputs.div_ceil(16), 1, 1], 256, &arguments);
        }
    }

    /// Rows of an embedding, by their numbers.
    fn embed_numbers(&self, x: &mut Slice<f32>, numbers: &Slice<i32>, w: CardWeight<'_, E>, width: usize) {
        let (kernel, weights): (_, Vec<Argument>) = match w {
            CardWeight::Elements(w) => ("embedding_forward", vec![w.into()]),
            CardWeight::Bytes(Bytes { values, scales, .. }) => {
                ("embedding_forward_int8", vec![values.into(), scales.into()])
            }
        };
        let rows = numbers.len();
        let arguments = [&[x.into(), numbers.into()][..], &weights, &[int(rows), int(width)]].concat();
        self.launch(kernel, [rows, 1, 1], 256, &arguments);
    }

    fn add_bias(&self, kernel: &'static str, y: Argument, bias: &Slice<f32>, rows: usize) {
        let width = bias.len();
        let grid = [(rows * width.div_ceil(8)).div_ceil(256), 1, 1];
        self.launch(kernel, grid, 256, &[y, bias.into(), long(rows), int(width), int(width)]);
    }

    /// Adds the sums of `count` chunks.
    fn reduce(&self, sums: &mut Slice<f32>, partial: &Slice<f32>, count: usize) {
        let width = sums.len();
        let arguments = [sums.into(), partial.into(), int(count), int(width)];
        self.launch("reduce_rows", [width.div_ceil(32), 1, 1], 1024, &arguments);
    }

    /// Turns heads by the positions of their rows, or by their number in sequences of a length.
    fn turn(
        &self,
        x: &mut Slice<E>,
        width: usize,
        rope: &CardRope,
        (positions, length): (Argument, usize),
        direction: f32,
    ) {
        let (rows, heads) = (x.len() / width, width / self.head_dim);
        let grid = [(rows * heads * (self.head_dim / 2).div_ceil(8)).div_ceil(256), 1, 1];
        let arguments = [
            x.into(),
            long(rows),
            int(heads),
            int(width),
            (&*rope.cos).into(),
            (&*rope.sin).into(),
            positions,
            int(0),
            int(length),
            Argument::Float(direction),
        ];
        self.launch("rope", grid, 256, &arguments);
    }
}

/// Sequences in a batch of queries.
fn sequences<E>(shape: Attention, q: &Slice<E>) -> usize {
    q.len() / (shape.queries * shape.query_width())
}

/// What all kernels of attention end with.
fn of_shape(shape: Attention) -> [Argument; 7] {
    let Attention { queries, start, heads, kv_heads, .. } = shape;
    let [queries, start, heads, kv_heads, wide, narrow] =
        [queries, start, heads, kv_heads, shape.query_width(), shape.key_width()].map(int);
    [queries, start, heads, kv_heads, wide, narrow, Argument::Float(shape.scale())]
}

/// Queries that one block of threads takes.
fn queries_in_a_tile<E: Element>() -> usize {
    if E::IS_BF16 { 128 } else { 64 }
}

/// Shared memory for so many rows of heads, each a little longer so that they begin in different banks; floats need none.
fn tile_bytes<E: Element>(shape: Attention, rows: usize) -> usize {
    if E::IS_BF16 { rows * (shape.head_dim.next_multiple_of(16) + 8) * 2 } else { 0 }
}

fn attention_block<E: Element>() -> usize {
    if E::IS_BF16 { 128 } else { 256 }
}

fn norm_block(width: usize) -> usize {
    (32 * width.div_ceil(256)).min(256)
}
