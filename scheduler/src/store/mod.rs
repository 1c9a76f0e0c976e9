//! Where records outlive the process.

mod embedded;
mod memory;

use aquifer_core::Record;
use aquifer_proto::store::{Row, Unreadable};

pub use embedded::Embedded;
pub use memory::Memory;

/// Keeps rows, and confirms them only once they are durable.
pub trait Store: Send {
    /// Begins a new term, and reads everything.
    ///
    /// # Errors
    /// When the store cannot be read or written as a whole; nothing is skipped.
    fn open_term(&mut self) -> Result<Opened, StoreError>;

    /// Writes all rows in one transaction, each over the earlier one of the same identity.
    ///
    /// # Errors
    /// After any error it is unknown what was written: the process must end, and the next one starts from
    /// the store.
    fn commit(&mut self, rows: &[Row]) -> Result<(), StoreError>;
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
    /// It was written by a newer version.
    #[error("store has format {found}, this version reads formats up to {known}")]
    TooNew {
        /// Format of the store.
        found: u64,
        /// The latest that is known.
        known: u64,
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
