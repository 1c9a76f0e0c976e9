//! Maps and sets of a handful of entries.

/// A map of few keys, ascending, in one piece of memory; with `()` a set. What changes it is `O(entries)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sorted<K, V = ()>(Vec<(K, V)>);

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Sorted<K, V> {
        Sorted(Vec::new())
    }
}

impl<K, V> Sorted<K, V> {
    /// Without entries.
    pub const fn new() -> Sorted<K, V> {
        Sorted(Vec::new())
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for Sorted<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Sorted<K, V> {
        let mut sorted = Sorted::new();
        entries.into_iter().for_each(|(key, value)| _ = sorted.insert(key, value));
        sorted
    }
}

impl<K: Ord, V> Sorted<K, V> {
    fn place(&self, key: &K) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(key))
    }

    /// The value of the key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.place(key).ok().map(|at| &self.0[at].1)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.place(key).ok().map(|at| &mut self.0[at].1)
    }

    /// Enters a value; returns the earlier one of the key.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.place(&key) {
            Ok(at) => Some(std::mem::replace(&mut self.0[at].1, value)),
            Err(at) => {
                self.0.insert(at, (key, value));
                None
            }
        }
    }

    /// Removes a key; returns its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.place(key).ok().map(|at| self.0.remove(at).1)
    }

    /// Whether there is such a key.
    pub fn contains_key(&self, key: &K) -> bool {
        self.place(key).is_ok()
    }

    /// The value of the key, to be changed; entered if there is none.
    pub fn get_or_default(&mut self, key: &K) -> &mut V
    where
        K: Clone,
        V: Default,
    {
        let at = self.place(key).unwrap_or_else(|at| {
            self.0.insert(at, (key.clone(), V::default()));
            at
        });
        &mut self.0[at].1
    }

    /// All values, by their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + Clone {
        self.0.iter().map(|(_, value)| value)
    }

    /// All keys with their values, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &(K, V)> + ExactSizeIterator {
        self.0.iter()
    }

    /// All keys, ascending.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + ExactSizeIterator {
        self.0.iter().map(|(key, _)| key)
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn it_holds_what_a_map_would() {
        let (mut sorted, mut map) = (Sorted::default(), BTreeMap::new());
        let mut random = 1u64;
        let mut below = |n: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % n
        };
        for round in 0..5_000 {
            let key = below(20);
            match below(3) {
                0 => assert_eq!(sorted.remove(&key), map.remove(&key)),
                _ => assert_eq!(sorted.insert(key, round), map.insert(key, round)),
            }
            assert_eq!(sorted.get(&key), map.get(&key));
            assert_eq!(sorted.get_mut(&key), map.get_mut(&key));
            assert_eq!(sorted.contains_key(&key), map.contains_key(&key));
            let other = below(20);
            assert_eq!(sorted.get_or_default(&other), map.entry(other).or_default());
            assert!(sorted.values().eq(map.values()));
            assert_eq!(sorted.iter().cloned().collect::<Sorted<u64, u64>>(), sorted);
            assert!(sorted.iter().map(|(key, value)| (key, value)).eq(&map) && sorted.keys().eq(map.keys()));
            assert_eq!((sorted.len(), sorted.is_empty()), (map.len(), map.is_empty()));
        }
    }
}
