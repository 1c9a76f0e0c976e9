//! What an incident that CNDEV reports of a card asks for. Its own verdict on the whole card comes beside it.
//!
//! Source: `cndevHealthError_t` of Cambricon/mlu-exporter `pkg/cndev/include/cndev.h`. The header says what was seen, not what
//! is to be done: levels are those of the same things with NVIDIA's cards.

use super::api::Level;

use Level::*;

/// By number.
const INCIDENTS: [Option<(Level, &str)>; 31] = [
    None,
    Some((Suspect, "an error that cndev does not know")),
    Some((Suspect, "an error within the card")),
    Some((Suspect, "an error of its driver (xid)")),
    Some((Suspect, "too many errors of its PCIe link")),
    Some((Suspect, "its PCIe link is of too low a generation")),
    Some((Suspect, "its PCIe link is too narrow")),
    Some((Suspect, "its PCIe link is too slow")),
    Some((Suspect, "its PCIe link takes too long")),
    Some((Suspect, "an MLU-Link is down")),
    Some((Suspect, "an MLU-Link repeats what it sends")),
    Some((Suspect, "too many errors of an MLU-Link")),
    Some((Suspect, "too many checksums of an MLU-Link are wrong")),
    Some((Suspect, "too many checksums between its dies are wrong")),
    Some((Note, "a corrected memory error")),
    Some((Drain, "an uncorrected memory error: drain the card and reset it")),
    Some((Suspect, "too many corrected memory errors")),
    Some((Lost, "too many uncorrected memory errors: replace it")),
    Some((Lost, "its memory has a row that could not be remapped: replace it")),
    Some((Suspect, "a row of its memory is remapped at the next reset")),
    Some((Lost, "its memory has an address that could not be swapped: replace it")),
    Some((Suspect, "an address of its memory is swapped at the next reset")),
    Some((Lost, "its memory has a page that could not be repaired: replace it")),
    Some((Suspect, "a page of its memory is repaired at the next reset")),
    Some((Suspect, "a page of its memory is retired at the next reset")),
    Some((Lost, "it has no more pages to repair its memory with: replace it")),
    Some((Suspect, "it is too hot")),
    Some((Suspect, "it was slowed down by heat")),
    Some((Suspect, "cndev and /dev count different numbers of cards")),
    Some((Suspect, "an error of its driver")),
    Some((Suspect, "an error of its system")),
];

/// What an incident means for the card; `None`: nothing.
pub fn meaning(code: u64) -> Option<(Level, String)> {
    let unlisted = || Some((Suspect, format!("an incident with the number {code}")));
    match usize::try_from(code).ok().and_then(|code| INCIDENTS.get(code)) {
        Some(incident) => incident.map(|(level, what)| (level, what.into())),
        None => unlisted(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers as C counts the names of the header.
    #[test]
    fn incidents_are_those_of_the_header() {
        let of = |code| meaning(code).map(|(level, _)| level);
        assert_eq!((of(0), of(3), of(14)), (None, Some(Suspect), Some(Note)), "OK, XID_ERROR, SBE_VIOLATION");
        assert_eq!((of(15), of(18)), (Some(Drain), Some(Lost)), "DBE_VIOLATION, ROW_REMAP_FAILURE");
        assert!(meaning(19).is_some_and(|(_, what)| what.contains("remapped at the next reset")));
        assert_eq!(meaning(26), Some((Suspect, "it is too hot".into())), "TEMP_VIOLATION");
        assert_eq!(meaning(30), Some((Suspect, "an error of its system".into())), "DEVSYS_ERROR");
        assert_eq!(meaning(31), Some((Suspect, "an incident with the number 31".into())));
    }
}
