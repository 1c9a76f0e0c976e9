//! The store in a file, when disks fail, the power is cut, or bytes are not what was written.

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use aquifer_core::cluster::Policy;
use aquifer_core::plan::Order;
use aquifer_core::{Command, JobSpec, Program, Queue, Request, Role};
use aquifer_proto::store::{Kind, Row};
use aquifer_scheduler::metrics::Metrics;
use aquifer_scheduler::runtime::{Ended, Runtime};
use aquifer_scheduler::store::{Contents, Embedded, Memory, Store, StoreError};

use crate::disk::{Disk, Fault, Random};

/// A commit of one to forty rows, of which some are large and some remove what was there.
fn rows(random: &mut Random) -> Vec<Row> {
    let count = 1 + random.below(40);
    let mut rows = std::collections::BTreeMap::new();
    for _ in 0..count {
        let number = random.below(200);
        let bytes = if random.below(20) == 0 { 20_000 } else { random.below(400) } as usize;
        let value = (random.below(8) != 0).then(|| vec![random.below(256) as u8; bytes]);
        let key = number.to_be_bytes().to_vec();
        rows.insert(number, Row { kind: Kind::ALL[(number % 3) as usize], key, value });
    }
    rows.into_values().collect()
}

/// Commits until something fails, or `most` times. Returns what was acknowledged, and that with what was under way.
fn commit_until_it_fails(
    store: &mut Embedded,
    mut acknowledged: Memory,
    most: usize,
    random: &mut Random,
) -> (Contents, Contents) {
    for _ in 0..most {
        let rows = rows(random);
        let mut with = acknowledged.clone();
        with.commit(&rows).expect("memory does not fail");
        if store.commit(&rows).is_err() {
            // There is doubt, and none may be taken away by trying again.
            assert!(store.commit(&rows).is_err(), "a store that has failed goes on");
            assert!(store.begin_term().is_err(), "a store that has failed goes on");
            return (contents(&mut acknowledged), contents(&mut with));
        }
        acknowledged = with;
    }
    (contents(&mut acknowledged), contents(&mut acknowledged))
}

fn contents(store: &mut dyn Store) -> Contents {
    store.contents().expect("contents")
}

/// Opens a store beside which nothing stands.
fn opened(disk: Disk) -> Result<Embedded, StoreError> {
    Embedded::on(disk, Disk::default())
}

fn memory(contents: &Contents) -> Memory {
    let mut memory = Memory::default();
    memory.replace(contents).expect("memory does not fail");
    memory
}

#[test]
fn no_power_cut_loses_what_was_acknowledged() {
    let (mut cut, mut amid_a_commit, mut acknowledged) = (0, 0, 0);
    for seed in 0..60 {
        let mut random = Random(seed);
        let (mut disk, mut beside) = (Disk::default(), Disk::default());
        let mut known = Contents::default();
        for life in 0..6 {
            disk.fail(Some(Fault::Power { at: 1 + random.below(120) }));
            let Ok(mut store) = Embedded::on(disk.clone(), beside.clone()) else {
                (disk, beside) = (disk.after_cut(&mut random), beside.after_cut(&mut random));
                continue;
            };
            // It may be cut before the first word is heard.
            let begun = store.begin_term();
            let (old, new) = match begun {
                Ok(term) => {
                    assert!(known.term < term, "seed {seed}, life {life}: term {term} after {}", known.term);
                    known.term = term;
                    let found = store.contents().ok();
                    assert!(found.is_none_or(|found| found.rows == known.rows), "seed {seed}, life {life}");
                    commit_until_it_fails(&mut store, memory(&known), 60, &mut random)
                }
                Err(_) => (known.clone(), known.clone()),
            };
            assert!(disk.has_failed(), "it was cut amid the work");
            drop(store);
            (cut, amid_a_commit) = (cut + 1, amid_a_commit + usize::from(old != new));
            acknowledged += old.rows.len();
            (disk, beside) = (disk.after_cut(&mut random), beside.after_cut(&mut random));
            // What is found is all of what was acknowledged, with all or nothing of what was not.
            disk.fail(None);
            let mut store = Embedded::on(disk.clone(), beside.clone()).expect("a store that opens again");
            let found = contents(&mut store);
            assert!(
                found.rows == old.rows || found.rows == new.rows,
                "seed {seed}, life {life}: rows are lost"
            );
            assert!(known.term <= found.term, "seed {seed}, life {life}: term {}", found.term);
            known = found;
            drop(store);
            (disk, beside) = (disk.mended(), beside.mended());
        }
    }
    println!("{cut} cuts, {amid_a_commit} amid a commit, {acknowledged} rows known to be safe");
    assert!(
        300 < cut && 200 < amid_a_commit && 10_000 < acknowledged,
        "{cut} {amid_a_commit} {acknowledged}"
    );
}

