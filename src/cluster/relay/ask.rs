//! The worker's side: asks other nodes, and gives what they say to whoever waits for it.
//!
//! All answers come to one subscription; one task, [`Asker`]'s, gives them to the requests that wait. What must be acked
//! is waited for by the worker; here its requests are only remembered until then.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{Client, StatusCode, Subscriber};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use metrics::{counter, histogram};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::peer::Peer;
use super::wire::{self, Reply};
use super::{PATIENCE, TRIES, subject};
use crate::catalog::Lane;
use crate::clock::Now;
use crate::cluster::{Entries, Handle, Presence};
use crate::id::{DeviceId, NodeId, UserId};
use crate::pipeline::{Answer, Nodes};
use crate::protocol::Notification;
use crate::session::{AckEvent, Receipts, Recipient};

/// Time a node has for a broadcast: it paces it, 20,000 users a second.
const BROADCAST_PATIENCE: Duration = Duration::from_secs(30);

/// Beyond an ack's deadline nobody waits for reports.
const REPORTS_MARGIN: Duration = Duration::from_secs(5);

/// How often forgotten requests are looked for.
const SWEEP: Duration = Duration::from_secs(1);

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
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, Waiting>>,
    peers: Mutex<HashMap<NodeId, Arc<Peer>>>,
}

/// A request on its way.
#[derive(Debug)]
struct Waiting {
    node: NodeId,
    answer: Option<oneshot::Sender<Heard>>,
    /// Where acks are reported.
    receipts: Option<Receipts>,
    /// Before the answer, whom it is about, where acks are reported. After it, whose sessions took it and have not
    /// reported, one for each session.
    awaited: Vec<UserId>,
    until: Instant,
}

impl Waiting {
    /// Takes the answer. Reports come after it.
    fn answer(&mut self, heard: Heard) {
        let Some(answer) = self.answer.take() else { return };
        let users = std::mem::take(&mut self.awaited);
        if let Heard::Reply(Reply::Said(said)) = &heard {
            for (user, said) in users.into_iter().zip(said) {
                if let Answer::Accepted(sessions) = Answer::from(*said) {
                    self.awaited.extend(std::iter::repeat_n(user, sessions));
                }
            }
        }
        // Nobody waits any more when the notification's time was over.
        let _ = answer.send(heard);
    }

    fn report(&mut self, event: AckEvent) {
        let (AckEvent::Acked(user, _) | AckEvent::Lost(user)) = &event;
        if let Some(at) = self.awaited.iter().position(|awaited| awaited == user) {
            self.awaited.swap_remove(at);
        }
        if let Some(receipts) = &self.receipts {
            receipts.report(event);
        }
    }

    /// True while reports are to come that somebody waits for.
    fn is_awaited(&self, now: Instant) -> bool {
        let wanted = self.receipts.as_ref().is_some_and(|receipts| !receipts.is_closed());
        wanted && !self.awaited.is_empty() && self.until > now
    }
}

#[derive(Debug)]
enum Heard {
    Reply(Reply),
    /// Nobody listens to the node's subject.
    NoResponders,
}

