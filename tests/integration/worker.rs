//! The workers against a real nats-server, with sessions that the test plays.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self, Context};
use fanfare::catalog::{Catalog, Kind, Role};
use fanfare::directory::{Change, Key, Writer};
use fanfare::id::{DeviceId, UserId};
use fanfare::pipeline::Sessions;
use fanfare::protocol::Notification;
use fanfare::provision::{Env, apply_all};
use fanfare::session::{Push, Receipt, Receipts, Recipient};
use fanfare::worker;
use futures::StreamExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::NatsServer;

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
    assert_eq!(
        inboxed.headers.get("Nats-TTL").unwrap().as_str(),
        "604799",
        "seven days, less what has passed"
    );
    assert_eq!(inboxed.json["payload"], json!({"message": "hi"}));
    gateway.drained().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_understood_is_dead_lettered_with_its_reason() {
    let gateway = Gateway::start(Fake::default()).await;
    // An event that the stream still takes and the catalog does not know any more.
    let hug = "notification.friend.hug.*";
    gateway
        .change("NOTIFICATIONS", |config| config["subjects"].as_array_mut().unwrap().push(json!(hug)))
        .await;
    let mut config = gateway.consumer_info("high").await["config"].clone();
    config["filter_subjects"].as_array_mut().unwrap().push(json!(hug));
    let body = json!({"stream_name": "NOTIFICATIONS", "config": config, "action": "update"});
    gateway.request("CONSUMER.CREATE.NOTIFICATIONS.high", &body).await;

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
    let gateway = Gateway::start(Fake::online("ann", Behaviour::Take)).await;

    let over = json!({"payload": {"expires_at": 1_000}, "type": "admin.announcement"});
    gateway.publish("notification.admin.announcement.broadcast", over.to_string()).await;
    gateway.drained().await;
    assert_eq!(gateway.sessions.taken(), 0);

    let current = json!({"payload": {}, "type": "admin.announcement"});
    gateway.publish("notification.admin.announcement.broadcast", current.to_string()).await;
    gateway.drained().await;
    assert_eq!(gateway.sessions.taken(), 1);
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
    assert_eq!(gateway.count("NOTIFICATIONS").await, 1);
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
    handle.join().await;

    let stream = gateway.context.get_stream("NOTIFICATIONS").await.unwrap();
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
    assert_eq!(gateway.count("NOTIFICATIONS").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_was_deleted_is_used_again_once_it_is_back() {
    let gateway = Gateway::start(Fake::default()).await;
    let stream = gateway.context.get_stream("NOTIFICATIONS").await.unwrap();
    stream.delete_consumer("high").await.unwrap();
    gateway.publish("notification.friend.request.ann", r#"{"payload":{}}"#.to_owned()).await;

    let catalog = Catalog::built_in().unwrap();
    apply_all(&gateway.context.client(), &catalog, Env::Dev).await.unwrap();

    gateway.records("OFFLINE_PUSH", 1).await;
    gateway.drained().await;
}

/// A message of a stream, read back.
struct Stored {
    subject: String,
    headers: HeaderMap,
    body: String,
    json: Value,
}

impl Stored {
    fn header(&self, name: &str) -> String {
        self.headers.get(name).map(|value| value.as_str().to_owned()).unwrap_or_default()
    }
}

/// What the sessions of a user do with a push.
#[derive(Debug, Clone, Copy)]
enum Behaviour {
    Take,
    Ack,
    Silent,
    Lose,
    Full,
    Panic,
}

/// Sessions as the test wants them.
#[derive(Default)]
struct Fake {
    users: HashMap<String, Behaviour>,
    taken: Mutex<usize>,
    held: Mutex<Vec<Receipt>>,
}

impl Fake {
    fn online(user: &str, behaviour: Behaviour) -> Self {
        Self { users: HashMap::from([(user.to_owned(), behaviour)]), ..Self::default() }
    }

    fn taken(&self) -> usize {
        *self.taken.lock()
    }
}

impl Sessions for Fake {
    fn push(&self, _: &Arc<Notification>, recipient: &Recipient, receipts: Option<&Receipts>) -> Push {
        let Some(behaviour) = self.users.get(recipient.user.as_str()) else { return Push::Absent };
        *self.taken.lock() += 1;
        let receipt = receipts.map(|all| all.receipt(&recipient.user, &DeviceId::new("d1").unwrap()));
        match behaviour {
            Behaviour::Take | Behaviour::Lose => {}
            Behaviour::Ack => receipt.into_iter().for_each(Receipt::acked),
            Behaviour::Silent => self.held.lock().extend(receipt),
            Behaviour::Full => return Push::Full,
            Behaviour::Panic => panic!("the test wants it"),
        }
        Push::Accepted(1)
    }

    fn broadcast(&self, _: &Arc<Notification>) -> (usize, usize) {
        *self.taken.lock() += self.users.len();
        (self.users.len(), 0)
    }
}

/// Workers on a server of their own.
struct Gateway {
    context: Context,
    sessions: Arc<Fake>,
    soft: CancellationToken,
    handle: Mutex<Option<worker::Handle>>,
    _server: NatsServer,
}

impl Gateway {
    async fn start(sessions: Fake) -> Self {
        let server = NatsServer::start().await;
        let client = server.client().await;
        let soft = CancellationToken::new();
        let gateway = Self {
            context: jetstream::new(client.clone()),
            sessions: Arc::new(sessions),
            soft: soft.clone(),
            handle: Mutex::default(),
            _server: server,
        };
        let catalog = Arc::new(Catalog::built_in().unwrap());
        apply_all(&client, &catalog, Env::Dev).await.unwrap();
        let config = worker::Config { high: 1, normal: 1, low: 1, drain_s: 1, ..worker::Config::default() };
        let handle = worker::start(client, catalog, gateway.sessions.clone(), config, soft).await.unwrap();
        *gateway.handle.lock() = Some(handle);
        gateway
    }

    /// Changes a stream's configuration as an operator could.
    async fn change(&self, stream: &str, change: impl FnOnce(&mut Value)) {
        let info: Value = self.request(&format!("STREAM.INFO.{stream}"), &json!({})).await;
        let mut config = info["config"].clone();
        change(&mut config);
        self.request(&format!("STREAM.UPDATE.{stream}"), &config).await;
    }

    async fn request(&self, path: &str, body: &Value) -> Value {
        let answer: Value = self.context.request(path.to_owned(), body).await.unwrap();
        assert!(answer["error"].is_null(), "{answer}");
        answer
    }

    async fn consumer_info(&self, name: &str) -> Value {
        self.request(&format!("CONSUMER.INFO.NOTIFICATIONS.{name}"), &json!({})).await
    }

    async fn members(&self, of: &Key, count: usize) {
        for n in 0..count {
            let body = json!({"role": "member", "v": 1}).to_string();
            let subject = format!("$KV.audience.{}.u{n}", of.header());
            let client = self.context.client();
            client.publish(subject, body.into()).await.unwrap();
        }
        self.eventually("all members are there", async || self.count("KV_audience").await >= count as u64)
            .await;
    }

    async fn publish(&self, subject: &str, body: String) {
        self.context.publish(subject.to_owned(), body.into()).await.unwrap().await.unwrap();
    }

    async fn count(&self, stream: &str) -> u64 {
        let info = self.request(&format!("STREAM.INFO.{stream}"), &json!({})).await;
        info["state"]["messages"].as_u64().unwrap()
    }

    /// Waits until the work queue is empty: every message has had its last word.
    async fn drained(&self) {
        self.eventually("the work queue is empty", async || self.count("NOTIFICATIONS").await == 0).await;
    }

    /// Waits for `count` messages in a stream and reads them.
    async fn records(&self, stream: &str, count: usize) -> Vec<Stored> {
        self.eventually(stream, async || self.count(stream).await >= count as u64).await;
        let stream = self.context.get_stream(stream).await.unwrap();
        let mut records = Vec::new();
        for seq in 1..=count as u64 {
            let message = stream.get_raw_message(seq).await.unwrap();
            let body = String::from_utf8(message.payload.to_vec()).unwrap();
            records.push(Stored {
                subject: message.subject.to_string(),
                headers: message.headers,
                json: serde_json::from_str(&body).unwrap_or_default(),
                body,
            });
        }
        records
    }

    async fn eventually(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !holds().await {
            assert!(tokio::time::Instant::now() < deadline, "not within 20 s: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.soft.cancel();
    }
}
