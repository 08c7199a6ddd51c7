//! One session's decisions, without sockets: events and a time go in, bytes and a deadline come out.
//!
//! The transport's task owns the session; pushes from workers come through [`super::Registry`], which locks the core
//! while it offers and writes. Every queue here is bounded: the lanes together by
//! [`Limits::queue_frames`], datagrams by `DATAGRAMS_QUEUED_MAX`, control frames by the client's own pace (one ping
//! is open at a time).

mod ending;
mod known;
mod leaving;
mod missed;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metrics::counter;
use tokio::time::Instant;

use super::inbox::{self, Cursor, Missed};
use super::lane::Lane;
use super::seen::Seen;
use super::{Receipt, Recipient, Undelivered};
use crate::catalog::Inbox;
use crate::clock::Now;
use crate::protocol::frame::{Close, SessionLane};
use crate::protocol::{ClientFrame, CloseCode, Encoding, Notification, ServerFrame, codec};
use ending::Ending;
use leaving::Leaving;
pub use leaving::Rotation;

/// Typing notices that may wait for the transport; beyond it the oldest goes, since only the latest matters.
const DATAGRAMS_QUEUED_MAX: usize = 32;

/// Bytes a lane may have written and not yet seen acked, in the order of [`SessionLane::ALL`].
/// Their sum plus one frame stays below the connection's send window, so no lane can starve another there.
const LANE_BUDGET_BYTES: [usize; 4] = [96 * 1024, 64 * 1024, 64 * 1024, 32 * 1024];

/// Payload bytes that all lanes of a session may hold before they are written. Eight of the largest notifications, and
/// 200 MB when 100 sessions of a node are stuck.
const QUEUE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Notifications of lane high that are queued although [`Limits::queue_frames`] is reached: a queue that ordinary
/// messages fill must not turn a call away, and they cannot be shed. 64 urgent ones are more than a person gets while
/// a slow link carries one window.
const HIGH_RESERVE_FRAMES: usize = 64;

/// Shortest time between two tokens of a client, since each costs a signature check.
const TOKEN_INTERVAL: Duration = Duration::from_secs(1);

/// The numbers of a session.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Frames a lane may hold un-acked.
    pub window: usize,
    /// Notifications all lanes together may hold before they are written; lane high has a reserve beyond it.
    pub queue_frames: usize,
    /// Time between pings; two without any client frame end the session.
    pub heartbeat: Duration,
    /// Time a full queue may go without one ack before the session ends.
    pub slow_after: Duration,
    /// When the session is replaced by a fresh one.
    pub rotation: Rotation,
}

/// What became of one offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// Queued, or known to this session already.
    Accepted,
    /// No room.
    Full,
    /// The session is ending.
    Gone,
}

impl Drop for Core {
    fn drop(&mut self) {
        self.give_up();
        if !self.undelivered.is_empty() {
            let lost = self.undelivered.len() as u64;
            counter!("fanfare_session_dropped_total", "reason" => "session_ended").increment(lost);
        }
    }
}

/// What the session asks of its driver after a client frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Check this token and report with [`Core::token_renewed`] or [`Core::close`].
    Token(String),
}

/// One session's state.
#[derive(Debug)]
pub struct Core {
    limits: Limits,
    encoding: Encoding,
    datagrams: bool,
    lanes: [Option<Box<Lane>>; 4],
    seen: Seen,
    control: VecDeque<Bytes>,
    datagram_queue: VecDeque<Bytes>,
    welcomed: bool,
    heard_at: Instant,
    ping_at: Instant,
    token_expires_ms: u64,
    token_at: Option<Instant>,
    token_issued_ms: u64,
    inbox: inbox::State,
    leaving: Option<Leaving>,
    rotate_at: Option<Instant>,
    /// Bytes of notifications that were taken for writing.
    sent_bytes: u64,
    ending: Option<Ending>,
    closing: Option<CloseCode>,
    /// Pings sent: what was taken between two of them is of one era.
    era: u32,
    /// What the session shed, or held when it ended: for others to deliver.
    undelivered: Vec<Undelivered>,
}

impl Core {
    /// A session whose hello was accepted at `now`.
    pub fn new(limits: Limits, encoding: Encoding, datagrams: bool, token_expires_ms: u64, now: Now) -> Self {
        Self {
            limits,
            encoding,
            datagrams,
            lanes: [const { None }; 4],
            seen: Seen::default(),
            control: VecDeque::new(),
            datagram_queue: VecDeque::new(),
            welcomed: false,
            heard_at: now.instant,
            ping_at: now.instant + limits.heartbeat,
            token_expires_ms,
            token_at: None,
            token_issued_ms: 0,
            inbox: inbox::State::default(),
            leaving: None,
            rotate_at: limits.rotation.after.map(|after| now.instant + after),
            sent_bytes: 0,
            ending: None,
            closing: None,
            era: 0,
            undelivered: Vec::new(),
        }
    }

