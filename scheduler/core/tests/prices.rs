//! What an operator says an hour of devices costs: what queues are charged, and which class jobs get.

mod fixture;

use std::sync::Arc;
use std::time::Duration;

use aquifer_core::explain::class_choice;
use aquifer_core::plan::Order;
use aquifer_core::*;
use fixture::*;

/// A node of so many devices of a model, each so fast.
fn offers(t: &mut Fixture, number: u32, model: &str, devices: u16, speed_milli: u32) {
    let mut inventory = inventory(devices, 64, 512);
    let class = Arc::new(DeviceClass { vendor: Vendor::Nvidia, model: model.into(), memory_bytes: 80 * GIB });
    for device in &mut inventory.devices {
        (device.class, device.speed_milli) = (class.clone(), speed_milli);
    }
    t.report(number, inventory, Vec::new());
}

/// Eight slow devices and eight fast ones, four times as fast.
fn pool() -> Fixture {
    let mut t =
        Fixture::with(Policy { lease: Duration::from_secs(1 << 20), ..Policy::new(Order::FairShare) });
    offers(&mut t, 0, "t4-16gb", 8, 250);
    offers(&mut t, 1, "h100-80gb-hbm3", 8, 1000);
    t
}

fn price(t: &mut Fixture, model: &str, milli: Option<u64>) -> Vec<String> {
    t.tell(Command::SetPrice { model: model.into(), milli })
}

fn node_of(t: &Fixture, job: u64) -> u32 {
    t.job(job).ranks[0].node.0
}

fn worth(t: &Fixture) -> u64 {
    t.cluster.queues().worth_milli("default")
}

/// What is restored from the records is what lived.
fn restored(t: &Fixture) -> Cluster {
    let restored = Cluster::restore(*t.cluster.policy(), 2, t.cluster.records(), t.now);
    assert_eq!(restored.records(), t.cluster.records());
    restored
}

#[test]
fn a_queue_is_charged_the_price_of_when_a_job_was_placed() {
    let mut t = pool();
    t.submit(1, 8);
    assert_eq!((node_of(&t, 1), worth(&t)), (1, 8_000), "without prices devices count their speed");
    assert_eq!(price(&mut t, "h100", Some(2_500)), ["a device hour of h100 costs 2.5"]);
    assert_eq!(worth(&t), 8_000, "what runs costs what it cost");
    t.submit(1, 4);
    assert_eq!((node_of(&t, 2), worth(&t)), (0, 9_000), "a model without a price counts its speed");
    assert_eq!(price(&mut t, "t4", Some(100)), ["a device hour of t4 costs 0.1"]);
    t.submit(1, 4);
    assert_eq!((node_of(&t, 3), worth(&t)), (0, 9_400));
    assert_eq!(restored(&t).tariff(), t.cluster.tariff());
    assert_eq!(restored(&t).queues().worth_milli("default"), 9_400);
    // The same once more is no news, and is not written.
    assert_eq!(price(&mut t, "t4", Some(100)), [] as [&str; 0]);
    assert!(!t.effects.iter().any(|effect| matches!(effect, Effect::Save(_))), "{:?}", t.effects);
    assert_eq!(price(&mut t, "t4", None), ["a device hour of t4 has no price any more"]);
    assert!(t.effects.iter().any(|effect| matches!(effect, Effect::Save(Record::Tariff(_)))));
    assert_eq!(restored(&t).tariff().iter().collect::<Vec<_>>(), [(&"h100".into(), 2_500)]);
}

/// A job has cost what it held, each period at the price of when it was placed; a restart in between changes nothing.
#[test]
fn what_a_job_has_cost_is_counted_at_the_prices_that_it_was_placed_at() {
    let mut t = pool();
    price(&mut t, "h100", Some(2_000));
    price(&mut t, "t4", Some(100));
    let spec = |model: &str| {
        let mut spec = elastic(1, 2, 4);
        spec.roles[0].request.devices[0].model = Some(model.into());
        Arc::new(spec)
    };
    t.tell(Command::Submit(spec("h100")));
    let counted = |t: &Fixture| t.job(1).counted_ms(t.now);
    t.all(1, WorkerState::Running);
    t.pass(Duration::from_secs(3_600));
    assert_eq!(counted(&t), 16 * 3_600_000, "eight devices at 2 an hour");
    // It goes on with four, and what runs costs what it cost.
    t.tell(Command::Scale { job: JobId(1), ranks: Some(1) });
    price(&mut t, "h100", Some(3_000));
    t.obey(1);
    t.all(1, WorkerState::Running);
    t.cluster = restored(&t);
    t.pass(Duration::from_secs(3_600));
    assert_eq!(t.job(1).ranks.len(), 1);
    assert_eq!(counted(&t), (16 + 12) * 3_600_000, "it was placed again: four devices at 3 an hour");
    t.tell(Command::Cancel { job: JobId(1), whole_array: false });
    t.obey(1);
    t.pass(Duration::from_secs(3_600));
    assert_eq!((counted(&t), t.job(1).usage.counted_ms), ((16 + 12) * 3_600_000, (16 + 12) * 3_600_000));
}

