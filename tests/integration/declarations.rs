//! Declarations against a real server: that it takes what they may say, and means the same by it.

use std::path::Path;
use std::time::Duration;

use async_nats::jetstream;
use fanfare::catalog::{Catalog, Event, Lane};
use fanfare::provision::field::{BUCKET, CONSUMER, Field, Kind, STREAM, TRANSFORM};
use fanfare::provision::{
    Declarations, Desired, Env, OWNER_LABEL, Options, Report, apply_all, apply_desired, lint, plan_for,
};
use serde_json::{Map, Value, json};

use crate::support::{NatsServer, eventually, run};

#[tokio::test]
async fn what_is_there_without_our_label_gets_it_and_nothing_else() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    apply_all(&client, &catalog(), Env::DEV).await.unwrap();
    let context = jetstream::new(client.clone());
    context.publish("notification.friend.request.user-1", "{}".into()).await.unwrap().await.unwrap();
    for stream in ["NOTIFICATIONS", "KV_nodes"] {
        let mut config =
            answer(&client, &format!("STREAM.INFO.{stream}"), &Value::Null).await["config"].clone();
        config["metadata"] = json!({ "team": "chat" });
        answer(&client, &format!("STREAM.UPDATE.{stream}"), &config).await;
    }
    let mut config =
        answer(&client, "CONSUMER.INFO.NOTIFICATIONS_HIGH.high", &Value::Null).await["config"].clone();
    config["metadata"] = json!({ "team": "chat" });
    let body = json!({ "stream_name": "NOTIFICATIONS_HIGH", "config": config, "action": "update" });
    answer(&client, "CONSUMER.CREATE.NOTIFICATIONS_HIGH.high", &body).await;

    let report = apply_all(&client, &catalog(), Env::DEV).await.unwrap();

    assert_eq!((report.created, report.updated), (0, 3));
    for call in ["STREAM.INFO.NOTIFICATIONS", "STREAM.INFO.KV_nodes", "CONSUMER.INFO.NOTIFICATIONS_HIGH.high"]
    {
        let info = answer(&client, call, &Value::Null).await;
        assert_eq!(info["config"]["metadata"][OWNER_LABEL], "fanfare", "{call}");
        assert_eq!(info["config"]["metadata"]["team"], "chat", "{call}");
    }
    let high = answer(&client, "CONSUMER.INFO.NOTIFICATIONS_HIGH.high", &Value::Null).await;
    assert_eq!(high["num_pending"], 1);
    let again = apply_all(&client, &catalog(), Env::DEV).await.unwrap();
    assert_eq!((again.created, again.updated), (0, 0));
}

/// The server reads requests strictly, so a name or word that it does not know is an error of its JSON.
#[tokio::test]
async fn the_server_knows_every_field_and_word_of_the_table() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    answer(&client, "STREAM.CREATE.S", &json!({ "name": "S", "subjects": ["s"] })).await;
    let mut seen = 0;
    for (fields, consumer) in [(STREAM, false), (CONSUMER, true)] {
        for field in fields {
            for value in samples(field.kind) {
                assert!(is_understood(&client, consumer, field.name, &value).await, "{} {value}", field.name);
                seen += 1;
            }
        }
    }
    assert!(seen > STREAM.len() + CONSUMER.len(), "words were tried, too");
    for (consumer, name, value) in [
        (false, "max_agee", json!(1)),
        (false, "retention", json!("workqeue")),
        (false, "placement", json!({ "clusters": "x" })),
        (true, "ack_wait_", json!(1)),
        (true, "ack_policy", json!("implicit")),
    ] {
        assert!(!is_understood(&client, consumer, name, &value).await, "the server is strict about {name}");
    }
}

/// What the server tells of objects that exist is all in the table, so that whatever it has can be declared.
#[tokio::test]
async fn the_table_has_every_field_that_the_server_tells() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    apply_all(&client, &catalog(), Env::DEV).await.unwrap();
    for (call, fields) in [
        ("STREAM.INFO.NOTIFICATIONS", STREAM),
        ("STREAM.INFO.SCHEDULES", STREAM),
        ("STREAM.INFO.KV_nodes", STREAM),
        ("CONSUMER.INFO.NOTIFICATIONS_HIGH.high", CONSUMER),
    ] {
        let info = answer(&client, call, &Value::Null).await;
        let config = info["config"].as_object().unwrap();
        assert!(config.len() > 10, "{call}: {config:?}");
        for name in config.keys() {
            assert!(fields.iter().any(|field| field.name == name), "{call}: {name}");
        }
    }
}

