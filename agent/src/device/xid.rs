//! What an error code of NVIDIA's driver (XID) asks for: one of five actions, or a look; the sixth action, to keep a card
//! away for good, is for a row of memory that could not be remapped. Source: the immediate actions of
//! NVIDIA's XID catalogue, as leptonai/gpud mirrors it, but for what NVIDIA's own plugin for Kubernetes takes for a program's own
//! (`health.go`: 13, 31, 43, 45, 68, 109). 45 comes with every program that is ended while it computes, 109 when one does not let
//! go of the card in time: neither says that the card is not well, and each would take it away.

use super::api::Level;

/// What is to be done after an error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// The program failed; the next one may be well.
    RestartProcess,
    /// The card is to be empty, and then reset.
    DrainThenReset,
    /// The card must be reset.
    Reset,
    /// The machine must be restarted.
    Reboot,
    /// The catalogue has a procedure for people.
    Look,
}

use Action::*;

/// By number; one that is not listed is looked at.
pub const CATALOGUE: &[(Action, &[u64])] = &[
    (None, &[43, 44, 63, 92, 121, 137, 157, 160, 161]),
    (RestartProcess, &[8, 13, 31, 32, 45, 68, 69, 94, 109]),
    (Reset, &[46, 62, 64, 95, 110, 119, 120, 136, 140, 143, 155, 156, 158]),
    // An uncorrected error of memory: what is written goes on being read until it is reset.
    (DrainThenReset, &[48]),
    (Reboot, &[79]),
    // What the driver does with the card has changed: it says so itself, where it can.
    (Look, &[74, 144, 145, 146, 147, 148, 149, 150, 154]),
];

/// What an error code asks for.
pub fn action(number: u64) -> Action {
    let row = CATALOGUE.iter().find(|(_, numbers)| numbers.contains(&number));
    row.map_or(Look, |(action, _)| *action)
}

/// What an error code means for the card; `None`: nothing.
pub fn meaning(number: u64) -> Option<(Level, String)> {
    let (level, what) = match action(number) {
        None | RestartProcess => return Option::None,
        DrainThenReset => (Level::Drain, "drain the card and reset it"),
        Reset => (Level::Reset, "reset the card"),
        Reboot => (Level::Reboot, "restart the machine"),
        Look if number == 74 => (Level::Suspect, "look at its NVLinks"),
        Look => (Level::Suspect, "look at the kernel's log"),
    };
    Some((level, format!("xid {number}: {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_code_has_one_action() {
        let all: Vec<u64> = CATALOGUE.iter().flat_map(|(_, numbers)| numbers.iter().copied()).collect();
        let mut once = all.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), all.len());
        assert_eq!(all.len(), 42);
    }

    #[test]
    fn actions_are_those_of_the_catalogue() {
        for own in [13, 31, 43, 45, 68, 109] {
            assert_eq!(meaning(own), Option::None, "{own} is a program's own");
        }
        assert_eq!(meaning(63), Option::None, "a row was remapped");
        assert_eq!(meaning(79), Some((Level::Reboot, "xid 79: restart the machine".into())));
        assert_eq!(meaning(95), Some((Level::Reset, "xid 95: reset the card".into())));
        assert_eq!(meaning(48), Some((Level::Drain, "xid 48: drain the card and reset it".into())));
        assert_eq!(meaning(74), Some((Level::Suspect, "xid 74: look at its NVLinks".into())));
        assert_eq!(meaning(9999), Some((Level::Suspect, "xid 9999: look at the kernel's log".into())));
    }
}
