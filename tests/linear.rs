//! What concurrent clients are told while schedulers are killed is what one client could have been told that makes all
//! calls one after the other.

mod linear {
    pub mod check;
}
mod pool;

#[cfg(feature = "etcd")]
#[path = "../scheduler/tests/store/etcd_server.rs"]
mod etcd_server;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aquifer_proto::v1;
use linear::check::{self, Model, check};
use pool::{Client, Pool, command, devices, is_lost, until};
use tonic::{Code, Status};

/// Threads with a client each.
const CLIENTS: u64 = 8;
/// Calls about one job, at most.
const CALLS: usize = 100;
/// Jobs that are in use at a time, and how often another one takes the place of the oldest.
const IN_USE: u64 = 5;
const NEXT_EVERY: Duration = Duration::from_millis(200);

/// What is asked about the job of a key.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// A job with this key, in one of two versions.
    Submit(u32),
    Cancel,
    Get,
    /// Whether there is a job of its name.
    Find,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Waits,
    Runs,
    Stops,
    Cancelled,
    Succeeded,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Submitted {
        job: u64,
        repeated: bool,
    },
    KeyTaken,
    Cancelled,
    /// It had ended before.
    TooLate,
    Is(u64, Phase),
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Job {
    /// `None`: whoever made it was not told.
    id: Option<u64>,
    version: u32,
    phase: Phase,
}

/// A job of a key; it waits for ever, or runs, as the key has it.
struct Jobs<const RUNS: bool>;

impl<const RUNS: bool> Jobs<RUNS> {
    /// Whether a job that nobody cancels may be there, being here.
    fn leads(from: Phase, to: Phase) -> bool {
        use Phase::*;
        match from {
            Waits if RUNS => matches!(to, Waits | Runs | Succeeded),
            Runs => matches!(to, Runs | Succeeded),
            Stops => matches!(to, Stops | Cancelled),
            Waits | Cancelled | Succeeded => from == to,
        }
    }
}

impl<const RUNS: bool> Model for Jobs<RUNS> {
    type State = Option<Job>;
    type Op = Op;
    type Answer = Answer;

    fn after(state: &Option<Job>, op: &Op, answer: Option<&Answer>) -> Vec<Option<Job>> {
        use Phase::*;
        let is = |job: &Job, id: u64| job.id.is_none_or(|known| known == id);
        match (op, state, answer) {
            (Op::Submit(version), None, Some(Answer::Submitted { job, repeated: false })) => {
                vec![Some(Job { id: Some(*job), version: *version, phase: Waits })]
            }
            (Op::Submit(version), None, None) => {
                vec![Some(Job { id: None, version: *version, phase: Waits })]
            }
            (Op::Submit(version), Some(job), Some(Answer::Submitted { job: id, repeated: true }))
                if is(job, *id) && job.version == *version =>
            {
                vec![Some(Job { id: Some(*id), ..job.clone() })]
            }
            (Op::Submit(version), Some(job), Some(Answer::KeyTaken)) if job.version != *version => {
                vec![state.clone()]
            }
            (Op::Submit(_), Some(_), None) => vec![state.clone()],
            (Op::Cancel, Some(job), Some(Answer::Cancelled) | None) => {
                let then: &[Phase] = match job.phase {
                    Waits if RUNS => &[Cancelled, Stops],
                    Waits | Cancelled => &[Cancelled],
                    Runs | Stops => &[Stops],
                    Succeeded => &[],
                };
                let refused = job.phase == Cancelled && answer.is_some();
                let then = if refused { &[] } else { then };
                let cancelled = then.iter().map(|phase| Some(Job { phase: *phase, ..job.clone() }));
                cancelled.chain(answer.is_none().then(|| state.clone())).collect()
            }
            (Op::Cancel, Some(job), Some(Answer::TooLate)) => {
                let ended = [Cancelled, Succeeded].into_iter().filter(|phase| Self::leads(job.phase, *phase));
                ended.map(|phase| Some(Job { phase, ..job.clone() })).collect()
            }
            (Op::Get | Op::Find, Some(job), Some(Answer::Is(id, phase)))
                if is(job, *id) && Self::leads(job.phase, *phase) =>
            {
                vec![Some(Job { id: Some(*id), phase: *phase, ..job.clone() })]
            }
            (Op::Find, None, Some(Answer::Unknown)) => vec![None],
            (Op::Get | Op::Find | Op::Cancel, _, None) => vec![state.clone()],
            _ => Vec::new(),
        }
    }
}

