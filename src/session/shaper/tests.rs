//! Bursts without sockets: a scene notes what would be sent, and turns the wheel by hand.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::session::tests::{self, shuffle};

fn note(event: &str, seq: u64, payload: &Value) -> Arc<Notification> {
    Arc::new(tests::note(event, seq, payload))
}

fn turn(shaper: &Shaper, now: Now, send: impl Fn(&Arc<Notification>, &Recipient) -> Push) {
    for part in 0..PARTS {
        shaper.turn(part, now, &send);
    }
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
        turn(&self.shaper, self.at(ms), |note, _| self.send(note));
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
        note("message.typing", 0, &json!({ "conversation_id": "c", "from_user_id": "f", "typing": typing }))
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
        note("message.read_receipt", seq, &json!({ "conversation_id": n.to_string(), "reader_user_id": "r" }))
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
    let work = |seq, status: &str| note("file.processing", seq, &json!({ "file_id": "f", "status": status }));
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
    scene.shaper.waits.max = 2 * status(1, "a").payload.json().len();
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
            serde_json::from_value(note.payload.parsed()["updated_fields"].clone()).unwrap()
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
                turn(&scene.shaper, scene.at(at), |note, _| send(note));
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
            turn(&scene.shaper, scene.at(at), |note, _| send(note));
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
