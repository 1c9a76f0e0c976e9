//! Cards that are none: what an agent measures, on which card, and what becomes of it. Of NVIDIA's the driver's two libraries are
//! stand-ins, of Intel's the kernel's files and the site's program that measures them; agent, worker and kernels are the real ones.

#[path = "../worker/tests/support/fake_cuda.rs"]
mod fake_cuda;
mod pool;

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use aquifer_proto::v1;
use aquifer_proto::v1::JobState::Running;
use pool::{Pool, command, devices, shell, until};

/// Builds the stand-in for NVML with two cards, `GPU-0000-0` and `GPU-0000-1`, of which the second is index 0. `None`, said
/// aloud, without compilers.
fn driver(dir: &Path) -> Option<PathBuf> {
    let libraries = fake_cuda::libraries()?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("agent/tests/stubs/shaped.c");
    let mut compiler = Command::new("cc");
    compiler.args([
        "-shared",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-DPREFIX=nvml",
        "-DNAME=\"NVIDIA H100 80GB HBM3\"",
        "-DRECOVERY",
    ]);
    compiler.args(["-DUUID=\"GPU-0000\"", &format!("-DDIR=\"{}\"", dir.display()), "-o"]);
    match compiler.arg(dir.join("libnvidia-ml.so.1")).arg(source).status() {
        Ok(status) => assert!(status.success(), "shaped.c does not compile"),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            _ = writeln!(std::io::stderr(), "skipped: no C compiler");
            return None;
        }
        Err(error) => panic!("cc: {error}"),
    }
    Some(libraries)
}

/// A pool whose agents have the cards, and the flags of one. Copies on a card, the second figure of a measurement, end as the
/// variable `copies` says.
fn machine(copies: &str) -> Option<(Pool, [String; 6])> {
    let mut pool = Pool::start();
    let libraries = driver(pool.dir())?;
    let text = |name: &str, value: &str| (name.to_string(), value.to_string());
    pool.set_env(&[
        text("LD_LIBRARY_PATH", libraries.to_str().unwrap()),
        text("FAKE_CUDA_CARDS", "GPU-0000-0,GPU-0000-1"),
        text("FAKE_CUDA_LOG", &pool.file("used-cards")),
        text("AQUIFER_KERNEL_CACHE", "off"),
        text(copies, "copy"),
    ]);
    let dir = pool.dir().to_str().unwrap();
    let flags = ["--devices", "nvidia", "--library-path", dir, "--measure", "auto"].map(str::to_string);
    Some((pool, flags))
}

fn start(pool: &mut Pool, flags: &[String]) {
    pool.agent("a", &flags.iter().map(String::as_str).collect::<Vec<&str>>());
}

/// A card that computes wrong sums and does not know it, in one node of five. A gang on four of them ends twice as programs do
/// whose collective operations hang; real probes by the worker find the node, and the gang goes on without it.
#[test]
fn a_node_with_a_broken_card_is_found_by_probes_beside_others_and_cordoned() {
    let mut pool = Pool::with(&["--rounds", "1h"]);
    let Some(libraries) = driver(pool.dir()) else { return };
    let text = |name: &str, value: &str| (name.to_string(), value.to_string());
    let env = [
        text("LD_LIBRARY_PATH", libraries.to_str().unwrap()),
        text("FAKE_CUDA_CARDS", "GPU-0000-0,GPU-0000-1"),
    ];
    let dir = pool.dir().to_str().unwrap().to_string();
    for node in ["a", "b", "c", "d", "e"] {
        let broken = (node == "b").then(|| text("FAKE_CUDA_WRONG", "1"));
        pool.set_env(&env.iter().cloned().chain(broken).collect::<Vec<_>>());
        pool.agent(node, &["--devices", "nvidia", "--library-path", &dir]);
    }
    let script = "test $AQUIFER_ATTEMPT -gt 2 && exec sleep 1000; sleep 0.2; exit 85";
    let gang = v1::JobSpec { retries: 3, ..devices(shell(script), 4, &[(2, "h100-80gb-hbm3")]) };
    let job = pool.submit(gang);
    // Waiting for a node that has found its card broken would take 60 s for each probe, and longer than the gang waits.
    let asked = "attempts 1 and 2 ended alike, others did not answer: 4 nodes are probed in pairs";
    pool.until_note(asked);
    pool.until_note("1 bad");
    let blamed = pool.until_note("b cordoned: it fails probes beside ");
    assert!(
        blamed.text.contains("computes 1 of 65536 sums of a product in another way than it must"),
        "{blamed:?}"
    );
    assert_eq!((blamed.kind.as_str(), blamed.node.as_str()), ("node-blamed", "b"));
    let goes_on = |job: &v1::Job| job.attempt == 3 && job.state() == Running;
    let again = pool.until_job(job, "the third attempt", goes_on);
    let mut nodes: Vec<&str> = again.ranks.iter().map(|rank| &rank.node[..]).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["a", "c", "d", "e"]);
    let told = pool.aquifer(&["nodes"]).ok();
    assert!(told.contains("b: cordoned, because it fails probes beside "), "{told}");
    assert!(["a", "c", "d", "e"].iter().all(|node| pool.node(node).unwrap().cordoned_because.is_empty()));
    // The reason is as durable as the state, until somebody opens the node again.
    pool.kill_server();
    pool.start_server();
    until("the node is back", || pool.node("b").filter(|node| node.up));
    assert!(!pool.node("b").unwrap().cordoned_because.is_empty());
    pool.aquifer(&["uncordon", "b"]).ok();
    assert_eq!(pool.node("b").unwrap().cordoned_because, "");
}

