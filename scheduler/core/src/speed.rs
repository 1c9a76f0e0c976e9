//! How fast each kind of program runs on each class of devices, learned from what workers tell of their progress.
//!
//! Soft state: a scheduler that takes over begins with the devices' own figures, and learns anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cluster::{Cluster, workers};
use crate::event::{Progress, Spent};
use crate::jobs::{Job, Phase};
use crate::types::*;

/// What programs have in common that are equally fast on the same devices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The bundled trainer, by its model.
    Train(Name),
    /// The bundled inference server, by its model.
    Serve(Name),
    /// Any program, by the name of its job without the digits at its end, the role and the user.
    #[allow(missing_docs)]
    Command { name: Name, role: Name, user: Name },
}

/// Kinds that are remembered, at most: those that told something last.
const KINDS: usize = 1024;
/// Classes that are remembered of a kind, at most: the first ones.
const CLASSES: usize = 64;
/// A new measurement counts one in so many.
const SMOOTH: u64 = 4;
/// Decisions follow a speed when it has changed by so small a part, so that they do not follow its noise.
const NEWS: u64 = 16;
/// Steps are counted over at least so long, in milliseconds.
const SPAN_MS: u64 = 10_000;

/// Measured speeds. `O(log kinds + log classes)` to learn one; memory is bounded.
#[derive(Clone, Debug, Default)]
pub struct Speeds {
    kinds: BTreeMap<Kind, Known>,
    /// Grows with every change of a speed that decisions use.
    version: u64,
}

#[derive(Clone, Debug, Default)]
struct Known {
    /// When it last told something.
    at: Time,
    rates: BTreeMap<Arc<DeviceClass>, Rate>,
}

/// Millionths of a unit of work a second on one device.
#[derive(Clone, Copy, Debug)]
struct Rate {
    smooth: u64,
    /// What decisions use.
    used: u64,
}

/// How far a worker was when it last told, and when it first did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    first: (Time, u64),
    last: (Time, Progress),
}

impl Kind {
    /// Of what the ranks of a role run.
    pub fn of(spec: &JobSpec, role: &Role) -> Kind {
        match &role.program {
            Program::Train(options) => Kind::Train(options.model.clone()),
            Program::Serve(options) => Kind::Serve(options.model.clone()),
            Program::Command(_) => {
                Kind::Command { name: spec.stem(), role: role.name.clone(), user: spec.user.clone() }
            }
        }
    }

    /// Whether it is that of what the ranks of a role run.
    pub fn is_of(&self, spec: &JobSpec, of: &Role) -> bool {
        match (self, &of.program) {
            (Kind::Train(model), Program::Train(options)) => *model == options.model,
            (Kind::Serve(model), Program::Serve(options)) => *model == options.model,
            (Kind::Command { name, role, user }, Program::Command(_)) => {
                *user == spec.user && *role == of.name && **name == *stem(&spec.name)
            }
            _ => false,
        }
    }
}

impl Speeds {
    /// Takes in a measurement: `rate` millionths of a unit of work a second on one device, below `2^61`.
    pub(crate) fn learn(&mut self, now: Time, kind: Kind, class: &Arc<DeviceClass>, rate: u64) {
        if !self.kinds.contains_key(&kind) && KINDS <= self.kinds.len() {
            let oldest = self.kinds.iter().min_by_key(|(_, known)| known.at).map(|(kind, _)| kind.clone());
            self.version += u64::from(oldest.is_some_and(|kind| self.kinds.remove(&kind).is_some()));
        }
        let known = self.kinds.entry(kind).or_default();
        known.at = now;
        if let Some(known) = known.rates.get_mut(class) {
            known.smooth = ((known.smooth * (SMOOTH - 1) + rate) / SMOOTH).max(1);
            if known.used / NEWS < known.used.abs_diff(known.smooth) {
                known.used = known.smooth;
                self.version += 1;
            }
        } else if known.rates.len() < CLASSES {
            known.rates.insert(class.clone(), Rate { smooth: rate, used: rate });
            self.version += 1;
        }
    }

    /// Grows with every change of what [`Speeds::relative`] says.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Kinds that are remembered; never more than 1,024.
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// The kinds of which the speed on two classes was measured: of all others only the devices' figures are known.
    pub(crate) fn compared(&self) -> impl Iterator<Item = &Kind> {
        self.kinds.iter().filter(|(_, known)| 1 < known.rates.len()).map(|(kind, _)| kind)
    }

    /// Whether the speed of the kind on the class was measured.
    pub fn is_measured(&self, kind: &Kind, class: &DeviceClass) -> bool {
        self.kinds.get(kind).is_some_and(|known| known.rates.contains_key(class))
    }

