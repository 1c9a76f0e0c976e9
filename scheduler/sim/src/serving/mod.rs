//! A service on a pool of several classes, in virtual time: requests of a trace, replicas that are rooflines, and the very
//! [`Cluster`] of the server, which is told what replicas tell and says how many there are, on which devices.
//!
//! Requests go to the replica with the fewest in flight, as at a gateway. A replica takes [`START_US`] until it answers; one
//! that is to go ends what it has begun, for the grace of its job. What a request costs is what an hour of the devices counts
//! for a queue: their speed, for as long as replicas hold them.

pub mod replica;
pub mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::autoscale::{Fleet, Load, Scaler, Target};
use aquifer_core::plan::Order;
use aquifer_core::*;

use replica::{Asked, CLASSES, Replica};
use trace::Request;

/// From the placement of a replica until it answers: weights are loaded.
pub const START_US: u64 = 45_000_000;
/// Between two words of the agents.
const TICK_US: u64 = 1_000_000;
/// Requests come when the service has its first replica. What they and the next ones meet is not counted: it has one.
const FIRST_US: u64 = 60_000_000;
const WARM_US: u64 = 1_200_000_000;
/// A replica that is to go has so long for what it has begun.
const GRACE_US: u64 = 30_000_000;
/// By then all that came is answered, or something is wrong.
const PATIENCE_US: u64 = 7_200_000_000;
/// Replicas, at most.
const MOST: u32 = 200;
const JOB: JobId = JobId(1);

/// Who says which class the next replica gets, and which replica goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The cluster, for a service that scales itself by its promise.
    ByRequest,
    /// The same for one that accepts a single class.
    Only(&'static str),
    /// The cluster for a service that promises nothing: the class by comparative advantage, the last replica first. How many
    /// there are is what the same promise asks for where all are alike.
    ByAdvantage,
}

/// What came of it, of the requests that are counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Requests.
    pub requests: u64,
    /// Those of them that were answered as was promised.
    pub within: u64,
    /// Seconds of the reference device that replicas held.
    pub cost_s: f64,
    /// Seconds that replicas held devices of each class.
    pub held_s: BTreeMap<&'static str, u64>,
}

impl Outcome {
    /// Seconds of the reference device for a request.
    pub fn cost(&self) -> f64 {
        self.cost_s / self.requests.max(1) as f64
    }

    /// Part of the requests that were answered as was promised.
    pub fn share(&self) -> f64 {
        self.within as f64 / self.requests.max(1) as f64
    }
}

struct Worker {
    node: usize,
    began_us: u64,
    /// When it was told to go.
    stops_us: Option<u64>,
    /// Once it answers.
    replica: Option<Replica>,
}

struct Run<'a> {
    cluster: Cluster,
    rule: Rule,
    promise: Promise,
    nodes: Vec<(NodeReport, usize)>,
    workers: BTreeMap<WorkerId, Worker>,
    /// When passes end.
    passes: BTreeSet<(u64, WorkerId)>,
    requests: &'a [Request],
    held: Vec<Asked>,
    in_flight: u64,
    scaler: Scaler,
    wanted: u32,
    outcome: Outcome,
}

/// Serves a trace.
///
/// * `devices`: of each of [`CLASSES`], on one node each.
pub fn run(requests: &[Request], devices: [u16; 4], promise: Promise, rule: Rule) -> Outcome {
    let lease = Duration::from_millis(u64::MAX);
    let cluster = Cluster::restore(Policy { lease, ..Policy::new(Order::FairShare) }, 1, [], Time(0));
    let nodes = (0..).zip(devices).filter(|(_, devices)| 0 < *devices);
    let nodes = nodes.map(|(class, devices)| (report(class, devices), class)).collect();
    let requests: Vec<Request> =
        requests.iter().map(|it| Request { at_us: it.at_us + FIRST_US, ..*it }).collect();
    let scaler = Scaler::new(Time(0), 1);
    let mut run = Run {
        cluster,
        rule,
        promise,
        nodes,
        workers: BTreeMap::new(),
        passes: BTreeSet::new(),
        requests: &requests,
        held: Vec::new(),
        in_flight: 0,
        scaler,
        wanted: 1,
        outcome: Outcome::default(),
    };
    run.all();
    run.outcome
}

fn report(class: usize, devices: u16) -> NodeReport {
    let it = CLASSES[class];
    let memory_bytes = it.memory_gb * 1_000_000_000;
    let of = Arc::new(DeviceClass { vendor: Vendor::Nvidia, model: it.model.into(), memory_bytes });
    let device = |index: u16| Device {
        class: of.clone(),
        uuid: format!("{}-{index}", it.model).into(),
        fault: None,
        speed_milli: it.speed_milli(),
        speed_source: "".into(),
        memory_gbs: it.memory_gbs,
        number: index.into(),
        isolation: Isolation::Advisory,
        island: None,
        locality: Default::default(),
    };
    let inventory = Inventory {
        devices: (0..devices).map(device).collect(),
        cpus_milli: 1_000_000,
        memory_bytes: 1 << 44,
        address: it.model.into(),
        ports: Ports { first: 20_000, last: 29_999 },
        ..Inventory::default()
    };
    NodeReport {
        node: it.model.into(),
        agent: Name::default(),
        boot: 1,
        seq: 0,
        inventory: Arc::new(inventory),
        revision: Revision::default(),
        workers: Vec::new(),
        probe: None,
    }
}

