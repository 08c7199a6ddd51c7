//! What a session remembers: states, recalled messages.

use super::*;

fn noted(event: &str, id: &str, payload: &serde_json::Value) -> Arc<Notification> {
    let mut note = Arc::into_inner(note(event, id, 0)).unwrap();
    note.payload = payload.as_object().unwrap().clone().into();
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
    let of = |event, id: &str, message: &str| noted(event, id, &serde_json::json!({ "message_id": message }));
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
        Arc::new(crate::session::tests::note("user.profile_updated", seq, &payload))
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
