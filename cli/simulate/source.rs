//! Where the workload comes from.

use std::path::Path;

use anyhow::{Context, Result};
use aquifer_proto::core::{DeviceClass, Vendor};
use aquifer_sim::replay::engine::Mode;
use aquifer_sim::replay::workload::{MAX_DEVICES, Node, Want, Workload};
use aquifer_sim::replay::{openb, order, synthetic, trace};

use super::{Args, history};
use crate::client::Global;
use crate::output::Failure;
use crate::units;

/// Demand to which a static fill goes, in thousandths of all devices.
const FILL_MILLI: u64 = 1300;
/// Load in churn, in thousandths of all devices.
const CHURN_MILLI: u64 = 900;

/// What a device of an added node brings with it where no node of the workload has such devices: cores, memory.
const HOST: (u32, u64) = (16_000, 128 << 30);

/// Models whose memory need not be said.
const MEMORY: [(&str, u64); 9] = [
    ("h200", 141 << 30),
    ("h100", 80 << 30),
    ("b200", 180 << 30),
    ("a100", 80 << 30),
    ("l40s", 48 << 30),
    ("l4", 24 << 30),
    ("t4", 16 << 30),
    ("mi300x", 192 << 30),
    ("910b", 64 << 30),
];

fn usage(sentence: String) -> Failure {
    Failure::usage(sentence, "`aquifer simulate --help` has examples.")
}

/// Reads `42`, `1,2,3` or `42-46`.
pub fn seeds(text: &str) -> Result<Vec<u64>> {
    let wrong = || usage(format!("--seeds {text:?}: expected numbers, like 42, 1,2,3 or 42-46"));
    let mut seeds = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) =
            (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
        if last < first || 1000 < last - first {
            return Err(wrong().into());
        }
        seeds.extend(first..=last);
    }
    Ok(seeds)
}

/// The nodes, and the jobs that are drawn from or replayed.
pub fn base(args: &Args, global: &Global, seed: u64) -> Result<Workload> {
    if let (Some(nodes), Some(jobs)) = (&args.nodes, &args.jobs) {
        return Ok(trace::read(nodes, jobs)?);
    }
    if let Some(text) = &args.history {
        return history::read(global, since_ms(text)?);
    }
    if let Some(text) = &args.trace {
        let parts = text.strip_prefix("openb:").and_then(|rest| rest.rsplit_once(':'));
        let (directory, list) = parts.ok_or_else(|| {
            usage(format!("--trace {text:?}: expected openb:DIRECTORY:LIST, like openb:traces/openb:default"))
        })?;
        return Ok(openb::read(Path::new(directory), list)?);
    }
    let Some(text) = &args.synthetic else {
        return Err(usage(
            "nothing to replay: name --nodes and --jobs, a --trace, --history, or --synthetic".into(),
        )
        .into());
    };
    let sizes =
        text.split_once('x').and_then(|(nodes, jobs)| Some((nodes.parse().ok()?, jobs.parse().ok()?)));
    let sizes =
        sizes.filter(|(nodes, jobs)| (1..=100_000).contains(nodes) && (1..=10_000_000).contains(jobs));
    let (nodes, jobs): (u32, u32) =
        sizes.ok_or_else(|| usage(format!("--synthetic {text:?}: expected NODESxJOBS, like 50x5000")))?;
    let load_milli = load(args, CHURN_MILLI)?;
    Ok(synthetic::generate(synthetic::Options { nodes, jobs, load_milli, seed, ..Default::default() }))
}

/// The time from which on jobs are looked at: so long ago, or the beginning.
fn since_ms(text: &str) -> Result<u64> {
    if text == "all" {
        return Ok(0);
    }
    let ms =
        units::parse_duration(text).map_err(|why| usage(format!("--history {text:?}: {why}, or all")))?;
    Ok(crate::time_now().saturating_sub(ms))
}

fn load(args: &Args, default_milli: u64) -> Result<u64> {
    let Some(text) = &args.load else { return Ok(default_milli) };
    let milli = units::parse_milli(text).ok().filter(|milli| (1..=100_000).contains(milli));
    milli.ok_or_else(|| {
        usage(format!("--load {text:?}: expected a number from 0.001 to 100, like 0.94")).into()
    })
}

