//! Our own format: a file of nodes and a file of jobs, as tables or as JSON. `docs/simulate.md` explains every column.

use std::path::Path;

use aquifer_core::{DeviceClass, Name, Vendor};
use serde_json::{Map, Value};

use super::input::{InputError, Row, Table, read_text};
use super::workload::{Job, MAX_DEVICES, Node, Spec, SpecTable, WHOLE, Want, Workload};

/// Columns of a file of nodes that must be there, and that may.
const NODES: (&[&str], &[&str]) =
    (&["name", "cpus", "memory"], &["devices", "vendor", "model", "device_memory", "count"]);
/// Columns of a file of jobs that must be there, and that may.
const JOBS: (&[&str], &[&str]) = (
    &["time", "run_time"],
    &[
        "name",
        "ranks",
        "cpus",
        "memory",
        "devices",
        "class",
        "slice",
        "slice_memory",
        "queue",
        "priority",
        "time_limit",
    ],
);

/// Reads a workload of our own format.
///
/// # Errors
/// Names file, line, column, value and what is allowed.
pub fn read(nodes: &Path, jobs: &Path) -> Result<Workload, InputError> {
    let mut workload = Workload::default();
    workload.queue("default");
    for row in table(nodes, "nodes", NODES)?.rows() {
        read_node(&row, &mut workload)?;
    }
    if workload.nodes.is_empty() {
        return Err(InputError::file(nodes, "has no nodes"));
    }
    read_jobs(jobs, &mut workload)?;
    if workload.jobs.is_empty() {
        return Err(InputError::file(jobs, "has no jobs"));
    }
    Ok(workload)
}

/// Reads a file of jobs for the nodes that a workload has.
///
/// # Errors
/// Names file, line, column, value and what is allowed.
fn read_jobs(path: &Path, workload: &mut Workload) -> Result<(), InputError> {
    let mut specs = SpecTable::default();
    for (row, number) in table(path, "jobs", JOBS)?.rows().zip(1..) {
        read_job(&row, number, workload, &mut specs)?;
    }
    workload.jobs.sort_by_key(|job| job.at_ms);
    workload.refresh_allowed();
    workload.history = workload.count_specs();
    Ok(())
}

/// The table of a file; of a JSON file the list that it is, or has under a key.
fn table(path: &Path, key: &str, columns: (&[&str], &[&str])) -> Result<Table, InputError> {
    let text = read_text(path)?;
    if !text.trim_start().starts_with(['[', '{']) {
        return Table::parse(path, &text, columns.0, columns.1);
    }
    let value: Value = serde_json::from_str(&text).map_err(|error| InputError {
        line: error.line(),
        ..InputError::file(path, format!("is no JSON: {error}"))
    })?;
    let list = value.get(key).unwrap_or(&value).as_array();
    let list =
        list.ok_or_else(|| InputError::file(path, format!("expected a list, or one under {key:?}")))?;
    let objects: Option<Vec<&Map<String, Value>>> = list.iter().map(Value::as_object).collect();
    let objects = objects.ok_or_else(|| InputError::file(path, "expected a list of objects"))?;
    Table::from_objects(path, &objects, columns.0, columns.1)
}

fn read_node(row: &Row, workload: &mut Workload) -> Result<(), InputError> {
    let devices: u8 = optional(row, "devices", 0, MAX_DEVICES as u8)?.unwrap_or(0);
    let class = match devices {
        0 => Some(0),
        _ => {
            let vendor = match row.text("vendor") {
                "" => Vendor::Nvidia,
                text => row.read("vendor", |_| text.parse().map_err(|error| format!("{error}")))?,
            };
            let model = row.text("model");
            let proper = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
            if model.is_empty() || !model.chars().all(proper) {
                return Err(row.error("model", "expected a model, in lower case, as h100-80gb"));
            }
            let memory_bytes = row.read("device_memory", bytes)?;
            workload.class(DeviceClass { vendor, model: model.into(), memory_bytes })
        }
    };
    let node = Node {
        name: row.text("name").into(),
        cpus_milli: row.read("cpus", milli)?,
        memory_bytes: row.read("memory", bytes)?,
        devices,
        class: class.ok_or_else(|| row.error("model", "too many classes of devices: at most 64"))?,
    };
    let count: u32 = optional(row, "count", 1, 1_000_000)?.unwrap_or(1);
    if node.name.is_empty() {
        return Err(row.error("name", "expected a name"));
    }
    for at in 0..count {
        let name: Name = if count == 1 { node.name.clone() } else { format!("{}-{at}", node.name).into() };
        workload.nodes.push(Node { name, ..node.clone() });
    }
    Ok(())
}

