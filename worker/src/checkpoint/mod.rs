//! Checkpoints on disk: whole or absent, whatever happens while one is written.
//!
//! ```text
//! DIR/latest                   the name of the newest checkpoint
//! DIR/step-000050/config.json  model.safetensors  optimizer.safetensors  train.json
//! ```
//!
//! A checkpoint is written under a temporary name, every file is synced, then it is renamed and the directory
//! synced; `latest` is replaced last, in the same way. `train.json` holds length and checksum of the large files,
//! so a damaged checkpoint is found when it is read, named, and passed over for the one before.

use crate::elastic::Spent;
use crate::kernels::Precision;
use crate::model::{ConfigError, Layout, Model, ModelConfig, Tensor};
use crate::safetensors::{Safetensors, SafetensorsError, TensorRef, Weights, Written, write};
use crate::tokenizer::{self, Tokenizer, TokenizerError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const RECORD: &str = "train.json";
const LATEST: &str = "latest";
/// Start of the names of checkpoints that are not whole yet.
const TEMPORARY: &str = ".writing-";

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system refused to write. The checkpoints before are whole.
    #[error("checkpoint {} was not written: {error}", path.display())]
    Write {
        /// The checkpoint, or its directory.
        path: PathBuf,
        /// What the system said, such as a full disk.
        error: io::Error,
    },
    /// The system refused to read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The model's shape cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights cannot be read.
    #[error(transparent)]
    Weights(#[from] SafetensorsError),
    /// The content does not fit together.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The training that wrote it had another setting, so continuing it would not be the same training.
    #[error("{} was written with {field} {theirs}, this training has {ours}", path.display())]
    Mismatch {
        /// The checkpoint.
        path: PathBuf,
        /// Name of the setting.
        field: String,
        /// Its value in the checkpoint.
        theirs: String,
        /// Its value now.
        ours: String,
    },
    /// There is neither a model nor a checkpoint.
    #[error("{} holds no model: neither config.json and model.safetensors nor a checkpoint", path.display())]
    NoModel {
        /// The directory.
        path: PathBuf,
    },
    /// The tokenizer cannot be read.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

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

/// The state of a training between two steps.
pub struct TrainingState {
    /// The model.
    pub model: Model,
    /// AdamW's first moment of every parameter.
    pub first: Vec<f32>,
    /// AdamW's second moment of every parameter.
    pub second: Vec<f32>,
    /// Where the training stands.
    pub record: Record,
}

impl TrainingState {
    /// Its vectors: parameters, first and second moments.
    pub fn vectors(&self) -> [&[f32]; 3] {
        [&self.model.parameters, &self.first, &self.second]
    }
}

impl Clone for TrainingState {
    fn clone(&self) -> TrainingState {
        let model = Model::with_parameters(self.model.config.clone(), self.model.parameters.clone());
        let (first, second) = (self.first.clone(), self.second.clone());
        TrainingState { model, first, second, record: self.record.clone() }
    }
}

/// A directory of checkpoints.
pub struct CheckpointDir {
    path: PathBuf,
    keep: usize,
    /// The tokenizer's files, which every checkpoint has.
    companions: Vec<(&'static str, Vec<u8>)>,
}

impl CheckpointDir {
    /// Makes the directory where there is none, checks that it can be written, and removes what an interrupted
    /// write has left. Only rank 0 does so. The newest `keep` checkpoints are kept.
    ///
    /// # Errors
    /// Where the directory cannot be made or written.
    pub fn open(path: &Path, keep: usize) -> Result<CheckpointDir, CheckpointError> {
        let open = || {
            fs::create_dir_all(path)?;
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                if entry.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes()) {
                    remove(&entry.path())?;
                }
            }
            let probe = path.join(format!("{TEMPORARY}probe"));
            fs::write(&probe, b"probe")?;
            fs::remove_file(probe)
        };
        open().map_err(|error| CheckpointError::Write { path: path.to_path_buf(), error })?;
        Ok(CheckpointDir { path: path.to_path_buf(), keep, companions: Vec::new() })
    }

    /// Puts the files of the tokenizer of a model's directory into every checkpoint from now on.
    ///
    /// # Errors
    /// Where one of them cannot be read.
    pub fn take_along(&mut self, model: &Path) -> Result<(), CheckpointError> {
        for name in tokenizer::FILES {
            let path = model.join(name);
            match fs::read(&path) {
                Ok(content) => self.companions.push((name, content)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => (),
                Err(error) => return Err(CheckpointError::Read { path, error }),
            }
        }
        Ok(())
    }

    /// Writes a checkpoint and removes the oldest ones. When it returns, the checkpoint survives a power cut.
    ///
    /// # Errors
    /// Where the disk is full or refuses otherwise; the checkpoints before are then untouched.
    pub fn save(&self, state: &TrainingState) -> Result<(), CheckpointError> {
        let name = name_of(state.record.step);
        if is_whole(&self.path.join(&name)) {
            // Another member that led for a while has written it: a step has one state.
            return Ok(());
        }
        let temporary = self.path.join(format!("{TEMPORARY}{name}"));
        let written = self.write(state, &name, &temporary);
        if written.is_err() {
            // Frees what a full disk needs most; what the first error was matters more than a second one.
            let _ = remove(&temporary);
        }
        written.map_err(|error| CheckpointError::Write { path: self.path.join(&name), error })?;
        self.remove_old();
        Ok(())
    }

    fn write(&self, state: &TrainingState, name: &str, temporary: &Path) -> io::Result<()> {
        let TrainingState { model, first, second, record } = state;
        if temporary.exists() {
            remove(temporary)?;
        }
        fs::create_dir(temporary)?;
        let tensors = &model.layout.tensors;
        let weights: Vec<_> =
            tensors.iter().map(|tensor| tensor_ref(&tensor.name, tensor, &model.parameters)).collect();
        let names: Vec<_> = tensors.iter().map(moment_names).collect();
        let moments: Vec<_> = tensors
            .iter()
            .zip(&names)
            .flat_map(|(tensor, [m, v])| [tensor_ref(m, tensor, first), tensor_ref(v, tensor, second)])
            .collect();
        let mut record = record.clone();
        record.saved_at_ms = unix_ms();
        record.files.insert(MODEL.into(), write(&temporary.join(MODEL), &weights)?);
        record.files.insert(OPTIMIZER.into(), write(&temporary.join(OPTIMIZER), &moments)?);
        write_file(&temporary.join("config.json"), model.config.to_json().as_bytes())?;
        for (name, content) in &self.companions {
            write_file(&temporary.join(name), content)?;
        }
        write_file(&temporary.join(RECORD), (serde_json::to_string_pretty(&record)? + "\n").as_bytes())?;
        sync_directory(temporary)?;

        let place = self.path.join(name);
        if place.exists() {
            // Only a damaged checkpoint is ever written again.
            remove(&place)?;
        }
        fs::rename(temporary, &place)?;
        sync_directory(&self.path)?;
        let latest = self.path.join(format!("{TEMPORARY}{LATEST}"));
        write_file(&latest, format!("{name}\n").as_bytes())?;
        fs::rename(latest, self.path.join(LATEST))?;
        sync_directory(&self.path)
    }

    /// A checkpoint that cannot be removed does no harm, so errors are only said.
    fn remove_old(&self) {
        for (_, path) in steps_in(&self.path).iter().skip(self.keep) {
            if let Err(error) = remove(path) {
                eprintln!("old checkpoint {} was not removed: {error}", path.display());
            }
        }
    }

    /// The newest checkpoint that is whole, if any, and a sentence about each newer one that is not. Checks that
    /// it is the training with these `settings` and `config`.
    ///
    /// # Errors
    /// Where the newest whole checkpoint belongs to a training with other settings.
    pub fn load_newest(
        &self,
        settings: &Settings,
        config: &ModelConfig,
    ) -> Result<(Option<TrainingState>, Vec<String>), CheckpointError> {
        let mut skipped = Vec::new();
        for (_, path) in steps_in(&self.path) {
            let loaded = read_record(&path).and_then(|record| {
                let theirs = ModelConfig::load(&path)?;
                Ok((record, theirs))
            });
            let state = loaded.and_then(|(record, theirs)| {
                same_training(&path, (&record.settings, &theirs), (settings, config))?;
                load_state(&path, record)
            });
            match state {
                Ok(state) => return Ok((Some(state), skipped)),
                Err(error @ CheckpointError::Mismatch { .. }) => return Err(error),
                Err(error) => skipped.push(format!("skipped a damaged checkpoint: {error}")),
            }
        }
        Ok((None, skipped))
    }
}

/// Loads a model for inference, or, in f32, to start a training from: from `path` itself, or from its latest checkpoint.
/// Weights are rounded to `precision` as they are read.
///
/// # Errors
/// Where there is none, or it is damaged or cannot be run.
pub fn load_model(path: &Path, precision: Precision) -> Result<Model, CheckpointError> {
    let directory = find_model(path)?;
    let config = ModelConfig::load(&directory)?;
    let mut expected = None;
    if directory.join(RECORD).exists() {
        expected = read_record(&directory)?.files.get(MODEL).cloned();
    }
    let weights = match directory.join(MODEL).exists() || !Weights::are_in(&directory) {
        true => Weights::one(open_checked(&directory.join(MODEL), expected.as_ref())?),
        false => Weights::indexed(&directory)?,
    };
    let layout = Layout::new(&config);
    let names: BTreeSet<&str> = layout.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    weights.refuse_others(|name| {
        // Old files hold the wavelengths, and some a tied output layer twice.
        let copy = config.tie_word_embeddings && name == "lm_head.weight";
        names.contains(name) || copy || name.ends_with("rotary_emb.inv_freq")
    })?;
    Ok(Model::read(config, precision, |tensor, part, values| {
        weights.copy_part(&tensor.name, &tensor.shape, part.start, values)
    })?)
}

/// Loads the tokenizer that belongs to the model of `path`, which has this `config`.
///
/// # Errors
/// Where there is no model, or its tokenizer is damaged or cannot be used.
pub fn load_tokenizer(path: &Path, config: &ModelConfig) -> Result<Tokenizer, CheckpointError> {
    Ok(Tokenizer::load(&find_model(path)?, config)?)
}

/// The directory that holds the model of `path`.
fn find_model(path: &Path) -> Result<PathBuf, CheckpointError> {
    if path.join("config.json").exists() {
        return Ok(path.to_path_buf());
    }
    if let Ok(name) = fs::read_to_string(path.join(LATEST)) {
        let directory = path.join(name.trim());
        if directory.join("config.json").exists() {
            return Ok(directory);
        }
    }
    let newest = steps_in(path).into_iter().next();
    newest.map(|(_, path)| path).ok_or_else(|| CheckpointError::NoModel { path: path.to_path_buf() })
}

fn load_state(path: &Path, record: Record) -> Result<TrainingState, CheckpointError> {
    let model = load_model(path, Precision::F32)?;
    let file = open_checked(&path.join(OPTIMIZER), record.files.get(OPTIMIZER))?;
    let (mut first, mut second) = (vec![0.0; model.layout.len], vec![0.0; model.layout.len]);
    for tensor in &model.layout.tensors {
        let [m, v] = moment_names(tensor);
        file.copy(&m, &tensor.shape, tensor.span.of_mut(&mut first))?;
        file.copy(&v, &tensor.shape, tensor.span.of_mut(&mut second))?;
    }
    Ok(TrainingState { model, first, second, record })
}

fn read_record(directory: &Path) -> Result<Record, CheckpointError> {
    let path = directory.join(RECORD);
    let text = fs::read(&path).map_err(|error| CheckpointError::Read { path: path.clone(), error })?;
    serde_json::from_slice(&text)
        .map_err(|error| CheckpointError::Damaged { path, reason: error.to_string() })
}

/// The time, in milliseconds since the Unix epoch.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// Whether the files of a checkpoint are as they were written.
fn is_whole(directory: &Path) -> bool {
    let files = read_record(directory).map(|record| record.files).unwrap_or_default();
    let is_whole = |name, written| open_checked(&directory.join(name), Some(written)).is_ok();
    let has_shape = ModelConfig::load(directory).is_ok();
    has_shape && !files.is_empty() && files.iter().all(|(name, written)| is_whole(name, written))
}

fn open_checked(path: &Path, expected: Option<&Written>) -> Result<Safetensors, CheckpointError> {
    let file = Safetensors::read(path)?;
    if let Some(expected) = expected
        && expected.crc32 != file.crc32()
    {
        let reason = format!("checksum is {:08x}, it was written with {:08x}", file.crc32(), expected.crc32);
        return Err(CheckpointError::Damaged { path: path.to_path_buf(), reason });
    }
    Ok(file)
}

/// Compares what has to be the same for the continued training to be the same training.
fn same_training(
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
        ];
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

fn name_of(step: u64) -> String {
    format!("step-{step:06}")
}

/// The checkpoints in a directory, newest first.
fn steps_in(path: &Path) -> Vec<(u64, PathBuf)> {
    let mut steps = Vec::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if let Some(step) = name.to_str().and_then(|name| name.strip_prefix("step-")?.parse().ok()) {
            steps.push((step, entry.path()));
        }
    }
    steps.sort_by(|left, right| right.cmp(left));
    steps
}

fn tensor_ref<'a>(name: &'a str, tensor: &'a Tensor, values: &'a [f32]) -> TensorRef<'a> {
    TensorRef { name, shape: &tensor.shape, values: tensor.span.of(values) }
}

fn moment_names(tensor: &Tensor) -> [String; 2] {
    [format!("first.{}", tensor.name), format!("second.{}", tensor.name)]
}

fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

#[cfg(test)]
mod tests;
