//! Which class of devices a job gets, and when it moves to another.

mod fixture;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::explain::class_choice;
use aquifer_core::jobs::{Job, Outcome, Phase, Then};
use aquifer_core::plan::Order;
use aquifer_core::*;
use fixture::*;

/// A node of so many devices of a model, each so fast.
fn offers(model: &str, devices: u16, speed_milli: u32) -> Inventory {
    let mut inventory = inventory(devices, 64, 512);
    let class = Arc::new(DeviceClass { vendor: Vendor::Nvidia, model: model.into(), memory_bytes: 16 * GIB });
    for device in &mut inventory.devices {
        (device.class, device.speed_milli) = (class.clone(), speed_milli);
    }
    inventory
}

/// What one model needs of each class, in thousandths of a step a second on one device.
type Rates = BTreeMap<(&'static str, &'static str), u64>;

/// A pool in virtual time: workers do what they are told, their steps at the rates of their model and class.
struct Pool {
    t: Fixture,
    nodes: Vec<Inventory>,
    rates: Rates,
    steps: u64,
    /// Steps of each job, in thousandths.
    done: BTreeMap<JobId, u64>,
    /// Whether workers tell how far they are.
    tells: bool,
    notes: Vec<String>,
    moved: Vec<(Time, Note)>,
    /// Whether time stands still after a decision to move.
    halts: bool,
}

impl Pool {
    fn new(nodes: &[Inventory], rates: Rates, steps: u64, tells: bool) -> Pool {
        let lease = Duration::from_secs(1 << 20);
        let mut t = Fixture::with(Policy { lease, ..Policy::new(Order::FairShare) });
        for (at, inventory) in nodes.iter().enumerate() {
            t.report(at as u32, inventory.clone(), Vec::new());
        }
        let nodes = nodes.to_vec();
        Pool {
            t,
            nodes,
            rates,
            steps,
            done: BTreeMap::new(),
            tells,
            notes: Vec::new(),
            moved: Vec::new(),
            halts: false,
        }
    }

    fn submit(&mut self, spec: JobSpec) {
        let notes = self.t.tell(Command::Submit(Arc::new(spec)));
        self.take(notes);
    }

    fn take(&mut self, notes: Vec<String>) {
        self.notes.extend(notes);
        let moved = self.t.effects.iter().filter_map(|effect| match effect {
            Effect::Note(note @ (Note::Moved { .. } | Note::Exchanged { .. })) => {
                Some((self.t.now, note.clone()))
            }
            _ => None,
        });
        self.moved.extend(moved);
    }

    /// Thousandths of a step a second of one device.
    fn rate(&self, job: &Job) -> u64 {
        let Program::Train(options) = &job.spec.roles[0].program else { return 1000 };
        let rank = &job.ranks[0];
        let class = &self.nodes[rank.node.0 as usize].devices[usize::from(rank.devices[0])].class;
        let rate =
            self.rates.iter().find(|((model, on), _)| **model == *options.model && **on == *class.model);
        rate.map_or(1000, |(_, rate)| *rate)
    }

    /// A minute passes: what runs gets on, what is done exits, what shall stop stops, and all is reported.
    fn minute(&mut self) {
        self.t.now = self.t.now + Duration::from_secs(60);
        let notes = self.t.step(Event::Tick);
        self.take(notes);
        if self.halts && !self.moved.is_empty() {
            return;
        }
        let running: Vec<Job> = self.t.cluster.jobs().holding().cloned().collect();
        for job in running.iter().filter(|job| job.phase == Phase::Active && job.all_running()) {
            let devices: u64 = job.ranks.iter().map(|rank| rank.devices.len() as u64).sum();
            *self.done.entry(job.id).or_default() += 60 * self.rate(job) * devices;
        }
        for at in 0..self.nodes.len() {
            let orders = self.t.cluster.assignment(NodeId(at as u32)).workers;
            let report = orders.iter().map(|order| {
                let job = self.t.job(order.id.job.0);
                let done = self.done.get(&job.id).copied().unwrap_or(0) / 1000;
                let state = match order.goal {
                    Goal::Stop => WorkerState::Exited(Exit::Signal(15)),
                    Goal::Run if self.steps <= done => WorkerState::Exited(Exit::Code(0)),
                    Goal::Run => WorkerState::Running,
                };
                let told = Progress {
                    step: done,
                    total_steps: self.steps,
                    rate_milli: self.rate(job),
                    spent: Some(Spent { steps_us: done, start_us: 7, ..Spent::default() }),
                };
                WorkerReport { progress: self.tells.then_some(told), ..worker(order.id, state) }
            });
            let report = report.collect();
            let notes = self.t.report(at as u32, self.nodes[at].clone(), report);
            self.take(notes);
        }
    }

