//! All backends of a node together: indices that stay, and what they see as one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aquifer_core::{Device, DeviceClass, Fault, Inventory, Isolation, Locality, Name, Ports, Slice, Vendor};
use serde::{Deserialize, Serialize};

use super::by_library::ByLibrary;
use super::by_sysfs::BySysfs;
use super::measured::Measurements;
use super::topology::{Seat, seat};
use super::{
    Backend, BackendChoice, Cpu, DeviceChoice, DeviceError, Fake, Finding, Found, Roots, Visibility, fake,
    mps, near, visible,
};
use crate::cgroup::Limits;
use crate::container::ShownDevice;
use crate::host::Host;
use crate::json;

mod measuring;

/// Where most vendors' device nodes are.
const DRI: &str = "/dev/dri";

/// Label of the nodes whose devices are linked directly with each other's.
const SUPER_POD: &str = "super-pod";

/// What is around a worker.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    /// All devices of its node.
    Beside,
    /// None that it does not hold, where that can be had.
    Hidden,
    /// Its own devices, in a container.
    Contained,
}

/// All backends of a node. The index of a device never changes while the machine is up.
pub struct Backends {
    backends: Vec<Box<dyn Backend>>,
    /// With the backend of each, an index of `backends`; `None` for one that was known before and is not found.
    devices: Vec<(Option<usize>, Found)>,
    findings: Vec<Finding>,
    labels: BTreeMap<Name, Name>,
    /// The domain of direct links that the node shares with others, if its devices tell one.
    super_pod: Option<Name>,
    /// What else than the devices themselves keeps parts of them apart.
    enforced: BTreeMap<Vendor, Isolation>,
    roots: Roots,
    /// Where devices hang, by their places; that does not change while the machine is up.
    seats: BTreeMap<String, Seat>,
    measured: Measurements,
    /// Vendors are added as their devices appear.
    automatic: bool,
    strangers: Vec<String>,
}

impl Backends {
    /// Starts the chosen backends and looks at everything once.
    ///
    /// `known`: a file that keeps the order of devices over restarts of the agent, so that the index of a device
    /// stays what running workers were told, even if one has been lost since. It counts for one boot and one choice.
    ///
    /// # Errors
    ///
    /// Fails if a core or a file of fake devices that was asked for does not exist.
    pub fn open(
        choice: &DeviceChoice,
        host: &Host,
        roots: &Roots,
        known: Option<&Path>,
    ) -> Result<Backends, DeviceError> {
        let mut all = Backends {
            backends: Vec::new(),
            devices: Vec::new(),
            findings: Vec::new(),
            labels: BTreeMap::new(),
            super_pod: None,
            enforced: BTreeMap::new(),
            roots: roots.clone(),
            seats: BTreeMap::new(),
            measured: Measurements::default(),
            automatic: *choice == DeviceChoice::Auto,
            strangers: Vec::new(),
        };
        match choice {
            DeviceChoice::Auto => {
                all.strangers = super::pci::strangers(&roots.sysfs);
                all.add_plugged();
            }
            DeviceChoice::These(parts) => {
                parts.iter().try_for_each(|part| all.add(part, host))?;
            }
        }
        all.discover();
        // Cards that cannot be used must not keep a machine from working with what it has.
        if all.automatic && all.devices.iter().all(|(_, found)| found.fault.is_some()) {
            all.backends.push(Box::new(Cpu::new(host, &[], &roots.sysfs)?));
            all.look(all.backends.len() - 1);
        }
        if let Some(file) = known {
            all.keep_order(file, &host.boot_id, &format!("{choice:?}"));
        }
        Ok(all)
    }

    fn add(&mut self, part: &BackendChoice, host: &Host) -> Result<(), DeviceError> {
        match part {
            BackendChoice::Cpu(cores) => {
                self.backends.push(Box::new(Cpu::new(host, cores, &self.roots.sysfs)?))
            }
            BackendChoice::Vendor(vendor, library) => self.add_vendor(*vendor, library.clone()),
            BackendChoice::Fake(file) => {
                self.labels.extend(fake::labels(file)?);
                for vendor in fake::vendors(file)? {
                    self.backends.push(Box::new(Fake::new(file.clone(), vendor)));
                }
            }
        }
        Ok(())
    }

