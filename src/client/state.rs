//! What a client decides, without sockets or clocks: when to ack, what is a duplicate, which inbox cursor is safe to
//! store, when to connect again and when to renew the token.
//!
//! Every function takes the time it decides at. `connection` and `reconnect` do what is decided here.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::Closed;
use crate::protocol::CloseCode;
use crate::protocol::frame::SessionLane;

/// Frames after which a lane is acked, from the protocol.
pub(crate) const ACK_FRAMES: u64 = 32;

/// Bytes of bodies after which a lane is acked, from the protocol.
pub(crate) const ACK_BYTES: usize = 16 * 1024;

/// Time after which a lane is acked, from the protocol.
pub(crate) const ACK_DELAY: Duration = Duration::from_secs(1);

/// Ids remembered against duplicates. The protocol asks for 1,024; twice that holds a full replay beside live traffic.
pub(crate) const DEDUP_IDS: usize = 2_048;

/// A session that lived this long was a success: the failures before it are forgotten.
pub(crate) const STABLE_AFTER: Duration = Duration::from_secs(10);

const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
const BACKOFF_LONG: Duration = Duration::from_mins(2);
const FAILURES_LONG: u32 = 5;

/// A frame that has been processed.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Bytes of its body.
    pub(crate) bytes: usize,
    /// It asked for an ack at once.
    pub(crate) urgent: bool,
    /// Its inbox cursor, on lane `inbox`.
    pub(crate) cursor: Option<String>,
}

#[derive(Debug, Default)]
struct Lane {
    received: u64,
    /// Everything up to here is processed.
    done: u64,
    /// Processed beyond a gap. Bounded by the server's window, because frames of the gap are not acked.
    early: BTreeMap<u64, Done>,
    acked: u64,
    bytes: usize,
    urgent: bool,
    since: Option<Instant>,
}

/// What one session received and processed: gives the acks that are due and the cursors that are safe.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    lanes: [Lane; 4],
    /// A ping's cursor, and how far each lane must be processed before it may be stored.
    ping: Option<([u64; 4], String)>,
}

impl Ledger {
    /// Counts a frame and gives its `seq`.
    pub(crate) fn received(&mut self, lane: SessionLane) -> u64 {
        let lane = &mut self.lanes[lane.index()];
        lane.received += 1;
        lane.received
    }

    /// Notes that a frame is processed, in any order; a second time counts for nothing. Gives a cursor to store.
    pub(crate) fn done(&mut self, lane: SessionLane, seq: u64, done: Done, now: Instant) -> Option<String> {
        let lane = &mut self.lanes[lane.index()];
        if seq > lane.done && seq <= lane.received {
            lane.early.entry(seq).or_insert(done);
        }
        let mut cursor = None;
        while let Some(done) = lane.early.remove(&(lane.done + 1)) {
            lane.done += 1;
            lane.bytes += done.bytes;
            lane.urgent |= done.urgent;
            lane.since.get_or_insert(now);
            cursor = done.cursor.or(cursor);
        }
        self.settle().or(cursor)
    }

    /// Notes a ping's cursor. Gives it back when everything before it is processed already.
    pub(crate) fn ping(&mut self, cursor: String) -> Option<String> {
        // The older cursor stays until it is reached: for an application that is always behind, the newest never is.
        if self.ping.is_none() {
            self.ping = Some((std::array::from_fn(|lane| self.lanes[lane].received), cursor));
        }
        self.settle()
    }

    fn settle(&mut self) -> Option<String> {
        let (marks, _) = self.ping.as_ref()?;
        let reached = self.lanes.iter().zip(marks).all(|(lane, mark)| lane.done >= *mark);
        if reached { self.ping.take().map(|(_, cursor)| cursor) } else { None }
    }

