//! Random pools, jobs and administrators: what a swarm of runs is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::jobs::Job;
use aquifer_core::plan::{self, Free, Order};
use aquifer_core::*;

use crate::faults::{Faults, Timing};
use crate::rng::Rng;
use crate::sim::{Sim, Work, WorkPace};

mod crossed;

/// When the faults of a random run end.
pub const HEAL_AT: Time = Time(200_000);
/// When jobs are submitted, at the latest.
const SUBMIT_UNTIL_MS: u64 = 150_000;
const RESERVATIONS: [&str; 2] = ["maint", "class"];
const GIB: u64 = 1 << 30;

/// A run that belongs to the seed: its pool, its faults, its jobs.
///
/// Every job of it can be placed once all nodes are there and healthy, and comes to an end if it is left
/// alone: so all must have ended at some time after [`HEAL_AT`].
pub fn swarm(seed: u64) -> Sim {
    let mut rng = Rng(seed ^ 0x00fa_1757);
    let order = *rng.pick(&[Order::FairShare, Order::FairShare, Order::Priority]);
    let mut policy = Policy::new(order);
    policy.lease = Duration::from_millis(rng.within((5_000, 15_000)));
    policy.preemption = rng.below(4) != 0;
    policy.grow_after = (rng.below(4) != 0).then(|| Duration::from_millis(rng.within((0, 20_000))));
    policy.rounds = Duration::from_millis(*rng.pick(&[0, 2_000, 10_000, 360_000]));
    policy.backoff = Duration::from_millis(rng.within((100, 4_000)));
    policy.half_life = Duration::from_millis(*rng.pick(&[0, 5_000, 60_000, 86_400_000]));
    policy.ageing = Duration::from_millis(*rng.pick(&[0, 1_000, 30_000, 3_600_000]));
    // Drawn apart from all else.
    let mut keeps = Rng(seed ^ 0x0e4d_ed00);
    if keeps.below(2) == 0 {
        policy.keep_ended = keeps.below(6);
        policy.keep_at_least = Duration::from_millis(keeps.within((5_000, 40_000)));
    }
    let (faults, timing) = (Faults::mix(&mut rng), Timing::mix(&mut rng));
    let mut sim = Sim::new(seed, policy, faults, timing, HEAL_AT);
    let pool: Vec<Inventory> = (0..rng.within((2, 6))).map(|at| any_inventory(&mut rng, at)).collect();
    for (at, inventory) in pool.iter().enumerate() {
        let ahead = rng.below(100_000_000);
        sim.add_machine(&format!("n{at}"), inventory.clone(), ahead);
    }
    let queues = ["default", "red", "blue"];
    // In every order in which the nodes may register, as far as a few rotations tell.
    let orders = (0..pool.len()).flat_map(|by| [(by, false), (by, true)]);
    let idle: Vec<Cluster> = orders.map(|order| idle_pool(policy, &pool, &queues, order)).collect();
    for name in &queues[1..] {
        let queue = any_queue(&mut rng, &queues, name);
        sim.client(Time(0), Command::SetQueue(queue), HEAL_AT);
    }
    // Drawn apart from all else.
    let mut bookings = Rng(seed ^ 0x0b00_c1ed);
    for _ in 0..bookings.below(5) {
        book_any(&mut sim, &mut bookings, &queues, pool.len() as u64);
    }
    let jobs = rng.within((5, 40));
    for number in 0..jobs {
        let reservation = (bookings.below(6) == 0).then(|| (*bookings.pick(&RESERVATIONS)).into());
        submit_any(&mut sim, &mut rng, &idle, &queues, (number, reservation));
    }
    let mut long = Rng(seed ^ 0x010_96e5);
    let rates_milli = ["h200-141gb", "h100-80gb-hbm3", "910b", "core"]
        .map(|model| (model.into(), 1000 * *long.pick(&[2, 8, 50])));
    for number in 0..*long.pick(&[0, 0, 1, 4, 6]) {
        submit_long(&mut sim, &mut long, &queues, &rates_milli, number);
    }
    // Drawn apart from all else.
    let mut served = Rng(seed ^ 0x05e4_7ed5);
    if served.below(8) == 0 {
        submit_contended(&mut sim, &mut served, &queues);
    }
    let mut scattered = Rng(seed ^ 0x05ca_77e2);
    if scattered.below(4) == 0 {
        submit_scattered(&mut sim, &mut scattered, &queues, &idle);
    }
    let mut crossed = Rng(seed ^ 0x0c50_55ed);
    if crossed.below(8) == 0 {
        let devices = pool.iter().map(|inventory| inventory.devices.len() as u64).sum();
        crossed::submit(&mut sim, &mut crossed, &queues, devices);
    }
    for _ in 0..rng.below(16) {
        let at = Time(rng.within((5_000, 190_000)));
        let command = any_interference(&mut rng, &queues, pool.len() as u64);
        sim.client(at, command, Time(HEAL_AT.0 - 1));
    }
    // Somebody who drains nodes gives up what runs on those that happen to be lost.
    let mut drains = Rng(seed ^ 0xd4_a125);
    for _ in 0..*drains.pick(&[0, 0, 8, 12]) {
        let (at, node): (Time, Name) =
            (Time(drains.within((5_000, 190_000))), format!("n{}", drains.below(pool.len() as u64)).into());
        let set = |availability| Command::SetNode { node: node.clone(), availability };
        sim.client(at, set(Availability::Draining), Time(HEAL_AT.0 - 1));
        sim.client(Time(at.0 + 5_000), set(Availability::Open), Time(HEAL_AT.0 - 1));
    }
    // Drawn apart from all else.
    let mut guests = Rng(seed ^ 0x0a5e_55ed);
    for _ in 0..guests.below(30) {
        let at = Time(guests.within((5_000, 190_000)));
        let (job, waiting) = (JobId(1 + guests.below(40)), guests.below(20) as u32);
        sim.client(at, Command::Demand { job, waiting }, Time(HEAL_AT.0 - 1));
    }
    let mut operator = Rng(seed ^ 0x9e1c_e5e7);
    for _ in 0..*operator.pick(&[0, 0, 0, 6]) {
        let at = Time(operator.within((1_000, 190_000)));
        let (model, price) = (*operator.pick(&["h200", "h100", "910b", "core"]), operator.within((1, 5_000)));
        let milli = (operator.below(4) != 0).then_some(price);
        sim.client(at, Command::SetPrice { model: model.into(), milli }, Time(HEAL_AT.0 - 1));
    }
    sim.ask_sleepers(HEAL_AT);
    // Then everything is set right again, by somebody who does not give up.
    let healed = Time(HEAL_AT.0 + 20_000);
    for at in 0..pool.len() {
        let (node, availability) = (format!("n{at}").into(), Availability::Open);
        sim.client(healed, Command::SetNode { node, availability }, Time(u64::MAX));
        for device in 0..sim.machines[at].whole.devices.len() as u16 {
            let node = format!("n{at}").into();
            // By then the node has told of the devices that it had lost.
            let known = Time(healed.0 + 60_000);
            sim.client(known, Command::SetDevice { node, device, cordoned: false }, Time(u64::MAX));
        }
    }
    // A queue keeps its guarantee until those below it have none: the last of three levels is set right first.
    for level in 0..3 {
        for name in queues {
            let at = Time(healed.0 + 10_000 * level);
            sim.client(at, Command::SetQueue(Queue::new(name.into())), Time(u64::MAX));
        }
    }
    sim
}

