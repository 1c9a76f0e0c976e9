//! Core to wire.

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_core::serving::Work;
use aquifer_core::*;

use crate::v1;

/// A job's specification.
pub fn job_spec(spec: &JobSpec) -> v1::JobSpec {
    v1::JobSpec {
        name: spec.name.to_string(),
        user: spec.user.to_string(),
        queue: spec.queue.to_string(),
        client_key: spec.client_key.to_string(),
        priority: spec.priority,
        roles: spec.roles.iter().map(role).collect(),
        after: spec.after.iter().map(|job| job.0).collect(),
        array: spec.array.map(|range| v1::ArrayRange {
            first: range.first,
            last: range.last,
            step: range.step,
        }),
        time_limit_ms: spec.time_limit_ms,
        retries: spec.retries,
        grace_ms: Some(spec.grace_ms),
        env: pairs(&spec.env),
        working_dir: spec.working_dir.as_ref().map(ToString::to_string),
        checkpoint_dir: spec.checkpoint_dir.as_ref().map(ToString::to_string),
        reservation: spec.reservation.as_ref().map(ToString::to_string),
        topology: (spec.topology != Topology::default()).then(|| topology(&spec.topology)),
        restart: match spec.restart {
            Restart::Gang => v1::Restart::Gang.into(),
            Restart::Rank => v1::Restart::Rank.into(),
        },
        on_partition: match spec.on_partition {
            OnPartition::Stop => v1::OnPartition::Stop.into(),
            OnPartition::Keep => v1::OnPartition::Keep.into(),
        },
    }
}

fn pairs<'a>(pairs: impl IntoIterator<Item = &'a (Name, Name)>) -> std::collections::HashMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn topology(topology: &Topology) -> v1::Topology {
    v1::Topology {
        require: topology.require.as_ref().map(ToString::to_string),
        prefer: topology.prefer.iter().map(ToString::to_string).collect(),
    }
}

fn role(role: &Role) -> v1::Role {
    let program = match &role.program {
        Program::Command(arguments) => v1::role::Program::Command(v1::Command {
            arguments: arguments.iter().map(ToString::to_string).collect(),
        }),
        Program::Train(options) => v1::role::Program::Train(v1::Train {
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
        }),
        Program::Serve(options) => v1::role::Program::Serve(v1::Serve {
            model: options.model.to_string(),
            served_name: options.served_name.to_string(),
            max_queue: options.max_queue,
            autoscale: options.autoscale.map(autoscale),
            kv_memory_bytes: options.kv_memory_bytes,
            precision: options.precision.to_string(),
        }),
    };
    let request = v1::Request {
        devices: role.request.devices.iter().map(device_request).collect(),
        cpus_milli: role.request.cpus_milli,
        memory_bytes: role.request.memory_bytes,
        labels: pairs(&role.request.labels),
        image: role.request.image.as_ref().map(ToString::to_string),
    };
    v1::Role {
        name: role.name.to_string(),
        ranks: role.ranks,
        min_ranks: role.min_ranks,
        request: Some(request),
        program: Some(program),
        apart: role.standing.apart.as_ref().map(ToString::to_string),
        spread: role.standing.spread.as_ref().map(ToString::to_string),
        mounts: role.mounts.iter().map(mount).collect(),
    }
}

fn mount(mount: &Mount) -> v1::Mount {
    let Mount { source, target, read_only } = mount;
    v1::Mount { source: source.to_string(), target: target.to_string(), read_only: *read_only }
}

fn device_request(request: &DeviceRequest) -> v1::DeviceRequest {
    v1::DeviceRequest {
        count: request.count.into(),
        vendor: request.vendor.map(|vendor| vendor.to_string()).unwrap_or_default(),
        model: request.model.as_deref().unwrap_or_default().into(),
        memory_bytes: request.memory_bytes,
        slice: request.slice.map(slice),
        one_island: request.one_island,
        isolation: isolation(request.isolation),
    }
}

/// The default is not said.
fn isolation(isolation: Isolation) -> String {
    match isolation {
        Isolation::Advisory => String::new(),
        stated => stated.to_string(),
    }
}

fn slice(slice: Slice) -> v1::Slice {
    v1::Slice { compute_milli: slice.compute_milli, memory_bytes: slice.memory_bytes }
}

/// What a node offers.
pub fn inventory(inventory: &Inventory) -> v1::Inventory {
    let device = |device: &Device| v1::Device {
        vendor: device.class.vendor.to_string(),
        model: device.class.model.to_string(),
        memory_bytes: device.class.memory_bytes,
        uuid: device.uuid.to_string(),
        fault: device.fault.as_ref().map(|fault| fault.why.to_string()),
        health: device.fault.as_ref().map(|fault| fault.health.to_string()).unwrap_or_default(),
        fault_since_ms: device.fault.as_ref().map_or(0, |fault| fault.since_ms),
        speed_milli: device.speed_milli,
        speed_source: device.speed_source.to_string(),
        memory_gbs: device.memory_gbs,
        number: device.number,
        isolation: isolation(device.isolation),
        island: device.island.map(u32::from),
        pcie_switch: device.locality.switch.map(u32::from),
        numa_node: device.locality.numa_node.map(u32::from),
    };
    v1::Inventory {
        devices: inventory.devices.iter().map(device).collect(),
        cpus_milli: inventory.cpus_milli,
        memory_bytes: inventory.memory_bytes,
        address: inventory.address.to_string(),
        first_port: inventory.ports.first.into(),
        last_port: inventory.ports.last.into(),
        labels: inventory.labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        engine: inventory.engine.to_string(),
        measured: inventory.measured.iter().map(measured).collect(),
    }
}

