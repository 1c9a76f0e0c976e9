//! The leader: it gives out the shards of a step, sums up what comes back, and tells all of the sum.

use super::dispute::Voter;
use super::probe::Probe;
use super::round::Round;
use super::*;
use crate::shards::Partial;

/// What a leader knows.
pub(super) struct Lead {
    since: Duration,
    /// Those who are to take part from the start are there, or were waited for; so they were if an earlier leader was lost.
    pub has_gathered: bool,
    pub peers: BTreeMap<Link, Peer>,
    pub round: Round,
    /// The step is being computed.
    pub running: bool,
    /// How often it has begun one anew.
    pub number: u32,
    /// Members whose sums were wrong: they are given no shards while others are there.
    pub suspects: BTreeSet<Rank>,
    /// Whom it has asked for a newer state.
    source: Option<Link>,
    pub own_pace: Option<f64>,
    pub own_kernels: Arc<str>,
    pinged: Duration,
    pub probe: Probe,
    /// What went before its first step.
    start: Spent,
    ending: Option<Ending>,
}

/// A member that follows.
pub(super) struct Peer {
    pub rank: Rank,
    pub kernels: Arc<str>,
    pub phase: Phase,
    pub heard: Duration,
    /// Seconds a shard, smoothed.
    pub pace: Option<f64>,
    /// When part of a long message last came from it.
    pub received: Duration,
    /// It did not end in time, and gets nothing until it is heard of.
    pub is_late: bool,
    /// It has said what it has of the step.
    has_told: bool,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Phase {
    /// Not compared yet: the leader has no state. The step that it has.
    Unknown(Option<u64>),
    /// It has the state of a later step.
    Ahead(u64),
    /// The state is on its way.
    Syncing,
    Active,
}

enum Ending {
    /// The last checkpoint is being written.
    Saving(Outcome),
    /// All are told; who has not left by then is left.
    Told(Outcome, Duration),
}

impl Lead {
    /// All connections.
    pub fn links(&self) -> Vec<Link> {
        self.peers.keys().copied().collect()
    }

    pub fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// The state is another one than it was: who had the same is behind.
    fn compare_anew(&mut self, old: Option<u64>) {
        for peer in self.peers.values_mut() {
            peer.phase = match peer.phase {
                Phase::Active | Phase::Syncing => Phase::Unknown(old),
                Phase::Ahead(step) => Phase::Unknown(Some(step)),
                unknown => unknown,
            };
        }
    }

    /// The member that would lead after this one.
    pub fn deputy(&self, members: &[Member]) -> Option<Link> {
        let links = members.iter().filter_map(|member| self.link_of(member.rank));
        links.into_iter().find(|link| self.peers[link].phase == Phase::Active)
    }

    pub fn link_of(&self, rank: Rank) -> Option<Link> {
        self.peers.iter().find(|(_, peer)| peer.rank == rank).map(|(link, _)| *link)
    }
}

/// What one member takes for all shards of a step, in microseconds: of the members the one in the middle.
fn work_us(shards: usize, lead: &Lead) -> u64 {
    let mut paces: Vec<f64> = lead.peers.values().filter_map(|peer| peer.pace).chain(lead.own_pace).collect();
    paces.sort_by(f64::total_cmp);
    paces.get(paces.len() / 2).map_or(0, |pace| (shards as f64 * pace * 1e6) as u64)
}

/// The mean of what was and what is, which counts a third.
fn smooth(pace: &mut Option<f64>, now: f64) {
    *pace = Some(pace.map_or(now, |old| old + (now - old) / 3.0));
}

impl Node {
    pub(super) fn take_the_lead(&mut self) {
        let lead = Lead {
            since: self.now,
            has_gathered: self.step.is_some(),
            peers: BTreeMap::new(),
            round: Round::new(self.settings.shards),
            running: false,
            number: 0,
            suspects: BTreeSet::new(),
            source: None,
            own_pace: None,
            own_kernels: self.settings.identity.kernels.as_str().into(),
            pinged: self.now,
            probe: Probe::new(self.now),
            start: Spent::default(),
            ending: None,
        };
        match self.step {
            None => self.send_action(Action::Load),
            Some(_) => self.clock.trouble(),
        }
        self.role = Role::Lead(Box::new(lead));
        let told = self.step.map_or(Vec::new(), |step| self.work.offer(step));
        told.into_iter().for_each(|message| self.on_member(self.me(), message));
        self.work.release();
    }

