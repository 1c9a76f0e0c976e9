//! What a rank takes of one node.

use std::collections::BTreeSet;

use super::*;
use crate::plan::price::UNIT;
use crate::plan::score::{Beside, Chosen};

/// Devices with what taking them costs.
type Fit = Vec<(i64, u16)>;

impl Room {
    /// Whether the node takes work.
    pub(in crate::plan) fn is_open(&self, id: NodeId) -> bool {
        self.nodes[id.0 as usize].entry.is_some()
    }

    /// Whether a rank would fit on a node that takes work.
    pub(in crate::plan) fn takes(&self, id: NodeId, request: &Request) -> bool {
        let RoomNode { free, entry, inventory, .. } = &self.nodes[id.0 as usize];
        let devices = &inventory.devices;
        let enough = |cpus_milli: u32| u64::from(cpus_milli) <= free.cpus_milli;
        let takes = |want: &DeviceRequest| {
            free.devices.iter().any(|first| {
                let take = Take::of(want, &self.classes[usize::from(first.class)]);
                take.is_some_and(|take| {
                    let alike =
                        free.devices.iter().filter(|device| device.class == first.class && take.fits(device));
                    let alike = match want.one_island && 1 < want.count {
                        true => islands(devices, alike.map(|device| device.index)).into_values().max(),
                        false => Some(alike.count() as u16),
                    };
                    enough(take.cpus_milli(request)) && Some(take.count) <= alike
                })
            })
        };
        entry.is_some()
            && request.memory_bytes <= free.memory_bytes
            && enough(request.cpus_milli)
            && (request.devices.is_empty() || request.devices.iter().any(takes))
    }

    /// The devices that a rank would take on a node of which so much is free, if it fits there.
    pub(in crate::plan) fn choose(
        &self,
        id: NodeId,
        left: &NodeFree,
        request: &Request,
        devices: Option<&DeviceRequest>,
        scarcity: &[i64],
    ) -> Option<Chosen> {
        if left.memory_bytes < request.memory_bytes {
            return None;
        }
        let (mut devices_milli, mut free_milli, mut whole) = (0, 0, 0);
        for device in &left.devices {
            devices_milli += device.compute_milli;
            if self.classes[usize::from(device.class)].vendor != Vendor::Cpu {
                free_milli += device.compute_milli;
                whole += u16::from(device.compute_milli == 1000);
            }
        }
        let idle = 1 < whole && usize::from(whole) == self.nodes[id.0 as usize].class_of.len();
        let core_value = self.prices.core_value;
        let worth_milli = worth_milli(&self.prices, left, &self.classes);
        let score = |take: Option<&Take>, cost: i64| {
            let cpus_milli = take.map_or(request.cpus_milli, |take| take.cpus_milli(request));
            let taken_milli = take.map_or(0, Take::accelerators_milli);
            let strand = Strand::of(taken_milli, cpus_milli, core_value, &self.grain);
            let free_milli = if taken_milli == 0 { worth_milli } else { free_milli };
            let beside = Beside { free_milli: free_milli.into(), cpus_milli: left.cpus_milli as i64 };
            let score = Score {
                cost: cost + strand.cost(beside, core_value),
                devices_left_milli: devices_milli - take.map_or(0, Take::devices_milli),
                cpus_left_milli: left.cpus_milli.checked_sub(cpus_milli.into())?,
                node: id,
            };
            Some((score, cpus_milli))
        };
        let Some(want) = devices else {
            let (score, cpus_milli) = score(None, beside_cost(free_milli != 0))?;
            return Some(Chosen { score, devices: Vec::new(), take: None, cpus_milli });
        };
        let of_class = |class: u16| {
            let device_class = &self.classes[usize::from(class)];
            let take = Take::of(want, device_class)?;
            let fit = left.devices.iter().filter(|device| device.class == class && take.fits(device));
            // Those that lose least by it; whole devices are all alike.
            let mut fit: Vec<(i64, u16)> = match take.slice {
                Some(_) => fit
                    .map(|device| {
                        (take.part_cost(&self.prices, &self.weights, device, device_class), device.index)
                    })
                    .collect(),
                None => fit.map(|device| (0, device.index)).collect(),
            };
            let fitting = fit.len();
            if fitting < usize::from(take.count) {
                return None;
            }
            fit.sort_unstable();
            let (fit, is_split) = self.nearest(id, want, fit)?;
            let gap_cost = match (take.cores, take.slice) {
                (true, _) => beside_cost(free_milli != 0),
                (false, Some(_)) => {
                    fit.iter().map(|(cost, _)| cost).sum::<i64>()
                        + if idle { self.weights.breaks * UNIT } else { 0 }
                }
                (false, None) => {
                    self.weights.whole_cost(whole, idle, take.count) + self.weights.split_cost(is_split)
                }
            };
            let scarce = scarcity[usize::from(class)] * i64::from(take.devices_milli());
            let (score, cpus_milli) = score(Some(&take), gap_cost + scarce)?;
            let mut devices: Vec<u16> = fit.into_iter().map(|(_, index)| index).collect();
            devices.sort_unstable();
            Some((fitting, device_class, Chosen { score, devices, take: Some(take), cpus_milli }))
        };
        let chosen = classes(&left.devices).filter_map(of_class);
        let best =
            chosen.min_by(|one, other| (one.2.score, one.0, one.1).cmp(&(other.2.score, other.0, other.1)));
        best.map(|(_, _, chosen)| chosen)
    }

