//! The worker's side: asks other nodes, and gives what they say to whoever waits for it.
//!
//! All answers come to one subscription; one task, [`Asker`]'s, gives them to the requests that wait, and pings nodes that
//! were given up or whose sessions still may ack. What must be acked is waited for by the worker.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, StatusCode, Subscriber};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use metrics::{counter, histogram};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::peer::Peer;
use super::pulse::{BEAT, Pulse};
use super::waiting::{Heard, Open, Requests};
use super::wire::{self, Reply, Unstamped};
use super::{PATIENCE, TRIES, subject};
use crate::catalog::Lane;
use crate::clock::Now;
use crate::cluster::{Entries, Handle, Presence};
use crate::id::{DeviceId, NodeId, UserId};
use crate::pipeline::{Answer, Nodes, Unread};
use crate::protocol::Notification;
use crate::session::{Receipts, Recipient};

/// Time a node has for a broadcast: it paces it, 20,000 users a second.
const BROADCAST_PATIENCE: Duration = Duration::from_secs(30);

/// Beyond an ack's deadline nobody waits for reports.
const REPORTS_MARGIN: Duration = Duration::from_secs(5);

/// How often nodes are pinged, and forgotten requests looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// Before the number of what this node sends to itself.
const ECHO: char = 'e';

/// Other nodes that are remembered; beyond it those are forgotten that have no lease.
const PEERS_MAX: usize = 256;

/// The task that hears the answers. Ends when dropped.
#[derive(Debug)]
pub struct Asker {
    task: JoinSet<()>,
}

impl Asker {
    /// Resolves when the task has ended, which is a bug.
    pub async fn failed(&mut self) {
        self.task.join_next().await;
    }
}

/// Reaches the sessions of other nodes. Shared by all workers.
#[derive(Debug)]
pub struct Relay {
    client: Client,
    me: watch::Receiver<NodeId>,
    presence: Arc<Presence>,
    entries: Entries,
    /// Where answers come to, but for the number of the request.
    inbox: String,
    requests: Requests,
    peers: Mutex<HashMap<NodeId, Arc<Peer>>>,
    pulse: Pulse,
}

/// How a request is sent: until when, and how long each try is waited for.
#[derive(Debug, Clone, Copy)]
struct Tries {
    until: Instant,
    patience: Duration,
}

impl Relay {
    /// Starts to listen for answers.
    pub async fn start(
        client: Client,
        cluster: &Handle,
    ) -> Result<(Arc<Self>, Asker), async_nats::SubscribeError> {
        let inbox = client.new_inbox();
        let answers = client.subscribe(format!("{inbox}.*")).await?;
        let relay = Arc::new(Self {
            client,
            me: cluster.node(),
            presence: cluster.presence(),
            entries: cluster.entries(),
            inbox,
            requests: Requests::default(),
            peers: Mutex::default(),
            pulse: Pulse::new(Instant::now()),
        });
        let mut task = JoinSet::new();
        task.spawn(listen(relay.clone(), answers));
        Ok((relay, Asker { task }))
    }

    async fn ask_about(
        &self,
        name: &NodeId,
        note: &Notification,
        to: &[&Recipient],
        receipts: Option<&Receipts>,
        until: Instant,
    ) -> Vec<Answer> {
        let peer = self.peer(name);
        let all = |answer| vec![answer; to.len()];
        if peer.is_given_up(self.connection()) {
            return all(Answer::Unreached { again: false });
        }
        let reports = receipts.map(|receipts| {
            let users = to.iter().map(|recipient| recipient.user.clone()).collect();
            (receipts, users)
        });
        let request = self.requests.open(name, reports, note.event.ack_timeout() + REPORTS_MARGIN);
        let tries = Tries { until, patience: PATIENCE };
        let body = wire::request((&self.me.borrow(), request.id, tries.all()), note, Some(to));
        if body.len() > self.client.server_info().max_payload {
            return self.in_halves(name, note, to, receipts, until).await;
        }
        let began = Instant::now();
        let asked = async {
            // Of a node that does not keep up no more is asked than it can hold.
            let turn = timeout(PATIENCE.min(tries.left()), peer.turns(note.lane).acquire()).await;
            let _turn = turn.ok()?;
            self.ask(&peer, &subject(name, note.lane), request, &body, tries).await
        };
        match asked.await {
            Some(Reply::Said(said)) if said.len() == to.len() => said.into_iter().map(Answer::from).collect(),
            Some(Reply::Refused(reason)) => {
                tracing::error!(node = %name, reason, "another node refuses what is relayed to it");
                all(Answer::Unreached { again: false })
            }
            Some(other) => {
                tracing::error!(node = %name, answer = ?other, "another node's answer makes no sense");
                all(Answer::Unreached { again: false })
            }
            // What was cut short says nothing about the node.
            None if tries.left().is_zero() && began.elapsed() < PATIENCE => {
                all(Answer::Unreached { again: false })
            }
            None => {
                let again = peer.unheard(began, Instant::now(), self.connection());
                all(Answer::Unreached { again })
            }
        }
    }

