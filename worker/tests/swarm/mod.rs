//! The simulated world: processes, a network, a scheduler that replaces who dies, a disk.

mod faults;
pub mod stalls;
mod trouble;

use aquifer_worker::elastic::{
    Action, Computed, Event, Identity, Link, Member, Message, Node, Outcome, PROTOCOL, Rank, Settings,
    Snapshot,
};
use aquifer_worker::random::Random;
use aquifer_worker::shards::{Partial, ShardSum};
use faults::Faults;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// How often each case occurred.
pub type Seen = BTreeMap<&'static str, u64>;

/// Virtual time after which nothing goes wrong any more, and by which all must have ended.
const TROUBLE: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(600);
/// By when only one leads after that.
const SETTLED: Duration = Duration::from_secs(60);

/// A process: what its engine and its network hold.
struct Process {
    node: Node,
    /// The state of the engine, and orders that it has not carried out.
    state: Option<(u64, [f32; 2])>,
    engine_free: Duration,
    speed: f64,
    /// Until when it is stopped.
    hangs: Option<Duration>,
    /// What happened meanwhile.
    missed: Vec<(Dialing, Event)>,
    dial: u64,
    /// The step that it last got shards of.
    works_at: Option<u64>,
}

/// The number of the try that an event of dialing belongs to.
type Dialing = Option<u64>;

/// One end of a connection.
#[derive(Clone, Copy)]
struct Open {
    owner: Rank,
    other: Link,
    /// When the last message to it arrives: they keep their order.
    arrives: Duration,
}

enum Happens {
    /// A process is told, unless the connection is gone by then.
    Event(Rank, Dialing, Event),
    Dial(Rank, u64, Rank),
    Wake(Rank),
    /// The scheduler's list reaches a process.
    Listed(Rank, usize),
    /// The scheduler replaces a process.
    Replace(Rank),
    Start(Rank),
    Trouble,
    Tick,
}

struct World {
    random: Random,
    now: Duration,
    queue: BTreeMap<(Duration, u64), Happens>,
    number: u64,
    processes: BTreeMap<Rank, Process>,
    links: BTreeMap<Link, Open>,
    next_link: Link,
    next_rank: Rank,
    lists: Vec<Vec<Member>>,
    /// The newest checkpoint: its step.
    disk: Option<u64>,
    settings: Settings,
    /// Members have different kernels.
    is_mixed: bool,
    faults: Faults,
    done: BTreeSet<Rank>,
    tells: bool,
    /// When somebody first had the state of a step.
    applied: BTreeMap<u64, Duration>,
    tick: Duration,
    /// Of all members, where they are alike.
    speed: Option<f64>,
}

/// The gradient of a shard, with its loss behind it.
fn gradient(state: [f32; 2], step: u64, shard: usize) -> Vec<f32> {
    let noise = Random::new(step * 1000 + shard as u64).normals(2);
    vec![state[0] * 0.1 + noise[0], state[1] * noise[1] + state[0], noise[0] * noise[1]]
}

fn update(state: [f32; 2], total: &[f32]) -> [f32; 2] {
    [state[0] - 0.01 * total[0], state[1] * 0.9 - 0.02 * total[1] + 1e-3 * total[2]]
}

/// The state of every step, as one process alone has it.
fn reference(shards: usize, steps: u64) -> Vec<[f32; 2]> {
    let mut states = vec![[1.0, -1.0]];
    for step in 0..steps {
        let state = states[step as usize];
        let mut sum = ShardSum::default();
        (0..shards).for_each(|start| {
            sum.insert(Partial { start, size: 1, values: Arc::new(gradient(state, step, start).into()) });
        });
        states.push(update(state, sum.total(shards).host().unwrap()));
    }
    states
}

