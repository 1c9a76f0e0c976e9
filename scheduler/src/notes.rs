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
    /// The number before the first.
    start: u64,
}

impl Notes {
    /// No notes yet. Their numbers are above those of every earlier term, so that whoever watched an earlier
    /// scheduler misses nothing of this one.
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

    /// The number of the latest note.
    pub fn latest(&self) -> u64 {
        *self.latest.borrow()
    }

    /// Where a reader goes on who has seen `seq`: maybe in an earlier term, or in a later one whose store was lost.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_of_any_other_run_goes_on_before_the_first_note_and_then_waits() {
        let notes = Notes::of_term(7);
        for seen in [0, 3, (6 << 32) + 9, 7 << 32, (7 << 32) + 1, 8 << 32, u64::MAX] {
            assert_eq!(notes.position(seen), notes.latest(), "{seen}: there is nothing new yet");
        }
        notes.add(Time(1), Note::QueueSet("red".into()));
        for seen in [0, (6 << 32) + 9, 7 << 32, 8 << 32] {
            assert_eq!(notes.after(notes.position(seen), 9).len(), 1, "{seen}");
        }
        assert_eq!(notes.after(notes.position(notes.latest()), 9).len(), 0);
    }
}
