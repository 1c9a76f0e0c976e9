//! Shards whose sum is not taken from one member alone: it is not finite, or it is audited.

use super::message::Rank;
use crate::random::mix;
use crate::shards::Partial;
use crate::values::{Values, are_finite};
use std::sync::Arc;

/// Which shards are computed by two members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Steps from one to the next, at least one.
    pub every: u64,
    /// Decides which shard it is.
    pub seed: u64,
}

impl Audit {
    /// The shard that is audited in the step that begins with the state of `step`, if one is.
    pub fn shard(&self, step: u64, shards: usize) -> Option<usize> {
        let is_due = (step + 1).is_multiple_of(self.every);
        is_due.then(|| (mix(self.seed ^ mix(step)) % shards as u64) as usize)
    }
}

/// The sum of a shard, as it was computed.
#[derive(Debug)]
pub struct Computed {
    /// The sum, with the loss behind it.
    pub sum: Partial,
    /// All of it are finite numbers.
    pub is_finite: bool,
}

impl Computed {
    /// Of this shard.
    pub fn new(shard: usize, values: Values) -> Computed {
        let is_finite = values.host().is_ok_and(are_finite);
        Computed { sum: Partial { start: shard, size: 1, values: Arc::new(values) }, is_finite }
    }
}

/// One who may compute a shard.
pub struct Voter {
    /// The member.
    pub rank: Rank,
    /// What it computes with: members with the same kernels have the same bits.
    pub kernels: Arc<str>,
}

/// The sums of one shard, as members have computed it.
pub struct Dispute {
    is_audited: bool,
    votes: Vec<(Voter, Arc<Values>)>,
}

/// What comes of a dispute.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// This is the sum; others have computed another one.
    Sum(Arc<Values>, Vec<Rank>),
    /// The sum is not finite, whoever computes it.
    Diverged(String),
    /// Nobody is there to tell which one is right.
    Unclear(String),
}

impl Dispute {
    /// Nobody has computed it yet. That of an audit ends with two sums of the same bits, any other with the first finite one too.
    pub fn new(is_audited: bool) -> Dispute {
        Dispute { is_audited, votes: Vec::new() }
    }

    /// Takes what a member has computed, unless it cannot be read: then that member's device has failed, as it will soon say.
    pub fn vote(&mut self, voter: Voter, values: Arc<Values>) {
        if values.host().is_ok() {
            self.votes.push((voter, values));
        }
    }

    /// Those whose sum helps: others with the same kernels, else, unless bits are compared, any other; where there is none, one
    /// who computes it again. All of `voters` if what is there cannot be compared with anything. Nobody if that was done.
    pub fn who_helps(&mut self, voters: &[Voter]) -> Vec<Rank> {
        let ranks = |helps: &dyn Fn(&Voter) -> bool| -> Vec<Rank> {
            voters.iter().filter(|voter| helps(voter)).map(|voter| voter.rank).collect()
        };
        let Some((first, _)) = self.votes.first() else { return ranks(&|_| true) };
        let is_new = |voter: &Voter| self.votes.iter().all(|(other, _)| other.rank != voter.rank);
        let mut found = ranks(&|voter| is_new(voter) && voter.kernels == first.kernels);
        if found.is_empty() && !self.is_audited {
            found = ranks(&is_new);
        }
        if found.is_empty() && self.votes.len() == 1 {
            found = ranks(&|voter| voter.rank == first.rank);
            if found.is_empty() {
                self.votes.clear();
                found = ranks(&|_| true);
            }
        }
        found
    }

    /// How it ends, if it does. `is_last`: nobody helps any more.
    pub fn verdict(&mut self, is_last: bool) -> Option<Verdict> {
        let votes = &self.votes;
        let agrees = |at: &usize| votes[..*at].iter().any(|(_, other)| is_same(other, &votes[*at].1));
        let pair = (1..votes.len()).find(agrees);
        let finite = |(_, values): &(Voter, Arc<Values>)| are_finite(floats(values));
        let sum = pair.or_else(|| votes.iter().position(|vote| !self.is_audited && finite(vote)));
        match sum {
            Some(at) if finite(&votes[at]) => {
                let (voter, values) = &votes[at];
                // Members with other kernels may have other bits and be right.
                let is_wrong = |vote: &&(Voter, Arc<Values>)| {
                    !is_same(&vote.1, values) && (vote.0.kernels == voter.kernels || !finite(vote))
                };
                let mut wrong: Vec<Rank> = votes.iter().filter(is_wrong).map(|(it, _)| it.rank).collect();
                wrong.sort();
                wrong.dedup();
                Some(Verdict::Sum(self.votes.swap_remove(at).1, wrong))
            }
            None if !is_last => None,
            _ if votes.iter().any(finite) => Some(Verdict::Unclear(self.who())),
            _ => {
                let loss =
                    votes.first().and_then(|(_, values)| floats(values).last().copied()).unwrap_or(f32::NAN);
                let what = if loss.is_finite() { ", its gradient not finite" } else { "" };
                Some(Verdict::Diverged(format!("loss is {loss}{what}, as computed by {}", self.who())))
            }
        }
    }

