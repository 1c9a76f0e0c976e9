//! A store that lasts as long as its owner: for tests and for pools that need not survive a restart.

use std::collections::BTreeMap;

use aquifer_proto::store::{self, Kind, Row};

use super::{Opened, Store, StoreError};

/// Rows in memory.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    term: u64,
    rows: BTreeMap<(Kind, Vec<u8>), Vec<u8>>,
}

impl Store for Memory {
    fn open_term(&mut self) -> Result<Opened, StoreError> {
        self.term += 1;
        let row = |((kind, key), value): (&(Kind, Vec<u8>), &Vec<u8>)| Row {
            kind: *kind,
            key: key.clone(),
            value: Some(value.clone()),
        };
        Ok(Opened { term: self.term, records: store::decode_all(self.rows.iter().map(row))? })
    }

    fn commit(&mut self, rows: &[Row]) -> Result<(), StoreError> {
        for row in rows {
            let key = (row.kind, row.key.clone());
            match &row.value {
                Some(value) => _ = self.rows.insert(key, value.clone()),
                None => _ = self.rows.remove(&key),
            }
        }
        Ok(())
    }
}
