//! MIG instances through NVML. Source: nvml.h of NVIDIA/go-nvml.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fmt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use aquifer_core::Slice;

use crate::device::library::Library;

/// `nvmlGpuInstanceProfileInfo_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
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
#[derive(Clone, Copy, Default)]
struct InstanceInfo {
    device: usize,
    id: u32,
    profile_id: u32,
    placement: [u32; 2],
}
const _: () = assert!(size_of::<InstanceInfo>() == 24);

/// `nvmlComputeInstanceProfileInfo_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
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
/// Tries to destroy an instance whose last program is just ending.
const TRIES: usize = 10;

/// A kind of instance that a card can be parted into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// By which it is asked for.
    pub id: u32,
    /// Of the card's compute.
    pub slices: u32,
    /// In bytes.
    pub memory_bytes: u64,
}

/// NVML, for making instances.
pub struct Mig {
    library: Library,
}

impl fmt::Debug for Mig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mig")
    }
}

/// The smallest profile that has room and is at least as large as a slice; the largest for a whole card. Of equal ones
/// the first.
pub fn smallest(
    profiles: &[Profile],
    slice: Option<Slice>,
    has_room: impl Fn(&Profile) -> bool,
) -> Option<Profile> {
    let whole = profiles.iter().map(|profile| profile.slices).max()?;
    let enough = |profile: &&Profile| match slice {
        None => profile.slices == whole,
        Some(slice) => {
            slice.compute_milli * whole <= profile.slices * 1000 && slice.memory_bytes <= profile.memory_bytes
        }
    };
    let fit = profiles.iter().filter(enough).filter(|profile| has_room(profile));
    fit.min_by_key(|profile| (profile.slices, profile.memory_bytes)).copied()
}

impl Mig {
    /// Loads NVML, looking in `dirs` before the system's places.
    ///
    /// # Errors
    /// It is not there, or does not start.
    pub fn open(dirs: &[PathBuf]) -> Result<Mig, String> {
        let mig = Mig { library: Library::load(&["libnvidia-ml.so.1", "libnvidia-ml.so"], dirs)? };
        mig.call("nvmlInit_v2", &[])?;
        Ok(mig)
    }

    fn call(&self, symbol: &str, words: &[usize]) -> Result<(), String> {
        match self.library.call(symbol, words).map(|status| status as u32) {
            Some(0) => Ok(()),
            Some(status) => Err(format!("{symbol} returned {status}")),
            None => Err(format!("the driver has no {symbol}")),
        }
    }

    /// A card, by its unique name.
    pub(super) fn card(&self, uuid: &str) -> Result<usize, String> {
        let name = CString::new(uuid).map_err(|_| "a zero byte in a device's name".to_string())?;
        let mut card = 0usize;
        self.call("nvmlDeviceGetHandleByUUID", &[name.as_ptr() as usize, &raw mut card as usize])?;
        Ok(card)
    }

    /// Whether a card is in MIG mode.
    pub(super) fn is_divided(&self, uuid: &str) -> bool {
        let Ok(card) = self.card(uuid) else { return false };
        let (mut divided, mut pending) = (0u32, 0u32);
        let words = [card, &raw mut divided as usize, &raw mut pending as usize];
        self.call("nvmlDeviceGetMigMode", &words).is_ok() && divided == 1
    }

    /// What a card can be parted into.
    pub(super) fn profiles(&self, card: usize) -> Vec<Profile> {
        let kinds = (0..PROFILES).filter(|kind| !WITH_GRAPHICS.contains(kind));
        let profile = |kind: usize| {
            let mut info = ProfileInfo::default();
            let symbol = "nvmlDeviceGetGpuInstanceProfileInfo";
            self.call(symbol, &[card, kind, &raw mut info as usize]).ok()?;
            let (slices, memory_bytes) = (info.slice_count, info.memory_size_mb << 20);
            Some(Profile { id: info.id, slices, memory_bytes })
        };
        kinds.filter_map(profile).collect()
    }

    pub(super) fn has_room(&self, card: usize, profile: &Profile) -> bool {
        let mut count = 0u32;
        let words = [card, profile.id as usize, &raw mut count as usize];
        self.call("nvmlDeviceGetGpuInstanceRemainingCapacity", &words).is_ok() && 0 < count
    }

    /// Makes an instance; returns it with its number.
    pub(super) fn create(&self, card: usize, profile: &Profile) -> Result<(usize, u32), String> {
        let mut instance = 0usize;
        let words = [card, profile.id as usize, &raw mut instance as usize];
        self.call("nvmlDeviceCreateGpuInstance", &words)?;
        Ok((instance, self.info(instance)?.id))
    }

    fn info(&self, instance: usize) -> Result<InstanceInfo, String> {
        let mut info = InstanceInfo::default();
        self.call("nvmlGpuInstanceGetInfo", &[instance, &raw mut info as usize])?;
        Ok(info)
    }

    fn compute_profiles(&self, instance: usize) -> impl Iterator<Item = ComputeProfileInfo> {
        (0..COMPUTE_PROFILES).filter_map(move |kind| {
            let mut info = ComputeProfileInfo::default();
            let words = [instance, kind, 0, &raw mut info as usize];
            self.call("nvmlGpuInstanceGetComputeInstanceProfileInfo", &words).ok()?;
            Some(info)
        })
    }

