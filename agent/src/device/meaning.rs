//! What answers about a card's health mean.

use aquifer_core::Health;

use super::api::{Level, Rule};

/// What an answer means.
///
/// * `bytes`: all that the call wrote. `before`: what other checks of the card have said.
pub fn meanings(rule: &Rule, value: u64, bytes: &[u8], before: &[(Level, String)]) -> Vec<(Level, String)> {
    let of = |(_, level, what): &(u64, Level, &str)| (*level, what.to_string());
    let told = |level: Level| before.iter().any(|(before, _)| level.min(Level::Drain) <= *before);
    match *rule {
        Rule::Values(values) => values.iter().filter(|(bad, ..)| *bad == value).map(of).collect(),
        Rule::Bits(bits) => bits.iter().filter(|(bit, ..)| value & bit != 0).map(of).collect(),
        Rule::Else(values) => {
            values.iter().filter(|(bad, level, _)| *bad == value && !told(*level)).map(of).collect()
        }
        Rule::Not0(level, what) if value != 0 => vec![(level, what.to_string())],
        Rule::Not0(..) => Vec::new(),
        Rule::Each { means, .. } => numbers(rule, value, bytes).into_iter().filter_map(means).collect(),
    }
}

/// The numbers of a list.
pub fn numbers(rule: &Rule, value: u64, bytes: &[u8]) -> Vec<u64> {
    let Rule::Each { at, stride, most, .. } = *rule else { return Vec::new() };
    let number = |item: usize| {
        let word = bytes.get(at + stride * item..)?.get(..4)?.try_into().ok()?;
        Some(u32::from_le_bytes(word).into())
    };
    (0..(value as usize).min(most)).filter_map(number).collect()
}

/// How bad a level is, where so many kinds of signals say something: two that are suspicious are one that is bad.
pub fn health_of(level: Level, kinds: u32) -> Health {
    match level {
        Level::Note | Level::Suspect if 1 < kinds => Health::Quarantined,
        Level::Note | Level::Suspect => Health::Suspect,
        Level::Drain => Health::Draining,
        Level::Reset => Health::ResetWanted,
        Level::Reboot => Health::RebootWanted,
        Level::Lost => Health::Faulty,
    }
}
