//! Gangs that fail twice alike have their nodes probed in pairs: who is bad is cordoned, and nobody else, whatever is lost, in use
//! or restarted meanwhile.

mod fixture;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::agent::{Action, Message, NodeAgent};
use aquifer_core::inquiry::EXIT_SILENCE;
use aquifer_core::jobs::Phase;
use aquifer_core::plan::Order;
use aquifer_core::*;
use fixture::{Rng, inventory, spec};

const LEASE: Duration = Duration::from_secs(10);

/// A scheduler and agents, without a network between them but for messages that get lost.
struct Pool {
    cluster: Cluster,
    now: Time,
    rng: Rng,
    agents: Vec<NodeAgent>,
    bad: BTreeSet<usize>,
    /// Of a hundred messages, so many are lost.
    lost: u64,
    /// Probes that are made: on which nodes they have begun, for how many more turns they last, and since when.
    probes: BTreeMap<Revision, (BTreeSet<usize>, u64, Time)>,
    /// Machines that are off.
    off: BTreeSet<usize>,
    notes: Vec<Note>,
    /// How long ago each worker was launched, in turns.
    workers: BTreeMap<(usize, WorkerId), u32>,
    /// How the workers of a job end.
    ends: BTreeMap<JobId, Exit>,
    made: usize,
    requests: u64,
}

impl Pool {
    fn new(seed: u64, nodes: usize, bad: BTreeSet<usize>, lost: u64) -> Pool {
        let policy = Policy { lease: LEASE, ..Policy::new(Order::FairShare) };
        let agent = |at: usize| {
            let inventory = Arc::new(inventory(8, 64, 512));
            let (none, kept) = (BTreeMap::new(), BTreeSet::new());
            NodeAgent::new(format!("n{at}").into(), inventory, 1, none, kept, Time(0))
        };
        let mut agents: Vec<NodeAgent> = (0..nodes).map(agent).collect();
        agents.iter_mut().for_each(|agent| agent.on_session(policy.granted_lease()));
        let mut pool = Pool {
            cluster: Cluster::restore(policy, 1, [], Time(0)),
            now: Time(0),
            rng: Rng(seed),
            agents,
            bad,
            lost,
            probes: BTreeMap::new(),
            off: BTreeSet::new(),
            notes: Vec::new(),
            workers: BTreeMap::new(),
            ends: BTreeMap::new(),
            made: 0,
            requests: 0,
        };
        (0..nodes).for_each(|at| pool.speak(at, false));
        pool
    }

    fn step(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.cluster.step(self.now, event, &mut effects);
        for effect in effects {
            let at = |id: NodeId| id.0 as usize;
            let is_lost = self.rng.below(100) < self.lost;
            match effect {
                Effect::Assign { node, acked, assignment } if !is_lost => {
                    let actions = self.agents[at(node)].on_assignment(self.now, acked, assignment);
                    actions.into_iter().for_each(|action| self.act(at(node), action));
                }
                Effect::Renew { node, acked } if !is_lost => self.agents[at(node)].on_renew(acked),
                Effect::AskReport(node) if !is_lost => self.agents[at(node)].on_ask_report(),
                Effect::Note(note) => self.notes.push(note),
                _ => (),
            }
        }
    }

    fn tell(&mut self, command: Command) {
        self.requests += 1;
        self.step(Event::Request { id: self.requests, command });
    }

    fn act(&mut self, at: usize, action: Action) {
        match action {
            Action::Probe(order) => {
                assert!(self.workers.keys().all(|(node, _)| *node != at), "a probe beside a worker");
                let turns = 1 + self.rng.below(3);
                self.probes.entry(order.id).or_insert((BTreeSet::new(), turns, self.now)).0.insert(at);
                self.made += 1;
            }
            Action::Launch(worker, _) => _ = self.workers.insert((at, worker), 0),
            Action::Stop { worker, .. } => {
                self.workers.remove(&(at, worker));
                self.agents[at].on_worker(worker, WorkerState::Exited(Exit::Signal(15)));
            }
            Action::Forget(worker) => _ = self.workers.remove(&(at, worker)),
            Action::EndProbe => self.leave_probe(at),
            Action::Tell(_) => (),
        }
    }

