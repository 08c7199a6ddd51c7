//! The shaping state of this node's users, and the wheel that says when something is due.
//!
//! Sharded like the registry. A shard is locked while what leaves is offered to the sessions, so that nothing can
//! overtake in between; locks are always taken in the order shaper, registry, session. One task, the edge's, turns the
//! wheel; nothing here waits.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, gauge};
use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use tokio::time::Instant;

use super::shape::{Arrival, Group, Rule, Verdict};
use super::{Push, Recipient};
use crate::catalog::{Field, Root, Shape, ShapeMode};
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

/// Windows a node keeps: about 300 B each, so 300 MB when all 100,000 sessions have ten of them. Beyond it
/// notifications pass unshaped, since nothing may be lost.
const WINDOWS_MAX: usize = 1_000_000;

/// Windows of one user and one kind of notification. Each arrival looks through them; more keys than this at once (marking
/// everything read) leave unshaped.
const GROUP_WINDOWS_MAX: usize = 256;

/// One notification that waits for its window.
#[derive(Debug)]
struct Waiting {
    note: Arc<Notification>,
    recipient: Recipient,
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
    /// Zero of the wheel's time, which is monotonic: a wall clock that is set must not stop it.
    started: Instant,
}

impl Default for Shaper {
    fn default() -> Self {
        describe_gauge!(
            "fanfare_shape_windows",
            "coalescing and throttling windows that are open or remembered"
        );
        describe_counter!(
            "fanfare_shape_bypassed_total",
            "notifications not shaped because there are too many windows"
        );
        describe_counter!(
            "fanfare_shape_unheard_total",
            "notifications whose user had no session left at the end of the window"
        );
        Self {
            shards: std::iter::repeat_with(Mutex::default).take(SHARDS).collect(),
            hasher: RandomState::new(),
            windows: AtomicUsize::new(0),
            started: Instant::now(),
        }
    }
}

impl Shaper {
    /// Offers `note` to `send` now, later or never. `present` tells whether the user has a session that is meant,
    /// `send` offers to the sessions at once.
    pub(super) fn offer(
        &self,
        shape: &Shape,
        note: &Arc<Notification>,
        recipient: &Recipient,
        now: Now,
        present: impl FnOnce() -> bool,
        send: impl Fn(&Arc<Notification>, &Recipient) -> Push,
    ) -> Push {
        let now_ms = self.elapsed_ms(now);
        let rule = rule(shape, note.large_set);
        // Without its key nobody can say which others it may replace.
        let Some(key) = key(&self.hasher, shape, note) else { return send(note, recipient) };
        let arrival = Arrival { key, seq: note.stream_seq, passes: passes(shape, note) };
        let mut shard = self.shard(&recipient.user);
        if !present() {
            return Push::Absent;
        }
        let name = Key { user: recipient.user.clone(), event: note.event.name.as_str().into() };
        // What waits in a window may only be passed by way of it.
        let known = shard.entries.get(&name);
        let (open, keys) = known.map_or((false, 0), |entry| (entry.group.knows(key), entry.group.len()));
        if !open && (keys >= GROUP_WINDOWS_MAX || self.windows.load(Ordering::Relaxed) >= WINDOWS_MAX) {
            counter!("fanfare_shape_bypassed_total").increment(1);
            return send(note, recipient);
        }
        let entry = shard.entries.entry(name.clone()).or_insert_with(|| Entry {
            group: Group::default(),
            rule,
            slot_ms: None,
        });
        entry.rule = rule;
        let before = entry.group.len();
        let waiting = Waiting { note: note.clone(), recipient: recipient.clone() };
        let (verdict, leaves) = entry.group.arrive(rule, arrival, waiting, now_ms);
        let mut answer = Push::Accepted(1);
        if let Some(waiting) = leaves {
            answer = send(&waiting.note, &waiting.recipient);
            if answer == Push::Full && !rule.throttle {
                // A state that cannot leave now takes the place in the window, where a newer one may replace it.
                entry.group.hold_again(rule, arrival, waiting, now_ms);
                answer = Push::Accepted(0);
            }
        }
        let after = entry.group.len();
        self.count(before, after);
        shard.settle(&name, after, now_ms);
        drop(shard);
        match verdict {
            Verdict::Now | Verdict::Held => answer,
            Verdict::NowInstead | Verdict::HeldInstead | Verdict::Dropped => Push::Coalesced,
        }
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
                let mut stopped = false;
                for (arrival, waiting) in entry.group.due(entry.rule, now_ms) {
                    let answer = if stopped { Push::Full } else { send(&waiting.note, &waiting.recipient) };
                    match answer {
                        Push::Full => {
                            // Where order counts, a newer one must not leave before one that could not.
                            stopped = entry.rule.ordered;
                            entry.group.hold_again(entry.rule, arrival, waiting, now_ms);
                        }
                        Push::Absent => counter!("fanfare_shape_unheard_total").increment(1),
                        Push::Accepted(_) | Push::Coalesced => {}
                    }
                }
                let after = entry.group.len();
                self.count(before, after);
                shard.settle(&name, after, now_ms);
            }
        }
        gauge!("fanfare_shape_windows").set(self.windows.load(Ordering::Relaxed) as f64);
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

