//! The process that has a vendor's library: found at run time, called symbol by symbol.

use std::ffi::{CStr, c_char};
use std::io::ErrorKind;
use std::mem::ManuallyDrop;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, io, thread};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Signal, getpid, kill_process, setsid};

use super::MOST_WORDS;
use super::frame::{self, Answer, Call, Load, Place, Question};

/// Bytes beyond what a function may write: libraries that are newer than their tables write more.
pub const SLACK: usize = 4096;

/// Loads a library and calls it as it is told on the socket that is standard input, until nobody is there to tell.
///
/// To be called first thing in `main`: what a library does with signals, threads and memory is its own.
pub fn serve() -> ExitCode {
    match answer() {
        // Whoever asked is gone.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => (),
        Err(error) => eprintln!("aquifer ask-library: {error}; an agent starts it"),
        Ok(()) => (),
    }
    end()
}

/// Ends at once: what libraries do at the end may crash, and take as long as any call.
fn end() -> ExitCode {
    let _ = kill_process(getpid(), Signal::KILL);
    ExitCode::FAILURE
}

fn answer() -> io::Result<()> {
    // A signal from a terminal is for whoever asks.
    let _ = setsid();
    // A library may read what it takes for standard input.
    let mut socket = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    let nothing = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&nothing)?;
    let watched = socket.try_clone()?;
    thread::Builder::new().stack_size(64 << 10).spawn(move || {
        // A call may never return, and nobody be there any more to end it.
        while !poll(&mut [PollFd::new(&watched, PollFlags::empty())], None).is_ok_and(|ended| ended != 0) {}
        end()
    })?;
    let (question, _) = frame::receive(&mut socket)?;
    let Question::Load(load) = question else {
        return Err(io::Error::new(ErrorKind::InvalidData, "nothing was loaded"));
    };
    let library = match load_all(&load) {
        Ok((library, name)) => {
            frame::send(&mut socket, &Answer::Loaded { name }, &[])?;
            library
        }
        Err(answer) => return frame::send(&mut socket, &answer, &[]),
    };
    loop {
        let (Question::Call(call), memory) = frame::receive(&mut socket)? else {
            return Err(io::Error::new(ErrorKind::InvalidData, "it is loaded"));
        };
        let (answer, memory) = made(&library, &call, &memory);
        frame::send(&mut socket, &answer, &memory)?;
    }
}

fn load_all(load: &Load) -> Result<(Library, String), Answer> {
    // What is missing shows when the library itself is loaded.
    load.needs.iter().for_each(|name| _ = Library::load(&[name], &load.dirs));
    let names: Vec<&str> = load.names.iter().map(|name| &name[..]).collect();
    Library::load(&names, &load.dirs).map_err(|refused| refused.map_or(Answer::Absent, Answer::Refused))
}

/// Makes a call; what it left in memory is beside the answer.
fn made(library: &Library, call: &Call, start: &[u8]) -> (Answer, Vec<u8>) {
    let size = call.size as usize;
    // Of eight bytes each, so that whatever is written is aligned.
    let mut memory = vec![0u64; (size.max(start.len()) + SLACK) / 8 + 1];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut memory);
    bytes[..start.len()].copy_from_slice(start);
    let first = bytes.as_mut_ptr() as usize;
    let word = |place: &Place| match *place {
        Place::Is(number) => number as usize,
        Place::At(at) => first + (at as usize).min(size),
    };
    let words: Vec<usize> = call.words.iter().map(word).collect();
    let Some(returned) = library.call(&call.symbol, &words) else { return (Answer::Missing, Vec::new()) };
    let text = if call.is_text { text_at(returned) } else { String::new() };
    let bytes: &[u8] = bytemuck::cast_slice(&memory);
    (Answer::Returned { value: returned as u64, text }, bytes[..size].to_vec())
}

/// A loaded library. It stays loaded: several vendors' libraries do not survive being unloaded.
struct Library(ManuallyDrop<libloading::Library>);

impl Library {
    /// Loads the first of these names that can be had, looking in `dirs` before the system's places. With it, its file's name.
    ///
    /// # Errors
    /// What the loader says of the first that is there but cannot be loaded; `None`: none is there.
    fn load(names: &[&str], dirs: &[PathBuf]) -> Result<(Library, String), Option<String>> {
        let mut refused = None;
        for path in candidates(names, dirs) {
            match open(&path) {
                Ok(library) => {
                    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    return Ok((library, name));
                }
                Err(why) if is_absent(&path, &why) => (),
                Err(why) => _ = refused.get_or_insert(why),
            }
        }
        Err(refused)
    }

