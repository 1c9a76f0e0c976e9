//! What a program and its agent say to each other through the run directory.

mod fixture;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aquifer_agent::account::RunAs;
use aquifer_agent::command::{self, Surroundings};
use aquifer_agent::device::Visibility;
use aquifer_agent::{Launch, News};
use aquifer_core::{
    Allocation, Exit, Host, JobSpec, Launch as Order, NodeId, Program, RankState, Request, Role, Seat,
    Standing, StopReason, Time, Vendor,
};
use fixture::*;
use rustix::process::Signal;
use serde_json::{Value, json};

/// Rank 0 of two ranks that run a shell script, as the scheduler has it started.
fn order(script: &str, env: &[(&str, &str)], hosts: Vec<Host>) -> Order {
    let spec = JobSpec {
        env: env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        grace_ms: 10_000,
        roles: vec![Role {
            name: "worker".into(),
            ranks: 2,
            min_ranks: None,
            request: Request::default(),
            mounts: Vec::new(),
            standing: Standing::default(),
            program: Program::Command(["/bin/sh", "-c", script].map(Into::into).to_vec()),
        }],
        ..JobSpec::default()
    };
    Order {
        spec: Arc::new(spec),
        role: 0,
        world_size: 2,
        local_rank: 0,
        local_world_size: 1,
        node_rank: 0,
        master: ("10.0.0.1".into(), 20_000),
        array_index: None,
        allocation: Allocation {
            rank: 0,
            node: NodeId(0),
            devices: Vec::new(),
            slice: None,
            charge_milli: 0,
            cpus_milli: 1000,
            memory_bytes: 0,
            port: 20_000,
            worker: RankState::Assigned,
            since: Time(0),
            restart_at: None,
            hasty: 0,
        },
        hosts: hosts.into(),
    }
}

fn surroundings() -> Surroundings {
    Surroundings {
        program: "/no/such/program".into(),
        checkpoint_root: String::new(),
        address: "10.0.0.1".into(),
        run_as: RunAs::Agent,
    }
}

fn launch(order: &Order) -> Launch {
    Launch { exclusive: false, ..command::launch(id(0), order, Visibility::default(), &surroundings()) }
}

fn host(address: &str, seats: &[(u32, Option<Vendor>, &[u32])]) -> Host {
    let seat = |(rank, vendor, devices): &(u32, Option<Vendor>, &[u32])| Seat {
        rank: *rank,
        vendor: *vendor,
        devices: devices.to_vec(),
    };
    Host { address: address.into(), seats: seats.iter().map(seat).collect() }
}

fn read(path: impl AsRef<std::path::Path>) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

fn unix_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

#[test]
fn a_worker_runs_near_its_devices_if_that_leaves_it_the_cores_that_it_asked_for() {
    let cores_of = |cpus_milli, cpu_affinity: &[usize]| {
        let mut order = order("", &[], Vec::new());
        order.allocation.cpus_milli = cpus_milli;
        let seen =
            Visibility { cpu_affinity: cpu_affinity.to_vec(), near: vec![4, 5], ..Visibility::default() };
        command::launch(id(0), &order, seen, &surroundings()).cpu_affinity
    };
    assert_eq!(cores_of(2000, &[]), [4, 5]);
    assert_eq!(cores_of(2001, &[]), [0; 0], "they would not do");
    assert_eq!(cores_of(1000, &[7]), [7], "a core that it holds is its own");
}

#[tokio::test]
async fn frameworks_find_their_ranks_and_what_the_user_says_wins() {
    let mut t = Fixture::new().await;
    let env = [("MASTER_PORT", "1234"), ("MS_ROLE", "MS_WORKER"), ("AQUIFER_JOB", "mine")];
    assert_eq!(t.run(launch(&order("env", &env, Vec::new()))).await, Exit::Code(0));
    let log = t.log(id(0));
    for line in [
        "RANK=0",
        "WORLD_SIZE=2",
        "LOCAL_RANK=0",
        "LOCAL_WORLD_SIZE=1",
        "GROUP_RANK=0",
        "MASTER_ADDR=10.0.0.1",
        "MASTER_PORT=1234",
        "TORCHELASTIC_RUN_ID=job-1",
        "TORCHELASTIC_RESTART_COUNT=0",
        "JAX_COORDINATOR_ADDRESS=10.0.0.1:20000",
        "JAX_NUM_PROCESSES=2",
        "JAX_PROCESS_ID=0",
        "MS_WORKER_NUM=2",
        "MS_SCHED_HOST=10.0.0.1",
        "MS_SCHED_PORT=20000",
        "MS_NODE_ID=0",
        "MS_ROLE=MS_WORKER",
        "AQUIFER_JOB=job-1",
    ] {
        assert!(log.lines().any(|it| it == line), "no {line}: {log}");
    }
    for name in ["AQUIFER_HOSTFILE", "AQUIFER_RANK_TABLE", "RANK_TABLE_FILE"] {
        assert!(!log.contains(name), "there is no gang: {log}");
    }
    t.done().await;
}