    /// A node ends its part of a probe, in whatever way. The others see that it is gone.
    fn leave_probe(&mut self, at: usize) {
        for (id, (nodes, ..)) in &mut self.probes {
            if nodes.remove(&at) {
                let gone = || ProbeState::Failed("it left".into());
                nodes.iter().for_each(|other| self.agents[*other].on_probe(*id, gone()));
            }
        }
    }

    fn speak(&mut self, at: usize, is_lost: bool) {
        let node = self.cluster.nodes().by_name(&format!("n{at}"));
        match self.agents[at].message(self.now) {
            _ if is_lost => (),
            Message::Report(report) => self.step(Event::Report(report)),
            Message::Heartbeat { boot, seq, same_as } => {
                self.step(Event::Heartbeat { node: node.expect("a node"), boot, seq, same_as });
            }
        }
    }

    /// A second passes.
    fn turn(&mut self) {
        self.now = self.now + Duration::from_secs(1);
        for ((at, worker), age) in &mut self.workers {
            *age += 1;
            let state = match (*age, self.ends.get(&worker.job)) {
                (1, _) => WorkerState::Running,
                (3, Some(exit)) => WorkerState::Exited(exit.clone()),
                _ => continue,
            };
            self.agents[*at].on_worker(*worker, state);
        }
        self.workers.retain(|(_, worker), age| *age < 3 || !self.ends.contains_key(&worker.job));
        for (id, (nodes, turns, since)) in &mut self.probes {
            let ranks = nodes.iter().find_map(|at| Some(self.agents[*at].probe()?.ranks)).unwrap_or(0);
            if nodes.len() < ranks as usize {
                if *since + Duration::from_secs(20) <= self.now {
                    let alone = || ProbeState::Failed("the others did not come".into());
                    nodes.iter().for_each(|at| self.agents[*at].on_probe(*id, alone()));
                    *turns = 0;
                }
                continue;
            }
            *turns = turns.saturating_sub(1);
            if *turns == 0 {
                let is_bad = nodes.iter().any(|at| self.bad.contains(at));
                let how = if is_bad { ProbeState::Failed("it hangs".into()) } else { ProbeState::Passed };
                nodes.iter().for_each(|at| self.agents[*at].on_probe(*id, how.clone()));
            }
        }
        self.probes.retain(|_, (nodes, turns, _)| *turns != 0 && !nodes.is_empty());
        for at in (0..self.agents.len()).filter(|at| !self.off.contains(at)).collect::<Vec<usize>>() {
            let actions = self.agents[at].on_tick(self.now);
            actions.into_iter().for_each(|action| self.act(at, action));
            let is_lost = self.rng.below(100) < self.lost;
            self.speak(at, is_lost);
        }
        self.step(Event::Tick);
        self.cluster.check();
    }

    /// A machine is off for as long as it likes.
    fn power_off(&mut self, at: usize) {
        self.leave_probe(at);
        self.workers.retain(|(node, _), _| *node != at);
        self.off.insert(at);
    }

    /// A machine is there again, or its agent has lost its memory: nothing runs on it.
    fn restart(&mut self, at: usize) {
        self.leave_probe(at);
        self.off.remove(&at);
        let inventory = self.cluster.nodes().get(NodeId(at as u32)).inventory.clone();
        let boot = self.agents[at].boot() + 1;
        let (none, kept) = (BTreeMap::new(), BTreeSet::new());
        let mut agent = NodeAgent::new(format!("n{at}").into(), inventory, boot, none, kept, Time(0));
        agent.on_session(self.cluster.policy().granted_lease());
        self.agents[at] = agent;
        self.workers.retain(|(node, _), _| *node != at);
    }

    /// A gang over so many nodes, whose attempts end so.
    fn gang(&mut self, ranks: u32, retries: u32, exit: Exit) -> JobId {
        let id = JobId(self.cluster.jobs().len() + 1);
        self.ends.insert(id, exit);
        self.tell(Command::Submit(Arc::new(JobSpec { retries, ..spec(ranks, 8) })));
        id
    }

