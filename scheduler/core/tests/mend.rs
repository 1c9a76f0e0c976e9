//! Jobs whose workers may come and go: one fails or is lost, and the others run on.

mod fixture;

use std::sync::Arc;
use std::time::Duration;

use aquifer_core::jobs::{Phase, Then};
use aquifer_core::*;
use fixture::*;

fn live(least: u32, most: u32, retries: u32) -> JobSpec {
    let mut spec = JobSpec { restart: Restart::Rank, retries, ..spec(most, 1) };
    spec.roles[0].min_ranks = Some(least).filter(|least| *least < most);
    spec
}

/// `nodes` of four devices, and the job on them, running for a minute.
fn running(nodes: u32, spec: JobSpec) -> Fixture {
    let policy = Policy { lease: Duration::from_secs(36_000), ..Policy::new(plan::Order::FairShare) };
    let mut t = Fixture::with(policy);
    (0..nodes).for_each(|node| _ = t.node(node, 4));
    t.tell(Command::Submit(Arc::new(spec)));
    (0..nodes).for_each(|node| _ = t.all(node, WorkerState::Running));
    assert!(t.job(1).all_running());
    t.pass(Duration::from_secs(60));
    t
}

/// Ranks of the job's workers, in the order of their places.
fn ranks(t: &Fixture) -> Vec<u32> {
    t.job(1).ranks.iter().map(|rank| rank.rank).collect()
}

/// A node reports its workers; that of one rank has exited with 1.
fn fail(t: &mut Fixture, node: u32, rank: u32) -> Vec<String> {
    let orders = t.cluster.assignment(NodeId(node)).workers;
    let state = |it: &WorkerOrder| match it.id.rank == rank {
        true => WorkerState::Exited(Exit::Code(1)),
        false => WorkerState::Running,
    };
    let workers = orders.iter().map(|it| worker(it.id, state(it))).collect();
    let inventory = (*t.cluster.nodes().get(NodeId(node)).inventory).clone();
    t.report(node, inventory, workers)
}

/// The list that the workers on a node are told: its epoch and its ranks.
fn told(t: &Fixture, node: u32) -> (u32, Vec<u32>) {
    let lists = t.cluster.assignment(NodeId(node)).members;
    let [list] = &lists[..] else { panic!("{lists:?}") };
    (list.epoch, list.members.iter().map(|member| member.rank).collect())
}

#[test]
fn a_worker_that_fails_is_started_anew_in_its_place_and_all_are_told() {
    let mut t = running(2, live(6, 6, 1));
    assert_eq!(told(&t, 0), (6, vec![0, 1, 2, 3, 4, 5]));
    let was = t.job(1).ranks[1].clone();
    let notes = fail(&mut t, 0, 1);
    let expected =
        ["job-1 runs on: rank 1 on node-0 exited with 1", "job-1 rank 6 on node-0 takes the place of rank 1"];
    assert_eq!(notes, expected);
    assert_eq!((ranks(&t), t.job(1).attempt), (vec![0, 6, 2, 3, 4, 5], 1));
    let is = &t.job(1).ranks[1];
    assert_eq!((is.node, &is.devices, is.port), (was.node, &was.devices, was.port));
    let list = (8, vec![0, 2, 3, 4, 5, 6]);
    assert_eq!((told(&t, 0), told(&t, 1)), (list.clone(), list), "the newest is the last in the order");
    let launch =
        t.cluster.assignment(NodeId(0)).workers.iter().find_map(|it| it.launch.clone().map(|_| it.id));
    assert_eq!(launch.map(|id| (id.attempt, id.rank)), Some((1, 6)));
    // Its only retry is used up, but one that has run for an hour is forgiven.
    t.all(0, WorkerState::Running);
    let mut later = t.what_if();
    later.now = later.now + Duration::from_secs(3_600);
    assert_eq!(fail(&mut later, 1, 5)[1], "job-1 rank 7 on node-1 takes the place of rank 5");
    assert_eq!(later.job(1).failures, 1);
    let notes = fail(&mut t, 1, 5);
    assert_eq!(notes, ["job-1 stopping: failed: rank 5 on node-1 exited with 1"]);
    t.obey(0);
    assert_eq!(t.obey(1), ["job-1 failed: rank 5 on node-1 exited with 1"]);
}

#[test]
fn one_that_fails_at_once_waits_and_a_job_that_ends_meanwhile_ends() {
    let mut t = running(1, live(2, 2, 9));
    fail(&mut t, 0, 0);
    t.pass(Duration::from_secs(9));
    assert_eq!(fail(&mut t, 0, 2), ["job-1 runs on: rank 2 on node-0 exited with 1"]);
    assert_eq!(told(&t, 0), (5, vec![1]), "nobody takes its place yet");
    let at = t.cluster.deadline().expect("a pause");
    assert!(t.now < at && at <= t.now + Duration::from_secs(30), "{at:?} at {:?}", t.now);
    // One worker is left, and is done before the pause is over: the job is not.
    let states = [(1, Exit::Code(0))];
    let id = |rank| WorkerId { job: JobId(1), attempt: 1, rank };
    let workers = states.map(|(rank, exit)| worker(id(rank), WorkerState::Exited(exit))).into();
    let inventory = (*t.cluster.nodes().get(NodeId(0)).inventory).clone();
    t.report(0, inventory, workers);
    assert_eq!(t.job(1).phase, Phase::Active);
    let notes = t.tell(Command::Cancel { job: JobId(1), whole_array: false });
    assert_eq!(notes, ["job-1 stopping: cancelled", "job-1 cancelled"], "nothing of it runs");
}

