//! Steps with little communication: rounds, in which a shard is a replica.
//!
//! A replica begins with the parameters and AdamW's moments of the state, takes `inner_steps` steps by itself, and gives how far it
//! went, and its second moments in few numbers ([`factors`]). The parameters go as far as the mean over all replicas, whose number has nothing to
//! do with that of the members; the moments of the next round follow from what they gave. So what a replica gives is a function of (seed, round,
//! replica) and the state, as the gradient of a shard is, and everything else is the same.
//!
//! Source of rounds: Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", arXiv 2311.08105, algorithm
//! 1, with the mean in place of its outer optimizer.

use super::engine::{Desk, Plan, samples, shorten, update};
use super::factors;
use super::{BETA1, BETA2, EPS, learning_rate};
use crate::checkpoint::Settings;
use crate::elastic::Computed;
use crate::kernels::{Backend, DeviceError};
use crate::model::training::Sample;
use crate::model::{Layout, Trained};
use crate::vector::Vector;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What replicas of a round begin with.
#[derive(Clone, Copy)]
pub(super) struct Round<'a> {
    pub plan: &'a Plan,
    pub start: &'a Arc<Trained>,
    /// Rounds that are done.
    pub number: u64,
}

impl Round<'_> {
    /// How far a replica went, `[parameters]`, start less end, behind it what stands for its second moments, and its mean loss; `None` if
    /// nobody needs it any more.
    pub fn replica<K: Backend>(
        self,
        replica: usize,
        desk: &mut Desk<K>,
    ) -> Result<Option<Computed>, DeviceError> {
        let Round { plan, start, number } = self;
        let Plan { settings, data, newest, .. } = plan;
        let layout = &start.model.layout;
        let mut own = plan.train(&desk.kernels, Arc::clone(start), false)?;
        let sequences = settings.batch / settings.replicas;
        let passes = sequences / settings.micro_batch;
        let mut losses = 0.0;
        for step in number * settings.inner_steps..(number + 1) * settings.inner_steps {
            if number < newest.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let from = step * settings.batch as u64 + (replica * sequences) as u64;
            let mut gradient = desk.zeros(layout);
            for pass in 0..passes {
                let (tokens, targets) = samples(data, settings, from + (pass * settings.micro_batch) as u64);
                let sample = Sample { tokens: &tokens, targets: &targets, length: settings.context };
                let mut part = desk.zeros(layout);
                losses += f64::from(desk.learn(own.model(&desk.kernels)?, sample, &mut part));
                desk.kernels.add(&mut gradient, &part);
            }
            let gradient = Arc::new(plan.keep(&desk.kernels, gradient)?);
            let (squares, _) = own.take(&desk.kernels, gradient)?;
            let scale = shorten(settings, squares.sqrt() as f32 / passes as f32) / passes as f32;
            own.update(&desk.kernels, update(settings, learning_rate(settings, step), step + 1, scale))?;
        }
        let end = own.share(&desk.kernels)?;
        let mut went = Vector::any(floats(layout) + 1);
        let (loss, way) = went.split_last_mut().expect("the loss stands last");
        *loss = (losses / (settings.inner_steps * passes as u64) as f64) as f32;
        let (way, squares) = way.split_at_mut(layout.len);
        factors::write(layout, &end.second, squares);
        let [start, end] = [start, &end].map(|trained| &trained.model.weights.parameters);
        way.iter_mut().zip(start.iter().zip(end)).for_each(|(way, (start, end))| *way = start - end);
        Ok(Some(Computed::new(replica, went.into())))
    }
}

/// Floats that a replica gives, its loss aside.
pub(super) fn floats(layout: &Layout) -> usize {
    layout.len + factors::len(layout)
}

/// Ends a round, after `number` others, with the sum of what all replicas gave: the parameters go as far as their mean, and replicas of the
/// next round begin with the mean of the second moments, and with the first moments that these ways tell of.
pub(super) fn end(trained: &mut Trained, settings: &Settings, number: u64, sum: &[f32]) {
    let Trained { model, first, second } = trained;
    let replicas = settings.replicas as f32;
    let (ways, squares) = sum.split_at(model.layout.len);
    factors::read(&model.layout, squares, replicas, second);
    let Momentum { rates, kept, gain } = Momentum::after(settings, number);
    let steps = (number + 1) * settings.inner_steps;
    let correct = 1.0 / (1.0 - power(BETA2, steps)) as f32;
    for tensor in &model.layout.tensors {
        let decay = if tensor.shape.len() == 1 { 0.0 } else { rates * settings.weight_decay };
        let moments = tensor.span.of_mut(first).iter_mut().zip(tensor.span.of(second));
        let ways = tensor.span.of(ways).iter();
        for ((parameter, (first, second)), way) in
            tensor.span.of_mut(&mut model.weights.parameters).iter_mut().zip(moments).zip(ways)
        {
            let way = way / replicas;
            let driven = (way - decay * *parameter) * ((second * correct).sqrt() + EPS);
            *first = kept * *first + gain * driven;
            *parameter -= way;
        }
    }
}

/// What the first moments `m` become in a round whose steps, each with the rate `r` and the correction `c = 1 / (1 - b^t)` of AdamW, go `s = sum r c m` in
/// all, before they are divided by the roots of the second ones. If the gradient `g` is the same in all of them, `m` is `b^i m + (1 - b^i) g` after
/// `i` of the `H` steps. That gives `g` from `s`, and with it the last `m`, as `kept * m + gain * s`.
struct Momentum {
    /// Sum of the rates, by which the decay of the weights goes.
    rates: f32,
    kept: f32,
    gain: f32,
}

impl Momentum {
    /// Of the round that begins with the state of `round`.
    fn after(settings: &Settings, round: u64) -> Momentum {
        let (before, steps) = (round * settings.inner_steps, settings.inner_steps);
        let (mut rates, mut of_old, mut of_new) = (0.0, 0.0, 0.0);
        for own in 1..=steps {
            let rate = f64::from(learning_rate(settings, before + own - 1));
            let corrected = rate / (1.0 - power(BETA1, before + own));
            rates += rate;
            of_old += corrected * power(BETA1, own);
            of_new += corrected * (1.0 - power(BETA1, own));
        }
        let gain = (1.0 - power(BETA1, steps)) / of_new;
        Momentum {
            rates: rates as f32,
            kept: (power(BETA1, steps) - gain * of_old) as f32,
            gain: gain as f32,
        }
    }
}

fn power(base: f32, exponent: u64) -> f64 {
    f64::from(base).powi(i32::try_from(exponent).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_moments_follow_from_how_far_a_round_went() {
        let settings = Settings {
            seed: 1,
            batch: 4,
            micro_batch: 1,
            precision: Default::default(),
            context: 1,
            steps: 9,
            learning_rate: 0.01,
            warmup: 1,
            weight_decay: 0.1,
            clip: 1.0,
            inner_steps: 7,
            replicas: 4,
            keeps_moments: true,
        };
        let mut first = 0.0;
        for (round, gradient) in [3.0, -1.0, -1.0, 0.25].into_iter().enumerate() {
            let round = round as u64;
            let (began, mut went) = (first, 0.0);
            for step in round * 7..round * 7 + 7 {
                first = BETA1 * first + (1.0 - BETA1) * gradient;
                went += learning_rate(&settings, step) * first / (1.0 - power(BETA1, step + 1)) as f32;
            }
            let Momentum { kept, gain, .. } = Momentum::after(&settings, round);
            let told = kept * began + gain * went;
            assert!((told - first).abs() < 1e-5, "round {round}: {told} for {first}");
        }
    }
}
