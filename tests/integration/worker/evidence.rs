//! The ledger and its evidence: every message is counted once whatever becomes of it, and what is recorded of it adds up
//! to the same.

use std::collections::BTreeMap;
use std::time::Duration;

use fanfare::catalog::{Kind, Role};
use fanfare::delivery::evidence::{self, Record};
use fanfare::directory::{Change, Key, Writer};
use fanfare::id::UserId;
use fanfare::worker;
use metrics_exporter_prometheus::PrometheusBuilder;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::gateway::{Behaviour, Fake, Gateway, unix_s};

/// What is published, and how many recipients end in an outcome.
struct Step {
    subject: &'static str,
    body: Value,
    counts: u64,
}

/// Notifications that end in every way there is. Group `g` has 6 members, `ann` to `full`.
fn steps() -> Vec<Step> {
    let step = |subject, body, counts| Step { subject, body, counts };
    let payload = || json!({"payload": {}});
    let everybody = json!({"payload": {"mention_type": "all", "group_id": "g", "from_user_id": "ann"}});
    vec![
        step("notification.friend.request.ann", payload(), 1),
        step("notification.friend.request.lost", payload(), 1),
        step("notification.friend.request.away", payload(), 1),
        step("notification.friend.deleted.ann", payload(), 1),
        step("notification.admin.user_banned.away", json!({"payload": {"is_permanent": true}}), 1),
        step("notification.group.invited.full", payload(), 1),
        step("notification.message.new.ann", payload(), 1),
        step("notification.message.mentioned.g", everybody, 6),
        step("notification.group.info_updated.g", payload(), 6),
        // An effect before the fan-out, and one that has no recipients of its own.
        step("notification.group.role_changed.g", json!({"payload": {"user_id": "ben", "role": "admin"}}), 6),
        step("notification.admin.announcement.broadcast", payload(), 5),
        // Refused: while decoding, while resolving, and by a panic in both places where one is caught.
        step("notification.friend.request.ann", json!({"type": "friend.deleted", "payload": {}}), 1),
        step("notification.group.info_updated.never", payload(), 1),
        step("notification.friend.request.bad", payload(), 1),
        step(
            "notification.message.mentioned.h",
            json!({"payload": {"mention_type": "all", "group_id": "h"}}),
            1,
        ),
        // Too late: nobody looks up for whom it was.
        step("notification.friend.request.ann", json!({"payload": {"late": 1}, "metadata": {"ttl": 1}}), 1),
        step("notification.group.info_updated.g", json!({"payload": {"late": 1}, "metadata": {"ttl": 1}}), 1),
        // Kept until it is due, and counted then.
        step(
            "notification.friend.request.away",
            json!({"payload": {}, "metadata": {"deliver_at": unix_s() + 4}}),
            1,
        ),
    ]
}

fn sessions() -> Fake {
    use Behaviour::{Ack, Full, Lose, Panic, Take};
    let users = [("ann", Ack), ("ben", Take), ("lost", Lose), ("full", Full), ("bad", Panic)];
    Fake::all_online(users.map(|(user, behaviour)| (user.to_owned(), behaviour)))
}

async fn groups(gateway: &Gateway) {
    let writer = Writer::open(gateway.context.clone()).await.unwrap();
    for (group, users) in [("g", &["ann", "ben", "lost", "full", "away", "gone"][..]), ("h", &["bad"])] {
        for user in users {
            let change = Change::Member { user: UserId::new(user).unwrap(), role: Some(Role::Member), v: 1 };
            writer.write(&Key::new(Kind::Group, group).unwrap(), &change).await.unwrap();
        }
    }
}

/// Every record of OUTCOMES.
async fn recorded(gateway: &Gateway) -> Vec<Record> {
    let count = gateway.count("OUTCOMES").await as usize;
    let records = gateway.records("OUTCOMES", count).await;
    records.into_iter().map(|record| serde_json::from_value(record.json).unwrap()).collect()
}

fn sums(records: &[Record]) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for record in records {
        *sums.entry(record.outcome.as_str().to_owned()).or_default() += record.count;
    }
    sums
}

