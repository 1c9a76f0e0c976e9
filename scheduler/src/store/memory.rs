//! A store that lasts as long as its owner: for tests and for pools that need not survive a restart.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aquifer_proto::store::{Kind, Row};

use super::{Contents, History, Store, StoreError};

/// Rows in memory.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    term: u64,
    rows: Rows,
    /// The same of jobs that have retired, for those who read beside.
    ended: Arc<Ended>,
}

type Rows = BTreeMap<(Kind, Vec<u8>), Vec<u8>>;

#[derive(Debug, Default)]
struct Ended(Mutex<Rows>);

impl Store for Memory {
    fn contents(&mut self) -> Result<Contents, StoreError> {
        let row = |((kind, key), value): (&(Kind, Vec<u8>), &Vec<u8>)| Row {
            kind: *kind,
            key: key.clone(),
            value: Some(value.clone()),
        };
        Ok(Contents { term: self.term, rows: self.rows.iter().map(row).collect() })
    }

    fn history(&self) -> Arc<dyn History> {
        self.ended.clone()
    }

    fn begin_term(&mut self) -> Result<u64, StoreError> {
        self.term += 1;
        Ok(self.term)
    }

    fn commit(&mut self, rows: &[Row]) -> Result<(), StoreError> {
        for row in rows {
            let key = (row.kind, row.key.clone());
            if let (Kind::Ended, Some(value)) = (row.kind, &row.value) {
                self.ended.0.lock().expect("no holder panics").insert(key.clone(), value.clone());
            }
            match &row.value {
                Some(value) => _ = self.rows.insert(key, value.clone()),
                None => _ = self.rows.remove(&key),
            }
        }
        Ok(())
    }

    fn replace(&mut self, contents: &Contents) -> Result<(), StoreError> {
        self.rows.clear();
        self.term = self.term.max(contents.term);
        self.commit(&contents.rows)
    }
}

impl History for Ended {
    fn rows(&self, from: &[u8], most: usize) -> Result<Vec<Row>, StoreError> {
        let rows = self.0.lock().expect("no holder panics");
        let row = |((kind, key), value): (&(Kind, Vec<u8>), &Vec<u8>)| Row {
            kind: *kind,
            key: key.clone(),
            value: Some(value.clone()),
        };
        Ok(rows.range((Kind::Ended, from.to_vec())..).take(most).map(row).collect())
    }
}
