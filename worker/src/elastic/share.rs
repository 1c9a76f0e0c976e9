//! Who computes which shards of a step.

use super::dispute::{Verdict, Voter};
use super::lead::{Lead, Peer, Phase};
use super::quota::quotas;
use super::*;

/// A member takes at least so much longer than usual before others compute what it has.
const LATE: Duration = Duration::from_millis(100);

/// One who can compute.
struct Hand {
    rank: Rank,
    kernels: Arc<str>,
    /// `None` for the leader itself.
    link: Option<Link>,
    /// Seconds a shard.
    pace: Option<f64>,
}

impl Peer {
    fn takes_work(&self, is_silent: impl Fn(Duration) -> bool) -> bool {
        self.phase == Phase::Active && !self.is_late && !is_silent(self.heard)
    }
}

impl Node {
    pub(super) fn judge_the_silent(&mut self) {
        let (now, awake, silence) = (self.now, self.awake, self.silence());
        let Role::Lead(lead) = &mut self.role else { return };
        let patience = if self.settings.is_fixed { self.settings.peer } else { PATIENCE };
        let silent: Vec<Link> = lead
            .peers
            .iter()
            .filter(|(_, peer)| peer.heard.max(awake) + patience <= now)
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
            let is_silent = peer.heard.max(awake) + silence <= now;
            let is_late = peer.pace.is_some_and(|pace| {
                let expected = pace * block.shards.len() as f64;
                let most = (1.5 * expected).max(expected + LATE.as_secs_f64());
                block.since.max(awake).max(peer.received).as_secs_f64() + most < now.as_secs_f64()
            });
            if is_silent || is_late {
                peer.is_late = true;
                self.clock.trouble();
                lead.round.doubt(peer.rank);
            }
        }
    }

    /// The try to compute a step that is under way.
    pub(super) fn turn(&self) -> Option<Turn> {
        let Role::Lead(lead) = &self.role else { return None };
        self.step.filter(|_| lead.running).map(|step| Turn { step, number: lead.number })
    }

    /// Those who can compute now, this member first, and how many of them have a part in every step: the others are spares.
    /// Suspects only where there is nobody else.
    fn hands(&self, lead: &Lead) -> (Vec<Hand>, usize) {
        let me = self.me();
        let mut hands =
            vec![Hand { rank: me, kernels: Arc::clone(&lead.own_kernels), link: None, pace: lead.own_pace }];
        for member in self.members.iter().filter(|member| member.rank != me) {
            let Some(link) = lead.link_of(member.rank) else { continue };
            let peer = &lead.peers[&link];
            if peer.takes_work(|heard| self.is_silent(heard)) {
                let kernels = Arc::clone(&peer.kernels);
                hands.push(Hand { rank: member.rank, kernels, link: Some(link), pace: peer.pace });
            }
        }
        let is_trusted = |hand: &Hand| !lead.suspects.contains(&hand.rank);
        if hands.iter().any(is_trusted) {
            hands.retain(is_trusted);
        }
        let needed = self.members.len().saturating_sub(self.settings.spares).max(1);
        let working = hands.len().min(needed);
        (hands, working)
    }

    /// Gives out the shards of a step by the speeds of those who are there.
    pub(super) fn give_out(&mut self) {
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
                self.give(&hand, shards);
            }
        }
    }

    fn give(&mut self, hand: &Hand, shards: Range<usize>) {
        let (now, Some(turn)) = (self.now, self.turn()) else { return };
        let Role::Lead(lead) = &mut self.role else { return };
        lead.round.give(hand.rank, shards.clone(), now);
        match hand.link {
            Some(link) => self.send(link, Message::Work { turn, shards }),
            None => self.work.give(turn, shards),
        }
    }

    /// Gives shards that nobody has to members that have none, or, but to spares, some of those of the slowest.
    pub(super) fn keep_busy(&mut self) {
        let (now, me) = (self.now, self.me());
        let Role::Lead(lead) = &self.role else { return };
        let Some(turn) = self.turn() else { return };
        let (hands, working) = self.hands(lead);
        let all = hands.len();
        let is_disputed = lead.round.has_disputes();
        let voter = |hand: &Hand| Voter { rank: hand.rank, kernels: Arc::clone(&hand.kernels) };
        let voters: Vec<Voter> = hands.iter().filter(|_| is_disputed).map(voter).collect();
        if is_disputed {
            self.settle(turn.step, &voters);
        }
        for (place, hand) in hands.into_iter().enumerate() {
            // What was said meanwhile may have ended the step.
            if self.turn() != Some(turn) {
                return;
            }
            let Role::Lead(lead) = &mut self.role else { return };
            if lead.round.is_busy(hand.rank) {
                continue;
            }
            let most = lead.round.count_free().div_ceil(all).max(1);
            let disputed = lead.round.take_dispute(hand.rank, &voters).map(|shard| shard..shard + 1);
            if let Some(shards) = disputed.or_else(|| lead.round.take_free(most)) {
                self.give(&hand, shards);
                continue;
            }
            let Some(pace) = hand.pace.filter(|_| place < working) else { continue };
            let (own_pace, peers) = (lead.own_pace, &lead.peers);
            let pace_of = |owner| {
                if owner == me { own_pace } else { peers.values().find(|it| it.rank == owner)?.pace }
            };
            let Some((victim, end)) = lead.round.steal(now, pace, pace_of) else { continue };
            match lead.link_of(victim) {
                Some(link) => self.send(link, Message::Trim { turn, end }),
                None => {
                    for message in self.work.trim(turn, end) {
                        self.on_member(me, message);
                    }
                }
            }
        }
    }

    /// Ends what disputes can be ended.
    fn settle(&mut self, step: u64, voters: &[Voter]) {
        let number = step + 1;
        loop {
            let Role::Lead(lead) = &mut self.role else { return };
            let Some((shard, verdict)) = lead.round.settle(voters) else { return };
            let what = format!("shard {shard} of step {number}");
            let wrong = match verdict {
                Verdict::Sum(_, wrong) => wrong,
                Verdict::Diverged(sentence) => {
                    lead.running = false;
                    let advice = "a lower --learning-rate or --clip may help";
                    return self.end(Outcome::Failed(format!(
                        "the training diverged: {sentence} for {what}; {advice}"
                    )));
                }
                Verdict::Unclear(who) => {
                    lead.running = false;
                    let reason = format!(
                        "{who} have computed different sums of {what}, and nobody else is there to tell which is right"
                    );
                    return self.end(Outcome::Failed(reason));
                }
            };
            let news: Vec<Rank> = wrong.into_iter().filter(|rank| lead.suspects.insert(*rank)).collect();
            // What else they have computed for this step is not trusted either.
            let is_void = !news.is_empty() && voters.iter().any(|voter| !lead.suspects.contains(&voter.rank));
            if is_void {
                (lead.running, lead.number) = (false, lead.number + 1);
                lead.round.clear();
                self.work.drop();
            }
            for rank in &news {
                let then = if is_void {
                    "it gets no more, and the step begins anew"
                } else {
                    "nobody else is there to compute them"
                };
                self.send_action(Action::Say(format!(
                    "rank {rank} has computed a wrong sum of {what}, its device may have a fault: {then}"
                )));
            }
            if is_void {
                return;
            }
            let Role::Lead(lead) = &mut self.role else { return };
            if lead.round.is_complete() {
                return self.commit();
            }
        }
    }
}
