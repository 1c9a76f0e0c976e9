//! A second look at what was decided, from the log alone.

use std::collections::BTreeMap;

use super::nodes::PER_NODE;
use super::ours::{Outcome, RESTART_MS};
use super::trace::Trace;

/// From a time on, a job holds so many devices of these nodes; none: it was stopped, or has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Milliseconds from the start of the trace.
    pub at_ms: u64,
    /// Index into the trace.
    pub job: usize,
    /// Nodes and devices.
    pub parts: Vec<(usize, u32)>,
}

/// Checks a log in the order of its entries: at no time a node is overbooked; gangs are whole, on one node if they
/// fit there and otherwise on whole nodes and a rest; every job runs after its submission, for as long as the trace
/// says and [`RESTART_MS`] more for each start after the first, and ends when the outcome says.
///
/// # Panics
/// If not, with the job.
pub fn check(trace: &Trace, log: &[Entry], outcome: &Outcome) {
    let mut free = vec![PER_NODE; trace.pool as usize];
    // Of each job that runs the index of the entry that says since when and where.
    let mut running: BTreeMap<usize, usize> = BTreeMap::new();
    let (mut ran_ms, mut starts) = (vec![0u64; trace.jobs.len()], vec![0u64; trace.jobs.len()]);
    let mut last_ms = vec![0u64; trace.jobs.len()];
    let mut now_ms = 0;
    for (index, Entry { at_ms, job, parts }) in log.iter().enumerate() {
        assert!(now_ms <= *at_ms, "the log goes back in time");
        now_ms = *at_ms;
        if let Some(begin) = running.remove(job).map(|begin| &log[begin]) {
            ran_ms[*job] += at_ms - begin.at_ms;
            last_ms[*job] = *at_ms;
            begin.parts.iter().for_each(|(node, devices)| free[*node] += devices);
        }
        if parts.is_empty() {
            continue;
        }
        let devices = trace.jobs[*job].devices;
        assert_eq!(parts.iter().map(|part| part.1).sum::<u32>(), devices, "job {job} is not whole");
        assert_eq!(parts.len() as u32, devices.div_ceil(PER_NODE), "job {job} is scattered");
        assert!((trace.jobs[*job].arrival_s * 1000.0) as u64 <= *at_ms, "job {job} runs before it is there");
        for (node, devices) in parts {
            assert!(*devices <= free[*node], "node {node} is overbooked by job {job}");
            free[*node] -= devices;
        }
        starts[*job] += 1;
        running.insert(*job, index);
    }
    assert!(running.is_empty(), "some run for ever");
    for (index, job) in trace.jobs.iter().enumerate() {
        let due_ms = ((job.run_s * 1000.0) as u64).max(1) + RESTART_MS * (starts[index] - 1);
        assert_eq!(ran_ms[index], due_ms, "job {index} with {} starts", starts[index]);
        let end_s = job.arrival_s + outcome.jct_s[index];
        assert!((end_s * 1000.0 - last_ms[index] as f64).abs() < 1.0, "job {index} ends at another time");
    }
}