impl Run<'_> {
    fn all(&mut self) {
        self.tell(0);
        self.command(0, Command::Submit(Arc::new(self.service())));
        let (mut next, mut tick_us) = (0, TICK_US);
        while next < self.requests.len() || 0 < self.in_flight {
            let last_us = self.requests.last().map_or(0, |last| last.at_us);
            assert!(tick_us < last_us + PATIENCE_US, "{} requests are never answered", self.in_flight);
            let pass = self.passes.first().copied();
            let arrival = self.requests.get(next).map(|request| request.at_us);
            let pass_us = pass.map_or(u64::MAX, |(at, _)| at);
            if let Some(at) = arrival.filter(|at| *at <= pass_us && *at <= tick_us) {
                self.in_flight += 1;
                self.ask(at, Asked::new(next, self.requests[next]));
                next += 1;
            } else if let Some((at, id)) = pass.filter(|(at, _)| *at <= tick_us) {
                self.end_pass(at, id);
            } else {
                self.tick(tick_us, next < self.requests.len());
                tick_us += TICK_US;
            }
        }
    }

    fn service(&self) -> JobSpec {
        let autoscale = (self.rule != Rule::ByAdvantage).then_some(self.promise);
        let only = |rule| if let Rule::Only(model) = rule { Some(model.into()) } else { None };
        let want = DeviceRequest { count: 1, model: only(self.rule), ..DeviceRequest::default() };
        let served = ServeOptions {
            model: "/model".into(),
            served_name: "model".into(),
            max_queue: 100_000,
            precision: "int8".into(),
            kv_memory_bytes: None,
            autoscale,
        };
        let role = Role {
            name: "server".into(),
            ranks: MOST,
            min_ranks: Some(1),
            request: aquifer_core::Request { devices: vec![want], ..aquifer_core::Request::default() },
            mounts: Vec::new(),
            standing: Standing::default(),
            program: Program::Serve(served),
        };
        JobSpec { name: "service".into(), queue: "default".into(), roles: vec![role], ..JobSpec::default() }
    }

    fn command(&mut self, now_us: u64, command: Command) {
        self.step(now_us, Event::Request { id: now_us, command });
    }

    fn step(&mut self, now_us: u64, event: Event) {
        let mut effects = Vec::new();
        self.cluster.step(Time(now_us / 1000), event, &mut effects);
        for effect in effects {
            if let Effect::Reply(_, Err(refusal)) = effect {
                panic!("the service is refused: {refusal}");
            }
        }
    }

    /// To the replica with the fewest in flight; one that could never hold it refuses it.
    fn ask(&mut self, now_us: u64, asked: Asked) {
        let open = self.workers.iter_mut().filter(|(_, worker)| worker.stops_us.is_none());
        let ready = open.filter_map(|(id, worker)| Some((*id, worker.replica.as_mut()?)));
        let fewest = ready.min_by_key(|(id, replica)| {
            let (running, waiting) = replica.load();
            (running + waiting, *id)
        });
        let Some((id, replica)) = fewest else { return self.held.push(asked) };
        if !replica.could_hold(&asked.request) {
            return self.answered(&asked.request, None);
        }
        let before = replica.next_us();
        replica.ask(now_us, asked);
        if before.is_none() {
            self.passes.extend(replica.next_us().map(|at| (at, id)));
        }
    }

    fn end_pass(&mut self, now_us: u64, id: WorkerId) {
        self.passes.remove(&(now_us, id));
        let replica =
            self.workers.get_mut(&id).and_then(|worker| worker.replica.as_mut()).expect("it has a pass");
        let answers = replica.end_pass(now_us);
        self.passes.extend(replica.next_us().map(|at| (at, id)));
        for answer in answers {
            let request = self.requests[answer.number];
            self.answered(&request, Some((answer.ttft_us, answer.tpot_us)));
        }
    }

    /// * `times_us`: to the first token, and from one to the next; `None`: it was refused.
    fn answered(&mut self, request: &Request, times_us: Option<(u64, u64)>) {
        self.in_flight -= 1;
        if request.at_us < FIRST_US + WARM_US {
            return;
        }
        let keeps = |us: u64, ms: Option<u64>| ms.is_none_or(|ms| us <= ms * 1000);
        let within = times_us.is_some_and(|(first, next)| {
            keeps(first, self.promise.ttft_ms) && keeps(next, self.promise.tpot_ms)
        });
        self.outcome.requests += 1;
        self.outcome.within += u64::from(within);
    }

    /// A second has passed: agents do as they are told, and tell.
    fn tick(&mut self, now_us: u64, counts: bool) {
        let mut held = BTreeMap::<WorkerId, usize>::new();
        for at in 0..self.nodes.len() {
            let name = self.nodes[at].0.node.clone();
            let id = self.cluster.nodes().by_name(&name).expect("a node");
            for order in self.cluster.assignment(id).workers {
                held.insert(order.id, at);
                let new = || Worker { node: at, began_us: now_us, stops_us: None, replica: None };
                let worker = self.workers.entry(order.id).or_insert_with(new);
                if order.goal == Goal::Stop {
                    worker.stops_us.get_or_insert(now_us);
                } else if worker.replica.is_none() && worker.began_us + START_US <= now_us {
                    worker.replica = Some(Replica::new(CLASSES[self.nodes[at].1]));
                }
            }
        }
        // What it did not answer in its grace is asked anew elsewhere.
        let is_over = |worker: &Worker| {
            let is_idle = worker.replica.as_ref().is_none_or(|replica| replica.load() == (0, 0));
            worker.stops_us.is_some_and(|since| is_idle || since + GRACE_US <= now_us)
        };
        let over: Vec<WorkerId> =
            self.workers.iter().filter(|(_, worker)| is_over(worker)).map(|(id, _)| *id).collect();
        for id in &over {
            let replica = self.workers.get_mut(id).and_then(|worker| worker.replica.take());
            let left =
                replica.into_iter().inspect(|it| _ = it.next_us().map(|at| self.passes.remove(&(at, *id))));
            let left: Vec<Asked> = left.flat_map(Replica::end).collect();
            self.held.extend(left);
        }
        for asked in std::mem::take(&mut self.held) {
            self.ask(now_us, asked);
        }
        self.tell(now_us);
        self.workers.retain(|id, _| held.contains_key(id));
        if self.rule == Rule::ByAdvantage {
            self.scale(now_us);
        }
        if counts && FIRST_US + WARM_US <= now_us {
            for worker in self.workers.values().filter(|worker| !is_over(worker)) {
                let class = CLASSES[self.nodes[worker.node].1];
                self.outcome.cost_s += f64::from(class.speed_milli()) / 1000.0;
                *self.outcome.held_s.entry(class.model).or_default() += 1;
            }
        }
    }

    /// All agents report.
    fn tell(&mut self, now_us: u64) {
        for at in 0..self.nodes.len() {
            let name = self.nodes[at].0.node.clone();
            let id = self.cluster.nodes().by_name(&name);
            let own = self.workers.iter().filter(|(_, worker)| worker.node == at);
            let workers = own.map(|(id, worker)| tells(now_us, *id, worker)).collect();
            let report = &mut self.nodes[at].0;
            report.seq += 1;
            report.revision = id.map_or(Revision::default(), |id| self.cluster.nodes().revision(id));
            report.workers = workers;
            let report = report.clone();
            self.step(now_us, Event::Report(report));
        }
        self.step(now_us, Event::Tick);
    }

    /// How many there are is decided as for replicas that are all alike.
    fn scale(&mut self, now_us: u64) {
        let Promise { concurrency, ttft_ms, tpot_ms, .. } = self.promise;
        let target = Target { min: 1, max: MOST, concurrency, ttft_ms, tpot_ms, idle: Duration::ZERO };
        let mut load = Load { last_request: Some(Time(now_us / 1000)), ..Load::default() };
        let open = self.workers.values().filter(|worker| worker.stops_us.is_none());
        for replica in open.filter_map(|worker| worker.replica.as_ref()) {
            let ((running, waiting), (first, next)) = (replica.load(), replica.times_ms(now_us));
            (load.ready, load.running, load.waiting) =
                (load.ready + 1, load.running + running, load.waiting + waiting);
            (load.ttft_ms, load.tpot_ms) = (load.ttft_ms.max(first), load.tpot_ms.max(next));
        }
        let decision = self.scaler.decide(Time(now_us / 1000), &target, &load, &Fleet::default());
        if 0 < load.ready && decision.replicas != self.wanted {
            self.wanted = decision.replicas;
            self.command(now_us, Command::Scale { job: JOB, ranks: Some(self.wanted) });
        }
    }
}

/// What an agent reports of a worker.
fn tells(now_us: u64, id: WorkerId, worker: &Worker) -> WorkerReport {
    let state = match &worker.replica {
        Some(_) => WorkerState::Running,
        None if worker.stops_us.is_some() => WorkerState::Exited(Exit::Signal(15)),
        None => WorkerState::Starting,
    };
    let load = worker.replica.as_ref().map(|replica| {
        let ((running, waiting), (ttft_ms, tpot_ms)) = (replica.load(), replica.times_ms(now_us));
        let idle_ms = Some(now_us.saturating_sub(replica.asked_us) / 1000);
        ReplicaLoad { running, waiting, ttft_ms, tpot_ms, idle_ms, work: replica.work }
    });
    // As the bundled server does: tokens of a second, here since its start.
    let progress = worker.replica.as_ref().map(|replica| {
        let tokens = replica.work.prompt_tokens + replica.work.said_tokens;
        let rate_milli = tokens * 1_000_000_000 / (now_us - worker.began_us).max(1);
        Progress { rate_milli, ..Progress::default() }
    });
    WorkerReport { id, state, checkpoint_age_ms: None, progress, load }
}
