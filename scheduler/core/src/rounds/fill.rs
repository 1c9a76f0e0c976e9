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
const TURNS: u128 = 96;
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
    let prices = clear(classes, offers);
    let mut line: Vec<(u128, usize, usize)> = Vec::new();
    for (job, offers) in offers.iter().enumerate() {
        for (index, offer) in offers.iter().enumerate().filter(|(_, offer)| 0 < offer.value) {
            line.push(((offer.value << 20) / (prices[offer.class] * u128::from(offer.devices)), job, index));
        }
    }
    line.sort_by_key(|&(worth, job, index)| (Reverse(worth), job, index));
    let mut round = Round::new(classes, offers);
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

/// Prices, at least 1, at which about as many devices are asked for as there are.
fn clear(classes: &[Class], offers: &[Vec<Offer>]) -> Vec<u128> {
    let per_device = offers.iter().flatten().map(|offer| offer.value / u128::from(offer.devices));
    let top = per_device.max().unwrap_or(0);
    let mut prices = vec![(top >> 6).max(1); classes.len()];
    for turn in 0..TURNS {
        let mut asked = vec![0u64; classes.len()];
        for offers in offers {
            let surplus =
                |offer: &Offer| offer.value.checked_sub(prices[offer.class] * u128::from(offer.devices));
            let best = offers.iter().filter_map(|offer| Some((surplus(offer)?, offer)));
            if let Some((_, offer)) = best.max_by_key(|best| best.0) {
                asked[offer.class] += u64::from(offer.devices);
            }
        }
        for (class, price) in prices.iter_mut().enumerate() {
            let there = u64::from(classes[class].devices.max(1));
            let asked = asked[class].min(3 * there);
            let change = *price / (4 + turn / 2) * u128::from(asked.abs_diff(there)) / u128::from(there);
            *price = if there < asked { *price + change + 1 } else { price.saturating_sub(change).max(1) };
        }
    }
    prices
}

/// A round that is being filled.
struct Round<'a> {
    offers: &'a [Vec<Offer>],
    free: Vec<u32>,
    chosen: Vec<Option<usize>>,
    /// Who runs in each class, by value of a device.
    holders: Vec<BTreeSet<(u128, usize)>>,
}

impl<'a> Round<'a> {
    fn new(classes: &[Class], offers: &'a [Vec<Offer>]) -> Round<'a> {
        Round {
            offers,
            free: classes.iter().map(|class| class.devices).collect(),
            chosen: vec![None; offers.len()],
            holders: vec![BTreeSet::new(); classes.len()],
        }
    }

    /// Takes what fits, in this order.
    fn take(&mut self, line: &[(u128, usize, usize)]) {
        for &(_, job, index) in line {
            if self.chosen[job].is_none() && self.fits(self.offers[job][index]) {
                self.put(job, Some(index));
            }
        }
    }

    fn fits(&self, offer: Offer) -> bool {
        offer.devices <= self.free[offer.class]
    }

    fn value(&self, job: usize) -> u128 {
        self.chosen[job].map_or(0, |index| self.offers[job][index].value)
    }

    fn put(&mut self, job: usize, index: Option<usize>) {
        let density = |offer: Offer| offer.value / u128::from(offer.devices);
        if let Some(old) = self.chosen[job].map(|old| self.offers[job][old]) {
            self.free[old.class] += old.devices;
            self.holders[old.class].remove(&(density(old), job));
        }
        if let Some(new) = index.map(|new| self.offers[job][new]) {
            self.free[new.class] -= new.devices;
            self.holders[new.class].insert((density(new), job));
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
    fn best_free(&self, job: usize, but: usize) -> Option<(u128, Reverse<usize>)> {
        let offers = self.offers[job].iter().enumerate();
        let free = offers.filter(|(_, offer)| 0 < offer.value && (offer.class == but || self.fits(**offer)));
        free.map(|(index, offer)| (offer.value, Reverse(index))).max()
    }
}
