//! Every vendor's backend through the real path: a library that the test compiles, loaded and called at run time.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, io};

use aquifer_agent::device::caps::Caps;
use aquifer_agent::device::measured::{On, ToMeasure};
use aquifer_agent::device::{Backend, Backends, ByLibrary, Discovery, Found, HelperCommand, Roots};
use aquifer_agent::host::Host;
use aquifer_core::{Health, Isolation, Ports, Slice, Vendor};

/// A stand-in, and what is to be found through it. Card 1 is before card 0 on the bus.
struct Stub {
    vendor: Vendor,
    source: &'static str,
    defines: &'static [&'static str],
    library: &'static str,
    /// Of the library, as findings call it.
    name: &'static str,
    model: &'static str,
    memory_gib: u64,
    uuid_of_0: &'static str,
    /// What a worker that holds card 0 is told.
    env_of_0: &'static [(&'static str, &'static str)],
    node_of_0: &'static str,
    linked: bool,
    /// A function about a card, whose call may hang.
    hangs: &'static str,
    /// A function without which the cards are still found.
    dispensable: &'static str,
    /// What is missing in an older library.
    newer: &'static [&'static str],
    /// What a card is at fault for; `None`: it is only suspect.
    sick: Option<&'static str>,
}

const SHAPED: Stub = Stub {
    vendor: Vendor::Nvidia,
    source: "shaped.c",
    defines: &["-DPREFIX=nvml", "-DNAME=\"NVIDIA H100 80GB HBM3\"", "-DUUID=\"GPU-0000\"", "-DRECOVERY"],
    library: "libnvidia-ml.so.1",
    name: "nvml",
    model: "h100-80gb-hbm3",
    memory_gib: 80,
    uuid_of_0: "GPU-0000-0",
    env_of_0: &[("CUDA_VISIBLE_DEVICES", "GPU-0000-0"), ("NVIDIA_VISIBLE_DEVICES", "GPU-0000-0")],
    node_of_0: "/dev/nvidia1",
    linked: true,
    hangs: "nvmlDeviceGetUUID",
    dispensable: "nvmlDeviceGetMinorNumber",
    newer: &["nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetFieldValues", "nvmlDeviceGetP2PStatus"],
    sick: Some("the driver asks for a restart of the machine"),
};

const STUBS: [Stub; 14] = [
    SHAPED,
    Stub {
        vendor: Vendor::Iluvatar,
        defines: &["-DPREFIX=nvml", "-DNAME=\"Iluvatar MR-V50\"", "-DUUID=\"GPU-ix\"", "-DILUVATAR"],
        library: "libixml.so",
        name: "ixml",
        model: "mr-v50",
        uuid_of_0: "GPU-ix-0",
        env_of_0: &[("CUDA_VISIBLE_DEVICES", "0"), ("IX_VISIBLE_DEVICES", "0")],
        node_of_0: "/dev/iluvatar1",
        newer: &["nvmlDeviceGetMemoryInfo_v2", "ixmlDeviceGetHealth"],
        sick: Some("its PCIe link is not well"),
        ..SHAPED
    },
    Stub {
        vendor: Vendor::THead,
        defines: &["-DPREFIX=hgml", "-DNAME=\"PPU-ZW810E\"", "-DUUID=\"PPU\""],
        library: "libhgml.so",
        name: "hgml",
        model: "ppu-zw810e",
        uuid_of_0: "PPU-0",
        env_of_0: &[("CUDA_VISIBLE_DEVICES", "0"), ("NVIDIA_VISIBLE_DEVICES", "0")],
        node_of_0: "/dev/alixpu_ppu0",
        hangs: "hgmlDeviceGetUUID",
        dispensable: "hgmlDeviceGetMinorNumber",
        newer: &["hgmlDeviceGetMemoryInfo_v2"],
        sick: None,
        ..SHAPED
    },
    Stub {
        vendor: Vendor::Enflame,
        defines: &["-DPREFIX=efml", "-DNAME=\"S90\"", "-DUUID=\"T9R\""],
        library: "libefml.so",
        name: "efml",
        model: "s90",
        uuid_of_0: "T9R-0",
        env_of_0: &[("TOPS_VISIBLE_DEVICES", "0"), ("ENFLAME_VISIBLE_DEVICES", "1")],
        node_of_0: "",
        linked: false,
        hangs: "efmlDeviceGetUUID",
        dispensable: "efmlDeviceGetPciInfo_v3",
        newer: &["efmlDeviceGetMemoryInfo_v2"],
        sick: None,
        ..SHAPED
    },
    Stub {
        vendor: Vendor::Enflame,
        source: "enflame.c",
        defines: &[],
        library: "libefml.so.1.0.0",
        name: "efml",
        model: "s60",
        memory_gib: 48,
        uuid_of_0: "T6R-0",
        env_of_0: &[("TOPS_VISIBLE_DEVICES", "0"), ("ENFLAME_VISIBLE_DEVICES", "0")],
        node_of_0: "",
        linked: false,
        hangs: "EfmlGetDevName",
        dispensable: "EfmlGetDevInfo",
        newer: &["EfmlGetDevIsHealth"],
        sick: Some("efml says that it is not well"),
    },
    Stub {
        vendor: Vendor::Biren,
        source: "biren.c",
        defines: &[],
        library: "libbiren-ml.so.1",
        name: "brml",
        model: "br106m",
        memory_gib: 32,
        uuid_of_0: "BR-0",
        env_of_0: &[("SUPA_VISIBLE_DEVICES", "0"), ("BIREN_VISIBLE_DEVICES", "0")],
        node_of_0: "/dev/biren/card_1",
        linked: true,
        hangs: "brmlDeviceGetMemoryInfo",
        dispensable: "brmlDeviceGetBoardPartNumber",
        newer: &["brmlDeviceGetCount_v1", "brmlDeviceGetHandleByIndex_v1", "brmlDeviceGetPciInfo_v1"],
        sick: Some("its library says that it is not well"),
    },
    Stub {
        vendor: Vendor::Kunlunxin,
        source: "kunlunxin.c",
        defines: &[],
        library: "libxpuml.so",
        name: "xpuml",
        model: "unknown",
        memory_gib: 96,
        uuid_of_0: "02K00Y-0",
        env_of_0: &[("XPU_VISIBLE_DEVICES", "0"), ("CUDA_VISIBLE_DEVICES", "0")],
        node_of_0: "/dev/xpu2",
        linked: false,
        hangs: "xpumlDeviceGetSerial",
        dispensable: "xpumlDeviceGetState",
        newer: &["xpumlDeviceGetState"],
        sick: Some("its library says that it has failed"),
    },
    Stub {
        vendor: Vendor::Gaudi,
        source: "gaudi.c",
        defines: &[],
        library: "libhlml.so",
        name: "hlml",
        model: "hl-225",
        memory_gib: 96,
        uuid_of_0: "01P0-HL0",
        env_of_0: &[("HABANA_VISIBLE_MODULES", "6"), ("HABANA_VISIBLE_DEVICES", "1")],
        node_of_0: "/dev/accel/accel1",
        linked: false,
        hangs: "hlml_device_get_name",
        dispensable: "hlml_device_get_total_ecc_errors",
        newer: &["hlml_device_get_total_ecc_errors"],
        sick: None,
    },
    ASCEND,
    Stub {
        newer: &["dcmiv2_get_device_health"],
        defines: DCMI_2,
        hangs: "dcmiv2_get_device_die",
        linked: false,
        ..ASCEND
    },
    Stub {
        vendor: Vendor::Cambricon,
        source: "cambricon.c",
        defines: &[],
        library: "libcndev.so",
        name: "cndev",
        model: "mlu590-m9",
        memory_gib: 80,
        uuid_of_0: "MLU-44000000-0000-0000-0000-000000000000",
        env_of_0: &[("MLU_VISIBLE_DEVICES", "0"), ("CAMBRICON_VISIBLE_DEVICES", "0")],
        node_of_0: "/dev/cambricon_dev0",
        linked: false,
        hangs: "cndevGetUUID",
        dispensable: "cndevGetCardHealthState",
        newer: &["cndevGetMemoryUsageV2", "cndevGetCardHealthStateV2"],
        sick: Some("cndev says that it is not well"),
    },
    Stub {
        vendor: Vendor::Hygon,
        source: "hygon.c",
        defines: &[],
        library: "librocm_smi64.so",
        name: "rsmi",
        model: "k100-ai",
        memory_gib: 64,
        uuid_of_0: "GPU-abcdef0000",
        env_of_0: &[("HIP_VISIBLE_DEVICES", "0"), ("HYGON_VISIBLE_DEVICES", "0")],
        node_of_0: "/dev/kfd",
        linked: true,
        hangs: "rsmi_dev_pci_id_get",
        dispensable: "rsmi_dev_ecc_count_get",
        newer: &["rsmi_dev_ecc_count_get", "rsmi_topo_get_link_type"],
        sick: None,
    },
    Stub {
        vendor: Vendor::MooreThreads,
        source: "moore_threads.c",
        defines: &[],
        library: "libmtml.so",
        name: "mtml",
        model: "mtt-s4000",
        memory_gib: 48,
        uuid_of_0: "mt-0",
        env_of_0: &[("MUSA_VISIBLE_DEVICES", "0"), ("MTHREADS_VISIBLE_DEVICES", "0")],
        node_of_0: "",
        linked: true,
        hangs: "mtmlDeviceGetName",
        dispensable: "mtmlMemoryGetEccErrorCounter",
        newer: &["mtmlDeviceCountMtLinkLayouts", "mtmlMemoryGetEccErrorCounter"],
        sick: None,
    },
    Stub {
        vendor: Vendor::MetaX,
        source: "metax.c",
        defines: &[],
        library: "libmxsml.so",
        name: "mxsml",
        model: "mxc500",
        memory_gib: 64,
        uuid_of_0: "GPU-mx-0",
        env_of_0: &[("CUDA_VISIBLE_DEVICES", "0")],
        node_of_0: "/dev/mxcd",
        linked: true,
        hangs: "mxSmlGetMemoryInfo",
        dispensable: "mxSmlGetTotalEccErrors",
        newer: &["mxSmlGetDeviceUnavailableReason", "mxSmlGetDeviceTopology"],
        sick: Some("mxsml says that it is not available"),
    },
];

