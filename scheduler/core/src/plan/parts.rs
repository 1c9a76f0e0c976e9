//! What a round takes out of the cluster, and gives back.

use std::collections::BTreeMap;

use super::fit::{Free, Taken};
use super::preempt::Promises;
use super::reserve::Kept;
use super::room::Room;
use crate::cluster::Cluster;

/// What a round takes out of the cluster.
pub(crate) struct Parts {
    pub room: Box<Room>,
    pub kept: Box<Kept>,
    pub promises: Box<Promises>,
}

impl<'a> Free<'a> {
    /// Healthy resources of live nodes that no job holds. What is promised to whom is yet to be thought over. Copies what the
    /// cluster knows of them: `O(nodes)`.
    pub fn of(cluster: &'a Cluster) -> Free<'a> {
        let mut free = Free::as_lived(cluster);
        for node in free.promises.forget() {
            free.room.refresh(cluster.nodes().get(node), cluster.nodes().held(node));
        }
        free.scarcity = free.room.scarcity();
        Free { taken: Taken::new(), ..free }
    }

    /// The same, without what is promised to jobs to which others give way.
    pub(super) fn as_lived(cluster: &'a Cluster) -> Free<'a> {
        Free::in_room(cluster, cluster.parts())
    }

    /// The same, of what is up to date.
    pub(crate) fn in_room(cluster: &'a Cluster, parts: Parts) -> Free<'a> {
        let Parts { room, kept, promises } = parts;
        let (scarcity, taken) = (room.scarcity(), promises.taken());
        Free { cluster, room, kept, promises, scarcity, taken, left: BTreeMap::new(), at: cluster.now() }
    }

    /// Gives it back, without what was taken from the room.
    pub(crate) fn into_parts(self) -> Parts {
        Parts { room: self.room, kept: self.kept, promises: self.promises }
    }
}
