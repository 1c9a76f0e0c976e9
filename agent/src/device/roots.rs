//! Where devices are looked for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aquifer_core::Vendor;

use super::pci;

/// Where devices are looked for, and how patiently. Tests have their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// What the kernel knows: `/sys`.
    pub sysfs: PathBuf,
    /// Directories in which vendors' libraries are looked for before the system's and the vendors' own.
    pub libraries: Vec<PathBuf>,
    /// How long a library may take to answer.
    pub patience: Duration,
    /// How long to wait after a library could not be initialised; twice as long each time, up to five minutes.
    pub pause: Duration,
}

impl Default for Roots {
    fn default() -> Roots {
        Roots {
            sysfs: "/sys".into(),
            libraries: Vec::new(),
            patience: Duration::from_secs(5),
            pause: Duration::from_secs(5),
        }
    }
}

/// Longest pause between two attempts to initialise a library.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(300);

impl Roots {
    /// Bus addresses of a vendor's accelerators, ascending.
    pub fn plugged(&self, vendor: Vendor) -> Vec<String> {
        pci::scan(&self.sysfs).remove(&vendor).unwrap_or_default()
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
