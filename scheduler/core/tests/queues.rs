//! What holds for the order of jobs, in every tree of queues, tried on many.

mod fixture;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::jobs::{Job, Phase};
use aquifer_core::plan::Order;
use aquifer_core::queues::Decay;
use aquifer_core::*;
use fixture::*;

const TREES: u64 = 200;

/// Usage is the same however often it is brought up to date.
#[test]
fn usage_fades_alike_whether_looked_at_often_or_rarely() {
    let mut moved = 0;
    for seed in 0..2_000 {
        let mut rng = Rng(seed);
        let half_life_ms = [1, 7, 1_000, 86_400_000][rng.below(4) as usize];
        let decay = Decay::new(Duration::from_millis(half_life_ms));
        let start = QueueUsage { at: Time(rng.below(1 << 40)), spent: rng.below(1 << 50) };
        let held = rng.below(3) * rng.below(1_000_000);
        let end = Time(start.at.0 + rng.below(1 + 100 * half_life_ms));
        let mut stepped = start;
        let mut at = start.at;
        while at < end {
            at = Time(end.0.min(at.0 + 1 + rng.below(1 + 3 * half_life_ms)));
            stepped = decay.advance(stepped, held, at);
        }
        assert_eq!(stepped, decay.advance(start, held, end), "seed {seed}");
        moved += u32::from(stepped.spent != start.spent);
    }
    assert!(500 < moved, "{moved}");
}

#[test]
fn usage_halves_in_a_half_life_and_settles_at_what_is_held() {
    let day_ms = 86_400_000;
    let decay = Decay::new(Duration::from_millis(day_ms));
    let after =
        |spent, held, days| decay.advance(QueueUsage { at: Time(0), spent }, held, Time(days * day_ms)).spent;
    let whole = 1_000_000_000_000;
    for (days, parts) in [(1, 2), (2, 4), (10, 1024)] {
        assert!(
            after(whole, 0, days).abs_diff(whole / parts) < 100,
            "after {days} days {}",
            after(whole, 0, days)
        );
    }
    assert_eq!(after(whole, 0, 10_000), 0);
    let forgetful = Decay::new(Duration::ZERO);
    let long_ago = QueueUsage { at: Time(0), spent: whole };
    assert_eq!(forgetful.advance(long_ago, 8_000, Time(0)).spent, 0, "of a pool that once remembered");
    // What is held on average, times a half-life over ln 2.
    let (steady, window) = (after(0, 8_000, 100), decay.claim(0, 8_000) as u64);
    assert!(steady.abs_diff(window) < window / 30, "{steady} of {window}");
}

/// A tree of queues, and one node. All jobs want one device.
struct Pool {
    t: Fixture,
    queues: Vec<Name>,
    devices: u64,
}

impl Pool {
    /// * `bounds`: whether queues have guarantees and limits.
    fn any(rng: &mut Rng, bounds: bool) -> Pool {
        let policy = patient([0, 60, 86_400][rng.below(3) as usize]);
        let (t, devices) = (Fixture::with(policy), 1 + rng.below(32));
        let mut pool = Pool { t, queues: Vec::new(), devices };
        for number in 0..1 + rng.below(8) {
            let parent = rng.pick(&pool.queues).cloned().filter(|_| rng.below(3) != 0);
            let mut queue = Queue::new(format!("q{number}").into());
            queue.weight = 1 + rng.below(5) as u32;
            if bounds {
                queue.limit_milli = (rng.below(3) == 0).then(|| 1000 * rng.below(12));
                // At most what its parent is guaranteed and other queues have left, and it may hold.
                let left = match &parent {
                    None => 12_000,
                    Some(parent) => {
                        let others =
                            pool.below(Some(parent)).map(|queue| queue.guaranteed_milli).sum::<u64>();
                        pool.queue(parent).guaranteed_milli - others
                    }
                };
                let most = left.min(queue.limit_milli.unwrap_or(left));
                queue.guaranteed_milli = 1000 * rng.below(1 + most / 1000);
            }
            queue.parent = parent;
            pool.queues.push(queue.name.clone());
            pool.t.tell(Command::SetQueue(queue));
        }
        pool
    }

    fn submit(&mut self, queue: &Name, jobs: u64) {
        let mut spec = spec(1, 1);
        spec.queue = queue.clone();
        spec.array = Some(ArrayRange { first: 1, last: jobs as u32, step: 1 });
        self.t.tell(Command::Submit(Arc::new(spec)));
    }

