//! The leader: it gives out the shards of a step, sums up what comes back, and tells all of the sum.

use super::probe::Probe;
use super::quota::quotas;
use super::round::Round;
use super::*;

/// What a leader knows.
pub(super) struct Lead {
    since: Duration,
    /// Those who are to take part from the start are there, or were waited for; so they were if an earlier leader was lost.
    pub has_gathered: bool,
    peers: BTreeMap<Link, Peer>,
    pub round: Round,
    /// The step that is being computed.
    running: bool,
    /// Whom it has asked for a newer state.
    source: Option<Link>,
    own_pace: Option<f64>,
    pinged: Duration,
    pub probe: Probe,
    /// What went before its first step.
    start: Spent,
    ending: Option<Ending>,
}

/// A member that follows.
struct Peer {
    rank: Rank,
    phase: Phase,
    heard: Duration,
    /// Seconds a shard, smoothed.
    pace: Option<f64>,
    /// It did not end in time, and gets nothing until it is heard of.
    is_late: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
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

/// One who can compute.
struct Hand {
    rank: Rank,
    /// `None` for the leader itself.
    link: Option<Link>,
    /// Seconds a shard.
    pace: Option<f64>,
}

impl Lead {
    /// All connections.
    pub fn links(&self) -> Vec<Link> {
        self.peers.keys().copied().collect()
    }

