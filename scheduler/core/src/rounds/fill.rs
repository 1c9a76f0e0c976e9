//! The fullest use of one round: at most one offer of each job, within the classes' devices.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::Class;

/// A way to run a job for the round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Index into the classes.
    pub class: usize,
    /// Devices; at least 1.
    pub devices: u32,
    /// Worth of the round, below `2^96`; nothing is chosen for 0.
    pub value: u128,
}

/// Turns of the search for prices.
const TURNS: u64 = 96;
/// Passes of improvement, at most.
const PASSES: usize = 8;

/// Chooses for each job one of its offers, or none.
///
/// First prices of devices are sought: each rises while more is asked for at it than there is. Then offers are
/// taken in the order of value against price, ties by indices; then jobs change places while that gains. Near the
/// best, not the best: the problem is a knapsack. What is left out fits nowhere.
///
/// `O(TURNS * n + PASSES * n log n)` for `n` offers, if few jobs have to move for one.
pub fn fill(classes: &[Class], offers: &[Vec<Offer>]) -> Vec<Option<usize>> {
    let scaled = scaled(offers);
    let prices = clear(classes, &scaled);
    // Value against price, job, index.
    let mut line: Vec<(u64, usize, usize)> = Vec::new();
    for (job, offers) in scaled.iter().enumerate() {
        for (index, offer) in offers.iter().enumerate().filter(|(_, offer)| 0 < offer.value) {
            let price = u128::from(prices[offer.class]) * u128::from(offer.devices);
            let worth = (u128::from(offer.value) << 20) / price;
            line.push((worth.min(u128::from(u64::MAX)) as u64, job, index));
        }
    }
    line.sort_unstable_by_key(|&(worth, job, index)| (Reverse(worth), job, index));
    let mut round = Round::new(classes, &scaled);
    round.take(&line);
    for _ in 0..PASSES {
        let mut improved = false;
        for &(_, job, index) in &line {
            improved |= round.improve(job, index);
        }
        if !improved {
            break;
        }
    }
    round.take(&line);
    round.chosen
}

/// An offer whose value has at most 48 bits.
#[derive(Clone, Copy)]
struct Scaled {
    class: usize,
    devices: u32,
    value: u64,
}

impl Scaled {
    /// Value that is left after the price of the devices.
    fn surplus(&self, prices: &[u64]) -> i64 {
        self.value as i64 - (prices[self.class] * u64::from(self.devices)) as i64
    }

    fn density(&self) -> u64 {
        self.value / u64::from(self.devices)
    }
}

/// The same offers with values that fit into machine words.
fn scaled(offers: &[Vec<Offer>]) -> Vec<Vec<Scaled>> {
    let top = offers.iter().flatten().map(|offer| offer.value).max().unwrap_or(0);
    let shift = (128 - top.leading_zeros()).saturating_sub(48);
    let scale = |offer: &Offer| {
        let value = if offer.value == 0 { 0 } else { (offer.value >> shift).max(1) as u64 };
        Scaled { class: offer.class, devices: offer.devices, value }
    };
    offers.iter().map(|offers| offers.iter().map(scale).collect()).collect()
}

/// Prices, `1..=2^48`, at which about as many devices are asked for as there are.
fn clear(classes: &[Class], offers: &[Vec<Scaled>]) -> Vec<u64> {
    let top = offers.iter().flatten().map(Scaled::density).max().unwrap_or(0);
    let mut prices = vec![(top >> 6).max(1); classes.len()];
    for turn in 0..TURNS {
        let mut asked = vec![0u64; classes.len()];
        for offers in offers {
            let best = offers.iter().map(|offer| (offer.surplus(&prices), offer));
            if let Some((_, offer)) = best.filter(|best| 0 <= best.0).max_by_key(|best| best.0) {
                asked[offer.class] += u64::from(offer.devices);
            }
        }
        for (class, price) in prices.iter_mut().enumerate() {
            let there = u64::from(classes[class].devices.max(1));
            let asked = asked[class].min(3 * there);
            let step = u128::from(*price / (4 + turn / 2)) * u128::from(asked.abs_diff(there));
            let change = (step / u128::from(there)) as u64;
            let changed = if there < asked { *price + change + 1 } else { price.saturating_sub(change) };
            // Dearer than the dearest device there is nothing to gain.
            *price = changed.clamp(1, top + 1);
        }
    }
    prices
}