/// What came of asking a node.
enum Asked {
    Said(Reply),
    Silent,
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
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
            peers: Mutex::default(),
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
    ) -> Vec<Answer> {
        let peer = self.peer(name);
        let all = |answer| vec![answer; to.len()];
        if !peer.may_be_asked(Instant::now(), self.connection()) {
            return all(Answer::Unreached { again: false });
        }
        let reports = receipts.map(|receipts| {
            let users = to.iter().map(|recipient| recipient.user.clone()).collect();
            (receipts, users)
        });
        let request = self.begin(name, reports, note.event.ack_timeout() + REPORTS_MARGIN);
        let body = wire::request((&self.me.borrow(), request.id, Now::read().unix_ms), note, Some(to));
        let bytes_max = self.client.server_info().max_payload;
        if body.len() > bytes_max {
            return self.in_halves(name, note, to, receipts).await;
        }
        // Of a node that does not keep up no more is asked than it can hold.
        let Ok(Ok(_turn)) = timeout(PATIENCE, peer.turns(note.lane).acquire()).await else {
            return all(Answer::Unreached { again: peer.unheard(Instant::now(), self.connection()) });
        };
        match self.ask(&peer, &subject(name, note.lane), request, body, PATIENCE).await {
            Asked::Said(Reply::Said(said)) if said.len() == to.len() => {
                said.into_iter().map(Answer::from).collect()
            }
            Asked::Said(Reply::Refused(reason)) => {
                tracing::error!(node = %name, reason, "another node refuses what is relayed to it");
                all(Answer::Unreached { again: false })
            }
            Asked::Said(other) => {
                tracing::error!(node = %name, answer = ?other, "another node's answer makes no sense");
                all(Answer::Unreached { again: false })
            }
            Asked::Silent => {
                all(Answer::Unreached { again: peer.unheard(Instant::now(), self.connection()) })
            }
        }
    }

    /// The number of this node's connection to NATS.
    fn connection(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    /// For a payload that leaves no room for so many users in one message of NATS.
    fn in_halves<'a>(
        &'a self,
        name: &'a NodeId,
        note: &'a Notification,
        to: &'a [&'a Recipient],
        receipts: Option<&'a Receipts>,
    ) -> BoxFuture<'a, Vec<Answer>> {
        async move {
        if to.len() < 2 {
            tracing::error!(node = %name, notification = %note.id, "a notification is too large to be relayed");
            return vec![Answer::Unreached { again: false }; to.len()];
        }
        let (some, others) = to.split_at(to.len() / 2);
        let mut answers = self.ask_about(name, note, some, receipts).await;
        answers.extend(self.ask_about(name, note, others, receipts).await);
        answers
        }
        .boxed()
    }

    /// Sends a request until it is answered, twice at most.
    async fn ask(
        &self,
        peer: &Peer,
        subject: &str,
        mut request: Open<'_>,
        body: Bytes,
        patience: Duration,
    ) -> Asked {
        let reply_to = format!("{}.{}", self.inbox, request.id);
        for _ in 0..TRIES {
            let asked = async {
                self.client
                    .publish_with_reply(subject.to_owned(), reply_to.clone(), body.clone())
                    .await
                    .ok()?;
                (&mut request.answer).await.ok()
            };
            match timeout(patience, asked).await {
                Ok(Some(Heard::Reply(reply))) => {
                    peer.heard();
                    request.answered = true;
                    return Asked::Said(reply);
                }
                Ok(Some(Heard::NoResponders) | None) => break,
                Err(_) => {}
            }
        }
        Asked::Silent
    }

    /// A new request, whose reports are waited for during `patience`.
    fn begin(
        &self,
        node: &NodeId,
        reports: Option<(&Receipts, Vec<UserId>)>,
        patience: Duration,
    ) -> Open<'_> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        let (receipts, awaited) = reports.unzip();
        let waiting = Waiting {
            node: node.clone(),
            answer: Some(sender),
            receipts: receipts.cloned(),
            awaited: awaited.unwrap_or_default(),
            until: Instant::now() + patience,
        };
        self.waiting.lock().insert(id, waiting);
        Open { relay: self, id, answer, answered: false, reports: receipts.is_some() }
    }

    /// Nobody listens to `node` any more: what its sessions ack cannot be heard, so they count as lost.
    fn lose(all: &mut HashMap<u64, Waiting>, node: &NodeId) {
        let answered = |waiting: &&mut Waiting| waiting.node == *node && waiting.answer.is_none();
        for waiting in all.values_mut().filter(answered) {
            for user in std::mem::take(&mut waiting.awaited) {
                waiting.report(AckEvent::Lost(user));
            }
        }
    }

    /// Forgets what nobody waits for; gives one request of each node whose reports are awaited.
    fn sweep(&self, now: Instant) -> HashMap<NodeId, u64> {
        let mut all = self.waiting.lock();
        all.retain(|_, waiting| waiting.answer.is_some() || waiting.is_awaited(now));
        let awaited = all.iter().filter(|(_, waiting)| waiting.answer.is_none());
        awaited.map(|(id, waiting)| (waiting.node.clone(), *id)).collect()
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
        let request = self.begin(&name, None, BROADCAST_PATIENCE);
        let body = wire::request((&self.me.borrow(), request.id, Now::read().unix_ms), note, None);
        let peer = self.peer(&name);
        match self.ask(&peer, &subject(&name, note.lane), request, body, BROADCAST_PATIENCE).await {
            Asked::Said(Reply::Told(accepted, full)) => (accepted, full),
            Asked::Said(other) => {
                counter!("fanfare_relay_broadcasts_unheard_total").increment(1);
                tracing::error!(node = %name, answer = ?other, notification = %note.id, "a node refuses a broadcast");
                (0, 0)
            }
            Asked::Silent => {
                counter!("fanfare_relay_broadcasts_unheard_total").increment(1);
                tracing::warn!(node = %name, notification = %note.id, "a node does not say that it told its users of a broadcast");
                (0, 0)
            }
        }
    }

    /// Takes what came for the request that `token` names.
    fn hear(&self, token: &str, status: Option<StatusCode>, body: &[u8]) {
        let Ok(id) = token.parse() else { return };
        let heard = if status == Some(StatusCode::NO_RESPONDERS) {
            Heard::NoResponders
        } else {
            match Reply::decode(body) {
                Ok(reply) => Heard::Reply(reply),
                Err(error) => return tracing::error!(%error, "an answer of another node was dropped"),
            }
        };
        let mut all = self.waiting.lock();
        let Some(waiting) = all.get_mut(&id) else { return };
        if let Heard::Reply(Reply::Acked(event)) = heard {
            return waiting.report(event);
        }
        let node = matches!(heard, Heard::NoResponders).then(|| waiting.node.clone());
        waiting.answer(heard);
        if let Some(node) = node {
            Self::lose(&mut all, &node);
        }
    }
}

