//! Files as slices of memory.

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A file that is mapped into memory to be read: its pages come from disk when they are touched, and are the system's to
/// drop.
///
/// A file that another program cuts while it is mapped ends this process by a signal. Checkpoints are replaced by
/// renaming, which leaves a mapped file as it was.
pub struct Mapping {
    start: *const u8,
    len: usize,
}

// SAFETY: nothing writes to the mapping.
#[allow(unsafe_code)]
unsafe impl Send for Mapping {}
// SAFETY: nothing writes to the mapping.
#[allow(unsafe_code)]
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the whole file.
    ///
    /// # Errors
    /// What the system said.
    pub fn of(path: &Path) -> io::Result<Mapping> {
        let file = File::open(path)?;
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if len == 0 {
            return Ok(Mapping { start: std::ptr::dangling(), len });
        }
        // SAFETY: a new private mapping, at a place that the system chooses, touches no memory of ours.
        #[allow(unsafe_code)]
        let start = unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE, &file, 0)? };
        Ok(Mapping { start: start.cast(), len })
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is `len` bytes long and lives as long as `self`.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.start, self.len)
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if 0 < self.len {
            // SAFETY: the whole mapping, which nothing borrows any more. That it cannot fail leaves nothing to do.
            #[allow(unsafe_code)]
            let _ = unsafe { munmap(self.start.cast_mut().cast(), self.len) };
        }
    }
}
