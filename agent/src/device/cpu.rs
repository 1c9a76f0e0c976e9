//! Processor cores as devices: each of them one, pinned.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aquifer_core::{DeviceClass, Fault, Isolation, Vendor};

use super::roots::read_number;
use super::{Backend, DeviceError, Discovery, Found, Visibility, slug};
use crate::host::Host;

/// The cores of a node.
pub struct Cpu {
    host_name: String,
    class: Arc<DeviceClass>,
    /// With the socket of each, from 0, where there are several.
    cores: Vec<(usize, Option<u16>)>,
}

impl Cpu {
    /// Offers some of the agent's cores; an empty list means all. Each has an equal share of the node's memory. Those of one
    /// socket are an island, where there are several.
    ///
    /// * `sysfs`: says in which socket a core is.
    ///
    /// # Errors
    ///
    /// Names a core that the agent may not use.
    pub fn new(host: &Host, cores: &[usize], sysfs: &Path) -> Result<Cpu, DeviceError> {
        if let Some(core) = cores.iter().find(|core| !host.cores.contains(core)) {
            let own: Vec<String> = host.cores.iter().map(|core| core.to_string()).collect();
            let why = format!("the agent may not use core {core}, but {}", own.join(", "));
            return Err(DeviceError::Choice { text: "cpu".to_string(), why });
        }
        let mut cores = if cores.is_empty() { host.cores.clone() } else { cores.to_vec() };
        cores.sort_unstable();
        cores.dedup();
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let class = DeviceClass {
            vendor: Vendor::Cpu,
            model: slug_of_cpu(&cpuinfo, std::env::consts::ARCH).into(),
            memory_bytes: host.memory_bytes / host.cores.len().max(1) as u64,
        };
        let cores = sockets(sysfs, &cores);
        Ok(Cpu { host_name: host.name.clone(), class: Arc::new(class), cores })
    }
}

impl Backend for Cpu {
    fn vendor(&self) -> Vendor {
        Vendor::Cpu
    }

    fn discover(&mut self) -> Discovery {
        let own = crate::host::own_cores();
        let device = |(core, socket): &(usize, Option<u16>)| Found {
            class: self.class.clone(),
            uuid: format!("cpu-{}-{core}", self.host_name).into(),
            fault: (!own.contains(core)).then(|| Fault::faulty("taken from the agent")),
            island: *socket,
            isolation: Isolation::Advisory,
            parts: None,
            speed_milli: None,
            memory_gbs: None,
            is_used: false,
            one_of: 1,
            place: format!("{core:05}"),
            logical: *core as u32,
            physical: *core as u32,
            nodes: Vec::<PathBuf>::new(),
        };
        Discovery { devices: self.cores.iter().map(device).collect(), findings: Vec::new() }
    }

    /// The kernel drives the cores.
    fn measured_under(&self) -> Option<String> {
        Some(rustix::system::uname().release().to_string_lossy().into_owned())
    }

    fn visibility(&self, devices: &[&Found]) -> Visibility {
        let cpu_affinity: Vec<usize> = devices.iter().map(|device| device.logical as usize).collect();
        let threads = || ("OMP_NUM_THREADS".to_string(), cpu_affinity.len().to_string());
        let env = if cpu_affinity.is_empty() { Vec::new() } else { vec![threads()] };
        Visibility { env, cpu_affinity, ..Visibility::default() }
    }
}

/// The socket of each core; none where all are in one, or where the kernel does not say. Source: `Documentation/ABI/stable/
/// sysfs-devices-system-cpu` of Linux.
fn sockets(sysfs: &Path, cores: &[usize]) -> Vec<(usize, Option<u16>)> {
    let socket = |core: &usize| {
        let file = format!("devices/system/cpu/cpu{core}/topology/physical_package_id");
        (*core, read_number(sysfs.join(file)))
    };
    let of_cores: Vec<(usize, Option<u64>)> = cores.iter().map(socket).collect();
    let all: BTreeSet<u64> = of_cores.iter().filter_map(|(_, socket)| *socket).collect();
    let number = |socket: u64| all.iter().position(|it| *it == socket && 1 < all.len()).map(|at| at as u16);
    of_cores.into_iter().map(|(core, socket)| (core, socket.and_then(number))).collect()
}

/// Reads `0-3+6`.
///
/// # Errors
///
/// Says which part is no core and no range.
pub fn parse_cores(text: &str) -> Result<Vec<usize>, String> {
    let mut cores = Vec::new();
    for part in text.split('+') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) if first <= last && last < 1024 => cores.extend(first..=last),
            _ => return Err(format!("{part:?} is no core and no range of cores below 1024")),
        }
    }
    cores.sort_unstable();
    cores.dedup();
    Ok(cores)
}

