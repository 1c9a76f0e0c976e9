//! What holds for whoever gives way, tried on many pools.

mod fixture;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::jobs::{Phase, Why};
use aquifer_core::plan::{Free, Misfit, Owner, fits};
use aquifer_core::*;
use fixture::*;

const POOLS: u64 = 1000;
const QUEUES: [&str; 6] = ["default", "red", "blue", "green", "teal", "cyan"];

/// Nodes and queues, and nothing that runs.
fn any_pool(rng: &mut Rng) -> Fixture {
    let mut t = Fixture::new();
    for node in 0..1 + rng.below(4) as u32 {
        let mut inventory = inventory(2 + rng.below(7) as u16, 64, 512);
        inventory.labels = [("rack".into(), format!("r{}", rng.below(2)).into())].into();
        t.report(node, inventory, Vec::new());
    }
    for (at, name) in QUEUES.iter().enumerate().skip(1) {
        let parent = QUEUES[rng.below(at as u64) as usize];
        let parent = (parent != QUEUES[0]).then(|| parent.into());
        let guaranteed_milli = 1000 * rng.below(9);
        let queue = Queue { guaranteed_milli, parent, ..Queue::new((*name).into()) };
        if t.ask(Command::SetQueue(queue.clone())).0.is_err() {
            // More than its parent has to guarantee.
            t.tell(Command::SetQueue(Queue { guaranteed_milli: 0, ..queue }));
        }
    }
    t
}

/// A job that runs until it is stopped.
fn any_spec(rng: &mut Rng) -> JobSpec {
    let ranks = if rng.below(3) == 0 { 1 + rng.below(4) as u32 } else { 1 };
    let mut spec = spec(ranks, 1 + rng.below(4) as u16);
    spec.queue = QUEUES[rng.below(QUEUES.len() as u64) as usize].into();
    spec.priority = rng.below(3) as i32;
    let level = if rng.below(2) == 0 { Level::Node } else { Level::Label("rack".into()) };
    match rng.below(8) {
        0 => spec.topology.require = Some(level),
        1 => spec.topology.prefer = vec![level],
        2 | 3 => spec.roles[0].standing.apart = Some(level),
        4 => spec.roles[0].standing.spread = Some(level),
        _ => (),
    }
    if rng.below(4) == 0 {
        spec.roles[0].request.devices[0].slice =
            Some(Slice { compute_milli: 100 * (1 + rng.below(10)) as u32, memory_bytes: 0 });
    }
    spec
}

/// Who gives way to whom, from the effects of the last step.
fn decisions(t: &Fixture) -> BTreeMap<JobId, BTreeSet<JobId>> {
    let mut decisions: BTreeMap<JobId, BTreeSet<JobId>> = BTreeMap::new();
    for effect in &t.effects {
        if let Effect::Note(Note::Preempted { job, by, .. }) = effect {
            decisions.entry(*by).or_default().insert(*job);
        }
    }
    decisions
}

/// Of one decision alone, nothing else having changed since.
fn check(t: &Fixture, by: JobId, victims: &BTreeSet<JobId>, seed: u64) -> &'static str {
    let job = |id: &JobId| t.job(id.0);
    let fit = |victims: BTreeSet<JobId>| {
        let mut free = Free::of(&t.cluster);
        victims.iter().for_each(|victim| free.take_as_ended(job(victim), true));
        fits(&mut free, job(&by))
    };
    let without = |victims: BTreeSet<JobId>| fit(victims).is_ok();
    // What a queue reclaims, it takes even where room is kept for those that are not due theirs.
    let starts = matches!(fit(victims.clone()), Ok(()) | Err(Misfit::Kept(Owner::Job(_))));
    assert!(starts, "seed {seed}: {by} does not start without {victims:?}");
    for spared in victims {
        let fewer = victims.iter().filter(|victim| *victim != spared).copied().collect();
        assert!(!without(fewer), "seed {seed}: {spared} need not give way to {by}");
    }
    let mut kind = "by priority";
    for victim in victims.iter().map(job) {
        assert!(matches!(victim.phase, Phase::Stopping(_)), "seed {seed}: all stop at once");
        let (queue, own) = (&victim.spec.queue, &job(&by).spec.queue);
        if queue == own {
            assert!(victim.spec.priority < job(&by).spec.priority, "seed {seed}: {} of {by}", victim.id);
            continue;
        }
        kind = "reclaimed";
        let queues = t.cluster.queues();
        let left = |queue: &Queue| {
            let within = victims.iter().map(job);
            let within = within.filter(|victim| queues.is_within(&victim.spec.queue, &queue.name));
            queues.held_milli(&queue.name) - within.map(|victim| victim.charge_milli()).sum::<u64>()
        };
        for guard in queues.line(queue).filter(|guard| !queues.is_within(own, &guard.name)) {
            let left = left(guard);
            assert!(guard.guaranteed_milli <= left, "seed {seed}: {} is left {left}", guard.name);
            if guard.name != *queue && 0 < guard.guaranteed_milli {
                kind = "reclaimed below a guarantee";
            }
        }
        let mut what_if = t.what_if();
        settle(&mut what_if, seed);
        let takes = what_if.job(by.0).charge_milli();
        let may = |by: &&Queue| !queues.is_within(queue, &by.name) && left(by) + takes <= by.guaranteed_milli;
        let by_queue = queues.line(own).find(may);
        let by_queue = by_queue.unwrap_or_else(|| panic!("seed {seed}: {own} has no right to {queue}"));
        if by_queue.name != *own {
            kind = "reclaimed by the guarantee of a queue above";
        }
    }
    let spec = &job(&by).spec;
    match kind {
        "by priority" if 1 < spec.ranks() && spec.topology.require.is_some() => "a gang in one domain",
        "by priority" if 1 < spec.ranks() && spec.roles[0].standing.apart.is_some() => "a gang apart",
        "by priority" if 1 < spec.ranks() => "a gang",
        kind => kind,
    }
}

