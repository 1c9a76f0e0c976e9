//! Parts of devices that are made for a worker are gone when it is, whoever is killed meanwhile.

mod fixture;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use aquifer_agent::Launch;
use aquifer_agent::partitions::{Mig, Mps, Partition, Partitions};
use aquifer_core::{Exit, Slice, WorkerState};
use fixture::*;

/// Builds the stub into a directory; false, said aloud, where there is no C compiler.
fn stub(dir: &Path) -> bool {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stubs/mig.c");
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(dir.join("libnvidia-ml.so.1"));
    let built = compiler.arg(format!("-DDIR=\"{}\"", dir.display())).arg(source).status();
    match built {
        Ok(status) => assert!(status.success(), "mig.c does not compile"),
        Err(error) => {
            _ = writeln!(std::io::stderr(), "skipped: cc: {error}");
            return false;
        }
    }
    true
}

fn instances(dir: &Path) -> String {
    fs::read_to_string(dir.join("instances")).unwrap_or_default()
}

fn part(compute_milli: u32, gib: u64) -> Partition {
    let slice = Some(Slice { compute_milli, memory_bytes: gib << 30 });
    Partition::Instances { cards: vec!["GPU-0000".into()], slice }
}

#[test]
fn instances_are_as_large_as_asked_and_what_does_not_fit_is_said() {
    let dir = tempfile::tempdir().unwrap();
    if !stub(dir.path()) {
        return;
    }
    let open = || Mig::open(&[dir.path().into()]).unwrap();
    let partitions = Partitions::new(dir.path(), None, Some(open()));
    let made = partitions.prepare(id(0), &part(100, 8)).unwrap();
    assert_eq!((made.devices, &made.env[0].1[..]), (vec!["MIG-1".into()], "MIG-1"));
    assert_eq!(partitions.prepare(id(1), &part(300, 30)).unwrap().devices, ["MIG-2"]);
    assert_eq!(instances(dir.path()), "1 19 1\n2 9 1\n");
    let full = partitions.prepare(id(2), &part(500, 50)).unwrap_err();
    assert_eq!(full, "no MIG profile of GPU-0000 that has room is large enough");
    let unknown = Partition::Instances { cards: vec!["GPU-x".into()], slice: None };
    assert_eq!(partitions.prepare(id(3), &unknown).unwrap_err(), "nvmlDeviceGetHandleByUUID returned 6");
    partitions.release(id(0));
    assert_eq!(instances(dir.path()), "2 9 1\n");
    // The next agent keeps what a worker holds that runs on, and nothing else.
    fs::write(dir.path().join("instances"), "2 9 1\n5 14 1\n").unwrap();
    let next = Partitions::new(dir.path(), None, Some(open()));
    next.reconcile(&BTreeSet::from([id(1)]));
    assert_eq!(instances(dir.path()), "2 9 1\n");
    next.reconcile(&BTreeSet::new());
    assert_eq!(instances(dir.path()), "");
    let whole = Partition::Instances { cards: vec!["GPU-0000".into()], slice: None };
    next.prepare(id(4), &whole).unwrap();
    assert_eq!(instances(dir.path()), "1 0 1\n");
}

#[test]
fn an_agent_that_is_killed_at_any_step_leaves_nothing_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    if !stub(dir.path()) {
        return;
    }
    let mut left = BTreeSet::new();
    for step in 0..100 {
        for when in [format!("{step}"), format!("{step}a")] {
            let mut agent = Command::new(example("part_one"));
            agent.args([dir.path(), dir.path()]).env("MIG_DIE", &when);
            let ended = agent.output().unwrap();
            if ended.status.success() {
                assert_eq!(instances(dir.path()), "");
                assert_eq!(String::from_utf8_lossy(&ended.stdout), "[\"MIG-1\"]\n");
                // Make the instance, its compute; destroy that, and the instance.
                assert_eq!((step, &when[..]), (4, "4"));
                assert_eq!(
                    left,
                    ["", "1 14 0\n", "1 14 1\n"].map(String::from).into(),
                    "it was killed midway"
                );
                return;
            }
            assert_eq!(ended.status.signal(), Some(9), "{}", String::from_utf8_lossy(&ended.stderr));
            left.insert(instances(dir.path()));
            let mig = Mig::open(&[dir.path().into()]).unwrap();
            Partitions::new(dir.path(), None, Some(mig)).reconcile(&BTreeSet::new());
            assert_eq!(instances(dir.path()), "", "killed at step {when}");
            let claims = fs::read_dir(dir.path().join("partitions/claims")).unwrap().count();
            assert_eq!(claims, 0, "killed at step {when}");
        }
    }
}

#[tokio::test]
async fn a_worker_sees_its_instance_alone_which_lives_as_long_as_it_does() {
    let dir = tempfile::tempdir().unwrap();
    if !stub(dir.path()) {
        return;
    }
    let mig = Mig::open(&[dir.path().into()]).unwrap();
    let mut t = Fixture::with(|config| {
        config.partitions = Arc::new(Partitions::new(&config.state_dir, None, Some(mig)));
    })
    .await;
    let gate = t.dir.path().join("gate");
    let script =
        format!("echo on $CUDA_VISIBLE_DEVICES; until [ -e {} ]; do sleep 0.01; done", gate.display());
    let env = vec![("CUDA_VISIBLE_DEVICES".to_string(), "GPU-0000".to_string())];
    t.start(Launch { partition: Some(part(100, 8)), env, ..shell(&script) }).await;
    t.wait_for_log(id(0), "on MIG-1\n").await;
    assert_eq!(instances(dir.path()), "1 19 1\n");
    t.drop_agent();
    t.open().await;
    assert_eq!(t.found, [(id(0), WorkerState::Running)]);
    assert_eq!(instances(dir.path()), "1 19 1\n", "it is adopted with its worker");
    let too_large = Launch { id: id(1), partition: Some(part(1000, 10)), ..shell("exit 0") };
    let why = "no MIG profile of GPU-0000 that has room is large enough";
    assert_eq!(t.run(too_large).await, failed(why));
    fs::write(gate, "").unwrap();
    assert_eq!(t.exit_of(id(0)).await, Exit::Code(0));
    assert_eq!(instances(dir.path()), "", "it is gone before its exit is told");
    t.done().await;
}

#[tokio::test]
async fn ranks_on_a_device_share_one_service_that_ends_with_the_last_of_them() {
    let mut t = Fixture::with(|config| {
        let program = config.state_dir.parent().unwrap().join("nvidia-cuda-mps-control");
        fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/partitions/mps-control.sh"), &program).unwrap();
        config.partitions = Arc::new(Partitions::new(&config.state_dir, Some(Mps::new(program)), None));
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