fn any_inventory(rng: &mut Rng, at: u64) -> Inventory {
    let class = |vendor, model: &str, memory_gib: u64| {
        Arc::new(DeviceClass { vendor, model: model.into(), memory_bytes: memory_gib * GIB })
    };
    let h200 = class(Vendor::Nvidia, "h200-141gb", 141);
    let h100 = class(Vendor::Nvidia, "h100-80gb-hbm3", 80);
    let ascend = class(Vendor::Ascend, "910b", 64);
    let core = class(Vendor::Cpu, "core", 0);
    let classes: Vec<(Arc<DeviceClass>, u64)> = match rng.below(5) {
        0 | 1 => vec![(h200, 8)],
        2 => vec![(ascend, rng.within((4, 8)))],
        3 => vec![(h200, rng.within((1, 4))), (h100, rng.within((1, 4)))],
        _ => vec![(core, 16)],
    };
    let classes = classes.into_iter().flat_map(|(class, count)| (0..count).map(move |_| class.clone()));
    let island = (rng.below(2) == 0).then(|| rng.within((2, 4)) as usize);
    let devices = classes.enumerate().map(|(index, class)| Device {
        class,
        uuid: format!("uuid-{at}-{index}").into(),
        fault: None,
        speed_milli: [500, 1000, 2000][index % 3],
        speed_source: "".into(),
        memory_gbs: [2039, 600, 3350][index % 3],
        number: 0,
        isolation: if at.is_multiple_of(2) { Isolation::Limited } else { Isolation::Advisory },
        island: island.map(|size| (index / size) as u16),
        // Drawn by nobody either.
        locality: Locality {
            switch: at.is_multiple_of(4).then_some(index as u16 / 2),
            numa_node: at.is_multiple_of(2).then_some(index as u16 / 4),
        },
    });
    let mut labels: BTreeMap<Name, Name> = [("rack".into(), format!("r{}", rng.below(2)).into())].into();
    if rng.below(4) != 0 {
        labels.insert("zone".into(), format!("z{}", rng.below(2)).into());
    }
    let devices: Vec<Device> = devices.collect();
    let figures =
        Measured { bf16_mflops: 161_000 * (at + 1), train_tokens_milli: 2_170_500, ..Measured::default() };
    // Drawn by nobody either.
    let measured = devices.first().filter(|_| at.is_multiple_of(3)).map(|it| (it.class.clone(), figures));
    Inventory {
        devices,
        cpus_milli: 1000 * rng.within((16, 64)) as u32,
        memory_bytes: GIB * rng.within((64, 512)),
        address: format!("10.0.0.{at}").into(),
        ports: Ports { first: 20_000, last: 20_000 + rng.within((15, 60)) as u16 },
        labels,
        // Drawn by nobody, so that all else is as it was.
        engine: if at % 3 == 2 { "" } else { "podman 5.0" }.into(),
        measured: measured.into_iter().collect(),
    }
}

