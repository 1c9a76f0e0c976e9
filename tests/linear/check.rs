//! Whether a history of concurrent calls could have been made one call at a time: linearisability.
//!
//! Histories are checked job by job, as a history is linearisable if it is so for each object.
//! Source: Herlihy and Wing, "Linearizability: A Correctness Condition for Concurrent Objects", TOPLAS 12(3), 1990, section 3
//! (locality); Lowe, "Testing for linearizability", CCPE 29(4), 2017, section 4 (search with a memory of where it was).

use std::collections::{BTreeSet, HashSet};
use std::fmt::Debug;
use std::hash::Hash;

/// A call and its answer, with times on one clock.
#[derive(Clone, Debug)]
pub struct Call<Op, Answer> {
    pub invoked: u64,
    pub op: Op,
    /// When it was answered, and how; `None`: the answer was lost, and it may take effect at any time later, or never.
    pub answer: Option<(u64, Answer)>,
}

/// What an object does, one call at a time.
pub trait Model {
    type State: Clone + Debug + Eq + Hash;
    type Op: Debug;
    type Answer: Debug;

    /// States that the object may be in after a call with this answer (`None`: with any); none: it gives no such answer.
    fn after(state: &Self::State, op: &Self::Op, answer: Option<&Self::Answer>) -> Vec<Self::State>;
}

type CallOf<M> = Call<<M as Model>::Op, <M as Model>::Answer>;

/// Looks for an order of the calls, of which there are at most 128, that a sequential object could have answered.
///
/// # Errors
/// There is none: says how far the longest one goes.
pub fn check<M: Model>(start: M::State, calls: &[CallOf<M>]) -> Result<(), String> {
    assert!(calls.len() <= 128, "{} calls of one object", calls.len());
    let answered = calls.iter().enumerate().filter(|(_, call)| call.answer.is_some());
    let all: u128 = answered.map(|(at, _)| 1 << at).sum();
    let mut seen = HashSet::new();
    let mut open = vec![(0u128, start)];
    let mut longest = (0, 0, BTreeSet::new());
    while let Some((taken, state)) = open.pop() {
        if taken & all == all {
            return Ok(());
        }
        if !seen.insert((taken, state.clone())) {
            continue;
        }
        let length = (taken & all).count_ones();
        if longest.0 < length {
            longest = (length, taken, BTreeSet::new());
        }
        if longest.1 == taken {
            longest.2.insert(format!("{state:?}"));
        }
        let left = || (0..calls.len()).filter(|at| taken & (1 << at) == 0);
        // Whoever was called after that was called after somebody else's answer.
        let until = left().filter_map(|at| calls[at].answer.as_ref()).map(|(at, _)| *at).min();
        for at in left().filter(|at| until.is_none_or(|until| calls[*at].invoked <= until)) {
            let answer = calls[at].answer.as_ref().map(|(_, answer)| answer);
            let after = M::after(&state, &calls[at].op, answer);
            open.extend(after.into_iter().map(|state| (taken | (1 << at), state)));
        }
    }
    let (_, taken, states) = longest;
    let mut told: Vec<(u64, String)> = (calls.iter().enumerate())
        .map(|(at, call)| {
            let fits = if taken & (1 << at) == 0 { "no place" } else { "fits" };
            (call.invoked, format!("{fits:8} {call:?}"))
        })
        .collect();
    told.sort();
    let told: Vec<String> = told.into_iter().map(|(_, line)| line).collect();
    Err(format!("no order of these calls is possible; the longest ends in {states:?}\n{}", told.join("\n")))
}
