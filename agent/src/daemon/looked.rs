//! What operators are told of the daemon.

use std::time::Duration;

use aquifer_core::WorkerState;

use super::{Daemon, now};
use crate::metrics::Seen;

impl Daemon {
    /// How it is now.
    pub(super) fn seen(&self) -> Seen {
        let mut seen = Seen {
            alone_because: self.talks.scheduler().is_none().then(|| self.talks.no_session_because().into()),
            node: self.config.node.clone(),
            term: self.talks.agent.term(),
            lease_left: Duration::from_millis(self.talks.agent.lease_end().since(now())),
            workers: [("starting", 0), ("running", 0), ("exited", 0)].into(),
            ..Seen::default()
        };
        for state in self.talks.agent.workers().values() {
            let word = match state {
                WorkerState::Starting => "starting",
                WorkerState::Running => "running",
                WorkerState::Exited(_) => "exited",
            };
            *seen.workers.entry(word).or_default() += 1;
        }
        for device in &self.inventory.devices {
            let health = device.fault.as_ref().map(|fault| fault.health);
            let class = (device.class.vendor, device.class.model.clone(), health);
            *seen.devices.entry(class).or_default() += 1;
        }
        seen
    }
}
