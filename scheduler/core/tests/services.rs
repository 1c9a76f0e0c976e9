//! Services that scale themselves, by what their replicas tell.

mod fixture;

use std::sync::Arc;
use std::time::Duration;

use aquifer_core::*;
use fixture::*;

fn service(least: u32, most: u32) -> JobSpec {
    let mut spec = spec(most, 1);
    spec.roles[0].min_ranks = Some(least);
    spec.roles[0].program = Program::Serve(ServeOptions {
        model: "/m".into(),
        served_name: "m".into(),
        max_queue: 64,
        precision: "f32".into(),
        autoscale: Some(Promise { concurrency: 5, ttft_ms: Some(1_000), tpot_ms: None }),
    });
    spec
}

/// All replicas run, and each has so many requests at once; the first token takes so long.
fn tell(t: &mut Fixture, requests: u32, ttft_ms: u64) -> Vec<String> {
    let load =
        ReplicaLoad { running: requests, ttft_ms: Some(ttft_ms), idle_ms: Some(0), ..Default::default() };
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
    let policy = Policy { lease: Duration::from_secs(36_000), ..Policy::new(plan::Order::FairShare) };
    let mut t = Fixture::with(policy);
    t.node(0, 8);
    t.tell(Command::Submit(Arc::new(service(1, 6))));
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
