//! Which class of devices a service's next replica gets, and which replica goes first.

mod fixture;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::serving::{Learned, Mix, Offer, Offered, Pace, Work, offers};
use aquifer_core::*;
use fixture::*;

/// xorshift64*.
struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }

    /// From `least` to `most`, small ones as likely as large ones.
    fn wide(&mut self, least: u64, most: u64) -> u64 {
        let steps = u64::from((most / least).ilog2()) + 1;
        let low = least << self.below(steps);
        (low + self.below(low)).min(most)
    }

    fn promise(&mut self) -> Promise {
        let some = |rng: &mut Rng, least, most| (rng.below(4) != 0).then(|| rng.wide(least, most));
        Promise {
            concurrency: self.wide(1, 64) as u32,
            ttft_ms: some(self, 10, 20_000),
            tpot_ms: some(self, 2, 500),
            sleep_after_ms: None,
        }
    }

    fn pace(&mut self) -> Pace {
        Pace { prompt_ns: self.wide(1_000, 10_000_000), step_ns: self.wide(100_000, 500_000_000) }
    }

    fn offered(&mut self) -> Offered {
        Offered {
            compute_micro: self.wide(10_000, 8_000_000),
            memory_micro: self.wide(10_000, 8_000_000),
            price: self.wide(10_000, 8_000_000),
            pace: (self.below(2) == 0).then(|| self.pace()),
        }
    }

    fn mix(&mut self) -> Mix {
        Mix { prompt_tokens: self.wide(1, 100_000), said_tokens: self.wide(1, 10_000) }
    }
}

const SEEDS: u64 = 20_000;

/// What a class really does under a rate, in floats: whether the promise is kept.
fn keeps(promise: &Promise, mix: Mix, pace: Pace, rate_per_s: f64) -> bool {
    let prompt_ms = mix.prompt_tokens as f64 * pace.prompt_ns as f64 * 1e-6;
    let step_ms = pace.step_ns as f64 * 1e-6;
    let busy = rate_per_s * prompt_ms * 1e-3;
    let decodes = rate_per_s * mix.said_tokens as f64 * step_ms * 1e-3 / f64::from(promise.concurrency);
    let wait = prompt_ms * busy / (2.0 * (1.0 - busy));
    let within = |ms: f64, promised: Option<u64>| promised.is_none_or(|promised| ms <= promised as f64);
    busy + decodes <= 1.0
        && within(step_ms / (1.0 - busy), promise.tpot_ms)
        && within(prompt_ms + step_ms + 2.3 * wait, promise.ttft_ms)
}

#[test]
fn a_rate_is_the_most_with_which_the_promise_is_kept() {
    let (mut kept, mut missed) = (0, 0);
    for seed in 0..SEEDS {
        let mut rng = Rng::new(seed);
        let (promise, mix, pace) = (rng.promise(), rng.mix(), rng.pace());
        let offered = Offered { pace: Some(pace), ..rng.offered() };
        let offer = offers(&promise, mix, 2, &[offered])[0];
        let rate = offer.rate as f64 * 1e-9;
        if offer.misses {
            missed += 1;
            assert!(!keeps(&promise, mix, pace, 1e-3), "seed {seed}: {promise:?} {mix:?} {pace:?} {offer:?}");
        } else if 1_000_000 < offer.rate {
            kept += 1;
            assert!(
                keeps(&promise, mix, pace, 0.999 * rate),
                "seed {seed}: {promise:?} {mix:?} {pace:?} {offer:?}"
            );
            assert!(
                !keeps(&promise, mix, pace, 1.01 * rate),
                "seed {seed}: {promise:?} {mix:?} {pace:?} {offer:?}"
            );
        }
    }
    assert!(SEEDS / 8 < kept && SEEDS / 8 < missed, "{kept} kept, {missed} missed");
}

#[test]
fn what_replicas_told_of_a_class_is_believed_whatever_its_devices_figures_say() {
    for seed in 0..SEEDS {
        let mut rng = Rng::new(seed);
        let (promise, mix) = (rng.promise(), rng.mix());
        let mut classes: Vec<Offered> = (0..1 + rng.below(6)).map(|_| rng.offered()).collect();
        let before = offers(&promise, mix, 2, &classes);
        let at = rng.below(classes.len() as u64) as usize;
        if classes[at].pace.is_none() {
            continue;
        }
        // Other figures of a class that was seen change nothing of it.
        (classes[at].compute_micro, classes[at].memory_micro) =
            (rng.wide(1, 8_000_000), rng.wide(1, 8_000_000));
        assert_eq!(offers(&promise, mix, 2, &classes)[at], before[at], "seed {seed}");
        assert!(before[at].is_learned);
    }
}