/// A round that is being filled.
struct Round<'a> {
    offers: &'a [Vec<Scaled>],
    free: Vec<u32>,
    chosen: Vec<Option<usize>>,
    /// Who runs in each class, by value of a device.
    holders: Vec<BTreeSet<(u64, usize)>>,
}

impl<'a> Round<'a> {
    fn new(classes: &[Class], offers: &'a [Vec<Scaled>]) -> Round<'a> {
        Round {
            offers,
            free: classes.iter().map(|class| class.devices).collect(),
            chosen: vec![None; offers.len()],
            holders: vec![BTreeSet::new(); classes.len()],
        }
    }

    /// Takes what fits, in this order.
    fn take(&mut self, line: &[(u64, usize, usize)]) {
        for &(_, job, index) in line {
            if self.chosen[job].is_none() && self.fits(self.offers[job][index]) {
                self.put(job, Some(index));
            }
        }
    }

    fn fits(&self, offer: Scaled) -> bool {
        offer.devices <= self.free[offer.class]
    }

    fn value(&self, job: usize) -> u64 {
        self.chosen[job].map_or(0, |index| self.offers[job][index].value)
    }

    fn put(&mut self, job: usize, index: Option<usize>) {
        if let Some(old) = self.chosen[job].map(|old| self.offers[job][old]) {
            self.free[old.class] += old.devices;
            self.holders[old.class].remove(&(old.density(), job));
        }
        if let Some(new) = index.map(|new| self.offers[job][new]) {
            self.free[new.class] -= new.devices;
            self.holders[new.class].insert((new.density(), job));
        }
        self.chosen[job] = index;
    }

    /// Gives a job an offer in the place of those with the cheapest devices of the class, which take what is free
    /// elsewhere; true if that gained, otherwise all is as before.
    fn improve(&mut self, job: usize, index: usize) -> bool {
        let offer = self.offers[job][index];
        if self.chosen[job] == Some(index) || offer.value <= self.value(job) {
            return false;
        }
        let mut moved = vec![(job, self.chosen[job])];
        let mut lost = self.value(job);
        // At most what those who make room could gain elsewhere.
        let mut hope = offer.value;
        self.put(job, None);
        while !self.fits(offer) && lost < hope {
            let Some(&(_, other)) = self.holders[offer.class].first() else { break };
            moved.push((other, self.chosen[other]));
            lost += self.value(other);
            self.put(other, None);
            hope += self.best_free(other, offer.class).map_or(0, |(value, _)| value);
        }
        if self.fits(offer) && lost < hope {
            self.put(job, Some(index));
            let mut gained = offer.value;
            for &(other, _) in &moved[1..] {
                if let Some((value, Reverse(new))) = self.best_free(other, usize::MAX) {
                    self.put(other, Some(new));
                    gained += value;
                }
            }
            if lost < gained {
                return true;
            }
        }
        moved.iter().for_each(|(other, _)| self.put(*other, None));
        moved.iter().for_each(|(other, old)| self.put(*other, *old));
        false
    }

    /// The best offer of a job that fits as things are, or is of the class `but`, where room may be left.
    fn best_free(&self, job: usize, but: usize) -> Option<(u64, Reverse<usize>)> {
        let offers = self.offers[job].iter().enumerate();
        let free = offers.filter(|(_, offer)| 0 < offer.value && (offer.class == but || self.fits(**offer)));
        free.map(|(index, offer)| (offer.value, Reverse(index))).max()
    }
}
