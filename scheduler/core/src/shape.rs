//! What jobs have in common that fit alike.

use std::cmp::Ordering;

use crate::jobs::Job;
use crate::topology::{Standing, Topology};
use crate::types::*;

/// What must be equal for two jobs to fit alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The fewest ranks that it starts with and their request, role by role.
    pub roles: Vec<(u32, Request)>,
    /// Where all ranks stand together, and how those of each role keep away from each other.
    pub topology: Topology,
    #[allow(missing_docs)]
    pub standings: Vec<Standing>,
    /// A job that ends in time may use what is kept for another.
    pub time_limit_ms: Option<u64>,
    /// How long after its limit it is gone for certain; 0 without a limit.
    pub grace_ms: u64,
    /// The reservation that it is for.
    pub reservation: Option<Name>,
    /// Reservations that it may use, by name.
    pub may_use: Vec<Name>,
}

/// Jobs that fit alike share their shape, so most of those that are compared are the same one.
impl Ord for Shape {
    fn cmp(&self, other: &Shape) -> Ordering {
        let Shape { roles, topology, standings, time_limit_ms, grace_ms, reservation, may_use } = self;
        match std::ptr::eq(self, other) {
            true => Ordering::Equal,
            false => (roles, topology, standings, time_limit_ms, grace_ms, reservation, may_use).cmp(&(
                &other.roles,
                &other.topology,
                &other.standings,
                &other.time_limit_ms,
                &other.grace_ms,
                &other.reservation,
                &other.may_use,
            )),
        }
    }
}

impl PartialOrd for Shape {
    fn partial_cmp(&self, other: &Shape) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Job {
    /// What it asks for, as far as placement goes. See [`Jobs::shape`](crate::jobs::Jobs::shape).
    pub fn shape(&self) -> Shape {
        let roles = self.spec.roles.iter().map(|role| (role.least(), role.request.clone())).collect();
        let standings = self.spec.roles.iter().map(|role| role.standing.clone()).collect();
        let JobSpec { time_limit_ms, grace_ms, ref reservation, ref topology, .. } = *self.spec;
        let (reservation, topology) = (reservation.clone(), topology.clone());
        let grace_ms = if time_limit_ms.is_some() { grace_ms } else { 0 };
        Shape { roles, topology, standings, time_limit_ms, grace_ms, reservation, may_use: Vec::new() }
    }
}

impl Shape {
    /// What a job of the shape will about count against its queue, in thousandths of a device: as much as its first
    /// alternatives take.
    pub fn wants_milli(&self) -> u64 {
        let wants = |request: &Request| match request.devices.first() {
            None => u64::from(request.cpus_milli),
            Some(devices) => {
                let share = devices.slice.map_or(1000, |slice| slice.compute_milli);
                u64::from(devices.count) * u64::from(if share == 0 { 1000 } else { share })
            }
        };
        self.roles.iter().map(|(ranks, request)| u64::from(*ranks) * wants(request)).sum()
    }
}
