//! Who gives way to whom.

mod fixture;

use std::sync::Arc;
use std::time::Duration;

use aquifer_core::explain::explain;
use aquifer_core::plan::Order;
use aquifer_core::*;
use fixture::*;

fn second() -> Duration {
    Duration::from_secs(1)
}

impl Fixture {
    /// Nodes of eight devices, each held by a job: job-1 holds node-0, and so on.
    fn full(nodes: u32) -> Fixture {
        let mut t = Fixture::new();
        (0..nodes).for_each(|node| _ = t.node(node, 8));
        (0..nodes).for_each(|_| _ = t.submit(1, 8));
        t
    }

    fn submit_with(&mut self, ranks: u32, devices: u16, change: impl FnOnce(&mut JobSpec)) -> Vec<String> {
        let mut spec = spec(ranks, devices);
        change(&mut spec);
        self.tell(Command::Submit(Arc::new(spec)))
    }

    fn queue(&mut self, name: &str, guaranteed: u64) {
        let queue = Queue { guaranteed_milli: 1000 * guaranteed, ..Queue::new(name.into()) };
        self.tell(Command::SetQueue(queue));
    }

    /// The numbers of the nodes of a job that runs.
    fn nodes_of(&self, id: u64) -> Vec<u32> {
        self.job(id).ranks.iter().map(|rank| rank.node.0).collect()
    }

    fn checkpoint(&mut self, node: u32, id: WorkerId, age_ms: u64) {
        let at = self.cluster.nodes().by_name(&format!("node-{node}")).expect("a node");
        let inventory = (*self.cluster.nodes().get(at).inventory).clone();
        let all = self.cluster.assignment(at).workers;
        let mut workers: Vec<_> = all.iter().map(|order| worker(order.id, WorkerState::Running)).collect();
        let of = workers.iter_mut().find(|worker| worker.id == id).expect("the worker");
        of.checkpoint_age_ms = Some(age_ms);
        self.report(node, inventory, workers);
    }
}

fn high(spec: &mut JobSpec) {
    spec.priority = 5;
}

fn in_queue(name: &str) -> impl Fn(&mut JobSpec) + '_ {
    move |spec| spec.queue = name.into()
}

#[test]
fn a_higher_priority_takes_the_room_of_a_lower_one_once_it_has_gone() {
    let mut t = Fixture::full(1);
    t.now = Time(4_000);
    let notes = t.submit_with(1, 8, high);
    assert_eq!(
        notes,
        ["job-2 queued", "job-1 preempted: it gives way to job-2, at a cost of 32.000 device seconds"]
    );
    assert_eq!(t.job(1).phase, jobs::Phase::Stopping(jobs::Then::Requeue));
    assert_eq!(t.obey(0), ["job-2 placed attempt=1 on node-0"]);
    let victim = t.job(1);
    assert_eq!((victim.failures, &victim.phase), (0, &jobs::Phase::Pending(t.now)));
    assert_eq!(victim.usage.lost_device_ms, 32_000);
    assert_eq!(t.pass(second()), [""; 0], "it does not take its room back");
}

#[test]
fn equals_wait() {
    let mut t = Fixture::new();
    t.node(0, 8);
    t.submit_with(1, 8, high);
    assert_eq!(t.submit_with(1, 8, high), ["job-2 queued"]);
}

#[test]
fn nobody_stops_for_a_job_that_would_not_start_for_it() {
    let mut t = Fixture::new();
    t.node(0, 8);
    t.node(1, 8);
    t.submit_with(1, 8, high);
    t.submit(1, 8);
    assert_eq!(t.submit_with(2, 8, high), ["job-3 queued"]);
}

#[test]
fn nobody_stops_where_the_policy_says_so() {
    let mut t = Fixture::with(Policy { preemption: false, ..Policy::new(Order::FairShare) });
    t.node(0, 8);
    t.submit(1, 8);
    assert_eq!(t.submit_with(1, 8, high), ["job-2 queued"]);
}

