//! Compiled kernels, kept for the next start: to compile them takes seconds.
//!
//! A file for each, whose name is the digest of all that it was made of. What lies there runs on the card, so the directory and its files
//! are this user's alone, and whatever else is found counts as nothing: the kernels are compiled, as they are where nothing can be kept.

use ring::digest::{Context, Digest, SHA256, digest};
use rustix::fs::{CWD, Mode, OFlags};
use std::fs::{self, DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What a file begins with, before a digest of what it was made of and of what follows.
const MARK: &[u8] = b"aquifer kernels 1\n";
/// Bytes of a digest.
const DIGEST: usize = 32;

/// The directory, if there is one.
pub struct Cache(Option<PathBuf>);

impl Cache {
    /// As the environment says: `AQUIFER_KERNEL_CACHE` is the directory, or `off`; else it is `aquifer/kernels` of the user's own
    /// cache.
    pub fn of_user() -> Cache {
        Cache::at(directory(|name| std::env::var_os(name).map(PathBuf::from)))
    }

    fn at(directory: Option<PathBuf>) -> Cache {
        let made = |directory: &PathBuf| {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.is_ok() && fs::metadata(directory).is_ok_and(|metadata| is_own(&metadata))
        };
        Cache(directory.filter(made))
    }

    /// What was kept of this, if it is whole.
    pub fn get(&self, of: &str) -> Option<Vec<u8>> {
        let path = self.0.as_ref()?.join(name(of));
        let file =
            rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        let mut file = File::from(file.ok()?);
        let mut content = Vec::new();
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || !is_own(&metadata) || file.read_to_end(&mut content).is_err() {
            return None;
        }
        let (expected, image) = content.strip_prefix(MARK)?.split_at_checked(DIGEST)?;
        (seal(of, image).as_ref() == expected).then(|| image.to_vec())
    }

    /// Keeps what was made of this, if it can.
    pub fn put(&self, of: &str, image: &[u8]) {
        let Some(directory) = &self.0 else { return };
        let write = || -> std::io::Result<()> {
            // It is this user's alone, and has its name once it is whole.
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            file.write_all(MARK)?;
            file.write_all(seal(of, image).as_ref())?;
            file.write_all(image)?;
            file.persist(directory.join(name(of)))?;
            Ok(())
        };
        _ = write();
    }
}

fn seal(of: &str, image: &[u8]) -> Digest {
    let mut both = Context::new(&SHA256);
    both.update(digest(&SHA256, of.as_bytes()).as_ref());
    both.update(image);
    both.finish()
}

fn name(of: &str) -> String {
    digest(&SHA256, of.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn directory(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let set = |name: &str| variable(name).filter(|path| !path.as_os_str().is_empty());
    match set("AQUIFER_KERNEL_CACHE") {
        Some(text) if text == Path::new("off") => None,
        Some(directory) => Some(directory),
        None => {
            // A relative path is none, as the specification of these directories has it.
            let own = set("XDG_CACHE_HOME").filter(|path| path.is_absolute());
            Some(own.or_else(|| Some(set("HOME")?.join(".cache")))?.join("aquifer/kernels"))
        }
    }
}

/// Whether nobody else can have written it.
fn is_own(metadata: &fs::Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn what_was_kept_is_found_and_nothing_else_counts() {
        let dir = TempDir::new();
        let place = dir.path().join("a/b");
        let cache = Cache::at(Some(place.clone()));
        assert_eq!(cache.get("one"), None);
        cache.put("one", b"image");
        assert_eq!(cache.get("one").as_deref(), Some(&b"image"[..]));
        assert_eq!(cache.get("two"), None);
        let file = place.join(name("one"));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&place), mode(&file)), (0o700, 0o600));

        // Cut off, changed, of another kind, written to by others, or elsewhere.
        let whole = fs::read(&file).unwrap();
        let changed = |at: usize| {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            changed
        };
        for wrong in [
            &whole[..20],
            &whole[..whole.len() - 1],
            &changed(0),
            &changed(30),
            &changed(whole.len() - 1),
            b"",
        ] {
            fs::write(&file, wrong).unwrap();
            assert_eq!(cache.get("one"), None, "{wrong:?}");
        }
        fs::write(&file, &whole).unwrap();
        assert!(cache.get("one").is_some());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o622)).unwrap();
        assert_eq!(cache.get("one"), None);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&file, dir.path().join("elsewhere")).unwrap();
        symlink(dir.path().join("elsewhere"), &file).unwrap();
        assert_eq!(cache.get("one"), None);
        cache.put("two", b"image");
        fs::rename(place.join(name("two")), &file).unwrap();
        assert_eq!(cache.get("one"), None, "of something else");
        fs::remove_file(&file).unwrap();
        symlink(dir.path().join("elsewhere"), &file).unwrap();
        // Another one is written in its place.
        cache.put("one", b"new");
        assert_eq!(cache.get("one").as_deref(), Some(&b"new"[..]));
        assert_eq!(fs::read(dir.path().join("elsewhere")).unwrap(), whole);
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_not_used() {
        let dir = TempDir::new();
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(Cache::at(Some(open.clone())).0.is_none());
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Cache::at(Some(open)).0.is_some());
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(Cache::at(Some(dir.path().join("file/kernels"))).0.is_none());
    }

    #[test]
    fn the_directory_is_the_users_unless_the_environment_says_otherwise() {
        let of = |variables: &[(&str, &str)]| {
            directory(|name| variables.iter().find(|it| it.0 == name).map(|it| PathBuf::from(it.1)))
        };
        let home = ("HOME", "/people/ann");
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[home]), Some("/people/ann/.cache/aquifer/kernels".into()));
        assert_eq!(of(&[home, ("XDG_CACHE_HOME", "/var/ann")]), Some("/var/ann/aquifer/kernels".into()));
        assert_eq!(of(&[home, ("XDG_CACHE_HOME", "var")]), Some("/people/ann/.cache/aquifer/kernels".into()));
        assert_eq!(of(&[home, ("AQUIFER_KERNEL_CACHE", "/k")]), Some("/k".into()));
        assert_eq!(of(&[home, ("AQUIFER_KERNEL_CACHE", "off")]), None);
        assert_eq!(of(&[home, ("AQUIFER_KERNEL_CACHE", "")]), of(&[home]));
    }
}
