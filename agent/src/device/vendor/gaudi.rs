//! Intel Gaudi, through libhlml. Source: HabanaAI/gohlml `hlml.h`.

use aquifer_core::Vendor;

use super::{Maker, TOO_HOT};
use crate::device::api::Arg::*;
use crate::device::api::{Api, Check, Level, NOTHING, Rule, Take, U32, U64, probe};
use crate::device::tool::report::{bytes, place, rows};
use crate::device::tool::{Asked, Told, Tool};

pub const GAUDI: Maker = Maker {
    vendor: Vendor::Gaudi,
    name: "hlml",
    libraries: &["libhlml.so", "/usr/lib/habanalabs/libhlml.so"],
    needs: &[],
    tool: Some(Tool { name: "hl-smi", places: &[], read: listed_by_smi }),
    apis: &[Api {
        init: &[probe("hlml_init", &[], 0, Take::Done)],
        count: &[probe("hlml_device_get_count", &[Out(0)], 4, U32)],
        handle: &[probe("hlml_device_get_handle_by_index", &[Index, Out(0)], 8, U64)],
        uuid: &[probe("hlml_device_get_uuid", &[Card, Out(0), Size], 96, Take::Text { at: 0 })],
        model: &[probe("hlml_device_get_name", &[Card, Out(0), Size], 96, Take::Text { at: 0 })],
        // hlml_pci_info_t, 52 bytes: bus, bus_id[15], device, domain, pci_device_id, speed[10], width[10].
        place: &[probe(
            "hlml_device_get_pci_info",
            &[Card, Out(0)],
            52,
            Take::Place { domain: 24, bus: 0, device: 20, function: None },
        )],
        // hlml_memory_t, 24 bytes: free, total, used.
        memory: &[probe(
            "hlml_device_get_memory_info",
            &[Card, Out(0)],
            24,
            Take::Number { at: 8, bytes: 8, unit: 1 },
        )],
        logical: &[probe("hlml_device_get_module_id", &[Card, Out(0)], 4, U32)],
        physical: &[probe("hlml_device_get_minor_number", &[Card, Out(0)], 4, U32)],
        needs_physical: true,
        checks: &[
            Check {
                // Uncorrected errors since the driver was loaded.
                probe: probe("hlml_device_get_total_ecc_errors", &[Card, Is(1), Is(0), Out(0)], 8, U64),
                rule: Rule::Not0(Level::Suspect, "uncorrected memory errors"),
            },
            Check {
                probe: probe("hlml_device_get_current_clocks_throttle_reasons", &[Card, Out(0)], 8, U64),
                // HLML_CLOCKS_THROTTLE_REASON_THERMAL; that of power is how its limit is kept.
                rule: Rule::Bits(&[(0x2, Level::Suspect, TOO_HOT)]),
            },
        ],
        // HLML_ERROR_AIP_IS_LOST.
        lost: &[15],
        ..NOTHING
    }],
};

/// Cards as `hl-smi` lists them; the numbers of their nodes are the kernel's.
fn listed_by_smi(tool: &Asked) -> Result<Vec<Told>, String> {
    let text = tool.say(&["-Q", "index,uuid,name,memory.total,bus_id,module_id", "-f", "csv,noheader"])?;
    let card = |(_, row): (u32, Vec<&str>)| {
        let place = place(row[4]);
        Some(Told {
            logical: row[5].parse().ok()?,
            physical: place.as_deref().and_then(|place| tool.accel(place)),
            uuid: Some(row[1].into()),
            model: row[2].into(),
            memory_bytes: bytes(row[3], 20).unwrap_or(0),
            place,
            fault: None,
        })
    };
    Ok(rows(&text, 6).filter_map(card).collect())
}
