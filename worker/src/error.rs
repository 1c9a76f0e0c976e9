//! Why a worker ended early, and the exit code that says so to whoever started it.

use crate::args::UsageError;
use crate::checkpoint::CheckpointError;
use crate::contract::ContractError;
use crate::data::DataError;
use crate::kernels::DeviceError;
use crate::model::ConfigError;

/// Why a worker ended early. Each prints as one sentence, with the field, its value and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// An option with a value that it cannot have.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// A variable of the environment that makes no sense.
    #[error(transparent)]
    Contract(#[from] ContractError),
    /// A model that this worker cannot run.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No training data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint that cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A device that is not there, or failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The group did not form, or broke.
    #[error("{0}")]
    Group(String),
    /// A probe could not be made, which says nothing of the node.
    #[error("{0}")]
    Unable(String),
    /// The training diverged.
    #[error(
        "loss is {loss} and the gradient's length {gradient_norm} at step {step}; a lower --learning-rate or --clip may help"
    )]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// Mean loss, in nats a token; this or the next is not a finite number.
        loss: f32,
        /// Length of the gradient.
        gradient_norm: f32,
    },
    /// A signal ended the training early, after a checkpoint where there is a directory for it.
    #[error("stopped at step {step} of {total_steps}{}", if *.saved { ", checkpoint written" } else { "" })]
    Stopped {
        /// Steps that are done.
        step: u64,
        /// Steps that were asked for.
        total_steps: u64,
        /// Whether a checkpoint of this step is on disk.
        saved: bool,
    },
    /// The system refused something else.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        error: std::io::Error,
    },
}

impl WorkerError {
    /// The exit code of the process: 2 for usage, 143 after a signal, 75 for what could not be tried, 85 to 87 for what a bad node
    /// explains (others are silent, a result is no number, a device failed), else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            WorkerError::Usage(_) => 2,
            WorkerError::Unable(_) => 75,
            WorkerError::Group(_) => 85,
            WorkerError::Diverged { .. } => 86,
            WorkerError::Device(_) => 87,
            WorkerError::Stopped { .. } => 143,
            _ => 1,
        }
    }
}
