//! What people see, from structs made by hand: golden, so that a change of a column is seen in review.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_cli::output::Output;
use aquifer_cli::view::*;
use aquifer_cli::{
    explain, explain_device, job, jobs, nodes, plan, prices, queues, submit, usage, wait, watch,
};
use aquifer_proto::v1;

const NOW: u64 = 1_900_000_000_000;

fn plain() -> Output {
    Output::default()
}

fn pending() -> Job {
    Job {
        id: "job-8".into(),
        name: "finetune".into(),
        user: "ada".into(),
        queue: "research".into(),
        state: "pending".into(),
        reason: "waits: room for 1 of 2 ranks".into(),
        ranks: 2,
        devices: 4,
        device_model: "h200".into(),
        submitted_ms: NOW - 192_000,
        ..Job::default()
    }
}

fn running() -> Job {
    let progress = Progress {
        state: "training".into(),
        ready: true,
        step: Some(1200),
        total_steps: Some(20_000),
        loss: Some(2.31449),
        tokens_per_s: Some(15_200.7),
        checkpoint_step: Some(1150),
        message: String::new(),
    };
    let worker = |rank: u32, node: &str| Rank {
        rank,
        role: "worker".into(),
        node: node.into(),
        devices: vec![0, 1, 2, 5],
        model: "h200-141gb".into(),
        isolation: "hard".into(),
        state: "running".into(),
        address: "10.0.0.7".into(),
        port: 7801,
        endpoint: None,
        progress: (rank == 0).then(|| progress.clone()),
    };
    Job {
        id: "job-7".into(),
        name: "docs-tiny".into(),
        user: "ada".into(),
        queue: "default".into(),
        state: "running".into(),
        ranks: 2,
        devices: 8,
        device_model: "h200-141gb".into(),
        nodes: vec!["gpu-1".into(), "gpu-2".into()],
        attempt: 2,
        failures: 1,
        last_failure: "rank 1 on gpu-9 exited with 1".into(),
        submitted_ms: NOW - 9_000_000,
        placed_ms: Some(NOW - 7_500_000),
        device_ms: 8 * 7_500_000 + 360_000,
        cpu_milli_ms: 2000 * 7_500_000,
        lost_device_ms: 360_000,
        checkpoint_dir: "/data/ckpt/job-7".into(),
        progress: Some(progress.clone()),
        workers: vec![worker(0, "gpu-1"), worker(1, "gpu-2")],
        ..Job::default()
    }
}

fn failed() -> Job {
    Job {
        id: "job-3".into(),
        name: "sweep".into(),
        queue: "default".into(),
        state: "failed".into(),
        reason: "failed: rank 0 on gpu-1 exited with 3".into(),
        ranks: 1,
        nodes: vec!["gpu-1".into()],
        submitted_ms: NOW - 86_400_000,
        placed_ms: Some(NOW - 86_000_000),
        ended_ms: Some(NOW - 85_990_000),
        array_first: Some("job-1".into()),
        array_index: Some(2),
        ..Job::default()
    }
}

#[test]
fn jobs_are_listed_with_the_reason_for_each() {
    let done = Job { state: "succeeded".into(), reason: "succeeded".into(), id: "job-2".into(), ..failed() };
    assert_eq!(
        jobs::text(&[pending(), running(), failed(), done], NOW, &plain()),
        "\
ID     NAME       QUEUE     STATE      RANKS       DEVICES  NODES       AGE  RUNTIME  REASON
job-8  finetune   research  pending        2        4 h200            3m12s           room for 1 of 2 ranks
job-7  docs-tiny  default   running        2  8 h200-141gb  gpu-1 +1  2h30m    2h05m  step 1,200/20,000, loss 2.314, 15,200 tokens/s
job-3  sweep[2]   default   failed         1                gpu-1     1d00h      10s  rank 0 on gpu-1 exited with 3
job-2  sweep[2]   default   succeeded      1                gpu-1     1d00h      10s"
    );
}

