//! Jobs that ended long ago retire, when there are too many.

mod fixture;

use std::sync::Arc;
use std::time::Duration;

use aquifer_core::jobs::Outcome;
use aquifer_core::plan::Order;
use aquifer_core::*;
use fixture::*;

const KEPT: Duration = Duration::from_secs(60);

/// Keeps two ended jobs, and all for a minute.
fn pool() -> Fixture {
    Fixture::with(Policy { keep_ended: 2, keep_at_least: KEPT, ..Policy::new(Order::FairShare) })
}

/// Submits a job that follows others, or an array, and returns its first identity.
fn submit(t: &mut Fixture, change: impl FnOnce(&mut JobSpec)) -> u64 {
    let mut spec = spec(1, 1);
    change(&mut spec);
    match t.ask(Command::Submit(Arc::new(spec))).0 {
        Ok(Answer::Submitted { first, .. }) => first.0,
        other => panic!("{other:?}"),
    }
}

fn cancel(t: &mut Fixture, job: u64) {
    t.tell(Command::Cancel { job: JobId(job), whole_array: true });
}

/// Jobs that the last step wrote into the history.
fn retired(t: &Fixture) -> Vec<u64> {
    let job = |effect: &Effect| match effect {
        Effect::Save(Record::Ended(job)) => Some(job.id.0),
        _ => None,
    };
    t.effects.iter().filter_map(job).collect()
}

#[test]
fn the_first_to_end_retire_when_there_are_too_many_and_not_before_their_time() {
    let mut t = pool();
    for _ in 0..4 {
        submit(&mut t, |_| ());
    }
    for job in [3, 1, 2, 4] {
        cancel(&mut t, job);
        t.pass(Duration::from_secs(1));
    }
    assert_eq!(t.cluster.deadline(), Some(Time(0) + KEPT), "the first that ended, when its time has come");
    t.now = Time(0) + KEPT;
    t.pass(Duration::ZERO);
    assert_eq!(retired(&t), [3]);
    let removed = t
        .effects
        .iter()
        .filter(|it| matches!(it, Effect::Save(Record::NoJob(JobId(3)) | Record::NoSpec(JobId(3)))));
    assert_eq!(removed.count(), 2);
    t.pass(Duration::from_secs(1));
    assert_eq!(retired(&t), [1]);
    t.pass(Duration::from_secs(3600));
    assert_eq!(retired(&t), [] as [u64; 0], "two are kept");
    // Identities go on, and nothing forgets that there were others.
    assert_eq!(submit(&mut t, |_| ()), 5);
    assert_eq!((t.cluster.jobs().len(), t.cluster.jobs().iter().count()), (5, 3));
    assert!(t.cluster.jobs().has_retired(JobId(3)) && !t.cluster.jobs().has_retired(JobId(6)));
    let totals: Vec<u64> = t.cluster.jobs().ended_totals().map(|(_, totals)| totals.cancelled).collect();
    assert_eq!(totals, [4]);
    let again = Cluster::restore(*t.cluster.policy(), 2, with_specs(&t), t.now);
    again.check();
    assert_eq!(again.records(), t.cluster.records());
}

fn with_specs(t: &Fixture) -> Vec<Record> {
    let specs = t.cluster.jobs().iter().map(|job| Record::Spec(job.id, job.spec.clone()));
    specs.chain(t.cluster.records()).collect()
}

#[test]
fn what_others_follow_stays_until_they_have_ended() {
    let mut t = pool();
    t.node(1, 1);
    let first = submit(&mut t, |_| ());
    t.all(1, WorkerState::Exited(Exit::Code(0)));
    assert_eq!(t.job(first).phase, jobs::Phase::Done(Outcome::Succeeded));
    let holds = submit(&mut t, |_| ());
    let follower = submit(&mut t, |spec| spec.after = vec![JobId(first)]);
    for _ in 0..3 {
        let job = submit(&mut t, |_| ());
        cancel(&mut t, job);
    }
    t.now = t.now + KEPT;
    t.node_again(1);
    let left = retired(&t);
    assert!(!left.is_empty() && !left.contains(&first), "{left:?}");
    assert_eq!(t.cluster.jobs().dependencies(t.job(follower)), jobs::Dependency::Met);
    cancel(&mut t, follower);
    cancel(&mut t, holds);
    assert!(retired(&t).contains(&first), "nobody follows it any more, and there are too many");
}

#[test]
fn an_array_retires_as_a_whole_and_its_key_with_it() {
    let mut t = pool();
    let array = |spec: &mut JobSpec| {
        spec.array = Some(ArrayRange { first: 1, last: 3, step: 1 });
        spec.client_key = "key".into();
    };
    let first = submit(&mut t, array);
    t.tell(Command::Cancel { job: JobId(first), whole_array: false });
    t.pass(2 * KEPT);
    assert_eq!(t.cluster.jobs().iter().count(), 3, "two of it have not ended");
    assert_eq!(submit(&mut t, array), first, "the key is known");
    cancel(&mut t, first);
    t.pass(KEPT);
    assert_eq!(retired(&t), [1, 2, 3]);
    assert_eq!(submit(&mut t, array), 4, "the key is free");
    let gone = t.ask(Command::Cancel { job: JobId(2), whole_array: false }).0;
    assert_eq!(gone, Err(Refusal::UnknownJob(JobId(2))));
}
