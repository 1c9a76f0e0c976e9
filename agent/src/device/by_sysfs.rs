//! Devices that the kernel describes completely: AMD's and Intel's.

use aquifer_core::Vendor;

use super::helper::Helper;
use super::roots::Roots;
use super::unread::without_library;
use super::{Backend, Discovery, Found, Visibility, intel, kfd, visible};

/// A vendor's cards, from `/sys`. Reading it can hang where a card has, and has a thread of its own.
pub struct BySysfs {
    vendor: Vendor,
    roots: Roots,
    helper: Helper<Discovery>,
}

impl BySysfs {
    /// The cards of AMD or Intel.
    ///
    /// # Panics
    ///
    /// For another vendor: its cards are found through a library.
    pub fn new(vendor: Vendor, roots: &Roots) -> BySysfs {
        let (own, name) = (roots.clone(), vendor.to_string());
        let mut seen = kfd::Seen::default();
        let helper = match vendor {
            Vendor::Amd => Helper::new(&name, move || kfd::look(&own, &mut seen)),
            Vendor::Intel => Helper::new(&name, move || intel::look(&own)),
            _ => panic!("{vendor}'s cards are found through a library"),
        };
        BySysfs { vendor, roots: roots.clone(), helper }
    }
}

impl Backend for BySysfs {
    fn vendor(&self) -> Vendor {
        self.vendor
    }

    fn discover(&mut self) -> Discovery {
        self.helper.ask(self.roots.patience).unwrap_or_else(|| {
            let why = format!("sysfs did not answer within {} s", self.roots.patience.as_secs_f64());
            without_library(self.vendor, &self.roots, why)
        })
    }

    fn visibility(&self, devices: &[&Found]) -> Visibility {
        visible::show(self.vendor, devices)
    }
}
