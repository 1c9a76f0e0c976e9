//! How long decisions take, in pools of many sizes: the core alone, without store, network and agents.

pub mod pool;

use std::sync::Arc;
use std::time::Duration;

use aquifer_core::explain::explain;
use aquifer_core::jobs::{Job, Phase};
use aquifer_core::plan::{Free, fits, plan};
use aquifer_core::*;

use crate::Rng;
use pool::{CLASSES, OWNER, report, spec, want};

/// What was measured in a pool. Times are in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Its nodes, of eight devices each.
    pub nodes: u32,
    /// Jobs that waited, and how many of them one round placed.
    pub waiting: u32,
    #[allow(missing_docs)]
    pub placed: u32,
    /// Main memory of the pool with all its jobs.
    pub bytes: u64,
    /// The round: deciding alone.
    pub round_ns: u64,
    /// The step around it: with records to store and orders for the agents.
    pub step_ns: u64,
    /// Steps that change nothing, after it.
    pub idle: Spread,
    /// Steps with a submission that has to wait behind all others.
    pub unfit: Spread,
    /// Steps with the end of a job, in which others take its place.
    pub ends: Spread,
    /// Gangs of so many ranks of one device each, in an idle pool; those that it has room for.
    pub gangs: Vec<(u32, u64)>,
    /// Submissions of gangs of so many whole nodes that go first and have to wait; those that the pool is large enough for.
    pub wide: Vec<(u32, u64)>,
    /// Booking a hundredth of the nodes for a period.
    pub booked_ns: u64,
    /// Steps with a submission for which another job is stopped, in a pool without a free device.
    pub preempts: Spread,
    /// The same, when so many have been stopped for those before it as the pool has jobs for, 2,000 at most.
    pub preempts_many: Spread,
    /// How many that were.
    pub stopped: u32,
    /// Gangs of so many whole nodes for which others are stopped; those that the pool is large enough for.
    pub gangs_preempt: Vec<(u32, u64)>,
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

/// What is measured with.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    /// In nanoseconds.
    pub clock: fn() -> u64,
    /// Main memory of this process, in bytes.
    pub memory: fn() -> u64,
}

impl Meter {
    /// How long it takes, and what it gives.
    fn time<T>(&self, act: impl FnOnce() -> T) -> (u64, T) {
        let begun = (self.clock)();
        let result = act();
        ((self.clock)() - begun, result)
    }

    /// How long a step takes.
    fn step(&self, cluster: &mut Cluster, event: Event) -> u64 {
        let (now, mut effects) = (cluster.now(), Vec::new());
        self.time(|| cluster.step(now, event, &mut effects)).0
    }

    fn submit(&self, cluster: &mut Cluster, spec: &Arc<JobSpec>) -> u64 {
        self.step(cluster, Event::Request { id: 0, command: Command::Submit(spec.clone()) })
    }
}

/// Steps of each kind that are measured.
const STEPS: u32 = 2000;
/// Of those that stop others, which take longer.
const STOPS: u32 = 50;
/// So many are stopped before others are measured, at most.
const MANY: u32 = 2000;
/// Ranks of the gangs that are measured.
const GANGS: [u32; 3] = [128, 1024, 8192];

/// Measures a pool of mixed makers, in which jobs of some sixty shapes wait.
pub fn measure(nodes: u32, waiting: u32, meter: Meter) -> Figures {
    let mut figures = Figures { nodes, waiting, ..Figures::default() };
    // First, while no memory that others gave back is used again.
    busy(&mut figures, meter);
    idle(&mut figures, meter);
    full(&mut figures, meter);
    figures
}

/// Gangs in a pool that nobody uses.
fn idle(figures: &mut Figures, meter: Meter) {
    let cluster = pool::idle(figures.nodes);
    let mut free = Free::of(&cluster);
    for ranks in GANGS.into_iter().filter(|ranks| *ranks <= figures.nodes) {
        let spec = Arc::new(spec(ranks, want(1, Some(CLASSES[0].1), None), 4000));
        let gang = Job::new(JobId(1), spec, None, Time(0));
        let (ns, fit) = meter.time(|| fits(&mut free, &gang));
        assert_eq!(fit, Ok(()), "a gang of {ranks} ranks in an idle pool");
        figures.gangs.push((ranks, ns));
    }
}

