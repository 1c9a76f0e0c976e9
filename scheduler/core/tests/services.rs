//! Services that scale themselves, by what their replicas tell.

mod fixture;

use std::sync::Arc;
use std::time::Duration;

use aquifer_core::*;
use fixture::*;

const PROMISE: Promise =
    Promise { concurrency: 5, ttft_ms: Some(1_000), tpot_ms: None, sleep_after_ms: None };

/// One to so many replicas, or none when nobody has asked for ten seconds.
fn sleepy(most: u32) -> JobSpec {
    let mut spec = service(1, most, Some(Promise { sleep_after_ms: Some(10_000), ..PROMISE }));
    spec.roles[0].min_ranks = (1 < most).then_some(1);
    spec
}

/// A policy under which nodes are not lost while nobody reports.
fn patient() -> Policy {
    Policy { lease: Duration::from_secs(36_000), ..Policy::new(plan::Order::FairShare) }
}

fn ask(t: &mut Fixture, waiting: u32) -> Vec<String> {
    t.tell(Command::Demand { job: JobId(1), waiting })
}

fn idle(t: &mut Fixture, ms: u64) -> Vec<String> {
    let load = ReplicaLoad { idle_ms: Some(ms), ..Default::default() };
    tell_load(t, load)
}

/// All replicas run, and each has so many requests at once; the first token takes so long.
fn tell(t: &mut Fixture, requests: u32, ttft_ms: u64) -> Vec<String> {
    let load =
        ReplicaLoad { running: requests, ttft_ms: Some(ttft_ms), idle_ms: Some(0), ..Default::default() };
    tell_load(t, load)
}

fn tell_load(t: &mut Fixture, load: ReplicaLoad) -> Vec<String> {
    let orders = t.cluster.assignment(NodeId(0)).workers;
    let state = |goal| match goal {
        Goal::Run => WorkerState::Running,
        Goal::Stop => WorkerState::Exited(Exit::Signal(15)),
    };
    let report = orders.iter().map(|it| WorkerReport { load: Some(load), ..worker(it.id, state(it.goal)) });
    let inventory = (*t.cluster.nodes().get(NodeId(0)).inventory).clone();
    t.report(0, inventory, report.collect())
}

#[test]
fn a_service_gets_replicas_when_it_needs_them_and_gives_them_back_when_it_does_not() {
    let mut t = Fixture::with(patient());
    t.node(0, 8);
    t.tell(Command::Submit(Arc::new(service(1, 6, Some(PROMISE)))));
    assert_eq!(t.job(1).ranks.len(), 1, "it begins with its least");
    tell(&mut t, 0, 10);
    // Eight requests at once: of 5, four are aimed at.
    let notes = tell(&mut t, 8, 10);
    assert_eq!(
        notes[..2],
        ["job-1 is to have 2 replicas instead of 1: 8 requests at once", "job-1 grows from 1 to 2 ranks",]
    );
    // The first token takes longer than was promised. What a replica tells counts once it is known to run.
    tell(&mut t, 4, 10);
    let notes = tell(&mut t, 4, 2_500);
    assert!(
        notes.contains(&"job-1 is to have 4 replicas instead of 2: the first token takes 2500 ms".into()),
        "{notes:?}"
    );
    // No more than it may have, and nobody chooses for it.
    let notes = tell(&mut t, 500, 10);
    assert!(
        notes.contains(&"job-1 is to have 6 replicas instead of 4: it may have no more and no fewer".into()),
        "{notes:?}"
    );
    let (refused, _) = t.ask(Command::Scale { job: JobId(1), ranks: Some(2) });
    assert_eq!(refused, Err(Refusal::ScalesItself(JobId(1))));
    // Nobody asks any more: after its patience it keeps the least, and that runs on.
    tell(&mut t, 0, 10);
    tell(&mut t, 0, 11);
    assert!(t.pass(Duration::from_secs(290)).is_empty(), "it may be asked soon");
    let notes: Vec<String> = (0..3).flat_map(|_| t.pass(Duration::from_secs(15))).collect();
    assert_eq!(notes[0], "job-1 is to have 1 replicas instead of 6: it may have no more and no fewer");
    tell(&mut t, 0, 10);
    assert_eq!((t.job(1).ranks.len(), t.job(1).attempt), (1, 1));
    t.tell(Command::Cancel { job: JobId(1), whole_array: false });
    tell(&mut t, 0, 10);
    assert!(t.pass(Duration::from_secs(1_000)).is_empty(), "nothing is left to look at");
}

