//! Verifies a run from its log alone: believes no policy and shares no code with any.

use std::collections::BTreeMap;
use std::fmt;

use super::log::{Entry, Log, What};
use super::workload::Workload;

/// A rule that a decision broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where in the log.
    pub entry: usize,
    /// When, in milliseconds.
    pub at_ms: u64,
    /// The job, by its name.
    pub job: String,
    /// What is wrong, with the numbers.
    pub what: String,
}

impl std::error::Error for Violation {}
impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "decision {} at {} ms, job {}: {}", self.entry, self.at_ms, self.job, self.what)
    }
}

/// What a checker has seen of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    Arrived,
    Runs { since_ms: u64, first: u32, count: u32 },
    Over,
}

/// What is used on a node.
#[derive(Clone, Debug, Default)]
struct Used {
    cpus_milli: u64,
    memory_bytes: u64,
    /// Thousandths and memory of each device that is used.
    devices: BTreeMap<u32, (u64, u64)>,
}

/// Counts of a verified run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Starts that were looked at.
    pub starts: u64,
    /// Ends that were looked at.
    pub ends: u64,
    /// Jobs that left without having started.
    pub dropped: u64,
}

/// Verifies that time never runs back, that every job arrives once, starts at most once and not before it arrives, ends
/// when its run or its limit is over, that a start has all its ranks, that each rank has as many devices as it asks for,
/// of a kind that it accepts, and that no node's processors, memory, devices or device memory are given out twice.
///
/// # Errors
/// The first rule that is broken.
pub fn check(workload: &Workload, log: &Log) -> Result<Verified, Violation> {
    let mut checker = Checker {
        workload,
        log,
        seen: vec![Seen::Nothing; workload.jobs.len()],
        used: vec![Used::default(); workload.nodes.len()],
        now_ms: 0,
        verified: Verified::default(),
    };
    for (at, entry) in log.entries.iter().enumerate() {
        checker.entry(entry).map_err(|what| Violation {
            entry: at,
            at_ms: entry.at_ms,
            job: workload.jobs.get(entry.job as usize).map_or("?".into(), |job| job.name.to_string()),
            what,
        })?;
    }
    Ok(checker.verified)
}

struct Checker<'a> {
    workload: &'a Workload,
    log: &'a Log,
    seen: Vec<Seen>,
    used: Vec<Used>,
    now_ms: u64,
    verified: Verified,
}

impl Checker<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<(), String> {
        if entry.at_ms < self.now_ms {
            return Err(format!("time runs back from {} ms", self.now_ms));
        }
        self.now_ms = entry.at_ms;
        let Some(job) = self.workload.jobs.get(entry.job as usize) else {
            return Err(format!("there is no job {}", entry.job));
        };
        let seen = self.seen[entry.job as usize];
        self.seen[entry.job as usize] = match (entry.what, seen) {
            (What::Arrived, Seen::Nothing) if entry.at_ms == job.at_ms => Seen::Arrived,
            (What::Arrived, _) => {
                return Err(format!("arrives, which it should once and at {} ms", job.at_ms));
            }
            (What::Started { first, count }, Seen::Arrived) => {
                self.start(entry.job, first, count)?;
                self.verified.starts += 1;
                Seen::Runs { since_ms: entry.at_ms, first, count }
            }
            (What::Started { .. }, seen) => return Err(format!("starts although {seen:?}")),
            (What::Ended, Seen::Runs { since_ms, first, count }) => {
                let held = job.time_limit_ms.unwrap_or(u64::MAX).min(job.run_ms);
                if entry.at_ms - since_ms != held {
                    return Err(format!("ends after {} ms instead of {held}", entry.at_ms - since_ms));
                }
                self.end(entry.job, first, count);
                self.verified.ends += 1;
                Seen::Over
            }
            (What::Ended, seen) => return Err(format!("ends although {seen:?}")),
            (What::Dropped, Seen::Arrived) => {
                self.verified.dropped += 1;
                Seen::Over
            }
            (What::Dropped, seen) => return Err(format!("is dropped although {seen:?}")),
        };
        Ok(())
    }

    fn start(&mut self, job: u32, first: u32, count: u32) -> Result<(), String> {
        let spec = self.workload.spec_of(job);
        if count != spec.ranks {
            return Err(format!("a gang of {} starts with {count} ranks", spec.ranks));
        }
        let last = first.checked_add(count).filter(|last| *last as usize <= self.log.ranks.len());
        last.ok_or("its ranks are not in the log")?;
        for rank in self.log.ranks_of(first, count) {
            let Some(node) = self.workload.nodes.get(rank.node as usize) else {
                return Err(format!("there is no node {}", rank.node));
            };
            if rank.devices.count_ones() != u32::from(spec.devices) {
                return Err(format!(
                    "asks for {} devices and has {}",
                    spec.devices,
                    rank.devices.count_ones()
                ));
            }
            if 0 < spec.devices {
                let Some(class) = self.workload.classes.get(usize::from(node.class)) else {
                    return Err(format!("{} has devices of no class", node.name));
                };
                if !spec.wants.is_empty() && !spec.wants.iter().any(|want| want.accepts(class)) {
                    return Err(format!("accepts {} and is given {}", spec.wants_text(), class.model));
                }
            }
            let used = &mut self.used[rank.node as usize];
            used.cpus_milli += u64::from(spec.cpus_milli);
            if u64::from(node.cpus_milli) < used.cpus_milli {
                return Err(format!(
                    "{}: {} of {} thousandths of a core",
                    node.name, used.cpus_milli, node.cpus_milli
                ));
            }
            used.memory_bytes += spec.memory_bytes;
            if node.memory_bytes < used.memory_bytes {
                return Err(format!("{}: {} of {} bytes", node.name, used.memory_bytes, node.memory_bytes));
            }
            for device in (0..u16::BITS).filter(|device| rank.devices >> device & 1 == 1) {
                if u32::from(node.devices) <= device {
                    return Err(format!(
                        "{} has {} devices, and not number {device}",
                        node.name, node.devices
                    ));
                }
                let (milli, bytes) = used.devices.entry(device).or_default();
                *milli += u64::from(spec.share_milli);
                if 1000 < *milli {
                    return Err(format!("{} device {device}: {milli} of 1000 thousandths", node.name));
                }
                *bytes += spec.slice_memory_bytes;
                let most = self.workload.classes[usize::from(node.class)].memory_bytes;
                if most < *bytes {
                    return Err(format!("{} device {device}: {bytes} of {most} bytes", node.name));
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, job: u32, first: u32, count: u32) {
        let spec = self.workload.spec_of(job);
        for rank in self.log.ranks_of(first, count) {
            let used = &mut self.used[rank.node as usize];
            used.cpus_milli -= u64::from(spec.cpus_milli);
            used.memory_bytes -= spec.memory_bytes;
            for device in (0..u16::BITS).filter(|device| rank.devices >> device & 1 == 1) {
                let (milli, bytes) = used.devices.get_mut(&device).expect("a device that is used");
                *milli -= u64::from(spec.share_milli);
                *bytes -= spec.slice_memory_bytes;
            }
        }
    }
}