    fn add_vendor(&mut self, vendor: Vendor, library: Option<PathBuf>) {
        let backend: Box<dyn Backend> = match ByLibrary::new(vendor, library, &self.roots) {
            Some(backend) => Box::new(backend),
            None => Box::new(BySysfs::new(vendor, &self.roots)),
        };
        self.backends.push(backend);
    }

    /// A backend for every vendor that has something plugged in, and for NVIDIA, whose cards a virtual machine may
    /// have without showing a bus.
    fn add_plugged(&mut self) {
        let mut plugged: Vec<Vendor> = self.roots.all_plugged().into_keys().collect();
        plugged.push(Vendor::Nvidia);
        plugged.extend(super::kfd::is_there(&self.roots).then_some(Vendor::Amd));
        for vendor in plugged {
            if self.backends.iter().all(|backend| backend.vendor() != vendor) {
                self.add_vendor(vendor, None);
            }
        }
    }

    /// Looks again whether all devices are well. True if anything changed.
    pub fn refresh(&mut self) -> bool {
        let seen = |all: &Backends| (all.devices.clone(), all.findings.clone(), all.super_pod.clone());
        let before = seen(self);
        self.findings.clear();
        if self.automatic {
            self.add_plugged();
        }
        for index in 0..self.backends.len() {
            self.look(index);
        }
        self.find_super_pod();
        before != seen(self)
    }

    /// Has a device reset by a program: see [`Resets`](super::Resets).
    ///
    /// # Errors
    /// The program's last complaint.
    pub fn reset(&mut self, program: &Path, index: u16) -> Result<(), String> {
        let (Some(backend), found) = &self.devices[usize::from(index)] else {
            return Err("it is not there".into());
        };
        super::reset::run(program, found)?;
        let (backend, found) = (*backend, found.clone());
        self.backends[backend].was_reset(&found);
        Ok(())
    }

    /// A node whose devices are in several domains is in none: not all of its devices reach those of any other.
    fn find_super_pod(&mut self) {
        let mut all = BTreeMap::new();
        for backend in &self.backends {
            all.extend(backend.super_pods().into_iter().map(|name| (name, backend.vendor())));
        }
        self.super_pod = all.keys().next().filter(|_| all.len() == 1).map(|name| name.as_str().into());
        if let (Some((_, vendor)), 2..) = (all.first_key_value(), all.len()) {
            let names = all.keys().cloned().collect::<Vec<_>>().join(" ");
            let what =
                format!("its devices are in several super-pods, so the node has no label of one: {names}");
            self.findings.push(Finding { vendor: *vendor, what });
        }
    }

    /// Looks at the devices of one backend again.
    fn look(&mut self, index: usize) {
        let mine = |entry: &&mut (Option<usize>, Found)| entry.0 == Some(index);
        let mut devices: Vec<Found> =
            self.devices.iter_mut().filter(mine).map(|entry| entry.1.clone()).collect();
        let backend = &mut self.backends[index];
        let mut findings = backend.health(&mut devices);
        // A machine without any NVIDIA card needs no word about its missing driver.
        if self.automatic && devices.is_empty() && self.roots.plugged(backend.vendor()).is_empty() {
            findings.clear();
        }
        self.findings.extend(findings);
        let mut devices = devices.into_iter();
        for (slot, device) in self.devices.iter_mut().filter(mine).zip(devices.by_ref()) {
            slot.1 = device;
        }
        self.devices.extend(devices.map(|device| (Some(index), device)));
        for (_, found) in &self.devices {
            if !self.seats.contains_key(&found.place) {
                self.seats.insert(found.place.clone(), seat(&self.roots.sysfs, &found.place));
            }
        }
    }