#[test]
fn a_list_of_jobs_fits_a_terminal_of_100_columns() {
    let text = jobs::text(&[pending(), running(), failed()], NOW, &Output { width: Some(100), ..plain() });
    assert_eq!(
        text,
        "\
ID     NAME       QUEUE     STATE    RANKS       DEVICES  NODES       AGE  RUNTIME  REASON
job-8  finetune   research  pending      2        4 h200            3m12s           room for 1 of 2…
job-7  docs-tiny  default   running      2  8 h200-141gb  gpu-1 +1  2h30m    2h05m  step 1,200/20,0…
job-3  sweep[2]   default   failed       1                gpu-1     1d00h      10s  rank 0 on gpu-1…"
    );
    assert!(text.lines().all(|line| line.chars().count() <= 100));
}

#[test]
fn one_job_is_told_whole() {
    assert_eq!(
        job::text(&running(), NOW, &plain()),
        "\
job          job-7
name         docs-tiny
user         ada
queue        default
state        running
ranks        2
devices      8 h200-141gb
submitted    2030-03-17 15:16:40Z (2h30m ago)
placed       2030-03-17 15:41:40Z (2h05m ago)
runtime      2h05m
attempts     2
failures     1, the last: rank 1 on gpu-9 exited with 1
progress     step 1,200/20,000, loss 2.314, 15,200 tokens/s
checkpoint   of step 1,150
checkpoints  /data/ckpt/job-7
used         4.1 CPU hours, 16.7 device hours, 0.1 of them by attempts that were placed again

RANK  ROLE    NODE   DEVICES           ISOLATION  STATE    ENDPOINT  PROGRESS
   0  worker  gpu-1  h200-141gb 0-2,5  hard       running            step 1,200/20,000, loss 2.314, 15,200 tokens/s
   1  worker  gpu-2  h200-141gb 0-2,5  hard       running"
    );
}

#[test]
fn a_server_has_an_endpoint_and_its_request_can_be_read() {
    let role = v1::Role {
        name: "worker".into(),
        ranks: 1,
        program: Some(v1::role::Program::Serve(v1::Serve { model: "/m".into(), ..v1::Serve::default() })),
        ..v1::Role::default()
    };
    let rank =
        v1::Rank { role: "worker".into(), address: "fd00::7".into(), port: 7801, ..v1::Rank::default() };
    let spec = v1::JobSpec { name: "chat".into(), roles: vec![role], ..v1::JobSpec::default() };
    let wire = v1::Job { id: 9, spec: Some(spec), ranks: vec![rank], ..v1::Job::default() };
    let view = Job::with_spec(&wire);
    assert_eq!(view.workers[0].endpoint.as_deref(), Some("http://[fd00::7]:7801/v1"));
    assert!(
        job::text(&view, NOW, &plain()).contains("runs       1 × worker: serve /m"),
        "{}",
        job::text(&view, NOW, &plain())
    );
}

fn explanation() -> Explanation {
    let verdict = |nodes, text: &str, takes| Verdict { nodes, text: text.into(), takes };
    Explanation {
        job: Some("job-8".into()),
        sentence: "waits: room for 1 of 2 ranks".into(),
        reason: "room-for".into(),
        roles: vec![RoleVerdict {
            role: "worker".into(),
            verdicts: vec![
                verdict(1200, "has no such device", false),
                verdict(3, "2 of 8 such devices are free, 4 are wanted", false),
                verdict(1, "can take a rank now", true),
            ],
        }],
        blockers: vec![
            Blocker { job: "job-7".into(), devices: 8, cpus_milli: 1500, ends_by_ms: Some(NOW + 724_000) },
            Blocker { job: "job-5".into(), devices: 16, cpus_milli: 16_000, ends_by_ms: None },
        ],
        start: "by".into(),
        start_ms: Some(NOW + 724_000),
        start_text: "Expected to start within 12 min, when job-7 reaches its time limit.".into(),
        change: "1 ranks instead of 2".into(),
        gave_way_to: None,
    }
}

