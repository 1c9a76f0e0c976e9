//! What engines are asked for, vendor by vendor.

use std::path::Path;
use std::sync::Arc;
use std::{env, fs};

use aquifer_core::{DeviceClass, Isolation, Vendor};

use super::*;
use crate::account::Account;
use crate::cgroup::Limits;
use crate::device::{Found, driver_files, visible};

fn engine(kind: EngineKind, rootless: bool, cdi: &[&str]) -> Engine {
    Engine {
        kind,
        program: format!("/usr/bin/{kind}").into(),
        version: "1".into(),
        rootless,
        limits: Limits { cpu: true, memory: true },
        cpuset: true,
        init: !rootless,
        cdi: cdi.iter().map(ToString::to_string).collect(),
    }
}

/// Two cards of a vendor: the fourth and the second of their machine, as the runtime counts.
fn cards(vendor: Vendor) -> Vec<Found> {
    let class = Arc::new(DeviceClass { vendor, model: "card".into(), memory_bytes: 1 << 30 });
    let card = |(logical, physical, uuid): (u32, u32, &str)| Found {
        class: class.clone(),
        uuid: uuid.into(),
        fault: None,
        island: None,
        isolation: Isolation::Advisory,
        parts: None,
        speed_milli: None,
        memory_gbs: None,
        is_used: false,
        one_of: 1,
        place: "0000:1b:00.0".into(),
        logical,
        physical,
        nodes: visible::nodes(vendor, physical, "0000:1b:00.0", Path::new("/no/such/sysfs")),
    };
    [(3, 7, "GPU-d"), (1, 5, "GPU-b")].map(card).into()
}

/// A line of the command for each argument, then the client's own environment.
fn called(engine: Engine, vendor: Vendor) -> String {
    let cards = cards(vendor);
    let held: Vec<&Found> = cards.iter().collect();
    let seen = visible::show_alone(&held, |devices| visible::show(vendor, devices), vendor);
    let shown = |found: &&Found| ShownDevice {
        vendor,
        uuid: found.uuid.to_string(),
        number: found.physical,
        is_parted: false,
    };
    let container = Container {
        engine: Arc::new(engine),
        image: "registry.example.com/app:1".into(),
        devices: held.iter().map(shown).collect(),
        device_nodes: seen.device_nodes,
        // Of these the job asks for the second one to be elsewhere.
        renamed_nodes: Vec::new(),
        mounts: ["/data/check, points", "/work/a"].map(Into::into).into(),
        read_only: driver_files(vendor).collect(),
        asked: ["/data:ro", "/srv/a, \"b\":/work"].map(|text| text.parse().unwrap()).into(),
    };
    let own = [("AQUIFER_RUN_DIR", "/state/runs/job-7.1/0"), ("PATH", "/opt/bin"), ("TOKEN", "se,cr=et")];
    let own = own.map(|(name, value)| (name.to_string(), value.to_string()));
    let of = Arguments {
        name: "aquifer-job-7.1-0-0badcafe".into(),
        command: ["python", "train.py", "--image=x"].map(Into::into).into(),
        env: seen.env.into_iter().chain(own).collect(),
        run_dir: "/state/runs/job-7.1/0".into(),
        working_dir: Some("/work".into()),
        cpu_affinity: vec![0, 3],
        cpus_milli: 1500,
        memory_bytes: 64 << 20,
    };
    let account = Account { uid: 1000, gid: 100, groups: vec![44, 100] };
    let (line, env) = arguments(&container, &of, &account);
    let env = env.iter().map(|(name, value)| format!("  {name}={value}"));
    line.into_iter().chain(env).collect::<Vec<String>>().join("\n")
}

/// What does not hang together with the vendor is told once.
fn differs(text: &str, from: &str) -> String {
    let common: Vec<&str> = from.lines().collect();
    text.lines().filter(|line| !common.contains(line)).collect::<Vec<&str>>().join("\n")
}

/// `UPDATE=1` rewrites what is expected.
#[test]
fn every_vendors_devices_get_into_the_container() {
    let podman = || engine(EngineKind::Podman, false, &["nvidia.com/gpu=5", "nvidia.com/gpu=GPU-d"]);
    let bare = |kind| engine(kind, false, &[]);
    let nothing = called(podman(), Vendor::Cpu);
    let mut parts = vec![("podman, no devices".to_string(), nothing.clone())];
    let docker = called(engine(EngineKind::Docker, true, &[]), Vendor::Cpu);
    parts.push(("docker without root".into(), differs(&docker, &nothing)));
    let rootless = called(engine(EngineKind::Podman, true, &[]), Vendor::Cpu);
    parts.push(("podman without root".into(), differs(&rootless, &nothing)));
    for (how, engine) in [
        ("podman with CDI", podman()),
        ("podman without CDI", bare(EngineKind::Podman)),
        ("docker with CDI", engine(EngineKind::Docker, false, &["nvidia.com/gpu=5", "nvidia.com/gpu=7"])),
        ("docker without CDI", bare(EngineKind::Docker)),
    ] {
        parts.push((format!("nvidia, {how}"), differs(&called(engine, Vendor::Nvidia), &nothing)));
    }
    for (vendor, name) in Vendor::ALL {
        if ![Vendor::Cpu, Vendor::Nvidia].contains(&vendor) {
            parts.push((name.into(), differs(&called(podman(), vendor), &nothing)));
        }
    }
    let text: Vec<String> = parts.iter().map(|(what, text)| format!("# {what}\n{text}\n")).collect();
    let text = text.join("\n");
    assert!(
        !text.lines().any(|line| line.starts_with("--") && line.contains("se,cr=et")),
        "a secret in the arguments"
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/container/arguments.txt");
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(path).unwrap());
}