    /// The devices in the order of their indices.
    pub fn devices(&self) -> Vec<Device> {
        // Each backend counts its islands from 0.
        let mut first = vec![0; self.backends.len() + 1];
        for index in 0..self.backends.len() {
            let own = self.devices.iter().filter(|entry| entry.0 == Some(index));
            let own = own.filter_map(|(_, found)| found.island).map(|island| island + 1).max();
            first[index + 1] = first[index] + own.unwrap_or(0);
        }
        let switches: BTreeSet<&String> =
            self.seats.values().filter_map(|seat| seat.switch.as_ref()).collect();
        let locality = |found: &Found| {
            let seat = self.seats.get(&found.place);
            let own = seat.and_then(|seat| seat.switch.as_ref());
            let number = switches.iter().position(|switch| Some(*switch) == own);
            Locality {
                switch: number.map(|number| number as u16),
                numa_node: seat.and_then(|seat| seat.numa_node?.try_into().ok()),
            }
        };
        let device = |(backend, found): &(Option<usize>, Found)| Device {
            class: found.class.clone(),
            uuid: found.uuid.clone(),
            fault: found.fault.clone(),
            speed_milli: self.speed((*backend, found)).0,
            speed_source: self.speed((*backend, found)).1.as_str().into(),
            memory_gbs: found.memory_gbs(self.measured_of((*backend, found))),
            number: found.physical,
            isolation: self.isolation(found),
            island: found.island.map(|island| island + backend.map_or(0, |backend| first[backend])),
            locality: locality(found),
        };
        self.devices.iter().map(device).collect()
    }

    /// Looks at what keeps parts of devices apart on this node, where the devices do not: the kernel does it for cores, a
    /// daemon of the driver for NVIDIA's.
    pub fn enforce(&mut self, limits: Limits, shares_on_demand: bool) {
        let limited = |is_so: bool| if is_so { Isolation::Limited } else { Isolation::Advisory };
        self.enforced.insert(Vendor::Cpu, limited(limits.cpu));
        self.enforced.insert(Vendor::Nvidia, limited(shares_on_demand || mps::runs()));
    }

    fn isolation(&self, found: &Found) -> Isolation {
        let enforced = self.enforced.get(&found.class.vendor).copied().unwrap_or_default();
        let parts = found.parts.filter(|_| self.is_parted(found)).unwrap_or_default();
        found.isolation.max(enforced).max(parts)
    }

    /// Whether parts of a device are made on demand.
    fn is_parted(&self, found: &Found) -> bool {
        self.roots.parts_on_demand.contains(&found.class.vendor) && found.parts.is_some()
    }

    fn speed(&self, of: (Option<usize>, &Found)) -> (u32, String) {
        of.1.speed(self.measured_of(of))
    }

    /// Whether what is said of the health of the device of this index counts as it is.
    pub fn is_trusted(&self, index: u16) -> bool {
        let backend = self.devices.get(usize::from(index)).and_then(|(backend, _)| *backend);
        backend.is_some_and(|backend| self.backends[backend].is_trusted())
    }

    /// What the backends know of them, in the order of their indices.
    pub fn found(&self) -> impl Iterator<Item = &Found> {
        self.devices.iter().map(|(_, found)| found)
    }

    /// What people should know: drivers that are missing, libraries that do not answer.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// What people should know of accelerators that nothing here can use.
    pub fn strangers(&self) -> &[String] {
        &self.strangers
    }

