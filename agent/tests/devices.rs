//! Device backends over what a node can be like: a library that the tests compile, files, nothing at all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, io};

use aquifer_agent::device::{Backend, BackendChoice, Backends, DeviceChoice, Discovery, Nvidia, Visibility};
use aquifer_agent::host::Host;
use aquifer_core::{Device, Ports, Vendor};

/// Builds a stand-in for NVML; `None`, said aloud, where there is no C compiler.
fn fake_nvml(dir: &Path, options: &[String]) -> Option<PathBuf> {
    let library = dir.join("libnvidia-ml.so.1");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_nvml.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).args(options).arg(source);
    match compiler.status() {
        Ok(status) => {
            assert!(status.success(), "the stand-in does not compile");
            Some(library)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("skipped: no C compiler");
            None
        }
        Err(error) => panic!("cc: {error}"),
    }
}

fn define(name: &str, file: &Path) -> String {
    format!("-D{name}=\"{}\"", file.display())
}

fn findings(found: &Discovery) -> Vec<String> {
    found.findings.iter().map(|finding| finding.to_string()).collect()
}

fn faults(devices: &[Device]) -> Vec<Option<&str>> {
    devices.iter().map(|device| device.fault.as_deref()).collect()
}

fn uuids(devices: &[Device]) -> Vec<&str> {
    devices.iter().map(|device| &*device.uuid).collect()
}

fn env(shown: &Visibility) -> Vec<(&str, &str)> {
    shown.env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

fn open(choice: &str) -> Backends {
    Backends::open(&choice.parse().unwrap(), &Host::read(), None).unwrap()
}

#[test]
fn two_healthy_cards_are_found_in_the_order_of_the_bus() {
    let dir = tempfile::tempdir().unwrap();
    let Some(library) = fake_nvml(dir.path(), &[]) else { return };
    let backends = open(&format!("nvidia:{}", library.display()));
    let devices = backends.devices();
    assert_eq!(uuids(&devices), ["GPU-0000-1", "GPU-0000-0"]);
    assert_eq!(faults(&devices), [None, None]);
    let class = &devices[0].class;
    assert_eq!(
        (class.vendor, &*class.model, class.memory_bytes),
        (Vendor::Nvidia, "h100-80gb-hbm3", 80 << 30)
    );
    assert_eq!(backends.findings(), []);
    let shown = backends.visibility(&[1]);
    assert_eq!(
        env(&shown),
        [("CUDA_VISIBLE_DEVICES", "GPU-0000-0"), ("NVIDIA_VISIBLE_DEVICES", "GPU-0000-0")]
    );
    let nodes: Vec<&str> = shown.device_nodes.iter().map(|node| node.to_str().unwrap()).collect();
    assert_eq!(nodes, ["/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"]);
    assert_eq!(env(&backends.visibility(&[]))[0], ("CUDA_VISIBLE_DEVICES", ""));
    assert_eq!(env(&backends.visibility(&[7]))[0], ("CUDA_VISIBLE_DEVICES", ""));
}

#[test]
fn a_card_that_is_lost_keeps_its_index_and_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let lost = dir.path().join("lost");
    let Some(library) = fake_nvml(dir.path(), &[define("LOST_FILE", &lost)]) else { return };
    let mut backends = open(&format!("nvidia:{}", library.display()));
    assert!(!backends.refresh(), "nothing changed");
    fs::write(&lost, "").unwrap();
    assert!(backends.refresh());
    let devices = backends.devices();
    assert_eq!(uuids(&devices), ["GPU-0000-1", "GPU-0000-0"]);
    assert_eq!(faults(&devices), [Some("fell off the bus"), None]);
    fs::remove_file(&lost).unwrap();
    assert!(backends.refresh());
    assert_eq!(faults(&backends.devices()), [None, None]);
}

