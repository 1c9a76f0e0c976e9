//! The notes of this run, for everyone who watches.

use std::collections::VecDeque;
use std::sync::Mutex;

use aquifer_core::{Note, Time};
use tokio::sync::watch;

/// Notes that are kept, at most.
const KEPT: usize = 16_384;

/// A note with its place in the run.
#[derive(Clone, Debug)]
pub struct Numbered {
    /// Grows by one with every note of a term.
    pub seq: u64,
    /// When it was decided.
    pub at: Time,
    /// What happened.
    pub note: Note,
}

/// The latest notes; each reader has a cursor of its own, so that a slow one holds nobody up.
#[derive(Debug)]
pub struct Notes {
    kept: Mutex<VecDeque<Numbered>>,
    latest: watch::Sender<u64>,
}

impl Notes {
    /// No notes yet. Their numbers are above those of every earlier term, so that whoever watched an earlier
    /// scheduler misses nothing of this one.
    pub fn of_term(term: u64) -> Notes {
        Notes { kept: Mutex::default(), latest: watch::Sender::new(term << 32) }
    }

    /// Adds a note, and tells the log and those who watch.
    pub fn add(&self, at: Time, note: Note) {
        tracing::info!(target: "aquifer::note", kind = note.kind(), "{note}");
        let mut kept = self.kept.lock().expect("no reader panics");
        let seq = *self.latest.borrow() + 1;
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Numbered { seq, at, note });
        drop(kept);
        self.latest.send_replace(seq);
    }

    /// The number of the latest note.
    pub fn latest(&self) -> u64 {
        *self.latest.borrow()
    }

    /// Notes after `seq`, as far as they are kept, at most `most`.
    pub fn after(&self, seq: u64, most: usize) -> Vec<Numbered> {
        let kept = self.kept.lock().expect("no reader panics");
        let first = kept.partition_point(|note| note.seq <= seq);
        kept.range(first..).take(most).cloned().collect()
    }

    /// Says when there are new ones.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }
}
