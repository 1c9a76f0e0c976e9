//! The shape of a model, in the words of a Hugging Face `config.json` for `LlamaForCausalLM`.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Shape of a Llama decoder. The field names are those of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Always `["LlamaForCausalLM"]`.
    #[serde(default = "architectures")]
    pub architectures: Vec<String>,
    /// Always `llama`.
    pub model_type: String,
    /// Tokens, including padding up to a multiple of 8.
    pub vocab_size: usize,
    /// Length of the vector that flows from layer to layer.
    pub hidden_size: usize,
    /// Length of the vector inside the SwiGLU.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; a divisor of the query heads. As many as query heads where absent.
    #[serde(default)]
    pub num_key_value_heads: usize,
    /// Length of a head, even. `hidden_size / num_attention_heads` where absent.
    #[serde(default)]
    pub head_dim: usize,
    /// The window: the most positions that a sequence can have.
    pub max_position_embeddings: usize,
    /// Keeps the norm of a zero vector finite.
    pub rms_norm_eps: f32,
    /// Base of the rotary wavelengths.
    #[serde(default = "rope_theta")]
    pub rope_theta: f64,
    /// Whether the output layer is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Always `silu`.
    #[serde(default = "silu")]
    pub hidden_act: String,
    /// Always false.
    #[serde(default)]
    pub attention_bias: bool,
    /// Always false.
    #[serde(default)]
    pub mlp_bias: bool,
    /// Token that starts a text.
    #[serde(default)]
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text: one number or a list in the file.
    #[serde(default, with = "one_or_many")]
    pub eos_token_id: Vec<u32>,
    /// Element type of the weights that are written.
    #[serde(default = "float32")]
    pub torch_dtype: String,
}

fn architectures() -> Vec<String> {
    vec!["LlamaForCausalLM".into()]
}
fn rope_theta() -> f64 {
    10_000.0
}
fn silu() -> String {
    "silu".into()
}
fn float32() -> String {
    "float32".into()
}

/// A list that is written as a number where it has one, and as null where it is empty.
mod one_or_many {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Numbers {
        One(u32),
        Many(Vec<u32>),
    }

    pub fn serialize<S: Serializer>(numbers: &[u32], serializer: S) -> Result<S::Ok, S::Error> {
        match numbers {
            [] => serializer.serialize_none(),
            [one] => Numbers::One(*one).serialize(serializer),
            many => Numbers::Many(many.to_vec()).serialize(serializer),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
        Ok(match Option::<Numbers>::deserialize(deserializer)? {
            None => Vec::new(),
            Some(Numbers::One(one)) => vec![one],
            Some(Numbers::Many(many)) => many,
        })
    }
}

/// Why there is no model shape.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Neither a preset nor a directory.
    #[error("--model is {0:?}; it is tiny, small, medium, or a directory with a config.json")]
    Unknown(String),
    /// The file cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file is no JSON, or a field is missing.
    #[error("{}: {error}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and what.
        error: serde_json::Error,
    },
    /// A value that this worker cannot run.
    #[error("{field} is {value}; {allowed}")]
    Field {
        /// The field's name in the file.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: String,
    },
}

/// Names of the presets, smallest first.
pub const PRESETS: [&str; 3] = ["tiny", "small", "medium"];

impl ModelConfig {
    /// A preset: `tiny` has 0.8 million parameters, `small` 6.4 million, `medium` 25 million.
    pub fn preset(name: &str) -> Option<ModelConfig> {
        let (hidden, intermediate, layers, heads, kv_heads, window) = match name {
            "tiny" => (128, 384, 4, 4, 2, 1024),
            "small" => (256, 768, 8, 8, 4, 2048),
            "medium" => (512, 1536, 8, 8, 4, 2048),
            _ => return None,
        };
        Some(ModelConfig {
            architectures: architectures(),
            model_type: "llama".into(),
            vocab_size: crate::tokenizer::VOCABULARY,
            hidden_size: hidden,
            intermediate_size: intermediate,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim: hidden / heads,
            max_position_embeddings: window,
            rms_norm_eps: 1e-5,
            rope_theta: rope_theta(),
            tie_word_embeddings: true,
            hidden_act: silu(),
            attention_bias: false,
            mlp_bias: false,
            bos_token_id: Some(crate::tokenizer::BOS),
            eos_token_id: vec![crate::tokenizer::EOS],
            torch_dtype: float32(),
        })
    }

