//! Accelerators that are plugged in, whether or not a driver knows them: from sysfs, without any library.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use aquifer_core::Vendor;

use super::roots::read;

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

/// Makers of whose accelerators nothing more is known here. Source: pciutils/pciids.
const STRANGERS: [(u32, &str); 9] = [
    (0x1ec6, "Vastai"),
    (0x1ed2, "FuriosaAI"),
    (0x1eff, "Rebellions"),
    (0x1e52, "Tenstorrent"),
    (0x1d0f, "Amazon"),
    (0x1ae0, "Google"),
    (0x1faa, "Hexaflake"),
    (0x1e9f, "Lynxi"),
    (0x1f1c, "Sophgo"),
];

/// Version of the driver of a card, as its module tells it; else that of the kernel, which the module then came with.
///
/// * `pci`: the kernel's directory of the card.
pub fn driver(pci: &Path) -> String {
    let told = ["version", "srcversion"].map(|file| read(pci.join("driver/module").join(file)));
    let kernel = || rustix::system::uname().release().to_string_lossy().into_owned();
    told.into_iter().flatten().find(|version| !version.is_empty()).unwrap_or_else(kernel)
}

/// What to say of accelerators that nothing here can use, in a sentence for each maker: a machine that has none but those does
/// not look empty.
pub fn strangers(sysfs: &Path) -> Vec<String> {
    let mut found: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for Card { vendor, class, place } in cards(sysfs) {
        let maker = STRANGERS.iter().find(|(id, _)| *id == vendor && class >> 16 == 0x12);
        if let Some((_, maker)) = maker {
            found.entry(maker).or_default().push(place);
        }
    }
    let sentence = |(maker, mut places): (&str, Vec<String>)| {
        places.sort();
        let devices = if places.len() == 1 { "1 device" } else { &format!("{} devices", places.len()) };
        format!("{devices} of {maker} on PCI ({}), which nothing here can use", places.join(", "))
    };
    found.into_iter().map(sentence).collect()
}

/// Bus addresses of each vendor's accelerators, ascending. `sysfs` is `/sys`, or a test's copy.
pub fn scan(sysfs: &Path) -> BTreeMap<Vendor, Vec<String>> {
    let mut found: BTreeMap<Vendor, Vec<String>> = BTreeMap::new();
    for Card { vendor, class, place } in cards(sysfs) {
        if let Some(vendor) = accelerator(vendor, class, &place) {
            found.entry(vendor).or_default().push(place);
        }
    }
    found.values_mut().for_each(|places| places.sort());
    found
}

/// What is plugged in.
struct Card {
    vendor: u32,
    class: u32,
    place: String,
}

/// All of it, but for what is handed to a virtual machine, which is not this machine's.
fn cards(sysfs: &Path) -> impl Iterator<Item = Card> {
    let entries = fs::read_dir(sysfs.join("bus/pci/devices")).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let number = |file: &str| {
            let text = fs::read_to_string(entry.path().join(file)).ok()?;
            u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
        };
        let (vendor, class) = (number("vendor")?, number("class")?);
        let driver = fs::read_link(entry.path().join("driver")).unwrap_or_default();
        let is_lent = driver.file_name().is_some_and(|name| name == "vfio-pci");
        let place = entry.file_name().to_string_lossy().into_owned();
        (!is_lent).then_some(Card { vendor, class, place })
    })
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
            ("0000:42:00.0", "0x1e52", "0x120000"),
            ("0000:41:00.0", "0x1e52", "0x120000"),
            ("0000:43:00.0", "0x1d0f", "0x020000"),
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
        let others =
            "2 devices of Tenstorrent on PCI (0000:41:00.0, 0000:42:00.0), which nothing here can use";
        assert_eq!(strangers(sysfs.path()), [others], "and no network card of Amazon's");
    }
}
