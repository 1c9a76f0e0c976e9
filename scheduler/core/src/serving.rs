//! What a request costs on each class of devices, as long as a service keeps its promise: which class its next replica is
//! to have, and which replica it can do without. Pure, in integers.
//!
//! A replica computes prompts as fast as its devices multiply, and says tokens as fast as they read their memory: a step
//! says one token of each request that it has. So of a request with `P` tokens of a prompt and `G` of an answer
//!
//! ```text
//! time = P * prompt + G * step / concurrency
//! ```
//!
//! and the rate that keeps the promise is the least of
//!
//! * `1 / time`: the replica does nothing else;
//! * where `busy`, the part of the time that goes into prompts, stretches a step to the time between tokens:
//!   `step / (1 - busy) <= tpot`;
//! * where nine of ten prompts wait no longer than the first token may take:
//!   `P * prompt + step + ln(10) * wait <= ttft`, with the mean wait of a queue of equal prompts,
//!   `wait = P * prompt * busy / (2 * (1 - busy))`.
//!
//! What a request costs is the price of a replica over that rate. Where replicas told how long prompts and steps take,
//! that is believed; elsewhere it is projected from what they told of other classes, by the devices' figures.
//!
//! Source: Griggs et al., "Mélange: Cost Efficient Large Language Model Serving by Exploiting GPU Heterogeneity", 2024,
//! section 4, with the mean request in place of its buckets; the wait: Khintchine's of a queue M/D/1.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::autoscale::Promise;
use crate::types::DeviceClass;

/// What a replica has done since its start, or between two words of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Requests of which it said the first token.
    pub requests: u64,
    /// Tokens of prompts that it computed, without those that it still knew.
    pub prompt_tokens: u64,
    /// Time that went into these, in microseconds.
    pub prompt_us: u64,
    /// Tokens that it said.
    pub said_tokens: u64,
    /// Passes that said tokens and computed nothing of a prompt.
    pub steps: u64,
    /// Time that went into these, in microseconds.
    pub steps_us: u64,
}

/// Requests that are remembered, at most: older ones count half with every so many.
const REMEMBERED: u64 = 1024;
/// Of a class less says nothing, in steps: the first ones warm up.
const LEAST_STEPS: u64 = 16;
/// Classes that are remembered of a service, at most.
const CLASSES: usize = 64;

impl Work {
    fn each(&mut self, other: &Work, what: fn(u64, u64) -> u64) {
        let Work { requests, prompt_tokens, prompt_us, said_tokens, steps, steps_us } = *other;
        self.requests = what(self.requests, requests);
        self.prompt_tokens = what(self.prompt_tokens, prompt_tokens);
        self.prompt_us = what(self.prompt_us, prompt_us);
        self.said_tokens = what(self.said_tokens, said_tokens);
        self.steps = what(self.steps, steps);
        self.steps_us = what(self.steps_us, steps_us);
    }

    /// What was done since.
    pub fn since(mut self, before: &Work) -> Work {
        self.each(before, u64::saturating_sub);
        self
    }
}

/// What requests are like, on average.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Tokens of a prompt that are computed, at least 1.
    pub prompt_tokens: u64,
    /// Tokens of an answer, at least 1.
    pub said_tokens: u64,
}

impl Default for Mix {
    /// Where nothing is known: about what conversations are like in public traces.
    fn default() -> Mix {
        Mix { prompt_tokens: 1000, said_tokens: 200 }
    }
}

/// How fast a replica is, in nanoseconds, at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// A token of a prompt.
    pub prompt_ns: u64,
    /// A token of each request that it has.
    pub step_ns: u64,
}

/// What replicas of a service told, by their class. Soft state, bounded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    classes: BTreeMap<Arc<DeviceClass>, Work>,
}

impl Learned {
    /// A replica on a class has done this since it last told. `O(classes)`.
    pub fn add(&mut self, class: &Arc<DeviceClass>, work: &Work) {
        if !self.classes.contains_key(class) && self.classes.len() == CLASSES {
            return;
        }
        let known = self.classes.entry(class.clone()).or_default();
        known.each(work, u64::saturating_add);
        while REMEMBERED < known.requests {
            known.each(&Work::default(), |own, _| own / 2);
        }
    }

    /// What requests are like.
    pub fn mix(&self) -> Mix {
        let mut all = Work::default();
        self.classes.values().for_each(|work| all.each(work, u64::saturating_add));
        let mean = |tokens: u64| tokens.checked_div(all.requests).map(|mean| mean.max(1));
        let Mix { prompt_tokens, said_tokens } = Mix::default();
        Mix {
            prompt_tokens: mean(all.prompt_tokens).unwrap_or(prompt_tokens),
            said_tokens: mean(all.said_tokens).unwrap_or(said_tokens),
        }
    }

    /// How fast a replica was on a class; `None`: none has told enough.
    pub fn pace(&self, class: &DeviceClass) -> Option<Pace> {
        let work =
            self.classes.get(class).filter(|work| LEAST_STEPS <= work.steps && work.prompt_tokens != 0)?;
        let mean = |us: u64, of: u64| (u128::from(us) * 1000 / u128::from(of)).clamp(1, LONGEST) as u64;
        Some(Pace {
            prompt_ns: mean(work.prompt_us, work.prompt_tokens),
            step_ns: mean(work.steps_us, work.steps),
        })
    }
}

