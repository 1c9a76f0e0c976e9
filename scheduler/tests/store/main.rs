//! Stores: that each does the same, and what becomes of it when something fails.

mod disk;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "etcd")]
mod etcd_server;
mod faults;
mod suite;

use aquifer_scheduler::store::{Embedded, Memory, StoreError};

#[test]
fn a_store_in_memory_does_what_every_store_does() {
    suite::suite(&mut Memory::default());
    suite::sizes(&mut Memory::default());
}

#[test]
fn a_store_in_a_file_does_what_every_store_does() {
    let directory = tempfile::tempdir().expect("a directory");
    suite::suite(&mut Embedded::open(&directory.path().join("deep/store.redb")).expect("a store"));
    suite::sizes(&mut Embedded::open(&directory.path().join("sizes.redb")).expect("a store"));
}

#[test]
fn a_second_scheduler_is_told_that_the_store_is_in_use() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.redb");
    let _first = Embedded::open(&path).expect("a store");
    let error = Embedded::open(&path).err().expect("it is in use");
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
}
