//! Jobs by identity, each found in the same short time however many there are.
//!
//! Identities are given in order and jobs retire roughly in order, so they stand in pages of consecutive identities. A page
//! without jobs takes no room; pages are shared with copies of the cluster until either changes them.

use std::ops::{Index, RangeBounds};
use std::sync::Arc;

use super::Job;
use crate::types::*;

/// Identities of a page.
const PAGE: usize = 256;

#[derive(Clone, Debug)]
struct Page {
    jobs: Box<[Option<Arc<Job>>]>,
    count: usize,
}

/// Jobs by identity.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pages: Vec<Option<Arc<Page>>>,
    count: usize,
}

fn place(id: JobId) -> (usize, usize) {
    (id.0 as usize / PAGE, id.0 as usize % PAGE)
}

impl Page {
    fn empty() -> Page {
        Page { jobs: vec![None; PAGE].into(), count: 0 }
    }
}

impl Table {
    /// Number of jobs.
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn get(&self, id: JobId) -> Option<&Job> {
        self.shared(id).map(|job| &**job)
    }

    pub fn shared(&self, id: JobId) -> Option<&Arc<Job>> {
        let (page, at) = place(id);
        self.pages.get(page)?.as_ref()?.jobs[at].as_ref()
    }

    /// To change a job; what copies of the cluster share is copied before.
    pub fn get_mut(&mut self, id: JobId) -> Option<&mut Job> {
        let (page, at) = place(id);
        let page = self.pages.get_mut(page)?.as_mut()?;
        Arc::make_mut(page).jobs[at].as_mut().map(Arc::make_mut)
    }

    /// Adds a job, or replaces it.
    pub fn insert(&mut self, job: Arc<Job>) {
        let (page, at) = place(job.id);
        if self.pages.len() <= page {
            self.pages.resize(page + 1, None);
        }
        let page = Arc::make_mut(self.pages[page].get_or_insert_with(|| Arc::new(Page::empty())));
        if page.jobs[at].replace(job).is_none() {
            page.count += 1;
            self.count += 1;
        }
    }

    pub fn remove(&mut self, id: JobId) -> Option<Arc<Job>> {
        let (page, at) = place(id);
        let slot = self.pages.get_mut(page)?;
        let page = Arc::make_mut(slot.as_mut()?);
        let job = page.jobs[at].take()?;
        page.count -= 1;
        self.count -= 1;
        if page.count == 0 {
            *slot = None;
        }
        Some(job)
    }

    /// All jobs, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Job> {
        self.iter_shared().map(|job| &**job)
    }

    pub fn iter_shared(&self) -> impl DoubleEndedIterator<Item = &Arc<Job>> {
        self.pages.iter().flatten().flat_map(|page| page.jobs.iter().flatten())
    }

    /// Those of some identities, oldest first. `O(pages between them * PAGE)`.
    pub fn range(&self, jobs: impl RangeBounds<JobId>) -> impl DoubleEndedIterator<Item = &Job> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let begin = match jobs.start_bound() {
            Included(id) | Excluded(id) => place(*id).0.min(self.pages.len()),
            Unbounded => 0,
        };
        let end = match jobs.end_bound() {
            Included(id) | Excluded(id) => (place(*id).0 + 1).clamp(begin, self.pages.len()),
            Unbounded => self.pages.len(),
        };
        let all = self.pages[begin..end].iter().flatten().flat_map(|page| page.jobs.iter().flatten());
        all.map(|job| &**job).filter(move |job| jobs.contains(&job.id))
    }
}

impl Index<JobId> for Table {
    type Output = Job;

    /// # Panics
    /// When there is no such job.
    fn index(&self, id: JobId) -> &Job {
        self.get(id).unwrap_or_else(|| panic!("there is no {id}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn job(id: u64) -> Job {
        Job::new(JobId(id), Arc::default(), None, Time(id))
    }

    /// Inserted, changed and removed at random, it has what a map by identity has, and a copy made before has what it had.
    #[test]
    fn it_holds_what_a_map_would() {
        let (mut table, mut map) = (Table::default(), BTreeMap::new());
        let mut random = 1u64;
        let mut below = |n: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % n
        };
        let ids = |table: &Table| table.iter().map(|job| (job.id, job.attempt)).collect::<Vec<_>>();
        for round in 0..20_000 {
            let id = JobId(1 + below(3000));
            let copy = (round % 1000 == 0).then(|| (table.clone(), ids(&table)));
            match below(4) {
                0 | 1 => {
                    table.insert(Arc::new(job(id.0)));
                    map.insert(id, job(id.0));
                }
                2 => assert_eq!(table.remove(id).map(|job| job.id), map.remove(&id).map(|job| job.id)),
                _ => {
                    let change = |job: &mut Job| job.attempt += 1;
                    assert_eq!(table.get_mut(id).map(change), map.get_mut(&id).map(change));
                }
            }
            assert_eq!(table.get(id), map.get(&id));
            if let Some((copy, before)) = copy {
                assert_eq!(ids(&copy), before);
            }
        }
        assert!(1000 < map.len() && table.len() == map.len());
        assert!(table.iter().eq(map.values()) && table.iter().rev().eq(map.values().rev()));
        for _ in 0..100 {
            let (one, other) = (JobId(below(3500)), JobId(below(3500)));
            let (from, to) = (one.min(other), one.max(other));
            assert!(table.range(from..=to).eq(map.range(from..=to).map(|(_, job)| job)));
            assert!(table.range(from..).rev().eq(map.range(from..).rev().map(|(_, job)| job)));
            assert!(table.range(..to).eq(map.range(..to).map(|(_, job)| job)));
        }
        let all: Vec<JobId> = map.keys().copied().collect();
        all.iter().for_each(|id| assert!(table.remove(*id).is_some()));
        assert!(table.len() == 0 && table.pages.iter().all(Option::is_none));
    }
}
