//! Biren, through libbiren-ml. Source: `brml.h` and Biren's Go binding.

use aquifer_core::Vendor;

use super::Maker;
use super::shaped::{MEMORY_TOTAL, MEMORY_V2, MEMORY_V2_TOTAL, PCI_PLACE, shaped};
use crate::device::api::Arg::*;
use crate::device::api::{Api, Check, Level, Link, Rule, Take, U32, U64, probe};
use crate::device::tool::report::{bytes, rows};
use crate::device::tool::{Asked, Told, Tool};

/// `brmlPciInfo_t`: domain, bus, device, function, pciDeviceId, pciSubSystemId, busId[32]; no legacy address.
const PLACE: Take = Take::Place { domain: 0, bus: 4, device: 8, function: Some(12) };

pub const BIREN: Maker = Maker {
    vendor: Vendor::Biren,
    name: "brml",
    libraries: &["libbiren-ml.so.1", "libbiren-ml.so"],
    needs: &[],
    tool: Some(Tool { name: "brsmi", places: &[], read: listed_by_smi }),
    apis: &[Api {
        count: &[
            probe("brmlDeviceGetCount_v1", &[Out(0)], 4, U32),
            probe("brmlDeviceGetCount", &[Out(0)], 4, U32),
        ],
        handle: &[
            probe("brmlDeviceGetHandleByIndex_v1", &[Index, Out(0)], 8, U64),
            probe("brmlDeviceGetHandleByIndex", &[Index, Out(0)], 8, U64),
        ],
        model: &[probe("brmlDeviceGetBoardPartNumber", &[Card, Out(0), Size], 80, Take::Text { at: 0 })],
        place: &[
            probe("brmlDeviceGetPciInfo_v1", &[Card, Out(0)], 56, PLACE),
            probe("brmlDeviceGetPciInfo", &[Card, Out(0)], 56, PLACE),
        ],
        memory: &[probe("brmlDeviceGetMemoryInfo", &[Card, Out(0)], 24, MEMORY_TOTAL)],
        checks: &[Check {
            probe: probe("brmlDeviceGetHealthStatus", &[Card, Out(0)], 4, U32),
            rule: Rule::Values(&[
                (1, Level::Suspect, "its library warns of it"),
                (2, Level::Suspect, "its library warns of it in earnest"),
                (3, Level::Lost, "its library says that it is not well"),
            ]),
        }],
        link: Some(Link {
            // The port of the first towards the second; 9999 if there is none.
            probe: probe("brmlDeviceGetP2PStatus", &[Card, OtherCard, Out(0)], 4, U32),
            is_linked: |port| port != 9999,
        }),
        ..shaped!("brml")
    }],
};

/// Cards as `brsmi` lists them; nodes have their numbers.
fn listed_by_smi(tool: &Asked) -> Result<Vec<Told>, String> {
    let text = tool.say(&[
        "gpu",
        "--query-gpu=index,name,memory.total,svi.mode.current",
        "--format=csv,noheader,nounits",
    ])?;
    let card = |(logical, row): (u32, Vec<&str>)| Told {
        logical,
        physical: Some(logical),
        model: row[1].into(),
        memory_bytes: bytes(row[2], 20).unwrap_or(0),
        fault: (row[3] == "Enabled").then(|| "divided into instances, which only its library lists".into()),
        ..Told::default()
    };
    Ok(rows(&text, 4).map(card).collect())
}
