//! Virtual chips of Ascend, through DCMI. Source: `dcmi_interface_api.h` of Ascend/mind-cluster.

use std::collections::BTreeSet;
use std::fmt;

use aquifer_core::{Slice, Vendor};
use bytemuck::{Pod, Zeroable};

use super::divider::{Divider, Part, only_contained, remove, runtime_names};
use super::{Profile, smallest};
use crate::device::api::{CallError, Context, Opened, Value};
use crate::device::library::Word::Is;
use crate::device::library::{Library, at};
use crate::device::vendor::ascend::{AI_CORES, FREE_CORES, Template, VIRTUAL_DEVICES, templates};
use crate::device::vendor::maker;
use crate::device::{Roots, open};

/// `dcmi_create_vdev_res_stru`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Wanted {
    number: u32,
    group: u32,
    template: [u8; 32],
    spare: [u8; 64],
}
const _: () = assert!(size_of::<Wanted>() == 104);

/// `dcmi_create_vdev_out`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Created {
    number: u32,
    bus: u32,
    device: u32,
    function: u32,
    group: u32,
    spare: [u8; 32],
}
const _: () = assert!(size_of::<Created>() == 52);

/// The driver chooses: a number, a group.
const ANY: u32 = u32::MAX;
/// `DCMI_SOC_SPLIT_MAX`.
const MOST: usize = 32;

/// DCMI, for making virtual chips.
pub struct Vnpu {
    opened: Opened,
}

impl fmt::Debug for Vnpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vnpu")
    }
}

impl Vnpu {
    /// Loads DCMI.
    ///
    /// # Errors
    /// It is not there, or does not start.
    pub fn open(roots: &Roots) -> Result<Vnpu, String> {
        let maker = maker(Vendor::Ascend).expect("found through a library");
        let opened = open::open(maker, None, roots).map_err(|error| error.to_string())?;
        Ok(Vnpu { opened })
    }

    fn chip(&self, name: &str) -> Result<Context, String> {
        let found = open::named(&self.opened).into_iter().find(|(own, _)| own == name);
        found.map(|(_, chip)| chip).ok_or_else(|| format!("{name} is not there"))
    }

    fn cores(&self, chip: &Context) -> u32 {
        self.opened.first(&AI_CORES, chip).map_or(0, |cores| cores.number() as u32)
    }

    /// What a chip can be divided into, by numbers of the list of templates: those that have as much of its memory as of its
    /// cores. A chip with more memory has others of the same size.
    fn profiles(&self, chip: &Context) -> Vec<Profile> {
        let (cores, memory) = (self.cores(chip), self.opened.first(self.opened.api.memory, chip));
        let memory_bytes = memory.map_or(0, Value::number);
        let profile = |(id, template): (usize, &Template)| {
            let share = memory_bytes / u64::from(cores) * u64::from(template.cores);
            let memory_bytes = if template.memory_gib == 0 { share } else { template.memory_gib << 30 };
            let fits = share.abs_diff(memory_bytes) <= share / 8;
            fits.then_some(Profile { id: id as u32, slices: template.cores, memory_bytes })
        };
        templates(u64::from(cores)).iter().enumerate().filter_map(profile).collect()
    }

    /// AI cores of a chip that no virtual one has.
    fn free_cores(&self, chip: &Context) -> f32 {
        self.opened.ask(&FREE_CORES, chip).map_or(0.0, |bits| f32::from_bits(bits.number() as u32))
    }

    /// Numbers of a chip's virtual chips.
    fn all(&self, chip: &Context) -> Vec<u32> {
        let Ok((count, bytes)) = self.opened.ask_raw(&VIRTUAL_DEVICES, chip) else { return Vec::new() };
        let number = |at: usize| {
            let word = bytes.get(12 + 4 * at..16 + 4 * at)?;
            Some(u32::from_le_bytes(word.try_into().ok()?))
        };
        (0..MOST.min(count.number() as usize)).filter_map(number).collect()
    }

    /// The number of a chip's device node.
    fn physical(&self, chip: &Context) -> Result<u64, String> {
        let api = self.opened.api;
        let ask = || -> Result<u64, CallError> {
            let logical = self.opened.first(api.logical, chip)?.number() as usize;
            let of_logical = Context { index: logical, ..*chip };
            Ok(self.opened.first(api.physical, &of_logical)?.number())
        };
        ask().map_err(|error| error.to_string())
    }
}

impl Divider for Vnpu {
    fn library(&self) -> Option<&Library> {
        Some(&self.opened.library)
    }

    fn vendor(&self) -> Vendor {
        Vendor::Ascend
    }

    /// A chip without virtual ones is used as it is.
    fn parts_whole(&self) -> bool {
        false
    }

    fn check(&self, cards: usize, contained: bool) -> Result<(), String> {
        only_contained(contained, "virtual chips")?;
        match cards {
            1 => Ok(()),
            _ => Err(format!("a rank has a virtual chip of one chip, not of {cards}")),
        }
    }

    fn choose(&self, card: &str, slice: Option<Slice>, _: &BTreeSet<u32>) -> Result<Profile, String> {
        let chip = self.chip(card)?;
        let free = self.free_cores(&chip);
        let has_room = |profile: &Profile| profile.slices as f32 <= free;
        let found = smallest(&self.profiles(&chip), self.cores(&chip), slice, has_room);
        found.ok_or_else(|| format!("no vNPU template of {card} that has room is large enough"))
    }

    fn create(&self, card: &str, profile: &Profile, _: &BTreeSet<u32>) -> Result<u32, String> {
        let chip = self.chip(card)?;
        let name = templates(u64::from(self.cores(&chip))).get(profile.id as usize).map(|it| it.name);
        let name = name.ok_or("there is no such template")?.as_bytes();
        let mut wanted = Wanted { number: ANY, group: ANY, template: [0; 32], spare: [0; 64] };
        wanted.template[..name.len()].copy_from_slice(name);
        let mut created = Created::default();
        let words = &mut [Is(chip.card[0]), Is(chip.card[1]), at(&mut wanted), at(&mut created)];
        self.opened.library.done("dcmi_create_vdevice", words)?;
        Ok(created.number)
    }

    fn finish(&self, card: &str, _: &Profile, number: u32) -> Result<Part, String> {
        let physical = self.physical(&self.chip(card)?)?;
        Ok(Part {
            name: number.to_string(),
            runtime: number.to_string(),
            // Within, a virtual chip is a chip like any other.
            nodes: vec![(format!("/dev/vdavinci{number}").into(), format!("/dev/davinci{number}").into())],
            instead_of: vec![format!("/dev/davinci{physical}").into()],
            unhidden: None,
        })
    }

    fn env(&self, parts: &[Part]) -> Vec<(String, String)> {
        vec![
            ("ASCEND_VISIBLE_DEVICES".into(), runtime_names(parts, ",")),
            ("ASCEND_RUNTIME_OPTIONS".into(), "VIRTUAL".into()),
        ]
    }

    fn remove_others(&self, kept: &BTreeSet<(&str, u32)>) -> Vec<String> {
        let mut failures = Vec::new();
        for (name, chip) in open::named(&self.opened) {
            for number in self.all(&chip).into_iter().filter(|number| !kept.contains(&(&name, *number))) {
                let words = || [Is(chip.card[0]), Is(chip.card[1]), Is(number as usize)];
                let symbol = "dcmi_set_destroy_vdevice";
                failures.extend(remove(&name, number, || self.opened.library.done(symbol, &mut words())));
            }
        }
        failures
    }
}