#[test]
fn an_explanation_is_a_sentence_and_then_the_numbers() {
    assert_eq!(
        explain::text(&explanation(), NOW, &plain()),
        "\
job-8 waits: room for 1 of 2 ranks.

NODES  ANSWER
1,200  has no such device
    3  2 of 8 such devices are free, 4 are wanted
    1  can take a rank now

HELD BY  DEVICES  CPUS  ENDS
job-7          8   1.5  within 12m04s
job-5         16    16  no time limit

Expected to start within 12 min, when job-7 reaches its time limit.
It would start now with 1 ranks instead of 2."
    );
}

#[test]
fn a_plan_says_where_or_why_not() {
    let refused = Plan { explanation: Some(Explanation { job: None, ..explanation() }), ..Plan::default() };
    assert!(
        plan::text(&refused, NOW, &plain())
            .starts_with("The job would wait: room for 1 of 2 ranks.\n\nNODES")
    );
    let victim = |job: &str, lost| Victim {
        job: job.into(),
        lost_device_ms: lost,
        grace_ms: 30_000,
        ..Victim::default()
    };
    let victims = vec![victim("job-3", 4_000), victim("job-5", 724_000)];
    assert_eq!(
        plan::text(&Plan { victims, ..Plan::default() }, NOW, &plain()),
        "\
The job would start once 2 others have stopped:

GIVES WAY  STOPS WITHIN  LOST DEVICE TIME
job-3               30s                4s
job-5               30s            12m04s

What gives way is placed again later; what it did since its last checkpoint is lost."
    );
    let starts = Plan { starts_now: true, workers: running().workers, ..Plan::default() };
    assert_eq!(
        plan::text(&starts, NOW, &plain()),
        "\
The job would start now, with all of its 2 ranks:

RANK  ROLE    NODE   DEVICES
   0  worker  gpu-1  h200-141gb 0-2,5
   1  worker  gpu-2  h200-141gb 0-2,5"
    );
    let in_rack = Plan { domain: "rack r7".into(), ..starts };
    let text = plan::text(&in_rack, NOW, &plain());
    assert!(
        text.starts_with("The job would start now, with all of its 2 ranks in rack r7:\n\nRANK"),
        "{text}"
    );
}

#[test]
fn a_device_is_explained_with_what_becomes_of_it() {
    let mut node = node();
    node.devices[2].fault = Some("xid 95: reset the card".into());
    node.devices[2].health = "to be reset".into();
    node.devices[2].cordoned = true;
    let said = |node: &Node, index: usize| {
        explain_device::text(&explain_device::explain(node, &node.devices[index]), &plain())
    };
    assert_eq!(
        said(&node, 2),
        "\
Device 2 of gpu-1 (h200-141gb, GPU-2) takes no new work.

it is to be reset: xid 95: reset the card, since 2030-03-17 17:41:40Z
  What runs on it is placed elsewhere. It comes back when it was reset.
  To do: drain the node, then reset the card with the vendor's tool

it is cordoned
  It takes work again when it is uncordoned.
  To do: aquifer uncordon gpu-1 --device 2"
    );
    assert_eq!(said(&node, 1), "Device 1 of gpu-1 (h200-141gb, GPU-1) takes work: it is free.");
    assert!(said(&node, 0).ends_with("is held by a job, and takes work when that ends."));
    node.availability = "cordoned".into();
    node.cordoned_because = "fails probes beside node3".into();
    node.up = false;
    let lost = explain_device::explain(&node, &node.devices[0]);
    let whats: Vec<&str> = lost.reasons.iter().map(|reason| &reason.what[..]).collect();
    assert_eq!(whats, ["its node is cordoned, because it fails probes beside node3", "its node is lost"]);
    assert!(!lost.takes_work && lost.held);
}

