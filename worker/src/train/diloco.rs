//! Steps with little communication: rounds, in which a shard is a replica.
//!
//! A replica begins with the parameters of the state, takes `inner_steps` steps with AdamW by itself, and gives how far it went.
//! The mean over all replicas, whose number has nothing to do with that of the members, is the gradient of an outer
//! step, of SGD with Nesterov's momentum. AdamW's moments begin at zero in every round: so what a replica gives is a function of (seed,
//! round, replica) and the state, as the gradient of a shard is, and everything else is the same.
//!
//! Source: Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", arXiv 2311.08105,
//! algorithm 1; the rates are those of its section 3.

use super::engine::{Desk, adamw, samples, shorten, update};
use super::learning_rate;
use crate::checkpoint::{Settings, TrainingState};
use crate::data::Dataset;
use crate::kernels::{Backend, DeviceError, Kernels};
use crate::model::training::Sample;
use crate::vector::Vector;
use std::sync::atomic::{AtomicU64, Ordering};

const OUTER_RATE: f32 = 0.7;
const OUTER_MOMENTUM: f32 = 0.9;

/// What replicas of a round begin with.
#[derive(Clone, Copy)]
pub(super) struct Round<'a> {
    pub state: &'a TrainingState,
    pub settings: &'a Settings,
    pub data: &'a Dataset,
    /// Steps of the newest state.
    pub newest: &'a AtomicU64,
}

impl Round<'_> {
    /// How far a replica went, `[parameters]`, start less end, and behind it its mean loss; `None` if nobody needs it any more.
    pub fn replica<K: Backend>(
        self,
        number: usize,
        desk: &mut Desk<K>,
    ) -> Result<Option<Vector>, DeviceError> {
        let Round { state, settings, data, newest } = self;
        let (start, len) = (&state.model.weights.parameters, state.model.layout.len);
        let mut model = state.model.like(start.clone());
        let [mut first, mut second, mut gradient, mut part] = [(); 4].map(|()| vec![0.0; len]);
        let sequences = settings.batch / settings.replicas;
        let passes = sequences / settings.micro_batch;
        let mut losses = 0.0;
        for own in 0..settings.inner_steps {
            if state.record.step < newest.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let step = state.record.step * settings.inner_steps + own;
            let from = step * settings.batch as u64 + (number * sequences) as u64;
            gradient.fill(0.0);
            for pass in 0..passes {
                let (tokens, targets) = samples(data, settings, from + (pass * settings.micro_batch) as u64);
                let sample = Sample { tokens: &tokens, targets: &targets, length: settings.context };
                part.fill(0.0);
                losses += f64::from(desk.learn(&model, None, &sample, &mut part)?);
                gradient.iter_mut().zip(&part).for_each(|(sum, part)| *sum += part);
            }
            let norm = desk.host.sum_of_squares(&gradient).sqrt() as f32 / passes as f32;
            let scale = shorten(settings, norm) / passes as f32;
            gradient.iter_mut().for_each(|value| *value *= scale);
            let update = update(settings, learning_rate(settings, step), own + 1);
            adamw(&desk.host, &mut model, [&mut first, &mut second], None, &gradient, update);
        }
        let mut went = Vector::any(len + 1);
        let (loss, way) = went.split_last_mut().expect("the loss stands last");
        *loss = (losses / (settings.inner_steps * passes as u64) as f64) as f32;
        let ends = start.iter().zip(&model.weights.parameters);
        way.iter_mut().zip(ends).for_each(|(way, (start, end))| *way = start - end);
        Ok(Some(went))
    }
}

/// An outer step: `m = 0.9 m + d; p -= 0.7 (d + 0.9 m)`, `d` the mean of what `replicas` went, whose sum is `sum`.
pub(super) fn outer_step(parameters: &mut [f32], momentum: &mut [f32], sum: &[f32], replicas: f32) {
    for ((parameter, momentum), sum) in parameters.iter_mut().zip(momentum).zip(sum) {
        let way = sum / replicas;
        *momentum = OUTER_MOMENTUM * *momentum + way;
        *parameter -= OUTER_RATE * (way + OUTER_MOMENTUM * *momentum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_steps_are_those_of_sgd_with_nesterovs_momentum() {
        // As torch.optim.SGD([p], lr=0.7, momentum=0.9, nesterov=True) has them, gradients 1 and 0.5.
        let (mut parameters, mut momentum) = ([1.0], [0.0]);
        outer_step(&mut parameters, &mut momentum, &[4.0], 4.0);
        assert!((parameters[0] - -0.33).abs() < 1e-6, "{parameters:?}");
        outer_step(&mut parameters, &mut momentum, &[2.0], 4.0);
        assert!((parameters[0] - -1.562).abs() < 1e-6, "{parameters:?}");
    }
}
