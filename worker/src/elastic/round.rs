//! One step as its leader sees it: which shards are there, who has which, and which nobody has.

use super::dispute::{Dispute, Verdict, Voter};
use super::message::Rank;
use crate::shards::{Partial, ShardSum};
use crate::values::Values;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// The shards of a step. Each that is missing is in a block, or free.
pub struct Round {
    shards: usize,
    /// Whether a shard is in the sum.
    there: Vec<bool>,
    left: usize,
    sum: ShardSum,
    /// Shards that more than one member has to compute, and are not in the sum.
    disputes: BTreeMap<usize, Dispute>,
    blocks: Vec<Block>,
    /// Shards that nobody has, or of somebody who is late with them.
    free: Vec<Range<usize>>,
}

/// Shards that a member was given.
#[derive(Clone, Debug)]
pub struct Block {
    /// The member.
    pub owner: Rank,
    /// What it has not sent yet.
    pub shards: Range<usize>,
    /// When it was given them, or sent the last of others.
    pub since: Duration,
    /// It was asked to leave some of them, and has not answered, or could not.
    trimming: bool,
    /// They may be given to another one as well.
    late: bool,
}

impl Round {
    /// Of a step with so many shards.
    pub fn new(shards: usize) -> Round {
        let (there, sum, disputes) = (vec![false; shards], ShardSum::default(), BTreeMap::new());
        Round { shards, there, left: shards, sum, disputes, blocks: Vec::new(), free: Vec::new() }
    }

    /// Begins the next step.
    pub fn clear(&mut self) {
        self.there.fill(false);
        self.left = self.shards;
        self.sum.clear();
        self.disputes.clear();
        self.blocks.clear();
        self.free.clear();
    }

    /// Notes that a member has shards now.
    pub fn give(&mut self, owner: Rank, shards: Range<usize>, since: Duration) {
        self.blocks.push(Block { owner, shards, since, trimming: false, late: false });
    }

    /// Blocks that are not done.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Whether a member has something to do.
    pub fn is_busy(&self, rank: Rank) -> bool {
        self.blocks.iter().any(|block| block.owner == rank)
    }

    /// Takes a sum from a member, unless some of it is there already, or in dispute: then the rest of it is free if nobody has it.
    pub fn put(&mut self, owner: Rank, node: Partial, now: Duration) {
        let shards = node.start..node.start + node.size;
        self.advance(owner, &shards, now);
        match shards.clone().all(|shard| self.is_open(shard)) {
            true => self.add(node),
            false => self.free(shards),
        }
    }

    /// Whether any of its shards is there, or with somebody.
    pub fn is_begun(&self) -> bool {
        self.left < self.shards || !self.blocks.is_empty()
    }

    /// A member says that it has shards: so it has, unless another one has some of them.
    pub fn claim(&mut self, owner: Rank, shards: Range<usize>, now: Duration) {
        let is_nobodys = |shard: usize| self.is_open(shard) && !is_computed(&self.blocks, shard);
        let is_block = !shards.is_empty() && shards.end <= self.shards;
        if is_block && !self.is_busy(owner) && shards.clone().all(is_nobodys) {
            self.give(owner, shards, now);
        }
    }

    /// Frees those of some shards that are missing and with nobody.
    pub fn free(&mut self, shards: Range<usize>) {
        for shard in shards {
            let is_free = self.free.iter().any(|free| free.contains(&shard));
            if self.is_open(shard) && !is_free && !is_computed(&self.blocks, shard) {
                match self.free.last_mut() {
                    Some(last) if last.end == shard => last.end += 1,
                    _ => self.free.push(shard..shard + 1),
                }
            }
        }
    }

    /// Takes the sum of a shard that others have to compute as well.
    pub fn put_in_dispute(
        &mut self,
        voter: Voter,
        shard: usize,
        values: Arc<Values>,
        is_audited: bool,
        now: Duration,
    ) {
        self.advance(voter.rank, &(shard..shard + 1), now);
        if !self.there[shard] {
            self.disputes.entry(shard).or_insert_with(|| Dispute::new(is_audited)).vote(voter, values);
        }
    }

    /// Whether this shard is in dispute.
    pub fn is_in_dispute(&self, shard: usize) -> bool {
        self.disputes.contains_key(&shard)
    }

