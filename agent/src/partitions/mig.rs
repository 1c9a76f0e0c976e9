//! MIG instances through NVML. Source: nvml.h of NVIDIA/go-nvml.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fmt;

use aquifer_core::{Slice, Vendor};
use bytemuck::{Pod, Zeroable};

use super::divider::{Divider, Part, remove, runtime_names, same};
use super::{Profile, smallest};
use crate::device::api::text;
use crate::device::library::Word::Is;
use crate::device::library::{Library, STARTING, Word, at};
use crate::device::{Roots, caps};

/// `nvmlGpuInstanceProfileInfo_t`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct ProfileInfo {
    id: u32,
    is_p2p_supported: u32,
    slice_count: u32,
    instance_count: u32,
    multiprocessor_count: u32,
    engines: [u32; 5],
    memory_size_mb: u64,
}
const _: () = assert!(size_of::<ProfileInfo>() == 48);

/// `nvmlGpuInstanceInfo_t`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct InstanceInfo {
    device: usize,
    id: u32,
    profile_id: u32,
    placement: [u32; 2],
}
const _: () = assert!(size_of::<InstanceInfo>() == 24);

/// `nvmlComputeInstanceProfileInfo_t`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct ComputeProfileInfo {
    id: u32,
    slice_count: u32,
    rest: [u32; 7],
}
const _: () = assert!(size_of::<ComputeProfileInfo>() == 36);

/// `NVML_GPU_INSTANCE_PROFILE_COUNT`, and of compute instances.
const PROFILES: usize = 0x12;
const COMPUTE_PROFILES: usize = 9;
/// Profiles that differ in engines for pictures: of no use here.
const WITH_GRAPHICS: [usize; 4] = [0x0a, 0x0b, 0x0c, 0x11];
/// Instances of a card, at most.
const MOST: usize = 8;

/// NVML, for making instances.
pub struct Mig {
    library: Library,
    roots: Roots,
}

impl fmt::Debug for Mig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mig")
    }
}

impl Mig {
    /// Loads NVML.
    ///
    /// # Errors
    /// It is not there, or does not start.
    pub fn open(roots: &Roots) -> Result<Mig, String> {
        let names = ["libnvidia-ml.so.1", "libnvidia-ml.so"];
        let patience = roots.patience * STARTING;
        let library = Library::load(&roots.helper, &[], &names, &roots.libraries, patience);
        let mig = Mig { library: library.map_err(|error| error.to_string())?, roots: roots.clone() };
        mig.call("nvmlInit_v2", &mut [])?;
        Ok(mig)
    }