    /// The node reports for the first time, and all that wait go through one round.
    fn open(&mut self) {
        self.t.node(0, self.devices as u16);
    }

    /// Some of what runs ends, all at once.
    fn end_some(&mut self, rng: &mut Rng) {
        let running: Vec<JobId> = self.t.cluster.jobs().holding().map(|job| job.id).collect();
        for job in running.into_iter().filter(|_| rng.below(2) == 0) {
            self.t.tell(Command::Cancel { job, whole_array: false });
        }
        self.t.obey(0);
    }

    fn queue(&self, name: &Name) -> &Queue {
        self.t.cluster.queues().get(name).expect("a queue")
    }

    fn below(&self, parent: Option<&Name>) -> impl Iterator<Item = &Queue> {
        self.t.cluster.queues().iter().filter(move |queue| queue.parent.as_ref() == parent)
    }

    fn held(&self, queue: &Name) -> u64 {
        self.t.cluster.queues().held_milli(queue) / 1000
    }

    /// Devices that the queue's own jobs hold.
    fn own(&self, name: &Name) -> u64 {
        self.t.cluster.jobs().holding().filter(|job| job.spec.queue == *name).count() as u64
    }

    /// Devices that a queue could use, within the limits below and at it: of its own jobs, and in all.
    fn demand(&self, queue: &Queue) -> u64 {
        let jobs = self.t.cluster.jobs().iter();
        let own = jobs.filter(|job| job.spec.queue == queue.name && !is_done(job)).count() as u64;
        let all = own + self.below(Some(&queue.name)).map(|child| self.demand(child)).sum::<u64>();
        all.min(queue.limit_milli.map_or(u64::MAX, |limit| limit / 1000))
    }
}

/// Of a pool whose node is never lost.
fn patient(half_life_s: u64) -> Policy {
    let (lease, half_life) = (Duration::from_secs(1 << 40), Duration::from_secs(half_life_s));
    Policy { lease, half_life, preemption: false, ..Policy::new(Order::FairShare) }
}

fn is_done(job: &Job) -> bool {
    matches!(job.phase, Phase::Done(_))
}

/// Every start of every round of many random lives is the one that a reckoning from scratch would choose: no limit
/// of an ancestor is passed, nobody is held back while below its guarantee by one who is not, and nobody has used
/// more for its weight than another would have with its next job.
#[test]
fn every_start_is_that_of_the_worst_served_queue() {
    let mut seen = Seen::default();
    for seed in 0..TREES {
        let mut rng = Rng(seed);
        let mut pool = Pool::any(&mut rng, true);
        for round in 0..6 {
            for queue in pool.queues.clone() {
                let jobs = [0, 1, 4, 16][rng.below(4) as usize];
                if 0 < jobs {
                    pool.submit(&queue, jobs);
                    Round::of(&pool).check(&pool, &mut seen);
                }
            }
            match round {
                0 => pool.open(),
                _ => pool.end_some(&mut rng),
            }
            Round::of(&pool).check(&pool, &mut seen);
            pool.t.now = pool.t.now + Duration::from_millis(rng.below(200_000));
        }
    }
    println!("{seen:?}");
    assert!(1_000 < seen.starts && 500 < seen.by_guarantee, "{seen:?}");
    assert!(500 < seen.by_share && 500 < seen.at_limit, "{seen:?}");
}

/// What the starts were chosen from.
#[derive(Debug, Default)]
struct Seen {
    starts: u32,
    /// Pairs of a start and a queue that waits, by what decided between them.
    by_guarantee: u32,
    by_share: u32,
    at_limit: u32,
}

/// The last step's round, from what was before it: what each queue itself holds, has used, and has waiting.
struct Round {
    starts: Vec<Name>,
    own: BTreeMap<Name, Own>,
    /// What one device counts, over the window.
    claim: u128,
}

#[derive(Clone, Copy, Default)]
struct Own {
    held: u64,
    used: u128,
    waiting: u64,
}

