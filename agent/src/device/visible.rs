//! How each vendor's runtime is told which devices a worker may use, and through which files it reaches them.

use std::fs;
use std::path::{Path, PathBuf};

use aquifer_core::{Slice, Vendor};

use super::{Found, Visibility};

/// By what a variable names a device. Mixing them up shows a worker somebody else's device without any error.
#[derive(Clone, Copy, Debug)]
enum By {
    /// Its unique name.
    Uuid,
    /// The number by which the runtime counts it.
    Logical,
    /// The number of its device node.
    Physical,
}

/// One variable: its name, what it lists, and what it says if a worker has no device.
type Variable = (&'static str, By, &'static str);

struct Rules {
    /// Read by the runtime within the process.
    variables: &'static [Variable],
    /// Read by the vendor's container runtime, on the node.
    runtime: &'static [Variable],
    /// What must be set beside them.
    fixed: &'static [(&'static str, &'static str)],
    /// Device nodes of a device; `{}` is its physical number.
    nodes: &'static [&'static str],
    /// Device nodes that every program needs, as far as a machine has them. Source: gpustack/runtime `deployer/cdi`.
    common: &'static [&'static str],
    /// Whether programs reach it through `/dev/dri` too.
    dri: bool,
    /// Whether the runtime counts the devices that it can open, from 0, and not all that there are.
    counts_its_own: bool,
    /// Whether the runtime is known to pass over devices whose nodes under `/dev/dri` are not there, and to count the others.
    passes_over: bool,
    /// What of the driver programs need beside what their image has.
    files: &'static [&'static str],
}

const NONE: Rules = Rules {
    variables: &[],
    runtime: &[],
    fixed: &[],
    nodes: &[],
    common: &[],
    dri: false,
    counts_its_own: true,
    passes_over: false,
    files: &[],
};

const NVIDIA: Rules = Rules {
    variables: &[("CUDA_VISIBLE_DEVICES", By::Uuid, "")],
    runtime: &[("NVIDIA_VISIBLE_DEVICES", By::Uuid, "void")],
    nodes: &["/dev/nvidia{}"],
    common: &["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"],
    ..NONE
};
const AMD: Rules = Rules {
    variables: &[("HIP_VISIBLE_DEVICES", By::Logical, "")],
    runtime: &[("AMD_VISIBLE_DEVICES", By::Logical, "none")],
    nodes: &["/dev/dri/renderD{}"],
    common: &["/dev/kfd"],
    // A node that is there and cannot be opened (EACCES) ends its search for devices. Source: `topology.c` of ROCm/ROCR-Runtime,
    // libhsakmt, topology_sysfs_check_node_supported.
    passes_over: true,
    ..NONE
};
/// The trap: within a process devices go by logical number, in containers and under `/dev` by physical number.
const ASCEND: Rules = Rules {
    variables: &[("ASCEND_RT_VISIBLE_DEVICES", By::Logical, "")],
    runtime: &[("ASCEND_VISIBLE_DEVICES", By::Physical, "void")],
    nodes: &["/dev/davinci{}"],
    common: &[
        "/dev/davinci_manager",
        "/dev/devmm_svm",
        "/dev/hisi_hdc",
        "/dev/dvpp_cmdlist",
        "/dev/uburma",
        "/dev/ummu",
    ],
    files: &[
        "/usr/local/Ascend/driver",
        "/usr/local/dcmi",
        "/usr/local/bin/npu-smi",
        "/etc/ascend_install.info",
    ],
    ..NONE
};
const CAMBRICON: Rules = Rules {
    variables: &[("MLU_VISIBLE_DEVICES", By::Logical, "")],
    runtime: &[("CAMBRICON_VISIBLE_DEVICES", By::Physical, "")],
    nodes: &["/dev/cambricon_dev{}", "/dev/cambricon_ipcm{}"],
    common: &["/dev/cambricon_ctl"],
    ..NONE
};
const HYGON: Rules = Rules {
    variables: &[("HIP_VISIBLE_DEVICES", By::Logical, "")],
    runtime: &[("HYGON_VISIBLE_DEVICES", By::Logical, "")],
    common: &["/dev/kfd", "/dev/mkfd"],
    dri: true,
    ..NONE
};
const MOORE_THREADS: Rules = Rules {
    variables: &[("MUSA_VISIBLE_DEVICES", By::Logical, "")],
    runtime: &[("MTHREADS_VISIBLE_DEVICES", By::Logical, "none")],
    dri: true,
    ..NONE
};
const ILUVATAR: Rules = Rules {
    variables: &[("CUDA_VISIBLE_DEVICES", By::Logical, "")],
    runtime: &[("IX_VISIBLE_DEVICES", By::Logical, "")],
    nodes: &["/dev/iluvatar{}"],
    common: &["/dev/itrctl"],
    ..NONE
};
const ENFLAME: Rules = Rules {
    variables: &[("TOPS_VISIBLE_DEVICES", By::Logical, "")],
    runtime: &[("ENFLAME_VISIBLE_DEVICES", By::Physical, "")],
    ..NONE
};
const METAX: Rules = Rules {
    variables: &[("CUDA_VISIBLE_DEVICES", By::Logical, "")],
    common: &["/dev/mxcd", "/dev/mxnd", "/dev/mxgd"],
    dri: true,
    ..NONE
};
const KUNLUNXIN: Rules = Rules {
    variables: &[("XPU_VISIBLE_DEVICES", By::Logical, ""), ("CUDA_VISIBLE_DEVICES", By::Logical, "")],
    nodes: &["/dev/xpu{}"],
    common: &["/dev/xpuctrl"],
    ..NONE
};
const BIREN: Rules = Rules {
    variables: &[("SUPA_VISIBLE_DEVICES", By::Logical, "")],
    runtime: &[("BIREN_VISIBLE_DEVICES", By::Logical, "")],
    nodes: &["/dev/biren/card_{}"],
    common: &["/dev/biren-m"],
    ..NONE
};
const INTEL: Rules = Rules {
    variables: &[("ZE_AFFINITY_MASK", By::Logical, "")],
    // Numbers are those of the bus's order, and not of the fastest first.
    fixed: &[("ZE_ENABLE_PCI_ID_DEVICE_ORDER", "1")],
    dri: true,
    ..NONE
};
const GAUDI: Rules = Rules {
    variables: &[("HABANA_VISIBLE_MODULES", By::Logical, "")],
    runtime: &[("HABANA_VISIBLE_DEVICES", By::Physical, "")],
    nodes: &["/dev/accel/accel{}", "/dev/accel/accel_controlD{}"],
    // Modules keep their numbers.
    counts_its_own: false,
    ..NONE
};
const T_HEAD: Rules = Rules {
    variables: &[("CUDA_VISIBLE_DEVICES", By::Logical, "")],
    runtime: &[("NVIDIA_VISIBLE_DEVICES", By::Logical, "void")],
    nodes: &["/dev/alixpu_ppu{}"],
    common: &["/dev/alixpu", "/dev/alixpu_ctl"],
    ..NONE
};