/// Of one rank in eight or so; not drawn either.
fn any_image(memory_bytes: u64) -> Option<Name> {
    (memory_bytes / GIB % 8 == 5).then(|| "registry.example.com/app:1".into())
}

/// One that may be refused: for a parent that does not exist, is below it or guarantees less.
fn any_queue(rng: &mut Rng, queues: &[&str], name: &str) -> Queue {
    let limit_milli = (rng.below(3) == 0).then(|| 1000 * rng.within((0, 20)));
    let guaranteed_milli = if rng.below(2) == 0 { 0 } else { 1000 * rng.below(8) };
    Queue {
        name: name.into(),
        parent: (rng.below(2) == 0).then(|| (*rng.pick(queues)).into()),
        weight: rng.within((1, 4)) as u32,
        guaranteed_milli: guaranteed_milli.min(limit_milli.unwrap_or(u64::MAX)),
        limit_milli,
        users: match rng.below(48) {
            0 => vec!["ben".into()],
            1 => vec!["ada".into(), "ben".into()],
            _ => Vec::new(),
        },
    }
}

fn any_role(rng: &mut Rng, name: &str) -> Role {
    let device = |rng: &mut Rng| {
        let (vendor, model): (Option<Vendor>, Option<&str>) = *rng.pick(&[
            (None, Some("h200")),
            (None, Some("h100-80gb")),
            (Some(Vendor::Nvidia), None),
            (Some(Vendor::Ascend), None),
            (Some(Vendor::Cpu), Some("core")),
        ]);
        let memory_bytes = if rng.below(5) == 0 { 60 * GIB } else { 0 };
        let slice = (rng.below(3) == 0).then(|| Slice {
            compute_milli: 50 * rng.within((1, 20)) as u32,
            memory_bytes: if rng.below(2) == 0 { 0 } else { GIB * rng.within((1, 80)) },
        });
        let count = rng.within((1, if slice.is_some() { 2 } else { 8 })) as u16;
        let one_island = 1 < count && rng.below(4) == 0;
        // Not drawn, so that all else is as it was.
        let apart = slice.is_some_and(|slice| slice.compute_milli.is_multiple_of(200));
        let isolation = if apart { Isolation::Limited } else { Isolation::Advisory };
        DeviceRequest {
            count,
            vendor,
            model: model.map(Into::into),
            memory_bytes,
            slice,
            isolation,
            one_island,
        }
    };
    let devices = match rng.below(6) {
        0 => Vec::new(),
        1 => vec![device(rng), device(rng)],
        _ => vec![device(rng)],
    };
    let labels = if rng.below(8) == 0 { vec![("rack".into(), "r0".into())] } else { Vec::new() };
    let cpus_milli =
        if devices.is_empty() { 500 + rng.below(12_000) as u32 } else { rng.below(4_000) as u32 };
    let memory_bytes = if rng.below(2) == 0 { 0 } else { rng.below(64 * GIB) };
    let request = Request { devices, cpus_milli, memory_bytes, labels, image: any_image(memory_bytes) };
    let standing = Standing {
        apart: (rng.below(8) == 0).then(|| any_level(rng)),
        spread: (rng.below(8) == 0).then(|| any_level(rng)),
    };
    let program = Program::Command(vec!["work".into()]);
    let ranks = rng.within((1, 4)) as u32;
    let role =
        Role { name: name.into(), ranks, min_ranks: None, request, mounts: Vec::new(), standing, program };
    if name != "trainer" || rng.below(3) != 0 {
        return role;
    }
    elastic(rng, role)
}