fn node() -> Node {
    let device = |index: u32, held: bool, fault: Option<&str>| Device {
        index,
        vendor: "nvidia".into(),
        model: "h200-141gb".into(),
        memory_bytes: 141 << 30,
        island: None,
        pcie_switch: None,
        numa_node: None,
        isolation: "limited".into(),
        uuid: format!("GPU-{index}"),
        held,
        fault: fault.map(String::from),
        health: if fault.is_some() { "faulty".into() } else { String::new() },
        fault_since_ms: fault.map(|_| NOW - 300_000),
        cordoned: false,
        speed_milli: 3170,
        speed_source: "by datasheet (NVIDIA H200 datasheet, dense)".into(),
        memory_gbs: 4800,
        measured: None,
        price_milli: Some(2500),
    };
    Node {
        name: "gpu-1".into(),
        state: "up".into(),
        up: true,
        availability: "open".into(),
        cordoned_because: String::new(),
        devices: vec![device(0, true, None), device(1, false, None), device(2, false, Some("ECC errors"))],
        cpus_milli: 64_000,
        cpus_milli_held: 1500,
        memory_bytes: 512 << 30,
        memory_bytes_held: 20 << 30,
        workers: vec!["job-7.2/0".into()],
        address: "10.0.0.7".into(),
        first_port: 7800,
        last_port: 7899,
        labels: BTreeMap::from([("zone".into(), "a".into())]),
        engine: "podman 5.4.0".into(),
        lease_left_ms: 9_500,
        version: "0.1.0".into(),
        findings: vec!["8 Ascend cards on PCI, libdcmi.so not found".into()],
        reservations: vec![],
    }
}

#[test]
fn nodes_are_listed_with_what_is_free_and_what_is_broken() {
    let lost =
        Node { name: "cpu-1".into(), state: "lost".into(), findings: vec![], devices: vec![], ..node() };
    let lost = Node { cordoned_because: "it fails probes beside a and b".into(), ..lost };
    assert_eq!(
        nodes::text(&[node(), lost], &plain()),
        "\
NAME   STATE  DEVICES                             CPUS             MEMORY  WORKERS
gpu-1  up     1/3 h200-141gb at 2.5, 1 faulty  62.5/64  492 GiB / 512 GiB        1
cpu-1  lost                                    62.5/64  492 GiB / 512 GiB        1

gpu-1: device 2 (h200-141gb) is faulty: ECC errors
gpu-1: 8 Ascend cards on PCI, libdcmi.so not found
cpu-1: cordoned, because it fails probes beside a and b"
    );
}

#[test]
fn one_node_is_told_whole() {
    assert_eq!(
        nodes::details(&node(), &plain()),
        "\
node         gpu-1
state        up
address      10.0.0.7
ports        7800-7899
labels       zone=a
containers   podman 5.4.0
lease        9s left
version      0.1.0
free cores   62.5/64
free memory  492 GiB / 512 GiB
workers      job-7.2/0

DEVICE  MODEL       VENDOR   MEMORY  SPEED  PRICE  SLICES   STATE               UUID
     0  h200-141gb  nvidia  141 GiB   3.17    2.5  limited  held                GPU-0
     1  h200-141gb  nvidia  141 GiB   3.17    2.5  limited  free                GPU-1
     2  h200-141gb  nvidia  141 GiB   3.17    2.5  limited  faulty: ECC errors  GPU-2

h200-141gb: by datasheet (NVIDIA H200 datasheet, dense), 4,800 GB/s of memory

8 Ascend cards on PCI, libdcmi.so not found"
    );
}

#[test]
fn queues_and_usage_are_tables_of_numbers() {
    let queue = Queue {
        name: "research".into(),
        parent: None,
        weight: 3,
        guaranteed_milli: 16_000,
        limit_milli: Some(64_500),
        held_milli: 12_000,
        used_device_ms: 500_400_000,
        share_millionths: 750_000,
        users: vec!["ada".into(), "ben".into()],
        pending_jobs: 1234,
        running_jobs: 5,
    };
    let vision = Queue {
        name: "vision".into(),
        parent: Some("research".into()),
        weight: 1,
        share_millionths: 250_000,
        ..Queue::default()
    };
    let unlimited = Queue { name: "default".into(), weight: 1, limit_milli: None, ..Queue::default() };
    assert_eq!(
        queues::text(&[unlimited, queue, vision], false, &plain()),
        "\
QUEUE     WEIGHT  GUARANTEED  LIMIT  HOLDS    USAGE  SHARE  PENDING  RUNNING  USERS
default        1           0   none      0    0.0 h   0.0%        0        0  all
research       3          16   64.5     12  139.0 h  75.0%    1,234        5  ada ben
  vision       1           0   none      0    0.0 h  25.0%        0        0"
    );
    let row = UsageRow {
        queue: "research".into(),
        user: "ada".into(),
        jobs: 4,
        succeeded: 2,
        failed: 1,
        device_ms: 45_000_000,
        counted_ms: 90_000_000,
        lost_device_ms: 360_000,
        cpu_milli_ms: 7_200_000_000,
        waited_ms: 240_000,
        trained_ms: 40_000_000,
        effective_ms: 38_840_000,
        held_ms: 40_000_000,
        worked_ms: 38_000_000,
    };
    let view = Usage { since_ms: 0, devices: 16, devices_held: 12, has_prices: false, rows: vec![row] };
    assert_eq!(
        usage::text(&view, &plain()),
        "\
QUEUE     USER  JOBS  SUCCEEDED  FAILED  DEVICE HOURS  COUNTED  LOST  EFFECTIVE  OF CAPACITY  CPU HOURS  MEAN WAIT
research  ada      4          2       1          12.5     25.0   0.1     97.1 %       95.0 %        2.0      1m00s

12 of 16 devices are held now."
    );
}

