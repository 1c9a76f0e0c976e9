//! Choosing the next token from its logits.

use super::grammar::Allowed;
use crate::random::Random;
use crate::tokenizer::Tokenizer;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// How a request wants its tokens chosen.
///
/// In this order: penalties and `bias` change the logits; with a temperature of 0 the likeliest token is taken; else
/// `min_p`, `top_k` and `top_p` leave some tokens, and one of them is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; 1 takes tokens as often as the model says; more evens them out.
    pub temperature: f64,
    /// Only the likeliest tokens that together have this probability are taken, above 0 and at most 1.
    pub top_p: f64,
    /// Only so many of the likeliest tokens are taken; 0: all.
    pub top_k: usize,
    /// Only tokens with at least this share of the likeliest one's probability are taken, 0 to 1.
    pub min_p: f64,
    /// Logits of tokens that are in the prompt or were said are divided by it where they are above 0, and multiplied
    /// where they are below; above 0, and 1 changes nothing. Source: Keskar et al., "CTRL", arXiv 1909.05858,
    /// section 4.1.
    pub repetition_penalty: f64,
    /// Taken from the logits of tokens that were said.
    pub presence_penalty: f64,
    /// Taken from the logit of a token for each time that it was said.
    pub frequency_penalty: f64,
    /// Added to the logits of these tokens.
    pub bias: Vec<(u32, f32)>,
    /// The same seed takes the same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    /// The likeliest token, always.
    fn default() -> Sampling {
        Sampling {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            bias: Vec::new(),
            seed: 0,
        }
    }
}

/// A token with its probability.
#[derive(Clone, Debug, PartialEq)]
pub struct Likelihood {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability, as the model says: before penalties, bias and temperature.
    pub logprob: f64,
    /// The likeliest tokens at its place, likeliest first; of equals the lowest first.
    pub top: Vec<(u32, f64)>,
}

impl Likelihood {
    /// That of `token` by `logits`, with the `top` likeliest ones.
    pub fn of(logits: &[f32], token: u32, top: usize) -> Likelihood {
        let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - highest).exp()).sum();
        let logprob = |logit: f32| f64::from(logit - highest) - sum.ln();
        let mut all: Vec<(u32, f64)> = Vec::new();
        if 0 < top {
            all.extend((0u32..).zip(logits.iter().map(|logit| f64::from(*logit))));
            leave_likeliest(&mut all, top);
        }
        let top = all.into_iter().map(|(token, logit)| (token, logprob(logit as f32))).collect();
        Likelihood { token, logprob: logprob(logits[token as usize]), top }
    }
}

/// The choices of one request.
pub struct Sampler {
    sampling: Sampling,
    random: Random,
    /// Tokens of the prompt and said ones, with how often they were said.
    counts: BTreeMap<u32, u32>,
    /// Logits after penalties and bias.
    changed: Vec<f32>,
    /// Tokens and their weights.
    candidates: Vec<(u32, f64)>,
}

impl Sampler {
    /// The choices of a request.
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Sampler {
        let random = Random::new(sampling.seed);
        let counts = match sampling.repetition_penalty == 1.0 {
            true => BTreeMap::new(),
            false => prompt.iter().map(|token| (*token, 0)).collect(),
        };
        Sampler { sampling, random, counts, changed: Vec::new(), candidates: Vec::new() }
    }

