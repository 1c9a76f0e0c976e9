//! Parts of devices that are made for a worker are gone when it is, whoever is killed meanwhile.

mod fixture;
mod partitions {
    pub mod kernel;
}

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aquifer_agent::Launch;
use aquifer_agent::container::{self, Container, EngineChoice, ShownDevice};
use aquifer_agent::device::caps::Caps;
use aquifer_agent::device::{Backend, BySysfs, HelperCommand, Roots};
use aquifer_agent::partitions::{Divider, Mps, Partition, Partitions, Prepared, open};
use aquifer_core::{Exit, Isolation, Slice, Vendor, WorkerState};
use fixture::*;
use partitions::kernel::{self, Kernel, OnDrop};

/// A vendor whose cards are parted through a stand-in for its library.
struct Way {
    vendor: Vendor,
    source: &'static str,
    library: &'static str,
    card: &'static str,
    /// A name of what a fifth of the card with 8 GiB is made as first.
    first: &'static str,
    /// Calls that make and remove it.
    steps: usize,
    /// What is left of it by a maker that is killed before or after one of them.
    left: &'static [&'static str],
}

const MIG: Way = Way {
    vendor: Vendor::Nvidia,
    source: "mig.c",
    library: "libnvidia-ml.so.1",
    card: "GPU-0000",
    first: "MIG-1",
    steps: 4,
    left: &["", "1 14 0\n", "1 14 1\n"],
};
const VNPU: Way = Way {
    vendor: Vendor::Ascend,
    source: "ascend.c",
    library: "libdcmi.so",
    card: "1000000000000002000000030000000400000005",
    first: "100",
    steps: 2,
    left: &["", "100 0 vir05_1c_16g\n"],
};
const SMLU: Way = Way {
    vendor: Vendor::Cambricon,
    source: "cambricon.c",
    library: "libcndev.so",
    card: "MLU-44000000-0000-0000-0000-000000000000",
    first: "MLU-part-0-1",
    steps: 4,
    left: &["", "profile\n", "0 1 3\nprofile\n"],
};

/// A machine with a vendor's stand-in; `None`, said aloud, where there is no C compiler.
struct Machine {
    dir: tempfile::TempDir,
    way: &'static Way,
}

impl Machine {
    fn new(way: &'static Way) -> Option<Machine> {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stubs").join(way.source);
        let mut compiler = Command::new("cc");
        compiler
            .args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(dir.path().join(way.library));
        let built = compiler.arg(format!("-DDIR=\"{}\"", dir.path().display())).arg(source).status();
        match built {
            Ok(status) => assert!(status.success(), "{} does not compile", way.source),
            Err(error) => {
                _ = writeln!(std::io::stderr(), "skipped: cc: {error}");
                return None;
            }
        }
        let machine = Machine { dir, way };
        machine.write("smlu", "");
        Some(machine)
    }

    fn divider(&self) -> Box<dyn Divider> {
        let dir = self.dir.path();
        let caps = Caps { dir: dir.join("caps"), table: dir.join("mig-minors") };
        let helper = HelperCommand { program: example("ask_library"), args: Vec::new() };
        let roots = Roots { libraries: vec![dir.into()], caps, helper, ..Roots::default() };
        open(self.way.vendor, &roots).unwrap()
    }

    fn partitions(&self) -> Partitions {
        Partitions::new(self.dir.path(), None, vec![self.divider()])
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.dir.path().join(file), text).unwrap();
    }

    /// What there is of parts, by what the stand-in keeps.
    fn parts(&self) -> String {
        let read = |file: &str| fs::read_to_string(self.dir.path().join(file)).unwrap_or_default();
        let profiles = read("profiles").lines().map(|_| "profile\n").collect::<String>();
        read("instances") + &read("parts") + &profiles
    }

    fn claims(&self) -> usize {
        fs::read_dir(self.dir.path().join("partitions/claims")).map_or(0, |claims| claims.count())
    }

    fn part(&self, compute_milli: u32, gib: u64) -> Partition {
        part(self.way, compute_milli, gib)
    }
}

fn part(way: &Way, compute_milli: u32, gib: u64) -> Partition {
    let slice = Some(Slice { compute_milli, memory_bytes: gib << 30 });
    Partition::Instances { vendor: way.vendor, cards: vec![way.card.into()], slice }
}

