//! The rules of the built-in catalog, from the published message to the recipients.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::catalog::{Catalog, Inbox, Kind, Lane, Offline, Role};
use crate::directory::{Change, Members};
use crate::id::{DeviceId, UserId};
use crate::nats::Origin;
use crate::session::{Devices, Recipient};

/// When the tests' messages were stored, in Unix seconds.
const STORED_S: u64 = 1_700_000_000;

/// Who gets it, as `user` or `user-except-…` / `user-only-…`, sorted.
fn recipients(fanout: &Fanout) -> Vec<String> {
    let mut names: Vec<String> = fanout.targets().map(|target| name(&target)).collect();
    names.sort();
    names
}

fn name(recipient: &Recipient) -> String {
    let list = |devices: &[DeviceId]| devices.iter().map(DeviceId::as_str).collect::<Vec<_>>().join("+");
    let user = &recipient.user;
    match &recipient.devices {
        Devices::All => user.to_string(),
        Devices::Except(devices) => format!("{user}-except-{}", list(devices)),
        Devices::Only(devices) => format!("{user}-only-{}", list(devices)),
    }
}

fn plan_at(subject: &str, envelope: &Value, now_s: u64) -> Result<Plan, Refusal> {
    let catalog = Catalog::built_in().unwrap();
    let origin = Origin {
        stream: "NOTIFICATIONS".to_owned(),
        seq: 7,
        stored_at_us: STORED_S * 1_000_000,
        deliveries: 1,
    };
    let body = Bytes::from(envelope.to_string());
    let decoded = decode(&catalog, &format!("notification.{subject}"), &body)?;
    classify(decoded, &origin, None, false, now_s * 1_000)
}

fn plan(subject: &str, payload: impl Into<Value>) -> Plan {
    plan_at(subject, &json!({ "payload": payload.into() }), STORED_S).unwrap()
}

fn plan_with(subject: &str, payload: impl Into<Value>, metadata: impl Into<Value>) -> Plan {
    plan_at(subject, &json!({ "payload": payload.into(), "metadata": metadata.into() }), STORED_S).unwrap()
}

/// A set with an owner, an admin and as many members as it takes.
fn members(size: usize) -> Arc<Members> {
    let mut members = Members::default();
    for n in 0..size {
        let (name, role) = match n {
            0 => ("owner".to_owned(), Role::Owner),
            1 => ("admin".to_owned(), Role::Admin),
            _ => (format!("m{n}"), Role::Member),
        };
        members.apply(Change::Member { user: UserId::new(&name).unwrap(), role: Some(role), v: 1 });
    }
    Arc::new(members)
}

/// The recipients of a notification to a set of `size`, and how many are excluded.
fn to_set(subject: &str, payload: Value, size: usize) -> (Vec<String>, u64) {
    let fanout = resolve(plan(subject, payload), Some(members(size)));
    assert_eq!(fanout.recipients, fanout.targets().count() as u64);
    (recipients(&fanout), fanout.excluded)
}

fn to_user(subject: &str, payload: Value) -> Vec<String> {
    recipients(&resolve(plan(subject, payload), None))
}

#[test]
fn force_logout_spares_the_new_device_and_can_be_narrowed() {
    assert_eq!(to_user("auth.force_logout.u", json!({"device_id": "new"})), ["u-except-new"]);
    let plan = plan_with(
        "auth.force_logout.u",
        json!({"device_id": "new"}),
        json!({"target_device_ids": ["a", "new", "b"]}),
    );
    assert!(plan.note.policy.ack_every_device && plan.note.require_ack);
    assert_eq!(recipients(&resolve(plan, None)), ["u-only-a+b"]);
}

#[test]
fn own_events_go_to_the_other_devices() {
    for event in ["user.profile_updated", "friend.remark_updated", "session.pin_updated", "sync.completed"] {
        let plan = plan_with(&format!("{event}.u"), json!({}), json!({"origin_device_id": "d"}));
        assert_eq!(recipients(&resolve(plan, None)), ["u-except-d"], "{event}");
    }
    let plan = plan_with("sync.request.u", json!({"from_device_id": "e"}), json!({"origin_device_id": "d"}));
    assert_eq!(recipients(&resolve(plan, None)), ["u-except-d+e"]);
}

