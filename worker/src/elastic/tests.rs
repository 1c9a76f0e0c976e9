use super::*;
use crate::values::tests::Fake;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const MS: Duration = Duration::from_millis(1);

fn identity(rank: Rank) -> Identity {
    let kernels = if rank == 3 { "neon" } else { "avx512" }.into();
    Identity {
        protocol: PROTOCOL.into(),
        job: "job-1".into(),
        attempt: 1,
        rank,
        agreement: Vec::new(),
        kernels,
        cards: None,
    }
}

/// Rank 0 of four, one of them a spare, that leads all of them.
fn leader() -> Node {
    let mut node = Node::new(Settings {
        identity: identity(0),
        shards: 12,
        steps: 9,
        checkpoint_every: None,
        lanes: 1,
        spares: 1,
        audit: None,
        is_fixed: false,
        join: Duration::from_secs(60),
        peer: Duration::from_secs(60),
    });
    let member = |rank| Member { rank, address: String::new() };
    node.handle(MS, Event::Members((0..4).map(member).collect()));
    node.handle(MS, Event::Ready(0));
    node
}

/// The members that are given shards, by their connections, which have their numbers.
fn given(actions: &[Action]) -> Vec<Link> {
    let work = actions.iter().filter_map(|action| match action {
        Action::Send(link, Message::Work { .. }) => Some(*link),
        _ => None,
    });
    work.collect()
}

/// That leader, once the others are there, and what it did then.
fn gathered() -> (Node, Vec<Action>) {
    let mut node = leader();
    let mut actions = Vec::new();
    for link in 1..=3 {
        node.handle(2 * MS, Event::Accepted(link));
        let hello = Message::Hello(identity(link as Rank), None);
        let welcomed = node.handle(2 * MS, Event::Got(link, hello));
        assert!(welcomed.contains(&Action::SendState(link)), "{welcomed:?}");
        let says = welcomed.iter().any(|action| matches!(action, Action::Say(_)));
        assert_eq!(says, link == 3, "only rank 3 has other kernels: {welcomed:?}");
        actions = node.handle(3 * MS, Event::Got(link, Message::Synced));
    }
    (node, actions)
}

#[test]
fn a_spare_computes_only_while_another_one_is_missing() {
    let (mut node, actions) = gathered();
    assert_eq!(given(&actions), [1, 2]);
    let lost = node.handle(4 * MS, Event::Closed(1, "connection closed".into()));
    assert_eq!(given(&lost), [3]);
}

/// All shards of a step are there but one that is not finite; rank 1, which is done, computes it again, as `sum`.
fn not_finite(sum: f32) -> Vec<Action> {
    let (mut node, mut actions) = gathered();
    let part = |start, size, value: f32| Message::Part {
        turn: Turn::default(),
        start,
        size,
        is_disputed: value.is_nan(),
        pace_us: 1000,
        values: Arc::new(vec![value].into()),
    };
    let heard =
        [(1, part(4, 4, 1.0)), (2, part(8, 1, f32::NAN)), (2, part(9, 1, 1.0)), (2, part(10, 2, 1.0))];
    for (link, message) in heard {
        let more = node.handle(4 * MS, Event::Got(link, message));
        actions.extend(more);
    }
    assert_eq!(given(&actions), [1, 2, 1]);
    for shard in 0..4 {
        let compute = Action::Compute { step: 0, shards: shard..shard + 1 };
        assert!(actions.contains(&compute), "{actions:?}");
        let sum = Computed::new(shard, vec![1.0].into());
        actions = node.handle(5 * MS, Event::Computed(0, vec![sum], MS));
    }
    node.handle(6 * MS, Event::Got(1, part(8, 1, sum)))
}

#[test]
fn who_alone_has_a_sum_that_is_not_finite_is_named_and_gets_no_more_shards() {
    let actions = not_finite(3.0);
    let sentence = "rank 2 has computed a wrong sum of shard 8 of step 1, its device may have a fault: it gets no more, and the \
                    step begins anew";
    assert!(actions.contains(&Action::Say(sentence.into())), "{actions:?}");
    assert_eq!(given(&actions), [1, 3]);
}

#[test]
fn a_sum_that_is_not_finite_on_two_members_ends_the_training() {
    let reason = "the training diverged: loss is NaN, as computed by rank 2 and rank 1 for shard 8 of step 1; a lower \
                  --learning-rate or --clip may help";
    let end = Message::End(Outcome::Failed(reason.into()), None);
    let actions = not_finite(f32::NAN);
    assert!(actions.contains(&Action::Send(1, end)), "{actions:?}");
    assert!(!actions.iter().any(|action| matches!(action, Action::Apply { .. } | Action::Save(_))));
}

