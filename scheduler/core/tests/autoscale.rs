//! How many replicas a service should have: against a model of a service, second by second.

use std::time::Duration;

use aquifer_core::Time;
use aquifer_core::autoscale::{Decision, Fleet, Load, PATIENCE, Scaler, Sign, Target};

/// A replica's token takes so long, in milliseconds, and so much more for each request beside it.
const TOKEN_MS: f64 = 20.0;
const BESIDE_MS: f64 = 2.5;
/// Requests that a replica takes at once.
const SLOTS: f64 = 16.0;
/// Tokens of an answer.
const TOKENS: f64 = 200.0;
/// From the decision to have a replica until it answers, in seconds.
const START_S: u64 = 45;
/// What is promised. A replica keeps it with eight requests at once, and no more.
const TPOT_MS: u64 = 40;
const TTFT_MS: u64 = 2_000;
const ALLOWED: f64 = 8.0;

const TARGET: Target = Target {
    min: 0,
    max: 40,
    concurrency: 8,
    ttft_ms: Some(TTFT_MS),
    tpot_ms: Some(TPOT_MS),
    idle: Duration::from_secs(600),
};

/// A service whose requests flow like water.
struct Service {
    scaler: Scaler,
    now: u64,
    ready: u32,
    /// When those that start are ready.
    starting: Vec<u64>,
    running: f64,
    waiting: f64,
    last_request: Option<Time>,
    /// Changes of the number, replica seconds, seconds with requests, and those of them in which all was kept.
    changes: u32,
    replica_s: u64,
    busy_s: u64,
    kept_s: u64,
}

impl Service {
    fn new(ready: u32) -> Service {
        Service {
            scaler: Scaler::new(Time(0), ready),
            now: 0,
            ready,
            starting: Vec::new(),
            running: 0.0,
            waiting: 0.0,
            last_request: None,
            changes: 0,
            replica_s: 0,
            busy_s: 0,
            kept_s: 0,
        }
    }

    /// One second with so many new requests.
    fn second(&mut self, target: &Target, arrivals: f64) -> Decision {
        self.now += 1;
        let before = self.starting.len();
        self.starting.retain(|at| self.now < *at);
        self.ready += (before - self.starting.len()) as u32;
        self.waiting += arrivals;
        if 0.0 < arrivals {
            self.last_request = Some(Time(self.now * 1000));
        }
        let ready = f64::from(self.ready);
        let enter = self.waiting.min((ready * SLOTS - self.running).max(0.0));
        self.waiting -= enter;
        self.running += enter;
        let beside = if ready == 0.0 { 0.0 } else { self.running / ready };
        let tpot_ms = TOKEN_MS + BESIDE_MS * beside;
        let end = self.running / (TOKENS * tpot_ms / 1000.0);
        self.running = (self.running - end).max(0.0);
        if self.running + self.waiting < 0.01 {
            (self.running, self.waiting) = (0.0, 0.0);
        }
        // Those that wait come in as others end.
        let ttft_ms = if end == 0.0 { 100.0 } else { 100.0 + 1000.0 * self.waiting / end };
        let is_busy = 0.0 < self.running;
        let load = Load {
            ready: self.ready,
            running: self.running.ceil() as u32,
            waiting: self.waiting.ceil() as u32,
            ttft_ms: is_busy.then_some(ttft_ms as u64),
            tpot_ms: is_busy.then_some(tpot_ms as u64),
            last_request: self.last_request,
            rate: 0,
        };
        let decision = self.scaler.decide(Time(self.now * 1000), target, &load, &Fleet::default());
        self.scale(decision.replicas);
        self.replica_s += u64::from(self.ready) + self.starting.len() as u64;
        if is_busy || 0.0 < self.waiting {
            self.busy_s += 1;
            let kept = 0 < self.ready && tpot_ms <= TPOT_MS as f64 && ttft_ms <= TTFT_MS as f64;
            self.kept_s += u64::from(kept);
        }
        decision
    }