/// The same with fewer ranks at least; some of them independent of each other.
fn elastic(rng: &mut Rng, role: Role) -> Role {
    let ranks = rng.within((2, 6)) as u32;
    let min_ranks = Some(rng.within((1, u64::from(ranks) - 1)) as u32);
    let serves = rng.below(3) == 0;
    let serve = ServeOptions {
        model: "/m".into(),
        served_name: "m".into(),
        max_queue: 1,
        kv_memory_bytes: role.request.cpus_milli.is_multiple_of(3).then_some(64 << 20),
        precision: "f32".into(),
        // Not drawn, so that all else is as it was.
        autoscale: role.request.cpus_milli.is_multiple_of(3).then(|| Promise {
            concurrency: 2,
            ttft_ms: None,
            tpot_ms: None,
            sleep_after_ms: role.request.cpus_milli.is_multiple_of(2).then_some(4_000),
        }),
    };
    let program = if serves { Program::Serve(serve) } else { role.program };
    Role { ranks, min_ranks, program, ..role }
}

fn any_level(rng: &mut Rng) -> Level {
    match *rng.pick(&["node", "rack", "zone"]) {
        "node" => Level::Node,
        key => Level::Label(key.into()),
    }
}

fn any_spec(rng: &mut Rng, queues: &[&str], number: u64) -> JobSpec {
    let mut roles = vec![any_role(rng, "trainer")];
    if rng.below(5) == 0 {
        roles.push(any_role(rng, "rollout"));
    }
    let array = (rng.below(8) == 0).then(|| {
        let first = rng.below(5) as u32;
        ArrayRange { first, last: first + rng.below(6) as u32, step: rng.within((1, 3)) as u32 }
    });
    let queue = *rng.pick(queues);
    let topology = Topology {
        require: (rng.below(4) == 0).then(|| any_level(rng)),
        prefer: (0..rng.below(8).saturating_sub(5)).map(|_| any_level(rng)).collect(),
    };
    JobSpec {
        name: format!("w{number}").into(),
        user: "ada".into(),
        queue: queue.into(),
        client_key: if rng.below(4) == 0 { "".into() } else { format!("key-{number}").into() },
        priority: rng.below(3) as i32,
        roles,
        topology,
        after: Vec::new(),
        array,
        time_limit_ms: (rng.below(3) == 0).then(|| rng.within((2_000, 40_000))),
        retries: rng.below(4) as u32,
        grace_ms: *rng.pick(&[0, 1_000, 5_000]),
        env: Vec::new(),
        working_dir: None,
        checkpoint_dir: None,
        reservation: None,
        restart: if rng.below(4) == 0 { Restart::Rank } else { Restart::Gang },
        on_partition: if rng.below(4) == 0 { OnPartition::Keep } else { OnPartition::Stop },
    }
}