#[test]
fn those_that_stop_already_are_waited_for() {
    let mut t = Fixture::full(2);
    t.tell(Command::Cancel { job: JobId(1), whole_array: false });
    assert_eq!(t.submit_with(1, 8, high), ["job-3 queued"]);
    assert_eq!(t.obey(0), ["job-1 cancelled", "job-3 placed attempt=1 on node-0"]);
}

/// Of two that would do, the one that loses less: it was placed first, but has a checkpoint.
#[test]
fn victims_are_those_that_lose_least() {
    let mut t = Fixture::new();
    t.node(0, 8);
    t.node(1, 8);
    t.submit(1, 8);
    t.now = Time(5_000);
    t.submit(1, 8);
    t.now = Time(9_000);
    t.checkpoint(0, WorkerId { job: JobId(1), attempt: 1, rank: 0 }, 500);
    t.now = Time(9_500);
    let notes = t.submit_with(1, 4, high);
    assert_eq!(notes[1], "job-1 preempted: it gives way to job-3, at a cost of 8.000 device seconds");
    t.now = Time(10_000);
    t.checkpoint(0, WorkerId { job: JobId(1), attempt: 1, rank: 0 }, 0);
    t.obey(0);
    assert_eq!(t.job(1).usage.lost_device_ms, 0, "it wrote a checkpoint while it stopped");
    assert_eq!(t.job(1).usage.device_ms, 80_000);
}

/// Three small jobs lose less than the large one, and the smallest of them is not needed.
#[test]
fn no_victim_is_superfluous() {
    let mut t = Fixture::new();
    t.node(0, 8);
    t.node(1, 8);
    t.submit(1, 8);
    t.now = Time(5_000);
    t.submit(1, 1);
    t.submit(1, 4);
    t.now = Time(6_000);
    let notes = t.submit_with(1, 7, high);
    let mut victims = notes[1..].to_vec();
    victims.sort();
    assert_eq!(victims, ["job-3 preempted: it gives way to job-4, at a cost of 4.000 device seconds"]);
}

#[test]
fn a_gang_takes_room_on_several_nodes_at_once_and_keeps_it() {
    let mut t = Fixture::full(3);
    let notes = t.submit_with(2, 8, high);
    assert_eq!(notes.len(), 3, "{notes:?}");
    let nodes: Vec<u32> =
        (0..3).filter(|node| t.job(1 + u64::from(*node)).gives_way_to().is_some()).collect();
    assert_eq!(nodes.len(), 2);
    assert_eq!(t.obey(nodes[0]), [""; 0], "the gang waits for the second victim");
    // What the first victim left is free, but kept, also for those who could go first.
    t.now = Time(200);
    let kept = t.submit_with(1, 8, |spec| spec.priority = 9);
    let other = 1 + u64::from((0..3).find(|node| !nodes.contains(node)).expect("one"));
    assert_eq!(
        kept,
        [
            "job-5 queued".to_string(),
            format!("job-{other} preempted: it gives way to job-5, at a cost of 1.600 device seconds")
        ]
    );
    let text = explain(&t.cluster, t.job(4)).text(JobId(4), t.now);
    let left = 1 + u64::from(nodes[1]);
    let waits = format!(
        "job-4 waits for those that give way to it: it starts when job-{left} has stopped.\n\n\
         Expected to start within 0.8 s, when job-{left} ends.\n"
    );
    assert_eq!(text, waits);
    let text = explain(&t.cluster, t.job(left)).text(JobId(left), t.now);
    assert_eq!(text, format!("job-{left} is stopping.\n\nIts last attempt gave way to job-4.\n"));
    let notes = t.obey(nodes[1]);
    assert_eq!(notes, [format!("job-4 placed attempt=1 on node-{} node-{}", nodes[0], nodes[1])]);
}