impl Round {
    fn of(pool: &Pool) -> Round {
        let cluster = &pool.t.cluster;
        let claim = cluster.queues().decay().claim(0, 1000);
        let mut own: BTreeMap<Name, Own> = BTreeMap::new();
        for of_queue in cluster.queues().claims(pool.t.now) {
            let held = pool.own(&of_queue.queue.name);
            own.insert(of_queue.queue.name.clone(), Own { held, used: of_queue.used, waiting: 0 });
        }
        for job in cluster.jobs().iter().filter(|job| matches!(job.phase, Phase::Pending(_))) {
            own.get_mut(&job.spec.queue).expect("a queue").waiting += 1;
        }
        let placed = |effect: &Effect| match effect {
            Effect::Note(Note::Placed { job, .. }) => Some(pool.t.job(job.0).spec.queue.clone()),
            _ => None,
        };
        let starts: Vec<Name> = pool.t.effects.iter().filter_map(placed).collect();
        for queue in &starts {
            let own = own.get_mut(queue).expect("a queue");
            *own = Own { held: own.held - 1, used: own.used - claim, waiting: own.waiting + 1 };
        }
        Round { starts, own, claim }
    }

    fn check(mut self, pool: &Pool, seen: &mut Seen) {
        for queue in self.starts.clone() {
            assert!(self.may_start(pool, &queue), "{queue} passes a limit: {:?}", pool.t.cluster.queues());
            for other in pool.queues.iter().filter(|other| **other != queue) {
                if self.own[other].waiting == 0 {
                    continue;
                }
                if !self.may_start(pool, other) {
                    seen.at_limit += 1;
                    continue;
                }
                let (mine, theirs) = self.where_they_part(pool, &queue, other);
                assert!(mine <= theirs, "{queue} goes before {other}: {:?}", pool.t.cluster.queues());
                match mine.0 == theirs.0 {
                    true => seen.by_share += u32::from(mine < theirs),
                    false => seen.by_guarantee += 1,
                }
            }
            seen.starts += 1;
            let own = self.own.get_mut(&queue).expect("a queue");
            *own = Own { held: own.held + 1, used: own.used + self.claim, waiting: own.waiting - 1 };
        }
        let held: u64 = self.own.values().map(|own| own.held).sum();
        let could_start = |queue: &&Name| 0 < self.own[*queue].waiting && self.may_start(pool, queue);
        if held < pool.devices && !pool.t.cluster.nodes().is_empty() {
            assert_eq!(
                pool.queues.iter().find(could_start),
                None,
                "{held} of {} devices are held",
                pool.devices
            );
        }
    }

    fn sum<T: std::iter::Sum>(&self, pool: &Pool, queue: &Name, part: impl Fn(&Own) -> T) -> T {
        let within = |name: &&Name| pool.t.cluster.queues().is_within(name, queue);
        self.own.keys().filter(within).map(|name| part(&self.own[name])).sum()
    }

    fn may_start(&self, pool: &Pool, queue: &Name) -> bool {
        let within = |queue: &Queue| {
            let held = self.sum(pool, &queue.name, |own| own.held);
            queue.limit_milli.is_none_or(|limit| 1000 * (held + 1) <= limit)
        };
        pool.t.cluster.queues().line(queue).all(within)
    }

    /// Whether something at or below the queue that could start holds less than is guaranteed.
    fn is_short(&self, pool: &Pool, name: &Name) -> bool {
        let could_start = pool.queues.iter().filter(|queue| {
            pool.t.cluster.queues().is_within(queue, name)
                && 0 < self.own[*queue].waiting
                && self.may_start(pool, queue)
        });
        let short =
            |queue: &Queue| 1000 * self.sum(pool, &queue.name, |own| own.held) < queue.guaranteed_milli;
        let line_to = |queue| {
            pool.t
                .cluster
                .queues()
                .line(queue)
                .take_while(|q| pool.t.cluster.queues().is_within(&q.name, name))
        };
        could_start.into_iter().any(|queue| line_to(queue).any(short))
    }

    /// How well two queues' ancestors are served where their ways from the top part.
    fn where_they_part(&self, pool: &Pool, one: &Name, other: &Name) -> (Standing, Standing) {
        let queues = pool.t.cluster.queues();
        let standing = |from: &Name, away: &Name| {
            let own = queues.line(from).take_while(|queue| !queues.is_within(away, &queue.name)).last();
            match own {
                None => Standing::of(false, self.own[from].used + self.claim, 1),
                Some(queue) => {
                    let used = self.sum(pool, &queue.name, |own| own.used);
                    Standing::of(self.is_short(pool, &queue.name), used + self.claim, queue.weight)
                }
            }
        };
        (standing(one, other), standing(other, one))
    }
}

