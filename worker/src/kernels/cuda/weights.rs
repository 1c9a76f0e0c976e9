//! The parameters of a model on a card.

use super::memory::{Buffer, Slice};
use super::{Cuda, DeviceError, Element};
use crate::kernels::{self, Cpu, GROUP, Int8, Weight, Weights};
use crate::model::{HostWeights, Layout, Model};
use std::collections::BTreeMap;
use std::ops::Range;

/// Where a matrix may begin, in elements: the kernels read whole vectors, and cuBLASLt is fastest so.
const ALIGNMENT: usize = 128;

/// Rows of a matrix of 8-bit integers that are widened at a time: enough for a product that keeps a card busy.
pub const WIDENED: usize = 4096;

/// The angles of all positions, `[positions, D / 2]`.
pub struct CardRope {
    pub cos: Buffer<f32>,
    pub sin: Buffer<f32>,
}

/// A matrix of a model.
pub enum CardWeight<'a, E> {
    /// As products of many rows read it.
    Elements(&'a Slice<E>),
    /// In a quarter of the memory of floats.
    Bytes(Bytes<'a, E>),
}

impl<'a, E> From<&'a Slice<E>> for CardWeight<'a, E> {
    fn from(elements: &'a Slice<E>) -> Self {
        CardWeight::Elements(elements)
    }
}

/// A matrix of 8-bit integers with a scale for every group, as [`Int8`] has it.
pub struct Bytes<'a, E> {
    /// `[rows, columns]`.
    pub values: &'a Slice<i8>,
    /// `[rows, groups]`.
    pub scales: &'a Slice<f32>,
    /// For [`WIDENED`] of its rows, as elements. All matrices share it: what is queued is in order.
    pub room: &'a Slice<E>,
}

impl<E> Clone for CardWeight<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for CardWeight<'_, E> {}

impl<E> Clone for Bytes<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Bytes<'_, E> {}

/// Matrices as elements or as bytes, vectors as floats.
pub struct CardWeights<E> {
    /// All matrices, or the room where bytes are widened.
    elements: Buffer<E>,
    /// All matrices, if they are bytes.
    bytes: Buffer<i8>,
    floats: Buffer<f32>,
    /// Where a tensor begins among the elements, the bytes or the floats, by where it begins among all parameters.
    starts: BTreeMap<usize, usize>,
    /// Where the scales of bytes are among the floats.
    scales: BTreeMap<usize, Range<usize>>,
    rope: CardRope,
    /// For parameters that are rounded here.
    room: Buffer<f32>,
}

impl<E: Element> CardWeights<E> {
    /// Room for a model's parameters, and its angles.
    pub fn new(kernels: &Cuda<E>, model: &Model) -> Result<CardWeights<E>, DeviceError> {
        let (mut starts, mut scales) = (BTreeMap::new(), BTreeMap::new());
        let (mut elements, mut bytes, mut floats, mut widened) = (0, 0, 0, 0);
        let all = host(&model.weights);
        for tensor in &model.layout.tensors {
            let add = |end: &mut usize, len: usize| {
                let start = *end;
                *end += len.next_multiple_of(ALIGNMENT);
                start..start + len
            };
            let end = match tensor.shape[..] {
                [rows, columns] if matches!(all.matrix(tensor.span.range()), Weight::Int8(_)) => {
                    let own = add(&mut floats, rows * columns.div_ceil(GROUP));
                    scales.insert(tensor.span.start, own);
                    widened = widened.max(rows.min(WIDENED) * columns);
                    &mut bytes
                }
                [_, _] => &mut elements,
                _ => &mut floats,
            };
            starts.insert(tensor.span.start, add(end, tensor.span.len).start);
        }
        let card = &kernels.card;
        let rope = all.rope();
        let (mut cos, mut sin) = (Buffer::new(card, rope.cos.len())?, Buffer::new(card, rope.sin.len())?);
        card.upload(&mut cos, &rope.cos);
        card.upload(&mut sin, &rope.sin);
        Ok(CardWeights {
            elements: Buffer::new(card, elements.max(widened))?,
            bytes: Buffer::new(card, bytes)?,
            floats: Buffer::new(card, floats)?,
            starts,
            scales,
            rope: CardRope { cos, sin },
            room: Buffer::default(),
        })
    }

