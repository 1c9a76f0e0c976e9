//! From what schedulers answer to what is printed.

use super::names::rank_state;
use super::*;

impl From<&v1::Job> for Job {
    fn from(wire: &v1::Job) -> Job {
        let default = v1::JobSpec::default();
        let spec = wire.spec.as_ref().unwrap_or(&default);
        let serves = |rank: &v1::Rank| {
            let role = spec.roles.iter().find(|role| role.name == rank.role).or(spec.roles.first());
            matches!(role.and_then(|role| role.program.as_ref()), Some(v1::role::Program::Serve(_)))
        };
        let workers = wire.ranks.iter().map(|rank| Rank::new(rank, serves(rank)));
        let workers: Vec<Rank> = workers.collect();
        let mut nodes: Vec<String> = Vec::new();
        for worker in &workers {
            if !nodes.contains(&worker.node) {
                nodes.push(worker.node.clone());
            }
        }
        let asked =
            spec.roles.iter().filter_map(|role| Some((role.ranks, role.request.as_ref()?.devices.first()?)));
        let holds =
            matches!(wire.state(), v1::JobState::Starting | v1::JobState::Running | v1::JobState::Stopping);
        let held: u64 = workers.iter().map(|worker| worker.devices.len() as u64).sum();
        let model = workers.iter().map(|worker| &worker.model).find(|model| !model.is_empty());
        let model = model.or_else(|| {
            asked
                .clone()
                .map(|(_, device)| if device.model.is_empty() { &device.vendor } else { &device.model })
                .next()
        });
        let told = wire.ranks.iter().filter_map(|rank| rank.progress.as_ref()?.spent.as_ref());
        Job {
            id: job_id(wire.id),
            name: spec.name.clone(),
            user: spec.user.clone(),
            queue: spec.queue.clone(),
            state: state(wire.state()).into(),
            reason: wire.reason.clone(),
            priority: spec.priority,
            ranks: if holds { workers.len() as u32 } else { wire.wanted_ranks },
            min_ranks: spec.roles.iter().map(|role| role.min_ranks.unwrap_or(role.ranks)).sum(),
            wanted_ranks: wire.wanted_ranks,
            max_ranks: spec.roles.iter().map(|role| role.ranks).sum(),
            // Ranks of an ended job tell where they were, but hold nothing any more.
            devices: match held {
                0 => asked.clone().map(|(ranks, device)| u64::from(ranks) * u64::from(device.count)).sum(),
                held => held,
            },
            device_model: model.cloned().unwrap_or_default(),
            nodes,
            attempt: wire.attempt,
            failures: wire.failures,
            last_failure: wire.last_failure.clone(),
            submitted_ms: wire.submitted_ms,
            placed_ms: wire.placed_ms,
            ended_ms: wire.ended_ms,
            array_first: wire.array_first.map(job_id),
            array_index: wire.array_index,
            device_ms: wire.device_ms,
            cpu_milli_ms: wire.cpu_milli_ms,
            lost_device_ms: wire.lost_device_ms,
            capacity: wire.capacity,
            checkpoint_dir: wire.checkpoint_dir.clone(),
            class: wire.class.clone(),
            spent: told.chain(&wire.spent).max_by_key(|spent| spent.steps_us).map(Spent::from),
            // Who has just joined is behind.
            progress: workers
                .iter()
                .filter_map(|worker| worker.progress.clone())
                .reduce(|best, other| if best.step < other.step { other } else { best }),
            workers,
            spec: None,
        }
    }
}

impl Job {
    /// With what was asked for.
    pub fn with_spec(wire: &v1::Job) -> Job {
        let spec = wire.spec.as_ref().and_then(|spec| border::job_spec(spec).ok());
        Job { spec: spec.as_ref().map(Spec::from), ..Job::from(wire) }
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        STATES[UNENDED..].iter().any(|(_, name)| *name == self.state)
    }
}

impl Rank {
    /// `serves`: whether it is an inference server.
    pub fn new(wire: &v1::Rank, serves: bool) -> Rank {
        let progress = wire.progress.as_ref();
        let told = progress.and_then(|progress| progress.endpoint.clone()).filter(|told| !told.is_empty());
        let host = match wire.address.contains(':') {
            true => format!("[{}]", wire.address),
            false => wire.address.clone(),
        };
        let own = (serves && wire.port != 0).then(|| format!("http://{host}:{}/v1", wire.port));
        Rank {
            rank: wire.rank,
            role: wire.role.clone(),
            node: wire.node.clone(),
            devices: wire.devices.clone(),
            model: wire.model.clone(),
            isolation: wire.isolation.clone(),
            state: rank_state(wire.state()).into(),
            address: wire.address.clone(),
            port: wire.port,
            endpoint: own.or(told),
            progress: progress.map(Progress::from),
        }
    }
}