    /// Until the decision, not yet what follows from it.
    fn until_a_move(&mut self) {
        self.halts = true;
        self.minutes(60);
        self.halts = false;
        assert!(!self.moved.is_empty(), "nothing moves: {:?}", self.notes);
    }

    fn minutes(&mut self, minutes: u32) {
        (0..minutes).for_each(|_| self.minute());
    }

    /// Model of the devices that a job holds.
    fn model_of(&self, job: u64) -> Name {
        let rank = &self.t.job(job).ranks[0];
        self.nodes[rank.node.0 as usize].devices[usize::from(rank.devices[0])].class.model.clone()
    }

    fn all_done(&self) -> bool {
        self.t.cluster.jobs().iter().all(|job| matches!(job.phase, Phase::Done(_)))
    }
}

fn rates(of: &[(&'static str, &'static str, u64)]) -> Rates {
    of.iter().map(|(model, class, rate)| ((*model, *class), *rate)).collect()
}

fn opposite() -> Rates {
    rates(&[("a", "x", 4000), ("a", "y", 1000), ("b", "x", 1000), ("b", "y", 4000)])
}

#[test]
fn what_was_measured_decides_where_the_next_of_its_kind_runs_and_explains_it() {
    let nodes = [offers("x", 8, 1000), offers("y", 8, 1000)];
    let mut pool = Pool::new(&nodes, opposite(), 1_000_000, true);
    for model in ["a", "b"] {
        for class in ["x", "y"] {
            let mut spec = train(model, 1, 1);
            spec.roles[0].request.devices[0].model = Some(class.into());
            pool.submit(spec);
        }
    }
    pool.submit(train("a", 1, 1));
    let speed = |pool: &Pool, job| class_choice(&pool.t.cluster, pool.t.job(job)).map(|it| it.to_string());
    assert_eq!(speed(&pool, 5), None, "nothing is known");
    pool.minutes(4);
    for (job, model, class, other) in [(6, "a", "x", "y"), (7, "b", "y", "x"), (8, "a", "x", "y")] {
        pool.submit(train(model, 1, 1));
        assert_eq!(*pool.model_of(job), *class, "{model}");
        let text = format!("{class}: 4.0 times as fast for it as {other}");
        assert_eq!(speed(&pool, job), Some(text));
    }
    let restored = Cluster::restore(*pool.t.cluster.policy(), 2, pool.t.cluster.records(), pool.t.now);
    assert!(restored.speeds().is_empty(), "it begins with the devices' figures");
}

/// Programs with opposite advantages: half of the jobs are four times as fast on one class, half on the other. They come in
/// waves, as many as there are devices: where there is no room to choose, nothing is chosen.
#[test]
fn where_the_time_of_a_training_went_stays_known_when_it_has_ended() {
    let mut pool = Pool::new(&[offers("h100", 1, 1000)], rates(&[("tiny", "h100", 1000)]), 150, true);
    pool.submit(train("tiny", 1, 1));
    pool.minutes(3);
    let spent = |pool: &Pool| pool.t.cluster.spent(pool.t.job(1)).steps_us;
    assert!((1..150).contains(&spent(&pool)), "{}", spent(&pool));
    pool.minutes(3);
    assert!(pool.all_done());
    // Its last word came with its exit.
    assert_eq!(pool.t.job(1).usage.spent, Spent { steps_us: 180, start_us: 7, ..Spent::default() });
}

#[test]
fn all_end_sooner_where_classes_are_chosen_by_speed() {
    let makespan = |tells: bool| {
        let mut pool = Pool::new(&[offers("x", 8, 1000), offers("y", 8, 1000)], opposite(), 4_000, tells);
        let mut rng = Rng(7);
        for _ in 0..10 {
            let mut wave = [["a"; 8], ["b"; 8]].concat();
            while let Some(at) = (!wave.is_empty()).then(|| rng.below(wave.len() as u64) as usize) {
                pool.submit(train(wave.swap_remove(at), 1, 1));
            }
            for _ in 0..2_000 {
                if !pool.all_done() {
                    pool.minute();
                }
            }
            assert!(pool.all_done());
        }
        pool.t.now.0 / 60_000
    };
    let (chosen, packed) = (makespan(true), makespan(false));
    println!("10 waves of 16 jobs: {packed} min by packing, {chosen} min where classes are chosen by speed");
    assert!(chosen * 2 < packed, "{chosen} and {packed} min");
}