#[test]
fn friends_follow_a_user_who_is_the_target() {
    let status = plan("user.status_changed.u", json!({"user_id": "u"}));
    assert_eq!((status.audience.kind, &*status.audience.id), (Kind::Followers, "u"));
    assert_eq!(to_user("user.status_changed.other", json!({"user_id": "u"})), ["other"]);
    assert_eq!(to_set("user.status_changed.u", json!({"user_id": "u"}), 500).0.len(), 500);
    assert_eq!(to_set("user.status_changed.u", json!({"user_id": "u"}), 501), (vec![], 501));
    let profile = plan("user.friend_profile_changed.u", json!({"friend_user_id": "u"}));
    assert_eq!(profile.audience.kind, Kind::Followers);
    assert_eq!(to_set("user.friend_profile_changed.u", json!({"friend_user_id": "u"}), 501).0.len(), 501);
}

#[test]
fn an_accepted_request_reaches_both_sides_and_alerts_one() {
    let payload = |status: &str| json!({"to_user_id": "v", "status": status});
    let fanout = resolve(plan("friend.request_handled.u", payload("accepted")), None);
    let offline: Vec<_> = fanout.targets().map(|target| (name(&target), target.offline)).collect();
    assert_eq!(offline, [("u".to_owned(), Offline::Alert), ("v".to_owned(), Offline::None)]);
    assert_eq!(to_user("friend.request_handled.u", payload("rejected")), ["u"]);
    assert_eq!(to_user("friend.request_handled.u", json!({"to_user_id": "u", "status": "accepted"})), ["u"]);
}

#[test]
fn members_coming_and_going_are_told_to_few_in_a_large_group() {
    for event in ["group.member_joined", "group.member_left", "group.role_changed"] {
        let subject = format!("{event}.g");
        let payload = json!({"user_id": "new"});
        let (everybody, excluded) = to_set(&subject, payload.clone(), 500);
        let extra = usize::from(event == "group.member_left");
        assert_eq!((everybody.len(), excluded), (500 + extra, 0), "{event}");
        let (few, excluded) = to_set(&subject, payload, 501);
        assert_eq!((few, excluded), (vec!["admin".into(), "new".into(), "owner".into()], 499), "{event}");
        // Somebody who is in the set and named besides is one recipient, and not excluded.
        let (few, excluded) = to_set(&subject, json!({"user_id": "m5"}), 501);
        assert_eq!((few, excluded), (vec!["admin".into(), "m5".into(), "owner".into()], 498), "{event}");
        assert_eq!(to_set(&subject, json!({"user_id": "m5"}), 10).0.len(), 10, "{event}");
    }
}

#[test]
fn one_muted_member_is_told_to_them_and_the_admins() {
    let one = json!({"mute_type": "specific_member", "target_user_id": "m5"});
    assert_eq!(to_set("group.muted.g", one, 10), (vec!["admin".into(), "m5".into(), "owner".into()], 7));
    assert_eq!(to_set("group.muted.g", json!({"mute_type": "all_members"}), 10).0.len(), 10);
}

#[test]
fn a_group_message_goes_to_all_but_its_author_when_sent_to_the_conversation() {
    let payload = json!({"conversation_id": "c", "conversation_type": "group", "from_user_id": "admin"});
    let (users, excluded) = to_set("message.new.c", payload.clone(), 4);
    assert_eq!((users, excluded), (vec!["m2".into(), "m3".into(), "owner".into()], 1));
    assert_eq!(to_user("message.new.u", payload), ["u"], "a service that fans out itself");
    let single = json!({"conversation_id": "c", "conversation_type": "single", "from_user_id": "v"});
    assert_eq!(to_user("message.new.u", single), ["u"]);
}

#[test]
fn a_mention_of_all_goes_to_the_group_without_acks() {
    let all = json!({"mention_type": "all", "group_id": "g", "from_user_id": "admin"});
    assert!(!plan("message.mentioned.g", all.clone()).note.require_ack);
    assert_eq!(to_set("message.mentioned.g", all.clone(), 3), (vec!["m2".into(), "owner".into()], 1));
    assert_eq!(to_user("message.mentioned.u", all), ["u"]);
    let one = plan("message.mentioned.u", json!({"mention_type": "single", "group_id": "g"}));
    assert!(one.note.require_ack);
}

