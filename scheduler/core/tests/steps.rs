//! What single steps do.

mod fixture;

use std::sync::Arc;
use std::time::Duration;

use aquifer_core::agent::{Action, Message, NodeAgent};
use aquifer_core::*;
use fixture::*;

/// A gang that does not fit as a whole takes nothing.
#[test]
fn a_gang_is_placed_whole_or_not_at_all() {
    let mut t = Fixture::new();
    t.node(0, 8);
    t.node(1, 4);
    assert_eq!(t.submit(2, 8), ["job-1 queued"]);
    assert_eq!(t.submit(3, 4), ["job-2 queued", "job-2 placed attempt=1 on node-1 node-0 node-0"]);
    assert_eq!(t.submit(1, 1), ["job-3 queued"]);
}

#[test]
fn a_node_is_told_one_thing_in_a_step() {
    let mut t = Fixture::new();
    t.node(0, 8);
    t.submit(1, 8);
    // This report ends the job, so that the node has a new assignment; and it has to be answered.
    assert_eq!(t.all(0, WorkerState::Exited(Exit::Code(0))), ["job-1 succeeded"]);
    let told = t.effects.iter().filter(|e| matches!(e, Effect::Assign { .. } | Effect::Renew { .. }));
    assert_eq!(told.count(), 1, "{:?}", t.effects);
}

#[test]
fn a_silent_node_is_lost_when_its_lease_is_over_and_not_before() {
    let mut t = Fixture::new();
    t.node(0, 8);
    t.submit(1, 8);
    assert_eq!(t.pass(Duration::from_millis(9_999)), [""; 0]);
    assert_eq!(t.cluster.deadline(), Some(Time(10_000)));
    assert_eq!(t.pass(Duration::from_millis(1)), ["node-0 lost", "job-1 requeued: rank 0 lost with node-0"]);
}

/// What a second agent does not run says nothing of what the first one runs.
#[test]
fn a_node_is_one_agents_until_nothing_of_that_can_run_any_more() {
    for on_partition in [OnPartition::Stop, OnPartition::Keep] {
        let mut t = Fixture::new();
        let tell = |t: &mut Fixture, agent: &str, boot: u64| {
            let (node, agent, inventory) = ("node-0".into(), agent.into(), Arc::new(inventory(8, 64, 512)));
            let (revision, workers, seq) = (Revision::default(), Vec::new(), boot);
            t.step(Event::Report(NodeReport {
                node,
                agent,
                boot,
                seq,
                inventory,
                revision,
                workers,
                probe: None,
            }))
        };
        let taken = |t: &Fixture, agent: &str| t.cluster.nodes().is_taken(NodeId(0), agent);
        assert_eq!(tell(&mut t, "one", 1), ["node-0 up"]);
        t.tell(Command::Submit(Arc::new(JobSpec { on_partition, ..spec(1, 8) })));
        assert!(taken(&t, "two") && !taken(&t, "one") && !taken(&t, ""));
        assert_eq!(tell(&mut t, "two", 2), [""; 0]);
        assert_eq!(t.cluster.nodes().get(NodeId(0)).boot, 1, "nothing of it counts");
        t.cluster = Cluster::restore(*t.cluster.policy(), 2, t.cluster.records(), t.now);
        assert!(taken(&t, "two"), "the next scheduler knows it");
        assert_eq!(t.pass(Duration::from_secs(10))[0], "node-0 lost");
        assert_eq!(taken(&t, "two"), on_partition == OnPartition::Keep, "its worker may run on");
        if on_partition == OnPartition::Keep {
            assert_eq!(tell(&mut t, "two", 3), [""; 0]);
            let (node, availability) = ("node-0".into(), Availability::Draining);
            t.tell(Command::SetNode { node, availability });
            assert!(!taken(&t, "two"), "it was given up");
        }
        assert_eq!(tell(&mut t, "two", 4)[0], "node-0 up");
        assert!(taken(&t, "one") && !taken(&t, "two"));
    }
}

#[test]
fn a_job_with_more_ranks_than_can_be_counted_is_refused() {
    let mut t = Fixture::new();
    let mut huge = spec(u32::MAX, 1);
    huge.roles.push(huge.roles[0].clone());
    let (answer, _) = t.ask(Command::Submit(Arc::new(huge)));
    assert_eq!(answer, Err(Refusal::Malformed("a job has at most 65,536 ranks")));
}

#[test]
fn the_end_of_a_job_reaches_a_hundred_thousand_dependents_in_one_pass() {
    let mut t = Fixture::new();
    t.submit(1, 1);
    let mut array = spec(1, 1);
    array.after = vec![JobId(1)];
    array.array = Some(ArrayRange { first: 0, last: 99_999, step: 1 });
    t.tell(Command::Submit(Arc::new(array)));
    let began = std::time::Instant::now();
    let (answer, notes) = t.ask(Command::Cancel { job: JobId(1), whole_array: false });
    println!("100,000 dependents end in {:?}, with a check", began.elapsed());
    assert_eq!(answer, Ok(Answer::Cancelled(1)));
    assert_eq!(notes.len(), 100_001);
    assert_eq!(notes[1], "job-2 failed: job-1, which it follows, did not succeed");
}