/// The logical number is the runtime's, the physical one that of the device node and of containers.
const ASCEND: Stub = Stub {
    vendor: Vendor::Ascend,
    source: "ascend.c",
    defines: DCMI_1,
    library: "libdcmi.so",
    name: "dcmi",
    model: "910b3",
    memory_gib: 64,
    uuid_of_0: "1000000000000002000000030000000400000005",
    env_of_0: &[("ASCEND_RT_VISIBLE_DEVICES", "0"), ("ASCEND_VISIBLE_DEVICES", "5")],
    node_of_0: "/dev/davinci5",
    linked: true,
    hangs: "dcmi_get_device_chip_info_v2",
    dispensable: "dcmi_get_device_health",
    newer: &[
        "dcmi_get_device_die_v2",
        "dcmi_get_device_chip_info_v2",
        "dcmi_get_device_pcie_info_v2",
        "dcmi_get_device_hbm_info",
    ],
    sick: Some("dcmi reports a critical fault"),
};
const DCMI_1: &[&str] = &["-Ddcmiv2_init=absent"];
const DCMI_2: &[&str] = &["-Ddcmi_init=absent"];
const WITH_XID_RECOVERY: &[&str] =
    &["-DPREFIX=nvml", "-DNAME=\"NVIDIA H100 80GB HBM3\"", "-DUUID=\"GPU-0000\"", "-DXID", "-DRECOVERY"];
const WITH_MIG: &[&str] =
    &["-DPREFIX=nvml", "-DNAME=\"NVIDIA H100 80GB HBM3\"", "-DUUID=\"GPU-0000\"", "-DMIG"];
const WITH_MIG_DRIVER: &[&str] =
    &["-DPREFIX=nvml", "-DNAME=\"NVIDIA H100 80GB HBM3\"", "-DUUID=\"GPU-0000\"", "-DMIG", "-DRECOVERY"];
const CRASH_AT_LOAD: &[&str] =
    &["-DPREFIX=nvml", "-DNAME=\"NVIDIA H100 80GB HBM3\"", "-DUUID=\"GPU-0000\"", "-DCRASH_AT_LOAD"];
const WITH_XID: &[&str] =
    &["-DPREFIX=nvml", "-DNAME=\"NVIDIA H100 80GB HBM3\"", "-DUUID=\"GPU-0000\"", "-DXID"];

/// The process that has a library, beside the tests.
fn helper() -> HelperCommand {
    let tests = std::env::current_exe().unwrap();
    let examples = tests.parent().unwrap().parent().unwrap().join("examples");
    HelperCommand { program: examples.join("ask_library"), args: Vec::new() }
}

/// A directory with a stand-in; `None`, said aloud, where there is no C compiler.
struct Machine {
    dir: tempfile::TempDir,
    roots: Roots,
}

