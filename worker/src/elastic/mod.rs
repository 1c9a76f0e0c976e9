//! Training with members that come and go, as a state machine: who leads, who computes what, who has which state.
//!
//! Facts go in as [`Event`]s with the time, what is to be done comes out as [`Action`]s. Nothing here opens a socket, reads a
//! clock or computes a gradient; the trainer's threads and the tests' simulated network drive the same code.
//!
//! A step is a pure function of the state before it: V shards, their sum in a fixed tree, one update. Therefore nobody
//! needs to agree on anything: who repeats a step gets the same bits, and two leaders at a time only waste heat. The
//! longest-serving member that answers leads (`lead`); the others follow it (`follow`); one that is suspected in vain goes
//! on as a follower of its successor.

mod dispute;
mod follow;
mod lead;
mod ledger;
mod message;
mod probe;
mod quota;
mod round;
mod seek;
mod share;
#[cfg(test)]
mod tests;
mod work;

pub use dispute::{Audit, Computed};
pub use ledger::Spent;
pub use message::{Agreement, Identity, Message, Outcome, Rank, Snapshot, Turn};

use crate::values::Values;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Name and version of the protocol.
pub const PROTOCOL: &str = "aquifer-elastic-3";
/// The same where a step is a round of replicas: what they give has a version of its own.
pub const PROTOCOL_OF_ROUNDS: &str = "aquifer-elastic-3-rounds-2";

/// Start of the reason for which one of another version is refused, as all versions say it.
const SPEAKS: &str = "it speaks";

/// How often a leader gives a sign of life.
const PING: Duration = Duration::from_millis(50);
/// A leader that was silent for as long as a step takes is left, and a member is given no more shards; but no sooner and no
/// later than this.
const HUSH: Duration = Duration::from_millis(300);
const SILENCE: Duration = Duration::from_secs(2);
/// Who was not asked for so long was stopped, or had too much to do, and does not blame others for what it has not heard.
const ASLEEP: Duration = Duration::from_millis(100);
/// A member that was silent for so long is let go.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a leader looks for another one.
const PROBE: Duration = Duration::from_secs(3);
/// How long a member that did not answer is passed over, also where others say something else, and else.
const AVOID_AT_ALL: Duration = Duration::from_secs(1);
const AVOID: Duration = Duration::from_secs(10);
/// How long to wait before another try, and how long where a training stands still meanwhile.
const RETRY: Duration = Duration::from_millis(50);
const SOON: Duration = Duration::from_millis(5);
/// How often one of another version asks again.
const LATER: Duration = Duration::from_secs(1);
/// How long a new leader that has the state waits for the others, who compute meanwhile. What they have counts later, too.
const REGROUP: Duration = Duration::from_millis(50);
/// How long the first leader waits for members that may come later as well.
const GATHER: Duration = Duration::from_secs(10);

/// A connection, by a number that is never used twice.
pub type Link = u64;

/// One of those who take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub rank: Rank,
    /// Where it listens, for people.
    pub address: String,
}

/// What a node is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who it is.
    pub identity: Identity,
    /// Shards of a step.
    pub shards: usize,
    /// Steps in all.
    pub steps: u64,
    /// Steps between two checkpoints; `None` where none are written.
    pub checkpoint_every: Option<u64>,
    /// Shards that it computes at the same time.
    pub lanes: usize,
    /// Members, the last that came, that have the state and compute nothing unless another one is missing.
    pub spares: usize,
    /// Shards that two members compute and compare, if any.
    pub audit: Option<Audit>,
    /// All members have to be there from the first step to the last.
    pub is_fixed: bool,
    /// How long it waits for others at the start.
    pub join: Duration,
    /// How long a fixed group bears a silent member.
    pub peer: Duration,
}

impl Settings {
    /// The shard that is audited in the step that begins with the state of `step`.
    fn audited(&self, step: u64) -> Option<usize> {
        self.audit.and_then(|audit| audit.shard(step, self.shards))
    }
}

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// Who takes part now, the longest-serving first.
    Members(Vec<Member>),
    /// The connection that was asked for stands.
    Dialed(Link),
    /// It does not, because.
    NotDialed(String),
    /// Somebody connects.
    Accepted(Link),
    /// A connection has ended, because.
    Closed(Link, String),
    /// A message came.
    Got(Link, Message),
    /// Part of a message came.
    Alive(Link),
    /// Shards are computed, and the time all of them took.
    Computed(u64, Vec<Computed>, Duration),
    /// The state that was to be loaded or installed is there, of this step.
    Ready(u64),
    /// The checkpoint of this step is on disk.
    Saved(u64),
    /// This process is asked to end: the whole training, or only this member.
    Stop {
        /// The others go on.
        alone: bool,
    },
    /// What was asked for cannot be done.
    Failed(String),
    /// Time has passed.
    Tick,
}

