//! What devices the node has, whether they are well, and how to show a worker just the ones it holds.
//!
//! One backend for each vendor behind [`Backend`]; [`Backends`] puts them together. A card that cannot be read is
//! listed with its fault and hides no other; a driver that is missing is a [`Finding`], not an empty node.

mod cpu;
mod fake;
mod helper;
mod nvidia;
pub mod pci;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use aquifer_core::{Device, DeviceClass, Inventory, Name, Ports, Vendor};
use serde::{Deserialize, Serialize};

pub use cpu::{Cpu, parse_cores, slug_of_cpu};
pub use fake::{Fake, parse_fake};
pub use nvidia::{Nvidia, slug_of_gpu};

use crate::host::Host;
use crate::json;

/// One vendor's devices.
///
/// Calls may take as long as the vendor's library does, so a backend puts a deadline on it. They are made from a
/// thread that may block.
pub trait Backend: Send {
    /// Whose devices these are.
    fn vendor(&self) -> Vendor;

    /// Looks at everything anew. A device that cannot be read comes with its fault; what concerns no single device is
    /// a finding.
    fn discover(&mut self) -> Discovery;

    /// Looks whether devices that were found earlier are well, and updates what is known of them.
    ///
    /// The default discovers again: a device that is missing then is at fault.
    fn health(&mut self, devices: &mut [Found]) -> Vec<Finding> {
        let now = self.discover();
        for device in devices {
            match now.devices.iter().find(|found| found.uuid == device.uuid) {
                Some(found) => *device = found.clone(),
                None => {
                    let why = now.findings.first().map_or("not found any more", |finding| &finding.what);
                    device.fault = Some(why.into());
                }
            }
        }
        now.findings
    }

    /// Makes a worker see exactly these of the backend's devices, in this order; none, if there are none.
    fn visibility(&self, devices: &[&Found]) -> Visibility;
}

/// A device, as its backend knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub class: Arc<DeviceClass>,
    /// The vendor's unique name of this very piece.
    pub uuid: Name,
    /// Why it must not be used.
    pub fault: Option<Name>,
    /// Those of the vendor with the same number are linked directly; `None`: with none, or nobody has looked.
    pub island: Option<u16>,
    /// Where it is in the machine, such that the order of the text is that of the bus: `0000:1b:00.0`.
    pub place: String,
    /// Number by which the vendor's runtime selects it; not always that of its device node.
    pub logical: u32,
    /// Device nodes that a worker must be able to open.
    pub nodes: Vec<PathBuf>,
}

/// What a backend found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovery {
    /// All devices, faulty ones too.
    pub devices: Vec<Found>,
    /// What people should know.
    pub findings: Vec<Finding>,
}

/// Something about a vendor's devices that people should know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Finding {
    pub vendor: Vendor,
    pub what: String,
}

/// How a worker is made to see its devices and no others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Visibility {
    /// Variables to set.
    pub env: Vec<(String, String)>,
    /// Nodes under `/dev` to let through, where workers run in a container.
    pub device_nodes: Vec<PathBuf>,
    /// Cores to run on; empty: any.
    pub cpu_affinity: Vec<usize>,
}

/// Which devices a node offers.
///
/// Text: `auto`, `none`, or a list of `cpu`, `cpu:0-3+6`, `nvidia`, `nvidia:LIBRARY` and `fake:FILE`, with commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// Every accelerator that is found; the cores as devices if there is none.
    Auto,
    /// These; an empty list for none.
    These(Vec<BackendChoice>),
}

/// One backend and its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendChoice {
    /// Cores as devices; an empty list means all that the agent may use.
    Cpu(Vec<usize>),
    /// NVIDIA's devices, through this library or the installed one.
    Nvidia(Option<PathBuf>),
    /// Devices of a file, for tests and trials.
    Fake(PathBuf),
}

/// Why a choice of devices cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The text of a [`DeviceChoice`] makes no sense.
    #[error("devices {text:?}: {why}")]
    Choice {
        /// The part that makes none.
        text: String,
        /// Why.
        why: String,
    },
    /// A file of fake devices cannot be used.
    #[error("fake devices: {0}")]
    Fake(String),
}

/// All backends of a node. The index of a device never changes while the machine is up.
pub struct Backends {
    backends: Vec<Box<dyn Backend>>,
    /// With the backend of each, an index of `backends`; `None` for one that was known before and is not found.
    devices: Vec<(Option<usize>, Found)>,
    findings: Vec<Finding>,
    labels: BTreeMap<Name, Name>,
    sysfs: PathBuf,
}