    /// The devices that are taken of those that fit, which are enough and the cheapest first, and whether they are of
    /// several islands although the node has such. `None`: one island is required and has not so many.
    ///
    /// Whole devices are of one island if one has so many; of these, or of all, below one PCIe switch if there are so many below
    /// one, and else near one memory node.
    fn nearest(&self, id: NodeId, want: &DeviceRequest, mut fit: Fit) -> Option<(Fit, bool)> {
        let count = usize::from(want.count);
        let devices = &self.nodes[id.0 as usize].inventory.devices;
        let of = |index: u16| &devices[usize::from(index)];
        let counts = 1 < count && (want.one_island || want.slice.is_none());
        let is_linked = counts
            && self.nodes[id.0 as usize].is_linked
            && fit.iter().any(|(_, index)| of(*index).island.is_some());
        let of_one = is_linked.then(|| of_one_group(&fit, count, |index| of(index).island)).flatten();
        let is_split = is_linked && of_one.is_none();
        if want.one_island && count != 1 && of_one.is_none() {
            return None;
        }
        fit = of_one.unwrap_or(fit);
        if 1 < count && want.slice.is_none() && count < fit.len() {
            for group in [|it: &Device| it.locality.switch, |it: &Device| it.locality.numa_node] {
                fit = of_one_group(&fit, count, |index| group(of(index))).unwrap_or(fit);
            }
        }
        fit.truncate(count);
        Some((fit, is_split))
    }

    /// Of some nodes those that take work and have room for a rank, the best first. `O(nodes * (devices + log nodes))`.
    pub(in crate::plan) fn sorted(
        &self,
        nodes: &[NodeId],
        request: &Request,
        devices: Option<&DeviceRequest>,
        scarcity: &[i64],
    ) -> BTreeSet<Score> {
        let open = nodes.iter().filter(|id| self.is_open(**id));
        let score = |id: &NodeId| Some(self.choose(*id, self.on(*id), request, devices, scarcity)?.score);
        open.filter_map(score).collect()
    }

    /// What a rank takes of each class of devices.
    pub(in crate::plan) fn takes_of(&self, want: &DeviceRequest) -> Vec<Option<Take>> {
        self.classes.iter().map(|class| Take::of(want, class)).collect()
    }

    /// Ranks that a node has room for, no more than `most`: never fewer than there is room for, and exactly so many
    /// where each takes whole devices or a part of one. `O(devices)`.
    ///
    /// * `takes`: of [`Room::takes_of`]; `None`: no devices.
    pub(in crate::plan) fn bound(
        &self,
        id: NodeId,
        request: &Request,
        takes: Option<&[Option<Take>]>,
        most: u32,
    ) -> u32 {
        let RoomNode { free, inventory, .. } = &self.nodes[id.0 as usize];
        let times = |has: u64, wants: u64| has.checked_div(wants).unwrap_or(most.into());
        let others = times(free.cpus_milli, request.cpus_milli.into())
            .min(times(free.memory_bytes, request.memory_bytes))
            .min(most.into());
        let Some(takes) = takes else { return others as u32 };
        let of_class = |class: u16| {
            let take = takes[usize::from(class)].as_ref()?;
            let fit = free.devices.iter().filter(|device| device.class == class && take.fits(device));
            let count = u64::from(take.count);
            let ranks = match take.slice {
                Some(slice) => {
                    let parts = |device: &DeviceFree| {
                        let compute = times(device.compute_milli.into(), slice.compute_milli.into());
                        compute.min(times(device.memory_bytes, slice.memory_bytes))
                    };
                    fit.map(parts).sum::<u64>() / count
                }
                None if take.one_island => {
                    let islands = islands(&inventory.devices, fit.map(|device| device.index));
                    islands.into_values().map(|devices| u64::from(devices) / count).sum()
                }
                None => fit.count() as u64 / count,
            };
            Some(ranks.min(times(free.cpus_milli, take.cpus_milli(request).into())))
        };
        classes(&free.devices).filter_map(of_class).sum::<u64>().min(others) as u32
    }
}

/// The classes of some devices, each once.
fn classes(devices: &[DeviceFree]) -> impl Iterator<Item = u16> {
    let is_first =
        |(at, device): &(usize, &DeviceFree)| devices[..*at].iter().all(|other| other.class != device.class);
    devices.iter().enumerate().filter(is_first).map(|(_, device)| device.class)
}

/// Of devices that fit, the cheapest first, those of one group that has so many: of the cheapest, then of the smallest, so that
/// large ones stay whole. `None`: none has. `O(devices * log devices)`.
fn of_one_group(fit: &Fit, count: usize, group: impl Fn(u16) -> Option<u16>) -> Option<Fit> {
    let mut groups: BTreeMap<u16, Fit> = BTreeMap::new();
    for (cost, index) in fit {
        if let Some(group) = group(*index) {
            groups.entry(group).or_default().push((*cost, *index));
        }
    }
    let enough = groups.into_values().filter(|own| count <= own.len());
    let cost = |own: &Fit| own[..count].iter().map(|(cost, _)| cost).sum::<i64>();
    enough.min_by_key(|own| (cost(own), own.len()))
}
