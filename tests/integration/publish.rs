//! What publishers do wrong: they are told at once where the server can tell them, and find the rest in the dead
//! letters. Whatever it is, the next notification is delivered.

use async_nats::jetstream::context::PublishErrorKind;
use fanfare::protocol::Encoding;
use serde_json::{Value, json};

use crate::support::{Gateway, SCHEMES, message, notification};

/// Levels that a payload may have.
const LEVELS_MAX: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_event_fails_at_its_publisher() {
    let gateway = Gateway::start().await;

    for subject in [
        "notification.friend.hug.ann",
        "notification.friend.request",
        "notification.friend.request.ann.extra",
        "notification.admin.announcement.ann",
    ] {
        let body = message("n1").to_string();
        let sent = gateway.context.publish(subject, body.into()).await.expect("NATS takes it");
        let error = sent.await.expect_err(subject);
        assert_eq!(error.kind(), PublishErrorKind::StreamNotFound, "{subject}: no responders");
    }
    assert_eq!(gateway.count("NOTIFICATIONS_DLQ").await, 0);
    gateway.serves("unknown events").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_handled_is_dead_lettered_and_the_next_one_delivered() {
    let gateway = Gateway::start().await;
    let mut ann = gateway.client("ann", "d1").await;

    let subject = "notification.message.new.ann";
    let payload = |value: Value| json!({"payload": value}).to_string();
    let cases = [
        (subject, "{".to_owned(), "malformed"),
        (subject, String::new(), "malformed"),
        (subject, "\u{0}\u{1}".to_owned(), "malformed"),
        (subject, r#"{"type":"message.new"}"#.to_owned(), "malformed"),
        (subject, payload(json!([1, 2])), "malformed"),
        (subject, r#"{"payload":{},"timestamp":"now"}"#.to_owned(), "malformed"),
        (subject, r#"{"payload":{},"metadata":{"ttl":-1}}"#.to_owned(), "malformed"),
        (subject, nested(LEVELS_MAX + 1), "malformed"),
        (subject, nested(100), "malformed"),
        (subject, nested(127), "malformed"),
        (subject, nested(200), "malformed"),
        (subject, nested(20_000), "malformed"),
        (subject, format!(r#"{{"payload":{{}},"metadata":{{"a":{}}}}}"#, list(200)), "malformed"),
        (subject, payload(json!({"text": "x".repeat(256 * 1024)})), "too_large"),
        (subject, r#"{"type":"friend.deleted","payload":{}}"#.to_owned(), "type_mismatch"),
        (subject, r#"{"to_user_id":"ben","payload":{}}"#.to_owned(), "recipient_mismatch"),
        (subject, r#"{"from_user_id":"a b","payload":{}}"#.to_owned(), "invalid_id"),
        ("notification.message.new.a:b", message("n1").to_string(), "invalid_id"),
        ("notification.group.disbanded.nobodys", payload(json!({})), "unknown_audience"),
    ];
    for (count, (subject, body, _)) in cases.iter().enumerate() {
        gateway.publish_bytes(subject, body.clone()).await;
        let id = format!("after-{count}");
        gateway.publish("notification.message.new.ann", &message(&id)).await;
        assert_eq!(notification(&mut ann).await.notification_id, id);
    }

    // Two workers pull, so the letters are in any order.
    let letters = gateway.records("NOTIFICATIONS_DLQ", cases.len() as u64).await;
    for (subject, body, reason) in &cases {
        let letter = letters
            .iter()
            .find(|letter| letter.body == body.as_bytes() && letter.header("Fanfare-Subject") == *subject)
            .expect(reason);
        let start: String = body.chars().take(60).collect();
        assert_eq!(letter.header("Fanfare-Reason"), *reason, "{subject} {start}");
        assert!(!letter.header("Fanfare-Detail").is_empty(), "{subject} {start}");
        assert_eq!(letter.header("Fanfare-Deliveries"), "1", "{subject} {start}");
    }
    gateway.settled().await;
    assert_eq!(gateway.count("NOTIFICATIONS_DLQ").await, cases.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_of_64_levels_is_delivered_in_every_encoding() {
    let gateway = Gateway::start().await;
    let envelope: Value = serde_json::from_str(&nested(LEVELS_MAX)).expect("it is JSON");

    for scheme in SCHEMES {
        for encoding in [Encoding::Json, Encoding::Msgpack] {
            let mut config = gateway.device("ann", "d1");
            config.url = gateway.url(scheme);
            config.encoding = encoding;
            let (mut client, _) = gateway.connect(config).await;
            gateway.publish("notification.message.new.ann", &envelope).await;
            assert_eq!(
                notification(&mut client).await.payload,
                envelope["payload"],
                "{scheme}, {encoding:?}"
            );
            assert_eq!(client.stats().skipped, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_nats_and_jetstream_publishes_are_the_same() {
    let gateway = Gateway::start().await;
    let mut ann = gateway.client("ann", "d1").await;

    gateway.publish_core("notification.message.new.ann", &message("core")).await;
    assert_eq!(notification(&mut ann).await.notification_id, "core");
    // Older publishers say nothing but type and payload; the id is made of stream and sequence.
    gateway
        .publish_core("notification.message.new.ann", &json!({"type": "message.new", "payload": {}}))
        .await;
    assert_eq!(notification(&mut ann).await.notification_id, "NOTIFICATIONS-2");
    gateway.settled().await;
}

/// An envelope whose payload has so many levels, itself included.
fn nested(levels: usize) -> String {
    format!(r#"{{"payload":{{"a":{}}}}}"#, list(levels - 1))
}

/// Lists in lists, so many.
fn list(levels: usize) -> String {
    "[".repeat(levels) + &"]".repeat(levels)
}
