//! Shares of Cambricon's cards in sMLU mode, through CNDEV. Source: `cndev.h` of Cambricon/mlu-exporter.
//!
//! A share has a profile, which states how much compute, in percent, and memory it has at most, and can be any; the driver
//! holds programs to that.

use std::collections::BTreeSet;
use std::fmt;

use aquifer_core::{Slice, Vendor};
use bytemuck::{Pod, Zeroable};

use super::Profile;
use super::divider::{Divider, Part, only_contained, remove, runtime_names, same};
use crate::device::api::{Context, Opened, Value, text};
use crate::device::library::Word::Is;
use crate::device::library::{Library, Word, at};
use crate::device::vendor::cambricon::{SMLU_MODE, VERSION};
use crate::device::vendor::maker;
use crate::device::{Roots, open};

/// `cndevSMluSet_t`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Set {
    version: u32,
    percent: u32,
    memory_bytes: u64,
}
const _: () = assert!(size_of::<Set>() == 16);

/// `cndevSMluProfileIdInfo_t`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ProfileIds {
    version: u32,
    count: i32,
    ids: [u32; MOST],
}
const _: () = assert!(size_of::<ProfileIds>() == 520);

/// `cndevSMluProfileInfo_t`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ProfileInfo {
    version: u32,
    id: u32,
    name: [u8; 100],
    total: u32,
    remain: u32,
    percent: [u32; 2],
    gap: u32,
    memory_bytes: [u64; 2],
}
const _: () = assert!(size_of::<ProfileInfo>() == 144);

/// `cndevSMluInfo_t`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Info {
    version: u32,
    profile: u32,
    number: u32,
    uuid: [u8; 37],
    gap: [u8; 3],
    place: [u32; 4],
    profile_name: [u8; 100],
    name: [u8; 100],
    node: [u8; 100],
    percent: [u32; 2],
    memory_bytes: [u64; 2],
    spare: [u32; 128],
}
const _: () = assert!(size_of::<Info>() == 904);

const NO_INFO: Info = Info {
    version: VERSION,
    profile: 0,
    number: 0,
    uuid: [0; 37],
    gap: [0; 3],
    place: [0; 4],
    profile_name: [0; 100],
    name: [0; 100],
    node: [0; 100],
    percent: [0; 2],
    memory_bytes: [0; 2],
    spare: [0; 128],
};

const MIB: u64 = 1 << 20;
/// Profiles, and shares, of a card at most.
const MOST: usize = 128;

/// CNDEV, for making shares.
pub struct Smlu {
    opened: Opened,
}

impl fmt::Debug for Smlu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Smlu")
    }
}

impl Smlu {
    /// Loads CNDEV.
    ///
    /// # Errors
    /// It is not there, or does not start.
    pub fn open(roots: &Roots) -> Result<Smlu, String> {
        let maker = maker(Vendor::Cambricon).expect("found through a library");
        let opened = open::open(maker, None, roots).map_err(|error| error.to_string())?;
        Ok(Smlu { opened })
    }

    /// Cards in sMLU mode.
    fn cards(&self) -> impl Iterator<Item = (String, Context)> {
        let all = open::named(&self.opened).into_iter();
        all.filter(|(_, card)| self.opened.ask(&SMLU_MODE, card) == Ok(Value::Number(1)))
    }

    fn card(&self, name: &str) -> Result<Context, String> {
        let found = self.cards().find(|(own, _)| own == name);
        found.map(|(_, card)| card).ok_or_else(|| format!("{name} is not there, or not in sMLU mode"))
    }

    fn profiles(&self, card: &Context) -> Vec<ProfileInfo> {
        let mut found = ProfileIds { version: VERSION, count: 0, ids: [0; MOST] };
        let words = &mut [at(&mut found), Is(card.card[0])];
        let listed = self.opened.library.done("cndevGetSMluProfileIdInfo", words);
        let count = listed.map_or(0, |()| found.count.max(0) as usize);
        let info = |id: u32| {
            let mut info = ProfileInfo {
                version: VERSION,
                id,
                name: [0; 100],
                total: 0,
                remain: 0,
                percent: [0; 2],
                gap: 0,
                memory_bytes: [0; 2],
            };
            let words = &mut [at(&mut info), Is(id as usize), Is(card.card[0])];
            self.opened.library.done("cndevGetSMluProfileInfo", words).ok()?;
            Some(ProfileInfo { id, ..info })
        };
        found.ids.into_iter().take(count).filter_map(info).collect()
    }

    /// The driver's profile of this size, made if there is none.
    fn profile(&self, card: &Context, wanted: &Profile) -> Result<u32, String> {
        let is_same =
            |own: &ProfileInfo| (own.percent[0], own.memory_bytes[0]) == (wanted.slices, wanted.memory_bytes);
        if let Some(own) = self.profiles(card).into_iter().find(is_same) {
            return Ok(own.id);
        }
        let mut set = Set { version: VERSION, percent: wanted.slices, memory_bytes: wanted.memory_bytes };
        let mut id = 0u32;
        let words = &mut [at(&mut set), at(&mut id), Is(card.card[0])];
        self.opened.library.done("cndevCreateSMluProfileInfo", words)?;
        Ok(id)
    }

