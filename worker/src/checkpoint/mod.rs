//! Checkpoints: whole or absent, whatever happens while one is written; in a directory, or in an object store.
//!
//! Both hold the same files, which are those of a model of Hugging Face and two more:
//!
//! ```text
//! config.json  model.safetensors  optimizer.safetensors  train.json
//! ```
//!
//! They do not depend on how many ranks wrote them. Length and checksum of what is large are on record, so a damaged
//! checkpoint is found when it is read, named, and passed over for the one before. How one becomes visible at
//! once differs: [`disk`] renames a directory, [`store`] writes a manifest last.

pub mod disk;
mod files;
mod place;
mod record;
mod spare;
pub mod store;

use crate::model::{ConfigError, ModelConfig};
use crate::safetensors::SafetensorsError;
use crate::tokenizer::TokenizerError;
use std::io;
use std::path::{Path, PathBuf};

pub use disk::CheckpointDir;
pub use files::{load_model, load_tokenizer};
pub use place::Place;
pub use record::{Record, Settings, TrainingState, unix_ms};
pub use store::{Store, Writer};

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const CONFIG: &str = "config.json";
const RECORD: &str = "train.json";

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
    /// A store did not do what it was asked for, and may do it later.
    #[error("{place}: {reason}")]
    Store {
        /// URL of the checkpoints, or of one of them.
        place: String,
        /// What went wrong.
        reason: String,
    },
    /// A store that will not do it later either.
    #[error("{option} is {place}; {reason}")]
    Refused {
        /// Where it was given.
        option: &'static str,
        /// URL of the checkpoints.
        place: String,
        /// Why not.
        reason: String,
    },
    /// The tokenizer cannot be read.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl CheckpointError {
    /// Whether the same may go well a little later.
    pub fn is_passing(&self) -> bool {
        matches!(self, CheckpointError::Store { .. })
    }
}

/// Where a training keeps its checkpoints.
pub enum Checkpoints {
    /// In a directory.
    Disk(CheckpointDir),
    /// In an object store.
    Store(Box<Store>),
}

/// How checkpoints are kept.
#[derive(Clone, Debug)]
pub struct Keeping {
    /// Where.
    pub place: Place,
    /// How many, the newest ones.
    pub keep: usize,
    /// Who writes them.
    pub writer: Writer,
    /// Where files may lie while they are read from a store.
    pub scratch: PathBuf,
}

impl Checkpoints {
    /// Checks that checkpoints can be written. The tokenizer's files of the directory `model` go into each. Only
    /// who leads does so.
    ///
    /// # Errors
    /// Where they cannot, or a file of the tokenizer cannot be read.
    pub fn open(keeping: &Keeping, model: Option<&Path>) -> Result<Checkpoints, CheckpointError> {
        let companions = model.map_or(Ok(Vec::new()), files::companions)?;
        match &keeping.place {
            Place::Directory(path) => {
                Ok(Checkpoints::Disk(CheckpointDir::open(path, keeping.keep, companions)?))
            }
            Place::Store(url) => {
                let store = Store::open(url, keeping.keep, keeping.writer, companions, &keeping.scratch)?;
                store.probe()?;
                Ok(Checkpoints::Store(Box::new(store)))
            }
        }
    }

    /// Writes a checkpoint and removes the oldest ones. When it returns, the checkpoint survives a power cut.
    ///
    /// # Errors
    /// Where it cannot be written; the checkpoints before are then untouched.
    pub fn save(&self, state: &TrainingState) -> Result<(), CheckpointError> {
        match self {
            Checkpoints::Disk(directory) => directory.save(state),
            Checkpoints::Store(store) => store.save(state),
        }
    }

    /// The newest checkpoint that is whole, if any, and a sentence about each newer one that is not. Checks that
    /// it is the training with these `settings` and `config`.
    ///
    /// # Errors
    /// Where the newest whole checkpoint belongs to a training with other settings, or a store does not answer.
    pub fn load_newest(
        &self,
        settings: &Settings,
        config: &ModelConfig,
    ) -> Result<(Option<TrainingState>, Vec<String>), CheckpointError> {
        match self {
            Checkpoints::Disk(directory) => directory.load_newest(settings, config),
            Checkpoints::Store(store) => store.load_newest(settings, config),
        }
    }
}

fn name_of(step: u64) -> String {
    format!("step-{step:06}")
}

fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok()
}

#[cfg(test)]
mod tests;