    /// Opens the session: `frame` is the encoded welcome, `cursor` the one in it, and `missed` what the inbox had.
    /// Nothing is written before it; a session that was closed meanwhile is not opened.
    pub fn welcome(&mut self, frame: Bytes, cursor: Cursor, missed: Missed) {
        if self.closing.is_some() {
            return;
        }
        self.welcomed = true;
        self.control.push_front(frame);
        self.inbox.safe = Some(missed.held.unwrap_or(cursor));
        self.inbox.read_to = cursor.sequence;
        if let (None, Some(held)) = (missed.cursor, missed.held) {
            // It could not be read, and is read again from there.
            self.inbox.read_to = held.sequence;
            self.inbox.record = held.sequence + 1;
        }
        self.replay(missed);
    }

    /// Offers a notification that is for `recipient`. `receipt` is made only for the copy that is taken.
    pub fn offer(
        &mut self,
        note: &Arc<Notification>,
        recipient: &Recipient,
        receipt: impl FnOnce() -> Option<Receipt>,
        now: Now,
    ) -> Offer {
        if self.closing.is_some() {
            return Offer::Gone;
        }
        self.inbox.offered_ms = self.inbox.offered_ms.max(now.unix_ms);
        if !self.seen.insert(&note.id) {
            self.reattach(note, receipt());
            return Offer::Accepted;
        }
        if self.is_superfluous(note) || self.comes_late(note) {
            receipt().into_iter().for_each(Receipt::acked);
            return Offer::Accepted;
        }
        self.replace(note);
        if note.event.ephemeral
            && self.datagrams
            && let Some(datagram) = note.datagram(self.encoding)
        {
            self.queue_datagram(datagram);
            return Offer::Accepted;
        }
        let lane = SessionLane::from(note.lane);
        let reserve = if lane == SessionLane::High { HIGH_RESERVE_FRAMES } else { 0 };
        let bytes = note.payload.json().len();
        if !self.has_room(0, bytes) && !self.make_room(lane) && !self.has_room(reserve, bytes) {
            self.forget(note);
            self.note_refused(note);
            self.close_when_stuck(now);
            return if self.closing.is_some() { Offer::Gone } else { Offer::Full };
        }
        // A shaped one may have waited in its window since before the last ping, and was in the inbox by then.
        let era = self.era.saturating_sub(u32::from(note.event.shape.is_some()));
        self.lane(lane).push(note.clone(), recipient.clone(), era, receipt());
        Offer::Accepted
    }

    /// A redelivery: the copy that is under way answers for it, too, and one that is gone was acked.
    fn reattach(&mut self, note: &Arc<Notification>, receipt: Option<Receipt>) {
        let Some(receipt) = receipt else { return };
        let mut open = Some(receipt);
        for lane in self.lanes.iter_mut().flatten() {
            if let Some(receipt) = open.take() {
                open = lane.attach(&note.id, receipt).err();
            }
        }
        if let Some(receipt) = open {
            receipt.acked();
        }
    }

    fn queue_datagram(&mut self, datagram: Bytes) {
        if self.datagram_queue.len() == DATAGRAMS_QUEUED_MAX {
            self.datagram_queue.pop_front();
            counter!("fanfare_session_dropped_total", "reason" => "datagram_queue_full").increment(1);
        }
        self.datagram_queue.push_back(datagram);
    }

    /// True when the session takes one more, of so many bytes, with so many places beyond the bound. A notification
    /// larger than the bound is taken when nothing else waits.
    fn has_room(&self, reserve: usize, bytes: usize) -> bool {
        let lanes = || self.lanes.iter().flatten();
        let frames: usize = lanes().map(|lane| lane.queued()).sum();
        let waiting: usize = lanes().map(|lane| lane.queued_bytes()).sum();
        let bytes_max = if reserve > 0 { 2 * QUEUE_BYTES_MAX } else { QUEUE_BYTES_MAX };
        frames < self.limits.queue_frames + reserve && (waiting == 0 || waiting + bytes <= bytes_max)
    }

    /// Sheds one low notification for a more urgent one.
    fn make_room(&mut self, lane: SessionLane) -> bool {
        if lane == SessionLane::Low {
            return false;
        }
        let Some((shed, recipient)) =
            self.lanes[SessionLane::Low.index()].as_mut().and_then(|low| low.shed())
        else {
            return false;
        };
        self.forget(&shed);
        self.note_refused(&shed);
        if let Some(recipient) = recipient.filter(|_| shed.policy.inbox == Inbox::Missed) {
            self.undelivered.push(Undelivered { note: shed, recipient });
        }
        counter!("fanfare_session_dropped_total", "reason" => "shed_low").increment(1);
        true
    }

