//! Logs of workers: read from an offset on, and kept below a size.
//!
//! A worker writes into its log itself, whether an agent is there or not. So nothing is renamed or copied when the log grows too
//! large: a hole is made where its oldest half was. What is left has its offsets, and readers go on where they were.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use aquifer_core::WorkerId;
use rustix::fs::{FallocateFlags, SeekFrom as Sought, fallocate, seek};
use rustix::io::Errno;

use crate::run_dir::RunDirs;

/// Holes begin and end at multiples of that, which is one of the sizes of all file systems' blocks.
const BLOCK: u64 = 64 << 10;

/// A piece of a worker's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogChunk {
    /// Bytes from the wanted offset on; empty if there are none yet.
    pub data: Vec<u8>,
    /// Bytes between the wanted offset and the first of these: they were given up.
    pub skipped: u64,
    /// Offset of the next byte.
    pub next_offset: u64,
    /// Whether the worker has ended and this was the last piece.
    pub ended: bool,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// There is no run directory, or it was pruned.
    #[error("{0} never ran here, or its log was pruned")]
    Unknown(WorkerId),
    /// The file cannot be read.
    #[error("cannot read the log of {0}: {1}")]
    Io(WorkerId, io::Error),
}

/// Reads logs; independent of the launcher, cheap to clone.
#[derive(Clone, Debug)]
pub struct Logs {
    dirs: RunDirs,
}

impl Logs {
    pub(crate) fn new(dirs: RunDirs) -> Logs {
        Logs { dirs }
    }

    /// At most `max` bytes of a worker's log from `offset` on; an offset behind the end gives nothing.
    ///
    /// # Errors
    ///
    /// Fails if the worker is not known here.
    pub fn read(&self, id: WorkerId, offset: u64, max: usize) -> Result<LogChunk, LogError> {
        let dir = self.dirs.of(id);
        // Asked first: what is written between the two questions must not be cut off.
        let has_exit = dir.exit_path().exists();
        let read = || {
            let mut file = File::open(dir.log_path())?;
            let size = file.metadata()?.len();
            let wanted = offset.min(size);
            let there = first_kept(&file, wanted)?.min(size);
            file.seek(SeekFrom::Start(there))?;
            let mut data = Vec::new();
            file.take(max as u64).read_to_end(&mut data)?;
            let next_offset = there + data.len() as u64;
            if wanted < there {
                // The first line that is there may have lost its beginning.
                let end = data.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                data.drain(..end);
            }
            let skipped = next_offset - data.len() as u64 - wanted;
            Ok(LogChunk { data, skipped, next_offset, ended: has_exit && size <= next_offset })
        };
        read().map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => LogError::Unknown(id),
            _ => LogError::Io(id, error),
        })
    }

    /// Like [`Logs::read`], but waits up to `wait` for something to read or for the worker's end.
    ///
    /// # Errors
    ///
    /// As [`Logs::read`].
    pub async fn follow(
        &self,
        id: WorkerId,
        offset: u64,
        max: usize,
        wait: Duration,
    ) -> Result<LogChunk, LogError> {
        let deadline = tokio::time::Instant::now() + wait;
        let mut pause = Duration::from_millis(2);
        loop {
            let chunk = self.read(id, offset, max)?;
            if !chunk.data.is_empty() || chunk.ended || deadline <= tokio::time::Instant::now() {
                return Ok(chunk);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Like [`Logs::follow`], for a worker that is just being started: until it has a log, there is nothing to read.
    ///
    /// # Errors
    ///
    /// Fails if the log cannot be read.
    pub async fn follow_from_start(
        &self,
        id: WorkerId,
        offset: u64,
        max: usize,
        wait: Duration,
    ) -> Result<LogChunk, LogError> {
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            match self.follow(id, offset, max, left).await {
                Err(LogError::Unknown(_)) if left.is_zero() => {
                    return Ok(LogChunk { data: Vec::new(), skipped: 0, next_offset: offset, ended: false });
                }
                Err(LogError::Unknown(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                read => return read,
            }
        }
    }
}

/// Where the first byte from `offset` on is that was not given up.
fn first_kept(file: &File, offset: u64) -> io::Result<u64> {
    match seek(file, Sought::Data(offset)) {
        Ok(there) => Ok(there),
        // There is none; or the file system knows no holes, then there is no hole.
        Err(Errno::NXIO) => Ok(file.metadata()?.len()),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(offset),
        Err(error) => Err(error.into()),
    }
}

/// Gives up the oldest of a log that holds more than `most` bytes, so that half of that is left. Returns how many bytes that gave back.
///
/// # Errors
/// When the file cannot be changed so; on file systems without holes `Unsupported`.
pub(crate) fn bound(log: &Path, most: u64) -> io::Result<u64> {
    let held = |meta: &std::fs::Metadata| 512 * meta.blocks();
    let meta = std::fs::metadata(log)?;
    // The last block may be larger than what is in it.
    if held(&meta).min(meta.len()) <= most {
        return Ok(0);
    }
    let file = OpenOptions::new().read(true).write(true).open(log)?;
    let (size, before) = (meta.len(), held(&meta));
    let end = size.saturating_sub(most / 2) / BLOCK * BLOCK;
    if end == 0 {
        return Ok(0);
    }
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, end)?;
    Ok(before.saturating_sub(held(&file.metadata()?)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use aquifer_core::JobId;

    use super::*;

    #[test]
    fn a_log_that_grows_too_large_loses_its_oldest_lines_and_readers_go_on() {
        let root = tempfile::tempdir().unwrap();
        let dirs = RunDirs::new(root.path());
        let id = WorkerId { job: JobId(1), attempt: 1, rank: 0 };
        let dir = dirs.of(id);
        dir.create().unwrap();
        let mut log = dir.open_log().unwrap();
        let line = |number: u64| format!("line {number:09}\n");
        let bytes = line(0).len() as u64;
        (0..100_000).for_each(|number| log.write_all(line(number).as_bytes()).unwrap());
        let (logs, most) = (Logs::new(dirs), 512 << 10);
        assert_eq!(bound(&dir.log_path(), 100_000 * bytes).unwrap(), 0, "it is not too large");
        match bound(&dir.log_path(), most) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                println!("skipped: {} has no holes", root.path().display());
                return;
            }
            given_up => assert!(100_000 * bytes - most <= given_up.unwrap()),
        }
        let held = 512 * std::fs::metadata(dir.log_path()).unwrap().blocks();
        assert!((most / 2..=most / 2 + 2 * BLOCK).contains(&held), "{held}");
        // Who begins, begins with a whole line, and is told how much is missing.
        let first = logs.read(id, 0, 1000).unwrap();
        assert!(first.data.starts_with(line(first.skipped / bytes).as_bytes()), "{first:?}");
        assert_eq!(first.skipped % bytes, 0);
        assert_eq!(first.next_offset, first.skipped + first.data.len() as u64);
        // Who was behind it goes on, and so does the one who writes.
        log.write_all(line(100_000).as_bytes()).unwrap();
        let last = logs.read(id, 100_000 * bytes, 1000).unwrap();
        assert_eq!((last.data, last.skipped), (line(100_000).into_bytes(), 0));
        assert_eq!(bound(&dir.log_path(), most).unwrap(), 0, "it is small enough now");
    }
}
