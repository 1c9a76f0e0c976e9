//! AMD's cards, from the topology of the kernel's compute driver. Source: `kfd_topology.c` and `kfd_crat.h` of Linux.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use aquifer_core::{DeviceClass, Health, Isolation, Vendor};

use super::api::place_text;
use super::hwmon::too_hot;
use super::ras::Ras;
use super::roots::{Roots, read, read_number};
use super::slowed::Slowed;
use super::unread::without_library;
use super::{Discovery, Finding, Found, model_of, suspect, topology, visible};

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

/// What was seen of the cards before.
#[derive(Default)]
pub struct Seen {
    errors: Ras,
    slowed: Slowed,
}

/// Looks at all cards.
pub fn look(roots: &Roots, seen: &mut Seen) -> Discovery {
    let _still = roots.parting.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !is_there(roots) {
        let why = match roots.sysfs.join("module/amdgpu").exists() {
            true => "the driver amdgpu runs without its compute part, kfd",
            false => "the driver amdgpu is not loaded",
        };
        return without_library(Vendor::Amd, roots, why.into());
    }
    let mut found = Discovery::default();
    // What is parted on demand is one device, whatever it is parted into now.
    let on_demand = roots.parts_on_demand.contains(&Vendor::Amd);
    let mut whole = cards(roots);
    whole.retain(|card| {
        (on_demand || card.parts.len() == 1) && card.ways(roots).iter().any(|(_, parts)| 1 < *parts)
    });
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
        let of_card = |card: &Card| card_of(&device) == card.place;
        match whole.iter().find(|card| of_card(card)) {
            None => {
                at.insert(number, found.devices.len());
                found.devices.push(device);
            }
            Some(card) => {
                let first = found.devices.iter().position(|device| *device.place == card.place);
                at.insert(number, first.unwrap_or(found.devices.len()));
                let parts = Some(Isolation::Limited);
                if first.is_none() && on_demand {
                    let class = DeviceClass { memory_bytes: card.memory_bytes, ..(*device.class).clone() };
                    let (class, uuid) = (Arc::new(class), card.uuid.as_str().into());
                    found.devices.push(Found { class, uuid, parts, ..device });
                } else if first.is_none() {
                    found.devices.push(Found { parts, ..device });
                }
            }
        }
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
    let mut parts: BTreeMap<String, u32> = BTreeMap::new();
    for device in &found.devices {
        *parts.entry(card_of(device).into()).or_default() += 1;
    }
    for device in &mut found.devices {
        // Of a card that is divided all parts are equal, and share its errors.
        device.one_of = parts.get(card_of(device)).copied().unwrap_or(1);
        let place = card_of(device);
        let pci = roots.pci(place);
        let slowed = seen.slowed.look(place, &pci);
        let hot = || too_hot(&pci).or_else(|| slowed.map(Into::into));
        device.fault = seen.errors.look(place, &pci, Instant::now()).or_else(|| hot().map(suspect));
        if let Some(fault) = device.fault.as_ref().filter(|fault| fault.health == Health::Suspect) {
            let what = format!("device {}: {}", device.logical, fault.why);
            found.findings.push(Finding { vendor: Vendor::Amd, what });
        }
    }
    // Of a hive all are linked, whatever the links say.
    links.extend(hives.values().flat_map(|hive| hive.windows(2).map(|pair| (pair[0], pair[1]))));
    let of_nodes = |(one, other): (u64, u64)| Some((*at.get(&one)?, *at.get(&other)?));
    // Parts of one card that is offered whole are not linked with themselves.
    let links = links.into_iter().filter_map(of_nodes).filter(|(one, other)| one != other);
    let all: Vec<usize> = (0..found.devices.len()).collect();
    for (index, island) in topology::islands(&all, links) {
        found.devices[index].island = Some(island);
    }
    for place in roots.plugged(Vendor::Amd) {
        if !found.devices.iter().any(|device| device.place.starts_with(&place)) {
            let what = format!("the card at {place} is plugged in, but the driver does not list it");
            found.findings.push(Finding { vendor: Vendor::Amd, what });
        }
    }
    found
}

/// Bus address of the card that a device is, or is a part of.
fn card_of(device: &Found) -> &str {
    device.place.split('/').next().unwrap_or_default()
}

/// A card, however many nodes it has: one for each part that it is divided into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its bus address.
    pub place: String,
    /// Its unique name as long as parts of it are made on demand.
    pub uuid: String,
    /// Of all its parts.
    pub memory_bytes: u64,
    /// Minor numbers of its parts' render nodes.
    pub parts: Vec<u32>,
    /// Dies with compute units of all its parts.
    pub dies: u32,
}

impl Card {
    /// The ways in which it can be parted, with the number of parts; none, if it cannot be.
    pub fn ways(&self, roots: &Roots) -> Vec<(String, u32)> {
        let modes = read(roots.pci(&self.place).join("available_compute_partition"));
        let modes = modes.filter(|_| can_be_parted(roots, &self.place)).unwrap_or_default();
        let way = |mode: &str| {
            let parts = match mode {
                "SPX" => 1,
                "DPX" => 2,
                "TPX" => 3,
                "QPX" => 4,
                "CPX" => self.dies,
                _ => 0,
            };
            (0 < parts && parts <= 8).then(|| (mode.to_string(), parts))
        };
        modes.split([',', ' ']).filter_map(way).collect()
    }
}

/// All cards that compute, in the order of their first nodes.
pub fn cards(roots: &Roots) -> Vec<Card> {
    let mut cards: Vec<Card> = Vec::new();
    for (_, dir) in numbered(&nodes_dir(roots)) {
        let properties = properties(&dir.join("properties"));
        let get = |key: &str| properties.get(key).copied().unwrap_or(0);
        if get("simd_count") == 0 || get("vendor_id") != 0x1002 {
            continue;
        }
        let Some(device) = read_node(roots, &dir, &get, 0, &[]) else { continue };
        let dies = get("num_xcc").max(1) as u32;
        match cards.iter_mut().find(|card| card.place == device.place) {
            Some(card) => {
                card.parts.push(device.physical);
                card.dies += dies;
            }
            None => cards.push(Card {
                uuid: name_of(roots, &device.place, get("unique_id")),
                memory_bytes: whole_memory(roots, &device.place).unwrap_or(device.class.memory_bytes),
                parts: vec![device.physical],
                dies,
                place: device.place,
            }),
        }
    }
    cards
}

/// Whether the kernel lets the card at a bus address be parted.
pub fn can_be_parted(roots: &Roots, place: &str) -> bool {
    let mode = fs::metadata(roots.pci(place).join("current_compute_partition"));
    mode.is_ok_and(|mode| mode.permissions().mode() & 0o222 != 0)
}

/// The name of the card at a bus address, whatever it is parted into: newer kernels give each part a name of its own.
pub fn name_at(roots: &Roots, place: &str) -> String {
    name_of(roots, place, 0)
}

fn name_of(roots: &Roots, place: &str, of_node: u64) -> String {
    let id =
        read(roots.pci(place).join("unique_id")).and_then(|digits| u64::from_str_radix(&digits, 16).ok());
    match id.unwrap_or(of_node) {
        0 => format!("amd-{place}"),
        id => format!("GPU-{id:016x}"),
    }
}

fn whole_memory(roots: &Roots, place: &str) -> Option<u64> {
    read_number(roots.pci(place).join("mem_info_vram_total"))
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
    let siblings = earlier.iter().filter(|device| card_of(device) == card).count();
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
        parts: None,
        speed_milli: None,
        memory_gbs: None,
        is_used: false,
        one_of: 1,
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