#[tokio::test]
async fn a_bucket_is_the_one_that_a_client_makes() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    let context = jetstream::new(client.clone());
    let theirs = jetstream::kv::Config {
        bucket: "theirs".to_owned(),
        description: "d".to_owned(),
        history: 5,
        max_age: Duration::from_hours(1),
        max_bytes: 1 << 20,
        max_value_size: 1 << 10,
        num_replicas: 1,
        compression: true,
        limit_markers: Some(Duration::from_mins(1)),
        ..jetstream::kv::Config::default()
    };
    context.create_key_value(theirs).await.unwrap();
    let plain = jetstream::kv::Config { bucket: "plain".to_owned(), ..jetstream::kv::Config::default() };
    context.create_key_value(plain).await.unwrap();
    let text = r#"
        [[bucket]]
        [bucket.config]
        bucket = "ours"
        description = "d"
        history = 5
        ttl = "1h"
        max_bytes = "1MiB"
        max_value_size = "1KiB"
        replicas = 1
        compression = true
        limit_marker_ttl = "1m"
        [[bucket]]
        config = { bucket = "bare" }
    "#;
    let desired = Declarations::parse([("b.toml", text)]).unwrap().desired(&catalog(), Env::DEV).unwrap();
    for bucket in &desired.streams {
        let config = Value::Object(bucket.config.clone());
        answer(&client, &format!("STREAM.CREATE.{}", bucket.stream), &config).await;
    }

    for (ours, theirs) in [("ours", "theirs"), ("bare", "plain")] {
        let config = async |bucket: &str| {
            let info = answer(&client, &format!("STREAM.INFO.KV_{bucket}"), &Value::Null).await;
            let mut config = info["config"].as_object().unwrap().clone();
            config.remove("metadata");
            assert_eq!(config.remove("name").unwrap(), format!("KV_{bucket}"));
            assert_eq!(config.remove("subjects").unwrap(), json!([format!("$KV.{bucket}.>")]));
            config
        };
        assert_eq!(config(ours).await, config(theirs).await, "{ours}");
        let store = context.get_key_value(ours).await.unwrap();
        store.put("a", "1".into()).await.unwrap();
        assert_eq!(store.get("a").await.unwrap().unwrap(), "1");
    }
    assert!(BUCKET.len() > 10);
}

#[tokio::test]
async fn the_example_gives_each_event_its_queue() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    let (catalog, context) = (catalog(), jetstream::new(client.clone()));
    let desired = example(Env::DEV);
    assert_eq!(lint::lint(&desired, &catalog), []);
    assert_eq!(lint::lint(&example(Env::PRODUCTION), &catalog), []);

    let Report { created, .. } = apply_desired(&client, &catalog, &desired).await.unwrap();

    assert_eq!(created, desired.streams.len() + desired.consumers.len());
    assert!(plan_for(&client, &catalog, &desired, &Options::default()).await.unwrap().is_empty());
    let stored: Vec<&Event> =
        catalog.events().iter().map(AsRef::as_ref).filter(|event| !event.ephemeral).collect();
    let mut expected = Map::new();
    for event in &stored {
        let subject = event.subject_filter().replace('*', "user-1");
        let ack = context.publish(subject, "{}".into()).await.unwrap().await.unwrap();
        assert_eq!(ack.stream, queue_of(event), "{}", event.name);
        let consumer = format!("{}.{}", ack.stream, event.lane.as_str());
        let count = expected.get(&consumer).and_then(Value::as_u64).unwrap_or_default();
        expected.insert(consumer, json!(count + 1));
    }
    // A consumer counts a message some moments after its stream has said that it has it.
    eventually(&format!("they wait for {expected:?}"), async || {
        let mut found = Map::new();
        for consumer in desired.consumers.iter().filter(|one| one.stream != "ADVISORIES") {
            let name = format!("{}.{}", consumer.stream, consumer.consumer.as_deref().unwrap());
            let info = answer(&client, &format!("CONSUMER.INFO.{name}"), &Value::Null).await;
            found.insert(name, info["num_pending"].clone());
        }
        found == expected
    })
    .await;
}