impl Backends {
    /// Starts the chosen backends and looks at everything once.
    ///
    /// `known`: a file that keeps the order of devices over restarts of the agent, so that the index of a device
    /// stays what running workers were told, even if one has been lost since. It counts for one boot and one choice.
    ///
    /// # Errors
    ///
    /// Fails if a core or a file of fake devices that was asked for does not exist.
    pub fn open(choice: &DeviceChoice, host: &Host, known: Option<&Path>) -> Result<Backends, DeviceError> {
        let mut backends: Vec<Box<dyn Backend>> = Vec::new();
        let mut labels = BTreeMap::new();
        let parts = match choice {
            DeviceChoice::Auto => vec![BackendChoice::Nvidia(None)],
            DeviceChoice::These(parts) => parts.clone(),
        };
        for part in parts {
            match part {
                BackendChoice::Cpu(cores) => backends.push(Box::new(Cpu::new(host, &cores)?)),
                BackendChoice::Nvidia(library) => backends.push(Box::new(Nvidia::new(library))),
                BackendChoice::Fake(file) => {
                    labels.extend(fake::labels(&file)?);
                    for vendor in fake::vendors(&file)? {
                        backends.push(Box::new(Fake::new(file.clone(), vendor)));
                    }
                }
            }
        }
        let mut all =
            Backends { backends, devices: Vec::new(), findings: Vec::new(), labels, sysfs: "/sys".into() };
        all.discover();
        if *choice == DeviceChoice::Auto {
            all.explain_pci();
            if all.devices.is_empty() {
                all.backends.push(Box::new(Cpu::new(host, &[])?));
                let findings = std::mem::take(&mut all.findings);
                all.discover();
                all.findings = findings;
            }
        }
        if let Some(file) = known {
            all.keep_order(file, &host.boot_id, &format!("{choice:?}"));
        }
        Ok(all)
    }

    /// Looks again whether all devices are well. True if anything changed.
    pub fn refresh(&mut self) -> bool {
        let before = (self.devices.clone(), self.findings.clone());
        self.findings.clear();
        for (index, backend) in self.backends.iter_mut().enumerate() {
            let mine = |entry: &&mut (Option<usize>, Found)| entry.0 == Some(index);
            let mut devices: Vec<Found> =
                self.devices.iter_mut().filter(mine).map(|entry| entry.1.clone()).collect();
            if devices.is_empty() {
                // Nothing could be found so far: perhaps the driver has come up since.
                let found = backend.discover();
                self.devices.extend(found.devices.into_iter().map(|device| (Some(index), device)));
                self.findings.extend(found.findings);
                continue;
            }
            self.findings.extend(backend.health(&mut devices));
            for (slot, device) in self.devices.iter_mut().filter(mine).zip(devices) {
                slot.1 = device;
            }
        }
        before != (self.devices.clone(), self.findings.clone())
    }

    /// The devices in the order of their indices.
    pub fn devices(&self) -> Vec<Device> {
        let device = |(_, found): &(Option<usize>, Found)| Device {
            class: found.class.clone(),
            uuid: found.uuid.clone(),
            fault: found.fault.clone(),
            // Nobody has measured it.
            speed_milli: 1000,
            island: found.island,
        };
        self.devices.iter().map(device).collect()
    }

    /// What people should know: drivers that are missing, libraries that do not answer.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// What the node offers, as a report to the scheduler has it.
    ///
    /// `labels` go over those of a file of fake devices.
    pub fn inventory(
        &self,
        host: &Host,
        address: &str,
        ports: Ports,
        labels: &BTreeMap<Name, Name>,
    ) -> Inventory {
        let mut all_labels = self.labels.clone();
        all_labels.extend(labels.iter().map(|(key, value)| (key.clone(), value.clone())));
        Inventory {
            devices: self.devices(),
            cpus_milli: host.cpus_milli,
            memory_bytes: host.memory_bytes,
            address: address.into(),
            ports,
            labels: all_labels,
        }
    }

