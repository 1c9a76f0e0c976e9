//! Parts of NVIDIA's devices that are made when a rank needs them: MIG instances, which the hardware keeps apart, and
//! shares through a multi-process service of each device, which the driver limits.
//!
//! ```text
//! STATE/partitions/
//!   claims/job-7.1-0.json     what is made, or about to be made, for this worker
//!   mps/1f0c5a9e/{pipe,log}   of the service of one device
//! ```
//!
//! A claim is written before anything is made, and whatever no claim names is removed: when a worker ends, and when an
//! agent starts. So nothing outlives its worker, at whatever moment an agent is killed. With `--mig on-demand` all
//! instances on cards in MIG mode are the agent's.

mod mig;
mod mps;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use aquifer_core::{Slice, Vendor, WorkerId};
use serde::{Deserialize, Serialize};

pub use mig::{Mig, Profile, smallest};
pub use mps::Mps;

use crate::container::ShownDevice;
use crate::json;

/// A part of a device to be made for a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Partition {
    /// A share of a device through its service.
    Share { devices: Vec<String> },
    /// An instance of each of these cards: as large as the slice, or as the card.
    Instances { cards: Vec<String>, slice: Option<Slice> },
}

/// What a worker is told of what was made for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Variables, over others of the same name.
    pub env: Vec<(String, String)>,
    /// Directories that it must see.
    pub mounts: Vec<PathBuf>,
    /// By what its devices are called now, in their order; empty: as before.
    pub devices: Vec<String>,
}

/// What can make parts of devices, and what is made.
#[derive(Debug, Default)]
pub struct Partitions {
    dir: PathBuf,
    mps: Option<Mps>,
    mig: Option<Mig>,
    one_at_a_time: Mutex<()>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    #[serde(default)]
    services: Vec<String>,
    #[serde(default)]
    instances: Vec<Instance>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Instance {
    card: String,
    profile: u32,
    /// `None`: about to be made.
    id: Option<u32>,
}

impl Partitions {
    /// Makes parts with what is given.
    pub fn new(state_dir: &Path, mps: Option<Mps>, mig: Option<Mig>) -> Partitions {
        Partitions { dir: state_dir.join("partitions"), mps, mig, one_at_a_time: Mutex::default() }
    }

    /// Makes what a worker needs. Blocks.
    ///
    /// # Errors
    /// Says what cannot be made; nothing is left of it.
    pub fn prepare(&self, id: WorkerId, partition: &Partition) -> Result<Prepared, String> {
        let guard = self.one_at_a_time.lock().expect("no holder panics");
        let made = match partition {
            Partition::Share { devices } => self.share(id, devices),
            Partition::Instances { cards, slice } => self.instances(id, cards, *slice),
        };
        drop(guard);
        made.inspect_err(|_| self.release(id))
    }

    fn share(&self, id: WorkerId, devices: &[String]) -> Result<Prepared, String> {
        // A program is the client of one service, which is that of one device.
        let [device] = devices else {
            return Err(format!("a rank has a share of one device, not of {}", devices.len()));
        };
        let mps = self.mps.as_ref().ok_or("the multi-process service is not there")?;
        self.write(id, &Claim { services: vec![device.clone()], ..Claim::default() })?;
        let pipe = mps.start(&self.dir.join("mps"), device)?;
        let env = vec![("CUDA_MPS_PIPE_DIRECTORY".to_string(), pipe.to_string_lossy().into_owned())];
        Ok(Prepared { env, mounts: vec![pipe], devices: Vec::new() })
    }