    /// Lets a member in.
    pub(super) fn welcome(&mut self, link: Link, rank: Rank, kernels: Arc<str>, step: Option<u64>) {
        let now = self.now;
        let Role::Lead(lead) = &mut self.role else { return };
        // Of two connections the older one is dead, and nobody has noticed yet.
        let old = lead.link_of(rank);
        let phase = Phase::Unknown(step);
        let peer = Peer {
            rank,
            kernels,
            phase,
            heard: now,
            pace: None,
            received: now,
            is_late: false,
            has_told: false,
        };
        lead.peers.insert(link, peer);
        if let Some(old) = old {
            self.let_go(old);
        }
        self.away.remove(&rank);
        self.send(link, Message::Welcome);
        self.admit_all();
    }

    /// Compares states with those that came before there was one to compare with.
    pub(super) fn admit_all(&mut self) {
        let Role::Lead(lead) = &mut self.role else { return };
        let (own, last) = (self.step, self.last.clone());
        let mut actions = Vec::new();
        for (link, peer) in &mut lead.peers {
            let theirs = match peer.phase {
                Phase::Unknown(step) => step,
                Phase::Ahead(step) if own.is_some_and(|own| step <= own) => {
                    peer.phase = Phase::Active;
                    continue;
                }
                _ => continue,
            };
            peer.phase = match (own, theirs) {
                (None, None) => continue,
                (None, Some(_)) => {
                    if lead.source.is_none() {
                        lead.source = Some(*link);
                        actions.push(Action::Send(*link, Message::Want(None)));
                    }
                    continue;
                }
                (Some(own), Some(theirs)) if own == theirs => Phase::Active,
                (Some(own), Some(theirs)) if own < theirs => {
                    // One step is computed again if the sum that led to it does not come sooner.
                    if lead.source.is_none() {
                        lead.source = Some(*link).filter(|_| own + 1 < theirs);
                        actions.push(Action::Send(*link, Message::Want(Some(own))));
                    }
                    Phase::Ahead(theirs)
                }
                (Some(own), Some(theirs)) if own == theirs + 1 && last.is_some() => {
                    let (total, spent) = last.clone().expect("just seen");
                    actions.push(Action::Send(*link, Message::Commit { step: own, total, spent }));
                    Phase::Active
                }
                (Some(_), _) => {
                    actions.push(Action::SendState(*link));
                    Phase::Syncing
                }
            };
        }
        self.actions.append(&mut actions);
    }