    /// Whether any shard is.
    pub fn has_disputes(&self) -> bool {
        !self.disputes.is_empty()
    }

    /// A shard that this member should compute because others have.
    pub fn take_dispute(&mut self, rank: Rank, voters: &[Voter]) -> Option<usize> {
        let blocks = &self.blocks;
        let mut idle = self.disputes.iter_mut().filter(|(shard, _)| !is_computed(blocks, **shard));
        idle.find_map(|(shard, dispute)| dispute.who_helps(voters).contains(&rank).then_some(*shard))
    }

    /// Ends a dispute that can be ended, and takes its sum, if there is one, into that of the step.
    pub fn settle(&mut self, voters: &[Voter]) -> Option<(usize, Verdict)> {
        let blocks = &self.blocks;
        let (start, verdict) = self.disputes.iter_mut().find_map(|(shard, dispute)| {
            let is_last = !is_computed(blocks, *shard) && dispute.who_helps(voters).is_empty();
            Some((*shard, dispute.verdict(is_last)?))
        })?;
        self.disputes.remove(&start);
        if let Verdict::Sum(values, _) = &verdict {
            self.add(Partial { start, size: 1, values: Arc::clone(values) });
        }
        Some((start, verdict))
    }

    fn add(&mut self, node: Partial) {
        self.there[node.start..node.start + node.size].fill(true);
        self.left -= node.size;
        self.sum.insert(node);
    }

    /// Whether all shards are in the sum.
    pub fn is_complete(&self) -> bool {
        self.left == 0
    }

    /// The next one that a member's block begins with is behind these.
    fn advance(&mut self, owner: Rank, shards: &Range<usize>, now: Duration) {
        for block in &mut self.blocks {
            if block.owner == owner && block.shards.start == shards.start {
                block.shards.start = shards.end.min(block.shards.end);
                block.since = now;
            }
        }
        self.blocks.retain(|block| !block.shards.is_empty());
    }

    fn is_open(&self, shard: usize) -> bool {
        !self.there[shard] && !self.disputes.contains_key(&shard)
    }

    /// The sum of all shards of a complete step.
    pub fn total(&mut self) -> Arc<Values> {
        self.sum.total(self.shards)
    }

    /// A member is gone: its shards are free.
    pub fn lose(&mut self, owner: Rank) {
        for block in self.blocks.extract_if(.., |block| block.owner == owner) {
            if !block.late {
                self.free.push(block.shards);
            }
        }
    }

    /// A member is late: its shards are free for others as well.
    pub fn doubt(&mut self, owner: Rank) {
        for block in self.blocks.iter_mut().filter(|block| block.owner == owner && !block.late) {
            block.late = true;
            self.free.push(block.shards.clone());
        }
    }

    /// Free neighbours, at most `most` of them, which are not there yet.
    pub fn take_free(&mut self, most: usize) -> Option<Range<usize>> {
        loop {
            let mut range = self.free.pop()?;
            while range.start < range.end && !self.is_open(range.start) {
                range.start += 1;
            }
            let open = range.clone().take_while(|shard| self.is_open(*shard)).count();
            let taken = range.start..range.start + open.min(most);
            range.start = taken.end;
            if !range.is_empty() {
                self.free.push(range);
            }
            if !taken.is_empty() {
                return Some(taken);
            }
        }
    }

    /// Shards that are free.
    pub fn count_free(&self) -> usize {
        self.free.iter().cloned().flatten().filter(|shard| self.is_open(*shard)).count()
    }

    /// Whom an idle member with this `pace` (seconds a shard) should relieve, and of the shards from where on: of those
    /// from whom it would then have the last shards sooner, the last one to be done. `pace_of` knows the others'.
    pub fn steal(
        &mut self,
        now: Duration,
        pace: f64,
        pace_of: impl Fn(Rank) -> Option<f64>,
    ) -> Option<(Rank, usize)> {
        let remaining = |block: &Block| {
            let theirs = pace_of(block.owner)?;
            let begun = (now.saturating_sub(block.since).as_secs_f64() / theirs).floor() as usize + 1;
            let left = block.shards.len().saturating_sub(begun);
            Some((left, left as f64 * theirs, theirs))
        };
        let open = self.blocks.iter_mut().filter(|block| !block.trimming && !block.late);
        let open = open.filter_map(|block| Some((remaining(block)?, block)));
        let ((left, time, theirs), block) = open.max_by(|a, b| a.0.1.total_cmp(&b.0.1))?;
        let take = (left as f64 * theirs / (theirs + pace)).round() as usize;
        if take == 0 || time <= take as f64 * pace {
            return None;
        }
        block.trimming = true;
        Some((block.owner, block.shards.end - take))
    }