/// Devices that are no longer found are still held by the job that had them, and take nothing from others.
#[test]
fn held_devices_that_are_gone_leave_the_others_free() {
    let mut t = Fixture::new();
    t.node(0, 4);
    t.submit(1, 2);
    t.submit(1, 2);
    t.tell(Command::Cancel { job: JobId(1), whole_array: false });
    let second = t.job(2).clone();
    assert_eq!(second.ranks[0].devices, [2, 3]);
    let runs = worker(WorkerId { job: JobId(2), attempt: 1, rank: 0 }, WorkerState::Running);
    let notes = t.report(0, inventory(2, 64, 512), vec![runs]);
    assert_eq!(notes, ["node-0 has 2 of 2 devices usable", "job-1 cancelled", "job-2 running"]);
    assert_eq!(t.submit(1, 2), ["job-3 queued", "job-3 placed attempt=1 on node-0"]);
}

/// What was measured changes nothing of what a node has: people are not told of it, and find it where they look.
#[test]
fn figures_of_a_node_are_kept_as_last_told_and_are_no_news() {
    let mut t = Fixture::new();
    t.node(0, 4);
    let mut told = inventory(4, 64, 512);
    let figures = Measured { bf16_mflops: 700_000_000, decode_tokens_milli: 913_500, ..Measured::default() };
    told.measured.insert(told.devices[0].class.clone(), figures);
    told.devices.iter_mut().for_each(|device| device.speed_milli = 2243);
    assert_eq!(t.report(0, told.clone(), vec![]), [""; 0]);
    assert_eq!(t.cluster.nodes().get(NodeId(0)).inventory.measured, told.measured);
    told.engine = "podman 5.4.0".into();
    assert_eq!(t.report(0, told, vec![]), ["node-0 has 4 of 4 devices usable"]);
}

/// An agent whose node was cut off ends its worker by itself, and does not call that a failure.
#[test]
fn a_worker_that_its_lease_ended_is_lost_and_has_not_failed() {
    let mut t = Fixture::new();
    let mut agent = agent();
    talk(&mut t, &mut agent);
    let launch = t.submit(1, 8);
    assert_eq!(launch.len(), 2);
    talk(&mut t, &mut agent);
    let worker = agent.alive().next().expect("a worker");
    agent.on_worker(worker, WorkerState::Running);
    talk(&mut t, &mut agent);

    t.now = Time(8_000);
    assert_eq!(agent.on_tick(t.now), [Action::Stop { worker, grace_ms: 0, why: StopReason::Unknown }]);
    agent.on_worker(worker, WorkerState::Exited(Exit::Signal(9)));
    assert_eq!(talk(&mut t, &mut agent)[0], "job-1 requeued: rank 0 lost with node-0");
    assert_eq!(t.job(1).failures, 0);
}

/// A program that ended well just before the lease did has succeeded.
#[test]
fn a_success_at_the_end_of_the_lease_stands() {
    let mut t = Fixture::new();
    let mut agent = agent();
    talk(&mut t, &mut agent);
    t.submit(1, 8);
    talk(&mut t, &mut agent);
    let worker = agent.alive().next().expect("a worker");
    t.now = Time(8_000);
    agent.on_tick(t.now);
    agent.on_worker(worker, WorkerState::Exited(Exit::Code(0)));
    assert_eq!(talk(&mut t, &mut agent), ["job-1 succeeded"]);
}

#[test]
fn an_agent_that_is_not_answered_does_not_remember_for_ever() {
    let mut agent = agent();
    for second in 0..100_000 {
        agent.message(Time(second * 1000));
    }
    assert!(format!("{agent:?}").len() < 10_000, "it remembers what is older than a lease");
}

fn agent() -> NodeAgent {
    let mut agent = NodeAgent::new(
        "node-0".into(),
        Arc::new(inventory(8, 64, 512)),
        1,
        Default::default(),
        Default::default(),
        Time(0),
    );
    agent.on_session(Duration::from_secs(8));
    agent
}

/// Carries messages both ways until the agent has nothing new to tell. Returns the scheduler's notes.
fn talk(t: &mut Fixture, agent: &mut NodeAgent) -> Vec<String> {
    let mut notes = Vec::new();
    loop {
        let event = match agent.message(t.now) {
            Message::Report(report) => Event::Report(report),
            Message::Heartbeat { boot, seq, same_as } => {
                Event::Heartbeat { node: NodeId(0), boot, seq, same_as }
            }
        };
        notes.extend(t.step(event));
        for effect in &t.effects {
            match effect {
                Effect::Renew { acked, .. } => agent.on_renew(*acked),
                Effect::Assign { acked, assignment, .. } => {
                    agent.on_assignment(t.now, *acked, assignment.clone());
                }
                Effect::AskReport(_) => agent.on_ask_report(),
                Effect::Save(_) | Effect::Reply(..) | Effect::Note(_) => (),
            }
        }
        if !agent.has_news() {
            return notes;
        }
    }
}