/// Whether a queue has what is guaranteed; then what it used for its weight. The least goes first.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
struct Standing(bool, u128);

impl Standing {
    fn of(is_short: bool, used: u128, weight: u32) -> Standing {
        // A multiple of all weights: exact.
        Standing(!is_short, used * 60 / u128::from(weight))
    }
}

/// Of jobs that all wait from the start, each queue gets what it is guaranteed, if it wants as much.
#[test]
fn what_is_guaranteed_is_given() {
    let (mut given, mut bounded) = (0, 0);
    for seed in 0..TREES {
        let mut rng = Rng(seed);
        let mut pool = Pool::any(&mut rng, true);
        for queue in pool.queues.clone() {
            let jobs = 1 + rng.below(20);
            pool.submit(&queue, jobs);
        }
        pool.devices =
            pool.below(None).map(|queue| queue.guaranteed_milli / 1000).sum::<u64>() + rng.below(3);
        if pool.devices == 0 {
            continue;
        }
        pool.open();
        for name in &pool.queues {
            let (queue, held) = (pool.queue(name), pool.held(name));
            let due = pool.demand(queue).min(queue.guaranteed_milli / 1000);
            assert!(due <= held, "seed {seed}: {name} holds {held} of {due}");
            (given, bounded) = (given + u32::from(0 < due), bounded + u32::from(held == due && 0 < due));
        }
    }
    assert!(TREES < given.into() && TREES / 4 < bounded.into(), "{given} given, {bounded} no more");
}

/// Where all want more than there is, each gets its share, rounded down to whole jobs, and envies nobody more than one.
#[test]
fn all_that_want_more_get_their_share() {
    let (mut seen, mut exact) = (0, 0);
    for seed in 0..TREES {
        let mut rng = Rng(seed);
        let mut pool = Pool::any(&mut rng, false);
        for queue in pool.queues.clone() {
            pool.submit(&queue, 1 + pool.devices);
        }
        pool.open();
        for parent in pool.queues.iter().map(Some).chain([None]) {
            let own = parent.map(|parent| (pool.own(parent), 1));
            let children = pool.below(parent).filter(|child| *child.name != *"default");
            let children = children.map(|child| (pool.held(&child.name), u64::from(child.weight)));
            let parts: Vec<(u64, u64)> = children.chain(own).collect();
            let (held, weights) = parts.iter().fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
            for one in &parts {
                assert!(held * one.1 / weights <= one.0, "seed {seed}: {one:?} of {held}, weights {weights}");
                for other in &parts {
                    assert!(
                        other.0 * one.1 <= (one.0 + 1) * other.1,
                        "seed {seed}: {one:?} envies {other:?}"
                    );
                }
                (seen, exact) =
                    (seen + u32::from(1 < parts.len()), exact + u32::from(held * one.1 / weights == one.0));
            }
        }
    }
    assert!(1_000 < seen && 500 < exact, "{seen} shares, {exact} just so");
}

/// Devices are left free only where limits or a lack of jobs leave them.
#[test]
fn what_a_queue_cannot_use_flows_on_to_others() {
    let (mut full, mut idle) = (0, 0);
    for seed in 0..TREES {
        let mut rng = Rng(seed);
        let mut pool = Pool::any(&mut rng, true);
        for queue in pool.queues.clone() {
            let jobs = 1 + rng.below(12);
            pool.submit(&queue, jobs);
        }
        pool.open();
        let held: u64 = pool.below(None).map(|queue| pool.held(&queue.name)).sum();
        let demand: u64 = pool.below(None).map(|queue| pool.demand(queue)).sum();
        assert_eq!(held, demand.min(pool.devices), "seed {seed}: of {demand} wanted");
        (full, idle) = (full + u32::from(pool.devices < demand), idle + u32::from(demand < pool.devices));
    }
    assert!(50 < full && 50 < idle, "{full} full, {idle} not");
}

