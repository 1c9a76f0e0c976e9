//! Scoring formulas of the baselines. Source of each: `POLICIES` of docs/simulate.md.

use super::Kind;
use super::fgd::Target;
use super::pool::NodeState;
use crate::Rng;
use crate::replay::workload::{MAX_DEVICES, Spec, WHOLE, Workload};

/// Most processors of a node in the trace that the formulas were made for, in thousandths of a core.
const MOST_CPUS_MILLI: f64 = 128_000.0;
/// Most of devices, in thousandths.
const MOST_DEVICES_MILLI: i64 = 8000;

/// How good a node is; the largest wins, of equals the first node.
#[derive(Clone, Debug)]
pub enum Scorer {
    /// See [`Target`].
    Fgd(Box<Target>),
    /// A formula.
    Formula(Kind),
}

impl Scorer {
    /// That of a policy; `None` if it is none that scores nodes.
    pub fn new(kind: Kind, workload: &Workload) -> Option<Scorer> {
        match kind {
            Kind::Ours => None,
            Kind::Fgd => Some(Scorer::Fgd(Box::new(Target::new(workload)))),
            kind => Some(Scorer::Formula(kind)),
        }
    }

    /// Whether nodes are drawn by chance instead.
    pub fn is_random(&self) -> bool {
        matches!(self, Scorer::Formula(Kind::Random))
    }

    /// What is worth knowing about a node before requests are scored on it.
    pub fn prepare(&self, node: &NodeState) -> f64 {
        match self {
            Scorer::Fgd(target) => target.fragmentation(node),
            Scorer::Formula(_) => 0.0,
        }
    }

    /// Scores a node that has room.
    pub fn score(&self, node: &NodeState, prepared: f64, spec: &Spec) -> i64 {
        let kind = match self {
            Scorer::Fgd(target) => return target.score(node, prepared, spec).0,
            Scorer::Formula(kind) => *kind,
        };
        match kind {
            Kind::BestFit => best_fit(node, spec),
            Kind::DotProduct => dot_product(node, spec),
            Kind::GpuPacking => gpu_packing(node, spec),
            Kind::GpuClustering => gpu_clustering(node, spec),
            Kind::Volcano => volcano(node, spec),
            Kind::Kai => kai(node, spec),
            Kind::Spread => spread(node, spec),
            Kind::Ours | Kind::Fgd | Kind::FirstFit | Kind::Random => 0,
        }
    }

    /// The devices that a rank takes on the chosen node, as bits.
    pub fn devices(&self, node: &NodeState, prepared: f64, spec: &Spec, rng: &mut Rng) -> u16 {
        if !spec.is_share() {
            return node.first_devices(spec);
        }
        let device = match self {
            Scorer::Fgd(target) => return target.score(node, prepared, spec).1,
            Scorer::Formula(Kind::Spread) => node.emptiest_device(spec),
            Scorer::Formula(Kind::Random) => {
                let roomy: Vec<usize> =
                    (0..usize::from(node.devices)).filter(|device| node.has_room(*device, spec)).collect();
                Some(*rng.pick(&roomy))
            }
            Scorer::Formula(_) => node.fullest_device(spec),
        };
        1 << device.expect("a device that has room")
    }
}

/// Thousandths of devices that a rank takes.
fn asked_milli(spec: &Spec) -> u64 {
    u64::from(spec.devices) * u64::from(spec.share_milli)
}

/// Source: `best_fit_score.go` of the simulator of FGD.
fn best_fit(node: &NodeState, spec: &Spec) -> i64 {
    let cpus = f64::from(node.cpus_milli.0 - spec.cpus_milli) / MOST_CPUS_MILLI * 0.5;
    let devices = (node.free_milli() - asked_milli(spec)) as f64 / MOST_DEVICES_MILLI as f64 * 0.5;
    ((1.0 - (0.0 + cpus + devices)) * 100.0) as i64
}

/// Source: `dot_product_score.go` of the simulator of FGD, dimensions merged, normalised by the largest node; Grandl
/// et al., "Multi-resource packing for cluster schedulers", SIGCOMM 2014.
fn dot_product(node: &NodeState, spec: &Spec) -> i64 {
    let cpus =
        f64::from(node.cpus_milli.0) / MOST_CPUS_MILLI * (f64::from(spec.cpus_milli) / MOST_CPUS_MILLI);
    let most = MOST_DEVICES_MILLI as f64;
    let devices = node.free_milli() as f64 / most * (asked_milli(spec) as f64 / most);
    (100.0 * (1.0 - (0.0 + cpus + devices) / 2.0)) as i64
}

