//! Jobs that start, shrink and grow with the ranks that fit.

mod fixture;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::jobs::{Job, Phase, Then};
use aquifer_core::plan::{self, Free, fits, grow};
use aquifer_core::*;
use fixture::*;

/// Nodes that say nothing for hours are not lost.
fn patient() -> Fixture {
    Fixture::with(Policy { lease: minutes(600), ..Policy::new(plan::Order::FairShare) })
}

fn submit(t: &mut Fixture, spec: JobSpec) -> Vec<String> {
    t.tell(Command::Submit(Arc::new(spec)))
}

fn better(spec: JobSpec) -> JobSpec {
    JobSpec { priority: 5, ..spec }
}

/// What a job holds, rank by rank, whatever its workers do.
fn places(job: &Job) -> Vec<(NodeId, Vec<u16>)> {
    job.ranks.iter().map(|rank| (rank.node, rank.devices.clone())).collect()
}

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

#[test]
fn a_job_starts_with_as_many_ranks_as_fit_but_not_with_fewer_than_its_least() {
    for free in 0..=9 {
        let mut t = patient();
        t.node(0, 8);
        if free < 8 {
            t.submit(1, 8 - free);
        }
        let job = 1 + u64::from(free < 8);
        submit(&mut t, elastic(3, 6, 1));
        let ranks = if free < 3 { 0 } else { free.min(6) };
        assert_eq!(t.job(job).ranks.len(), usize::from(ranks), "{free} devices are free");
    }
}

#[test]
fn a_job_starts_with_as_many_ranks_as_its_queue_may_hold() {
    let mut t = patient();
    t.node(0, 8);
    t.tell(Command::SetQueue(Queue { limit_milli: Some(5_000), ..Queue::new("red".into()) }));
    submit(&mut t, JobSpec { queue: "red".into(), ..elastic(2, 8, 1) });
    submit(&mut t, JobSpec { queue: "red".into(), ..elastic(1, 8, 1) });
    assert_eq!((t.job(1).ranks.len(), t.job(2).ranks.len()), (5, 0));
}

/// The job that waits behind both of the same priority gets nothing of what is kept.
#[test]
fn a_job_that_shrinks_keeps_the_rest_and_nobody_slips_in() {
    let mut t = patient();
    t.node(0, 8);
    submit(&mut t, elastic(2, 8, 1));
    let before = places(t.job(1));
    submit(&mut t, spec(1, 1));
    let notes = submit(&mut t, better(spec(1, 3)));
    let shrinks = "job-1 shrinks from 8 to 5 ranks: it gives way to job-3, at a cost of 0.000 device seconds";
    assert_eq!(notes, ["job-3 queued", shrinks]);
    let records = t.cluster.records().into_iter();
    let specs = t.cluster.jobs().iter().map(|job| Record::Spec(job.id, job.spec.clone()));
    let restored = Cluster::restore(*t.cluster.policy(), 2, records.chain(specs), t.now);
    assert_eq!(restored.records(), t.cluster.records());
    let notes = t.obey(0);
    assert!(
        notes[0].starts_with("job-1 placed attempt=2 on node-0 node-0 node-0 node-0 node-0"),
        "{notes:?}"
    );
    assert_eq!(notes[1..], ["job-3 placed attempt=1 on node-0"]);
    let after = places(t.job(1));
    assert!(after.iter().all(|rank| before.contains(rank)), "{after:?} of {before:?}");
    assert!(t.job(2).ranks.is_empty());
    assert_eq!((t.job(1).phase.clone(), t.job(1).failures), (Phase::Active, 0));
    let launch = t.cluster.assignment(NodeId(0)).workers.iter().find_map(|order| order.launch.clone());
    assert_eq!(launch.expect("a new attempt").world_size, 5);
}

#[test]
fn a_job_that_is_better_takes_no_more_than_it_needs_from_those_that_can_give_it() {
    let mut t = patient();
    t.node(0, 8);
    submit(&mut t, elastic(3, 4, 1));
    submit(&mut t, elastic(1, 4, 1));
    submit(&mut t, better(spec(1, 4)));
    t.obey(0);
    assert_eq!([1, 2, 3].map(|job| t.job(job).ranks.len()), [3, 1, 1]);
}