const fn rules(vendor: Vendor) -> &'static Rules {
    match vendor {
        Vendor::Cpu => &NONE,
        Vendor::Nvidia => &NVIDIA,
        Vendor::Amd => &AMD,
        Vendor::Ascend => &ASCEND,
        Vendor::Cambricon => &CAMBRICON,
        Vendor::Hygon => &HYGON,
        Vendor::MooreThreads => &MOORE_THREADS,
        Vendor::Iluvatar => &ILUVATAR,
        Vendor::Enflame => &ENFLAME,
        Vendor::MetaX => &METAX,
        Vendor::Kunlunxin => &KUNLUNXIN,
        Vendor::Biren => &BIREN,
        Vendor::Intel => &INTEL,
        Vendor::Gaudi => &GAUDI,
        Vendor::THead => &T_HEAD,
    }
}

/// Whether other devices may be hidden from a worker that has some: where devices are named by unique names, or keep their numbers.
/// A runtime that counts what it can open would give it others.
pub fn may_hide_others(vendor: Vendor) -> bool {
    let rules = rules(vendor);
    let by_name = rules.variables.iter().all(|(_, by, _)| matches!(by, By::Uuid));
    !rules.counts_its_own || (by_name && !rules.variables.is_empty())
}

/// Whether other devices may be hidden from a worker that has some by a directory that has its own nodes and no others. Its
/// runtime then counts these from 0.
pub fn passes_over_others(vendor: Vendor) -> bool {
    rules(vendor).passes_over
}

/// Name of the variable that tells a vendor's runtime which devices to use.
pub fn visible_devices_variable(vendor: Vendor) -> Option<&'static str> {
    rules(vendor).variables.first().map(|(name, ..)| *name)
}

