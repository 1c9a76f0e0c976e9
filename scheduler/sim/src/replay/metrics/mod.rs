//! Figures of a run, from its log alone.

mod fill;
mod queueing;
mod series;

pub use fill::{DEMANDS, Fill, fill};
pub use queueing::{Queueing, Spread, queueing};
pub use series::{Point, series};

use std::collections::{BTreeMap, BTreeSet};

use super::log::{Log, What};
use super::workload::{Spec, WHOLE, Workload};

/// What is used and who waits, kept up along a log.
struct Usage<'a> {
    workload: &'a Workload,
    log: &'a Log,
    /// Thousandths free, by node and device.
    free: Vec<Vec<u16>>,
    /// Ranks of the jobs that run.
    running: BTreeMap<u32, (u32, u32)>,
    /// Thousandths of devices that jobs hold.
    used_milli: u64,
    /// Thousandths free on devices of which something is used.
    sliver_milli: u64,
    /// Jobs that have arrived and neither started nor left.
    waiting: BTreeSet<u32>,
}

impl<'a> Usage<'a> {
    fn new(workload: &'a Workload, log: &'a Log) -> Usage<'a> {
        let free = workload.nodes.iter().map(|node| vec![WHOLE; node.devices.into()]).collect();
        Usage {
            workload,
            log,
            free,
            running: BTreeMap::new(),
            used_milli: 0,
            sliver_milli: 0,
            waiting: BTreeSet::new(),
        }
    }

    /// Takes in one entry of the log.
    fn see(&mut self, job: u32, what: What) {
        match what {
            What::Arrived => _ = self.waiting.insert(job),
            What::Dropped => _ = self.waiting.remove(&job),
            What::Started { first, count } => {
                self.waiting.remove(&job);
                self.running.insert(job, (first, count));
                self.change(self.workload.spec_of(job), first, count, true);
            }
            What::Ended => {
                let (first, count) = self.running.remove(&job).expect("a verified log");
                self.change(self.workload.spec_of(job), first, count, false);
            }
        }
    }

    fn change(&mut self, spec: &Spec, first: u32, count: u32, takes: bool) {
        let sliver = |free: u16| if free < WHOLE { u64::from(free) } else { 0 };
        for rank in self.log.ranks_of(first, count) {
            for (device, free) in self.free[rank.node as usize].iter_mut().enumerate() {
                if rank.devices >> device & 1 == 1 {
                    self.sliver_milli -= sliver(*free);
                    *free = if takes { *free - spec.share_milli } else { *free + spec.share_milli };
                    self.sliver_milli += sliver(*free);
                }
            }
        }
        match takes {
            true => self.used_milli += spec.devices_milli(),
            false => self.used_milli -= spec.devices_milli(),
        }
    }

    /// Number of jobs that wait.
    fn waiting(&self) -> u64 {
        self.waiting.len() as u64
    }

    fn waiting_jobs(&self) -> impl Iterator<Item = u32> {
        self.waiting.iter().copied()
    }

    fn idle_milli(&self) -> u64 {
        self.free.iter().flatten().map(|free| u64::from(*free)).sum()
    }
}

/// Per cent of all devices, from thousandths of devices.
fn percent(workload: &Workload, milli: f64) -> f64 {
    milli * 100.0 / workload.capacity_milli().max(1) as f64
}
