//! What `docs/events.md` says of bad input is what a service does with it.

use std::collections::BTreeMap;

use async_nats::jetstream::{self, Context};
use fanfare::catalog::{BUILT_IN, Catalog};
use fanfare::client::AckMode;
use fanfare::clock::Now;
use fanfare::provision::{Env, apply_all};
use serde_json::{Value, json};

use crate::node::{Node, get, value};
use crate::support::{eventually, notification};

const PAGE: &str = include_str!("../../docs/events.md");

/// A row without a rule for everything, beside those that are built in.
const CONDITIONAL: &str = r#"
[[event]]
type = "test.conditional"
summary = "For nobody unless the payload says more."
target = "user"
lane = "low"
rank = 1
audience = [{ when = { "payload.kind" = "known" }, to = "user" }]
"#;

/// An event that the stream takes and the service does not know.
const FORGOTTEN: &str = r#"
[[event]]
type = "test.forgotten"
summary = "Known to the stream only."
target = "user"
lane = "low"
rank = 1
audience = [{ to = "user" }]
"#;

/// No input leads to these: they have tests of their own.
const OF_THE_GATEWAY: [&str; 4] = ["panic", "write_refused", "crash_loop", "max_deliveries"];

/// Inputs and what the page says comes of them.
fn page() -> BTreeMap<&'static str, &'static str> {
    let (_, section) = PAGE.split_once("## What comes of bad input").expect("the section is there");
    let rows =
        section.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "));
    let rows: BTreeMap<_, _> = rows.filter(|(input, _)| *input != "Input").collect();
    let inputs = |fate: &&str| !OF_THE_GATEWAY.iter().any(|reason| fate.contains(&format!("`{reason}`")));
    rows.into_iter().filter(|(_, fate)| inputs(fate)).collect()
}

fn unix_s() -> u64 {
    Now::read().unix_ms / 1_000
}

