//! Nodes that are booked for a period.

mod fixture;

use std::sync::Arc;
use std::time::Duration;

use aquifer_core::explain::{Change, Reason, Start, explain};
use aquifer_core::jobs::{Phase, Why};
use aquifer_core::plan::Order;
use aquifer_core::*;
use fixture::*;

const POOLS: u64 = 200;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Nodes that do not have to speak to stay in the pool.
fn pool(nodes: u32, preemption: bool) -> Fixture {
    let lease = Duration::from_secs(1 << 30);
    let mut t = Fixture::with(Policy { lease, preemption, ..Policy::new(Order::FairShare) });
    (0..nodes).for_each(|node| _ = t.node(node, 8));
    t
}

/// Books nodes `in_s` from now on for `for_s`.
fn booking(now: Time, name: &str, nodes: &[u32], in_s: u64, for_s: u64) -> Booking {
    let nodes = BookedNodes::Named(nodes.iter().map(|node| format!("node-{node}").into()).collect());
    let start = now + s(in_s);
    let (queues, users) = (Vec::new(), Vec::new());
    Booking { name: name.into(), nodes, start: Some(start), end: start + s(for_s), queues, users }
}

fn chosen(now: Time, count: u32, in_s: u64) -> Booking {
    let nodes = BookedNodes::Chosen { count, labels: Vec::new(), model: None };
    Booking { nodes, ..booking(now, "maint", &[], in_s, 60) }
}

fn refusal(booking: Booking, t: &mut Fixture) -> String {
    t.ask(Command::Reserve(booking)).0.expect_err("a refusal").to_string()
}

fn reserve(booking: Booking, t: &mut Fixture) -> Vec<u32> {
    match t.ask(Command::Reserve(booking)).0 {
        Ok(Answer::Reserved(it)) => it.nodes.iter().map(|node| node.0).collect(),
        other => panic!("{other:?}"),
    }
}

fn job(t: &mut Fixture, devices: u16, change: impl FnOnce(&mut JobSpec)) -> u64 {
    let mut spec = spec(1, devices);
    change(&mut spec);
    t.tell(Command::Submit(Arc::new(spec)));
    t.cluster.jobs().len()
}

/// The node that a job runs on.
fn node_of(t: &Fixture, job: u64) -> Option<u32> {
    let job = t.job(job);
    job.ranks.first().filter(|_| job.phase == Phase::Active).map(|rank| rank.node.0)
}

/// Until then; whoever is told to stop does, at once.
fn run(t: &mut Fixture, until: Time, mut look: impl FnMut(&Fixture)) {
    while t.now < until {
        t.now = t.cluster.deadline().map_or(until, |at| at.min(until)).max(t.now);
        t.step(Event::Tick);
        (0..t.cluster.nodes().len() as u32).for_each(|node| _ = t.obey(node));
        look(t);
    }
}

#[test]
fn what_cannot_be_booked_is_refused_and_changes_nothing() {
    let mut t = pool(3, true);
    t.now = Time(1_000_000);
    reserve(booking(t.now, "maint", &[0, 1], 100, 50), &mut t);
    let other = booking(t.now, "other", &[2], 100, 50);
    assert_eq!(
        refusal(Booking { end: Time(1_100_000), ..other.clone() }, &mut t),
        "end_ms is 1100000: expected a time after 1100000"
    );
    let past = Booking { start: Some(Time(999_999)), ..other.clone() };
    assert_eq!(refusal(past, &mut t), "start_ms is 999999: it must not begin in the past, 0.0 s ago");
    let overlap = booking(t.now, "other", &[2, 1], 149, 50);
    assert_eq!(
        refusal(overlap, &mut t),
        "nodes is \"node-1\": it is booked by reservation maint in a part of that period, other must not be"
    );
    assert_eq!(refusal(booking(t.now, "other", &[7], 1, 1), &mut t), "there is no node \"node-7\"");
    assert_eq!(
        refusal(booking(t.now, "other", &[], 1, 1), &mut t),
        "nodes is empty: expected at least one node"
    );
    assert_eq!(
        refusal(Booking { name: "other".into(), ..chosen(t.now, 2, 110) }, &mut t),
        "count is 2: 3 nodes that take work would do, 1 of them are not booked in that period"
    );
    let queues = vec!["red".into()];
    assert_eq!(refusal(Booking { queues, ..other }, &mut t), "there is no queue \"red\"");
    assert_eq!(
        refusal(booking(t.now, "maint", &[2], 1, 1), &mut t),
        "there is a reservation \"maint\" already"
    );
    let (answer, _) = t.ask(Command::Unreserve("other".into()));
    assert_eq!(answer.expect_err("a refusal").to_string(), "there is no reservation \"other\"");
    assert_eq!(t.cluster.reservations().iter().count(), 1);
    // One right after the other is none of that, and who asks again is answered again.
    reserve(booking(t.now, "next", &[0], 150, 50), &mut t);
    assert_eq!(reserve(booking(t.now, "maint", &[1, 0], 100, 50), &mut t), [0, 1]);
}