#[test]
fn a_core_without_devices_is_charged_its_price() {
    let mut t = pool();
    let mut cores = inventory(8, 8, 64);
    let class = Arc::new(DeviceClass { vendor: Vendor::Cpu, model: "zen4".into(), memory_bytes: 0 });
    cores.devices.iter_mut().for_each(|it| (it.class, it.speed_milli) = (class.clone(), 1));
    cores.labels = [("cores".into(), "yes".into())].into();
    t.report(2, cores, Vec::new());
    price(&mut t, "zen4", Some(40));
    let mut spec = spec(1, 0);
    spec.roles[0].request.cpus_milli = 3_000;
    spec.roles[0].request.labels = vec![("cores".into(), "yes".into())];
    t.tell(Command::Submit(Arc::new(spec)));
    assert_eq!((node_of(&t, 1), worth(&t)), (2, 120));
}

/// Who names no class gets the one on which its work costs least.
#[test]
fn work_goes_where_it_costs_least_and_back_without_prices() {
    let first = |prices: &[(&str, u64)]| {
        let mut t = pool();
        for (model, milli) in prices {
            price(&mut t, model, Some(*milli));
        }
        t.submit(1, 2);
        (node_of(&t, 1), t)
    };
    assert_eq!(first(&[]).0, 1, "of classes that serve the pool alike the faster");
    assert_eq!(first(&[("t4", 250), ("h100", 1_000)]).0, 1);
    // Four times as fast, eight times as dear.
    let (node, t) = first(&[("t4", 500), ("h100", 4_000)]);
    assert_eq!(node, 0);
    let why = class_choice(&t.cluster, t.job(1)).expect("two classes").to_string();
    let expected = "t4-16gb: 0.3 times as fast for it as h100-80gb-hbm3 by the devices' figures, an hour of which \
                    costs 8.0 times as much";
    assert_eq!(why, expected);
    // A price that is gone again leaves no trace, also where the scheduler is another one by then.
    let (_, mut t) = first(&[("h100", 4_000)]);
    assert_eq!(node_of(&t, 1), 0);
    price(&mut t, "h100", None);
    t.cluster = restored(&t);
    t.submit(1, 2);
    assert_eq!(node_of(&t, 2), 1);
}

/// Two queues compete for four devices. One holds slow devices that are dear, the other fast ones that are cheap: with prices
/// the former has had more, and it is the same in any unit.
#[test]
fn shares_are_by_price_in_any_unit() {
    let share = |unit: u64| {
        let mut t = pool();
        offers(&mut t, 2, "a100", 4, 1000);
        for (name, weight) in [("slow", 2), ("fast", 1)] {
            t.tell(Command::SetQueue(Queue { weight, ..Queue::new(name.into()) }));
        }
        for (model, times) in [("t4", 3), ("h100", 1), ("a100", 1)] {
            price(&mut t, model, Some(times * unit).filter(|_| 0 < unit));
        }
        let mut submit = |queue: &str, model: &str, devices: u16| {
            let mut spec = JobSpec { queue: queue.into(), ..spec(1, devices) };
            spec.roles[0].request.devices[0].model = Some(model.into());
            t.tell(Command::Submit(Arc::new(spec)));
        };
        submit("default", "a100", 4);
        submit("slow", "t4", 4);
        submit("fast", "h100", 4);
        for queue in ["fast", "slow"].repeat(4) {
            submit(queue, "a100", 1);
        }
        (0..3).for_each(|node| _ = t.node_again(node));
        t.tell(Command::Cancel { job: JobId(1), whole_array: false });
        t.obey(2);
        let held = |queue: &str| {
            let jobs = t.cluster.jobs().holding().filter(|job| *job.spec.queue == *queue);
            jobs.filter(|job| job.ranks[0].node == NodeId(2)).count()
        };
        (held("slow"), held("fast"))
    };
    assert_eq!(share(0), (4, 0), "by speed: 1 and 4 before");
    for unit in [10, 1_000, 1_000_000] {
        assert_eq!(share(unit), (2, 2), "by price: 12 and 4 before, at {unit}");
    }
}

/// A training that tells of fresh checkpoints runs on slow devices when fast ones become idle.
#[test]
fn nobody_moves_to_where_the_rest_costs_more() {
    let moves = |h100: u64| {
        let mut t = pool();
        t.submit(1, 8);
        t.tell(Command::Submit(Arc::new(train("m", 1, 8))));
        (0..2).for_each(|node| _ = t.node_again(node));
        assert_eq!((node_of(&t, 1), node_of(&t, 2)), (1, 0));
        price(&mut t, "t4", Some(250));
        price(&mut t, "h100", Some(h100));
        t.tell(Command::Cancel { job: JobId(1), whole_array: false });
        t.obey(1);
        let slow = (*t.cluster.nodes().get(NodeId(0)).inventory).clone();
        (0..30).any(|_| {
            let notes = t.pass(Duration::from_secs(60));
            let orders = t.cluster.assignment(NodeId(0)).workers;
            let saved = |id| WorkerReport { checkpoint_age_ms: Some(0), ..worker(id, WorkerState::Running) };
            t.report(0, slow.clone(), orders.iter().map(|order| saved(order.id)).collect());
            notes.iter().any(|note| note.starts_with("job-2 moves"))
        })
    };
    assert!(moves(1_000), "it costs the same, and ends sooner");
    assert!(!moves(1_001));
}

#[test]
fn a_pool_has_so_many_prices_and_no_more() {
    let mut t = pool();
    for at in 0..MAX_PRICES {
        price(&mut t, &format!("m{at}"), Some(1));
    }
    let (answer, _) = t.ask(Command::SetPrice { model: "one-more".into(), milli: Some(1) });
    assert_eq!(answer.expect_err("too many").to_string(), "a pool has at most 1,024 prices");
    price(&mut t, "m7", Some(2));
    price(&mut t, "m8", None);
    price(&mut t, "one-more", Some(1));
}
