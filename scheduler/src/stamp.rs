//! Whether a file is another one than it was.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Changes whenever the file does; `None`: it cannot be looked at.
pub type Stamp = Option<(u64, u64, i64, i64)>;

/// That of a file.
pub fn stamp(file: &Path) -> Stamp {
    let seen = fs::metadata(file).ok()?;
    Some((seen.ino(), seen.len(), seen.mtime(), seen.mtime_nsec()))
}