fn measured((class, it): (&Arc<DeviceClass>, &Measured)) -> v1::Measured {
    v1::Measured {
        vendor: class.vendor.to_string(),
        model: class.model.to_string(),
        memory_bytes: class.memory_bytes,
        f32_mflops: it.f32_mflops,
        bf16_mflops: it.bf16_mflops,
        int8_mflops: it.int8_mflops,
        attention_mflops: it.attention_mflops,
        memory_mbs: it.memory_mbs,
        host_link_mbs: it.host_link_mbs,
        train_tokens_milli: it.train_tokens_milli,
        decode_tokens_milli: it.decode_tokens_milli,
    }
}

/// The identity of a worker.
pub fn worker(id: WorkerId) -> v1::Worker {
    v1::Worker { job: id.job.0, attempt: id.attempt, rank: id.rank }
}

/// How a worker ended.
pub fn exit(exit: &Exit) -> v1::Exit {
    let how = match exit {
        Exit::Code(code) => v1::exit::How::Code(*code),
        Exit::Signal(signal) => v1::exit::How::Signal(*signal),
        Exit::Failed(why) => v1::exit::How::Failed(why.to_string()),
    };
    v1::Exit { how: Some(how) }
}

/// State of a rank.
pub fn rank_state(state: RankState) -> v1::RankState {
    match state {
        RankState::Assigned => v1::RankState::Assigned,
        RankState::Starting => v1::RankState::Starting,
        RankState::Running => v1::RankState::Running,
        RankState::Gone => v1::RankState::Gone,
    }
}

/// What one rank holds.
pub fn allocation(allocation: &Allocation) -> v1::Allocation {
    v1::Allocation {
        node: allocation.node.0,
        devices: allocation.devices.iter().map(|index| u32::from(*index)).collect(),
        cpus_milli: allocation.cpus_milli,
        memory_bytes: allocation.memory_bytes,
        port: allocation.port.into(),
        state: rank_state(allocation.worker).into(),
        slice: allocation.slice.map(slice),
        charge_milli: allocation.charge_milli,
        rank: Some(allocation.rank),
        since_ms: allocation.since.0,
        restart_at_ms: allocation.restart_at.map(|at| at.0),
        hasty: allocation.hasty,
    }
}

fn members(members: &Members) -> v1::Members {
    let member = |it: &Member| {
        let (address, port) = &it.address;
        v1::Member { rank: it.rank, address: address.to_string(), port: (*port).into() }
    };
    v1::Members {
        job: members.job.0,
        attempt: members.attempt,
        epoch: members.epoch,
        members: members.members.iter().map(member).collect(),
    }
}

/// What every worker on a node should be doing, as the answer to its message `acked`.
pub fn assignment(acked: u64, assignment: &Assignment) -> v1::Assignment {
    let order = |order: &WorkerOrder| v1::WorkerOrder {
        worker: Some(worker(order.id)),
        stop: order.goal == Goal::Stop,
        grace_ms: order.grace_ms,
        why: order.why.map(|why| why.to_string()).unwrap_or_default(),
        launch: order.launch.as_deref().map(launch),
    };
    let mut listed = BTreeMap::new();
    for order in &assignment.workers {
        if let Some(launch) = order.launch.as_ref().filter(|launch| !launch.hosts.is_empty()) {
            listed.entry(order.id.job).or_insert(&launch.hosts);
        }
    }
    v1::Assignment {
        acked,
        revision_term: assignment.revision.term,
        revision_count: assignment.revision.count,
        workers: assignment.workers.iter().map(order).collect(),
        members: assignment.members.iter().map(|it| members(it)).collect(),
        gangs: listed.into_iter().map(|(job, hosts)| gang(job, hosts)).collect(),
        probe: assignment.probe.as_ref().map(probe_order),
    }
}

fn probe_order(order: &ProbeOrder) -> v1::ProbeOrder {
    let ProbeOrder { id, rank, ranks, master: (address, port) } = order;
    v1::ProbeOrder {
        term: id.term,
        count: id.count,
        rank: *rank,
        ranks: *ranks,
        master_address: address.to_string(),
        master_port: (*port).into(),
    }
}

