//! NVIDIA, through NVML. Source: nvml.h of NVIDIA/go-nvml.

use aquifer_core::{Isolation, Vendor};

use super::Maker;
use super::shaped::{MEMORY_TOTAL, MEMORY_V2, MEMORY_V2_TOTAL, PCI_PLACE, SLOWED, shaped};
use crate::device::api::Arg::*;
use crate::device::api::{
    Api, Check, Context, Events, Level, Link, Listed, Opened, Probe, Rule, Slices, Take, U32, U64, Value,
    probe,
};
use crate::device::caps;
use crate::device::tool::report::{Block, blocks, bytes, place};
use crate::device::tool::{Asked, Told, Tool};

pub const NVIDIA: Maker = Maker {
    vendor: Vendor::Nvidia,
    name: "nvml",
    libraries: &["libnvidia-ml.so.1", "libnvidia-ml.so"],
    needs: &[],
    tool: Some(Tool { name: "nvidia-smi", places: &[], read: listed_by_smi }),
    apis: &[Api {
        checks: &[
            Check { probe: RECOVERY_ACTION, rule: Rule::Values(RECOVERY_ACTIONS) },
            Check {
                probe: probe(
                    "nvmlDeviceGetRemappedRows",
                    REMAPPED,
                    16,
                    Take::Number { at: 12, bytes: 4, unit: 1 },
                ),
                rule: Rule::Not0(Level::Lost, "its memory has a row that could not be remapped: replace it"),
            },
            Check {
                probe: probe(
                    "nvmlDeviceGetRemappedRows",
                    REMAPPED,
                    16,
                    Take::Number { at: 8, bytes: 4, unit: 1 },
                ),
                rule: Rule::Not0(Level::Suspect, "a row of its memory is remapped at the next reset"),
            },
            Check {
                // Uncorrected errors since the driver was loaded.
                probe: probe("nvmlDeviceGetTotalEccErrors", &[Card, Is(1), Is(0), Out(0)], 8, U64),
                rule: Rule::Not0(Level::Suspect, "uncorrected memory errors"),
            },
            SLOWED,
        ],
        events: Some(Events {
            create: probe("nvmlEventSetCreate", &[Out(0)], 8, U64),
            // nvmlEventTypeXidCriticalError.
            register: probe("nvmlDeviceRegisterEvents", &[Card, Is(8), Events], 0, Take::Done),
            // nvmlEventData_t, 32 bytes: device, eventType, eventData, gpuInstanceId, computeInstanceId.
            next: probe(
                "nvmlEventSetWait_v2",
                &[Events, Out(0), Is(0)],
                32,
                Take::Number { at: 16, bytes: 8, unit: 1 },
            ),
            card_at: 0,
            means: crate::device::xid::meaning,
            settled_by: RECOVERY_ACTION,
        }),
        slices: Some(Slices {
            is_divided: |opened, card| opened.ask(&MIG_MODE, card) == Ok(Value::Number(1)),
            level: Isolation::Hard,
            listed: Some(Listed {
                most: probe("nvmlDeviceGetMaxMigDeviceCount", &[Card, Out(0)], 4, U32),
                handle: probe("nvmlDeviceGetMigDeviceHandleByIndex", &[Card, Index, Out(0)], 8, U64),
                nodes: |opened, slice, card, roots| {
                    let number = |probe: &Probe| Some(opened.ask(probe, slice).ok()?.number() as u32);
                    let numbers = number(&INSTANCE).zip(number(&COMPUTE_INSTANCE));
                    numbers.map_or(Vec::new(), |(own, compute)| caps::of_instance(roots, card, own, compute))
                },
            }),
        }),
        super_pod: Some(clique),
        driver: &[probe("nvmlSystemGetDriverVersion", &[Out(0), Size], 80, Take::Text { at: 0 })],
        users: &[
            users("nvmlDeviceGetComputeRunningProcesses_v3"),
            users("nvmlDeviceGetComputeRunningProcesses_v2"),
            users("nvmlDeviceGetComputeRunningProcesses"),
        ],
        ..shaped!("nvml")
    }],
};

