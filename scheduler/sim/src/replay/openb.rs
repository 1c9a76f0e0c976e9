//! The public trace openb: 1,213 nodes with 6,212 GPUs of Alibaba, and lists of pods.
//!
//! Source: Alibaba cluster-trace-gpu-v2023, as data/csv of hkust-adsl/kubernetes-scheduler-simulator; Weng et al.,
//! "Beware of fragmentation: scheduling GPU-sharing workloads with fragmentation gradient descent", ATC 2023.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aquifer_core::{DeviceClass, Name, Vendor};

use super::input::{InputError, Row, Table, read_text};
use super::workload::{Job, MAX_DEVICES, Node, Spec, SpecTable, WHOLE, Want, Workload};

/// Shortest and longest run of a pod when it is replayed with departures, in milliseconds.
pub const RUN_MS: (u64, u64) = (60_000, 4 * 3_600_000);

/// An order of arrivals that the original's generator made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrivals {
    /// Place of each node in the order that breaks ties, by the node's position in the sorted list.
    pub permutation: Vec<u32>,
    /// Pods, as positions in the list sorted by name.
    pub pods: Vec<u32>,
}

/// Reads nodes and a list of pods from a directory of the trace.
///
/// * `list`: name of the list, such as `default` or `gpuspec20`.
///
/// # Errors
/// When a file lacks or says what it should not.
pub fn read(directory: &Path, list: &str) -> Result<Workload, InputError> {
    let mut workload = Workload::default();
    workload.queue("default");
    read_nodes(&find(directory, "openb_node_list_gpu_node")?, &mut workload)?;
    read_pods(&find(directory, &format!("openb_pod_list_{list}"))?, &mut workload)?;
    workload.refresh_allowed();
    workload.history = workload.count_specs();
    Ok(workload)
}

/// Names of the lists in a directory, sorted.
pub fn lists(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut lists: Vec<String> = names
        .filter_map(|name| Some(name.strip_prefix("openb_pod_list_")?.split('.').next()?.to_string()))
        .collect();
    lists.sort();
    lists.dedup();
    lists
}

/// The file, plain or compressed.
fn find(directory: &Path, stem: &str) -> Result<PathBuf, InputError> {
    let candidates = [format!("{stem}.csv"), format!("{stem}.csv.gz")].map(|name| directory.join(name));
    candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        let lists = lists(directory);
        let known = if lists.is_empty() { "none".into() } else { lists.join(", ") };
        InputError::file(directory, format!("has no {stem}.csv or {stem}.csv.gz; its lists of pods: {known}"))
    })
}

fn read_nodes(path: &Path, workload: &mut Workload) -> Result<(), InputError> {
    let columns = ["sn", "cpu_milli", "memory_mib", "gpu", "model"];
    let table = Table::parse(path, &read_text(path)?, &columns, &[])?;
    for row in table.rows() {
        let devices: u8 = row.number("gpu", 0, MAX_DEVICES as u8)?;
        let class = class(row.text("model"));
        if 0 < devices && row.text("model").is_empty() {
            return Err(row.error("model", "expected a model: the node has GPUs"));
        }
        let class = if 0 < devices { workload.class(class) } else { Some(0) };
        workload.nodes.push(Node {
            name: row.text("sn").into(),
            cpus_milli: row.number("cpu_milli", 0, u32::MAX)?,
            memory_bytes: row.number("memory_mib", 0, u64::MAX >> 20)? << 20,
            devices,
            class: class.ok_or_else(|| row.error("model", "too many models: at most 64"))?,
        });
    }
    workload.nodes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(())
}

/// A class of the trace, which does not tell the memory of its GPUs, and hides the names of some.
fn class(model: &str) -> DeviceClass {
    DeviceClass { vendor: Vendor::Nvidia, model: model.to_lowercase().into(), memory_bytes: 16 << 30 }
}

fn read_pods(path: &Path, workload: &mut Workload) -> Result<(), InputError> {
    let columns = ["name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli"];
    let table = Table::parse(path, &read_text(path)?, &columns, &[])?;
    let mut specs = SpecTable::default();
    for row in table.rows() {
        let devices: u8 = row.number("num_gpu", 0, MAX_DEVICES as u8)?;
        let most = if 0 < devices { WHOLE } else { 0 };
        let least = match devices {
            0 => 0,
            1 => 1,
            _ => WHOLE,
        };
        let wants = row.text("gpu_spec").split('|').filter(|model| !model.is_empty());
        let wants = wants.map(|model| Want { vendor: None, model: Some(model.to_lowercase().into()) });
        let spec = Spec {
            ranks: 1,
            cpus_milli: row.number("cpu_milli", 0, u32::MAX)?,
            memory_bytes: row.number("memory_mib", 0, u64::MAX >> 20)? << 20,
            devices,
            share_milli: row.number("gpu_milli", least, most)?,
            slice_memory_bytes: 0,
            wants: wants.collect(),
            allowed: 0,
        };
        let spec = specs.index(&mut workload.specs, spec);
        let (at_ms, run_ms) = times(&row)?;
        let name: Name = row.text("name").into();
        workload.jobs.push(Job { name, at_ms, run_ms, spec, queue: 0, priority: 0, time_limit_ms: None });
    }
    workload.jobs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(())
}

/// When a pod was created and how long it ran, in milliseconds; it counts from its creation where it was never
/// scheduled. Lists without times give zeros.
fn times(row: &Row) -> Result<(u64, u64), InputError> {
    let seconds = |column: &str| match row.text(column) {
        "" => Ok(None),
        _ => row.number::<f64>(column, 0.0, 1e12).map(|seconds| Some((seconds * 1000.0) as u64)),
    };
    let created = seconds("creation_time")?.unwrap_or(0);
    let begun = seconds("scheduled_time")?.unwrap_or(created);
    let ended = seconds("deletion_time")?.unwrap_or(begun);
    Ok((created, ended.saturating_sub(begun)))
}

/// Reads an order of arrivals: a line `perm` with the places of the nodes, then one pod a line, as its position in the
/// sorted list or as its name.
///
/// # Errors
/// When it does not fit the workload.
pub fn read_arrivals(path: &Path, workload: &Workload) -> Result<Arrivals, InputError> {
    let text = read_text(path)?;
    let by_name: BTreeMap<&str, u32> =
        workload.jobs.iter().zip(0..).map(|(job, at)| (&*job.name, at)).collect();
    let nodes = workload.nodes.len() as u32;
    let mut arrivals = Arrivals { permutation: (0..nodes).collect(), pods: Vec::new() };
    let error = |line: usize, value: &str, expected: String| InputError {
        line: line + 1,
        value: value.into(),
        ..InputError::file(path, expected)
    };
    for (line, text) in text.lines().enumerate() {
        if let Some(places) = text.strip_prefix("perm ") {
            let places: Option<Vec<u32>> =
                places.split_whitespace().map(|place| place.parse().ok()).collect();
            let mut sorted = places.clone().unwrap_or_default();
            sorted.sort_unstable();
            arrivals.permutation =
                places.filter(|_| sorted.iter().copied().eq(0..nodes)).ok_or_else(|| {
                    error(line, "perm", format!("expected a permutation of 0 to {}", nodes - 1))
                })?;
        } else if !text.trim().is_empty() {
            let number = text.trim().parse().ok().filter(|at| *at < workload.jobs.len() as u32);
            let pod = number.or_else(|| by_name.get(text.trim()).copied());
            arrivals.pods.push(pod.ok_or_else(|| {
                error(line, text, format!("expected the name of a pod, or 0 to {}", workload.jobs.len() - 1))
            })?);
        }
    }
    Ok(arrivals)
}
