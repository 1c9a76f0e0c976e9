//! A member's own shards.

use super::dispute::are_finite;
use super::message::{Message, Turn};
use crate::shards::{Partial, ShardSum};
use std::ops::Range;
use std::time::Duration;

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
    shards: Range<usize>,
    /// The first shard that is not begun.
    next: usize,
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
        sums: Vec<Partial>,
        took: Duration,
        audited: Option<usize>,
    ) -> Vec<Message> {
        self.computing = None;
        // Those of an earlier block are not begun in this one.
        let fits = |block: &&mut Block| {
            let begun = block.shards.start..block.next;
            block.turn.step == step && sums.iter().all(|sum| begun.contains(&sum.start))
        };
        let Some(block) = self.block.as_mut().filter(fits) else {
            return vec![Message::Idle];
        };
        block.took += took;
        for sum in sums {
            match audited == Some(sum.start) || !are_finite(&sum.values) {
                true => self.disputed.push(sum),
                false => self.sum.insert(sum),
            }
        }
        self.finished()
    }

    /// Leaves shards from `end` on to another one, if they are not begun.
    pub fn trim(&mut self, turn: Turn, end: usize) -> Vec<Message> {
        let Some(block) = self.block.as_mut().filter(|block| block.turn == turn) else { return Vec::new() };
        block.shards.end = block.shards.end.min(end.max(block.next));
        let mut told = vec![Message::Trimmed { turn, end: block.shards.end }];
        if self.computing.is_none() {
            told.extend(self.finished());
        }
        told
    }

    /// The sums of the block from left to right, if all of it is computed.
    fn finished(&mut self) -> Vec<Message> {
        let Some(block) = self.block.take_if(|block| block.next == block.shards.end) else {
            return Vec::new();
        };
        let pace = block.took / block.shards.len().max(1) as u32;
        let pace_us = pace.as_micros() as u64;
        let agreed = self.sum.take().into_iter().map(|sum| (sum, false));
        let disputed = std::mem::take(&mut self.disputed).into_iter().map(|sum| (sum, true));
        let mut parts: Vec<(Partial, bool)> = agreed.chain(disputed).collect();
        parts.sort_by_key(|(sum, _)| sum.start);
        let part = |(Partial { start, size, values }, is_disputed)| Message::Part {
            turn: block.turn,
            start,
            size,
            is_disputed,
            pace_us,
            values,
        };
        parts.into_iter().map(part).collect()
    }
}
