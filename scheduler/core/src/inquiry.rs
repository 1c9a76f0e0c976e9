//! Which node of a gang is bad. When two attempts of a gang in a row fail in the same way, one that a bad node explains, its nodes
//! are probed in pairs as they are idle (see [`crate::probe`]), and a node that fails beside two others is cordoned.
//!
//! A probe keeps nobody from a node: where work is placed it makes way, and is made again when the node is idle. Only the gang
//! itself waits for what comes of it, for a while. All of it is soft state: a scheduler that starts anew asks when a gang fails
//! in the same way again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::effect::Note;
use crate::event::Availability;
use crate::jobs::{Phase, Why};
use crate::probe::{Group, bad, first_round, second_round};
use crate::types::*;

/// How long a round of probes may take, most of which is waiting for nodes to be idle.
const ROUND: Duration = Duration::from_secs(600);
/// Within this time of the order all nodes of a probe must have begun, or that it failed says nothing: one may have given up before
/// another came. Nodes wait for each other much longer than that.
const PROMPT: Duration = Duration::from_secs(10);
/// How long the gang waits for the verdict.
const HOLD: Duration = Duration::from_secs(60);
/// Fewer nodes than these cannot tell who is bad: idle ones from elsewhere join in.
const FEWEST: usize = 4;
/// Of a pool's nodes so many per cent are cordoned for their probes in [`PERIOD`] at most, and at least one may be: who sees many
/// nodes go bad at once sees something else.
const PERCENT: u64 = 5;
/// Over which they are counted.
const PERIOD: Duration = Duration::from_secs(3600);

/// Exit code of a worker that was left alone: the others of its gang could not be reached, or did not answer.
pub const EXIT_SILENCE: i32 = 85;
/// Exit code of a worker that computed what is no number.
pub const EXIT_NOT_FINITE: i32 = 86;
/// Exit code of a worker whose device failed.
pub const EXIT_DEVICE: i32 = 87;

/// A way to fail that a bad node explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symptom {
    /// Others did not answer: a hang, or a broken collective operation.
    Silence,
    /// A result is no number.
    NotFinite,
    /// A device failed.
    Device,
    /// It gave up by itself, as libraries of collective operations do when one hangs.
    Abort,
    /// The machine could not give it memory that it has.
    Bus,
}

/// What a node is to do in a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeOrder {
    /// Identity of the probe; the same for all its nodes, and never used again.
    pub id: Revision,
    /// Position of the node in it.
    pub rank: u32,
    /// Its nodes.
    pub ranks: u32,
    /// Where its first node listens.
    pub master: (Name, u16),
}

/// What a node says of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeReport {
    /// Which.
    pub id: Revision,
    /// How far it is.
    pub state: ProbeState,
}

/// How far a probe is on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeState {
    /// It is made.
    Running,
    /// All was well.
    Passed,
    /// Something was not.
    Failed(Name),
    /// It made way for work, or was never made.
    Yielded,
}

/// Why the scheduler itself keeps work from a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blame {
    /// Since when.
    pub at: Time,
    /// For people.
    pub why: Name,
}

/// What probes of nodes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// None is bad, of those that were probed: what failed once did not fail twice.
    Well,
    /// So many are.
    Bad(usize),
    /// Some are, and too few are well to tell which.
    Unclear,
}

/// All that is being found out, by the job whose failures asked for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inquiries {
    open: BTreeMap<JobId, Inquiry>,
    orders: BTreeMap<NodeId, ProbeOrder>,
}

#[derive(Clone, Debug)]
struct Inquiry {
    /// The first round, once it is over.
    first: Option<Vec<(Group, bool)>>,
    probes: Vec<Probe>,
    /// When the round ends, whatever is still to be probed.
    until: Time,
    /// When the job would have been placed again without it.
    resume: Time,
}

#[derive(Clone, Debug)]
struct Probe {
    group: Group,
    /// What was asked; `None`: it waits for its nodes.
    id: Option<Revision>,
    /// When that was.
    asked: Time,
    /// Somebody did not begin in time.
    is_late: bool,
    said: BTreeMap<NodeId, ProbeState>,
    /// What came of it, and what its nodes said was wrong.
    result: Option<(bool, Name)>,
}

