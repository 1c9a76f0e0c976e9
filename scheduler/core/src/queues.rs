//! Queues: a tree of shares, what each holds, and what it has used.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::event::Queue;
use crate::explain::milli;
use crate::jobs::Charge;
use crate::types::*;

/// What the jobs of one queue have used, those of the queues below it left out.
///
/// It fades: at sixteen moments a half-life, the same for all queues, all usage is multiplied by `2^(-1/16)`.
/// Between them it grows by what is held. So it is the same whether it is brought up to date often or rarely,
/// and a record that is written only when what the queue holds changes is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueUsage {
    /// The moment for which `spent` is true.
    pub at: Time,
    /// In thousandths of a reference device times milliseconds.
    pub spent: u64,
}

/// How usage fades.
#[derive(Clone, Copy, Debug)]
pub struct Decay {
    half_life_ms: u64,
}

/// All queues.
#[derive(Clone, Debug)]
pub struct Queues {
    decay: Decay,
    table: BTreeMap<Name, State>,
}

#[derive(Clone, Debug, PartialEq)]
struct State {
    queue: Queue,
    /// What its own jobs hold. Derived from the jobs.
    own: Charge,
    /// What its jobs and those of all queues below it hold, in thousandths of a device. Derived.
    held_milli: u64,
    usage: QueueUsage,
}

/// What counts for the order of a queue's own jobs, in thousandths of a reference device times milliseconds.
pub struct Claim<'a> {
    /// Whose jobs.
    pub queue: &'a Queue,
    /// See [`Decay::claim`].
    pub used: u128,
}

/// A queue as people look at it. What it holds and has used includes all queues below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overview<'a> {
    /// As it was set.
    pub queue: &'a Queue,
    /// What it holds, in thousandths of a device.
    pub held_milli: u64,
    /// What it has used, as much as still counts: in thousandths of a reference device times milliseconds.
    pub spent: u64,
    /// The part of the pool that it gets when all queues want more.
    pub share_millionths: u32,
}

/// Why a queue cannot be as asked. Quantities in thousandths of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// Weights are at least 1.
    NoWeight,
    /// No queue has the name of the parent.
    NoParent(Name),
    /// The parent is the queue itself, or below it.
    Cycle(Name),
    /// More is guaranteed than it may hold.
    AboveLimit {
        /// What was asked for.
        guaranteed: u64,
        /// Of the same queue.
        limit: u64,
    },
    /// With it, the queues of its parent would be guaranteed more than the parent is.
    AboveParent {
        /// What was asked for.
        guaranteed: u64,
        /// Its parent.
        parent: Name,
        /// What is guaranteed to the parent.
        of: u64,
        /// What is guaranteed to the other queues of the parent.
        others: u64,
    },
    /// The queues below it are guaranteed more.
    BelowChildren {
        /// What was asked for.
        guaranteed: u64,
        /// What is guaranteed to the queues of which it is the parent.
        children: u64,
    },
}

impl Decay {
    /// * `half_life`: after which usage counts half; zero: nothing is remembered.
    pub fn new(half_life: Duration) -> Decay {
        Decay { half_life_ms: half_life.as_millis() as u64 }
    }

    /// Usage at `now`, if `held_milli` of reference devices have been held since. Exact in the sense that
    /// `advance(advance(usage, b), c) == advance(usage, c)`. `O(sixteenths of a half-life)`.
    pub fn advance(&self, usage: QueueUsage, held_milli: u64, now: Time) -> QueueUsage {
        /// `2^(-1/16)`, in units of `2^-64`.
        const SIXTEENTH: u128 = 0xf525_7d15_2486_cc2c;
        if self.half_life_ms == 0 {
            return QueueUsage { at: usage.at.max(now), spent: 0 };
        }
        if now <= usage.at {
            return usage;
        }
        let period = (self.half_life_ms / 16).max(1);
        let QueueUsage { mut at, mut spent } = usage;
        let add = |spent: u64, ms: u64| spent.saturating_add(held_milli.saturating_mul(ms));
        loop {
            let next = (at.0 / period + 1).saturating_mul(period);
            if now.0 < next {
                return QueueUsage { at: now, spent: add(spent, now.0 - at.0) };
            }
            let faded = ((u128::from(add(spent, next - at.0)) * SIXTEENTH) >> 64) as u64;
            // A whole period that changes nothing: nor will any other.
            let steady = faded == spent && at.0.is_multiple_of(period);
            (at, spent) = (Time(if steady { now.0 / period * period } else { next }), faded);
        }
    }