/// Of the handle of a MIG instance.
const INSTANCE: Probe = probe("nvmlDeviceGetGpuInstanceId", &[Card, Out(0)], 4, U32);
const COMPUTE_INSTANCE: Probe = probe("nvmlDeviceGetComputeInstanceId", &[Card, Out(0)], 4, U32);
const MIG_MODE: Probe = probe("nvmlDeviceGetMigMode", &[Card, Out(0), Out(4)], 8, U32);

/// nvmlGpuFabricInfo_v2_t, 36 bytes: version, clusterUuid[16], status, cliqueId, state, healthMask.
const FABRIC: Probe = probe("nvmlDeviceGetGpuFabricInfoV", &[Card, Out(0)], 36, U32).stamped(36 | 2 << 24);
/// NVML_GPU_FABRIC_STATE_COMPLETED.
const REGISTERED: u32 = 3;

/// The part of an NVLink fabric within which memory can be reached, as it is called elsewhere: the cluster's name and the number of the
/// clique within it. NVLink within one machine alone is no such fabric.
fn clique(opened: &Opened, card: &Context) -> Option<String> {
    let (_, bytes) = opened.ask_raw(&FABRIC, card).ok()?;
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let cluster = bytes.get(4..20).filter(|cluster| cluster.iter().any(|byte| *byte != 0))?;
    let is_whole = word(20)? == 0 && word(28)? & 0xff == REGISTERED;
    let digits: String = cluster.iter().map(|byte| format!("{byte:02x}")).collect();
    is_whole.then_some(format!("nvlink-{digits}.{}", word(24)?))
}

/// Programs on a card that are counted.
const PROCESSES: u32 = 64;

/// How many programs compute on a card: the number that fit, then nvmlProcessInfo_t, 24 bytes each, 16 of the first version.
const fn users(symbol: &'static str) -> Probe {
    probe(symbol, &[Card, Out(0), Out(8)], 8 + 24 * PROCESSES as usize, U32).stamped(PROCESSES)
}

const REMAPPED: &[crate::device::api::Arg] = &[Card, Out(0), Out(4), Out(8), Out(12)];

/// nvmlFieldValue_t, 40 bytes: fieldId, scopeId, timestamp, latencyUsec, valueType, nvmlReturn, value.
const RECOVERY_ACTION: Probe =
    probe("nvmlDeviceGetFieldValues", &[Card, Is(1), Out(0)], 40, Take::Checked { at: 32, status: 28 })
        .stamped(NVML_FI_DEV_GET_GPU_RECOVERY_ACTION);
const NVML_FI_DEV_GET_GPU_RECOVERY_ACTION: u32 = 230;
const RECOVERY_ACTIONS: &[(u64, Level, &str)] = &[
    (1, Level::Reset, "the driver asks for a reset of the card"),
    (2, Level::Reboot, "the driver asks for a restart of the machine"),
    (3, Level::Suspect, "the driver asks for its links to be drained"),
    (4, Level::Drain, "the driver asks for it to be drained and reset"),
    (5, Level::Suspect, "the driver asks for its IMEX domain to be recovered"),
];

/// Cards as `nvidia-smi -q` reports them.
fn listed_by_smi(tool: &Asked) -> Result<Vec<Told>, String> {
    let report = tool.say(&["-q"])?;
    let card = |(logical, block): (u32, Block)| Told {
        logical,
        physical: block.value(&["Minor Number"]).and_then(|number| number.parse().ok()),
        uuid: block.value(&["GPU UUID"]).map(Into::into),
        model: block.value(&["Product Name"]).unwrap_or("unknown").into(),
        memory_bytes: block.under("FB Memory", &["Total"]).and_then(|total| bytes(total, 20)).unwrap_or(0),
        place: block.title.strip_prefix("GPU ").and_then(place),
        // What runs on the instances of such a card is told by their names, which are not in this report.
        fault: (block.under("MIG Mode", &["Current"]) == Some("Enabled"))
            .then(|| "divided into instances, which only its library lists".into()),
    };
    Ok((0..).zip(blocks(&report, "GPU ")).map(card).collect())
}
