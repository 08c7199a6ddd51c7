//! One lane of one session: a queue ordered by rank, then the window of frames the client has not acked.
//!
//! A frame leaves the queue only when the window and the byte budget have room, so what waits can still be overtaken
//! or shed, and what was handed to the transport is never dropped.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::inbox::Cursor;
use super::{Receipt, Recipient};
use crate::catalog::Inbox;
use crate::clock::Now;
use crate::protocol::notification::with_cursor;
use crate::protocol::{Encoding, Notification};

/// Places that an empty queue keeps: a few notifications that wait at once, as a rule, and not what a slow client had.
const PLACES_KEPT: usize = 8;

/// A notification that waits for room.
#[derive(Debug)]
struct Queued {
    rank: u8,
    note: Arc<Notification>,
    /// Whom it was for, with the era in which it was taken; `None` for what the inbox has.
    live: Option<Live>,
    /// Set for a replayed notification: its frame says where it stands in the inbox.
    cursor: Option<Cursor>,
    /// The frame with the cursor, once it was asked for.
    replayed: Option<Bytes>,
    /// Of the delivery that brought it and of its redeliveries. Those that nobody awaits any more leave when another
    /// one comes, so the messages that workers have in hand are the bound.
    receipts: Vec<Receipt>,
}

impl Queued {
    fn frame(&mut self, encoding: Encoding) -> Bytes {
        let Some(cursor) = self.cursor else { return self.note.frame(encoding) };
        // Made once, however often there is no room for it.
        let make = || with_cursor(encoding, &self.note.frame(encoding), &cursor.to_string());
        self.replayed.get_or_insert_with(make).clone()
    }
}

/// What a lane remembers of a notification that came live.
#[derive(Debug)]
struct Live {
    recipient: Recipient,
    era: u32,
}

/// A frame the client has not acked yet.
#[derive(Debug)]
struct Unacked {
    note: Arc<Notification>,
    live: Option<Live>,
    bytes: usize,
    receipts: Vec<Receipt>,
}

/// The client acked a frame that was never sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AckBeyondSent;

/// Queue and window of one lane.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// By rank, the highest first; of the same rank as they came.
    queue: VecDeque<Queued>,
    /// Sum of the queued payloads.
    queue_bytes: usize,
    window: VecDeque<Unacked>,
    window_bytes: usize,
    sent: u64,
    /// When the window was last empty or became shorter.
    progressed_at: Option<Instant>,
}

impl Lane {
    /// Appends `note` behind everything of the same or a higher rank. `era` counts the session's pings.
    pub(super) fn push(
        &mut self,
        note: Arc<Notification>,
        recipient: Recipient,
        era: u32,
        receipt: Option<Receipt>,
    ) {
        self.insert(Queued {
            rank: note.event.rank,
            note,
            live: Some(Live { recipient, era }),
            cursor: None,
            replayed: None,
            receipts: receipt.into_iter().collect(),
        });
    }

    /// Appends a notification of the inbox behind everything, whatever its rank: replay keeps its order.
    pub(super) fn push_replayed(&mut self, note: Arc<Notification>, cursor: Cursor) {
        let receipts = Vec::new();
        self.insert(Queued { rank: 0, note, live: None, cursor: Some(cursor), replayed: None, receipts });
    }

    fn insert(&mut self, queued: Queued) {
        self.queue_bytes += queued.note.payload.json().len();
        let at = self.queue.partition_point(|other| other.rank >= queued.rank);
        self.queue.insert(at, queued);
    }

    /// Takes out the first one that waits.
    fn pop(&mut self) -> Option<Queued> {
        let queued = self.queue.pop_front()?;
        self.queue_bytes -= queued.note.payload.json().len();
        if self.queue.is_empty() {
            self.queue.shrink_to(PLACES_KEPT);
        }
        Some(queued)
    }

    /// Moves frames from the queue to `out` while `window` frames and `budget` bytes allow it. A single frame larger
    /// than the budget goes alone. Gives the notifications that expired while they waited.
    pub(super) fn take(
        &mut self,
        limits: (usize, usize),
        encoding: Encoding,
        now: Now,
        out: &mut Vec<Bytes>,
    ) -> Vec<Arc<Notification>> {
        let (window, budget) = limits;
        let mut expired = Vec::new();
        while self.window.len() < window {
            let Some(first) = self.queue.front_mut() else { break };
            if first.note.expires_at_ms <= now.unix_ms {
                expired.extend(self.pop().map(|queued| queued.note));
                continue;
            }
            let frame = first.frame(encoding);
            if self.window_bytes > 0 && self.window_bytes + frame.len() > budget {
                break;
            }
            let Some(Queued { note, live, receipts, .. }) = self.pop() else { break };
            if self.window.is_empty() {
                self.progressed_at = Some(now.instant);
            }
            self.window_bytes += frame.len();
            self.sent += 1;
            self.window.push_back(Unacked { note, live, bytes: frame.len(), receipts });
            out.push(frame);
        }
        expired
    }

