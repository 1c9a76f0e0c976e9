//! The host's memory as a backend: slices of `f32`, whatever computes on them. Nothing is copied that need not be.

use super::training::OnHost;
use super::{
    Attention, Backend, CacheShape, DeviceError, Head, Kernels, KvBlocks, Linear, Qkv, QkvGradient, Rope,
    Seen, Training, Turn, Weight,
};
use crate::mapping::{in_large_pages, usable_bytes};
use crate::model::{HostWeights, Model, Trained};
use crate::values::{Values, are_finite};
use crate::vector::Vector;
use std::ops::Range;
use std::sync::Arc;

/// Rows of a pass where they are.
pub struct HostRows<'a> {
    tokens: &'a [u32],
    seen: &'a [Seen<'a>],
}

impl<K: Kernels + 'static> Backend for K {
    type Floats = [f32];
    type Elements = [f32];
    type FloatBuffer = Vector;
    type ElementBuffer = Vec<f32>;
    type Weights = HostWeights;
    type Weight<'a> = Weight<'a>;
    type Rope = Rope;
    type Cache = KvBlocks;
    type RowBuffer = ();
    type Rows<'a> = HostRows<'a>;

    fn place<'a>(
        &self,
        _: &'a mut Option<Model>,
        model: &'a Model,
        _: bool,
    ) -> Result<&'a Model, DeviceError> {
        Ok(model)
    }

    fn adopt(&self, model: Model) -> Result<Model, DeviceError> {
        Ok(model)
    }

    fn train(&self, trained: Arc<Trained>) -> Result<Box<dyn Training<K>>, DeviceError> {
        Ok(Box::new(OnHost::new(trained)))
    }

    fn resize(&self, buffer: &mut Vector, len: usize) {
        buffer.resize(len);
    }

    fn resize_elements(&self, buffer: &mut Vec<f32>, len: usize) {
        match buffer.capacity() < len {
            true => *buffer = in_large_pages(len, 0.0),
            false => buffer.resize(len, 0.0),
        }
    }

    fn zero(&self, x: &mut [f32]) {
        x.fill(0.0);
    }

    fn copy(&self, to: &mut [f32], from: &[f32]) {
        to.copy_from_slice(from);
    }

    fn rounded<'a>(&self, x: &'a [f32], _: &'a mut Vec<f32>) -> &'a [f32] {
        x
    }

    fn read<'a>(&self, x: &'a [f32], _: &'a mut Vec<f32>) -> Result<&'a [f32], DeviceError> {
        Ok(x)
    }

    fn read_elements<'a>(&self, x: &'a [f32], _: &'a mut Vec<f32>) -> Result<&'a [f32], DeviceError> {
        Ok(x)
    }

    fn write(&self, to: &mut [f32], from: &[f32]) {
        to.copy_from_slice(from);
    }

    fn keep(&self, floats: Vector) -> Values {
        floats.into()
    }

    fn add(&self, x: &mut [f32], y: &[f32]) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    }

    fn are_finite(&self, x: &[f32]) -> Result<bool, DeviceError> {
        Ok(are_finite(x))
    }

    fn embed(&self, x: &mut [f32], tokens: &[u32], w: Weight<'_>, width: usize) {
        for (x, token) in x.chunks_exact_mut(width).zip(tokens) {
            w.copy_row(x, *token as usize);
        }
    }

    fn embed_rows(&self, x: &mut [f32], rows: &HostRows<'_>, w: Weight<'_>, width: usize) {
        self.embed(x, rows.tokens, w, width);
    }

    fn project(&self, shape: Linear, y: &mut [f32], x: &[f32], w: Weight<'_>, bias: Option<&[f32]>) {
        if let Some(bias) = bias {
            y.chunks_exact_mut(bias.len()).for_each(|y| y.copy_from_slice(bias));
        }
        self.linear(shape, y, x, w, bias.is_some());
    }

    fn project_onto(
        &self,
        shape: Linear,
        y: &mut [f32],
        base: &[f32],
        x: &[f32],
        w: Weight<'_>,
        bias: Option<&[f32]>,
    ) {
        y.copy_from_slice(base);
        if let Some(bias) = bias {
            add_rows(y, bias);
        }
        self.linear(shape, y, x, w, true);
    }

    fn logits(&self, shape: Linear, y: &mut [f32], x: &[f32], w: Weight<'_>) {
        self.linear(shape, y, x, w, false);
    }

    fn linear_backward_input(&self, shape: Linear, dx: &mut [f32], dy: &[f32], w: &[f32], accumulate: bool) {
        Kernels::linear_backward_input(self, shape, dx, dy, w, accumulate);
    }

    fn linear_backward_weight(&self, shape: Linear, dw: &mut [f32], dy: &[f32], x: &[f32]) {
        Kernels::linear_backward_weight(self, shape, dw, dy, x);
    }

    fn bias_backward(&self, db: &mut [f32], dy: &[f32]) {
        for dy in dy.chunks_exact(db.len()) {
            db.iter_mut().zip(dy).for_each(|(db, dy)| *db += dy);
        }
    }

    fn rms_norm_forward(&self, y: &mut [f32], rstd: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
        Kernels::rms_norm_forward(self, y, rstd, x, w, eps);
    }

    fn rms_norm_backward(
        &self,
        dx: &mut [f32],
        dw: &mut [f32],
        dy: &[f32],
        x: &[f32],
        w: &[f32],
        rstd: &[f32],
    ) {
        Kernels::rms_norm_backward(self, dx, dw, dy, x, w, rstd);
    }

    fn head_norm_forward(&self, y: &mut [f32], rstd: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
        Kernels::rms_norm_forward(self, y, rstd, x, w, eps);
    }

    fn head_norm_backward(
        &self,
        dx: &mut [f32],
        dw: &mut [f32],
        dy: &[f32],
        x: &[f32],
        w: &[f32],
        rstd: &[f32],
    ) {
        dx.fill(0.0);
        Kernels::rms_norm_backward(self, dx, dw, dy, x, w, rstd);
    }

    fn rope(&self, x: &mut [f32], width: usize, length: usize, rope: &Rope, turn: Turn) {
        for x in x.chunks_exact_mut(length * width) {
            Kernels::rope(self, x, width, 0, rope, turn);
        }
    }

    fn rope_rows(&self, x: &mut [f32], width: usize, rows: &HostRows<'_>, rope: &Rope) {
        let mut x = x;
        // Neighbours of one sequence together.
        for rows in
            rows.seen.chunk_by(|row, next| std::ptr::eq(row.table, next.table) && row.keys + 1 == next.keys)
        {
            let (own, rest) = x.split_at_mut(rows.len() * width);
            Kernels::rope(self, own, width, rows[0].keys - 1, rope, Turn::Forward);
            x = rest;
        }
    }

    fn attention_forward(&self, shape: Attention, out: &mut [f32], log_sum: &mut [f32], inputs: [&[f32]; 3]) {
        let [queries, keys, sums] = lengths(shape);
        let outputs = out.chunks_exact_mut(queries).zip(log_sum.chunks_exact_mut(sums));
        for (index, (out, log_sum)) in outputs.enumerate() {
            let inputs = sequence(index, queries, keys, inputs);
            Kernels::attention_forward(self, shape, out, log_sum, inputs);
        }
    }

    fn attention_backward(
        &self,
        shape: Attention,
        [dq, dk, dv]: [&mut [f32]; 3],
        dout: &[f32],
        out: &[f32],
        log_sum: &[f32],
        inputs: [&[f32]; 3],
    ) {
        let [queries, keys, sums] = lengths(shape);
        for (index, log_sum) in log_sum.chunks_exact(sums).enumerate() {
            let (wide, narrow) = (part(index, queries), part(index, keys));
            let (dk, dv) = (&mut dk[narrow.clone()], &mut dv[narrow]);
            let own = QkvGradient { q: &mut dq[wide.clone()], k: dk, v: dv };
            let inputs = sequence(index, queries, keys, inputs);
            Kernels::attention_backward(self, shape, own, &dout[wide.clone()], &out[wide], log_sum, inputs);
        }
    }

    /// A quarter of what this process may use.
    fn cache_bytes(&self) -> (u64, usize) {
        (usable_bytes() / 4, if self.keeps_bf16() { size_of::<u16>() } else { size_of::<f32>() })
    }

    fn cache(&self, shape: CacheShape) -> Result<KvBlocks, DeviceError> {
        Ok(KvBlocks::new(shape, self.keeps_bf16()))
    }

    fn rows<'a>(&self, _: &'a mut (), tokens: &'a [u32], seen: &'a [Seen<'a>]) -> HostRows<'a> {
        HostRows { tokens, seen }
    }

    fn cache_write(&self, cache: &mut KvBlocks, layer: usize, rows: &HostRows<'_>, k: &[f32], v: &[f32]) {
        cache.write(layer, rows.seen, k, v);
    }

    fn cache_read(&self, cache: &KvBlocks, layer: usize, seen: Seen<'_>, k: &mut [f32], v: &mut [f32]) {
        cache.read(layer, seen.table, 0..seen.keys, k, v);
    }

    fn attention_cached(
        &self,
        shape: Attention,
        out: &mut [f32],
        q: &[f32],
        rows: &HostRows<'_>,
        (cache, layer): (&KvBlocks, usize),
    ) {
        Kernels::attention_cached(self, shape, out, q, rows.seen, cache.layer(layer));
    }

    fn swiglu_forward(&self, y: &mut [f32], gate: &[f32], up: &[f32]) {
        Kernels::swiglu_forward(self, y, gate, up);
    }

    fn swiglu_backward(&self, dgate: &mut [f32], dup: &mut [f32], dy: &[f32], gate: &[f32], up: &[f32]) {
        Kernels::swiglu_backward(self, dgate, dup, dy, gate, up);
    }

    fn embedding_backward(&self, dw: &mut [f32], tokens: &[u32], dy: &[f32], width: usize) {
        Kernels::embedding_backward(self, dw, tokens, dy, width);
    }

    fn linear_cross_entropy(
        &self,
        shape: Linear,
        dx: &mut [f32],
        dw: &mut [f32],
        (x, w): (&[f32], &[f32]),
        targets: &[u32],
    ) -> f32 {
        Kernels::linear_cross_entropy(self, shape, dx, dw, Head { x, w, targets })
    }
}

fn add_rows(y: &mut [f32], row: &[f32]) {
    for y in y.chunks_exact_mut(row.len()) {
        y.iter_mut().zip(row).for_each(|(y, value)| *y += value);
    }
}

/// Elements of a sequence's queries, of its keys, and of its logarithms of sums.
fn lengths(shape: Attention) -> [usize; 3] {
    [shape.queries * shape.query_width(), shape.keys() * shape.key_width(), shape.queries * shape.heads]
}

fn sequence<'a>(index: usize, queries: usize, keys: usize, [q, k, v]: [&'a [f32]; 3]) -> Qkv<'a> {
    Qkv { q: &q[part(index, queries)], k: &k[part(index, keys)], v: &v[part(index, keys)] }
}

/// The stretch of sequence `index`, where each has `len` elements.
fn part(index: usize, len: usize) -> Range<usize> {
    index * len..(index + 1) * len
}
