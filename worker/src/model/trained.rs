//! What a training has: a model, and AdamW's moments of its parameters.

use super::Model;
use crate::vector::Vector;

/// A model that is trained, on the host.
pub struct Trained {
    /// The model.
    pub model: Model,
    /// AdamW's first moment of every parameter.
    pub first: Vec<f32>,
    /// AdamW's second moment of every parameter.
    pub second: Vec<f32>,
}

impl Trained {
    /// Before the first update.
    pub fn new(model: Model) -> Trained {
        let [first, second] = [(); 2].map(|()| Vector::zeros(model.layout.len).into());
        Trained { model, first, second }
    }

    /// Its vectors: parameters, first and second moments.
    pub fn vectors(&self) -> [&[f32]; 3] {
        [&self.model.weights.parameters, &self.first, &self.second]
    }

    /// One of the same shape, of any values.
    pub fn like(&self) -> Trained {
        let any = || Vec::from(Vector::any(self.model.layout.len));
        Trained { model: self.model.like(any()), first: any(), second: any() }
    }
}

impl Clone for Trained {
    fn clone(&self) -> Trained {
        let mut copy = self.like();
        let Trained { model, first, second } = &mut copy;
        for (to, from) in [&mut model.weights.parameters, first, second].into_iter().zip(self.vectors()) {
            to.copy_from_slice(from);
        }
        copy
    }
}

impl Drop for Trained {
    /// The next one may have the memory.
    fn drop(&mut self) {
        for values in [&mut self.model.weights.parameters, &mut self.first, &mut self.second] {
            drop(Vector::from(std::mem::take(values)));
        }
    }
}