    /// How fast the kind is on each class, in thousandths of a reference device, at least 1.
    ///
    /// Where several classes were measured, their speeds are in the ratio of what was measured, and as fast together as
    /// their devices' figures say; elsewhere the figures stand.
    ///
    /// * `classes`: each with the figure of its devices, in the same unit.
    pub fn relative(&self, kind: &Kind, classes: &[(Arc<DeviceClass>, u64)]) -> Vec<u64> {
        let rates = self.kinds.get(kind).map(|known| &known.rates);
        let rate = |class: &DeviceClass| Some(u128::from(rates?.get(class)?.used));
        let seen = classes.iter().filter_map(|(class, figure)| Some((rate(class)?, u128::from(*figure))));
        let (count, rate_sum, figure_sum) =
            seen.fold((0, 0, 0), |sum, (rate, figure)| (sum.0 + 1, sum.1 + rate, sum.2 + figure));
        let speed = |(class, figure): &(Arc<DeviceClass>, u64)| match rate(class) {
            Some(rate) if 1 < count => (rate * figure_sum / rate_sum.max(1)).clamp(1, 1 << 32) as u64,
            _ => (*figure).max(1),
        };
        classes.iter().map(speed).collect()
    }
}

impl Cluster {
    /// A worker of a job's current attempt tells how far it is. What it told before is nothing new.
    pub(crate) fn on_progress(&mut self, worker: WorkerId, progress: Progress) {
        let now = self.now();
        let Some(pace) = self.paces.get_mut(&worker) else {
            // It may still warm up.
            self.paces.insert(worker, Pace { first: (now, progress.step), last: (now, progress) });
            return;
        };
        let (since, before) = pace.last;
        pace.last.1.spent = progress.spent.or(before.spent);
        if before == progress || (progress.rate_milli == 0 && now.since(since) < SPAN_MS) {
            return;
        }
        pace.last = (now, progress);
        let job = self.jobs().get(worker.job).expect("a worker's job");
        let world = job.ranks.len() as u32;
        let at = job.position(worker.rank);
        let number = job.spec.role_of(at as u32, world);
        let (role, ranks) = (&job.spec.roles[number], job.spec.ranks_of(number, world).len());
        let rank = &job.ranks[at];
        let Some(device) = rank.devices.first() else { return };
        let Some(device) = self.nodes().get(rank.node).inventory.devices.get(usize::from(*device)) else {
            return;
        };
        // All ranks make a step together, but each tells of its own rate.
        let (work_micro, milli) = match progress.rate_milli {
            0 => {
                let steps = u128::from(progress.step.saturating_sub(before.step));
                let micro = steps * 1_000_000_000 / u128::from(now.since(since).max(1));
                (micro, u128::from(rank.charge_milli) * ranks as u128)
            }
            told => (u128::from(told) * 1000, u128::from(rank.charge_milli)),
        };
        let rate = (work_micro * 1000 / milli.max(1)).min(1 << 60) as u64;
        if rate != 0 {
            let (kind, class) = (Kind::of(&job.spec, role), device.class.clone());
            let speeds = Arc::make_mut(&mut self.speeds);
            let before = speeds.version();
            speeds.learn(now, kind, &class, rate);
            if before != speeds.version() {
                self.plan_at(now);
            }
        }
    }

    /// Where the time of a training has gone, by what its workers told last.
    pub fn spent(&self, job: &Job) -> Spent {
        let told = self.paces_of(job.id).filter_map(|(_, pace)| pace.last.1.spent);
        told.chain([job.usage.spent]).max_by_key(Spent::sum_us).expect("at least what is known")
    }

    /// Whether the worker is of a job that runs, and speaks for its role: the first of it.
    pub(crate) fn speaks(&self, worker: WorkerId) -> bool {
        let current = |job: &&Job| job.phase == Phase::Active && job.attempt == worker.attempt;
        let Some(job) = self.jobs().get(worker.job).filter(current) else { return false };
        let world = job.ranks.len() as u32;
        let first = |role| job.ranks.get(job.spec.ranks_of(role, world).start as usize);
        (0..job.spec.roles.len()).any(|role| first(role).is_some_and(|first| first.rank == worker.rank))
    }

