//! As whom workers run: as the agent does, or, where that is root, as the users whose jobs they are.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::unistd::User;
use serde::{Deserialize, Serialize};

/// Users with smaller numbers are the system's own, where `/etc/login.defs` says nothing else.
const FIRST_USER: u32 = 1000;

/// As whom workers run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunAs {
    /// As the agent.
    Agent,
    /// As the user of the job, whom the node must know. Only root can.
    JobUser,
}

/// What a process may do by its numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Other groups.
    pub groups: Vec<u32>,
}

/// A user of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Person {
    pub account: Account,
    name: String,
    home: PathBuf,
    shell: PathBuf,
}

impl Account {
    /// That of this process.
    pub fn own() -> Account {
        let groups = rustix::process::getgroups().unwrap_or_default();
        Account {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            groups: groups.into_iter().map(|group| group.as_raw()).collect(),
        }
    }
}

impl Person {
    /// Looks a user up, which may take as long as a directory service does.
    ///
    /// # Errors
    /// Says why nobody of this name may run anything here.
    pub fn of(name: &str) -> Result<Person, String> {
        let known =
            User::from_name(name).map_err(|errno| format!("user {name:?} cannot be looked up: {errno}"))?;
        let user = known.ok_or_else(|| {
            format!("user {name:?} does not exist on this node: make it known there, or start its agent with --run-as agent")
        })?;
        let (uid, first) = (user.uid.as_raw(), first_user());
        if uid < first {
            return Err(format!(
                "user {name:?} has number {uid}: only users from {first} on may run anything here"
            ));
        }
        let refused = |what: &dyn std::fmt::Display| format!("groups of user {name:?}: {what}");
        let c_name = CString::new(name).map_err(|error| refused(&error))?;
        let groups = nix::unistd::getgrouplist(&c_name, user.gid).map_err(|errno| refused(&errno))?;
        let groups = groups.into_iter().map(|group| group.as_raw()).collect();
        let account = Account { uid, gid: user.gid.as_raw(), groups };
        Ok(Person { account, name: user.name, home: user.dir, shell: user.shell })
    }

    /// What a login would set.
    pub fn env(&self) -> [(&'static str, String); 4] {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        [
            ("HOME", text(&self.home)),
            ("USER", self.name.clone()),
            ("LOGNAME", self.name.clone()),
            ("SHELL", text(&self.shell)),
        ]
    }
}

/// Whether everybody may go through a directory.
///
/// # Errors
/// The outermost of those above it that not everybody may.
pub(crate) fn can_enter(dir: &Path) -> Result<(), PathBuf> {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.into());
    let is_closed = |dir: &&Path| fs::metadata(dir).is_ok_and(|dir| dir.mode() & 0o001 == 0);
    dir.ancestors().filter(is_closed).last().map_or(Ok(()), |closed| Err(closed.into()))
}

/// The first number that is a person's.
fn first_user() -> u32 {
    let of =
        |text: String| text.lines().find_map(|line| line.trim().strip_prefix("UID_MIN")?.trim().parse().ok());
    // Root is nobody's, whatever the file says.
    fs::read_to_string("/etc/login.defs").ok().and_then(of).unwrap_or(FIRST_USER).max(1)
}

/// Reads `auto` (job users, if this process is root), `job-user` or `agent`.
impl FromStr for RunAs {
    type Err = String;
    fn from_str(text: &str) -> Result<RunAs, String> {
        let is_root = rustix::process::geteuid().is_root();
        match text {
            "auto" if is_root => Ok(RunAs::JobUser),
            "auto" | "agent" => Ok(RunAs::Agent),
            "job-user" if is_root => Ok(RunAs::JobUser),
            "job-user" => Err("only an agent of root can run workers as the users of their jobs".into()),
            _ => Err("expected auto, job-user or agent".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_runs_as_root_or_as_one_of_the_systems_own() {
        for (name, why) in
            [("root", "has number 0"), ("daemon", "only users from"), ("no-such-user", "does not exist")]
        {
            let error = Person::of(name).expect_err(name);
            assert!(error.contains(why) && error.contains(name), "{error}");
        }
    }
}
