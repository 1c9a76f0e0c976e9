//! Which devices can be measured, and what is known of those that were.

use aquifer_core::{DeviceClass, Vendor};

use super::Backends;
use crate::device::Found;
use crate::device::measured::{By, Figures, Measurements, On, ToMeasure, Under};
use crate::device::pci;

/// What of a node is probed beside others.
#[derive(Clone, Debug, PartialEq)]
pub struct Beside {
    /// Cards that the worker has kernels for; 0: a core is.
    pub cards: usize,
    /// Variables of a process that sees them, and no others.
    pub env: Vec<(String, String)>,
    /// What one of them does, in TFLOP/s, if it was measured.
    pub usual: Option<f64>,
}

impl Backends {
    /// Uses what was measured before.
    pub fn use_measured(&mut self, measured: Measurements) {
        self.measured = measured;
    }

    /// What the devices of this index do, as it was measured.
    pub fn figures(&self, index: u16) -> Option<&Figures> {
        let (backend, found) = self.devices.get(usize::from(index))?;
        self.measured_of((*backend, found))
    }

    /// The classes that can be measured, by one well device each that no program computes on.
    ///
    /// * `known`: those too that were measured. `usable`: whether the device of an index may be used for it.
    pub fn to_measure(&self, known: bool, usable: impl Fn(u16) -> bool) -> Vec<ToMeasure> {
        let is_free = |index: u16| !self.devices[usize::from(index)].1.is_used && usable(index);
        let mut found = self.one_of_each_class(is_free);
        found.retain(|of| known || self.figures(of.index).is_none());
        found
    }

    /// The classes that could be measured, if no program computed on all of their devices.
    ///
    /// * `usable`: as of [`Backends::to_measure`].
    pub fn in_use(&self, usable: impl Fn(u16) -> bool) -> Vec<DeviceClass> {
        let free = self.to_measure(true, usable);
        let all = self.one_of_each_class(|_| true).into_iter().map(|of| of.class);
        all.filter(|class| free.iter().all(|of| of.class != *class)).collect()
    }

    fn one_of_each_class(&self, may: impl Fn(u16) -> bool) -> Vec<ToMeasure> {
        let mut found: Vec<ToMeasure> = Vec::new();
        for index in 0..self.devices.len() as u16 {
            let is_well = self.devices[usize::from(index)].1.fault.is_none();
            let Some(of) = self.measurable(index).filter(|_| is_well && may(index)) else { continue };
            if found.iter().all(|it| it.class != of.class) {
                found.push(of);
            }
        }
        found
    }

    /// The device of this index, if the worker has kernels for it, or the site a program. A card that is offered whole to be parted
    /// on demand computes nothing before it is.
    fn measurable(&self, index: u16) -> Option<ToMeasure> {
        let (backend, found) = self.devices.get(usize::from(index))?;
        let under = self.measured_under(*backend, found)?;
        if self.is_parted(found) {
            return None;
        }
        let env = || self.backends[backend.expect("it is measured under one")].visibility(&[found]).env;
        let on = match (under.by, found.class.vendor) {
            (By::Worker, Vendor::Cpu) => On::Core(found.logical),
            (By::Worker, _) => On::Card(env()),
            (By::Site, _) => On::Site(self.measured.site()?.about(found, env())),
        };
        Some(ToMeasure { class: (*found.class).clone(), under, index, on })
    }

    /// Under what a device is measured, if it can be. Equal parts of a card have the card's class, but not its figures.
    fn measured_under(&self, backend: Option<usize>, found: &Found) -> Option<Under> {
        let backend = &self.backends[backend?];
        let by_site = || {
            let is_card = found.class.vendor != Vendor::Cpu && !backend.is_trusted() && found.one_of == 1;
            let driver = || pci::driver(&self.roots.pci(&found.place));
            // The driver is read from files each time: one may be loaded anew.
            (is_card && self.measured.may_be_of_site()).then(|| Under { driver: driver(), by: By::Site })
        };
        let by_worker = backend.measured_under().map(|driver| Under { driver, by: By::Worker });
        by_worker.or_else(by_site)
    }

    /// Enters what was measured.
    ///
    /// # Errors
    /// It cannot be kept; it counts all the same.
    pub fn enter_measured(&mut self, of: &ToMeasure, figures: Figures) -> std::io::Result<()> {
        self.measured.enter(&of.class, &of.under, figures)
    }

    /// What the class of a device was measured to do, if it was.
    pub(super) fn measured_of(&self, (backend, found): (Option<usize>, &Found)) -> Option<&Figures> {
        self.measured.of(&found.class, &self.measured_under(backend, found)?)
    }

    /// The device of this index, if it can be measured, and was; well or not.
    pub fn to_probe(&self, index: u16) -> Option<(ToMeasure, f64)> {
        Some((self.measurable(index)?, self.figures(index)?.tflops()?))
    }

    /// What of this node is probed beside others.
    pub fn to_probe_beside(&self) -> Beside {
        let found = |index: u16| &self.devices[usize::from(index)].1;
        let all = (0..self.devices.len() as u16).filter(|index| found(*index).fault.is_none());
        let all = all.filter_map(|index| self.measurable(index)).filter(|of| of.under.by == By::Worker);
        let all: Vec<ToMeasure> = all.collect();
        let is_card = |of: &&ToMeasure| matches!(of.on, On::Card(_));
        let cards: Vec<u16> = all.iter().filter(is_card).map(|of| of.index).collect();
        let compared = if cards.is_empty() { all.iter().map(|of| of.index).collect() } else { cards.clone() };
        // What the slowest of several classes does, all of them do; but for those that somebody else uses as well.
        let is_used = compared.iter().any(|index| found(*index).is_used);
        let usual = compared.iter().filter_map(|index| self.figures(*index)?.tflops()).min_by(f64::total_cmp);
        let usual = usual.filter(|_| !is_used);
        Beside { cards: cards.len(), env: self.visibility(&cards, None).env, usual }
    }
}