    /// In how many milliseconds the job ends if it goes on as it does: its steps left over its pace. Where that is not
    /// known, it is expected to run for as long again as it has run.
    pub fn left_ms(&self, job: &Job) -> u64 {
        let now = self.now();
        let age = job.placed.map_or(0, |placed| now.since(placed));
        let by_steps = || {
            let (worker, _) = workers(job).next()?;
            let pace = self.paces.get(&worker)?;
            let ((began, first), (at, last)) = (pace.first, pace.last);
            let steps = last.step.checked_sub(first).filter(|steps| 0 < *steps)?;
            let to_do = last.total_steps.checked_sub(last.step).filter(|_| last.total_steps != 0)?;
            let ms = u128::from(to_do) * u128::from(at.since(began)) / u128::from(steps);
            Some((ms.min(1 << 40) as u64).saturating_sub(now.since(at)))
        };
        let end = job.expected_end().map_or(u64::MAX, |end| end.since(now));
        by_steps().unwrap_or(age).min(end)
    }

    fn paces_of(&self, job: JobId) -> impl Iterator<Item = (&WorkerId, &Pace)> {
        let first = WorkerId { job, attempt: 0, rank: 0 };
        self.paces.range(first..).take_while(move |(worker, _)| worker.job == job)
    }

    /// Forgets how far the workers of a job were.
    pub(crate) fn forget_pace(&mut self, job: JobId) {
        let workers: Vec<WorkerId> = self.paces_of(job).map(|(worker, _)| *worker).collect();
        workers.iter().for_each(|worker| _ = self.paces.remove(worker));
    }

    /// What was measured of the speed of programs on classes of devices.
    pub fn speeds(&self) -> &Speeds {
        &self.speeds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(model: &str) -> Arc<DeviceClass> {
        Arc::new(DeviceClass { vendor: Vendor::Nvidia, model: model.into(), memory_bytes: 0 })
    }

    fn train(model: &str) -> Kind {
        Kind::Train(model.into())
    }

    #[test]
    fn a_ratio_is_measured_where_two_classes_were_seen_and_else_that_of_the_devices() {
        let (slow, fast, other) = (class("t4"), class("h200"), class("a100"));
        let classes = [(slow.clone(), 250), (fast.clone(), 1000), (other, 500)];
        let mut speeds = Speeds::default();
        assert_eq!(speeds.relative(&train("a"), &classes), [250, 1000, 500]);
        speeds.learn(Time(1), train("a"), &slow, 70);
        assert_eq!(speeds.relative(&train("a"), &classes), [250, 1000, 500], "one alone says nothing");
        speeds.learn(Time(1), train("a"), &fast, 630);
        assert_eq!(speeds.relative(&train("a"), &classes), [125, 1125, 500], "nine times as fast");
        assert_eq!(speeds.relative(&train("b"), &classes), [250, 1000, 500]);
    }

    #[test]
    fn noise_changes_nothing_that_decisions_use_and_a_new_speed_does_soon() {
        let mut speeds = Speeds::default();
        let (kind, class) = (train("a"), class("t4"));
        speeds.learn(Time(1), kind.clone(), &class, 1000);
        let version = speeds.version();
        for rate in [1100, 900, 1050, 960] {
            speeds.learn(Time(2), kind.clone(), &class, rate);
        }
        assert_eq!(speeds.version(), version);
        (0..20).for_each(|_| speeds.learn(Time(3), kind.clone(), &class, 3000));
        assert!(speeds.kinds[&kind].rates[&class].used.abs_diff(3000) < 300);
    }

    #[test]
    fn the_kinds_that_are_remembered_are_bounded_and_the_oldest_go_first() {
        let (mut speeds, class) = (Speeds::default(), class("t4"));
        for number in 0..3 * KINDS as u64 {
            speeds.learn(Time(number), train(&number.to_string()), &class, 1);
            assert!(speeds.len() <= KINDS);
        }
        assert!(!speeds.is_measured(&train("0"), &class));
        assert!(speeds.is_measured(&train(&(3 * KINDS - 1).to_string()), &class));
    }

    #[test]
    fn jobs_of_one_name_and_user_are_of_one_kind_whatever_their_number() {
        let role =
            |name: &str| Role { name: name.into(), program: Program::Command(Vec::new()), ..Role::of_test() };
        let spec = |name: &str| JobSpec { name: name.into(), user: "ada".into(), ..JobSpec::default() };
        let kind = |name: &str| Kind::of(&spec(name), &role("worker"));
        assert_eq!(kind("sweep-1"), kind("sweep-27"));
        assert_ne!(kind("sweep-1"), kind("other-1"));
        assert_ne!(kind("sweep-1"), Kind::of(&spec("sweep-1"), &role("rollout")));
    }

    impl Role {
        fn of_test() -> Role {
            Role {
                name: "worker".into(),
                ranks: 1,
                min_ranks: None,
                request: Request::default(),
                mounts: Vec::new(),
                standing: crate::topology::Standing::default(),
                program: Program::Command(Vec::new()),
            }
        }
    }
}
