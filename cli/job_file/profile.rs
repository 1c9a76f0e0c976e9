//! Parts of devices by the names that their makers give them.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::{Apartness, DevicePart, Given, Percent, Scalar, Size};

/// A named part of a device: the share that it is of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    name: String,
    /// Thousandths of the device's compute.
    pub compute_milli: u32,
    /// Bytes of memory that a part of this name has at least; 0: as large a share as of the compute.
    pub memory_bytes: u64,
}

impl Profile {
    /// The share, as if it had been asked for.
    pub fn part(&self) -> DevicePart {
        DevicePart {
            compute: Some(Given(Percent(self.compute_milli))),
            memory: (self.memory_bytes != 0).then_some(Given(Size(self.memory_bytes))),
            isolation: None,
        }
    }
}

impl Scalar for Profile {
    fn expected() -> String {
        "expected a profile of NVIDIA (1g.10gb), Ascend (vir05_1c_16g, with 5, 6, 10 or 12 cores) or AMD (dpx, tpx, qpx, cpx)".into()
    }
}

impl FromStr for Profile {
    type Err = String;
    fn from_str(text: &str) -> Result<Profile, String> {
        let (compute_milli, memory_bytes) =
            of_nvidia(text).or(of_ascend(text)).or(of_amd(text)).ok_or_else(Profile::expected)?;
        Ok(Profile { name: text.into(), compute_milli, memory_bytes })
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A MIG profile: sevenths of the card, and its memory, of which an instance has a little less than its name says.
fn of_nvidia(text: &str) -> Option<(u32, u64)> {
    let (sevenths, memory) = text.strip_suffix("gb")?.split_once("g.")?;
    let (sevenths, memory): (u32, u64) = (sevenths.parse().ok()?, memory.parse().ok()?);
    let is_one = (1..=7).contains(&sevenths) && (1..=1024).contains(&memory);
    is_one.then_some((sevenths * 1000 / 7, (memory << 30) / 8 * 7))
}

/// A template of virtual chips, of those whose name tells what chip they are of: AI cores of 20 or of 24, processors, memory.
fn of_ascend(text: &str) -> Option<(u32, u64)> {
    let [cores, processors, memory] = text.strip_prefix("vir")?.split('_').collect::<Vec<_>>()[..] else {
        return None;
    };
    let _: u32 = processors.strip_suffix('c')?.parse().ok()?;
    let memory: u64 = memory.strip_suffix('g')?.parse().ok().filter(|gib| (1..=1024).contains(gib))?;
    let compute_milli = match cores {
        "05" | "06" => 250,
        "10" | "12" => 500,
        _ => return None,
    };
    Some((compute_milli, memory << 30))
}

/// A way of parting a card of up to eight dies.
fn of_amd(text: &str) -> Option<(u32, u64)> {
    let parts = match text {
        "dpx" => 2,
        "tpx" => 3,
        "qpx" => 4,
        "cpx" => 8,
        _ => return None,
    };
    Some((1000 / parts, 0))
}

/// A part as a file has it: by its profile, or by its shares.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Named {
    profile: Option<Given<Profile>>,
    compute: Option<Given<Percent>>,
    memory: Option<Given<Size>>,
    isolation: Option<Given<Apartness>>,
}

impl TryFrom<Named> for DevicePart {
    type Error = &'static str;
    fn try_from(named: Named) -> Result<DevicePart, &'static str> {
        let Named { profile, compute, memory, isolation } = named;
        match profile {
            None => Ok(DevicePart { compute, memory, isolation }),
            Some(_) if compute.is_some() || memory.is_some() => Err(
                "has slice.profile beside compute or memory, of which a profile says how much: leave out either",
            ),
            Some(Given(profile)) => Ok(DevicePart { isolation, ..profile.part() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_a_share() {
        let of = |text: &str| text.parse::<Profile>().map(|it| (it.compute_milli, it.memory_bytes >> 20));
        assert_eq!(of("1g.10gb"), Ok((142, 8960)));
        assert_eq!(of("3g.40gb"), Ok((428, 35_840)));
        assert_eq!(of("7g.80gb"), Ok((1000, 71_680)));
        assert_eq!(of("vir05_1c_16g"), Ok((250, 16_384)));
        assert_eq!(of("vir12_3c_32g"), Ok((500, 32_768)));
        assert_eq!(of("cpx"), Ok((125, 0)));
        assert_eq!("1g.10gb".parse::<Profile>().unwrap().to_string(), "1g.10gb");
        for wrong in [
            "",
            "1g",
            "8g.80gb",
            "0g.10gb",
            "1g.0gb",
            "vir02",
            "vir05_1c",
            "vir07_1c_16g",
            "spx",
            "1g.10gb+me",
        ] {
            assert_eq!(of(wrong), Err(Profile::expected()), "{wrong:?}");
        }
    }
}
