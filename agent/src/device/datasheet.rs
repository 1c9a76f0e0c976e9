//! How fast classes of devices are that nobody has measured: what their makers say.
//!
//! Dense matrix products in bfloat16, or half precision where a device has no bfloat16, without sparsity and without
//! partitioning. Of a model that is not listed nothing is known. A row stands here only if its maker has published the
//! figure; the last column says where. How fast it reads its memory is from the same page, 0 where that does not say.

use aquifer_core::{DeviceClass, Vendor};

/// TFLOP/s of the reference device: an NVIDIA A100.
const REFERENCE: f64 = 312.0;

/// What a maker says of a model.
struct Row {
    vendor: Vendor,
    /// The first words of the model's name, in lower case, joined by hyphens.
    model: &'static str,
    tflops: f64,
    /// How fast it reads its memory, in GB/s; 0: not known here.
    memory_gbs: u32,
    /// Where the figure is published.
    source: &'static str,
}

const fn row(vendor: Vendor, model: &'static str, tflops: f64, memory_gbs: u32, source: &'static str) -> Row {
    Row { vendor, model, tflops, memory_gbs, source }
}

/// Of those that match, the longest counts.
const ROWS: &[Row] = &[
    row(Vendor::Nvidia, "b200", 2250.0, 8000, "NVIDIA DGX B200 datasheet, a card of eight, dense"),
    row(Vendor::Nvidia, "gb200", 2500.0, 8000, "NVIDIA GB200 NVL72 datasheet, dense"),
    row(Vendor::Nvidia, "h200", 989.0, 4800, "NVIDIA H200 datasheet, dense"),
    row(Vendor::Nvidia, "h200-nvl", 835.0, 4800, "NVIDIA H200 datasheet, NVL, dense"),
    row(Vendor::Nvidia, "gh200", 989.0, 4000, "NVIDIA GH200 datasheet, dense"),
    row(Vendor::Nvidia, "h100", 989.0, 3350, "NVIDIA H100 datasheet, SXM, dense"),
    row(Vendor::Nvidia, "h100-pcie", 756.0, 2000, "NVIDIA H100 PCIe product brief, dense"),
    row(Vendor::Nvidia, "h100-nvl", 835.0, 3900, "NVIDIA H100 datasheet, NVL, dense"),
    row(
        Vendor::Nvidia,
        "h800",
        989.0,
        3350,
        "as H100: the export model differs in links and double precision",
    ),
    row(Vendor::Nvidia, "h20", 148.0, 4000, "NVIDIA H20 product brief, dense"),
    row(Vendor::Nvidia, "a100", 312.0, 1555, "NVIDIA A100 datasheet"),
    row(Vendor::Nvidia, "a100-sxm4-80gb", 312.0, 2039, "NVIDIA A100 datasheet, 80 GB SXM"),
    row(Vendor::Nvidia, "a100-80gb-pcie", 312.0, 1935, "NVIDIA A100 datasheet, 80 GB PCIe"),
    row(Vendor::Nvidia, "a800", 312.0, 1555, "as A100: the export model differs in links"),
    row(Vendor::Nvidia, "a800-sxm4-80gb", 312.0, 2039, "as A100 of 80 GB: the export model differs in links"),
    row(Vendor::Nvidia, "a40", 149.7, 696, "NVIDIA A40 datasheet"),
    row(Vendor::Nvidia, "a30", 165.0, 933, "NVIDIA A30 datasheet"),
    row(Vendor::Nvidia, "a10", 125.0, 600, "NVIDIA A10 datasheet"),
    row(Vendor::Nvidia, "l40s", 362.0, 864, "NVIDIA L40S datasheet, dense"),
    row(Vendor::Nvidia, "l40", 181.0, 864, "NVIDIA L40 datasheet, dense"),
    row(Vendor::Nvidia, "l4", 121.0, 300, "NVIDIA L4 datasheet, dense"),
    row(Vendor::Nvidia, "tesla-v100", 125.0, 900, "NVIDIA V100 datasheet, half precision, SXM2"),
    row(Vendor::Nvidia, "v100", 125.0, 900, "NVIDIA V100 datasheet, half precision, SXM2"),
    row(Vendor::Nvidia, "tesla-t4", 65.0, 320, "NVIDIA T4 datasheet, half precision"),
    row(Vendor::Nvidia, "t4", 65.0, 320, "NVIDIA T4 datasheet, half precision"),
    row(Vendor::Amd, "mi355x", 2500.0, 8000, "AMD Instinct MI355X datasheet, dense"),
    row(Vendor::Amd, "mi350x", 2300.0, 8000, "AMD Instinct MI350X datasheet, dense"),
    row(Vendor::Amd, "mi325x", 1307.4, 6000, "AMD Instinct MI325X datasheet, dense"),
    row(Vendor::Amd, "mi300x", 1307.4, 5300, "AMD Instinct MI300X datasheet, dense"),
    row(Vendor::Amd, "mi300a", 980.6, 5300, "AMD Instinct MI300A datasheet, dense"),
    row(Vendor::Amd, "mi250x", 383.0, 3277, "AMD Instinct MI250X datasheet, of both dies"),
    row(Vendor::Amd, "mi250", 362.1, 3277, "AMD Instinct MI250 datasheet, of both dies"),
    row(Vendor::Amd, "mi210", 181.0, 1638, "AMD Instinct MI210 datasheet"),
    row(Vendor::Gaudi, "hl-225", 432.0, 2450, "Intel Gaudi 2 white paper"),
    row(Vendor::Gaudi, "hl-325", 1835.0, 3700, "Intel Gaudi 3 white paper"),
    row(Vendor::Cambricon, "mlu370-x8", 96.0, 614, "Cambricon MLU370-X8 product page, half precision"),
    row(Vendor::Cambricon, "mlu370", 96.0, 307, "Cambricon MLU370-X4 product page, half precision"),
    row(Vendor::Iluvatar, "bi-v100", 147.0, 0, "Iluvatar BI-V100 product page, half precision"),
    row(Vendor::Kunlunxin, "r200", 128.0, 0, "Kunlunxin R200 product page, half precision"),
    row(Vendor::Kunlunxin, "r300", 128.0, 0, "Kunlunxin R300 product page, half precision"),
    row(Vendor::Biren, "br104", 512.0, 0, "Biren BR104 product page"),
];

/// A speed in thousandths of the reference device, at least 1.
pub fn milli(tflops: f64) -> u32 {
    ((tflops / REFERENCE * 1000.0).round() as u32).clamp(1, 1_000_000)
}

/// What its maker says of the speed of a class, in thousandths of the reference device, at least 1, and where; `None`:
/// nothing that is known here. A partition, whose name ends in how many sevenths it is (`-mig-1g.10gb`), has its share.
pub fn speed_milli(class: &DeviceClass) -> Option<(u32, &'static str)> {
    let (row, sevenths) = listed(class)?;
    Some((milli(row.tflops * sevenths / 7.0), row.source))
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
}
