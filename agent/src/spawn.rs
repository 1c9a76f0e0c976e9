//! Starts the process of a worker: own process group, its cores, its control groups; it dies with its supervisor.
//!
//! Until it executes its program the child runs in the supervisor's memory, while the supervisor waits, as with
//! `vfork`: to copy the page tables, and then the pages that either touches, costs several times what all else does.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{CStr, CString, OsStr, OsString, c_char};
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::{env, ptr};

use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::signal::{SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SigHandler, SigSet};
use nix::unistd::ForkResult;
use rustix::io::Errno;
use rustix::process::{Gid, Pid, Resource, Rlimit, Signal, Uid, WaitOptions};
use rustix::thread::CpuSet;

use crate::hiding::Hidden;
use crate::run_dir::Spec;

/// Bytes of the child's stack. It makes system calls only.
const STACK: usize = 64 << 10;

/// Where a program without a `/` is looked for if the worker has no `PATH`, as in the C library.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// What runs a script that names no interpreter, as in the C library.
const SHELL: &CStr = c"/bin/sh";

/// Starts a worker.
///
/// To be called in a process of one thread.
///
/// * `input`: its standard input. Both its outputs go to this process's standard error.
/// * `groups`: by writing to these files it joins its control groups.
pub(crate) fn spawn(spec: &Spec, run_dir: &Path, input: BorrowedFd, groups: &[File]) -> Result<Pid, String> {
    let mut change = Change::new(spec, run_dir, groups)?;
    let (mut failure, mut stack) = (None, vec![0; STACK]);
    let child = Box::new(|| {
        let ends = || {
            rustix::process::setpgid(None, None)?;
            rustix::stdio::dup2_stdin(input)?;
            rustix::stdio::dup2_stdout(rustix::stdio::stderr())
        };
        failure = change.carry_out(ends).err();
        NOT_FOUND as isize
    });
    let shared = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: this process has one thread, handles no signal but its own faults, and stands still until the child has
    // executed its program or has ended; so nothing else sees or changes the memory that the child uses. Descriptors,
    // dispositions of signals and the working directory are the child's own.
    #[allow(unsafe_code)]
    let started = unsafe { nix::sched::clone(child, &mut stack, shared, Some(libc::SIGCHLD)) };
    match (started.map(|pid| Pid::from_raw(pid.as_raw()).expect("a process")), failure) {
        (Ok(pid), None) => Ok(pid),
        (Ok(pid), Some(failure)) => {
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
            Err(change.why(failure))
        }
        (Err(errno), _) => Err(why_not_started(&change.program, &errno.into())),
    }
}

/// The three ends of a command beside a worker.
pub(crate) struct Ends {
    pub input: OwnedFd,
    pub output: OwnedFd,
    pub errors: OwnedFd,
    /// They are a terminal, which is to be the command's own.
    pub is_terminal: bool,
}

/// Exit code of a command whose program is not there, as of a shell; of one that cannot be executed it is one less.
const NOT_FOUND: i32 = 127;

/// Starts a command as a worker would be, in a session of its own. If it cannot begin, it says so on its standard error, and ends
/// as in a shell.
///
/// Its directory or program may be where nothing answers: unlike a worker's start, which nothing runs beside, this one must not
/// be waited for. So the child is a copy of this process.
///
/// To be called in a process of one thread.
pub(crate) fn spawn_beside(spec: &Spec, run_dir: &Path, ends: &Ends, groups: &[File]) -> Result<Pid, String> {
    let mut change = Change::new(spec, run_dir, groups)?;
    // SAFETY: this process has one thread, so that the child finds no lock taken.
    #[allow(unsafe_code)]
    let forked = unsafe { nix::unistd::fork() };
    match forked {
        Ok(ForkResult::Parent { child }) => Ok(Pid::from_raw(child.as_raw()).expect("a process")),
        Ok(ForkResult::Child) => {
            // Where their memory is used up, it goes before the worker. Without that either may.
            let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
            let owner = spec.account.as_ref().map(|account| Uid::from_raw(account.uid));
            let Err(failure) = change.carry_out(|| ends.take(owner));
            let is_missing = matches!(failure, (Stage::Program, Errno::NOENT));
            eprintln!("aquifer: {}", change.why(failure));
            std::process::exit(if is_missing { NOT_FOUND } else { NOT_FOUND - 1 })
        }
        Err(errno) => Err(format!("cannot fork: {errno}")),
    }
}

