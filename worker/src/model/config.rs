//! The shape of a model, in the words of a Hugging Face `config.json`.

use super::RopeScaling;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The families that this worker runs: `model_type`, and the name of the class in `architectures`.
const FAMILIES: [(&str, &str); 4] = [
    ("llama", "LlamaForCausalLM"),
    ("mistral", "MistralForCausalLM"),
    ("qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
];

/// Which linear layers of a family add a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// The output of attention.
    pub o: bool,
    /// The three of the SwiGLU.
    pub mlp: bool,
}

/// Shape of a decoder of the Llama family. The field names are those of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// The class in `transformers`: that of the family.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// The family: `llama`, `mistral`, `qwen2` or `qwen3`.
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
    /// How the wavelengths are stretched for a longer window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the output layer is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Always `silu`.
    #[serde(default = "silu")]
    pub hidden_act: String,
    /// Whether the layers of attention add biases; Qwen 2 always does to queries, keys and values.
    #[serde(default)]
    pub attention_bias: bool,
    /// Whether the layers of the SwiGLU add biases; Llama only.
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
    /// What the file says besides; it is written again as it was.
    #[serde(flatten)]
    pub other: Map<String, Value>,
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
        field: String,
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
            architectures: vec![FAMILIES[0].1.into()],
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
            rope_scaling: None,
            tie_word_embeddings: true,
            hidden_act: silu(),
            attention_bias: false,
            mlp_bias: false,
            bos_token_id: Some(crate::tokenizer::BOS),
            eos_token_id: vec![crate::tokenizer::EOS],
            torch_dtype: float32(),
            other: Map::new(),
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
        let value = serde_json::from_slice(&text).map_err(json)?;
        ModelConfig::from_fields(value)?.map_err(json)
    }

    /// Reads the fields of a file. The inner error is one of a missing field, or of a wrong type.
    fn from_fields(
        mut fields: Map<String, Value>,
    ) -> Result<Result<ModelConfig, serde_json::Error>, ConfigError> {
        let family = fields.get("model_type").and_then(Value::as_str).unwrap_or("missing").to_string();
        if !FAMILIES.iter().any(|(name, _)| *name == family) {
            return Err(field(
                "model_type",
                family,
                format!("it is one of {}", FAMILIES.map(|f| f.0).join(", ")),
            ));
        }
        if let Some(quantization) = fields.get("quantization_config").filter(|value| !value.is_null()) {
            let kind = quantization["quant_method"].as_str().unwrap_or("of an unknown kind");
            return Err(field(
                "quantization_config",
                kind,
                "weights are F32, BF16 or F16; --precision rounds them",
            ));
        }
        let scaling = rope(&mut fields)?;
        // Null means absent, except where it means that there is no sliding window.
        fields.retain(|name, value| !value.is_null() || name == "sliding_window");
        fields.extend(scaling);
        // What the classes of `transformers` take where the file says nothing.
        match family.as_str() {
            "mistral" => drop(fields.entry("sliding_window").or_insert(4096.into())),
            "qwen3" => drop(fields.entry("head_dim").or_insert(128.into())),
            _ => (),
        }
        // Whatever the elements of the file are, those that this worker writes are single precision.
        fields.remove("dtype");
        fields.insert("torch_dtype".into(), float32().into());
        let mut config: ModelConfig = match serde_json::from_value(Value::Object(fields)) {
            Ok(config) => config,
            Err(error) => return Ok(Err(error)),
        };
        if config.num_key_value_heads == 0 {
            config.num_key_value_heads = config.num_attention_heads;
        }
        if config.head_dim == 0 {
            config.head_dim = config.hidden_size / config.num_attention_heads.max(1);
        }
        config.validate()?;
        Ok(Ok(config))
    }

    /// The most positions that a sequence can have here: attention sees all of them, so no more than a sliding window.
    pub fn window(&self) -> usize {
        let layers = self.other.get("layer_types").and_then(Value::as_array);
        let slides = match self.model_type.as_str() {
            "mistral" => true,
            _ => {
                self.other.get("use_sliding_window") == Some(&Value::Bool(true))
                    || layers.is_some_and(|layers| layers.iter().any(|layer| layer == "sliding_attention"))
            }
        };
        let sliding = self.other.get("sliding_window").and_then(Value::as_u64).filter(|_| slides);
        sliding.map_or(self.max_position_embeddings, |sliding| {
            self.max_position_embeddings.min(usize::try_from(sliding).unwrap_or(usize::MAX))
        })
    }

    /// Which linear layers add a bias.
    pub fn biases(&self) -> Biases {
        Biases {
            qkv: self.attention_bias || self.model_type == "qwen2",
            o: self.attention_bias,
            mlp: self.mlp_bias,
        }
    }

    /// Whether the queries and keys of every head go through a norm.
    pub fn has_qk_norms(&self) -> bool {
        self.model_type == "qwen3"
    }

    /// Checks that this worker can run the shape.
    ///
    /// # Errors
    /// Names the first field that does not fit, its value, and what it may be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Some((_, class)) = FAMILIES.iter().find(|(name, _)| *name == self.model_type) else {
            let allowed = format!("it is one of {}", FAMILIES.map(|family| family.0).join(", "));
            return Err(field("model_type", &self.model_type, allowed));
        };
        if let Some(other) = self.architectures.iter().find(|name| name != class) {
            return Err(field("architectures", other, format!("it is {class}")));
        }
        if self.hidden_act != "silu" {
            return Err(field("hidden_act", &self.hidden_act, "it is silu"));
        }
        let (llama, qwen2) = (self.model_type == "llama", self.model_type == "qwen2");
        if self.mlp_bias && !llama {
            return Err(field("mlp_bias", true, format!("it is false in the family {}", self.model_type)));
        }
        if self.attention_bias && (qwen2 || self.model_type == "mistral") {
            return Err(field(
                "attention_bias",
                true,
                format!("it is false in the family {}", self.model_type),
            ));
        }
        if let Some(layers) = self.other.get("layer_types").and_then(Value::as_array) {
            let known = |layer: &&Value| *layer == "full_attention" || *layer == "sliding_attention";
            if let Some(other) = layers.iter().find(|layer| !known(layer)) {
                return Err(field("layer_types", other, "they are full_attention or sliding_attention"));
            }
        }
        if self.window() < 2 {
            return Err(field("sliding_window", self.window(), "it is at least 2, or null"));
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

/// Takes the fields of rotary positions, which newer files keep in a table of their own, and returns them in the older
/// form, which all versions of `transformers` read.
fn rope(fields: &mut Map<String, Value>) -> Result<Map<String, Value>, ConfigError> {
    let mut table = match (fields.remove("rope_scaling"), fields.remove("rope_parameters")) {
        (Some(Value::Object(table)), _) | (_, Some(Value::Object(table))) => table,
        _ => Map::new(),
    };
    let mut rope = Map::new();
    let theta = table.remove("rope_theta").filter(|theta| !theta.is_null());
    if let Some(theta) = theta.or_else(|| fields.remove("rope_theta")).filter(|theta| !theta.is_null()) {
        rope.insert("rope_theta".into(), theta);
    }
    for partial in [table.remove("partial_rotary_factor"), fields.get("partial_rotary_factor").cloned()] {
        if let Some(partial) = partial.filter(|value| !value.is_null() && value.as_f64() != Some(1.0)) {
            return Err(field("partial_rotary_factor", partial, "it is 1"));
        }
    }
    let kind = table.remove("type");
    if let Some(kind) = table.get("rope_type").cloned().or(kind).filter(|kind| kind != "default") {
        table.insert("rope_type".into(), kind);
        if !table.contains_key("original_max_position_embeddings")
            && let Some(window) = fields.get("max_position_embeddings")
        {
            table.insert("original_max_position_embeddings".into(), window.clone());
        }
        table.retain(|_, value| !value.is_null());
        let value = Value::Object(table);
        let scaling = serde_json::from_value::<RopeScaling>(value.clone())
            .map_err(|error| field("rope_scaling", value, error.to_string()))?;
        rope.insert("rope_scaling".into(), serde_json::to_value(scaling).expect("plain fields"));
    } else if let Some((name, value)) = table.iter().find(|(_, value)| value.is_object()) {
        return Err(field("rope_parameters", format!("{name}: {value}"), "all layers have the same"));
    }
    Ok(rope)
}

fn field(field: &str, value: impl ToString, allowed: impl Into<String>) -> ConfigError {
    ConfigError::Field { field: field.into(), value: value.to_string(), allowed: allowed.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn presets_are_valid_and_survive_their_file() {
        for name in PRESETS {
            let config = ModelConfig::preset(name).unwrap();
            config.validate().unwrap();
            assert_eq!(serde_json::from_str::<ModelConfig>(&config.to_json()).unwrap(), config);
        }
    }

    fn load(changes: Value) -> Result<ModelConfig, String> {
        let mut fields = serde_json::to_value(ModelConfig::preset("tiny").unwrap()).unwrap();
        fields.as_object_mut().unwrap().remove("architectures");
        for (name, value) in changes.as_object().unwrap() {
            fields[name] = value.clone();
        }
        let Value::Object(fields) = fields else { unreachable!() };
        ModelConfig::from_fields(fields)
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_this_worker_does_not_run_is_named_with_what_is_allowed() {
        for (changes, message) in [
            (
                json!({ "model_type": "gpt2" }),
                "model_type is gpt2; it is one of llama, mistral, qwen2, qwen3",
            ),
            (
                json!({ "architectures": ["LlamaForSequenceClassification"] }),
                "architectures is LlamaForSequenceClassification; it is LlamaForCausalLM",
            ),
            (json!({ "hidden_act": "gelu" }), "hidden_act is gelu; it is silu"),
            (
                json!({ "quantization_config": { "quant_method": "gptq" } }),
                "quantization_config is gptq; weights are F32, BF16 or F16; --precision rounds them",
            ),
            (json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor is 0.5; it is 1"),
            (
                json!({ "model_type": "mistral", "attention_bias": true }),
                "attention_bias is true; it is false in the family mistral",
            ),
            (
                json!({ "layer_types": ["linear_attention"] }),
                "layer_types is \"linear_attention\"; they are full_attention or sliding_attention",
            ),
        ] {
            assert_eq!(load(changes).unwrap_err(), message);
        }
        let error = load(json!({ "rope_scaling": { "type": "longrope", "factor": 2.0 } })).unwrap_err();
        assert!(error.contains("unknown variant `longrope`, expected one of `linear`, `dynamic`"), "{error}");
        let error = load(json!({ "rope_scaling": { "rope_type": "linear" } })).unwrap_err();
        assert!(error.contains("missing field `factor`"), "{error}");
    }

    #[test]
    fn rotary_fields_of_all_versions_are_read_and_written_in_the_older_form() {
        let old =
            load(json!({ "rope_theta": 5e5, "rope_scaling": { "type": "linear", "factor": 2.0 } })).unwrap();
        let table = json!({ "rope_theta": 5e5, "rope_type": "linear", "factor": 2.0 });
        let new = load(json!({ "rope_theta": null, "rope_parameters": table })).unwrap();
        assert_eq!((old.rope_theta, &old.rope_scaling), (5e5, &Some(RopeScaling::Linear { factor: 2.0 })));
        assert_eq!(old, new);
        let plain =
            load(json!({ "rope_parameters": { "rope_theta": 5e5, "rope_type": "default" } })).unwrap();
        assert_eq!((plain.rope_theta, plain.rope_scaling), (5e5, None));
        let again: Value = serde_json::from_str(&old.to_json()).unwrap();
        assert_eq!(load(again).unwrap(), old);
    }

    #[test]
    fn the_window_is_no_more_than_a_sliding_one_that_is_used() {
        let window = |changes| load(changes).unwrap().window();
        assert_eq!(window(json!({ "model_type": "mistral", "max_position_embeddings": 32768 })), 4096);
        assert_eq!(window(json!({ "model_type": "mistral", "sliding_window": null })), 1024);
        assert_eq!(window(json!({ "model_type": "qwen2", "sliding_window": 100 })), 1024);
        let used = json!({ "model_type": "qwen2", "sliding_window": 100, "use_sliding_window": true });
        assert_eq!(window(used), 100);
    }

    #[test]
    fn one_end_of_a_text_or_several_are_read_and_everything_else_is_kept() {
        let config =
            load(json!({ "eos_token_id": [3, 4], "initializer_range": 0.02, "torch_dtype": "bfloat16" }))
                .unwrap();
        assert_eq!((config.eos_token_id.as_slice(), config.torch_dtype.as_str()), (&[3, 4][..], "float32"));
        assert!(config.to_json().contains("\"initializer_range\": 0.02"));
        assert!(load(json!({ "eos_token_id": null })).unwrap().eos_token_id.is_empty());
    }

    #[test]
    fn a_shape_that_does_not_fit_is_named_with_its_value() {
        let config = ModelConfig { num_key_value_heads: 3, ..ModelConfig::preset("tiny").unwrap() };
        let error = config.validate().unwrap_err().to_string();
        assert_eq!(error, "num_key_value_heads is 3; it divides num_attention_heads, 4");
    }
}
