//! Who gives way to whom, and to whom room is promised.

use super::{Job, Jobs, Phase, Why};
use crate::types::*;

impl Job {
    /// The job that it gives way to, while it stops for that, and when that was decided.
    pub fn gives_way_to(&self) -> Option<(JobId, Time)> {
        match (&self.phase, &self.last_failure) {
            (
                Phase::Stopping(_),
                Some(
                    Why::Preempted { by, at }
                    | Why::Resized { by: Some(by), at, .. }
                    | Why::MadeRoom { by, at },
                ),
            ) => Some((*by, *at)),
            _ => None,
        }
    }
}

impl Jobs {
    /// Jobs to which others give way, each with when that was decided last.
    pub fn gives_way(&self) -> impl Iterator<Item = (&Job, Time)> {
        self.victims.keys().filter_map(|id| Some((self.get(*id)?, self.gives_way_since(*id)?)))
    }

    /// When it was last decided that others give way to the job; `None`: nobody does.
    pub(crate) fn gives_way_since(&self, job: JobId) -> Option<Time> {
        self.victims_of(job).filter_map(Job::gives_way_to).map(|(_, at)| at).max()
    }

    /// Jobs that stop and give way to none, oldest first.
    pub(crate) fn leaving(&self) -> impl Iterator<Item = &Job> {
        self.leaving.iter().map(|id| &self.table[*id])
    }

    /// Number of jobs that give way to others.
    pub(crate) fn count_of_victims(&self) -> usize {
        self.stopping.len() - self.leaving.len()
    }

    /// Jobs that wait for what is promised to them, oldest first.
    pub fn promised(&self) -> impl Iterator<Item = &Job> {
        self.promised.iter().map(|id| &self.table[*id])
    }

    /// Something is promised to a job, or no more: it leaves its line, or stands in it again. `O(log jobs)`.
    pub(crate) fn set_promised(&mut self, now: Time, id: JobId, promised: bool) {
        if self.promised.contains(&id) == promised {
            return;
        }
        let waits = self.get(id).is_some_and(|job| matches!(job.phase, Phase::Pending(_)));
        if waits {
            self.unindex(id);
        }
        if promised {
            self.promised.insert(id);
        } else {
            self.promised.remove(&id);
        }
        if waits {
            self.index(now, id);
        }
    }

    /// Those of these that wait for room.
    pub fn preemptors(&self) -> impl Iterator<Item = (&Job, Time)> {
        self.gives_way().filter(|(job, _)| job.wants_room())
    }

    /// Jobs that stop to give way to `job`, oldest first.
    pub fn victims_of(&self, job: JobId) -> impl Iterator<Item = &Job> {
        self.victims.get(&job).into_iter().flatten().map(|id| &self.table[*id])
    }
}
