//! Moore Threads, through MTML. Source: `mtml.h` and gpustack's `pymtml`.

use aquifer_core::Vendor;

use super::Maker;
use crate::device::api::Arg::*;
use crate::device::api::{Api, Check, Level, Link, NOTHING, Rule, Take, U32, U64, probe};
use crate::device::tool::report::{Block, blocks, bytes, place};
use crate::device::tool::{Asked, Told, Tool};

pub const MOORE_THREADS: Maker = Maker {
    vendor: Vendor::MooreThreads,
    name: "mtml",
    libraries: &["libmtml.so", "/usr/lib/x86_64-linux-gnu/musa/libmtml.so"],
    needs: &[],
    tool: Some(Tool { name: "mthreads-gmi", places: &[], read: listed_by_gmi }),
    apis: &[Api {
        init: &[probe("mtmlLibraryInit", &[Out(0)], 8, U64)],
        count: &[probe("mtmlLibraryCountDevice", &[Library, Out(0)], 4, U32)],
        handle: &[probe("mtmlLibraryInitDeviceByIndex", &[Library, Index, Out(0)], 8, U64)],
        keeps_handles: true,
        memory_part: &[probe("mtmlDeviceInitMemory", &[Card, Out(0)], 8, U64)],
        uuid: &[probe("mtmlDeviceGetUUID", &[Card, Out(0), Size], 48, Take::Text { at: 0 })],
        model: &[probe("mtmlDeviceGetName", &[Card, Out(0), Size], 32, Take::Text { at: 0 })],
        // MtmlPciInfo, 104 bytes: sbdf[32], segment, bus, device, …
        place: &[probe(
            "mtmlDeviceGetPciInfo",
            &[Card, Out(0)],
            104,
            Take::Place { domain: 32, bus: 36, device: 40, function: None },
        )],
        memory: &[probe("mtmlMemoryGetTotal", &[Memory, Out(0)], 8, U64)],
        checks: &[Check {
            // Uncorrected, since the driver was loaded, of the memory chips.
            probe: probe("mtmlMemoryGetEccErrorCounter", &[Memory, Is(1), Is(0), Is(1), Out(0)], 8, U32),
            rule: Rule::Not0(Level::Suspect, "uncorrected memory errors"),
        }],
        link: Some(Link {
            // How many MTLinks there are between the two.
            probe: probe("mtmlDeviceCountMtLinkLayouts", &[Card, OtherCard, Out(0)], 4, U32),
            is_linked: |links| 0 < links,
        }),
        lost: &[],
        explain: Some("mtmlErrorString"),
        ..NOTHING
    }],
};

/// Cards as `mthreads-gmi -q` reports them.
fn listed_by_gmi(tool: &Asked) -> Result<Vec<Told>, String> {
    let report = tool.say(&["-q"])?;
    let card = |block: Block| {
        let (number, rest) =
            block.title.strip_prefix("GPU")?.split_once(' ').unwrap_or((&block.title[3..], ""));
        let logical = number.parse().ok()?;
        let at = block.value(&["Bus ID", "GPU Bus ID", "Bus Id"]).unwrap_or(rest);
        Some(Told {
            logical,
            // Its nodes are found by its place.
            physical: Some(logical),
            uuid: block.value(&["GPU UUID"]).map(Into::into),
            model: block.value(&["Product Name"]).unwrap_or("unknown").into(),
            memory_bytes: block.under("Memory", &["Total"]).and_then(|total| bytes(total, 20)).unwrap_or(0),
            place: place(at),
            fault: None,
        })
    };
    Ok(blocks(&report, "GPU").into_iter().filter_map(card).collect())
}
