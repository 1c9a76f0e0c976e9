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
    /// Without gaps, and above all numbers of earlier runs.
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
    /// Number before the first.
    start: u64,
}

impl Default for Notes {
    fn default() -> Notes {
        Notes::of_term(0)
    }
}

impl Notes {
    /// The notes of a scheduler of this term. Their numbers are above those of all earlier terms, so that a reader who
    /// comes back after a restart is told all that has happened since.
    pub fn of_term(term: u64) -> Notes {
        let start = term << 32;
        Notes { kept: Mutex::default(), latest: watch::Sender::new(start), start }
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

    /// The number of the latest note, or the one before the first.
    pub fn latest(&self) -> u64 {
        *self.latest.borrow()
    }

    /// Where to go on for a reader who has seen `seq`, maybe in an earlier run or in one whose store was lost.
    pub fn position(&self, seq: u64) -> u64 {
        if self.latest() < seq { self.start } else { seq.max(self.start) }
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