fn read_job(
    row: &Row,
    number: u32,
    workload: &mut Workload,
    specs: &mut SpecTable,
) -> Result<(), InputError> {
    let devices: u8 = optional(row, "devices", 0, MAX_DEVICES as u8)?.unwrap_or(0);
    let share_milli = match (row.text("slice"), devices) {
        ("", 0) => 0,
        ("", _) => WHOLE,
        (_, 1) => {
            let share = row.read("slice", milli)?;
            let within = (1..=u32::from(WHOLE)).contains(&share);
            if !within {
                return Err(row.error("slice", "expected a part of a device, from 0.001 to 1"));
            }
            share as u16
        }
        _ => return Err(row.error("slice", "only a job with devices 1 can have a slice")),
    };
    let slice_memory_bytes = match row.text("slice_memory") {
        "" => 0,
        _ if devices == 1 && share_milli < WHOLE => row.read("slice_memory", bytes)?,
        _ => return Err(row.error("slice_memory", "only a job with a slice can have it")),
    };
    let spec = Spec {
        ranks: optional(row, "ranks", 1, 65_536)?.unwrap_or(1),
        cpus_milli: if row.text("cpus").is_empty() { 0 } else { row.read("cpus", milli)? },
        memory_bytes: if row.text("memory").is_empty() { 0 } else { row.read("memory", bytes)? },
        devices,
        share_milli,
        slice_memory_bytes,
        wants: row.read("class", wants)?,
        allowed: 0,
    };
    if devices == 0 && !spec.wants.is_empty() {
        return Err(row.error("class", "only a job with devices can name a class"));
    }
    if 0 < devices && workload.allowed(&spec.wants) == 0 {
        let models: Vec<&str> = workload.classes.iter().map(|class| &*class.model).collect();
        return Err(row.error("class", format!("no node has such devices; there are {}", models.join(", "))));
    }
    let spec = specs.index(&mut workload.specs, spec);
    let queue = match row.text("queue") {
        "" => "default",
        name => name,
    };
    let queue = workload.queue(queue);
    let name: Name = match row.text("name") {
        "" => format!("job-{number}").into(),
        name => name.into(),
    };
    let limit = row.text("time_limit");
    workload.jobs.push(Job {
        name,
        at_ms: row.read("time", seconds)?,
        run_ms: row.read("run_time", seconds)?,
        spec,
        queue,
        priority: optional(row, "priority", i32::MIN, i32::MAX)?.unwrap_or(0),
        time_limit_ms: if limit.is_empty() { None } else { Some(row.read("time_limit", seconds)?) },
    });
    Ok(())
}

/// A number, where one stands.
fn optional<N>(row: &Row, column: &str, least: N, most: N) -> Result<Option<N>, InputError>
where
    N: std::str::FromStr + PartialOrd + std::fmt::Display + Copy,
{
    match row.text(column) {
        "" => Ok(None),
        _ => row.number(column, least, most).map(Some),
    }
}

/// Kinds of devices: `h100|h200`, `ascend:910b|ascend:`.
fn wants(text: &str) -> Result<Vec<Want>, String> {
    let one = |text: &str| match text.split_once(':') {
        None => Ok(Want { vendor: None, model: Some(text.into()) }),
        Some((vendor, model)) => {
            let vendor =
                vendor.parse().map_err(|error: aquifer_core::types::UnknownVendor| error.to_string())?;
            Ok(Want { vendor: Some(vendor), model: (!model.is_empty()).then(|| model.into()) })
        }
    };
    text.split('|').map(str::trim).filter(|text| !text.is_empty()).map(one).collect()
}

