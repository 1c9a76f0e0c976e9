//! AMD's cards, from the topology of the kernel's compute driver. Source: `kfd_topology.c` and `kfd_crat.h` of Linux.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use aquifer_core::{DeviceClass, Health, Isolation, Vendor};

use super::api::place_text;
use super::hwmon::too_hot;
use super::ras::Ras;
use super::reader::{model_of, without_library};
use super::roots::{Roots, read, read_number};
use super::{Discovery, Finding, Found, suspect, topology, visible};

/// `CRAT_IOLINK_TYPE_XGMI`; PCI Express is 2.
const XGMI: u64 = 11;
/// `HSA_MEM_HEAP_TYPE_FB_PUBLIC` and `…_PRIVATE`: memory of the card.
const CARD_HEAPS: [u64; 2] = [1, 2];

fn nodes_dir(roots: &Roots) -> PathBuf {
    roots.sysfs.join("class/kfd/kfd/topology/nodes")
}

/// Whether the compute driver runs.
pub fn is_there(roots: &Roots) -> bool {
    nodes_dir(roots).exists()
}

/// Looks at all cards.
///
/// * `errors`: what was known of their errors.
pub fn look(roots: &Roots, errors: &mut Ras) -> Discovery {
    if !is_there(roots) {
        let why = match roots.sysfs.join("module/amdgpu").exists() {
            true => "the driver amdgpu runs without its compute part, kfd",
            false => "the driver amdgpu is not loaded",
        };
        return without_library(Vendor::Amd, roots, why.into());
    }
    let mut found = Discovery::default();
    let mut links = Vec::new();
    let mut hives: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut at: BTreeMap<u64, usize> = BTreeMap::new();
    for (number, dir) in numbered(&nodes_dir(roots)) {
        let properties = properties(&dir.join("properties"));
        let get = |key: &str| properties.get(key).copied().unwrap_or(0);
        if properties.is_empty() {
            let what = format!("node {number} of kfd cannot be read: no permission, or the card is gone");
            found.findings.push(Finding { vendor: Vendor::Amd, what });
            continue;
        }
        if get("simd_count") == 0 || get("vendor_id") != 0x1002 {
            continue;
        }
        let logical = found.devices.len() as u32;
        // Graphics of processors have no memory of their own.
        let Some(device) = read_node(roots, &dir, &get, logical, &found.devices) else { continue };
        at.insert(number, found.devices.len());
        found.devices.push(device);
        if get("hive_id") != 0 {
            hives.entry(get("hive_id")).or_default().push(number);
        }
        for (_, link) in numbered(&dir.join("io_links")) {
            let link = self::properties(&link.join("properties"));
            if link.get("type") == Some(&XGMI) {
                links.extend(link.get("node_from").copied().zip(link.get("node_to").copied()));
            }
        }
    }
    for device in &mut found.devices {
        // Of a card that is divided all parts share its errors.
        let place = device.place.split('/').next().unwrap_or_default();
        let pci = roots.pci(place);
        device.fault = errors.look(place, &pci, Instant::now()).or_else(|| too_hot(&pci).map(suspect));
        if let Some(fault) = device.fault.as_ref().filter(|fault| fault.health == Health::Suspect) {
            let what = format!("device {}: {}", device.logical, fault.why);
            found.findings.push(Finding { vendor: Vendor::Amd, what });
        }
    }
    // Of a hive all are linked, whatever the links say.
    links.extend(hives.values().flat_map(|hive| hive.windows(2).map(|pair| (pair[0], pair[1]))));
    let numbers: Vec<u64> = at.keys().copied().collect();
    for (number, island) in topology::islands(&numbers, links) {
        found.devices[at[&number]].island = Some(island);
    }
    for place in roots.plugged(Vendor::Amd) {
        if !found.devices.iter().any(|device| device.place.starts_with(&place)) {
            let what = format!("the card at {place} is plugged in, but the driver does not list it");
            found.findings.push(Finding { vendor: Vendor::Amd, what });
        }
    }
    found
}

/// The card of a node. `earlier`: a card that is divided into several has them all at one place.
fn read_node(
    roots: &Roots,
    dir: &Path,
    get: &dyn Fn(&str) -> u64,
    logical: u32,
    earlier: &[Found],
) -> Option<Found> {
    // Of PCI's address the lowest bits are the function.
    let address = get("location_id");
    let card = place_text(get("domain"), address >> 8 & 0xff, address >> 3 & 0x1f, address & 7);
    let pci = roots.pci(&card);
    let banks =
        numbered(&dir.join("mem_banks")).into_iter().map(|(_, bank)| properties(&bank.join("properties")));
    let of_card = banks.filter(|bank| bank.get("heap_type").is_some_and(|heap| CARD_HEAPS.contains(heap)));
    let of_banks: u64 = of_card.filter_map(|bank| bank.get("size_in_bytes").copied()).sum();
    let memory_bytes = match of_banks {
        0 => read_number(pci.join("mem_info_vram_total")).filter(|_| get("cpu_cores_count") == 0)?,
        bytes => bytes,
    };
    let siblings = earlier.iter().filter(|device| device.place.split('/').next() == Some(&card)).count();
    let (place, suffix) = match siblings {
        0 => (card.clone(), String::new()),
        number => (format!("{card}/{number:03}"), format!("-{number}")),
    };
    let uuid = match get("unique_id") {
        0 => format!("amd-{card}{suffix}"),
        id => format!("GPU-{id:016x}{suffix}"),
    };
    let model = match read(pci.join("product_name")).filter(|name| !name.is_empty()) {
        Some(name) => model_of(Vendor::Amd, &name),
        None => model_of_id(get("device_id"), get("gfx_target_version")),
    };
    let physical = get("drm_render_minor") as u32;
    Some(Found {
        class: Arc::new(DeviceClass { vendor: Vendor::Amd, model: model.as_str().into(), memory_bytes }),
        uuid: uuid.as_str().into(),
        fault: None,
        island: None,
        isolation: Isolation::Advisory,
        speed_milli: None,
        is_used: false,
        nodes: visible::nodes(Vendor::Amd, physical, &card, &roots.sysfs),
        place,
        logical,
        physical,
    })
}

/// Source: pciutils/pciids; without an entry, the name of the instruction set.
fn model_of_id(device: u64, gfx: u64) -> String {
    let name = match device {
        0x66a1 => "mi60",
        0x738c => "mi100",
        0x7408 | 0x740c => "mi250x",
        0x740f => "mi210",
        0x74a0 => "mi300a",
        0x74a1 => "mi300x",
        0x74a2 => "mi308x",
        0x74a5 => "mi325x",
        0x75a0 => "mi350x",
        0x75a3 => "mi355x",
        // 90010 is gfx90a: the last part is hexadecimal.
        _ => return format!("gfx{}{}{:x}", gfx / 10_000, gfx / 100 % 100, gfx % 100),
    };
    name.to_string()
}

/// Subdirectories that are numbers, in their order.
fn numbered(dir: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all: Vec<(u64, PathBuf)> =
        entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path()))).collect();
    all.sort();
    all
}

/// A file of lines with a name and a number.
fn properties(path: &Path) -> BTreeMap<String, u64> {
    let text = read(path).unwrap_or_default();
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_string(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}
