//! Provisioning against a real server.

mod classes;
mod fault;
mod held;
mod import;
mod migration;
mod printing;
mod prune;
mod replicated;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use fanfare::catalog::Catalog;
use fanfare::provision::{
    Declarations, Desired, Env, Error, Options, Plan, Step, apply, apply_all, observe, plan, plan_for,
};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{NatsServer, eventually, queue};

#[tokio::test]
async fn second_apply_sends_no_write() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    let first = apply_all(&client, &catalog(), Env::DEV).await.unwrap();
    let observer = server.client().await;
    let mut requests = observer.subscribe("$JS.API.>").await.unwrap();
    observer.flush().await.unwrap();

    let second = apply_all(&client, &catalog(), Env::DEV).await.unwrap();

    client.publish("$JS.API.END", "".into()).await.unwrap();
    let mut seen = Vec::new();
    while let Some(request) = requests.next().await {
        if request.subject.as_str() == "$JS.API.END" {
            break;
        }
        // The server asks for itself, too, to source one stream from another.
        if request.reply.is_some_and(|reply| reply.starts_with("_INBOX")) {
            seen.push(request.subject.to_string());
        }
    }
    assert_eq!((first.created, first.updated, first.unchanged), (18, 0, 0));
    assert_eq!((second.created, second.updated, second.unchanged), (0, 0, 18));
    assert!(seen.len() >= 12, "the observer sees requests: {seen:?}");
    let reads = |subject: &String| subject.contains(".INFO") || subject.contains(".LIST");
    assert!(seen.iter().all(reads), "{seen:?}");
}

#[tokio::test]
async fn drift_is_shown_and_mended() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    apply_all(&client, &catalog(), Env::DEV).await.unwrap();
    let mut config = config_of(&client, "STREAM.INFO.OUTCOMES").await;
    config["max_age"] = json!(3_600_000_000_000_u64);
    api(&client, "STREAM.UPDATE.OUTCOMES", &config).await;
    let mut consumer = config_of(&client, "CONSUMER.INFO.NOTIFICATIONS_LOW.low").await;
    consumer["max_deliver"] = json!(3);
    let body = json!({"stream_name": "NOTIFICATIONS_LOW", "config": consumer, "action": "update"});
    api(&client, "CONSUMER.CREATE.NOTIFICATIONS_LOW.low", &body).await;

    let plan = plan_of(&client, &desired()).await;
    let report = apply_all(&client, &catalog(), Env::DEV).await.unwrap();

    let text = plan.to_string();
    assert!(text.contains("~ update stream OUTCOMES  [safe]\n    max_age: 1h -> 24h"), "{text}");
    assert!(
        text.contains("~ update consumer NOTIFICATIONS_LOW > low  [safe]\n    max_deliver: 3 -> 20"),
        "{text}"
    );
    assert_eq!((report.created, report.updated), (0, 2));
    assert!(plan_of(&client, &desired()).await.is_empty());
}

#[tokio::test]
async fn what_the_server_cannot_change_is_refused_before_anything_is_sent() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    let existing = json!({"name": "OUTCOMES", "subjects": ["outcome.*"], "storage": "memory"});
    api(&client, "STREAM.CREATE.OUTCOMES", &existing).await;

    let error = apply_all(&client, &catalog(), Env::DEV).await.unwrap_err();

    assert!(matches!(error, Error::Refused(_)));
    let text = error.to_string();
    assert!(text.contains("-/+ replace stream OUTCOMES  [impossible in place]"), "{text}");
    assert!(
        text.contains("storage: memory -> default  [impossible in place: the server never changes it]"),
        "{text}"
    );
    assert!(text.contains("refused: declare what the server has"), "{text}");
    assert!(text.contains("apply --recreate OUTCOMES"), "{text}");
    assert_eq!(api(&client, "STREAM.NAMES", &Value::Null).await["streams"], json!(["OUTCOMES"]));
}

