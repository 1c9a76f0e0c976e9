//! T-Head PPU, through libhgml: NVML with another prefix. Source: gpustack/runtime `detector/pyhgml`.

use aquifer_core::Vendor;

use super::Maker;
use super::shaped::{MEMORY_TOTAL, MEMORY_V2, MEMORY_V2_TOTAL, PCI_PLACE, shaped};
use crate::device::api::Arg::*;
use crate::device::api::{Link, Take, U32, U64, probe};

pub const T_HEAD: Maker = Maker {
    vendor: Vendor::THead,
    name: "hgml",
    libraries: &["libhgml.so"],
    needs: &["libuki.so"],
    tool: None,
    apis: &[shaped!("hgml")],
};
