//! What earlier versions have stored stays readable: pools of random runs, recorded when their format was new.
//!
//! The files are never written again. A format that is new gets files of its own: `RECORD=tests/formats/store-4`.

use std::collections::BTreeMap;
use std::path::Path;
use std::{env, fs};

use aquifer_core::cluster::Policy;
use aquifer_core::jobs::{Outcome, Phase, Then, Why};
use aquifer_core::plan::Order;
use aquifer_core::{Cluster, Record, Time};
use aquifer_proto::store::{decode_all, encode};
use aquifer_scheduler::store::{Contents, backup};
use aquifer_sim::workload;

/// Runs that were recorded, each amid its faults.
const RECORDED: [(u64, u64); 7] = [(0, 90), (6, 120), (7, 100), (25, 180), (93, 90), (113, 110), (410, 120)];

/// The same of the third format.
const RECORDED_SINCE_3: [(u64, u64); 3] = [(0, 90), (1, 120), (7, 100)];

/// What must be among the records, or the test proves little.
const SIGHTS: [&str; 28] = [
    "active",
    "alternatives or devices",
    "array",
    "booked",
    "cancelled",
    "dependency",
    "drained",
    "exit",
    "failed",
    "finishing",
    "moved",
    "node",
    "pending",
    "preempted",
    "queue",
    "queue below another",
    "rank lost",
    "requeuing",
    "reservation",
    "resized",
    "resizing",
    "slice",
    "spec",
    "succeeded",
    "timed out",
    "topology",
    "unreachable",
    "usage",
];

/// The same of the second format, which has what has retired.
const SIGHTS_SINCE_2: [&str; 6] =
    ["active", "array", "pending", "retired", "retired of a queue", "succeeded"];

/// The same of what was recorded since devices have prices, and jobs a count of what they cost.
const SIGHTS_SINCE_3: [&str; 4] = ["active", "counted", "prices", "succeeded"];

#[test]
fn stores_of_every_format_are_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if let Some(directory) = env::var_os("RECORD") {
        fs::create_dir_all(root.join(&directory)).expect("a directory");
        for (seed, second) in RECORDED_SINCE_3 {
            let mut sim = workload::swarm(seed);
            sim.run_until(Time(second * 1000));
            let rows = sim.store.records().iter().map(encode).collect();
            let bytes = backup::write(&Contents { term: seed, rows }, 1_795_557_600_000);
            fs::write(root.join(&directory).join(format!("seed-{seed}.backup")), bytes).expect("a file");
        }
    }
    for (format, recorded, expected) in [
        ("store-1", &RECORDED[..], &SIGHTS[..]),
        ("store-2", &RECORDED, &SIGHTS_SINCE_2),
        ("store-3", &RECORDED_SINCE_3, &SIGHTS_SINCE_3),
    ] {
        let mut sights: BTreeMap<&str, u64> = BTreeMap::new();
        for &(seed, second) in recorded {
            let file = root.join(format!("tests/formats/{format}/seed-{seed}.backup"));
            let bytes = fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            let (contents, _) = backup::read(&bytes).expect("a whole backup");
            let records = decode_all(contents.rows).expect("records that can be read");
            look(&records, &mut sights);
            // Nothing is lost when it is written as today.
            let policy = Policy::new(Order::FairShare);
            let cluster = Cluster::restore(policy, seed + 1, records.clone(), Time(second * 1000));
            cluster.check();
            let again = cluster.records();
            let is_kept = |record: &Record| matches!(record, Record::Ended(_)) || again.contains(record);
            assert!(records.iter().all(is_kept), "seed {seed}");
        }
        *sights.entry("spec").or_default() += 1; // Jobs are not read without theirs.
        for what in expected {
            assert!(sights.contains_key(*what), "no {what} among {sights:?}");
        }
    }
}

fn look(records: &[Record], sights: &mut BTreeMap<&'static str, u64>) {
    for record in records {
        let mut see = |what| *sights.entry(what).or_default() += 1;
        match record {
            Record::Job(job) => {
                see(match &job.phase {
                    Phase::Pending(_) => "pending",
                    Phase::Active => "active",
                    Phase::Stopping(Then::Requeue) => "requeuing",
                    Phase::Stopping(Then::Resize(_)) => "resizing",
                    Phase::Stopping(Then::Finish(_)) => "finishing",
                    Phase::Done(Outcome::Succeeded) => "succeeded",
                    Phase::Done(Outcome::Failed(_)) => "failed",
                    Phase::Done(Outcome::Unreachable(_)) => "unreachable",
                    Phase::Done(Outcome::Cancelled) => "cancelled",
                    Phase::Done(Outcome::TimedOut) => "timed out",
                });
                match &job.last_failure {
                    Some(Why::WorkerFailed { .. }) => see("exit"),
                    Some(Why::RankLost { .. }) => see("rank lost"),
                    Some(Why::Drained { .. }) => see("drained"),
                    Some(Why::Preempted { .. }) => see("preempted"),
                    Some(Why::Resized { .. }) => see("resized"),
                    Some(Why::Moved { .. }) => see("moved"),
                    Some(Why::Booked { .. }) => see("booked"),
                    // Later than what was recorded.
                    Some(Why::DeviceBad { .. } | Why::MadeRoom { .. }) | None => (),
                }
                job.array.iter().for_each(|_| see("array"));
                if job.usage.counted_ms != 0 {
                    see("counted");
                }
                job.spec.after.iter().for_each(|_| see("dependency"));
                job.spec.topology.require.iter().for_each(|_| see("topology"));
                job.ranks.iter().filter(|rank| rank.slice.is_some()).for_each(|_| see("slice"));
                let devices = job.spec.roles.iter().flat_map(|role| &role.request.devices);
                devices.for_each(|_| see("alternatives or devices"));
            }
            Record::Node(_) => see("node"),
            Record::Queue(queue) => {
                see("queue");
                queue.parent.iter().for_each(|_| see("queue below another"));
            }
            Record::Usage(..) => see("usage"),
            Record::Reservation(_) => see("reservation"),
            Record::Ended(_) => see("retired"),
            Record::Retired(..) => see("retired of a queue"),
            Record::Tariff(_) => see("prices"),
            Record::Spec(..) | Record::NoSpec(_) | Record::NoJob(_) | Record::NoReservation(_) => {
                unreachable!("they are not read as records")
            }
        }
    }
}
