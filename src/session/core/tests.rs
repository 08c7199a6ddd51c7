//! A session without sockets: the events and the time are arguments.

mod ending;
mod known;
mod missed;

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

fn cursor_at(sequence: u64) -> Cursor {
    Cursor { epoch: 1, sequence, unix_s: 1 }
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
        payload: payload.as_object().unwrap().clone().into(),
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
