//! What a device missed, and how far the cursors of pings go.

use super::*;

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
fn an_inbox_without_what_was_refused_is_read_again_after_a_moment_and_not_before() {
    let start = now();
    let mut core = core(start);
    for id in 0..8 {
        offer(&mut core, "message.new", &format!("n{id}"), start);
    }
    assert_eq!(offer(&mut core, "friend.remark_updated", "refused", start), Offer::Full);
    assert!(core.is_due(), "to read what was refused");
    assert_eq!(core.take_inbox_read(start), Some(cursor_at(9)));
    core.inbox_read(Missed { cursor: Some(cursor_at(9)), ..Missed::default() }, start);
    assert!(!core.is_due());
    assert_eq!(core.take_inbox_read(start), None);
    assert_eq!(core.tick(start, no_inbox), start.instant + inbox::AGAIN);
    let again = later(start, inbox::AGAIN);
    assert_eq!(core.take_inbox_read(again), Some(cursor_at(9)));
    core.inbox_read(Missed { cursor: Some(cursor_at(9)), ..Missed::default() }, again);
    assert_eq!(core.take_inbox_read(later(again, inbox::AGAIN)), None, "it takes longer");
    core.inbox_record(10, None);
    assert_eq!(core.take_inbox_read(again), Some(cursor_at(9)), "and ends when there is something");

    // A read that failed, and a replay that the client does not ack: no time that has passed is told.
    core.inbox_read(Missed::default(), again);
    core.replay(Missed { notes: vec![(note("message.new", "a", 10), cursor_at(9))], ..Missed::default() });
    let late = later(again, inbox::RETRY);
    assert_eq!(core.take_inbox_read(late), None);
    assert!(core.tick(late, no_inbox) > late.instant);
}

#[test]
fn what_is_shed_by_an_offer_of_an_earlier_time_is_read_when_its_record_comes() {
    let start = now();
    let mut core = core(start);
    let later = later(start, Duration::from_millis(30));
    let mut low = note("session.pin_updated", "low", 10);
    Arc::get_mut(&mut low).unwrap().lane = crate::catalog::Lane::Low;
    core.offer(&low, &recipient(), || None, later);
    for id in 0..8 {
        offer(&mut core, "message.new", &format!("n{id}"), start);
    }
    assert_eq!(core.take_inbox_read(later), Some(cursor_at(9)), "it was shed");
    // Somebody else's record was there, and its own was not.
    core.inbox_read(Missed { cursor: Some(cursor_at(10)), ..Missed::default() }, later);
    assert_eq!(core.take_inbox_read(later), None);
    core.inbox_record(11, Some(later.unix_ms));
    assert_eq!(core.take_inbox_read(later), Some(cursor_at(10)));
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
    let missed = Missed { notes, cursor: Some(cursor_at(5)), held: Some(cursor_at(4)), ..Missed::default() };
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
