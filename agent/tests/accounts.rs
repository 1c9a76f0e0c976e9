//! What a worker may do and what it leaves: privileges, memory on the disk, temporary files, and as whom it runs. The last needs
//! root, without which it says so and passes.

mod fixture;

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use aquifer_agent::{Launch, News, RunFile};
use aquifer_core::{Exit, JobId, Member, Members, StopReason, WorkerState};
use fixture::*;

/// A user whom every system knows, and who owns nothing.
const USER: &str = "nobody";

/// A launcher in whose directory others may go; `None`: this is not root, which is said.
async fn of_root() -> Option<Fixture> {
    if !rustix::process::geteuid().is_root() {
        // Not captured, as what is printed would be.
        _ = writeln!(std::io::stderr(), "skipped: only root can run workers as other users");
        return None;
    }
    let mut t = Fixture::new().await;
    fs::set_permissions(t.dir.path(), Permissions::from_mode(0o755)).unwrap();
    t.launcher().tell(Arc::new(Members {
        job: JobId(1),
        attempt: 1,
        epoch: 3,
        members: vec![Member { rank: 0, address: ("10.0.0.1".into(), 20000) }],
    }));
    Some(t)
}

fn as_user(script: &str) -> Launch {
    Launch { run_as: Some(USER.into()), ..shell(script) }
}

fn secret(dir: &Path, mode: u32) -> String {
    let file = dir.join("secret");
    fs::write(&file, "{\"message\":\"s3cret\"}").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
    file.display().to_string()
}

#[tokio::test]
async fn a_worker_gains_nothing_and_leaves_nothing() {
    let mut t = Fixture::new().await;
    let script = "grep NoNewPrivs /proc/self/status; ulimit -c; touch $TMPDIR/left && echo $TMPDIR";
    assert_eq!(t.run(shell(script)).await, Exit::Code(0));
    let tmp = t.run_dir(id(0)).join("tmp");
    assert_eq!(t.log(id(0)), format!("NoNewPrivs:\t1\n0\n{}\n", tmp.display()));
    assert!(!tmp.exists(), "its temporary files are left");
    let env = vec![("TMPDIR".to_string(), "/var/tmp".to_string())];
    assert_eq!(t.run(Launch { id: id(1), env, ..shell("echo $TMPDIR") }).await, Exit::Code(0));
    assert_eq!(t.log(id(1)), "/var/tmp\n", "a job may want another one");
    t.done().await;
}

#[tokio::test]
async fn a_worker_runs_as_the_user_of_its_job() {
    let Some(mut t) = of_root().await else { return };
    let script = "id -un; echo $HOME $USER; grep Groups /proc/self/status; cat $HOSTS; touch $TMPDIR/x $AQUIFER_RUN_DIR/y; \
                  grep -o '\"epoch\":3' $AQUIFER_RUN_DIR/members.json; \
                  cat $AQUIFER_RUN_DIR/../spec.json; touch $AQUIFER_RUN_DIR/../z; mv $AQUIFER_RUN_DIR/../log /tmp; \
                  echo '{\"message\":\"hello\"}' > $AQUIFER_RUN_DIR/status.json";
    let files = vec![RunFile { name: "hostfile", content: "a slots=1\n".into(), variables: vec!["HOSTS"] }];
    t.launcher().launch(Launch { files, ..as_user(script) });
    let (mut said, mut exit) = (None, None);
    while exit.is_none() {
        match t.hear().await {
            News::Status { status, .. } => said = Some(status.message.clone()),
            News::State { state: WorkerState::Exited(how), .. } => exit = Some(how),
            News::State { .. } => (),
        }
    }
    assert_eq!((exit, said), (Some(Exit::Code(0)), Some(Some("hello".to_string()))));
    let log = t.log(id(0));
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..2], [USER, &format!("/nonexistent {USER}")], "{log}");
    let groups = Command::new("id").args(["-G", USER]).output().unwrap().stdout;
    let groups = String::from_utf8(groups).unwrap();
    assert!(lines[2].split_whitespace().skip(1).eq(groups.split_whitespace()), "groups: {log}");
    assert_eq!(lines[3..5], ["a slots=1", "\"epoch\":3"], "{log}");
    assert_eq!(lines[5..].len(), 3, "it may neither read nor write the agent's files: {log}");
    assert!(lines[5..].iter().all(|line| line.contains("denied")), "{log}");
    assert!(!t.run_dir(id(0)).join("own/tmp").exists());
    t.done().await;
}

#[tokio::test]
async fn links_of_a_worker_lead_the_agent_nowhere() {
    let Some(mut t) = of_root().await else { return };
    let file = secret(t.dir.path(), 0o600);
    let script = format!(
        "cd $AQUIFER_RUN_DIR; ln -s {file} status.json; ln -s {file} stop.json.tmp; rm -r tmp; ln -s /etc tmp; \
         trap 'cat stop.json; exit 0' TERM; echo ready; while :; do sleep 0.01; done"
    );
    t.start(as_user(&script)).await;
    t.wait_for_log(id(0), "ready").await;
    t.launcher().stop(id(0), StopReason::Preempt);
    loop {
        match t.hear().await {
            News::Status { status, .. } => panic!("a secret was told: {status:?}"),
            News::State { state: WorkerState::Exited(exit), .. } => break assert_eq!(exit, Exit::Code(0)),
            News::State { .. } => (),
        }
    }
    assert!(t.log(id(0)).contains("\"reason\":\"preempt\""), "{}", t.log(id(0)));
    assert!(fs::read_to_string(file).unwrap().contains("s3cret"), "it was written to");
    assert!(Path::new("/etc/passwd").exists());
    t.done().await;
}