#[test]
fn a_service_that_nobody_asks_sleeps_until_somebody_does() {
    for most in [1, 6] {
        let mut t = Fixture::with(patient());
        t.node(0, 8);
        t.tell(Command::Submit(Arc::new(sleepy(most))));
        assert_eq!(t.job(1).ranks.len(), 1, "it begins awake, so that one that cannot start is seen to");
        idle(&mut t, 9_000);
        assert!(t.pass(Duration::from_secs(9)).is_empty(), "it is not idle for longer than it runs");
        let notes = t.pass(Duration::from_secs(1));
        assert_eq!(notes, ["job-1 is to have 0 replicas instead of 1: nobody asks"]);
        assert!(matches!(t.job(1).phase, jobs::Phase::Stopping(jobs::Then::Requeue)));
        let notes = idle(&mut t, 10_000);
        assert!(notes.is_empty() && t.job(1).sleeps() && t.job(1).ranks.is_empty(), "{notes:?}");
        // It waits for no room, and says for what.
        assert!(t.pass(Duration::from_secs(10_000)).is_empty());
        assert_eq!(
            explain::explain(&t.cluster, t.job(1)).text(JobId(1), t.cluster.now()),
            "job-1 sleeps, as nobody asks it: a request for \"m\" at a gateway wakes it, and so does \
             `aquifer job wake job-1`.\n\nWhen it starts is not known: somebody has to ask it first.\n"
        );
        // Five requests at once, of which a replica answers four.
        let (to, sign) =
            if most == 1 { (1, "it may have no more and no fewer") } else { (2, "5 requests at once") };
        let notes = ask(&mut t, 5);
        assert_eq!(notes[0], format!("job-1 is to have {to} replicas instead of 0: {sign}"));
        assert!(notes[1].starts_with("job-1 placed attempt=2 on"), "{notes:?}");
        assert!(ask(&mut t, 500).is_empty(), "from now on replicas say how many they need");
        assert_eq!((t.job(1).ranks.len() as u32, t.job(1).failures), (to, 0));
        // Requests that replicas do not know of keep it awake, too.
        idle(&mut t, 3_000);
        t.pass(Duration::from_secs(9));
        ask(&mut t, 1);
        assert!(t.pass(Duration::from_secs(9)).is_empty());
        assert!(!t.pass(Duration::from_secs(1)).is_empty());
    }
}

/// What was to give way to it stops when it sleeps already, as it had found room elsewhere.
#[test]
fn a_service_that_sleeps_is_not_woken_by_room_that_is_given_up_for_it() {
    let mut t = Fixture::with(patient());
    t.node(0, 1);
    t.tell(Command::Submit(Arc::new(spec(1, 1))));
    t.all(0, WorkerState::Running);
    t.pass(Duration::from_secs(60));
    t.node(1, 1);
    t.tell(Command::Submit(Arc::new(spec(1, 1))));
    t.all(1, WorkerState::Running);
    t.tell(Command::Submit(Arc::new(JobSpec { priority: 5, ..sleepy(1) })));
    let victims: Vec<JobId> = t.cluster.jobs().victims_of(JobId(3)).map(|victim| victim.id).collect();
    assert_eq!(victims, [JobId(2)], "it loses less");
    t.all(0, WorkerState::Exited(Exit::Code(0)));
    assert_eq!((t.job(3).ranks.len(), t.job(3).ranks[0].node), (1, NodeId(0)));
    idle(&mut t, 0);
    t.pass(Duration::from_secs(10));
    idle(&mut t, 10_000);
    idle(&mut t, 10_000);
    assert!(t.job(3).sleeps(), "{:?}", t.job(3).phase);
    t.obey(1);
    assert!(t.job(3).sleeps() && t.job(2).ranks.len() == 1, "{:?}", t.job(3).phase);
}

#[test]
fn a_service_that_is_asked_while_it_goes_to_sleep_gets_up_again() {
    let mut t = Fixture::with(patient());
    t.node(0, 8);
    t.tell(Command::Submit(Arc::new(sleepy(2))));
    idle(&mut t, 0);
    t.pass(Duration::from_secs(10));
    assert!(matches!(t.job(1).phase, jobs::Phase::Stopping(jobs::Then::Requeue)));
    assert_eq!(ask(&mut t, 1), ["job-1 is to have 1 replicas instead of 0: 1 requests at once"]);
    let notes = idle(&mut t, 0);
    assert!(notes.iter().any(|note| note.starts_with("job-1 placed attempt=2 on")), "{notes:?}");
    // What sleeps can be ended; what serves nothing or has ended cannot be asked.
    idle(&mut t, 0);
    t.pass(Duration::from_secs(10));
    idle(&mut t, 0);
    assert!(t.job(1).sleeps());
    t.tell(Command::Cancel { job: JobId(1), whole_array: false });
    t.tell(Command::Submit(Arc::new(spec(1, 1))));
    let mut refused =
        |job| t.ask(Command::Demand { job: JobId(job), waiting: 1 }).0.expect_err("a refusal").to_string();
    assert_eq!(refused(1), "job-1 has ended already: cancelled");
    assert_eq!(refused(2), "job-2 serves no model: nobody can ask it");
    assert_eq!(refused(3), "there is no job-3");
}