type Call = check::Call<Op, Answer>;

/// All that was asked and answered, by the number of the key.
#[derive(Default)]
struct History {
    calls: Mutex<BTreeMap<u64, Vec<Call>>>,
    /// Jobs that somebody was told of.
    jobs: Mutex<BTreeMap<u64, u64>>,
}

/// Keys of jobs that run are even; the others want what nobody has.
fn runs(key: u64) -> bool {
    key.is_multiple_of(2)
}

fn name(key: u64) -> String {
    format!("key-{key}-")
}

fn spec(key: u64, version: u32) -> v1::JobSpec {
    let spec = v1::JobSpec {
        name: name(key),
        client_key: name(key),
        retries: version,
        ..command(&["sleep", "0.05"])
    };
    if runs(key) { spec } else { devices(spec, 1, &[(1, "nothing")]) }
}

fn phase(state: v1::JobState) -> Phase {
    use v1::JobState::*;
    match state {
        Unspecified | Pending => Phase::Waits,
        Starting | Running => Phase::Runs,
        Stopping => Phase::Stops,
        Succeeded => Phase::Succeeded,
        Cancelled => Phase::Cancelled,
        Failed | TimedOut => panic!("no job does that"),
    }
}

/// Whether the request cannot have arrived anywhere.
fn was_not_sent(status: &Status) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    status.message().contains("stands by")
}

/// Asks once; `Err(true)`: nobody got it.
fn ask(client: &Client, key: u64, job: Option<u64>, op: Op) -> Result<Answer, bool> {
    let answer = match op {
        Op::Submit(version) => {
            let request = v1::SubmitRequest { spec: Some(spec(key, version)) };
            let made = client.once(async |mut stub| stub.submit(request).await);
            made.map(|made| Answer::Submitted { job: made.job, repeated: made.repeated_request })
        }
        Op::Cancel => {
            let request = v1::CancelRequest { job: job.expect("a job"), whole_array: false };
            client.once(async |mut stub| stub.cancel(request).await).map(|_| Answer::Cancelled)
        }
        Op::Get => {
            let request = v1::GetRequest { job: job.expect("a job") };
            let found = client.once(async |mut stub| stub.get(request).await);
            found.map(|job| Answer::Is(job.id, phase(job.state())))
        }
        Op::Find => {
            let request = v1::ListRequest { name: name(key), ..Default::default() };
            let found = client.once(async |mut stub| stub.list(request).await);
            found.map(|list| match &list.jobs[..] {
                [] => Answer::Unknown,
                [job] => Answer::Is(job.id, phase(job.state())),
                more => panic!("{} jobs of one key", more.len()),
            })
        }
    };
    answer.or_else(|status| match status.code() {
        _ if is_lost(&status) => Err(was_not_sent(&status)),
        Code::AlreadyExists => Ok(Answer::KeyTaken),
        Code::FailedPrecondition => Ok(Answer::TooLate),
        Code::NotFound => Ok(Answer::Unknown),
        code => panic!("{op:?}: {code:?} {}", status.message()),
    })
}

/// Numbers of a seed. Source: Marsaglia, "Xorshift RNGs", 2003.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// So that the calls about a job are spread over its life.
fn pause(random: &mut Random) {
    let next = Instant::now() + Duration::from_micros(random.below(12_000));
    until("the next moment", || (next <= Instant::now()).then_some(()));
}

/// Asks this and that until it is told to stop.
fn client(client: &Client, seed: u64, begun: Instant, history: &History, stop: &AtomicBool) {
    let mut random = Random(seed);
    let now = || begun.elapsed().as_nanos() as u64;
    while !stop.load(Ordering::Relaxed) {
        let newest = (begun.elapsed().as_millis() / NEXT_EVERY.as_millis()) as u64;
        let key = newest + random.below(IN_USE);
        let job = history.jobs.lock().expect("no holder panics").get(&key).copied();
        let op = match (random.below(10), job) {
            (0 | 1, _) => Op::Submit(u32::from(random.below(4) == 0)),
            (2, Some(_)) => Op::Cancel,
            (3..=6, Some(_)) => Op::Get,
            _ => Op::Find,
        };
        if CALLS <= history.calls.lock().expect("no holder panics").get(&key).map_or(0, Vec::len) {
            pause(&mut random);
            continue;
        }
        let invoked = now();
        let answer = ask(client, key, job, op);
        let returned = now();
        if let Ok(Answer::Submitted { job, .. }) = answer {
            history.jobs.lock().expect("no holder panics").insert(key, job);
        }
        let answer = match answer {
            Ok(answer) => Some((returned, answer)),
            Err(true) => {
                pause(&mut random);
                continue;
            }
            Err(false) => None,
        };
        let mut calls = history.calls.lock().expect("no holder panics");
        calls.entry(key).or_default().push(Call { invoked, op, answer });
        drop(calls);
        pause(&mut random);
    }
}

