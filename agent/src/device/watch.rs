//! What is known of the health of each device over time: a state machine with the looks as its input.
//!
//! ```text
//! healthy ── something is suspicious ──▶ suspect ── SUSPICION passes, or a probe is passed ──▶ healthy
//!    │                                      └── two kinds of signals, or a probe is failed ──▶ quarantined
//!    └── cannot be used, or must be reset ──▶ draining, to be reset, to be rebooted, faulty
//! any but suspect ── nothing is said any more ──▶ on probation ── PROBATION passes, or a probe is passed ──▶ healthy
//! ```

use std::collections::BTreeMap;

use aquifer_core::{Fault, Health, Name};

/// How long a suspicion keeps new work away if nothing else is seen, in milliseconds.
pub const SUSPICION_MS: u64 = 600_000;
/// How long a device that was repaired must stay well before it takes work, if it cannot be probed, in milliseconds.
pub const PROBATION_MS: u64 = 60_000;
/// A device that does less than so many per cent of what its class was measured to do is a straggler.
pub const STRAGGLER_PERCENT: f64 = 70.0;
/// How often a well device is probed that nobody uses, in milliseconds: it may be slow without anything to be seen.
pub const PROBE_EVERY_MS: u64 = 24 * 3_600_000;
/// How often one that is not well, in milliseconds.
pub const PROBE_AGAIN_MS: u64 = 10_000;

/// The devices of a node.
#[derive(Debug, Default)]
pub struct Watch {
    known: BTreeMap<Name, Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// What was said last.
    said: Option<Fault>,
    /// Since when, in milliseconds.
    since: u64,
    /// Why it is on probation.
    probation: Option<Name>,
    /// A suspicion that a probe has cleared.
    cleared: bool,
    /// What a probe said that was failed.
    straggles: Option<Name>,
    /// When it was last probed or measured, or that could not be done.
    tried: Option<u64>,
}

impl Watch {
    /// Takes in what a look says of a device now, and gives what its health is.
    ///
    /// * `said`: by the backend. `now_ms`: Unix time.
    /// * `trusted`: what is said counts as it is, as of fake devices.
    pub fn look(&mut self, now_ms: u64, uuid: &Name, said: Option<&Fault>, trusted: bool) -> Option<Fault> {
        let known = self.known.entry(uuid.clone()).or_default();
        let same = |one: &Fault, other: &Fault| (one.health, &one.why) == (other.health, &other.why);
        let is_same = match (&known.said, said) {
            (None, None) => true,
            (Some(one), Some(other)) => same(one, other),
            _ => false,
        };
        if !is_same {
            let left = known.said.as_ref().filter(|was| said.is_none() && was.health != Health::Suspect);
            if let Some(was) = left.filter(|_| !trusted) {
                known.probation = Some(was.to_string().into());
            }
            known.since = now_ms;
            known.cleared = false;
            known.said = said.cloned();
        }
        let since = known.since;
        let fault = |health, why: Name| Some(Fault { health, why, since_ms: since });
        let passed = now_ms.saturating_sub(since);
        match (&known.said, &known.straggles) {
            // Two independent signals.
            (Some(said), Some(straggles)) if said.health == Health::Suspect => {
                fault(Health::Quarantined, format!("{}; {straggles}", said.why).into())
            }
            (Some(said), _) if said.health == Health::Suspect && !trusted => {
                let is_over = known.cleared || SUSPICION_MS <= passed;
                if is_over { None } else { fault(said.health, said.why.clone()) }
            }
            (Some(said), _) => fault(said.health, said.why.clone()),
            (None, Some(straggles)) => fault(Health::Suspect, straggles.clone()),
            (None, None) => {
                known.probation.take_if(|_| PROBATION_MS <= passed);
                fault(Health::Probation, known.probation.clone()?)
            }
        }
    }

    /// A probe of a device did so many per cent of what its class was measured to do.
    pub fn on_probe(&mut self, uuid: &Name, percent: f64) {
        let known = self.known.entry(uuid.clone()).or_default();
        let passes = STRAGGLER_PERCENT <= percent;
        known.straggles = (!passes).then(|| {
            format!("a probe does {percent:.0} % of what its class was measured to do").as_str().into()
        });
        if passes {
            known.cleared = true;
            known.probation = None;
        }
    }

    /// A device was probed or measured, or that could not be done: it is not tried again soon.
    pub fn on_tried(&mut self, now_ms: u64, uuid: &Name) {
        self.known.entry(uuid.clone()).or_default().tried = Some(now_ms);
    }

