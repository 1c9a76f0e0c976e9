//! What parts of devices are worth, learned from what was asked for.
//!
//! A device that is shared ends up filled by some combination of slices, and some space stays over. Which
//! combinations waste least depends on the sizes that come: 810 thousandths leave 190, which is worth something only
//! if slices of that size are asked for. The linear program over all combinations (a cutting-stock problem) knows;
//! its dual prices say what a slice of a size brings and what a free part of a device can still bring. A placement
//! then costs what the part loses in value less what the slice brings: zero where the best combinations would put it.
//!
//! Source of the idea: Gilmore and Gomory, "A linear programming approach to the cutting-stock problem", Operations
//! Research 9(6), 1961; prices as a rule for requests that arrive one by one: Talluri and van Ryzin, "An analysis of
//! bid-price controls for network revenue management", Management Science 44(11), 1998.

use std::collections::BTreeMap;
use std::ops::{AddAssign, SubAssign};

use crate::speed::Kind;
use crate::types::*;

/// Costs and values count in parts of a thousandth of a device: so many make one.
pub const UNIT: i64 = 1 << 16;

/// Sizes are told apart in hundredths of a device.
const STEPS: usize = 100;

/// Rounds of dual ascent; more change placements no more on the traces that were tried.
const ASCENTS: u64 = 300;

/// Ranks that ask for more cores are served by no fewer than these.
pub const CORES: usize = 256;

/// So many parts are the whole of what is asked for.
pub const WHOLE: i64 = 1 << 10;

/// Jobs that prices are learned from, at most: the last ones.
const WINDOW: u64 = 4096;

/// Prices, and what else the demand says about placing well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prices {
    /// What a free part of a device can still bring, by hundredths of it: `[0..=100]`, never falling.
    value: Vec<i64>,
    /// What a slice brings, by its hundredths: `[0..=100]`.
    price: Vec<i64>,
    /// What a thousandth of a core is worth beside free devices, in [`UNIT`]s of a thousandth of a device; 0: nothing.
    pub core_value: i64,
    /// What was asked for: accelerators, and cores by all jobs.
    pub asked: Totals,
    /// Whom so many cores suffice, by cores: `[0..=CORES]`, in parts of [`WHOLE`] of what is asked for by ranks of one
    /// accelerator or a part of it; never falling.
    pub served: Vec<i64>,
    /// What ranks ask for, with its part of the whole demand in millionths: some can be had of few classes only.
    pub ranks: Vec<(Rank, u64)>,
    /// What was asked for by each kind of program, in thousandths of a device.
    pub kinds: BTreeMap<Kind, u64>,
}

/// What a rank asks for that not every node of a class of accelerators has.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Without a slice.
    pub devices: DeviceRequest,
    #[allow(missing_docs)]
    pub cpus_milli: u32,
    #[allow(missing_docs)]
    pub memory_bytes: u64,
}

/// A [`Rank`] as it stands in a request. Numbers come first: where many are compared, they tell nearly all apart.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Alike<'a> {
    cpus_milli: u32,
    memory_bytes: u64,
    count: u16,
    device_memory_bytes: u64,
    vendor: Option<Vendor>,
    isolation: Isolation,
    model: Option<&'a Name>,
}

impl<'a> Alike<'a> {
    fn of(request: &Request, want: &'a DeviceRequest) -> Alike<'a> {
        Alike {
            cpus_milli: request.cpus_milli,
            memory_bytes: request.memory_bytes,
            count: want.count,
            device_memory_bytes: want.memory_bytes,
            vendor: want.vendor,
            isolation: want.isolation,
            model: want.model.as_ref(),
        }
    }

    fn rank(&self) -> Rank {
        let devices = DeviceRequest {
            count: self.count,
            vendor: self.vendor,
            model: self.model.cloned(),
            memory_bytes: self.device_memory_bytes,
            slice: None,
            isolation: self.isolation,
            one_island: false,
        };
        Rank { devices, cpus_milli: self.cpus_milli, memory_bytes: self.memory_bytes }
    }
}

/// Accelerators and cores, in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    #[allow(missing_docs)]
    pub devices_milli: u64,
    #[allow(missing_docs)]
    pub cpus_milli: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Totals) {
        self.devices_milli += other.devices_milli;
        self.cpus_milli += other.cpus_milli;
    }
}