#[test]
fn chosen_are_those_that_are_soonest_empty_and_of_these_the_cheapest() {
    let mut t = pool(4, true);
    let limit = |seconds: u64| move |spec: &mut JobSpec| spec.time_limit_ms = Some(1000 * seconds);
    let on: Vec<u32> = [500, 40, 30]
        .map(|seconds| job(&mut t, 8, limit(seconds)))
        .iter()
        .map(|id| node_of(&t, *id).expect("a node"))
        .collect();
    t.now = t.now + s(10);
    // At the start node 3 is empty, and those of 40 s and 30 s will be: it is all one, but that less is lost.
    let idle = (0..4).find(|node| !on.contains(node)).expect("an idle one");
    assert_eq!(reserve(chosen(t.now, 1, 60), &mut t.what_if()), [idle]);
    let mut three = vec![idle, on[1], on[2]];
    three.sort_unstable();
    assert_eq!(reserve(chosen(t.now, 3, 60), &mut t.what_if()), three);
    // Of those that will not be, the soonest.
    let mut two = vec![idle, on[2]];
    two.sort_unstable();
    assert_eq!(reserve(chosen(t.now, 2, 1), &mut t.what_if()), two);
    let labels = vec![("rack".into(), "r9".into())];
    let nodes = BookedNodes::Chosen { count: 1, labels, model: None };
    let none = refusal(Booking { nodes, ..chosen(t.now, 1, 60) }, &mut t);
    assert_eq!(none, "count is 1: 0 nodes that take work would do, 0 of them are not booked in that period");
    let nodes = BookedNodes::Chosen { count: 4, labels: Vec::new(), model: Some("h200".into()) };
    assert_eq!(reserve(Booking { nodes, ..chosen(t.now, 4, 60) }, &mut t), [0, 1, 2, 3]);
}

#[test]
fn the_limit_that_an_explanation_suggests_is_the_longest_that_starts_now() {
    let mut t = pool(1, true);
    reserve(booking(t.now, "maint", &[0], 100, 50), &mut t);
    let waits = job(&mut t, 1, |_| ());
    let explanation = explain(&t.cluster, t.job(waits));
    let booked = Reason::Booked { reservation: "maint".into(), nodes: 1, in_ms: 100_000, for_ms: 50_000 };
    assert_eq!(explanation.reason, booked);
    let at = Start::AtReservation { at: Time(150_000), reservation: "maint".into(), begins: false };
    assert_eq!(explanation.start, at);
    // A second of grace is counted.
    assert_eq!(explanation.change, Some(Change::TimeLimit { from: None, to: 99_000 }));
    let longer = job(&mut t, 1, |spec| spec.time_limit_ms = Some(99_001));
    let longest = job(&mut t, 1, |spec| spec.time_limit_ms = Some(99_000));
    assert_eq!((node_of(&t, longer), node_of(&t, longest)), (None, Some(0)));
    run(&mut t, Time(149_999), |_| ());
    assert_eq!((node_of(&t, waits), node_of(&t, longer)), (None, None));
    run(&mut t, Time(150_000), |_| ());
    assert_eq!((node_of(&t, waits), node_of(&t, longer)), (Some(0), Some(0)));
    assert!(t.cluster.reservations().iter().next().is_none(), "it is forgotten when it is over");
}

/// Equal jobs of one queue, of whom the first may not.
#[test]
fn a_guest_is_not_held_up_by_those_that_are_none() {
    let mut t = pool(1, true);
    let users = vec!["eve".into()];
    reserve(Booking { users, ..booking(t.now, "class", &[0], 0, 50) }, &mut t);
    let (ada, eve) = (job(&mut t, 1, |_| ()), job(&mut t, 1, |spec| spec.user = "eve".into()));
    assert_eq!((node_of(&t, ada), node_of(&t, eve)), (None, Some(0)));
}

#[test]
fn guests_are_the_jobs_of_a_queue_and_of_those_below_it_as_the_tree_is_now() {
    let mut t = pool(1, true);
    let queue = |name: &str, parent: Option<&str>| {
        Command::SetQueue(Queue { parent: parent.map(Into::into), ..Queue::new(name.into()) })
    };
    t.tell(queue("red", None));
    t.tell(queue("dark", None));
    let queues = vec!["red".into()];
    reserve(Booking { queues, ..booking(t.now, "class", &[0], 0, 50) }, &mut t);
    let dark = job(&mut t, 1, |spec| spec.queue = "dark".into());
    assert_eq!(node_of(&t, dark), None);
    t.tell(queue("dark", Some("red")));
    assert_eq!(node_of(&t, dark), Some(0), "it is within the queue");
    t.tell(queue("dark", None));
    assert!(matches!(t.job(dark).phase, Phase::Stopping(_)), "it must go");
    assert!(matches!(t.job(dark).last_failure, Some(Why::Booked { .. })));
}