    /// Whether a probe would tell something: the device is suspect, on probation or quarantined; or it is well, and was not
    /// probed for long.
    ///
    /// * `regularly`: well ones are probed.
    pub fn wants_probe(&self, now_ms: u64, uuid: &Name, fault: Option<&Fault>, regularly: bool) -> bool {
        let tried = self.known.get(uuid).and_then(|known| known.tried);
        let is_due = |every_ms| tried.is_none_or(|at| every_ms <= now_ms.saturating_sub(at));
        match fault.map(|fault| fault.health) {
            None => regularly && is_due(PROBE_EVERY_MS),
            Some(Health::Suspect | Health::Probation | Health::Quarantined) => is_due(PROBE_AGAIN_MS),
            Some(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(health: Health, why: &str) -> Fault {
        Fault { health, why: why.into(), since_ms: 0 }
    }

    fn state(watch: &mut Watch, now_ms: u64, said: Option<&Fault>) -> Option<(Health, u64)> {
        let fault = watch.look(now_ms, &"gpu-0".into(), said, false)?;
        Some((fault.health, fault.since_ms))
    }

    #[test]
    fn a_suspicion_passes_and_a_new_one_begins_anew() {
        let (mut watch, one) = (Watch::default(), said(Health::Suspect, "xid 74"));
        assert_eq!(state(&mut watch, 5, None), None);
        assert_eq!(state(&mut watch, 10, Some(&one)), Some((Health::Suspect, 10)));
        assert_eq!(state(&mut watch, 9 + SUSPICION_MS, Some(&one)), Some((Health::Suspect, 10)));
        assert_eq!(
            state(&mut watch, 10 + SUSPICION_MS, Some(&one)),
            None,
            "it is said still, and was looked at"
        );
        let other = said(Health::Suspect, "ECC");
        let now = 20 + SUSPICION_MS;
        assert_eq!(state(&mut watch, now, Some(&other)), Some((Health::Suspect, now)));
        assert_eq!(state(&mut watch, now + 1, None), None, "no probation after a mere suspicion");
    }

    #[test]
    fn what_was_bad_comes_back_by_itself_through_probation() {
        let mut watch = Watch::default();
        for health in [Health::Faulty, Health::ResetWanted, Health::Quarantined] {
            let bad = said(health, "bad");
            assert_eq!(state(&mut watch, 10, Some(&bad)), Some((health, 10)));
            assert_eq!(
                state(&mut watch, 1 << 40, Some(&bad)),
                Some((health, 10)),
                "it does not pass by itself"
            );
            let now = (1 << 40) + 5;
            assert_eq!(state(&mut watch, now, None), Some((Health::Probation, now)));
            assert_eq!(state(&mut watch, now + PROBATION_MS - 1, None), Some((Health::Probation, now)));
            assert_eq!(state(&mut watch, now + PROBATION_MS, None), None);
        }
    }

    #[test]
    fn a_probe_ends_suspicion_and_probation_and_one_that_is_failed_is_the_second_signal() {
        let (mut watch, suspect) = (Watch::default(), said(Health::Suspect, "xid 74"));
        state(&mut watch, 10, Some(&suspect));
        watch.on_probe(&"gpu-0".into(), 69.0);
        assert_eq!(state(&mut watch, 20, Some(&suspect)), Some((Health::Quarantined, 10)));
        assert_eq!(state(&mut watch, 30, None), Some((Health::Suspect, 30)), "it is slow still");
        watch.on_probe(&"gpu-0".into(), 98.0);
        assert_eq!(state(&mut watch, 40, None), None);
        state(&mut watch, 50, Some(&said(Health::Faulty, "lost")));
        assert_eq!(state(&mut watch, 60, None), Some((Health::Probation, 60)));
        watch.on_probe(&"gpu-0".into(), 98.0);
        assert_eq!(state(&mut watch, 61, None), None);
    }

    #[test]
    fn a_well_device_is_probed_once_a_day_and_one_that_is_not_again_and_again() {
        let (mut watch, uuid) = (Watch::default(), Name::from("gpu-0"));
        let suspect = said(Health::Suspect, "xid 74");
        assert!(watch.wants_probe(5, &uuid, None, true), "it was never probed");
        assert!(!watch.wants_probe(5, &uuid, None, false));
        watch.on_tried(10, &uuid);
        let due = |watch: &Watch, now_ms, fault| watch.wants_probe(now_ms, &uuid, fault, true);
        assert!(!due(&watch, 9 + PROBE_EVERY_MS, None) && due(&watch, 10 + PROBE_EVERY_MS, None));
        let now = 10 + PROBE_AGAIN_MS;
        assert!(!due(&watch, now - 1, Some(&suspect)) && due(&watch, now, Some(&suspect)));
        assert!(!due(&watch, 1 << 40, Some(&said(Health::ResetWanted, "xid 95"))));
        // Slow without anything else to be seen: it takes no new work, until a probe says otherwise.
        watch.on_probe(&uuid, 69.0);
        assert_eq!(state(&mut watch, now, None).map(|(health, _)| health), Some(Health::Suspect));
        watch.on_probe(&uuid, 71.0);
        assert_eq!(state(&mut watch, now, None), None);
    }

    #[test]
    fn what_a_file_says_counts_as_it_is() {
        let mut watch = Watch::default();
        let (uuid, bad) = ("fake".into(), said(Health::Suspect, "lost"));
        assert!(watch.look(10, &uuid, Some(&bad), true).is_some());
        assert!(watch.look(1 << 40, &uuid, Some(&bad), true).is_some());
        assert_eq!(watch.look(20, &uuid, None, true), None);
    }
}
