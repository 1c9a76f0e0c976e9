//! Words for what is a number on the wire.

use aquifer_proto::{core, v1};

/// `job-7`.
pub fn job_id(id: u64) -> String {
    core::JobId(id).to_string()
}

/// All states of jobs, with their names; those that have not ended first.
pub const STATES: [(v1::JobState, &str); 8] = [
    (v1::JobState::Pending, "pending"),
    (v1::JobState::Starting, "starting"),
    (v1::JobState::Running, "running"),
    (v1::JobState::Stopping, "stopping"),
    (v1::JobState::Succeeded, "succeeded"),
    (v1::JobState::Failed, "failed"),
    (v1::JobState::Cancelled, "cancelled"),
    (v1::JobState::TimedOut, "timed-out"),
];

/// How many of [`STATES`] have not ended.
pub const UNENDED: usize = 4;

/// The name of a job's state.
pub fn state(state: v1::JobState) -> &'static str {
    STATES.iter().find(|(known, _)| *known == state).map_or("unknown", |(_, name)| name)
}

/// Whether a job has ended.
pub fn has_ended(state: v1::JobState) -> bool {
    STATES[UNENDED..].iter().any(|(ended, _)| *ended == state)
}

/// All states in which a job has ended.
pub fn ended_states() -> Vec<i32> {
    STATES[UNENDED..].iter().map(|(state, _)| i32::from(*state)).collect()
}

pub(super) fn rank_state(state: v1::RankState) -> &'static str {
    match state {
        v1::RankState::Unspecified => "unknown",
        v1::RankState::Assigned => "assigned",
        v1::RankState::Starting => "starting",
        v1::RankState::Running => "running",
        v1::RankState::Gone => "gone",
    }
}
