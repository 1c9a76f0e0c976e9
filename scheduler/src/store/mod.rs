//! Where records outlive the process.

mod acknowledged;
mod address;
pub mod backup;
mod damage;
mod embedded;
#[cfg(feature = "etcd")]
pub mod etcd;
mod frame;
mod memory;
mod past;

use std::sync::Arc;

use aquifer_core::Record;
use aquifer_proto::store::{self, Kind, Row, Unreadable};

pub use acknowledged::ACKNOWLEDGED;
pub use address::{Address, EtcdAccess, EtcdAddress};
pub use embedded::Embedded;
pub use memory::Memory;
pub use past::{History, Past};

/// Version of what is stored. A newer version of the program reads all older ones.
pub const FORMAT: u64 = 2;

/// Keeps rows, and confirms them only once they are durable.
pub trait Store: Send {
    /// Reads everything.
    ///
    /// # Errors
    /// When the store cannot be read as a whole; nothing is skipped.
    fn contents(&mut self) -> Result<Contents, StoreError>;

    /// Reads what a scheduler needs to go on: all but the jobs that have retired.
    ///
    /// # Errors
    /// As of [`Store::contents`].
    fn live(&mut self) -> Result<Contents, StoreError> {
        let mut contents = self.contents()?;
        contents.rows.retain(|row| Kind::LIVE.contains(&row.kind));
        Ok(contents)
    }

    /// Jobs that have retired, to be read by others while this one writes.
    fn history(&self) -> Arc<dyn History>;

    /// Begins a new term, durably.
    ///
    /// # Errors
    /// When the store cannot be written, or another scheduler has it.
    fn begin_term(&mut self) -> Result<u64, StoreError>;

    /// Writes all rows in one transaction, each over the earlier one of the same identity. Without rows, it only makes
    /// sure that no other scheduler has taken over.
    ///
    /// # Errors
    /// After any error it is unknown what was written: the process must end, and the next one starts from
    /// the store.
    fn commit(&mut self, rows: &[Row]) -> Result<(), StoreError>;

    /// Puts other contents in the place of all that there is. The next term is larger than theirs, and than all before.
    ///
    /// # Errors
    /// When the store cannot be written. Then it holds what it held, or says that it is not complete whenever it is
    /// opened.
    fn replace(&mut self, contents: &Contents) -> Result<(), StoreError>;

    /// Begins a new term, and reads what is needed to go on.
    ///
    /// # Errors
    /// When the store cannot be read or written as a whole; nothing is skipped.
    fn open_term(&mut self) -> Result<Opened, StoreError> {
        let term = self.begin_term()?;
        Ok(Opened { term, records: store::decode_all(self.live()?.rows)? })
    }
}

/// All that a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Of the last scheduler that had it.
    pub term: u64,
    /// The records, encoded.
    pub rows: Vec<Row>,
}

/// What a store holds at the beginning of a term.
#[derive(Debug)]
pub struct Opened {
    /// Larger than that of any earlier scheduler of this store.
    pub term: u64,
    /// All records.
    pub records: Vec<Record>,
}

/// Why the store cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("store {path} is in use by another scheduler")]
    InUse {
        /// The file.
        path: String,
    },
    /// Another scheduler leads; nothing more was written; this one must end.
    #[error("term {term} is over: {successor}; this scheduler has changed nothing since, and ends")]
    Fenced {
        /// Of this scheduler.
        term: u64,
        /// Who leads now, as a sentence.
        successor: String,
    },
    /// It did not answer in time. What was asked of it last may have been done.
    #[error("store {path} does not answer: {cause}")]
    Away {
        /// Where it is.
        path: String,
        /// What happened.
        cause: String,
    },
    /// It was written by a newer version.
    #[error("store has format {found}, this version reads formats up to {known}")]
    TooNew {
        /// Format of the store.
        found: u64,
        /// The latest that is known.
        known: u64,
    },
    /// A restore or a migration into it was broken off.
    #[error("store {path} is incomplete: a restore into it was broken off")]
    HalfRestored {
        /// Where it is.
        path: String,
    },
    /// Commits are missing that were acknowledged: what holds them is damaged.
    #[error("store {path} is damaged: of {acknowledged} commits that were acknowledged it holds {found}")]
    Lost {
        /// The file.
        path: String,
        /// Commits that it holds.
        found: u64,
        /// Commits that were acknowledged.
        acknowledged: u64,
    },
    /// It is not what was written. Nothing was skipped.
    #[error("store {path} is damaged{at}: {cause}")]
    Damaged {
        /// The file.
        path: String,
        /// ` at bytes 4096 to 8191`; empty: it cannot be told.
        at: String,
        /// What the database said.
        cause: String,
    },
    /// A record cannot be read. Nothing was skipped.
    #[error("store is damaged: {0}")]
    Unreadable(#[from] Unreadable),
    /// It could not be read or written.
    #[error("store {path}: {cause}")]
    Failed {
        /// The file.
        path: String,
        /// What the system said.
        cause: String,
    },
}

impl StoreError {
    /// What the system said of a file or directory.
    fn refused(path: &std::path::Path, error: &std::io::Error) -> StoreError {
        StoreError::Failed { path: path.display().to_string(), cause: error.to_string() }
    }
}
