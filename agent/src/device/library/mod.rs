//! A vendor's library, which is loaded and called in a process of its own: what crashes, hangs or ends there is that process.
//!
//! It is this program again ([`serve`]), started for each library that is used and gone with whoever asks it. Question and answer go
//! over a socket, one after the other ([`frame`]). What state there is of cards is here; there are only what the library itself
//! keeps, and addresses that mean nothing to anybody else.

mod frame;
mod served;

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytemuck::Pod;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

pub use frame::Place;
use frame::{Answer, Call, Load, Question};
pub use served::serve;

/// Most words that a call has.
pub const MOST_WORDS: usize = 6;
/// How often as long as a look starting a library may take: drivers wake their cards one after the other.
pub const STARTING: u32 = 12;

/// What is started to load a library and call it.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct HelperCommand {
    pub program: PathBuf,
    pub args: Vec<OsString>,
}

impl Default for HelperCommand {
    /// `aquifer ask-library`, of the very binary that runs now, even if another one lies in its place.
    fn default() -> HelperCommand {
        HelperCommand { program: "/proc/self/exe".into(), args: vec!["ask-library".into()] }
    }
}

/// A library that a process has loaded.
pub struct Library {
    inner: Mutex<Inner>,
}

struct Inner {
    /// Its file's name.
    name: String,
    helper: Helper,
    /// Why nothing can be asked any more.
    gone: Option<String>,
    /// All that is asked has to be answered by then, which is so long after it was last said.
    until: Instant,
    patience: Duration,
}

/// Why there is no library.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// `libdcmi.so not found`.
    #[error("{0} not found")]
    Absent(String),
    /// Its process crashed, hung or could not be started, as a whole sentence.
    #[error("{0}")]
    Gone(String),
    /// What the loader says of the first that is there, or the library of its start.
    #[error("{0}")]
    Refused(String),
}

/// Why a function did not return.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uncalled {
    /// The library has no such symbol.
    Missing,
    /// `libdcmi.so crashed (SIGSEGV) in dcmi_init`: nothing more can be asked.
    Gone(String),
}

/// What a function returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Returned {
    /// Its status, or a number.
    pub value: u64,
    /// The text at the address that it returned, where that was asked for.
    pub text: String,
    /// What it left in the memory that it was given.
    pub memory: Vec<u8>,
}

/// A word of a call by hand.
pub enum Word<'a> {
    /// A number, or an address that the library gave.
    Is(usize),
    /// The address of memory that has these bytes, and afterwards what the function has made of them.
    At(&'a mut [u8]),
}

/// The address of a value.
pub fn at<T: Pod>(value: &mut T) -> Word<'_> {
    Word::At(bytemuck::bytes_of_mut(value))
}