    /// What the node offers, as a report to the scheduler has it.
    ///
    /// `labels` go over those of a file of fake devices, and these over what devices tell.
    pub fn inventory(
        &self,
        host: &Host,
        address: &str,
        ports: Ports,
        labels: &BTreeMap<Name, Name>,
    ) -> Inventory {
        let super_pod = self.super_pod.as_ref().map(|name| (SUPER_POD.into(), name.clone()));
        let mut all_labels: BTreeMap<Name, Name> = super_pod.into_iter().collect();
        all_labels.extend(self.labels.iter().map(|(key, value)| (key.clone(), value.clone())));
        all_labels.extend(labels.iter().map(|(key, value)| (key.clone(), value.clone())));
        let figures = |(backend, found): &(Option<usize>, Found)| {
            Some((found.class.clone(), self.measured_of((*backend, found))?.into()))
        };
        Inventory {
            devices: self.devices(),
            cpus_milli: host.cpus_milli,
            memory_bytes: host.memory_bytes,
            address: address.into(),
            ports,
            labels: all_labels,
            engine: Name::default(),
            measured: self.devices.iter().filter_map(figures).collect(),
        }
    }

    /// Makes a worker see exactly the devices of these indices, although it can open others; an index that does not exist shows
    /// nothing.
    ///
    /// `slice`: what it holds of each of them, if not all.
    pub fn visibility(&self, indices: &[u16], slice: Option<Slice>) -> Visibility {
        self.show(indices, slice, Where::Beside)
    }

    /// The same for a worker from which other devices are hidden.
    pub fn with_others_hidden(&self, indices: &[u16], slice: Option<Slice>) -> Visibility {
        self.show(indices, slice, Where::Hidden)
    }

    /// The same for a worker in a container that has the nodes of these devices alone, and what engines call them.
    pub fn in_container(&self, indices: &[u16], slice: Option<Slice>) -> (Visibility, Vec<ShownDevice>) {
        let held = indices.iter().filter_map(|index| self.devices.get(usize::from(*index)));
        let shown = |(_, found): &(Option<usize>, Found)| ShownDevice {
            vendor: found.class.vendor,
            uuid: found.uuid.to_string(),
            number: found.physical,
            is_parted: self.is_parted(found),
        };
        (self.show(indices, slice, Where::Contained), held.map(shown).collect())
    }

    fn show(&self, indices: &[u16], slice: Option<Slice>, place: Where) -> Visibility {
        let (mut merged, mut in_dri) = (Visibility::default(), false);
        for (number, backend) in self.backends.iter().enumerate() {
            let held = indices.iter().filter_map(|index| self.devices.get(usize::from(*index)));
            let held: Vec<&Found> =
                held.filter(|entry| entry.0 == Some(number)).map(|entry| &entry.1).collect();
            let vendor = backend.vendor();
            let passes_over =
                place == Where::Hidden && visible::passes_over_others(vendor) && !held.is_empty();
            let mut shown = match passes_over || place == Where::Contained {
                true => visible::show_alone(&held, |devices| backend.visibility(devices), vendor),
                false => backend.visibility(&held),
            };
            if let Some(slice) = slice.filter(|_| !held.is_empty()) {
                let level = held.iter().map(|found| self.isolation(found)).min().unwrap_or_default();
                shown.env.push(("AQUIFER_DEVICE_ISOLATION".into(), level.to_string()));
                shown.env.extend(visible::share(vendor, slice));
            }
            for (key, value) in shown.env {
                // Several vendors read the same variable: the one whose devices are held has it.
                match merged.env.iter_mut().find(|(known, _)| *known == key) {
                    Some(known) if !held.is_empty() => known.1 = value,
                    Some(_) => (),
                    None => merged.env.push((key, value)),
                }
            }
            let hides = held.is_empty() || visible::may_hide_others(vendor) || passes_over;
            if place == Where::Hidden && hides {
                let others = self.devices.iter().filter(|entry| entry.0 == Some(number));
                merged.hidden_nodes.extend(others.flat_map(|(_, found)| found.nodes.iter().cloned()));
            }
            // Which of the nodes are a part's own must be known to hide the others.
            let is_known =
                |part: &&Found| part.nodes.iter().any(|node| node.starts_with(&self.roots.caps.dir));
            let mut parts = held.iter().filter(|found| found.place.contains('/'));
            if place == Where::Hidden && vendor == Vendor::Nvidia && parts.all(is_known) {
                merged.hidden_nodes.push(self.roots.caps.dir.clone());
            }
            in_dri |= passes_over;
            merged.device_nodes.extend(shown.device_nodes);
            merged.cpu_affinity.extend(shown.cpu_affinity);
        }
        // Parts of one card have its node, and so may cards of two vendors.
        merged.hidden_nodes.retain(|node| !merged.device_nodes.contains(node));
        if in_dri {
            // What else is there is left as it is.
            let nodes = fs::read_dir(&self.roots.dri).into_iter().flatten().flatten();
            let nodes = nodes.map(|node| Path::new(DRI).join(node.file_name()));
            merged.device_nodes.extend(nodes.filter(|node| !merged.hidden_nodes.contains(node)));
            merged.hidden_nodes.push(DRI.into());
        }
        merged.hidden_nodes.sort_unstable();
        merged.hidden_nodes.dedup();
        let held = indices.iter().filter_map(|index| self.devices.get(usize::from(*index)));
        merged.near = near::cores(&self.roots.sysfs, held.map(|(_, found)| &*found.place));
        merged
    }

