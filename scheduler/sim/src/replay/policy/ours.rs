//! The scheduler of the pool itself: the very [`Cluster`] of the server, fed by events alone.
//!
//! Nodes report, jobs are submitted and workers exit as they do in a live pool; what is decided is read from the
//! effects. Leases are endless here, so that no heartbeats are needed; everything else is as the server does it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::cluster::DEFAULT_QUEUE;
use aquifer_core::plan::Order;
use aquifer_core::*;

use super::{Policy as Replayed, Start};
use crate::replay::log::Rank;
use crate::replay::workload::{Spec, Workload};

/// A live scheduler, with all of its nodes and clients.
pub struct Ours<'a> {
    workload: &'a Workload,
    cluster: Cluster,
    nodes: Vec<Agent>,
    /// By request, queue, priority and time limit: what is submitted. Shared, as by the elements of an array.
    specs: BTreeMap<(u32, u16, i32, Option<u64>), Arc<JobSpec>>,
    /// The workload's job, by the scheduler's identity less 1.
    jobs: Vec<u32>,
    /// The scheduler's identity, by the workload's job, of those that were submitted.
    ids: Vec<JobId>,
    effects: Vec<Effect>,
}

/// What is needed of an agent: it carries out its assignments at once, and reports.
struct Agent {
    name: Name,
    inventory: Arc<Inventory>,
    seq: u64,
    revision: Revision,
    workers: Vec<WorkerId>,
}

