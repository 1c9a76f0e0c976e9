//! Nodes by name: found in the same short time however many there are.

use crate::types::*;

/// An open table of hashes. Nodes never leave it, and nothing goes through it in its order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Directory {
    /// A power of two of them, at least half of them empty: the upper half of the hash, and the node.
    slots: Vec<Option<(u32, NodeId)>>,
    count: usize,
}

/// FNV-1a, mixed: names that differ in a digit are far from each other.
///
/// Source: Fowler, Noll, Vo; the last step of MurmurHash3 by Appleby.
fn hash_of(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

impl Directory {
    /// The node of that name.
    ///
    /// * `is_it`: whether a node has the name.
    pub fn find(&self, name: &str, is_it: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let hash = hash_of(name);
        let alike = self.from(hash).map_while(|at| self.slots[at]);
        alike.filter(|(upper, _)| *upper == (hash >> 32) as u32).map(|(_, id)| id).find(|id| is_it(*id))
    }

    /// Enters a node.
    ///
    /// * `name_of`: of every node that was entered, and this one.
    pub fn insert<'a>(&mut self, id: NodeId, name_of: impl Fn(NodeId) -> &'a str) {
        self.count += 1;
        if self.slots.len() < 2 * self.count {
            let before = std::mem::take(&mut self.slots);
            self.slots = vec![None; (2 * before.len()).max(16)];
            before.into_iter().flatten().for_each(|(_, id)| self.enter(id, name_of(id)));
        }
        self.enter(id, name_of(id));
    }

    fn enter(&mut self, id: NodeId, name: &str) {
        let hash = hash_of(name);
        let at = self.from(hash).find(|at| self.slots[*at].is_none()).expect("half of the slots are empty");
        self.slots[at] = Some(((hash >> 32) as u32, id));
    }

    /// All slots, from that of a hash on.
    fn from(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let len = self.slots.len();
        (0..len).map(move |offset| (hash as usize).wrapping_add(offset) & (len - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_is_found_by_its_name_and_no_other() {
        let names: Vec<String> = (0..5_000).map(|at| format!("node-{at}")).collect();
        let mut directory = Directory::default();
        assert_eq!(directory.find("node-0", |_| true), None);
        for id in 0..names.len() {
            directory.insert(NodeId(id as u32), |id| &names[id.0 as usize]);
        }
        let find = |name: &str| directory.find(name, |id| names[id.0 as usize] == name);
        for (id, name) in (0..).zip(&names) {
            assert_eq!(find(name), Some(NodeId(id)));
            assert_eq!(find(&format!("{name}-")), None);
        }
        let longest = directory.slots.split(Option::is_none).map(<[_]>::len).max();
        assert!(longest < Some(64), "names are spread: {longest:?}");
    }

    /// Two names of one hash are told apart by themselves.
    #[test]
    fn what_is_alike_by_hash_is_asked() {
        let mut directory = Directory::default();
        (0..3).for_each(|id| directory.insert(NodeId(id), |_| "same"));
        assert_eq!(directory.find("same", |id| id == NodeId(2)), Some(NodeId(2)));
        assert_eq!(directory.find("same", |_| false), None);
    }
}
