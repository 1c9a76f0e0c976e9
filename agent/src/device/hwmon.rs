//! How hot a card is, by the sensors of its driver. Source: `Documentation/hwmon/sysfs-interface.rst` of Linux.

use std::fs;
use std::path::Path;

use super::roots::{read, read_number};

/// Sensors of one driver that are looked at.
const SENSORS: std::ops::RangeInclusive<u32> = 1..=16;

/// What of a card is as hot as it may become; `None`: nothing, or it has no sensor with a limit.
///
/// * `pci`: the kernel's directory of the card.
pub fn too_hot(pci: &Path) -> Option<String> {
    let monitors = fs::read_dir(pci.join("hwmon")).into_iter().flatten().flatten();
    monitors.map(|entry| entry.path()).find_map(|dir| {
        SENSORS.into_iter().find_map(|number| {
            let of = |what: &str| dir.join(format!("temp{number}_{what}"));
            // Thousandths of a degree.
            let limit = read_number(of("crit")).filter(|limit| 0 < *limit)?;
            let label = read(of("label")).filter(|label| !label.is_empty());
            let hot = limit <= read_number(of("input"))?;
            hot.then(|| {
                let part = label.map(|label| format!(" ({label})")).unwrap_or_default();
                format!("it is as hot as it may become{part}: {} °C", limit / 1000)
            })
        })
    })
}