impl From<&aquifer_worker::elastic::Spent> for Spent {
    fn from(spent: &aquifer_worker::elastic::Spent) -> Spent {
        let aquifer_worker::elastic::Spent { steps_us, start_us, recovery_us, slow_us, lost_us, work_us } =
            *spent;
        Spent::from(&v1::Spent { steps_us, start_us, recovery_us, slow_us, lost_us, work_us })
    }
}

impl From<&v1::Spent> for Spent {
    fn from(wire: &v1::Spent) -> Spent {
        let v1::Spent { steps_us, start_us, recovery_us, slow_us, lost_us, work_us } = wire;
        Spent {
            steps_ms: steps_us / 1000,
            start_ms: start_us / 1000,
            recovery_ms: recovery_us / 1000,
            slow_ms: slow_us / 1000,
            lost_ms: lost_us / 1000,
            work_ms: work_us / 1000,
        }
    }
}

impl From<&v1::Progress> for Progress {
    fn from(wire: &v1::Progress) -> Progress {
        Progress {
            state: wire.state.clone(),
            ready: wire.ready,
            step: wire.step,
            total_steps: wire.total_steps,
            // JSON has no infinities.
            loss: wire.loss.filter(|loss| loss.is_finite()),
            tokens_per_s: wire.tokens_per_s.filter(|rate| rate.is_finite()),
            checkpoint_step: wire.checkpoint_step,
            message: wire.message.clone(),
        }
    }
}

