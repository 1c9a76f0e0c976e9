//! Pools of mixed makers to measure: five classes, eight devices a node, jobs of some sixty shapes.

use std::sync::Arc;
use std::time::Duration;

use aquifer_core::jobs::Job;
use aquifer_core::nodes::Node;
use aquifer_core::plan::Order;
use aquifer_core::*;

use crate::Rng;

const GIB: u64 = 1 << 30;

/// The queue that the pool is promised to, in [`full`].
pub const OWNER: &str = "owner";

/// Vendor, model, GiB.
pub const CLASSES: [(Vendor, &str, u64); 5] = [
    (Vendor::Nvidia, "h100-80gb", 80),
    (Vendor::Nvidia, "h200-141gb", 141),
    (Vendor::Amd, "mi300x", 192),
    (Vendor::Ascend, "910b", 64),
    (Vendor::Cambricon, "mlu590", 80),
];

/// The rules of the pools: leases that do not end, since nobody reports.
fn policy() -> Policy {
    Policy { lease: Duration::from_millis(u64::MAX), ..Policy::new(Order::FairShare) }
}

/// A pool of so many nodes that nobody uses.
pub fn idle(nodes: u32) -> Cluster {
    Cluster::restore(policy(), 1, (0..nodes).map(node), Time(0))
}

/// The same, where so many jobs of some sixty shapes wait for the first round.
pub fn waiting(nodes: u32, jobs: u32) -> Cluster {
    let mut rng = Rng(1);
    let specs: Vec<Arc<JobSpec>> = (0..64).map(|_| Arc::new(any_spec(&mut rng))).collect();
    let jobs = (1..=jobs).map(|id| queued(id, rng.pick(&specs).clone()));
    Cluster::restore(policy(), 1, (0..nodes).map(node).chain(jobs), Time(0))
}

/// The same, where each device is held by a job of its own, all of it promised to a queue that has no jobs yet.
pub fn full(nodes: u32) -> Cluster {
    let one = Arc::new(spec(1, want(1, None, None), 4000));
    let jobs = (1..=nodes * 8).map(|id| queued(id, one.clone()));
    let mut cluster = Cluster::restore(policy(), 1, (0..nodes).map(node).chain(jobs), Time(0));
    let owner = Queue { guaranteed_milli: 8000 * u64::from(nodes), ..Queue::new(OWNER.into()) };
    cluster.step(Time(0), Event::Request { id: 0, command: Command::SetQueue(owner) }, &mut Vec::new());
    assert_eq!(cluster.jobs().holding().count(), nodes as usize * 8, "every device is held");
    cluster
}

fn queued(id: u32, spec: Arc<JobSpec>) -> Record {
    Record::Job(Arc::new(Job::new(JobId(id.into()), spec, None, Time(0))))
}

fn node(id: u32) -> Record {
    let (vendor, model, gib) = CLASSES[id as usize % CLASSES.len()];
    let class = Arc::new(DeviceClass { vendor, model: model.into(), memory_bytes: gib * GIB });
    let device = |at: u32| Device {
        class: class.clone(),
        uuid: format!("{id}-{at}").into(),
        fault: None,
        speed_milli: 1000,
        speed_source: "".into(),
        memory_gbs: 0,
        number: 0,
        isolation: Isolation::Advisory,
        island: None,
        locality: Default::default(),
    };
    let inventory = Inventory {
        devices: (0..8).map(device).collect(),
        cpus_milli: 128_000,
        memory_bytes: 1024 * GIB,
        address: format!("node-{id}").into(),
        ports: Ports { first: 20_000, last: 29_999 },
        ..Inventory::default()
    };
    Record::Node(Node {
        id: NodeId(id),
        name: format!("node-{id}").into(),
        inventory: Arc::new(inventory),
        up: true,
        boot: 1,
        ..Node::new(NodeId(id), "".into())
    })
}

/// So many devices, or parts of one, in thousandths; of any model, or one.
pub fn want(count: u16, model: Option<&str>, compute_milli: Option<u32>) -> Vec<DeviceRequest> {
    let slice = compute_milli.map(|compute_milli| Slice { compute_milli, memory_bytes: 0 });
    vec![DeviceRequest { count, model: model.map(Into::into), slice, ..DeviceRequest::default() }]
}

/// A command of so many ranks in the default queue.
pub fn spec(ranks: u32, devices: Vec<DeviceRequest>, cpus_milli: u32) -> JobSpec {
    let request = Request { devices, cpus_milli, memory_bytes: 8 * GIB, ..Request::default() };
    JobSpec {
        name: "measured".into(),
        user: "bench".into(),
        queue: cluster::DEFAULT_QUEUE.into(),
        roles: vec![Role {
            min_ranks: None,
            name: "worker".into(),
            ranks,
            request,
            mounts: Vec::new(),
            standing: Standing::default(),
            program: Program::Command(vec!["measured".into()]),
        }],
        ..JobSpec::default()
    }
}

/// Slices, whole devices, whole nodes and no devices; half of them name a model.
fn any_spec(rng: &mut Rng) -> JobSpec {
    let model = if rng.below(2) == 0 { Some(rng.pick(&CLASSES).1) } else { None };
    let devices = match rng.below(20) {
        0 => Vec::new(),
        1..8 => want(1, model, Some(*rng.pick(&[100, 200, 250, 320, 470, 500, 650, 810]))),
        8..14 => want(1, model, None),
        14..16 => want(2, model, None),
        16..18 => want(4, model, None),
        _ => want(8, model, None),
    };
    let each = devices.first().map_or(1, |want| u32::from(want.count));
    spec(1, devices, each * *rng.pick(&[2_000, 4_000, 8_000, 12_000]))
}

/// What an agent says of whose workers one has ended.
pub fn report(cluster: &Cluster, id: NodeId, seq: u64, ended: WorkerId) -> NodeReport {
    let node = cluster.nodes().get(id);
    let workers = cluster.nodes().held(id).workers.keys().map(|worker| WorkerReport {
        id: *worker,
        state: if *worker == ended { WorkerState::Exited(Exit::Code(0)) } else { WorkerState::Running },
        checkpoint_age_ms: None,
        progress: None,
        load: None,
    });
    NodeReport {
        node: node.name.clone(),
        agent: Name::default(),
        boot: 1,
        seq,
        inventory: node.inventory.clone(),
        revision: cluster.nodes().revision(id),
        workers: workers.collect(),
        probe: None,
    }
}