impl<'a> Ours<'a> {
    /// A scheduler to which all nodes have reported.
    ///
    /// # Errors
    /// When it cannot express what the workload asks for.
    pub fn new(workload: &'a Workload) -> Result<Ours<'a>, String> {
        let policy = Policy {
            lease: Duration::from_millis(u64::MAX),
            preemption: false,
            ..aquifer_core::Policy::new(Order::Priority)
        };
        let mut ours = Ours {
            workload,
            cluster: Cluster::restore(policy, 1, [], Time(0)),
            nodes: Vec::new(),
            specs: BTreeMap::new(),
            jobs: Vec::new(),
            ids: vec![JobId(0); workload.jobs.len()],
            effects: Vec::new(),
        };
        for queue in &workload.queues {
            if **queue != *DEFAULT_QUEUE {
                let command = Command::SetQueue(Queue::new(queue.clone()));
                ours.step(0, Event::Request { id: 0, command }, &mut Vec::new());
            }
        }
        for (model, milli) in &workload.prices {
            let command = Command::SetPrice { model: model.clone(), milli: Some(*milli) };
            ours.step(0, Event::Request { id: 0, command }, &mut Vec::new());
        }
        for node in &workload.nodes {
            let class = workload.classes.get(usize::from(node.class)).map(|class| Arc::new(class.clone()));
            let devices = (0..node.devices).map(|at| Device {
                class: class.clone().expect("a class of devices"),
                uuid: format!("{}-{at}", node.name).into(),
                fault: None,
                speed_milli: 1000,
                speed_source: "".into(),
                memory_gbs: 0,
                number: 0,
                isolation: Isolation::Advisory,
                island: None,
                locality: Default::default(),
            });
            let inventory = Inventory {
                devices: devices.collect(),
                cpus_milli: node.cpus_milli,
                memory_bytes: node.memory_bytes,
                address: node.name.clone(),
                ports: Ports { first: 20_000, last: 29_999 },
                labels: BTreeMap::new(),
                engine: "".into(),
                measured: Default::default(),
            };
            ours.nodes.push(Agent {
                name: node.name.clone(),
                inventory: Arc::new(inventory),
                seq: 0,
                revision: Revision::default(),
                workers: Vec::new(),
            });
            ours.report(0, ours.nodes.len() - 1, None, &mut Vec::new());
        }
        Ok(ours)
    }

    /// What a job of the workload is submitted as.
    fn spec(&mut self, job: u32) -> Arc<JobSpec> {
        let job = &self.workload.jobs[job as usize];
        let (queues, specs) = (&self.workload.queues, &self.workload.specs);
        let key = (job.spec, job.queue, job.priority, job.time_limit_ms);
        let spec = self.specs.entry(key).or_insert_with(|| {
            let spec = &specs[job.spec as usize];
            let role = Role {
                min_ranks: None,
                name: "worker".into(),
                ranks: spec.ranks,
                request: request(spec),
                mounts: Vec::new(),
                standing: Standing::default(),
                program: Program::Command(vec!["replayed".into()]),
            };
            Arc::new(JobSpec {
                name: "replayed".into(),
                user: "replay".into(),
                queue: queues[usize::from(job.queue)].clone(),
                priority: job.priority,
                roles: vec![role],
                time_limit_ms: job.time_limit_ms,
                ..JobSpec::default()
            })
        });
        spec.clone()
    }

    /// One step of the scheduler, and of all agents that it tells something.
    fn step(&mut self, now_ms: u64, event: Event, starts: &mut Vec<Start>) {
        let mut effects = std::mem::take(&mut self.effects);
        self.cluster.step(Time(now_ms), event, &mut effects);
        let mut told = Vec::new();
        for effect in effects.drain(..) {
            match effect {
                Effect::Reply(_, Ok(_)) | Effect::Save(_) | Effect::Renew { .. } => (),
                Effect::Reply(_, Err(refusal)) => panic!("a request of a replay is refused: {refusal}"),
                Effect::AskReport(node) => panic!("{node:?} is asked for a report, which it has given"),
                Effect::Assign { node, assignment, .. } => {
                    let agent = &mut self.nodes[node.0 as usize];
                    agent.revision = assignment.revision;
                    agent.workers.clear();
                    agent.workers.extend(assignment.workers.iter().map(|order| order.id));
                    if assignment.workers.iter().any(|order| order.launch.is_some()) {
                        told.push(node.0 as usize);
                    }
                }
                Effect::Note(Note::Placed { job, .. }) => {
                    let job = self.cluster.jobs().get(job).expect("a placed job");
                    let ranks = job.ranks.iter().map(|rank| Rank {
                        node: rank.node.0,
                        devices: rank.devices.iter().fold(0, |bits, device| bits | 1 << device),
                    });
                    starts.push(Start { job: self.jobs[job.id.0 as usize - 1], ranks: ranks.collect() });
                }
                Effect::Note(_) => (),
            }
        }
        self.effects = effects;
        for node in told {
            self.report(now_ms, node, None, starts);
        }
    }

    /// An agent says that its workers run, but for one that has ended.
    fn report(&mut self, now_ms: u64, node: usize, ended: Option<WorkerId>, starts: &mut Vec<Start>) {
        let agent = &mut self.nodes[node];
        agent.seq += 1;
        let workers = agent.workers.iter().map(|id| WorkerReport {
            id: *id,
            state: match ended == Some(*id) {
                true => WorkerState::Exited(Exit::Code(0)),
                false => WorkerState::Running,
            },
            checkpoint_age_ms: None,
            progress: None,
            load: None,
        });
        let report = NodeReport {
            node: agent.name.clone(),
            agent: Name::default(),
            boot: 1,
            seq: agent.seq,
            inventory: agent.inventory.clone(),
            revision: agent.revision,
            workers: workers.collect(),
            probe: None,
        };
        self.step(now_ms, Event::Report(report), starts);
    }
}

/// What a rank asks for, in the words of the scheduler.
fn request(spec: &Spec) -> Request {
    let slice = spec
        .is_share()
        .then_some(Slice { compute_milli: spec.share_milli.into(), memory_bytes: spec.slice_memory_bytes });
    let device = |vendor, model| DeviceRequest {
        count: spec.devices.into(),
        vendor,
        model,
        slice,
        ..Default::default()
    };
    let plain = spec.wants.iter().all(|want| want.vendor.is_none() && want.model.is_some());
    let devices = if spec.devices == 0 {
        Vec::new()
    } else if spec.wants.is_empty() {
        vec![device(None, None)]
    } else if plain {
        // Kinds that are equally good.
        vec![device(None, Some(spec.wants_text().into()))]
    } else {
        spec.wants.iter().map(|want| device(want.vendor, want.model.clone())).collect()
    };
    let (cpus_milli, memory_bytes) = (spec.cpus_milli, spec.memory_bytes);
    Request { devices, cpus_milli, memory_bytes, ..Request::default() }
}

impl Replayed for Ours<'_> {
    fn submit(&mut self, now_ms: u64, job: u32, starts: &mut Vec<Start>) {
        let spec = self.spec(job);
        self.jobs.push(job);
        self.ids[job as usize] = JobId(self.jobs.len() as u64);
        self.step(now_ms, Event::Request { id: 0, command: Command::Submit(spec) }, starts);
    }

    fn exit(&mut self, now_ms: u64, job: u32, starts: &mut Vec<Start>) {
        let id = self.ids[job as usize];
        let job = self.cluster.jobs().get(id).expect("a job that runs");
        let (attempt, nodes) = (job.attempt, job.last_nodes.clone());
        for (node, rank) in nodes.into_iter().zip(0..) {
            self.report(now_ms, node.0 as usize, Some(WorkerId { job: id, attempt, rank }), starts);
        }
    }

    fn deadline_ms(&self) -> Option<u64> {
        self.cluster.deadline().map(|at| at.0)
    }

    fn tick(&mut self, now_ms: u64, starts: &mut Vec<Start>) {
        self.step(now_ms, Event::Tick, starts);
    }

    fn withdraw(&mut self, now_ms: u64, job: u32) {
        let job = self.ids[job as usize];
        let command = Command::Cancel { job, whole_array: false };
        self.step(now_ms, Event::Request { id: 0, command }, &mut Vec::new());
    }
}