impl Symptom {
    /// What an exit is a symptom of, if it is one.
    pub fn of(exit: &Exit) -> Option<Symptom> {
        const SIGABRT: i32 = 6;
        const SIGBUS: i32 = 7;
        match *exit {
            Exit::Code(EXIT_SILENCE) => Some(Symptom::Silence),
            Exit::Code(EXIT_NOT_FINITE) => Some(Symptom::NotFinite),
            Exit::Code(EXIT_DEVICE) => Some(Symptom::Device),
            Exit::Signal(SIGABRT) => Some(Symptom::Abort),
            Exit::Signal(SIGBUS) => Some(Symptom::Bus),
            _ => None,
        }
    }
}

impl Inquiries {
    /// What a node is to probe.
    pub fn order(&self, node: NodeId) -> Option<&ProbeOrder> {
        self.orders.get(&node)
    }

    /// When the next round ends.
    pub fn next(&self) -> Option<Time> {
        self.open.values().map(|inquiry| inquiry.until).min()
    }

    fn takes_part(&self, node: NodeId) -> bool {
        self.open.values().any(|it| it.probes.iter().any(|probe| probe.group.contains(&node)))
    }
}

impl Probe {
    fn new(group: Group) -> Probe {
        Probe { group, id: None, asked: Time(0), is_late: false, said: BTreeMap::new(), result: None }
    }

    /// What its nodes said, once all have; `None` within, and at once, if one of them made way, or if one came late to a probe that
    /// failed: that says nothing of the others.
    fn verdict(&self) -> Option<Option<(bool, Name)>> {
        let ended = |state: &&ProbeState| **state != ProbeState::Running;
        let said: Vec<&ProbeState> = self.said.values().filter(ended).collect();
        if said.contains(&&ProbeState::Yielded) {
            return Some(None);
        }
        if said.len() < self.group.len() {
            return None;
        }
        let failed = said.iter().find_map(|state| match state {
            ProbeState::Failed(why) => Some(why.clone()),
            _ => None,
        });
        match failed {
            Some(_) if self.is_late => Some(None),
            Some(why) => Some(Some((false, why))),
            None => Some(Some((true, Name::default()))),
        }
    }
}

impl Cluster {
    /// An attempt of a gang failed: if the one before failed in the same way, and a bad node explains it, its nodes are probed.
    pub(crate) fn inquire(&mut self, now: Time, id: JobId, why: &Why) {
        let symptom = |why: &Why| match why {
            Why::WorkerFailed { exit, .. } => Symptom::of(exit),
            _ => None,
        };
        let job = self.jobs.get(id).expect("a failed job");
        let before = job.last_failure.as_ref().and_then(symptom);
        let Some(symptom) = symptom(why).filter(|now| before == Some(*now)) else { return };
        let takes_part = |node: &NodeId| self.inquiries.takes_part(*node);
        let gang: BTreeSet<NodeId> = job.ranks.iter().map(|rank| rank.node).collect();
        if gang.len() < 2 || self.inquiries.open.contains_key(&id) || gang.iter().any(takes_part) {
            return;
        }
        let mut nodes: Vec<NodeId> = gang.iter().copied().collect();
        let helps = |node: &NodeId| self.is_idle(*node) && self.nodes.get(*node).takes_work();
        let others = self.nodes.iter().map(|node| node.id).filter(|node| !gang.contains(node));
        let others = others.filter(|node| helps(node) && !takes_part(node));
        nodes.extend(others.take(FEWEST.saturating_sub(gang.len())));
        let (attempt, count) = (job.attempt, nodes.len() as u32);
        let probes = first_round(&nodes).into_iter().map(Probe::new).collect();
        let inquiry = Inquiry { first: None, probes, until: now + ROUND, resume: now };
        self.inquiries.open.insert(id, inquiry);
        self.note(Note::Probing { job: id, attempt, symptom, nodes: count });
    }