impl Library {
    /// Loads the first of these names that can be had, looking in `dirs` before the system's places.
    ///
    /// A name is that of a file, an absolute path, or one below a variable: `$NEUWARE_HOME/lib64/libcndev.so`.
    ///
    /// * `needs`: libraries that it does not find by itself.
    /// * `patience`: until then it has to be loaded, and all that is asked before the next [`Library::allow`] to be answered.
    ///
    /// # Errors
    /// None is there, or the first that is cannot be loaded.
    pub fn load(
        command: &HelperCommand,
        needs: &[&str],
        names: &[&str],
        dirs: &[PathBuf],
        patience: Duration,
    ) -> Result<Library, LoadError> {
        let first = *names.first().unwrap_or(&"no library");
        let name = Path::new(first).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let cannot = |error| LoadError::Gone(format!("{name} cannot be asked: {error}"));
        let helper = Helper::start(command).map_err(cannot)?;
        let mut inner =
            Inner { name: name.clone(), helper, gone: None, until: Instant::now() + patience, patience };
        let texts = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let load = Load { needs: texts(needs), names: texts(names), dirs: dirs.to_vec() };
        match inner.ask(&Question::Load(load), &[], "its initialisers").map_err(LoadError::Gone)? {
            (Answer::Loaded { name }, _) => inner.name = name,
            (Answer::Refused(why), _) => return Err(LoadError::Refused(why)),
            _ => return Err(LoadError::Absent(first.into())),
        }
        Ok(Library { inner: Mutex::new(inner) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// All that is asked from now on has to be answered within so long.
    pub fn allow(&self, patience: Duration) {
        let mut inner = self.inner();
        (inner.until, inner.patience) = (Instant::now() + patience, patience);
    }

    /// Why nothing can be asked any more: its process has crashed, or did not answer in time and was ended.
    pub fn gone(&self) -> Option<String> {
        self.inner().gone.clone()
    }

    /// Whether its process has ended by itself since it was last asked, as a whole sentence.
    pub fn ended(&self) -> Option<String> {
        let mut inner = self.inner();
        let status = inner.helper.process.try_wait().ok()??;
        Some(format!("{} {} while nothing was asked", inner.name, how(Some(status))))
    }

    /// Calls a function.
    ///
    /// * `words`: at most [`MOST_WORDS`]. `memory`: what it is given starts with this, is `size` bytes, the others 0, and all of
    ///   it comes back. A function may write [`SLACK`](served::SLACK) bytes more.
    /// * `is_text`: what it returns is the address of a text that stays.
    ///
    /// # Errors
    /// It did not return.
    pub fn call(
        &self,
        symbol: &str,
        words: &[Place],
        memory: &[u8],
        size: usize,
        is_text: bool,
    ) -> Result<Returned, Uncalled> {
        let call = Call { symbol: symbol.into(), words: words.into(), size: size as u32, is_text };
        match self.inner().ask(&Question::Call(call), memory, symbol).map_err(Uncalled::Gone)? {
            (Answer::Returned { value, text }, memory) => Ok(Returned { value, text, memory }),
            _ => Err(Uncalled::Missing),
        }
    }

    /// Calls a function that returns 0 when it has done what it was asked.
    ///
    /// # Errors
    /// It has not, or is not there.
    pub fn done(&self, symbol: &str, words: &mut [Word<'_>]) -> Result<(), String> {
        let (mut memory, mut places) = (Vec::new(), Vec::new());
        for word in words.iter() {
            places.push(match word {
                Word::Is(number) => Place::Is(*number as u64),
                Word::At(bytes) => {
                    // Aligned for whatever is there.
                    memory.resize(memory.len().next_multiple_of(8), 0);
                    memory.extend_from_slice(bytes);
                    Place::At((memory.len() - bytes.len()) as u32)
                }
            });
        }
        let returned = self.call(symbol, &places, &memory, memory.len(), false);
        let returned = returned.map_err(|uncalled| match uncalled {
            Uncalled::Missing => format!("the driver has no {symbol}"),
            Uncalled::Gone(why) => why,
        })?;
        for (word, place) in words.iter_mut().zip(places) {
            if let (Word::At(bytes), Place::At(at)) = (word, place) {
                bytes.copy_from_slice(&returned.memory[at as usize..at as usize + bytes.len()]);
            }
        }
        match returned.value as i32 {
            0 => Ok(()),
            status => Err(format!("{symbol} returned {status}")),
        }
    }
}

impl Inner {
    /// Asks, and waits for the answer. After a failure nothing is asked any more.
    fn ask(&mut self, question: &Question, memory: &[u8], within: &str) -> Result<(Answer, Vec<u8>), String> {
        if let Some(why) = &self.gone {
            return Err(why.clone());
        }
        // No time at all would be no limit.
        let left = self.until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.helper.ask(question, memory, left).map_err(|error| {
            let why = match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                    self.helper.end();
                    let patience = self.patience.as_secs_f64();
                    format!("{} did not answer within {patience} s: {within} has not returned", self.name)
                }
                ErrorKind::InvalidData => {
                    self.helper.end();
                    format!("{} gives no sensible answer in {within}: {error}", self.name)
                }
                _ => format!("{} {} in {within}", self.name, how(self.helper.end())),
            };
            self.gone.insert(why).clone()
        })
    }
}

/// The process that has a library. Dropping it ends it.
struct Helper {
    process: Child,
    socket: UnixStream,
}

impl Helper {
    fn start(command: &HelperCommand) -> std::io::Result<Helper> {
        let (socket, theirs) = UnixStream::pair()?;
        let mut helper = Command::new(&command.program);
        if command.program == Path::new("/proc/self/exe")
            && let Some(own) = std::env::args_os().next()
        {
            helper.arg0(own);
        }
        helper.args(&command.args).stdin(Stdio::from(OwnedFd::from(theirs)));
        // What libraries print is for whoever looks after the machine, and nothing that this program prints.
        helper.stdout(Stdio::from(rustix::io::dup(rustix::stdio::stderr())?));
        Ok(Helper { process: helper.spawn()?, socket })
    }

    fn ask(
        &mut self,
        question: &Question,
        memory: &[u8],
        left: Duration,
    ) -> std::io::Result<(Answer, Vec<u8>)> {
        self.socket.set_read_timeout(Some(left))?;
        self.socket.set_write_timeout(Some(left))?;
        frame::send(&mut self.socket, question, memory)?;
        frame::receive(&mut self.socket)
    }

    /// Ends it, if it has not ended, and says how that was; `None`: a driver does not let go of it.
    fn end(&mut self) -> Option<ExitStatus> {
        // One that is about to end by itself does so as it began to.
        let _ = self.process.kill();
        let handle = pidfd_open(Pid::from_child(&self.process), PidfdFlags::empty()).ok()?;
        let most = Timespec { tv_sec: 1, tv_nsec: 0 };
        let _ = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&most));
        self.process.try_wait().ok().flatten()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // What a driver holds is reaped with this process at the latest.
        self.end();
    }
}

/// What a process did that has ended while it was asked.
fn how(status: Option<ExitStatus>) -> String {
    let signal = status.and_then(|status| status.signal());
    let name = |number: i32| Signal::try_from(number).map_or(format!("signal {number}"), |it| it.to_string());
    match (signal, status.and_then(|status| status.code())) {
        (Some(signal), _) => format!("crashed ({})", name(signal)),
        (None, Some(code)) => format!("ended its process (exit code {code})"),
        (None, None) => "ended its process".into(),
    }
}
