//! T-Head PPU, through libhgml: NVML with another prefix. Source: gpustack/runtime `detector/pyhgml`. Of `/dev/alixpu_ppuN` the number is
//! that of the card, and not the minor number that the library tells: a plugin of Telegraf for `ppu-smi` says so.

use aquifer_core::Vendor;

use super::Maker;
use super::shaped::{MEMORY_TOTAL, MEMORY_V2, MEMORY_V2_TOTAL, PCI_PLACE, shaped};
use crate::device::api::Arg::*;
use crate::device::api::{Api, Link, Take, U32, U64, probe};
use crate::device::tool::report::{bytes, place, rows};
use crate::device::tool::{Asked, Told, Tool};

pub const T_HEAD: Maker = Maker {
    vendor: Vendor::THead,
    name: "hgml",
    libraries: &["libhgml.so", "/usr/local/PPU_SDK/lib64/libhgml.so"],
    needs: &["libuki.so"],
    tool: Some(Tool { name: "ppu-smi", places: &["/usr/local/PPU_SDK/bin/ppu-smi"], read: listed_by_smi }),
    apis: &[Api { physical: &[], ..shaped!("hgml") }],
};

/// Cards as `ppu-smi` lists them.
fn listed_by_smi(tool: &Asked) -> Result<Vec<Told>, String> {
    let text =
        tool.say(&["--query-ppu=index,name,uuid,pci.bus_id,memory.total", "--format=csv,noheader,nounits"])?;
    let card = |(logical, row): (u32, Vec<&str>)| Told {
        logical,
        physical: Some(logical),
        uuid: Some(row[2].into()),
        model: row[1].into(),
        memory_bytes: bytes(row[4], 20).unwrap_or(0),
        place: place(row[3]),
        fault: None,
    };
    Ok(rows(&text, 5).map(card).collect())
}