    fn verdict(&self, job: JobId) -> Option<&Note> {
        self.notes.iter().find(|note| matches!(note, Note::Probed { job: of, .. } if *of == job))
    }

    /// Names of nodes that are cordoned for their probes.
    fn blamed(&self) -> BTreeSet<usize> {
        let nodes = self.cluster.nodes().iter().filter(|node| node.blame.is_some());
        nodes.map(|node| node.id.0 as usize).collect()
    }

    fn texts(&self, kinds: &[&str]) -> Vec<String> {
        let wanted = self.notes.iter().filter(|note| kinds.contains(&note.kind()));
        wanted.map(ToString::to_string).collect()
    }
}

const PROBES: [&str; 4] = ["probing", "probe-failed", "probed", "node-blamed"];

#[test]
fn of_sixty_four_nodes_the_bad_one_is_cordoned_after_two_rounds() {
    let mut pool = Pool::new(1, 64, BTreeSet::from([37]), 0);
    let job = pool.gang(64, 1, Exit::Code(EXIT_SILENCE));
    for _ in 0..60 {
        pool.turn();
    }
    assert_eq!(
        pool.texts(&PROBES),
        [
            "job-1 attempts 1 and 2 ended alike, others did not answer: 64 nodes are probed in pairs",
            "a probe of n36 and n37 failed: it hangs",
            "a probe of n37 and n1 failed: it hangs",
            "n37 cordoned: it fails probes beside n1 and n36: it hangs",
            "job-1 probes of 64 nodes: 1 bad",
        ]
    );
    assert_eq!((pool.made, pool.blamed()), (64 + 4, BTreeSet::from([37])));
    assert!(pool.verdict(job).is_some());
    let node = pool.cluster.nodes().get(NodeId(37));
    assert_eq!(node.availability, Availability::Cordoned);
    // Who opens it again has looked.
    pool.tell(Command::SetNode { node: "n37".into(), availability: Availability::Open });
    assert_eq!(pool.blamed(), BTreeSet::new());
}

#[test]
fn only_two_failures_alike_of_a_gang_are_asked_about() {
    let alike = |ranks, exits: [Exit; 2]| {
        let mut pool = Pool::new(1, 6, BTreeSet::from([0]), 0);
        let [first, second] = exits;
        let job = pool.gang(ranks, 1, first);
        (0..5).for_each(|_| pool.turn());
        pool.ends.insert(job, second);
        (0..60).for_each(|_| pool.turn());
        !pool.texts(&["probing"]).is_empty()
    };
    assert!(alike(4, [Exit::Signal(6), Exit::Signal(6)]));
    assert!(alike(2, [Exit::Code(86), Exit::Code(86)]));
    assert!(!alike(4, [Exit::Code(85), Exit::Code(86)]), "another symptom");
    assert!(!alike(4, [Exit::Code(1), Exit::Code(1)]), "no symptom of a bad node");
    assert!(!alike(4, [Exit::Signal(9), Exit::Signal(9)]), "somebody killed it");
    assert!(!alike(1, [Exit::Signal(6), Exit::Signal(6)]), "one node");
}

#[test]
fn a_gang_waits_for_the_verdict_and_the_next_attempt_is_placed_without_the_bad_node() {
    let mut pool = Pool::new(1, 5, BTreeSet::from([1]), 0);
    let job = pool.gang(4, 5, Exit::Code(EXIT_SILENCE));
    while pool.verdict(job).is_none() {
        let id = pool.cluster.jobs().get(job).unwrap();
        assert!(id.attempt < 3, "{id:?}");
        pool.turn();
    }
    pool.ends.remove(&job);
    (0..5).for_each(|_| pool.turn());
    let it = pool.cluster.jobs().get(job).unwrap();
    let nodes: Vec<u32> = it.ranks.iter().map(|rank| rank.node.0).collect();
    assert_eq!((it.phase.clone(), it.attempt, &nodes[..]), (Phase::Active, 3, &[0, 2, 3, 4][..]));
}

