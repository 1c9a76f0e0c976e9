//! The parameters of a model that is only read, in less than single precision.

use super::{Layout, Span, Tensor};
use crate::kernels::{Bf16, GROUP, Int8, Precision, Weight, quantise, round_all};
use crate::mapping::in_large_pages;
use std::collections::BTreeMap;
use std::ops::Range;

/// Elements of a matrix that are in single precision at a time, at least a row.
const PART: usize = 1 << 20;

/// Matrices and vectors.
pub struct Compact {
    matrices: Matrices,
    /// By where their spans start: these are few and stay as they were.
    vectors: BTreeMap<usize, Vec<f32>>,
}

/// All matrices, in the order of the layout.
enum Matrices {
    Bf16(Vec<Bf16>),
    Int8 {
        values: Vec<i8>,
        scales: Vec<f32>,
        /// Where the scales of a matrix start, by where its span starts.
        starts: BTreeMap<usize, usize>,
    },
}

impl Compact {
    /// Reads all tensors, see [`Model::read`](super::Model::read).
    ///
    /// # Errors
    /// The first one of `read`.
    pub fn read<E>(
        layout: &Layout,
        precision: Precision,
        mut read: impl FnMut(&Tensor, Range<usize>, &mut [f32]) -> Result<(), E>,
    ) -> Result<Compact, E> {
        let (mut matrices, mut vectors) = (Matrices::new(layout, precision), BTreeMap::new());
        let mut buffer = Vec::new();
        for tensor in &layout.tensors {
            let &[rows, columns] = tensor.shape.as_slice() else {
                let mut values = vec![0.0; tensor.span.len];
                read(tensor, 0..tensor.span.len, &mut values)?;
                vectors.insert(tensor.span.start, values);
                continue;
            };
            let at_once = (PART / columns).max(1);
            for first in (0..rows).step_by(at_once) {
                let last = rows.min(first + at_once);
                buffer.resize((last - first) * columns, 0.0);
                read(tensor, first * columns..last * columns, &mut buffer)?;
                matrices.put(tensor.span, first, columns, &buffer);
            }
        }
        Ok(Compact { matrices, vectors })
    }

    /// The matrix that begins where `part` does.
    pub fn matrix(&self, part: Range<usize>) -> Weight<'_> {
        let start = part.start;
        match &self.matrices {
            Matrices::Bf16(all) => Weight::Bf16(&all[part]),
            Matrices::Int8 { values, scales, starts } => {
                Weight::Int8(Int8 { values: &values[part], scales: &scales[starts[&start]..] })
            }
        }
    }

    /// The vector that begins there.
    pub fn vector(&self, start: usize) -> &[f32] {
        &self.vectors[&start]
    }
}

impl Matrices {
    /// Room for all.
    fn new(layout: &Layout, precision: Precision) -> Matrices {
        if precision != Precision::Int8 {
            return Matrices::Bf16(in_large_pages(layout.len, Bf16::default()));
        }
        let (mut starts, mut len) = (BTreeMap::new(), 0);
        for tensor in &layout.tensors {
            if let &[rows, columns] = tensor.shape.as_slice() {
                starts.insert(tensor.span.start, len);
                len += rows * columns.div_ceil(GROUP);
            }
        }
        Matrices::Int8 { values: in_large_pages(layout.len, 0), scales: in_large_pages(len, 0.0), starts }
    }

    /// Puts rows of the matrix of `span`, from `first` on.
    fn put(&mut self, span: Span, first: usize, columns: usize, rows: &[f32]) {
        let at = span.start + first * columns;
        match self {
            Matrices::Bf16(all) => round_all(&mut all[at..at + rows.len()], rows),
            Matrices::Int8 { values, scales, starts } => {
                let groups = columns.div_ceil(GROUP);
                let values = values[at..].chunks_exact_mut(columns);
                let scales = scales[starts[&span.start] + first * groups..].chunks_exact_mut(groups);
                for ((values, scales), row) in values.zip(scales).zip(rows.chunks_exact(columns)) {
                    quantise(values, scales, row);
                }
            }
        }
    }
}
