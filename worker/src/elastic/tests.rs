use super::*;

const MS: Duration = Duration::from_millis(1);

fn identity(rank: Rank) -> Identity {
    Identity { protocol: PROTOCOL.into(), job: "job-1".into(), attempt: 1, rank, agreement: Vec::new() }
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

#[test]
fn a_spare_computes_only_while_another_one_is_missing() {
    let mut node = leader();
    let mut actions = Vec::new();
    for link in 1..=3 {
        node.handle(2 * MS, Event::Accepted(link));
        let hello = Message::Hello(identity(link as Rank), None);
        let welcomed = node.handle(2 * MS, Event::Got(link, hello));
        assert!(welcomed.contains(&Action::SendState(link)), "{welcomed:?}");
        actions = node.handle(3 * MS, Event::Got(link, Message::Synced));
    }
    assert_eq!(given(&actions), [1, 2]);
    let lost = node.handle(4 * MS, Event::Closed(1, "connection closed".into()));
    assert_eq!(given(&lost), [3]);
}