#[test]
fn the_room_is_open_again_when_the_preemptor_is_cancelled() {
    let mut t = Fixture::full(2);
    t.submit_with(2, 8, high);
    t.obey(0);
    assert_eq!(t.submit(1, 4), ["job-4 queued"]);
    let notes = t.tell(Command::Cancel { job: JobId(3), whole_array: false });
    assert_eq!(notes, ["job-3 cancelled", "job-1 placed attempt=2 on node-0"]);
    assert_eq!(t.obey(1), ["job-2 placed attempt=2 on node-1"]);
}

#[test]
fn a_victim_that_is_cancelled_while_it_stops_makes_room_all_the_same() {
    let mut t = Fixture::full(1);
    t.submit_with(1, 8, high);
    t.tell(Command::Cancel { job: JobId(1), whole_array: false });
    assert_eq!(t.submit_with(1, 8, |spec| spec.priority = 9), ["job-3 queued"]);
    assert_eq!(t.obey(0), ["job-1 cancelled", "job-2 placed attempt=1 on node-0"]);
    // A running job again, which may give way.
    assert_eq!(
        t.pass(Duration::from_millis(1)),
        ["job-2 preempted: it gives way to job-3, at a cost of 0.008 device seconds"]
    );
}

/// What an earlier attempt gave way to has nothing to do with the end of a later one.
#[test]
fn a_later_attempt_gives_way_to_nobody() {
    let mut t = Fixture::full(1);
    t.submit_with(1, 8, |spec| (spec.priority, spec.retries) = (5, 1));
    t.obey(0);
    // The preemptor fails and pauses; its victim runs again and is cancelled.
    let notes = t.all(0, WorkerState::Exited(Exit::Code(1)));
    assert_eq!(notes, ["job-2 requeued: rank 0 on node-0 exited with 1", "job-1 placed attempt=2 on node-0"]);
    t.tell(Command::Cancel { job: JobId(1), whole_array: false });
    assert_eq!(t.job(1).gives_way_to(), None);
}

#[test]
fn a_queue_reclaims_its_guarantee_and_no_more() {
    let mut t = Fixture::new();
    t.node(0, 8);
    t.queue("red", 2);
    t.queue("blue", 4);
    for _ in 0..4 {
        t.submit_with(1, 2, in_queue("red"));
    }
    assert_eq!(t.submit_with(1, 5, in_queue("blue")), ["job-5 queued"], "more than it is guaranteed");
    assert_eq!(t.submit_with(1, 2, in_queue("default")), ["job-6 queued"], "no guarantee, no claim");
    let notes = t.submit_with(1, 4, in_queue("blue"));
    assert_eq!(notes.len(), 3, "{notes:?}");
    t.obey(0);
    assert_eq!(t.cluster.queues().held_milli("blue"), 4_000);
    // red holds 4 of 2: below its guarantee it never falls.
    t.queue("green", 4);
    assert_eq!(t.submit_with(1, 4, in_queue("green")), ["job-8 queued"]);
    let notes = t.submit_with(1, 2, in_queue("green"));
    assert_eq!(notes.len(), 2, "{notes:?}");
    t.obey(0);
    assert_eq!(t.submit_with(1, 1, in_queue("green")), ["job-10 queued"]);
}

#[test]
fn a_service_gives_way_to_priority_alone() {
    let mut t = Fixture::new();
    t.node(0, 8);
    t.queue("blue", 8);
    t.submit_with(1, 8, |spec| spec.roles[0].program = serve(None));
    assert_eq!(t.submit_with(1, 8, in_queue("blue")), ["job-2 queued"]);
    assert_eq!(t.submit_with(1, 8, high).len(), 2);
}

/// At the limit of a queue its own lower priorities give way, wherever they run.
#[test]
fn a_limit_is_no_obstacle_where_a_lower_priority_holds_it() {
    let mut t = Fixture::new();
    t.node(0, 8);
    t.tell(Command::SetQueue(Queue { limit_milli: Some(4_000), ..Queue::new("red".into()) }));
    t.submit_with(1, 4, in_queue("red"));
    let notes = t.submit_with(1, 2, |spec| (spec.queue, spec.priority) = ("red".into(), 1));
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert_eq!(t.obey(0), ["job-2 placed attempt=1 on node-0"]);
}

