//! Error codes that come and go: how often each came, and for how long it stays.
//!
//! A code that is there at one look and was not at the one before has come once, however long it stays.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::api::Level;

/// What is made of a code that comes again, or stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Often {
    /// So often within [`Often::within`] is too often.
    pub times: usize,
    pub within: Duration,
    /// How long it counts as too often after it came last; `None`: until the agent is started again.
    pub holds: Option<Duration>,
    /// Longer than that it is suspicious, if it stays.
    pub stays: Option<Duration>,
}

/// The codes of one card.
#[derive(Debug, Default)]
pub struct Recurring(BTreeMap<u64, Code>);

#[derive(Debug, Default)]
struct Code {
    /// When it came.
    came: VecDeque<Instant>,
    /// Since when it is there.
    since: Option<Instant>,
    /// It came too often, and last then.
    too_often: Option<Instant>,
}

impl Recurring {
    /// Takes in the codes that are there now, and says which came too often, or stay for too long.
    ///
    /// * `rule`: of a code; `None`: it may come as often as it likes.
    pub fn look(
        &mut self,
        now: Instant,
        codes: &[u64],
        rule: fn(u64) -> Option<Often>,
    ) -> Vec<(Level, String)> {
        for code in codes.iter().filter(|code| rule(**code).is_some()) {
            self.0.entry(*code).or_default();
        }
        let mut said = Vec::new();
        self.0.retain(|number, code| {
            let Some(often) = rule(*number) else { return false };
            let is_there = codes.contains(number);
            if is_there && code.since.is_none() {
                code.came.push_back(now);
            }
            code.since = is_there.then(|| code.since.unwrap_or(now));
            let is_old = |at: &Instant| often.within <= now - *at;
            while often.times < code.came.len() || code.came.front().is_some_and(is_old) {
                code.came.pop_front();
            }
            // Whatever comes while it is one too many is another one.
            let came = is_there && code.came.back() == Some(&now);
            if often.times <= code.came.len() || (came && code.too_often.is_some()) {
                code.too_often = code.came.back().copied();
            }
            code.too_often.take_if(|at| often.holds.is_some_and(|holds| holds <= now - *at));
            if code.too_often.is_some() {
                let hours = often.within.as_secs() / 3600;
                let came = format!("code {number:08x} came {} times within {hours} h", often.times);
                said.push((Level::Lost, format!("{came}: keep the card away and have it looked at")));
            }
            let stays = code.since.zip(often.stays).filter(|(since, stays)| *stays <= now - *since);
            if let Some((_, stays)) = stays {
                let seconds = stays.as_secs();
                said.push((Level::Suspect, format!("code {number:08x} stays for more than {seconds} s")));
            }
            is_there || code.too_often.is_some() || !code.came.is_empty()
        });
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn twice_a_day(code: u64) -> Option<Often> {
        let often = Often { times: 2, within: 1440 * MINUTE, holds: None, stays: None };
        (code == 7).then_some(often)
    }

    fn five_an_hour(_: u64) -> Option<Often> {
        let holds = Some(120 * MINUTE);
        Some(Often { times: 5, within: 60 * MINUTE, holds, stays: Some(Duration::from_secs(20)) })
    }

    fn levels(said: &[(Level, String)]) -> Vec<Level> {
        said.iter().map(|(level, _)| *level).collect()
    }

    #[test]
    fn a_code_counts_once_for_as_long_as_it_stays_and_twice_when_it_comes_again() {
        let (mut codes, start) = (Recurring::default(), Instant::now());
        let mut at = |minutes: u32, there: &[u64]| {
            let said = codes.look(start + minutes * MINUTE, there, twice_a_day);
            (levels(&said), said.first().map(|(_, why)| why.clone()).unwrap_or_default())
        };
        for minutes in 0..5 {
            assert_eq!(at(minutes, &[7, 8]).0, [], "it stays");
        }
        assert_eq!(
            (at(5, &[]).0, at(6, &[8]).0, at(7, &[]).0, at(8, &[8]).0),
            (vec![], vec![], vec![], vec![])
        );
        let (level, why) = at(9, &[7]);
        assert_eq!(
            (level, &why[..]),
            (
                vec![Level::Lost],
                "code 00000007 came 2 times within 24 h: keep the card away and have it looked at"
            )
        );
        assert_eq!(at(20_000, &[]).0, [Level::Lost], "somebody has to look at it");
        let (mut codes, mut at) = (Recurring::default(), start);
        for _ in 0..5 {
            assert_eq!(codes.look(at, &[7], twice_a_day), [], "once a day, and no more");
            codes.look(at + MINUTE, &[], twice_a_day);
            at += 1440 * MINUTE;
        }
    }

    #[test]
    fn what_comes_and_goes_is_let_off_after_a_while_and_what_stays_is_suspicious() {
        let (mut codes, start) = (Recurring::default(), Instant::now());
        let mut at = |seconds: u32, there: &[u64]| {
            levels(&codes.look(start + Duration::from_secs(seconds.into()), there, five_an_hour))
        };
        for time in 0..4 {
            assert_eq!(at(100 * time, &[9]), []);
            assert_eq!(at(100 * time + 19, &[9]), []);
            assert_eq!(at(100 * time + 20, &[9]), [Level::Suspect]);
            assert_eq!(at(100 * time + 50, &[]), []);
        }
        assert_eq!(at(400, &[9]), [Level::Lost]);
        assert_eq!((at(401, &[]), at(400 + 7199, &[])), (vec![Level::Lost], vec![Level::Lost]));
        assert_eq!(at(400 + 7200, &[]), [], "nothing came for two hours");
        assert_eq!(at(400 + 7201, &[9]), [], "it begins anew");
    }
}
