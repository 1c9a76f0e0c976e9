//! Which sequence uses which block of cached keys and values, and which of them can be used again.
//!
//! A full block is remembered under what it holds: the block before it and its own tokens, so that a chain of blocks
//! stands for one beginning of a text, exactly. A block that nobody uses stays remembered until its place is needed;
//! the one that was used longest ago goes first, and a chain from its end.

use crate::kernels::BLOCK;
use std::collections::{BTreeMap, HashMap};

/// What a full block holds: the content of the block before it, and tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Content {
    /// [`ROOT`], or what [`Blocks::find`] or [`Blocks::publish`] said about the block before.
    pub before: u64,
    /// Its tokens. [`SAID`] is added to those that the model said: they have other bits than those of a prompt.
    pub tokens: [u32; BLOCK],
}

/// What is before the first block.
pub const ROOT: u64 = 0;

/// Marks a token that the model said.
pub const SAID: u32 = 1 << 31;

/// The blocks of a cache.
pub struct Blocks {
    free: Vec<u32>,
    blocks: Vec<Block>,
    known: HashMap<Content, u32>,
    /// Known blocks without a user, by when they lost their last one.
    idle: BTreeMap<u64, u32>,
    /// Counts contents and uses.
    clock: u64,
}

#[derive(Clone, Default)]
struct Block {
    users: usize,
    /// What it holds and the number of that, if it is known.
    content: Option<(Content, u64)>,
    idle_since: u64,
}

impl Blocks {
    /// So many blocks, all free.
    pub fn new(count: usize) -> Blocks {
        Blocks {
            free: (0..count as u32).rev().collect(),
            blocks: vec![Block::default(); count],
            known: HashMap::new(),
            idle: BTreeMap::new(),
            clock: ROOT,
        }
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be taken.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Takes a block for one user; what it held is forgotten. None where all are in use.
    pub fn take(&mut self) -> Option<u32> {
        let block = self.free.pop().or_else(|| {
            let (_, block) = self.idle.pop_first()?;
            let (content, _) = self.blocks[block as usize].content.take()?;
            self.known.remove(&content);
            Some(block)
        })?;
        self.blocks[block as usize].users = 1;
        Some(block)
    }

    /// The block that holds `content`, with one user more, and the number of the content.
    pub fn find(&mut self, content: &Content) -> Option<(u32, u64)> {
        let block = *self.known.get(content)?;
        let (_, number) = self.blocks[block as usize].content?;
        self.use_again(block);
        Some((block, number))
    }

    /// Says that `block`, which one sequence uses, holds `content` now. Returns the block to use from now on, which is
    /// another one where that content was known, and the number of the content.
    pub fn publish(&mut self, block: u32, content: Content) -> (u32, u64) {
        if let Some((same, number)) = self.find(&content) {
            self.release([block]);
            return (same, number);
        }
        self.clock += 1;
        self.known.insert(content, block);
        self.blocks[block as usize].content = Some((content, self.clock));
        (block, self.clock)
    }

    /// One user less for each of a sequence's blocks, which come in order.
    pub fn release(&mut self, table: impl IntoIterator<Item = u32, IntoIter: DoubleEndedIterator>) {
        for block in table.into_iter().rev() {
            let state = &mut self.blocks[block as usize];
            state.users -= 1;
            if state.users == 0 {
                self.clock += 1;
                state.idle_since = self.clock;
                match state.content {
                    Some(_) => drop(self.idle.insert(self.clock, block)),
                    None => self.free.push(block),
                }
            }
        }
    }

    fn use_again(&mut self, block: u32) {
        let state = &mut self.blocks[block as usize];
        if state.users == 0 {
            self.idle.remove(&state.idle_since);
        }
        state.users += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn content(before: u64, token: u32) -> Content {
        Content { before, tokens: [token; BLOCK] }
    }

    #[test]
    fn a_known_block_is_found_until_its_place_is_needed_and_the_end_of_a_chain_goes_first() {
        let mut blocks = Blocks::new(3);
        let (first, one) = {
            let block = blocks.take().unwrap();
            blocks.publish(block, content(ROOT, 1))
        };
        let (second, _) = {
            let block = blocks.take().unwrap();
            blocks.publish(block, content(one, 2))
        };
        assert_eq!(blocks.find(&content(ROOT, 2)), None, "the same tokens after others");
        blocks.release([first, second]);
        assert_eq!(blocks.available(), 3);
        assert!(blocks.take().is_some_and(|block| block != first && block != second));
        assert_eq!(blocks.take(), Some(second));
        assert_eq!(blocks.find(&content(one, 2)), None);
        assert_eq!(blocks.find(&content(ROOT, 1)), Some((first, one)));
        assert_eq!(blocks.take(), None, "the last one is in use");
    }

    #[test]
    fn what_two_sequences_computed_is_kept_once() {
        let mut blocks = Blocks::new(2);
        let (left, right) = (blocks.take().unwrap(), blocks.take().unwrap());
        let (_, number) = blocks.publish(left, content(ROOT, 1));
        assert_eq!(blocks.publish(right, content(ROOT, 1)), (left, number));
        assert_eq!(blocks.available(), 1);
    }

    /// Any order of sequences that come, grow, share and go: every block is in exactly one state, and nobody's block is
    /// taken away.
    #[test]
    fn blocks_are_never_lost_and_never_taken_from_their_users() {
        for seed in 0..200 {
            let (mut random, mut blocks) = (Random::new(seed), Blocks::new(8));
            let mut tables: Vec<Vec<(u32, u64)>> = Vec::new();
            let mut hits = 0;
            for _ in 0..200 {
                let pick = random.bits() as usize % (tables.len() + 1);
                match (tables.get_mut(pick), random.bits() % 4) {
                    (Some(_), 0) => blocks.release(tables.remove(pick).into_iter().map(|(block, _)| block)),
                    (Some(table), _) => {
                        let before = table.last().map_or(ROOT, |(_, number)| *number);
                        let content = content(before, (random.bits() % 2) as u32);
                        if let Some(found) = blocks.find(&content) {
                            hits += 1;
                            table.push(found);
                        } else if let Some(block) = blocks.take() {
                            assert!(tables.iter().flatten().all(|(used, _)| *used != block), "seed {seed}");
                            tables[pick].push(blocks.publish(block, content));
                        }
                    }
                    (None, _) => tables.push(Vec::new()),
                }
                let mut used: Vec<u32> = tables.iter().flatten().map(|(block, _)| *block).collect();
                used.sort();
                used.dedup();
                assert_eq!(used.len() + blocks.available(), 8, "seed {seed}");
            }
            assert!(0 < hits, "seed {seed}");
        }
    }
}
