//! Who makes a call, and what they may do.
//!
//! The pool's token is for agents and whoever runs the pool. Users may have tokens of their own: a file has a line for each of
//! them, with the token's SHA-256, so that nobody who reads the file can use it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aquifer_core::Name;
use aquifer_proto::border;
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use tonic::{Request, Status};

use crate::stamp::{Stamp, stamp};

/// How often the file is looked at, while there are calls.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Users of a file, at most.
const MAX_USERS: usize = 100_000;

/// SHA-256 of a token.
type Digest = [u8; SHA256_OUTPUT_LEN];

/// Who makes a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Somebody with the pool's token, or anybody where there is none: does everything, in anybody's name.
    Pool,
    /// Somebody with a token of their own.
    User(User),
}

/// A user with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// What their jobs run as.
    pub name: Name,
    /// Whether they may change nodes, queues, reservations, and jobs of others.
    pub is_admin: bool,
}

impl Caller {
    /// Who makes this call.
    pub fn of<T>(request: &Request<T>) -> Caller {
        request.extensions().get::<Caller>().expect("calls pass the guard").clone()
    }

    fn is_admin(&self) -> bool {
        match self {
            Caller::Pool => true,
            Caller::User(user) => user.is_admin,
        }
    }

    /// Whether what is in this user's name is theirs to see and to change.
    pub fn owns(&self, name: &str) -> bool {
        self.is_admin() || matches!(self, Caller::User(user) if *user.name == *name)
    }

    /// Lets pass who may change the pool.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`.
    pub fn administer(&self, what: &str) -> Result<(), Status> {
        match self {
            Caller::User(User { name, is_admin: false }) => {
                Err(Status::permission_denied(format!("{name} is no administrator, who alone may {what}")))
            }
            _ => Ok(()),
        }
    }

    /// Lets pass who may change what is in this user's name.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`.
    pub fn own(&self, owner: &str, what: &str) -> Result<(), Status> {
        match self {
            Caller::User(User { name, .. }) if !self.owns(owner) => {
                Err(Status::permission_denied(format!("{what} is of {owner}, and this token of {name}")))
            }
            _ => Ok(()),
        }
    }
}

/// A file of users that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// It cannot be read.
    #[error("{}: {cause}", .file.display())]
    #[allow(missing_docs)]
    Read { file: PathBuf, cause: std::io::Error },
    /// A line is none of a user.
    #[error("{}, line {line}: {why}", .file.display())]
    #[allow(missing_docs)]
    Line { file: PathBuf, line: usize, why: String },
}

/// All users that have tokens. The file is read again when it changes.
#[derive(Debug)]
pub struct Users {
    file: PathBuf,
    loaded: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    users: Arc<BTreeMap<Digest, User>>,
    stamp: Stamp,
    looked: Instant,
}

impl Users {
    /// Reads a file: lines of a name, the SHA-256 of a token in hexadecimal digits, and `admin` where that is so. `#` begins a
    /// comment.
    ///
    /// # Errors
    /// It cannot be read, or a line is none of a user.
    pub fn open(file: PathBuf) -> Result<Users, UsersError> {
        let stamp = stamp(&file);
        let loaded = Loaded { users: read(&file)?.into(), stamp, looked: Instant::now() };
        Ok(Users { file, loaded: Mutex::new(loaded) })
    }

    /// Whose token it is.
    pub fn find(&self, token: &[u8]) -> Option<User> {
        // What is looked for is a digest, so how long that takes tells nothing of tokens.
        let digest = digest(&SHA256, token);
        self.current().get(digest.as_ref()).cloned()
    }

    /// What the file says now; if it cannot be used, what it said.
    fn current(&self) -> Arc<BTreeMap<Digest, User>> {
        let mut loaded = self.loaded.lock().expect("no holder panics");
        if LOOK_EVERY <= loaded.looked.elapsed() {
            loaded.looked = Instant::now();
            let now = stamp(&self.file);
            if now != loaded.stamp {
                loaded.stamp = now;
                match read(&self.file) {
                    Ok(users) => {
                        tracing::info!("{} users have tokens now", users.len());
                        loaded.users = users.into();
                    }
                    Err(error) => tracing::warn!("{error}; users stay as they were"),
                }
            }
        }
        loaded.users.clone()
    }
}

