//! Enflame GCU, through EFML. Source: `efml.h` (2024, 2025), which has two generations in one library.

use aquifer_core::Vendor;

use super::Maker;
use super::shaped::{MEMORY_TOTAL, MEMORY_V2, MEMORY_V2_TOTAL, PCI_PLACE, shaped};
use crate::device::api::Arg::*;
use crate::device::api::{Api, Check, Level, Link, NOTHING, Rule, Take, U32, U64, probe};
use crate::device::tool::report::{Block, blocks, bytes, place_of};
use crate::device::tool::{Asked, Told, Tool};

pub const ENFLAME: Maker = Maker {
    vendor: Vendor::Enflame,
    name: "efml",
    libraries: &["libefml.so", "libefml.so.1.0.0", "/usr/lib/libefml.so"],
    needs: &[],
    tool: Some(Tool { name: "efsmi", places: &[], read: listed_by_smi }),
    apis: &[Api { init: &[probe("efmlInit_v2", &[], 0, Take::Done)], link: None, ..shaped!("efml") }, OLD],
};

const OLD: Api = Api {
    // With a driver.
    init: &[probe("EfmlInit", &[Is(0)], 0, Take::Done)],
    count: &[probe("EfmlGetDevCount", &[Out(0)], 4, U32)],
    uuid: &[probe("EfmlGetDevUuid", &[Index, Out(0)], 96, Take::Text { at: 0 })],
    model: &[probe("EfmlGetDevName", &[Index, Out(0)], 128, Take::Text { at: 0 })],
    // efmlDeviceInfo_t: name[128], vendor, device, domain, bus, device, function, logical number.
    place: &[probe(
        "EfmlGetDevInfo",
        &[Index, Out(0)],
        156,
        Take::Place { domain: 136, bus: 140, device: 144, function: Some(148) },
    )],
    // efmlDevMemInfo_t: megabytes.
    memory: &[probe("EfmlGetDevMem", &[Index, Out(0)], 16, Take::Number { at: 0, bytes: 8, unit: 1 << 20 })],
    checks: &[Check {
        probe: probe("EfmlGetDevIsHealth", &[Index, Out(0)], 1, Take::Number { at: 0, bytes: 1, unit: 1 }),
        rule: Rule::Values(&[(0, Level::Lost, "efml says that it is not well")]),
    }],
    ..NOTHING
};

/// Cards as `efsmi -q` reports them: of both generations, which call the memory's size differently.
fn listed_by_smi(tool: &Asked) -> Result<Vec<Told>, String> {
    let report = tool.say(&["-q"])?;
    let card = |block: Block| {
        let at = |key| block.under("PCIe", &[key]);
        let size = block.under("Mem", &["Total Size", "Mem Size"]);
        let logical = block.title.strip_prefix("DEV ID")?.trim().parse().ok()?;
        Some(Told {
            logical,
            physical: Some(logical),
            uuid: block.value(&["Dev UUID"]).map(Into::into),
            model: block.value(&["Dev Name"]).unwrap_or("unknown").into(),
            memory_bytes: size.and_then(|size| bytes(size, 20)).unwrap_or(0),
            place: place_of([at("Domain")?, at("Bus")?, at("Dev")?, at("Func")?]),
            fault: (block.value(&["Health"]) == Some("False"))
                .then(|| "efsmi says that it is not well".into()),
        })
    };
    Ok(blocks(&report, "DEV ID").into_iter().filter_map(card).collect())
}
