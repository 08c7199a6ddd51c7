//! The shaping state of this node's users, and the wheel that says when something is due.
//!
//! Sharded like the registry. A shard is locked while what leaves is offered to the sessions, so that nothing can
//! overtake in between; locks are always taken in the order shaper, registry, session. One task, the edge's, turns the
//! wheel; nothing here waits.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, gauge};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::shape::{Arrival, Group, Rule, Verdict};
use super::shape_key::{ShapeKey, passes};
use super::{Devices, Push, Recipient};
use crate::catalog::{Shape, ShapeMode};
use crate::clock::Now;
use crate::id::UserId;
use crate::protocol::Notification;

/// Power of two well above the number of cores.
const SHARDS: usize = 64;

/// How often the wheel turns: the shortest window is 1 s, and 2 % late is not seen by anybody.
pub const TICK: Duration = Duration::from_millis(20);
const TICK_MS: u64 = TICK.as_millis() as u64;

/// Slots of the wheel: 10.24 s, the longest window (5 s) and the time it is remembered (5 s). What is due later comes
/// round again.
const SLOTS: usize = 512;

/// Nothing is held back, or remembered, for longer than one round of the wheel.
pub(super) const HELD_MAX: Duration = Duration::from_millis(TICK_MS * SLOTS as u64);

/// Windows a node keeps: about 300 B each, so 300 MB when all 100,000 sessions have ten of them. Beyond it
/// notifications pass unshaped, since nothing may be lost.
const WINDOWS_MAX: usize = 1_000_000;

/// Windows of one user and one kind of notification. Each arrival looks through them; more keys than this at once (marking
/// everything read) leave unshaped.
const GROUP_WINDOWS_MAX: usize = 256;

/// Payload bytes that may wait in the windows of a node; what many users wait for counts for each of them. Beyond it
/// notifications do not wait. 256 B for each of [`WINDOWS_MAX`], which is what status changes and receipts have.
const WAITING_BYTES_MAX: usize = 256 * 1024 * 1024;

/// One notification that waits for its window.
#[derive(Debug)]
struct Waiting {
    note: Arc<Notification>,
    recipient: Recipient,
    /// Its share of what may wait; kept until it leaves or is replaced.
    _room: Option<Room>,
}

/// Payload bytes that wait, all together.
#[derive(Debug)]
struct Waits {
    bytes: Arc<AtomicUsize>,
    max: usize,
}

/// A part of it, given back when dropped.
#[derive(Debug)]
struct Room {
    all: Arc<AtomicUsize>,
    bytes: usize,
}