/// Until nobody stops any more. Returns who gave way to whom meanwhile; every preemptor has been placed then.
fn settle(t: &mut Fixture, seed: u64) -> Vec<(JobId, JobId)> {
    let (mut pairs, mut preemptors) = (Vec::new(), BTreeSet::new());
    for round in 0.. {
        assert!(round < 500, "seed {seed}: no end to it");
        preemptors.extend(t.cluster.jobs().preemptors().map(|(job, _)| job.id));
        let last = t.cluster.jobs().stopping().next().is_none();
        t.pass(Duration::from_millis(1));
        let mut note = |t: &Fixture| {
            for (by, victims) in decisions(t) {
                pairs.extend(victims.into_iter().map(|victim| (victim, by)));
                preemptors.insert(by);
            }
        };
        note(t);
        for node in 0..t.cluster.nodes().len() as u32 {
            t.obey(node);
            note(t);
        }
        if last && t.cluster.jobs().stopping().next().is_none() {
            break;
        }
    }
    for by in preemptors {
        let job = t.job(by.0);
        let gave_way = matches!(job.last_failure, Some(Why::Preempted { .. }));
        assert!(job.phase == Phase::Active || gave_way, "seed {seed}: {by} is promised room and waits");
    }
    pairs
}

#[test]
fn whoever_gives_way_is_needed_and_may_be_taken_and_the_job_starts() {
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    for seed in 0..POOLS {
        let mut rng = Rng(seed);
        let mut t = any_pool(&mut rng);
        let mut pairs: BTreeSet<(JobId, JobId)> = BTreeSet::new();
        let jobs = 10 + rng.below(20);
        let mut preemptions = 0;
        for _ in 0..jobs {
            t.now = t.now + Duration::from_millis(rng.below(50));
            t.tell(Command::Submit(Arc::new(any_spec(&mut rng))));
            let decided = decisions(&t);
            if let [(by, victims)] = &decided.iter().collect::<Vec<_>>()[..] {
                *seen.entry(check(&t, **by, victims, seed)).or_default() += 1;
            }
            let decided =
                decided.into_iter().flat_map(|(by, victims)| victims.into_iter().map(move |it| (it, by)));
            let more: Vec<(JobId, JobId)> = decided.chain(settle(&mut t, seed)).collect();
            preemptions += more.len() as u64;
            pairs.extend(more);
        }
        for (victim, by) in &pairs {
            assert!(!pairs.contains(&(*by, *victim)), "seed {seed}: {victim} and {by} evict each other");
        }
        assert!(preemptions <= jobs * jobs, "seed {seed}: {preemptions} preemptions of {jobs} jobs");
        *seen.entry("preemptions").or_default() += preemptions as u32;
    }
    println!("{seen:?}");
    for kind in ["by priority", "a gang", "reclaimed"] {
        assert!(20 < seen[kind], "{seen:?}");
    }
    for kind in ["a gang in one domain", "a gang apart"] {
        assert!(5 < seen[kind], "{seen:?}");
    }
    for kind in ["reclaimed below a guarantee", "reclaimed by the guarantee of a queue above"] {
        assert!(10 < seen[kind], "{seen:?}");
    }
}
