//! Kunlunxin XPU, through libxpuml. Source: kunlunxin/go-xpuml `gen/xpuml/xpuml.h` (2022): all structs are padded to
//! 128 bytes, and there are neither names nor unique names; newer libraries may have them under NVML's names.

use aquifer_core::Vendor;

use super::Maker;
use super::shaped::{MEMORY_TOTAL, MEMORY_V2, MEMORY_V2_TOTAL, PCI_PLACE, shaped};
use crate::device::api::Arg::*;
use crate::device::api::{Api, Check, Level, Link, Rule, Take, U32, U64, probe};
use crate::device::tool::report::{Block, blocks, bytes, place};
use crate::device::tool::{Asked, Told, Tool};

pub const KUNLUNXIN: Maker = Maker {
    vendor: Vendor::Kunlunxin,
    name: "xpuml",
    libraries: &[
        "libxpuml.so.1",
        "libxpuml.so",
        "/opt/xre/so/libxpuml.so.1",
        "/opt/xre/so/libxpuml.so",
        "/usr/local/xpu/lib64/libxpuml.so",
        "/usr/local/xpu*/lib64/libxpuml.so.1",
        "/usr/local/xpu*/lib64/libxpuml.so",
    ],
    needs: &[],
    tool: Some(Tool { name: "xpu-smi", places: &[], read: listed_by_smi }),
    apis: &[Api {
        uuid: &[
            probe("xpumlDeviceGetUUID", &[Card, Out(0), Size], 96, Take::Text { at: 0 }),
            probe("xpumlDeviceGetSerial", &[Card, Out(0), Size], 96, Take::Text { at: 0 }),
        ],
        // domain, bus, device, function, pciDeviceId, pciSubSystemId, busId[32]; no legacy address.
        place: &[probe(
            "xpumlDeviceGetPciInfo",
            &[Card, Out(0)],
            128,
            Take::Place { domain: 0, bus: 4, device: 8, function: Some(12) },
        )],
        // page, total, free, used, then those of the L3 cache.
        memory: &[probe(
            "xpumlDeviceGetMemoryInfo",
            &[Card, Out(0)],
            128,
            Take::Number { at: 8, bytes: 8, unit: 1 },
        )],
        // `/dev/xpuN` is not numbered as the cards are. Neither is in the header of 2022.
        physical: &[
            probe("xpumlDeviceGetMinorNumber", &[Card, Out(0)], 4, U32),
            probe("xpumlDeviceGetId", &[Card, Out(0)], 4, U32),
        ],
        checks: &[Check {
            probe: probe("xpumlDeviceGetState", &[Card, Out(0)], 4, U32),
            rule: Rule::Values(&[
                (205, Level::Lost, "it is being reset"),
                (207, Level::Lost, "its library says that it has failed"),
                (208, Level::Lost, "its library says that it is in an exception"),
            ]),
        }],
        link: None,
        ..shaped!("xpuml")
    }],
};

/// Cards as `xpu-smi -q` reports them. Their order is not that of their nodes: only `Minor Number` says which is whose. Intel has a
/// tool of the same name that knows no such flag.
fn listed_by_smi(tool: &Asked) -> Result<Vec<Told>, String> {
    let report = tool.say(&["-q"])?;
    let card = |(logical, block): (u32, Block)| Told {
        logical,
        physical: block.value(&["Minor Number"]).and_then(|number| number.parse().ok()),
        uuid: block.value(&["XPU UUID"]).map(Into::into),
        model: block.value(&["Product Name"]).unwrap_or("unknown").into(),
        memory_bytes: block.under("Memory", &["Total"]).and_then(|total| bytes(total, 20)).unwrap_or(0),
        place: block.title.strip_prefix("XPU ").and_then(place),
        fault: None,
    };
    Ok((0..).zip(blocks(&report, "XPU ")).map(card).collect())
}