impl Ends {
    /// Makes them the calling process's, in a new session, and its user's: programs open them anew by their names.
    fn take(&self, owner: Option<Uid>) -> Result<(), Errno> {
        let Ends { input, output, errors, is_terminal } = self;
        rustix::stdio::dup2_stdin(input)?;
        rustix::stdio::dup2_stdout(output)?;
        rustix::stdio::dup2_stderr(errors)?;
        rustix::process::setsid()?;
        // An agent that was started beside its shell ignores some, and a terminal means them.
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
            set_default(signal)?;
        }
        if *is_terminal {
            rustix::process::ioctl_tiocsctty(input)?;
        }
        for end in [input, output, errors] {
            rustix::fs::fchown(end, owner, None)?;
        }
        Ok(())
    }
}

/// What did not succeed on the way to a program.
#[derive(Clone, Copy)]
enum Stage {
    Begin,
    Confine,
    Hide,
    Enter,
    Program,
}

/// All that a child needs to become a worker, or a command beside one: made before there is a child that must not allocate.
struct Change<'a> {
    program: String,
    image: Image,
    working_dir: PathBuf,
    enter: CString,
    account: Option<(Uid, Gid, Vec<Gid>)>,
    hidden: Hidden,
    cores: Option<CpuSet>,
    groups: &'a [File],
    no_core: Rlimit,
    may_gain_nothing: bool,
    supervisor: Pid,
}

impl<'a> Change<'a> {
    fn new(spec: &Spec, run_dir: &Path, groups: &'a [File]) -> Result<Change<'a>, String> {
        let program = spec.command.first().ok_or("command is empty")?.clone();
        let working_dir = spec.working_dir.clone().unwrap_or_else(|| run_dir.to_path_buf());
        let cores = match spec.cpu_affinity.is_empty() {
            true => None,
            false => Some(crate::host::cpu_set(&spec.cpu_affinity)?),
        };
        let image = Image::new(spec).map_err(|error| format!("program {program}: {error}"))?;
        let enter = CString::new(working_dir.as_os_str().as_bytes())
            .map_err(|error| format!("working_dir {}: {error}", working_dir.display()))?;
        let account = spec.account.as_ref().map(|account| {
            let groups: Vec<Gid> = account.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            (Uid::from_raw(account.uid), Gid::from_raw(account.gid), groups)
        });
        Ok(Change {
            program,
            image,
            working_dir,
            enter,
            account,
            hidden: Hidden::new(&spec.hidden_nodes, &spec.own_nodes),
            cores,
            groups,
            // What a program had in its memory is not left on the disk, unless it asks for that.
            no_core: Rlimit { current: Some(0), ..rustix::process::getrlimit(Resource::Core) },
            // An engine's client may need programs that are root's to whoever starts them; what it runs may not.
            may_gain_nothing: spec.container.is_none(),
            supervisor: rustix::process::getpid(),
        })
    }

    /// Turns the calling process, a child of the supervisor, into its program.
    ///
    /// * `ends`: gives it its place among processes, and its standard input and outputs.
    fn carry_out(&mut self, ends: impl FnOnce() -> Result<(), Errno>) -> Result<Infallible, (Stage, Errno)> {
        let at = |stage: Stage| move |errno: Errno| (stage, errno);
        let begin = at(Stage::Begin);
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(begin)?;
        if rustix::process::getppid() != Some(self.supervisor) {
            return Err(begin(Errno::PIPE));
        }
        ends().map_err(begin)?;
        confine(self.groups, self.cores.as_ref()).map_err(at(Stage::Confine))?;
        self.hidden.hide().map_err(at(Stage::Hide))?;
        reset_signals().map_err(begin)?;
        self.become_user().map_err(begin)?;
        rustix::process::chdir(self.enter.as_c_str()).map_err(at(Stage::Enter))?;
        self.image.execute().map_err(at(Stage::Program))
    }

    fn become_user(&self) -> Result<(), Errno> {
        if let Some((uid, gid, groups)) = &self.account {
            rustix::thread::set_thread_groups(groups)?;
            rustix::thread::set_thread_gid(*gid)?;
            rustix::thread::set_thread_uid(*uid)?;
            // That has undone it.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        }
        if self.may_gain_nothing {
            rustix::thread::set_no_new_privs(true)?;
        }
        rustix::process::setrlimit(Resource::Core, self.no_core)
    }

    fn why(&self, (stage, errno): (Stage, Errno)) -> String {
        let error = io::Error::from(errno);
        match stage {
            Stage::Confine => format!("it cannot be confined to its cores and control groups: {error}"),
            Stage::Hide => format!("its node's other devices cannot be hidden from it: {error}"),
            Stage::Enter => why_not_entered(&self.working_dir, &error),
            Stage::Begin | Stage::Program => why_not_started(&self.program, &error),
        }
    }
}

fn confine(groups: &[File], cores: Option<&CpuSet>) -> Result<(), Errno> {
    for group in groups {
        rustix::io::write(group, b"0")?;
    }
    cores.map_or(Ok(()), |cores| rustix::thread::sched_setaffinity(None, cores))
}

/// Undoes what this process has changed for itself.
fn reset_signals() -> Result<(), Errno> {
    set_default(SIGPIPE)?;
    SigSet::empty().thread_set_mask().map_err(|errno| Errno::from_raw_os_error(errno as i32))
}

fn set_default(signal: nix::sys::signal::Signal) -> Result<(), Errno> {
    // SAFETY: no code of ours is installed as a handler.
    #[allow(unsafe_code)]
    let set = unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) };
    set.map(drop).map_err(|errno| Errno::from_raw_os_error(errno as i32))
}

