//! Files of checkpoints that are no longer kept, to be written over.
//!
//! To find pages for a new file, and to give back those of an old one, takes the system several times as long as to copy what
//! is to be in them. Whoever still has a file open, or has another name for it, keeps it as it was: such a file is removed.

use rustix::fs::{FsWord, fstatfs};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Kinds of file systems whose files nobody opens on another machine, by the numbers that the system has for them: tmpfs, ext4,
/// XFS, Btrfs.
const LOCAL: [FsWord; 4] = [0x0102_1994, 0xef53, 0x5846_5342, 0x9123_683e];

/// A directory of such files.
pub struct Spare(PathBuf);

impl Spare {
    /// There is no such directory yet.
    pub fn at(path: PathBuf) -> Spare {
        Spare(path)
    }

    /// Takes files out of a directory, unless it has others by these names. What it cannot take stays.
    pub fn take(&self, directory: &Path, names: &[&str]) {
        if fs::create_dir(&self.0).is_ok() {
            for name in names {
                _ = fs::rename(directory.join(name), self.0.join(name));
            }
        }
    }

    /// Has a file of this name lie at `place`, if there is one that nobody else knows of.
    ///
    /// # Errors
    /// Where what lies there then cannot be removed.
    pub fn give(&self, name: &str, place: &Path) -> io::Result<()> {
        // Under the new name nobody finds it, so that nobody opens it after it was asked whether anybody has.
        if fs::rename(self.0.join(name), place).is_ok() && !is_nobody_elses(place) {
            fs::remove_file(place)?;
        }
        Ok(())
    }

    /// Removes what is left.
    pub fn clear(&self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether a file has one name, is open nowhere else, and no other machine can have it open.
fn is_nobody_elses(path: &Path) -> bool {
    let seen = || -> io::Result<bool> {
        let file = File::options().write(true).open(path)?;
        let has_one_name = file.metadata()?.nlink() == 1;
        Ok(has_one_name && LOCAL.contains(&fstatfs(&file)?.f_type) && is_open_once(&file))
    };
    seen().unwrap_or(false)
}

/// Whether a file, open to be written, is open nowhere else, and mapped nowhere: only then is a lease granted, which is given
/// back at once.
fn is_open_once(file: &File) -> bool {
    let lease = |kind: libc::c_int| {
        // SAFETY: the descriptor is open, and the call has no other argument than a number.
        #[allow(unsafe_code)]
        unsafe {
            libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) == 0
        }
    };
    lease(libc::F_WRLCK) && lease(libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Mapping;
    use crate::testing::TempDir;

    /// What lies at the new place after a file was made and, for as long as `held` lives, something was done with it.
    fn given<T>(held: impl FnOnce(&Path) -> T) -> Option<Vec<u8>> {
        let dir = TempDir::new();
        let [old, place] = ["old", "place"].map(|name| dir.path().join(name));
        fs::create_dir(&old).unwrap();
        fs::write(old.join("file"), "content").unwrap();
        let _held = held(&old.join("file"));
        let spare = Spare::at(dir.path().join("spare"));
        spare.take(&old, &["file", "another"]);
        assert!(!old.join("file").exists());
        spare.give("file", &place).unwrap();
        spare.give("another", &dir.path().join("absent")).unwrap();
        assert!(!dir.path().join("absent").exists());
        spare.clear();
        assert!(!dir.path().join("spare").exists());
        fs::read(&place).ok()
    }

    #[test]
    fn a_file_is_used_again_only_where_nobody_else_has_it() {
        assert_eq!(given(|_| ()), Some(b"content".to_vec()));
        assert_eq!(given(|file| File::open(file).unwrap()), None, "it is read");
        assert_eq!(given(|file| Mapping::of(file).unwrap()), None, "it is mapped");
        assert_eq!(
            given(|file| fs::hard_link(file, file.with_extension("copy")).unwrap()),
            None,
            "it is kept"
        );
    }
}