#[test]
fn a_scheduler_that_takes_over_keeps_the_room() {
    let mut t = Fixture::full(2);
    t.submit_with(2, 8, high);
    t.obey(0);
    let mut records = t.cluster.records();
    records.extend(t.cluster.jobs().iter().map(|job| Record::Spec(job.id, job.spec.clone())));
    t.cluster = Cluster::restore(*t.cluster.policy(), 2, records, t.now);
    assert_eq!(t.submit(1, 1), ["job-4 queued"]);
    assert_eq!(t.obey(1), ["job-3 placed attempt=1 on node-0 node-1"]);
}

#[test]
fn of_one_node_the_job_goes_that_was_placed_last() {
    let mut t = Fixture::new();
    t.node(0, 8);
    t.submit(1, 4);
    t.now = Time(3_000);
    t.submit(1, 4);
    t.now = Time(4_000);
    let notes = t.submit_with(1, 2, high);
    assert_eq!(notes[1..], ["job-2 preempted: it gives way to job-3, at a cost of 4.000 device seconds"]);
}

/// While victims stop, no others are chosen for the same job, even if the room of those is of no use any more.
#[test]
fn no_further_victims_are_chosen_before_the_first_have_gone() {
    let mut t = Fixture::full(2);
    let victim = |notes: &[String]| if notes[1].starts_with("job-1") { 0 } else { 1 };
    let first = victim(&t.submit_with(1, 8, high));
    let node = format!("node-{first}").into();
    let notes = t.tell(Command::SetNode { node, availability: Availability::Cordoned });
    assert_eq!(notes, [format!("node-{first} cordoned")]);
    assert_eq!(t.pass(second()), [""; 0]);
    let notes = t.obey(first);
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("gives way to job-3"), "{notes:?}");
}

/// What a slice counts is known when it is placed: by its memory, more than the queue is guaranteed.
#[test]
fn a_slice_that_counts_more_than_the_guarantee_reclaims_nothing() {
    let mut t = Fixture::new();
    t.node(0, 1);
    t.tell(Command::SetQueue(Queue { guaranteed_milli: 400, ..Queue::new("blue".into()) }));
    t.submit(1, 1);
    let half = Slice { compute_milli: 0, memory_bytes: class().memory_bytes / 2 };
    let notes = t.submit_with(1, 1, |spec| {
        spec.queue = "blue".into();
        spec.roles[0].request.devices[0].slice = Some(half);
    });
    assert_eq!(notes, ["job-2 queued"]);
}

fn of(queue: &str, priority: i32) -> impl Fn(&mut JobSpec) {
    move |spec| (spec.queue, spec.priority) = (queue.into(), priority)
}

#[test]
fn nobody_is_stopped_for_a_job_that_lacks_only_what_is_kept() {
    let mut t = Fixture::new();
    t.node(0, 8);
    t.node(1, 8);
    t.queue("red", 0);
    t.submit_with(1, 2, of("default", 0));
    t.submit_with(1, 8, of("default", 0));
    let (free, full) = if t.nodes_of(1) == [0] { (0, 1) } else { (1, 0) };
    t.submit_with(2, 8, of("red", 1));
    assert_eq!(t.submit_with(1, 2, of("default", 1)), ["job-4 queued"], "six devices of {free} are kept");
    // job-3 is gone, and with it what was kept.
    t.tell(Command::Cancel { job: JobId(3), whole_array: false });
    t.pass(Duration::from_millis(1));
    assert_eq!((t.nodes_of(4), t.nodes_of(2)), (vec![free], vec![full]));
}