/// What the child becomes: made before there is a child, because what that allocates would never be freed.
struct Image {
    /// Files to try, in this order.
    programs: Vec<CString>,
    /// A shell, then the worker's arguments: to be executed without the first, unless the program turns out to be a
    /// script that names no interpreter.
    arguments: Strings,
    environment: Strings,
}

/// Strings as `execve` takes them.
struct Strings {
    /// To each of the strings, then null.
    pointers: Vec<*const c_char>,
    _strings: Vec<CString>,
}

impl Image {
    fn new(spec: &Spec) -> io::Result<Image> {
        let mut environment: BTreeMap<OsString, OsString> = env::vars_os().collect();
        environment.extend(spec.env.iter().map(|(key, value)| (key.into(), value.into())));
        let program = &spec.command[0];
        let files = match program.contains('/') || program.is_empty() {
            true => vec![PathBuf::from(program)],
            false => {
                let path = environment.get(OsStr::new("PATH")).map_or(OsStr::new(DEFAULT_PATH), |path| path);
                env::split_paths(path).map(|dir| dir.join(program)).collect()
            }
        };
        let arguments = spec.command.iter().map(|argument| argument.as_bytes().to_vec());
        let variable =
            |(key, value): (&OsString, &OsString)| [key.as_bytes(), b"=", value.as_bytes()].concat();
        Ok(Image {
            programs: Strings::new(files.into_iter().map(|file| file.into_os_string().into_vec()))?._strings,
            arguments: Strings::new(std::iter::once(SHELL.to_bytes().to_vec()).chain(arguments))?,
            environment: Strings::new(environment.iter().map(variable))?,
        })
    }

    /// Returns only if none of the files can be executed.
    fn execute(&mut self) -> Result<Infallible, Errno> {
        let mut denied = false;
        for program in &self.programs {
            match execute(program, &self.arguments.pointers[1..], &self.environment.pointers) {
                Errno::NOEXEC => {
                    self.arguments.pointers[1] = program.as_ptr();
                    return Err(execute(SHELL, &self.arguments.pointers, &self.environment.pointers));
                }
                Errno::NOENT | Errno::NOTDIR => (),
                Errno::ACCESS => denied = true,
                errno => return Err(errno),
            }
        }
        Err(if denied { Errno::ACCESS } else { Errno::NOENT })
    }
}

impl Strings {
    fn new(strings: impl Iterator<Item = Vec<u8>>) -> io::Result<Strings> {
        let strings = strings.map(CString::new).collect::<Result<Vec<_>, _>>()?;
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        Ok(Strings { pointers, _strings: strings })
    }
}

/// * `arguments`, `environment`: pointers of [`Strings`], with the null.
fn execute(program: &CStr, arguments: &[*const c_char], environment: &[*const c_char]) -> Errno {
    // SAFETY: all strings live as long as their `Image`, and both lists end with null.
    #[allow(unsafe_code)]
    unsafe {
        libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr())
    };
    Errno::from_raw_os_error(nix::errno::Errno::last_raw())
}

/// Says in a sentence why a worker could not begin in its directory.
fn why_not_entered(dir: &Path, error: &io::Error) -> String {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    let why = match error.kind() {
        NotADirectory => "not a directory".to_string(),
        NotFound => "no such directory".to_string(),
        PermissionDenied => "permission denied".to_string(),
        _ => error.to_string(),
    };
    format!("working_dir {}: {why}", dir.display())
}

/// Says in a sentence why a program could not be started; the kernel's error does not tell which path it means.
fn why_not_started(program: &str, error: &io::Error) -> String {
    use io::ErrorKind::{NotFound, PermissionDenied};
    let is_path = program.contains('/');
    match error.kind() {
        NotFound if !is_path => format!("program {program}: not found in PATH"),
        NotFound if Path::new(program).exists() => {
            format!("program {program}: its interpreter does not exist")
        }
        NotFound => format!("program {program}: no such file"),
        PermissionDenied => format!("program {program}: permission denied"),
        _ => format!("program {program}: {error}"),
    }
}
