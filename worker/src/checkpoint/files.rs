//! The files of a checkpoint, wherever they lie.

use super::disk::{LATEST, steps_in};
use super::record::same_training;
use super::{CONFIG, CheckpointError, MODEL, OPTIMIZER, RECORD, Record, Settings, TrainingState, unix_ms};
use crate::kernels::Precision;
use crate::model::{Layout, Model, ModelConfig, Tensor, Trained};
use crate::safetensors::{Content, Safetensors, TensorRef, Weights, Written, length, write_to};
use crate::tokenizer::{self, Tokenizer};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

/// The tokenizer's files, which every checkpoint has.
pub type Companions = Vec<(&'static str, Vec<u8>)>;

/// The files of the tokenizer of a model's directory.
pub(super) fn companions(model: &Path) -> Result<Companions, CheckpointError> {
    let mut companions = Vec::new();
    for name in tokenizer::FILES {
        let path = model.join(name);
        match fs::read(&path) {
            Ok(content) => companions.push((name, content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(CheckpointError::Read { path, error }),
        }
    }
    Ok(companions)
}

/// Puts a file somewhere: its name, its length, and what writes it.
pub(super) type Put<'a> = &'a mut dyn FnMut(&str, u64, Content<'_>) -> io::Result<Written>;

/// Puts all files of a checkpoint somewhere, the record last.
pub(super) fn write_files(state: &TrainingState, companions: &Companions, put: Put<'_>) -> io::Result<()> {
    let TrainingState { trained, record } = state;
    let Trained { model, first, second } = &**trained;
    let tensors = &model.layout.tensors;
    let weights: Vec<_> =
        tensors.iter().map(|tensor| tensor_ref(&tensor.name, tensor, &model.weights.parameters)).collect();
    let names: Vec<_> = tensors.iter().map(moment_names).collect();
    let moments: Vec<_> = tensors
        .iter()
        .zip(&names)
        .flat_map(|(tensor, [m, v])| [tensor_ref(m, tensor, first), tensor_ref(v, tensor, second)])
        .collect();
    let mut record = record.clone();
    record.saved_at_ms = unix_ms();
    for (name, tensors) in [(MODEL, weights), (OPTIMIZER, moments)] {
        let written = put(name, length(&tensors), &|out| write_to(out, &tensors))?;
        record.files.insert(name.into(), written);
    }
    let config = model.config.to_json().into_bytes();
    let text = (serde_json::to_string_pretty(&record)? + "\n").into_bytes();
    let companions = companions.iter().map(|(name, content)| (*name, content));
    for (name, content) in [(CONFIG, &config)].into_iter().chain(companions).chain([(RECORD, &text)]) {
        put(name, content.len() as u64, &|out| out.write_all(content))?;
    }
    Ok(())
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

/// Loads the checkpoint of a directory, if it is whole and of the training with these `settings` and `config`.
pub(super) fn load_training(
    path: &Path,
    settings: &Settings,
    config: &ModelConfig,
) -> Result<TrainingState, CheckpointError> {
    let record = read_record(path)?;
    let theirs = ModelConfig::load(path)?;
    same_training(path, (&record.settings, &theirs), (settings, config))?;
    load_state(path, record)
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
    Ok(TrainingState { trained: Arc::new(Trained { model, first, second }), record })
}

pub(super) fn read_record(directory: &Path) -> Result<Record, CheckpointError> {
    let path = directory.join(RECORD);
    let text = fs::read(&path).map_err(|error| CheckpointError::Read { path: path.clone(), error })?;
    serde_json::from_slice(&text)
        .map_err(|error| CheckpointError::Damaged { path, reason: error.to_string() })
}

pub(super) fn open_checked(path: &Path, expected: Option<&Written>) -> Result<Safetensors, CheckpointError> {
    let file = Safetensors::read(path)?;
    if let Some(expected) = expected
        && expected.crc32 != file.crc32()
    {
        let reason = format!("checksum is {:08x}, it was written with {:08x}", file.crc32(), expected.crc32);
        return Err(CheckpointError::Damaged { path: path.to_path_buf(), reason });
    }
    Ok(file)
}

fn tensor_ref<'a>(name: &'a str, tensor: &'a Tensor, values: &'a [f32]) -> TensorRef<'a> {
    TensorRef { name, shape: &tensor.shape, values: tensor.span.of(values) }
}

fn moment_names(tensor: &Tensor) -> [String; 2] {
    [format!("first.{}", tensor.name), format!("second.{}", tensor.name)]
}
