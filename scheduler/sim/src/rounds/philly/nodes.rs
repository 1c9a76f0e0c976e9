//! Where gangs stand: up to eight devices on one node, more on whole nodes and a rest.

use std::collections::BTreeMap;

/// Devices of a node.
pub const PER_NODE: u32 = 8;

/// Free devices of each node, and what every job holds.
#[derive(Clone, Debug)]
pub struct Nodes {
    free: Vec<u32>,
    held: BTreeMap<usize, Vec<(usize, u32)>>,
}

impl Nodes {
    /// All free.
    pub fn new(nodes: u32) -> Nodes {
        Nodes { free: vec![PER_NODE; nodes as usize], held: BTreeMap::new() }
    }

    /// Devices that a job holds.
    pub fn held(&self, job: usize) -> u32 {
        self.held.get(&job).map_or(0, |parts| parts.iter().map(|part| part.1).sum())
    }

    /// All free devices.
    pub fn free(&self) -> u32 {
        self.free.iter().sum()
    }

    /// Gives back what a job holds.
    pub fn release(&mut self, job: usize) {
        for (node, devices) in self.held.remove(&job).unwrap_or_default() {
            self.free[node] += devices;
        }
    }

    /// Places a gang: the rest on the fullest node where it fits, whole nodes for the others. False, and nothing
    /// has changed, if it fits nowhere.
    pub fn place(&mut self, job: usize, devices: u32) -> bool {
        let (whole, rest) = (devices / PER_NODE, devices % PER_NODE);
        let empty = |node: &usize| self.free[*node] == PER_NODE;
        let mut parts: Vec<_> =
            (0..self.free.len()).filter(empty).take(whole as usize).map(|node| (node, PER_NODE)).collect();
        if parts.len() < whole as usize {
            return false;
        }
        if 0 < rest {
            let fits = |node: &usize| rest <= self.free[*node] && parts.iter().all(|part| part.0 != *node);
            let fullest = (0..self.free.len()).filter(fits).min_by_key(|node| self.free[*node]);
            let Some(node) = fullest else { return false };
            parts.push((node, rest));
        }
        for (node, devices) in &parts {
            self.free[*node] -= devices;
        }
        self.held.insert(job, parts);
        true
    }

    /// Makes room for a gang by moving smaller ones, from the nodes where that does least harm; returns the jobs
    /// that lost their place. There may be too little room all the same.
    pub fn clear_for(&mut self, devices: u32, harm: &dyn Fn(usize) -> u64) -> Vec<usize> {
        let want = devices.min(PER_NODE);
        let mut out = Vec::new();
        for _ in 0..devices.div_ceil(PER_NODE) {
            // Jobs on each node that may move, the least harm first.
            let mut movable: Vec<Vec<(u64, usize, u32)>> = vec![Vec::new(); self.free.len()];
            for (job, parts) in &self.held {
                if let [(node, held)] = parts[..]
                    && held < want
                {
                    movable[node].push((harm(*job), *job, held));
                }
            }
            let mut least: Option<(u64, Vec<usize>)> = None;
            for (node, mut jobs) in movable.into_iter().enumerate().filter(|of| self.free[of.0] < want) {
                jobs.sort_unstable();
                let (mut missing, mut sum, mut moved) = (want - self.free[node], 0, Vec::new());
                for (harm, job, held) in jobs {
                    if missing == 0 {
                        break;
                    }
                    missing = missing.saturating_sub(held);
                    sum += harm;
                    moved.push(job);
                }
                if missing == 0 && least.as_ref().is_none_or(|least| sum < least.0) {
                    least = Some((sum, moved));
                }
            }
            let Some((_, moved)) = least else { break };
            moved.iter().for_each(|job| self.release(*job));
            out.extend(moved);
        }
        out
    }

    /// The nodes' free devices are as what is held says.
    ///
    /// # Panics
    /// If not.
    pub fn check(&self) {
        let mut free = vec![PER_NODE; self.free.len()];
        for (node, devices) in self.held.values().flatten() {
            assert!(*devices <= free[*node], "node {node} is overbooked");
            free[*node] -= devices;
        }
        assert_eq!(free, self.free);
    }
}
