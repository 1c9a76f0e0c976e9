//! Devices that are found through a vendor's library.

use std::collections::BTreeSet;
use std::path::PathBuf;

use aquifer_core::Vendor;

use super::reader::Reader;
use super::roots::Roots;
use super::vendor::maker;
use super::{Backend, Discovery, Found, Visibility, visible};

/// The cards of a vendor, or the slices of those that are divided.
pub struct ByLibrary {
    vendor: Vendor,
    reader: Reader,
}

impl ByLibrary {
    /// Through this library, or else through the first of the vendor's that is found. `None` for a vendor whose devices
    /// are found without one.
    pub fn new(vendor: Vendor, library: Option<PathBuf>, roots: &Roots) -> Option<ByLibrary> {
        Some(ByLibrary { vendor, reader: Reader::new(maker(vendor)?, roots.clone(), library) })
    }
}

impl Backend for ByLibrary {
    fn vendor(&self) -> Vendor {
        self.vendor
    }

    fn discover(&mut self) -> Discovery {
        self.reader.look()
    }

    fn measured_under(&self) -> Option<String> {
        self.reader.driver()
    }

    fn super_pods(&self) -> BTreeSet<String> {
        self.reader.super_pods()
    }

    fn was_reset(&mut self, device: &Found) {
        self.reader.forget_alarms(&device.uuid);
    }

    fn visibility(&self, devices: &[&Found]) -> Visibility {
        visible::show(self.vendor, devices)
    }
}
