//! Jobs and the parts of the virtual clusters.

use std::collections::BTreeMap;

use super::nodes::PER_NODE;

/// One job.
#[derive(Clone, Debug)]
pub struct Job {
    /// Seconds from the first submission.
    pub arrival_s: f64,
    /// Seconds that it runs.
    pub run_s: f64,
    /// Devices; up to 8 on one node.
    pub devices: u32,
    /// Index of its virtual cluster.
    pub cluster: usize,
}

/// Jobs in the order of their submission, and how many nodes each virtual cluster owns.
#[derive(Clone, Debug)]
pub struct Trace {
    /// By submission.
    pub jobs: Vec<Job>,
    /// Nodes of each virtual cluster, if it were alone.
    pub nodes: Vec<u32>,
    /// Nodes of the pool.
    pub pool: u32,
}

/// Devices of the largest job that is kept.
const LARGEST: u32 = 64;
/// Longest run, in seconds: one week; what is longer is cut.
const LONGEST_S: f64 = 7.0 * 86_400.0;

impl Trace {
    /// Reads `timestamp,duration,num_gpus,gpu_time,cluster`, cuts runs at a week, drops clusters with less than a
    /// thousandth of the device time, and makes a pool that is loaded to `load`: of each cluster a part in
    /// proportion to its device time, in whole nodes, the nearest number. A cluster alone gets as many as its
    /// largest job needs.
    ///
    /// # Errors
    /// A sentence with the number of the line.
    pub fn parse(text: &str, load: f64) -> Result<Trace, String> {
        let mut rows = Vec::new();
        for (index, line) in text.lines().enumerate().skip(1).filter(|line| !line.1.is_empty()) {
            rows.push(row(line).ok_or_else(|| format!("line {}: not five columns: {line:?}", index + 1))?);
        }
        rows.sort_by_key(|row| row.0);
        let (Some(first), Some(last)) = (rows.first().map(|row| row.0), rows.last().map(|row| row.0)) else {
            return Err("no jobs".into());
        };
        let mut device_s: BTreeMap<&str, f64> = BTreeMap::new();
        for (_, run_s, devices, cluster) in &rows {
            *device_s.entry(cluster).or_default() += run_s * f64::from(*devices);
        }
        let all: f64 = device_s.values().sum();
        device_s.retain(|_, of| all / 1000.0 < *of);
        let names: Vec<&str> = device_s.keys().copied().collect();
        let all: f64 = device_s.values().sum();
        let pool = all / ((last - first) as f64 * load * f64::from(PER_NODE));
        let largest = |name: &str| {
            let of = rows.iter().filter(|row| row.3 == name && row.2 <= LARGEST).map(|row| row.2);
            of.max().unwrap_or(1).div_ceil(PER_NODE)
        };
        let parts: Vec<u32> = device_s.values().map(|of| ((of / all * pool).round() as u32).max(1)).collect();
        let nodes = device_s.keys().zip(&parts).map(|(name, part)| largest(name).max(*part)).collect();
        let jobs = rows.iter().filter_map(|(at, run_s, devices, cluster)| {
            let cluster = names.iter().position(|name| name == cluster)?;
            let job = Job { arrival_s: (at - first) as f64, run_s: *run_s, devices: *devices, cluster };
            (*devices <= LARGEST && 0.0 < *run_s).then_some(job)
        });
        Ok(Trace { jobs: jobs.collect(), nodes, pool: parts.iter().sum() })
    }
}

/// Seconds since 1970, seconds of run, devices, cluster.
fn row(line: &str) -> Option<(i64, f64, u32, &str)> {
    let columns: Vec<_> = line.split(',').collect();
    let [at, run, devices, _, cluster] = columns[..] else { return None };
    let numbers: Vec<i64> = at.split(['-', ' ', ':']).map(str::parse).collect::<Result<_, _>>().ok()?;
    let [year, month, day, hour, minute, second] = numbers[..] else { return None };
    // Days since 1970: Hinnant, "chrono-compatible low-level date algorithms".
    let (y, m) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let at = days * 86_400 + hour * 3600 + minute * 60 + second;
    Some((at, run.parse::<f64>().ok()?.min(LONGEST_S), devices.parse().ok()?, cluster))
}
