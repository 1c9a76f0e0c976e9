//! Whether the hardware of a card slows it down to protect itself, by the files of its driver. That a card keeps within its power
//! limit says nothing: all do.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::roots::{read, read_number};

/// What is said of a card that heat slows down, whoever says it.
pub const TOO_HOT: &str = "its hardware slows it down: it is too hot";
/// And of one whose power supply, or machine, asks for it.
pub const LOW_ON_POWER: &str = "its hardware slows it down: its power supply asks for it";

/// Reasons of Intel's drivers that are heat. Source: `intel_gt_sysfs_pm.c` and `xe_gt_throttle.c` of Linux.
const HEAT: [&str; 7] =
    ["thermal", "ratl", "vr_thermalert", "soc_thermal", "soc_avg_thermal", "mem_thermal", "vr_thermal"];
/// What the machine around a card asks for.
const PROCHOT: &str = "prochot";

/// Why a card of Intel's is slowed down, if it is.
///
/// * `pci`: the kernel's directory of the card.
pub fn by_reasons(pci: &Path) -> Option<&'static str> {
    if is_asleep(pci) {
        return None;
    }
    // i915: drm/card0/gt/gt0/throttle_reason_thermal. xe: tile0/gt0/freq0/throttle/reason_thermal.
    let of_i915 = below(pci, &["drm", "card", "gt", "gt"]).into_iter().map(|dir| (dir, "throttle_reason_"));
    let of_xe = below(pci, &["tile", "gt", "freq", "throttle"]).into_iter().map(|dir| (dir, "reason_"));
    let dirs: Vec<(PathBuf, &str)> = of_i915.chain(of_xe).collect();
    let is_said = |reason: &str| {
        dirs.iter().any(|(dir, prefix)| read_number(dir.join(format!("{prefix}{reason}"))) == Some(1))
    };
    let hot = HEAT.into_iter().any(is_said).then_some(TOO_HOT);
    hot.or_else(|| is_said(PROCHOT).then_some(LOW_ON_POWER))
}

/// Directories below `dir`, of each level those whose names begin so.
fn below(dir: &Path, prefixes: &[&str]) -> Vec<PathBuf> {
    prefixes.iter().fold(vec![dir.to_path_buf()], |dirs, prefix| {
        let entries = dirs.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
        let fit = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
        fit.map(|entry| entry.path()).collect()
    })
}

/// Whether the kernel has switched a card off that nobody uses: asking its driver would wake it.
fn is_asleep(pci: &Path) -> bool {
    read(pci.join("power/runtime_status")).is_some_and(|status| status == "suspended")
}

/// How long cards of AMD's were slowed down when they were looked at last, by their places.
#[derive(Default)]
pub struct Slowed(BTreeMap<String, Residency>);

/// How long the firmware has counted, and of that how long it has slowed the card down; in its own unit.
#[derive(Clone, Copy)]
struct Residency {
    all: u32,
    hot: u32,
    asked: u32,
}

/// A card is slowed down if it was for one part in so many of the time since the last look, or more.
const ONE_IN: u32 = 10;

impl Slowed {
    /// Why a card of AMD's is slowed down, if it is.
    ///
    /// * `pci`: the kernel's directory of the card.
    ///
    /// Source: `gpu_metrics_v1_3` to `v1_8` of `kgd_pp_interface.h` and `SMU_THROTTLER_…` of `amdgpu_smu.h` of Linux. Revisions 4, 5 and 9 do
    /// not tell.
    pub fn look(&mut self, place: &str, pci: &Path) -> Option<&'static str> {
        if is_asleep(pci) {
            return None;
        }
        let metrics = fs::read(pci.join("gpu_metrics")).ok()?;
        // metrics_table_header: structure_size, format_revision, content_revision.
        let size = usize::from(u16::from_le_bytes(metrics.get(..2)?.try_into().ok()?));
        let (format, revision) = (*metrics.get(2)?, *metrics.get(3)?);
        let metrics = metrics.get(..size)?;
        match (format, revision, size) {
            (1, 3, 120) => by_bits(u64::from_le_bytes(metrics.get(112..120)?.try_into().ok()?)),
            // Revision 6 was changed once without getting another number; this is how it was released.
            (1, 6, 1664) => self.since_last(place, residency(metrics, 32)?),
            (1, 7 | 8, _) => self.since_last(place, residency(metrics, 40)?),
            _ => None,
        }
    }

    fn since_last(&mut self, place: &str, now: Residency) -> Option<&'static str> {
        let last = self.0.insert(place.to_string(), now)?;
        // Where it was counted further before, the counters have begun anew.
        let part = now.all.checked_sub(last.all)?.div_ceil(ONE_IN).max(1);
        let hot = part <= now.hot.saturating_sub(last.hot);
        let asked = part <= now.asked.saturating_sub(last.asked);
        if hot { Some(TOO_HOT) } else { asked.then_some(LOW_ON_POWER) }
    }
}

