//! What an hour of devices costs, as the operator of the pool says.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cluster::Cluster;
use crate::effect::{Answer, Note, Refusal};
use crate::types::*;

/// Prices that a tariff has, at most.
pub const MAX_PRICES: usize = 1024;

/// Prices of device hours, by model. Without any, what an hour of a device counts is its speed.
///
/// Prices are of any one unit, as is said of devices' speeds: so many thousandths of it an hour of a whole device. Where only
/// some classes have one, that of the others is their speed in thousandths of the reference device: then the unit is an hour
/// of that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tariff(BTreeMap<Name, u64>);

impl Tariff {
    /// Of these prices: models, as in [`DeviceRequest::model`], each with thousandths of a unit an hour, at least 1.
    pub fn new(prices: impl IntoIterator<Item = (Name, u64)>) -> Tariff {
        Tariff(prices.into_iter().collect())
    }

    /// The prices, by model.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, u64)> {
        self.0.iter().map(|(model, milli)| (model, *milli))
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Price of a device hour of a class: that of its model, or of most of its first words; `None`: it has none.
    /// `O(words of the model)`.
    pub fn of(&self, class: &DeviceClass) -> Option<u64> {
        if self.0.is_empty() {
            return None;
        }
        let words = class.model.match_indices('-').map(|(at, _)| &class.model[..at]);
        let whole = std::iter::once(&*class.model);
        whole.chain(words.rev()).find_map(|model| self.0.get(model).copied())
    }

    /// About what a device hour costs, in thousandths of a unit: the mean of the prices; where there are none, an hour of the
    /// reference device.
    pub fn mean_milli(&self) -> u64 {
        let sum: u64 = self.0.values().sum();
        sum.checked_div(self.0.len() as u64).unwrap_or(1000)
    }

    /// What an hour of the device counts: its price, or else its speed.
    pub fn hour_milli(&self, device: &Device) -> u64 {
        self.of(&device.class).unwrap_or(device.speed_milli.into())
    }
}

impl Cluster {
    /// Prices of device hours.
    pub fn tariff(&self) -> &Tariff {
        &self.tariff
    }

    /// An operator says what an hour of devices costs of a model; `None`: their speed. It counts for what is placed from now on.
    pub(crate) fn set_price(
        &mut self,
        now: Time,
        model: Name,
        milli: Option<u64>,
    ) -> Result<Answer, Refusal> {
        let known = self.tariff.0.get(&model).copied();
        if known == milli {
            return Ok(Answer::Done);
        }
        if known.is_none() && self.tariff.0.len() == MAX_PRICES {
            return Err(Refusal::Malformed("a pool has at most 1,024 prices"));
        }
        let tariff = Arc::make_mut(&mut self.tariff);
        match milli {
            Some(milli) => _ = tariff.0.insert(model.clone(), milli),
            None => _ = tariff.0.remove(&model),
        }
        self.note(Note::PriceSet { model, milli });
        self.tariff_changed();
        self.plan_anew(now);
        Ok(Answer::Done)
    }

    /// What a rank counts for the usage of its queue. See [`Node::worth_milli`](crate::nodes::Node::worth_milli).
    pub(crate) fn worth_milli(&self, rank: &Allocation) -> u64 {
        self.nodes.get(rank.node).worth_milli(rank, &self.tariff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_model_says_the_price() {
        let tariff = Tariff::new([("h100".into(), 2_000), ("h100-80gb".into(), 3_000), ("t4".into(), 100)]);
        let of = |model: &str| {
            tariff.of(&DeviceClass { vendor: Vendor::Nvidia, model: model.into(), memory_bytes: 0 })
        };
        assert_eq!(of("h100"), Some(2_000));
        assert_eq!(of("h100-80gb-hbm3"), Some(3_000));
        assert_eq!(of("h100-80gb"), Some(3_000));
        assert_eq!(of("h100-94gb"), Some(2_000));
        assert_eq!((of("h1000"), of("t"), of("a100")), (None, None, None));
    }
}