#[test]
fn a_scheduler_that_starts_again_lets_sleep_what_sleeps() {
    let mut t = Fixture::with(patient());
    t.node(0, 8);
    t.tell(Command::Submit(Arc::new(sleepy(2))));
    idle(&mut t, 0);
    t.pass(Duration::from_secs(10));
    idle(&mut t, 0);
    let mut again = Cluster::restore(patient(), 2, t.cluster.records(), t.cluster.now());
    again.check();
    again.step(again.now(), Event::Tick, &mut Vec::new());
    let job = again.jobs().get(JobId(1)).expect("a job");
    assert!(job.sleeps() && again.jobs().ready().is_empty());
}

/// A training of so many ranks with a device each, whose others run on when it gives one up.
fn training(least: u32, most: u32, priority: i32) -> JobSpec {
    let mut spec = spec(most, 1);
    (spec.roles[0].min_ranks, spec.restart, spec.priority) = (Some(least), Restart::Rank, priority);
    spec
}

/// A full node: a service with one replica of up to six, a training with the rest, and a job that waits for a device.
fn full(policy: Policy, training: JobSpec) -> Fixture {
    let mut t = Fixture::with(policy);
    t.node(0, 8);
    t.tell(Command::Submit(Arc::new(service(1, 6, Some(PROMISE)))));
    t.tell(Command::Submit(Arc::new(training)));
    t.tell(Command::Submit(Arc::new(spec(1, 1))));
    assert_eq!([1, 2, 3].map(|job| t.job(job).ranks.len()), [1, 7, 0]);
    tell(&mut t, 0, 10);
    t
}

#[test]
fn trainings_give_up_for_a_service_what_they_can_do_without() {
    let mut t = full(patient(), training(4, 7, 0));
    let notes = tell(&mut t, 8, 10);
    assert_eq!(notes[0], "job-1 is to have 2 replicas instead of 1: 8 requests at once");
    assert!(notes[1].starts_with("job-2 shrinks from 7 to 6 ranks: it gives way to job-1"), "{notes:?}");
    assert_eq!(notes.len(), 2);
    // What it gives up is nobody else's, and the service has it at once.
    let notes = tell(&mut t, 8, 10);
    assert!(notes.contains(&"job-1 grows from 1 to 2 ranks".into()), "{notes:?}");
    assert_eq!([1, 2, 3].map(|job| t.job(job).ranks.len()), [2, 6, 0]);
    assert_eq!((t.job(2).attempt, t.job(2).failures), (1, 0), "the others run on");
    // Never below the least, however much is asked for.
    tell(&mut t, 8, 10);
    for _ in 0..6 {
        tell(&mut t, 100, 10);
    }
    assert_eq!([1, 2, 3].map(|job| t.job(job).ranks.len()), [4, 4, 0]);
    // What the service gives back is for those that wait, then for the training.
    tell(&mut t, 0, 10);
    t.pass(Duration::from_secs(301));
    for _ in 0..4 {
        tell(&mut t, 0, 10);
    }
    assert_eq!([1, 2, 3].map(|job| t.job(job).ranks.len()), [1, 6, 1]);
}

/// Where it is given what others gave up for it in the round in which a better job looks for victims, it grows first.
#[test]
fn a_service_grows_before_it_gives_something_up() {
    let mut t = full(patient(), training(5, 7, 0));
    t.tell(Command::Cancel { job: JobId(3), whole_array: false });
    tell(&mut t, 8, 10);
    tell(&mut t, 4, 10);
    assert_eq!([1, 2].map(|job| t.job(job).ranks.len()), [2, 6]);
    // A better job takes one of the training's devices, fails at once, and pauses for a second.
    t.tell(Command::Submit(Arc::new(JobSpec { priority: 5, retries: 9, ..spec(1, 1) })));
    tell(&mut t, 4, 10);
    assert_eq!([1, 2, 4].map(|job| t.job(job).ranks.len()), [2, 5, 1]);
    let orders = t.cluster.assignment(NodeId(0)).workers;
    let state = |it: &WorkerOrder| match it.id.job == JobId(4) {
        true => WorkerState::Exited(Exit::Code(1)),
        false => WorkerState::Running,
    };
    let workers = orders.iter().map(|it| worker(it.id, state(it))).collect();
    let inventory = (*t.cluster.nodes().get(NodeId(0)).inventory).clone();
    t.report(0, inventory, workers);
    assert_eq!([1, 2, 4].map(|job| t.job(job).ranks.len()), [2, 6, 0], "the training has grown");
    let notes = tell(&mut t, 6, 10);
    let given = |note: &String| note.starts_with("job-2 shrinks from 6 to 5 ranks: it gives way to job-1");
    assert!(notes.iter().any(given), "{notes:?}");
    t.now = t.now + Duration::from_secs(1);
    let notes = tell(&mut t, 6, 10);
    assert!(notes.contains(&"job-1 grows from 2 to 3 ranks".into()), "{notes:?}");
    let notes = t.pass(Duration::from_millis(1));
    let gives = |note: &String| note.starts_with("job-1 shrinks from 3 to 2 ranks: it gives way to job-4");
    assert!(notes.iter().any(gives), "{notes:?}");
}

