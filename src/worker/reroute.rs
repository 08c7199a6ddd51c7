//! Delivers again what ended sessions held: to the user's other and newer sessions, else as the row keeps it.
//!
//! The notification's own message was acknowledged when its sessions took it, so JetStream knows nothing of this: the
//! task here is the owner of what is left, and of its retries, until it is delivered, kept or expired. A crash loses it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::fanout::Run;
use super::handler::Handler;
use crate::clock::Now;
use crate::delivery::evidence::Scope;
use crate::delivery::{Outcome, retry};
use crate::pipeline::Fanout;
use crate::protocol::Notification;
use crate::session::{Recipient, Undelivered};

/// Ended sessions taken at once, so that one group message that all of them held becomes one fan-out.
const SESSIONS: usize = 1_024;

/// Notifications delivered again at once.
const AT_ONCE: usize = 64;

/// Notifications in hand: most of them wait for another try, because JetStream refused a write.
const IN_HAND: usize = 65_536;

/// The task that delivers again. Ends when dropped.
#[derive(Debug)]
pub struct Rerouter {
    task: JoinSet<()>,
    stop: CancellationToken,
}

impl Rerouter {
    pub(super) fn start(ended: Receiver<Vec<Undelivered>>, handler: Arc<Handler>) -> Self {
        let mut task = JoinSet::new();
        let stop = CancellationToken::new();
        task.spawn(run(ended, handler, stop.clone()));
        Self { task, stop }
    }

    /// Resolves when the task has ended before its time, which is a bug.
    pub async fn failed(&mut self) {
        self.task.join_next().await;
    }

    /// Delivers what is left and ends, within `limit`. Call it when no session is left.
    pub async fn join(mut self, limit: Duration) {
        self.stop.cancel();
        if tokio::time::timeout(limit, self.task.join_next()).await.is_err() {
            tracing::error!(
                seconds = limit.as_secs(),
                "what ended sessions held could not be delivered again in time and is lost; is NATS away?"
            );
        }
    }
}

/// One notification and those who are still to get it. Dropped before its end it counts as lost.
struct Group {
    note: Arc<Notification>,
    recipients: Vec<Recipient>,
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.recipients.is_empty() {
            let lost = self.recipients.len() as u64;
            counter!("fanfare_session_dropped_total", "reason" => "not_rerouted").increment(lost);
        }
    }
}

async fn run(mut ended: Receiver<Vec<Undelivered>>, handler: Arc<Handler>, stop: CancellationToken) {
    let mut waiting: VecDeque<Group> = VecDeque::new();
    let mut in_hand = JoinSet::new();
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut batch = Vec::new();
    let mut open = true;
    while open || !waiting.is_empty() || !in_hand.is_empty() {
        while in_hand.len() < IN_HAND
            && let Some(group) = waiting.pop_front()
        {
            in_hand.spawn(deliver(handler.clone(), group, permits.clone()));
        }
        tokio::select! {
            Some(_) = in_hand.join_next(), if !in_hand.is_empty() => {}
            taken = ended.recv_many(&mut batch, SESSIONS), if open && waiting.is_empty() => {
                open = taken > 0;
                waiting.extend(groups(batch.drain(..).flatten()));
            }
            () = stop.cancelled(), if !ended.is_closed() => ended.close(),
        }
    }
}

/// Joins what is the same notification.
fn groups(held: impl Iterator<Item = Undelivered>) -> Vec<Group> {
    let mut places: HashMap<*const Notification, usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for Undelivered { note, recipient } in held {
        let at = *places.entry(Arc::as_ptr(&note)).or_insert(groups.len());
        if at == groups.len() {
            groups.push(Group { note, recipients: Vec::new() });
        }
        // Two devices of a user that ended together.
        if groups[at].recipients.last() != Some(&recipient) {
            groups[at].recipients.push(recipient);
        }
    }
    groups
}

async fn deliver(handler: Arc<Handler>, mut group: Group, permits: Arc<Semaphore>) {
    let mut tries = 0;
    loop {
        // Not held between the tries: those that need no write must not wait for those that do. It is never closed.
        let permit = permits.acquire().await.ok();
        let fanout = Fanout::to(group.note.clone(), group.recipients.clone());
        let result =
            Run::new(fanout, Now::read(), Scope::Rerouted, handler.totals().clone()).all(&handler).await;
        drop(permit);
        match result {
            Ok(ledger) => {
                for outcome in Outcome::ALL {
                    let name = outcome.as_str();
                    counter!("fanfare_delivery_rerouted_total", "outcome" => name)
                        .increment(ledger.count(outcome));
                }
                handler.evidence.take(ledger.into_findings());
                group.recipients.clear();
                return;
            }
            Err(error) => {
                tries += 1;
                let delay = retry::refused_write_delay(tries, rand::random());
                tracing::error!(%error, delay_s = delay.as_secs(), "what an ended session held is tried again later");
                tokio::time::sleep(delay).await;
            }
        }
    }
}

/// Describes the metrics of this part.
pub(super) fn describe() {
    metrics::describe_counter!(
        "fanfare_delivery_rerouted_total",
        "notifications that ended sessions held and that were delivered again, by outcome; beside the ledger"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Catalog, Offline};
    use crate::id::UserId;
    use crate::protocol::notification::{Frames, Policy};
    use crate::session::Devices;

    fn note(id: &str) -> Arc<Notification> {
        let event = Catalog::built_in().unwrap().get("message.new").unwrap().clone();
        Arc::new(Notification {
            id: id.into(),
            lane: event.lane,
            event,
            timestamp: 1,
            published_at_ms: 1,
            expires_at_ms: u64::MAX,
            stream_seq: 1,
            from_user_id: None,
            require_ack: false,
            large_set: false,
            policy: Policy::default(),
            payload: serde_json::Map::new().into(),
            frames: Frames::default(),
        })
    }

    fn held(note: &Arc<Notification>, user: &str) -> Undelivered {
        let user = UserId::new(user).unwrap();
        let recipient = Recipient { user, devices: Devices::All, offline: Offline::Alert };
        Undelivered { note: note.clone(), recipient }
    }

    #[test]
    fn a_group_message_that_many_held_is_one_fan_out_again() {
        let (a, b) = (note("a"), note("b"));
        let held = [held(&a, "ann"), held(&b, "ann"), held(&a, "ben"), held(&a, "ben")];
        let mut groups = groups(held.into_iter());
        let sizes: Vec<_> =
            groups.iter().map(|group| (group.note.id.to_string(), group.recipients.len())).collect();
        assert_eq!(sizes, [("a".to_owned(), 2), ("b".to_owned(), 1)]);
        for group in &mut groups {
            group.recipients.clear();
        }
    }
}
