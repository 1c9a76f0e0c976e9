//! MetaX, through MXSML. Source: gpustack/runtime `detector/pymxsml`.

use aquifer_core::Vendor;

use super::Maker;
use crate::device::api::Arg::*;
use crate::device::api::{Api, Check, Level, Link, NOTHING, Probe, Rule, Take, U32, probe};

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