/// A client that submits a random job, after some that earlier clients may have submitted.
fn submit_any(
    sim: &mut Sim,
    rng: &mut Rng,
    idle: &[Cluster],
    queues: &[&str],
    (number, reservation): (u64, Option<Name>),
) {
    let mut spec = any_spec(rng, queues, number);
    while !idle.iter().take(if spec.roles.len() == 1 { 1 } else { idle.len() }).all(|idle| fits(idle, &spec))
    {
        spec = any_spec(rng, queues, number);
    }
    spec.reservation = reservation;
    if 0 < number && rng.below(4) == 0 {
        // Whether that job exists by then is for the scheduler to say.
        let after: BTreeSet<JobId> = (0..rng.within((1, 2))).map(|_| JobId(1 + rng.below(number))).collect();
        spec.after = after.into_iter().collect();
    }
    let run_ms = match spec.time_limit_ms {
        Some(_) if rng.below(4) == 0 => None,
        _ => Some(rng.within((0, 30_000))),
    };
    let failures = if rng.below(8) == 0 { 1 + rng.below(4) as u32 } else { 0 };
    let exit = match rng.below(3) {
        0 => Exit::Code(1),
        1 => Exit::Signal(11),
        _ => Exit::Failed("no such program".into()),
    };
    let checkpoint_ms = (rng.below(3) == 0).then(|| rng.within((500, 10_000)));
    let pace = run_ms.filter(|_| rng.below(3) == 0).map(|run_ms| WorkPace {
        total_steps: run_ms / 100,
        rates_milli: ["h200-141gb", "h100-80gb-hbm3", "910b", "core"]
            .map(|model| (model.into(), 1000 * rng.within((5, 40))))
            .into(),
    });
    sim.set_work(spec.name.clone(), Work { run_ms, failures, exit, checkpoint_ms, pace });
    let at = Time(rng.within((1_000, SUBMIT_UNTIL_MS)));
    let gives_up = if rng.below(8) == 0 { Time(at.0 + 5_000) } else { Time(u64::MAX) };
    sim.client(at, Command::Submit(Arc::new(spec)), gives_up);
}

/// A role whose workers do what the job's name says.
fn working(name: &str, ranks: u32, request: Request) -> Role {
    Role {
        name: name.into(),
        ranks,
        min_ranks: None,
        request,
        mounts: Vec::new(),
        standing: Standing::default(),
        program: Program::Command(vec!["work".into()]),
    }
}

/// A client that submits a job which runs for minutes on any devices, on some models much faster than on others: one
/// that is worth a move.
fn submit_long(sim: &mut Sim, rng: &mut Rng, queues: &[&str], rates_milli: &[(Name, u64)], number: u64) {
    let device = |vendor| DeviceRequest {
        count: 1,
        vendor,
        model: None,
        memory_bytes: 0,
        slice: None,
        isolation: Isolation::Advisory,
        one_island: false,
    };
    let request = Request {
        devices: if rng.below(2) == 0 {
            vec![device(None)]
        } else {
            [Vendor::Cpu, Vendor::Ascend, Vendor::Nvidia].map(|it| device(Some(it))).into()
        },
        cpus_milli: 100,
        ..Request::default()
    };
    let ranks = rng.within((1, 3)) as u32;
    let min_ranks = (1 < ranks && rng.below(2) == 0).then_some(1);
    let spec = JobSpec {
        name: format!("long{number}").into(),
        user: "ada".into(),
        queue: (*rng.pick(queues)).into(),
        client_key: format!("long-{number}").into(),
        roles: vec![Role { min_ranks, ..working("trainer", ranks, request) }],
        grace_ms: *rng.pick(&[0, 1_000, 5_000]),
        retries: 3,
        ..JobSpec::default()
    };
    let pace = Some(WorkPace { total_steps: rng.within((500, 1_500)), rates_milli: rates_milli.into() });
    let checkpoint_ms = Some(rng.within((500, 5_000)));
    let work = Work { run_ms: Some(0), failures: 0, exit: Exit::Code(1), checkpoint_ms, pace };
    sim.set_work(spec.name.clone(), work);
    let at = Time(rng.within((1_000, SUBMIT_UNTIL_MS)));
    sim.client(at, Command::Submit(Arc::new(spec)), Time(u64::MAX));
}