/// Runs one seed; panics with it where a promise is broken.
pub fn run(seed: u64, tells: bool, seen: &mut Seen) {
    let mut random = Random::new(seed);
    let mut pick = |from: u64, to: u64| from + random.bits() % (to - from + 1);
    let (shards, steps, members) = (pick(1, 24) as usize, pick(3, 600), pick(1, 6) as Rank);
    let (checkpoint_every, lanes, spares) = (pick(1, 9), pick(1, 3) as usize, pick(0, 2) as usize);
    let is_mixed = pick(0, 3) == 0;
    let (faults, audit) = Faults::draw(&mut random, shards, steps);
    let checkpoint_every = Some(checkpoint_every);
    let settings = Settings { checkpoint_every, lanes, spares, audit, ..settings(seed, shards, steps) };
    let states = reference(shards, steps);
    let mut world = World::new(random, settings, members);
    (world.is_mixed, world.faults, world.tells) = (is_mixed, faults, tells);
    (0..members).for_each(|rank| world.within(500, Happens::Start(rank)));
    world.within(0, Happens::Tick);
    world.within(3_000, Happens::Trouble);
    while let Some(((at, _), happens)) = world.queue.pop_first() {
        world.now = at;
        assert!(at < END, "seed {seed}: it has not ended at {at:?}; {}", world.describe());
        world.happen(happens, &states, seen, seed);
        if world.faults.has_diverged {
            // What is on disk is from before, as every state is.
            return;
        }
        // Who hangs for good may be left behind.
        let hangs = |it: &Member| world.processes.get(&it.rank).is_some_and(|it| it.hangs.is_some());
        if !world.done.is_empty() && world.lists.last().is_some_and(|list| list.iter().all(hangs)) {
            break;
        }
    }
    assert!(!world.faults.is_fatal(), "seed {seed}: the model diverged, and nobody said so");
    assert!(!world.done.is_empty(), "seed {seed}: nobody has come to the end");
    assert_eq!(world.disk, Some(steps), "seed {seed}: the last checkpoint");
}

fn settings(seed: u64, shards: usize, steps: u64) -> Settings {
    Settings {
        identity: Identity {
            protocol: PROTOCOL.into(),
            job: "job".into(),
            attempt: 1,
            rank: 0,
            agreement: vec![("--seed".into(), seed.to_string())],
            kernels: String::new(),
            cards: None,
        },
        shards,
        steps,
        checkpoint_every: Some(steps),
        lanes: 1,
        spares: 1,
        audit: None,
        is_fixed: false,
        join: Duration::from_secs(60),
        peer: Duration::from_secs(60),
    }
}

fn member(rank: Rank) -> Member {
    Member { rank, address: format!("host-{rank}") }
}

impl World {
    fn new(random: Random, settings: Settings, members: Rank) -> World {
        World {
            random,
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            number: 0,
            processes: BTreeMap::new(),
            links: BTreeMap::new(),
            next_link: 1,
            next_rank: members,
            lists: vec![(0..members).map(member).collect()],
            disk: None,
            settings,
            is_mixed: false,
            faults: Faults::default(),
            done: BTreeSet::new(),
            tells: false,
            applied: BTreeMap::new(),
            tick: Duration::from_millis(20),
            speed: None,
        }
    }

    fn within(&mut self, most_ms: u64, happens: Happens) {
        let wait = if most_ms == 0 { 0 } else { self.random.bits() % most_ms * 1000 };
        self.at(self.now + Duration::from_micros(wait), happens);
    }

    fn at(&mut self, at: Duration, happens: Happens) {
        self.number += 1;
        self.queue.insert((at, self.number), happens);
    }

    fn say(&self, text: impl Fn() -> String) {
        if self.tells {
            println!("{:>9.3} {}", self.now.as_secs_f64(), text());
        }
    }

    fn describe(&self) -> String {
        let nodes: Vec<_> = self
            .processes
            .iter()
            .map(|(rank, it)| format!("{rank}: step {:?} leads {}", it.node.step(), it.node.leads()))
            .collect();
        format!("list {:?}, {nodes:?}", self.lists.last())
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.random.bits().is_multiple_of(one_in)
    }

