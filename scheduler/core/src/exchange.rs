//! Jobs that change places, see `plan::exchange`.
//!
//! Both stop to be placed again, and hold what they have until the other one has stopped too: nobody slips in between. That
//! is soft state. A scheduler that takes over places them like any others.

use std::sync::Arc;

use crate::cluster::Cluster;
use crate::effect::Note;
use crate::jobs::{Job, Phase, Then, Why};
use crate::plan::{Exchange, Free, Side, place_on};
use crate::types::*;

/// Where a job goes on when it and another one have stopped.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The other one.
    pub with: JobId,
    ranks: usize,
    class: Arc<DeviceClass>,
    nodes: Vec<NodeId>,
}

impl Cluster {
    /// Two jobs that run stop to change places.
    pub(crate) fn exchange(&mut self, Exchange { sides, sooner_ms, cost_ms }: Exchange) {
        let [one, other] = [sides[0].job, sides[1].job];
        for (Side { job: id, from, to, nodes }, with) in sides.into_iter().zip([other, one]) {
            let ranks = self.jobs.get(id).expect("a job that changes places").ranks.len();
            let (class, from, to) = (to.clone(), from.model.clone(), to.model.clone());
            self.exchanges.insert(id, Target { with, ranks, class, nodes });
            self.note(Note::Exchanged {
                job: id,
                with,
                from: from.clone(),
                to: to.clone(),
                sooner_ms,
                cost_ms,
            });
            self.change_job(id, |job| {
                assert_eq!(job.phase, Phase::Active, "{id} changes places");
                job.phase = Phase::Stopping(Then::Requeue);
                job.last_failure = Some(Why::Moved { from, to });
            });
            self.reassign(id);
        }
    }

    /// A job that was to be placed again has stopped: at once, or as soon as the one has with which it changes places.
    pub(crate) fn end_requeue(&mut self, now: Time, id: JobId) {
        let Some(with) = self.exchanges.get(&id).map(|target| target.with) else {
            return self.release(now, id, None);
        };
        if !Cluster::has_stopped(self.jobs.get(with).expect("a job that changes places")) {
            return;
        }
        let both = [id, with].map(|id| (id, self.exchanges.remove(&id).expect("both change places")));
        both.iter().for_each(|(id, _)| self.release(now, *id, None));
        for (id, Target { ranks, class, nodes, .. }) in both {
            let job = self.jobs.get(id).expect("a job that changes places");
            // Where it is not as it was, the job is placed like any other.
            if let Some(ranks) = place_on(&mut Free::of(self), job, ranks, &class, &nodes) {
                self.place(now, id, ranks);
                nodes.into_iter().for_each(|node| self.refresh_room(node));
            }
        }
    }

    /// A job ends instead of changing places: the other one is placed like any other.
    pub(crate) fn leave_exchange(&mut self, now: Time, id: JobId) {
        let Some(Target { with, .. }) = self.exchanges.remove(&id) else { return };
        self.exchanges.remove(&with);
        if Cluster::has_stopped(self.jobs.get(with).expect("a job that changes places")) {
            self.release(now, with, None);
        }
    }

    /// Gives back what jobs hold that had stopped when the last scheduler ended, to change places.
    pub(crate) fn end_exchanges(&mut self) {
        let had_stopped =
            |job: &&Job| job.phase == Phase::Stopping(Then::Requeue) && Cluster::has_stopped(job);
        let stopped: Vec<JobId> = self.jobs.holding().filter(had_stopped).map(|job| job.id).collect();
        stopped.into_iter().for_each(|id| self.release(self.now, id, None));
    }
}
