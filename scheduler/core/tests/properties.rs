//! What holds for every pool and every job, tried on many.

mod fixture;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::explain::{Change, Reason, Start, explain};
use aquifer_core::plan::{Free, Misfit, fits};
use aquifer_core::*;
use fixture::*;

const POOLS: u64 = 400;

/// A pool of a few nodes on which some jobs run.
fn any_pool(seed: u64) -> (Fixture, Rng) {
    let mut rng = Rng(seed);
    let mut t = Fixture::new();
    for node in 0..1 + rng.below(5) as u32 {
        let mut inventory = inventory(rng.below(9) as u16, 8 + rng.below(56) as u32, 32 + rng.below(480));
        if rng.below(4) == 0 {
            let ascend = DeviceClass { vendor: Vendor::Ascend, model: "910b".into(), memory_bytes: 64 * GIB };
            let ascend = Arc::new(ascend);
            inventory.devices.iter_mut().for_each(|device| device.class = ascend.clone());
        }
        for device in &mut inventory.devices {
            device.fault = (rng.below(16) == 0).then(|| Fault::faulty("xid 79"));
        }
        if rng.below(3) == 0 {
            let size = 2 + rng.below(3) as u16;
            let islands = inventory.devices.iter_mut().zip(0u16..);
            islands.for_each(|(device, at)| device.island = Some(at / size));
        }
        inventory.engine = if node.is_multiple_of(2) { "podman" } else { "" }.into();
        for (device, at) in inventory.devices.iter_mut().zip(node..) {
            device.isolation = if at.is_multiple_of(3) { Isolation::Advisory } else { Isolation::Limited };
        }
        inventory.labels = [("rack".into(), format!("r{}", rng.below(2)).into())].into();
        t.report(node, inventory, Vec::new());
    }
    for _ in 0..rng.below(6) {
        let mut running = any_spec(&mut rng, 1);
        running.time_limit_ms = Some(1_000 * (1 + rng.below(1_000)));
        t.tell(Command::Submit(Arc::new(running)));
    }
    // Those that wait would go first, and nothing be left to find out.
    let waiting: Vec<JobId> =
        t.cluster.jobs().iter().filter(|job| job.ranks.is_empty()).map(|job| job.id).collect();
    for job in waiting {
        t.tell(Command::Cancel { job, whole_array: false });
    }
    (t, rng)
}

fn any_spec(rng: &mut Rng, roles: u64) -> JobSpec {
    let mut spec = spec(1, 1);
    spec.roles = (0..roles).map(|_| any_role(rng)).collect();
    // One may be elastic.
    spec.roles.iter_mut().skip(1).for_each(|role| role.min_ranks = None);
    if rng.below(3) == 0 {
        spec.topology.require = Some(any_level(rng));
    }
    spec
}

fn any_level(rng: &mut Rng) -> Level {
    if rng.below(2) == 0 { Level::Node } else { Level::Label("rack".into()) }
}

fn any_role(rng: &mut Rng) -> Role {
    let mut role = spec(1 + rng.below(4) as u32, 1).roles.remove(0);
    let want = |rng: &mut Rng| DeviceRequest {
        count: 1 + rng.below(8) as u16,
        vendor: (rng.below(4) == 0).then_some(if rng.below(2) == 0 {
            Vendor::Nvidia
        } else {
            Vendor::Ascend
        }),
        model: (rng.below(3) == 0).then(|| if rng.below(2) == 0 { "h200".into() } else { "910b".into() }),
        memory_bytes: if rng.below(4) == 0 { rng.below(160) * GIB } else { 0 },
        slice: (rng.below(3) == 0)
            .then(|| Slice { compute_milli: 1 + rng.below(1000) as u32, memory_bytes: rng.below(80) * GIB }),
        isolation: Isolation::Advisory,
        one_island: rng.below(4) == 0,
    };
    role.request.devices = (0..rng.below(3)).map(|_| want(rng)).collect();
    // Of these nothing is drawn, so that all else is as it was.
    let apart =
        |want: &&mut DeviceRequest| want.slice.is_some_and(|slice| slice.compute_milli.is_multiple_of(5));
    role.request.devices.iter_mut().filter(apart).for_each(|want| want.isolation = Isolation::Limited);
    if rng.below(4) == 0 {
        role.standing.apart = Some(any_level(rng));
    }
    if rng.below(4) == 0 {
        role.standing.spread = Some(any_level(rng));
    }
    role.request.cpus_milli = rng.below(24_000) as u32;
    role.request.memory_bytes = rng.below(200) * GIB;
    role.request.image = (role.request.cpus_milli % 16 == 7).then(|| "app:1".into());
    if rng.below(4) == 0 {
        role.request.labels = vec![("rack".into(), "r0".into())];
    }
    if 1 < role.ranks && rng.below(3) == 0 {
        role.min_ranks = Some(1 + rng.below(u64::from(role.ranks) - 1) as u32);
    }
    role
}