    fn call(&self, symbol: &str, words: &mut [Word<'_>]) -> Result<(), String> {
        self.library.done(symbol, words)
    }

    /// A card, by its unique name.
    fn card(&self, uuid: &str) -> Result<usize, String> {
        let mut name = CString::new(uuid)
            .map_err(|_| "a zero byte in a device's name".to_string())?
            .into_bytes_with_nul();
        let mut card = 0usize;
        self.call("nvmlDeviceGetHandleByUUID", &mut [Word::At(&mut name), at(&mut card)])?;
        Ok(card)
    }

    /// Whether a card is in MIG mode.
    fn is_divided(&self, card: usize) -> bool {
        let (mut divided, mut pending) = (0u32, 0u32);
        let words = &mut [Is(card), at(&mut divided), at(&mut pending)];
        self.call("nvmlDeviceGetMigMode", words).is_ok() && divided == 1
    }

    /// What a card can be parted into.
    fn profiles(&self, card: usize) -> Vec<Profile> {
        let kinds = (0..PROFILES).filter(|kind| !WITH_GRAPHICS.contains(kind));
        let profile = |kind: usize| {
            let mut info = ProfileInfo::default();
            let symbol = "nvmlDeviceGetGpuInstanceProfileInfo";
            self.call(symbol, &mut [Is(card), Is(kind), at(&mut info)]).ok()?;
            let (slices, memory_bytes) = (info.slice_count, info.memory_size_mb << 20);
            Some(Profile { id: info.id, slices, memory_bytes })
        };
        kinds.filter_map(profile).collect()
    }

    fn has_room(&self, card: usize, profile: &Profile) -> bool {
        let mut count = 0u32;
        let words = &mut [Is(card), Is(profile.id as usize), at(&mut count)];
        self.call("nvmlDeviceGetGpuInstanceRemainingCapacity", words).is_ok() && 0 < count
    }

    fn info(&self, instance: usize) -> Result<InstanceInfo, String> {
        let mut info = InstanceInfo::default();
        self.call("nvmlGpuInstanceGetInfo", &mut [Is(instance), at(&mut info)])?;
        Ok(info)
    }

    fn compute_profiles(&self, instance: usize) -> impl Iterator<Item = ComputeProfileInfo> {
        (0..COMPUTE_PROFILES).filter_map(move |kind| {
            let mut info = ComputeProfileInfo::default();
            let words = &mut [Is(instance), Is(kind), Is(0), at(&mut info)];
            self.call("nvmlGpuInstanceGetComputeInstanceProfileInfo", words).ok()?;
            Some(info)
        })
    }

    /// Gives all of an instance's compute to programs.
    fn create_compute(&self, card: usize, number: u32, profile: &Profile) -> Result<(), String> {
        let instance = self.all(card).into_iter().find(|(_, own)| *own == number);
        let (instance, _) = instance.ok_or_else(|| format!("instance {number} is not there"))?;
        let whole = self.compute_profiles(instance).find(|info| info.slice_count == profile.slices);
        let whole = whole.ok_or("an instance has no compute profile of its own size")?;
        let mut compute = 0usize;
        let words = &mut [Is(instance), Is(whole.id as usize), at(&mut compute)];
        self.call("nvmlGpuInstanceCreateComputeInstance", words)
    }

    /// What is the device of an instance, and its number among the instance's own.
    fn device(&self, card: usize, instance: u32) -> Result<(usize, u32), String> {
        let mut most = 0u32;
        self.call("nvmlDeviceGetMaxMigDeviceCount", &mut [Is(card), at(&mut most)])?;
        for index in 0..most as usize {
            let (mut part, mut number) = (0usize, 0u32);
            let words = &mut [Is(card), Is(index), at(&mut part)];
            let is_there = self.call("nvmlDeviceGetMigDeviceHandleByIndex", words).is_ok()
                && self.call("nvmlDeviceGetGpuInstanceId", &mut [Is(part), at(&mut number)]).is_ok();
            if is_there && number == instance {
                let mut compute = 0u32;
                self.call("nvmlDeviceGetComputeInstanceId", &mut [Is(part), at(&mut compute)])?;
                return Ok((part, compute));
            }
        }
        Err(format!("instance {instance} is not among the card's devices"))
    }

    /// By what programs call it.
    fn uuid(&self, device: usize) -> Result<String, String> {
        let mut uuid = [0u8; 96];
        self.call("nvmlDeviceGetUUID", &mut [Is(device), Word::At(&mut uuid), Is(96)])?;
        Ok(text(&uuid))
    }

    /// Cards in MIG mode, with their unique names.
    fn divided(&self) -> Result<Vec<(String, usize)>, String> {
        let mut cards = 0u32;
        self.call("nvmlDeviceGetCount_v2", &mut [at(&mut cards)])?;
        let card = |index: usize| {
            let mut card = 0usize;
            self.call("nvmlDeviceGetHandleByIndex_v2", &mut [Is(index), at(&mut card)]).ok()?;
            let uuid = self.uuid(card).ok()?;
            self.is_divided(card).then_some((uuid, card))
        };
        Ok((0..cards as usize).filter_map(card).collect())
    }

    /// All instances of a card, with their numbers.
    fn all(&self, card: usize) -> Vec<(usize, u32)> {
        let of_profile = |profile: Profile| {
            let (mut found, mut count) = ([0usize; MOST], 0u32);
            let words = &mut [Is(card), Is(profile.id as usize), at(&mut found), at(&mut count)];
            let listed = self.call("nvmlDeviceGetGpuInstances", words).map_or(0, |()| count as usize);
            found.into_iter().take(listed)
        };
        let all = self.profiles(card).into_iter().flat_map(of_profile);
        all.filter_map(|instance| Some((instance, self.info(instance).ok()?.id))).collect()
    }

    fn destroy(&self, instance: usize) -> Result<(), String> {
        for profile in self.compute_profiles(instance) {
            let (mut found, mut count) = ([0usize; MOST], 0u32);
            let words = &mut [Is(instance), Is(profile.id as usize), at(&mut found), at(&mut count)];
            let listed =
                self.call("nvmlGpuInstanceGetComputeInstances", words).map_or(0, |()| count as usize);
            found
                .iter()
                .take(listed)
                .for_each(|it| _ = self.call("nvmlComputeInstanceDestroy", &mut [Is(*it)]));
        }
        self.call("nvmlGpuInstanceDestroy", &mut [Is(instance)])
    }
}

impl Divider for Mig {
    fn library(&self) -> Option<&Library> {
        Some(&self.library)
    }

