//! What steps cost: allocations are counted, times are printed.

mod fixture;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aquifer_core::*;
use fixture::*;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: passes everything on to the system's allocator.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations(of: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    of();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn a_heartbeat_that_changes_nothing_allocates_nothing() {
    let mut t = Fixture::new();
    for node in 0..100 {
        t.node(node, 8);
    }
    for _ in 0..150 {
        t.submit(1, 8);
    }
    // The agent of the last node says that it knows its assignment.
    t.all(99, WorkerState::Running);
    let lease = t.cluster.nodes().lease(NodeId(99)).expect("it is up");
    let (cluster, mut effects) = (&mut t.cluster, Vec::with_capacity(8));
    for beat in 1..100 {
        let (seq, same_as) = (lease.seq + beat, lease.full_seq);
        let event = Event::Heartbeat { node: NodeId(99), boot: 1, seq, same_as };
        effects.clear();
        let count = allocations(|| cluster.step(Time(beat), event, &mut effects));
        assert_eq!(effects, [Effect::Renew { node: NodeId(99), acked: seq }]);
        assert_eq!(count, 0, "allocations of heartbeat {beat}");
    }
    assert!(0 < allocations(|| drop(vec![1])), "the counter counts");
}

#[test]
fn a_tick_with_nothing_due_allocates_nothing_and_emits_nothing() {
    let mut t = Fixture::new();
    t.node(0, 8);
    (0..100).for_each(|_| _ = t.submit(1, 8));
    let (cluster, mut effects) = (&mut t.cluster, Vec::new());
    assert_eq!(allocations(|| cluster.step(Time(1), Event::Tick, &mut effects)), 0);
    assert!(effects.is_empty(), "{effects:?}");
}

/// Nodes of eight devices report for the first time. Without the checks of the fixture, which take longer than all else.
fn join(t: &mut Fixture, nodes: u32) {
    for node in 0..nodes {
        let report = NodeReport {
            node: format!("node-{node}").into(),
            agent: Name::default(),
            boot: 1,
            seq: 1,
            inventory: Arc::new(inventory(8, 64, 512)),
            revision: Revision::default(),
            workers: Vec::new(),
            probe: None,
        };
        t.cluster.step(Time(0), Event::Report(report), &mut Vec::new());
    }
}

/// Ten thousand jobs of one shape wait. What one more event allocates does not depend on how many there are.
#[test]
fn an_event_behind_a_long_queue_costs_the_same_as_behind_a_short_one() {
    let submit = |t: &mut Fixture| {
        let command = Command::Submit(Arc::new(spec(1, 8)));
        let (cluster, mut effects) = (&mut t.cluster, Vec::with_capacity(64));
        let event = Event::Request { id: 0, command };
        allocations(|| cluster.step(Time(0), event, &mut effects))
    };
    let mut t = Fixture::new();
    t.node(0, 8);
    let mut counts = Vec::new();
    for _ in 0..10_000 {
        counts.push(submit(&mut t));
    }
    let mean = |counts: &[u64]| counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    let (short, long) = (mean(&counts[10..110]), mean(&counts[9_900..]));
    println!("allocations of a submission: {short} behind 10 jobs, {long} behind 10,000");
    assert!(long < short * 1.5 + 2.0, "{short} behind 10 jobs, {long} behind 10,000");
    t.cluster.check();
}

