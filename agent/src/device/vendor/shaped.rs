//! Libraries in the shape of NVML: the same functions under another prefix, mostly with the same structs.

use super::{LOW_ON_POWER, TOO_HOT};
use crate::device::api::{Arg, Check, Level, Rule, Take, U64, probe};

/// `nvmlMemory_t`, 24 bytes: total, free, used.
pub const MEMORY_TOTAL: Take = Take::Number { at: 0, bytes: 8, unit: 1 };
/// `nvmlMemory_v2_t`, 40 bytes: version, total, reserved, free, used.
pub const MEMORY_V2_TOTAL: Take = Take::Number { at: 8, bytes: 8, unit: 1 };
/// Stamp of `nvmlMemory_v2_t`: its size and its version.
pub const MEMORY_V2: u32 = 40 | 2 << 24;
/// `nvmlPciInfo_t`, 68 bytes: busIdLegacy[16], domain, bus, device, pciDeviceId, pciSubSystemId, busId[32].
pub const PCI_PLACE: Take = Take::Place { domain: 16, bus: 20, device: 24, function: None };

/// Whether the hardware of a card slows it down: `nvmlClocksThrottleReasonHwThermalSlowdown`, `…HwPowerBrakeSlowdown`.
pub const SLOWED: Check = Check {
    probe: probe("nvmlDeviceGetCurrentClocksThrottleReasons", &[Arg::Card, Arg::Out(0)], 8, U64),
    rule: Rule::Bits(&[(0x40, Level::Suspect, TOO_HOT), (0x80, Level::Suspect, LOW_ON_POWER)]),
};

/// The functions that all of them have, under a prefix. What a vendor does otherwise it puts over it.
macro_rules! shaped {
    ($prefix:literal) => {
        $crate::device::api::Api {
            init: &[
                probe(concat!($prefix, "Init_v2"), &[], 0, Take::Done),
                probe(concat!($prefix, "Init"), &[], 0, Take::Done),
                probe(concat!($prefix, "InitWithFlags"), &[Is(0)], 0, Take::Done),
            ],
            count: &[
                probe(concat!($prefix, "DeviceGetCount_v2"), &[Out(0)], 4, U32),
                probe(concat!($prefix, "DeviceGetCount"), &[Out(0)], 4, U32),
            ],
            handle: &[
                probe(concat!($prefix, "DeviceGetHandleByIndex_v2"), &[Index, Out(0)], 8, U64),
                probe(concat!($prefix, "DeviceGetHandleByIndex"), &[Index, Out(0)], 8, U64),
            ],
            uuid: &[probe(
                concat!($prefix, "DeviceGetUUID"),
                &[Card, Out(0), Size],
                96,
                Take::Text { at: 0 },
            )],
            model: &[probe(
                concat!($prefix, "DeviceGetName"),
                &[Card, Out(0), Size],
                96,
                Take::Text { at: 0 },
            )],
            place: &[
                probe(concat!($prefix, "DeviceGetPciInfo_v3"), &[Card, Out(0)], 68, PCI_PLACE),
                probe(concat!($prefix, "DeviceGetPciInfo_v2"), &[Card, Out(0)], 68, PCI_PLACE),
                probe(concat!($prefix, "DeviceGetPciInfo"), &[Card, Out(0)], 68, PCI_PLACE),
            ],
            memory: &[
                probe(concat!($prefix, "DeviceGetMemoryInfo_v2"), &[Card, Out(0)], 40, MEMORY_V2_TOTAL)
                    .stamped(MEMORY_V2),
                probe(concat!($prefix, "DeviceGetMemoryInfo"), &[Card, Out(0)], 24, MEMORY_TOTAL),
            ],
            physical: &[probe(concat!($prefix, "DeviceGetMinorNumber"), &[Card, Out(0)], 4, U32)],
            link: Some(Link {
                // NVML_P2P_CAPS_INDEX_NVLINK = 2; NVML_P2P_STATUS_OK = 0.
                probe: probe(
                    concat!($prefix, "DeviceGetP2PStatus"),
                    &[Card, OtherCard, Is(2), Out(0)],
                    4,
                    U32,
                ),
                is_linked: |status| status == 0,
            }),
            lost: &[15],
            explain: Some(concat!($prefix, "ErrorString")),
            ..$crate::device::api::NOTHING
        }
    };
}

pub(super) use shaped;