/// What the scheduler is told of the speed of each device.
fn sources(pool: &Pool) -> Vec<String> {
    let inventory = pool.node("a").and_then(|node| node.inventory).expect("the node's report");
    inventory.devices.iter().map(|device| device.speed_source.clone()).collect()
}

fn is_measured(sources: &[String]) -> bool {
    sources.iter().all(|source| source.starts_with("measured: ") && source.ends_with(" TFLOP/s in bf16"))
}

#[test]
fn a_card_that_nobody_uses_is_measured_once_for_its_driver_and_what_breaks_on_it_breaks_no_agent() {
    let Some((mut pool, flags)) = machine("FAKE_CUDA_CRASH") else { return };
    // Index 0 is used by a program that is none of the agent's.
    fs::write(pool.file("used"), "").unwrap();
    start(&mut pool, &flags);
    until("the cards are measured", || is_measured(&sources(&pool)).then_some(()));
    assert_eq!(pool.read("used-cards"), "GPU-0000-0\n", "the card that nobody uses, and once for both");
    let told = pool.aquifer(&["node", "a"]).ok();
    assert!(told.contains("h100-80gb-hbm3: measured: "), "{told}");
    let told: serde_json::Value =
        serde_json::from_str(&pool.aquifer(&["nodes", "--json"]).ok()).expect("JSON");
    let figures = &told[0]["devices"][1]["measured"];
    assert!(figures["bf16_tflops"].as_f64().is_some_and(|rate| 0.0 < rate), "{told}");
    assert!(figures["memory_gbs"].is_null(), "the copy crashes: {told}");
    let broken = "nvidia: h100-80gb-hbm3 was not measured to the end: signal: 6 (SIGABRT)";
    until("the finding", || pool.aquifer(&["node", "a"]).ok().contains(broken).then_some(()));

    // The next agent knows it, and one under another driver measures again.
    let before = sources(&pool);
    pool.kill_agent("a");
    pool.agent("a", &[]);
    assert_eq!(sources(&pool), before);
    // It sees whether the card that nobody uses still does what it did, and no more than that.
    until("a probe", || pool.agent_log("a").contains("device probed").then_some(()));
    assert!(!pool.agent_log("a").contains("devices measured"), "{}", pool.agent_log("a"));

    // A card that does a hundredth of what its class was measured to do takes no new work, though nothing else is wrong with it.
    pool.kill_agent("a");
    let kept = pool.file("a/measured.json");
    let mut figures: serde_json::Value = serde_json::from_str(&fs::read_to_string(&kept).unwrap()).unwrap();
    let as_it_was = figures.to_string();
    let tflops = &mut figures[0]["figures"]["bf16_tflops"];
    *tflops = (tflops.as_f64().expect("a figure") * 100.0).into();
    fs::write(&kept, figures.to_string()).unwrap();
    pool.agent("a", &[]);
    let slow = until("a straggler", || pool.node("a")?.inventory?.devices[1].fault.clone());
    assert!(
        slow.starts_with("a probe does ") && slow.ends_with(" % of what its class was measured to do"),
        "{slow}"
    );
    let told = pool.aquifer(&["nodes"]).ok();
    assert!(told.contains(&format!("a: device 1 (h100-80gb-hbm3) is suspect: {slow}")), "{told}");
    pool.kill_agent("a");
    fs::write(&kept, as_it_was).unwrap();
    fs::write(pool.file("new-driver"), "").unwrap();
    pool.agent("a", &[]);
    until("another measurement", || pool.agent_log("a").contains("devices measured").then_some(()));
    until("the cards are measured", || is_measured(&sources(&pool)).then_some(()));

    // By hand, and for the agent of the same directory.
    let (dir, state) = (pool.file(""), pool.file("by-hand"));
    let words =
        ["devices", "--devices", "nvidia", "--library-path", &dir, "--state-dir", &state, "--measure"];
    let mut by_hand = pool::program(pool.dir(), &[&words[..], &["--json"]].concat());
    by_hand.env("LD_LIBRARY_PATH", fake_cuda::libraries().unwrap()).env("FAKE_CUDA_CRASH", "copy");
    by_hand.env("FAKE_CUDA_CARDS", "GPU-0000-0,GPU-0000-1");
    let told = pool::start(pool.dir(), "by-hand", by_hand).finish().ok();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let figures = &told["devices"][1]["measured"];
    assert!(figures["bf16_tflops"].as_f64().is_some_and(|rate| 0.0 < rate), "{told}");
    assert!(figures["memory_gbs"].is_null(), "{told}");
    assert_eq!(told["findings"][0]["what"], broken.trim_start_matches("nvidia: "));
}

