//! What people see of one machine, golden; and what scripts do.

use aquifer_cli::output::Output;
use aquifer_cli::view::{self, Node};
use aquifer_cli::{devices, doctor, nodes, overview, services};
use aquifer_proto::v1;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn plain() -> Output {
    Output::default()
}

fn machine() -> devices::Machine {
    let device = |index: u16, fault: Option<&str>| devices::Device {
        index,
        vendor: "ascend".into(),
        model: if fault.is_some() { "unknown" } else { "910b3" }.into(),
        memory_bytes: if fault.is_some() { 0 } else { 64 << 30 },
        uuid: format!("die-{index}"),
        fault: fault.map(str::to_string),
        place: format!("0000:c{index}:00.0"),
        numa_node: Some(1),
        speed_milli: 1000,
        speed_source: "not measured".into(),
        memory_gbs: if fault.is_some() { 0 } else { 1600 },
        switch: (index != 1).then(|| format!("0000:{}0:00.0", 9 - index)),
        island: (index < 2).then_some(0),
        parted_by: (index < 2).then(|| "vnpu".into()),
        ..devices::Device::default()
    };
    devices::Machine {
        node: "npu-1".into(),
        devices: vec![device(0, None), device(1, None), device(2, Some("faulty: fell off the bus"))],
        findings: vec![devices::Finding { vendor: "ascend".into(), what: "device 0: a minor fault".into() }],
    }
}

#[test]
fn devices_of_a_machine_are_listed_with_what_is_wrong() {
    assert_eq!(
        devices::text(&machine(), &plain()),
        "\
DEVICE  VENDOR  MODEL    MEMORY  SPEED  STATE                     ISLAND  SWITCH  NUMA  PLACE         UUID
     0  ascend  910b3    64 GiB      1  well                           0       1     1  0000:c0:00.0  die-0
     1  ascend  910b3    64 GiB      1  well                           0             1  0000:c1:00.0  die-1
     2  ascend  unknown                 faulty: fell off the bus               0     1  0000:c2:00.0  die-2

910b3: not measured, 1,600 GB/s of memory, parts of it can be made on demand (--vnpu on-demand)

ascend: device 0: a minor fault"
    );
    assert_eq!(devices::text(&devices::Machine::default(), &plain()), "This machine has no devices.");
    let json = serde_json::to_value(machine()).unwrap();
    assert_eq!(keys(&json), "devices findings node");
    assert_eq!(
        keys(&json["devices"][0]),
        "device_nodes environment fault index island isolation measured memory_bytes memory_gbs model numa_node parted_by place \
         speed_milli speed_source switch uuid vendor"
    );
    assert_eq!(keys(&json["findings"][0]), "vendor what");
}

#[test]
fn what_was_measured_of_a_class_is_told_beside_it_and_of_others_who_says_how_fast_they_are() {
    let device = |model: &str, source: &str| v1::Device {
        vendor: "nvidia".into(),
        model: model.into(),
        speed_source: source.into(),
        memory_gbs: 300,
        ..v1::Device::default()
    };
    let measured = v1::Measured {
        vendor: "nvidia".into(),
        model: "h200".into(),
        f32_mflops: 50_000_000,
        bf16_mflops: 700_000_000,
        int8_mflops: 1_200_000_000,
        attention_mflops: 300_000_000,
        memory_mbs: 4_000_000,
        host_link_mbs: 55_000,
        train_tokens_milli: 900_000_500,
        decode_tokens_milli: 0,
        ..v1::Measured::default()
    };
    let inventory = v1::Inventory {
        devices: vec![
            device("h200", "measured: 700.000 TFLOP/s in bf16"),
            device("l4", "by datasheet (NVIDIA L4 datasheet, dense)"),
            device("b999", "not measured, as the reference device"),
        ],
        measured: vec![measured],
        ..v1::Inventory::default()
    };
    let node = Node::from(&v1::Node { inventory: Some(inventory), ..v1::Node::default() });
    let text = nodes::details(&node, &plain());
    let told = text.split("\n\n").last().unwrap();
    assert_eq!(
        told,
        "\
b999: not measured, as the reference device, 300 GB/s of memory
h200: measured: 700.000 TFLOP/s in bf16, 50,000 GFLOP/s in f32, 1,200,000 GFLOP/s with int8 weights, 300,000 GFLOP/s of \
         attention, 4,000 GB/s of memory, 55 GB/s from the host, 900,001 tokens/s of training
l4: by datasheet (NVIDIA L4 datasheet, dense), 300 GB/s of memory"
    );
    let json = serde_json::to_value(&node).unwrap();
    assert_eq!(json["devices"][0]["measured"]["train_tokens_per_s"], 900_000.5);
    assert_eq!(json["devices"][0]["measured"]["host_link_gbs"], 55.0);
    assert!(json["devices"][0]["measured"]["decode_tokens_per_s"].is_null(), "{json}");
    assert!(json["devices"][1]["measured"].is_null(), "{json}");
}

