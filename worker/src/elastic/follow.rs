//! A member that follows a leader: it computes what it is given, and applies what the leader sums up.

use super::*;

/// What a follower knows.
pub(super) struct Follow {
    pub link: Link,
    pub leader: Rank,
    /// When the leader last gave a sign of life.
    heard: Duration,
}

impl Node {
    /// Follows a leader that has let it in.
    pub(super) fn follow(&mut self, link: Link, leader: Rank) {
        self.role = Role::Follow(Follow { link, leader, heard: self.now });
        let told = self.step.map_or(Vec::new(), |step| self.work.offer(step));
        told.into_iter().for_each(|message| self.send(link, message));
        if self.stop == Some(false) {
            self.send(link, Message::Stop);
        }
    }

    /// An event on some connection.
    pub(super) fn follow_event(&mut self, event: Event) {
        let now = self.now;
        let Role::Follow(follow) = &mut self.role else { return };
        let (link, leader) = (follow.link, follow.leader);
        match event {
            Event::Alive(from) if from == link => follow.heard = now,
            Event::Closed(from, reason) if from == link => self.lost_leader(leader, &reason),
            Event::Got(from, message) if from == link => {
                follow.heard = now;
                self.told_by_leader(link, message);
            }
            // Of somebody who has nothing to say here, or asked for by a seeker that has found its leader since.
            Event::Got(from, _) | Event::Dialed(from) => {
                self.strangers.remove(&from);
                self.send_action(Action::Close(from));
            }
            _ => (),
        }
    }

    fn told_by_leader(&mut self, link: Link, message: Message) {
        match message {
            Message::Ping(saved) => {
                self.saved = self.saved.max(saved);
                self.send(link, Message::Pong);
            }
            Message::Work { turn, shards } => self.work.give(turn, shards),
            Message::Trim { turn, end } => {
                for message in self.work.trim(turn, end) {
                    self.send(link, message);
                }
            }
            part @ Message::Part { .. } => self.work.hold(&part),
            Message::Commit { step, total, spent } => match self.step {
                Some(own) if own + 1 == step => {
                    self.work.forget();
                    self.clock.follow(self.now, &spent);
                    self.apply(step, total, spent);
                }
                Some(own) if step <= own => (),
                // It may come from one that this member has not caught up with.
                _ => self.part_with(link, "a step is missing"),
            },
            // One that has become old on its way is not gone back to.
            Message::State(snapshot) if self.step.is_some_and(|own| snapshot.step <= own) => (),
            Message::State(snapshot) => {
                self.work.forget();
                self.install(snapshot);
            }
            Message::Want(theirs) => match (self.step, &self.last) {
                (Some(step), Some((total, spent))) if theirs.is_some_and(|theirs| theirs + 1 == step) => {
                    let (total, spent) = (Arc::clone(total), *spent);
                    self.send(link, Message::Commit { step, total, spent });
                }
                (Some(_), _) => self.send_action(Action::SendState(link)),
                (None, _) => self.part_with(link, "it wants a state"),
            },
            Message::End(outcome, saved) => {
                self.saved = self.saved.max(saved);
                self.exit(outcome);
            }
            _ => self.part_with(link, "it said something else than expected"),
        }
    }

    /// Takes a state that is not older than the own one.
    pub(super) fn install(&mut self, snapshot: Box<Snapshot>) {
        (self.step, self.last) = (Some(snapshot.step), None);
        self.clock.skip(self.now);
        self.send_action(Action::Install(snapshot));
    }

    /// The next step is done.
    pub(super) fn apply(&mut self, step: u64, total: Arc<Values>, spent: Spent) {
        // One of a device is of this member alone: kept, it would take its room for somebody who may come back.
        let last = total.device().is_none().then(|| (Arc::clone(&total), spent));
        (self.step, self.last) = (Some(step), last);
        self.send_action(Action::Apply { step, total, spent });
    }

    fn part_with(&mut self, link: Link, reason: &str) {
        self.send_action(Action::Close(link));
        let Role::Follow(follow) = &self.role else { return };
        self.lost_leader(follow.leader, reason);
    }

    /// A leader that was silent for too long is told that it is one no more, for when it wakes up.
    pub(super) fn watch_leader(&mut self) {
        let Role::Follow(follow) = &self.role else { return };
        if !self.is_silent(follow.heard) {
            return;
        }
        let bears = self.silence();
        let (link, leader) = (follow.link, follow.leader);
        self.avoid(leader);
        let next = self.first();
        self.send(link, Message::Leave(next));
        self.send_action(Action::Close(link));
        self.lost_leader(leader, &format!("silent for {:.1} s", bears.as_secs_f64()));
    }

    fn lost_leader(&mut self, leader: Rank, reason: &str) {
        if self.settings.is_fixed {
            return self.exit(Outcome::Failed(format!("rank {leader} left: {reason}")));
        }
        self.begin_seeking(None);
    }
}
