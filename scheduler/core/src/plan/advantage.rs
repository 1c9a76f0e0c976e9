//! Which class of devices serves the pool best where a job accepts several: comparative advantage.
//!
//! The work of a job costs on a class the price of the class over the speed of the job there. The price of a class is
//! its mean speed over what is asked for: a job that is as fast everywhere as others are is indifferent, one that gains
//! little from a fast class leaves it to those that gain much. Where the operator says what a class costs, that is its price.
//! Where all speeds and prices are equal, nothing is added.
//!
//! Source: Ricardo, "On the Principles of Political Economy and Taxation", 1817, chapter 7.

use std::sync::Arc;

use super::price::{Prices, UNIT};
use crate::speed::{Kind, Speeds};
use crate::tariff::Tariff;
use crate::types::*;

/// A class that costs more than this, in [`UNIT`]s of its devices, costs no less than others that do.
const MOST: u128 = 64 * UNIT as u128;
/// What the slowest class costs beyond the fastest, where all serve the pool alike: a little, so that the fast ones are
/// not left idle.
const TIE: u128 = UNIT as u128 / 64;
/// Unit of costs that are compared.
const ONE: u128 = 1 << 20;

/// What is known of the classes of a room, by their numbers.
#[derive(Clone, Debug)]
pub(super) struct Worth {
    /// Each with the mean figure of its devices, in thousandths of a reference device.
    classes: Vec<(Arc<DeviceClass>, u64)>,
    /// What an hour costs as the operator says, or else the mean speed over what is asked for, in the same unit.
    price: Vec<u64>,
    /// Whether every program is as fast on one class as on another, and they cost the same.
    is_even: bool,
    /// Version of the speeds that it was learned from; `None`: something else has changed since.
    learned_from: Option<u64>,
}

/// What is known of one class, for one kind of program. In thousandths of a reference device, at least 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassSpeed {
    /// The class.
    pub class: Arc<DeviceClass>,
    /// Speed of the kind there.
    pub speed: u64,
    /// As the operator says, or else the mean speed over what is asked for.
    pub price: u64,
}

/// Sums and number of the figures of a class's devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Figure {
    pub sum: u64,
    /// The same of how fast they read their memory.
    pub memory_sum: u64,
    pub devices: u64,
}

impl Figure {
    pub fn of(device: &Device) -> Figure {
        Figure { sum: device.speed_milli.into(), memory_sum: device.memory_milli(), devices: 1 }
    }

    pub fn add(&mut self, other: Figure) {
        self.sum += other.sum;
        self.memory_sum += other.memory_sum;
        self.devices += other.devices;
    }

    pub fn remove(&mut self, other: Figure) {
        self.sum -= other.sum;
        self.memory_sum -= other.memory_sum;
        self.devices -= other.devices;
    }

    /// In thousandths of a reference device, at least 1.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.devices).unwrap_or(1000).max(1)
    }

    /// How fast they read their memory, in the same unit.
    pub fn memory_mean(&self) -> u64 {
        self.memory_sum.checked_div(self.devices).unwrap_or(1000).max(1)
    }
}

impl Default for Worth {
    fn default() -> Worth {
        Worth { classes: Vec::new(), price: Vec::new(), is_even: true, learned_from: None }
    }
}

impl Worth {
    /// What it was learned from has changed.
    pub fn forget(&mut self) {
        self.learned_from = None;
    }

    /// Brings it up to date. Without news, `O(1)`; else `O(kinds * classes)`.
    pub fn learn(
        &mut self,
        speeds: &Speeds,
        (prices, tariff): (&Prices, &Tariff),
        classes: impl Iterator<Item = (Arc<DeviceClass>, Figure)>,
    ) {
        if self.learned_from == Some(speeds.version()) {
            return;
        }
        self.learned_from = Some(speeds.version());
        self.classes = classes.map(|(class, figure)| (class, figure.mean())).collect();
        let figures = self.classes.iter().map(|(_, figure)| u128::from(*figure));
        let asked: u64 = prices.kinds.values().sum();
        // Kinds of which nothing else is known are as fast as the figures say.
        let mut sums: Vec<u128> = figures.clone().map(|figure| figure * u128::from(asked.max(1))).collect();
        self.is_even = self.classes.iter().all(|(_, figure)| *figure == self.classes[0].1);
        for kind in speeds.compared() {
            self.is_even = false;
            let Some(asked) = prices.kinds.get(kind) else { continue };
            let relative = speeds.relative(kind, &self.classes).into_iter().map(u128::from);
            for ((sum, speed), figure) in sums.iter_mut().zip(relative).zip(figures.clone()) {
                *sum = *sum - u128::from(*asked) * figure + u128::from(*asked) * speed;
            }
        }
        let mean = |sum: &u128| (sum / u128::from(asked.max(1))).max(1) as u64;
        let set: Vec<Option<u64>> = self.classes.iter().map(|(class, _)| tariff.of(class)).collect();
        self.price = sums.iter().zip(&set).map(|(sum, set)| set.unwrap_or(mean(sum))).collect();
        self.is_even &= set.iter().all(Option::is_none) || self.price.iter().all(|it| *it == self.price[0]);
    }

