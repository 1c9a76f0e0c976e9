//! Long vectors whose memory is used again.
//!
//! A step needs a few of the size of the model, for a moment each. The system would clear every one of them page by page.

use crate::mapping::in_large_pages;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// Shorter ones, in floats, are left to the allocator.
const LONG: usize = 1 << 16;
/// The most that are kept: a leader needs one for each member at a time, and will in the next step.
const KEPT: usize = 32;

static FREE: Free = Free(Mutex::new(Vec::new()));

/// Memory that nobody uses, the oldest first.
struct Free(Mutex<Vec<Vec<f32>>>);

impl Free {
    fn take(&self, len: usize) -> Option<Vec<f32>> {
        let mut free = self.0.lock().expect("no holder panics");
        let fits = |values: &Vec<f32>| (len..=2 * len).contains(&values.capacity());
        free.iter().position(fits).map(|at| free.remove(at))
    }

    fn give(&self, values: Vec<f32>) {
        let mut free = self.0.lock().expect("no holder panics");
        let oldest = (free.len() == KEPT).then(|| free.remove(0));
        free.push(values);
        drop((free, oldest));
    }
}

/// Floats in a row.
#[derive(Default)]
pub struct Vector(Vec<f32>);

impl Vector {
    /// So many floats of any value.
    pub fn any(len: usize) -> Vector {
        let used = if len < LONG { None } else { FREE.take(len) };
        let mut values = used.unwrap_or_else(|| in_large_pages(len, 0.0));
        values.resize(len, 0.0);
        Vector(values)
    }

    /// So many zeros.
    pub fn zeros(len: usize) -> Vector {
        let mut vector = Vector::any(len);
        vector.fill(0.0);
        vector
    }
}

impl Vector {
    /// Makes it hold so many floats of any value.
    pub fn resize(&mut self, len: usize) {
        match self.0.capacity() < len {
            true => *self = Vector::any(len),
            false => self.0.resize(len, 0.0),
        }
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.0);
        if LONG <= values.capacity() {
            FREE.give(values);
        }
    }
}

impl From<Vec<f32>> for Vector {
    fn from(values: Vec<f32>) -> Vector {
        Vector(values)
    }
}

impl From<Vector> for Vec<f32> {
    fn from(mut vector: Vector) -> Vec<f32> {
        std::mem::take(&mut vector.0)
    }
}

impl Deref for Vector {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Vector {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl Clone for Vector {
    fn clone(&self) -> Vector {
        let mut copy = Vector::any(self.len());
        copy.copy_from_slice(self);
        copy
    }
}

impl PartialEq for Vector {
    fn eq(&self, other: &Vector) -> bool {
        self[..] == other[..]
    }
}

impl fmt::Debug for Vector {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.len() {
            0..=8 => write!(to, "{:?}", &self[..]),
            len => write!(to, "[{}, … {len} floats]", self[0]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_for_a_vector_of_about_its_size() {
        let free = Free(Mutex::new(Vec::new()));
        let values = vec![7.0; 1000];
        let place = values.as_ptr();
        free.give(values);
        assert_eq!((free.take(1001), free.take(499)), (None, None));
        let again = free.take(500).unwrap();
        assert_eq!(again.as_ptr(), place);
        (0..=KEPT).for_each(|number| free.give(vec![number as f32; 10]));
        assert_eq!((free.take(10).unwrap()[0], free.0.lock().unwrap().len()), (1.0, KEPT - 1));
    }

    #[test]
    fn zeros_are_zeros_also_in_used_memory() {
        let mut vector = Vector::any(LONG);
        vector.fill(7.0);
        drop(vector);
        assert!(Vector::zeros(LONG).iter().all(|value| *value == 0.0));
    }
}
