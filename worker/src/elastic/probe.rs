//! How two leaders become one.

use super::*;

/// Whom a leader last asked whether it leads as well.
pub(super) struct Probe {
    whom: Option<Rank>,
    asked: Duration,
    pub link: Option<Link>,
}

impl Probe {
    /// Nobody was asked yet.
    pub fn new(now: Duration) -> Probe {
        Probe { whom: None, asked: now, link: None }
    }
}

impl Node {
    /// Asks a member that does not follow, and serves for less long, whether it leads as well: of two leaders the one that
    /// would have led from the start gives way.
    pub(super) fn probe(&mut self) {
        let (now, me) = (self.now, self.me());
        let Role::Lead(lead) = &mut self.role else { return };
        if !lead.has_gathered || now < lead.probe.asked + PROBE {
            return;
        }
        lead.probe.asked = now;
        let juniors = self.members.iter().skip_while(|it| it.rank != me).skip(1).map(|it| it.rank);
        let strays: Vec<Rank> = juniors.filter(|rank| lead.link_of(*rank).is_none()).collect();
        let after = strays.iter().position(|rank| Some(*rank) == lead.probe.whom).map_or(0, |at| at + 1);
        let next = strays.get(after).or(strays.first()).copied();
        lead.probe.whom = next;
        let old = lead.probe.link.take();
        self.actions.extend(old.map(Action::Close));
        self.actions.extend(next.map(Action::Dial));
    }

    /// What comes of that.
    pub(super) fn probe_event(&mut self, event: Event) {
        let (identity, step) = (self.settings.identity.clone(), self.step);
        let Role::Lead(lead) = &mut self.role else { return };
        match (event, lead.probe.whom) {
            (Event::Dialed(link), _) => {
                lead.probe.link = Some(link);
                self.send(link, Message::Hello(identity, step));
            }
            (Event::Got(link, Message::Welcome), Some(other)) => {
                lead.links().into_iter().for_each(|peer| self.send_action(Action::Close(peer)));
                self.work.forget();
                // More of it than when it asked, by now.
                self.send(link, Message::Have(step));
                self.follow(link, other);
            }
            (Event::Got(link, _), _) => {
                lead.probe.link = None;
                self.send_action(Action::Close(link));
            }
            _ => lead.probe.link = None,
        }
    }
}
