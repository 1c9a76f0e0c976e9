//! MetaX, through MXSML. Source: gpustack/runtime `detector/pymxsml`.

use aquifer_core::Vendor;

use super::{LOW_ON_POWER, Maker, TOO_HOT};
use crate::device::api::Arg::*;
use crate::device::api::{Api, Check, Level, Link, NOTHING, Probe, Rule, Take, U32, U64, probe};
use crate::device::tool::report::{Block, blocks, bytes, columns, place};
use crate::device::tool::{Asked, Told, Tool};

pub const METAX: Maker = Maker {
    vendor: Vendor::MetaX,
    name: "mxsml",
    libraries: &[
        "libmxsml.so",
        "/opt/mxdriver/lib/libmxsml.so",
        "/opt/maca/lib/libmxsml.so",
        "/opt/mxn100/lib/libmxsml.so",
    ],
    needs: &[],
    tool: Some(Tool { name: "mx-smi", places: &["/opt/mxdriver/bin/mx-smi"], read: listed_by_smi }),
    apis: &[Api {
        init: &[probe("mxSmlInit", &[], 0, Take::Done)],
        count: &[probe("mxSmlGetDeviceCount", &[], 0, Take::Returned)],
        uuid: &[info(48)],
        model: &[info(152)],
        place: &[info(8)],
        // mxsmlMemoryInfo_t, 48 bytes: total and used of what the processor sees, then of all, in KiB.
        memory: &[probe(
            "mxSmlGetMemoryInfo",
            &[Index, Out(0)],
            48,
            Take::Number { at: 16, bytes: 8, unit: 1 << 10 },
        )],
        checks: &[
            Check {
                // Code and text.
                probe: probe("mxSmlGetDeviceUnavailableReason", &[Index, Out(0)], 4, U32),
                rule: Rule::Not0(Level::Lost, "mxsml says that it is not available"),
            },
            Check {
                // mxSmlEccErrorCount_t: sramCE, sramUE, dramCE, dramUE, retiredPage.
                probe: probe(
                    "mxSmlGetTotalEccErrors",
                    &[Index, Out(0)],
                    20,
                    Take::Number { at: 12, bytes: 4, unit: 1 },
                ),
                rule: Rule::Not0(Level::Suspect, "uncorrected memory errors"),
            },
            Check {
                probe: probe("mxSmlGetCurrentClocksThrottleReason", &[Index, Out(0)], 8, U64),
                // mxsmlClocksThrottleReasonChipOverTemperature, …VrOverTemperature, …HbmOverTemperature,
                // …ThermalOverTemperature, …PowerBrake.
                rule: Rule::Bits(&[(0x78, Level::Suspect, TOO_HOT), (0x100, Level::Suspect, LOW_ON_POWER)]),
            },
        ],
        link: Some(Link {
            // MXSML_TOPOLOGY_METAXLINK.
            probe: probe("mxSmlGetDeviceTopology", &[Index, OtherCard, Out(0)], 4, U32),
            is_linked: |level| level == 5,
        }),
        // MXSML_ERROR_NO_DEVICE, MXSML_ERROR_INVALID_DEVICE_ID.
        lost: &[2, 6],
        ..NOTHING
    }],
};

/// A text of mxsmlDeviceInfo_t, 184 bytes: deviceId, type, bdfId[32], gpuId, nodeId, uuid[96], brand, mode, name[32].
const fn info(at: usize) -> Probe {
    probe("mxSmlGetDeviceInfo", &[Index, Out(0)], 184, Take::Text { at })
}

/// Cards as `mx-smi` lists them: `GPU#0  MXC500  0000:06:00.0  Available (UUID: GPU-…)`. Their nodes are found by their places.
fn listed_by_smi(tool: &Asked) -> Result<Vec<Told>, String> {
    let (list, memory) = (tool.say(&["-L"])?, tool.say(&["--show-memory"])?);
    let sizes = blocks(&memory, "GPU#");
    let card = |line: &str| {
        let [number, model, at, state] = columns(line.trim().strip_prefix("GPU#")?)[..] else { return None };
        let state = state.split_whitespace().next()?;
        let logical = number.parse().ok()?;
        let is_it = |block: &&Block| block.title.split_whitespace().next() == Some(&format!("GPU#{number}"));
        let total = sizes.iter().find(is_it).and_then(|block| block.value(&["vram total", "vis_vram total"]));
        let uuid = line.split_once("UUID:").map(|(_, rest)| rest.trim().trim_end_matches(')'));
        Some(Told {
            logical,
            physical: Some(logical),
            uuid: uuid.map(Into::into),
            model: model.into(),
            memory_bytes: total.and_then(|total| bytes(total, 10)).unwrap_or(0),
            place: place(at),
            fault: (state != "Available").then(|| format!("mx-smi says {state}")),
        })
    };
    Ok(list.lines().filter_map(card).collect())
}