fn env<'a>(made: &'a Prepared, name: &str) -> &'a str {
    made.env.iter().find(|(own, _)| own == name).map_or("", |(_, value)| value)
}

#[test]
fn instances_are_as_large_as_asked_and_what_does_not_fit_is_said() {
    let Some(machine) = Machine::new(&MIG) else { return };
    let partitions = machine.partitions();
    let made = partitions.prepare(id(0), &machine.part(100, 8), false).unwrap();
    assert_eq!((&made.devices, env(&made, "CUDA_VISIBLE_DEVICES")), (&vec!["MIG-1".into()], "MIG-1"));
    assert_eq!(partitions.prepare(id(1), &machine.part(300, 30), false).unwrap().devices, ["MIG-2"]);
    assert_eq!(machine.parts(), "1 19 1\n2 9 1\n");
    let full = partitions.prepare(id(2), &machine.part(500, 50), false).unwrap_err();
    assert_eq!(full, "no MIG profile of GPU-0000 that has room is large enough");
    let whole =
        |card: &str| Partition::Instances { vendor: Vendor::Nvidia, cards: vec![card.into()], slice: None };
    let unknown = partitions.prepare(id(3), &whole("GPU-x"), false).unwrap_err();
    assert_eq!(unknown, "nvmlDeviceGetHandleByUUID returned 6");
    partitions.release(id(0));
    assert_eq!(machine.parts(), "2 9 1\n");
    // The next agent keeps what a worker holds that runs on, and nothing else.
    machine.write("instances", "2 9 1\n5 14 1\n");
    let next = machine.partitions();
    next.reconcile(&BTreeSet::from([id(1)]));
    assert_eq!(machine.parts(), "2 9 1\n");
    next.reconcile(&BTreeSet::new());
    assert_eq!(machine.parts(), "");
    next.prepare(id(4), &whole("GPU-0000"), false).unwrap();
    assert_eq!(machine.parts(), "1 0 1\n");
}

#[test]
fn of_the_nodes_that_part_instances_a_worker_keeps_its_own_or_all_where_those_are_not_known() {
    let Some(machine) = Machine::new(&MIG) else { return };
    let caps = machine.dir.path().join("caps");
    let partitions = machine.partitions();
    let made = partitions.prepare(id(0), &machine.part(100, 8), false).unwrap();
    assert_eq!((made.nodes, made.unhidden), (vec![], vec![caps.clone()]));
    let table = "gpu3/gi1/access 12\ngpu3/gi1/ci0/access 13\ngpu3/gi2/access 21\ngpu3/gi2/ci0/access 22\n";
    machine.write("mig-minors", table);
    fs::create_dir(&caps).unwrap();
    ["21", "22"].iter().for_each(|minor| machine.write(&format!("caps/nvidia-cap{minor}"), ""));
    let made = partitions.prepare(id(1), &machine.part(100, 8), false).unwrap();
    let own: Vec<_> = made.nodes.iter().map(|(node, _)| node.strip_prefix(&caps).unwrap()).collect();
    assert_eq!((own, made.unhidden), (vec![Path::new("nvidia-cap21"), Path::new("nvidia-cap22")], vec![]));
}

#[tokio::test]
async fn a_worker_has_the_directory_of_those_nodes_only_where_its_own_are_not_known() {
    let Some(machine) = Machine::new(&MIG) else { return };
    if !rustix::process::geteuid().is_root() {
        _ = writeln!(std::io::stderr(), "skipped: only root hides nodes");
        return;
    }
    let caps = machine.dir.path().join("caps");
    fs::create_dir(&caps).unwrap();
    ["12", "13"].iter().for_each(|minor| machine.write(&format!("caps/nvidia-cap{minor}"), ""));
    let mut t = Fixture::with(|config| {
        config.partitions = Arc::new(Partitions::new(&config.state_dir, None, vec![machine.divider()]));
    })
    .await;
    let launch = |rank: u32| Launch {
        id: id(rank),
        partition: Some(machine.part(100, 8)),
        hidden_nodes: vec![caps.clone()],
        ..shell(&format!("ls {}", caps.display()))
    };
    assert_eq!(
        (t.run(launch(0)).await, t.log(id(0))),
        (Exit::Code(0), "nvidia-cap12\nnvidia-cap13\n".into())
    );
    machine.write("mig-minors", "gpu3/gi1/access 12\ngpu3/gi1/ci0/access 13\n");
    // These are files, which are not let in.
    assert_eq!((t.run(launch(1)).await, t.log(id(1))), (Exit::Code(0), String::new()));
    t.done().await;
}

