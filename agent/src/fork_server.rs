//! The fork server: the small process that all supervisors of an agent are forked from.
//!
//! To start the agent's own large binary anew for a supervisor costs a millisecond of processor time in its loader,
//! and memory of its own; to fork a process of one thread that has touched few pages costs a tenth of that. So the
//! agent starts one such process and asks it for each supervisor, over a socket that the server has as its standard
//! input.
//!
//! A request is the socket on which the supervisor is to be told what to run. The answer is an error number, 0 with a
//! handle on the supervisor. Nothing needs the server once it has answered: it may be killed at any time, and it ends
//! when the agent does.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::sys::signal::{SIGCHLD, SigHandler};
use nix::unistd::ForkResult;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions};

use crate::launcher::SupervisorCommand;
use crate::{socket, supervisor};

/// The agent's end. Dropping it ends the server, but no supervisor.
pub(crate) struct ForkServer {
    socket: OwnedFd,
    process: Child,
}

/// Why there is no supervisor.
pub(crate) enum ForkError {
    /// The server is gone. A supervisor that it may have forked runs nothing, and ends with the socket it was given.
    Gone,
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
        let (socket, theirs) = socket::pair().map_err(|errno| cannot(&io::Error::from(errno)))?;
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

    /// Of the server's process, which all supervisors come from.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Starts a supervisor that listens on `theirs`, and returns a handle on it.
    pub fn fork(&self, theirs: OwnedFd) -> Result<OwnedFd, ForkError> {
        match socket::send(self.socket.as_fd(), b"1", &[theirs.as_fd()]) {
            Ok(()) => (),
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(ForkError::Gone),
            Err(errno) => return Err(ForkError::Refused(errno.into())),
        }
        match receive_answer(&self.socket) {
            Ok((0, Some(supervisor))) => Ok(supervisor),
            // Its handle did not arrive: this process has no room for another descriptor.
            Ok((0, None)) => Err(ForkError::Refused(Errno::MFILE.into())),
            Ok((errno, _)) => Err(ForkError::Refused(io::Error::from_raw_os_error(errno))),
            Err(_) => Err(ForkError::Gone),
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
    let (length, mut descriptors) = socket::receive(socket.as_fd(), &mut errno)?;
    match length {
        4 => Ok((i32::from_ne_bytes(errno), descriptors.pop())),
        _ => Err(Errno::CONNRESET),
    }
}

/// Serves an agent, on the socket that is standard input, until the agent is gone. In each supervisor that is forked
/// this returns too, when there is nothing more for it to run.
///
/// To be called first thing in `main`, before any thread is started.
pub fn supervise() -> ExitCode {
    // A signal from the agent's terminal is not for the supervisors, nor for what they are forked from.
    let _ = rustix::process::setsid();
    let agent = rustix::stdio::stdin();
    let mut answer: Result<Option<OwnedFd>, Errno> = Ok(None);
    loop {
        let (errno, handle) = match &answer {
            Ok(handle) => (0, handle.as_ref().map(|handle| handle.as_fd())),
            Err(errno) => (errno.raw_os_error(), None),
        };
        if socket::send(agent, &errno.to_ne_bytes(), handle.as_slice()).is_err() {
            return ExitCode::SUCCESS;
        }
        let mut descriptors = match socket::receive(agent, &mut [0]) {
            Ok((0, _)) | Err(_) => return ExitCode::SUCCESS,
            Ok((_, descriptors)) => descriptors,
        };
        let Some(orders) = descriptors.pop() else {
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
                drop(answer);
                return supervisor::serve(orders);
            }
            Ok(ForkResult::Parent { child }) => {
                let child = Pid::from_raw(child.as_raw()).expect("a process");
                answer = rustix::process::pidfd_open(child, PidfdFlags::empty()).map(Some);
                if answer.is_err() {
                    let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
                }
            }
            Err(errno) => answer = Err(Errno::from_raw_os_error(errno as i32)),
        }
        on_child_exit(SigHandler::SigIgn);
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
    }
}

fn on_child_exit(handler: SigHandler) {
    // SAFETY: no code of ours is installed as a handler.
    #[allow(unsafe_code)]
    let set = unsafe { nix::sys::signal::signal(SIGCHLD, handler) };
    set.expect("SIGCHLD can be handled");
}