#[test]
fn a_card_that_was_lost_before_the_agent_started_is_listed_with_its_fault() {
    let dir = tempfile::tempdir().unwrap();
    let lost = dir.path().join("lost");
    fs::write(&lost, "").unwrap();
    let Some(library) = fake_nvml(dir.path(), &[define("LOST_FILE", &lost)]) else { return };
    let devices = open(&format!("nvidia:{}", library.display())).devices();
    assert_eq!(uuids(&devices), ["GPU-0000-0", "nvidia-1"]);
    assert_eq!(faults(&devices), [None, Some("fell off the bus")]);
}

#[test]
fn a_library_without_a_symbol_still_gives_its_cards() {
    let dir = tempfile::tempdir().unwrap();
    let Some(library) = fake_nvml(dir.path(), &["-DNO_MEMORY".to_string()]) else { return };
    let found = Nvidia::new(Some(library)).discover();
    assert_eq!(found.devices.len(), 2);
    assert!(found.devices.iter().all(|device| device.fault.is_none() && device.class.memory_bytes == 0));
    assert!(findings(&found)[0].starts_with("nvidia: device 0: memory unknown: "), "{:?}", findings(&found));
}

#[test]
fn a_library_that_hangs_is_reported_and_heard_again_later() {
    let dir = tempfile::tempdir().unwrap();
    let hang = dir.path().join("hang");
    fs::write(&hang, "").unwrap();
    let Some(library) = fake_nvml(dir.path(), &[define("HANG_FILE", &hang)]) else { return };
    let patience = Duration::from_millis(200);
    let mut nvidia = Nvidia::with_patience(Some(library), patience);
    let begin = Instant::now();
    let found = nvidia.discover();
    assert_eq!(findings(&found), ["nvidia: nvml did not answer within 0.2 s"]);
    assert!(patience <= begin.elapsed() && begin.elapsed() < patience + Duration::from_secs(5));
    assert_eq!(findings(&nvidia.discover()).len(), 1, "it still hangs, and is not asked twice");
    fs::remove_file(hang).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while nvidia.discover().devices.len() != 2 {
        assert!(Instant::now() < deadline, "the library answers again, but nobody listens");
        std::thread::yield_now();
    }
}

#[test]
fn cards_of_a_library_that_begins_to_hang_are_at_fault() {
    let dir = tempfile::tempdir().unwrap();
    let hang = dir.path().join("hang");
    let Some(library) = fake_nvml(dir.path(), &[define("HANG_FILE", &hang)]) else { return };
    let mut nvidia = Nvidia::with_patience(Some(library), Duration::from_millis(500));
    let mut devices = nvidia.discover().devices;
    assert_eq!(devices.len(), 2);
    fs::write(&hang, "").unwrap();
    nvidia.health(&mut devices);
    let faults: Vec<&str> = devices.iter().filter_map(|device| device.fault.as_deref()).collect();
    assert_eq!(faults, ["nvml did not answer within 0.5 s"; 2]);
    fs::remove_file(&hang).unwrap();
}

#[test]
fn a_driver_or_library_that_is_missing_is_a_finding() {
    let dir = tempfile::tempdir().unwrap();
    let found = Nvidia::new(Some("/no/such/libnvidia-ml.so.1".into())).discover();
    assert_eq!(found.devices, []);
    assert!(findings(&found)[0].starts_with("nvidia: nvml cannot be used: "), "{:?}", findings(&found));
    let Some(library) = fake_nvml(dir.path(), &["-DNO_INIT".to_string()]) else { return };
    let found = Nvidia::new(Some(library)).discover();
    assert_eq!((found.devices.len(), found.findings.len()), (0, 1));
    assert!(findings(&found)[0].starts_with("nvidia: nvml cannot be used: "), "{:?}", findings(&found));
}

