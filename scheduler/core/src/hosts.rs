//! Where the ranks of a gang stand: what frameworks find in host files and rank tables.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cluster::Cluster;
use crate::inventory::Vendor;
use crate::jobs::Job;
use crate::types::*;

/// Ranks of a gang whose workers are told where all of them stand, at most: every node is told of all others, which
/// grows with the square of the gang. At this bound it is some 70 KB a node.
pub const MOST_LISTED_RANKS: usize = 4096;

/// An address with ranks of a gang. They are listed in the order of their lowest ranks, for gangs of commands of 2 to
/// [`MOST_LISTED_RANKS`] ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Host name or IP address under which the node's workers are reached.
    pub address: Name,
    /// In the order of ranks.
    pub seats: Vec<Seat>,
}

/// What a rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Number of its worker: [`Allocation::rank`].
    pub rank: u32,
    /// Maker of its devices; `None`: it has none.
    pub vendor: Option<Vendor>,
    /// Numbers of its devices: [`Device::number`](crate::Device::number).
    pub devices: Vec<u32>,
}

impl Cluster {
    /// Where the ranks of a job stand, if its workers are told.
    pub(crate) fn hosts(&self, job: &Job) -> Arc<[Host]> {
        let is_command = |role: &Role| matches!(role.program, Program::Command(_));
        let is_listed = (2..=MOST_LISTED_RANKS).contains(&job.ranks.len());
        let mut hosts: Vec<Host> = Vec::new();
        if !is_listed || !job.spec.roles.iter().any(is_command) {
            return hosts.into();
        }
        let mut known: BTreeMap<&Name, usize> = BTreeMap::new();
        for rank in &job.ranks {
            let inventory = &self.nodes().get(rank.node).inventory;
            let at = *known.entry(&inventory.address).or_insert(hosts.len());
            if at == hosts.len() {
                hosts.push(Host { address: inventory.address.clone(), seats: Vec::new() });
            }
            let held = rank.devices.iter().filter_map(|index| inventory.devices.get(usize::from(*index)));
            hosts[at].seats.push(Seat {
                rank: rank.rank,
                vendor: held.clone().next().map(|device| device.class.vendor),
                devices: held.map(|device| device.number).collect(),
            });
        }
        hosts.into()
    }
}
