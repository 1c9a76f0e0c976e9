//! A member's own shards.

use super::dispute::Computed;
use super::message::{Message, Turn};
use crate::shards::{Partial, ShardSum};
use std::ops::Range;
use std::time::Duration;

/// A member sends what it has after so long, and, of long vectors, no more than so many floats a second: about a hundredth of a
/// core sends them and takes them in.
const SEND: Duration = Duration::from_millis(20);
const FLOATS_A_SECOND: f64 = 4e6;

/// The block of shards that a member was given, as far as it has come.
#[derive(Default)]
pub struct Work {
    block: Option<Block>,
    /// A computation is running, for the step of this state.
    computing: Option<u64>,
    sum: ShardSum,
    /// Sums of shards that others have to compute as well.
    disputed: Vec<Partial>,
}

struct Block {
    turn: Turn,
    /// Those that are not sent.
    shards: Range<usize>,
    /// The first shard that is not begun.
    next: usize,
    /// What those that are computed and not sent took.
    took: Duration,
}

impl Work {
    /// Takes a block; an earlier one is forgotten.
    pub fn give(&mut self, turn: Turn, shards: Range<usize>) {
        self.drop();
        self.block = Some(Block { turn, next: shards.start, shards, took: Duration::ZERO });
    }

    /// Forgets the block.
    pub fn drop(&mut self) {
        self.sum.clear();
        self.disputed.clear();
        self.block = None;
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
        let is_done = block.next == block.shards.end;
        if !is_done && block.took < SEND.max(Duration::from_secs_f64(floats as f64 / FLOATS_A_SECOND)) {
            return Vec::new();
        }
        let (turn, count) = (block.turn, block.next - block.shards.start);
        let pace_us = (std::mem::take(&mut block.took) / count.max(1) as u32).as_micros() as u64;
        block.shards.start = block.next;
        if is_done {
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