impl SubAssign for Totals {
    fn sub_assign(&mut self, other: Totals) {
        self.devices_milli -= other.devices_milli;
        self.cpus_milli -= other.cpus_milli;
    }
}

impl Default for Prices {
    /// Every part is worth its size.
    fn default() -> Prices {
        let size = |at: usize| at as i64 * 1000 / STEPS as i64 * UNIT;
        let sizes: Vec<i64> = (0..=STEPS).map(size).collect();
        Prices {
            value: sizes.clone(),
            price: sizes,
            core_value: 0,
            asked: Totals::default(),
            served: vec![WHOLE; CORES + 1],
            ranks: Vec::new(),
            kinds: BTreeMap::new(),
        }
    }
}

/// The number of jobs up to which prices are learned when there are `jobs`: they change seldom, and the same jobs
/// always give the same prices, so that nothing of them has to be stored.
pub fn learned_from(jobs: u64) -> u64 {
    match jobs {
        0..64 => 0,
        64..WINDOW => 1 << jobs.ilog2(),
        _ => jobs / (WINDOW / 4) * (WINDOW / 4),
    }
}

/// The first job of the window that ends with job `last`.
pub fn window(last: u64) -> std::ops::RangeInclusive<JobId> {
    JobId(last.saturating_sub(WINDOW) + 1)..=JobId(last)
}

impl Prices {
    /// Learns from what jobs ask for. `O(jobs + ASCENTS * sizes * STEPS)`: about a millisecond.
    pub fn learn<'a>(specs: impl Iterator<Item = &'a JobSpec>) -> Prices {
        let mut demand = [0u64; STEPS + 1];
        // Of accelerators, and of cores: beside them, of all jobs, and by how many one accelerator is served.
        let (mut milli, mut cpus_milli, mut all_cpus_milli) = (0u64, 0u64, 0u64);
        let mut served = vec![0u64; CORES + 1];
        let mut ranks: BTreeMap<Alike, u64> = BTreeMap::new();
        let mut kinds: BTreeMap<Kind, u64> = BTreeMap::new();
        // Those that follow each other are often of one kind.
        let mut kind: Option<(Kind, u64)> = None;
        for (spec, role) in specs.flat_map(|spec| spec.roles.iter().map(move |role| (spec, role))) {
            let want = role.request.devices.first();
            let cores = want.filter(|want| want.vendor == Some(Vendor::Cpu));
            let rank_cpus = role.request.cpus_milli.max(cores.map_or(0, |want| 1000 * u32::from(want.count)));
            all_cpus_milli += u64::from(role.ranks) * u64::from(rank_cpus);
            let Some(want) = want.filter(|_| cores.is_none()) else {
                continue;
            };
            // What share a part of the memory is, only a class of devices can say.
            let share = want.slice.map_or(1000, |slice| u64::from(slice.compute_milli));
            let devices = u64::from(role.ranks) * u64::from(want.count);
            demand[step_up(share)] += devices;
            milli += devices * share;
            match &mut kind {
                Some((last, sum)) if last.is_of(spec, role) => *sum += devices * share,
                _ => {
                    let before = kind.replace((Kind::of(spec, role), devices * share));
                    before.into_iter().for_each(|(kind, sum)| *kinds.entry(kind).or_default() += sum);
                }
            }
            cpus_milli += u64::from(role.ranks) * u64::from(role.request.cpus_milli);
            if want.count == 1 {
                served[(role.request.cpus_milli as usize).div_ceil(1000).min(CORES)] += devices * share;
            }
            *ranks.entry(Alike::of(&role.request, want)).or_default() += devices * share;
        }
        kind.into_iter().for_each(|(kind, sum)| *kinds.entry(kind).or_default() += sum);
        if milli == 0 {
            return Prices::default();
        }
        let part = |(which, of): (Alike, u64)| (which.rank(), of * 1_000_000 / milli);
        let parts = ranks.into_iter().map(part).filter(|(_, millionths)| 0 < *millionths);
        let mut ranks: Vec<(Rank, u64)> = parts.collect();
        ranks.sort_unstable();
        let (value, price) = ascend(&demand);
        Prices {
            value,
            price,
            core_value: core_value(milli, cpus_milli),
            asked: Totals { devices_milli: milli, cpus_milli: all_cpus_milli },
            served: cumulated(&served),
            ranks,
            kinds,
        }
    }

    /// What can still be made of free accelerators, by the parts of them that are free, in thousandths of one.
    ///
    /// Those who take none of them do no harm where nobody can use what is left.
    pub fn worth_milli(&self, free_milli: impl Iterator<Item = u64>) -> u32 {
        let worth: i64 = free_milli.map(|milli| self.value[milli as usize * STEPS / 1000]).sum();
        u32::try_from(worth / UNIT).unwrap_or(0)
    }

    /// What it costs to take `takes` thousandths of a device of which `free` are free; 0 where the best combinations
    /// would take them.
    pub fn cost(&self, free_milli: u64, takes_milli: u64) -> i64 {
        let at = |milli: u64| self.value[milli as usize * STEPS / 1000];
        at(free_milli) - at(free_milli - takes_milli) - self.price[step_up(takes_milli)]
    }
}