impl Waits {
    fn room(&self, bytes: usize) -> Option<Room> {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        // Made first, so that it is given back when it is too much.
        let room = Room { all: self.bytes.clone(), bytes };
        (before + bytes <= self.max).then_some(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A user and a kind of notification.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    user: UserId,
    event: Arc<str>,
}

#[derive(Debug)]
struct Entry {
    group: Group<Waiting>,
    rule: Rule,
    /// Time of the slot at which the wheel looks at it next. Slots it left behind for an earlier one are passed over.
    slot_ms: Option<u64>,
}

#[derive(Debug, Default)]
struct Shard {
    entries: HashMap<Key, Entry>,
    wheel: Vec<Vec<Key>>,
    /// Time up to which the wheel has turned.
    turned_ms: u64,
}

/// Shapes what goes to the sessions of this node.
#[derive(Debug)]
pub(super) struct Shaper {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    windows: AtomicUsize,
    waits: Waits,
    /// Zero of the wheel's time, which is monotonic: a wall clock that is set must not stop it.
    started: Instant,
}

impl Default for Shaper {
    fn default() -> Self {
        describe_gauge!(
            "fanfare_shape_windows",
            "coalescing and throttling windows that are open or remembered"
        );
        describe_gauge!(
            "fanfare_shape_waiting_bytes",
            "payload bytes that wait in windows, counted for each user"
        );
        describe_counter!(
            "fanfare_shape_bypassed_total",
            "notifications not shaped because of a bound, by reason"
        );
        describe_counter!(
            "fanfare_shape_unheard_total",
            "notifications whose user had no session left at the end of the window"
        );
        Self {
            shards: std::iter::repeat_with(Mutex::default).take(SHARDS).collect(),
            hasher: RandomState::new(),
            windows: AtomicUsize::new(0),
            waits: Waits { bytes: Arc::default(), max: WAITING_BYTES_MAX },
            started: Instant::now(),
        }
    }
}

impl Shaper {
    /// Offers `note` to `send` now, later or never. `present` tells whether the user has a session that is meant,
    /// `send` offers to the sessions at once, and is told whether it is `note` or one that has to leave before it.
    ///
    /// One that must be acked is never held back: its worker hears what the sessions said, and tries again when they
    /// are full.
    pub(super) fn offer(
        &self,
        shape: &Shape,
        note: &Arc<Notification>,
        recipient: &Recipient,
        now: Now,
        present: impl FnOnce() -> bool,
        send: impl Fn(&Arc<Notification>, &Recipient, bool) -> Push,
    ) -> Push {
        let now_ms = self.elapsed_ms(now);
        let rule = rule(shape, note.large_set);
        // Without its key nobody can say which others it may replace.
        let Some(key) = self.key(note, recipient) else { return send(note, recipient, true) };
        let mut shard = self.shard(&recipient.user);
        if !present() {
            return Push::Absent;
        }
        let name = Key { user: recipient.user.clone(), event: note.event.name.as_str().into() };
        // What waits in a window may only be passed by way of it.
        let known = shard.entries.get(&name);
        let (open, keys) = known.map_or((false, 0), |entry| (entry.group.knows(key), entry.group.len()));
        let bound = if keys >= GROUP_WINDOWS_MAX {
            Some("keys")
        } else {
            (self.windows.load(Ordering::Relaxed) >= WINDOWS_MAX).then_some("windows")
        };
        if let Some(reason) = bound.filter(|_| !open) {
            // Without a window, but not ahead of what waits where order counts: marking everything read ends right.
            let arrival = Arrival { key, seq: note.stream_seq, passes: true };
            let stopped = shard.entries.get_mut(&name).is_some_and(|entry| {
                let overtaken = entry.group.overtaken(rule, arrival, now_ms);
                entry.send(overtaken, now_ms, |note, recipient| send(note, recipient, false))
            });
            return bypass(reason, || if stopped { Push::Full } else { send(note, recipient, true) });
        }
        // A throttle holds nothing.
        let room = if rule.throttle { None } else { self.waits.room(note.payload_json.len()) };
        let full = room.is_none() && !rule.throttle;
        let arrival = Arrival { key, seq: note.stream_seq, passes: full || passes(shape, note) };
        let entry = shard.entries.entry(name.clone()).or_insert_with(|| Entry {
            group: Group::default(),
            rule,
            slot_ms: None,
        });
        entry.rule = rule;
        let before = entry.group.len();
        let overtaken = entry.group.overtaken(rule, arrival, now_ms);
        let stopped = entry.send(overtaken, now_ms, |note, recipient| send(note, recipient, false));
        let waiting = Waiting { note: note.clone(), recipient: recipient.clone(), _room: room };
        let (verdict, leaves) = entry.group.arrive(rule, arrival, waiting, now_ms);
        let mut answer = Push::Accepted(1);
        let mut replaces = !matches!(verdict, Verdict::Now | Verdict::Held);
        if let Some(waiting) = leaves {
            let go = || if stopped { Push::Full } else { send(&waiting.note, &waiting.recipient, true) };
            answer = if full { bypass("bytes", go) } else { go() };
            replaces &= !note.require_ack;
            if answer == Push::Full && full && matches!(verdict, Verdict::Now) {
                // There is no room for it here either: its worker tries again.
                entry.group.refused(arrival);
                replaces = false;
            } else if answer == Push::Full && !rule.throttle {
                // A state that cannot leave now takes the place in the window, where a newer one may replace it.
                let held = entry.group.hold_again(rule, arrival, waiting, now_ms);
                if !note.require_ack {
                    answer = if held { Push::Accepted(0) } else { Push::Coalesced };
                }
            }
        }
        let after = entry.group.len();
        self.count(before, after);
        shard.settle(&name, after, now_ms);
        drop(shard);
        if replaces { Push::Coalesced } else { answer }
    }

    /// Sends what is due. Called every [`TICK`].
    pub(super) fn turn(&self, now: Now, send: impl Fn(&Arc<Notification>, &Recipient) -> Push) {
        let now_ms = self.elapsed_ms(now);
        for shard in &self.shards {
            let mut shard = shard.lock();
            for name in shard.turn(now_ms) {
                let Some(entry) = shard.entries.get_mut(&name) else { continue };
                if entry.slot_ms.is_none_or(|slot_ms| slot_ms > now_ms) {
                    continue;
                }
                entry.slot_ms = None;
                let before = entry.group.len();
                let due = entry.group.due(entry.rule, now_ms);
                entry.send(due, now_ms, &send);
                let after = entry.group.len();
                self.count(before, after);
                shard.settle(&name, after, now_ms);
            }
        }
        gauge!("fanfare_shape_windows").set(self.windows.load(Ordering::Relaxed) as f64);
        gauge!("fanfare_shape_waiting_bytes").set(self.waits.bytes.load(Ordering::Relaxed) as f64);
    }

    /// The window of `note`. 64 bits are enough here: a user has at most [`GROUP_WINDOWS_MAX`] windows of an event, so
    /// two of them meet once in 10^15 users with that many; and nobody can choose keys that meet, as the hash has a
    /// key drawn at start.
    fn key(&self, note: &Notification, recipient: &Recipient) -> Option<u64> {
        // What is for one device only must not replace what others wait for.
        let only = if let Devices::Only(devices) = &recipient.devices { Some(devices) } else { None };
        ShapeKey::of(note).map(|key| self.hasher.hash_one((key, only)))
    }

    fn elapsed_ms(&self, now: Now) -> u64 {
        now.instant.saturating_duration_since(self.started).as_millis() as u64
    }

    fn shard(&self, user: &UserId) -> MutexGuard<'_, Shard> {
        self.shards[self.hasher.hash_one(user) as usize % SHARDS].lock()
    }

    fn count(&self, before: usize, after: usize) {
        if after >= before {
            self.windows.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.windows.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

impl Entry {
    /// Sends what was taken out of the windows. What the sessions have no room for goes back; true when what comes
    /// after it must not leave either.
    fn send(
        &mut self,
        taken: Vec<(Arrival, Waiting)>,
        now_ms: u64,
        send: impl Fn(&Arc<Notification>, &Recipient) -> Push,
    ) -> bool {
        let mut stopped = false;
        for (arrival, waiting) in taken {
            let answer = if stopped { Push::Full } else { send(&waiting.note, &waiting.recipient) };
            match answer {
                Push::Full => {
                    // Where order counts, a newer one must not leave before one that could not.
                    stopped = self.rule.ordered;
                    self.group.hold_again(self.rule, arrival, waiting, now_ms);
                }
                Push::Absent => counter!("fanfare_shape_unheard_total").increment(1),
                Push::Accepted(_) | Push::Coalesced => {}
            }
        }
        stopped
    }
}

impl Shard {
    /// Forgets a group without windows, and sees to the next time of another.
    fn settle(&mut self, name: &Key, windows: usize, now_ms: u64) {
        if windows == 0 {
            self.entries.remove(name);
        } else {
            self.schedule(name, now_ms);
        }
    }

    /// Puts the group into the slot of its next time, unless it is in an earlier one already.
    fn schedule(&mut self, name: &Key, now_ms: u64) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let Some(next_ms) = entry.group.next_ms(entry.rule) else { return };
        if self.wheel.is_empty() {
            self.wheel.resize_with(SLOTS, Vec::new);
            self.turned_ms = now_ms;
        }
        // At least one tick ahead of the wheel, at most one round; rounded up, so that it is due when it comes up.
        let first = self.turned_ms / TICK_MS + 1;
        let tick = next_ms.div_ceil(TICK_MS).clamp(first, first + SLOTS as u64 - 1);
        let slot_ms = tick * TICK_MS;
        if entry.slot_ms.is_some_and(|earlier_ms| earlier_ms <= slot_ms) {
            return;
        }
        entry.slot_ms = Some(slot_ms);
        self.wheel[tick as usize % SLOTS].push(name.clone());
    }

    /// Turns the wheel to `now_ms` and gives the groups of the slots passed.
    fn turn(&mut self, now_ms: u64) -> Vec<Key> {
        if self.wheel.is_empty() {
            return Vec::new();
        }
        let (from, to) = (self.turned_ms / TICK_MS + 1, now_ms / TICK_MS);
        self.turned_ms = self.turned_ms.max(now_ms);
        let mut due = Vec::new();
        for tick in from..=to.min(from + SLOTS as u64 - 1) {
            due.append(&mut self.wheel[tick as usize % SLOTS]);
        }
        due
    }
}

fn rule(shape: &Shape, large: bool) -> Rule {
    Rule {
        throttle: shape.mode == ShapeMode::Throttle,
        window_ms: shape.window_large_ms.filter(|_| large).unwrap_or(shape.window_ms),
        leading: shape.leading,
        ordered: shape.ordered,
    }
}

fn bypass(reason: &'static str, send: impl FnOnce() -> Push) -> Push {
    counter!("fanfare_shape_bypassed_total", "reason" => reason).increment(1);
    send()
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::session::tests::{self, shuffle};

    fn note(event: &str, seq: u64, payload: &Value) -> Arc<Notification> {
        Arc::new(tests::note(event, seq, payload))
    }

    /// A shaper whose sessions note what they are sent.
    struct Scene {
        shaper: Shaper,
        start: Now,
        sent: RefCell<Vec<String>>,
        answer: RefCell<Push>,
    }

    impl Scene {
        fn new() -> Self {
            let answer = RefCell::new(Push::Accepted(1));
            Self { shaper: Shaper::default(), start: Now::read(), sent: RefCell::default(), answer }
        }

        fn at(&self, ms: u64) -> Now {
            Now { instant: self.start.instant + Duration::from_millis(ms), unix_ms: self.start.unix_ms + ms }
        }

        fn send(&self, note: &Arc<Notification>) -> Push {
            self.sent.borrow_mut().push(note.id.to_string());
            *self.answer.borrow()
        }

        fn offer(&self, ms: u64, note: &Arc<Notification>) -> Push {
            self.offer_to(Devices::All, ms, note)
        }

        fn offer_to(&self, devices: Devices, ms: u64, note: &Arc<Notification>) -> Push {
            let recipient = Recipient { devices, ..Recipient::online(UserId::new("u").unwrap()) };
            let shape = note.event.shape.as_ref().unwrap();
            self.shaper.offer(shape, note, &recipient, self.at(ms), || true, |note, _, _| self.send(note))
        }

        fn turn(&self, ms: u64) -> Vec<String> {
            self.shaper.turn(self.at(ms), |note, _| self.send(note));
            std::mem::take(&mut self.sent.borrow_mut())
        }
    }

    #[test]
    fn the_last_status_of_five_seconds_is_sent_at_their_end() {
        let scene = Scene::new();
        let status = |seq, user: &str| note("user.status_changed", seq, &json!({ "user_id": user }));
        assert_eq!(scene.offer(0, &status(1, "a")), Push::Accepted(1));
        assert_eq!(scene.offer(10, &status(2, "a")), Push::Coalesced);
        assert_eq!(scene.offer(20, &status(3, "b")), Push::Accepted(1));
        for ms in (0..4_980).step_by(20) {
            assert!(scene.turn(ms).is_empty(), "{ms}");
        }
        let sent: Vec<_> = (4_980..5_100).step_by(20).flat_map(|ms| scene.turn(ms)).collect();
        assert_eq!(sent, ["2", "3"]);
    }

    #[test]
    fn other_changed_fields_are_another_window() {
        let scene = Scene::new();
        let changed =
            |seq, fields: &[&str]| note("user.profile_updated", seq, &json!({ "updated_fields": fields }));
        assert_eq!(scene.offer(0, &changed(1, &["avatar", "nickname"])), Push::Accepted(1));
        assert_eq!(scene.offer(0, &changed(2, &["nickname"])), Push::Accepted(1));
        assert_eq!(scene.offer(0, &changed(3, &["nickname", "avatar"])), Push::Coalesced);
        let mut sent = scene.turn(1_100);
        sent.sort();
        assert_eq!(sent, ["2", "3"]);
    }

    #[test]
    fn typing_is_throttled_but_its_end_passes() {
        let scene = Scene::new();
        let typing = |typing: bool| {
            note(
                "message.typing",
                0,
                &json!({ "conversation_id": "c", "from_user_id": "f", "typing": typing }),
            )
        };
        assert_eq!(scene.offer(0, &typing(true)), Push::Accepted(1));
        assert_eq!(scene.offer(1_000, &typing(true)), Push::Coalesced);
        assert_eq!(scene.offer(1_500, &typing(false)), Push::Accepted(1));
        assert_eq!(scene.offer(3_000, &typing(true)), Push::Accepted(1));
    }

    #[test]
    fn the_end_of_typing_alone_opens_no_window() {
        let scene = Scene::new();
        let payload = json!({ "conversation_id": "c", "from_user_id": "f", "typing": false });
        assert_eq!(scene.offer(0, &note("message.typing", 0, &payload)), Push::Accepted(1));
        assert_eq!(scene.shaper.windows.load(Ordering::Relaxed), 0);
        assert!(scene.shaper.shards.iter().all(|shard| shard.lock().entries.is_empty()));
    }

    #[test]
    fn without_its_key_a_notification_replaces_no_other() {
        let scene = Scene::new();
        for seq in 1..=2 {
            assert_eq!(scene.offer(0, &note("user.status_changed", seq, &json!({}))), Push::Accepted(1));
        }
        assert_eq!(scene.turn(0), ["1", "2"]);
    }

    #[test]
    fn keys_beyond_the_bound_leave_at_once_but_open_windows_hold() {
        let scene = Scene::new();
        let unread = |seq: u64, n: usize| {
            note(
                "message.read_receipt",
                seq,
                &json!({ "conversation_id": n.to_string(), "reader_user_id": "r" }),
            )
        };
        for n in 0..GROUP_WINDOWS_MAX {
            scene.offer(0, &unread(n as u64 + 1, n));
        }
        assert!(scene.turn(0).is_empty());
        scene.offer(0, &unread(1_000, GROUP_WINDOWS_MAX));
        assert_eq!(scene.turn(0), ["1000"]);
        assert_eq!(scene.offer(0, &unread(1_001, 0)), Push::Coalesced);
    }

    #[test]
    fn keys_beyond_the_bound_overtake_nothing_where_order_counts() {
        let scene = Scene::new();
        let unread = |seq: u64, n: usize| {
            note("session.unread_updated", seq, &json!({ "conversation_id": n.to_string() }))
        };
        for n in 0..GROUP_WINDOWS_MAX {
            scene.offer(0, &unread(n as u64 + 1, n));
        }
        scene.offer(10, &unread(1_000, 0));
        scene.turn(20);
        *scene.answer.borrow_mut() = Push::Full;
        assert_eq!(scene.offer(30, &unread(1_001, GROUP_WINDOWS_MAX)), Push::Full);
        *scene.answer.borrow_mut() = Push::Accepted(1);
        scene.sent.borrow_mut().clear();
        assert_eq!(scene.offer(40, &unread(1_001, GROUP_WINDOWS_MAX)), Push::Accepted(1));
        assert_eq!(scene.turn(2_000), ["1000", "1001"]);
    }

    #[test]
    fn ordered_ones_wait_for_one_that_could_not_leave() {
        let scene = Scene::new();
        let unread = |seq, conversation: &str| {
            note("session.unread_updated", seq, &json!({ "conversation_id": conversation }))
        };
        scene.offer(0, &unread(1, "a"));
        scene.offer(1, &unread(2, "a"));
        scene.offer(2, &unread(3, "b"));
        *scene.answer.borrow_mut() = Push::Full;
        scene.sent.borrow_mut().clear();
        assert_eq!(scene.turn(1_200), ["2"], "3 is not tried");
        *scene.answer.borrow_mut() = Push::Accepted(1);
        assert_eq!(scene.turn(2_400), ["2", "3"]);
    }

    #[test]
    fn a_full_session_gets_the_latest_state_later() {
        let scene = Scene::new();
        let unread = |seq| note("session.unread_updated", seq, &json!({ "conversation_id": "c" }));
        *scene.answer.borrow_mut() = Push::Full;
        assert_eq!(scene.offer(0, &unread(1)), Push::Accepted(0), "the window has it");
        scene.turn(1_100);
        *scene.answer.borrow_mut() = Push::Accepted(1);
        assert_eq!(scene.offer(1_200, &unread(2)), Push::Coalesced);
        assert_eq!(scene.turn(2_300), ["2"]);
    }

    #[test]
    fn windows_are_forgotten_and_counted() {
        let scene = Scene::new();
        for seq in 0..100 {
            let conversation = format!("c{seq}");
            scene.offer(
                seq,
                &note("session.unread_updated", seq + 1, &json!({ "conversation_id": conversation })),
            );
        }
        assert_eq!(scene.shaper.windows.load(Ordering::Relaxed), 100);
        for ms in (0..12_000).step_by(20) {
            scene.turn(ms);
        }
        assert_eq!(scene.shaper.windows.load(Ordering::Relaxed), 0);
        assert!(scene.shaper.shards.iter().all(|shard| shard.lock().entries.is_empty()));
    }
    fn awaited(event: &str, seq: u64, payload: &Value) -> Arc<Notification> {
        let mut note = tests::note(event, seq, payload);
        note.require_ack = true;
        Arc::new(note)
    }

    #[test]
    fn what_must_be_acked_leaves_at_once_and_what_it_outdates_never() {
        let scene = Scene::new();
        let payload = json!({ "updated_fields": ["nickname"] });
        let changed = |seq| note("user.profile_updated", seq, &payload);
        scene.offer(0, &changed(1));
        let urgent = awaited("user.profile_updated", 2, &payload);
        assert_eq!(scene.offer(10, &urgent), Push::Accepted(1), "its ack is waited for");
        assert_eq!(scene.turn(5_000), ["2"]);
        assert_eq!(
            scene.offer(5_010, &urgent),
            Push::Accepted(1),
            "a redelivery reaches the session that has it"
        );
        assert_eq!(scene.offer(5_020, &changed(1)), Push::Coalesced);
    }

    #[test]
    fn what_must_be_acked_is_its_workers_to_try_again_and_waits_all_the_same() {
        let scene = Scene::new();
        let urgent = awaited("user.profile_updated", 1, &json!({ "updated_fields": [] }));
        *scene.answer.borrow_mut() = Push::Full;
        assert_eq!(scene.offer(0, &urgent), Push::Full);
        assert_eq!(scene.offer(100, &urgent), Push::Full);
        *scene.answer.borrow_mut() = Push::Accepted(1);
        scene.sent.borrow_mut().clear();
        assert_eq!(scene.offer(500, &urgent), Push::Accepted(1));
        assert_eq!(scene.turn(5_000), ["1"], "once");

        let late = awaited("user.profile_updated", 2, &json!({ "updated_fields": [] }));
        *scene.answer.borrow_mut() = Push::Full;
        scene.offer(5_100, &late);
        *scene.answer.borrow_mut() = Push::Accepted(1);
        scene.sent.borrow_mut().clear();
        assert_eq!(scene.turn(6_200), ["2"], "its worker has given up");
    }

    #[test]
    fn what_must_be_acked_overtakes_nothing_where_order_counts() {
        let scene = Scene::new();
        let unread = |seq, conversation: &str| {
            note("session.unread_updated", seq, &json!({ "conversation_id": conversation }))
        };
        for (seq, conversation) in [(1, "a"), (2, "a"), (3, "b"), (5, "d")] {
            scene.offer(seq, &unread(seq, conversation));
        }
        let urgent = awaited("session.unread_updated", 4, &json!({ "conversation_id": "c" }));
        *scene.answer.borrow_mut() = Push::Full;
        scene.sent.borrow_mut().clear();
        assert_eq!(scene.offer(10, &urgent), Push::Full);
        assert_eq!(*scene.sent.borrow(), ["2"], "the others are not tried");
        *scene.answer.borrow_mut() = Push::Accepted(1);
        scene.sent.borrow_mut().clear();
        assert_eq!(scene.offer(20, &urgent), Push::Accepted(1));
        assert_eq!(scene.turn(3_000), ["2", "3", "4", "5"]);
    }

    #[test]
    fn the_end_of_work_takes_the_place_of_what_waits_when_the_session_is_full() {
        let scene = Scene::new();
        let work =
            |seq, status: &str| note("file.processing", seq, &json!({ "file_id": "f", "status": status }));
        assert_eq!(scene.offer(0, &work(1, "processing")), Push::Accepted(1));
        *scene.answer.borrow_mut() = Push::Full;
        assert_eq!(scene.offer(10, &work(2, "completed")), Push::Coalesced);
        *scene.answer.borrow_mut() = Push::Accepted(1);
        scene.sent.borrow_mut().clear();
        assert_eq!(scene.turn(1_200), ["2"]);
    }

    #[test]
    fn what_is_for_one_device_replaces_nothing_that_others_wait_for() {
        let scene = Scene::new();
        let changed = |seq| note("user.profile_updated", seq, &json!({ "updated_fields": [] }));
        assert_eq!(scene.offer(0, &changed(1)), Push::Accepted(1));
        let only = Devices::Only([crate::id::DeviceId::new("d").unwrap()].into());
        assert_eq!(scene.offer_to(only, 10, &changed(2)), Push::Accepted(1));
        assert_eq!(scene.turn(2_000), ["1", "2"]);
    }

    #[test]
    fn beyond_the_bytes_that_may_wait_nothing_does_and_nothing_comes_out_of_order() {
        let mut scene = Scene::new();
        let status = |seq, user: &str| note("user.status_changed", seq, &json!({ "user_id": user }));
        scene.shaper.waits.max = 2 * status(1, "a").payload_json.len();
        scene.offer(0, &status(1, "a"));
        scene.offer(1, &status(2, "b"));
        assert!(scene.turn(10).is_empty());
        assert_eq!(scene.offer(20, &status(3, "c")), Push::Accepted(1));
        assert_eq!(scene.turn(30), ["3"], "there is no room to wait");
        assert_eq!(scene.offer(40, &status(5, "a")), Push::Coalesced, "what waited is replaced");
        assert_eq!(scene.turn(50), ["5"]);
        assert_eq!(scene.offer(60, &status(4, "a")), Push::Coalesced, "too late");

        scene.offer(70, &status(6, "a"));
        *scene.answer.borrow_mut() = Push::Full;
        assert_eq!(scene.offer(80, &status(8, "c")), Push::Full, "its worker tries again");
        *scene.answer.borrow_mut() = Push::Accepted(1);
        scene.sent.borrow_mut().clear();
        let sent: Vec<_> = (80..5_200).step_by(20).flat_map(|ms| scene.turn(ms)).collect();
        assert_eq!(sent, ["2", "6"]);
        assert_eq!(scene.shaper.waits.bytes.load(Ordering::Relaxed), 0);
        assert_eq!(scene.offer(5_300, &status(8, "c")), Push::Accepted(1));
        assert_eq!(scene.offer(5_310, &status(7, "c")), Push::Coalesced);
        assert_eq!((5_300..12_000).step_by(20).flat_map(|ms| scene.turn(ms)).collect::<Vec<_>>(), ["8"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever comes in which order, and however often the session is full: of each set of changed fields the last
        /// one arrives, never an older one after it, and nothing is left behind.
        #[test]
        fn no_field_set_is_lost(
            arrivals in prop::collection::vec((0_usize..8, 0_u64..140, any::<bool>(), 0_u32..8), 1..40),
            order in any::<u64>(),
            bytes_max in prop_oneof![Just(usize::MAX), 0_usize..200],
        ) {
            let mut scene = Scene::new();
            scene.shaper.waits.max = bytes_max;
            let taken = RefCell::new(BTreeMap::<Vec<String>, Vec<u64>>::new());
            let fields = |note: &Notification| -> Vec<String> {
                serde_json::from_value(note.payload["updated_fields"].clone()).unwrap()
            };
            let full = Cell::new(false);
            let send = |note: &Arc<Notification>| {
                if full.get() {
                    return Push::Full;
                }
                let mut taken = taken.borrow_mut();
                let taken = taken.entry(fields(note)).or_default();
                // A session takes each id once.
                if !taken.contains(&note.stream_seq) {
                    taken.push(note.stream_seq);
                }
                Push::Accepted(1)
            };
            let recipient = Recipient::online(UserId::new("u").unwrap());
            let offer = |ms, note: &Arc<Notification>| {
                let shape = note.event.shape.as_ref().unwrap();
                scene.shaper.offer(shape, note, &recipient, scene.at(ms), || true, |note, _, _| send(note))
            };
            let mut seqs: Vec<u64> = (1..=arrivals.len() as u64).collect();
            shuffle(&mut seqs, order);
            let mut newest: BTreeMap<Vec<String>, u64> = BTreeMap::new();
            let mut again: Vec<Arc<Notification>> = Vec::new();
            let mut ms = 0;
            for ((set, wait, require_ack, dice), seq) in arrivals.iter().zip(seqs) {
                full.set(*dice < 2);
                for at in (ms..ms + wait).step_by(20) {
                    scene.shaper.turn(scene.at(at), |note, _| send(note));
                }
                ms += wait;
                let names = ["avatar", "nickname", "status"];
                let set: Vec<_> = names.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1).collect();
                let set: Vec<_> = set.into_iter().map(|(_, name)| *name).collect();
                let mut note = tests::note("user.profile_updated", seq, &json!({ "updated_fields": set }));
                note.require_ack = *require_ack;
                let note = Arc::new(note);
                let newest = newest.entry(fields(&note)).or_default();
                *newest = seq.max(*newest);
                // Workers try again within 3 s, after which the session has room here.
                again.retain(|note| offer(ms, note) == Push::Full);
                if offer(ms, &note) == Push::Full {
                    again.push(note);
                }
                full.set(full.get() && again.len() < 3);
                again.retain(|note| offer(ms, note) == Push::Full);
            }
            full.set(false);
            for note in again {
                prop_assert_ne!(offer(ms, &note), Push::Full);
            }
            for at in (ms..ms + 10_000).step_by(100) {
                scene.shaper.turn(scene.at(at), |note, _| send(note));
            }
            for (set, newest) in newest {
                let taken = taken.borrow().get(&set).cloned().unwrap_or_default();
                prop_assert_eq!(taken.last(), Some(&newest), "{:?}: {:?}", set, taken);
                prop_assert!(taken.is_sorted_by(|a, b| a < b), "{:?}: {:?}", set, taken);
            }
            prop_assert_eq!(scene.shaper.windows.load(Ordering::Relaxed), 0);
            prop_assert_eq!(scene.shaper.waits.bytes.load(Ordering::Relaxed), 0);
        }
    }
}
