//! Where a file is damaged that the database refuses: it says that something does not add up, and not what.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use redb::{Builder, StorageBackend};

/// The bytes that the database read last before it refused the file: it stops at the first page that is not what its
/// checksum says. `None`: it does not refuse it, or the file cannot be read.
///
/// Nothing is written.
pub fn first(path: &Path, builder: &Builder) -> Option<Range<u64>> {
    let last = Arc::<Mutex<Range<u64>>>::default();
    let reads = Reads { file: File::open(path).ok()?, last: last.clone() };
    builder.create_with_backend(reads).err()?;
    let last = last.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Some(last).filter(|last| !last.is_empty())
}

/// A file that is read, and on which what is written is lost.
#[derive(Debug)]
struct Reads {
    file: File,
    last: Arc<Mutex<Range<u64>>>,
}

impl StorageBackend for Reads {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = offset..offset + out.len() as u64;
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}
