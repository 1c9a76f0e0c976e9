//! What happens when.

use aquifer_core::Time;

use super::Pending;

/// The earliest first; of equal ones, the first that was entered.
#[derive(Debug)]
pub(super) struct Entry {
    pub at: Time,
    pub number: u64,
    pub pending: Pending,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