#[test]
fn a_placement_is_whole_and_within_what_is_free() {
    let (mut placed, mut refused) = (0, 0);
    for seed in 0..POOLS {
        let (mut t, mut rng) = any_pool(seed);
        let roles = 1 + rng.below(2);
        let (answer, _) = t.ask(Command::Submit(Arc::new(any_spec(&mut rng, roles))));
        let Ok(Answer::Submitted { first, .. }) = answer else { panic!("{answer:?}") };
        let job = t.job(first.0);
        // That of `check` is a recount of what is held; here it is held against what there is.
        let mut held: BTreeMap<NodeId, (u64, u64)> = BTreeMap::new();
        for rank in t.cluster.jobs().holding().flat_map(|job| &job.ranks) {
            let held = held.entry(rank.node).or_default();
            *held = (held.0 + u64::from(rank.cpus_milli), held.1 + rank.memory_bytes);
            let devices = &t.cluster.nodes().get(rank.node).inventory.devices;
            assert!(
                rank.devices.iter().all(|index| devices[usize::from(*index)].fault.is_none()),
                "SEED {seed}"
            );
        }
        for (node, (cpus_milli, memory_bytes)) in held {
            let inventory = &t.cluster.nodes().get(node).inventory;
            assert!(cpus_milli <= inventory.cpus_milli.into(), "seed {seed}: {cpus_milli} on {node:?}");
            assert!(memory_bytes <= inventory.memory_bytes, "seed {seed}: {memory_bytes} on {node:?}");
        }
        match job.ranks.len() as u32 {
            0 => refused += 1,
            ranks => {
                let is_whole = (job.spec.min_ranks()..=job.spec.ranks()).contains(&ranks);
                assert!(is_whole, "seed {seed}: {ranks} ranks");
                placed += 1;
            }
        }
    }
    println!("{placed} placed, {refused} not");
    assert!(POOLS / 10 < placed && POOLS / 10 < refused, "{placed} placed, {refused} not");
}

/// The number of ranks for which there is room is the largest number that would be placed.
#[test]
fn room_is_for_as_many_ranks_as_would_fit() {
    let mut seen = 0;
    for seed in 0..POOLS {
        let (mut t, mut rng) = any_pool(seed);
        t.tell(Command::Submit(Arc::new(any_spec(&mut rng, 1))));
        let job = t.cluster.jobs().iter().next_back().expect("it");
        if !job.ranks.is_empty() {
            continue;
        }
        let mut free = Free::of(&t.cluster);
        let Err(Misfit::RoomFor { ranks, of, .. }) = fits(&mut free, job) else { panic!("seed {seed}") };
        for fewer in 1..=of {
            let mut job = job.clone();
            let role = &mut Arc::make_mut(&mut job.spec).roles[0];
            (role.ranks, role.min_ranks) = (fewer, None);
            let starts = fits(&mut free, &job).is_ok();
            // A domain with too few is not searched: there, parts of several devices are only bounded.
            let parts = |want: &DeviceRequest| want.slice.is_some() && 1 < want.count;
            let is_bound = job.spec.topology.require.is_some()
                && job.spec.roles.iter().flat_map(|role| &role.request.devices).any(parts);
            let right = starts == (fewer <= ranks) || (is_bound && !starts);
            assert!(right, "seed {seed}: {fewer} of {ranks}");
        }
        seen += u32::from(0 < ranks);
    }
    assert!(10 < seen, "{seen} with some room");
}