    /// An event on some connection.
    pub(super) fn lead_event(&mut self, event: Event) {
        let now = self.now;
        let Role::Lead(lead) = &mut self.role else { return };
        match event {
            Event::Dialed(_) | Event::NotDialed(_) => self.probe_event(event),
            Event::Got(link, _) | Event::Closed(link, _) if lead.probe.link == Some(link) => {
                self.probe_event(event);
            }
            Event::Alive(link) => {
                if let Some(peer) = lead.peers.get_mut(&link) {
                    (peer.heard, peer.received) = (now, now);
                }
            }
            Event::Closed(link, reason) => self.lost_peer(link, &reason),
            Event::Got(link, message) => {
                let Some(peer) = lead.peers.get_mut(&link) else {
                    self.strangers.remove(&link);
                    return self.send_action(Action::Close(link));
                };
                peer.heard = now;
                let rank = peer.rank;
                match message {
                    Message::Pong => (),
                    Message::Synced => {
                        peer.has_told = true;
                        if peer.phase == Phase::Syncing {
                            peer.phase = Phase::Active;
                        }
                    }
                    Message::Doing { .. } => {
                        peer.has_told = true;
                        self.on_member(rank, message);
                    }
                    Message::Commit { step, total, spent } => self.catch_up(step, total, spent),
                    Message::Have(step) => {
                        peer.phase = Phase::Unknown(step);
                        lead.round.lose(rank);
                        self.admit_all();
                    }
                    Message::State(snapshot) => self.take_state(link, snapshot),
                    Message::Stop => self.stop = Some(false),
                    Message::Leave(next) => self.left(link, rank, next),
                    Message::End(Outcome::Failed(reason), _) if self.settings.is_fixed => {
                        self.let_go(link);
                        self.end(Outcome::Failed(reason));
                    }
                    Message::Part { .. } | Message::Trimmed { .. } | Message::Idle => {
                        peer.is_late = false;
                        self.on_member(rank, message);
                    }
                    _ => self.let_go(link),
                }
            }
            _ => (),
        }
    }

    /// A state that it has asked for.
    fn take_state(&mut self, link: Link, snapshot: Box<Snapshot>) {
        let Role::Lead(lead) = &mut self.role else { return };
        if lead.source == Some(link) {
            lead.source = None;
            if self.step.is_none_or(|own| own < snapshot.step) {
                lead.running = false;
                lead.round.clear();
                lead.compare_anew(self.step);
                self.work.forget();
                self.install(snapshot);
            }
            self.admit_all();
        }
    }

    /// The sum of the step that it computes, which another member has already.
    fn catch_up(&mut self, step: u64, total: Arc<Values>, spent: Spent) {
        let own = self.step;
        let Role::Lead(lead) = &mut self.role else { return };
        if lead.is_ending() || own.is_none_or(|own| own + 1 != step) {
            return;
        }
        lead.running = false;
        lead.round.clear();
        lead.compare_anew(own);
        self.work.forget();
        self.clock.follow(self.now, &spent);
        self.apply(step, total, spent);
        self.admit_all();
        self.save_if_due(step);
    }

    fn save_if_due(&mut self, step: u64) {
        if self.settings.checkpoint_every.is_some_and(|every| step.is_multiple_of(every)) {
            self.send_action(Action::Save(step));
        }
    }

    /// A member goes. If it leads from now on, or all have gone, this one follows.
    fn left(&mut self, link: Link, rank: Rank, next: Option<Rank>) {
        self.let_go(link);
        let Role::Lead(lead) = &self.role else { return };
        let Some(next) = next.filter(|next| *next != self.me()) else { return };
        if next == rank || lead.peers.is_empty() {
            self.work.forget();
            self.begin_seeking(Some(next));
        }
    }

    pub(super) fn lost_peer(&mut self, link: Link, reason: &str) {
        let Role::Lead(lead) = &self.role else { return };
        let Some(rank) = lead.peers.get(&link).map(|peer| peer.rank) else { return };
        let is_ending = lead.is_ending();
        self.forget(link);
        if self.settings.is_fixed && !is_ending {
            self.end(Outcome::Failed(format!("rank {rank} left: {reason}")));
        }
    }

    /// Ends a connection.
    fn let_go(&mut self, link: Link) {
        self.forget(link);
        self.send_action(Action::Close(link));
    }

    fn forget(&mut self, link: Link) {
        let Role::Lead(lead) = &mut self.role else { return };
        let Some(peer) = lead.peers.remove(&link) else { return };
        if lead.source == Some(link) {
            lead.source = None;
        }
        // It may be there again already.
        if lead.link_of(peer.rank).is_none() {
            self.clock.trouble();
            lead.round.lose(peer.rank);
        }
    }