/// A request that is waited for. Dropped without an answer it is forgotten.
struct Open<'a> {
    relay: &'a Relay,
    id: u64,
    answer: oneshot::Receiver<Heard>,
    answered: bool,
    reports: bool,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // With reports to come it stays until its time is over.
        if !(self.answered && self.reports) {
            self.relay.waiting.lock().remove(&self.id);
        }
    }
}

async fn listen(relay: Arc<Relay>, mut answers: Subscriber) {
    let mut sweep = interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(message) = answers.next() => {
                let token = message.subject.rsplit('.').next().unwrap_or_default();
                relay.hear(token, message.status, &message.payload);
            }
            now = sweep.tick() => for (node, id) in relay.sweep(now) {
                // NATS answers for a node that is gone.
                let (subject, reply_to) = (subject(&node, Lane::High), format!("{}.{id}", relay.inbox));
                let _ = relay.client.publish_with_reply(subject, reply_to, Bytes::from_static(wire::PING)).await;
            }
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

    fn relay<'a>(
        &'a self,
        name: &'a NodeId,
        note: &'a Arc<Notification>,
        to: Vec<&'a Recipient>,
        receipts: Option<&'a Receipts>,
    ) -> BoxFuture<'a, Vec<Answer>> {
        async move {
            let began = Instant::now();
            let answers = self.ask_about(name, note, &to, receipts).await;
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

    fn devices<'a>(&'a self, user: &'a UserId) -> BoxFuture<'a, Vec<DeviceId>> {
        async move {
            self.entries.devices_elsewhere(user).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "the devices of a user on other nodes cannot be read");
                Vec::new()
            })
        }
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