fn read(file: &Path) -> Result<BTreeMap<Digest, User>, UsersError> {
    let text = fs::read_to_string(file).map_err(|cause| UsersError::Read { file: file.into(), cause })?;
    let mut users = BTreeMap::new();
    for (at, text) in text.lines().enumerate() {
        let wrong = |why: String| UsersError::Line { file: file.into(), line: at + 1, why };
        let text = text.split('#').next().unwrap_or_default();
        let words: Vec<&str> = text.split_whitespace().collect();
        let (name, hex, is_admin) = match words[..] {
            [] => continue,
            [name, digest] => (name, digest, false),
            [name, digest, "admin"] => (name, digest, true),
            _ => return Err(wrong("expected a name, the SHA-256 of a token, and perhaps admin".into())),
        };
        let name = border::name("name", name).map_err(|error| wrong(error.to_string()))?;
        let digest =
            digest_of(hex).ok_or_else(|| wrong(format!("{hex:?} is no SHA-256: expected 64 digits")))?;
        if users.len() == MAX_USERS {
            return Err(wrong(format!("there are {MAX_USERS} users before, and no more are taken")));
        }
        if let Some(User { name: other, .. }) = users.insert(digest, User { name, is_admin }) {
            return Err(wrong(format!("this token is of {other} already")));
        }
    }
    Ok(users)
}

fn digest_of(hex: &str) -> Option<Digest> {
    let digits = hex.as_bytes();
    if digits.len() != 2 * SHA256_OUTPUT_LEN || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut digest = [0; SHA256_OUTPUT_LEN];
    for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

/// A line for a user with a token.
pub fn line(user: &User, token: &str) -> String {
    let digits: String =
        digest(&SHA256, token.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} {digits}{}\n", user.name, if user.is_admin { " admin" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, is_admin: bool) -> User {
        User { name: name.into(), is_admin }
    }

    fn users(text: &str) -> Result<Users, String> {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("users");
        fs::write(&file, text).expect("a file");
        let place = format!("{}", file.display());
        Users::open(file).map_err(|error| error.to_string().replace(&place, "users"))
    }

    #[test]
    fn tokens_are_found_by_their_digests() {
        let text =
            format!("# who\n\n{}{}", line(&user("ada", true), "pearl"), line(&user("bob", false), "shell"));
        let users = users(&text).unwrap();
        assert_eq!(users.find(b"pearl"), Some(user("ada", true)));
        assert_eq!(users.find(b"shell"), Some(user("bob", false)));
        assert_eq!((users.find(b""), users.find(b"shel"), users.find(b"shells")), (None, None, None));
        // Source: FIPS 180-2, B.1.
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(line(&user("c", false), "abc"), format!("c {known}\n"));
    }

    #[test]
    fn a_line_that_is_none_of_a_user_is_refused_with_its_number() {
        let of = |text: &str| users(text).unwrap_err();
        let digits = "ab".repeat(32);
        assert_eq!(of("ada"), "users, line 1: expected a name, the SHA-256 of a token, and perhaps admin");
        assert_eq!(
            of(&format!("\nada {digits} boss")),
            "users, line 2: expected a name, the SHA-256 of a token, and perhaps admin"
        );
        assert_eq!(of("ada pearl"), "users, line 1: \"pearl\" is no SHA-256: expected 64 digits");
        assert_eq!(
            of(&format!("ada +{}", &digits[1..])),
            format!("users, line 1: \"+{}\" is no SHA-256: expected 64 digits", &digits[1..])
        );
        assert_eq!(of(&format!("ada {digits}\nbob {digits}")), "users, line 2: this token is of ada already");
        assert!(of(&format!("a/../b {digits}")).starts_with("users, line 1: "));
    }

    #[test]
    fn who_may_do_what() {
        let [ada, bob] = [user("ada", true), user("bob", false)].map(Caller::User);
        assert!(Caller::Pool.owns("bob") && ada.owns("bob") && bob.owns("bob") && !bob.owns("ada"));
        assert!(Caller::Pool.administer("drain").is_ok() && ada.administer("drain").is_ok());
        let refused = bob.administer("drain nodes").unwrap_err();
        assert_eq!(refused.message(), "bob is no administrator, who alone may drain nodes");
        let refused = bob.own("ada", "job-3").unwrap_err();
        assert_eq!(refused.message(), "job-3 is of ada, and this token of bob");
    }
}