    /// The client has processed everything up to `seq`.
    pub(super) fn ack(&mut self, seq: u64, now: Instant) -> Result<(), AckBeyondSent> {
        if seq > self.sent {
            return Err(AckBeyondSent);
        }
        while self.sent - (self.window.len() as u64) < seq {
            let Some(done) = self.window.pop_front() else { break };
            self.window_bytes -= done.bytes;
            self.progressed_at = Some(now);
            done.receipts.into_iter().for_each(Receipt::acked);
        }
        Ok(())
    }

    /// Gives up the last notification of the lowest rank that nobody asked an ack for.
    pub(super) fn shed(&mut self) -> Option<(Arc<Notification>, Option<Recipient>)> {
        let at = self.queue.iter().rposition(|queued| queued.receipts.is_empty())?;
        let Queued { note, live, .. } = self.queue.remove(at)?;
        self.queue_bytes -= note.payload.json().len();
        Some((note, live.map(|live| live.recipient)))
    }

    /// Adds `receipt` to the copy of `id` that waits or is un-acked. When there is none, the client has acked it.
    pub(super) fn attach(&mut self, id: &str, receipt: Receipt) -> Result<(), Receipt> {
        let receipts = self
            .window
            .iter_mut()
            .map(|unacked| (&unacked.note, &mut unacked.receipts))
            .chain(self.queue.iter_mut().map(|queued| (&queued.note, &mut queued.receipts)))
            .find(|(note, _)| &*note.id == id)
            .map(|(_, receipts)| receipts);
        match receipts {
            Some(receipts) => {
                receipts.retain(Receipt::is_awaited);
                receipts.push(receipt);
                Ok(())
            }
            None => Err(receipt),
        }
    }

    /// Takes out what waits and is meant, unsent. Whoever waits for its ack hears of one: there is nothing to wait for.
    pub(super) fn withdraw(&mut self, meant: impl Fn(&Notification) -> bool) -> usize {
        let mut taken = 0;
        self.queue.retain_mut(|queued| {
            let stays = !meant(&queued.note);
            if !stays {
                self.queue_bytes -= queued.note.payload.json().len();
                queued.receipts.drain(..).for_each(Receipt::acked);
                taken += 1;
            }
            stays
        });
        taken
    }

    /// What the client has not acked of what came live, in the order in which it would have got it.
    pub(super) fn into_live(self) -> impl Iterator<Item = (Arc<Notification>, Recipient)> {
        let sent = self.window.into_iter().map(|unacked| (unacked.note, unacked.live));
        let queued = self.queue.into_iter().map(|queued| (queued.note, queued.live));
        sent.chain(queued).filter_map(|(note, live)| Some((note, live?.recipient)))
    }

    /// True when something that the inbox has, too, was taken before `era` and is not acked.
    pub(super) fn holds_inboxed(&self, era: u32) -> bool {
        let sent = self.window.iter().map(|unacked| (&unacked.note, &unacked.live));
        let queued = self.queue.iter().map(|queued| (&queued.note, &queued.live));
        let before = |live: &Option<Live>| live.as_ref().is_some_and(|live| live.era < era);
        sent.chain(queued).any(|(note, live)| note.policy.inbox == Inbox::Always && before(live))
    }

    /// True when the notification waits or is un-acked.
    pub(super) fn holds(&self, id: &str) -> bool {
        let mut window = self.window.iter().map(|unacked| &unacked.note);
        window.any(|note| &*note.id == id) || self.queue.iter().any(|queued| &*queued.note.id == id)
    }

    /// Notifications that wait for room.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Sum of the payloads that wait, in bytes.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queue_bytes
    }

    /// True when the client has acked nothing of what it was sent since `limit` ago.
    pub(super) fn is_stuck(&self, now: Instant, limit: Duration) -> bool {
        let since = self.progressed_at.map(|at| now.saturating_duration_since(at));
        !self.window.is_empty() && since.is_some_and(|since| since > limit)
    }

    /// Frames that were sent and not acked.
    pub(super) fn unacked(&self) -> usize {
        self.window.len()
    }
}