    fn scale(&mut self, wanted: u32) {
        let have = self.ready + self.starting.len() as u32;
        if have < wanted {
            self.starting.extend((have..wanted).map(|_| self.now + START_S));
        }
        // The last to start are the first to go.
        for _ in wanted..have {
            if self.starting.pop().is_none() {
                self.ready -= 1;
            }
        }
        self.changes += u32::from(wanted != have);
    }
}

/// Requests a second that keep so many at once in the service, if all is as promised.
fn arrivals(at_once: f64) -> f64 {
    at_once / (TOKENS * (TOKEN_MS + BESIDE_MS * ALLOWED) / 1000.0)
}

#[test]
fn a_day_of_requests_is_answered_as_promised_with_few_replicas() {
    let mut service = Service::new(0);
    let mut needed_s = 0.0;
    for second in 0..3 * 86_400_u64 {
        // Six hours of silence, then up to 120 at once and back.
        let hour = second as f64 / 3600.0 % 24.0;
        let at_once =
            if hour < 6.0 { 0.0 } else { 120.0 * (std::f64::consts::PI * (hour - 6.0) / 18.0).sin() };
        needed_s += (at_once / ALLOWED).ceil();
        service.second(&TARGET, arrivals(at_once));
    }
    let kept = service.kept_s as f64 / service.busy_s as f64;
    let cost = service.replica_s as f64 / needed_s;
    println!("kept {kept:.4}, cost {cost:.3}, changes {}", service.changes);
    assert!(0.995 < kept, "promises kept {kept} of the time");
    assert!(cost < 1.35, "{cost} times the replicas of one who knows what comes");
    assert!(service.changes < 3 * 80, "{} changes", service.changes);
}

#[test]
fn a_steady_load_is_served_by_a_steady_number() {
    for at_once in [1.0, 5.0, 7.9, 17.0, 64.0, 100.0, 200.0] {
        let mut service = Service::new(1);
        (0..3600).for_each(|_| _ = service.second(&TARGET, arrivals(at_once)));
        let changes = service.changes;
        let decision = (0..7200).map(|_| service.second(&TARGET, arrivals(at_once))).last().expect("some");
        assert_eq!(service.changes, changes, "{at_once} at once: up and down at {decision:?}");
        let least = (at_once / ALLOWED).ceil() as u32;
        // A quarter more is aimed at, and nothing is given up on the last step to it.
        assert!((least..=least * 4 / 3 + 1).contains(&decision.replicas), "{at_once} at once: {decision:?}");
    }
}

#[test]
fn it_sleeps_when_nobody_asks_and_wakes_for_the_first_who_does() {
    let mut service = Service::new(1);
    let idle = TARGET.idle.as_secs();
    service.second(&TARGET, 1.0);
    let asleep = (1..).find(|_| service.second(&TARGET, 0.0).replicas == 0).expect("it sleeps");
    assert_eq!(asleep, idle, "as long as the target says after the last request");
    assert_eq!((0..100).map(|_| service.second(&TARGET, 0.0).sign).last(), Some(Sign::Idle));
    let woken = service.second(&TARGET, 1.0);
    assert_eq!(woken, Decision { replicas: 1, sign: Sign::Requests(1) });
    // With a replica at least it never sleeps.
    let mut service = Service::new(3);
    let target = Target { min: 2, ..TARGET };
    assert!((0..2 * idle).all(|_| 2 <= service.second(&target, 0.0).replicas));
    assert_eq!(service.second(&target, 0.0), Decision { replicas: 2, sign: Sign::Bound });
}

