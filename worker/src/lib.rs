//! The bundled transformer worker: training and inference.
//!
//! [`train::main`], [`serve::main`], [`measure::main`] and [`probe::main`] are the commands; everything else is what they are made of. A worker is
//! an ordinary process: its environment is the [`contract`], its progress is [`status`], and its exit code is that
//! of the [`error`].

// Floats are sent and written as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));

pub mod args;
pub mod bench;
pub mod checkpoint;
pub mod contract;
pub mod data;
pub mod elastic;
pub mod error;
pub mod kernels;
mod mapping;
pub mod measure;
pub mod model;
pub mod probe;
pub mod random;
pub mod safetensors;
pub mod serve;
pub mod shards;
pub mod status;
#[cfg(test)]
mod testing;
pub mod tokenizer;
pub mod train;
pub mod values;
pub mod vector;

pub use args::{ServeArgs, TrainArgs};
pub use error::WorkerError;
pub use measure::MeasureArgs;
pub use probe::ProbeArgs;