impl Machine {
    fn new(stub: &Stub, without: &[&str]) -> Option<Machine> {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stubs").join(stub.source);
        let mut compiler = Command::new("cc");
        compiler
            .args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(dir.path().join(stub.library));
        compiler.arg(format!("-DDIR=\"{}\"", dir.path().display())).args(stub.defines).arg(source);
        compiler
            .args(without.iter().enumerate().map(|(number, symbol)| format!("-D{symbol}=absent_{number}")));
        match compiler.status() {
            Ok(status) => assert!(status.success(), "{} does not compile", stub.source),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                _ = writeln!(std::io::stderr(), "skipped: no C compiler");
                return None;
            }
            Err(error) => panic!("cc: {error}"),
        }
        let roots = Roots {
            sysfs: dir.path().join("sys"),
            libraries: vec![dir.path().into()],
            tools: Vec::new(),
            helper: helper(),
            patience: Duration::from_secs(10),
            pause: Duration::from_millis(1),
            caps: Caps { dir: dir.path().join("caps"), table: dir.path().join("mig-minors") },
            ..Roots::default()
        };
        Some(Machine { dir, roots })
    }

    fn backend(&self, stub: &Stub) -> ByLibrary {
        ByLibrary::new(stub.vendor, None, &self.roots).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn begin(&self, what: &str) {
        fs::write(self.file(what), "").unwrap();
    }

    fn end(&self, what: &str) {
        fs::remove_file(self.file(what)).unwrap();
    }

    /// Plugs cards into the bus.
    fn plug(&self, vendor: &str, places: &[&str]) {
        for place in places {
            let dir = self.roots.sysfs.join("bus/pci/devices").join(place);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("vendor"), vendor).unwrap();
            fs::write(dir.join("class"), "0x120000").unwrap();
        }
    }
}

fn card<'a>(found: &'a Discovery, uuid: &str) -> &'a Found {
    found
        .devices
        .iter()
        .find(|device| *device.uuid == *uuid)
        .unwrap_or_else(|| panic!("{uuid} in {found:#?}"))
}

fn faults(found: &Discovery) -> Vec<&str> {
    let faults = found.devices.iter().filter_map(|device| device.fault.as_ref());
    faults.filter(|fault| Health::Quarantined < fault.health).map(|fault| &*fault.why).collect()
}

fn findings(found: &Discovery) -> Vec<String> {
    found.findings.iter().map(|finding| finding.what.clone()).collect()
}

/// The healthy machine, of a whole library and of an old one.
fn assert_well(stub: &Stub, found: &Discovery, is_old: bool) {
    assert_eq!((found.devices.len(), faults(found)), (2, vec![]), "{}: {found:#?}", stub.name);
    assert_eq!(findings(found), [""; 0], "{}", stub.name);
    let device = card(found, stub.uuid_of_0);
    assert_eq!((device.class.vendor, &*device.class.model), (stub.vendor, stub.model));
    assert_eq!(device.class.memory_bytes, stub.memory_gib << 30, "{}", stub.name);
    assert_eq!(device.place, "0000:2b:00.0", "{}", stub.name);
    let linked = stub.linked && !(is_old && stub.newer.iter().any(|symbol| is_about_links(symbol)));
    assert!(
        found.devices.iter().all(|device| device.island == linked.then_some(0)),
        "{}: {found:#?}",
        stub.name
    );
}

fn is_about_links(symbol: &str) -> bool {
    ["P2P", "topo", "Topology", "MtLink"].iter().any(|part| symbol.contains(part))
}

#[test]
fn two_healthy_cards_are_found_and_shown_to_workers() {
    for stub in &STUBS {
        let Some(machine) = Machine::new(stub, &[]) else { return };
        let mut backend = machine.backend(stub);
        let found = backend.discover();
        assert_well(stub, &found, false);
        assert_eq!(backend.discover(), found, "{}: a second look is like the first", stub.name);
        let shown = backend.visibility(&[card(&found, stub.uuid_of_0)]);
        let env: Vec<(&str, &str)> = shown.env.iter().map(|(key, value)| (&key[..], &value[..])).collect();
        assert_eq!(env, stub.env_of_0, "{}", stub.name);
        let nodes: Vec<&str> = shown.device_nodes.iter().map(|node| node.to_str().unwrap()).collect();
        assert_eq!(nodes.first().copied().unwrap_or(""), stub.node_of_0, "{}", stub.name);
        let none = backend.visibility(&[]);
        assert_eq!(none.env[0].1, "", "{}: without a device it sees none", stub.name);
        assert!(none.device_nodes.is_empty());
    }
}

#[test]
fn a_card_that_is_lost_or_sick_is_at_fault_and_hides_no_other() {
    for stub in &STUBS {
        let Some(machine) = Machine::new(stub, &[]) else { return };
        let mut backend = machine.backend(stub);
        let well = backend.discover();
        machine.begin("lost");
        let found = backend.discover();
        assert_eq!(found.devices.len(), 2, "{}: {found:#?}", stub.name);
        let faults_now = faults(&found);
        assert_eq!(faults_now.len(), 1, "{}: {found:#?}", stub.name);
        let gone = faults_now[0];
        assert!(gone == "fell off the bus" || gone.starts_with("cannot be read: "), "{}: {gone}", stub.name);
        assert_eq!(card(&found, stub.uuid_of_0).fault, None, "{}", stub.name);
        let names =
            |found: &Discovery| found.devices.iter().map(|device| device.uuid.clone()).collect::<Vec<_>>();
        assert_eq!(names(&found), names(&well), "{}: a lost card keeps its name", stub.name);
        // One that was lost before anybody looked is listed, too.
        let mut late = machine.backend(stub);
        if stub.vendor != Vendor::MooreThreads {
            let found = late.discover();
            assert_eq!((found.devices.len(), faults(&found).len()), (2, 1), "{}: {found:#?}", stub.name);
        }
        machine.end("lost");
        assert_well(stub, &backend.discover(), false);
        machine.begin("sick");
        let found = backend.discover();
        let suspects = ["-DPREFIX=hgml", "-DPREFIX=efml"].iter().all(|define| !stub.defines.contains(define));
        match stub.sick {
            Some(fault) => assert_eq!(
                faults(&found).first().map(|said| said.split("; ").next().unwrap()),
                Some(fault),
                "{}",
                stub.name
            ),
            None if suspects => {
                assert_eq!(
                    (faults(&found), findings(&found)),
                    (vec![], vec!["device 1: uncorrected memory errors".to_string()]),
                    "{}",
                    stub.name
                );
            }
            None => (),
        }
        machine.end("sick");
        assert_well(stub, &backend.discover(), false);
    }
}

/// Looks until all is well again.
fn until_well(stub: &Stub, backend: &mut ByLibrary) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut found = backend.discover();
    while found.devices.len() != 2 || !faults(&found).is_empty() {
        assert!(Instant::now() < deadline, "{}: nobody asks again: {found:#?}", stub.name);
        std::thread::yield_now();
        found = backend.discover();
    }
    assert_well(stub, &found, false);
}

