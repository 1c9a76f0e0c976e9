//! Commands beside a worker, as its supervisor starts and ends them: with the worker's user, control groups, cores, environment and
//! hidden devices, and gone when the worker is.
//!
//! Each supervisor has a door: a socket without a file, whose name the kernel chooses and `pid.json` has. The agent connects there,
//! also one that was started after the worker, and hands over what to run with its three open ends. The connection is the
//! command's life: when it breaks, the command is hung up on, and killed a second later; when the command ends, how it did is said
//! there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, WaitStatus};
use serde::{Deserialize, Serialize};

use crate::run_dir::{Pids, RunDir, Spec};
use crate::spawn::{Ends, spawn_beside};
use crate::{json, process, said, socket};

/// Commands beside one worker at a time.
const MOST: usize = 16;
/// From the signal that its terminal is gone until a command is killed.
const HUNG_UP_MS: u64 = 1000;
/// Bytes of a word.
const MAX_WORD: usize = 1024;

/// What is to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Beside which worker: its supervisor may have another one by now.
    pub worker: String,
    pub command: Vec<String>,
    /// Over the worker's own.
    pub env: Vec<(String, String)>,
    /// Its ends are a terminal, which is to be its own.
    pub is_terminal: bool,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Word {
    Refused(String),
    Code(i32),
    Signal(i32),
    /// It was ended with its worker.
    WithWorker,
}

/// Where a supervisor is told of commands.
pub(crate) struct Door {
    listener: OwnedFd,
    /// Its name, which has no file.
    pub name: String,
}

impl Door {
    pub fn open() -> Result<Door, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::bind(&listener, &SocketAddrUnix::new_unnamed())?;
        rustix::net::listen(&listener, MOST as i32)?;
        let address = SocketAddrUnix::try_from(rustix::net::getsockname(&listener)?)?;
        let name = address.abstract_name().ok_or(Errno::ADDRNOTAVAIL)?;
        Ok(Door { name: String::from_utf8_lossy(name).into_owned(), listener })
    }

    /// The next that knocks, if it is of the agent's user: nobody else has a word here.
    fn accept(&self) -> Option<OwnedFd> {
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let line = rustix::net::accept_with(&self.listener, flags).ok()?;
            let peer = rustix::net::sockopt::socket_peercred(&line);
            if peer.is_ok_and(|peer| peer.uid == rustix::process::geteuid()) {
                return Some(line);
            }
        }
    }
}

/// Connects to the door of a worker's supervisor, and hands over what is to run there.
///
/// # Errors
/// Says why it cannot run.
pub(crate) fn order(dir: &RunDir, order: &Order, ends: &[OwnedFd; 3]) -> Result<OwnedFd, String> {
    let pids: Pids = json::read(&dir.pid_path()).map_err(|_| "it is just being started".to_string())?;
    let door = pids.door.ok_or("its supervisor is of an earlier version")?;
    let gone = |errno: Errno| match errno {
        Errno::CONNREFUSED => "it has ended".to_string(),
        errno => format!("its supervisor cannot be reached: {}", io::Error::from(errno)),
    };
    let connect = || {
        let line = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        rustix::net::connect(&line, &SocketAddrUnix::new_abstract_name(door.as_bytes())?)?;
        Ok((rustix::net::sockopt::socket_peercred(&line)?.pid, line))
    };
    let (peer, line) = connect().map_err(gone)?;
    // Somebody else may have its name once it is dead.
    if peer.as_raw_pid() != pids.supervisor || process::start_time(pids.supervisor) != pids.supervisor_start {
        return Err("it has ended".to_string());
    }
    let write = || {
        let told = said::memory_file()?;
        serde_json::to_writer(&told, order)?;
        let [input, output, errors] = ends;
        let descriptors = [told.as_fd(), input.as_fd(), output.as_fd(), errors.as_fd()];
        Ok(socket::send(line.as_fd(), b"1", &descriptors)?)
    };
    write().map_err(|error: io::Error| format!("its supervisor cannot be told: {error}"))?;
    Ok(line)
}

/// A word of a supervisor; `None`: there is none yet.
///
/// # Errors
/// It says no more.
pub(crate) fn word(line: &OwnedFd) -> io::Result<Word> {
    let mut bytes = [0; MAX_WORD];
    let (length, _) = rustix::net::recv(line, &mut bytes, rustix::net::RecvFlags::DONTWAIT)?;
    Ok(serde_json::from_slice(&bytes[..length])?)
}

/// The commands beside one worker, as its supervisor has them.
pub(crate) struct Beside<'a> {
    door: Option<&'a Door>,
    lines: Vec<Line>,
}

/// An agent that wants a command, or has one.
struct Line {
    socket: OwnedFd,
    /// `None`: it has not said yet what it wants.
    command: Option<Pid>,
    /// The agent, or the client behind it, has left.
    left: Option<Left>,
}

/// What is still to be done about a command that nobody wants any more.
#[derive(Clone, Copy)]
enum Left {
    KillAt(u64),
    Killed,
}

