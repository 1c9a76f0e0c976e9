//! A member's own shards.

use super::dispute::Computed;
use super::message::{Message, Turn};
use crate::shards::{Partial, ShardSum};
use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

/// A member sends what it has after so long, and, of long vectors, no more than so many floats a second: about a hundredth of a
/// core sends them and takes them in.
const SEND: Duration = Duration::from_millis(20);
const FLOATS_A_SECOND: f64 = 4e6;

/// The block of shards that a member was given, as far as it has come, and what it has of the step beyond that.
#[derive(Default)]
pub struct Work {
    block: Option<Block>,
    /// A computation is running, for the step of this state.
    computing: Option<u64>,
    sum: ShardSum,
    /// Sums of shards that others have to compute as well.
    disputed: Vec<Partial>,
    /// Sums that the leader has, as they were sent: for its successor, if it is lost before the step is done.
    held: Vec<Message>,
}

struct Block {
    turn: Turn,
    /// Those that are not sent.
    shards: Range<usize>,
    /// The first shard that is not begun, and the first that is not computed.
    next: usize,
    computed: usize,
    /// What those that are computed and not sent took.
    took: Duration,
}

impl Work {
    /// Takes a block; an earlier one is forgotten.
    pub fn give(&mut self, turn: Turn, shards: Range<usize>) {
        self.drop();
        self.keep_of(turn);
        self.block =
            Some(Block { turn, next: shards.start, computed: shards.start, shards, took: Duration::ZERO });
    }

    /// Whether some of the block is not computed.
    pub fn is_busy(&self) -> bool {
        self.block.is_some()
    }

    /// Keeps a sum that the leader has as well. One that others have to compute too is computed anew instead.
    pub fn hold(&mut self, part: &Message) {
        let Message::Part { turn, is_disputed, .. } = part else { return };
        self.keep_of(*turn);
        if !is_disputed {
            self.held.push(part.clone());
        }
    }

    /// What is of another try is not trusted, or of no use.
    fn keep_of(&mut self, turn: Turn) {
        self.held.retain(|other| matches!(other, Message::Part { turn: of, .. } if *of == turn));
    }

    /// What it has of the step that begins with this state, for a leader that knows nothing of it: sums, and what it goes on
    /// with, as of the leader's first try.
    pub fn offer(&mut self, step: u64) -> Vec<Message> {
        for message in self.collect() {
            // What is in dispute was told nobody, and is lost with this: it would be asked for again.
            self.hold(&message);
        }
        let first = Turn { step, number: 0 };
        self.held = added_up(std::mem::take(&mut self.held), first);
        let mut told = self.held.clone();
        let mut shards = 0..0;
        if let Some(block) = &mut self.block {
            (block.turn, shards) = (first, block.shards.clone());
        }
        told.push(Message::Doing { turn: first, shards });
        told
    }

    /// Forgets what was kept: it leads itself.
    pub fn release(&mut self) {
        self.held.clear();
    }

    /// Forgets all that there is of the step.
    pub fn forget(&mut self) {
        self.drop();
        self.held.clear();
    }

    /// Forgets the block.
    pub fn drop(&mut self) {
        self.sum.clear();
        self.disputed.clear();
        self.block = None;
    }

    /// Forgets a block of this step.
    pub fn drop_of(&mut self, step: u64) {
        if self.block.as_ref().is_some_and(|block| block.turn.step == step) {
            self.drop();
        }
    }

    /// The shards to compute now, at most `lanes`, if it is time to.
    pub fn next(&mut self, lanes: usize) -> Option<(u64, Range<usize>)> {
        let block = self.block.as_mut().filter(|_| self.computing.is_none())?;
        let shards = block.next..block.shards.end.min(block.next + lanes);
        if shards.is_empty() {
            return None;
        }
        block.next = shards.end;
        self.computing = Some(block.turn.step);
        Some((block.turn.step, shards))
    }

    /// Takes sums of single shards, one of which may be `audited`, and returns what is to be told.
    pub fn computed(
        &mut self,
        step: u64,
        sums: Vec<Computed>,
        took: Duration,
        audited: Option<usize>,
    ) -> Vec<Message> {
        self.computing = None;
        // Those of an earlier block are not begun in this one.
        let fits = |block: &&mut Block| {
            let begun = block.shards.start..block.next;
            block.turn.step == step && sums.iter().all(|it| begun.contains(&it.sum.start))
        };
        let Some(block) = self.block.as_mut().filter(fits) else {
            return vec![Message::Idle];
        };
        block.took += took;
        block.computed = block.next;
        for Computed { sum, is_finite } in sums {
            match audited == Some(sum.start) || !is_finite {
                true => self.disputed.push(sum),
                false => self.sum.insert(sum),
            }
        }
        self.ready()
    }

    /// Leaves shards from `end` on to another one, if they are not begun.
    pub fn trim(&mut self, turn: Turn, end: usize) -> Vec<Message> {
        let Some(block) = self.block.as_mut().filter(|block| block.turn == turn) else { return Vec::new() };
        block.shards.end = block.shards.end.min(end.max(block.next));
        let mut told = vec![Message::Trimmed { turn, end: block.shards.end }];
        if self.computing.is_none() {
            told.extend(self.ready());
        }
        told
    }

    /// The sums that are to be sent, from left to right: all when the block is done, and what there is from time to time, for what
    /// is not sent is lost with this member. That costs more vectors than the block as a whole would.
    fn ready(&mut self) -> Vec<Message> {
        let Some(block) = &mut self.block else { return Vec::new() };
        let floats = self.sum.floats() + self.disputed.iter().map(|sum| sum.values.len()).sum::<usize>();
        let is_done = block.computed == block.shards.end;
        if !is_done && block.took < SEND.max(Duration::from_secs_f64(floats as f64 / FLOATS_A_SECOND)) {
            return Vec::new();
        }
        self.collect()
    }

    /// All sums that there are.
    fn collect(&mut self) -> Vec<Message> {
        let Some(block) = &mut self.block else { return Vec::new() };
        let (turn, count) = (block.turn, block.computed - block.shards.start);
        let pace_us = (std::mem::take(&mut block.took) / count.max(1) as u32).as_micros() as u64;
        block.shards.start = block.computed;
        if block.shards.is_empty() {
            self.block = None;
        }
        let agreed = self.sum.take().into_iter().map(|sum| (sum, false));
        let disputed = std::mem::take(&mut self.disputed).into_iter().map(|sum| (sum, true));
        let mut parts: Vec<(Partial, bool)> = agreed.chain(disputed).collect();
        parts.sort_by_key(|(sum, _)| sum.start);
        let part = |(Partial { start, size, values }, is_disputed)| Message::Part {
            turn,
            start,
            size,
            is_disputed,
            pace_us,
            values,
        };
        parts.into_iter().map(part).collect()
    }
}

/// What there is of sums, each shard once, in as few vectors as the tree allows, as of another turn.
fn added_up(parts: Vec<Message>, turn: Turn) -> Vec<Message> {
    let (mut sum, mut there, mut pace_us) = (ShardSum::default(), BTreeSet::new(), 0);
    for part in parts {
        let Message::Part { start, size, values, pace_us: pace, .. } = part else { continue };
        let shards = start..start + size;
        if shards.clone().all(|shard| !there.contains(&shard)) {
            there.extend(shards);
            sum.insert(Partial { start, size, values });
        }
        pace_us = if pace == 0 { pace_us } else { pace };
    }
    let part = |Partial { start, size, values }| Message::Part {
        turn,
        start,
        size,
        is_disputed: false,
        pace_us,
        values,
    };
    sum.take().into_iter().map(part).collect()
}
