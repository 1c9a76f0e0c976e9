//! What a checkpoint holds: the state of a training, and the record of where it stands.

use super::CheckpointError;
use crate::elastic::Spent;
use crate::kernels::Precision;
use crate::model::{ModelConfig, Trained};
use crate::safetensors::Written;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// The settings of a training, as `train.json` records them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are the options'.
pub struct Settings {
    pub seed: u64,
    pub batch: usize,
    #[serde(default = "one")]
    pub micro_batch: usize,
    #[serde(default)]
    pub precision: Precision,
    pub context: usize,
    pub steps: u64,
    pub learning_rate: f32,
    pub warmup: u64,
    pub weight_decay: f32,
    pub clip: f32,
    /// 0: a step is an update with the gradient of a batch.
    #[serde(default)]
    pub inner_steps: u64,
    #[serde(default)]
    pub replicas: usize,
    /// Whether replicas begin with the moments of the state; always, but in checkpoints of versions before. Of a training without
    /// rounds nothing is said.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_moments: bool,
}

impl Settings {
    /// Parts of a step that members compute by themselves.
    pub fn shards(&self) -> usize {
        if self.inner_steps == 0 { self.batch / self.micro_batch } else { self.replicas }
    }

    /// Tokens of a step.
    pub fn step_tokens(&self) -> u64 {
        (self.batch * self.context) as u64 * self.inner_steps.max(1)
    }
}

fn one() -> usize {
    1
}

/// `train.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Steps that are done.
    pub step: u64,
    /// Tokens that the model has learned from, repetitions included.
    pub tokens_seen: u64,
    /// Mean loss of the last step, in nats a token.
    pub loss: f32,
    /// The settings that led here.
    #[serde(flatten)]
    pub settings: Settings,
    /// Tokens of the data.
    pub data_tokens: usize,
    /// CRC-32 of the data.
    pub data_crc32: u32,
    /// Where the time has gone that it took.
    #[serde(default)]
    pub spent: Spent,
    /// When the checkpoint was written, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub saved_at_ms: u64,
    /// The large files beside this one.
    #[serde(default)]
    pub files: BTreeMap<String, Written>,
}

/// The state of a training between two steps. What it has learned is shared, and never changes.
#[derive(Clone)]
pub struct TrainingState {
    /// The model and its moments.
    pub trained: Arc<Trained>,
    /// Where the training stands.
    pub record: Record,
}

/// The time, in milliseconds since the Unix epoch.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// Compares what has to be the same for the continued training to be the same training.
pub(super) fn same_training(
    path: &Path,
    theirs: (&Settings, &ModelConfig),
    ours: (&Settings, &ModelConfig),
) -> Result<(), CheckpointError> {
    let describe = |(settings, config): (&Settings, &ModelConfig)| {
        let mut fields = vec![
            ("--seed".to_string(), settings.seed.to_string()),
            ("--batch".to_string(), settings.batch.to_string()),
            ("--micro-batch".to_string(), settings.micro_batch.to_string()),
            ("--precision".to_string(), settings.precision.name().to_string()),
            ("--context".to_string(), settings.context.to_string()),
            ("--inner-steps".to_string(), settings.inner_steps.to_string()),
            ("--replicas".to_string(), settings.replicas.to_string()),
        ];
        if settings.inner_steps != 0 {
            let begin = if settings.keeps_moments { "of the round before" } else { "of zero" };
            fields.push(("rounds that begin with moments".to_string(), begin.to_string()));
        }
        let value = serde_json::to_value(config).expect("plain fields");
        let shape = value.as_object().expect("a struct").iter();
        fields.extend(shape.map(|(name, value)| (format!("--model {name}"), value.to_string())));
        fields
    };
    for ((field, theirs), (_, ours)) in describe(theirs).into_iter().zip(describe(ours)) {
        if theirs != ours {
            return Err(CheckpointError::Mismatch { path: path.to_path_buf(), field, theirs, ours });
        }
    }
    Ok(())
}
