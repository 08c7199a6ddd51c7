//! Writes who has sessions here into the bucket `presence`. One task; the registry is the truth.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::message::PublishMessage;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use metrics::{counter, gauge};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Node;
use super::entry::{self, Told};
use crate::id::{NodeId, UserId};
use crate::nats::publish::{self, WriteError, write_sequence};
use crate::nats::{PRESENCE, watch};
use crate::session::Session;

/// Writes that wait for their acknowledgement at once.
const IN_FLIGHT: usize = 256;

/// Wait before a write is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often those whose time has come are looked for, and how many of them are taken: 5,000 a second.
const TURN: Duration = Duration::from_millis(100);
const TURN_USERS: usize = 500;

/// Life of the mark that an entry leaves when its user has left: whoever follows has seen it by then, or reads anew.
const MARK: Duration = Duration::from_mins(1);

pub(super) async fn run(node: Arc<Node>) {
    let mut turn = interval(TURN);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut writes = FuturesUnordered::new();
    loop {
        // While NATS is away a write would only wait in the client, and come late.
        let connected = node.client.connection_state() == State::Connected;
        while connected
            && writes.len() < IN_FLIGHT
            && let Some(user) = node.announcements.begin()
        {
            writes.push(write(&node, user));
        }
        tokio::select! {
            Some((user, result)) = writes.next() => node.written(&user, result),
            () = node.announcements.work(), if connected && writes.len() < IN_FLIGHT => {}
            _ = turn.tick() => {
                node.announcements.turn(TURN_USERS);
                gauge!("fanfare_cluster_unannounced").set(node.announcements.pending() as f64);
            }
        }
    }
}

/// The sequence of a write, and the sessions it told of.
type Written = Result<(u64, Vec<Arc<Session>>), WriteError>;

async fn write(node: &Node, user: UserId) -> (UserId, Written) {
    let sessions = node.registry.of_user(&user);
    let message = match sessions.as_slice() {
        [] => watch::deletion(MARK),
        sessions => {
            let told: Vec<_> = sessions.iter().map(|session| Told::of(session)).collect();
            PublishMessage::build().payload(serde_json::to_vec(&told).expect("texts and numbers").into())
        }
    };
    let kind = if sessions.is_empty() { "delete" } else { "put" };
    let subject = |life: &NodeId| format!("$KV.{PRESENCE}.{}", entry::key(&user, life));
    let result = async {
        let current = subject(&node.lives.current());
        let sequence = write_sequence(&node.context, PRESENCE, current, message).await?;
        counter!("fanfare_cluster_announced_total", "kind" => kind).increment(1);
        // What was told in an earlier life is over, also for who has left since.
        for life in node.lives.left() {
            publish::write(&node.context, PRESENCE, subject(&life), watch::deletion(MARK)).await?;
        }
        Ok((sequence, sessions))
    };
    let result = result.await;
    (user, result)
}

impl Node {
    fn written(&self, user: &UserId, result: Written) {
        match result {
            Ok((sequence, sessions)) => {
                if self.refused.swap(false, Ordering::Relaxed) {
                    tracing::info!("entries of bucket {PRESENCE} are taken again");
                }
                let here = !sessions.is_empty();
                if self.presence.is_alone() {
                    for session in sessions {
                        // This node's own pushes found it from the start.
                        session.known.found_from(session.started_ms);
                    }
                }
                self.announcements.done(user);
                // What was seen of others before this was stored could not be compared with it.
                if here && self.presence.sessions(user) > 0 {
                    self.conflicts.check(user, sequence);
                }
            }
            Err(error) => {
                counter!("fanfare_cluster_announce_errors_total").increment(1);
                if !self.refused.swap(true, Ordering::Relaxed) {
                    tracing::error!(%error, "entries of bucket {PRESENCE} are refused; tried again until they are taken");
                }
                self.announcements.failed(user, Instant::now() + RETRY);
            }
        }
    }
}
