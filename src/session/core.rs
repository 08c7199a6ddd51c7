//! One session's decisions, without sockets: events and a time go in, bytes and a deadline come out.
//!
//! The transport's task owns the session; pushes from workers come through [`super::Registry`], which locks the core
//! for the few instructions an offer takes. Every queue here is bounded: the lanes together by
//! [`Limits::queue_frames`], datagrams by `DATAGRAMS_QUEUED_MAX`, control frames by the client's own pace (one ping
//! is open at a time).

mod ending;
mod known;
mod leaving;
mod missed;

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
        let bytes = note.payload_json.len();
        if !self.has_room(0, bytes) && !self.make_room(lane, now) && !self.has_room(reserve, bytes) {
            self.forget(note);
            self.note_refused(note, now);
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
    fn make_room(&mut self, lane: SessionLane, now: Now) -> bool {
        if lane == SessionLane::Low {
            return false;
        }
        let Some((shed, recipient)) =
            self.lanes[SessionLane::Low.index()].as_mut().and_then(|low| low.shed())
        else {
            return false;
        };
        self.forget(&shed);
        self.note_refused(&shed, now);
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
        if let Some(at) = self.inbox.retry_at {
            next = next.min(at);
        }
        next
    }

    /// Takes what waits for the control stream.
    pub fn take_control(&mut self, out: &mut Vec<Bytes>) {
        out.extend(self.control.drain(..));
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

#[cfg(test)]
mod tests {
    use super::super::{AckEvent, Receipts};
    use super::*;
    use crate::catalog::Catalog;
    use crate::id::{DeviceId, UserId};
    use crate::protocol::notification::Policy;

    fn recipient() -> Recipient {
        Recipient::online(UserId::new("u").unwrap())
    }

    fn limits() -> Limits {
        Limits {
            window: 4,
            queue_frames: 8,
            heartbeat: Duration::from_secs(25),
            slow_after: Duration::from_secs(30),
            rotation: Rotation::new(0, Duration::ZERO),
        }
    }

    fn now() -> Now {
        Now { instant: Instant::now(), unix_ms: 1_000_000 }
    }

    fn later(now: Now, by: Duration) -> Now {
        Now { instant: now.instant + by, unix_ms: now.unix_ms + by.as_millis() as u64 }
    }

    fn core(now: Now) -> Core {
        let mut core = Core::new(limits(), Encoding::Json, true, now.unix_ms + 3_600_000, now);
        open(&mut core);
        core
    }

    fn open(core: &mut Core) {
        core.welcome(Bytes::from_static(b"welcome"), no_inbox(), Missed::default());
    }

    fn no_inbox() -> Cursor {
        Cursor { epoch: 1, sequence: 9, unix_s: 1 }
    }

    fn note(event: &str, id: &str, payload_bytes: usize) -> Arc<Notification> {
        let event = Catalog::built_in().unwrap().get(event).unwrap().clone();
        let payload = serde_json::json!({ "text": "x".repeat(payload_bytes) });
        Arc::new(Notification {
            id: id.into(),
            lane: event.lane,
            require_ack: event.ack,
            large_set: false,
            policy: Policy { inbox: event.inbox, ..Policy::default() },
            event,
            timestamp: 1_000,
            published_at_ms: 1_000_000,
            expires_at_ms: 2_000_000,
            stream_seq: 1,
            from_user_id: None,
            payload_json: payload.to_string().into(),
            payload: payload.as_object().unwrap().clone(),
            frames: crate::protocol::notification::Frames::default(),
        })
    }

    fn offer(core: &mut Core, event: &str, id: &str, now: Now) -> Offer {
        core.offer(&note(event, id, 10), &recipient(), || None, now)
    }

    fn taken(core: &mut Core, lane: SessionLane, now: Now) -> Vec<String> {
        let mut out = Vec::new();
        core.take(lane, now, &mut out);
        let ids = out.iter().map(|frame| {
            let body: serde_json::Value = serde_json::from_slice(&frame[4..]).unwrap();
            body["data"]["notification_id"].as_str().unwrap().to_owned()
        });
        ids.collect()
    }

    fn closes(core: &mut Core) -> Option<u32> {
        let mut out = Vec::new();
        core.take_control(&mut out);
        let last: serde_json::Value = serde_json::from_slice(out.last()?.get(4..)?).ok()?;
        (last["type"] == "close").then(|| last["code"].as_u64().unwrap() as u32)
    }

    #[test]
    fn higher_rank_overtakes_what_waits() {
        let now = now();
        let mut core = core(now);
        offer(&mut core, "friend.request", "later", now);
        offer(&mut core, "livekit.call_invite", "first", now);
        assert_eq!(taken(&mut core, SessionLane::High, now), ["first", "later"]);
    }

    #[test]
    fn nothing_leaves_before_the_welcome() {
        let now = now();
        let mut core = Core::new(limits(), Encoding::Json, true, u64::MAX, now);
        assert_eq!(offer(&mut core, "message.new", "a", now), Offer::Accepted);
        assert_eq!(offer(&mut core, "message.typing", "b", now), Offer::Accepted);
        assert!(taken(&mut core, SessionLane::Normal, now).is_empty());
        let mut datagrams = Vec::new();
        core.take_datagrams(&mut datagrams);
        assert_eq!(datagrams.len(), 0);
        open(&mut core);
        assert_eq!(taken(&mut core, SessionLane::Normal, now), ["a"]);
        core.take_datagrams(&mut datagrams);
        assert_eq!(datagrams.len(), 1);
    }

    #[test]
    fn window_holds_until_the_client_acks() {
        let now = now();
        let mut core = core(now);
        for id in ["1", "2", "3", "4", "5", "6"] {
            offer(&mut core, "message.new", id, now);
        }
        assert_eq!(taken(&mut core, SessionLane::Normal, now), ["1", "2", "3", "4"]);
        assert!(taken(&mut core, SessionLane::Normal, now).is_empty());
        core.on_frame(br#"{"type":"ack","lane":"normal","seq":1}"#, now);
        assert_eq!(taken(&mut core, SessionLane::Normal, now), ["5"]);
    }

    #[test]
    fn byte_budget_holds_but_one_large_frame_may_pass() {
        let now = now();
        let mut core = core(now);
        core.offer(&note("message.new", "large", 200_000), &recipient(), || None, now);
        core.offer(&note("message.new", "small", 10), &recipient(), || None, now);
        assert_eq!(taken(&mut core, SessionLane::Normal, now), ["large"]);
        assert!(taken(&mut core, SessionLane::Normal, now).is_empty());
        core.on_frame(br#"{"type":"ack","lane":"normal","seq":1}"#, now);
        assert_eq!(taken(&mut core, SessionLane::Normal, now), ["small"]);
    }

    #[test]
    fn ack_of_what_was_never_sent_is_a_violation() {
        let now = now();
        for ack in [r#"{"type":"ack","lane":"high","seq":1}"#, r#"{"type":"ack","lane":"normal","seq":2}"#] {
            let mut core = core(now);
            offer(&mut core, "message.new", "a", now);
            taken(&mut core, SessionLane::Normal, now);
            core.on_frame(ack.as_bytes(), now);
            assert_eq!(closes(&mut core), Some(3500), "{ack}");
        }
    }

    #[test]
    fn receipts_report_the_ack_or_the_loss_and_a_repeat_is_shown_once() {
        let now = now();
        let mut core = core(now);
        let (user, device) = (UserId::new("u").unwrap(), DeviceId::new("d").unwrap());
        let (receipts, mut events) = Receipts::new();
        let note = note("friend.request", "a", 10);
        let receipt = || Some(receipts.receipt(&user, &device));
        let acked = AckEvent::Acked(user.clone(), device.clone());

        core.offer(&note, &recipient(), receipt, now);
        assert_eq!(taken(&mut core, SessionLane::High, now), ["a"]);
        core.on_frame(br#"{"type":"ack","lane":"high","seq":1}"#, now);
        assert_eq!(events.try_recv().unwrap(), acked);

        // The worker crashed before it heard: the redelivery is acked without a second frame.
        assert_eq!(core.offer(&note, &recipient(), receipt, now), Offer::Accepted);
        assert!(taken(&mut core, SessionLane::High, now).is_empty());
        assert_eq!(events.try_recv().unwrap(), acked);

        core.offer(&super::tests::note("friend.request", "b", 10), &recipient(), receipt, now);
        core.close(CloseCode::Normal, "", 0);
        assert_eq!(events.try_recv().unwrap(), AckEvent::Lost(user.clone()));
    }

    #[test]
    fn one_ack_answers_for_a_delivery_and_its_redeliveries() {
        let now = now();
        let mut core = core(now);
        let (user, device) = (UserId::new("u").unwrap(), DeviceId::new("d").unwrap());
        let note = note("friend.request", "a", 10);
        let (first, mut first_events) = Receipts::new();
        let (second, mut second_events) = Receipts::new();

        core.offer(&note, &recipient(), || Some(first.receipt(&user, &device)), now);
        assert_eq!(taken(&mut core, SessionLane::High, now), ["a"]);
        core.offer(&note, &recipient(), || Some(second.receipt(&user, &device)), now);
        assert!(
            first_events.try_recv().is_err(),
            "the first is not lost: its copy is the one that will be acked"
        );
        core.on_frame(br#"{"type":"ack","lane":"high","seq":1}"#, now);

        let acked = AckEvent::Acked(user.clone(), device.clone());
        assert_eq!(first_events.try_recv().unwrap(), acked);
        assert_eq!(second_events.try_recv().unwrap(), acked);
    }

    #[test]
    fn full_session_sheds_low_for_others_then_refuses_then_closes() {
        let now = now();
        let mut core = core(now);
        for id in 0..8 {
            assert_eq!(offer(&mut core, "file.processing", &format!("low{id}"), now), Offer::Accepted);
        }
        assert_eq!(offer(&mut core, "file.processing", "low8", now), Offer::Full);
        for id in 0..8 {
            assert_eq!(offer(&mut core, "message.new", &format!("n{id}"), now), Offer::Accepted);
        }
        assert_eq!(offer(&mut core, "message.new", "n8", now), Offer::Full);
        taken(&mut core, SessionLane::Normal, now);
        let late = later(now, limits().slow_after + Duration::from_secs(1));
        for id in 0..4 {
            assert_eq!(offer(&mut core, "message.new", &format!("m{id}"), late), Offer::Accepted);
        }
        assert_eq!(offer(&mut core, "message.new", "n9", late), Offer::Gone);
        assert_eq!(closes(&mut core), Some(3002));
    }

    #[test]
    fn a_lane_nobody_acks_is_stuck_although_another_is_acked() {
        let start = now();
        let mut core = core(start);
        for id in 0..6 {
            offer(&mut core, "message.new", &format!("n{id}"), start);
        }
        taken(&mut core, SessionLane::Normal, start);
        let mut at = start;
        for beat in 1..=7 {
            at = later(at, Duration::from_secs(5));
            offer(&mut core, "livekit.call_status", &format!("h{beat}"), at);
            taken(&mut core, SessionLane::High, at);
            core.on_frame(format!(r#"{{"type":"ack","lane":"high","seq":{beat}}}"#).as_bytes(), at);
        }
        for id in 6..20 {
            offer(&mut core, "message.new", &format!("n{id}"), at);
        }
        assert_eq!(closes(&mut core), Some(3002));
    }

    #[test]
    fn a_call_finds_room_where_ordinary_messages_do_not() {
        let now = now();
        let mut core = core(now);
        for id in 0..8 {
            assert_eq!(offer(&mut core, "message.new", &format!("n{id}"), now), Offer::Accepted);
        }
        assert_eq!(offer(&mut core, "message.new", "n8", now), Offer::Full);
        for id in 0..HIGH_RESERVE_FRAMES {
            assert_eq!(offer(&mut core, "livekit.call_invite", &format!("h{id}"), now), Offer::Accepted);
        }
        assert_eq!(offer(&mut core, "livekit.call_invite", "one too many", now), Offer::Full);
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_too() {
        let now = now();
        let mut core = core(now);
        let large = |id: &str| note("message.new", id, QUEUE_BYTES_MAX / 2);
        assert_eq!(
            core.offer(&note("message.new", "a", 2 * QUEUE_BYTES_MAX), &recipient(), || None, now),
            Offer::Accepted
        );
        assert_eq!(core.offer(&large("b"), &recipient(), || None, now), Offer::Full);
        taken(&mut core, SessionLane::Normal, now);
        assert_eq!(
            core.offer(&large("b"), &recipient(), || None, now),
            Offer::Accepted,
            "what was sent waits no more"
        );
    }

    #[test]
    fn what_was_refused_is_read_from_the_inbox_and_what_was_taken_is_not() {
        let now = now();
        let mut core = core(now);
        offer(&mut core, "friend.remark_updated", "taken", now);
        core.inbox_record(10, Some(now.unix_ms));
        assert_eq!(core.take_inbox_read(now), None);
        for id in 0..7 {
            offer(&mut core, "message.new", &format!("n{id}"), now);
        }
        assert_eq!(offer(&mut core, "friend.remark_updated", "refused", now), Offer::Full);
        assert_eq!(core.take_inbox_read(now), Some(cursor_at(9)), "its record may be announced already");
        core.inbox_read(Missed { cursor: Some(cursor_at(10)), ..Missed::default() }, now);
        core.inbox_record(11, Some(now.unix_ms));
        assert_eq!(core.take_inbox_read(now), Some(cursor_at(10)), "or be announced later");
    }

    #[test]
    fn what_is_shed_goes_to_the_inbox_when_its_row_keeps_it() {
        let now = now();
        let mut core = core(now);
        let low = |event, id| {
            let mut note = note(event, id, 10);
            Arc::get_mut(&mut note).unwrap().lane = crate::catalog::Lane::Low;
            note
        };
        for (event, id) in
            [("session.pin_updated", "always"), ("message.new", "missed"), ("file.processing", "no")]
        {
            core.offer(&low(event, id), &recipient(), || None, now);
        }
        core.inbox_record(10, Some(now.unix_ms));
        assert_eq!(core.take_inbox_read(now), None, "it took them");
        for id in 0..8 {
            assert_eq!(offer(&mut core, "message.new", &format!("n{id}"), now), Offer::Accepted);
        }
        let shed: Vec<_> = core.take_shed().iter().map(|shed| shed.note.id.to_string()).collect();
        assert_eq!(shed, ["missed"]);
        assert_eq!(core.take_inbox_read(now), Some(cursor_at(9)));
    }

    #[test]
    fn a_replayed_frame_has_no_cursor_beyond_what_came_live_and_is_not_acked() {
        let now = now();
        let mut core = core(now);
        offer(&mut core, "friend.remark_updated", "live", now);
        core.inbox_record(12, None);
        let notes = vec![(note("message.new", "a", 10), cursor_at(12))];
        core.inbox_read(Missed { notes, cursor: Some(cursor_at(12)), ..Missed::default() }, now);
        let mut out = Vec::new();
        core.take(SessionLane::Inbox, now, &mut out);
        let frame: serde_json::Value = serde_json::from_slice(&out[0][4..]).unwrap();
        assert_eq!(frame["inbox"], "1-9-1");
    }

    #[test]
    fn the_rest_of_a_large_inbox_is_read_when_the_first_part_is_acked() {
        let now = now();
        let mut core = Core::new(limits(), Encoding::Json, true, u64::MAX, now);
        let notes = vec![(note("message.new", "a", 10), cursor_at(5))];
        let missed = Missed {
            notes,
            more: true,
            cursor: Some(cursor_at(5)),
            held: Some(cursor_at(2)),
            ..Missed::default()
        };
        core.welcome(Bytes::from_static(b"welcome"), cursor_at(5), missed);
        assert_eq!(core.take_inbox_read(now), None);
        assert_eq!(taken(&mut core, SessionLane::Inbox, now), ["a"]);
        core.on_frame(br#"{"type":"ack","lane":"inbox","seq":1}"#, now);
        assert_eq!(core.take_inbox_read(now), Some(cursor_at(5)));
    }

    #[test]
    fn tokens_may_not_come_in_a_row() {
        let now = now();
        let mut core = core(now);
        let token = br#"{"type":"token","token":"t"}"#;
        assert_eq!(core.on_frame(token, now), Some(Request::Token("t".to_owned())));
        assert!(core.on_frame(token, later(now, TOKEN_INTERVAL)).is_some());
        assert_eq!(core.on_frame(token, later(now, TOKEN_INTERVAL)), None);
        assert_eq!(closes(&mut core), Some(3500));
    }

    #[test]
    fn expired_while_waiting_is_not_sent() {
        let now = now();
        let mut core = core(now);
        offer(&mut core, "message.new", "a", now);
        assert!(taken(&mut core, SessionLane::Normal, later(now, Duration::from_secs(1_000))).is_empty());
    }

    #[test]
    fn silence_for_two_heartbeats_ends_the_session_and_any_frame_counts_as_life() {
        let start = now();
        let mut core = core(start);
        let mut at = start;
        for _ in 0..4 {
            at = later(at, limits().heartbeat);
            core.tick(at, no_inbox);
            core.on_frame(br#"{"type":"pong","t":1}"#, at);
        }
        assert_eq!(core.closing(), None);
        core.tick(later(at, limits().heartbeat * 2), no_inbox);
        assert_eq!(closes(&mut core), Some(3003));
    }

    fn cursor_at(sequence: u64) -> Cursor {
        Cursor { epoch: 1, sequence, unix_s: 1 }
    }

    /// The cursors of the pings of so many heartbeats, with everything on lane inbox acked up to `acked[beat]`.
    fn pinged(core: &mut Core, start: Now, acked: &[u64]) -> Vec<String> {
        let mut pings = Vec::new();
        for (beat, seq) in acked.iter().enumerate() {
            let now = later(start, limits().heartbeat * (beat as u32 + 1));
            core.take(SessionLane::Inbox, now, &mut Vec::new());
            core.on_frame(format!(r#"{{"type":"ack","lane":"inbox","seq":{seq}}}"#).as_bytes(), now);
            core.tick(now, no_inbox);
            core.take_control(&mut pings);
        }
        let cursor = |frame: &Bytes| {
            let ping: serde_json::Value = serde_json::from_slice(frame.get(4..)?).ok()?;
            Some(ping["inbox"].as_str()?.to_owned())
        };
        pings.iter().filter_map(cursor).collect()
    }

    #[test]
    fn pings_hold_the_cursor_back_until_the_replay_is_acked() {
        let start = now();
        let mut core = Core::new(limits(), Encoding::Json, true, u64::MAX, start);
        let notes = vec![(note("message.new", "a", 10), cursor_at(5))];
        let missed =
            Missed { notes, cursor: Some(cursor_at(5)), held: Some(cursor_at(4)), ..Missed::default() };
        core.welcome(Bytes::from_static(b"welcome"), cursor_at(5), missed);
        assert_eq!(pinged(&mut core, start, &[0, 1, 1]), ["1-4-1", "1-4-1", "1-9-1"]);
    }

    #[test]
    fn a_cursor_passes_what_came_live_and_is_inboxed_only_when_it_was_acked() {
        let start = now();
        let mut core = Core::new(limits(), Encoding::Json, true, u64::MAX, start);
        core.welcome(Bytes::from_static(b"welcome"), cursor_at(4), Missed::default());
        let mut kept = note("friend.remark_updated", "a", 10);
        Arc::get_mut(&mut kept).unwrap().policy.inbox = Inbox::Always;
        core.offer(&kept, &recipient(), || None, start);
        assert_eq!(taken(&mut core, SessionLane::Normal, start), ["a"]);
        assert_eq!(pinged(&mut core, start, &[0, 0, 0]), ["1-4-1", "1-4-1", "1-4-1"], "not acked");
        core.on_frame(br#"{"type":"ack","lane":"normal","seq":1}"#, start);
        assert_eq!(pinged(&mut core, later(start, limits().heartbeat * 3), &[0]), ["1-9-1"]);
        assert!(core.take_undelivered().is_empty());
    }

    #[test]
    fn what_a_session_held_at_its_end_is_for_others_to_deliver() {
        let now = now();
        let mut core = core(now);
        let mut kept = note("friend.remark_updated", "kept", 10);
        Arc::get_mut(&mut kept).unwrap().policy.inbox = Inbox::Always;
        core.offer(&kept, &recipient(), || None, now);
        offer(&mut core, "friend.request", "with a receipt", now);
        for id in ["acked", "sent", "queued"] {
            offer(&mut core, "message.new", id, now);
        }
        offer(&mut core, "message.typing", "typing", now);
        let frames = taken(&mut core, SessionLane::Normal, now);
        assert_eq!(frames, ["acked", "sent", "queued", "kept"], "by rank");
        core.on_frame(br#"{"type":"ack","lane":"normal","seq":1}"#, now);
        core.close(CloseCode::SlowConsumer, "slow", 0);
        let held: Vec<_> = core.take_undelivered().iter().map(|held| held.note.id.to_string()).collect();
        assert_eq!(held, ["sent", "queued"]);
        assert!(core.take_undelivered().is_empty());
    }

    #[test]
    fn an_inbox_that_could_not_be_read_at_first_is_read_again_from_the_clients_cursor() {
        let start = now();
        let mut core = Core::new(limits(), Encoding::Json, true, u64::MAX, start);
        let failed = Missed { held: Some(cursor_at(4)), ..Missed::default() };
        core.welcome(Bytes::from_static(b"welcome"), cursor_at(9), failed);
        assert_eq!(pinged(&mut core, start, &[0, 0, 0]), ["1-4-1", "1-4-1", "1-4-1"]);
        assert_eq!(core.take_inbox_read(start), Some(cursor_at(4)));
        core.inbox_read(Missed { cursor: Some(cursor_at(9)), ..Missed::default() }, start);
        let later = later(start, limits().heartbeat * 3);
        assert_eq!(pinged(&mut core, later, &[0, 0]), ["1-4-1", "1-9-1"]);
    }

    #[test]
    fn a_record_written_meanwhile_is_read_before_the_cursor_passes_it() {
        let start = now();
        let mut core = core(start);
        assert_eq!(core.take_inbox_read(start), None);
        core.inbox_record(12, None);
        assert_eq!(pinged(&mut core, start, &[0]), ["1-9-1"], "not passed");
        assert_eq!(core.take_inbox_read(start), Some(cursor_at(9)));

        core.inbox_read(Missed::default(), start);
        assert_eq!(core.take_inbox_read(start), None, "failed, so not at once again");
        assert_eq!(core.take_inbox_read(later(start, inbox::RETRY)), Some(cursor_at(9)));

        let notes = vec![(note("message.new", "a", 10), cursor_at(12))];
        core.inbox_read(Missed { notes, cursor: Some(cursor_at(12)), ..Missed::default() }, start);
        assert_eq!(taken(&mut core, SessionLane::Inbox, start), ["a"]);
        core.inbox_record(13, None);
        assert_eq!(core.take_inbox_read(start), None, "first what was read must be acked");
    }

    #[test]
    fn a_session_closed_before_its_welcome_says_only_that_in_json() {
        let start = now();
        let mut core = Core::new(limits(), Encoding::Msgpack, true, u64::MAX, start);
        core.goaway(CloseCode::Draining, Duration::ZERO, Duration::ZERO, start);
        core.close(CloseCode::Replaced, "elsewhere", 0);
        core.welcome(Bytes::from_static(b"welcome"), no_inbox(), Missed::default());
        let mut out = Vec::new();
        core.take_control(&mut out);
        assert_eq!(out.len(), 1);
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&out[0][4..]).unwrap()["code"], 3508);
    }

    #[test]
    fn token_end_closes_unless_it_was_renewed() {
        let start = now();
        let mut core = core(start);
        core.token_renewed(start.unix_ms + 1_000);
        core.tick(later(start, Duration::from_secs(2)), no_inbox);
        assert_eq!(closes(&mut core), Some(3005));
    }

    fn noted(event: &str, id: &str, payload: &serde_json::Value) -> Arc<Notification> {
        let mut note = Arc::into_inner(note(event, id, 0)).unwrap();
        note.payload_json = payload.to_string().into();
        note.payload = payload.as_object().unwrap().clone();
        Arc::new(note)
    }

    #[test]
    fn one_state_is_shown_once_whatever_its_id() {
        let now = now();
        let mut core = core(now);
        let pinned = |id: &str, at: u64| {
            let payload = serde_json::json!({"conversation_id": "c", "is_pinned": true, "pin_time": at});
            noted("session.pin_updated", id, &payload)
        };
        for note in [pinned("a", 1), pinned("b", 1), pinned("c", 2), pinned("a", 1)] {
            assert_eq!(core.offer(&note, &recipient(), || None, now), Offer::Accepted);
        }
        let cursor = Cursor { epoch: 1, sequence: 5, unix_s: 1 };
        core.replay(Missed { notes: vec![(pinned("d", 2), cursor)], ..Missed::default() });
        assert_eq!(taken(&mut core, SessionLane::Normal, now), ["a", "c"]);
        assert!(taken(&mut core, SessionLane::Inbox, now).is_empty());
    }

    #[test]
    fn a_recalled_message_leaves_the_queue_unless_it_was_written() {
        let now = now();
        let mut core = core(now);
        let message = |id: &str| noted("message.new", id, &serde_json::json!({ "message_id": id }));
        core.offer(&message("1"), &recipient(), || None, now);
        assert_eq!(taken(&mut core, SessionLane::Normal, now), ["1"]);
        for id in ["2", "3"] {
            core.offer(&message(id), &recipient(), || None, now);
        }
        for (id, of) in [("r1", "1"), ("r2", "2")] {
            let payload = serde_json::json!({ "message_id": of });
            core.offer(&noted("message.recalled", id, &payload), &recipient(), || None, now);
        }
        assert_eq!(taken(&mut core, SessionLane::Normal, now), ["r1", "r2", "3"]);
        let waiting: usize = core.lanes.iter().flatten().map(|lane| lane.queued_bytes()).sum();
        assert_eq!(waiting, 0, "nothing waits, so nothing takes up room");
    }

    #[test]
    fn a_message_whose_recall_came_first_is_not_shown_live_or_replayed() {
        let now = now();
        let mut core = core(now);
        let of =
            |event, id: &str, message: &str| noted(event, id, &serde_json::json!({ "message_id": message }));
        let replay = |core: &mut Core, sequence, note| {
            core.replay(Missed { notes: vec![(note, cursor_at(sequence))], ..Missed::default() });
        };
        core.offer(&of("message.recalled", "r1", "m1"), &recipient(), || None, now);
        replay(&mut core, 1, of("message.recalled", "r2", "m2"));
        let (receipts, mut events) = Receipts::new();
        let (user, device) = (UserId::new("u").unwrap(), DeviceId::new("d").unwrap());
        let receipt = || Some(receipts.receipt(&user, &device));
        assert_eq!(core.offer(&of("message.new", "a", "m1"), &recipient(), receipt, now), Offer::Accepted);
        assert_eq!(
            events.try_recv().unwrap(),
            AckEvent::Acked(user.clone(), device.clone()),
            "nobody waits for it"
        );
        core.offer(&of("message.new", "b", "m2"), &recipient(), || None, now);
        core.offer(&of("message.new", "c", "m3"), &recipient(), || None, now);
        replay(&mut core, 2, of("message.new", "d", "m1"));
        assert_eq!(taken(&mut core, SessionLane::Normal, now), ["r1", "c"]);
        assert_eq!(taken(&mut core, SessionLane::Inbox, now), ["r2"]);
    }

    #[test]
    fn a_replay_shows_no_state_that_is_older_than_one_the_session_was_given() {
        let now = now();
        let mut core = core(now);
        let changed = |seq, fields: &[&str]| {
            let payload = serde_json::json!({ "updated_fields": fields });
            Arc::new(super::super::tests::note("user.profile_updated", seq, &payload))
        };
        let replay = |core: &mut Core, note: Arc<Notification>| {
            core.replay(Missed { notes: vec![(note, cursor_at(1))], ..Missed::default() });
        };
        replay(&mut core, changed(2, &["avatar"]));
        replay(&mut core, changed(7, &["nickname"]));
        core.offer(&changed(4, &["avatar"]), &recipient(), || None, now);
        replay(&mut core, changed(1, &["avatar"]));
        replay(&mut core, changed(5, &["avatar", "nickname"]));
        assert_eq!(taken(&mut core, SessionLane::Inbox, now), ["7", "5"]);
        assert_eq!(taken(&mut core, SessionLane::Normal, now), ["4"]);
        core.offer(&changed(6, &["nickname"]), &recipient(), || None, now);
        core.offer(&changed(8, &["nickname"]), &recipient(), || None, now);
        assert_eq!(taken(&mut core, SessionLane::Normal, now), ["8"], "6 was held by a session that ended");
    }

    #[test]
    fn an_ending_session_closes_after_the_ack_of_what_told_it_or_at_the_deadline() {
        let start = now();
        let deadline = start.instant + Duration::from_secs(5);
        let end = |core: &mut Core| core.close_after(CloseCode::LoggedOut, "", Some("told".into()), deadline);

        // The key was seen before the notification came.
        let mut core = core(start);
        end(&mut core);
        for id in ["other", "told"] {
            offer(&mut core, "auth.force_logout", id, start);
        }
        assert_eq!(taken(&mut core, SessionLane::High, start).len(), 2);
        core.on_frame(br#"{"type":"ack","lane":"high","seq":1}"#, start);
        assert_eq!(core.closing(), None);
        core.on_frame(br#"{"type":"ack","lane":"high","seq":2}"#, start);
        assert_eq!(closes(&mut core), Some(3503));

        // It was acked before the key was seen.
        let mut core = super::tests::core(start);
        offer(&mut core, "auth.force_logout", "told", start);
        taken(&mut core, SessionLane::High, start);
        core.on_frame(br#"{"type":"ack","lane":"high","seq":1}"#, start);
        end(&mut core);
        assert_eq!(closes(&mut core), Some(3503));

        // It never was.
        let mut core = super::tests::core(start);
        offer(&mut core, "auth.force_logout", "told", start);
        end(&mut core);
        core.close_after(CloseCode::Banned, "", Some("no".into()), deadline + Duration::from_secs(1));
        assert_eq!(core.tick(start, no_inbox), deadline);
        assert_eq!(core.closing(), None);
        core.tick(later(start, Duration::from_secs(5)), no_inbox);
        assert_eq!(closes(&mut core), Some(3503), "the earlier deadline holds");
    }

    #[test]
    fn a_fresh_token_ends_a_logout_that_was_about_to_happen_but_no_ban() {
        let start = now();
        for (code, closed) in [(CloseCode::LoggedOut, None), (CloseCode::Banned, Some(3502))] {
            let mut core = core(start);
            core.close_after(code, "", Some("no".into()), start.instant + Duration::from_secs(2));
            core.token_renewed(u64::MAX);
            core.tick(later(start, Duration::from_secs(2)), no_inbox);
            assert_eq!(closes(&mut core).filter(|_| core.closing().is_some()), closed);
        }
    }

    #[test]
    fn goaway_is_followed_by_the_close() {
        let start = now();
        let mut core = core(start);
        core.goaway(CloseCode::Draining, Duration::from_secs(1), Duration::from_secs(6), start);
        let next = core.tick(start, no_inbox);
        assert!(next <= start.instant + Duration::from_secs(6));
        core.tick(later(start, Duration::from_secs(6)), no_inbox);
        assert_eq!(closes(&mut core), Some(3000));
    }

    /// The reason of the goaway that was just sent.
    fn goaway(core: &mut Core) -> Option<String> {
        let mut out = Vec::new();
        core.take_control(&mut out);
        let frames = out.iter().filter_map(|frame| serde_json::from_slice(frame.get(4..)?).ok());
        frames.filter_map(|frame: serde_json::Value| Some(frame["reason"].as_str()?.to_owned())).next_back()
    }

    fn rotating(bytes: u64, after: Duration, now: Now) -> Core {
        let limits = Limits { rotation: Rotation::new(bytes, after), ..limits() };
        let mut core = Core::new(limits, Encoding::Json, true, u64::MAX, now);
        open(&mut core);
        core
    }

    #[test]
    fn a_session_rotates_once_it_is_old_and_ends_when_no_other_comes() {
        let start = now();
        let mut core = rotating(0, Duration::from_secs(20), start);
        assert!(core.tick(start, no_inbox) <= start.instant + Duration::from_secs(20), "it wakes by itself");
        assert_eq!(goaway(&mut core), None);
        core.tick(later(start, Duration::from_secs(20)), no_inbox);
        assert_eq!(goaway(&mut core).as_deref(), Some("rotate"));
        // Heard from, so that it is not the heartbeat that ends it.
        let last = later(start, Duration::from_mins(10));
        core.on_frame(br#"{"type":"pong","t":1}"#, last);
        core.tick(last, no_inbox);
        assert_eq!(closes(&mut core), Some(3001));
    }

    #[test]
    fn a_session_rotates_once_it_has_carried_much() {
        let now = now();
        let mut core = rotating(1_000, Duration::ZERO, now);
        for (id, expected) in [("1", None), ("2", Some("rotate")), ("3", None)] {
            core.offer(&note("message.new", id, 400), &recipient(), || None, now);
            core.take(SessionLane::Normal, now, &mut Vec::new());
            core.tick(now, no_inbox);
            assert_eq!(goaway(&mut core).as_deref(), expected, "after {id}");
        }
    }

    #[test]
    fn sessions_that_opened_together_rotate_apart() {
        let limits = Rotation::new(1_000, Duration::from_secs(1_000));
        let drawn = |random| {
            let rotation = limits.spread(random, random);
            (rotation.bytes, rotation.after.map(|after| after.as_secs()), rotation.reconnect_after.as_secs())
        };
        assert_eq!(drawn(0.0), (Some(900), Some(900), 0));
        assert_eq!(drawn(0.5), (Some(1_000), Some(1_000), 5));
        assert_eq!(drawn(0.9999), (Some(1_099), Some(1_099), 9));
        let never = Rotation::new(0, Duration::ZERO).spread(0.5, 0.5);
        assert_eq!((never.bytes, never.after), (None, None));
    }

    #[test]
    fn a_node_that_stops_does_not_wait_for_a_rotation() {
        let start = now();
        let mut core = rotating(0, Duration::from_secs(1), start);
        let start = later(start, Duration::from_secs(1));
        core.tick(start, no_inbox);
        assert_eq!(goaway(&mut core).as_deref(), Some("rotate"));
        core.goaway(CloseCode::Draining, Duration::ZERO, Duration::from_secs(6), start);
        assert_eq!(goaway(&mut core).as_deref(), Some("draining"));
        core.goaway(CloseCode::Draining, Duration::ZERO, Duration::from_secs(7), start);
        assert_eq!(goaway(&mut core), None, "the earlier end holds");
        core.tick(later(start, Duration::from_secs(6)), no_inbox);
        assert_eq!(closes(&mut core), Some(3000));
    }

    #[test]
    fn control_frames_are_checked() {
        for (frame, code) in [
            (&br#"{"type":"hello","version":1,"token":"","device_id":"d","platform":"web"}"#[..], 3500),
            (b"garbage", 3500),
            (br#"{"type":"dance"}"#, 3500),
            (br#"{"type":"ack","lane":"normal","seq":-1}"#, 3500),
            (br#"{"type":"bye"}"#, 0),
        ] {
            let now = now();
            let mut core = core(now);
            core.on_frame(frame, now);
            assert_eq!(closes(&mut core), Some(code));
        }
    }
}
