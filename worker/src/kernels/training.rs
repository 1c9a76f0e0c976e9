//! A model that is trained, where its parameters are updated: in the memory of the backend that computes with it, or in the host's.

use super::{AdamW, Backend, Cpu, DeviceError, Kernels};
use crate::model::{Model, Tensor, Trained};
use crate::values::Values;
use std::sync::Arc;

/// A model that is trained with a backend.
pub trait Training<K: Backend>: Send {
    /// The model as it is, where passes read it.
    ///
    /// # Errors
    /// The device has no room for it, or has failed.
    fn model(&mut self, kernels: &K) -> Result<&Model<K::Weights>, DeviceError>;

    /// All of it on the host, as it is now, whatever comes.
    ///
    /// # Errors
    /// The device has failed.
    fn share(&self, kernels: &K) -> Result<Arc<Trained>, DeviceError>;

    /// Takes the sum of a step: `[parameters]`, a gradient, whatever else, and a loss at its end. Returns the sum of the squares of
    /// the gradient, and the loss.
    ///
    /// # Errors
    /// The device has failed.
    fn take(&mut self, kernels: &K, sum: Arc<Values>) -> Result<(f64, f32), DeviceError>;

    /// Updates parameters and moments with the gradient that was taken.
    ///
    /// # Errors
    /// The device has failed.
    fn update(&mut self, kernels: &K, update: AdamW) -> Result<(), DeviceError>;
}

impl AdamW {
    /// That of one tensor. Norms and biases are not matrices: pulling them to zero would only fight the layer behind them.
    pub fn of(self, tensor: &Tensor) -> AdamW {
        let weight_decay = if tensor.shape.len() == 1 { 0.0 } else { self.weight_decay };
        AdamW { weight_decay, ..self }
    }
}

/// Floats that are updated while they are in a cache from being copied.
const PIECE: usize = 1 << 14;

/// On the host. It is shared: who has it keeps it as it was, and the next update copies it only then.
pub(super) struct OnHost {
    trained: Arc<Trained>,
    sum: Arc<Values>,
}

impl OnHost {
    pub fn new(trained: Arc<Trained>) -> OnHost {
        OnHost { trained, sum: Arc::default() }
    }
}

impl<K: Kernels + 'static> Training<K> for OnHost {
    fn model(&mut self, _: &K) -> Result<&Model, DeviceError> {
        Ok(&self.trained.model)
    }

    fn share(&self, _: &K) -> Result<Arc<Trained>, DeviceError> {
        Ok(Arc::clone(&self.trained))
    }

    fn take(&mut self, kernels: &K, sum: Arc<Values>) -> Result<(f64, f32), DeviceError> {
        let values = sum.host()?;
        let squares = Kernels::sum_of_squares(kernels, &values[..self.trained.model.layout.len]);
        let loss = *values.last().expect("the loss stands last");
        self.sum = sum;
        Ok((squares, loss))
    }

    fn update(&mut self, kernels: &K, update: AdamW) -> Result<(), DeviceError> {
        let sum = std::mem::take(&mut self.sum);
        let gradient = sum.host()?;
        let old = Arc::get_mut(&mut self.trained).is_none().then(|| {
            let next = Arc::new(self.trained.like());
            std::mem::replace(&mut self.trained, next)
        });
        let next = Arc::get_mut(&mut self.trained).expect("nobody else has it");
        let Trained { model, first, second } = next;
        for tensor in &model.layout.tensors {
            let (span, update) = (tensor.span, update.of(tensor));
            let piece = if old.is_some() { PIECE } else { span.len };
            let mut own = [&mut model.weights.parameters[..], &mut first[..], &mut second[..]]
                .map(|values| span.of_mut(values).chunks_mut(piece));
            let mut old = old.as_ref().map(|old| old.vectors().map(|values| span.of(values).chunks(piece)));
            for gradient in span.of(gradient).chunks(piece) {
                let mut own = own.each_mut().map(|pieces| pieces.next().expect("as long as the gradient"));
                if let Some(old) = &mut old {
                    own.iter_mut().zip(old).for_each(|(own, old)| {
                        own.copy_from_slice(old.next().expect("as long as the gradient"));
                    });
                }
                let [parameters, first, second] = own;
                kernels.adamw(parameters, first, second, gradient, &update);
            }
        }
        Ok(())
    }
}

/// On the host, where a processor updates it, whatever computes with it: a device has the copy that passes read, made anew after each
/// update.
pub struct Offloaded<K: Backend> {
    host: OnHost,
    processor: Cpu,
    placed: Option<Model<K::Weights>>,
    /// It was updated since it was placed.
    is_new: bool,
}

impl<K: Backend> Offloaded<K> {
    /// Of a model that the host has.
    pub fn new(trained: Arc<Trained>, processor: Cpu) -> Offloaded<K> {
        Offloaded { host: OnHost::new(trained), processor, placed: None, is_new: true }
    }
}

impl<K: Backend> Training<K> for Offloaded<K> {
    fn model(&mut self, kernels: &K) -> Result<&Model<K::Weights>, DeviceError> {
        let is_new = std::mem::take(&mut self.is_new);
        kernels.place(&mut self.placed, &self.host.trained.model, is_new)
    }

    fn share(&self, _: &K) -> Result<Arc<Trained>, DeviceError> {
        self.host.share(&self.processor)
    }

    fn take(&mut self, _: &K, sum: Arc<Values>) -> Result<(f64, f32), DeviceError> {
        self.host.take(&self.processor, sum)
    }

    fn update(&mut self, _: &K, update: AdamW) -> Result<(), DeviceError> {
        self.is_new = true;
        self.host.update(&self.processor, update)
    }
}