    /// What a thousandth of each class costs a job of the kind beyond the one that serves the pool best, in [`UNIT`]s.
    /// `None`: nothing.
    pub fn costs(
        &self,
        speeds: &Speeds,
        kind: impl FnOnce() -> Kind,
        want: &DeviceRequest,
    ) -> Option<Vec<i64>> {
        if self.is_even {
            return None;
        }
        let speed = speeds.relative(&kind(), &self.classes);
        let ratio = |class: usize| (u128::from(self.price[class]) * ONE / u128::from(speed[class])).max(1);
        let accepted = || (0..speed.len()).filter(|class| want.accepts(&self.classes[*class].0));
        let least = accepted().map(ratio).min()?;
        let fastest = u128::from(accepted().map(|class| speed[class]).max()?);
        let cost = |class: usize| {
            let excess = ((ratio(class) - least) * UNIT as u128 / least).min(MOST);
            let tie = fastest.saturating_sub(speed[class].into()) * TIE / fastest;
            (excess + tie) as i64
        };
        let mut costs = vec![0; speed.len()];
        accepted().for_each(|class| costs[class] = cost(class));
        Some(costs)
    }

    /// Whether every program is as fast on one class as on another, as far as is known, and they cost the same.
    pub fn is_even(&self) -> bool {
        self.is_even
    }

    /// The classes, each with the speed of the kind there and its price.
    pub fn class_speeds(&self, speeds: &Speeds, kind: &Kind) -> impl Iterator<Item = ClassSpeed> {
        let speed = speeds.relative(kind, &self.classes);
        let all = self.classes.iter().zip(speed).zip(&self.price);
        all.map(|(((class, _), speed), price)| ClassSpeed { class: class.clone(), speed, price: *price })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANT: DeviceRequest = DeviceRequest {
        count: 1,
        vendor: None,
        model: None,
        memory_bytes: 0,
        slice: None,
        isolation: Isolation::Advisory,
        one_island: false,
    };

    fn priced<const N: usize>(figures: &[(&str, u64)], speeds: &Speeds, prices: [(Name, u64); N]) -> Worth {
        let class = |model: &str| {
            Arc::new(DeviceClass { vendor: Vendor::Nvidia, model: model.into(), memory_bytes: 0 })
        };
        let figure = |sum| Figure { sum, memory_sum: sum, devices: 1 };
        let mut worth = Worth::default();
        let classes = figures.iter().map(|(model, milli)| (class(model), figure(*milli)));
        worth.learn(speeds, (&Prices::default(), &Tariff::new(prices)), classes);
        worth
    }

    fn worth(figures: &[(&str, u64)], speeds: &Speeds) -> Worth {
        priced(figures, speeds, [])
    }

    fn train(model: &str) -> Kind {
        Kind::Train(model.into())
    }

    #[test]
    fn even_speeds_cost_nothing() {
        let speeds = Speeds::default();
        assert_eq!(worth(&[("a", 700), ("b", 700)], &speeds).costs(&speeds, || train("x"), &WANT), None);
        assert_eq!(worth(&[], &speeds).costs(&speeds, || train("x"), &WANT), None);
    }

    #[test]
    fn a_job_of_average_speeds_is_nearly_indifferent_and_takes_the_faster_class() {
        let speeds = Speeds::default();
        let costs = worth(&[("slow", 250), ("fast", 1000)], &speeds).costs(&speeds, || train("x"), &WANT);
        let costs = costs.expect("they differ");
        assert!(costs[1] == 0 && 0 < costs[0] && costs[0] <= TIE as i64, "{costs:?}");
    }

    /// Work takes the class where it costs least, whatever the unit; of those that cost the same the faster, if only just.
    #[test]
    fn a_price_that_is_set_counts_instead_of_the_speed() {
        let speeds = Speeds::default();
        let of = |slow: u64, fast: u64| {
            let prices = [("slow".into(), slow), ("fast".into(), fast)];
            let worth = priced(&[("slow", 250), ("fast", 1000)], &speeds, prices);
            worth.costs(&speeds, || train("x"), &WANT).expect("they differ")
        };
        for unit in [1, 1_000] {
            let (dear, cheap) = (of(unit, 8 * unit), of(unit, 2 * unit));
            assert!(dear[0] < dear[1] && UNIT <= dear[1], "it costs twice as much on the fast one: {dear:?}");
            assert!(cheap[1] < cheap[0] && UNIT <= cheap[0], "{cheap:?}");
            let same = of(unit, 4 * unit);
            assert!(same[1] == 0 && 0 < same[0] && same[0] <= TIE as i64, "{same:?}");
        }
        // Equal speeds, unequal prices.
        let priced = |b| {
            priced(&[("a", 700), ("b", 700)], &speeds, [("a".into(), 700), ("b".into(), b)]).costs(
                &speeds,
                || train("x"),
                &WANT,
            )
        };
        assert_eq!(priced(700), None);
        assert!(priced(1400).is_some_and(|costs| costs[0] == 0 && costs[1] == UNIT));
    }

    #[test]
    fn who_gains_little_leaves_the_fast_class_to_those_who_gain_much() {
        let mut speeds = Speeds::default();
        let figures = [("slow", 250), ("fast", 1000)];
        let classes = worth(&figures, &speeds).classes;
        for (kind, slow, fast) in [("little", 100, 150), ("much", 100, 900)] {
            speeds.learn(Time(0), train(kind), &classes[0].0, slow);
            speeds.learn(Time(0), train(kind), &classes[1].0, fast);
        }
        let worth = worth(&figures, &speeds);
        let costs = |kind: &str| worth.costs(&speeds, || train(kind), &WANT).expect("they differ");
        let (little, much) = (costs("little"), costs("much"));
        assert!(little[0] < little[1] && UNIT < little[1], "{little:?}");
        assert!(much[1] < much[0] && UNIT < much[0], "{much:?}");
    }
}
