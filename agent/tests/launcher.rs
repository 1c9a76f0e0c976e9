//! Real processes under a real launcher.

mod fixture;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aquifer_agent::{Launch, Launcher, LauncherConfig, LauncherError, News, Ready};
use aquifer_core::{Exit, Member, Members, StopReason, WorkerId, WorkerState};
use fixture::*;
use rustix::process::{Pid, Signal};
use tokio::sync::mpsc;

#[tokio::test]
async fn a_worker_runs_and_its_exit_code_arrives() {
    let mut t = Fixture::new().await;
    t.launcher().launch(shell("exit 42"));
    assert_eq!(t.hear().await, News::State { id: id(0), state: WorkerState::Running });
    assert_eq!(t.hear().await, News::State { id: id(0), state: WorkerState::Exited(Exit::Code(42)) });
    t.done().await;
}

#[tokio::test]
async fn a_signal_that_ends_a_worker_is_told() {
    let mut t = Fixture::new().await;
    assert_eq!(t.run(shell("kill -USR1 $$")).await, Exit::Signal(10));
    t.done().await;
}

#[tokio::test]
async fn both_outputs_arrive_in_the_log_and_can_be_read_in_pieces() {
    let mut t = Fixture::new().await;
    assert_eq!(t.run(shell("echo out; echo error >&2; read nothing || echo no input")).await, Exit::Code(0));
    assert_eq!(t.log(id(0)), "out\nerror\nno input\n");
    let piece = t.launcher().read_log(id(0), 4, 5).unwrap();
    assert_eq!((piece.data.as_slice(), piece.next_offset, piece.ended), (&b"error"[..], 9, false));
    let rest = t.launcher().read_log(id(0), 9, 100).unwrap();
    assert_eq!((rest.data.as_slice(), rest.next_offset, rest.ended), (&b"\nno input\n"[..], 19, true));
    let behind = t.launcher().read_log(id(0), 1000, 100).unwrap();
    assert_eq!((behind.data.len(), behind.next_offset, behind.ended), (0, 19, true));
    let error = t.launcher().read_log(id(7), 0, 100).unwrap_err();
    assert_eq!(error.to_string(), "job-1.1/7 never ran here, or its log was pruned");
    t.done().await;
}

#[tokio::test]
async fn following_a_log_waits_for_what_comes_and_ends_with_the_worker() {
    let mut t = Fixture::new().await;
    let gate = t.dir.path().join("gate");
    let script = format!("echo one; while [ ! -e {} ]; do sleep 0.01; done; echo two", gate.display());
    t.start(shell(&script)).await;
    let logs = t.launcher().logs();
    let one = logs.follow(id(0), 0, 100, PATIENCE).await.unwrap();
    assert_eq!((one.data.as_slice(), one.ended), (&b"one\n"[..], false));
    let nothing = logs.follow(id(0), one.next_offset, 100, Duration::from_millis(1)).await.unwrap();
    assert_eq!((nothing.data.len(), nothing.ended), (0, false));
    fs::write(gate, "").unwrap();
    let two = logs.follow(id(0), one.next_offset, 100, PATIENCE).await.unwrap();
    assert_eq!(two.data, b"two\n");
    assert!(logs.follow(id(0), two.next_offset, 100, PATIENCE).await.unwrap().ended);
    assert_eq!(t.exit_of(id(0)).await, Exit::Code(0));
    t.done().await;
}