    fn vendor(&self) -> Vendor {
        Vendor::Nvidia
    }

    /// A card in MIG mode computes nothing itself.
    fn parts_whole(&self) -> bool {
        true
    }

    fn check(&self, _: usize, _: bool) -> Result<(), String> {
        Ok(())
    }

    fn choose(&self, card: &str, slice: Option<Slice>, _: &BTreeSet<u32>) -> Result<Profile, String> {
        let handle = self.card(card)?;
        let profiles = self.profiles(handle);
        let whole = profiles.iter().map(|profile| profile.slices).max().unwrap_or(0);
        let found = smallest(&profiles, whole, slice, |profile| self.has_room(handle, profile));
        found.ok_or_else(|| format!("no MIG profile of {card} that has room is large enough"))
    }

    fn create(&self, card: &str, profile: &Profile, _: &BTreeSet<u32>) -> Result<u32, String> {
        let mut instance = 0usize;
        let words = &mut [Is(self.card(card)?), Is(profile.id as usize), at(&mut instance)];
        self.call("nvmlDeviceCreateGpuInstance", words)?;
        Ok(self.info(instance)?.id)
    }

    fn finish(&self, card: &str, profile: &Profile, number: u32) -> Result<Part, String> {
        let card = self.card(card)?;
        self.create_compute(card, number, profile)?;
        let (device, compute) = self.device(card, number)?;
        let (name, mut minor) = (self.uuid(device)?, 0u32);
        let minor = self.call("nvmlDeviceGetMinorNumber", &mut [Is(card), at(&mut minor)]).map(|()| minor);
        let nodes = minor.map_or(Vec::new(), |minor| caps::of_instance(&self.roots, minor, number, compute));
        Ok(Part {
            runtime: name.clone(),
            name,
            unhidden: nodes.is_empty().then(|| self.roots.caps.dir.clone()),
            nodes: nodes.into_iter().map(same).collect(),
            instead_of: Vec::new(),
        })
    }

    fn env(&self, parts: &[Part]) -> Vec<(String, String)> {
        let own = runtime_names(parts, ",");
        ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"].map(|name| (name.into(), own.clone())).into()
    }

    fn remove_others(&self, kept: &BTreeSet<(&str, u32)>) -> Vec<String> {
        let cards = match self.divided() {
            Ok(cards) => cards,
            Err(why) => return vec![why],
        };
        let mut failures = Vec::new();
        for (uuid, card) in cards {
            for (instance, number) in self.all(card) {
                if !kept.contains(&(&uuid, number)) {
                    failures.extend(remove(&uuid, number, || self.destroy(instance)));
                }
            }
        }
        failures
    }
}