    /// The next token, of those that are `allowed`. No padding is taken; of equally likely tokens the lowest.
    pub fn next(&mut self, tokenizer: &Tokenizer, logits: &[f32], allowed: Option<&Allowed>) -> u32 {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, ref bias, .. } =
            self.sampling;
        let counts = repetition_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0;
        let token = if counts || !bias.is_empty() {
            let mut changed = std::mem::take(&mut self.changed);
            changed.clear();
            changed.extend_from_slice(logits);
            self.change(&mut changed);
            let token = self.choose(tokenizer, &changed, allowed);
            self.changed = changed;
            token
        } else {
            self.choose(tokenizer, logits, allowed)
        };
        if counts {
            *self.counts.entry(token).or_default() += 1;
        }
        token
    }

    fn change(&self, logits: &mut [f32]) {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, ref bias, .. } =
            self.sampling;
        for (token, count) in &self.counts {
            let Some(logit) = logits.get_mut(*token as usize) else { continue };
            *logit = if 0.0 < *logit {
                *logit / repetition_penalty as f32
            } else {
                *logit * repetition_penalty as f32
            };
            if 0 < *count {
                *logit -= (presence_penalty + frequency_penalty * f64::from(*count)) as f32;
            }
        }
        for (token, bias) in bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
    }

    fn choose(&mut self, tokenizer: &Tokenizer, logits: &[f32], allowed: Option<&Allowed>) -> u32 {
        let may =
            |token: u32| tokenizer.is_sayable(token) && allowed.is_none_or(|allowed| allowed.has(token));
        let allowed = (0u32..).zip(logits).filter(|(token, _)| may(*token));
        let (mut best, mut highest) = (0, f32::NEG_INFINITY);
        for (token, &logit) in allowed.clone() {
            if highest < logit {
                (best, highest) = (token, logit);
            }
        }
        let Sampling { temperature, top_p, top_k, min_p, .. } = self.sampling;
        if temperature == 0.0 {
            return best;
        }
        let weight = |logit: f32| (f64::from(logit - highest) / temperature).exp();
        self.candidates.clear();
        let candidates = allowed.map(|(token, &logit)| (token, weight(logit)));
        self.candidates.extend(candidates.filter(|(_, weight)| min_p <= *weight));
        if 0 < top_k {
            leave_likeliest(&mut self.candidates, top_k);
        }
        if top_p < 1.0 {
            leave_mass(&mut self.candidates, top_p);
        }
        let mass: f64 = self.candidates.iter().map(|(_, weight)| weight).sum();
        let mut left = self.random.unit() * mass;
        for &(token, weight) in &self.candidates {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        best
    }
}

/// Likeliest first; of equals the lowest token first.
fn by_weight(left: &(u32, f64), right: &(u32, f64)) -> Ordering {
    right.1.total_cmp(&left.1).then(left.0.cmp(&right.0))
}

/// Leaves the `count` likeliest, in order.
fn leave_likeliest(candidates: &mut Vec<(u32, f64)>, count: usize) {
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count - 1, by_weight);
        candidates.truncate(count);
    }
    candidates.sort_unstable_by(by_weight);
}

