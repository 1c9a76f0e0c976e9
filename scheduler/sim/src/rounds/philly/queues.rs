//! Baselines that never stop a job: who runs, runs to its end.

use std::collections::{BTreeMap, BTreeSet};

use super::nodes::{Nodes, PER_NODE};
use super::trace::Trace;

/// Who is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// First come, first served.
    Fifo,
    /// The first of the virtual cluster that uses least of its part.
    Drf,
    /// The shortest, known beforehand.
    Sjf,
}

/// Seconds from submission to end, by job.
pub type Jct = Vec<f64>;

/// Every virtual cluster alone on its own nodes, first come, first served.
pub fn private(trace: &Trace) -> Jct {
    let mut all = vec![0.0; trace.jobs.len()];
    for (cluster, nodes) in trace.nodes.iter().enumerate() {
        let of: Vec<usize> =
            (0..trace.jobs.len()).filter(|job| trace.jobs[*job].cluster == cluster).collect();
        for (job, jct) in of.iter().zip(run(trace, &of, *nodes, Order::Fifo)) {
            all[*job] = jct;
        }
    }
    all
}

/// All on the whole pool.
pub fn shared(trace: &Trace, order: Order) -> Jct {
    let all: Vec<usize> = (0..trace.jobs.len()).collect();
    run(trace, &all, trace.pool, order)
}

/// Milliseconds, which order without fractions.
fn millis(seconds: f64) -> u64 {
    (seconds * 1000.0) as u64
}

/// Who does not fit is passed over; nothing is kept free for it.
fn run(trace: &Trace, jobs: &[usize], nodes: u32, order: Order) -> Jct {
    let mut nodes = Nodes::new(nodes);
    let mut jct = vec![f64::NAN; jobs.len()];
    let mut used = vec![0u32; trace.nodes.len()];
    let mut ends: BTreeSet<(u64, usize)> = BTreeSet::new();
    // By devices and cluster, the first in the order first.
    let mut waiting: BTreeMap<(u32, usize), BTreeSet<(u64, usize)>> = BTreeMap::new();
    let mut next = 0;
    while next < jobs.len() || !ends.is_empty() {
        let arrival = jobs.get(next).map(|job| millis(trace.jobs[*job].arrival_s));
        let end = ends.first().map(|end| end.0);
        let now = arrival.into_iter().chain(end).min().expect("something is to come");
        while let Some(&(at, index)) = ends.first().filter(|end| end.0 <= now) {
            ends.remove(&(at, index));
            nodes.release(index);
            used[trace.jobs[jobs[index]].cluster] -= trace.jobs[jobs[index]].devices;
        }
        while next < jobs.len() && millis(trace.jobs[jobs[next]].arrival_s) <= now {
            let job = &trace.jobs[jobs[next]];
            let key = if order == Order::Sjf { millis(job.run_s) } else { 0 };
            waiting.entry((job.devices, job.cluster)).or_default().insert((key, next));
            next += 1;
        }
        // What is as large as something that did not fit does not fit either.
        let mut too_large = u32::MAX;
        loop {
            let share = |cluster: usize| match order {
                Order::Drf => {
                    u64::from(used[cluster]) * 1_000_000 / u64::from(trace.nodes[cluster] * PER_NODE)
                }
                _ => 0,
            };
            let open = waiting.range(..(too_large.min(nodes.free() + 1), 0));
            let heads = open.filter_map(|(&kind, line)| Some((share(kind.1), *line.first()?, kind)));
            let Some((_, head, kind)) = heads.min() else { break };
            if !nodes.place(head.1, kind.0) {
                too_large = kind.0;
                continue;
            }
            waiting.get_mut(&kind).expect("it was its head").remove(&head);
            used[kind.1] += kind.0;
            let job = &trace.jobs[jobs[head.1]];
            let end = now + millis(job.run_s).max(1);
            ends.insert((end, head.1));
            jct[head.1] = end as f64 / 1000.0 - job.arrival_s;
        }
    }
    jct
}