/// A slow node and a fast one, which is held for some minutes by another job. Job 2 runs on the slow one.
fn behind_another(change: impl Fn(&mut JobSpec), policy: impl Fn(&mut Policy)) -> Pool {
    let nodes = [offers("t4", 2, 250), offers("h200", 2, 1000)];
    let mut pool = Pool::new(&nodes, rates(&[("a", "t4", 100), ("a", "h200", 400)]), 1_000, true);
    let mut rules = *pool.t.cluster.policy();
    policy(&mut rules);
    pool.t.cluster = Cluster::restore(rules, 2, pool.t.cluster.records(), Time(0));
    let mut blocker = spec(1, 2);
    blocker.roles[0].request.devices[0].model = Some("h200".into());
    blocker.time_limit_ms = Some(600_000);
    pool.submit(blocker);
    let mut spec = train("a", 1, 1);
    change(&mut spec);
    pool.submit(spec);
    assert_eq!(&*pool.model_of(2), "t4");
    pool
}

#[test]
fn a_job_moves_to_the_faster_class_once_that_is_idle() {
    let mut pool = behind_another(|_| (), |_| ());
    pool.minutes(40);
    assert_eq!(pool.moved.len(), 1, "{:?}", pool.notes);
    let moves: Vec<&String> = pool.notes.iter().filter(|note| note.contains("moves")).collect();
    assert!(moves[0].starts_with("job-2 moves from t4 to h200: "), "{moves:?}");
    assert_eq!((&*pool.model_of(2), pool.t.job(2).attempt), ("h200", 2));
    assert_eq!(
        pool.t.job(2).last_failure.as_ref().map(ToString::to_string).as_deref(),
        Some("it moved from t4 to h200")
    );
    pool.minutes(120);
    assert!(pool.all_done());
}

#[test]
fn a_job_stays_where_it_may_not_move() {
    let nothing = |_: &mut JobSpec| ();
    let cases: [(&str, Pool); 5] = [
        ("without preemption", behind_another(nothing, |policy| policy.preemption = false)),
        ("without rounds", behind_another(nothing, |policy| policy.rounds = Duration::ZERO)),
        (
            "a program that tells of no checkpoint",
            behind_another(|spec| spec.roles[0].program = Program::Command(vec!["work".into()]), |_| ()),
        ),
        (
            "a job that accepts only its class",
            behind_another(|spec| spec.roles[0].request.devices[0].model = Some("t4".into()), |_| ()),
        ),
        ("a job in one rack", behind_another(|spec| spec.topology.require = Some(Level::Node), |_| ())),
    ];
    for (what, mut pool) in cases {
        pool.minutes(40);
        assert!(pool.moved.is_empty(), "{what}");
    }
}

#[test]
fn nobody_moves_to_what_somebody_who_waits_could_use() {
    let mut pool = behind_another(|_| (), |_| ());
    // It waits for four such devices, of which the pool has two: so the idle ones are no target, as one day they may do.
    pool.minutes(2);
    let mut waits = spec(2, 2);
    waits.roles[0].request.devices[0].model = Some("h200".into());
    pool.submit(waits);
    pool.minutes(40);
    assert!(pool.moved.is_empty(), "{:?}", pool.moved);
}

/// What it goes on with is its own while it stops, on both sides of a restart.
#[test]
fn a_job_holds_where_it_goes_on_while_it_stops() {
    let mut pool = behind_another(|_| (), |_| ());
    pool.until_a_move();
    let job = pool.t.job(2);
    assert!(matches!(&job.phase, Phase::Stopping(Then::Resize(stays)) if *stays == [1]));
    assert_eq!((job.ranks.len(), job.devices_held_milli(), job.charge_milli()), (2, 1000, 2000));
    assert!(pool.t.cluster.assignment(NodeId(1)).workers.iter().all(|order| order.id.job != JobId(2)));
    let records = pool.t.cluster.records();
    pool.t.cluster = Cluster::restore(*pool.t.cluster.policy(), 3, records.clone(), pool.t.now);
    pool.t.cluster.check();
    assert_eq!(pool.t.cluster.records(), records);
    pool.minutes(2);
    assert_eq!((&*pool.model_of(2), pool.t.job(2).attempt), ("h200", 2));
}

