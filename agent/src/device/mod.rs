//! What devices the node has, whether they are well, and how to show a worker just the ones it holds.
//!
//! One backend for each vendor behind [`Backend`]; [`Backends`] puts them together. A card that cannot be read is
//! listed with its fault and hides no other; a driver that is missing is a [`Finding`], not an empty node.

pub(crate) mod api;
mod ascend_codes;
mod backends;
mod by_library;
mod by_sysfs;
pub mod caps;
mod choice;
mod cndev_incidents;
mod cpu;
pub mod datasheet;
mod fake;
mod helper;
mod hwmon;
mod intel;
pub(crate) mod kfd;
pub(crate) mod library;
mod meaning;
pub mod measured;
pub mod mps;
mod near;
pub(crate) mod open;
pub mod pci;
mod ras;
mod reader;
mod recurring;
mod reset;
pub(crate) mod roots;
mod slowed;
pub(crate) mod tool;
pub mod topology;
mod unread;
pub(crate) mod vendor;
pub(crate) mod visible;
pub mod watch;
mod xid;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use aquifer_core::{DeviceClass, Fault, Health, Isolation, Name, Vendor};

use measured::Figures;

pub use backends::Backends;
pub use by_library::ByLibrary;
pub use by_sysfs::BySysfs;
pub use choice::{BackendChoice, DeviceChoice, DeviceError};
pub use cpu::{Cpu, parse_cores, slug_of_cpu};
pub use fake::{Fake, parse_fake};
pub use library::HelperCommand;
pub use reset::Resets;
pub use roots::Roots;
pub use visible::{driver_files, may_be_absent, visible_devices_variable};

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

    /// Looks whether devices that were found earlier are well, updates what is known of them, and appends new ones.
    ///
    /// The default discovers again: a device that is missing then is at fault.
    fn health(&mut self, devices: &mut Vec<Found>) -> Vec<Finding> {
        let now = self.discover();
        merge(devices, now.devices, now.findings.first().map(|finding| &finding.what[..]));
        now.findings
    }

    /// Version of what drives the devices, if the worker has kernels for them; `None`: they are not measured.
    fn measured_under(&self) -> Option<String> {
        None
    }

    /// Names of the domains of direct links that devices share with those of other nodes.
    fn super_pods(&self) -> BTreeSet<String> {
        BTreeSet::new()
    }

    /// Whether what it says of the health of a device counts as it is, without any time of trial.
    fn is_trusted(&self) -> bool {
        false
    }

    /// A device was reset: what was told of it before is of the past.
    fn was_reset(&mut self, _: &Found) {}

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
    /// Why it takes no new work, as what is read of it now says.
    pub fault: Option<Fault>,
    /// Those of the vendor with the same number are linked directly; `None`: with none, or nobody has looked.
    pub island: Option<u16>,
    /// How well parts of it are kept from each other, as far as that is its own doing; see [`Backends::enforce`].
    pub isolation: Isolation,
    /// How well parts of it are kept apart that an agent can make on demand; `None`: it can make none.
    pub parts: Option<Isolation>,
    /// How fast it is, in thousandths of the reference device, where its backend knows; see [`Found::speed`].
    pub speed_milli: Option<u32>,
    /// How fast it reads its memory, in GB/s, where its backend knows; see [`Found::memory_gbs`].
    pub memory_gbs: Option<u32>,
    /// Where it is in the machine, such that the order of the text is that of the bus: `0000:1b:00.0`.
    pub place: String,
    /// Number by which the vendor's runtime selects it; not always that of its device node.
    pub logical: u32,
    /// Number of its device node.
    pub physical: u32,
    /// Device nodes that a worker must be able to open.
    pub nodes: Vec<PathBuf>,
    /// Whether a program computes on it now, whoever started it; false also where nobody can tell.
    pub is_used: bool,
    /// How many such devices, equal parts, make up the card that its class names; 1: it is whole. Parts whose class names them do not
    /// count here.
    pub one_of: u32,
}

impl Found {
    /// How fast it reads its memory, in GB/s; 0: nobody knows.
    ///
    /// * `measured`: what its class was measured to do, if it was.
    pub fn memory_gbs(&self, measured: Option<&Figures>) -> u32 {
        let measured =
            || measured.and_then(|figures| figures.memory_gbs).filter(|gbs| gbs.is_finite() && 1.0 <= *gbs);
        let known = self.memory_gbs.or_else(|| measured().map(|gbs| gbs as u32));
        let listed = || datasheet::memory_gbs(&self.class).map(|gbs| (gbs / self.one_of).max(1));
        known.or_else(listed).unwrap_or(0)
    }

