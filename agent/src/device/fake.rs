//! Devices of a file, of any vendor: for tests, demonstrations and trials of policies. The file is read anew at every
//! look, so that changing it breaks and repairs cards of a running agent.
//!
//! ```toml
//! [labels]                          # of the node; optional
//! rack = "r1"
//!
//! [[device]]
//! vendor = "nvidia"                 # any name of a vendor
//! model = "h100-80gb-hbm3"
//! memory_gib = 80                   # or memory_bytes
//! count = 8                         # 1 if left out
//! uuid = "GPU-left"                 # start of the unique names; "fake-VENDOR" if left out
//! island_size = 4                   # so many, one after the other, are linked directly; none if left out
//! speed = 2.5                       # how fast each is, 1 is the reference; what a datasheet says if left out
//! memory_gbs = 3350                 # how fast each reads its memory; what a datasheet says if left out
//! isolation = "limited"             # how well slices of each are kept apart; "advisory" if left out
//! faults = { 3 = "fell off the bus", 4 = "suspect: xid 74" }   # by number within this entry, from 0
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aquifer_core::{DeviceClass, Fault, Health, Isolation, Name, UnknownVendor, Vendor};
use serde::Deserialize;

use super::{Backend, DeviceError, Discovery, Finding, Found, Visibility, merge, visible_devices_variable};

/// Devices of a node, at most.
const MOST_DEVICES: usize = 65_535;

/// One vendor's devices of a file.
pub struct Fake {
    file: PathBuf,
    vendor: Vendor,
}

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    device: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    vendor: String,
    model: String,
    memory_gib: Option<u64>,
    memory_bytes: Option<u64>,
    #[serde(default = "one")]
    count: u32,
    uuid: Option<String>,
    island_size: Option<u32>,
    speed: Option<f64>,
    memory_gbs: Option<u32>,
    isolation: Option<String>,
    #[serde(default)]
    faults: BTreeMap<String, String>,
}

impl Fake {
    /// The devices of one vendor in a file.
    pub fn new(file: PathBuf, vendor: Vendor) -> Fake {
        Fake { file, vendor }
    }
}

impl Backend for Fake {
    fn vendor(&self) -> Vendor {
        self.vendor
    }

    fn discover(&mut self) -> Discovery {
        match of_file(&self.file) {
            Ok((mut devices, _)) => {
                devices.retain(|device| device.class.vendor == self.vendor);
                Discovery { devices, findings: Vec::new() }
            }
            Err(error) => {
                let finding = Finding { vendor: self.vendor, what: error.to_string() };
                Discovery { devices: Vec::new(), findings: vec![finding] }
            }
        }
    }

    /// A file that is just being rewritten breaks no card.
    fn health(&mut self, devices: &mut Vec<Found>) -> Vec<Finding> {
        let now = self.discover();
        if now.findings.is_empty() {
            merge(devices, now.devices, None);
        }
        now.findings
    }

    fn is_trusted(&self) -> bool {
        true
    }

    fn visibility(&self, devices: &[&Found]) -> Visibility {
        let numbers: Vec<String> = devices.iter().map(|device| device.logical.to_string()).collect();
        let variable = visible_devices_variable(self.vendor);
        let env = variable.map(|variable| (variable.to_string(), numbers.join(",")));
        Visibility { env: env.into_iter().collect(), ..Visibility::default() }
    }
}

