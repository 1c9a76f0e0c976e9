//! What goes wrong with processes and connections, and who comes and goes.

use super::{END, Happens, Seen, World};
use aquifer_worker::elastic::{Event, Link, Member, Rank};
use std::time::Duration;

impl World {
    /// Something goes wrong, or somebody comes or goes.
    pub fn trouble(&mut self, seen: &mut Seen) {
        let ranks: Vec<Rank> = self.processes.keys().copied().collect();
        let Some(victim) = ranks.get(self.random.bits() as usize % ranks.len().max(1)).copied() else {
            return;
        };
        let leads = self.processes[&victim].node.leads();
        let mut note = |case| *seen.entry(case).or_default() += 1;
        match self.random.bits() % 10 {
            0..=2 => {
                note(if leads { "the leader dies" } else { "a member dies" });
                if self.processes[&victim].engine_free > self.now {
                    note("a member dies while it computes");
                }
                if self.processes[&victim].state.is_none() {
                    note("a member dies while it gets the state");
                }
                self.kill(victim);
                if self.chance(4)
                    && let Some(second) = ranks.iter().find(|rank| **rank != victim)
                {
                    note("two die at once");
                    self.kill(*second);
                }
            }
            3 | 4 => {
                note(if leads { "the leader hangs" } else { "a member hangs" });
                let sends = leads && self.processes.values().any(|it| it.state.is_none());
                if sends {
                    note("the leader hangs while it sends a state");
                }
                let wait = match self.goes_on_without(victim) && self.chance(8) {
                    true => 2 * END,
                    false => Duration::from_millis(self.random.bits() % 12_000),
                };
                if END < wait {
                    *seen.entry("one hangs for good").or_default() += 1;
                }
                self.hang(victim, wait);
            }
            5 => {
                let links: Vec<Link> = self.links.keys().copied().collect();
                if let Some(link) = links.get(self.random.bits() as usize % links.len().max(1)) {
                    note("a connection breaks");
                    self.say(|| format!("connection {link} breaks"));
                    self.cut(*link, true);
                }
            }
            6 | 7 if self.lists.last().is_some_and(|list| list.len() < 8) => {
                note("a member joins");
                self.join();
            }
            8 if self.goes_on_without(victim) => {
                note("a member is let go");
                self.say(|| format!("{victim} is let go"));
                let mut list = self.lists.last().expect("one").clone();
                list.retain(|it| it.rank != victim);
                self.publish(list);
                let stop = Happens::Event(victim, None, Event::Stop { alone: true });
                self.at(self.now + Duration::from_millis(600), stop);
            }
            9 if self.chance(6) => {
                note("all die");
                ranks.into_iter().for_each(|rank| self.kill(rank));
            }
            _ => (),
        }
    }

    /// Whether somebody else takes part who does not hang.
    fn goes_on_without(&self, victim: Rank) -> bool {
        let works = |it: &Member| {
            it.rank != victim && self.processes.get(&it.rank).is_some_and(|it| it.hangs.is_none())
        };
        self.lists.last().is_some_and(|list| list.iter().any(works))
    }
}
