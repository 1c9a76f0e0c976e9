//! Cards of which nothing could be read.

use std::sync::Arc;

use aquifer_core::{DeviceClass, Fault, Isolation, Vendor};

use super::roots::Roots;
use super::{Discovery, Finding, Found, count_text};

/// What there is without a library: every card that is plugged in, with the reason.
pub fn without_library(vendor: Vendor, roots: &Roots, why: String) -> Discovery {
    let places = roots.plugged(vendor);
    let what = match places.len() {
        0 => why.clone(),
        count => format!("{} on PCI, but {why}", count_text(count, "device")),
    };
    let fault = Fault::faulty(why.as_str());
    let device =
        |place: String| Found { fault: Some(fault.clone()), ..unread(vendor, &place.clone(), place) };
    Discovery { devices: places.into_iter().map(device).collect(), findings: vec![Finding { vendor, what }] }
}

/// A card of which nothing could be read.
pub fn unread(vendor: Vendor, name: &str, place: String) -> Found {
    let class = DeviceClass { vendor, model: "unknown".into(), memory_bytes: 0 };
    Found {
        class: Arc::new(class),
        uuid: format!("{vendor}-{name}").into(),
        fault: None,
        island: None,
        isolation: Isolation::Advisory,
        parts: None,
        speed_milli: None,
        memory_gbs: None,
        is_used: false,
        one_of: 1,
        place,
        logical: u32::MAX,
        physical: u32::MAX,
        nodes: Vec::new(),
    }
}
