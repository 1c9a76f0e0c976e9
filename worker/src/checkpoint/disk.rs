//! Checkpoints in a directory.
//!
//! ```text
//! DIR/latest                   the name of the newest checkpoint
//! DIR/step-000050/config.json  model.safetensors  optimizer.safetensors  train.json
//! ```
//!
//! A checkpoint is written under a temporary name, over files of one that is not kept where there are some, every file is
//! synced, then it is renamed and the directory synced; `latest` is replaced last, in the same way.

use super::files::{Companions, load_training, open_checked, read_record, write_files};
use super::spare::Spare;
use super::{CheckpointError, MODEL, OPTIMIZER, Settings, TrainingState, name_of, step_of};
use crate::model::ModelConfig;
use crate::safetensors::write_synced;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

pub(super) const LATEST: &str = "latest";
/// Start of the names of checkpoints that are not whole yet.
const TEMPORARY: &str = ".writing-";
/// Files that are worth to be written over.
const LARGE: [&str; 2] = [MODEL, OPTIMIZER];

/// A directory of checkpoints.
pub struct CheckpointDir {
    pub(super) path: PathBuf,
    keep: usize,
    /// The tokenizer's files, which every checkpoint has.
    companions: Companions,
    /// Of the checkpoint that was removed last: it takes the place that the next one needs beside those that are kept.
    spare: Spare,
}

impl CheckpointDir {
    /// Makes the directory where there is none, checks that it can be written, and removes what an interrupted
    /// write has left. Only rank 0 does so. The newest `keep` checkpoints are kept.
    ///
    /// # Errors
    /// Where the directory cannot be made or written.
    pub fn open(path: &Path, keep: usize, companions: Companions) -> Result<CheckpointDir, CheckpointError> {
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
        let spare = Spare::at(path.join(format!("{TEMPORARY}over-this")));
        Ok(CheckpointDir { path: path.to_path_buf(), keep, companions, spare })
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
        if temporary.exists() {
            remove(temporary)?;
        }
        fs::create_dir(temporary)?;
        for name in LARGE {
            self.spare.give(name, &temporary.join(name))?;
        }
        self.spare.clear();
        write_files(state, &self.companions, &mut |name, _, content| {
            write_synced(&temporary.join(name), content)
        })?;
        sync_directory(temporary)?;

        let place = self.path.join(name);
        if place.exists() {
            // Only a damaged checkpoint is ever written again.
            remove(&place)?;
        }
        fs::rename(temporary, &place)?;
        sync_directory(&self.path)?;
        let latest = self.path.join(format!("{TEMPORARY}{LATEST}"));
        write_synced(&latest, &|out| writeln!(out, "{name}"))?;
        fs::rename(latest, self.path.join(LATEST))?;
        sync_directory(&self.path)
    }

    /// A checkpoint that cannot be removed does no harm, so errors are only said.
    fn remove_old(&self) {
        for (_, path) in steps_in(&self.path).iter().skip(self.keep) {
            self.spare.take(path, &LARGE);
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
            let state = load_training(&path, settings, config);
            match state {
                Ok(state) => return Ok((Some(state), skipped)),
                Err(error @ CheckpointError::Mismatch { .. }) => return Err(error),
                Err(error) => skipped.push(format!("skipped a damaged checkpoint: {error}")),
            }
        }
        Ok((None, skipped))
    }
}

impl Drop for CheckpointDir {
    fn drop(&mut self) {
        self.spare.clear();
    }
}

/// Whether the files of a checkpoint are as they were written.
fn is_whole(directory: &Path) -> bool {
    let files = read_record(directory).map(|record| record.files).unwrap_or_default();
    let is_whole = |name, written| open_checked(&directory.join(name), Some(written)).is_ok();
    let has_shape = ModelConfig::load(directory).is_ok();
    has_shape && !files.is_empty() && files.iter().all(|(name, written)| is_whole(name, written))
}

/// The checkpoints in a directory, newest first.
pub(super) fn steps_in(path: &Path) -> Vec<(u64, PathBuf)> {
    let mut steps = Vec::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if let Some(step) = name.to_str().and_then(step_of) {
            steps.push((step, entry.path()));
        }
    }
    steps.sort_by(|left, right| right.cmp(left));
    steps
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}