/// What a node says of a probe.
pub(crate) fn probe_report(report: &ProbeReport) -> v1::ProbeReport {
    use v1::probe_report::State;
    let state = match &report.state {
        ProbeState::Running => State::Running(v1::Empty {}),
        ProbeState::Passed => State::Passed(v1::Empty {}),
        ProbeState::Failed(why) => State::Failed(why.to_string()),
        ProbeState::Yielded => State::Yielded(v1::Empty {}),
    };
    v1::ProbeReport { term: report.id.term, count: report.id.count, state: Some(state) }
}

fn gang(job: JobId, hosts: &[Host]) -> v1::Gang {
    let seat = |seat: &Seat| v1::Seat {
        rank: seat.rank,
        vendor: seat.vendor.map(|vendor| vendor.to_string()).unwrap_or_default(),
        devices: seat.devices.clone(),
    };
    let host = |host: &Host| v1::Host {
        address: host.address.to_string(),
        seats: host.seats.iter().map(seat).collect(),
    };
    v1::Gang { job: job.0, hosts: hosts.iter().map(host).collect() }
}

fn launch(launch: &Launch) -> v1::Launch {
    v1::Launch {
        spec: Some(job_spec(&launch.spec)),
        role: launch.role as u32,
        world_size: launch.world_size,
        local_rank: launch.local_rank,
        local_world_size: launch.local_world_size,
        node_rank: launch.node_rank,
        master_address: launch.master.0.to_string(),
        master_port: launch.master.1.into(),
        array_index: launch.array_index,
        allocation: Some(allocation(&launch.allocation)),
    }
}

/// A node's report, without node and boot, which its session says; and without its inventory, if that is known.
pub fn report(report: &NodeReport, inventory_known: bool) -> v1::NodeReport {
    let worker_report = |report: &WorkerReport| {
        let state = match &report.state {
            WorkerState::Starting => v1::worker_report::State::Starting(v1::Empty {}),
            WorkerState::Running => v1::worker_report::State::Running(v1::Empty {}),
            WorkerState::Exited(how) => v1::worker_report::State::Exited(exit(how)),
        };
        v1::WorkerReport {
            worker: Some(worker(report.id)),
            state: Some(state),
            checkpoint_age_ms: report.checkpoint_age_ms,
            progress: report.progress.map(pace),
            load: report.load.map(load),
        }
    };
    v1::NodeReport {
        seq: report.seq,
        inventory: (!inventory_known).then(|| inventory(&report.inventory)),
        revision_term: report.revision.term,
        revision_count: report.revision.count,
        workers: report.workers.iter().map(worker_report).collect(),
        probe: report.probe.as_ref().map(probe_report),
    }
}

fn autoscale(promise: Promise) -> v1::Autoscale {
    let Promise { concurrency, ttft_ms, tpot_ms, sleep_after_ms } = promise;
    v1::Autoscale { concurrency, ttft_ms, tpot_ms, sleep_after_ms }
}

fn load(load: ReplicaLoad) -> v1::ReplicaLoad {
    let ReplicaLoad { running, waiting, ttft_ms, tpot_ms, idle_ms, work } = load;
    let Work { requests, prompt_tokens, prompt_us, said_tokens, steps, steps_us } = work;
    let told = work != Work::default();
    let work =
        told.then_some(v1::ReplicaWork { requests, prompt_tokens, prompt_us, said_tokens, steps, steps_us });
    v1::ReplicaLoad { running, waiting, ttft_ms, tpot_ms, idle_ms, work }
}

fn pace(progress: Progress) -> v1::Pace {
    let Progress { step, total_steps, rate_milli, spent } = progress;
    v1::Pace { step, total_steps, rate_milli, spent: spent.map(self::spent) }
}

/// Where the time of a training has gone.
pub fn spent(spent: Spent) -> v1::Spent {
    let Spent { steps_us, start_us, recovery_us, slow_us, lost_us, work_us } = spent;
    v1::Spent { steps_us, start_us, recovery_us, slow_us, lost_us, work_us }
}

/// Whether a node takes work.
pub fn availability(availability: Availability) -> v1::Availability {
    match availability {
        Availability::Open => v1::Availability::Open,
        Availability::Cordoned => v1::Availability::Cordoned,
        Availability::Draining => v1::Availability::Draining,
    }
}

/// A queue.
pub fn queue(queue: &Queue) -> v1::Queue {
    v1::Queue {
        name: queue.name.to_string(),
        weight: queue.weight,
        guaranteed_milli: queue.guaranteed_milli,
        limit_milli: queue.limit_milli,
        parent: queue.parent.as_deref().unwrap_or_default().into(),
        users: queue.users.iter().map(ToString::to_string).collect(),
    }
}

/// Where a job keeps its checkpoints: where it says, else a directory of its own under the pool's root.
pub fn checkpoint_dir(root: &str, job: JobId, spec: &JobSpec) -> Option<String> {
    match &spec.checkpoint_dir {
        Some(dir) => Some(dir.to_string()),
        None if root.is_empty() => None,
        None => Some(format!("{}/{job}", root.trim_end_matches('/'))),
    }
}