    /// Reads and checks `DIR/config.json`.
    ///
    /// # Errors
    /// Where the file is missing, is not JSON, or describes a model that this worker cannot run.
    pub fn load(directory: &Path) -> Result<ModelConfig, ConfigError> {
        let path = directory.join("config.json");
        let text = std::fs::read(&path).map_err(|error| ConfigError::Io { path: path.clone(), error })?;
        let json = |error| ConfigError::Json { path: path.clone(), error };
        let mut value: serde_json::Value = serde_json::from_slice(&text).map_err(json)?;
        ModelConfig::refuse_rope_scaling(&value)?;
        // Newer files keep the base of the wavelengths in a table of its own.
        if value.get("rope_theta").is_none() && value["rope_parameters"]["rope_theta"].is_number() {
            value["rope_theta"] = value["rope_parameters"]["rope_theta"].take();
        }
        let mut config: ModelConfig = serde_json::from_value(value).map_err(json)?;
        if config.num_key_value_heads == 0 {
            config.num_key_value_heads = config.num_attention_heads;
        }
        if config.head_dim == 0 {
            config.head_dim = config.hidden_size / config.num_attention_heads.max(1);
        }
        config.validate()?;
        Ok(config)
    }

    fn refuse_rope_scaling(value: &serde_json::Value) -> Result<(), ConfigError> {
        let scaling = &value["rope_scaling"];
        let kind = &value["rope_parameters"]["rope_type"];
        if !scaling.is_null() || !(kind.is_null() || kind == "default") {
            let value = if scaling.is_null() { kind } else { scaling };
            return Err(field("rope_scaling", value, "only plain rotary embeddings are supported"));
        }
        Ok(())
    }

    /// Checks that this worker can run the shape.
    ///
    /// # Errors
    /// Names the first field that does not fit, its value, and what it may be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.model_type != "llama" {
            return Err(field("model_type", &self.model_type, "only llama is supported"));
        }
        if self.hidden_act != "silu" {
            return Err(field("hidden_act", &self.hidden_act, "only silu is supported"));
        }
        if self.attention_bias || self.mlp_bias {
            return Err(field("attention_bias or mlp_bias", true, "only false is supported"));
        }
        let sizes = [
            ("vocab_size", self.vocab_size, 1, 1 << 24),
            ("hidden_size", self.hidden_size, 1, 1 << 16),
            ("intermediate_size", self.intermediate_size, 1, 1 << 20),
            ("num_hidden_layers", self.num_hidden_layers, 1, 1 << 10),
            ("num_attention_heads", self.num_attention_heads, 1, 1 << 12),
            ("num_key_value_heads", self.num_key_value_heads, 1, 1 << 12),
            ("head_dim", self.head_dim, 2, 1 << 12),
            ("max_position_embeddings", self.max_position_embeddings, 2, 1 << 24),
        ];
        for (name, value, least, most) in sizes {
            if !(least..=most).contains(&value) {
                return Err(field(name, value, format!("it is {least} to {most}")));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let allowed = format!("it divides num_attention_heads, {}", self.num_attention_heads);
            return Err(field("num_key_value_heads", self.num_key_value_heads, allowed));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(field("head_dim", self.head_dim, "it is even"));
        }
        if !(0.0 < self.rms_norm_eps && self.rms_norm_eps < 1.0) {
            return Err(field("rms_norm_eps", self.rms_norm_eps, "it is above 0 and below 1"));
        }
        if !(1.0 < self.rope_theta && self.rope_theta.is_finite()) {
            return Err(field("rope_theta", self.rope_theta, "it is above 1"));
        }
        Ok(())
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain fields") + "\n"
    }
}

fn field(field: &'static str, value: impl ToString, allowed: impl Into<String>) -> ConfigError {
    ConfigError::Field { field, value: value.to_string(), allowed: allowed.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_survive_their_file() {
        for name in PRESETS {
            let config = ModelConfig::preset(name).unwrap();
            config.validate().unwrap();
            assert_eq!(serde_json::from_str::<ModelConfig>(&config.to_json()).unwrap(), config);
        }
    }

    #[test]
    fn a_shape_that_does_not_fit_is_named_with_its_value() {
        let config = ModelConfig { num_key_value_heads: 3, ..ModelConfig::preset("tiny").unwrap() };
        let error = config.validate().unwrap_err().to_string();
        assert_eq!(error, "num_key_value_heads is 3; it divides num_attention_heads, 4");
    }
}
