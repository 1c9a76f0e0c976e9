//! How many replicas a service should have. Pure: from what it promises and what its replicas report.
//!
//! Four signs, of which the one that asks for most counts: requests against what a replica should serve at once, how fast
//! they come against what it can serve, the time to the first token, and the time between tokens. More is granted at once; less only when a whole
//! [`PATIENCE`] has not asked for more. A replica more than there are requests is never asked for: it could not help.
//! Where replicas are unlike, what is needed is counted in mean ones, and each counts for what it serves.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::types::Time;

/// Replicas are given up when they were not needed for so long: about the time in which one starts and warms up,
/// several times over.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Of what is promised, in thousandths, that is aimed at: the rest is room for what comes while a replica starts.
const AIM_MILLI: u64 = 800;

/// Slow tokens ask for so many times the replicas that are ready, at most: they are one moment's measurement.
const STEEPEST: u64 = 2;

/// What a user wants of a service that scales itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// Requests that a replica should serve at once; at least 1.
    pub concurrency: u32,
    /// From a request to its first token, in milliseconds, at least 1; `None`: not promised.
    pub ttft_ms: Option<u64>,
    /// From one token of an answer to the next, in milliseconds, at least 1; `None`: not promised.
    pub tpot_ms: Option<u64>,
    /// When nobody has asked for so long, in milliseconds, at least 1, it gives its last replicas back and sleeps until
    /// somebody asks; `None`: it never does.
    pub sleep_after_ms: Option<u64>,
}

/// What a service promises, and how far it may scale for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Replicas, at least. With 0 it has none while nobody asks.
    pub min: u32,
    /// Replicas, at most; no less than `min`, at least 1.
    pub max: u32,
    /// Requests that a replica should serve at once; at least 1.
    pub concurrency: u32,
    /// From a request to its first token, in milliseconds, at least 1; `None`: not promised.
    pub ttft_ms: Option<u64>,
    /// From one token of an answer to the next, in milliseconds, at least 1; `None`: not promised.
    pub tpot_ms: Option<u64>,
    /// With a `min` of 0: the last replica stays for so long after the last request.
    pub idle: Duration,
}

/// What the replicas of a service report together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Replicas that answer.
    pub ready: u32,
    /// Requests that are being answered.
    pub running: u32,
    /// Requests that wait for that.
    pub waiting: u32,
    /// Of the requests of late, the time to the first token that nine of ten did not exceed, in milliseconds.
    pub ttft_ms: Option<u64>,
    /// The same of the time from one token to the next.
    pub tpot_ms: Option<u64>,
    /// Requests of late, in a billion seconds; 0: not known.
    pub rate: u64,
    /// When a request last came; `None`: never.
    pub last_request: Option<Time>,
}

/// What the replicas of a service can do, each in requests in a billion seconds with its promise kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fleet {
    /// Of those that answer, the mean, in requests in a billion seconds. 0: all that there are, and will be, are alike.
    pub mean: u64,
    /// Of those that it has, in the order in which they would be kept.
    pub has: Vec<u64>,
    /// Of the next one.
    pub next: u64,
}

impl Fleet {
    /// How many replicas do as much as so many thousandths of a mean one. `O(replicas)`.
    fn count(&self, need_milli: u64) -> u64 {
        if self.mean == 0 || self.next == 0 {
            return need_milli.div_ceil(1000);
        }
        let mut left = u128::from(need_milli) * u128::from(self.mean);
        for (at, rate) in (0..).zip(&self.has) {
            if left == 0 {
                return at;
            }
            left = left.saturating_sub(u128::from(*rate) * 1000);
        }
        self.has.len() as u64 + left.div_ceil(u128::from(self.next) * 1000).min(u32::MAX.into()) as u64
    }
}

/// What asks for as many replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// So many requests at once.
    Requests(u32),
    /// So many requests in a thousand seconds.
    Rate(u64),
    /// The first token takes so long, in milliseconds.
    FirstToken(u64),
    /// Tokens take so long, in milliseconds.
    Tokens(u64),
    /// More were needed less than [`PATIENCE`] ago.
    Lately,
    /// Nobody has asked for [`Target::idle`].
    Idle,
    /// The least or most that it may have.
    Bound,
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sign::Requests(requests) => write!(f, "{requests} requests at once"),
            Sign::Rate(rate) => write!(f, "{}.{} requests a second", rate / 1000, rate % 1000 / 100),
            Sign::FirstToken(ms) => write!(f, "the first token takes {ms} ms"),
            Sign::Tokens(ms) => write!(f, "tokens take {ms} ms"),
            Sign::Lately => f.write_str("as many were needed lately"),
            Sign::Idle => f.write_str("nobody asks"),
            Sign::Bound => f.write_str("it may have no more and no fewer"),
        }
    }
}

