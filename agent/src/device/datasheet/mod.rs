//! How fast classes of devices are that nobody has measured: what their makers say.
//!
//! Dense matrix products in bfloat16, or half precision where a device has no bfloat16, without sparsity and without
//! partitioning. Of a model that is not listed nothing is known. Each row of the table names the document that it is from, and
//! where it was compared with it.

mod table;

use aquifer_core::{DeviceClass, Vendor};

pub use table::{Document, ROWS, Row};

/// TFLOP/s of the reference device: an NVIDIA A100.
const REFERENCE: f64 = 312.0;

/// A speed in thousandths of the reference device, at least 1.
pub fn milli(tflops: f64) -> u32 {
    ((tflops / REFERENCE * 1000.0).round() as u32).clamp(1, 1_000_000)
}

/// What its maker says of the speed of a class, in thousandths of the reference device, at least 1, and where; `None`:
/// nothing that is known here. A partition, whose name ends in how many sevenths it is (`-mig-1g.10gb`), has its share.
pub fn speed_milli(class: &DeviceClass) -> Option<(u32, &'static str)> {
    let (row, sevenths) = listed(class)?;
    Some((milli(row.tflops * sevenths / 7.0), row.document.name))
}

/// What its maker says of how fast a class reads its memory, in GB/s, at least 1; `None`: nothing that is known here. Of a
/// partition as of its speed, though it may have an eighth more.
pub fn memory_gbs(class: &DeviceClass) -> Option<u32> {
    let (row, sevenths) = listed(class).filter(|(row, _)| row.memory_gbs != 0)?;
    Some(((f64::from(row.memory_gbs) * sevenths / 7.0) as u32).max(1))
}

/// The row of a class, and of how many sevenths of it.
fn listed(class: &DeviceClass) -> Option<(&'static Row, f64)> {
    let (model, sevenths) = match class.model.split_once("-mig-") {
        Some((model, profile)) => (model, profile.split_once('g')?.0.parse().ok()?),
        None => (&*class.model, 7.0),
    };
    // As older drivers call cards of data centres.
    let model = model.strip_prefix("tesla-").filter(|_| class.vendor == Vendor::Nvidia).unwrap_or(model);
    let begins = |row: &&Row| {
        let rest = model.strip_prefix(row.model);
        row.vendor == class.vendor && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let row = ROWS.iter().filter(begins).max_by_key(|row| row.model.len())?;
    Some((row, sevenths))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speed(vendor: Vendor, model: &str) -> Option<u32> {
        speed_milli(&DeviceClass { vendor, model: model.into(), memory_bytes: 0 }).map(|(milli, _)| milli)
    }

    #[test]
    fn the_longest_name_that_begins_the_model_says_how_fast_it_is() {
        assert_eq!(speed(Vendor::Nvidia, "a100-sxm4-80gb"), Some(1000));
        assert_eq!(speed(Vendor::Nvidia, "h100-80gb-hbm3"), Some(3170));
        assert_eq!(speed(Vendor::Nvidia, "h100-pcie"), Some(2423));
        assert_eq!(speed(Vendor::Nvidia, "l40s"), Some(1160));
        assert_eq!(speed(Vendor::Amd, "mi300x"), Some(4190));
        // Words, not letters: an A10 is no A100, and an A100 of another maker is none.
        assert_eq!(speed(Vendor::Nvidia, "a10"), Some(401));
        assert_eq!(speed(Vendor::Nvidia, "a1000-laptop"), None);
        assert_eq!(speed(Vendor::Amd, "a100"), None);
    }

    #[test]
    fn a_partition_has_its_sevenths() {
        assert_eq!(speed(Vendor::Nvidia, "a100-sxm4-80gb-mig-1g.10gb"), Some(143));
        assert_eq!(speed(Vendor::Nvidia, "a100-sxm4-80gb-mig-3g.40gb"), Some(429));
        assert_eq!(speed(Vendor::Nvidia, "a100-mig-strange"), None);
    }

    #[test]
    fn cards_of_one_name_differ_in_their_memory() {
        let memory = |model: &str| {
            memory_gbs(&DeviceClass { vendor: Vendor::Nvidia, model: model.into(), memory_bytes: 0 })
        };
        assert_eq!(memory("a100-sxm4-80gb"), Some(2039));
        assert_eq!(memory("a100-sxm4-40gb"), Some(1555));
        assert_eq!(memory("a100-sxm4-80gb-mig-1g.10gb"), Some(291));
        assert_eq!(memory("gtx-9000"), None);
    }

    #[test]
    fn no_model_is_listed_twice() {
        for (at, row) in ROWS.iter().enumerate() {
            let twice = ROWS[..at].iter().any(|it| (it.vendor, it.model) == (row.vendor, row.model));
            assert!(!twice, "{}", row.model);
        }
    }

    #[test]
    fn a_card_is_what_its_driver_calls_it() {
        assert_eq!(speed(Vendor::Nvidia, "tesla-v100-sxm2-16gb"), Some(401));
        assert_eq!(speed(Vendor::Nvidia, "tesla-v100-pcie-16gb"), Some(359));
        assert_eq!(speed(Vendor::Nvidia, "tesla-v100s-pcie-32gb"), Some(417));
        assert_eq!(speed(Vendor::Nvidia, "h800-pcie"), Some(2423));
        assert_eq!(speed(Vendor::Gaudi, "hl-325l"), Some(5378));
        // Of each of its two dies, which the kernel lists as a device.
        assert_eq!(speed(Vendor::Amd, "mi250x"), Some(614));
        assert_eq!(speed(Vendor::Cambricon, "mlu370-s4"), None);
    }

    /// `UPDATE=1` rewrites the table of the document.
    #[test]
    fn people_are_shown_each_figure_with_its_document() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/datasheets.md");
        let shown = std::fs::read_to_string(path).unwrap();
        let (before, rest) = shown.split_once("| vendor |").expect("a table");
        let (_, after) = rest.split_once("\n\n").expect("text after the table");
        let mut table =
            "| vendor | model | TFLOP/s | GB/s | document | compared in |\n|---|---|---|---|---|---|\n"
                .to_string();
        for Row { vendor, model, tflops, memory_gbs, document } in ROWS {
            let memory = if *memory_gbs == 0 { String::new() } else { memory_gbs.to_string() };
            let name = match document.address {
                "" => document.name.to_string(),
                address => format!("[{}]({address})", document.name),
            };
            let compared = document.compared;
            table += &format!("| {vendor} | {model} | {tflops} | {memory} | {name} | {compared} |\n");
        }
        let now = format!("{before}{table}\n{after}");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        assert!(now == shown || std::env::var_os("UPDATE").is_some(), "UPDATE=1 rewrites docs/datasheets.md");
    }
}