#[tokio::test]
async fn a_gang_finds_its_hosts_before_it_starts() {
    let mut t = Fixture::new().await;
    let hosts = vec![host("10.0.0.1", &[(0, None, &[]), (2, None, &[])]), host("b", &[(1, None, &[0, 1])])];
    let order = order("cat $AQUIFER_HOSTFILE; ls $AQUIFER_RUN_DIR; echo [$RANK_TABLE_FILE]", &[], hosts);
    assert_eq!(t.run(launch(&order)).await, Exit::Code(0));
    let log = t.log(id(0));
    assert!(log.starts_with("10.0.0.1 slots=2\nb slots=2\n"), "{log}");
    assert!(!log.contains("hccl.json") && !log.contains("hostfile.tmp") && log.ends_with("[]\n"), "{log}");
    t.done().await;
}

#[tokio::test]
async fn a_gang_of_ascend_devices_finds_its_rank_table() {
    let mut t = Fixture::new().await;
    let ascend = Some(Vendor::Ascend);
    let two = vec![
        host("10.0.0.1", &[(0, ascend, &[4]), (2, ascend, &[6])]),
        host("10.0.0.2", &[(1, ascend, &[0]), (3, Some(Vendor::Cpu), &[0])]),
    ];
    let script = "cat $AQUIFER_RANK_TABLE; echo [$RANK_TABLE_FILE]";
    assert_eq!(t.run(launch(&order(script, &[], two))).await, Exit::Code(0));
    let log = t.log(id(0));
    let (table, variable) = log.split_once('\n').expect("two lines");
    assert_eq!(variable, "[]\n", "what has no addresses of devices is no table for several machines");
    let server =
        |address: &str, devices: Value| json!({"server_id": address, "host_ip": address, "device": devices});
    let expected = json!({
        "version": "1.0",
        "server_count": "2",
        "server_list": [
            server("10.0.0.1", json!([{"device_id": "4", "rank_id": "0"}, {"device_id": "6", "rank_id": "2"}])),
            server("10.0.0.2", json!([{"device_id": "0", "rank_id": "1"}])),
        ],
        "status": "completed",
    });
    assert_eq!(serde_json::from_str::<Value>(table).expect("JSON"), expected);

    let one = || vec![host("10.0.0.1", &[(0, ascend, &[4, 5]), (1, ascend, &[6, 7])])];
    let next = |rank, env: &[(&str, &str)]| Launch { id: id(rank), ..launch(&order(script, env, one())) };
    assert_eq!(t.run(next(1, &[])).await, Exit::Code(0));
    let path = t.run_dir(id(1)).join("hccl.json");
    assert!(t.log(id(1)).ends_with(&format!("[{}]\n", path.display())), "{}", t.log(id(1)));
    let devices = &read(path)["server_list"][0]["device"];
    assert_eq!(
        devices[3],
        json!({"device_id": "7", "rank_id": "3"}),
        "devices are numbered by ranks: {devices}"
    );
    assert_eq!(t.run(next(2, &[("RANK_TABLE_FILE", "/mine")])).await, Exit::Code(0));
    assert!(t.log(id(2)).ends_with("[/mine]\n"), "{}", t.log(id(2)));
    t.done().await;
}

#[tokio::test]
async fn a_worker_that_is_stopped_finds_why_and_until_when_before_its_signal() {
    let mut t = Fixture::new().await;
    let stopped =
        "trap 'cat $AQUIFER_RUN_DIR/stop.json; exit 3' TERM; echo ready; while :; do sleep 0.01; done";
    t.start(Launch { grace_ms: 7_500, ..shell(stopped) }).await;
    t.wait_for_log(id(0), "ready").await;
    let before = unix_s();
    t.launcher().stop(id(0), StopReason::Preempt);
    assert_eq!(t.exit_of(id(0)).await, Exit::Code(3));
    let log = t.log(id(0));
    let told: Value = serde_json::from_str(&log[log.find("{").expect("an object")..]).expect("JSON");
    assert_eq!((&told["id"], &told["reason"]), (&json!("job-1.1/0"), &json!("preempt")));
    assert_eq!(told["grace_s"], json!(7.5));
    let deadline = told["deadline"].as_f64().expect("a time");
    assert!((before + 7.49..=unix_s() + 7.5).contains(&deadline), "{deadline}");
    t.done().await;
}