/// A service that scales itself, beside trainings that take whatever there is and could do with less.
fn submit_contended(sim: &mut Sim, rng: &mut Rng, queues: &[&str]) {
    let device = DeviceRequest { count: 1, ..DeviceRequest::default() };
    let request = Request { devices: vec![device], cpus_milli: 100, ..Request::default() };
    let promise = Promise {
        concurrency: rng.within((1, 3)) as u32,
        ttft_ms: None,
        tpot_ms: None,
        sleep_after_ms: None,
    };
    let serve = ServeOptions {
        model: "/m".into(),
        served_name: "m".into(),
        max_queue: 1,
        kv_memory_bytes: None,
        precision: "f32".into(),
        autoscale: Some(promise),
    };
    let queue = *rng.pick(queues);
    for number in 0..4 {
        let (name, program) = match number {
            0 => ("serves".to_string(), Program::Serve(serve.clone())),
            _ => (format!("trains{number}"), Program::Command(vec!["work".into()])),
        };
        let spec = JobSpec {
            name: name.clone().into(),
            user: "ada".into(),
            queue: if rng.below(4) == 0 { *rng.pick(queues) } else { queue }.into(),
            client_key: name.into(),
            priority: rng.below(2) as i32,
            roles: vec![Role {
                name: "worker".into(),
                ranks: rng.within((4, 30)) as u32,
                min_ranks: Some(rng.within((1, 3)) as u32),
                request: request.clone(),
                mounts: Vec::new(),
                standing: Standing::default(),
                program,
            }],
            restart: Restart::Rank,
            grace_ms: *rng.pick(&[0, 1_000, 5_000]),
            retries: 3,
            ..JobSpec::default()
        };
        let run_ms = Some(rng.within((40_000, 120_000)));
        let work = Work { run_ms, failures: 0, exit: Exit::Code(1), checkpoint_ms: None, pace: None };
        sim.set_work(spec.name.clone(), work);
        let at = Time(rng.within((1_000, SUBMIT_UNTIL_MS)));
        sim.client(at, Command::Submit(Arc::new(spec)), Time(u64::MAX));
    }
}

/// Trainings of one device each that are left behind on all nodes when those beside them end, and jobs that want most of a
/// node in one piece.
fn submit_scattered(sim: &mut Sim, rng: &mut Rng, queues: &[&str], idle: &[Cluster]) {
    let devices = idle[0].nodes().iter().map(|node| node.inventory.devices.len() as u32).sum::<u32>();
    let (stays, wide) = (rng.within((2, 4)) as u32, rng.within((3, 8)) as u32);
    for number in 0..devices + 3 {
        let count = if number < devices { 1 } else { wide as u16 };
        let device = DeviceRequest { count, ..DeviceRequest::default() };
        let request = Request { devices: vec![device], cpus_milli: 100, ..Request::default() };
        let role = working("worker", 1, request);
        let name: Name = format!("scattered{number}").into();
        let spec = JobSpec {
            name: name.clone(),
            user: "ada".into(),
            queue: (*rng.pick(queues)).into(),
            client_key: name.clone(),
            roles: vec![role],
            grace_ms: *rng.pick(&[0, 1_000, 5_000]),
            retries: 3,
            ..JobSpec::default()
        };
        let (run_ms, at) = match number {
            _ if devices <= number => (rng.within((5_000, 20_000)), rng.within((20_000, 60_000))),
            _ if number.is_multiple_of(stays) => (rng.within((60_000, 150_000)), 1_000 + u64::from(number)),
            _ => (rng.within((1_000, 10_000)), 1_000 + u64::from(number)),
        };
        if !idle.iter().all(|idle| fits(idle, &spec)) {
            continue;
        }
        let checkpoint_ms = Some(rng.within((500, 5_000)));
        let work = Work { run_ms: Some(run_ms), failures: 0, exit: Exit::Code(1), checkpoint_ms, pace: None };
        sim.set_work(name, work);
        sim.client(Time(at), Command::Submit(Arc::new(spec)), Time(u64::MAX));
    }
}