#[test]
fn a_probe_waits_for_nodes_in_use_and_makes_way_for_work() {
    let mut pool = Pool::new(1, 4, BTreeSet::from([1]), 0);
    let job = pool.gang(4, 1, Exit::Code(EXIT_SILENCE));
    while pool.texts(&["probing"]).is_empty() {
        pool.turn();
    }
    // Whoever comes takes the nodes.
    let others: Vec<JobId> = (0..2).map(|_| pool.gang(2, 0, Exit::Code(0))).collect();
    others.iter().for_each(|other| _ = pool.ends.remove(other));
    let mut placed = || {
        pool.turn();
        others.iter().all(|other| pool.cluster.jobs().get(*other).unwrap().phase == Phase::Active)
    };
    while !placed() {}
    (0..60).for_each(|_| pool.turn());
    assert_eq!((pool.verdict(job), pool.blamed()), (None, BTreeSet::new()));
    for other in others {
        pool.tell(Command::Cancel { job: other, whole_array: false });
    }
    (0..20).for_each(|_| pool.turn());
    assert_eq!(pool.blamed(), BTreeSet::from([1]));
}

#[test]
fn a_pool_in_which_much_goes_bad_at_once_is_not_emptied() {
    let mut pool = Pool::new(1, 20, BTreeSet::from([3, 8]), 0);
    pool.gang(20, 1, Exit::Code(EXIT_SILENCE));
    (0..60).for_each(|_| pool.turn());
    assert_eq!(pool.blamed().len(), 1, "of twenty nodes one an hour");
    let told = pool.texts(&["node-blamed"]);
    assert!(told[0].starts_with("n3 cordoned: ") && told[1].starts_with("n8 not cordoned: "), "{told:?}");
}

#[test]
fn two_nodes_that_fail_alone_are_told_apart_by_others_and_without_them_nothing_is_said() {
    for (nodes, blamed) in [(4, BTreeSet::from([0])), (3, BTreeSet::new())] {
        let mut pool = Pool::new(1, nodes, BTreeSet::from([0]), 0);
        pool.gang(2, 1, Exit::Code(EXIT_SILENCE));
        (0..60).for_each(|_| pool.turn());
        assert_eq!(pool.blamed(), blamed, "{:?}", pool.texts(&PROBES));
    }
}

#[test]
fn no_good_node_is_ever_cordoned() {
    const SEEDS: u64 = 10_000;
    let (mut asked, mut found, mut bad_ones, mut undecided) = (0, 0, 0, 0);
    for seed in 0..SEEDS {
        let mut rng = Rng(seed);
        let nodes = 2 + rng.below(9) as usize;
        let share = rng.below(4);
        let bad: BTreeSet<usize> = (0..nodes).filter(|_| rng.below(10) < share).collect();
        let lost = [0, 0, 10, 30][rng.below(4) as usize];
        let mut pool = Pool::new(seed, nodes, bad.clone(), lost);
        let ranks = 2 + rng.below(nodes as u64 - 1) as u32;
        let job = pool.gang(ranks, 1 + rng.below(3) as u32, Exit::Code(EXIT_SILENCE));
        for _ in 0..80 {
            pool.turn();
            let at = rng.below(nodes as u64) as usize;
            match rng.below(60) {
                0 => pool.restart(at),
                2 => pool.power_off(at),
                3 => pool.off.first().copied().into_iter().for_each(|at| pool.restart(at)),
                // Somebody else's work, which ends well.
                1 => _ = pool.gang(1, 0, Exit::Code(0)),
                _ => (),
            }
            let blamed = pool.blamed();
            assert!(blamed.is_subset(&bad), "seed {seed}: {blamed:?} of {bad:?}: {:#?}", pool.texts(&PROBES));
        }
        asked += usize::from(!pool.texts(&["probing"]).is_empty());
        undecided += usize::from(pool.verdict(job).is_none());
        (found, bad_ones) = (found + pool.blamed().len(), bad_ones + bad.len());
    }
    assert!(8 * SEEDS as usize / 10 < asked, "{asked} inquiries");
    assert!(bad_ones / 5 < found, "{found} of {bad_ones} found, {undecided} undecided");
}
