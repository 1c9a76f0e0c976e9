//! Hygon DCU, through its build of librocm_smi64. Source: gpustack/runtime `detector/{hygon.py,pyrocmsmi}`.

use aquifer_core::Vendor;

use super::Maker;
use crate::device::api::Arg::*;
use crate::device::api::{Api, Check, Level, Link, NOTHING, Rule, Take, U32, U64, probe};
use crate::device::tool::report::{bytes, place};
use crate::device::tool::{Asked, Told, Tool};
use serde_json::{Map, Value as Json};

pub const HYGON: Maker = Maker {
    vendor: Vendor::Hygon,
    name: "rsmi",
    libraries: &[
        "librocm_smi64.so",
        "/opt/hyhal/lib/librocm_smi64.so",
        "/opt/dtk/.hyhal/rocm_smi/lib/librocm_smi64.so",
        "/opt/dtk/rocm_smi/lib/librocm_smi64.so",
        "/opt/rocm/lib/librocm_smi64.so",
    ],
    needs: &[],
    tool: Some(Tool {
        name: "hy-smi",
        places: &["/opt/hyhal/bin/hy-smi", "/usr/local/hyhal/bin/hy-smi"],
        read: listed_by_smi,
    }),
    apis: &[Api {
        init: &[probe("rsmi_init", &[Is(0)], 0, Take::Done)],
        count: &[probe("rsmi_num_monitor_devices", &[Out(0)], 4, U32)],
        uuid: &[probe("rsmi_dev_unique_id_get", &[Index, Out(0)], 8, Take::Hex64)],
        uuid_prefix: "GPU-",
        model: &[probe("rsmi_dev_name_get", &[Index, Out(0), Size], 256, Take::Text { at: 0 })],
        place: &[probe("rsmi_dev_pci_id_get", &[Index, Out(0)], 8, Take::Bdf)],
        // RSMI_MEM_TYPE_VRAM.
        memory: &[probe("rsmi_dev_memory_total_get", &[Index, Is(0), Out(0)], 8, U64)],
        checks: &[Check {
            // rsmi_error_count_t: correctable, uncorrectable; RSMI_GPU_BLOCK_UMC.
            probe: probe(
                "rsmi_dev_ecc_count_get",
                &[Index, Is(1), Out(0)],
                16,
                Take::Number { at: 8, bytes: 8, unit: 1 },
            ),
            rule: Rule::Not0(Level::Suspect, "uncorrected memory errors"),
        }],
        link: Some(Link {
            probe: probe(
                "rsmi_topo_get_link_type",
                &[Index, OtherCard, Out(0), Out(8)],
                12,
                Take::Number { at: 8, bytes: 4, unit: 1 },
            ),
            // RSMI_IOLINK_TYPE_XGMI: of this library, and not the 11 of the kernel.
            is_linked: |kind| kind == 2,
        }),
        // RSMI_STATUS_FILE_ERROR, RSMI_STATUS_NOT_FOUND: its files are gone.
        lost: &[3, 10],
        ..NOTHING
    }],
};

/// Cards as `hy-smi` tells of them in JSON, before which it may print other things. Their nodes are found by their places.
fn listed_by_smi(tool: &Asked) -> Result<Vec<Told>, String> {
    let text =
        tool.say(&["--showproductname", "--showmeminfo", "vram", "--showbus", "--showuniqueid", "--json"])?;
    let json = text.find('{').map_or("", |at| &text[at..]);
    let json = serde_json::Deserializer::from_str(json).into_iter::<Map<String, Json>>().next();
    let all = json.and_then(Result::ok).ok_or("what it says is not JSON")?;
    let card = |(name, one): (&String, &Json)| {
        let logical = name.strip_prefix("card")?.parse().ok()?;
        let total = one.as_object()?.iter().find_map(|(key, value)| {
            // `vram Total Memory (MiB)`, `VRAM Total Memory (B)`.
            let key = key.to_lowercase();
            let unit = key.strip_prefix("vram total memory (")?.strip_suffix(')')?;
            // Some versions have numbers, others texts.
            let value = value.as_str().map_or_else(|| value.to_string(), Into::into);
            bytes(&format!("{value} {unit}"), 20)
        });
        let unique = one["Unique ID"].as_str().map(|id| id.trim_start_matches("0x"));
        let unique = unique.and_then(|digits| u64::from_str_radix(digits, 16).ok()).filter(|id| *id != 0);
        Some(Told {
            logical,
            physical: Some(logical),
            uuid: unique.map(|id| format!("GPU-{id:x}")),
            model: one["Card Series"].as_str().unwrap_or("unknown").into(),
            memory_bytes: total.unwrap_or(0),
            place: one["PCI Bus"].as_str().and_then(place),
            ..Told::default()
        })
    };
    Ok(all.iter().filter_map(card).collect())
}
