//! A member's own shards.

use super::message::Message;
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
}

struct Block {
    step: u64,
    shards: Range<usize>,
    /// The first shard that is not begun.
    next: usize,
    took: Duration,
}

impl Work {
    /// Takes a block; an earlier one is forgotten.
    pub fn give(&mut self, step: u64, shards: Range<usize>) {
        self.sum.clear();
        self.block = Some(Block { step, next: shards.start, shards, took: Duration::ZERO });
    }

    /// Forgets the block.
    pub fn drop(&mut self) {
        self.sum.clear();
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
        self.computing = Some(block.step);
        Some((block.step, shards))
    }

    /// Takes sums of single shards, and returns what is to be told.
    pub fn computed(&mut self, step: u64, sums: Vec<Partial>, took: Duration) -> Vec<Message> {
        self.computing = None;
        let fits =
            |block: &&mut Block| block.step == step && sums.iter().all(|it| block.shards.contains(&it.start));
        let Some(block) = self.block.as_mut().filter(fits) else {
            return vec![Message::Idle];
        };
        block.took += took;
        sums.into_iter().for_each(|sum| self.sum.insert(sum));
        self.finished()
    }

    /// Leaves shards from `end` on to another one, if they are not begun.
    pub fn trim(&mut self, step: u64, end: usize) -> Vec<Message> {
        let Some(block) = self.block.as_mut().filter(|block| block.step == step) else { return Vec::new() };
        block.shards.end = block.shards.end.min(end.max(block.next));
        let mut told = vec![Message::Trimmed { step, end: block.shards.end }];
        if self.computing.is_none() {
            told.extend(self.finished());
        }
        told
    }

    /// The sums of the block, if all of it is computed.
    fn finished(&mut self) -> Vec<Message> {
        let Some(block) = self.block.take_if(|block| block.next == block.shards.end) else {
            return Vec::new();
        };
        let pace = block.took / block.shards.len().max(1) as u32;
        let part = |partial| Message::part(block.step, partial, pace.as_micros() as u64);
        self.sum.take().into_iter().map(part).collect()
    }
}
