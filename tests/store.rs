//! Backups of real pools, what is restored from them, and pools that move from one store to another.

mod pool;

#[cfg(feature = "etcd")]
#[path = "../scheduler/tests/store/etcd_server.rs"]
mod etcd_server;

use std::fs;

use aquifer_proto::store::Kind;
use aquifer_proto::v1;
use aquifer_scheduler::store::{Contents, Embedded, Store, backup};
use pool::{Pool, shell};
use serde_json::Value;
use v1::JobState::Running;

/// A pool with a bit of everything: a node, queues, jobs that have ended, that run and that wait.
fn lived() -> (Pool, u64) {
    let pool = Pool::of_one(&[]);
    _ = pool.aquifer(&["queues", "set", "red", "--weight", "2"]).ok();
    pool.until_succeeded(pool.submit(shell("true")));
    let array = Some(v1::ArrayRange { first: 0, last: 4, step: 1 });
    let mut waits = v1::JobSpec { array, ..shell("true") };
    waits.roles[0].request.get_or_insert_default().cpus_milli = 64_000;
    pool.submit(waits);
    let runs = pool.submit(shell(&format!("while ! [ -e {} ]; do sleep 0.02; done", pool.file("go"))));
    pool.until_state(runs, Running);
    (pool, runs)
}

fn stored(path: &str) -> Contents {
    let mut store = Embedded::open(path.as_ref()).expect("a store");
    store.contents().expect("contents")
}

/// In order, without the queue that every pool has.
fn sorted(mut contents: Contents) -> Contents {
    contents.rows.retain(|row| row.key != b"default" || row.kind != Kind::Queue);
    contents.rows.sort_by_key(|row| (row.kind, row.key.clone()));
    contents
}

#[test]
fn a_pool_is_backed_up_while_it_runs_and_restored_whole() {
    let (mut pool, runs) = lived();
    let told: Value =
        serde_json::from_str(&pool.aquifer(&["--json", "store", "backup", "online"]).ok()).expect("JSON");
    assert_eq!((&told["jobs"], &told["term"]), (&Value::from(7), &Value::from(1)), "{told}");
    let in_use = pool.aquifer(&["store", "backup", "offline", "--from", "server/store.redb"]);
    assert_eq!(in_use.code, Some(1), "{in_use:?}");
    assert!(in_use.err.contains("is in use by another scheduler"), "{in_use:?}");
    pool.kill_server();
    let unreached = pool.aquifer(&["store", "backup", "unreached"]);
    assert_eq!(unreached.code, Some(3), "{unreached:?}");
    _ = pool.aquifer(&["store", "backup", "offline", "--from", "server/store.redb"]).ok();
    let read =
        |name: &str| backup::read(&fs::read(pool.file(name)).expect("a backup")).expect("it is whole").0;
    assert_eq!(sorted(read("online")), sorted(read("offline")), "asked and read it is the same");
    assert_eq!(sorted(read("offline")), sorted(stored(&pool.file("server/store.redb"))));

    let done = pool.aquifer(&["store", "check", "online"]).ok();
    assert!(done.starts_with("online is whole: "), "{done}");
    _ = pool.aquifer(&["store", "restore", "online", "--to", "restored/store.redb"]).ok();
    let restored = sorted(stored(&pool.file("restored/store.redb")));
    assert_eq!(restored.rows, sorted(read("online")).rows);
    assert_eq!(restored.term, 1 + backup::TERMS_SINCE);

    // Jobs are not lost by mistake.
    let again = ["store", "restore", "online", "--to", "restored/store.redb", "--overwrite"];
    let refused = pool.aquifer(&again[..5]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("restored/store.redb holds 7 jobs"), "{refused:?}");
    _ = pool.aquifer(&again).ok();

    // A pool goes on from what was restored, with the workers that it had.
    pool.set_server_flags(&["--store", "restored/store.redb"]);
    pool.start_server();
    pool.until_job(runs, "running", |job| job.state() == Running && job.attempt == 1);
    pool::until("the agent's session", || {
        pool.agent_log("a").contains(&format!("began term={}", 2 + backup::TERMS_SINCE)).then_some(())
    });
    fs::write(pool.file("go"), "").expect("a file");
    assert_eq!(pool.until_succeeded(runs).attempt, 1);
}

#[test]
fn a_damaged_backup_is_refused_and_nothing_is_written() {
    let (mut pool, runs) = lived();
    _ = pool.aquifer(&["store", "backup", "whole"]).ok();
    let whole = fs::read(pool.file("whole")).expect("a backup");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 4;
    for (name, bytes, why) in [
        ("flipped", &flipped[..], "it is damaged at byte "),
        ("torn", &whole[..whole.len() - 9], "it is damaged at byte "),
        ("foreign", b"jobs:\n", "it is no backup of an aquifer store"),
    ] {
        fs::write(pool.file(name), bytes).expect("a file");
        for words in [&["store", "check", name][..], &["store", "restore", name, "--to", "other.redb"]] {
            let refused = pool.aquifer(words);
            assert_eq!(refused.code, Some(1), "{refused:?}");
            assert!(refused.err.contains(&format!("{name}: {why}")), "{refused:?}");
        }
    }
    assert!(!pool.dir().join("other.redb").exists(), "nothing was written");
    pool.cancel(runs);
    pool.kill_server();
    pool.start_server();
}

#[cfg(feature = "etcd")]
#[test]
fn a_pool_moves_to_etcd_and_back_and_its_workers_run_on() {
    use pool::Checks;
    let Some(etcd) = etcd_server::EtcdServer::start(1) else { return };
    let (mut pool, runs) = lived();
    let worker = pool.worker(runs, 1, 0);
    let (file, url) = (pool.file("server/store.redb"), etcd.url("moved"));
    pool.kill_server();
    _ = pool.aquifer(&["store", "migrate", &file, &url]).ok();
    pool.set_server_flags(&["--store", &url]);
    pool.start_server();
    pool.until_job(runs, "running", |job| job.state() == Running && job.attempt == 1);
    pool.until_succeeded(pool.submit(shell("true")));
    assert_eq!(pool.aquifer(&["store", "migrate", &file, &url]).code, Some(1), "it is in use");
    // Asked, and read beside the scheduler that leads.
    _ = pool.aquifer(&["store", "backup", "asked"]).ok();
    _ = pool.aquifer(&["store", "backup", "looked", "--from", &url]).ok();
    let read =
        |name: &str| backup::read(&fs::read(pool.file(name)).expect("a backup")).expect("it is whole").0;
    let looked = sorted(read("looked"));
    assert_eq!(sorted(read("asked")), looked);
    let server = pool.take_server_at(0);
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.finish().code, Some(0));

    let refused = pool.aquifer(&["store", "migrate", &url, &file]);
    assert!(refused.err.contains("holds 7 jobs"), "{refused:?}");
    _ = pool.aquifer(&["store", "migrate", &url, &file, "--overwrite"]).ok();
    assert_eq!(sorted(stored(&file)).rows, looked.rows);
    pool.set_server_flags(&[]);
    pool.start_server();
    pool.until_job(runs, "running", |job| job.state() == Running && job.attempt == 1);
    assert_eq!((pool.worker(runs, 1, 0), pool.job(runs).in_state(Running).attempt), (worker, 1));
    fs::write(pool.file("go"), "").expect("a file");
    pool.until_succeeded(runs);
}