    /// Makes a worker see exactly the devices of these indices; an index that does not exist shows nothing.
    pub fn visibility(&self, indices: &[u16]) -> Visibility {
        let mut merged = Visibility::default();
        for (number, backend) in self.backends.iter().enumerate() {
            let held = indices.iter().filter_map(|index| self.devices.get(usize::from(*index)));
            let held: Vec<&Found> =
                held.filter(|entry| entry.0 == Some(number)).map(|entry| &entry.1).collect();
            let shown = backend.visibility(&held);
            for (key, value) in shown.env {
                // Several vendors read the same variable: the one whose devices are held has it.
                match merged.env.iter_mut().find(|(known, _)| *known == key) {
                    Some(known) if !held.is_empty() => known.1 = value,
                    Some(_) => (),
                    None => merged.env.push((key, value)),
                }
            }
            merged.device_nodes.extend(shown.device_nodes);
            merged.cpu_affinity.extend(shown.cpu_affinity);
        }
        merged
    }

    fn discover(&mut self) {
        (self.devices, self.findings) = (Vec::new(), Vec::new());
        for (index, backend) in self.backends.iter_mut().enumerate() {
            let found = backend.discover();
            self.devices.extend(found.devices.into_iter().map(|device| (Some(index), device)));
            self.findings.extend(found.findings);
        }
        let order = |(_, found): &(Option<usize>, Found)| {
            (found.class.vendor, found.place.clone(), found.logical, found.uuid.clone())
        };
        self.devices.sort_by_key(order);
    }

    /// Compares what was found with what is plugged in.
    fn explain_pci(&mut self) {
        let plugged = pci::scan(&self.sysfs);
        // A machine without any NVIDIA card needs no word about its missing driver.
        let is_plugged = |vendor: Vendor| plugged.contains_key(&vendor);
        self.findings.retain(|finding| is_plugged(finding.vendor));
        for (vendor, places) in &plugged {
            let has_backend = self.backends.iter().any(|backend| backend.vendor() == *vendor);
            if !has_backend {
                let what = format!("{} on PCI, but there is no backend for them", devices_text(places.len()));
                self.findings.push(Finding { vendor: *vendor, what });
            } else if !self.devices.iter().any(|(_, found)| found.class.vendor == *vendor) {
                for finding in self.findings.iter_mut().filter(|finding| finding.vendor == *vendor) {
                    finding.what = format!("{} on PCI, but {}", devices_text(places.len()), finding.what);
                }
            }
        }
    }

    /// Puts the devices in the order in which they were known before, the new ones behind.
    fn keep_order(&mut self, file: &Path, boot_id: &str, choice: &str) {
        let known: Option<Known> = json::read(file).ok();
        let known = known.filter(|known| known.boot_id == boot_id && known.choice == choice);
        let mut found = std::mem::take(&mut self.devices);
        for device in known.map(|known| known.devices).unwrap_or_default() {
            let Ok(vendor) = device.vendor.parse() else { continue };
            let entry = match found.iter().position(|(_, found)| *found.uuid == *device.uuid) {
                Some(index) => found.remove(index),
                None => {
                    (self.backends.iter().position(|backend| backend.vendor() == vendor), device.lost(vendor))
                }
            };
            self.devices.push(entry);
        }
        self.devices.append(&mut found);
        let devices = self.devices.iter().map(|(_, found)| KnownDevice::from(found)).collect();
        let known = Known { boot_id: boot_id.to_string(), choice: choice.to_string(), devices };
        if let Err(error) = json::replace(file, &known) {
            let what = format!("the order of devices cannot be kept in {}: {error}", file.display());
            self.findings
                .extend(self.devices.first().map(|(_, found)| Finding { vendor: found.class.vendor, what }));
        }
    }
}

/// The file that keeps the order of devices.
#[derive(Serialize, Deserialize)]
struct Known {
    boot_id: String,
    choice: String,
    devices: Vec<KnownDevice>,
}

#[derive(Serialize, Deserialize)]
struct KnownDevice {
    vendor: String,
    model: String,
    memory_bytes: u64,
    uuid: String,
    place: String,
}

impl KnownDevice {
    fn lost(&self, vendor: Vendor) -> Found {
        let class =
            DeviceClass { vendor, model: self.model.as_str().into(), memory_bytes: self.memory_bytes };
        Found {
            class: Arc::new(class),
            uuid: self.uuid.as_str().into(),
            fault: Some("not found any more".into()),
            island: None,
            place: self.place.clone(),
            logical: u32::MAX,
            nodes: Vec::new(),
        }
    }
}