/// While part of what is given up for a service is there and the rest is not, all of it is kept, and `explain` knows.
#[test]
fn what_is_kept_for_a_service_is_not_said_to_be_the_next_ones() {
    let mut t = Fixture::with(patient());
    t.node(0, 8);
    t.tell(Command::Submit(Arc::new(service(1, 6, Some(PROMISE)))));
    t.tell(Command::Submit(Arc::new(training(3, 4, 0))));
    t.tell(Command::Submit(Arc::new(training(2, 3, 0))));
    t.tell(Command::Submit(Arc::new(spec(1, 1))));
    tell(&mut t, 0, 10);
    let notes = tell(&mut t, 12, 10);
    assert!((2..=3).all(|job| notes.iter().any(|note| note.starts_with(&format!("job-{job} shrinks")))));
    // The first of the two has stopped what it gives up.
    let orders = t.cluster.assignment(NodeId(0)).workers;
    let state = |it: &WorkerOrder| match (it.goal, it.id.job) {
        (Goal::Stop, JobId(2)) => WorkerState::Exited(Exit::Signal(15)),
        _ => WorkerState::Running,
    };
    let load = ReplicaLoad { running: 12, idle_ms: Some(0), ..Default::default() };
    let report = orders.iter().map(|it| WorkerReport { load: Some(load), ..worker(it.id, state(it)) });
    let inventory = (*t.cluster.nodes().get(NodeId(0)).inventory).clone();
    t.report(0, inventory, report.collect());
    assert_eq!([1, 2, 3, 4].map(|job| t.job(job).ranks.len()), [1, 3, 3, 0]);
    let reason = explain::explain(&t.cluster, t.job(4)).reason;
    assert_ne!(reason, explain::Reason::Next, "it is kept for job-1");
}

#[test]
fn nobody_gives_way_to_a_service_of_lower_priority_or_against_the_policy() {
    let asks = |policy: Policy, training: JobSpec| {
        let mut t = full(policy, training);
        for _ in 0..4 {
            tell(&mut t, 100, 10);
        }
        assert_eq!(t.job(2).attempt, 1, "the others run on");
        [1, 2, 3].map(|job| t.job(job).ranks.len())
    };
    assert_eq!(asks(patient(), training(1, 7, 0)), [6, 2, 0]);
    assert_eq!(asks(patient(), training(1, 7, 1)), [1, 7, 0], "it is better");
    assert_eq!(asks(Policy { yield_to_services: false, ..patient() }, training(1, 7, 0)), [1, 7, 0]);
    assert_eq!(asks(Policy { preemption: false, ..patient() }, training(1, 7, 0)), [1, 7, 0]);
    let gang = JobSpec { restart: Restart::Gang, ..training(1, 7, 0) };
    assert_eq!(asks(patient(), gang), [1, 7, 0], "it would have to stop");
}

#[test]
fn a_service_takes_of_other_queues_what_is_guaranteed_to_its_own() {
    for (guaranteed, ranks) in [(0, [1, 7]), (3, [3, 5]), (8, [6, 2])] {
        let mut t = Fixture::with(patient());
        t.node(0, 8);
        let mut queue = Queue::new("web".into());
        queue.guaranteed_milli = 1000 * guaranteed;
        t.tell(Command::SetQueue(queue));
        t.tell(Command::Submit(Arc::new(JobSpec { queue: "web".into(), ..service(1, 6, Some(PROMISE)) })));
        // Priorities say nothing across queues.
        t.tell(Command::Submit(Arc::new(training(1, 7, 9))));
        for _ in 0..6 {
            tell(&mut t, 100, 10);
        }
        assert_eq!([1, 2].map(|job| t.job(job).ranks.len()), ranks, "{guaranteed} guaranteed");
    }
}