/// Has clients ask while something goes wrong, and checks what they were told.
fn check_under(pool: &mut Pool, faults: impl FnOnce(&mut Pool)) {
    let seed: u64 = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let (history, stop, begun) = (History::default(), AtomicBool::new(false), Instant::now());
    let clients: Vec<Client> = (0..CLIENTS).map(|_| pool.another_client()).collect();
    std::thread::scope(|scope| {
        for (at, one) in clients.iter().enumerate() {
            let (history, stop) = (&history, &stop);
            scope.spawn(move || client(one, seed << 8 | (at as u64 + 1), begun, history, stop));
        }
        faults(pool);
        stop.store(true, Ordering::Relaxed);
    });
    let calls = history.calls.into_inner().expect("no holder panicked");
    let all = || calls.values().flatten();
    let lost = all().filter(|call| call.answer.is_none()).count();
    println!("{} calls about {} jobs, {lost} without an answer", all().count(), calls.len());
    assert!(500 < all().count() && 20 < calls.len(), "too little happened");
    let answers = || all().filter_map(|call| Some(call.answer.as_ref()?.1));
    let repeated = answers().filter(|it| matches!(it, Answer::Submitted { repeated: true, .. })).count();
    let taken = answers().filter(|it| matches!(it, Answer::KeyTaken)).count();
    let late = answers().filter(|it| matches!(it, Answer::TooLate)).count();
    let seen = |phase| answers().filter(|it| matches!(it, Answer::Is(_, found) if *found == phase)).count();
    let phases = [Phase::Waits, Phase::Runs, Phase::Succeeded, Phase::Cancelled].map(seen);
    println!("{repeated} repeated, {taken} keys taken, {late} too late; phases seen {phases:?}");
    for (key, calls) in &calls {
        let checked = match runs(*key) {
            true => check::<Jobs<true>>(None, calls),
            false => check::<Jobs<false>>(None, calls),
        };
        checked.unwrap_or_else(|why| panic!("{}: {why}", name(*key)));
    }
    check_numbers(all());
    assert!(0 < repeated.min(taken).min(late) && phases.iter().all(|seen| 0 < *seen), "not all was seen");
}

/// Numbers of jobs grow: who submits after somebody else was answered gets a higher one.
fn check_numbers<'a>(calls: impl Iterator<Item = &'a Call>) {
    let mut made: Vec<(u64, u64, u64)> = calls
        .filter_map(|call| match call.answer {
            Some((at, Answer::Submitted { job, repeated: false })) => Some((job, call.invoked, at)),
            _ => None,
        })
        .collect();
    made.sort();
    for pair in made.windows(2) {
        let ((job, invoked, _), (next, _, returned)) = (pair[0], pair[1]);
        assert!(job < next, "job-{job} is of two keys");
        assert!(invoked <= returned, "job-{next} was there before job-{job} was submitted");
    }
}

#[test]
fn what_clients_are_told_while_the_scheduler_is_killed_is_linearisable() {
    let mut pool = Pool::of_one(&["--lease", "2m", "--log-level", "warn"]);
    check_under(&mut pool, |pool| {
        for delay_ms in [400, 150, 300, 20, 500, 90, 250, 600, 5, 350, 120, 450, 200, 700] {
            let next = Instant::now() + Duration::from_millis(delay_ms);
            until("the next moment", || (next <= Instant::now()).then_some(()));
            pool.kill_server();
            pool.start_server();
        }
    });
}

#[cfg(feature = "etcd")]
#[test]
fn what_clients_are_told_while_leaders_are_killed_is_linearisable() {
    let Some(etcd) = etcd_server::EtcdServer::start(1) else { return };
    let mut pool = Pool::of_schedulers(2, &["--store", &etcd.url("pool"), "--lease", "2m"]);
    pool.until_leader();
    pool.agent("a", &[]);
    check_under(&mut pool, |pool| {
        for delay_ms in [1500, 700, 1000, 300] {
            let next = Instant::now() + Duration::from_millis(delay_ms);
            until("the next moment", || (next <= Instant::now()).then_some(()));
            let leader = pool.until_leader();
            pool.kill_server_at(leader);
            pool.until_leader();
            pool.start_server_at(leader);
        }
        let next = Instant::now() + Duration::from_millis(1000);
        until("the last moment", || (next <= Instant::now()).then_some(()));
    });
}

