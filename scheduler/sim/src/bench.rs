//! How long decisions take, in pools of many sizes: the core alone, without store, network and agents.

use std::sync::Arc;
use std::time::Duration;

use aquifer_core::explain::explain;
use aquifer_core::jobs::{Job, Phase};
use aquifer_core::nodes::Node;
use aquifer_core::plan::{Free, Order, fits, plan};
use aquifer_core::*;

use crate::Rng;

/// What was measured in a pool. Times are in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Its nodes, of eight devices each.
    pub nodes: u32,
    /// Jobs that waited, and how many of them one round placed.
    pub waiting: u32,
    #[allow(missing_docs)]
    pub placed: u32,
    /// The round: deciding alone.
    pub round_ns: u64,
    /// The step around it: with records to store and orders for the agents.
    pub step_ns: u64,
    /// Steps with a submission that has to wait behind all others.
    pub unfit: Spread,
    /// Steps with the end of a job, in which others take its place.
    pub ends: Spread,
    /// Gangs of so many ranks of one device each, in an idle pool; those that it has room for.
    pub gangs: Vec<(u32, u64)>,
    /// Explaining a job that waits.
    pub explain_ns: u64,
    /// Telling what would happen if a job were submitted: on a copy of the cluster, as the server does it.
    pub what_if_ns: u64,
}

/// Median, and what 99 of 100 do not exceed, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Spread {
    pub p50: u64,
    pub p99: u64,
}

/// Steps of each kind that are measured.
const STEPS: u32 = 2000;
const GIB: u64 = 1 << 30;

/// Measures a pool of mixed makers, in which jobs of some sixty shapes wait.
///
/// * `clock`: in nanoseconds.
pub fn measure(nodes: u32, waiting: u32, clock: fn() -> u64) -> Figures {
    let mut figures = Figures { nodes, waiting, ..Figures::default() };
    let pool: Vec<Record> = (0..nodes).map(node).collect();
    let policy = Policy { lease: Duration::from_millis(u64::MAX), ..Policy::new(Order::FairShare) };
    let idle = Cluster::restore(policy, 1, pool.clone(), Time(0));
    let mut free = Free::of(&idle);
    for ranks in [128, 1024, 8192].into_iter().filter(|ranks| *ranks <= nodes) {
        let gang =
            Job::new(JobId(1), Arc::new(spec(ranks, want(1, Some(CLASSES[0].1), None), 4000)), None, Time(0));
        let begun = clock();
        let fit = fits(&mut free, &gang);
        figures.gangs.push((ranks, clock() - begun));
        assert_eq!(fit, Ok(()), "a gang of {ranks} ranks in an idle pool");
    }

    let mut rng = Rng(1);
    let specs: Vec<Arc<JobSpec>> = (0..64).map(|_| Arc::new(any_spec(&mut rng))).collect();
    let jobs = (1..=waiting).map(|id| {
        let spec = rng.pick(&specs).clone();
        Record::Job(Arc::new(Job::new(JobId(id.into()), spec, None, Time(0))))
    });
    let records: Vec<Record> = pool.into_iter().chain(jobs).collect();
    let mut cluster = Cluster::restore(policy, 1, records, Time(0));
    let mut free = Free::of(&cluster);
    let begun = clock();
    let planned = plan(&mut free, Time(0));
    figures.round_ns = clock() - begun;
    figures.placed = planned.starts.len() as u32;
    drop(free);
    let mut effects = Vec::new();
    let begun = clock();
    cluster.step(Time(0), Event::Tick, &mut effects);
    figures.step_ns = clock() - begun;

    let unfit = Arc::new(spec(1, want(8, None, None), 100_000_000));
    let mut times = Vec::new();
    for id in 0..STEPS {
        let command = Command::Submit(unfit.clone());
        effects.clear();
        let begun = clock();
        cluster.step(Time(1), Event::Request { id: id.into(), command }, &mut effects);
        times.push(clock() - begun);
    }
    figures.unfit = spread(times);
    let last = cluster.jobs().iter().next_back().expect("one that waits");
    let begun = clock();
    let explanation = explain(&cluster, last);
    figures.explain_ns = clock() - begun;
    drop(explanation);
    let asked = Arc::new(spec(1, want(1, None, None), 4000));
    let begun = clock();
    let mut what_if = cluster.clone();
    what_if.step(Time(1), Event::Request { id: 0, command: Command::Submit(asked) }, &mut effects);
    let answer = explain(&what_if, what_if.jobs().iter().next_back().expect("the new one"));
    drop((what_if, answer));
    figures.what_if_ns = clock() - begun;

    let mut seq: Vec<u64> = vec![1; nodes as usize];
    let mut times = Vec::new();
    let running: Vec<JobId> = cluster.jobs().holding().map(|job| job.id).collect();
    for at in 0..STEPS {
        let id = *rng.pick(&running);
        let job = cluster.jobs().get(id).expect("it ran");
        if job.phase != Phase::Active {
            continue;
        }
        let (rank, attempt) = (job.ranks[0].node, job.attempt);
        let ended = WorkerId { job: id, attempt, rank: 0 };
        seq[rank.0 as usize] += 1;
        let report = report(&cluster, rank, seq[rank.0 as usize], ended);
        effects.clear();
        let begun = clock();
        cluster.step(Time(2 + u64::from(at)), Event::Report(report), &mut effects);
        times.push(clock() - begun);
    }
    figures.ends = spread(times);
    figures
}

fn spread(mut times: Vec<u64>) -> Spread {
    times.sort_unstable();
    let at = |per_cent: usize| times.get((times.len() * per_cent / 100).min(times.len().saturating_sub(1)));
    Spread { p50: at(50).copied().unwrap_or(0), p99: at(99).copied().unwrap_or(0) }
}

const CLASSES: [(Vendor, &str, u64); 5] = [
    (Vendor::Nvidia, "h100-80gb", 80),
    (Vendor::Nvidia, "h200-141gb", 141),
    (Vendor::Amd, "mi300x", 192),
    (Vendor::Ascend, "910b", 64),
    (Vendor::Cambricon, "mlu590", 80),
];

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

fn want(count: u16, model: Option<&str>, compute_milli: Option<u32>) -> Vec<DeviceRequest> {
    let slice = compute_milli.map(|compute_milli| Slice { compute_milli, memory_bytes: 0 });
    vec![DeviceRequest { count, model: model.map(Into::into), slice, ..DeviceRequest::default() }]
}

fn spec(ranks: u32, devices: Vec<DeviceRequest>, cpus_milli: u32) -> JobSpec {
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
fn report(cluster: &Cluster, id: NodeId, seq: u64, ended: WorkerId) -> NodeReport {
    let node = cluster.nodes().get(id);
    let workers = cluster.nodes().held(id).workers.iter().map(|worker| WorkerReport {
        id: *worker,
        state: if *worker == ended { WorkerState::Exited(Exit::Code(0)) } else { WorkerState::Running },
        checkpoint_age_ms: None,
        progress: None,
        load: None,
    });
    NodeReport {
        node: node.name.clone(),
        boot: 1,
        seq,
        inventory: node.inventory.clone(),
        revision: cluster.nodes().revision(id),
        workers: workers.collect(),
        probe: None,
    }
}
