//! Devices that must be reset, once nothing runs on them: by a program of whoever runs the node. How it is done differs by
//! maker, by how cards are linked, and by what else shares them, so nothing is done unasked.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use aquifer_core::{Device, Health, Name};

use super::Found;
use crate::said::said;

/// How long the program may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// A device is left alone so long after an attempt, in milliseconds: what it brought has to show first.
const APART_MS: u64 = 600_000;
/// Attempts for one device within [`DAY_MS`], at most: what comes back so often is not cured by it.
const MOST_A_DAY: usize = 3;
const DAY_MS: u64 = 86_400_000;

/// What was tried.
#[derive(Debug, Default)]
pub struct Resets {
    /// When, in Unix milliseconds, by device.
    tried: BTreeMap<Name, Vec<u64>>,
    /// Why the last attempt failed.
    failed: BTreeMap<Name, String>,
}

impl Resets {
    /// The device that is to be reset now, by its index: one that must be, on which nothing runs, and that was not tried too
    /// often. It counts as tried.
    ///
    /// * `held`: whether something runs on the device of an index, or is about to.
    pub fn due(&mut self, now_ms: u64, devices: &[Device], held: impl Fn(u16) -> bool) -> Option<u16> {
        let wants = |device: &Device| {
            let health = device.fault.as_ref().map(|fault| fault.health);
            matches!(health, Some(Health::Draining | Health::ResetWanted))
        };
        let may = |device: &Device| {
            let lately = self.lately(now_ms, &device.uuid);
            lately.clone().count() < MOST_A_DAY && lately.max().is_none_or(|at| at + APART_MS <= now_ms)
        };
        let mut indexed = (0u16..).zip(devices);
        let (index, device) =
            indexed.find(|(index, device)| wants(device) && may(device) && !held(*index))?;
        let tried = self.tried.entry(device.uuid.clone()).or_default();
        tried.retain(|at| now_ms < at + DAY_MS);
        tried.push(now_ms);
        Some(index)
    }

    fn lately(&self, now_ms: u64, uuid: &Name) -> impl Iterator<Item = u64> + Clone {
        let tried = self.tried.get(uuid).into_iter().flatten().copied();
        tried.filter(move |at| now_ms < at + DAY_MS)
    }

    /// An attempt has ended.
    pub fn on_end(&mut self, uuid: Name, result: Result<(), String>) {
        match result {
            Ok(()) => {
                tracing::info!(%uuid, "device was reset");
                self.failed.remove(&uuid);
            }
            Err(why) => {
                tracing::warn!(%uuid, "device could not be reset: {why}");
                self.failed.insert(uuid, why);
            }
        }
    }

    /// What an operator should know of those devices that still must be reset.
    pub fn findings(&self, devices: &[Device]) -> Vec<String> {
        let about = |(index, device): (usize, &Device)| {
            let health = device.fault.as_ref()?.health;
            let tries = self.tried.get(&device.uuid)?.len();
            let is_bad = matches!(health, Health::Draining | Health::ResetWanted);
            is_bad.then(|| match self.failed.get(&device.uuid) {
                Some(why) => format!("device {index} could not be reset ({tries} of {MOST_A_DAY}): {why}"),
                None => format!("device {index} was reset, and is not well yet ({tries} of {MOST_A_DAY})"),
            })
        };
        devices.iter().enumerate().filter_map(about).collect()
    }
}

/// What programs of the site are told of a device: `VENDOR UUID PLACE NUMBER`, where the place is that on the bus and the number that
/// by which the vendor's own programs select it.
pub(super) fn about(found: &Found) -> [String; 4] {
    let (vendor, number) = (found.class.vendor.to_string(), found.logical.to_string());
    [vendor, found.uuid.to_string(), found.place.clone(), number]
}

/// Runs the program.
///
/// # Errors
/// It cannot be started, fails, or takes too long.
pub(super) fn run(program: &Path, found: &Found) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(about(found));
    said(command, &[], PATIENCE).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use aquifer_core::{DeviceClass, Fault, Isolation, Vendor};

    use super::*;

    fn device(uuid: &str, health: Option<Health>) -> Device {
        let class = DeviceClass { vendor: Vendor::Nvidia, model: "h100".into(), memory_bytes: 1 };
        Device {
            class: Arc::new(class),
            uuid: uuid.into(),
            fault: health.map(|health| Fault { health, why: "xid 95".into(), since_ms: 0 }),
            speed_milli: 1000,
            speed_source: "".into(),
            memory_gbs: 0,
            number: 0,
            isolation: Isolation::Advisory,
            island: None,
            locality: Default::default(),
        }
    }

    #[test]
    fn what_must_be_reset_is_once_nothing_runs_on_it_and_not_for_ever() {
        let devices = [
            device("well", None),
            device("lost", Some(Health::Faulty)),
            device("suspect", Some(Health::Suspect)),
            device("bad", Some(Health::ResetWanted)),
            device("drains", Some(Health::Draining)),
        ];
        let mut resets = Resets::default();
        assert_eq!(resets.due(5, &devices, |_| true), None, "it is in use");
        assert_eq!(resets.due(5, &devices, |index| index == 3), Some(4));
        assert_eq!(resets.due(6, &devices, |_| false), Some(3));
        assert_eq!(resets.due(7, &devices, |_| false), None, "both were just tried");
        assert!(resets.findings(&devices)[0].contains("device 3 was reset, and is not well yet (1 of 3)"));
        resets.on_end("bad".into(), Err("in use by another client".into()));
        assert!(
            resets.findings(&devices)[0].contains("could not be reset (1 of 3): in use by another client")
        );
        for later in [1, 2] {
            let now = 6 + later * APART_MS;
            assert_eq!(resets.due(now, &devices, |index| index == 4), Some(3));
        }
        assert_eq!(
            resets.due(6 + 5 * APART_MS, &devices, |index| index == 4),
            None,
            "that is enough for a day"
        );
        assert_eq!(resets.due(6 + DAY_MS, &devices, |index| index == 4), Some(3));
        assert_eq!(resets.findings(&devices[..3]), [""; 0], "of those that are well nothing is said");
    }
}
