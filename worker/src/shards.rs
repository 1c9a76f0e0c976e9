//! The fixed tree in which the gradients of a step are summed.
//!
//! A step has V shards. Leaf `i` of the tree is shard `i`; a node covers `size` shards from `start`, `size` a
//! power of two and `start` a multiple of it; leftovers on the right are folded from right to left. Floating-point
//! sums depend on their order, and this order depends on V alone: whoever computes the leaves, and however many
//! they are, the sum has the same bits.

/// The sum of one node of the tree.
#[derive(Debug, PartialEq)]
pub struct Partial {
    /// First shard that it covers.
    pub start: usize,
    /// Shards that it covers.
    pub size: usize,
    /// Their sum.
    pub values: Vec<f32>,
}

/// Sums of neighbouring shards, as far as they can be added up: at most `2 log2 V` vectors.
pub struct ShardSum {
    len: usize,
    partials: Vec<Partial>,
    spare: Vec<Vec<f32>>,
}

impl ShardSum {
    /// Of vectors of `len` elements.
    pub fn new(len: usize) -> ShardSum {
        ShardSum { len, partials: Vec::new(), spare: Vec::new() }
    }

    /// A vector of zeros, of memory that an earlier sum has freed if possible.
    pub fn zeros(&mut self) -> Vec<f32> {
        let mut values = self.spare.pop().unwrap_or_default();
        values.clear();
        values.resize(self.len, 0.0);
        values
    }

    /// Adds the node after the last one.
    pub fn push(&mut self, mut right: Partial) {
        assert_eq!(right.values.len(), self.len);
        while let Some(left) = self.partials.pop_if(|left| {
            let siblings = left.size == right.size && left.start.is_multiple_of(2 * left.size);
            siblings && left.start + left.size == right.start
        }) {
            right = self.merge(left, right);
        }
        self.partials.push(right);
    }

    fn merge(&mut self, mut left: Partial, right: Partial) -> Partial {
        for (left, right) in left.values.iter_mut().zip(&right.values) {
            *left += right;
        }
        self.spare.push(right.values);
        Partial { size: left.size + right.size, ..left }
    }

    /// The nodes that could not be added up, from left to right; leaves the sum empty.
    pub fn take(&mut self) -> Vec<Partial> {
        std::mem::take(&mut self.partials)
    }

    /// The sum of all `shards` shards; leaves the sum empty. All of them must have been pushed.
    pub fn total(&mut self, shards: usize) -> Vec<f32> {
        let mut right = self.partials.pop().expect("a step has shards");
        while let Some(left) = self.partials.pop() {
            assert_eq!(left.start + left.size, right.start, "a shard is missing");
            right = self.merge(left, right);
        }
        assert_eq!((right.start, right.size), (0, shards), "a shard is missing");
        right.values
    }

    /// Takes back the memory of a vector.
    pub fn recycle(&mut self, values: Vec<f32>) {
        self.spare.push(values);
    }
}

/// The shards of a rank: neighbours, their numbers as even as possible.
pub fn block(rank: usize, world_size: usize, shards: usize) -> std::ops::Range<usize> {
    shards * rank / world_size..shards * (rank + 1) / world_size
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
    fn any_number_of_ranks_gives_the_bits_of_the_defined_tree() {
        for shards in 1..40 {
            let leaves = Random::new(shards as u64).normals(shards);
            for world_size in 1..=shards {
                let mut whole = ShardSum::new(1);
                for rank in 0..world_size {
                    let mut own = ShardSum::new(1);
                    for shard in block(rank, world_size, shards) {
                        own.push(Partial { start: shard, size: 1, values: vec![leaves[shard]] });
                    }
                    own.take().into_iter().for_each(|partial| whole.push(partial));
                }
                assert_eq!(whole.total(shards), [defined(&leaves)], "{shards} shards on {world_size} ranks");
            }
        }
    }
}