fn call(invoked: u64, op: Op, returned: u64, answer: Answer) -> Call {
    Call { invoked, op, answer: Some((returned, answer)) }
}

const MADE: Answer = Answer::Submitted { job: 7, repeated: false };
const AGAIN: Answer = Answer::Submitted { job: 7, repeated: true };
const WAITS: Answer = Answer::Is(7, Phase::Waits);
const CANCELLED: Answer = Answer::Is(7, Phase::Cancelled);

#[test]
fn the_checker_accepts_what_is_possible() {
    let lost = |invoked, op| Call { invoked, op, answer: None };
    let possible = [
        vec![],
        // At the same time, in either order.
        vec![
            call(1, Op::Submit(0), 9, MADE),
            call(2, Op::Find, 3, Answer::Unknown),
            call(4, Op::Find, 5, WAITS),
        ],
        vec![call(1, Op::Submit(0), 9, AGAIN), call(2, Op::Submit(0), 8, MADE)],
        // What was lost had an effect, a late one, or none.
        vec![lost(1, Op::Submit(0)), call(2, Op::Find, 3, Answer::Unknown), call(8, Op::Find, 9, WAITS)],
        vec![lost(1, Op::Submit(0)), call(2, Op::Submit(0), 3, AGAIN), call(4, Op::Get, 5, WAITS)],
        vec![lost(1, Op::Submit(0)), call(2, Op::Submit(1), 3, MADE)],
        vec![call(1, Op::Submit(0), 2, MADE), lost(3, Op::Cancel), call(4, Op::Get, 5, CANCELLED)],
        vec![call(1, Op::Submit(0), 2, MADE), lost(3, Op::Cancel), call(4, Op::Get, 5, WAITS)],
    ];
    for calls in possible {
        check::<Jobs<false>>(None, &calls).unwrap_or_else(|why| panic!("{why}"));
    }
    let ran = [Phase::Waits, Phase::Runs, Phase::Succeeded].into_iter().enumerate();
    let ran =
        ran.map(|(at, phase)| call(10 * at as u64 + 3, Op::Get, 10 * at as u64 + 4, Answer::Is(7, phase)));
    let ran: Vec<Call> = ran.chain([call(1, Op::Submit(0), 2, MADE)]).collect();
    check::<Jobs<true>>(None, &ran).unwrap_or_else(|why| panic!("{why}"));
}

#[test]
fn the_checker_refuses_what_is_impossible() {
    let impossible = [
        ("a read from before", vec![call(1, Op::Submit(0), 2, MADE), call(3, Op::Find, 4, Answer::Unknown)]),
        ("a job is lost", vec![call(1, Op::Submit(0), 2, MADE), call(3, Op::Get, 4, Answer::Unknown)]),
        ("a key made two jobs", vec![call(1, Op::Submit(0), 9, MADE), call(2, Op::Submit(0), 8, MADE)]),
        ("another job of its key", vec![call(1, Op::Submit(0), 2, MADE), call(3, Op::Submit(1), 4, AGAIN)]),
        (
            "its number changed",
            vec![call(1, Op::Submit(0), 2, MADE), call(3, Op::Find, 4, Answer::Is(8, Phase::Waits))],
        ),
        (
            "a cancelled job waits again",
            vec![
                call(1, Op::Submit(0), 2, MADE),
                call(3, Op::Cancel, 4, Answer::Cancelled),
                call(5, Op::Get, 6, WAITS),
            ],
        ),
        (
            "two readers see an end and then none",
            vec![
                call(1, Op::Submit(0), 2, MADE),
                Call { invoked: 3, op: Op::Cancel, answer: None },
                call(4, Op::Get, 5, CANCELLED),
                call(6, Op::Get, 7, WAITS),
            ],
        ),
        ("nobody made it", vec![call(1, Op::Find, 2, WAITS)]),
    ];
    for (what, calls) in impossible {
        assert!(check::<Jobs<false>>(None, &calls).is_err(), "{what}");
    }
    let back = vec![
        call(1, Op::Submit(0), 2, MADE),
        call(3, Op::Get, 4, Answer::Is(7, Phase::Runs)),
        call(5, Op::Get, 6, WAITS),
    ];
    assert!(check::<Jobs<true>>(None, &back).is_err(), "it ran and waits");
}
