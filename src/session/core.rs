//! One session's decisions, without sockets: events and a time go in, bytes and a deadline come out.
//!
//! The transport's task owns the session; pushes from workers come through [`super::Registry`], which locks the core
//! for the few instructions an offer takes. Every queue here is bounded: the lanes together by
//! [`Limits::queue_frames`], datagrams by [`DATAGRAMS_QUEUED_MAX`], control frames by the client's own pace (one ping
//! is open at a time).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metrics::counter;
use tokio::time::Instant;

use super::lane::Lane;
use super::seen::Seen;
use super::Receipt;
use super::inbox::Cursor;
use crate::clock::Now;
use crate::protocol::frame::{Close, SessionLane};
use crate::protocol::{ClientFrame, CloseCode, Encoding, Notification, ServerFrame, codec};

/// Typing notices that may wait for the transport; beyond it the oldest goes, since only the latest matters.
const DATAGRAMS_QUEUED_MAX: usize = 32;

/// Bytes a lane may have written and not yet seen acked, in the order of [`SessionLane::ALL`].
/// Their sum plus one frame stays below the connection's send window, so no lane can starve another there.
const LANE_BUDGET_BYTES: [usize; 4] = [96 * 1024, 64 * 1024, 64 * 1024, 32 * 1024];

/// The numbers of a session.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Frames a lane may hold un-acked.
    pub window: usize,
    /// Notifications all lanes together may hold before they are written.
    pub queue_frames: usize,
    /// Time between pings; two without any client frame end the session.
    pub heartbeat: Duration,
    /// Time a full queue may go without one ack before the session ends.
    pub slow_after: Duration,
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
    acked_at: Instant,
    close_at: Option<Instant>,
    closing: Option<CloseCode>,
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
            acked_at: now.instant,
            close_at: None,
            closing: None,
        }
    }

    /// Opens the session: `frame` is the encoded welcome. Nothing else is written before it.
    pub fn welcome(&mut self, frame: Bytes) {
        self.welcomed = true;
        self.control.push_back(frame);
    }

    /// Queues what the device missed on lane `inbox`, in the order given. Ids that came live meanwhile are left out.
    pub fn replay(&mut self, notes: Vec<(Arc<Notification>, Cursor)>) {
        for (note, cursor) in notes {
            if self.seen.insert(&note.id) {
                self.lane(SessionLane::Inbox).push_replayed(note, cursor);
            }
        }
    }

    /// Offers a notification. `receipt` is made only for the copy that is taken.
    pub fn offer(
        &mut self,
        note: &Arc<Notification>,
        receipt: impl FnOnce() -> Option<Receipt>,
        now: Now,
    ) -> Offer {
        if self.closing.is_some() {
            return Offer::Gone;
        }
        if !self.seen.insert(&note.id) {
            self.reattach(note, receipt());
            return Offer::Accepted;
        }
        if note.event.ephemeral && self.datagrams {
            if let Some(datagram) = note.datagram(self.encoding) {
                self.queue_datagram(datagram);
                return Offer::Accepted;
            }
        }
        let lane = SessionLane::from(note.lane);
        if self.queued() >= self.limits.queue_frames && !self.make_room(lane) {
            self.seen.remove(&note.id);
            self.close_when_stuck(now);
            return if self.closing.is_some() { Offer::Gone } else { Offer::Full };
        }
        self.lane(lane).push(note.clone(), receipt());
        Offer::Accepted
    }

    /// A redelivery: the copy that is under way answers for it, and one that is gone was acked.
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

    /// Sheds one low notification for a more urgent one.
    fn make_room(&mut self, lane: SessionLane) -> bool {
        if lane == SessionLane::Low {
            return false;
        }
        let Some(shed) = self.lanes[SessionLane::Low.index()].as_mut().and_then(|low| low.shed()) else {
            return false;
        };
        self.seen.remove(&shed.id);
        counter!("fanfare_session_dropped_total", "reason" => "shed_low").increment(1);
        true
    }

    /// A full queue and no ack for long: the client does not keep up, and others should not wait for it.
    fn close_when_stuck(&mut self, now: Now) {
        if now.instant.saturating_duration_since(self.acked_at) > self.limits.slow_after {
            self.close(CloseCode::SlowConsumer, "the client does not read or ack what it is sent", 0);
        }
    }

    fn queued(&self) -> usize {
        self.lanes.iter().flatten().map(|lane| lane.queued()).sum()
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
            ClientFrame::Token { token } => return Some(Request::Token(token)),
            ClientFrame::Bye => self.close(CloseCode::Normal, "bye", 0),
            ClientFrame::Hello(_) => self.close(CloseCode::ProtocolError, "a second hello", 0),
        }
        None
    }

    fn on_ack(&mut self, lane: SessionLane, seq: u64, now: Now) {
        self.acked_at = now.instant;
        let known = match self.lanes[lane.index()].as_mut() {
            Some(lane) => lane.ack(seq).is_ok(),
            None => seq == 0,
        };
        if !known {
            let reason = format!("ack of {} {seq}, which was never sent", lane.as_str());
            self.close(CloseCode::ProtocolError, reason, 0);
        }
    }

    /// A fresh token was accepted.
    pub fn token_renewed(&mut self, token_expires_ms: u64) {
        self.token_expires_ms = token_expires_ms;
    }

    /// Asks the client to connect anew after `reconnect_after`; the session ends after `close_after`.
    pub fn goaway(&mut self, reason: &str, reconnect_after: Duration, close_after: Duration, now: Now) {
        if self.closing.is_some() || self.close_at.is_some() {
            return;
        }
        self.close_at = Some(now.instant + close_after);
        self.send(&ServerFrame::Goaway {
            reason: reason.to_owned(),
            reconnect_after_ms: reconnect_after.as_millis() as u64,
            close_after_ms: close_after.as_millis() as u64,
        });
    }

    /// Ends the session: the close frame is the last one. What waits or is un-acked is given up, and its receipts
    /// report the loss.
    pub fn close(&mut self, code: CloseCode, reason: impl Into<String>, retry_after_ms: u64) {
        if self.closing.is_some() {
            return;
        }
        self.send(&ServerFrame::Close(Close::new(code, reason, retry_after_ms)));
        self.closing = Some(code);
        self.lanes = [const { None }; 4];
        self.datagram_queue.clear();
    }

    /// The code the session ends with, once that is decided.
    pub fn closing(&self) -> Option<CloseCode> {
        self.closing
    }

    /// Does what is due at `now`: heartbeat, token, planned close. Gives the time of the next call.
    pub fn tick(&mut self, now: Now, cursor: impl FnOnce() -> String) -> Instant {
        if now.instant >= self.heard_at + self.limits.heartbeat * 2 {
            self.close(CloseCode::HeartbeatTimeout, "nothing heard for two heartbeats", 0);
        }
        if now.unix_ms >= self.token_expires_ms {
            self.close(CloseCode::TokenExpired, "the token has expired", 0);
        }
        if self.close_at.is_some_and(|at| now.instant >= at) {
            self.close(CloseCode::Draining, "the node is shutting down", 0);
        }
        if now.instant >= self.ping_at && self.closing.is_none() {
            self.ping_at = now.instant + self.limits.heartbeat;
            self.send(&ServerFrame::Ping { t: now.unix_ms, inbox: cursor() });
        }
        let token_in = Duration::from_millis(self.token_expires_ms.saturating_sub(now.unix_ms));
        let mut next = self.ping_at.min(self.heard_at + self.limits.heartbeat * 2).min(now.instant + token_in);
        if let Some(at) = self.close_at {
            next = next.min(at);
        }
        next
    }

    /// Takes what waits for the control stream.
    pub fn take_control(&mut self, out: &mut Vec<Bytes>) {
        out.extend(self.control.drain(..));
    }

    /// Takes the next datagram. None before the welcome.
    pub fn take_datagram(&mut self) -> Option<Bytes> {
        if self.welcomed { self.datagram_queue.pop_front() } else { None }
    }

    /// Takes the frames that `lane` may write now. Nothing before the welcome.
    pub fn take(&mut self, lane: SessionLane, now: Now, out: &mut Vec<Bytes>) {
        if !self.welcomed {
            return;
        }
        let Some(state) = self.lanes[lane.index()].as_mut() else { return };
        let limits = (self.limits.window, LANE_BUDGET_BYTES[lane.index()]);
        if state.unacked() == 0 {
            self.acked_at = now.instant;
        }
        for expired in state.take(limits, self.encoding, now.unix_ms, out) {
            self.seen.remove(&expired.id);
            counter!("fanfare_session_dropped_total", "reason" => "expired").increment(1);
        }
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