    /// A member leaves its shards from `end` on.
    pub fn trimmed(&mut self, owner: Rank, end: usize) {
        let is_it = |block: &&mut Block| block.owner == owner && block.trimming;
        if let Some(block) = self.blocks.iter_mut().find(is_it) {
            let left = end.clamp(block.shards.start, block.shards.end)..block.shards.end;
            block.shards.end = left.start;
            // One that has begun all of its shards need not be asked again.
            block.trimming = left.is_empty();
            if !left.is_empty() && !block.late {
                self.free.push(left);
            }
        }
        self.blocks.retain(|block| !block.shards.is_empty());
    }
}

/// Whether somebody who is not late computes a shard.
fn is_computed(blocks: &[Block], shard: usize) -> bool {
    blocks.iter().any(|block| !block.late && block.shards.contains(&shard))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(start: usize, size: usize) -> Partial {
        let sum = (start..start + size).map(|it| it as f32).sum();
        Partial { start, size, values: Arc::new(vec![sum].into()) }
    }

    #[test]
    fn a_late_member_and_its_stand_ins_give_each_shard_once() {
        let mut round = Round::new(8);
        round.give(1, 0..4, Duration::ZERO);
        round.give(2, 4..8, Duration::ZERO);
        round.put(1, node(0, 4), Duration::ZERO);
        round.doubt(2);
        assert_eq!((round.count_free(), round.take_free(2)), (4, Some(4..6)));
        round.give(1, 4..6, Duration::ZERO);
        round.put(1, node(4, 2), Duration::ZERO);
        // The late one is there at last, with what is there already: the rest is still free.
        round.put(2, node(4, 4), Duration::ZERO);
        assert_eq!((round.take_free(9), round.take_free(9)), (Some(6..8), None));
        assert!(!round.is_complete());
        round.put(1, node(6, 2), Duration::ZERO);
        assert!(round.is_complete());
        assert_eq!(round.total().host().unwrap(), [28.0]);
    }

    #[test]
    fn what_comes_with_a_shard_that_is_there_or_is_claimed_twice_is_not_lost() {
        let mut round = Round::new(8);
        round.claim(1, 0..2, Duration::ZERO);
        round.claim(2, 1..4, Duration::ZERO);
        assert!(round.is_busy(1) && !round.is_busy(2));
        round.put(3, node(1, 1), Duration::ZERO);
        // Dropped, for it has the second one again: the first one is with nobody.
        round.put(1, node(0, 2), Duration::ZERO);
        assert_eq!((round.take_free(9), round.take_free(9)), (Some(0..1), None));
        round.free(0..8);
        assert_eq!(round.count_free(), 7);
    }

    #[test]
    fn who_sends_some_of_its_shards_has_as_long_for_the_others_as_if_they_had_just_been_given() {
        let mut round = Round::new(8);
        round.give(1, 0..8, Duration::ZERO);
        round.put(1, node(0, 4), Duration::from_secs(4));
        let block = &round.blocks()[0];
        assert_eq!((block.shards.clone(), block.since), (4..8, Duration::from_secs(4)));
    }

    #[test]
    fn an_idle_member_takes_so_much_that_both_end_together() {
        let mut round = Round::new(8);
        round.give(1, 0..8, Duration::ZERO);
        let steal = |round: &mut Round, at, pace| round.steal(Duration::from_secs(at), pace, |_| Some(1.0));
        // Of the seven that are not begun, half.
        assert_eq!(steal(&mut round, 0, 1.0), Some((1, 4)));
        assert_eq!(steal(&mut round, 0, 1.0), None, "one at a time");
        round.trimmed(1, 5);
        assert_eq!(round.take_free(9), Some(5..8));
        // A slow one would not have even one of them sooner.
        assert_eq!(steal(&mut round, 3, 9.0), None);
        assert_eq!(steal(&mut round, 3, 0.5), Some((1, 4)));
    }
}