#[test]
fn a_doctor_says_which_setting_parts_cards() {
    let said: Vec<(&str, String)> =
        doctor::of_devices(&machine()).into_iter().map(|it| (it.state, it.what)).collect();
    let parts = "parts of 2 devices can be made on demand: aquifer agent --vnpu on-demand";
    assert!(said.contains(&("ok", parts.into())), "{said:?}");
    let devices = vec![devices::Device { parted_by: None, ..machine().devices.remove(0) }];
    let without = doctor::of_devices(&devices::Machine { devices, ..machine() });
    assert!(without.iter().all(|it| !it.what.contains("on demand")));
}

#[test]
fn a_doctor_says_once_what_is_wrong_with_all_cards_of_a_vendor() {
    let mut all = machine();
    let why = "libdcmi.so not found";
    all.devices.iter_mut().take(2).for_each(|device| device.fault = Some(format!("faulty: {why}")));
    all.findings[0].what = format!("2 devices on PCI, but {why}");
    let said: Vec<String> = doctor::of_devices(&all).into_iter().map(|it| it.what).collect();
    assert_eq!(said.iter().filter(|what| what.contains(why)).count(), 1, "{said:?}");
    assert!(said.contains(&"ascend 2 at 0000:c2:00.0: faulty: fell off the bus".into()), "{said:?}");
}

/// All that a rule of the agent says of a device, as its sources have it.
fn faults() -> Vec<String> {
    let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("agent/src/device")];
    let mut faults = Vec::new();
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            for before in
                ["Lost, \"", "Suspect, \"", "Drain, \"", "Reset, \"", "Reboot, \"", "faulty(\"", "=> \"the "]
            {
                faults.extend(
                    text.split(before).skip(1).map(|rest| rest.split('"').next().unwrap().to_string()),
                );
            }
        }
    }
    faults
}

#[test]
fn a_doctor_knows_something_better_than_the_vendor_s_tool_for_every_fault() {
    let faults = faults();
    assert!(60 < faults.len(), "{faults:#?}");
    let unknown: Vec<&String> =
        faults.iter().filter(|fault| doctor::advice(fault) == doctor::advice("")).collect();
    assert_eq!(unknown, [""; 0]);
    for (what, next) in [
        ("the driver amdgpu runs without its compute part, kfd", "load the driver with kfd"),
        (
            "found by npu-smi, as libdcmi.so not found: nobody watches whether they are well",
            "install the vendor's driver",
        ),
        ("suspect: its hardware slows it down: it is too hot", "look at its fans"),
        ("faulty: it is being reset", "nothing, if it comes back"),
        ("resetting: xid 95: reset the card", "drain the node, then reset"),
        ("faulty: the number of its device node is not known", "install the vendor's library"),
        (
            "suspect: 10 corrected errors or more within 10 minutes",
            "nothing, as long as there are no uncorrected",
        ),
    ] {
        assert!(doctor::advice(what).starts_with(next), "{what}: {}", doctor::advice(what));
    }
}

