//! NVIDIA's devices, through NVML, which is found at run time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::{DeviceClass, Vendor};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::helper::Helper;
use super::{Backend, Discovery, Finding, Found, Visibility, slug};

/// How long NVML may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Device nodes that every CUDA program needs, besides that of its card.
const COMMON_NODES: [&str; 3] = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"];

/// The cards of a node, or the slices of those that are divided by MIG.
pub struct Nvidia {
    helper: Helper<Discovery>,
    patience: Duration,
}

/// What lives on the helper's thread.
struct Session {
    library: Option<PathBuf>,
    nvml: Option<Nvml>,
    /// Cards that could be read, by index: one that is lost later keeps its identity.
    known: BTreeMap<u32, Vec<Found>>,
}

impl Nvidia {
    /// Through this library, or else through `libnvidia-ml.so.1` or `libnvidia-ml.so` of the system.
    pub fn new(library: Option<PathBuf>) -> Nvidia {
        Nvidia::with_patience(library, PATIENCE)
    }

    /// For as long as `patience` a call may hang.
    pub fn with_patience(library: Option<PathBuf>, patience: Duration) -> Nvidia {
        let mut session = Session { library, nvml: None, known: BTreeMap::new() };
        Nvidia { helper: Helper::new("nvml", move || session.look()), patience }
    }
}

impl Backend for Nvidia {
    fn vendor(&self) -> Vendor {
        Vendor::Nvidia
    }

    fn discover(&mut self) -> Discovery {
        self.helper.ask(self.patience).unwrap_or_else(|| {
            let what = format!("nvml did not answer within {} s", self.patience.as_secs_f64());
            Discovery { devices: Vec::new(), findings: vec![finding(what)] }
        })
    }

    fn visibility(&self, devices: &[&Found]) -> Visibility {
        let uuids: Vec<&str> = devices.iter().map(|device| &*device.uuid).collect();
        let uuids = uuids.join(",");
        let container = if devices.is_empty() { "void".to_string() } else { uuids.clone() };
        let mut device_nodes: Vec<PathBuf> =
            devices.iter().flat_map(|device| device.nodes.iter().cloned()).collect();
        if !devices.is_empty() {
            device_nodes.extend(COMMON_NODES.iter().map(PathBuf::from));
        }
        let env = [("CUDA_VISIBLE_DEVICES", uuids), ("NVIDIA_VISIBLE_DEVICES", container)];
        let env = env.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        Visibility { env, device_nodes, cpu_affinity: Vec::new() }
    }
}

impl Session {
    fn look(&mut self) -> Discovery {
        let mut found = Discovery::default();
        let opened = self.nvml.take().map_or_else(|| open(self.library.as_deref()), Ok);
        let counted = opened.map_err(|error| format!("nvml cannot be used: {error}")).and_then(|nvml| {
            let count = nvml.device_count().map_err(|error| format!("nvml cannot count devices: {error}"))?;
            Ok((nvml, count))
        });
        let (nvml, count) = match counted {
            Ok(counted) => counted,
            Err(what) => {
                found.findings.push(finding(what));
                return found;
            }
        };
        for index in 0..count {
            let mut notes = Vec::new();
            match read_card(&nvml, index, &mut notes) {
                Ok(devices) => {
                    self.known.insert(index, devices.clone());
                    found.devices.extend(devices);
                }
                Err(error) => {
                    let lost = self.known.get(&index).cloned().unwrap_or_else(|| vec![unread_card(index)]);
                    let fault = Some(fault_of(&error).into());
                    found
                        .devices
                        .extend(lost.into_iter().map(|device| Found { fault: fault.clone(), ..device }));
                }
            }
            found.findings.extend(notes.into_iter().map(|note| finding(format!("device {index}: {note}"))));
        }
        self.nvml = Some(nvml);
        found
    }
}

fn open(library: Option<&Path>) -> Result<Nvml, NvmlError> {
    match library {
        Some(library) => Nvml::builder().lib_path(library.as_os_str()).init(),
        None => Nvml::builder()
            .lib_path("libnvidia-ml.so.1".as_ref())
            .init()
            .or_else(|error| Nvml::init().map_err(|_| error)),
    }
}

