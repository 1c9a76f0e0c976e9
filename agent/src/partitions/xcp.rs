//! Parts of AMD's cards (XCP, "compute partitions"), through sysfs. Source: `amdgpu_gfx.c` and `kfd_topology.c` of Linux.
//!
//! All parts of a card are equal, and a card is parted as a whole: while a part of it is used, its way of being parted stays.
//! Which numbers the runtime gives to cards changes with each change, so that only containers can be told theirs.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{MutexGuard, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use aquifer_core::{Slice, Vendor};

use super::divider::{Divider, Part, only_contained, persist, same};
use super::{Profile, smallest};
use crate::device::Roots;
use crate::device::kfd::{self, Card};
use crate::device::roots::read;

/// The compute of a card, as a number that all numbers of parts up to 8 divide.
const WHOLE: u32 = 840;

/// Of a card that is one.
const WHOLE_MODE: &str = "SPX";

/// The kernel, for parting cards.
#[derive(Debug)]
pub struct Xcp {
    roots: Roots,
}

impl Xcp {
    /// # Errors
    /// The driver's compute part does not run.
    pub fn open(roots: &Roots) -> Result<Xcp, String> {
        match kfd::is_there(roots) {
            true => Ok(Xcp { roots: roots.clone() }),
            false => Err("the driver amdgpu does not run, or has no compute part".into()),
        }
    }

    fn card(&self, name: &str) -> Result<Card, String> {
        let found = kfd::cards(&self.roots).into_iter().find(|card| card.uuid == name);
        found.ok_or_else(|| format!("{name} is not there"))
    }

    /// Whether a card is parted into so many, and all are listed.
    fn is_parted(&self, card: &Card, parts: u32) -> bool {
        self.now(card) == Some(parts) && card.parts.len() == parts as usize
    }

    /// How many parts a card has now, by its way of being parted.
    fn now(&self, card: &Card) -> Option<u32> {
        let mode = read(self.roots.pci(&card.place).join("current_compute_partition"))?;
        card.ways(&self.roots).into_iter().find(|(own, _)| *own == mode).map(|(_, parts)| parts)
    }

    /// Keeps others from looking for cards. One who looks for long hangs, and nobody waits for that.
    fn wait_for_looks(&self) -> Option<MutexGuard<'_, ()>> {
        let until = Instant::now() + self.roots.patience;
        loop {
            match self.roots.parting.try_lock() {
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    thread::sleep(Duration::from_millis(5))
                }
                Err(TryLockError::WouldBlock) => return None,
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Ok(guard) => return Some(guard),
            }
        }
    }

    /// Parts a card into so many, and waits until the kernel lists them.
    ///
    /// * `dies`: of the whole card: nodes go and come one by one, and one that is left of several is not the card.
    fn part(&self, name: &str, place: &str, (mode, parts): (&str, u32), dies: u32) -> Result<(), String> {
        let file = self.roots.pci(place).join("current_compute_partition");
        let refused = |error| format!("{name} cannot be parted as {mode}: {error}; programs may use it");
        let _parting = self.wait_for_looks();
        fs::write(&file, mode).map_err(refused)?;
        // Whoever looks for cards meanwhile has as much patience, and waits.
        let until = Instant::now() + self.roots.patience / 2;
        let is_listed = |card: Card| card.parts.len() == parts as usize && dies <= card.dies;
        while !self.card(name).is_ok_and(is_listed) {
            if until < Instant::now() {
                return Err(format!(
                    "the kernel does not list {parts} parts of {name}, which is parted as {mode}"
                ));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Divider for Xcp {
    fn vendor(&self) -> Vendor {
        Vendor::Amd
    }

    /// The number of a whole card changes with what others are parted into.
    fn parts_whole(&self) -> bool {
        true
    }

    fn check(&self, _: usize, contained: bool) -> Result<(), String> {
        only_contained(contained, "cards that are parted on demand")
    }

    fn choose(&self, name: &str, slice: Option<Slice>, taken: &BTreeSet<u32>) -> Result<Profile, String> {
        let card = self.card(name)?;
        let now = self.now(&card);
        let profile = |(_, parts): &(String, u32)| Profile {
            id: *parts,
            slices: WHOLE / parts,
            memory_bytes: card.memory_bytes / u64::from(*parts),
        };
        let profiles: Vec<Profile> = card.ways(&self.roots).iter().map(profile).collect();
        let is_free = |it: &Profile| taken.is_empty() || (Some(it.id) == now && taken.len() < it.id as usize);
        smallest(&profiles, WHOLE, slice, is_free).ok_or_else(|| match now {
            Some(parts) if !taken.is_empty() => {
                format!(
                    "{name} is in use in {parts} parts, {} of them: none that is free is large enough",
                    taken.len()
                )
            }
            _ => format!("no part of {name} is large enough"),
        })
    }

    fn create(&self, name: &str, profile: &Profile, taken: &BTreeSet<u32>) -> Result<u32, String> {
        let card = self.card(name)?;
        let way = card.ways(&self.roots).into_iter().find(|(_, parts)| *parts == profile.id);
        if let Some((mode, parts)) = way.filter(|_| !self.is_parted(&card, profile.id)) {
            self.part(name, &card.place, (&mode, parts), card.dies)?;
        }
        let free = (0..profile.id).find(|number| !taken.contains(number));
        free.ok_or_else(|| format!("all parts of {name} are in use"))
    }

    fn finish(&self, name: &str, _: &Profile, number: u32) -> Result<Part, String> {
        let parts = self.card(name)?.parts;
        let minor = parts.get(number as usize).ok_or_else(|| format!("{name} has no part {number}"))?;
        let node = |minor: &u32| format!("/dev/dri/renderD{minor}");
        Ok(Part {
            name: format!("{name}/{number}"),
            nodes: vec![same(node(minor))],
            instead_of: vec![node(&parts[0]).into()],
            ..Part::default()
        })
    }

    /// The vendor's container runtime would count the whole node's cards.
    fn env(&self, _: &[Part]) -> Vec<(String, String)> {
        vec![("AMD_VISIBLE_DEVICES".into(), "none".into())]
    }

    fn remove_others(&self, kept: &BTreeSet<(&str, u32)>) -> Vec<String> {
        let (listed, mut failures) = (kfd::cards(&self.roots), Vec::new());
        // By the bus: whoever is killed over a change leaves a card that is not listed for a moment.
        for place in self.roots.plugged(Vendor::Amd) {
            let mode = read(self.roots.pci(&place).join("current_compute_partition"));
            let Some(mode) = mode.filter(|_| kfd::can_be_parted(&self.roots, &place)) else { continue };
            let card = listed.iter().find(|card| card.place == place);
            let name = card.map_or_else(|| kfd::name_at(&self.roots, &place), |card| card.uuid.clone());
            let dies = card.map_or(0, |card| card.dies);
            let is_whole = mode == WHOLE_MODE && card.is_some_and(|card| card.parts.len() == 1);
            if !is_whole && kept.iter().all(|(kept, _)| *kept != name) {
                failures.extend(persist(|| self.part(&name, &place, (WHOLE_MODE, 1), dies)).err());
            }
        }
        failures
    }
}