/// A round among a thousand queues, in a tree three levels deep, costs each start its way from the top.
#[test]
fn one_round_chooses_among_a_thousand_queues() {
    let mut t = Fixture::new();
    let mut effects = Vec::new();
    let digits = |number: u32, digits: usize| format!("{number:03}")[..digits].to_string();
    for number in 0..1_000 {
        for depth in 1..4 {
            let parent = (1 < depth).then(|| format!("q{}", digits(number, depth - 1)).into());
            let queue = Queue { parent, ..Queue::new(format!("q{}", digits(number, depth)).into()) };
            if t.cluster.queues().get(&queue.name).is_none() {
                let command = Command::SetQueue(queue);
                t.cluster.step(Time(0), Event::Request { id: 0, command }, &mut effects);
            }
        }
        let mut array = spec(1, 1);
        array.queue = format!("q{number:03}").into();
        array.array = Some(ArrayRange { first: 1, last: 20, step: 1 });
        let command = Command::Submit(Arc::new(array));
        t.cluster.step(Time(0), Event::Request { id: 0, command }, &mut effects);
    }
    assert_eq!(t.cluster.queues().iter().count(), 1 + 10 + 100 + 1_000);
    let mut nodes = Fixture::new();
    (0..1_250).for_each(|node| _ = nodes.node(node, 8));
    let nodes = nodes.cluster.records().into_iter().filter(|record| matches!(record, Record::Node(_)));
    let records = t.cluster.records().into_iter().chain(nodes);
    t.cluster = Cluster::restore(*t.cluster.policy(), 2, records, Time(0));
    let began = Instant::now();
    t.cluster.step(Time(0), Event::Tick, &mut effects);
    println!("20,000 jobs of 1,000 queues, 10,000 devices: one round of {:?}", began.elapsed());
    for (queue, held) in [("q0", 1_000), ("q00", 100), ("q000", 10), ("q999", 10)] {
        assert_eq!(t.cluster.queues().held_milli(queue), 1000 * held, "{queue}");
    }
    let mut last = spec(1, 1);
    last.queue = "q500".into();
    let submit = Event::Request { id: 1, command: Command::Submit(Arc::new(last)) };
    let began = Instant::now();
    t.cluster.step(Time(0), submit, &mut effects);
    println!("one more that has to wait: {:?}", began.elapsed());
}

/// One array fills a large pool in one round: the nodes are ranked once, not once for each job.
#[test]
fn one_round_fills_a_large_pool() {
    let mut t = Fixture::new();
    let mut effects = Vec::new();
    join(&mut t, 2_000);
    let mut array = spec(1, 1);
    array.array = Some(ArrayRange { first: 1, last: 20_000, step: 1 });
    let event = Event::Request { id: 0, command: Command::Submit(Arc::new(array)) };
    let began = Instant::now();
    t.cluster.step(Time(0), event, &mut effects);
    println!("20,000 jobs, 16,000 devices on 2,000 nodes: one round of {:?}", began.elapsed());
    assert_eq!(t.cluster.jobs().holding().count(), 16_000);
    let nodes = t.cluster.nodes().len() as u64;
    let first_few = t.cluster.jobs().range(JobId(1)..=JobId(8)).map(|job| job.ranks[0].node.0);
    assert!(first_few.eq([0; 8]), "one node is filled before the next of {nodes}");
    let submit = Event::Request { id: 1, command: Command::Submit(Arc::new(spec(1, 1))) };
    let began = Instant::now();
    t.cluster.step(Time(0), submit, &mut effects);
    println!("one more that has to wait: {:?}", began.elapsed());
}

#[test]
fn ten_thousand_jobs_are_restored_quickly() {
    let mut t = Fixture::new();
    let mut effects = Vec::new();
    join(&mut t, 1_000);
    let began = Instant::now();
    for job in 0..10_000 {
        let command = Command::Submit(Arc::new(spec(1, 1 + (job % 8) as u16)));
        effects.clear();
        t.cluster.step(Time(0), Event::Request { id: job, command }, &mut effects);
    }
    println!("10,000 submissions to 1,000 nodes: {:?}", began.elapsed());
    let records = t.cluster.records();
    let began = Instant::now();
    let restored = Cluster::restore(*t.cluster.policy(), 2, records, Time(0));
    println!("restored {} jobs in {:?}", restored.jobs().len(), began.elapsed());
    restored.check();
    assert_eq!(restored.records(), t.cluster.records());
}

/// Ten thousand full nodes: what a round costs that seeks victims, finds none, or need not seek any.
#[test]
fn victims_on_ten_thousand_nodes_are_found_in_milliseconds() {
    let mut t = Fixture::new();
    let mut effects = Vec::new();
    join(&mut t, 10_000);
    let mut submit = |t: &mut Fixture, what: &str, change: &dyn Fn(&mut JobSpec)| {
        let mut spec = spec(1, 4);
        change(&mut spec);
        effects.clear();
        let began = Instant::now();
        let event = Event::Request { id: 0, command: Command::Submit(Arc::new(spec)) };
        t.cluster.step(Time(1_000), event, &mut effects);
        let preempted =
            effects.iter().filter(|effect| matches!(effect, Effect::Note(Note::Preempted { .. })));
        let victims = preempted.count();
        println!("{what}: {victims} victims in {:?}", began.elapsed());
        victims
    };
    let all = Some(ArrayRange { first: 1, last: 20_000, step: 1 });
    submit(&mut t, "20,000 jobs fill the pool", &|spec| spec.array = all);
    assert_eq!(submit(&mut t, "no better job", &|_| ()), 0);
    assert_eq!(submit(&mut t, "a better job", &|spec| spec.priority = 1), 1);
    let gang = |ranks: u32| move |spec: &mut JobSpec| (spec.priority, spec.roles[0].ranks) = (2, ranks);
    assert_eq!(submit(&mut t, "a better gang of 16", &gang(16)), 16);
    assert_eq!(submit(&mut t, "a better gang of 128", &gang(128)), 128);
    let whole_nodes = |ranks: u32| {
        move |spec: &mut JobSpec| {
            spec.priority = 3;
            spec.roles[0].ranks = ranks;
            spec.roles[0].request.devices[0].count = 8;
        }
    };
    assert_eq!(submit(&mut t, "a gang of 2,000 whole nodes", &whole_nodes(2_000)), 4_000);
    assert_eq!(submit(&mut t, "a gang for which there are too few candidates", &whole_nodes(9_000)), 0);
    assert_eq!(submit(&mut t, "one more behind it", &|_| ()), 0);
}