#[test]
fn a_service_changes_its_replicas_while_the_others_run_on() {
    let mut t = patient();
    t.node(0, 8);
    submit(&mut t, service(1, 6, None));
    t.all(0, WorkerState::Running);
    t.tell(Command::Scale { job: JobId(1), ranks: Some(2) });
    let goals = |t: &Fixture| {
        let orders = t.cluster.assignment(NodeId(0)).workers;
        orders.iter().map(|order| (order.id.rank, order.goal)).collect::<Vec<_>>()
    };
    let run = |rank| (rank, Goal::Run);
    let stop = |rank| (rank, Goal::Stop);
    assert_eq!(goals(&t), [run(0), run(1), stop(2), stop(3), stop(4), stop(5)]);
    assert_eq!(t.obey(0), [""; 0], "it is not placed again");
    assert_eq!((t.job(1).ranks.len(), t.job(1).attempt), (2, 1));
    assert!(t.job(1).ranks.iter().all(|rank| rank.worker == RankState::Running));

    let mut t = patient();
    t.node(0, 8);
    t.tell(Command::SetQueue(Queue { limit_milli: Some(2_000), ..Queue::new("default".into()) }));
    submit(&mut t, service(1, 6, None));
    t.all(0, WorkerState::Running);
    let notes = t.tell(Command::SetQueue(Queue::new("default".into())));
    assert_eq!(notes, ["queue default set", "job-1 grows from 2 to 6 ranks"]);
    let states: Vec<RankState> = t.job(1).ranks.iter().map(|rank| rank.worker).collect();
    assert_eq!(states[..2], [RankState::Running; 2]);
    assert_eq!((states.len(), t.job(1).attempt), (6, 1));
    t.all(0, WorkerState::Running);
    assert!(t.job(1).all_running());
}

#[test]
fn a_service_that_was_scaled_down_grows_again_while_the_others_run_on() {
    let mut t = patient();
    t.node(0, 8);
    submit(&mut t, service(1, 4, None));
    t.all(0, WorkerState::Running);
    t.tell(Command::Scale { job: JobId(1), ranks: Some(1) });
    t.obey(0);
    let notes = t.tell(Command::Scale { job: JobId(1), ranks: Some(2) });
    assert_eq!(notes, ["job-1 scaled to 2 of 1 to 4 ranks", "job-1 grows from 1 to 2 ranks"]);
    let numbers: Vec<u32> = t.job(1).ranks.iter().map(|rank| rank.rank).collect();
    assert_eq!((numbers, t.job(1).attempt), (vec![0, 4], 1), "no number is given twice in an attempt");
}

#[test]
fn what_cannot_be_scaled_is_refused_and_changes_nothing() {
    let mut t = patient();
    t.node(0, 8);
    submit(&mut t, elastic(2, 4, 1));
    t.submit(1, 1);
    let records = t.cluster.records();
    let mut ask =
        |job, ranks| t.ask(Command::Scale { job: JobId(job), ranks }).0.expect_err("a refusal").to_string();
    assert_eq!(ask(1, Some(5)), "5 ranks: expected 2 to 4");
    assert_eq!(ask(1, Some(1)), "1 ranks: expected 2 to 4");
    assert_eq!(ask(2, Some(1)), "job-2 is rigid: none of its roles has min_ranks");
    assert_eq!(ask(3, None), "there is no job-3");
    assert_eq!(t.cluster.records(), records);
}

#[test]
fn growth_waits_for_its_time_and_for_a_checkpoint() {
    let mut t = patient();
    t.node(0, 8);
    t.submit(1, 6);
    submit(&mut t, elastic(2, 8, 1));
    t.tell(Command::Cancel { job: JobId(1), whole_array: false });
    t.obey(0);
    assert_eq!(t.pass(minutes(4)), [""; 0], "too early");
    assert_eq!(t.pass(minutes(2)), [""; 0], "all that it did would be lost");
    let id = WorkerId { job: JobId(2), attempt: 1, rank: 0 };
    let reports = (0..2).map(|rank| WorkerReport {
        progress: None,
        load: None,
        id: WorkerId { rank, ..id },
        state: WorkerState::Running,
        checkpoint_age_ms: (rank == 0).then_some(1_000),
    });
    let notes = t.report(0, inventory(8, 64, 512), reports.collect());
    assert!(notes.contains(&"job-2 grows from 2 to 8 ranks".into()), "{notes:?}");
    let Phase::Stopping(Then::Resize(stays)) = &t.job(2).phase else { panic!("{:?}", t.job(2).phase) };
    assert_eq!(stays.len(), 8);
    assert_eq!(t.submit(1, 1), ["job-3 queued"], "what it grows into is its own already");
    assert_eq!(t.obey(0).len(), 1);
    assert_eq!((t.job(2).ranks.len(), t.job(2).attempt), (8, 2));
    let usage = t.job(2).usage;
    assert_eq!(usage.device_ms, 2 * 360_000, "what it did not run on yet is not counted");
}

#[test]
fn growth_pays_if_it_wins_a_quarter_and_loses_little() {
    let mut t = patient();
    t.node(0, 8);
    submit(&mut t, elastic(2, 8, 1));
    let now = Time(1_000_000);
    let pays = |more, unsaved_ms| grow::pays(t.job(1), more, unsaved_ms, now);
    assert!(pays(2, 0) && !pays(1, 0), "a quarter of 8 is 2");
    // 8 ranks lose it, 2 win a million milliseconds: a quarter of that.
    assert!(pays(2, 62_500) && !pays(2, 62_501));
}

fn worker(job: &Job, at: u32) -> WorkerId {
    WorkerId { job: job.id, attempt: job.attempt, rank: job.ranks[at as usize].rank }
}

