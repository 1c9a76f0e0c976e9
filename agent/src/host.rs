//! What the node offers besides devices: processor time, memory, its name.

use std::fs;
use std::path::Path;

use rustix::thread::CpuSet;

/// Facts about the node, as far as this process may use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Host name.
    pub name: String,
    /// Identity of this boot of the machine.
    pub boot_id: String,
    /// Cores that this process may run on, ascending.
    pub cores: Vec<usize>,
    /// Processor time, in thousandths of a core: the cores, or less where a control group says so.
    pub cpus_milli: u32,
    /// Main memory in bytes: that of the machine, or less where a control group says so.
    pub memory_bytes: u64,
}

impl Host {
    /// Reads the facts; what cannot be read is 0 or empty.
    pub fn read() -> Host {
        let cores = own_cores();
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let quota_milli = limit_files("cpu", &["cpu.max", "cpu.cfs_quota_us"]).filter_map(|(dir, file)| {
            match file.as_str() {
                "cpu.max" => parse_cpu_max(&read(&format!("{dir}/{file}"))),
                _ => parse_cfs(&read(&format!("{dir}/{file}")), &read(&format!("{dir}/cpu.cfs_period_us"))),
            }
        });
        let limit_bytes = limit_files("memory", &["memory.max", "memory.limit_in_bytes"])
            .filter_map(|(dir, file)| read(&format!("{dir}/{file}")).trim().parse().ok());
        let cpus_milli = (cores.len() as u32).saturating_mul(1000);
        let memory_bytes = parse_mem_total(&read("/proc/meminfo")).unwrap_or(0);
        Host {
            name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            boot_id: crate::process::boot_id().unwrap_or_default(),
            cpus_milli: quota_milli.min().map_or(cpus_milli, |quota| quota.min(cpus_milli)),
            memory_bytes: limit_bytes.min().map_or(memory_bytes, |limit: u64| limit.min(memory_bytes)),
            cores,
        }
    }
}

/// Cores that this process may run on, ascending.
pub fn own_cores() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None).unwrap_or_default();
    (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
}

/// The set of some of this process's cores.
///
/// # Errors
///
/// Names the core that this process may not run on.
pub(crate) fn cpu_set(cores: &[usize]) -> Result<CpuSet, String> {
    let own = own_cores();
    let mut set = CpuSet::new();
    for core in cores {
        if !own.contains(core) {
            return Err(format!("core {core}: not among the cores of this node's agent"));
        }
        set.set(*core);
    }
    Ok(set)
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
pub fn parse_mem_total(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// `cpu.max` of version 2, in thousandths of a core; `None` if there is no limit.
pub fn parse_cpu_max(text: &str) -> Option<u32> {
    let (quota, period) = text.trim().split_once(' ')?;
    parse_cfs(quota, period)
}

/// Quota and period of version 1, in thousandths of a core; `None` if there is no limit.
pub fn parse_cfs(quota_us: &str, period_us: &str) -> Option<u32> {
    let quota_us: i64 = quota_us.trim().parse().ok()?;
    let period_us: i64 = period_us.trim().parse().ok()?;
    (0 < quota_us && 0 < period_us).then(|| (quota_us.saturating_mul(1000) / period_us).max(1) as u32)
}

/// Directory and name of every file in which a control group of this process could state a limit: its own and those
/// above it.
fn limit_files(controller: &str, names: &[&str]) -> impl Iterator<Item = (String, String)> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut found = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let roots = match controllers {
            "" => ["/sys/fs/cgroup".to_string(), "/sys/fs/cgroup/unified".to_string()],
            list if list.split(',').any(|name| name == controller) => {
                [format!("/sys/fs/cgroup/{controller}"), format!("/sys/fs/cgroup/{list}")]
            }
            _ => continue,
        };
        let groups = Path::new(path).ancestors().map(|group| group.to_string_lossy().into_owned());
        for group in groups {
            for root in &roots {
                let dir = format!("{root}{}", group.trim_end_matches('/'));
                let existing = names.iter().filter(|name| Path::new(&dir).join(name).exists());
                found.extend(existing.map(|name| (dir.clone(), name.to_string())));
            }
        }
    }
    found.sort();
    found.dedup();
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(parse_mem_total("MemTotal:       24689012 kB\nMemFree: 1 kB\n"), Some(24_689_012 << 10));
        assert_eq!(parse_mem_total("MemFree: 1 kB\n"), None);
        assert_eq!(parse_mem_total("MemTotal: many kB\n"), None);
    }

    #[test]
    fn a_quota_is_in_thousandths_of_a_core() {
        assert_eq!(parse_cpu_max("150000 100000\n"), Some(1500));
        assert_eq!(parse_cpu_max("max 100000\n"), None);
        assert_eq!(parse_cfs("-1\n", "100000\n"), None);
        assert_eq!(parse_cfs("50000", "100000"), Some(500));
        assert_eq!(parse_cfs("50000", "0"), None);
    }

    #[test]
    fn this_machine_has_a_name_cores_and_memory() {
        let host = Host::read();
        assert!(!host.name.is_empty() && !host.boot_id.is_empty());
        assert!(!host.cores.is_empty() && 0 < host.cpus_milli && 1 << 20 < host.memory_bytes);
    }

    #[test]
    fn a_core_that_is_not_ours_is_named() {
        let error = cpu_set(&[own_cores()[0], 1023]).unwrap_err();
        assert_eq!(error, "core 1023: not among the cores of this node's agent");
    }
}
