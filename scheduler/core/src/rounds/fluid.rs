//! The least time in which all jobs could end, if they could be divided at will.

use super::{Class, Job};

/// A lower bound of the end of the last job, and who is how much to blame for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fluid {
    /// Milliseconds: no schedule ends earlier, with restarts free and devices divisible.
    pub bound_ms: u64,
    /// The part of the bound that each job's rest stands for; they sum up to it.
    pub burden_ms: Vec<u64>,
    /// The part of the time until then that each job has to run, in thousandths.
    pub tight_permille: Vec<u64>,
}

/// Prices are in units of `2^-32`.
const ONE: u128 = 1 << 32;
/// Turns of the search for prices.
const TURNS: u128 = 300;

/// Bounds the time of the linear program `min T`: every job finishes, `sum_modes time <= T`, and of each class
/// no more device time is taken than `devices * T`.
///
/// By its dual: each class has a price, each job minimises what it pays for its end within `T`, the classes that
/// are asked for too much become dearer. Every set of prices gives a bound; the largest is kept. The burdens and
/// the tightness are those at `slack_permille` after the bound.
///
/// `O(turns * modes^2)`, the square within one job.
///
/// Source: the program is Lawler and Labetoulle, "On preemptive scheduling of unrelated parallel processors by
/// linear programming", JACM 25(4), 1978.
pub fn fluid(classes: &[Class], jobs: &[Job], slack_permille: u64) -> Fluid {
    let fastest = |job: &Job| job.modes.iter().map(|mode| mode.left_ms).min().unwrap_or(0);
    let mut bound = u128::from(jobs.iter().map(fastest).max().unwrap_or(0).max(1));
    let mut prices = vec![ONE; classes.len()];
    let mut late_sum = vec![0; classes.len()];
    for turn in 0..TURNS {
        let asked = Asked::at(&prices, classes, jobs, bound);
        bound = bound.max(asked.bound());
        for (class, price) in prices.iter_mut().enumerate() {
            // Load against capacity in units of 2^-16, at most 3.
            let capacity = (u128::from(classes[class].devices) * bound).max(1);
            let load = ((asked.load[class] << 16) / capacity).min(3 << 16) as i128;
            let step = (*price as i128 * (load - (1 << 16)) * 6 / (20 + turn as i128)) >> 16;
            *price = (*price as i128 + step).max(1 << 12) as u128;
        }
        let sum = prices.iter().sum::<u128>().max(1);
        let all = ONE * classes.len() as u128;
        prices.iter_mut().for_each(|price| *price = (*price * all / sum).max(1 << 12));
        if TURNS / 2 <= turn {
            late_sum.iter_mut().zip(&prices).for_each(|(sum, price)| *sum += price);
        }
    }
    let mean: Vec<u128> = late_sum.iter().map(|sum| (sum / (TURNS / 2)).max(1)).collect();
    let until = bound * u128::from(1000 + slack_permille) / 1000;
    let asked = Asked::at(&mean, classes, jobs, until);
    let worth = asked.worth.max(1);
    Fluid {
        bound_ms: bound as u64,
        burden_ms: asked.costs.iter().map(|cost| (cost / worth) as u64).collect(),
        tight_permille: asked.times.iter().map(|time| (time * 1000 / until).min(1000) as u64).collect(),
    }
}

/// What the jobs ask for at given prices.
struct Asked {
    /// Device milliseconds by class.
    load: Vec<u128>,
    /// Milliseconds that each job runs.
    times: Vec<u128>,
    /// Price of each job's end, its own time included.
    costs: Vec<u128>,
    /// Price of a millisecond of all classes and all jobs.
    worth: u128,
}

impl Asked {
    fn at(prices: &[u128], classes: &[Class], jobs: &[Job], until: u128) -> Asked {
        let pool = prices.iter().zip(classes).map(|(price, class)| price * u128::from(class.devices));
        let mut asked =
            Asked { load: vec![0; classes.len()], times: vec![], costs: vec![], worth: pool.sum() };
        for job in jobs {
            asked.add(prices, job, until);
        }
        asked
    }

    /// Every set of prices bounds the end.
    fn bound(&self) -> u128 {
        self.costs.iter().sum::<u128>() / self.worth.max(1)
    }

    /// The cheapest mix of at most two modes that ends in time, and what a millisecond more would save.
    fn add(&mut self, prices: &[u128], job: &Job, until: u128) {
        let point = |at: usize| {
            let mode = &job.modes[at];
            let left = u128::from(mode.left_ms);
            (left, left * u128::from(mode.devices) * prices[mode.class])
        };
        // Price, first mode, second mode, part of the first in units of 2^-20, price of time.
        let mut best: Option<(u128, usize, usize, u128, u128)> = None;
        let mut offer = |new: (u128, usize, usize, u128, u128)| {
            if best.is_none_or(|best| new.0 < best.0) {
                best = Some(new);
            }
        };
        for first in 0..job.modes.len() {
            let (slow, cheap) = point(first);
            if slow <= until {
                offer((cheap, first, first, 1 << 20, 0));
                continue;
            }
            for second in 0..job.modes.len() {
                let (fast, dear) = point(second);
                if fast <= until && cheap < dear {
                    let part = ((until - fast) << 20) / (slow - fast);
                    let price = (cheap >> 20) * part + (dear >> 20) * ((1 << 20) - part);
                    offer((price, first, second, part, (dear - cheap) / (slow - fast)));
                }
            }
        }
        let Some((_, first, second, part, time_price)) = best else {
            self.times.push(0);
            self.costs.push(0);
            return;
        };
        let mut time = 0;
        for (at, part) in [(first, part), (second, (1 << 20) - part)] {
            let ran = (u128::from(job.modes[at].left_ms) * part) >> 20;
            self.load[job.modes[at].class] += ran * u128::from(job.modes[at].devices);
            time += ran;
        }
        let full = |at: usize| point(at).1 + point(at).0 * time_price;
        self.times.push(time);
        self.costs.push((0..job.modes.len()).map(full).min().unwrap_or(0));
        self.worth += time_price;
    }
}