/// What one card costs that breaks a call about it, which is asked again only after a while.
///
/// * `how`: what the stand-in does. `why`: what is said of it, with `LIBRARY` and `FUNCTION`.
fn one_card_breaks(stub: &Stub, how: &str, why: &str) {
    let Some(mut machine) = Machine::new(stub, &[]) else { return };
    // A call that hangs costs all of it; the pause is longer than a second look takes on a busy machine.
    machine.roots.patience = Duration::from_secs(if how == "hang" { 1 } else { 10 });
    machine.roots.pause = Duration::from_secs(3);
    let begun = format!("{how}-{}", stub.hangs);
    machine.begin(&begun);
    let mut backend = machine.backend(stub);
    let found = backend.discover();
    let why = why.replace("LIBRARY", stub.library).replace("FUNCTION", stub.hangs);
    assert_eq!((found.devices.len(), faults(&found)), (2, vec![&why[..]]), "{found:#?}");
    assert_eq!(card(&found, stub.uuid_of_0).fault, None, "{}", stub.name);
    machine.end(&begun);
    assert_eq!(faults(&backend.discover()), [why], "it is not asked again at once");
    until_well(stub, &mut backend);
}

fn with_each_stub(test: impl Fn(&Stub) + Sync) {
    std::thread::scope(|scope| STUBS.iter().for_each(|stub| _ = scope.spawn(|| test(stub))));
}

#[test]
fn a_call_that_hangs_costs_its_card_and_no_other() {
    let why = "LIBRARY did not answer within 1 s: FUNCTION has not returned";
    with_each_stub(|stub| one_card_breaks(stub, "hang", why));
}

#[test]
fn a_library_that_crashes_costs_the_card_it_was_asked_about_and_neither_another_nor_who_asks() {
    with_each_stub(|stub| one_card_breaks(stub, "crash", "LIBRARY crashed (SIGSEGV) in FUNCTION"));
    one_card_breaks(&SHAPED, "abort", "LIBRARY crashed (SIGABRT) in FUNCTION");
    one_card_breaks(&SHAPED, "exit", "LIBRARY ended its process (exit code 3) in FUNCTION");
}

#[test]
fn a_library_that_crashes_in_a_call_about_no_card_is_named_for_every_card_and_tried_again() {
    for function in ["nvmlInit_v2", "nvmlDeviceGetCount_v2"] {
        let Some(machine) = Machine::new(&SHAPED, &[]) else { return };
        machine.plug("0x10de", &["0000:2a:00.0", "0000:2b:00.0"]);
        let crash = format!("crash-{function}");
        let why = format!("libnvidia-ml.so.1 crashed (SIGSEGV) in {function}");
        machine.begin(&crash);
        let mut backend = machine.backend(&SHAPED);
        let found = backend.discover();
        assert_eq!(faults(&found), [&why[..]; 2], "{found:#?}");
        assert_eq!(findings(&found), [format!("2 devices on PCI, but {why}")]);
        machine.end(&crash);
        until_well(&SHAPED, &mut backend);
    }
    // Cards that were known keep their names.
    let Some(machine) = Machine::new(&SHAPED, &[]) else { return };
    machine.plug("0x10de", &["0000:2a:00.0", "0000:2b:00.0"]);
    let mut backend = machine.backend(&SHAPED);
    let mut devices = backend.discover().devices;
    let about = |devices: &[Found]| -> Vec<(String, Option<String>)> {
        let fault = |it: &Found| it.fault.as_ref().map(|fault| fault.why.to_string());
        devices.iter().map(|it| (it.uuid.to_string(), fault(it))).collect()
    };
    let names = ["GPU-0000-0", "GPU-0000-1"].map(String::from);
    machine.begin("crash-nvmlDeviceGetCount_v2");
    backend.health(&mut devices);
    let why = Some("libnvidia-ml.so.1 crashed (SIGSEGV) in nvmlDeviceGetCount_v2".to_string());
    assert_eq!(about(&devices), names.clone().map(|name| (name, why.clone())));
    let is_suspect = |it: &Found| it.fault.as_ref().is_some_and(|fault| fault.health == Health::Suspect);
    assert!(devices.iter().all(is_suspect), "what runs on them runs on: {devices:#?}");
    machine.end("crash-nvmlDeviceGetCount_v2");
    let deadline = Instant::now() + Duration::from_secs(30);
    while devices.iter().any(|device| device.fault.is_some()) {
        assert!(Instant::now() < deadline, "{devices:#?}");
        backend.health(&mut devices);
    }
    assert_eq!(about(&devices), names.map(|name| (name, None)));
    // While it is loaded.
    let stub = Stub { defines: CRASH_AT_LOAD, ..SHAPED };
    let Some(machine) = Machine::new(&stub, &[]) else { return };
    machine.plug("0x10de", &["0000:2a:00.0"]);
    let found = machine.backend(&stub).discover();
    assert_eq!(faults(&found), ["libnvidia-ml.so.1 crashed (SIGSEGV) in its initialisers"]);
}

#[test]
fn a_process_that_is_ended_while_nothing_is_asked_says_nothing_of_cards() {
    let Some(machine) = Machine::new(&SHAPED, &[]) else { return };
    let mut backend = machine.backend(&SHAPED);
    assert_well(&SHAPED, &backend.discover(), false);
    let own = machine.file(SHAPED.library).display().to_string();
    let has_it =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.contains(&own));
    let processes = || {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).filter(has_it)
    };
    let first: Vec<i32> = processes().collect();
    let [helper] = first[..] else { panic!("{first:?}") };
    assert!(Command::new("kill").args(["-9", &helper.to_string()]).status().unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(30);
    while processes().next().is_some() {
        assert!(Instant::now() < deadline, "{helper} lives");
    }
    assert_well(&SHAPED, &backend.discover(), false);
    assert_eq!(processes().count(), 1, "another one has the library");
    drop(backend);
    assert_eq!(processes().count(), 0);
}

#[test]
fn a_library_that_starts_slowly_is_waited_for_and_one_that_never_does_is_ended() {
    let Some(machine) = Machine::new(&SHAPED, &[]) else { return };
    machine.begin("hang-nvmlInit_v2");
    let roots = Roots { patience: Duration::from_millis(300), ..machine.roots.clone() };
    let mut backend = ByLibrary::new(Vendor::Nvidia, None, &roots).unwrap();
    let said = findings(&backend.discover());
    assert_eq!(said, ["nvml has not started within 0.3 s, and is waited for"]);
    let why = "libnvidia-ml.so.1 did not answer within 3.6 s: nvmlInit_v2 has not returned";
    let deadline = Instant::now() + Duration::from_secs(30);
    while findings(&backend.discover()) != [why] {
        assert!(Instant::now() < deadline, "{:?}", findings(&backend.discover()));
    }
    machine.end("hang-nvmlInit_v2");
    until_well(&SHAPED, &mut backend);
}