/// On 1,100 full nodes a gang of 1,024 has as many emptied as it needs, those where least is lost, though no node is held by the
/// latest jobs alone.
#[test]
fn a_gang_of_a_thousand_nodes_has_them_emptied() {
    let mut t = Fixture::new();
    join(&mut t, 1_100);
    let submit = |t: &mut Fixture, at: u64, change: &dyn Fn(&mut JobSpec)| {
        let mut spec = spec(1, 1);
        change(&mut spec);
        let mut effects = Vec::new();
        let event = Event::Request { id: 0, command: Command::Submit(Arc::new(spec)) };
        let began = Instant::now();
        t.cluster.step(Time(at), event, &mut effects);
        let by = |effect: &Effect| match effect {
            Effect::Note(Note::Preempted { job, .. }) => Some(*job),
            _ => None,
        };
        (effects.iter().filter_map(by).collect::<BTreeSet<JobId>>(), began.elapsed())
    };
    let of = |devices: u16, last: u32| {
        move |spec: &mut JobSpec| {
            spec.roles[0].request.devices[0].count = devices;
            spec.array = Some(ArrayRange { first: 1, last, step: 1 });
        }
    };
    // The first of the large ones have run for longest; one node is held by a job of a higher priority too.
    submit(&mut t, 0, &of(7, 500));
    submit(&mut t, 5_000, &of(7, 600));
    submit(&mut t, 6_000, &of(1, 1_099));
    submit(&mut t, 6_000, &|spec| spec.priority = 5);
    assert_eq!(t.cluster.jobs().holding().count(), 2_200);
    let held_by_better = t.cluster.jobs().iter().next_back().expect("the last one").ranks[0].node;
    let gang = |ranks: u32| {
        move |spec: &mut JobSpec| {
            (spec.priority, spec.roles[0].ranks) = (2, ranks);
            spec.roles[0].request.devices[0].count = 8;
        }
    };
    let is_oldest =
        |t: &Fixture, id: &JobId| t.cluster.jobs().get(*id).is_some_and(|job| job.id <= JobId(500));
    let before = t.cluster.clone();
    let (victims, _) = submit(&mut t, 9_000, &gang(512));
    assert_eq!(victims.len(), 1_024);
    assert!(!victims.iter().any(|id| is_oldest(&t, id)), "there are enough that lose less");
    t.cluster = before.clone();
    assert!(submit(&mut t, 9_000, &gang(1_100)).0.is_empty(), "one node holds a better job");
    t.cluster = before;
    let (victims, took) = submit(&mut t, 9_000, &gang(1_024));
    println!("a better gang of 1,024 nodes: {} of 2,200 jobs stop, found in {took:?}", victims.len());
    assert_eq!(victims.len(), 2_048, "two on each node");
    let job = |id: &JobId| t.cluster.jobs().get(*id).expect("a victim");
    let nodes: BTreeSet<NodeId> = victims.iter().map(|id| job(id).ranks[0].node).collect();
    assert_eq!(nodes.len(), 1_024);
    assert!(!nodes.contains(&held_by_better));
    let oldest = victims.iter().filter(|id| is_oldest(&t, id)).count();
    assert!((424..=425).contains(&oldest), "{oldest} of the oldest stop, where 599 or 600 nodes lose less");
    t.cluster.check();
}