#[test]
fn a_disk_that_is_full_or_fails_refuses_and_the_next_start_finds_what_was_acknowledged() {
    let mut failed = 0;
    for seed in 0..120 {
        let mut random = Random(seed);
        let (disk, beside) = (Disk::default(), Disk::default());
        let mut store = Embedded::on(disk.clone(), beside.clone()).expect("a store");
        store.begin_term().expect("a term");
        let mut known = Memory::default();
        known.begin_term().expect("a term");
        let (before, _) = commit_until_it_fails(&mut store, known, 5, &mut random);
        let at = 1 + random.below(40);
        let fault = match seed % 4 {
            0 => Fault::Writes { from: at, kind: ErrorKind::StorageFull },
            1 => Fault::Writes { from: at, kind: ErrorKind::ReadOnlyFilesystem },
            2 => Fault::Writes { from: at, kind: ErrorKind::Other },
            _ => Fault::Sync { at: 1 + random.below(8) },
        };
        disk.fail(Some(fault));
        let (old, new) = commit_until_it_fails(&mut store, memory(&before), 60, &mut random);
        assert!(disk.has_failed(), "seed {seed}: {fault:?} was met");
        failed += usize::from(old != new);
        drop(store);
        // The machine went on: what programs saw is there. Or it did not, and nothing is certain but what was synced.
        for after in [disk.mended(), disk.after_cut(&mut random)] {
            let beside = beside.after_cut(&mut random);
            let mut store = Embedded::on(after, beside).expect("a store that opens again");
            let found = contents(&mut store);
            assert!(
                found.rows == old.rows || found.rows == new.rows,
                "seed {seed}, {fault:?}: rows are lost"
            );
            assert_eq!(store.begin_term().expect("it goes on"), 2, "seed {seed}");
        }
    }
    assert!(100 < failed, "only {failed} commits failed");
}

#[test]
fn a_file_system_that_cannot_be_written_is_said_to_be_so() {
    let disk = Disk::default();
    opened(disk.clone()).and_then(|mut store| store.begin_term()).expect("a term");
    let disk = disk.mended();
    disk.fail(Some(Fault::Writes { from: 1, kind: ErrorKind::ReadOnlyFilesystem }));
    let refused = opened(disk).and_then(|mut store| store.begin_term()).expect_err("it cannot be written");
    assert!(refused.to_string().contains("read-only filesystem"), "{refused}");
}

fn job() -> JobSpec {
    let role = Role {
        name: "worker".into(),
        ranks: 1,
        min_ranks: None,
        request: Request { cpus_milli: 100, ..Request::default() },
        mounts: Vec::new(),
        standing: Default::default(),
        program: Program::Command(vec!["true".into()]),
    };
    JobSpec { name: "x".into(), queue: "default".into(), roles: vec![role], ..JobSpec::default() }
}

#[test]
fn a_scheduler_whose_disk_fails_ends_without_an_answer_and_the_next_one_knows_what_was_answered() {
    for (seed, fault) in [
        (0, Fault::Sync { at: 3 }),
        (1, Fault::Sync { at: 1 }),
        (2, Fault::Writes { from: 9, kind: ErrorKind::StorageFull }),
        (3, Fault::Writes { from: 30, kind: ErrorKind::StorageFull }),
    ] {
        let disk = Disk::default();
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let policy = Policy::new(Order::FairShare);
        let store = opened(disk.clone()).expect("a store");
        let meters = Metrics::default().meters();
        let started = Runtime::start(policy, String::new(), Box::new(store), meters);
        let (runtime, failure) = started.expect("a scheduler");
        let queue = Command::SetQueue(Queue::new("red".into()));
        tokio.block_on(runtime.command(queue)).expect("an answer").expect("a queue");
        disk.fail(Some(fault));
        let mut answered = 0;
        let refused = loop {
            match tokio.block_on(runtime.command(Command::Submit(Arc::new(job())))) {
                Ok(answer) => answered += usize::from(answer.is_ok()),
                Err(ended) => break ended,
            }
            assert!(answered < 1000, "the disk fails at some time");
        };
        assert_eq!(refused, Ended);
        let why = tokio.block_on(failure).expect("it says why it ended");
        assert!(matches!(why, StoreError::Failed { .. }), "{why}");
        let again = tokio.block_on(runtime.command(Command::Submit(Arc::new(job()))));
        assert_eq!(again, Err(Ended), "nothing is taken in any more");
        for after in [disk.mended(), disk.after_cut(&mut Random(seed))] {
            let opened = opened(after).expect("a store").open_term().expect("a term");
            let jobs = opened.records.iter().filter(|it| matches!(it, aquifer_core::Record::Job(_))).count();
            assert!(jobs == answered || jobs == answered + 1, "{answered} answers, {jobs} jobs");
        }
    }
}