#[test]
fn more_comes_at_once_and_less_only_with_patience() {
    let mut scaler = Scaler::new(Time(0), 2);
    let load = |running| Load { ready: 2, running, last_request: Some(Time(0)), ..Load::default() };
    let mut at = |now_s: u64, running| {
        let decision = scaler.decide(Time(now_s * 1000), &TARGET, &load(running), &Fleet::default());
        (decision.replicas, decision.sign)
    };
    assert_eq!(at(1, 60), (10, Sign::Requests(60)), "60 of 8 each, at 80 %");
    assert_eq!(at(2, 10), (10, Sign::Lately));
    assert_eq!(at(100, 30), (10, Sign::Lately));
    assert_eq!(at(1 + PATIENCE.as_secs(), 10), (10, Sign::Lately));
    assert_eq!(at(2 + PATIENCE.as_secs(), 10), (5, Sign::Lately), "what 30 needed");
    assert_eq!(at(101 + PATIENCE.as_secs(), 10), (2, Sign::Requests(10)));
    assert_eq!(at(102 + PATIENCE.as_secs(), 1_000), (40, Sign::Bound));
}

#[test]
fn slow_tokens_and_slow_starts_ask_for_more_but_not_for_what_cannot_help() {
    let decide = |load: Load| {
        let load = Load { last_request: Some(Time(0)), ..load };
        let decision = Scaler::new(Time(0), 0).decide(Time(0), &TARGET, &load, &Fleet::default());
        (decision.replicas, decision.sign)
    };
    let load = Load { ready: 4, running: 12, ..Load::default() };
    assert_eq!(decide(load), (2, Sign::Requests(12)));
    assert_eq!(decide(Load { tpot_ms: Some(50), ..load }), (5, Sign::Tokens(50)));
    assert_eq!(
        decide(Load { tpot_ms: Some(36), ..load }),
        (4, Sign::Tokens(36)),
        "near the promise all stay"
    );
    assert_eq!(decide(Load { tpot_ms: Some(500), ..load }), (8, Sign::Tokens(500)), "no more than twofold");
    assert_eq!(decide(Load { ttft_ms: Some(2_500), ..load }), (5, Sign::FirstToken(2_500)));
    // One request cannot be served by two replicas, however slow it is.
    let alone = Load { running: 1, tpot_ms: Some(500), ..load };
    assert_eq!(decide(alone), (1, Sign::Requests(1)));
}

#[test]
fn where_replicas_are_unlike_each_counts_for_what_it_serves() {
    let load = Load { ready: 2, running: 16, last_request: Some(Time(0)), ..Load::default() };
    let decide =
        |fleet: &Fleet, load: &Load| Scaler::new(Time(0), 0).decide(Time(0), &TARGET, load, fleet).replicas;
    // Sixteen requests, of which a replica should have 6.4: two and a half mean ones, whatever they are.
    assert_eq!(decide(&Fleet { mean: 100, has: vec![100, 100], next: 100 }, &load), 3);
    // The next one is worth five of them, or a quarter: half of one is missing.
    assert_eq!(decide(&Fleet { mean: 100, has: vec![100, 100], next: 500 }, &load), 3);
    assert_eq!(decide(&Fleet { mean: 100, has: vec![100, 100], next: 25 }, &load), 4);
    // Enough is what those that stay can do: one that is worth three mean ones, not three of them.
    assert_eq!(decide(&Fleet { mean: 100, has: vec![300, 20, 20, 20], next: 20 }, &load), 1);
    assert_eq!(decide(&Fleet { mean: 100, has: vec![100, 100, 20, 20, 20, 20], next: 20 }, &load), 5);
    // One that starts counts as well.
    assert_eq!(decide(&Fleet { mean: 100, has: vec![100, 100, 40], next: 40 }, &load), 4);
}

#[test]
fn requests_that_come_faster_than_replicas_can_serve_them_ask_for_more_before_any_of_them_waits() {
    let fleet = Fleet { mean: 5_000_000_000, has: vec![5_000_000_000], next: 5_000_000_000 };
    let load =
        Load { ready: 1, running: 4, rate: 9_300_000_000, last_request: Some(Time(0)), ..Load::default() };
    let decision = Scaler::new(Time(0), 0).decide(Time(0), &TARGET, &load, &fleet);
    assert_eq!(decision, Decision { replicas: 3, sign: Sign::Rate(9300) }, "9.3 a second of 5 each, at 80 %");
    assert_eq!(decision.sign.to_string(), "9.3 requests a second");
}