#[tokio::test]
async fn a_worker_of_another_user_ends_with_its_supervisor() {
    let Some(mut t) = of_root().await else { return };
    t.start(as_user("exec sleep 1031")).await;
    let (worker, supervisor) = (t.pid(id(0), "worker"), t.pid(id(0), "supervisor"));
    // Nobody is left who could end it.
    t.drop_agent();
    kill_9(supervisor);
    eventually("the worker ends", || !is_alive(worker)).await;
    t.open().await;
    assert_eq!(t.exit_of(id(0)).await, failed("its supervisor was killed while there was no agent"));
    t.done().await;
}

#[tokio::test]
async fn a_directory_that_its_user_may_not_enter_is_named() {
    let Some(mut t) = of_root().await else { return };
    let dir = t.dir.path().join("private");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();
    let text = dir.display().to_string();
    let exit = t.run(Launch { working_dir: Some(dir), ..as_user("true") }).await;
    assert_eq!(exit, failed(&format!("working_dir {text}: permission denied")));
    t.done().await;
}

#[tokio::test]
async fn who_may_not_run_anything_is_named() {
    let Some(mut t) = of_root().await else { return };
    let cases = [
        ("root", "has number 0"),
        ("no-such-user", "does not exist on this node"),
        ("", "does not exist on this node"),
    ];
    for (rank, (user, why)) in (0..).zip(cases) {
        let Exit::Failed(said) =
            t.run(Launch { id: id(rank), run_as: Some(user.into()), ..shell("true") }).await
        else {
            panic!("{user:?} runs")
        };
        assert!(said.contains(why) && said.contains(&format!("{user:?}")), "{said}");
    }
    t.done().await;
}

#[tokio::test]
async fn a_directory_of_nodes_has_a_worker_s_own_and_no_others_whenever_they_appear() {
    let Some(mut t) = of_root().await else { return };
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let nodes = dir.path().join("nodes");
    fs::create_dir(&nodes).unwrap();
    let [Some(own), Some(other)] = ["own", "other"].map(|name| device(&nodes, name)) else { return };
    let gate = dir.path().join("gate");
    let script = format!(
        "cd {} && ls && head -c 1 own | wc -c; echo; until [ -e {} ]; do sleep 0.01; done; ls; cat other later",
        nodes.display(),
        gate.display()
    );
    for (rank, user) in [(0, None), (1, Some(USER.to_string()))] {
        let (hidden_nodes, own_nodes) = (vec![nodes.clone(), other.clone()], vec![own.clone()]);
        let launch = Launch { id: id(rank), run_as: user, hidden_nodes, own_nodes, ..shell(&script) };
        t.start(launch).await;
        t.wait_for_log(id(rank), "\n\n").await;
        let Some(later) = device(&nodes, "later") else { return };
        fs::write(&gate, "").unwrap();
        assert_eq!(t.exit_of(id(rank)).await, Exit::Code(1));
        let log = t.log(id(rank));
        let lines: Vec<&str> = log.lines().map(str::trim).collect();
        assert_eq!(lines[..4], ["own", "1", "", "own"], "{log}");
        assert!(lines[4..].iter().all(|line| line.contains("No such file")) && lines.len() == 6, "{log}");
        for made in [&gate, &later] {
            fs::remove_file(made).unwrap();
        }
    }
    assert_eq!(fs::read_dir(&nodes).unwrap().count(), 2, "nothing of it is seen outside");
    t.done().await;
}

/// A device node that reads as zeros.
fn device(dir: &Path, name: &str) -> Option<PathBuf> {
    let node = dir.join(name);
    let made = Command::new("mknod").arg("-m").arg("666").arg(&node).args(["c", "1", "5"]).status();
    let works = made.is_ok_and(|made| made.success()) && fs::File::open(&node).is_ok();
    if !works {
        _ = writeln!(std::io::stderr(), "skipped: no device nodes can be made and opened here");
    }
    works.then_some(node)
}

#[tokio::test]
async fn a_worker_opens_no_device_that_is_hidden_from_it_and_all_else_as_before() {
    let Some(mut t) = of_root().await else { return };
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let [Some(own), Some(other)] = ["own", "other"].map(|name| device(dir.path(), name)) else { return };
    fs::write(dir.path().join("file"), "text").unwrap();
    let script = format!(
        "cd {} && head -c 1 own | wc -c; head -c 1 other; test -c other && cat file && grep -c other /proc/self/mounts",
        dir.path().display()
    );
    // What is not there, or is no device, is nobody's to hide.
    let hidden = vec![other.clone(), dir.path().join("none"), dir.path().join("file")];
    for (rank, user) in [(0, None), (1, Some(USER.to_string()))] {
        let launch = Launch { id: id(rank), run_as: user, hidden_nodes: hidden.clone(), ..shell(&script) };
        let exit = t.run(launch).await;
        let log = t.log(id(rank));
        assert_eq!(exit, Exit::Code(0), "{log}");
        let lines: Vec<&str> = log.lines().collect();
        assert_eq!((lines[0].trim(), lines[2]), ("1", "text1"), "{log}");
        assert!(lines[1].contains("other") && lines[1].ends_with("Permission denied"), "{log}");
    }
    // Nothing of it is seen outside, nor by the next worker.
    assert!(fs::File::open(&other).is_ok() && fs::File::open(&own).is_ok());
    let next = Launch { id: id(2), ..shell(&format!("head -c 1 {} | wc -c", other.display())) };
    assert_eq!((t.run(next).await, t.log(id(2)).trim()), (Exit::Code(0), "1"));
    t.done().await;
}
