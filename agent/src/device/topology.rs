//! How devices are connected: islands of direct links, and where they hang in the machine.

use std::collections::BTreeMap;
use std::path::Path;

use super::roots::read_number;

/// Numbers the groups that links make of these, from 0, in their order. What is linked with nothing has no number.
pub fn islands<T: Ord + Copy>(all: &[T], links: impl IntoIterator<Item = (T, T)>) -> BTreeMap<T, u16> {
    // Each points to one of its group, which at the end is the first of it.
    let mut first: BTreeMap<T, T> = all.iter().map(|item| (*item, *item)).collect();
    fn find<T: Ord + Copy>(first: &BTreeMap<T, T>, mut item: T) -> T {
        while first[&item] != item {
            item = first[&item];
        }
        item
    }
    for (one, other) in links {
        if first.contains_key(&one) && first.contains_key(&other) {
            let (one, other) = (find(&first, one), find(&first, other));
            first.insert(one.max(other), one.min(other));
        }
    }
    let mut sizes: BTreeMap<T, u32> = BTreeMap::new();
    all.iter().for_each(|item| *sizes.entry(find(&first, *item)).or_default() += 1);
    let groups: Vec<T> = sizes.into_iter().filter(|(_, size)| 1 < *size).map(|(group, _)| group).collect();
    let number = |item: &T| groups.binary_search(&find(&first, *item)).ok().map(|at| (*item, at as u16));
    all.iter().filter_map(number).collect()
}

/// Where a device hangs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seat {
    /// Number of the memory node that is near it.
    pub numa_node: Option<u32>,
    /// Bus address of the PCIe switch above it: devices with the same one reach each other without the processor.
    pub switch: Option<String>,
}

/// Reads where the device of a bus address hangs, or the core of a number.
pub fn seat(sysfs: &Path, place: &str) -> Seat {
    if let Ok(core) = place.parse::<usize>() {
        return Seat { numa_node: memory_node_of_core(sysfs, core), switch: None };
    }
    // A slice stands where its card does.
    let place = place.split('/').next().unwrap_or(place);
    let device = sysfs.join("bus/pci/devices").join(place);
    let real = std::fs::canonicalize(&device).unwrap_or_default();
    let bridges: Vec<String> =
        real.ancestors().skip(1).filter_map(|dir| dir.file_name()?.to_str().map(str::to_string)).collect();
    let bridges: Vec<&String> = bridges.iter().filter(|name| is_place(name)).collect();
    Seat {
        // -1: none is nearer than another.
        numa_node: read_number(device.join("numa_node")).map(|node| node as u32),
        // Above the card are the switch's port for it, the switch's port for the processor, and the processor's own.
        switch: (3 <= bridges.len()).then(|| bridges[1].clone()),
    }
}

/// The memory node of a core, where there are several. Source: `Documentation/ABI/stable/sysfs-devices-node` of Linux.
fn memory_node_of_core(sysfs: &Path, core: usize) -> Option<u32> {
    let nodes = |dir: &str| {
        let entries =
            std::fs::read_dir(sysfs.join("devices/system").join(dir)).into_iter().flatten().flatten();
        let number = |name: String| name.strip_prefix("node")?.parse::<u32>().ok();
        entries.filter_map(move |entry| number(entry.file_name().into_string().ok()?)).collect::<Vec<u32>>()
    };
    nodes(&format!("cpu/cpu{core}")).first().copied().filter(|_| 1 < nodes("node").len())
}

/// Whether this is a bus address, like `0000:1b:00.0`.
pub fn is_place(text: &str) -> bool {
    let parts: Vec<&str> = text.split([':', '.']).collect();
    let hex = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    parts.len() == 4 && parts.iter().all(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_links_connect_is_an_island() {
        let all = [0, 1, 2, 3, 4, 5];
        let found = islands(&all, [(5, 4), (0, 2), (2, 3), (9, 1)]);
        assert_eq!(found, BTreeMap::from([(0, 0), (2, 0), (3, 0), (4, 1), (5, 1)]));
        assert_eq!(islands(&all, []), BTreeMap::new());
    }

    #[test]
    fn a_core_is_near_its_memory_where_there_are_several() {
        let dir = tempfile::tempdir().unwrap();
        let make =
            |path: &str| std::fs::create_dir_all(dir.path().join("devices/system").join(path)).unwrap();
        make("node/node0");
        make("cpu/cpu3/node0");
        assert_eq!(seat(dir.path(), "00003"), Seat::default(), "there is one");
        make("node/node1");
        make("cpu/cpu5/node1");
        make("cpu/cpu5/topology");
        let near = |node: u32| Seat { numa_node: Some(node), switch: None };
        assert_eq!([seat(dir.path(), "00003"), seat(dir.path(), "00005")], [near(0), near(1)]);
        assert_eq!(seat(dir.path(), "00009"), Seat::default());
    }

    #[test]
    fn a_card_behind_a_switch_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let bus = dir.path().join("bus/pci/devices");
        std::fs::create_dir_all(&bus).unwrap();
        let put = |above: &str, place: &str, node: &str| {
            let real = dir.path().join("devices/pci0000:16").join(above).join(place);
            std::fs::create_dir_all(&real).unwrap();
            std::fs::write(real.join("numa_node"), node).unwrap();
            std::os::unix::fs::symlink(&real, bus.join(place)).unwrap();
        };
        put("0000:16:01.0/0000:17:00.0/0000:18:00.0", "0000:1a:00.0", "1\n");
        put("0000:16:02.0", "0000:1b:00.0", "-1\n");
        let behind = Seat { numa_node: Some(1), switch: Some("0000:17:00.0".into()) };
        assert_eq!(seat(dir.path(), "0000:1a:00.0/003"), behind);
        assert_eq!(seat(dir.path(), "0000:1b:00.0"), Seat::default());
        assert_eq!(seat(dir.path(), "0000:ff:00.0"), Seat::default());
    }
}