/// The number of replicas that a service should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Within the target's bounds.
    pub replicas: u32,
    /// What asks for them.
    pub sign: Sign,
}

/// What a service needed of late. A new one gives nothing up for [`PATIENCE`].
#[derive(Clone, Debug)]
pub struct Scaler {
    /// Falling needs, each with when it was seen last: the first is the largest of the time of patience.
    needs: VecDeque<(Time, u32)>,
}

impl Scaler {
    /// For a service that has so many replicas at `now`.
    pub fn new(now: Time, replicas: u32) -> Scaler {
        Scaler { needs: VecDeque::from([(now, replicas)]) }
    }

    /// How many replicas the service should have. Amortised `O(1)` where all are alike, else `O(replicas)`.
    ///
    /// # Panics
    /// If the target is out of the ranges that its fields state.
    pub fn decide(&mut self, now: Time, target: &Target, load: &Load, fleet: &Fleet) -> Decision {
        assert!(target.min <= target.max && 1 <= target.max, "{target:?}");
        let need = need(now, target, load, fleet);
        let replicas = need.replicas.clamp(target.min, target.max);
        if replicas == 0 {
            // Nobody has asked for as long as the target says: that is its own patience.
            self.needs.clear();
        }
        while self.needs.back().is_some_and(|(_, earlier)| *earlier <= replicas) {
            self.needs.pop_back();
        }
        self.needs.push_back((now, replicas));
        while self.needs.front().is_some_and(|(at, _)| *at + PATIENCE < now) {
            self.needs.pop_front();
        }
        let most = self.needs[0].1.clamp(target.min, target.max);
        let sign = match () {
            () if replicas < most => Sign::Lately,
            () if replicas != need.replicas => Sign::Bound,
            () => need.sign,
        };
        Decision { replicas: most, sign }
    }
}

/// With how many replicas a service that sleeps goes on, for so many requests that wait.
pub fn wake(target: &Target, waiting: u32) -> Decision {
    let load = Load { waiting: waiting.max(1), ..Load::default() };
    let need = need(Time(0), target, &load, &Fleet::default());
    let replicas = need.replicas.clamp(target.min.max(1), target.max);
    Decision { replicas, sign: if replicas == need.replicas { need.sign } else { Sign::Bound } }
}

/// What the load asks for by itself, whatever was before and whatever is allowed.
fn need(now: Time, target: &Target, load: &Load, fleet: &Fleet) -> Decision {
    let requests = load.running + load.waiting;
    let awake = load.last_request.is_some_and(|last| now < last + target.idle);
    if requests == 0 {
        return match awake {
            true => Decision { replicas: 1, sign: Sign::Requests(0) },
            false => Decision { replicas: 0, sign: Sign::Idle },
        };
    }
    // In thousandths of a replica.
    let by_requests = (u64::from(requests) * 1_000_000).div_ceil(u64::from(target.concurrency) * AIM_MILLI);
    let by_time = |promised: Option<u64>, seen: Option<u64>| {
        let (promised, seen) = (promised?, seen?);
        let ready = u64::from(load.ready) * 1000;
        let scaled = |aim: u64| (ready.saturating_mul(seen).saturating_mul(1000)).div_ceil(aim);
        let wanted = match () {
            () if promised < seen => scaled(promised * 1000).min(ready * STEEPEST),
            // Near what is promised nothing changes, or it would go up and down.
            () => scaled(promised * AIM_MILLI).min(ready),
        };
        Some((wanted.min(u64::from(requests) * 1000), seen))
    };
    let by_rate = u128::from(load.rate) * 1_000_000 / (u128::from(fleet.mean.max(1)) * u128::from(AIM_MILLI));
    let by_rate = (load.rate != 0 && fleet.mean != 0)
        .then(|| (by_rate.min(u32::MAX.into()) as u64, Sign::Rate(load.rate / 1_000_000)));
    let first = by_time(target.ttft_ms, load.ttft_ms).map(|(need, ms)| (need, Sign::FirstToken(ms)));
    let tokens = by_time(target.tpot_ms, load.tpot_ms).map(|(need, ms)| (need, Sign::Tokens(ms)));
    let all = [Some((by_requests, Sign::Requests(requests))), by_rate, first, tokens].into_iter().flatten();
    // Of equal ones the first: requests are the plainest reason.
    let counted = all.map(|(need, sign)| (fleet.count(need), sign));
    let (need, sign) = counted.rev().max_by_key(|(need, _)| *need).expect("one sign");
    Decision { replicas: need.min(u32::MAX.into()) as u32, sign }
}
