//! Time of devices that does not fade, unlike what the order of queues looks at.

use std::collections::BTreeMap;

use aquifer_core::{Cluster, Name, Time};

/// What each queue's own jobs have held since this scheduler began to lead, in reference devices.
#[derive(Default)]
pub struct Hours(BTreeMap<Name, Held>);

struct Held {
    /// Thousandths of a reference device times milliseconds, until `since`.
    milli_ms: u128,
    /// What is held since then.
    worth_milli: u64,
    since: Time,
}

impl Hours {
    /// What is held counts from now on.
    pub fn of(cluster: &Cluster) -> Hours {
        let mut hours = Hours::default();
        cluster.queues().iter().for_each(|queue| hours.on_change(cluster, &queue.name));
        hours
    }

    /// What the queue's jobs hold has changed, a moment ago.
    pub fn on_change(&mut self, cluster: &Cluster, queue: &Name) {
        let (now, worth_milli) = (cluster.now(), cluster.queues().worth_milli(queue));
        let held = self.0.entry(queue.clone()).or_insert(Held { milli_ms: 0, worth_milli, since: now });
        *held = Held { milli_ms: held.at(now), worth_milli, since: now };
    }

    /// Of each queue, in thousandths of a reference device times milliseconds.
    pub fn at(&self, now: Time) -> BTreeMap<Name, u128> {
        self.0.iter().map(|(queue, held)| (queue.clone(), held.at(now))).collect()
    }
}

impl Held {
    fn at(&self, now: Time) -> u128 {
        self.milli_ms + u128::from(self.worth_milli) * u128::from(now.since(self.since))
    }
}