    /// What the order compares: what was used, and what is held as if it had been held for all of the time
    /// that counts, a half-life over `ln 2`. In devices: what is held now and what was held on average.
    pub fn claim(&self, spent: u64, held_milli: u64) -> u128 {
        let window_ms = (u128::from(self.half_life_ms) * 1443 / 1000).max(1);
        u128::from(spent) + u128::from(held_milli) * window_ms
    }
}

impl Queues {
    /// No queues.
    pub fn new(half_life: Duration) -> Queues {
        Queues { decay: Decay::new(half_life), table: BTreeMap::new() }
    }

    /// All queues, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Queue> {
        self.table.values().map(|state| &state.queue)
    }

    /// The queue.
    pub fn get(&self, name: &str) -> Option<&Queue> {
        self.table.get(name).map(|state| &state.queue)
    }

    /// How usage fades.
    pub fn decay(&self) -> Decay {
        self.decay
    }

    /// The queue, its parent, and so on up to a top queue.
    pub fn line(&self, name: &str) -> impl Iterator<Item = &Queue> {
        let parent = |queue: &&Queue| queue.parent.as_ref().and_then(|parent| self.get(parent));
        std::iter::successors(self.get(name), parent)
    }

    /// The queue that says whose jobs this one takes: itself, or the nearest one above it that names users. `None`: it takes
    /// those of everybody.
    pub fn gate(&self, name: &str) -> Option<&Queue> {
        self.line(name).find(|queue| !queue.users.is_empty())
    }

    /// Whether `name` is `ancestor`, or below it.
    pub fn is_within(&self, name: &str, ancestor: &str) -> bool {
        self.line(name).any(|queue| *queue.name == *ancestor)
    }

    /// What the queue and all below it hold, in thousandths of a device.
    pub fn held_milli(&self, name: &str) -> u64 {
        self.table.get(name).map_or(0, |state| state.held_milli)
    }

    /// What the queue's own jobs hold, in thousandths of a reference device.
    pub fn worth_milli(&self, name: &str) -> u64 {
        self.table.get(name).map_or(0, |state| state.own.worth_milli)
    }

    /// What each queue's own jobs count in the order. `O(queues)`.
    pub fn claims(&self, now: Time) -> impl Iterator<Item = Claim<'_>> {
        self.table.values().map(move |state| {
            let usage = self.decay.advance(state.usage, state.own.worth_milli, now);
            Claim { queue: &state.queue, used: self.decay.claim(usage.spent, state.own.worth_milli) }
        })
    }

    /// All queues as people look at them, by name. `O(queues * depth * log queues)`.
    pub fn overview<'a>(&'a self, now: Time) -> Vec<Overview<'a>> {
        let mut spent: BTreeMap<&Name, u64> = BTreeMap::new();
        let mut weights: BTreeMap<Option<&Name>, u64> = BTreeMap::new();
        for state in self.table.values() {
            let own = self.decay.advance(state.usage, state.own.worth_milli, now).spent;
            for queue in self.line(&state.queue.name) {
                let spent = spent.entry(&queue.name).or_default();
                *spent = spent.saturating_add(own);
            }
            *weights.entry(state.queue.parent.as_ref()).or_default() += u64::from(state.queue.weight);
        }
        // Rounded down at every level, so with digits to spare; at last to the nearest.
        let part = |whole: u128, queue: &Queue| {
            whole * u128::from(queue.weight) / u128::from(weights[&queue.parent.as_ref()])
        };
        let share = |name: &Name| self.line(name).fold(10_u128.pow(18), part);
        let overview = |state: &'a State| Overview {
            queue: &state.queue,
            held_milli: state.held_milli,
            spent: spent[&state.queue.name],
            share_millionths: ((share(&state.queue.name) + 5 * 10_u128.pow(11)) / 10_u128.pow(12)) as u32,
        };
        self.table.values().map(overview).collect()
    }

    /// Records of usage, by queue.
    pub fn usages(&self) -> impl Iterator<Item = (&Name, QueueUsage)> {
        let used = self.table.iter().filter(|(_, state)| state.usage != QueueUsage::default());
        used.map(|(name, state)| (name, state.usage))
    }

    /// The queue's record of usage.
    pub fn usage(&self, name: &str) -> QueueUsage {
        self.table.get(name).map_or(QueueUsage::default(), |state| state.usage)
    }

    fn children(&self, parent: Option<&Name>) -> impl Iterator<Item = &Queue> {
        self.iter().filter(move |queue| queue.parent.as_ref() == parent)
    }

    /// Whether the queue could be set. `O(queues)`.
    ///
    /// # Errors
    /// Why not.
    pub fn check_queue(&self, queue: &Queue) -> Result<(), QueueError> {
        if queue.weight == 0 {
            return Err(QueueError::NoWeight);
        }
        let guaranteed = queue.guaranteed_milli;
        if let Some(limit) = queue.limit_milli.filter(|limit| *limit < guaranteed) {
            return Err(QueueError::AboveLimit { guaranteed, limit });
        }
        let sum = |queues: &mut dyn Iterator<Item = &Queue>| {
            queues.fold(0, |sum: u64, queue| sum.saturating_add(queue.guaranteed_milli))
        };
        if let Some(name) = &queue.parent {
            if *name == queue.name || self.is_within(name, &queue.name) {
                return Err(QueueError::Cycle(name.clone()));
            }
            let parent = self.get(name).ok_or_else(|| QueueError::NoParent(name.clone()))?;
            let others = sum(&mut self.children(Some(name)).filter(|other| other.name != queue.name));
            let of = parent.guaranteed_milli;
            if of < guaranteed.saturating_add(others) && 0 < guaranteed {
                return Err(QueueError::AboveParent { guaranteed, parent: name.clone(), of, others });
            }
        }
        let children = sum(&mut self.children(Some(&queue.name)));
        if guaranteed < children {
            return Err(QueueError::BelowChildren { guaranteed, children });
        }
        Ok(())
    }

    /// Enters queues as stored, in any order; of one name the last.
    ///
    /// # Panics
    /// When they are no tree.
    pub(crate) fn restore(&mut self, queues: Vec<Queue>, usages: &BTreeMap<Name, QueueUsage>) {
        for queue in queues {
            let usage = usages.get(&queue.name).copied().unwrap_or_default();
            let state = State { queue, own: Charge::default(), held_milli: 0, usage };
            self.table.insert(state.queue.name.clone(), state);
        }
        for queue in self.iter() {
            let depth = self.line(&queue.name).take(self.table.len()).count();
            let top = self.line(&queue.name).nth(depth - 1).expect("the last of them");
            assert_eq!(top.parent, None, "queue {} is below no top queue", queue.name);
        }
    }

    /// Makes a queue or changes it. It keeps its jobs, what they hold, and what it used.
    pub(crate) fn set(&mut self, queue: Queue) {
        let above = queue.parent.iter().any(|parent| self.is_within(parent, &queue.name));
        assert!(!above, "queue {} would be below itself", queue.name);
        match self.table.get_mut(&queue.name) {
            Some(state) => state.queue = queue,
            None => {
                let (own, usage) = (Charge::default(), QueueUsage::default());
                self.table.insert(queue.name.clone(), State { queue, own, held_milli: 0, usage });
            }
        }
        // It may have another parent.
        self.table.values_mut().for_each(|state| state.held_milli = 0);
        let own: Vec<(Name, u64)> = self.table.iter().map(|(name, s)| (name.clone(), s.own.milli)).collect();
        for (name, milli) in own {
            self.add_along(&name, milli, 0);
        }
    }

    /// Adds to and takes from what a queue's own jobs hold. `O(depth log queues)`.
    pub(crate) fn hold(&mut self, name: &Name, add: Charge, take: Charge) {
        let own = &mut self.state_mut(name).own;
        own.milli = own.milli + add.milli - take.milli;
        own.worth_milli = own.worth_milli + add.worth_milli - take.worth_milli;
        self.add_along(name, add.milli, take.milli);
    }

    /// The same, of a job that holds it from now on, or held it until now.
    pub(crate) fn charge(&mut self, now: Time, name: &Name, add: Charge, take: Charge) {
        let decay = self.decay;
        let state = self.state_mut(name);
        state.usage = decay.advance(state.usage, state.own.worth_milli, now);
        self.hold(name, add, take);
    }

    fn add_along(&mut self, name: &Name, add_milli: u64, take_milli: u64) {
        let mut next = Some(name.clone());
        while let Some(name) = next {
            let state = self.state_mut(&name);
            state.held_milli = state.held_milli + add_milli - take_milli;
            next = state.queue.parent.clone();
        }
    }

    fn state_mut(&mut self, name: &Name) -> &mut State {
        self.table.get_mut(name).unwrap_or_else(|| panic!("there is no queue {name}"))
    }

    /// Checks what must hold, against what jobs hold by queue.
    ///
    /// # Panics
    /// When it does not hold.
    pub(crate) fn check(&self, own: &BTreeMap<Name, Charge>) {
        let mut held: BTreeMap<&Name, u64> = BTreeMap::new();
        for (name, state) in &self.table {
            assert_eq!(
                state.own,
                own.get(name).copied().unwrap_or_default(),
                "what queue {name} itself holds"
            );
            for queue in self.line(name) {
                *held.entry(&queue.name).or_default() += state.own.milli;
            }
            assert!(
                state.queue.parent.as_ref().is_none_or(|parent| !self.is_within(parent, name)),
                "{name}: a cycle"
            );
        }
        for (name, state) in &self.table {
            assert_eq!(state.held_milli, held[name], "what queue {name} holds");
        }
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue.{} is {}: {}", self.field(), self.value(), self.allowed())
    }
}