/// `accumulation_counter`, then what PROCHOT, power, and the heat of socket, regulators and memory have cost, four bytes each.
fn residency(metrics: &[u8], at: usize) -> Option<Residency> {
    let number = |index: usize| {
        let bytes = metrics.get(at + 4 * index..at + 4 * index + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let hot = number(3)?.max(number(4)?).max(number(5)?);
    Some(Residency { all: number(0)?, hot, asked: number(1)? })
}

/// Temperatures are bits 32 to 45, PROCHOT 46 and 47. All ones: the card does not tell.
fn by_bits(status: u64) -> Option<&'static str> {
    let is_any = |from: u32, to: u32| (from..=to).any(|bit| status >> bit & 1 == 1);
    match status {
        u64::MAX => None,
        _ if is_any(32, 45) => Some(TOO_HOT),
        _ => is_any(46, 47).then_some(LOW_ON_POWER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of metrics with four-byte numbers at some places.
    fn metrics(size: u16, revision: u8, numbers: &[(usize, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; usize::from(size)];
        bytes[..2].copy_from_slice(&size.to_le_bytes());
        (bytes[2], bytes[3]) = (1, revision);
        for (at, number) in numbers {
            bytes[*at..*at + 4].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_card_of_amd_is_slowed_down_by_heat_or_its_machine_and_not_by_its_power_limit() {
        let card = tempfile::tempdir().unwrap();
        let mut slowed = Slowed::default();
        // Each revision is another card's.
        let mut look = |metrics: Vec<u8>| {
            let place = metrics.get(3).map_or("none".into(), u8::to_string);
            fs::write(card.path().join("gpu_metrics"), metrics).unwrap();
            slowed.look(&place, card.path())
        };
        // Above the lower half: SMU_THROTTLER_TEMP_HOTSPOT_BIT is 36, PROCHOT_GFX 47, PPT0 0, TDC_GFX 16.
        assert_eq!(look(metrics(120, 3, &[(116, 1 << 4)])), Some(TOO_HOT));
        assert_eq!(look(metrics(120, 3, &[(116, 1 << 15)])), Some(LOW_ON_POWER));
        assert_eq!(look(metrics(120, 3, &[(112, 1 | 1 << 16)])), None, "power and current");
        assert_eq!(look(metrics(120, 3, &[(112, u32::MAX), (116, u32::MAX)])), None, "it does not tell");
        // Counted: all, PROCHOT, power, socket, regulators, memory.
        let counted = |revision: u8, numbers: [u32; 6]| {
            let (size, at) = if revision == 6 { (1664, 32) } else { (2208, 40) };
            let numbers = numbers.iter().enumerate().map(|(index, number)| (at + 4 * index, *number));
            metrics(size, revision, &numbers.collect::<Vec<_>>())
        };
        for revision in [6, 7, 8] {
            assert_eq!(look(counted(revision, [5000, 0, 5000, 4000, 0, 0])), None, "the first look");
            assert_eq!(look(counted(revision, [6000, 0, 6000, 4099, 0, 0])), None, "hardly ever");
            assert_eq!(
                look(counted(revision, [7000, 0, 7000, 4099, 0, 100])),
                None,
                "the largest is counted"
            );
            assert_eq!(look(counted(revision, [8000, 0, 7000, 4299, 0, 100])), Some(TOO_HOT));
            assert_eq!(look(counted(revision, [9000, 500, 7000, 4299, 0, 100])), Some(LOW_ON_POWER));
            assert_eq!(look(counted(revision, [9000, 500, 7000, 4299, 0, 100])), None, "no time has passed");
            assert_eq!(look(counted(revision, [10, 0, 0, 0, 0, 0])), None, "the driver was loaded anew");
        }
        assert_eq!(look(metrics(328, 5, &[(72, u32::MAX)])), None, "a revision that does not tell");
        assert_eq!(look(vec![120, 0, 1]), None, "no header");
    }

    #[test]
    fn a_card_of_intel_is_slowed_down_by_heat_or_its_machine_and_not_by_its_power_limit() {
        let card = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| {
            let path = card.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let xe = "tile1/gt0/freq0/throttle/reason";
        put(&format!("{xe}_pl1"), "1\n");
        put(&format!("{xe}_thermal"), "0\n");
        assert_eq!(by_reasons(card.path()), None);
        put(&format!("{xe}_prochot"), "1\n");
        assert_eq!(by_reasons(card.path()), Some(LOW_ON_POWER));
        put("drm/card2/gt/gt1/throttle_reason_vr_thermalert", "1\n");
        assert_eq!(by_reasons(card.path()), Some(TOO_HOT));
        put("power/runtime_status", "suspended\n");
        assert_eq!(by_reasons(card.path()), None, "it is not woken up to be asked");
        put("power/runtime_status", "active\n");
        assert_eq!(by_reasons(card.path()), Some(TOO_HOT));
    }
}