/// A pool in which more jobs wait than fit.
fn busy(figures: &mut Figures, meter: Meter) {
    let before = (meter.memory)();
    let mut cluster = pool::waiting(figures.nodes, figures.waiting);
    let mut free = Free::of(&cluster);
    let (ns, planned) = meter.time(|| plan(&mut free, Time(0)));
    (figures.round_ns, figures.placed) = (ns, planned.starts.len() as u32);
    drop((free, planned));
    figures.step_ns = meter.step(&mut cluster, Event::Tick);
    figures.bytes = (meter.memory)().saturating_sub(before);
    figures.idle = spread((0..STEPS).map(|_| meter.step(&mut cluster, Event::Tick)));
    let unfit = Arc::new(spec(1, want(8, None, None), 100_000_000));
    figures.unfit = spread((0..STEPS).map(|_| meter.submit(&mut cluster, &unfit)));
    let last = cluster.jobs().iter().next_back().expect("one that waits");
    figures.explain_ns = meter.time(|| explain(&cluster, last)).0;
    let asked = Arc::new(spec(1, want(1, None, None), 4000));
    figures.what_if_ns = meter.time(|| what_if(&cluster, asked)).0;
    let ahead = cluster.clone();
    ends(figures, &mut cluster, meter);
    keeps(figures, &ahead, meter);
}

fn what_if(cluster: &Cluster, spec: Arc<JobSpec>) {
    let mut what_if = cluster.clone();
    what_if.step(cluster.now(), Event::Request { id: 0, command: Command::Submit(spec) }, &mut Vec::new());
    explain(&what_if, what_if.jobs().iter().next_back().expect("the new one"));
}

fn ends(figures: &mut Figures, cluster: &mut Cluster, meter: Meter) {
    let mut rng = Rng(1);
    let mut seq: Vec<u64> = vec![1; figures.nodes as usize];
    let running: Vec<JobId> = cluster.jobs().holding().map(|job| job.id).collect();
    figures.ends = spread((0..STEPS).filter_map(|_| {
        let job = cluster.jobs().get(*rng.pick(&running)).expect("it ran");
        if job.phase != Phase::Active {
            return None;
        }
        let (rank, ended) = (job.ranks[0].node, WorkerId { job: job.id, attempt: job.attempt, rank: 0 });
        seq[rank.0 as usize] += 1;
        let report = report(cluster, rank, seq[rank.0 as usize], ended);
        Some(meter.step(cluster, Event::Report(report)))
    }));
}

/// Gangs of whole nodes that go first, in a pool that is full, and nodes that are booked for a period.
fn keeps(figures: &mut Figures, pool: &Cluster, meter: Meter) {
    for ranks in GANGS.into_iter().filter(|ranks| 5 * ranks <= figures.nodes) {
        let mut cluster = pool.clone();
        let queue = Queue { weight: 1_000, ..Queue::new(OWNER.into()) };
        meter.step(&mut cluster, Event::Request { id: 0, command: Command::SetQueue(queue) });
        let gang = JobSpec { queue: OWNER.into(), ..spec(ranks, want(8, Some(CLASSES[0].1), None), 8000) };
        figures.wide.push((ranks, meter.submit(&mut cluster, &Arc::new(gang))));
    }
    let booking = Booking {
        name: "maintenance".into(),
        nodes: BookedNodes::Chosen { count: figures.nodes.div_ceil(100), labels: Vec::new(), model: None },
        start: Some(pool.now() + Duration::from_secs(3600)),
        end: pool.now() + Duration::from_secs(7200),
        queues: Vec::new(),
        users: Vec::new(),
    };
    let reserve = Event::Request { id: 0, command: Command::Reserve(booking) };
    figures.booked_ns = meter.step(&mut pool.clone(), reserve);
}

/// A pool without a free device, promised to others than those who hold it.
fn full(figures: &mut Figures, meter: Meter) {
    let pool = pool::full(figures.nodes);
    let of = |ranks, devices| {
        Arc::new(JobSpec { queue: OWNER.into(), ..spec(ranks, want(devices, None, None), 8000) })
    };
    let (mut cluster, one) = (pool.clone(), of(1, 1));
    figures.preempts = spread((0..STOPS).map(|_| meter.submit(&mut cluster, &one)));
    figures.stopped = MANY.min(figures.nodes * 8 - STOPS);
    (STOPS..figures.stopped).for_each(|_| _ = meter.submit(&mut cluster, &one));
    figures.preempts_many = spread((0..STOPS).map(|_| meter.submit(&mut cluster, &one)));
    for ranks in [16, 128, 1024].into_iter().filter(|ranks| *ranks <= figures.nodes) {
        let mut cluster = pool.clone();
        figures.gangs_preempt.push((ranks, meter.submit(&mut cluster, &of(ranks, 8))));
        let gives_way =
            cluster.jobs().holding().filter(|job| matches!(job.phase, Phase::Stopping(_))).count();
        assert_eq!(gives_way, 8 * ranks as usize, "a gang of {ranks} nodes");
    }
}

fn spread(times: impl Iterator<Item = u64>) -> Spread {
    let mut times: Vec<u64> = times.collect();
    times.sort_unstable();
    let at = |per_cent: usize| times.get((times.len() * per_cent / 100).min(times.len().saturating_sub(1)));
    Spread { p50: at(50).copied().unwrap_or(0), p99: at(99).copied().unwrap_or(0) }
}
