//! Readers of what tools print: lines of commas, `Key : value` reports, bus addresses and sizes.

use crate::device::api::place_text;

/// Lines of comma-separated fields, each with exactly as many as were asked for and the device's number first; others are passed
/// over.
pub fn rows(text: &str, fields: usize) -> impl Iterator<Item = (u32, Vec<&str>)> {
    text.lines().filter_map(move |line| {
        let row: Vec<&str> = line.split(',').map(str::trim).collect();
        let number = row[0].parse().ok().filter(|_| row.len() == fields)?;
        Some((number, row))
    })
}

/// A line of columns, which two spaces at least are between.
pub fn columns(line: &str) -> Vec<&str> {
    line.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect()
}

/// One device's part of a report.
pub struct Block<'a> {
    /// The line with which it begins.
    pub title: &'a str,
    entries: Vec<Entry<'a>>,
}

struct Entry<'a> {
    indent: usize,
    heading: &'a str,
    key: &'a str,
    value: &'a str,
}

impl<'a> Block<'a> {
    /// The value of the first of these keys that is there, wherever it stands.
    pub fn value(&self, keys: &[&str]) -> Option<&'a str> {
        let of = |key: &&str| self.entries.iter().find(|entry| entry.key.eq_ignore_ascii_case(key));
        keys.iter().find_map(of).map(|entry| entry.value)
    }

    /// The same under a heading that has this word in it; of several the one that stands furthest out, which is of the device and not of
    /// a part of it.
    pub fn under(&self, heading: &str, keys: &[&str]) -> Option<&'a str> {
        let of = |key: &&str| {
            let is_it = |entry: &&Entry| entry.heading.contains(heading) && entry.key == *key;
            self.entries.iter().filter(is_it).min_by_key(|entry| entry.indent)
        };
        keys.iter().find_map(of).map(|entry| entry.value)
    }
}

/// A report of `Key : value` lines, where one that begins with `title`, without an indent, begins a device, and those without a
/// value are headings.
pub fn blocks<'a>(text: &'a str, title: &str) -> Vec<Block<'a>> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut heading = (0, "");
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim();
        if indent == 0 && line.starts_with(title) {
            blocks.push(Block { title: line, entries: Vec::new() });
            heading = (indent, "");
            continue;
        }
        let Some(block) = blocks.last_mut() else { continue };
        match line.split_once(':').map(|(key, value)| (key.trim(), value.trim())) {
            Some((key, value)) => {
                let heading = if heading.0 < indent { heading.1 } else { "" };
                block.entries.push(Entry { indent, heading, key, value });
            }
            None => heading = (indent, line),
        }
    }
    blocks
}

/// A bus address as the kernel writes it, from `00000000:1B:00.0` or `0000:1b:00.0`.
pub fn place(text: &str) -> Option<String> {
    let (domain, rest) = text.trim().split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    place_of([domain, bus, device, function])
}

/// The same from domain, bus, device and function, in hexadecimal digits.
pub fn place_of(parts: [&str; 4]) -> Option<String> {
    let number = |part: &str| u32::from_str_radix(part.trim().trim_start_matches("0x"), 16).ok();
    let [domain, bus, device, function] = parts.map(number);
    let (bus, device, function) = (bus?, device?, function?);
    let is_one = bus < 256 && device < 32 && function < 8;
    let [domain, bus, device, function] = [domain?, bus, device, function].map(u64::from);
    is_one.then(|| place_text(domain, bus, device, function))
}

/// Bytes of `81559 MiB`, `49152MiB` or `65536`, which then are of this unit, as a power of two.
///
/// Vendors' tools write MB and mean 2^20 bytes.
pub fn bytes(text: &str, unit: u32) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, rest) = text.split_at(digits);
    // Some have a fraction, always of zeros or of less than counts.
    let rest = rest.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit()).trim().to_ascii_lowercase();
    let unit = match &rest[..] {
        "" => unit,
        "b" | "byte" | "bytes" => 0,
        "kib" | "kb" => 10,
        "mib" | "mb" => 20,
        "gib" | "gb" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_bus_addresses_are_read_as_tools_write_them() {
        assert_eq!(bytes("81559 MiB", 0), Some(81_559 << 20));
        assert_eq!(bytes("49152MiB", 0), Some(49_152 << 20));
        assert_eq!(bytes("65536", 20), Some(65_536 << 20));
        assert_eq!(bytes("67108864 KB", 20), Some(64 << 30));
        assert_eq!(bytes("98304.00 MB", 0), Some(96 << 30));
        for wrong in ["", "N/A", "[Not Supported]", "12 W", "99999999999999999999 GiB", "17179869184 GiB"] {
            assert_eq!(bytes(wrong, 20), None, "{wrong:?}");
        }
        assert_eq!(place("00000000:1B:00.0").as_deref(), Some("0000:1b:00.0"));
        assert_eq!(place(" 0001:c1:1f.7 ").as_deref(), Some("0001:c1:1f.7"));
        for wrong in
            ["", "1b:00.0", "0000:1b:00", "0000:1b:20.0", "0000:1b:00.8", "0000:100:00.0", "x:1b:0.0"]
        {
            assert_eq!(place(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_report_has_a_block_a_device_and_values_under_headings() {
        let text =
            "Driver : 1\nDEV ID 0\n  Info\n    Name : a : b\n  Memory\n    Total : 7\n  Last : 2\nDEV ID 1\n";
        let blocks = blocks(text, "DEV ID");
        assert_eq!(blocks.iter().map(|block| block.title).collect::<Vec<_>>(), ["DEV ID 0", "DEV ID 1"]);
        let first = &blocks[0];
        assert_eq!((first.value(&["Name"]), first.value(&["Driver"])), (Some("a : b"), None));
        assert_eq!(
            (first.under("Mem", &["Size", "Total"]), first.under("Info", &["Total"])),
            (Some("7"), None)
        );
        assert_eq!((first.under("Memory", &["Last"]), first.value(&["last"])), (None, Some("2")));
        let parts = "GPU 0\n  Part\n    Memory\n      Total : 1\n  Memory\n    Total : 7\n";
        assert_eq!(super::blocks(parts, "GPU")[0].under("Memory", &["Total"]), Some("7"));
    }
}
