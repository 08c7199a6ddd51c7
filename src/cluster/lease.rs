//! The lease of this node in the bucket `nodes`, and its lives.
//!
//! A lease is for cleaning up after a node that is gone. One that could not renew it for so long that others may be about
//! to remove its entries begins another life, under which it announces everybody anew: what is removed late is then only
//! what belongs to the old one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use metrics::counter;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Node;
use super::entry::Lease;
use crate::clock::Now;
use crate::id::NodeId;
use crate::nats::publish::write;
use crate::nats::{NODES, PRESENCE, WriteError, watch as bucket};

/// Wait before a renewal that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Life of the mark of a lease that was deleted: whoever follows has seen it by then, or reads anew.
const MARK: Duration = Duration::from_mins(1);

/// Lives that are remembered as this node's own. Entries of older ones were removed long ago.
const LIVES: usize = 16;

/// The lives of this node.
#[derive(Debug)]
pub(super) struct Lives {
    current: watch::Sender<NodeId>,
    all: RwLock<VecDeque<NodeId>>,
    /// Earlier ones whose entries others may still go by.
    left: RwLock<Vec<NodeId>>,
}

impl Lives {
    pub(super) fn new(first: NodeId) -> Self {
        Self {
            current: watch::Sender::new(first.clone()),
            all: RwLock::new([first].into()),
            left: RwLock::default(),
        }
    }

    pub(super) fn current(&self) -> NodeId {
        self.current.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<NodeId> {
        self.current.subscribe()
    }

    /// True when `node` is this one, now or in an earlier life.
    pub(super) fn includes(&self, node: &NodeId) -> bool {
        self.all.read().contains(node)
    }

    /// The lives before this one under which entries are to be deleted.
    pub(super) fn left(&self) -> Vec<NodeId> {
        self.left.read().clone()
    }

    /// The others go by the entries of `node` no more.
    pub(super) fn forgotten(&self, node: &NodeId) {
        self.left.write().retain(|left| left != node);
    }

    fn begin(&self, node: NodeId) {
        {
            let mut left = self.left.write();
            left.truncate(LIVES - 1);
            left.insert(0, self.current());
        }
        {
            let mut all = self.all.write();
            all.truncate(LIVES - 1);
            all.push_front(node.clone());
        }
        self.current.send_replace(node);
    }
}

/// True when a node that renewed its lease at `last` must begin another life: by the clock that counted more, since one
/// stands still while the machine sleeps and the other may be set.
fn is_over(last: Now, now: Now, life: Duration) -> bool {
    let wall = Duration::from_millis(now.unix_ms.saturating_sub(last.unix_ms));
    wall.max(now.instant - last.instant) > life
}

/// Renews the lease, for ever. The first one was written at `last`.
pub(super) async fn run(node: Arc<Node>, draining: CancellationToken, mut last: Now) {
    let mut wait = node.times.renew;
    let mut heard_of_draining = false;
    // The current life has no lease yet.
    let mut unleased = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = node.lease_gone.notified() => {}
            // Told at once; when that fails it is left to the tries that follow.
            () = draining.cancelled(), if !heard_of_draining => heard_of_draining = true,
        }
        wait = RETRY;
        if node.client.connection_state() != State::Connected {
            // What waits in the client would come late, perhaps for a life that is over by then.
            continue;
        }
        let now = Now::read();
        if !unleased && is_over(last, now, node.times.life) {
            // First, so that this node knows its own lease when it sees it.
            let another = NodeId::of(&node.name, now.unix_ms);
            counter!("fanfare_cluster_lives_total").increment(1);
            tracing::warn!(node = %another, "NATS was away for long: this node goes on under another id");
            node.lives.begin(another);
            unleased = true;
        }
        match node.renew(&node.lives.current(), draining.is_cancelled()).await {
            Ok(()) => {
                (last, wait) = (now, node.times.renew);
                let dropped = node.dropped.swap(false, Ordering::AcqRel);
                if std::mem::take(&mut unleased) || dropped {
                    node.announce_all();
                }
                node.renewed(now);
            }
            Err(error) => {
                counter!("fanfare_cluster_lease_errors_total").increment(1);
                tracing::error!(%error, "the lease of this node cannot be renewed; tried again");
            }
        }
    }
}

