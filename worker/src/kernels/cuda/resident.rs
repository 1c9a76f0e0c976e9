//! The state of a training that stays on a card: what a step costs where nothing of it comes to the host.

use super::memory::Buffer;
use super::weights::CardWeights;
use super::{Argument, Cuda, DeviceError, Element, NONE, long};
use crate::kernels::AdamW;
use crate::model::Model;

/// Parameters in single precision, their moments, and a gradient.
pub struct Resident {
    parameters: Buffer<f32>,
    first: Buffer<f32>,
    second: Buffer<f32>,
    /// In the order of the layout.
    pub gradient: Buffer<f32>,
}

impl Resident {
    /// The state before the first step of a model that the host has.
    ///
    /// # Errors
    /// The card has no room.
    pub fn new<E: Element>(kernels: &Cuda<E>, model: &Model) -> Result<Resident, DeviceError> {
        let (card, len) = (&kernels.card, model.layout.len);
        let room = || Buffer::new(card, len);
        let mut state = Resident { parameters: room()?, first: room()?, second: room()?, gradient: room()? };
        card.upload(&mut state.parameters, &model.weights.parameters);
        card.zero(&mut state.first);
        card.zero(&mut state.second);
        state.clear(kernels);
        card.check()?;
        Ok(state)
    }

    /// Begins a gradient.
    pub fn clear<E: Element>(&mut self, kernels: &Cuda<E>) {
        kernels.card.zero(&mut self.gradient);
    }

    /// One AdamW update with the gradient as it is, of the parameters and of the copies that passes read.
    pub fn update<E: Element>(
        &mut self,
        kernels: &Cuda<E>,
        model: &mut Model<CardWeights<E>>,
        update: &AdamW,
    ) {
        let AdamW { learning_rate, beta1, beta2, eps, weight_decay, .. } = *update;
        let power = i32::try_from(update.update).unwrap_or(i32::MAX);
        let correct = |beta: f32| 1.0 / (1.0 - f64::from(beta).powi(power)) as f32;
        for tensor in &model.layout.tensors {
            let at = tensor.span.range();
            let is_matrix = tensor.shape.len() == 2;
            let copy = if is_matrix { model.weights.matrix_mut(&at).into() } else { NONE };
            let numbers =
                [learning_rate, beta1, beta2, eps, weight_decay, correct(beta1), correct(beta2), 1.0];
            let mut arguments: Vec<Argument> = vec![
                (&mut self.parameters[at.clone()]).into(),
                (&mut self.first[at.clone()]).into(),
                (&mut self.second[at.clone()]).into(),
                (&self.gradient[at.clone()]).into(),
                copy,
                long(at.len()),
            ];
            arguments.extend(numbers.map(Argument::Float));
            kernels.each("adamw", at.len(), &arguments);
            if !is_matrix {
                kernels.card.copy(model.weights.vector_mut(&at), &self.parameters[at]);
            }
        }
    }
}
