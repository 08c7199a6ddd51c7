//! The side of the node that has the sessions: takes requests, offers to its sessions, answers.
//!
//! One task a lane, so that urgent requests never wait behind others. What was asked before is answered from memory. A
//! request whose sender has given up is dropped: its recipients were seen to otherwise.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Message, Subject, SubscribeError, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use metrics::counter;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::late::Late;
use super::wire::{self, Reply, Request, Said, To};
use super::{describe, subject};
use crate::catalog::{Catalog, Lane};
use crate::clock::Now;
use crate::id::NodeId;
use crate::pipeline;
use crate::protocol::Notification;
use crate::session::{AckEvent, Push, Receipts, Recipient, Registry};
use crate::turn::Turn;

/// Requests of one lane whose sessions still may ack; for further ones sessions count as full, and the worker tries
/// again. Far more than workers have in hand.
const AWAITED_MAX: usize = 16_384;

/// Answers kept for repetitions, for at least this long: longer than a repetition is waited for.
const REMEMBERED: Duration = Duration::from_secs(5);

/// And at most twice so many, of 2 kB.
const REMEMBERED_MAX: usize = 8_192;

/// Time beyond an ack's deadline in which it is still reported.
const ACK_MARGIN: Duration = Duration::from_secs(1);

/// Pause before the next try to listen under a new name.
const RETRY: Duration = Duration::from_secs(1);

/// Listens on the node's subjects. Ends when dropped.
#[derive(Debug)]
pub struct Server {
    tasks: JoinSet<()>,
}

impl Server {
    /// Starts to serve the sessions of `registry` under the name that `me` has, also when it changes.
    pub async fn start(
        client: Client,
        me: watch::Receiver<NodeId>,
        catalog: Arc<Catalog>,
        registry: Arc<Registry>,
    ) -> Result<Self, SubscribeError> {
        describe();
        let mut tasks = JoinSet::new();
        for lane in Lane::ALL {
            let name = me.borrow().clone();
            let requests = client.subscribe(subject(&name, lane)).await?;
            let server = LaneServer {
                client: client.clone(),
                catalog: catalog.clone(),
                registry: registry.clone(),
                lane,
                memory: Memory::new(Instant::now()),
                late: Late::default(),
                under_way: HashSet::new(),
                work: JoinSet::new(),
                turn: Turn::default(),
            };
            tasks.spawn(server.run(requests, me.clone()));
        }
        Ok(Self { tasks })
    }

    /// Resolves when a task has ended, which is a bug.
    pub async fn failed(&mut self) {
        self.tasks.join_next().await;
    }
}

/// Who asked, and the number of the request.
type Key = (NodeId, u64);

struct LaneServer {
    client: Client,
    catalog: Arc<Catalog>,
    registry: Arc<Registry>,
    lane: Lane,
    memory: Memory,
    late: Late,
    under_way: HashSet<Key>,
    /// Broadcasts under way, which end with their answer, and acks to be reported.
    work: JoinSet<Option<(Key, Bytes)>>,
    turn: Turn,
}