/// The devices and labels of a file's text.
///
/// # Errors
///
/// Says what is wrong, and where: the line, or the entry (from 0) with its key.
pub fn parse_fake(text: &str) -> Result<(Vec<Found>, BTreeMap<Name, Name>), DeviceError> {
    let file: File = toml::from_str(text).map_err(|error| {
        let line = 1 + text[..error.span().map_or(0, |at| at.start)].matches('\n').count();
        DeviceError::Fake(format!("line {line}: {}", error.message().replace('\n', " ")))
    })?;
    let mut devices: Vec<Found> = Vec::new();
    let mut names = BTreeSet::new();
    let mut islands = 0;
    for (entry_number, entry) in file.device.iter().enumerate() {
        let wrong = |key: &str, value: &dyn fmt::Display, allowed: &str| {
            DeviceError::Fake(format!("device[{entry_number}].{key} is {value}: expected {allowed}"))
        };
        let vendor: Vendor = entry.vendor.parse().map_err(|error: UnknownVendor| {
            DeviceError::Fake(format!("device[{entry_number}].vendor: {error}"))
        })?;
        let bytes = entry.memory_gib.map(|gib| gib.checked_mul(1 << 30).ok_or(gib)).transpose();
        let bytes = bytes.map_err(|gib| wrong("memory_gib", &gib, "less than 2^34"))?;
        let memory_bytes = entry.memory_bytes.or(bytes).unwrap_or(0);
        let class = Arc::new(DeviceClass { vendor, model: entry.model.as_str().into(), memory_bytes });
        let earlier = devices.iter().filter(|device| device.class.vendor == vendor).count() as u32;
        if entry.island_size == Some(0) {
            return Err(wrong("island_size", &0, "at least 1"));
        }
        if MOST_DEVICES - devices.len() < entry.count as usize {
            return Err(wrong("count", &entry.count, &format!("{MOST_DEVICES} devices at most in all")));
        }
        let speed = entry.speed.unwrap_or(1.0);
        if !(0.001..=1000.0).contains(&speed) {
            return Err(wrong("speed", &speed, "0.001 to 1000"));
        }
        let isolation = entry.isolation.as_deref().unwrap_or("advisory");
        let isolation = isolation.parse::<Isolation>().map_err(|allowed| {
            DeviceError::Fake(format!("device[{entry_number}].isolation is {isolation:?}: {allowed}"))
        })?;
        let is_one = |number: &String| number.parse().is_ok_and(|number: u32| number < entry.count);
        if let Some(number) = entry.faults.keys().find(|number| !is_one(number)) {
            return Err(wrong("faults", &number, &format!("numbers from 0 of {} devices", entry.count)));
        }
        let prefix = entry.uuid.clone().unwrap_or_else(|| format!("fake-{vendor}"));
        for number in 0..entry.count {
            let logical = earlier + number;
            let suffix = if entry.uuid.is_some() { number } else { logical };
            let uuid = format!("{prefix}-{suffix}");
            if !names.insert(uuid.clone()) {
                return Err(wrong("uuid", &prefix, &format!("another: two devices are called {uuid}")));
            }
            devices.push(Found {
                class: class.clone(),
                uuid: uuid.as_str().into(),
                fault: entry.faults.get(&number.to_string()).map(|fault| parse_fault(fault)),
                isolation,
                parts: None,
                memory_gbs: entry.memory_gbs,
                speed_milli: entry.speed.map(|speed| (speed * 1000.0).round() as u32),
                is_used: false,
                one_of: 1,
                island: entry.island_size.map(|size| (islands + number / size) as u16),
                place: format!("{entry_number:04}-{number:05}"),
                logical,
                physical: logical,
                nodes: Vec::new(),
            });
        }
        islands += entry.island_size.map_or(0, |size| entry.count.div_ceil(size));
    }
    let labels = file.labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into()));
    Ok((devices, labels.collect()))
}

/// `WHY`, or `HEALTH: WHY`.
fn parse_fault(text: &str) -> Fault {
    let named = |(_, name): &&(Health, &str)| text.starts_with(&format!("{name}: "));
    match Health::ALL.iter().find(named) {
        Some((health, name)) => Fault { health: *health, ..Fault::faulty(&text[name.len() + 2..]) },
        None => Fault::faulty(text),
    }
}

pub(super) fn labels(file: &Path) -> Result<BTreeMap<Name, Name>, DeviceError> {
    Ok(of_file(file)?.1)
}

/// The vendors that a file names, each once.
pub(super) fn vendors(file: &Path) -> Result<Vec<Vendor>, DeviceError> {
    let mut vendors: Vec<Vendor> = of_file(file)?.0.iter().map(|device| device.class.vendor).collect();
    vendors.sort();
    vendors.dedup();
    Ok(vendors)
}

fn of_file(file: &Path) -> Result<(Vec<Found>, BTreeMap<Name, Name>), DeviceError> {
    let of_file = |what: &dyn fmt::Display| DeviceError::Fake(format!("{}: {what}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| of_file(&error))?;
    parse_fake(&text).map_err(|error| match error {
        DeviceError::Fake(what) => of_file(&what),
        other => other,
    })
}

fn one() -> u32 {
    1
}