/// Source: `gpu_packing_score.go` of the simulator of FGD.
fn gpu_packing(node: &NodeState, spec: &Spec) -> i64 {
    if spec.devices == 0 {
        return 0;
    }
    let whole = node.whole_devices() as i64;
    if whole == i64::from(node.devices) {
        return (100 / 3 - whole).max(whole);
    }
    let mut free = [0; MAX_DEVICES];
    let free = &mut free[..usize::from(node.devices)];
    free.copy_from_slice(node.free());
    free.sort_unstable();
    let used = free.iter().filter(|free| spec.share_milli <= **free).take(spec.devices.into());
    let whole_used = used.clone().filter(|free| **free == WHOLE).count() as i64;
    if 0 < whole_used {
        return (100 / 2 - whole_used).max(100 / 3);
    }
    let free_on_used: i64 = used.map(|free| i64::from(*free) * 100 / i64::from(WHOLE)).sum();
    (100 - free_on_used / 10).max(100 / 2)
}

/// Source: `gpu_clustering_score.go` of the simulator of FGD.
fn gpu_clustering(node: &NodeState, spec: &Spec) -> i64 {
    if spec.devices == 0 {
        return 0;
    }
    let size = if spec.is_share() { 0 } else { usize::from(spec.devices) };
    let kinds = node.sizes.iter().filter(|jobs| 0 < **jobs).count();
    let base = match (0 < node.sizes[size], kinds) {
        (true, 1) => 75,
        (true, _) => 50,
        (false, 0) => 25,
        (false, _) => 0,
    };
    25 * (MOST_DEVICES_MILLI - node.free_milli() as i64) / MOST_DEVICES_MILLI + base
}

/// Thousand millionths, so that fractions can be compared as whole numbers.
fn billionths(fraction: f64) -> i64 {
    (fraction * 1e9) as i64
}

/// The mean use after placement of what is asked for: processors, memory, devices, of equal weight.
///
/// Source: Volcano, `pkg/scheduler/plugins/binpack/binpack.go`.
fn volcano(node: &NodeState, spec: &Spec) -> i64 {
    let used = |free: f64, all: f64, asked: f64| if 0.0 < asked { (all - free + asked) / all } else { 0.0 };
    let cpus = used(node.cpus_milli.0.into(), node.cpus_milli.1.into(), spec.cpus_milli.into());
    let memory = used(node.memory_bytes.0 as f64, node.memory_bytes.1 as f64, spec.memory_bytes as f64);
    let all_milli = u64::from(node.devices) * u64::from(WHOLE);
    let devices = used(node.free_milli() as f64, all_milli as f64, asked_milli(spec) as f64);
    let weights = [0 < spec.cpus_milli, 0 < spec.memory_bytes, 0 < spec.devices];
    let weight = weights.iter().filter(|weighs| **weighs).count().max(1);
    billionths((cpus + memory + devices) / weight as f64)
}

/// The node with the fewest free devices, or processors where no device is asked for.
///
/// Source: KAI, `pkg/scheduler/plugins/nodeplacement/pack.go`. Its scale depends on the fullest and emptiest node, but
/// not the order.
fn kai(node: &NodeState, spec: &Spec) -> i64 {
    match spec.devices {
        0 => -i64::from(node.cpus_milli.0),
        _ => -(node.free_milli() as i64),
    }
}

/// The mean of what would be free after placement, of processors and memory, and of devices where some are asked for.
///
/// Source: Kubernetes, `noderesources/least_allocated.go`.
fn spread(node: &NodeState, spec: &Spec) -> i64 {
    let free = |free: f64, all: f64, asked: f64| if 0.0 < all { (free - asked) / all } else { 0.0 };
    let cpus = free(node.cpus_milli.0.into(), node.cpus_milli.1.into(), spec.cpus_milli.into());
    let memory = free(node.memory_bytes.0 as f64, node.memory_bytes.1 as f64, spec.memory_bytes as f64);
    let all_milli = f64::from(node.devices) * f64::from(WHOLE);
    let devices = free(node.free_milli() as f64, all_milli, asked_milli(spec) as f64);
    match spec.devices {
        0 => billionths((cpus + memory) / 2.0),
        _ => billionths((cpus + memory + devices) / 3.0),
    }
}