#[test]
fn virtual_chips_have_the_template_of_their_chip_that_is_large_enough() {
    let Some(machine) = Machine::new(&VNPU) else { return };
    let partitions = machine.partitions();
    let made = partitions.prepare(id(0), &machine.part(250, 8), true).unwrap();
    assert_eq!(made.nodes, [("/dev/vdavinci100".into(), "/dev/davinci100".into())]);
    assert_eq!(made.instead_of, [Path::new("/dev/davinci5")], "logical 0 is physical 5");
    assert_eq!(
        (env(&made, "ASCEND_VISIBLE_DEVICES"), env(&made, "ASCEND_RUNTIME_OPTIONS")),
        ("100", "VIRTUAL")
    );
    // 17 GiB are more than five cores come with.
    assert_eq!(partitions.prepare(id(1), &machine.part(250, 17), true).unwrap().devices, ["101"]);
    assert_eq!(machine.parts(), "100 0 vir05_1c_16g\n101 0 vir10_3c_32g\n");
    let refused = |number: u32, partition: Partition, contained: bool| {
        partitions.prepare(id(number), &partition, contained).unwrap_err()
    };
    let full = format!("no vNPU template of {} that has room is large enough", VNPU.card);
    assert_eq!(refused(2, machine.part(500, 8), true), full);
    assert_eq!(refused(2, machine.part(501, 8), true), full);
    let host = "virtual chips can be reached from within a container alone: give the job an image";
    assert_eq!(refused(2, machine.part(250, 8), false), host);
    let two = Partition::Instances {
        vendor: Vendor::Ascend,
        cards: vec![VNPU.card.into(), "other".into()],
        slice: Some(Slice { compute_milli: 100, memory_bytes: 1 << 30 }),
    };
    assert_eq!(refused(2, two, true), "a rank has a virtual chip of one chip, not of 2");
    assert_eq!((machine.claims(), machine.parts().lines().count()), (2, 2), "nothing is left of them");
    partitions.release(id(0));
    assert_eq!(machine.parts(), "101 0 vir10_3c_32g\n");
}

#[test]
fn shares_of_cambricon_are_what_was_asked_and_their_profiles_go_with_the_last_of_them() {
    let Some(machine) = Machine::new(&SMLU) else { return };
    let partitions = machine.partitions();
    let made = partitions.prepare(id(0), &machine.part(255, 20), true).unwrap();
    assert_eq!(made.devices, ["MLU-part-0-1"]);
    let cap = format!("{}/cap_dev0_mi1", machine.dir.path().display());
    let nodes = format!("/dev/cambricon_dev0,/dev/cambricon_ipcm0,{cap}");
    assert_eq!(env(&made, "VIRTUAL_DEVICES"), nodes);
    assert!(made.env.contains(&("CAMBRICON_VISIBLE_DEVICES".into(), String::new())), "not the whole card");
    let of_card = fs::read_to_string(machine.dir.path().join("profiles")).unwrap();
    assert_eq!(of_card, format!("0 3 25 {}\n", 20u64 << 30), "a hundredth below");
    // One of the same size has the same profile.
    partitions.prepare(id(1), &machine.part(250, 20), true).unwrap();
    assert_eq!(machine.parts(), "0 1 3\n0 2 3\nprofile\n");
    let full = partitions.prepare(id(2), &machine.part(100, 41), true).unwrap_err();
    assert_eq!(
        full,
        format!("{} has no room for 10 % and 41984 MiB: 50 % and 40960 MiB are left", SMLU.card)
    );
    assert!(partitions.prepare(id(2), &machine.part(510, 1), true).unwrap_err().contains("no room for 51 %"));
    partitions.release(id(0));
    assert_eq!(machine.parts(), "0 2 3\nprofile\n");
    // A driver that does not let go is told, and asked again by the next.
    machine.write("busy", "");
    partitions.release(id(1));
    assert_eq!(machine.parts(), "0 2 3\nprofile\n");
    fs::remove_file(machine.dir.path().join("busy")).unwrap();
    machine.partitions().reconcile(&BTreeSet::new());
    assert_eq!(machine.parts(), "");
    fs::remove_file(machine.dir.path().join("smlu")).unwrap();
    let off = partitions.prepare(id(3), &machine.part(100, 1), true).unwrap_err();
    assert_eq!(off, format!("{} is not there, or not in sMLU mode", SMLU.card));
}

