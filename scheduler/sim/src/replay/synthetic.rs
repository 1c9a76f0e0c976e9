//! Workloads from a seed: for tests, for samples, and where there is no trace.

use aquifer_core::{DeviceClass, Vendor};

use super::order::{exponential, uniform};
use super::workload::{Job, Node, Spec, SpecTable, WHOLE, Want, Workload};
use crate::Rng;

/// What a generated workload is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Nodes.
    pub nodes: u32,
    /// Jobs.
    pub jobs: u32,
    /// Devices that the jobs ask for over time, in thousandths of all.
    pub load_milli: u64,
    /// Median run time, in milliseconds.
    pub median_run_ms: u64,
    /// Of everything.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { nodes: 50, jobs: 5000, load_milli: 900, median_run_ms: 600_000, seed: 1 }
    }
}

/// Kinds of nodes: maker, model, device memory in GiB, devices, cores, memory in GiB, and how many of 100 nodes.
const KINDS: [(Vendor, &str, u64, u8, u32, u64, u64); 6] = [
    (Vendor::Nvidia, "h100-80gb", 80, 8, 128, 1024, 30),
    (Vendor::Nvidia, "a100-40gb", 40, 8, 96, 512, 20),
    (Vendor::Amd, "mi300x", 192, 8, 128, 1536, 15),
    (Vendor::Ascend, "910b", 64, 8, 96, 768, 20),
    (Vendor::Nvidia, "l4", 24, 4, 48, 256, 10),
    (Vendor::Cpu, "", 0, 0, 64, 256, 5),
];

/// Ranks, devices, share of a device in thousandths, and how many of 1,000 jobs.
const SIZES: [(u32, u8, u16, u64); 10] = [
    (1, 0, 0, 120),
    (1, 1, 250, 140),
    (1, 1, 500, 140),
    (1, 1, WHOLE, 350),
    (1, 2, WHOLE, 90),
    (1, 4, WHOLE, 60),
    (1, 8, WHOLE, 60),
    (2, 8, WHOLE, 20),
    (4, 8, WHOLE, 10),
    (4, 2, WHOLE, 10),
];

/// Spread of the logarithm of run times: with 1.5, one of 40 runs for 19 times the median.
const SIGMA: f64 = 1.5;
/// Run times are at least a hundredth and at most fifty times the median.
const RUN_LIMITS: (u64, u64) = (100, 50);

/// Generates a workload: nodes of several makers, jobs of all sizes that arrive as a Poisson process, run times whose
/// logarithms are normally distributed, three queues. A third of the jobs accepts one kind of device alone.
pub fn generate(options: Options) -> Workload {
    let mut rng = Rng(options.seed ^ 0x5173_7e71);
    let mut workload = Workload::default();
    for queue in ["default", "research", "serving"] {
        workload.queue(queue);
    }
    for at in 0..options.nodes {
        let mut drawn = u64::from(at) * 100 / u64::from(options.nodes.max(1));
        let kind = KINDS.iter().find(|kind| match drawn.checked_sub(kind.6) {
            Some(rest) => {
                drawn = rest;
                false
            }
            None => true,
        });
        let (vendor, model, gib, devices, cores, memory_gib, _) = *kind.expect("kinds make 100");
        let class = DeviceClass { vendor, model: model.into(), memory_bytes: gib << 30 };
        let class = if 0 < devices { workload.class(class).expect("few classes") } else { 0 };
        workload.nodes.push(Node {
            name: format!("node-{at:04}").into(),
            cpus_milli: cores * 1000,
            memory_bytes: memory_gib << 30,
            devices,
            class,
        });
    }
    add_jobs(&mut workload, options, &mut rng);
    workload
}

fn add_jobs(workload: &mut Workload, options: Options, rng: &mut Rng) {
    let mut specs = SpecTable::default();
    for number in 0..options.jobs {
        let spec = spec(workload, rng);
        let spec = specs.index(&mut workload.specs, spec);
        let median = options.median_run_ms;
        let run_ms = (median as f64 * (normal(rng) * SIGMA).exp()) as u64;
        let run_ms = run_ms.clamp((median / RUN_LIMITS.0).max(1), median.saturating_mul(RUN_LIMITS.1));
        workload.jobs.push(Job {
            name: format!("job-{number}").into(),
            at_ms: 0,
            run_ms,
            spec,
            queue: rng.below(3) as u16,
            priority: 0,
            time_limit_ms: None,
        });
    }
    workload.refresh_allowed();
    // Arrivals are spread so that the devices which they ask for over time make the load.
    let work =
        |job: &Job| u128::from(workload.specs[job.spec as usize].devices_milli()) * u128::from(job.run_ms);
    let all: u128 = workload.jobs.iter().map(work).sum();
    let offered = workload.capacity_milli() as f64 * options.load_milli as f64 / 1000.0;
    let pause_ms = all as f64 / f64::from(options.jobs.max(1)) / offered.max(1.0);
    let mut at = 0.0;
    for job in &mut workload.jobs {
        at += exponential(rng) * pause_ms;
        job.at_ms = at as u64;
    }
    workload.history = workload.count_specs();
}

fn spec(workload: &Workload, rng: &mut Rng) -> Spec {
    let mut drawn = rng.below(1000);
    let size = SIZES.iter().find(|size| match drawn.checked_sub(size.3) {
        Some(rest) => {
            drawn = rest;
            false
        }
        None => true,
    });
    let (ranks, devices, share_milli, _) = *size.expect("sizes make 1,000");
    // By node that can take a rank, its class: a gang must fit, on an empty pool, on the nodes of one class.
    let wide: Vec<u8> = workload
        .nodes
        .iter()
        .filter(|node| 0 < devices && devices <= node.devices)
        .map(|node| node.class)
        .collect();
    let ranks = if devices == 0 { ranks } else { ranks.min(wide.len() as u32).max(1) };
    let of_class = |class: u8| wide.iter().filter(|other| **other == class).count();
    let enough: Vec<u8> = wide.iter().copied().filter(|class| ranks as usize <= of_class(*class)).collect();
    let wants = match enough.is_empty() || rng.below(3) != 0 {
        true => Vec::new(),
        false => {
            let class = &workload.classes[usize::from(*rng.pick(&enough))];
            vec![Want { vendor: Some(class.vendor), model: Some(class.model.clone()) }]
        }
    };
    let per_device = *rng.pick(&[2000, 4000, 8000]);
    let milli = u32::from(devices) * u32::from(share_milli);
    Spec {
        ranks,
        cpus_milli: if devices == 0 { per_device } else { (per_device * milli / 1000).max(500) },
        memory_bytes: (*rng.pick(&[4u64, 8, 16]) * u64::from(devices.max(1))) << 30,
        devices,
        share_milli,
        slice_memory_bytes: 0,
        wants,
        allowed: 0,
    }
}

/// Normally distributed, with mean 0 and deviation 1.
///
/// Source: Box, Muller, "A note on the generation of random normal deviates", 1958.
fn normal(rng: &mut Rng) -> f64 {
    let radius = (-2.0 * (1.0 - uniform(rng)).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(rng)).cos()
}
