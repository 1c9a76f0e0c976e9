//! The wavelengths of rotary positions, and how longer windows stretch them.

use super::ModelConfig;
use crate::kernels::Rope;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// How the wavelengths of a trained model are stretched for a longer window, in the words of `rope_scaling`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
#[allow(missing_docs)] // The names are the file's.
pub enum RopeScaling {
    /// All wavelengths alike. Source: Chen et al., "Extending context window of large language models via positional
    /// interpolation", arXiv 2306.15595, equation 4.
    Linear { factor: f64 },
    /// Only for positions behind the window, which are not served: as if it were not there.
    Dynamic { factor: f64 },
    /// Long ones by the factor, short ones not, and a slope between. Source: `apply_scaling` in
    /// <https://github.com/meta-llama/llama-models/blob/main/models/llama3/model.py>.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
    /// The same with a ramp over the pairs of a head, and scores that are a little larger. Source: Peng et al., "YaRN",
    /// arXiv 2309.00071, sections 3.2 to 3.4.
    Yarn(Yarn),
}

/// See [`RopeScaling::Yarn`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are the file's.
pub struct Yarn {
    pub factor: f64,
    pub original_max_position_embeddings: usize,
    #[serde(default = "fast")]
    pub beta_fast: f64,
    #[serde(default = "slow")]
    pub beta_slow: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_factor: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mscale: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mscale_all_dim: Option<f64>,
    #[serde(default = "yes")]
    pub truncate: bool,
}

fn fast() -> f64 {
    32.0
}
fn slow() -> f64 {
    1.0
}
fn yes() -> bool {
    true
}

/// The angles of all positions in the window of a model.
pub fn angles(config: &ModelConfig) -> Rope {
    let (frequencies, scale) = frequencies(config);
    Rope::with_frequencies(config.window(), &frequencies, scale)
}

/// Radians that each pair of a head turns by from one position to the next, `[D / 2]`, and what sines and cosines are
/// multiplied with.
fn frequencies(config: &ModelConfig) -> (Vec<f64>, f64) {
    let dim = config.head_dim as f64;
    let plain: Vec<f64> =
        (0..config.head_dim / 2).map(|pair| config.rope_theta.powf(-2.0 * pair as f64 / dim)).collect();
    match &config.rope_scaling {
        None | Some(RopeScaling::Dynamic { .. }) => (plain, 1.0),
        Some(RopeScaling::Linear { factor }) => (plain.iter().map(|f| f / factor).collect(), 1.0),
        &Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings,
        }) => {
            let stretched = |f: f64| {
                let turns = original_max_position_embeddings as f64 * f / (2.0 * PI);
                // 0 where a wavelength is long, 1 where it is short.
                let short = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                f * (short + (1.0 - short) / factor)
            };
            (plain.into_iter().map(stretched).collect(), 1.0)
        }
        Some(RopeScaling::Yarn(yarn)) => {
            let (low, high) = yarn.ramp(config);
            let stretched = |(pair, f): (usize, &f64)| {
                let long = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                f * (1.0 - long + long / yarn.factor)
            };
            (plain.iter().enumerate().map(stretched).collect(), yarn.scale())
        }
    }
}

impl Yarn {
    /// The pairs between which the wavelengths go from as they are to stretched.
    fn ramp(&self, config: &ModelConfig) -> (f64, f64) {
        let dim = config.head_dim as f64;
        let pair_of = |turns: f64| {
            let length = self.original_max_position_embeddings as f64 / (turns * 2.0 * PI);
            dim * length.ln() / (2.0 * config.rope_theta.ln())
        };
        let (mut low, mut high) = (pair_of(self.beta_fast), pair_of(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        (low, if low == high { high + 0.001 } else { high })
    }

    fn scale(&self) -> f64 {
        let by = |mscale: f64| if self.factor <= 1.0 { 1.0 } else { 0.1 * mscale * self.factor.ln() + 1.0 };
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(factor), ..) => factor,
            (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => by(one) / by(all),
            _ => by(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `transformers` computes them; the fixtures compare whole models.
    #[test]
    fn short_wavelengths_stay_and_long_ones_are_stretched_by_the_factor() {
        let plain =
            ModelConfig { head_dim: 64, rope_theta: 500_000.0, ..ModelConfig::preset("tiny").unwrap() };
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let scaled = ModelConfig { rope_scaling: Some(scaling), ..plain.clone() };
        let (before, after) = (frequencies(&plain).0, frequencies(&scaled).0);
        let ratios: Vec<f64> = before.iter().zip(&after).map(|(before, after)| before / after).collect();
        assert_eq!((ratios[0], ratios[31]), (1.0, 8.0));
        assert!(ratios.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(ratios.iter().any(|ratio| 1.1 < *ratio && *ratio < 7.0));
    }
}