#[test]
fn a_card_that_is_divided_offers_its_slices() {
    let dir = tempfile::tempdir().unwrap();
    let Some(library) = fake_nvml(dir.path(), &["-DMIG".to_string()]) else { return };
    let backends = open(&format!("nvidia:{}", library.display()));
    let devices = backends.devices();
    assert_eq!(uuids(&devices), ["GPU-0000-1", "MIG-0000-0", "MIG-0000-1"]);
    let class = &devices[1].class;
    assert_eq!((&*class.model, class.memory_bytes), ("h100-80gb-hbm3-mig-1g.10gb", 10 << 30));
    assert_eq!(env(&backends.visibility(&[2]))[0], ("CUDA_VISIBLE_DEVICES", "MIG-0000-1"));
}

#[test]
fn the_order_of_devices_survives_the_loss_of_one_while_there_is_no_agent() {
    let dir = tempfile::tempdir().unwrap();
    let (file, known) = (dir.path().join("devices.toml"), dir.path().join("known"));
    let entry = |uuid: &str| {
        format!("[[device]]\nvendor=\"amd\"\nmodel=\"mi300x\"\nmemory_gib=192\nuuid=\"{uuid}\"\n")
    };
    let open = |host: &Host| {
        let choice = format!("fake:{}", file.display()).parse().unwrap();
        Backends::open(&choice, host, Some(&known)).unwrap()
    };
    let host = Host::read();
    fs::write(&file, [entry("a"), entry("b"), entry("c")].concat()).unwrap();
    assert_eq!(uuids(&open(&host).devices()), ["a-0", "b-0", "c-0"]);
    fs::write(&file, [entry("d"), entry("c"), entry("b")].concat()).unwrap();
    let mut after = open(&host);
    assert_eq!(uuids(&after.devices()), ["a-0", "b-0", "c-0", "d-0"]);
    assert_eq!(faults(&after.devices()), [Some("not found any more"), None, None, None]);
    assert_eq!(after.devices()[0].class.memory_bytes, 192 << 30);
    fs::write(&file, [entry("a"), entry("d"), entry("c"), entry("b")].concat()).unwrap();
    after.refresh();
    assert_eq!(faults(&after.devices()), [None; 4]);
    assert_eq!(env(&after.visibility(&[0, 1])), [("HIP_VISIBLE_DEVICES", "0,3")], "numbers of now");
    let other_boot = Host { boot_id: "later".to_string(), ..host };
    fs::write(&file, [entry("b"), entry("c")].concat()).unwrap();
    assert_eq!(uuids(&open(&other_boot).devices()), ["b-0", "c-0"]);
}

#[test]
fn fake_devices_may_be_linked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("devices.toml");
    let entry = |rest: &str| format!("[[device]]\nvendor=\"nvidia\"\nmodel=\"h100\"\n{rest}\n");
    let text = entry("count = 3\nisland_size = 2") + &entry("count = 2\nisland_size = 4") + &entry("");
    fs::write(&file, text).unwrap();
    let islands: Vec<Option<u16>> =
        open(&format!("fake:{}", file.display())).devices().iter().map(|device| device.island).collect();
    assert_eq!(islands, [Some(0), Some(0), Some(1), Some(2), Some(2), None]);
    assert!(aquifer_agent::device::parse_fake(&entry("island_size = 0")).is_err());
}