/// What a library does to its process is nothing to the agent, nor to what runs on its cards; and it ends with the agent.
#[test]
fn a_library_that_crashes_takes_its_card_out_of_work_and_nothing_else() {
    let mut pool = Pool::start();
    let Some(libraries) = driver(pool.dir()) else { return };
    pool.set_env(&[("LD_LIBRARY_PATH".into(), libraries.to_str().unwrap().into())]);
    let dir = pool.dir().to_str().unwrap().to_string();
    pool.agent("a", &["--devices", "nvidia", "--library-path", &dir]);
    // The first one has the card that the crash is about.
    let jobs = [(); 2].map(|()| pool.submit(devices(shell("sleep 1000"), 1, &[(1, "h100-80gb-hbm3")])));
    jobs.iter().for_each(|job| _ = pool.until_job(*job, "it runs", |job| job.state() == Running));
    let agents = |pool: &Pool| -> Vec<i32> {
        let all = pool.processes().into_iter();
        all.filter(|(_, words)| words.contains(" agent ")).map(|(pid, _)| pid).collect()
    };
    let before = agents(&pool);
    fs::write(pool.file("crash-nvmlDeviceGetUUID"), "").unwrap();
    let why = "libnvidia-ml.so.1 crashed (SIGSEGV) in nvmlDeviceGetUUID";
    let faults = |pool: &Pool| -> Vec<Option<String>> {
        let inventory = pool.node("a").and_then(|node| node.inventory).expect("the node's report");
        inventory.devices.into_iter().map(|device| device.fault).collect()
    };
    until("the fault", || (faults(&pool) == [Some(why.into()), None]).then_some(()));
    assert_eq!(agents(&pool), before, "the agent that it was");
    assert_eq!((pool.job(jobs[1]).state(), pool.job(jobs[1]).attempt), (Running, 1));
    fs::remove_file(pool.file("crash-nvmlDeviceGetUUID")).unwrap();
    fs::write(pool.file("hang-nvmlDeviceGetCount_v2"), "").unwrap();
    let asks =
        |pool: &Pool| pool.processes().iter().filter(|(_, words)| words.contains("ask-library")).count();
    until("a call that hangs", || fs::exists(pool.file("hanging")).unwrap().then_some(()));
    assert_eq!(asks(&pool), 1);
    pool.kill_agent("a");
    until("nobody asks it", || (asks(&pool) == 0).then_some(()));
    fs::remove_file(pool.file("hang-nvmlDeviceGetCount_v2")).unwrap();
    pool.agent("a", &[]);
    until("all is well", || (faults(&pool) == [None, None]).then_some(()));
    assert_eq!(pool.job(jobs[1]).attempt, 1, "it ran on through all of it");
}