#[test]
fn a_job_for_a_reservation_waits_for_it_and_is_an_ordinary_one_when_it_is_over() {
    let mut t = pool(2, true);
    let users = vec!["ada".into()];
    reserve(Booking { users, ..booking(t.now, "class", &[1], 10, 50) }, &mut t);
    let own = |spec: &mut JobSpec| spec.reservation = Some("class".into());
    let (first, large) = (job(&mut t, 8, own), job(&mut t, 8, own));
    let awaits = Reason::Awaits { reservation: "class".into(), in_ms: 10_000 };
    assert_eq!(explain(&t.cluster, t.job(first)).reason, awaits);
    run(&mut t, Time(10_000), |_| ());
    assert_eq!((node_of(&t, first), node_of(&t, large)), (Some(1), None), "only on its nodes");
    run(&mut t, Time(60_000), |_| ());
    assert_eq!((node_of(&t, first), node_of(&t, large)), (Some(1), Some(0)));
    let mut unknown = spec(1, 1);
    unknown.reservation = Some("class".into());
    let (answer, _) = t.ask(Command::Submit(Arc::new(unknown)));
    assert_eq!(answer.expect_err("a refusal").to_string(), "there is no reservation \"class\"");
}

#[test]
fn without_preemption_what_runs_stays_and_is_told_as_a_conflict() {
    let mut t = pool(2, false);
    let stays = job(&mut t, 8, |_| ());
    let node = node_of(&t, stays).expect("a node");
    reserve(booking(t.now, "maint", &[node], 10, 50), &mut t);
    let conflicts = |t: &Fixture| t.cluster.conflicts(t.cluster.reservations().get("maint").expect("it"));
    assert_eq!(conflicts(&t), [JobId(stays)], "it will be there");
    run(&mut t, Time(30_000), |_| ());
    assert_eq!((node_of(&t, stays), conflicts(&t)), (Some(node), vec![JobId(stays)]));
    t.all(node, WorkerState::Exited(Exit::Code(0)));
    assert!(conflicts(&t).is_empty());
}

/// Whoever does as told in time is gone in time: its grace counts.
#[test]
fn nodes_are_free_for_whom_they_are_booked_when_the_period_begins() {
    let (mut moved, mut before, mut guests) = (0, 0, 0);
    for seed in 0..POOLS {
        let mut rng = Rng(seed);
        let nodes = 1 + rng.below(4) as u32;
        let mut t = pool(nodes, true);
        for at in 0..2 + rng.below(3) {
            run(&mut t, Time(20_000 * at), |_| ());
            for _ in 0..rng.below(6) {
                let (limit, eve, grace) = (rng.below(120), rng.below(4) == 0, rng.below(6));
                job(&mut t, 1 + rng.below(8) as u16, |spec| {
                    spec.time_limit_ms = (60 < limit).then(|| 1000 * (limit - 60));
                    spec.user = if eve { "eve".into() } else { "ada".into() };
                    spec.grace_ms = 1000 * grace;
                });
            }
            let booked: Vec<u32> = (0..nodes).filter(|_| rng.below(2) == 0).collect();
            let users = if rng.below(2) == 0 { vec!["eve".into()] } else { Vec::new() };
            let (in_s, for_s) = (6 + rng.below(80), 1 + rng.below(60));
            let it = Booking { users, ..booking(t.now, &format!("r{at}"), &booked, in_s, for_s) };
            // It may be refused: booked by another one, or no node.
            _ = t.ask(Command::Reserve(it));
        }
        let free = |t: &Fixture| {
            for it in t.cluster.reservations().iter().filter(|it| it.start <= t.now) {
                for job in t.cluster.jobs().holding() {
                    let on = job.ranks.iter().any(|rank| it.nodes.contains(&rank.node));
                    let guest = it.users.contains(&job.spec.user);
                    assert!(!on || guest, "seed {seed}: {} is in the way of {}", job.id, it.name);
                    guests += u32::from(on && guest);
                }
            }
            for it in t.cluster.reservations().iter().filter(|it| t.now < it.start) {
                let on = |job: &&jobs::Job| job.ranks.iter().any(|rank| it.nodes.contains(&rank.node));
                let others = t.cluster.jobs().holding().filter(on);
                before += others.filter(|job| job.spec.time_limit_ms.is_some()).count();
            }
        };
        run(&mut t, Time(300_000), free);
        assert!(t.cluster.reservations().iter().next().is_none(), "seed {seed}: all are over");
        for job in t.cluster.jobs().iter() {
            let was_moved = matches!(job.last_failure, Some(Why::Booked { .. }));
            assert!(!was_moved || job.failures == 0, "seed {seed}: {} is charged", job.id);
            moved += u32::from(was_moved);
        }
    }
    println!("{moved} moved, {before} before, {guests} guests");
    assert!(100 < moved && 100 < before && 100 < guests, "{moved} moved, {before} before, {guests} guests");
}
