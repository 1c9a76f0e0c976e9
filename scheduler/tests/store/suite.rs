//! What every store must do.

use aquifer_core::cluster::Policy;
use aquifer_core::plan::Order;
use aquifer_core::{Cluster, Command, Effect, Event, NodeId, Queue, QueueUsage, Record, Reservation, Time};
use aquifer_proto::store::{Kind, Row, encode};

use aquifer_scheduler::store::{Contents, Memory, Store};

/// What every store must do. The store is new.
pub fn suite(store: &mut dyn Store) {
    let opened = store.open_term().unwrap();
    assert_eq!((opened.term, opened.records.len()), (1, 0));
    let mut cluster = Cluster::restore(Policy::new(Order::FairShare), 1, [], Time(5));
    let mut effects = Vec::new();
    for name in ["red", "blue", "red"] {
        let command = Command::SetQueue(Queue::new(name.into()));
        cluster.step(Time(6), Event::Request { id: 0, command }, &mut effects);
    }
    let queue = Queue { parent: Some("red".into()), ..Queue::new("dark-red".into()) };
    cluster.step(Time(6), Event::Request { id: 0, command: Command::SetQueue(queue) }, &mut effects);
    let saves = effects.iter().filter_map(|effect| match effect {
        Effect::Save(record) => Some(encode(record)),
        _ => None,
    });
    store.commit(&saves.collect::<Vec<_>>()).unwrap();
    let used = Record::Usage("red".into(), QueueUsage { at: Time(4), spent: 1 << 50 });
    store.commit(&[encode(&used)]).unwrap();
    let reservation = Reservation {
        name: "maint".into(),
        nodes: vec![NodeId(3), NodeId(5)],
        start: Time(1 << 41),
        end: Time(1 << 42),
        queues: vec!["red".into()],
        users: vec!["ada".into()],
        begun: false,
    };
    let gone = Reservation { name: "gone".into(), ..reservation.clone() };
    for record in [
        Record::Reservation(gone),
        Record::Reservation(reservation.clone()),
        Record::NoReservation("gone".into()),
    ] {
        store.commit(&[encode(&record)]).unwrap();
    }
    let mut opened = store.open_term().unwrap();
    let at = opened.records.iter().position(|it| matches!(it, Record::Reservation(_)));
    let stored = opened.records.remove(at.expect("a reservation"));
    assert_eq!(stored, Record::Reservation(reservation));
    assert!(!opened.records.iter().any(|it| matches!(it, Record::Reservation(_))), "it was removed");
    assert_eq!(opened.term, 2);
    let restored = Cluster::restore(Policy::new(Order::FairShare), 2, opened.records, Time(7));
    let mut records = cluster.records();
    records.push(used);
    assert_eq!(restored.records(), records);
}

/// Commits that are small, large, of many rows and of large ones, and what replaces all. The store is new.
pub fn sizes(store: &mut dyn Store) {
    store.begin_term().unwrap();
    let mut model = Memory::default();
    let row = |number: u64, bytes: usize| {
        let value: Vec<u8> = (0..bytes).map(|at| (at as u64 * 31 + number) as u8).collect();
        Row { kind: Kind::Spec, key: number.to_be_bytes().into(), value: Some(value) }
    };
    let removed = |number: u64| Row { kind: Kind::Spec, key: number.to_be_bytes().into(), value: None };
    let many: Vec<Row> = (0..1000).map(|number| row(number, 300)).collect();
    let large: Vec<Row> = (0..5).map(|number| row(number, 1_200_000)).collect();
    let mixed = (0..300).map(|number| if number % 2 == 0 { removed(number) } else { row(number, 9) });
    for rows in [vec![row(7, 0)], many, large, mixed.collect(), vec![removed(1)], vec![row(1, 5)]] {
        store.commit(&rows).unwrap();
        model.commit(&rows).unwrap();
        assert!(store.contents().unwrap().rows == model.contents().unwrap().rows, "{} rows", rows.len());
    }
    store.commit(&[]).unwrap();
    let other = Contents { term: 41, rows: (500..900).map(|number| row(number, 77)).collect() };
    store.replace(&other).unwrap();
    assert!(store.contents().unwrap() == other);
    assert_eq!(store.begin_term().unwrap(), 42);
    store.commit(&[row(1, 5)]).unwrap();
    assert_eq!(store.contents().unwrap().rows.len(), 401);
}
