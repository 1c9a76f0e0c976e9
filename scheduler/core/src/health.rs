//! What becomes of devices that are not well.
//!
//! What is known of one device, its agent says; here is what compares devices, and what a pool may do about them: who is
//! stopped, who is kept away, and how many may be quarantined.

use std::fmt;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::effect::*;
use crate::jobs::{Phase, Why};
use crate::nodes::Node;
use crate::types::*;

/// Why a device takes no new work, as its agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// How bad it is.
    pub health: Health,
    /// What was seen, for people.
    pub why: Name,
    /// Since when, in milliseconds of Unix time by the clock of its machine; 0: not told.
    pub since_ms: u64,
}

/// How bad a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Something was seen that may mean nothing. What runs on it runs on.
    Suspect,
    /// It was repaired, and has yet to show that it is well. What runs on it runs on.
    Probation,
    /// Several independent things say that it is bad. What runs on it is stopped as far as the pool can afford that.
    Quarantined,
    /// It is to be empty, and then reset.
    Draining,
    /// It must be reset.
    ResetWanted,
    /// Its machine must be restarted.
    RebootWanted,
    /// It cannot be used.
    Faulty,
}

/// Of a pool's devices so many per cent are quarantined in [`QUARANTINE_PERIOD`] at most, and at least one may be: who
/// sees many devices go bad at once sees something else.
const QUARANTINE_PERCENT: u64 = 5;
/// Over which quarantines are counted.
const QUARANTINE_PERIOD: Duration = Duration::from_secs(3600);

impl Fault {
    /// A device that cannot be used.
    pub fn faulty(why: impl Into<Name>) -> Fault {
        Fault { health: Health::Faulty, why: why.into(), since_ms: 0 }
    }
}

impl Health {
    /// All of them, with their names.
    pub const ALL: [(Health, &'static str); 7] = [
        (Health::Suspect, "suspect"),
        (Health::Probation, "on probation"),
        (Health::Quarantined, "quarantined"),
        (Health::Draining, "draining"),
        (Health::ResetWanted, "to be reset"),
        (Health::RebootWanted, "to be rebooted"),
        (Health::Faulty, "faulty"),
    ];
}

impl Node {
    /// Whether the device of this index takes new work, as far as it depends on the device.
    pub fn device_takes_work(&self, index: u16) -> bool {
        self.why_not(index).is_none()
    }

    /// Why a device takes no new work; `None`: it does.
    pub fn why_not(&self, index: u16) -> Option<String> {
        let Some(device) = self.inventory.devices.get(usize::from(index)) else {
            return Some("gone".into());
        };
        match &device.fault {
            Some(fault) => Some(fault.to_string()),
            None => self.cordoned.contains(&device.uuid).then(|| "cordoned".into()),
        }
    }

    /// What is so bad about a device that nothing may go on on it.
    fn breaks_work(&self, index: u16) -> Option<&Fault> {
        let device = self.inventory.devices.get(usize::from(index))?;
        let fault = device.fault.as_ref()?;
        let breaks = match fault.health {
            Health::Suspect | Health::Probation => false,
            Health::Quarantined => self.quarantined.contains_key(&device.uuid),
            Health::Draining | Health::ResetWanted | Health::RebootWanted | Health::Faulty => true,
        };
        breaks.then_some(fault)
    }
}

impl Cluster {
    pub(crate) fn set_device(
        &mut self,
        now: Time,
        name: Name,
        index: u16,
        cordoned: bool,
    ) -> Result<Answer, Refusal> {
        let id = self.nodes.by_name(&name).ok_or_else(|| Refusal::UnknownNode(name.clone()))?;
        let node = self.nodes.get(id);
        let devices = node.inventory.devices.len() as u32;
        let device = node.inventory.devices.get(usize::from(index));
        let unknown = || Refusal::UnknownDevice { node: name.clone(), device: index, devices };
        let uuid = device.ok_or_else(unknown)?.uuid.clone();
        if node.cordoned.contains(&uuid) != cordoned {
            self.change_node(id, |node| {
                match cordoned {
                    true => node.cordoned.insert(uuid),
                    false => node.cordoned.remove(&uuid),
                };
            });
            self.note(Note::DeviceSet { node: name, device: index, cordoned });
            // Without a device, too: a job that waits for it may have kept others from the rest.
            self.plan_anew(now);
        }
        Ok(Answer::Done)
    }