    /// What a member, perhaps this one, says of its shards.
    pub(super) fn on_member(&mut self, rank: Rank, message: Message) {
        let (now, me, shards, step) = (self.now, self.me(), self.settings.shards, self.step);
        let audited = step.and_then(|step| self.settings.audited(step));
        let Role::Lead(lead) = &mut self.role else { return };
        let number = lead.number;
        let is_current = |of: Turn| Some(of.step) == step && of.number == number;
        match message {
            Message::Part { turn, start, size, is_disputed, pace_us, values } => {
                let node = Partial { start, size, values };
                if !node.is_node(shards) || is_disputed && size != 1 {
                    return;
                }
                let of = match lead.link_of(rank).and_then(|link| lead.peers.get_mut(&link)) {
                    Some(peer) => Some((&mut peer.pace, &peer.kernels)),
                    None => Some((&mut lead.own_pace, &lead.own_kernels)).filter(|_| rank == me),
                };
                let Some((pace, kernels)) = of else { return };
                if 0 < pace_us {
                    smooth(pace, pace_us as f64 / 1e6);
                }
                if !is_current(turn) {
                    // It was overtaken.
                } else if is_disputed || size == 1 && lead.round.is_in_dispute(start) {
                    let voter = Voter { rank, kernels: Arc::clone(kernels) };
                    lead.round.put_in_dispute(voter, start, node.values, audited == Some(start), now);
                } else {
                    lead.round.put(rank, node, now);
                    if lead.round.is_complete() {
                        return self.commit();
                    }
                }
            }
            Message::Doing { turn, shards } if is_current(turn) => lead.round.claim(rank, shards, now),
            Message::Trimmed { turn, end } if is_current(turn) => lead.round.trimmed(rank, end),
            _ => (),
        }
        self.keep_busy();
    }

    /// All shards are there.
    pub(super) fn commit(&mut self) {
        let Some(Turn { step, .. }) = self.turn() else { return };
        let step = step + 1;
        let Role::Lead(lead) = &mut self.role else { return };
        let total = lead.round.total();
        lead.running = false;
        lead.round.clear();
        let mut spent = self.clock.step(self.now);
        spent.add(&std::mem::take(&mut lead.start));
        spent.work_us = work_us(self.settings.shards, lead);
        let (stay, gone): (Vec<_>, Vec<_>) =
            lead.peers.iter().partition(|(_, peer)| self.members.iter().any(|it| it.rank == peer.rank));
        let gone: Vec<Link> = gone.into_iter().map(|(link, _)| *link).collect();
        // Those without a state have nothing to add it to.
        let has_state = |peer: &Peer| !matches!(peer.phase, Phase::Unknown(_));
        let links: Vec<Link> =
            stay.into_iter().filter(|(_, peer)| has_state(peer)).map(|(link, _)| *link).collect();
        self.work.forget();
        for link in links {
            self.send(link, Message::Commit { step, total: total.clone(), spent });
        }
        self.apply(step, total, spent);
        // Who takes part no more leaves between two steps.
        gone.into_iter().for_each(|link| self.let_go(link));
        self.admit_all();
        self.save_if_due(step);
    }

    /// What is to be done now that time has passed or something has changed.
    pub(super) fn lead(&mut self) {
        let now = self.now;
        let Role::Lead(lead) = &mut self.role else { return };
        if let Some(Ending::Told(outcome, until)) = &lead.ending {
            if lead.peers.is_empty() || *until <= now {
                let outcome = outcome.clone();
                self.exit(outcome);
            }
            return;
        }
        if lead.pinged + PING <= now {
            lead.pinged = now;
            let links = lead.links();
            let saved = self.saved;
            links.into_iter().for_each(|link| self.send(link, Message::Ping(saved)));
        }
        self.judge_the_silent();
        self.probe();
        let Role::Lead(lead) = &mut self.role else { return };
        if lead.ending.is_some() {
            return;
        }
        match lead.running {
            true => self.keep_busy(),
            false => self.begin_step(),
        }
    }