    /// Copies all parameters.
    fn fill(&mut self, kernels: &Cuda<E>, model: &Model) {
        let all = host(&model.weights);
        for tensor in &model.layout.tensors {
            let to = self.part(&tensor.span.range());
            if tensor.shape.len() != 2 {
                kernels.card.upload(&mut self.floats[to], all.vector(tensor.span.range()));
                continue;
            }
            match all.matrix(tensor.span.range()) {
                Weight::Int8(Int8 { values, scales }) => {
                    let own = self.scales[&tensor.span.start].clone();
                    kernels.card.upload(&mut self.bytes[to], values);
                    kernels.card.upload(&mut self.floats[own.clone()], &scales[..own.len()]);
                }
                matrix => E::place(kernels, &mut self.elements[to], matrix, &mut self.room),
            }
        }
    }

    /// Copies all parameters that the card has in single precision, `[parameters]`.
    pub fn copy(&mut self, kernels: &Cuda<E>, layout: &Layout, parameters: &Slice<f32>) {
        for tensor in &layout.tensors {
            let at = tensor.span.range();
            match tensor.shape.len() {
                2 => kernels.round(self.matrix_mut(&at), &parameters[at]),
                _ => kernels.card.copy(self.vector_mut(&at), &parameters[at]),
            }
        }
    }

    /// The copy of a matrix that passes read.
    pub fn matrix_mut(&mut self, at: &Range<usize>) -> &mut Slice<E> {
        let part = self.part(at);
        &mut self.elements[part]
    }

    /// The copy of a vector that passes read.
    pub fn vector_mut(&mut self, at: &Range<usize>) -> &mut Slice<f32> {
        let part = self.part(at);
        &mut self.floats[part]
    }

    fn part(&self, at: &Range<usize>) -> Range<usize> {
        let start = self.starts[&at.start];
        start..start + at.len()
    }
}

/// As processors read them.
fn host(weights: &HostWeights) -> &dyn Weights<Cpu> {
    weights
}

/// The model with its parameters on the card; in `held`, where it was before.
pub fn place<'a, E: Element>(
    kernels: &Cuda<E>,
    held: &'a mut Option<Model<CardWeights<E>>>,
    model: &Model,
    new: bool,
) -> Result<&'a Model<CardWeights<E>>, DeviceError> {
    let (placed, new) = match held.take() {
        Some(placed) => (placed, new),
        None => {
            let weights = CardWeights::new(kernels, model)?;
            (model.with(weights), true)
        }
    };
    let placed = held.insert(placed);
    if new {
        placed.weights.fill(kernels, model);
    }
    kernels.card.check()?;
    Ok(placed)
}

/// As [`place`], once: what it needed for it is given back.
pub fn adopt<E: Element>(kernels: &Cuda<E>, model: &Model) -> Result<Model<CardWeights<E>>, DeviceError> {
    let mut held = None;
    place(kernels, &mut held, model, true)?;
    let mut placed = held.expect("it was placed there");
    placed.weights.room = Buffer::default();
    kernels.card.finish()?;
    kernels.card.trim();
    Ok(placed)
}

impl<E: Element> kernels::Weights<Cuda<E>> for CardWeights<E> {
    fn matrix(&self, at: Range<usize>) -> CardWeight<'_, E> {
        let part = self.part(&at);
        match self.scales.get(&at.start) {
            None => CardWeight::Elements(&self.elements[part]),
            Some(scales) => CardWeight::Bytes(Bytes {
                values: &self.bytes[part],
                scales: &self.floats[scales.clone()],
                room: &self.elements,
            }),
        }
    }

    fn elements(&self, at: Range<usize>) -> &Slice<E> {
        &self.elements[self.part(&at)]
    }

    fn vector(&self, at: Range<usize>) -> &Slice<f32> {
        &self.floats[self.part(&at)]
    }

    fn rope(&self) -> &CardRope {
        &self.rope
    }
}