#[tokio::test]
async fn what_is_due_goes_to_the_queue_of_its_event() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    let context = jetstream::new(client.clone());
    let desired = example(Env::DEV);
    apply_desired(&client, &catalog(), &desired).await.unwrap();
    let catalog = catalog();
    let due =
        ["message.new", "livekit.call_status", "user.status_changed", "file.expiring", "admin.announcement"];
    let target = |event: &str| if event == "admin.announcement" { "broadcast" } else { "user-1" };

    for (at, event) in due.iter().enumerate() {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Schedule", "@at 2020-01-01T00:00:00Z");
        headers.insert("Nats-Schedule-Target", format!("due.{event}.{}", target(event)).as_str());
        headers.insert("Nats-TTL", "never");
        let subject = format!("schedule.test.{at}");
        context.publish_with_headers(subject, headers, "{}".into()).await.unwrap().await.unwrap();
    }

    for event in due {
        let stream = queue_of(catalog.get(event).expect("an event"));
        let subject = format!("notification.{event}.{}", target(event));
        eventually(&format!("{subject} arrives in {stream}"), async || {
            let filter = json!({ "subjects_filter": ">" });
            let info = answer(&client, &format!("STREAM.INFO.{stream}"), &filter).await;
            info["state"]["subjects"] == json!({ subject.as_str(): 1 })
        })
        .await;
    }
    eventually("the due copies leave their first stream", async || {
        answer(&client, "STREAM.INFO.SCHEDULES", &Value::Null).await["state"]["messages"] == 0
    })
    .await;
}

/// Somebody without a session: what is for them is handed off, and has then left its queue.
#[tokio::test]
async fn a_worker_serves_the_queues_of_the_example() {
    const QUEUES: [(&str, &str, &str); 6] = [
        ("NOTIFICATIONS_HIGH", "high", "friend.request"),
        ("NOTIFICATIONS_MESSAGES", "normal", "message.new"),
        ("NOTIFICATIONS_PEOPLE", "normal", "group.invited"),
        ("NOTIFICATIONS_MEDIA", "normal", "file.expiring"),
        ("NOTIFICATIONS_SYSTEM", "normal", "admin.announcement"),
        ("NOTIFICATIONS_LOW", "low", "message.read_receipt"),
    ];
    let server = NatsServer::start().await;
    let client = server.client().await;
    let desired = example(Env::DEV);
    apply_desired(&client, &catalog(), &desired).await.unwrap();
    for (_, _, event) in QUEUES {
        let to = if event == "admin.announcement" { "broadcast" } else { "alice" };
        let (code, text) = run(&server, &["publish", "--type", event, "--to", to]).await;
        assert_eq!(code, Some(0), "{text}");
    }
    let held = async |stream: &str| {
        answer(&client, &format!("STREAM.INFO.{stream}"), &Value::Null).await["state"]["messages"].clone()
    };
    for (queue, _, _) in QUEUES {
        assert_eq!(held(queue).await, 1, "{queue}");
    }

    let folder = tempfile::tempdir().unwrap();
    let _worker = tokio::process::Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .args(["serve", "--role", "worker"])
        .env("FANFARE__NATS__URL", server.url())
        .env(
            "FANFARE__WORKER__STREAMS",
            json!(QUEUES.map(|(queue, lane, _)| format!("{queue}:{lane}"))).to_string(),
        )
        .env("FANFARE__ADMIN__LISTEN", "127.0.0.1:0")
        .current_dir(folder.path())
        .stderr(std::fs::File::create(folder.path().join("log")).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();

    for (queue, _, _) in QUEUES {
        eventually(&format!("{queue} is empty"), async || held(queue).await == 0).await;
    }
    assert_eq!(held("NOTIFICATIONS_DLQ").await, 0);
    assert_eq!(held("OFFLINE_PUSH").await, 4);
}

#[tokio::test]
async fn arguments_choose_environment_variables_and_owner() {
    let server = NatsServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    copy(Path::new(env!("CARGO_MANIFEST_DIR")), dir.path());
    let settings = "environments = [\"dev\", \"staging\"]\n[variables]\nage = \"24h\"\n";
    std::fs::write(dir.path().join("declarations.toml"), settings).unwrap();
    let file = dir.path().join("streams/notifications.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("[stream.production]", "[stream.staging]").replace("\"24h\"", "\"${age}\"");
    std::fs::write(&file, text).unwrap();
    let dir = dir.path().to_str().unwrap();
    let provision =
        async |args: &[&str]| run(&server, &[&["provision", "--dir", dir][..], args].concat()).await;

    // The other files have a table for production.
    let (code, text) = provision(&["lint", "--env", "staging", "--json"]).await;
    assert_eq!(code, Some(1), "{text}");
    let findings: Value = serde_json::from_str(&text).unwrap();
    let first = &findings["findings"][0];
    assert_eq!((&first["code"], &first["place"]["line"]), (&json!("unknown-field"), &json!(28)), "{text}");
    assert!(first["place"]["file"].as_str().unwrap().ends_with("streams/advisories.toml"), "{text}");
    for part in ["streams", "consumers"] {
        for entry in std::fs::read_dir(Path::new(dir).join(part)).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap().replace(".production]", ".staging]");
            std::fs::write(path, text).unwrap();
        }
    }
    let (code, text) = provision(&["lint", "--env", "production"]).await;
    assert_eq!(code, Some(1));
    assert!(
        text.contains("there is no environment `production`: the declarations have dev, staging"),
        "{text}"
    );
    let (code, text) = provision(&["lint", "--var", "ages=1h"]).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("there is no variable `ages`: did you mean `age`?"), "{text}");
    assert_eq!(provision(&["lint", "--var", "age"]).await.0, Some(64));
    assert_eq!(provision(&["lint", "--owner", ""]).await.0, Some(64));
    let (code, text) = provision(&["lint", "--env", "staging", "--json"]).await;
    assert_eq!((code, text.trim()), (Some(0), "{\n  \"findings\": []\n}"));

    let (code, text) = provision(&["apply", "--yes", "--var", "age=1h", "--owner", "chat"]).await;
    assert_eq!(code, Some(0), "{text}");
    let info = answer(&server.client().await, "STREAM.INFO.NOTIFICATIONS", &Value::Null).await;
    assert_eq!(info["config"]["max_age"], json!(3_600_000_000_000_u64));
    assert_eq!(info["config"]["metadata"][OWNER_LABEL], "chat");
}

