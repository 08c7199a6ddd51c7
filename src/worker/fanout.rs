//! Runs a notification through its batches: route, write down, try again, wait for acks, hand off.
//!
//! Decisions are those of `delivery`; here is the order in which they are carried out and waited for.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::handler::{Handler, always_inboxed};
use crate::catalog::Offline;
use crate::clock::Now;
use crate::delivery::{
    AckWait, Ended, HandOff, Ledger, Missed, Outcome, Round, Totals, acks, evidence, inbox, keep, ledger,
    offline, retry,
};
use crate::pipeline::{Answer, BATCH_USERS_MAX, Fanout, Nodes, Reach, Relays, Sessions, Unread, batches};
use crate::protocol::Notification;
use crate::session::{AckEvent, Receipts, Recipient};

/// How often a notification that must be acked is offered to newer sessions of a device that loses them. A link that
/// breaks more often within the deadline will not bring it.
const RENEWALS: usize = 3;

/// Messages to other nodes that one fan-out may wait for at once.
const ASKED_MAX: usize = 8;

/// Far beyond the time in which other nodes answer or are given up.
const NO_LIMIT: Duration = Duration::from_hours(1);

/// Why a run could not be brought to its end.
pub(super) type RunError = super::effects::EffectError;

/// One notification on its way to its recipients.
pub(super) struct Run {
    fanout: Arc<Fanout>,
    pub(super) ledger: Ledger,
    totals: Arc<Totals>,
    round: Round,
    /// Whom other nodes are still to be asked about.
    relays: Relays,
    /// Whom they are being asked about.
    asked: FuturesUnordered<BoxFuture<'static, Vec<(Recipient, Answer, Reach)>>>,
    /// Recipients whose record is due whatever the sessions said, and whether all their sessions were offered it.
    records: Vec<(Recipient, Reach)>,
    /// Until then acks are waited for.
    deadline: Instant,
    /// Unix milliseconds before the first offer, and up to which all sessions were known.
    began_ms: u64,
    /// The connection to the other nodes at the first offer; `None` before it.
    connection: Option<u64>,
    receipts: Option<(Receipts, UnboundedReceiver<AckEvent>)>,
    /// How often those at hand were offered it.
    tries: u32,
    /// Of those at hand, whose sessions took it.
    accepted: usize,
}

impl Run {
    /// A run for everybody of `fanout`, from now on.
    pub(super) fn new(fanout: Fanout, now: Now, scope: evidence::Scope, totals: Arc<Totals>) -> Self {
        let note = &fanout.note;
        let mut ledger = Ledger::new(fanout.recipients + fanout.excluded, scope);
        let excluded = Ended { outcome: Outcome::Excluded, missed: None, tries: 0 };
        ledger.settle_unnamed(note, fanout.excluded, excluded);
        let receipts = note.require_ack.then(Receipts::new);
        let age = Duration::from_millis(now.unix_ms.saturating_sub(note.published_at_ms));
        let rings = fanout.note.policy.offline == Offline::Ring;
        let deadline = now.instant + acks::patience(note.event.ack_timeout(), rings, age);
        Self {
            fanout: Arc::new(fanout),
            ledger,
            totals,
            round: Round::default(),
            relays: Relays::default(),
            asked: FuturesUnordered::new(),
            records: Vec::new(),
            deadline,
            began_ms: now.unix_ms,
            connection: None,
            receipts,
            tries: 0,
            accepted: 0,
        }
    }

    /// Whom it is for.
    pub(super) fn fanout(&self) -> Arc<Fanout> {
        self.fanout.clone()
    }

    /// Offers one batch to this node's sessions and sorts the answers. Whom other nodes serve waits for [`Self::relay`].
    pub(super) fn route(
        &mut self,
        sessions: &dyn Sessions,
        nodes: &dyn Nodes,
        batch: impl IntoIterator<Item = Recipient>,
        now: Now,
    ) {
        self.tries = 0;
        let note = &self.fanout.note;
        if note.expires_at_ms <= now.unix_ms {
            if note.policy.offline == Offline::Ring {
                // A call that nobody heard of is a missed call.
                let missed = |recipient| HandOff { recipient, missed: Missed::Expired };
                self.round.hand_off.extend(batch.into_iter().map(missed));
            } else {
                let ended = Ended { outcome: Outcome::Expired, missed: None, tries: 0 };
                for recipient in batch {
                    self.ledger.settle(note, Some(&recipient.user), ended);
                }
            }
            return;
        }
        self.offer(sessions, nodes, batch, now);
    }