    /// How long a job that failed waits until it is placed again, if it is to wait so long in any case.
    pub(crate) fn hold_for_verdict(&mut self, now: Time, id: JobId, pause: Duration) -> Duration {
        match self.inquiries.open.get_mut(&id) {
            Some(inquiry) => {
                inquiry.resume = now + pause;
                pause.max(HOLD)
            }
            None => pause,
        }
    }

    /// Takes in what a node says of its probe.
    ///
    /// * `knows`: it would say if it made the one that was ordered last.
    pub(crate) fn on_probe(&mut self, node: NodeId, report: Option<ProbeReport>, knows: bool) {
        let Some(id) = self.inquiries.order(node).map(|order| order.id) else { return };
        let state = match report.filter(|report| report.id == id) {
            Some(report) => report.state,
            None if knows => ProbeState::Yielded,
            None => return,
        };
        let probes = self.inquiries.open.values_mut().flat_map(|inquiry| &mut inquiry.probes);
        let now = self.now;
        for probe in probes.filter(|probe| probe.id == Some(id)) {
            let is_first = !probe.said.contains_key(&node);
            probe.is_late |= is_first && probe.asked + PROMPT < now;
            // The end of its first try stands: an agent that was started again tries once more.
            let known = probe.said.entry(node).or_insert(ProbeState::Running);
            if *known == ProbeState::Running {
                *known = state.clone();
            }
        }
    }

    /// Judges what is known of probes.
    pub(crate) fn judge_probes(&mut self, now: Time) {
        let open: Vec<JobId> = self.inquiries.open.keys().copied().collect();
        for id in open {
            let mut inquiry = self.inquiries.open.remove(&id).expect("an open inquiry");
            inquiry.probes.iter_mut().for_each(|probe| self.settle(probe));
            let is_over = now >= inquiry.until || inquiry.probes.iter().all(|probe| probe.result.is_some());
            if is_over && !self.end_round(now, id, &mut inquiry) {
                self.release_from_inquiry(now, id, inquiry.resume);
                continue;
            }
            self.inquiries.open.insert(id, inquiry);
        }
    }

    /// Asks for the probes that can be made now.
    pub(crate) fn ask_probes(&mut self) {
        let mut open = std::mem::take(&mut self.inquiries.open);
        open.values_mut().flat_map(|inquiry| &mut inquiry.probes).for_each(|probe| self.ask(probe));
        self.inquiries.open = open;
    }

    /// Whether nothing runs on a node, and nothing is about to.
    fn is_idle(&self, node: NodeId) -> bool {
        self.nodes.get(node).up && self.nodes.held(node).workers.is_empty()
    }

    /// Takes in what the nodes of a probe said, or that one of them is gone.
    fn settle(&mut self, probe: &mut Probe) {
        if probe.id.is_none() {
            return;
        }
        let is_gone = |node: &NodeId| !self.nodes.get(*node).up;
        let verdict = if probe.group.iter().any(is_gone) { Some(None) } else { probe.verdict() };
        let Some(result) = verdict else { return };
        if let Some((false, why)) = &result {
            let nodes = probe.group.iter().map(|node| self.nodes.get(*node).name.clone()).collect();
            self.note(Note::ProbeFailed { nodes, why: why.clone() });
        }
        probe.result = result;
        self.withdraw(probe);
    }

    fn withdraw(&mut self, probe: &mut Probe) {
        (probe.id, probe.is_late) = (None, false);
        probe.said.clear();
        for node in &probe.group {
            self.inquiries.orders.remove(node);
            self.retell(*node);
        }
    }

    /// Asks for a probe that waits, if its nodes are idle.
    fn ask(&mut self, probe: &mut Probe) {
        let waits = probe.id.is_none() && probe.result.is_none();
        if !waits || !probe.group.iter().all(|node| self.is_idle(*node)) {
            return;
        }
        let id = self.fresh_revision();
        let first = &self.nodes.get(probe.group[0]).inventory;
        // Another one every time: somebody else may have it.
        let ports = u64::from(first.ports.last.saturating_sub(first.ports.first)) + 1;
        let master = (first.address.clone(), first.ports.first + (id.count % ports) as u16);
        for (rank, node) in (0..).zip(&probe.group) {
            let order = ProbeOrder { id, rank, ranks: probe.group.len() as u32, master: master.clone() };
            self.inquiries.orders.insert(*node, order);
            self.retell(*node);
        }
        (probe.id, probe.asked) = (Some(id), self.now);
    }

