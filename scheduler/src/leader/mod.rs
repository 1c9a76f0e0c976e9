//! Which of several schedulers decides.

#[cfg(feature = "etcd")]
mod candidate;
#[cfg(feature = "etcd")]
mod lead;

use crate::store::Store;
#[cfg(feature = "etcd")]
pub use candidate::{Candidate, Won};
#[cfg(feature = "etcd")]
pub use lead::Lead;

/// How a scheduler comes by its store.
pub enum Source {
    /// It has it to itself.
    Owned(Box<dyn Store>),
    /// It has to be elected first.
    #[cfg(feature = "etcd")]
    Contested(Candidate),
}
