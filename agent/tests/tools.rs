//! Vendors whose library is missing, and whose command-line tool lists their cards: through the real path, with programs that
//! print what the tools print.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aquifer_agent::device::{Backend, ByLibrary, Discovery, Found, HelperCommand, Roots};
use aquifer_core::Vendor;

/// A tool, and what is to be found through it. Card 0 is at 2b:00.0, card 1 at 1b:00.0.
struct Listed {
    vendor: Vendor,
    tool: &'static str,
    model: &'static str,
    memory_mib: u64,
    uuid_of_0: &'static str,
    /// What a worker that holds card 0 is told.
    env_of_0: (&'static str, &'static str),
    /// Its first node; "": not known.
    node_of_0: &'static str,
    /// What card 1 is at fault for.
    sick: Option<&'static str>,
}

const NVIDIA: Listed = Listed {
    vendor: Vendor::Nvidia,
    tool: "nvidia-smi",
    model: "h100-80gb-hbm3",
    memory_mib: 81_920,
    uuid_of_0: "GPU-0000-0",
    env_of_0: ("CUDA_VISIBLE_DEVICES", "GPU-0000-0"),
    node_of_0: "/dev/nvidia1",
    sick: Some("divided into instances, which only its library lists"),
};

const TOOLS: [Listed; 12] = [
    NVIDIA,
    Listed {
        vendor: Vendor::Ascend,
        tool: "npu-smi",
        model: "910b3",
        memory_mib: 65_536,
        uuid_of_0: "ascend-0000:2b:00.0",
        env_of_0: ("ASCEND_RT_VISIBLE_DEVICES", "0"),
        node_of_0: "/dev/davinci4",
        sick: None,
    },
    Listed {
        vendor: Vendor::Cambricon,
        tool: "cnmon",
        model: "mlu590-m9",
        memory_mib: 81_920,
        uuid_of_0: "MLU-0000-0",
        env_of_0: ("MLU_VISIBLE_DEVICES", "0"),
        node_of_0: "/dev/cambricon_dev0",
        sick: None,
    },
    Listed {
        vendor: Vendor::Hygon,
        tool: "hy-smi",
        model: "k100-ai",
        memory_mib: 65_536,
        uuid_of_0: "GPU-7100fa0000000001",
        env_of_0: ("HIP_VISIBLE_DEVICES", "0"),
        node_of_0: "/dev/kfd",
        sick: None,
    },
    Listed {
        vendor: Vendor::MooreThreads,
        tool: "mthreads-gmi",
        model: "mtt-s4000",
        memory_mib: 49_152,
        uuid_of_0: "8a3e0000-0",
        env_of_0: ("MUSA_VISIBLE_DEVICES", "0"),
        node_of_0: "",
        sick: None,
    },
    Listed {
        vendor: Vendor::Iluvatar,
        tool: "ixsmi",
        model: "mr-v50",
        memory_mib: 16_384,
        uuid_of_0: "GPU-ix-0",
        env_of_0: ("CUDA_VISIBLE_DEVICES", "0"),
        node_of_0: "/dev/itrctl",
        sick: None,
    },
    Listed {
        vendor: Vendor::Enflame,
        tool: "efsmi",
        model: "s60",
        memory_mib: 42_976,
        uuid_of_0: "T6R-0",
        env_of_0: ("TOPS_VISIBLE_DEVICES", "0"),
        node_of_0: "",
        sick: Some("efsmi says that it is not well"),
    },
    Listed {
        vendor: Vendor::MetaX,
        tool: "mx-smi",
        model: "mxc500",
        memory_mib: 65_536,
        uuid_of_0: "GPU-mx-0",
        env_of_0: ("CUDA_VISIBLE_DEVICES", "0"),
        node_of_0: "/dev/mxcd",
        sick: Some("mx-smi says Unavailable"),
    },
    Listed {
        vendor: Vendor::Kunlunxin,
        tool: "xpu-smi",
        model: "p800-oam",
        memory_mib: 98_304,
        uuid_of_0: "GPU-xpu-0",
        env_of_0: ("XPU_VISIBLE_DEVICES", "0"),
        node_of_0: "/dev/xpu2",
        sick: None,
    },
    Listed {
        vendor: Vendor::Biren,
        tool: "brsmi",
        model: "biren106m",
        memory_mib: 32_768,
        uuid_of_0: "biren-index-00000",
        env_of_0: ("SUPA_VISIBLE_DEVICES", "0"),
        node_of_0: "/dev/biren/card_0",
        sick: Some("divided into instances, which only its library lists"),
    },
    Listed {
        vendor: Vendor::Gaudi,
        tool: "hl-smi",
        model: "hl-225",
        memory_mib: 98_304,
        uuid_of_0: "01P0-HL2080A0-15-TNPS34-07-01-00",
        env_of_0: ("HABANA_VISIBLE_MODULES", "5"),
        node_of_0: "/dev/accel/accel3",
        sick: Some("the number of its device node is not known"),
    },
    Listed {
        vendor: Vendor::THead,
        tool: "ppu-smi",
        model: "ppu-zw810e",
        memory_mib: 98_304,
        uuid_of_0: "GPU-0000-0",
        env_of_0: ("CUDA_VISIBLE_DEVICES", "0"),
        node_of_0: "/dev/alixpu_ppu0",
        sick: None,
    },
];

