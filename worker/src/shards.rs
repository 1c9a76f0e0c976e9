//! The fixed tree in which the gradients of a step are summed.
//!
//! A step has V shards. Leaf `i` of the tree is shard `i`; a node covers `size` shards from `start`, `size` a
//! power of two and `start` a multiple of it; leftovers on the right are folded from right to left. Floating-point
//! sums depend on their order, and this order depends on V alone: whoever computes the leaves, however many they are
//! and whichever comes first, the sum has the same bits.

use crate::values::Values;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The sum of one node of the tree.
#[derive(Clone, Debug, PartialEq)]
pub struct Partial {
    /// First shard that it covers.
    pub start: usize,
    /// Shards that it covers.
    pub size: usize,
    /// Their sum.
    pub values: Arc<Values>,
}

impl Partial {
    /// Whether it is a node of the tree of `shards` shards, or of a larger one.
    pub fn is_node(&self, shards: usize) -> bool {
        let aligned = self.size.is_power_of_two() && self.start.is_multiple_of(self.size);
        aligned && self.start.checked_add(self.size).is_some_and(|end| end <= shards)
    }
}

/// Sums of shards, as far as they can be added up: of a block of neighbours at most `2 log2 V` vectors.
#[derive(Default)]
pub struct ShardSum {
    partials: BTreeMap<usize, Partial>,
}

impl ShardSum {
    /// Adds a node, none of whose shards is in the sum.
    pub fn insert(&mut self, mut node: Partial) {
        loop {
            let sibling = node.start ^ node.size;
            match self.partials.get(&sibling) {
                Some(other) if other.size == node.size => (),
                _ => break,
            }
            let other = self.partials.remove(&sibling).expect("just seen");
            let (left, right) = if node.start < sibling { (node, other) } else { (other, node) };
            node = merge(left, right);
        }
        self.partials.insert(node.start, node);
    }

    /// The nodes that could not be added up, from left to right; leaves the sum empty.
    pub fn take(&mut self) -> Vec<Partial> {
        std::mem::take(&mut self.partials).into_values().collect()
    }

    /// The sum of all `shards` shards; leaves the sum empty. All of them must have been added.
    pub fn total(&mut self, shards: usize) -> Arc<Values> {
        let (_, mut right) = self.partials.pop_last().expect("a step has shards");
        while let Some((_, left)) = self.partials.pop_last() {
            assert_eq!(left.start + left.size, right.start, "a shard is missing");
            right = merge(left, right);
        }
        assert_eq!((right.start, right.size), (0, shards), "a shard is missing");
        right.values
    }

    /// Floats of the nodes that it holds.
    pub fn floats(&self) -> usize {
        self.partials.values().map(|node| node.values.len()).sum()
    }

    /// Forgets what was added.
    pub fn clear(&mut self) {
        self.partials.clear();
    }
}

fn merge(left: Partial, right: Partial) -> Partial {
    let values = Values::sum(left.values, right.values);
    Partial { start: left.start, size: left.size + right.size, values }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// The tree as it is defined, top down.
    fn defined(leaves: &[f32]) -> f32 {
        match leaves.len() {
            1 => leaves[0],
            n => {
                let (left, right) = leaves.split_at(n.next_power_of_two() / 2);
                defined(left) + defined(right)
            }
        }
    }

    #[test]
    fn any_number_of_ranks_in_any_order_gives_the_bits_of_the_defined_tree() {
        for shards in 1..40 {
            let mut random = Random::new(shards as u64);
            let leaves = random.normals(shards);
            for ranks in 1..=shards {
                let mut parts = Vec::new();
                for rank in 0..ranks {
                    let mut own = ShardSum::default();
                    let block = shards * rank / ranks..shards * (rank + 1) / ranks;
                    for (start, leaf) in leaves.iter().enumerate().skip(block.start).take(block.len()) {
                        own.insert(Partial { start, size: 1, values: Arc::new(vec![*leaf].into()) });
                    }
                    parts.extend(own.take());
                }
                let mut whole = ShardSum::default();
                while !parts.is_empty() {
                    let next = random.bits() as usize % parts.len();
                    assert!(parts[next].is_node(shards));
                    whole.insert(parts.swap_remove(next));
                }
                let total = whole.total(shards);
                assert_eq!(total.host().unwrap(), [defined(&leaves)], "{shards} shards on {ranks} ranks");
            }
        }
    }
}
