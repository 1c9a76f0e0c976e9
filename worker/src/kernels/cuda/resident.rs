//! A model that is trained in a card's memory, and the sums of its gradients: nothing of them comes to the host before somebody asks.

use super::card::{Card, Moment};
use super::memory::{Buffer, Slice};
use super::programs::Kind;
use super::weights::CardWeights;
use super::{Argument, Cuda, DeviceError, Element, NONE, long};
use crate::kernels::reference::PART;
use crate::kernels::{AdamW, Backend, Rope, Training};
use crate::model::{HostWeights, Model, Trained};
use crate::values::{OnDevice, Values};
use crate::vector::Vector;
use std::any::Any;
use std::sync::Arc;

/// Floats of a card that are added up. Whoever reads them waits for their last addition alone, not for the shard that is computed meanwhile.
struct Sum {
    card: Arc<Card>,
    kind: Kind,
    floats: Buffer<f32>,
    written: Moment,
}

impl Sum {
    fn new(card: Arc<Card>, kind: Kind, floats: Buffer<f32>) -> Sum {
        let written = card.moment();
        Sum { card, kind, floats, written }
    }
}

impl OnDevice for Sum {
    fn count(&self) -> usize {
        self.floats.len()
    }

    fn read(&self, to: &mut [f32]) -> Result<(), DeviceError> {
        self.card.download_of(&self.written, to, &self.floats)
    }

    fn is_written(&self) -> Result<bool, DeviceError> {
        self.written.is_past()
    }

    fn duplicate(&self) -> Box<dyn OnDevice> {
        let (card, mut floats) = (Arc::clone(&self.card), Buffer::room(&self.card, self.count()));
        card.copy(&mut floats, &self.floats);
        Box::new(Sum::new(card, self.kind, floats))
    }

    fn add(&mut self, other: &dyn OnDevice) {
        let Sum { card, kind, floats, written } = self;
        card.add(*kind, floats, floats_of(other).expect("a process has one device"));
        *written = card.moment();
    }
}

/// Where values of a card lie.
pub(super) fn floats_of(values: &dyn OnDevice) -> Option<&Slice<f32>> {
    let values: &dyn Any = values;
    values.downcast_ref().map(|sum: &Sum| &*sum.floats)
}

/// Floats of a card, to be added up with others.
pub(super) fn summand(card: &Arc<Card>, kind: Kind, floats: Buffer<f32>) -> Values {
    Values::on_device(Sum::new(Arc::clone(card), kind, floats))
}

impl<E: Element> Cuda<E> {
    /// As [`Backend::keep`].
    pub(super) fn keep_sum(&self, floats: Buffer<f32>) -> Values {
        summand(&self.card, self.kind(), floats)
    }

    /// As [`Kernels::sum_of_squares`](crate::kernels::Kernels::sum_of_squares), with the same bits.
    ///
    /// # Errors
    /// The card has failed, now or before.
    pub fn sum_of_squares(&self, x: &Slice<f32>) -> Result<f64, DeviceError> {
        let count = x.len().div_ceil(PART);
        let parts: Buffer<f64> = Buffer::room(&self.card, count);
        let (out, mut sum): (Buffer<f64>, _) = (Buffer::room(&self.card, 1), [0.0]);
        self.launch("sum_of_squares", [count, 1, 1], 256, &[(&*parts).into(), x.into(), long(x.len())]);
        self.launch("sum_doubles", [1; 3], 256, &[(&*out).into(), (&*parts).into(), long(count)]);
        self.card.download(&mut sum, &out)?;
        Ok(sum[0])
    }

    fn upload(&self, values: &[f32]) -> Result<Buffer<f32>, DeviceError> {
        let mut floats = Buffer::new(&self.card, values.len())?;
        self.card.upload(&mut floats, values);
        Ok(floats)
    }

    fn download(&self, floats: &Slice<f32>) -> Result<Vec<f32>, DeviceError> {
        let mut values = Vector::any(floats.len());
        self.card.download(&mut values, floats)?;
        Ok(values.into())
    }
}