    /// Those who have computed it, for people.
    pub fn who(&self) -> String {
        let ranks: Vec<String> = self.votes.iter().map(|(voter, _)| format!("rank {}", voter.rank)).collect();
        ranks.join(" and ")
    }
}

/// A vote's, on the host.
fn floats(values: &Values) -> &[f32] {
    values.host().expect("it was read when it was taken")
}

fn is_same(a: &Values, b: &Values) -> bool {
    let (a, b) = (floats(a), floats(b));
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voter(rank: Rank) -> Voter {
        Voter { rank, kernels: if rank < 10 { "avx512" } else { "neon" }.into() }
    }

    fn dispute(is_audited: bool, votes: &[(Rank, f32)]) -> Dispute {
        let mut dispute = Dispute::new(is_audited);
        votes.iter().for_each(|(rank, sum)| dispute.vote(voter(*rank), Arc::new(vec![*sum, 1.5].into())));
        dispute
    }

    fn sum(value: f32, wrong: &[Rank]) -> Option<Verdict> {
        Some(Verdict::Sum(Arc::new(vec![value, 1.5].into()), wrong.into()))
    }

    #[test]
    fn a_sum_counts_once_another_one_confirms_it() {
        assert_eq!(dispute(true, &[(1, 2.0)]).verdict(false), None);
        assert_eq!(dispute(true, &[(1, 2.0), (2, 2.0)]).verdict(false), sum(2.0, &[]));
        assert_eq!(dispute(true, &[(1, 2.0), (2, 3.0), (3, 3.0)]).verdict(false), sum(3.0, &[1]));
        assert_eq!(
            dispute(true, &[(10, 2.1), (2, 3.0), (3, 3.0)]).verdict(false),
            sum(3.0, &[]),
            "other kernels"
        );
        assert_eq!(dispute(true, &[(1, 2.0), (2, 3.0)]).verdict(false), None);
        let unclear = Some(Verdict::Unclear("rank 1 and rank 2".into()));
        assert_eq!(dispute(true, &[(1, 2.0), (2, 3.0)]).verdict(true), unclear);
    }

    #[test]
    fn what_is_not_finite_is_the_models_if_another_one_says_so() {
        let nan = f32::NAN;
        assert_eq!(dispute(false, &[(1, nan)]).verdict(false), None);
        assert_eq!(dispute(false, &[(1, nan), (2, 3.0)]).verdict(false), sum(3.0, &[1]));
        assert_eq!(dispute(true, &[(1, nan), (2, 3.0)]).verdict(false), None);
        let diverged = |who| {
            Some(Verdict::Diverged(format!("loss is 1.5, its gradient not finite, as computed by {who}")))
        };
        assert_eq!(dispute(false, &[(1, nan), (2, nan)]).verdict(false), diverged("rank 1 and rank 2"));
        assert_eq!(dispute(false, &[(1, nan), (10, f32::INFINITY)]).verdict(false), None);
        assert_eq!(
            dispute(false, &[(1, nan), (10, f32::INFINITY)]).verdict(true),
            diverged("rank 1 and rank 10")
        );
        assert!(
            !are_finite(&[1.0, nan]) && !are_finite(&[f32::NEG_INFINITY]) && are_finite(&[f32::MIN, -0.0])
        );
    }

    #[test]
    fn those_help_who_can_be_compared_with() {
        let helps = |is_audited, votes: &[(Rank, f32)], there: &[Rank]| {
            let there: Vec<Voter> = there.iter().map(|rank| voter(*rank)).collect();
            dispute(is_audited, votes).who_helps(&there)
        };
        assert_eq!(helps(true, &[(1, 2.0)], &[1, 2, 3, 10]), [2, 3]);
        assert_eq!(helps(true, &[(1, 2.0), (2, 3.0)], &[1, 2, 3, 10]), [3]);
        assert_eq!(helps(true, &[(1, 2.0), (2, 3.0)], &[1, 2, 10]), [0; 0]);
        assert_eq!(helps(true, &[(1, 2.0)], &[1, 10]), [1], "the same one again");
        assert_eq!(helps(false, &[(1, f32::NAN)], &[1, 10]), [10]);
        assert_eq!(helps(true, &[(1, 2.0)], &[10, 11]), [10, 11], "with nothing to compare it with");
    }

    #[test]
    fn audits_are_a_function_of_seed_and_step() {
        let audit = Audit { every: 10, seed: 7 };
        let due: Vec<u64> = (0..40).filter(|step| audit.shard(*step, 8).is_some()).collect();
        assert_eq!(due, [9, 19, 29, 39]);
        let shards: std::collections::BTreeSet<_> = (1..100).map(|it| audit.shard(10 * it - 1, 8)).collect();
        assert_eq!(shards.len(), 8);
    }
}
