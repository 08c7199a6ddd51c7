//! Dead letters: what JetStream gave up comes there, and an operator gets it out again.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self, Context};
use fanfare::catalog::{BUILT_IN, Kind, Role};
use fanfare::directory::{Change, Key, Writer};
use fanfare::id::UserId;
use futures::StreamExt;
use serde_json::{Value, json};

use crate::node::{Node, get, value};
use crate::support::{NatsServer, eventually, run};
use crate::worker::gateway::{Fake, Gateway};

async fn api(context: &Context, path: &str, body: &Value) -> Value {
    let answer: Value = context.request(path.to_owned(), body).await.unwrap();
    assert!(answer["error"].is_null(), "{path}: {answer}");
    answer
}

async fn count(context: &Context, stream: &str) -> u64 {
    let info = api(context, &format!("STREAM.INFO.{stream}"), &json!({})).await;
    info["state"]["messages"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_used_up_its_deliveries_is_dead_lettered_once_and_leaves_the_queue() {
    let node = Node::start_with(BUILT_IN, async |client| {
        let context = jetstream::new(client.clone());
        let info = api(&context, "CONSUMER.INFO.NOTIFICATIONS_HIGH.high", &json!({})).await;
        let mut config = info["config"].clone();
        config["max_deliver"] = json!(2);
        config["ack_wait"] = json!(200_000_000);
        let update = json!({"stream_name": "NOTIFICATIONS_HIGH", "config": config, "action": "update"});
        api(&context, "CONSUMER.CREATE.NOTIFICATIONS_HIGH.high", &update).await;
        for subject in ["notification.friend.request.ann", "notification.friend.request.ben"] {
            context.publish(subject, r#"{"payload":{}}"#.into()).await.unwrap().await.unwrap();
        }
        // Somebody takes each of them twice and never says a word.
        let stream = context.get_stream("NOTIFICATIONS_HIGH").await.unwrap();
        let consumer: PullConsumer = stream.get_consumer("high").await.unwrap();
        let mut pulled = consumer.batch().max_messages(4).messages().await.unwrap();
        for _ in 0..4 {
            pulled.next().await.unwrap().unwrap();
        }
        eventually("the server gives up both", async || {
            // It looks only while somebody asks for messages.
            let mut nothing = consumer.batch().expires(Duration::from_millis(300)).messages().await.unwrap();
            assert!(nothing.next().await.is_none(), "nobody is given them any more");
            count(&context, "ADVISORIES").await == 2
        })
        .await;
        assert_eq!(count(&context, "NOTIFICATIONS_HIGH").await, 2, "and keeps them");
        stream.delete_message(2).await.unwrap();
    })
    .await;
    let context = jetstream::new(node.client.clone());

    eventually("it is swept", async || count(&context, "NOTIFICATIONS_HIGH").await == 0).await;
    let letters = context.get_stream("NOTIFICATIONS_DLQ").await.unwrap();
    let letter = letters.get_raw_message(1).await.unwrap();
    for (name, wanted) in [
        ("Fanfare-Reason", "max_deliveries"),
        ("Fanfare-Subject", "notification.friend.request.ann"),
        ("Fanfare-Stream", "NOTIFICATIONS_HIGH"),
        ("Fanfare-Seq", "1"),
        ("Fanfare-Deliveries", "2"),
    ] {
        assert_eq!(letter.headers.get(name).unwrap().as_str(), wanted, "{name}");
    }
    assert_eq!(
        (letter.subject.as_str(), letter.payload.as_ref()),
        ("dlq.friend.request", &br#"{"payload":{}}"#[..])
    );

    // The advisories come again, as after a crash between the deletion and the ack.
    let advisories = context.get_stream("ADVISORIES").await.unwrap();
    for seq in [1, 2] {
        let advisory = advisories.get_raw_message(seq).await.unwrap();
        context.publish(advisory.subject, advisory.payload).await.unwrap().await.unwrap();
    }
    let sweeper = async || api(&context, "CONSUMER.INFO.ADVISORIES.sweeper", &json!({})).await;
    eventually("all advisories are settled", async || sweeper().await["ack_floor"]["stream_seq"] == 4).await;
    assert_eq!(count(&context, "NOTIFICATIONS_DLQ").await, 1);
    let metrics = get(node.admin, "/metrics").await.1;
    for (name, wanted) in [
        (r#"fanfare_delivery_dead_letters_total{reason="max_deliveries"}"#, 1.0),
        (r#"fanfare_delivery_outcomes_total{outcome="dead_lettered"}"#, 1.0),
        (r#"fanfare_worker_given_up_total{result="dead_lettered"}"#, 1.0),
        (r#"fanfare_worker_given_up_total{result="gone"}"#, 3.0),
    ] {
        assert_eq!(value(&metrics, name), Some(wanted), "{name}");
    }

    // Somebody who may publish advisories names what is not the sweeper's, and what is no stream at all.
    for stream in ["NOTIFICATIONS_DLQ", "A.B"] {
        let advisory = advisories.get_raw_message(1).await.unwrap();
        let text = String::from_utf8(advisory.payload.to_vec()).unwrap();
        let forged = text.replace("\"stream\":\"NOTIFICATIONS_HIGH\"", &format!("\"stream\":\"{stream}\""));
        assert_ne!(text, forged);
        context.publish(advisory.subject, forged.into()).await.unwrap().await.unwrap();
    }
    eventually("both are refused", async || {
        let metrics = get(node.admin, "/metrics").await.1;
        value(&metrics, r#"fanfare_worker_given_up_total{result="foreign"}"#) >= Some(2.0)
    })
    .await;
    assert_eq!(count(&context, "NOTIFICATIONS_DLQ").await, 1, "and nothing is deleted");
    assert_eq!(get(node.admin, "/readyz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_listed_newest_first_and_shown_without_secrets() {
    let gateway = Gateway::start(Fake::default()).await;
    gateway.publish("notification.friend.request.ann", "{\"old_token\":\"s3cret\"".to_owned()).await;
    gateway.records("NOTIFICATIONS_DLQ", 1).await;
    let invite = json!({"to_user_id": "eve", "payload": {"call_id": "c1", "livekit_token": "s3cret"}});
    gateway.publish("notification.livekit.call_invite.ben", invite.to_string()).await;
    gateway.records("NOTIFICATIONS_DLQ", 2).await;

    let (code, text) = gateway.run(&["dlq", "list"]).await;
    assert_eq!(code, Some(0), "{text}");
    let words = |line: usize| text.lines().nth(line).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(words(0), ["seq", "when", "reason", "subject", "deliveries", "detail"], "{text}");
    assert_eq!((words(1)[0], words(1)[2]), ("2", "recipient_mismatch"), "{text}");
    assert_eq!(words(1)[3..5], ["notification.livekit.call_invite.ben", "1"], "{text}");
    assert_eq!((words(2)[0], words(2)[2]), ("1", "malformed"), "{text}");
    assert_eq!(words(4), ["2", "dead", "letters"], "{text}");
    assert_eq!(words(5), ["1", "malformed", "friend.request"], "{text}");
    assert_eq!(words(6), ["1", "recipient_mismatch", "livekit.call_invite"], "{text}");

    let (_, text) = gateway.run(&["dlq", "list", "--limit", "1"]).await;
    assert!(!text.contains("ann") && text.contains("\n2 dead letters\n"), "{text}");
    let (_, text) =
        gateway.run(&["dlq", "list", "--since", "1h", "--event", "friend.request", "--json"]).await;
    let letter: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&letter["seq"], &letter["reason"]), (&json!(1), &json!("malformed")));
    let (_, text) = gateway.run(&["dlq", "list", "--reason", "panic"]).await;
    assert_eq!(text, "0 dead letters\n");

    for (args, secret) in [
        (&["show", "1"][..], false),
        (&["show", "1", "--json"], false),
        (&["show", "1", "--secrets"], true),
        (&["show", "2"], false),
        (&["show", "2", "--json"], false),
        (&["show", "2", "--json", "--secrets"], true),
    ] {
        let (code, text) = gateway.run(&[&["dlq"], args].concat()).await;
        assert_eq!((code, text.contains("s3cret")), (Some(0), secret), "{args:?} {text}");
        assert!(text.contains("Fanfare-Reason"), "{text}");
    }
    let (_, text) = gateway.run(&["dlq", "show", "2"]).await;
    assert!(
        text.contains(r#""call_id": "c1""#) && text.contains(r#""livekit_token": "(left out)""#),
        "{text}"
    );

    for (args, wanted) in [
        (&["dlq", "show", "9"][..], 1),
        (&["dlq", "show", "0"], 1),
        (&["dlq", "list", "--reason", "bad"], 64),
        (&["dlq", "list", "--since", "soon"], 64),
        (&["dlq", "replay"], 64),
        (&["dlq", "replay", "1", "--all"], 64),
        (&["dlq", "purge", "1", "--reason", "panic"], 64),
    ] {
        let (code, text) = gateway.run(args).await;
        assert_eq!(code, Some(wanted), "{args:?} {text}");
    }
    assert_eq!(gateway.count("NOTIFICATIONS_DLQ").await, 2);
}

#[tokio::test]
async fn without_the_stream_it_is_said_what_to_do() {
    let server = NatsServer::start().await;

    let (code, text) = run(&server, &["dlq", "list"]).await;

    assert_eq!(code, Some(1));
    assert!(text.contains("NOTIFICATIONS_DLQ does not exist: run `fanfare provision apply`"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_delivered_once_its_cause_is_mended() {
    let gateway = Gateway::start(Fake::default()).await;
    let everybody = json!({"payload": {"mention_type": "all", "group_id": "g"}});
    let mut headers = HeaderMap::new();
    // Still remembered from the original when it is published again.
    headers.insert("Nats-Msg-Id", "m1");
    let subject = "notification.message.mentioned.g";
    let sent = gateway.context.publish_with_headers(subject, headers, everybody.to_string().into()).await;
    sent.unwrap().await.unwrap();
    gateway.publish(subject, everybody.to_string()).await;
    let letters = gateway.records("NOTIFICATIONS_DLQ", 2).await;
    assert!(letters.iter().all(|letter| letter.header("Fanfare-Reason") == "unknown_audience"));
    let writer = Writer::open(gateway.context.clone()).await.unwrap();
    let ann = Change::Member { user: UserId::new("ann").unwrap(), role: Some(Role::Member), v: 1 };
    writer.write(&Key::new(Kind::Group, "g").unwrap(), &ann).await.unwrap();

    let (code, text) = gateway.run(&["dlq", "replay", "1", "2"]).await;

    assert_eq!((code, text.as_str()), (Some(0), "2 dead letters published again\n"));
    let pushes = gateway.records("OFFLINE_PUSH", 2).await;
    assert!(pushes.iter().all(|push| push.json["users"] == json!(["ann"])));
    let mut ids: Vec<&str> = pushes.iter().filter_map(|push| push.json["notification_id"].as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["NOTIFICATIONS_HIGH-2", "m1"], "those they had before");
    gateway.drained().await;
    assert_eq!(gateway.count("NOTIFICATIONS_DLQ").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_leaves_no_room_for_the_reason_is_dead_lettered_cut_and_not_replayed() {
    let gateway = Gateway::start(Fake::default()).await;
    let subject = "notification.friend.request.ann";
    let max = gateway.context.client().max_payload();
    let (head, tail) = (r#"{"notification_id":"n1","payload":{"a":""#, r#""}}"#);
    let body = format!("{head}{}{tail}", "x".repeat(max - head.len() - tail.len()));
    gateway.publish(subject, body.clone()).await;
    let letter = gateway.records("NOTIFICATIONS_DLQ", 1).await.remove(0);
    // Headers that JetStream takes, and does not together with ours.
    let mut headers = HeaderMap::new();
    headers.insert("Trace", "t".repeat(65_500).as_str());
    let sent = gateway.context.publish_with_headers(subject, headers, "{broken".into()).await;
    sent.unwrap().await.unwrap();
    let headless = gateway.records("NOTIFICATIONS_DLQ", 2).await.remove(1);
    gateway.drained().await;

    assert_eq!(
        (letter.header("Fanfare-Reason"), letter.header("Fanfare-Id")),
        ("too_large".into(), "n1".into())
    );
    assert!(body.starts_with(&letter.body) && letter.body.len() > max - 2_000, "{}", letter.body.len());
    assert_eq!(letter.header("Fanfare-Original-Bytes"), max.to_string());
    let detail = letter.header("Fanfare-Detail");
    assert!(
        detail.starts_with(&format!("cut, its {max} bytes and its headers do not fit here: ")),
        "{detail}"
    );
    assert_eq!((headless.header("Fanfare-Reason"), headless.body.as_str()), ("malformed".into(), "{broken"));
    assert_eq!(
        (headless.header("Trace"), headless.header("Fanfare-Subject")),
        (String::new(), subject.into())
    );

    let (code, text) = gateway.run(&["dlq", "replay", "1", "2"]).await;

    assert_eq!(code, Some(1), "{text}");
    for line in [
        format!("dead letter 1: it was cut, as the original of {max} bytes did not fit"),
        "dead letter 2: it was cut, as the original of 7 bytes did not fit".to_owned(),
    ] {
        assert!(text.contains(&line), "{line}: {text}");
    }
    assert_eq!(gateway.count("NOTIFICATIONS_DLQ").await, 2);
}

/// Writes a dead letter as the gateway does.
async fn letter(gateway: &Gateway, reason: &str, subject: &str, body: String) {
    let mut headers = HeaderMap::new();
    headers.insert("Fanfare-Reason", reason);
    if !subject.is_empty() {
        headers.insert("Fanfare-Subject", subject);
    }
    headers.insert("Trace", "t");
    let sent = gateway.context.publish_with_headers("dlq.friend.request", headers, body.into()).await;
    sent.unwrap().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_replayed_stays_and_the_rest_goes_on() {
    let gateway = Gateway::prepare(Fake::default()).await;
    let good = "notification.friend.request.ann";
    let body = || r#"{"payload":{}}"#.to_owned();
    letter(&gateway, "unknown_event", "notification.friend.hug.ann", body()).await;
    letter(&gateway, "too_large", good, "x".repeat(256 * 1_024 + 1)).await;
    letter(&gateway, "malformed", "", body()).await;
    letter(&gateway, "malformed", "push.offline.alert", body()).await;
    letter(&gateway, "panic", good, body()).await;
    letter(&gateway, "panic", good, body()).await;

    for dry in [&["dlq", "replay", "--all"][..], &["dlq", "replay", "--all", "--dry-run"]] {
        let (code, text) = gateway.run(dry).await;
        assert!(code == Some(0) && text.starts_with("6 dead letters would be published again"), "{text}");
    }
    let (_, text) = gateway.run(&["dlq", "replay", "--all", "--reason", "panic", "--dry-run"]).await;
    assert_eq!(text, "2 dead letters would be published again\n");
    assert_eq!((gateway.queued().await, gateway.count("NOTIFICATIONS_DLQ").await), (0, 6));

    let (code, text) = gateway.run(&["dlq", "replay", "--all", "--yes"]).await;

    assert_eq!(code, Some(1), "{text}");
    for line in [
        "dead letter 1: no stream takes notification.friend.hug.ann",
        "dead letter 2: its 262145 bytes are more than an envelope may have",
        "dead letter 3: it has no header Fanfare-Subject",
        "dead letter 4: it has no header Fanfare-Subject with a notification's subject",
        "2 dead letters published again",
        "4 could not be done and stay as they are",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert_eq!(gateway.count("NOTIFICATIONS_DLQ").await, 4);
    let again = gateway.records("NOTIFICATIONS_HIGH", 2).await;
    assert!(again.iter().all(|message| message.subject == good && message.header("Trace") == "t"));
    assert!(again.iter().all(|message| message.header("Fanfare-Reason").is_empty()));
    let (code, text) = gateway.run(&["dlq", "replay", "5"]).await;
    assert!(code == Some(1) && text.contains("dead letter 5: there is no such dead letter"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_as_old_as_its_original() {
    let gateway = Gateway::start(Fake::default()).await;
    let now_us = fanfare::clock::Now::read().unix_ms * 1_000;
    for (user, age_s) in [("late", 7_200), ("ann", 60)] {
        let mut headers = HeaderMap::new();
        headers.insert("Fanfare-Subject", format!("notification.friend.request.{user}").as_str());
        headers.insert("Fanfare-Original-At", (now_us - age_s * 1_000_000).to_string().as_str());
        let body = json!({"payload": {}, "metadata": {"ttl": 3_600}}).to_string();
        let sent = gateway.context.publish_with_headers("dlq.friend.request", headers, body.into()).await;
        sent.unwrap().await.unwrap();
    }

    let (code, text) = gateway.run(&["dlq", "replay", "--all", "--yes"]).await;

    assert_eq!((code, text.as_str()), (Some(0), "2 dead letters published again\n"));
    gateway.drained().await;
    let push = gateway.records("OFFLINE_PUSH", 1).await.remove(0);
    assert_eq!(push.json["users"], json!(["ann"]), "the other one has expired");
    assert_eq!(push.json["published_at_ms"], json!(now_us / 1_000 - 60_000));
    assert_eq!((gateway.count("OFFLINE_PUSH").await, gateway.count("INBOX").await), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_was_interrupted_before_the_deletion_publishes_nothing_twice() {
    let gateway = Gateway::prepare(Fake::default()).await;
    letter(&gateway, "panic", "notification.friend.request.ann", r#"{"payload":{}}"#.to_owned()).await;
    gateway.change("NOTIFICATIONS_DLQ", |config| config["deny_delete"] = json!(true)).await;

    for _ in 0..2 {
        let (code, text) = gateway.run(&["dlq", "replay", "1"]).await;
        assert!(code == Some(1) && text.contains("delete message 1 of NOTIFICATIONS_DLQ"), "{text}");
        assert_eq!((gateway.queued().await, gateway.count("NOTIFICATIONS_DLQ").await), (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_deletes_what_was_meant_and_only_with_yes() {
    let gateway = Gateway::prepare(Fake::default()).await;
    for reason in ["panic", "malformed", "malformed", "incomplete"] {
        letter(&gateway, reason, "notification.friend.request.ann", "{}".to_owned()).await;
    }
    let left = async || gateway.count("NOTIFICATIONS_DLQ").await;

    for (args, code, said, after) in [
        (&["1"][..], 0, "1 dead letter would be deleted; --yes does it", 4),
        (&["--all", "--reason", "malformed"], 0, "2 dead letters would be deleted", 4),
        (&["--all", "--reason", "malformed", "--yes"], 0, "2 dead letters deleted", 2),
        (&["1", "2", "--yes"], 1, "dead letter 2: there is no such dead letter", 1),
        (&["--all", "--yes"], 0, "1 dead letter deleted", 0),
        (&["--all"], 0, "0 dead letters would be deleted", 0),
    ] {
        let (exit, text) = gateway.run(&[&["dlq", "purge"], args].concat()).await;
        assert!(exit == Some(code) && text.contains(said), "{args:?} {exit:?} {text}");
        assert_eq!(left().await, after, "{args:?}");
    }
}