    /// Gives all of an instance's compute to programs.
    pub(super) fn create_compute(&self, instance: usize, profile: &Profile) -> Result<(), String> {
        let whole = self.compute_profiles(instance).find(|info| info.slice_count == profile.slices);
        let whole = whole.ok_or("an instance has no compute profile of its own size")?;
        let mut compute = 0usize;
        let words = [instance, whole.id as usize, &raw mut compute as usize];
        self.call("nvmlGpuInstanceCreateComputeInstance", &words)
    }

    /// By what programs call an instance.
    pub(super) fn uuid(&self, card: usize, instance: u32) -> Result<String, String> {
        let mut most = 0u32;
        self.call("nvmlDeviceGetMaxMigDeviceCount", &[card, &raw mut most as usize])?;
        for index in 0..most as usize {
            let (mut part, mut number) = (0usize, 0u32);
            let words = [card, index, &raw mut part as usize];
            let is_there = self.call("nvmlDeviceGetMigDeviceHandleByIndex", &words).is_ok()
                && self.call("nvmlDeviceGetGpuInstanceId", &[part, &raw mut number as usize]).is_ok();
            if is_there && number == instance {
                let mut text = [0u8; 96];
                self.call("nvmlDeviceGetUUID", &[part, &raw mut text as usize, text.len()])?;
                let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
                return Ok(String::from_utf8_lossy(&text[..end]).into_owned());
            }
        }
        Err(format!("instance {instance} is not among the card's devices"))
    }

    /// Destroys all instances but these, given by their card and number. Returns what failed.
    pub(super) fn destroy_others(&self, kept: &BTreeSet<(&str, u32)>) -> Vec<String> {
        let mut cards = 0u32;
        let mut failures: Vec<String> =
            self.call("nvmlDeviceGetCount_v2", &[&raw mut cards as usize]).err().into_iter().collect();
        for index in 0..cards as usize {
            let (mut card, mut divided, mut pending, mut text) = (0usize, 0u32, 0u32, [0u8; 96]);
            let readable =
                self.call("nvmlDeviceGetHandleByIndex_v2", &[index, &raw mut card as usize]).is_ok()
                    && self.call("nvmlDeviceGetUUID", &[card, &raw mut text as usize, text.len()]).is_ok();
            let mode = [card, &raw mut divided as usize, &raw mut pending as usize];
            if !readable || self.call("nvmlDeviceGetMigMode", &mode).is_err() || divided != 1 {
                continue;
            }
            let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
            let uuid = String::from_utf8_lossy(&text[..end]);
            for (instance, number) in self.all(card) {
                if !kept.contains(&(&*uuid, number)) {
                    failures
                        .extend(self.destroy(instance).err().map(|why| format!("{uuid}, {number}: {why}")));
                }
            }
        }
        failures
    }

    /// All instances of a card, with their numbers.
    fn all(&self, card: usize) -> Vec<(usize, u32)> {
        let of_profile = |profile: Profile| {
            let (mut found, mut count) = ([0usize; MOST], 0u32);
            let words = [card, profile.id as usize, &raw mut found as usize, &raw mut count as usize];
            let listed = self.call("nvmlDeviceGetGpuInstances", &words).map_or(0, |()| count as usize);
            found.into_iter().take(listed)
        };
        let all = self.profiles(card).into_iter().flat_map(of_profile);
        all.filter_map(|instance| Some((instance, self.info(instance).ok()?.id))).collect()
    }

    fn destroy(&self, instance: usize) -> Result<(), String> {
        let mut result = Ok(());
        for _ in 0..TRIES {
            for profile in self.compute_profiles(instance) {
                let (mut found, mut count) = ([0usize; MOST], 0u32);
                let words = [instance, profile.id as usize, &raw mut found as usize, &raw mut count as usize];
                let listed =
                    self.call("nvmlGpuInstanceGetComputeInstances", &words).map_or(0, |()| count as usize);
                found.iter().take(listed).for_each(|it| _ = self.call("nvmlComputeInstanceDestroy", &[*it]));
            }
            result = self.call("nvmlGpuInstanceDestroy", &[instance]);
            if result.is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(200));
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of an H100 with 80 GB.
    fn h100() -> Vec<Profile> {
        let profile = |(id, slices, gib): (u32, u32, u64)| Profile { id, slices, memory_bytes: gib << 30 };
        [(19, 1, 9), (15, 1, 19), (14, 2, 19), (9, 3, 39), (5, 4, 39), (0, 7, 79)].map(profile).into()
    }

    #[test]
    fn a_slice_gets_the_smallest_profile_that_has_room_and_is_large_enough() {
        let of = |compute_milli, gib: u64, full: &[u32]| {
            let slice = Some(Slice { compute_milli, memory_bytes: gib << 30 });
            smallest(&h100(), slice, |profile| !full.contains(&profile.id)).map(|profile| profile.id)
        };
        assert_eq!(of(100, 8, &[]), Some(19));
        assert_eq!(of(142, 8, &[]), Some(19));
        assert_eq!(of(143, 8, &[]), Some(14), "143 thousandths are more than a seventh");
        assert_eq!(of(100, 10, &[]), Some(15));
        assert_eq!(of(100, 10, &[15]), Some(14));
        assert_eq!(of(500, 40, &[]), Some(0));
        assert_eq!(of(500, 80, &[]), None);
        assert_eq!(smallest(&h100(), None, |_| true).map(|profile| profile.id), Some(0));
    }
}