#[test]
fn what_is_not_known_is_projected_by_the_shares_of_prompts_and_answers() {
    let promise = Promise { concurrency: 8, ttft_ms: None, tpot_ms: None, sleep_after_ms: None };
    let seen = Offered { compute_micro: 1_000_000, memory_micro: 1_000_000, price: 1000, pace: None };
    let seen = Offered { pace: Some(Pace { prompt_ns: 100_000, step_ns: 20_000_000 }), ..seen };
    // Four times as fast at prompts, and no faster at answers.
    let other = Offered { compute_micro: 4_000_000, pace: None, ..seen };
    let times = |prompt_tokens, said_tokens| {
        let offers = offers(&promise, Mix { prompt_tokens, said_tokens }, 2, &[seen, other]);
        offers[0].cost as f64 / offers[1].cost as f64
    };
    assert!((3.99..4.01).contains(&times(100_000, 1)), "{}", times(100_000, 1));
    assert!((0.99..1.01).contains(&times(1, 10_000)), "{}", times(1, 10_000));
    // 100 ms of a prompt and 100 ms of an answer: 200 against 125.
    assert!((1.59..1.61).contains(&times(1000, 40)), "{}", times(1000, 40));
}

#[test]
fn a_service_learns_what_its_requests_are_like_and_forgets_what_they_were() {
    let class = Arc::new(DeviceClass { vendor: Vendor::Nvidia, model: "a100".into(), memory_bytes: 0 });
    let mut learned = Learned::default();
    assert_eq!((learned.mix(), learned.pace(&class)), (Mix::default(), None));
    let work = |prompt: u64| Work {
        requests: 10,
        prompt_tokens: 10 * prompt,
        prompt_us: 10 * prompt * 50,
        said_tokens: 1000,
        steps: 100,
        steps_us: 2_000_000,
    };
    learned.add(&class, &work(900));
    assert_eq!(learned.mix(), Mix { prompt_tokens: 900, said_tokens: 100 });
    assert_eq!(learned.pace(&class), Some(Pace { prompt_ns: 50_000, step_ns: 20_000_000 }));
    (0..1000).for_each(|_| learned.add(&class, &work(900)));
    (0..1000).for_each(|_| learned.add(&class, &work(100)));
    assert!((100..105).contains(&learned.mix().prompt_tokens), "{:?}", learned.mix());
    let pace = learned.pace(&class).expect("a pace");
    // A thousandth is lost to whole numbers.
    assert!(pace.prompt_ns.abs_diff(50_000) < 50 && pace.step_ns.abs_diff(20_000_000) < 20_000, "{pace:?}");
}

const MODELS: [&str; 4] = ["t4", "l4", "a100", "h100"];

/// A node with devices of one model.
fn node(t: &mut Fixture, number: u32, model: &str, devices: u16, speed_milli: u32, memory_gbs: u32) {
    let class = Arc::new(DeviceClass { vendor: Vendor::Nvidia, model: model.into(), memory_bytes: 80 * GIB });
    let mut all = inventory(devices, 64, 512);
    for device in &mut all.devices {
        (device.class, device.speed_milli, device.memory_gbs) = (class.clone(), speed_milli, memory_gbs);
    }
    t.report(number, all, Vec::new());
}

const PROMISE: Promise =
    Promise { concurrency: 8, ttft_ms: Some(2_000), tpot_ms: Some(50), sleep_after_ms: None };

fn model(t: &Fixture, rank: &Allocation) -> Name {
    t.cluster.nodes().get(rank.node).class_of(rank).expect("a device").model.clone()
}

fn models(t: &Fixture) -> Vec<String> {
    t.job(1).ranks.iter().map(|rank| model(t, rank).to_string()).collect()
}

/// All replicas run, have so many requests, and have done what a replica on their model has by now.
fn tell(t: &mut Fixture, running: u32, work: &dyn Fn(&str) -> Work) -> Vec<String> {
    let mut notes = Vec::new();
    for number in 0..t.cluster.nodes().iter().count() as u32 {
        let node = t.cluster.nodes().get(NodeId(number));
        let (inventory, orders) = ((*node.inventory).clone(), t.cluster.assignment(NodeId(number)).workers);
        let work = work(&inventory.devices[0].class.model);
        let load = ReplicaLoad { running, idle_ms: Some(0), work, ..ReplicaLoad::default() };
        let state = |goal| match goal {
            Goal::Run => WorkerState::Running,
            Goal::Stop => WorkerState::Exited(Exit::Signal(15)),
        };
        let workers =
            orders.iter().map(|it| WorkerReport { load: Some(load), ..worker(it.id, state(it.goal)) });
        notes.extend(t.report(number, inventory, workers.collect()));
    }
    notes
}

fn patient() -> Policy {
    Policy { lease: Duration::from_secs(36_000), ..Policy::new(plan::Order::FairShare) }
}