    /// A full queue and no ack for long: the client does not keep up, and others should not wait for it.
    fn close_when_stuck(&mut self, now: Now) {
        let stuck = |lane: &Lane| lane.is_stuck(now.instant, self.limits.slow_after);
        if self.lanes.iter().flatten().any(|lane| stuck(lane)) {
            self.close(CloseCode::SlowConsumer, "the client does not read or ack what it is sent", 0);
        }
    }

    fn lane(&mut self, lane: SessionLane) -> &mut Lane {
        self.lanes[lane.index()].get_or_insert_default()
    }

    /// Handles one client frame. A violation starts the close.
    pub fn on_frame(&mut self, body: &[u8], now: Now) -> Option<Request> {
        self.heard_at = now.instant;
        let frame = match codec::decode::<ClientFrame>(self.encoding, body) {
            Ok(frame) => frame,
            Err(error) => {
                self.close(CloseCode::ProtocolError, error.to_string(), 0);
                return None;
            }
        };
        match frame {
            ClientFrame::Ack { lane, seq } => self.on_ack(lane, seq, now),
            ClientFrame::Pong { .. } => {}
            ClientFrame::Token { token } => return self.on_token(token, now),
            ClientFrame::Bye => self.close(CloseCode::Normal, "bye", 0),
            ClientFrame::Hello(_) => self.close(CloseCode::ProtocolError, "a second hello", 0),
        }
        None
    }

    fn on_ack(&mut self, lane: SessionLane, seq: u64, now: Now) {
        let known = match self.lanes[lane.index()].as_mut() {
            Some(lane) => lane.ack(seq, now.instant).is_ok(),
            None => seq == 0,
        };
        if !known {
            let reason = format!("ack of {} {seq}, which was never sent", lane.as_str());
            self.close(CloseCode::ProtocolError, reason, 0);
        }
        self.end_when_told();
    }

    fn on_token(&mut self, token: String, now: Now) -> Option<Request> {
        let too_soon = self.token_at.is_some_and(|at| now.instant < at + TOKEN_INTERVAL);
        self.token_at = Some(now.instant);
        if too_soon {
            self.close(CloseCode::ProtocolError, "tokens come too often", 0);
            return None;
        }
        Some(Request::Token(token))
    }

    /// A fresh token was accepted. It ends a logout that was about to happen to the one before.
    pub fn token_renewed(&mut self, token_expires_ms: u64) {
        self.token_expires_ms = token_expires_ms;
        self.ending.take_if(|ending| ending.code == CloseCode::LoggedOut);
    }

    /// Ends the session: the close frame is the last one. What waits or is un-acked is given up, and its receipts
    /// report the loss.
    pub fn close(&mut self, code: CloseCode, reason: impl Into<String>, retry_after_ms: u64) {
        if self.closing.is_some() {
            return;
        }
        if !self.welcomed {
            // The first frame a client reads is JSON, and here it is the only one.
            self.control.clear();
            self.encoding = Encoding::Json;
        }
        self.send(&ServerFrame::Close(Close::new(code, reason, retry_after_ms)));
        self.closing = Some(code);
        self.give_up();
    }

    /// Takes what the session shed and the inbox should have.
    pub fn take_shed(&mut self) -> Vec<Undelivered> {
        std::mem::take(&mut self.undelivered)
    }

    /// Takes what the session held when it ended and what others may still deliver.
    pub fn take_undelivered(&mut self) -> Vec<Undelivered> {
        self.give_up();
        std::mem::take(&mut self.undelivered)
    }

    /// Empties the lanes: what came live and was not acked is for others to deliver, unless a worker waits for its ack
    /// or the inbox has it, which the client's cursor has not passed.
    fn give_up(&mut self) {
        let lanes = std::mem::take(&mut self.lanes);
        let sum =
            |count: fn(&Lane) -> usize| lanes.iter().flatten().map(|lane| count(lane) as u64).sum::<u64>();
        let unacked = sum(Lane::unacked);
        if unacked > 0 {
            counter!("fanfare_session_unacked_at_end_total").increment(unacked);
        }
        let live = lanes.into_iter().flatten().flat_map(|lane| lane.into_live());
        let live = live.filter(|(note, _)| {
            !note.require_ack && !note.event.ephemeral && note.policy.inbox != Inbox::Always
        });
        self.undelivered.extend(live.map(|(note, recipient)| Undelivered { note, recipient }));
        self.datagram_queue.clear();
    }

