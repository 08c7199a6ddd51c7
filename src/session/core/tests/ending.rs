//! How sessions end: silence, tokens, bans, goaways, rotation.

use super::*;

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