/// A thousand prompts of so many tokens, at so many nanoseconds each, and a hundred tokens at so many milliseconds.
fn work(prompt: u64, prompt_ns: u64, step_ms: u64) -> Work {
    Work {
        requests: 1000,
        prompt_tokens: 1000 * prompt,
        prompt_us: prompt * prompt_ns,
        said_tokens: 100_000,
        steps: 100_000,
        steps_us: 100_000 * step_ms * 1000,
    }
}

#[test]
fn a_service_takes_the_cheapest_class_a_request_then_the_next_and_gives_the_dearest_back_first() {
    let mut t = Fixture::with(patient());
    // By the datasheets: of what an hour counts, an A100 reads most memory, then a T4, then an L4.
    node(&mut t, 0, "t4", 2, 208, 320);
    node(&mut t, 1, "l4", 8, 388, 300);
    node(&mut t, 2, "a100", 2, 1000, 2039);
    let notes = t.tell(Command::Submit(Arc::new(service(1, 5, Some(PROMISE)))));
    assert_eq!(models(&t), ["a100"]);
    assert_eq!(
        notes[2],
        "job-1 has 1 on a100: 1.2 times cheaper a request than t4, at 2000 ms to the first token and 50 ms to the next, \
         with prompts of 1000 and answers of 200 tokens, by the devices' figures"
    );
    let idle = |_: &str| Work::default();
    tell(&mut t, 0, &idle);
    tell(&mut t, 30, &idle);
    (0..2).for_each(|_| _ = tell(&mut t, 6, &idle));
    assert_eq!(models(&t), ["a100", "a100", "t4", "t4", "l4"]);
    // Fewer are needed: the L4 goes first, whichever came last.
    tell(&mut t, 0, &idle);
    t.pass(Duration::from_secs(301));
    tell(&mut t, 1, &idle);
    assert_eq!(models(&t), ["a100"]);
}

/// An A100 is 1.2 times cheaper a request than a T4 by what their speed counts. Where an hour of it costs twice that, a request does.
#[test]
fn a_request_costs_what_the_operator_says_that_an_hour_does() {
    let asked = |price: Option<u64>| {
        let mut t = Fixture::with(patient());
        node(&mut t, 0, "t4", 2, 208, 320);
        node(&mut t, 1, "a100", 2, 1000, 2039);
        t.tell(Command::SetPrice { model: "a100".into(), milli: price });
        t.tell(Command::Submit(Arc::new(service(1, 5, Some(PROMISE)))));
        let offers = t.cluster.class_offers(t.job(1));
        let cost = |model: &str| {
            let (_, offer) = offers.iter().find(|(class, _)| *class.model == *model).expect("it has devices");
            offer.cost as f64
        };
        (models(&t), cost("a100"), cost("t4"))
    };
    let (by_speed, a100, t4) = asked(None);
    assert_eq!(by_speed, ["a100"]);
    let (by_price, dear, same) = asked(Some(2_000));
    assert_eq!(by_price, ["t4"]);
    assert!((1.99..2.01).contains(&(dear / a100)) && same == t4, "{a100} {dear}, {t4} {same}");
    assert_eq!(asked(Some(1_000)), asked(None), "a price that is its speed changes nothing");
}

/// One that sleeps, or waits for room, has no replica of which anything could be said, of whatever size its role is.
#[test]
fn of_a_service_without_replicas_nothing_is_said() {
    let mut t = Fixture::with(patient());
    node(&mut t, 0, "t4", 1, 208, 320);
    node(&mut t, 1, "a100", 1, 1000, 2039);
    let mut rigid = service(1, 1, Some(Promise { sleep_after_ms: Some(600_000), ..PROMISE }));
    rigid.roles[0].min_ranks = None;
    (0..3).for_each(|_| _ = t.tell(Command::Submit(Arc::new(rigid.clone()))));
    let said = |job| explain::serving_choice(&t.cluster, t.job(job)).map(|choice| choice.to_string());
    assert!(said(1).is_some_and(|said| said.starts_with("1 on a100: ")), "{:?}", said(1));
    assert_eq!((t.job(3).ranks.len(), said(3)), (0, None));
}

