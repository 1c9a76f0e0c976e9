//! Quantities as people write and read them: durations, sizes, cores, times. Exact: no floating point.

/// Units of durations, largest first, in milliseconds.
const DURATIONS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Units of sizes, in bytes; of the powers of 1024 the largest first.
const SIZES: [(&str, u64); 13] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
];

/// What a duration must look like.
pub const A_DURATION: &str = "expected a duration with its unit, like 500ms, 90s, 30m, 1h30m, 2h or 1d";
/// What a size must look like.
pub const A_SIZE: &str = "expected a size with its unit, like 512MiB, 80GiB or 1.5TiB";

/// Reads a duration in milliseconds: `90s`, `1h30m`, `1.5h`, `0`.
///
/// # Errors
/// Says what a duration looks like.
pub fn parse_duration(text: &str) -> Result<u64, String> {
    if text == "0" {
        return Ok(0);
    }
    let (mut rest, mut total_ms) = (text, 0u64);
    loop {
        let (thousandths, unit_and_rest) = split_decimal(rest).ok_or(A_DURATION)?;
        let length = unit_and_rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(unit_and_rest.len());
        let (unit, after) = unit_and_rest.split_at(length);
        let ms = scaled(thousandths, unit, &DURATIONS).ok_or(A_DURATION)?;
        total_ms = total_ms.checked_add(ms).ok_or(A_DURATION)?;
        if after.is_empty() {
            return Ok(total_ms);
        }
        rest = after;
    }
}

/// Reads a size in bytes: `80GiB`, `80 GiB`, `1.5TiB`, `40GB`, `0`.
///
/// # Errors
/// Says what a size looks like.
pub fn parse_size(text: &str) -> Result<u64, String> {
    if text == "0" {
        return Ok(0);
    }
    let (thousandths, unit) = split_decimal(text).ok_or(A_SIZE)?;
    scaled(thousandths, unit.trim_start_matches(' '), &SIZES).ok_or_else(|| A_SIZE.into())
}

/// Reads a number with at most three decimals, in thousandths: `1.5` is 1500.
///
/// # Errors
/// Says what such a number looks like.
pub fn parse_milli(text: &str) -> Result<u64, String> {
    match split_decimal(text) {
        Some((thousandths, "")) => Ok(thousandths),
        _ => Err("expected a number with at most three decimals, like 4 or 1.5".into()),
    }
}

/// Splits a decimal number, in thousandths, from what follows it.
fn split_decimal(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (whole, rest) = text.split_at(end);
    let whole: u64 = whole.parse().ok()?;
    let Some(rest) = rest.strip_prefix('.') else { return Some((whole.checked_mul(1000)?, rest)) };
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (decimals, rest) = rest.split_at(end);
    if !(1..=3).contains(&decimals.len()) {
        return None;
    }
    let decimals: u64 = format!("{decimals:0<3}").parse().ok()?;
    Some((whole.checked_mul(1000)?.checked_add(decimals)?, rest))
}

fn scaled(thousandths: u64, unit: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    u64::try_from(u128::from(thousandths) * u128::from(*factor) / 1000).ok()
}

/// A duration as [`parse_duration`] reads it, exactly: `1h30m`, `1m500ms`, `0`.
pub fn exact_duration(ms: u64) -> String {
    let (mut rest, mut text) = (ms, String::new());
    for (unit, unit_ms) in DURATIONS {
        if unit_ms <= rest {
            text += &format!("{}{unit}", rest / unit_ms);
            rest %= unit_ms;
        }
    }
    if text.is_empty() { "0".into() } else { text }
}

/// A size as [`parse_size`] reads it, exactly: `80GiB`, `1537MiB`, `0`.
pub fn exact_size(bytes: u64) -> String {
    let divides = |(_, unit): &&(&str, u64)| bytes.is_multiple_of(*unit);
    match SIZES[..5].iter().find(divides) {
        Some((unit, unit_bytes)) if bytes != 0 => format!("{}{unit}", bytes / unit_bytes),
        _ => "0".into(),
    }
}

/// A duration for people, in its two largest units: `45s`, `3m12s`, `2h05m`, `3d04h`.
pub fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A size for people: `80 GiB`, `1.5 TiB`.
pub fn size(bytes: u64) -> String {
    aquifer_proto::core::explain::bytes(bytes)
}

/// Thousandths for people: `2`, `0.5`.
pub fn milli(value: u64) -> String {
    aquifer_proto::core::explain::milli(value)
}

/// Hours of something held, from thousandths of seconds: `12.5`.
pub fn hours(ms: u64) -> String {
    let tenths = ms / 360_000;
    format!("{}.{}", group(tenths / 10), tenths % 10)
}