/// What goes to the dead letters: input, subject, body.
fn dead() -> Vec<(&'static str, &'static str, String)> {
    let deep = format!(r#"{{"payload":{{"a":{}{}}}}}"#, "[".repeat(64), "]".repeat(64));
    let large = format!(r#"{{"payload":{{"a":"{}"}}}}"#, "x".repeat(256 * 1_024));
    let text = |value: Value| value.to_string();
    let malformed = "a field of the wrong type, or a device id in `metadata` outside the alphabet";
    vec![
        ("no JSON, no `payload`, or one that is no object", "friend.request.m1", "{".to_owned()),
        ("no JSON, no `payload`, or one that is no object", "friend.request.m2", "{}".to_owned()),
        (
            "no JSON, no `payload`, or one that is no object",
            "friend.request.m3",
            r#"{"payload":1}"#.to_owned(),
        ),
        (malformed, "friend.request.m4", text(json!({"payload": {}, "timestamp": "now"}))),
        (
            malformed,
            "friend.request.m5",
            text(json!({"payload": {}, "metadata": {"origin_device_id": "a b"}})),
        ),
        (malformed, "friend.request.m6", text(json!({"payload": {}, "metadata": {"offline": "loud"}}))),
        ("a payload nested deeper than 64 levels", "friend.request.m7", deep),
        ("an envelope of more than 256 KiB", "friend.request.l1", large),
        (
            "a target outside the alphabet of ids, or of more than 128 characters",
            "friend.request.u:1",
            text(json!({"payload": {}})),
        ),
        (
            "such a `from_user_id` or `to_user_id`",
            "friend.request.i1",
            text(json!({"payload": {}, "from_user_id": "a b"})),
        ),
        (
            "such an id in a field that says whom it is for, or what it changes",
            "group.member_left.i2",
            text(json!({"payload": {"user_id": "a.b"}})),
        ),
        (
            "a `notification_id` of more than 256 bytes, or with control characters",
            "friend.request.i3",
            text(json!({"payload": {}, "notification_id": "x".repeat(257)})),
        ),
        (
            "an event that the stream takes and the catalog does not know any more",
            "test.forgotten.u1",
            text(json!({"payload": {}})),
        ),
        (
            "subject and `type` disagree",
            "friend.request.t1",
            text(json!({"type": "friend.deleted", "payload": {}})),
        ),
        (
            "target and `to_user_id` disagree",
            "friend.request.r1",
            text(json!({"to_user_id": "r2", "payload": {}})),
        ),
        (
            "no audience rule applies (rows of your own; built-in ones always have one)",
            "test.conditional.u1",
            text(json!({"payload": {"kind": "strange"}})),
        ),
        (
            "a group, conversation or call whose members nobody ever wrote",
            "group.info_updated.unheard-of",
            text(json!({"payload": {}})),
        ),
        (
            "`metadata.deliver_at` more than 30 days ahead",
            "friend.request.f1",
            text(json!({"payload": {}, "metadata": {"deliver_at": unix_s() + 31 * 86_400}})),
        ),
        (
            "a ban that says neither until when nor for ever",
            "admin.user_banned.b1",
            text(json!({"payload": {}})),
        ),
    ]
}

async fn count(context: &Context, stream: &str) -> u64 {
    let info: Value = context.request(format!("STREAM.INFO.{stream}"), &json!({})).await.unwrap();
    info["state"]["messages"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_ends_as_the_page_says() {
    let node = Node::start_with(&format!("{BUILT_IN}{CONDITIONAL}"), async |client| {
        let more = Catalog::from_toml(&format!("{BUILT_IN}{CONDITIONAL}{FORGOTTEN}")).unwrap();
        apply_all(client, &more, Env::DEV).await.unwrap();
    })
    .await;
    let context = jetstream::new(node.client.clone());
    let mut page = page();
    let says = |page: &mut BTreeMap<&str, &'static str>, input: &str| {
        page.remove(input).unwrap_or_else(|| panic!("docs/events.md does not know: {input}"))
    };

    let dead = dead();
    for (_, subject, body) in &dead {
        let subject = format!("notification.{subject}");
        context.publish(subject, body.clone().into()).await.unwrap().await.unwrap();
    }
    eventually("dead letters", async || count(&context, "NOTIFICATIONS_DLQ").await >= dead.len() as u64)
        .await;
    let letters = context.get_stream("NOTIFICATIONS_DLQ").await.unwrap();
    let mut reasons = BTreeMap::new();
    for seq in 1..=dead.len() as u64 {
        let letter = letters.get_raw_message(seq).await.unwrap();
        let header = |name: &str| letter.headers.get(name).unwrap().as_str().to_owned();
        reasons.insert(header("Fanfare-Subject"), (header("Fanfare-Reason"), letter.payload));
    }
    let mut said = BTreeMap::new();
    for (input, subject, body) in &dead {
        let says = *said.entry(*input).or_insert_with(|| says(&mut page, input));
        let (reason, kept) = &reasons[&format!("notification.{subject}")];
        assert_eq!(format!("dead letter `{reason}`"), says, "{subject}");
        assert_eq!(kept, body.as_bytes(), "{subject}: as it came");
    }

    // Everything else is no dead letter. First what nobody is told of.
    for subject in ["notification.friend.hug.u1", "notification.admin.maintenance.u1"] {
        let sent = context.publish(subject, r#"{"payload":{}}"#.into()).await.unwrap().await;
        assert!(sent.is_err(), "{subject}");
    }
    let subject = "a subject that no event has, or a broadcast's with another target";
    assert!(says(&mut page, subject).starts_with("not stored: a JetStream publish fails"));
    let metric = async |name: &str| value(&get(node.admin, "/metrics").await.1, name).unwrap_or_default();
    let counted = async |name: &str, before: f64| {
        eventually(name, async || metric(name).await >= before + 1.0).await;
        assert!((metric(name).await - before - 1.0).abs() < 1e-9, "{name}");
    };
    let outcome = |name: &str| format!("fanfare_delivery_outcomes_total{{outcome=\"{name}\"}}");
    let skipped = |event: &str| format!("fanfare_pipeline_effects_skipped_total{{event=\"{event}\"}}");
    let dropped = "fanfare_worker_ephemeral_dropped_total{reason=\"malformed\"}";
    let over = json!({"payload": {"expires_at": unix_s() - 1}});
    let again = json!({"payload": {"sync_id": "s1", "from_device_id": "d9"}});
    node.publish("notification.sync.request.nobody", &again).await;
    counted(&outcome("absent"), 0.0).await;
    for (input, fate, metric, subject, body) in [
        (
            "an ephemeral event with any of these faults",
            "dropped, counted in `fanfare_worker_ephemeral_dropped_total`",
            dropped.to_owned(),
            "message.typing.u1",
            json!({}),
        ),
        (
            "a time to live, or an `expires_at` that ends the event, that is over",
            "outcome `expired`",
            outcome("expired"),
            "admin.announcement.broadcast",
            over,
        ),
        (
            "a synchronisation request that closes a loop",
            "outcome `excluded`",
            outcome("excluded"),
            "sync.request.nobody",
            again,
        ),
    ] {
        assert!(says(&mut page, input).starts_with(fate), "{input}");
        node.publish(&format!("notification.{subject}"), &body).await;
        counted(&metric, 0.0).await;
    }
    let input = "a user whom nobody knows";
    assert!(says(&mut page, input).ends_with("else outcome `absent`"));
    node.publish("notification.friend.request.unknown", &json!({"payload": {}})).await;
    eventually(input, async || count(&context, "OFFLINE_PUSH").await == 1).await;
    node.publish("notification.message.read_receipt.unknown", &json!({"payload": {}})).await;
    counted(&outcome("absent"), 1.0).await;

    // And what is shown all the same.
    let mut ann = node.client("ann", AckMode::Auto).await;
    context.client().publish("$KV.audience.group.g.old", r#"{"role":"member","v":1}"#.into()).await.unwrap();
    let past = json!({"deliver_at": unix_s() - 100});
    let mut normal = "";
    for (input, fate, event, body, skips) in [
        (
            "`metadata.deliver_at` in the past",
            "delivered at once",
            "sync.completed.ann",
            json!({"payload": {}, "metadata": past}),
            "",
        ),
        (
            "a `priority` of another word",
            "delivered on the event's lane",
            "sync.completed.ann",
            json!({"payload": {}, "priority": "utmost"}),
            "",
        ),
        (
            "somebody leaves who is no member",
            "delivered, also to that user",
            "group.member_left.g",
            json!({"payload": {"user_id": "ann"}}),
            "",
        ),
        (
            "the role of somebody who is no member",
            "delivered, also to that user, who is a member from then on",
            "group.role_changed.g",
            json!({"payload": {"user_id": "ann", "new_role": "admin"}}),
            "",
        ),
        (
            "a role of another word",
            "delivered; it is that of an ordinary member",
            "group.role_changed.g",
            json!({"payload": {"user_id": "ann", "new_role": "boss"}}),
            "",
        ),
        (
            "an effect without the fields it needs, but for a ban",
            "delivered without the effect, counted",
            "group.member_joined.g",
            json!({"payload": {}}),
            "group.member_joined",
        ),
        (
            "a ban that is over",
            "delivered; it bans nobody, counted",
            "admin.user_banned.ann",
            json!({"payload": {"banned_until": unix_s() - 1}}),
            "admin.user_banned",
        ),
    ] {
        assert!(says(&mut page, input).starts_with(fate), "{input}");
        let before = metric(&skipped(skips)).await;
        node.publish(&format!("notification.{event}"), &body).await;
        let received = notification(&mut ann).await;
        assert!(event.starts_with(&received.notification_type), "{input}: {received:?}");
        if input.starts_with("a `priority`") {
            normal = if received.priority == "normal" { "normal" } else { "" };
        }
        if !skips.is_empty() {
            counted(&skipped(skips), before).await;
        }
        if input.starts_with("a role") {
            let kv = context.get_stream("KV_audience").await.unwrap();
            let key = kv.get_last_raw_message_by_subject("$KV.audience.group.g.ann").await.unwrap();
            let member: Value = serde_json::from_slice(&key.payload).unwrap();
            assert_eq!(member["role"], "member");
        }
    }
    assert_eq!(normal, "normal");
    let input = "a user without followers";
    assert!(says(&mut page, input).starts_with("nobody gets it, and no outcome is counted"));
    // The ban is acked; nothing else is under way then.
    counted(&outcome("acked"), 0.0).await;
    let all = async || {
        let text = get(node.admin, "/metrics").await.1;
        let outcomes = text.lines().filter(|line| line.contains("_outcomes_total{"));
        outcomes.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
    };
    let (before, absent) = (all().await, metric(&outcome("absent")).await);
    node.publish("notification.user.status_changed.lonely", &json!({"payload": {"user_id": "lonely"}})).await;
    eventually("the queue is empty", async || count(&context, "NOTIFICATIONS").await == 0).await;
    node.publish("notification.message.read_receipt.unknown", &json!({"payload": {}})).await;
    counted(&outcome("absent"), absent).await;
    assert!((all().await - before - 1.0).abs() < 1e-9, "only the one of the receipt");

    assert!(page.is_empty(), "untested: {page:?}");
    assert_eq!(count(&context, "NOTIFICATIONS_DLQ").await, dead.len() as u64, "no other dead letters");
}