/// A number with at most three decimals, in thousandths.
fn milli(text: &str) -> Result<u32, String> {
    let wrong = || "expected a number with at most three decimals, like 4 or 0.25".to_string();
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    if !(1..=3).contains(&decimals.len()) || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let whole: u32 = whole.parse().map_err(|_| wrong())?;
    let decimals: u32 = format!("{decimals:0<3}").parse().map_err(|_| wrong())?;
    whole.checked_mul(1000).and_then(|milli| milli.checked_add(decimals)).ok_or_else(wrong)
}

/// Seconds, in milliseconds.
fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || "expected seconds with at most three decimals, like 90 or 0.5".to_string();
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    if !(1..=3).contains(&decimals.len()) || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().ok().filter(|whole| *whole < 1 << 40).ok_or_else(wrong)?;
    Ok(whole * 1000 + format!("{decimals:0<3}").parse::<u64>().map_err(|_| wrong())?)
}

/// A size with its unit, in bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || "expected a size with its unit, like 512MiB, 80GiB or 1TiB".to_string();
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];
    let (number, shift) =
        units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift))).ok_or_else(wrong)?;
    let thousandths = u128::from(milli(number.trim_end()).map_err(|_| wrong())?);
    u64::try_from((thousandths << shift) / 1000).map_err(|_| wrong())
}

/// The workload's nodes as a table that [`read`] reads.
pub fn nodes_csv(workload: &Workload) -> String {
    let mut text = String::from("name,cpus,memory,devices,vendor,model,device_memory\n");
    for node in &workload.nodes {
        let (cpus, memory) = (decimal(node.cpus_milli.into()), size(node.memory_bytes));
        let device = match workload.classes.get(usize::from(node.class)).filter(|_| 0 < node.devices) {
            Some(class) => format!("{},{},{}", class.vendor, class.model, size(class.memory_bytes)),
            None => ",,".into(),
        };
        text += &format!("{},{cpus},{memory},{},{device}\n", node.name, node.devices);
    }
    text
}

/// The workload's jobs as a table that [`read`] reads.
pub fn jobs_csv(workload: &Workload) -> String {
    let mut text = String::from(
        "name,time,run_time,ranks,devices,class,slice,slice_memory,cpus,memory,queue,priority,time_limit\n",
    );
    for job in &workload.jobs {
        let spec = &workload.specs[job.spec as usize];
        let slice = if spec.is_share() { decimal(spec.share_milli.into()) } else { String::new() };
        let slice_memory = match spec.slice_memory_bytes {
            0 => String::new(),
            bytes => size(bytes),
        };
        text += &format!(
            "{},{},{},{},{},{},{slice},{slice_memory},{},{},{},{},{}\n",
            job.name,
            decimal(job.at_ms),
            decimal(job.run_ms),
            spec.ranks,
            spec.devices,
            spec.wants_text(),
            decimal(spec.cpus_milli.into()),
            size(spec.memory_bytes),
            workload.queues[usize::from(job.queue)],
            job.priority,
            job.time_limit_ms.map_or(String::new(), decimal),
        );
    }
    text
}

/// Thousandths as a decimal number.
fn decimal(milli: u64) -> String {
    match milli % 1000 {
        0 => format!("{}", milli / 1000),
        rest => format!("{}.{rest:03}", milli / 1000).trim_end_matches('0').into(),
    }
}

fn size(bytes: u64) -> String {
    let units = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let fits = |(_, unit): &&(&str, u64)| 0 < bytes && bytes.is_multiple_of(*unit);
    units.iter().find(fits).map_or(format!("{bytes}B"), |(name, unit)| format!("{}{name}", bytes / unit))
}