/// Something to do, in order.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Connect to a member; one at a time, and the last one counts.
    Dial(Rank),
    /// End a connection, after what was sent.
    Close(Link),
    /// Send a message.
    Send(Link, Message),
    /// Send the state as a [`Message::State`], as it is after all updates so far.
    SendState(Link),
    /// Load the state: of the newest checkpoint, or a fresh one.
    Load,
    /// Take this state.
    Install(Box<Snapshot>),
    /// Update the state with the sum of all shards, to become that of `step`.
    Apply {
        /// Steps that are then done.
        step: u64,
        /// The sum.
        total: Arc<Values>,
        /// The time since the step before.
        spent: Spent,
    },
    /// Compute shards, with the state of `step`.
    Compute {
        /// Steps that are done.
        step: u64,
        /// Which, at most [`Settings::lanes`].
        shards: Range<usize>,
    },
    /// Write a checkpoint of the state after all updates so far.
    Save(u64),
    /// Tell people.
    Say(String),
    /// Tell people what it waits for, perhaps for long.
    Wait(String),
    /// End.
    Exit(Outcome),
}

/// What a node does at present.
enum Role {
    /// It looks for a leader.
    Seek(seek::Seek),
    Follow(follow::Follow),
    Lead(Box<lead::Lead>),
    /// It has ended.
    Over,
}

/// A member of a training.
pub struct Node {
    settings: Settings,
    now: Duration,
    /// When it was asked again, after it had not been for long.
    awake: Duration,
    members: Vec<Member>,
    /// Those that did not answer, and until when they are passed over.
    away: BTreeMap<Rank, Duration>,
    /// Steps of the state that it has after all actions so far.
    step: Option<u64>,
    /// What led to the state, for one who is a step behind.
    last: Option<(Arc<Values>, Spent)>,
    saved: Option<u64>,
    stop: Option<bool>,
    work: work::Work,
    clock: ledger::Clock,
    /// Connections that have not said who they are, and since when.
    strangers: BTreeMap<Link, Duration>,
    role: Role,
    actions: Vec<Action>,
}

impl Node {
    /// A member that has no state yet.
    pub fn new(settings: Settings) -> Node {
        Node {
            settings,
            now: Duration::ZERO,
            awake: Duration::ZERO,
            members: Vec::new(),
            away: BTreeMap::new(),
            step: None,
            last: None,
            saved: None,
            stop: None,
            work: work::Work::default(),
            clock: ledger::Clock::default(),
            strangers: BTreeMap::new(),
            role: Role::Seek(seek::Seek::default()),
            actions: Vec::new(),
        }
    }

    /// Steps of the state that it has after all actions so far.
    pub fn step(&self) -> Option<u64> {
        self.step
    }

    /// Whether it leads.
    pub fn leads(&self) -> bool {
        matches!(self.role, Role::Lead(_))
    }

    /// Whether it leads, and ends the training.
    pub fn is_ending(&self) -> bool {
        matches!(&self.role, Role::Lead(lead) if lead.is_ending())
    }

    /// Step of the newest checkpoint that it knows of.
    pub fn saved(&self) -> Option<u64> {
        self.saved
    }