    fn discover(&mut self) {
        for index in 0..self.backends.len() {
            self.look(index);
        }
        self.find_super_pod();
        let order = |(_, found): &(Option<usize>, Found)| {
            (found.class.vendor, found.place.clone(), found.logical, found.uuid.clone())
        };
        self.devices.sort_by_key(order);
    }

    /// Puts the devices in the order in which they were known before, the new ones behind.
    fn keep_order(&mut self, file: &Path, boot_id: &str, choice: &str) {
        let known: Option<Known> = json::read(file).ok();
        let known = known.filter(|known| known.boot_id == boot_id && known.choice == choice);
        let mut found = std::mem::take(&mut self.devices);
        for device in known.map(|known| known.devices).unwrap_or_default() {
            let Ok(vendor) = device.vendor.parse() else { continue };
            let entry = match found.iter().position(|(_, found)| *found.uuid == *device.uuid) {
                Some(index) => found.remove(index),
                None => {
                    (self.backends.iter().position(|backend| backend.vendor() == vendor), device.lost(vendor))
                }
            };
            self.devices.push(entry);
        }
        self.devices.append(&mut found);
        let devices = self.devices.iter().map(|(_, found)| KnownDevice::from(found)).collect();
        let known = Known { boot_id: boot_id.to_string(), choice: choice.to_string(), devices };
        if let Err(error) = json::replace(file, &known) {
            let what = format!("the order of devices cannot be kept in {}: {error}", file.display());
            self.findings
                .extend(self.devices.first().map(|(_, found)| Finding { vendor: found.class.vendor, what }));
        }
    }
}

/// The file that keeps the order of devices.
#[derive(Serialize, Deserialize)]
struct Known {
    boot_id: String,
    choice: String,
    devices: Vec<KnownDevice>,
}

#[derive(Serialize, Deserialize)]
struct KnownDevice {
    vendor: String,
    model: String,
    memory_bytes: u64,
    uuid: String,
    place: String,
}

impl KnownDevice {
    fn lost(&self, vendor: Vendor) -> Found {
        let class =
            DeviceClass { vendor, model: self.model.as_str().into(), memory_bytes: self.memory_bytes };
        Found {
            class: Arc::new(class),
            uuid: self.uuid.as_str().into(),
            fault: Some(Fault::faulty("not found any more")),
            island: None,
            isolation: Isolation::Advisory,
            parts: None,
            speed_milli: None,
            memory_gbs: None,
            is_used: false,
            one_of: 1,
            place: self.place.clone(),
            logical: u32::MAX,
            physical: u32::MAX,
            nodes: Vec::new(),
        }
    }
}

impl From<&Found> for KnownDevice {
    fn from(found: &Found) -> KnownDevice {
        KnownDevice {
            vendor: found.class.vendor.to_string(),
            model: found.class.model.to_string(),
            memory_bytes: found.class.memory_bytes,
            uuid: found.uuid.to_string(),
            place: found.place.clone(),
        }
    }
}
