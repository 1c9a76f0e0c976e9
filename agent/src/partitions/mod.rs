//! Parts of devices that are made when a rank needs them, each vendor's in its own way: what hardware or driver keeps apart
//! ([`Divider`]), and shares of NVIDIA's through a multi-process service of each device.
//!
//! ```text
//! STATE/partitions/
//!   claims/job-7.1-0.json     what is made, or about to be made, for this worker
//!   mps/1f0c5a9e/{pipe,log}   of the service of one device
//! ```
//!
//! A claim is written before anything is made, and whatever no claim names is removed: when a worker ends, and when an
//! agent starts. So nothing outlives its worker, at whatever moment an agent is killed. Where parts are made on demand, all
//! parts of those cards are the agent's.

mod divider;
mod mig;
mod mps;
mod profile;
mod smlu;
mod vnpu;
mod xcp;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use aquifer_core::{Slice, Vendor, WorkerId};
use serde::{Deserialize, Serialize};

pub use divider::{Divider, ON_DEMAND, Part, open};
pub use mig::Mig;
pub use mps::Mps;
pub use profile::{Profile, smallest};
pub use smlu::Smlu;
pub use vnpu::Vnpu;
pub use xcp::Xcp;

use crate::container::ShownDevice;
use crate::json;

/// A part of a device to be made for a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Partition {
    /// A share of a device through its service.
    Share { devices: Vec<String> },
    /// A part of each of these cards: as large as the slice, or as the card.
    Instances { vendor: Vendor, cards: Vec<String>, slice: Option<Slice> },
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
    /// Device nodes that it must be able to open, and what they are called within a container.
    pub nodes: Vec<(PathBuf, PathBuf)>,
    /// Device nodes of its devices that it is not to have.
    pub instead_of: Vec<PathBuf>,
    /// Directories of device nodes that must stay open to it: which nodes in them are its own is not known.
    pub unhidden: Vec<PathBuf>,
}

/// What can make parts of devices, and what is made.
#[derive(Debug, Default)]
pub struct Partitions {
    dir: PathBuf,
    mps: Option<Mps>,
    dividers: Vec<Box<dyn Divider>>,
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
    pub fn new(state_dir: &Path, mps: Option<Mps>, dividers: Vec<Box<dyn Divider>>) -> Partitions {
        Partitions { dir: state_dir.join("partitions"), mps, dividers, one_at_a_time: Mutex::default() }
    }

    /// Makes what a worker needs. Blocks.
    ///
    /// * `contained`: it runs in a container.
    ///
    /// # Errors
    /// Says what cannot be made; nothing is left of it.
    pub fn prepare(&self, id: WorkerId, partition: &Partition, contained: bool) -> Result<Prepared, String> {
        let guard = self.one_at_a_time.lock().expect("no holder panics");
        let made = match partition {
            Partition::Share { devices } => self.share(id, devices),
            Partition::Instances { vendor, cards, slice } => {
                let divider = self.dividers.iter().find(|divider| divider.vendor() == *vendor);
                let divider = divider.ok_or_else(|| format!("parts of {vendor}'s cards are not made here"));
                divider.and_then(|divider| {
                    divider.check(cards.len(), contained)?;
                    self.instances(id, &**divider, cards, *slice)
                })
            }
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
        Ok(Prepared { env, mounts: vec![pipe], ..Prepared::default() })
    }

    fn instances(
        &self,
        id: WorkerId,
        divider: &dyn Divider,
        cards: &[String],
        slice: Option<Slice>,
    ) -> Result<Prepared, String> {
        let (mut claim, mut parts) = (Claim::default(), Vec::new());
        for card in cards {
            let taken = self.taken(card);
            let profile = divider.choose(card, slice, &taken)?;
            claim.instances.push(Instance { card: card.clone(), profile: profile.id, id: None });
            self.write(id, &claim)?;
            let number = divider.create(card, &profile, &taken)?;
            claim.instances.last_mut().expect("just added").id = Some(number);
            self.write(id, &claim)?;
            parts.push(divider.finish(card, &profile, number)?);
        }
        Ok(Prepared {
            env: divider.env(&parts),
            mounts: Vec::new(),
            devices: parts.iter().map(|part| part.name.clone()).collect(),
            nodes: parts.iter().flat_map(|part| part.nodes.clone()).collect(),
            instead_of: parts.iter().flat_map(|part| part.instead_of.clone()).collect(),
            unhidden: parts.iter().filter_map(|part| part.unhidden.clone()).collect(),
        })
    }

    /// Parts of a card that workers have.
    fn taken(&self, card: &str) -> BTreeSet<u32> {
        let claims = self.claims();
        let all = claims.iter().flat_map(|claim| &claim.instances).filter(|it| it.card == card);
        all.filter_map(|it| it.id).collect()
    }

    /// Whether it makes shares of devices.
    pub fn makes_shares(&self) -> bool {
        self.mps.is_some()
    }

    /// Whether anything was made for a worker.
    pub fn has(&self, id: WorkerId) -> bool {
        (self.mps.is_some() || !self.dividers.is_empty()) && self.claim_path(id).exists()
    }

    /// What would be made of a rank's devices; `None`: nothing.
    pub fn wanted(&self, devices: &[ShownDevice], slice: Option<Slice>) -> Option<Partition> {
        let of = |vendor: Vendor| -> Vec<String> {
            let own = devices.iter().filter(|device| device.vendor == vendor);
            own.map(|device| device.uuid.clone()).collect()
        };
        for divider in self.dividers.iter().filter(|divider| slice.is_some() || divider.parts_whole()) {
            let vendor = divider.vendor();
            let mut own = devices.iter().filter(|device| device.vendor == vendor).peekable();
            if own.peek().is_some() && own.all(|device| device.is_parted) {
                return Some(Partition::Instances { vendor, cards: of(vendor), slice });
            }
        }
        let devices = of(Vendor::Nvidia);
        let shares = self.mps.is_some() && slice.is_some() && !devices.is_empty();
        shares.then_some(Partition::Share { devices })
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
        // Those too that an agent was killed over while it wrote them.
        for path in self.written().filter(|path| !alive.contains(path)) {
            let _ = fs::remove_file(path);
        }
        self.remove_unclaimed();
    }

    fn remove_unclaimed(&self) {
        let claims = self.claims();
        if let Some(mps) = &self.mps {
            let services: BTreeSet<&str> =
                claims.iter().flat_map(|it| &it.services).map(|it| &**it).collect();
            mps.stop_others(&self.dir.join("mps"), &services);
        }
        let instances = claims.iter().flat_map(|claim| &claim.instances);
        let kept: BTreeSet<(&str, u32)> = instances.filter_map(|it| Some((&*it.card, it.id?))).collect();
        for failure in self.dividers.iter().flat_map(|divider| divider.remove_others(&kept)) {
            tracing::error!("a part of a device cannot be removed: {failure}");
        }
    }

    fn claims(&self) -> Vec<Claim> {
        self.claim_paths().filter_map(|path| json::read(&path).ok()).collect()
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
        self.written().filter(|path| path.extension().is_some_and(|end| end == "json"))
    }

    fn written(&self) -> impl Iterator<Item = PathBuf> {
        let entries = fs::read_dir(self.dir.join("claims")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path())
    }
}