#[test]
fn a_time_limit_counts_from_the_start_whatever_changes_since() {
    let mut t = running(1, JobSpec { time_limit_ms: Some(600_000), ..live(1, 4, 1) });
    let end = t.job(1).expected_end();
    t.tell(Command::Scale { job: JobId(1), ranks: Some(2) });
    t.obey(0);
    assert_eq!((t.job(1).ranks.len(), t.job(1).expected_end()), (2, end));
    assert!(t.job(1).began < t.job(1).placed);
}

#[test]
fn what_is_lost_with_its_node_is_done_without_or_all_is_placed_again() {
    for (least, expected) in
        [(4, "job-1 shrinks from 6 to 4 ranks"), (5, "job-1 requeued: node-1 is drained")]
    {
        let mut t = running(2, live(least, 6, 0));
        let drain = Command::SetNode { node: "node-1".into(), availability: Availability::Draining };
        assert_eq!(t.tell(drain)[1..], [expected]);
    }
    // The workers on a node are lost while it lives: others take their places, and no failure is counted.
    let mut t = running(2, live(6, 6, 0));
    let inventory = (*t.cluster.nodes().get(NodeId(1)).inventory).clone();
    let notes = t.report(1, inventory, Vec::new());
    assert_eq!(notes.len(), 4, "{notes:?}");
    assert_eq!((ranks(&t), t.job(1).failures), (vec![0, 1, 2, 3, 6, 7], 0));
    // Devices that broke meanwhile cannot be had again.
    let mut t = running(2, live(4, 6, 0));
    let mut inventory = (*t.cluster.nodes().get(NodeId(1)).inventory).clone();
    let gone = Fault { health: Health::Faulty, why: "gone".into(), since_ms: 0 };
    inventory.devices.iter_mut().for_each(|device| device.fault = Some(gone.clone()));
    let notes = t.report(1, inventory, Vec::new());
    assert!(notes.contains(&"job-1 shrinks from 6 to 4 ranks".to_string()), "{notes:?}");
    // A device that went bad beneath a worker that runs is left; the others run on.
    let mut one = running(2, live(4, 6, 0));
    let mut inventory = (*one.cluster.nodes().get(NodeId(1)).inventory).clone();
    inventory.devices[one.job(1).ranks[4].devices[0] as usize].fault = Some(gone);
    let workers = one.cluster.assignment(NodeId(1)).workers;
    let workers = workers.iter().map(|it| worker(it.id, WorkerState::Running)).collect();
    let notes = one.report(1, inventory, workers);
    assert!(notes.contains(&"job-1 shrinks from 6 to 5 ranks".to_string()), "{notes:?}");
    let goals: Vec<Goal> = one.cluster.assignment(NodeId(1)).workers.iter().map(|it| it.goal).collect();
    assert_eq!((goals, one.job(1).failures), (vec![Goal::Stop, Goal::Run], 0));
    // Well again: it grows at once, while the others run on.
    let notes = t.node(1, 4);
    assert!(notes.contains(&"job-1 grows from 4 to 6 ranks".to_string()), "{notes:?}");
    assert_eq!((ranks(&t), t.job(1).attempt), (vec![0, 1, 2, 3, 6, 7], 1));
    assert_eq!(told(&t, 0), (10, vec![0, 1, 2, 3, 6, 7]));
}

#[test]
fn a_gang_that_stops_stays_together_in_what_its_workers_are_told() {
    let mut t = running(1, live(2, 3, 0));
    t.tell(Command::Scale { job: JobId(1), ranks: Some(2) });
    assert_eq!(told(&t, 0), (4, vec![0, 1]), "rank 2 knows that it leaves alone");
    t.obey(0);
    t.tell(Command::Cancel { job: JobId(1), whole_array: false });
    assert!(t.cluster.assignment(NodeId(0)).members.is_empty(), "what was told stands");
}

/// Why a job stops stands until it has, whoever fails meanwhile: room is kept for the one it gives way to.
#[test]
fn a_job_that_gives_way_does_so_though_another_of_its_workers_fails_meanwhile() {
    let mut t = running(2, live(1, 8, 5));
    t.tell(Command::Submit(Arc::new(JobSpec { priority: 5, ..spec(2, 1) })));
    let Phase::Stopping(Then::Resize(stays)) = t.job(1).phase.clone() else { panic!("{:?}", t.job(1).phase) };
    let at = stays.iter().map(|at| *at as usize).find(|at| t.job(1).ranks[*at].node == NodeId(1));
    let rank = t.job(1).ranks[at.expect("one that stays")].rank;
    let said = format!("job-1 runs on: rank {rank} on node-1 exited with 1");
    assert!(fail(&mut t, 1, rank).contains(&said));
    let victims: Vec<JobId> = t.cluster.jobs().victims_of(JobId(2)).map(|victim| victim.id).collect();
    assert_eq!(victims, [JobId(1)]);
    (0..2).for_each(|node| _ = t.obey(node));
    assert_eq!((t.job(1).ranks.len(), &t.job(2).phase), (6, &Phase::Active));
}
