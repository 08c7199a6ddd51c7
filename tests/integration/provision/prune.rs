//! What is deleted because nobody declares it any more, drift, and servers that are too old.

use fanfare::provision::Error;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::{api, catalog, fanfare, fanfare_at, info};
use crate::support::NatsServer;

const LABEL: &str = "fanfare.owner";

#[tokio::test]
async fn only_what_carries_our_label_is_pruned_and_never_what_holds_messages() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    fanfare::provision::apply_all(&client, &catalog(), super::Env::DEV).await.unwrap();
    let ours = json!({ LABEL: "fanfare" });
    for (name, metadata) in [("OLD", &ours), ("FULL", &ours), ("THEIRS", &json!({ LABEL: "somebody" }))] {
        let config = json!({"name": name, "subjects": [format!("{name}.>")], "metadata": metadata});
        api(&client, &format!("STREAM.CREATE.{name}"), &config).await;
    }
    for (stream, consumer, metadata) in [("OUTCOMES", "old", &ours), ("OUTCOMES", "theirs", &json!({}))] {
        let config = json!({"durable_name": consumer, "name": consumer, "ack_policy": "explicit",
            "metadata": metadata});
        let body = json!({"stream_name": stream, "config": config, "action": "create"});
        api(&client, &format!("CONSUMER.CREATE.{stream}.{consumer}"), &body).await;
    }
    client.request("FULL.a", "kept".into()).await.unwrap();

    let (code, text) = fanfare(&server, &["provision", "drift"]);
    assert_eq!(code, Some(2), "{text}");
    for line in
        ["? stream OLD is not declared; it is ours", "? consumer OUTCOMES > old is not declared; it is ours"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!text.contains("THEIRS"), "{text}");
    // Without --prune nothing of this is touched.
    let (code, text) = fanfare(&server, &["provision", "apply", "--yes"]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = fanfare(&server, &["provision", "apply", "--yes", "--prune"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("- delete stream FULL") && text.contains("lost: 1 messages"), "{text}");
    assert_eq!(info(&client, "STREAM.INFO.OLD").await["state"]["messages"], 0, "refused as a whole");

    let (code, text) = fanfare(&server, &["provision", "apply", "--yes", "--prune", "--force"]);

    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("deleted 3"), "{text}");
    let names = api(&client, "STREAM.NAMES", &Value::Null).await["streams"].to_string();
    assert!(names.contains("THEIRS") && !names.contains("OLD") && !names.contains("FULL"), "{names}");
    let consumers = api(&client, "CONSUMER.NAMES.OUTCOMES", &Value::Null).await;
    assert_eq!(consumers["consumers"], json!(["theirs"]));
}

#[tokio::test]
async fn two_owners_share_an_account_and_neither_takes_what_is_the_others() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    fanfare::provision::apply_all(&client, &catalog(), super::Env::DEV).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("streams")).unwrap();
    std::fs::create_dir_all(dir.path().join("consumers")).unwrap();
    let declare = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
    let stream = |name: &str| {
        format!(
            "[[stream]]\n[stream.config]\nname = \"{name}\"\nsubjects = [\"{name}.>\"]\nmax_bytes = \"1MiB\"\n\
             max_consumers = 1\n"
        )
    };
    declare("streams/chat.toml", &stream("CHAT"));
    let at = dir.path().to_str().unwrap();
    let apply = ["provision", "apply", "--yes", "--prune", "--dir", at];

    let (code, text) = fanfare(&server, &apply);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("[stream-missing] INBOX"), "not the gateway's declarations: {text}");
    declare("declarations.toml", "owner = \"chat\"\nallow = [\"stream-missing\"]\n");
    let (code, text) = fanfare(&server, &apply);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("created 1, updated 0; the server agrees"), "{text}");

    // A name that the other one has.
    let theirs = json!({"name": "SPARE", "subjects": ["SPARE.>"], "metadata": { LABEL: "fanfare" }});
    api(&client, "STREAM.CREATE.SPARE", &theirs).await;
    declare("streams/spare.toml", &stream("SPARE"));
    let (code, text) = fanfare(&server, &apply);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("refused: it belongs to \"fanfare\": leave it to them"), "{text}");
    assert_eq!(info(&client, "STREAM.INFO.SPARE").await["config"]["metadata"][LABEL], "fanfare");
    let (code, text) = fanfare(&server, &["provision", "apply", "--yes", "--prune"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("deleted 1; the server agrees"), "what it does not declare, and not CHAT: {text}");
    assert_eq!(info(&client, "STREAM.INFO.CHAT").await["config"]["metadata"][LABEL], "chat");
}

#[tokio::test]
async fn drift_says_by_its_exit_code_what_it_found() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    fanfare::provision::apply_all(&client, &catalog(), super::Env::DEV).await.unwrap();
    let (code, text) = fanfare(&server, &["provision", "drift"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("no drift") && !text.contains('\u{1b}'), "no colours but on a terminal: {text}");
    let mut config = info(&client, "STREAM.INFO.OUTCOMES").await["config"].clone();
    config["max_age"] = json!(3_600_000_000_000_u64);
    api(&client, "STREAM.UPDATE.OUTCOMES", &config).await;

    let (code, text) = fanfare(&server, &["provision", "drift", "--json"]);

    assert_eq!(code, Some(2), "{text}");
    let json: Value = serde_json::from_str(&text).expect("JSON and nothing else");
    assert_eq!((&json["drift"], &json["format"]), (&json!(true), &json!(1)));
    let [change] = json["changes"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert_eq!((&change["stream"], &change["consumer"]), (&json!("OUTCOMES"), &Value::Null));
    assert_eq!((&change["fields"][0]["from"], &change["fields"][0]["to"]), (&json!("1h"), &json!("24h")));
    assert_eq!(fanfare_at("nats://127.0.0.1:1", &["provision", "drift"]).0, Some(1));
    let (code, text) = fanfare(&server, &["provision", "plan", "--recreate", "INBOXES"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("stream INBOXES is not declared") && text.contains("INBOX, "), "{text}");
}

/// What an old server says first. It need not say more.
#[tokio::test]
async fn an_older_server_is_refused_with_the_version_needed() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let old = async {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let hello = json!({"server_id": "OLD", "version": "2.11.9", "proto": 1, "headers": true,
                "max_payload": 1_048_576, "jetstream": true});
            stream.write_all(format!("INFO {hello}\r\n").as_bytes()).await.unwrap();
            let mut line = String::new();
            while stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
                if line.starts_with("PING") {
                    stream.write_all(b"PONG\r\n").await.unwrap();
                }
                line.clear();
            }
        }
    };
    let ask = async {
        let client = async_nats::connect(&url).await.unwrap();
        fanfare::provision::apply_all(&client, &catalog(), super::Env::DEV).await.unwrap_err()
    };

    let error = tokio::select! { () = old => unreachable!("it serves for ever"), error = ask => error };

    assert!(matches!(error, Error::OldServer { .. }), "{error}");
    assert!(error.to_string().contains("nats-server 2.11.9 is too old"), "{error}");
    assert!(error.to_string().contains("2.12 or later"), "{error}");
}