/// The window's key: the values of the row's fields and, where the row says so, the set of changed fields. `None` when a field of the payload is missing.
fn key(hasher: &RandomState, shape: &Shape, note: &Notification) -> Option<u64> {
    let mut hash = hasher.build_hasher();
    for field in &shape.key {
        match value(note, field) {
            Some(Value::String(text)) => text.hash(&mut hash),
            Some(other) => other.to_string().hash(&mut hash),
            None if field.root() == Root::Payload => return None,
            None => note.from_user_id.as_ref().filter(|_| field.root() == Root::FromUserId).hash(&mut hash),
        }
    }
    if shape.field_set {
        let fields = note.payload.get("updated_fields").and_then(Value::as_array);
        let mut fields: Vec<&str> = fields.into_iter().flatten().filter_map(Value::as_str).collect();
        fields.sort_unstable();
        fields.dedup();
        fields.hash(&mut hash);
    }
    Some(hash.finish())
}

fn passes(shape: &Shape, note: &Notification) -> bool {
    shape.pass.iter().any(|when| {
        when.iter().all(|(field, wanted)| match value(note, field) {
            Some(Value::String(text)) => text == wanted,
            Some(Value::Bool(flag)) => flag.to_string() == *wanted,
            _ => false,
        })
    })
}

fn value<'a>(note: &'a Notification, field: &Field) -> Option<&'a Value> {
    if field.root() != Root::Payload {
        return None;
    }
    let mut keys = field.keys();
    let first = note.payload.get(keys.next()?);
    keys.fold(first, |value, key| value.and_then(|value| value.get(key)))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use serde_json::json;

    use super::*;
    use crate::catalog::Catalog;
    use crate::protocol::notification::{Frames, Policy};

    fn note(event: &str, seq: u64, payload: &Value) -> Arc<Notification> {
        let event = Catalog::built_in().unwrap().get(event).unwrap().clone();
        Arc::new(Notification {
            id: seq.to_string().into(),
            lane: event.lane,
            require_ack: event.ack,
            large_set: false,
            policy: Policy::default(),
            event,
            timestamp: 1,
            published_at_ms: 1,
            expires_at_ms: u64::MAX,
            stream_seq: seq,
            from_user_id: None,
            payload_json: payload.to_string().into(),
            payload: payload.as_object().unwrap().clone(),
            frames: Frames::default(),
        })
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
            let recipient = Recipient::online(UserId::new("u").unwrap());
            let shape = note.event.shape.as_ref().unwrap();
            self.shaper.offer(shape, note, &recipient, self.at(ms), || true, |note, _| self.send(note))
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
}
