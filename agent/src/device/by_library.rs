//! Devices that are found through a vendor's library.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use aquifer_core::Vendor;

use super::helper::Helper;
use super::reader::{Reader, Shared, without_library};
use super::roots::Roots;
use super::vendor::{Maker, maker};
use super::{Backend, Discovery, Found, Visibility, visible};

/// Threads that may hang before the library as a whole is given up.
const MOST_HUNG: usize = 4;

/// The cards of a vendor, or the slices of those that are divided.
pub struct ByLibrary {
    maker: &'static Maker,
    roots: Roots,
    library: Option<PathBuf>,
    shared: Arc<Shared>,
    helper: Helper<Discovery>,
    /// Cards for which a call has not returned, with the threads that wait for it.
    stuck: Vec<(u32, Helper<Discovery>)>,
}

impl ByLibrary {
    /// Through this library, or else through the first of the vendor's that is found. `None` for a vendor whose devices
    /// are found without one.
    pub fn new(vendor: Vendor, library: Option<PathBuf>, roots: &Roots) -> Option<ByLibrary> {
        let maker = maker(vendor)?;
        let shared = Arc::new(Shared::default());
        let helper = start(maker, roots, &library, &shared);
        Some(ByLibrary { maker, roots: roots.clone(), library, shared, helper, stuck: Vec::new() })
    }
}

fn start(
    maker: &'static Maker,
    roots: &Roots,
    library: &Option<PathBuf>,
    shared: &Arc<Shared>,
) -> Helper<Discovery> {
    let mut reader = Reader::new(maker, roots.clone(), library.clone(), shared.clone());
    Helper::new(maker.name, move || reader.look())
}

impl Backend for ByLibrary {
    fn vendor(&self) -> Vendor {
        self.maker.vendor
    }

    /// A card whose call hangs is left out by another thread: it hides no other card.
    fn discover(&mut self) -> Discovery {
        let shared = &self.shared;
        self.stuck.retain_mut(|(card, helper)| {
            let returned = helper.has_answered();
            if returned {
                shared.take_in(*card);
            }
            !returned
        });
        loop {
            if let Some(found) = self.helper.ask(self.roots.patience) {
                return found;
            }
            let (card, symbol) = self.shared.now();
            let after = format!("did not answer within {} s", self.roots.patience.as_secs_f64());
            let why = match symbol {
                "" => format!("{} {after}", self.maker.name),
                symbol => format!("{} {after}: {symbol} has not returned", self.maker.name),
            };
            let Some(card) = card.filter(|_| self.stuck.len() < MOST_HUNG) else {
                return without_library(self.maker.vendor, &self.roots, why);
            };
            self.shared.leave_out(card, why);
            let fresh = start(self.maker, &self.roots, &self.library, &self.shared);
            self.stuck.push((card, std::mem::replace(&mut self.helper, fresh)));
        }
    }

    fn measured_under(&self) -> Option<String> {
        self.shared.driver()
    }

    fn super_pods(&self) -> BTreeSet<String> {
        self.shared.super_pods()
    }

    fn was_reset(&mut self, device: &Found) {
        self.shared.forget_alarms(&device.uuid);
    }

    fn visibility(&self, devices: &[&Found]) -> Visibility {
        visible::show(self.maker.vendor, devices)
    }
}
