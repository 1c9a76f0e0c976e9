//! Where the time of a training goes.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;

/// Steps whose times are remembered, to know what one takes when nothing is wrong.
const RECENT: usize = 64;
/// A step that takes so many times the usual is out of the ordinary.
const ORDINARY: f64 = 1.2;

/// Times by cause, in microseconds; their sum is the time from the first start to the last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// In steps, as long as they take when nothing is wrong.
    pub steps_us: u64,
    /// Loading, and waiting for others, before the first step.
    pub start_us: u64,
    /// What steps took longer in which a member was lost or late, and what it took to find a new leader.
    pub recovery_us: u64,
    /// What other steps took longer.
    pub slow_us: u64,
    /// From the last checkpoint to a start from it: what was computed in vain, and the time until it was placed again.
    pub lost_us: u64,
    /// No part of that time: what one member would take for all shards of all steps. Over the time of all members that is the
    /// share of what they could have done.
    #[serde(default)]
    pub work_us: u64,
}

impl Spent {
    /// Adds the times of another one.
    pub fn add(&mut self, other: &Spent) {
        let Spent { steps_us, start_us, recovery_us, slow_us, lost_us, work_us } = other;
        self.steps_us += steps_us;
        self.start_us += start_us;
        self.recovery_us += recovery_us;
        self.slow_us += slow_us;
        self.lost_us += lost_us;
        self.work_us += work_us;
    }

    /// All of the time.
    pub fn sum_us(&self) -> u64 {
        self.steps_us + self.start_us + self.recovery_us + self.slow_us + self.lost_us
    }
}

/// Accounts for the time of a member, from one step to the next.
#[derive(Default)]
pub struct Clock {
    /// All time before is accounted for.
    until: Option<Duration>,
    recent: VecDeque<u64>,
    usual_us: Option<u64>,
    trouble: bool,
}

impl Clock {
    /// Begins to count.
    pub fn start(&mut self, now: Duration) {
        self.until.get_or_insert(now);
    }

    /// A member was lost or late: what this step takes longer is due to that.
    pub fn trouble(&mut self) {
        self.trouble = true;
    }

    /// The first step begins.
    pub fn begin(&mut self, now: Duration) -> Spent {
        Spent { start_us: self.lap(now), ..Spent::default() }
    }

    /// Another member accounts for the time until now.
    pub fn skip(&mut self, now: Duration) {
        self.until = Some(now);
    }

    /// A step is done.
    pub fn step(&mut self, now: Duration) -> Spent {
        let took = self.lap(now);
        let usual = self.usual_us.unwrap_or(took);
        let extra = if (took as f64) <= ORDINARY * usual as f64 { 0 } else { took - usual };
        let trouble = std::mem::take(&mut self.trouble);
        if !trouble {
            self.note(took);
        }
        let mut spent = Spent { steps_us: took - extra, ..Spent::default() };
        *if trouble { &mut spent.recovery_us } else { &mut spent.slow_us } = extra;
        spent
    }

    /// Another member has accounted for a step.
    pub fn follow(&mut self, now: Duration, spent: &Spent) {
        self.skip(now);
        self.note(spent.steps_us);
    }

    fn note(&mut self, took: u64) {
        self.recent.push_back(took);
        if RECENT < self.recent.len() {
            self.recent.pop_front();
        }
        let mut sorted: Vec<u64> = self.recent.iter().copied().collect();
        let middle = sorted.len() / 2;
        self.usual_us = Some(*sorted.select_nth_unstable(middle).1);
    }

    /// The median of the remembered times.
    pub fn usual(&self) -> Option<Duration> {
        self.usual_us.map(Duration::from_micros)
    }

    fn lap(&mut self, now: Duration) -> u64 {
        let since = self.until.replace(now).unwrap_or(now);
        now.saturating_sub(since).as_micros() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_time_is_accounted_for_by_its_cause() {
        let at = Duration::from_millis;
        let mut clock = Clock::default();
        clock.start(at(5));
        let mut spent = clock.begin(at(105));
        for step in 1..=10 {
            spent.add(&clock.step(at(105 + 10 * step)));
        }
        clock.trouble();
        spent.add(&clock.step(at(240)));
        spent.add(&clock.step(at(251)));
        spent.add(&clock.step(at(281)));
        let expected = Spent {
            start_us: 100_000,
            steps_us: 131_000,
            recovery_us: 25_000,
            slow_us: 20_000,
            ..Spent::default()
        };
        assert_eq!((spent, spent.sum_us()), (expected, 276_000));
    }
}
