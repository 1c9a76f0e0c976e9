//! Starts the process of a worker: own process group, its cores, its control groups; it dies with its supervisor.
//!
//! Until it executes its program the child runs in the supervisor's memory, while the supervisor waits, as with
//! `vfork`: to copy the page tables, and then the pages that either touches, costs several times what all else does.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{CStr, CString, OsStr, OsString, c_char};
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::{env, ptr};

use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::signal::{SIGPIPE, SigHandler, SigSet};
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
    let program = spec.command.first().ok_or("command is empty")?;
    let working_dir = spec.working_dir.as_deref().unwrap_or(run_dir);
    let cores = match spec.cpu_affinity.is_empty() {
        true => None,
        false => Some(crate::host::cpu_set(&spec.cpu_affinity)?),
    };
    let mut image = Image::new(spec).map_err(|error| format!("program {program}: {error}"))?;
    let enter = CString::new(working_dir.as_os_str().as_bytes())
        .map_err(|error| format!("working_dir {}: {error}", working_dir.display()))?;
    let account = spec.account.as_ref().map(|account| {
        let groups: Vec<Gid> = account.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        (Uid::from_raw(account.uid), Gid::from_raw(account.gid), groups)
    });
    let mut hidden = Hidden::new(&spec.hidden_nodes, &spec.own_nodes);
    // An engine's client may need programs that are root's to whoever starts them; what it runs may not.
    let may_gain_nothing = spec.container.is_none();
    // What a program had in its memory is not left on the disk, unless it asks for that.
    let no_core = Rlimit { current: Some(0), ..rustix::process::getrlimit(Resource::Core) };
    let supervisor = rustix::process::getpid();
    let (mut failure, mut stage, mut is_elsewhere) = (None, None, false);
    let mut stack = vec![0; STACK];
    let child = Box::new(|| {
        let mut become_worker = || -> Result<Infallible, Errno> {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            if rustix::process::getppid() != Some(supervisor) {
                return Err(Errno::PIPE);
            }
            rustix::process::setpgid(None, None)?;
            let unconfined =
                |_: &Errno| stage = Some("it cannot be confined to its cores and control groups");
            confine(groups, cores.as_ref()).inspect_err(unconfined)?;
            let unhidden = |_: &Errno| stage = Some("its node's other devices cannot be hidden from it");
            hidden.hide().inspect_err(unhidden)?;
            reset_signals()?;
            rustix::stdio::dup2_stdin(input)?;
            rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
            if let Some((uid, gid, groups)) = &account {
                rustix::thread::set_thread_groups(groups)?;
                rustix::thread::set_thread_gid(*gid)?;
                rustix::thread::set_thread_uid(*uid)?;
                // That has undone it.
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            }
            if may_gain_nothing {
                rustix::thread::set_no_new_privs(true)?;
            }
            rustix::process::setrlimit(Resource::Core, no_core)?;
            rustix::process::chdir(enter.as_c_str()).inspect_err(|_| is_elsewhere = true)?;
            image.execute()
        };
        failure = become_worker().err();
        127
    });
    let shared = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: this process has one thread, handles no signal but its own faults, and stands still until the child has
    // executed its program or has ended; so nothing else sees or changes the memory that the child uses. Descriptors,
    // dispositions of signals and the working directory are the child's own.
    #[allow(unsafe_code)]
    let started = unsafe { nix::sched::clone(child, &mut stack, shared, Some(libc::SIGCHLD)) };
    let error = match (started.map(|pid| Pid::from_raw(pid.as_raw()).expect("a process")), failure) {
        (Ok(pid), None) => return Ok(pid),
        (Ok(pid), Some(errno)) => {
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
            io::Error::from(errno)
        }
        (Err(errno), _) => errno.into(),
    };
    Err(match stage {
        Some(stage) => format!("{stage}: {error}"),
        None if is_elsewhere => why_not_entered(working_dir, &error),
        None => why_not_started(program, &error),
    })
}

fn confine(groups: &[File], cores: Option<&CpuSet>) -> Result<(), Errno> {
    for group in groups {
        rustix::io::write(group, b"0")?;
    }
    cores.map_or(Ok(()), |cores| rustix::thread::sched_setaffinity(None, cores))
}

/// Undoes what this process has changed for itself.
fn reset_signals() -> Result<(), Errno> {
    let errno = |errno: nix::Error| Errno::from_raw_os_error(errno as i32);
    // SAFETY: no code of ours is installed as a handler.
    #[allow(unsafe_code)]
    unsafe { nix::sys::signal::signal(SIGPIPE, SigHandler::SigDfl) }.map_err(errno)?;
    SigSet::empty().thread_set_mask().map_err(errno)
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