/// Model of a processor from `/proc/cpuinfo`, with its widest vector instructions: `epyc-9b14-avx512`.
pub fn slug_of_cpu(cpuinfo: &str, arch: &str) -> String {
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_string())
        })
    };
    let noise = ["amd", "intel", "r", "tm", "cpu", "processor", "core"];
    let name = field("model name").unwrap_or_default();
    let name = name.split('@').next().unwrap_or_default().to_lowercase();
    let name = name.split(" with ").next().unwrap_or_default();
    let is_count = |word: &str| word.strip_suffix("-core").is_some_and(|count| count.parse::<u32>().is_ok());
    let words: Vec<String> = name.split_whitespace().filter(|word| !is_count(word)).map(slug).collect();
    let words = words
        .iter()
        .flat_map(|word| word.split('-'))
        .filter(|word| !word.is_empty() && !noise.contains(word));
    let mut parts: Vec<&str> = words.collect();
    if parts.is_empty() {
        parts.push(arch);
    }
    let flags = field("flags").or(field("Features")).unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|known| known == flag);
    let widest = [("avx512f", "avx512"), ("avx2", "avx2"), ("avx", "avx"), ("sve", "sve"), ("asimd", "neon")];
    parts.extend(widest.iter().find(|(flag, _)| has(flag)).map(|(_, name)| *name));
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_has_a_short_and_stable_name() {
        let slug = |name: &str, flags: &str| {
            slug_of_cpu(&format!("model name\t: {name}\nflags\t\t: {flags}\n"), "x86_64")
        };
        assert_eq!(slug("AMD EPYC", "sse avx avx2 avx512f"), "epyc-avx512");
        assert_eq!(slug("AMD EPYC 9B14 96-Core Processor", "avx avx2 avx512f"), "epyc-9b14-avx512");
        assert_eq!(slug("Intel(R) Xeon(R) Platinum 8488C", "avx2 avx512f"), "xeon-platinum-8488c-avx512");
        assert_eq!(slug("Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz", "avx avx2"), "i7-8650u-avx2");
        assert_eq!(slug("AMD Ryzen 7 7840U w/ Radeon 780M", ""), "ryzen-7-7840u-w-radeon-780m");
        assert_eq!(slug_of_cpu("Features\t: fp asimd sve\n", "aarch64"), "aarch64-sve");
        assert_eq!(slug_of_cpu("", "riscv64"), "riscv64");
    }

    #[test]
    fn cores_are_read_as_numbers_and_ranges() {
        assert_eq!(parse_cores("0-3+6"), Ok(vec![0, 1, 2, 3, 6]));
        assert_eq!(parse_cores("5+5+4"), Ok(vec![4, 5]));
        for bad in ["", "3-1", "x", "1024", "0-", "1+"] {
            assert!(parse_cores(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_core_that_the_agent_may_not_use_is_refused() {
        let host = Host { cores: vec![0, 2], ..Host::read() };
        let error = Cpu::new(&host, &[2, 1], Path::new("/sys")).err().unwrap();
        assert_eq!(error.to_string(), "devices \"cpu\": the agent may not use core 1, but 0, 2");
    }

    #[test]
    fn a_worker_is_pinned_to_the_cores_that_it_holds() {
        let host = Host { cores: vec![0, 1, 2, 3], memory_bytes: 4 << 30, name: "a".into(), ..Host::read() };
        let mut cpu = Cpu::new(&host, &[1, 3], Path::new("/sys")).unwrap();
        let found = cpu.discover().devices;
        let uuids: Vec<&str> = found.iter().map(|found| &*found.uuid).collect();
        assert_eq!(uuids, ["cpu-a-1", "cpu-a-3"]);
        assert_eq!(found[0].class.memory_bytes, 1 << 30);
        let shown = cpu.visibility(&[&found[0], &found[1]]);
        assert_eq!(shown.cpu_affinity, [1, 3]);
        assert_eq!(shown.env, [("OMP_NUM_THREADS".to_string(), "2".to_string())]);
        assert_eq!(cpu.visibility(&[]), Visibility::default());
    }

    #[test]
    fn cores_of_one_socket_are_an_island_where_there_are_several() {
        let dir = tempfile::tempdir().unwrap();
        let put = |core: usize, socket: &str| {
            let topology = dir.path().join(format!("devices/system/cpu/cpu{core}/topology"));
            std::fs::create_dir_all(&topology).unwrap();
            std::fs::write(topology.join("physical_package_id"), socket).unwrap();
        };
        put(0, "36\n");
        put(1, "36\n");
        assert_eq!(sockets(dir.path(), &[0, 1, 2]), [(0, None), (1, None), (2, None)]);
        put(2, "7\n");
        assert_eq!(sockets(dir.path(), &[0, 1, 2, 3]), [(0, Some(1)), (1, Some(1)), (2, Some(0)), (3, None)]);
    }
}