#[test]
fn who_is_asked_to_stop_does_not_wait_for_its_state() {
    let mut node = Node::new(leader().settings);
    let actions = node.handle(MS, Event::Members(vec![Member { rank: 0, address: String::new() }]));
    assert_eq!(actions, [Action::Load]);
    let mut actions = node.handle(2 * MS, Event::Stop { alone: false });
    actions.extend(node.handle(3 * MS, Event::Tick));
    assert_eq!(actions, [Action::Exit(Outcome::Stopped)]);
}

#[test]
fn a_member_whose_sum_is_coming_in_is_not_late() {
    let late = |receives: bool| {
        let (mut node, _) = gathered();
        let part = |start, size| Message::Part {
            turn: Turn::default(),
            start,
            size,
            is_disputed: false,
            pace_us: 10_000,
            values: Arc::new(vec![1.0].into()),
        };
        node.handle(10 * MS, Event::Got(1, part(4, 4)));
        node.handle(10 * MS, Event::Got(2, part(8, 2)));
        // Of two shards of 10 ms one is missing for 180 ms: rank 1 has nothing to do, and is given it.
        let mut actions = Vec::new();
        for at in 2..20 {
            let event = if receives { Event::Alive(2) } else { Event::Tick };
            actions.extend(node.handle(10 * at * MS, event));
        }
        given(&actions).contains(&1)
    };
    assert!(late(false) && !late(true));
}

#[test]
fn one_that_was_stopped_itself_does_not_leave_its_leader() {
    let mut node = Node::new(Settings { identity: identity(1), ..leader().settings });
    let member = |rank| Member { rank, address: String::new() };
    let dial = node.handle(MS, Event::Members((0..4).map(member).collect()));
    assert_eq!(dial, [Action::Dial(0)]);
    node.handle(MS, Event::Dialed(7));
    node.handle(MS, Event::Got(7, Message::Welcome));
    let left = |node: &mut Node, at| node.handle(at, Event::Tick).contains(&Action::Close(7));
    let asleep = 5 * SILENCE;
    assert!(!left(&mut node, asleep));
    let mut ticks = (1..).map(|tick| tick * 50 * MS).take_while(|time| *time <= SILENCE);
    assert!(ticks.any(|time| left(&mut node, asleep + time)), "it waits no longer than others");
}

/// Rank 1 of two, which has asked rank 0 and was refused, at 2 ms.
fn refused(step: Option<u64>, for_now: bool, reason: &str) -> (Node, Vec<Action>) {
    let mut node = Node::new(Settings { identity: identity(1), ..leader().settings });
    node.step = step;
    let member = |rank| Member { rank, address: String::new() };
    node.handle(MS, Event::Members((0..2).map(member).collect()));
    node.handle(MS, Event::Dialed(7));
    let refusal = Message::Refuse { reason: reason.into(), for_now };
    let actions = node.handle(2 * MS, Event::Got(7, refusal));
    (node, actions)
}

/// Also as versions say it that take it for the end.
const OTHER_VERSION: &str = "it speaks aquifer-elastic-4, this group aquifer-elastic-3";

#[test]
fn one_of_another_version_waits_until_the_others_have_ended_and_says_so_once() {
    for for_now in [false, true] {
        let (mut node, actions) = refused(None, for_now, OTHER_VERSION);
        let sentence =
            format!("rank 1 waits until the others have ended: rank 0 refused it, {OTHER_VERSION}");
        assert_eq!(actions, [Action::Close(7), Action::Wait(sentence)]);
        // Longer than anybody else waits, and it says no more.
        for second in 1..=200 {
            let at = second * Duration::from_secs(1) + 3 * MS;
            assert_eq!(node.handle(at, Event::Tick), [Action::Dial(0)]);
            node.handle(at, Event::Dialed(7));
            let refusal = Message::Refuse { reason: OTHER_VERSION.into(), for_now };
            assert_eq!(node.handle(at, Event::Got(7, refusal)), [Action::Close(7)]);
        }
        let ended = |at: Duration, node: &mut Node| {
            let mut actions = node.handle(at, Event::Tick);
            actions.extend(node.handle(at, Event::NotDialed("connection refused".into())));
            actions
        };
        let loads =
            (210..230).any(|second| ended(Duration::from_secs(second), &mut node).contains(&Action::Load));
        assert!(loads && node.leads());
    }
}

#[test]
fn who_has_a_state_goes_on_without_those_of_another_version() {
    let (mut node, _) = refused(Some(5), false, OTHER_VERSION);
    let mut actions = node.handle(3 * MS, Event::Tick);
    actions.extend(node.handle(100 * MS, Event::Tick));
    assert!(
        node.leads() && actions.iter().any(|action| matches!(action, Action::Compute { .. })),
        "{actions:?}"
    );
}