/// Every set of ranks that others could do without, by exhaustion.
fn shrinks(t: &Fixture) -> Vec<BTreeSet<WorkerId>> {
    let mut sets = vec![BTreeSet::new()];
    for job in t.cluster.jobs().iter().filter(|job| job.phase == Phase::Active && job.spec.priority == 0) {
        let surplus = job.ranks.len() as u32 - job.spec.min_ranks();
        let mut with = Vec::new();
        for chosen in 0..1u32 << job.ranks.len() {
            if chosen.count_ones() <= surplus {
                let ranks = (0..job.ranks.len() as u32).filter(|rank| chosen >> rank & 1 == 1);
                let ranks: Vec<WorkerId> = ranks.map(|at| worker(job, at)).collect();
                with.extend(sets.iter().map(|set| set.iter().copied().chain(ranks.clone()).collect()));
            }
        }
        sets = with;
    }
    sets
}

#[test]
fn nobody_is_stopped_whole_where_others_can_shrink_and_no_rank_is_given_up_in_vain() {
    let (mut shrunk, mut whole, mut mixed) = (0, 0, 0);
    for seed in 0..1_500 {
        let mut rng = Rng(seed);
        let mut t = patient();
        for node in 0..1 + rng.below(3) as u32 {
            t.node(node, 2 + rng.below(4) as u16);
        }
        for _ in 0..4 {
            let most = 1 + rng.below(4) as u32;
            let least = 1 + rng.below(u64::from(most)) as u32;
            let mut any = spec(most, 1 + rng.below(2) as u16);
            any.roles[0].min_ranks = Some(least).filter(|least| *least < most);
            any.restart = if seed % 3 == 0 { Restart::Rank } else { Restart::Gang };
            t.now = t.now + Duration::from_millis(rng.below(5_000));
            submit(&mut t, any);
        }
        let waits = |t: &Fixture| {
            let waiting = |job: &&Job| matches!(job.phase, Phase::Pending(_));
            t.cluster.jobs().iter().find(waiting).map(|job| job.id)
        };
        while let Some(job) = waits(&t) {
            t.tell(Command::Cancel { job, whole_array: false });
        }
        t.now = t.now + minutes(1);
        let before = t.what_if();
        let wide = rng.below(3) == 0;
        let ranks = if wide { 1 + rng.below(3) as u32 } else { 1 };
        submit(&mut t, better(spec(ranks, 1 + rng.below(4) as u16)));
        let job = t.job(5).clone();
        if job.phase == Phase::Active {
            continue;
        }
        let enough = |workers: &BTreeSet<WorkerId>| {
            fits(&mut Free::without_workers(&before.cluster, workers.iter().copied()), &job).is_ok()
        };
        let suffices = shrinks(&before).iter().any(enough);
        let mut gives = BTreeSet::new();
        let (mut stopped, mut shrank) = (0, 0);
        for victim in t.cluster.jobs().victims_of(job.id) {
            gives.extend(victim.leaving().map(|at| worker(victim, at)));
            let goes_on = victim.ranks.len() as u32 - victim.leaving().count() as u32;
            match goes_on {
                0 => stopped += 1,
                ranks => {
                    assert!(victim.spec.min_ranks() <= ranks, "seed {seed}: {} keeps {ranks}", victim.id);
                    shrank += 1;
                }
            }
        }
        assert_eq!(suffices, stopped == 0 && shrank != 0, "seed {seed}: {stopped} stopped, {shrank} shrank");
        if gives.is_empty() {
            continue;
        }
        assert!(enough(&gives), "seed {seed}: not enough");
        for victim in t.cluster.jobs().victims_of(job.id).filter(|it| it.leaving().count() < it.ranks.len()) {
            for worker in victim.leaving().map(|at| worker(victim, at)) {
                let fewer = gives.iter().copied().filter(|other| *other != worker).collect();
                assert!(!enough(&fewer), "seed {seed}: {worker} is given up in vain");
            }
        }
        match (stopped, shrank) {
            (0, _) => shrunk += 1,
            (_, 0) => whole += 1,
            _ => mixed += 1,
        }
        let kept = t.cluster.jobs().victims_of(job.id).filter_map(|victim| {
            let Phase::Stopping(Then::Resize(stays)) = &victim.phase else { return None };
            Some((
                victim.id,
                stays.iter().map(|rank| places(victim)[*rank as usize].clone()).collect::<Vec<_>>(),
            ))
        });
        let kept: Vec<_> = kept.collect();
        for node in 0..t.cluster.nodes().len() as u32 {
            t.obey(node);
        }
        for (victim, kept) in kept {
            let victim = t.job(victim.0);
            let mut has = places(victim);
            if victim.spec.is_live() {
                // It may have grown at once into what is left over.
                has.truncate(kept.len());
            }
            assert_eq!((&victim.phase, has), (&Phase::Active, kept), "seed {seed}: {}", victim.id);
        }
        assert_eq!(t.job(5).phase, Phase::Active, "seed {seed}");
    }
    println!("{shrunk} shrank, {whole} stopped, {mixed} both");
    assert!(100 < shrunk && 50 < whole && 10 < mixed, "{shrunk} shrank, {whole} stopped, {mixed} both");
}
