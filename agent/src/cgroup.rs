//! Control groups: where the machine lets us, a worker gets the processor time and memory it holds, and no more.
//!
//! Version 2 with delegated controllers, version 1, and the hybrid of both; what cannot be had is left out, and
//! [`Limits`] says what is enforced. Groups are made below the agent's own, in one named `aquifer`, and every group
//! that is made here is removed here. No other group is touched.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::process;

/// What is enforced on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Processor time.
    pub cpu: bool,
    /// Memory.
    pub memory: bool,
}

/// Finds out what an agent that runs as this process does can enforce.
pub fn enforceable() -> Limits {
    Cgroups::open().limits()
}

/// The groups under which those of workers are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cgroups {
    unified: Option<PathBuf>,
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
}

/// The groups of one worker at a time: one of version 2, or up to two of version 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    unified: Option<PathBuf>,
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
}

/// Groups that were made, with their limits, until this is dropped.
pub(crate) struct Made {
    group: Group,
    cpus_milli: u32,
    memory_bytes: u64,
    join: Vec<File>,
}

/// Where the hierarchies are mounted, and the agent's own place in each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Places {
    unified: Option<PathBuf>,
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
}

impl Cgroups {
    /// Finds out what can be enforced, by making the parent groups.
    pub fn open() -> Cgroups {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let places = places(&read("/proc/self/mounts"), &read("/proc/self/cgroup"));
        if let Some(unified) = places.unified.as_deref().and_then(delegate) {
            return Cgroups { unified: Some(unified), ..Cgroups::default() };
        }
        let parent = |place: Option<PathBuf>, limit: &str| {
            let dir = place?.join("aquifer");
            let made = make(&dir).is_ok() && OpenOptions::new().write(true).open(dir.join(limit)).is_ok();
            made.then_some(dir)
        };
        Cgroups {
            unified: None,
            memory: parent(places.memory, "memory.limit_in_bytes"),
            cpu: parent(places.cpu, "cpu.cfs_quota_us"),
        }
    }

    pub fn limits(&self) -> Limits {
        let unified = self.unified.is_some();
        Limits { cpu: unified || self.cpu.is_some(), memory: unified || self.memory.is_some() }
    }

    /// The group of this name, for one worker at a time; `None` if nothing can be enforced.
    pub fn group(&self, name: &str) -> Option<Group> {
        let group = |parent: &Option<PathBuf>| parent.as_ref().map(|parent| parent.join(name));
        let group =
            Group { unified: group(&self.unified), memory: group(&self.memory), cpu: group(&self.cpu) };
        let any = group.dirs().next().is_some();
        any.then_some(group)
    }
}

/// So many thousandths of a core, as microseconds of every so many. Who has used up their share waits for the next period: with the
/// kernel's own tenth of a second half a core could stand still for 50 ms, for which all ranks of its step wait. A share is
/// 1 ms at least. Source: Documentation/scheduler/sched-bwc.rst.
fn share(cpus_milli: u32) -> [u64; 2] {
    let milli = u64::from(cpus_milli.max(1));
    let period_us = 1_000_000u64.div_ceil(milli).max(20_000);
    [milli * period_us / 1000, period_us]
}

impl Group {
    /// Makes the groups with their limits, 0 for none.
    pub fn make(&self, cpus_milli: u32, memory_bytes: u64) -> io::Result<Made> {
        let [quota_us, period_us] = share(cpus_milli);
        let mut made = Made { group: self.clone(), cpus_milli, memory_bytes, join: Vec::new() };
        for dir in self.dirs() {
            make(dir)?;
            made.join.push(OpenOptions::new().write(true).open(dir.join("cgroup.procs"))?);
        }
        if let (Some(dir), true) = (&self.unified, 0 < cpus_milli) {
            fs::write(dir.join("cpu.max"), format!("{quota_us} {period_us}"))?;
        }
        if let (Some(dir), true) = (&self.unified, 0 < memory_bytes) {
            fs::write(dir.join("memory.max"), memory_bytes.to_string())?;
            let _ = fs::write(dir.join("memory.swap.max"), "0");
        }
        if let (Some(dir), true) = (&self.cpu, 0 < cpus_milli) {
            fs::write(dir.join("cpu.cfs_period_us"), period_us.to_string())?;
            fs::write(dir.join("cpu.cfs_quota_us"), quota_us.to_string())?;
        }
        if let (Some(dir), true) = (&self.memory, 0 < memory_bytes) {
            fs::write(dir.join("memory.limit_in_bytes"), memory_bytes.to_string())?;
            let _ = fs::write(dir.join("memory.memsw.limit_in_bytes"), memory_bytes.to_string());
        }
        Ok(made)
    }

    /// Whether the kernel killed a member because the group's memory was used up.
    pub fn ran_out_of_memory(&self) -> bool {
        let counted = |dir: &Option<PathBuf>, file: &str| {
            let text =
                dir.as_ref().and_then(|dir| fs::read_to_string(dir.join(file)).ok()).unwrap_or_default();
            let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
            count.is_some_and(|count| count.trim() != "0")
        };
        counted(&self.unified, "memory.events") || counted(&self.memory, "memory.oom_control")
    }