#[test]
fn cards_of_amd_are_parted_as_a_whole_while_nobody_is_on_them() {
    let kernel = Kernel::new();
    let dir = tempfile::tempdir().unwrap();
    let next = || {
        let divider = open(Vendor::Amd, &kernel.roots()).unwrap();
        Partitions::new(dir.path(), None, vec![divider])
    };
    let partitions = next();
    let of = |compute_milli: u32, gib: u64| Partition::Instances {
        vendor: Vendor::Amd,
        cards: vec![kernel::CARD.into()],
        slice: Some(Slice { compute_milli, memory_bytes: gib << 30 }),
    };
    kernel.obeying(|| {
        let made = partitions.prepare(id(0), &of(200, 48), true).unwrap();
        assert_eq!(kernel.mode(), "QPX", "a fifth takes a quarter");
        assert_eq!(made.nodes, [("/dev/dri/renderD128".into(), "/dev/dri/renderD128".into())]);
        assert_eq!(env(&made, "AMD_VISIBLE_DEVICES"), "none");
        let made = partitions.prepare(id(1), &of(10, 1), true).unwrap();
        assert_eq!(made.nodes, [("/dev/dri/renderD129".into(), "/dev/dri/renderD129".into())]);
        assert_eq!(made.instead_of, [Path::new("/dev/dri/renderD128")]);
        let why = partitions.prepare(id(2), &of(300, 1), true).unwrap_err();
        let in_use = "is in use in 4 parts, 2 of them: none that is free is large enough";
        assert_eq!(why, format!("{} {in_use}", kernel::CARD));
        assert_eq!((kernel.mode(), kernel.parts()), ("QPX".into(), 4), "whoever is on it is not disturbed");
        // To the scheduler it is one card, whatever it is parted into.
        let roots = Roots { parts_on_demand: [Vendor::Amd].into(), ..kernel.roots() };
        let found = || BySysfs::new(Vendor::Amd, &roots).discover().devices;
        let parted = found();
        assert_eq!((parted.len(), parted[0].parts), (1, Some(Isolation::Limited)));
        next().reconcile(&BTreeSet::from([id(1)]));
        assert_eq!(kernel.mode(), "QPX", "one of them runs on");
        next().reconcile(&BTreeSet::new());
        assert_eq!((kernel.mode(), kernel.parts()), ("SPX".into(), 1));
        assert_eq!(found(), parted);
        assert_eq!(BySysfs::new(Vendor::Amd, &kernel.roots()).discover().devices.len(), 1);
        assert_eq!(partitions.prepare(id(3), &of(100, 1), true).unwrap().devices.len(), 1);
        assert_eq!((kernel.mode(), kernel.parts()), ("CPX".into(), 8), "as many parts as possible");
        partitions.release(id(3));
        let whole =
            Partition::Instances { vendor: Vendor::Amd, cards: vec![kernel::CARD.into()], slice: None };
        let on_node = partitions.prepare(id(4), &whole, false).unwrap_err();
        assert!(on_node.contains("give the job an image"), "its number may change: {on_node}");
        partitions.prepare(id(4), &whole, true).unwrap();
        let in_use = partitions.prepare(id(5), &of(100, 1), true).unwrap_err();
        assert!(in_use.contains("is in use in 1 parts"), "{in_use}");
        partitions.release(id(4));
    });
    // A driver that refuses, since programs are on the card.
    fs::remove_file(kernel.mode_file()).unwrap();
    fs::create_dir(kernel.mode_file()).unwrap();
    let refused = partitions.prepare(id(6), &of(100, 1), true).unwrap_err();
    assert!(refused.starts_with(&format!("{} cannot be parted as CPX: ", kernel::CARD)), "{refused}");
}

