//! The workers against a real nats-server, with sessions that the test plays.

mod calls;
mod evidence;
mod fanout;
pub(crate) mod gateway;

use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::PullConsumer;
use fanfare::catalog::{Catalog, Kind, Role};
use fanfare::directory::{Change, Key, Writer};
use fanfare::id::UserId;
use fanfare::provision::{Env, apply_all};
use futures::StreamExt;
use serde_json::json;

use gateway::{Behaviour, Fake, Gateway, unix_s};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_friend_request_to_somebody_away_goes_to_offline_push_and_inbox() {
    let gateway = Gateway::start(Fake::default()).await;

    let body = json!({"notification_id": "n1", "type": "friend.request", "from_user_id": "bob",
        "to_user_id": "ann", "payload": {"message": "hi"}});
    gateway.publish("notification.friend.request.ann", body.to_string()).await;

    let push = gateway.records("OFFLINE_PUSH", 1).await.remove(0);
    assert_eq!(push.subject, "push.offline.alert");
    for (field, wanted) in [
        ("notification_id", json!("n1")),
        ("notification_type", json!("friend.request")),
        ("kind", json!("alert")),
        ("reason", json!("no_session")),
        ("collapse_id", json!("n1")),
        ("users", json!(["ann"])),
        ("from_user_id", json!("bob")),
        ("payload", json!({"message": "hi"})),
    ] {
        assert_eq!(push.json[field], wanted, "{field}");
    }
    let inboxed = gateway.records("INBOX", 1).await.remove(0);
    assert_eq!(inboxed.subject, "inbox.ann");
    let kept: u64 = inboxed.header("Nats-TTL").parse().unwrap();
    assert!((604_790..=604_800).contains(&kept), "seven days, less what has passed: {kept}");
    assert_eq!(inboxed.json["payload"], json!({"message": "hi"}));
    gateway.drained().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_understood_is_dead_lettered_with_its_reason() {
    let gateway = Gateway::start(Fake::default()).await;
    // An event that the stream still takes and the catalog does not know any more.
    let hug = "notification.friend.hug.*";
    gateway
        .change("NOTIFICATIONS_HIGH", |config| config["subjects"].as_array_mut().unwrap().push(json!(hug)))
        .await;

    let cases = [
        ("notification.friend.request.u1", "{", "malformed", "dlq.friend.request"),
        (
            "notification.friend.request.u2",
            r#"{"type":"friend.deleted","payload":{}}"#,
            "type_mismatch",
            "dlq.friend.request",
        ),
        ("notification.friend.request.u:3", r#"{"payload":{}}"#, "invalid_id", "dlq.friend.request"),
        (
            "notification.friend.request.u4",
            r#"{"payload":{},"to_user_id":"u5"}"#,
            "recipient_mismatch",
            "dlq.friend.request",
        ),
        ("notification.friend.hug.u5", r#"{"payload":{}}"#, "unknown_event", "dlq.unknown"),
    ];
    for (subject, body, ..) in cases {
        gateway.publish(subject, body.to_owned()).await;
    }

    let letters = gateway.records("NOTIFICATIONS_DLQ", cases.len()).await;
    for (subject, body, reason, dead) in cases {
        let letter =
            letters.iter().find(|letter| letter.header("Fanfare-Subject") == subject).expect(subject);
        assert_eq!(
            (letter.header("Fanfare-Reason").as_str(), letter.subject.as_str()),
            (reason, dead),
            "{subject}"
        );
        assert_eq!(letter.body, body, "as it came");
        assert_eq!(letter.header("Fanfare-Deliveries"), "1");
    }
    gateway.drained().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_message_reaches_2500_absent_members_in_three_batches() {
    let gateway = Gateway::start(Fake::default()).await;
    let writer = Writer::open(gateway.context.clone()).await.unwrap();
    let conversation = Key::new(Kind::Conversation, "c1").unwrap();
    let group = Key::new(Kind::Group, "g1").unwrap();
    writer.write(&conversation, &Change::Alias { group: "g1".into(), v: 1 }).await.unwrap();
    gateway.members(&group, 2_501).await;

    let body = json!({"notification_id": "m1", "type": "message.new", "from_user_id": "u0", "payload":
        {"conversation_id": "c1", "conversation_type": "group", "from_user_id": "u0", "content": "hello"}});
    gateway.publish("notification.message.new.c1", body.to_string()).await;

    let pushes = gateway.records("OFFLINE_PUSH", 3).await;
    gateway.drained().await;
    let batches: Vec<Vec<String>> =
        pushes.iter().map(|push| serde_json::from_value(push.json["users"].clone()).unwrap()).collect();
    assert!(batches.iter().all(|users| users.len() <= 1_000));
    let mut users: Vec<String> = batches.concat();
    users.sort();
    users.dedup();
    assert_eq!(users.len(), 2_500, "everybody once");
    assert!(!users.contains(&"u0".to_owned()), "but not the sender");
    assert_eq!(gateway.count("OFFLINE_PUSH").await, 3);
    assert_eq!(gateway.count("INBOX").await, 0, "over 500 the clients catch up by loading");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audience_nobody_wrote_is_dead_lettered_and_an_empty_one_is_not() {
    let gateway = Gateway::start(Fake::default()).await;
    let writer = Writer::open(gateway.context.clone()).await.unwrap();
    let empty = Key::new(Kind::Group, "empty").unwrap();
    writer.write(&empty, &Change::Gone { v: 1 }).await.unwrap();

    for group in ["empty", "never"] {
        gateway
            .publish(&format!("notification.group.disbanded.{group}"), r#"{"payload":{}}"#.to_owned())
            .await;
    }

    let letter = gateway.records("NOTIFICATIONS_DLQ", 1).await.remove(0);
    assert_eq!(letter.header("Fanfare-Reason"), "unknown_audience");
    assert!(letter.header("Fanfare-Detail").contains("group.never"));
    gateway.drained().await;
    assert_eq!(gateway.count("NOTIFICATIONS_DLQ").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expired_before_delivery_reaches_nobody() {
    let gateway = Gateway::prepare(Fake::default()).await;
    let body = json!({"payload": {}, "metadata": {"ttl": 1}});
    gateway.publish("notification.friend.request.ann", body.to_string()).await;
    let published = unix_s();
    gateway.eventually("it is over", async || unix_s() >= published + 2).await;

    gateway.work().await;

    gateway.drained().await;
    for stream in ["OFFLINE_PUSH", "INBOX", "NOTIFICATIONS_DLQ"] {
        assert_eq!(gateway.count(stream).await, 0, "{stream}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_stays_when_its_dead_letter_is_refused() {
    let gateway = Gateway::start(Fake::default()).await;
    gateway.change("NOTIFICATIONS_DLQ", |config| config["max_bytes"] = json!(1)).await;

    gateway.publish("notification.friend.request.ann", "{".to_owned()).await;

    gateway
        .eventually("a second delivery", async || {
            let info = gateway.consumer_info("high").await;
            info["num_redelivered"].as_u64() > Some(0)
        })
        .await;
    assert_eq!(gateway.queued().await, 1);
    gateway.change("NOTIFICATIONS_DLQ", |config| config["max_bytes"] = json!(1_000_000)).await;
    gateway.records("NOTIFICATIONS_DLQ", 1).await;
    gateway.drained().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_of_any_device_ends_the_wait_and_nothing_is_handed_off() {
    let gateway = Gateway::start(Fake::online("ann", Behaviour::Ack)).await;

    gateway.publish("notification.friend.request.ann", r#"{"payload":{}}"#.to_owned()).await;

    gateway.drained().await;
    assert_eq!(gateway.sessions.taken(), 1);
    assert_eq!(gateway.count("OFFLINE_PUSH").await, 0);
    assert_eq!(gateway.count("INBOX").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_nobody_acks_rings_the_phone_within_5_s() {
    let gateway = Gateway::start(Fake::online("ann", Behaviour::Silent)).await;

    let body = json!({"payload": {"call_id": "c", "livekit_token": "secret"}});
    let published = tokio::time::Instant::now();
    gateway.publish("notification.livekit.call_invite.ann", body.to_string()).await;

    let ring = gateway.records("OFFLINE_PUSH", 1).await.remove(0);
    assert!(published.elapsed() < Duration::from_secs(5), "{:?}", published.elapsed());
    assert_eq!((ring.subject.as_str(), &ring.json["reason"]), ("push.offline.ring", &json!("ack_timeout")));
    assert_eq!(ring.json["payload"], json!({"call_id": "c"}), "without the token");
    gateway.drained().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expires_before_its_ack_is_dropped_and_a_call_becomes_a_missed_one() {
    let gateway = Gateway::start(Fake::online("ann", Behaviour::Silent)).await;
    // Their ack timeouts are 10 s and 4 s.
    let body = json!({"payload": {}, "metadata": {"ttl": 1}}).to_string();
    gateway.publish("notification.friend.request.ann", body.clone()).await;
    gateway.publish("notification.livekit.call_invite.ann", body).await;

    let push = gateway.records("OFFLINE_PUSH", 1).await.remove(0);
    gateway.drained().await;

    assert_eq!(push.subject, "push.offline.alert");
    assert_eq!(
        (&push.json["notification_type"], &push.json["kind"]),
        (&json!("livekit.call_invite"), &json!("alert"))
    );
    let good_for_ms =
        push.json["expires_at_ms"].as_u64().unwrap() - push.json["published_at_ms"].as_u64().unwrap();
    assert_eq!(good_for_ms, 24 * 3_600 * 1_000, "a missed call is news when the call is over");
    assert_eq!((gateway.count("OFFLINE_PUSH").await, gateway.count("INBOX").await), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_session_is_handed_off_at_once() {
    let gateway = Gateway::start(Fake::online("ann", Behaviour::Lose)).await;

    let published = tokio::time::Instant::now();
    gateway.publish("notification.friend.request.ann", r#"{"payload":{}}"#.to_owned()).await;

    let push = gateway.records("OFFLINE_PUSH", 1).await.remove(0);
    assert_eq!(push.json["reason"], json!("session_lost"));
    assert!(published.elapsed() < Duration::from_secs(3), "not after the ack timeout of 10 s");
    gateway.drained().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_stays_full_is_tried_four_times_and_then_inboxed() {
    let gateway = Gateway::start(Fake::online("ann", Behaviour::Full)).await;

    gateway.publish("notification.group.invited.ann", r#"{"payload":{}}"#.to_owned()).await;

    gateway.records("INBOX", 1).await;
    gateway.drained().await;
    assert_eq!(gateway.sessions.taken(), 4);
    assert_eq!(gateway.count("OFFLINE_PUSH").await, 0, "who is there needs no alert");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_is_dead_lettered_and_the_pool_goes_on() {
    let gateway = Gateway::start(Fake::online("bad", Behaviour::Panic)).await;
    let writer = Writer::open(gateway.context.clone()).await.unwrap();
    let group = Key::new(Kind::Group, "g").unwrap();
    let bad = Change::Member { user: UserId::new("bad").unwrap(), role: Some(Role::Member), v: 1 };
    writer.write(&group, &bad).await.unwrap();

    // Once in the part that never waits, once in a task.
    gateway.publish("notification.friend.request.bad", r#"{"payload":{}}"#.to_owned()).await;
    gateway.publish("notification.group.info_updated.g", r#"{"payload":{}}"#.to_owned()).await;
    let letters = gateway.records("NOTIFICATIONS_DLQ", 2).await;
    gateway.publish("notification.friend.request.ann", r#"{"payload":{}}"#.to_owned()).await;

    assert!(letters.iter().all(|letter| letter.header("Fanfare-Reason") == "panic"));
    gateway.records("OFFLINE_PUSH", 1).await;
    gateway.drained().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_in_hand_go_back_when_the_drain_is_over() {
    let gateway = Gateway::start(Fake::online("ann", Behaviour::Silent)).await;
    gateway.publish("notification.friend.request.ann", r#"{"payload":{}}"#.to_owned()).await;
    gateway.eventually("the session has it", async || gateway.sessions.taken() == 1).await;

    gateway.soft.cancel();
    let handle = gateway.handle.lock().take().unwrap();
    handle.join(Duration::from_secs(10)).await;

    let stream = gateway.context.get_stream("NOTIFICATIONS_HIGH").await.unwrap();
    let consumer: PullConsumer = stream.get_consumer("high").await.unwrap();
    let mut again =
        consumer.fetch().max_messages(1).expires(Duration::from_secs(3)).messages().await.unwrap();
    let message = again.next().await.expect("at once, not after ack_wait").unwrap();
    assert_eq!(message.info().unwrap().delivered, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typing_comes_by_core_nats_and_is_never_stored() {
    let gateway = Gateway::start(Fake::online("ann", Behaviour::Take)).await;

    let client = gateway.context.client();
    client.publish("notification.message.typing.ann", r#"{"payload":{"typing":true}}"#.into()).await.unwrap();

    gateway.eventually("the session has it", async || gateway.sessions.taken() == 1).await;
    assert_eq!(gateway.queued().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_was_deleted_is_used_again_once_it_is_back() {
    let gateway = Gateway::start(Fake::default()).await;
    let stream = gateway.context.get_stream("NOTIFICATIONS_HIGH").await.unwrap();
    stream.delete_consumer("high").await.unwrap();
    gateway.publish("notification.friend.request.ann", r#"{"payload":{}}"#.to_owned()).await;

    let catalog = Catalog::built_in().unwrap();
    apply_all(&gateway.context.client(), &catalog, Env::DEV).await.unwrap();

    gateway.records("OFFLINE_PUSH", 1).await;
    gateway.drained().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notification_for_later_comes_when_it_is_due_with_its_id() {
    let gateway = Gateway::start(Fake::default()).await;
    let due = unix_s() + 2;

    let body = json!({"payload": {}, "metadata": {"deliver_at": due}});
    gateway.publish("notification.friend.request.ann", body.to_string()).await;
    gateway.drained().await;
    assert_eq!(gateway.count("OFFLINE_PUSH").await, 0, "not yet");

    let push = gateway.records("OFFLINE_PUSH", 1).await.remove(0);
    assert!(unix_s() >= due);
    assert_eq!(push.json["notification_id"], json!("NOTIFICATIONS_HIGH-1"), "as when it was published");
    gateway.drained().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_id_for_two_people_comes_later_to_both_and_once() {
    let gateway = Gateway::start(Fake::default()).await;
    let body = json!({"notification_id": "n1", "payload": {}, "metadata": {"deliver_at": unix_s() + 2}});

    for subject in ["notification.friend.request.ann", "notification.friend.request.ben"] {
        gateway.publish(subject, body.to_string()).await;
    }
    gateway.publish("notification.friend.request.ben", body.to_string()).await;

    let pushes = gateway.records("OFFLINE_PUSH", 2).await;
    let mut users: Vec<_> = pushes.iter().map(|push| push.json["users"].to_string()).collect();
    users.sort_unstable();
    assert_eq!(users, [r#"["ann"]"#, r#"["ben"]"#]);
    gateway.drained().await;
    assert_eq!(gateway.count("INBOX").await, 2, "what came twice is kept once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_who_join_and_leave_later_are_known_at_once() {
    let gateway = Gateway::start(Fake::default()).await;
    let writer = Writer::open(gateway.context.clone()).await.unwrap();
    let group = Key::new(Kind::Group, "g").unwrap();
    let change = async |name: &str, role, v| {
        let user = UserId::new(name).unwrap();
        writer.write(&group, &Change::Member { user, role, v }).await.unwrap()
    };
    let users = async |nth: usize| {
        let everybody = json!({"payload": {"mention_type": "all", "group_id": "g"}});
        gateway.publish("notification.message.mentioned.g", everybody.to_string()).await;
        let push = gateway.records("OFFLINE_PUSH", nth).await.pop().unwrap();
        push.json["users"].clone()
    };

    assert!(change("ann", Some(Role::Member), 1).await);
    assert_eq!(users(1).await, json!(["ann"]));
    assert!(change("bob", Some(Role::Member), 2).await);
    assert_eq!(users(2).await, json!(["ann", "bob"]));
    assert!(change("ann", None, 3).await);
    assert_eq!(users(3).await, json!(["bob"]));
    assert!(!change("ann", Some(Role::Member), 2).await, "what is older changes nothing");
    assert_eq!(users(4).await, json!(["bob"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_never_ends_is_given_up_at_its_15th_delivery() {
    for (deliveries_before, stream) in [(5, "OFFLINE_PUSH"), (13, "OFFLINE_PUSH"), (14, "NOTIFICATIONS_DLQ")]
    {
        let gateway = delivered_before(deliveries_before).await;

        gateway.work().await;

        let record = gateway.records(stream, 1).await.remove(0);
        let reason = if stream == "NOTIFICATIONS_DLQ" { "crash_loop" } else { "" };
        assert_eq!(record.header("Fanfare-Reason"), reason);
        gateway.drained().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_refused_to_the_last_try_is_the_reason_of_the_dead_letter() {
    let gateway = delivered_before(13).await;
    gateway.change("OFFLINE_PUSH", |config| config["max_bytes"] = json!(1)).await;

    gateway.work().await;

    let letter = gateway.records("NOTIFICATIONS_DLQ", 1).await.remove(0);
    assert_eq!(letter.header("Fanfare-Reason"), "write_refused");
    assert!(letter.header("Fanfare-Detail").contains("OFFLINE_PUSH"), "{}", letter.header("Fanfare-Detail"));
    assert_eq!(letter.header("Fanfare-Deliveries"), "14");
    gateway.drained().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_the_5th_delivery_on_messages_of_all_lanes_are_begun_one_at_a_time() {
    let gateway = Gateway::prepare(Fake::online("ann", Behaviour::Slow)).await;
    let subjects = ["notification.friend.request.ann", "notification.message.new.ann"];
    for subject in [subjects; 4].concat() {
        let body = json!({"payload": {"conversation_type": "single"}});
        gateway.publish(subject, body.to_string()).await;
    }
    for lane in ["high", "normal"] {
        give_back(&gateway, lane, 4, 4).await;
    }

    gateway.work().await;

    gateway.drained().await;
    assert_eq!(gateway.sessions.taken(), 8);
    assert_eq!(gateway.sessions.slow_at_once(), 1);
}

/// A gateway without workers, and a friend request that others have given back so often.
async fn delivered_before(times: usize) -> Gateway {
    let gateway = Gateway::prepare(Fake::default()).await;
    gateway.publish("notification.friend.request.ann", r#"{"payload":{}}"#.to_owned()).await;
    give_back(&gateway, "high", 1, times).await;
    gateway
}

/// Takes so many messages of a lane and gives them back, so often.
async fn give_back(gateway: &Gateway, lane: &str, messages: usize, times: usize) {
    let notifications = gateway.context.get_stream(crate::support::queue(lane)).await.unwrap();
    let consumer: PullConsumer = notifications.get_consumer(lane).await.unwrap();
    for _ in 0..times {
        let pulled = consumer.batch().max_messages(messages).messages().await.unwrap();
        let pulled: Vec<_> = pulled.collect().await;
        assert_eq!(pulled.len(), messages);
        for message in pulled {
            message.unwrap().double_ack_with(AckKind::Nak(None)).await.unwrap();
        }
    }
}