struct Machine {
    dir: tempfile::TempDir,
    roots: Roots,
}

impl Machine {
    /// A machine with these tools, by the names of their scripts.
    fn new(tools: &[&str]) -> Machine {
        let dir = tempfile::tempdir().expect("a directory");
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools");
        let roots = Roots {
            sysfs: dir.path().join("sys"),
            tools: vec![dir.path().into()],
            patience: Duration::from_secs(10),
            // What a tool said is asked for again after six of these.
            pause: Duration::ZERO,
            helper: HelperCommand {
                program: std::env::current_exe()
                    .unwrap()
                    .ancestors()
                    .nth(2)
                    .unwrap()
                    .join("examples/ask_library"),
                args: Vec::new(),
            },
            ..Roots::default()
        };
        let machine = Machine { dir, roots };
        for tool in tools {
            machine.install(tool, &fs::read_to_string(scripts.join(tool)).expect("a script"));
        }
        machine
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn install(&self, tool: &str, script: &str) {
        let written = self.file(&format!("{tool}.new"));
        fs::write(&written, script).expect("a file");
        fs::set_permissions(&written, fs::Permissions::from_mode(0o755)).expect("its mode");
        fs::rename(written, self.file(tool)).expect("its name");
    }

    /// Plugs in a card whose node under `/dev/accel` has this number.
    fn plug(&self, place: &str, accel: &str) {
        let dir = self.roots.sysfs.join("bus/pci/devices").join(place);
        fs::create_dir_all(dir.join("accel").join(accel)).expect("a directory");
        fs::write(dir.join("vendor"), "0x1da3").expect("a file");
        fs::write(dir.join("class"), "0x120000").expect("a file");
    }

    fn backend(&self, vendor: Vendor) -> ByLibrary {
        ByLibrary::new(vendor, None, &self.roots).expect("a vendor with a library")
    }
}

fn card(found: &Discovery, logical: u32) -> &Found {
    let mut of = found.devices.iter().filter(|device| device.logical == logical);
    of.next().unwrap_or_else(|| panic!("number {logical} in {found:#?}"))
}

fn findings(found: &Discovery) -> Vec<&str> {
    found.findings.iter().map(|finding| &finding.what[..]).collect()
}

fn why(device: &Found) -> Option<&str> {
    device.fault.as_ref().map(|fault| &*fault.why)
}

#[test]
fn cards_that_a_tool_lists_are_offered_and_shown_to_workers() {
    for listed in &TOOLS {
        let machine = Machine::new(&[listed.tool]);
        if listed.vendor == Vendor::Gaudi {
            machine.plug("0000:2b:00.0", "accel3");
        }
        let mut backend = machine.backend(listed.vendor);
        let found = backend.discover();
        assert_eq!(found.devices.len(), 2, "{}: {found:#?}", listed.tool);
        let of_0 = found.devices.iter().find(|device| *device.uuid == *listed.uuid_of_0);
        let of_0 = of_0.unwrap_or_else(|| panic!("{} in {found:#?}", listed.uuid_of_0));
        assert_eq!((&*of_0.class.model, why(of_0)), (listed.model, None), "{}", listed.tool);
        assert_eq!(of_0.class.memory_bytes, listed.memory_mib << 20, "{}", listed.tool);
        let at = if listed.tool == "brsmi" { "index-00000" } else { "0000:2b:00.0" };
        assert_eq!(of_0.place, at, "{}", listed.tool);
        let of_1 = found.devices.iter().find(|device| device.uuid != of_0.uuid).expect("another");
        assert_eq!((&*of_1.class.model, why(of_1)), (listed.model, listed.sick), "{}", listed.tool);
        assert!(
            findings(&found)[0].starts_with(&format!("found by {}, as lib", listed.tool))
                && findings(&found)[0].ends_with(" not found: nobody watches whether they are well"),
            "{:?}",
            findings(&found)
        );
        let shown = backend.visibility(&[of_0]);
        let variable = shown.env.iter().find(|(name, _)| name == listed.env_of_0.0);
        assert_eq!(variable.map(|(_, value)| &value[..]), Some(listed.env_of_0.1), "{}", listed.tool);
        let node = shown.device_nodes.first().and_then(|node| node.to_str()).unwrap_or("");
        assert_eq!(node, listed.node_of_0, "{}", listed.tool);
    }
}

#[test]
fn a_chip_whose_node_the_tool_does_not_number_is_at_fault() {
    let machine = Machine::new(&["npu-smi"]);
    let script = fs::read_to_string(machine.file("npu-smi")).expect("a script");
    // As older ones have it.
    let old = script
        .replace("Chip Phy-ID                    ", "")
        .replace("    4  ", "  ")
        .replace("    5  ", "  ");
    machine.install("npu-smi", &old);
    let found = machine.backend(Vendor::Ascend).discover();
    for number in [0, 1] {
        let card = card(&found, number);
        assert_eq!(&*card.class.model, "910b3", "{found:#?}");
        assert_eq!(why(card), Some("the number of its device node is not known"));
        assert_eq!(card.nodes, [""; 0].map(PathBuf::from));
    }
    let machine = Machine::new(&["xpu-smi"]);
    let script = fs::read_to_string(machine.file("xpu-smi")).expect("a script");
    machine.install("xpu-smi", &script.replace("Minor Number ", "PCIe Id "));
    let found = machine.backend(Vendor::Kunlunxin).discover();
    // No container gets it; a process finds it by its number.
    assert_eq!((why(card(&found, 0)), card(&found, 0).nodes.len()), (None, 0));
}

/// As a map of chips of the series 950 is printed in a test of SwanHubX/SwanLab; there, boards know no chips.
#[test]
fn a_chip_whose_logical_number_is_not_told_is_at_fault() {
    let machine = Machine::new(&[]);
    machine.install(
        "npu-smi",
        "#!/bin/sh\n\
         case \"$*\" in\n\
         'info -m') echo 'NPU ID  Slot ID  Chip ID  Chip Phy-ID  Chip Name'\n\
         echo '0       1        0        3            Ascend950PR' ;;\n\
         'info -t usages -i 0') printf 'HBM Capacity(MB) : 114688\\nChip ID : 0\\n' ;;\n\
         'info -t board -i 0') printf 'PCIe Bus Info : 0000:F1:00.0\\nChip Count : 1\\n' ;;\n\
         *) echo 'not supported' >&2; exit 1 ;;\n\
         esac\n",
    );
    let found = machine.backend(Vendor::Ascend).discover();
    let [chip] = &found.devices[..] else { panic!("{found:#?}") };
    assert_eq!(why(chip), Some("npu-smi does not tell its logical number"));
    assert_eq!((&*chip.class.model, chip.class.memory_bytes >> 30), ("ascend950pr", 112));
    assert_eq!((&chip.place[..], &chip.nodes[0]), ("0000:f1:00.0", &PathBuf::from("/dev/davinci3")));
}

/// Forms of other versions.
#[test]
fn what_other_versions_of_a_tool_print_is_read_too() {
    let other = |tool: &str, changes: &[(&str, &str)]| {
        let machine = Machine::new(&[tool]);
        let script = fs::read_to_string(machine.file(tool)).expect("a script");
        let changed = changes.iter().fold(script.clone(), |text, (from, to)| text.replace(from, to));
        assert_ne!(changed, script, "{tool}");
        machine.install(tool, &changed);
        let vendor = TOOLS.iter().find(|listed| listed.tool == tool).expect("a tool").vendor;
        let found = machine.backend(vendor).discover();
        let first = card(&found, 0);
        (first.class.model.to_string(), first.class.memory_bytes >> 20, first.uuid.to_string())
    };
    // Memory in bytes, as a number and no text, and names as AMD's tool has them.
    let changes = [
        (r#""vram Total Memory (MiB)": "65536""#, r#""VRAM Total Memory (B)": 68702699520"#),
        ("7100fa0000000001", "0x7100fa0000000001"),
    ];
    let read = other("hy-smi", &changes);
    assert_eq!(read, ("k100-ai".into(), 65_520, "GPU-7100fa0000000001".into()));
    // A name of two words.
    let read = other("mx-smi", &[("    MXC500        0000", "    MetaX C550    0000")]);
    assert_eq!((&read.0[..], read.1), ("c550", 65_536));
    // Wider columns, and a product that is named otherwise.
    let read = other("nvidia-smi", &[("  : ", "          : "), ("H100 80GB HBM3", "A10")]);
    assert_eq!(read, ("a10".into(), 81_920, "GPU-0000-0".into()));
    // Two chips on a card; memory that is no HBM.
    let changes = [
        (
            "0                              1                              -                              -                              Mcu",
            "0                              1                              1                              1                              Ascend 310P3",
        ),
        (
            "1                              0                              1                              5 ",
            "9 - - - ",
        ),
        (
            "        Chip ID                        : 0\nTEXT",
            "        Chip ID                        : 0\n        DDR Capacity(MB)               : 22000\n        Chip ID                        : 1\nTEXT",
        ),
        ("info -t board -i 1 -c 0", "info -t board -i 0 -c 1"),
        ("Ascend 910B3", "Ascend 310P3"),
    ];
    assert_eq!(other("npu-smi", &changes), ("310p3".into(), 65_536, TOOLS[1].uuid_of_0.into()));
}

/// Some are linked against libraries that their vendor puts beside them, and only a shell that was set up for them knows where.
#[test]
fn a_tool_finds_the_libraries_beside_it() {
    let mut machine = Machine::new(&["ixsmi"]);
    let script = fs::read_to_string(machine.file("ixsmi")).expect("a script");
    let dir = machine.dir.path().join("corex");
    for name in ["bin", "lib"] {
        fs::create_dir_all(dir.join(name)).expect("a directory");
    }
    let needs = format!("case \"$LD_LIBRARY_PATH\" in *{}/lib*) ;; *) exit 127 ;; esac", dir.display());
    machine.install("corex/bin/ixsmi", &script.replace("#!/bin/sh\n", &format!("#!/bin/sh\n{needs}\n")));
    machine.roots.tools = vec![dir.join("bin")];
    let found = machine.backend(Vendor::Iluvatar).discover();
    assert_eq!(found.devices.len(), 2, "{found:#?}");

    // Or where the agent was told to look.
    let sdk = machine.dir.path().join("sdk");
    fs::create_dir(&sdk).expect("a directory");
    let needs = format!("case \"$LD_LIBRARY_PATH\" in *{}*) ;; *) exit 127 ;; esac", sdk.display());
    machine.install("ixsmi", &script.replace("#!/bin/sh\n", &format!("#!/bin/sh\n{needs}\n")));
    machine.roots.tools = vec![machine.dir.path().into()];
    machine.roots.libraries = vec![sdk];
    let found = machine.backend(Vendor::Iluvatar).discover();
    assert_eq!(found.devices.len(), 2, "{found:#?}");
}

#[test]
fn a_tool_that_is_of_no_use_is_said_beside_the_library() {
    let says = |script: &str| {
        let machine = Machine::new(&[]);
        machine.install("nvidia-smi", script);
        let found = machine.backend(Vendor::Nvidia).discover();
        assert_eq!(found.devices, []);
        findings(&found).join("\n")
    };
    let without = "libnvidia-ml.so.1 not found; nvidia-smi cannot be used: ";
    assert_eq!(
        says("#!/bin/sh\necho NVIDIA-SMI has failed >&2; exit 9"),
        format!("{without}NVIDIA-SMI has failed")
    );
    assert_eq!(says("#!/bin/sh\necho No devices were found"), format!("{without}it lists no device"));
    let twice = "#!/bin/sh\nfor i in $(seq 257); do echo \"GPU 00000000:2B:00.0\"; done";
    assert_eq!(says(twice), format!("{without}it lists 257 devices, of at most 256"));
    let machine = Machine::new(&[]);
    machine.install("ixsmi", "#!/bin/sh\nfor i in 1 2; do echo '0, a, b, 1 MiB, 0000:2b:00.0'; done");
    let found = machine.backend(Vendor::Iluvatar).discover();
    assert!(findings(&found)[0].ends_with("it lists two devices with the same number"), "{found:#?}");
}

/// A card that sleeps keeps its tool waiting; the agent does not wait for it for long.
#[test]
fn nobody_waits_for_a_slow_tool() {
    let mut machine = Machine::new(&[]);
    let slow = format!("#!/bin/sh\nread line < {}\n", machine.file("gate").display());
    let script = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/nvidia-smi"));
    machine.install("nvidia-smi", &script.expect("a script").replace("#!/bin/sh\n", &slow));
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        machine.file("gate"),
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    )
    .expect("a pipe");
    machine.roots.patience = Duration::from_millis(200);
    let mut backend = machine.backend(Vendor::Nvidia);
    let found = backend.discover();
    assert!(
        findings(&found)[0].ends_with("nvidia-smi cannot be used: it has not answered yet"),
        "{found:#?}"
    );
    fs::write(machine.file("gate"), "go\n").expect("it waits");
    let deadline = Instant::now() + Duration::from_secs(30);
    while backend.discover().devices.len() != 2 {
        assert!(Instant::now() < deadline, "its answer is never taken");
    }
}

/// What a library named keeps its name, and what only a tool found by its place gets one, whoever answers.
#[test]
fn a_card_is_the_same_for_tool_and_library() {
    let machine = Machine::new(&["npu-smi"]);
    let mut backend = machine.backend(Vendor::Ascend);
    let mut devices = backend.discover().devices;
    let place = devices[0].place.clone();
    assert_eq!(*devices[0].uuid, *format!("ascend-{place}"));
    let named = Found { uuid: "die-0".into(), ..devices[0].clone() };
    devices[0] = named;
    backend.health(&mut devices);
    assert_eq!((devices.len(), &*devices[0].uuid, &devices[0].place), (2, "die-0", &place));
    assert_eq!(why(&devices[0]), None);
}