#[test]
fn whoever_looks_for_cards_while_one_is_parted_misses_none() {
    let (kernel, dir) = (Kernel::new(), tempfile::tempdir().unwrap());
    let roots = Roots { parts_on_demand: [Vendor::Amd].into(), ..kernel.roots() };
    let partitions = Partitions::new(dir.path(), None, vec![open(Vendor::Amd, &roots).unwrap()]);
    let part = |compute_milli: u32| Partition::Instances {
        vendor: Vendor::Amd,
        cards: vec![kernel::CARD.into()],
        slice: Some(Slice { compute_milli, memory_bytes: 1 << 30 }),
    };
    let done = AtomicBool::new(false);
    let looks = std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let (mut amd, mut looks) = (BySysfs::new(Vendor::Amd, &roots), 0);
            while !done.load(Ordering::Acquire) {
                let found = amd.discover();
                assert_eq!((found.devices.len(), &found.findings[..]), (1, &[][..]), "{found:#?}");
                looks += 1;
            }
            looks
        });
        let end = OnDrop(&done);
        kernel.obeying(|| {
            for compute_milli in [500, 100, 250, 125, 400] {
                partitions.prepare(id(0), &part(compute_milli), true).unwrap();
                partitions.release(id(0));
            }
        });
        drop(end);
        looking.join().unwrap()
    });
    assert!(5 < looks, "it looked {looks} times");
}

#[test]
fn an_agent_that_is_killed_at_any_step_leaves_nothing_to_the_next() {
    for way in [&MIG, &VNPU, &SMLU] {
        let Some(machine) = Machine::new(way) else { return };
        let dir = machine.dir.path();
        let (mut left, mut killed) = (BTreeSet::new(), 0);
        // Before each call of the driver that changes something, and after it.
        let ended = loop {
            let when = format!("{}{}", killed / 2, if killed % 2 == 0 { "" } else { "a" });
            let mut agent = Command::new(example("part_one"));
            agent.arg(dir).args([&way.vendor.to_string(), way.card]).arg(dir).arg("/sys");
            let output = agent.env("PART_DIE", &when).output().unwrap();
            if output.status.success() {
                break String::from_utf8_lossy(&output.stdout).into_owned();
            }
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(9), "{}: {said}", way.vendor);
            left.insert(machine.parts());
            machine.partitions().reconcile(&BTreeSet::new());
            let what = (machine.parts(), machine.claims());
            assert_eq!(what, (String::new(), 0), "{} killed at step {when}", way.vendor);
            killed += 1;
        };
        assert_eq!(
            (ended, machine.parts(), machine.claims()),
            (format!("[\"{}\"]\n", way.first), String::new(), 0)
        );
        assert_eq!((killed, left), (2 * way.steps, way.left.iter().map(|it| it.to_string()).collect()));
    }
}

#[test]
fn a_driver_that_crashes_at_any_step_fails_the_worker_and_leaves_nothing_behind() {
    for way in [&MIG, &VNPU, &SMLU] {
        let Some(machine) = Machine::new(way) else { return };
        let dir = machine.dir.path();
        let mut failed = 0;
        for step in 0..2 * way.steps {
            let when = format!("{}{}c", step / 2, if step % 2 == 0 { "" } else { "a" });
            let mut agent = Command::new(example("part_one"));
            agent.arg(dir).args([&way.vendor.to_string(), way.card]).arg(dir).arg("/sys");
            let output = agent.env("PART_DIE", &when).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            let left = (machine.parts(), machine.claims());
            assert_eq!(left, (String::new(), 0), "{} crashed at step {when}: {said}", way.vendor);
            let why = format!("{} crashed (SIGKILL) in ", way.library);
            assert_eq!(output.status.signal(), None, "{said}");
            assert!(output.status.success() || said.contains(&why), "{said}");
            failed += usize::from(!output.status.success());
        }
        // A crash while parts are removed is nothing that a worker is told of.
        assert_eq!(failed, way.steps, "{}: half of the steps make the part", way.vendor);
    }
}