    pub fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    pub fn link_of(&self, rank: Rank) -> Option<Link> {
        self.peers.iter().find(|(_, peer)| peer.rank == rank).map(|(link, _)| *link)
    }
}

impl Peer {
    fn takes_work(&self, now: Duration) -> bool {
        self.phase == Phase::Active && !self.is_late && now < self.heard + SILENCE
    }
}

/// The mean of what was and what is, which counts a third.
fn smooth(pace: &mut Option<f64>, now: f64) {
    *pace = Some(pace.map_or(now, |old| old + (now - old) / 3.0));
}

impl Node {
    pub(super) fn take_the_lead(&mut self) {
        self.work.drop();
        let lead = Lead {
            since: self.now,
            has_gathered: self.step.is_some(),
            peers: BTreeMap::new(),
            round: Round::new(self.settings.shards),
            running: false,
            source: None,
            own_pace: None,
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
    }

    /// Lets a member in.
    pub(super) fn welcome(&mut self, link: Link, rank: Rank, step: Option<u64>) {
        let now = self.now;
        let Role::Lead(lead) = &mut self.role else { return };
        // Of two connections the older one is dead, and nobody has noticed yet.
        let old = lead.link_of(rank);
        let peer = Peer { rank, phase: Phase::Unknown(step), heard: now, pace: None, is_late: false };
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
                        actions.push(Action::Send(*link, Message::Want));
                    }
                    continue;
                }
                (Some(own), Some(theirs)) if own == theirs => Phase::Active,
                (Some(own), Some(theirs)) if own < theirs => {
                    // One step is computed again sooner than a state is sent.
                    if own + 1 < theirs && lead.source.is_none() {
                        lead.source = Some(*link);
                        actions.push(Action::Send(*link, Message::Want));
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
                    peer.heard = now;
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
                        if peer.phase == Phase::Syncing {
                            peer.phase = Phase::Active;
                        }
                    }
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
                // Who had the same state as this one is behind now.
                for peer in lead.peers.values_mut() {
                    peer.phase = match peer.phase {
                        Phase::Active | Phase::Syncing => Phase::Unknown(self.step),
                        Phase::Ahead(step) => Phase::Unknown(Some(step)),
                        unknown => unknown,
                    };
                }
                self.work.drop();
                self.install(snapshot);
            }
            self.admit_all();
        }
    }

    /// A member goes. If it leads from now on, or all have gone, this one follows.
    fn left(&mut self, link: Link, rank: Rank, next: Option<Rank>) {
        self.let_go(link);
        let Role::Lead(lead) = &self.role else { return };
        let Some(next) = next.filter(|next| *next != self.me()) else { return };
        if next == rank || lead.peers.is_empty() {
            self.begin_seeking(Some(next));
        }
    }

    fn lost_peer(&mut self, link: Link, reason: &str) {
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
        let (own_step, shards) = (self.step, self.settings.shards);
        let me = self.me();
        let Role::Lead(lead) = &mut self.role else { return };
        let is_current = |step| lead.running && own_step == Some(step);
        match message {
            Message::Part { step, start, size, pace_us, values } => {
                let node = Partial { start, size, values };
                if !node.is_node(shards) {
                    return;
                }
                let pace = match lead.link_of(rank) {
                    Some(link) => lead.peers.get_mut(&link).map(|peer| &mut peer.pace),
                    None => Some(&mut lead.own_pace).filter(|_| rank == me),
                };
                if let Some(pace) = pace {
                    smooth(pace, pace_us as f64 / 1e6);
                }
                if is_current(step) && lead.round.put(rank, node) {
                    let total = Arc::new(lead.round.total());
                    return self.commit(step + 1, total);
                }
            }
            Message::Trimmed { step, end } if is_current(step) => lead.round.trimmed(rank, end),
            _ => (),
        }
        self.keep_busy();
    }

    /// All shards are there.
    fn commit(&mut self, step: u64, total: Arc<Vector>) {
        let Role::Lead(lead) = &mut self.role else { return };
        lead.running = false;
        lead.round.clear();
        let mut spent = self.clock.step(self.now);
        spent.add(&std::mem::take(&mut lead.start));
        let (stay, gone): (Vec<_>, Vec<_>) =
            lead.peers.iter().partition(|(_, peer)| self.members.iter().any(|it| it.rank == peer.rank));
        let gone: Vec<Link> = gone.into_iter().map(|(link, _)| *link).collect();
        // Those without a state have nothing to add it to.
        let has_state = |peer: &Peer| !matches!(peer.phase, Phase::Unknown(_));
        let links: Vec<Link> =
            stay.into_iter().filter(|(_, peer)| has_state(peer)).map(|(link, _)| *link).collect();
        self.work.drop();
        for link in links {
            self.send(link, Message::Commit { step, total: total.clone(), spent });
        }
        self.apply(step, total, spent);
        // Who takes part no more leaves between two steps.
        gone.into_iter().for_each(|link| self.let_go(link));
        self.admit_all();
        if self.settings.checkpoint_every.is_some_and(|every| step.is_multiple_of(every)) {
            self.send_action(Action::Save(step));
        }
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

    fn judge_the_silent(&mut self) {
        let now = self.now;
        let Role::Lead(lead) = &mut self.role else { return };
        let patience = if self.settings.is_fixed { self.settings.peer } else { PATIENCE };
        let silent: Vec<Link> = lead
            .peers
            .iter()
            .filter(|(_, peer)| peer.heard + patience <= now)
            .map(|(link, _)| *link)
            .collect();
        let reason = format!("silent for {} s", patience.as_secs());
        for link in silent {
            self.lost_peer(link, &reason);
            self.send_action(Action::Close(link));
        }
        let Role::Lead(lead) = &mut self.role else { return };
        for peer in lead.peers.values_mut().filter(|peer| peer.phase == Phase::Active) {
            let Some(block) = lead.round.blocks().iter().find(|block| block.owner == peer.rank) else {
                continue;
            };
            let is_silent = peer.heard + SILENCE <= now;
            let is_late = peer.pace.is_some_and(|pace| {
                let expected = pace * block.shards.len() as f64;
                block.since.as_secs_f64() + (1.5 * expected).max(expected + 0.3) < now.as_secs_f64()
            });
            if is_silent || is_late {
                peer.is_late = true;
                self.clock.trouble();
                lead.round.doubt(peer.rank);
            }
        }
    }

    /// Begins the next step once those who are to take part in it are there.
    fn begin_step(&mut self) {
        let Some(step) = self.step else { return };
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
            let is_awaited = |it: &&Member| !is_there(it) && !self.away.contains_key(&it.rank);
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
        self.give_out(step);
    }

    /// Those who can compute now, this member first, and how many of them have a part in every step: the others are spares.
    fn hands(&self, lead: &Lead) -> (Vec<Hand>, usize) {
        let me = self.me();
        let mut hands = vec![Hand { rank: me, link: None, pace: lead.own_pace }];
        for member in self.members.iter().filter(|member| member.rank != me) {
            let Some(link) = lead.link_of(member.rank) else { continue };
            let peer = &lead.peers[&link];
            if peer.takes_work(self.now) {
                hands.push(Hand { rank: member.rank, link: Some(link), pace: peer.pace });
            }
        }
        let needed = self.members.len().saturating_sub(self.settings.spares).max(1);
        let working = hands.len().min(needed);
        (hands, working)
    }

    /// Gives out the shards of a step by the speeds of those who are there.
    fn give_out(&mut self, step: u64) {
        let Role::Lead(lead) = &self.role else { return };
        let (mut hands, working) = self.hands(lead);
        hands.truncate(working);
        let Role::Lead(lead) = &mut self.role else { return };
        lead.running = true;
        let paces: Vec<Option<f64>> = hands.iter().map(|hand| hand.pace).collect();
        let mut start = 0;
        for (hand, count) in hands.into_iter().zip(quotas(self.settings.shards, &paces)) {
            let shards = start..start + count;
            start = shards.end;
            if !shards.is_empty() {
                self.give(hand.rank, hand.link, step, shards);
            }
        }
    }

    fn give(&mut self, rank: Rank, link: Option<Link>, step: u64, shards: Range<usize>) {
        let now = self.now;
        let Role::Lead(lead) = &mut self.role else { return };
        lead.round.give(rank, shards.clone(), now);
        match link {
            Some(link) => self.send(link, Message::Work { step, shards }),
            None => self.work.give(step, shards),
        }
    }

    /// Gives shards that nobody has to members that have none, or, but to spares, some of those of the slowest.
    fn keep_busy(&mut self) {
        let (now, me) = (self.now, self.me());
        let Role::Lead(lead) = &self.role else { return };
        let Some(step) = self.step.filter(|_| lead.running) else { return };
        let (hands, working) = self.hands(lead);
        let all = hands.len();
        for (place, hand) in hands.into_iter().enumerate() {
            let Role::Lead(lead) = &mut self.role else { return };
            if !lead.running {
                return;
            }
            if lead.round.is_busy(hand.rank) {
                continue;
            }
            let most = lead.round.count_free().div_ceil(all).max(1);
            if let Some(shards) = lead.round.take_free(most) {
                self.give(hand.rank, hand.link, step, shards);
                continue;
            }
            let Some(pace) = hand.pace.filter(|_| place < working) else { continue };
            let (own_pace, peers) = (lead.own_pace, &lead.peers);
            let pace_of = |owner| {
                if owner == me { own_pace } else { peers.values().find(|it| it.rank == owner)?.pace }
            };
            let Some((victim, end)) = lead.round.steal(now, pace, pace_of) else { continue };
            match lead.link_of(victim) {
                Some(link) => self.send(link, Message::Trim { step, end }),
                None => {
                    for message in self.work.trim(step, end) {
                        self.on_member(me, message);
                    }
                }
            }
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
