//! The parameters of a model that is only read, in less than single precision.

use super::{Layout, Span, Tensor};
use crate::kernels::{Bf16, GROUP, Int8, Precision, Weight, quantise, round_all};
use std::collections::BTreeMap;
use std::ops::Range;

/// Elements of a matrix that are in single precision at a time, at least a row.
const PART: usize = 1 << 20;

/// Matrices and vectors, by where their spans start.
pub struct Compact {
    matrices: BTreeMap<usize, Matrix>,
    /// These are few and stay as they were.
    vectors: BTreeMap<usize, Vec<f32>>,
}

enum Matrix {
    Bf16(Vec<Bf16>),
    Int8 { values: Vec<i8>, scales: Vec<f32> },
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
        let mut compact = Compact { matrices: BTreeMap::new(), vectors: BTreeMap::new() };
        let mut buffer = Vec::new();
        for tensor in &layout.tensors {
            let &[rows, columns] = tensor.shape.as_slice() else {
                let mut values = vec![0.0; tensor.span.len];
                read(tensor, 0..tensor.span.len, &mut values)?;
                compact.vectors.insert(tensor.span.start, values);
                continue;
            };
            let mut matrix = Matrix::new(precision, rows, columns);
            let at_once = (PART / columns).max(1);
            for first in (0..rows).step_by(at_once) {
                let last = rows.min(first + at_once);
                buffer.resize((last - first) * columns, 0.0);
                read(tensor, first * columns..last * columns, &mut buffer)?;
                matrix.put(first, columns, &buffer);
            }
            compact.matrices.insert(tensor.span.start, matrix);
        }
        Ok(compact)
    }

    /// The matrix of `span`.
    pub fn matrix(&self, span: Span) -> Weight<'_> {
        match &self.matrices[&span.start] {
            Matrix::Bf16(values) => Weight::Bf16(values),
            Matrix::Int8 { values, scales } => Weight::Int8(Int8 { values, scales }),
        }
    }

    /// The vector of `span`.
    pub fn vector(&self, span: Span) -> &[f32] {
        &self.vectors[&span.start]
    }
}

impl Matrix {
    fn new(precision: Precision, rows: usize, columns: usize) -> Matrix {
        match precision {
            Precision::F32 | Precision::Bf16 => Matrix::Bf16(vec![Bf16::default(); rows * columns]),
            Precision::Int8 => Matrix::Int8 {
                values: vec![0; rows * columns],
                scales: vec![0.0; rows * columns.div_ceil(GROUP)],
            },
        }
    }

    /// Puts rows from `first` on.
    fn put(&mut self, first: usize, columns: usize, rows: &[f32]) {
        match self {
            Matrix::Bf16(all) => round_all(&mut all[first * columns..][..rows.len()], rows),
            Matrix::Int8 { values, scales } => {
                let groups = columns.div_ceil(GROUP);
                let values = values[first * columns..].chunks_exact_mut(columns);
                let scales = scales[first * groups..].chunks_exact_mut(groups);
                for ((values, scales), row) in values.zip(scales).zip(rows.chunks_exact(columns)) {
                    quantise(values, scales, row);
                }
            }
        }
    }
}
