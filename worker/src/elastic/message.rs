//! What members tell each other.

use super::ledger::Spent;
use crate::kernels::DeviceError;
use crate::values::Values;
use crate::vector::Vector;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// Number of a worker within its attempt: never used twice.
pub type Rank = u32;

/// What has to be the same on all members: names and values for people to read, the same names in the same order.
pub type Agreement = Vec<(String, String)>;

/// Who a member is and what it computes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of this protocol.
    pub protocol: String,
    /// Name of the job.
    pub job: String,
    /// Attempt of the job.
    pub attempt: u64,
    /// The worker.
    pub rank: Rank,
    /// What it was started with.
    pub agreement: Agreement,
    /// What it computes with. Those of other kernels may take part, but the last bits then depend on who computes what.
    pub kernels: String,
    /// What could bring it sums beside the connection, for whoever carries them; nothing here depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cards: Option<String>,
}

/// The state between two steps, as it is sent to a member that has none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Steps that are done.
    pub step: u64,
    /// What else belongs to it, as JSON.
    pub record: String,
    /// Parameters and moments.
    #[serde(skip)]
    pub values: Vec<Vec<f32>>,
}

/// How a training ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// All steps are done.
    Done,
    /// A member was asked to stop.
    Stopped,
    /// It cannot go on; says why.
    Failed(String),
}

/// One try to compute a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Steps that are done.
    pub step: u64,
    /// How often the leader has begun anew.
    pub number: u32,
}

/// One message. Large vectors follow the rest of it on the wire.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// The first one on every connection: who dials, and the step whose state it has.
    Hello(Identity, Option<u64>),
    /// You are in. What you lack follows.
    Welcome,
    /// You are not, because; it may make sense to ask again.
    Refuse {
        /// Why.
        reason: String,
        /// Whether another try may succeed.
        for_now: bool,
    },
    /// Another one leads.
    Follow(Rank),
    /// The step whose state the sender has, if it is another one than it said first.
    Have(Option<u64>),
    /// To a member that is ahead: send your state, or, if it is that of the step after this one, the sum that led to it.
    Want(Option<u64>),
    /// The state, for one that lacks it.
    State(Box<Snapshot>),
    /// What was lacking is there.
    Synced,
    /// Compute these shards of the step that begins with the state of `turn.step`.
    Work {
        /// Of this try.
        turn: Turn,
        /// Which.
        shards: Range<usize>,
    },
    /// Leave shards from `end` on to another one, but for those that are begun.
    Trim {
        /// As in `Work`.
        turn: Turn,
        /// The first one to leave.
        end: usize,
    },
    /// What is left to another one begins here.
    Trimmed {
        /// As in `Work`.
        turn: Turn,
        /// The first one that is not computed.
        end: usize,
    },
    /// The sum of some shards.
    Part {
        /// As in `Work`.
        turn: Turn,
        /// First shard.
        start: usize,
        /// Shards.
        size: usize,
        /// It is of one shard, not finite or audited: another member is to compute it as well.
        is_disputed: bool,
        /// Mean time of a shard, in microseconds; 0 where the sender has not computed it.
        pace_us: u64,
        /// Their sum.
        #[serde(skip)]
        values: Arc<Values>,
    },
    /// To a leader that is new to the sender, after the sums that the sender has of the step: what it goes on with.
    Doing {
        /// As in `Work`.
        turn: Turn,
        /// What is left of its block.
        shards: Range<usize>,
    },
    /// What was computed for an earlier step is thrown away: free again.
    Idle,
    /// The sum of all shards, which leads to the state of `step`.
    Commit {
        /// Steps that are then done.
        step: u64,
        /// The sum.
        #[serde(skip)]
        total: Arc<Values>,
        /// The time since the step before.
        spent: Spent,
    },
    /// A sign of life, and the step of the newest checkpoint.
    Ping(Option<u64>),
    /// The answer.
    Pong,
    /// To the leader: all are to stop.
    Stop,
    /// The sender leaves, and takes this one for the leader.
    Leave(Option<Rank>),
    /// From the leader: the end, and the step of the newest checkpoint.
    End(Outcome, Option<u64>),
}

impl Message {
    /// The vectors that follow the rest. Waits until they are on the host.
    ///
    /// # Errors
    /// The device that has them has failed.
    pub fn vectors(&self) -> Result<Vec<&[f32]>, DeviceError> {
        Ok(match self {
            Message::State(snapshot) => snapshot.values.iter().map(Vec::as_slice).collect(),
            _ => self.sum().map(|sum| sum.host()).transpose()?.into_iter().collect(),
        })
    }

    /// Floats of these vectors.
    pub fn floats(&self) -> usize {
        match self {
            Message::State(snapshot) => snapshot.values.iter().map(Vec::len).sum(),
            _ => self.sum().map_or(0, |sum| sum.len()),
        }
    }

    /// The sum that it has.
    pub fn sum(&self) -> Option<&Arc<Values>> {
        match self {
            Message::Part { values: sum, .. } | Message::Commit { total: sum, .. } => Some(sum),
            _ => None,
        }
    }

    /// As [`sum`](Message::sum), to be put in.
    pub fn sum_mut(&mut self) -> Option<&mut Arc<Values>> {
        match self {
            Message::Part { values: sum, .. } | Message::Commit { total: sum, .. } => Some(sum),
            _ => None,
        }
    }

    /// Puts the vectors in that followed the rest.
    ///
    /// # Errors
    /// Where it has no place for so many.
    pub fn fill(&mut self, mut vectors: Vec<Vector>) -> Result<(), String> {
        if let Message::State(snapshot) = self {
            snapshot.values = vectors.into_iter().map(Vec::from).collect();
            return Ok(());
        }
        match (self.sum_mut(), vectors.len()) {
            (Some(sum), 1) => *sum = Arc::new(vectors.remove(0).into()),
            (Some(_), 0) => return Err("a sum without its vector".into()),
            (None, 0) => (),
            (_, count) => return Err(format!("{count} vectors with a message that has not so many")),
        }
        Ok(())
    }
}