    fn offer(
        &mut self,
        sessions: &dyn Sessions,
        nodes: &dyn Nodes,
        batch: impl IntoIterator<Item = Recipient>,
        now: Now,
    ) {
        self.tries += 1;
        self.connection.get_or_insert_with(|| nodes.connection());
        // Sessions of which this node has not heard were offered nothing.
        self.began_ms = self.began_ms.min(nodes.known_as_of_ms());
        let fanout = self.fanout.clone();
        let receipts = self.receipts.as_ref().map(|(receipts, _)| receipts.clone());
        // Asked first: what becomes current after it is not what was looked at. What is not any more is found out before
        // anything is kept.
        let current = nodes.is_current();
        for recipient in batch {
            let here = sessions.push(&fanout.note, &recipient, receipts.as_ref(), now).into();
            let elsewhere = nodes.serving(&recipient.user);
            if !elsewhere.is_empty() {
                self.relays.add(recipient, here, elsewhere);
            } else if current {
                self.take(recipient, here, Reach::All);
            } else {
                // Who seems to be away may be on a node of which this one has not heard yet.
                let seems = if here == Answer::Absent { Answer::Unreached { again: true } } else { here };
                self.take(recipient, seems, Reach::Some);
            }
        }
        self.count_accepted(now);
        self.settle_unkept(now);
    }

    /// Begins to ask the other nodes about everybody whom they serve. A node that is slow must not hold up the batches
    /// behind it, so some of these are on their way at once.
    async fn ask(&mut self, nodes: &Arc<dyn Nodes>) {
        let relays = std::mem::take(&mut self.relays);
        if relays.is_empty() {
            return;
        }
        if self.asked.len() >= ASKED_MAX {
            self.hear().await;
        }
        let receipts = self.receipts.as_ref().map(|(receipts, _)| receipts.clone());
        let rings = self.fanout.note.policy.offline == Offline::Ring;
        // A phone does not ring later because a node is slow.
        let until = if rings { self.deadline } else { Instant::now() + NO_LIMIT };
        self.asked.push(relays.ask(nodes.clone(), self.fanout.note.clone(), receipts, until).boxed());
        // So that it is sent now, and not when somebody waits for it.
        if let Some(Some(answers)) = self.asked.next().now_or_never() {
            self.take_all(answers);
        }
    }

    /// Waits for what one of them comes to.
    async fn hear(&mut self) {
        if let Some(answers) = self.asked.next().await {
            self.take_all(answers);
        }
    }

    fn take_all(&mut self, answers: Vec<(Recipient, Answer, Reach)>) {
        let now = Now::read();
        for (recipient, answer, reach) in answers {
            self.take(recipient, answer, reach);
        }
        self.count_accepted(now);
        self.settle_unkept(now);
    }

    /// Asks the other nodes, and waits for all answers.
    async fn relay(&mut self, nodes: &Arc<dyn Nodes>) {
        self.ask(nodes).await;
        while !self.asked.is_empty() {
            self.hear().await;
        }
    }

    /// Sorts what became of one recipient.
    fn take(&mut self, recipient: Recipient, answer: Answer, reach: Reach) {
        let note = &self.fanout.note;
        if self.tries == 1 && always_inboxed(note.policy.inbox) {
            self.records.push((recipient.clone(), reach));
        }
        let answer = match answer {
            // Where each device must ack, one that nobody could ask does not: it is handed off at the deadline.
            Answer::Accepted(sessions) if reach == Reach::Some && note.policy.ack_every_device => {
                Answer::Accepted(sessions + 1)
            }
            answer => answer,
        };
        self.accepted += usize::from(matches!(answer, Answer::Accepted(_)));
        // Most get it at once, and their names are needed of the sample only.
        let user = self.ledger.wants_everything().then(|| recipient.user.clone());
        if let Some(outcome) = self.round.take(recipient, answer, note.lane, note.require_ack) {
            self.ledger.settle(note, user.as_ref(), Ended { outcome, missed: None, tries: self.tries });
        }
    }

    /// Records for all at hand at once when their sessions took it.
    fn count_accepted(&mut self, now: Now) {
        let note = &self.fanout.note;
        let after = Duration::from_millis(now.unix_ms.saturating_sub(note.published_at_ms));
        self.totals.accepted(note.lane, after, std::mem::take(&mut self.accepted));
    }

