//! Requests on their way, and those whose acks are still to be reported. Nothing here waits or sends.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::wire::Reply;
use crate::id::{NodeId, UserId};
use crate::pipeline::Answer;
use crate::session::{AckEvent, Receipts};

/// Time in which a ping is answered or of no interest.
const PING: Duration = Duration::from_secs(5);

/// What came for a request.
#[derive(Debug)]
pub(super) enum Heard {
    Reply(Reply),
    /// Nobody listens to the node's subject.
    NoResponders,
}

/// Whose acks are reported, and to whom.
pub(super) type Reports<'a> = (&'a Receipts, Vec<UserId>);

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

    /// Passes a report on. An ack is good news whenever it comes; that a session is lost was told before, perhaps.
    fn report(&mut self, event: AckEvent) {
        let (AckEvent::Acked(user, _) | AckEvent::Lost(user)) = &event;
        let at = self.awaited.iter().position(|awaited| awaited == user);
        if let Some(at) = at {
            self.awaited.swap_remove(at);
        }
        if let Some(receipts) =
            self.receipts.as_ref().filter(|_| at.is_some() || matches!(event, AckEvent::Acked(..)))
        {
            receipts.report(event);
        }
    }

    /// The node is gone: what its sessions ack cannot be heard, so they count as lost.
    fn lose(&mut self) {
        let Some(receipts) = &self.receipts else { return };
        for user in self.awaited.drain(..) {
            receipts.report(AckEvent::Lost(user));
        }
    }

    fn is_of_use(&self, now: Instant) -> bool {
        let unanswered = self.answer.is_some();
        unanswered
            || (self.until > now && self.receipts.as_ref().is_none_or(|receipts| !receipts.is_closed()))
    }
}

/// All requests of this node. Bounded by what workers have in hand.
#[derive(Debug, Default)]
pub(super) struct Requests {
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, Waiting>>,
}

impl Requests {
    /// A new request, whose reports are waited for during `patience`.
    pub(super) fn open(&self, node: &NodeId, reports: Option<Reports<'_>>, patience: Duration) -> Open<'_> {
        let (sender, answer) = oneshot::channel();
        let (receipts, awaited) = reports.unzip();
        let waiting = Waiting {
            node: node.clone(),
            answer: Some(sender),
            receipts: receipts.cloned(),
            awaited: awaited.unwrap_or_default(),
            until: Instant::now() + patience,
        };
        Open { id: self.add(waiting), requests: self, answer, answered: false, reports: receipts.is_some() }
    }

    /// A ping to `node`.
    pub(super) fn ping(&self, node: NodeId) -> u64 {
        let until = Instant::now() + PING;
        self.add(Waiting { node, answer: None, receipts: None, awaited: Vec::new(), until })
    }

    fn add(&self, waiting: Waiting) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.waiting.lock().insert(id, waiting);
        id
    }

    /// Takes what came for request `id`; gives the node that it was for.
    pub(super) fn hear(&self, id: u64, heard: Heard) -> Option<NodeId> {
        let mut all = self.waiting.lock();
        let waiting = all.get_mut(&id)?;
        let node = waiting.node.clone();
        match heard {
            Heard::Reply(Reply::Acked(event)) => waiting.report(event),
            Heard::NoResponders => {
                waiting.answer(Heard::NoResponders);
                let answered = |waiting: &&mut Waiting| waiting.node == node && waiting.answer.is_none();
                all.values_mut().filter(answered).for_each(Waiting::lose);
            }
            Heard::Reply(reply) => waiting.answer(Heard::Reply(reply)),
        }
        Some(node)
    }

    /// Forgets what nobody waits for; gives the nodes whose reports are awaited.
    pub(super) fn sweep(&self, now: Instant) -> HashSet<NodeId> {
        let mut all = self.waiting.lock();
        all.retain(|_, waiting| waiting.is_of_use(now));
        let awaited = all.values().filter(|waiting| waiting.answer.is_none() && !waiting.awaited.is_empty());
        awaited.map(|waiting| waiting.node.clone()).collect()
    }
}

/// A request that is waited for. Dropped without an answer it is forgotten.
pub(super) struct Open<'a> {
    pub(super) id: u64,
    requests: &'a Requests,
    answer: oneshot::Receiver<Heard>,
    answered: bool,
    reports: bool,
}

impl Open<'_> {
    /// Waits for the answer. Dropping the future loses nothing.
    pub(super) async fn answer(&mut self) -> Heard {
        let heard = (&mut self.answer).await;
        self.answered = true;
        // Its sender goes only with an answer, or with this.
        heard.unwrap_or(Heard::NoResponders)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // With reports to come it stays until its time is over.
        if !(self.answered && self.reports) {
            self.requests.waiting.lock().remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::Said;
    use super::*;
    use crate::id::DeviceId;

    fn user() -> UserId {
        UserId::new("u").unwrap()
    }

    fn acked() -> AckEvent {
        AckEvent::Acked(user(), DeviceId::new("d").unwrap())
    }

    #[tokio::test]
    async fn sessions_of_a_node_that_is_gone_are_lost_once_and_late_acks_still_count() {
        let (requests, node) = (Requests::default(), NodeId::of("a", 1));
        let (receipts, mut events) = Receipts::new();
        let mut open = requests.open(&node, Some((&receipts, vec![user()])), Duration::from_mins(1));
        let id = open.id;
        requests.hear(id, Heard::Reply(Reply::Said(vec![Said::Accepted(2)])));
        assert!(matches!(open.answer().await, Heard::Reply(_)));
        drop(open);
        assert!(requests.sweep(Instant::now()).contains(&node));
        requests.hear(id, Heard::Reply(Reply::Acked(AckEvent::Lost(user()))));
        let ping = requests.ping(node.clone());
        requests.hear(ping, Heard::NoResponders);
        requests.hear(id, Heard::Reply(Reply::Acked(AckEvent::Lost(user()))));
        requests.hear(id, Heard::Reply(Reply::Acked(acked())));
        let lost = AckEvent::Lost(user());
        assert_eq!(
            [events.try_recv(), events.try_recv(), events.try_recv()],
            [Ok(lost.clone()), Ok(lost), Ok(acked())]
        );
        assert!(events.try_recv().is_err());
        assert!(requests.sweep(Instant::now()).is_empty(), "nothing to ping for");
        drop(events);
        requests.sweep(Instant::now());
        assert_eq!(requests.waiting.lock().len(), 1, "the ping");
        requests.sweep(Instant::now() + PING);
        assert!(requests.waiting.lock().is_empty());
    }

    #[tokio::test]
    async fn a_request_without_an_answer_is_forgotten_with_whoever_waited() {
        let requests = Requests::default();
        let open = requests.open(&NodeId::of("a", 1), None, Duration::ZERO);
        requests.sweep(Instant::now());
        assert_eq!(requests.waiting.lock().len(), 1);
        drop(open);
        assert!(requests.waiting.lock().is_empty());
    }
}
