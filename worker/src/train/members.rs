//! Who takes part: as the environment says, for good, or as `members.json` in the run directory says, which changes.

use crate::contract::Contract;
use crate::elastic::{Member, Rank};
use crate::error::WorkerError;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// Those who take part, the longest-serving first.
pub struct Membership {
    rank: Rank,
    members: Vec<Member>,
    file: Option<Watched>,
}

struct Watched {
    path: PathBuf,
    epoch: u64,
    stamp: Option<(SystemTime, u64)>,
    looked: Instant,
}

/// `members.json`, as the agent writes it.
#[derive(Deserialize)]
struct File {
    epoch: u64,
    members: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    rank: Rank,
    address: String,
}

impl Membership {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// Where it cannot be read, or does not name this worker.
    pub fn new(contract: &Contract) -> Result<Membership, WorkerError> {
        let rank = contract.rank as Rank;
        let path = contract.run_dir.as_ref().map(|dir| dir.join("members.json")).filter(|path| path.exists());
        let Some(path) = path else {
            let address = format!("{}:{}", contract.master_addr, contract.master_port);
            let member = |rank| Member { rank, address: address.clone() };
            let members = (0..contract.world_size as Rank).map(member).collect();
            return Ok(Membership { rank, members, file: None });
        };
        let file = read(&path)?;
        let members = members_of(&file);
        let watched = Watched { stamp: stamp(&path), epoch: file.epoch, looked: Instant::now(), path };
        let membership = Membership { rank, members, file: Some(watched) };
        if !membership.takes_part() {
            return Err(WorkerError::Group(format!("members.json does not name rank {rank}")));
        }
        Ok(membership)
    }

    /// This worker.
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// Whether nobody comes and goes.
    pub fn is_fixed(&self) -> bool {
        self.file.is_none()
    }

    /// All of them.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Whether this worker is one of them.
    pub fn takes_part(&self) -> bool {
        self.address(self.rank).is_some()
    }

    /// Where a member listens.
    pub fn address(&self, rank: Rank) -> Option<String> {
        self.members.iter().find(|member| member.rank == rank).map(|member| member.address.clone())
    }

    /// Where this one is to listen; only the first one of a group that does not change does so.
    pub fn listens_at(&self) -> Option<String> {
        match self.is_fixed() {
            true if self.rank != 0 || self.members.len() == 1 => None,
            _ => self.address(self.rank),
        }
    }

    /// Looks, not too often, whether the list is another one by now.
    pub fn has_changed(&mut self) -> bool {
        match &mut self.file {
            Some(file) if LOOK <= file.looked.elapsed() => {
                file.looked = Instant::now();
                stamp(&file.path) != file.stamp && self.read()
            }
            _ => false,
        }
    }

    /// Reads the file again; returns whether the list is a newer one.
    pub fn read(&mut self) -> bool {
        let Some(watched) = &mut self.file else { return false };
        let stamp = stamp(&watched.path);
        // It is replaced as a whole; one that cannot be read changes nothing.
        let Ok(file) = read(&watched.path) else { return false };
        watched.stamp = stamp;
        if file.epoch <= watched.epoch {
            return false;
        }
        watched.epoch = file.epoch;
        self.members = members_of(&file);
        true
    }
}

fn members_of(file: &File) -> Vec<Member> {
    let member = |entry: &Entry| Member { rank: entry.rank, address: entry.address.clone() };
    file.members.iter().map(member).collect()
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = path.metadata().ok()?;
    Some((metadata.modified().ok()?, metadata.ino()))
}

fn read(path: &Path) -> Result<File, WorkerError> {
    let bad = |reason: String| WorkerError::Group(format!("{}: {reason}", path.display()));
    match path.metadata() {
        Ok(metadata) if metadata.len() <= MAX_FILE => (),
        Ok(metadata) => return Err(bad(format!("{} bytes; it has at most {MAX_FILE}", metadata.len()))),
        Err(error) => return Err(bad(error.to_string())),
    }
    let content = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
    serde_json::from_slice(&content).map_err(|error| bad(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn a_newer_list_is_taken_and_an_older_or_broken_one_is_not() {
        let dir = TempDir::new();
        let contract = Contract { rank: 3, run_dir: Some(dir.path().into()), ..Contract::default() };
        assert!(Membership::new(&contract).unwrap().is_fixed());
        let write = |text: &str| {
            let path = dir.path().join("members.json");
            std::fs::write(path.with_extension("tmp"), text).unwrap();
            std::fs::rename(path.with_extension("tmp"), path).unwrap();
        };
        write(r#"{"epoch":4,"members":[{"rank":1,"address":"h:5"},{"rank":3,"address":"[::1]:6"}]}"#);
        let mut membership = Membership::new(&contract).unwrap();
        assert_eq!(membership.listens_at().as_deref(), Some("[::1]:6"));
        write(r#"{"epoch":3,"members":[]}"#);
        assert!(!membership.read() && membership.takes_part());
        write("{");
        assert!(!membership.read() && membership.takes_part());
        write(r#"{"epoch":5,"members":[{"rank":1,"address":"h:5"}]}"#);
        assert!(membership.read() && !membership.takes_part());
        let error = Membership::new(&contract).err().unwrap().to_string();
        assert_eq!(error, "members.json does not name rank 3");
    }
}
