//! Which other nodes serve a user: this node's copy of the bucket `presence`.
//!
//! What is written here may be old: routing asks the node. Sharded like the registry; nothing here waits. One writer, the
//! task that follows the buckets.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use async_nats::Client;
use async_nats::connection::State;
use parking_lot::RwLock;

use crate::id::{NodeId, UserId};

/// Power of two well above the number of cores.
const SHARDS: usize = 64;

/// A node that serves a user, and how many sessions the user has there.
type At = (NodeId, u8);

type Shard = RwLock<HashMap<UserId, Vec<At>>>;

/// Users and the other nodes that serve them.
#[derive(Debug)]
pub struct Presence {
    shards: Vec<Shard>,
    hasher: RandomState,
    /// Other nodes that serve devices: with a lease, or without one for less than their grace.
    edges: RwLock<Vec<NodeId>>,
    /// Nodes with a lease.
    live: RwLock<HashSet<NodeId>>,
    /// Other nodes with a lease, or without one for less than their grace.
    others: AtomicUsize,
    client: OnceLock<Client>,
    /// The connection, counted from 1, on which the buckets were read that are known here; 0 while they are read.
    read_on: AtomicU64,
    /// Unix milliseconds up to which every entry that was written is known here.
    as_of_ms: Arc<AtomicU64>,
}

impl Default for Presence {
    fn default() -> Self {
        Self::hashed_by(RandomState::new())
    }
}

impl Presence {
    fn hashed_by(hasher: RandomState) -> Self {
        Self {
            shards: std::iter::repeat_with(RwLock::default).take(SHARDS).collect(),
            hasher,
            edges: RwLock::default(),
            live: RwLock::default(),
            others: AtomicUsize::new(0),
            client: OnceLock::new(),
            read_on: AtomicU64::new(0),
            as_of_ms: Arc::default(),
        }
    }

    /// Knows nobody yet, and goes by the connection of `client`.
    pub(super) fn of(client: Client) -> Self {
        Self { client: client.into(), ..Self::default() }
    }

    /// The other nodes that serve `user`. Allocates only where there are some.
    pub fn nodes(&self, user: &UserId) -> Vec<NodeId> {
        let shard = self.shard(user).read();
        shard.get(user).map_or_else(Vec::new, |nodes| nodes.iter().map(|(node, _)| node.clone()).collect())
    }

    /// How many sessions `user` has on other nodes.
    pub fn sessions(&self, user: &UserId) -> usize {
        let shard = self.shard(user).read();
        shard.get(user).into_iter().flatten().map(|(_, sessions)| usize::from(*sessions)).sum()
    }

    /// Other nodes that serve devices: with a lease, or without one for less than their grace.
    pub fn edges(&self) -> Vec<NodeId> {
        self.edges.read().clone()
    }

    /// True when `node` has a lease, as far as this node knows.
    pub(super) fn is_live(&self, node: &NodeId) -> bool {
        self.live.read().contains(node)
    }

    /// True when there is no other node that could push to anybody.
    pub(super) fn is_alone(&self) -> bool {
        self.is_current() && self.others.load(Ordering::Relaxed) == 0
    }

    /// False while NATS is known to be away.
    pub(super) fn is_connected(&self) -> bool {
        self.client.get().is_some_and(|client| client.connection_state() == State::Connected)
    }

    /// False from a gap in the connection to NATS until the buckets have been read again: who came or left meanwhile is
    /// not known here.
    pub fn is_current(&self) -> bool {
        let read_on = self.read_on.load(Ordering::Acquire);
        let connects = |client: &Client| client.statistics().connects.load(Ordering::Relaxed);
        self.is_connected() && self.client.get().map(connects) == Some(read_on)
    }

    /// Unix milliseconds up to which every entry that was written is known here, to be moved on by who follows the bucket.
    pub(super) fn as_of_ms(&self) -> Arc<AtomicU64> {
        self.as_of_ms.clone()
    }

    /// Unix milliseconds up to which it is known who has a session where: a second ago, as a rule.
    pub fn known_as_of_ms(&self) -> u64 {
        self.as_of_ms.load(Ordering::Acquire)
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

    /// An empty one, to be filled and given to [`Presence::replace`].
    pub(super) fn fresh(&self) -> Self {
        Self::hashed_by(self.hasher.clone())
    }

    /// Takes the users of `fresh` in place of those that are known.
    pub(super) fn replace(&self, fresh: Self) {
        for (shard, fresh) in self.shards.iter().zip(fresh.shards) {
            *shard.write() = fresh.into_inner();
        }
    }

    /// Nobody has a session at `node` any more.
    pub(super) fn drop_node(&self, node: &NodeId) {
        for shard in &self.shards {
            shard.write().retain(|_, nodes| {
                nodes.retain(|(known, _)| known != node);
                !nodes.is_empty()
            });
        }
    }

    pub(super) fn set_nodes(&self, edges: Vec<NodeId>, live: HashSet<NodeId>, others: usize) {
        *self.edges.write() = edges;
        *self.live.write() = live;
        self.others.store(others, Ordering::Relaxed);
    }

    /// What is known was read on this connection; 0 when it may be old.
    pub(super) fn set_read_on(&self, connects: u64) {
        self.read_on.store(connects, Ordering::Release);
    }

    fn shard(&self, user: &UserId) -> &Shard {
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
        assert_eq!(presence.sessions(&user), 5);
        presence.set(&user, &a, 0);
        presence.set(&user, &b, 0);
        assert!(presence.nodes(&user).is_empty());
        assert!(presence.shards.iter().all(|shard| shard.read().is_empty()));
    }

    #[test]
    fn a_node_is_dropped_with_all_its_users_and_a_new_reading_takes_the_place_of_the_old() {
        let users: Vec<_> = (0..100).map(|n| UserId::new(&format!("u{n}")).unwrap()).collect();
        let (a, b) = (NodeId::of("a", 1), NodeId::of("b", 1));
        let presence = Presence::default();
        for user in &users {
            presence.set(user, &a, 1);
        }
        presence.set(&users[0], &b, 1);
        presence.drop_node(&a);
        assert_eq!(presence.nodes(&users[0]), std::slice::from_ref(&b));
        assert_eq!(presence.shards.iter().map(|shard| shard.read().len()).sum::<usize>(), 1);

        let fresh = presence.fresh();
        for user in &users[1..] {
            fresh.set(user, &b, 2);
        }
        presence.replace(fresh);
        assert!(presence.nodes(&users[0]).is_empty());
        assert!(users[1..].iter().all(|user| presence.nodes(user) == [b.clone()]));
    }
}