#[test]
fn the_change_that_an_explanation_suggests_starts_the_job() {
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    for seed in 0..10 * POOLS {
        let (mut t, mut rng) = any_pool(seed);
        let spec = any_spec(&mut rng, 1);
        t.tell(Command::Submit(Arc::new(spec.clone())));
        let job = t.cluster.jobs().iter().next_back().expect("it").clone();
        let Some(change) = explain(&t.cluster, &job).change else { continue };
        let changed = with(spec, &change);
        t.tell(Command::Cancel { job: job.id, whole_array: false });
        let (answer, _) = t.ask(Command::Submit(Arc::new(changed)));
        let Ok(Answer::Submitted { first, .. }) = answer else { panic!("{answer:?}") };
        assert!(!t.job(first.0).ranks.is_empty(), "seed {seed}: {change}");
        *seen.entry(name(&change)).or_default() += 1;
    }
    println!("{seen:?}");
    assert_eq!(seen.len(), 14, "every kind of change was suggested: {seen:?}");
}

fn name(change: &Change) -> &'static str {
    match change {
        Change::CpusMilli { .. } => "cpus",
        Change::MemoryBytes { .. } => "memory",
        Change::DeviceMemoryBytes { .. } => "device memory",
        Change::Devices { .. } => "devices",
        Change::Ranks { .. } => "ranks",
        Change::MinRanks { .. } => "least ranks",
        Change::Model { .. } => "model",
        Change::Vendor { .. } => "vendor",
        Change::Labels => "labels",
        Change::Image => "image",
        Change::Isolation { .. } => "isolation",
        Change::Topology { .. } => "topology",
        Change::Apart { .. } => "apart",
        Change::Island => "island",
        Change::TimeLimit { .. } => "time limit",
    }
}

fn with(mut spec: JobSpec, change: &Change) -> JobSpec {
    let role = &mut spec.roles[0];
    let devices = &mut role.request.devices;
    match change {
        Change::CpusMilli { to, .. } => role.request.cpus_milli = *to,
        Change::MemoryBytes { to, .. } => role.request.memory_bytes = *to,
        Change::DeviceMemoryBytes { to, .. } => {
            devices.iter_mut().for_each(|d| d.memory_bytes = d.memory_bytes.min(*to));
        }
        Change::Devices { to, .. } => devices.iter_mut().for_each(|d| d.count = d.count.min(*to)),
        Change::Ranks { to, .. } => role.ranks = *to,
        Change::MinRanks { to, .. } => role.min_ranks = Some(*to),
        Change::Model { .. } => devices.iter_mut().for_each(|d| d.model = None),
        Change::Vendor { .. } => devices.iter_mut().for_each(|d| (d.vendor, d.model) = (None, None)),
        Change::Labels => role.request.labels.clear(),
        Change::Image => role.request.image = None,
        Change::Isolation { to, .. } => {
            role.request.devices.iter_mut().for_each(|want| want.isolation = want.isolation.min(*to));
        }
        Change::Topology { .. } => spec.topology.require = None,
        Change::Apart { .. } => role.standing.apart = None,
        Change::Island => devices.iter_mut().for_each(|d| d.one_island = false),
        Change::TimeLimit { to, .. } => spec.time_limit_ms = Some(*to),
    }
    spec
}

/// If nothing else is submitted, workers end as soon as they are told to, and jobs run to their limits.
#[test]
fn a_job_starts_when_its_explanation_said_it_would() {
    let mut seen = 0;
    for seed in 0..POOLS {
        let (mut t, mut rng) = any_pool(seed);
        t.tell(Command::Submit(Arc::new(any_spec(&mut rng, 1))));
        let job = t.cluster.jobs().iter().next_back().expect("it").clone();
        let explanation = explain(&t.cluster, &job);
        let Start::By { at, .. } = explanation.start else { continue };
        assert!(
            matches!(explanation.reason, Reason::RoomFor { .. }),
            "seed {seed}: {:?}",
            explanation.reason
        );
        while t.job(job.id.0).ranks.is_empty() {
            let next = t.cluster.deadline().expect("something to come").min(t.now + Duration::from_secs(5));
            t.now = next;
            t.step(Event::Tick);
            for node in 0..t.cluster.nodes().len() as u32 {
                t.obey(node);
            }
        }
        assert_eq!(t.job(job.id.0).placed, Some(at), "seed {seed}");
        seen += 1;
    }
    println!("{seen} started when it was said");
    assert!(20 < seen, "{seen}");
}
