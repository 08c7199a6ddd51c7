//! Calls: the time limit of invitations, rings and what ends them, with the state in NATS only.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::PullConsumer;
use fanfare::catalog::{Catalog, Kind};
use fanfare::directory::{Key, Writer};
use fanfare::worker;
use futures::StreamExt;
use futures::future::join_all;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::gateway::{Behaviour, Fake, Gateway, unix_s};

/// Short, so that no test waits for the specification's 30 s; longer than the 4 s after which a phone rings.
const TIMEOUT_S: u64 = 6;

async fn work(gateway: &Gateway, soft: &CancellationToken) -> worker::Handle {
    work_by(gateway, Catalog::built_in().unwrap(), TIMEOUT_S, soft).await
}

async fn work_by(
    gateway: &Gateway,
    catalog: Catalog,
    call_timeout_s: u64,
    soft: &CancellationToken,
) -> worker::Handle {
    let config = worker::Config { drain_s: 1, call_timeout_s, ..worker::Config::default() };
    let catalog = std::sync::Arc::new(catalog);
    let (client, sessions) = (gateway.context.client(), gateway.sessions.clone());
    let recorder = gateway.recorder(&config);
    worker::start(
        client,
        catalog,
        (sessions, std::sync::Arc::new(fanfare::pipeline::Alone)),
        recorder,
        config,
        (worker::Duty::Pull, soft.clone()),
    )
    .await
    .unwrap()
}

fn invite(invited: &[&str]) -> String {
    json!({"payload": {"call_id": "c", "from_user_id": "ann", "invited_users": invited}}).to_string()
}

fn status(status: &str, user: &str) -> String {
    json!({"payload": {"call_id": "c", "status": status, "user_id": user}}).to_string()
}

/// Kind, reason, call and users of the hand-offs.
async fn hand_offs(gateway: &Gateway, count: usize) -> Vec<(Value, Value, Value, Value)> {
    let records = gateway.records("OFFLINE_PUSH", count).await;
    let all = records.into_iter().map(|record| record.json);
    all.map(|mut json| ["kind", "reason", "cancel", "users"].map(|field| json[field].take()).into()).collect()
}

