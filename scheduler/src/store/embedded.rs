//! The default store: one file, crash safe, one transaction a commit.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use aquifer_proto::store::{Kind, Row};
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
    WriteTransaction,
};

use super::{Contents, FORMAT, History, Store, StoreError};

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

fn table(kind: Kind) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(kind.table())
}

/// A file that one scheduler at a time has open.
pub struct Embedded {
    path: String,
    database: Arc<Database>,
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
    /// Opens the file, or makes it, with its directory.
    ///
    /// # Errors
    /// When another scheduler has it open, or the file system refuses.
    pub fn open(path: &Path) -> Result<Embedded, StoreError> {
        let name = path.display().to_string();
        if let Some(directory) = path.parent() {
            let made = fs::create_dir_all(directory);
            made.map_err(|error| StoreError::Failed { path: name.clone(), cause: error.to_string() })?;
        }
        Embedded::opened(name, builder().create(path))
    }

    /// Opens what a backend holds: for tests of what files do when disks fail.
    ///
    /// # Errors
    /// When the backend fails, or holds no store.
    pub fn on(backend: impl StorageBackend) -> Result<Embedded, StoreError> {
        Embedded::opened("in memory".into(), builder().create_with_backend(backend))
    }

    fn opened(path: String, database: Result<Database, DatabaseError>) -> Result<Embedded, StoreError> {
        match database {
            Ok(database) => Ok(Embedded { path, database: Arc::new(database) }),
            Err(DatabaseError::DatabaseAlreadyOpen) => Err(StoreError::InUse { path }),
            Err(error) => Err(StoreError::Failed { path, cause: error.to_string() }),
        }
    }

    fn failed(&self, error: impl Into<redb::Error>) -> StoreError {
        failed(&self.path, error)
    }

    fn read(&self, kinds: &[Kind]) -> Result<Contents, StoreError> {
        // Makes the tables of a new file.
        let (transaction, term) = self.with_term(|term| term)?;
        transaction.commit().map_err(|error| self.failed(error))?;
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
        transaction.commit().map_err(|error| self.failed(error))?;
        Ok(term)
    }

    fn commit(&mut self, rows: &[Row]) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let transaction = self.database.begin_write().map_err(|error| self.failed(error))?;
        self.write(&transaction, rows)?;
        transaction.commit().map_err(|error| self.failed(error))
    }

    fn replace(&mut self, contents: &Contents) -> Result<(), StoreError> {
        let (transaction, _) = self.with_term(|term| term.max(contents.term))?;
        for kind in Kind::ALL {
            let mut table = transaction.open_table(table(kind)).map_err(|error| self.failed(error))?;
            table.retain(|_, _| false).map_err(|error| self.failed(error))?;
        }
        self.write(&transaction, &contents.rows)?;
        transaction.commit().map_err(|error| self.failed(error))
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