/// Sums from the first on, in parts of [`WHOLE`] of all; all of it where there is nothing.
fn cumulated(parts: &[u64]) -> Vec<i64> {
    let (all, mut sum) = (parts.iter().sum::<u64>(), 0);
    let mut up_to = |part: &u64| {
        sum += part;
        (u128::from(sum) * WHOLE as u128).checked_div(u128::from(all)).map_or(WHOLE, |part| part as i64)
    };
    parts.iter().map(&mut up_to).collect()
}

/// Where `cpus_milli` are asked for with `devices_milli`. Those that ask for less are served by what those that ask for
/// more leave, so a tenth less suffices. Rounded to five bits, so that it changes as seldom as it may.
fn core_value(devices_milli: u64, cpus_milli: u64) -> i64 {
    let value = u128::from(devices_milli) * UNIT as u128 * 10;
    let value = value.checked_div(u128::from(cpus_milli) * 9).unwrap_or(0).min(1 << 24) as u64;
    let drop = (u64::BITS - value.leading_zeros()).saturating_sub(5);
    ((value + (1 << drop >> 1)) >> drop << drop) as i64
}

fn step_up(milli: u64) -> usize {
    (milli as usize * STEPS).div_ceil(1000).min(STEPS)
}

/// Values and prices by dual ascent over the ways to fill one device.
///
/// The program: fill devices, as many as the demand would need if nothing were wasted, with as much as can be, but
/// take between [`LEAST`] and [`MOST`] of each size's demand: most of what comes has to be taken as it comes, and
/// somewhat more may come. A price rises while the best combination at these prices has too little of its size,
/// and falls while it has too much; the mean of the second half of the way is near to the optimum.
fn ascend(demand: &[u64; STEPS + 1]) -> (Vec<i64>, Vec<i64>) {
    /// In tenths of the demand.
    const LEAST: i64 = 9;
    const MOST: i64 = 13;
    let natural = Prices::default().price;
    let sizes: Vec<usize> = (1..=STEPS).filter(|size| demand[*size] != 0).collect();
    let devices_steps: u64 = sizes.iter().map(|size| demand[*size] * *size as u64).sum();
    // Of each size, so many a device, in 2^-20.
    let wanted =
        |size: usize| ((u128::from(demand[size]) << 20) * STEPS as u128 / u128::from(devices_steps)) as i64;
    let wanted: Vec<i64> = sizes.iter().map(|size| wanted(*size)).collect();
    let mut price = natural.clone();
    let mut sum = vec![0; STEPS + 1];
    for ascent in 0..ASCENTS {
        let (_, last) = fill(&sizes, &price);
        let mut has = vec![0i64; STEPS + 1];
        let mut left = STEPS;
        while left != 0 {
            match last[left] {
                0 => left -= 1,
                size => {
                    has[size] += 1 << 20;
                    left -= size;
                }
            }
        }
        // 200 thousandths of a device at first, then as the inverse of the root.
        let stride = 200 * UNIT * 64 / ((ascent + 1) * 64 * 64).isqrt() as i64;
        for (size, wanted) in sizes.iter().zip(&wanted) {
            let bound = if natural[*size] < price[*size] { LEAST } else { MOST };
            let lacks = (wanted * bound / 10 - has[*size]).clamp(-1 << 20, 1 << 20);
            price[*size] += (stride * lacks) >> 20;
        }
        if ASCENTS / 2 <= ascent {
            sizes.iter().for_each(|size| sum[*size] += price[*size]);
        }
    }
    let mut price = natural;
    for size in &sizes {
        price[*size] = sum[*size] / (ASCENTS - ASCENTS / 2) as i64;
    }
    let (value, _) = fill(&sizes, &price);
    (value.to_vec(), price)
}