    /// The number of this node's connection to NATS; 0 while there is none, or one that carries nothing. One that was
    /// silent for long is another one afterwards.
    fn connection(&self) -> u64 {
        // Read first: a connection that comes in between has another number.
        let connects = self.client.statistics().connects.load(Ordering::Relaxed);
        let silences = self.pulse.silences(Instant::now());
        let connected = self.client.connection_state() == State::Connected;
        silences.filter(|_| connected).map_or(0, |silences| connects + silences)
    }

    /// For a payload that leaves no room for so many users in one message of NATS.
    fn in_halves<'a>(
        &'a self,
        name: &'a NodeId,
        note: &'a Notification,
        to: &'a [&'a Recipient],
        receipts: Option<&'a Receipts>,
        until: Instant,
    ) -> BoxFuture<'a, Vec<Answer>> {
        async move {
            if to.len() < 2 {
                tracing::error!(node = %name, notification = %note.id, "a notification is too large to be relayed");
                return vec![Answer::Unreached { again: false }; to.len()];
            }
            let (some, others) = to.split_at(to.len() / 2);
            let mut answers = self.ask_about(name, note, some, receipts, until).await;
            answers.extend(self.ask_about(name, note, others, receipts, until).await);
            answers
        }
        .boxed()
    }

    /// Sends a request until it is answered, twice at most. `None` when it is not.
    async fn ask(
        &self,
        peer: &Peer,
        subject: &str,
        mut request: Open<'_>,
        body: &Unstamped,
        tries: Tries,
    ) -> Option<Reply> {
        let reply_to = format!("{}.{}", self.inbox, request.id);
        for _ in 0..TRIES {
            let asked = async {
                let body = body.stamped(Now::read().unix_ms);
                self.client.publish_with_reply(subject.to_owned(), reply_to.clone(), body).await.ok()?;
                Some(request.answer().await)
            };
            match timeout(tries.patience.min(tries.left()), asked).await {
                Ok(Some(Heard::Reply(reply))) => {
                    peer.heard();
                    return Some(reply);
                }
                Ok(Some(Heard::NoResponders) | None) => return None,
                Err(_) => {}
            }
        }
        None
    }

    fn peer(&self, node: &NodeId) -> Arc<Peer> {
        let mut peers = self.peers.lock();
        if let Some(peer) = peers.get(node) {
            return peer.clone();
        }
        if peers.len() >= PEERS_MAX {
            let alive = self.presence.edges();
            peers.retain(|node, _| alive.contains(node));
        }
        peers.entry(node.clone()).or_default().clone()
    }

    async fn tell_everybody(&self, name: NodeId, note: &Notification) -> (usize, usize) {
        let request = self.requests.open(&name, None, BROADCAST_PATIENCE);
        let until = Instant::now() + BROADCAST_PATIENCE * TRIES as u32;
        let tries = Tries { until, patience: BROADCAST_PATIENCE };
        let body = wire::request((&self.me.borrow(), request.id, BROADCAST_PATIENCE), note, None);
        match self.ask(&self.peer(&name), &subject(&name, note.lane), request, &body, tries).await {
            Some(Reply::Told(accepted, full)) => (accepted, full),
            Some(other) => {
                counter!("fanfare_relay_broadcasts_unheard_total").increment(1);
                tracing::error!(node = %name, answer = ?other, notification = %note.id, "a node refuses a broadcast");
                (0, 0)
            }
            None => {
                counter!("fanfare_relay_broadcasts_unheard_total").increment(1);
                tracing::warn!(node = %name, notification = %note.id, "a node does not say that it told its users of a broadcast");
                (0, 0)
            }
        }
    }

    /// Takes what came for the request that `token` names.
    fn hear(&self, token: &str, status: Option<StatusCode>, body: &[u8]) {
        if let Some(sent_ms) = token.strip_prefix(ECHO) {
            return sent_ms.parse().map_or((), |sent_ms| self.pulse.back(sent_ms));
        }
        let Ok(id) = token.parse() else { return };
        let heard = if status == Some(StatusCode::NO_RESPONDERS) {
            Heard::NoResponders
        } else {
            match Reply::decode(body) {
                Ok(reply) => Heard::Reply(reply),
                Err(error) => return tracing::error!(%error, "an answer of another node was dropped"),
            }
        };
        let is_there = matches!(heard, Heard::Reply(_));
        if let Some(node) = self.requests.hear(id, heard).filter(|_| is_there) {
            self.peer(&node).heard();
        }
    }

    /// Sends something to this node itself.
    async fn beat(&self) {
        let echo = format!("{}.{ECHO}{}", self.inbox, self.pulse.beat(Instant::now()));
        // Fails only when the connection is closed for good.
        let _ = self.client.publish(echo, Bytes::new()).await;
    }

    /// Asks those who may be gone, or back, whether they are there.
    async fn ping(&self) {
        let mut nodes = self.requests.sweep(Instant::now());
        let connection = self.connection();
        let peers: Vec<_> =
            self.peers.lock().iter().map(|(node, peer)| (node.clone(), peer.clone())).collect();
        let known = self.presence.edges();
        let given_up: Vec<_> = peers.into_iter().filter(|(_, peer)| peer.is_given_up(connection)).collect();
        // One that is gone for good never answers.
        let (given_up, gone): (Vec<_>, Vec<_>) =
            given_up.into_iter().partition(|(node, _)| known.contains(node));
        for (node, _) in gone {
            self.peers.lock().remove(&node);
        }
        nodes.extend(given_up.into_iter().map(|(node, _)| node));
        for node in nodes {
            let subject = subject(&node, Lane::High);
            let reply_to = format!("{}.{}", self.inbox, self.requests.ping(node));
            // Fails only when the connection is closed for good.
            let _ = self.client.publish_with_reply(subject, reply_to, Bytes::from_static(wire::PING)).await;
        }
    }
}

