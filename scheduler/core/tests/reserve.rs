//! Room that is kept for wide jobs.

mod fixture;

use std::sync::Arc;
use std::time::Duration;

use aquifer_core::explain::{Reason, Start, explain};
use aquifer_core::plan::{Order, Owner};
use aquifer_core::*;
use fixture::*;

/// One rank of so many devices; with a limit it ends by then.
fn job(devices: u16, limit_s: Option<u64>) -> Command {
    let mut spec = spec(1, devices);
    spec.time_limit_ms = limit_s.map(|seconds| 1000 * seconds);
    Command::Submit(Arc::new(spec))
}

fn starts(t: &Fixture, job: u64) -> Option<Time> {
    t.job(job).first_placed
}

/// A pool in which jobs run for their limits, and one wide job comes in the middle. When does it start, with later
/// narrow jobs and without?
fn start_of_the_wide_one(seed: u64, with_later_ones: bool) -> Time {
    let mut rng = Rng(seed);
    let mut t = Fixture::new();
    let nodes = 2 + rng.below(3) as u32;
    (0..nodes).for_each(|node| _ = t.node(node, 8));
    for _ in 0..12 {
        t.tell(job(1 + rng.below(4) as u16, Some(20 + rng.below(200))));
        // Earlier ones that wait would go before it, wherever they find room.
        let job = JobId(t.cluster.jobs().len());
        if starts(&t, job.0).is_none() {
            t.tell(Command::Cancel { job, whole_array: false });
        }
    }
    let mut wide = spec(1 + rng.below(nodes.into()) as u32, 8);
    wide.time_limit_ms = Some(60_000);
    t.tell(Command::Submit(Arc::new(wide)));
    let wide = t.cluster.jobs().len();
    for _ in 0..400 {
        if let Some(start) = starts(&t, wide) {
            return start;
        }
        // Drawn in both cases, so that the pool is the same.
        let later = job(1 + rng.below(3) as u16, (rng.below(3) != 0).then_some(10 + rng.below(300)));
        if with_later_ones {
            t.tell(later);
        }
        t.now = t.now + Duration::from_secs(2);
        t.step(Event::Tick);
        // Those whose time is over are told to stop, and do.
        (0..nodes).for_each(|node| _ = t.obey(node));
    }
    panic!("seed {seed}: the wide job starves")
}

#[test]
fn a_wide_job_is_never_delayed_by_later_narrow_ones() {
    let mut waited = 0;
    for seed in 0..60 {
        let (alone, crowded) = (start_of_the_wide_one(seed, false), start_of_the_wide_one(seed, true));
        assert!(crowded <= alone, "seed {seed}: {crowded} instead of {alone}");
        waited += u32::from(Time(0) < alone);
    }
    assert!(30 < waited, "{waited} waited");
}

#[test]
fn what_ends_in_time_uses_the_room_and_nothing_else_does() {
    let mut t = Fixture::new();
    t.node(0, 8);
    t.tell(job(5, Some(100)));
    t.tell(job(8, None));
    t.tell(job(1, Some(90)));
    t.tell(job(1, Some(110)));
    t.tell(job(1, None));
    assert_eq!(starts(&t, 3), Some(Time(0)), "it ends before the wide one could start");
    for late in [4, 5] {
        assert_eq!(starts(&t, late), None);
        let explanation = explain(&t.cluster, t.job(late));
        assert_eq!(explanation.reason, Reason::Kept(Owner::Job(JobId(2))));
    }
    let Start::By { at, .. } = explain(&t.cluster, t.job(2)).start else { panic!("a start that is known") };
    assert_eq!(at, Time(100_000));
    // Nobody waits for the room any more.
    t.tell(Command::Cancel { job: JobId(2), whole_array: false });
    assert_eq!(starts(&t, 4), Some(Time(0)));
    assert_eq!(starts(&t, 5), Some(Time(0)));
}

#[test]
fn a_higher_priority_is_not_kept_from_the_room() {
    let mut t = Fixture::new();
    t.node(0, 8);
    t.tell(job(6, None));
    t.tell(job(8, None));
    t.tell(job(1, None));
    let mut urgent = spec(1, 1);
    urgent.priority = 5;
    t.tell(Command::Submit(Arc::new(urgent)));
    assert_eq!((starts(&t, 3), starts(&t, 4)), (None, Some(Time(0))));
}

/// Where wide jobs came and went, a node stays empty for the next one, but not for ever.
#[test]
fn an_empty_node_waits_for_the_next_wide_job_for_a_while() {
    let lease = Duration::from_secs(3600);
    let mut t = Fixture::with(Policy { lease, ..Policy::new(Order::FairShare) });
    (0..8).for_each(|node| _ = t.node(node, 8));
    for wide in 1..=4 {
        t.tell(job(8, None));
        assert_eq!(starts(&t, wide), Some(t.now));
    }
    for node in 0..8 {
        t.all(node, WorkerState::Exited(Exit::Code(0)));
    }
    // Seven of eight nodes are filled by narrow ones; the last stays empty.
    for _ in 0..7 * 8 + 1 {
        t.tell(job(1, None));
    }
    let last = t.cluster.jobs().len();
    assert_eq!(explain(&t.cluster, t.job(last)).reason, Reason::Kept(Owner::Wide));
    t.tell(job(8, None));
    assert_eq!(starts(&t, last + 1), Some(t.now), "the next wide one starts at once");
    t.all(t.job(last + 1).ranks[0].node.0, WorkerState::Exited(Exit::Code(0)));
    assert_eq!(starts(&t, last), None);
    let tired = t.cluster.deadline().expect("a moment at which it has waited long enough");
    assert_eq!(tired, t.job(last).submitted + Duration::from_secs(120));
    t.now = tired;
    t.step(Event::Tick);
    assert!(starts(&t, last).is_some(), "who has waited for two minutes takes it");
}
