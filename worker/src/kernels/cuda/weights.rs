//! The parameters of a model on a card.

use super::memory::{Buffer, Slice};
use super::{Cuda, DeviceError, Element};
use crate::kernels::{self, Cpu, Weights};
use crate::model::{HostWeights, Layout, Model};
use std::collections::BTreeMap;
use std::ops::Range;

/// Where a matrix may begin, in elements: the kernels read whole vectors, and cuBLASLt is fastest so.
const ALIGNMENT: usize = 128;

/// The angles of all positions, `[positions, D / 2]`.
pub struct CardRope {
    pub cos: Buffer<f32>,
    pub sin: Buffer<f32>,
}

/// Matrices as elements, vectors as floats.
pub struct CardWeights<E> {
    elements: Buffer<E>,
    floats: Buffer<f32>,
    /// Where a tensor begins in either, by where it begins among all parameters.
    starts: BTreeMap<usize, usize>,
    rope: CardRope,
    /// For parameters that are rounded here.
    room: Buffer<f32>,
}

impl<E: Element> CardWeights<E> {
    /// Room for a model's parameters, and its angles.
    pub fn new(kernels: &Cuda<E>, model: &Model) -> Result<CardWeights<E>, DeviceError> {
        let (mut starts, mut elements, mut floats) = (BTreeMap::new(), 0, 0);
        for tensor in &model.layout.tensors {
            let end = if tensor.shape.len() == 2 { &mut elements } else { &mut floats };
            starts.insert(tensor.span.start, *end);
            *end += tensor.span.len.next_multiple_of(ALIGNMENT);
        }
        let card = &kernels.card;
        let rope = host(&model.weights).rope();
        let (mut cos, mut sin) = (Buffer::new(card, rope.cos.len())?, Buffer::new(card, rope.sin.len())?);
        card.upload(&mut cos, &rope.cos);
        card.upload(&mut sin, &rope.sin);
        Ok(CardWeights {
            elements: Buffer::new(card, elements)?,
            floats: Buffer::new(card, floats)?,
            starts,
            rope: CardRope { cos, sin },
            room: Buffer::default(),
        })
    }

    /// Copies all parameters.
    fn fill(&mut self, kernels: &Cuda<E>, model: &Model) {
        let all = host(&model.weights);
        for tensor in &model.layout.tensors {
            let start = self.starts[&tensor.span.start];
            let to = start..start + tensor.span.len;
            match tensor.shape.len() {
                2 => {
                    let matrix = all.matrix(tensor.span.range());
                    E::place(kernels, &mut self.elements[to], matrix, &mut self.room);
                }
                _ => kernels.card.upload(&mut self.floats[to], all.vector(tensor.span.range())),
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
    fn matrix(&self, at: Range<usize>) -> &Slice<E> {
        &self.elements[self.part(&at)]
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