    /// Calls a function with these words, and gives what it returns; `None` if the library has no such symbol.
    ///
    /// Every argument and result of the functions that tables name is an integer or a pointer. Where this runs (the
    /// 64-bit calling conventions of Linux) each of these takes one register, whatever its width, so that one
    /// prototype for each number of words calls them all.
    fn call(&self, symbol: &str, words: &[usize]) -> Option<usize> {
        const { assert!(size_of::<usize>() == 8, "words are registers of 64 bits") };
        type F<A> = libloading::Symbol<'static, A>;
        macro_rules! call {
            ($($word:ident),*) => {{
                // SAFETY: the tables name functions of the vendors' headers with all their arguments, and pass
                // pointers only to memory that is larger than what is written; see the function's comment.
                #[allow(unsafe_code)]
                unsafe {
                    type Function = unsafe extern "C" fn($(call!(@word $word)),*) -> usize;
                    let found: F<Function> = std::mem::transmute(self.0.get::<Function>(symbol.as_bytes()).ok()?);
                    Some(found($($word),*))
                }
            }};
            (@word $word:ident) => { usize };
        }
        match *words {
            [] => call!(),
            [a] => call!(a),
            [a, b] => call!(a, b),
            [a, b, c] => call!(a, b, c),
            [a, b, c, d] => call!(a, b, c, d),
            [a, b, c, d, e] => call!(a, b, c, d, e),
            [a, b, c, d, e, f] => call!(a, b, c, d, e, f),
            _ => panic!("{symbol} has more than {MOST_WORDS} words"),
        }
    }
}

/// The text that a library returned a pointer to; empty for a null pointer.
fn text_at(address: usize) -> String {
    if address == 0 {
        return String::new();
    }
    // SAFETY: the address is what a function returned whose header promises a terminated text that stays.
    #[allow(unsafe_code)]
    let text = unsafe { CStr::from_ptr(address as *const c_char) };
    text.to_string_lossy().into_owned()
}

fn open(path: &Path) -> Result<Library, String> {
    // SAFETY: loading runs the library's initialisers. It is the vendor's own, named by its table or by the
    // administrator.
    #[allow(unsafe_code)]
    let library = unsafe { libloading::Library::new(path) };
    library.map(|library| Library(ManuallyDrop::new(library))).map_err(|error| error.to_string())
}

/// A file name that no place of the system has: the loader has no other way of saying so.
fn is_absent(path: &Path, why: &str) -> bool {
    let of_itself = why.starts_with(&format!("{}: ", path.display()));
    match path.is_absolute() {
        true => !path.exists(),
        false => of_itself && why.contains("cannot open shared object file: No such file"),
    }
}

fn candidates(names: &[&str], dirs: &[PathBuf]) -> Vec<PathBuf> {
    let file = |name: &&str| Path::new(name).file_name().map(PathBuf::from);
    let files: Vec<PathBuf> = names.iter().filter_map(file).collect();
    let mut paths: Vec<PathBuf> = dirs
        .iter()
        .flat_map(|dir| files.iter().map(move |file| std::path::absolute(dir.join(file))))
        .flatten()
        .collect();
    for name in names {
        match name.strip_prefix('$').and_then(|rest| rest.split_once('/')) {
            Some((variable, rest)) => {
                paths.extend(env::var_os(variable).map(|dir| Path::new(&dir).join(rest)))
            }
            None => match name.split_once('*') {
                Some((before, behind)) => paths.extend(matching(before, behind)),
                None => paths.push(name.into()),
            },
        }
    }
    paths
}

/// The paths that a name with a `*` in a directory stands for, the last in the order of the alphabet first: it is mostly the newest.
fn matching(before: &str, behind: &str) -> Vec<PathBuf> {
    let Some((parent, start)) = before.rsplit_once('/') else { return Vec::new() };
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(start)).collect();
    names.sort();
    let path = |name: String| Path::new(parent).join(format!("{name}{behind}"));
    names.into_iter().rev().map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_looked_for_in_directories_of_every_version() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["xpu-4.0", "xpu-5.0", "other"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let name = format!("{}/xpu*/lib64/libxpuml.so", dir.path().display());
        let found = candidates(&[&name], &[]);
        assert_eq!(found, ["xpu-5.0", "xpu-4.0"].map(|it| dir.path().join(it).join("lib64/libxpuml.so")));
        assert!(candidates(&["/no/such*/libxpuml.so"], &[]).is_empty());
    }

    #[test]
    fn a_library_that_is_not_there_is_told_from_one_that_does_not_load() {
        let dir = tempfile::tempdir().unwrap();
        let load = |names: &[&str]| Library::load(names, &[dir.path().to_path_buf()]).err().unwrap();
        assert_eq!(load(&["libno-such-vendor.so", "/no/such/lib.so"]), None);
        std::fs::write(dir.path().join("libbroken.so"), "no library").unwrap();
        let why = load(&["libbroken.so"]).unwrap();
        assert!(why.contains("libbroken.so: ") && !why.contains("not found"), "{why}");
    }

    #[test]
    fn words_are_passed_in_their_order_whatever_their_width() {
        let (system, name) = Library::load(&["libc.so.6"], &[]).unwrap();
        assert_eq!(name, "libc.so.6");
        assert_eq!(system.call("labs", &[(-7_i64) as usize]), Some(7));
        assert_eq!(system.call("toupper", &['a' as usize]).map(|word| word as u32), Some('A' as u32));
        let mut text = [0u8; 16];
        system.call("memset", &[text.as_mut_ptr() as usize, 'x' as usize, 3]).unwrap();
        assert_eq!(text_at(text.as_ptr() as usize), "xxx");
        assert_eq!((system.call("no_such_symbol", &[]), text_at(0)), (None, String::new()));
    }
}
