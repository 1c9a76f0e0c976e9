//! What workers are told when they start and when they are to stop.

mod fixture;

use std::sync::Arc;
use std::time::Duration;

use aquifer_core::*;
use fixture::*;

/// Nodes of these numbers of devices, each with an address of its own.
fn nodes(devices: &[u16]) -> Fixture {
    let mut t = Fixture::new();
    for (number, devices) in (0..).zip(devices) {
        let address = format!("10.0.0.{number}").as_str().into();
        t.report(number, Inventory { address, ..inventory(*devices, 64, 512) }, Vec::new());
    }
    t
}

/// What the workers on a node are started with.
fn launches(t: &Fixture, node: u32) -> Vec<Arc<Launch>> {
    t.cluster.assignment(NodeId(node)).workers.into_iter().filter_map(|order| order.launch).collect()
}

/// Why the workers on a node are to stop.
fn reasons(t: &Fixture, node: u32) -> Vec<Option<StopReason>> {
    t.cluster.assignment(NodeId(node)).workers.iter().map(|order| order.why).collect()
}

fn running(t: &mut Fixture, nodes: u32) {
    (0..nodes).for_each(|node| _ = t.all(node, WorkerState::Running));
}

#[test]
fn every_rank_of_a_gang_knows_where_all_stand() {
    let mut t = nodes(&[4, 2]);
    t.submit(3, 2);
    let seats = |host: &Host| host.seats.iter().map(|it| (it.rank, it.devices.clone())).collect::<Vec<_>>();
    let of_node = |node: u32| {
        let held: Vec<_> = t.job(1).ranks.iter().filter(|rank| rank.node == NodeId(node)).collect();
        held.iter()
            .map(|it| (it.rank, it.devices.iter().map(|at| u32::from(*at)).collect()))
            .collect::<Vec<_>>()
    };
    for launch in launches(&t, 0).iter().chain(&launches(&t, 1)) {
        let mut hosts: Vec<_> = launch.hosts.iter().map(|it| (it.address.to_string(), seats(it))).collect();
        assert_eq!(hosts[0].1[0].0, 0, "rank 0 stands on the first");
        hosts.sort();
        assert_eq!(hosts, [("10.0.0.0".into(), of_node(0)), ("10.0.0.1".into(), of_node(1))]);
        assert!(launch.hosts.iter().flat_map(|it| &it.seats).all(|it| it.vendor == Some(Vendor::Nvidia)));
        let at =
            launch.hosts.iter().position(|it| it.seats.iter().any(|it| it.rank == launch.allocation.rank));
        assert_eq!(at, Some(launch.node_rank as usize), "nodes are numbered alike");
    }
    assert_eq!(launches(&t, 0).len() + launches(&t, 1).len(), 3);
}

#[test]
fn who_is_alone_or_one_of_too_many_is_told_of_no_hosts() {
    let mut t = nodes(&[1]);
    t.submit(1, 1);
    assert_eq!(launches(&t, 0)[0].hosts.len(), 0);
    for (ranks, listed) in [(MOST_LISTED_RANKS, MOST_LISTED_RANKS), (MOST_LISTED_RANKS + 1, 0)] {
        let mut t = Fixture::new();
        let ports = Ports { first: 1, last: 65_535 };
        t.report(0, Inventory { ports, ..inventory(0, 10_000, 512) }, Vec::new());
        t.submit(ranks as u32, 0);
        let launches = launches(&t, 0);
        assert_eq!(launches.len(), ranks);
        assert_eq!(launches[0].hosts.iter().map(|host| host.seats.len()).sum::<usize>(), listed);
    }
}

#[test]
fn workers_are_told_why_they_stop() {
    let mut t = nodes(&[2]);
    t.submit(2, 1);
    running(&mut t, 1);
    assert_eq!(reasons(&t, 0), [None, None]);
    let mut better = spec(1, 2);
    better.priority = 5;
    t.tell(Command::Submit(Arc::new(better)));
    assert_eq!(reasons(&t, 0), [Some(StopReason::Preempt); 2]);
    t.tell(Command::Cancel { job: JobId(1), whole_array: false });
    assert_eq!(reasons(&t, 0), [Some(StopReason::Cancel); 2], "the latest decision counts");

    let mut t = nodes(&[2]);
    let mut limited = spec(1, 1);
    limited.time_limit_ms = Some(1_000);
    t.tell(Command::Submit(Arc::new(limited)));
    running(&mut t, 1);
    t.pass(Duration::from_secs(2));
    assert_eq!(reasons(&t, 0), [Some(StopReason::TimeLimit)]);
}

/// What the scheduler had decided by then says what an exit means, whatever it looks like and whenever it comes.
#[test]
fn the_exit_of_a_worker_that_was_to_stop_is_no_failure_and_another_s_is() {
    for exit in
        [Exit::Code(0), Exit::Code(1), Exit::Signal(9), Exit::Signal(11), Exit::Failed("killed".into())]
    {
        let mut t = nodes(&[1]);
        t.submit(1, 1);
        running(&mut t, 1);
        let mut better = spec(1, 1);
        better.priority = 5;
        t.tell(Command::Submit(Arc::new(better)));
        let notes = t.all(0, WorkerState::Exited(exit.clone()));
        assert!(notes.iter().any(|note| note.starts_with("job-2 placed")), "{exit}: {notes:?}");
        let job = t.job(1);
        assert_eq!(job.failures, 0, "{exit}");
        assert!(matches!(job.last_failure, Some(jobs::Why::Preempted { .. })), "{exit}");
    }
    let mut t = nodes(&[1]);
    t.submit(1, 1);
    running(&mut t, 1);
    t.all(0, WorkerState::Exited(Exit::Code(143)));
    assert_eq!(t.job(1).failures, 1, "nobody had asked it");
}
