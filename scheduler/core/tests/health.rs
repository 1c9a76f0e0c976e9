//! Devices that are not well, and devices that are cordoned.

mod fixture;

use std::time::Duration;

use aquifer_core::jobs::{Phase, Why};
use aquifer_core::nodes::Node;
use aquifer_core::plan::Order;
use aquifer_core::*;
use fixture::*;

/// Nodes of eight devices that do not have to speak to stay in the pool.
fn pool(nodes: u32) -> Fixture {
    let lease = Duration::from_secs(1 << 30);
    let mut t = Fixture::with(Policy { lease, ..Policy::new(Order::FairShare) });
    (0..nodes).for_each(|node| _ = t.node(node, 8));
    t
}

fn fault(health: Health) -> Fault {
    Fault { health, why: "xid 79".into(), since_ms: 1 }
}

/// The node reports its devices with these faults; what it was told to run runs.
fn break_devices(t: &mut Fixture, node: u32, devices: &[u16], health: Option<Health>) -> Vec<String> {
    let id = t.cluster.nodes().by_name(&format!("node-{node}")).expect("a node");
    let mut inventory = (*t.cluster.nodes().get(id).inventory).clone();
    for device in devices {
        inventory.devices[usize::from(*device)].fault = health.map(fault);
    }
    let orders = t.cluster.assignment(id).workers;
    let workers = orders.iter().map(|order| worker(order.id, WorkerState::Running)).collect();
    t.report(node, inventory, workers)
}

#[test]
fn a_gang_leaves_a_device_that_went_bad_once_and_is_not_charged() {
    for (health, _) in Health::ALL {
        let mut t = pool(3);
        t.submit(2, 8);
        (0..2).for_each(|node| _ = t.all(node, WorkerState::Running));
        let notes = break_devices(&mut t, 1, &[5], Some(health));
        let left: Vec<&String> = notes.iter().filter(|note| note.contains("requeued")).collect();
        if matches!(health, Health::Suspect | Health::Probation) {
            assert!(left.is_empty() && t.job(1).phase == Phase::Active, "{health}: {notes:?}");
            continue;
        }
        assert_eq!(
            left,
            [&format!("job-1 requeued: device 5 of node-1, which rank 1 has, is {health}: xid 79")]
        );
        let again = break_devices(&mut t, 1, &[5], Some(health));
        assert!(!again.iter().any(|note| note.contains("requeued")), "{again:?}");
        (0..2).for_each(|node| _ = t.obey(node));
        t.pass(Duration::ZERO);
        let job = t.job(1);
        assert_eq!((job.failures, job.attempt, &job.phase), (0, 2, &Phase::Active), "{health}");
        assert!(matches!(job.last_failure, Some(Why::DeviceBad { rank: 1, device: 5, .. })));
        let nodes: Vec<u32> = job.ranks.iter().map(|rank| rank.node.0).collect();
        assert_eq!(nodes, [0, 2], "{health}: elsewhere");
    }
}

#[test]
fn a_job_that_does_not_hold_the_bad_device_runs_on() {
    let mut t = pool(1);
    t.submit(1, 4);
    t.all(0, WorkerState::Running);
    let held = t.job(1).ranks[0].devices.clone();
    let other = (0..8).find(|device| !held.contains(device)).expect("a free device");
    break_devices(&mut t, 0, &[other], Some(Health::Faulty));
    assert_eq!(t.job(1).phase, Phase::Active);
}

#[test]
fn no_more_than_five_per_cent_of_a_pool_are_quarantined_in_an_hour_and_the_rest_keeps_what_runs() {
    // 5 % of 48 devices are two.
    let mut t = pool(6);
    (0..6).for_each(|_| _ = t.submit(1, 8));
    (0..6).for_each(|node| _ = t.all(node, WorkerState::Running));
    let granted = |notes: &[String]| notes.iter().filter(|note| note.contains("quarantined:")).count();
    let stopped = |t: &Fixture| (1..=6).filter(|job| t.job(*job).phase != Phase::Active).count();
    let notes: Vec<String> =
        (0..4).flat_map(|node| break_devices(&mut t, node, &[0], Some(Health::Quarantined))).collect();
    assert_eq!(notes.iter().filter(|note| note.contains(" device 0 quarantined: xid 79")).count(), 2);
    assert_eq!(stopped(&t), 2);
    // One of them comes back, and goes again: that is no new one.
    break_devices(&mut t, 0, &[0], None);
    assert_eq!(granted(&break_devices(&mut t, 0, &[0], Some(Health::Quarantined))), 0);
    t.pass(Duration::from_secs(3599));
    assert_eq!((0..4).map(|node| t.node_again(node)).filter(|notes| 0 < granted(notes)).count(), 0);
    t.pass(Duration::from_secs(2));
    (0..4).for_each(|node| _ = t.node_again(node));
    assert_eq!(stopped(&t), 4, "an hour later there is room for two more");
}

