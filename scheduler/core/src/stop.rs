//! Why a worker is asked to stop, as it is told.

use std::fmt;
use std::str::FromStr;

use crate::jobs::{Job, Outcome, Phase, Then, Why};

/// Why a worker should end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopReason {
    /// Nobody says.
    Unknown,
    /// A user ended its job.
    Cancel,
    /// Its job has run for its time limit.
    TimeLimit,
    /// Another worker of its gang failed or was lost.
    Gang,
    /// A device of its gang went bad.
    Device,
    /// A node of its gang is drained.
    Drain,
    /// A node of its gang is booked for others.
    Reservation,
    /// Its job gives way to another.
    Preempt,
    /// Its job moves to other devices.
    Move,
    /// Its job goes on with fewer ranks.
    Shrink,
    /// Its job goes on with more ranks.
    Grow,
}

impl StopReason {
    /// All reasons, with their names.
    pub const ALL: [(StopReason, &'static str); 11] = [
        (StopReason::Unknown, "stop"),
        (StopReason::Cancel, "cancel"),
        (StopReason::TimeLimit, "time-limit"),
        (StopReason::Gang, "gang"),
        (StopReason::Device, "device"),
        (StopReason::Drain, "drain"),
        (StopReason::Reservation, "reservation"),
        (StopReason::Preempt, "preempt"),
        (StopReason::Move, "move"),
        (StopReason::Shrink, "shrink"),
        (StopReason::Grow, "grow"),
    ];
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = StopReason::ALL.iter().find(|(reason, _)| reason == self).map(|(_, name)| *name);
        f.write_str(name.expect("every reason is listed"))
    }
}

impl FromStr for StopReason {
    type Err = ();
    fn from_str(text: &str) -> Result<StopReason, ()> {
        let known = StopReason::ALL.iter().find(|(_, name)| *name == text);
        known.map(|(reason, _)| *reason).ok_or(())
    }
}

impl Job {
    /// Why its workers should end, while some should.
    pub(crate) fn stop_reason(&self) -> StopReason {
        match &self.phase {
            Phase::Stopping(Then::Finish(Outcome::Cancelled)) => return StopReason::Cancel,
            Phase::Stopping(Then::Finish(Outcome::TimedOut)) => return StopReason::TimeLimit,
            _ => (),
        }
        match &self.last_failure {
            None => StopReason::Unknown,
            Some(Why::WorkerFailed { .. } | Why::RankLost { .. }) => StopReason::Gang,
            Some(Why::DeviceBad { .. }) => StopReason::Device,
            Some(Why::Drained { .. }) => StopReason::Drain,
            Some(Why::Booked { .. }) => StopReason::Reservation,
            Some(Why::Preempted { .. }) => StopReason::Preempt,
            Some(Why::Moved { .. } | Why::MadeRoom { .. }) => StopReason::Move,
            Some(Why::Resized { from, to, .. }) if to < from => StopReason::Shrink,
            Some(Why::Resized { .. }) => StopReason::Grow,
        }
    }
}
