//! What an error code of Ascend's driver asks for, by the levels of the vendor's own cluster software:
//!
//! | level | of codes | becomes |
//! |---|---|---|
//! | NotHandle; RestartRequest, RestartBusiness: the program's own | all others | nothing |
//! | SubHealth; PreSeparate, of which the table has none | 10 | suspect |
//! | FreeRestartNPU: when nothing runs on it | 17 | drained and reset |
//! | RestartNPU | 139 | reset |
//! | SeparateNPU | 27 | kept away |
//!
//! A code that is not listed asks for nothing, there as here: DCMI's health code says still that something is wrong.
//! Source: Ascend/mind-cluster `component/ascend-device-plugin/build/faultCode.json` at 018a2e0d; of a code at two levels the
//! worse one counts.

use std::time::Duration;

use super::api::Level;
use super::recurring::Often;

/// From the worst to the mildest; no code twice.
const CATALOGUE: &[(Level, &str, &[u32])] = &[
    (
        Level::Lost,
        "keep the card away and have it looked at",
        &[
            0x4c4b_a00c,
            0x8081_8c00,
            0x8081_8c05,
            0x80df_8402,
            0x80e0_020b,
            0x80e1_8402,
            0x80e3_a201,
            0x814f_8002,
            0x816f_8002,
            0x817f_8002,
            0x9419_321b,
            0xa230_1000,
            0xa230_1001,
            0xa230_2001,
            0xa419_2c1a,
            0xa419_3216,
            0xa419_321b,
            0xa419_321c,
            0xa42f_390f,
            0xa42f_3916,
            0xa42f_391a,
            0xa618_3207,
            0xa62f_3934,
            0xa802_8801,
            0xa819_320f,
            0xa819_3234,
            0xa819_3235,
        ],
    ),
    (
        Level::Reset,
        "reset the card",
        &[
            0x40f8_4e00,
            0x80a1_8008,
            0x80a3_8008,
            0x80a5_8008,
            0x80b5_8000,
            0x80b7_8000,
            0x80b9_8000,
            0x80b9_8008,
            0x80bd_8008,
            0x80c7_8008,
            0x80c9_8001,
            0x80cb_8001,
            0x80cd_8008,
            0x80cf_8000,
            0x80cf_8008,
            0x80cf_8009,
            0x80de_1801,
            0x80df_8000,
            0x80df_8008,
            0x80df_8009,
            0x80df_800a,
            0x80e1_8000,
            0x80e1_8005,
            0x80e1_8008,
            0x80e1_800a,
            0x80e1_8404,
            0x80e2_1008,
            0x80e2_120d,
            0x80e2_1e01,
            0x80e2_4e00,
            0x80e3_8008,
            0x80e3_9200,
            0x80e3_a202,
            0x80e3_a203,
            0x80e3_a207,
            0x80e4_4e00,
            0x80e5_8005,
            0x80e5_8009,
            0x80e5_8e02,
            0x80e5_8e03,
            0x80e7_8000,
            0x80e7_8008,
            0x80f1_8000,
            0x80f1_8008,
            0x80f1_800a,
            0x80f2_180d,
            0x80f3_8008,
            0x80f7_8003,
            0x80f7_8008,
            0x80f7_8009,
            0x80f7_8c02,
            0x80f7_8c03,
            0x80f7_8c04,
            0x80fa_4e00,
            0x80fb_8005,
            0x812e_4e00,
            0x812f_8000,
            0x8133_8002,
            0x8133_8008,
            0x8139_800a,
            0x813b_8002,
            0x813b_8008,
            0x813f_800a,
            0x8145_800a,
            0x8147_8002,
            0x8147_8008,
            0x8149_8004,
            0x814f_8008,
            0x8157_8002,
            0x8157_8008,
            0x815f_8002,
            0x815f_8008,
            0x816f_8008,
            0x817f_8008,
            0x8193_8002,
            0x8193_8008,
            0x8195_8002,
            0x8195_8008,
            0x8197_8002,
            0x8197_8008,
            0x8199_8008,
            0x8199_8009,
            0x819b_800a,
            0x81b3_8008,
            0x81c5_800a,
            0x81c7_800a,
            0x81c9_800a,
            0x8c03_a000,
            0x8c1f_a006,
            0x8c4b_a00c,
            0xa214_1004,
            0xa214_1006,
            0xa214_2004,
            0xa214_2006,
            0xa214_5004,
            0xa418_3200,
            0xa602_3001,
            0xa602_3002,
            0xa602_3003,
            0xa602_3004,
            0xa606_0000,
            0xa606_0001,
            0xa606_0002,
            0xa606_0003,
            0xa606_0004,
            0xa606_0005,
            0xa606_000a,
            0xa606_000b,
            0xa606_000c,
            0xa606_000f,
            0xa606_009d,
            0xa606_0fff,
            0xa607_ffff,
            0xa614_0001,
            0xa614_0002,
            0xa614_0003,
            0xa614_0004,
            0xa614_0005,
            0xa614_0006,
            0xa614_1003,
            0xa614_2003,
            0xa614_3003,
            0xa614_4003,
            0xa614_5003,
            0xa619_2d15,
            0xa619_3206,
            0xa619_3215,
            0xa619_3248,
            0xa62f_3905,
            0xa62f_ffff,
            0xa630_3003,
            0xa630_3004,
            0xa636_0000,
            0xa636_1000,
            0xa636_2000,
            0xa802_1004,
            0xa806_0fff,
            0xa807_ffff,
            0xa82a_0000,
        ],
    ),
    (
        Level::Drain,
        "drain the card and reset it",
        &[
            0x8c04_4e00,
            0x8c06_4e00,
            0x8c08_4e00,
            0x8c0a_4e00,
            0x8c0c_4e00,
            0x8c0e_4e00,
            0x8c10_4e00,
            0x8c12_4e00,
            0x8c17_a005,
            0x8c19_a005,
            0x8c1d_a005,
            0x8c46_4e00,
            0xa419_3217,
            0xa419_3218,
            0xa42a_0000,
            0xa42f_3917,
            0xa42f_3918,
        ],
    ),
    (
        Level::Suspect,
        "it is less than well",
        &[
            0x8081_8c06,
            0x80de_0207,
            0x80e1_8405,
            0x80e2_0207,
            0x8107_8605,
            0x819b_8605,
            0x81a3_880c,
            0x81ad_8605,
            0x8c1f_860a,
            0x8c2f_a001,
        ],
    ),
];

