//! The default store: one file, crash safe, one transaction a commit.

use std::fs;
use std::path::{Path, PathBuf};

use aquifer_proto::store::{self, Kind, Row};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Opened, Store, StoreError};

/// Version of the layout. A newer version of the program reads all older ones.
const FORMAT: u64 = 1;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;

const TABLES: [(Kind, Table); 6] = [
    (Kind::Spec, TableDefinition::new("specs")),
    (Kind::Job, TableDefinition::new("jobs")),
    (Kind::Node, TableDefinition::new("nodes")),
    (Kind::Queue, TableDefinition::new("queues")),
    (Kind::Usage, TableDefinition::new("usages")),
    (Kind::Reservation, TableDefinition::new("reservations")),
];

/// A file that one scheduler at a time has open.
pub struct Embedded {
    path: PathBuf,
    database: Database,
}

impl Embedded {
    /// Opens the file, or makes it, with its directory.
    ///
    /// # Errors
    /// When another scheduler has it open, or the file system refuses.
    pub fn open(path: &Path) -> Result<Embedded, StoreError> {
        let failed = |cause: String| StoreError::Failed { path: path.display().to_string(), cause };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(|error| failed(error.to_string()))?;
        }
        let database = Database::create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.display().to_string() },
            error => failed(error.to_string()),
        })?;
        Ok(Embedded { path: path.into(), database })
    }

    fn failed(&self, error: impl Into<redb::Error>) -> StoreError {
        StoreError::Failed { path: self.path.display().to_string(), cause: error.into().to_string() }
    }

    fn begin_term(&self) -> Result<u64, StoreError> {
        let transaction = self.database.begin_write().map_err(|error| self.failed(error))?;
        let term = {
            let mut meta = transaction.open_table(META).map_err(|error| self.failed(error))?;
            let read = |key| -> Result<Option<u64>, StoreError> {
                Ok(meta.get(key).map_err(|error| self.failed(error))?.map(|value| value.value()))
            };
            let found = read("format")?.unwrap_or(FORMAT);
            if FORMAT < found {
                return Err(StoreError::TooNew { found, known: FORMAT });
            }
            let term = read("term")?.unwrap_or(0) + 1;
            meta.insert("format", FORMAT).map_err(|error| self.failed(error))?;
            meta.insert("term", term).map_err(|error| self.failed(error))?;
            for (_, table) in TABLES {
                transaction.open_table(table).map_err(|error| self.failed(error))?;
            }
            term
        };
        transaction.commit().map_err(|error| self.failed(error))?;
        Ok(term)
    }
}

impl Store for Embedded {
    fn open_term(&mut self) -> Result<Opened, StoreError> {
        let term = self.begin_term()?;
        let transaction = self.database.begin_read().map_err(|error| self.failed(error))?;
        let mut rows = Vec::new();
        for (kind, table) in TABLES {
            let table = transaction.open_table(table).map_err(|error| self.failed(error))?;
            for row in table.iter().map_err(|error| self.failed(error))? {
                let (key, value) = row.map_err(|error| self.failed(error))?;
                rows.push(Row { kind, key: key.value().into(), value: Some(value.value().into()) });
            }
        }
        Ok(Opened { term, records: store::decode_all(rows)? })
    }

    fn commit(&mut self, rows: &[Row]) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let transaction = self.database.begin_write().map_err(|error| self.failed(error))?;
        for (kind, table) in TABLES {
            let mut rows = rows.iter().filter(|row| row.kind == kind).peekable();
            if rows.peek().is_some() {
                let mut table = transaction.open_table(table).map_err(|error| self.failed(error))?;
                for row in rows {
                    match &row.value {
                        Some(value) => table.insert(&row.key[..], &value[..]).map(drop),
                        None => table.remove(&row.key[..]).map(drop),
                    }
                    .map_err(|error| self.failed(error))?;
                }
            }
        }
        transaction.commit().map_err(|error| self.failed(error))
    }
}

#[cfg(test)]
mod tests {
    use aquifer_core::cluster::Policy;
    use aquifer_core::plan::Order;
    use aquifer_core::{
        Cluster, Command, Effect, Event, NodeId, Queue, QueueUsage, Record, Reservation, Time,
    };

    use super::*;
    use crate::store::Memory;

    fn suite(store: &mut dyn Store) {
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
            Effect::Save(record) => Some(aquifer_proto::store::encode(record)),
            _ => None,
        });
        store.commit(&saves.collect::<Vec<_>>()).unwrap();
        let used = Record::Usage("red".into(), QueueUsage { at: Time(4), spent: 1 << 50 });
        store.commit(&[aquifer_proto::store::encode(&used)]).unwrap();
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
            store.commit(&[aquifer_proto::store::encode(&record)]).unwrap();
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

    #[test]
    fn every_store_returns_what_was_committed_and_begins_a_new_term() {
        let directory = tempfile::tempdir().unwrap();
        suite(&mut Memory::default());
        suite(&mut Embedded::open(&directory.path().join("deep/store.redb")).unwrap());
    }

    #[test]
    fn a_second_scheduler_is_told_that_the_store_is_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        let _first = Embedded::open(&path).unwrap();
        let error = Embedded::open(&path).err().unwrap();
        assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    }
}