#[test]
fn even_a_pool_of_one_device_may_quarantine_it() {
    let mut t = pool(0);
    t.node(0, 1);
    let notes = break_devices(&mut t, 0, &[0], Some(Health::Quarantined));
    assert!(notes.iter().any(|note| note == "node-0 device 0 quarantined: xid 79"), "{notes:?}");
}

#[test]
fn a_cordoned_device_takes_nothing_new_until_it_is_uncordoned_and_restarts_change_nothing() {
    let mut t = pool(1);
    let set = |t: &mut Fixture, device, cordoned| {
        t.ask(Command::SetDevice { node: "node-0".into(), device, cordoned })
    };
    assert_eq!(set(&mut t, 3, true).1, ["node-0 device 3 cordoned"]);
    assert_eq!(set(&mut t, 3, true).1, [] as [String; 0], "it is already");
    let why = set(&mut t, 8, true).0.expect_err("no such device").to_string();
    assert_eq!(why, "node \"node-0\" has no device 8: expected 0 to 7");
    t.submit(1, 8);
    t.submit(1, 7);
    assert!(matches!(t.job(1).phase, Phase::Pending(_)));
    assert_eq!(t.job(2).ranks[0].devices, [0, 1, 2, 4, 5, 6, 7]);
    t.all(0, WorkerState::Running);
    _ = set(&mut t, 0, true);
    assert_eq!(t.job(2).phase, Phase::Active, "what runs there runs on");
    // The device moves to another place of the list: it is the piece that is cordoned.
    let node = t.cluster.nodes().get(NodeId(0)).clone();
    assert_eq!(node.cordoned.iter().map(|uuid| &**uuid).collect::<Vec<&str>>(), ["uuid-0", "uuid-3"]);
    _ = set(&mut t, 0, false);
    _ = set(&mut t, 3, false);
    t.tell(Command::Cancel { job: JobId(2), whole_array: false });
    t.obey(0);
    t.pass(Duration::ZERO);
    assert_eq!(t.job(1).ranks[0].devices.len(), 8);
}

#[test]
fn a_core_counts_what_it_is_for_usage_and_never_nothing() {
    let mut inventory = inventory(2, 8, 64);
    let rank = |devices: Vec<u16>, charge_milli| Allocation {
        rank: 0,
        since: Time(0),
        restart_at: None,
        hasty: 0,
        node: NodeId(0),
        devices,
        slice: None,
        charge_milli,
        cpus_milli: 0,
        memory_bytes: 0,
        port: 1,
        worker: RankState::Assigned,
    };
    let worth = |inventory: &Inventory, rank: &Allocation| {
        let node = Node { inventory: inventory.clone().into(), ..Node::new(NodeId(0), "a".into()) };
        node.worth_milli(rank, &Tariff::default())
    };
    assert_eq!(worth(&inventory, &rank(vec![0, 1], 2000)), 2000);
    // Four cores without devices: a thousandth of the reference device each, not one each.
    assert_eq!(worth(&inventory, &rank(vec![], 4000)), 4);
    assert_eq!(worth(&inventory, &rank(vec![], 1)), 1, "rounded up");
    let core = DeviceClass { vendor: Vendor::Cpu, model: "xeon".into(), memory_bytes: 0 };
    for device in &mut inventory.devices {
        (device.class, device.speed_milli) = (core.clone().into(), 5);
    }
    assert_eq!(worth(&inventory, &rank(vec![0, 1], 2000)), 10);
    assert_eq!(worth(&inventory, &rank(vec![], 2000)), 10, "as the cores that are devices");
}