/// Two thousand jobs at once for which others are to stop: what one more allocates does not depend on how many there are.
#[test]
fn a_submission_costs_the_same_however_many_others_stop_for_those_before_it() {
    let mut t = Fixture::new();
    join(&mut t, 1_000);
    let submit = |t: &mut Fixture, at: u64, change: &dyn Fn(&mut JobSpec)| {
        let mut spec = spec(1, 1);
        change(&mut spec);
        let (cluster, mut effects) = (&mut t.cluster, Vec::with_capacity(64));
        let event = Event::Request { id: 0, command: Command::Submit(Arc::new(spec)) };
        let began = Instant::now();
        let count = allocations(|| cluster.step(Time(at), event, &mut effects));
        (count, began.elapsed())
    };
    submit(&mut t, 0, &|spec| spec.array = Some(ArrayRange { first: 1, last: 8_000, step: 1 }));
    let costs: Vec<(u64, Duration)> =
        (1..=2_000).map(|at| submit(&mut t, at, &|spec| spec.priority = 1)).collect();
    assert_eq!(t.cluster.jobs().promised().count(), 2_000, "each has somebody stopped for it");
    let mean = |costs: &[(u64, Duration)]| {
        costs.iter().map(|(count, _)| *count).sum::<u64>() as f64 / costs.len() as f64
    };
    let time = |costs: &[(u64, Duration)]| {
        costs.iter().map(|(_, time)| *time).sum::<Duration>() / costs.len() as u32
    };
    let (few, many) = (&costs[10..110], &costs[1_900..]);
    println!(
        "few stop: {} allocations in {:?}; 2,000 stop: {} in {:?}",
        mean(few),
        time(few),
        mean(many),
        time(many)
    );
    assert!(mean(many) < mean(few) * 1.1 + 2.0, "{} where few stop, {} where many do", mean(few), mean(many));
    t.cluster.check();
}

/// Trainings of one device are left on 2,000 nodes when those beside them have ended; a job wants two devices of a node.
#[test]
fn who_moves_on_two_thousand_nodes_is_found_in_milliseconds() {
    const NODES: u32 = 2_000;
    let mut policy = Policy::new(plan::Order::FairShare);
    policy.lease = Duration::from_secs(3_600);
    let mut t = Fixture::with(policy);
    let mut effects = Vec::new();
    join(&mut t, NODES);
    let mut step = |t: &mut Fixture, at: u64, event: Event| {
        effects.clear();
        let began = Instant::now();
        t.cluster.step(Time(at), event, &mut effects);
        let took = began.elapsed();
        (effects.iter().filter(|it| matches!(it, Effect::Note(Note::MadeRoom { .. }))).count(), took)
    };
    let submit = |devices: u16, count: u32| {
        let mut spec = train("m", 1, devices);
        spec.array = Some(ArrayRange { first: 1, last: count, step: 1 });
        Event::Request { id: 0, command: Command::Submit(Arc::new(spec)) }
    };
    step(&mut t, 1_000, submit(6, NODES));
    step(&mut t, 1_000, submit(1, 2 * NODES));
    // All run; then every other one of those with one device is told to end, and does.
    for seq in 2..4 {
        for node in 0..NODES {
            let id = NodeId(node);
            let orders = t.cluster.assignment(id).workers;
            let state = |goal| match goal {
                Goal::Run => WorkerState::Running,
                Goal::Stop => WorkerState::Exited(Exit::Signal(15)),
            };
            let workers = orders.iter().map(|order| worker(order.id, state(order.goal))).collect();
            let node = t.cluster.nodes().get(id);
            let (name, inventory) = (node.name.clone(), node.inventory.clone());
            let revision = t.cluster.nodes().revision(id);
            let report = NodeReport {
                node: name,
                agent: Name::default(),
                boot: 1,
                seq,
                inventory,
                revision,
                workers,
                probe: None,
            };
            step(&mut t, 2_000, Event::Report(report));
        }
        for job in (u64::from(NODES) + 1..3 * u64::from(NODES)).step_by(2).filter(|_| seq == 2) {
            let command = Command::Cancel { job: JobId(job), whole_array: false };
            step(&mut t, 2_000, Event::Request { id: 0, command });
        }
    }
    step(&mut t, 3_000, submit(2, 1));
    let mut moves = 0;
    while moves == 0 {
        let at = t.cluster.deadline().expect("a round").0;
        assert!(at < 2_000_000, "nobody moves");
        let (moved, took) = step(&mut t, at, Event::Tick);
        moves = moved;
        println!("{at} ms: {moved} of {} that run move, in {took:?}", 2 * NODES);
    }
    assert_eq!(moves, 1);
}