    /// Without a session and with nothing to keep, the outcome is final here, and nobody waits for it.
    fn settle_unkept(&mut self, now: Now) {
        let (note, tries) = (&self.fanout.note, self.tries);
        let policy = &note.policy;
        let ledger = &mut self.ledger;
        self.round.hand_off.retain(|hand_off| {
            let keep = keep(hand_off, policy, note.lane, note.expires_at_ms, now.unix_ms);
            let something = keep.offline.is_some() || keep.inbox || keep.outcome == Outcome::Inboxed;
            if !something {
                let ended = Ended { outcome: keep.outcome, missed: Some(hand_off.missed), tries };
                ledger.settle(note, Some(&hand_off.recipient.user), ended);
            }
            something
        });
    }

    /// True when nothing is left to wait for.
    pub(super) fn is_done(&self) -> bool {
        let Round { awaited, retry, hand_off } = &self.round;
        let nobody = awaited.is_empty() && retry.is_empty() && hand_off.is_empty();
        nobody && self.relays.is_empty() && self.asked.is_empty() && self.records.is_empty()
    }

    /// Runs every batch and what they leave to do.
    pub(super) async fn all(mut self, handler: &Handler) -> Result<Ledger, RunError> {
        let fanout = self.fanout.clone();
        for (number, batch) in batches(fanout.targets()).enumerate() {
            // A large fan-out lets urgent messages pass between two batches.
            if number > 0 {
                tokio::task::yield_now().await;
            }
            self.route(&*handler.sessions, &*handler.nodes, batch, Now::read());
            // As many as a message to a node holds, not a message for each batch of whom that node serves a part.
            if self.relays.is_full() {
                self.ask(&handler.nodes).await;
            }
            self.write(handler).await?;
            // One slow client must not hold up the batches behind it, so the second tries are kept for later.
            if self.round.retry.len() >= BATCH_USERS_MAX {
                self.relay(&handler.nodes).await;
                self.try_again(handler).await?;
            }
        }
        self.finish(handler).await
    }

    /// Does what is left after routing: other nodes, second tries, acks, writes.
    pub(super) async fn finish(mut self, handler: &Handler) -> Result<Ledger, RunError> {
        self.relay(&handler.nodes).await;
        self.write(handler).await?;
        // Boxed: few have any of it to do, and every message in hand has room for it otherwise.
        if !self.round.retry.is_empty() {
            Box::pin(self.try_again(handler)).await?;
        }
        if self.receipts.is_some() {
            Box::pin(self.await_acks(handler)).await;
        }
        self.write(handler).await?;
        Ok(self.ledger)
    }

    /// Routes those again whose sessions were full or out of reach, three times at most.
    async fn try_again(&mut self, handler: &Handler) -> Result<(), RunError> {
        for wait in retry::waits(rand::random) {
            if self.round.retry.is_empty() {
                return Ok(());
            }
            // A phone does not ring later because the app is slow.
            let rings = self.fanout.note.policy.offline == Offline::Ring;
            if rings && Instant::now() + wait > self.deadline {
                break;
            }
            tokio::time::sleep(wait).await;
            let now = Now::read();
            if self.fanout.note.expires_at_ms <= now.unix_ms {
                break;
            }
            let again = std::mem::take(&mut self.round.retry);
            let again = again.into_iter().map(|hand_off| hand_off.recipient);
            self.offer(&*handler.sessions, &*handler.nodes, again, now);
            self.relay(&handler.nodes).await;
            self.write(handler).await?;
        }
        self.round.give_up();
        self.write(handler).await
    }

    /// Waits for the acks until the row's deadline, or until no session is left that could ack. A session that ended
    /// may have been followed by another one, or is so within a moment.
    async fn await_acks(&mut self, handler: &Handler) {
        let Some((receipts, mut events)) = self.receipts.take() else { return };
        let note = self.fanout.note.clone();
        let mut wait = AckWait::new(note.policy.ack_every_device);
        for (recipient, count) in self.round.awaited.drain(..) {
            wait.expect(recipient, count);
        }
        let mut missed = Missed::SessionLost;
        let mut renewals = 0;
        while !wait.is_done() {
            if wait.is_lost() {
                renewals += 1;
                if renewals > RENEWALS || !self.renew(handler, &receipts, &mut wait).await {
                    break;
                }
                continue;
            }
            match tokio::time::timeout_at(self.deadline, events.recv()).await {
                Ok(Some(event)) => {
                    if wait.take(&event) {
                        let (AckEvent::Acked(user, _) | AckEvent::Lost(user)) = &event;
                        let ended = Ended { outcome: Outcome::Acked, missed: None, tries: self.tries };
                        self.ledger.settle(&note, Some(user), ended);
                        let since = Now::read().unix_ms.saturating_sub(note.published_at_ms);
                        ledger::acked(note.lane, Duration::from_millis(since));
                    }
                }
                // The other end is here.
                Ok(None) => break,
                Err(_) => {
                    missed = Missed::AckTimeout;
                    break;
                }
            }
        }
        self.round.hand_off.extend(wait.give_up(missed));
    }

