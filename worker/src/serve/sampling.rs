//! Choosing the next token from its logits.

use crate::random::Random;
use crate::tokenizer::Tokenizer;

/// How a request wants its tokens chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; 1 takes tokens as often as the model says; more evens them out.
    pub temperature: f64,
    /// Only the likeliest tokens that together have this probability are taken, above 0 and at most 1.
    pub top_p: f64,
    /// The same seed takes the same tokens.
    pub seed: u64,
}

/// The choices of one request.
pub struct Sampler {
    sampling: Sampling,
    random: Random,
    /// Tokens and their weights, likeliest first.
    candidates: Vec<(u32, f64)>,
}

impl Sampler {
    /// The choices of a request.
    pub fn new(sampling: Sampling) -> Sampler {
        Sampler { sampling, random: Random::new(sampling.seed), candidates: Vec::new() }
    }

    /// The next token. No padding is taken; of equally likely tokens the lowest.
    pub fn next(&mut self, tokenizer: &Tokenizer, logits: &[f32]) -> u32 {
        let allowed = (0u32..).zip(logits).filter(|(token, _)| tokenizer.is_sayable(*token));
        let (mut best, mut highest) = (0, f32::NEG_INFINITY);
        for (token, &logit) in allowed.clone() {
            if highest < logit {
                (best, highest) = (token, logit);
            }
        }
        if self.sampling.temperature == 0.0 {
            return best;
        }
        let weight = |logit: f32| (f64::from(logit - highest) / self.sampling.temperature).exp();
        self.candidates.clear();
        self.candidates.extend(allowed.map(|(token, &logit)| (token, weight(logit))));
        self.candidates.sort_by(|left, right| right.1.total_cmp(&left.1));
        let total: f64 = self.candidates.iter().map(|(_, weight)| weight).sum();
        let kept = self.kept(total * self.sampling.top_p);
        let mass: f64 = self.candidates[..kept].iter().map(|(_, weight)| weight).sum();
        let mut left = self.random.unit() * mass;
        for &(token, weight) in &self.candidates[..kept] {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        best
    }

    /// How many candidates are needed for `mass`, at least one.
    ///
    /// Source: Holtzman et al., "The curious case of neural text degeneration", arXiv 1904.09751, section 3.1.
    fn kept(&self, mass: f64) -> usize {
        let mut sum = 0.0;
        for (index, (_, weight)) in self.candidates.iter().enumerate() {
            sum += weight;
            if mass <= sum {
                return index + 1;
            }
        }
        self.candidates.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(likely: &[(usize, f32)]) -> Vec<f32> {
        let mut logits = vec![-20.0; crate::tokenizer::VOCABULARY];
        likely.iter().for_each(|&(token, logit)| logits[token] = logit);
        logits
    }

    fn draw(sampling: Sampling, logits: &[f32]) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling);
        (0..2000).map(|_| sampler.next(&Tokenizer::bytes(), logits)).collect()
    }

    #[test]
    fn without_temperature_the_likeliest_token_is_taken_and_of_equals_the_lowest() {
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 1 };
        let logits = logits(&[(70, 3.0), (60, 3.0), (5, 1.0), (256, 9.0), (260, 9.0)]);
        assert!(draw(sampling, &logits).iter().all(|&token| token == 60));
    }

    #[test]
    fn tokens_come_as_often_as_their_probability_and_the_same_for_the_same_seed() {
        let sampling = Sampling { temperature: 1.0, top_p: 1.0, seed: 1 };
        let logits = logits(&[(1, 3f32.ln()), (2, 0.0)]);
        let drawn = draw(sampling, &logits);
        let share = drawn.iter().filter(|&&token| token == 1).count() as f64 / 2000.0;
        assert!((share - 0.75).abs() < 0.04, "{share}");
        assert_eq!(drawn, draw(sampling, &logits));
        assert_ne!(drawn, draw(Sampling { seed: 2, ..sampling }, &logits));
    }

    #[test]
    fn a_small_top_p_leaves_the_likeliest_tokens_only() {
        let sampling = Sampling { temperature: 1.0, top_p: 0.7, seed: 1 };
        let logits = logits(&[(1, 3f32.ln()), (2, 0.0)]);
        assert!(draw(sampling, &logits).iter().all(|&token| token == 1));
    }
}