#[test]
fn recalls_calls_and_broadcasts_find_their_sets() {
    for (subject, kind, id) in [
        ("message.recalled.c", Kind::Conversation, "c"),
        ("livekit.call_status.k", Kind::Call, "k"),
        ("group.disbanded.g", Kind::Group, "g"),
        ("admin.announcement.broadcast", Kind::Broadcast, "broadcast"),
        ("admin.maintenance.broadcast", Kind::Broadcast, "broadcast"),
        ("system.broadcast.any", Kind::Broadcast, "any"),
    ] {
        let plan = plan(subject, json!({}));
        assert_eq!((plan.audience.kind, &*plan.audience.id), (kind, id), "{subject}");
        assert!(!plan.note.require_ack, "{subject}");
    }
}

#[test]
fn a_rejection_reaches_the_caller_and_the_rejectors_other_devices() {
    let plan = plan_with(
        "livekit.call_rejected.caller",
        json!({"rejector_user_id": "v"}),
        json!({"origin_device_id": "d"}),
    );
    assert_eq!(recipients(&resolve(plan, None)), ["caller", "v-except-d"]);
}

#[test]
fn every_event_of_the_catalog_finds_an_audience_for_an_empty_payload() {
    for event in Catalog::built_in().unwrap().events() {
        let target = if event.target == crate::catalog::Target::Broadcast { "broadcast" } else { "x" };
        // Only a ban must say more: for how long.
        let payload =
            if event.name == "admin.user_banned" { json!({"is_permanent": true}) } else { json!({}) };
        plan(&format!("{}.{target}", event.name), payload);
    }
}

#[test]
fn a_payload_that_nothing_is_decided_by_is_not_parsed() {
    let unparsed = [
        "session.unread_updated",
        "message.read_receipt",
        "message.typing",
        "friend.request",
        "group.invited",
        "file.processing",
    ];
    for event in unparsed {
        let plan = plan(&format!("{event}.x"), json!({"user_id": "u", "start_time": STORED_S + 7_200}));
        assert!(!plan.note.payload.is_parsed(), "{event}");
    }
}

#[test]
fn to_user_id_must_be_the_target_of_a_user_audience_only() {
    let envelope = json!({"payload": {}, "to_user_id": "v"});
    assert_eq!(
        plan_at("friend.request.u", &envelope, STORED_S).unwrap_err().reason,
        Reason::RecipientMismatch
    );
    assert!(plan_at("group.disbanded.g", &envelope, STORED_S).is_ok());
}

#[test]
fn ids_come_from_the_envelope_the_header_or_the_stream() {
    assert_eq!(&*plan("friend.request.u", json!({})).note.id, "NOTIFICATIONS-7");
    let envelope = json!({"payload": {}, "notification_id": "mine"});
    assert_eq!(&*plan_at("friend.request.u", &envelope, STORED_S).unwrap().note.id, "mine");
}

#[test]
fn publishers_can_ask_for_acks_and_never_remove_one() {
    let wish = |subject: &str, wish: bool| {
        plan_with(subject, json!({}), json!({"require_ack": wish})).note.require_ack
    };
    assert!(wish("file.expiring.u", true));
    assert!(wish("friend.request.u", false));
    assert!(!wish("group.info_updated.g", true), "a set cannot ack");
    assert!(!wish("message.typing.u", true), "nor is a typing sign waited for");
}

#[test]
fn publishers_can_change_the_offline_policy_where_it_is_theirs() {
    let wish = |subject: &str, wish: &str| {
        plan_with(subject, json!({}), json!({"offline": wish})).note.policy.offline
    };
    assert_eq!(wish("friend.request.u", "none"), Offline::None);
    assert_eq!(wish("friend.request.u", "silent"), Offline::Silent);
    assert_eq!(wish("friend.remark_updated.u", "alert"), Offline::Alert);
    assert_eq!(wish("friend.request.u", "ring"), Offline::Alert);
    assert_eq!(wish("push.delivery_status.u", "alert"), Offline::Never);
    assert_eq!(wish("livekit.call_invite.u", "none"), Offline::Ring);
    assert_eq!(wish("message.typing.u", "alert"), Offline::None);
    let both = plan_with(
        "friend.request_handled.u",
        json!({"to_user_id": "v", "status": "accepted"}),
        json!({"offline": "none"}),
    );
    assert!(resolve(both, None).targets().all(|target| target.offline == Offline::None));
}