    /// Quarantines what an agent wants to be, as far as the pool can afford it, and forgets what is long over.
    pub(crate) fn quarantine(&mut self, now: Time, id: NodeId) {
        let node = self.nodes.get(id);
        if self.nodes.is_well(id) && node.quarantined.is_empty() {
            return;
        }
        let is_wanted =
            |device: &Device| device.fault.as_ref().is_some_and(|fault| fault.health == Health::Quarantined);
        let wanted: Vec<Name> =
            node.inventory.devices.iter().filter(|it| is_wanted(it)).map(|it| it.uuid.clone()).collect();
        let is_over = |(uuid, since): (&Name, &Time)| {
            !wanted.contains(uuid) && QUARANTINE_PERIOD.as_millis() as u64 <= now.since(*since)
        };
        if node.quarantined.iter().any(is_over) {
            self.change_node(id, |node| node.quarantined.retain(|uuid, since| !is_over((uuid, since))));
        }
        for uuid in wanted {
            if self.nodes.get(id).quarantined.contains_key(&uuid) || !self.affords_quarantine(now) {
                continue;
            }
            self.change_node(id, |node| _ = node.quarantined.insert(uuid.clone(), now));
            let node = self.nodes.get(id);
            let at = node.inventory.devices.iter().position(|it| it.uuid == uuid).expect("a wanted device");
            let why = node.inventory.devices[at].fault.as_ref().map(|fault| fault.why.clone());
            let (node, why) = (node.name.clone(), why.unwrap_or_default());
            self.note(Note::DeviceQuarantined { node, device: at as u16, why });
        }
    }

    /// Whether one more device may be quarantined now. `O(nodes)`.
    fn affords_quarantine(&self, now: Time) -> bool {
        let devices: u64 = self.nodes.iter().map(|node| node.inventory.devices.len() as u64).sum();
        let times = self.nodes.iter().flat_map(|node| node.quarantined.values());
        let recent = times.filter(|since| now.since(**since) < QUARANTINE_PERIOD.as_millis() as u64).count();
        (recent as u64) < (devices * QUARANTINE_PERCENT / 100).max(1)
    }

    /// Places those elsewhere that hold a device that went bad. They are not charged with a failure.
    pub(crate) fn leave_bad_devices(&mut self, id: NodeId) {
        let node = self.nodes.get(id);
        let is_whole =
            || (0..node.inventory.devices.len() as u16).all(|index| node.breaks_work(index).is_none());
        if self.nodes.is_well(id) || is_whole() {
            return;
        }
        for worker in self.workers_on(id) {
            let job = self.jobs.get(worker.job).expect("a worker's job");
            if job.phase != Phase::Active {
                continue;
            }
            let node = self.nodes.get(id);
            let bad_of = |rank: &Allocation| {
                rank.devices.iter().find_map(|index| Some((*index, node.breaks_work(*index)?)))
            };
            let Some((device, fault)) = bad_of(&job.ranks[job.position(worker.rank)]) else { continue };
            let hit = |rank: &Allocation| rank.node == id && bad_of(rank).is_some();
            let hit: Vec<usize> = (0..job.ranks.len()).filter(|at| hit(&job.ranks[*at])).collect();
            let (node, fault) = (node.name.clone(), fault.to_string().into());
            let why = Why::DeviceBad { rank: worker.rank, node, device, fault };
            if job.can_do_without(&hit) {
                self.note(Note::RankDown { job: worker.job, why });
                self.go_on_without(self.now(), worker.job, &hit);
            } else {
                self.requeue(worker.job, why);
            }
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Health::ALL.iter().find(|(health, _)| health == self).map(|(_, name)| *name);
        f.write_str(name.expect("every health is listed"))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.health, self.why)
    }
}