/// Copies streams/ and consumers/.
fn copy(from: &Path, to: &Path) {
    for part in ["streams", "consumers"] {
        std::fs::create_dir(to.join(part)).unwrap();
        for entry in std::fs::read_dir(from.join(part)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, to.join(part).join(path.file_name().unwrap())).unwrap();
        }
    }
}

/// Values that a field of the kind can have; each word of those that have words.
fn samples(kind: Kind) -> Vec<Value> {
    let table = |fields: &[Field]| -> Value {
        let first = |field: &Field| (field.name.to_owned(), samples(field.kind).remove(0));
        Value::Object(fields.iter().map(first).collect())
    };
    match kind {
        Kind::Text | Kind::Subject(_) => vec![json!("x")],
        Kind::Flag => vec![json!(true)],
        Kind::Number(..) | Kind::Size(_) | Kind::Duration => vec![json!(1)],
        Kind::Durations => vec![json!([1])],
        Kind::Time => vec![json!("2026-01-02T03:04:05Z")],
        Kind::Texts | Kind::Subjects => vec![json!(["x"])],
        Kind::OneOf(words) => words.iter().map(|word| json!(word)).collect(),
        Kind::Labels => vec![json!({ "x": "y" })],
        Kind::Table(fields) => vec![table(fields)],
        Kind::Tables(fields) => vec![json!([table(fields)])],
        Kind::Transforms => vec![json!([table(TRANSFORM)])],
    }
}

/// Whether the server can read a configuration with this field; it may refuse what it read.
async fn is_understood(client: &async_nats::Client, consumer: bool, name: &str, value: &Value) -> bool {
    const INVALID_JSON: u64 = 10025;
    let (call, body) = if consumer {
        let body = json!({ "stream_name": "S", "config": { name: value } });
        ("CONSUMER.CREATE.S".to_owned(), body)
    } else {
        let mut body = json!({ "name": "PROBE" });
        body[name] = value.clone();
        (format!("STREAM.CREATE.{}", body["name"].as_str().unwrap()), body)
    };
    let answer = request(client, &call, &body).await;
    if !consumer && answer.get("error").is_none() {
        request(client, &call.replace("CREATE", "DELETE"), &Value::Null).await;
    }
    answer["error"]["err_code"] != INVALID_JSON
}

fn catalog() -> Catalog {
    Catalog::built_in().unwrap()
}

fn example(env: Env) -> Desired {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/streams-by-service");
    Declarations::read(&dir).unwrap().desired(&catalog(), env).unwrap()
}

/// Where the example puts a service.
fn queue_of(event: &Event) -> &'static str {
    match (event.lane, event.service()) {
        (Lane::High, _) => "NOTIFICATIONS_HIGH",
        (Lane::Low, _) => "NOTIFICATIONS_LOW",
        (Lane::Normal, "message" | "session" | "sync") => "NOTIFICATIONS_MESSAGES",
        (Lane::Normal, "livekit" | "file") => "NOTIFICATIONS_MEDIA",
        (Lane::Normal, "friend" | "group" | "user") => "NOTIFICATIONS_PEOPLE",
        (Lane::Normal, _) => "NOTIFICATIONS_SYSTEM",
    }
}

async fn request(client: &async_nats::Client, call: &str, body: &Value) -> Value {
    let payload = if body.is_null() { String::new() } else { body.to_string() };
    let message = client.request(format!("$JS.API.{call}"), payload.into()).await.unwrap();
    serde_json::from_slice(&message.payload).unwrap()
}

async fn answer(client: &async_nats::Client, call: &str, body: &Value) -> Value {
    let answer = request(client, call, body).await;
    assert!(answer.get("error").is_none(), "{call}: {answer}");
    answer
}