#[test]
fn a_symbol_that_is_missing_or_an_old_library_still_gives_the_cards() {
    for stub in &STUBS {
        let Some(machine) = Machine::new(stub, &[stub.dispensable]) else { return };
        let found = machine.backend(stub).discover();
        assert_eq!((found.devices.len(), faults(&found)), (2, vec![]), "{}: {found:#?}", stub.name);
        let Some(machine) = Machine::new(stub, stub.newer) else { return };
        assert_well(stub, &machine.backend(stub).discover(), true);
    }
    // Without its physical number a card would be taken for another one.
    let number = "dcmi_get_device_phyid_from_logicid";
    let Some(machine) = Machine::new(&ASCEND, &[number]) else { return };
    let why = format!("cannot be read: the library has no {number}");
    assert_eq!(faults(&machine.backend(&ASCEND).discover()), [&why[..]; 2]);
}

#[test]
fn initialisation_that_fails_names_its_reason_for_every_card_and_is_tried_again() {
    for stub in &STUBS {
        let Some(mut machine) = Machine::new(stub, &[]) else { return };
        machine.roots.pause = Duration::from_millis(30);
        machine.begin("no-init");
        let mut backend = machine.backend(stub);
        let found = backend.discover();
        let said = findings(&found);
        assert!(
            said.len() == 1 && said[0].starts_with(&format!("{} cannot be used: ", stub.name)),
            "{said:?}"
        );
        machine.end("no-init");
        assert_eq!(findings(&backend.discover()), said, "not at once");
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut found = backend.discover();
        while found.devices.is_empty() {
            assert!(Instant::now() < deadline, "{}: nobody tries again", stub.name);
            std::thread::yield_now();
            found = backend.discover();
        }
        assert_well(stub, &found, false);
    }
}

#[test]
fn cards_on_the_bus_without_a_library_are_listed_with_the_reason() {
    let Some(machine) = Machine::new(&ASCEND, &[]) else { return };
    machine.plug("0x19e5", &["0000:2a:00.0", "0000:2b:00.0", "0000:2c:00.0"]);
    fs::rename(machine.file("libdcmi.so"), machine.file("elsewhere")).unwrap();
    let mut backend = machine.backend(&ASCEND);
    let mut devices = Vec::new();
    let said = backend.health(&mut devices);
    assert_eq!(said[0].to_string(), "ascend: 3 devices on PCI, but libdcmi.so not found");
    let about: Vec<_> = devices
        .iter()
        .map(|device| (&*device.uuid, device.fault.as_ref().map(|fault| &*fault.why)))
        .collect();
    let why = Some("libdcmi.so not found");
    assert_eq!(
        about,
        [("ascend-0000:2a:00.0", why), ("ascend-0000:2b:00.0", why), ("ascend-0000:2c:00.0", why)]
    );
    // The driver comes up: each card is what it is where it was, but for one that the library does not know.
    fs::rename(machine.file("elsewhere"), machine.file("libdcmi.so")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut said = Vec::new();
    while devices[1].fault.is_some() {
        assert!(Instant::now() < deadline, "{devices:#?}");
        said = backend.health(&mut devices);
    }
    assert_eq!(devices.len(), 3);
    assert_eq!((&*devices[1].uuid, &*devices[0].class.model), (ASCEND.uuid_of_0, "910b3"));
    assert_eq!(said[0].what, "1 more device on PCI that dcmi does not list: 0000:2c:00.0");
    // A library that fails later adds no cards.
    machine.begin("lost");
    backend.health(&mut devices);
    assert_eq!(devices.len(), 3);
}

fn of_vendor(vendor: Vendor) -> impl Iterator<Item = &'static Stub> {
    STUBS.iter().filter(move |stub| stub.vendor == vendor)
}

/// What the second card is, in the end.
fn health_of_1(machine: &Machine, backend: &mut ByLibrary, codes: &str) -> Option<(Health, String)> {
    fs::write(machine.file("codes"), codes).unwrap();
    let found = backend.discover();
    assert_eq!(found.devices.len(), 2, "{found:#?}");
    let fault = found.devices.iter().find_map(|device| device.fault.clone())?;
    Some((fault.health, fault.why.to_string()))
}

#[test]
fn error_codes_of_ascend_say_what_is_to_be_done() {
    for stub in of_vendor(Vendor::Ascend) {
        let Some(machine) = Machine::new(stub, &[]) else { return };
        let mut backend = machine.backend(stub);
        let mut of = |codes: &str| health_of_1(&machine, &mut backend, codes);
        let says = |health, why: &str| Some((health, why.to_string()));
        assert_eq!(of("80e01801 80c98008 80e21007 12345678"), None, "nothing that concerns the card");
        assert_eq!(of("81a3880c"), says(Health::Suspect, "error code 81a3880c: it is less than well"));
        let idle = "error code 8c124e00: drain the card and reset it";
        assert_eq!(of("81a3880c 8c124e00"), says(Health::Draining, idle), "the worst one counts");
        let reset = "error code 40f84e00: reset the card";
        assert_eq!(of("40f84e00"), says(Health::ResetWanted, reset));
        let apart = "error code 80e18402: keep the card away and have it looked at";
        assert_eq!(of("40f84e00 80e18402"), says(Health::Faulty, apart));
        let (_, many) = of("80cf8000 80cf8008 80cf8009 80df8000 80df8008 80df8009").unwrap();
        assert!(many.starts_with("error code 80cf8000: ") && many.ends_with("; 2 more"), "{many}");
        machine.begin("sick");
        assert_eq!(of("40f84e00"), says(Health::ResetWanted, reset), "that it is not well is known");
        let bad = "dcmi reports a critical fault";
        assert_eq!(of("81a3880c"), says(Health::Faulty, bad), "the code does not say what is to be done");
        assert_eq!(of(""), says(Health::Faulty, bad));
    }
}