const DAY: Duration = Duration::from_secs(86_400);
/// Codes that are too many when they come twice a day. Source: `FaultFrequency` of
/// `component/ascend-device-plugin/build/faultCustomization.json`, from where the numbers below are, too.
const TWICE: [u32; 41] = [
    0x80c9_8000,
    0x80b7_8000,
    0x80b5_8000,
    0x80a1_8008,
    0x80a3_8008,
    0x80a5_8008,
    0x80b9_8000,
    0x80b9_8008,
    0x80bb_8000,
    0x80bb_8008,
    0x80bd_8000,
    0x80bd_8008,
    0x80c7_8008,
    0x80c9_8008,
    0x80cb_8008,
    0x80cd_8008,
    0x80cf_8008,
    0x80d9_8008,
    0x80df_8008,
    0x80de_1801,
    0x80e0_1801,
    0x80e1_8008,
    0x80e3_8008,
    0x80e3_9200,
    0x80e3_a202,
    0x80e3_a203,
    0x80e7_8000,
    0x80e7_8008,
    0x80f1_8000,
    0x80f1_8008,
    0x80f3_8008,
    0x80f7_8008,
    0x8131_8008,
    0x8133_8008,
    0x813b_8008,
    0x8147_8008,
    0x8157_8008,
    0x815f_8008,
    0x8193_8008,
    0x8195_8008,
    0x8197_8008,
];

/// What is made of a code that comes again, whatever it asks for each time, or stays; `None`: nothing.
pub fn often(code: u64) -> Option<Often> {
    let code = u32::try_from(code).ok()?;
    let of = |times: usize| Often { times, within: DAY, holds: None, stays: None };
    match code {
        0x80e1_8005 => Some(of(3)),
        0x8107_8603 => Some(Often { holds: Some(2 * DAY), stays: Some(Duration::from_secs(20)), ..of(5) }),
        code => TWICE.contains(&code).then(|| of(2)),
    }
}

/// What an error code means for the card; `None`: nothing.
pub fn meaning(code: u64) -> Option<(Level, String)> {
    let code = u32::try_from(code).ok()?;
    let (level, what, _) = CATALOGUE.iter().find(|(.., codes)| codes.contains(&code))?;
    Some((*level, format!("error code {code:08x}: {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_code_has_one_level() {
        let mut all: Vec<u32> = CATALOGUE.iter().flat_map(|(.., codes)| codes.iter().copied()).collect();
        let number = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!((all.len(), number), (193, 193));
    }

    #[test]
    fn some_codes_may_not_come_often() {
        let times = |code| often(code).map(|often| often.times);
        assert_eq!(
            [0x8197_8008, 0x80e1_8005, 0x8107_8603, 0x80e1_8405].map(times),
            [Some(2), Some(3), Some(5), None]
        );
        assert!(TWICE.iter().enumerate().all(|(at, code)| !TWICE[..at].contains(code)));
    }

    #[test]
    fn levels_are_those_of_the_vendor() {
        let of = |code| meaning(code).map(|(level, _)| level);
        assert_eq!(of(0x80e0_1801), None, "RestartBusiness");
        assert_eq!(of(0x80c9_8008), None, "RestartRequest");
        assert_eq!(of(0x80e2_1007), None, "NotHandle");
        assert_eq!(of(0x80e1_8405), Some(Level::Suspect), "SubHealth");
        assert_eq!(of(0x8c12_4e00), Some(Level::Drain), "FreeRestartNPU");
        assert_eq!(meaning(0x80e1_8008), Some((Level::Reset, "error code 80e18008: reset the card".into())));
        assert_eq!(of(0x80e1_8402), Some(Level::Lost), "SeparateNPU");
        assert_eq!(of(0xa230_1001), Some(Level::Lost), "RestartBusiness as well: the worse one counts");
    }
}