    fn happen(&mut self, happens: Happens, states: &[[f32; 2]], seen: &mut Seen, seed: u64) {
        match happens {
            Happens::Event(rank, dialing, event) => self.event(rank, dialing, event, states, seen, seed),
            Happens::Dial(from, number, to) => self.dial(from, number, to),
            Happens::Wake(rank) => {
                let Some(process) = self.processes.get_mut(&rank) else { return };
                if process.hangs.is_none_or(|until| self.now < until) {
                    return;
                }
                process.hangs = None;
                *seen.entry("one that hung wakes up").or_default() += 1;
                let missed = std::mem::take(&mut process.missed);
                self.say(|| format!("{rank} wakes up to {} events", missed.len()));
                for (dialing, event) in missed {
                    self.event(rank, dialing, event, states, seen, seed);
                }
            }
            Happens::Listed(rank, list) => {
                let members = self.lists[list].clone();
                self.event(rank, None, Event::Members(members), states, seen, seed);
            }
            Happens::Replace(rank) => self.replace(rank),
            Happens::Start(rank) => {
                let (mut settings, speed) = (self.settings.clone(), 0.5 + 2.0 * self.random.unit());
                let speed = self.speed.unwrap_or(speed);
                settings.identity.rank = rank;
                if self.is_mixed {
                    settings.identity.kernels = ["avx2", "avx512"][rank as usize % 2].into();
                }
                if self.speed.is_none() {
                    self.start_device(rank);
                }
                let process = Process {
                    node: Node::new(settings),
                    state: None,
                    engine_free: self.now,
                    speed,
                    hangs: None,
                    missed: Vec::new(),
                    dial: 0,
                    works_at: None,
                };
                self.processes.insert(rank, process);
                self.say(|| format!("{rank} starts"));
                let list = self.lists.len() - 1;
                self.happen(Happens::Listed(rank, list), states, seen, seed);
            }
            Happens::Trouble => {
                if self.now < TROUBLE {
                    self.trouble(seen);
                    self.within(3_000, Happens::Trouble);
                }
            }
            Happens::Tick => {
                if TROUBLE + SETTLED < self.now {
                    let leads = |it: &&Process| it.hangs.is_none() && it.node.leads();
                    let leaders = self.processes.values().filter(leads).count();
                    assert!(leaders <= 1, "seed {seed}: {leaders} lead; {}", self.describe());
                }
                let ranks: Vec<Rank> = self.processes.keys().copied().collect();
                for rank in ranks {
                    if self.processes.get(&rank).is_some_and(|it| it.hangs.is_none()) {
                        self.event(rank, None, Event::Tick, states, seen, seed);
                    }
                }
                self.at(self.now + self.tick, Happens::Tick);
            }
        }
    }

    fn join(&mut self) {
        let rank = self.next_rank;
        self.next_rank += 1;
        let mut list = self.lists.last().expect("one").clone();
        list.push(member(rank));
        self.publish(list);
        self.within(300, Happens::Start(rank));
    }

    /// Tells all of a new list, each some time later.
    fn publish(&mut self, list: Vec<Member>) {
        self.lists.push(list);
        let (newest, ranks) = (self.lists.len() - 1, self.processes.keys().copied().collect::<Vec<_>>());
        for rank in ranks {
            self.within(400, Happens::Listed(rank, newest));
        }
    }

    fn kill(&mut self, rank: Rank) {
        self.say(|| format!("{rank} dies"));
        self.remove(rank);
        self.within(1_500, Happens::Replace(rank));
    }

    fn hang(&mut self, rank: Rank, wait: Duration) {
        let until = self.now + wait;
        self.say(|| format!("{rank} hangs until {until:?}"));
        self.processes.get_mut(&rank).expect("it is there").hangs = Some(until);
        self.at(until, Happens::Wake(rank));
    }

    /// A process is gone: the others see its connections end.
    fn remove(&mut self, rank: Rank) {
        self.processes.remove(&rank);
        let links: Vec<Link> =
            self.links.iter().filter(|(_, open)| open.owner == rank).map(|it| *it.0).collect();
        links.into_iter().for_each(|link| self.cut(link, false));
    }

    fn replace(&mut self, rank: Rank) {
        let mut list = self.lists.last().expect("one").clone();
        if list.iter().any(|it| it.rank == rank) {
            list.retain(|it| it.rank != rank);
            self.lists.push(list);
            self.join();
        }
    }

