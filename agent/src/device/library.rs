//! A vendor's library: found at run time, called symbol by symbol.

use std::env;
use std::ffi::{CStr, c_char};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

/// Most words that a call of a table has.
pub const MOST_WORDS: usize = 6;

/// A loaded library. It stays loaded: several vendors' libraries do not survive being unloaded.
pub struct Library(ManuallyDrop<libloading::Library>);

impl Library {
    /// Loads the first of these names that can be had, looking in `dirs` before the system's places.
    ///
    /// A name is that of a file, an absolute path, or one below a variable: `$NEUWARE_HOME/lib64/libcndev.so`.
    ///
    /// # Errors
    ///
    /// `libdcmi.so not found`, or what the loader says of the first that is there but cannot be loaded.
    pub fn load(names: &[&str], dirs: &[PathBuf]) -> Result<Library, String> {
        let mut refused = None;
        for path in candidates(names, dirs) {
            match open(&path) {
                Ok(library) => return Ok(library),
                Err(why) if is_absent(&path, &why) => (),
                Err(why) => _ = refused.get_or_insert(why),
            }
        }
        Err(refused.unwrap_or_else(|| format!("{} not found", names.first().unwrap_or(&"no library"))))
    }

    /// Calls a function that returns 0 when it has done what it was asked.
    ///
    /// # Errors
    /// It has not, or is not there.
    pub fn done(&self, symbol: &str, words: &[usize]) -> Result<(), String> {
        match self.call(symbol, words).map(|status| status as i32) {
            Some(0) => Ok(()),
            Some(status) => Err(format!("{symbol} returned {status}")),
            None => Err(format!("the driver has no {symbol}")),
        }
    }

    /// Calls a function with these words, and gives what it returns; `None` if the library has no such symbol.
    ///
    /// Every argument and result of the functions that tables name is an integer or a pointer. Where this runs (the
    /// 64-bit calling conventions of Linux) each of these takes one register, whatever its width, so that one
    /// prototype for each number of words calls them all.
    pub fn call(&self, symbol: &str, words: &[usize]) -> Option<usize> {
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
pub fn text_at(address: usize) -> String {
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
            None => paths.push(name.into()),
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_told_from_one_that_does_not_load() {
        let dir = tempfile::tempdir().unwrap();
        let load = |names: &[&str]| Library::load(names, &[dir.path().to_path_buf()]).err();
        assert_eq!(
            load(&["libno-such-vendor.so", "/no/such/lib.so"]).unwrap(),
            "libno-such-vendor.so not found"
        );
        std::fs::write(dir.path().join("libbroken.so"), "no library").unwrap();
        let why = load(&["libbroken.so"]).unwrap();
        assert!(why.contains("libbroken.so: ") && !why.contains("not found"), "{why}");
    }

    #[test]
    fn words_are_passed_in_their_order_whatever_their_width() {
        let system = Library::load(&["libc.so.6"], &[]).unwrap();
        assert_eq!(system.call("labs", &[(-7_i64) as usize]), Some(7));
        assert_eq!(system.call("toupper", &['a' as usize]).map(|word| word as u32), Some('A' as u32));
        let mut text = [0u8; 16];
        system.call("memset", &[text.as_mut_ptr() as usize, 'x' as usize, 3]).unwrap();
        assert_eq!(text_at(text.as_ptr() as usize), "xxx");
        assert_eq!((system.call("no_such_symbol", &[]), text_at(0)), (None, String::new()));
    }
}
