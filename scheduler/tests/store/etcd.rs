//! The store in etcd: a real one, started by each test.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aquifer_proto::store::{Kind, Row};
use aquifer_scheduler::leader::{Candidate, Won};
use aquifer_scheduler::store::etcd::Etcd;
use aquifer_scheduler::store::{Address, Contents, EtcdAddress, Memory, Store, StoreError};
use etcd_client::{Client, GetOptions, KeyValue};
use tokio::runtime::Runtime;

use crate::etcd_server::{EtcdServer, Wire};
use crate::suite;

const LEASE: Duration = Duration::from_secs(3);

fn address(server: &EtcdServer, prefix: &str) -> EtcdAddress {
    match server.url(prefix).parse() {
        Ok(Address::Etcd(address)) => address,
        other => panic!("{other:?}"),
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// Waits to lead.
fn lead(runtime: &Runtime, address: &EtcdAddress, name: &str) -> Won {
    let candidate = Candidate::new(address, name, LEASE).expect("a connection");
    let leader = tokio::sync::watch::channel(String::new()).0;
    runtime.block_on(candidate.campaign(&leader)).expect("an election")
}

fn row(number: u64, bytes: usize, seed: u8) -> Row {
    Row { kind: Kind::Job, key: number.to_be_bytes().into(), value: Some(vec![seed; bytes]) }
}

/// All keys of a pool at a revision; 0: now. And that revision.
fn keys(runtime: &Runtime, client: &Client, prefix: &str, revision: i64) -> (Vec<(String, Vec<u8>)>, i64) {
    let options = GetOptions::new().with_prefix().with_revision(revision);
    let mut kv = client.kv_client().max_decoding_message_size(64 << 20);
    let mut found = runtime.block_on(kv.get(prefix, Some(options))).expect("keys");
    let name =
        |key: Vec<u8>| String::from_utf8(key).expect("text").strip_prefix(prefix).expect("below").into();
    let all =
        found.take_kvs().into_iter().map(KeyValue::into_key_value).map(|(key, value)| (name(key), value));
    (all.collect(), found.header().expect("a header").revision())
}

/// Makes another pool of what there was at a revision, but for whoever led.
fn copy(runtime: &Runtime, client: &Client, (from, revision): (&str, i64), to: &str) {
    for (key, value) in keys(runtime, client, &format!("/{from}/"), revision).0 {
        if key != "leader" {
            let mut kv = client.kv_client();
            runtime.block_on(kv.put(format!("/{to}/{key}"), value, None)).expect("a key");
        }
    }
}

#[test]
fn a_store_in_etcd_does_what_every_store_does() {
    let Some(server) = EtcdServer::start(1) else { return };
    let runtime = runtime();
    suite::suite(&mut lead(&runtime, &address(&server, "suite"), "a").store);
    suite::sizes(&mut lead(&runtime, &address(&server, "sizes"), "a").store);
}

/// Every revision of etcd is a moment at which the leader may have been killed.
#[test]
fn a_large_commit_is_whole_or_not_there_whenever_its_leader_is_killed() {
    let Some(server) = EtcdServer::start(1) else { return };
    let (runtime, lived) = (runtime(), address(&server, "lived"));
    let client = runtime.block_on(Client::connect([server.endpoint(0)], None)).expect("a client");
    let mut store = lead(&runtime, &lived, "a").store;
    store.begin_term().expect("a term");
    let before: Vec<Row> = (0..50).map(|number| row(number, 40, 1)).collect();
    store.commit(&before).expect("a commit");
    let (_, first) = keys(&runtime, &client, "/lived/", 0);
    // More rows than one transaction takes, some of them larger than one takes, and one that is removed.
    let mut after: Vec<Row> = (20..400).map(|number| row(number, 60, 2)).collect();
    after.extend((400..403).map(|number| row(number, 1_300_000, 3)));
    after.push(Row { value: None, ..row(3, 0, 0) });
    store.commit(&after).expect("a commit");
    let (_, last) = keys(&runtime, &client, "/lived/", 0);
    let mut model = Memory::default();
    model.begin_term().expect("a term");
    model.commit(&before).expect("a commit");
    let old = model.contents().expect("contents");
    model.commit(&after).expect("a commit");
    let new = model.contents().expect("contents");

    let mut seen = Vec::new();
    for revision in first..=last {
        let name = format!("killed-at-{revision}");
        copy(&runtime, &client, ("lived", revision), &name);
        let looked = Etcd::look(&address(&server, &name)).expect("contents");
        let mut next = lead(&runtime, &address(&server, &name), "b").store;
        assert_eq!(next.begin_term().expect("a term"), 2);
        let found = next.contents().expect("contents");
        let is_new = found.rows == new.rows;
        assert!(is_new || found.rows == old.rows, "a part of the commit at revision {revision}");
        assert!(looked.rows == found.rows, "what is seen from outside at revision {revision}");
        let left = keys(&runtime, &client, &format!("/{name}/"), 0).0;
        assert!(!left.iter().any(|(key, _)| key.starts_with("staged/")), "pieces are left: {left:?}");
        next.commit(&[row(1, 10, 9)]).expect("the next leader goes on");
        seen.push(is_new);
    }
    assert!(8 < seen.len(), "the commit took {} transactions", seen.len());
    assert!(seen.is_sorted() && !seen[0] && seen[seen.len() - 1], "{seen:?}");
    assert!(2 < seen.iter().filter(|is_new| !**is_new).count(), "pieces before the commit: {seen:?}");
    assert!(2 < seen.iter().filter(|is_new| **is_new).count(), "rows after the commit: {seen:?}");
}

#[test]
fn terms_grow_and_whoever_was_succeeded_writes_nothing() {
    let Some(server) = EtcdServer::start(1) else { return };
    let (runtime, address) = (runtime(), address(&server, "pool"));
    let client = runtime.block_on(Client::connect([server.endpoint(0)], None)).expect("a client");
    let (mut first, lost, resignation) = lead(&runtime, &address, "http://first:1").split();
    assert_eq!(first.begin_term().expect("a term"), 1);
    first.commit(&[row(1, 10, 1)]).expect("a commit");
    runtime.block_on(resignation.resign());
    let mut second = lead(&runtime, &address, "http://second:1").store;
    assert_eq!(second.begin_term().expect("a term"), 2);
    second.commit(&[row(2, 10, 2)]).expect("a commit");

    let before = keys(&runtime, &client, "/pool/", 0).0;
    let large: Vec<Row> = (0..300).map(|number| row(number, 10, 3)).collect();
    for rows in [&[row(1, 10, 3)][..], &large] {
        let fenced = first.commit(rows).expect_err("another one leads");
        assert!(matches!(fenced, StoreError::Fenced { term: 1, .. }), "{fenced}");
        let said = "term 1 is over: the scheduler at http://second:1 leads; \
                    this scheduler has changed nothing since, and ends";
        assert_eq!(fenced.to_string(), said);
    }
    assert!(first.begin_term().is_err() && first.replace(&Contents::default()).is_err());
    assert!(keys(&runtime, &client, "/pool/", 0).0 == before, "nothing has changed");
    drop(lost);
    second.commit(&[row(3, 10, 3)]).expect("the other one goes on");
}

#[test]
fn the_holder_of_a_lease_that_has_ended_is_told_and_confirms_nothing() {
    let Some(server) = EtcdServer::start(1) else { return };
    let (runtime, address) = (runtime(), address(&server, "pool"));
    let client = runtime.block_on(Client::connect([server.endpoint(0)], None)).expect("a client");
    let (mut store, lost, _resignation) = lead(&runtime, &address, "http://first:1").split();
    store.begin_term().expect("a term");
    store.commit(&[]).expect("it leads");
    let leases = runtime.block_on(client.lease_client().leases()).expect("leases");
    let lease = leases.leases()[0].id();
    runtime.block_on(client.lease_client().revoke(lease)).expect("the end of the lease");
    let told = runtime.block_on(lost).expect("it is told");
    assert!(matches!(told, StoreError::Fenced { term: 1, .. }), "{told}");
    // What is not to be written is confirmed only until the lease is over.
    let deadline = std::time::Instant::now() + 2 * LEASE;
    let refused = loop {
        match store.commit(&[]) {
            Ok(()) => assert!(std::time::Instant::now() < deadline, "it is confirmed after the lease"),
            Err(error) => break error,
        }
        std::thread::yield_now();
    };
    assert!(matches!(refused, StoreError::Fenced { term: 1, .. }), "{refused}");
}

#[test]
fn of_many_candidates_one_leads() {
    let Some(server) = EtcdServer::start(1) else { return };
    let (runtime, address) = (runtime(), address(&server, "pool"));
    let won = (0..8).map(|number| {
        let candidate = Candidate::new(&address, &format!("http://{number}:1"), LEASE).expect("a connection");
        runtime.spawn(async move { candidate.run().await.expect("an answer").map(|won| (number, won)) })
    });
    let won: Vec<_> = won.collect();
    let won: Vec<_> = won.into_iter().filter_map(|it| runtime.block_on(it).expect("no panic")).collect();
    assert_eq!(won.len(), 1);
    let client = runtime.block_on(Client::connect([server.endpoint(0)], None)).expect("a client");
    let leases = runtime.block_on(client.lease_client().leases()).expect("leases");
    assert_eq!(leases.leases().len(), 1, "those that lost leave no lease");
}

#[test]
fn a_restore_that_was_broken_off_is_not_taken_for_a_store() {
    let Some(server) = EtcdServer::start(1) else { return };
    let (runtime, lived) = (runtime(), address(&server, "lived"));
    let client = runtime.block_on(Client::connect([server.endpoint(0)], None)).expect("a client");
    let mut store = lead(&runtime, &lived, "a").store;
    store.begin_term().expect("a term");
    store.commit(&[row(1, 10, 1)]).expect("a commit");
    let (_, first) = keys(&runtime, &client, "/lived/", 0);
    let other = Contents { term: 7, rows: (0..300).map(|number| row(number, 10, 2)).collect() };
    store.replace(&other).expect("a restore");
    let (_, last) = keys(&runtime, &client, "/lived/", 0);
    let mut seen = BTreeSet::new();
    for revision in first..=last {
        let name = format!("killed-at-{revision}");
        copy(&runtime, &client, ("lived", revision), &name);
        let mut next = lead(&runtime, &address(&server, &name), "b").store;
        seen.insert(match next.begin_term() {
            Ok(2) => "before",
            Ok(8) => "after",
            Err(StoreError::HalfRestored { .. }) => "broken off",
            other => panic!("{other:?}"),
        });
        next.replace(&other).expect("a restore again");
        assert!(next.contents().expect("contents").rows == other.rows);
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[test]
fn a_commit_whose_answer_is_lost_is_asked_for_again_and_carried_out_once() {
    let Some(server) = EtcdServer::start(1) else { return };
    let (runtime, direct) = (runtime(), address(&server, "pool"));
    let client = runtime.block_on(Client::connect([server.endpoint(0)], None)).expect("a client");
    let wire = Wire::to(&server.endpoint(0));
    let wired = EtcdAddress { members: vec![format!("127.0.0.1:{}", wire.port)], ..direct };
    let mut store = lead(&runtime, &wired, "a").store;
    store.begin_term().expect("a term");
    let mut model = Memory::default();
    let (_, first) = keys(&runtime, &client, "/pool/", 0);
    for number in 0..20 {
        wire.cuts_next.store(true, Ordering::SeqCst);
        let rows = [row(number % 7, 30, number as u8)];
        store.commit(&rows).expect("it was asked for again");
        model.commit(&rows).expect("memory does not fail");
    }
    let (_, last) = keys(&runtime, &client, "/pool/", 0);
    assert!(15 < wire.cuts.load(Ordering::SeqCst), "{} answers were lost", wire.cuts.load(Ordering::SeqCst));
    assert_eq!(last - first, 20, "each was carried out once");
    assert_eq!(store.contents().expect("contents").rows, model.contents().expect("contents").rows);
}
