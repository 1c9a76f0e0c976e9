//! Errors that the driver amdgpu has counted since it was loaded, block by block of the card. Source: `amdgpu_ras.c` of Linux:
//! `ras/umc_err_count` says `ue: 0` and `ce: 3`; newer cards have `ras/aca_umc`, with the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use aquifer_core::{Fault, Health};

use super::roots::read;
use super::suspect;
use super::watch::SUSPICION_MS;

/// So many corrected errors of one card within [`WINDOW`] say that there will be one that is not.
const MANY_CORRECTED: u64 = 10;
const WINDOW: Duration = Duration::from_millis(SUSPICION_MS);

/// What is known of the cards.
#[derive(Default)]
pub struct Ras(BTreeMap<String, Corrected>);

struct Corrected {
    /// When the window began, and what was counted then.
    began: (Instant, u64),
    /// When there were many last.
    many: Option<Instant>,
}

impl Ras {
    /// Why a card takes no new work, if so.
    ///
    /// * `pci`: the kernel's directory of the card.
    pub fn look(&mut self, place: &str, pci: &Path, now: Instant) -> Option<Fault> {
        let counts = counts(pci);
        let corrected = counts.values().map(|(_, corrected)| corrected).sum();
        let known = self
            .0
            .entry(place.to_string())
            .or_insert_with(|| Corrected { began: (now, corrected), many: None });
        // Fewer than before: the driver was loaded anew.
        if WINDOW <= now - known.began.0 || corrected < known.began.1 {
            known.began = (now, corrected);
        }
        if MANY_CORRECTED <= corrected - known.began.1 {
            (known.began, known.many) = ((now, corrected), Some(now));
        }
        known.many.take_if(|at| WINDOW <= now - *at);
        let bad = counts.iter().filter(|(_, (uncorrected, _))| 0 < *uncorrected);
        let bad: Vec<String> = bad.map(|(block, (number, _))| format!("{block} {number}")).collect();
        if !bad.is_empty() {
            let why = format!("uncorrected errors ({}): drain the card and reset it", bad.join(", "));
            return Some(Fault { health: Health::Draining, ..Fault::faulty(why) });
        }
        let why =
            format!("{MANY_CORRECTED} corrected errors or more within {} minutes", WINDOW.as_secs() / 60);
        known.many.map(|_| suspect(why))
    }
}

/// Of each block, `umc` being the memory: uncorrected and corrected errors.
fn counts(pci: &Path) -> BTreeMap<String, (u64, u64)> {
    let mut counts = BTreeMap::new();
    for entry in fs::read_dir(pci.join("ras")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let block = name.strip_suffix("_err_count").or(name.strip_prefix("aca_"));
        let (Some(block), Some(text)) = (block, read(entry.path())) else { continue };
        let number = |key: &str| {
            text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().parse().ok())
        };
        let of_block: &mut (u64, u64) = counts.entry(block.to_string()).or_default();
        of_block.0 = of_block.0.max(number("ue").unwrap_or(0));
        of_block.1 = of_block.1.max(number("ce").unwrap_or(0));
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_corrected_errors_are_suspicious_for_a_while_and_old_ones_are_not() {
        let card = tempfile::tempdir().unwrap();
        let count = |file: &str, text: &str| {
            fs::create_dir_all(card.path().join("ras")).unwrap();
            fs::write(card.path().join("ras").join(file), text).unwrap();
        };
        let (mut ras, start) = (Ras::default(), Instant::now());
        let mut look = |minutes: u64| {
            let fault = ras.look("0000:1b:00.0", card.path(), start + Duration::from_secs(60 * minutes));
            fault.map(|fault| fault.to_string())
        };
        let many = Some("suspect: 10 corrected errors or more within 10 minutes".to_string());
        assert_eq!(look(0), None, "it counts none");
        count("umc_err_count", "ue: 0\nce: 5000\n");
        assert_eq!(look(0), many);
        assert_eq!((look(9), look(10)), (many.clone(), None), "nothing new: it passes");
        count("umc_err_count", "ue: 0\nce: 5009\n");
        assert_eq!((look(11), look(30)), (None, None), "nine, then another ten minutes");
        count("gfx_err_count", "ue: 0\nce: 10\n");
        assert_eq!(look(31), many, "of any block");
        count("umc_err_count", "ue: 0\nce: 2\n");
        assert_eq!((look(50), look(51)), (None, None), "the driver was loaded anew");
        count("aca_umc", "ue: 3\nce: 2\nde: 0\n");
        let expected = "draining: uncorrected errors (umc 3): drain the card and reset it";
        assert_eq!(look(52).as_deref(), Some(expected));
    }
}
