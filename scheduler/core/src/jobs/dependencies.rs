//! Jobs that follow others.

use super::{Job, Jobs, Outcome, Phase};
use crate::types::*;

/// What a dependency says to the job that waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependency {
    /// Has not ended yet.
    Waits,
    /// Succeeded; a whole array, if it names the first element of one.
    Met,
    /// This job did not succeed.
    Failed(JobId),
}

impl Jobs {
    /// State of a dependency. `job` must exist.
    pub fn dependency(&self, job: JobId) -> Dependency {
        if let Some(array) = self.arrays.get(&job) {
            return match (array.failed, array.left) {
                (Some(failed), _) => Dependency::Failed(failed),
                (None, 0) => Dependency::Met,
                (None, _) => Dependency::Waits,
            };
        }
        match self.table[job].phase {
            Phase::Done(Outcome::Succeeded) => Dependency::Met,
            Phase::Done(_) => Dependency::Failed(job),
            Phase::Pending(_) | Phase::Active | Phase::Stopping(_) => Dependency::Waits,
        }
    }

    /// State of all of a job's dependencies together.
    pub fn dependencies(&self, job: &Job) -> Dependency {
        let mut all = Dependency::Met;
        for dependency in &job.spec.after {
            match self.dependency(*dependency) {
                Dependency::Met => (),
                Dependency::Waits => all = Dependency::Waits,
                failed @ Dependency::Failed(_) => return failed,
            }
        }
        all
    }

    /// Jobs to look at again now that `job` has ended.
    pub fn dependents_of(&self, job: JobId) -> Vec<JobId> {
        let named = [Some(job), self.table[job].array.map(|array| array.first)];
        let sets = named.iter().flatten().filter_map(|name| self.dependents.get(name));
        sets.flatten().copied().collect()
    }
}
