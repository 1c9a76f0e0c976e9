//! What runs in the next round: for every job whether, on which class of devices, and on how many.
//!
//! [`plan`] looks at all jobs at once and at nothing else: no memory, no clock, no chance, whole numbers only. It
//! says what each way to run a job is worth in this round ([`value`]), then fills the classes with the largest sum
//! ([`fill`]). The worth is made of few factors, each with one reason:
//!
//! * short jobs first, by the square root of the service that is left, so that long ones are slowed, not stopped;
//! * the longer a job has waited against its own length, the more; nobody waits for ever;
//! * more devices than the leanest mode has go where they bring most: there length counts less, and waiting nothing;
//! * the class where it is fast against itself (comparative advantage), as prices rise where others want to be;
//! * a job that runs stays, or grows where it is, as a move costs a restart, which must be won back before the pool has
//!   changed;
//! * a job with a due time that becomes tight goes before all that are not ([`Job::due_in_ms`]).
//!
//! With [`Goal::Batch`] the end of the last job counts as well: [`fluid`] bounds it from below, and what a job's
//! running takes from that bound is the largest part of its worth.
//!
//! Lengths are expectations: with known ones the order is that of shortest remaining service, with learned ones
//! that of the mean residual life, near to Gittins' index.

pub mod fill;
pub mod fluid;
pub mod value;

/// Devices of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// Devices that may be used in this round.
    pub devices: u32,
}

/// One way to run a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Index into the classes.
    pub class: usize,
    /// Devices, all at once; at least 1.
    pub devices: u32,
    /// Milliseconds to the job's end if it ran like this from now on, `1..=2^40`; an expectation where that is
    /// not known.
    pub left_ms: u64,
}

/// A job that has not ended.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// Breaks ties: the smaller goes first.
    pub id: u64,
    /// Ways to run it; at most one is chosen. None: it does not run in this round.
    pub modes: Vec<Mode>,
    /// Importance in thousandths, `1..=1_000_000`; 1,000 for a usual job.
    pub weight_permille: u64,
    /// Milliseconds since it was submitted.
    pub waited_ms: u64,
    /// Milliseconds until it should have ended, negative if that is past.
    pub due_in_ms: Option<i64>,
    /// The mode that it runs in now.
    pub current: Option<usize>,
    /// Milliseconds of work that a start or a change of mode costs.
    pub restart_ms: u64,
}

/// What is sought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Jobs keep coming: they shall end soon, on average and in the worst case.
    Stream,
    /// These are all the jobs: the last of them shall end soon, and then all on average.
    Batch,
}

/// Plans a round: for each job the index of the mode that it runs in, or none.
///
/// Whole gangs, within the classes' devices; no offer that fits is left out; the same input gives the same answer.
/// `O(n log n)` in all modes together, but for the passes of [`fill::fill`].
///
/// # Panics
/// If a mode is out of the ranges that its fields state.
pub fn plan(classes: &[Class], jobs: &[Job], goal: Goal) -> Vec<Option<usize>> {
    fill::fill(classes, &value::offers(classes, jobs, goal))
}