/// A whole number with its thousands apart: `100,000`.
pub fn group(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if 0 < at && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What a point in time must look like.
pub const A_TIME: &str = "expected a time in UTC, like 2031-02-03T04:05Z or 2031-02-03T04:05:06Z";

/// Reads a point in time in UTC, in milliseconds since the Unix epoch: `2031-02-03T04:05Z`.
///
/// # Errors
/// Says what a time looks like.
pub fn parse_time(text: &str) -> Result<u64, String> {
    let parse = || {
        let (date, clock) = text.strip_suffix('Z')?.split_once(['T', ' '])?;
        let numbers = |text: &str, mark| -> Option<Vec<u64>> {
            let number =
                |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok())?;
            text.split(mark).map(number).collect()
        };
        let [year @ 1970..=9999, month @ 1..=12, day @ 1..=31] = numbers(date, '-')?[..] else { return None };
        let (hour, minute, second) = match numbers(clock, ':')?[..] {
            [hour, minute] => (hour, minute, 0),
            [hour, minute, second] => (hour, minute, second),
            _ => return None,
        };
        if 23 < hour || 59 < minute || 59 < second {
            return None;
        }
        // Source: Hinnant, "chrono-compatible low-level date algorithms", days_from_civil. Years begin in March.
        let year = if month <= 2 { year - 1 } else { year };
        let (era, year_of_era) = (year / 400, year % 400);
        let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
        let ms = 1000 * (days * 86_400 + hour * 3600 + minute * 60 + second);
        // A day that the month does not have is another one when it is written.
        time(ms).starts_with(date).then_some(ms)
    };
    parse().ok_or_else(|| A_TIME.into())
}

/// A point in time, from milliseconds since the Unix epoch, in UTC: `2031-02-03 04:05:06Z`.
pub fn time(ms: u64) -> String {
    let (days, seconds) = (ms / 86_400_000, ms / 1000 % 86_400);
    // Source: Hinnant, "chrono-compatible low-level date algorithms", civil_from_days. Years begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        let read = ["90s", "30m", "2h", "1d", "1h30m", "1.5h", "500ms", "0", "0s", "1d2h3m4s5ms"];
        let ms: Vec<u64> = read.iter().map(|text| parse_duration(text).unwrap()).collect();
        assert_eq!(
            ms,
            [90_000, 1_800_000, 7_200_000, 86_400_000, 5_400_000, 5_400_000, 500, 0, 0, 93_784_005]
        );
        for wrong in
            ["", "90", "h", "2 h", "-1s", "1.s", "1.2345s", "2hours", "9999999999999999999d", "1h30", "µs"]
        {
            assert_eq!(parse_duration(wrong), Err(A_DURATION.into()), "{wrong:?}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        let read = ["80GiB", "80 GiB", "1.5TiB", "40GB", "512Mi", "1B", "0"];
        let bytes: Vec<u64> = read.iter().map(|text| parse_size(text).unwrap()).collect();
        assert_eq!(bytes, [80 << 30, 80 << 30, 3 << 39, 40_000_000_000, 512 << 20, 1, 0]);
        for wrong in ["", "80", "80G", "80gib", "-1GiB", "GiB", "80GiBs", "99999999999999999TiB"] {
            assert_eq!(parse_size(wrong), Err(A_SIZE.into()), "{wrong:?}");
        }
    }

    #[test]
    fn cores_are_read_in_thousandths() {
        assert_eq!(["1", "1.5", "0.25", "0"].map(|text| parse_milli(text).unwrap()), [1000, 1500, 250, 0]);
        for wrong in ["", "1.5.2", ".5", "1.", "1e3", "-1", "1.0005", "one", "99999999999999999999"] {
            assert!(parse_milli(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_written_exactly_is_read_back() {
        for ms in [0, 1, 999, 1000, 61_001, 5_400_000, 86_400_000, 31_622_400_000, u64::MAX] {
            assert_eq!(parse_duration(&exact_duration(ms)), Ok(ms), "{}", exact_duration(ms));
        }
        for bytes in [0, 1, 1023, 1024, 1536, 80 << 30, (3 << 40) + 1, 1 << 50] {
            assert_eq!(parse_size(&exact_size(bytes)), Ok(bytes), "{}", exact_size(bytes));
        }
    }

    #[test]
    fn durations_are_told_in_two_units() {
        let told = [0, 999, 45_000, 192_000, 7_500_000, 273_600_000].map(duration);
        assert_eq!(told, ["0s", "0s", "45s", "3m12s", "2h05m", "3d04h"]);
    }

    #[test]
    fn times_are_told_in_utc() {
        let told = [0, 951_782_400_000, 1_709_164_799_999, 1_735_689_599_000, 4_107_542_400_000].map(time);
        assert_eq!(
            told,
            [
                "1970-01-01 00:00:00Z",
                "2000-02-29 00:00:00Z",
                "2024-02-28 23:59:59Z",
                "2024-12-31 23:59:59Z",
                "2100-03-01 00:00:00Z",
            ]
        );
    }

    #[test]
    fn times_are_read_in_utc() {
        for text in
            ["1970-01-01 00:00:00Z", "2000-02-29 00:00:00Z", "2026-11-25 08:30:59Z", "2100-03-01 00:00:00Z"]
        {
            assert_eq!(time(parse_time(text).unwrap()), text);
        }
        assert_eq!(parse_time("2026-11-25T08:00Z"), parse_time("2026-11-25 08:00:00Z"));
        for wrong in [
            "",
            "2026-11-25",
            "2026-11-25T08:00",
            "2026-02-29T08:00Z",
            "2026-13-01T08:00Z",
            "2026-11-25T24:00Z",
            "1969-12-31T08:00Z",
            "+2026-11-25T08:00Z",
            "2026-11-25T08Z",
        ] {
            assert_eq!(parse_time(wrong), Err(A_TIME.into()), "{wrong:?}");
        }
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1000, 1_234_567].map(group), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0, 360_000, 3_600_000_000].map(hours), ["0.0", "0.1", "1,000.0"]);
    }
}
