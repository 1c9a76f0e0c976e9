//! Orders of arrival, from a list of jobs and a seed.

use super::openb::Arrivals;
use super::workload::{Job, Workload};
use crate::Rng;

/// The workload with its jobs in the order of a file, one a millisecond, and its nodes in the order that breaks ties.
pub fn as_listed(workload: &Workload, arrivals: &Arrivals) -> Workload {
    let jobs = arrivals.pods.iter().zip(0..).map(|(pod, at_ms)| {
        let job = workload.jobs[*pod as usize].clone();
        Job { at_ms, ..job }
    });
    let jobs = jobs.collect();
    Workload { jobs, nodes: permuted(workload, &arrivals.permutation), ..workload.clone() }
}

/// Shuffles the jobs, and draws more of them with replacement until they ask for `demand_milli` thousandths of all
/// devices. One a millisecond. A list that asks for more loses jobs, drawn by chance.
pub fn shuffled(workload: &Workload, demand_milli: u64, seed: u64) -> Workload {
    let mut rng = Rng(seed ^ 0x0a11_0cae);
    let mut pods: Vec<u32> = (0..workload.jobs.len() as u32).collect();
    shuffle(&mut pods, &mut rng);
    let target = workload.capacity_milli() / 1000 * demand_milli;
    let mut total: u64 = pods.iter().map(|pod| workload.spec_of(*pod).devices_milli()).sum();
    if total == 0 {
        return as_listed(workload, &Arrivals { permutation: permutation(workload, &mut rng), pods });
    }
    while target < total {
        let pod = pods.swap_remove(rng.below(pods.len() as u64) as usize);
        total -= workload.spec_of(pod).devices_milli();
    }
    loop {
        let pod = rng.below(workload.jobs.len() as u64) as u32;
        total += workload.spec_of(pod).devices_milli();
        if target < total {
            break;
        }
        pods.push(pod);
    }
    as_listed(workload, &Arrivals { permutation: permutation(workload, &mut rng), pods })
}

/// Draws `arrivals` jobs with replacement, which arrive as a Poisson process that offers `load_milli` thousandths of
/// all devices.
///
/// * `run_ms`: runs are made no shorter and no longer than this.
pub fn poisson(
    workload: &Workload,
    load_milli: u64,
    arrivals: u32,
    run_ms: (u64, u64),
    seed: u64,
) -> Workload {
    let mut rng = Rng(seed ^ 0x0905_5015);
    let clipped = |job: &Job| job.run_ms.clamp(run_ms.0, run_ms.1);
    let work =
        |job: &Job| u128::from(workload.specs[job.spec as usize].devices_milli()) * u128::from(clipped(job));
    let all: u128 = workload.jobs.iter().map(work).sum();
    // Mean time between arrivals, in milliseconds.
    let offered = workload.capacity_milli() as f64 * load_milli as f64 / 1000.0;
    let pause_ms = all as f64 / workload.jobs.len().max(1) as f64 / offered.max(1.0);
    let mut at = 0.0;
    let jobs = (0..arrivals).map(|_| {
        let job = rng.pick(&workload.jobs).clone();
        at += exponential(&mut rng) * pause_ms;
        Job { at_ms: at as u64, run_ms: clipped(&job), ..job }
    });
    let jobs = jobs.collect();
    let permutation = permutation(workload, &mut rng);
    Workload { jobs, nodes: permuted(workload, &permutation), ..workload.clone() }
}

/// Exponentially distributed, with mean 1.
pub fn exponential(rng: &mut Rng) -> f64 {
    -(1.0 - uniform(rng)).ln()
}

/// Uniform in `0..1`, with 53 bits.
pub fn uniform(rng: &mut Rng) -> f64 {
    (rng.bits() >> 11) as f64 / (1u64 << 53) as f64
}

/// Source: Durstenfeld, "Algorithm 235: random permutation", CACM 7(7), 1964.
pub fn shuffle<T>(items: &mut [T], rng: &mut Rng) {
    for at in (1..items.len()).rev() {
        items.swap(at, rng.below(at as u64 + 1) as usize);
    }
}

fn permutation(workload: &Workload, rng: &mut Rng) -> Vec<u32> {
    let mut places: Vec<u32> = (0..workload.nodes.len() as u32).collect();
    shuffle(&mut places, rng);
    places
}

fn permuted(workload: &Workload, places: &[u32]) -> Vec<super::workload::Node> {
    let mut nodes: Vec<_> = places.iter().zip(&workload.nodes).collect();
    nodes.sort_by_key(|(place, _)| **place);
    nodes.into_iter().map(|(_, node)| node.clone()).collect()
}