#[test]
fn a_job_whose_target_is_gone_is_placed_again() {
    let mut pool = behind_another(|_| (), |_| ());
    pool.until_a_move();
    assert!(matches!(pool.t.job(2).phase, Phase::Stopping(Then::Resize(_))));
    let availability = Availability::Cordoned;
    let notes = pool.t.tell(Command::SetNode { node: "node-1".into(), availability });
    pool.take(notes);
    pool.minutes(1);
    assert!(pool.notes.contains(&"job-2 requeued: node-1 is drained".into()), "{:?}", pool.notes);
    pool.minutes(2);
    assert_eq!((&*pool.model_of(2), pool.t.job(2).attempt), ("t4", 2));
}

/// A full pool in which jobs 1 and 4 have each other's class, as nothing was known of them when they came; all take `steps`.
fn crossed(steps: u64, rounds: Duration) -> Pool {
    let mut pool = Pool::new(&[offers("x", 2, 1000), offers("y", 2, 1000)], opposite(), steps, true);
    let rules = Policy { rounds, ..*pool.t.cluster.policy() };
    pool.t.cluster = Cluster::restore(rules, 2, pool.t.cluster.records(), Time(0));
    for model in ["b", "a", "b", "a"] {
        pool.submit(train(model, 1, 1));
    }
    assert_eq!([1, 2, 3, 4].map(|job| pool.model_of(job)), ["x", "x", "y", "y"].map(Name::from));
    pool
}

const ROUNDS: Duration = Duration::from_secs(360);

#[test]
fn jobs_change_places_where_nothing_is_idle() {
    let mut pool = crossed(8_000, ROUNDS);
    pool.minutes(20);
    let told = |note: &&String| note.contains("changes places");
    let notes: Vec<&String> = pool.notes.iter().filter(told).collect();
    assert!(notes[0].starts_with("job-1 changes places with job-4, from x to y: together "), "{notes:?}");
    assert!(notes[1].starts_with("job-4 changes places with job-1, from y to x: together "), "{notes:?}");
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert_eq!([1, 2, 3, 4].map(|job| pool.model_of(job)), ["y", "x", "y", "x"].map(Name::from));
    assert_eq!([1, 2, 3, 4].map(|job| pool.t.job(job).attempt), [2, 1, 1, 2]);
    let why = pool.t.job(4).last_failure.as_ref().map(ToString::to_string);
    assert_eq!(why.as_deref(), Some("it moved from y to x"));

    let minutes = |rounds: Duration| {
        let mut pool = crossed(8_000, rounds);
        let mut minutes = 0;
        while !pool.all_done() {
            pool.minute();
            minutes += 1;
        }
        minutes
    };
    let (exchanged, stayed) = (minutes(ROUNDS), minutes(Duration::ZERO));
    assert!(exchanged * 3 < stayed, "{exchanged} min, and {stayed} min without");
}

#[test]
fn who_has_stopped_waits_for_the_one_with_which_it_changes_places() {
    // What becomes of both when only job 1 has stopped.
    let half = || {
        let mut pool = crossed(8_000, ROUNDS);
        pool.until_a_move();
        let gone = |rank| worker(rank, WorkerState::Exited(Exit::Signal(15)));
        let runs = |rank| worker(rank, WorkerState::Running);
        let id = |job: u64| WorkerId { job: JobId(job), attempt: 1, rank: 0 };
        let notes = pool.t.report(0, pool.nodes[0].clone(), vec![gone(id(1)), runs(id(2))]);
        pool.take(notes);
        pool.t.cluster.check();
        assert!(!pool.t.job(1).ranks.is_empty(), "it holds what job 4 gets");
        pool
    };
    let mut pool = half();
    // Somebody who would fit comes first, and gets nothing of it.
    pool.submit(train("a", 1, 1));
    pool.minutes(2);
    assert_eq!([1, 4].map(|job| pool.model_of(job)), ["y", "x"].map(Name::from));
    assert!(pool.t.job(5).ranks.is_empty());

    let mut pool = half();
    let notes = pool.t.tell(Command::Cancel { job: JobId(4), whole_array: false });
    pool.take(notes);
    pool.t.cluster.check();
    assert_eq!((pool.t.job(1).attempt, &*pool.model_of(1)), (2, "x"), "it goes on where there is room");
    pool.minutes(2);
    assert_eq!(pool.t.job(4).phase, Phase::Done(Outcome::Cancelled));

    let mut pool = half();
    pool.t.cluster = Cluster::restore(*pool.t.cluster.policy(), 3, pool.t.cluster.records(), pool.t.now);
    pool.t.cluster.check();
    pool.minutes(3);
    let both = [1, 4].map(|job| (pool.t.job(job).phase.clone(), pool.t.job(job).attempt));
    assert_eq!(both, [(Phase::Active, 2), (Phase::Active, 2)], "{:?}", pool.notes);

    let mut pool = half();
    let availability = Availability::Cordoned;
    let notes = pool.t.tell(Command::SetNode { node: "node-1".into(), availability });
    pool.take(notes);
    pool.minutes(2);
    // Job 1 cannot go there: it is placed like any other, where it was, and job 4 beside it has to wait.
    let held = [1, 4].map(|job| pool.t.job(job).ranks.len());
    assert_eq!(held.iter().sum::<usize>(), 1, "{:?}", pool.notes);
    pool.t.cluster.check();
}