    /// Sends SIGKILL to all members. Returns how many there were.
    pub fn kill(&self) -> usize {
        let mut members: Vec<i32> = self.dirs().flat_map(|dir| members(dir)).collect();
        members.sort_unstable();
        members.dedup();
        let at_once =
            self.unified.as_ref().is_some_and(|dir| fs::write(dir.join("cgroup.kill"), "1").is_ok());
        if !at_once {
            members.iter().for_each(|pid| process::kill(*pid));
        }
        members.len()
    }

    /// Removes the groups; one with members stays.
    pub fn remove(&self) {
        for dir in self.dirs() {
            let _ = fs::remove_dir(dir);
        }
    }

    fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.unified, &self.memory, &self.cpu].into_iter().flatten()
    }
}

impl Made {
    /// Whether a worker with these limits can take it over from one that has ended. What that one left in memory,
    /// files in `/dev/shm` say, still counts: so nobody takes over a limit of memory.
    pub fn suits(&self, group: &Group, cpus_milli: u32, memory_bytes: u64) -> bool {
        (&self.group, self.cpus_milli, self.memory_bytes) == (group, cpus_milli, memory_bytes)
            && memory_bytes == 0
    }

    /// A process joins by writing `0` to each of these files.
    pub fn join(&self) -> &[File] {
        &self.join
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        self.group.remove();
    }
}

/// Makes the agent's own group of version 2 a parent of groups with limits; `None` if that is not ours to do.
///
/// A group with limited children may hold no processes itself, but for the root: so the agent moves one level down.
fn delegate(own: &Path) -> Option<PathBuf> {
    const CONTROLLERS: &str = "+cpu +memory";
    let has = |dir: &Path, file: &str| {
        let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
        ["cpu", "memory"].iter().all(|name| text.split_ascii_whitespace().any(|word| word == *name))
    };
    if !has(own, "cgroup.controllers") {
        return None;
    }
    let own = if own.ends_with("aquifer-agent") { own.parent()? } else { own };
    let workers = own.join("aquifer");
    make(&workers).ok()?;
    if !has(own, "cgroup.subtree_control")
        && fs::write(own.join("cgroup.subtree_control"), CONTROLLERS).is_err()
    {
        let agent = own.join("aquifer-agent");
        make(&agent).ok()?;
        fs::write(agent.join("cgroup.procs"), "0").ok()?;
        if fs::write(own.join("cgroup.subtree_control"), CONTROLLERS).is_err() {
            let _ = fs::write(own.join("cgroup.procs"), "0");
            let _ = fs::remove_dir(agent);
        }
    }
    let _ = fs::write(workers.join("cgroup.subtree_control"), CONTROLLERS);
    has(&workers, "cgroup.subtree_control").then_some(workers)
}

fn make(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn members(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|pid| pid.parse().ok()).collect()
}

/// Reads `/proc/self/mounts` and `/proc/self/cgroup`.
fn places(mounts: &str, own: &str) -> Places {
    let own_path = |controller: &str| {
        own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let found = fields.next()?.split(',').any(|name| name == controller);
            found.then(|| fields.next().unwrap_or("/").trim_start_matches('/'))
        })
    };
    let mut places = Places::default();
    for mount in mounts.lines() {
        let fields: Vec<&str> = mount.split(' ').collect();
        let [_, at, kind, options, ..] = fields[..] else { continue };
        let has = |controller: &str| options.split(',').any(|option| option == controller);
        // Within a namespace the path may name a place that cannot be seen: then the mount is the agent's own.
        let place = |controller: &str| {
            let place = Path::new(at).join(own_path(controller)?);
            Some(if place.is_dir() { place } else { PathBuf::from(at) })
        };
        match kind {
            "cgroup2" => places.unified = place(""),
            "cgroup" if has("memory") => places.memory = place("memory"),
            "cgroup" if has("cpu") => places.cpu = place("cpu"),
            _ => (),
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_what_was_asked_for_and_one_that_kernels_take() {
        assert_eq!([500, 2000, 1].map(share), [[10_000, 20_000], [40_000, 20_000], [1000, 1_000_000]]);
        for milli in 1..=128_000 {
            let [quota_us, period_us] = share(milli);
            let error = (quota_us * 1000).abs_diff(u64::from(milli) * period_us);
            assert!(
                1000 <= quota_us && period_us <= 1_000_000 && error < 1000,
                "{milli}: {quota_us} of {period_us}"
            );
        }
    }

    #[test]
    fn a_hybrid_machine_has_its_limits_in_version_1() {
        let mounts = "cgroup /cg/cpu cgroup rw,relatime,cpu,cpuacct 0 0\n\
                      cgroup /cg/memory cgroup rw,relatime,memory 0 0\n\
                      cgroup /cg/systemd cgroup rw,name=systemd 0 0\n\
                      cgroup2 /cg/unified cgroup2 rw,relatime 0 0\n";
        let own = "4:memory:/a/b\n1:cpu,cpuacct:/\n0::/\n";
        let expected = Places {
            unified: Some("/cg/unified".into()),
            memory: Some("/cg/memory".into()),
            cpu: Some("/cg/cpu".into()),
        };
        assert_eq!(places(mounts, own), expected);
    }

    #[test]
    fn a_machine_without_control_groups_enforces_nothing() {
        assert_eq!(places("proc /proc proc rw 0 0\n", ""), Places::default());
        let none = Cgroups::default();
        assert_eq!(none.limits(), Limits::default());
        assert_eq!(none.group("1"), None);
    }
}