/// In the long run queues that always want more have used in the ratio of their weights, whoever began.
#[test]
fn what_queues_have_used_comes_to_the_ratio_of_their_weights() {
    let half_life = Duration::from_secs(3_600);
    for seed in 0..4 {
        let mut rng = Rng(seed);
        let policy = patient(half_life.as_secs());
        let mut pool = Pool { t: Fixture::with(policy), queues: Vec::new(), devices: 7 };
        for (name, weight) in [("a", 1), ("b", 2), ("c", 4)] {
            pool.t.tell(Command::SetQueue(Queue { weight, ..Queue::new(name.into()) }));
            pool.queues.push(name.into());
        }
        pool.open();
        // One has everything for two half-lives; then all want it.
        let first = rng.below(3) as usize;
        pool.submit(&pool.queues[first].clone(), 7);
        pool.t.pass(2 * half_life);
        pool.queues.clone().iter().for_each(|queue| pool.submit(queue, 320));
        for _ in 0..4 * 16 {
            pool.t.pass(half_life / 16);
            pool.end_some(&mut rng);
        }
        let overview = pool.t.cluster.queues().overview(pool.t.now);
        let spent: BTreeMap<&str, u64> = overview.iter().map(|row| (&*row.queue.name, row.spent)).collect();
        let part = spent["c"] / 4;
        for (name, weight) in [("a", 1), ("b", 2)] {
            assert!((spent[name] / weight).abs_diff(part) < part / 10, "seed {seed}: {spent:?}");
        }
    }
}

/// A job goes before every later one that has not so much more priority: `(its priority - mine) * ageing` after it
/// was submitted, no stream of jobs, however urgent, gets past it, unless by stopping what runs.
#[test]
fn no_job_waits_behind_an_endless_stream_of_more_urgent_ones() {
    let (mut passed, mut held) = (0, 0);
    for seed in 0..100 {
        let mut rng = Rng(seed);
        let ageing = Duration::from_secs(1 + rng.below(100));
        let policy = Policy { ageing, preemption: false, ..Policy::new(Order::FairShare) };
        let mut t = Fixture::with(policy);
        t.node(0, 1);
        for _ in 0..60 {
            let mut spec = spec(1, 1);
            spec.priority = rng.below(10) as i32;
            t.tell(Command::Submit(Arc::new(spec)));
            t.now = t.now + Duration::from_secs(1 + rng.below(40));
            if rng.below(3) != 0 {
                // What runs ends, and the next one starts.
                t.all(0, WorkerState::Exited(Exit::Code(0)));
            }
        }
        let jobs: Vec<Job> = t.cluster.jobs().iter().cloned().collect();
        for (job, later) in
            jobs.iter().flat_map(|job| jobs[job.id.0 as usize..].iter().map(move |later| (job, later)))
        {
            let Some(placed) = later.placed else { continue };
            if job.placed.is_some_and(|mine| mine < placed) {
                held += u32::from(job.spec.priority < later.spec.priority);
                continue;
            }
            let more = later.spec.priority - job.spec.priority;
            let bound = job.submitted + ageing * more.max(0) as u32;
            assert!(0 < more && later.submitted < bound, "seed {seed}: {} passes {}", later.id, job.id);
            passed += 1;
        }
    }
    assert!(1_000 < passed && 1_000 < held, "{passed} passed, {held} held");
}

/// Whatever is asked for in whatever order: what is refused changes nothing, and what is accepted is a tree in which
/// guarantees can be kept; and a cluster restored from the store is the same.
#[test]
fn queues_stay_a_tree_in_which_guarantees_can_be_kept() {
    let mut answers: BTreeMap<&str, u32> = BTreeMap::new();
    for seed in 0..TREES {
        let mut rng = Rng(seed);
        let mut pool = Pool::any(&mut rng, true);
        pool.open();
        for _ in 0..20 {
            pool.t.now = pool.t.now + Duration::from_millis(rng.below(1_000_000));
            let name = rng.pick(&pool.queues).expect("a queue").clone();
            let unknown = Name::from("q8");
            let queue = Queue {
                parent: rng
                    .pick(&pool.queues)
                    .filter(|_| rng.below(2) == 0)
                    .cloned()
                    .or((rng.below(20) == 0).then_some(unknown)),
                weight: rng.below(10) as u32,
                guaranteed_milli: 1000 * rng.below(6),
                limit_milli: (rng.below(2) == 0).then(|| 1000 * rng.below(12)),
                ..pool.queue(&name).clone()
            };
            pool.submit(&name, 1);
            let before = pool.t.cluster.records();
            let answer = match pool.t.ask(Command::SetQueue(queue)).0 {
                Ok(_) => "set",
                Err(Refusal::Queue(error)) => {
                    assert_eq!(pool.t.cluster.records(), before, "seed {seed}: {error}");
                    match error {
                        QueueError::NoWeight => "weight",
                        QueueError::NoParent(_) => "parent",
                        QueueError::Cycle(_) => "cycle",
                        QueueError::AboveLimit { .. } => "limit",
                        QueueError::AboveParent { .. } => "above",
                        QueueError::BelowChildren { .. } => "below",
                    }
                }
                Err(refusal) => panic!("seed {seed}: {refusal}"),
            };
            *answers.entry(answer).or_default() += 1;
            for queue in pool.t.cluster.queues().iter() {
                let children = pool.below(Some(&queue.name)).map(|child| child.guaranteed_milli).sum();
                assert!(
                    queue.guaranteed_milli <= queue.limit_milli.unwrap_or(u64::MAX),
                    "seed {seed}: {queue:?}"
                );
                assert!(queue.guaranteed_milli >= children, "seed {seed}: {queue:?}");
                assert!(pool.t.cluster.queues().line(&queue.name).count() <= 9, "seed {seed}: a cycle");
            }
        }
        pool.end_some(&mut rng);
        let restored = Cluster::restore(*pool.t.cluster.policy(), 2, pool.t.cluster.records(), pool.t.now);
        restored.check();
        assert_eq!(restored.records(), pool.t.cluster.records(), "seed {seed}");
        let later = pool.t.now + Duration::from_secs(1_000);
        assert_eq!(restored.queues().overview(later), pool.t.cluster.queues().overview(later), "seed {seed}");
    }
    println!("{answers:?}");
    assert_eq!(answers.len(), 7, "{answers:?}");
}

