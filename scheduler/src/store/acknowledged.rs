//! How many commits of a store were acknowledged, in a small file beside it.
//!
//! In a store that was not closed, a last commit that does not add up looks like one that a power cut tore before it was whole, and the one
//! before is taken. This number tells whether it had been whole: it is written after the commit is durable, before anybody hears of it.
//! It is not synced itself: after a power cut an older one may be found, which asks for less. Never is one found that asks for too much.
//!
//! `commits u64, CRC-32 of it u32`, numbers in little-endian order.

use std::fs::{self, OpenOptions};
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::StoreError;

/// What the file is called, behind the name of its store.
pub const ACKNOWLEDGED: &str = ".acknowledged";

const COUNT: usize = 8;
const BYTES: usize = COUNT + 4;

/// The file.
pub struct Acknowledged {
    path: String,
    backend: Box<dyn StorageBackend>,
}

impl Acknowledged {
    pub fn on(path: String, backend: impl StorageBackend) -> Acknowledged {
        Acknowledged { path, backend: Box::new(backend) }
    }

    /// Opens the file beside a store, or makes it.
    pub fn beside(store: &Path) -> Result<Acknowledged, StoreError> {
        let path = path(store);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|error| StoreError::refused(&path, &error))?;
        let path = path.display().to_string();
        match FileBackend::new(file) {
            Ok(backend) => Ok(Acknowledged::on(path, backend)),
            Err(error) => Err(StoreError::Failed { path, cause: error.to_string() }),
        }
    }

    /// Removes the file: what stood beside another store says nothing of a new one.
    pub fn forget(store: &Path) -> Result<(), StoreError> {
        let path = path(store);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(StoreError::refused(&path, &error)),
            _ => Ok(()),
        }
    }

    /// The number that stands there; 0 where there is none that can be believed.
    pub fn read(&self) -> Result<u64, StoreError> {
        let mut bytes = [0; BYTES];
        if self.backend.len().map_err(|error| self.refused(&error))? < BYTES as u64 {
            return Ok(0);
        }
        self.backend.read(0, &mut bytes).map_err(|error| self.refused(&error))?;
        let (count, sum) = bytes.split_first_chunk::<COUNT>().expect("it is longer");
        let is_whole = crc32fast::hash(count).to_le_bytes() == *sum;
        Ok(if is_whole { u64::from_le_bytes(*count) } else { 0 })
    }

    pub fn write(&self, count: u64) -> Result<(), StoreError> {
        let count = count.to_le_bytes();
        let mut bytes = [0; BYTES];
        bytes[..COUNT].copy_from_slice(&count);
        bytes[COUNT..].copy_from_slice(&crc32fast::hash(&count).to_le_bytes());
        self.backend.write(0, &bytes).map_err(|error| self.refused(&error))
    }

    fn refused(&self, error: &Error) -> StoreError {
        StoreError::refused(Path::new(&self.path), error)
    }
}

fn path(store: &Path) -> PathBuf {
    let mut path = store.as_os_str().to_owned();
    path.push(ACKNOWLEDGED);
    path.into()
}