    /// The code the session ends with, once that is decided.
    pub fn closing(&self) -> Option<CloseCode> {
        self.closing
    }

    /// True when the session's task has something to do after an offer that no time in [`Self::tick`] tells: an end,
    /// something shed, a read of the inbox, a rotation.
    pub fn is_due(&self) -> bool {
        self.closing.is_some()
            || !self.undelivered.is_empty()
            || (self.inbox.is_behind() && self.inbox.retry_at.is_none() && !self.replaying())
            || self.has_carried_much()
    }

    /// Does what is due at `now`: heartbeat, token, planned close. Gives the time of the next call.
    /// `cursor` is where the inbox stands.
    pub fn tick(&mut self, now: Now, cursor: impl FnOnce() -> Cursor) -> Instant {
        if now.instant >= self.heard_at + self.limits.heartbeat * 2 {
            self.close(CloseCode::HeartbeatTimeout, "nothing heard for two heartbeats", 0);
        }
        if now.unix_ms >= self.token_expires_ms {
            self.close(CloseCode::TokenExpired, "the token has expired", 0);
        }
        self.leave_when_due(now);
        if let Some(ending) = self.ending.take_if(|ending| now.instant >= ending.deadline) {
            self.close(ending.code, ending.reason, 0);
        }
        if now.instant >= self.ping_at && self.closing.is_none() {
            self.ping_at = now.instant + self.limits.heartbeat;
            self.era += 1;
            let behind = self.replaying() || self.inbox.is_behind();
            let lanes = &self.lanes;
            let held = |era| lanes.iter().flatten().any(|lane| lane.holds_inboxed(era));
            let cursor = self.inbox.advance(self.era, held, || (!behind).then(cursor));
            self.send(&ServerFrame::Ping { t: now.unix_ms, inbox: cursor.to_string() });
        }
        let token_in = Duration::from_millis(self.token_expires_ms.saturating_sub(now.unix_ms));
        let mut next =
            self.ping_at.min(self.heard_at + self.limits.heartbeat * 2).min(now.instant + token_in);
        for at in self.leaves_at().into_iter().chain(self.ending.as_ref().map(|ending| ending.deadline)) {
            next = next.min(at);
        }
        // While something of it waits it is not read anyway, and the ack of that wakes the task.
        if let Some(at) = self.inbox.retry_at.filter(|_| self.inbox.is_behind() && !self.replaying()) {
            next = next.min(at);
        }
        next
    }

    /// Takes what waits for the control stream.
    pub fn take_control(&mut self, out: &mut Vec<Bytes>) {
        out.extend(self.control.drain(..));
    }

    /// True when datagrams wait.
    pub fn has_datagrams(&self) -> bool {
        !self.datagram_queue.is_empty()
    }

    /// Takes the datagrams that wait. None before the welcome.
    pub fn take_datagrams(&mut self, out: &mut Vec<Bytes>) {
        if self.welcomed {
            self.sent_bytes += self.datagram_queue.iter().map(|datagram| datagram.len() as u64).sum::<u64>();
            out.extend(self.datagram_queue.drain(..));
        }
    }

    /// Takes the frames that `lane` may write now. Nothing before the welcome.
    pub fn take(&mut self, lane: SessionLane, now: Now, out: &mut Vec<Bytes>) {
        if !self.welcomed {
            return;
        }
        let Some(state) = self.lanes[lane.index()].as_mut() else { return };
        let limits = (self.limits.window, LANE_BUDGET_BYTES[lane.index()]);
        let before = out.len();
        for expired in state.take(limits, self.encoding, now, out) {
            self.forget(&expired);
            counter!("fanfare_session_dropped_total", "reason" => "expired").increment(1);
        }
        self.sent_bytes += out[before..].iter().map(|frame| frame.len() as u64).sum::<u64>();
    }

    /// True when something waits on `lane`.
    pub fn has_queued(&self, lane: SessionLane) -> bool {
        self.lanes[lane.index()].as_ref().is_some_and(|lane| lane.queued() > 0)
    }

    /// The header of `lane`, the first frame of its stream.
    pub fn lane_header(&self, lane: SessionLane) -> Bytes {
        self.encode(&ServerFrame::Lane { lane })
    }

    fn send(&mut self, frame: &ServerFrame) {
        let frame = self.encode(frame);
        self.control.push_back(frame);
    }

    fn encode(&self, frame: &ServerFrame) -> Bytes {
        codec::frame(self.encoding, frame).expect("frames of texts and numbers have both encodings")
    }
}
