//! Device nodes that a worker is not to open.
//!
//! The worker gets a mount namespace of its own, in which each of them is mounted over itself without device files (`nodev`): it
//! is still there, and opening it fails as it does without permission, for root as well. A directory of nodes is replaced by one
//! that holds the worker's own and no others, so that what appears in it later is hidden as well. That takes root
//! (`CAP_SYS_ADMIN`), and a worker that is root itself can undo it.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags};
use rustix::io::{DupFlags, Errno};

use crate::device::Found;

/// What is hidden from one worker: made before there is a child, which must not allocate.
pub(crate) struct Hidden {
    nodes: Vec<CString>,
    directories: Vec<Directory>,
}

/// A directory of which some nodes are left.
struct Directory {
    path: CString,
    left: Vec<Left>,
}

/// A node that is left: what it is, once its directory is covered, and what it is called.
struct Left {
    source: CString,
    target: CString,
    /// That `source` names.
    file: OwnedFd,
}

impl Hidden {
    /// Those of these paths that are device nodes, or directories of them.
    ///
    /// * `own`: nodes that are left in directories.
    pub fn new(paths: &[PathBuf], own: &[PathBuf]) -> Hidden {
        let kind = |path: &PathBuf| fs::metadata(path).map(|meta| meta.file_type()).ok();
        let is_node =
            |path: &&PathBuf| kind(path).is_some_and(|kind| kind.is_char_device() || kind.is_block_device());
        let is_directory = |path: &&PathBuf| kind(path).is_some_and(|kind| kind.is_dir());
        let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).ok();
        let left = |path: &PathBuf| {
            let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
            let source = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
            Some(Left { source, target: text(path)?, file })
        };
        let directory = |path: &PathBuf| {
            let own = own.iter().filter(|node| node.parent() == Some(path)).filter(is_node);
            Some(Directory { path: text(path)?, left: own.filter_map(left).collect() })
        };
        Hidden {
            nodes: paths.iter().filter(is_node).filter_map(|path| text(path)).collect(),
            directories: paths.iter().filter(is_directory).filter_map(directory).collect(),
        }
    }

    /// Hides them from the calling thread, and from what it becomes and starts.
    pub fn hide(&mut self) -> Result<(), Errno> {
        if self.nodes.is_empty() && self.directories.is_empty() {
            return Ok(());
        }
        let errno = |errno: nix::Error| Errno::from_raw_os_error(errno as i32);
        let none = None::<&Path>;
        unshare(CloneFlags::CLONE_NEWNS).map_err(errno)?;
        // What is mounted on the node from now on is seen here, and not the other way round.
        mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).map_err(errno)?;
        let closed = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        for node in &self.nodes {
            mount(Some(node.as_c_str()), node.as_c_str(), none, MsFlags::MS_BIND, none).map_err(errno)?;
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | closed;
            mount(none, node.as_c_str(), none, flags, none).map_err(errno)?;
        }
        for Directory { path, left } in &mut self.directories {
            // What another namespace has open cannot be mounted in this one.
            for Left { target, file, .. } in &mut *left {
                let node =
                    rustix::fs::open(target.as_c_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
                rustix::io::dup3(&node, file, DupFlags::CLOEXEC)?;
            }
            let empty = Some(c"tmpfs");
            mount(empty, path.as_c_str(), empty, closed, Some(c"mode=755")).map_err(errno)?;
            for Left { source, target, .. } in left {
                let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::open(target.as_c_str(), flags, Mode::empty())?;
                let bind = MsFlags::MS_BIND;
                mount(Some(source.as_c_str()), target.as_c_str(), none, bind, none).map_err(errno)?;
            }
        }
        Ok(())
    }
}

/// Whether device nodes, and directories of them, can be hidden here, tried in threads of their own. Blocks for a moment.
///
/// # Errors
/// Says what is in the way.
pub(crate) fn check() -> Result<(), String> {
    let cannot_open = |node: &str, kind: io::ErrorKind| match OpenOptions::new().read(true).open(node) {
        Err(error) if error.kind() == kind => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("what is hidden can be opened all the same")),
    };
    let of_nodes = move || {
        Hidden::new(&["/dev/zero".into()], &[]).hide()?;
        cannot_open("/dev/zero", io::ErrorKind::PermissionDenied)
    };
    let of_directories = move || {
        Hidden::new(&["/dev".into()], &["/dev/null".into()]).hide()?;
        OpenOptions::new().read(true).open("/dev/null")?;
        cannot_open("/dev/zero", io::ErrorKind::NotFound)
    };
    let tried = |trial: JoinHandle<io::Result<()>>| {
        let tried = trial.join().unwrap_or_else(|_| Err(io::Error::other("the trial broke")));
        tried.map_err(|error| error.to_string())
    };
    tried(thread::spawn(of_nodes)).and_then(|()| tried(thread::spawn(of_directories)))
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_trial_hides_nothing_from_who_tries() {
        if !rustix::process::geteuid().is_root() {
            _ = writeln!(io::stderr(), "skipped: only root hides nodes");
            return;
        }
        assert_eq!(check(), Ok(()));
        assert!(fs::File::open("/dev/zero").is_ok());
    }
}