fn pairs(pairs: &[(core::Name, core::Name)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

impl From<&core::JobSpec> for Spec {
    fn from(spec: &core::JobSpec) -> Spec {
        Spec {
            name: spec.name.to_string(),
            user: spec.user.to_string(),
            queue: spec.queue.to_string(),
            client_key: spec.client_key.to_string(),
            priority: spec.priority,
            roles: spec.roles.iter().map(Role::from).collect(),
            topology_require: spec.topology.require.as_ref().map(ToString::to_string),
            topology_prefer: spec.topology.prefer.iter().map(ToString::to_string).collect(),
            after: spec.after.iter().map(ToString::to_string).collect(),
            array: spec.array.map(|range| crate::job_file::Indices(range).to_string()),
            time_limit_ms: spec.time_limit_ms,
            retries: spec.retries,
            restart: crate::job_file::Restart(spec.restart).to_string(),
            on_partition: crate::job_file::OnPartition(spec.on_partition).to_string(),
            grace_ms: spec.grace_ms,
            env: pairs(&spec.env),
            working_dir: spec.working_dir.as_deref().map(String::from),
            checkpoint_dir: spec.checkpoint_dir.as_deref().map(String::from),
            reservation: spec.reservation.as_deref().map(String::from),
        }
    }
}

impl From<&core::Role> for Role {
    fn from(role: &core::Role) -> Role {
        let device = |device: &core::DeviceRequest| DeviceRequest {
            count: device.count.into(),
            vendor: device.vendor.map(|vendor| vendor.to_string()).unwrap_or_default(),
            model: device.model.as_deref().unwrap_or_default().into(),
            memory_bytes: device.memory_bytes,
            slice: device
                .slice
                .map(|slice| Slice { compute_milli: slice.compute_milli, memory_bytes: slice.memory_bytes }),
            one_island: device.one_island,
            isolation: device.slice.map(|_| device.isolation.to_string()),
        };
        let (mut command, mut train, mut serve) = (None, None, None);
        match &role.program {
            core::Program::Command(arguments) => {
                command = Some(arguments.iter().map(ToString::to_string).collect());
            }
            core::Program::Train(options) => {
                train = Some(Train {
                    model: options.model.to_string(),
                    data: options.data.to_string(),
                    steps: options.steps,
                    batch: options.batch,
                    context: options.context,
                    learning_rate: options.learning_rate,
                    seed: options.seed,
                    checkpoint_every: options.checkpoint_every,
                    precision: options.precision.to_string(),
                    micro_batch: options.micro_batch,
                    spares: options.spares,
                    audit_every: options.audit_every,
                    inner_steps: options.inner_steps,
                    replicas: options.replicas,
                });
            }
            core::Program::Serve(options) => {
                serve = Some(Serve {
                    model: options.model.to_string(),
                    served_name: options.served_name.to_string(),
                    max_queue: options.max_queue,
                    precision: options.precision.to_string(),
                    kv_memory_bytes: options.kv_memory_bytes,
                    autoscale: options.autoscale.map(|promise| Autoscale {
                        concurrency: promise.concurrency,
                        ttft_ms: promise.ttft_ms,
                        tpot_ms: promise.tpot_ms,
                        sleep_after_ms: promise.sleep_after_ms,
                    }),
                });
            }
        }
        Role {
            name: role.name.to_string(),
            ranks: role.ranks,
            min_ranks: role.min_ranks,
            devices: role.request.devices.iter().map(device).collect(),
            cpus_milli: role.request.cpus_milli,
            memory_bytes: role.request.memory_bytes,
            labels: pairs(&role.request.labels),
            image: role.request.image.as_deref().map(String::from),
            mounts: role.mounts.iter().map(ToString::to_string).collect(),
            apart: role.standing.apart.as_ref().map(ToString::to_string),
            spread: role.standing.spread.as_ref().map(ToString::to_string),
            command,
            train,
            serve,
        }
    }
}

impl Explanation {
    /// `job`: which; none for a plan.
    pub fn new(job: Option<u64>, wire: &v1::Explanation) -> Explanation {
        let verdict =
            |wire: &v1::Verdict| Verdict { nodes: wire.nodes, text: wire.text.clone(), takes: wire.takes };
        let role = |wire: &v1::RoleVerdict| RoleVerdict {
            role: wire.role.clone(),
            verdicts: wire.nodes.iter().map(verdict).collect(),
        };
        let blocker = |wire: &v1::Blocker| Blocker {
            job: job_id(wire.job),
            devices: wire.devices,
            cpus_milli: wire.cpus_milli,
            ends_by_ms: wire.ends_by_ms,
        };
        Explanation {
            job: job.map(job_id),
            sentence: wire.sentence.clone(),
            reason: wire.reason.clone(),
            roles: wire.roles.iter().map(role).collect(),
            blockers: wire.blockers.iter().map(blocker).collect(),
            start: wire.start.clone(),
            start_ms: wire.start_ms,
            start_text: wire.start_text.clone(),
            change: wire.change.clone(),
            gave_way_to: wire.gave_way_to.map(job_id),
        }
    }
}

/// In the units of `aquifer worker measure`.
fn figures(wire: &v1::Measured) -> Figures {
    let rate = |whole: u64, unit: f64| (whole != 0).then_some(whole as f64 / unit);
    Figures {
        f32_tflops: rate(wire.f32_mflops, 1e6),
        bf16_tflops: rate(wire.bf16_mflops, 1e6),
        int8_tflops: rate(wire.int8_mflops, 1e6),
        memory_gbs: rate(wire.memory_mbs, 1e3),
        attention_tflops: rate(wire.attention_mflops, 1e6),
        train_tokens_per_s: rate(wire.train_tokens_milli, 1e3),
        decode_tokens_per_s: rate(wire.decode_tokens_milli, 1e3),
        host_link_gbs: rate(wire.host_link_mbs, 1e3),
    }
}

impl From<&v1::Node> for Node {
    fn from(wire: &v1::Node) -> Node {
        let default = v1::Inventory::default();
        let inventory = wire.inventory.as_ref().unwrap_or(&default);
        let availability = match wire.availability() {
            v1::Availability::Cordoned => "cordoned",
            v1::Availability::Draining => "draining",
            v1::Availability::Open | v1::Availability::Unspecified => "open",
        };
        let is_of = |it: &v1::Measured, device: &v1::Device| {
            (&it.vendor, &it.model, it.memory_bytes) == (&device.vendor, &device.model, device.memory_bytes)
        };
        let device = |(index, device): (usize, &v1::Device)| Device {
            index: index as u32,
            vendor: device.vendor.clone(),
            model: device.model.clone(),
            memory_bytes: device.memory_bytes,
            uuid: device.uuid.clone(),
            held: wire.devices_held.contains(&(index as u32)),
            fault: device.fault.clone(),
            health: match &device.fault {
                Some(_) if device.health.is_empty() => "faulty".into(),
                Some(_) => device.health.clone(),
                None => String::new(),
            },
            fault_since_ms: Some(device.fault_since_ms).filter(|ms| *ms != 0),
            cordoned: wire.devices_cordoned.contains(&(index as u32)),
            speed_milli: device.speed_milli,
            speed_source: device.speed_source.clone(),
            memory_gbs: device.memory_gbs,
            measured: inventory.measured.iter().find(|it| is_of(it, device)).map(figures),
            price_milli: wire.prices_milli.get(index).copied().filter(|price| *price != 0),
            island: device.island,
            pcie_switch: device.pcie_switch,
            numa_node: device.numa_node,
            isolation: if device.isolation.is_empty() { "advisory".into() } else { device.isolation.clone() },
        };
        let worker = |wire: &v1::Worker| {
            let id = core::WorkerId { job: core::JobId(wire.job), attempt: wire.attempt, rank: wire.rank };
            id.to_string()
        };
        Node {
            name: wire.name.clone(),
            state: match (wire.up, availability) {
                (false, _) => "lost".into(),
                (true, "open") => "up".into(),
                (true, closed) => closed.into(),
            },
            up: wire.up,
            availability: availability.into(),
            cordoned_because: wire.cordoned_because.clone(),
            devices: inventory.devices.iter().enumerate().map(device).collect(),
            cpus_milli: inventory.cpus_milli,
            cpus_milli_held: wire.cpus_milli_held,
            memory_bytes: inventory.memory_bytes,
            memory_bytes_held: wire.memory_bytes_held,
            workers: wire.workers.iter().map(worker).collect(),
            address: inventory.address.clone(),
            first_port: inventory.first_port,
            last_port: inventory.last_port,
            labels: inventory.labels.clone().into_iter().collect(),
            engine: inventory.engine.clone(),
            lease_left_ms: wire.lease_left_ms,
            version: wire.version.clone(),
            findings: wire.findings.clone(),
            reservations: wire.reservations.iter().map(Reservation::from).collect(),
        }
    }
}

impl Queue {
    /// The same with these settings.
    pub fn with(self, queue: v1::Queue) -> Queue {
        Queue {
            name: queue.name,
            parent: (!queue.parent.is_empty()).then_some(queue.parent),
            weight: queue.weight,
            guaranteed_milli: queue.guaranteed_milli,
            limit_milli: queue.limit_milli,
            users: queue.users,
            ..self
        }
    }
}

impl From<&v1::QueueState> for Queue {
    fn from(wire: &v1::QueueState) -> Queue {
        let figures = Queue {
            held_milli: wire.held_milli,
            used_device_ms: wire.used_device_ms,
            share_millionths: wire.share_millionths,
            pending_jobs: wire.pending_jobs,
            running_jobs: wire.running_jobs,
            ..Queue::default()
        };
        figures.with(wire.queue.clone().unwrap_or_default())
    }
}

impl From<&v1::Reservation> for Reservation {
    fn from(wire: &v1::Reservation) -> Reservation {
        Reservation {
            name: wire.name.clone(),
            nodes: wire.nodes.clone(),
            start_ms: wire.start_ms,
            end_ms: wire.end_ms,
            queues: wire.queues.clone(),
            users: wire.users.clone(),
        }
    }
}

impl From<&v1::UsageRow> for UsageRow {
    fn from(wire: &v1::UsageRow) -> UsageRow {
        UsageRow {
            queue: wire.queue.clone(),
            user: wire.user.clone(),
            jobs: wire.jobs,
            succeeded: wire.succeeded,
            failed: wire.failed,
            device_ms: wire.device_ms,
            counted_ms: wire.counted_ms,
            lost_device_ms: wire.lost_device_ms,
            cpu_milli_ms: wire.cpu_milli_ms,
            waited_ms: wire.waited_ms,
            trained_ms: wire.trained_ms,
            effective_ms: wire.effective_ms,
            held_ms: wire.held_ms,
            worked_ms: wire.worked_ms,
        }
    }
}

impl From<&v1::Note> for Note {
    fn from(wire: &v1::Note) -> Note {
        Note {
            seq: wire.seq,
            time_ms: wire.time_ms,
            kind: wire.kind.clone(),
            job: wire.job.map(job_id),
            node: (!wire.node.is_empty()).then(|| wire.node.clone()),
            text: wire.text.clone(),
        }
    }
}

impl From<&v1::Victim> for Victim {
    fn from(wire: &v1::Victim) -> Victim {
        let v1::Victim { job, lost_device_ms, grace_ms, ranks, stays } = *wire;
        Victim { job: job_id(job), lost_device_ms, grace_ms, ranks, stays }
    }
}