async fn members(gateway: &Gateway) -> usize {
    let writer = Writer::open(gateway.context.clone()).await.unwrap();
    writer.read(&Key::new(Kind::Call, "c").unwrap()).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_nobody_joins_ends_though_every_worker_was_started_anew() {
    let gateway = Gateway::prepare(Fake::online("ann", Behaviour::Take)).await;
    let first = CancellationToken::new();
    let handle = work(&gateway, &first).await;
    gateway.publish("notification.livekit.call_invite.bob", invite(&["bob"])).await;
    let ring = hand_offs(&gateway, 1).await.remove(0);
    assert_eq!(ring, (json!("ring"), json!("no_session"), Value::Null, json!(["bob"])));
    gateway.drained().await;
    assert_eq!(members(&gateway).await, 2, "bob, and ann who calls");
    first.cancel();
    handle.join(Duration::from_secs(10)).await;
    assert_eq!(gateway.sessions.taken(), 0);

    gateway.eventually("the time limit", async || gateway.queued().await == 1).await;
    let second = CancellationToken::new();
    let _handle = work(&gateway, &second).await;

    let end = hand_offs(&gateway, 2).await.remove(1);
    assert_eq!(end, (json!("silent"), json!("timeout"), json!("c"), json!(["bob"])));
    gateway.drained().await;
    assert_eq!(gateway.sessions.taken(), 1, "ann was told");
    assert_eq!(members(&gateway).await, 0);
    second.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_those_without_an_answer_are_told_when_another_joined() {
    let gateway = Gateway::prepare(Fake::online("carol", Behaviour::Take)).await;
    let soft = CancellationToken::new();
    let _handle = work(&gateway, &soft).await;
    let everybody = ["bob", "carol", "dave"];
    // carol's session takes it, and gives it up; the others have none.
    for user in everybody {
        gateway.publish(&format!("notification.livekit.call_invite.{user}"), invite(&everybody)).await;
    }
    hand_offs(&gateway, 3).await;
    gateway.publish("notification.livekit.call_status.c", status("user_joined", "bob")).await;
    let no = json!({"payload": {"call_id": "c", "rejector_user_id": "dave"}}).to_string();
    gateway.publish("notification.livekit.call_rejected.ann", no).await;
    let mut ends = hand_offs(&gateway, 5).await.split_off(3);
    ends.sort_by_key(|end| end.1.to_string());
    assert_eq!(ends[0], (json!("silent"), json!("answered"), json!("c"), json!(["bob"])));
    assert_eq!(ends[1], (json!("silent"), json!("rejected"), json!("c"), json!(["dave"])));
    gateway.drained().await;
    let before = gateway.sessions.taken();

    let end = hand_offs(&gateway, 6).await.remove(5);
    assert_eq!(end, (json!("silent"), json!("timeout"), json!("c"), json!(["carol"])));
    gateway.drained().await;
    assert_eq!(gateway.sessions.taken(), before + 1, "carol was told that it is over for her");
    assert_eq!(members(&gateway).await, 4, "and the call goes on");

    gateway.publish("notification.livekit.call_status.c", status("ended", "ann")).await;
    gateway.eventually("it ended", async || members(&gateway).await == 0).await;
    gateway.drained().await;
    assert_eq!(gateway.count("OFFLINE_PUSH").await, 6, "nobody rings any more");
    soft.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_came_too_late_is_a_missed_call() {
    let gateway = Gateway::prepare(Fake::default()).await;
    let mut body: Value = serde_json::from_str(&invite(&["bob"])).unwrap();
    body["metadata"] = json!({"ttl": 1});
    gateway.publish("notification.livekit.call_invite.bob", body.to_string()).await;
    let published = unix_s();
    gateway.eventually("it is too late", async || unix_s() >= published + 2).await;
    let soft = CancellationToken::new();
    let _handle = work(&gateway, &soft).await;

    let missed = hand_offs(&gateway, 1).await.remove(0);
    assert_eq!(missed, (json!("alert"), json!("expired"), Value::Null, json!(["bob"])));
    soft.cancel();
}

/// The life that a key of a bucket was written with, in seconds.
async fn ttl(gateway: &Gateway, bucket: &str, key: &str) -> String {
    let stream = gateway.context.get_stream(format!("KV_{bucket}")).await.unwrap();
    let last = stream.get_last_raw_message_by_subject(&format!("$KV.{bucket}.{key}")).await.unwrap();
    last.headers.get("Nats-TTL").map(ToString::to_string).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_are_registered_and_nothing_of_a_call_stays_for_ever() {
    let gateway = Gateway::prepare(Fake::default()).await;
    let soft = CancellationToken::new();
    let _handle = work(&gateway, &soft).await;
    let users: Vec<String> = (0..499).map(|n| format!("u{n}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    gateway.publish("notification.livekit.call_invite.u7", invite(&users)).await;
    gateway.drained().await;
    assert_eq!(members(&gateway).await, 500, "with ann, who calls");
    assert_eq!(ttl(&gateway, "audience", "call.c.u8").await, (48 * 3_600).to_string());
    assert_eq!(ttl(&gateway, "transient", "call.c").await, (24 * 3_600).to_string());

    gateway.publish("notification.livekit.call_status.c", status("ended", "ann")).await;
    gateway.drained().await;
    assert_eq!(members(&gateway).await, 0);
    assert_eq!(ttl(&gateway, "audience", "call.c").await, (96 * 3_600).to_string(), "outlives the members");
    assert_eq!(ttl(&gateway, "transient", "call.c").await, 3_600.to_string());
    soft.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invitation_that_comes_again_is_shown_only_to_who_may_still_answer() {
    let everybody = ["bob", "carol", "dave"];
    let online = everybody.map(|user| (user.to_owned(), Behaviour::Ack));
    let gateway = Gateway::prepare(Fake::all_online(online)).await;
    let calls = [("bob", "c-bob"), ("carol", "c-carol"), ("dave", "c-dave")];
    for (user, call) in calls {
        let body = json!({"notification_id": call, "payload":
            {"call_id": call, "from_user_id": "ann", "invited_users": [user]}});
        gateway.publish(&format!("notification.livekit.call_invite.{user}"), body.to_string()).await;
    }
    // Somebody else takes all three first and gives them back, as a worker that crashes does.
    let consumer: PullConsumer =
        gateway.context.get_consumer_from_stream("high", "NOTIFICATIONS_HIGH").await.unwrap();
    let taken: Vec<_> = consumer.fetch().max_messages(3).messages().await.unwrap().collect().await;
    assert_eq!(taken.len(), 3);
    let soft = CancellationToken::new();
    let _handle = work(&gateway, &soft).await;
    let no = json!({"payload": {"call_id": "c-bob", "rejector_user_id": "bob"}});
    gateway.publish("notification.livekit.call_rejected.ann", no.to_string()).await;
    let over = json!({"payload": {"call_id": "c-carol", "status": "ended"}});
    gateway.members(&Key::new(Kind::Call, "c-carol").unwrap(), 1).await;
    gateway.publish("notification.livekit.call_status.c-carol", over.to_string()).await;
    gateway.eventually("only the three are left", async || gateway.queued().await == 3).await;
    for message in taken {
        message.unwrap().ack_with(AckKind::Nak(None)).await.unwrap();
    }
    gateway.drained().await;

    assert_eq!(gateway.sessions.offered_to("livekit.call_invite"), ["dave"]);
    let missed = hand_offs(&gateway, 1).await.remove(0);
    assert_eq!(missed, (json!("alert"), json!("expired"), Value::Null, json!(["carol"])));
    assert_eq!(gateway.count("OFFLINE_PUSH").await, 1, "bob, who said no, hears nothing more");
    assert_eq!(gateway.count("NOTIFICATIONS_DLQ").await, 0);
    soft.cancel();
}

/// Some answers come long before the phone rings or long after it, most of them in the very moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_phone_goes_on_ringing_whenever_its_user_answers() {
    const RING_MS: u64 = 400;
    const CALLS: u64 = 400;
    let text = include_str!("../../../config/catalog.toml");
    let text = text.replace("ack_timeout_ms = 4_000", &format!("ack_timeout_ms = {RING_MS}"));
    let catalog = Catalog::from_toml(&text).unwrap();
    assert_eq!(catalog.get("livekit.call_invite").unwrap().ack_timeout_ms, RING_MS);
    let names = (0..CALLS).map(|n| format!("u{n}")).chain(["early".to_owned(), "late".to_owned()]);
    let gateway = Gateway::prepare(Fake::all_online(names.map(|user| (user, Behaviour::Silent)))).await;
    let soft = CancellationToken::new();
    // Nothing but the answers ends a ring here.
    let _handle = work_by(&gateway, catalog, 3_600, &soft).await;
    // A payload that takes a while to write: time for an answer between the note of a ring and the ring.
    let picture: Vec<u32> = (0..8_000).collect();
    let invite = async |user: &str| {
        let invite = json!({"notification_id": user, "payload": {"call_id": format!("c-{user}"),
            "from_user_id": "ann", "invited_users": [user], "picture": picture}});
        gateway.publish(&format!("notification.livekit.call_invite.{user}"), invite.to_string()).await;
    };
    let answer = async |user: &str| {
        let no = json!({"payload": {"call_id": format!("c-{user}"), "rejector_user_id": user}});
        gateway.publish("notification.livekit.call_rejected.ann", no.to_string()).await;
    };
    answer("early").await;
    gateway.drained().await;
    invite("early").await;
    gateway.drained().await;
    assert_eq!(gateway.count("OFFLINE_PUSH").await, 0);
    join_all((0..CALLS).map(async |n| {
        let user = format!("u{n}");
        tokio::time::sleep(Duration::from_millis(n * 10)).await;
        invite(&user).await;
        tokio::time::sleep(Duration::from_millis(RING_MS - 10 + n % 100)).await;
        answer(&user).await;
    }))
    .await;
    gateway.drained().await;
    let before = gateway.count("OFFLINE_PUSH").await;
    invite("late").await;
    gateway.eventually("a ring", async || gateway.count("OFFLINE_PUSH").await > before).await;
    answer("late").await;
    gateway.drained().await;

    let count = gateway.count("OFFLINE_PUSH").await as usize;
    let mut rings: HashMap<String, Vec<String>> = HashMap::new();
    for push in gateway.records("OFFLINE_PUSH", count).await {
        let [call, kind] = ["collapse_id", "kind"].map(|field| push.json[field].as_str().unwrap().to_owned());
        rings.entry(call).or_default().push(kind);
    }
    for (call, kinds) in &rings {
        // An answer may be told of before the ring that it comes too late to prevent; then it is told of again.
        assert_eq!(kinds.last().unwrap(), "silent", "{call} rings on: {kinds:?}");
    }
    assert_eq!(rings["late"], ["ring", "silent"]);
    println!("{} of {CALLS} rang", rings.values().filter(|kinds| kinds.contains(&"ring".to_owned())).count());
    soft.cancel();
}