#[test]
fn fake_devices_can_be_broken_and_repaired_live() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("devices.toml");
    let text = |fault: &str| {
        format!(
            "[labels]\nrack = \"r1\"\n\
             [[device]]\nvendor = \"nvidia\"\nmodel = \"h100-80gb-hbm3\"\nmemory_gib = 80\ncount = 2\n{fault}\n\
             [[device]]\nvendor = \"ascend\"\nmodel = \"910b\"\nmemory_bytes = 1000\n"
        )
    };
    fs::write(&file, text("")).unwrap();
    let mut backends = open(&format!("fake:{}", file.display()));
    assert_eq!(uuids(&backends.devices()), ["fake-nvidia-0", "fake-nvidia-1", "fake-ascend-0"]);
    fs::write(&file, text("faults = { 1 = \"fell off the bus\" }")).unwrap();
    assert!(backends.refresh());
    assert_eq!(faults(&backends.devices()), [None, Some("fell off the bus"), None]);
    fs::write(&file, "half a fi").unwrap();
    backends.refresh();
    assert_eq!(
        faults(&backends.devices()),
        [None, Some("fell off the bus"), None],
        "it is just being written"
    );
    assert!(!backends.findings().is_empty());
    fs::write(&file, text("")).unwrap();
    assert!(backends.refresh());
    assert_eq!(faults(&backends.devices()), [None; 3]);
    assert_eq!(backends.findings(), []);
    let shown = backends.visibility(&[1, 2]);
    assert_eq!(env(&shown), [("CUDA_VISIBLE_DEVICES", "1"), ("ASCEND_RT_VISIBLE_DEVICES", "0")]);
    let inventory = backends.inventory(&Host::read(), "10.0.0.1", Ports::default(), &BTreeMap::new());
    assert_eq!(inventory.labels, BTreeMap::from([("rack".into(), "r1".into())]));
    assert_eq!((inventory.devices.len(), &*inventory.address), (3, "10.0.0.1"));
}

#[test]
fn a_file_of_fake_devices_that_makes_no_sense_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("devices.toml");
    let refused = |text: &str| {
        fs::write(&file, text).unwrap();
        let choice = format!("fake:{}", file.display()).parse().unwrap();
        Backends::open(&choice, &Host::read(), None).err().unwrap().to_string()
    };
    assert!(refused("[[device]]\nvendor = \"acme\"\nmodel = \"x\"\n").contains("no vendor \"acme\""));
    assert!(refused("[[device]]\nvendor = \"amd\"\n").contains("model"));
    assert!(refused("[[device]]\nvendor = \"amd\"\nmodel = \"x\"\ncuont = 2\n").contains("cuont"));
    let missing = "fake:/no/such/file".parse().unwrap();
    let error = Backends::open(&missing, &Host::read(), None).err().unwrap().to_string();
    assert_eq!(error, "fake devices: /no/such/file: No such file or directory (os error 2)");
}

#[test]
fn a_choice_of_devices_is_read_from_text() {
    let parse = |text: &str| text.parse::<DeviceChoice>();
    assert_eq!(parse("auto"), Ok(DeviceChoice::Auto));
    assert_eq!(parse("none"), Ok(DeviceChoice::These(Vec::new())));
    let all = parse("nvidia, cpu:0-1+4,fake:/x.toml,nvidia:/lib/x.so,cpu").unwrap();
    let expected = [
        BackendChoice::Nvidia(None),
        BackendChoice::Cpu(vec![0, 1, 4]),
        BackendChoice::Fake("/x.toml".into()),
        BackendChoice::Nvidia(Some("/lib/x.so".into())),
        BackendChoice::Cpu(Vec::new()),
    ];
    assert_eq!(all, DeviceChoice::These(expected.into()));
    for bad in ["", "gpu", "cpu:x", "cpu,auto", "fake", "fake:", "cpu,,nvidia"] {
        assert!(parse(bad).is_err(), "{bad:?}");
    }
    assert_eq!(parse("fake").unwrap_err().to_string(), "devices \"fake\": needs a file: fake:FILE");
}

#[test]
fn a_node_without_accelerators_offers_its_cores() {
    let host = Host::read();
    let cores = open("cpu").devices();
    assert_eq!(cores.len(), host.cores.len());
    assert!(cores.iter().all(|core| core.class.vendor == Vendor::Cpu && core.fault.is_none()));
    assert_eq!(open("none").devices(), []);
    let automatic = open("auto");
    assert!(!automatic.devices().is_empty(), "never an empty node: {:?}", automatic.findings());
    if automatic.devices()[0].class.vendor == Vendor::Cpu {
        assert_eq!(automatic.devices(), cores);
    }
}