    /// Begins the second round, or judges. Whether there is more to be probed.
    fn end_round(&mut self, now: Time, id: JobId, inquiry: &mut Inquiry) -> bool {
        let mut probes = std::mem::take(&mut inquiry.probes);
        probes.iter_mut().filter(|probe| probe.id.is_some()).for_each(|probe| self.withdraw(probe));
        let left = probes.iter().filter(|probe| probe.result.is_none()).map(|probe| probe.group.len()).sum();
        let results: Vec<(Group, bool)> =
            probes.iter().filter_map(|probe| Some((probe.group.clone(), probe.result.as_ref()?.0))).collect();
        let Some(first) = inquiry.first.take() else {
            let second = second_round(&results);
            if second.is_empty() {
                let is_well = results.iter().all(|(_, passed)| *passed);
                let verdict = if is_well { Verdict::Well } else { Verdict::Unclear };
                let probed = results.iter().map(|(group, _)| group.len()).sum();
                self.note(Note::Probed { job: id, probed, left, verdict });
                return false;
            }
            inquiry.probes = second.into_iter().map(Probe::new).collect();
            (inquiry.first, inquiry.until) = (Some(results), now + ROUND);
            return true;
        };
        let found = bad(&first, &results);
        for node in &found {
            let of = |probe: &&Probe| probe.group.contains(node);
            let why = probes.iter().find(of).and_then(|probe| Some(probe.result.as_ref()?.1.clone()));
            let beside = |(group, passed): &(Group, bool)| !passed && group.contains(node);
            let groups = first.iter().chain(&results).filter(|it| beside(it)).flat_map(|(group, _)| group);
            let others: BTreeSet<NodeId> = groups.copied().filter(|other| other != node).collect();
            self.blame(now, *node, &others, &why.unwrap_or_default());
        }
        let probed: usize = first.iter().map(|(group, _)| group.len()).sum();
        let verdict = if found.is_empty() { Verdict::Well } else { Verdict::Bad(found.len()) };
        self.note(Note::Probed { job: id, probed, left, verdict });
        false
    }

    /// Keeps work from a node that failed twice, if the pool can afford that.
    fn blame(&mut self, now: Time, id: NodeId, beside: &BTreeSet<NodeId>, why: &Name) {
        let names: Vec<&str> = beside.iter().map(|node| &*self.nodes.get(*node).name).collect();
        let why: Name = format!("it fails probes beside {}: {why}", names.join(" and ")).into();
        let recent = |node: &&crate::nodes::Node| {
            node.blame.as_ref().is_some_and(|blame| now.since(blame.at) < PERIOD.as_millis() as u64)
        };
        let (nodes, lately) = (self.nodes.len() as u64, self.nodes.iter().filter(recent).count() as u64);
        let node = self.nodes.get(id);
        let name = node.name.clone();
        let affordable = lately < (nodes * PERCENT / 100).max(1);
        let cordoned = affordable && node.availability == Availability::Open;
        if cordoned {
            self.change_node(id, |node| {
                node.availability = Availability::Cordoned;
                node.blame = Some(Blame { at: now, why: why.clone() });
            });
        }
        self.note(Note::NodeBlamed { node: name, cordoned, why });
    }

    /// The job need wait for nothing but its pause.
    fn release_from_inquiry(&mut self, now: Time, id: JobId, resume: Time) {
        let pending = |job: &&crate::jobs::Job| matches!(job.phase, Phase::Pending(at) if now < at);
        if self.jobs.get(id).filter(pending).is_some() {
            self.change_job(id, |job| job.phase = Phase::Pending(now.max(resume)));
            self.change_job_index(id);
            self.plan_at(now);
        }
    }
}

impl fmt::Display for Symptom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Symptom::Silence => "others did not answer",
            Symptom::NotFinite => "a result was no number",
            Symptom::Device => "a device failed",
            Symptom::Abort => "a rank gave up (SIGABRT)",
            Symptom::Bus => "memory could not be reached (SIGBUS)",
        })
    }
}
