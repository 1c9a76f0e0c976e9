//! Jobs that have retired, read from the store's history a page at a time.

use std::collections::BTreeSet;
use std::sync::Arc;

use aquifer_core::jobs::Job;
use aquifer_core::{JobId, Record};
use aquifer_proto::store::{Row, decode_all, ended_key, spec_elsewhere};

use super::StoreError;

/// What a store has of jobs that have retired. Read beside the scheduler's own work, in other threads.
pub trait History: Send + Sync {
    /// Rows of [`Kind::Ended`](aquifer_proto::store::Kind::Ended) with keys from this one on, in order, so many at most.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn rows(&self, from: &[u8], most: usize) -> Result<Vec<Row>, StoreError>;
}

/// Jobs that have retired. Calls wait for the store.
#[derive(Clone)]
pub struct Past {
    history: Arc<dyn History>,
}

impl Past {
    /// Those of a store.
    pub fn of(history: Arc<dyn History>) -> Past {
        Past { history }
    }

    /// The job, if it has retired.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        let row = self.row(id)?;
        Ok(self.decode(row.into_iter().collect())?.pop())
    }

    /// Those submitted before `before`, the newest first, so many at most. Fewer: there are no more.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn page(&self, before: JobId, most: usize) -> Result<Vec<Job>, StoreError> {
        self.decode(self.rows(before, most)?)
    }

    /// The same as they are stored.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn rows(&self, before: JobId, most: usize) -> Result<Vec<Row>, StoreError> {
        match before.0 {
            0 => Ok(Vec::new()),
            before => self.history.rows(&ended_key(JobId(before - 1)), most),
        }
    }

    fn row(&self, id: JobId) -> Result<Option<Row>, StoreError> {
        let key = ended_key(id);
        let found = self.history.rows(&key, 1)?.pop();
        Ok(found.filter(|row| row.key == key))
    }

    fn decode(&self, mut rows: Vec<Row>) -> Result<Vec<Job>, StoreError> {
        let elsewhere = rows.iter().filter_map(|row| spec_elsewhere(row).transpose());
        let elsewhere = elsewhere.collect::<Result<BTreeSet<JobId>, _>>()?;
        let wanted = rows.len();
        for first in elsewhere {
            let is_there = rows[..wanted].iter().any(|row| row.key == ended_key(first));
            if !is_there {
                rows.extend(self.row(first)?);
            }
        }
        let jobs = decode_all(rows)?.into_iter().take(wanted).filter_map(|record| match record {
            Record::Ended(job) => Some(Arc::unwrap_or_clone(job)),
            _ => None,
        });
        Ok(jobs.collect())
    }
}