impl QueueError {
    /// The field that cannot be as asked.
    pub fn field(&self) -> &'static str {
        match self {
            QueueError::NoWeight => "weight",
            QueueError::NoParent(_) | QueueError::Cycle(_) => "parent",
            QueueError::AboveLimit { .. }
            | QueueError::AboveParent { .. }
            | QueueError::BelowChildren { .. } => "guaranteed",
        }
    }

    /// Its value, in devices for quantities.
    pub fn value(&self) -> String {
        match self {
            QueueError::NoWeight => "0".into(),
            QueueError::NoParent(parent) | QueueError::Cycle(parent) => format!("{parent:?}"),
            QueueError::AboveLimit { guaranteed, .. }
            | QueueError::AboveParent { guaranteed, .. }
            | QueueError::BelowChildren { guaranteed, .. } => milli(*guaranteed),
        }
    }

    /// What is allowed.
    pub fn allowed(&self) -> String {
        match self {
            QueueError::NoWeight => "expected 1 to 1,000,000".into(),
            QueueError::NoParent(_) => "expected a queue that exists, or none".into(),
            QueueError::Cycle(_) => "expected a queue that is not this one or below it".into(),
            QueueError::AboveLimit { limit, .. } => format!("expected at most its limit, {}", milli(*limit)),
            QueueError::AboveParent { parent, of, others, .. } => format!(
                "expected at most {}: its parent {parent} is guaranteed {}, the other queues of that {}",
                milli(of.saturating_sub(*others)),
                milli(*of),
                milli(*others)
            ),
            QueueError::BelowChildren { children, .. } => {
                format!("expected at least {}, which the queues below it are guaranteed", milli(*children))
            }
        }
    }
}