/// An administrator who books nodes, and may give them up before or in the period. By chance for nobody, and refused.
fn book_any(sim: &mut Sim, rng: &mut Rng, queues: &[&str], nodes: u64) {
    let at = Time(rng.within((1_000, SUBMIT_UNTIL_MS)));
    let start = (rng.below(4) != 0).then(|| at + Duration::from_millis(rng.within((1_000, 40_000))));
    let nodes = match rng.below(3) {
        0 => {
            let labels = if rng.below(3) == 0 { vec![("rack".into(), "r0".into())] } else { Vec::new() };
            let model = (rng.below(3) == 0).then(|| (*rng.pick(&["h200", "core"])).into());
            BookedNodes::Chosen { count: rng.within((1, nodes)) as u32, labels, model }
        }
        _ => {
            let names = (0..rng.within((1, nodes))).map(|_| format!("n{}", rng.below(nodes)).into());
            BookedNodes::Named(names.collect())
        }
    };
    let guest_queues = if rng.below(2) == 0 { vec![(*rng.pick(queues)).into()] } else { Vec::new() };
    let users = if rng.below(6) == 0 { vec!["ada".into()] } else { Vec::new() };
    let name: Name = (*rng.pick(&RESERVATIONS)).into();
    let end = start.unwrap_or(at) + Duration::from_millis(rng.within((5_000, 60_000)));
    let booking = Booking { name: name.clone(), nodes, start, end, queues: guest_queues, users };
    let gives_up = Time(HEAL_AT.0 - 1);
    sim.client(at, Command::Reserve(booking), gives_up);
    if rng.below(4) == 0 {
        let later = Time(at.0 + rng.within((1_000, 60_000)));
        sim.client(later, Command::Unreserve(name), gives_up);
    }
}

fn any_interference(rng: &mut Rng, queues: &[&str], nodes: u64) -> Command {
    match rng.below(8) {
        6 | 7 => {
            let node = format!("n{}", rng.below(nodes)).into();
            Command::SetDevice { node, device: rng.below(4) as u16, cordoned: rng.below(2) == 0 }
        }
        4 | 5 => {
            let ranks = (rng.below(3) != 0).then(|| rng.within((1, 6)) as u32);
            Command::Scale { job: JobId(1 + rng.below(40)), ranks }
        }
        0 => Command::Cancel { job: JobId(1 + rng.below(40)), whole_array: rng.below(2) == 0 },
        1 | 2 => {
            use Availability::*;
            let node = format!("n{}", rng.below(nodes)).into();
            Command::SetNode { node, availability: *rng.pick(&[Open, Cordoned, Draining]) }
        }
        _ => {
            let name = *rng.pick(queues);
            Command::SetQueue(any_queue(rng, queues, name))
        }
    }
}

/// The pool as it is when all is well and nothing runs.
fn idle_pool(policy: Policy, pool: &[Inventory], queues: &[&str], order: (usize, bool)) -> Cluster {
    let queues = queues.iter().map(|name| Record::Queue(Queue::new((*name).into())));
    let mut idle = Cluster::restore(policy, 1, queues, Time(0));
    let mut nodes: Vec<(usize, &Inventory)> = pool.iter().enumerate().collect();
    nodes.rotate_left(order.0);
    if order.1 {
        nodes.reverse();
    }
    for (at, inventory) in nodes {
        let report = NodeReport {
            node: format!("n{at}").into(),
            agent: Name::default(),
            boot: 1,
            seq: 1,
            inventory: Arc::new(inventory.clone()),
            revision: Revision::default(),
            workers: Vec::new(),
            probe: None,
        };
        idle.step(Time(0), Event::Report(report), &mut Vec::new());
    }
    idle
}

fn fits(idle: &Cluster, spec: &JobSpec) -> bool {
    let job = Job::new(JobId(1), Arc::new(spec.clone()), None, Time(0));
    plan::fits(&mut Free::of(idle), &job).is_ok()
}