#[test]
fn a_worker_gets_its_card_at_once_though_a_measurement_hangs_on_it_and_a_card_that_it_leaves_is_measured() {
    let Some((mut pool, flags)) = machine("FAKE_CUDA_HANG") else { return };
    start(&mut pool, &flags);
    until("a measurement", || (!pool.read("used-cards").is_empty()).then_some(()));
    let measures = |pool: &Pool| {
        let of = |pid: i32| {
            let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap_or_default();
            let card = environment.split('\0').find_map(|it| it.strip_prefix("CUDA_VISIBLE_DEVICES="));
            card.map(str::to_string)
        };
        let found = pool.processes().into_iter().filter(|(_, words)| words.contains("worker measure"));
        found.filter_map(|(pid, _)| of(pid)).collect::<Vec<String>>()
    };
    assert_eq!(measures(&pool), ["GPU-0000-1"]);
    let sleeper = || devices(command(&["sleep", "1000"]), 1, &[(1, "h100-80gb-hbm3")]);
    let job = pool.submit(sleeper());
    pool.until_state(job, Running);
    let held = pool.job(job).ranks[0].devices.clone();
    // Nobody but root can keep it from the other card's node, and from those of instances.
    if rustix::process::geteuid().is_root() {
        let spec = fs::read_to_string(pool.run_dir(job, 1, 0).unwrap().join("spec.json")).unwrap();
        let spec: serde_json::Value = serde_json::from_str(&spec).unwrap();
        assert_eq!(
            spec["hidden_nodes"],
            serde_json::json!(["/dev/nvidia-caps", format!("/dev/nvidia{}", 1 - held[0])]),
            "{spec}"
        );
    }
    // If the worker got the other card, the measurement went on beside it; if not, it made way, and began on the other one.
    let free = ["GPU-0000-1", "GPU-0000-0"][1 - held[0] as usize];
    until("a measurement on the free card", || (measures(&pool) == [free]).then_some(()));
    let second = pool.submit(sleeper());
    pool.until_state(second, Running);
    assert_eq!(measures(&pool), [""; 0], "no card is free");
    pool.cancel(job);
    let left = ["GPU-0000-1", "GPU-0000-0"][held[0] as usize];
    until("a measurement on the card that is free again", || (measures(&pool) == [left]).then_some(()));
}

/// A card that the worker has no kernels for is measured and probed by a program of the site, which may say that it is in use.
#[test]
fn a_card_without_kernels_is_measured_and_probed_by_the_site_s_program() {
    let mut pool = Pool::start();
    let card = PathBuf::from(pool.file("sys/bus/pci/devices/0000:4d:00.0"));
    let put = |file: &str, text: &str| {
        let path = card.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    for (file, text) in [("vendor", "0x8086"), ("device", "0x0bd5"), ("class", "0x038000")] {
        put(file, text);
    }
    put("tile0/vram0/total_bytes", "137438953472");
    std::os::unix::fs::symlink("/sys/bus/pci/drivers/xe", card.join("driver")).unwrap();
    let (program, dir) = (pool.file("measure"), pool.dir().display().to_string());
    let script = format!(
        r#"#!/bin/sh
echo "$* sees $ZE_AFFINITY_MASK" >> {dir}/asked
test -e {dir}/busy && exit 75
echo '{{"bf16_tflops":250.5}}'
echo '{{"bf16_tflops":250.5,"memory_gbs":2000}}'
"#
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(pool.file("busy"), "").unwrap();
    let asked = |pool: &Pool| pool.read("asked").lines().map(str::to_string).collect::<Vec<String>>();
    let about = "intel intel-0000:4d:00.0 0000:4d:00.0 0";

    let sysfs = pool.file("sys");
    let flags = ["--devices", "intel", "--sysfs", &sysfs, "--measure", "auto", "--measure-with", &program];
    pool.agent("a", &flags);
    until("it is in use", || pool.agent_log("a").contains("not measured now: it is in use").then_some(()));
    assert_eq!(asked(&pool), [format!("{about} sees 0")]);
    assert_eq!(sources(&pool), ["not measured, as the reference device"]);
    fs::remove_file(pool.file("busy")).unwrap();
    pool.kill_agent("a");
    pool.agent("a", &[]);
    let measured = "measured: 250.500 TFLOP/s in bf16";
    until("it is measured", || (sources(&pool) == [measured]).then_some(()));
    assert_eq!(asked(&pool).len(), 2);

    // What looks suspicious is probed, and what passes takes work again, though its sensor says the same as before.
    put("hwmon/hwmon1/temp2_crit", "105000");
    put("hwmon/hwmon1/temp2_input", "105000");
    until("a probe", || (asked(&pool).last()? == &format!("{about} --probe sees 0")).then_some(()));
    until("it is well", || pool.node("a")?.inventory?.devices[0].fault.is_none().then_some(()));

    // By hand what the agent's program has measured counts, and no other place is looked into for a program.
    let words = ["devices", "--devices", "intel", "--sysfs", &sysfs, "--state-dir", &pool.file("a")];
    let told = pool::start(pool.dir(), "by-hand", pool::program(pool.dir(), &words)).finish().ok();
    assert!(told.contains(measured), "{told}");
    let relative = [&words[..], &["--measure-with", "measure"]].concat();
    let refused = pool::start(pool.dir(), "refused", pool::program(pool.dir(), &relative)).finish();
    let why = "--measure-with: expected a program with its whole path";
    assert!(refused.code == Some(2) && refused.err.contains(why), "{refused:?}");
}
