//! Device nodes that a worker is not to open.
//!
//! The worker gets a mount namespace of its own, in which each of them is mounted over itself without device files (`nodev`): it
//! is still there, and opening it fails as it does without permission, for root as well. That takes root (`CAP_SYS_ADMIN`), and a
//! worker that is root itself can undo it.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::io::Errno;

use crate::device::Found;

/// What is hidden from one worker: made before there is a child, which must not allocate.
pub(crate) struct Hidden(Vec<CString>);

impl Hidden {
    /// Those of these paths that are device nodes.
    pub fn new(paths: &[PathBuf]) -> Hidden {
        let is_device = |path: &&PathBuf| {
            let kind = fs::metadata(path).map(|meta| meta.file_type());
            kind.is_ok_and(|kind| kind.is_char_device() || kind.is_block_device())
        };
        let there = paths.iter().filter(is_device);
        Hidden(there.filter_map(|path| CString::new(path.as_os_str().as_bytes()).ok()).collect())
    }

    /// Hides them from the calling thread, and from what it becomes and starts.
    pub fn hide(&self) -> Result<(), Errno> {
        if self.0.is_empty() {
            return Ok(());
        }
        let errno = |errno: nix::Error| Errno::from_raw_os_error(errno as i32);
        let none = None::<&Path>;
        unshare(CloneFlags::CLONE_NEWNS).map_err(errno)?;
        // What is mounted on the node from now on is seen here, and not the other way round.
        mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).map_err(errno)?;
        for node in &self.0 {
            mount(Some(node.as_c_str()), node.as_c_str(), none, MsFlags::MS_BIND, none).map_err(errno)?;
            let closed = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | closed;
            mount(none, node.as_c_str(), none, flags, none).map_err(errno)?;
        }
        Ok(())
    }
}

/// Whether device nodes can be hidden here, tried in a thread of its own. Blocks for a moment.
///
/// # Errors
/// Says what is in the way.
pub(crate) fn check() -> Result<(), String> {
    const TRIED: &str = "/dev/zero";
    let trial = || {
        Hidden::new(&[TRIED.into()]).hide().map_err(io::Error::from)?;
        match OpenOptions::new().read(true).open(TRIED) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::other("what is hidden can be opened all the same")),
        }
    };
    let tried = std::thread::spawn(trial).join().unwrap_or_else(|_| Err(io::Error::other("the trial broke")));
    tried.map_err(|error| error.to_string())
}

/// Whether workers are kept from the device nodes of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hiding {
    /// They are.
    Done,
    /// Nobody wants it.
    Off,
    /// They cannot be, because.
    Impossible(String),
}

impl Hiding {
    /// Finds out. Blocks for a moment.
    pub fn try_here() -> Hiding {
        check().map_or_else(Hiding::Impossible, |()| Hiding::Done)
    }

    /// What people should know, if there is anything to hide: of one device alone there is only what nobody holds.
    pub fn finding<'a>(&self, devices: impl Iterator<Item = &'a Found>) -> Vec<String> {
        let with_nodes = devices.filter(|found| !found.nodes.is_empty()).count();
        match self {
            Hiding::Impossible(why) if 1 < with_nodes => {
                vec![format!(
                    "workers can open the nodes of devices that they do not hold: hiding them takes root: {why}"
                )]
            }
            _ => Vec::new(),
        }
    }
}