#[test]
fn a_card_of_amd_is_whole_again_whenever_its_agent_is_killed() {
    let mut left = BTreeSet::new();
    for stage in 0..5 {
        let (kernel, dir) = (Kernel::new(), tempfile::tempdir().unwrap());
        let mut agent = Command::new(example("part_one"));
        agent.arg(dir.path()).args(["amd", kernel::CARD]).arg("/none").arg(kernel.roots().sysfs);
        let mut agent = agent.stdout(Stdio::null()).spawn().unwrap();
        let claims = dir.path().join("partitions/claims");
        let claimed = || fs::read_dir(&claims).map_or(0, |claims| claims.count()) == 1;
        let until = |reached: &dyn Fn() -> bool| until(&format!("stage {stage}"), reached);
        // It has said what it is about to do; has told the kernel; the kernel has done it; it undoes it; that is done.
        until(&claimed);
        if 0 < stage {
            until(&|| kernel.mode() == "QPX");
        }
        if 1 < stage {
            kernel.obey();
        }
        if 2 < stage {
            until(&|| kernel.mode() == "SPX");
        }
        if 3 < stage {
            kernel.obey();
        }
        agent.kill().unwrap();
        agent.wait().unwrap();
        left.insert((kernel.mode(), kernel.parts()));
        kernel.obeying(|| {
            let divider = open(Vendor::Amd, &kernel.roots()).unwrap();
            Partitions::new(dir.path(), None, vec![divider]).reconcile(&BTreeSet::new());
        });
        assert_eq!((kernel.mode(), kernel.parts(), claimed()), ("SPX".into(), 1, false), "stage {stage}");
    }
    for state in [("QPX", 1), ("SPX", 4), ("SPX", 1)] {
        assert!(left.contains(&(state.0.into(), state.1)), "it was killed midway: {left:?}");
    }
}

#[tokio::test]
async fn a_worker_sees_its_instance_alone_which_lives_as_long_as_it_does() {
    let Some(machine) = Machine::new(&MIG) else { return };
    let mut t = Fixture::with(|config| {
        config.partitions = Arc::new(Partitions::new(&config.state_dir, None, vec![machine.divider()]));
    })
    .await;
    let gate = t.dir.path().join("gate");
    let script =
        format!("echo on $CUDA_VISIBLE_DEVICES; until [ -e {} ]; do sleep 0.01; done", gate.display());
    let env = vec![("CUDA_VISIBLE_DEVICES".to_string(), "GPU-0000".to_string())];
    t.start(Launch { partition: Some(machine.part(100, 8)), env, ..shell(&script) }).await;
    t.wait_for_log(id(0), "on MIG-1\n").await;
    assert_eq!(machine.parts(), "1 19 1\n");
    t.drop_agent();
    t.open().await;
    assert_eq!(t.found, [(id(0), WorkerState::Running)]);
    assert_eq!(machine.parts(), "1 19 1\n", "it is adopted with its worker");
    let too_large = Launch { id: id(1), partition: Some(machine.part(1000, 10)), ..shell("exit 0") };
    let why = "no MIG profile of GPU-0000 that has room is large enough";
    assert_eq!(t.run(too_large).await, failed(why));
    fs::write(gate, "").unwrap();
    assert_eq!(t.exit_of(id(0)).await, Exit::Code(0));
    assert_eq!(machine.parts(), "", "it is gone before its exit is told");
    t.done().await;
}

