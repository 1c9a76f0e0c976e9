//! Where devices are looked for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aquifer_core::Vendor;

use super::caps::Caps;
use super::library::HelperCommand;
use super::pci;

/// Where devices are looked for, and how patiently. Tests have their own.
#[derive(Clone, Debug)]
pub struct Roots {
    /// What the kernel knows: `/sys`.
    pub sysfs: PathBuf,
    /// Directories in which vendors' libraries are looked for before the system's and the vendors' own.
    pub libraries: Vec<PathBuf>,
    /// Directories in which vendors' command-line tools are looked for before the vendors' own: those of `PATH`.
    pub tools: Vec<PathBuf>,
    /// What is started to ask a library.
    pub helper: HelperCommand,
    /// How long a look at a vendor's cards may take.
    pub patience: Duration,
    /// How long to wait after a library could not be initialised; twice as long each time, up to five minutes.
    pub pause: Duration,
    /// Vendors whose cards that can be divided are offered whole, because the agent makes their parts.
    pub parts_on_demand: BTreeSet<Vendor>,
    /// Held while a card is parted anew: whoever looks meanwhile would miss it.
    pub parting: Arc<Mutex<()>>,
    /// What is listed of `/dev/dri`.
    pub dri: PathBuf,
    /// The nodes that part MIG instances from each other.
    pub caps: Caps,
    /// What was plugged in a moment ago: a machine has hundreds of places to look at, and every vendor asks.
    pub plugged: Plugged,
}

/// Bus addresses of each vendor's accelerators, kept for a second.
#[derive(Clone, Debug, Default)]
pub struct Plugged(Arc<Mutex<Option<Scan>>>);

#[derive(Debug)]
struct Scan {
    sysfs: PathBuf,
    until: Instant,
    found: BTreeMap<Vendor, Vec<String>>,
}

impl Default for Roots {
    fn default() -> Roots {
        Roots {
            sysfs: "/sys".into(),
            libraries: Vec::new(),
            tools: std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect(),
            helper: HelperCommand::default(),
            patience: Duration::from_secs(5),
            pause: Duration::from_secs(5),
            parts_on_demand: BTreeSet::new(),
            parting: Arc::default(),
            dri: "/dev/dri".into(),
            caps: Caps::default(),
            plugged: Plugged::default(),
        }
    }
}

/// Longest pause between two attempts to initialise a library.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(300);

impl Roots {
    /// Bus addresses of a vendor's accelerators, ascending.
    pub fn plugged(&self, vendor: Vendor) -> Vec<String> {
        self.all_plugged().remove(&vendor).unwrap_or_default()
    }

    /// Bus addresses of each vendor's accelerators, ascending.
    pub fn all_plugged(&self) -> BTreeMap<Vendor, Vec<String>> {
        let mut kept = self.plugged.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match &*kept {
            Some(scan) if scan.sysfs == self.sysfs && Instant::now() < scan.until => scan.found.clone(),
            _ => {
                let found = pci::scan(&self.sysfs);
                let until = Instant::now() + Duration::from_secs(1);
                *kept = Some(Scan { sysfs: self.sysfs.clone(), until, found: found.clone() });
                found
            }
        }
    }

    /// The kernel's directory for what is at a bus address.
    pub fn pci(&self, place: &str) -> PathBuf {
        self.sysfs.join("bus/pci/devices").join(place)
    }
}

/// A small file's text, without the space around it.
pub fn read(path: impl AsRef<Path>) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_string())
}

/// A number of a file: decimal, or hexadecimal with `0x`.
pub fn read_number(path: impl AsRef<Path>) -> Option<u64> {
    let text = read(path)?;
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