/// The best that each part of a device can be filled with: its value, and the size that it takes first, 0 for none. Of equal
/// ones the smallest.
///
/// * `sizes`: ascending.
fn fill(sizes: &[usize], price: &[i64]) -> ([i64; STEPS + 1], [usize; STEPS + 1]) {
    let (mut value, mut first) = ([0; STEPS + 1], [0; STEPS + 1]);
    // A size that does not even fill its own part best does so for no larger part: what fills it better is there too.
    let (mut useful, mut count) = ([(0, 0); STEPS], 0);
    let mut sizes = sizes.iter().copied().peekable();
    for part in 1..=STEPS {
        let before = &value[..part];
        let mut best = (before[part - 1], 0);
        for (size, price) in &useful[..count] {
            let with = before[part - size] + price;
            // Without a branch, which nobody could foresee.
            best = if best.0 < with { (with, *size) } else { best };
        }
        if let Some(size) = sizes.next_if_eq(&part)
            && best.0 < price[size]
        {
            best = (price[size], size);
            useful[count] = (size, price[size]);
            count += 1;
        }
        (value[part], first[part]) = best;
    }
    (value, first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sizes: &[(u64, u64)]) -> Prices {
        let mut demand = [0; STEPS + 1];
        sizes.iter().for_each(|(milli, count)| demand[step_up(*milli)] = *count);
        let (value, price) = ascend(&demand);
        Prices { value, price, ..Prices::default() }
    }

    #[test]
    fn sizes_that_are_passed_over_fill_no_part_best() {
        let mut random = 1u64;
        let mut below = |n: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % n
        };
        let mut passed_over = 0;
        for _ in 0..500 {
            let rare = 1 + below(8);
            let sizes: Vec<usize> = (1..=STEPS).filter(|_| below(rare) == 0).collect();
            let noise = 1 + below(40);
            let price: Vec<i64> =
                (0..=STEPS as i64).map(|size| 4 * size + below(noise) as i64 - noise as i64 / 2).collect();
            let (mut value, mut first) = ([0; STEPS + 1], [0; STEPS + 1]);
            for part in 1..=STEPS {
                value[part] = value[part - 1];
                for size in sizes.iter().take_while(|size| **size <= part) {
                    let with = value[part - size] + price[*size];
                    if value[part] < with {
                        (value[part], first[part]) = (with, *size);
                    }
                }
            }
            assert_eq!(fill(&sizes, &price), (value, first), "{sizes:?}, {price:?}");
            passed_over += sizes.iter().filter(|size| first[**size] != **size).count();
        }
        assert!(5_000 < passed_over, "{passed_over}");
    }

    #[test]
    fn parts_that_nobody_can_fill_are_worth_nothing() {
        let prices = of(&[(810, 50), (320, 20), (1000, 100)]);
        assert_eq!(prices.value[19], 0, "190 thousandths take no 320");
        assert!(0 < prices.value[32]);
        assert!(prices.value.is_sorted());
    }

    #[test]
    fn a_slice_goes_where_the_rest_fits_the_others() {
        // 600 and 400 fill a device; of 600, a slice of 400 leaves 200, which nobody wants.
        let prices = of(&[(600, 50), (400, 50)]);
        assert!(prices.cost(400, 400) < prices.cost(600, 400));
        assert!(prices.cost(1000, 400) < prices.cost(600, 400));
    }

    #[test]
    fn a_slice_of_unknown_size_costs_what_the_others_lose() {
        let prices = of(&[(500, 10)]);
        assert!(prices.cost(490, 490) < prices.cost(1000, 490), "a part that no other can use comes first");
    }
}