#[tokio::test]
async fn stored_events_reach_their_lane_and_others_are_not_stored() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    apply_all(&client, &catalog(), Env::DEV).await.unwrap();
    let jetstream = async_nats::jetstream::new(client.clone());

    let ack = jetstream.publish("notification.friend.request.user-1", "{}".into()).await.unwrap().await;
    let unknown = jetstream.publish("notification.friend.wave.user-1", "{}".into()).await.unwrap().await;
    client.publish("notification.message.typing.user-1", "{}".into()).await.unwrap();
    for subject in ["notification.message.new.user-1", "notification.user.status_changed.user-1"] {
        jetstream.publish(subject, "{}".into()).await.unwrap().await.unwrap();
    }

    assert_eq!(ack.unwrap().stream, "NOTIFICATIONS_HIGH");
    let kind = unknown.unwrap_err().kind();
    assert_eq!(kind, async_nats::jetstream::context::PublishErrorKind::StreamNotFound);
    for (lane, subject) in [
        ("high", "notification.friend.request.user-1"),
        ("normal", "notification.message.new.user-1"),
        ("low", "notification.user.status_changed.user-1"),
    ] {
        let queue = queue(lane);
        assert_eq!(info(&client, &format!("STREAM.INFO.{queue}")).await["state"]["messages"], 1);
        // It counts a message some moments after its stream has said that it has it.
        eventually(&format!("{lane} has one to deliver"), async || {
            info(&client, &format!("CONSUMER.INFO.{queue}.{lane}")).await["num_pending"] == 1
        })
        .await;
        assert_eq!(next(&jetstream, lane).await.subject.as_str(), subject);
    }
}

#[tokio::test]
async fn a_schedule_arrives_as_a_notification_when_it_is_due() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    apply_all(&client, &catalog(), Env::DEV).await.unwrap();
    let jetstream = async_nats::jetstream::new(client.clone());
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Schedule", "@at 2020-01-01T00:00:00Z");
    headers.insert("Nats-Schedule-Target", "due.file.expiring.user-1");
    headers.insert("Nats-TTL", "never");
    headers.insert("Fanfare-Due", "1");

    let published = jetstream.publish_with_headers("schedule.test.1", headers, "{\"a\":1}".into());
    published.await.unwrap().await.unwrap();

    let message = next(&jetstream, "normal").await;
    assert_eq!(message.subject.as_str(), "notification.file.expiring.user-1");
    assert_eq!(message.headers.as_ref().unwrap().get("Fanfare-Due").unwrap().as_str(), "1");
    message.ack().await.unwrap();
    // The source confirms what it took a moment later.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while info(&client, "STREAM.INFO.SCHEDULES").await["state"]["messages"] != 0 {
        assert!(tokio::time::Instant::now() < deadline, "the due copy leaves its first stream");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What waits is handled by the lane that it was published to; what comes goes to the new one.
#[tokio::test]
async fn an_event_that_changes_lanes_loses_nothing() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    apply_all(&client, &catalog(), Env::DEV).await.unwrap();
    let jetstream = async_nats::jetstream::new(client.clone());
    let publish = async |text: &'static str| {
        let sent = jetstream.publish("notification.message.read_receipt.user-1", text.into()).await;
        sent.unwrap().await.unwrap()
    };
    assert_eq!(publish("old").await.stream, "NOTIFICATIONS_LOW");
    let moved =
        fanfare::catalog::BUILT_IN.replace("lane = \"low\"\nrank = 60", "lane = \"normal\"\nrank = 60");
    let moved = Catalog::from_toml(&moved).unwrap();

    apply_all(&client, &moved, Env::DEV).await.unwrap();

    assert_eq!(publish("new").await.stream, "NOTIFICATIONS");
    for (lane, text) in [("normal", "new"), ("low", "old")] {
        assert_eq!(next(&jetstream, lane).await.payload, text, "{lane}");
    }
}

#[tokio::test]
async fn buckets_open_with_the_ordinary_client() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    apply_all(&client, &catalog(), Env::DEV).await.unwrap();
    let jetstream = async_nats::jetstream::new(client.clone());

    for bucket in ["audience", "presence", "nodes", "control", "transient"] {
        let store = jetstream.get_key_value(bucket).await.unwrap();
        store.put("a.b", "1".into()).await.unwrap();
        assert_eq!(store.get("a.b").await.unwrap().unwrap(), "1", "{bucket}");
        store.create_with_ttl("c", "1".into(), Duration::from_mins(1)).await.unwrap();
        store.purge("a.b").await.unwrap();
        assert!(store.get("a.b").await.unwrap().is_none(), "{bucket}");
    }
}