    /// Handles one event at a time, `now` since any fixed moment, and returns what is to be done.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        if self.now + ASLEEP < now {
            self.awake = now;
        }
        self.now = now.max(self.now);
        self.clock.start(self.now);
        match event {
            Event::Members(members) => self.members = members,
            Event::Stop { alone } => self.on_stop(alone),
            Event::Failed(reason) => self.fail(reason),
            Event::Computed(step, sums, took) => {
                if sums.is_empty() {
                    // The engine has another state than it was to compute with.
                    self.work.drop_of(step);
                }
                let told = self.work.computed(step, sums, took, self.settings.audited(step));
                self.tell_of_work(told);
            }
            Event::Ready(step) => {
                self.step.get_or_insert(step);
                match &self.role {
                    Role::Follow(_) => self.tell_leader(Message::Synced),
                    _ => self.admit_all(),
                }
            }
            Event::Saved(step) => {
                self.saved = self.saved.max(Some(step));
                self.conclude();
            }
            Event::Accepted(link) => _ = self.strangers.insert(link, self.now),
            Event::Got(link, Message::Hello(who, step)) => self.on_hello(link, who, step),
            Event::Closed(ref link, _) => {
                self.strangers.remove(link);
                self.dispatch(event);
            }
            Event::Dialed(_) | Event::NotDialed(_) | Event::Got(..) | Event::Alive(_) => self.dispatch(event),
            Event::Tick => (),
        }
        self.go_on();
        std::mem::take(&mut self.actions)
    }

    fn dispatch(&mut self, event: Event) {
        match &self.role {
            Role::Seek(_) => self.seek_event(event),
            Role::Follow(_) => self.follow_event(event),
            Role::Lead(_) => self.lead_event(event),
            Role::Over => (),
        }
    }

    /// What time, or the event before, allows.
    fn go_on(&mut self) {
        let late = |since: &Duration| *since + 2 * SILENCE <= self.now;
        let mute: Vec<Link> =
            self.strangers.iter().filter(|(_, since)| late(since)).map(|it| *it.0).collect();
        for link in mute {
            self.strangers.remove(&link);
            self.send_action(Action::Close(link));
        }
        match &self.role {
            Role::Seek(_) => self.seek(),
            Role::Follow(_) => self.watch_leader(),
            Role::Lead(_) => self.lead(),
            Role::Over => (),
        }
        if let Some((step, shards)) = self.work.next(self.settings.lanes) {
            self.send_action(Action::Compute { step, shards });
        }
    }

    fn send_action(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn send(&mut self, link: Link, message: Message) {
        self.send_action(Action::Send(link, message));
    }

    fn me(&self) -> Rank {
        self.settings.identity.rank
    }

    fn is_member(&self, rank: Rank) -> bool {
        self.members.iter().any(|member| member.rank == rank)
    }

    fn is_away(&self, rank: Rank) -> bool {
        self.away.get(&rank).is_some_and(|until| self.now < *until)
    }

    fn avoid(&mut self, rank: Rank) {
        self.away.insert(rank, self.now + AVOID);
    }

    /// Whether a member did not answer just now, whatever others say of it.
    fn is_out_of_reach(&self, rank: Rank) -> bool {
        self.away.get(&rank).is_some_and(|until| self.now + AVOID < *until + AVOID_AT_ALL)
    }

    /// How long somebody may be silent.
    fn silence(&self) -> Duration {
        match self.settings.is_fixed {
            true => self.settings.peer,
            false => self.clock.usual().map_or(SILENCE, |step| step.clamp(HUSH, SILENCE)),
        }
    }

    /// Whether somebody who was last heard of then is silent for too long.
    fn is_silent(&self, heard: Duration) -> bool {
        heard.max(self.awake) + self.silence() <= self.now
    }

    /// The longest-serving member that answers.
    fn first(&self) -> Option<Rank> {
        let first = self.members.iter().find(|member| self.settings.is_fixed || !self.is_away(member.rank));
        first.map(|member| member.rank)
    }

    fn on_hello(&mut self, link: Link, who: Identity, step: Option<u64>) {
        if self.strangers.remove(&link).is_none() {
            return;
        }
        let is_other_version = who.protocol != self.settings.identity.protocol;
        if is_other_version && self.step.is_none() && matches!(self.role, Role::Seek(_)) {
            // One that has a state is not to wait for one that has none: earlier versions do where they are given an answer.
            return self.send_action(Action::Close(link));
        }
        let answer = match (self.refusal(&who), &self.role) {
            (Some(refusal), _) => refusal,
            (None, Role::Lead(lead)) if !lead.is_ending() => {
                self.compare_kernels(&who);
                return self.welcome(link, who.rank, who.kernels.into(), step);
            }
            (None, Role::Follow(follow)) => Message::Follow(follow.leader),
            _ => Message::Refuse { reason: format!("rank {} does not lead", self.me()), for_now: true },
        };
        self.send(link, answer);
        self.send_action(Action::Close(link));
    }

    fn compare_kernels(&mut self, other: &Identity) {
        let own = &self.settings.identity;
        if other.kernels != own.kernels {
            let (theirs, ours) = (&other.kernels, &own.kernels);
            self.send_action(Action::Say(format!(
                "rank {} computes with {theirs}, rank {} with {ours}: results now depend in their last bits on who computes",
                other.rank, own.rank
            )));
        }
    }

    /// Why another one does not belong to this training, if so.
    fn refusal(&self, other: &Identity) -> Option<Message> {
        let own = &self.settings.identity;
        let refuse = |for_now, reason| Some(Message::Refuse { reason, for_now });
        if other.protocol != own.protocol {
            // A group that stays as it is has no use for it; else it may be what is left when the others have ended.
            let reason = format!("{SPEAKS} {}, this group {}", other.protocol, own.protocol);
            return refuse(!self.settings.is_fixed, reason);
        }
        if other.job != own.job {
            return refuse(true, format!("it belongs to {}, this group to {}", other.job, own.job));
        }
        if other.attempt != own.attempt {
            let what = format!("attempt {} of {}", other.attempt, own.job);
            let reason = format!("it belongs to {what}, this group to attempt {}", own.attempt);
            return refuse(own.attempt < other.attempt, reason);
        }
        for ((name, ours), (_, theirs)) in own.agreement.iter().zip(&other.agreement) {
            if ours != theirs {
                return refuse(false, format!("its {name} is {theirs}, rank {} has {ours}", own.rank));
            }
        }
        if other.rank == own.rank || !self.is_member(other.rank) {
            return refuse(true, format!("rank {} takes no part", other.rank));
        }
        None
    }

    fn on_stop(&mut self, alone: bool) {
        self.stop = Some(alone);
        match (&self.role, alone) {
            (Role::Seek(_), _) => self.exit(Outcome::Stopped),
            (Role::Follow(follow), false) => {
                let link = follow.link;
                self.send(link, Message::Stop);
            }
            (Role::Follow(follow), true) => {
                let link = follow.link;
                self.send(link, Message::Leave(None));
                self.exit(Outcome::Stopped);
            }
            (Role::Lead(_), _) | (Role::Over, _) => (),
        }
    }

    fn exit(&mut self, outcome: Outcome) {
        self.role = Role::Over;
        self.work.forget();
        self.send_action(Action::Exit(outcome));
    }

    /// This member cannot go on. Nor can the others of a fixed group; else they may still be able to.
    fn fail(&mut self, reason: String) {
        let all = Outcome::Failed(format!("rank {} failed: {reason}", self.me()));
        match &self.role {
            Role::Lead(_) if self.settings.is_fixed => self.end(all),
            Role::Follow(follow) if self.settings.is_fixed => {
                let link = follow.link;
                self.send(link, Message::End(all, None));
                self.exit(Outcome::Failed(reason));
            }
            Role::Over => (),
            _ => self.exit(Outcome::Failed(reason)),
        }
    }

    /// Sends a message to whoever leads, which may be this member.
    fn tell_leader(&mut self, message: Message) {
        match &self.role {
            Role::Lead(_) => self.on_member(self.me(), message),
            Role::Follow(follow) => {
                let link = follow.link;
                self.send(link, message);
            }
            Role::Seek(_) | Role::Over => (),
        }
    }

    /// Tells the leader of its shards, and keeps the sums for the next one. One that leads gives its own to the one that would
    /// lead after it, but for those with which its block ends: the step itself soon does.
    fn tell_of_work(&mut self, told: Vec<Message>) {
        for message in told {
            match &self.role {
                Role::Lead(lead) => {
                    let deputy = lead.deputy(&self.members).filter(|_| self.work.is_busy());
                    if let (Some(link), false) = (deputy, self.settings.is_fixed)
                        && let Message::Part { is_disputed: false, .. } = message
                    {
                        let mut copy = message.clone();
                        if let Message::Part { pace_us, .. } = &mut copy {
                            *pace_us = 0;
                        }
                        self.send(link, copy);
                    }
                }
                _ if !self.settings.is_fixed => self.work.hold(&message),
                _ => (),
            }
            self.tell_leader(message);
        }
    }
}