#[test]
fn a_code_of_ascend_that_comes_again_keeps_the_card_away_and_a_program_s_own_does_not() {
    for stub in of_vendor(Vendor::Ascend) {
        let Some(machine) = Machine::new(stub, &[]) else { return };
        let mut backend = machine.backend(stub);
        let mut of = |codes: &str| health_of_1(&machine, &mut backend, codes);
        // RestartRequest: a program's own, each time.
        assert_eq!((of("80c98008"), of("80c98008"), of("")), (None, None, None), "it came once, and stayed");
        let why = "code 80c98008 came 2 times within 24 h: keep the card away and have it looked at";
        assert_eq!(of("80c98008"), Some((Health::Faulty, why.to_string())));
        assert_eq!(of(""), Some((Health::Faulty, why.to_string())), "nothing is said now");
        let Some(machine) = Machine::new(stub, &[]) else { return };
        let mut backend = machine.backend(stub);
        let mut of = |codes: &str| health_of_1(&machine, &mut backend, codes);
        for _ in 0..5 {
            // NotHandle, and three of another in a day are too many.
            assert_eq!((of("80e21007"), of("")), (None, None));
        }
        let level = |said: Option<(Health, String)>| said.map(|(health, _)| health);
        assert_eq!((level(of("80e18005")), of("")), (Some(Health::ResetWanted), None));
        assert_eq!((level(of("80e18005")), of("")), (Some(Health::ResetWanted), None));
        assert_eq!(level(of("80e18005")), Some(Health::Faulty));
    }
}

#[test]
fn incidents_of_cambricon_are_told_from_one_another() {
    for stub in of_vendor(Vendor::Cambricon) {
        let Some(machine) = Machine::new(stub, &[]) else { return };
        let mut backend = machine.backend(stub);
        let mut of = |codes: &str| health_of_1(&machine, &mut backend, codes);
        let says = |health, why: &str| Some((health, why.to_string()));
        assert_eq!(
            of("1a 5"),
            says(Health::Suspect, "it is too hot; its PCIe link is of too low a generation")
        );
        let unclear = "cndev warns of an incident";
        assert_eq!(of("e"), says(Health::Suspect, unclear), "a corrected error alone is only told");
        let memory = "an uncorrected memory error: drain the card and reset it";
        assert_eq!(of("9 f"), says(Health::Draining, memory));
        let row = "its memory has a row that could not be remapped: replace it";
        assert_eq!(of("12"), says(Health::Faulty, row));
        assert_eq!(of(""), None);
    }
}

#[test]
fn a_card_that_its_hardware_slows_down_takes_no_new_work() {
    let telling = [Vendor::Nvidia, Vendor::Iluvatar, Vendor::Gaudi, Vendor::MetaX, Vendor::Cambricon];
    for stub in telling.into_iter().flat_map(of_vendor) {
        let Some(machine) = Machine::new(stub, &[]) else { return };
        let mut backend = machine.backend(stub);
        let mut health = || health_of_1(&machine, &mut backend, "");
        assert_eq!(health(), None, "{}: a limit of power is no fault", stub.name);
        machine.begin("hot");
        let hot = "its hardware slows it down: it is too hot";
        assert_eq!(health(), Some((Health::Suspect, hot.into())), "{}", stub.name);
        machine.end("hot");
        assert_eq!(health(), None, "{}", stub.name);
    }
}

#[test]
fn what_a_card_of_nvidia_is_measured_under_and_whether_a_program_uses_it() {
    let Some(machine) = Machine::new(&SHAPED, &[]) else { return };
    let mut backend = machine.backend(&SHAPED);
    let used = |found: &Discovery| -> Vec<bool> {
        ["GPU-0000-0", "GPU-0000-1"].map(|uuid| card(found, uuid).is_used).into()
    };
    assert_eq!(used(&backend.discover()), [false, false]);
    assert_eq!(backend.measured_under().as_deref(), Some("570.86.15"));
    for many in ["used", "crowded"] {
        machine.begin(many);
        assert_eq!(used(&backend.discover()), [false, true], "{many}");
        machine.end(many);
    }
    // Older libraries have older calls; of one that has none nobody knows, and no card of it is measured. Nor is one of a
    // library that does not say its version.
    let calls = ["_v3", "_v2", ""].map(|version| format!("nvmlDeviceGetComputeRunningProcesses{version}"));
    for missing in 1..=3 {
        let missing: Vec<&str> = calls.iter().take(missing).map(String::as_str).collect();
        let Some(old) = Machine::new(&SHAPED, &missing) else { return };
        old.begin("used");
        let told = missing.len() < 3;
        assert_eq!(used(&old.backend(&SHAPED).discover()), [!told, true], "without {missing:?}");
    }
    let Some(older) = Machine::new(&SHAPED, &["nvmlSystemGetDriverVersion"]) else { return };
    let mut backend = older.backend(&SHAPED);
    assert_eq!((backend.discover().devices.len(), backend.measured_under()), (2, None));
    for stub in STUBS.iter().filter(|stub| stub.vendor != Vendor::Nvidia) {
        let Some(machine) = Machine::new(stub, &[]) else { return };
        let mut backend = machine.backend(stub);
        backend.discover();
        assert_eq!(backend.measured_under(), None, "{}: the worker has no kernels for it", stub.name);
    }
}

#[test]
fn one_card_of_a_class_is_measured_that_nobody_uses_and_none_that_is_to_be_parted() {
    let Some(machine) = Machine::new(&SHAPED, &[]) else { return };
    let open =
        |roots: &Roots| Backends::open(&"nvidia".parse().unwrap(), &Host::read(), roots, None).unwrap();
    let on = |of: &[ToMeasure]| -> Vec<String> {
        let card = |of: &ToMeasure| match &of.on {
            On::Card(env) => format!("{} {}", of.index, env[0].1),
            On::Core(core) => format!("core {core}"),
            On::Site(_) => "a program of the site".into(),
        };
        of.iter().map(card).collect()
    };
    let mut backends = open(&machine.roots);
    assert_eq!(on(&backends.to_measure(false, |_| true)), ["0 GPU-0000-1"]);
    assert_eq!(on(&backends.to_measure(false, |index| index != 0)), ["1 GPU-0000-0"]);
    machine.begin("used");
    backends.refresh();
    assert_eq!(on(&backends.to_measure(false, |_| true)), ["1 GPU-0000-0"]);
    assert_eq!(on(&backends.to_measure(false, |index| index == 0)), [""; 0]);
    let in_use = |index: fn(u16) -> bool| -> Vec<String> {
        backends.in_use(index).iter().map(|class| class.model.to_string()).collect()
    };
    assert_eq!((in_use(|_| true), in_use(|index| index == 0)), (vec![], vec!["h100-80gb-hbm3".into()]));
    let stub = Stub { defines: WITH_MIG_DRIVER, ..SHAPED };
    let Some(machine) = Machine::new(&stub, &[]) else { return };
    // A card, and slices of another one, which are a class of their own.
    assert_eq!(on(&open(&machine.roots).to_measure(false, |_| true)), ["0 GPU-0000-1", "1 MIG-0000-0"]);
    let roots = Roots { parts_on_demand: [Vendor::Nvidia].into(), ..machine.roots.clone() };
    assert_eq!(on(&open(&roots).to_measure(false, |index| index != 0)), [""; 0]);
}