#[test]
fn who_waits_gives_those_of_another_version_no_answer_to_wait_for() {
    let (mut node, _) = refused(None, false, OTHER_VERSION);
    let mut hello = |link, protocol: &str| {
        node.handle(3 * MS, Event::Accepted(link));
        let who = Identity { protocol: protocol.into(), ..identity(0) };
        node.handle(3 * MS, Event::Got(link, Message::Hello(who, Some(5))))
    };
    assert_eq!(hello(8, "aquifer-elastic-2"), [Action::Close(8)]);
    let own = hello(9, PROTOCOL);
    assert!(matches!(&own[..], [Action::Send(9, Message::Refuse { .. }), Action::Close(9)]), "{own:?}");
}

#[test]
fn one_with_other_settings_does_not_wait() {
    let (_, actions) = refused(None, false, "its --seed is 2, rank 0 has 1");
    assert!(matches!(actions[..], [Action::Exit(Outcome::Failed(_))]), "{actions:?}");
}

#[test]
fn what_was_overtaken_takes_no_block_of_the_next_step_with_it() {
    let mut work = work::Work::default();
    work.give(Turn { step: 5, number: 0 }, 0..2);
    work.drop_of(4);
    assert!(work.is_busy());
    work.drop_of(5);
    assert!(!work.is_busy());
}

#[test]
fn what_is_offered_is_added_up_each_shard_once() {
    let mut work = work::Work::default();
    let turn = Turn { step: 5, number: 3 };
    for (start, size) in [(0, 1), (1, 1), (2, 2), (1, 1), (4, 1)] {
        let values = Arc::new(vec![(start..start + size).map(|it| it as f32).sum::<f32>()].into());
        work.hold(&Message::Part { turn, start, size, is_disputed: false, pace_us: 7, values });
    }
    let first = Turn { step: 5, number: 0 };
    let part = |start, size, sum: f32| {
        let values = Arc::new(vec![sum].into());
        Message::Part { turn: first, start, size, is_disputed: false, pace_us: 7, values }
    };
    let expected = [part(0, 4, 6.0), part(4, 1, 4.0), Message::Doing { turn: first, shards: 0..0 }];
    assert_eq!(work.offer(5), expected);
    assert_eq!(work.offer(5), expected, "another leader is given the same");
}

/// A shard of a device whose copies to the host are counted.
fn of_device(shard: usize, reads: &Arc<AtomicUsize>) -> Computed {
    let values = Values::on_device(Fake(vec![shard as f32], Arc::clone(reads), false));
    let sum = crate::shards::Partial { start: shard, size: 1, values: Arc::new(values) };
    Computed { sum, is_finite: true }
}

#[test]
fn what_one_alone_computes_on_a_device_stays_there_up_to_the_update() {
    let reads = Arc::default();
    let mut node = Node::new(leader().settings);
    node.handle(MS, Event::Members(vec![Member { rank: 0, address: String::new() }]));
    let mut actions = node.handle(2 * MS, Event::Ready(0));
    for shard in 0..12 {
        let compute = Action::Compute { step: 0, shards: shard..shard + 1 };
        assert!(actions.contains(&compute), "{actions:?}");
        actions = node.handle(4 * MS, Event::Computed(0, vec![of_device(shard, &reads)], MS));
    }
    let total = |action: &Action| match action {
        Action::Apply { total, .. } => Some(Arc::clone(total)),
        _ => None,
    };
    let total = actions.iter().find_map(total).unwrap();
    assert!(total.device().is_some() && node.last.is_none(), "nobody else has it");
    assert_eq!(reads.load(Relaxed), 0);
    assert_eq!(total.host(), Ok(&[66.0][..]));
}

#[test]
fn of_a_block_of_a_device_its_sum_alone_is_told() {
    let (reads, mut work) = (Arc::default(), work::Work::default());
    work.give(Turn::default(), 0..8);
    let mut told = Vec::new();
    for shard in 0..8 {
        assert!(told.is_empty());
        assert_eq!(work.next(1), Some((0, shard..shard + 1)));
        told = work.computed(0, vec![of_device(shard, &reads)], Duration::from_micros(1), None);
    }
    assert!(matches!(told[..], [Message::Part { start: 0, size: 8, .. }]), "{told:?}");
    assert_eq!(reads.load(Relaxed), 0);
    for _ in 0..2 {
        assert_eq!(told[0].vectors(), Ok(vec![&[28.0][..]]));
    }
    assert_eq!(reads.load(Relaxed), 1, "whoever sends it asks for it once");
}
