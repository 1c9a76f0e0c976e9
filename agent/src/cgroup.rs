//! Control groups: where the machine lets us, a worker gets the processor time and memory it holds, and no more.
//!
//! Version 2 with delegated controllers, version 1, and the hybrid of both; what cannot be had is left out, and
//! [`Limits`] says what is enforced. Groups are made below the agent's own, or below one that it was given, in one
//! named `aquifer`, and every group that is made here is removed here. No other group is touched.
//!
//! In version 2 a group with limited children holds no process itself. So systemd can start an agent again while its
//! workers run only if their groups are not below the agent's own (it says `219/CGROUP` otherwise): that is what a group
//! of another unit is for.

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
    Cgroups::below_own().limits()
}

/// Whether this machine limits processor time and memory in version 2, for whoever has a group of their own there.
pub fn is_unified() -> bool {
    let root = read_places().root;
    root.is_some_and(|root| has_controllers(&root, "cgroup.controllers"))
}

/// The groups under which those of workers are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cgroups {
    unified: Option<PathBuf>,
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
    /// The group of supervisors, if it is not the agent's own.
    supervisors: Option<PathBuf>,
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
    /// Where version 2 is mounted.
    root: Option<PathBuf>,
    unified: Option<PathBuf>,
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
}

impl Cgroups {
    /// Finds out what can be enforced below the agent's own groups, by making the parent groups.
    pub fn below_own() -> Cgroups {
        let places = read_places();
        if let Some(workers) = places.unified.as_deref().and_then(|own| delegate(own, Movers::This)) {
            if workers.parent().is_some_and(|own| own.extension() == Some("service".as_ref())) {
                tracing::warn!(
                    "systemd cannot start this agent again while workers run: see `--workers-group` and docs/operations.md"
                );
            }
            return Cgroups { unified: Some(workers), ..Cgroups::default() };
        }
        let parent = |place: Option<PathBuf>, limit: &str| {
            let dir = place?.join("aquifer");
            let made = make(&dir).is_ok() && OpenOptions::new().write(true).open(dir.join(limit)).is_ok();
            made.then_some(dir)
        };
        let (memory, cpu) =
            (parent(places.memory, "memory.limit_in_bytes"), parent(places.cpu, "cpu.cfs_quota_us"));
        Cgroups { memory, cpu, ..Cgroups::default() }
    }

    /// The same below a group of version 2, given as `/proc/self/cgroup` has it, which is for workers and supervisors alone.
    /// Where version 2 limits nothing, below the agent's own.
    ///
    /// # Errors
    /// Says what stands against it.
    pub fn below(group: &Path) -> Result<Cgroups, String> {
        match read_places().root {
            Some(root) if has_controllers(&root, "cgroup.controllers") => Cgroups::below_in(&root, group),
            _ => Ok(Cgroups::below_own()),
        }
    }

    fn below_in(root: &Path, group: &Path) -> Result<Cgroups, String> {
        let dir = root.join(group.strip_prefix("/").unwrap_or(group));
        if !dir.is_dir() {
            return Err(format!("there is no {}: is its unit started?", dir.display()));
        }
        let workers = delegate(&dir, Movers::All).ok_or_else(|| {
            let path = dir.display();
            format!("{path} is not for this process to divide: has its unit Delegate=yes, and is this root?")
        })?;
        let supervisors = Some(dir.join(BESIDE));
        Ok(Cgroups { unified: Some(workers), supervisors, ..Cgroups::default() })
    }

    pub fn limits(&self) -> Limits {
        let unified = self.unified.is_some();
        Limits { cpu: unified || self.cpu.is_some(), memory: unified || self.memory.is_some() }
    }

    /// Has a process that supervisors are forked from live where they belong.
    pub fn adopt(&self, pid: u32) {
        if let Some(group) = &self.supervisors
            && let Err(error) = fs::write(group.join("cgroup.procs"), pid.to_string())
        {
            tracing::warn!("supervisors stay in the agent's group: {}: {error}", group.display());
        }
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

/// The group beside that of workers, for the processes that a group which has become a parent held itself.
const BESIDE: &str = "aquifer-agent";

/// The processes that leave a group for it to become a parent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Movers {
    /// This one: others are not the agent's, and stand against it.
    This,
    All,
}

/// Makes a group of version 2 a parent of groups with limits, and returns the one for those of workers; `None` if that
/// is not ours to do.
fn delegate(parent: &Path, movers: Movers) -> Option<PathBuf> {
    const CONTROLLERS: &str = "+cpu +memory";
    if !has_controllers(parent, "cgroup.controllers") {
        return None;
    }
    let parent = if parent.ends_with(BESIDE) { parent.parent()? } else { parent };
    let (workers, beside) = (parent.join("aquifer"), parent.join(BESIDE));
    make(&workers).ok()?;
    let enable = || fs::write(parent.join("cgroup.subtree_control"), CONTROLLERS).is_ok();
    let is_parent = has_controllers(parent, "cgroup.subtree_control");
    match movers {
        Movers::All => {
            make(&beside).ok()?;
            // One that has ended meanwhile cannot be moved, and need not be.
            for pid in members(parent) {
                let _ = fs::write(beside.join("cgroup.procs"), pid.to_string());
            }
            (is_parent || enable()).then_some(())?;
        }
        Movers::This if !is_parent && !enable() => {
            make(&beside).ok()?;
            fs::write(beside.join("cgroup.procs"), "0").ok()?;
            if !enable() {
                let _ = fs::write(parent.join("cgroup.procs"), "0");
                let _ = fs::remove_dir(beside);
            }
        }
        Movers::This => (),
    }
    let _ = fs::write(workers.join("cgroup.subtree_control"), CONTROLLERS);
    has_controllers(&workers, "cgroup.subtree_control").then_some(workers)
}

/// Whether this file of a group of version 2 names the controllers that limits need.
fn has_controllers(dir: &Path, file: &str) -> bool {
    let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
    ["cpu", "memory"].iter().all(|name| text.split_ascii_whitespace().any(|word| word == *name))
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

fn read_places() -> Places {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    places(&read("/proc/self/mounts"), &read("/proc/self/cgroup"))
}

/// Of the contents of `/proc/self/mounts` and `/proc/self/cgroup`.
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
            "cgroup2" => (places.root, places.unified) = (Some(PathBuf::from(at)), place("")),
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
            root: Some("/cg/unified".into()),
            unified: Some("/cg/unified".into()),
            memory: Some("/cg/memory".into()),
            cpu: Some("/cg/cpu".into()),
        };
        assert_eq!(places(mounts, own), expected);
    }

    #[test]
    fn a_group_that_cannot_be_divided_is_named() {
        let root = tempfile::tempdir().unwrap();
        let refused = |group: &str| Cgroups::below_in(root.path(), Path::new(group)).unwrap_err();
        let dir = root.path().join("a.service");
        assert_eq!(refused("/a.service"), format!("there is no {}: is its unit started?", dir.display()));
        fs::create_dir(&dir).unwrap();
        for controllers in ["", "cpu pids", "cpu memory"] {
            // Files that stand in for the kernel's take no word, so the last one fails as well.
            fs::write(dir.join("cgroup.controllers"), controllers).unwrap();
            let why = refused("/a.service");
            assert!(why.contains("a.service is not for this process to divide"), "{controllers:?}: {why}");
        }
    }

    #[test]
    fn a_machine_without_control_groups_enforces_nothing() {
        assert_eq!(places("proc /proc proc rw 0 0\n", ""), Places::default());
        let none = Cgroups::default();
        assert_eq!(none.limits(), Limits::default());
        assert_eq!(none.group("1"), None);
    }
}