impl<'a> Beside<'a> {
    pub fn new(door: Option<&'a Door>) -> Beside<'a> {
        Beside { door, lines: Vec::new() }
    }

    /// What is to be waited for: who knocks, and who speaks or leaves.
    pub fn waits(&self) -> impl Iterator<Item = PollFd<'_>> {
        let lines = self.lines.iter().filter(|line| line.left.is_none()).map(|line| &line.socket);
        let all = self.door.map(|door| &door.listener).into_iter().chain(lines);
        all.map(|fd| PollFd::new(fd, PollFlags::IN))
    }

    /// Whether somebody is to be killed soon.
    pub fn is_pressed(&self) -> bool {
        self.lines.iter().any(|line| matches!(line.left, Some(Left::KillAt(_))))
    }

    /// Takes in what was said, and ends what nobody wants any more.
    ///
    /// * `groups`: by writing to these files a command joins the worker's control groups.
    pub fn look(&mut self, now_ms: u64, spec: &Spec, dir: &RunDir, groups: &[File]) {
        while let Some(socket) = self.door.and_then(Door::accept) {
            self.lines.push(Line { socket, command: None, left: None });
        }
        let mut run = self.lines.iter().filter(|line| line.command.is_some()).count();
        self.lines.retain_mut(|line| match line.command {
            Some(pid) => line.attend(pid, now_ms),
            None => {
                let goes_on = line.hear(run < MOST, spec, dir, groups);
                run += usize::from(line.command.is_some());
                goes_on
            }
        });
    }

    /// A child has ended, which may be a command.
    ///
    /// * `is_over`: so has the worker, or it is being killed.
    pub fn on_end(&mut self, pid: Pid, status: WaitStatus, is_over: bool) {
        let Some(at) = self.lines.iter().position(|line| line.command == Some(pid)) else { return };
        let line = self.lines.swap_remove(at);
        if line.left.is_some() {
            hang_up(pid, Signal::KILL); // What it started, and what did not listen.
        }
        let word = match status.terminating_signal() {
            Some(9) if is_over => Word::WithWorker,
            Some(signal) => Word::Signal(signal),
            None => Word::Code(status.exit_status().unwrap_or(0)),
        };
        say(&line.socket, &word);
    }
}

impl Line {
    /// Hears what is wanted, and begins it. Whether it goes on.
    ///
    /// * `has_room`: fewer commands than may run beside a worker do.
    fn hear(&mut self, has_room: bool, spec: &Spec, dir: &RunDir, groups: &[File]) -> bool {
        let descriptors = match socket::receive_now(self.socket.as_fd(), &mut [0]) {
            Err(Errno::AGAIN) => return true,
            Ok((1.., descriptors)) => descriptors,
            Ok((0, _)) | Err(_) => return false,
        };
        let started = match has_room {
            true => start(descriptors, spec, dir, groups),
            false => Err(format!("{MOST} commands run beside it, and no more may")),
        };
        match started {
            Ok(pid) => self.command = Some(pid),
            Err(why) => say(&self.socket, &Word::Refused(why)),
        }
        self.command.is_some()
    }

    /// Ends its command if nobody wants it any more. Goes on until that has ended.
    fn attend(&mut self, pid: Pid, now_ms: u64) -> bool {
        match self.left {
            None if socket::receive_now(self.socket.as_fd(), &mut [0]).err() != Some(Errno::AGAIN) => {
                hang_up(pid, Signal::HUP);
                self.left = Some(Left::KillAt(now_ms + HUNG_UP_MS));
            }
            Some(Left::KillAt(at_ms)) if at_ms <= now_ms => {
                hang_up(pid, Signal::KILL);
                self.left = Some(Left::Killed);
            }
            None | Some(Left::KillAt(_) | Left::Killed) => (),
        }
        true
    }
}

fn start(descriptors: Vec<OwnedFd>, spec: &Spec, dir: &RunDir, groups: &[File]) -> Result<Pid, String> {
    let [told, input, output, errors] = <[OwnedFd; 4]>::try_from(descriptors)
        .map_err(|_| "its supervisor has no room for its files".to_string())?;
    let order: Order = serde_json::from_str(&said::read(&File::from(told)))
        .map_err(|error| format!("its supervisor does not understand: {error}"))?;
    if order.worker != spec.id {
        return Err("it has ended".to_string());
    }
    let (command, mut env) = (order.command, spec.env.clone());
    env.extend(order.env);
    let ends = Ends { input, output, errors, is_terminal: order.is_terminal };
    spawn_beside(&Spec { command, env, ..spec.clone() }, &dir.path, &ends, groups)
}

/// Sends a signal to the process group that a command leads.
fn hang_up(command: Pid, signal: Signal) {
    let _ = rustix::process::kill_process_group(command, signal);
    // A shell with its jobs stopped hears nothing before it goes on.
    let _ = rustix::process::kill_process_group(command, Signal::CONT);
}

fn say(line: &OwnedFd, word: &Word) {
    let text = serde_json::to_string(word).unwrap_or_default();
    let _ = socket::send(line.as_fd(), text.as_bytes(), &[]);
}