impl Tries {
    fn left(self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// How long an answer is of use, from the last try on.
    fn all(self) -> Duration {
        (self.patience * TRIES as u32).min(self.left())
    }
}

async fn listen(relay: Arc<Relay>, mut answers: Subscriber) {
    let mut sweep = interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(message) = answers.next() => {
                let token = message.subject.rsplit('.').next().unwrap_or_default();
                relay.hear(token, message.status, &message.payload);
            }
            _ = sweep.tick() => relay.ping().await,
            _ = beat.tick() => relay.beat().await,
        }
    }
}

impl Nodes for Relay {
    fn serving(&self, user: &UserId) -> Vec<NodeId> {
        self.presence.nodes(user)
    }

    fn is_current(&self) -> bool {
        self.presence.is_current()
    }

    fn known_as_of_ms(&self) -> u64 {
        // Without other nodes there is nothing to know.
        if self.presence.is_alone() { u64::MAX } else { self.presence.known_as_of_ms() }
    }

    fn connection(&self) -> u64 {
        Self::connection(self)
    }

    fn relay<'a>(
        &'a self,
        name: &'a NodeId,
        note: &'a Arc<Notification>,
        to: Vec<&'a Recipient>,
        receipts: Option<&'a Receipts>,
        until: Instant,
    ) -> BoxFuture<'a, Vec<Answer>> {
        async move {
            let began = Instant::now();
            let answers = self.ask_about(name, note, &to, receipts, until).await;
            histogram!("fanfare_relay_seconds", "lane" => note.lane.as_str()).record(began.elapsed());
            count(note.lane, &answers);
            answers
        }
        .boxed()
    }

    fn broadcast<'a>(&'a self, note: &'a Arc<Notification>) -> BoxFuture<'a, (usize, usize)> {
        async move {
            let nodes = self.presence.edges().into_iter().map(|node| self.tell_everybody(node, note));
            let told = futures::future::join_all(nodes).await;
            told.into_iter().fold((0, 0), |all, (accepted, full)| (all.0 + accepted, all.1 + full))
        }
        .boxed()
    }

    fn devices<'a>(&'a self, user: &'a UserId) -> BoxFuture<'a, Result<Vec<DeviceId>, Unread>> {
        async move { self.entries.devices_elsewhere(user).await.map_err(|error| Unread(error.into())) }
            .boxed()
    }
}

/// Counts answers by what they are, in one go for each kind.
fn count(lane: Lane, answers: &[Answer]) {
    let name = |answer: &Answer| match answer {
        Answer::Absent => "absent",
        Answer::Moved => "moved",
        Answer::Unreached { .. } => "unreached",
        Answer::Full => "full",
        Answer::Coalesced => "coalesced",
        Answer::Accepted(_) => "accepted",
    };
    for what in ["absent", "moved", "unreached", "full", "coalesced", "accepted"] {
        let users = answers.iter().filter(|answer| name(answer) == what).count() as u64;
        if users > 0 {
            counter!("fanfare_relay_asked_total", "lane" => lane.as_str(), "answer" => what).increment(users);
        }
    }
}