    /// How fast it is, in thousandths of the reference device, at least 1, and who says so. An accelerator of which
    /// nobody says anything counts as the reference device does; a core counts a thousandth of it.
    ///
    /// * `measured`: what its class was measured to do, if it was.
    pub fn speed(&self, measured: Option<&Figures>) -> (u32, String) {
        if let Some(milli) = self.speed_milli {
            return (milli, "the file of fake devices".into());
        }
        if let Some(tflops) = measured.and_then(Figures::tflops) {
            return (datasheet::milli(tflops), format!("measured: {tflops:.3} TFLOP/s in bf16"));
        }
        match datasheet::speed_milli(&self.class) {
            Some((milli, source)) if self.one_of == 1 => (milli, format!("by datasheet ({source})")),
            Some((milli, source)) => {
                let part = format!("by datasheet ({source}), one of {} parts", self.one_of);
                ((milli / self.one_of).max(1), part)
            }
            None if self.class.vendor == Vendor::Cpu => (1, "not measured, as a slow core".into()),
            None => (1000, "not measured, as the reference device".into()),
        }
    }
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
    /// Nodes under `/dev` to let through, where workers run in a container; or that are left of a directory that is hidden.
    pub device_nodes: Vec<PathBuf>,
    /// Nodes of other devices of this machine that it is not to open, and directories of which it is to have `device_nodes`
    /// alone; where it runs in no container, and others are hidden.
    pub hidden_nodes: Vec<PathBuf>,
    /// Cores that it holds; empty: none.
    pub cpu_affinity: Vec<usize>,
    /// Cores near its other devices, shared with whoever runs there; empty: none are nearer than others.
    pub near: Vec<usize>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.vendor, self.what)
    }
}

/// Lower case, words joined by hyphens, everything else dropped.
fn slug(text: &str) -> String {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric() && c != '.').filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

/// Model of a card from its name, without the maker's: `NVIDIA H100 80GB HBM3` is `h100-80gb-hbm3`.
pub fn model_of(vendor: Vendor, name: &str) -> String {
    let slug = slug(name);
    let makers: &[&str] = match vendor {
        Vendor::Nvidia => &["nvidia"],
        Vendor::Amd => &["amd", "advanced-micro-devices-inc.", "instinct"],
        Vendor::Ascend => &["ascend", "huawei"],
        Vendor::MooreThreads => &["moore-threads", "mthreads"],
        Vendor::Iluvatar => &["iluvatar"],
        Vendor::MetaX => &["metax"],
        Vendor::Intel => &["intel-r", "intel"],
        _ => &[],
    };
    let strip =
        |slug: &str, maker: &&str| slug.strip_prefix(&format!("{maker}-")).unwrap_or(slug).to_string();
    makers.iter().fold(slug, |slug, maker| strip(&slug, maker))
}

/// What keeps new work from a device for a while.
fn suspect(why: String) -> Fault {
    Fault { health: Health::Suspect, ..Fault::faulty(why) }
}

/// `1 device`, `8 devices`.
fn count_text(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Puts what is found now over what was known. A device that was at its place without being read gets its name now, and one of
/// which only its place is told now keeps it.
fn merge(known: &mut Vec<Found>, now: Vec<Found>, why_missing: Option<&str>) {
    let is_unread = |device: &Found| device.class.memory_bytes == 0 && device.fault.is_some();
    let is_nameless = |device: &Found| *device.uuid == *format!("{}-{}", device.class.vendor, device.place);
    let mut seen = vec![false; known.len()];
    for found in now {
        let same = known.iter().position(|device| device.uuid == found.uuid);
        let at_place = || {
            let has_no_name = |device: &Found| is_unread(device) || is_nameless(device);
            let is_it = |device: &Found| {
                device.place == found.place
                    && (has_no_name(device) || (is_nameless(&found) && !is_unread(&found)))
            };
            known.iter().position(is_it)
        };
        match same.or_else(at_place) {
            Some(at) => {
                let uuid = if is_nameless(&found) { known[at].uuid.clone() } else { found.uuid.clone() };
                (known[at], seen[at]) = (Found { uuid, ..found }, true);
            }
            // A card that was read before is not another one for being unreadable now. Nor is it known to be bad: what
            // runs on it does not need who could not read it, so it runs on.
            None if is_unread(&found)
                && known.iter().any(|device| device.place.starts_with(&found.place)) =>
            {
                let there = known.iter_mut().zip(&mut seen);
                for (device, seen) in there.filter(|(device, _)| device.place.starts_with(&found.place)) {
                    let fault = |fault: &Fault| Fault { health: Health::Suspect, ..fault.clone() };
                    (device.fault, *seen) = (found.fault.as_ref().map(fault), true);
                }
            }
            None => {
                known.push(found);
                seen.push(true);
            }
        }
    }
    for (device, _) in known.iter_mut().zip(seen).filter(|(_, seen)| !seen) {
        device.fault = Some(Fault::faulty(why_missing.unwrap_or("not found any more")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_from_the_general_to_the_special() {
        let nvidia = |name| model_of(Vendor::Nvidia, name);
        assert_eq!(nvidia("NVIDIA H100 80GB HBM3"), "h100-80gb-hbm3");
        assert_eq!(nvidia("NVIDIA A100-SXM4-80GB MIG 1g.10gb"), "a100-sxm4-80gb-mig-1g.10gb");
        assert_eq!(nvidia("Tesla V100-PCIE-16GB"), "tesla-v100-pcie-16gb");
        assert_eq!(nvidia("NVIDIA GeForce RTX 4090"), "geforce-rtx-4090");
        assert_eq!(model_of(Vendor::Ascend, "Ascend 910B3"), "910b3");
        assert_eq!(model_of(Vendor::Ascend, "910B3"), "910b3");
        assert_eq!(model_of(Vendor::Amd, "AMD Instinct MI300X"), "mi300x");
        assert_eq!(model_of(Vendor::Iluvatar, "Iluvatar MR-V50"), "mr-v50");
    }
}
