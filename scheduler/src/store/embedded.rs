//! The default store: one file, crash safe, one transaction a commit.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use aquifer_proto::store::{Kind, Row};
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, StorageError,
    TableDefinition, TableError, WriteTransaction,
};

use super::acknowledged::{ACKNOWLEDGED, Acknowledged};
use super::{Contents, FORMAT, History, Store, StoreError, damage};

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// In it: how many commits there were.
const COMMITS: &str = "commits";

fn table(kind: Kind) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(kind.table())
}

/// A file that one scheduler at a time has open.
pub struct Embedded {
    path: String,
    database: Arc<Database>,
    /// Commits that it holds.
    commits: u64,
    acknowledged: Acknowledged,
}

/// The history of a file, which its scheduler goes on writing.
struct EmbeddedHistory {
    path: String,
    database: Arc<Database>,
}

/// All that is there is read at the start anyway: its checksums are compared before it is believed.
fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_check_integrity_on_open(true);
    builder
}

impl Embedded {
    /// Opens the file, or makes it, with its directory. Beside it stands how many of its commits were acknowledged, in a file with
    /// `.acknowledged` behind its name.
    ///
    /// # Errors
    /// When another scheduler has it open, the file system refuses, or commits are missing that were acknowledged.
    pub fn open(path: &Path) -> Result<Embedded, StoreError> {
        let name = path.display().to_string();
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(|error| StoreError::refused(directory, &error))?;
        }
        if !path.exists() {
            Acknowledged::forget(path)?;
        }
        let database = database(&name, builder().create(path)).map_err(|error| located(error, path))?;
        Embedded::opened(name, database, Acknowledged::beside(path)?)
    }

    /// Opens what backends hold, the store and what stands beside it: for tests of what files do when disks fail.
    ///
    /// # Errors
    /// When a backend fails, or holds no store, or one from which commits are missing that were acknowledged.
    pub fn on(
        backend: impl StorageBackend,
        acknowledged: impl StorageBackend,
    ) -> Result<Embedded, StoreError> {
        let name = "in memory".to_string();
        let database = database(&name, builder().create_with_backend(backend))?;
        let acknowledged = Acknowledged::on(format!("{name}{ACKNOWLEDGED}"), acknowledged);
        Embedded::opened(name, database, acknowledged)
    }

    fn opened(path: String, database: Database, acknowledged: Acknowledged) -> Result<Embedded, StoreError> {
        let mut store = Embedded { path, database: Arc::new(database), commits: 0, acknowledged };
        store.commits = store.count()?;
        let acknowledged = store.acknowledged.read()?;
        match store.commits < acknowledged {
            true => Err(StoreError::Lost { found: store.commits, acknowledged, path: store.path }),
            false => Ok(store),
        }
    }

    /// Commits that the database holds.
    fn count(&self) -> Result<u64, StoreError> {
        let transaction = self.database.begin_read().map_err(|error| self.failed(error))?;
        let meta = match transaction.open_table(META) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(0),
            meta => meta.map_err(|error| self.failed(error))?,
        };
        let count = meta.get(COMMITS).map_err(|error| self.failed(error))?;
        Ok(count.map_or(0, |count| count.value()))
    }

    /// Makes a transaction durable, and then says so beside it.
    fn finish(&mut self, transaction: WriteTransaction) -> Result<(), StoreError> {
        let count = self.commits + 1;
        {
            let mut meta = transaction.open_table(META).map_err(|error| self.failed(error))?;
            meta.insert(COMMITS, count).map_err(|error| self.failed(error))?;
        }
        transaction.commit().map_err(|error| self.failed(error))?;
        self.commits = count;
        self.acknowledged.write(count)
    }

    fn failed(&self, error: impl Into<redb::Error>) -> StoreError {
        failed(&self.path, error)
    }

    fn read(&mut self, kinds: &[Kind]) -> Result<Contents, StoreError> {
        // Makes the tables of a new file.
        let (transaction, term) = self.with_term(|term| term)?;
        self.finish(transaction)?;
        let transaction = self.database.begin_read().map_err(|error| self.failed(error))?;
        let mut rows = Vec::new();
        for kind in kinds {
            let table = transaction.open_table(table(*kind)).map_err(|error| self.failed(error))?;
            for row in table.iter().map_err(|error| self.failed(error))? {
                let (key, value) = row.map_err(|error| self.failed(error))?;
                rows.push(Row { kind: *kind, key: key.value().into(), value: Some(value.value().into()) });
            }
        }
        Ok(Contents { term, rows })
    }

    /// A transaction that writes a term, by what it was.
    fn with_term(&self, next: impl FnOnce(u64) -> u64) -> Result<(WriteTransaction, u64), StoreError> {
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
            let term = next(read("term")?.unwrap_or(0));
            meta.insert("format", FORMAT).map_err(|error| self.failed(error))?;
            meta.insert("term", term).map_err(|error| self.failed(error))?;
            for kind in Kind::ALL {
                transaction.open_table(table(kind)).map_err(|error| self.failed(error))?;
            }
            term
        };
        Ok((transaction, term))
    }

    fn write(&self, transaction: &WriteTransaction, rows: &[Row]) -> Result<(), StoreError> {
        for kind in Kind::ALL {
            let mut rows = rows.iter().filter(|row| row.kind == kind).peekable();
            if rows.peek().is_some() {
                let mut table = transaction.open_table(table(kind)).map_err(|error| self.failed(error))?;
                for row in rows {
                    match &row.value {
                        Some(value) => table.insert(&row.key[..], &value[..]).map(drop),
                        None => table.remove(&row.key[..]).map(drop),
                    }
                    .map_err(|error| self.failed(error))?;
                }
            }
        }
        Ok(())
    }
}