    /// The acks that are due. Taking them counts as sending them.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<(SessionLane, u64)> {
        self.take(|lane| lane.due_at().is_some_and(|due| due <= now))
    }

    /// Everything that is processed and not yet acked, due or not.
    pub(crate) fn flush(&mut self) -> Vec<(SessionLane, u64)> {
        self.take(|_| true)
    }

    fn take(&mut self, wanted: impl Fn(&Lane) -> bool) -> Vec<(SessionLane, u64)> {
        let mut acks = Vec::new();
        for (name, lane) in SessionLane::ALL.into_iter().zip(&mut self.lanes) {
            if lane.done > lane.acked && wanted(lane) {
                lane.acked = lane.done;
                lane.bytes = 0;
                lane.urgent = false;
                lane.since = None;
                acks.push((name, lane.acked));
            }
        }
        acks
    }

    /// When the next ack is due, or `None` when there is nothing to ack.
    pub(crate) fn due_at(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(Lane::due_at).min()
    }
}

impl Lane {
    fn due_at(&self) -> Option<Instant> {
        let at_once = self.urgent || self.done - self.acked >= ACK_FRAMES || self.bytes >= ACK_BYTES;
        self.since.map(|since| if at_once { since } else { since + ACK_DELAY })
    }
}

/// The last [`DEDUP_IDS`] notification ids. The oldest leaves when a new one comes to a full memory.
#[derive(Debug, Default)]
pub(crate) struct Dedup {
    known: HashSet<std::sync::Arc<str>>,
    order: VecDeque<std::sync::Arc<str>>,
}

impl Dedup {
    /// Remembers `id`; false when it was known already.
    pub(crate) fn insert(&mut self, id: &str) -> bool {
        if self.known.contains(id) {
            return false;
        }
        if self.order.len() == DEDUP_IDS
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        let id: std::sync::Arc<str> = id.into();
        self.order.push_back(id.clone());
        self.known.insert(id);
        true
    }
}

/// The wait after `failures` failures in a row, 1 or more. `random` is in `[0, 1)`: jitter, so that clients that failed
/// together do not come back together. Those of a storm reach the long wait within seconds of each other, so it varies,
/// too, by half.
pub(crate) fn backoff(failures: u32, random: f64) -> Duration {
    let random = random.clamp(0.0, 1.0);
    if failures >= FAILURES_LONG {
        return BACKOFF_LONG.mul_f64(0.5 + random);
    }
    let ceiling = BACKOFF_FIRST * 2_u32.pow(failures.saturating_sub(1));
    ceiling.min(BACKOFF_MAX).mul_f64(random)
}

/// What follows the end of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Do not connect again.
    End,
    /// Connect again.
    Again {
        /// After this time.
        delay: Duration,
        /// With a token that is asked for first.
        new_token: bool,
    },
}

/// Decides what follows `closed`, which is failure number `failures` in a row.
pub(crate) fn verdict(closed: &Closed, failures: u32, random: f64) -> Verdict {
    let again = match closed.code() {
        None => true,
        Some(code @ 3000..4000) => code < 3500,
        // QUIC closes with 0 when a program lets go of a connection. Only a close frame, or our own bye, which never
        // comes here, makes it the end.
        Some(_) => closed.frame.as_ref().is_none_or(|frame| frame.reconnect),
    };
    if !again {
        return Verdict::End;
    }
    let asked = closed.frame.as_ref().map_or(0, |frame| frame.retry_after_ms);
    let delay = if asked > 0 { Duration::from_millis(asked) } else { backoff(failures, random) };
    Verdict::Again { delay, new_token: closed.code() == Some(CloseCode::TokenExpired.code()) }
}

/// The `exp` of a JWT in Unix seconds, read without checking anything; `None` when there is none.
pub(crate) fn token_expiry(token: &str) -> Option<u64> {
    use base64::Engine as _;
    #[derive(serde::Deserialize)]
    struct Claims {
        exp: f64,
    }
    let body = token.split('.').nth(1)?;
    let body = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(body).ok()?;
    let claims: Claims = serde_json::from_slice(&body).ok()?;
    (claims.exp >= 0.0).then_some(claims.exp as u64)
}

/// Longest time before its expiry at which a token is renewed.
const RENEW_BEFORE: Duration = Duration::from_mins(1);

