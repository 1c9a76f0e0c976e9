//! Intel's graphics cards, from the files of their drivers, i915 and xe.

use std::fs;
use std::sync::Arc;

use aquifer_core::{DeviceClass, Fault, Isolation, Vendor};

use super::hwmon::too_hot;
use super::roots::{Roots, read_number};
use super::slowed::by_reasons;
use super::{Discovery, Found, suspect, visible};

/// Looks at all cards.
///
/// Their number is the one that Level Zero gives them in the order of the bus, where it counts the graphics of the
/// processor, too.
pub fn look(roots: &Roots) -> Discovery {
    let mut places: Vec<String> = fs::read_dir(roots.sysfs.join("bus/pci/devices"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|place| read_number(roots.pci(place).join("vendor")) == Some(0x8086))
        .filter(|place| read_number(roots.pci(place).join("class")).is_some_and(|class| class >> 16 == 3))
        .collect();
    places.sort();
    let cards = roots.plugged(Vendor::Intel);
    let mut found = Discovery::default();
    let mut logical = 0;
    for place in places {
        let driver = fs::read_link(roots.pci(&place).join("driver")).unwrap_or_default();
        let driver = driver.file_name().map(|name| name.to_string_lossy().into_owned());
        let has_driver = matches!(driver.as_deref(), Some("i915" | "xe"));
        if cards.contains(&place) {
            let fault = match has_driver {
                true => {
                    let pci = roots.pci(&place);
                    too_hot(&pci).or_else(|| by_reasons(&pci).map(Into::into)).map(suspect)
                }
                false => Some(Fault::faulty("it has neither of the drivers i915 and xe")),
            };
            found.devices.push(Found { fault, ..read(roots, &place, logical) });
        }
        logical += u32::from(has_driver);
    }
    found
}

fn read(roots: &Roots, place: &str, logical: u32) -> Found {
    let pci = roots.pci(place);
    let tiles: u64 =
        (0..8).filter_map(|tile| read_number(pci.join(format!("tile{tile}/vram0/total_bytes")))).sum();
    // What a card shows to the processor is at most as large as its memory; small windows say nothing.
    let window =
        || fs::metadata(pci.join("resource2")).ok().map(|file| file.len()).filter(|size| 256 << 20 < *size);
    let memory_bytes = match tiles {
        0 => read_number(pci.join("mem_info_vram_total")).or_else(window).unwrap_or(0),
        bytes => bytes,
    };
    let number = read_number(pci.join("device")).unwrap_or(0);
    let model = model_of_id(number).map_or_else(|| format!("intel-{number:04x}"), str::to_string);
    Found {
        class: Arc::new(DeviceClass { vendor: Vendor::Intel, model: model.as_str().into(), memory_bytes }),
        uuid: format!("intel-{place}").into(),
        fault: None,
        island: None,
        isolation: Isolation::Advisory,
        parts: None,
        speed_milli: None,
        memory_gbs: None,
        is_used: false,
        one_of: 1,
        nodes: visible::nodes(Vendor::Intel, logical, place, &roots.sysfs),
        place: place.to_string(),
        logical,
        physical: logical,
    }
}

/// Source: pciutils/pciids.
fn model_of_id(device: u64) -> Option<&'static str> {
    Some(match device {
        0x0bd5 => "max-1550",
        0x0bd9 | 0x0bda => "max-1100",
        0x56c0 => "flex-170",
        0x56c1 => "flex-140",
        0x56a0 => "arc-a770",
        0x56a1 => "arc-a750",
        0xe20b => "arc-b580",
        0xe20c => "arc-b570",
        _ => return None,
    })
}