#[test]
fn cards_that_can_be_parted_say_so_where_that_is_switched_on() {
    let cambricon = STUBS.iter().find(|stub| stub.vendor == Vendor::Cambricon).unwrap();
    for (stub, set_up) in [(&ASCEND, ""), (cambricon, "smlu")] {
        let Some(machine) = Machine::new(stub, &[]) else { return };
        let levels = |on_demand: &[Vendor]| -> Vec<(u64, Isolation)> {
            let parts_on_demand = on_demand.iter().copied().collect();
            let roots = Roots { parts_on_demand, ..machine.roots.clone() };
            let choice = stub.vendor.to_string().parse().unwrap();
            let backends = Backends::open(&choice, &Host::read(), &roots, None).unwrap();
            backends.devices().iter().map(|it| (it.class.memory_bytes >> 30, it.isolation)).collect()
        };
        let all = |level: Isolation| vec![(stub.memory_gib, level); 2];
        if !set_up.is_empty() {
            assert_eq!(levels(&[stub.vendor]), all(Isolation::Advisory), "the card is not set up for it");
            machine.begin(set_up);
        }
        assert_eq!(levels(&[stub.vendor]), all(Isolation::Limited), "{}", stub.vendor);
        assert_eq!(levels(&[Vendor::Nvidia]), all(Isolation::Advisory), "{}", stub.vendor);
        let known = machine.backend(stub).discover().devices;
        assert!(known.iter().all(|it| it.parts == Some(Isolation::Limited)), "people are told: {known:#?}");
    }
    // A driver that makes no virtual chips.
    let Some(machine) = Machine::new(&ASCEND, &["dcmi_get_device_info"]) else { return };
    let roots = Roots { parts_on_demand: [Vendor::Ascend].into(), ..machine.roots.clone() };
    let backends = Backends::open(&"ascend".parse().unwrap(), &Host::read(), &roots, None).unwrap();
    assert_eq!(backends.devices()[0].isolation, Isolation::Advisory);
}

/// Two cards below one switch, near the same memory.
#[test]
fn where_cards_hang_is_reported_and_kept() {
    let Some(machine) = Machine::new(&SHAPED, &[]) else { return };
    let bus = machine.roots.sysfs.join("bus/pci/devices");
    fs::create_dir_all(&bus).unwrap();
    let put = |above: &str, place: &str| {
        let real = machine.roots.sysfs.join("devices/pci0000:16").join(above).join(place);
        fs::create_dir_all(&real).unwrap();
        for (file, text) in [("vendor", "0x10de"), ("class", "0x030200"), ("numa_node", "1")] {
            fs::write(real.join(file), text).unwrap();
        }
        std::os::unix::fs::symlink(&real, bus.join(place)).unwrap();
    };
    put("0000:16:01.0/0000:17:00.0/0000:18:00.0", "0000:2a:00.0");
    put("0000:16:01.0/0000:17:00.0/0000:18:01.0", "0000:2b:00.0");
    put("0000:16:02.0", "0000:2c:00.0");
    let mut backends =
        Backends::open(&"nvidia,cpu:0".parse().unwrap(), &Host::read(), &machine.roots, None).unwrap();
    let seen = |backends: &Backends| -> Vec<(Option<u16>, Option<u16>)> {
        let told = backends.devices();
        told.iter().map(|device| (device.locality.switch, device.locality.numa_node)).collect()
    };
    let all = [(None, None), (Some(0), Some(1)), (Some(0), Some(1))];
    assert_eq!(seen(&backends), all, "a core hangs nowhere");
    fs::remove_file(bus.join("0000:2a:00.0")).unwrap();
    backends.refresh();
    assert_eq!(seen(&backends), all, "that does not change while the machine is up");
}

/// Cards that are linked with those of other nodes give their node a label, which jobs can require.
#[test]
fn a_node_has_the_label_of_the_super_pod_that_its_cards_tell() {
    const FABRIC: &[&str] =
        &["-DPREFIX=nvml", "-DNAME=\"NVIDIA GB200\"", "-DUUID=\"GPU-0000\"", "-DFABRIC", "-DRECOVERY"];
    let label = |backends: &Backends, given: &[(&str, &str)]| -> Option<String> {
        let given = given.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let inventory = backends.inventory(&Host::read(), "", Ports { first: 1, last: 2 }, &given);
        inventory.labels.get("super-pod").map(ToString::to_string)
    };
    let open = |machine: &Machine, vendor: &str| {
        Backends::open(&vendor.parse().unwrap(), &Host::read(), &machine.roots, None).unwrap()
    };
    let of_clique_7 = Some("nvlink-a0a1a2a3a4a5a6a7a8a9aaabacadaeaf.7".to_string());
    let Some(machine) = Machine::new(&Stub { defines: FABRIC, ..SHAPED }, &[]) else { return };
    assert_eq!(label(&open(&machine, "nvidia"), &[]), of_clique_7);
    let given = [("super-pod", "mine")];
    assert_eq!(
        label(&open(&machine, "nvidia"), &given).as_deref(),
        Some("mine"),
        "the administrator knows better"
    );
    // Links within a machine alone are none to others.
    machine.begin("alone");
    assert_eq!(label(&open(&machine, "nvidia"), &[]), None);
    machine.end("alone");
    // A card that registers late is asked again, and one in another clique takes the label.
    machine.begin("registering");
    let mut backends = open(&machine, "nvidia");
    assert_eq!(label(&backends, &[]), of_clique_7);
    machine.end("registering");
    machine.begin("split");
    assert!(backends.refresh(), "the label is another one");
    assert_eq!(label(&backends, &[]), None);
    let told = backends.findings().iter().map(|finding| &finding.what[..]).collect::<Vec<_>>();
    assert!(
        told.join("\n").contains("in several super-pods, so the node has no label of one: nvlink-"),
        "{told:?}"
    );

    let Some(machine) = Machine::new(&ASCEND, &[]) else { return };
    assert_eq!(label(&open(&machine, "ascend"), &[]), None);
    machine.begin("super-pod");
    assert_eq!(label(&open(&machine, "ascend"), &[]).as_deref(), Some("ascend-17"));
}

