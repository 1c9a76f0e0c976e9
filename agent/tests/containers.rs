//! The contract of a worker, in a container: through an engine that has none, and through podman where it runs.

mod fixture;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use aquifer_agent::container::{self, Container, Engine, EngineChoice};
use aquifer_agent::{Launch, News, Ready};
use aquifer_core::{Exit, StopReason, WorkerState};
use fixture::*;

const ENGINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/containers/engine.sh");

/// An engine of the test's own.
fn engine(t: &Fixture) -> Arc<Engine> {
    let program = t.dir.path().join("engine");
    fs::copy(ENGINE, &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(t.dir.path().join("containers")).unwrap();
    let (engine, findings) = container::find(&EngineChoice::This(program));
    assert_eq!(findings, Vec::<String>::new());
    Arc::new(engine.unwrap())
}

fn contained(engine: &Arc<Engine>, image: &str, launch: Launch) -> Launch {
    let container = Container {
        engine: engine.clone(),
        image: image.into(),
        devices: Vec::new(),
        device_nodes: vec!["/dev/null".into(), "/dev/no-such-node".into()],
        renamed_nodes: Vec::new(),
        mounts: Vec::new(),
        read_only: vec!["/no/such/driver".into()],
        asked: Vec::new(),
    };
    Launch { container: Some(container), ..launch }
}

fn calls(t: &Fixture) -> Vec<String> {
    fs::read_to_string(t.dir.path().join("calls")).unwrap_or_default().lines().map(String::from).collect()
}

fn containers(t: &Fixture) -> Vec<PathBuf> {
    fs::read_dir(t.dir.path().join("containers")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn env(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

#[tokio::test]
async fn a_program_in_a_container_finds_what_the_contract_says_and_nothing_else() {
    let mut t = Fixture::new().await;
    let engine = engine(&t);
    assert_eq!(engine.to_string(), "docker 0.1");
    let script = "/usr/bin/env | /usr/bin/sort; pwd; echo \"$0 $1\"; \
                  echo '{\"ready\":true,\"step\":5}' > $AQUIFER_RUN_DIR/status.json; exit 7";
    let work = t.dir.path().join("work dir");
    fs::create_dir(&work).unwrap();
    let launch = Launch {
        env: env(&[("TOKEN", "a b\"c"), ("PATH", "/bin"), ("LINES", "1\n2")]),
        working_dir: Some(work.clone()),
        cpus_milli: 500,
        memory_bytes: 64 << 20,
        cpu_affinity: vec![0],
        ready: Ready::ByStatus,
        ..worker(&["/bin/sh", "-c", script, "one", "--privileged"])
    };
    t.launcher().launch(contained(&engine, "localhost/app:1", launch));
    let mut step = None;
    let exit = loop {
        match t.hear().await {
            News::Status { status, .. } => step = status.step,
            News::State { state: WorkerState::Exited(exit), .. } => break exit,
            News::State { .. } => (),
        }
    };
    assert_eq!((exit, step), (Exit::Code(7), Some(5)));
    let dir = t.run_dir(id(0)).display().to_string();
    let work = work.display();
    let log = t.log(id(0));
    // Some shells set these themselves.
    let own = |line: &&str| !["PWD=", "OLDPWD=", "SHLVL=", "_="].iter().any(|own| line.starts_with(own));
    let lines: Vec<&str> = log.lines().filter(own).collect();
    let found =
        ["2", &format!("AQUIFER_RUN_DIR={dir}"), "LINES=1", "PATH=/bin", "TOKEN=a b\"c"].map(String::from);
    assert_eq!(lines, [&found[..], &[work.to_string(), "one --privileged".into()]].concat());
    let run = calls(&t).into_iter().find(|call| call.starts_with("run")).unwrap();
    for flag in
        ["--cpus=0.500", "--memory=67108864b", "--cpuset-cpus=0", "--network=host", "--device=/dev/null"]
    {
        assert!(run.contains(&format!(" {flag} ")), "{flag}: {run}");
    }
    assert!(run.contains(&format!("--mount=type=bind,source={work},target={work} ")), "{run}");
    assert!(run.contains(&format!("--mount=type=bind,source={dir},target={dir} ")), "{run}");
    assert!(!run.contains("no-such") && !run.contains("/no/such") && !run.contains("a b"), "{run}");
    let name = run.split(' ').find_map(|word| word.strip_prefix("--name=")).unwrap();
    assert!(name.starts_with("aquifer-job-1.1-0-"), "{name}");
    assert_eq!(calls(&t).last().unwrap(), &format!("rm --force --volumes {name}"));
    assert_eq!(containers(&t), Vec::<PathBuf>::new());
    t.done().await;
}

#[tokio::test]
async fn a_container_is_stopped_as_any_worker_is() {
    let mut t = Fixture::new().await;
    let engine = engine(&t);
    let start = |rank, grace_ms, script: &str| {
        let launch =
            Launch { id: id(rank), grace_ms, env: env(&[("PATH", "/bin:/usr/bin")]), ..shell(script) };
        contained(&engine, "app", launch)
    };
    let idle = "echo ready; while :; do sleep 0.01; done";
    let obeys = "trap 'cat $AQUIFER_RUN_DIR/stop.json; exit 3' TERM; ".to_string() + idle;
    let acknowledges = "trap 'touch $AQUIFER_RUN_DIR/stop-ack' TERM; ".to_string() + idle;
    let ignores = "trap '' TERM; ".to_string() + idle;
    let cases = [
        (10_000, &obeys[..], Exit::Code(3)),
        (10_000, idle, Exit::Signal(15)),
        (10_000, &acknowledges, failed("ended: it acknowledged that it was asked to stop")),
        (200, &ignores, failed("killed: it did not stop within 200 ms")),
    ];
    for (rank, (grace_ms, script, expected)) in (0..).zip(cases) {
        t.start(start(rank, grace_ms, script)).await;
        t.wait_for_log(id(rank), "ready").await;
        t.launcher().stop(id(rank), StopReason::Cancel);
        assert_eq!(t.exit_of(id(rank)).await, expected);
        assert_eq!(containers(&t), Vec::<PathBuf>::new(), "{script}");
    }
    assert!(t.log(id(0)).contains("\"reason\":"), "it was told why: {}", t.log(id(0)));
    t.start(start(9, 10_000, &ignores)).await;
    t.wait_for_log(id(9), "ready").await;
    t.launcher().kill(id(9));
    assert_eq!(t.exit_of(id(9)).await, Exit::Signal(9));
    assert_eq!(containers(&t), Vec::<PathBuf>::new());
    t.done().await;
}

#[tokio::test]
async fn every_end_of_a_container_has_its_sentence() {
    let mut t = Fixture::new().await;
    let engine = engine(&t);
    let oom = "cd $(dirname $AQUIFER_RUN_DIR)/../../../containers/aquifer-job-1.1-3-*; \
               echo '{\"StartedAt\":\"2026\",\"OOMKilled\":true}' > state; kill -9 $$";
    let cases = [
        ("app", "exit 0", Exit::Code(0)),
        ("app", "exit 125", Exit::Code(125)),
        ("app", "kill -11 $$", Exit::Signal(11)),
        ("app", oom, failed("out of memory: it may use 64 MiB")),
        (
            "localhost/missing",
            "exit 0",
            failed("its container did not start: Error: localhost/missing: no such image"),
        ),
    ];
    for (rank, (image, script, expected)) in (0..).zip(cases) {
        let env = env(&[("PATH", "/bin:/usr/bin")]);
        let launch = Launch { id: id(rank), env, memory_bytes: 64 << 20, ..shell(script) };
        assert_eq!(t.run(contained(&engine, image, launch)).await, expected, "{image}: {script}");
    }
    let mut launch = contained(&engine, "app", Launch { id: id(8), ..shell("exit 0") });
    let asked = ["/usr:/usr/sets:ro", "/no/such/sets:/data"].map(|text| text.parse().unwrap());
    launch.container.as_mut().unwrap().asked = asked.into();
    let expected = "mount /no/such/sets: the node has no such file or directory";
    assert_eq!(t.run(launch).await, failed(expected));
    let gone = Arc::new(Engine { program: "/no/such/engine".into(), ..(*engine).clone() });
    let launch = contained(&gone, "app", Launch { id: id(9), ..shell("exit 0") });
    assert_eq!(t.run(launch).await, failed("program /no/such/engine: no such file"));
    assert_eq!(containers(&t), Vec::<PathBuf>::new());
    t.done().await;
}

#[tokio::test]
async fn a_container_is_adopted_by_the_next_agent_and_removed_after_its_supervisors_death() {
    let mut t = Fixture::new().await;
    let engine = engine(&t);
    let gate = t.dir.path().join("gate");
    let script = format!("until [ -e {} ]; do sleep 0.01; done; exit 42", gate.display());
    let launch = |rank, script: &str| {
        contained(
            &engine,
            "app",
            Launch { id: id(rank), env: env(&[("PATH", "/bin:/usr/bin")]), ..shell(script) },
        )
    };
    t.start(launch(0, &script)).await;
    t.start(launch(1, "echo ready; while :; do sleep 0.01; done")).await;
    t.wait_for_log(id(1), "ready").await;
    t.drop_agent();
    t.open().await;
    let found: BTreeMap<_, _> = t.found.iter().cloned().collect();
    assert_eq!(found, [(id(0), WorkerState::Running), (id(1), WorkerState::Running)].into());
    fs::write(gate, "").unwrap();
    assert_eq!(t.exit_of(id(0)).await, Exit::Code(42));
    kill_9(t.pid(id(1), "supervisor"));
    assert_eq!(t.exit_of(id(1)).await, failed("its supervisor was killed"));
    assert_eq!(containers(&t), Vec::<PathBuf>::new());
    t.done().await;
}

#[tokio::test]
async fn a_container_that_a_restart_of_the_node_left_over_is_removed() {
    let mut t = Fixture::new().await;
    let engine = engine(&t);
    let launch = Launch { env: env(&[("PATH", "/bin:/usr/bin")]), ..shell("echo ready; sleep 1000") };
    t.start(contained(&engine, "app", launch)).await;
    t.wait_for_log(id(0), "ready").await;
    let spec = t.run_dir(id(0)).join("spec.json");
    t.drop_agent();
    let text = fs::read_to_string(&spec).unwrap();
    let key = "\"boot_id\":\"";
    let at = text.find(key).unwrap() + key.len();
    fs::write(&spec, format!("{}another{}", &text[..at], &text[at..])).unwrap();
    t.open().await;
    assert_eq!(t.found, [(id(0), WorkerState::Exited(failed("its node was restarted")))]);
    assert_eq!(containers(&t), Vec::<PathBuf>::new());
    eventually("the end of all processes", || t.processes().is_empty()).await;
    t.done().await;
}

/// A program without libraries, in an image of nothing else; and podman as it runs on this machine: as it is, or, where
/// the kernel has control groups of both versions, without those of version 2.
fn podman(dir: &Path) -> Result<(Arc<Engine>, &'static str), String> {
    let source = dir.join("program.c");
    fs::write(&source, include_str!("containers/program.c")).unwrap();
    let built =
        Command::new("cc").args(["-static", "-O1", "-o"]).args([&dir.join("program"), &source]).output();
    if !built.is_ok_and(|built| built.status.success()) {
        return Err("no static program can be compiled".into());
    }
    fs::write(dir.join("Containerfile"), "FROM scratch\nCOPY program /program\n").unwrap();
    let storage = format!("--root={0}/storage --runroot={0}/run --storage-driver=vfs", dir.display());
    let flags = format!("{storage} --cgroup-manager=cgroupfs --events-backend=file");
    // What a container may open and start by default is more than every machine gives.
    let limits = "if [ \"$1\" = run ]; then shift; \
                  set -- run --ulimit=nofile=1024:1024 --ulimit=nproc=4096:4096 \"$@\"; fi";
    let plain = format!("#!/bin/sh\n{limits}\nexec podman {flags} \"$@\"\n");
    let apart = format!(
        "#!/bin/sh\n{limits}\nexec unshare -m sh -c 'umount /sys/fs/cgroup/unified; exec podman {flags} \"$@\"' sh \"$@\"\n"
    );
    let mut why = String::new();
    for (name, script) in [("podman", plain), ("podman-apart", apart)] {
        let program = dir.join(name);
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let say = |arguments: &[&str]| {
            let ran = Command::new(&program).args(arguments).current_dir(dir).output();
            let ran = ran.map_err(|error| error.to_string())?;
            match ran.status.success() {
                true => Ok(()),
                false => {
                    Err(String::from_utf8_lossy(&ran.stderr).lines().last().unwrap_or_default().to_string())
                }
            }
        };
        let works = say(&["build", "--isolation=chroot", "-t", "localhost/program", "."]).and_then(|()| {
            say(&["run", "--rm", "--network=host", "localhost/program", "/program", "exit", "0"])
        });
        match works {
            Err(error) => why = error,
            Ok(()) => {
                let (engine, findings) = container::find(&EngineChoice::This(program));
                return engine.map(|it| (Arc::new(it), "localhost/program")).ok_or(findings.join("; "));
            }
        }
    }
    Err(format!("podman does not run here: {why}"))
}

/// Until the engine has noted that a container runs, which may be after that has said something: podman passes no signal on
/// before.
async fn until_known(engine: &Engine) {
    eventually("a container that runs", || {
        let listed = Command::new(&engine.program).args(["ps", "--quiet"]).output().unwrap();
        !listed.stdout.is_empty()
    })
    .await;
}

#[tokio::test]
async fn podman_runs_a_worker_from_its_start_to_every_end() {
    let mut t = Fixture::with(|config| config.enforce_limits = true).await;
    let dir = t.dir.path().join("podman");
    fs::create_dir(&dir).unwrap();
    let (engine, image) = match podman(&dir) {
        Ok(found) => found,
        Err(why) => {
            eprintln!("skipped: {why}");
            return t.done().await;
        }
    };
    eprintln!("ran with {engine} at {}", engine.program.display());
    let launch = |rank, words: &[&str]| {
        let program: Vec<&str> = [&["/program"], words].concat();
        let launch = Launch { id: id(rank), env: env(&[("GREETING", "hello\nyou")]), ..worker(&program) };
        contained(&engine, image, Launch { memory_bytes: 256 << 20, cpus_milli: 1000, ..launch })
    };
    assert_eq!(t.run(launch(0, &["exit", "5"])).await, Exit::Code(5));
    let dir_of_run = t.run_dir(id(0)).display().to_string();
    assert_eq!(t.log(id(0)), format!("hello\nyou\n{dir_of_run}\nexit\n"));
    assert!(t.run_dir(id(0)).join("from-within").exists(), "the run directory is seen in the container");
    if engine.init {
        assert_eq!(t.run(launch(1, &["signal", "11"])).await, Exit::Signal(11));
    } else {
        eprintln!("skipped: how a signal that nothing handles ends it, for which podman needs catatonit");
    }
    let (sets, cache) = (dir.join("sets"), dir.join("cache"));
    fs::create_dir(&sets).unwrap();
    fs::create_dir(&cache).unwrap();
    fs::write(sets.join("one"), "forty-two").unwrap();
    let mut mounted = launch(6, &["mounts", "/data/sets/one", "/cache/new", "/data/sets/new"]);
    let asked = [format!("{}:/data/sets:ro", sets.display()), format!("{}:/cache", cache.display())];
    mounted.container.as_mut().unwrap().asked = asked.map(|text| text.parse().unwrap()).into();
    assert_eq!(t.run(mounted).await, Exit::Code(0), "{}", t.log(id(6)));
    assert!(t.log(id(6)).ends_with("\nforty-two\n"), "{}", t.log(id(6)));
    assert!(cache.join("new").exists() && !sets.join("new").exists());
    t.start(launch(2, &["obey"])).await;
    t.wait_for_log(id(2), "obey").await;
    until_known(&engine).await;
    t.launcher().stop(id(2), StopReason::Cancel);
    assert_eq!(t.exit_of(id(2)).await, Exit::Code(3));
    t.start(Launch { grace_ms: 300, ..launch(3, &["ignore"]) }).await;
    t.wait_for_log(id(3), "ignore").await;
    until_known(&engine).await;
    t.launcher().stop(id(3), StopReason::Cancel);
    assert_eq!(t.exit_of(id(3)).await, failed("killed: it did not stop within 300 ms"));
    t.start(launch(4, &["obey"])).await;
    t.wait_for_log(id(4), "obey").await;
    t.drop_agent();
    t.open().await;
    assert!(t.found.contains(&(id(4), WorkerState::Running)));
    kill_9(t.pid(id(4), "supervisor"));
    assert_eq!(t.exit_of(id(4)).await, failed("its supervisor was killed"));
    let missing = contained(&engine, "localhost:1/missing", launch(5, &["exit", "0"]));
    let Exit::Failed(why) = t.run(missing).await else { panic!("there is no such image") };
    assert!(why.starts_with("its container did not start: "), "{why}");
    let left = Command::new(&engine.program).args(["ps", "--all", "--quiet"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "", "no container is left");
    t.done().await;
}