    /// Begins the next step once those who are to take part in it are there.
    fn begin_step(&mut self) {
        let Some(step) = self.step else {
            // There is nothing to save, and it may take long until there is.
            return match self.stop {
                Some(true) => self.exit(Outcome::Stopped),
                Some(false) => self.end(Outcome::Stopped),
                None => (),
            };
        };
        let (now, me) = (self.now, self.me());
        let Role::Lead(lead) = &mut self.role else { return };
        if lead.source.is_some() && !self.settings.is_fixed {
            // A newer state is on its way.
            return;
        }
        let is_there = |member: &&Member| {
            let peer = lead.link_of(member.rank).map(|link| &lead.peers[&link]);
            member.rank == me
                || peer.is_some_and(|peer| matches!(peer.phase, Phase::Active | Phase::Ahead(_)))
        };
        if !lead.has_gathered {
            let awaited: Vec<&Member> = self.members.iter().filter(|it| !is_there(it)).collect();
            let patience = match self.settings.is_fixed {
                true => self.settings.join,
                false => GATHER.min(self.settings.join),
            };
            if !awaited.is_empty() && self.stop.is_none() {
                if now < lead.since + patience {
                    return;
                }
                if self.settings.is_fixed {
                    let missing: Vec<_> = awaited.iter().map(|it| format!("rank {}", it.rank)).collect();
                    let (missing, own) = (missing.join(", "), &self.members[0].address);
                    let (waited, all) = (patience.as_secs(), self.members.len());
                    let reason = format!("rank {me} waited {waited} s at {own} for {missing} of {all} ranks");
                    return self.end(Outcome::Failed(reason));
                }
            }
            lead.has_gathered = true;
            lead.start = self.clock.begin(now);
        } else if now < lead.since + REGROUP {
            let has_told = |rank| lead.link_of(rank).is_some_and(|link| lead.peers[&link].has_told);
            let is_awaited = |it: &&Member| match is_there(it) {
                true => it.rank != me && !has_told(it.rank),
                false => !self.away.contains_key(&it.rank),
            };
            if self.members.iter().any(|it| is_awaited(&it)) {
                return;
            }
        }
        match self.stop {
            Some(true) => return self.exit(Outcome::Stopped),
            Some(false) => return self.end(Outcome::Stopped),
            None if self.settings.steps <= step => return self.end(Outcome::Done),
            None => (),
        }
        if !lead.round.is_begun() {
            return self.give_out();
        }
        lead.running = true;
        lead.round.free(0..self.settings.shards);
        match lead.round.is_complete() {
            true => self.commit(),
            false => self.keep_busy(),
        }
    }

    /// Ends the training for all members, after a last checkpoint where it goes on from there.
    pub(super) fn end(&mut self, outcome: Outcome) {
        let (step, saved) = (self.step, self.saved);
        let saves = self.settings.checkpoint_every.is_some() && !matches!(outcome, Outcome::Failed(_));
        let Role::Lead(lead) = &mut self.role else { return };
        if lead.is_ending() && !matches!(outcome, Outcome::Failed(_)) {
            return;
        }
        match step.filter(|step| saves && saved != Some(*step)) {
            Some(step) => {
                lead.ending = Some(Ending::Saving(outcome));
                self.send_action(Action::Save(step));
            }
            None => self.tell_the_end(outcome),
        }
    }

    /// The last checkpoint is on disk.
    pub(super) fn conclude(&mut self) {
        let (step, saved) = (self.step, self.saved);
        let Role::Lead(lead) = &mut self.role else { return };
        if let Some(Ending::Saving(outcome)) = &lead.ending
            && step == saved
        {
            let outcome = outcome.clone();
            self.tell_the_end(outcome);
        }
    }

    fn tell_the_end(&mut self, outcome: Outcome) {
        let (now, saved) = (self.now, self.saved);
        let Role::Lead(lead) = &mut self.role else { return };
        lead.ending = Some(Ending::Told(outcome.clone(), now + SILENCE));
        let links = lead.links();
        links.into_iter().for_each(|link| self.send(link, Message::End(outcome.clone(), saved)));
    }
}