#[test]
fn nodes_of_other_devices_are_hidden_where_that_changes_no_number() {
    let hidden = |stub: &Stub, held: &[u16]| -> Option<Vec<String>> {
        let machine = Machine::new(stub, &[])?;
        let choice = stub.vendor.to_string().parse().unwrap();
        let backends = Backends::open(&choice, &Host::read(), &machine.roots, None).unwrap();
        let (contained, _) = backends.in_container(held, None);
        assert!(contained.hidden_nodes.is_empty(), "a container has no other nodes");
        assert!(backends.visibility(held, None).hidden_nodes.is_empty(), "nothing is hidden");
        let nodes = backends.with_others_hidden(held, None).hidden_nodes;
        let own = format!("{}/", machine.dir.path().display());
        Some(nodes.iter().map(|node| node.display().to_string().replace(&own, "")).collect())
    };
    let Some(of_one) = hidden(&SHAPED, &[0]) else { return };
    assert_eq!(of_one, ["/dev/nvidia1", "caps"], "index 0 has minor number 0");
    assert_eq!(hidden(&SHAPED, &[]).unwrap(), ["/dev/nvidia0", "/dev/nvidia1", "caps"]);
    assert_eq!(hidden(&SHAPED, &[0, 1]).unwrap(), ["caps"]);
    // Slices of a card have its node; which are their own beside that is not known here.
    let divided = Stub { defines: WITH_MIG, ..SHAPED };
    assert_eq!(hidden(&divided, &[1]).unwrap(), ["/dev/nvidia0"]);
    assert_eq!(hidden(&divided, &[0]).unwrap(), ["/dev/nvidia1", "caps"], "a whole card needs none of them");
    // A runtime that counts what it can open would give the worker another device.
    assert_eq!(hidden(&ASCEND, &[0]).unwrap(), [""; 0]);
    assert_eq!(hidden(&ASCEND, &[]).unwrap().len(), 2);
    // Modules keep their numbers.
    let gaudi = STUBS.iter().find(|stub| stub.vendor == Vendor::Gaudi).unwrap();
    assert_eq!(hidden(gaudi, &[0]).unwrap().len(), 2, "of the other one: two nodes");
}

#[test]
fn a_slice_of_a_card_has_the_nodes_that_part_it_from_the_others() {
    let Some(machine) = Machine::new(&Stub { defines: WITH_MIG, ..SHAPED }, &[]) else { return };
    let table = "gpu1/gi1/access 12\ngpu1/gi1/ci0/access 13\ngpu1/gi2/access 21\ngpu1/gi2/ci0/access 22\n";
    fs::write(&machine.roots.caps.table, table).unwrap();
    fs::create_dir(&machine.roots.caps.dir).unwrap();
    for minor in [12, 13, 21, 22] {
        fs::write(machine.roots.caps.dir.join(format!("nvidia-cap{minor}")), "").unwrap();
    }
    let backends = Backends::open(&"nvidia".parse().unwrap(), &Host::read(), &machine.roots, None).unwrap();
    let seen = backends.with_others_hidden(&[2], None);
    let own: Vec<&Path> =
        seen.device_nodes.iter().filter_map(|node| node.strip_prefix(machine.dir.path()).ok()).collect();
    assert_eq!(own, [Path::new("caps/nvidia-cap21"), Path::new("caps/nvidia-cap22")]);
    let others = machine.roots.caps.dir.join("nvidia-cap12");
    assert!(seen.hidden_nodes.contains(&machine.roots.caps.dir) && seen.hidden_nodes.contains(&others));
    assert!(!seen.hidden_nodes.contains(&machine.roots.caps.dir.join("nvidia-cap21")));
}

#[test]
fn an_xid_takes_a_card_out_of_work_and_a_program_s_error_does_not() {
    let stub = Stub { defines: WITH_XID, ..SHAPED };
    let Some(machine) = Machine::new(&stub, &[]) else { return };
    let mut backend = machine.backend(&stub);
    let remapped = "device 0: a row of its memory is remapped at the next reset";
    assert_eq!(
        (faults(&backend.discover()), findings(&backend.discover())),
        (vec![], vec![remapped.to_string()])
    );
    machine.begin("sick");
    backend.discover();
    let found = backend.discover();
    assert_eq!(faults(&found), ["xid 79: restart the machine"]);
    // Of the other one a row of memory waits for a reset: one kind of signal alone is a suspicion.
    let fault = card(&found, "GPU-0000-0").fault.as_ref();
    assert_eq!(fault.map(|fault| fault.health), Some(Health::Suspect));
}

#[test]
fn an_xid_is_only_told_where_the_driver_says_itself_what_to_do() {
    let stub = Stub { defines: WITH_XID_RECOVERY, ..SHAPED };
    let Some(machine) = Machine::new(&stub, &[]) else { return };
    let mut backend = machine.backend(&stub);
    backend.discover();
    machine.begin("sick");
    backend.discover();
    let found = backend.discover();
    assert_eq!(faults(&found), ["the driver asks for a restart of the machine"]);
    machine.end("sick");
    let found = backend.discover();
    assert_eq!((faults(&found).len(), findings(&found).len()), (0, 2), "it was repaired: {found:#?}");
}

#[test]
fn a_card_that_is_divided_offers_its_slices_and_shares_of_others_go_through_mps() {
    let stub = Stub { defines: WITH_MIG, ..SHAPED };
    let Some(machine) = Machine::new(&stub, &[]) else { return };
    let open = || Backends::open(&"nvidia".parse().unwrap(), &Host::read(), &machine.roots, None).unwrap();
    let backends = open();
    let devices = backends.devices();
    let uuids: Vec<&str> = devices.iter().map(|device| &*device.uuid).collect();
    assert_eq!(uuids, ["GPU-0000-1", "MIG-0000-0", "MIG-0000-1"]);
    let class = &devices[1].class;
    assert_eq!((&*class.model, class.memory_bytes), ("h100-80gb-hbm3-mig-1g.10gb", 10 << 30));
    assert!(devices.iter().all(|device| device.island.is_none()), "slices are not linked");
    assert_eq!(backends.visibility(&[2], None).env[0].1, "MIG-0000-1");
    let roots = Roots { parts_on_demand: [Vendor::Nvidia].into(), ..machine.roots.clone() };
    let whole = Backends::open(&"nvidia".parse().unwrap(), &Host::read(), &roots, None).unwrap().devices();
    let offered: Vec<_> = whole.iter().map(|device| (&*device.uuid, device.isolation)).collect();
    let expected = [("GPU-0000-1", Isolation::Advisory), ("GPU-0000-0", Isolation::Hard)];
    assert_eq!(offered, expected, "where parts are made on demand, a divided card is offered whole");
    let share = Slice { compute_milli: 255, memory_bytes: 20 << 30 };
    let env = backends.visibility(&[0], Some(share)).env;
    let of_mps: Vec<&str> =
        env.iter().filter(|(key, _)| key.starts_with("CUDA_MPS")).map(|(_, value)| &value[..]).collect();
    assert_eq!(of_mps, ["26", "0=20480M"]);
    assert_eq!(backends.visibility(&[], Some(share)).env.len(), 2, "whoever holds none shares none");
}