impl From<&Found> for KnownDevice {
    fn from(found: &Found) -> KnownDevice {
        KnownDevice {
            vendor: found.class.vendor.to_string(),
            model: found.class.model.to_string(),
            memory_bytes: found.class.memory_bytes,
            uuid: found.uuid.to_string(),
            place: found.place.clone(),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;
    fn from_str(text: &str) -> Result<DeviceChoice, DeviceError> {
        match text {
            "auto" => return Ok(DeviceChoice::Auto),
            "none" => return Ok(DeviceChoice::These(Vec::new())),
            _ => (),
        }
        let part = |part: &str| {
            let (name, rest) = part.split_once(':').map_or((part, None), |(name, rest)| (name, Some(rest)));
            let error = |why: &str| DeviceError::Choice { text: part.to_string(), why: why.to_string() };
            match (name, rest) {
                ("cpu", None) => Ok(BackendChoice::Cpu(Vec::new())),
                ("cpu", Some(cores)) => parse_cores(cores).map(BackendChoice::Cpu).map_err(|why| error(&why)),
                ("nvidia", None) => Ok(BackendChoice::Nvidia(None)),
                ("nvidia", Some(library)) if !library.is_empty() => {
                    Ok(BackendChoice::Nvidia(Some(library.into())))
                }
                ("fake", Some(file)) if !file.is_empty() => Ok(BackendChoice::Fake(file.into())),
                ("auto" | "none", None) => Err(error("stands alone, or not at all")),
                ("fake", _) => Err(error("needs a file: fake:FILE")),
                _ => Err(error("expected auto, none, cpu, cpu:0-3, nvidia or fake:FILE")),
            }
        };
        text.split(',').map(|text| part(text.trim())).collect::<Result<_, _>>().map(DeviceChoice::These)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.vendor, self.what)
    }
}

/// Name of the variable that tells a vendor's runtime which devices to use.
pub fn visible_devices_variable(vendor: Vendor) -> Option<&'static str> {
    Some(match vendor {
        Vendor::Cpu => return None,
        Vendor::Nvidia | Vendor::Iluvatar | Vendor::MetaX | Vendor::THead => "CUDA_VISIBLE_DEVICES",
        Vendor::Amd | Vendor::Hygon => "HIP_VISIBLE_DEVICES",
        Vendor::Ascend => "ASCEND_RT_VISIBLE_DEVICES",
        Vendor::Cambricon => "MLU_VISIBLE_DEVICES",
        Vendor::MooreThreads => "MUSA_VISIBLE_DEVICES",
        Vendor::Enflame => "TOPS_VISIBLE_DEVICES",
        Vendor::Kunlunxin => "XPU_VISIBLE_DEVICES",
        Vendor::Biren => "SUPA_VISIBLE_DEVICES",
        Vendor::Intel => "ZE_AFFINITY_MASK",
        Vendor::Gaudi => "HABANA_VISIBLE_MODULES",
    })
}

/// Lower case, words joined by hyphens, everything else dropped.
fn slug(text: &str) -> String {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric() && c != '.').filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

fn devices_text(count: usize) -> String {
    if count == 1 { "1 device".to_string() } else { format!("{count} devices") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_on_the_bus_without_a_driver_are_named() {
        let sysfs = tempfile::tempdir().unwrap();
        for (place, vendor) in
            [("0000:01:00.0", "0x10de"), ("0000:02:00.0", "0x10de"), ("0000:03:00.0", "0xcabc")]
        {
            let dir = sysfs.path().join("bus/pci/devices").join(place);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("vendor"), vendor).unwrap();
            std::fs::write(dir.join("class"), "0x120000").unwrap();
        }
        let mut all = Backends {
            backends: vec![Box::new(Nvidia::new(Some("/no/such/library".into())))],
            devices: Vec::new(),
            findings: Vec::new(),
            labels: BTreeMap::new(),
            sysfs: sysfs.path().to_path_buf(),
        };
        all.discover();
        all.explain_pci();
        let findings: Vec<String> = all.findings.iter().map(|finding| finding.to_string()).collect();
        assert!(
            findings[0].starts_with("nvidia: 2 devices on PCI, but nvml cannot be used: "),
            "{findings:?}"
        );
        assert_eq!(findings[1..], ["cambricon: 1 device on PCI, but there is no backend for them"]);
        all.discover();
        all.sysfs = "/no/such/sysfs".into();
        all.explain_pci();
        assert_eq!(all.findings, [], "a node without any card needs no driver");
    }
}