/// No token takes longer, in nanoseconds.
const LONGEST: u128 = 1 << 40;

/// What a replica would have on one class, all of its devices together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered {
    /// How fast they multiply, in millionths of the reference device, at least 1.
    pub compute_micro: u64,
    /// How fast they read their memory, in millionths of the reference device, at least 1.
    pub memory_micro: u64,
    /// What they cost for as long as they are held, in any unit, at least 1.
    pub price: u64,
    /// How fast a replica was there.
    pub pace: Option<Pace>,
}

/// A replica on one class, for one promise and one mix of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Whether it cannot keep the promise, however few the requests.
    pub misses: bool,
    /// What a request costs if it has as many as it can with the promise kept, or without where it cannot; at least 1.
    pub cost: u64,
    /// As many requests that is, in a billion seconds; at least 1.
    pub rate: u64,
    /// Whether its pace was told by replicas on that class.
    pub is_learned: bool,
}

impl Offer {
    /// By what offers are compared; the smallest is the best.
    pub fn rank(&self) -> (bool, u64) {
        (self.misses, self.cost)
    }
}

/// On the reference device (312 TFLOP/s of bf16, 2,039 GB/s), of which half and seven tenths are had: a model of eight
/// billion values of a byte. Only their ratio counts, as long as nothing was told.
const PRIOR: Pace = Pace { prompt_ns: 100_000, step_ns: 5_500_000 };

/// What each class offers. `O(classes)`.
///
/// * `value_bytes`: of a value of the model.
/// * `classes`: of those that will do.
pub fn offers(promise: &Promise, mix: Mix, value_bytes: u64, classes: &[Offered]) -> Vec<Offer> {
    let told = || classes.iter().filter_map(|it| Some((it, it.pace?)));
    let count = told().count() as u128;
    let mean =
        |of: fn(&Offered, Pace) -> u128| told().map(|(it, pace)| of(it, pace)).sum::<u128>() / count.max(1);
    // What the reference device would take for a token and a step, a million times.
    let (prompt, step) = match count {
        0 => (
            u128::from(PRIOR.prompt_ns) * 1_000_000,
            u128::from(PRIOR.step_ns) * u128::from(value_bytes) * 1_000_000,
        ),
        _ => (
            mean(|it, pace| u128::from(pace.prompt_ns) * u128::from(it.compute_micro)),
            mean(|it, pace| u128::from(pace.step_ns) * u128::from(it.memory_micro)),
        ),
    };
    let time = |work: u128, speed: u64| (work / u128::from(speed.max(1))).clamp(1, LONGEST) as u64;
    let project = |it: &Offered| Pace {
        prompt_ns: time(prompt, it.compute_micro),
        step_ns: time(step, it.memory_micro),
    };
    let offer = |it: &Offered| {
        let (most, kept) = rates(promise, mix, it.pace.unwrap_or_else(|| project(it)));
        // Before anybody told, only what classes are to each other is known.
        let kept = if count == 0 { Some(kept.unwrap_or(most)) } else { kept };
        let rate = kept.unwrap_or(most);
        let cost = u128::from(it.price) * COST / u128::from(rate);
        let cost = cost.clamp(1, u64::MAX.into()) as u64;
        Offer { misses: kept.is_none(), cost, rate, is_learned: it.pace.is_some() }
    };
    classes.iter().map(offer).collect()
}

/// Rates are of so many nanoseconds.
const BILLION_S: u128 = 1_000_000_000_000_000_000;
/// So that the price of a millionth of a device over the largest rate is not lost.
const COST: u128 = 1 << 50;

/// Requests in a billion seconds, at least 1: at most, and with the promise kept; `None`: it cannot be.
fn rates(promise: &Promise, mix: Mix, pace: Pace) -> (u64, Option<u64>) {
    let step = u128::from(pace.step_ns);
    let prompt = u128::from(mix.prompt_tokens) * u128::from(pace.prompt_ns);
    let said = u128::from(mix.said_tokens) * step / u128::from(promise.concurrency.max(1));
    let most = (BILLION_S / (prompt + said).max(1)).max(1);
    // As many prompts as take `part / of` of the time.
    let busy = |part: u128, of: u128| BILLION_S / prompt * part / of;
    let ns = |ms: u64| u128::from(ms) * 1_000_000;
    let mut kept = Some(most);
    let mut bound =
        |by: Option<u128>| kept = kept.zip(by).map(|(kept, by)| kept.min(by)).filter(|rate| *rate != 0);
    if let Some(tpot) = promise.tpot_ms.map(ns) {
        bound(tpot.checked_sub(step).map(|left| busy(left, tpot)));
    }
    if let Some(ttft) = promise.ttft_ms.map(ns) {
        // ln(10) is 2.3: of `left`, a wait of nine in ten, `busy = 2 y / (1 + 2 y)` with `y = left / (2.3 * prompt)`.
        let by = |left: u128| busy(20 * left, 23 * prompt + 20 * left);
        bound(ttft.checked_sub(prompt + step).map(by));
    }
    let whole = |rate: u128| rate.min(u64::MAX.into()) as u64;
    (whole(most), kept.map(whole))
}