impl Store for Embedded {
    fn contents(&mut self) -> Result<Contents, StoreError> {
        self.read(&Kind::ALL)
    }

    fn live(&mut self) -> Result<Contents, StoreError> {
        self.read(&Kind::LIVE)
    }

    fn history(&self) -> Arc<dyn History> {
        Arc::new(EmbeddedHistory { path: self.path.clone(), database: self.database.clone() })
    }

    fn begin_term(&mut self) -> Result<u64, StoreError> {
        let (transaction, term) = self.with_term(|term| term + 1)?;
        self.finish(transaction)?;
        Ok(term)
    }

    fn commit(&mut self, rows: &[Row]) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let transaction = self.database.begin_write().map_err(|error| self.failed(error))?;
        self.write(&transaction, rows)?;
        self.finish(transaction)
    }

    fn replace(&mut self, contents: &Contents) -> Result<(), StoreError> {
        let (transaction, _) = self.with_term(|term| term.max(contents.term))?;
        for kind in Kind::ALL {
            let mut table = transaction.open_table(table(kind)).map_err(|error| self.failed(error))?;
            table.retain(|_, _| false).map_err(|error| self.failed(error))?;
        }
        self.write(&transaction, &contents.rows)?;
        self.finish(transaction)
    }
}

impl History for EmbeddedHistory {
    fn rows(&self, from: &[u8], most: usize) -> Result<Vec<Row>, StoreError> {
        let failed = |error: redb::Error| failed(&self.path, error);
        let transaction = self.database.begin_read().map_err(|error| failed(error.into()))?;
        let table = transaction.open_table(table(Kind::Ended)).map_err(|error| failed(error.into()))?;
        let rows = table.range(from..).map_err(|error| failed(error.into()))?.take(most);
        let read = |(key, value): (redb::AccessGuard<&[u8]>, redb::AccessGuard<&[u8]>)| Row {
            kind: Kind::Ended,
            key: key.value().into(),
            value: Some(value.value().into()),
        };
        rows.map(|row| row.map(read).map_err(|error| failed(error.into()))).collect()
    }
}

fn database(path: &str, opened: Result<Database, DatabaseError>) -> Result<Database, StoreError> {
    opened.map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.into() },
        DatabaseError::Storage(StorageError::Corrupted(cause)) => {
            StoreError::Damaged { path: path.into(), at: String::new(), cause }
        }
        error => StoreError::Failed { path: path.into(), cause: error.to_string() },
    })
}

/// The same with the bytes that are damaged, where those can be found.
fn located(error: StoreError, file: &Path) -> StoreError {
    match error {
        StoreError::Damaged { path, at, cause } => {
            let bytes = damage::first(file, &builder());
            let at = bytes.map_or(at, |bytes| format!(" at bytes {} to {}", bytes.start, bytes.end - 1));
            StoreError::Damaged { path, at, cause }
        }
        error => error,
    }
}

fn failed(path: &str, error: impl Into<redb::Error>) -> StoreError {
    StoreError::Failed { path: path.into(), cause: error.into().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_format_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        let mut store = Embedded::open(&path).unwrap();
        store.begin_term().unwrap();
        let transaction = store.database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("format", FORMAT + 1).unwrap();
        transaction.commit().unwrap();
        let said = store.open_term().unwrap_err().to_string();
        assert_eq!(said, "store has format 3, this version reads formats up to 2");
    }
}