    /// Ends a connection; the other end hears of it after all that was sent, and this one only if it did not do so itself.
    fn cut(&mut self, link: Link, tells_owner: bool) {
        let Some(open) = self.links.remove(&link) else { return };
        let closed = |link| Event::Closed(link, "connection closed".into());
        if tells_owner {
            self.at(self.now, Happens::Event(open.owner, None, closed(link)));
        }
        if let Some(other) = self.links.get(&open.other).copied() {
            let at = other.arrives.max(self.now) + Duration::from_micros(1);
            self.at(at, Happens::Event(other.owner, None, closed(open.other)));
        }
    }

    fn dial(&mut self, from: Rank, number: u64, to: Rank) {
        if !self.processes.contains_key(&from) {
            return;
        }
        if !self.processes.contains_key(&to) {
            let event = Event::NotDialed("connection refused".into());
            return self.within(5, Happens::Event(from, Some(number), event));
        }
        let (own, other) = (self.next_link, self.next_link + 1);
        self.next_link += 2;
        self.links.insert(own, Open { owner: from, other, arrives: self.now });
        self.links.insert(other, Open { owner: to, other: own, arrives: self.now });
        self.at(self.now, Happens::Event(to, None, Event::Accepted(other)));
        self.at(self.now, Happens::Event(from, Some(number), Event::Dialed(own)));
    }

