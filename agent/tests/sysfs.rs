//! AMD's and Intel's cards, from trees as the kernel makes them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use aquifer_agent::device::{Backend, Backends, BySysfs, Discovery, HelperCommand, Roots};
use aquifer_agent::host::Host;
use aquifer_core::{Health, Vendor};

struct Tree {
    dir: tempfile::TempDir,
    roots: Roots,
}

impl Tree {
    fn new() -> Tree {
        let dir = tempfile::tempdir().unwrap();
        let tests = std::env::current_exe().unwrap();
        let examples = tests.parent().unwrap().parent().unwrap().join("examples");
        let helper = HelperCommand { program: examples.join("ask_library"), args: Vec::new() };
        let roots = Roots { sysfs: dir.path().into(), helper, ..Roots::default() };
        Tree { dir, roots }
    }

    fn put(&self, file: &str, text: &str) {
        let path = self.dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn pci(&self, place: &str, vendor: &str, device: &str, class: &str, driver: &str) {
        let at = format!("bus/pci/devices/{place}");
        self.put(&format!("{at}/vendor"), vendor);
        self.put(&format!("{at}/device"), device);
        self.put(&format!("{at}/class"), class);
        if !driver.is_empty() {
            // A card that is described again has its driver already.
            let drivers = Path::new("/sys/bus/pci/drivers").join(driver);
            _ = symlink(drivers, self.dir.path().join(at).join("driver"));
        }
    }

    /// A node of kfd: a card with 192 GiB, and its links as `type to`.
    fn card(&self, node: u32, bus: u32, unique_id: u64, more: &str, links: &[(u32, u32)]) {
        let at = format!("class/kfd/kfd/topology/nodes/{node}");
        let location = bus << 8;
        self.put(
            &format!("{at}/properties"),
            &format!(
                "cpu_cores_count 0\nsimd_count 1216\nmem_banks_count 1\nio_links_count {}\nvendor_id 4098\n\
                 device_id 29857\nlocation_id {location}\ndomain 0\ndrm_render_minor {}\nunique_id {unique_id}\n\
                 gfx_target_version 90402\n{more}",
                links.len(),
                126 + node
            ),
        );
        self.put(
            &format!("{at}/mem_banks/0/properties"),
            "heap_type 1\nsize_in_bytes 206141652992\nflags 0\n",
        );
        for (number, (kind, to)) in links.iter().enumerate() {
            self.put(
                &format!("{at}/io_links/{number}/properties"),
                &format!("type {kind}\nversion_major 0\nnode_from {node}\nnode_to {to}\nweight 15\n"),
            );
        }
        self.pci(&format!("0000:{bus:02x}:00.0"), "0x1002\n", "0x74a1\n", "0x120000\n", "amdgpu");
    }

    /// Two processors, and three MI300X of which two are linked by XGMI (11); all have PCI Express (2).
    fn mi300x() -> Tree {
        let tree = Tree::new();
        let nodes = "class/kfd/kfd/topology/nodes";
        tree.put(&format!("{nodes}/0/properties"), "cpu_cores_count 96\nsimd_count 0\nvendor_id 4098\n");
        tree.put(&format!("{nodes}/1/properties"), "cpu_cores_count 96\nsimd_count 0\nvendor_id 4098\n");
        tree.card(2, 0x1b, 0x1234_5678_9abc_def0, "", &[(2, 0), (11, 3), (2, 4)]);
        tree.card(3, 0x3d, 0x42, "", &[(2, 0), (11, 2)]);
        tree.card(4, 0x9f, 0, "", &[(2, 1), (2, 2)]);
        tree
    }
}

#[test]
fn amd_s_cards_come_from_the_topology_of_the_kernel() {
    let tree = Tree::mi300x();
    let mut amd = BySysfs::new(Vendor::Amd, &tree.roots);
    let found = amd.discover();
    assert_eq!(found.findings, []);
    let cards: Vec<(&str, &str, &str, u64)> = found
        .devices
        .iter()
        .map(|card| (&*card.uuid, &*card.class.model, &card.place[..], card.class.memory_bytes))
        .collect();
    let bytes = 206_141_652_992;
    assert_eq!(
        cards,
        [
            ("GPU-123456789abcdef0", "mi300x", "0000:1b:00.0", bytes),
            ("GPU-0000000000000042", "mi300x", "0000:3d:00.0", bytes),
            ("amd-0000:9f:00.0", "mi300x", "0000:9f:00.0", bytes),
        ]
    );
    let shown = amd.visibility(&[&found.devices[2], &found.devices[0]]);
    assert_eq!(shown.env[0], ("HIP_VISIBLE_DEVICES".to_string(), "2,0".to_string()));
    let nodes: Vec<&str> = shown.device_nodes.iter().map(|node| node.to_str().unwrap()).collect();
    assert_eq!(nodes, ["/dev/dri/renderD130", "/dev/dri/renderD128", "/dev/kfd"]);
}

#[test]
fn a_worker_with_cards_of_amd_has_their_nodes_alone_and_counts_them_from_0() {
    let tree = Tree::mi300x();
    for node in ["card0", "card1", "renderD128", "renderD129", "renderD130", "by-path/x"] {
        tree.put(&format!("dri/{node}"), "");
    }
    let roots = Roots { dri: tree.dir.path().join("dri"), ..tree.roots.clone() };
    let backends = Backends::open(&"amd".parse().unwrap(), &Host::read(), &roots, None).unwrap();
    let names = |nodes: &[PathBuf]| -> Vec<String> {
        let mut names: Vec<String> = nodes.iter().map(|node| node.display().to_string()).collect();
        names.sort();
        names.dedup();
        names
    };
    let beside = backends.visibility(&[2, 1], None);
    assert_eq!((&beside.env[0].1[..], beside.hidden_nodes.len()), ("2,1", 0));
    let hidden = backends.with_others_hidden(&[2, 1], None);
    assert_eq!(hidden.env[0], ("HIP_VISIBLE_DEVICES".into(), "1,0".into()));
    assert_eq!(names(&hidden.hidden_nodes), ["/dev/dri", "/dev/dri/renderD128"]);
    let own =
        ["by-path", "card0", "card1", "renderD129", "renderD130"].map(|name| format!("/dev/dri/{name}"));
    assert_eq!(names(&hidden.device_nodes), [&own[..], &["/dev/kfd".into()]].concat());
    // Whoever has none has no number to be told.
    let without = backends.with_others_hidden(&[], None);
    let all = ["128", "129", "130"].map(|minor| format!("/dev/dri/renderD{minor}"));
    assert_eq!((names(&without.hidden_nodes), without.device_nodes), (all.to_vec(), vec![]));
}

#[test]
fn xgmi_is_11_and_pci_express_makes_no_island() {
    let tree = Tree::mi300x();
    let islands = |tree: &Tree| -> Vec<Option<u16>> {
        BySysfs::new(Vendor::Amd, &tree.roots).discover().devices.iter().map(|card| card.island).collect()
    };
    assert_eq!(islands(&tree), [Some(0), Some(0), None]);
    // A hive says the same without its links.
    let hive = "hive_id 77\n";
    tree.card(3, 0x3d, 0x42, hive, &[(2, 0)]);
    tree.card(4, 0x9f, 0, hive, &[(2, 1)]);
    assert_eq!(islands(&tree), [Some(0), Some(0), Some(0)], "3 is linked with 2 and of one hive with 4");
}

#[test]
fn a_card_of_amd_that_is_divided_or_fails_is_told() {
    let tree = Tree::mi300x();
    // A partition of the second card, and graphics of a processor.
    tree.card(5, 0x3d, 0x42, "", &[]);
    tree.put(
        "class/kfd/kfd/topology/nodes/6/properties",
        "simd_count 8\ncpu_cores_count 16\nvendor_id 4098\n",
    );
    tree.put("bus/pci/devices/0000:9f:00.0/ras/umc_err_count", "ue: 2\nce: 7\n");
    tree.put("class/kfd/kfd/topology/nodes/7/properties", "");
    tree.pci("0000:c1:00.0", "0x1002\n", "0x74a1\n", "0x120000\n", "amdgpu");
    let found = BySysfs::new(Vendor::Amd, &tree.roots).discover();
    let places: Vec<&str> = found.devices.iter().map(|card| &card.place[..]).collect();
    assert_eq!(places, ["0000:1b:00.0", "0000:3d:00.0", "0000:9f:00.0", "0000:3d:00.0/001"]);
    assert_eq!(&*found.devices[3].uuid, "GPU-0000000000000042-1");
    // Of a card that is divided each part has its share of what the maker says.
    let speeds: Vec<(u32, u32)> =
        found.devices.iter().map(|card| (card.speed(None).0, card.memory_gbs(None))).collect();
    assert_eq!(speeds, [(4190, 5300), (2095, 2650), (4190, 5300), (2095, 2650)]);
    let said = found.devices[3].speed(None).1;
    assert_eq!(said, "by datasheet (AMD ROCm documentation, MI300 series, dense), one of 2 parts");
    let faults: Vec<Option<String>> =
        found.devices.iter().map(|card| card.fault.as_ref().map(ToString::to_string)).collect();
    let bad = "draining: uncorrected errors (umc 2): drain the card and reset it".to_string();
    assert_eq!(faults, [None, None, Some(bad), None]);
    let findings: Vec<String> = found.findings.iter().map(|finding| finding.to_string()).collect();
    assert_eq!(
        findings,
        [
            "amd: node 7 of kfd cannot be read: no permission, or the card is gone",
            "amd: the card at 0000:c1:00.0 is plugged in, but the driver does not list it",
        ]
    );
}

#[test]
fn cards_that_are_too_hot_or_have_many_corrected_errors_are_suspect() {
    let tree = Tree::mi300x();
    let sensor = |place: &str, input: &str| {
        let at = format!("bus/pci/devices/{place}/hwmon/hwmon3");
        tree.put(&format!("{at}/temp1_input"), "90000\n");
        tree.put(&format!("{at}/temp2_input"), input);
        tree.put(&format!("{at}/temp2_crit"), "100000\n");
        tree.put(&format!("{at}/temp2_label"), "junction\n");
    };
    sensor("0000:1b:00.0", "99000\n");
    sensor("0000:3d:00.0", "100000\n");
    tree.put("bus/pci/devices/0000:9f:00.0/ras/gfx_err_count", "ue: 0\nce: 7\n");
    let mut backend = BySysfs::new(Vendor::Amd, &tree.roots);
    let hot = "it is as hot as it may become (junction): 100 °C";
    let suspects = |found: &Discovery| -> Vec<String> {
        assert!(found.devices.iter().flat_map(|card| &card.fault).all(|it| it.health == Health::Suspect));
        found.findings.iter().map(|finding| finding.what.clone()).collect()
    };
    assert_eq!(suspects(&backend.discover()), [format!("device 1: {hot}")]);
    sensor("0000:3d:00.0", "99000\n");
    tree.put("bus/pci/devices/0000:9f:00.0/ras/gfx_err_count", "ue: 0\nce: 17\n");
    let many = "device 2: 10 corrected errors or more within 10 minutes";
    assert_eq!(suspects(&backend.discover()), [many]);
    assert_eq!(suspects(&backend.discover()), [many], "for a while");
    let mut other = BySysfs::new(Vendor::Amd, &tree.roots);
    assert_eq!(suspects(&other.discover()), [""; 0], "what was counted before is not new");

    let tree = Tree::new();
    tree.pci("0000:4d:00.0", "0x8086\n", "0x0bd5\n", "0x038000\n", "xe");
    tree.put("bus/pci/devices/0000:4d:00.0/hwmon/hwmon1/temp2_input", "105000\n");
    tree.put("bus/pci/devices/0000:4d:00.0/hwmon/hwmon1/temp2_crit", "105000\n");
    let found = BySysfs::new(Vendor::Intel, &tree.roots).discover();
    let fault = found.devices[0].fault.as_ref().map(ToString::to_string);
    assert_eq!(fault.as_deref(), Some("suspect: it is as hot as it may become: 105 °C"));
}

#[test]
fn a_card_without_its_driver_is_listed_with_the_reason_and_the_cores_work() {
    let tree = Tree::new();
    tree.pci("0000:1b:00.0", "0x1002\n", "0x74a1\n", "0x120000\n", "");
    tree.pci("0000:2b:00.0", "0x1002\n", "0x74a1\n", "0x120000\n", "vfio-pci");
    let auto = Backends::open(&"auto".parse().unwrap(), &Host::read(), &tree.roots, None).unwrap();
    let devices = auto.devices();
    assert_eq!(devices[0].fault.as_ref().map(|fault| &*fault.why), Some("the driver amdgpu is not loaded"));
    assert_eq!(devices.len(), 1 + Host::read().cores.len(), "cores work where no card does");
    let findings: Vec<String> = auto.findings().iter().map(|finding| finding.to_string()).collect();
    assert_eq!(findings, ["amd: 1 device on PCI, but the driver amdgpu is not loaded"]);
    let empty = Tree::new();
    let auto = Backends::open(&"auto".parse().unwrap(), &Host::read(), &empty.roots, None).unwrap();
    assert_eq!(auto.findings(), [], "a node without any card needs no driver");
}

#[test]
fn intel_s_cards_are_numbered_as_level_zero_numbers_them() {
    let tree = Tree::new();
    tree.pci("0000:00:02.0", "0x8086\n", "0x4692\n", "0x030000\n", "i915");
    tree.pci("0000:00:1f.0", "0x8086\n", "0x0bd5\n", "0x060100\n", "");
    tree.pci("0000:29:00.0", "0x8086\n", "0x0bd5\n", "0x038000\n", "xe");
    tree.put("bus/pci/devices/0000:29:00.0/tile0/vram0/total_bytes", "68719476736\n");
    tree.put("bus/pci/devices/0000:29:00.0/tile1/vram0/total_bytes", "68719476736\n");
    tree.put("bus/pci/devices/0000:29:00.0/drm/card1/dev", "");
    tree.put("bus/pci/devices/0000:29:00.0/drm/renderD129/dev", "");
    tree.pci("0000:3a:00.0", "0x8086\n", "0xe20b\n", "0x030000\n", "i915");
    let window = tree.dir.path().join("bus/pci/devices/0000:3a:00.0/resource2");
    fs::File::create(window).unwrap().set_len(12 << 30).unwrap();
    tree.pci("0000:4a:00.0", "0x8086\n", "0x56c1\n", "0x038000\n", "");
    let mut intel = BySysfs::new(Vendor::Intel, &tree.roots);
    let found = intel.discover();
    let cards: Vec<(&str, u64, Option<&str>)> = found
        .devices
        .iter()
        .map(|card| {
            (&*card.class.model, card.class.memory_bytes >> 30, card.fault.as_ref().map(|fault| &*fault.why))
        })
        .collect();
    let fault = Some("it has neither of the drivers i915 and xe");
    assert_eq!(cards, [("max-1550", 128, None), ("arc-b580", 12, None), ("flex-140", 0, fault)]);
    let shown = intel.visibility(&[&found.devices[0], &found.devices[1]]);
    assert_eq!(
        shown.env[0],
        ("ZE_AFFINITY_MASK".to_string(), "1,2".to_string()),
        "0 is the processor's graphics"
    );
    assert_eq!(shown.env[1].0, "ZE_ENABLE_PCI_ID_DEVICE_ORDER");
    let nodes: Vec<&str> = shown.device_nodes.iter().map(|node| node.to_str().unwrap()).collect();
    assert_eq!(nodes, ["/dev/dri/card1", "/dev/dri/renderD129"]);
}