#[tokio::test]
async fn the_environment_is_the_agents_with_the_launchs_over_it() {
    let mut t = Fixture::new().await;
    let mut launch = shell("echo $GREETING; echo $AQUIFER_RUN_DIR; pwd; test -n \"$PATH\"");
    launch.env = vec![("GREETING".to_string(), "hello world".to_string())];
    assert_eq!(t.run(launch).await, Exit::Code(0));
    let dir = t.run_dir(id(0)).display().to_string();
    assert_eq!(t.log(id(0)), format!("hello world\n{dir}\n{dir}\n"));
    let mode = fs::metadata(t.run_dir(id(0)).join("spec.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the environment may hold secrets");
    t.done().await;
}

#[tokio::test]
async fn each_failure_to_start_has_its_sentence() {
    let mut t = Fixture::new().await;
    let file = t.dir.path().join("a-file");
    fs::write(&file, "not a program").unwrap();
    let script = t.dir.path().join("script");
    fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let in_dir = |dir: &Path| Launch { working_dir: Some(dir.to_path_buf()), ..worker(&["/bin/true"]) };
    let (file_text, script_text) = (file.to_str().unwrap(), script.to_str().unwrap());
    let cases = [
        (worker(&[]), "command is empty".to_string()),
        (worker(&["no-such-program"]), "program no-such-program: not found in PATH".to_string()),
        (worker(&["/no/such/program"]), "program /no/such/program: no such file".to_string()),
        (worker(&[file_text]), format!("program {file_text}: permission denied")),
        (worker(&[script_text]), format!("program {script_text}: its interpreter does not exist")),
        (in_dir(Path::new("/no/such")), "working_dir /no/such: no such directory".to_string()),
        (in_dir(&file), format!("working_dir {file_text}: not a directory")),
        (
            Launch { cpu_affinity: vec![1000], ..worker(&["/bin/true"]) },
            "core 1000: not among the cores of this node's agent".to_string(),
        ),
    ];
    for (rank, (launch, why)) in (0..).zip(cases) {
        t.launcher().launch(Launch { id: id(rank), ..launch });
        let expected = News::State { id: id(rank), state: WorkerState::Exited(failed(&why)) };
        assert_eq!(t.hear().await, expected, "nothing comes before it");
    }
    t.done().await;
}

#[tokio::test]
async fn a_supervisor_that_cannot_be_started_is_the_jobs_failure() {
    let mut t = Fixture::with(|config| config.supervisor.program = "/no/such/aquifer".into()).await;
    let why = "cannot start supervisor /no/such/aquifer: No such file or directory (os error 2)";
    assert_eq!(t.run(worker(&["/bin/true"])).await, failed(why));
    t.drop_agent();
    t.open().await;
    assert_eq!(t.found, [(id(0), WorkerState::Exited(failed(why)))]);
    t.done().await;
}

#[tokio::test]
async fn a_supervisor_that_is_something_else_is_the_jobs_failure() {
    let mut t = Fixture::with(|config| config.supervisor.program = "/bin/false".into()).await;
    let why = "cannot start supervisor /bin/false: it ended at once: exit status: 1";
    assert_eq!(t.run(worker(&["/bin/true"])).await, failed(why));
    t.done().await;
}

#[tokio::test]
async fn a_run_directory_that_cannot_be_made_is_the_jobs_failure() {
    let mut t = Fixture::new().await;
    let attempt = t.run_dir(id(0)).parent().unwrap().to_path_buf();
    fs::write(&attempt, "in the way").unwrap();
    let why = format!("{}: Not a directory (os error 20)", t.run_dir(id(0)).display());
    assert_eq!(t.run(worker(&["/bin/true"])).await, failed(&why));
    t.done().await;
}

#[tokio::test]
async fn a_state_directory_belongs_to_one_agent_and_must_be_one() {
    let mut t = Fixture::new().await;
    let (sender, _news) = mpsc::channel(1);
    let second = Launcher::open(t.config.clone(), sender.clone()).await;
    assert!(matches!(second.err(), Some(LauncherError::InUse(dir)) if dir == t.config.state_dir));
    t.drop_agent();
    let file = t.dir.path().join("a-file");
    fs::write(&file, "").unwrap();
    let config = LauncherConfig { state_dir: file.clone(), ..t.config.clone() };
    let error = Launcher::open(config, sender).await.err().unwrap().to_string();
    assert!(error.starts_with(&format!("state directory {}: ", file.display())), "{error}");
    t.done().await;
}

#[tokio::test]
async fn a_worker_that_obeys_is_stopped_by_sigterm() {
    let mut t = Fixture::new().await;
    t.start(shell("trap 'echo saving; exit 3' TERM; echo ready; while :; do sleep 0.01; done")).await;
    t.wait_for_log(id(0), "ready").await;
    t.launcher().stop(id(0), StopReason::Cancel);
    assert_eq!(t.exit_of(id(0)).await, Exit::Code(3));
    assert!(t.log(id(0)).ends_with("saving\n"));
    t.done().await;
}

#[tokio::test]
async fn a_worker_that_ignores_sigterm_is_killed_after_its_grace() {
    let mut t = Fixture::new().await;
    let stubborn = shell("trap '' TERM; echo ready; while :; do sleep 0.01; done");
    t.start(Launch { grace_ms: 200, ..stubborn }).await;
    t.wait_for_log(id(0), "ready").await;
    let asked = Instant::now();
    t.launcher().stop(id(0), StopReason::Cancel);
    assert_eq!(t.exit_of(id(0)).await, failed("killed: it did not stop within 200 ms"));
    assert!(Duration::from_millis(200) <= asked.elapsed());
    t.done().await;
}

#[tokio::test]
async fn a_stop_at_once_does_not_wait_for_the_grace() {
    let mut t = Fixture::new().await;
    t.start(shell("trap '' TERM; echo ready; while :; do sleep 0.01; done")).await;
    t.wait_for_log(id(0), "ready").await;
    t.launcher().stop(id(0), StopReason::Cancel);
    t.launcher().kill(id(0));
    t.launcher().stop(id(0), StopReason::Cancel);
    assert_eq!(t.exit_of(id(0)).await, Exit::Signal(9));
    t.done().await;
}

#[tokio::test]
async fn a_grace_that_began_is_kept_by_the_supervisor_when_the_agent_is_gone() {
    let mut t = Fixture::new().await;
    let stubborn = shell("trap 'echo asked' TERM; echo ready; while :; do sleep 0.01; done");
    t.start(Launch { grace_ms: 300, ..stubborn }).await;
    t.wait_for_log(id(0), "ready").await;
    t.launcher().stop(id(0), StopReason::Cancel);
    t.wait_for_log(id(0), "asked").await;
    t.drop_agent();
    eventually("the end of all processes", || t.processes().is_empty()).await;
    t.open().await;
    assert_eq!(t.found, [(id(0), WorkerState::Exited(failed("killed: it did not stop within 300 ms")))]);
    t.done().await;
}

#[tokio::test]
async fn a_stop_right_behind_the_launch_is_not_lost() {
    let mut t = Fixture::new().await;
    for rank in 0..20 {
        t.launcher().launch(Launch { id: id(rank), ..worker(&["/bin/sleep", "1000"]) });
        if rank % 2 == 0 {
            tokio::task::yield_now().await;
        }
        match rank % 3 {
            0 => t.launcher().kill(id(rank)),
            _ => t.launcher().stop(id(rank), StopReason::Cancel),
        }
        let exit = t.exit_of(id(rank)).await;
        let allowed = [Exit::Signal(15), Exit::Signal(9), failed("stopped before it was started")];
        assert!(allowed.contains(&exit), "{exit}");
    }
    t.done().await;
}

#[tokio::test]
async fn nothing_that_a_worker_started_outlives_it() {
    let mut t = Fixture::new().await;
    let script = "sleep 1001 & setsid sleep 1002 & (setsid sh -c 'setsid sleep 1003 & sleep 1004' &); \
                  (env -i setsid sleep 1005 &); sleep 0.05; exit 5";
    assert_eq!(t.run(shell(script)).await, Exit::Code(5));
    assert_eq!(running("sleep 100[1-5]"), "", "one is left");
    t.done().await;
}

#[tokio::test]
async fn an_agent_that_is_dropped_and_reopened_adopts_the_same_process() {
    let mut t = Fixture::new().await;
    let gate = t.dir.path().join("gate");
    t.start(shell(&format!("while [ ! -e {} ]; do sleep 0.01; done; exit 42", gate.display()))).await;
    let pid = t.pid(id(0), "worker");
    t.drop_agent();
    t.open().await;
    assert_eq!(t.found, [(id(0), WorkerState::Running)]);
    assert_eq!(t.pid(id(0), "worker"), pid);
    assert!(is_alive(pid));
    fs::write(gate, "").unwrap();
    assert_eq!(t.exit_of(id(0)).await, Exit::Code(42));
    t.done().await;
}

/// Starts an agent of its own process, and waits until its one worker says that it is ready.
async fn agent_process(t: &mut Fixture, lease_ms: u64, script: &str) -> std::process::Child {
    t.drop_agent();
    let state_dir = t.config.state_dir.to_str().unwrap();
    let agent = Command::new(example("launch_one"))
        .args([state_dir, &lease_ms.to_string(), "/bin/sh", "-c", script])
        .env("AQUIFER_TOKEN", "secret")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let log = t.run_dir(id(0)).join("log");
    eventually("a ready worker", || fs::read_to_string(&log).is_ok_and(|log| log.contains("ready"))).await;
    eventually("its pids", || t.run_dir(id(0)).join("pid.json").exists()).await;
    agent
}

#[tokio::test]
async fn a_worker_survives_kill_9_of_its_agent_and_its_exit_code_arrives() {
    let mut t = Fixture::new().await;
    let gate = t.dir.path().join("gate");
    let script = format!(
        "echo ready$AQUIFER_TOKEN$AWS_SECRET_ACCESS_KEY; until [ -e {} ]; do sleep 0.01; done; exit 42",
        gate.display()
    );
    let mut agent = agent_process(&mut t, 0, &script).await;
    let pid = t.pid(id(0), "worker");
    kill_9(agent.id() as i32);
    agent.wait().unwrap();
    t.open().await;
    assert_eq!(t.found, [(id(0), WorkerState::Running)]);
    assert!(is_alive(pid));
    fs::write(gate, "").unwrap();
    assert_eq!(t.exit_of(id(0)).await, Exit::Code(42));
    assert_eq!(t.log(id(0)), "ready\n", "what is the agent's own does not reach its workers");
    t.done().await;
}

#[tokio::test]
async fn an_exit_while_there_is_no_agent_is_found_by_the_next() {
    let mut t = Fixture::new().await;
    let gate = t.dir.path().join("gate");
    let script = format!("echo ready; while [ ! -e {} ]; do sleep 0.01; done; exit 43", gate.display());
    let mut agent = agent_process(&mut t, 0, &script).await;
    kill_9(agent.id() as i32);
    agent.wait().unwrap();
    fs::write(gate, "").unwrap();
    eventually("the end of all processes", || t.processes().is_empty()).await;
    t.open().await;
    assert_eq!(t.found, [(id(0), WorkerState::Exited(Exit::Code(43)))]);
    t.done().await;
}

#[tokio::test]
async fn an_exclusive_worker_ends_with_the_lease_when_there_is_no_agent() {
    let mut t = Fixture::new().await;
    let script = "setsid sleep 1006 & trap '' TERM; echo ready; while :; do sleep 0.01; done";
    let mut agent = agent_process(&mut t, 1500, script).await;
    let pid = t.pid(id(0), "worker");
    kill_9(agent.id() as i32);
    agent.wait().unwrap();
    assert!(is_alive(pid), "the lease holds");
    eventually("the end of all processes", || t.processes().is_empty()).await;
    t.open().await;
    assert_eq!(t.found, [(id(0), WorkerState::Exited(failed("lease ran out: the agent did not renew it")))]);
    t.done().await;
}

#[tokio::test]
async fn a_worker_that_is_not_exclusive_outlives_the_lease() {
    let mut t = Fixture::new().await;
    t.launcher().extend_lease(Duration::from_millis(50)).unwrap();
    assert_eq!(t.run(shell("sleep 0.3; exit 6")).await, Exit::Code(6));
    t.done().await;
}

#[tokio::test]
async fn a_lease_that_is_renewed_lets_an_exclusive_worker_run_on() {
    let mut t = Fixture::new().await;
    t.launcher().extend_lease(Duration::from_millis(400)).unwrap();
    t.start(Launch { exclusive: true, ..shell("sleep 0.8; exit 7") }).await;
    t.launcher().extend_lease(Duration::from_secs(60)).unwrap();
    t.launcher().extend_lease(Duration::from_millis(1)).unwrap();
    assert_eq!(t.exit_of(id(0)).await, Exit::Code(7));
    t.done().await;
}

#[tokio::test]
async fn without_a_lease_no_exclusive_worker_is_started() {
    let mut t = Fixture::new().await;
    let exit = t.run(Launch { exclusive: true, ..shell("echo started") }).await;
    let lease = t.config.state_dir.join("lease");
    assert_eq!(
        exit,
        failed(&format!("no lease: {}: No such file or directory (os error 2)", lease.display()))
    );
    assert_eq!(t.log(id(0)), "");
    t.done().await;
}

#[tokio::test]
async fn a_lease_file_of_rubbish_ends_exclusive_workers_once_the_known_lease_is_over() {
    let mut t = Fixture::new().await;
    t.launcher().extend_lease(Duration::from_millis(500)).unwrap();
    t.start(Launch { exclusive: true, ..shell("sleep 1007") }).await;
    fs::write(t.config.state_dir.join("lease"), "{\"boot_id\":").unwrap();
    let exit = t.exit_of(id(0)).await;
    assert!(matches!(&exit, Exit::Failed(why) if why.starts_with("lease ran out: ")), "{exit}");
    t.done().await;
}

#[tokio::test]
async fn the_worker_of_a_killed_supervisor_is_killed_and_reported() {
    let mut t = Fixture::new().await;
    let script = "setsid sleep 1008 & (setsid sh -c 'sleep 1009; true' &); (env -i sleep 1014 &); \
                  echo ready; sleep 1010; true";
    t.start(shell(script)).await;
    t.wait_for_log(id(0), "ready").await;
    for sleep in ["sleep 1008", "sleep 1009", "sleep 1014"] {
        eventually(sleep, || !running(sleep).is_empty()).await;
    }
    kill_9(t.pid(id(0), "supervisor"));
    assert_eq!(t.exit_of(id(0)).await, failed("its supervisor was killed"));
    assert_eq!(t.processes(), Vec::<String>::new());
    assert_eq!(running("sleep 10(0[89]|10|14)"), "", "one is left");
    t.drop_agent();
    t.open().await;
    assert_eq!(t.found, [(id(0), WorkerState::Exited(failed("its supervisor was killed")))]);
    t.done().await;
}

#[tokio::test]
async fn a_killed_fork_server_is_missed_by_no_worker_and_replaced() {
    let mut t = Fixture::new().await;
    let gate = t.dir.path().join("gate");
    let script = format!("while [ ! -e {} ]; do sleep 0.01; done; exit 42", gate.display());
    t.start(shell(&script)).await;
    t.start(Launch { id: id(1), ..worker(&["/bin/sleep", "1017"]) }).await;
    let servers = t.fork_servers();
    let [server] = servers[..] else { panic!("fork servers {servers:?}") };
    kill_9(server);
    eventually("the death of the fork server", || !is_alive(server)).await;
    assert!([0, 1].iter().all(|rank| is_alive(t.pid(id(*rank), "worker"))));
    t.start(Launch { id: id(2), ..shell(&script) }).await;
    assert!(!t.fork_servers().contains(&server));
    t.launcher().stop(id(1), StopReason::Cancel);
    assert_eq!(t.exit_of(id(1)).await, Exit::Signal(15));
    fs::write(gate, "").unwrap();
    let exits = [t.hear().await, t.hear().await];
    for rank in [0, 2] {
        let exited = News::State { id: id(rank), state: WorkerState::Exited(Exit::Code(42)) };
        assert!(exits.contains(&exited), "{exits:?}");
    }
    t.done().await;
}

#[tokio::test]
async fn workers_are_adopted_when_agent_and_fork_server_were_killed() {
    let mut t = Fixture::new().await;
    let gate = t.dir.path().join("gate");
    let script = format!("echo ready; until [ -e {} ]; do sleep 0.01; done; exit 42", gate.display());
    let mut agent = agent_process(&mut t, 0, &script).await;
    t.fork_servers().into_iter().for_each(kill_9);
    kill_9(agent.id() as i32);
    agent.wait().unwrap();
    eventually("no fork server", || t.fork_servers().is_empty()).await;
    t.open().await;
    assert_eq!(t.found, [(id(0), WorkerState::Running)]);
    assert_eq!(t.run(Launch { id: id(1), ..worker(&["/bin/true"]) }).await, Exit::Code(0));
    fs::write(gate, "").unwrap();
    assert_eq!(t.exit_of(id(0)).await, Exit::Code(42));
    t.done().await;
}

#[tokio::test]
async fn a_supervisor_runs_one_worker_after_the_other_and_is_replaced_when_it_was_killed() {
    let mut t = Fixture::new().await;
    let mut supervisors = Vec::new();
    for rank in 0..20 {
        let script = "[ $(grep -c . /proc/$PPID/task/$PPID/children) = 1 ]; exit $?";
        assert_eq!(t.run(Launch { id: id(rank), ..shell(script) }).await, Exit::Code(0), "it has one child");
        supervisors.push(t.pid(id(rank), "supervisor"));
    }
    supervisors.dedup();
    let [first] = supervisors[..] else { panic!("supervisors {supervisors:?}") };
    assert!(t.fork_servers().len() == 1 && is_alive(first));
    kill_9(first);
    eventually("its death", || !is_alive(first)).await;
    assert_eq!(t.run(Launch { id: id(20), ..worker(&["/bin/true"]) }).await, Exit::Code(0));
    assert_ne!(t.pid(id(20), "supervisor"), first);
    let children = format!("/proc/{0}/task/{0}/children", t.fork_servers()[0]);
    let count = || fs::read_to_string(&children).unwrap().split_ascii_whitespace().count();
    eventually("no zombies", || count() == 1).await;
    t.done().await;
}

#[tokio::test]
async fn a_signal_for_the_last_worker_of_a_supervisor_does_not_reach_the_next() {
    let mut t = Fixture::new().await;
    assert_eq!(t.run(worker(&["/bin/true"])).await, Exit::Code(0));
    let supervisor = t.pid(id(0), "supervisor");
    for signal in [Signal::TERM, Signal::QUIT] {
        rustix::process::kill_process(Pid::from_raw(supervisor).unwrap(), signal).unwrap();
    }
    assert_eq!(t.run(Launch { id: id(1), ..shell("sleep 0.1; exit 9") }).await, Exit::Code(9));
    assert_eq!(t.pid(id(1), "supervisor"), supervisor);
    t.done().await;
}

#[tokio::test]
async fn a_script_that_names_no_interpreter_is_run_by_the_shell() {
    let mut t = Fixture::new().await;
    let script = t.dir.path().join("script");
    fs::write(&script, "echo $0 $1; exit 4\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut launch = worker(&["script", "argument"]);
    launch.env = vec![("PATH".to_string(), format!("/no/such:{}", t.dir.path().display()))];
    assert_eq!(t.run(launch).await, Exit::Code(4));
    assert_eq!(t.log(id(0)), format!("{} argument\n", script.display()));
    t.done().await;
}

#[tokio::test]
async fn an_exit_that_cannot_be_written_is_said() {
    let mut t = Fixture::new().await;
    let gate = t.dir.path().join("gate");
    t.start(shell(&format!("while [ ! -e {} ]; do sleep 0.01; done", gate.display()))).await;
    fs::remove_dir_all(t.run_dir(id(0))).unwrap();
    fs::write(gate, "").unwrap();
    let why = "it ended, but its exit could not be written: the disk is full or read-only";
    assert_eq!(t.exit_of(id(0)).await, failed(why));
    t.done().await;
}

#[tokio::test]
async fn a_supervisor_that_was_killed_while_there_was_no_agent_is_found_by_the_next() {
    let mut t = Fixture::new().await;
    t.start(shell("setsid sleep 1011 & echo ready; sleep 1012; true")).await;
    t.wait_for_log(id(0), "ready").await;
    let (supervisor, worker) = (t.pid(id(0), "supervisor"), t.pid(id(0), "worker"));
    t.drop_agent();
    kill_9(supervisor);
    eventually("the worker dies with its supervisor", || !is_alive(worker)).await;
    t.open().await;
    assert_eq!(t.found, [(id(0), WorkerState::Running)]);
    assert_eq!(t.exit_of(id(0)).await, failed("its supervisor was killed while there was no agent"));
    assert!(t.launcher().was_lost(id(0)), "it did not fail");
    t.done().await;
}

#[tokio::test]
async fn a_process_that_took_a_dead_supervisors_number_is_left_alone() {
    let mut t = Fixture::new().await;
    t.start(worker(&["/bin/sleep", "1015"])).await;
    let supervisor = t.pid(id(0), "supervisor");
    t.drop_agent();
    kill_9(supervisor);
    eventually("the end of all processes", || t.processes().is_empty()).await;
    // The number now belongs to the leader of another session, and somebody looks after the lock.
    let mut other = Command::new("setsid")
        .args(["sleep", "1016"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pids = t.run_dir(id(0)).join("pid.json");
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&pids).unwrap()).unwrap();
    value["supervisor"] = other.id().into();
    value["supervisor_start"] = 1.into();
    fs::write(&pids, value.to_string()).unwrap();
    let lock = fs::File::open(t.run_dir(id(0)).join("lock")).unwrap();
    lock.lock().unwrap();
    t.open().await;
    assert_eq!(t.exit_of(id(0)).await, failed("its supervisor was killed while there was no agent"));
    assert!(is_alive(other.id() as i32));
    other.kill().unwrap();
    other.wait().unwrap();
    t.done().await;
}

#[tokio::test]
async fn a_run_of_an_earlier_boot_is_over() {
    let mut t = Fixture::new().await;
    t.start(worker(&["/bin/sleep", "1013"])).await;
    let pid = t.pid(id(0), "worker");
    t.drop_agent();
    let spec = t.run_dir(id(0)).join("spec.json");
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let text = fs::read_to_string(&spec).unwrap();
    fs::write(&spec, text.replace(boot_id.trim(), "another-boot")).unwrap();
    t.open().await;
    assert_eq!(t.found, [(id(0), WorkerState::Exited(failed("its node was restarted")))]);
    assert!(is_alive(pid), "a process of that number is none of ours");
    kill_9(pid);
    eventually("the end of all processes", || t.processes().is_empty()).await;
    t.done().await;
}

#[tokio::test]
async fn one_id_is_launched_once() {
    let mut t = Fixture::new().await;
    let gate = t.dir.path().join("gate");
    let script = format!("echo once; while [ ! -e {} ]; do sleep 0.01; done", gate.display());
    t.start(shell(&script)).await;
    t.launcher().launch(shell(&script));
    t.drop_agent();
    t.open().await;
    t.launcher().launch(shell(&script));
    fs::write(gate, "").unwrap();
    assert_eq!(t.exit_of(id(0)).await, Exit::Code(0));
    t.launcher().launch(shell(&script));
    t.launcher().forget(id(0));
    assert_eq!(t.run(shell(&script)).await, Exit::Code(0), "the exit that was recorded stands");
    assert_eq!(t.log(id(0)), "once\n");
    t.done().await;
}

#[tokio::test]
async fn who_takes_the_place_of_workers_that_are_forgotten_knows_who_takes_part() {
    let mut t = Fixture::new().await;
    assert_eq!(t.run(shell("exit 1")).await, Exit::Code(1));
    let WorkerId { job, attempt, .. } = id(1);
    let address = ("127.0.0.1".into(), 7);
    let members = Members { job, attempt, epoch: 5, members: vec![Member { rank: 1, address }] };
    t.launcher().tell(Arc::new(members));
    t.launcher().forget(id(0));
    t.launcher().forget_lists([id(1)].into_iter());
    let next = Launch { id: id(1), ..shell("cat members.json") };
    t.launcher().launch(next);
    assert_eq!(t.exit_of(id(1)).await, Exit::Code(0));
    let expected = r#"{"epoch":5,"members":[{"rank":1,"address":"127.0.0.1:7"}]}"#;
    assert_eq!(t.log(id(1)).trim_end(), expected);
    t.done().await;
}

#[tokio::test]
async fn a_worker_that_announces_itself_runs_once_its_status_says_so() {
    let mut t = Fixture::new().await;
    let script = "say() { echo \"$1\" > s.tmp; mv s.tmp status.json; }\n\
                  wait_for() { while [ ! -e $1 ]; do sleep 0.01; done; }\n\
                  say '{\"state\":\"loading\"}'; wait_for a\n\
                  say rubbish; wait_for b\n\
                  say '{\"state\":\"serving\",\"ready\":true,\"endpoint\":\"here:1\",\"new\":[]}'; wait_for c\n\
                  say '{\"step\":3}'";
    t.launcher().launch(Launch { ready: Ready::ByStatus, ..shell(script) });
    let News::Status { status, .. } = t.hear().await else { panic!("no status") };
    assert_eq!((status.state.as_deref(), status.ready), (Some("loading"), None));
    fs::write(t.run_dir(id(0)).join("a"), "").unwrap();
    fs::write(t.run_dir(id(0)).join("b"), "").unwrap();
    let News::Status { status, .. } = t.hear().await else { panic!("no status") };
    assert_eq!((status.state.as_deref(), status.endpoint.as_deref()), (Some("serving"), Some("here:1")));
    assert_eq!(t.hear().await, News::State { id: id(0), state: WorkerState::Running });
    fs::write(t.run_dir(id(0)).join("c"), "").unwrap();
    let News::Status { status, .. } = t.hear().await else { panic!("the last status was lost") };
    assert_eq!(status.step, Some(3));
    assert_eq!(t.hear().await, News::State { id: id(0), state: WorkerState::Exited(Exit::Code(0)) });
    t.done().await;
}

#[tokio::test]
async fn a_worker_is_pinned_to_its_cores() {
    let mut t = Fixture::new().await;
    let core = *aquifer_agent::host::own_cores().last().unwrap();
    let launch = shell("grep Cpus_allowed_list /proc/self/status");
    assert_eq!(t.run(Launch { cpu_affinity: vec![core], ..launch }).await, Exit::Code(0));
    assert_eq!(t.log(id(0)), format!("Cpus_allowed_list:\t{core}\n"));
    t.done().await;
}

#[tokio::test]
async fn a_worker_inherits_neither_the_lock_nor_blocked_signals() {
    let mut t = Fixture::new().await;
    assert_eq!(t.run(shell("ls -l /proc/self/fd; grep SigBlk /proc/self/status")).await, Exit::Code(0));
    let log = t.log(id(0));
    assert!(log.contains("SigBlk:\t0000000000000000"), "{log}");
    assert!(!log.contains("/lock"), "{log}");
    t.done().await;
}

#[tokio::test]
async fn memory_beyond_the_limit_is_the_end_and_is_said() {
    let mut t = Fixture::with(|config| config.enforce_limits = true).await;
    if !t.launcher().limits().memory {
        _ = writeln!(std::io::stderr(), "skipped: no control group with a memory limit can be made here");
        return t.done().await;
    }
    let hungry = Launch { memory_bytes: 32 << 20, ..worker(&["/usr/bin/tail", "/dev/zero"]) };
    assert_eq!(t.run(hungry).await, failed("out of memory: it may use 32 MiB"));
    let parent = Launch { id: id(2), memory_bytes: 32 << 20, ..shell("/usr/bin/tail /dev/zero; exit $?") };
    assert_eq!(t.run(parent).await, failed("out of memory: it may use 32 MiB"), "of the child of a shell");
    let modest = Launch { id: id(1), memory_bytes: 32 << 20, cpus_milli: 500, ..worker(&["/bin/true"]) };
    assert_eq!(t.run(modest).await, Exit::Code(0));
    t.done().await;
}

#[tokio::test]
async fn two_hundred_workers_run_at_once() {
    let mut t = Fixture::new().await;
    for rank in 0..200 {
        t.launcher().launch(Launch { id: id(rank), ..worker(&["/bin/sleep", "1000"]) });
    }
    for _ in 0..200 {
        assert!(matches!(t.hear().await, News::State { state: WorkerState::Running, .. }));
    }
    for rank in 0..200 {
        t.launcher().stop(id(rank), StopReason::Cancel);
    }
    for _ in 0..200 {
        let News::State { state, .. } = t.hear().await else { panic!("no state") };
        assert_eq!(state, WorkerState::Exited(Exit::Signal(15)));
    }
    t.done().await;
}

#[tokio::test]
async fn forgotten_runs_are_pruned_and_not_reported_again() {
    let mut t = Fixture::with(|config| config.keep.runs = 2).await;
    for rank in 0..5 {
        assert_eq!(t.run(Launch { id: id(rank), ..worker(&["/bin/true"]) }).await, Exit::Code(0));
    }
    for rank in 0..4 {
        t.launcher().forget(id(rank));
    }
    t.drop_agent();
    t.open().await;
    assert_eq!(t.found, [(id(4), WorkerState::Exited(Exit::Code(0)))]);
    eventually("pruned", || !t.run_dir(id(0)).exists() && !t.run_dir(id(1)).exists()).await;
    assert!([2, 3, 4].iter().all(|rank| t.run_dir(id(*rank)).exists()));
    t.done().await;
}

#[tokio::test]
async fn a_full_disk_is_the_jobs_failure_with_its_reason() {
    let mut t = Fixture::new().await;
    t.drop_agent();
    let small = t.dir.path().join("small");
    fs::create_dir(&small).unwrap();
    let small_text = small.to_str().unwrap();
    let mount =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "aquifer-test", small_text]).output();
    if !mount.is_ok_and(|done| done.status.success()) {
        _ = writeln!(std::io::stderr(), "skipped: no small file system can be mounted here");
        return t.done().await;
    }
    t.config.state_dir = small.clone();
    t.open().await;
    // The first fills the disk itself; its exit is recorded all the same.
    let filled = t.run(shell("cat /dev/zero; exit 8")).await;
    let next = t.run(Launch { id: id(1), ..worker(&["/bin/true"]) }).await;
    t.drop_agent();
    t.open().await;
    let found = t.found.clone();
    t.drop_agent();
    assert!(Command::new("umount").arg(&small).status().unwrap().success());
    assert_eq!(filled, Exit::Code(8));
    assert!(
        matches!(&next, Exit::Failed(why) if why.ends_with("No space left on device (os error 28)")),
        "{next}"
    );
    assert_eq!(found[0], (id(0), WorkerState::Exited(Exit::Code(8))));
    t.done().await;
}