#[tokio::test]
async fn what_a_worker_is_told_first_stands() {
    let mut t = Fixture::new().await;
    t.start(shell("trap '' TERM; echo ready; while :; do sleep 0.01; done")).await;
    t.wait_for_log(id(0), "ready").await;
    t.launcher().stop(id(0), StopReason::Preempt);
    let path = t.run_dir(id(0)).join("stop.json");
    eventually("stop.json", || path.exists()).await;
    let first = read(&path);
    t.drop_agent();
    t.open().await;
    t.launcher().stop(id(0), StopReason::Cancel);
    fs::write(t.run_dir(id(0)).join("stop-ack"), "").expect("a file");
    t.exit_of(id(0)).await;
    assert_eq!(read(&path), first);
    t.done().await;
}

#[tokio::test]
async fn a_worker_that_acknowledges_is_not_waited_for() {
    let mut t = Fixture::new().await;
    // It ignores the signal and looks for the file, as a program does that finishes its step first.
    let polls = "trap '' TERM; cd $AQUIFER_RUN_DIR; echo ready; until [ -e stop.json ]; do sleep 0.01; done
        echo saved; : > stop-ack; exec sleep 1000";
    t.start(Launch { grace_ms: 600_000, ..shell(polls) }).await;
    t.wait_for_log(id(0), "ready").await;
    let asked = Instant::now();
    t.launcher().stop(id(0), StopReason::Drain);
    assert_eq!(t.exit_of(id(0)).await, failed("ended: it acknowledged that it was asked to stop"));
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    assert_eq!(t.log(id(0)), "ready\nsaved\n");
    t.done().await;
}

#[tokio::test]
async fn an_acknowledgement_from_before_the_request_does_not_count() {
    let mut t = Fixture::new().await;
    let hasty = "trap 'sleep 0.3; echo saved; exit 4' TERM; : > $AQUIFER_RUN_DIR/stop-ack; echo ready
        while :; do sleep 0.01; done";
    t.start(shell(hasty)).await;
    t.wait_for_log(id(0), "ready").await;
    t.launcher().stop(id(0), StopReason::Cancel);
    assert_eq!(t.exit_of(id(0)).await, Exit::Code(4));
    assert!(t.log(id(0)).ends_with("saved\n"));
    t.done().await;
}

#[tokio::test]
async fn an_acknowledgement_is_found_without_an_agent() {
    let mut t = Fixture::new().await;
    let polls = "trap '' TERM; cd $AQUIFER_RUN_DIR; echo ready; until [ -e go ]; do sleep 0.01; done
        : > stop-ack; exec sleep 1000";
    t.start(Launch { grace_ms: 600_000, ..shell(polls) }).await;
    t.wait_for_log(id(0), "ready").await;
    t.launcher().stop(id(0), StopReason::Cancel);
    let dir = t.run_dir(id(0));
    eventually("stop.json", || dir.join("stop.json").exists()).await;
    let supervisor = t.pid(id(0), "supervisor");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(supervisor).expect("a process"),
        Signal::TERM,
    )
    .expect("a supervisor");
    t.drop_agent();
    fs::write(dir.join("go"), "").expect("a file");
    eventually("the end of all processes", || t.processes().is_empty()).await;
    t.open().await;
    t.done().await;
}

/// Each is written in place of `status.json`; the last word is a good one, so the agent has looked at all.
#[tokio::test]
async fn whatever_stands_in_place_of_a_status_the_agent_goes_on() {
    let mut t = Fixture::new().await;
    let script = "cd $AQUIFER_RUN_DIR; look() { sleep 0.1; rm -rf status.json; }
        mkfifo status.json; look; mkdir status.json; look; ln -s /dev/zero status.json; look
        ln -s nowhere status.json; look; : > status.json; look; echo '{\"step\":-1,\"checkpoint_step\":\"x\"}' > status.json; look
        head -c 100000 /dev/zero > status.json; look
        echo '{\"step\":7,\"checkpoint_step\":6,\"total_steps\":9}' > new; mv new status.json";
    t.launcher().launch(shell(script));
    let mut last = None;
    while let news = t.hear().await
        && !matches!(news, News::State { state: aquifer_core::WorkerState::Exited(_), .. })
    {
        if let News::Status { status, .. } = news {
            last = Some((status.step, status.checkpoint_step, status.total_steps));
        }
    }
    assert_eq!(last, Some((Some(7), Some(6), Some(9))));
    t.done().await;
}