#[test]
fn what_replicas_tell_overrides_what_was_projected() {
    let mut t = Fixture::with(patient());
    node(&mut t, 0, "t4", 4, 208, 320);
    node(&mut t, 1, "a100", 1, 1000, 2039);
    t.tell(Command::Submit(Arc::new(service(1, 8, Some(PROMISE)))));
    // Prompts of 900 tokens at 100 us on the A100: on the T4 they would take 433 ms, answers 70 ms a token.
    let measured = |model: &str| if model == "a100" { work(900, 100_000, 11) } else { Work::default() };
    tell(&mut t, 0, &measured);
    let notes = tell(&mut t, 8, &measured);
    let note = notes.iter().find(|note| note.starts_with("job-1 has")).expect("a note");
    assert_eq!(
        note,
        "job-1 has 1 on a100: keeps the promise, which t4 cannot; 2 on t4: cannot keep the promise, which a100 can, \
         at 2000 ms to the first token and 50 ms to the next, with prompts of 900 and answers of 100 tokens"
    );
    // It turns out that the T4 can, and is the cheaper one.
    let measured = |model: &str| match model {
        "a100" => work(900, 100_000, 11),
        _ => work(900, 200_000, 15),
    };
    tell(&mut t, 8, &measured);
    let text = explain::class_text(&t.cluster, t.job(1)).expect("a choice");
    assert!(text.contains("on t4: ") && text.contains("times cheaper a request than a100"), "{text}");
}

/// What the core chooses, in pools of random classes: of those with room never one that cannot keep the promise beside one
/// that can, nor one that is dearer than another.
#[test]
fn the_next_replica_is_on_the_best_class_with_room_and_the_first_to_go_on_the_worst() {
    let (mut grown, mut shrunk, mut missed) = (0, 0, 0);
    for seed in 0..400 {
        let mut rng = Rng::new(seed);
        let mut t = Fixture::with(patient());
        let count = 2 + rng.below(3) as usize;
        for (number, name) in (0..).zip(&MODELS[..count]) {
            let (speed, memory) = (rng.wide(100, 4000) as u32, rng.wide(200, 8000) as u32);
            node(&mut t, number, name, 1 + rng.below(4) as u16, speed, memory);
        }
        let promise =
            Promise { concurrency: 1 + rng.below(16) as u32, sleep_after_ms: None, ..rng.promise() };
        let most = 2 + rng.below(11) as u32;
        t.tell(Command::Submit(Arc::new(service(1, most, Some(promise)))));
        let paces: Vec<(u64, u64, u64)> =
            (0..count).map(|_| (rng.wide(10, 4000), rng.wide(10_000, 1_000_000), rng.wide(1, 200))).collect();
        let told: Vec<bool> = (0..count).map(|_| rng.below(2) == 0).collect();
        let measured = |model: &str| {
            let at = MODELS.iter().position(|it| *it == model).expect("a model");
            if told[at] { work(paces[at].0, paces[at].1, paces[at].2) } else { Work::default() }
        };
        tell(&mut t, 0, &measured);
        for _ in 0..12 {
            let before = t.job(1).clone();
            let running = [0, 0, 1, 4, 40][rng.below(5) as usize];
            t.pass(Duration::from_secs(rng.below(200)));
            let ranks =
                |job: &jobs::Job| job.ranks.iter().map(|rank| (rank.node, rank.devices.clone())).collect();
            let held: BTreeSet<(NodeId, Vec<u16>)> = ranks(&before);
            let known = t.cluster.class_offers(t.job(1));
            tell(&mut t, running, &measured);
            let now: BTreeSet<(NodeId, Vec<u16>)> = ranks(t.job(1));
            let offers = t.cluster.class_offers(t.job(1));
            if offers != known {
                // The first word of a class: what was chosen before it stands.
                continue;
            }
            let rank = |node: NodeId| {
                let model = &t.cluster.nodes().get(node).inventory.devices[0].class.model;
                offers
                    .iter()
                    .find(|(class, _)| class.model == *model)
                    .map(|(_, it)| (it.misses, it.cost))
                    .expect("an offer")
            };
            missed += offers.iter().filter(|(_, offer): &&(_, Offer)| offer.misses).count();
            // What was taken is no worse than what is left.
            let worst_taken = now.difference(&held).map(|(node, _)| rank(*node)).max();
            let free = |node: &nodes::Node| {
                let devices = node.inventory.devices.len();
                let of_node =
                    |set: &BTreeSet<(NodeId, Vec<u16>)>| set.iter().filter(|(it, _)| *it == node.id).count();
                of_node(&now).max(of_node(&held)) < devices
            };
            let best_left =
                t.cluster.nodes().iter().filter(|node| free(node)).map(|node| rank(node.id)).min();
            if let (Some(taken), Some(left)) = (worst_taken, best_left) {
                grown += 1;
                assert!(taken <= left, "seed {seed}: {taken:?} was taken and {left:?} was free");
            }
            let best_given = held.difference(&now).map(|(node, _)| rank(*node)).min();
            let worst_kept = now.iter().map(|(node, _)| rank(*node)).max();
            if let (Some(given), Some(kept)) = (best_given, worst_kept) {
                shrunk += 1;
                assert!(kept <= given, "seed {seed}: {given:?} was given back and {kept:?} kept");
            }
        }
    }
    assert!(100 < grown && 50 < shrunk && 100 < missed, "{grown} grew, {shrunk} shrank, {missed} missed");
}
