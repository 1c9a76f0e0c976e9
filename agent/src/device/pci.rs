//! Accelerators that are plugged in, whether or not a driver knows them: from sysfs, without any library.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use aquifer_core::Vendor;

/// PCI vendor ids. Source: pciutils/pciids and the vendors' own discovery code; newer cards of Kunlunxin have another than those before
/// (`xpu-smi -q` of a P800: `Device Id: 0x36862057`).
const VENDORS: [(u32, Vendor); 15] = [
    (0x10de, Vendor::Nvidia),
    (0x1002, Vendor::Amd),
    (0x19e5, Vendor::Ascend),
    (0xcabc, Vendor::Cambricon),
    (0x1d94, Vendor::Hygon),
    (0x1ed5, Vendor::MooreThreads),
    (0x1e3e, Vendor::Iluvatar),
    (0x1e36, Vendor::Enflame),
    (0x9999, Vendor::MetaX),
    (0x1d22, Vendor::Kunlunxin),
    (0x2057, Vendor::Kunlunxin),
    (0x1ee0, Vendor::Biren),
    (0x8086, Vendor::Intel),
    (0x1da3, Vendor::Gaudi),
    (0x1ded, Vendor::THead),
];

/// Bus addresses of each vendor's accelerators, ascending. `sysfs` is `/sys`, or a test's copy.
pub fn scan(sysfs: &Path) -> BTreeMap<Vendor, Vec<String>> {
    let mut found: BTreeMap<Vendor, Vec<String>> = BTreeMap::new();
    for entry in fs::read_dir(sysfs.join("bus/pci/devices")).into_iter().flatten().flatten() {
        let number = |file: &str| {
            let text = fs::read_to_string(entry.path().join(file)).ok()?;
            u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
        };
        let (Some(vendor), Some(class)) = (number("vendor"), number("class")) else { continue };
        let place = entry.file_name().to_string_lossy().into_owned();
        // What is handed to a virtual machine is not this machine's.
        let driver = fs::read_link(entry.path().join("driver")).unwrap_or_default();
        let is_lent = driver.file_name().is_some_and(|name| name == "vfio-pci");
        if let Some(vendor) = accelerator(vendor, class, &place).filter(|_| !is_lent) {
            found.entry(vendor).or_default().push(place);
        }
    }
    found.values_mut().for_each(|places| places.sort());
    found
}

/// Whose accelerator it is, if it is one: a processing accelerator, or a display controller, but none that only
/// drives a screen. Some makers' are of other classes: `lspci` calls a K100-AI of Hygon a co-processor.
fn accelerator(vendor: u32, class: u32, place: &str) -> Option<Vendor> {
    let (_, vendor) = *VENDORS.iter().find(|(id, _)| *id == vendor)?;
    match (class >> 16, class >> 8) {
        (0x12, _) => Some(vendor),
        // Intel's own cards stand behind a bridge, the graphics of its processors do not.
        (0x03, 0x0300) if vendor == Vendor::Intel => (!place.contains(":00:")).then_some(vendor),
        // The graphics of an AMD processor (its cards are found by the driver), and the screen of a Huawei server's management controller.
        (0x03, 0x0300) if matches!(vendor, Vendor::Amd | Vendor::Ascend) => None,
        (0x03, _) => Some(vendor),
        (_, 0x0b40) if vendor == Vendor::Hygon => Some(vendor),
        (_, 0x0780) if vendor == Vendor::Kunlunxin => Some(vendor),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_accelerators_are_counted() {
        let sysfs = tempfile::tempdir().unwrap();
        let devices = [
            ("0000:1b:00.0", "0x10de", "0x030200"),
            ("0000:1a:00.0", "0x10de", "0x030200"),
            ("0000:1a:00.1", "0x10de", "0x040300"),
            ("0000:c1:00.0", "0x19e5", "0x120000"),
            ("0000:02:00.0", "0x19e5", "0x030000"),
            ("0000:00:02.0", "0x8086", "0x030000"),
            ("0000:00:03.0", "0x8086", "0x038000"),
            ("0000:0b:00.0", "0x8086", "0x030000"),
            ("0000:00:1f.0", "0x8086", "0x060100"),
            ("0000:00:05.0", "0x1af4", "0x120000"),
            ("0000:00:06.0", "rubbish", "0x120000"),
            ("0000:37:00.0", "0x1d94", "0x0b4000"),
            ("0000:00:08.0", "0x1d94", "0x108000"),
            ("0000:21:00.0", "0x2057", "0x120000"),
            ("0000:22:00.0", "0x2057", "0x078000"),
            ("0000:23:00.0", "0x10de", "0x0b4000"),
        ];
        for (place, vendor, class) in devices {
            let dir = sysfs.path().join("bus/pci/devices").join(place);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("vendor"), format!("{vendor}\n")).unwrap();
            fs::write(dir.join("class"), format!("{class}\n")).unwrap();
        }
        let expected = [
            (Vendor::Nvidia, vec!["0000:1a:00.0".to_string(), "0000:1b:00.0".to_string()]),
            (Vendor::Ascend, vec!["0000:c1:00.0".to_string()]),
            (Vendor::Hygon, vec!["0000:37:00.0".to_string()]),
            (Vendor::Kunlunxin, vec!["0000:21:00.0".to_string(), "0000:22:00.0".to_string()]),
            (Vendor::Intel, vec!["0000:00:03.0".to_string(), "0000:0b:00.0".to_string()]),
        ];
        assert_eq!(scan(sysfs.path()), BTreeMap::from(expected));
        assert_eq!(scan(&sysfs.path().join("missing")), BTreeMap::new());
    }
}