impl Node {
    /// Writes the lease of `life`.
    pub(super) async fn renew(&self, life: &NodeId, draining: bool) -> Result<(), WriteError> {
        let lease = Lease {
            name: self.name.clone(),
            role: self.role,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sessions: self.registry.sessions(),
            sessions_max: self.sessions_max,
            cores: self.cpu.lock().cores(Instant::now()),
            draining,
            started_ms: self.started_ms,
        };
        let body = serde_json::to_vec(&lease).expect("texts and numbers");
        let message = PublishMessage::build().payload(body.into()).ttl(self.times.lease);
        write(&self.context, NODES, format!("$KV.{NODES}.{life}"), message).await
    }

    /// Nobody may know the sessions here any more: announces all users anew, in their turn.
    pub(super) fn announce_all(&self) {
        self.registry.each(|session| {
            session.known.forget();
            self.announcements.again(&session.user);
        });
    }

    /// A lease that was written at `now` is acknowledged.
    pub(super) fn renewed(&self, now: Now) {
        let life_ms = u64::try_from(self.times.life.as_millis()).unwrap_or(u64::MAX);
        self.announcements.held_until(now.unix_ms.saturating_add(life_ms));
    }

    /// Removes the entries of `life` from the bucket, up to the sequence `last`. Nobody who follows it sees that: it is for
    /// nodes that are dropped anyway.
    pub(super) async fn remove_entries(
        &self,
        life: &NodeId,
        last: Option<u64>,
    ) -> Result<(), async_nats::Error> {
        let stream = self.context.get_stream_no_info(format!("KV_{PRESENCE}")).await?;
        let purge = stream.purge().filter(format!("$KV.{PRESENCE}.*.{life}"));
        match last {
            None => purge.await?,
            // Those before the sequence that is given.
            Some(last) => purge.sequence(last + 1).await?,
        };
        Ok(())
    }

    /// True when `life` has a lease now: the leader is asked.
    pub(super) async fn has_lease(&self, life: &NodeId) -> Result<bool, async_nats::Error> {
        let stream = self.context.get_stream_no_info(format!("KV_{NODES}")).await?;
        match stream.get_last_raw_message_by_subject(&format!("$KV.{NODES}.{life}")).await {
            // The mark of one that is gone has no body.
            Ok(lease) => Ok(!lease.payload.is_empty()),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The last words of this node: its entries, then its lease. The others drop the entries when they see the lease go.
    pub(super) async fn leave(&self) -> Result<(), async_nats::Error> {
        let life = self.lives.current();
        self.remove_entries(&life, None).await?;
        write(&self.context, NODES, format!("$KV.{NODES}.{life}"), bucket::deletion(MARK)).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_over_by_the_clock_that_counted_more() {
        let life = Duration::from_secs(50);
        let last = Now::read();
        let after = |monotonic, wall: i64| Now {
            instant: last.instant + Duration::from_secs(monotonic),
            unix_ms: last.unix_ms.saturating_add_signed(wall * 1_000),
        };
        for (monotonic, wall, over) in
            [(50, 50, false), (51, 51, true), (1, 51, true), (51, 0, true), (5, -3_600, false)]
        {
            assert_eq!(is_over(last, after(monotonic, wall), life), over, "{monotonic} s, {wall} s");
        }
    }

    #[test]
    fn earlier_lives_are_known_as_ones_own() {
        let lives = Lives::new(NodeId::of("n", 0));
        for began_ms in 1..40 {
            lives.begin(NodeId::of("n", began_ms));
        }
        assert_eq!(lives.current(), NodeId::of("n", 39));
        assert!(lives.includes(&NodeId::of("n", 38)) && !lives.includes(&NodeId::of("n", 3)));
        assert_eq!(lives.all.read().len(), LIVES);
        assert_eq!((lives.left().len(), &lives.left()[0]), (LIVES, &NodeId::of("n", 38)));
        lives.forgotten(&NodeId::of("n", 38));
        assert_eq!(lives.left()[0], NodeId::of("n", 37));
    }
}