#[test]
fn a_doctor_misses_no_node_that_a_driver_may_do_without() {
    let mut machine = machine();
    machine.devices[0].device_nodes =
        ["/dev/no-such-card", "/dev/null", "/dev/ummu"].map(String::from).into();
    let said: Vec<String> = doctor::of_permissions(&machine).into_iter().map(|it| it.what).collect();
    assert_eq!(said, ["/dev/no-such-card: No such file or directory (os error 2)"]);
}

#[test]
fn a_doctor_says_what_to_do_about_each_finding() {
    let finding = |check, state, what: &str, next: &str| doctor::Finding {
        check,
        state,
        what: what.into(),
        next: next.into(),
    };
    let findings = [
        finding("devices", "ok", "8 h200", ""),
        finding(
            "disk",
            "problem",
            "/data cannot be written: Permission denied",
            "give another with --state-dir",
        ),
    ];
    assert_eq!(
        doctor::text(&findings, &plain()),
        "\
ok       devices     8 h200
problem  disk        /data cannot be written: Permission denied
                     give another with --state-dir"
    );
    let json = serde_json::to_value(&findings[0]).unwrap();
    let keys: BTreeSet<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["check", "next", "state", "what"].into());
}

/// The names of the fields of an object.
fn keys(value: &serde_json::Value) -> String {
    let keys: BTreeSet<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.into_iter().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_device_counts_once_in_the_overview() {
    let device = |held, cordoned, fault: Option<&str>| view::Device {
        vendor: "nvidia".into(),
        model: "h200".into(),
        held,
        cordoned,
        fault: fault.map(Into::into),
        ..Default::default()
    };
    let node = |state: &str, availability: &str, devices: Vec<view::Device>| view::Node {
        name: "a".into(),
        state: state.into(),
        up: state != "lost",
        availability: availability.into(),
        devices,
        ..Default::default()
    };
    let all = || {
        let faulty = device(true, true, Some("fell off the bus"));
        vec![device(false, false, None), device(true, true, None), device(false, true, None), faulty]
    };
    let mut it = overview::Overview::default();
    it.add(&node("up", "open", all()));
    it.add(&node("draining", "draining", all()));
    it.add(&node("lost", "open", all()));
    it.finish(&[("pending", 3), ("running", 1200)]);
    assert_eq!(
        overview::text(&it, &plain()),
        "\
VENDOR  MODEL  DEVICES  USED  IDLE  UNWELL  CORDONED  LOST
nvidia  h200        12     2     1       2         3     4

Nodes: 1 up, 1 draining, 1 lost.
Jobs: 3 pending, 1,200 running."
    );
    let empty = overview::text(&overview::Overview::default(), &plain());
    assert_eq!(empty, "Nodes: none.\nJobs: none.");
    let json = serde_json::to_value(&it).unwrap();
    assert_eq!(keys(&json), "devices jobs nodes");
    assert_eq!(keys(&json["devices"][0]), "cordoned devices idle lost model unwell used vendor");
}

#[test]
fn services_are_listed_with_what_they_promise() {
    let service = services::Service {
        job: "job-7".into(),
        model: "chat".into(),
        state: "running".into(),
        ready: 2,
        wanted: 3,
        most: 8,
        endpoints: vec!["http://a:1/v1".into(), "http://b:1/v1".into()],
        ttft_ms: Some(1500),
        tokens_per_s: Some(2345.6),
        ..Default::default()
    };
    assert_eq!(
        services::text(std::slice::from_ref(&service), &plain()),
        "\
JOB    MODEL  STATE    REPLICAS      TTFT  TPOT  TOKENS/S  ENDPOINTS
job-7  chat   running       2/3  1,500 ms           2,345  http://a:1/v1 http://b:1/v1"
    );
    assert_eq!(
        keys(&serde_json::to_value(&service).unwrap()),
        "endpoints job model most queue ready reason state tokens_per_s told tpot_ms ttft_ms user wanted"
    );
}