    fn all(&self, card: &Context) -> Vec<Info> {
        let (mut found, mut count) = (vec![NO_INFO; MOST], MOST as i32);
        let infos = Word::At(bytemuck::cast_slice_mut(&mut found));
        let words = &mut [at(&mut count), infos, Is(card.card[0])];
        let listed = self.opened.library.done("cndevGetAllSMluInstanceInfo", words);
        found.truncate(listed.map_or(0, |()| count.max(0) as usize));
        found
    }
}

impl Divider for Smlu {
    fn library(&self) -> Option<&Library> {
        Some(&self.opened.library)
    }

    fn vendor(&self) -> Vendor {
        Vendor::Cambricon
    }

    /// Nobody else is on a whole card.
    fn parts_whole(&self) -> bool {
        false
    }

    fn check(&self, _: usize, contained: bool) -> Result<(), String> {
        only_contained(contained, "sMLU instances")
    }

    /// As asked, to a hundredth of the compute and a MiB below: what the scheduler has room for, the card has, too.
    fn choose(&self, card: &str, slice: Option<Slice>, _: &BTreeSet<u32>) -> Result<Profile, String> {
        let context = self.card(card)?;
        let total = self.opened.first(self.opened.api.memory, &context).map_or(0, Value::number);
        let used: Vec<Info> = self.all(&context);
        let left = 100u32.saturating_sub(used.iter().map(|it| it.percent[0]).sum());
        let memory_left = total.saturating_sub(used.iter().map(|it| it.memory_bytes[0]).sum());
        let (percent, memory_bytes) = slice.map_or((100, total), |slice| {
            ((slice.compute_milli / 10).max(1), (slice.memory_bytes & !(MIB - 1)).max(MIB))
        });
        match percent <= left && memory_bytes <= memory_left {
            true => Ok(Profile { id: 0, slices: percent, memory_bytes }),
            false => Err(format!(
                "{card} has no room for {percent} % and {} MiB: {left} % and {} MiB are left",
                memory_bytes / MIB,
                memory_left / MIB
            )),
        }
    }

    fn create(&self, card: &str, profile: &Profile, _: &BTreeSet<u32>) -> Result<u32, String> {
        let card = self.card(card)?;
        let (id, mut handle) = (self.profile(&card, profile)?, 0i32);
        // The driver gives it a name.
        let mut nameless = 0u8;
        let words = &mut [at(&mut handle), Is(id as usize), Is(card.card[0]), at(&mut nameless)];
        self.opened.library.done("cndevCreateSMluInstanceByProfileId", words)?;
        let mut info = NO_INFO;
        let words = &mut [at(&mut info), Is(handle as usize)];
        self.opened.library.done("cndevGetSMluInstanceInfo", words)?;
        Ok(info.number)
    }

    fn finish(&self, card: &str, _: &Profile, number: u32) -> Result<Part, String> {
        let card = self.card(card)?;
        let info = self.all(&card).into_iter().find(|info| info.number == number);
        let info = info.ok_or_else(|| format!("instance {number} is not among the card's"))?;
        let (own, card) = (text(&info.node), card.index);
        Ok(Part {
            name: format!("MLU-{}", text(&info.uuid)),
            runtime: format!("/dev/cambricon_dev{card},/dev/cambricon_ipcm{card},{own}"),
            // A permission: programs reach the part through the card's nodes.
            nodes: vec![same(own)],
            ..Part::default()
        })
    }

    fn env(&self, parts: &[Part]) -> Vec<(String, String)> {
        let own = runtime_names(parts, ";");
        vec![("CAMBRICON_VISIBLE_DEVICES".into(), String::new()), ("VIRTUAL_DEVICES".into(), own)]
    }

    fn remove_others(&self, kept: &BTreeSet<(&str, u32)>) -> Vec<String> {
        let mut failures = Vec::new();
        for (name, card) in self.cards() {
            for mut info in self.all(&card).into_iter().filter(|info| !kept.contains(&(&name, info.number))) {
                let symbol = "cndevDestroySMluInstanceByInstanceName";
                let mut destroy = || {
                    let words = &mut [Is(card.card[0]), Word::At(&mut info.name)];
                    self.opened.library.done(symbol, words)
                };
                failures.extend(remove(&name, info.number, &mut destroy));
            }
            let used: BTreeSet<u32> = self.all(&card).iter().map(|info| info.profile).collect();
            for profile in self.profiles(&card).iter().filter(|profile| !used.contains(&profile.id)) {
                let words = &mut [Is(profile.id as usize), Is(card.card[0])];
                // The driver may have profiles of its own: that one stays harms nobody.
                let removed = self.opened.library.done("cndevDestroySMluProfileInfo", words);
                tracing::debug!(card = name, profile = profile.id, ?removed, "sMLU profile");
            }
        }
        failures
    }
}
