//! Device backends over what a node can be like: a library that the tests compile, files, nothing at all.

use std::collections::BTreeMap;
use std::fs;

use aquifer_agent::device::{BackendChoice, Backends, DeviceChoice, HelperCommand, Roots, Visibility};
use aquifer_agent::host::Host;
use aquifer_core::{Device, Ports, Vendor};

fn faults(devices: &[Device]) -> Vec<Option<&str>> {
    devices.iter().map(|device| device.fault.as_ref().map(|fault| &*fault.why)).collect()
}

fn uuids(devices: &[Device]) -> Vec<&str> {
    devices.iter().map(|device| &*device.uuid).collect()
}

fn env(shown: &Visibility) -> Vec<(&str, &str)> {
    shown.env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

fn roots() -> Roots {
    let tests = std::env::current_exe().unwrap();
    let examples = tests.parent().unwrap().parent().unwrap().join("examples");
    let helper = HelperCommand { program: examples.join("ask_library"), args: Vec::new() };
    Roots { helper, ..Roots::default() }
}

fn open(choice: &str) -> Backends {
    Backends::open(&choice.parse().unwrap(), &Host::read(), &roots(), None).unwrap()
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
        Backends::open(&choice, host, &roots(), Some(&known)).unwrap()
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
    assert_eq!(env(&after.visibility(&[0, 1], None)), [("HIP_VISIBLE_DEVICES", "0,3")], "numbers of now");
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
    let speed = |text: &str| aquifer_agent::device::parse_fake(&entry(text)).map(|it| it.0[0].speed_milli);
    assert_eq!((speed("speed = 2.5").unwrap(), speed("").unwrap()), (Some(2500), None));
    assert!(speed("speed = 0.0").unwrap_err().to_string().contains("speed is 0: expected 0.001 to 1000"));
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
    let shown = backends.visibility(&[1, 2], None);
    assert_eq!(env(&shown), [("CUDA_VISIBLE_DEVICES", "1"), ("ASCEND_RT_VISIBLE_DEVICES", "0")]);
    let inventory = backends.inventory(&Host::read(), "10.0.0.1", Ports::default(), &BTreeMap::new());
    assert_eq!(inventory.labels, BTreeMap::from([("rack".into(), "r1".into())]));
    assert_eq!((inventory.devices.len(), &*inventory.address), (3, "10.0.0.1"));
}

#[test]
fn a_mistake_in_a_file_of_fake_devices_is_named_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fake.toml");
    let says = |entry: &str| {
        fs::write(&file, format!("[[device]]\nvendor = \"nvidia\"\nmodel = \"h100\"\n{entry}\n")).unwrap();
        let choice = format!("fake:{}", file.display()).parse().unwrap();
        let error = Backends::open(&choice, &Host::read(), &roots(), None).err().expect("a mistake");
        let error = error.to_string();
        error.strip_prefix(&format!("fake devices: {}: ", file.display())).expect("the file").to_string()
    };
    let unknown = says("count = 2\nmemory = 80");
    assert!(unknown.starts_with("line 5: unknown field `memory`, expected one of `vendor`, "), "{unknown}");
    let another = "[[device]]\nvendor = \"nvidia\"\nmodel = \"a\"\nuuid = \"G\"";
    for (entry, said) in [
        ("speed = 0", "device[0].speed is 0: expected 0.001 to 1000"),
        ("count = 4000000000", "device[0].count is 4000000000: expected 65535 devices at most in all"),
        ("memory_gib = 17179869184", "device[0].memory_gib is 17179869184: expected less than 2^34"),
        (
            "count = 2\nfaults = { 2 = \"bad\" }",
            "device[0].faults is 2: expected numbers from 0 of 2 devices",
        ),
        (
            &format!("uuid = \"G\"\n{another}"),
            "device[1].uuid is G: expected another: two devices are called G-0",
        ),
        ("isolation = \"so so\"", "device[0].isolation is \"so so\": expected hard, limited or advisory"),
    ] {
        assert_eq!(says(entry), said);
    }
}

#[test]
fn a_file_of_fake_devices_that_makes_no_sense_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("devices.toml");
    let refused = |text: &str| {
        fs::write(&file, text).unwrap();
        let choice = format!("fake:{}", file.display()).parse().unwrap();
        Backends::open(&choice, &Host::read(), &roots(), None).err().unwrap().to_string()
    };
    assert!(refused("[[device]]\nvendor = \"acme\"\nmodel = \"x\"\n").contains("no vendor \"acme\""));
    assert!(refused("[[device]]\nvendor = \"amd\"\n").contains("model"));
    assert!(refused("[[device]]\nvendor = \"amd\"\nmodel = \"x\"\ncuont = 2\n").contains("cuont"));
    let missing = "fake:/no/such/file".parse().unwrap();
    let error = Backends::open(&missing, &Host::read(), &roots(), None).err().unwrap().to_string();
    assert_eq!(error, "fake devices: /no/such/file: No such file or directory (os error 2)");
}

#[test]
fn a_choice_of_devices_is_read_from_text() {
    let parse = |text: &str| text.parse::<DeviceChoice>();
    assert_eq!(parse("auto"), Ok(DeviceChoice::Auto));
    assert_eq!(parse("none"), Ok(DeviceChoice::These(Vec::new())));
    let all = parse("nvidia, cpu:0-1+4,fake:/x.toml,nvidia:/lib/x.so,cpu").unwrap();
    let expected = [
        BackendChoice::Vendor(Vendor::Nvidia, None),
        BackendChoice::Cpu(vec![0, 1, 4]),
        BackendChoice::Fake("/x.toml".into()),
        BackendChoice::Vendor(Vendor::Nvidia, Some("/lib/x.so".into())),
        BackendChoice::Cpu(Vec::new()),
    ];
    assert_eq!(all, DeviceChoice::These(expected.into()));
    for bad in ["", "gpu", "cpu:x", "cpu,auto", "fake", "fake:", "cpu,,nvidia", "amd:/lib/x.so", "ascend:"] {
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