/// The arrivals of one seed.
pub fn arrivals(args: &Args, mode: Mode, base: &Workload, seed: u64) -> Result<Workload> {
    if base.capacity_milli() == 0 && mode != Mode::Replay {
        return Err(usage("the nodes have no devices: only --mode replay is possible".into()).into());
    }
    match mode {
        Mode::Replay => {
            let mut workload = base.clone();
            workload.jobs.sort_by_key(|job| job.at_ms);
            Ok(workload)
        }
        Mode::Churn => Ok(order::poisson(base, load(args, CHURN_MILLI)?, args.count, openb::RUN_MS, seed)),
        Mode::Fill => match (&args.arrivals, args.trace.as_ref().and_then(|trace| trace.rsplit_once(':'))) {
            (Some(directory), Some((_, list))) => {
                let path = directory.join(format!("{list}.{seed}.txt"));
                Ok(order::as_listed(base, &openb::read_arrivals(&path, base)?))
            }
            (Some(_), None) => Err(usage("--arrivals belongs to a --trace".into()).into()),
            (None, _) => Ok(order::shuffled(base, load(args, FILL_MILLI)?, seed)),
        },
    }
}

/// Adds nodes: `8xh200` is one node with 8 of them, `4x8xh200` are four such nodes.
pub fn add(workload: &mut Workload, text: &str) -> Result<(), String> {
    let form =
        || "expected [NODESx]DEVICESxMODEL[:MEMORY], like 8xh200, 4x8xh200 or 8xnew-model:96GiB".to_string();
    let mut parts = text.splitn(3, 'x').collect::<Vec<_>>();
    // A model may have an x of its own: mi300x.
    if parts.len() == 3 && parts[1].parse::<u32>().is_err() {
        parts = text.splitn(2, 'x').collect();
    }
    let (nodes, devices, model) = match parts[..] {
        [devices, model] => ("1", devices, model),
        [nodes, devices, model] => (nodes, devices, model),
        _ => return Err(form()),
    };
    let nodes: u32 = nodes.parse().ok().filter(|nodes| (1..=100_000).contains(nodes)).ok_or_else(form)?;
    let most = MAX_DEVICES as u8;
    let devices: u8 = devices.parse().map_err(|_| form())?;
    if !(1..=most).contains(&devices) {
        return Err(format!("a node has 1 to {most} devices here"));
    }
    let (model, memory) =
        model.split_once(':').map_or((model, None), |(model, memory)| (model, Some(memory)));
    let model = model.to_lowercase();
    if model.is_empty() {
        return Err(form());
    }
    let want = Want { vendor: None, model: Some(model.as_str().into()) };
    let known = workload.classes.iter().position(|class| want.accepts(class)).filter(|_| memory.is_none());
    let class = match (known, memory) {
        (Some(known), _) => workload.classes[known].clone(),
        (None, Some(memory)) => {
            let memory_bytes = units::parse_size(memory)?;
            DeviceClass { vendor: vendor(&model), model: model.as_str().into(), memory_bytes }
        }
        (None, None) => {
            let memory = MEMORY.iter().find(|(name, _)| *name == model).map(|(_, bytes)| *bytes);
            let memory_bytes = memory.ok_or_else(|| {
                let names: Vec<&str> = MEMORY.iter().map(|(name, _)| *name).collect();
                format!(
                    "say the memory of a {model}, as {text}:80GiB; known without are {}",
                    names.join(", ")
                )
            })?;
            DeviceClass { vendor: vendor(&model), model: model.as_str().into(), memory_bytes }
        }
    };
    let alike = workload
        .nodes
        .iter()
        .filter(|node| 0 < node.devices && workload.classes.get(usize::from(node.class)) == Some(&class));
    let host = alike.max_by_key(|node| node.devices).map_or(HOST, |node| {
        let devices = node.devices;
        (node.cpus_milli / u32::from(devices), node.memory_bytes / u64::from(devices))
    });
    let class = workload.class(class).ok_or("too many classes of devices: at most 64")?;
    for at in 0..nodes {
        workload.nodes.push(Node {
            name: format!("added-{text}-{at}").into(),
            cpus_milli: host.0 * u32::from(devices),
            memory_bytes: host.1 * u64::from(devices),
            devices,
            class,
        });
    }
    workload.refresh_allowed();
    Ok(())
}

fn vendor(model: &str) -> Vendor {
    match model {
        "910b" => Vendor::Ascend,
        model if model.starts_with("mi") => Vendor::Amd,
        _ => Vendor::Nvidia,
    }
}

/// Writes the workload in our own format.
pub fn write(directory: &Path, workload: &Workload) -> Result<()> {
    let cannot = |path: &Path| format!("{} cannot be written", path.display());
    std::fs::create_dir_all(directory).with_context(|| cannot(directory))?;
    for (name, text) in [("nodes.csv", trace::nodes_csv(workload)), ("jobs.csv", trace::jobs_csv(workload))] {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| cannot(&path))?;
    }
    Ok(())
}
