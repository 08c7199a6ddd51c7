//! Follows the buckets `nodes` and `presence`: what it sees of others goes into [`super::Presence`], what it sees of its
//! own is compared with the registry.
//!
//! One task. It reads both buckets, then every write; after an error, after a reconnect, and when a bucket is another one,
//! it starts over: nobody knows what was missed. Meanwhile the old map stays in use.

use std::collections::{BTreeMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use metrics::{counter, gauge};
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::entry::{self, Lease, Told};
use super::nodes::Nodes;
use super::presence::Presence;
use super::{Node, conflicts};
use crate::id::{NodeId, UserId};
use crate::nats::watch::{Change, Write};
use crate::nats::{NODES, PRESENCE, Watch, WatchError};

/// Wait before the buckets are followed again after an error.
const RETRY: Duration = Duration::from_secs(1);

/// How often the task looks whether the connection is another one, and whose grace is over.
const LOOK: Duration = Duration::from_millis(500);

/// Time after an entry was stored at which every node knows its sessions: followers lag, and clocks differ.
const KNOWN_AFTER_MS: u64 = 5_000;

/// Both buckets, read and followed.
pub(super) struct Watches {
    nodes: Watch,
    presence: Watch,
}

/// What one reading of the bucket `presence` gathers.
struct Reading {
    map: Presence,
    /// Users with an entry of this node.
    own: HashSet<UserId>,
}

pub(super) struct Follower {
    node: Arc<Node>,
    nodes: Nodes,
    /// When the bucket `presence` was made, and its highest sequence that was seen.
    born: Option<(OffsetDateTime, u64)>,
    /// Unix milliseconds, by JetStream's clock, at which the others last dropped what they knew of this node.
    dropped_ms: u64,
    /// Nodes whose entries are being removed from the bucket; each gives its node back when that failed.
    cleaning: JoinSet<Option<NodeId>>,
}

impl Follower {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { node, nodes: Nodes::default(), born: None, dropped_ms: 0, cleaning: JoinSet::new() }
    }

    pub(super) async fn run(mut self, mut watches: Watches) {
        loop {
            if let Err(error) = self.follow(&mut watches).await {
                self.node.presence.set_read_on(0);
                counter!("fanfare_cluster_follow_errors_total").increment(1);
                tracing::warn!(%error, "following the other nodes failed and is tried again");
                tokio::time::sleep(RETRY).await;
            }
            watches = loop {
                match self.read().await {
                    Ok(watches) => break watches,
                    Err(error) => {
                        counter!("fanfare_cluster_follow_errors_total").increment(1);
                        tracing::error!(%error, "this node does not see the others until it can read the buckets");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            };
        }
    }

    /// Reads both buckets.
    pub(super) async fn read(&mut self) -> Result<Watches, WatchError> {
        self.node.presence.set_read_on(0);
        let mut nodes = Watch::open(&self.node.context, NODES).await?;
        let mut live = BTreeMap::new();
        while let Some(write) = nodes.read().await? {
            if let (Ok(node), Change::Put(body)) = (NodeId::new(&write.key), &write.change) {
                live.insert(node, lease(&write.key, body));
            }
        }
        self.nodes.replace(live, Instant::now());
        self.live_changed();
        let mut presence = Watch::open(&self.node.context, PRESENCE).await?;
        self.check_birth(&presence);
        let mut reading = Reading { map: self.node.presence.fresh(), own: HashSet::new() };
        while let Some(write) = presence.read().await? {
            self.entry(&write, Some(&mut reading));
        }
        self.node.presence.replace(reading.map);
        self.node.registry.each(|session| {
            if !reading.own.contains(&session.user) {
                session.known.forget();
                self.node.announcements.doubt(&session.user);
            }
        });
        counter!("fanfare_cluster_read_total").increment(1);
        // The older of both connections: after a reconnect in between, it is read again.
        self.node.presence.set_read_on(nodes.connects());
        Ok(Watches { nodes, presence })
    }

    /// Applies writes until there may be a gap: an error, another connection, another bucket, or writes that do not come.
    async fn follow(&mut self, watches: &mut Watches) -> Result<(), WatchError> {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let as_of_ms = self.node.presence.as_of_ms();
        let mut nodes_lost = pin!(watches.nodes.lost(Arc::default()));
        let mut presence_lost = pin!(watches.presence.lost(as_of_ms));
        loop {
            tokio::select! {
                write = watches.nodes.next() => if self.lease(&write?) {
                    return Ok(());
                },
                write = watches.presence.next() => self.entry(&write?, None),
                Some(cleaned) = self.cleaning.join_next() => if let Ok(Some(node)) = cleaned {
                    self.nodes.not_cleaned(node, Instant::now());
                },
                _ = look.tick() => {
                    if !(watches.nodes.is_connected() && watches.presence.is_connected()) {
                        return Ok(());
                    }
                    let own = self.node.lives.current();
                    for node in self.nodes.over(&own, Instant::now(), self.node.times.grace) {
                        tracing::warn!(%node, "a node is gone; its sessions are forgotten");
                        self.forget(node);
                        self.live_changed();
                    }
                }
                error = &mut nodes_lost => return Err(error),
                error = &mut presence_lost => return Err(error),
            }
        }
    }

    /// Applies a write of the bucket `nodes`. True when everything must be read again.
    fn lease(&mut self, write: &Write) -> bool {
        let Ok(node) = NodeId::new(&write.key) else { return false };
        let own = node == self.node.lives.current();
        let mut again = false;
        match &write.change {
            Change::Put(body) => again = self.nodes.lives(node, lease(&write.key, body)),
            Change::Expired => self.nodes.lost(&node, Instant::now()),
            // Somebody else did it, and the others have dropped what they knew of this node.
            Change::Deleted if own => {
                self.dropped_ms = write.stored_ms;
                self.node.dropped.store(true, Ordering::Release);
            }
            Change::Deleted => {
                self.nodes.left(&node);
                self.forget(node);
            }
        }
        if own && !matches!(write.change, Change::Put(_)) {
            self.node.lease_gone.notify_one();
        }
        self.live_changed();
        again
    }

    /// Applies a write of the bucket `presence`.
    fn entry(&mut self, write: &Write, reading: Option<&mut Reading>) {
        if let Some((_, highest)) = &mut self.born {
            *highest = write.sequence.max(*highest);
        }
        let Some((user, node)) = entry::parse(&write.key) else { return };
        let told = match &write.change {
            Change::Put(body) => told(&write.key, body),
            Change::Deleted | Change::Expired => Some(Vec::new()),
        };
        let is_there = matches!(write.change, Change::Put(_));
        let own = self.node.lives.current();
        if node == own {
            if let Some(reading) = reading.filter(|_| is_there) {
                reading.own.insert(user.clone());
            }
            self.compare(&user, told.as_deref().unwrap_or_default(), write.stored_ms);
            return;
        }
        if is_there && self.nodes.has_entries(&node, Instant::now()) {
            self.live_changed();
        }
        if self.node.lives.includes(&node) {
            return;
        }
        // Of what cannot be read it is known that it is there; its node can be asked.
        let count = told.as_ref().map_or(1, |told| u8::try_from(told.len()).unwrap_or(u8::MAX));
        self.node.presence.set(&user, &node, count);
        if let Some(reading) = reading {
            reading.map.set(&user, &node, count);
        }
        let here = self.node.registry.of_user(&user);
        let own: Vec<_> = here.iter().map(|session| Told::of(session)).collect();
        let (elsewhere, most) = (self.node.presence.sessions(&user), self.node.sessions_per_user_max);
        if is_there && conflicts::may_end(&own, &told.unwrap_or_default(), elsewhere, most) {
            self.node.conflicts.check(&user, write.sequence);
        }
    }

    /// Notes which sessions the others know by an entry of this node, which was stored at `stored_ms`. One that does not
    /// say what the registry says is made due.
    fn compare(&self, user: &UserId, told: &[Told], stored_ms: u64) {
        let here = self.node.registry.of_user(user);
        let mut same = 0;
        for session in &here {
            if told.iter().any(|told| session.device == told.device && session.started_ms == told.start) {
                same += 1;
                if stored_ms > self.dropped_ms {
                    session.known.found_from(stored_ms + KNOWN_AFTER_MS);
                }
            } else {
                session.known.forget();
            }
        }
        if (same, same) != (here.len(), told.len()) {
            self.node.announcements.doubt(user);
        }
    }

    /// Forgets the sessions of a node that is gone; the first node also removes its entries from the bucket.
    fn forget(&mut self, gone: NodeId) {
        self.node.lives.forgotten(&gone);
        self.node.presence.drop_node(&gone);
        if self.nodes.first() == Some(&self.node.lives.current()) {
            let node = self.node.clone();
            self.cleaning.spawn(async move { node.clean(gone).await });
        }
    }

    /// A bucket that began anew knows nothing of any session.
    fn check_birth(&mut self, presence: &Watch) {
        let (created, last) = (presence.created(), presence.last_sequence());
        if self.born.is_some_and(|(born, highest)| created != born || last < highest) {
            tracing::warn!("bucket {PRESENCE} is another one: what is missing there is announced anew");
            self.node.registry.each(|session| session.known.forget());
        }
        self.born = Some((created, last));
    }

    fn live_changed(&self) {
        gauge!("fanfare_cluster_nodes").set(self.nodes.live().len() as f64);
        let own = |node: &NodeId| self.node.lives.includes(node);
        let live = self.nodes.live().cloned().collect();
        self.node.presence.set_nodes(self.nodes.edges(own), live, self.nodes.others(own));
    }
}

impl Node {
    /// Removes the entries of a node without a lease from the bucket. Gives the node back when that failed.
    async fn clean(&self, gone: NodeId) -> Option<NodeId> {
        let removed = async {
            // From the leaders, in this order: what was followed may be old, and a node that is back must keep its entries.
            // What it writes after its lease comes after these.
            let last =
                self.context.get_stream(format!("KV_{PRESENCE}")).await?.cached_info().state.last_sequence;
            if !self.has_lease(&gone).await? {
                self.remove_entries(&gone, Some(last)).await?;
            }
            Ok::<_, async_nats::Error>(())
        };
        let error = removed.await.err()?;
        counter!("fanfare_cluster_follow_errors_total").increment(1);
        tracing::warn!(%error, node = %gone, "the entries of a node that is gone stay for now; tried again");
        Some(gone)
    }
}

/// A lease that another version wrote in another way is one all the same.
fn lease(key: &str, body: &[u8]) -> Lease {
    serde_json::from_slice(body).unwrap_or_else(|error| {
        unread(NODES, key, &error);
        Lease::default()
    })
}

fn told(key: &str, body: &[u8]) -> Option<Vec<Told>> {
    serde_json::from_slice(body).map_err(|error| unread(PRESENCE, key, &error)).ok()
}

fn unread(bucket: &str, key: &str, error: &serde_json::Error) {
    counter!("fanfare_cluster_follow_errors_total").increment(1);
    tracing::error!(%bucket, %key, %error, "a key cannot be read");
}