#[test]
fn sentences_say_what_became_of_a_job() {
    assert_eq!(wait::sentence(&failed()), "job-3 failed: rank 0 on gpu-1 exited with 3");
    let ended = |state: &str, reason: &str| {
        wait::sentence(&Job {
            id: "job-1".into(),
            state: state.into(),
            reason: reason.into(),
            ..Job::default()
        })
    };
    assert_eq!(ended("succeeded", "succeeded"), "job-1 succeeded");
    assert_eq!(ended("timed-out", "timed out"), "job-1 timed out");
    assert_eq!(ended("cancelled", ""), "job-1 cancelled");
    let sent = |count, repeated| {
        submit::sentence(&Submitted { id: "job-7".into(), count, repeated, ..Submitted::default() })
    };
    assert_eq!(sent(1, false), "job-7 queued");
    assert_eq!(sent(100, false), "job-7 to job-106 queued");
    assert_eq!(sent(1, true), "job-7 was queued by an earlier request with this key");
    let note =
        Note { seq: 3, time_ms: NOW, kind: "queued".into(), text: "job-7 queued".into(), ..Note::default() };
    assert_eq!(watch::text(&note, &plain()), "2030-03-17 17:46:40Z  job-7 queued");
}

#[test]
fn a_job_that_waits_again_has_no_nodes_and_no_runtime() {
    let again =
        Job { state: "pending".into(), reason: "waits: no node can take a rank now".into(), ..running() };
    let text = jobs::text(&[Job { progress: None, ..again }], NOW, &plain());
    let line = text.lines().nth(1).unwrap();
    assert_eq!(
        line,
        "job-7  docs-tiny  default  pending      2  8 h200-141gb         2h30m           no node can take a rank now"
    );
}

/// The names that scripts rely on.
#[test]
fn names_of_json_fields_are_kept() {
    let json = serde_json::to_value((
        running(),
        node(),
        explanation(),
        Usage::default(),
        Submitted::default(),
        prices::Class::default(),
    ))
    .unwrap();
    let keys = |at: usize| {
        let keys: BTreeSet<&String> = json[at].as_object().unwrap().keys().collect();
        keys.into_iter().cloned().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        keys(0),
        "array_first array_index attempt capacity checkpoint_dir cpu_milli_ms device_model device_ms devices ended_ms \
         failures id last_failure lost_device_ms max_ranks min_ranks name nodes placed_ms priority progress queue \
         ranks reason spent state submitted_ms user wanted_ranks workers"
    );
    assert_eq!(
        keys(1),
        "address availability cordoned_because cpus_milli cpus_milli_held devices engine findings first_port labels last_port \
         lease_left_ms memory_bytes memory_bytes_held name reservations state up version workers"
    );
    assert_eq!(keys(2), "blockers change gave_way_to job reason roles sentence start start_ms start_text");
    assert_eq!(keys(3), "devices devices_held has_prices rows since_ms");
    assert_eq!(keys(4), "client_key count file id name repeated");
    assert_eq!(keys(5), "devices memory_bytes model price_milli speed_milli vendor");
}
