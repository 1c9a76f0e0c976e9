//! What each way to run a job is worth in this round.

use super::fill::Offer;
use super::fluid::{self, Fluid};
use super::{Class, Goal, Job, Mode};

/// Worth of a job of mean urgency in its leanest mode.
pub const ONE: u128 = 1 << 32;

/// Thousandths by which a job that runs is preferred to one that does not.
const STAY_PERMILLE: u128 = 400;
/// The same for more devices of the class that it runs on: the rest of the way to a better mode, not a new place.
const GROW_PERMILLE: u128 = 250;
/// Jobs with less left than this, in milliseconds, are counted with this.
const LEAST_LEFT_MS: u64 = 60_000;
/// Greatest rise of urgency for a job without laxity: `TIGHT * 1000 / SOFT_PERMILLE`.
const TIGHT: u64 = 10;
/// Keeps the rise finite.
const SOFT_PERMILLE: u64 = 20;
/// Weight of the common end against the jobs' own urgency, in [`Goal::Batch`].
const COMMON: u128 = 1000;
/// Thousandths that the common end may be after its bound.
const SLACK_PERMILLE: u64 = 10;

/// Offers of every job, by the indices of its modes.
///
/// # Panics
/// If a mode is out of its ranges.
pub fn offers(classes: &[Class], jobs: &[Job], goal: Goal) -> Vec<Vec<Offer>> {
    let urgencies: Vec<u128> = jobs.iter().map(|job| urgency(job) * waiting(job, goal) / 1000).collect();
    let mean = (urgencies.iter().sum::<u128>() / (jobs.len().max(1) as u128)).max(1);
    let fluid = (goal == Goal::Batch).then(|| fluid::fluid(classes, jobs, SLACK_PERMILLE));
    let risen = |(index, job): (usize, &Job)| {
        let tight = tightness(job).max(fluid.as_ref().map_or(0, |fluid| fluid.tight_permille[index]));
        let width = (urgency(job) * ONE / mean * ONE).isqrt();
        Urgency {
            turn: urgencies[index] * ONE / mean * rise(tight) / 1000,
            width: width * rise(tight) / 1000,
        }
    };
    let urgencies: Vec<Urgency> = jobs.iter().enumerate().map(risen).collect();
    let restarts = (goal == Goal::Stream).then(|| Restarts::of(jobs, &urgencies));
    let offers = |(index, job): (usize, &Job)| {
        let (urgency, restarts) = (urgencies[index], restarts.as_ref());
        let of = |(at, mode): (usize, &Mode)| {
            let stays = restarts.filter(|_| job.current == Some(at));
            let value = own(job, at, urgency, goal)
                + stays.map_or(0, |restarts| restarts.saved(job, at, urgency))
                + common(fluid.as_ref(), index, mode, jobs.len());
            Offer { class: mode.class, devices: mode.devices, value: value.max(1) }
        };
        job.modes.iter().enumerate().map(of).collect()
    };
    jobs.iter().enumerate().map(offers).collect()
}

/// What a job's running is worth, in a pool of mean urgency [`ONE`].
#[derive(Clone, Copy)]
struct Urgency {
    /// In its leanest mode: its turn among the others.
    turn: u128,
    /// Of the same speed once more. The geometric mean of its own urgency, without the waiting, and that of all: who
    /// goes first is a matter of length, but a speed that costs more and more devices is to be bought where it costs
    /// least, and who has waited needs a turn, not many devices.
    width: u128,
}

/// What restarts cost in the pool as it is: a second of any job's life is worth about as much as one of any other's,
/// however long they are, and a restart is paid for within the time until jobs end and others come.
struct Restarts {
    /// Square root of the mean worth of the jobs that run.
    mean_root: u128,
    /// How long a plan lasts, in milliseconds: the harmonic mean of what the jobs have left.
    calm_ms: u128,
}

impl Restarts {
    fn of(jobs: &[Job], urgencies: &[Urgency]) -> Restarts {
        let running = jobs.iter().zip(urgencies);
        let worths: Vec<u128> = running
            .filter_map(|(job, urgency)| Some(worth(job, job.modes[job.current?].left_ms, *urgency)))
            .collect();
        let left = |job: &Job| match job.current {
            Some(at) => Some(job.modes[at].left_ms),
            None => job.modes.iter().map(|mode| mode.left_ms).min(),
        };
        let rates: Vec<u128> = jobs
            .iter()
            .filter_map(left)
            .map(|left| (1 << 60) / u128::from(left.max(LEAST_LEFT_MS)))
            .collect();
        let mean_ms = (rates.len() as u128 * (1 << 60)) / rates.iter().sum::<u128>().max(1);
        Restarts {
            mean_root: (worths.iter().sum::<u128>() / worths.len().max(1) as u128).isqrt(),
            calm_ms: mean_ms.max(1),
        }
    }

