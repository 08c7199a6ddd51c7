//! The shaping state of this node's users, and the wheel that says when something is due.
//!
//! Sharded like the registry. A shard is locked while what leaves is offered to the sessions, so that nothing can
//! overtake in between; locks are always taken in the order shaper, registry, session. One task, the edge's, turns the
//! wheel; nothing here waits.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, gauge};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::shape::{Arrival, Group, Rule, Verdict};
use super::shape_key::{ShapeKey, passes};
use super::{Devices, Push, Recipient};
use crate::catalog::{Event, Shape, ShapeMode};
use crate::clock::Now;
use crate::id::UserId;
use crate::protocol::Notification;

/// Parts that are locked by themselves: a power of two well above the number of cores.
pub(super) const PARTS: usize = 64;

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

/// A user and a kind of notification, which is told by its name.
#[derive(Debug, Clone)]
struct Key {
    user: UserId,
    event: Arc<Event>,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.event.name == other.event.name && self.user == other.user
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.event.name.hash(state);
        self.user.hash(state);
    }
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
            shards: std::iter::repeat_with(Mutex::default).take(PARTS).collect(),
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
        let mut shard = self.shard(&recipient.user);
        if !present() {
            return Push::Absent;
        }
        // Without its key nobody can say which others it may replace.
        let Some(key) = self.key(note, recipient) else { return send(note, recipient, true) };
        let name = Key { user: recipient.user.clone(), event: note.event.clone() };
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
        let room = if rule.throttle { None } else { self.waits.room(note.payload.json().len()) };
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

    /// Sends what is due of one of the [`PARTS`]; gives how many these were. Called every [`TICK`].
    pub(super) fn turn(
        &self,
        part: usize,
        now: Now,
        send: impl Fn(&Arc<Notification>, &Recipient) -> Push,
    ) -> u64 {
        let now_ms = self.elapsed_ms(now);
        let mut shard = self.shards[part].lock();
        let mut released = 0;
        for name in shard.turn(now_ms) {
            let Some(entry) = shard.entries.get_mut(&name) else { continue };
            if entry.slot_ms.is_none_or(|slot_ms| slot_ms > now_ms) {
                continue;
            }
            entry.slot_ms = None;
            let before = entry.group.len();
            let due = entry.group.due(entry.rule, now_ms);
            released += due.len() as u64;
            entry.send(due, now_ms, &send);
            let after = entry.group.len();
            self.count(before, after);
            shard.settle(&name, after, now_ms);
        }
        released
    }

    /// Tells how much waits.
    pub(super) fn report(&self) {
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
        self.shards[self.hasher.hash_one(user) as usize % PARTS].lock()
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