/// The card of an index, or its slices. What is merely nice to know may be missing.
fn read_card(nvml: &Nvml, index: u32, notes: &mut Vec<String>) -> Result<Vec<Found>, NvmlError> {
    let card = nvml.device_by_index(index)?;
    let place = card.pci_info().map(|pci| pci.bus_id.to_lowercase());
    let place = place.unwrap_or_else(|_| format!("index-{index:05}"));
    let node = PathBuf::from(format!("/dev/nvidia{}", card.minor_number().unwrap_or(index)));
    let divided = card.mig_mode().is_ok_and(|mode| mode.current == MIG_ENABLED);
    if !divided {
        return Ok(vec![read_device(&card, index, place, node, notes)?]);
    }
    let mut slices = Vec::new();
    for number in 0..card.mig_device_count().unwrap_or(0) {
        match card.mig_device_by_index(number) {
            Ok(slice) => {
                let place = format!("{place}/{number:03}");
                slices.push(read_device(&slice, index, place, node.clone(), notes)?);
            }
            // The count is that of the slices there could be.
            Err(NvmlError::NotFound) => (),
            Err(error) => notes.push(format!("slice {number}: {error}")),
        }
    }
    if slices.is_empty() {
        notes.push("divided by MIG, but there are no slices".to_string());
    }
    Ok(slices)
}

fn read_device(
    device: &Device<'_>,
    index: u32,
    place: String,
    node: PathBuf,
    notes: &mut Vec<String>,
) -> Result<Found, NvmlError> {
    let uuid = device.uuid()?;
    let name = device.name()?;
    let memory_bytes = device.memory_info().map(|memory| memory.total).unwrap_or_else(|error| {
        notes.push(format!("memory unknown: {error}"));
        0
    });
    let class = DeviceClass { vendor: Vendor::Nvidia, model: slug_of_gpu(&name).into(), memory_bytes };
    Ok(Found {
        class: Arc::new(class),
        uuid: uuid.as_str().into(),
        fault: None,
        island: None,
        place,
        logical: index,
        nodes: vec![node],
    })
}

/// A card that could never be read.
fn unread_card(index: u32) -> Found {
    let class = DeviceClass { vendor: Vendor::Nvidia, model: "unknown".into(), memory_bytes: 0 };
    Found {
        class: Arc::new(class),
        uuid: format!("nvidia-{index}").into(),
        fault: None,
        island: None,
        place: format!("index-{index:05}"),
        logical: index,
        nodes: Vec::new(),
    }
}

fn fault_of(error: &NvmlError) -> String {
    match error {
        NvmlError::GpuLost => "fell off the bus".to_string(),
        other => format!("cannot be read: {other}"),
    }
}

fn finding(what: String) -> Finding {
    Finding { vendor: Vendor::Nvidia, what }
}

/// Model of a card from its name: `NVIDIA H100 80GB HBM3` is `h100-80gb-hbm3`.
pub fn slug_of_gpu(name: &str) -> String {
    let slug = slug(name);
    slug.strip_prefix("nvidia-").map(str::to_string).unwrap_or(slug)
}

/// Source: nvml.h, `NVML_DEVICE_MIG_ENABLE`.
const MIG_ENABLED: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_from_the_general_to_the_special() {
        assert_eq!(slug_of_gpu("NVIDIA H100 80GB HBM3"), "h100-80gb-hbm3");
        assert_eq!(slug_of_gpu("NVIDIA A100-SXM4-40GB"), "a100-sxm4-40gb");
        assert_eq!(slug_of_gpu("NVIDIA A100-SXM4-80GB MIG 1g.10gb"), "a100-sxm4-80gb-mig-1g.10gb");
        assert_eq!(slug_of_gpu("Tesla V100-PCIE-16GB"), "tesla-v100-pcie-16gb");
        assert_eq!(slug_of_gpu("NVIDIA GeForce RTX 4090"), "geforce-rtx-4090");
    }

    #[test]
    fn a_worker_without_devices_sees_none() {
        let nvidia = Nvidia::new(None);
        let env = nvidia.visibility(&[]).env;
        let expected = [("CUDA_VISIBLE_DEVICES", ""), ("NVIDIA_VISIBLE_DEVICES", "void")];
        assert_eq!(env, expected.map(|(key, value)| (key.to_string(), value.to_string())));
    }
}