    /// What a job that stays saves in this round: the part of the calm that a restart takes, at most all of it, at the
    /// geometric mean of its own worth and that of all.
    fn saved(&self, job: &Job, at: usize, urgency: Urgency) -> u128 {
        let lost = (u128::from(job.restart_ms) * 1000 / self.calm_ms).min(1000);
        self.mean_root * worth(job, job.modes[at].left_ms, urgency).isqrt() * lost / 1000
    }
}

/// Of a mode with so much left: the turn times its speed against the leanest mode, and what is faster than that at the
/// worth of width.
fn worth(job: &Job, left_ms: u64, urgency: Urgency) -> u128 {
    let lean_ms = leanest(job).expect("it has modes").left_ms;
    if lean_ms <= left_ms {
        return urgency.turn * u128::from(lean_ms) / u128::from(left_ms);
    }
    urgency.turn + urgency.width * u128::from(lean_ms - left_ms) / u128::from(left_ms)
}

/// The mode with the least service.
fn leanest(job: &Job) -> Option<&Mode> {
    job.modes.iter().min_by_key(|mode| u128::from(mode.left_ms) * u128::from(mode.devices))
}

/// `weight / sqrt(left * sqrt(devices))` of the leanest mode.
fn urgency(job: &Job) -> u128 {
    let Some(lean) = leanest(job) else { return 0 };
    assert!((1..=1 << 40).contains(&lean.left_ms) && 0 < lean.devices, "{lean:?} is out of range");
    let left = u128::from(lean.left_ms);
    let width = (u128::from(lean.devices) << 16).isqrt();
    let root = ((left * width) << 16).isqrt();
    (u128::from(job.weight_permille) << 40) / root
}

/// `1 + waited / left` of the leanest mode, in thousandths; in a batch, where all end together, waiting counts for
/// nothing.
fn waiting(job: &Job, goal: Goal) -> u128 {
    match leanest(job) {
        Some(lean) if goal == Goal::Stream => {
            1000 + (1000 * u128::from(job.waited_ms) / u128::from(lean.left_ms)).min(1 << 30)
        }
        _ => 1000,
    }
}

/// The part of the time until it is due that a job needs on its fastest mode, in thousandths; 0 if it has no due
/// time, or cannot meet it any more.
fn tightness(job: &Job) -> u64 {
    let due = job.due_in_ms.and_then(|due| u64::try_from(due).ok()).unwrap_or(0);
    let left =
        |(at, mode): (usize, &Mode)| mode.left_ms + if job.current == Some(at) { 0 } else { job.restart_ms };
    let fastest = job.modes.iter().enumerate().map(left).min().unwrap_or(0);
    let permille = u128::from(fastest) * 1000 / u128::from(due.max(1));
    if permille <= 1000 { permille as u64 } else { 0 }
}

/// `1 + 10 / (1.02 - tightness)`, in thousandths.
fn rise(tight_permille: u64) -> u128 {
    let room = 1000 - tight_permille.min(1000) + SOFT_PERMILLE;
    u128::from(1000 + if tight_permille == 0 { 0 } else { TIGHT * 1_000_000 / room })
}

/// What its speed is worth; more if it stays or grows where it is, less for what a start costs. In a
/// batch jobs take turns, and only the costs count.
fn own(job: &Job, at: usize, urgency: Urgency, goal: Goal) -> u128 {
    let mode = &job.modes[at];
    let stays = job.current == Some(at);
    let grows = |now: &Mode| now.class == mode.class && now.devices < mode.devices;
    let left = mode.left_ms + if stays { 0 } else { job.restart_ms };
    let preference = match job.current {
        _ if goal == Goal::Batch => 0,
        _ if stays => STAY_PERMILLE,
        Some(now) if grows(&job.modes[now]) => GROW_PERMILLE,
        _ => 0,
    };
    worth(job, left, urgency) * (1000 + preference) / 1000
}

/// What a job's running takes from the common end, against the mean of all jobs.
fn common(fluid: Option<&Fluid>, job: usize, mode: &Mode, jobs: usize) -> u128 {
    let Some(fluid) = fluid else { return 0 };
    COMMON * jobs as u128 * u128::from(fluid.burden_ms[job]) * ONE / u128::from(mode.left_ms)
}
