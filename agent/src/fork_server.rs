//! The fork server: the small process that all supervisors of an agent are forked from.
//!
//! To start the agent's own large binary anew for every worker costs a millisecond of processor time in its loader; to
//! fork a process of one thread that has touched few pages costs a tenth of that. So the agent starts one such process
//! and asks it for each supervisor, over a socket that the server has as its standard input.
//!
//! A request is the path of a run directory and three descriptors, the supervisor's standard input, output and error.
//! The answer is an error number, 0 with a handle on the supervisor. Nothing needs the server once it has answered:
//! it may be killed at any time, and it ends when the agent does.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::sys::signal::{SIGCHLD, SigHandler};
use nix::unistd::ForkResult;
use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Pid, PidfdFlags, WaitOptions};

use crate::launcher::SupervisorCommand;
use crate::supervisor;

/// Longest path of a run directory, in bytes: that of the kernel.
const MAX_PATH: usize = 4096;

/// The agent's end. Dropping it ends the server, but no supervisor.
pub(crate) struct ForkServer {
    socket: OwnedFd,
    process: Child,
}

/// Why there is no handle on a supervisor.
pub(crate) enum ForkError {
    /// The server was gone already: nothing was started.
    NotAsked,
    /// The server went away: nobody knows.
    NoAnswer,
    /// The machine refused.
    Refused(io::Error),
}

impl ForkServer {
    /// Starts a server and waits until it can be asked. It gets this process's environment without `own_env`.
    ///
    /// * `state_dir`: its argument, by which people and tests tell whose it is.
    pub fn start(
        command: &SupervisorCommand,
        state_dir: &Path,
        own_env: &[OsString],
    ) -> Result<ForkServer, String> {
        let cannot = |error: &dyn std::fmt::Display| {
            format!("cannot start supervisor {}: {error}", command.program.display())
        };
        let (socket, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|errno| cannot(&io::Error::from(errno)))?;
        let mut server = Command::new(&command.program);
        server.args(&command.args).arg(state_dir).stdin(theirs).stdout(Stdio::null());
        for key in own_env {
            server.env_remove(key);
        }
        let process = server.spawn().map_err(|error| cannot(&error))?;
        // Its end must be the only one, or its death would not be noticed.
        drop(server);
        let mut server = ForkServer { socket, process };
        match receive_answer(&server.socket) {
            Ok(_) => Ok(server),
            Err(_) => match server.process.wait() {
                Ok(status) => Err(cannot(&format!("it ended at once: {status}"))),
                Err(error) => Err(cannot(&error)),
            },
        }
    }

    /// Starts the supervisor of a run directory and returns a handle on it.
    pub fn fork(&self, run_dir: &Path, descriptors: [BorrowedFd; 3]) -> Result<OwnedFd, ForkError> {
        if MAX_PATH < run_dir.as_os_str().len() {
            return Err(ForkError::Refused(Errno::NAMETOOLONG.into()));
        }
        match send(self.socket.as_fd(), run_dir.as_os_str().as_bytes(), &descriptors) {
            Ok(()) => (),
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(ForkError::NotAsked),
            Err(errno) => return Err(ForkError::Refused(errno.into())),
        }
        match receive_answer(&self.socket) {
            Ok((0, Some(supervisor))) => Ok(supervisor),
            Ok((errno, None)) if errno != 0 => Err(ForkError::Refused(io::Error::from_raw_os_error(errno))),
            // An answer without its handle: this process has no room for another descriptor.
            Ok(_) | Err(_) => Err(ForkError::NoAnswer),
        }
    }
}

impl Drop for ForkServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn receive_answer(socket: &OwnedFd) -> Result<(i32, Option<OwnedFd>), Errno> {
    let mut errno = [0; 4];
    let (length, mut descriptors) = receive(socket.as_fd(), &mut errno)?;
    match length {
        4 => Ok((i32::from_ne_bytes(errno), descriptors.pop())),
        _ => Err(Errno::CONNRESET),
    }
}

/// Serves an agent, on the socket that is standard input, until the agent is gone. In each supervisor that is forked
/// this returns too, when its worker has ended.
///
/// To be called first thing in `main`, before any thread is started.
pub fn supervise() -> ExitCode {
    // A signal from the agent's terminal is not for the supervisors, nor for what they are forked from.
    let _ = rustix::process::setsid();
    let mut socket = rustix::stdio::stdin();
    let mut path = [0; MAX_PATH];
    let mut answer: Result<Option<OwnedFd>, Errno> = Ok(None);
    loop {
        let (errno, handle) = match &answer {
            Ok(handle) => (0, handle.as_ref().map(|handle| handle.as_fd())),
            Err(errno) => (errno.raw_os_error(), None),
        };
        if send(socket, &errno.to_ne_bytes(), handle.as_slice()).is_err() {
            return ExitCode::SUCCESS;
        }
        let (length, descriptors) = match receive(socket, &mut path) {
            Ok((0, _)) | Err(_) => return ExitCode::SUCCESS,
            Ok(request) => request,
        };
        let Ok([input, output, error]) = <[OwnedFd; 3]>::try_from(descriptors) else {
            answer = Err(Errno::MFILE);
            continue;
        };
        // The dead are reaped by the kernel, but for the moment between the fork and the handle on the child.
        on_child_exit(SigHandler::SigDfl);
        // SAFETY: this process has one thread, so that the child finds no lock taken.
        #[allow(unsafe_code)]
        let forked = unsafe { nix::unistd::fork() };
        match forked {
            Ok(ForkResult::Child) => {
                let _ = rustix::stdio::dup2_stdin(input);
                let _ = rustix::stdio::dup2_stdout(output);
                let _ = rustix::stdio::dup2_stderr(error);
                drop(answer);
                return supervisor::run(Path::new(OsStr::from_bytes(&path[..length])));
            }
            Ok(ForkResult::Parent { child }) => {
                let child = Pid::from_raw(child.as_raw()).expect("a process");
                answer = rustix::process::pidfd_open(child, PidfdFlags::empty()).map(Some);
                if answer.is_err() {
                    // The worker, if there is one by now, dies with it.
                    let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
                }
            }
            Err(errno) => answer = Err(Errno::from_raw_os_error(errno as i32)),
        }
        on_child_exit(SigHandler::SigIgn);
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        socket = rustix::stdio::stdin();
    }
}

fn on_child_exit(handler: SigHandler) {
    // SAFETY: no code of ours is installed as a handler.
    #[allow(unsafe_code)]
    let set = unsafe { nix::sys::signal::signal(SIGCHLD, handler) };
    set.expect("SIGCHLD can be handled");
}

fn send(socket: BorrowedFd, bytes: &[u8], descriptors: &[BorrowedFd]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let bytes = [IoSlice::new(bytes)];
    rustix::io::retry_on_intr(|| rustix::net::sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// The number of bytes, 0 at the end, and the descriptors that came with them.
fn receive(socket: BorrowedFd, bytes: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [IoSliceMut::new(bytes)];
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut descriptors = Vec::with_capacity(3);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((received.bytes, descriptors))
}
