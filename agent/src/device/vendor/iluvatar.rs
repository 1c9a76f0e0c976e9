//! Iluvatar CoreX, through libixml: NVML's names and structs. Source: Deep-Spark/go-ixml `gen/ixml/api.h`.

use aquifer_core::Vendor;

use super::Maker;
use super::shaped::{MEMORY_TOTAL, MEMORY_V2, MEMORY_V2_TOTAL, PCI_PLACE, SLOWED, shaped};
use crate::device::api::Arg::*;
use crate::device::api::{Api, Check, Level, Link, Rule, Take, U32, U64, probe};
use crate::device::tool::report::{bytes, place, rows};
use crate::device::tool::{Asked, Told, Tool};

pub const ILUVATAR: Maker = Maker {
    vendor: Vendor::Iluvatar,
    name: "ixml",
    libraries: &[
        "libixml.so",
        "$COREX_HOME/lib64/libixml.so",
        "$COREX_HOME/lib/libixml.so",
        "/usr/local/corex/lib64/libixml.so",
        "/usr/local/corex/lib/libixml.so",
    ],
    needs: &[],
    tool: Some(Tool { name: "ixsmi", places: &["/usr/local/corex/bin/ixsmi"], read: listed_by_smi }),
    apis: &[Api {
        checks: &[
            Check {
                probe: probe("ixmlDeviceGetHealth", &[Card, Out(0)], 8, U64),
                rule: Rule::Bits(&[
                    (0x1, Level::Lost, "its system hub is not well"),
                    (0x2, Level::Lost, "its microcontroller is not well"),
                    (0x10, Level::Suspect, "memory errors"),
                    (0x20, Level::Lost, "its memory is not well"),
                    (0x40, Level::Lost, "its PCIe link is not well"),
                ]),
            },
            SLOWED,
        ],
        ..shaped!("nvml")
    }],
};

/// Cards as `ixsmi` lists them. It does not tell the numbers of their nodes.
fn listed_by_smi(tool: &Asked) -> Result<Vec<Told>, String> {
    let text = tool.say(&["--query-gpu=index,uuid,name,memory.total,pci.bus_id", "--format=csv,noheader"])?;
    let card = |(logical, row): (u32, Vec<&str>)| Told {
        logical,
        physical: None,
        uuid: Some(row[1].into()),
        model: row[2].into(),
        memory_bytes: bytes(row[3], 20).unwrap_or(0),
        place: place(row[4]),
        fault: None,
    };
    Ok(rows(&text, 5).map(card).collect())
}