#[test]
fn the_priority_moves_the_session_lane_where_the_row_lets_it() {
    let lane = |subject: &str, payload: Value| {
        let envelope = json!({"payload": payload, "priority": "low"});
        plan_at(subject, &envelope, STORED_S).unwrap().note.lane
    };
    assert_eq!(lane("message.new.u", json!({})), Lane::Low);
    assert_eq!(lane("auth.force_logout.u", json!({})), Lane::High);
    assert_eq!(lane("group.info_updated.g", json!({})), Lane::Normal);
    assert_eq!(lane("admin.announcement.broadcast", json!({"priority": "high"})), Lane::High);
}

#[test]
fn time_to_live_counts_from_the_store_time() {
    let expiry = |plan: &Plan| plan.note.expires_at_ms / 1_000 - STORED_S;
    let row = plan("friend.request.u", json!({}));
    assert_eq!((expiry(&row), row.note.policy.inbox_until_ms / 1_000 - STORED_S), (3_600, 7 * 86_400));
    let own = plan_with("friend.request.u", json!({}), json!({"ttl": 60}));
    assert_eq!((expiry(&own), own.note.policy.inbox_until_ms / 1_000 - STORED_S), (60, 60));
    let reminder = plan("file.expiring.u", json!({"expires_at": STORED_S + 5}));
    assert_eq!((expiry(&reminder), reminder.note.policy.inbox_until_ms / 1_000 - STORED_S), (3_600, 5));
    let late = plan("file.expiring.u", json!({"expires_at": STORED_S - 5}));
    assert_eq!((expiry(&late), late.note.policy.inbox), (3_600, Inbox::None));
    assert_eq!(expiry(&plan("admin.announcement.broadcast", json!({"expires_at": STORED_S + 5}))), 5);
    assert_eq!(expiry(&plan("livekit.call_invite.u", json!({}))), 30);
    assert_eq!(expiry(&plan_with("friend.request.u", json!({}), json!({"ttl": 0}))), 3_600);
    assert!(own.is_expired((STORED_S + 60) * 1_000) && !own.is_expired((STORED_S + 59) * 1_000));
}

#[test]
fn delivery_can_be_asked_for_up_to_30_days_ahead() {
    let at = |ahead_s: u64| {
        let envelope = json!({"payload": {}, "metadata": {"deliver_at": STORED_S + ahead_s}});
        plan_at("file.expiring.u", &envelope, STORED_S).map(|plan| plan.deliver_at)
    };
    assert_eq!(at(60), Ok(Some(STORED_S + 60)));
    assert_eq!(at(0), Ok(None));
    assert_eq!(at(30 * 86_400 + 1).unwrap_err().reason, Reason::TooFarAhead);
}

#[test]
fn large_sets_keep_an_inbox_for_urgent_rows_only() {
    let inbox = |subject: &str, payload: Value, size| {
        let fanout = resolve(plan(subject, payload), Some(members(size)));
        assert_eq!(fanout.note.large_set, size > 500);
        fanout.note.policy.inbox
    };
    let message = json!({"conversation_id": "c"});
    assert_eq!(inbox("message.new.c", message.clone(), 500), Inbox::Missed);
    assert_eq!(inbox("message.new.c", message, 501), Inbox::None);
    assert_eq!(inbox("group.disbanded.g", json!({}), 501), Inbox::Missed);
}

#[test]
fn invalid_ids_in_fields_are_refused() {
    for (subject, payload) in [
        ("auth.force_logout.u", json!({"device_id": "a b"})),
        ("message.new.c", json!({"conversation_id": "c", "from_user_id": "用户"})),
        ("group.member_left.g", json!({"user_id": "a.b"})),
    ] {
        let refusal = plan_at(subject, &json!({ "payload": payload }), STORED_S).unwrap_err();
        assert_eq!(refusal.reason, Reason::InvalidId, "{subject}");
    }
}