#[tokio::test]
async fn production_differs_in_limits_replicas_and_what_replicas_allow_only() {
    let (dev, production) =
        (desired(), Declarations::built_in().unwrap().desired(&catalog(), Env::PRODUCTION).unwrap());

    for (dev, production) in dev.streams.iter().zip(&production.streams) {
        assert_eq!(production.config["num_replicas"], 3, "{}", dev.stream);
        for (field, value) in &production.config {
            // Without replicas a stream in memory does not outlive its server.
            let in_memory = field == "storage" && ["KV_presence", "KV_nodes"].contains(&dev.stream.as_str());
            let may_differ = in_memory || ["num_replicas", "max_bytes"].contains(&field.as_str());
            assert!(may_differ || dev.config[field] == *value, "{} {field}", dev.stream);
        }
    }
}

#[test]
fn an_even_number_of_replicas_is_a_mistake_of_usage() {
    for number in ["0", "2", "4", "6", "three"] {
        let (code, text) = fanfare_at("nats://127.0.0.1:1", &["provision", "lint", "--replicas", number]);
        assert_eq!(code, Some(64), "{number}: {text}");
        assert!(text.contains("possible values: 1, 3, 5"), "{text}");
    }
}

#[test]
fn lint_prints_what_is_reserved() {
    let (code, text) = fanfare_at("nats://127.0.0.1:1", &["provision", "lint", "--replicas", "3"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("file storage: 3204 MiB, with all replicas 9612 MiB"), "{text}");
}

#[tokio::test]
async fn a_server_without_jetstream_is_named_as_the_cause() {
    let server = NatsServer::start_with("").await;

    let error = apply_all(&server.client().await, &catalog(), Env::DEV).await.unwrap_err();

    assert!(matches!(error, Error::NoJetStream), "{error}");
}

#[tokio::test]
async fn a_denied_request_says_that_it_may_be_denied() {
    let config = "jetstream {}\nauthorization { users: [{ user: a, password: b, permissions: { \
                  publish: { deny: \"$JS.API.STREAM.CREATE.>\" } } }] }";
    let server = NatsServer::start_with(config).await;
    let options = async_nats::ConnectOptions::with_user_and_password("a".to_owned(), "b".to_owned());
    let client = options.connect(server.url()).await.unwrap();

    let error = apply_all(&client, &catalog(), Env::DEV).await.unwrap_err();

    assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
    assert!(error.to_string().contains("may not publish"), "{error}");
}

#[tokio::test]
async fn exit_codes_say_whether_something_would_change() {
    let server = NatsServer::start().await;

    assert_eq!(fanfare(&server, &["provision", "lint"]).0, Some(0));
    let (code, text) = fanfare(&server, &["provision", "plan"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("+ create stream NOTIFICATIONS"), "{text}");
    // The answer to the question is an empty line here.
    let (code, text) = fanfare(&server, &["provision", "apply"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("nothing was changed"), "{text}");
    assert_eq!(fanfare(&server, &["provision", "apply", "--yes"]).0, Some(0));
    for again in [&["provision", "plan"][..], &["provision", "apply"], &["provision", "apply", "--yes"]] {
        let (code, text) = fanfare(&server, again);
        assert_eq!((code, text.trim()), (Some(0), "nothing to do (18 unchanged)"), "{again:?}");
    }
}

#[tokio::test]
async fn declarations_of_an_operator_are_linted_first() {
    let server = NatsServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    for part in ["streams", "consumers"] {
        std::fs::create_dir(dir.path().join(part)).unwrap();
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(part)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, dir.path().join(part).join(path.file_name().unwrap())).unwrap();
        }
    }
    let file = dir.path().join("streams/notifications.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("@catalog:low", "@catalog:high")).unwrap();
    let dir = dir.path().to_str().unwrap();

    let (code, text) = fanfare(&server, &["provision", "apply", "--yes", "--dir", dir]);

    assert_eq!(code, Some(1));
    for part in ["[overlap]", "[not-covered] file.processing", "[lane-missing] it has no consumer high"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let client = server.client().await;
    assert_eq!(api(&client, "STREAM.NAMES", &Value::Null).await["total"], 0);
}

/// Runs the program: its exit code, and what it wrote.
fn fanfare(server: &NatsServer, args: &[&str]) -> (Option<i32>, String) {
    fanfare_at(server.url(), args)
}

fn fanfare_at(url: &str, args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .args(["--nats", url])
        .args(args)
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn catalog() -> Catalog {
    Catalog::built_in().expect("the built-in catalog is valid")
}

fn desired() -> Desired {
    let declarations = Declarations::built_in().expect("the built-in declarations are valid");
    declarations.desired(&catalog(), Env::DEV).expect("and expand")
}

async fn plan_of(client: &async_nats::Client, desired: &Desired) -> Plan {
    plan_for(client, &catalog(), desired, &Options::default()).await.expect("the server can be read")
}

/// A server for streams of one name, one after the other. When the last stream of an account goes, nats-server 2.15.1
/// removes their folder a moment later, and a new one may find it gone: so there is always another one.
async fn inhabited() -> (NatsServer, async_nats::Client) {
    let server = NatsServer::start().await;
    let client = server.client().await;
    api(&client, "STREAM.CREATE.KEEP", &json!({"name": "KEEP", "subjects": ["keep"]})).await;
    (server, client)
}

/// Plans without linting and applies: for streams that are not the gateway's.
async fn settle(
    client: &async_nats::Client,
    desired: &Desired,
    options: &Options,
) -> Result<apply::Report, Error> {
    let plan = planned(client, desired, options).await;
    apply::apply(client, desired, &plan, options, &CancellationToken::new(), &mut |_| {}).await
}

/// Sends these steps and is gone.
async fn cut_off(client: &async_nats::Client, steps: &[Step], options: &Options) {
    let (stop, mut told) = (CancellationToken::new(), |_: &str| {});
    let mut run = apply::Run::new(client, options, &stop, &mut told);
    for step in steps {
        run.send(step).await.expect("the server takes it");
    }
}

async fn planned(client: &async_nats::Client, desired: &Desired, options: &Options) -> Plan {
    let live = observe::observe(client, desired).await.expect("the server can be read");
    plan::plan(desired, &live, options)
}

/// Declarations written by hand.
fn declared(text: &str) -> Desired {
    Declarations::parse([("test.toml", text)]).unwrap().desired(&catalog(), Env::DEV).unwrap()
}

/// A request whose answer may be a refusal.
async fn send(client: &async_nats::Client, call: &str, body: &Value) -> Value {
    let payload = if body.is_null() { String::new() } else { body.to_string() };
    let message = client.request(format!("$JS.API.{call}"), payload.into()).await.expect("an answer");
    serde_json::from_slice(&message.payload).expect("JSON")
}

async fn api(client: &async_nats::Client, call: &str, body: &Value) -> Value {
    let answer = send(client, call, body).await;
    assert!(answer.get("error").is_none(), "{call}: {answer}");
    answer
}

async fn info(client: &async_nats::Client, call: &str) -> Value {
    api(client, call, &Value::Null).await
}

async fn config_of(client: &async_nats::Client, call: &str) -> Value {
    info(client, call).await["config"].clone()
}

async fn next(jetstream: &async_nats::jetstream::Context, lane: &str) -> async_nats::jetstream::Message {
    let stream = jetstream.get_stream(queue(lane)).await.expect("the stream exists");
    let consumer: async_nats::jetstream::consumer::PullConsumer =
        stream.get_consumer(lane).await.expect("the consumer exists");
    let mut batch =
        consumer.batch().max_messages(1).expires(Duration::from_secs(5)).messages().await.expect("a batch");
    batch.next().await.expect("a message within 5 s").expect("no error")
}