/// Shortest wait before a renewal, so that a source that gives old tokens is not asked in a loop.
const RENEW_MIN: Duration = Duration::from_secs(1);

/// How long to wait, from `now_ms` (Unix milliseconds by the server's clock), before renewing a token that expires at
/// `expiry` (Unix seconds): until a minute before, or four fifths of what is left of a short-lived one.
pub(crate) fn renew_in(expiry: u64, now_ms: u64) -> Duration {
    let left = Duration::from_millis(expiry.saturating_mul(1_000).saturating_sub(now_ms));
    left.saturating_sub(RENEW_BEFORE).max(left.mul_f64(0.8)).max(RENEW_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::Close;

    const HIGH: SessionLane = SessionLane::High;
    const LOW: SessionLane = SessionLane::Low;
    const INBOX: SessionLane = SessionLane::Inbox;

    fn take(
        ledger: &mut Ledger,
        lane: SessionLane,
        bytes: usize,
        urgent: bool,
        now: Instant,
    ) -> Option<String> {
        let seq = ledger.received(lane);
        ledger.done(lane, seq, Done { bytes, urgent, cursor: None }, now)
    }

    fn closed(code: u32, retry_after_ms: u64) -> Closed {
        let frame = Close {
            code,
            name: String::new(),
            reason: String::new(),
            reconnect: (3000..3500).contains(&code),
            retry_after_ms,
        };
        Closed { frame: Some(frame), ..Closed::default() }
    }

    #[test]
    fn acks_after_32_frames() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        for _ in 0..31 {
            take(&mut ledger, LOW, 10, false, now);
        }
        assert_eq!(ledger.due(now), []);
        take(&mut ledger, LOW, 10, false, now);
        assert_eq!(ledger.due(now), [(LOW, 32)]);
        assert_eq!(ledger.due(now + ACK_DELAY), [], "nothing is acked twice");
    }

    #[test]
    fn acks_after_16_kib_or_one_second() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        take(&mut ledger, LOW, ACK_BYTES - 1, false, now);
        assert_eq!((ledger.due(now), ledger.due_at()), (vec![], Some(now + ACK_DELAY)));
        take(&mut ledger, LOW, 1, false, now);
        assert_eq!(ledger.due(now), [(LOW, 2)]);

        take(&mut ledger, LOW, 1, false, now);
        take(&mut ledger, LOW, 1, false, now + ACK_DELAY / 2);
        assert_eq!(ledger.due(now + ACK_DELAY), [(LOW, 4)], "the second counts from the first frame");
        assert_eq!(ledger.due_at(), None);
    }

    #[test]
    fn acks_at_once_when_required_and_only_that_lane() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        take(&mut ledger, LOW, 1, false, now);
        take(&mut ledger, HIGH, 1, false, now);
        take(&mut ledger, HIGH, 1, true, now);
        assert_eq!(ledger.due(now), [(HIGH, 2)]);
        assert_eq!(ledger.flush(), [(LOW, 1)]);
    }

    #[test]
    fn out_of_order_acks_wait_for_the_gap() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        for _ in 0..3 {
            ledger.received(HIGH);
        }
        let done = || Done { bytes: 1, urgent: true, cursor: None };
        ledger.done(HIGH, 3, done(), now);
        ledger.done(HIGH, 2, done(), now);
        assert_eq!(ledger.due(now), []);
        ledger.done(HIGH, 1, done(), now);
        ledger.done(HIGH, 1, done(), now);
        ledger.done(HIGH, 9, done(), now);
        assert_eq!(ledger.due(now), [(HIGH, 3)]);
    }

    #[test]
    fn a_pings_cursor_waits_for_what_came_before_it() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        assert_eq!(ledger.ping("a".into()), Some("a".into()), "nothing is open");
        let first = ledger.received(HIGH);
        ledger.received(LOW);
        assert_eq!(ledger.ping("b".into()), None);
        assert_eq!(ledger.ping("c".into()), None);
        let after = ledger.received(HIGH);
        assert_eq!(ledger.done(HIGH, first, Done::default(), now), None);
        assert_eq!(
            ledger.done(LOW, 1, Done::default(), now),
            Some("b".into()),
            "frame 2 came after the ping"
        );
        ledger.done(HIGH, after, Done::default(), now);
        assert_eq!(ledger.ping("d".into()), Some("d".into()));
    }

    #[test]
    fn a_replayed_frames_cursor_counts_when_all_before_it_are_processed() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let done = |cursor: &str| Done { cursor: Some(cursor.into()), ..Done::default() };
        ledger.received(INBOX);
        ledger.received(INBOX);
        assert_eq!(ledger.done(INBOX, 2, done("2"), now), None);
        assert_eq!(ledger.done(INBOX, 1, done("1"), now), Some("2".into()));
    }

    #[test]
    fn remembers_the_last_ids_only() {
        let mut dedup = Dedup::default();
        assert!(dedup.insert("first"));
        assert!(!dedup.insert("first"));
        for id in 1..DEDUP_IDS {
            assert!(dedup.insert(&id.to_string()));
        }
        assert!(!dedup.insert("first"));
        assert!(dedup.insert("one more"));
        assert!(dedup.insert("first"), "it was the oldest");
        assert_eq!((dedup.known.len(), dedup.order.len()), (DEDUP_IDS, DEDUP_IDS));
    }

    #[test]
    fn backoff_doubles_to_its_ceilings_with_jitter() {
        let ceilings: Vec<_> = (1..=7).map(|failures| backoff(failures, 1.0).as_millis()).collect();
        assert_eq!(ceilings, [500, 1_000, 2_000, 4_000, 180_000, 180_000, 180_000]);
        assert_eq!(backoff(3, 0.0), Duration::ZERO);
        assert_eq!(backoff(3, 0.5), Duration::from_secs(1));
        assert_eq!(backoff(5, 0.0), Duration::from_mins(1));
        assert_eq!(backoff(u32::MAX, 0.5), BACKOFF_LONG);
    }

    #[test]
    fn the_close_code_decides_about_reconnecting() {
        let again = |delay, new_token| Verdict::Again { delay: Duration::from_millis(delay), new_token };
        assert_eq!(verdict(&closed(3003, 0), 2, 0.5), again(500, false));
        assert_eq!(verdict(&closed(3004, 70), 2, 0.5), again(70, false));
        assert_eq!(verdict(&closed(3005, 0), 1, 0.5), again(250, true));
        assert_eq!(verdict(&closed(3499, 0), 1, 0.0), again(0, false));
        for code in [0, 3500, 3501, 3508, 3999] {
            assert_eq!(verdict(&closed(code, 70), 1, 0.5), Verdict::End, "{code}");
        }
        let lost = Closed { error: Some("timed out".into()), ..Closed::default() };
        assert_eq!(verdict(&lost, 1, 0.5), again(250, false));
        let dropped = Closed { transport: Some((0, String::new())), ..Closed::default() };
        assert_eq!(verdict(&dropped, 1, 0.5), again(250, false));
        let no_frame = Closed { transport: Some((3501, String::new())), ..Closed::default() };
        assert_eq!(verdict(&no_frame, 1, 0.5), Verdict::End);
    }

    #[test]
    fn reads_the_expiry_of_a_token() {
        // {"alg":"none"}.{"sub":"u","exp":1700000060}.
        let token = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1IiwiZXhwIjoxNzAwMDAwMDYwfQ.";
        assert_eq!(token_expiry(token), Some(1_700_000_060));
        for bad in ["", "a", "a.b.c", "a.e30.c", "..."] {
            assert_eq!(token_expiry(bad), None, "{bad}");
        }
    }

    #[test]
    fn renews_a_minute_before_or_late_in_a_short_life() {
        let renew = |left_s: u64| renew_in(1_000 + left_s, 1_000_000).as_millis();
        assert_eq!(renew(3_600), 3_540_000);
        assert_eq!(renew(10), 8_000);
        assert_eq!(renew(0), 1_000);
        assert_eq!(renew_in(0, 1_000_000), RENEW_MIN, "expired");
    }
}
