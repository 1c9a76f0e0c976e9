//! What jobs hold, and what that counts.

use super::Job;
use crate::event::Spent;
use crate::types::*;

/// Resources times the time for which they were held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Devices times milliseconds.
    pub device_ms: u64,
    /// Thousandths of a core times milliseconds.
    pub cpu_milli_ms: u64,
    /// The part of `device_ms` that attempts which were placed again had spent since their last checkpoint.
    pub lost_device_ms: u64,
    /// What it counted against its queue, see [`Charge::worth_milli`], until `counted_at`: milliseconds of a reference device, or
    /// of one that costs 1 an hour.
    pub counted_ms: u64,
    /// When what it counts has changed last.
    pub counted_at: Time,
    /// Of a training: where its time has gone, up to its last attempt that has ended. See [`Cluster::spent`].
    ///
    /// [`Cluster::spent`]: crate::Cluster::spent
    pub spent: Spent,
}

/// What a job that holds resources counts against its queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    /// Against guarantee and limit, in thousandths of a device. See [`Allocation::charge_milli`].
    pub milli: u64,
    /// For the usage: the same, each device by its price or speed when the job was placed, in thousandths of a
    /// reference device. See [`Tariff::hour_milli`](crate::Tariff::hour_milli).
    pub worth_milli: u64,
}

impl Job {
    /// Devices that its attempt holds now, in thousandths of one.
    pub fn devices_held_milli(&self) -> u64 {
        self.in_attempt().iter().filter(|rank| !rank.devices.is_empty()).map(|rank| rank.charge_milli).sum()
    }

    /// What it counts against its queue, in thousandths of a device. See [`Allocation::charge_milli`].
    pub fn charge_milli(&self) -> u64 {
        self.ranks.iter().map(|rank| rank.charge_milli).sum()
    }

    /// What it has counted for the usage of its queue until `now`. See [`Usage::counted_ms`].
    pub fn counted_ms(&self, now: Time) -> u64 {
        let since = u128::from(self.worth_milli) * u128::from(now.since(self.usage.counted_at)) / 1000;
        self.usage.counted_ms.saturating_add(since as u64)
    }

    /// From now on it counts so much for the usage of its queue.
    pub(crate) fn set_worth(&mut self, now: Time, worth_milli: u64) {
        (self.usage.counted_ms, self.usage.counted_at) = (self.counted_ms(now), now);
        self.worth_milli = worth_milli;
    }

    /// What it counts against its queue.
    pub fn charge(&self) -> Charge {
        Charge { milli: self.charge_milli(), worth_milli: self.worth_milli }
    }

    /// Adds what an attempt held that ends now, and what of it was lost.
    pub(crate) fn add_usage(&mut self, now: Time, lost_ms: u64) {
        let Some(placed) = self.placed.filter(|_| !self.ranks.is_empty()) else { return };
        let ms = now.since(placed);
        let devices_milli = self.devices_held_milli();
        self.usage.device_ms += devices_milli * ms / 1000;
        self.usage.lost_device_ms += devices_milli * lost_ms.min(ms) / 1000;
        let cpus: u64 = self.in_attempt().iter().map(|rank| u64::from(rank.cpus_milli)).sum();
        self.usage.cpu_milli_ms += cpus * ms;
    }
}
