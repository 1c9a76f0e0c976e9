//! Kunlunxin XPU, through libxpuml. Source: kunlunxin/go-xpuml `gen/xpuml/xpuml.h` (2022): all structs are padded to
//! 128 bytes, and there are neither names nor unique names; newer libraries may have them under NVML's names.

use aquifer_core::Vendor;

use super::Maker;
use super::shaped::{MEMORY_TOTAL, MEMORY_V2, MEMORY_V2_TOTAL, PCI_PLACE, shaped};
use crate::device::api::Arg::*;
use crate::device::api::{Api, Check, Level, Link, Rule, Take, U32, U64, probe};
use crate::device::tool::report::{bytes, place};
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

/// Cards as `xpu-smi -m` lists them: a line each, of columns with spaces between. Intel has a tool of the same name that knows
/// no such flag.
fn listed_by_smi(tool: &Asked) -> Result<Vec<Told>, String> {
    let text = tool.say(&["-m"])?;
    let card = |line: &str| {
        let line = line.replace('"', "");
        let words: Vec<&str> = line.split_whitespace().collect();
        let logical = words.get(1)?.parse().ok()?;
        Some(Told {
            logical,
            physical: Some(logical),
            model: words.get(21..23)?.join(" "),
            memory_bytes: bytes(words[18], 20)?,
            place: place(words[0]),
            ..Told::default()
        })
    };
    Ok(text.lines().filter_map(card).collect())
}