/// The outcomes in a text of metrics.
fn counted(metrics: &str) -> BTreeMap<String, u64> {
    let series = |line: &str| {
        let line = line.strip_prefix("fanfare_delivery_outcomes_total{outcome=\"")?;
        let (outcome, count) = line.split_once("\"} ")?;
        Some((outcome.to_owned(), count.parse().unwrap()))
    };
    // Each is there from the start.
    metrics.lines().filter_map(series).filter(|(_, count)| *count > 0).collect()
}

// One thread, so that the metrics are this test's own.
#[tokio::test]
async fn every_message_counts_once_whatever_becomes_of_it() {
    for _ in 0..2 {
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = recorder.handle();
        let _metrics = metrics::set_default_local_recorder(&recorder);
        let gateway = Gateway::prepare(sessions()).await;
        groups(&gateway).await;
        let mut steps = steps();
        steps.shuffle(&mut random);
        let twice: Vec<_> = steps.iter().map(|_| random.random_bool(0.5)).collect();
        // Still in hand at the end of a drain, and given back.
        gateway.publish("notification.group.invited.full", r#"{"payload":{}}"#.to_owned()).await;
        let mut expected = 1;
        let first = CancellationToken::new();
        let handle = gateway.work_until(first.clone(), everything()).await;
        gateway.eventually("it is in hand", async || gateway.sessions.taken() > 0).await;
        first.cancel();
        handle.join(Duration::from_secs(10)).await;
        assert_eq!(gateway.queued().await, 1);

        for (step, twice) in steps.iter().zip(twice) {
            for _ in 0..=u8::from(twice) {
                gateway.publish(step.subject, step.body.to_string()).await;
                expected += step.counts;
            }
        }
        let published = unix_s();
        gateway.eventually("the late ones are late", async || unix_s() >= published + 2).await;
        // What needs a hand-off cannot be settled at first, and is given back.
        gateway.change("OFFLINE_PUSH", |config| config["max_bytes"] = json!(1)).await;
        let soft = CancellationToken::new();
        let handle = gateway.work_until(soft.clone(), everything()).await;
        gateway
            .eventually("a second delivery", async || {
                gateway.consumer_info("high").await["num_redelivered"].as_u64() > Some(0)
            })
            .await;
        gateway.change("OFFLINE_PUSH", |config| config["max_bytes"] = json!(1_000_000)).await;
        // An invitation, and the end of it for both when its time is over. Only here: one that is given back for longer
        // than its time would end twice.
        let call = json!({"payload": {"call_id": "c", "from_user_id": "ann", "invited_users": ["away"]}});
        gateway.publish("notification.livekit.call_invite.away", call.to_string()).await;
        expected += 1 + 2;
        let typing = json!({"payload": {"typing": true}}).to_string();
        gateway.context.client().publish("notification.message.typing.ben", typing.into()).await.unwrap();
        expected += 1;

        let total = || counted(&metrics.render()).values().sum::<u64>();
        gateway.eventually("everything is counted", async || total() >= expected).await;
        gateway.drained().await;
        soft.cancel();
        // A ledger that does not add up panics, and the panic is passed on here.
        handle.join(Duration::from_secs(10)).await;

        let mut counted = counted(&metrics.render());
        let told = |record: &Record| (record.notification_id.clone(), record.outcome, record.count);
        let records: Vec<_> = recorded(&gateway).await.iter().map(told).collect();
        assert_eq!(counted.values().sum::<u64>(), expected, "{counted:?} {records:?}");
        let outcomes =
            ["acked", "dead_lettered", "delivered", "excluded", "expired", "inboxed", "offline_pushed"];
        for outcome in outcomes {
            assert!(counted.contains_key(outcome), "{outcome} is missing: {counted:?}");
        }
        // Of what is never stored nothing is recorded.
        *counted.get_mut("delivered").expect("typing was delivered") -= 1;
        gateway.eventually("it is recorded", async || sums(&recorded(&gateway).await) == counted).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_and_detours_are_recorded_and_what_went_well_is_not() {
    let gateway = Gateway::prepare(sessions()).await;
    groups(&gateway).await;
    let soft = CancellationToken::new();
    let config = worker::Config { evidence: evidence::Config { sample: 0.0 }, ..worker::Config::default() };
    let handle = gateway.work_until(soft.clone(), config).await;
    let named = |id: &str| json!({"notification_id": id, "payload": {"secret": "hush"}}).to_string();

    gateway.publish("notification.friend.request.ann", named("acked")).await;
    gateway.publish("notification.friend.request.away", named("away")).await;
    gateway.publish("notification.friend.request.lost", named("lost")).await;
    gateway.publish("notification.group.info_updated.g", named("group")).await;
    gateway.publish("notification.group.invited.full", named("full/1")).await;
    gateway.publish("notification.friend.request.ann", r#"{"notification_id":"dead"}"#.to_owned()).await;
    gateway.drained().await;
    gateway.eventually("four records", async || gateway.count("OUTCOMES").await >= 4).await;
    soft.cancel();
    handle.join(Duration::from_secs(10)).await;

    let mut records = recorded(&gateway).await;
    records.sort_by_key(|record| record.notification_id.clone());
    let told: Vec<_> = records
        .iter()
        .map(|record| {
            let users: Vec<_> = record.users.iter().map(UserId::as_str).collect();
            let reason = record.reason.as_deref().unwrap_or_default();
            (&*record.notification_id, record.outcome.as_str(), reason, record.tries, users)
        })
        .collect();
    assert_eq!(
        told,
        [
            ("dead", "dead_lettered", "malformed", 1, vec![]),
            ("full/1", "inboxed", "slow_client", 4, vec!["full"]),
            ("group", "undeliverable", "slow_client", 4, vec!["full"]),
            ("lost", "offline_pushed", "session_lost", 4, vec!["lost"]),
        ]
    );
    assert!(records.iter().all(|record| &*record.node == "node-1" && record.at_ms > 0));
    for stored in gateway.records("OUTCOMES", 4).await {
        assert!(!stored.body.contains("hush"), "no payload: {}", stored.body);
    }
    let client = gateway.context.client();
    assert_eq!(evidence::read(&client, "full/1").await.unwrap().len(), 1, "an id that is no subject token");
    assert!(evidence::read(&client, "full/2").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_names_everybody_of_a_large_group_in_batches() {
    const SIZE: usize = 2_500;
    let gateway = Gateway::prepare(Fake::default()).await;
    gateway.members(&Key::new(Kind::Group, "g1").unwrap(), SIZE).await;
    let _handle = gateway.work_until(gateway.soft.clone(), everything()).await;
    let body = json!({"notification_id": "n1",
        "payload": {"mention_type": "all", "group_id": "g1", "from_user_id": "nobody"}});
    gateway.publish("notification.message.mentioned.g1", body.to_string()).await;

    gateway.drained().await;
    gateway.records("OUTCOMES", 3).await;
    let records = evidence::read(&gateway.context.client(), "n1").await.unwrap();
    let mut users: Vec<_> = records.iter().flat_map(|record| record.users.clone()).collect();
    assert_eq!(records.iter().map(|record| record.users.len()).max(), Some(1_000));
    users.sort();
    users.dedup();
    assert_eq!(users.len(), SIZE, "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delivery_goes_on_when_no_evidence_can_be_written() {
    let gateway = Gateway::prepare(Fake::default()).await;
    gateway.context.delete_stream("OUTCOMES").await.unwrap();
    let _handle = gateway.work_until(gateway.soft.clone(), everything()).await;
    for _ in 0..100 {
        gateway.publish("notification.friend.request.ann", r#"{"payload":{}}"#.to_owned()).await;
    }
    gateway.drained().await;
    assert_eq!(gateway.count("OFFLINE_PUSH").await, 100);
}

/// Workers that record everything, and wait a second for the answer to a call.
fn everything() -> worker::Config {
    let evidence = evidence::Config { sample: 1.0 };
    worker::Config { evidence, call_timeout_s: 1, ..worker::Config::default() }
}