/// Makes a worker see exactly these devices of a vendor, in this order.
pub fn show(vendor: Vendor, devices: &[&Found]) -> Visibility {
    let rules = rules(vendor);
    let variables = rules.variables.iter().map(|variable| value(variable, devices));
    let fixed = rules.fixed.iter().map(|(variable, value)| (variable.to_string(), value.to_string()));
    let mut device_nodes: Vec<PathBuf> =
        devices.iter().flat_map(|device| device.nodes.iter().cloned()).collect();
    if !devices.is_empty() {
        device_nodes.extend(rules.common.iter().map(PathBuf::from));
    }
    let env = variables.chain(for_runtime(vendor, devices)).chain(fixed).collect();
    Visibility { env, device_nodes, ..Visibility::default() }
}

/// What tells a vendor's container runtime, which counts all devices of the node, to let in exactly these.
pub fn for_runtime(vendor: Vendor, devices: &[&Found]) -> Vec<(String, String)> {
    rules(vendor).runtime.iter().map(|variable| value(variable, devices)).collect()
}

fn value((variable, by, none): &Variable, devices: &[&Found]) -> (String, String) {
    let name = |device: &&Found| match by {
        By::Uuid => device.uuid.to_string(),
        By::Logical => device.logical.to_string(),
        By::Physical => device.physical.to_string(),
    };
    let names: Vec<String> = devices.iter().map(name).collect();
    let value = if devices.is_empty() { none.to_string() } else { names.join(",") };
    (variable.to_string(), value)
}

/// Makes a worker see its devices where there are no others: there most runtimes count these alone.
pub fn show_alone(held: &[&Found], show: impl FnOnce(&[&Found]) -> Visibility, vendor: Vendor) -> Visibility {
    let number = |device: &Found| held.iter().filter(|other| other.logical < device.logical).count() as u32;
    let numbered = |device: &&Found| match rules(vendor).counts_its_own {
        true => Found { logical: number(device), ..(*device).clone() },
        false => (*device).clone(),
    };
    let numbered: Vec<Found> = held.iter().map(numbered).collect();
    let mut shown = show(&numbered.iter().collect::<Vec<&Found>>());
    for (variable, value) in for_runtime(vendor, held) {
        shown
            .env
            .iter_mut()
            .filter(|(known, _)| *known == variable)
            .for_each(|known| known.1.clone_from(&value));
    }
    shown
}

/// Whether machines whose driver runs as it should may have no such node: older series and drivers do without.
pub fn may_be_absent(node: &Path) -> bool {
    const SOME: [&str; 8] =
        ["nvidia-uvm-tools", "mkfd", "dvpp_cmdlist", "uburma", "ummu", "itrctl", "mxnd", "mxgd"];
    node.file_name().and_then(|name| name.to_str()).is_some_and(|name| SOME.contains(&name))
}

/// What of a vendor's driver programs in a container need to see of the node.
pub fn driver_files(vendor: Vendor) -> impl Iterator<Item = PathBuf> {
    rules(vendor).files.iter().map(PathBuf::from)
}

/// How a worker is kept to its share of each device, where the vendor's runtime does that by itself.
///
/// NVIDIA's multi-process service does; without its daemon (`nvidia-cuda-mps-control -d`) the variables do nothing.
pub fn share(vendor: Vendor, slice: Slice) -> Vec<(String, String)> {
    if vendor != Vendor::Nvidia {
        return Vec::new();
    }
    let percent = slice.compute_milli.div_ceil(10).clamp(1, 100);
    let memory_mib = (slice.memory_bytes >> 20).max(1);
    vec![
        ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE".into(), percent.to_string()),
        ("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT".into(), format!("0={memory_mib}M")),
    ]
}

/// The device nodes of one device, by the number of its node and its place on the bus.
pub fn nodes(vendor: Vendor, physical: u32, place: &str, sysfs: &Path) -> Vec<PathBuf> {
    let rules = rules(vendor);
    let own = rules.nodes.iter().map(|pattern| pattern.replace("{}", &physical.to_string()).into());
    let dri = sysfs.join("bus/pci/devices").join(place).join("drm");
    let mut of_dri: Vec<PathBuf> = match rules.dri {
        true => fs::read_dir(dri).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect(),
        false => Vec::new(),
    }
    .iter()
    .filter_map(|name| name.to_str())
    .filter(|name| name.starts_with("card") || name.starts_with("renderD"))
    .map(|name| Path::new("/dev/dri").join(name))
    .collect();
    of_dri.sort();
    own.chain(of_dri).collect()
}