#[test]
fn a_proof_leaves_alone_what_is_kept_but_not_against_a_guarantee() {
    let mut t = Fixture::new();
    t.node(0, 8);
    t.queue("red", 0);
    t.queue("blue", 1);
    for _ in 0..8 {
        t.submit_with(1, 1, of("default", 0));
    }
    t.submit_with(1, 8, of("red", 1));
    assert_eq!(t.submit_with(1, 1, of("default", 1)), ["job-10 queued"], "the node is kept for job-9");
    let notes = t.submit_with(1, 1, of("blue", 0));
    assert!(notes.len() == 2 && notes[1].contains("gives way to job-11"), "{notes:?}");
    assert!(t.obey(0).contains(&"job-11 placed attempt=1 on node-0".to_string()));
    assert_eq!(t.submit_with(1, 1, of("blue", 0)), ["job-12 queued"], "more than blue is guaranteed");
}

#[test]
fn a_wide_job_that_others_stop_for_keeps_no_other_room() {
    let mut t = Fixture::new();
    t.node(0, 8);
    t.node(1, 8);
    t.submit_with(1, 8, of("default", 0));
    t.submit_with(1, 2, of("default", 2));
    let (full, other) = (t.nodes_of(1)[0], t.nodes_of(2)[0]);
    assert_ne!(full, other);
    let notes = t.submit_with(1, 8, of("default", 1));
    assert!(notes.len() == 2 && notes[1].starts_with("job-1 preempted"), "{notes:?}");
    assert_eq!(t.submit_with(1, 6, of("default", 0)).len(), 2, "beside job-2");
    assert_eq!(t.nodes_of(4), [other]);
    assert!(t.obey(full).contains(&format!("job-3 placed attempt=1 on node-{full}")));
}

#[test]
fn a_queue_reclaims_by_the_guarantee_of_a_queue_above_but_not_within_it() {
    let mut t = Fixture::new();
    t.node(0, 4);
    t.queue("research", 3);
    for name in ["vision", "speech"] {
        let parent = Some("research".into());
        t.tell(Command::SetQueue(Queue { parent, ..Queue::new(name.into()) }));
    }
    for queue in ["vision", "vision", "default", "default"] {
        t.submit_with(1, 1, of(queue, 0));
    }
    let notes = t.submit_with(1, 1, of("speech", 0));
    assert!(notes.len() == 2 && notes[1].starts_with("job-4 preempted"), "{notes:?}");
    t.obey(0);
    // research holds what it is guaranteed: what vision and speech get of it is no matter of guarantees.
    assert_eq!(t.submit_with(1, 1, of("speech", 0)), ["job-6 queued"]);
    assert_eq!(t.cluster.queues().held_milli("research"), 3_000);
}

/// Where the cheapest victims are others', and the queue would hold more than its guarantee with what they leave, and its own are
/// not enough.
#[test]
fn what_goes_beyond_a_guarantee_is_taken_of_those_who_hold_it() {
    let mut t = Fixture::new();
    t.node(0, 16);
    t.queue("blue", 6);
    (0..3).for_each(|_| _ = t.submit_with(1, 1, in_queue("blue")));
    t.node_again(0);
    t.pass(Duration::from_secs(10));
    (0..13).for_each(|_| _ = t.submit_with(1, 1, |_| ()));
    t.node_again(0);
    let notes = t.submit_with(1, 4, |spec| {
        (spec.queue, spec.priority) = ("blue".into(), 1);
        // It may count less than it will.
        let other = DeviceRequest { vendor: Some(Vendor::Ascend), count: 1, ..DeviceRequest::default() };
        spec.roles[0].request.devices.insert(0, other);
    });
    let victims: Vec<JobId> = t.cluster.jobs().victims_of(JobId(17)).map(|victim| victim.id).collect();
    let (own, others): (Vec<JobId>, Vec<JobId>) = victims.into_iter().partition(|id| id.0 <= 3);
    assert!(!own.is_empty() && own.len() + others.len() == 4, "{notes:?}");
}