/// Leaves the likeliest that together have the share `top_p` of all weight, in order, at least one.
///
/// Source: Holtzman et al., "The curious case of neural text degeneration", arXiv 1904.09751, section 3.1.
fn leave_mass(candidates: &mut Vec<(u32, f64)>, top_p: f64) {
    let mass = top_p * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
    // Few of many tokens have nearly all weight: not all are sorted to find them.
    let mut sorted = 0;
    let (mut sum, mut kept) = (0.0, 0);
    while sum < mass && kept < candidates.len() {
        if kept == sorted {
            let rest = &mut candidates[sorted..];
            let more = (sorted * 7).max(128).min(rest.len());
            if more < rest.len() {
                rest.select_nth_unstable_by(more - 1, by_weight);
            }
            rest[..more].sort_unstable_by(by_weight);
            sorted += more;
        }
        sum += candidates[kept].1;
        kept += 1;
    }
    candidates.truncate(kept.max(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(likely: &[(usize, f32)]) -> Vec<f32> {
        let mut logits = vec![-20.0; crate::tokenizer::VOCABULARY];
        likely.iter().for_each(|&(token, logit)| logits[token] = logit);
        logits
    }

    fn hot() -> Sampling {
        Sampling { temperature: 1.0, seed: 1, ..Sampling::default() }
    }

    fn draw(sampling: Sampling, logits: &[f32]) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, &[]);
        (0..2000).map(|_| sampler.next(&Tokenizer::bytes(), logits, None)).collect()
    }

    fn share(drawn: &[u32], token: u32) -> f64 {
        drawn.iter().filter(|&&drawn| drawn == token).count() as f64 / drawn.len() as f64
    }

    #[test]
    fn without_temperature_the_likeliest_token_is_taken_and_of_equals_the_lowest() {
        let logits = logits(&[(70, 3.0), (60, 3.0), (5, 1.0), (256, 9.0), (260, 9.0)]);
        assert!(draw(Sampling::default(), &logits).iter().all(|&token| token == 60));
    }

    #[test]
    fn tokens_come_as_often_as_their_probability_and_the_same_for_the_same_seed() {
        let logits = logits(&[(1, 3f32.ln()), (2, 0.0)]);
        let drawn = draw(hot(), &logits);
        assert!((share(&drawn, 1) - 0.75).abs() < 0.04);
        assert_eq!(drawn, draw(hot(), &logits));
        assert_ne!(drawn, draw(Sampling { seed: 2, ..hot() }, &logits));
    }

    #[test]
    fn a_small_top_p_top_k_or_a_large_min_p_leaves_the_likeliest_tokens_only() {
        let logits = logits(&[(1, 3f32.ln()), (2, 0.0), (3, -1.0)]);
        for (sampling, left) in [
            (Sampling { top_p: 0.6, ..hot() }, &[1][..]),
            (Sampling { top_p: 0.8, ..hot() }, &[1, 2]),
            (Sampling { top_k: 1, ..hot() }, &[1]),
            (Sampling { top_k: 2, ..hot() }, &[1, 2]),
            (Sampling { min_p: 0.34, ..hot() }, &[1]),
            (Sampling { min_p: 0.33, ..hot() }, &[1, 2]),
        ] {
            let mut drawn = draw(sampling.clone(), &logits);
            drawn.sort();
            drawn.dedup();
            assert_eq!(drawn, left, "{sampling:?}");
        }
    }

    #[test]
    fn the_mass_of_many_tokens_is_found_as_by_sorting_all() {
        let mut random = Random::new(3);
        let all: Vec<(u32, f64)> = (0..5000).map(|token| (token, (random.bits() % 97) as f64)).collect();
        let mut sorted = all.clone();
        sorted.sort_by(by_weight);
        for top_p in [1e-9, 0.01, 0.3, 0.9, 0.999] {
            let mass = top_p * all.iter().map(|(_, weight)| weight).sum::<f64>();
            let (mut found, mut sum) = (all.clone(), 0.0);
            leave_mass(&mut found, top_p);
            assert_eq!(found, sorted[..found.len()], "{top_p}");
            found[..found.len() - 1].iter().for_each(|(_, weight)| sum += weight);
            assert!(sum < mass && mass <= sum + found[found.len() - 1].1, "{top_p}");
        }
    }

    #[test]
    fn penalties_and_bias_change_what_is_likeliest() {
        let logits = logits(&[(1, 2.0), (2, 1.5), (3, 0.9), (4, -1.0)]);
        let said = |sampling: Sampling, prompt: &[u32]| -> Vec<u32> {
            let mut sampler = Sampler::new(sampling, prompt);
            (0..4).map(|_| sampler.next(&Tokenizer::bytes(), &logits, None)).collect()
        };
        let plain = Sampling::default;
        assert_eq!(said(Sampling { presence_penalty: 1.0, ..plain() }, &[]), [1, 2, 1, 1]);
        assert_eq!(said(Sampling { frequency_penalty: 0.7, ..plain() }, &[]), [1, 2, 1, 3]);
        assert_eq!(said(Sampling { repetition_penalty: 2.5, ..plain() }, &[1]), [2, 3, 1, 1]);
        assert_eq!(said(Sampling { bias: vec![(4, 9.0), (1, -9.0)], ..plain() }, &[]), [4; 4]);
    }

    #[test]
    fn likelihoods_are_those_of_the_model() {
        let logits = [0.0, 2f32.ln(), 5f32.ln(), 0.0];
        let Likelihood { token, logprob, top } = Likelihood::of(&logits, 1, 3);
        let near = |left: f64, probability: f64| (left.exp() - probability).abs() < 1e-6;
        assert!(token == 1 && near(logprob, 2.0 / 9.0));
        assert_eq!(top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [2, 1, 0]);
        assert!(near(top[0].1, 5.0 / 9.0) && near(top[2].1, 1.0 / 9.0));
        assert!(Likelihood::of(&logits, 1, 0).top.is_empty());
    }
}
