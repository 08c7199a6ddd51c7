//! Calls: the time limit of invitations, rings and what ends them, with the state in NATS only.

use std::time::Duration;

use fanfare::catalog::{Catalog, Kind};
use fanfare::directory::{Key, Writer};
use fanfare::worker;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::gateway::{Behaviour, Fake, Gateway, unix_s};

/// Short, so that no test waits for the specification's 30 s; longer than the 4 s after which a phone rings.
const TIMEOUT_S: u64 = 6;

async fn work(gateway: &Gateway, soft: &CancellationToken) -> worker::Handle {
    let config = worker::Config { drain_s: 1, call_timeout_s: TIMEOUT_S, ..worker::Config::default() };
    let catalog = std::sync::Arc::new(Catalog::built_in().unwrap());
    let (client, sessions) = (gateway.context.client(), gateway.sessions.clone());
    worker::start(client, catalog, sessions, config, soft.clone()).await.unwrap()
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

    gateway.eventually("the time limit", async || gateway.count("NOTIFICATIONS").await == 1).await;
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