#[tokio::test]
async fn a_container_has_the_nodes_of_its_part_and_a_worker_without_one_is_refused() {
    let Some(machine) = Machine::new(&SMLU) else { return };
    let mut t = Fixture::with(|config| {
        config.partitions = Arc::new(Partitions::new(&config.state_dir, None, vec![machine.divider()]));
    })
    .await;
    let why = "sMLU instances can be reached from within a container alone: give the job an image";
    let on_node = Launch { partition: Some(machine.part(100, 8)), ..shell("exit 0") };
    assert_eq!(t.run(on_node).await, failed(why));
    let engine = t.dir.path().join("engine");
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/containers/engine.sh"), &engine).unwrap();
    fs::create_dir_all(t.dir.path().join("containers")).unwrap();
    let engine = Arc::new(container::find(&EngineChoice::This(engine)).0.unwrap());
    let device =
        ShownDevice { vendor: Vendor::Cambricon, uuid: SMLU.card.into(), number: 0, is_parted: true };
    let container = Container {
        engine,
        image: "localhost/app:1".into(),
        devices: vec![device.clone()],
        device_nodes: vec!["/dev/null".into()],
        renamed_nodes: Vec::new(),
        mounts: Vec::new(),
        read_only: Vec::new(),
        asked: Vec::new(),
    };
    let whole = ShownDevice { is_parted: false, ..device.clone() };
    let slice = Some(Slice { compute_milli: 100, memory_bytes: 8 << 30 });
    assert_eq!(
        (
            t.config.partitions.wanted(&[whole], slice),
            t.config.partitions.wanted(std::slice::from_ref(&device), None)
        ),
        (None, None)
    );
    let partition =
        t.config.partitions.wanted(&[device], Some(Slice { compute_milli: 100, memory_bytes: 8 << 30 }));
    assert_eq!(partition, Some(machine.part(100, 8)));
    let script = "echo $VIRTUAL_DEVICES";
    let launch = |rank: u32| Launch {
        id: id(rank),
        partition: partition.clone(),
        container: Some(container.clone()),
        ..shell(script)
    };
    assert_eq!(t.run(launch(1)).await, Exit::Code(0));
    let cap = machine.dir.path().join("cap_dev0_mi1").display().to_string();
    assert_eq!(t.log(id(1)).trim(), format!("/dev/cambricon_dev0,/dev/cambricon_ipcm0,{cap}"));
    let calls = fs::read_to_string(t.dir.path().join("calls")).unwrap();
    let run = calls.lines().find(|call| call.starts_with("run")).unwrap();
    assert!(run.contains(&format!(" --device=/dev/null --device={cap} ")), "{run}");
    assert_eq!(machine.parts(), "", "it is gone before its exit is told");
    machine.write("no-node", "");
    let why = format!("{cap} is not there, although the driver has made it");
    assert_eq!(t.run(launch(2)).await, failed(&why));
    assert_eq!(machine.parts(), "", "nothing is left of it");
    t.done().await;
}

#[tokio::test]
async fn ranks_on_a_device_share_one_service_that_ends_with_the_last_of_them() {
    let mut t = Fixture::with(|config| {
        let program = config.state_dir.parent().unwrap().join("nvidia-cuda-mps-control");
        fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/partitions/mps-control.sh"), &program).unwrap();
        config.partitions = Arc::new(Partitions::new(&config.state_dir, Some(Mps::new(program)), Vec::new()));
    })
    .await;
    let mps = t.config.state_dir.join("partitions/mps");
    let services = || fs::read_dir(&mps).map_or(0, |dirs| dirs.count());
    let gate = |rank: u32| t.dir.path().join(format!("gate-{rank}"));
    let share = |rank: u32, device: &str| {
        let until = format!("until [ -e {} ]; do sleep 0.01; done", gate(rank).display());
        let partition = Some(Partition::Share { devices: vec![device.into()] });
        Launch { id: id(rank), partition, ..shell(&format!("echo at $CUDA_MPS_PIPE_DIRECTORY; {until}")) }
    };
    let launches = [share(0, "GPU-a"), share(1, "GPU-a"), share(2, "GPU-b")];
    let gates: Vec<_> = (0..3).map(gate).collect();
    for (rank, launch) in (0..).zip(launches) {
        t.start(launch).await;
        t.wait_for_log(id(rank), "pipe\n").await;
    }
    assert_eq!((t.log(id(0)) == t.log(id(1)), t.log(id(0)) == t.log(id(2)), services()), (true, false, 2));
    let calls = fs::read_to_string(t.dir.path().join("calls")).unwrap();
    assert_eq!(calls, "-d GPU-a\n-d GPU-a\n-d GPU-b\n");
    t.drop_agent();
    t.open().await;
    assert_eq!((t.found.len(), services()), (3, 2), "they outlive their agent, as their ranks do");
    for (rank, left) in [(0u32, 2), (1, 1), (2, 0)] {
        fs::write(&gates[rank as usize], "").unwrap();
        assert_eq!(t.exit_of(id(rank)).await, Exit::Code(0));
        assert_eq!(services(), left);
    }
    let several = Partition::Share { devices: vec!["GPU-a".into(), "GPU-b".into()] };
    let launch = Launch { id: id(3), partition: Some(several), ..shell("exit 0") };
    assert_eq!(t.run(launch).await, failed("a rank has a share of one device, not of 2"));
    eventually("no daemon", || running("sleep 1017").is_empty()).await;
    t.done().await;
}