/// Parameters in single precision, their moments, and the copy of the parameters that passes read.
pub struct Resident<E: Element> {
    model: Model<CardWeights<E>>,
    parameters: Buffer<f32>,
    first: Buffer<f32>,
    second: Buffer<f32>,
    /// The sum that was taken for the next update.
    sum: Arc<Values>,
    /// For the host's copy.
    rope: Arc<Rope>,
}

impl<E: Element> Resident<E> {
    /// Of a model that the host has.
    ///
    /// # Errors
    /// The card has no room.
    pub fn new(kernels: &Cuda<E>, trained: &Trained) -> Result<Resident<E>, DeviceError> {
        let Trained { model, first, second } = trained;
        let parameters = kernels.upload(&model.weights.parameters)?;
        let mut weights = CardWeights::new(kernels, model)?;
        weights.copy(kernels, &model.layout, &parameters);
        let state = Resident {
            model: model.with(weights),
            parameters,
            first: kernels.upload(first)?,
            second: kernels.upload(second)?,
            sum: Arc::default(),
            rope: Arc::clone(model.weights.shared_rope()),
        };
        kernels.card.check()?;
        Ok(state)
    }
}

impl<E: Element> Training<Cuda<E>> for Resident<E> {
    fn model(&mut self, _: &Cuda<E>) -> Result<&Model<CardWeights<E>>, DeviceError> {
        Ok(&self.model)
    }

    fn share(&self, kernels: &Cuda<E>) -> Result<Arc<Trained>, DeviceError> {
        let weights = HostWeights::new(kernels.download(&self.parameters)?, Arc::clone(&self.rope));
        let (first, second) = (kernels.download(&self.first)?, kernels.download(&self.second)?);
        Ok(Arc::new(Trained { model: self.model.with(weights), first, second }))
    }

    fn take(&mut self, kernels: &Cuda<E>, sum: Arc<Values>) -> Result<(f64, f32), DeviceError> {
        self.sum = match sum.device() {
            Some(_) => sum,
            None => Arc::new(kernels.keep(kernels.upload(sum.host()?)?)),
        };
        let floats = taken(&self.sum);
        let (squares, last) = (kernels.sum_of_squares(&floats[0..self.model.layout.len])?, floats.len() - 1);
        let loss = kernels.download(&floats[last..floats.len()])?[0];
        Ok((squares, loss))
    }

    /// Of the parameters and of the copies that passes read.
    fn update(&mut self, kernels: &Cuda<E>, update: AdamW) -> Result<(), DeviceError> {
        let sum = std::mem::take(&mut self.sum);
        let (gradient, Model { layout, weights, .. }) = (taken(&sum), &mut self.model);
        let power = i32::try_from(update.update).unwrap_or(i32::MAX);
        let correct = |beta: f32| 1.0 / (1.0 - f64::from(beta).powi(power)) as f32;
        for tensor in &layout.tensors {
            let AdamW { learning_rate, beta1, beta2, eps, weight_decay, scale, .. } = update.of(tensor);
            let (at, is_matrix) = (tensor.span.range(), tensor.shape.len() == 2);
            let copy = if is_matrix { weights.matrix_mut(&at).into() } else { NONE };
            let numbers =
                [learning_rate, beta1, beta2, eps, weight_decay, correct(beta1), correct(beta2), scale];
            let mut arguments: Vec<Argument> = vec![
                (&mut self.parameters[at.clone()]).into(),
                (&mut self.first[at.clone()]).into(),
                (&mut self.second[at.clone()]).into(),
                (&gradient[at.clone()]).into(),
                copy,
                long(at.len()),
            ];
            arguments.extend(numbers.map(Argument::Float));
            kernels.each("adamw", at.len(), &arguments);
            if !is_matrix {
                kernels.card.copy(weights.vector_mut(&at), &self.parameters[at]);
            }
        }
        kernels.card.check()
    }
}

/// A sum that was taken.
fn taken(sum: &Values) -> &Slice<f32> {
    sum.device().and_then(floats_of).expect("it lies on this card since it was taken")
}