const POOLS: u64 = 600;

/// What holds for every move, tried on many pools.
#[test]
fn whoever_moves_may_and_gains_by_it_and_delays_nobody() {
    let (mut moves, mut exchanges, mut chosen) = (0, 0, 0);
    for seed in 0..POOLS {
        let mut rng = Rng(seed);
        let models = ["t4", "a100", "h200"];
        let nodes: Vec<Inventory> = (0..2 + rng.below(4))
            .map(|_| {
                offers(
                    models[rng.below(3) as usize],
                    1 + rng.below(8) as u16,
                    250 * (1 + rng.below(8)) as u32,
                )
            })
            .collect();
        let rate = |rng: &mut Rng| 50 + rng.below(500);
        let rates: Rates = ["a", "b", "c"]
            .into_iter()
            .flat_map(|model| models.map(|class| (model, class)))
            .map(|key| (key, rate(&mut rng)))
            .collect();
        let mut pool = Pool::new(&nodes, rates, 300 + rng.below(2_000), rng.below(4) != 0);
        let (may, rare) = (rng.below(5) != 0, 1 + rng.below(6));
        let rules = Policy { preemption: may, ..*pool.t.cluster.policy() };
        pool.t.cluster = Cluster::restore(rules, 2, pool.t.cluster.records(), Time(0));
        let mut last: BTreeMap<JobId, Time> = BTreeMap::new();
        for _ in 0..90 {
            if rng.below(rare) == 0 {
                let program = ["a", "b", "c"][rng.below(3) as usize];
                let mut spec = train(program, 1 + rng.below(2) as u32, 1 + rng.below(3) as u16);
                match rng.below(5) {
                    0 => spec.roles[0].request.devices[0].model = Some(models[rng.below(3) as usize].into()),
                    1 => spec.roles[0].request.devices[0].model = Some("t4|h200".into()),
                    _ => (),
                }
                if rng.below(8) == 0 {
                    let (model, served_name) = ("a".into(), "".into());
                    spec.roles[0].program = Program::Serve(ServeOptions {
                        model,
                        served_name,
                        max_queue: 1,
                        kv_memory_bytes: None,
                        autoscale: None,
                        precision: "f32".into(),
                    });
                }
                pool.submit(spec);
            }
            let seen = pool.moved.len();
            pool.minute();
            for (at, note) in pool.moved[seen..].iter().cloned() {
                let (job, from, to, sooner_ms, cost_ms) = match note {
                    Note::Moved { job, from, to, sooner_ms, cost_ms } => (job, from, to, sooner_ms, cost_ms),
                    Note::Exchanged { job, from, to, sooner_ms, cost_ms, .. } => {
                        exchanges += 1;
                        (job, from, to, sooner_ms, cost_ms)
                    }
                    _ => continue,
                };
                moves += 1;
                assert!(may, "seed {seed}: {job} moves without preemption");
                let it = pool.t.job(job.0);
                assert!(!it.spec.is_service(), "seed {seed}: {job} is a service");
                assert!(cost_ms <= sooner_ms, "seed {seed}: {job} gains too little");
                assert_ne!(from, to);
                let rounds = rules.rounds;
                let rests = last.insert(job, at).is_none_or(|last| last + rounds <= at);
                assert!(rests, "seed {seed}: {job} moves again");
            }
            for job in pool.t.cluster.jobs().holding() {
                chosen += 1;
                for rank in &job.ranks {
                    let devices = &nodes[rank.node.0 as usize].devices;
                    let want = &job.spec.roles[0].request.devices[0];
                    let accepts = |index: &u16| want.accepts(&devices[usize::from(*index)].class);
                    assert!(rank.devices.iter().all(accepts), "seed {seed}: {} on a wrong class", job.id);
                }
            }
        }
    }
    println!("{moves} moves, {exchanges} of them of pairs");
    assert!(
        20 < moves && 1 < exchanges && 1_000 < chosen,
        "{moves} moves, {exchanges} of pairs, {chosen} placements"
    );
}
