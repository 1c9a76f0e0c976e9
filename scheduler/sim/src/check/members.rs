//! What workers are told of who takes part in their job.

use std::sync::Arc;

use aquifer_core::*;

use crate::Sim;

impl Sim {
    /// One epoch is one list, whoever is told of it, and whichever scheduler says so.
    pub(crate) fn tell(&mut self, members: &Arc<Members>) {
        assert!(!members.members.is_empty(), "{} has no members", members.job);
        let epochs = self.told.entry((members.job, members.attempt)).or_default();
        let known = epochs.entry(members.epoch).or_insert_with(|| members.clone());
        assert_eq!(known, members, "two lists of epoch {}", members.epoch);
    }

    /// A worker that starts is a member by the newest list, unless it was given up since.
    pub(crate) fn check_told(&self, worker: WorkerId, launch: &Launch) {
        if launch.spec.restart == Restart::Gang {
            return;
        }
        let epochs = self.told.get(&(worker.job, worker.attempt)).expect("its job was told");
        assert!(epochs.values().any(|members| members.has(worker)), "{worker} starts as no member");
    }
}