/// An hour of a device counts by its speed, as it was when the job was placed.
#[test]
fn usage_is_of_reference_devices() {
    let mut t = Fixture::new();
    let at_speed = |speed_milli| {
        let mut inventory = inventory(2, 64, 512);
        inventory.devices.iter_mut().for_each(|device| device.speed_milli = speed_milli);
        inventory
    };
    t.report(0, at_speed(2_500), Vec::new());
    t.submit(1, 2);
    t.now = Time(1_000);
    let running = vec![WorkerReport {
        id: WorkerId { job: JobId(1), attempt: 1, rank: 0 },
        state: WorkerState::Running,
        checkpoint_age_ms: None,
        progress: None,
        load: None,
    }];
    t.report(0, at_speed(100), running);
    let used = t.cluster.queues().overview(t.now)[0];
    assert_eq!((used.held_milli, used.spent), (2_000, 5_000 * 1_000));
}

#[test]
fn a_queue_takes_jobs_of_its_users_or_of_those_of_the_queue_above_and_keeps_what_it_has() {
    let mut t = Fixture::new();
    t.node(0, 1);
    let set = |name: &str, parent: &str, users: &[&str]| {
        let parent = (!parent.is_empty()).then(|| parent.into());
        let users = users.iter().map(|user| (*user).into()).collect();
        Command::SetQueue(Queue { parent, users, ..Queue::new(name.into()) })
    };
    let job = |queue: &str, user: &str| {
        let spec = JobSpec { queue: queue.into(), user: user.into(), ..spec(1, 1) };
        Command::Submit(Arc::new(spec))
    };
    t.tell(set("research", "", &["ada", "ben"]));
    t.tell(set("vision", "research", &[]));
    t.tell(set("speech", "vision", &["carl"]));
    for (queue, user, refused) in [
        ("default", "carl", None),
        ("research", "ada", None),
        ("research", "carl", Some(r#"queue "research" takes no jobs of "carl", but of ada, ben"#)),
        ("vision", "ben", None),
        ("vision", "carl", Some(r#"queue "vision" takes no jobs of "carl", but of ada, ben"#)),
        ("speech", "carl", None),
        ("speech", "ada", Some(r#"queue "speech" takes no jobs of "ada", but of carl"#)),
    ] {
        let said = t.ask(job(queue, user)).0.err().map(|refusal| refusal.to_string());
        assert_eq!(said.as_deref(), refused, "{user} in {queue}");
    }
    assert_eq!(t.cluster.jobs().len(), 4);
    // A job stays when its user is taken off.
    let of_ben = 3;
    t.tell(set("research", "", &["ada"]));
    assert!(t.ask(job("vision", "ben")).0.is_err());
    assert!(matches!(t.job(of_ben).phase, Phase::Pending(_)));
    t.tell(set("research", "", &[]));
    t.tell(job("vision", "ben"));
}
