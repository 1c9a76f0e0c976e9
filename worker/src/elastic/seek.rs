//! How a member that follows nobody finds whom to follow, or that it is to lead.

use super::*;

/// Whom a member asks.
#[derive(Default)]
pub(super) struct Seek {
    /// When it began to.
    since: Option<Duration>,
    /// Whom it asks, and how far it has come.
    target: Option<Rank>,
    link: Option<Link>,
    /// When to try the next one.
    retry: Duration,
    /// The last answer.
    said: String,
}

impl Node {
    /// Looks for a leader, at first at this member.
    pub(super) fn begin_seeking(&mut self, target: Option<Rank>) {
        self.role = Role::Seek(Seek { since: Some(self.now), target, ..Seek::default() });
        if let Some(target) = target {
            self.send_action(Action::Dial(target));
        }
    }

    /// Looks for the next one to ask, and leads if that is this member.
    pub(super) fn seek(&mut self) {
        let (now, me) = (self.now, self.me());
        let Role::Seek(seek) = &mut self.role else { return };
        let since = *seek.since.get_or_insert(now);
        if now < seek.retry || self.members.is_empty() {
            return;
        }
        match (seek.target, seek.link) {
            (Some(target), Some(link)) => {
                self.send_action(Action::Close(link));
                return self.try_next(target, "no answer".into());
            }
            (Some(_), None) => return,
            (None, _) => (),
        }
        let join = self.settings.join;
        if since + join <= now && !seek.said.is_empty() {
            let (first, said) = (&self.members[0], &seek.said);
            let who = format!("rank {} at {}", first.rank, first.address);
            let reason = format!("rank {me} waited {} s for {who}: {said}", join.as_secs());
            return self.exit(Outcome::Failed(reason));
        }
        let first = match self.first() {
            Some(first) => first,
            // Nobody answers whom it could get a state from: all are asked again.
            None => {
                self.away.clear();
                self.members[0].rank
            }
        };
        // One without a state loads it, if those who may have a newer one do not answer for long.
        let may = self.step.is_some() || self.members[0].rank == first || since + GATHER <= now;
        let leads = first == self.me() && may;
        if leads {
            return self.take_the_lead();
        }
        let first = if first == self.me() { self.members[0].rank } else { first };
        let Role::Seek(seek) = &mut self.role else { unreachable!("seen above") };
        seek.target = Some(first);
        self.send_action(Action::Dial(first));
    }

    pub(super) fn seek_event(&mut self, event: Event) {
        let me = self.settings.identity.clone();
        let (now, step) = (self.now, self.step);
        let patience = if step.is_some() { self.silence() } else { SILENCE };
        let Role::Seek(seek) = &mut self.role else { return };
        let Some(target) = seek.target else { return };
        match event {
            Event::Dialed(link) => {
                (seek.link, seek.retry) = (Some(link), now + patience);
                self.send(link, Message::Hello(me, step));
            }
            Event::NotDialed(reason) => self.try_next(target, reason),
            Event::Closed(link, reason) if seek.link == Some(link) => self.try_next(target, reason),
            Event::Got(link, message) if seek.link == Some(link) => match message {
                Message::Welcome => {
                    self.away.remove(&target);
                    self.follow(link, target);
                }
                Message::Follow(leader) if self.is_out_of_reach(leader) => {
                    self.send_action(Action::Close(link));
                    self.ask_again(4 * SOON, format!("it follows rank {leader}, which does not answer"));
                }
                Message::Follow(leader) if leader != me.rank => {
                    self.send_action(Action::Close(link));
                    let Role::Seek(seek) = &mut self.role else { unreachable!("seen above") };
                    (seek.target, seek.link) = (Some(leader), None);
                    self.send_action(Action::Dial(leader));
                }
                Message::Refuse { reason, .. } if reason.starts_with(SPEAKS) && !self.settings.is_fixed => {
                    self.send_action(Action::Close(link));
                    self.pass_by(target, reason);
                }
                Message::Refuse { reason, for_now: false } => {
                    let reason = format!("rank {target} refused rank {}: {reason}", me.rank);
                    self.exit(Outcome::Failed(reason));
                }
                Message::Refuse { reason, .. } => {
                    self.send_action(Action::Close(link));
                    // One that was passed over may be there by now.
                    let (now, passed) = (self.now, AVOID - AVOID_AT_ALL);
                    self.away.retain(|_, until| now + passed < *until);
                    self.ask_again(if step.is_some() { SOON } else { RETRY }, reason);
                }
                _ => {
                    self.send_action(Action::Close(link));
                    self.try_next(target, "it said something else than expected".into());
                }
            },
            Event::Got(link, _) => self.send_action(Action::Close(link)),
            _ => (),
        }
    }

    /// The one that was asked is of another version, as it is while the programs of a pool are replaced one by one. Who has a
    /// state goes on with those of its own version; who has none waits until the others have ended, however long that takes: to
    /// fail would only have it started again and again, until the training fails with it.
    fn pass_by(&mut self, target: Rank, reason: String) {
        if self.step.is_some() {
            return self.try_next(target, reason);
        }
        let (now, me) = (self.now, self.me());
        let Role::Seek(seek) = &mut self.role else { return };
        seek.since = Some(now);
        if seek.said != reason {
            let sentence =
                format!("rank {me} waits until the others have ended: rank {target} refused it, {reason}");
            self.send_action(Action::Wait(sentence));
        }
        self.ask_again(LATER, reason);
    }

    /// The one that was asked does not answer.
    fn try_next(&mut self, target: Rank, reason: String) {
        self.avoid(target);
        let wait = match self.step {
            Some(_) if !self.settings.is_fixed && self.first().is_some() => Duration::ZERO,
            Some(_) => SOON,
            None => RETRY,
        };
        self.ask_again(wait, reason);
    }

    /// Asks the next one after a while.
    fn ask_again(&mut self, wait: Duration, reason: String) {
        let now = self.now;
        let Role::Seek(seek) = &mut self.role else { return };
        (seek.target, seek.link, seek.retry, seek.said) = (None, None, now + wait, reason);
    }
}