    fn event(
        &mut self,
        rank: Rank,
        dialing: Dialing,
        event: Event,
        states: &[[f32; 2]],
        seen: &mut Seen,
        seed: u64,
    ) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&rank) else { return };
        if process.hangs.is_some() {
            if !matches!(event, Event::Tick) {
                process.missed.push((dialing, event));
            }
            return;
        }
        if dialing.is_some_and(|number| number != process.dial) {
            if let Event::Dialed(link) = event {
                self.cut(link, false);
            }
            return;
        }
        match &event {
            Event::Got(link, _) if !self.links.contains_key(link) => return,
            Event::Closed(link, _) => _ = self.links.remove(link),
            Event::Got(_, Message::Commit { .. }) if process.node.leads() => {
                *seen.entry("a leader is sent a sum that it lacks").or_default() += 1;
            }
            Event::Got(_, Message::Trimmed { .. }) => {
                *seen.entry("a shard is left to another one").or_default() += 1;
            }
            _ => (),
        }
        let process = self.processes.get_mut(&rank).expect("just seen");
        if let Event::Got(_, Message::Work { turn, .. }) = &event {
            let again = process.works_at.replace(turn.step) == Some(turn.step);
            *seen.entry("a stand-in gives a shard").or_default() += u64::from(again);
            let list = self.lists.last().expect("one");
            let mut spares = list.iter().rev().take(self.settings.spares);
            let steps_in = spares.any(|member| member.rank == rank);
            *seen.entry("a spare steps in").or_default() += u64::from(steps_in);
        }
        if self.tells && !matches!(event, Event::Tick | Event::Got(_, Message::Ping(_) | Message::Pong)) {
            println!("{:>9.3} {rank} <- {event:?}", now.as_secs_f64());
        }
        for action in process.node.handle(now, event) {
            if self.tells && !matches!(action, Action::Send(_, Message::Ping(_) | Message::Pong)) {
                println!("{:>9.3} {rank} -> {action:?}", now.as_secs_f64());
            }
            self.act(rank, action, states, seen, seed);
        }
    }

    fn send(&mut self, link: Link, message: Message) {
        let Some(open) = self.links.get(&link).copied() else { return };
        let Some(other) = self.links.get_mut(&open.other) else { return };
        let slow = if matches!(message, Message::State(_)) { 800_000 } else { 2_000 };
        let wait = Duration::from_micros(50 + self.random.bits() % slow);
        other.arrives = other.arrives.max(self.now + wait) + Duration::from_nanos(1);
        let (at, owner) = (other.arrives, other.owner);
        self.at(at, Happens::Event(owner, None, Event::Got(open.other, message)));
    }

    /// The sums of shards, if the engine has the state that they are to be computed with.
    fn compute(&mut self, rank: Rank, step: u64, shards: Range<usize>, seen: &mut Seen) -> Vec<Computed> {
        let (own, state) = self.processes[&rank].state.expect("it has one to compute with");
        let mut compute = |start| {
            let values = self.on_device(rank, step, start, gradient(state, step, start), seen);
            Computed::new(start, values.into())
        };
        if own == step { shards.map(&mut compute).collect() } else { Vec::new() }
    }

    /// Orders to the engine take their time one after the other; what they do is decided when they are given.
    fn act(&mut self, rank: Rank, action: Action, states: &[[f32; 2]], seen: &mut Seen, seed: u64) {
        let now = self.now;
        let sums = match &action {
            Action::Compute { step, shards } => self.compute(rank, *step, shards.clone(), seen),
            _ => Vec::new(),
        };
        let process = self.processes.get_mut(&rank).expect("it has just decided");
        let free = process.engine_free.max(now);
        let mut after = |wait_us: u64, event| {
            process.engine_free = free + Duration::from_micros(wait_us);
            let at = process.engine_free;
            self.number += 1;
            self.queue.insert((at, self.number), Happens::Event(rank, None, event));
        };
        match action {
            Action::Dial(to) => {
                process.dial += 1;
                let number = process.dial;
                self.within(3, Happens::Dial(rank, number, to));
            }
            Action::Close(link) => self.cut(link, false),
            Action::Send(link, message) => self.send(link, message),
            Action::SendState(link) => {
                let (step, state) = process.state.expect("it has one to send");
                let snapshot = Snapshot { step, record: String::new(), values: vec![state.to_vec()] };
                self.send(link, Message::State(Box::new(snapshot)));
            }
            Action::Load => {
                let step = self.disk.unwrap_or(0);
                after(200_000, Event::Ready(step));
                process.state = Some((step, states[step as usize]));
                if let Some(step) = self.disk {
                    self.at(now, Happens::Event(rank, None, Event::Saved(step)));
                }
            }
            Action::Install(snapshot) => {
                let values = &snapshot.values[0];
                process.state = Some((snapshot.step, [values[0], values[1]]));
                after(20_000, Event::Ready(snapshot.step));
            }
            Action::Apply { step, total, .. } => {
                let (own, state) = process.state.expect("it has one to update");
                assert_eq!(own + 1, step, "seed {seed}: rank {rank} leaves a step out");
                let state = update(state, total.host().unwrap());
                let expected = states[step as usize];
                assert_eq!(state, expected, "seed {seed}: rank {rank} has another state at step {step}");
                process.state = Some((step, state));
                process.engine_free = free + Duration::from_millis(1);
                self.applied.entry(step).or_insert(now);
            }
            Action::Compute { step, .. } => {
                let each = 20_000.0 / process.speed;
                let took = each as u64 + self.random.bits() % 3_000;
                after(took, Event::Computed(step, sums, Duration::from_micros(took)));
            }
            Action::Save(step) => {
                let (own, _) = process.state.expect("it has one to save");
                assert_eq!(own, step, "seed {seed}: rank {rank} saves another step");
                self.disk = self.disk.max(Some(step));
                let wait = Duration::from_micros(self.random.bits() % 50_000);
                self.at(now + wait, Happens::Event(rank, None, Event::Saved(step)));
            }
            Action::Say(text) | Action::Wait(text) => self.told(&text, seen, seed),
            Action::Exit(outcome) => {
                self.say(|| format!("{rank} exits: {outcome:?}"));
                self.remove(rank);
                match outcome {
                    Outcome::Done => {
                        self.done.insert(rank);
                        let mut list = self.lists.last().expect("one").clone();
                        list.retain(|it| it.rank != rank);
                        self.publish(list);
                    }
                    Outcome::Stopped => (),
                    Outcome::Failed(reason) => {
                        self.failed(&reason, seen, seed);
                        self.within(500, Happens::Replace(rank));
                    }
                }
            }
        }
    }
}
