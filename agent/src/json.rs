//! Small JSON files: written whole, replaced atomically, never synced.
//!
//! A crash of a process keeps what it wrote; a crash of the machine also ends every worker, and the boot id that
//! each run directory holds says so.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Replaces a file by rename, so that a reader sees the old content or the new.
pub fn replace(path: &Path, value: &impl Serialize) -> io::Result<()> {
    replace_bytes(path, &bytes(value)?)
}

/// Likewise, with any content.
pub fn replace_bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    Room::of(path, bytes)?.put()
}

/// Likewise, for a user whose directory it is in. That user may have put anything in the way: nothing that the directory holds
/// is written to but a new file.
pub fn replace_bytes_for((uid, gid): (u32, u32), path: &Path, bytes: &[u8]) -> io::Result<()> {
    if uid == rustix::process::geteuid().as_raw() {
        return replace_bytes(path, bytes);
    }
    let temporary = temporary(path);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => (),
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let room = Room::filled(file, temporary, path, bytes)?;
    fchown(&room.file, Some(uid), Some(gid))?;
    room.put()
}

/// Writes a file in place, readable by its owner alone.
pub fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    open(path)?.write_all(&bytes(value)?)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn temporary(path: &Path) -> PathBuf {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    PathBuf::from(temporary)
}

/// A file that is written but has not yet its name. Dropped without it, it is removed.
pub struct Room {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    named: bool,
}

impl Room {
    /// Writes the file. What is to be known only later needs no more room on the disk than `value` does.
    pub fn reserve(path: &Path, value: &impl Serialize) -> io::Result<Room> {
        Room::of(path, &bytes(value)?)
    }

    fn of(path: &Path, bytes: &[u8]) -> io::Result<Room> {
        let temporary = temporary(path);
        Room::filled(open(&temporary)?, temporary, path, bytes)
    }

    fn filled(file: File, temporary: PathBuf, path: &Path, bytes: &[u8]) -> io::Result<Room> {
        let mut room = Room { file, temporary, path: path.to_owned(), named: false };
        room.file.write_all(bytes)?;
        Ok(room)
    }

    /// Changes its content, and gives it its name.
    pub fn put_instead(self, value: &impl Serialize) -> io::Result<()> {
        let bytes = bytes(value)?;
        self.file.write_all_at(&bytes, 0)?;
        self.file.set_len(bytes.len() as u64)?;
        self.put()
    }

    /// Gives it its name.
    pub fn put(mut self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.path)?;
        self.named = true;
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if !self.named {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// One line of JSON, with its line end.
pub fn bytes(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads a file of at most `max` bytes. Workers may put anything in its place: a pipe is not waited for, a link is not
/// followed, and nothing but a file is read.
pub fn read_bytes(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no file"));
    }
    let mut bytes = Vec::with_capacity(metadata.len().min(max) as usize + 1);
    file.take(max + 1).read_to_end(&mut bytes)?;
    if max < bytes.len() as u64 {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {max} bytes")));
    }
    Ok(bytes)
}

/// Reads what [`replace`] or [`write`] wrote.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&read_bytes(path, 64 << 20)?)?)
}
