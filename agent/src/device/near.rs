//! Which cores are near devices: those of the memory nodes that the devices hang on. What a worker allocates while it runs there
//! is in that memory, too, by the kernel's default.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::topology::{is_place, seat};
use crate::host::own_cores;

/// Cores that this process may run on and that are near all devices of these places, ascending; empty if none are nearer than others.
pub fn cores<'a>(sysfs: &Path, places: impl Iterator<Item = &'a str>) -> Vec<usize> {
    let on_bus = |place: &str| is_place(place.split('/').next().unwrap_or(place));
    let node = |place: &'a str| on_bus(place).then(|| seat(sysfs, place).numa_node).flatten();
    let Some(nodes) = places.map(node).collect::<Option<BTreeSet<u32>>>() else { return Vec::new() };
    let list =
        |node: &u32| fs::read_to_string(sysfs.join(format!("devices/system/node/node{node}/cpulist"))).ok();
    let Some(lists) = nodes.iter().map(list).collect::<Option<Vec<String>>>() else { return Vec::new() };
    let near: BTreeSet<usize> = lists.iter().flat_map(|list| parse_list(list)).collect();
    let own = own_cores();
    let found: Vec<usize> = own.iter().copied().filter(|core| near.contains(core)).collect();
    if found.len() < own.len() { found } else { Vec::new() }
}

/// Reads `0-31,64-95`.
fn parse_list(list: &str) -> impl Iterator<Item = usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read() {
        assert_eq!(parse_list("0-2,7,9-10\n").collect::<Vec<_>>(), [0, 1, 2, 7, 9, 10]);
        assert_eq!(parse_list("\n").count(), 0);
    }

    #[test]
    fn the_cores_of_a_devices_memory_node_are_near_it() {
        let own = own_cores();
        let (Some(first), Some(last)) = (own.first(), own.last()) else { panic!("no cores") };
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let file = dir.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        write("devices/system/node/node0/cpulist", &format!("{first}\n"));
        write("devices/system/node/node1/cpulist", &format!("{last},9999\n"));
        for (place, node) in [("0000:1b:00.0", "0"), ("0000:9b:00.0", "1"), ("0000:ff:00.0", "-1")] {
            write(&format!("bus/pci/devices/{place}/numa_node"), node);
        }
        let near = |places: &[&str]| cores(dir.path(), places.iter().copied());
        let expected = |of: &[usize]| if of.len() < own.len() { of.to_vec() } else { Vec::new() };
        assert_eq!(near(&["0000:1b:00.0", "0000:1b:00.0/gi1"]), expected(&[*first]));
        assert_eq!(near(&["0000:9b:00.0"]), expected(&[*last]));
        let both: BTreeSet<usize> = [*first, *last].into();
        assert_eq!(near(&["0000:1b:00.0", "0000:9b:00.0"]), expected(&both.into_iter().collect::<Vec<_>>()));
        for unknown in ["0000:ff:00.0", "0000:aa:00.0", "slot-3"] {
            assert_eq!(near(&["0000:1b:00.0", unknown]), [0; 0], "{unknown}");
        }
    }
}
