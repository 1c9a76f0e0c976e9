//! Cambricon MLU, through CNDEV. Source: Cambricon/mlu-exporter `pkg/cndev/include/cndev.h`.
//!
//! A handle is a number of four bytes, the answer is mostly the first argument, and most structs begin with the version
//! that the caller knows.

use aquifer_core::{Isolation, Vendor};

use super::{LOW_ON_POWER, Maker, TOO_HOT};
use crate::device::api::Arg::*;
use crate::device::api::{Api, Check, Level, NOTHING, Probe, Rule, Slices, Take, U32, Value, probe};
use crate::device::cndev_incidents;
use crate::device::tool::report::{bytes, place_of};
use crate::device::tool::{Asked, Told, Tool};
use serde_json::Value as Json;

/// CNDEV_VERSION_6; an unstamped struct is refused.
pub(crate) const VERSION: u32 = 6;

pub const CAMBRICON: Maker = Maker {
    vendor: Vendor::Cambricon,
    name: "cndev",
    libraries: &[
        "libcndev.so",
        "$NEUWARE_HOME/lib64/libcndev.so",
        "$NEUWARE_HOME/lib/libcndev.so",
        "/usr/local/neuware/lib64/libcndev.so",
        "/usr/local/neuware/lib/libcndev.so",
    ],
    needs: &[],
    tool: Some(Tool {
        name: "cnmon",
        places: &["/usr/local/neuware/bin/cnmon", "/usr/bin/cnmon"],
        read: listed_by_cnmon,
    }),
    apis: &[Api {
        init: &[probe("cndevInit", &[Is(0)], 0, Take::Done)],
        count: &[probe("cndevGetDeviceCount", &[Out(0)], 8, SECOND).stamped(VERSION)],
        handle: &[probe("cndevGetDeviceHandleByIndex", &[Index, Out(0)], 4, U32)],
        // cndevUUID_t, 56 bytes: version, uuid[37], ncsUUID64.
        uuid: &[probe("cndevGetUUID", &[Out(0), Card], 56, Take::Text { at: 4 }).stamped(VERSION)],
        uuid_prefix: "MLU-",
        model: &[probe("cndevGetCardNameStringByDevId", &[Card], 0, Take::ReturnedText)],
        // cndevPCIeInfoV2_t, 64 bytes: subsystem, device, two vendors of two bytes, domain, bus, device, function.
        place: &[probe(
            "cndevGetPCIeInfoV2",
            &[Out(0), Card],
            64,
            Take::Place { domain: 12, bus: 16, device: 20, function: Some(24) },
        )],
        memory: &[
            // cndevMemoryInfoV2_t, 176 bytes: no version, megabytes.
            probe(
                "cndevGetMemoryUsageV2",
                &[Out(0), Card],
                176,
                Take::Number { at: 0, bytes: 8, unit: 1 << 20 },
            ),
            // cndevMemoryInfo_t: version, then the same.
            probe(
                "cndevGetMemoryUsage",
                &[Out(0), Card],
                176,
                Take::Number { at: 8, bytes: 8, unit: 1 << 20 },
            )
            .stamped(VERSION),
        ],
        checks: &[
            // cndevCardHealthStateV2_t, 34,612 bytes, all written: health, deviceState, driverState, overallHealth, the number
            // of incidents, 64 incidents. cndevIncidentInfo_t, 540 bytes: system, health, msg[512], device_id, bdf, code.
            Check {
                probe: probe(
                    "cndevGetCardHealthStateV2",
                    &[Out(0), Card],
                    34_612,
                    Take::Number { at: 16, bytes: 4, unit: 1 },
                ),
                rule: Rule::Each {
                    at: 20 + 528,
                    stride: 540,
                    most: 64,
                    means: cndev_incidents::meaning,
                    often: None,
                },
            },
            Check {
                probe: probe("cndevGetCardHealthStateV2", &[Out(0), Card], 34_612, U32),
                rule: Rule::Values(NOT_WELL),
            },
            Check {
                probe: probe(
                    "cndevGetCardHealthStateV2",
                    &[Out(0), Card],
                    34_612,
                    Take::Number { at: 12, bytes: 4, unit: 1 },
                ),
                rule: Rule::Else(&[
                    (10, Level::Suspect, "cndev warns of an incident"),
                    (20, Level::Lost, "cndev reports a failure"),
                ]),
            },
            // cndevCardHealthState_t, 16 bytes: version, health, deviceState, driverState.
            Check {
                probe: probe("cndevGetCardHealthState", &[Out(0), Card], 16, SECOND).stamped(VERSION),
                rule: Rule::Values(NOT_WELL),
            },
            // cndevPerformanceThrottleReason_t, 28 bytes: version, tdp, powerSetting, clockSetting, frequencyLocked, powerBrake,
            // thermalSlowdown.
            Check { probe: throttle_reason(24), rule: Rule::Not0(Level::Suspect, TOO_HOT) },
            Check { probe: throttle_reason(20), rule: Rule::Not0(Level::Suspect, LOW_ON_POWER) },
        ],
        slices: Some(Slices {
            is_divided: |opened, card| opened.ask(&SMLU_MODE, card) == Ok(Value::Number(1)),
            level: Isolation::Limited,
            listed: None,
        }),
        // CNDEV_ERROR_INVALID_DEVICE_ID, CNDEV_ERROR_IN_PROBLEM.
        lost: &[6, 18],
        explain: Some("cndevGetErrorString"),
        ..NOTHING
    }],
};

/// cndevSMLUMode_t, 8 bytes: version, smluMode (1: on).
pub(crate) const SMLU_MODE: Probe = probe("cndevGetSMLUMode", &[Out(0), Card], 8, SECOND).stamped(VERSION);
const SECOND: Take = Take::Number { at: 4, bytes: 4, unit: 1 };
const NOT_WELL: &[(u64, Level, &str)] = &[(0, Level::Lost, "cndev says that it is not well")];

const fn throttle_reason(at: usize) -> Probe {
    let take = Take::Number { at, bytes: 4, unit: 1 };
    probe("cndevGetPerformanceThrottleReason", &[Out(0), Card], 28, take).stamped(VERSION)
}

/// Cards as `cnmon info -j` writes them into a file.
fn listed_by_cnmon(tool: &Asked) -> Result<Vec<Told>, String> {
    let text = tool.write(&["info", "-j"], "cnmon_info.json")?;
    let all: Json =
        serde_json::from_str(&text).map_err(|error| format!("what it wrote is not JSON: {error}"))?;
    let card = |one: &Json| {
        let text = |value: &Json| value.as_str().map_or_else(|| value.to_string(), Into::into);
        let logical = text(&one["CardNum"]).trim_start_matches("Card ").parse().ok()?;
        let [domain, bus, device, function] =
            ["DomainID", "Bus", "Device", "Function"].map(|key| text(&one["PCI"][key]));
        Some(Told {
            logical,
            physical: Some(logical),
            uuid: one["UUID"].as_str().map(|uuid| format!("MLU-{uuid}")),
            model: one["ProductName"].as_str().unwrap_or("unknown").into(),
            memory_bytes: bytes(&text(&one["PhysicalMemUsage"]["Total"]), 20).unwrap_or(0),
            place: place_of([&domain, &bus, &device, &function]),
            fault: None,
        })
    };
    Ok(all["CnmonInfo"].as_array().into_iter().flatten().filter_map(card).collect())
}