    /// Offers what must be acked to the sessions that came after those that ended, on this node and on others: at once,
    /// and to those that come back within the waits of a retry. False when there are none.
    async fn renew(&mut self, handler: &Handler, receipts: &Receipts, wait: &mut AckWait) -> bool {
        let note = self.fanout.note.clone();
        for pause in std::iter::once(Duration::ZERO).chain(retry::waits(rand::random)) {
            if Instant::now() + pause > self.deadline {
                return false;
            }
            tokio::time::sleep(pause).await;
            let (mut relays, now) = (Relays::default(), Now::read());
            for recipient in wait.rest() {
                let here = handler.sessions.push(&note, &recipient, Some(receipts), now).into();
                let nodes = handler.nodes.serving(&recipient.user);
                relays.add(recipient, here, nodes);
            }
            let mut renewed = false;
            let (nodes, receipts) = (handler.nodes.clone(), Some(receipts.clone()));
            for (recipient, answer, _) in relays.ask(nodes, note.clone(), receipts, self.deadline).await {
                if let Answer::Accepted(sessions) = answer {
                    wait.renew(&recipient.user, sessions);
                    renewed = true;
                }
            }
            if renewed {
                self.tries += 1;
                return true;
            }
        }
        false
    }

    /// Writes what is to be kept, and settles whom it is kept for once JetStream has it.
    async fn write(&mut self, handler: &Handler) -> Result<(), RunError> {
        let hand_off = std::mem::take(&mut self.round.hand_off);
        let records = std::mem::take(&mut self.records);
        if hand_off.is_empty() && records.is_empty() {
            return Ok(());
        }
        let broke = self.connection.is_some_and(|then| then == 0 || then != handler.nodes.connection());
        if broke && !hand_off.is_empty() {
            // Whoever seems to be away may be on a node that could not be asked, and JetStream may have given this to
            // another node meanwhile.
            return Err(Unread("the connection to NATS broke, or was silent, meanwhile".into()).into());
        }
        let note = &self.fanout.note;
        let policy = &note.policy;
        let now_ms = Now::read().unix_ms;
        let decide = |hand_off| keep(hand_off, policy, note.lane, note.expires_at_ms, now_ms);
        let mut kept: Vec<_> = hand_off.iter().map(decide).collect();
        let rung = handler.rings(note, &hand_off, &mut kept).await?;
        let with_push = hand_off.iter().zip(&kept).filter_map(|(one, keep)| Some((one, keep.offline?)));
        for push in offline::pushes(note, with_push) {
            push.write(&handler.context).await?;
        }
        handler.rang(note, &rung).await?;
        let missed = hand_off.iter().zip(&kept).filter(|(_, keep)| keep.inbox);
        let missed: Vec<_> = missed.map(|(one, _): (&HandOff, _)| one.recipient.clone()).collect();
        for reach in [Reach::All, Reach::Some] {
            let some: Vec<_> =
                records.iter().filter(|(_, of)| *of == reach).map(|(one, _)| one.clone()).collect();
            // Sessions that were not offered it read it from the inbox.
            let offered_at_ms = (reach == Reach::All).then_some(self.began_ms);
            write_records(note, handler, &some, offered_at_ms).await?;
        }
        write_records(note, handler, &missed, None).await?;
        for (one, keep) in hand_off.iter().zip(kept) {
            let ended = Ended { outcome: keep.outcome, missed: Some(one.missed), tries: self.tries };
            self.ledger.settle(note, Some(&one.recipient.user), ended);
        }
        Ok(())
    }
}

/// Writes an inbox record for each of `recipients`.
async fn write_records(
    note: &Notification,
    handler: &Handler,
    recipients: &[Recipient],
    offered_at_ms: Option<u64>,
) -> Result<(), RunError> {
    let until_ms = note.policy.inbox_until_ms;
    let kept = Duration::from_millis(until_ms.saturating_sub(Now::read().unix_ms));
    let mut bodies = inbox::Records::default();
    for some in recipients.chunks(inbox::IN_FLIGHT) {
        if note.large_set {
            handler.pacer.turn(some.len()).await;
        }
        let writes: Vec<_> = some
            .iter()
            .map(|recipient| {
                let body = bodies.body(note, recipient, until_ms);
                inbox::write(&handler.context, &recipient.user, body, kept, offered_at_ms)
            })
            .collect();
        stream::iter(writes).buffer_unordered(inbox::IN_FLIGHT).try_collect::<Vec<()>>().await?;
    }
    Ok(())
}