    fn instances(&self, id: WorkerId, cards: &[String], slice: Option<Slice>) -> Result<Prepared, String> {
        let mig = self.mig.as_ref().ok_or("MIG instances are not made here")?;
        let mut claim = Claim::default();
        let mut devices = Vec::new();
        for card in cards {
            let handle = mig.card(card)?;
            let profile = smallest(&mig.profiles(handle), slice, |profile| mig.has_room(handle, profile));
            let profile =
                profile.ok_or_else(|| format!("no MIG profile of {card} that has room is large enough"))?;
            claim.instances.push(Instance { card: card.clone(), profile: profile.id, id: None });
            self.write(id, &claim)?;
            let (instance, number) = mig.create(handle, &profile)?;
            claim.instances.last_mut().expect("just added").id = Some(number);
            self.write(id, &claim)?;
            mig.create_compute(instance, &profile)?;
            devices.push(mig.uuid(handle, number)?);
        }
        let all = devices.join(",");
        let env =
            ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"].map(|name| (name.to_string(), all.clone()));
        Ok(Prepared { env: env.into(), mounts: Vec::new(), devices })
    }

    /// Whether it makes shares of devices.
    pub fn makes_shares(&self) -> bool {
        self.mps.is_some()
    }

    /// Whether anything was made for a worker.
    pub fn has(&self, id: WorkerId) -> bool {
        (self.mps.is_some() || self.mig.is_some()) && self.claim_path(id).exists()
    }

    /// What would be made of a rank's devices; `None`: nothing.
    pub fn wanted(&self, devices: &[ShownDevice], slice: Option<Slice>) -> Option<Partition> {
        let nvidia = devices.iter().filter(|device| device.vendor == Vendor::Nvidia);
        let names: Vec<String> = nvidia.map(|device| device.uuid.clone()).collect();
        if names.is_empty() {
            return None;
        }
        if self.mig.as_ref().is_some_and(|mig| names.iter().all(|name| mig.is_divided(name))) {
            return Some(Partition::Instances { cards: names, slice });
        }
        (self.mps.is_some() && slice.is_some()).then_some(Partition::Share { devices: names })
    }

    /// Removes what was made for a worker, which has ended. Blocks.
    pub fn release(&self, id: WorkerId) {
        let _guard = self.one_at_a_time.lock().expect("no holder panics");
        if fs::remove_file(self.claim_path(id)).is_ok() {
            self.remove_unclaimed();
        }
    }

    /// Removes what earlier agents made for workers that are not among these. Blocks.
    pub fn reconcile(&self, alive: &BTreeSet<WorkerId>) {
        let _guard = self.one_at_a_time.lock().expect("no holder panics");
        let alive: BTreeSet<PathBuf> = alive.iter().map(|id| self.claim_path(*id)).collect();
        for path in self.claim_paths().filter(|path| !alive.contains(path)) {
            let _ = fs::remove_file(path);
        }
        self.remove_unclaimed();
    }

    fn remove_unclaimed(&self) {
        let claims: Vec<Claim> = self.claim_paths().filter_map(|path| json::read(&path).ok()).collect();
        if let Some(mps) = &self.mps {
            let services: BTreeSet<&str> =
                claims.iter().flat_map(|it| &it.services).map(|it| &**it).collect();
            mps.stop_others(&self.dir.join("mps"), &services);
        }
        if let Some(mig) = &self.mig {
            let instances = claims.iter().flat_map(|claim| &claim.instances);
            let kept: BTreeSet<(&str, u32)> = instances.filter_map(|it| Some((&*it.card, it.id?))).collect();
            for failure in mig.destroy_others(&kept) {
                tracing::error!("a MIG instance cannot be removed: {failure}");
            }
        }
    }

    fn write(&self, id: WorkerId, claim: &Claim) -> Result<(), String> {
        let path = self.claim_path(id);
        let write = || {
            fs::create_dir_all(path.parent().expect("a directory"))?;
            json::replace(&path, claim)
        };
        write().map_err(|error| format!("{}: {error}", path.display()))
    }

    fn claim_path(&self, id: WorkerId) -> PathBuf {
        self.dir.join("claims").join(format!("{}.json", id.to_string().replace('/', "-")))
    }

    fn claim_paths(&self) -> impl Iterator<Item = PathBuf> {
        let entries = fs::read_dir(self.dir.join("claims")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "json"))
    }
}