impl LaneServer {
    async fn run(mut self, mut requests: Subscriber, mut me: watch::Receiver<NodeId>) {
        // Under the name before the last one others may still ask.
        let mut before: Option<Subscriber> = None;
        loop {
            let earlier = async {
                match &mut before {
                    Some(requests) => requests.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(request) = requests.next() => self.take(request).await,
                Some(request) = earlier => self.take(request).await,
                Some(done) = self.work.join_next(), if !self.work.is_empty() => {
                    if let Ok(Some((key, answer))) = done {
                        self.under_way.remove(&key);
                        self.memory.put(key, answer, Instant::now());
                    }
                }
                Ok(()) = me.changed() => {
                    let name = me.borrow_and_update().clone();
                    let renamed = self.subscribe(&name).await;
                    before = Some(std::mem::replace(&mut requests, renamed));
                }
            }
        }
    }

    async fn subscribe(&self, name: &NodeId) -> Subscriber {
        loop {
            match self.client.subscribe(subject(name, self.lane)).await {
                Ok(requests) => return requests,
                Err(error) => tracing::error!(%error, "this node cannot listen to others, and tries again"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn take(&mut self, message: Message) {
        self.turn.give_way().await;
        let Some(reply_to) = message.reply else { return self.count("malformed") };
        if message.payload == wire::PING {
            return self.answer(reply_to, Reply::Pong.encode()).await;
        }
        let request = match wire::read_request(&message.payload, &self.catalog) {
            Ok(request) => request,
            Err(error) => {
                self.count("refused");
                tracing::error!(%error, "a request of another node is refused");
                return self.answer(reply_to, Reply::Refused(error.to_string()).encode()).await;
            }
        };
        let Request { from, id, sent_ms, patience, note, to } = request;
        let now = Now::read();
        let key = (from, id);
        if let Some(answer) = self.memory.get(&key) {
            self.count("repeated");
            return self.answer(reply_to, answer.clone()).await;
        }
        // A broadcast that is under way answers when it is done.
        if self.under_way.contains(&key) {
            return self.count("repeated");
        }
        if self.late.is_late(&key.0, sent_ms, patience, now) {
            return self.count("late");
        }
        self.count("served");
        match to {
            To::Users(users) => {
                let (answer, acks) = self.offer(&note, &users, now);
                self.turn.spend(users.len() as u64);
                self.memory.put(key, answer.clone(), now.instant);
                self.answer(reply_to.clone(), answer).await;
                // After the answer, so that it is heard first.
                if let Some(acks) = acks {
                    let until = now.instant + note.event.ack_timeout() + ACK_MARGIN;
                    self.work.spawn(report(self.client.clone(), reply_to, acks, until));
                }
            }
            To::Everybody => {
                self.under_way.insert(key.clone());
                let (client, registry) = (self.client.clone(), self.registry.clone());
                self.work.spawn(async move {
                    let (accepted, full) = pipeline::broadcast(&*registry, &note).await;
                    let answer = Reply::Told(accepted, full).encode();
                    // Who asked waits for it, and asks again.
                    let _ = client.publish(reply_to, answer.clone()).await;
                    Some((key, answer))
                });
            }
        }
    }

    /// Offers to each user's sessions; gives the answer, and where acks come that are to be reported.
    fn offer(
        &self,
        note: &Arc<Notification>,
        users: &[Recipient],
        now: Now,
    ) -> (Bytes, Option<UnboundedReceiver<AckEvent>>) {
        if note.require_ack && self.work.len() >= AWAITED_MAX {
            return (Reply::Said(vec![Said::Full; users.len()]).encode(), None);
        }
        let (receipts, events) = note.require_ack.then(Receipts::new).unzip();
        let said: Vec<Said> = users
            .iter()
            .map(|recipient| match self.registry.push(note, recipient, receipts.as_ref(), now) {
                Push::Accepted(sessions) => Said::Accepted(sessions),
                Push::Coalesced => Said::Coalesced,
                Push::Full => Said::Full,
                Push::Absent if self.registry.of_user(&recipient.user).is_empty() => Said::NotHere,
                Push::Absent => Said::NotMeant,
            })
            .collect();
        (Reply::Said(said).encode(), events)
    }

    async fn answer(&self, to: Subject, body: Bytes) {
        // Fails only when the connection is closed for good, and whoever asked asks again.
        let _ = self.client.publish(to, body).await;
    }

    fn count(&self, what: &'static str) {
        counter!("fanfare_relay_served_total", "lane" => self.lane.as_str(), "what" => what).increment(1);
    }
}

/// Reports acks until every session has reported, or nobody waits for it any more.
async fn report(
    client: Client,
    to: Subject,
    mut events: UnboundedReceiver<AckEvent>,
    until: Instant,
) -> Option<(Key, Bytes)> {
    let mut end = std::pin::pin!(sleep_until(until));
    loop {
        tokio::select! {
            event = events.recv() => {
                // Its last sender is the last session's receipt.
                let event = event?;
                // One that is lost is a hand-off at the deadline.
                let _ = client.publish(to.clone(), Reply::Acked(event).encode()).await;
            }
            () = &mut end => return None,
        }
    }
}

/// Answers of the last seconds, in two generations: the older one is forgotten as a whole.
struct Memory {
    newer: HashMap<Key, Bytes>,
    older: HashMap<Key, Bytes>,
    since: Instant,
}

impl Memory {
    fn new(now: Instant) -> Self {
        Self { newer: HashMap::new(), older: HashMap::new(), since: now }
    }

    /// The answer to a request that was taken before.
    fn get(&self, key: &Key) -> Option<&Bytes> {
        self.newer.get(key).or_else(|| self.older.get(key))
    }

    fn put(&mut self, key: Key, answer: Bytes, now: Instant) {
        if now.duration_since(self.since) >= REMEMBERED || self.newer.len() >= REMEMBERED_MAX {
            self.older = std::mem::take(&mut self.newer);
            self.since = now;
        }
        self.newer.insert(key, answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_remembered_for_a_while_and_within_a_bound() {
        let start = Instant::now();
        let (at, key) = (|s| start + Duration::from_secs(s), |id| (NodeId::of("a", 1), id));
        let mut memory = Memory::new(start);
        memory.put(key(1), Bytes::from_static(b"x"), at(0));
        memory.put(key(2), Bytes::new(), at(9));
        assert!(memory.get(&key(1)).is_some_and(|answer| answer == "x") && memory.get(&key(2)).is_some());
        memory.put(key(3), Bytes::new(), at(14));
        assert!(memory.get(&key(1)).is_none() && memory.get(&key(2)).is_some());
        for id in 0..5 * REMEMBERED_MAX as u64 {
            memory.put(key(id), Bytes::new(), at(14));
        }
        assert!(memory.newer.len() + memory.older.len() <= 2 * REMEMBERED_MAX);
    }
}