/// A store with four commits, closed in order or not, and what stands beside it.
fn written(in_order: bool) -> (Disk, Disk, Vec<Contents>) {
    let (disk, beside) = (Disk::default(), Disk::default());
    let mut random = Random(7);
    let mut store = Embedded::on(disk.clone(), beside.clone()).expect("a store");
    store.begin_term().expect("a term");
    let mut known = Memory::default();
    known.begin_term().expect("a term");
    let mut lived = vec![contents(&mut known)];
    for _ in 0..4 {
        let rows = rows(&mut random);
        store.commit(&rows).expect("a commit");
        known.commit(&rows).expect("a commit");
        lived.push(contents(&mut known));
    }
    if in_order {
        drop(store);
        return (disk.mended(), beside, lived);
    }
    let left = disk.mended();
    drop(store);
    (left, beside, lived)
}

#[test]
fn flipped_bytes_are_refused_and_nothing_is_dropped_in_silence() {
    let (mut refused, mut missed, mut harmless) = (0, 0, 0);
    for in_order in [true, false] {
        let (disk, beside, lived) = written(in_order);
        let now = lived.last().expect("contents");
        let bytes = disk.bytes();
        let mut random = Random(99);
        // Where there is something, and anywhere.
        let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        for flip in 0..900 {
            let at = match flip % 3 {
                0 => random.below(bytes.len() as u64) as usize,
                _ => used[random.below(used.len() as u64) as usize],
            };
            let mut changed = bytes.clone();
            changed[at] ^= 1 << random.below(8);
            let read =
                || Embedded::on(Disk::of(changed), beside.mended()).and_then(|mut store| store.contents());
            match catch_unwind(AssertUnwindSafe(read)) {
                Ok(Err(StoreError::Damaged { .. } | StoreError::Failed { .. })) => refused += 1,
                // The last commit looks as if the power had been cut amid it; but it was acknowledged.
                Ok(Err(StoreError::Lost { found: 4, acknowledged: 5, .. })) if !in_order => missed += 1,
                Ok(Err(error)) => panic!("byte {at} was flipped: {error}"),
                Ok(Ok(found)) => {
                    assert!(found.rows == now.rows, "byte {at} was flipped, and something is missing");
                    harmless += 1;
                }
                Err(_) => panic!("byte {at} was flipped, and the store panics"),
            }
        }
    }
    println!("{refused} refused, {missed} without the last commit refused, {harmless} harmless");
    assert!(100 < refused && 50 < missed && 100 < harmless, "{refused} {missed} {harmless}");
}

#[test]
fn a_damaged_file_is_refused_with_the_bytes_that_are() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.redb");
    let mut random = Random(3);
    let mut store = Embedded::open(&path).expect("a store");
    store.begin_term().expect("a term");
    commit_until_it_fails(&mut store, Memory::default(), 20, &mut random);
    drop(store);
    let whole = std::fs::read(&path).expect("a store");
    let used: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    let (mut named, mut told) = (0, 0);
    for _ in 0..300 {
        let at = used[random.below(used.len() as u64) as usize];
        let mut changed = whole.clone();
        changed[at] ^= 1 << random.below(8);
        std::fs::write(&path, &changed).expect("a damaged store");
        let Err(StoreError::Damaged { at: place, .. }) = Embedded::open(&path) else { continue };
        let numbers = place.strip_prefix(" at bytes ").and_then(|place| place.split_once(" to "));
        let number = |text: &str| text.parse::<usize>().expect("a number");
        let Some((first, last)) = numbers.map(|(first, last)| (number(first), number(last))) else {
            continue;
        };
        told += 1;
        named += usize::from((first..=last).contains(&at));
        assert_eq!(std::fs::read(&path).expect("a store"), changed, "nothing is written to it");
    }
    println!("{told} refused with their place, {named} of them with the flipped byte in it");
    assert!(50 < told && told == named, "{named} of {told}");
}

#[test]
fn what_stands_beside_a_store_is_believed_only_if_it_is_whole() {
    let (disk, beside, lived) = written(false);
    let whole = beside.bytes();
    for bit in 0..8 * whole.len() {
        let mut changed = whole.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let mut store = Embedded::on(disk.mended(), Disk::of(changed)).expect("nothing is missing");
        assert_eq!(contents(&mut store).rows, lived.last().expect("contents").rows, "bit {bit}");
    }
    let torn = Embedded::on(disk.mended(), Disk::of(whole[..whole.len() - 1].into()));
    assert!(torn.is_ok(), "nothing is missing");
}

#[test]
fn a_new_store_is_not_measured_by_what_stood_beside_an_old_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.redb");
    let mut store = Embedded::open(&path).expect("a store");
    (0..3).for_each(|_| _ = store.begin_term().expect("a term"));
    drop(store);
    let old = std::fs::read(&path).expect("a store");
    let mut store = Embedded::open(&path).expect("a store");
    store.begin_term().expect("a term");
    drop(store);
    std::fs::write(&path, old).expect("an older one in its place");
    let said = Embedded::open(&path).err().expect("a term is missing").to_string();
    assert!(said.ends_with("is damaged: of 4 commits that were acknowledged it holds 3"), "{said}");
    std::fs::remove_file(&path).expect("a store");
    assert_eq!(Embedded::open(&path).expect("a new store").begin_term().expect("a term"), 1);
}
